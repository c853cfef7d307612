// Coming back: `restore ... --to FOLDER` lays an archive, or part of it, into an empty folder; `find` tells which archives hold a file.
// Writes only below that folder, which must be empty: nothing that exists is ever overwritten. Stops nothing, starts nothing.
// What an archive says of itself (its manifest) is used for owners and modes of folders below FOLDER, and for nothing else.
import fs from 'node:fs';
import path from 'node:path';
import { Problem, answer, count, mode, named, pasteable, printable, say, sayBlock, sayLive, size, span, warn, warnings } from './say.ts';
import { change, freeBytes } from './shell.ts';
import type { Settings } from './settings.ts';
import { askBorg, borgEnvironment, borgFailure, borgOnlyWarned, borgVersion, listArchives, readFromArchive } from './borg.ts';
import { isBelow } from './plan.ts';
import type { Manifest } from './record.ts';
import { archiveMeant } from './list.ts';

type Listed = { files: number; bytes: number; missing: string[] };

/**
 * `restore ARCHIVE|latest [PATH ...] --to FOLDER`. Given the words, the folder and whether links are to be mended, extracts whole paths
 * below the folder: owners by name where they belong to this host's users, by number in container volumes, modes, xattrs,
 * ACLs, hard links, holes. Returns 0, or 1 with warnings. Throws Problem: nothing was touched, or the folder holds what came until then.
 */
export async function restoreTo(settings: Settings, server: string, words: string[], to: string, mendLinks: boolean): Promise<number> {
  const [name = '', ...paths] = words;
  const wanted = paths.map((one) => path.resolve('/', one));
  const target = path.resolve(to);
  await borgVersion();
  refuseUsedFolder(target);
  const archive = archiveMeant(await listArchives(settings, server), name);
  const manifest: Manifest = JSON.parse(await readFromArchive(settings, archive, 'record/manifest.json'));
  const listed = await measure(settings, archive, wanted);
  if (listed.missing.length > 0) throw new Problem(`not in ${archive}: ${listed.missing.map(named).join(', ')}`, { hint: `node backup.js find ${pasteable([path.basename(listed.missing[0]!)])}` });
  refuseWithoutRoom(target, listed);
  const volumes = manifest.plan.roots.filter((root) => root.why.startsWith('volume ')).map((root) => root.path);
  fs.mkdirSync(target, { recursive: true, mode: 0o700 });
  makeParents(target, manifest, wanted);
  for (const { argv, title } of extractCommands(archive, wanted, volumes)) await extract(settings, argv, target, title, listed.bytes);
  if (mendLinks) {
    fs.chmodSync(target, 0o711); // PostgreSQL's user has to pass
    mendClusterLinks(target, manifest);
  }
  if (!mendLinks && manifest.plan.clusters.some((one) => fs.existsSync(below(target, one.dataDirectory)) && hasLinks(one))) {
    warn('links of a cluster (WAL or tablespaces) still lead to the places on its server: before you start it here, restore with --mend-links');
  }
  if (mode.json) answer(JSON.stringify({ archive, folder: target, files: listed.files, bytes: listed.bytes }));
  sayBlock(`restored ${count(listed.files, 'file')}, ${size(listed.bytes)}, from ${archive} into ${named(target)}`);
  return warnings.length > 0 ? 1 : 0;
}

const below = (target: string, file: string) => path.join(target, path.resolve('/', file)); // never above the folder, whatever the archive says
const hasLinks = (cluster: Manifest['plan']['clusters'][number]) => cluster.tablespaces.length > 0 || path.basename(cluster.walFolder) !== 'pg_wal' || path.dirname(cluster.walFolder) !== cluster.dataDirectory;

function refuseUsedFolder(target: string): void {
  const facts = fs.lstatSync(target, { throwIfNoEntry: false });
  if (facts && (!facts.isDirectory() || fs.readdirSync(target).length > 0)) {
    throw new Problem(`${named(target)} is not an empty folder: nothing is ever extracted over something`, { exitCode: 64, hint: 'name a new folder; it is made' });
  }
}

