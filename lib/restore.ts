// Coming back: `restore ... --to FOLDER` lays an archive, or part of it, into an empty folder.
// Writes only below that folder, which must be empty: nothing that exists is ever overwritten. Stops nothing, starts nothing. What would be
// written elsewhere (an archive can be made so) is refused before anything is written. What an archive says of itself (its manifest) is used
// for owners and modes of folders below FOLDER, and for nothing else.
import fs from 'node:fs';
import path from 'node:path';
import { Problem, answer, count, mode, named, say, sayBlock, sayLive, size, span, warn, warnings } from './say.ts';
import { change, goOn } from './shell.ts';
import { freeBytes, heldFolder, isBelow, outermost } from './files.ts';
import { lastGoodRun } from './history.ts';
import type { Settings } from './settings.ts';
import { borgEnvironment, borgFailure, borgOnlyWarned, parseLine } from './borg.ts';
import { listArchives } from './archives.ts';
import { asSaved } from './record.ts';
import type { Manifest } from './record.ts';
import { archiveMeant, asPattern, orWrongBorg, readManifest, warnUnlessOurs } from './list.ts';
import { asExactly, measure, measureOwn, unsafe } from './measure.ts';
import type { Listed } from './measure.ts';

export type Looked = { archive: string; manifest: Manifest; listed: Listed; wanted: string[] };

/**
 * `restore ARCHIVE|latest [PATH ...] --to FOLDER`. Given the words, the folder and whether links are to be mended, extracts whole paths
 * below the folder: owners by name where they belong to this host's users, by number in container volumes, modes, xattrs,
 * ACLs, hard links, holes. Returns 0, or 1 with warnings. Throws Problem: nothing was touched, or the folder holds what came until then.
 */
export async function restoreTo(settings: Settings, server: string, words: string[], to: string, mendLinks: boolean): Promise<number> {
  const [name = '', ...paths] = words;
  const asked = paths.map((one) => path.resolve('/', one)).filter((one, _, all) => !all.includes('/') && one !== '/');
  const target = path.resolve(to);
  refuseUsedFolder(target);
  const { archive, manifest, listed, wanted } = await lookAt(settings, server, name, asked);
  await refuseWithoutRoom(target, listed, () => measure(settings, archive, wanted));
  warnOfLinks(wanted, listed);
  fs.mkdirSync(target, { recursive: true, mode: 0o700 });
  const held = heldFolder(target);
  makeParents(held, manifest, wanted);
  for (const { argv, title } of extractCommands(archive, manifest, wanted, listed.above)) (await extract(settings, argv, target, title, {}, held)).damaged.forEach((one) => warn(one));
  if (mendLinks) {
    mendClusterLinks(target, held, manifest);
    fs.chmodSync(held, 0o711); // PostgreSQL's user has to pass, now that root has done its work there
  }
  if (!mendLinks && manifest.plan.clusters.some((one) => fs.existsSync(pathBelow(target, one.dataDirectory)) && hasLinks(one))) {
    warn('links of a cluster (WAL or tablespaces) still lead to the places on its server: before you start it here, restore with --mend-links');
  }
  if (mode.json) answer(JSON.stringify({ archive, folder: target, files: listed.files, bytes: listed.bytes }));
  sayBlock(`restored ${count(listed.files, 'file')}, ${size(listed.bytes)}, from ${archive} into ${named(target)}`);
  return warnings.length > 0 ? 1 : 0;
}

const pathBelow = (target: string, file: string) => path.join(target, path.resolve('/', file)); // never above the folder, whatever the archive says
const hasLinks = (cluster: Manifest['plan']['clusters'][number]) => cluster.tablespaces.length > 0 || path.basename(cluster.walFolder) !== 'pg_wal' || path.dirname(cluster.walFolder) !== cluster.dataDirectory;

/**
 * Everything that has to be known before a restore, given the archive's name or 'latest' and paths (none: all): the archive, its manifest, the paths as they
 * were saved, and what they are. A start of borg over ssh takes a second or more, so the looks are made side by side; what `latest` will turn out to be is guessed
 * from the history meanwhile. Throws Problem when it is not there, must not be restored from, or would write outside the folder it is extracted to.
 */
