// What the tests of the nightly run share: a server with a real cluster and a tree of hostile names, ways to compare what
// came back with what was there, and watchers that see what other processes get to see.
import assert from 'node:assert/strict';
import { execFileSync, spawn } from 'node:child_process';
import fs from 'node:fs';
import path from 'node:path';
import { PG, makeCluster } from './cluster.ts';
import type { ClusterOptions, TestCluster } from './cluster.ts';
import { freePort } from './storage.ts';

const PROGRAMS = ['borg', 'psql', '/usr/sbin/sshd', 'ssh-keygen', `/usr/lib/postgresql/${PG}/bin/postgres`];

/** What keeps these tests from running here, as the reason of a skip; false when nothing does. Throws instead when nothing may be skipped. */
export function cannotRunHere(programs: string[] = []): string | false {
  const path = `${process.env.PATH}:/usr/sbin:/sbin`;
  const missing = [...PROGRAMS, ...programs].filter((program) => {
    try { execFileSync('sh', ['-c', 'command -v "$0"', program], { env: { PATH: path }, stdio: 'ignore' }); return false; } catch { return true; }
  });
  if (missing.length === 0) return false;
  const why = `not installed: ${missing.join(', ')} (apt-get install borgbackup postgresql openssh-server strace bsdutils)`;
  if (process.env.COLD_BACKUP_NO_SKIP) throw new Error(why);
  return why;
}

export const PASSWORDS = ['Kolibri-7391-app', 'Zebra-2846-reporting']; // of the cluster's roles: nothing of ours may show them

/** A cluster with what makes files hard to move: tablespace, WAL elsewhere, ICU and libc collations, extensions, roles with passwords. */
export async function makeHardCluster(folder: string, changes: Partial<ClusterOptions> = {}): Promise<TestCluster> {
  const cluster = await makeCluster({ folder, version: 'debian', port: await freePort(), tablespace: true, walElsewhere: true,
    initdb: ['--data-checksums', '--wal-segsize=4'], settings: { max_wal_size: '64MB', fsync: 'off' }, ...changes });
  cluster.sql('postgres', `
    create role app login password '${PASSWORDS[0]}';
    create role reporting login password '${PASSWORDS[1]}' in role pg_read_all_data;
    create table faraway (id int primary key, note text) tablespace elsewhere;
    insert into faraway select g, md5(g::text) from generate_series(1, 20000) g;
    create database shop owner app template template0 encoding 'UTF8' locale_provider icu icu_locale 'es' locale 'C.UTF-8'`);
  cluster.sql('shop', `
    create extension pg_trgm; create extension hstore;
    create table customers (id serial primary key, name text collate "de-x-icu", city text collate "C.utf8", code text collate "POSIX", more hstore);
    insert into customers (name, city, code, more) select 'Ñandú ' || md5(g::text), 'Maputo ' || g % 13, 'k' || g, hstore('n', g::text) from generate_series(1, 5000) g;
    create index on customers (name); create index on customers (city); create index on customers using gin (name gin_trgm_ops);
    create table "odd ""name" (t text); insert into "odd ""name" values (E'line\\nend'), (null)`);
  return cluster;
}

/** A folder of everything that breaks scripts: names, links, holes. */
export function makeHostileTree(folder: string): void {
  fs.mkdirSync(path.join(folder, '--delete', 'deeper below'), { recursive: true });
  const names = ['plain.txt', 'with space', 'quote\'s "both"', 'line\nend', '-rf', '--exclude=*', '$(touch gone)', '`id`', 'ünïcödé ñ 日本語', 'tab\there', 'back\\slash', '*', '#', '~', 'a;b&c|d', '{now}', 'ends with dot.', '\u202egpj.exe'];
  for (const name of names) fs.writeFileSync(path.join(folder, name), `I am ${JSON.stringify(name)}\n`);
  for (const name of names) fs.writeFileSync(path.join(folder, '--delete', 'deeper below', name), name);
  const notUtf8 = Buffer.from([...Buffer.from('latin-'), 0xe9, 0xff, 0xfe]);
  fs.writeFileSync(Buffer.concat([Buffer.from(`${folder}/`), notUtf8]), 'my name is not UTF-8\n');
  fs.linkSync(path.join(folder, 'plain.txt'), path.join(folder, 'another name of plain.txt'));
  fs.symlinkSync('plain.txt', path.join(folder, 'link'));
  fs.symlinkSync('/nowhere/at all', path.join(folder, 'dangling'));
  fs.mkdirSync(path.join(folder, 'empty'), { mode: 0o711 });
  const hole = fs.openSync(path.join(folder, 'sparse'), 'w');
  fs.writeSync(hole, 'begin', 0);
  fs.writeSync(hole, 'end', 40_000_000);
  fs.closeSync(hole);
  fs.chmodSync(path.join(folder, 'with space'), 0o4750);
  fs.utimesSync(path.join(folder, '*'), 1, 981173106.5);
}

