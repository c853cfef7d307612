// Where things come back to: which roots of an archive are meant, and where they lie here.
// And how they get beside their places. Nothing that an archive says of itself is believed: its paths are checked before they
// are used, its names fit a pattern before they become an argument, its commands are never run. Writes only staging folders;
// the swap comes later.
import fs from 'node:fs';
import path from 'node:path';
import { Problem, count, named, pasteable, say, size, warn } from './say.ts';
import { change, failure, goOn, look, lookFor } from './shell.ts';
import { freeBytes, heldFolder, isBelow, outermost } from './files.ts';
import type { Settings } from './settings.ts';
import { hostPathOf } from './containers.ts';
import type { Mount } from './containers.ts';
import { answerOf } from './form.ts';
import { controlState } from './postmaster.ts';
import { askBorg, borgEnvironment, borgFailure, borgOnlyWarned } from './borg.ts';
import type { Root } from './ways.ts';
import { eachRecord, pathIn } from './proof.ts';
import type { Manifest } from './record.ts';
import { asPattern } from './list.ts';
import { parseEntry, unsafe, watchEntries } from './measure.ts';
import { showProgress } from './restore.ts';
import { mounts } from './ways.ts';
import { isThere, mountOf, mountPoints, nearestFolder, stagingFor, swapsFor } from './swap.ts';

/** Something that is extracted in one go and swapped as one: a root of the archive, or what a disk mounted below one holds. */
export type Piece = {
  recorded: string; // its path in the archive
  place: string; // its path here
  why: string; // 'cluster 15/main', 'volume shop_files', 'folder'
  byNumber: boolean; // a container's files belong to numbers
  strict: boolean;
  isInner: boolean; // comes into its place with the one around it
  volume: string; // to be made, '' = no
  staging: string;
  files: number;
  bytes: number;
};

/** The folders that are made, each where something is extracted to. */
export const stagingsOf = (pieces: Piece[]) => [...new Set(pieces.filter((piece) => piece.files > 0).map((piece) => piece.staging))];
export const staged = (piece: Piece) => path.join(piece.staging, piece.recorded);
export const LISTING = 'record/listing'; // of every file's size and time when all was cold; it comes with the first extraction
const VOLUME_NAME = /^[A-Za-z0-9][\w.-]*$/;

/** Given the roots that are meant, returns the pieces: where each lies here, and where it is extracted to. Only looks. */
export async function findPieces(roots: Root[], stamp: string): Promise<Piece[]> {
  const mounts = mountPoints(), pieces: Piece[] = [];
  const add = (piece: Omit<Piece, 'staging' | 'files' | 'bytes'>) => pieces.push({ ...piece, staging: stagingFor(piece.place, stamp, mounts), files: 0, bytes: 0 });
  for (const { path: recorded, why, strict } of [...roots].sort((one, other) => one.path.length - other.path.length)) {
    const around = pieces.filter((piece) => isBelow(recorded, piece.recorded)).pop();
    const { place, isMade } = why.startsWith('volume ') ? await placeOfVolume(why.slice(7), recorded) : { place: realPlace(recorded), isMade: true };
    if (place === '') {
      warn(`${why} lies in memory here, as long as its containers run: it does not come back`);
      continue;
    }
    if (around && around.place + recorded.slice(around.recorded.length) === place && mounts.includes(place)) continue; // it is there already
    const facts = { recorded, why, strict, byNumber: why.startsWith('volume '), volume: isMade ? '' : why.slice(7) };
    const isInner = around !== undefined && around.place + recorded.slice(around.recorded.length) === place;
    add({ ...facts, place, isInner });
    if (isInner) pieces[pieces.length - 1]!.staging = around.staging;
    else for (const mount of mounts.filter((one) => one !== place && isBelow(one, place) && !pieces.some((piece) => piece.place === one))) {
      // Not on an image, a read-only export, or what a user has mounted for himself alone (fuse(8), allow_root): what the archive has for it is extracted with the piece around, and no swap touches a mount point.
      if ((await look(['test', '-w', mount])).code !== 0) {
        warn(`${named(mount)} is a mount point where nothing can be written: it stays as it is`);
        continue;
      }
      add({ ...facts, volume: '', place: mount, recorded: recorded + mount.slice(place.length), isInner: false });
    }
  }
  return pieces;
}

// The folders above may be links here; the place itself is what is exchanged.
function realPlace(file: string): string {
  const above = nearestFolder(path.dirname(file));
  return path.join(fs.realpathSync(above), file.slice(above.length));
}

