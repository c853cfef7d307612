// What each setting may be, and what it is when it is not written: TABLE, one line a setting. Only judges; reads nothing, changes nothing.
import { inspect } from 'node:util';

export type Wrong = (at: string, message: string) => void;
export type Rule = (value: unknown, at: string, wrong: Wrong) => unknown; // says what is wrong with a value, if anything

export const isGroup = (value: unknown): value is Record<string, unknown> => typeof value === 'object' && value !== null && !Array.isArray(value);
const isLine = (value: unknown): value is string => typeof value === 'string' && value.trim() !== '' && !/[\0\r\n]/.test(value);

export function shown(value: unknown): string {
  if (Array.isArray(value)) return 'a list';
  return isGroup(value) ? 'a group in { }' : typeof value === 'function' ? 'a function' : inspect(value, { maxStringLength: 60 });
}

const must = (be: string, isRight: (value: unknown) => boolean, known: string[] = []): Rule => (value, at, wrong) =>
  isRight(value) || wrong(at, `must be ${be}, not ${shown(value)}${isLine(value) ? meant(value, known) : ''}`);
const like = (pattern: RegExp, be: string) => must(be, (value) => isLine(value) && pattern.test(value));
const oneOf = (...known: string[]) => must(known.map((one) => `'${one}'`).join(' or '), (value) => known.some((one) => one === value), known);
export const aLanguage = oneOf('en', 'es');
export const aNumber = (least: number, most: number, kind: 'whole' | 'any') => must(`a ${kind === 'whole' ? 'whole ' : ''}number from ${least} to ${most}, without quotes`,
  (value) => typeof value === 'number' && value >= least && value <= most && (kind === 'any' || Number.isInteger(value)));
const yesOrNo = must('true or false, without quotes', (value) => typeof value === 'boolean');
export const aText = must('text in quotes, on one line and not empty', isLine);
const aWord = must('text in quotes, and not empty', (value) => typeof value === 'string' && value !== '' && !value.includes('\0'));

export const each = (rule: Rule): Rule => (value, at, wrong) => (Array.isArray(value)
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

export const aCommand: Rule = (value, at, wrong) => {
  if (!Array.isArray(value)) return wrong(at, `must be a list of words, like ${isLine(value) ? inspect(value.split(/\s+/)) : "['vpn', 'up']"}, not ${shown(value)}`);
  each(aWord)(value, at, wrong);
  if (isLine(value[0]) && value[0].startsWith('-')) wrong(at, 'must begin with a program, not with an option');
};

/** A group that has exactly these keys. */
export const aGroup = (rules: Record<string, Rule>): Rule => (value, at, wrong) => {
  if (!isGroup(value)) return wrong(at, `must be a group in { } with ${Object.keys(rules).join(', ')}, not ${shown(value)}`);
  refuseUnknown(value, at, Object.keys(rules), wrong);
  for (const [key, rule] of Object.entries(rules)) {
    if (value[key] === undefined) wrong(`${at}.${key}`, 'is missing');
    else rule(value[key], `${at}.${key}`, wrong);
  }
};

export function refuseUnknown(group: Record<string, unknown>, at: string, known: string[], wrong: Wrong): void {
  for (const key of Object.keys(group)) {
    if (!known.includes(key)) wrong(at ? `${at}.${key}` : key, `is not a known setting${meant(key, known)}`);
  }
}

export const aPath = like(/^\/(?!.*(\/\/|\/\.\.?(\/|$)))/, "a whole path like '/var/www', without // or .. in it");
const aName = like(/^(?!-)\S+$/, 'a name without blanks that does not start with -');
const aPattern = like(/^(?!-)/, 'a borg pattern that does not start with -');
export const aServer = like(/^(?!proven-)[A-Za-z0-9][\w.-]*$/, "of letters, digits, dots, _ and -, and cannot start with '-' or 'proven-'");
const aCompression = like(/^(obfuscate,\d+,)?(auto,)?(none|lz4|zstd(,([1-9]|1\d|2[0-2]))?|(zlib|lzma)(,\d)?)$/, "one that borg knows, as 'zstd,3', 'lz4' or 'zlib,6'");
const aChunker = like(/^(default|fixed,\d+(,\d+)?|(buzhash,)?\d+,\d+,\d+,\d+)$/, "one that borg knows, as 'fixed,65536' or 'buzhash,19,23,21,4095'");
const aClock = like(/^([01]\d|2[0-3]):[0-5]\d$/, "a time from '00:00' to '23:59', with four digits");

// What is written in these three is never repeated in a message: it may be a password.
export const aSecretFile: Rule = (value, at, wrong) => aPath(value, at, () => wrong(at, 'must be the whole path of a file'));
export const aRepository: Rule = (value, at, wrong) => {
  const url = /^ssh:\/\/([^\s@:/-][^\s@:/]*@)?([^\s@:/[-][^\s@:/]*|\[[\da-fA-F:.]+\])(:\d+)?\/\S+$/, asForScp = /^([^\s@:/-][^\s@:/]*@)?[^\s@:/-][^\s@:/]*:(?!\/\/)\S+$/;
  if (isLine(value) && /^(\w+:\/\/)?[^/@]*:[^/@]*@/.test(value)) wrong(at, 'holds a password, which every user here could see with `ps`: use an ssh key');
  else if (!isLine(value) || value.replace(/\[.*?\]/, '').includes('::') || ![url, asForScp, /^\//].some((form) => form.test(value))) wrong(at, "must be like 'ssh://borg@storage.example.org/./web1', or a path that starts with /");
};
const aWebAddress: Rule = (value, at, wrong) => (isLine(value) && /^(?!.*\.\.\.$)https?:\/\/[^\s/?#@]+([/?#]\S*)?$/.test(value))
  || wrong(at, "must be a whole address that starts with 'https://' or 'http://', without user and password, and without the dots of an example");

export const aTimeZone: Rule = (value, at, wrong) => {
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
  if (!kind) wrong(at, `must start with ${known.join(', ')} (like 'service web'), not ${shown(value)}${meant(word, known)}`);
  else if (!kind.name.test(value.slice(word.length + 1))) wrong(at, `must be like '${kind.example}', not ${shown(value)}`);
};

/** Whether a text is an entry of `stop` by its form: 'service nginx', 'container redis', 'postgres 15/main'. */
export const isPartName = (text: unknown): text is string => typeof text === 'string' && isRight(aPartSpec, text);

function isRight(rule: Rule, value: unknown): boolean {
  let mistakes = 0;
  rule(value, '', () => { mistakes++; });
  return mistakes === 0;
}

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
  { name: 'maxAgeHours', initial: 26, rule: aNumber(0, 100_000, 'any'), help: 'status: older than this is a failure' },
  { name: 'drill.queries', initial: [], rule: aListOf(aQuery), help: 'asked of every restored database: { cluster, database, sql, expect }' },
  { name: 'drill.folder', initial: '', rule: aPath, help: "scratch space; '' = in the state folder" },
  { name: 'drill.maxAgeDays', initial: 8, rule: aNumber(0, 10_000, 'any'), help: 'status: an older drill is a warning; 0 = no drills here' },
  { name: 'language', initial: 'en', rule: aLanguage, help: 'of what is written for people' },
  { name: 'stateFolder', initial: '/var/lib/cold-backup', rule: aPath, help: 'history, ledger, transcripts, cache of borg' },
];

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
