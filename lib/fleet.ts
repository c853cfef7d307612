// What the operator knows of each server, for the report.
// Out of the ledger, a read-only look at the storage, and (with the key) the list of archives, the history in the newest proof and the record of each archive. What never changes
// any more (a history, a passport) is kept beside the ledger, so that a second report reads only what is new, and one of a server that cannot be reached still shows what was
// known. Everything that comes from an archive may be an intruder's: it is taken by form and length, never as it stands. Changes only files in `ledgerFolder`/.report.
import fs from 'node:fs';
import path from 'node:path';
import { Problem, lastLines, say } from './say.ts';
import { fourAtATime, goOn } from './shell.ts';
import type { Settings } from './settings.ts';
import { WITHOUT_LOCK, kindOf, listEverything, readFromArchive, writtenBefore } from './archives.ts';
import type { ListedArchive } from './archives.ts';
import { soundManifest } from './record.ts';
import { ANYWHERE, borgSettings, canDecrypt, canWrite, hasShell, writeHere } from './operator.ts';
import type { OperatedServer, Operator } from './operator.ts';
import { STATE_ALONE, readRepository } from './segments.ts';
import type { Reading } from './segments.ts';
import { present, readBook } from './book.ts';
import type { Book } from './book.ts';

/** One run as its server tells it. Sizes in bytes; newBytes: what was sent. */
export type Night = { startedAt: string; outcome: 'good' | 'warning' | 'failed'; archive: string; downSeconds: number; bytes: number; newBytes: number; warnings: string[] };
export type Drilled = { archive: string; proven: boolean; madeAt: string; restoreSeconds: number };
/** What is needed to use an archive, in short. */
export type ShortPassport = { system: string; architecture: string; paths: string[]; containers: string[]; clusters: { name: string; version: string; databases: { name: string; bytes: number; extensions: string[] }[] }[] };
/** A cold archive. seenAt: by the storage's clock when the ledger has it (isSeen), else as its server claims. passport: a text says why there is none. */
export type ShownArchive = { name: string; seenAt: string; isSeen: boolean; isProven: boolean; passport: ShortPassport | string };
export type Space = { usedBytes: number; freeBytes: number; quotaBytes: number; perDay: number | null; disk: string; daysLeft: number | null };
/** All about a server. trouble: why it could not be looked at now; archives: newest first; nights: oldest first. */
export type ServerFacts = { one: OperatedServer; trouble: { message: string; hint: string } | null; archives: ShownArchive[]; nights: Night[]; drill: Drilled | null; audit: { at: string; verdict: string } | null;
  isPruning: boolean; space: Space | null };

type Kept = { proof: string; nights: Night[]; drill: Drilled | null; passports: Record<string, ShortPassport | string> }; // passports: by the archive's id

const MOST_LINES = 1000, MOST_TEXT = 300, MOST_ITEMS = 100; // of what an archive says
const LONGEST = { seconds: 1800 };

/** Given the operator's settings and the servers, returns what is known of each. Never throws a Problem: who cannot be reached says why. */
export async function factsOfAll(builtIn: Settings, operator: Operator, servers: OperatedServer[]): Promise<ServerFacts[]> {
  const facts = await fourAtATime(servers, (one) => lookAtServer(builtIn, operator, one));
  shareDisks(facts);
  return facts;
}

async function lookAtServer(builtIn: Settings, operator: Operator, one: OperatedServer): Promise<ServerFacts> {
  const kept = readKept(operator, one.server);
  let book: Book | null = null, reading: Reading | null = null, listed: ListedArchive[] | null = null, trouble: ServerFacts['trouble'] = null;
  try {
    book = readBook(operator, one);
    reading = hasShell(one) ? await readRepository(one, STATE_ALONE) : null;
    const settings = canDecrypt(one) ? borgSettings(builtIn, operator, one) : null;
    if (settings) {
      listed = await listEverything(settings, WITHOUT_LOCK, { ...ANYWHERE, ...LONGEST });
      await readNew(settings, one.server, listed, kept);
      writeKept(operator, one.server, kept);
    }
  } catch (error) {
    if (!(error instanceof Problem)) throw error;
    goOn();
    trouble = { message: `${error.message}${error.facts.said ? `: ${lastLines(error.facts.said, 2)}` : ''}`, hint: error.facts.hint ?? '' };
  }
  const last = book?.audits[book.audits.length - 1];
  return { one, trouble, archives: archivesOf(one.server, listed, book, kept), nights: kept.nights, drill: kept.drill, audit: last ? { at: last.at, verdict: last.verdict } : null, isPruning: Boolean(book?.pruning), space: spaceOf(one, reading, book) };
}

