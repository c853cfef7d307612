// The operator's ledger: what audits saw of a server's repository, one JSON file a server.
// In the code it is `book`: `ledger` is what a night has stopped. It is readable, on the operator's computer. It is what the storage and the server are measured by, so it never forgets: archives
// that were pruned stay in it, with the day. Written whole or not at all. Changes only files in `ledgerFolder`.
import fs from 'node:fs';
import path from 'node:path';
import { Problem, named, sayError } from './say.ts';
import { askedToStop, goOn } from './shell.ts';
import { misfit } from './form.ts';
import type { Form } from './form.ts';
import type { ArchiveKind } from './archives.ts';
import { refuseIfOthersCanChange } from './check.ts';
import { takeLock } from './ledger.ts';
import { canWrite, serversMeant, writeHere } from './operator.ts';
import type { Operator, OperatedServer } from './operator.ts';

/**
 * An archive as the ledger knows it. seenAt: when it was written, as the storage says; without a shell there ('audit') as the client says, held between that audit and the one before.
 * goneAt: pruned by us, or accepted as gone.
 */
export type KnownArchive = { id: string; name: string; kind: ArchiveKind; seenAt: string; seenBy: 'storage' | 'first audit' | 'audit'; transaction: number; claimedAt: string; endedAt: string;
  originalBytes: number | null; files: number | null; newBytes: number | null; unproven?: true; goneAt?: string; goneBy?: string };

export type Finding = { rule: string; at: string; archives: string[]; what: string; undo: string; transaction: number | null };

/**
 * Up to where the repository is known: its last transaction, the one before, what the files up to there were, and the log of
 * the append-only server. manifestBytes: 0 after a prune, which compresses the list of archives in its own way.
 */
export type Mark = { transaction: number; previous: number; time: string; files: { count: number; sha256: string }; log: { bytes: number; sha256: string }; manifestBytes: number; nonce: string };

/**
 * pruning: a prune that is under way, or was interrupted. stage 'copy': the repository is as it was; 'swap': the copy takes its place; 'hosted': without a copy, these
 * archives may be gone already; 'done': nothing is left to do. mark: of the pruned copy; bytes: before and after.
 */
export type Book = {
  format: 1; server: string; repository: string; firstAuditAt: string; lastAuditAt: string;
  mark: Mark | null; // null: its files cannot be read, or were never
  namedUntil?: number;
  appendOnly: boolean; // whether the storage has ever noted a transaction in its append-only log
  config: Record<string, string>;
  archives: KnownArchive[];
  days: { day: string; bytes: number; transactions: number }[];
  audits: { at: string; verdict: 'clean' | 'alarm'; transactions: number; findings: Finding[]; accepted?: string }[];
  prunes: { at: string; deleted: string[]; freedBytes: number }[];
  pruning: { startedAt: string; stage: 'copy' | 'swap' | 'hosted' | 'done'; deleting: string[]; accessCut: boolean; mark?: Mark; bytes?: [number, number] } | null;
};

const bookFile = ({ ledgerFolder }: Operator, server: string) => path.join(ledgerFolder, `${server}.json`);

const MARK_FORM: Form = { transaction: 'id', previous: 'id', time: 'time', files: { count: 'number', sha256: 'text' }, log: { bytes: 'number', sha256: 'text' }, manifestBytes: 'number', nonce: 'text' };
const BOOK_FORM: Form = { server: 'text', firstAuditAt: 'time', lastAuditAt: 'time', 'mark?': MARK_FORM, 'namedUntil?': 'id', appendOnly: 'yes or no', config: { '*': 'text' },
  days: [{ day: 'text', bytes: 'number', transactions: 'number' }], audits: [{ at: 'time' }], prunes: [{ at: 'time', freedBytes: 'number' }],
  archives: [{ id: 'text', name: 'text', kind: 'text', seenAt: 'time', seenBy: 'text', transaction: 'id', claimedAt: 'time', endedAt: 'time',
    'originalBytes?': 'number', 'files?': 'number', 'newBytes?': 'number', 'goneAt?': 'time' }],
  'pruning?': { startedAt: 'time', stage: 'text', deleting: ['text'], accessCut: 'yes or no', 'mark?': MARK_FORM, 'bytes?': ['number'] } };

