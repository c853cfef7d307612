// A real systemd host for the tests: this machine's own file tree under an overlay, booted by systemd-nspawn with a network
// of its own (loopback, and a card that leads nowhere). What it writes goes to a tmpfs; nothing of this machine is changed or stopped, and what this
// machine holds of its own (clusters, keys, root's home, enabled units, logs) is hidden from it.
// Debian packages: systemd-container postgresql openssh-server borgbackup cron, and those named in engine.ts for Docker.

import { execFileSync, spawn } from 'node:child_process';
import type { ChildProcessWithoutNullStreams } from 'node:child_process';
import { chmodSync, createReadStream, existsSync, mkdirSync, readFileSync, rmSync, symlinkSync, writeFileSync } from 'node:fs';
import { constants } from 'node:os';
import { dirname, join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { childrenOf, findInit, imageFile, inCage, killCage, makeCage, removeCage, startDaemon } from './engine.ts';
import type { Cage, ImageName } from './engine.ts';
import { PG } from './cluster.ts';

export interface Cluster {
  version?: string;                        // PG when left out
  name: string;
  port?: number;
  startConf?: 'auto' | 'manual' | 'disabled';
  tablespaces?: Record<string, string>;    // name: folder
  walFolder?: string;                      // pg_wal becomes a link to it
  initdb?: string[];                       // more arguments of initdb, e.g. ['--data-checksums']
  settings?: Record<string, string>;       // for postgresql.conf
  sql?: string;                            // run once in database postgres
}

export interface HostOptions {
  name?: string;                           // host name, 'web1' when left out
  units?: Record<string, string>;          // file name in /etc/systemd/system: text
  enable?: string[];                       // units to enable, and to start once the clusters are made
  clusters?: Cluster[];
  cron?: Record<string, string>;           // file name in /etc/cron.d: text
  bind?: Record<string, string>;           // folder inside: folder of this machine, e.g. a mounted btrfs image
  network?: { enter: string[]; bridge: string; address: string; hosts: Record<string, string> }; // words that enter its namespace; names of other hosts: their addresses
  debianWaits?: boolean;                   // true: pg_ctlcluster as it is, which sleeps 2 s in every start; else it polls faster
}

export type Command = string | string[];   // a text is given to sh
export interface RunOptions { user?: string; input?: string; inputFile?: string; timeout?: number; env?: Record<string, string> }
export interface Result { code: number; stdout: string; stderr: string }
export interface Running {
  pid(): number;                                            // as numbered outside; 0 when it does not run (yet, or any more)
  kill(signal: NodeJS.Signals, wholeGroup?: boolean): void; // the command leads a process group, as under cron
  output(): string;                                         // so far, both streams
  done: Promise<Result>;
}
export interface Storage { url: string; path: string; knownHosts: string; authorize(publicKey: string, options?: Access): Promise<void> }
export interface Access { appendOnly?: boolean; quota?: string }

// Hidden before boot and made anew, empty (mode and owner by name), or not at all (null).
const HIDDEN: Record<string, [mode: number, owner: string] | null> = {
  '/etc/machine-id': null, '/etc/fstab': null, '/etc/crontab': null, '/etc/init.d': [0o755, 'root:root'], '/etc/docker': [0o755, 'root:root'],
  '/etc/cron.d': [0o755, 'root:root'], '/etc/systemd/system': [0o755, 'root:root'], '/etc/cold-backup': null,
  '/etc/postgresql': [0o755, 'postgres:postgres'], '/var/lib/postgresql': [0o755, 'postgres:postgres'],
  '/var/lib/cold-backup': null, '/var/lib/containerd': null, '/var/lib/docker': [0o711, 'root:root'],
  '/var/log': [0o755, 'root:root'], '/var/log/postgresql': [0o2775, 'root:postgres'],
  '/var/spool/cron/crontabs': [0o1730, 'root:crontab'], '/srv': [0o755, 'root:root'], '/home': [0o755, 'root:root'],
  '/root': [0o700, 'root:root'],
};

// What a host without hardware, logins and updates can do without; each costs a part of the boot.
const MASKED = `console-getty.service getty.target systemd-modules-load.service systemd-binfmt.service proc-sys-fs-binfmt_misc.automount
  sys-kernel-debug.mount sys-kernel-tracing.mount sys-kernel-config.mount sys-fs-fuse-connections.mount dev-hugepages.mount
  modprobe@.service systemd-udevd.service systemd-sysusers.service systemd-random-seed.service systemd-networkd.service
  systemd-network-generator.service systemd-resolved.service systemd-timesyncd.service ldconfig.service
  systemd-update-done.service systemd-journal-catalog-update.service`.split(/\s+/);

/** Boots a host as asked; everything asked for runs when it is returned. About 1 s, and 1 s a cluster; throws with the last log lines. */
export async function startHost(options: HostOptions = {}): Promise<Host> {
  const host = new Host(options);
  try {
    await host.boot();
    for (const cluster of options.clusters ?? []) await host.createCluster(cluster);
    if (options.enable?.length) await host.must(['systemctl', 'enable', '--now', '--quiet', ...options.enable]);
  } catch (error) {
    await host.destroy();
    throw error;
  }
  return host;
}

export class Host {
  readonly root: string;      // the host's file tree, seen from outside (without what the host mounts, such as its /tmp)
  leader = 0;                 // its process 1, as numbered outside; 0 while it is off
  private readonly cage: Cage;
  private readonly options: HostOptions;

  constructor(options: HostOptions) {
    this.options = options;
    this.cage = makeCage('host');
    this.root = join(this.cage.folder, 'root');
    layTree(this.cage.folder, options);
  }

  /** Power on: returns when the boot is through (a failed unit does not count as a failure here). */
  async boot(): Promise<void> {
    const node = process.execPath === '/usr/bin/node' ? [] : [`--bind-ro=${process.execPath}:/usr/bin/node`];
    const binds = Object.entries(this.options.bind ?? {}).map(([inside, outside]) => `--bind=${outside}:${inside}`);
    // The system calls and capabilities are for dockerd and for mounting inside; a real host has them too. A unified cgroup tree
    // is what Debian 12 has, and on a mixed machine the old controllers would be read-only inside, which stops runc.
    const { network } = this.options;
    const supervisor = startDaemon(this.cage, [...network?.enter ?? [], 'systemd-nspawn', '--quiet', '--register=no', '--keep-unit', '--boot', `--directory=${this.root}`,
      `--machine=${this.cage.name}`, `--hostname=${this.options.name ?? 'web1'}`, ...(network ? [`--network-bridge=${network.bridge}`] : ['--private-network']), '--console=pipe', '--link-journal=no',
      '--resolv-conf=off', '--timezone=off', '--capability=all', '--system-call-filter=@system-service @mount @keyring bpf',
      `--bind=${this.cage.folder}/docker:/var/lib/docker`, ...node, ...binds],
    { ...process.env, SYSTEMD_NSPAWN_UNIFIED_HIERARCHY: '1' });
    await this.waitFor('process 1 of the host', () => (this.leader = findInit(supervisor)) > 0, 20);
    await this.waitFor('the end of the boot', async () =>
      /^(running|degraded)/.test((await this.run(['systemctl', 'is-system-running'])).stdout), 60);
  }

  /** The power fails: every process ends at once, nothing is written any more, the files stay. `boot()` is the next morning. */
  async powerOff(): Promise<void> {
    killCage(this.cage.name);
    this.leader = 0;
  }

  async destroy(): Promise<void> {
    this.leader = 0;
    removeCage(this.cage.name);
  }

  /** Runs a command as root (or `user`) and waits; never throws for its exit code. While the host is off: in its files, by chroot. */
  run(command: Command, options: RunOptions = {}): Promise<Result> {
    return this.start(command, options).done;
  }

  /** As run(), but throws when it fails, and returns stdout without its last line end. */
  async must(command: Command, options: RunOptions = {}): Promise<string> {
    const { code, stdout, stderr } = await this.run(command, options);
    if (code !== 0) throw new Error(`exit code ${code} in the host: ${command}\n${stdout}${stderr}`);
    return stdout.replace(/\n$/, '');
  }

  /** Starts a command without waiting for it, e.g. to send it a signal. It is done when it has ended and nothing holds its output open. */
  start(command: Command, { user, input, inputFile, timeout = 120, env = {} }: RunOptions = {}): Running {
    const argv = typeof command === 'string' ? ['sh', '-c', command] : command;
    const path = 'PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin';
    const variables = [path, 'LANG=C.UTF-8', ...Object.entries(env).map(([key, value]) => `${key}=${value}`)];
    const setpriv = ['setpriv', '--reuid', user!, '--regid', user!, '--init-groups', '--reset-env', 'env'];    // sets HOME, too
    const as = user ? [...setpriv, ...variables] : ['HOME=/root', ...variables];
    const inside = this.leader > 0;
    const enter = inside ? ['nsenter', '--target', String(this.leader), '--all', 'setsid'] : ['chroot', this.root];
    const whole = [...enter, 'env', '-i', path, ...as, ...argv];
    // Beside systemd's own groups, as if started from the host's console, so that /proc/self/cgroup makes sense inside.
    const [file, ...args] = inCage(this.cage, inside ? 'daemons/payload/console.scope' : 'chroot', whole);
    const child = spawn(file, args, { detached: true });
    if (inputFile) createReadStream(inputFile).pipe(child.stdin);
    else child.stdin.end(input ?? '');
    // nsenter waits outside while its child is the command itself: that one gets the signals, and nsenter passes on how it ended.
    return follow(child, inside ? () => childrenOf(child.pid!)[0] ?? 0 : () => child.pid!, timeout, String(command));
  }

  async write(path: string, text: string, mode = 0o644, owner = 'root:root'): Promise<void> {
    const script = 'mkdir -p "$(dirname "$0")" && cat > "$0" && chown "$2" "$0" && chmod "$1" "$0"';
    await this.must(['sh', '-c', script, path, mode.toString(8), owner], { input: text });
  }

  /** The text of a file, with every character of it. */
  async read(path: string): Promise<string> {
    return this.must(['sh', '-c', 'cat "$0" && echo', path]);    // must() takes that one line end off again
  }

  async isActive(unit: string): Promise<boolean> {
    return (await this.run(['systemctl', 'is-active', '--quiet', unit])).code === 0;
  }

  /** Asks again until the condition holds (a text: a shell command that ends with 0). Throws after `seconds`, naming `what`. */
  async waitFor(what: string, condition: string | (() => boolean | Promise<boolean>), seconds = 90): Promise<void> {
    const holds = typeof condition === 'string' ? async () => (await this.run(condition)).code === 0 : condition;
    for (const until = Date.now() + seconds * 1000; !await holds(); await sleep(30)) {
      if (Date.now() < until) continue;
      const journal = this.leader ? (await this.run('journalctl --no-pager --lines 30; systemctl list-jobs')).stdout : '';
      throw new Error(`waited ${seconds} s for ${what}\n${readFileSync(`${this.cage.folder}/log`, 'utf8').slice(-2000)}${journal}`);
    }
  }

  /** A Debian cluster, started; reachable by psql(). */
  async createCluster(cluster: Cluster): Promise<void> {
    const { version = PG, name, port, startConf = 'auto', tablespaces = {}, walFolder, initdb = [], settings = {}, sql } = cluster;
    for (const folder of [...Object.values(tablespaces), ...(walFolder ? [walFolder] : [])]) {
      await this.must(['install', '-d', '-o', 'postgres', '-g', 'postgres', '-m', '700', folder]);
    }
    await this.must(['pg_createcluster', version, name, `--start-conf=${startConf}`, ...(port ? [`--port=${port}`] : []),
      ...Object.entries(settings).flatMap(([key, value]) => ['--pgoption', `${key}=${value}`]),
      '--', '--no-sync', ...(walFolder ? [`--waldir=${walFolder}`] : []), ...initdb]);
    await this.must('systemctl daemon-reload');    // for the generator that makes postgresql.service want the new cluster
    if (startConf === 'disabled') return;
    await this.must(['systemctl', 'start', `postgresql@${version}-${name}`]);
    for (const [tablespace, folder] of Object.entries(tablespaces)) {
      await this.psql(`${version}/${name}`, `CREATE TABLESPACE ${tablespace} LOCATION '${folder}'`);
    }
    if (sql) await this.psql(`${version}/${name}`, sql);
  }

  /** Runs SQL in a cluster, e.g. `${PG}/main`, and returns bare rows. */
  psql(cluster: string, sql: string, database = 'postgres'): Promise<string> {
    return this.must(['psql', '--cluster', cluster, '-XqAt', '-v', 'ON_ERROR_STOP=1', '-d', database], { user: 'postgres', input: sql });
  }

  /** Starts Docker (the Debian units, at every boot) with these images. Containers have no network; `docker exec` reaches them. */
  async startDocker({ images = ['app'] }: { images?: ImageName[] } = {}): Promise<void> {
    await this.write('/etc/docker/daemon.json', '{"bridge": "none", "iptables": false, "ip6tables": false, "storage-driver": "overlay2"}\n');
    await this.must(['systemctl', 'enable', '--now', '--quiet', 'containerd', 'docker.socket', 'docker']);
    for (const image of images) await this.must(['docker', 'load', '--quiet'], { inputFile: imageFile(image) });
  }

  /** Makes this host its own storage: user borg, sshd (the Debian unit, at every boot). Call authorize() with the ssh key. */
  async startStorage({ name, ...access }: { name: string } & Access): Promise<Storage> {
    await this.must(`id borg 2>/dev/null || useradd --system --home-dir /srv/borg --create-home --shell /bin/sh borg
      install -d -o borg -g borg -m 700 /srv/borg /srv/borg/.ssh
      [ -e /etc/ssh/ssh_host_ed25519_key ] || ssh-keygen -q -t ed25519 -N '' -f /etc/ssh/ssh_host_ed25519_key`);
    await this.write('/etc/ssh/sshd_config.d/test.conf', 'HostKey /etc/ssh/ssh_host_ed25519_key\n');
    await this.must(['systemctl', 'enable', '--now', '--quiet', 'ssh']);
    const path = `/srv/borg/${name}`;
    const authorize = async (publicKey: string, own: Access = {}): Promise<void> => {
      const { appendOnly = true, quota } = { ...access, ...own };
      const serve = `borg serve${appendOnly ? ' --append-only' : ''} --restrict-to-repository ${path}${quota ? ` --storage-quota ${quota}` : ''}`;
      await this.must(['runuser', '-u', 'borg', '--', 'sh', '-c', 'umask 077; cat >> /srv/borg/.ssh/authorized_keys'],
        { input: `command="${serve}",restrict ${publicKey.trim()}\n` });
    };
    const hostKey = (await this.read('/etc/ssh/ssh_host_ed25519_key.pub')).split(' ').slice(0, 2).join(' ');
    return { url: `ssh://borg@127.0.0.1/./${name}`, path, knownHosts: `127.0.0.1 ${hostKey}\n`, authorize };
  }
}

// Without a network card borg would name the storage otherwise at each start, and take the lock of one that is dead for a living one's.
const CARD = ['ip link add host0 type veth peer name host1', 'ip link set host0 address 02:00:00:00:00:01'];
const WIRE = (address: string, before: string[]): string => `[Unit]\nDescription=the network card\nDefaultDependencies=no\nBefore=network.target network-online.target\n[Service]\nType=oneshot\nRemainAfterExit=yes
${[...before, `ip address add ${address} dev host0`, 'ip link set host0 up'].map((line) => `ExecStart=${line}\n`).join('')}[Install]\nWantedBy=multi-user.target\n`;

/** Makes the file tree in folder/root before the first boot. */
function layTree(folder: string, { name = 'web1', units = {}, cron = {}, network, debianWaits }: HostOptions): void {
  process.umask(0o022);    // folders of the host must be readable, whatever this process was started with
  const [upper, work, root] = ['upper', 'work', 'root'].map(part => join(folder, part));
  for (const path of [upper, work, root, join(folder, 'docker')]) mkdirSync(path);
  chmodSync(root, 0o755);
  for (const path of Object.keys(HIDDEN).filter(path => existsSync(path) && !existsSync(upper + path))) {
    if (Object.keys(HIDDEN).some(parent => path.startsWith(`${parent}/`))) continue;    // hidden together with its parent
    mkdirSync(dirname(upper + path), { recursive: true });
    execFileSync('mknod', [upper + path, 'c', '0', '0']);    // the overlay file system's sign for "removed"
  }
  execFileSync('mount', ['-t', 'overlay', 'overlay', '-o', `lowerdir=/,upperdir=${upper},workdir=${work}`, root]);
  for (const [path, made] of Object.entries(HIDDEN)) {
    if (!made) continue;
    execFileSync('chroot', [root, 'sh', '-c', 'mkdir -p "$0" && chown "$1" "$0" && chmod "$2" "$0"', path, made[1], made[0].toString(8)]);
  }
  execFileSync('sh', ['-c', 'rm -f "$0"/etc/ssh/ssh_host_*', root]);
  const put = (path: string, text: string, mode = 0o644): void => {
    rmSync(root + path, { force: true });    // it may be a link, to be replaced and not followed
    writeFileSync(root + path, text, { mode });
  };
  put('/etc/machine-id', readFileSync('/proc/sys/kernel/random/uuid', 'utf8').replaceAll('-', ''));
  put('/etc/hostname', `${name}\n`);
  put('/etc/hosts', `127.0.0.1 localhost ${name}\n::1 localhost\n${Object.entries(network?.hosts ?? {}).filter(([other]) => other !== name).map(([other, address]) => `${address} ${other}\n`).join('')}`);
  put('/etc/systemd/system/wire.service', network ? WIRE(`${network.address}/24`, []) : WIRE('192.0.2.1/32', CARD));
  for (const unit of MASKED) symlinkSync('/dev/null', `${root}/etc/systemd/system/${unit}`);
  for (const [unit, text] of Object.entries(units)) put(`/etc/systemd/system/${unit}`, text);
  for (const [file, text] of Object.entries(cron)) put(`/etc/cron.d/${file}`, text);
  const waits = readFileSync('/usr/bin/pg_ctlcluster', 'utf8');
  if (!debianWaits) put('/usr/bin/pg_ctlcluster', waits.replace(/(select.*undef, )0\.5/g, '$10.05'), 0o755);
  execFileSync('systemctl', [`--root=${root}`, '--quiet', 'enable', 'postgresql', 'cron', 'wire']);
}

/** What is to be known of a command that runs in the host: its pid, its signals, its output, its end. */
function follow(child: ChildProcessWithoutNullStreams, pid: () => number, timeout: number, command: string): Running {
  let stdout = '';
  let stderr = '';
  child.stdout.setEncoding('utf8').on('data', text => { stdout += text; });
  child.stderr.setEncoding('utf8').on('data', text => { stderr += text; });
  child.stdin.on('error', () => {});    // it ended without reading all
  const kill = (signal: NodeJS.Signals, wholeGroup = false): void => {
    if (!pid()) throw new Error(`does not run in the host: ${command}`);
    process.kill(wholeGroup ? -pid() : pid(), signal);
  };
  const done = new Promise<Result>((resolve, reject) => {
    const timer = setTimeout(() => {
      try { kill('SIGKILL', true); } catch { /* it ended at this moment */ }
      reject(new Error(`not through after ${timeout} s in the host: ${command}\n${stdout}${stderr}`));
    }, timeout * 1000);
    child.on('error', reject);
    child.on('close', (code, signal) => { clearTimeout(timer); resolve({ code: code ?? 128 + constants.signals[signal!], stdout, stderr }); });
  });
  return { pid, kill, output: () => stdout + stderr, done };
}
