// A repository pruned in a hard-linked copy beside it, which no server can reach.
// Delete, compact, check, list there; then two renames. Whatever breaks before them leaves the repository as it was; whatever
// breaks after is finished by the next call. Changes, on the storage: the copy, and in the end the repository; here: the ledger,
// and what borg remembers of the repository.
import fs from 'node:fs';
import { Problem, count, pasteable, say, size } from './say.ts';
import type { Settings } from './settings.ts';
import { askBorg, borgFailure } from './borg.ts';
import { listIds, readFromArchive } from './archives.ts';
import { ANYWHERE, folderThere, onStorage } from './operator.ts';
import type { OperatedServer, Operator } from './operator.ts';
import { STATE_ALONE, readRepository, readerText } from './segments.ts';
import type { Reading } from './segments.ts';
import { present, writeBook } from './book.ts';
import type { Book } from './book.ts';
import { provenOnes } from './findings.ts';
import type { Fate } from './retention.ts';

/** One prune of one server. audited: the state of the repository that the audit saw. */
export type Job = { operator: Operator; one: OperatedServer; settings: Settings; book: Book; audited: string };

const NAMES_AT_A_TIME = 200;

/** Throws Problem (75) while somebody is connected to the repository. */
export function refuseIfWriting(one: OperatedServer, { serving, locked }: Reading): void {
  if (!locked && serving.length === 0) return;
  throw new Problem(`${one.server}: somebody is connected to this repository, and could write to it meanwhile: nothing is pruned`,
    { exitCode: 75, said: serving.join('\n') || 'the repository is locked',
    hint: one.cutAccess.length > 0 ? 'does `cutAccess` end its `borg serve`, too?' : 'call again when its run is over, or give `cutAccess` and `giveAccess` in the operator\'s file' });
}

const places = (one: OperatedServer) => {
  const folder = folderThere(one);
  return { folder, copy: `${folder}.pruning`, old: `${folder}.before-prune` };
};

// What borg remembers of the copy (cache, newest state seen) is kept apart: a copy that is thrown away must not make the repository itself look rolled back.
export const memoryOfCopy = ({ stateFolder }: Settings) => `${stateFolder}.pruning`;

export const shell = (one: OperatedServer, what: string, script: string) => onStorage(one, `${one.server}: ${what}`, ['sh', '-s'], `set -eu\ntrap '' HUP PIPE\nfolder=${pasteable([places(one).folder])} copy=${pasteable([places(one).copy])} old=${pasteable([places(one).old])}\n${script}`, { unlimited: true });

/** Delete, compact and check in a hard-linked copy, and let it take the repository's place. Returns the bytes that became free. */
export async function pruneInCopy(job: Job, going: Fate[]): Promise<number> {
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

/**
 * In the copy: delete by name, and be sure that these and no others are gone (borg 1.2 deletes what it finds, and is
 * content); compact; read all of it. Throws Problem when anything is not as it should be.
 */
export async function deleteAndCheck(there: Settings, book: Book, going: Fate[]): Promise<void> {
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
  if (free < needed) throw new Problem(`${one.server}: the storage has ${size(free)} free; compacting ${size(bytes)} in ${count(segments, 'file')} needs ${size(needed)} besides what is there: nothing was pruned`,
    { hint: 'make room on the storage. Nothing is freed before the result has been checked' });
}

const written = (one: OperatedServer) => new Problem(`${one.server}: somebody wrote to the repository since it was audited: nothing was pruned, and nothing is lost`,
  { exitCode: 75, hint: 'call again when its run is over' });

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
export async function finishPrune({ operator, one, settings, book }: Job): Promise<number> {
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