/** A volume lies where Docker has the one of that name here; '' = in memory. A name that is a path was a bind mount. */
async function placeOfVolume(name: string, recorded: string): Promise<{ place: string; isMade: boolean }> {
  if (name.startsWith('/')) return { place: realPlace(recorded), isMade: true };
  if (!VOLUME_NAME.test(name)) throw new Problem(`volume ${named(name)}: the record of this archive cannot be trusted`);
  const done = await look(['docker', 'volume', 'inspect', '--format={{json .}}', name]);
  if (done.code === 0) {
    const facts = answerOf(`volume ${name}`, done, { Mountpoint: 'path', 'Options?': { '*': 'text' } });
    if (facts.Options?.type === 'tmpfs') return { place: '', isMade: true };
    if (facts.Options?.device) throw new Problem(`volume ${name} is mounted by Docker from elsewhere (${JSON.stringify(facts.Options)})`,
      { hint: 'restore it with --to, and copy it into a running container' });
    return { place: fs.existsSync(facts.Mountpoint) ? fs.realpathSync(facts.Mountpoint) : facts.Mountpoint, isMade: true };
  }
  const info = await look(['docker', 'info', '--format={{.DockerRootDir}}']);
  if (info.code !== 0) throw failure(`volume ${name}: Docker does not answer`, info, 'install and start Docker first, or name other parts');
  return { place: path.join(realPlace(info.out.trim()), 'volumes', name, '_data'), isMade: false };
}

/** Where a recorded path lies here; '' when it does not come back. */
export function whereIs(pieces: Piece[], recorded: string, where: (piece: Piece) => string): string {
  const piece = pieces.filter((one) => isBelow(recorded, one.recorded)).sort((one, other) => other.recorded.length - one.recorded.length)[0];
  return piece ? where(piece) + recorded.slice(piece.recorded.length) : '';
}

/**
 * Count what the archive holds of each piece. Throws Problem when a root is missing, a file is damaged, or a path would lead out of
 * the staging folder: borg writes through a link that an archive has laid before.
 */
export async function countPieces(settings: Settings, archive: string, pieces: Piece[]): Promise<void> {
  const links = new Map<string, string>(), why = watchEntries(links);
  let trouble = '', damaged = '';
  const onLine = (line: string) => {
    if (trouble) return;
    const one = parseEntry(line);
    trouble = one ? why(one) : 'a line of its listing cannot be read';
    if (!one || trouble) return;
    if (one.healthy === false) damaged ||= one.path;
    const piece = pieces.filter((each) => isBelow(`/${one.path}`, each.recorded)).sort((a, b) => b.recorded.length - a.recorded.length)[0];
    if (!piece) return;
    piece.files++;
    piece.bytes += one.type === '-' ? one.size : 0;
  };
  const done = await askBorg(settings, ['list', '--json-lines', `::${archive}`, asPattern(LISTING), ...pieces.map((piece) => asPattern(piece.recorded))], { onLine, keepBytes: 0 });
  if (done.code !== 0 && !borgOnlyWarned(done.code)) throw borgFailure(`${archive} cannot be listed`, done);
  const belowLink = pieces.find((piece) => [...links.keys()].some((link) => link !== piece.recorded && isBelow(piece.recorded, link))); // some come in a pass of their own
  if (trouble || belowLink) throw unsafe(archive, trouble || `${named(belowLink!.recorded)} lies below a link`);
  if (damaged) throw new Problem(`${named(`/${damaged}`)} in ${archive} is damaged: nothing of it is extracted`,
    { hint: 'restore an older archive, and let the operator audit the repository' });
  const full = pieces.filter((piece) => piece.files > 0), isHad = ({ place }: Piece) => full.some((one) => one.place === place); // a file named over a linked folder, and as it lies: borg saves it once
  const missing = pieces.find((piece) => !isHad(piece) && !mountPoints().includes(piece.place));
  if (missing) throw new Problem(`${named(missing.recorded)} is not in ${archive}`, { hint: 'node backup.js list shows what is' });
  for (const piece of pieces.filter((one) => !isHad(one))) warn(`${named(piece.place)} is a mount point, and the archive has nothing for it: it stays as it is`);
  const second = full.find((piece) => full.some((one) => one !== piece && one.place === piece.place));
  if (second) throw new Problem(`two paths of ${archive} lead to ${named(second.place)} here, over a link: ${full.filter((one) => one.place === second.place).map((one) => named(one.recorded)).join(' and ')}`, { hint: 'name one of the parts, or restore with --to' });
}

/** Given the pieces, returns why there is no room for old and new contents together; [] = there is. A disk may have several stagings: of its subvolumes, of what is mounted from it. */
export function whyNoRoom(pieces: Piece[]): string[] {
  const all = mounts(), points = mountPoints(), disks = new Map<string, { folder: string; needed: number }>();
  for (const { staging, bytes, files } of pieces.filter((piece) => piece.files > 0)) {
    const folder = path.dirname(staging), point = mountOf(folder, points), { device } = all.filter((one) => one.folder === point).pop()!;
    disks.set(device, { folder, needed: (disks.get(device)?.needed ?? 64e6) + bytes + files * 4096 });
  }
  return [...disks.values()].filter(({ folder, needed }) => freeBytes(folder) < needed)
    .map(({ folder, needed }) => `the disk of ${named(folder)} has ${size(freeBytes(folder))} free, ${size(needed)} are needed beside the old contents`);
}

