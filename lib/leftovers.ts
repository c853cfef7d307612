// Leftovers: what a dead run left stopped is started, and told in its place.
// By whoever comes first: the guard, `recover`, or the next run, which holds the run's lock then. The dead run's borg is ended first.
// Changes: the parts in the ledger, the ledger itself, the history, and what a restore had laid beside its places.
import { Problem, say, sayBlock, transcriptSince, warn, warnings } from './say.ts';
import { shield } from './shell.ts';
import { endRun } from './processes.ts';
import { remember } from './history.ts';
import type { HistoryLine } from './history.ts';
import type { Settings } from './settings.ts';
import { tell } from './tell.ts';
import { WORDS } from './words.ts';
import { dropCopies } from './snapshot.ts';
import { closeLedger, keepLedgerIfPossible, readLedger, readLedgerQuietly, takeLock } from './ledger.ts';
import type { Ledger } from './ledger.ts';
import { removeStagings, settleRestore, tellRestore } from './swap.ts';
import { servicesNow, startParts, undecidedParts } from './pause.ts';

/**
 * Take the lock of a run, kept until this process ends. Throws Problem when it is taken: 3 when what an earlier run stopped
 * is down, and its guard is at work, else 75.
 */
export function takeRunLock(stateFolder: string): void {
  if (takeLock(stateFolder, 2) !== null) return;
  if (readLedgerQuietly(stateFolder)?.reported === 'down') throw new Problem('what an earlier run stopped is still not running; its guard is trying again just now',
    { exitCode: 3, hint: 'look at its log, mend it; then run `node backup.js recover`' });
  throw new Problem('another run is going on', { exitCode: 75, hint: 'wait for its end; `node backup.js status` tells how it went' });
}

/**
 * Start what a dead run left stopped. Given the lock is ours, its ledger, who does it, and the settings if they can be read,
 * returns what is still down; the ledger stays as long as something is. Writes the history line the dead run could not write.
 */
export async function bringBack(stateFolder: string, ledger: Ledger, who: string, settings: Settings | null): Promise<string[]> {
  shield(true);
  const what = ledger.restore ? 'the restore' : 'the run', left = ledger.parts.filter((part) => part.runningAt === null).map((part) => part.name);
  say(`${what} of ${ledger.startedAt} ended before ${left.join(', ') || 'all'} ran again: ${who} starts what is missing`);
  if (!await endRun(ledger.run)) warn('a borg of the dead run cannot be ended');
  if (ledger.restore) await settleRestore(ledger); // before anything is started: either all is new, or all is old
  const down = await startParts(ledger, stateFolder);
  const outcome = down.length > 0 ? 'down' : 'failed';
  await dropCopies(stateFolder); // services come first
  if (ledger.restore) await endRestore(stateFolder, ledger, down);
  if (ledger.reported !== outcome && (!ledger.restore || down.length > 0)) {
    const why = ledger.reported === '' ? 'the run was killed or the machine went down' : 'something did not start again at the end of the run';
    await reportDeadRun(stateFolder, ledger, `${why}; ${who} ${down.length > 0 ? `could not start ${down.join(', ')}` : 'started what it had stopped'}`, down, settings);
  }
  ledger.reported = outcome;
  if (down.length === 0 && undecidedParts(ledger).length === 0) closeLedger(stateFolder);
  else keepLedgerIfPossible(stateFolder, ledger);
  say(`services: ${servicesNow(ledger, down)}`);
  return down;
}

export type Left = { ledger: Ledger; down: string[]; why: Problem };

/** What a run has left down, and what to say of it. */
export const leftBy = (ledger: Ledger, down: string[], what = `still not running: ${down.join(', ')}`, facts = {}): Left => ({ ledger, down, why: new Problem(`left stopped by the run of ${ledger.startedAt} and ${what}`,
  { hint: 'mend it first; then run `node backup.js recover`', ...facts, exitCode: 3 }) });

/**
 * Start what a dead run left stopped. Given that the lock is ours. Returns what is still down, and why; null when all runs.
 * Throws when the ledger cannot be understood, or when its restore cannot be settled though nothing is down.
 */
export async function startLeftovers(settings: Settings): Promise<Left | null> {
  const ledger = readLedger(settings.stateFolder);
  if (!ledger) return null;
  try {
    const down = await bringBack(settings.stateFolder, ledger, 'this run', settings);
    return down.length > 0 ? leftBy(ledger, down) : null;
  } catch (error: any) { // the disk of a restore is gone or read-only: nothing could even be tried
    const down = ledger.parts.filter((part) => part.runningAt === null).map((part) => part.name);
    if (down.length === 0) throw error;
    return leftBy(ledger, down, `not to be started: ${error.message}`, error.facts);
  }
}

// A restore is no run of the history. What was extracted and is not in its place goes; what to do now is told.
async function endRestore(stateFolder: string, ledger: Ledger, down: string[]): Promise<void> {
  await removeStagings(ledger.restore!);
  const text = tellRestore(stateFolder, ledger, down.length > 0);
  if (ledger.reported === '') sayBlock(text);
}

/** Write the history line that a dead run could not write, and send its message. Given its ledger, why it ended, what is down, and the settings if they can be read. */
export async function reportDeadRun(stateFolder: string, ledger: Pick<Ledger, 'startedAt' | 'server' | 'archive' | 'parts' | 'restore'>, error: string, down: string[], settings: Settings | null): Promise<void> {
  const endedAt = new Date().toISOString();
  const stops = ledger.parts.map((part) => Date.parse(part.askedAt)), starts = ledger.parts.map((part) => Date.parse(part.runningAt ?? endedAt));
  const line: HistoryLine = {
    kind: 'run', startedAt: ledger.startedAt, endedAt, outcome: down.length > 0 ? 'down' : 'failed', exitCode: down.length > 0 ? 3 : 2,
    server: ledger.server, archive: ledger.archive, downSeconds: stops.length > 0 ? Math.max(0, Math.max(...starts) - Math.min(...stops)) / 1000 : 0, startSeconds: 0, // a machine may come up with its clock behind
    parts: ledger.parts.map((part) => ({ name: part.name, stoppedAt: part.stoppedAt, runningAt: part.runningAt,
      downSeconds: Math.max(0, Date.parse(part.runningAt ?? endedAt) - Date.parse(part.askedAt)) / 1000 })),
    warm: null, cold: null, snapshot: '', warnings: [...warnings], error,
  };
  try {
    if (!ledger.restore) remember(stateFolder, line);
  } catch (error: any) {
    warn(`the history cannot be written: ${error.message}`);
  }
  const words = WORDS[settings?.language ?? 'en'].message, services = ledger.parts.length > 0 ? servicesNow(ledger, down) : '';
  const what = (ledger.restore ? words.restoreOf : words.runOf)(ledger.startedAt, line.error, services);
  const subject = `${words.outcome[line.outcome]}: ${ledger.server}: ${what}`;
  if (settings) await tell(settings, { server: ledger.server, outcome: down.length > 0 ? 'down' : 'failed', subject, body: subject, logTail: transcriptSince(0, 50_000), line });
}
