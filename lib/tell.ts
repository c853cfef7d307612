// Telling people and machines how a night went: by a ping, a command, a file for Prometheus.
// Decides nothing. Changes the metrics file, and whatever the settings' own command does. A messenger that fails is a
// warning and never an error. What is secret in an address (its path) is never printed.
import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { createHash, randomUUID } from 'node:crypto';
import { lastLines, warn } from './say.ts';
import { change } from './shell.ts';
import { plainText } from './files.ts';
import { lastGoodRun } from './history.ts';
import type { Settings } from './settings.ts';

/** One message. The subject begins with outcome and server; body: the summary; logTail: the transcript's end; line: the history line. */
export type Outcome = {
  server: string;
  outcome: 'start' | 'good' | 'warning' | 'failed' | 'down';
  subject: string;
  body: string;
  logTail: string;
  line: Record<string, unknown>;
};

const PING_BYTES = 10_000; // self-hosted healthchecks keep no more of a ping's body (PING_BODY_LIMIT)
const SUMMARY_BYTES = 3_000;
const PING_SECONDS = 10;
const COMMAND_SECONDS = 60;

/**
 * Given the settings and a message, sends it by every messenger that is set, all at the same time: the slowest one decides how
 * long it takes, at most a minute. At the start of a run only the ping is sent. Never throws: who could not be told is a warning.
 */
export async function tell(settings: Settings, what: Outcome): Promise<void> {
  const { ping, command, metrics } = settings.tell, isEnd = what.outcome !== 'start';
  await Promise.all([
    ping && attempt(`tell.ping (${ping.split(/[/?#]/).slice(0, 3).join('/')})`, () => sendPing(settings, what)),
    isEnd && command.length > 0 && attempt('tell.command', () => runMessenger(settings, what)),
    isEnd && metrics && attempt('tell.metrics', async () => writeMetrics(settings, what)),
  ]);
}

/** Whether the settings name no messenger at all. */
export const tellsNobody = ({ tell: { ping, command, metrics } }: Settings) => !ping && !metrics && command.length === 0;

async function attempt(name: string, messenger: () => Promise<void>): Promise<void> {
  try {
    await messenger();
  } catch (error: any) {
    warn(`${name} did not work: ${error.message}`);
  }
}

async function sendPing(settings: Settings, what: Outcome): Promise<void> {
  const address = pingAddress(settings.tell.ping, what), summary = Buffer.from(`${what.subject}\n\n${what.body}`).subarray(0, SUMMARY_BYTES).toString();
  const withLog = settings.tell.sendLog && what.outcome !== 'start';
  const body = withLog ? `${summary}\n\n${Buffer.from(what.logTail).subarray(SUMMARY_BYTES - PING_BYTES)}` : summary;
  const trouble = await post(address, body) && await post(address, body); // twice: a lost packet is no reason to wake somebody
  if (trouble) throw new Error(trouble);
}

/** The address for this outcome. `rid` pairs the end of a run with its start, also when the guard tells the end in the run's place. */
function pingAddress(ping: string, { outcome, server, line }: Outcome): URL {
  const address = new URL(ping), end = { start: '/start', good: '', warning: '', failed: '/fail', down: '/fail' }[outcome];
  const sum = createHash('sha256').update(`${server} ${line.kind} ${line.startedAt}`).digest('hex');
  const id = sum.replace(/^(.{8})(.{4}).(.{3}).(.{3})(.{12}).*/, '$1-$2-5$3-8$4-$5'); // in the form of a UUID
  if (end) address.pathname = address.pathname.replace(/\/$/, '') + end;
  address.search = `${address.search ? `${address.search}&` : '?'}rid=${id}`;
  return address;
}

/** Returns '' when the other side took it, otherwise why not. fetch()'s own messages are not used: they may hold the whole address. */
async function post(address: URL, body: string): Promise<string> {
  try {
    const response = await fetch(address, { method: 'POST', body, headers: { 'Content-Type': 'text/plain; charset=utf-8' }, signal: AbortSignal.timeout(PING_SECONDS * 1000) });
    await response.body?.cancel();
    return response.ok ? '' : `it answered ${response.status}`;
  } catch (error: any) {
    return error.name === 'TimeoutError' ? `no answer within ${PING_SECONDS} s` : String(error.cause?.code ?? error.name);
  }
}

