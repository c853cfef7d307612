// What is in the repository: the archives, the files in one, the versions of a file in all.
// And borg itself, for everything this script does not do: `borg` does whatever it is told; `list` and `find` only read.
import { spawn } from 'node:child_process';
import { constants } from 'node:os';
import path from 'node:path';
import { Problem, answer, count, mode, named, oneLine, pasteable, say, sayLive, size, span, warn, warnings } from './say.ts';
import { programPath } from './shell.ts';
import { misfit } from './form.ts';
import { lastGoodRun, readHistory } from './history.ts';
import type { HistoryLine } from './history.ts';
import type { Settings } from './settings.ts';
import { askBorg, borgEnvironment, borgFailure, borgOnlyWarned, borgVersion } from './borg.ts';
import { listArchives, readFromArchive, stampOf } from './archives.ts';
import type { ArchiveFacts } from './archives.ts';
import { asSaved, ownManifest, soundManifest } from './record.ts';
import type { Manifest } from './record.ts';

const MOST_VERSIONS = 30_000; // of files that `find` keeps in mind, about 1 kB each

/** What was asked of borg. When it failed, a borg that is missing or too old is the better story; asking that first would cost every look a start of it. */
export async function orWrongBorg<T>(asked: Promise<T>): Promise<T> {
  try {
    return await asked;
  } catch (error) {
    await borgVersion();
    throw error;
  }
}

/** `list [ARCHIVE [PATH]]`: given the server ('' = any) and the words, prints the archives (newest last), or the files of one. Returns 0, or 1 with warnings. */
export async function list(settings: Settings, server: string, words: string[]): Promise<number> {
  const archives = await orWrongBorg(listArchives(settings, server));
  if (words.length > 0) return listFiles(settings, archiveMeant(archives, words[0]!, 'look'), words[1]);
  if (mode.json) answer(JSON.stringify(archives, null, 1));
  else if (archives.length === 0) answer('no archives yet');
  else answer(archives.map(archiveLine).join('\n'));
  return warnings.length > 0 ? 1 : 0;
}

function archiveLine(one: ArchiveFacts): string {
  const facts = one.originalBytes === null ? '' : `  ${size(one.originalBytes)}, ${size(one.deduplicatedBytes ?? 0)} new, down ${span(one.downSeconds ?? 0)}`;
  return `${named(one.archive).padEnd(40)} ${one.kind.padEnd(8)}${facts}`;
}

/**
 * Given the archives and a name or 'latest', returns the archive's name: 'latest' is the newest proven one. An unproven one is warned of; a copy of
 * the running system may be looked at, and is never restored from. Throws Problem when there is none.
 */
export function archiveMeant(archives: ArchiveFacts[], name: string, use: 'look' | 'restore' = 'restore'): string {
  if (name === 'latest') {
    const proven = archives.filter((one) => one.kind === 'proven');
    if (proven.length === 0) throw new Problem('there is no proven archive yet',
      { hint: '`node backup.js list` shows what there is; an unproven one has to be named in full' });
    const past = proven.filter((one) => Date.parse(one.madeAt) < Date.now() + 3_600_000), ahead = proven.length - past.length;
    const [newest, last] = [past.length > 0 ? past : proven, proven].map((some) => some[some.length - 1]!.archive);
    if (ahead > 0) warn(`${count(ahead, 'archive')} bear${ahead === 1 ? 's' : ''} a time that is still to come, as ${last}: a clock was wrong, there or here. `
      + `${past.length > 0 ? 'Not counting these,' : 'All do, so'} the latest is ${newest}`);
    return newest!;
  }
  const found = archives.find((one) => one.archive === name);
  if (!found) throw new Problem(`there is no archive ${named(name)}`, { hint: '`node backup.js list` shows what there is' });
  if (found.kind === 'warm' && use === 'restore') {
    throw new Problem(`${name} is a copy of the running system: its files do not belong together, and a database in it is worthless`,
      { hint: `use \`latest\`; if it must be this one: node backup.js borg extract ${pasteable([`::${name}`])} PATH` });
  }
  if (found.kind === 'other') warn(`${name} was not written by this script: nothing proves that it was cold`);
  if (found.kind === 'unproven') warn(`${name} is not proven: it does not count as a backup`);
  return found.archive;
}

/** The archives of this name that no run here remembers, though they are newer than its last good one: another server writes under the same name. Given the history, too. */
export function strangersAmong(archives: ArchiveFacts[], history: HistoryLine[]): string[] {
  const own = new Set(history.map((line) => line.archive)), last = history.filter((line) => line.kind === 'run' && line.exitCode < 2).pop();
  return !last ? [] : archives.filter((one) => one.kind === 'proven' && !own.has(one.archive) && one.madeAt > stampOf(last.archive)).map((one) => one.archive);
}

