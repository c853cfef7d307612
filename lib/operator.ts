// The operator's own computer: its settings name every server with full access to its repository. Nothing on a production server
// can do what follows: there is no such file there, and its ssh key may only add. This chapter reads the file, and
// runs programs on the storage. What stands on the storage is not believed here, only looked at.
import fs from 'node:fs';
import path from 'node:path';
import { Problem, named } from './say.ts';
import { change, failure, look } from './shell.ts';
import { temporaryFolder, writeDurably } from './files.ts';
import type { Done, RunOptions } from './shell.ts';
import { aCommand, aGroup, aLanguage, aNumber, aPath, aRepository, aSecretFile, aServer, aTimeZone, isGroup, refuseUnknown, shown } from './rules.ts';
import type { Wrong } from './rules.ts';
import { checkSecretFiles, loadWith, settingsSource } from './check.ts';
import type { Settings } from './settings.ts';
import { isRemote } from './borg.ts';
import { repositoryAddress } from './storage.ts';

/** How many archives to keep: the last ones, and the last one of so many days, weeks, months, years. */
export type Keep = { last: number; daily: number; weekly: number; monthly: number; yearly: number };

/** One server as its operator knows it. storage: the command that opens a shell there; [] = the path is local, or (with ssh://) there is no shell. */
export type OperatedServer = { server: string; repository: string; sshKey: string; knownHostsFile: string; keyFile: string; passphraseFile: string;
  storage: string[]; cutAccess: string[]; giveAccess: string[]; keep: Keep; timeZone: string; maxAgeHours: number; drillMaxAgeDays: number }; // older is told by report and status --all; drillMaxAgeDays 0: no drills there

export type Operator = { ledgerFolder: string; servers: OperatedServer[]; language: 'en' | 'es'; file: string };

const NO_SERVER = { server: '', repository: '', sshKey: '', knownHostsFile: '', keyFile: '', passphraseFile: '', storage: [], cutAccess: [], giveAccess: [], timeZone: 'UTC', maxAgeHours: 26, drillMaxAgeDays: 8 };
const KEEP: Keep = { last: 3, daily: 7, weekly: 4, monthly: 12, yearly: 3 };
const RULES_OF_SERVER = { server: aServer, repository: aRepository, sshKey: aPath, knownHostsFile: aPath, keyFile: aSecretFile, passphraseFile: aSecretFile, storage: aCommand, cutAccess: aCommand, giveAccess: aCommand, timeZone: aTimeZone, maxAgeHours: aNumber(0, 100_000, 'any'), drillMaxAgeDays: aNumber(0, 10_000, 'any') };

/**
 * Given the block of this script (for its names), the script and FILE of --settings, returns the operator's settings. Throws
 * Problem (64) when there is no such file, or with every mistake in it.
 */
export function loadOperator(script: string, file: string): Operator {
  const source = settingsSource(script, file), hint = 'on the operator\'s computer: write `const settings = { ledgerFolder, servers: [ ... ] };` (see README) into backup.settings.js beside backup.js, or name it with --settings FILE';
  if (source === script) throw new Problem('there is no operator\'s file here: audit, prune and report are not for a production server',
    { exitCode: 64, hint });
  const { settings } = loadWith<Omit<Operator, 'file'>>(null, script, source, (found, wrong) => {
    if (isGroup(found) && !('servers' in found) && ('stop' in found || 'folders' in found || 'repository' in found)) {
      throw new Problem(`${named(source)} is the file of a production server, not the operator's: audit, prune and report are not for a production server`, { exitCode: 64, hint });
    }
    return filledOperator(found, wrong);
  });
  const folder = path.resolve(path.dirname(fs.realpathSync(source)), settings.ledgerFolder);
  return { ...settings, ledgerFolder: folder, file: source };
}

function filledOperator(found: unknown, wrong: Wrong): Record<string, any> {
  if (!isGroup(found)) return wrong('', `must be a group: const settings = { ... }; and not ${shown(found)}`), {};
  refuseUnknown(found, '', ['ledgerFolder', 'servers', 'language'], wrong);
  const { ledgerFolder = 'ledger', servers, language = 'en' } = found;
  aLanguage(language, 'language', wrong);
  if (typeof ledgerFolder !== 'string' || ledgerFolder === '') wrong('ledgerFolder', `must be a folder, not ${shown(ledgerFolder)}`);
  if (!Array.isArray(servers)) wrong('servers', `must be a list of servers in [ ], not ${shown(servers)}`);
  const list = Array.isArray(servers) ? servers.map((one, index) => filledServer(one, `servers[${index}]`, wrong)) : [];
  list.forEach(({ server }, index) => {
    if (list.findIndex((other) => other.server === server) < index) wrong(`servers[${index}].server`, `${shown(server)} is in the list already`);
  });
  return { ledgerFolder, servers: list, language };
}

function filledServer(given: unknown, at: string, wrong: Wrong): Record<string, any> {
  if (!isGroup(given)) return wrong(at, `must be a group in { }, not ${shown(given)}`), {};
  const one = Object.fromEntries(Object.entries(given).filter(([, value]) => value !== '')); // '' is: not given
  refuseUnknown(one, at, [...Object.keys(RULES_OF_SERVER), 'keep'], wrong);
  for (const [key, rule] of Object.entries(RULES_OF_SERVER)) {
    if (one[key] !== undefined) rule(one[key], `${at}.${key}`, wrong);
    else if (key === 'server' || key === 'repository') wrong(`${at}.${key}`, 'is missing');
  }
  const keep = isGroup(one.keep) ? { ...KEEP, ...one.keep } : one.keep ?? KEEP; // aGroup wants all of them
  aGroup({ last: aNumber(1, 1e6, 'whole'), ...Object.fromEntries(['daily', 'weekly', 'monthly', 'yearly'].map((rule) => [rule, aNumber(0, 1e6, 'whole')])) })(keep, `${at}.keep`, wrong);
  if (Boolean((one.cutAccess as string[])?.length) !== Boolean((one.giveAccess as string[])?.length)) wrong(`${at}.cutAccess`, 'and giveAccess go together: what is cut must be given back');
  return { ...NO_SERVER, ...one, keep };
}

