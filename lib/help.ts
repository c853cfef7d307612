// What the command line knows: commands, options, exit codes, as data. `--help`, the reading of options and the README's tables come from here.
import { Problem, mode } from './say.ts';
import { meant } from './rules.ts';

/** One command. usage: the words after `node backup.js`; what: one line; more: what else to know; examples: commands that work. */
export type Command = { usage: string[]; what: string; more: string[]; examples: string[]; operator?: true };
/** One option. value: what it takes, '' = nothing; commands: those it belongs to, '' = taking the backup, none = it goes everywhere. */
export type Option = { value: string; what: string; commands: string[] };

const BARE = ['restore', 'list', 'find', 'drill'];

export const COMMAND_TABLE: Record<string, Command> = {
  '': { usage: ['[--dry-run] [--now]'], what: 'take the backup: this is what crontab calls', examples: ['node backup.js --dry-run', 'node backup.js --quiet', 'node backup.js --now'],
    more: ['Looks, tries all that can fail, copies once while all runs, stops the parts,', 'proves that they are cold, copies, starts everything again, reads back.', 'With --dry-run it only says so, in order, and changes nothing.'] },
  setup: { usage: ['[--yes] [--schedule cron|systemd]'], what: 'make settings, keys, passphrase, repository; it asks', examples: ['node backup.js setup', 'node backup.js setup --yes --schedule cron'],
    more: ['Makes what is missing and keeps what is there; may be called again and again.', 'Prints the line that the storage needs, writes the recovery sheet, and ends', 'with `doctor`: 0 when a run would now work. --yes asks nothing.'] },
  doctor: { usage: [''], what: 'check everything that can be checked while all runs', examples: ['node backup.js doctor'], more: ['Changes nothing; only a repository whose storage does not call itself', 'append-only gets an empty transaction. Each check that failed has a hint. 2: a', 'run would fail; 1: there is something to be wished for.'] },
  status: { usage: ['[--remote]', '--all [SERVER...]'], what: 'is there a good recent backup? (for monitoring, too)', examples: ['node backup.js status', 'node backup.js status --json', 'node backup.js status --all --quiet'],
    more: ['0 good, 1 with a warning, 2 nothing recent enough (`maxAgeHours`). It needs no', 'network; --remote asks the repository, too, whether archive and proof are there.',
      "--all, on the operator's computer: servers whose newest proven archive, by the", "storage's own clock, is too old. It reads file times there, and uses no key."] },
  list: { usage: ['[ARCHIVE [PATH]]'], what: 'the archives, or the files in one', examples: ['node backup.js list', 'node backup.js list latest /var/www'], more: ['`proven`: a good backup. `unproven`: a night that did not end well.'] },
  find: { usage: ['PATTERN'], what: 'which archives hold this file, in which versions', examples: ['node backup.js find plan.pdf', "node backup.js find '/srv/*/2026/*.pdf'"], more: ['PATTERN is a part of a path, or a glob.'] },
  restore: { usage: ['ARCHIVE|latest [PATH ...] --to FOLDER', 'ARCHIVE|latest --in-place [PART ...] [--reindex]'], what: 'into a new folder, or where it was; never over it',
    examples: ['node backup.js restore latest --to /srv/back', 'node backup.js restore latest /etc/nginx --to /srv/back', 'node backup.js restore latest --in-place --dry-run'],
    more: ['--to: an empty or new folder; nothing that is there is touched. --in-place: what', 'lies there is moved aside, never deleted; first it says what differs here and', 'the command that mends it, and refuses what cannot work.'] },
  drill: { usage: ['[ARCHIVE|latest] [--full]'], what: 'rehearse a restore: extract, start, check, discard', examples: ['node backup.js drill'], more: ['Touches nothing that runs. Prints a certificate, and stores it. 2: not proven.'] },
  recover: { usage: [''], what: 'start whatever an interrupted run left stopped', examples: ['node backup.js recover'], more: ['For boot and every five minutes; needs no settings. 3: something stays down.'] },
  borg: { usage: ['ARGS...'], what: "borg itself, with this server's repository and key", examples: ['node backup.js borg list', 'node backup.js borg info ::ARCHIVE'], more: ['All that follows goes to borg as it stands.'] },
  audit: { usage: ['[SERVER...] [--undo-plan] [--accept] [--full]'], what: 'was the append-only repository tampered with?', examples: ['node backup.js audit', 'node backup.js audit web1 --undo-plan'], operator: true,
    more: ['Compares the repository with the ledger of earlier audits. 2: alarm.'] },
  prune: { usage: ['[SERVER...] [--yes] [--dry-run]'], what: 'retention, after a clean audit', examples: ['node backup.js prune --dry-run', 'node backup.js prune web1'], operator: true,
    more: ['Deletes in a copy beside the repository, checks it, and lets it take its place.', 'Shows the list and asks first.'] },
  report: { usage: ['[SERVER...] --to FILE.html [--lang en|es]'], what: 'all servers on one page, for people', examples: ['node backup.js report --to backups.html', 'node backup.js report web1 --to web1.html --lang es'], operator: true,
    more: ['One file with everything in it: no script, no network. It prints well. 1: a', 'server could not be looked at, and its row says so.'] },
  help: { usage: ['[COMMAND]'], what: 'this, or all about one command', examples: ['node backup.js help restore'], more: [] },
};

