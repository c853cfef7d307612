// The proof that what is copied is cold, taken before the cold pass and again after it.
// Both times everything is stopped. Reads the clusters' control files, the process list, the containers' exit codes, and size
// and times of every saved file. Writes only its listings in the state folder.
import { createHash } from 'node:crypto';
import fs from 'node:fs';
import { Problem, TOLD_NAMES, count, named, say, someNames, warn } from './say.ts';
import { failure, look } from './shell.ts';
import { judgeStopped } from './units.ts';
import type { Part } from './units.ts';
import { containerState } from './containers.ts';
import { controlState, isUsed, whyNotCold } from './postmaster.ts';
import { deviceAndInode, markOfRun } from './processes.ts';
import { isBelow, outermost } from './files.ts';
import type { Plan } from './plan.ts';
import { copyOf, inCopies } from './snapshot.ts';
import type { Root } from './ways.ts';

/** What was seen when everything was stopped. */
export type Proof = {
  provenAt: string;
  clusters: { name: string; dataDirectory: string; state: string; systemIdentifier: string }[];
  listingSha256: string;
  files: number;
};

// type, mode, uid, gid, bytes, modified, changed, path; NUL at the end, because a name may hold anything else
export const LISTING_FORMAT = '%y\\t%m\\t%U\\t%G\\t%s\\t%T@\\t%C@\\t%p\\0';
const KILLED = 137; // 128 + SIGKILL
const LONGEST_RECORD = 1 << 20;

/**
 * Prove that everything the plan saves is cold, and write the listing of it to `file`. Returns the proof.
 * Throws Problem when a cluster is not cleanly shut down, is in use, when a part runs, a container with a database was killed, or a folder is another one.
 */
export async function prove(plan: Plan, file: string): Promise<Proof> {
  plan.roots.forEach(refuseOtherFolder);
  await refuseWhatRuns(plan.parts);
  const clusters = plan.clusters.map(({ name, dataDirectory }) => {
    const why = whyNotCold(dataDirectory);
    if (why.length > 0) throw new Problem(`cluster ${named(name)} is not proven cold: ${why.join(', ')}`,
      { hint: 'start it, let it recover, stop it by hand and look at its log' });
    return { name, dataDirectory, ...controlState(dataDirectory) };
  });
  return { provenAt: new Date().toISOString(), clusters, ...await writeListing(plan, file, plan.roots.filter((root) => root.way !== 'subvolume')) };
}

// borg passes over a root that is gone with a warning that names no file, and saves an empty folder where something was unmounted by what was stopped.
function refuseOtherFolder({ path: file, why, id }: Root): void {
  const isThere = fs.existsSync(file), now = deviceAndInode(file), deviceOf = (one: string) => one.split(':')[0];
  if (isThere && (now === id || !fs.statSync(file).isDirectory())) return;
  if (isThere && deviceOf(now) === deviceOf(id ?? '') && fs.readdirSync(file).length > 0) return; // replaced as a whole, on the same disk
  throw new Problem(`${named(file)} (${why}) is ${isThere ? 'another folder now' : 'gone'}: it was there when the run began`,
    { hint: 'is something unmounted, or moved, since the others stopped? This archive does not count as a backup' });
}

// Also of parts that did not run when the plan was made: what came up since may write.
async function refuseWhatRuns(parts: Part[]): Promise<void> {
  const units = parts.flatMap(({ kind, unit }) => (kind === 'service' && unit ? [unit] : [])), { running, killed } = await judgeStopped(units);
  if (running.length > 0) throw new Problem(`service ${running[0]} runs: something started it while it should be stopped`, { hint: `look at \`journalctl --unit ${running[0]}\` for who did` });
  for (const { unit, wasRunning } of parts) if (wasRunning && killed.includes(unit ?? '')) warn(`service ${unit} had to be killed, or crashed: it did not stop by itself in its time`);
  for (const { name, container, database, dataDirectory, wasRunning } of parts) {
    if (!container) continue;
    const { exitCode, state } = await containerState(container), hint = `look at \`docker logs ${container}\``;
    if (state === 'running') throw new Problem(`${name} runs: something started it while it should be stopped`, { hint: `${hint} for who did` });
    if (!wasRunning) continue;
    if (state !== 'stopped') throw new Problem(`${name} cannot be seen stopped: it is being started again, or Docker does not answer`, { hint });
    // Every database ends with 0. Above 128 stands the signal that ended the first process, and with that the kernel kills all others in the container (pid_namespaces(7)).
    // A script that stops PostgreSQL may end so, too (`exit` in a trap of dash): whether that was shut down, its control file tells for sure.
    if (database && exitCode > 128 && (exitCode === KILLED || !dataDirectory)) throw new Problem(`${name} (${database}) was killed (exit code ${exitCode}), it did not stop by itself: its files are not cold`,
      { hint: `${hint}; give it more time with \`stopTimeoutSeconds\`, and let a script that starts it do that with \`exec\`, or wait for it and end with 0` });
    if (exitCode === KILLED) warn(`${name} had to be killed: it did not stop by itself in its time`);
  }
}