/** Given what `latest` came to, warns when it is not what the last good run here wrote: another server's, or a clock was wrong, or somebody deleted. */
export function warnUnlessOurs(stateFolder: string, archives: ArchiveFacts[], latest: string): void {
  const last = lastGoodRun(stateFolder)?.archive ?? latest;
  if (last === latest) return;
  let why = 'which is not among the archives any more: ask the operator for an audit';
  if (archives.some((one) => one.archive === last)) why = `which does not bear the latest time, so ${named(latest)} is taken: a clock was wrong. Name the archive that you mean`;
  if (strangersAmong(archives, readHistory(stateFolder)).includes(latest)) why = `and no run here wrote ${named(latest)}: does another server write under the same name?`;
  warn(`the last good run here wrote ${named(last)}, ${why}`);
}

/** A path as it was on the server, as a pattern of borg's: itself and everything below it. */
export const asPattern = (file: string) => `pp:${file.replace(/^\//, '')}`;

/** One line of borg's listing of an archive. Throws Problem when it is none. */
export function entryIn(line: string): any {
  try {
    const one = JSON.parse(line);
    if (misfit(one, { path: 'text', type: 'text', 'source?': 'text', 'size?': 'number' }) === '') return one;
  } catch { /* cut off */ }
  throw new Problem('a line of the listing of an archive cannot be read',
    { said: line.slice(0, 200), hint: 'call it again; when it stays so: node backup.js borg check' });
}

/** The manifest of an archive: on its own server from the state folder when it is still there. Throws Problem when it cannot be had or is none. */
export async function readManifest(settings: Settings, archive: string): Promise<Manifest> {
  return soundManifest(ownManifest(settings.stateFolder, archive) || await readFromArchive(settings, archive, 'record/manifest.json'), archive);
}

// borg's own lines are not shown: a line end in a file's name would look like another file.
async function listFiles(settings: Settings, archive: string, file: string | undefined, asTyped = file): Promise<number> {
  const wanted = path.resolve('/', file ?? '/');
  let shown = 0;
  const show = (line: string) => {
    const before = shown++ === 0 ? '[' : ',\n';
    if (mode.json) return process.stdout.write(`${before}${line}`);
    const one = entryIn(line), link = one.source ? ` ${one.type === 'l' ? '->' : '='} ${named(one.type === 'l' ? one.source : `/${one.source}`)}` : '';
    return process.stdout.write(`${oneLine(`${one.mode} ${String(one.user).padEnd(8)} ${String(one.group).padEnd(8)} ${String(one.size).padStart(12)} ${String(one.mtime).slice(0, 19)}`)} ${named(`/${one.path}`)}${link}\n`);
  };
  const done = await askBorg(settings, ['list', '--json-lines', `::${archive}`, ...(wanted === '/' ? [] : [asPattern(wanted)])], { onLine: show, keepBytes: 0 });
  if (done.code !== 0 && !borgOnlyWarned(done.code)) throw borgFailure(`${archive} cannot be listed`, done);
  if (shown === 0 && wanted !== '/') {
    const saved = await readManifest(settings, archive).then((manifest) => asSaved(manifest, wanted), () => wanted); // another tool's has none
    if (saved !== wanted && asTyped === file) return listFiles(settings, archive, saved, wanted);
    throw notInArchive(archive, [asTyped ?? wanted]);
  }
  if (mode.json) answer(shown === 0 ? '[]' : ']');
  return warnings.length > 0 ? 1 : 0;
}

export function notInArchive(archive: string, missing: string[]): Problem {
  return new Problem(`not in ${archive}: ${missing.map(named).join(', ')}`,
    { hint: `node backup.js find ${pasteable([path.basename(missing[0]!)])}` });
}

type Version = { modifiedAt: string; bytes: number; linkOf: string; runs: [number, number][] }; // linkOf: of a hard link, the name under which borg has its bytes; runs: in the archives from the one number to the other, 0 is the newest

