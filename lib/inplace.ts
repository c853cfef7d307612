// In place: `restore ... --in-place` puts an archive, or parts of it, where it was.
// On a machine that runs, or on a bare one. Everything is extracted beside its place and looked through while all still runs.
// Then: stop, swap by rename, start, check. The old contents stay aside, always; a run that dies is finished or rolled back by
// its guard, by `recover`, or by the next run (see SWAP).
// Changes: the places, the parts that use them, staging folders, volumes that Docker does not have yet.
import { randomUUID } from 'node:crypto';
import fs from 'node:fs';
import path from 'node:path';
import { Problem, answer, mode, named, openTranscript, say, sayBlock, sayError, span, warnings } from './say.ts';
import { askedToStop, change, failure, waitUntil } from './shell.ts';
import { isBelow, temporaryFolder } from './files.ts';
import { refuseIfOthersCanChange } from './check.ts';
import type { Loaded } from './check.ts';
import type { Settings } from './settings.ts';
import { lostUnits } from './units.ts';
import type { Part } from './units.ts';
import { findContainers } from './containers.ts';
import { clusterState, isUsed } from './postmaster.ts';
import { borgVersion } from './borg.ts';
import { serverName } from './plan.ts';
import { activeOnHost, closeLedger, keepLedger, keepLedgerIfPossible, openLedger, readLedger, readLedgerQuietly, takeLock } from './ledger.ts';
import type { Ledger } from './ledger.ts';
import { giveFolder, isThere, makeSwaps, removeStagings, settleRestore, tellRestore } from './swap.ts';
import { servicesNow, startParts, stopParts, undecidedParts } from './pause.ts';
import { armGuard, dismissGuard } from './guard.ts';
import { leftBy, startLeftovers, takeRunLock } from './leftovers.ts';
import type { Left } from './leftovers.ts';
import { stage, stagingsOf, swapsOf, whereIs, whyNoRoom } from './places.ts';
import type { Piece } from './places.ts';
import { byHand, partsOf, partsToCome, showComeback, touchesPlace, workOut } from './comeback.ts';
import type { Comeback, InPlace } from './comeback.ts';
import { checkWhatCameBack } from './afterwards.ts';

// `how`: { bare: no settings here, reindex, stateFolder: where ledger and lock are }; on a bare machine borg's cache is elsewhere (settings.stateFolder).
/** Given the settings, the script, the words and how, does all of it. Returns the exit code. Throws Problem while nothing has been changed. */
export async function restoreInPlace(loaded: Loaded, script: string, words: string[], how: InPlace): Promise<number> {
  const settings = mode.dryRun ? { ...loaded.settings, stateFolder: temporaryFolder() } : loaded.settings;
  const left = mode.dryRun ? null : await begin(settings, how);
  try {
    return await lookAndCarryOut({ ...loaded, settings }, script, words, how, left);
  } catch (error) {
    if (left && error instanceof Problem) throw new Problem(`${error.message}; ${left.why.message}`, { ...error.facts, exitCode: 3 }); // nothing was touched, so it is down still
    throw error;
  }
}

async function lookAndCarryOut(loaded: Loaded, script: string, words: string[], how: InPlace, left: Left | null): Promise<number> {
  const startedAt = new Date().toISOString();
  if (!mode.dryRun) openTranscript(path.join(how.stateFolder, 'log'), `${startedAt.slice(0, 19)}-restore`);
  await borgVersion();
  const comeback = await workOut(loaded, words, how, startedAt);
  showComeback(comeback);
  const why = whyNot(comeback);
  if (why && !(mode.dryRun && mode.json)) throw why;
  if (why) sayError(why); // the plan, with its findings, is the answer already
  if (why) return 2;
  if (mode.dryRun) return warnings.length > 0 ? 1 : 0;
  return carryOut(comeback, left, script, loaded.file, startedAt);
}

/** What speaks against it, before anything is touched: a finding of the judge, or no room. */
function whyNot(comeback: Comeback): Problem | null {
  if (comeback.findings.some((one) => one.verdict === 'refused')) return new Problem('this archive cannot work on this machine: see the findings marked "refused"',
    { hint: 'mend them with the commands above, then begin again; nothing was touched' });
  const noRoom = whyNoRoom(comeback.pieces);
  return noRoom.length === 0 ? null : new Problem(`no room for old and new contents together: ${noRoom.join('; ')}`,
    { hint: `make room, or do it by hand, as root, with the environment that \`node backup.js borg\` sets:\n        ${byHand(comeback).join('\n        ')}` });
}

