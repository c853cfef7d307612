// Running other programs through zx, safely under root's cron.
// No standard input (zx would leave a socket there, and bash reads ~/.bashrc when it finds one), an own process group, bounded
// memory, an own time limit, C locale. Two verbs: look() never changes anything on the machine; change() does, is always
// printed, and never happens in a dry run. Signals, and the hour by which everything must run again, end the programs that
// may be ended, never this script itself.
import fs from 'node:fs';
import type { ChildProcess } from 'node:child_process';
import os from 'node:os';
import { setTimeout as sleep } from 'node:timers/promises';
import { $ } from 'zx/core';
import { Problem, lastLines, mode, pasteable, say, sayMore, transcriptNow, transcriptSince } from './say.ts';

/** How a program ended. code: its exit code, 128+n for signal n, 127 when it is not installed; out: stdout; said: what it complained of. */
export type Done = { argv: string[]; code: number; out: string; said: string; timedOut: boolean };

/** A program that has been started: give it its input, or end it. */
export type Started = { feed: (text: string) => void; end: () => void };

export type RunOptions = {
  seconds?: number; // own time limit; then `ladder`
  env?: Record<string, string>; // added to the environment
  cwd?: string;
  stdin?: number; // a file to read; nothing otherwise
  onStart?: (program: Started) => void; // it gets a pipe as standard input, and reads from it when it is fed
  stdout?: number; // a file to write to
  keepBytes?: number; // of stdout; the oldest is forgotten
  onLine?: (line: string) => void; // each line of stdout
  onErrorLine?: (line: string) => void; // each line of stderr
  toTranscript?: boolean; // output goes straight to the transcript: a daemon that keeps it open does not keep us waiting
  ladder?: NodeJS.Signals[]; // how to end it, a few seconds apart
  unlimited?: boolean; // never ended by us: not by the time limit, not by a signal, not by the deadline
};

/** A list that forgets its oldest pieces beyond a limit: however much a program prints, our memory stays small. */
class Tail extends Array<Buffer> {
  bytes = 0;
  limit = 64 * 1024;
  override push(piece: Buffer): number {
    this.bytes += piece.length;
    while (this.length > 0 && this.bytes > this.limit) this.bytes -= this.shift()!.length;
    return super.push(piece);
  }
}

function tail(limit: number): Tail {
  const list = new Tail();
  list.limit = limit;
  return list;
}

const STEP_OF_LADDER_MS = 3_000;
const LONGEST_LINE = 64 * 1024;
const enders = new Set<() => void>(); // one for each running program that may be ended
let stopRequest: { why: string; exitCode: number; hint?: string } | null = null; // somebody asked us to stop: a signal, the deadline
let shielded = false; // while things are started again nothing is given up, whatever anybody asks

/** Ask the night to end early: programs that may be ended are, then everything is started again. The first one who asks counts. */
export function askToStop(why: string, exitCode: number, hint?: string): void {
  const startsNothing = exitCode > 128 && hint;
  if (stopRequest) return say(`${why}: ${startsNothing ? 'what is under way is being ended' : 'everything is being started again'}, please wait`);
  stopRequest = { why, exitCode, hint };
  if (shielded) return say(`${why}: everything is being started again first, please wait`);
  say(`${why}: ending what is under way${startsNothing ? '' : '; what was stopped, if anything, is started again'}`);
  for (const end of enders) end();
}

/** Who asked to stop, if anybody: { why, exitCode }. */
export function askedToStop(): { why: string; exitCode: number; hint?: string } | null {
  return stopRequest;
}

/** Throws when somebody asked to stop and services are not being started just now. Called between steps and in every wait. */
export function goOn(): void {
  if (stopRequest && !shielded) throw new Problem(stopRequest.why, { exitCode: stopRequest.exitCode, hint: stopRequest.hint });
}

/** From here on nothing is given up any more: services are coming back. */
export function shield(on: boolean): void {
  shielded = on;
}

/** A signal is a request, not the end: whatever was stopped is started first. hint: of a command that stops nothing, what is left behind. */
export function listenToSignals(hint?: string): void {
  for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP'] as const) {
    process.on(signal, () => askToStop(hint ? 'called off' : `ended by ${signal}`, 128 + os.constants.signals[signal], hint));
  }
}

/** Now, by a clock that nobody sets while this process runs: so that times of one run can be compared. */
export const steadyNow = () => new Date(performance.timeOrigin + performance.now());

