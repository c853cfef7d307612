// A repository pruned in a hard-linked copy beside it, which no server can reach.
// Delete, compact, check, list there; then two renames. Whatever breaks before them leaves the repository as it was; whatever breaks after is finished by the next
// call. Changes, on the storage: the copy, and in the end the repository; here: the ledger, and what borg remembers of the repository.
import fs from 'node:fs';
import { Problem, count, pasteable, say, size, warn } from './say.ts';
import type { Done, RunOptions } from './shell.ts';
import type { Settings } from './settings.ts';
import { askBorg, borgFailure, parseLine } from './borg.ts';
import { listIds, readFromArchive } from './archives.ts';
import { ANYWHERE, folderThere, onStorage } from './operator.ts';
import type { OperatedServer, Operator } from './operator.ts';
import { STATE_ALONE, readRepository, readerText } from './segments.ts';
import type { Reading } from './segments.ts';
import { present, writeBook } from './book.ts';
import type { Book, KnownArchive } from './book.ts';
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

// The copy bears the time of its own prune: a script of a call that is long dead, and comes late, finds no copy of its own and touches nothing.
const foldersOf = ({ one, book }: Job) => {
  const folder = folderThere(one), ending = `.pruning-${book.pruning!.startedAt.replace(/\W/g, '')}`;
  return { folder, copy: folder + ending, old: `${folder}.before-prune`, ending };
};

// What borg remembers of the copy (cache, newest state seen) is kept apart: a copy that is thrown away must not make the repository itself look rolled back.
export const memoryOfCopy = ({ stateFolder }: Settings) => `${stateFolder}.pruning`;

/**
 * Run a script of sh beside the repository, which knows $folder, $copy and $old. It ends by itself even when the line breaks, and one waits for the other (a lock
 * on the folder above). Returns how it ended; what it set aside is told. Throws Problem when it fails.
 */
export async function runThere(job: Job, what: string, script: string): Promise<Done> {
  const { folder, copy, old } = foldersOf(job);
  const done = await onStorage(job.one, `${job.one.server}: ${what}`, ['sh', '-s'], `set -eu
trap '' HUP PIPE
folder=${pasteable([folder])} copy=${pasteable([copy])} old=${pasteable([old])}
if command -v flock > /dev/null && [ -r "$(dirname "$folder")" ]; then exec 9< "$(dirname "$folder")"; flock 9 || true; fi
refuse() { echo "REFUSED: $1" >&2; exit 1; }
aside() { if [ -e "$folder" ]; then other="$folder.unexpected-$(date +%s)"; mv -T "$folder" "$other"; echo "ASIDE: $other"; fi; }
${script}`, { unlimited: true });
  const [, aside] = /^ASIDE: (.*)$/m.exec(done.out) ?? [];
  if (aside) warn(`${job.one.server}: while the repository was not at its place, another one was made there: it lies in ${aside} now. Look at it, then remove it`);
  return done;
}

/** Delete, compact and check in a hard-linked copy, and let it take the repository's place. Returns the bytes that became free. */
export async function pruneInCopy(job: Job, going: Fate[]): Promise<number> {
  const { operator, one, settings, book, audited } = job;
  const began = await readRepository(one, STATE_ALONE);
  refuseIfWriting(one, began);
  if (began.state !== audited) throw wroteMeanwhile(one); // what no audit saw is not compacted away
  refuseWithoutSpace(one, began, Math.min(began.bytes, Number(began.config.max_segment_size ?? 5e8)));
  // What borg changes in place is copied, all else is linked: borg never writes into a data file that is there (repository.py, LoggedIO).
  await runThere(job, 'the copy cannot be made', `
if [ -L "$folder" ]; then refuse "the repository is a link: name the folder itself in the operator's file"; fi
if [ "$(stat -c %d "$folder")" != "$(stat -c %d "$folder/..")" ]; then refuse 'the repository is a file system of its own: it belongs into a folder there, beside which a copy has its place'; fi
if [ -e "$old" ]; then refuse "$old is there, left by an earlier prune: look at it, then remove it"; fi
rm -rf "$folder".pruning-*
cp -al "$folder" "$copy"
for file in transactions config nonce README; do
  if [ -e "$folder/$file" ]; then cp -a --remove-destination "$folder/$file" "$copy/"; fi
done
rm -rf "$copy"/lock.*
`);
  try {
    const there = { ...settings, repository: settings.repository.replace(/\/+$/, '') + foldersOf(job).ending, stateFolder: memoryOfCopy(settings) };
    fs.rmSync(there.stateFolder, { recursive: true, force: true });
    fs.cpSync(settings.stateFolder, there.stateFolder, { recursive: true });
    const left = await deleteByName(there, book, going);
    refuseWithoutSpace(one, await readRepository(one, STATE_ALONE), await bytesWrittenAnew(there));
    await compactAndCheck(there, left, expectedAfter(book, going));
    const is = await readRepository(one, STATE_ALONE);
    refuseIfWriting(one, is);
    if (is.state !== began.state) throw wroteMeanwhile(one);
    await runThere(job, 'the copy cannot be made ready', `
chown -R --reference="$folder" "$copy" 2> /dev/null || true
owner=$(stat -c %u "$folder")
if find "$copy" ! -user "$owner" | grep -q .; then refuse 'not everything in the copy belongs to the owner of the repository: run this as its owner, or as root'; fi
sync
`);
    const after = await readRepository(one, { ...STATE_ALONE, after: 0 }, foldersOf(job).copy), numbers = after.transactions.map(({ number }) => number);
    book.pruning = { ...book.pruning!, stage: 'swap', deleting: going.map(({ archive }) => archive.id), bytes: [began.bytes, after.bytes],
      mark: { transaction: after.last, previous: numbers[numbers.length - 2] ?? 0, time: new Date().toISOString(), files: after.files, log: after.log, manifestBytes: 0, nonce: after.nonce } };
  } catch (error) {
    await runThere(job, 'the copy cannot be removed', 'rm -rf "$copy"\n');
    if (error instanceof Problem && !/nothing (was|is) pruned/.test(error.message)) error.message += '; nothing was pruned';
    throw error;
  }
  writeBook(operator, book);
  await swap(job, began);
  return finishPrune(job);
}

