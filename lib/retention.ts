// Which archives stay. By the times that the storage saw, in the server's time zone, never by a time that the server wrote. Only judges.
import type { KnownArchive } from './book.ts';
import { present } from './book.ts';
import type { Book } from './book.ts';
import { provenOnes } from './findings.ts';
import type { Keep } from './operator.ts';

/** What is to become of an archive, and why. */
export type Fate = { archive: KnownArchive; stays: boolean; why: string };

const WEEK = 7 * 24 * 3_600_000;
const KEEP_RULES = ['last', 'daily', 'weekly', 'monthly', 'yearly'] as const;

/**
 * Given the ledger, the rules, the time zone, the archive that a drill proved last ('' = none) and the time, returns the fate of every archive
 * that is there, oldest first. As `borg prune` does it: a rule counts only archives that no earlier rule keeps; of a day, week, month or year the
 * last one stays; and the oldest of all stays while a rule is not filled. A proof shares the fate of its archive.
 */
export function fatesOf(book: Book, keep: Keep, timeZone: string, drilled: string, now: Date): Fate[] {
  const all = present(book), proven = provenOnes(all).reverse(), why = new Map<string, string>(); // by id
  for (const rule of KEEP_RULES) {
    let kept = 0, last = '';
    for (const one of proven) {
      const period = periodOf(rule, one, timeZone);
      if (kept >= keep[rule] || period === last) continue;
      last = period;
      if (why.has(one.id)) continue;
      why.set(one.id, `${rule} ${++kept}`);
    }
    const oldest = proven[proven.length - 1];
    if (oldest && rule !== 'last' && kept < keep[rule] && keep[rule] > 0 && !why.has(oldest.id)) why.set(oldest.id, `${rule}, the oldest`);
  }
  const dated = proven.find(({ name }) => name === drilled);
  if (dated && !why.has(dated.id)) why.set(dated.id, 'a drill proved it last');
  const isOld = ({ seenAt }: KnownArchive) => now.getTime() - Date.parse(seenAt) > WEEK;
  const isProven = new Set(proven.map(({ id }) => id)), byName = new Map(proven.map((one) => [one.name, one]));
  return all.map((archive): Fate => {
    const cold = archive.kind === 'proof' ? byName.get(archive.name.slice('proven-'.length)) : archive;
    if (cold && isProven.has(cold.id)) return { archive, stays: why.has(cold.id), why: why.get(cold.id) ?? 'no rule keeps it' };
    if (archive.kind === 'other') return { archive, stays: true, why: 'not written by backup.js' };
    if (archive.kind === 'proof') return { archive, stays: true, why: 'a proof without its archive' };
    const what = archive.kind === 'cold' ? 'unproven' : archive.kind;
    return isOld(archive) ? { archive, stays: false, why: `${what}, older than a week` } : { archive, stays: true, why: `${what}, not a week old` };
  }).sort((one, other) => (one.archive.seenAt < other.archive.seenAt ? -1 : 1));
}

// The day, ISO week, month or year in which the storage saw it, as the server's clock shows it.
function periodOf(rule: typeof KEEP_RULES[number], { id, seenAt }: KnownArchive, timeZone: string): string {
  if (rule === 'last') return id;
  const day = new Intl.DateTimeFormat('sv-SE', { timeZone, year: 'numeric', month: '2-digit', day: '2-digit' }).format(new Date(seenAt)); // 2026-11-23
  if (rule === 'daily') return day;
  if (rule === 'monthly') return day.slice(0, 7);
  if (rule === 'yearly') return day.slice(0, 4);
  const monday = new Date(`${day}T00:00:00Z`);
  monday.setUTCDate(monday.getUTCDate() - (monday.getUTCDay() + 6) % 7); // a week is named by its Monday
  return monday.toISOString().slice(0, 10);
}
