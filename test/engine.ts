// A Docker engine of our own for the tests, and what it shares with host.ts: the cage and the images.
//   1. The cage: one folder (a tmpfs) and one control group of the same name. Whatever is started goes into the group,
//      so that ending it is one write to cgroup.kill: nothing escapes, and nothing else is hit.
//   2. The images: small tars made of this machine's own busybox and PostgreSQL, no registry needed.
//   3. The engine: dockerd with its own containerd, beside (not touching) any engine that already runs.
// Debian packages: docker.io containerd runc busybox-static postgresql.

import { execFileSync } from 'node:child_process';
import { createHash } from 'node:crypto';
import { existsSync, mkdirSync, mkdtempSync, readFileSync, readdirSync, readlinkSync, realpathSync } from 'node:fs';
import { chmodSync, renameSync, rmSync, rmdirSync, statSync, symlinkSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { basename, dirname, join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { PG } from './cluster.ts';

// ---- 1. the cage

const PREFIX = 'cold-backup-test-';
const liveCages = new Set<string>();
let cagesMade = 0;

export interface Cage { name: string; folder: string; group: string }

const pidNamespace = (): string => /\d+/.exec(readlinkSync('/proc/self/ns/pid'))![0];
const startTimeOf = (pid: number | string): string => {
  // Field 22 of /proc/PID/stat, counted after the closing bracket because a process name may hold spaces.
  try { return readFileSync(`/proc/${pid}/stat`, 'utf8').replace(/^.*\) /s, '').split(' ')[19]; } catch { return ''; }
};

/** Every mounted cgroup hierarchy; the version 2 one is what we end processes by. */
const hierarchies = (): { folder: string; type: string }[] =>
  readFileSync('/proc/self/mounts', 'utf8').split('\n').map(line => line.split(' '))
    .filter(field => field[2] === 'cgroup2' || field[2] === 'cgroup').map(field => ({ folder: field[1], type: field[2] }));

/** A new folder with a tmpfs on it and a control group, both removed by removeCage() or at the latest when this process exits. */
export function makeCage(kind: string): Cage {
  if (process.getuid!() !== 0) throw new Error('the tests need root: they mount file systems and boot a small host');
  removeLeftovers();
  // The name tells whose it is: pid and start time of this process, since a pid alone may be used again, and the namespace in which it is counted.
  const name = `${PREFIX}${kind}-${process.pid}-${startTimeOf(process.pid)}-${++cagesMade}-${pidNamespace()}`;
  liveCages.add(name);
  const folder = join(tmpdir(), name);
  mkdirSync(folder);
  execFileSync('mount', ['-t', 'tmpfs', '-o', 'mode=0711', 'tmpfs', folder]);
  const version2 = hierarchies().find(hierarchy => hierarchy.type === 'cgroup2');
  if (!version2) throw new Error('the tests need a cgroup version 2 hierarchy (a mixed one will do)');
  // On a mixed machine systemd-nspawn also makes groups in name=systemd: keep two hosts apart there as well.
  const systemd1 = hierarchies().find(hierarchy => hierarchy.folder.endsWith('/systemd'));
  for (const hierarchy of [version2, systemd1]) if (hierarchy) mkdirSync(join(hierarchy.folder, name), { recursive: true });
  return { name, folder, group: join(version2.folder, name) };
}

/** Puts argv into the cage's control group. A child group, because a group with controllers may not hold processes itself. */
export function inCage(cage: Cage, part: string, argv: string[]): string[] {
  mkdirSync(join(cage.group, part), { recursive: true });
  return ['sh', '-c', 'echo $$ > "$0/cgroup.procs"; exec "$@"', join(cage.group, part), ...argv];
}

/** Starts a long-lived program in the cage and returns its pid. It is no child of this process, so that no zombie of it can
 * keep the control groups busy when all is removed while this process exits. */
export function startDaemon(cage: Cage, argv: string[], env = process.env): number {
  const groups = hierarchies().map(hierarchy => join(hierarchy.folder, cage.name)).filter(existsSync).map(group => join(group, 'daemons'));
  for (const group of groups) mkdirSync(group, { recursive: true });
  const join_ = `for g in ${groups.join(' ')}; do sh -c 'echo $PPID' > $g/cgroup.procs; done`;    // $$ would be the outer shell
  const script = `{ ${join_}; exec setsid "$@"; } < /dev/null >> "$0" 2>&1 & echo $!`;
  return Number(execFileSync('sh', ['-c', script, `${cage.folder}/log`, ...argv], { encoding: 'utf8', env }));
}

export const childrenOf = (pid: number): number[] => {
  try { return readFileSync(`/proc/${pid}/task/${pid}/children`, 'utf8').split(' ').filter(Boolean).map(Number); } catch { return []; }
};

/** The child of systemd-nspawn that is process 1 of its own world and has become systemd; 0 while there is none. */
export function findInit(supervisor: number): number {
  const text = (file: string): string => { try { return readFileSync(`/proc/${file}`, 'utf8'); } catch { return ''; } };
  return childrenOf(supervisor).find(pid => /^NSpid:.*\t1$/m.test(text(`${pid}/status`)) && text(`${pid}/comm`) === 'systemd\n') ?? 0;
}

/** Kills all in the cage at once, like a power cut, and waits until all is gone. */
export function killCage(name: string): void {
  const groups = hierarchies().map(({ folder, type }) => ({ group: join(folder, name), type })).filter(({ group }) => existsSync(group));
  for (const { group } of groups.filter(({ type }) => type === 'cgroup2')) {
    writeFileSync(join(group, 'cgroup.kill'), '1');
    waitSync(10, () => readFileSync(join(group, 'cgroup.events'), 'utf8').includes('populated 0'));
  }
  for (const path of mountsBelow(sharedFolders(name))) execFileSync('umount', ['--lazy', path]);   // newer systemd-nspawn refuses to boot with them
  // All dead from here. The child groups go too, so that a next boot finds none of them.
  for (const { group } of groups) waitSync(5, () => { for (const entry of readdirSync(group)) removeGroup(join(group, entry)); return true; });
}

const sharedFolders = (name: string): string[] => ['propagate', 'unix-export'].map(kind => `/run/systemd/nspawn/${kind}/${name}`);
const mountsBelow = (folders: string[]): string[] => readFileSync('/proc/self/mounts', 'utf8').split('\n').map(line => line.split(' ')[1] ?? '')
  .filter(path => folders.some(one => path === one || path.startsWith(`${one}/`))).reverse();

/** Kills, unmounts and removes all of a cage. Not asynchronous, so that it can run while the process exits. */
export function removeCage(name: string): void {
  killCage(name);
  const folder = join(tmpdir(), name), shared = sharedFolders(name);
  const root = statSync(join(folder, 'root'), { throwIfNoEntry: false });
  if (root) rmSync(`/run/systemd/nspawn/locks/inode-${root.dev}:${root.ino}`, { force: true });
  const mounted = (): string[] => mountsBelow([folder, ...shared]);
  for (const path of mounted()) execFileSync('umount', ['--lazy', path]);
  if (mounted().length) throw new Error(`could not unmount ${mounted().join(' ')}`);   // never delete through a mount
  rmSync(folder, { recursive: true, force: true });
  for (const hierarchy of hierarchies()) removeGroup(join(hierarchy.folder, name));
  for (const one of shared) rmSync(one, { recursive: true, force: true });
  liveCages.delete(name);
}

function removeGroup(group: string): void {
  if (!existsSync(group) || !statSync(group).isDirectory()) return;
  for (const entry of readdirSync(group)) removeGroup(join(group, entry));
  rmdirSync(group);
}

/** Tries again while it says false or throws: a dying process holds its control group for some milliseconds. */
function waitSync(seconds: number, done: () => boolean): void {
  for (const until = Date.now() + seconds * 1000; ; Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, 5)) {
    try { if (done()) return; } catch (error) { if (Date.now() > until) throw error; }
    if (Date.now() > until) throw new Error(`not gone after ${seconds} s`);
  }
}

