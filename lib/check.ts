// Reading the settings: from the block in this script, from backup.settings.js beside it, or from --settings FILE.
// It decides what a setting may look like and what it is when it is not written (TABLE), and tells every mistake at once, with
// its line. A file that others could change is refused: what stands in it is run as root. So is a key that others could read.
// Changes nothing on the machine. Settings are data: they are read where no file, program or network is in reach.
import fs from 'node:fs';
import path from 'node:path';
import { inspect } from 'node:util';
import { runInNewContext } from 'node:vm';
import { Problem, count, named } from './say.ts';
import type { Settings } from './settings.ts';

/** The settings in force. lines: where each setting (`tell.ping`, `stop[2]`) stands in `file`; given: what is written there, without defaults. */
export type Loaded = { settings: Settings; file: string; text: string; given: Record<string, unknown>; lines: Map<string, number> };

type Wrong = (at: string, message: string) => void;
type Rule = (value: unknown, at: string, wrong: Wrong) => unknown; // says what is wrong with a value, if anything

// ---- what a value may be ----

const isGroup = (value: unknown): value is Record<string, unknown> => typeof value === 'object' && value !== null && !Array.isArray(value);
const isLine = (value: unknown): value is string => typeof value === 'string' && value.trim() !== '' && !/[\0\r\n]/.test(value);

function shown(value: unknown): string {
  if (Array.isArray(value)) return 'a list';
  return isGroup(value) ? 'a group in { }' : typeof value === 'function' ? 'a function' : inspect(value, { maxStringLength: 60 });
}

const must = (be: string, isRight: (value: unknown) => boolean, known: string[] = []): Rule => (value, at, wrong) =>
  isRight(value) || wrong(at, `must be ${be}, not ${shown(value)}${isLine(value) ? meant(value, known) : ''}`);
const like = (pattern: RegExp, be: string) => must(be, (value) => isLine(value) && pattern.test(value));
const oneOf = (...known: string[]) => must(known.map((one) => `'${one}'`).join(' or '), (value) => known.some((one) => one === value), known);
const aNumber = (least: number, most: number, kind: 'whole' | 'any') => must(`a ${kind === 'whole' ? 'whole ' : ''}number from ${least} to ${most}, without quotes`,
  (value) => typeof value === 'number' && value >= least && value <= most && (kind === 'any' || Number.isInteger(value)));
const yesOrNo = must('true or false, without quotes', (value) => typeof value === 'boolean');
const aText = must('text in quotes, on one line and not empty', isLine);
const aWord = must('text in quotes, and not empty', (value) => typeof value === 'string' && value !== '' && !value.includes('\0'));

const each = (rule: Rule): Rule => (value, at, wrong) => (Array.isArray(value)
  ? Array.from(value, (one, index) => rule(one, `${at}[${index}]`, wrong)) // unlike forEach, it sees the hole in ['a', , 'b'], too
  : wrong(at, `must be a list in [ ], not ${shown(value)}`));

/** A list in which nothing stands twice, in lists inside it neither; '/var/www/' is '/var/www', and 'service x.service' is 'service x'. */
const aListOf = (rule: Rule): Rule => (value, at, wrong) => {
  each(rule)(value, at, wrong);
  const seen = new Set<unknown>(), noteEach = each((one, place) => {
    const name = isGroup(one) ? one.name : isLine(one) ? one.replace(/(?<=.)\/+$|(?<=^service .*)\.service$/, '') : undefined;
    if (Array.isArray(one)) noteEach(one, place, wrong);
    else if (name !== undefined && seen.has(name)) wrong(place, `${shown(name)} is in the list already`);
    seen.add(name);
  });
  if (Array.isArray(value)) noteEach(value, at, wrong);
};

