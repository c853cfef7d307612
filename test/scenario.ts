// Scenarios of failure. Each runs in a process of its own with a machine nearly of its own (alone.ts, and its own network):
// one production server in miniature whose disk is memory, a copy of one that is made once for the whole test file. So they
// run side by side, none sees another, and whatever one leaves behind is gone with it.
import assert from 'node:assert/strict';
import { execFileSync, spawn } from 'node:child_process';
import fs from 'node:fs';
import path from 'node:path';
import { before, describe, test } from 'node:test';
import { fileURLToPath, pathToFileURL } from 'node:url';
import { aloneCommand } from './alone.ts';
import { makeCluster } from './cluster.ts';
import type { TestCluster } from './cluster.ts';
import { everythingRunsAgain, makeDaemon, makeServer, repositoryRoot, testFolder, waitFor } from './script.ts';
import type { Daemon, Ended, Server } from './script.ts';
import { startStorage } from './storage.ts';
import type { Storage } from './storage.ts';

/** A server that has taken one good backup: two parts and a cluster that run, a part that does not, a folder, a storage. */
export type World = {
  folder: string; // everything lies below it; at the same path in every scenario
  storage: Storage;
  server: Server;
  web: Daemon; // stopped first
  app: Daemon; // takes its time to stop
  idle: Daemon; // named in `stop`, but does not run
  db: TestCluster; // stopped last; its table `nights` tells one night's copy from another's
  files: string; // saved as a folder
  disk: Disk; // what all this lies on; when it is no tmpfs, snapshots are asked for
};

type Scenarios = Record<string, (world: World) => Promise<void>>;

const MAKE = 'make the server';
const SIDE_BY_SIDE = 4; // they wait more than they work

/** Given a title, the test file, its scenarios by name, how many may run side by side, and on which disks, makes each a test. */
export function scenarios(title: string, file: string, all: Scenarios, sideBySide = SIDE_BY_SIDE, disks: Disk[] = ['tmpfs'], isMeant = (_name: string, _disk: Disk) => true, minutes = 10): void {
  const wanted = process.env.COLD_BACKUP_SCENARIO;
  if (wanted !== undefined) return void inScenario(wanted, all[wanted]);
  const isRoot = process.getuid?.() === 0;
  if (!isRoot) assert.equal(process.env.COLD_BACKUP_NO_SKIP, undefined, 'these tests need root, and nothing may be skipped');
  describe(title, { concurrency: sideBySide, skip: isRoot ? false : 'needs root: namespaces, PostgreSQL as its own user, a tmpfs for each server' }, () => {
    const folder = testFolder('scenario');
    before(() => runScenario(file, folder, MAKE, 'tmpfs'), { timeout: 300_000 });
    for (const disk of disks) for (const name of Object.keys(all).filter((one) => isMeant(one, disk))) test(disk === 'tmpfs' ? name : `${name} (${disk})`, { timeout: minutes * 60_000 }, () => runScenario(file, folder, name, disk));
  });
}

// A file system in a file, in memory; the storage has a disk of its own. On btrfs the data directory is a subvolume.
const IMAGE = (disk: string, make: string) => `mount -t tmpfs tmpfs /mnt && truncate -s 900M /mnt/image && ${make} /mnt/image >&2 && mount -o loop /mnt/image ${disk} && chmod 755 ${disk} && mkdir ${disk}/storage && mount -t tmpfs tmpfs ${disk}/storage`;
const DISKS = {
  tmpfs: (disk: string) => `mount -t tmpfs -o mode=755 tmpfs ${disk}`,
  xfs: (disk: string) => IMAGE(disk, 'mkfs.xfs -q -m reflink=1'),
  'xfs without reflink': (disk: string) => IMAGE(disk, 'mkfs.xfs -q -m reflink=0'),
  btrfs: (disk: string) => `${IMAGE(disk, 'mkfs.btrfs -q -m single')} && mkdir ${disk}/db && btrfs subvolume create ${disk}/db/data >&2`,
};
export type Disk = keyof typeof DISKS;

