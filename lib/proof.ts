// The proof that what is copied is cold, taken before the cold pass and again after it, while everything is still stopped.
// Reads the clusters' control files, the process list, the containers' exit codes, and size and times of every saved file.
// Writes only its listings in the state folder.
import { createHash } from 'node:crypto';
import fs from 'node:fs';
import { Problem, count, named, warn } from './say.ts';
import { failure, look } from './shell.ts';
import { containerState } from './containers.ts';
import { controlState, whyNotCold } from './postgres.ts';
import { isBelow } from './plan.ts';
import type { Plan } from './plan.ts';

/** What was seen when everything was stopped. */
export type Proof = {
  provenAt: string;
  clusters: { name: string; dataDirectory: string; state: string; systemIdentifier: string }[];
  listingSha256: string;
  files: number;
};

// type, mode, uid, gid, bytes, modified, changed, path; NUL at the end, because a name may hold anything else
const LISTING_FORMAT = '%y\\t%m\\t%U\\t%G\\t%s\\t%T@\\t%C@\\t%p\\0';
const KILLED = 137; // 128 + SIGKILL
const TOLD_NAMES = 20;

/**
 * Prove that everything the plan saves is cold, and write the listing of it to `file`. Returns the proof.
 * Throws Problem when a cluster is not cleanly shut down, is in use, or when a container with a database was killed.
 */
export async function prove(plan: Plan, file: string): Promise<Proof> {
  const gone = plan.roots.find((root) => !fs.existsSync(root.path)); // borg passes over it with a warning that names no file
  if (gone) throw new Problem(`${named(gone.path)} (${gone.why}) is gone: it was there when the run began`, { hint: 'is something unmounted, or moved? This archive does not count as a backup' });
  for (const { name, container, database, wasRunning } of plan.parts) {
    if (!container || !wasRunning) continue;
    const { exitCode, state } = await containerState(container);
    if (state !== 'stopped') throw new Problem(`${name} runs: something started it while it should be stopped`, { hint: `look at \`docker logs ${container}\` for who did` });
    if (exitCode !== KILLED) continue;
    if (database) throw new Problem(`${name} (${database}) was killed, it did not stop by itself: its files are not cold`, { hint: `look at \`docker logs ${container}\`; give it more time with \`stopTimeoutSeconds\`` });
    warn(`${name} had to be killed: it did not stop by itself in its time`);
  }
  const clusters = plan.clusters.map(({ name, dataDirectory }) => {
    const why = whyNotCold(dataDirectory);
    if (why.length > 0) throw new Problem(`cluster ${named(name)} is not proven cold: ${why.join(', ')}`, { hint: 'start it, let it recover, stop it by hand and look at its log' });
    return { name, dataDirectory, ...controlState(dataDirectory) };
  });
  return { provenAt: new Date().toISOString(), clusters, ...await writeListing(plan, file) };
}

/** Write size and times of every saved file to `file`; returns how many they are and the sum of the listing. */
async function writeListing(plan: Plan, file: string): Promise<{ files: number; listingSha256: string }> {
  const fd = fs.openSync(file, 'w', 0o600);
  try {
    for (const strict of [true, false]) {
      const roots = plan.roots.filter((root) => root.strict === strict).map((root) => root.path);
      if (roots.length === 0) continue;
      const done = await look(['find', ...roots, ...(strict ? [] : prunedPaths(plan.exclude)), '-printf', LISTING_FORMAT], { stdout: fd, seconds: 24 * 3600 });
      if (done.code !== 0 && strict) throw failure('not every file below a stopped part can be listed', done);
    }
  } finally {
    fs.closeSync(fd);
  }
  const sum = createHash('sha256');
  let files = 0;
  for await (const piece of fs.createReadStream(file, { highWaterMark: 1 << 20 })) {
    sum.update(piece);
    for (let at = piece.indexOf(0); at >= 0; at = piece.indexOf(0, at + 1)) files++;
  }
  return { files, listingSha256: sum.digest('hex') };
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
  const changed = await differingPaths(before, after).finally(() => [after, `${after}.sorted`, `${before}.sorted`].forEach((file) => fs.rmSync(file, { force: true })));
  const broken = changed.filter((file) => plan.cold.some((root) => isBelow(file, root)));
  if (broken.length > 0) {
    throw new Problem(`${count(broken.length, 'file')} changed under a stopped part while it was copied: ${broken.slice(0, TOLD_NAMES).map(named).join(', ')}`,
      { hint: 'somebody or something started it in the meantime; this archive does not count as a backup' });
  }
  if (changed.length > 0) warn(`changed while it was copied: ${changed.slice(0, TOLD_NAMES).map(named).join(', ')}${changed.length > TOLD_NAMES ? ` and ${changed.length - TOLD_NAMES} more` : ''}`);
  return second;
}

// sort and comm do it on disk: a listing may be larger than our memory should be.
async function differingPaths(before: string, after: string): Promise<string[]> {
  for (const file of [before, after]) {
    const sorted = await look(['sort', '--zero-terminated', `--output=${file}.sorted`, file], { seconds: 3600 });
    if (sorted.code !== 0) throw failure('the listings cannot be compared', sorted);
  }
  const done = await look(['comm', '--zero-terminated', '-3', `${before}.sorted`, `${after}.sorted`], { seconds: 3600 });
  if (done.code !== 0) throw failure('the listings cannot be compared', done);
  const paths = new Set<string>(), folders = new Set<string>();
  for (const line of done.out.split('\0')) {
    const fields = line.replace(/^\t/, '').split('\t');
    if (fields.length >= 8) (fields[0] === 'd' ? folders : paths).add(fields.slice(7).join('\t'));
  }
  return [...paths, ...[...folders].filter((folder) => ![...paths].some((file) => isBelow(file, folder)))]; // a folder changes with its files
}
