// The pause: stop the parts, each seen stopped, and start them again, each seen running.
// Before each stop, what will have to be started is in the ledger on disk; a part counts as back only when it has been seen running.
// Changes: the parts of the plan, and the ledger. Never kills a part.
import { setTimeout as sleep } from 'node:timers/promises';
import { Problem, count, lastLines, named, pasteable, say, span, warn } from './say.ts';
import { change, failure, goOn, look, shield, steadyNow, waitUntil } from './shell.ts';
import type { Done } from './shell.ts';
import { bootName, keepLedger, keepLedgerIfPossible } from './ledger.ts';
import type { Ledger, StoppedPart } from './ledger.ts';
import { lostUnits, triggersLeft, unitState } from './units.ts';
import type { Part, State } from './units.ts';
import { containerState, runningContainers } from './containers.ts';
import { clusterAnswers, clusterState, userOf } from './postmaster.ts';

const START_SECONDS = 300; // for one part to be seen running and healthy
const START_ATTEMPTS = 3;
const PATIENCE_MS = 60_000; // with one part, before the next ones are started all the same

/** What a part does now, by what it really is: unit, container, cluster, or the answer of its own command. */
export async function partState(part: Part): Promise<State> {
  const states: State[] = [];
  if (part.unit) states.push(await unitState(part.unit));
  if (part.container) states.push((await containerState(part.container)).state);
  if (part.dataDirectory) states.push(clusterState(part.dataDirectory));
  if (part.running) {
    const { code, timedOut } = await look(part.running);
    states.push(timedOut ? 'moving' : code === 0 ? 'running' : 'stopped');
  }
  return states.every((state) => state === states[0]) ? states[0]! : 'moving';
}

/** Whether a part runs and does its work: active, answering, healthy if it has a health check that was content before. */
async function runsWell(part: Part): Promise<boolean> {
  try {
    return await doesItsWork(part);
  } catch { // whoever should know does not answer
    return false;
  }
}

async function doesItsWork(part: Part): Promise<boolean> {
  if (part.kind === 'postgres') return (!part.unit || await unitState(part.unit) === 'running') && clusterAnswers(part.dataDirectory!);
  if (part.container) {
    const { state, healthy } = await containerState(part.container);
    return state === 'running' && (healthy || !part.healthy) && (!part.dataDirectory || clusterAnswers(part.dataDirectory));
  }
  return await partState(part) === 'running';
}

/**
 * Right before the first stop, which may be hours after the plan: what has stopped since stays stopped. Throws Problem when a part came up since:
 * how to stop that one was not looked at.
 */
export async function lookAgain(parts: Part[]): Promise<void> {
  await Promise.all(parts.map(async (part) => {
    const state = await partState(part);
    if (state === 'running' && !part.wasRunning) throw new Problem(`${part.name} was started since this run began, so nothing was stopped`, { hint: 'begin again: `node backup.js --now`' });
    if (state !== 'stopped' || !part.wasRunning || part.running) return; // by its own command it may only have failed to answer: then it is stopped all the same
    say(`${part.name} has stopped since this run began: it stays so`);
    const triggers = part.kind === 'service' ? await triggersLeft(part) : [];
    part.wasRunning = triggers.length > 0;
    if (part.wasRunning) Object.assign(part, { unit: triggers[0], start: ['systemctl', 'start', '--', ...triggers] }); // or its socket or timer starts it in the middle of the copy
  }));
}

/**
 * Stop the running parts in order, each seen stopped before the next; parts of one group together. Before each stop the
 * ledger is on disk. Throws Problem when a part does not stop in its time: what is stopped by then stands in the ledger.
 */
export async function stopParts(parts: Part[], ledger: Ledger, stateFolder: string): Promise<void> {
  for (const group of new Set(parts.map((part) => part.group))) {
    const together = parts.filter((part) => part.group === group && part.wasRunning)
      .map((part): StoppedPart => ({ ...part, askedAt: steadyNow().toISOString(), stoppedAt: null, runningAt: null }));
    if (together.length === 0) continue;
    goOn(); // asked to end before this group went down: then it need not
    ledger.parts.push(...together);
    keepLedger(stateFolder, ledger);
    const ends = await Promise.allSettled(together.map((part) => stopPart(part, ledger.stopTimeoutSeconds)));
    keepLedger(stateFolder, ledger);
    for (const end of ends) if (end.status === 'rejected') throw end.reason;
  }
}

