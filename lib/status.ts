// Is there a good recent backup? Answers from the state folder alone, so it works without the network; a monitoring plugin, too.
// Only reads.
import fs from 'node:fs';
import { answer, count, mode, size, span } from './say.ts';
import type { Settings } from './settings.ts';
import { readHistory, trendOf } from './history.ts';
import { drillFacts } from './certificate.ts';
import { serverName } from './plan.ts';
import { readLedger, takeLock } from './ledger.ts';
import type { Ledger } from './ledger.ts';

/** `status`: prints one line (or JSON). Returns 0 good, 1 with a warning, 2 nothing recent enough or something is left stopped. */
export function status(settings: Settings): number {
  const runs = readHistory(settings.stateFolder).filter((line) => line.kind === 'run');
  const good = runs.filter((line) => /^(good|warning)$/.test(line.outcome)).pop(), last = runs[runs.length - 1];
  const ageHours = good ? (Date.now() - Date.parse(good.endedAt)) / 3_600_000 : null;
  let left: Ledger | null = null, disorder = '';
  try {
    left = leftStopped(settings.stateFolder);
  } catch (error: any) { // a monitoring plugin answers in any case
    disorder = error.message;
  }
  const isAhead = ageHours !== null && ageHours < -1; // it would look recent for as long as the clock was wrong by
  const isRecent = ageHours !== null && !isAhead && ageHours <= settings.maxAgeHours;
  const { last: certificate, ageDays, warning: aboutDrills } = drillFacts(settings.stateFolder, settings.drill.maxAgeDays);
  const outcome = left ? 'down' : !isRecent || disorder ? 'failed' : last!.outcome === 'good' && !aboutDrills ? 'good' : 'warning';
  const warnings = [...(disorder ? [disorder] : []), ...(isAhead ? [`the last good run ended at ${good!.endedAt}, which is still to come: this server's clock was wrong then, or is now`] : []), ...(last?.warnings ?? []), ...(last && last !== good && last.error ? [`the last run failed: ${last.error}`] : []), ...(aboutDrills ? [aboutDrills] : [])];
  const next = left ? 'node backup.js recover' : isAhead ? 'look at `date`, and set the clock; then take a backup: node backup.js --now' : !isRecent ? 'node backup.js doctor' : aboutDrills ? 'node backup.js drill' : '';
  const drill = certificate && { archive: certificate.archive, proven: certificate.proven, madeAt: certificate.madeAt, ageDays, restoreSeconds: certificate.restoreSeconds };
  const trend = trendOf(runs), change = trend?.growthBytes ?? 0;
  const trendText = trend && `last ${count(trend.nights, 'good night')}: down ${span(trend.leastDownSeconds)} to ${span(trend.mostDownSeconds)}, ${size(trend.newBytes)} new a night, ${size(trend.originalBytes)} in all${change === 0 ? '' : `, ${change > 0 ? 'growing' : 'shrinking'} by ${size(Math.abs(change))} a night`}`;
  const facts = { server: serverName(settings), outcome, ageHours, archive: good?.archive ?? '', downSeconds: good?.downSeconds ?? null, trend, drill, warnings, next };
  const words = left ? `the run of ${left.startedAt} left something stopped` : good && isAhead ? `${good.archive} bears a time that is still to come` : good ? `${good.archive}, ${span(Math.max(0, ageHours!) * 3600)} old, was down ${span(good.downSeconds)}` : 'no good backup yet';
  const mark = outcome === 'good' ? 'OK' : outcome === 'warning' ? 'WARNING' : 'CRITICAL';
  answer(mode.json ? JSON.stringify(facts) : [`${mark}: ${facts.server}: ${words}`, ...(trendText ? [`  ${trendText}`] : []), ...warnings.map((one) => `  ${one}`), ...(next ? [`  next: ${next}`] : [])].join('\n'));
  return outcome === 'good' ? 0 : outcome === 'warning' ? 1 : 2;
}

/** The ledger of a run that is over and left something stopped; null when all runs, or while a run is at work, which starts it itself. */
function leftStopped(stateFolder: string): Ledger | null {
  const ledger = readLedger(stateFolder);
  if (!ledger || ledger.parts.every((part) => part.runningAt !== null)) return null;
  const lock = ledger.reported === 'down' ? 0 : takeLock(stateFolder, 0);
  if (lock) fs.closeSync(lock);
  return lock === null ? null : ledger;
}