/** Removes what test processes left that were killed before they could clean up. The cages of living ones are left alone. */
function removeLeftovers(): void {
  for (const name of readdirSync(tmpdir())) {
    const [, pid, startTime, namespace] = name.match(new RegExp(`^${PREFIX}[a-z]+-(\\d+)-(\\d+)-\\d+-(\\d+)$`)) ?? [];
    if (!pid || namespace !== pidNamespace() || startTimeOf(pid) === startTime) continue; // in another namespace nobody here can tell who lives
    try { removeCage(name); } catch { /* another test process is removing it at this moment; what stays, the next run removes */ }
  }
}

process.on('exit', () => { for (const name of liveCages) try { removeCage(name); } catch (error) { console.error(error); } });
for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP'] as const) process.once(signal, () => process.exit(1));

// ---- 2. the images

export type ImageName = 'app' | 'redis-like' | 'postgres';

// A web server over its volume. It ends by itself on TERM; for a stubborn one run `app sleep 1000`: as process 1 that ignores TERM.
const APP = `#!/bin/sh
[ $# = 0 ] || exec "$@"
mkdir -p /data; [ -e /data/index.html ] || echo hello > /data/index.html; trap 'kill $!; exit 0' TERM INT
httpd -f -p 8080 -h /data & wait`;

