// dist/backup.js as its users run it: a copy in a folder of its own, with a settings file beside it, as a child process.
// `makeServer()` is one production server in miniature on this machine: parts that are real daemons of its own, keys,
// a repository on a throwaway storage, and the one invariant that ends every scenario: everythingRunsAgain().
import assert from 'node:assert/strict';
import { execFileSync, spawn } from 'node:child_process';
import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { fileURLToPath } from 'node:url';
import type { Storage } from './storage.ts';

export const repositoryRoot = fileURLToPath(new URL('..', import.meta.url));
export const distFile = process.env.COLD_BACKUP_FILE ?? path.join(repositoryRoot, 'dist', 'backup.js'); // another build, while one works on it

export type Ended = { code: number; out: string; err: string; seconds: number };
export type Running = { pid: number; ended: Promise<Ended>; out: () => string; err: () => string; signal: (signal: NodeJS.Signals, wholeGroup?: boolean) => void };

/** A temporary folder for a test file, gone when the process ends. */
export function testFolder(name: string): string {
  const folder = fs.mkdtempSync(path.join(os.tmpdir(), `cold-backup-${name}-`));
  fs.chmodSync(folder, 0o755); // PostgreSQL's user has to pass
  process.on('exit', () => fs.rmSync(folder, { recursive: true, force: true, maxRetries: 3 }));
  return folder;
}

/** Start a program in a session of its own (so that its whole process group can be killed) and collect what it says. */
export function start(argv: string[], options: { env?: NodeJS.ProcessEnv; cwd?: string } = {}): Running {
  const began = Date.now();
  const child = spawn(argv[0]!, argv.slice(1), { stdio: ['ignore', 'pipe', 'pipe'], detached: true, env: { ...process.env, ...options.env }, cwd: options.cwd });
  let out = '', err = '';
  child.stdout.on('data', (piece) => { out += piece; });
  child.stderr.on('data', (piece) => { err += piece; });
  const ended = new Promise<Ended>((resolve) => {
    child.on('exit', (code, signal) => setTimeout(() => resolve({ code: signal ? 128 + os.constants.signals[signal] : code!, out, err, seconds: (Date.now() - began) / 1000 }), 20));
  });
  return { pid: child.pid!, ended, out: () => out, err: () => err, signal: (signal, wholeGroup = false) => { try { process.kill(wholeGroup ? -child.pid! : child.pid!, signal); } catch { /* ended */ } } };
}

export async function waitFor(what: string, condition: () => boolean | Promise<boolean>, seconds = 90): Promise<void> {
  const end = Date.now() + seconds * 1000;
  while (!await condition()) {
    if (Date.now() > end) throw new Error(`waited ${seconds} s in vain: ${what}`);
    await new Promise((done) => { setTimeout(done, 20); });
  }
}

/** A part that is a real daemon: it writes its pid file, holds its folder, ends on TERM after `stopSeconds`. */
export type Daemon = { name: string; pidFile: string; running: () => boolean; entry: object; startNow: () => void; stopNow: () => void };

/** Given a folder, makes a daemon with start, stop and running commands; `stop` only sends TERM and waits for the end, as real ones do. work: what it does three times a second. */
export function makeDaemon(folder: string, name: string, options: { stopSeconds?: number; ignoresStop?: boolean; work?: string } = {}): Daemon {
  const pidFile = path.join(folder, `${name}.pid`), file = path.join(folder, `${name}.sh`);
  const trap = options.ignoresStop ? "trap '' TERM" : `trap 'sleep ${options.stopSeconds ?? 0}; rm -f "$0.pid"; exit 0' TERM`;
  fs.writeFileSync(file, ['#!/bin/sh', 'case "$1" in',
    `  run) ${trap}; echo $$ > "${pidFile}"; while :; do ${options.work ? `${options.work}; sleep 0.3` : 'sleep 300'} & wait $!; done;;`,
    `  start) "$0" running || { setsid "$0" run </dev/null >/dev/null 2>&1 & }; for i in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20; do "$0" running && exit 0; sleep 0.05; done; exit 1;;`,
    `  stop) kill -TERM "$(cat "${pidFile}")" || exit 1; while "$0" running; do sleep 0.02; done;;`,
    `  running) test -s "${pidFile}" && test -d "/proc/$(cat "${pidFile}")" && grep -q "${name}.sh" "/proc/$(cat "${pidFile}")/cmdline";;`,
    'esac', ''].join('\n'), { mode: 0o755 });
  const run = (word: string) => execFileSync(file, [word], { stdio: 'ignore' });
  const daemon: Daemon = {
    name, pidFile,
    running: () => { // as its own command finds out, without starting it twenty times a second
      try {
        return fs.readFileSync(`/proc/${fs.readFileSync(pidFile, 'utf8').trim()}/cmdline`, 'utf8').includes(`${name}.sh`);
      } catch {
        return false;
      }
    },
    entry: { name, running: [file, 'running'], stop: [file, 'stop'], start: [file, 'start'] },
    startNow: () => { run('start'); },
    stopNow: () => { try { process.kill(-Number(fs.readFileSync(pidFile, 'utf8')), 'SIGKILL'); } catch { /* not running */ } },
  };
  process.on('exit', daemon.stopNow);
  return daemon;
}