const isFuture = (time: string) => Date.parse(time) > Date.now() + 3_600_000; // a time that a client claims, and cannot be

// Newest first, by the time that counts. Without a list of today: those of the last audit.
function archivesOf(server: string, listed: ListedArchive[] | null, book: Book | null, kept: Kept): ShownArchive[] {
  const known = new Map(book?.archives.map((one) => [one.id, one])), all: { id: string; name: string; endedAt: string }[] = listed ?? (book ? present(book) : []);
  const names = new Set(all.map(({ name }) => name)), before = writtenBefore(listed ?? []);
  return all.filter(({ id, name }) => kindOf(server, name) === 'cold' && !before.has(id) && known.get(id)?.kind !== 'other').map(({ id, name, endedAt }): ShownArchive => {
    const seen = known.get(id), isSeen = seen?.seenBy === 'storage', seenAt = isSeen ? seen.seenAt : endedAt;
    return { name, seenAt, isSeen, isProven: names.has(`proven-${name}`) && !isFuture(seenAt), passport: kept.passports[id] ?? '' };
  }).sort((one, other) => (one.seenAt < other.seenAt ? 1 : -1));
}

/** Read what is new: the history in the newest proof, and the record of each archive that was never read. A record that cannot be had is told, and no reason for no report. */
async function readNew(settings: Settings, server: string, listed: ListedArchive[], kept: Kept): Promise<void> {
  const before = writtenBefore(listed), cold = listed.filter(({ id, name }) => kindOf(server, name) === 'cold' && !before.has(id)), read = (archive: string, file: string) => readFromArchive(settings, archive, file, { ...ANYWHERE, ...LONGEST }, WITHOUT_LOCK);
  const newest = listed.filter(({ name, endedAt }) => kindOf(server, name) === 'proof' && !isFuture(endedAt)).pop();
  const fresh = cold.filter(({ id }) => typeof kept.passports[id] !== 'object').reverse();
  if (fresh.length > 3) say(`${server}: reading the records of ${fresh.length} archives; the next report has them at hand`);
  if (newest && newest.id !== kept.proof) Object.assign(kept, historyIn(await read(newest.name, 'record/history.jsonl')), { proof: newest.id });
  for (const { id, name } of fresh) {
    try {
      kept.passports[id] = shortPassport(await read(name, 'record/manifest.json'), name);
    } catch (error) {
      if (!(error instanceof Problem)) throw error;
      goOn();
      kept.passports[id] = short(error.message);
    }
  }
  const ids = new Set(cold.map(({ id }) => id));
  kept.passports = Object.fromEntries(Object.entries(kept.passports).filter(([id]) => ids.has(id)));
}

// ---- what an archive says, by form and length ----

const short = (value: unknown) => (typeof value === 'string' ? value.slice(0, MOST_TEXT) : '');
const amount = (value: unknown) => (typeof value === 'number' && value >= 0 && value < 1e18 ? value : 0);
const items = (value: unknown): any[] => (Array.isArray(value) ? value.filter((one) => one !== null && one !== undefined).slice(0, MOST_ITEMS) : []);
const isTime = (value: unknown): value is string => typeof value === 'string' && /^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z$/.test(value) && !Number.isNaN(Date.parse(value));

/** Given the text of a history, returns its runs and the last drill with a certificate. */
function historyIn(text: string): { nights: Night[]; drill: Drilled | null } {
  const nights: Night[] = [];
  let drill: Drilled | null = null;
  for (const line of text.split('\n').slice(-MOST_LINES)) {
    let one: any = null;
    try { one = JSON.parse(line); } catch { /* an empty one, or none of ours */ }
    if (!isTime(one?.startedAt)) continue;
    const { certificate: found } = one;
    if (one.kind === 'drill' && isTime(found?.madeAt)) drill = { archive: short(found.archive), proven: found.proven === true, madeAt: found.madeAt, restoreSeconds: amount(found.restoreSeconds) };
    if (one.kind !== 'drill') {
      nights.push({ startedAt: one.startedAt, outcome: one.outcome === 'good' || one.outcome === 'warning' ? one.outcome : 'failed', archive: short(one.archive), downSeconds: amount(one.downSeconds), bytes: amount(one.cold?.originalBytes),
        newBytes: amount(one.warm?.deduplicatedBytes) + amount(one.cold?.deduplicatedBytes), warnings: items(one.warnings).slice(0, 10).map(short) });
    }
  }
  return { nights, drill };
}

