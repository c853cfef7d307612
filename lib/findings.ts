// What an audit finds wrong, rule by rule. Given the ledger, what was read of the repository's files and (with the key) the list of archives,
// these functions return findings in words a person understands. They only judge: nothing is read or changed here.
// R1 overwritten, R2 deleted, R3 without a manifest, R4 manifest shrunk, R5 not expected, R6 sudden growth or shrinking, R7 key, configuration
// or nonce changed, R8 archive gone, R9 damaged, R10 times that do not fit the storage's own, R11 a proof that is none.
import { createHash } from 'node:crypto';
import { count, named, size, span } from './say.ts';
import type { Problem } from './say.ts';
import { stampOf } from './archives.ts';
import type { ListedArchive } from './archives.ts';
import { namedUntil, present } from './book.ts';
import type { Book, Finding, KnownArchive } from './book.ts';
import { timeOf } from './segments.ts';
import type { Reading, Transaction } from './segments.ts';

/** What an audit has in hand. puts: where the ids that matter were PUT: [transaction, place]. listed: null without the key, or when it cannot be had (listTrouble). */
export type Evidence = { book: Book; isFirst: boolean; reading: Reading | null; puts: Map<string, [number, number][]>; listed: ListedArchive[] | null; listTrouble: Problem | null; fresh: KnownArchive[]; now: string };

const HOUR = 3_600_000;
const SMALLEST_ENTRY = 32; // bytes by which the manifest shrinks, at least, when an archive leaves it: the id alone. A checkpoint's name that becomes the final one is 11
const MOST_TRANSACTIONS = 600; // a day: one every five minutes, twice
const MOST_ARCHIVES = 150; // a day
export const LATEST_PROOF = 2 * HOUR; // after its archive
const NONCE_JUMP = 1n << 44n; // a session takes 2^28 at least (borg: NONCE_SPACE_RESERVATION)

const aFinding = (rule: string, at: string, transaction: number | null, archives: string[], what: string): Finding => ({ rule, at, archives, what, undo: '', transaction });
const apart = (one: string, other: string) => Math.abs(Date.parse(one) - Date.parse(other));
const sha256 = (text: string) => createHash('sha256').update(text).digest('hex');

/** Everything that is wrong, the earliest first. */
export function findingsOf(evidence: Evidence): Finding[] {
  const { reading, listed, isFirst, book } = evidence, areFilesKnown = book.mark !== null, areNamesKnown = book.archives.length > 0 || namedUntil(book) > 0;
  if (isFirst) return reading ? damagedFiles(reading, evidence.now) : []; // what was there before we came is trusted
  const rewrites = reading && areFilesKnown ? rewritten(evidence, reading) : [], missing = listed ? goneArchives(evidence, listed) : [];
  const found = [...rewrites, ...missing];
  if (reading && areFilesKnown) found.push(...manifests(evidence, reading, found.length > 0), ...unexpected(evidence, reading));
  if (reading && Object.keys(book.config).length > 0) found.push(...configuration(evidence, reading));
  if (reading) found.push(...damagedFiles(reading, evidence.now));
  if (listed && areNamesKnown) found.push(...strangers(evidence), ...wrongTimes(evidence), ...falseProofs(evidence, listed));
  if (listed ? areNamesKnown : areFilesKnown) found.push(...oddSizes(evidence));
  return onceEach(found).sort((one, other) => (one.transaction ?? Infinity) - (other.transaction ?? Infinity) || (one.rule < other.rule ? -1 : 1));
}

// An archive whose deletion was seen in the files is also missing in the list: told once.
function onceEach(found: Finding[]): Finding[] {
  const told = new Set<string>();
  return found.filter(({ rule, archives }) => rule !== 'R8' || archives.some((name) => !told.has(name) && told.add(name)));
}