// What an earlier run left down may be down for the very files that are to come back: so that does not keep us. Returns it.
async function begin(settings: Settings, { stateFolder }: InPlace): Promise<Left | null> {
  fs.mkdirSync(stateFolder, { recursive: true, mode: 0o700 });
  refuseIfOthersCanChange(stateFolder, '`stateFolder`');
  const isTold = () => readLedgerQuietly(stateFolder)?.reported === 'down'; // then its guard has the lock from time to time
  let isOurs = false;
  if (isTold()) {
    say('an earlier run left something stopped: waiting until its guard is not at work; each part that does not come up takes it up to ten minutes');
    await waitUntil(3600, () => askedToStop() !== null || (isOurs = takeLock(stateFolder, 0) !== null) || !isTold(), 500);
  }
  if (!isOurs) takeRunLock(stateFolder);
  const ledger = readLedger(stateFolder), isTried = ledger?.reported === 'down' && ledger.restore?.state !== ''; // a moment ago, and its swaps, if any, are settled
  const down = isTried ? ledger.parts.filter((part) => part.runningAt === null).map((part) => part.name) : [];
  const left = ledger && down.length > 0 ? leftBy(ledger, down) : await startLeftovers({ ...settings, stateFolder });
  if (left?.ledger.restore?.state === '') throw left.why; // whether old or new contents lie in place is still to be settled
  if (left) say(`${left.why.message}: this restore goes on, and starts it in the end`);
  return left;
}

// Our ledger takes the place of the one that was left, in one rename: at every moment there is one that tells what is down. The guard of that other run
// can do nothing while we have the lock, and ends when it finds another run's ledger, or none. A night numbers its groups otherwise (see partsNamed).
async function carryOver(ledger: Ledger, { ledger: other }: Left, asleep: Part[]): Promise<Ledger['before']> {
  const watched = undecidedParts(other); // they run, and may still follow their stop
  const groupOf = ({ name, kind, group }: Part) => asleep.find((one) => one.name === name)?.group ?? (other.restore ? group : kind === 'postgres' ? 1_000_000 : group * 100);
  ledger.parts.push(...other.parts.filter((part) => part.runningAt === null || watched.includes(part)).map((part) => ({ ...part, group: groupOf(part) })));
  const gone = other.before.units.filter((one) => !ledger.before.units.includes(one)); // with those parts, or with an earlier boot
  return { units: other.boot === ledger.boot ? gone : await lostUnits(gone, true), containers: other.before.containers.filter((one) => !ledger.before.containers.includes(one)) };
}

/** The story: extract, look through, stop, swap, start, check. Returns the exit code. */
async function carryOut(comeback: Comeback, left: Left | null, script: string, file: string, startedAt: string): Promise<number> {
  const { archive, stamp, settings, pieces, manifest, how } = comeback, { stateFolder } = how;
  const ledger = await openLedger(stateFolder, { run: randomUUID(), server: how.bare ? manifest.server : serverName(settings), archive, startedAt,
    deadlineAt: '9999-01-01T00:00:00.000Z', stopTimeoutSeconds: settings.stopTimeoutSeconds });
  const lost = left ? await carryOver(ledger, left, comeback.asleep) : { units: [], containers: [] };
  const andLost = ({ units, containers }: Ledger['before']) => ({ units: [...new Set([...units, ...lost.units])], containers: [...new Set([...containers, ...lost.containers])] });
  ledger.before = andLost(ledger.before);
  const restore = ledger.restore = { archive, stamp, stagings: stagingsOf(pieces), swaps: [], folders: [], made: [], later: [], state: '' };
  let guardPid = 0, trouble: unknown = null, down: string[] = [];
  try {
    keepLedger(stateFolder, ledger); // whoever finds it without us removes the stagings
    guardPid = await armGuard(script, stateFolder, file, ledger.run);
    await makeVolumes(pieces);
    await stage(settings, manifest, pieces, ledger.run);
    await lookOnceMore(comeback);
    ledger.before = andLost(await activeOnHost());
    Object.assign(restore, { later: await partsToCome(comeback), made: missingFolders(comeback) });
    ledger.parts = ledger.parts.filter((part) => !comeback.parts.some(({ name }) => name === part.name)); // what has come up since is noted anew as it is stopped
    ledger.deadlineAt = new Date(Date.now() + settings.maxDowntimeMinutes * 60_000).toISOString();
    // From here services are down.
    await stopParts(comeback.parts, ledger, stateFolder);
    await refuseUsedPlaces(comeback);
    Object.assign(restore, swapsOf(pieces, stamp)); // only now nothing comes or goes any more in the places
    keepLedger(stateFolder, ledger); // all swaps, before the first one
    makeFolders(comeback, restore.made);
    makeSwaps(restore);
  } catch (error) {
    trouble = error;
  }
  try {
    await settleRestore(ledger);
    ledger.parts.sort((one, other) => one.group - other.group); // what was taken over came first
    keepLedgerIfPossible(stateFolder, ledger);
    down = await startParts(ledger, stateFolder);
  } catch (error) { // a disk has gone: the guard goes on
    sayError(error);
    down = ledger.parts.filter((part) => part.runningAt === null).map((part) => part.name).concat(ledger.parts.length === 0 ? ['everything'] : []);
  }
  // From here services run again.
  return finish(comeback, ledger, guardPid, down, trouble);
}

