// Setup: make what is missing, keep what is there, say what the storage needs.
// An ssh key, a passphrase, the known host, the repository with its key, the recovery sheet. It may be run again and again.
// Changes: files beside `sshKey`, `keyFile`, `passphraseFile`, `knownHostsFile`, the new repository, and a schedule only when
// told. Never touches a service, never changes what exists.
import fs from 'node:fs';
import path from 'node:path';
import { homedir } from 'node:os';
import { randomBytes } from 'node:crypto';
import { Problem, lastLines, named, pasteable, say, sayBlock } from './say.ts';
import { change, failure, look, lookFor } from './shell.ts';
import { writeDurably } from './files.ts';
import { lastGoodRun } from './history.ts';
import type { Loaded } from './check.ts';
import type { Settings } from './settings.ts';
import { askBorg, borgEnvironment, borgFailure, borgVersion, isRemote, tryRepository } from './borg.ts';
import { serverName } from './plan.ts';
import { WORDS } from './words.ts';
import { repositoryAddress, serverCommandLine, sshToStorage, tryConnection } from './storage.ts';
import { doctor, sheetFile, sheetMark } from './doctor.ts';
import { installCron, installTimers } from './schedule.ts';
import { QUOTA, agrees, ask, canAsk, refuseQuota } from './answers.ts';

/** What may be said on the command line in place of an answer: '' = not said. keyFile, passphraseFile: of a repository that is there already. */
export type SetupOptions = { yes: boolean; schedule: string; quota: string; keyFile: string; passphraseFile: string };

/** `setup`: given the settings, the script and the options, makes what is missing. Returns 0 when a run would now work. */
export async function setup(loaded: Loaded, script: string, options: SetupOptions): Promise<number> {
  const { settings } = loaded, isAsked = !options.yes && canAsk();
  refuseQuota(options.quota);
  await borgVersion();
  for (const file of [settings.sshKey, settings.keyFile, settings.passphraseFile, settings.knownHostsFile, path.join(settings.stateFolder, 'x')]) {
    fs.mkdirSync(path.dirname(file), { recursive: true, mode: 0o700 });
  }
  for (const [given, place] of [[options.keyFile, settings.keyFile], [options.passphraseFile, settings.passphraseFile]] as const) {
    if (given && path.resolve(given) !== place) takeOver(given, place);
  }
  if (isRemote(settings)) {
    await makeSshKey(settings);
    await makeKnownHost(loaded, options.yes);
    await reachStorage(loaded, options.quota, isAsked);
  }
  await makeRepository(settings, isAsked);
  if (isRemote(settings)) sayBlock(reserveOnStorage(settings));
  await writeSheet(settings);
  if (isAsked) await confirmSheet(settings);
  const schedule = options.schedule || (isAsked && !fs.existsSync('/etc/cron.d/cold-backup') && !fs.existsSync('/etc/systemd/system/cold-backup.timer') ? await ask('Start it every night by cron, by systemd, or not yet?', 'no', /^(cron|systemd|no)$/) : '');
  if (schedule === 'cron') installCron(settings, script, loaded.file);
  if (schedule === 'systemd') await installTimers(settings, script, loaded.file);
  const code = await doctor(loaded, script);
  sayBlock(code < 2 ? `\nnothing fails${lastGoodRun(settings.stateFolder) ? '' : '; next: node backup.js --dry-run'}` : '\nmend what FAILS, then: node backup.js setup');
  return code === 1 ? 0 : code;
}

/** A key or passphrase of a repository that is there already, put where the settings say. Throws Problem (64) rather than overwrite another one. */
function takeOver(given: string, place: string): void {
  const text = fs.readFileSync(given, 'utf8');
  if (fs.existsSync(place) && fs.readFileSync(place, 'utf8') !== text) throw new Problem(`${named(place)} is there already, and is another one than ${named(given)}`,
    { exitCode: 64, hint: 'move it away first, when you are sure that nothing is encrypted with it' });
  writeDurably(place, text);
  say(`${named(given)} is now ${named(place)}, too`);
}