/** R1 and R2, and R8 where an archive itself was deleted. An honest run deletes one thing: its own last checkpoint, right after it. */
function rewritten({ book, puts, fresh, listed }: Evidence, { transactions, oldFiles }: Reading): Finding[] {
  const found: Finding[] = [], known = new Map([...book.archives, ...fresh].map((one) => [one.id, one]));
  let before = book.mark?.transaction ?? 0;
  for (const one of transactions) {
    const overwritten: string[] = [], deleted: string[] = [], checkpoints: string[] = [];
    for (const [id, place] of one.deletes) {
      const all = puts.get(id) ?? [], isEarlier = ([number, at]: [number, number]) => number < one.number || (number === one.number && at < place);
      const last = all.filter(isEarlier).pop()?.[0], archive = known.get(id), isKept = archive && archive.kind !== 'checkpoint' && !archive.goneAt;
      if (last === one.number) continue; // what one transaction puts and takes back was never there: a file that could not be read to its end
      if (all.some((put) => !isEarlier(put))) overwritten.push(id);
      else if (last === before && !isKept && (archive || !listed || before > namedUntil(book))) checkpoints.push(id); // up to there the ledger knows each archive
      else if (archive && isKept) found.push(aFinding('R8', timeOf(one), one.number, [archive.name], `archive ${named(archive.name)} was deleted, or renamed or written anew, which deletes it, too`));
      else deleted.push(id);
    }
    if (checkpoints.length > 1 || deleted.length > 0 || overwritten.length > 0 || one.manifest === null) deleted.push(...checkpoints); // no honest run
    const uncounted = one.deleted - one.deletes.length, where = `in transaction ${one.number}`;
    if (overwritten.length > 0) found.push(aFinding('R1', timeOf(one), one.number, [], `${count(overwritten.length, 'piece')} of stored data ${overwritten.length === 1 ? 'was' : 'were'} overwritten ${where}: every archive that holds such a piece is damaged`));
    if (deleted.length + uncounted > 0) found.push(aFinding('R2', timeOf(one), one.number, [], `${count(deleted.length + uncounted, 'piece')} of stored data ${deleted.length + uncounted === 1 ? 'was' : 'were'} deleted ${where}`));
    before = one.number;
  }
  const { mark } = book;
  if (mark && oldFiles.sha256 !== mark.files.sha256) {
    found.push(aFinding('R2', book.lastAuditAt, null, [], `the data files that the last audit knew are not the same any more (${mark.files.count} then, ${oldFiles.count} now): somebody with full access deleted, compacted, repaired or rolled back, and it was not \`prune\``));
  }
  return found;
}

/** R3: a transaction without a list of archives. R4 with the key: one stored data, and no archive in the list is its. R4 without the key: the list became shorter. */
function manifests({ book, listed, fresh, puts }: Evidence, { transactions }: Reading, isTampered: boolean): Finding[] {
  const found: Finding[] = [], shorter: Finding[] = [], ends = new Set(fresh.map(({ transaction }) => transaction)), freshIds = new Set(fresh.map(({ id }) => id)), accounted = new Set([...puts].filter(([id]) => !freshIds.has(id)).flatMap(([, list]) => list.map(([number]) => number)));
  let last = book.mark?.manifestBytes ?? 0;
  for (const one of transactions) {
    if (listed && one.puts > 0 && one.manifest !== null && !ends.has(one.number) && !accounted.has(one.number)) {
      found.push(aFinding('R4', timeOf(one), one.number, [], `transaction ${one.number} stored ${size(one.bytes)}, and there is no archive of it: it was taken out of the list, or somebody stores other things here`));
    }
    if (one.manifest === null) found.push(aFinding('R3', timeOf(one), one.number, [], `transaction ${one.number} has no list of archives: no borg client ends one so`));
    else {
      if (last - one.manifest >= SMALLEST_ENTRY) shorter.push(aFinding('R4', timeOf(one), one.number, [], `the list of archives became ${last - one.manifest} bytes shorter in transaction ${one.number}: an archive was taken out of it`));
      last = one.manifest;
    }
  }
  // Who hid an archive did it later than its run: the way back leads to before that.
  for (const one of found) if (one.rule === 'R4') one.transaction = shorter.find(({ transaction }) => transaction! > one.transaction!)?.transaction ?? one.transaction;
  return listed && !isTampered ? found : [...found, ...shorter]; // another compression makes the list shorter, too: with the names that alone is no alarm
}

/** R5, from the files: written around the append-only server, its log changed, too much in a day. */
function unexpected({ book, fresh }: Evidence, { transactions, oldLog }: Reading): Finding[] {
  const found: Finding[] = [], outside = transactions.filter((one) => book.appendOnly && one.time === null);
  if (outside.length > 0) found.push(aFinding('R5', timeOf(outside[0]!), outside[0]!.number, [], `${count(outside.length, 'transaction')} (${listedBriefly(outside.map(({ number }) => String(number)))}) did not come through the append-only server: somebody wrote with full access, and it was not \`prune\``));
  if (book.mark && book.mark.log.bytes > 0 && oldLog !== book.mark.log.sha256) found.push(aFinding('R5', book.lastAuditAt, null, [], 'the storage\'s own log of transactions was changed, not only added to'));
  for (const [day, list] of byDay(transactions)) {
    if (list.length > MOST_TRANSACTIONS) found.push(aFinding('R5', timeOf(list[0]!), list[0]!.number, [], `a flood: ${list.length} transactions on ${day}`));
  }
  for (const [day, list] of groups(fresh, ({ seenAt }) => seenAt.slice(0, 10))) {
    if (list.length > MOST_ARCHIVES) found.push(aFinding('R5', list[0]!.seenAt, list[0]!.transaction || null, list.map(({ name }) => name), `a flood: ${list.length} new archives on ${day}`));
  }
  return found;
}

