// Copy-on-write copies, for `snapshot: 'yes'`: made in an instant while everything is stopped.
// borg reads them while everything runs again, each in the way that was chosen for it.
// Changes: folders of its own, named .cold-backup-snapshot-…, beside what they are copies of, or above. They are on a list in
// the state folder before they are made, and whoever finds that list without its run (the guard, `recover`, the next run)
// removes them.
import fs from 'node:fs';
import path from 'node:path';
import { lastLines, named, warn } from './say.ts';
import { change, failure, goOn, look } from './shell.ts';
import type { Done } from './shell.ts';
import { writeDurably } from './files.ts';
import { deviceAndInode, markOfRun } from './processes.ts';
import { COPY_MARK, hasCopy, isOnWrite, liesIn, readWithOuter } from './ways.ts';
import type { Root } from './ways.ts';

const LONGEST_COPY_SECONDS = 86_400;

const listFile = (stateFolder: string) => path.join(stateFolder, 'snapshots.json');
/** The ways of the copies in words: 'subvolume, copy'; '' when there are none. */
export const waysIn = (roots: Root[]) => [...new Set(roots.filter(hasCopy).map((root) => root.way))].sort().reverse().join(', ');

export function noteCopies(stateFolder: string, roots: Root[]): void {
  writeDurably(listFile(stateFolder), `${JSON.stringify({ copies: roots.filter(hasCopy).map(({ way, copy }) => ({ way, copy })) }, null, 1)}\n`);
}

/**
 * Try one or two files of each path that is to be copied by reflink, while everything runs: xfs may have been made without it, and
 * one file of btrfs with the attribute C fails the whole copy. What cannot be is told, and read while everything is stopped.
 */
export async function tryReflinks(roots: Root[], run: string): Promise<void> {
  for (const root of roots.filter((one) => one.way === 'reflink')) {
    const sample = (await look(['find', root.path, '-type', 'f', '-size', '+16k', '-print', '-quit'])).out.replace(/\n$/, '') || root.path;
    let done = await tryReflink(sample, root.copy, run);
    const odd = done.code === 0 && root.because === 'on btrfs' ? await fileWithoutCopyOnWrite(root.path) : '';
    if (odd !== '') done = await tryReflink(odd, root.copy, run);
    if (done.code === 0) continue;
    warn(`no snapshot of ${named(root.path)}: ${lastLines(done.said, 1)} (xfs must have been made with reflink=1; on btrfs, files with the attribute C need a subvolume of their own)`);
    Object.assign(root, { way: 'cold', because: 'cp cannot copy it on write', copy: '' });
  }
  readWithOuter(roots);
}

async function tryReflink(file: string, copy: string, run: string): Promise<Done> {
  const done = await change(['cp', '--archive', '--reflink=always', '--no-target-directory', '--', file, copy], { env: markOfRun(run) });
  await change(['rm', '-rf', '--', copy], { unlimited: true });
  return done;
}

// The first file below a folder that has the attribute C (chattr(1)), as systemd gives it to its journals; '' when there is none, or nobody can tell.
async function fileWithoutCopyOnWrite(folder: string): Promise<string> {
  let found = '';
  const onLine = (line: string) => { found ||= /^\S*C\S* (\/.*)$/.exec(line)?.[1] ?? ''; }; // a name may have a second line
  await look(['find', folder, '-type', 'f', '-exec', 'lsattr', '--', '{}', '+'], { seconds: 600, keepBytes: 0, onLine });
  return found;
}

/** The command that makes each copy. */
export function copyCommands(roots: Root[]): string[][] {
  return roots.filter(hasCopy).map(({ path: from, way, copy }) => (way === 'subvolume' ? ['btrfs', 'subvolume', 'snapshot', '-r', from, copy]
    : ['cp', '--archive', `--reflink=${way === 'reflink' ? 'always' : 'auto'}`, '--no-target-directory', '--', from, copy]));
}

/** A snapshot writes first what is still in memory (btrfs-subvolume(8)); so does a reflink. Let that be done before anything is stopped. */
export async function flushDisks(roots: Root[]): Promise<void> {
  await look(['sync', '--file-system', ...roots.filter(isOnWrite).map((root) => root.path)], { seconds: 600 });
}

/**
 * Make the copies; everything is stopped. `run` marks what makes them: whoever finds the run dead ends it before it removes
 * them. Throws Problem when one cannot be made.
 */
export async function makeCopies(roots: Root[], run: string): Promise<void> {
  const ends = await Promise.allSettled(copyCommands(roots).map((argv) => change(argv, { seconds: LONGEST_COPY_SECONDS, env: markOfRun(run) }))); // all have ended before any is removed
  goOn(); // one may have ended because we were asked to
  for (const end of ends) {
    if (end.status === 'rejected') throw end.reason;
    if (end.value.code !== 0) throw failure('the snapshot could not be made', end.value);
  }
}

/** Remove every copy on the list, and the list. Never throws: what cannot be removed is warned of, and stays on it. */
export async function dropCopies(stateFolder: string): Promise<void> {
  let copies: { way: string; copy: string }[];
  try {
    copies = JSON.parse(fs.readFileSync(listFile(stateFolder), 'utf8')).copies;
  } catch {
    return;
  }
  try {
    const there = copies.filter(({ copy }) => path.isAbsolute(copy) && path.basename(copy).startsWith(COPY_MARK) && fs.existsSync(copy));
    for (const { way, copy } of there) {
      const done = await change(way === 'subvolume' ? ['btrfs', 'subvolume', 'delete', copy] : ['rm', '-rf', '--', copy], { unlimited: true });
      if (done.code !== 0 || fs.existsSync(copy)) warn(`${named(copy)}, a snapshot of ours, could not be removed: ${done.said.trim()}`);
    }
    if (there.every(({ copy }) => !fs.existsSync(copy))) fs.rmSync(listFile(stateFolder), { force: true });
  } catch (error: any) { // a damaged list, or a file system that has become read-only
    warn(`snapshots of ours could not be removed: ${error.message}`);
  }
}

export const hasCopies = (stateFolder: string) => fs.existsSync(listFile(stateFolder));

/**
 * The words that run a command to which the copies lie where the originals lie: in a mount namespace of its own, which is gone with
 * the command, however that ends (mount_namespaces(7)).
 */
export function inCopies(roots: Root[], argv: string[]): string[] {
  const pairs = roots.filter(hasCopy).sort((one, other) => one.path.length - other.path.length).flatMap((root) => [root.copy, root.path]);
  if (pairs.length === 0) return argv;
  return ['unshare', '--mount', '--propagation', 'private', '--', 'sh', '-c', BIND, 'sh', String(pairs.length / 2), ...pairs, ...argv];
}

const BIND = 'n=$1; shift; while [ "$n" -gt 0 ]; do mount --bind "$1" "$2" || exit 2; shift 2; n=$((n - 1)); done; exec "$@"';

/** Where the copy of a file lies; the file itself when there is none. */
export function copyOf(file: string, roots: Root[]): string {
  const [root] = roots.filter((one) => hasCopy(one) && (one.path === file || liesIn(file, one.path))).sort((one, other) => other.path.length - one.path.length); // the innermost is mounted on top
  return root ? `${root.copy}${file.slice(root.path.length)}` : file;
}

/**
 * What every original is, to be compared when borg has read its copy: one that was moved away takes the mount on it along,
 * and borg reads what runs.
 */
export function whatLies(roots: Root[]): string {
  return roots.filter(hasCopy).map((root) => `${root.path} ${deviceAndInode(root.path)}`).join('\n');
}