// The command is not waited for as such: what counts is the part itself. A command that failed while the part runs on ends the wait.
async function stopPart(part: StoppedPart, limitSeconds: number): Promise<void> {
  const began = Date.now();
  const command: { done: Done | null } = { done: null };
  const stopped = change(part.stop, { unlimited: true, toTranscript: true }).then((done) => { command.done = done; });
  const seen = await waitUntil(limitSeconds, async () => {
    const finished = command.done;
    const state = await partState(part);
    if (state === 'running' && finished && finished.code !== 0) {
      part.refused = true;
      throw failure(`could not stop ${part.name}`, finished, 'find out why (its own log), and stop and start it once by hand; then: node backup.js --now');
    }
    return state === 'stopped' && finished !== null; // docker stop may still be at work on what has just ended
  }, 30, stopped);
  if (!seen) {
    const user = part.dataDirectory ? userOf(part.dataDirectory) : '';
    throw new Problem(`${part.name} did not stop within ${limitSeconds} s: the run is called off`, { ran: part.stop,
      hint: `find out what keeps it (a long query, a client that does not let go${user && `; ${user} is in its data directory`}), or raise \`stopTimeoutSeconds\`` });
  }
  part.stoppedAt = steadyNow().toISOString();
  say(`stopped ${part.name} in ${span((Date.now() - began) / 1000)}`);
}

/**
 * Start everything in the ledger, in reverse, each seen running and healthy; one that fails does not keep the others down.
 * Then whatever else was active on the host before and is not now. Nothing interrupts this. Returns what is still down.
 */
export async function startParts(ledger: Ledger, stateFolder: string): Promise<string[]> {
  shield(true);
  try {
    ledger.starting = true;
    keepLedgerIfPossible(stateFolder, ledger);
    const starts: Promise<void>[] = [];
    for (const group of [...new Set(ledger.parts.map((part) => part.group))].reverse()) {
      const together = ledger.parts.filter((part) => part.group === group && part.runningAt === null).map((part) => startPart(part, ledger));
      await Promise.race([Promise.allSettled(together), sleep(PATIENCE_MS)]); // one that takes long does not keep the others down
      starts.push(...together);
      keepLedgerIfPossible(stateFolder, ledger);
    }
    await Promise.allSettled(starts);
    const down = await startWhatElseWasActive(ledger).catch((error): string[] => {
      warn(`what else was active on this host could not be seen: ${error.message}`);
      return [];
    });
    for (const part of ledger.parts) { // a part may start well and fall over at once, or need one that came after it
      if (await runsWell(part)) {
        part.runningAt ??= steadyNow().toISOString();
        continue;
      }
      part.runningAt = null;
      if (part.stoppedAt !== null) await startPart(part, ledger); // else it has been waited for long enough; the guard goes on
      if (part.runningAt === null) down.push(part.name);
    }
    keepLedgerIfPossible(stateFolder, ledger);
    return down;
  } finally {
    shield(false);
  }
}

async function startPart(part: StoppedPart, ledger: Ledger): Promise<void> {
  const began = Date.now();
  const isDecided = part.stoppedAt !== null || await waitForEndOfStop(part, ledger.stopTimeoutSeconds);
  if (part.running && await runsWell(part)) { // nobody says that an own start command does nothing while its part runs: it may make a second one
    part.runningAt = steadyNow().toISOString();
    return say(part.stoppedAt ? `${part.name} runs already: somebody else has started it` : `${part.name} was not seen to stop, and runs: should it still end, the guard starts it`);
  }
  const limitSeconds = isDecided ? START_SECONDS : 5; // what still hangs in its stop must not keep the others down
  for (let attempt = 1; attempt <= START_ATTEMPTS; attempt++) {
    const command: { done: Done | null } = { done: null };
    const started = change(part.start, { unlimited: true, toTranscript: true }).then((done) => { command.done = done; });
    let underWayAt = performance.now();
    const seen = await waitUntil(limitSeconds, async () => {
      if (await runsWell(part)) return true;
      if (command.done === null || await partState(part) !== 'stopped') underWayAt = performance.now();
      // It will not come by waiting: its start failed, or it fell over. A daemon of an own command may show itself late.
      return Boolean(command.done?.code) || performance.now() - underWayAt > (part.running ? 60_000 : 3_000);
    }, 30, started);
    if (seen && await runsWell(part)) {
      part.runningAt = steadyNow().toISOString();
      return say(`started ${part.name} in ${span((Date.now() - began) / 1000)}`);
    }
    if (command.done?.code) warn(`${failure(`could not start ${part.name}`, command.done).message}: ${lastLines(command.done.said, 1)} (ran: ${pasteable(part.start)})`);
    else warn(`${part.name} ${seen ? 'was started and went down at once' : `has not been seen running within ${limitSeconds} s`}`);
    if (!seen) return;
    await waitUntil(2, () => false);
  }
}