function shortPassport(text: string, archive: string): ShortPassport {
  const { host, postgres, containers, plan } = soundManifest(text, archive);
  return {
    system: short(host?.osRelease?.PRETTY_NAME), architecture: short(host?.architecture), paths: items(plan.roots).map(({ path: place }) => short(place)), containers: items(containers).map(({ name, image }) => `${short(name)} (${short(image)})`),
    clusters: items(postgres).map((one) => ({ name: short(one.name), version: /^PostgreSQL (\S{1,20})/.exec(short(one.serverVersion))?.[1] ?? short(one.version),
      databases: items(one.databases).filter(({ template }) => template !== true).map(({ name, bytes, extensions }) => ({ name: short(name), bytes: amount(bytes), extensions: items(extensions).filter((each) => each.name !== 'plpgsql').map((each) => `${short(each.name)} ${short(each.version)}`) })) })),
  };
}

// ---- space ----

const bytesOfQuota = (quota: string) => {
  const [, number, unit] = /^([\d.]+)([KMGTP]?)B?$/i.exec(quota) ?? [];
  return Number(number ?? 0) * 1000 ** ' KMGTP'.indexOf(unit?.toUpperCase() || ' '); // borg: parse_file_size
};

function spaceOf({ storage }: OperatedServer, reading: Reading | null, book: Book | null): Space | null {
  if (!reading) return null;
  const quotas = reading.quotas.map(bytesOfQuota).filter((bytes) => bytes > 0), since = new Date(Date.now() - 30 * 86_400_000).toISOString().slice(0, 10);
  const all = [...book?.days ?? []].sort((one, other) => (one.day < other.day ? -1 : 1)), lately = all.filter(({ day }) => day > since);
  const days = lately.length > 0 ? (Date.parse(book!.lastAuditAt) - Date.parse(lately[0]!.day)) / 86_400_000 : 0; // what came after the last audit is not known
  const came = lately.filter(({ day }) => day !== all[0]!.day).reduce((sum, { bytes }) => sum + bytes, 0); // on the first day of all came everything
  const freed = (book?.prunes ?? []).filter(({ at }) => at.slice(0, 10) > since).reduce((sum, { freedBytes }) => sum + freedBytes, 0);
  return { usedBytes: reading.bytes, freeBytes: reading.disk.free, quotaBytes: quotas.length > 0 ? Math.min(...quotas) : 0, disk: JSON.stringify([storage.filter((word) => !word.startsWith('-')), reading.disk.id]),
    perDay: days >= 2 ? Math.max(0, came - freed) / days : null, daysLeft: null };
}

/** A disk is full for all of its servers on the same day; a quota for its own alone. */
function shareDisks(facts: ServerFacts[]): void {
  for (const { space } of facts) {
    if (!space || space.perDay === null) continue;
    const together = facts.reduce((sum, other) => sum + (other.space?.disk === space.disk ? other.space.perDay ?? 0 : 0), 0), days = [[space.freeBytes, together], ...(space.quotaBytes > 0 ? [[Math.max(0, space.quotaBytes - space.usedBytes), space.perDay]] : [])];
    const left = Math.min(...days.map(([room, perDay]) => room! / Math.max(perDay!, 1)));
    space.daysLeft = Math.floor(Math.min(left, 36_500));
  }
}

const keptFile = ({ ledgerFolder }: Operator, server: string) => path.join(ledgerFolder, '.report', `${server}.json`);

function readKept(operator: Operator, server: string): Kept {
  try {
    const { format, ...kept } = JSON.parse(fs.readFileSync(keptFile(operator, server), 'utf8'));
    if (format === 1) return kept;
  } catch { /* there is none, or it is damaged: it is read again */ }
  return { proof: '', nights: [], drill: null, passports: {} };
}

function writeKept(operator: Operator, server: string, kept: Kept): void {
  canWrite(operator.ledgerFolder, () => fs.mkdirSync(path.dirname(keptFile(operator, server)), { recursive: true, mode: 0o700 }));
  writeHere(keptFile(operator, server), JSON.stringify({ format: 1, ...kept }));
}