/** The servers named, or all. Throws Problem (64) for a name that is not in the file. */
export function serversMeant({ servers, file }: Operator, names: string[]): OperatedServer[] {
  const unknown = names.filter((name) => !servers.some(({ server }) => server === name));
  if (unknown.length > 0) throw new Problem(`no such server in ${named(file)}: ${unknown.join(', ')}`,
    { exitCode: 64, hint: `it names ${servers.map(({ server }) => server).join(', ') || 'none'}` });
  if (servers.length === 0) throw new Problem(`${named(file)} names no server`, { exitCode: 64 });
  return servers.filter(({ server }) => names.length === 0 || names.includes(server));
}

/** The settings with which borg is run for this server from here: full access, its own cache. Throws Problem (64) when others could read a key. */
export function borgSettings(builtIn: Settings, { ledgerFolder }: Operator, one: OperatedServer): Settings {
  const { server, repository, sshKey, knownHostsFile, keyFile, passphraseFile } = one;
  const settings = { ...builtIn, server, repository, sshKey, knownHostsFile, keyFile, passphraseFile, stateFolder: path.join(ledgerFolder, '.cache', server) };
  checkSecretFiles(settings);
  for (const file of [sshKey, keyFile, passphraseFile]) {
    if (file && !fs.existsSync(file)) throw new Problem(`${named(file)} is not there`,
      { exitCode: 64, hint: 'the escrowed key and passphrase stand on the recovery sheet of this server' });
  }
  canWrite(ledgerFolder, () => fs.mkdirSync(path.join(settings.stateFolder, 'borg'), { recursive: true, mode: 0o700 }));
  return settings;
}

/** From here a repository may be somewhere else than yesterday: its pruned copy, a storage that moved. That it is the same one, its id in the ledger tells. */
export const ANYWHERE = { env: { BORG_RELOCATED_REPO_ACCESS_IS_OK: 'yes' } };
/** Whether archives can be named: with key and passphrase. Without, the audit reads the repository's files alone. */
export const canDecrypt = ({ passphraseFile }: OperatedServer) => passphraseFile !== '';
/** Whether the repository's files can be read: by a shell there, or because they lie here. */
export const hasShell = ({ storage, repository }: OperatedServer) => storage.length > 0 || repository.startsWith('/');

/** The repository's folder as the storage's shell sees it, which starts in the home folder. */
export function folderThere({ repository }: OperatedServer): string {
  const folder = isRemote({ repository } as Settings) ? repositoryAddress(repository).path : repository;
  return folder.replace(/^~\//, './').replace(/(?<=.)\/+$/, '');
}

/** Write something on the operator's own disk. Throws Problem when that cannot be: a disk that is full, a folder of somebody else's. */
export function canWrite(place: string, write: () => unknown): void {
  try {
    write();
  } catch (error: any) {
    throw new Problem(`${named(place)} cannot be written: ${error.code ?? error.message}`, { hint: 'look at `df -h`, and at who may write there' });
  }
}

/** Write a file there, whole or not at all. */
export const writeHere = (file: string, text: string): void => canWrite(file, () => writeDurably(file, text));

// A line that died silently (a VPN, a firewall) holds nothing up for longer than a minute; who says so otherwise is heard.
const aliveOrEnded = (words: string[]) => (path.basename(words[0] ?? '') !== 'ssh' || words.some((word) => /ServerAlive/i.test(word)) ? words
  : [words[0]!, '-o', 'ServerAliveInterval=10', '-o', 'ServerAliveCountMax=6', ...words.slice(1)]);

let scratch = ''; // made once
export const IS_GONE = 'is not there any more'; // what an audit of a known repository makes an alarm of

/** Run a script (of sh or python3) on the storage: it goes there on standard input, so that no shell in between reads its words. looks: it changes nothing. */
export async function onStorage(one: OperatedServer, what: string, interpreter: string[], script: string, options: RunOptions & { looks?: boolean } = {}): Promise<Done> {
  const file = path.join(scratch ||= temporaryFolder(), 'script');
  fs.writeFileSync(file, script, { mode: 0o600 });
  const fd = fs.openSync(file, 'r'), { looks = false, ...more } = options;
  fs.rmSync(file); // several servers are read at the same time
  try {
    const done = await (looks ? look : change)([...aliveOrEnded(one.storage), ...interpreter], { seconds: 3600, ...more, stdin: fd });
    if (done.code === 0) return done;
    if (/^NOT THERE: /m.test(done.said)) throw new Problem(`the repository of ${one.server} ${IS_GONE}`,
      { said: done.said, hint: 'was a prune interrupted? `node backup.js prune` puts it in order. Else ask the storage\'s keeper' });
    const [, refused] = /^REFUSED: (.*)$/m.exec(done.said) ?? [];
    if (refused) throw new Problem(`${what}: ${refused}`);
    const hint = done.code === 127 ? `${interpreter[0]} is not there: borg is a Python program, so install python3 on the storage` : `does this open a shell there: ${one.storage.join(' ')}`;
    throw failure(what, done, one.storage.length > 0 && (looks || [126, 127, 255].includes(done.code)) ? hint : '');
  } finally {
    fs.closeSync(fd);
  }
}
