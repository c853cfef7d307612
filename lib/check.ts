// Reading the settings: from this script, from backup.settings.js beside it, or from --settings FILE.
// It tells every mistake at once, with its line. A file that others could change is refused: what stands in it is run as root.
// So is a key that others could read.
// Changes nothing on the machine. Settings are data: they are read where no file, program or network is in reach.
import fs from 'node:fs';
import path from 'node:path';
import { inspect } from 'node:util';
import { runInNewContext } from 'node:vm';
import { Problem, UNSEEN, asCode, count, named } from './say.ts';
import type { Settings } from './settings.ts';
import { TABLE, isGroup, refuseUnknown, shown } from './rules.ts';
import type { Wrong } from './rules.ts';

/** The settings in force. lines: where each setting (`tell.ping`, `stop[2]`) stands in `file`; given: what is written there, without defaults. */
export type Loaded = { settings: Settings; file: string; text: string; given: Record<string, unknown>; lines: Map<string, number> };

/**
 * Given the block of this script, the script's real path, and FILE of --settings ('' = none), returns the settings in force with
 * every default filled in. The file replaces the block whole: what it does not say has its default, not the block's value.
 * Throws Problem (64) with every mistake in one list, or when others could change the file.
 */
export function loadSettings(builtIn: Settings, script: string, file: string): Loaded {
  return loadWith<Settings>(builtIn, script, settingsSource(script, file), filledIn);
}

/** Where the settings stand: FILE of --settings, or backup.settings.js beside the script, or the script itself. */
export function settingsSource(script: string, file: string): string {
  const beside = path.join(path.dirname(script), 'backup.settings.js');
  const source = file ? path.resolve(file) : fs.lstatSync(beside, { throwIfNoEntry: false }) ? beside : script;
  return fs.existsSync(source) && fs.realpathSync(source) === script ? script : source;
}

/** The same for any settings: fill checks what was found, says what is wrong with it, and returns it with its defaults. */
export function loadWith<T>(builtIn: unknown, script: string, source: string, fill: (found: unknown, wrong: Wrong) => Record<string, any>): Omit<Loaded, 'settings'> & { settings: T } {
  let whole: string;
  try {
    whole = fs.readFileSync(source, 'utf8');
  } catch (error: any) {
    throw new Problem(`the settings ${named(source)} cannot be read: ${error.code ?? error.message}`, { exitCode: 64 });
  }
  refuseIfOthersCanChange(source, 'the settings');
  refuseIfOthersCanChange(script, 'backup.js');
  const scan = scanSettings(whole);
  const found: unknown = source === script ? builtIn : readAsData(whole, source, scan);
  const mistakes = scan.twice.map(({ at, line }) => ({ line, text: `${at} is given twice: JavaScript would take the last one and say nothing` }));
  const wrong: Wrong = (at, message) => mistakes.push({ line: lineOf(scan.lines, at), text: `${at || 'settings'} ${message}` });
  const settings = fill(found, wrong);
  if (mistakes.length > 0) {
    const list = mistakes.sort((one, other) => one.line - other.line).map(({ line, text }) => `${source}${line ? `, line ${line}` : ''}: ${text}`);
    throw new Problem(`${count(list.length, 'mistake')} in the settings; nothing was touched\n  ${list.join('\n  ')}`, { exitCode: 64 });
  }
  const copy = JSON.stringify({ settings, given: found }); // plain data, of nobody else's making
  return { ...JSON.parse(copy), file: source, text: source === script ? scan.block : whole, lines: scan.lines };
}

/** What is given, with every default beside it; nothing is checked. */
export const withDefaults = (found: unknown) => filledIn(found, () => {}) as Settings;

/** Every setting of TABLE, checked: what is given, or the default. */
function filledIn(found: unknown, wrong: Wrong): Record<string, any> {
  const filled: Record<string, any> = {};
  if (!isGroup(found)) {
    wrong('', `must be a group: const settings = { ... }; and not ${shown(found)}`);
    return filled;
  }
  const keysOf = (group: string) => TABLE.filter(({ name }) => name.startsWith(`${group}.`)).map(({ name }) => name.slice(group.length + 1));
  refuseUnknown(found, '', TABLE.map(({ name }) => name.replace(/\..*/, '')), wrong);
  for (const { name, initial, rule } of TABLE) {
    const [first = '', key] = name.split('.'), given = found[first];
    if (key && !filled[first]) {
      filled[first] = {};
      if (isGroup(given)) refuseUnknown(given, first, keysOf(first), wrong);
      else if (given !== undefined) wrong(first, `must be a group in { }, not ${shown(given)}`);
    }
    const holder = key ? filled[first] : filled, value = !key ? given : isGroup(given) ? given[key] : undefined;
    if (value !== undefined && value !== initial) rule(value, name, wrong);
    holder[key ?? first] = value === undefined ? initial : value;
  }
  const isEmpty = (list: unknown) => Array.isArray(list) && list.length === 0;
  if (filled.repository === '') wrong('repository', "is needed, like 'ssh://borg@storage.example.org/./web1'");
  if (isEmpty(filled.stop) && isEmpty(filled.folders) && isEmpty(filled.volumes)) wrong('stop', 'and folders are empty: one must say what to back up');
  return filled;
}