async function makeVolumes(pieces: Piece[]): Promise<void> {
  for (const { volume, place } of pieces.filter((piece) => piece.volume !== '')) {
    const done = await change(['docker', 'volume', 'create', volume]);
    if (done.code !== 0) throw failure(`volume ${volume} cannot be made`, done);
    if (!fs.existsSync(place)) throw new Problem(`Docker made the volume ${volume} elsewhere than in ${named(place)}`,
      { hint: 'begin again: now it is there' });
  }
}

/** Folders above the places, and of sockets, that are not here: PostgreSQL does not start below a folder that it may not enter. */
function missingFolders({ manifest, pieces, clusters }: Comeback): string[] {
  const needed = [...pieces.map((piece) => path.dirname(piece.place)), ...clusters.filter((one) => one.container === '' && path.isAbsolute(one.socketFolder ?? '')).map((one) => path.resolve(one.socketFolder))]
    .filter((folder) => !pieces.some((piece) => isBelow(folder, piece.place)));
  const known = manifest.parents.map((one) => one.path);
  return [...new Set(needed.flatMap((folder) => [...known.filter((one) => isBelow(folder, one)), folder]))].filter((folder) => !isThere(folder)).sort();
}

function makeFolders({ manifest }: Comeback, folders: string[]): void {
  const idHere = (list: { id: number; name: string }[], file: string, id: number) => {
    const name = list.find((one) => one.id === id)?.name, line = fs.readFileSync(file, 'utf8').split('\n').find((one) => name && one.startsWith(`${name}:`));
    return line ? Number(line.split(':')[2]) : id;
  };
  for (const folder of folders) {
    const parent = manifest.parents.find((one) => one.path === folder);
    fs.mkdirSync(folder, { recursive: true, mode: 0o755 });
    if (!parent) continue;
    const uid = idHere(manifest.host.users.map(({ id, name }) => ({ id, name })), '/etc/passwd', parent.uid), gid = idHere(manifest.host.groups.map(({ id, name }) => ({ id, name })), '/etc/group', parent.gid);
    giveFolder(folder, { mode: parseInt(parent.mode, 8) & 0o7777, uid, gid });
  }
}

// The extraction may have taken hours: what came up meanwhile is stopped, too, else it would go on in the old contents; what else was stopped stays so.
async function lookOnceMore(comeback: Comeback): Promise<void> {
  const before = comeback.parts.map((part) => part.name);
  Object.assign(comeback, await partsOf(comeback));
  const started = comeback.parts.map((part) => part.name).filter((name) => !before.includes(name));
  if (started.length > 0) say(`started since this restore began, and stopped now: ${started.join(', ')}`);
}

