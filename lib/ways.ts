// Ways: how each path gets into the archive when `snapshot` is 'yes', and why.
// A btrfs subvolume is snapshotted; other folders on btrfs and xfs are copied by reflink; small ones are simply copied; what
// allows none of these is read while everything is stopped, as without a snapshot. Only looks, before the stop and at the
// space while the copies are read.
import fs from 'node:fs';
import path from 'node:path';
import { named, size, warn } from './say.ts';
import { look } from './shell.ts';
import { isBelow } from './files.ts';
import { isOursAlone } from './check.ts';

/** How a path gets into the archive. cold: read where it lies, while all is stopped; link: it holds nothing itself. */
export type Way = 'cold' | 'link' | 'copy' | 'reflink' | 'subvolume';
/** A path to save. strict: everything that writes below it is stopped, so nothing may change there while it is copied. */
export type Root = { path: string; why: string; strict: boolean; way: Way; because: string; copy: string; id?: string };

export const COPY_MARK = '.cold-backup-snapshot-';
const SMALL_FOLDER = { files: 500, bytes: 16e6 };
const LEAST_FREE = 256e6;
const FREE_SHARE = 0.1; // of what lies on the file system: blocks that are written while a copy is there are new ones

type Mount = { folder: string; type: string; device: string };

/** Where file systems are mounted (proc(5), mountinfo); the last one of a folder is the one that is seen. */
export function mounts(): Mount[] {
  const plain = (word: string) => word.replace(/\\(\d{3})/g, (_, octal) => String.fromCharCode(parseInt(octal, 8)));
  return fs.readFileSync('/proc/self/mountinfo', 'latin1').trimEnd().split('\n').map((line) => {
    const [left = '', right = ''] = line.split(' - ');
    return { folder: Buffer.from(plain(left.split(' ')[4] ?? ''), 'latin1').toString(), type: right.split(' ')[0] ?? '', device: left.split(' ')[2] ?? '' };
  });
}

export const hasCopy = (root: Root) => root.copy !== '';
export const liesIn = (file: string, folder: string) => file !== folder && isBelow(file, folder);

/** Given the paths to save, returns them with the way of each, and why. Looks only. `run` names the copies. */
export async function chooseWays(roots: Root[], stateFolder: string, run: string): Promise<Root[]> {
  const all = mounts(), hasBtrfs = (await look(['btrfs', '--version'])).code === 0;
  const chosen: Root[] = [];
  for (const [index, root] of roots.entries()) chosen.push({ ...root, ...await wayOf(root.path, `${COPY_MARK}${run.slice(0, 8)}-${index}`, { roots, all, hasBtrfs, stateFolder }) });
  const short = withoutSpace(chosen);
  for (const [folder, why] of short) {
    warn(`no snapshot of ${named(folder)}: ${why}`);
    Object.assign(chosen.find((one) => one.path === folder)!, { way: 'cold', because: why, copy: '' });
  }
  readWithOuter(chosen);
  const isWorthIt = chosen.some((one) => one.way === 'subvolume' || one.way === 'reflink') || !chosen.some((one) => one.way === 'cold');
  if (isWorthIt) return chosen;
  return chosen.map((one) => (one.way === 'cold' ? one : { ...one, way: 'cold', because: 'nothing is snapshotted, so it is read with the others', copy: '' }));
}

// borg reads a path inside one that is read cold with that one. A copy of it, too, would be listed twice.
export function readWithOuter(roots: Root[]): void {
  const inner = roots.filter((one) => hasCopy(one) && roots.some((outer) => outer.way === 'cold' && liesIn(one.path, outer.path)));
  for (const one of inner) Object.assign(one, { way: 'cold', because: 'it is read with what it lies in', copy: '' });
}

type Around = { roots: Root[]; all: Mount[]; hasBtrfs: boolean; stateFolder: string };