/** Everything of a tree that a restore has to bring back: names, kinds, modes, owners, sizes, link counts, targets, times, contents. */
export function treeFacts(folder: string): string {
  const run = (command: string) => execFileSync('bash', ['-c', `set -o pipefail; cd "$0" && ${command}`, folder], { encoding: 'latin1', maxBuffer: 1 << 28 });
  return run(`{ find . -not -type d -printf '%P\\t%y %m %U %G %s %n %T@ %l\\0'; find . -type d -printf '%P\\t%y %m %U %G %T@\\0'; } | sort -z | tr '\\0' '\\n'`)
    + run('find . -type f -print0 | sort -z | xargs -0 --no-run-if-empty sha256sum');
}

/** Every file below some folders with its size and times: two of these are equal when nothing was written in between. */
export function stamps(...folders: string[]): string {
  const there = folders.filter((folder) => fs.existsSync(folder));
  return execFileSync('bash', ['-c', `find "$@" -printf '%p\\t%y %m %s %T@ %C@\\0' | sort -z | tr '\\0' '\\n'`, 'bash', ...there], { encoding: 'latin1', maxBuffer: 1 << 28 });
}

/** The command lines of all processes. */
export function processes(): string[] {
  return fs.readdirSync('/proc').filter((entry) => /^\d+$/.test(entry)).map((pid) => {
    try { return fs.readFileSync(`/proc/${pid}/cmdline`, 'latin1').replaceAll('\0', ' '); } catch { return ''; } // it has ended
  });
}

/** Watch the command lines of all processes until stop(), which returns every one that was seen. */
export function watchCommandLines(): { stop: () => string[] } {
  const seen = new Set<string>();
  const timer = setInterval(() => processes().forEach((line) => seen.add(line)), 2);
  return { stop: () => { clearInterval(timer); return [...seen]; } };
}

/** Watch the largest memory a process has had. Returns a function that tells it in MB, once the process has ended. */
export function watchMemory(pid: number): () => number {
  let most = 0;
  const timer = setInterval(() => {
    try { most = Math.max(most, Number(/^VmHWM:\s+(\d+)/m.exec(fs.readFileSync(`/proc/${pid}/status`, 'utf8'))?.[1] ?? 0)); } catch { clearInterval(timer); }
  }, 10);
  return () => { clearInterval(timer); return most / 1024; };
}

/** Every file below a folder that holds one of these texts. */
export function filesWith(folder: string, secrets: string[]): string[] {
  const files = execFileSync('find', [folder, '-type', 'f', '-print0'], { encoding: 'utf8', maxBuffer: 1 << 28 }).split('\0').filter((file) => file !== '');
  return files.filter((file) => { const bytes = fs.readFileSync(file); return secrets.some((secret) => bytes.includes(secret)); });
}

/** Run PostgreSQL on restored files in place of the cluster they came from, and return what all its tables hold. */
export function fingerprintOfRestored(cluster: TestCluster, dataDirectory: string): Record<string, string> {
  const isRoot = process.getuid?.() === 0, wasRunning = cluster.isRunning();
  const control = (...words: string[]) => {
    const argv = [path.join(cluster.binaries, 'pg_ctl'), '-D', dataDirectory, '-w', '-s', ...words];
    execFileSync(isRoot ? 'runuser' : argv[0]!, isRoot ? ['-u', cluster.owner, '--', ...argv] : argv.slice(1), { stdio: 'ignore', cwd: '/' });
  };
  if (wasRunning) cluster.stop(); // the restored one has its port and socket
  try {
    control('start', '-l', '/dev/null');
    const found = cluster.fingerprint();
    control('stop', '-m', 'fast');
    return found;
  } finally {
    if (wasRunning) cluster.start();
  }
}

/** Where an extracted cluster's tablespace and WAL links lead is still the old place: turn them to what was extracted, as a person has to. */
export function mendLinks(dataDirectory: string, root: string): void {
  const links = [path.join(dataDirectory, 'pg_wal'), ...fs.readdirSync(path.join(dataDirectory, 'pg_tblspc')).map((oid) => path.join(dataDirectory, 'pg_tblspc', oid))];
  for (const link of links) {
    const target = fs.readlinkSync(link);
    assert.ok(fs.existsSync(root + target), `${target} came with the archive`);
    fs.rmSync(link);
    fs.symlinkSync(root + target, link);
    if (process.getuid?.() === 0) execFileSync('chown', ['--no-dereference', '--reference', dataDirectory, link]);
  }
}

/** Run a command with a pseudo terminal as its screen, and return everything that appeared on it. */
export function onTerminal(argv: string[], env: NodeJS.ProcessEnv = {}): Promise<{ code: number; screen: string }> {
  const quoted = argv.map((word) => `'${word.replaceAll("'", `'\\''`)}'`).join(' ');
  const child = spawn('script', ['--quiet', '--return', '--command', quoted, '/dev/null'], { stdio: ['ignore', 'pipe', 'inherit'], env: { ...process.env, ...env } });
  let screen = '';
  child.stdout.on('data', (piece) => { screen += piece; });
  return new Promise((resolve) => { child.on('close', (code) => resolve({ code: code!, screen })); });
}