/**
 * The commands that extract every piece beside its place, and the folder each runs in: one for each file system and kind of
 * owners. The first brings the listing, too.
 */
export function extractions(archive: string, pieces: Piece[]): { argv: string[]; cwd: string; bytes: number }[] {
  const ownOf = (cwd: string, byNumber: boolean) => pieces.filter((piece) => piece.staging === cwd && piece.byNumber === byNumber && piece.files > 0);
  const kinds = [...new Set(pieces.map((piece) => piece.staging))].flatMap((cwd) => [false, true].map((byNumber) => ({ cwd, byNumber, own: ownOf(cwd, byNumber) })));
  return kinds.filter(({ own }) => own.length > 0).map(({ cwd, byNumber, own }, index) => {
    const others = pieces.filter((piece) => !own.includes(piece) && own.some((one) => isBelow(piece.recorded, one.recorded)));
    return { cwd, bytes: own.reduce((sum, one) => sum + one.bytes, 0), argv: ['borg', '--log-json', '--progress', 'extract', '--sparse', ...(byNumber ? ['--numeric-ids'] : []),
      ...others.flatMap((piece) => ['--exclude', asPattern(piece.recorded)]), `::${archive}`, ...(index === 0 ? [asPattern(LISTING)] : []), ...outermost(own.map((piece) => piece.recorded)).map(asPattern)] };
  });
}

/** Extract every piece beside its place, while everything still runs, and see that it is whole. Throws Problem when it is not. */
export async function stage(settings: Settings, manifest: Manifest, pieces: Piece[], run: string): Promise<void> {
  const stagings = stagingsOf(pieces);
  const held = new Map(stagings.map((staging) => [staging, (fs.mkdirSync(staging, { mode: 0o700 }), heldFolder(staging))]));
  const commands = extractions(manifest.archive, pieces);
  for (const { argv, cwd } of commands) {
    const env = { ...borgEnvironment(settings, run), BORG_RELOCATED_REPO_ACCESS_IS_OK: 'yes' };
    const done = await change(argv, { cwd: held.get(cwd), env, onErrorLine: showProgress('extract').onLine });
    goOn(); // borg may have ended because somebody asked us to stop
    if (done.code !== 0) throw borgFailure('not everything could be extracted', done); // a warning, too: something of a file did not come back
  }
  await compareWithListing(manifest, pieces, commands[0]!.cwd);
  for (const cluster of manifest.plan.clusters) refuseBadCluster(manifest, cluster, pieces);
  for (const staging of stagings) {
    const done = await change(['sync', '--file-system', staging], { seconds: 3600 });
    if (done.code !== 0) throw failure('what was extracted cannot be brought to disk', done);
  }
}

// record/listing was written when everything was cold: every file below a stopped part must have come back with that size and time.
async function compareWithListing(manifest: Manifest, pieces: Piece[], folder: string): Promise<void> {
  const isWhole = (piece: Piece) => piece.files > 0 && piece.strict && (manifest.plan.exclude.length === 0 || piece.why.startsWith('cluster '));
  const roots = pieces.filter(isWhole).map((piece) => ({ recorded: latin(piece.recorded), staged: latin(staged(piece)) }));
  const [listing, told, seen, found] = [path.join(folder, LISTING), path.join(folder, '.told'), path.join(folder, '.seen'), path.join(folder, '.found')];
  if (!fs.lstatSync(listing, { throwIfNoEntry: false })?.isFile()) throw new Problem('this archive has no record/listing to compare with',
    { hint: 'restore an older one' });
  await reduce(listing, told, (file) => (roots.some((root) => isBelow(file, root.recorded)) ? file : null));
  const all = fs.openSync(found, 'wx', 0o600);
  const listed = roots.length === 0 ? null : await look(['find', ...pieces.filter(isWhole).map(staged), '-printf', '%y\\t\\t\\t\\t%s\\t%T@\\t\\t%p\\0'], { stdout: all, seconds: 24 * 3600 });
  fs.closeSync(all);
  if (listed && listed.code !== 0) throw failure('what was extracted cannot be listed', listed);
  const prefixes = [...new Set(pieces.map((piece) => latin(piece.staging)))];
  await reduce(found, seen, (file) => file.slice(prefixes.find((prefix) => isBelow(file, prefix))!.length));
  for (const file of [told, seen]) await lookFor('what was extracted cannot be compared', ['sort', '--zero-terminated', '--unique', `--output=${file}`, file], '', { seconds: 3600 });
  const unlike = await lookFor('what was extracted cannot be compared', ['comm', '--zero-terminated', '-3', told, seen], '', { seconds: 3600 });
  const differing = [...new Set(unlike.split('\0').filter((one) => one !== '').map((one) => one.replace(/^\t/, '').split('\t').slice(3).join('\t')))];
  if (differing.length === 0) return;
  throw new Problem(`not as they were saved: ${count(differing.length, 'file')}: ${differing.slice(0, 10).map(named).join(', ')}`,
    { hint: 'this archive is damaged, or its record is: restore an older one' });
}

