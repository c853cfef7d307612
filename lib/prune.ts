// Retention, from the operator's computer, after a clean audit. Everything is done in a hard-linked copy beside the repository, which no
// server can reach: delete, compact, check, list. Only a copy that came out right takes the repository's place, by two renames, and only when
// nobody wrote to the repository meanwhile. Whatever breaks before leaves the repository as it was; whatever breaks after is finished
// by the next call. Changes: the repository, the ledger, and access by the operator's own commands, which is always given back.
import fs from 'node:fs';
import { Problem, answer, count, mode, named, say, sayError, size } from './say.ts';
import { change, failure, goOn } from './shell.ts';
import type { Settings } from './settings.ts';
import { askBorg, borgFailure, isRemote, listIds, readFromArchive } from './borg.ts';
import { serverCommandLine, sshToStorage } from './storage.ts';
import { agrees } from './answers.ts';
import { ANYWHERE, borgSettings, canDecrypt, folderThere, hasShell, onStorage, serversMeant } from './operator.ts';
import type { OperatedServer, Operator } from './operator.ts';
import { STATE_ALONE, readRepository, readerText } from './segments.ts';
import type { Reading } from './segments.ts';
import { lockBook, present, readBook, writeBook } from './book.ts';
import type { Book } from './book.ts';
import { provenOnes } from './findings.ts';
import { auditServer, oddAtFirst } from './audit.ts';
import { fatesOf } from './retention.ts';
import type { Fate } from './retention.ts';

type Pruned = { server: string; outcome: 'pruned' | 'nothing to prune' | 'dry run' | 'refused'; deleted: string[]; kept: { archive: string; why: string }[]; freedBytes: number; error?: string };
type Job = { builtIn: Settings; operator: Operator; one: OperatedServer; settings: Settings; book: Book; audited: string }; // audited: the state of the repository that the audit saw

const NAMES_AT_A_TIME = 200;

/** `prune [SERVER...]`: given the operator's file, prunes each server after a clean audit. Returns 0, 2 when one was refused or failed, 75 when somebody is writing just now. */
export async function prune(builtIn: Settings, operator: Operator, names: string[], yes: boolean): Promise<number> {
  const results: Pruned[] = [];
  let code = 0;
  for (const one of serversMeant(operator, names)) {
    try {
      lockBook(operator, one.server);
      results.push(await pruneServer(builtIn, operator, one, yes));
    } catch (error) {
      if (!(error instanceof Problem)) throw error;
      sayError(error);
      results.push({ server: one.server, outcome: 'refused', deleted: [], kept: [], freedBytes: 0, error: error.message });
      code = Math.max(code === 75 ? 0 : code, error.facts.exitCode ?? 2);
      goOn();
    }
  }
  if (mode.json) answer(JSON.stringify(results, null, 1));
  return code;
}

/** Prune one server. Throws Problem when it is refused, or when it failed: then the repository is what it was. */
async function pruneServer(builtIn: Settings, operator: Operator, one: OperatedServer, yes: boolean): Promise<Pruned> {
  if (!canDecrypt(one)) throw new Problem(`${one.server}: prune needs \`keyFile\` and \`passphraseFile\`: archives are deleted by name`, { exitCode: 64 });
  if (!mode.dryRun && !yes && !process.stdin.isTTY) throw new Problem(`${one.server}: prune asks before it deletes, and there is no terminal to answer on`, { exitCode: 64, hint: 'run it on a terminal, or with --yes' });
  const settings = borgSettings(builtIn, operator, one), before = readBook(operator, one);
  if (before?.pruning && !mode.dryRun) await finishInterrupted({ builtIn, operator, one, settings, book: before, audited: '' });
  await refuseAppendOnly(one, settings);
  const { verdict, book, findings, evidence } = await auditServer(builtIn, operator, one, { full: false, accept: false, yes: false, undoPlan: false });
  if (verdict === 'alarm') throw new Problem(`${one.server}: the audit found ${count(findings.length, 'thing')} wrong (${findings[0]!.what}): nothing is pruned`, { hint: `node backup.js audit ${one.server}` });
  const odd = before ? [] : oddAtFirst(evidence);
  if (odd.length > 0) throw new Problem(`${one.server}: this was its first audit, and there is something to look at first: nothing is pruned`, { said: odd.join('\n'), hint: 'look at the archives; when all is well, call prune again' });
  const job: Job = { builtIn, operator, one, settings, book, audited: evidence.reading?.state ?? '' };
  await refuseUnsure(job);
  const fates = fatesOf(book, one.keep, one.timeZone, await drilledLast(job), new Date()), going = fates.filter(({ stays }) => !stays);
  if (!mode.json) answer(fatesText(one.server, fates));
  const result: Pruned = { server: one.server, outcome: 'nothing to prune', deleted: going.map(({ archive }) => archive.name), kept: fates.filter(({ stays }) => stays).map(({ archive, why }) => ({ archive: archive.name, why })), freedBytes: 0 };
  if (going.length === 0) return result;
  if (mode.dryRun) return { ...result, outcome: 'dry run' };
  if (!yes && !await agrees(`Delete these ${going.length} archives of ${one.server} for ever?`)) return { ...result, outcome: 'refused', deleted: [], error: 'the operator said no' };
  return { ...result, outcome: 'pruned', freedBytes: await withAccessCut(job, () => (hasShell(one) ? pruneInCopy(job, going) : pruneInPlace(job, going))) };
}

