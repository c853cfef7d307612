// The command line: which command, with which options. Nothing is done here; each command is a chapter of its own.
import fs from 'node:fs';
import { dirname, join, resolve } from 'node:path';
import minimist from 'minimist';
import { settings } from './lib/settings.ts';
import type { Settings } from './lib/settings.ts';
import { VERSION, editedOrAsBuilt } from './lib/about.ts';
import { Problem, answer, mode, sayError } from './lib/say.ts';
import { meant } from './lib/rules.ts';
import { checkSecretFiles, loadSettings, printSettings, settingsAsJson, settingsSource, stateFoldersIn, withDefaults } from './lib/check.ts';
import type { Loaded } from './lib/check.ts';
import { goOn, listenToSignals } from './lib/shell.ts';
import { temporaryFolder } from './lib/files.ts';
import { serverName } from './lib/plan.ts';
import { stateFoldersElsewhere } from './lib/ledger.ts';
import { guard, recover } from './lib/guard.ts';
import { takeBackup } from './lib/run.ts';
import { borgItself, find, list } from './lib/list.ts';
import { restoreTo } from './lib/restore.ts';
import { drill, sweepDrills } from './lib/drill.ts';
import { restoreInPlace } from './lib/inplace.ts';
import { status } from './lib/status.ts';
import { setup } from './lib/setup.ts';
import { firstSettings } from './lib/answers.ts';
import { COMMAND_TABLE, OPTION_TABLE, helpText } from './lib/help.ts';
import { doctor } from './lib/doctor.ts';
import { loadOperator } from './lib/operator.ts';
import { audit } from './lib/audit.ts';
import { prune } from './lib/prune.ts';
import { report } from './lib/report.ts';
import { statusOfAll } from './lib/overdue.ts';

const COMMANDS = Object.keys(COMMAND_TABLE).filter((name) => name !== '');
const [FLAGS, VALUES] = [true, false].map((isFlag) => Object.keys(OPTION_TABLE).filter((name) => (OPTION_TABLE[name]!.value === '') === isFlag)) as [string[], string[]];

type Options = { command: string; words: string[]; values: Record<string, string>; flags: Record<string, boolean> };

// minimist takes `--dry-run false` and `--no-dry-run` for "no dry run": a slip like that must not begin a real one.
function refuseSlips(argv: string[]): void {
  const own = argv.slice(0, argv.includes('borg') ? argv.indexOf('borg') : argv.length);
  mode.json = own.includes('--json'); // what is wrong with the rest is told so, too
  for (const [index, word] of own.entries()) {
    const name = word.replace(/^--/, '').split('=')[0]!;
    const isSlip = /^--no-/.test(word) ? word !== '--no-color' : word.startsWith('--') && FLAGS.includes(name) && (word.includes('=') || /^(true|false)$/.test(own[index + 1] ?? ''));
    if (isSlip) throw new Problem(`${word} is not understood: an option without a value is given, or it is not`,
      { exitCode: 64, hint: '`node backup.js --help` lists all' });
  }
}

