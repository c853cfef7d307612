// The night: takeBackup() is the whole run, in the order it happens. Read it first; every step is a function of an earlier chapter.
// Between "from here services are down" and "from here services run again" nothing may be lost: whatever fails, hangs or
// is asked of us there, everything that was stopped is started before anything else is judged.
import path from 'node:path';
import fs from 'node:fs';
import type { Settings } from './settings.ts';
import { Problem, answer, count, mode, openTranscript, say, sayBlock, sayError, warn, warnings } from './say.ts';
import { askToStop, askedToStop, goOn, listenToSignals, sideBySide, steadyNow } from './shell.ts';
import { lastGoodRun, remember } from './history.ts';
import type { HistoryLine } from './history.ts';
import { refuseIfOthersCanChange } from './check.ts';
import type { Loaded } from './check.ts';
import { deadlines, isInWindow, windowEnd } from './window.ts';
import { tell } from './tell.ts';
import { beginPass } from './passes.ts';
import type { PassResult } from './passes.ts';
import { WITHOUT_LOCK, readFromArchive } from './archives.ts';
import { passportOf } from './passport.ts';
import { dropCopies, flushDisks } from './snapshot.ts';
import { makePlan, serverName } from './plan.ts';
import type { Plan } from './plan.ts';
import { closeLedger, keepLedgerIfPossible, openLedger, readLedgerQuietly } from './ledger.ts';
import { lookAgain, servicesNow, startParts, stopParts, undecidedParts } from './pause.ts';
import { beginRecord, manifestOf, writeHistory } from './record.ts';
import { proofCommand, showPlan } from './commands.ts';
import { beginColdPass, checkpointAll, copyCold, copyOnWrite, copyTheSnapshot, finishColdPass, untilBorgWaits, warmPass } from './copying.ts';
import type { Copied, Night } from './copying.ts';
import { messageOf, summary } from './outcome.ts';
import { runBefore, tryStorage, tryThisMachine } from './ready.ts';
import { startLeftovers, takeRunLock } from './leftovers.ts';
import { armGuard, dismissGuard } from './guard.ts';
import { sweepDrills } from './drill.ts';

const PROOF_WHILE_DOWN_MS = 120_000; // the guard tries again only when the run has ended

/** `node backup.js`: take the backup. Returns the exit code (contract: 0 good, 1 with warnings, 2 failed, 3 something is down, 75 not now, 128+n). */
export async function takeBackup(loaded: Loaded, script: string): Promise<number> {
  const { settings } = loaded;
  if (mode.dryRun) return showPlan(settings);
  listenToSignals();
  fs.mkdirSync(settings.stateFolder, { recursive: true, mode: 0o700 });
  refuseIfOthersCanChange(settings.stateFolder, '`stateFolder`');
  takeRunLock(settings.stateFolder);
  const left = await startLeftovers(settings);
  if (left) return endNight({ ...beginNight(loaded, script), ledger: left.ledger, down: left.down }, left.why);
  await sweepDrills(settings).catch((error) => warn(`what a drill left behind cannot be removed: ${error.message}`)); // it may be a disk full of files
  await dropCopies(settings.stateFolder); // so may a killed run
  if (!mode.now && !isInWindow(settings.window, new Date())) {
    const { from, until, timeZone } = settings.window!;
    throw new Problem(`it is outside the window ${from} to ${until} (${timeZone})`,
      { exitCode: 75, hint: '`node backup.js --now` takes the backup all the same' });
  }
  const night = beginNight(loaded, script);
  try {
    await runTheNight(night);
  } catch (error) {
    return await endNight(night, error);
  }
  return endNight(night, null);
}

