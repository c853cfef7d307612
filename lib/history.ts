// What has happened on this server: history.jsonl in the state folder, one JSON object a run.
// Changes that one file, and only adds to it. A line that cannot be read (a power cut while it was written) is passed over,
// never repaired.
import fs from 'node:fs';
import path from 'node:path';
import { misfit } from './form.ts';
import type { Form } from './form.ts';
import type { Certificate } from './certificate.ts';

/** What one `borg create` did. */
export type Pass = { files: number; originalBytes: number; compressedBytes: number; deduplicatedBytes: number; seconds: number };

/** One run (or drill) as it is remembered. Times are ISO 8601 UTC. */
export type HistoryLine = {
  kind: 'run' | 'drill';
  startedAt: string;
  endedAt: string;
  outcome: 'good' | 'warning' | 'failed' | 'down';
  exitCode: number;
  server: string;
  archive: string;
  downSeconds: number;
  startSeconds: number; // of downSeconds: from the first start to the last part seen running
  parts: { name: string; stoppedAt: string | null; runningAt: string | null; downSeconds: number }[];
  warm: Pass | null;
  cold: Pass | null;
  snapshot: string;
  warnings: string[];
  error: string;
  certificate?: Certificate; // of a drill
};

const historyFile = (stateFolder: string) => path.join(stateFolder, 'history.jsonl');

const PASS_FORM: Form = { files: 'number', originalBytes: 'number', compressedBytes: 'number', deduplicatedBytes: 'number', seconds: 'number' };
const LINE_FORM: Form = {
  'kind?': 'text', startedAt: 'time', endedAt: 'time', outcome: 'text', exitCode: 'number', archive: 'text', downSeconds: 'number', 'startSeconds?': 'number',
  'warnings?': ['text'], 'error?': 'text', 'warm?': PASS_FORM, 'cold?': PASS_FORM,
  'certificate?': { archive: 'text', proven: 'yes or no', madeAt: 'time', restoreSeconds: 'number', checks: [{ check: 'text' }] },
};

/** Every line of the history, oldest first; [] when there is none. */
export function readHistory(stateFolder: string): HistoryLine[] {
  let text = '';
  try {
    text = fs.readFileSync(historyFile(stateFolder), 'utf8');
  } catch {
    return [];
  }
  return text.split('\n').flatMap((line) => {
    try {
      const one = JSON.parse(line);
      return misfit(one, LINE_FORM) === '' ? [{ kind: 'run', ...one }] : [];
    } catch {
      return [];
    }
  });
}

/** Add a line to the history, on disk when this returns. Throws when the disk is full: the caller warns. */
export function remember(stateFolder: string, line: HistoryLine): void {
  const file = historyFile(stateFolder);
  const fd = fs.openSync(file, 'a+', 0o600);
  try {
    const { size: length } = fs.fstatSync(fd);
    const last = Buffer.alloc(1);
    const torn = length > 0 && fs.readSync(fd, last, 0, 1, length - 1) === 1 && last[0] !== 10; // a power cut in mid line
    fs.writeFileSync(fd, `${torn ? '\n' : ''}${JSON.stringify(line)}\n`); // all of it, or it throws
    fs.fsyncSync(fd);
  } finally {
    fs.closeSync(fd);
  }
}

export type Trend = { nights: number; downSeconds: number; leastDownSeconds: number; mostDownSeconds: number; newBytes: number; originalBytes: number; growthBytes: number };

/**
 * Given the history, returns the trend, or null when no night was good yet: what the last good nights were like, at most seven. Medians, their
 * range, and how much more a night the whole becomes; times in seconds, the rest in bytes.
 */
export function trendOf(history: HistoryLine[]): Trend | null {
  const nights = history.filter((line) => line.kind === 'run' && /^(good|warning)$/.test(line.outcome) && line.cold).slice(-7);
  if (nights.length === 0) return null;
  const median = (numbers: number[]) => [...numbers].sort((one, other) => one - other)[Math.floor(numbers.length / 2)]!;
  const down = nights.map((line) => line.downSeconds), whole = nights.map((line) => line.cold!.originalBytes), last = whole[whole.length - 1]!;
  return {
    nights: nights.length, downSeconds: median(down), leastDownSeconds: Math.min(...down), mostDownSeconds: Math.max(...down),
    newBytes: median(nights.map((line) => (line.warm?.deduplicatedBytes ?? 0) + line.cold!.deduplicatedBytes)),
    originalBytes: last, growthBytes: Math.round((last - whole[0]!) / Math.max(1, nights.length - 1)),
  };
}

/** The last run with a cold pass that counted, if there is one: the measure for tonight. */
export function lastGoodRun(stateFolder: string): HistoryLine | undefined {
  return readHistory(stateFolder).filter((line) => line.kind === 'run' && /^(good|warning)$/.test(line.outcome)).pop();
}