async function runScenario(file: string, folder: string, name: string, kind: Disk): Promise<void> {
  const disk = path.join(folder, 'disk'), made = path.join(folder, 'made');
  for (const one of [disk, made]) fs.mkdirSync(one, { recursive: true });
  // borg names this machine in its locks by the address of a network card; without one it would name it anew each time.
  const card = 'ip link add own0 type veth peer own1 && ip link set own0 address 02:00:00:00:00:01 && ip address add 192.0.2.1/32 dev own0 && ip link set own0 up';
  const prepare = `${DISKS[kind](disk)} && cp -a ${made}/. ${disk} && ip link set lo up && ${card}`;
  const [program, ...words] = aloneCommand([process.execPath, '--no-warnings', '--import', pathToFileURL(path.join(repositoryRoot, 'build/ts.mjs')).href, fileURLToPath(file)], prepare, ['--net']);
  const { NODE_TEST_CONTEXT: _, ...env } = process.env;
  const child = spawn(program!, words, { cwd: '/', stdio: ['ignore', 'pipe', 'pipe'], env: { ...env, COLD_BACKUP_SCENARIO: name, COLD_BACKUP_DISK: disk, COLD_BACKUP_DISK_KIND: kind, COLD_BACKUP_ALONE: '1', DOCKER_HOST: 'unix:///nowhere' } });
  let said = '';
  for (const stream of [child.stdout, child.stderr]) stream.on('data', (piece) => { said += piece; if (process.env.COLD_BACKUP_LIVE) process.stdout.write(piece); });
  const code = await new Promise((resolve) => { child.on('close', resolve); });
  if (code !== 0) throw new Error(said || `exit code ${code}`);
  if (!process.env.COLD_BACKUP_LIVE) for (const line of said.match(/^note: .*/gm) ?? []) console.log(`${name}: ${line.slice(6)}`);
}

async function inScenario(name: string, scenario: Scenarios[string] | undefined): Promise<void> {
  const folder = process.env.COLD_BACKUP_DISK!;
  try {
    const world = await openWorld(folder);
    if (name !== MAKE) await scenario!(world);
    else {
      for (const [name, copy] of [['borg_key', 'key'], ['passphrase', 'passphrase']] as const) fs.copyFileSync(path.join(world.server.folder, 'etc', name), path.join(folder, copy));
      await good(world);
      world.db.stop();
      execFileSync('cp', ['-a', `${folder}/.`, path.join(folder, '../made')]);
    }
    process.exit(0);
  } catch (error) {
    console.error(error);
    process.exit(1);
  }
}

async function openWorld(folder: string): Promise<World> {
  const isNew = !fs.existsSync(path.join(folder, 'storage', 'host_key')), files = path.join(folder, 'files');
  const storage = await startStorage(path.join(folder, 'storage'), 2222);
  const db = await makeCluster({ folder: path.join(folder, 'db'), version: 'debian', port: 5432, initdb: ['--wal-segsize=1'],
    settings: { fsync: 'off', min_wal_size: '2MB' }, sql: 'create table nights (n int); insert into nights values (1)' });
  const [web, app, idle] = [makeDaemon(folder, 'web'), makeDaemon(folder, 'app', { stopSeconds: 0.4 }), makeDaemon(folder, 'idle')] as const;
  for (const one of [web, app]) one.startNow();
  if (isNew) {
    fs.mkdirSync(files);
    for (let number = 0; number < 50; number++) fs.writeFileSync(path.join(files, `file ${number}`), `I am file ${number}\n`.repeat(1000));
  }
  const server = await makeServer(path.join(folder, 'server'), 'web1', storage,
    { stop: [web.entry, app.entry, idle.entry, `postgres ${db.dataDirectory}`], folders: [files], warmPass: isNew }, { setUp: isNew }); // scenarios are about the cold pass, but for those that say otherwise
  const disk = process.env.COLD_BACKUP_DISK_KIND as Disk;
  if (disk !== 'tmpfs') server.writeSettings({ snapshot: 'yes' });
  return { folder, storage, server, web, app, idle, db, files, disk };
}