/** Given an archive and paths (none: all of it), returns how many files and bytes they are, and which of the paths it does not hold. */
async function measure(settings: Settings, archive: string, wanted: string[]): Promise<Listed> {
  const listed: Listed = { files: 0, bytes: 0, missing: [] }, seen = new Set<string>();
  const onLine = (line: string) => {
    const one = JSON.parse(line);
    listed.files++;
    listed.bytes += one.type === '-' ? one.size : 0;
    for (const root of wanted) if (isBelow(`/${one.path}`, root)) seen.add(root);
  };
  const done = await askBorg(settings, ['list', '--json-lines', `::${archive}`, ...wanted.map(asPattern)], { onLine, keepBytes: 0 });
  if (done.code !== 0 && !borgOnlyWarned(done.code)) throw borgFailure(`${archive} cannot be listed`, done);
  return { ...listed, missing: wanted.filter((root) => !seen.has(root)) };
}

export const asPattern = (file: string) => `pp:${file.replace(/^\//, '')}`;

function refuseWithoutRoom(target: string, { bytes, files }: Listed): void {
  let place = target;
  while (!fs.existsSync(place)) place = path.dirname(place);
  const free = freeBytes(place), needed = bytes + files * 4096 + 64e6;
  if (free < needed) throw new Problem(`${named(place)} has ${size(free)} free, ${size(needed)} are needed`, { hint: 'restore to another disk, or only the paths you need' });
}

// borg makes missing folders above a saved path as root, mode 0700, and PostgreSQL could not pass: they are made as they were.
function makeParents(target: string, manifest: Manifest, wanted: string[]): void {
  const roots = manifest.plan.roots.map((root) => root.path).filter((root) => wanted.length === 0 || wanted.some((one) => isBelow(root, one) || isBelow(one, root)));
  for (const parent of manifest.parents.filter((one) => roots.some((root) => isBelow(root, one.path)))) {
    const folder = below(target, parent.path);
    fs.mkdirSync(folder, { recursive: true });
    if (process.getuid?.() === 0) fs.chownSync(folder, parent.uid, parent.gid);
    fs.chmodSync(folder, parseInt(parent.mode, 8) & 0o7777);
  }
}

// A cluster on the host belongs to the user of that name here; what lies in a container's volume belongs to a number, whoever has it here.
function extractCommands(archive: string, wanted: string[], volumes: string[]): { title: string; argv: string[] }[] {
  const command = (more: string[], paths: string[]) => ['borg', '--log-json', '--progress', 'extract', '--sparse', ...more, `::${archive}`, ...paths.map(asPattern)];
  if (volumes.length === 0) return [{ title: 'restore', argv: command([], wanted) }];
  const isVolume = (file: string) => volumes.some((volume) => isBelow(file, volume));
  const byName = wanted.filter((file) => !isVolume(file));
  const numbered = wanted.length === 0 ? volumes : [...wanted.filter(isVolume), ...volumes.filter((volume) => byName.some((file) => isBelow(volume, file)))];
  return [
    ...(wanted.length === 0 || byName.length > 0 ? [{ title: 'restore by name', argv: command(volumes.flatMap((volume) => ['--exclude', asPattern(volume)]), byName) }] : []),
    ...(numbered.length > 0 ? [{ title: 'restore by number', argv: command(['--numeric-ids'], numbered) }] : []),
  ];
}

/** Extract with a progress line. What borg warns of is a warning. Throws Problem when it failed: the folder then holds what came until then. */
export async function extract(settings: Settings, argv: string[], target: string, title: string, bytes: number, mark: Record<string, string> = {}): Promise<void> {
  const began = Date.now();
  let shownAt = 0, underWay = '';
  const onErrorLine = (line: string) => {
    underWay = /"info": \["((?:[^"\\]|\\.)*)"\]/.exec(line)?.[1] ?? underWay;
    const percent = /"type": "progress_percent".*"current": (\d+).*"total": (\d+)/.exec(line) ?? /"current": (\d+), "total": (\d+)/.exec(line);
    if (!percent || Date.now() - shownAt < 250) return;
    shownAt = Date.now();
    const done = Number(percent[1]) / Number(percent[2]) || 0, seconds = (Date.now() - began) / 1000;
    sayLive(`${title}: ${Math.round(done * 100)} % of ${size(bytes)}${done > 0.02 ? `, about ${span(seconds / done - seconds)} left` : ''}`);
  };
  const done = await change(argv, { cwd: target, env: { ...borgEnvironment(settings), BORG_RELOCATED_REPO_ACCESS_IS_OK: 'yes', ...mark }, onErrorLine });
  if (done.code !== 0 && !borgOnlyWarned(done.code)) throw borgFailure(`${title} failed${underWay ? ` at /${underWay}` : ''}; what came until then is in ${named(target)}`, done);
  if (done.code !== 0) warn(`borg warned while it extracted: ${borgFailure('', done).facts.said ?? ''}`);
}