export const OPTION_TABLE: Record<string, Option> = {
  'dry-run': { value: '', what: 'only say what would be done', commands: ['', 'restore', 'prune'] },
  now: { value: '', what: 'take the backup outside the window, too', commands: [''] },
  yes: { value: '', what: 'ask nothing', commands: ['setup', 'audit', 'prune'] },
  schedule: { value: 'cron|systemd', what: 'start it every night from now on', commands: ['setup'] },
  quota: { value: 'SIZE', what: 'how much the storage grants this server', commands: ['setup'] },
  server: { value: 'NAME', what: "an answer to setup's question, as are the next", commands: ['setup'] },
  stop: { value: 'LIST', what: 'what to stop, with commas', commands: ['setup'] },
  folders: { value: 'LIST', what: 'folders to save, with commas', commands: ['setup'] },
  volumes: { value: 'LIST', what: 'container volumes to save, with commas', commands: ['setup'] },
  window: { value: 'HOURS', what: "'01:00-05:30 Africa/Maputo', or any", commands: ['setup'] },
  language: { value: 'en|es', what: 'of what is written for people', commands: ['setup'] },
  remote: { value: '', what: 'ask the repository, too', commands: ['status'] },
  all: { value: '', what: "every server of the operator's file", commands: ['status'] },
  to: { value: 'WHERE', what: 'the new folder; of report: the file', commands: ['restore', 'report'] },
  'mend-links': { value: '', what: "turn a cluster's links to the extracted files", commands: ['restore'] },
  'in-place': { value: '', what: 'everything back to where it was', commands: ['restore'] },
  reindex: { value: '', what: 'build indexes anew whose order changed', commands: ['restore'] },
  full: { value: '', what: 'read all data; of drill: dump every database, too', commands: ['drill', 'audit'] },
  'undo-plan': { value: '', what: 'print how to undo what was found', commands: ['audit'] },
  accept: { value: '', what: 'take what was found as it is, from now on', commands: ['audit'] },
  lang: { value: 'en|es', what: 'language of the page', commands: ['report'] },
  repository: { value: 'URL', what: 'without settings: where the archives are', commands: [...BARE, 'setup'] },
  'key-file': { value: 'FILE', what: 'without settings: the borg key', commands: [...BARE, 'setup'] },
  'passphrase-file': { value: 'FILE', what: 'without settings: the passphrase', commands: [...BARE, 'setup'] },
  'ssh-key': { value: 'FILE', what: 'without settings: the ssh key', commands: BARE },
  settings: { value: 'FILE', what: 'in place of the settings in or beside backup.js', commands: [] },
  'print-settings': { value: '', what: 'each setting in force, and where it comes from', commands: [] },
  json: { value: '', what: 'one JSON document on stdout, all else on stderr', commands: [] },
  quiet: { value: '', what: "only warnings and errors, for cron's mail", commands: [] },
  verbose: { value: '', what: 'show every look, too', commands: [] },
  'no-color': { value: '', what: 'no colours (nor with NO_COLOR set)', commands: [] },
  version: { value: '', what: 'its version, and whether somebody edited it', commands: [] },
  help: { value: '', what: 'this, or with a command all about it', commands: [] },
};

export const EXIT_TABLE: [string, string][] = [
  ['0', 'good'], ['1', 'done, but a warning needs attention'], ['2', 'failed: no new good backup; everything that was stopped runs again'],
  ['3', 'something that was stopped IS NOT RUNNING: act now'], ['64', 'wrong usage or settings'], ['75', 'not now: another run, or outside the window'], ['128+n', 'ended by signal n, after everything was started again'],
];

const optionRow = ([name, { value, what }]: [string, Option]) => `  ${`--${name}${value ? ` ${value}` : ''}`.padEnd(24)} ${what}`;
const commandRow = ([name, { what }]: [string, Command]) => `  ${(name || '(no command)').padEnd(13)} ${what}`;

/** What `--help` prints, of all or of one command: at most 40 lines of 80 columns. With --json the tables themselves. Throws Problem (64) for a command that there is not. */
export function helpText(name: string): string {
  if (mode.json) return JSON.stringify({ commands: COMMAND_TABLE, options: OPTION_TABLE, exitCodes: EXIT_TABLE }, null, 1);
  const command = Object.keys(COMMAND_TABLE).includes(name) && COMMAND_TABLE[name], options = Object.entries(OPTION_TABLE), commands = Object.entries(COMMAND_TABLE);
  if (!command) throw new Problem(`unknown command ${name}${meant(name, Object.keys(COMMAND_TABLE))}`, { exitCode: 64, hint: '`node backup.js --help` lists all' });
  if (name === '') {
    return ['backup.js - stop everything, copy the files with borg, start everything again', '', 'usage: node backup.js [COMMAND] [OPTIONS]', '', ...commands.filter(([, one]) => !one.operator).map(commandRow),
      "on the operator's computer:", ...commands.filter(([, one]) => one.operator).map(commandRow), '', ...options.filter(([, one]) => one.commands.length === 0 || one.commands.includes('')).map(optionRow), '',
      ...EXIT_TABLE.map(([code, what]) => `  ${code.padEnd(6)} ${what}`), '', 'first:  node backup.js setup    more of each:  node backup.js help COMMAND'].join('\n');
  }
  const own = options.filter(([, one]) => one.commands.includes(name));
  return [...command.usage.map((words, index) => `${index === 0 ? 'usage:' : '      '} node backup.js ${name} ${words}`.trimEnd()), '', `${command.what}${command.operator ? " (on the operator's computer)" : ''}`, ...command.more, ...(own.length > 0 ? ['', ...own.map(optionRow)] : []),
    '', ...command.examples.map((one) => `  ${one}`), '', 'also --settings FILE, --json, --quiet, --verbose; see node backup.js --help'].join('\n');
}