function fatesText(server: string, fates: Fate[]): string {
  const going = fates.filter(({ stays }) => !stays).length;
  return [`${server}: ${count(going, 'archive')} of ${fates.length} to delete`, ...fates.filter(({ archive }) => archive.kind !== 'proof').map(({ archive, stays, why }) => `  ${stays ? 'keep  ' : 'DELETE'} ${named(archive.name)}  seen ${archive.seenAt}  (${why})`)].join('\n');
}

/** A prune through a key that may only add would delete nothing, and look as if it had. */
async function refuseAppendOnly(one: OperatedServer, settings: Settings): Promise<void> {
  const words = isRemote(settings) ? (await serverCommandLine(sshToStorage(settings))).words : null;
  const reading = hasShell(one) ? (await readRepository(one, STATE_ALONE)).config : {};
  if (words?.includes('--append-only') || /^(1|true|yes|on)$/i.test(reading.append_only ?? '')) {
    throw new Problem(`${one.server}: this connection may only add: nothing could be pruned through it`, { ...(words ? { said: words } : {}), hint: 'prune with the operator\'s own key, which authorized_keys does not force into --append-only (and with append_only = 0 in the repository\'s config)' });
  }
}

/** Nothing is pruned on the strength of a newest archive that may be worthless, or while somebody writes. */
async function refuseUnsure({ one, book }: Job): Promise<void> {
  const cold = present(book).filter(({ kind }) => kind === 'cold').sort((a, b) => (a.seenAt < b.seenAt ? -1 : 1)), newest = cold[cold.length - 1];
  if (newest && !provenOnes(present(book)).includes(newest)) throw new Problem(`${one.server}: the newest archive, ${newest.name}, is not proven: nothing is pruned`, { hint: `look at that night first (\`node backup.js status\` on ${one.server}); prune after the next good one` });
  if (hasShell(one)) refuseIfWriting(one, await readRepository(one, STATE_ALONE));
}

function refuseIfWriting(one: OperatedServer, { serving, locked }: Reading): void {
  if (!locked && serving.length === 0) return;
  throw new Problem(`${one.server}: somebody is connected to this repository, and could write to it meanwhile: nothing is pruned`, { exitCode: 75, said: serving.join('\n') || 'the repository is locked',
    hint: one.cutAccess.length > 0 ? 'does `cutAccess` end its `borg serve`, too?' : 'call again when its run is over, or give `cutAccess` and `giveAccess` in the operator\'s file' });
}

/** The archive that the last drill on the server proved, as the history in the newest proof tells; '' when there is none. What it claims can only keep more. */
async function drilledLast({ settings, book }: Job): Promise<string> {
  const newest = provenOnes(present(book)).pop();
  if (!newest) return '';
  const lines = (await readFromArchive(settings, `proven-${newest.name}`, 'record/history.jsonl', ANYWHERE)).split('\n').filter((line) => /"kind":"drill"/.test(line));
  return lines.map((line) => JSON.parse(line)).filter(({ certificate }) => certificate?.proven).pop()?.certificate.archive ?? '';
}