/** `find PATTERN`: which archives hold the files whose path contains the text (or matches the glob), newest first. Returns 0, or 1 when none does. */
export async function find(settings: Settings, server: string, [pattern = '']: string[]): Promise<number> {
  const archives = (await orWrongBorg(listArchives(settings, server))).filter((one) => one.kind !== 'warm').reverse();
  const found = new Map<string, Version[]>(), began = Date.now();
  let left = archives.reduce((sum, one) => sum + 1 + (one.files ?? 0) * 1e-5, 0); // at a guess: borg starts in 1 s and lists 100,000 files in another
  let kept = 0, toldAt = Date.now();
  say(`searching ${count(archives.length, 'archive')}, newest first: about ${span(left)}`);
  for (const [index, { archive }] of archives.entries()) {
    const onLine = (line: string) => { kept += noteVersion(found, index, entryIn(line), kept < MOST_VERSIONS); };
    const done = await askBorg(settings, ['list', '--json-lines', `::${archive}`, ...findPatterns(pattern)], { onLine, keepBytes: 0 });
    if (done.code !== 0 && !borgOnlyWarned(done.code)) throw borgFailure(`${archive} cannot be searched`, done);
    left = (Date.now() - began) / 1000 / (index + 1) * (archives.length - index - 1);
    if (sayLive(`${index + 1} of ${archives.length} archives, about ${span(left)} left`) || Date.now() - toldAt < 60_000) continue;
    toldAt = Date.now();
    say(`searched ${index + 1} of ${archives.length} archives, about ${span(left)} left`);
  }
  if (kept > MOST_VERSIONS) warn(`more than ${MOST_VERSIONS} versions of files match, and not all are shown: write more of the path`);
  if (found.size === 0) say(`no archive holds ${named(pattern)}`);
  tellVersions(found, archives.map((one) => one.archive));
  return found.size === 0 || warnings.length > 0 ? 1 : 0;
}

function findPatterns(pattern: string): string[] {
  const plain = pattern.replace(/^\//, ''), fromRoot = pattern.startsWith('/');
  if (/[*?[]/.test(plain)) return [`fm:${plain}`, ...(fromRoot ? [] : [`fm:*/${plain}`])];
  return [`re:${fromRoot ? '^' : ''}${plain.replace(/[.*+?^${}()|[\]\\]/g, '\\$&')}`];
}

// Returns 1 for a version that was not known; of those it remembers only while there is room.
function noteVersion(found: Map<string, Version[]>, index: number, one: any, hasRoom: boolean): 0 | 1 {
  if (one.type === 'd') return 0;
  const file = `/${one.path}`, modifiedAt = `${String(one.mtime).slice(0, 19)}Z`, linkOf = String(one.mode).startsWith('h') ? `/${one.source}` : '';
  const known = found.get(file)?.find((version) => version.modifiedAt === modifiedAt && version.bytes === one.size);
  const last = known?.runs[known.runs.length - 1];
  if (last && last[1] >= index - 1) last[1] = index;
  else if (known) known.runs.push([index, index]);
  else if (hasRoom) found.set(file, [...found.get(file) ?? [], { modifiedAt, bytes: one.size, linkOf, runs: [[index, index]] }]);
  return known ? 0 : 1;
}

function tellVersions(found: Map<string, Version[]>, archives: string[]): void {
  const holding = ({ runs }: Version) => runs.flatMap(([from, to]) => archives.slice(from, to + 1));
  const sign = (index: number) => (index === 0 ? '[' : ',');
  let index = 0;
  for (const [file, versions] of found) { // one by one: all of it as one text could be too much
    if (mode.json) answer(`${sign(index++)}${JSON.stringify({ path: file, versions: versions.map((one) => ({ modifiedAt: one.modifiedAt, bytes: one.bytes, linkOf: one.linkOf, archives: holding(one) })) })}`);
    else answer([named(file), ...versions.map((one) => versionLine(one, holding(one)))].join('\n'));
  }
  if (mode.json) answer(index === 0 ? '[]' : ']');
}

function versionLine({ modifiedAt, bytes, linkOf }: Version, archives: string[]): string {
  const more = archives.length > 1 ? ` and ${archives.length - 1} more, the oldest ${named(archives[archives.length - 1]!)}` : '';
  return `  changed ${modifiedAt}  ${linkOf === '' ? size(bytes).padStart(8) : `hard link of ${named(linkOf)}`}  in ${named(archives[0]!)}${more}`;
}

/** `borg ARGS...`: borg on this terminal, with this server's repository, key and passphrase. Returns its exit code. */
export async function borgItself(settings: Settings, words: string[]): Promise<number> {
  const hasTerminal = [process.stdin, process.stdout, process.stderr].some((stream) => stream.isTTY); // it sends INT and HUP to both of us, and a second INT means to borg: at once
  for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP'] as const) process.on(signal, () => { if (!hasTerminal || signal === 'SIGTERM') child.kill(signal); });
  const child = spawn('borg', words, { stdio: 'inherit', env: { ...process.env, PATH: programPath(), ...borgEnvironment(settings), BORG_RELOCATED_REPO_ACCESS_IS_OK: undefined } });
  return new Promise((resolve, reject) => {
    child.on('error', () => reject(new Problem('borg does not run', { hint: 'install it: `apt-get install borgbackup`' })));
    child.on('exit', (code, signal) => resolve(signal ? 128 + constants.signals[signal] : code ?? 2));
  });
}
