// The guard: a second process that outlives the run, whatever kills it, and `recover`.
// `recover` does the same work at boot and from cron. Both wait for the run's lock, which the kernel lets go when the run
// dies; if a ledger is left then, they end the dead run's borg first, so that no half-cold archive is completed, and start
// everything in the ledger.
// Changes: the parts in the ledger, the ledger, the history; it ends a run that hangs past its deadline, and removes what a dead one left beside (snapshots,
// staging folders). Under systemd the guard is a transient unit of its own: everything a finished unit leaves behind is killed (systemd.kill(5)).
import fs from 'node:fs';
import path from 'node:path';
import { spawn } from 'node:child_process';
import { setTimeout as sleep } from 'node:timers/promises';
import { Problem, answer, mode, named, openTranscript, pasteable, say, sayError, transcriptNow, warn } from './say.ts';
import { change, failure, hasSystemd, listenToSignals, shield, steadyNow, waitUntil } from './shell.ts';
import { plainText } from './files.ts';
import { serverIn } from './archives.ts';
import { endRun, procFile, startOfProcess } from './processes.ts';
import { readHistory } from './history.ts';
import { refuseIfOthersCanChange } from './check.ts';
import type { Settings } from './settings.ts';
import { keepLedgerIfPossible, ledgerFile, readLedger, readLedgerQuietly, takeLock } from './ledger.ts';
import type { Ledger } from './ledger.ts';
import { dropCopies, hasCopies } from './snapshot.ts';
import { partState, servicesNow, undecidedParts } from './pause.ts';
import { bringBack, reportDeadRun } from './leftovers.ts';

const guardFile = (stateFolder: string) => path.join(stateFolder, 'guard.json');
const RETRY_SECONDS = 15;

/**
 * Given the script, its state folder and settings file, starts the guard and waits until it watches. night: of a backup, its
 * archive and when it began. Returns its pid. Throws Problem: nothing may be stopped without it.
 */
export async function armGuard(script: string, stateFolder: string, settingsFile: string, run: string, night: [archive: string, startedAt: string] | [] = []): Promise<number> {
  fs.rmSync(guardFile(stateFolder), { force: true });
  const command = [process.execPath, script, 'guard', stateFolder, run, String(process.pid), startOfProcess(process.pid), ...night, '--settings', settingsFile];
  if (hasSystemd() && process.getuid?.() === 0) {
    const kept = ['PATH', 'HOME', 'DOCKER_HOST'].flatMap((name) => (process.env[name] ? [`--setenv=${name}=${process.env[name]}`] : []));
    const unit = ['systemd-run', '--quiet', '--collect', `--unit=cold-backup-guard-${run}`, '--property=OOMScoreAdjust=-900'];
    const done = await change([...unit, ...kept, '--', ...command]);
    if (done.code !== 0) throw failure('the guard cannot be started', done);
  } else {
    say(`  $ ${pasteable(command)}`);
    spawn(command[0]!, command.slice(1), { detached: true, stdio: 'ignore', cwd: '/' }).unref(); // setsid(2): no signal to our group or terminal reaches it
  }
  let pid = 0;
  const armed = await waitUntil(20, () => {
    try {
      const note = JSON.parse(fs.readFileSync(guardFile(stateFolder), 'utf8'));
      pid = note.run === run ? note.pid : 0;
    } catch { /* not yet */ }
    return pid !== 0;
  }, 20);
  if (!armed) throw new Problem('the guard has not come up: without it nothing is stopped', { hint: 'try it by hand: `node backup.js recover`' });
  return pid;
}

/** Nothing is left to guard: send the guard away. */
export function dismissGuard(pid: number, stateFolder: string): void {
  try {
    if (pid && procFile(pid, 'cmdline').includes(`\0guard\0${stateFolder}\0`)) process.kill(pid, 'SIGTERM'); // hours later the number may be another one's
  } catch { /* it has gone */ }
  fs.rmSync(guardFile(stateFolder), { force: true });
}

/** The guard's own life: `node backup.js guard STATE-FOLDER RUN PID START [ARCHIVE STARTED-AT]`, started by the run, of no use to people. */
export async function guard(words: string[], settings: Settings | null): Promise<number> {
  const [stateFolder, run, pid, start, ...night] = words as [string, string, string, string, ...string[]];
  process.on('SIGTERM', () => !fs.existsSync(ledgerFile(stateFolder)) && process.exit(0));
  for (const signal of ['SIGINT', 'SIGHUP'] as const) process.on(signal, () => {});
  fs.writeFileSync(guardFile(stateFolder), JSON.stringify({ run, pid: process.pid }), { mode: 0o600 });
  for (;;) {
    try {
      if (await guardOnce(stateFolder, run, Number(pid), start, settings)) continue;
      if (night.length === 2) await tellOfSilentEnd(stateFolder, run, night as [string, string], settings);
      return 0;
    } catch (error) { // whatever it is: as long as something may be stopped, the guard goes on
      if (!fs.existsSync(stateFolder)) return 0; // and with it any ledger
      sayError(error);
      await sleep(RETRY_SECONDS * 1000);
    }
  }
}