/** Cut the server's access by the operator's command, do the work, and give it back, whatever happened. That it is cut stands in the ledger first: a later call gives it back when this one is killed. */
async function withAccessCut<T>(job: Job, work: () => Promise<T>): Promise<T> {
  const { operator, one, book } = job;
  book.pruning = { startedAt: new Date().toISOString(), stage: hasShell(one) ? 'copy' : 'hosted', deleting: [], accessCut: one.cutAccess.length > 0 };
  writeBook(operator, book);
  let failed: unknown = null, result: T | undefined;
  try {
    if (one.cutAccess.length > 0) {
      const done = await change(one.cutAccess, { seconds: 600 });
      if (done.code !== 0) throw failure(`${one.server}: its access could not be cut: nothing was pruned`, done);
    }
    result = await work();
  } catch (error) {
    failed = error;
  }
  await giveBack(job, failed);
  if (failed) throw failed;
  return result as T;
}

async function giveBack({ operator, one, book, settings }: Job, failed: unknown): Promise<void> {
  if (book.pruning?.accessCut) {
    const done = await change(one.giveAccess, { seconds: 600, unlimited: true });
    if (done.code !== 0) throw failure(`${one.server}: ITS ACCESS COULD NOT BE GIVEN BACK: it cannot save its data tonight${failed instanceof Problem ? ` (and before: ${failed.message})` : ''}`, done, 'mend it and run `node backup.js prune` again, or give it back by hand');
    book.pruning.accessCut = false;
  }
  if (book.pruning?.stage !== 'swap') {
    book.pruning = null;
    fs.rmSync(memoryOfCopy(settings), { recursive: true, force: true });
  }
  writeBook(operator, book);
}

// ---- in a copy ----

const places = (one: OperatedServer) => {
  const folder = folderThere(one);
  return { folder, copy: `${folder}.pruning`, old: `${folder}.before-prune` };
};

// What borg remembers of the copy (cache, newest state seen) is kept apart: a copy that is thrown away must not make the repository itself look rolled back.
const memoryOfCopy = ({ stateFolder }: Settings) => `${stateFolder}.pruning`;

