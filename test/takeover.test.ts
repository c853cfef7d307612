// A server that had another tool before: its repository is taken over with its history. And a server that has no settings yet: the walk, on a real
// terminal, and the same answers as options.
import './alone.ts';
import assert from 'node:assert/strict';
import { execFileSync, spawn } from 'node:child_process';
import fs from 'node:fs';
import path from 'node:path';
import { after, before, describe, test } from 'node:test';
import { distFile, makeServer, start, testFolder, waitFor } from './script.ts';
import type { Server } from './script.ts';
import { startStorage } from './storage.ts';
import type { Storage } from './storage.ts';
import { makeOperator, speakProtocol, verdictOf } from './operator.ts';
import { cannotRunHere } from './night.ts';

const OLD = 'web1-2026-11-20T02:00:12.123456', ALIKE = ['web1-2026-11-20T02:00:00', 'web1-data-2026-11-20T02:00:00']; // as borgmatic names them; `{hostname}-{now}` looks like ours

describe('what was there before', { skip: cannotRunHere() }, () => {
  const folder = testFolder('takeover'), files = path.join(folder, 'files'), etc = path.join(folder, 'server/etc');
  let storage: Storage;
  before(async () => {
    fs.mkdirSync(files);
    fs.writeFileSync(path.join(files, 'one'), 'here I am\n');
    storage = await startStorage(path.join(folder, 'storage'));
  });
  after(() => storage?.destroy());

  const borg = (words: string[], env: NodeJS.ProcessEnv = {}, input?: string) => execFileSync('borg', words,
    { input, encoding: 'utf8', stdio: ['pipe', 'pipe', 'pipe'], env: { ...process.env, BORG_REPO: storage.repository('web1'), BORG_PASSPHRASE: 'of the tool before', BORG_BASE_DIR: path.join(folder, 'before'), ...env } });

  // A home folder in which borg keeps the key of a repository that has nothing to do with this.
  const homeWithKey = (name: string): string => {
    const home = path.join(folder, name);
    fs.mkdirSync(home);
    borg(['init', '--encryption', 'keyfile-blake2'], { BORG_REPO: path.join(home, 'other'), BORG_BASE_DIR: home });
    assert.equal(fs.readdirSync(path.join(home, '.config/borg/keys')).length, 1);
    return home;
  };

  test('a repository of borgmatic, with its key in the repository, is taken over: list, restore, nights, audit, and the key comes back when an intruder overwrites it', async () => {
    borg(['init', '--encryption', 'repokey-blake2']);
    for (const name of [OLD, ...ALIKE]) borg(['create', `::${name}`, files]);
    const server: Server = await makeServer(path.join(folder, 'server'), 'web1', storage, { folders: [files], warmPass: false }, { setUp: false });
    await server.run(['setup', '--yes']);
    storage.authorize(fs.readFileSync(`${etc}/ssh_key.pub`, 'utf8'), 'web1');
    const home = homeWithKey('root-of-web1'); // root has another borg, too
    const refused = await server.run(['setup', '--yes'], { env: { HOME: home } });
    assert.ok(!fs.existsSync(`${etc}/borg_key`), 'the key of another repository is not this one\'s');
    assert.equal(refused.code, 2, refused.out + refused.err);
    assert.match(refused.err, /the repository is there, but its key or passphrase is not here/);
    assert.match(refused.err, /hint: .*setup --passphrase-file FILE/);
    assert.ok(!fs.existsSync(`${etc}/passphrase`), 'a new passphrase would only confuse');
    fs.writeFileSync(path.join(folder, 'old-passphrase'), 'of the tool before\n', { mode: 0o600 });
    const ended = await server.run(['setup', '--yes', '--passphrase-file', path.join(folder, 'old-passphrase')]);
    assert.equal(ended.code, 0, ended.out + ended.err);
    assert.match(ended.out + ended.err, /the repository is there \(repokey-blake2\)/);
    assert.match(fs.readFileSync(`${etc}/borg_key`, 'utf8'), /^BORG_KEY [0-9a-f]{64}\n/);

    assert.match((await server.run(['list'])).out, new RegExp(`^${OLD} +other`, 'm'));
    const back = await server.run(['restore', OLD, '--to', path.join(folder, 'back')]);
    assert.equal(back.code, 1, back.out + back.err);
    assert.match(back.err, /was not written by this script: nothing proves that it was cold/);
    assert.equal(fs.readFileSync(path.join(folder, 'back', files, 'one'), 'utf8'), 'here I am\n');
    const night = await server.run();
    assert.equal(night.code, 0, night.out + night.err);
    const kinds = JSON.parse((await server.run(['list', '--json'])).out).map(({ kind }: any) => kind);
    assert.deepEqual(kinds, ['other', 'other', 'other', 'proven']);
    const alike = await server.run(['restore', ALIKE[1]!, '--to', path.join(folder, 'back-alike')]);
    assert.deepEqual([alike.code, fs.existsSync(path.join(folder, 'back-alike', files, 'one'))], [1, true], alike.out + alike.err);

    const operator = makeOperator(path.join(folder, 'op'), storage, server);
    const first = await operator.run(['audit']);
    assert.equal(first.code, 0, first.out + first.err);
    assert.match(first.out, /first audit: it trusts what it found/);
    const fates = (await operator.run(['prune', '--dry-run'])).out;
    for (const name of [OLD, ...ALIKE]) assert.match(fates, new RegExp(`keep +${name} .*not written by backup\\.js`));

    speakProtocol(server, ['repository.save_key(b"garbage")']);
    const { rules, all } = verdictOf(await operator.run(['audit', '--undo-plan', '--json']));
    assert.deepEqual(rules, ['R7'], JSON.stringify(all.findings));
    const command = /^borg key import .*$/m.exec(all.undoPlan)![0].replace('ESCROWED-KEY-FILE', path.join(operator.folder, 'borg_key')).replace(storage.url('web1'), storage.repository('web1'));
    execFileSync('sh', ['-c', command], { env: { ...process.env, BORG_BASE_DIR: path.join(folder, 'import') }, stdio: 'pipe' });
    assert.deepEqual(verdictOf(await operator.run(['audit', '--json'])).all.findings, []);
    assert.match((await server.run(['list'])).out, /proven/);
  });

  test('a key file where borg keeps it is found', async () => {
    const home = path.join(folder, 'home'), keys = path.join(home, '.config/borg/keys');
    fs.mkdirSync(home);
    borg(['init', '--encryption', 'keyfile-blake2'], { BORG_REPO: storage.repository('web2'), BORG_BASE_DIR: home, BORG_KEYS_DIR: keys });
    const server = await makeServer(path.join(folder, 'server2'), 'web2', storage, { folders: [files], repository: storage.repository('web2') }, { setUp: false });
    fs.writeFileSync(path.join(folder, 'server2/etc/passphrase'), 'of the tool before\n', { mode: 0o600 });
    const ended = await server.run(['setup', '--yes'], { env: { HOME: home } });
    assert.equal(ended.code, 0, ended.out + ended.err);
    assert.equal(fs.readFileSync(path.join(folder, 'server2/etc/borg_key'), 'utf8'), fs.readFileSync(path.join(keys, fs.readdirSync(keys)[0]!), 'utf8'));
  });

  test('a storage that cannot serve is told as that, not as a repository that is there, and when it can, the repository is made', async () => {
    const server = await makeServer(path.join(folder, 'server6'), 'web6', storage, { folders: [files] }, { setUp: false });
    const env = { HOME: homeWithKey('root-of-web6') }, own = path.join(folder, 'server6/etc'), keys = path.join(storage.folder, 'authorized_keys'), was = fs.readFileSync(keys, 'utf8');
    await server.run(['setup', '--yes'], { env });
    storage.authorize(fs.readFileSync(`${own}/ssh_key.pub`, 'utf8'), 'web6', { before: 'exit 127' }); // borg is not installed there yet
    const refused = await server.run(['setup', '--yes'], { env });
    assert.equal(refused.code, 2, refused.out + refused.err);
    assert.match(refused.err, /^backup: error: the repository cannot be reached yet/m);
    assert.doesNotMatch(refused.err, /the repository is there|do not make new ones/);
    assert.deepEqual(fs.readdirSync(own).sort(), ['known_hosts', 'ssh_key', 'ssh_key.pub']);
    fs.writeFileSync(keys, was);
    fs.rmSync(`${own}/ssh_key.pub`); // whoever brought the key kept only the private half
    storage.authorize(execFileSync('ssh-keygen', ['-y', '-f', `${own}/ssh_key`], { encoding: 'utf8' }), 'web6');
    const ended = await server.run(['setup', '--yes'], { env });
    assert.equal(ended.code, 0, ended.out + ended.err);
    assert.match(ended.out, /made the repository and its key/);
    assert.match(ended.out, /^command="borg serve .*",restrict ssh-ed25519 /m);
  });

  test('a key or passphrase that is there is never overwritten', async () => {
    const server = await makeServer(path.join(folder, 'server3'), 'web3', storage, { folders: [files] }, { near: true });
    const was = fs.readFileSync(path.join(folder, 'server3/etc/passphrase'), 'utf8');
    const ended = await server.run(['setup', '--yes', '--passphrase-file', path.join(folder, 'old-passphrase')]);
    assert.equal(ended.code, 64);
    assert.match(ended.err, /is there already, and is another one than/);
    assert.equal(fs.readFileSync(path.join(folder, 'server3/etc/passphrase'), 'utf8'), was);
    assert.equal((await server.run(['setup', '--yes', '--repository', '/srv/other'])).code, 64);
    for (const [option, value, why] of [['--key-file', path.join(folder, 'nosuch'), /nosuch: there is no such file/], ['--quota', '500 GB', /--quota: must be like 500G/]] as const) {
      const wrong = await server.run(['setup', '--yes', option, value]);
      assert.equal(wrong.code, 64, wrong.out + wrong.err);
      assert.match(wrong.err, why);
    }
  });

  // The script alone in a folder, with the default places for its files moved into it.
  const bareScript = (name: string): string => {
    const place = path.join(folder, name), script = path.join(place, 'backup.js');
    fs.mkdirSync(place);
    fs.writeFileSync(script, fs.readFileSync(distFile, 'utf8').replaceAll("'/etc/cold-backup/", `'${place}/etc/`).replaceAll("'/var/lib/cold-backup'", `'${place}/state'`));
    return script;
  };

  test('without settings and without a terminal, all answers are options', async () => {
    const script = bareScript('options'), run = (...words: string[]) => start([process.execPath, script, ...words]).ended;
    const nothing = await run('setup', '--yes');
    assert.equal(nothing.code, 64);
    assert.match(nothing.err, /there are no settings yet/);
    const wrongs: [string, string, RegExp][] = [
      ['--window', '01:00-05:30', /window\.timeZone must be a time zone/], ['--window', '1:00-05:30 Africa/Maputo', /window\.from must be a time .* not '1:00'/], ['--window', '25:00-05:30 UTC', /window\.from must be a time/],
      ['--window', '01:00-05:30 Afrika/Maputo', /did you mean "Africa\/Maputo"/], ['--window', 'at night', /window\.from must be a time/], ['--quota', '500 GB', /must be like 500G/], ['--quota', '20g', /must be like 500G/],
      ['--quota', '500', /no less than 10M/], ['--stop', 'nginx', /word 1 must start with service/], ['--stop', 'container nosuch', /there is no such container here/], ['--folders', 'srv/files', /must be a whole path/],
      ['--folders', '/nosuch', /not here: \/nosuch/], ['--server', 'proven-web', /server must be/], ['--repository', 'ssh://borg:secret@storage/./web', /holds a password/], ['--volumes', 'shop files', /word 1 must be a name/],
    ];
    for (const [option, value, why] of wrongs) {
      const refused = await run('setup', '--yes', ...(option === '--repository' ? [] : ['--repository', storage.repository('web4')]), ...(option === '--folders' ? [] : ['--folders', files]), option, value);
      assert.equal(refused.code, 64, `${option} ${value}: ${refused.out}${refused.err}`);
      assert.match(refused.err, new RegExp(`^backup: error: ${option}: .*${why.source}`, 'm'));
      assert.doesNotMatch(refused.err, /secret/);
    }
    assert.equal((await run('setup', '--yes', '--repository', storage.repository('web4'))).code, 64, 'there is nothing to save');
    assert.deepEqual(fs.readdirSync(path.dirname(script)), ['backup.js'], 'nothing is written before all is right: what is written is no longer asked');
    const ended = await run('setup', '--yes', '--server', 'web4', '--repository', storage.repository('web4'), '--folders', files, '--window', '01:00-05:30 America/Port-au-Prince', '--language', 'es');
    assert.equal(ended.code, 0, ended.out + ended.err);
    const shown = JSON.parse((await run('--print-settings', '--json')).out);
    assert.deepEqual(Object.fromEntries(['server', 'folders', 'window', 'language'].map((key) => [key, shown[key].value])),
      { server: 'web4', folders: [files], window: { from: '01:00', until: '05:30', timeZone: 'America/Port-au-Prince' }, language: 'es' });
    assert.equal((await run('--now')).code, 0);
    const doctor = JSON.parse((await run('doctor', '--json')).out), check = (name: string) => doctor.find((one: any) => one.check === name);
    assert.equal(check('sheet kept apart').ok, false);
    for (const name of ['clock', 'free space', 'unsaved', 'key exported']) assert.ok(check(name), name);
  });

  test('Ctrl-C and Ctrl-D at a question call the walk off, with nothing written', async () => {
    for (const [index, key] of ['\x03', '\x04'].entries()) {
      const script = bareScript(`called-off-${index}`);
      const child = spawn('script', ['-qefc', `exec ${process.execPath} ${script} setup`, '/dev/null'], { stdio: ['pipe', 'pipe', 'inherit'], env: { ...process.env, TERM: 'dumb' } });
      let said = '';
      child.stdout.on('data', (piece) => { said += piece; });
      const ended = new Promise<number>((resolve) => { child.on('close', (code) => resolve(code ?? 2)); });
      await waitFor('the first question', () => /name of this server/.test(said), 60);
      child.stdin.write(key);
      assert.equal(await ended, 130, said);
      assert.match(said, /error:.* called off\r?\n {2}hint: /);
      assert.doesNotMatch(said, /bug/);
      assert.deepEqual(fs.readdirSync(path.dirname(script)), ['backup.js']);
    }
  });

  test('Ctrl-C while an answer is looked at calls the walk off, too', async () => {
    const script = bareScript('called-off-looking'), bin = path.join(folder, 'bin-of-docker'), looking = path.join(bin, 'looking');
    fs.mkdirSync(bin);
    fs.writeFileSync(path.join(bin, 'docker'), `#!/bin/sh\n[ "$*" = "ps --quiet" ] || { touch ${looking}; sleep 3; }\nexit 1\n`, { mode: 0o755 });
    const child = spawn('script', ['-qefc', `exec ${process.execPath} ${script} setup`, '/dev/null'], { stdio: ['pipe', 'pipe', 'inherit'], env: { ...process.env, TERM: 'dumb', PATH: `${bin}:${process.env.PATH}` } });
    let said = '';
    child.stdout.on('data', (piece) => { said += piece; });
    const ended = new Promise<number>((resolve) => { child.on('close', (code) => resolve(code ?? 2)); });
    for (const [question, answer] of [[/name of this server/, 'web7'], [/Where do the archives go/, storage.url('web7')], [/What is stopped/, 'container nosuch']] as const) {
      await waitFor(`the question ${question}`, () => question.test(said), 60);
      child.stdin.write(`${answer}\r`);
    }
    await waitFor('it looks', () => fs.existsSync(looking), 20);
    child.stdin.write('\x03');
    assert.equal(await ended, 130, said);
    assert.match(said, /error:.* called off\r?\n {2}hint: /);
    assert.doesNotMatch(said, /bug|UnhandledPromise|node:internal/);
    assert.deepEqual(fs.readdirSync(path.dirname(script)), ['backup.js']);
  });

  test('the walk: questions on a terminal, a settings file, the line for the storage, the sheet, and the server is ready', async () => {
    const script = bareScript('walk'), place = path.dirname(script), bin = path.join(folder, 'bin-without-docker');
    fs.mkdirSync(bin);
    fs.writeFileSync(path.join(bin, 'docker'), '#!/bin/sh\nexit 127\n', { mode: 0o755 }); // where no container is, volumes are not asked for
    const child = spawn('script', ['-qefc', `${process.execPath} ${script} setup`, '/dev/null'], { stdio: ['pipe', 'pipe', 'inherit'], env: { ...process.env, TERM: 'dumb', PATH: `${bin}:${process.env.PATH}` } });
    let said = '', from = 0;
    child.stdout.on('data', (piece) => { said += piece; });
    process.on('exit', () => child.kill('SIGKILL'));
    const ended = new Promise<number>((resolve) => { child.on('close', (code) => resolve(code ?? 2)); });
    const answer = async (question: RegExp, text: string) => {
      await waitFor(`the question ${question}, after: ${said.slice(from)}`, () => question.test(said.slice(from)), 60).catch((error) => { throw new Error(`${error.message}\n${said}`); });
      from = said.length;
      child.stdin.write(`${text}\r`);
    };
    await answer(/name of this server/, 'web5');
    await answer(/Where do the archives go/, storage.url('web5'));
    await answer(/What is stopped/, 'container nosuch');
    await answer(/container nosuch: there is no such container here\. Write it anew, or the same once more to keep it\s+What is stopped/, '');
    await answer(/Which folders/, `${files}/gone`);
    await answer(/not here: \S+\/gone\. Write it anew[^]*Which folders/, files);
    await answer(/Between which hours/, '01:00-05:30 Afrika/Maputo');
    await answer(/must be a time zone like 'Africa\/Maputo', not 'Afrika\/Maputo'[^]*Between which hours/, '01:00-05:30 Afrika/Maputo');
    await answer(/not 'Afrika\/Maputo'[^]*Between which hours/, 'any'); // not believed the second time, either: no run would begin with it
    await answer(/Language/, 'en');
    await answer(/Is this the storage\?/, 'yes');
    await answer(/How much may this server store/, '20g');
    await answer(/not understood[^]*How much may this server store/, '20G'); // borg knows only capitals
    await waitFor(`the line, after: ${said.slice(from)}`, () => /command="borg serve.*\r?\n/.test(said));
    await waitFor('the question whether the line is there', () => /Is the line in its place now/.test(said.slice(from)));
    storage.authorizeLine(/command="borg serve.*/.exec(said)![0].trim());
    assert.match(said.slice(from), /The storage does not accept this server's key yet: the line above is not there, is broken in two, or lies in a file that its user may not read \(ssh said: .*Permission denied/);
    await answer(/Is the line in its place now/, 'yes');
    await answer(/recovery sheet .* printed/, 'yes');
    await answer(/Start it every night/, 'no');
    assert.equal(await ended, 0, said);
    assert.match(said, /--storage-quota 20G/);
    assert.match(said, /made the repository and its key\s+Now that the repository is there, [^]*additional_free_space 2G'/);
    assert.match(said, /ok +quota/);
    assert.ok(!fs.existsSync(path.join(place, 'etc/recovery-sheet.txt')) && !fs.existsSync(path.join(place, 'etc/recovery-sheet.html')));
    assert.match(fs.readFileSync(path.join(place, 'backup.settings.js'), 'utf8'), /server: "web5"/);
    const again = await start([process.execPath, script, '--now']).ended;
    assert.equal(again.code, 0, again.out + again.err);
    const second = spawn('script', ['-qefc', `${process.execPath} ${script} setup`, '/dev/null'], { stdio: ['pipe', 'pipe', 'inherit'], env: { ...process.env, TERM: 'dumb' } });
    process.on('exit', () => second.kill('SIGKILL'));
    let then = '';
    second.stdout.on('data', (piece) => { then += piece; });
    const over = new Promise<number>((resolve) => { second.on('close', (code) => resolve(code ?? 2)); });
    await waitFor('the first question', () => /Start it every night|How much/.test(then), 60);
    second.stdin.write('no\r');
    assert.equal(await over, 0, then);
    assert.match(then, /this server's line is on the storage: \S*borg serve --append-only .*20G/);
    assert.doesNotMatch(then, /How much|command="/, 'the line is in its place: no second one');
  });

  test('a signal while setup runs a command calls it off, and is no failure of that command', async () => {
    const script = bareScript('signalled'), place = path.dirname(script), bin = path.join(place, 'bin');
    fs.mkdirSync(bin);
    fs.writeFileSync(path.join(bin, 'ssh-keygen'), `#!/bin/sh\ntouch ${place}/began\nsleep 60\n`, { mode: 0o755 });
    fs.writeFileSync(path.join(place, 'backup.settings.js'), `const settings = { server: 'web6', repository: '${storage.url('web6')}', folders: ['${files}'] };\n`, { mode: 0o600 });
    const child = spawn(process.execPath, [script, 'setup', '--yes'], { stdio: ['ignore', 'pipe', 'pipe'], env: { ...process.env, PATH: `${bin}:${process.env.PATH}` } });
    let said = '';
    for (const stream of [child.stdout, child.stderr]) stream.on('data', (piece) => { said += piece; });
    const ended = new Promise<number>((resolve) => { child.on('close', (code) => resolve(code ?? 2)); });
    await waitFor('the command', () => fs.existsSync(path.join(place, 'began')), 60);
    child.kill('SIGINT');
    assert.equal(await ended, 130, said);
    assert.match(said, /called off: ending what is under way\n[^]*error: called off\n {2}hint: what is there is kept: call setup again/);
    assert.doesNotMatch(said, /cannot be made|bug|started again/);
  });
});