async function wayOf(folder: string, name: string, { roots, all, hasBtrfs, stateFolder }: Around): Promise<Pick<Root, 'way' | 'because' | 'copy'>> {
  const cold = (because: string) => ({ way: 'cold' as const, because, copy: '' });
  const facts = fs.lstatSync(folder), mountOf = (file: string) => all.filter((one) => isBelow(file, one.folder)).sort((one, other) => one.folder.length - other.folder.length).pop()!;
  if (!facts.isDirectory() && !facts.isFile()) return { way: 'link', because: 'it holds nothing itself', copy: '' };
  if (process.getuid?.() !== 0) return cold('a snapshot needs root');
  if (stateFolder === folder || liesIn(stateFolder, folder)) return cold('the state folder lies in it');
  const inside = all.find((one) => liesIn(one.folder, folder)), own = mountOf(folder);
  if (inside) return cold(`${named(inside.folder)} is mounted in it`);
  const top = roots.map((root) => root.path).filter((one) => liesIn(folder, one)).sort((one, other) => one.length - other.length)[0] ?? folder; // a copy must not lie in what is saved
  // Whoever owns the folder beside could swap the copy there for a link, and have root write or delete where it leads: then it lies further up.
  let beside = path.dirname(top);
  while (beside !== '/' && mountOf(beside) === own && !isOursAlone(beside)) beside = path.dirname(beside);
  const isMount = own.folder === folder, isBesideSame = mountOf(beside) === own && isOursAlone(beside);
  const isSubvolume = own.type === 'btrfs' && facts.isDirectory() && facts.ino === 256; // the number of every subvolume's own folder
  if (isSubvolume && hasBtrfs && (isBesideSame || (top === folder && isOursAlone(folder)))) {
    const nested = await look(['btrfs', 'subvolume', 'list', '-o', folder]);
    if (nested.code === 0 && nested.out.trim() === '') return { way: 'subvolume', because: 'a subvolume of btrfs', copy: path.join(isBesideSame ? beside : folder, name) };
  }
  if (isSmall(folder)) return { way: 'copy', because: 'it is small', copy: path.join(stateFolder, name) };
  if (own.type !== 'btrfs' && own.type !== 'xfs') return cold(`${own.type} cannot copy on write`);
  if (isMount || mountOf(path.dirname(top)) !== own) return cold(`${named(isMount ? folder : top)} is a mount point: there is no place for a copy beside it`);
  if (!isBesideSame) return cold(`others than root could change ${named(own.folder)}, where the copy would lie: let that folder itself belong to root`);
  return { way: 'reflink', because: `on ${own.type}`, copy: path.join(beside, name) };
}

function isSmall(folder: string): boolean {
  let files = 0, bytes = 0;
  const walk = (file: string): boolean => {
    const facts = fs.lstatSync(file);
    files++;
    bytes += facts.isFile() ? facts.size : 0;
    if (files > SMALL_FOLDER.files || bytes > SMALL_FOLDER.bytes) return false;
    return !facts.isDirectory() || namesIn(file, SMALL_FOLDER.files + 1).every((name) => walk(path.join(file, name)));
  };
  try {
    return walk(folder);
  } catch { // it is changing just now
    return false;
  }
}

// The first names of a folder; it may hold a million.
function namesIn(folder: string, most: number): string[] {
  const names: string[] = [], opened = fs.opendirSync(folder);
  for (let one = opened.readSync(); one !== null && names.length < most; one = opened.readSync()) names.push(one.name);
  opened.closeSync();
  return names;
}

export const isOnWrite = (root: Root) => root.way === 'subvolume' || root.way === 'reflink';

/** What a file system must have free while a copy on write lies on it, in bytes. */
function neededOn(folder: string): { free: number; needed: number } {
  const { bavail, bfree, blocks, bsize } = fs.statfsSync(folder);
  return { free: bavail * bsize, needed: Math.max(LEAST_FREE, FREE_SHARE * (blocks - bfree) * bsize) };
}

// A full disk is a PANIC for PostgreSQL, so without room for what is written while borg reads there is no snapshot.
function withoutSpace(roots: Root[]): Map<string, string> {
  const found = new Map<string, string>();
  for (const root of roots.filter(isOnWrite)) {
    if (!fs.statfsSync) found.set(root.path, 'this Node.js does not tell how much space is free: 18.15 or newer does');
    else {
      const { free, needed } = neededOn(path.dirname(root.copy));
      if (free < needed) found.set(root.path, `only ${size(free)} are free there, and ${size(needed)} are needed for what is written while borg reads`);
    }
  }
  return found;
}

/** Watch the space while borg reads the copies; `onShort` is called once, when half of what was needed is gone. Returns a function that ends it. */
export function watchSpace(roots: Root[], onShort: (why: string) => void): () => void {
  const places = [...new Set(roots.filter(isOnWrite).map((root) => path.dirname(root.copy)))].map((folder) => ({ folder, least: neededOn(folder).needed / 2 }));
  const shortOf = () => {
    for (const { folder, least } of places) {
      const { free } = neededOn(folder);
      if (free < least) return `only ${size(free)} are left in ${named(folder)}: the snapshot is given up before the disk is full`;
    }
    return '';
  };
  const timer = setInterval(() => {
    let why = '';
    try {
      why = shortOf();
    } catch (error: any) { // the folder of the copies is gone, or its disk is
      why = `the space for the snapshot cannot be seen: ${error.message}`;
    }
    if (why === '') return;
    clearInterval(timer);
    onShort(why);
  }, 500);
  return () => clearInterval(timer);
}

/** How a path is read when a snapshot is asked for, in words. */
export function howRead({ way, because }: Root): string {
  return way === 'cold' ? `no snapshot, it is read while everything is stopped: ${because}` : `${way === 'subvolume' ? 'snapshot' : way}: ${because}`;
}
