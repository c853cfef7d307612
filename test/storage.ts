// A throwaway storage: a real sshd on 127.0.0.1 with its own host key and port, run as whoever runs the tests, and one
// forced `borg serve --append-only` per server, as the contract wants it. Nothing of the machine's own sshd is read or touched.
import { execFileSync, spawn } from 'node:child_process';
import type { ChildProcess } from 'node:child_process';
import fs from 'node:fs';
import net from 'node:net';
import os from 'node:os';
import path from 'node:path';

export type Storage = {
  folder: string;
  port: number;
  url: (name: string) => string;
  repository: (name: string) => string; // its path on disk
  authorize: (publicKey: string, name: string, options?: { quota?: string; appendOnly?: boolean; before?: string }) => void;
  authorizeLine: (line: string) => void;
  connections: () => number[]; // pids of the sshd children that serve a connection
  cut: () => void; // end every connection now, as a broken line does
  stop: () => void;
  start: () => Promise<void>;
  destroy: () => void;
};

/** Given a folder, starts its storage, new or as it was left there, on this port or any free one. */
export async function startStorage(folder: string, wantedPort?: number): Promise<Storage> {
  fs.mkdirSync(path.join(folder, 'repositories'), { recursive: true, mode: 0o700 });
  const port = wantedPort ?? await freePort();
  const keys = path.join(folder, 'authorized_keys'), hostKey = path.join(folder, 'host_key');
  if (!fs.existsSync(hostKey)) execFileSync('ssh-keygen', ['-q', '-t', 'ed25519', '-N', '', '-f', hostKey]);
  fs.writeFileSync(keys, '', { mode: 0o600, flag: 'a' });
  const config = path.join(folder, 'sshd_config');
  fs.writeFileSync(config, [`Port ${port}`, 'ListenAddress 127.0.0.1', `HostKey ${hostKey}`, `AuthorizedKeysFile ${keys}`, `PidFile ${folder}/sshd.pid`,
    'PasswordAuthentication no', 'KbdInteractiveAuthentication no', 'UsePAM no', 'StrictModes no', 'PermitRootLogin yes',
    'SetEnv SHLVL=1 BORG_SELFTEST=disabled', // or bash, started by sshd, reads the .bashrc of whoever runs the tests, and borg tests itself: a second for each connection
    'KexAlgorithms curve25519-sha256', // a third of the time of the one that withstands quantum computers
    'MaxStartups 100', 'ClientAliveInterval 5', 'ClientAliveCountMax 3', ''].join('\n'));
  let daemon: ChildProcess | null = null;
  const user = os.userInfo().username;
  const repository = (name: string) => path.join(folder, 'repositories', name);
  const serving = (): number[] => {
    const own = fs.readdirSync('/proc').filter((pid) => /^\d+$/.test(pid) && parentOf(Number(pid)) === daemon?.pid).map(Number);
    return own;
  };
  const storage: Storage = {
    folder, port, repository,
    url: (name) => `ssh://${user}@127.0.0.1:${port}${repository(name)}`,
    authorize: (publicKey, name, { quota, appendOnly = true, before } = {}) => storage.authorizeLine(
      `command="${before ? `${before}; ` : ''}${before ? 'exec ' : ''}borg serve${appendOnly ? ' --append-only' : ''} --restrict-to-repository ${repository(name)}${quota ? ` --storage-quota ${quota}` : ''}",restrict ${publicKey.trim()}`),
    authorizeLine: (line) => fs.appendFileSync(keys, `${line.trim()}\n`),
    connections: serving,
    cut: () => serving().forEach((pid) => descendants(pid).concat(pid).forEach((one) => endProcess(one, 'SIGKILL'))),
    stop: () => {
      storage.cut();
      if (daemon?.pid) endProcess(daemon.pid, 'SIGKILL');
      daemon = null;
    },
    start: async () => {
      if (process.getuid?.() === 0) fs.mkdirSync('/run/sshd', { recursive: true, mode: 0o755 }); // sshd refuses to start without it
      daemon = spawn('/usr/sbin/sshd', ['-D', '-e', '-f', config], { stdio: ['ignore', 'ignore', fs.openSync(path.join(folder, 'sshd.log'), 'a')] });
      for (let waited = 0; ; waited++) {
        if (await listens(port)) return;
        if (waited > 200) throw new Error(`sshd does not come up: ${fs.readFileSync(path.join(folder, 'sshd.log'), 'utf8')}`);
        await new Promise((done) => { setTimeout(done, 25); });
      }
    },
    destroy: () => {
      storage.stop();
      fs.rmSync(folder, { recursive: true, force: true });
    },
  };
  await storage.start();
  process.on('exit', storage.stop);
  return storage;
}

function parentOf(pid: number): number {
  try {
    return Number(fs.readFileSync(`/proc/${pid}/stat`, 'utf8').replace(/^.*\) /s, '').split(' ')[1]);
  } catch {
    return 0;
  }
}

export function descendants(pid: number): number[] {
  const children = fs.readdirSync('/proc').filter((one) => /^\d+$/.test(one) && parentOf(Number(one)) === pid).map(Number);
  return children.flatMap((child) => [...descendants(child), child]);
}

function endProcess(pid: number, signal: NodeJS.Signals): void {
  try {
    process.kill(pid, signal);
  } catch { /* it has ended */ }
}

export function freePort(): Promise<number> {
  return new Promise((resolve) => {
    const server = net.createServer().listen(0, '127.0.0.1', () => {
      const { port } = server.address() as net.AddressInfo;
      server.close(() => resolve(port));
    });
  });
}

function listens(port: number): Promise<boolean> {
  return new Promise((resolve) => {
    const line = net.connect(port, '127.0.0.1').on('connect', () => { line.destroy(); resolve(true); }).on('error', () => resolve(false));
  });
}
