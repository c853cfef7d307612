// The certificate: what a drill found, in the history, in the archives that follow, and in words. `status` and `doctor` ask for the last one.
// Only reckons and words; the drill writes it into the history.
import { named, size, span } from './say.ts';
import { readHistory } from './history.ts';
import type { HistoryLine } from './history.ts';

/** One thing that a drill looked at. ok: null = it cannot be known here, or there is nothing to look at. */
export type DrillCheck = { cluster: string; check: string; ok: boolean | null; seconds: number; detail: string };
/**
 * What a drill found out about an archive. proven: nothing that was looked at is wrong. restoreSeconds: what a restore of
 * the whole archive would take here.
 */
export type Certificate = {
  archive: string; server: string; proven: boolean; madeAt: string; where: string; full: boolean; checks: DrillCheck[];
  extractSeconds: number; extractedBytes: number; restoreSeconds: number; drillSeconds: number;
};

/** The last drill in the history, or null. */
export function lastDrill(history: HistoryLine[]): Certificate | null {
  return history.filter((line) => line.kind === 'drill' && line.certificate).pop()?.certificate ?? null;
}

/**
 * What is to be said of the drills of a server. Given its state folder and after how many days one is too old (0 = no drills here), returns the last
 * certificate and a warning, '' when all is well: a new server has as many days from its first good backup.
 */
export function drillFacts(stateFolder: string, maxAgeDays: number, now = Date.now()): { last: Certificate | null; ageDays: number | null; warning: string } {
  const history = readHistory(stateFolder), last = lastDrill(history);
  const daysSince = (time: string) => (now - Date.parse(time)) / 86_400_000, ageDays = last ? daysSince(last.madeAt) : null;
  const first = history.find((line) => line.kind === 'run' && line.exitCode < 2);
  const saying = (warning: string) => ({ last, ageDays, warning });
  if (maxAgeDays === 0) return saying('');
  if (last === null) return saying(first && daysSince(first.endedAt) > maxAgeDays ? `no drill yet, and the first backup is more than ${maxAgeDays} days old` : '');
  if (!last.proven) return saying(`the last drill did not prove ${last.archive}: ${failedChecks(last)}`);
  if (ageDays! < -1 / 24) return saying(`the last drill was on ${last.madeAt}, which is still to come: a clock was wrong`);
  return saying(ageDays! > maxAgeDays ? `the last drill is ${span(ageDays! * 86_400)} old` : '');
}

export const failedChecks = ({ checks }: Certificate) => checks.filter((one) => one.ok === false).map((one) => one.check).join(', ');

/** The check of all that is no database. */
export const READ_BACK = 'everything read back';

/** The certificate as a person reads it. */
export function certificateText(one: Certificate): string {
  const line = ({ check, ok, seconds, detail }: DrillCheck) => `  ${ok === null ? '-   ' : ok ? 'ok  ' : 'FAIL'} ${check.padEnd(26)} ${span(seconds).padStart(8)}  ${detail.replaceAll('\n', `\n${' '.repeat(43)}`)}`;
  const clusters = [...new Set(one.checks.map(({ cluster }) => cluster))], leftOut = one.checks.some(({ check, ok }) => check === READ_BACK && ok === null);
  const works = leftOut ? ': its databases came back and work; folders and volumes were not read back' : ' came back and works';
  return [
    '',
    `${one.proven ? 'PROVEN' : 'NOT PROVEN'}: ${one.archive}${one.proven ? works : `: ${failedChecks(one) || 'it could not be rehearsed'}`}`,
    `  rehearsed ${one.madeAt.slice(0, 19)}Z on ${one.where}${one.full ? ', in full' : ''}`,
    ...clusters.flatMap((name) => [...(name ? [`  postgres ${named(name)}`] : []), ...one.checks.filter(({ cluster }) => cluster === name).map(line)]),
    `  extracted ${size(one.extractedBytes)} in ${span(one.extractSeconds)}; a restore of the whole archive would take about ${span(one.restoreSeconds)} here; the drill took ${span(one.drillSeconds)}`,
  ].join('\n');
}
