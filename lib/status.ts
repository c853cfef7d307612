// The status: is there a good recent backup, and what is to be done?
// Answers from the state folder alone, so it works without the network; the first line is that of a monitoring plugin, the rest
// is one screen for a person. With --remote it asks the repository, too. Only reads.
import fs from 'node:fs';
import { Problem, answer, count, mode, oneLine, size, span } from './say.ts';
import { goOn } from './shell.ts';
import type { Settings } from './settings.ts';
import { readHistory, trendOf } from './history.ts';
import type { HistoryLine, Trend } from './history.ts';
import { drillFacts } from './certificate.ts';
import { WITHOUT_LOCK, listArchives } from './archives.ts';
import { serverName } from './plan.ts';
import { readLedger, takeLock } from './ledger.ts';
import type { Ledger } from './ledger.ts';
import { localTime, scheduleOf } from './schedule.ts';
import { tellsNobody } from './tell.ts';

/** What the repository holds of the last good backup, as far as it was asked. asked: null = it was not, or did not answer (then trouble says why). */
type Remote = { asked: { archive: boolean; proof: boolean; newest: string } | null; trouble: string };

/** Everything that status answers from. */
type Known = {
  settings: Settings; server: string;
  trend: Trend | null;
  good: HistoryLine | undefined; // the last run that was good
  last: HistoryLine | undefined; // the last run
  ageHours: number; // of the good one; without one, no number
  left: Ledger | null; // of a run that is over and left something stopped
  disorder: string; // why that cannot be known
  asked: Remote['asked']; trouble: string;
  drills: ReturnType<typeof drillFacts>;
  isAhead: boolean; // the good run bears a time to come: it would look recent for as long as the clock was wrong by
  isLost: boolean; // the repository does not hold it, or not its proof
  isRecent: boolean;
};

const TO_SCHEDULE = 'node backup.js setup --schedule cron';

/**
 * `status [--remote]`: prints one line and one screen (or JSON). Returns 0 good, 1 with a warning, 2 nothing recent enough
 * or something is left stopped. With --quiet it says nothing when all is well.
 */
export async function status(settings: Settings, script: string, remote: boolean): Promise<number> {
  const known = await whatIsKnown(settings, remote), { server, good, trend, left, asked, drills } = known, drill = drills.last;
  const nextRun = await scheduleOf(script), warnings = statusWarnings(known), next = whatToDo(known, nextRun.by);
  const isBad = left !== null || known.disorder !== '' || !known.isRecent, isGood = !isBad && known.last!.outcome === 'good' && drills.warning === '' && known.trouble === '';
  const [outcome, mark, code] = left ? ['down', 'CRITICAL', 2] as const : isBad ? ['failed', 'CRITICAL', 2] as const : isGood ? ['good', 'OK', 0] as const : ['warning', 'WARNING', 1] as const;
  if (mode.json) {
    answer(JSON.stringify({ server, outcome, ageHours: good ? known.ageHours : null, archive: good?.archive ?? '', downSeconds: good?.downSeconds ?? null, trend,
      drill: drill && { archive: drill.archive, proven: drill.proven, madeAt: drill.madeAt, ageDays: drills.ageDays, restoreSeconds: drill.restoreSeconds },
      warnings, next, nextRun: { by: nextRun.by, at: nextRun.at?.toISOString() ?? null }, remote: asked }));
  } else if (!mode.quiet || code > 0) {
    const line = (name: string, text: string) => `  ${name.padEnd(11)} ${text}`;
    answer([`${mark}: ${server}: ${headline(known, warnings)}`,
      ...(trend ? trendLines(good!, trend).map(([name, text]) => line(name, text)) : []),
      line('next run', nextRun.at ? `${localTime(nextRun.at)}, in ${days((nextRun.at.getTime() - Date.now()) / 3_600_000)} (${nextRun.by})`
        : nextRun.by ? `by ${nextRun.by}, when is not known here` : `nothing starts it${nextRun.why && `, ${nextRun.why}`}: ${TO_SCHEDULE}`),
      line('last drill', drill ? `${drill.proven ? 'proved' : 'DID NOT PROVE'} ${drill.archive}, ${days(Math.max(0, drills.ageDays! * 24))} ago; a restore takes about ${span(drill.restoreSeconds)}`
        : settings.drill.maxAgeDays === 0 ? 'none here, say the settings' : 'none yet'),
      ...(asked ? [line('repository', `${good ? `${asked.archive ? 'has that archive' : 'DOES NOT HAVE that archive'}${asked.proof ? ' and its proof' : ''}; ` : ''}newest proven: ${asked.newest || 'none'}`)] : []),
      ...(warnings.length > 0 ? warnings : ['none']).map((one, index) => line(index === 0 ? 'warnings' : '', one)),
      line('next', next || (code === 0 ? 'nothing to do' : 'see the warnings'))].join('\n'));
  }
  return code;
}