/**
 * Wait in short steps until `condition` says yes, and look at once when `news` comes. Returns false when `seconds` are over.
 * Throws when asked to stop.
 */
export async function waitUntil(seconds: number, condition: () => Promise<boolean> | boolean, stepMs = 100, news: Promise<unknown> | null = null): Promise<boolean> {
  const end = performance.now() + seconds * 1000; // no clock: that one may be set meanwhile
  for (;;) {
    if (await condition()) return true;
    goOn();
    if (!(performance.now() < end)) return false;
    const step = sleep(Math.min(stepMs, Math.max(1, end - performance.now())));
    if (news === null) await step;
    else if (await Promise.race([step.then(() => false), news.then(() => true)])) news = null;
    stepMs = Math.min(1000, stepMs * 1.2);
  }
}

/** Two things at once. Waits for both, whatever comes of them. Throws what the first one threw, else what the second one did. */
export async function sideBySide<One, Other>(one: Promise<One>, other: Promise<Other>): Promise<[One, Other]> {
  await Promise.allSettled([one, other]);
  return [await one, await other];
}

/** Do something for each, four at a time. Returns what came of them, in the same order. */
export async function fourAtATime<One, Result>(all: One[], work: (one: One) => Promise<Result>): Promise<Result[]> {
  const results: Result[] = [];
  for (let from = 0; from < all.length; from += 4) results.push(...await Promise.all(all.slice(from, from + 4).map(work)));
  return results;
}

/** Where programs are looked for: cron gives root only /usr/bin:/bin; Docker, sshd and PostgreSQL's wrappers may be elsewhere. */
export const programPath = () => `${process.env.PATH ?? ''}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin`.split(':').filter((folder) => folder.startsWith('/')).join(':'); // none that depends on where we are

// What changes how other programs load or speak is left out. A program of somebody else's gets no more than it needs: its owner can read its environment, and ours may hold secrets.
const UNWANTED = /^(BORG_|COLD_BACKUP_|ZX_|PG|LC_|LANGUAGE|LD_|GCONV_PATH|NODE_(OPTIONS|PATH)$|BASH|ENV$|SHELLOPTS|CDPATH|IFS$|PYTHON|PERL|SYSTEMD_|POSIXLY_CORRECT|CREDENTIALS_DIRECTORY)/;
const NEEDED_BY_OTHERS = /^(HOME|LANG|TZ|TERM|TMPDIR|USER|LOGNAME|SHELL)$/;

function environment(argv: string[], extra: Record<string, string>): Record<string, string> {
  const isOthers = argv.some((word) => word === 'runuser' || word === 'pg_ctlcluster');
  const own = Object.entries(process.env).filter(([name, value]) => value !== undefined && !UNWANTED.test(name) && (!isOthers || NEEDED_BY_OTHERS.test(name)));
  return { ...Object.fromEntries(own), PATH: programPath(), LC_ALL: 'C', ...extra } as Record<string, string>;
}

/** Send a signal to a program and everything it started. */
export function signalGroup(group: number, signal: NodeJS.Signals): void {
  try {
    process.kill(-group, signal);
  } catch { /* it has ended already */ }
}

