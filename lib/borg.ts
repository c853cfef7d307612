// borg: the one chapter that knows its arguments, environment, exit codes and messages.
// Of borg 1.2 and 1.4; borg 2 is refused. Changes only the repository, by adding archives; never deletes, renames or recreates
// one. borg's cache lies in the state folder. Secrets reach borg by file: the passphrase is read by borg itself
// (BORG_PASSCOMMAND), and is in no argument and no log.
import fs from 'node:fs';
import { hostname } from 'node:os';
import path from 'node:path';
import { Problem, named } from './say.ts';
import type { Done, RunOptions } from './shell.ts';
import { failure, goOn, look } from './shell.ts';
import { answerOf } from './form.ts';
import { markOfRun } from './processes.ts';
import type { Settings } from './settings.ts';

export const PATIENT_LOCK_WAIT = '180'; // seconds, while everything still runs; longer than the storage takes to notice a dead connection
const SHORT_LOCK_WAIT = '10'; // borg looks again after a tenth of its patience (locking.py): after 1 s, and not 18, a dead run's lock is gone

const ASK_THE_DOCTOR = 'run `node backup.js doctor`: it tries the ssh connection by itself and shows what ssh says';

// What borg calls its own troubles (docs/internals/frontends.rst, "Message IDs"), and what to do about each.
const HINTS: Record<string, string> = {
  LockTimeout: 'another borg is using the repository or its cache; a lock left by a dead one disappears when the storage notices',
  'Repository.DoesNotExist': 'there is no repository there yet: run `node backup.js setup`',
  'Repository.InvalidRepository': 'what is there is no borg repository: is `repository` right?',
  'Repository.InsufficientFreeSpaceError': 'the storage is full',
  'Repository.StorageQuotaExceeded': 'the storage quota is reached: raise it in the storage\'s authorized_keys, or prune from the operator\'s machine',
  PathNotAllowed: 'the storage\'s authorized_keys line allows another path than `repository` says',
  PassphraseWrong: 'is `passphraseFile` the one that belongs to this key?',
  PasscommandFailure: 'can `passphraseFile` be read?',
  KeyfileNotFoundError: 'is `keyFile` there? Without it nobody can read this repository: bring it back from the recovery sheet',
  KeyfileMismatchError: '`keyFile` belongs to another repository',
  KeyfileInvalidError: '`keyFile` is damaged: bring it back from the recovery sheet',
  ConnectionClosed: ASK_THE_DOCTOR, ConnectionClosedWithHint: ASK_THE_DOCTOR, ConnectionBrokenWithHint: ASK_THE_DOCTOR, // the last one is 1.4's
  'Cache.RepositoryAccessAborted': 'the repository is at another place than before, or another one is there. If you moved it, run `node backup.js borg info` on a terminal and answer its question',
  'Cache.RepositoryReplay': 'the repository is older than what this server last saw: somebody rolled it back. Ask the operator to audit it',
  'Archive.AlreadyExists': 'an archive of this second exists already: start the run again',
};

