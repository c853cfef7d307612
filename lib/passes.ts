// A pass: one `borg create`, from its command to what came of it. The cold pass is begun while everything still runs and waits, with
// repository, key and caches open, until it is fed the manifest: none of that is left for when services are down. So does the proof, until the archive has been read back.
// Adds an archive to the repository; changes nothing else. What borg could not read as it was is told by name.
import { setTimeout as sleep } from 'node:timers/promises';
import { answerOf } from './form.ts';
import { Problem, say, sayLive, size, span, warn } from './say.ts';
import type { Started } from './shell.ts';
import { change, goOn } from './shell.ts';
import type { Pass } from './history.ts';
import type { Settings } from './settings.ts';
import { PATIENT_LOCK_WAIT, borgEnvironment, borgFailure, borgOnlyWarned, parseLine } from './borg.ts';
import type { BorgNote } from './borg.ts';

/** changed, unread: paths; complaints: what made borg end with a warning. */
export type PassResult = Pass & { archiveId: string; changed: string[]; unread: string[]; complaints: string[] };
type PassOptions = { cwd: string; run: string; title: string; expectedBytes: number; seconds?: number; tested?: boolean };
/**
 * A pass under way. Of a command with the root `-`: isWaiting is kept when borg has come to it, feed() lets it go on, isRead is kept
 * when it will read no more files, though it has yet to finish the archive. All of them fail with `end`. callOff() is kept when borg is dead, or killed and stuck.
 */
export type PassUnderWay = { isWaiting: Promise<void>; feed: (text: string) => void; isRead: Promise<void>; end: Promise<PassResult>; callOff: () => Promise<void> };

const diesWithUs = (signal: string) => ['setpriv', '--pdeathsig', signal, '--']; // or it would hold the repository for as long as its upload takes; and one that waits take our death for the end of its input, and copy what runs
const GENTLY: NodeJS.Signals[] = ['SIGINT', 'SIGTERM', 'SIGKILL']; // INT: borg keeps a checkpoint, so that the upload goes on from there
const LONGEST_DEATH_MS = 15_000; // what was killed, and still waits for a disk that hangs, runs no line of its program any more: nobody need wait for it
const KEPT_NAMES = 100_000; // of changed files: one of a cluster must not be lost among many others

/**
 * A `borg create` command: archive name, the roots, and those of clusters, from which nothing is ever left out, as from our own record. A root `-` is
 * the file `fed`, which borg reads from its standard input: there it waits, with repository, key and caches open, until it is given it.
 */
export function createCommand(settings: Settings, what: { archive: string; roots: string[]; whole: string[]; comment: object; filesCache?: string; fed?: string }): string[] {
  const comment = JSON.stringify(what.comment).replace(/[{}]/g, '$&$&'); // braces are placeholders for borg
  // borg would store a root inside another root twice, so inner roots are left out, and found while it walks the outer one.
  // An inner root may lie in an excluded folder: `--pattern '- X'` still walks into X, `--exclude X` does not. But `re:` and `pf:` may
  // match the folder alone, and `-` would then store the files in it: with these, both roots are given, and the inner one is stored twice.
  const nested = what.roots.filter((root) => root.startsWith('/') && what.roots.some((other) => root.startsWith(`${other}/`)));
  const onTheWay = nested.length > 0 && !settings.exclude.some((pattern) => /^(re|pf):/.test(pattern));
  const excluded = (pattern: string) => (onTheWay ? ['--pattern', `- ${/^[a-z]{2}:/.test(pattern) ? '' : 'fm:'}${pattern}`] : ['--exclude', pattern]);
  const waits = what.fed !== undefined;
  return [...diesWithUs(waits ? 'KILL' : 'INT'), 'borg', '--log-json', '--progress', '--lock-wait', PATIENT_LOCK_WAIT,
    ...(settings.uploadLimitKiB ? ['--upload-ratelimit', String(settings.uploadLimitKiB)] : []),
    'create', '--json', '--list', '--filter', waits ? 'CEi' : 'CE', ...(waits ? ['--stdin-name', what.fed!, '--stdin-mode', '0600'] : []),
    ...(what.filesCache ? ['--files-cache', what.filesCache] : []),
    '--compression', settings.compression,
    '--chunker-params', settings.chunker,
    '--checkpoint-interval', '300', // what an interrupted night has uploaded counts the next night
    '--comment', comment,
    ...(settings.exclude.length === 0 ? [] : ['record', ...what.whole].flatMap((root) => ['--pattern', `+ pp:${root}`])), // the first match counts
    ...settings.exclude.flatMap(excluded),
    `::${what.archive}`, ...what.roots.filter((root) => !onTheWay || !nested.includes(root))];
}

/**
 * Begin one pass. Given the command, the folder relative roots are in, the run's mark, the name of the pass and last night's
 * size, shows progress. tested: an earlier pass of this run has done borg's self-test, so it is skipped. `end` throws
 * Problem when borg failed: then there is no archive of that name.
 */