// The links of a data directory are absolute: started as it is, a copy would write into the WAL and tablespaces of the running cluster.
function mendClusterLinks(target: string, manifest: Manifest): void {
  for (const cluster of manifest.plan.clusters) {
    const folder = below(target, cluster.dataDirectory);
    const links = [...cluster.tablespaces.filter((one) => /^\d+$/.test(one.oid)).map((one) => ({ link: path.join(folder, 'pg_tblspc', one.oid), to: one.location })), { link: path.join(folder, 'pg_wal'), to: cluster.walFolder }];
    for (const { link, to } of links) {
      const facts = fs.lstatSync(link, { throwIfNoEntry: false });
      if (!facts?.isSymbolicLink()) continue;
      // The manifest is what the saved server wrote of itself: no name in it may lead out of the folder.
      if (!isBelow(fs.realpathSync(path.dirname(link)), fs.realpathSync(target))) throw new Problem(`${named(link)} leads out of ${named(target)}: this archive's record cannot be trusted`);
      if (!fs.existsSync(below(target, to))) warn(`${named(link)} leads nowhere: ${named(to)} was not restored with it`);
      fs.rmSync(link);
      fs.symlinkSync(below(target, to), link);
      if (process.getuid?.() === 0) fs.lchownSync(link, facts.uid, facts.gid);
      say(`mended the link ${named(link)}`);
    }
  }
}

type Version = { modifiedAt: string; bytes: number; archives: string[] };

/** `find PATTERN`: which archives hold the files whose path contains the text (or matches the glob), newest first. Returns 0, or 1 when none does. */
export async function find(settings: Settings, server: string, [pattern = '']: string[]): Promise<number> {
  await borgVersion();
  const archives = (await listArchives(settings, server)).filter((one) => one.kind !== 'warm').reverse();
  const plain = pattern.replace(/^\//, ''), isGlob = /[*?[]/.test(plain);
  const patterns = isGlob ? [`fm:${plain}`, ...(pattern.startsWith('/') ? [] : [`fm:*/${plain}`])]
    : [`re:${pattern.startsWith('/') ? '^' : ''}${plain.replace(/[.*+?^${}()|[\]\\]/g, '\\$&')}`];
  const found = new Map<string, Version[]>();
  const began = Date.now();
  for (const [index, { archive }] of archives.entries()) {
    const onLine = (line: string) => noteVersion(found, archive, JSON.parse(line));
    const done = await askBorg(settings, ['list', '--json-lines', `::${archive}`, ...patterns], { onLine, keepBytes: 0 });
    if (done.code !== 0 && !borgOnlyWarned(done.code)) throw borgFailure(`${archive} cannot be searched`, done);
    const left = (Date.now() - began) / 1000 / (index + 1) * (archives.length - index - 1);
    if (index === 0 && archives.length > 1) say(`searching ${count(archives.length, 'archive')}, about ${span(left)} more`);
    else sayLive(`${index + 1} of ${archives.length} archives, about ${span(left)} left`);
  }
  if (mode.json) answer(JSON.stringify([...found].map(([file, versions]) => ({ path: file, versions })), null, 1));
  else for (const [file, versions] of found) answer([printable(file.replaceAll('\n', '\\n')), ...versions.map(versionLine)].join('\n'));
  if (found.size === 0) say(`no archive holds ${named(pattern)}`);
  return found.size > 0 ? 0 : 1;
}

function noteVersion(found: Map<string, Version[]>, archive: string, one: any): void {
  if (one.type === 'd') return;
  const file = `/${one.path}`, modifiedAt = `${one.mtime.slice(0, 19)}Z`;
  const versions = found.get(file) ?? [];
  const known = versions.find((version) => version.modifiedAt === modifiedAt && version.bytes === one.size);
  if (known) known.archives.push(archive);
  else versions.push({ modifiedAt, bytes: one.size, archives: [archive] });
  found.set(file, versions);
}

function versionLine({ modifiedAt, bytes, archives }: Version): string {
  const more = archives.length > 1 ? ` and ${archives.length - 1} more, the oldest ${archives[archives.length - 1]}` : '';
  return `  changed ${modifiedAt}  ${size(bytes).padStart(8)}  in ${archives[0]}${more}`;
}
