// Setup: make what is missing (ssh key, passphrase, known host, repository with its key, recovery sheet), keep what is there, say
// what the storage needs. It may be run again and again. Changes: files beside `sshKey`, `keyFile`, `passphraseFile`, `knownHostsFile`,
// the new repository, and a schedule only when told. Never touches a service, never changes what exists.
import fs from 'node:fs';
import path from 'node:path';
import { createInterface } from 'node:readline/promises';
import { randomBytes } from 'node:crypto';
import { Problem, named, pasteable, say, sayBlock } from './say.ts';
import { change, failure, hasSystemd, look, lookFor, writeDurably } from './shell.ts';
import type { Loaded } from './check.ts';
import type { Settings } from './settings.ts';
import { askBorg, borgEnvironment, borgFailure, borgVersion, isRemote } from './borg.ts';
import { serverName } from './plan.ts';
import { doctor, repositoryAddress, sheetFile, sheetMark, tryConnection } from './doctor.ts';

/** `setup`: given the settings, the script and the options, makes what is missing. Returns 0 when a run would now work. */
export async function setup(loaded: Loaded, script: string, options: { yes: boolean; schedule: string }): Promise<number> {
  const { settings } = loaded;
  await borgVersion();
  for (const file of [settings.sshKey, settings.keyFile, settings.passphraseFile, settings.knownHostsFile, path.join(settings.stateFolder, 'x')]) {
    fs.mkdirSync(path.dirname(file), { recursive: true, mode: 0o700 });
  }
  if (!fs.existsSync(settings.passphraseFile)) {
    writeDurably(settings.passphraseFile, `${randomBytes(32).toString('base64url')}\n`);
    say(`made the passphrase: ${named(settings.passphraseFile)}`);
  }
  if (isRemote(settings)) {
    await makeSshKey(settings);
    await makeKnownHost(settings, options.yes);
    sayBlock(`\nThis line belongs into authorized_keys of the storage's user (set the quota to what this server may use):\n\n${authorizedKeysLine(settings)}\n`);
    await tryConnection(settings); // says what to do while the storage does not know the key
  }
  await makeRepository(settings);
  await writeSheet(settings);
  if (options.schedule === 'cron') installCron(settings, script, loaded.file);
  if (options.schedule === 'systemd') await installTimers(settings, script, loaded.file);
  const code = await doctor(loaded, script);
  return code === 1 ? 0 : code;
}

async function makeSshKey(settings: Settings): Promise<void> {
  if (fs.existsSync(settings.sshKey)) return;
  const done = await change(['ssh-keygen', '-q', '-t', 'ed25519', '-N', '', '-C', `cold-backup ${serverName(settings)}`, '-f', settings.sshKey]);
  if (done.code !== 0) throw failure('the ssh key cannot be made', done);
}

async function makeKnownHost(settings: Settings, yes: boolean): Promise<void> {
  if (fs.existsSync(settings.knownHostsFile)) return;
  const { host, port } = repositoryAddress(settings.repository);
  const keys = await lookFor(`the storage ${host} does not show its host key`, ['ssh-keyscan', '-T', '10', ...(port ? ['-p', port] : []), '--', host], 'is it reachable from here (VPN, firewall, name)?');
  if (keys.trim() === '') throw new Problem(`the storage ${host} does not show its host key`, { hint: 'is it reachable from here (VPN, firewall, name)?' });
  const draft = `${settings.knownHostsFile}.new`;
  fs.writeFileSync(draft, keys, { mode: 0o600 });
  const prints = await look(['ssh-keygen', '-l', '-f', draft]);
  sayBlock(`The storage's host keys; compare one of them with what its keeper says:\n${prints.out.trimEnd()}`);
  if (!yes && !await agrees('Is this the storage?')) {
    fs.rmSync(draft);
    throw new Problem('the host key was not accepted', { hint: 'ask the storage\'s keeper for its fingerprint (ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub)' });
  }
  fs.renameSync(draft, settings.knownHostsFile);
}

export async function agrees(question: string): Promise<boolean> {
  if (!process.stdin.isTTY) throw new Problem(`${question} There is no terminal to answer on`, { exitCode: 64, hint: 'run it on a terminal, or with --yes' });
  const lines = createInterface({ input: process.stdin, output: process.stderr });
  const words = await lines.question(`${question} [yes/no] `);
  lines.close();
  return /^y(es)?$/i.test(words.trim());
}

