// Is there a good recent backup, and what is to be done? Answers from the state folder alone, so it works without the network; the first line is that of a
// monitoring plugin, the rest is one screen for a person. With --remote it asks the repository, too. Only reads.
import fs from 'node:fs';
import { Problem, answer, count, mode, size, span } from './say.ts';
import { goOn } from './shell.ts';
import type { Settings } from './settings.ts';
import { readHistory, trendOf } from './history.ts';
import { drillFacts } from './certificate.ts';
import { WITHOUT_LOCK, listArchives } from './archives.ts';
import { serverName } from './plan.ts';
import { readLedger, takeLock } from './ledger.ts';
import type { Ledger } from './ledger.ts';
import { localTime, scheduleOf } from './schedule.ts';

/** What the repository holds of the last good backup, as far as it was asked. asked: null = it was not, or did not answer (then trouble says why). */
type Remote = { asked: { archive: boolean; proof: boolean; newest: string } | null; trouble: string };

/** `status [--remote]`: prints one line and one screen (or JSON). Returns 0 good, 1 with a warning, 2 nothing recent enough or something is left stopped. With --quiet it says nothing when all is well. */
export async function status(settings: Settings, script: string, remote: boolean): Promise<number> {
  const runs = readHistory(settings.stateFolder).filter((line) => line.kind === 'run'), server = serverName(settings);
  const good = runs.filter((line) => /^(good|warning)$/.test(line.outcome)).pop(), last = runs[runs.length - 1];
  const ageHours = good ? (Date.now() - Date.parse(good.endedAt)) / 3_600_000 : null;
  let left: Ledger | null = null, disorder = '';
  try {
    left = leftStopped(settings.stateFolder);
  } catch (error: any) { // a monitoring plugin answers in any case
    disorder = error.message;
  }
  const isAhead = ageHours !== null && ageHours < -1; // it would look recent for as long as the clock was wrong by
  const { asked, trouble }: Remote = remote ? await askRepository(settings, server, good?.archive ?? '') : { asked: null, trouble: '' };
  const isLost = asked !== null && good !== undefined && !asked.proof, isRecent = ageHours !== null && !isAhead && ageHours <= settings.maxAgeHours && !isLost;
  const { last: certificate, ageDays, warning: aboutDrills } = drillFacts(settings.stateFolder, settings.drill.maxAgeDays), nextRun = await scheduleOf(script);
  const outcome = left ? 'down' : !isRecent || disorder ? 'failed' : last!.outcome === 'good' && !aboutDrills && !trouble ? 'good' : 'warning';
  const warnings = [...(disorder ? [disorder] : []), ...(isAhead ? [`the last good run ended at ${good!.endedAt}, which is still to come: this server's clock was wrong then, or is now`] : []), ...(isLost ? [`${good.archive} ${asked.archive ? 'has no proof in the repository' : 'is not in the repository any more'}`] : []), ...(trouble ? [`the repository was not asked: ${trouble}`] : []),
    ...(last?.warnings ?? []), ...(last && last !== good && last.error ? [`the last run failed: ${last.error}`] : []), ...(aboutDrills ? [aboutDrills] : [])];
  const next = left ? 'node backup.js recover' : isLost ? 'node backup.js list' : isAhead ? 'look at `date`, and set the clock; then take a backup: node backup.js --now' : !isRecent || trouble ? 'node backup.js doctor' : aboutDrills ? 'node backup.js drill' : last !== good ? 'node backup.js doctor' : certificate === null && settings.drill.maxAgeDays > 0 ? 'node backup.js drill' : '';
  const drill = certificate && { archive: certificate.archive, proven: certificate.proven, madeAt: certificate.madeAt, ageDays, restoreSeconds: certificate.restoreSeconds };
  const trend = trendOf(runs), change = trend?.growthBytes ?? 0;
  const facts = { server, outcome, ageHours, archive: good?.archive ?? '', downSeconds: good?.downSeconds ?? null, trend, drill, warnings, next, nextRun: { by: nextRun.by, at: nextRun.at?.toISOString() ?? null }, remote: asked };
  const words = left ? `the run of ${left.startedAt} left something stopped` : good && isAhead ? `${good.archive} bears a time that is still to come` : good ? `${good.archive}, ${span(Math.max(0, ageHours!) * 3600)} old, was down ${span(good.downSeconds)}` : 'no good backup yet';
  const mark = outcome === 'good' ? 'OK' : outcome === 'warning' ? 'WARNING' : 'CRITICAL';
  const ago = (hours: number) => (hours < 48 ? span(hours * 3600) : count(Math.floor(hours / 24), 'day')), line = (name: string, text: string) => `  ${name.padEnd(11)} ${text}`;
  const screen = [`${mark}: ${server}: ${words}`,
    ...(trend ? [line('down', `${span(good!.downSeconds)}; in the last ${count(trend.nights, 'good night')} ${span(trend.leastDownSeconds)} to ${span(trend.mostDownSeconds)}`),
      line('size', `${size(trend.originalBytes)} in all, ${size(trend.newBytes)} new a night${change === 0 ? '' : `, ${change > 0 ? 'growing' : 'shrinking'} by ${size(Math.abs(change))} a night`}`)] : []),
    line('next run', nextRun.at ? `${localTime(nextRun.at)}, in ${ago((nextRun.at.getTime() - Date.now()) / 3_600_000)} (${nextRun.by})` : nextRun.by ? `by ${nextRun.by}, when is not known here` : 'nothing starts it: node backup.js setup --schedule cron'),
    line('last drill', drill ? `${drill.proven ? 'proved' : 'DID NOT PROVE'} ${drill.archive}, ${ago(Math.max(0, ageDays! * 24))} ago; a restore takes about ${span(drill.restoreSeconds)}` : settings.drill.maxAgeDays === 0 ? 'none here, say the settings' : 'none yet'),
    ...(asked ? [line('repository', good ? `${asked.archive ? 'has that archive' : 'DOES NOT HAVE that archive'}${asked.proof ? ' and its proof' : ''}; newest proven: ${asked.newest || 'none'}` : `newest proven: ${asked.newest || 'none'}`)] : []),
    ...(warnings.length === 0 ? [line('warnings', 'none')] : warnings.map((one, index) => line(index === 0 ? 'warnings' : '', one))), line('next', next || (outcome === 'good' ? 'nothing to do' : 'see the warnings'))];
  if (mode.json) answer(JSON.stringify(facts));
  else if (!mode.quiet || outcome !== 'good') answer(screen.join('\n'));
  return outcome === 'good' ? 0 : outcome === 'warning' ? 1 : 2;
}

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
  if (!ledger || ledger.parts.every((part) => part.runningAt !== null)) return null;
  const lock = ledger.reported === 'down' ? 0 : takeLock(stateFolder, 0);
  if (lock) fs.closeSync(lock);
  return lock === null ? null : ledger;
}
