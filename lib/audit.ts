// The audit: has somebody tampered with an append-only repository?
// It reads what is new since the last audit, compares it with the ledger, and says `clean` or `alarm`. A clean one moves the ledger's mark forward; an alarm leaves
// it where it was, so that every audit after it finds the same, until it is undone, or the operator accepts it. Changes the ledger alone; on the storage nothing.
import { setTimeout as sleep } from 'node:timers/promises';
import { Problem, answer, count, lastLines, mode, named, oneLine, say, size, span } from './say.ts';
import { goOn } from './shell.ts';
import type { Settings } from './settings.ts';
import { WITHOUT_LOCK, kindOf, listEverything, stampOf, writtenBefore } from './archives.ts';
import type { ListedArchive } from './archives.ts';
import { orWrongBorg } from './list.ts';
import { agrees } from './answers.ts';
import { ANYWHERE, IS_GONE, borgSettings, canDecrypt, hasShell } from './operator.ts';
import type { OperatedServer, Operator } from './operator.ts';
import { readRepository, timeOf } from './segments.ts';
import type { Reading, Wanted } from './segments.ts';
import { eachServer, namedUntil, newBook, present, readBook, writeBook } from './book.ts';
import type { Book, Finding, KnownArchive } from './book.ts';
import { LATEST_PROOF, byDay, findingsOf, hashedConfig, listedBriefly, provenOnes } from './findings.ts';
import type { Evidence } from './findings.ts';
import { undoPlan } from './undo.ts';

/** What an audit came to. book: as it was written; evidence: what it was judged by. */
export type Audited = { server: string; verdict: 'clean' | 'alarm'; findings: Finding[]; notes: string[]; book: Book; evidence: Evidence };

type AuditOptions = { full: boolean; accept: boolean; yes: boolean; undoPlan: boolean };
type Given = Pick<Evidence, 'book' | 'reading' | 'isFirst' | 'now'>;

const SETTLED = 90; // seconds after which a new archive without its proof counts as unproven: until then its run is starting services again

/** `audit [SERVER...]`: given the operator's file, audits each server. Returns 0 when all are clean, 2 after an alarm or when one could not be audited. */
export async function audit(builtIn: Settings, operator: Operator, names: string[], options: AuditOptions): Promise<number> {
  const results: object[] = [];
  const exitCode = await eachServer(operator, names, async (one) => {
    const { server, verdict, findings, notes, book, evidence } = await auditServer(builtIn, operator, one, options);
    const plan = findings.length > 0 ? undoPlan(operator, one, book, evidence, findings) : `# ${server}: no alarm, so there is nothing to undo`;
    results.push({ server, verdict, findings, notes, newTransactions: evidence.reading?.transactions.length ?? null, archives: present(book).length, ...(options.undoPlan ? { undoPlan: plan } : {}) });
    if (options.undoPlan && !mode.json) answer(plan);
    else if (!mode.json && !(mode.quiet && verdict === 'clean')) answer(auditText(server, verdict, findings, notes));
    return verdict === 'alarm' ? 2 : 0;
  }, (server, error) => results.push({ server, verdict: 'unknown', findings: [], notes: [], error }));
  if (mode.json) answer(JSON.stringify(results, null, 1));
  return exitCode;
}

/** Audit one server and write its ledger. Throws Problem when the repository cannot be read. */
export async function auditServer(builtIn: Settings, operator: Operator, one: OperatedServer, options: Partial<AuditOptions> = {}): Promise<Audited> {
  const now = new Date().toISOString(), was = readBook(operator, one), book = was ?? newBook(one, now);
  if (!hasShell(one) && !canDecrypt(one)) throw new Problem(`${one.server}: without a shell on the storage and without the passphrase there is nothing to audit by`,
    { exitCode: 64, hint: 'give `storage`, or `keyFile` and `passphraseFile`' });
  if (book.pruning) throw new Problem(`${one.server}: the prune of ${book.pruning.startedAt} was interrupted`,
    { hint: `node backup.js prune ${one.server} puts it in order, and audits` });
  let evidence: Evidence;
  try {
    evidence = await gather(builtIn, operator, one, { book, isFirst: was === null, now }, options.full === true);
  } catch (error) { // a known repository that is not there is an alarm; whatever else fails is no verdict at all
    if (was === null || !(error instanceof Problem) || !error.message.endsWith(IS_GONE)) throw error;
    evidence = { book, isFirst: false, reading: null, puts: new Map(), listed: [], listTrouble: error, fresh: [], now };
  }
  const findings = findingsOf(evidence).map((found) => ({ ...found, undo: undoOf(one, found) }));
  if (evidence.listTrouble && findings.length === 0) throw evidence.listTrouble;
  const notes = notesOf(evidence, canDecrypt(one));
  if (findings.length > 0 && options.accept && !mode.json) answer(auditText(one.server, 'alarm', findings, []));
  const isAccepted = findings.length > 0 && options.accept === true && (options.yes || await agrees(`Take what was found on ${one.server} as it is, from now on?`));
  const verdict = findings.length > 0 && !isAccepted ? 'alarm' : 'clean';
  book.lastAuditAt = verdict === 'clean' ? now : book.lastAuditAt;
  book.audits.push({ at: now, verdict, transactions: evidence.reading?.transactions.length ?? 0, findings, ...(isAccepted ? { accepted: `by the operator, ${now}` } : {}) });
  if (verdict === 'clean') moveForward(evidence, isAccepted ? findings : []);
  if (!mode.dryRun) writeBook(operator, book);
  return { server: one.server, verdict, findings: isAccepted ? [] : findings, notes: isAccepted ? [...notes, `${count(findings.length, 'finding')} accepted`] : notes, book, evidence };
}