const quoted = (text: string) => `'${text.replaceAll("'", `'\\''`)}'`;

const shell = (one: OperatedServer, what: string, script: string) => onStorage(one, `${one.server}: ${what}`, ['sh', '-s'], `set -eu\ntrap '' HUP PIPE\nfolder=${quoted(places(one).folder)} copy=${quoted(places(one).copy)} old=${quoted(places(one).old)}\n${script}`, { unlimited: true });

/** Delete, compact and check in a hard-linked copy, and let it take the repository's place. Returns the bytes that became free. */
async function pruneInCopy(job: Job, going: Fate[]): Promise<number> {
  const { operator, one, settings, book, audited } = job;
  const began = await readRepository(one, STATE_ALONE);
  refuseIfWriting(one, began);
  if (began.state !== audited) throw written(one); // what no audit saw is not compacted away
  await refuseWithoutSpace(one, began);
  // What borg changes in place is copied, all else is linked: borg never writes into a data file that is there (repository.py, LoggedIO).
  await shell(one, 'the copy cannot be made', 'rm -rf "$copy"\ntest ! -e "$old"\ncp -al "$folder" "$copy"\nfor file in transactions config nonce README; do if [ -e "$folder/$file" ]; then cp -a --remove-destination "$folder/$file" "$copy/"; fi; done\nrm -rf "$copy"/lock.*\n');
  try {
    const there = { ...settings, repository: `${settings.repository.replace(/\/+$/, '')}.pruning`, stateFolder: memoryOfCopy(settings) };
    fs.rmSync(there.stateFolder, { recursive: true, force: true });
    fs.cpSync(settings.stateFolder, there.stateFolder, { recursive: true });
    await deleteAndCheck(there, book, going);
    const is = await readRepository(one, STATE_ALONE);
    refuseIfWriting(one, is);
    if (is.state !== began.state) throw written(one);
    await shell(one, 'the copy cannot be made ready', 'chown -R --reference="$folder" "$copy" 2>/dev/null || true\nowner=$(stat -c %u "$folder")\nif find "$copy" ! -user "$owner" | grep -q .; then echo "not everything in the copy belongs to the owner of the repository: run this as its owner, or as root" >&2; exit 1; fi\nsync\n');
    const after = await readRepository(one, { ...STATE_ALONE, after: 0 }, places(one).copy), numbers = after.transactions.map(({ number }) => number);
    book.pruning = { ...book.pruning!, stage: 'swap', deleting: going.map(({ archive }) => archive.id), bytes: [began.bytes, after.bytes],
      mark: { transaction: after.last, previous: numbers[numbers.length - 2] ?? 0, time: new Date().toISOString(), files: after.files, log: after.log, manifestBytes: 0, nonce: after.nonce } };
  } catch (error) {
    await shell(one, 'the copy cannot be removed', 'rm -rf "$copy"\n');
    throw error;
  }
  writeBook(operator, book);
  await swap(job, began);
  return finishPrune(job);
}

/** In the copy: delete by name, and be sure that these and no others are gone (borg 1.2 deletes what it finds, and is content); compact; read all of it. Throws Problem when anything is not as it should be. */
async function deleteAndCheck(there: Settings, book: Book, going: Fate[]): Promise<void> {
  const relocated = { ...ANYWHERE, seconds: 7 * 24 * 3600 }, goingIds = new Set(going.map(({ archive }) => archive.id));
  for (let from = 0; from < going.length; from += NAMES_AT_A_TIME) {
    const [first, ...others] = going.slice(from, from + NAMES_AT_A_TIME).map(({ archive }) => archive.name);
    await borgMust(there, 'the archives cannot be deleted', ['delete', `::${first}`, ...others], relocated);
  }
  const left = await listIds(there, relocated), expected = present(book).filter(({ id }) => !goingIds.has(id));
  const missing = expected.filter(({ id }) => !left.includes(id)), still = going.filter(({ archive }) => left.includes(archive.id));
  if (missing.length + still.length > 0) throw new Problem(`after the deletion these are ${missing.length > 0 ? 'gone, too' : 'still there'}: ${[...missing, ...still.map(({ archive }) => archive)].map(({ name }) => name).join(', ')}; nothing was pruned`);
  await borgMust(there, 'the repository cannot be compacted', ['compact'], relocated);
  await borgMust(there, 'the repository does not pass its check after pruning', ['check', '--repository-only'], relocated);
  if ((await listIds(there, relocated)).length !== left.length) throw new Problem('after compacting the list of archives is another one; nothing was pruned');
  const newest = provenOnes(expected).pop();
  if (newest) JSON.parse(await readFromArchive(there, newest.name, 'record/manifest.json', relocated)); // it can still be read
}

async function borgMust(settings: Settings, what: string, words: string[], options: object): Promise<void> {
  say(`  $ borg ${words.join(' ')}`);
  const done = await askBorg(settings, words, options);
  if (done.code !== 0) throw borgFailure(`${what}; nothing was pruned`, done);
}

async function refuseWithoutSpace(one: OperatedServer, { bytes, segments, config }: Reading): Promise<void> {
  const done = await shell(one, 'its free space cannot be seen', 'df -Pk "$folder" | tail -n 1\n');
  const free = Number(done.out.trim().split(/\s+/)[3]) * 1024, needed = Math.min(bytes, Number(config.max_segment_size ?? 5e8)) + bytes / 20 + 16e6;
  if (free < needed) throw new Problem(`${one.server}: the storage has ${size(free)} free; compacting ${size(bytes)} in ${count(segments, 'file')} needs ${size(needed)} besides what is there: nothing was pruned`, { hint: 'make room on the storage. Nothing is freed before the result has been checked' });
}

const written = (one: OperatedServer) => new Problem(`${one.server}: somebody wrote to the repository since it was audited: nothing was pruned, and nothing is lost`, { exitCode: 75, hint: 'call again when its run is over' });

/**
 * The pruned copy takes the repository's place: two renames, and between them, while no server can open it, a last look whether anybody wrote until
 * then; if so, the old one goes back. All in one script over there, which ends even when the line breaks. Who reached the empty place
 * meanwhile and made a repository of its own there finds it aside.
 */
async function swap({ one, book }: Job, { state }: Reading): Promise<void> {
  const { folder, old } = places(one), isSame = `*'"state": "${state}"'*'"serving": []'*'"locked": false'*`;
  const done = await shell(one, 'the copy cannot take the place of the repository', `mv -T "$folder" "$old"\nis=$(python3 - <<'END_OF_READER' || true\n${readerText(old, folder, STATE_ALONE)}\nEND_OF_READER\n)