/** The story. Throws Problem when there is no new good backup; night.down tells what is not running then. */
async function runTheNight(night: Night): Promise<void> {
  const { settings } = night.loaded;
  await runBefore(settings).finally(() => tell(settings, messageOf(night.line, [], 'start', '', settings.language))); // `before` may bring up the line there
  const [plan, storage] = await sideBySide(makePlan(settings, new Date(night.line.startedAt)), tryStorage(settings));
  night.line.archive = plan.archive;
  await tryThisMachine(settings, plan);
  night.line.snapshot = plan.snapshot;
  say(`plan: stop ${count(plan.parts.filter((part) => part.wasRunning).length, 'part')}, save ${count(plan.roots.length, 'path')} to ${plan.archive} (${storage})`);
  beginRecord(night.loaded, night.script);
  const looking = passportOf(plan.clusters, plan.containers, plan.roots.map((root) => root.path));
  const [passport] = await sideBySide(looking, settings.warmPass ? warmPass(night, plan) : Promise.resolve());
  const manifest = manifestOf(settings.stateFolder, night.script, plan, passport);

  if (plan.snapshot === '') night.cold = beginColdPass(night, plan);
  if (plan.snapshot !== '' || plan.parts.some((part) => part.wasRunning)) {
    night.guardPid = await armGuard(night.script, settings.stateFolder, night.loaded.file, plan.run, [plan.archive, night.line.startedAt]);
  }
  await untilBorgWaits(night); // with repository, key and caches open: nothing of that is left for when services are down
  await checkpointAll(plan);
  if (plan.snapshot !== '') await flushDisks(plan.roots);
  await lookAgain(plan.parts);
  const { deadlineAt, beginStartAt } = tonightsDeadline(settings, night.windowEnd);
  night.ledger = await openLedger(settings.stateFolder, { run: plan.run, server: plan.server, archive: plan.archive, startedAt: night.line.startedAt,
    deadlineAt: deadlineAt.toISOString(), stopTimeoutSeconds: settings.stopTimeoutSeconds });
  const callOff = () => askToStop(`the deadline (everything runs again by ${deadlineAt.toTimeString().slice(0, 5)})`, 2);
  const alarm = setTimeout(callOff, beginStartAt.getTime() - Date.now());
  let trouble: unknown = null, wasAsked = false, copied: Copied | null = null;
  try {
    // From here services are down.
    await stopParts(plan.parts, night.ledger, settings.stateFolder);
    copied = await (plan.snapshot === '' ? copyCold(night, plan, manifest) : copyOnWrite(night, plan));
  } catch (error) {
    trouble = error;
    wasAsked = askedToStop() !== null;
    await night.cold?.callOff(); // seen dead, or killed and stuck, before anything is started: no archive is ever completed with files that are in use again
  }
  clearTimeout(alarm);
  night.down = await startEverything(night);
  // From here services run again. First an error of our own is told, then that we were asked to end, and only then what that broke.
  if (trouble && !wasAsked) throw trouble;
  goOn();
  if (trouble) throw trouble;
  const isDown = night.down.length > 0 ? new Problem(`not running: ${night.down.join(', ')}`,
    { hint: 'look at its own log, mend it, then run `node backup.js recover`; the guard keeps trying' }) : null;
  if (isDown && plan.snapshot !== '') throw isDown; // the guard goes on when this run has ended, and a snapshot takes long to read
  const patience = isDown ? setTimeout(() => askToStop(isDown.message, 3, isDown.facts.hint), PROOF_WHILE_DOWN_MS) : undefined;
  try {
    if (plan.snapshot !== '') copied = await copyTheSnapshot(night, plan, manifest, copied!);
    await proveTheArchive(night, plan, await finishColdPass(night, plan), copied!);
  } finally {
    clearTimeout(patience); // nobody who is told of it then is cut short
  }
  if (isDown) throw isDown; // with a good archive: just then one may be needed
}

/** When everything must run again, and when to begin with that. Throws Problem when the window is over, or leaves no time for a copy. */
function tonightsDeadline(settings: Settings, windowEndsAt: Date | null): { deadlineAt: Date; beginStartAt: Date } {
  const lastStart = lastGoodRun(settings.stateFolder)?.startSeconds ?? 0;
  const { deadlineAt, beginStartAt, isTooLate } = deadlines(settings.maxDowntimeMinutes, new Date(), windowEndsAt, lastStart);
  if (isTooLate) throw new Problem('the window is over, or all but over: nothing was stopped',
    { hint: 'begin earlier, or make the window longer; what was uploaded counts tomorrow' });
  return { deadlineAt, beginStartAt };
}

/** Start everything again, whatever has happened. Returns what is still down. Never throws: an unforeseen error is told, and counts as down. */
async function startEverything(night: Night): Promise<string[]> {
  const { stateFolder } = night.loaded.settings, ledger = night.ledger!;
  const began = performance.now();
  let down: string[];
  try {
    down = await startParts(ledger, stateFolder);
  } catch (error) {
    sayError(error);
    down = ledger.parts.filter((part) => part.runningAt === null).map((part) => part.name);
  }
  const now = steadyNow().toISOString();
  const from = ledger.parts.map((part) => Date.parse(part.askedAt)), until = ledger.parts.map((part) => Date.parse(part.runningAt ?? now));
  night.line.downSeconds = ledger.parts.length > 0 ? (Math.max(...until) - Math.min(...from)) / 1000 : 0;
  night.line.startSeconds = (performance.now() - began) / 1000;
  night.line.parts = ledger.parts.map(({ name, stoppedAt, runningAt }, index) => ({ name, stoppedAt, runningAt, downSeconds: (until[index]! - from[index]!) / 1000 }));
  if (down.length === 0 && undecidedParts(ledger).length === 0) closeLedger(stateFolder);
  else keepLedgerIfPossible(stateFolder, ledger); // the guard goes on from it
  return down;
}

