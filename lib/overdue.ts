// Which servers have no recent backup? Asked by the operator, as often as cron likes.
// It reads the ledger, and on the storage the times of what was written since the last audit, by the storage's own clock. No borg key and no passphrase is touched. So it is known
// that a server wrote, and whether as much as its proven nights do; that the archive is proven, only an audit can tell, and the answer says which of the two it is. Only reads.
import { Problem, answer, lastLines, mode, span } from './say.ts';
import { fourAtATime, goOn } from './shell.ts';
import { hasShell, serversMeant } from './operator.ts';
import type { OperatedServer, Operator } from './operator.ts';
import { STATE_ALONE, readRepository, timeOf } from './segments.ts';
import { present, readBook } from './book.ts';
import type { Book } from './book.ts';
import { provenOnes } from './findings.ts';

/** archive: the newest proven one that an audit saw; seenAt: when the storage says; writtenAt: the last transaction there; since: transactions after the last audit. */
type Overdue = { server: string; outcome: 'good' | 'warning' | 'failed'; ageHours: number | null; archive: string; seenAt: string; writtenAt: string; since: number | null; lastAuditAt: string; why: string; next: string };

const UNAUDITED_DAYS = 8; // for so long it is enough that a server wrote as it does on a proven night

/**
 * `status --all [SERVER...]`: given the operator's settings, prints a line for each server. Returns 0, 1 or 2, as the worst
 * of them. With --quiet only those of which something is to be said.
 */
export async function statusOfAll(operator: Operator, names: string[]): Promise<number> {
  const all = await fourAtATime(serversMeant(operator, names), (one) => overdueOf(operator, one));
  const marks = { good: 'OK', warning: 'WARNING', failed: 'CRITICAL' }, shown = all.filter(({ outcome }) => !mode.quiet || outcome !== 'good');
  if (mode.json) answer(JSON.stringify(all, null, 1));
  else if (shown.length > 0) answer(shown.map(({ server, outcome, why, next }) => `${marks[outcome]}: ${server}: ${why}${next ? `\n  next: ${next}` : ''}`).join('\n'));
  return all.some(({ outcome }) => outcome === 'failed') ? 2 : all.some(({ outcome }) => outcome === 'warning') ? 1 : 0;
}

async function overdueOf(operator: Operator, one: OperatedServer): Promise<Overdue> {
  const { server, maxAgeHours } = one, found: Overdue = { server, outcome: 'failed', ageHours: null, archive: '', seenAt: '', writtenAt: '', since: null, lastAuditAt: '', why: '', next: `node backup.js audit ${server}` };
  const is = (outcome: Overdue['outcome'], why: string, next = found.next): Overdue => ({ ...found, outcome, why, next });
  try {
    const book = readBook(operator, one), newest = book && provenOnes(present(book)).pop();
    if (book && newest) Object.assign(found, { archive: newest.name, seenAt: newest.seenAt, lastAuditAt: book.lastAuditAt });
    const { now, writtenAt, since } = hasShell(one) ? await writtenSince(one, book) : { now: new Date().toISOString(), writtenAt: '', since: [] };
    const hours = (time: string) => (Date.parse(now) - Date.parse(time)) / 3_600_000, ago = (time: string) => `${span(Math.max(0, hours(time)) * 3600)} ago`;
    Object.assign(found, { writtenAt, since: hasShell(one) ? since.length : null, ageHours: newest ? Math.max(0, hours(newest.seenAt)) : null });
    const known = newest ? `${newest.name}, proven, written ${ago(newest.seenAt)} by the ${newest.seenBy === 'storage' ? 'storage' : 'server'}'s clock` : 'no proven archive is known';
    if (newest && hours(newest.seenAt) <= maxAgeHours) return is('good', known, '');
    if (!hasShell(one)) return is('warning', `${known}; the storage gives no shell: what came since, only an audit can tell`);
    if (writtenAt === '' || hours(writtenAt) > maxAgeHours) return is('failed', `${known}; nothing came since${writtenAt ? `: last written to ${ago(writtenAt)}` : ''}`, `node backup.js doctor    (on ${server})`);
    if (!book) return is('warning', `written to ${ago(writtenAt)}; never audited, so whether it is proven is not known`);
    const recent = since.filter((time) => hours(time) <= maxAgeHours).length, usual = newest ? transactionsOfANight(book) : 0;
    if (recent < usual) return is('failed', `${known}; written to ${ago(writtenAt)}, but in ${recent} of the ${usual} transactions of a proven night: it did not come to its proof`, `node backup.js status    (on ${server})`);
    const wrote = `written to ${ago(writtenAt)}${newest ? ', in as many transactions as a proven night' : ''}; whether it is proven, an audit with the key tells; ${known}`, isAlarm = book.audits[book.audits.length - 1]?.verdict === 'alarm';
    if (isAlarm || !newest || (Date.now() - Date.parse(book.lastAuditAt)) / 86_400_000 > UNAUDITED_DAYS) return is('warning', `${wrote}; the last audit was ${ago(book.lastAuditAt)}${isAlarm ? ', and an alarm' : ''}`);
    return is('good', wrote, '');
  } catch (error) {
    if (!(error instanceof Problem)) throw error;
    goOn();
    return is('failed', `its storage cannot be looked at: ${error.message}${error.facts.said ? `: ${lastLines(error.facts.said, 1)}` : ''}`);
  }
}

/** What the storage's files say: its clock, when it was written to last, and the times of the transactions that no audit has seen. */
async function writtenSince(one: OperatedServer, book: Book | null): Promise<{ now: string; writtenAt: string; since: string[] }> {
  const mark = book?.mark, { now, newest, transactions } = await readRepository(one, mark ? { ...STATE_ALONE, after: mark.transaction } : STATE_ALONE), since = transactions.map(timeOf);
  const proven = book && provenOnes(present(book)).pop();
  return { now, writtenAt: since[since.length - 1] ?? proven?.seenAt ?? mark?.time ?? newest, since }; // a prune, too, writes data files, so their own times prove nothing
}

/** How many transactions a proven night has at least: what lies between one proof and the next, as the ledger knows it. */
function transactionsOfANight(book: Book): number {
  const all = present(book).filter(({ transaction }) => transaction > 0), proofs = all.filter(({ kind }) => kind === 'proof').map(({ transaction }) => transaction).sort((a, b) => a - b).slice(-8);
  const counts = proofs.slice(1).map((proof, index) => new Set(all.filter(({ transaction }) => transaction > proofs[index]! && transaction <= proof).map(({ transaction }) => transaction)).size);
  return Math.min(...counts.length > 0 ? counts : [2]); // an archive and its proof
}