const aCommand: Rule = (value, at, wrong) => {
  if (!Array.isArray(value)) return wrong(at, `must be a list of words, like ${isLine(value) ? inspect(value.split(/\s+/)) : "['vpn', 'up']"}, not ${shown(value)}`);
  each(aWord)(value, at, wrong);
  if (isLine(value[0]) && value[0].startsWith('-')) wrong(at, 'must begin with a program, not with an option');
};

/** A group that has exactly these keys. */
const aGroup = (rules: Record<string, Rule>): Rule => (value, at, wrong) => {
  if (!isGroup(value)) return wrong(at, `must be a group in { } with ${Object.keys(rules).join(', ')}, not ${shown(value)}`);
  refuseUnknown(value, at, Object.keys(rules), wrong);
  for (const [key, rule] of Object.entries(rules)) {
    if (value[key] === undefined) wrong(`${at}.${key}`, 'is missing');
    else rule(value[key], `${at}.${key}`, wrong);
  }
};

function refuseUnknown(group: Record<string, unknown>, at: string, known: string[], wrong: Wrong): void {
  for (const key of Object.keys(group)) {
    if (!known.includes(key)) wrong(at ? `${at}.${key}` : key, `is not a known setting${meant(key, known)}`);
  }
}

const aPath = like(/^\/(?!.*(\/\/|\/\.\.?(\/|$)))/, "a whole path like '/var/www', without // or .. in it");
const aName = like(/^(?!-)\S+$/, 'a name without blanks that does not start with -');
const aPattern = like(/^(?!-)/, 'a borg pattern that does not start with -');
const aServer = like(/^(?!proven-)[A-Za-z0-9][\w.-]*$/, "of letters, digits, dots, _ and -, and cannot start with '-' or 'proven-'");
const aCompression = like(/^(obfuscate,\d+,)?(auto,)?(none|lz4|zstd(,([1-9]|1\d|2[0-2]))?|(zlib|lzma)(,\d)?)$/, "one that borg knows, as 'zstd,3', 'lz4' or 'zlib,6'");
const aChunker = like(/^(default|fixed,\d+(,\d+)?|(buzhash,)?\d+,\d+,\d+,\d+)$/, "one that borg knows, as 'fixed,65536' or 'buzhash,19,23,21,4095'");
const aClock = like(/^([01]\d|2[0-3]):[0-5]\d$/, "a time from '00:00' to '23:59', with four digits");

