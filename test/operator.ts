// The operator's computer in miniature, and what an intruder with a server's append-only key can do to its repository: by borg itself, and by
// borg's own protocol, which asks nobody for permission.
import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import fs from 'node:fs';
import path from 'node:path';
import { distFile, start } from './script.ts';
import type { Ended, Running, Server } from './script.ts';
import type { Storage } from './storage.ts';

export type OperatorHere = {
  folder: string;
  entry: (changes?: Record<string, unknown>) => Record<string, unknown>; // the one server, as the operator's file names it
  write: (...servers: Record<string, unknown>[]) => void;
  start: (words: string[], env?: NodeJS.ProcessEnv) => Running;
  run: (words: string[], env?: NodeJS.ProcessEnv) => Promise<Ended>;
  book: (server?: string) => any;
};

/** Given a folder, a storage and a server on it, makes the operator of both: an ssh key that opens a shell there, and the escrowed key and passphrase. */
export function makeOperator(folder: string, storage: Storage, server: Server, name = 'web1'): OperatorHere {
  fs.mkdirSync(folder, { mode: 0o700 });
  const file = (one: string) => path.join(folder, one), etc = path.join(server.folder, 'etc');
  execFileSync('ssh-keygen', ['-q', '-t', 'ed25519', '-N', '', '-f', file('ssh_key')]);
  storage.authorizeLine(fs.readFileSync(file('ssh_key.pub'), 'utf8'));
  for (const one of ['borg_key', 'passphrase', 'known_hosts']) fs.copyFileSync(path.join(etc, one), file(one));
  fs.copyFileSync(distFile, file('backup.js'));
  const operator: OperatorHere = {
    folder,
    entry: (changes = {}) => ({ server: name, repository: storage.url(name), sshKey: file('ssh_key'), knownHostsFile: file('known_hosts'), keyFile: file('borg_key'), passphraseFile: file('passphrase'),
      storage: ['ssh', '-i', file('ssh_key'), '-o', 'BatchMode=yes', '-o', `UserKnownHostsFile=${file('known_hosts')}`, '-p', String(storage.port), '127.0.0.1'],
      keep: { last: 2, daily: 2, weekly: 0, monthly: 0, yearly: 0 }, timeZone: 'Africa/Maputo', ...changes }),
    write: (...servers) => fs.writeFileSync(file('backup.settings.js'), `const settings = ${JSON.stringify({ ledgerFolder: 'ledger', servers }, null, 1)};\n`, { mode: 0o600 }),
    start: (words, env) => start([process.execPath, file('backup.js'), ...words], { env }),
    run: (words, env) => operator.start(words, env).ended,
    book: (one = name) => JSON.parse(fs.readFileSync(file(`ledger/${one}.json`), 'utf8')),
  };
  operator.write(operator.entry());
  return operator;
}

/** Speak borg's protocol to the storage with the server's own key, as an intruder on the server can: Python, `repository` is open and unlocked, `borg` at hand. */
export function speakProtocol(server: Server, lines: string[]): string {
  const program = ['import os, sys', 'sys.argv = ["borg"]', 'from borg.archiver import Archiver', 'from borg.helpers import Location', 'from borg.remote import RemoteRepository', 'from borg.repository import Repository',
    'import borg.logger; borg.logger.setup_logging()', 'args = Archiver().parse_args(["list", os.environ["BORG_REPO"]])',
    'repository = RemoteRepository(Location(os.environ["BORG_REPO"]), lock=False, exclusive=False, args=args)', 'with repository:', ...lines.map((line) => `    ${line}`)].join('\n');
  return execFileSync('/usr/bin/python3', ['-'], { input: program, env: server.borgEnv(), encoding: 'utf8', stdio: ['pipe', 'pipe', 'pipe'] });
}

/** Add an archive with the server's key, as borg does it for anybody who has it. Returns nothing; it fails loudly. */
export function plant(server: Server, name: string, more: string[] = [], file = server.script): void {
  server.borg('create', ...more, `::${name}`, file);
}

/** What `audit --json` said: the one server's verdict and the rules of its findings, whole in `all`. */
export function verdictOf(ended: Ended): { verdict: string; rules: string[]; archives: string[]; all: any } {
  const [one] = JSON.parse(ended.out);
  assert.doesNotMatch(ended.err, /this is a bug/);
  return { verdict: one.verdict, rules: [...new Set<string>(one.findings.map(({ rule }: any) => rule))], archives: one.findings.flatMap(({ archives }: any) => archives), all: one };
}
