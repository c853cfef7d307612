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
import { onTerminal } from './night.ts';
import { makeServer, start, testFolder, waitFor } from './script.ts';
import type { Server } from './script.ts';

const isRoot = process.getuid?.() === 0;
if (!isRoot && process.env.COLD_BACKUP_NO_SKIP) throw new Error('restoring owners needs root');

describe('coming back', { skip: isRoot ? false : 'restoring owners needs root' }, () => {
  const top = testFolder('restore'), data = path.join(top, 'data');
  let storage: Storage, server: Server, cluster: TestCluster, rows: unknown, newest: string, recorded: string;
  const borgAtStorage = (...words: string[]) => execFileSync('borg', words, { env: { ...server.borgEnv(), BORG_REPO: storage.repository('web1') }, encoding: 'utf8', stdio: ['ignore', 'pipe', 'pipe'] }); // starts faster than by ssh

  const facts = (folder: string) => execFileSync('find', ['.', '-printf', '%P\\t%y\\t%m\\t%U\\t%G\\t%s\\t%T@\\t%n\\t%l\\0'], { cwd: folder, encoding: 'latin1' }).split('\0')
    .map((line) => line.replace(/^([^\t]*\td\t(?:[^\t]*\t){3})\d+/, '$1')).sort();

  const attributes = (folder: string) => execFileSync('getfacl', ['--absolute-names', '--numeric', '--recursive', '.'], { cwd: folder, encoding: 'utf8' })
    + execFileSync('python3', ['-c', `import os
for folder, _, files in sorted(os.walk('.')):
    for one in [folder] + [os.path.join(folder, file) for file in sorted(files)]:
        print(one, [(name, os.getxattr(one, name, follow_symlinks=False)) for name in sorted(os.listxattr(one, follow_symlinks=False))])`], { cwd: folder, encoding: 'utf8' });

  /** An archive that no run of ours made. Given its name, changes to the newest manifest, and tar's entries; it is made from a tar, so that it may hold anything. */
  function forge(name: string, changePlan: (plan: any) => void, entries: { path: string; type?: 'dir' | 'link' | 'hard'; to?: string; uid?: number; uname?: string; text?: string }[]): string {
    const manifest = JSON.parse(recorded);
    changePlan(manifest.plan);
    const all = [...entries, { path: 'record', type: 'dir' }, { path: 'record/manifest.json', text: JSON.stringify({ ...manifest, archive: name }) }];
    const tar = path.join(top, 'forged.tar');
    execFileSync('python3', ['-c', `import io, json, sys, tarfile
with tarfile.open(${JSON.stringify(tar)}, 'w', format=tarfile.PAX_FORMAT) as tar:
    for one in json.load(sys.stdin):
        info = tarfile.TarInfo(one['path'])
        info.type = {'dir': tarfile.DIRTYPE, 'link': tarfile.SYMTYPE, 'hard': tarfile.LNKTYPE}.get(one.get('type'), tarfile.REGTYPE)
        info.mode, info.linkname, info.uid, info.uname = 0o755 if one.get('type') == 'dir' else 0o644, one.get('to', ''), one.get('uid', 0), one.get('uname', '')
        text = one.get('text', '').encode()
        info.size = len(text) if info.type == tarfile.REGTYPE else 0
        tar.addfile(info, io.BytesIO(text))`], { input: JSON.stringify(all) });
    borgAtStorage('import-tar', `::${name}`, tar);
    return name;
  }

  before(async () => {
    fs.mkdirSync(path.join(data, 'sub folder'), { recursive: true });
    fs.writeFileSync(path.join(data, 'plan.pdf'), 'first');
    fs.writeFileSync(path.join(data, 'twice'), 'one file, two names');
    fs.linkSync(path.join(data, 'twice'), path.join(data, 'sub folder', 'same "plan"\n.pdf'));
    fs.symlinkSync('../plan.pdf', path.join(data, 'sub folder', 'link'));
    fs.writeFileSync(path.join(data, 'secret'), 'x', { mode: 0o4600 });
    fs.chownSync(path.join(data, 'secret'), 12345, 54321);
    execFileSync('truncate', ['--size=50M', path.join(data, 'holes')]);
    execFileSync('python3', ['-c', `import os; os.setxattr(${JSON.stringify(path.join(data, 'plan.pdf'))}, 'user.note', b'kept')
os.setxattr(${JSON.stringify(path.join(data, 'twice'))}, 'security.capability', bytes([1, 0, 0, 2, 0, 4] + [0] * 14))`]); // cap_net_bind_service=ep
    execFileSync('setfacl', ['--modify', 'user:12345:rw,group:54321:r', path.join(data, 'plan.pdf')]);
    execFileSync('setfacl', ['--modify', 'default:user:12345:rwx', path.join(data, 'sub folder')]);
    fs.chmodSync(path.join(data, 'sub folder'), 0o2771);
    storage = await startStorage(path.join(top, 'storage'));
    cluster = await makeCluster({ folder: path.join(top, 'pg'), version: 'debian', port: 5471, tablespace: true, walElsewhere: true });
    await cluster.sql('postgres', 'create table t as select i, md5(i::text) from generate_series(1, 5000) i');
    rows = await cluster.fingerprint();
    server = await makeServer(path.join(top, 'server'), 'web1', storage, { stop: [`postgres ${cluster.dataDirectory}`], folders: [data] }, { near: true });
    const first = await server.run();
    assert.equal(first.code, 0, first.out + first.err);
    fs.writeFileSync(path.join(data, 'plan.pdf'), 'second version');
    const second = await server.run();
    assert.equal(second.code, 0, second.out + second.err);
    newest = server.history().pop().archive;
    recorded = borgAtStorage('extract', '--stdout', `::${newest}`, 'record/manifest.json');
  });
  after(async () => {
    await cluster?.destroy();
    storage?.destroy();
  });

  test('a whole archive comes back into an empty folder as it was: owners, modes, ACLs, capabilities, hard links, holes', async () => {
    const to = path.join(top, 'back');
    const ended = await server.run(['restore', 'latest', '--to', to]);
    assert.equal(ended.code, 1, ended.out + ended.err); // it warns of the links that lead to the running cluster
    assert.match(ended.err, /--mend-links/);
    assert.deepEqual(facts(path.join(to, data)), facts(data));
    assert.ok(fs.statSync(path.join(to, data, 'holes')).blocks * 512 < 1e6, 'holes stay holes');
    assert.equal(fs.statSync(path.join(to, data, 'twice')).ino, fs.statSync(path.join(to, data, 'sub folder', 'same "plan"\n.pdf')).ino);
    const before = attributes(data);
    for (const word of ['user:12345:rw-', 'default:user:12345:rwx', 'user.note', 'security.capability']) assert.ok(before.includes(word), word);
    assert.equal(attributes(path.join(to, data)), before);
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
    const copy = await makeCluster({ folder: home, version: 'debian', port: 5472 });
    try {
      assert.deepEqual(await copy.fingerprint(), rows);
    } finally {
      await copy.stop();
    }
  });

  test('a part of an archive comes back with the folders above it as they were, and a terminal shows how far it is', async () => {
    const to = path.join(top, 'part'), file = path.join(data, 'sub folder', 'link');
    const { code, screen } = await onTerminal([process.execPath, server.script, 'restore', 'latest', file, `${data}/holes`, '--to', to]);
    assert.equal(code, 1, screen);
    assert.match(screen, /sub folder\/link" is a link to \.\.\/plan\.pdf: only the link is restored/);
    assert.match(screen, /restore: \d+ % of 52\.4 MB/);
    assert.match(screen, /restored 2 files, 52\.4 MB/);
    assert.equal(fs.readlinkSync(path.join(to, file)), '../plan.pdf');
    assert.deepEqual(fs.readdirSync(path.join(to, data)).sort(), ['holes', 'sub folder'], 'nothing else came with it');
    assert.deepEqual([fs.statSync(path.join(to, data, 'sub folder')).mode & 0o7777, fs.statSync(path.join(to, data)).mode & 0o7777], [0o2771, fs.statSync(data).mode & 0o7777]);
    const beyond = await server.run(['restore', 'latest', `${file}/x`, '--to', path.join(top, 'never')]);
    assert.deepEqual([beyond.code, /hint: .*link" is a link to \.\.\/plan\.pdf/.test(beyond.err)], [2, true], beyond.err);
  });

  test('what lies in a container volume comes back by number, all else by the name of its owner', async () => {
    const volume = path.join(top, 'volumes', 'shop', '_data'), uid = Number(execFileSync('id', ['-u', 'postgres'], { encoding: 'utf8' }));
    const owned = (file: string) => ({ path: file.slice(1), uid: 4321, uname: 'postgres', text: file });
    const name = forge('web1-2026-01-02T00:00:00', (plan) => plan.roots.push({ path: volume, why: 'volume shop', strict: true }),
      [{ ...owned(`${data}/host`), type: 'dir' }, owned(`${data}/host/file`), { ...owned(volume), type: 'dir' }, { ...owned(`${volume}/deep`), type: 'dir' }, owned(`${volume}/deep/file`)]);
    for (const [index, paths] of [[], [`${data}/host/file`, `${volume}/deep/file`]].entries()) {
      const to = path.join(top, `numbers${index}`), ended = await server.run(['restore', name, ...paths, '--to', to]);
      assert.equal(ended.code, 1, ended.out + ended.err);
      assert.match(ended.err, /is not proven: it does not count as a backup/);
      assert.deepEqual(['host', 'host/file'].map((file) => fs.statSync(path.join(to, data, file)).uid), [uid, uid]);
      assert.deepEqual(['', 'deep', 'deep/file'].map((file) => fs.statSync(path.join(to, volume, file)).uid), [4321, 4321, 4321]);
    }
  });

  test('an archive made to write outside the folder is refused before anything is written; plain borg would do it', async () => {
    const victim = path.join(top, 'outside'), to = path.join(top, 'trap', 'folder'), link = `${data.slice(1)}/link`, volume = path.join(data, 'deep', 'volume');
    fs.mkdirSync(victim);
    fs.writeFileSync(path.join(victim, 'mine'), 'mine');
    const up = `x/${'../'.repeat(3)}${path.basename(top)}`; // from FOLDER
    const traps: [RegExp, boolean, Parameters<typeof forge>[2]][] = [
      [/lies below .*link, a link/, true, [{ path: link, type: 'link', to: victim }, { path: `${link}/file`, text: 'evil' }]],
      [/file leads out of it/, true, [{ path: 'x', type: 'dir' }, { path: `${up.slice(0, -path.basename(top).length)}outside/file`, text: 'evil' }]],
      [/hard leads out of it/, true, [{ path: 'x', type: 'dir' }, { path: 'hard', type: 'hard', to: 'x/../../../outside/mine' }]],
      [/volume lies below .*deep, a link/, false, [{ path: `${volume.slice(1)}/file`, text: 'evil' }, { path: path.dirname(volume).slice(1), type: 'link', to: victim }]], // by number, so after the link
    ];
    for (const [index, [says, byBorg, entries]] of traps.entries()) {
      const name = forge(`web1-2026-01-03T00:00:0${index}`, (plan) => plan.roots.push({ path: volume, why: 'volume trap', strict: true }), entries);
      const ended = await server.run(['restore', name, '--to', to]);
      assert.equal(ended.code, 2, ended.out + ended.err);
      assert.match(ended.err, says);
      assert.equal(fs.existsSync(to), false);
      const isHarmed = () => fs.existsSync(path.join(victim, 'file')) || fs.statSync(path.join(victim, 'mine')).nlink > 1;
      assert.equal(isHarmed(), false, ended.err);
      if (!byBorg) continue;
      fs.mkdirSync(to, { recursive: true });
      execFileSync('borg', ['extract', `::${name}`], { cwd: to, env: { ...server.borgEnv(), BORG_REPO: storage.repository('web1') } });
      assert.equal(isHarmed(), true, `borg refuses ${JSON.stringify(entries)} by itself`);
      fs.rmSync(path.join(top, 'trap'), { recursive: true });
      fs.rmSync(path.join(victim, 'file'), { force: true });
    }
  });

  test('a signal while files come back ends it as a signal does', async () => {
    const bin = path.join(top, 'bin'), held = path.join(top, 'held');
    fs.mkdirSync(bin);
    fs.writeFileSync(path.join(bin, 'borg'), `#!/bin/sh\ncase " $* " in *" extract --sparse "*) touch ${held}; exec sleep 300;; esac\nPATH=\${PATH#*:} exec borg "$@"\n`, { mode: 0o755 });
    const running = server.start(['restore', 'latest', data, '--to', path.join(top, 'broken off')], { env: { PATH: `${bin}:${process.env.PATH}` } });
    await waitFor('it extracts', () => fs.existsSync(held));
    running.signal('SIGTERM');
    const ended = await running.ended;
    assert.deepEqual([ended.code, /error: ended by SIGTERM/.test(ended.err)], [143, true], ended.out + ended.err);
  });

  test('`latest` is the newest proven archive; an unproven one is warned of, a copy of the running system is only looked at', async () => {
    const file = { path: 'later', text: 'x' }, warm = 'web1-2099-01-02T00:00:00-warm.checkpoint', unproven = 'web1-2099-01-01T00:00:00', to = path.join(top, 'later');
    for (const name of [warm, unproven]) forge(name, () => {}, [file]);
    try {
      const listed = await server.run(['list', 'latest', '/later']);
      assert.deepEqual([listed.code, listed.err.includes(`not in ${newest}: /later`)], [2, true], listed.err);
      const looked = await server.run(['list', warm, '/later']);
      assert.deepEqual([looked.code, / \/later$/m.test(looked.out)], [0, true], looked.err);
      const refused = await server.run(['restore', warm, '--to', to]);
      assert.deepEqual([refused.code, /copy of the running system/.test(refused.err), /hint: .*borg extract ::web1-2099/.test(refused.err), fs.existsSync(to)], [2, true, true, false], refused.err);
      const named = await server.run(['list', unproven, 'later', '--json']);
      assert.deepEqual([named.code, /not proven: it does not count as a backup/.test(named.err), JSON.parse(named.out)[0].path], [1, true, 'later'], named.err);
    } finally {
      borgAtStorage('delete', `::${warm}`, unproven);
    }
  });

  test('find shows the versions of a file, newest first, and restore brings an old one back', async () => {
    const found = await server.run(['find', 'plan.pdf', '--json']);
    assert.equal(found.code, 0, found.err);
    const plan = JSON.parse(found.out).find((one: any) => one.path === path.join(data, 'plan.pdf'));
    assert.deepEqual(plan.versions.map((one: any) => one.bytes), [14, 5]);
    const words = await server.run(['find', `${data}/s*n"?.pdf`]);
    assert.match(words.out, /^[\d:]+ searching \d+ archives, newest first: about .*\n".*\/same \\"plan\\"\\n\.pdf"\n  changed .* (19 B|hard link of \S+\/data\/twice)  in web1-.* and \d+ more, the oldest web1-[^\n]*\n$/, 'a name stays on its line');
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
