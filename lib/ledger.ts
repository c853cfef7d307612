// The ledger: what a run has stopped, on disk before each stop, and the lock of that run.
// The lock tells whether the run is still alive. Whoever finds a ledger without its run (the guard, `recover`, the next run)
// starts everything from it, with nothing else to go by.
// Changes ledger.json and lock in the state folder, and a link to it for `recover`; never a part.
import fs from 'node:fs';
import path from 'node:path';
import { spawnSync } from 'node:child_process';
import { Problem, named, pasteable, warn } from './say.ts';
import { programPath } from './shell.ts';
import { writeDurably } from './files.ts';
import { misfit } from './form.ts';
import type { Form } from './form.ts';
import { startOfProcess } from './processes.ts';
import { activeUnits } from './units.ts';
import type { Part } from './units.ts';
import { runningContainers } from './containers.ts';

export type StoppedPart = Part & { askedAt: string; stoppedAt: string | null; runningAt: string | null; refused?: boolean }; // refused: its stop command failed
/** One exchange by rename: `staged` takes the place, what lay there goes aside. staged '': the archive has nothing for this place. */
export type Swap = { place: string; staged: string; aside: string };
export type FolderFacts = { mode: number; uid: number; gid: number };
/** A restore in place, as far as whoever finds its run dead has to know it. See the chapter SWAP. */
export type Restore = {
  archive: string;
  stamp: string; // names everything this restore makes
  stagings: string[]; // folders with what was extracted: removed in the end
  swaps: Swap[]; // all of them, before the first one is made
  folders: { path: string; before: FolderFacts; after: FolderFacts }[]; // mount points, and what lies around them: these stay
  made: string[]; // folders that had to be made
  later: Part[]; // what did not run here before, and runs in the new state
  state: '' | 'new' | 'old'; // '' = not settled yet
};
export type Ledger = {
  format: 1;
  howTo: string[];
  run: string;
  server: string;
  archive: string;
  startedAt: string;
  deadlineAt: string; // everything runs again by then
  starting: boolean;
  reported: string; // outcome that history and messages know of, '' = none
  stopTimeoutSeconds: number;
  parts: StoppedPart[]; // whose stop was asked for, in that order
  boot: string; // names this boot of the machine
  before: { units: string[]; containers: string[] }; // what was active on the host before the first stop
  restore?: Restore; // this run is no backup: it brings an archive back in place
};

export const STAGING = '.cold-backup-restore-'; // begins the name of every staging folder

const ELSEWHERE = '/var/lib/cold-backup/elsewhere'; // links to ledgers in other state folders: `recover` finds them without settings

export const ledgerFile = (stateFolder: string) => path.join(stateFolder, 'ledger.json');

/**
 * Take a lock of a state folder: that of runs, or another one by its name. Returns the open file that holds it (the kernel
 * lets go when this process ends, however it ends), or null.
 */
export function takeLock(stateFolder: string, waitSeconds: number, name = 'lock'): number | null {
  const file = path.join(stateFolder, name);
  let fd: number;
  try {
    fd = fs.openSync(file, fs.constants.O_CREAT | fs.constants.O_RDWR, 0o600);
  } catch {
    fd = fs.openSync(file, 'r'); // a file system that has become read-only must not keep services down
  }
  // flock(1) locks the open file, which is ours as well as its own: the lock stays when flock has ended (flock(2)).
  const { status, signal } = spawnSync('flock', ['--timeout', String(waitSeconds), '3'], { stdio: ['ignore', 'ignore', 'ignore', fd], env: { PATH: programPath() } });
  if (status === 0) return fd;
  fs.closeSync(fd);
  if (status !== 1 && !signal) throw new Problem('flock(1) does not work: without it two runs could go on at the same time', // Ctrl-C ends it, too
    { hint: 'install util-linux; is it on the PATH?' });
  return null;
}

const FOLDER_FACTS: Form = { mode: 'id', uid: 'id', gid: 'id' };
const LEDGER_FORM: Form = {
  run: 'text', server: 'text', archive: 'text', startedAt: 'time', deadlineAt: 'time', stopTimeoutSeconds: 'number',
  before: { units: ['text'], containers: ['text'] },
  parts: [{
    name: 'text', kind: 'text', group: 'number', start: ['text'], 'stop?': ['text'], 'running?': ['text'], 'stopSeconds?': 'number',
    'unit?': 'text', 'container?': 'text', 'database?': 'text', 'dataDirectory?': 'path', askedAt: 'time', 'stoppedAt?': 'time', 'runningAt?': 'time',
  }],
  'restore?': {
    archive: 'text', stamp: 'text', state: 'text', stagings: ['path'], made: ['path'],
    swaps: [{ place: 'path', staged: 'text', aside: 'path' }], folders: [{ path: 'path', before: FOLDER_FACTS, after: FOLDER_FACTS }],
    later: [{ name: 'text', group: 'number', start: ['text'], 'stop?': ['text'] }],
  },
};