/** The words of the command line as options. Throws Problem (64) with a suggestion for what is not known. */
function readOptions(argv: string[]): Options {
  refuseSlips(argv);
  const unknown: string[] = [];
  const found = minimist(argv.map((word) => (word === '--no-color' ? '--no-colour' : word)), { // minimist takes --no-x for the opposite of --x
    boolean: [...FLAGS.filter((flag) => flag !== 'no-color'), 'colour'], string: [...VALUES, '_'], alias: { h: 'help', V: 'version' }, default: { colour: true },
    stopEarly: argv.includes('borg') && !argv.slice(0, argv.indexOf('borg')).some((word) => !word.startsWith('-') && argv[argv.indexOf(word) - 1] !== '--settings'),
    unknown: (word) => !word.startsWith('-') || word === '-' || (unknown.push(word), false),
  });
  if (unknown.length > 0) {
    const known = [...FLAGS, ...VALUES];
    throw new Problem(`unknown option ${unknown[0]}${meant(unknown[0]!.replace(/^-+/, '').split('=')[0]!, known).replace(/"(.+)"/, '"--$1"')}`,
      { exitCode: 64, hint: '`node backup.js --help` lists all' });
  }
  const [command = '', ...words] = found._;
  if (command !== '' && !(command === 'guard' && words.length > 3) && !COMMANDS.includes(command)) throw new Problem(`unknown command ${command}${meant(command, COMMANDS)}`,
    { exitCode: 64, hint: '`node backup.js --help` lists all' });
  for (const [option, { commands }] of Object.entries(OPTION_TABLE)) {
    if (found[option] && commands.length > 0 && !commands.includes(command) && !found.help) throw new Problem(`--${option} does not go with ${command || 'taking the backup'}`,
      { exitCode: 64, hint: `it belongs to ${commands[0] || 'the backup itself'}` });
  }
  for (const option of VALUES) {
    if (Array.isArray(found[option]) || found[option] === '') throw new Problem(`--${option} needs one value`, { exitCode: 64 });
  }
  if (found.schedule && !['cron', 'systemd'].includes(found.schedule)) throw new Problem(`--schedule ${found.schedule}: it is 'cron' or 'systemd'`,
    { exitCode: 64 });
  for (const option of ['lang', 'language']) if (found[option] && !['en', 'es'].includes(found[option])) throw new Problem(`--${option} ${found[option]}: it is 'en' or 'es'`,
    { exitCode: 64 });
  for (const option of ['key-file', 'passphrase-file', 'ssh-key'].filter((one) => found[one] && !found.help)) {
    const why = !found.repository && command !== 'setup' ? 'it goes with --repository' : fs.existsSync(found[option]) ? '' : 'there is no such file';
    if (why) throw new Problem(`--${option} ${found[option]}: ${why}`, { exitCode: 64 });
  }
  if (command === 'restore' && !found.help) refuseRestore(words, found.to ?? '', found);
  if (command === 'find' && !words[0] && !found.help) throw new Problem('find needs a part of a path',
    { exitCode: 64, hint: 'node backup.js find plan.pdf' });
  const most: Record<string, number> = { help: 1, list: 2, find: 1, drill: 1, restore: Infinity, borg: Infinity, guard: Infinity, audit: Infinity, prune: Infinity, report: Infinity, status: found.all ? Infinity : 0 };
  if (words.length > (most[command] ?? 0)) throw new Problem(`too many words: ${words.slice(most[command] ?? 0).join(' ')}`,
    { exitCode: 64, hint: '`node backup.js --help`' });
  Object.assign(mode, { dryRun: found['dry-run'], json: found.json, quiet: found.quiet, verbose: found.verbose, now: found.now,
    color: found.colour && !process.env.NO_COLOR && Boolean(process.stderr.isTTY) });
  return { command, words, values: Object.fromEntries(VALUES.map((option) => [option, found[option] ?? ''])), flags: Object.fromEntries(FLAGS.map((flag) => [flag, Boolean(found[flag])])) };
}

// Into a folder, or in place: one of the two.
function refuseRestore(words: string[], to: string, flags: Record<string, unknown>): void {
  const hint = 'node backup.js restore latest --to /srv/back, or: node backup.js restore latest --in-place';
  const why = words.length === 0 ? 'restore needs an archive' : Boolean(to) === Boolean(flags['in-place']) ? 'restore needs --to FOLDER or --in-place, one of them'
    : to && (flags['dry-run'] || flags.reindex) ? '--dry-run and --reindex go with --in-place' : flags['in-place'] && flags['mend-links'] ? '--mend-links goes with --to' : '';
  if (why) throw new Problem(why, { exitCode: 64, hint });
}

/** Given the command line without node and script, does what it says. Returns the exit code. */
async function obey(argv: string[]): Promise<number> {
  const { command: name, words, values, flags } = readOptions(argv);
  if (['setup', 'doctor', 'list', 'find', 'restore', 'drill', 'audit', 'prune', 'report', 'status'].includes(name)) listenToSignals(name === 'setup' ? 'what is there is kept: call setup again whenever you like' : undefined); // Ctrl-C ends the borg they are waiting for
  const script = fs.realpathSync(process.argv[1]!), file = values.settings!;
  if (flags.help || name === 'help') return answered(helpText(name === 'help' ? words[0] ?? '' : name));
  if (flags.version) {
    const state = editedOrAsBuilt(fs.readFileSync(script, 'utf8'));
    return answered(mode.json ? JSON.stringify({ version: VERSION, state }) : `cold-backup ${VERSION} (${state})`);
  }
  if (name === 'recover') return recoverAll(script, file);
  if (name === 'guard') return guard(words, loadedOrNull(script, file)?.settings ?? null);
  if (name === 'audit') return audit(settings, loadOperator(script, file), words, { full: flags.full!, accept: flags.accept!, yes: flags.yes!, undoPlan: flags['undo-plan']! });
  if (name === 'prune') return prune(settings, loadOperator(script, file), words, flags.yes!);
  if (name === 'report') return report(settings, loadOperator(script, file), words, values.to!, values.lang!);
  if (name === 'status' && flags.all) return statusOfAll(loadOperator(script, file), words);
  if (name === 'setup') await answerFirst(script, file, values, flags.yes!);
  const loaded = values.repository && name !== 'setup' ? bareMachine(values) : loadSettings(settings, script, file);
  const server = values.repository ? '' : serverName(loaded.settings); // on a bare machine: whatever lies in the repository
  const isEmergency = values.repository && name !== 'drill'; // a restore on a bare machine is not kept waiting for a chmod
  if (['', 'list', 'find', 'restore', 'drill', 'borg'].includes(name) && !isEmergency && !flags['print-settings']) checkSecretFiles(loaded.settings);
  if (flags['print-settings']) return answered(mode.json ? JSON.stringify(settingsAsJson(loaded), null, 1) : printSettings(loaded));
  if (name === 'setup') return setup(loaded, script, { yes: flags.yes!, schedule: values.schedule!, quota: values.quota!, keyFile: values['key-file']!, passphraseFile: values['passphrase-file']! }).finally(goOn); // what a signal ended has not failed
  if (name === 'doctor') return doctor(loaded, script);
  if (name === 'status') return status(loaded.settings, script, flags.remote!);
  if (name === 'list') return list(loaded.settings, server, words);
  if (name === 'find') return find(loaded.settings, server, words);
  if (name === 'restore' && flags['in-place']) {
    return restoreInPlace(loaded, script, words, { bare: Boolean(values.repository), reindex: flags.reindex!, stateFolder: values.repository ? withDefaults(settings).stateFolder : loaded.settings.stateFolder });
  }
  if (name === 'restore') return restoreTo(loaded.settings, server, words, values.to!, flags['mend-links']!);
  if (name === 'drill') return drill(loaded.settings, server, words, flags.full!);
  if (name === 'borg') return borgItself(loaded.settings, words);
  return takeBackup(loaded, script);
}