// Somebody may have started a cluster or a container by hand since it was stopped.
async function refuseUsedPlaces({ pieces, clusters, parts }: Comeback): Promise<void> {
  const folders = [...clusters.map((one) => whereIs(pieces, one.dataDirectory, (piece) => piece.place)), ...parts.map((part) => part.dataDirectory ?? '')].filter((folder) => folder !== '' && fs.existsSync(folder));
  const used = folders.find((folder) => isUsed(folder) || clusterState(folder) !== 'stopped');
  if (used) throw new Problem(`PostgreSQL runs in ${named(used)}, and it was stopped a moment ago`, { hint: 'who started it? Then begin again' });
  const touches = touchesPlace(pieces), box = (await findContainers(false)).find((one) => one.running && one.mounts.some(({ source }) => touches(source)));
  if (box) throw new Problem(`container ${box.name} runs, and has mounted what comes back`, { hint: 'who started it? Then begin again' });
}

/** Close what is over, check what came back, tell it all. Returns the exit code. */
async function finish(comeback: Comeback, ledger: Ledger, guardPid: number, down: string[], trouble: unknown): Promise<number> {
  const { how: { stateFolder } } = comeback, { state } = ledger.restore!, isOpen = down.length > 0 || undecidedParts(ledger).length > 0;
  if (state !== '') await removeStagings(ledger.restore!); // until then they are needed: without them no swap can be undone, and one that was never begun looks done
  ledger.reported = down.length > 0 ? 'down' : 'failed';
  if (isOpen) keepLedgerIfPossible(stateFolder, ledger); // the guard goes on from it
  else closeLedger(stateFolder);
  if (guardPid && !isOpen) dismissGuard(guardPid, stateFolder);
  const wrong = trouble || state !== 'new' || down.length > 0 ? [] : await checkWhatCameBack(comeback).catch((error): string[] => {
    trouble = askedToStop() ? error : null;
    return trouble ? [] : [`the check did not get through: ${error.message}`];
  });
  return tellEnd(comeback, ledger, { down, isOpen, trouble, wrong });
}

/** Tell what runs now and how to get to the other state. Returns the exit code. */
function tellEnd({ archive, how }: Comeback, ledger: Ledger, { down, isOpen, trouble, wrong }: { down: string[]; isOpen: boolean; trouble: unknown; wrong: string[] }): number {
  const { state, swaps } = ledger.restore!, seconds = downSecondsOf(ledger);
  const services = ledger.parts.length > 0 || down.length === 0 ? servicesNow(ledger, down) : 'NOTHING IS STARTED. Act now: node backup.js recover';
  if (trouble) sayError(trouble, services);
  const text = swaps.length > 0 ? tellRestore(how.stateFolder, ledger, isOpen) : '';
  if (!trouble && down.length > 0) sayError(new Problem(`not running: ${down.join(', ')}`,
    { hint: state === '' ? 'mend or mount the disk, then: node backup.js recover' : 'look at its own log; mend it, and the guard starts it. Or go back with the commands below' }), services);
  if (wrong.length > 0) sayError(new Problem(`${archive} is in place and runs, but ${wrong.join('; ')}`,
    { hint: 'go back with the commands below, or restore another archive' }), services);
  const asked = trouble instanceof Problem ? trouble.facts.exitCode ?? 2 : 2, isBad = trouble !== null || wrong.length > 0;
  const exitCode = down.length > 0 ? 3 : isBad ? asked : warnings.length > 0 ? 1 : 0;
  const place = { new: `${archive} is in place`, old: 'the old contents are in place', '': 'it is undecided whether old or new contents are in place' }[state];
  const lines = [`${exitCode >= 2 ? 'NOT GOOD' : 'restored'}: ${place}, down ${span(seconds)}; services: ${services}`, text,
    ...(warnings.length > 0 ? ['warnings', ...warnings.map((one) => `  ${one}`)] : [])];
  sayBlock(`\n${lines.filter((line) => line !== '').join('\n')}`);
  if (mode.json) answer(JSON.stringify({ archive, state, exitCode, downSeconds: seconds, swaps, wrong, down, warnings }));
  return exitCode;
}

function downSecondsOf({ parts }: Ledger): number {
  const end = (part: Ledger['parts'][number]) => Date.parse(part.runningAt ?? new Date().toISOString());
  return parts.length === 0 ? 0 : (Math.max(...parts.map(end)) - Math.min(...parts.map((part) => Date.parse(part.askedAt)))) / 1000;
}