/** A program put first on PATH that runs `lines` of sh, then the real one. $pass tells what borg is about to do: info, warm, cold, extract, proof. */
export function wrap(world: World, program: string, lines: string): { env: NodeJS.ProcessEnv } {
  const bin = path.join(world.folder, 'bin'), real = execFileSync('sh', ['-c', `command -v ${program}`], { encoding: 'utf8' }).trim();
  fs.mkdirSync(bin, { recursive: true });
  fs.writeFileSync(path.join(bin, program), ['#!/bin/sh', `cd_to=${world.folder}`,
    'case " $* " in *" ::proven-"*) pass=proof;; *"-warm.checkpoint "*) pass=warm;; *" create "*) pass=cold;; *" extract "*) pass=extract;; *" info "*) pass=info;; *) pass=other;; esac',
    // The real borg of a cold pass waits until it is fed. `lines` are about what comes then.
    `[ $pass = cold ] && { echo '{"type": "file_status", "status": "i", "path": "held"}' >&2; cat > "$cd_to/fed.$$"; exec < "$cd_to/fed.$$"; }`,
    lines, `exec ${real} "$@"`, ''].join('\n'), { mode: 0o755 });
  return { env: { PATH: `${bin}:${process.env.PATH}` } };
}

/** wrap(), but what waits is the real borg. */
export function wrapReal(world: World, lines: string): { env: NodeJS.ProcessEnv } {
  const made = wrap(world, 'borg', lines), file = path.join(world.folder, 'bin/borg');
  fs.writeFileSync(file, fs.readFileSync(file, 'utf8').replace(/^.*"file_status".*$/m, ''));
  return made;
}

/** Lines for wrap(): in that pass wait until the test makes the file `go`. */
export const holdIn = (pass: string) => `[ $pass = ${pass} ] && { touch "$cd_to/held"; while [ ! -e "$cd_to/go" ]; do sleep 0.02; done; }`;
export const held = (world: World) => waitFor('borg is held', () => fs.existsSync(path.join(world.folder, 'held')), 60);
export const letGo = (world: World) => fs.writeFileSync(path.join(world.folder, 'go'), '');

/** A file below `folders` that no compression makes smaller. */
export const randomFile = (world: World, name: string, megabytes: number) =>
  execFileSync('dd', ['if=/dev/urandom', `of=${path.join(world.files, name)}`, 'bs=1M', `count=${megabytes}`], { stdio: 'ignore' });

/** From here on the repository is reached by its path, with no ssh between, which takes half the time: for scenarios that are not about the way there. */
export function nearby({ server, storage }: World): void {
  server.writeSettings({ repository: storage.repository('web1') });
  fs.rmSync(path.join(server.stateFolder, 'borg'), { recursive: true, force: true }); // there borg remembers where it was
}

/** What the storage grants this server from now on. */
export function setQuota({ storage, server }: World, quota: string): void {
  fs.writeFileSync(path.join(storage.folder, 'authorized_keys'), '');
  storage.authorize(fs.readFileSync(path.join(server.folder, 'etc/ssh_key.pub'), 'utf8'), 'web1', { quota });
}

/** What runs: changes when anything of it is stopped and started. */
export function whatRuns({ web, app, db }: World): string[] {
  return [web.pidFile, app.pidFile, path.join(db.dataDirectory, 'postmaster.pid')].map((file) => fs.readFileSync(file, 'utf8').split('\n')[0]!);
}

/** The invariant: within so many seconds what ran runs, nothing else does; nothing of a run is left, no process and no ledger. */
export async function allIsWell(world: World, seconds = 15, watch: 'a guard may watch' | '' = ''): Promise<void> {
  await everythingRunsAgain([world.web, world.app], [world.idle], seconds);
  await waitFor('the cluster runs', () => fs.existsSync(path.join(world.db.dataDirectory, 'postmaster.pid')), seconds);
  await waitFor('the cluster answers', () => answers(world.db), seconds);
  if (!watch || !await guardWatches(world)) await nothingIsLeft(world); // a guard may need two seconds to see that it is not needed
}

// Killed just between the note that a part is to be stopped and the command that does it: nobody can know whether it will still
// stop. It runs, and the guard alone goes on watching it.
async function guardWatches({ server }: World): Promise<boolean> {
  const file = path.join(server.stateFolder, 'ledger.json'), parts = () => (fs.existsSync(file) ? JSON.parse(fs.readFileSync(file, 'utf8')).parts : []);
  await waitFor('nothing but the guard is left', () => parts().every((part: any) => part.runningAt !== null) && leftProcesses().every((line) => /backup\.js guard /.test(line)));
  return parts().some((part: any) => part.stoppedAt === null);
}