// What is written in these three is never repeated in a message: it may be a password.
const aSecretFile: Rule = (value, at, wrong) => aPath(value, at, () => wrong(at, 'must be the whole path of a file'));
const aRepository: Rule = (value, at, wrong) => {
  const url = /^ssh:\/\/([^\s@:/-][^\s@:/]*@)?([^\s@:/[-][^\s@:/]*|\[[\da-fA-F:.]+\])(:\d+)?\/\S+$/, asForScp = /^([^\s@:/-][^\s@:/]*@)?[^\s@:/-][^\s@:/]*:(?!\/\/)\S+$/;
  if (isLine(value) && /^(\w+:\/\/)?[^/@]*:[^/@]*@/.test(value)) wrong(at, 'holds a password, which every user here could see with `ps`: use an ssh key');
  else if (!isLine(value) || value.replace(/\[.*?\]/, '').includes('::') || ![url, asForScp, /^\//].some((form) => form.test(value))) wrong(at, "must be like 'ssh://borg@storage.example.org/./web1', or a path that starts with /");
};
const aWebAddress: Rule = (value, at, wrong) => (isLine(value) && /^https?:\/\/[^\s/?#@]+([/?#]\S*)?$/.test(value))
  || wrong(at, "must be an address that starts with 'https://' or 'http://', without user and password");

const aTimeZone: Rule = (value, at, wrong) => {
  try {
    if (isLine(value) && /^[A-Za-z]/.test(value)) return new Intl.DateTimeFormat('en', { timeZone: value });
  } catch { /* it is unknown */ }
  wrong(at, `must be a time zone like 'Africa/Maputo', not ${shown(value)}${isLine(value) ? meant(value, Intl.supportedValuesOf?.('timeZone') ?? []) : ''}`);
};
const aWindow: Rule = (value, at, wrong) => {
  aGroup({ from: aClock, until: aClock, timeZone: aTimeZone })(value, at, wrong);
  if (isGroup(value) && value.from === value.until) wrong(at, 'ends when it begins: write null for any time');
};

const anAnswer = must('text, a number, true or false', (value) => ['string', 'number', 'boolean'].includes(typeof value) && !Number.isNaN(value));
const aQuery = aGroup({ cluster: aText, database: aText, sql: aWord, expect: anAnswer });

// The words that an entry of `stop` starts with, what may follow, and an example.
const KINDS = new Map([
  ['service', { name: /^(?!-)[\w@:.\\-]+$/, example: 'service nginx' }],
  ['compose', { name: /^[A-Za-z0-9][\w.-]*$/, example: 'compose shop' }],
  ['container', { name: /^(\*|[A-Za-z0-9][\w.-]*)$/, example: 'container redis' }],
  ['postgres', { name: /^(\*|\d+(\.\d+)?\/[^/\s-][^/\s]*|\/.+)$/, example: 'postgres 15/main' }],
]);
const notEmpty = (rule: Rule): Rule => (value, at, wrong) => (Array.isArray(value) && value.length === 0 ? wrong(at, 'is an empty list') : rule(value, at, wrong));
const anOwnPart = aGroup({ name: like(/^(?!-)/, 'a name that does not start with -'), running: notEmpty(aCommand), stop: notEmpty(aCommand), start: notEmpty(aCommand) });

const aPartSpec: Rule = (value, at, wrong) => {
  if (isGroup(value)) return anOwnPart(value, at, wrong);
  if (!isLine(value)) return aText(value, at, wrong);
  const [word = ''] = value.split(' '), kind = KINDS.get(word), known = [...KINDS.keys()];
  if (!kind) wrong(at, `must start with ${known.join(', ')}, not ${shown(value)}${meant(word, known)}`);
  else if (!kind.name.test(value.slice(word.length + 1))) wrong(at, `must be like '${kind.example}', not ${shown(value)}`);
};

const anEntryOfStop: Rule = (value, at, wrong) => (Array.isArray(value) ? notEmpty(each(aPartSpec)) : aPartSpec)(value, at, wrong);

// ---- every setting: its name, what it is when not written, what it may be, what it is for ----

export const TABLE: { name: string; initial: unknown; rule: Rule; help: string }[] = [ // the initial value is always right
  { name: 'server', initial: '', rule: aServer, help: "starts every archive's name; '' = the host name" },
  { name: 'stop', initial: [], rule: aListOf(anEntryOfStop), help: 'what to stop, in this order' },
  { name: 'folders', initial: [], rule: aListOf(aPath), help: 'folders to save' },
  { name: 'volumes', initial: [], rule: aListOf(aName), help: "container volumes to save; '*' = all of the containers in stop" },
  { name: 'before', initial: [], rule: aCommand, help: 'command to run first' },
  { name: 'exclude', initial: [], rule: aListOf(aPattern), help: 'borg patterns' },
  { name: 'repository', initial: '', rule: aRepository, help: 'where the archives go' },
  { name: 'sshKey', initial: '/etc/cold-backup/ssh_key', rule: aPath, help: 'key for the storage' },
  { name: 'knownHostsFile', initial: '/etc/cold-backup/known_hosts', rule: aPath, help: "the storage's host key" },
  { name: 'keyFile', initial: '/etc/cold-backup/borg_key', rule: aSecretFile, help: "borg's key" },
  { name: 'passphraseFile', initial: '/etc/cold-backup/passphrase', rule: aSecretFile, help: "the passphrase of borg's key" },
  { name: 'window', initial: null, rule: aWindow, help: 'when services may be stopped; null = any time' },
  { name: 'maxDowntimeMinutes', initial: 120, rule: aNumber(0.01, 10_080, 'any'), help: 'everything runs again by then, backup or not' },
  { name: 'stopTimeoutSeconds', initial: 300, rule: aNumber(1, 86_400, 'whole'), help: 'for one part to stop' },
  { name: 'warmPass', initial: true, rule: yesOrNo, help: 'copy once while everything runs' },
  { name: 'snapshot', initial: 'no', rule: oneOf('no', 'yes'), help: "'yes' = copy on write while stopped (btrfs, xfs)" },
  { name: 'compression', initial: 'zstd,3', rule: aCompression, help: 'as borg takes it' },
  { name: 'chunker', initial: 'fixed,65536', rule: aChunker, help: 'as borg takes it; never changed after the first backup' },
  { name: 'uploadLimitKiB', initial: 0, rule: aNumber(0, 1e9, 'whole'), help: 'per second; 0 = no limit' },
  { name: 'tell.ping', initial: '', rule: aWebAddress, help: 'address of a check like those of healthchecks.io' },
  { name: 'tell.command', initial: [], rule: aCommand, help: 'run at the end, with the summary on its standard input' },
  { name: 'tell.metrics', initial: '', rule: aPath, help: 'file for Prometheus: its name ends in .prom' },
  { name: 'tell.sendLog', initial: false, rule: yesOrNo, help: "the ping carries the log's end, too" },
  { name: 'maxAgeHours', initial: 26, rule: aNumber(0.01, 100_000, 'any'), help: 'status: older than this is a failure' },
  { name: 'drill.queries', initial: [], rule: aListOf(aQuery), help: 'asked of every restored database: { cluster, database, sql, expect }' },
  { name: 'drill.folder', initial: '', rule: aPath, help: "scratch space; '' = in the state folder" },
  { name: 'drill.maxAgeDays', initial: 8, rule: aNumber(0, 10_000, 'any'), help: 'status: an older drill is a warning; 0 = no drills here' },
  { name: 'language', initial: 'en', rule: oneOf('en', 'es'), help: 'of what is written for people' },
  { name: 'stateFolder', initial: '/var/lib/cold-backup', rule: aPath, help: 'history, ledger, transcripts, cache of borg' },
];

// ---- reading ----

/**
 * Given the block of this script, the script's real path, and FILE of --settings ('' = none), returns the settings in force with
 * every default filled in. The file replaces the block whole: what it does not say has its default, not the block's value.
 * Throws Problem (64) with every mistake in one list, or when others could change the file.
 */
export function loadSettings(builtIn: Settings, script: string, file: string): Loaded {
  const beside = path.join(path.dirname(script), 'backup.settings.js');
  let source = file ? path.resolve(file) : fs.lstatSync(beside, { throwIfNoEntry: false }) ? beside : script;
  let whole: string;
  try {
    if (fs.realpathSync(source) === script) source = script;
    whole = fs.readFileSync(source, 'utf8');
  } catch (error: any) {
    throw new Problem(`the settings ${named(source)} cannot be read: ${error.code ?? error.message}`, { exitCode: 64 });
  }
  refuseIfOthersCanChange(source);
  const scan = scanSettings(whole);
  const found: unknown = source === script ? builtIn : readAsData(whole, source, scan);
  const mistakes = scan.twice.map(({ at, line }) => ({ line, text: `${at} is given twice: JavaScript would take the last one and say nothing` }));
  const wrong: Wrong = (at, message) => mistakes.push({ line: lineOf(scan.lines, at), text: `${at || 'settings'} ${message}` });
  const settings = filledIn(found, wrong);
  if (mistakes.length > 0) {
    const list = mistakes.sort((one, other) => one.line - other.line).map(({ line, text }) => `${source}${line ? `, line ${line}` : ''}: ${text}`);
    throw new Problem(`${count(list.length, 'mistake')} in the settings; nothing was touched\n  ${list.join('\n  ')}`, { exitCode: 64 });
  }
  const copy = JSON.stringify({ settings, given: found }); // plain data, of nobody else's making
  return { ...JSON.parse(copy), file: source, text: source === script ? scan.block : whole, lines: scan.lines };
}

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
    const hint = openLine ? `the bracket opened in line ${openLine} is never closed, or by one of another kind` : /[\u2018-\u201f\u00b4]/.test(said) ? "write plain quotes: '" : '';
    throw new Problem(`${file}${line && !isOurs ? `, line ${line}` : ''}: ${what}`, { exitCode: 64, ...(isOurs ? {} : { said }), ...(hint ? { hint } : {}) });
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

/** Throws Problem (64) when somebody else than root or this user could change the file, or swap it in one of the folders above. */
function refuseIfOthersCanChange(file: string): void {
  const places = new Set<string>();
  for (const start of [file, fs.realpathSync(file)]) {
    for (let place = start; !places.has(place); place = path.dirname(place)) places.add(place);
  }
  refuseOthers('others than root could change the settings', [...places], 'go-w', ({ mode }) => (mode & 0o41000) === 0o41000 ? 0 : mode & 0o022); // in a sticky folder, as /tmp, nobody replaces the file of another
}

/** Throws Problem (64) when a key or passphrase file is there and somebody else could read it. */
export function checkSecretFiles({ keyFile, passphraseFile, sshKey }: Settings): void {
  refuseOthers('others could read the key or passphrase', [keyFile, passphraseFile, sshKey], 'go=', ({ mode }) => mode & 0o077);
}

function refuseOthers(what: string, places: string[], change: string, tooMuch: (facts: fs.Stats) => number): void {
  const me = process.getuid?.() ?? 0, found: string[] = [], mends: string[] = [];
  for (const place of places) {
    const facts = fs.statSync(place, { throwIfNoEntry: false });
    const isOthers = facts && ![0, me].includes(facts.uid);
    if (!facts || (!isOthers && tooMuch(facts) === 0)) continue;
    found.push(`${named(place)} (mode ${(facts.mode & 0o7777).toString(8).padStart(4, '0')}, owner ${facts.uid === 0 ? 'root' : `uid ${facts.uid}`})`);
    if (isOthers) mends.push(`chown ${me === 0 ? 'root' : me} ${named(place)}`);
    if (tooMuch(facts) !== 0) mends.push(`chmod ${change} ${named(place)}`);
  }
  if (found.length > 0) throw new Problem(`${what}: ${found.join(', ')}`, { exitCode: 64, hint: mends.join(' && ') });
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
      .replace(/[\u2028-\u202e\u2066-\u2069]/g, (sign) => `\\u${sign.charCodeAt(0).toString(16)}`); // see printable()
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

/** ' - did you mean "folders"?' when a known word is at most two slips away from this one, or holds it; '' otherwise. */
export function meant(word: string, known: string[]): string {
  const small = word.toLowerCase(), allowed = small.length < 4 ? [0, 1] : [0, 1, 2];
  const near = allowed.flatMap((slips) => known.filter((name) => isNear(small, name.toLowerCase(), slips)));
  const [best] = [...near, ...known.filter((name) => small.length > 2 && name.toLowerCase().includes(small))];
  return best ? ` - did you mean "${best}"?` : '';
}

/** Whether one word becomes the other by so many slips: a letter too many, one missing, a wrong one, two in the wrong order. */
function isNear(one: string, other: string, slips: number): boolean {
  if (one === other || slips === 0) return one === other;
  let same = 0;
  while (one[same] === other[same]) same++;
  const a = one.slice(same), b = other.slice(same);
  const swapped = a.slice(1, 2) + a.slice(0, 1) + a.slice(2);
  return isNear(a.slice(1), b, slips - 1) || isNear(a, b.slice(1), slips - 1) || isNear(a.slice(1), b.slice(1), slips - 1) || isNear(swapped, b, slips - 1);
}