/** Read the record back out of the archive, compare, and only then write the archive that says it is good: its borg waits for the proof meanwhile. */
async function proveTheArchive(night: Night, plan: Plan, cold: PassResult, { first, second, manifestText }: Copied): Promise<void> {
  const { settings } = night.loaded, line = finishedLine(night, null);
  const { archiveId: id, originalBytes, deduplicatedBytes, files } = cold;
  const facts = { archive: plan.archive, id, originalBytes, deduplicatedBytes, files, downSeconds: line.downSeconds, outcome: line.outcome };
  const folder = writeHistory(settings.stateFolder, line);
  const ownCache = { env: { BORG_CACHE_DIR: path.join(folder, 'cache') } }; // the usual one is locked by the proof's borg
  const proof = beginPass(settings, proofCommand(settings, plan, facts),
    { cwd: folder, run: plan.run, title: 'proof', tested: true, expectedBytes: 0, seconds: 3600 });
  try {
    const readBack = () => readFromArchive(settings, plan.archive, 'record/manifest.json', ownCache, WITHOUT_LOCK);
    const back = await readBack().catch(() => proof.isWaiting.then(readBack)); // until the waiting borg has the lock, a prune may be in the way
    if (back !== manifestText) throw new Problem(`record/manifest.json came back from ${plan.archive} other than it was written`,
      { hint: 'the storage or the line damages data: run `node backup.js borg check --verify-data`' });
  } catch (error) {
    await proof.callOff();
    throw error;
  }
  proof.feed(`${JSON.stringify({ format: 1, ...facts, before: first, after: second }, null, 1)}\n`);
  await proof.end;
}

// ---- around the story: the history line, messages, the summary ----

function beginNight(loaded: Loaded, script: string): Night {
  const startedAt = steadyNow().toISOString(), { stateFolder } = loaded.settings;
  openTranscript(path.join(stateFolder, 'log'), startedAt.slice(0, 19));
  const line: HistoryLine = { kind: 'run', startedAt, endedAt: '', outcome: 'failed', exitCode: 2, server: serverName(loaded.settings), archive: '', downSeconds: 0, startSeconds: 0,
    parts: [], warm: null, cold: null, snapshot: '', warnings: [], error: '' };
  return { loaded, script, line, ledger: null, cold: null, down: [], guardPid: 0, windowEnd: mode.now ? null : windowEnd(loaded.settings.window, new Date()) };
}

function finishedLine(night: Night, error: unknown): HistoryLine {
  const ofError = error instanceof Problem ? error.facts.exitCode ?? 2 : 2;
  const exitCode = night.down.length > 0 ? 3 : error ? ofError : warnings.length > 0 ? 1 : 0;
  const outcome = night.down.length > 0 ? 'down' : error ? 'failed' : warnings.length > 0 ? 'warning' : 'good';
  return { ...night.line, endedAt: steadyNow().toISOString(), outcome, exitCode, warnings: [...warnings], error: error instanceof Error ? error.message : '' };
}

/** Tell how it ended: error block, history, messages, summary. Returns the exit code. */
async function endNight(night: Night, error: unknown): Promise<number> {
  const { settings } = night.loaded;
  await night.cold?.callOff();
  await dropCopies(settings.stateFolder);
  if (night.ledger?.parts.length === 0) closeLedger(settings.stateFolder);
  const services = night.ledger ? servicesNow(night.ledger, night.down) : 'nothing was stopped';
  if (error) sayError(error, services);
  const ended = finishedLine(night, error);
  await tell(settings, messageOf(ended, night.down, ended.outcome, services, settings.language));
  if (night.ledger && readLedgerQuietly(settings.stateFolder)) keepLedgerIfPossible(settings.stateFolder, Object.assign(night.ledger, { reported: night.down.length > 0 ? 'down' : 'failed' }));
  const line = finishedLine(night, error); // a messenger that failed is a warning, too
  try {
    remember(settings.stateFolder, line);
  } catch (trouble: any) {
    warn(`the history cannot be written: ${trouble.message}`);
  }
  if (night.guardPid && !readLedgerQuietly(settings.stateFolder)) dismissGuard(night.guardPid, settings.stateFolder);
  sayBlock(summary(line, services));
  if (mode.json) answer(JSON.stringify(line));
  return line.exitCode;
}