/** Read what there is to judge by: the files since the mark, the list of archives, and where in the files the ids that matter were PUT. */
async function gather(builtIn: Settings, operator: Operator, one: OperatedServer, { book, isFirst, now }: Pick<Evidence, 'book' | 'isFirst' | 'now'>, full: boolean): Promise<Evidence> {
  const mark = book.mark, after = mark?.transaction ?? 0, logBytes = mark?.log.bytes ?? 0, began = Date.now();
  const { reading, listed, listTrouble } = await readUntilSettled(one, canDecrypt(one) ? borgSettings(builtIn, operator, one) : null, book, isFirst);
  if (full && reading) reading.damage = (await readRepository(one, { after: 0, until: reading.last, logBytes, ids: [], data: true })).damage;
  const known = new Set(book.archives.map(({ id }) => id)), added = listed?.filter(({ id }) => !known.has(id)) ?? [];
  const puts = new Map<string, [number, number][]>(), at = new Map<number, string>(reading?.transactions.map((transaction) => [transaction.number, timeOf(transaction)]));
  const ids = new Set([...added.map(({ id }) => id), ...reading?.transactions.flatMap(({ deletes }) => deletes.map(([id]) => id)) ?? []]);
  if (reading && ids.size > 0) await findPuts(one, { after: mark?.previous ?? 0, until: reading.last, logBytes, ids: [...ids], data: false }, puts, at);
  const missing = reading ? added.filter(({ id }) => !puts.has(id)).map(({ id }) => id) : [];
  if (missing.length > 0 && after > 0) await findPuts(one, { after: 0, until: reading!.last, logBytes, ids: missing, data: false }, puts, at);
  const fresh = added.map((archive) => knownArchive(archive, one.server, puts.get(archive.id)?.[0]?.[0] ?? 0, at, { book, reading, isFirst, now }));
  noteSizes(fresh, listed ?? []);
  countNewBytes(fresh, book, reading);
  say(`${one.server}: ${reading ? `read ${count(reading.transactions.length, 'transaction')}${after > 0 ? ' since the last audit' : ''} in ${span((Date.now() - began) / 1000)}` : 'no shell on the storage: only the list of archives is compared'}`);
  return { book, isFirst, reading, puts, listed, listTrouble, fresh, now };
}

/**
 * Read the files since the mark and list the archives, until nobody wrote between the first look and the last. What came meanwhile is added to what was read:
 * during a long upload nothing is read twice.
 */
async function readUntilSettled(one: OperatedServer, settings: Settings | null, book: Book, isFirst: boolean): Promise<Pick<Evidence, 'reading' | 'listed' | 'listTrouble'>> {
  const { mark } = book, read = (after: number) => readRepository(one, { after, until: 0, logBytes: mark?.log.bytes ?? 0, ids: [], data: mark !== null });
  let reading = hasShell(one) ? await read(mark?.transaction ?? 0) : null;
  for (;;) {
    let listed: ListedArchive[] | null = null, listTrouble: Problem | null = null;
    const isNew = !reading || isFirst || reading.transactions.length > 0 || namedUntil(book) < reading.last; // else the list is that of the last audit
    try {
      if (settings && isNew) listed = await orWrongBorg(listSettled(settings, one.server, book));
    } catch (error) { // it may be what was done to the repository that keeps borg from reading it: the files tell
      if (!(error instanceof Problem) || isFirst || !reading) throw error;
      listTrouble = error;
    }
    if (!reading || !isNew) return { reading, listed, listTrouble };
    const later = await read(reading.last); // an upload that is not committed is no matter
    if (later.transactions.length === 0 && later.log.sha256 === reading.log.sha256) return { reading, listed, listTrouble };
    const isSame = later.oldFiles.sha256 === reading.files.sha256, isLogged = reading.appendOnlyLines === 0 || reading.transactions.at(-1)?.time !== null; // the log gets its line after the commit
    reading = !isSame || !isLogged ? await read(mark?.transaction ?? 0)
      : { ...later, transactions: [...reading.transactions, ...later.transactions], damage: [...reading.damage, ...later.damage], oldFiles: reading.oldFiles };
  }
}