/** One turn of the guard: wait for the lock, or for the deadline, and do what has to be done. Returns whether there is more to guard. */
async function guardOnce(stateFolder: string, run: string, pid: number, start: string, settings: Settings | null): Promise<boolean> {
  const lock = takeLock(stateFolder, 2);
  if (lock === null) {
    if (isOverdue(stateFolder, run) && startOfProcess(pid) === start) process.kill(pid, 'SIGKILL'); // the run hangs past its deadline
    await sleep(20);
    return true;
  }
  let down: string[], ledger: Ledger | null;
  try {
    ledger = readLedger(stateFolder);
    if (!ledger || ledger.run !== run) {
      await endRun(run); // nothing is stopped, but the run may have been killed while its borg wrote
      await dropCopies(stateFolder);
      return false;
    }
    keepTranscript(stateFolder, 'guard');
    down = await bringBack(stateFolder, ledger, 'the guard', settings);
  } finally {
    fs.closeSync(lock); // `recover`, people and the next run may do something as well
  }
  if (down.length === 0 && undecidedParts(ledger).length === 0) return false;
  if (down.length === 0) await watchUndecided(stateFolder, ledger);
  else await sleep(RETRY_SECONDS * 1000);
  return true;
}

// A run that tells how it went sends its guard away. This one was killed when everything ran (again), and said nothing: with a snapshot, or in a long
// last phase, that may be hours after the stop.
async function tellOfSilentEnd(stateFolder: string, run: string, [archive, startedAt]: [string, string], settings: Settings | null): Promise<void> {
  const isMine = plainText(guardFile(stateFolder)).includes(JSON.stringify(run)); // one that a full disk has cut off names no run: then nothing is said
  if (!isMine || readHistory(stateFolder).some((line) => line.startedAt === startedAt)) return;
  await reportDeadRun(stateFolder, { startedAt, archive, server: serverIn(archive), parts: [] }, 'the run was killed before it could say how it went; everything runs', [], settings);
}

// A full disk must not keep us from starting things: then there is no transcript.
function keepTranscript(stateFolder: string, who: string): void {
  try {
    if (transcriptNow().fd === null) openTranscript(path.join(stateFolder, 'log'), `${new Date().toISOString().slice(0, 19)}-${who}`);
  } catch (error: any) {
    warn(`no transcript: ${error.message}`);
  }
}

// A run that is past its deadline and does not even start things any more hangs: on a dead disk, or in a bug.
function isOverdue(stateFolder: string, run: string): boolean {
  const ledger = readLedgerQuietly(stateFolder), grace = ledger?.starting ? 600_000 : 0;
  return ledger?.run === run && steadyNow().getTime() > Date.parse(ledger.deadlineAt) + grace;
}

// What was asked to stop and never did may do so now: then it is started. A new run that stops it on purpose holds the lock.
async function watchUndecided(stateFolder: string, ledger: Ledger): Promise<void> {
  shield(true);
  while (undecidedParts(ledger).length > 0) {
    await sleep(1000);
    if (readLedger(stateFolder)?.run !== ledger.run) return; // a later run, or `recover`, has taken care of it
    for (const part of undecidedParts(ledger)) {
      if (await partState(part) !== 'stopped') continue;
      const lock = takeLock(stateFolder, 0);
      if (lock === null) continue;
      if (readLedger(stateFolder)?.run !== ledger.run) return fs.closeSync(lock);
      await change(part.start, { toTranscript: true });
      say(`started ${part.name}, which had stopped late`);
      part.stoppedAt = new Date().toISOString();
      keepLedgerIfPossible(stateFolder, ledger);
      fs.closeSync(lock);
    }
  }
}

/**
 * `recover`: start whatever an interrupted run left stopped, in each of the state folders. Works without settings. Returns the exit
 * code: 0 nothing left to do or all up again, 3 something is still down, 75 a run is going on.
 */
export async function recover(stateFolders: string[], settings: Settings | null): Promise<number> {
  listenToSignals();
  const codes: number[] = [];
  for (const stateFolder of stateFolders.filter((one) => fs.existsSync(ledgerFile(one)) || hasCopies(one))) {
    try {
      codes.push(await recoverIn(stateFolder, settings));
    } catch (error) { // one state folder in disorder does not keep the others down
      sayError(error);
      codes.push(3);
    }
  }
  const code = codes.includes(3) ? 3 : Math.max(0, ...codes);
  if (code === 0) say('nothing is left stopped');
  if (mode.json) answer(JSON.stringify({ exitCode: code }));
  return code;
}

async function recoverIn(stateFolder: string, settings: Settings | null): Promise<number> {
  refuseIfOthersCanChange(stateFolder, named(stateFolder), { exitCode: 3 }); // no run begins in such a folder, so what lies there is not ours
  // Has that run told how it ended, then whoever holds the lock is its guard, which tries again from time to time.
  const lock = takeLock(stateFolder, readLedgerQuietly(stateFolder)?.reported ? 60 : 0);
  if (lock === null) {
    const isDown = readLedgerQuietly(stateFolder)?.reported === 'down';
    say(isDown ? 'what is down is being started by its guard just now' : 'a run, or its guard, is at work: nothing to recover');
    return isDown ? 3 : 75;
  }
  try {
    const ledger = readLedger(stateFolder);
    if (!ledger) await dropCopies(stateFolder); // the run was killed when all ran again, and borg read the snapshot
    if (!ledger) return 0;
    keepTranscript(stateFolder, 'recover');
    const down = await bringBack(stateFolder, ledger, 'recover', settings);
    if (down.length > 0) sayError(new Problem(`not running: ${down.join(', ')}`,
      { hint: 'look at its own log, mend it, then run `node backup.js recover` again' }), servicesNow(ledger, down));
    return down.length > 0 ? 3 : 0;
  } finally {
    fs.closeSync(lock);
  }
}
