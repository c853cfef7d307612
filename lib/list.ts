// What is in the repository: the archives, the files in one; and borg itself, for everything this script does not do.
// `list` only reads. `borg` does whatever it is told.
import { spawn } from 'node:child_process';
import { constants } from 'node:os';
import { Problem, answer, mode, named, printable, size, span, warn } from './say.ts';
import type { Settings } from './settings.ts';
import { askBorg, borgEnvironment, borgFailure, borgVersion, listArchives } from './borg.ts';
import type { ArchiveFacts } from './borg.ts';

/** `list [ARCHIVE [PATH]]`: given the server ('' = any) and the words, prints the archives (newest last), or the files of one. Returns the exit code. */
export async function list(settings: Settings, server: string, words: string[]): Promise<number> {
  await borgVersion();
  const archives = await listArchives(settings, server);
  if (words.length > 0) return listFiles(settings, archiveMeant(archives, words[0]!), words[1]);
  if (mode.json) answer(JSON.stringify(archives, null, 1));
  else if (archives.length === 0) answer('no archives yet');
  else answer(archives.map(archiveLine).join('\n'));
  return 0;
}

function archiveLine(one: ArchiveFacts): string {
  const facts = one.originalBytes === null ? '' : `  ${size(one.originalBytes)}, ${size(one.deduplicatedBytes ?? 0)} new, down ${span(one.downSeconds ?? 0)}`;
  return `${one.archive.padEnd(40)} ${one.kind.padEnd(8)}${facts}`;
}

/** Given the archives and a name or 'latest', returns the archive's name: 'latest' is the newest proven one. Throws Problem when there is none. */
export function archiveMeant(archives: ArchiveFacts[], name: string): string {
  if (name === 'latest') {
    const newest = archives.filter((one) => one.kind === 'proven').pop();
    if (!newest) throw new Problem('there is no proven archive yet', { hint: '`node backup.js list` shows what there is' });
    return newest.archive;
  }
  const found = archives.find((one) => one.archive === name);
  if (!found) throw new Problem(`there is no archive ${named(name)}`, { hint: '`node backup.js list` shows what there is' });
  if (found.kind !== 'proven') warn(`${name} is ${found.kind === 'warm' ? 'a copy of the running system' : 'not proven'}: it does not count as a backup`);
  return found.archive;
}

/** The same, of an archive that is to come back: a copy of the running system never does. */
export function archiveToRestore(archives: ArchiveFacts[], name: string): string {
  if (archives.find((one) => one.archive === name)?.kind === 'warm') {
    throw new Problem(`${name} is a copy of the running system: its files do not belong together, and it is never restored`, { exitCode: 64, hint: '`node backup.js list` shows the proven ones' });
  }
  return archiveMeant(archives, name);
}

// borg's own lines are not shown: a line end in a file's name would look like another file.
async function listFiles(settings: Settings, archive: string, file: string | undefined): Promise<number> {
  let shown = 0;
  const show = (line: string) => {
    if (mode.json) return process.stdout.write(`${shown++ === 0 ? '[' : ',\n'}${line}`);
    const one = JSON.parse(line), link = one.source ? ` ${one.type === 'l' ? '->' : '='} ${one.source}` : '';
    return process.stdout.write(`${one.mode} ${one.user.padEnd(8)} ${one.group.padEnd(8)} ${String(one.size).padStart(12)} ${one.mtime.slice(0, 19)} ${printable(`${one.path}${link}`.replace(/[\t\n]/g, (sign) => (sign === '\n' ? '\\n' : '\\t')))}\n`);
  };
  const done = await askBorg(settings, ['list', '--json-lines', `::${archive}`, ...(file ? [`pp:${file.replace(/^\//, '')}`] : [])], { onLine: show, keepBytes: 0 });
  if (done.code !== 0) throw borgFailure(`${archive} cannot be listed`, done);
  if (mode.json) answer(shown === 0 ? '[]' : ']');
  return 0;
}

/** `borg ARGS...`: borg on this terminal, with this server's repository, key and passphrase. Returns its exit code. */
export async function borgItself(settings: Settings, words: string[]): Promise<number> {
  const child = spawn('borg', words, { stdio: 'inherit', env: { ...process.env, ...borgEnvironment(settings), BORG_RELOCATED_REPO_ACCESS_IS_OK: undefined } });
  for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP'] as const) process.on(signal, () => child.kill(signal));
  return new Promise((resolve, reject) => {
    child.on('error', () => reject(new Problem('borg does not run', { hint: 'install it: `apt-get install borgbackup`' })));
    child.on('exit', (code, signal) => resolve(signal ? 128 + constants.signals[signal] : code ?? 2));
  });
}
