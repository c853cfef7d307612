// Retention, from the operator's computer, after a clean audit: what goes, what is refused.
// The question, and the servers' access around it, which is always given back. What is deleted is deleted in a copy (the chapter before), or, where the storage
// gives no shell, in the repository itself. Changes: the repository, the ledger, and access by the operator's own commands.

import fs from 'node:fs';
import { answerOf } from './form.ts';
import { Problem, answer, count, mode, named, say } from './say.ts';
import { change, failure } from './shell.ts';
import type { Settings } from './settings.ts';
import { isRemote } from './borg.ts';
import { listIds, readFromArchive } from './archives.ts';
import { serverCommandLine, sshToStorage } from './storage.ts';
import { agrees } from './answers.ts';
import { ANYWHERE, borgSettings, canDecrypt, hasShell } from './operator.ts';
import type { OperatedServer, Operator } from './operator.ts';
import { STATE_ALONE, readRepository } from './segments.ts';
import { eachServer, present, readBook, writeBook } from './book.ts';
import type { Book } from './book.ts';
import { provenOnes } from './findings.ts';
import { auditServer, oddAtFirst } from './audit.ts';
import { fatesOf } from './retention.ts';
import type { Fate } from './retention.ts';
import { compactAndCheck, deleteByName, expectedAfter, finishPrune, memoryOfCopy, mendSwap, pruneInCopy, refuseIfWriting } from './pruning.ts';
import type { Job } from './pruning.ts';

type Pruned = { server: string; outcome: 'pruned' | 'nothing to prune' | 'dry run' | 'refused'; deleted: string[]; kept: { archive: string; why: string }[]; freedBytes: number; error?: string };

/** `prune [SERVER...]`: given the operator's file, prunes each server after a clean audit. Returns 0, 2 when one was refused or failed, 75 when somebody is writing just now. */
export async function prune(builtIn: Settings, operator: Operator, names: string[], yes: boolean): Promise<number> {
  const results: Pruned[] = [];
  const exitCode = await eachServer(operator, names, async (one) => {
    results.push(await pruneServer(builtIn, operator, one, yes));
    return 0;
  }, (server, error) => results.push({ server, outcome: 'refused', deleted: [], kept: [], freedBytes: 0, error }));
  if (mode.json) answer(JSON.stringify(results, null, 1));
  return exitCode;
}

/** Prune one server. Throws Problem when it is refused, or when it failed: then the repository is what it was. */
async function pruneServer(builtIn: Settings, operator: Operator, one: OperatedServer, yes: boolean): Promise<Pruned> {
  if (!canDecrypt(one)) throw new Problem(`${one.server}: prune needs \`keyFile\` and \`passphraseFile\`: archives are deleted by name`, { exitCode: 64 });
  if (!mode.dryRun && !yes && !process.stdin.isTTY) throw new Problem(`${one.server}: prune asks before it deletes, and there is no terminal to answer on`,
    { exitCode: 64, hint: 'run it on a terminal, or with --yes' });
  const settings = borgSettings(builtIn, operator, one), before = readBook(operator, one);
  if (before?.pruning && !mode.dryRun) await finishInterrupted({ operator, one, settings, book: before, audited: '' });
  await refuseAppendOnly(one, settings);
  const { verdict, book, findings, evidence } = await auditServer(builtIn, operator, one);
  if (verdict === 'alarm') throw new Problem(`${one.server}: the audit found ${count(findings.length, 'thing')} wrong (${findings[0]!.what}): nothing is pruned`,
    { hint: `node backup.js audit ${one.server}` });
  const odd = before ? [] : oddAtFirst(evidence);
  if (odd.length > 0) throw new Problem(`${one.server}: this was its first audit, and there is something to look at first: nothing is pruned`,
    { said: odd.join('\n'), hint: 'look at the archives; when all is well, call prune again' });
  const job: Job = { operator, one, settings, book, audited: evidence.reading?.state ?? '' };
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
  if (newest && !provenOnes(present(book)).includes(newest)) throw new Problem(`${one.server}: the newest archive, ${newest.name}, is not proven: nothing is pruned`,
    { hint: `look at that night first (\`node backup.js status\` on ${one.server}); prune after the next good one` });
  if (hasShell(one)) refuseIfWriting(one, await readRepository(one, STATE_ALONE));
}