// On a server without settings `setup` begins by making them; where there are some, what they say is edited there.
async function answerFirst(script: string, file: string, values: Record<string, string>, yes: boolean): Promise<void> {
  const isFilled = settingsSource(script, file) !== script || settings.repository !== '' || settings.stop.length + settings.folders.length + settings.volumes.length > 0;
  const said = ['repository', 'server', 'stop', 'folders', 'volumes', 'window', 'language'].find((key) => values[key]);
  if (!isFilled) return firstSettings(script, withDefaults(settings), values, yes);
  if (said) throw new Problem(`--${said}: this server has settings already`, { exitCode: 64, hint: `edit them: ${settingsSource(script, file)}` });
}

// A machine without settings: repository, key and passphrase are on the command line; borg's cache lives as long as we do.
function bareMachine(values: Record<string, string>): Loaded {
  const whole = withDefaults(settings);
  const own = { server: '', repository: /^[^/]*:/.test(values.repository!) ? values.repository! : resolve(values.repository!), keyFile: resolve(values['key-file'] || whole.keyFile), passphraseFile: resolve(values['passphrase-file'] || whole.passphraseFile),
    sshKey: resolve(values['ssh-key'] || whole.sshKey), stateFolder: temporaryFolder() }; // borg reads them in other folders than ours
  return { settings: { ...whole, ...own }, file: 'the command line', text: '', given: own, lines: new Map() };
}

function answered(text: string): number {
  answer(text);
  return 0;
}

function loadedOrNull(script: string, file: string): Loaded | null {
  try {
    return loadSettings(settings, script, file === script ? '' : file);
  } catch {
    return null;
  }
}

// `recover` has to work when the settings are broken or gone: then every state folder that may be meant is looked into.
function everyStateFolder(script: string, file: string): [string[], Settings | null] {
  const loaded = loadedOrNull(script, file);
  const folders = [...stateFoldersElsewhere(), loaded?.settings.stateFolder ?? '', settings.stateFolder ?? '', '/var/lib/cold-backup'];
  for (const source of loaded ? [] : [file, join(dirname(script), 'backup.settings.js')]) {
    try {
      folders.push(...stateFoldersIn(fs.readFileSync(source, 'utf8')));
    } catch { /* not there */ }
  }
  return [[...new Set(folders.filter((folder) => folder.startsWith('/')))], loaded?.settings ?? null];
}

async function recoverAll(script: string, file: string): Promise<number> {
  const [folders, known] = everyStateFolder(script, file), code = await recover(folders, known);
  if (known) await sweepDrills(known); // after what people wait for
  return code;
}

async function main(): Promise<void> {
  process.removeAllListeners('exit'); // the file is whole (see the top)
  process.exitCode = 2; // should all work ever end without an answer, it was not good
  for (const stream of [process.stdout, process.stderr]) stream.on('error', () => {}); // a closed terminal or pipe must not kill us
  let code: number;
  try {
    code = await obey(process.argv.slice(2));
  } catch (error) {
    sayError(error);
    const { exitCode = 2, hint = '' } = error instanceof Problem ? error.facts : {};
    if (mode.json) answer(JSON.stringify({ outcome: 'failed', exitCode, error: (error as Error).message, hint }));
    code = exitCode;
  }
  // What was printed is out before we leave; a command that hangs somewhere must not keep us.
  await Promise.race([Promise.all([process.stdout, process.stderr].map((stream) => new Promise((done) => { stream.write('', done); }))), new Promise((done) => { setTimeout(done, 2000).unref(); })]);
  process.exit(code);
}

// The build puts this line at the very end of the file: a download that was cut short runs nothing.
main();
