// Coming back: restore into a folder, and find, on a real repository over ssh.
import './alone.ts';
import { after, before, describe, test } from 'node:test';
import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import fs from 'node:fs';
import path from 'node:path';
import { makeCluster } from './cluster.ts';
import type { TestCluster } from './cluster.ts';
import { startStorage } from './storage.ts';
import type { Storage } from './storage.ts';
import { makeServer, start, testFolder } from './script.ts';
import type { Server } from './script.ts';

const isRoot = process.getuid?.() === 0;
if (!isRoot && process.env.COLD_BACKUP_NO_SKIP) throw new Error('restoring owners needs root');

describe('coming back', { skip: isRoot ? false : 'restoring owners needs root' }, () => {
  const top = testFolder('restore'), data = path.join(top, 'data');
  let storage: Storage, server: Server, cluster: TestCluster, rows: unknown;

  const facts = (folder: string) => execFileSync('find', ['.', '-printf', '%P\\t%y\\t%m\\t%U\\t%G\\t%s\\t%T@\\t%n\\t%l\\0'], { cwd: folder, encoding: 'latin1' }).split('\0')
    .map((line) => line.replace(/^([^\t]*\td\t(?:[^\t]*\t){3})\d+/, '$1')).sort();

  before(async () => {
    fs.mkdirSync(path.join(data, 'sub folder'), { recursive: true });
    fs.writeFileSync(path.join(data, 'plan.pdf'), 'first');
    fs.writeFileSync(path.join(data, 'twice'), 'one file, two names');
    fs.linkSync(path.join(data, 'twice'), path.join(data, 'sub folder', 'same "plan"\n.pdf'));
    fs.symlinkSync('../plan.pdf', path.join(data, 'sub folder', 'link'));
    fs.writeFileSync(path.join(data, 'secret'), 'x', { mode: 0o4600 });
    fs.chownSync(path.join(data, 'secret'), 12345, 54321);
    execFileSync('truncate', ['--size=50M', path.join(data, 'holes')]);
    execFileSync('python3', ['-c', `import os; os.setxattr(${JSON.stringify(path.join(data, 'plan.pdf'))}, 'user.note', b'kept')`]);
    storage = await startStorage(path.join(top, 'storage'));
    cluster = await makeCluster({ folder: path.join(top, 'pg'), version: '15-debian', port: 5471, tablespace: true, walElsewhere: true });
    await cluster.sql('postgres', 'create table t as select i, md5(i::text) from generate_series(1, 5000) i');
    rows = await cluster.fingerprint();
    server = await makeServer(path.join(top, 'server'), 'web1', storage, { stop: [`postgres ${cluster.dataDirectory}`], folders: [data] });
    const first = await server.run();
    assert.equal(first.code, 0, first.out + first.err);
    fs.writeFileSync(path.join(data, 'plan.pdf'), 'second version');
    const second = await server.run();
    assert.equal(second.code, 0, second.out + second.err);
  });
  after(async () => {
    await cluster?.destroy();
    storage?.destroy();
  });

  test('a whole archive comes back into an empty folder as it was: owners, modes, hard links, holes, attributes', async () => {
    const to = path.join(top, 'back');
    const ended = await server.run(['restore', 'latest', '--to', to]);
    assert.equal(ended.code, 1, ended.out + ended.err); // it warns of the links that lead to the running cluster
    assert.match(ended.err, /--mend-links/);
    assert.deepEqual(facts(path.join(to, data)), facts(data));
    assert.ok(fs.statSync(path.join(to, data, 'holes')).blocks * 512 < 1e6, 'holes stay holes');
    assert.equal(execFileSync('python3', ['-c', `import os; print(os.getxattr(${JSON.stringify(path.join(to, data, 'plan.pdf'))}, 'user.note').decode())`], { encoding: 'utf8' }).trim(), 'kept');
    assert.equal(fs.statSync(path.join(to, top)).mode & 0o777, 0o755, 'folders above are as they were');
  });

  test('a cluster that was restored elsewhere with mended links starts there and has every row', async () => {
    const to = path.join(top, 'cluster-back');
    const ended = await server.run(['restore', 'latest', ...['data', 'wal', 'tablespace'].map((one) => path.join(top, 'pg', one)), '--to', to, '--mend-links']);
    assert.equal(ended.code, 0, ended.out + ended.err);
    const folder = path.join(to, cluster.dataDirectory), home = path.join(to, top, 'pg');
    for (const link of [path.join(folder, 'pg_wal'), ...fs.readdirSync(path.join(folder, 'pg_tblspc')).map((oid) => path.join(folder, 'pg_tblspc', oid))]) {
      assert.ok(fs.realpathSync(link).startsWith(`${to}/`), `${link} stays inside`);
    }
    fs.chmodSync(to, 0o755);
    execFileSync('install', ['-d', '-o', 'postgres', path.join(home, 'socket')]);
    execFileSync('chown', ['postgres:', home]);
    // The original runs: it has the socket and the port that the configuration names.
    fs.appendFileSync(path.join(folder, 'postgresql.conf'), `\nunix_socket_directories = '${home}/socket'\nport = 5472\n`);
    const copy = await makeCluster({ folder: home, version: '15-debian', port: 5472 });
    try {
      assert.deepEqual(await copy.fingerprint(), rows);
    } finally {
      await copy.stop();
    }
  });

  test('find shows the versions of a file, newest first, and restore brings an old one back', async () => {
    const found = await server.run(['find', 'plan.pdf', '--json']);
    assert.equal(found.code, 0, found.err);
    const plan = JSON.parse(found.out).find((one: any) => one.path === path.join(data, 'plan.pdf'));
    assert.deepEqual(plan.versions.map((one: any) => one.bytes), [14, 5]);
    const to = path.join(top, 'old');
    const ended = await server.run(['restore', plan.versions[1].archives[0], path.join(data, 'plan.pdf'), '--to', to]);
    assert.equal(ended.code, 0, ended.out + ended.err);
    assert.equal(fs.readFileSync(path.join(to, data, 'plan.pdf'), 'utf8'), 'first');
    assert.deepEqual(fs.readdirSync(path.join(to, data)), ['plan.pdf'], 'nothing else came with it');
    assert.match((await server.run(['find', '*.PDF'])).out + (await server.run(['find', 'no such file'])).out, /no archive holds/);
    assert.match((await server.run(['find', '*plan?.pdf'])).out, /no archive holds|plan/);
  });

  test('nothing is ever extracted over something, and what is not there is said before anything is written', async () => {
    const used = path.join(top, 'used');
    fs.mkdirSync(used);
    fs.writeFileSync(path.join(used, 'mine'), 'mine');
    const over = await server.run(['restore', 'latest', '--to', used]);
    assert.equal(over.code, 64);
    assert.match(over.err, /not an empty folder/);
    assert.deepEqual(fs.readdirSync(used), ['mine']);
    const to = path.join(top, 'never');
    const missing = await server.run(['restore', 'latest', '/no/such/file', '--to', to]);
    assert.equal(missing.code, 2);
    assert.match(missing.err, /not in web1-.*: \/no\/such\/file/);
    assert.equal(fs.existsSync(to), false);
    for (const words of [['restore', 'latest'], ['restore', '--to', to], ['restore', 'web1-2000-01-01T00:00:00', '--to', to]]) {
      assert.ok([2, 64].includes((await server.run(words)).code), words.join(' '));
    }
    assert.equal(fs.existsSync(to), false);
  });

  test('a record that an intruder wrote cannot make --mend-links touch anything outside the folder', async () => {
    const victim = path.join(top, 'victim'), lure = path.join(top, 'lure');
    fs.mkdirSync(victim);
    fs.symlinkSync('/original', path.join(victim, 'sh'));
    fs.mkdirSync(path.join(lure, 'record'), { recursive: true });
    const manifest = JSON.parse(server.borg('extract', '--stdout', `::${server.archives().filter((one) => /^web1-[^w]*$/.test(one)).pop()}`, 'record/manifest.json'));
    for (const oid of [path.relative(path.join(top, 'hostile', cluster.dataDirectory, 'pg_tblspc'), path.join(victim, 'sh')), '16400']) {
      manifest.plan.clusters[0].tablespaces = [{ oid, location: '/evil', link: '/evil' }];
      fs.writeFileSync(path.join(lure, 'record', 'manifest.json'), JSON.stringify(manifest));
      fs.rmSync(path.join(lure, 'tmp'), { recursive: true, force: true });
      fs.mkdirSync(path.join(lure, cluster.dataDirectory), { recursive: true });
      fs.symlinkSync(victim, path.join(lure, cluster.dataDirectory, 'pg_tblspc'));
      fs.rmSync(path.join(victim, '16400'), { force: true });
      fs.symlinkSync('/original', path.join(victim, '16400'));
      const name = `web1-2026-01-01T00:00:0${oid === '16400' ? 1 : 2}`;
      execFileSync('borg', ['create', `::${name}`, 'record', 'tmp'], { cwd: lure, env: server.borgEnv(), stdio: 'ignore' });
      const ended = await server.run(['restore', name, '--to', path.join(top, `hostile${oid === '16400' ? 1 : ''}`), '--mend-links']);
      assert.notEqual(ended.code, 0);
      for (const link of ['sh', '16400']) assert.equal(fs.readlinkSync(path.join(victim, link)), '/original', `${link}: ${ended.err}`);
    }
  });

  test('a disk without room is refused before anything is written', async () => {
    const small = path.join(top, 'small');
    fs.mkdirSync(small);
    execFileSync('mount', ['-t', 'tmpfs', '-o', 'size=10m', 'tmpfs', small]);
    try {
      const ended = await server.run(['restore', 'latest', '--to', path.join(small, 'back')]);
      assert.equal(ended.code, 2);
      assert.match(ended.err, /free, .* are needed/);
      assert.deepEqual(fs.readdirSync(small), []);
    } finally {
      execFileSync('umount', [small]);
    }
  });

  test('on a bare machine repository, key and passphrase are enough to list, find and restore', async () => {
    const alone = path.join(top, 'bare'), to = path.join(alone, 'back');
    fs.mkdirSync(alone);
    fs.copyFileSync(server.script, path.join(alone, 'backup.js'));
    const etc = path.join(server.folder, 'etc');
    const options = ['--repository', storage.repository('web1'), '--key-file', `${etc}/borg_key`, '--passphrase-file', `${etc}/passphrase`];
    const run = (...words: string[]) => start([process.execPath, path.join(alone, 'backup.js'), ...words, ...options]).ended;
    assert.match((await run('list')).out, /web1-.* proven/);
    const ended = await run('restore', 'latest', data, '--to', to);
    assert.equal(ended.code, 0, ended.out + ended.err);
    assert.deepEqual(facts(path.join(to, data)), facts(data));
  });
});