const RELOCATED = { ...ANYWHERE, seconds: 7 * 24 * 3600 };

/** The archives that stay: in the ledger, and not going. */
export const expectedAfter = (book: Book, going: Fate[]) => present(book).filter(({ id }) => !going.some(({ archive }) => archive.id === id));

/**
 * Delete by name, and be sure that these and no others are gone (borg 1.2 deletes what it finds, and is content). Returns
 * the ids that are left. Throws Problem when anything is not as it should be.
 */
export async function deleteByName(there: Settings, book: Book, going: Fate[]): Promise<string[]> {
  for (let from = 0; from < going.length; from += NAMES_AT_A_TIME) {
    const [first, ...others] = going.slice(from, from + NAMES_AT_A_TIME).map(({ archive }) => archive.name);
    await borgMust(there, 'the archives cannot be deleted', ['delete', `::${first}`, ...others]);
  }
  const left = await listIds(there, RELOCATED), missing = expectedAfter(book, going).filter(({ id }) => !left.includes(id));
  const still = going.map(({ archive }) => archive).filter(({ id }) => left.includes(id)), names = [...missing, ...still].map(({ name }) => name);
  if (names.length > 0) throw new Problem(`after the deletion these are ${missing.length > 0 ? 'gone, too' : 'still there'}: ${names.join(', ')}`);
  return left;
}

/** Compact what was deleted, and read all that is left. Given the ids and the archives that must be there then. Throws Problem when anything is not as it should be. */
export async function compactAndCheck(there: Settings, left: string[], expected: KnownArchive[]): Promise<void> {
  await borgMust(there, 'the repository cannot be compacted', ['compact']);
  await borgMust(there, 'the repository does not pass its check after pruning', ['check', '--repository-only']);
  if ((await listIds(there, RELOCATED)).length !== left.length) throw new Problem('after compacting the list of archives is another one');
  const newest = provenOnes(expected).pop();
  if (newest) JSON.parse(await readFromArchive(there, newest.name, 'record/manifest.json', RELOCATED)); // it can still be read
}

async function borgMust(settings: Settings, what: string, words: string[], options: RunOptions = {}): Promise<void> {
  say(`  $ borg ${words.join(' ')}`);
  const done = await askBorg(settings, words, { ...RELOCATED, ...options });
  if (done.code !== 0) throw borgFailure(what, done);
}

/**
 * How many bytes compacting will write: what still counts in each data file of which more than a tenth is free. With a threshold that no file reaches borg only
 * says so, file by file (repository.py, compact_segments()). Their room comes free only with the old repository, which has links to them.
 */
async function bytesWrittenAnew(there: Settings): Promise<number> {
  let bytes = 0;
  const onErrorLine = (line: string) => {
    const [, percent, freeable] = /maybe freeable: ([\d.]+)% \[(\d+) bytes\]/.exec(parseLine(line)?.message ?? '') ?? [];
    if (Number(percent) > 10) bytes += (Number(freeable) / Number(percent)) * 100 - Number(freeable);
  };
  await borgMust(there, 'what compacting would write cannot be seen', ['compact', '--debug', '--threshold', '1000'], { onErrorLine });
  return bytes;
}

