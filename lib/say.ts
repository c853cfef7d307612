// What people read: messages on a terminal or in cron's mail, errors with a hint, the transcript.
// May change: its own log file in the state folder. Never touches anything else.
// Everything that comes from outside (file names, what programs said) is made printable first.
import fs from 'node:fs';
import path from 'node:path';

/** How this call was asked to behave; filled in once from the command line. */
export const mode = { dryRun: false, json: false, quiet: false, verbose: false, color: false, now: false };

export type ProblemFacts = { ran?: string[]; said?: string; hint?: string; exitCode?: number };

/** An expected problem: told in words, without a stack. Everything else that is thrown is a bug in this file. */
export class Problem extends Error {
  facts;
  constructor(message: string, facts: ProblemFacts = {}) {
    super(message);
    this.facts = facts;
  }
}

const transcript: { fd: number | null; file: string } = { fd: null, file: '' };
const KEPT_TRANSCRIPTS = 60;
let liveLine = false; // the last thing on the terminal is a progress line without a line end

/** Start the transcript of a run in FOLDER; transcripts beyond the newest 60 are removed. Returns its path. */
export function openTranscript(folder: string, name: string): string {
  fs.mkdirSync(folder, { recursive: true, mode: 0o700 });
  const old = fs.readdirSync(folder).filter((file) => file.endsWith('.log')).sort();
  for (const file of old.slice(0, Math.max(0, old.length - KEPT_TRANSCRIPTS + 1))) fs.rmSync(path.join(folder, file), { force: true });
  transcript.file = path.join(folder, `${name}.log`);
  transcript.fd = fs.openSync(transcript.file, 'a', 0o600);
  return transcript.file;
}

/** Given nothing, returns where the transcript stands: its descriptor (null: none), path and length in bytes. */
export function transcriptNow(): { fd: number | null; file: string; bytes: number } {
  let bytes = 0;
  try {
    bytes = transcript.fd === null ? 0 : fs.fstatSync(transcript.fd).size;
  } catch { /* a transcript that cannot be read is no reason to stop */ }
  return { ...transcript, bytes };
}

/** The last `limit` bytes of the transcript written since byte `from`. */
export function transcriptSince(from: number, limit: number): string {
  const { fd, file, bytes } = transcriptNow();
  if (fd === null || bytes <= from) return '';
  try {
    const length = Math.min(bytes - from, limit);
    const buffer = Buffer.alloc(length);
    const reader = fs.openSync(file, 'r');
    fs.readSync(reader, buffer, 0, length, bytes - length);
    fs.closeSync(reader);
    return buffer.toString();
  } catch {
    return '';
  }
}

/** Text from outside, safe for a terminal: control characters become visible, so that a file name cannot move the cursor. */
export function printable(text: string): string {
  return text.replace(UNSEEN, asCode);
}

/** What a terminal obeys, or shows in another order or not at all; line ends and tabs are not among them. */
export const UNSEEN = /[\x00-\x08\x0b-\x1f\x7f-\x9f\xad\u061c\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb]/g;
export const asCode = (sign: string) => `\\u${sign.charCodeAt(0).toString(16).padStart(4, '0')}`;

/** Words of somebody else on one line: none of them can look like a line of ours. */
export function oneLine(text: string): string {
  return printable(text.replace(/\s*[\r\n]\s*/g, ' '));
}