function shellWord(word: string): string {
  return `'${word.replaceAll("'", `'\\''`)}'`; // BORG_RSH and BORG_PASSCOMMAND are split as a shell would
}

/** The ssh command for this repository: our key, the known host, no questions, and an end when the line is dead. */
export function sshCommand(settings: Settings): string[] {
  const quoted = (file: string) => `"${file.replaceAll('%', '%%')}"`; // ssh_config(5) splits at spaces and expands %
  return ['ssh', '-o', 'BatchMode=yes', '-o', 'ConnectTimeout=20', '-o', 'ServerAliveInterval=10', '-o', 'ServerAliveCountMax=6',
    '-o', 'StrictHostKeyChecking=yes', ...(fs.existsSync(settings.knownHostsFile) ? ['-o', `UserKnownHostsFile=${quoted(settings.knownHostsFile)}`] : []),
    ...(fs.existsSync(settings.sshKey) ? ['-o', 'IdentitiesOnly=yes', '-i', settings.sshKey] : [])]; // without them, root's own
}

/** The environment of every borg: repository, key, passphrase command, cache in the state folder; no question is ever answered yes. */
export function borgEnvironment(settings: Settings, run = ''): Record<string, string> {
  return {
    BORG_REPO: settings.repository,
    BORG_KEY_FILE: settings.keyFile,
    BORG_PASSCOMMAND: `cat ${shellWord(settings.passphraseFile)}`,
    BORG_RSH: sshCommand(settings).map(shellWord).join(' '),
    BORG_BASE_DIR: path.join(settings.stateFolder, 'borg'),
    // borg takes a lock for stale when its owner on this host is dead; without a network card it would take us for another host every time.
    ...(fs.existsSync('/etc/machine-id') ? { BORG_HOST_ID: `${hostname()}@${fs.readFileSync('/etc/machine-id', 'utf8').trim()}` } : {}),
    BORG_EXIT_CODES: 'modern', // 1.4: tells warnings apart; 1.2 does not know it
    BORG_RELOCATED_REPO_ACCESS_IS_OK: 'no',
    BORG_UNKNOWN_UNENCRYPTED_REPO_ACCESS_IS_OK: 'no',
    LC_ALL: 'C.UTF-8',
    TZ: 'UTC',
    ...(run ? markOfRun(run) : {}),
  };
}

/** 0 is good; 1 and from 100 on are warnings (docs/usage/general/return-codes.rst.inc), but for 126 and 127, with which who was to start borg says that it cannot. */
export function borgOnlyWarned(code: number): boolean {
  return code === 1 || (code >= 100 && code < 126);
}

/** A Problem out of a borg that failed: its own last error, and the hint for it. */
export function borgFailure(what: string, done: Done): Problem {
  const said: string[] = [];
  let hint = '';
  for (const line of done.said.split('\n')) {
    const note = parseLine(line);
    if (!note) {
      if (line.trim() !== '' && !line.startsWith('{')) said.push(line);
    } else if (note.type === 'log_message' && note.message && /WARNING|ERROR|CRITICAL/.test(note.levelname ?? '')) {
      said.push(/^Traceback .*\n(?: .*\n)*(.*)/m.exec(note.message)?.[1] ?? note.message); // of a traceback only what it was
      hint = HINTS[note.msgid ?? ''] ?? hint;
      if (/quota.*exceeded/i.test(note.message)) hint = HINTS['Repository.StorageQuotaExceeded']!;
      if (/BrokenPipeError|ConnectionResetError/.test(note.message)) hint = HINTS.ConnectionClosed!;
    }
  }
  return failure(what, { ...done, said: said.join('\n') }, hint || 'run `node backup.js doctor`');
}

export type BorgNote = { type: string; levelname?: string; message?: string; msgid?: string; status?: string; path?: string;
  nfiles?: number; original_size?: number; deduplicated_size?: number; finished?: boolean };

// borg prints one JSON object a line, but ssh and Python's tracebacks mix in: what is no JSON is no note.
export function parseLine(line: string): BorgNote | null {
  if (!line.startsWith('{')) return null;
  try {
    return JSON.parse(line);
  } catch {
    return null;
  }
}

/**
 * Ask borg something that changes nothing in the repository. Returns how it ended. Its locks are waited for, with little patience and then with much. It
 * need not test itself: that costs 0.2 s of every start, and whoever copies or extracts does it.
 */
export async function askBorg(settings: Settings, [command, ...rest]: string[], options: RunOptions = {}): Promise<Done> {
  const ask = (lockWait: string) => look(['borg', '--log-json', ...(command === '--version' ? [] : ['--lock-wait', lockWait]), command!, ...rest],
    { seconds: 3600, ...options, env: { ...borgEnvironment(settings), BORG_SELFTEST: 'disabled', ...options.env } });
  let done = await ask(SHORT_LOCK_WAIT);
  if (/"msgid": "LockTimeout"/.test(done.said)) done = await ask(PATIENT_LOCK_WAIT);
  goOn(); // it may have ended because we were asked to stop
  return done;
}

let version = ''; // asked once

/** borg's version here. Throws Problem when it is missing, older than 1.2 or not borg 1. */
export async function borgVersion(): Promise<string> {
  if (version) return version;
  const done = await look(['borg', '--version']);
  if (done.code !== 0) throw failure('borg does not run', done, 'install it: `apt-get install borgbackup`');
  const found = /\d+\.\d+\S*/.exec(done.out)?.[0] ?? '';
  const [major, minor] = found.split('.').map(Number);
  if (major !== 1) throw new Problem(`borg ${found} is installed, but this script speaks to borg 1.2 and 1.4`,
    { hint: 'install borg 1.4 beside it; borg 2 repositories are a format of their own' });
  if (minor! < 2) throw new Problem(`borg ${found} is too old`, { hint: 'version 1.2.5 or newer is needed' });
  return version = found;
}

/** What the repository says of itself; brings borg's cache in step, which would otherwise cost time while services are down. */
export async function tryRepository(settings: Settings): Promise<{ id: string; encryption: string }> {
  for (const [key, file] of Object.entries({ keyFile: settings.keyFile, passphraseFile: settings.passphraseFile, ...(isRemote(settings) ? { sshKey: settings.sshKey } : {}) })) {
    if (!fs.existsSync(file)) throw new Problem(`${key} ${named(file)} is not there`,
      { hint: 'run `node backup.js setup`, or bring it back from the recovery sheet' });
  }
  const done = await askBorg(settings, ['info', '--json']);
  if (done.code !== 0 && !borgOnlyWarned(done.code)) throw borgFailure('the repository cannot be used', done);
  const facts = answerOf('the repository cannot be used', done, { encryption: { mode: 'text' }, repository: { id: 'text' } });
  const encryption = String(facts.encryption.mode);
  if (/^(none|authenticated)/.test(encryption)) throw new Problem(`the repository is not encrypted (${encryption}): the storage could read everything`,
    { hint: 'make a new one with `node backup.js setup`' });
  return { id: facts.repository.id, encryption };
}

export function isRemote(settings: Settings): boolean {
  return !settings.repository.startsWith('/');
}