/** The line that gives this server the right to add archives to its own repository on the storage, and no other right (sshd(8), borg serve). */
export function authorizedKeysLine(settings: Settings): string {
  const { path: folder } = repositoryAddress(settings.repository);
  const key = fs.readFileSync(`${settings.sshKey}.pub`, 'utf8').trim();
  return `command="borg serve --append-only --restrict-to-repository ${pasteable([folder]).replaceAll('"', '\\"')} --storage-quota 500G",restrict ${key}`;
}

async function makeRepository(settings: Settings): Promise<void> {
  const there = await askBorg(settings, ['info', '--json']);
  if (there.code === 0) return say('the repository is there');
  if (/Keyfile|borg_key|No key file/.test(there.said) || (!fs.existsSync(settings.keyFile) && /"msgid": "(LocalException|PassphraseWrong)"|FileNotFoundError/.test(there.said))) {
    throw new Problem('the repository is there, but its key is not here', { hint: 'bring key and passphrase from the recovery sheet into place (`keyFile`, `passphraseFile`); do not make new ones' });
  }
  // An empty folder that the storage's keeper has made is no repository yet; init itself refuses one that is not empty.
  if (!/"msgid": "Repository\.(DoesNotExist|InvalidRepository)"/.test(there.said)) throw borgFailure('the repository cannot be reached yet', there);
  // keyfile: the key stays here and on paper. In the repository (repokey) whoever holds our ssh key could overwrite it.
  const made = await change(['borg', '--log-json', 'init', '--encryption', 'keyfile-blake2', ...(isRemote(settings) ? [] : ['--make-parent-dirs'])], { env: { ...borgEnvironment(settings), BORG_DISPLAY_PASSPHRASE: 'no' }, seconds: 600 });
  if (made.code !== 0) throw borgFailure('the repository cannot be made', made);
  say('made the repository and its key');
}

/** The recovery sheet: what a restore needs when this server is gone. Written beside the key, readable by root only. */
async function writeSheet(settings: Settings): Promise<void> {
  const sheet = sheetFile(settings);
  if (fs.existsSync(sheet) || fs.existsSync(sheetMark(settings))) return; // printed and removed: it is not written to disk again
  const draft = `${sheet}.key`;
  const done = await change(['borg', 'key', 'export', '--paper', '::', draft], { env: borgEnvironment(settings), seconds: 600 });
  if (done.code !== 0) throw borgFailure('the key cannot be exported', done);
  const key = fs.readFileSync(draft, 'utf8');
  fs.rmSync(draft);
  writeDurably(sheet, [`RECOVERY SHEET of server ${serverName(settings)}`, '', 'Print this, keep it on paper away from the server, then remove this file.', 'Whoever has it and can reach the storage can read every backup.', '',
    `repository  ${settings.repository}`, `passphrase  ${fs.readFileSync(settings.passphraseFile, 'utf8').trim()}`, '', key, ''].join('\n'));
  writeDurably(sheetMark(settings), `the recovery sheet was made on ${new Date().toISOString()}; to have it made again, remove this file and run setup\n`);
  say(`wrote the recovery sheet: ${named(sheet)}`);
}

const commandLine = (script: string, file: string, words: string) => `${pasteable([process.execPath, script])}${file === script ? '' : ` --settings ${pasteable([file])}`} ${words}`;

// A drill touches nothing that runs, so it has its own day and hour: away from the night's.
// cron knows only the machine's own time: the window's start is turned into it, as it is tonight.
function installCron(settings: Settings, script: string, file: string): void {
  const begin = startOfWindow(settings);
  const line = (when: string, words: string) => `${when} root ${commandLine(script, file, words).replaceAll('%', '\\%')}`;
  fs.writeFileSync('/etc/cron.d/cold-backup', ['# cold-backup: the nightly run, and what brings services back after a power cut', 'PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin',
    line(`${begin.getMinutes()} ${begin.getHours()} * * *`, '--quiet'), line('@reboot', 'recover --quiet'), line('*/5 * * * *', 'recover --quiet'),
    ...(settings.drill.maxAgeDays > 0 ? [line('0 12 * * 0', 'drill --quiet')] : []), ''].join('\n'), { mode: 0o644 });
  say('wrote /etc/cron.d/cold-backup');
}