export async function lookAt(settings: Settings, server: string, name: string, wanted: string[]): Promise<Looked> {
  const looks = (archive: string) => Promise.allSettled([readManifest(settings, archive), measureOwn(settings, archive, wanted).then((own) => own ?? measure(settings, archive, wanted))]);
  const guess = name === 'latest' ? lastGoodRun(settings.stateFolder)?.archive ?? '' : name;
  const [[archives], guessed] = await Promise.all([Promise.allSettled([orWrongBorg(listArchives(settings, server))]), guess ? looks(guess) : null]); // no borg is left behind when one fails
  if (archives.status === 'rejected') throw archives.reason;
  const archive = archiveMeant(archives.value, name);
  if (name === 'latest') warnUnlessOurs(settings.stateFolder, archives.value, archive);
  const [manifest, listed] = archive === guess && guessed ? guessed : await looks(archive);
  const isOther = archives.value.some((one) => one.archive === archive && one.kind === 'other');
  if (manifest.status === 'rejected' && !isOther) throw manifest.reason;
  const record = manifest.status === 'fulfilled' ? manifest.value : NO_RECORD, meant = listed.status === 'rejected' ? wanted.map((one) => asSaved(record, one)) : wanted;
  if (listed.status === 'rejected' && meant.every((one) => wanted.includes(one))) throw listed.reason;
  const found = listed.status === 'fulfilled' ? listed.value : await measure(settings, archive, meant);
  for (const [index, one] of meant.entries()) if (one !== wanted[index]) say(`${named(wanted[index]!)} was reached over a link, and saved as ${named(one)}`);
  for (const root of record.plan.roots) { // volumes are extracted in a pass of their own, whatever the order in the archive
    const link = [...found.links.keys()].find((one) => one !== root.path && isBelow(root.path, one));
    if (link) throw unsafe(archive, `${named(root.path)} lies below ${named(link)}, a link`);
  }
  return { archive, manifest: record, listed: found, wanted: meant };
}

// Another tool's archive has no record: its files come back, and what stands around them is not known.
const NO_RECORD = { plan: { roots: [], clusters: [] }, parents: [] } as unknown as Manifest;

function refuseUsedFolder(target: string): void {
  const facts = fs.lstatSync(target, { throwIfNoEntry: false });
  if (facts && (!facts.isDirectory() || fs.readdirSync(target).length > 0)) {
    throw new Problem(`${named(target)} is not an empty folder: nothing is ever extracted over something`,
      { exitCode: 64, hint: 'name a new folder; it is made' });
  }
  if (facts && (facts.uid !== process.getuid?.() || (facts.mode & 0o022) !== 0)) throw new Problem(`others can write to ${named(target)}, and could lay links there while it is filled`,
    { exitCode: 64, hint: 'name a new folder; it is made' });
}

// A link comes back as a link: who names one usually wants what it leads to.
function warnOfLinks(wanted: string[], { links }: Listed): void {
  for (const one of wanted) {
    const to = links.get(one);
    if (to && !wanted.includes(path.resolve(path.dirname(one), to))) warn(`${named(one)} is a link to ${named(to)}: only the link is restored; name what it leads to as well`);
  }
}

// Told to be too large, it is asked of borg again: a hard link takes no room.
async function refuseWithoutRoom(target: string, listed: Listed, again: () => Promise<Listed>): Promise<void> {
  let place = target;
  while (!fs.existsSync(place)) place = path.dirname(place);
  const free = freeBytes(place), room = ({ bytes, entries }: Listed) => bytes + entries * 4096 + 64e6, needed = free < room(listed) ? room(await again()) : 0;
  if (free < needed) throw new Problem(`${named(place)} has ${size(free)} free, ${size(needed)} are needed`,
    { hint: 'restore to another disk, or only the paths you need' });
}

// borg makes missing folders above a saved path as root, mode 0700, and PostgreSQL could not pass: they are made as they were.
function makeParents(target: string, manifest: Manifest, wanted: string[]): void {
  const roots = manifest.plan.roots.map((root) => root.path).filter((root) => wanted.length === 0 || wanted.some((one) => isBelow(root, one) || isBelow(one, root)));
  for (const parent of manifest.parents.filter((one) => roots.some((root) => isBelow(root, one.path)))) {
    const folder = pathBelow(target, parent.path);
    fs.mkdirSync(folder, { recursive: true });
    if (process.getuid?.() === 0) fs.chownSync(folder, parent.uid, parent.gid);
    fs.chmodSync(folder, parseInt(parent.mode, 8) & 0o7777);
  }
}

/**
 * The borg commands that extract paths (none: all) and the folders of the archive above them. A cluster on the host belongs to the user of that
 * name here; what lies in a container's volume belongs to a number, whoever has it here: so there may be two.
 */
export function extractCommands(archive: string, manifest: Manifest, wanted: string[], above: string[]): { title: string; argv: string[] }[] {
  const volumes = manifest.plan.roots.filter((root) => root.why.startsWith('volume ')).map((root) => root.path);
  const command = (more: string[], patterns: string[]) => ['borg', '--log-json', '--progress', 'extract', '--sparse', ...more, `::${archive}`, ...patterns];
  const isVolume = (file: string) => volumes.some((volume) => isBelow(file, volume));
  const patterns = (isMeant: (file: string) => boolean, whole: string[]) => [...above.filter(isMeant).map(asExactly), ...outermost(whole).map(asPattern)];
  const byName = patterns((file) => !isVolume(file), wanted.filter((file) => !isVolume(file)));
  const nested = volumes.filter((volume) => wanted.length === 0 || wanted.some((file) => !isVolume(file) && isBelow(volume, file)));
  const numbered = patterns(isVolume, [...wanted.filter(isVolume), ...nested]);
  if (numbered.length === 0) return [{ title: 'restore', argv: command([], byName) }];
  return [
    ...(wanted.length === 0 || byName.length > 0 ? [{ title: 'restore by name', argv: command(volumes.flatMap((volume) => ['--exclude', asPattern(volume)]), byName) }] : []),
    { title: 'restore by number', argv: command(['--numeric-ids'], numbered) },
  ];
}

