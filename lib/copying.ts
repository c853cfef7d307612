// Copying: the warm pass while everything runs, then the copy of what is cold.
// Without a snapshot or with one. Each step of it is one line of the night (the chapter THE NIGHT), in this order. Stops and
// starts nothing. Changes the repository and, in the state folder, the record.
import fs from 'node:fs';
import path from 'node:path';
import { Problem, TOLD_NAMES, count, lastLines, named, say, size, someNames, span, warn } from './say.ts';
import { askToStop } from './shell.ts';
import { isBelow } from './files.ts';
import { lastGoodRun } from './history.ts';
import type { HistoryLine, Pass } from './history.ts';
import type { Loaded } from './check.ts';
import { homeOf, queryCluster } from './questions.ts';
import { beginPass, takePass } from './passes.ts';
import type { PassResult, PassUnderWay } from './passes.ts';
import { watchSpace } from './ways.ts';
import { makeCopies, whatLies } from './snapshot.ts';
import type { Plan } from './plan.ts';
import { prove, proveAgain, proveCopies } from './proof.ts';
import type { Proof } from './proof.ts';
import type { Ledger } from './ledger.ts';
import { partState } from './pause.ts';
import { finishRecord, listingFile, touchRecord } from './record.ts';
import type { Manifest } from './record.ts';
import { coldCommand, warmCommand, warmPaths } from './commands.ts';

/** What a night has come to so far: filled in step by step, and told at the end whatever happened. */
export type Night = {
  loaded: Loaded; script: string; line: HistoryLine; ledger: Ledger | null; cold: PassUnderWay | null; down: string[]; guardPid: number; windowEnd: Date | null;
};

/** The warm pass puts the bulk on storage while everything runs. Throws Problem when it fails, or is not through when the window ends. */
export async function warmPass(night: Night, plan: Plan): Promise<void> {
  const { settings } = night.loaded, paths = warmPaths(plan, lastGoodRun(settings.stateFolder) === undefined);
  if (paths.length === 0) return;
  for (let pass = 1, before = Infinity; pass <= MOST_WARM_PASSES; pass++) { // what changed during a long one is for the next one, not for when services are down
    const { seconds } = await oneWarmPass(night, plan, paths);
    if (seconds < LONG_PASS_SECONDS || seconds > before / 2) return;
    before = seconds;
  }
}

const MOST_WARM_PASSES = 3;
const LONG_PASS_SECONDS = 60;

async function oneWarmPass(night: Night, plan: Plan, paths: string[]): Promise<PassResult> {
  const { settings } = night.loaded, last = night.line.warm;
  await checkpointAll(plan); // or the changes are still in memory and all of them are left for the cold pass
  touchRecord(settings.stateFolder);
  const command = warmCommand(settings, plan, paths, last ? new Date().toISOString() : plan.madeAt), expectedBytes = lastGoodRun(settings.stateFolder)?.warm?.originalBytes ?? 0;
  const untilEnd = night.windowEnd ? Math.max(1, (night.windowEnd.getTime() - Date.now()) / 1000) : undefined;
  const warm = await takePass(settings, command, { cwd: settings.stateFolder, run: plan.run, title: 'warm pass', expectedBytes, seconds: untilEnd });
  // Files that changed or went are no matter here: the cold pass decides.
  night.line.warm = { ...passFacts(warm), deduplicatedBytes: warm.deduplicatedBytes + (last?.deduplicatedBytes ?? 0), seconds: warm.seconds + (last?.seconds ?? 0) };
  say(`warm pass: ${size(warm.originalBytes)} in ${count(warm.files, 'file')} read, ${size(warm.deduplicatedBytes)} new, ${span(warm.seconds)}`);
  return warm;
}

/** CHECKPOINT in every running cluster that will be stopped: what it writes now it need not write while everything waits. */
export async function checkpointAll(plan: Plan): Promise<void> {
  await Promise.all(plan.clusters.filter((cluster) => cluster.pid !== 0).map(async (cluster) => {
    const { code, said } = await queryCluster(cluster, await homeOf(cluster), 'CHECKPOINT', 1800);
    if (code !== 0) warn(`no CHECKPOINT in ${named(cluster.name)}, so its stop takes longer: ${lastLines(said, 1)}`);
  }));
}

export type Copied = { first: Proof; second: Proof; manifestText: string };

/** Begin the cold pass while everything still runs. It waits. */
export function beginColdPass(night: Night, plan: Plan): PassUnderWay {
  const { settings } = night.loaded;
  const expectedBytes = lastGoodRun(settings.stateFolder)?.cold?.originalBytes ?? 0;
  return beginPass(settings, coldCommand(settings, plan), { cwd: settings.stateFolder, run: plan.run, title: 'cold pass', tested: night.line.warm !== null, expectedBytes });
}

