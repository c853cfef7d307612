// The swap: what was restored takes its place, and the old contents go aside, by rename(2) alone.
// Each rename is done or not done, whatever happens. Everything is in the ledger before the first of them. Whoever comes later
// decides by what lies on the disk. Of one swap:
//   staged is there, aside is not      not begun: the place is as it was
//   staged is there, and so is aside   half: the old contents are aside, the place is free
//   staged has gone, the place is there   done
//   neither of them is there           nobody knows (a disk is not mounted): nothing is started
// (When the archive has nothing for a place, staged is '': done when the place is free.) All swaps done is the new state;
// anything else is rolled back to the old one. Renames only what the ledger names, removes only stagings; nothing old is ever
// deleted.
import fs from 'node:fs';
import path from 'node:path';
import { Problem, lastLines, named, pasteable, say, warn } from './say.ts';
import { change, hasSystemd } from './shell.ts';
import { isBelow, writeDurably } from './files.ts';
import { mounts } from './ways.ts';
import { STAGING, ledgerFile } from './ledger.ts';
import type { FolderFacts, Ledger, Restore, Swap } from './ledger.ts';

/** Whether something lies there, be it a link that leads nowhere. */
export const isThere = (file: string) => fs.lstatSync(file, { throwIfNoEntry: false }) !== undefined;

function stateOfSwap({ place, staged, aside }: Swap): 'not begun' | 'half' | 'done' | 'unknown' {
  if (staged === '') return isThere(place) && !isThere(aside) ? 'not begun' : 'done';
  if (isThere(staged)) return isThere(aside) ? 'half' : 'not begun';
  return isThere(place) ? 'done' : 'unknown';
}

/** Make every swap. Throws what rename(2) throws: then settleSwaps() rolls back. */
export function makeSwaps({ swaps, stamp }: Restore): void {
  for (const swap of swaps) {
    if (isThere(swap.place)) {
      fs.mkdirSync(path.dirname(swap.aside), { recursive: true, mode: 0o700 });
      rename(swap.place, swap.aside);
    }
    if (swap.staged) intoPlace(swap.staged, swap.place, stamp);
  }
}

// rename(2) in the very folders that the paths name: who owns a folder on the way could have laid a link there, for root to move things through.
function rename(from: string, to: string): void {
  const opened: number[] = [];
  const inItsFolder = (file: string) => {
    const folder = path.dirname(file), fd = fs.openSync(folder, fs.constants.O_RDONLY | fs.constants.O_DIRECTORY);
    opened.push(fd);
    const is = fs.readlinkSync(`/proc/self/fd/${fd}`);
    if (is !== folder) throw new Problem(`${named(folder)} is now ${named(is)}: somebody laid a link on the way, and nothing is moved through it`);
    return `/proc/self/fd/${fd}/${path.basename(file)}`;
  };
  try {
    fs.renameSync(inItsFolder(from), inItsFolder(to));
  } catch (error: any) {
    if (error.code !== 'EXDEV') throw error;
    throw new Problem(`${named(from)} cannot be moved to ${named(to)}: they do not lie on one file system`,
      { hint: `is this an overlay (a container, a live system)? What its lower layer brought cannot be renamed there: make the folder its own first, with cp -a beside it, rm -r, mv` });
  } finally {
    opened.forEach((fd) => fs.closeSync(fd));
  }
}

// Somebody may have made something in a place while it was free: it is kept, too.
function intoPlace(from: string, place: string, stamp: string): void {
  if (isThere(place)) rename(place, `${place}.stray-${stamp}`);
  rename(from, place);
}

function undoSwap(swap: Swap, stamp: string): void {
  if (stateOfSwap(swap) === 'done' && swap.staged) rename(swap.place, swap.staged);
  if (isThere(swap.aside)) intoPlace(swap.aside, swap.place, stamp);
}