/** Run one program to its end. Never throws for what the program does; callers judge `code`. */
async function runProgram(argv: string[], options: RunOptions): Promise<Done> {
  if (!options.unlimited) goOn();
  const ends = transcriptNow();
  const toFile = options.toTranscript ? (ends.fd ?? 'ignore') : 'pipe';
  const stdout = tail(options.keepBytes ?? 16 * 1024 * 1024), stderr = tail(64 * 1024);
  const child = $({
    stdio: [options.onStart ? 'pipe' : options.stdin ?? 'ignore', options.stdout ?? toFile, toFile],
    detached: true, // an own process group: Ctrl-C on the terminal reaches us, not docker or systemctl
    nothrow: true,
    quiet: true,
    cwd: options.cwd,
    env: environment(argv, { ...options.env, ...(options.onStart ? { SHLVL: '1' } : {}) }), // without it, bash with a pipe as its input reads ~/.bashrc
    store: { stdout, stderr, stdall: tail(0) },
  })`exec ${argv}`;
  let trouble: unknown = null; // of who listens: thrown where somebody can catch it
  const heard = (listener: (line: string) => void) => (line: string) => {
    try {
      if (trouble === null) listener(line);
    } catch (error) {
      trouble = error;
    }
  };
  if (options.onLine && child.stdout) eachLine(child.stdout, heard(options.onLine));
  if (options.onErrorLine && child.stderr) eachLine(child.stderr, heard(options.onErrorLine));
  let timedOut = false;
  const timers: NodeJS.Timeout[] = [];
  const end = () => (options.ladder ?? ['SIGTERM', 'SIGKILL']).forEach((signal, step) => {
    timers.push(setTimeout(() => child.pid && signalGroup(child.pid, signal), step * STEP_OF_LADDER_MS));
  });
  options.onStart?.({ end, feed: (text) => child.child?.stdin?.on('error', () => {}).end(text) }); // it may have ended before it has read all
  if (options.seconds && !options.unlimited) timers.push(setTimeout(() => { timedOut = true; end(); }, options.seconds * 1000));
  if (!options.unlimited && !shielded) enders.add(end);
  try {
    const result = await Promise.race([child, exitOf(child.child)]);
    if (trouble !== null) throw trouble;
    const code = result.signal ? 128 + os.constants.signals[result.signal] : result.exitCode ?? 127;
    const said = options.toTranscript ? transcriptSince(ends.bytes, 4096) : Buffer.concat(stderr).toString();
    return { argv, code, out: Buffer.concat(stdout).toString(), said, timedOut };
  } finally {
    enders.delete(end);
    timers.forEach(clearTimeout);
  }
}

// A daemon that the program left behind may keep our pipe open for ever: a few seconds after the program's own end we have heard enough.
function exitOf(child: ChildProcess | undefined): Promise<{ exitCode: number | null; signal: NodeJS.Signals | null }> {
  return new Promise((resolve) => {
    child?.once('exit', (exitCode, signal) => setTimeout(() => resolve({ exitCode, signal }), STEP_OF_LADDER_MS).unref());
  });
}

function eachLine(stream: NodeJS.ReadableStream, onLine: (line: string) => void): void {
  let rest = '';
  stream.on('data', (piece: Buffer) => {
    const lines = (rest + piece.toString()).split(/[\r\n]+/);
    rest = lines.pop()!.slice(-LONGEST_LINE);
    for (const line of lines) onLine(line);
  });
  stream.on('end', () => rest && onLine(rest));
}

/** Look at something: a command that never changes anything. Returns how it ended, never throws for it. */
export async function look(argv: string[], options: RunOptions = {}): Promise<Done> {
  const done = await runProgram(argv, { seconds: 60, ...options });
  sayMore(`looked: ${pasteable(argv).slice(0, 400)}${done.code === 0 ? '' : ` (exit code ${done.code}: ${lastLines(done.said, 1)})`}`);
  return done;
}

/** Like look(), but the answer is needed. Given what it is for, returns stdout. Throws Problem with `hint` when it fails. */
export async function lookFor(what: string, argv: string[], hint = '', options: RunOptions = {}): Promise<string> {
  const done = await look(argv, options);
  if (done.code !== 0) throw failure(what, done, hint);
  return done.out;
}

/**
 * Change something: printed, then done. Returns how it ended. A dry run never comes here; if one does, it is a fault of
 * ours, and nothing is changed.
 */
export async function change(argv: string[], options: RunOptions = {}): Promise<Done> {
  if (mode.dryRun) throw new Error(`a dry run was about to change something: ${pasteable(argv)}`);
  say(`  $ ${pasteable(argv)}`);
  return runProgram(argv, options);
}

/** A Problem out of a program that failed: what could not be done, the command, its last words. */
export function failure(what: string, done: Done, hint = ''): Problem {
  const how = done.timedOut ? 'no end within its time' : done.code === 127 ? 'not installed?' : `exit code ${done.code}`;
  return new Problem(`${what} (${how})`, { ran: done.argv, said: done.said || done.out, ...(hint ? { hint } : {}) });
}

/** Whether this host is run by systemd (sd_booted(3)). */
export function hasSystemd(): boolean {
  return fs.existsSync('/run/systemd/system');
}

/** Under systemd, a command that leaves a process behind gets a scope of its own: what a timer's unit started is killed when the unit ends. */
export function outlivingUs(argv: string[]): string[] {
  return hasSystemd() && process.getuid?.() === 0 ? ['systemd-run', '--scope', '--quiet', '--collect', '--', ...argv] : argv;
}