/** Show what the storage's keeper has to do, unless it is done already, and wait until it is, when somebody is here to say so. Throws Problem while the storage does not let us in. */
async function reachStorage({ settings, file }: Loaded, quota: string, isAsked: boolean): Promise<void> {
  const { words } = isAsked && !quota ? await serverCommandLine(sshToStorage(settings)) : { words: null }, folder = repositoryAddress(settings.repository).path;
  if (['--append-only', '--storage-quota', `--restrict-to-repository ${folder} `].every((one) => `${words} `.includes(one))) return say(`this server's line is on the storage: ${words}`);
  const granted = isAsked ? await ask('How much may this server store there?', quota || '500G', QUOTA) : quota || '500G';
  sayBlock(storageInstructions(settings, granted));
  for (;;) {
    try {
      await tryConnection(settings); // says what to do while the storage does not know the key
      return;
    } catch (error) {
      if (!(error instanceof Problem) || !isAsked) throw error;
      const said = lastLines(error.facts.said ?? '', 1), isNew = /Permission denied/i.test(said); // as it is for everybody the first time: no failure yet
      sayBlock(`${isNew ? 'The storage does not accept this server\'s key yet: the line above is not there, is broken in two, or lies in a file that its user may not read' : error.message}${said && ` (ssh said: ${said})`}`);
      const hint = isNew ? `put the line above into authorized_keys there, then: node backup.js setup --quota ${granted}` : /host key|hangs up/.test(error.facts.hint ?? '') ? error.facts.hint : mendAddress(file);
      if (!isNew) sayBlock(`hint: ${hint}`);
      if (!await agrees(isNew ? 'Is the line in its place now?' : 'Try again (no: to mend something first)?')) throw new Problem(error.message, { ...error.facts, hint });
    }
  }
}

async function makeSshKey(settings: Settings): Promise<void> {
  const { sshKey } = settings, isHere = fs.existsSync(sshKey), hint = '`sshKey` must be a private key of ssh without a passphrase';
  if (isHere && !fs.existsSync(`${sshKey}.pub`)) writeDurably(`${sshKey}.pub`, await lookFor('the ssh key has no public half', ['ssh-keygen', '-y', '-P', '', '-f', sshKey], hint));
  if (isHere) return;
  const done = await change(['ssh-keygen', '-q', '-t', 'ed25519', '-N', '', '-C', `cold-backup ${serverName(settings)}`, '-f', sshKey]);
  if (done.code !== 0) throw failure('the ssh key cannot be made', done);
}

// Read once: an address that is mended meanwhile is seen by the next call.
const mendAddress = (file: string) => `is the address wrong? Mend \`repository\` in ${named(file)}, and call setup again. Else: is the storage reachable from here (VPN, firewall, name)?`;