/**
 * Given a restore whose run is over, or has made its swaps, sees whether all are made: then the new state it is, else all are undone.
 * May be called as often as one likes. Throws Problem when a disk that holds a place is not there.
 */
export function settleSwaps(restore: Restore): 'new' | 'old' {
  const states = restore.swaps.map(stateOfSwap), lost = restore.swaps[states.indexOf('unknown')];
  if (lost) throw new Problem(`neither the old nor the new contents of ${named(lost.place)} can be seen`,
    { exitCode: 3, hint: 'is its disk mounted? Mount it, then run `node backup.js recover`' });
  const isNew = states.length > 0 && states.every((state) => state === 'done');
  if (!isNew) for (const swap of [...restore.swaps].reverse()) undoSwap(swap, restore.stamp);
  for (const { path: folder, before, after } of restore.folders) giveFolder(folder, isNew ? after : before);
  if (!isNew) for (const folder of [...restore.swaps.map(({ aside }) => path.dirname(aside)), ...restore.made]) removeIfEmpty(folder, restore);
  const touched = new Set(restore.swaps.flatMap(({ place, staged, aside }) => [place, staged || place, aside].map((file) => path.dirname(file))));
  for (const folder of touched) syncFolder(folder);
  return isNew ? 'new' : 'old';
}

/** Give a folder to somebody: the folder itself, never what a link in its place leads to. */
export function giveFolder(folder: string, { mode, uid, gid }: FolderFacts): void {
  if (!isThere(folder)) return;
  const fd = fs.openSync(folder, fs.constants.O_RDONLY | fs.constants.O_DIRECTORY | fs.constants.O_NOFOLLOW);
  try {
    fs.fchownSync(fd, uid, gid);
    fs.fchmodSync(fd, mode);
  } finally {
    fs.closeSync(fd);
  }
}

function removeIfEmpty(folder: string, { made, stamp }: Restore): void {
  for (let one = folder; made.includes(one) || one.includes(stamp); one = path.dirname(one)) {
    try {
      fs.rmdirSync(one);
    } catch { return; } // it holds something, or has gone
  }
}

// A rename is on the disk when its folder is (fsync(2)); what runs on the new state must never find itself back in the old one.
function syncFolder(folder: string): void {
  if (!isThere(folder)) return;
  const fd = fs.openSync(folder, 'r');
  try {
    fs.fsyncSync(fd);
  } finally {
    fs.closeSync(fd);
  }
}

/** Remove the folders with what was extracted and did not come into its place. */
export async function removeStagings({ stagings }: Restore): Promise<void> {
  for (const folder of stagings.filter((one) => path.basename(one).startsWith(STAGING) && isThere(one))) {
    const done = await change(['rm', '-rf', '--one-file-system', '--', folder], { unlimited: true }); // rm(1) is not led astray by who swaps folders for links meanwhile; Node's own way is
    if (done.code !== 0) warn(`${named(folder)} cannot be removed: ${lastLines(done.said, 1)}`);
  }
}

/** In the new state things run that did not run here before: given a settled ledger, notes them as parts to start. */
export function noteLater(ledger: Ledger): void {
  const now = new Date().toISOString();
  const more = ledger.restore!.later.filter((part) => !ledger.parts.some((one) => one.name === part.name));
  ledger.parts.push(...more.map((part) => ({ ...part, askedAt: now, stoppedAt: now, runningAt: null })));
  ledger.parts.sort((one, other) => one.group - other.group);
}