/** A path or name on one line: as it is when plain, as a JSON string when it holds spaces, quotes or line ends. */
export function named(name: string): string {
  return /^[\w@%+=:,./*-]+$/.test(name) ? name : printable(JSON.stringify(name));
}

/**
 * A command as a person may paste it into any shell. A word with line ends or unseen signs is written as bash reads it
 * ($'...'): no line of it stands alone.
 */
export function pasteable(argv: string[]): string {
  const isPlain = (word: string) => /^[\w@%+=:,./-]+$/.test(word), needsBash = (word: string) => word.includes('\n') || printable(word) !== word;
  const forBash = (word: string) => `$'${word.replace(/[\\']/g, '\\$&').replaceAll('\n', '\\n').replace(UNSEEN, asCode)}'`;
  const inQuotes = (word: string) => `'${word.replaceAll("'", `'\\''`)}'`;
  return argv.map((word) => (isPlain(word) ? word : needsBash(word) ? forBash(word) : inQuotes(word))).join(' ');
}

function clock(): string {
  return new Date().toTimeString().slice(0, 8); // local time: what the reader's own clock shows
}

function write(line: string, stream: NodeJS.WriteStream, shown: boolean): void {
  if (shown) {
    stream.write(`${liveLine && stream.isTTY ? '\r\x1b[K' : ''}${line}\n`);
    liveLine = false;
  }
  try {
    if (transcript.fd !== null) fs.writeSync(transcript.fd, `${line}\n`);
  } catch { /* a full disk must not keep services down: the run goes on without its transcript */ }
}

const normal = () => (mode.json ? process.stderr : process.stdout); // with --json, stdout is one JSON document

/** Tell what happens: a line with the time. Not shown with --quiet, always in the transcript. */
export function say(text: string): void {
  write(`${clock()} ${printable(text).replaceAll('\n', '\n         ')}`, normal(), !mode.quiet); // who names things may write what looks like a line of ours: it is no line
}

/** The same without a time, for blocks that are read as a whole. */
export function sayBlock(text: string): void {
  write(printable(text), normal(), !mode.quiet);
}

/** Details for --verbose; always in the transcript. */
export function sayMore(text: string): void {
  write(`${clock()}   ${printable(text)}`, normal(), mode.verbose && !mode.quiet);
}

/** The answer of a command that was asked a question: shown even with --quiet. */
export function answer(text: string): void {
  if (liveLine) normal().write('\r\x1b[K');
  liveLine = false;
  process.stdout.write(`${printable(text)}\n`);
}

export const warnings: string[] = [];

/** Something needs a person's attention: shown even with --quiet, ends up in the summary and makes exit code 1. */
export function warn(words: string): void {
  const text = oneLine(words); // some are a database's, or a storage's
  if (warnings.includes(text)) return;
  warnings.push(text);
  write(`${clock()} ${colored('33', 'warning:')} ${text}`, process.stderr, true);
}

export function colored(code: string, text: string): string {
  return mode.color ? `\x1b[${code}m${text}\x1b[0m` : text;
}

/** One live line that overwrites itself on a terminal; nothing elsewhere (plain lines are the caller's). */
export function sayLive(text: string): boolean {
  const stream = normal();
  if (!stream.isTTY || mode.quiet) return false;
  stream.write(`\r\x1b[K${printable(text).slice(0, (stream.columns || 80) - 1)}`);
  liveLine = true;
  return true;
}

/** An error as one block: what, the command, what it said, a hint, and (after the first stop) the state of the machine. */
export function sayError(error: unknown, services = ''): void {
  const lines = [], { code = '', message } = (error ?? {}) as NodeJS.ErrnoException;
  if (error instanceof Problem) {
    lines.push(`backup: error: ${error.message}`);
    if (error.facts.ran) lines.push(`  ran:  ${pasteable(error.facts.ran)}`);
    if (error.facts.said) lines.push(`  said: ${lastLines(error.facts.said, 5).replaceAll('\n', '\n        ')}`);
    if (error.facts.hint) lines.push(`  hint: ${error.facts.hint}`);
  } else if (/^(ENOSPC|EDQUOT|EROFS|EIO)$/.test(code)) { // no bug: a disk
    lines.push(`backup: error: ${message}`, '  hint: a disk here is full or broken, most likely that of `stateFolder`: look at `df -h` and `dmesg`');
  } else if (/^(EACCES|EPERM)$/.test(code) && process.getuid?.() !== 0) {
    lines.push(`backup: error: ${message}`, '  hint: this user may not do that; run it as root');
  } else {
    lines.push(`backup: error: this is a bug in backup.js\n${error instanceof Error ? error.stack : String(error)}`);
  }
  if (services) lines.push(`  services: ${services}`);
  write(printable(lines.join('\n')).replace('error:', colored('31', 'error:')), process.stderr, true); // colours last: printable() would show them as codes
}

/** The last lines of what a program said, without empty ones. */
export function lastLines(text: string, count: number): string {
  return text.split(/[\r\n]+/).filter((line) => line.trim() !== '').slice(-count).join('\n');
}

/** 1234567 bytes as '1.2 MB'; powers of 1000, as borg counts. */
export function size(bytes: number): string {
  const units = ['B', 'kB', 'MB', 'GB', 'TB', 'PB'];
  let step = 0;
  while (bytes >= 999.5 && step < units.length - 1) {
    bytes /= 1000;
    step++;
  }
  return `${step === 0 || bytes >= 100 ? Math.round(bytes) : bytes.toFixed(1)} ${units[step]}`;
}

/** Seconds as '1.3 s', '4 min 10 s', '2 h 5 min'. */
export function span(seconds: number): string {
  if (seconds < 60) return `${seconds.toFixed(seconds < 10 ? 1 : 0)} s`;
  const whole = Math.round(seconds);
  if (whole < 3600) return `${Math.floor(whole / 60)} min ${whole % 60} s`;
  return `${Math.floor(whole / 3600)} h ${Math.floor((whole % 3600) / 60)} min`;
}

export const TOLD_NAMES = 20;

/** Files by name, the first of them: there may be a hundred thousand, and a warning is kept for ever. */
export function someNames(files: string[], all = files.length): string {
  const told = files.slice(0, TOLD_NAMES);
  return `${told.map(named).join(', ')}${all > told.length ? ` and ${all - told.length} more` : ''}`;
}

/** A count with its word: '1 part', '3 archives'. */
export function count(number: number, word: string): string {
  return `${number} ${word}${number === 1 ? '' : 's'}`;
}