/** R5, by name: archives that this script does not write. */
function strangers({ fresh, book }: Evidence): Finding[] {
  const other = fresh.filter(({ kind }) => kind === 'other');
  if (other.length === 0) return [];
  return [aFinding('R5', other[0]!.seenAt, other[0]!.transaction || null, other.map(({ name }) => name), `${count(other.length, 'archive')} that backup.js does not write on ${book.server}: ${listedBriefly(other.map(({ name }) => named(name)))}`)];
}

/** R7. */
function configuration({ book, now }: Evidence, reading: Reading): Finding[] {
  const is = hashedConfig(reading.config), was = book.config, found: Finding[] = [];
  for (const key of new Set([...Object.keys(was), ...Object.keys(is)])) {
    if (was[key] === is[key]) continue;
    const what = key === 'id' ? 'this is another repository: its id changed' : key === 'key' ? 'the key that lies in the repository was overwritten' : `the repository's configuration changed: ${key} was ${was[key] ?? 'not there'}, and is ${is[key] ?? 'not there'}`;
    found.push(aFinding('R7', now, null, [], what));
  }
  const nonce = nonceTrouble(book, reading);
  return nonce ? [...found, aFinding('R7', now, null, [], `the repository's nonce, which keeps its encryption safe, ${nonce}`)] : found;
}

/** What became of the nonce; '' when it only grew. */
export function nonceTrouble({ mark }: Book, { nonce }: Reading): string {
  const [before, after] = [mark?.nonce, nonce].map((hex) => (/^[0-9a-f]+$/.test(hex ?? '') ? BigInt(`0x${hex}`) : null));
  if (before == null) return '';
  if (after == null) return 'is gone';
  if (after >= before && after - before <= NONCE_JUMP) return '';
  return `${after < before ? 'went back' : 'jumped'}: from ${mark!.nonce} to ${nonce}${after < before ? '' : '. At its end no backup could be written any more'}`;
}

/** The configuration as the ledger keeps it: the key only as a checksum. What `borg check` notes there for itself is left out. */
export const hashedConfig = (config: Record<string, string>): Record<string, string> =>
  Object.fromEntries(Object.entries(config).filter(([key]) => key !== 'last_segment_checked').map(([key, value]) => [key, key === 'key' ? `sha256 ${sha256(value)}` : value]));

/** R9. */
const damagedFiles = ({ damage }: Reading, now: string): Finding[] => (damage.length === 0 ? [] : [aFinding('R9', now, null, [], `the repository's files are damaged: ${listedBriefly(damage, 5)}`)]);

/** R8, by the list of archives. */
function goneArchives({ book, reading }: Evidence, listed: ListedArchive[]): Finding[] {
  const ids = new Set(listed.map(({ id }) => id)), names = new Set(listed.map(({ name }) => name));
  return present(book).filter(({ id, kind }) => kind !== 'checkpoint' && !ids.has(id)).map(({ id, name }) => {
    const deletion = reading?.transactions.find(({ deletes }) => deletes.some(([one]) => one === id));
    return aFinding('R8', deletion ? timeOf(deletion) : book.lastAuditAt, deletion?.number ?? null, [name], names.has(name)
      ? `archive ${named(name)} is not the one of the last audit: it was deleted and written anew` : `archive ${named(name)} is gone: it was deleted or renamed`);
  });
}

/** R10. What the client claims, against what the storage saw. */
function wrongTimes({ book, fresh, reading }: Evidence): Finding[] {
  return fresh.flatMap((one) => {
    const stamp = stampOf(one.name), wrong = (what: string) => [aFinding('R10', one.seenAt, one.transaction || null, [one.name], `archive ${named(one.name)} ${what}`)];
    const seen = `the storage saw it on ${one.seenAt}`;
    if (one.seenBy === 'storage' && one.transaction <= namedUntil(book) && reading) return wrong('is new in the list, but its data is older than the last audit');
    if (Date.parse(one.endedAt) - Date.parse(one.seenAt) > HOUR) return wrong(`claims a time in the future: ${one.endedAt}; ${seen}`);
    if (one.seenBy === 'storage' ? apart(one.endedAt, one.seenAt) > HOUR : Date.parse(one.endedAt) < Date.parse(book.lastAuditAt) - HOUR) return wrong(`claims another time than it was written at: ${one.endedAt}; ${seen}`);
    if (stamp && (Date.parse(stamp) - Date.parse(one.claimedAt) > HOUR || Date.parse(one.seenAt) - Date.parse(stamp) > 7 * 24 * HOUR)) return wrong(`bears another time in its name than it was written at; ${seen}`);
    return [];
  });
}