/** Wait until borg asks for the manifest. It has an hour: if we never hear that it waits, both sides would wait for ever. */
export async function untilBorgWaits(night: Night): Promise<void> {
  const late = setTimeout(() => askToStop('borg did not begin the copy within an hour', 2, 'call `node backup.js doctor`; is this a borg that says other things than 1.2 and 1.4 do?'), 3_600_000);
  await (night.cold?.isWaiting ?? Promise.resolve()).finally(() => clearTimeout(late));
}

/** While everything is stopped: prove, write the record, let borg copy, prove again. Throws Problem when the copy is not proven. */
export async function copyCold(night: Night, plan: Plan, manifest: Manifest): Promise<Copied> {
  const { stateFolder } = night.loaded.settings;
  const first = await prove(plan, listingFile(stateFolder));
  const manifestText = finishRecord(night.loaded.settings, { ...manifest, proof: first });
  night.cold!.feed(manifestText);
  await night.cold!.isRead;
  return { first, second: await stillCold(night, plan, first), manifestText };
}

/** While everything is stopped: prove, snapshot what can be, let borg read the rest, prove again. Throws Problem when it is not proven. */
export async function copyOnWrite(night: Night, plan: Plan): Promise<Copied> {
  const { stateFolder } = night.loaded.settings;
  const first = await prove(plan, listingFile(stateFolder));
  await makeCopies(plan.roots, plan.run);
  if (plan.roots.some((root) => root.way === 'cold')) night.cold = beginColdPass(night, plan);
  await night.cold?.isWaiting;
  return { first, second: await stillCold(night, plan, first), manifestText: '' };
}

/**
 * Services run again: prove of the copies that they are what was stopped, and let borg read them. Throws Problem when they
 * are not, or when space runs short.
 */
export async function copyTheSnapshot(night: Night, plan: Plan, manifest: Manifest, { first, second }: Copied): Promise<Copied> {
  const { stateFolder } = night.loaded.settings, was = whatLies(plan.roots);
  const endWatch = watchSpace(plan.roots, (why) => askToStop(why, 2, 'make room, or set `snapshot: \'no\'`'));
  try {
    night.cold ??= beginColdPass(night, plan);
    const proof = await proveCopies(plan, first, second, listingFile(stateFolder));
    const manifestText = finishRecord(night.loaded.settings, { ...manifest, proof });
    night.cold!.feed(manifestText);
    await night.cold!.isRead;
    if (whatLies(plan.roots) !== was) throw new Problem('a saved folder was moved away while borg read its snapshot: this archive does not count as a backup');
    return { first: proof, second, manifestText };
  } finally {
    endWatch();
  }
}

/** Everything is still stopped: prove again. */
async function stillCold(night: Night, plan: Plan, first: Proof): Promise<Proof> {
  const { stateFolder } = night.loaded.settings, after = path.join(stateFolder, 'listing-after');
  const second = await proveAgain(plan, first, listingFile(stateFolder), after);
  fs.rmSync(after, { force: true });
  await Promise.all(night.ledger!.parts.map(async (part) => { // clusters and containers have been proven; of others only this tells
    if (await partState(part) === 'running') warn(`${part.name} was started by somebody while it should have been stopped`);
  }));
  return second;
}

/**
 * Services run again, and borg has read everything: let it finish the archive, and judge what it says. Throws Problem when
 * the archive is no backup.
 */
export async function finishColdPass(night: Night, plan: Plan): Promise<PassResult> {
  const late = setTimeout(() => askToStop('the storage did not take the end of the copy within an hour', 2), 3_600_000);
  const cold = await night.cold!.end.finally(() => clearTimeout(late));
  night.line.cold = passFacts(cold);
  judgePass(plan, cold);
  return cold;
}

// What borg itself noticed while it read. A file below a stopped part that it could not read, or saw changing, is no backup.
function judgePass(plan: Plan, { changed, unread, complaints }: PassResult): void {
  const isCold = (file: string) => plan.cold.some((root) => isBelow(file, root));
  const broken = [...changed, ...unread].filter(isCold);
  const isLost = (file: string) => unread.includes(file) || (!changed.includes(file) && complaints.some((line) => line.startsWith(`${file}: `))); // it could not even enter the folder above
  const lost = plan.roots.find((root) => isLost(root.path));
  if (lost) throw new Problem(`${named(lost.path)} could not be read: this archive does not count as a backup`,
    { said: complaints.slice(-5).join('\n') });
  if (broken.length > 0) throw new Problem(`borg could not read these as they were: ${someNames(broken)}`,
    { said: complaints.slice(-5).join('\n') });
  if (unread.length > 0) warn(`not in the archive, borg could not read it: ${someNames(unread)}`);
  if (changed.length > 0) warn(`changed while it was copied: ${someNames(changed)}`);
  if (changed.length + unread.length === 0) for (const line of complaints.slice(0, TOLD_NAMES)) warn(`borg: ${line}`);
}

function passFacts({ files, originalBytes, compressedBytes, deduplicatedBytes, seconds }: PassResult): Pass {
  return { files, originalBytes, compressedBytes, deduplicatedBytes, seconds };
}
