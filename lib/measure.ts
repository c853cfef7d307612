// What is about to be extracted: how many files and bytes, which links, and whether all stays inside.
// borg must not write outside the folder it is given. Only looks: at borg's listing of an archive, or at the listing in the
// state folder when it is the same archive's.
import fs from 'node:fs';
import path from 'node:path';
import { Problem, named } from './say.ts';
import type { RunOptions } from './shell.ts';
import type { Settings } from './settings.ts';
import { askBorg, borgFailure, borgOnlyWarned } from './borg.ts';
import { isBelow } from './files.ts';
import { eachRecord, pathIn } from './proof.ts';
import { listingFile, ownManifest, recordFolder } from './record.ts';
import { asPattern, notInArchive } from './list.ts';

/**
 * What paths of an archive are: files (folders do not count) and bytes; the folders of the archive above those paths; links,
 * with what they lead to.
 */
export type Listed = { files: number; entries: number; bytes: number; above: string[]; links: Map<string, string> };

const nothingYet = (): Listed => ({ files: 0, entries: 0, bytes: 0, above: [], links: new Map() });

function add(listed: Listed, isFolder: boolean, bytes: number): void {
  listed.entries++;
  listed.files += isFolder ? 0 : 1;
  listed.bytes += bytes;
}

/**
 * Given an archive and paths (none: all of it), returns what they are. Throws Problem when a path is not there, or when
 * extracting them is not safe.
 */
export async function measure(settings: Settings, archive: string, wanted: string[], more: string[] = [], options: RunOptions = {}): Promise<Listed> {
  const listed = nothingYet(), seen = new Set<string>(), parents = new Set(foldersAbove(wanted));
  const why = watchEntries(listed.links);
  let trouble = '';
  const onLine = (line: string) => {
    if (trouble) return;
    const one = parseEntry(line), file = `/${one?.path}`;
    trouble = one ? why(one) : 'a line of its listing cannot be read';
    if (!one || trouble) return;
    const roots = wanted.filter((root) => isBelow(file, root));
    roots.forEach((root) => seen.add(root));
    if (roots.length === 0 && parents.has(file)) return void listed.above.push(file);
    add(listed, one.type === 'd', one.type === '-' ? one.size : 0);
  };
  const done = await askBorg(settings, ['list', ...more, '--json-lines', '--format', '{size}{path}', `::${archive}`, ...[...parents].map(asExactly), ...wanted.map(asPattern)], { ...options, onLine, keepBytes: 0 });
  if (done.code !== 0 && !borgOnlyWarned(done.code)) throw borgFailure(`${archive} cannot be listed`, done);
  if (trouble) throw unsafe(archive, trouble);
  const missing = wanted.filter((root) => !seen.has(root)), link = listed.above.find((one) => listed.links.has(one));
  if (missing.length > 0 && link) throw new Problem(`not in ${archive}: ${named(missing[0]!)}`,
    { hint: `${named(link)} is a link to ${named(listed.links.get(link)!)}: name the path below that` });
  if (missing.length > 0) throw notInArchive(archive, missing);
  return listed;
}

/**
 * The same from the state folder: the listing of what this server saved last, when that is this archive. borg reads its own for a second and more.
 * A hard link counts as a file of its own there. Returns null when borg has to be asked: another archive, or something about a path that only borg's listing tells.
 */
export async function measureOwn(settings: Settings, archive: string, wanted: string[]): Promise<Listed | null> {
  const file = listingFile(settings.stateFolder), record = recordFolder(settings.stateFolder);
  if (!ownManifest(settings.stateFolder, archive) || !fs.existsSync(file)) return null;
  const listed = nothingYet(), seen = new Set<string>(), parents = new Set(foldersAbove(wanted));
  const isRead = await eachRecord(file, (line) => {
    const [type = '', , , , bytes] = line.split('\t'), one = pathIn(line);
    if (type === 'l') listed.links.set(one, '');
    const isMeant = wanted.length === 0 || wanted.some((root) => isBelow(one, root));
    if (wanted.includes(one)) seen.add(one);
    if (isMeant && type !== 's') add(listed, type === 'd', type === 'f' ? Number(bytes) : 0);
    else if (parents.has(one)) listed.above.push(one);
  }).then(() => ownManifest(settings.stateFolder, archive) !== '', () => false); // a night that begins meanwhile makes a new record
  if (!isRead) return null;
  if (wanted.length === 0) for (const name of fs.readdirSync(record)) add(listed, false, fs.statSync(path.join(record, name)).size);
  return wanted.every((one) => seen.has(one) && !listed.links.has(one)) ? listed : null;
}

const foldersAbove = (files: string[]) => files.flatMap((file) => file.split('/').slice(2).map((_, index) => file.split('/').slice(0, index + 2).join('/')));
export const asExactly = (file: string) => `re:^${file.slice(1).replace(/[.*+?^${}()|[\]\\]/g, '\\$&')}\\Z`; // borg 1.2 complains of every pf: that it never matched

export function parseEntry(line: string): { type: string; path: string; size: number; source: string; healthy?: boolean } | null {
  try {
    const one = JSON.parse(line);
    return typeof one.path === 'string' ? one : null;
  } catch {
    return null;
  }
}

export const unsafe = (archive: string, why: string) => new Problem(`${archive} is not safe to extract: ${why}. Files would be written outside the folder, so nothing was`,
  { hint: 'restore only the paths you need, if you trust them; if nobody made such links on the server, somebody made this archive to harm you' });

/**
 * borg writes through a link that the archive itself holds, follows `..` in names, and makes hard links to files outside (tried with 1.2.4). Returns
 * a function that is given every entry in the archive's order and says what is unsafe about it, '' when nothing is. Remembers only links, in `links`.
 */
export function watchEntries(links: Map<string, string>): (one: { type: string; path: string; source: string }) => string {
  const isOdd = (file: string) => /(^|\/)\.{0,2}(\/|$)/.test(file); // begins with /, or has an empty part, . or ..
  let folder = '', link = ''; // of the last entry: most entries lie in the same folder
  const linkAbove = (file: string): string => {
    const own = path.posix.dirname(file);
    if (own !== folder) {
      folder = own;
      link = links.size === 0 ? '' : foldersAbove([`/${file}`]).find((one) => links.has(one)) ?? '';
    }
    return link;
  };
  return (one) => {
    const isHardLink = one.type !== 'l' && Boolean(one.source);
    if (isOdd(one.path) || (isHardLink && isOdd(one.source))) return `${named(one.path)} leads out of it`;
    const above = linkAbove(one.path) || (isHardLink ? linkAbove(`${one.source}/.`) : '');
    if (above) return `${named(`/${one.path}`)} lies below ${named(above)}, a link`;
    if (one.type === 'l') {
      links.set(`/${one.path}`, one.source);
      folder = ''; // what was said of this folder may not hold any more
    }
    return '';
  };
}