/** Copies on write that are there now, and the list of them. */
export function copiesLeft({ folder, server }: World): string[] {
  const places = [folder, path.join(folder, 'db'), server.stateFolder];
  return places.flatMap((place) => fs.readdirSync(place).filter((name) => name.startsWith('.cold-backup-snapshot-') || name === 'snapshots.json').map((name) => path.join(place, name)));
}

export async function nothingIsLeft(world: World): Promise<void> {
  const { server } = world;
  const ledger = path.join(server.stateFolder, 'ledger.json'), left = () => [...leftProcesses(), fs.existsSync(ledger) ? fs.readFileSync(ledger, 'utf8') : '', server.lastTranscript()].join('\n');
  await waitFor('nothing of the run is left', () => leftProcesses().length === 0, 15).catch((error) => { throw new Error(`${error.message}: ${left()}`); });
  assert.equal(fs.existsSync(ledger), false, 'the ledger is left');
  assert.deepEqual(copiesLeft(world), [], 'a snapshot is left');
}

export function answers(db: TestCluster): boolean {
  try {
    return db.sql('postgres', 'select 1') === '1';
  } catch {
    return false;
  }
}

/** Command lines of borg and of the script that run now, but for the storage's. */
export function leftProcesses(): string[] {
  return fs.readdirSync('/proc').filter((pid) => /^\d+$/.test(pid)).flatMap((pid) => {
    try {
      const line = fs.readFileSync(`/proc/${pid}/cmdline`, 'utf8').replaceAll('\0', ' ');
      return /(^|\/)borg |\/backup\.js /.test(line) && !/ serve /.test(line) ? [line.slice(0, 200)] : [];
    } catch {
      return [];
    }
  });
}

/** What an ended run must have said and remembered. error: of the history; says: each in what it printed. */
export function expectEnd(world: World, ended: Ended, expected: { code: number; says?: RegExp[]; error?: RegExp; outcome?: string; warns?: RegExp; proven?: boolean; provenLater?: boolean }): void {
  const all = ended.out + ended.err, line = world.server.history().pop();
  assert.equal(ended.code, expected.code, all);
  for (const what of expected.says ?? []) assert.match(all, what);
  assert.doesNotMatch(all, /this is a bug/);
  const outcome = expected.outcome ?? ({ 0: 'good', 1: 'warning', 3: 'down' }[expected.code] ?? 'failed');
  assert.deepEqual({ outcome: line.outcome, exitCode: line.exitCode }, { outcome, exitCode: expected.code }, all);
  assert.match(line.error, expected.error ?? (expected.code < 2 ? /^$/ : /./), all);
  if (expected.warns) assert.match(line.warnings.join('\n'), expected.warns);
  else if (expected.code === 0) assert.deepEqual(line.warnings, []);
  assert.equal(line.kind, 'run');
  assert.ok(Date.parse(line.endedAt) >= Date.parse(line.startedAt));
  if (expected.provenLater) return; // the caller looks at all archives at once
  const isProven = provenArchives(world).includes(line.archive);
  assert.equal(isProven, expected.proven ?? expected.code < 2, `${line.archive} ${isProven ? 'is' : 'is not'} proven`);
}

/** The archives with a proof, read from the storage's own disk, whatever is wrong with the way there. */
export function provenArchives({ folder, storage, server }: World): string[] {
  const env = { ...server.borgEnv(), BORG_REPO: storage.repository('web1'), BORG_KEY_FILE: path.join(folder, 'key'), BORG_PASSPHRASE: fs.readFileSync(path.join(folder, 'passphrase'), 'utf8').trim() };
  return execFileSync('borg', ['--bypass-lock', 'list', '--short'], { env, encoding: 'utf8' }).split('\n').filter((name) => name.startsWith('proven-')).map((name) => name.slice('proven-'.length));
}

/** A run that must be good without anybody's help. */
export async function good(world: World, provenLater = false): Promise<void> {
  expectEnd(world, await world.server.run(), { code: 0, says: [/is proven/], provenLater });
  await allIsWell(world);
}