function refuseWithoutSpace(one: OperatedServer, { bytes, segments, disk }: Reading, writtenBytes: number): void {
  const needed = writtenBytes + bytes / 20 + 16e6;
  if (disk.free < needed) throw new Problem(`${one.server}: the storage has ${size(disk.free)} free; compacting ${size(bytes)} in ${count(segments, 'file')} needs ${size(needed)}`
    + ' besides what is there: nothing was pruned', { hint: 'make room on the storage. Nothing is freed before the result has been checked' });
}

const wroteMeanwhile = (one: OperatedServer) => new Problem(`${one.server}: somebody wrote to the repository since it was audited: nothing was pruned, and nothing is lost`,
  { exitCode: 75, hint: 'call again when its run is over' });

/**
 * The pruned copy takes the repository's place: two renames, and between them, while no server can open it, a last look whether anybody wrote until then; if so, the old one goes
 * back. All in one script over there, which ends even when the line breaks. Who reached the empty place meanwhile and made a repository of its own there finds it aside.
 */
async function swap(job: Job, { state }: Reading): Promise<void> {
  const { folder, old } = foldersOf(job), isSame = `*'"state": "${state}"'*'"serving": []'*'"locked": false'*`; // the last three of READER's last line
  const done = await runThere(job, 'the copy cannot take the place of the repository', `
if [ ! -e "$copy" ]; then refuse 'the copy is not there any more: another prune was called meanwhile'; fi
mv -T "$folder" "$old"
is=$(python3 - <<'END_OF_READER' || true
${readerText(old, folder, STATE_ALONE)}
END_OF_READER
)
aside
case "$is" in
  ${isSame}) mv -T "$copy" "$folder"; sync; echo swapped;;
  *) mv -T "$old" "$folder"; rm -rf "$copy"; echo back;;
esac
`);
  if (/^swapped$/m.test(done.out)) return;
  job.book.pruning!.stage = 'done';
  throw wroteMeanwhile(job.one);
}

/**
 * What a swap that was killed left on the storage. As long as both are there, the copy and the old one, the second rename was not done: the old one is the repository,
 * whatever stands at its place. Returns whether the swap was done, and only the old one is to be removed.
 */
export async function mendSwap(job: Job): Promise<boolean> {
  const done = await runThere(job, 'what an interrupted prune left cannot be removed', `
if [ -e "$old" ] && { [ -e "$copy" ] || [ ! -e "$folder" ]; }; then aside; mv -T "$old" "$folder"; sync; fi
if [ -e "$folder" ]; then rm -rf "$copy"; fi
if [ -e "$old" ]; then echo swapped; fi
`);
  return /^swapped$/m.test(done.out);
}

/** After the swap: write the ledger, and only then remove the repository as it was. Returns the bytes that became free. */
export async function finishPrune(job: Job): Promise<number> {
  const { operator, one, settings, book } = job;
  if (fs.existsSync(memoryOfCopy(settings))) {
    fs.rmSync(settings.stateFolder, { recursive: true, force: true });
    fs.renameSync(memoryOfCopy(settings), settings.stateFolder);
  }
  const gone = new Set(book.pruning!.deleting), at = new Date().toISOString();
  const deleted = present(book).filter(({ id }) => gone.has(id));
  for (const archive of deleted) Object.assign(archive, { goneAt: at, goneBy: 'prune' });
  book.mark = book.pruning!.mark!; // of the copy, before anybody could write to it: what came since is for the next audit
  book.namedUntil = book.mark.transaction;
  const [was, is] = book.pruning!.bytes!, freedBytes = Math.max(0, was - is);
  if (deleted.length > 0) book.prunes.push({ at, deleted: deleted.map(({ name }) => name), freedBytes });
  writeBook(operator, book); // before the old one goes: a call that is killed here finds it and removes it
  await runThere(job, 'the repository as it was cannot be removed', `
id() { sed -n 's/^id *= *//p' "$1/config"; }
if [ -e "$old" ] && { [ -z "$(id "$old")" ] || [ "$(id "$old")" != "$(id "$folder")" ]; }; then refuse "$folder is not the repository that was pruned: $old is the one, whole"; fi
rm -rf "$old"
`);
  book.pruning!.stage = 'done';
  say(`${one.server}: ${count(deleted.length, 'archive')} deleted, ${size(freedBytes)} freed`);
  return freedBytes;
}