async function whatIsKnown(settings: Settings, remote: boolean): Promise<Known> {
  const runs = readHistory(settings.stateFolder).filter((line) => line.kind === 'run'), server = serverName(settings);
  const good = runs.filter((line) => /^(good|warning)$/.test(line.outcome)).pop(), ageHours = good ? (Date.now() - Date.parse(good.endedAt)) / 3_600_000 : NaN;
  let left: Ledger | null = null, disorder = '';
  try {
    left = leftStopped(settings.stateFolder);
  } catch (error: any) { // a monitoring plugin answers in any case
    disorder = error.message;
  }
  const { asked, trouble }: Remote = remote ? await askRepository(settings, server, good?.archive ?? '') : { asked: null, trouble: '' };
  const isAhead = ageHours < -1, isLost = asked !== null && good !== undefined && !asked.proof;
  return { settings, server, trend: trendOf(runs), good, last: runs[runs.length - 1], ageHours, left, disorder, asked, trouble, drills: drillFacts(settings.stateFolder, settings.drill.maxAgeDays),
    isAhead, isLost, isRecent: !isAhead && !isLost && ageHours <= settings.maxAgeHours };
}

function statusWarnings({ good, last, disorder, asked, trouble, drills, isAhead, isLost }: Known): string[] {
  return [
    disorder,
    isAhead ? `the last good run ended at ${good!.endedAt}, which is still to come: this server's clock was wrong then, or is now` : '',
    isLost ? `${good!.archive} ${asked!.archive ? 'has no proof in the repository' : 'is not in the repository any more'}` : '',
    trouble ? `the repository was not asked: ${trouble}` : '',
    last && last !== good && last.error ? `the last run failed: ${last.error}` : '',
    ...(last?.warnings ?? []),
    drills.warning,
  ].filter((one) => one !== '');
}

/** The one command that helps most; '' = none. */
function whatToDo({ settings, good, last, left, trouble, drills, isAhead, isLost, isRecent }: Known, startedBy: string): string {
  if (left) return 'node backup.js recover';
  if (isLost) return 'node backup.js list';
  if (isAhead) return 'look at `date`, and set the clock; then take a backup: node backup.js --now';
  if (!isRecent || trouble) return 'node backup.js doctor';
  if (drills.warning) return 'node backup.js drill';
  if (last !== good) return 'node backup.js doctor';
  if (drills.last === null && settings.drill.maxAgeDays > 0) return 'node backup.js drill';
  if (startedBy === '') return TO_SCHEDULE;
  return startedBy === 'systemd' && tellsNobody(settings) ? 'set `tell` in the settings, unless your monitoring asks `status` every day: a systemd timer mails nobody' : '';
}

/** What a monitoring plugin shows after the name: the backup, and what is wrong first of all. */
function headline({ settings, good, ageHours, left, isAhead, isLost, isRecent }: Known, warnings: string[]): string {
  if (left) return `the run of ${left.startedAt} left something stopped`;
  if (good && isAhead) return `${good.archive} bears a time that is still to come`;
  const why = good && !isRecent && !isLost ? [`older than ${settings.maxAgeHours} h`, ...warnings] : warnings;
  return `${good ? `${good.archive}, ${span(Math.max(0, ageHours) * 3600)} old, was down ${span(good.downSeconds)}` : 'no good backup yet'}${why.length > 0 ? `; ${oneLine(why[0]!)}` : ''}${why.length > 1 ? ` (and ${why.length - 1} more)` : ''}`;
}

function trendLines(good: HistoryLine, trend: Trend): [string, string][] {
  const grows = trend.growthBytes, growth = grows === 0 ? '' : `, ${grows > 0 ? 'growing' : 'shrinking'} by ${size(Math.abs(grows))} a night`;
  const isFirst = trend.nights === 1; // then all of it was new
  return [['down', `${span(good.downSeconds)}${isFirst ? '' : `; in the last ${trend.nights} good nights ${span(trend.leastDownSeconds)} to ${span(trend.mostDownSeconds)}`}`],
    ['size', `${size(trend.originalBytes)} in all, ${size(trend.newBytes)} ${isFirst ? 'stored' : 'new a night'}${growth}`]];
}

const days = (hours: number) => (hours < 48 ? span(hours * 3600) : count(Math.floor(hours / 24), 'day'));

/** Whether the repository really has an archive and its proof. It waits for no lock, and a repository that cannot be reached is told, not thrown. */
async function askRepository(settings: Settings, server: string, archive: string): Promise<Remote> {
  try {
    const all = await listArchives(settings, server, WITHOUT_LOCK, { seconds: 300 }), found = all.find((one) => one.archive === archive);
    return { asked: { archive: Boolean(found), proof: found?.kind === 'proven', newest: all.filter(({ kind }) => kind === 'proven').pop()?.archive ?? '' }, trouble: '' };
  } catch (error) {
    if (!(error instanceof Problem)) throw error;
    goOn();
    return { asked: null, trouble: error.message };
  }
}

/** The ledger of a run that is over and left something stopped; null when all runs, or while a run is at work, which starts it itself. */
function leftStopped(stateFolder: string): Ledger | null {
  const ledger = readLedger(stateFolder);
  if (!ledger || (ledger.parts.every((part) => part.runningAt !== null) && ledger.restore?.state !== '')) return null; // a restore may be undecided with nothing stopped
  const lock = ledger.reported === 'down' ? 0 : takeLock(stateFolder, 0);
  if (lock) fs.closeSync(lock);
  return lock === null ? null : ledger;
}