function readAsData(text: string, file: string, { lines, openLine }: Scan): unknown {
  try {
    return runInNewContext(`${text}\n;settings`, Object.create(null), { filename: file, timeout: 1000 });
  } catch (error: any) {
    const said = String(error?.stack ?? error).split('\n    at ')[0]!; // file:line, the line, ^ below the place, what it is
    const line = Number(/^.*:(\d+)\n/.exec(said)?.[1] ?? 0), isOurs = line > text.split('\n').length; // in what we added
    const what = lines.size === 0 ? 'there is no `const settings = { ... };` in it' : isOurs ? 'it ends too early' : 'it is not valid JavaScript';
    const hint = /[:[,(]\s*\w+:\/\//.test(said) ? "put the address in quotes: 'https://...'" : openLine ? `the bracket opened in line ${openLine} is never closed, or by one of another kind` : /[\u2018-\u201f\u00b4]/.test(said) ? "write plain quotes: '" : '';
    throw new Problem(`${file}${line && !isOurs ? `, line ${line}` : ''}: ${what}`,
      { exitCode: 64, ...(isOurs ? {} : { said }), ...(hint ? { hint } : {}) });
  }
}

// ---- where each setting stands ----

type Scan = { lines: Map<string, number>; twice: { at: string; line: number }[]; block: string; openLine: number };

const TOKEN = /\/\/.*|\/\*[^]*?\*\/|'(?:[^'\\\n]|\\[^])*'|"(?:[^"\\\n]|\\[^])*"|`(?:[^`\\]|\\[^])*`|[\w$.+\u0080-\uffff-]+|\n|\S/g;
const CLOSES: Record<string, string> = { '}': '{', ']': '[', ')': '(' };

/**
 * Given a text with `settings = { ... }`, returns the line of each name ('tell.ping') and list item ('stop[2]'), names given twice,
 * the object's own text, and the line of a bracket that is not closed. It knows texts, comments and brackets, not JavaScript.
 */
