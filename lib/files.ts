// Files and folders, as root may read and write them where others can lay links and pipes.
// Nothing here follows a link, waits for a pipe, or leaves half a file behind. Changes the files that it is given, nothing else.
import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { Problem, named } from './say.ts';

/** Whether a path is the folder or lies below it. */
export function isBelow(file: string, folder: string): boolean {
  return file === folder || file.startsWith(folder === '/' ? '/' : `${folder}/`);
}

/** Given paths, returns those that lie below no other one, each once: borg is not to be given what it finds on its way. */
export const outermost = (places: string[]) => [...new Set(places)].filter((one, _, all) => !all.some((other) => other !== one && isBelow(one, other)));

/**
 * What stands in a file that somebody else could have laid there: no link, no pipe (which would keep us for ever), no device, not endless.
 * Given the path and the most bytes it may have. Throws as fs does, and for anything but an ordinary file.
 */
export function readPlainFile(file: string, mostBytes = 1 << 20): Buffer {
  const refuseOdd = (facts: fs.Stats) => { if (!facts.isFile() || facts.size > mostBytes) throw new Error(`${file} is no ordinary file`); };
  refuseOdd(fs.lstatSync(file)); // to open a device may do something
  const fd = fs.openSync(file, fs.constants.O_RDONLY | fs.constants.O_NOFOLLOW | fs.constants.O_NONBLOCK);
  try {
    refuseOdd(fs.fstatSync(fd));
    return fs.readFileSync(fd);
  } finally {
    fs.closeSync(fd);
  }
}

/** The same as text, '' when it cannot be had. */
export function plainText(file: string, mostBytes?: number): string {
  try {
    return readPlainFile(file, mostBytes).toString();
  } catch {
    return '';
  }
}

/**
 * Given a folder that we have just made, empty and ours alone, returns a path by which it stays the same folder as long as this process lives: who owns the
 * folder above could rename it and lay a link in its place, for root to write through. Throws Problem when that has happened already.
 */
export function heldFolder(folder: string): string {
  try {
    const fd = fs.openSync(folder, fs.constants.O_RDONLY | fs.constants.O_DIRECTORY | fs.constants.O_NOFOLLOW), held = `/proc/${process.pid}/fd/${fd}`; // open until we end
    const { uid, mode } = fs.fstatSync(fd);
    if (uid === process.getuid?.() && (mode & 0o022) === 0 && fs.readdirSync(held).length === 0) return held;
  } catch { /* a link, or gone */ }
  throw new Problem(`${named(folder)} is not the folder that was made just now: somebody else can write there`,
    { hint: 'restore into a folder that only root can change' });
}

/** Given a path that is there, returns the paths by which it is saved, over no link: what it leads to, and before that the link, when it is one itself. */
export function withItsLink(file: string): string[] {
  return [...new Set([path.join(fs.realpathSync(path.dirname(file)), path.basename(file)), fs.realpathSync(file)])];
}

/** Bytes that are free for us on the disk of a folder. */
export function freeBytes(folder: string): number {
  if (!fs.statfsSync) return Infinity; // before Node 18.15
  const { bavail, bsize } = fs.statfsSync(folder);
  return bavail * bsize;
}

/** Write a file so that it is whole or absent, whatever happens, a power cut included. Given mode 0600 unless told. */
export function writeDurably(file: string, text: string, fileMode = 0o600): void {
  const draft = `${file}.new`;
  fs.rmSync(draft, { force: true });
  const fd = fs.openSync(draft, 'wx', fileMode); // wx: never through a link that somebody else laid there
  try {
    fs.writeFileSync(fd, text);
    fs.fsyncSync(fd);
  } finally {
    fs.closeSync(fd);
  }
  fs.renameSync(draft, file);
  const folder = fs.openSync(path.dirname(file), 'r');
  fs.fsyncSync(folder);
  fs.closeSync(folder);
}

/** A folder of our own that goes when we do. */
export function temporaryFolder(): string {
  const folder = fs.mkdtempSync(path.join(os.tmpdir(), 'cold-backup-'));
  process.on('exit', () => fs.rmSync(folder, { recursive: true, force: true }));
  return folder;
}
