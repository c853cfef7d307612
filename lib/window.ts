// The hours of the night: when a run may stop things, and by when everything runs again. Only reckons; changes nothing.
import type { Settings } from './settings.ts';

let clockOf: { timeZone: string; format: Intl.DateTimeFormat } | null = null; // made once: to make it takes longer than to use it

/** The clock of a time zone at an instant, in minutes since its midnight. */
function minutesOfDay(at: Date, timeZone: string): number {
  if (clockOf?.timeZone !== timeZone) clockOf = { timeZone, format: new Intl.DateTimeFormat('en-GB', { timeZone, hour: '2-digit', minute: '2-digit', hourCycle: 'h23' }) };
  const parts = clockOf.format.formatToParts(at);
  const number = (type: string) => Number(parts.find((part) => part.type === type)?.value);
  return number('hour') * 60 + number('minute');
}

const minutesOf = (clock: string) => Number(clock.slice(0, 2)) * 60 + Number(clock.slice(3));

/** Given the settings' window and an instant, returns whether it lies inside. No window = any time. A window may go over midnight. */
export function isInWindow(window: Settings['window'], now: Date): boolean {
  if (!window) return true;
  const clock = minutesOfDay(now, window.timeZone), from = minutesOf(window.from), until = minutesOf(window.until);
  return from <= until ? clock >= from && clock < until : clock >= from || clock < until;
}

/** The instant the window that we are in ends, or null without one: the first full minute that lies outside, also on the night the clocks change. */
export function windowEnd(window: Settings['window'], now: Date): Date | null {
  if (!window) return null;
  let minute = Math.floor(now.getTime() / 60_000);
  do minute++; while (isInWindow(window, new Date(minute * 60_000)));
  return new Date(minute * 60_000);
}

/**
 * Given the most minutes of downtime, the instant before the first stop, the end of the window (fixed when the run began; null = none) and
 * how long the last start took, returns by when everything runs again, when to begin with that, and whether it is too late to stop anything.
 */
export function deadlines(maxMinutes: number, now: Date, windowEndsAt: Date | null, lastStartSeconds: number): { deadlineAt: Date; beginStartAt: Date; isTooLate: boolean } {
  const limit = new Date(now.getTime() + maxMinutes * 60_000);
  const deadlineAt = windowEndsAt && windowEndsAt < limit ? windowEndsAt : limit;
  const total = (deadlineAt.getTime() - now.getTime()) / 1000, needed = 2 * Math.max(0, lastStartSeconds) + 10; // ending borg takes up to 10 s
  const margin = Math.min(needed + 10, total / 3);
  return { deadlineAt, beginStartAt: new Date(deadlineAt.getTime() - margin * 1000), isTooLate: deadlineAt === windowEndsAt && total < 2 * needed };
}