function scanSettings(text: string): Scan {
  const scan: Scan = { lines: new Map(), twice: [], block: '', openLine: 0 };
  const start = /^[ \t]*(?:const |let |var )?settings\s*=\s*(?=\{)/m.exec(text);
  if (!start) return scan;
  const begin = start.index + start[0].length;
  const open: { bracket: string; at: string; item: number; line: number }[] = [];
  let at = '', isNext = false, line = text.slice(0, begin).split('\n').length;
  scan.lines.set('', line);
  for (const { 0: token, index } of text.slice(begin).matchAll(TOKEN)) {
    const inside = open[open.length - 1], isComment = /^\/[/*]/.test(token);
    if (inside && token in CLOSES) {
      if (inside.bracket !== CLOSES[token]) break;
      open.pop();
      isNext = false;
      if (open.length === 0) return { ...scan, block: `${text.slice(start.index, begin + index + 1).trimStart()};\n` };
    } else if (inside && token === ',') {
      inside.item++;
      isNext = true;
    } else if (inside && isNext && inside.bracket === '{' && !isComment && token !== '\n') { // a name; its value follows
      at = `${inside.at}${inside.at && '.'}${token.replace(/^(['"])(.*)\1$/, '$2')}`;
      if (scan.lines.has(at)) scan.twice.push({ at, line });
      scan.lines.set(at, line);
      isNext = false;
    } else if (!isComment && token !== '\n') {
      if (inside && isNext) scan.lines.set(at = `${inside.at}[${inside.item}]`, line); // the first sign of an item
      if ('{[('.includes(token)) open.push({ bracket: token, at, item: 0, line });
      isNext = token === '{' || token === '[';
    }
    line += token.split('\n').length - 1;
  }
  return { ...scan, openLine: open[open.length - 1]?.line ?? 0 };
}

/** The line of a setting, or of the one around it when it is not written; 0 when nobody knows. */
function lineOf(lines: Map<string, number>, at: string): number {
  for (let place = at; place; place = place.replace(/(\.[^.[]*|\[\d+\]|^[^.[]*)$/, '')) {
    const line = lines.get(place);
    if (line) return line;
  }
  return lines.get('') ?? 0;
}

/** Given the text of settings that cannot be read any more, returns every state folder named in it: `recover` looks into all of them. */
export function stateFoldersIn(text: string): string[] {
  return [...text.matchAll(/\bstateFolder['"]?\s*:\s*(['"`])(\/[^'"`\n]*)\1/g)].map((match) => match[2]!);
}

// ---- who may change and read them ----

/**
 * Throws Problem when somebody else than root or this user could change a file or folder, or swap it in one of the folders above. Given it and what
 * it is, in words. exitCode: 64 unless told. isShared: it may itself be a folder like /var/tmp, where others make names of their own.
 */
export function refuseIfOthersCanChange(file: string, what: string, { exitCode = 64, isShared = false } = {}): void {
  const places = new Set<string>(), own = [file, fs.realpathSync(file)];
  for (const start of own) {
    for (let place = start; !places.has(place); place = path.dirname(place)) places.add(place);
  }
  const isSticky = (mode: number) => (mode & 0o41000) === 0o41000; // as /tmp: nobody replaces there what another has made
  refuseOthers(`others than root could change ${what}`, [...places], 'go-w', ({ mode }, place) => (isSticky(mode) && (isShared || !own.includes(place)) ? 0 : mode & 0o022), exitCode);
}

/** Whether a folder is safe for names that root makes up: nobody else can lay anything there, or swap it for another. */
export function isOursAlone(folder: string): boolean {
  try {
    refuseIfOthersCanChange(folder, '');
    return true;
  } catch (error) {
    if (error instanceof Problem) return false;
    throw error;
  }
}

/** Throws Problem (64) when a key or passphrase file is there and somebody else could read it, or when others say which storage is the right one. */
export function checkSecretFiles({ keyFile, passphraseFile, sshKey, knownHostsFile }: Settings): void {
  if (knownHostsFile && fs.existsSync(knownHostsFile)) refuseIfOthersCanChange(knownHostsFile, 'which storage is believed');
  refuseOthers('others could read the key or passphrase', [keyFile, passphraseFile, sshKey], 'go=', ({ mode }) => mode & 0o077);
}

function refuseOthers(what: string, places: string[], change: string, tooMuch: (facts: fs.Stats, place: string) => number, exitCode = 64): void {
  const me = process.getuid?.() ?? 0, found: string[] = [], mends: string[] = [];
  for (const place of places) {
    const facts = fs.statSync(place, { throwIfNoEntry: false });
    const isOthers = facts && ![0, me].includes(facts.uid);
    if (!facts || (!isOthers && tooMuch(facts, place) === 0)) continue;
    found.push(`${named(place)} (mode ${(facts.mode & 0o7777).toString(8).padStart(4, '0')}, owner ${facts.uid === 0 ? 'root' : `uid ${facts.uid}`})`);
    if (isOthers) mends.push(`chown ${me === 0 ? 'root' : me} ${named(place)}`);
    if (tooMuch(facts, place) !== 0) mends.push(`chmod ${change} ${named(place)}`);
  }
  if (found.length > 0) throw new Problem(`${what}: ${found.join(', ')}`, { exitCode, hint: mends.join(' && ') });
}

// ---- showing ----

/** The settings in force as a settings file, each with where it comes from and what it is for. */
export function printSettings(loaded: Loaded): string {
  const lines: string[] = [], settings: Record<string, any> = loaded.settings;
  let group = '';
  for (const { name, help } of TABLE) {
    const [first = '', key] = name.split('.'), indent = key ? '    ' : '  ';
    if (group && group !== first) lines.push('  },');
    if (key && group !== first) lines.push(`  ${first}: {`);
    group = key ? first : '';
    const from = originOf(loaded, name), value = inspect(key ? settings[first][key] : settings[first], { depth: null, maxArrayLength: null, maxStringLength: null, breakLength: 100 })
      .replace(UNSEEN, asCode);
    lines.push(`${indent}${key ?? first}: ${value.replaceAll('\n', `\n${indent}`)}, // ${from === 'default' ? from : `from ${from}`}; ${help}`);
  }
  return `const settings = {\n${lines.join('\n')}\n};`;
}

/** The same for programs: { key: { value, from } }. */
export function settingsAsJson(loaded: Loaded): Record<string, { value: unknown; from: string }> {
  return Object.fromEntries(Object.entries(loaded.settings).map(([key, value]) => [key, { value, from: originOf(loaded, key) }]));
}

function originOf({ given, lines, file }: Loaded, name: string): string {
  const [first = '', key] = name.split('.'), outer = given[first], value = key ? isGroup(outer) ? outer[key] : undefined : outer;
  return value === undefined ? 'default' : `${named(file)}${lines.size > 0 ? `, line ${lineOf(lines, name)}` : ''}`;
}