/** The archive that the last drill on the server proved, as the history in the newest proof tells; '' when there is none. What it claims can only keep more. */
async function drilledLast({ settings, book, one }: Job): Promise<string> {
  const newest = provenOnes(present(book)).pop();
  if (!newest) return '';
  const lines = (await readFromArchive(settings, `proven-${newest.name}`, 'record/history.jsonl', ANYWHERE)).split('\n').filter((line) => /"kind":"drill"/.test(line));
  return lines.map((line) => answerOf(`${one.server}: the history in the newest proof`, { argv: [], code: 0, out: line, said: '', timedOut: false }, { 'certificate?': { archive: 'text', proven: 'yes or no' } })).filter(({ certificate }) => certificate?.proven).pop()?.certificate.archive ?? '';
}

/**
 * Cut the server's access by the operator's command, do the work, and give it back, whatever happened. That it is cut stands
 * in the ledger first: a later call gives it back when this one is killed.
 */
async function withAccessCut<T>(job: Job, work: () => Promise<T>): Promise<T> {
  const { operator, one, book } = job;
  book.pruning = { startedAt: new Date().toISOString(), stage: hasShell(one) ? 'copy' : 'hosted', deleting: [], accessCut: one.cutAccess.length > 0 };
  writeBook(operator, book);
  return thenGiveBack(job, async () => {
    if (one.cutAccess.length > 0) {
      const done = await change(one.cutAccess, { seconds: 600 });
      if (done.code !== 0) throw failure(`${one.server}: its access could not be cut: nothing was pruned`, done);
    }
    return work();
  });
}

async function thenGiveBack<T>(job: Job, work: () => Promise<T>): Promise<T> {
  let failed: unknown = null;
  const result = await work().catch((error) => { failed = error; });
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
  if (book.pruning?.stage !== 'swap' && (book.pruning?.stage !== 'hosted' || book.pruning.deleting.length === 0)) {
    book.pruning = null;
    fs.rmSync(memoryOfCopy(settings), { recursive: true, force: true });
  }
  writeBook(operator, book);
}

/** What an interrupted prune left: not yet swapped, or in the middle of it, it is undone; swapped, it is finished. Access is given back in any case. */
async function finishInterrupted(job: Job): Promise<void> {
  const { one, book } = job;
  say(`${one.server}: the prune of ${book.pruning!.startedAt} was interrupted: what it left is put in order first`);
  await thenGiveBack(job, async () => {
    if (book.pruning!.stage === 'hosted') await noteDeleted(job.settings, book);
    else if (await mendSwap(job) && book.pruning!.stage === 'swap') await finishPrune(job);
    book.pruning!.stage = 'done';
  });
}

/** Hosted borg: no copy can be made there, so borg deletes and compacts in the repository itself. Returns 0: how much became free is not told. */
async function pruneInPlace({ operator, one, settings, book }: Job, going: Fate[]): Promise<number> {
  book.pruning!.deleting = going.map(({ archive }) => archive.id);
  writeBook(operator, book); // killed from here on, the next call still knows who deleted them
  say(`${one.server}: the storage gives no shell: there is no copy to go back to, and nothing but borg's own lock keeps the server from writing meanwhile`);
  try {
    await compactAndCheck(settings, await deleteByName(settings, book, going), expectedAfter(book, going));
    await noteDeleted(settings, book);
  } catch (error) { // what is gone was deleted by us, whatever came after it
    const isNoted = await noteDeleted(settings, book).then(() => true, () => false);
    if (error instanceof Problem) error.message += isNoted ? '; what was deleted until then is noted' : '; what was deleted is not known yet: call prune again';
    throw error;
  }
  return 0;
}

// Which of those that were to be deleted are gone. After it nothing is left to do.
async function noteDeleted(settings: Settings, book: Book): Promise<void> {
  const left = await listIds(settings, ANYWHERE), at = new Date().toISOString(), deleted = present(book).filter(({ id }) => book.pruning!.deleting.includes(id) && !left.includes(id));
  book.pruning!.stage = 'done';
  for (const archive of deleted) Object.assign(archive, { goneAt: at, goneBy: 'prune' });
  book.mark = null; // compacting wrote data files anew: the next audit that can read them takes them as they are
  if (deleted.length > 0) book.prunes.push({ at, deleted: deleted.map(({ name }) => name), freedBytes: 0 });
}