/**
 * Extract with a progress line. What borg warns of is a warning. Returns whether it warned, and a line for each file that it calls damaged: that is there, with zeros
 * where `borg check --repair` found a chunk missing. Throws Problem when it failed: the folder then holds what came until then.
 */
export async function extract(settings: Settings, argv: string[], target: string, title: string, mark: Record<string, string> = {}, cwd = target): Promise<{ warned: boolean; damaged: string[] }> {
  const progress = showProgress(title), damaged: string[] = [];
  const onErrorLine = (line: string) => { // of all that it says only the end is kept
    progress.onLine(line);
    const note = /BackupError|damaged|inconsisten/.test(line) ? parseLine(line) : null; // borg 1.2 says why; 1.4.0 "backup error", and its message id tells
    const [, file] = /^(.*): (?:backup error|File has damaged .*chunks|Size inconsistency detected)/s.exec(note?.message ?? '') ?? [];
    if ((file !== undefined || note?.msgid === 'BackupError') && damaged.length < 100) damaged.push(`${named(file === undefined ? note!.message! : `/${file}`)} is damaged in the repository: borg has zeros for what is missing`);
  };
  const done = await change(argv, { cwd, env: { ...borgEnvironment(settings), BORG_RELOCATED_REPO_ACCESS_IS_OK: 'yes', ...mark }, onErrorLine });
  goOn();
  if (done.code !== 0 && !borgOnlyWarned(done.code)) throw borgFailure(`${title} failed${progress.underWay() ? ` at /${progress.underWay()}` : ''}; what came until then is in ${named(target)}`, done);
  if (done.code !== 0) warn(`borg warned while it extracted: ${borgFailure('', done).facts.said ?? ''}`);
  return { warned: done.code !== 0, damaged };
}

/**
 * Given a title, returns what is given each line of borg's progress, and says which file is under way: a live line on a
 * terminal, a plain one every five minutes elsewhere.
 */
export function showProgress(title: string): { onLine: (line: string) => void; underWay: () => string } {
  const began = Date.now();
  let shownAt = 0, toldAt = began, file = '';
  const onLine = (line: string) => {
    file = /"info": \["((?:[^"\\]|\\.)*)"\]/.exec(line)?.[1] ?? file;
    const percent = /"type": "progress_percent".*"current": (\d+).*"total": (\d+)/.exec(line) ?? /"current": (\d+), "total": (\d+)/.exec(line);
    if (!percent || percent[2] === '0' || Date.now() - shownAt < 250) return;
    shownAt = Date.now();
    const done = Number(percent[1]) / Number(percent[2]), seconds = (shownAt - began) / 1000;
    const words = `${title}: ${Math.round(done * 100)} % of ${size(Number(percent[2]))}${done > 0.02 ? `, about ${span(seconds / done - seconds)} left` : ''}`;
    if (sayLive(words) || shownAt - toldAt < 300_000) return;
    toldAt = shownAt;
    say(words);
  };
  return { onLine, underWay: () => file };
}

// The links of a data directory are absolute: started as it is, a copy would write into the WAL and tablespaces of the running cluster.
function mendClusterLinks(target: string, held: string, manifest: Manifest): void {
  for (const cluster of manifest.plan.clusters) {
    const folder = pathBelow(held, cluster.dataDirectory);
    const links = [...cluster.tablespaces.filter((one) => /^\d+$/.test(one.oid)).map((one) => ({ link: path.join(folder, 'pg_tblspc', one.oid), to: one.location })), { link: path.join(folder, 'pg_wal'), to: cluster.walFolder }];
    for (const { link, to } of links) {
      const facts = fs.lstatSync(link, { throwIfNoEntry: false });
      if (!facts?.isSymbolicLink()) continue;
      // The manifest is what the saved server wrote of itself: no name in it may lead out of the folder.
      const shown = path.join(target, path.relative(held, link));
      if (!isBelow(fs.realpathSync(path.dirname(link)), fs.realpathSync(held))) throw new Problem(`${named(shown)} leads out of ${named(target)}: this archive's record cannot be trusted`);
      if (!fs.existsSync(pathBelow(held, to))) warn(`${named(shown)} leads nowhere: ${named(to)} was not restored with it`);
      fs.rmSync(link);
      fs.symlinkSync(pathBelow(target, to), link);
      if (process.getuid?.() === 0) fs.lchownSync(link, facts.uid, facts.gid);
      say(`mended the link ${named(shown)}`);
    }
  }
}
