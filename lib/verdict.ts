// What is to be said of each server, and the one next step.
// Rules in the order in which they matter; the first that holds names the command. Only judges.
import type { ServerFacts, ShownArchive } from './fleet.ts';
import { canDecrypt } from './operator.ts';
import type { ReportWords } from './reportwords.ts';
import type { Day } from './charts.ts';

export type Light = 'good' | 'warning' | 'failed' | 'unknown';
/** A server's facts with what they mean. why: in the order of importance; next: the command, on that server or on the operator's computer; null: nothing to do. */
export type Judged = ServerFacts & { light: Light; why: string[]; next: { command: string; where: 'server' | 'here' } | null; newest: ShownArchive | null; ageHours: number | null };

const AUDIT_DAYS = 8, FULL_DAYS = 30;
const HOURS_BETWEEN_NIGHTS = 12; // a newest archive that is not proven, and younger than that, may be of a run that is under way
export const LIGHTS: Light[] = ['failed', 'unknown', 'warning', 'good']; // the worst first

export const hoursSince = (time: string, now: number) => Math.max(0, now - Date.parse(time)) / 3_600_000;

/** '5 h', '3 days': how old something is, in the words of a language. */
export function ageText(hours: number, words: ReportWords): string {
  return hours < 1 ? words.minutes(Math.round(hours * 60)) : hours < 48 ? words.hours(Math.round(hours)) : words.days(Math.floor(hours / 24));
}

/** Given a server's facts, the words, how a time is shown and now, returns the verdict. */
export function judged(facts: ServerFacts, words: ReportWords, shownTime: (time: string) => string, now: number): Judged {
  const { one, trouble, archives, nights, drill, audit, isPruning, space } = facts, { server } = one, why = words.why;
  const newest = archives.find(({ isProven }) => isProven) ?? null, ageHours = newest && hoursSince(newest.seenAt, now), latest = archives[0], lastNight = nights[nights.length - 1];
  const drillHours = drill && hoursSince(drill.madeAt, now), auditHours = audit && hoursSince(audit.at, now), isReached = !trouble;
  const age = (hours: number | null) => ageText(hours ?? 0, words), here = (command: string) => ({ command: `node backup.js ${command}`, where: 'here' as const }), there = (command: string) => ({ ...here(command), where: 'server' as const });
  const rules: [boolean, Light, () => string, Judged['next']][] = [
    [audit?.verdict === 'alarm', 'failed', () => why.alarm(shownTime(audit!.at)), here(`audit ${server} --undo-plan`)],
    [!isReached, 'unknown', () => why.unreachable(trouble!.message), here(`audit ${server}`)],
    [isPruning, 'warning', () => why.pruning(), here(`prune ${server}`)],
    [isReached && !newest && !canDecrypt(one), 'unknown', () => why.noKey(), here(`audit ${server}`)],
    [isReached && !newest && canDecrypt(one), 'failed', () => why.noneProven(), there('doctor')],
    [isReached && newest !== null && ageHours! > one.maxAgeHours, 'failed', () => why.tooOld(age(ageHours)), there('doctor')],
    [isReached && latest !== undefined && !latest.isProven && newest !== null && latest.seenAt > newest.seenAt && hoursSince(latest.seenAt, now) > HOURS_BETWEEN_NIGHTS, 'warning', () => why.unprovenNewest(shownTime(latest!.seenAt)), there('status')],
    [one.drillMaxAgeDays > 0 && drill?.proven === false, 'warning', () => why.drillFailed(drill!.archive), there('drill')],
    [audit === null, 'warning', () => why.neverAudited(), here(`audit ${server}`)],
    [isReached && one.drillMaxAgeDays > 0 && newest !== null && drill === null, 'warning', () => why.noDrill(), there('drill')],
    [one.drillMaxAgeDays > 0 && drill !== null && drillHours! > one.drillMaxAgeDays * 24, 'warning', () => why.drillOld(age(drillHours)), there('drill')],
    [audit !== null && auditHours! > AUDIT_DAYS * 24, 'warning', () => why.auditOld(age(auditHours)), here(`audit ${server}`)],
    [space !== null && space.daysLeft !== null && space.daysLeft < FULL_DAYS, 'warning', () => why.nearlyFull(words.days(space!.daysLeft!)), here(`prune ${server}`)],
    [lastNight?.outcome === 'warning', 'warning', () => why.warned(lastNight!.warnings[0] ?? ''), there('status')],
  ];
  const holding = rules.filter(([holds]) => holds), light = LIGHTS.find((one) => holding.some(([, each]) => each === one)) ?? 'good', first = holding.find(([, each]) => each === light);
  return { ...facts, light, why: holding.map(([, , say]) => say()), next: first?.[3] ?? null, newest, ageHours };
}

/** What became of each of the last days, as the clock of the server's time zone shows them: the best of a day's runs counts. Before the first night there is nothing to say. */
export function daysOf({ one, nights, archives }: ServerFacts, count: number, now: number): Day[] {
  const day = new Intl.DateTimeFormat('sv-SE', { timeZone: one.timeZone, year: 'numeric', month: '2-digit', day: '2-digit' }), states = new Map<string, Day['state']>(); // 2026-11-23
  const note = (time: string, state: Day['state']) => {
    const at = day.format(new Date(time)), was = states.get(at), order = ['good', 'warning', 'failed'];
    if (!was || order.indexOf(state) < order.indexOf(was)) states.set(at, state);
  };
  for (const { startedAt, outcome } of nights) note(startedAt, outcome);
  const told = new Set(nights.map(({ archive }) => archive));
  for (const { name, seenAt, isProven } of archives) if (!told.has(name)) note(seenAt, isProven ? 'good' : 'failed'); // beyond the history, or after it
  const first = [...states.keys()].sort()[0] ?? '', today = day.format(new Date(now)), noon = Date.parse(`${today}T12:00:00Z`);
  return Array.from({ length: count }, (_, index) => new Date(noon - (count - 1 - index) * 86_400_000).toISOString().slice(0, 10))
    .map((one) => ({ day: one, state: states.get(one) ?? (first === '' || one < first || one === today ? '' : 'missing') }));
}
