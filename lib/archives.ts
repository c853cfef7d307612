// The archives of a repository: their lists, and their names, which say what each of them is. Only reads.
import { named, warn } from './say.ts';
import type { RunOptions } from './shell.ts';
import type { Settings } from './settings.ts';
import { answerOf } from './form.ts';
import { askBorg, borgFailure } from './borg.ts';

/** 'proof' says that the cold archive of its name is good; 'checkpoint': what an interrupted pass had sent. */
export type ArchiveKind = 'cold' | 'proof' | 'warm' | 'checkpoint' | 'other';

/**
 * An archive as borg lists it, whoever wrote it. startedAt and endedAt: what the client says, ISO 8601 UTC. facts: its
 * comment, {} when that is no JSON of ours.
 */
export type ListedArchive = { id: string; name: string; startedAt: string; endedAt: string; facts: Record<string, any> };

export const WITHOUT_LOCK = ['--bypass-lock']; // a run that is under way is not in the way

/**
 * Given the server ('' = any) and an archive's name, returns 'cold', 'proof' (the cold one of its name is good), 'warm' (a copy of what
 * ran), 'checkpoint' (what an interrupted pass had sent), or 'other' (neither this script nor a pass of it writes such a name there).
 */
export function kindOf(server: string, name: string): ArchiveKind {
  const own = new RegExp(`^(proven-)?${server ? server.replaceAll('.', '\\.') : '.+?'}-\\d{4}-\\d\\d-\\d\\dT\\d\\d:\\d\\d:\\d\\d(-warm\\.checkpoint)?((?:\\.checkpoint(?:\\.\\d+)?)?)$`).exec(name);
  if (!own) return 'other';
  return own[3] ? 'checkpoint' : own[2] ? 'warm' : own[1] ? 'proof' : 'cold';
}

/** The time in an archive's name, as ISO 8601 UTC; '' when there is none. */
export function stampOf(name: string): string {
  const stamp = /\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d/.exec(name)?.[0];
  return stamp ? `${stamp}Z` : '';
}

/** The server in the name of a cold archive. */
export const serverIn = (archive: string) => archive.slice(0, -'-2026-11-23T02:00:00'.length);

/** Every archive of the repository, checkpoints too, oldest first. more: words for borg, as WITHOUT_LOCK. */
export async function listEverything(settings: Settings, more: string[] = [], options: RunOptions = {}): Promise<ListedArchive[]> {
  const done = await askBorg(settings, ['list', ...more, '--json', '--consider-checkpoints', '--format', '{comment}{end}'], { keepBytes: 1 << 28, ...options });
  if (done.code !== 0) throw borgFailure('the archives cannot be listed', done);
  return answerOf('the archives cannot be listed', done, { archives: [{ id: 'text', name: 'text', start: 'time', 'end?': 'time', 'comment?': 'text' }] }).archives.map(({ id, name, start, end, comment }: Record<string, string>) => {
    let facts = {};
    try {
      const read = JSON.parse(comment ?? '');
      if (typeof read === 'object' && read !== null) facts = read;
    } catch { /* another tool's */ }
    return { id, name, startedAt: `${start!.slice(0, 19)}Z`, endedAt: `${(end ?? start)!.slice(0, 19)}Z`, facts };
  });
}

/** The ids of all archives alone, in the same order. No archive is opened for it, so it stays fast with thousands. */
export async function listIds(settings: Settings, options: RunOptions = {}): Promise<string[]> {
  const done = await askBorg(settings, ['list', '--consider-checkpoints', '--format', '{id}{NL}'], options);
  if (done.code !== 0) throw borgFailure('the archives cannot be listed', done);
  return done.out.split('\n').filter((line) => line !== '');
}

/**
 * Given all archives, oldest first, returns the ids of those that another tool wrote here before this script wrote its first, though they are named like ours
 * (`{hostname}-{now}`). Ours have a comment of ours, or a proof.
 */
export function writtenBefore(all: ListedArchive[]): Set<string> {
  const names = new Set(all.map(({ name }) => name)), first = all.findIndex(({ name, facts }) => facts.format === 1 || names.has(`proven-${name}`));
  return new Set(all.slice(0, Math.max(0, first)).filter(({ name }) => kindOf('', name) === 'cold').map(({ id }) => id));
}

export type ArchiveFacts = { archive: string; madeAt: string; kind: 'proven' | 'unproven' | 'warm' | 'other'; originalBytes: number | null; deduplicatedBytes: number | null; downSeconds: number | null; files: number | null };

/**
 * The archives of this server ('' = of any), oldest first. A cold archive is 'proven' when its `proven-` twin is there; sizes come from the
 * twin's comment, so that one listing answers everything. 'other': what another tool wrote here before. Those of other servers, and interrupted passes, are left out.
 */
export async function listArchives(settings: Settings, server: string, more: string[] = [], options: RunOptions = {}): Promise<ArchiveFacts[]> {
  const all = await listEverything(settings, more, options), proofs = new Map(all.filter(({ name }) => kindOf('', name) === 'proof').map(({ name, facts }) => [name.slice('proven-'.length), facts]));
  const before = writtenBefore(all), others = new Set(all.filter(({ id, name }) => kindOf('', name) === 'cold' && !before.has(id)).map(({ name }) => serverIn(name)));
  if (server !== '' && others.size > 0 && !others.has(server)) warn(`no archive here is of ${server}, but there are some of ${[...others].slice(0, 5).map(named).join(', ')}: was this server renamed? Then write its old name as \`server\``);
  return all.flatMap(({ id, name, startedAt }): ArchiveFacts[] => {
    const isOther = before.has(id) || kindOf('', name) === 'other' && !/\.checkpoint(\.\d+)?$/.test(name), kind = kindOf(server, name), proof = proofs.get(name);
    if (!isOther && kind !== 'cold' && kind !== 'warm') return [];
    return [{
      archive: name,
      madeAt: stampOf(isOther ? '' : name) || startedAt,
      kind: isOther ? 'other' : kind === 'warm' ? 'warm' : proof === undefined ? 'unproven' : 'proven',
      originalBytes: proof?.originalBytes ?? null,
      deduplicatedBytes: proof?.deduplicatedBytes ?? null,
      downSeconds: proof?.downSeconds ?? null,
      files: proof?.files ?? null,
    }];
  });
}

/** One file out of an archive, as text. more: words for borg, as WITHOUT_LOCK. Throws Problem when it is not there. */
export async function readFromArchive(settings: Settings, archive: string, file: string, options: RunOptions = {}, more: string[] = []): Promise<string> {
  const done = await askBorg(settings, ['extract', ...more, '--stdout', `::${archive}`, file], { keepBytes: 256 * 1024 * 1024, ...options });
  if (done.code !== 0) throw borgFailure(`${file} cannot be read back from ${archive}`, done);
  return done.out;
}