async function runMessenger(settings: Settings, what: Outcome): Promise<void> {
  const env = { COLD_BACKUP_OUTCOME: what.outcome, COLD_BACKUP_SERVER: what.server, COLD_BACKUP_SUBJECT: what.subject };
  const stdin = fileToRead(`${what.body}\n`, settings.stateFolder);
  // timeout(1) and not our own limit: after a signal change() begins nothing that may be ended, but somebody must still be told.
  const { code, said, out } = await change(['timeout', '-k', '5', String(COMMAND_SECONDS), ...settings.tell.command], { env, stdin, unlimited: true });
  if (stdin !== undefined) fs.closeSync(stdin);
  if (code === 124 || code === 137) throw new Error(`no end within ${COMMAND_SECONDS} s`);
  if (code !== 0) throw new Error(`exit code ${code}, ${lastLines(said || out, 1) || 'without a word'}`);
}

/** A descriptor from which the text can be read, of a file that has no name any more. undefined: no disk has room, the subject must do. */
function fileToRead(text: string, stateFolder: string): number | undefined {
  for (const folder of [stateFolder, os.tmpdir(), '/dev/shm']) { // a full disk is just what somebody has to be told of
    const file = path.join(folder, `.message-${randomUUID()}`);
    try {
      fs.writeFileSync(file, text, { mode: 0o600, flag: 'wx' });
      return fs.openSync(file, 'r');
    } catch { /* the next one */ } finally {
      fs.rmSync(file, { force: true });
    }
  }
  return undefined;
}

function writeMetrics({ tell: { metrics }, stateFolder }: Settings, what: Outcome): void {
  if (what.line.kind === 'drill') return; // these are about runs
  const old = plainText(metrics); // its folder may be another user's
  const told = Number(/^cold_backup_last_success_timestamp_seconds\{.*\} (\d+)$/m.exec(old)?.[1] ?? 0);
  const isGood = what.outcome === 'good' || what.outcome === 'warning';
  const text = metricsText(what, isGood ? epochSeconds(what.line.endedAt) : Math.max(told, epochSeconds(lastGoodRun(stateFolder)?.endedAt)));
  fs.rmSync(`${metrics}.new`, { force: true });
  const fd = fs.openSync(`${metrics}.new`, 'wx');
  fs.writeFileSync(fd, text);
  fs.fchmodSync(fd, 0o644); // whatever our umask is: who reads it is not root
  fs.closeSync(fd);
  fs.renameSync(`${metrics}.new`, metrics);
}

const epochSeconds = (time: unknown) => Math.round(Date.parse(String(time)) / 1000) || 0; // since 1970; 0: never

function metricsText({ server, outcome, line }: { server: string; outcome: string; line: Record<string, any> }, success: number): string {
  const down = (line.parts ?? []).filter((part: { runningAt: unknown }) => part.runningAt === null).length;
  const gauges = [
    ['last_run_timestamp_seconds', 'When the last run ended', epochSeconds(line.endedAt)],
    ['last_success_timestamp_seconds', 'When the last run with a proven archive ended, 0: never', success],
    ['last_exit_code', 'Exit code of the last run: 0 good, 1 with warnings, 2 failed, 3 something is down', line.exitCode],
    ['down_seconds', 'How long services were down in the last run', line.downSeconds],
    ['duration_seconds', 'How long the last run took', epochSeconds(line.endedAt) - epochSeconds(line.startedAt)],
    ['stored_bytes', 'What the last run added to the repository', (line.warm?.deduplicatedBytes ?? 0) + (line.cold?.deduplicatedBytes ?? 0)],
    ['services_down', 'How many parts the last run could not start again', outcome === 'down' ? Math.max(1, down) : 0],
  ];
  const label = server.replace(/\\/g, '\\\\').replace(/"/g, '\\"').replace(/\n/g, '\\n');
  return gauges.map(([name, help, value]) => `# HELP cold_backup_${name} ${help}\n# TYPE cold_backup_${name} gauge\ncold_backup_${name}{server="${label}"} ${Number(value) || 0}\n`).join('');
}