export type Server = {
  folder: string;
  script: string;
  stateFolder: string;
  settingsFile: string;
  settings: Record<string, unknown>;
  writeSettings: (changes?: Record<string, unknown>) => void;
  run: (words?: string[], options?: { env?: NodeJS.ProcessEnv; node?: string }) => Promise<Ended>;
  start: (words?: string[], options?: { env?: NodeJS.ProcessEnv; node?: string }) => Running;
  borg: (...words: string[]) => string; // plain borg, without our script: what a person with key and passphrase sees
  borgEnv: () => NodeJS.ProcessEnv;
  history: () => any[];
  archives: () => string[];
  lastTranscript: () => string;
};

/** A server with keys and repository made by `setup`, as its README says. near: its repository lies on this machine, where no ssh is between, which takes half the time. */
export async function makeServer(folder: string, name: string, storage: Storage, settings: Record<string, unknown>, options: { quota?: string; before?: string; setUp?: boolean; near?: boolean } = {}): Promise<Server> {
  fs.mkdirSync(path.join(folder, 'etc'), { recursive: true, mode: 0o700 });
  const script = path.join(folder, 'backup.js'), settingsFile = path.join(folder, 'backup.settings.js'), etc = path.join(folder, 'etc');
  fs.copyFileSync(distFile, script);
  const server: Server = {
    folder, script, settingsFile, stateFolder: path.join(folder, 'state'),
    settings: { server: name, repository: options.near ? storage.repository(name) : storage.url(name), sshKey: `${etc}/ssh_key`, knownHostsFile: `${etc}/known_hosts`, keyFile: `${etc}/borg_key`, passphraseFile: `${etc}/passphrase`,
      stateFolder: path.join(folder, 'state'), compression: 'zstd,1', stopTimeoutSeconds: 20, ...settings },
    writeSettings: (changes = {}) => {
      Object.assign(server.settings, changes);
      fs.writeFileSync(settingsFile, `const settings = ${JSON.stringify(server.settings, null, 2)};\n`, { mode: 0o600 });
    },
    start: (words = [], { env, node = process.execPath } = {}) => start([node, script, ...words], { env }),
    run: (words, runOptions) => server.start(words, runOptions).ended,
    borgEnv: () => ({ ...process.env, BORG_REPO: String(server.settings.repository), BORG_KEY_FILE: `${etc}/borg_key`, BORG_PASSPHRASE: fs.readFileSync(`${etc}/passphrase`, 'utf8').trim(),
      BORG_BASE_DIR: path.join(folder, 'other-borg'), BORG_RSH: `ssh -o BatchMode=yes -o StrictHostKeyChecking=yes -o UserKnownHostsFile=${etc}/known_hosts -o IdentitiesOnly=yes -i ${etc}/ssh_key`,
      BORG_SELFTEST: 'disabled', BORG_RELOCATED_REPO_ACCESS_IS_OK: 'yes', BORG_UNKNOWN_UNENCRYPTED_REPO_ACCESS_IS_OK: 'yes' }),
    borg: (...words) => execFileSync('borg', words, { env: server.borgEnv(), encoding: 'utf8', maxBuffer: 1 << 28, stdio: ['ignore', 'pipe', 'pipe'] }),
    history: () => fs.readFileSync(path.join(server.stateFolder, 'history.jsonl'), 'utf8').trim().split('\n').map((line) => JSON.parse(line)),
    archives: () => server.borg('list', '--short', '--consider-checkpoints').trim().split('\n').filter((line) => line !== ''),
    lastTranscript: () => {
      const log = path.join(server.stateFolder, 'log');
      return fs.readFileSync(path.join(log, fs.readdirSync(log).sort().pop()!), 'utf8');
    },
  };
  server.writeSettings();
  if (options.setUp === false) return server;
  if (!options.near) await server.run(['setup', '--yes']); // makes the ssh key, and says which line the storage needs
  if (!options.near) storage.authorize(fs.readFileSync(`${etc}/ssh_key.pub`, 'utf8'), name, options);
  const ended = await server.run(['setup', '--yes']);
  assert.equal(ended.code, 0, ended.out + ended.err);
  return server;
}

/** The invariant after every scenario: everything that ran before runs again, and nothing else does. */
export async function everythingRunsAgain(running: Daemon[], notRunning: Daemon[] = [], seconds = 15): Promise<void> {
  await waitFor(`${running.map((one) => one.name).join(', ')} run again`, () => running.every((one) => one.running()), seconds);
  for (const one of notRunning) assert.equal(one.running(), false, `${one.name} was not running before and must not run now`);
}