/** R11. Only the run itself says that an archive is good, and at once. */
function falseProofs({ book, fresh }: Evidence, listed: ListedArchive[]): Finding[] {
  const all = new Map([...present(book), ...fresh].map((one) => [one.name, one]));
  return fresh.filter(({ kind }) => kind === 'proof').flatMap((proof) => {
    const name = proof.name.slice('proven-'.length), cold = all.get(name), claims = listed.find(({ id }) => id === proof.id)?.facts.id;
    const wrong = (what: string) => [aFinding('R11', proof.seenAt, proof.transaction || null, [name, proof.name], what)];
    if (!cold) return wrong(`${proof.name} says that ${name} is good, and there is no such archive`);
    if (cold.unproven) return wrong(`${name} was not proven at an earlier audit, and now there is a proof of it: only the run itself could know (if that audit fell into the minutes in which the run was starting its services again, all is well)`);
    if (Date.parse(proof.seenAt) - Date.parse(cold.seenAt) > LATEST_PROOF) return wrong(`the proof of ${name} was written ${span(apart(proof.seenAt, cold.seenAt) / 1000)} after it: a run writes it at once`);
    if (claims && claims !== cold.id) return wrong(`${proof.name} was written for another archive of that name: ${name} was written anew`);
    return [];
  });
}

/** R6. Given archives that are new and proven, how they compare with those before: a night that holds half or less, or thrice and more, or sends more than ever. */
function oddSizes({ book, fresh, reading, listed }: Evidence): Finding[] {
  const proven = provenOnes(present(book)), found: Finding[] = [];
  for (const one of provenOnes(fresh)) {
    const wrong = (what: string) => found.push(aFinding('R6', one.seenAt, one.transaction || null, [one.name], `${one.name} ${what}`));
    const odd = oddSize(one, proven);
    if (odd) wrong(odd);
    const sent = proven.slice(-14).flatMap(({ newBytes }) => newBytes ?? []);
    if (reading && isSudden(one.newBytes ?? 0, sent, reading.bytes)) wrong(`sent ${size(one.newBytes!)}, where the nights before sent ${size(Math.max(...sent))} at most: was everything changed, as by encryption?`);
    proven.push(one);
  }
  for (const [day, list] of reading && !listed ? byDay(reading.transactions) : []) {
    const bytes = list.reduce((sum, one) => sum + one.bytes, 0) + (book.days.find((one) => one.day === day)?.bytes ?? 0), before = book.days.filter((one) => one.day < day).slice(-14).map((one) => one.bytes);
    if (isSudden(bytes, before, reading!.bytes)) found.push(aFinding('R6', timeOf(list[0]!), list[0]!.number, [], `${size(bytes)} came on ${day}, where the days before brought ${size(Math.max(...before))} at most: was everything changed, as by encryption?`));
  }
  return found;
}

export const provenOnes = (archives: KnownArchive[]) => {
  const proofs = new Set(archives.filter(({ kind }) => kind === 'proof').map(({ name }) => name.slice('proven-'.length)));
  return archives.filter(({ name, kind }) => kind === 'cold' && proofs.has(name)).sort((one, other) => (one.seenAt < other.seenAt ? -1 : 1));
};

/** In which way the size of an archive is not that of the up to seven before it; '' when it is. */
export function oddSize({ originalBytes, files }: KnownArchive, earlier: KnownArchive[]): string {
  const known = earlier.slice(-7).filter((one) => one.originalBytes !== null);
  if (known.length < 3 || originalBytes === null) return '';
  const [least, most] = [Math.min(...known.map((one) => one.originalBytes!)), Math.max(...known.map((one) => one.originalBytes!))], fewest = Math.min(...known.map((one) => one.files ?? 0));
  if (originalBytes < least / 2 && least - originalBytes > 1e6) return `holds ${size(originalBytes)}, where the ones before hold ${size(least)} at least`;
  if (files !== null && files < fewest / 2 && fewest - files > 20) return `holds ${count(files, 'file')}, where the ones before hold ${fewest} at least`;
  return originalBytes > most * 3 && originalBytes - most > 16e6 ? `holds ${size(originalBytes)}, where the ones before hold ${size(most)} at most` : '';
}

const isSudden = (bytes: number, before: number[], repositoryBytes: number) => before.length >= 5 && bytes > 16e6 && bytes > 5 * Math.max(...before) && bytes > (repositoryBytes - bytes) / 2;

export const byDay = (transactions: Transaction[]) => groups(transactions, (one) => timeOf(one).slice(0, 10));

function groups<T>(list: T[], keyOf: (one: T) => string): Map<string, T[]> {
  const found = new Map<string, T[]>();
  for (const one of list) found.set(keyOf(one), [...found.get(keyOf(one)) ?? [], one]);
  return found;
}

export const listedBriefly = (texts: string[], most = 10) => texts.slice(0, most).join(', ') + (texts.length > most ? ` and ${texts.length - most} more` : '');
