// Setup, from the first call on a server that the storage does not know to the day when the server is gone and another
// machine has nothing but the recovery sheet.
import './alone.ts';
import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { once } from 'node:events';
import fs from 'node:fs';
import net from 'node:net';
import path from 'node:path';
import { after, before, describe, test } from 'node:test';
import { makeDaemon, makeServer, testFolder } from './script.ts';
import type { Server } from './script.ts';
import { startStorage } from './storage.ts';
import type { Storage } from './storage.ts';
import { cannotRunHere, filesWith, stamps, watchCommandLines } from './night.ts';

describe('setup', { skip: cannotRunHere() }, () => {
  const folder = testFolder('setup'), etc = path.join(folder, 'server', 'etc'), sheet = path.join(etc, 'recovery-sheet.txt'), page = path.join(etc, 'recovery-sheet.html');
  let storage: Storage, server: Server, seen: string[];
  const modeOf = (file: string) => (fs.statSync(file).mode & 0o777).toString(8);

  before(async () => {
    fs.mkdirSync(path.join(folder, 'files'));
    fs.writeFileSync(path.join(folder, 'files', 'one'), 'here I am\n');
    const web = makeDaemon(folder, 'web');
    web.startNow();
    storage = await startStorage(path.join(folder, 'storage'));
    server = await makeServer(path.join(folder, 'server'), 'web1', storage, { stop: [web.entry], folders: [path.join(folder, 'files')] }, { setUp: false });
  });
  after(() => storage?.destroy());

  test('while the storage does not know the key, it prints the line for it and says what to do', async () => {
    const ended = await server.run(['setup', '--yes']);
    assert.equal(ended.code, 2, ended.out + ended.err);
    const key = fs.readFileSync(path.join(etc, 'ssh_key.pub'), 'utf8').trim();
    const line = ended.out.split('\n').find((one) => one.startsWith('command="borg serve --append-only --restrict-to-repository '));
    assert.equal(line, `command="borg serve --append-only --restrict-to-repository ${storage.repository('web1')} --storage-quota 500G",restrict ${key}`);
    assert.match(ended.err, /^backup: error: no ssh connection to the storage/m);
    assert.match(ended.err, /said: .*Permission denied/);
    assert.match(ended.err, /hint: the storage does not know our key: put the line/);
    assert.ok(!fs.existsSync(storage.repository('web1')) && !fs.existsSync(sheet));
    storage.authorizeLine(line!);
  });

  test('a run before setup is through stops nothing and says so', async () => {
    const ended = await server.run();
    assert.equal(ended.code, 2, ended.out + ended.err);
    assert.match(ended.err, /^backup: error: keyFile .* is not there\n.*\n? {2}hint: run `node backup\.js setup`/m);
    assert.match(ended.err, /services: nothing was stopped/);
  });

  test('called again, it makes what was missing, and keeps what was there', async () => {
    const made = stamps(path.join(etc, 'ssh_key'), path.join(etc, 'known_hosts')); // the passphrase is made with the repository: one that is there has its own
    const watch = watchCommandLines();
    const ended = await server.run(['setup', '--yes']);
    seen = watch.stop();
    assert.equal(ended.code, 0, ended.out + ended.err);
    assert.equal(stamps(path.join(etc, 'ssh_key'), path.join(etc, 'known_hosts')), made);
    for (const check of ['no shell', 'other paths refused', 'append-only', 'quota', 'key exported']) assert.match(ended.out, new RegExp(`^ok +${check}: `, 'm'));
    assert.match(ended.out, /^to do +schedule: /m); // none was asked for, none was installed
    for (const file of ['ssh_key', 'borg_key', 'passphrase', 'recovery-sheet.txt']) assert.equal(modeOf(path.join(etc, file)), '600', file);
    assert.equal(modeOf(etc), '700');
  });

  test('a third call changes not one byte', async () => {
    const was = stamps(etc);
    const ended = await server.run(['setup', '--yes']);
    assert.equal(ended.code, 0, ended.out + ended.err);
    assert.equal(stamps(etc), was);
    assert.doesNotMatch(ended.out, /^\S+ +\$ /m); // no command that changes anything
  });

  test('the passphrase is on the sheet, beside the key, and nowhere else', async () => {
    const secret = fs.readFileSync(path.join(etc, 'passphrase'), 'utf8').trim();
    assert.ok(secret.length >= 40);
    const text = fs.readFileSync(sheet, 'utf8');
    assert.ok(text.includes(secret) && text.includes(String(server.settings.repository)) && text.includes('BORG PAPER KEY v1'));
    assert.match(text, /lets it in, with a line like this server's\.\nThe storage shows itself as \w+ SHA256:\S+\.\n {2}export BORG_REPO/);
    assert.ok(fs.readFileSync(page, 'utf8').includes(secret) && fs.readFileSync(page, 'utf8').includes('RECOVERY SHEET of server web1'));
    assert.equal((await server.run()).code, 0);
    assert.deepEqual(filesWith(folder, [secret]).sort(), [path.join(etc, 'passphrase'), sheet, page].sort());
    assert.deepEqual(seen.filter((line) => line.includes(secret)), []);
    assert.ok(seen.some((line) => line.includes('borg --log-json init')), 'the watcher saw borg');
  });

  test('another machine with the sheet and an ssh key reads the backups', async () => {
    const there = path.join(folder, 'other'), text = fs.readFileSync(sheet, 'utf8');
    fs.mkdirSync(path.join(there, 'etc'), { recursive: true, mode: 0o700 });
    for (const file of ['ssh_key', 'known_hosts']) fs.copyFileSync(path.join(etc, file), path.join(there, 'etc', file));
    // What a person types off the paper.
    const value = (name: string) => new RegExp(`^${name} +(.*)$`, 'm').exec(text)![1]!;
    fs.writeFileSync(path.join(there, 'etc', 'passphrase'), `${value('passphrase')}\n`, { mode: 0o600 });
    const lines = [...text.matchAll(/^ *(?:id:|\d+:) (.*)$/gm)].map((match) => match[1]!.trim());
    const env = { ...process.env, BORG_REPO: value('repository'), BORG_KEY_FILE: path.join(there, 'etc', 'borg_key'), BORG_PASSPHRASE: value('passphrase'), BORG_BASE_DIR: path.join(there, 'borg'),
      BORG_RSH: `ssh -o BatchMode=yes -o UserKnownHostsFile=${there}/etc/known_hosts -i ${there}/etc/ssh_key` };
    const steps = [...text.matchAll(/^ {2}((?:export|borg) .*)$/gm)].map((match) => match[1]!.replace('/root/borg_key', path.join(there, 'etc', 'borg_key'))), empty = fs.mkdtempSync(path.join(there, 'empty-'));
    assert.deepEqual(steps.map((step) => step.split(' ').slice(0, 2).join(' ').replace(/=.*/, '')), ['export BORG_REPO', 'borg key', 'borg list', 'borg extract']);
    const doAsItSays = (which: string[], input = '') => execFileSync('bash', ['-ec', which.join('\n')], { env: { ...env, BORG_REPO: undefined }, cwd: empty, input, encoding: 'utf8', stdio: ['pipe', 'pipe', 'pipe'] });
    doAsItSays(steps.slice(0, 2), `${lines.join('\n')}\n\n`);
    const names = doAsItSays([steps[0]!, steps[2]!]).split('\n').map((line) => line.split(' ')[0]!), newest = names.filter((name) => names.includes(`proven-${name}`)).pop()!;
    doAsItSays([steps[0]!, steps[3]!.replace('ARCHIVE', newest)]);
    assert.match(fs.readFileSync(path.join(empty, 'record/RESTORE.md'), 'utf8'), new RegExp(newest));
    assert.equal(execFileSync('borg', ['extract', '--stdout', `::${server.history().pop().archive}`, `${folder.slice(1)}/files/one`], { env, encoding: 'utf8' }), 'here I am\n');

    const settings = { ...server.settings, stateFolder: path.join(there, 'state'), ...Object.fromEntries(Object.entries({ sshKey: 'ssh_key', knownHostsFile: 'known_hosts', keyFile: 'borg_key', passphraseFile: 'passphrase' }).map(([key, file]) => [key, path.join(there, 'etc', file)])) };
    fs.writeFileSync(path.join(there, 'settings.js'), `const settings = ${JSON.stringify(settings)};\n`, { mode: 0o600 });
    const ended = await server.run(['list', '--settings', path.join(there, 'settings.js')]);
    assert.equal(ended.code, 0, ended.err);
    assert.match(ended.out, new RegExp(`^${server.history().pop().archive} +proven`, 'm'));
  });

  test('whether the storage is append-only is asked in two ways, and what neither tells is unknown', async () => {
    const keys = path.join(storage.folder, 'authorized_keys'), key = fs.readFileSync(path.join(etc, 'ssh_key.pub'), 'utf8'), repository = storage.repository('web1');
    const says = async (name = 'append-only') => JSON.parse((await server.run(['doctor', '--json'])).out).find((one: any) => one.check === name).ok;
    const withLine = (options: { appendOnly: boolean; before: string }) => { fs.writeFileSync(keys, ''); storage.authorize(key, 'web1', options); };
    withLine({ appendOnly: false, before: 'true' });
    assert.equal(await says(), false);
    fs.writeFileSync(keys, '');
    storage.authorizeLine(`command="borg serve --append-only --restrict-to-path ${path.dirname(repository)}",restrict ${key}`);
    assert.equal(await says('other paths refused'), false, 'every repository below the folder can be reached');
    withLine({ appendOnly: true, before: 'export BORG_SHOW_SYSINFO=no' });
    assert.equal(await says(), true);
    withLine({ appendOnly: false, before: 'export BORG_SHOW_SYSINFO=no' });
    assert.equal(await says(), false);
    execFileSync('sed', ['-i', 's/^append_only = .*/append_only = 1/', path.join(repository, 'config')]);
    assert.equal(await says(), true, 'the repository itself is set so');
    execFileSync('sed', ['-i', 's/^append_only = .*/append_only = 0/', path.join(repository, 'config')]);
    const archives = server.archives();
    withLine({ appendOnly: true, before: 'case $SSH_ORIGINAL_COMMAND in *serve*) exit 1;; esac' });
    assert.equal(await says(), null);
    withLine({ appendOnly: true, before: 'true' });
    assert.deepEqual(server.archives(), archives);
  });

  test('a storage whose host key has changed is not spoken to', async () => {
    fs.writeFileSync(path.join(etc, 'known_hosts'), `[127.0.0.1]:${storage.port} ${fs.readFileSync(path.join(etc, 'ssh_key.pub'), 'utf8')}`);
    const ended = await server.run(['setup', '--yes']);
    assert.equal(ended.code, 2);
    assert.match(ended.err, /hint: the storage's host key is not the one in `knownHostsFile`: ask its keeper/);
  });

  test('a storage that hangs up at once, as sshd does after failed logins, is not taken for a wrong address', async () => {
    const busy = net.createServer((socket) => socket.destroy()).listen(0, '127.0.0.1');
    await once(busy, 'listening');
    server.writeSettings({ repository: `ssh://borg@127.0.0.1:${(busy.address() as net.AddressInfo).port}/./web1` });
    const ended = await server.run(['setup', '--yes']);
    busy.close();
    assert.equal(ended.code, 2);
    assert.match(ended.err, /hint: the storage hangs up at once\..*wait, and try again/);
  });
});