/** The ledger of a server; null before its first audit. Throws Problem (64) when there is a file and it cannot be read as a ledger: it is never begun anew by itself. */
export function readBook(operator: Operator, { server, repository }: OperatedServer): Book | null {
  const file = bookFile(operator, server);
  let text: string;
  try {
    text = fs.readFileSync(file, 'utf8');
  } catch (error: any) {
    if (error.code === 'ENOENT') return null;
    throw new Problem(`the ledger ${named(file)} cannot be read: ${error.code}`, { exitCode: 64 });
  }
  try {
    const book = JSON.parse(text);
    if (book.format !== 1 || misfit(book, BOOK_FORM)) throw new Error();
    if (book.server !== server) throw new Problem(`the ledger ${named(file)} is that of ${book.server}`, { exitCode: 64 });
    return { ...book, repository };
  } catch (error) {
    if (error instanceof Problem) throw error;
    throw new Problem(`the ledger ${named(file)} is damaged`,
      { exitCode: 64, hint: 'bring it back from your own backup. If there is none, move it away: the next audit begins a new one, and trusts what it finds' });
  }
}

export const newBook = ({ server, repository }: OperatedServer, now: string): Book => ({ format: 1, server, repository, firstAuditAt: now, lastAuditAt: now,
  mark: null, appendOnly: false, config: {}, archives: [], days: [], audits: [], prunes: [], pruning: null });

/** One audit or prune of a server at a time, on this computer. Returns the lock: an open file. Throws Problem (75) when there is another one. */
function lockBook({ ledgerFolder }: Operator, server: string): number {
  canWrite(ledgerFolder, () => { fs.mkdirSync(ledgerFolder, { recursive: true, mode: 0o700 }); fs.accessSync(ledgerFolder, fs.constants.W_OK); });
  refuseIfOthersCanChange(ledgerFolder, '`ledgerFolder`');
  const lock = takeLock(ledgerFolder, 1, `.${server}.lock`);
  if (lock !== null) return lock;
  throw new Problem(`${server}: another audit or prune of it is going on`, { exitCode: 75, hint: 'wait for its end' });
}

/**
 * Audit or prune each server meant, alone on its ledger. Given what to do and what to note of one that failed, returns the exit code: an alarm or a failure (2) is
 * never hidden by another server's "not now".
 */
export async function eachServer(operator: Operator, names: string[], work: (one: OperatedServer) => Promise<number>, failed: (server: string, why: string) => void): Promise<number> {
  const codes = [0];
  for (const one of serversMeant(operator, names)) {
    let lock: number | null = null;
    try {
      lock = lockBook(operator, one.server);
      codes.push(await work(one));
    } catch (error) {
      if (!(error instanceof Problem)) throw error;
      if (error.message !== askedToStop()?.why) sayError(error); // that is told in the end
      failed(one.server, error.message);
      codes.push(error.facts.exitCode ?? 2);
      goOn();
    } finally {
      if (lock !== null) fs.closeSync(lock);
    }
  }
  return [2, 64, 75].find((code) => codes.includes(code)) ?? Math.max(...codes);
}

/** Write the ledger, on disk when this returns. */
export const writeBook = (operator: Operator, book: Book): void => writeHere(bookFile(operator, book.server), `${JSON.stringify(book, null, 1)}\n`);
/** The last transaction up to which archives have names in the ledger: audits without the key move the mark alone. 0: no audit saw names and transactions both. */
export const namedUntil = (book: Book) => book.namedUntil ?? (book.archives.length > 0 ? book.mark?.transaction ?? 0 : 0);
/** The archives that are still there, as far as the ledger knows. */
export const present = (book: Book) => book.archives.filter((one) => !one.goneAt);
