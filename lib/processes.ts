// Who runs on this machine, read from /proc. No exit code of a stop command is believed: processes are.
// Never changes anything but for endRun(), which ends the borg and ssh of one run of ours and nothing else.
import fs from 'node:fs';
import path from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';

/** The start time of a process in clock ticks since boot, or '' when it is gone or a zombie. With the pid it names a process for good. */
export function startOfProcess(pid: number): string {
  try {
    const fields = fs.readFileSync(`/proc/${pid}/stat`, 'utf8').replace(/^.*\) /s, '').split(' '); // the name may hold anything
    return fields[0] === 'Z' || fields[0] === 'X' ? '' : fields[19]!;
  } catch {
    return '';
  }
}

export type Process = { pid: number; program: string; folder: string };

/** A file in the data directory of every copy that a drill or the judge runs, a label on its container: no run takes those for the server's own. */
export const SANDBOX_MARK = 'cold-backup-sandbox';
/** Who they belong to when we are root: nobody's number, on no machine. Root of an unprivileged container has only some numbers (user_namespaces(7)): there the highest of those. */
export const OWN_USER = Math.min(1_999_000_000, ...['uid_map', 'gid_map'].map((name) => Math.max(0, ...[...procFile(process.pid, name).matchAll(/^ *(\d+) +\d+ +(\d+)$/gm)].map(([, first, count]) => Number(first) + Number(count) - 1))));
const RUN_MARK = 'COLD_BACKUP_RUN'; // in the environment of every borg we start, and so of its ssh

/** Every process that can be seen: pid, program name, and folder of the program. */
export function processes(): Process[] {
  const found: Process[] = [];
  for (const entry of fs.readdirSync('/proc')) {
    if (!/^\d+$/.test(entry)) continue;
    try {
      const program = fs.readlinkSync(`/proc/${entry}/exe`).replace(/ \(deleted\)$/, ''); // replaced by an upgrade
      found.push({ pid: Number(entry), program: path.basename(program), folder: path.dirname(program) });
    } catch { /* a kernel thread, or gone by now */ }
  }
  return found;
}

/** 'device:inode' of a folder: the same folder has the same one inside and outside a container. '' when it is not there. */
export function deviceAndInode(folder: string): string {
  try {
    const { dev, ino } = fs.statSync(folder, { bigint: true });
    return `${dev}:${ino}`;
  } catch {
    return '';
  }
}

/**
 * The working directory of a process as device:inode. One on a network file system that has died keeps whoever asks for ever, with no time limit and
 * no signal: so only those are asked that can matter, never somebody's shell.
 */
export const workingFolder = (pid: number) => deviceAndInode(`/proc/${pid}/cwd`);

/** The text of a file below /proc, or '' when the process is gone. */
export function procFile(pid: number, name: string): string {
  try {
    return fs.readFileSync(`/proc/${pid}/${name}`, 'latin1');
  } catch {
    return '';
  }
}

/** The uid that a file or folder belongs to, -1 when it is gone or not for us to see, as what another user has mounted (FUSE). */
export function ownerOfFile(file: string): number {
  try {
    return fs.statSync(file).uid;
  } catch {
    return -1;
  }
}

/** The uid of a process, -1 when it is gone. */
export const ownerOf = (pid: number) => ownerOfFile(`/proc/${pid}`);

/** The PID namespace of a process, '' when it cannot be known: all processes of a container share one. */
export function pidNamespace(pid: number): string {
  try {
    return fs.readlinkSync(`/proc/${pid}/ns/pid`);
  } catch {
    return '';
  }
}

/** The environment that marks a program as belonging to a run. */
export function markOfRun(run: string): Record<string, string> {
  return { [RUN_MARK]: run };
}

function processesOfRun(run: string): number[] {
  const own = process.getuid?.();
  return processes().map(({ pid }) => pid).filter((pid) => {
    if (pid === process.pid || !procFile(pid, 'environ').split('\0').includes(`${RUN_MARK}=${run}`)) return false;
    return startOfProcess(pid) !== '' && ownerOf(pid) === own; // nobody else's, whatever it claims
  });
}

/**
 * End every borg (and its ssh) that a run left behind, and see it dead. Given the run's id and the signals, each of which gets three
 * seconds; KILL is always the last. (INT lets borg keep a checkpoint.) Returns whether none is left. Services come back only after this, so that no
 * archive is ever completed with files that are in use again.
 */
export async function endRun(run: string, signals: NodeJS.Signals[] = ['SIGTERM', 'SIGKILL']): Promise<boolean> {
  for (const signal of [...signals, 'SIGKILL' as const]) {
    for (const pid of processesOfRun(run)) {
      try {
        process.kill(pid, signal);
      } catch { /* it has just ended */ }
    }
    for (let waited = 0; waited < 3000; waited += 50) {
      if (processesOfRun(run).length === 0) return true;
      await sleep(50);
    }
  }
  return processesOfRun(run).length === 0;
}