// A run writes its proof when all services are up again: an archive of a minute ago need not have one.
async function listSettled(settings: Settings, server: string, book: Book): Promise<ListedArchive[]> {
  const known = new Set(book.archives.map(({ id }) => id)), began = Date.now();
  for (;;) {
    const listed = await listEverything(settings, WITHOUT_LOCK, ANYWHERE), names = new Set(listed.map(({ name }) => name));
    const open = listed.find(({ id, name, endedAt }) => !known.has(id) && kindOf(server, name) === 'cold' && !names.has(`proven-${name}`) && Math.abs(Date.now() - Date.parse(endedAt)) < SETTLED * 1000 && Date.now() - Date.parse(stampOf(name)) < 86_400_000);
    if (!open || Date.now() - began > SETTLED * 1000) return listed;
    say(`${server}: ${open.name} was written just now, and has no proof yet: waiting for it, ${SETTLED} s at most`);
    await sleep(5000);
    goOn();
  }
}

async function findPuts(one: OperatedServer, wanted: Wanted, puts: Evidence['puts'], at: Map<number, string>): Promise<void> {
  const { transactions } = await readRepository(one, wanted);
  for (const transaction of transactions) {
    at.set(transaction.number, timeOf(transaction));
    for (const [id, place] of transaction.found) puts.set(id, [...puts.get(id) ?? [], [transaction.number, place]]);
  }
}

function knownArchive({ id, name, startedAt, endedAt }: ListedArchive, server: string, transaction: number, at: Map<number, string>, { book: { mark, lastAuditAt }, reading, isFirst, now }: Given): KnownArchive {
  const logged = transaction > 0 && (mark !== null || reading!.appendOnlyLines > 0), between = [lastAuditAt, endedAt, now].map((time) => `${time.slice(0, 19)}Z`).sort()[1]!;
  const seenAt = logged ? at.get(transaction)! : isFirst ? endedAt : between; // who lies can only lie within the time between two audits
  return { id, name, kind: kindOf(server, name), seenAt, seenBy: logged ? 'storage' : isFirst ? 'first audit' : 'audit', transaction, claimedAt: startedAt, endedAt, originalBytes: null, files: null, newBytes: null };
}

// How much an archive holds, as the comment of its proof says.
function noteSizes(archives: KnownArchive[], listed: ListedArchive[]): void {
  const facts = new Map(listed.map((one) => [one.name, one.facts])), numberOrNull = (value: unknown) => (typeof value === 'number' && value >= 0 ? value : null);
  for (const one of archives) {
    const proof = one.kind === 'cold' && facts.get(`proven-${one.name}`);
    if (proof) Object.assign(one, { originalBytes: numberOrNull(proof.originalBytes), files: numberOrNull(proof.files) });
  }
}

// What a run sent: everything since the proof before it.
function countNewBytes(fresh: KnownArchive[], book: Book, reading: Reading | null): void {
  let before = book.mark?.transaction ?? (book.audits.length === 0 ? 0 : Infinity); // what came before the mark was not read
  for (const cold of provenOnes(fresh)) {
    const proof = fresh.find(({ name }) => name === `proven-${cold.name}`)!;
    if (reading && proof.transaction > before) cold.newBytes = reading.transactions.filter(({ number }) => number > before && number <= proof.transaction).reduce((sum, { bytes }) => sum + bytes, 0);
    before = Math.max(before, proof.transaction);
  }
}

/** The ledger takes in what was found: the new mark, archives, bytes a day. Given what was accepted, too. */
function moveForward({ book, reading, listed, fresh, now }: Evidence, accepted: Finding[]): void {
  book.namedUntil = listed && reading ? reading.last : namedUntil(book);
  if (reading) {
    const { transactions, last, files, log, nonce } = reading, lastOne = transactions[transactions.length - 1];
    const manifestBytes = transactions.reduce((bytes, { manifest }) => manifest ?? bytes, book.mark?.manifestBytes ?? 0);
    book.mark = { transaction: last, previous: lastOne ? transactions[transactions.length - 2]?.number ?? book.mark?.transaction ?? 0 : book.mark?.previous ?? 0, time: lastOne ? timeOf(lastOne) : book.mark?.time ?? now, files, log, manifestBytes, nonce };
    book.appendOnly ||= reading.appendOnlyLines > 0;
    book.config = hashedConfig(reading.config);
    for (const [day, list] of byDay(transactions)) {
      const known = book.days.find((one) => one.day === day) ?? { day, bytes: 0, transactions: 0 };
      if (known.transactions === 0) book.days.push(known);
      known.bytes += list.reduce((sum, { bytes }) => sum + bytes, 0);
      known.transactions += list.length;
    }
  }
  if (!listed) return;
  const ids = new Set(listed.map(({ id }) => id)), before = writtenBefore(listed), names = new Set(listed.map(({ name }) => name));
  book.archives.push(...fresh);
  for (const one of present(book)) {
    if (!ids.has(one.id)) Object.assign(one, { goneAt: now, goneBy: one.kind === 'checkpoint' ? 'its run' : accepted.length > 0 ? 'accepted' : 'unknown' });
    else if (one.kind === 'cold' && before.has(one.id)) one.kind = 'other';
    else if (one.kind === 'cold' && names.has(`proven-${one.name}`)) delete one.unproven;
    else if (one.kind === 'cold' && Date.parse(now) - Date.parse(one.seenAt) > LATEST_PROOF) one.unproven = true; // until then its run may be starting services
  }
}

