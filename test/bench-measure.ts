// What the bench measures with: a program run to its end (seconds on the clock, CPU seconds of it and every child it waited
// for, memory of its whole process tree), medians, and straight lines through points. Raw numbers are rows of plain JSON, one file
// a part, in bench/, which git does not keep. What a program leaves running (a database it starts) is in nobody's CPU seconds,
// and neither is the storage's side, for all methods alike.
import { execFileSync, spawn } from 'node:child_process';
import type { ChildProcess } from 'node:child_process';
import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { repositoryRoot } from './script.ts';
import { PG } from './cluster.ts';

export type Measured = { seconds: number; cpuSeconds: number; memoryMB: number; ownMB: number }; // memory: of the whole tree at once; of the program itself
export type Row = Record<string, string | number | boolean>;
export type PartFile = { part: string; date: string; runs: number; machine: Record<string, string | number>; rows: Row[] };
export const RAW = path.join(repositoryRoot, 'bench');

/** Run a program to its end, its output thrown away. Throws with the end of what it said when it fails: when its exit code is none of `fine`. */
export async function measure(argv: string[], options: { env?: NodeJS.ProcessEnv; cwd?: string; fine?: number[] } = {}): Promise<Measured> {
  const timed = ['-c', 'TIMEFORMAT="took %3R %3U %3S"; time "$@"', 'measure', ...argv];
  const child = spawn('bash', timed, { stdio: ['ignore', 'ignore', 'pipe'], env: { ...process.env, SHLVL: '1', ...options.env }, cwd: options.cwd });
  const peak = watchTree(child.pid!);
  let said = '';
  child.stderr.on('data', (piece) => { said = (said + piece).slice(-4000); });
  const code = await new Promise((resolve) => { child.on('exit', (status) => setTimeout(() => resolve(status), 20)); }); // not 'close': a database that was started may hold it open
  const memory = peak(), took = /^took ([\d.]+) ([\d.]+) ([\d.]+)$/m.exec(said);
  if (!(options.fine ?? [0]).includes(Number(code)) || !took) throw new Error(`exit code ${code}: ${argv.join(' ').slice(0, 400)}\n${said}`);
  const [seconds, user, system] = took.slice(1).map(Number) as [number, number, number];
  return { seconds, cpuSeconds: user + system, ...memory };
}

/** Run several programs one after the other, as one: their seconds add up, of their memory the largest counts. */
export async function measureAll(steps: string[][], fine = [0]): Promise<Measured> {
  const all: Measured = { seconds: 0, cpuSeconds: 0, memoryMB: 0, ownMB: 0 };
  for (const argv of steps) {
    const one = await measure(argv, { fine });
    all.seconds += one.seconds;
    all.cpuSeconds += one.cpuSeconds;
    all.memoryMB = Math.max(all.memoryMB, one.memoryMB);
    all.ownMB = Math.max(all.ownMB, one.ownMB);
  }
  return all;
}

/** Look at all processes below one ten times a second, until the returned function is called. Databases are not counted. */
function watchTree(pid: number): () => { memoryMB: number; ownMB: number } {
  let memoryMB = 0, ownMB = 0;
  const look = () => {
    const all = everyProcess(), below = new Set([pid]);
    for (let found = 0; found < below.size;) { // until a round finds no more children
      found = below.size;
      for (const one of all) if (below.has(one.parent)) below.add(one.pid);
    }
    const counted = all.filter((one) => one.pid !== pid && below.has(one.pid) && !/^(postgres|pg_ctl)$/.test(one.name));
    memoryMB = Math.max(memoryMB, counted.reduce((sum, one) => sum + one.memoryMB, 0));
    ownMB = Math.max(ownMB, ...counted.filter((one) => one.parent === pid).map((one) => one.memoryMB));
  };
  const timer = setInterval(look, 100), soon = setTimeout(look, 30);
  return () => { clearInterval(timer); clearTimeout(soon); return { memoryMB, ownMB }; };
}

const PAGE_MB = 4096 / 1e6;
function everyProcess(): { pid: number; parent: number; name: string; memoryMB: number }[] {
  return fs.readdirSync('/proc').filter((entry) => /^\d+$/.test(entry)).flatMap((entry) => {
    try {
      const [, name, rest] = /^\d+ \((.*)\) (.*)$/s.exec(fs.readFileSync(`/proc/${entry}/stat`, 'latin1'))!; // proc(5)
      const fields = rest!.split(' ');
      return [{ pid: Number(entry), parent: Number(fields[1]), name: name!, memoryMB: Number(fields[21]) * PAGE_MB }];
    } catch {
      return []; // it has ended
    }
  });
}

/** The next thing a child process says through its channel. Throws when it ends instead. */
export function nextMessage(child: ChildProcess): Promise<any> {
  return new Promise((resolve, reject) => {
    const ended = () => reject(new Error(`${child.spawnargs.at(-1)}: the process has ended`));
    child.once('exit', ended).once('message', (message) => { child.off('exit', ended); resolve(message); });
  });
}

export function median(numbers: number[]): number {
  const sorted = [...numbers].sort((one, other) => one - other), middle = (sorted.length - 1) / 2;
  return (sorted[Math.floor(middle)]! + sorted[Math.ceil(middle)]!) / 2;
}

/** The straight line that lies nearest to some points (least squares): y = start + slope * x. Needs two different x. */
export function straightLine(points: { x: number; y: number }[]): { start: number; slope: number } {
  const mean = (of: (point: { x: number; y: number }) => number) => points.reduce((sum, point) => sum + of(point), 0) / points.length;
  const x = mean((point) => point.x), y = mean((point) => point.y);
  const slope = mean((point) => (point.x - x) * (point.y - y)) / mean((point) => (point.x - x) ** 2);
  return { start: y - slope * x, slope };
}

/** Keep a part's rows, with what the machine is. Called after every row, so that a run that is ended keeps what it has. */
export function keepRows(part: string, runs: number, rows: Row[]): void {
  fs.mkdirSync(RAW, { recursive: true });
  const file: PartFile = { part, date: new Date().toISOString(), runs, machine: machineFacts(), rows };
  fs.writeFileSync(path.join(RAW, `${part}.json`), `${JSON.stringify(file, null, 1)}\n`);
}

let facts: Record<string, string | number> | undefined;
function machineFacts(): Record<string, string | number> {
  const packages = ['borgbackup', 'borgmatic', 'restic', 'rsnapshot', 'rdiff-backup', 'rsync', 'openssh-server', `postgresql-${PG}`, 'btrfs-progs', 'xfsprogs'];
  const version = (name: string) => execFileSync('dpkg-query', ['--show', '--showformat=${Version}', name], { encoding: 'utf8' });
  return facts ??= { cores: os.cpus().length, memoryGB: Math.round(os.totalmem() / 1e9), kernel: os.release(), node: process.version, ...Object.fromEntries(packages.map((name) => [name, version(name)])) };
}