/** The commands that lead from the new state back to the old one, to be pasted. */
export function wayBack(stateFolder: string, ledger: Ledger, isOpen: boolean): string[][] {
  const { swaps, stamp, folders } = ledger.restore!, parts = ledger.parts, mounts = mountPoints();
  const away = (aside: string) => aside.replace(`before-restore-${stamp}`, `restored-${stamp}`);
  const opened = new Map(swaps.map(({ place, aside }) => [path.dirname(place), path.dirname(aside)])), isEntry = ({ place }: Swap) => folders.some((one) => one.path === path.dirname(place));
  const entries = (folder: string, to: string, except: string[]) => ['find', folder, '-mindepth', '1', '-maxdepth', '1', ...except.flatMap((name) => ['-not', '-name', name]), '-exec', 'mv', '-t', to, '--', '{}', '+'];
  const around = (folder: string) => fs.readdirSync(folder).filter((name) => mounts.some((one) => isBelow(one, path.join(folder, name))));
  return [
    ...(isOpen ? [['rm', ledgerFile(stateFolder)]] : []), // else the guard would start what it finds stopped
    ...parts.filter((part) => part.stop.length > 0).map((part) => part.stop),
    ...[...swaps].reverse().filter((swap) => !isEntry(swap)).flatMap(({ place, aside }) => [
      ...(path.dirname(aside) === path.dirname(place) ? [] : [['mkdir', '-p', '-m', '700', path.dirname(away(aside))]]),
      ['mv', '-T', '--', place, away(aside)], ...(isThere(aside) ? [['mv', '-T', '--', aside, place]] : [])]),
    ...folders.filter((one) => opened.has(one.path) && isThere(one.path)).flatMap(({ path: folder, before }) => {
      const aside = opened.get(folder)!, stays = ['lost+found', `${STAGING}*`, 'before-restore-????-??-??T??????', 'restored-????-??-??T??????', ...around(folder)];
      return [['mkdir', '-p', '-m', '700', away(aside)], entries(folder, away(aside), stays),
        ...(isThere(aside) ? [entries(aside, folder, around(folder))] : []), ['chown', `${before.uid}:${before.gid}`, folder], ['chmod', before.mode.toString(8), folder]];
    }),
    ...[...parts].reverse().map((part) => part.start),
  ];
}

const RESTORE_NOTE = 'last-restore.txt';

/** What came of a restore, for people: which state runs, where the other one lies, how to get there. Kept in the state folder, and returned. */
export function tellRestore(stateFolder: string, ledger: Ledger, isOpen: boolean): string {
  const { archive, swaps, state } = ledger.restore!;
  if (state === '') return ''; // a disk is missing: nobody knows yet
  const asides = tops(swaps.map(({ aside }) => aside).filter(isThere));
  const text = state === 'old' ? `The old contents are in place; nothing of ${archive} is. The other way: the same restore of ${archive} again, with the same parts`
    : [`The contents of ${archive} are in place. The old ones lie in:`, ...asides.map((one) => `  ${named(one)}`), ...(asides.length === 0 ? ['  (there were none)'] : []),
      'Back to the old ones, with these commands:', ...wayBack(stateFolder, ledger, isOpen).map((argv) => `  ${pasteable(argv)}`),
      ...(asides.length > 0 ? ['When you need the old ones no more:', `  ${pasteable(['rm', '-rf', '--', ...asides])}`] : [])].join('\n');
  try {
    writeDurably(path.join(stateFolder, RESTORE_NOTE), `${ledger.startedAt}\n${text}\n`);
  } catch (error: any) {
    warn(`${RESTORE_NOTE} cannot be written: ${error.message}`);
  }
  return text;
}