// Keeps a number in memory and writes it to its volume only when told to end: kill it, and the number is lost.
const REDIS_LIKE = `#!/bin/sh
[ $# = 0 ] || exec "$@"
mkdir -p /data; n=$(cat /data/dump 2>/dev/null || echo 0); trap 'echo $n > /data/dump; exit 0' TERM
while :; do n=$((n+1)); sleep 0.2; done`;

// As the official image: user 999, first start makes the cluster, arguments that begin with - go to the server.
const POSTGRES = `#!/bin/sh
set -e
case "$1" in -*|'') set -- postgres "$@" ;; esac
if [ "$1" = postgres ]; then
  mkdir -p "$PGDATA" /var/run/postgresql; chown postgres "$PGDATA" /var/run/postgresql $POSTGRES_INITDB_WALDIR; chmod 700 "$PGDATA"
  # The whole path, because busybox's sh prefers its own setpriv, which cannot change the user.
  as_postgres='/usr/bin/setpriv --reuid 999 --regid 999 --clear-groups'
  [ -s "$PGDATA/PG_VERSION" ] || $as_postgres initdb --no-sync --auth trust --username "$POSTGRES_USER" --locale C.UTF-8 \${POSTGRES_INITDB_WALDIR:+--waldir="$POSTGRES_INITDB_WALDIR"} > /dev/null
  exec $as_postgres "$@"
fi
exec "$@"`;

const POSTGRES_SETTINGS = { StopSignal: 'SIGINT', Volumes: { '/var/lib/postgresql/data': {} },
  Env: ['PGDATA=/var/lib/postgresql/data', 'POSTGRES_USER=postgres', 'PATH=/usr/lib/postgresql/bin:/bin'] };
const IMAGES: Record<ImageName, { script: string; settings: object }> = {
  app: { script: APP, settings: { Env: ['PATH=/bin'] } },
  'redis-like': { script: REDIS_LIKE, settings: { Env: ['PATH=/bin'], Volumes: { '/data': {} } } },
  postgres: { script: POSTGRES, settings: POSTGRES_SETTINGS },
};

/** The file for `docker load`, made once and kept under the system's temp folder. (`docker import` cannot set a stop signal.) */
export function imageFile(name: ImageName): string {
  const { script, settings } = IMAGES[name];
  const postgres = name === 'postgres' ? `/usr/lib/postgresql/${PG}` : '';
  const sources = ['/bin/busybox', ...(postgres ? [`${postgres}/bin/postgres`] : [])].map(path => [path, statSync(path).mtimeMs]);
  const recipe = createHash('sha256').update(JSON.stringify([1, script, settings, sources])).digest('hex').slice(0, 12);
  const file = join(tmpdir(), 'cold-backup-test', `${name}-${recipe}.tar`);
  if (existsSync(file)) return file;
  mkdirSync(dirname(file), { recursive: true });
  const work = mkdtempSync(join(dirname(file), 'work-'));
  fillTree(`${work}/tree`, script, postgres);
  const tar = (to: string, folder: string, ...names: string[]): Buffer =>
    execFileSync('tar', ['--create', '--owner=0', '--group=0', '--numeric-owner', '--file', to, '--directory', folder, ...names]);
  tar(`${work}/layer.tar`, `${work}/tree`, '.');
  const layer = createHash('sha256').update(readFileSync(`${work}/layer.tar`)).digest('hex');
  writeFileSync(`${work}/config.json`, JSON.stringify({ architecture: GO_ARCHITECTURE[process.arch], os: 'linux',
    config: { Entrypoint: ['/entrypoint'], ...settings }, rootfs: { type: 'layers', diff_ids: [`sha256:${layer}`] } }));
  writeFileSync(`${work}/manifest.json`, JSON.stringify([{ Config: 'config.json', RepoTags: [`${name}:latest`], Layers: ['layer.tar'] }]));
  tar(`${work}/image.tar`, work, 'manifest.json', 'config.json', 'layer.tar');
  renameSync(`${work}/image.tar`, file);   // last and at once: another test process may look for it at this moment
  rmSync(work, { recursive: true });
  return file;
}