// The begin of the window (or 02:00) as this machine's clock shows it, the later one of winter and summer; five minutes in, so
// that no clock is before it.
function startOfWindow(settings: Settings): Date {
  const [winter, summer] = [0, 6].map((month) => windowBegin(settings, new Date(new Date().getFullYear(), month, 15))) as [Date, Date];
  const minutes = (date: Date) => date.getHours() * 60 + date.getMinutes();
  const later = (minutes(summer) - minutes(winter) + 1440) % 1440 < 720 ? summer : winter;
  return new Date(later.getTime() + (settings.window ? 5 * 60_000 : 0));
}

function windowBegin(settings: Settings, begin: Date): Date {
  const { window } = settings;
  if (!window) begin.setHours(2, 0, 0, 0);
  for (let minute = 0; window && minute < 1440; minute++) {
    const clock = new Intl.DateTimeFormat('en-GB', { timeZone: window.timeZone, hour: '2-digit', minute: '2-digit', hourCycle: 'h23' }).format(begin);
    if (clock === window.from) break;
    begin.setMinutes(begin.getMinutes() + 1);
  }
  return begin;
}

async function installTimers(settings: Settings, script: string, file: string): Promise<void> {
  if (!hasSystemd()) throw new Problem('this machine is not run by systemd', { hint: 'use --schedule cron' });
  const at = settings.window ? `*-*-* ${settings.window.from}:00 ${settings.window.timeZone}` : '*-*-* 02:00:00';
  const service = (what: string, words: string, more: string[]) => ['[Unit]', `Description=cold-backup: ${what}`, 'Wants=network-online.target', 'After=network-online.target', '',
    '[Service]', 'Type=oneshot', `ExecStart=${commandLine(script, file, words).replaceAll('%', '%%')}`, ...more, ''].join('\n');
  const timer = (when: string[]) => ['[Unit]', 'Description=cold-backup', '', '[Timer]', ...when, '', '[Install]', 'WantedBy=timers.target', ''].join('\n');
  const files = {
    // The script ends its children itself; whatever it leaves running lives in units of its own.
    'cold-backup.service': service('the nightly run', '--quiet', [`ExecStopPost=${commandLine(script, file, 'recover --quiet').replaceAll('%', '%%')}`, 'KillMode=mixed', 'TimeoutStartSec=infinity', 'TimeoutStopSec=30min', 'SuccessExitStatus=75', 'OOMScoreAdjust=-500']),
    'cold-backup.timer': timer([`OnCalendar=${at}`]), // not Persistent: a missed night must not stop services in the morning
    'cold-backup-recover.service': service('start what an interrupted run left stopped', 'recover --quiet', ['SuccessExitStatus=75']),
    'cold-backup-recover.timer': timer(['OnBootSec=20s', 'OnUnitActiveSec=5min', 'AccuracySec=1s']),
    ...(settings.drill.maxAgeDays > 0 ? { 'cold-backup-drill.service': service('rehearse a restore', 'drill --quiet', ['Nice=19', 'IOSchedulingClass=idle', 'TimeoutStartSec=infinity', 'SuccessExitStatus=75']),
      'cold-backup-drill.timer': timer(['OnCalendar=Sun *-*-* 12:00:00', 'RandomizedDelaySec=15min']) } : {}),
  };
  fs.rmSync('/etc/cron.d/cold-backup', { force: true }); // one schedule at a time
  for (const [name, text] of Object.entries(files)) fs.writeFileSync(path.join('/etc/systemd/system', name), text, { mode: 0o644 });
  for (const argv of [['systemctl', 'daemon-reload'], ['systemctl', 'enable', '--now', ...Object.keys(files).filter((name) => name.endsWith('.timer'))]]) {
    const done = await change(argv);
    if (done.code !== 0) throw failure('the timers cannot be installed', done);
  }
  say(`installed ${Object.keys(files).filter((name) => name.endsWith('.timer')).join(', ')}`);
}