// What lies aside, each folder once: those of a mount point's entries are all in one.
function tops(asides: string[]): string[] {
  return [...new Set(asides.map((one) => /^(.*?\bbefore-restore-[^/]*)\//.exec(one)?.[1] ?? one))];
}

/**
 * Given the ledger of a restore, settles its swaps, notes what runs in the new state, and shows systemd new units. The
 * stagings stay until things have been started.
 */
export async function settleRestore(ledger: Ledger): Promise<void> {
  const restore = ledger.restore!;
  if (restore.state !== '') return;
  restore.state = settleSwaps(restore);
  if (restore.state === 'new') noteLater(ledger);
  const hasUnits = restore.swaps.some(({ place }) => /^\/(etc|usr|lib)\//.test(place)); // or configuration that a generator reads
  if (restore.state === 'new' && hasUnits && hasSystemd()) { // whatever comes of it, things have to be started
    await change(['timeout', '-k', '5', '60', 'systemctl', 'daemon-reload'], { unlimited: true }).catch((error) => warn(`systemd has not been told of new units: ${error.message}`));
  }
  say(restore.state === 'new' ? `the restore of ${restore.archive} had put everything in its place: the new contents stay` : `the restore of ${restore.archive} was not through: the old contents are in place`);
}

// ---- where things can be swapped ----

/** Every mount point of this machine, read anew. */
export function mountPoints(): string[] {
  return [...new Set(mounts().map((mount) => mount.folder))];
}

export const mountOf = (file: string, mounts: string[]) => mounts.filter((one) => isBelow(file, one)).reduce((best, one) => (one.length > best.length ? one : best), '/');

/** Given an absolute path, returns the nearest folder at or above it that is there. */
export function nearestFolder(file: string): string {
  let folder = file;
  while (!fs.statSync(folder, { throwIfNoEntry: false })?.isDirectory()) folder = path.dirname(folder);
  return folder;
}

/** Where to extract what will be renamed into a place: the topmost folder of the same file system and mount, so that rename(2) works. */
export function stagingFor(place: string, stamp: string, mounts: string[]): string {
  let top = mounts.includes(place) ? place : nearestFolder(path.dirname(place));
  const device = fs.statSync(top).dev, mount = mountOf(top, mounts);
  while (top !== '/' && fs.statSync(path.dirname(top)).dev === device && mountOf(path.dirname(top), mounts) === mount) top = path.dirname(top);
  return path.join(top, `${STAGING}${stamp}`);
}

// Below /etc/postgresql every folder is taken for a cluster (pg_lsclusters(1)).
const asideOf = (place: string, stamp: string) => (isBelow(place, '/etc/postgresql') ? place.replace('/etc/postgresql', `/etc/postgresql.before-restore-${stamp}`) : `${place}.before-restore-${stamp}`);

/** The swaps that put `staged` in its place. What is a mount point, or holds one, stays where it is: then its entries are swapped one by one. */
export function swapsFor(place: string, staged: string, stamp: string, mounts: string[]): Pick<Restore, 'swaps' | 'folders'> {
  if (!mounts.some((one) => isBelow(one, place))) return { swaps: [{ place, staged, aside: asideOf(place, stamp) }], folders: [] };
  const found: Pick<Restore, 'swaps' | 'folders'> = { swaps: [], folders: [] };
  const walk = (folder: string, from: string, aside: string) => {
    if (isThere(from)) found.folders.push({ path: folder, before: factsOf(folder), after: factsOf(from) });
    const isOurs = (name: string) => name === 'lost+found' || name.startsWith(STAGING) || /^(before-restore|restored)-\d{4}-\d\d-\d\dT\d{6}$/.test(name); // restored-photos is not
    const names = new Set([folder, from].filter(isThere).flatMap((one) => fs.readdirSync(one)).filter((name) => !isOurs(name)));
    for (const name of names) {
      const [own, next, beside] = [path.join(folder, name), path.join(from, name), path.join(aside, name)];
      if (mounts.includes(own)) continue; // a piece of its own
      if (mounts.some((one) => isBelow(one, own))) walk(own, next, beside);
      else found.swaps.push({ place: own, staged: isThere(next) ? next : '', aside: beside });
    }
  };
  walk(place, staged, mounts.includes(place) ? path.join(place, `before-restore-${stamp}`) : asideOf(place, stamp));
  return found;
}

function factsOf(folder: string): FolderFacts {
  const { mode, uid, gid } = fs.statSync(folder);
  return { mode: mode & 0o7777, uid, gid };
}