const GO_ARCHITECTURE: Record<string, string> = { x64: 'amd64', arm64: 'arm64' };

function fillTree(tree: string, script: string, postgres: string): void {
  for (const folder of ['bin', 'tmp', 'etc', 'data', 'var']) mkdirSync(join(tree, folder), { recursive: true });
  chmodSync(join(tree, 'tmp'), 0o1777);
  writeFileSync(join(tree, 'entrypoint'), `${script}\n`, { mode: 0o755 });
  writeFileSync(join(tree, 'etc/passwd'), 'root:x:0:0::/:/bin/sh\npostgres:x:999:999::/var/lib/postgresql:/bin/sh\n');
  writeFileSync(join(tree, 'etc/group'), 'root:x:0:\npostgres:x:999:\n');
  copyInto(tree, realpathSync('/bin/busybox'), 'bin/busybox');
  for (const applet of execFileSync('/bin/busybox', ['--list'], { encoding: 'utf8' }).split('\n')) {
    if (applet && applet !== 'busybox') symlinkSync('busybox', join(tree, 'bin', applet));
  }
  if (!postgres) return;
  const programs = ['postgres', 'initdb', 'psql', 'pg_controldata', 'pg_isready', 'pg_ctl'].map(name => `${postgres}/bin/${name}`);
  const modules = ['plpgsql.so', 'dict_snowball.so'].map(name => `${postgres}/lib/${name}`);
  const libraries = execFileSync('ldd', [...programs, ...modules, '/usr/bin/setpriv'], { encoding: 'utf8' })
    .split('\n').map(line => line.match(/(\/\S+) \(0x/)?.[1]).filter(path => path !== undefined);
  for (const path of new Set([...programs, ...modules, ...libraries, '/usr/bin/setpriv'])) copyInto(tree, path);
  for (const path of [`/usr/share/postgresql/${basename(postgres)}`, '/usr/lib/locale/C.utf8', '/usr/share/zoneinfo/Etc']) copyInto(tree, path);
  symlinkSync(`${basename(postgres)}/bin`, join(tree, 'usr/lib/postgresql/bin'));
}

function copyInto(tree: string, path: string, to = path): void {
  mkdirSync(dirname(join(tree, to)), { recursive: true });
  execFileSync('cp', ['--recursive', '--dereference', '--preserve=mode', path, join(tree, to)]);
}

// ---- 3. the engine

export interface Engine {
  env: { DOCKER_HOST: string };
  /** Runs `docker ...args` and returns what it printed, without the last line end; throws when it fails. */
  docker(args: string[]): string;
  destroy(): void;
}

/** Starts a Docker engine of our own with these images. Containers get no network (`docker exec` reaches them). */
export async function startEngine(images: ImageName[] = ['app']): Promise<Engine> {
  const cage = makeCage('engine');
  const { folder } = cage;
  const env = { DOCKER_HOST: `unix://${folder}/docker.sock` };
  // Its own containerd: without --containerd, dockerd would join the one of an engine that already runs.
  startDaemon(cage, ['containerd', '--root', `${folder}/containerd`, '--state', `${folder}/containerd-state`,
    '--address', `${folder}/containerd.sock`]);
  startDaemon(cage, ['dockerd', '--data-root', `${folder}/data`, '--exec-root', `${folder}/exec`, '--pidfile', `${folder}/pid`,
    '--containerd', `${folder}/containerd.sock`, '--host', env.DOCKER_HOST, '--bridge=none', '--iptables=false', '--ip6tables=false',
    '--storage-driver=overlay2', '--exec-opt', 'native.cgroupdriver=cgroupfs', '--cgroup-parent', `/${cage.name}`]);

  const docker = (args: string[]): string => execFileSync('docker', args, { encoding: 'utf8',
    env: { ...process.env, ...env }, stdio: ['ignore', 'pipe', 'pipe'] }).trimEnd();
  const answers = (): boolean => { try { docker(['version']); return true; } catch { return false; } };
  for (const until = Date.now() + 30_000; !answers(); await sleep(50)) {
    if (Date.now() > until) throw new Error(`dockerd does not answer:\n${readFileSync(`${folder}/log`, 'utf8').slice(-2000)}`);
  }
  for (const image of images) docker(['load', '--input', imageFile(image)]);
  return { env, docker, destroy: () => removeCage(cage.name) };
}