/** The ledger in a state folder; null when nothing is stopped. Throws Problem when it is there and cannot be understood. */
export function readLedger(stateFolder: string): Ledger | null {
  const file = ledgerFile(stateFolder);
  let text = '', facts = { uid: -1, mode: 0 };
  try {
    const fd = fs.openSync(file, 'r');
    facts = fs.fstatSync(fd); // of the very file that is read
    text = fs.readFileSync(fd, 'utf8');
    fs.closeSync(fd);
  } catch (error: any) {
    if (error.code === 'ENOENT' || error.code === 'ENOTDIR') return null;
    throw new Problem(`${file} cannot be read: ${error.message}`, { exitCode: 3 });
  }
  const bad = (why: string) => new Problem(`${file} is damaged: ${why}`,
    { exitCode: 3, hint: `read it: it tells what was stopped and how to start it; start that by hand, then remove the file` });
  if (![0, process.getuid?.()].includes(facts.uid) || (facts.mode & 0o022) !== 0) throw bad('others could have written it'); // what stands in it is run as root
  let ledger: any;
  try {
    ledger = JSON.parse(text);
  } catch {
    throw bad('it is no JSON');
  }
  const odd = ledger?.format === 1 ? misfit(ledger, LEDGER_FORM) || ledger.parts.map((part: StoppedPart, index: number) => (part.start.length === 0 ? `parts[${index}].start` : '')).join('') : 'its form';
  if (odd) throw bad(`it is no ledger (${odd})`);
  const isPath = (value: any) => typeof value === 'string' && path.isAbsolute(value) && path.normalize(value) === value;
  const { stagings = [], swaps = [], folders = [], made = [] } = ledger.restore ?? {};
  if (![...stagings, ...made].every(isPath) || !stagings.every((one: string) => path.basename(one).startsWith(STAGING))) throw bad('it is no ledger of a restore');
  if (!swaps.every((one: any) => isPath(one?.place) && isPath(one.aside) && (one.staged === '' || isPath(one.staged))) || !folders.every((one: any) => isPath(one?.path))) throw bad('it is no ledger of a restore');
  return ledger;
}

/** The same, null also when it cannot be understood. */
export function readLedgerQuietly(stateFolder: string): Ledger | null {
  try {
    return readLedger(stateFolder);
  } catch {
    return null;
  }
}

/** Write the ledger to disk. Throws when that is impossible: then nothing more is stopped. */
export function keepLedger(stateFolder: string, ledger: Ledger): void {
  const open = ledger.parts.filter((part) => part.runningAt === null);
  ledger.howTo = ['These parts were stopped by cold-backup and have not been seen running since.', 'To start them: node backup.js recover. Or by hand, in this order:',
    ...(ledger.restore?.state === '' && ledger.restore.swaps.length > 0 ? ['A restore was under way: only `recover` knows whether old or new contents are in place. By hand, before anything is started:',
      ...ledger.restore.swaps.map(({ place, aside }) => `the old contents of ${named(place)} are in ${named(aside)} if that is there`)] : []),
    ...[...open].reverse().map((part) => pasteable(part.start))];
  const odd = misfit(ledger, LEDGER_FORM);
  if (odd) throw new Error(`the ledger could not be read back: ${odd}`);
  writeDurably(ledgerFile(stateFolder), `${JSON.stringify(ledger, null, 1)}\n`);
}

// While things start, a ledger that cannot be written (a full disk) must not keep them down: at worst a part is started twice.
export function keepLedgerIfPossible(stateFolder: string, ledger: Ledger): void {
  try {
    keepLedger(stateFolder, ledger);
  } catch (error: any) {
    warn(`the ledger cannot be written: ${error.message}`);
  }
}

// The kernel's boot, and the start of process 1, which in a container begins anew while the kernel runs on.
export function bootName(): string {
  return `${fs.readFileSync('/proc/sys/kernel/random/boot_id', 'utf8').trim()} ${startOfProcess(1)}`;
}

function linkElsewhere(stateFolder: string): string {
  return path.join(ELSEWHERE, stateFolder.replaceAll('%', '%25').replaceAll('/', '%2F'));
}

/** The state folders in which a run was interrupted, other than the usual one. */
export function stateFoldersElsewhere(): string[] {
  try {
    return fs.statSync(ELSEWHERE).uid === 0 ? fs.readdirSync(ELSEWHERE).map((name) => fs.readlinkSync(path.join(ELSEWHERE, name))) : [];
  } catch {
    return [];
  }
}

/** What is active on this host now. */
export const activeOnHost = async (): Promise<Ledger['before']> => ({ units: await activeUnits(), containers: await runningContainers() });

/** Open the ledger of a run: nothing stopped yet, what is active on this host noted. */
export async function openLedger(stateFolder: string, facts: Pick<Ledger, 'run' | 'server' | 'archive' | 'startedAt' | 'deadlineAt' | 'stopTimeoutSeconds'>): Promise<Ledger> {
  const ledger: Ledger = { format: 1, howTo: [], ...facts, starting: false, reported: '', boot: bootName(), parts: [], before: await activeOnHost() };
  if (process.getuid?.() === 0 && path.dirname(ELSEWHERE) !== stateFolder) {
    fs.mkdirSync(ELSEWHERE, { recursive: true, mode: 0o700 });
    fs.rmSync(linkElsewhere(stateFolder), { force: true });
    fs.symlinkSync(stateFolder, linkElsewhere(stateFolder));
  }
  return ledger;
}

/** Everything runs: the ledger goes. One that cannot be removed (a disk that fails) is a warning: who finds it again finds that all of it runs. */
export function closeLedger(stateFolder: string): void {
  try {
    fs.rmSync(ledgerFile(stateFolder), { force: true });
    if (process.getuid?.() === 0) fs.rmSync(linkElsewhere(stateFolder), { force: true }); // nobody else may look there
  } catch (error: any) {
    warn(`the ledger cannot be removed: ${error.message}`);
  }
}