const latin = (file: string) => Buffer.from(file).toString('latin1');

// Of a listing, what must be the same here: kind and path, of files size and time, too. borg saves no sockets. Seconds will do: not every file system keeps more.
async function reduce(from: string, to: string, pathOf: (file: string) => string | null): Promise<void> {
  const fd = fs.openSync(to, 'wx', 0o600);
  let lines: string[] = [];
  const flush = () => { fs.writeSync(fd, lines.join(''), null, 'latin1'); lines = []; };
  await eachRecord(from, (record) => {
    const [kind = '', , , , bytes = '', time = ''] = record.split('\t'), file = pathOf(latin(pathIn(record)));
    if (file !== null && kind !== 's') lines.push(`${kind}\t${kind === 'f' ? bytes : ''}\t${kind === 'f' ? time.replace(/\..*/, '') : ''}\t${file}\0`);
    if (lines.length > 10_000) flush();
  });
  flush();
  fs.closeSync(fd);
}

/** A cluster that comes back must have been shut down, be the one that was saved, and find what its links lead to. */
function refuseBadCluster({ plan, proof, containers }: Manifest, cluster: Manifest['plan']['clusters'][number], pieces: Piece[]): void {
  const folder = whereIs(pieces, cluster.dataDirectory, staged);
  if (!folder) return;
  const bad = (why: string, hint = 'restore an older archive') => new Problem(`cluster ${named(cluster.name)} of this archive would not start: ${why}`, { hint });
  if (!fs.lstatSync(folder, { throwIfNoEntry: false })?.isDirectory() || !fs.lstatSync(path.join(folder, 'global', 'pg_control'), { throwIfNoEntry: false })?.isFile()) throw bad('it has no control file');
  const { state, systemIdentifier } = controlState(folder), told = proof?.clusters.find((one) => one.dataDirectory === cluster.dataDirectory);
  if (!state.startsWith('shut down')) throw bad(`its state is "${state}"`);
  if (isThere(path.join(folder, 'postmaster.pid'))) throw bad('it was not shut down when it was saved');
  if (told && told.systemIdentifier !== systemIdentifier) throw bad('its control file is another cluster\'s');
  if (fs.statSync(folder).uid === 0) throw bad('it belongs to root');
  const mounts = (containers.find((one) => one.name === cluster.container)?.mounts ?? []).map((one): Mount => ({ type: one.type, name: one.name, source: one.source, destination: one.destination }));
  const spaces = path.join(folder, 'pg_tblspc'), oids = fs.lstatSync(spaces, { throwIfNoEntry: false })?.isDirectory() ? fs.readdirSync(spaces) : [];
  for (const link of ['pg_wal', ...oids.map((oid) => `pg_tblspc/${oid}`)]) {
    if (!fs.lstatSync(path.join(folder, link), { throwIfNoEntry: false })?.isSymbolicLink()) continue;
    const leads = path.resolve(cluster.dataDirectory, path.dirname(link), fs.readlinkSync(path.join(folder, link)));
    const target = cluster.container ? hostPathOf(leads, mounts) : leads;
    if (target && !whereIs(pieces, target, (piece) => piece.place) && !fs.existsSync(target)) throw bad(`its ${link} leads to ${named(target)}, which is not there and does not come back`,
      link === 'pg_wal' && whereIs(pieces, cluster.walFolder, (piece) => piece.place) ? `it lay in ${named(cluster.walFolder)}, over a link that no archive holds: ${pasteable(['mkdir', '-p', path.dirname(target)])} && ${pasteable(['ln', '-s', '-T', cluster.walFolder, target])}, then begin again` : undefined);
  }
  say(`cluster ${named(cluster.name)} was shut down when it was saved (${plan.archive})`);
}

/** The swaps of all pieces, as plain data. Given what was extracted. */
export function swapsOf(pieces: Piece[], stamp: string): ReturnType<typeof swapsFor> {
  const mounts = mountPoints(), each = pieces.filter((piece) => !piece.isInner && piece.files > 0).map((piece) => swapsFor(piece.place, staged(piece), stamp, mounts));
  return { swaps: each.flatMap((one) => one.swaps), folders: each.flatMap((one) => one.folders) };
}