export function beginPass(settings: Settings, command: string[], options: PassOptions): PassUnderWay {
  const waits = command.includes('-'), ladder: NodeJS.Signals[] = waits ? ['SIGTERM', 'SIGKILL'] : [...GENTLY];
  const listener = listenToPass(progressTeller(options.title, options.expectedBytes));
  let began = Date.now(), program: Started | null = null, calledOff: Promise<void> | null = null;
  const pass = async (): Promise<PassResult> => {
    const done = await change(command, {
      cwd: options.cwd,
      env: { ...borgEnvironment(settings, options.run), ...(options.tested ? { BORG_SELFTEST: 'disabled' } : {}) },
      ladder, seconds: options.seconds, onErrorLine: listener.onLine,
      ...(waits ? { onStart: (started: Started) => { program = started; } } : {}),
    });
    program = null;
    goOn(); // borg may have ended because we asked it to
    if (done.timedOut) throw new Problem(`${options.title} did not get through in time: ${listener.reached()}`,
      { ran: command.slice(0, 6), hint: 'what was uploaded counts: the next run goes on from there' });
    if (done.code !== 0 && !borgOnlyWarned(done.code)) throw borgFailure(`${options.title} failed`, { ...done, argv: shortened(command) });
    const { id: archiveId, stats } = answerOf(options.title, done, { archive: { id: 'text', stats: { nfiles: 'number', original_size: 'number', compressed_size: 'number', deduplicated_size: 'number' } } }).archive;
    return { ...listener.found, complaints: done.code === 0 ? [] : listener.found.complaints, archiveId, files: stats.nfiles, seconds: (Date.now() - began) / 1000,
      originalBytes: stats.original_size, compressedBytes: stats.compressed_size, deduplicatedBytes: stats.deduplicated_size };
  };
  const end = pass(), until = async (event: Promise<void>) => void await Promise.race([event, end]);
  const underWay: PassUnderWay = {
    end, isWaiting: until(listener.isWaiting), isRead: until(listener.isRead),
    feed: (text) => {
      began = Date.now();
      ladder.splice(0, ladder.length, ...GENTLY);
      program?.feed(text);
    },
    callOff: () => calledOff ??= (async () => {
      program?.end();
      const hasEnded = await Promise.race([end.then(() => true, () => true), sleep(LONGEST_DEATH_MS, false)]);
      if (!hasEnded) warn(`the borg of the ${options.title} has been killed and does not go away (a disk or a network file system that hangs?): it will write nothing more`);
    })(),
  };
  for (const one of [end, underWay.isWaiting, underWay.isRead]) one.catch(() => {}); // who does not wait for one of them hears it from another
  return underWay;
}

// What borg says while it works: how far it is, what it could not read as it was, and where in its work it is.
function listenToPass(progress: ReturnType<typeof progressTeller>) {
  const found: Pick<PassResult, 'changed' | 'unread' | 'complaints'> = { changed: [], unread: [], complaints: [] };
  let progressAt = 0, markWaiting = () => {}, markRead = () => {};
  const isWaiting = new Promise<void>((resolve) => { markWaiting = resolve; }), isRead = new Promise<void>((resolve) => { markRead = resolve; });
  const keep = (list: string[], text: string) => { if (list.length < KEPT_NAMES) list.push(text); };
  const onLine = (line: string) => {
    const isProgress = /"type": ?"archive_progress"/.test(line), isLast = /"finished": ?true/.test(line);
    if (isProgress && !isLast && Date.now() - progressAt < 200) return; // many a second, and one would see none of them
    if (isProgress) progressAt = Date.now();
    // Only what is said at the top level counts: borg passes on whatever a storage puts into its log messages, but never under these types (remote.py).
    const note = parseLine(line);
    switch (note?.type) {
      case 'archive_progress': return note.finished ? markRead() : progress(note); // finished: said before the archive is saved (archiver.py, create_inner)
      case 'file_status':
        if (note.status === 'i') markWaiting(); // said before it is read (archive.py, process_pipe)
        if (note.status === 'C') keep(found.changed, absolute(String(note.path)));
        if (note.status === 'E') keep(found.unread, absolute(String(note.path)));
        return;
      case 'log_message':
        if (/WARNING|ERROR|CRITICAL/.test(note.levelname ?? '')) keep(found.complaints, note.message ?? '');
    }
  };
  return { found, onLine, isWaiting, isRead, reached: progress.reached };
}

/** A pass from begin to end. */
export const takePass = (settings: Settings, command: string[], options: PassOptions) => beginPass(settings, command, options).end;

// Hundreds of paths are no help in an error.
function shortened(command: string[]): string[] {
  return command.length > 24 ? [...command.slice(0, 24), '...'] : command;
}

function absolute(file: string): string {
  return file.startsWith('/') ? file : `/${file}`;
}

/** Tells how far a pass is: a live line on a terminal, a plain line every five minutes elsewhere. */
function progressTeller(title: string, expectedBytes: number): ((note: BorgNote) => void) & { reached: () => string } {
  const began = Date.now();
  let shownAt = 0, toldAt = Date.now(), last = 'nothing yet';
  const tell = (note: BorgNote) => {
    const now = Date.now(), bytes = note.original_size ?? 0, seconds = (now - began) / 1000;
    last = `${note.nfiles ?? 0} files, ${size(bytes)} read, ${size(note.deduplicated_size ?? 0)} new`;
    if (now - shownAt < 250) return;
    shownAt = now;
    const left = expectedBytes > bytes && bytes > 0 ? `, about ${span((expectedBytes - bytes) * seconds / bytes)} left` : '';
    const line = `${title}: ${last}, ${size(bytes / Math.max(seconds, 0.1))}/s${left}`;
    if (!sayLive(`${line}  ${note.path ?? ''}`) && now - toldAt > 300_000) {
      toldAt = now;
      say(line);
    }
  };
  return Object.assign(tell, { reached: () => last });
}