/**
 * Write size and times of every file below some roots to `file`; returns how many they are and the sum of the listing.
 * fromCopies: read in their snapshot, and added to what is there.
 */
async function writeListing(plan: Plan, file: string, roots: Root[], fromCopies = false): Promise<{ files: number; listingSha256: string }> {
  const fd = fs.openSync(file, fromCopies ? 'a' : 'w', 0o600);
  try {
    const isWhole = (place: string) => plan.exclude.length > 0 && roots.some((root) => !root.strict && isBelow(place, root.path));
    const whole = outermost(plan.clusters.flatMap((cluster) => cluster.roots).filter(isWhole)); // clusters below `folders`: of these borg leaves nothing out
    for (const strict of [true, false]) {
      const paths = [...new Set([...roots.filter((root) => root.strict === strict).map((root) => root.path), ...strict ? whole : []])];
      if (paths.length === 0) continue;
      const find = ['find', ...paths, ...(strict ? [] : prunedPaths([...whole.map((place) => place.replace(/[*?[\\]/g, '\\$&')), ...plan.exclude])), '-printf', LISTING_FORMAT];
      const done = await look(fromCopies ? inCopies(plan.roots, find) : find, { stdout: fd, seconds: 24 * 3600, env: markOfRun(plan.run) });
      if (done.code !== 0 && strict) throw failure('not every file below a stopped part can be listed', done);
    }
  } finally {
    fs.closeSync(fd);
  }
  const sum = createHash('sha256');
  let files = 0;
  const known = new Set(plan.clusters.map((cluster) => `${cluster.dataDirectory}${CONTROL_FILE}`));
  await eachRecord(file, (record) => {
    files++;
    if (!record.endsWith(CONTROL_FILE)) return;
    const control = pathIn(record), folder = control.slice(0, -CONTROL_FILE.length); // a cluster that the plan does not know
    if (!known.has(control) && isUsed(folder)) throw new Problem(`PostgreSQL runs in ${named(folder)}, which is saved and which nothing stopped`,
      { hint: 'was it started in the meantime, or does it run in a container that Docker does not show?' });
  }, (piece) => sum.update(piece));
  return { files, listingSha256: sum.digest('hex') };
}

const CONTROL_FILE = '/global/pg_control';
export const pathIn = (record: string) => Buffer.from(record.split('\t').slice(7).join('\t'), 'latin1').toString();

/** Each NUL-ended record of a file, byte for byte (latin1), without ever holding the whole of it. */
export async function eachRecord(file: string, onRecord: (record: string) => void, onPiece: (piece: Buffer) => void = () => {}): Promise<void> {
  let rest = '';
  for await (const piece of fs.createReadStream(file, { highWaterMark: 1 << 20 })) {
    onPiece(piece);
    const records = (rest + piece.toString('latin1')).split('\0');
    rest = records.pop()!;
    if (rest.length > LONGEST_RECORD) throw new Problem(`${named(file)} is no listing: it has a name without an end`);
    for (const record of records) onRecord(record);
  }
}

// What borg leaves out below `folders` may change as it likes. borg's plain patterns are shell patterns, as find's are;
// others (sh:, re:) are listed all the same, and at worst cause a needless warning.
function prunedPaths(exclude: string[]): string[] {
  const plain = exclude.map((pattern) => pattern.replace(/^(fm|pp):/, '')).filter((pattern) => !/^[a-z]{2}:/.test(pattern));
  return plain.flatMap((pattern) => ['-path', pattern.replace(/\/$/, ''), '-prune', '-o']);
}

/**
 * Prove again, after the copy and before anything is started. Given the first proof and both listings' paths: throws
 * Problem when something under a stopped part changed in between; what changed under `folders` is a warning with its name.
 */
export async function proveAgain(plan: Plan, first: Proof, before: string, after: string): Promise<Proof> {
  const second = await prove(plan, after);
  if (second.listingSha256 === first.listingSha256) return second;
  const changes = await differingPaths(plan, before, after).finally(() => [after, `${after}.sorted`, `${before}.sorted`, `${after}.changes`].forEach((file) => fs.rmSync(file, { force: true })));
  if (changes.cold.count > 0) {
    throw new Problem(`${count(changes.cold.count, 'file')} changed under a stopped part while it was copied: ${someNames(changes.cold.told, changes.cold.count)}`,
      { hint: 'somebody or something started it in the meantime; this archive does not count as a backup' });
  }
  if (changes.warm.count > 0) warn(`changed while it was copied: ${someNames(changes.warm.told, changes.warm.count)}`);
  return second;
}

/**
 * Services run again, and everything has been copied: prove of the copies that they are what was stopped. Given both proofs and the first one's listing,
 * completes that proof and listing with what lies in snapshots, and returns the proof. Throws Problem when a copy is not cold, or not what its original
 * was; what changed under `folders` meanwhile may be so in the copy, too.
 */
export async function proveCopies(plan: Plan, first: Proof, second: Proof, file: string): Promise<Proof> {
  for (const { name, dataDirectory } of plan.clusters) {
    const why = whyNotCold(copyOf(dataDirectory, plan.roots));
    if (copyOf(dataDirectory, plan.roots) !== dataDirectory && why.length > 0) throw new Problem(`the copy of cluster ${named(name)} is not cold: ${why.join(', ')}`);
  }
  const copied = plan.roots.filter((root) => root.way === 'reflink' || root.way === 'copy'), again = `${file}-of-copies`;
  try {
    await writeListing(plan, again, copied, true);
    for (const roots of [copied.filter((root) => root.strict), copied.filter((root) => !root.strict)]) {
      const [was, is] = [await sumOfListing(file, roots), await sumOfListing(again, roots)];
      if (was === is) continue;
      const where = roots.map((root) => named(root.path)).join(', '), hasChanged = roots.every((root) => !root.strict) && second.listingSha256 !== first.listingSha256;
      if (hasChanged) say(`what changed below ${where} is in the copies as it was before, or after`); // proveAgain() has warned of it, by name
      else throw new Problem(`the copies on ${where} are not what was stopped: ${was.split(' ')[0]} files then, ${is.split(' ')[0]} there`,
        { hint: 'did something change there while it was copied? This archive does not count as a backup' });
    }
  } finally {
    fs.rmSync(again, { force: true });
  }
  return { ...first, ...await writeListing(plan, file, plan.roots.filter((root) => root.way === 'subvolume'), true) };
}

// How many records there are below some roots, and a sum of them that knows no order: a copy has other ctimes, its folders another size, and another order.
async function sumOfListing(file: string, roots: Root[]): Promise<string> {
  let files = 0, sum = 0n;
  await eachRecord(file, (record) => {
    if (!roots.some((root) => isBelow(pathIn(record), root.path))) return;
    const [type, bits, uid, gid, bytes, modified] = record.split('\t');
    files++;
    sum += createHash('sha256').update([type, bits, uid, gid, type === 'd' ? '' : bytes, modified, pathIn(record)].join('\t')).digest().readBigUInt64LE();
  });
  return `${files} ${sum}`;
}

type Changes = { count: number; told: string[] };

// sort and comm do it on disk: a listing may be larger than our memory should be. A folder changes with its files: it is told only by itself.
async function differingPaths(plan: Plan, before: string, after: string): Promise<{ cold: Changes; warm: Changes }> {
  for (const file of [before, after]) {
    const sorted = await look(['sort', '--zero-terminated', `--output=${file}.sorted`, file], { seconds: 3600 });
    if (sorted.code !== 0) throw failure('the listings cannot be compared', sorted);
  }
  const fd = fs.openSync(`${after}.changes`, 'w', 0o600);
  const done = await look(['comm', '--zero-terminated', '-3', `${before}.sorted`, `${after}.sorted`], { stdout: fd, seconds: 3600 }).finally(() => fs.closeSync(fd));
  if (done.code !== 0) throw failure('the listings cannot be compared', done);
  const found = { cold: { count: 0, told: [] as string[] }, warm: { count: 0, told: [] as string[] } };
  let last = '';
  for (const folders of [false, true]) {
    await eachRecord(`${after}.changes`, (record) => {
      const line = record.replace(/^\t/, ''), file = pathIn(line);
      if (line.startsWith('d\t') !== folders || file === last) return; // before and after are two lines
      last = file;
      const changes = plan.cold.some((root) => isBelow(file, root)) ? found.cold : found.warm;
      if (folders && changes.count > 0) return;
      if (changes.told.includes(file)) return;
      changes.count++;
      if (changes.told.length < TOLD_NAMES) changes.told.push(file);
    });
  }
  return found;
}