case "$is" in
  ${isSame}) if [ -e "$folder" ]; then mv -T "$folder" "$folder.unexpected-$(date +%s)"; fi; mv -T "$copy" "$folder"; sync; echo swapped;;
  *) if [ -e "$folder" ]; then mv -T "$folder" "$folder.unexpected-$(date +%s)"; fi; mv -T "$old" "$folder"; rm -rf "$copy"; echo back;;
esac
`);
  if (/^swapped$/m.test(done.out)) return;
  book.pruning!.stage = 'copy';
  throw written(one);
}

/** After the swap: write the ledger, and only then remove the repository as it was. Returns the bytes that became free. */
async function finishPrune({ operator, one, settings, book }: Job): Promise<number> {
  if (fs.existsSync(memoryOfCopy(settings))) {
    fs.rmSync(settings.stateFolder, { recursive: true, force: true });
    fs.renameSync(memoryOfCopy(settings), settings.stateFolder);
  }
  const gone = new Set(book.pruning!.deleting), at = new Date().toISOString();
  const deleted = present(book).filter(({ id }) => gone.has(id));
  for (const archive of deleted) Object.assign(archive, { goneAt: at, goneBy: 'prune' });
  book.mark = book.pruning!.mark!; // of the copy, before anybody could write to it: what came since is for the next audit
  const [was, is] = book.pruning!.bytes!, freedBytes = Math.max(0, was - is);
  if (deleted.length > 0) book.prunes.push({ at, deleted: deleted.map(({ name }) => name), freedBytes });
  writeBook(operator, book); // before the old one goes: a call that is killed here finds it and removes it
  await shell(one, 'the repository as it was cannot be removed', 'rm -rf "$old"\n');
  book.pruning = { ...book.pruning!, stage: 'copy' };
  say(`${one.server}: ${count(deleted.length, 'archive')} deleted, ${size(freedBytes)} freed`);
  return freedBytes;
}

/** What an interrupted prune left: not yet swapped, or in the middle of it, it is undone; swapped, it is finished. Access is given back in any case. */
async function finishInterrupted(job: Job): Promise<void> {
  const { one, book } = job;
  say(`${one.server}: the prune of ${book.pruning!.startedAt} was interrupted: what it left is put in order first`);
  let failed: unknown = null;
  try {
    if (book.pruning!.stage === 'hosted') noteDeleted(book, await listIds(job.settings, ANYWHERE));
    else {
      const done = await shell(one, 'what an interrupted prune left cannot be removed', 'if [ ! -e "$folder" ] && [ -e "$old" ]; then mv -T "$old" "$folder"; fi\nif [ -e "$folder" ]; then rm -rf "$copy"; fi\nif [ -e "$old" ]; then echo swapped; fi\n');
      if (/^swapped$/m.test(done.out)) await finishPrune(job);
    }
    book.pruning!.stage = 'copy';
  } catch (error) {
    failed = error;
  }
  await giveBack(job, failed);
  if (failed) throw failed;
}

// ---- where the storage gives no shell ----

/** Hosted borg: no copy can be made there, so borg deletes and compacts in the repository itself. Returns 0: how much became free is not told. */
async function pruneInPlace({ operator, one, settings, book }: Job, going: Fate[]): Promise<number> {
  book.pruning!.deleting = going.map(({ archive }) => archive.id);
  writeBook(operator, book); // killed from here on, the next call still knows who deleted them
  say(`${one.server}: the storage gives no shell: there is no copy to go back to, and nothing but borg's own lock keeps the server from writing meanwhile`);
  await deleteAndCheck(settings, book, going);
  noteDeleted(book, await listIds(settings, ANYWHERE));
  writeBook(operator, book);
  return 0;
}

function noteDeleted(book: Book, left: string[]): void {
  const at = new Date().toISOString(), deleted = present(book).filter(({ id }) => book.pruning!.deleting.includes(id) && !left.includes(id));
  for (const archive of deleted) Object.assign(archive, { goneAt: at, goneBy: 'prune' });
  if (deleted.length > 0) book.prunes.push({ at, deleted: deleted.map(({ name }) => name), freedBytes: 0 });
}