function undoOf({ server }: OperatedServer, { rule, transaction }: Finding): string {
  if (rule === 'R9') return 'borg check on the storage; restore the damaged files from a copy of the storage';
  if (transaction === null && rule === 'R7') return `node backup.js audit ${server} --undo-plan prints how to put it back`;
  if (transaction === null) return 'ask who has full access to the storage; when it was you: node backup.js audit --accept';
  return `nothing is lost until somebody prunes or compacts: node backup.js audit ${server} --undo-plan prints the way back to before transaction ${transaction}`;
}

function notesOf({ book, isFirst, reading, listed, listTrouble, fresh, now }: Evidence, hasKey: boolean): string[] {
  const proven = provenOnes([...present(book), ...fresh]).pop(), all = listed?.length ?? 0, notes: string[] = [];
  if (isFirst) notes.push(`first audit: it trusts what it found${reading ? `, ${count(reading.transactions.length, 'transaction')} in ${size(reading.bytes)}` : ''}${listed ? `, ${count(all, 'archive')}` : ''}`);
  if (isFirst) notes.push(...oddAtFirst({ reading, fresh }));
  if (!isFirst && reading && !book.mark) notes.push('the files of the repository were not read before, or not since a prune in place: they are trusted as they are');
  if (!isFirst && listed && book.archives.length === 0 && namedUntil(book) === 0) notes.push('archives had no names here before: they are trusted as they are');
  if (listTrouble) notes.push(`the archives cannot be listed: ${listTrouble.message}: ${lastLines(listTrouble.facts.said ?? '', 1)}`);
  else if (!hasKey) notes.push('without the passphrase archives have no names here, and times are not compared');
  if (!reading) notes.push('the storage has no shell: overwritten data, a changed key or configuration and damage cannot be seen');
  if (hasKey && proven) notes.push(`newest proven archive: ${proven.name}, ${span(Math.max(0, Date.parse(now) - Date.parse(proven.seenAt)) / 1000)} ago`);
  if (hasKey && !proven) notes.push('there is no proven archive');
  return notes;
}

/** What somebody should look at before the first audit's trust is built upon. */
export function oddAtFirst({ reading, fresh }: Pick<Evidence, 'reading' | 'fresh'>): string[] {
  if (!reading) return [];
  const odd: string[] = [], removing = reading.transactions.filter(({ deletes }) => deletes.length > 1).length, outside = reading.transactions.slice(1).filter(({ time }) => time === null).length;
  if (removing > 0) odd.push(`${count(removing, 'transaction')} deleted data before this audit: if nobody pruned, look at the archives now`);
  if (outside > 0) odd.push(`${count(outside, 'transaction')} did not come through an append-only server`);
  const off = fresh.filter((one) => one.seenBy === 'storage' && stampOf(one.name) !== '' && Math.abs(Date.parse(one.endedAt) - Date.parse(one.seenAt)) > 3_600_000);
  if (off.length > 0) odd.push(`${count(off.length, 'archive')} bear another time than the storage saw: ${listedBriefly(off.map(({ name }) => named(name)), 5)}`);
  return odd;
}

function auditText(server: string, verdict: string, findings: Finding[], notes: string[]): string {
  if (verdict === 'clean') return [`${server}: clean`, ...notes.map((note) => `  ${note}`)].join('\n');
  return [`${server}: ALARM: ${count(findings.length, 'finding')}. Do not prune or compact this repository`, ...findings.flatMap(({ rule, at, archives, what, undo }) => [`  ${rule.padEnd(4)} ${at.slice(0, 19)}Z  ${oneLine(what)}`,
    ...(archives.length > 0 ? [`       archives: ${listedBriefly(archives.map(named), 20)}`] : []), `       undo: ${undo}`]),
  ...notes.map((note) => `  note: ${note}`), `  next: node backup.js audit ${server} --undo-plan    (or, when you know who did it and want to keep it: --accept)`].join('\n');
}