async function makeKnownHost({ settings, file }: Loaded, yes: boolean): Promise<void> {
  if (fs.existsSync(settings.knownHostsFile)) return;
  const { host, port } = repositoryAddress(settings.repository), what = `the storage ${host} does not show its host key`;
  const hint = `${mendAddress(file)} `
    + 'What root\'s ssh configuration says of it (an alias, ProxyJump), ssh-keyscan does not read: then log in there once, '
    + `compare the fingerprint, and: ${pasteable(['cp', path.join(homedir(), '.ssh/known_hosts'), settings.knownHostsFile])}`;
  const keys = await lookFor(what, ['ssh-keyscan', '-T', '10', ...(port ? ['-p', port] : []), '--', host], hint);
  if (keys.trim() === '') throw new Problem(what, { hint });
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

/** The line that gives this server the right to add archives to its own repository on the storage, and no other right (sshd(8), borg serve). */
export function authorizedKeysLine(settings: Settings, quota: string): string {
  const { path: folder } = repositoryAddress(settings.repository);
  const key = fs.readFileSync(`${settings.sshKey}.pub`, 'utf8').trim();
  return `command="borg serve --append-only --restrict-to-repository ${pasteable([folder]).replaceAll('"', '\\"')} --storage-quota ${quota}",restrict ${key}`;
}

/** What the storage's keeper does once for the storage, and once for each server. The line stands alone, to be pasted. */
function storageInstructions(settings: Settings, quota: string): string {
  const user = repositoryAddress(settings.repository).user || 'borg';
  return `
This line belongs into authorized_keys of the storage's user, there: ~${user}/.ssh/authorized_keys, which is
/srv/${user}/.ssh/authorized_keys on a storage made as below (the quota is what this server may use):

${authorizedKeysLine(settings, quota)}

On a storage that is new, its keeper does this first, as root (Debian):
  apt-get install borgbackup openssh-server
  adduser --system --group --shell /bin/sh --home /srv/${user} ${user}
  install -d -m 700 -o ${user} -g ${user} /srv/${user}/.ssh
  cat >> /srv/${user}/.ssh/authorized_keys          # paste the line above, Enter, Ctrl-D
  chown ${user}: /srv/${user}/.ssh/authorized_keys
  printf 'ClientAliveInterval 10\\nClientAliveCountMax 6\\n' > /etc/ssh/sshd_config.d/borg.conf && systemctl reload ssh   # a dead line frees its lock
`;
}

// Not before the repository is there. As its user: a file of root's would shut the server out.
function reserveOnStorage(settings: Settings): string {
  const { user, path: folder } = repositoryAddress(settings.repository);
  return `Now that the repository is there, the storage's keeper does this once (is it done? then nothing), as root, so that a full disk can still be cleaned up:\n  runuser -l ${user || 'borg'} -c 'borg config ${pasteable([folder])} additional_free_space 2G'`;
}

/** Find the repository or make it. One that is there already (of borgmatic, or of this server's former self) is taken over with its archives. */
async function makeRepository(settings: Settings, isAsked: boolean): Promise<void> {
  let there = await askBorg(settings, ['info', '--json']);
  // An empty folder that the storage's keeper has made is no repository yet.
  if (/"msgid": "Repository\.(DoesNotExist|InvalidRepository)"/.test(there.said)) return initRepository(settings);
  // Only of a repository that it has found does borg say this; of a key file that is not there, 1.2 says it with an error of Python's that names it.
  const lacksKeyFile = () => there.code !== 0 && (/"msgid": "Keyfile/.test(there.said) || there.said.includes(settings.keyFile));
  const lacksKey = () => lacksKeyFile() || (there.code !== 0 && /"msgid": "(Pass|RepoKeyNotFound)/.test(there.said));
  if (lacksKeyFile() && !fs.existsSync(settings.keyFile) && await findKey(settings)) there = await askBorg(settings, ['info', '--json']);
  if (lacksKey() && !fs.existsSync(settings.passphraseFile) && isAsked) {
    writeDurably(settings.passphraseFile, `${await ask('The repository is there already. Its passphrase?', '', /./, 'hidden')}\n`);
    there = await askBorg(settings, ['info', '--json']);
    if (there.code !== 0) fs.rmSync(settings.passphraseFile);
  }
  if (lacksKey() && !(fs.existsSync(settings.passphraseFile) && fs.existsSync(settings.keyFile))) {
    throw new Problem('the repository is there, but its key or passphrase is not here', { said: borgFailure('', there).facts.said,
      hint: 'bring both from the recovery sheet, or from where the tool before kept them: node backup.js setup --passphrase-file FILE --key-file FILE; do not make new ones' });
  }
  if (there.code !== 0) throw borgFailure('the repository cannot be reached yet', there);
  if (!fs.existsSync(settings.keyFile)) { // the key lies in the repository: a copy here, or whoever holds our ssh key could destroy the only one
    const done = await change(['borg', 'key', 'export', '::', settings.keyFile], { env: borgEnvironment(settings), seconds: 600 });
    if (done.code !== 0) throw borgFailure('the key cannot be exported', done);
    fs.chmodSync(settings.keyFile, 0o600);
  }
  say(`the repository is there (${(await tryRepository(settings)).encryption})`);
}

async function initRepository(settings: Settings): Promise<void> {
  if (!fs.existsSync(settings.passphraseFile)) {
    writeDurably(settings.passphraseFile, `${randomBytes(32).toString('base64url')}\n`);
    say(`made the passphrase: ${named(settings.passphraseFile)}`);
  }
  // keyfile: the key stays here and on paper. In the repository (repokey) whoever holds our ssh key could overwrite it.
  const made = await change(['borg', '--log-json', 'init', '--encryption', 'keyfile-blake2', ...(isRemote(settings) ? [] : ['--make-parent-dirs'])], { env: { ...borgEnvironment(settings), BORG_DISPLAY_PASSPHRASE: 'no' }, seconds: 600 });
  if (made.code !== 0) throw borgFailure('the repository cannot be made', made);
  say('made the repository and its key');
}

/** borg keeps keys in ~/.config/borg/keys: the one with which this repository opens, or lacks only its passphrase, is copied to where the settings say. Returns whether there is one. */
async function findKey(settings: Settings): Promise<boolean> {
  const folder = path.join(homedir(), '.config/borg/keys');
  for (const name of fs.existsSync(folder) ? fs.readdirSync(folder) : []) {
    const done = await askBorg({ ...settings, keyFile: path.join(folder, name) }, ['info', '--json']);
    if (done.code !== 0 && !/"msgid": "Pass/.test(done.said)) continue;
    takeOver(path.join(folder, name), settings.keyFile);
    return true;
  }
  return false;
}

// The storage's host key, for whoever meets it again from another machine; '' when it stands in known_hosts under another name.
async function fingerprint(settings: Settings): Promise<string> {
  const { host, port } = repositoryAddress(settings.repository);
  const { out } = await look(['ssh-keygen', '-l', '-F', port && port !== '22' ? `[${host}]:${port}` : host, '-f', settings.knownHostsFile]);
  return (/\bED25519 SHA256:\S+/.exec(out) ?? /\S+ SHA256:\S+/.exec(out))?.[0] ?? '';
}

/** The recovery sheet: what a restore needs when this server is gone, as text and as a page to print with the key in QR codes. Both lie beside the key, readable by root only. */
async function writeSheet(settings: Settings): Promise<void> {
  const sheet = sheetFile(settings), page = sheet.replace(/txt$/, 'html');
  if (fs.existsSync(sheet) || fs.existsSync(sheetMark(settings))) return; // printed and removed: it is not written to disk again
  const exported: string[] = [];
  for (const form of ['--paper', '--qr-html']) {
    const draft = `${sheet}.key`;
    const done = await change(['borg', 'key', 'export', form, '::', draft], { env: borgEnvironment(settings), seconds: 600 });
    if (done.code !== 0) throw borgFailure('the key cannot be exported', done);
    exported.push(fs.readFileSync(draft, 'utf8').replace(/^To restore key use .*\n+/, '')); // borg's own hint, which names no repository: the steps do
    fs.rmSync(draft);
  }
  const words = WORDS[settings.language].sheet, pad = Math.max(words.repository.length, words.passphrase.length) + 2, title = words.title(serverName(settings));
  const isOnSsh = isRemote(settings), print = isOnSsh ? await fingerprint(settings) : '';
  const steps = [`export ${pasteable([`BORG_REPO=${settings.repository}`])} BORG_KEY_FILE=/root/borg_key`, 'borg key import --paper ::', 'borg list ::', 'borg extract ::ARCHIVE record'].map((line) => `  ${line}`);
  const text = [words.print, words.whoHas, '', `${words.repository.padEnd(pad)}${settings.repository}`, `${words.passphrase.padEnd(pad)}${fs.readFileSync(settings.passphraseFile, 'utf8').trim()}`, '', words.how, ...(isOnSsh ? [words.keeper] : []), ...(print ? [words.shows(print)] : []), ...steps, words.then];
  const html = (lines: string[]) => lines.join('\n').replace(/[&<>]/g, (sign) => `&#${sign.charCodeAt(0)};`);
  writeDurably(page, exported[1]!.replace(/<div id="printout">/, (paper) => `${paper}\n<h1>${html([title])}</h1>\n<pre style="white-space: pre-wrap">${html(text)}</pre>\n`)); // onto the paper of borg's own page, which draws the codes itself
  writeDurably(sheet, [title, '', ...text, '', exported[0]!, ''].join('\n'));
  writeDurably(sheetMark(settings), `the recovery sheet was made on ${new Date().toISOString()}; to have it made again, remove this file and run setup\n`);
  say(`wrote the recovery sheet: ${named(sheet)}, and the same to print with QR codes: ${named(page)}`);
}

/** Somebody who says that the sheet is printed has it removed from the server. */
async function confirmSheet(settings: Settings): Promise<void> {
  const sheet = sheetFile(settings);
  if (!fs.existsSync(sheet)) return;
  if (!await agrees(`Is the recovery sheet (${sheet}, or .html) printed, and kept away from this server? Then both are removed here`)) return;
  for (const file of [sheet, sheet.replace(/txt$/, 'html')]) fs.rmSync(file, { force: true });
  say('the recovery sheet is removed from this server');
}