// A stop that was asked for and not seen through is still under way: the part may go down after we found it running, and
// starting it before that would do nothing. So it is waited for, until it has stopped or has shown that it runs on.
async function waitForEndOfStop(part: StoppedPart, limitSeconds: number): Promise<boolean> {
  const asked = Date.parse(part.askedAt);
  const undecided = Math.min(limitSeconds, Math.max(8, (part.database === '' ? part.stopSeconds ?? 0 : 0) + 3));
  return waitUntil(limitSeconds, async () => {
    const state = await partState(part);
    if (state === 'stopped') part.stoppedAt = steadyNow().toISOString();
    return state === 'stopped' || (state === 'running' && steadyNow().getTime() - asked > undecided * 1000);
  });
}

// Units that required a stopped one went down with it, and so may have containers: nobody named them, but they ran.
async function startWhatElseWasActive(ledger: Ledger): Promise<string[]> {
  if (ledger.parts.length === 0) return []; // nothing was stopped: what has ended since did so by itself, or somebody wanted it
  const down: string[] = [];
  const ours = new Set(ledger.parts.flatMap((part) => [part.unit ?? '', part.container ?? '']));
  const lost = await lostUnits(ledger.before.units, ledger.boot !== bootName());
  for (const unit of lost.filter((one) => !ours.has(one))) {
    const { code } = await change(['systemctl', 'start', '--', unit], { toTranscript: true, seconds: START_SECONDS });
    if (code !== 0) down.push(`service ${unit}`);
    warn(`unit ${unit} went down with the others and was ${code === 0 ? '' : 'NOT '}started again: name it in \`stop\``);
  }
  const running = new Set(await runningContainers()), wholeDocker = ledger.parts.some((part) => /^(docker|containerd)\./.test(part.unit ?? ''));
  for (const name of ledger.before.containers.filter((one) => !running.has(one) && !ours.has(one))) {
    const { exists, exitCode } = await containerState(name);
    if (!exists || (exitCode === 0 && !wholeDocker)) continue; // it was removed, or had done its work
    const { code } = await change(['docker', 'start', name], { toTranscript: true, seconds: START_SECONDS });
    if (code !== 0) down.push(`container ${name}`);
    warn(`container ${name} went down with the others and was ${code === 0 ? '' : 'NOT '}started again: name it in \`stop\``);
  }
  return down;
}

/**
 * Parts that run, but were asked to stop and never seen to: they may still follow. They stay in the ledger for an hour, and are
 * watched. An active unit, a cluster that answers, and a container that `docker stop` has let go of will not follow any more;
 * of another database in a container, and of an own command, nobody can know: one that failed may only have grown tired of waiting.
 */
export function undecidedParts(ledger: Ledger): StoppedPart[] {
  const limit = (ledger.stopTimeoutSeconds + 3600) * 1000;
  const isKnown = (part: StoppedPart) => part.runningAt !== null && Boolean(part.unit || part.dataDirectory || (part.database === '' && part.stopSeconds! + 3 < ledger.stopTimeoutSeconds));
  return ledger.parts.filter((part) => part.stoppedAt === null && !(part.refused && !part.running) && !isKnown(part) && Date.now() - Date.parse(part.askedAt) < limit);
}

/** The state of the machine in words: the last line of every error after the first stop. */
export function servicesNow(ledger: Pick<Ledger, 'parts'>, down: string[]): string {
  const others = ledger.parts.filter(({ name }) => !down.includes(name)).length; // what is down may be no part, but have gone down with one
  if (down.length > 0) return `NOT RUNNING: ${down.map(named).join(', ')} (${count(others, 'part')} running). Act now: node backup.js recover`;
  if (others === 0) return 'nothing was stopped';
  return others === 1 ? `${ledger.parts[0]!.name} is running again` : `all ${others} are running again`;
}
