// What an intruder with a server's append-only key (and passphrase) can do to its repository. Each deed must be an alarm that names it, and
// after the printed plan every good archive is back. What is honest is no alarm.
import './alone.ts';
import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import fs from 'node:fs';
import path from 'node:path';
import { after, before, describe, test } from 'node:test';
import { makeServer, testFolder } from './script.ts';
import type { Server } from './script.ts';
import { startStorage } from './storage.ts';
import type { Storage } from './storage.ts';
import { makeOperator, plant, speakProtocol, verdictOf } from './operator.ts';
import type { OperatorHere } from './operator.ts';
import { cannotRunHere } from './night.ts';

describe('an intruder with the append-only key', { skip: cannotRunHere() }, () => {
  const folder = testFolder('attack'), files = path.join(folder, 'files'), kept = path.join(folder, 'kept');
  const changing = ['storage/repositories', 'server/state', 'server/other-borg', 'op/ledger'];
  let storage: Storage, server: Server, operator: OperatorHere, good: string[], last: number;

  const night = async (text: string) => {
    fs.writeFileSync(path.join(files, 'diary'), text.repeat(50_000));
    const ended = await server.run();
    assert.equal(ended.code, 0, ended.out + ended.err);
  };
  before(async () => {
    fs.mkdirSync(files);
    storage = await startStorage(path.join(folder, 'storage'));
    server = await makeServer(path.join(folder, 'server'), 'web1', storage, { folders: [files], warmPass: false });
    fs.writeFileSync(path.join(files, 'attachments'), Buffer.alloc(3_000_000, 'x'));
    for (const text of ['monday ', 'tuesday ', 'wednesday ']) await night(text);
    operator = makeOperator(path.join(folder, 'op'), storage, server);
    const ended = await operator.run(['audit', '--json']);
    assert.equal(verdictOf(ended).verdict, 'clean', ended.out + ended.err);
    good = server.archives(); // makes the cache of who looks from outside, too
    last = operator.book().mark.transaction;
    fs.mkdirSync(kept);
    for (const one of changing) execFileSync('cp', ['-a', '--parents', one, kept], { cwd: folder });
  });
  after(() => storage?.destroy());

  /** Everything as it was before the deed. */
  const asBefore = () => changing.forEach((one) => {
    fs.rmSync(path.join(folder, one), { recursive: true, force: true });
    execFileSync('cp', ['-a', path.join(kept, one), path.join(folder, one)]);
  });

  /** All the good archives are there with every byte, as the key's owner sees them on the storage's own disk. */
  const allIsBack = (how: 'checked' | 'checked and read' = 'checked') => {
    const env = { ...server.borgEnv(), BORG_REPO: storage.repository('web1'), BORG_BASE_DIR: fs.mkdtempSync(path.join(folder, 'fresh-')) };
    const names = execFileSync('borg', ['list', '--short', '--consider-checkpoints'], { env, encoding: 'utf8', stdio: ['ignore', 'pipe', 'pipe'] }).trim().split('\n');
    assert.deepEqual(names.filter((name) => good.includes(name)), good);
    execFileSync('borg', ['check', '--verify-data'], { env, stdio: ['ignore', 'pipe', 'pipe'] });
    if (how === 'checked') return;
    for (const [index, text] of ['monday ', 'tuesday ', 'wednesday '].entries()) {
      const cold = good.filter((name) => name.startsWith('web1-'))[index]!;
      assert.equal(execFileSync('borg', ['extract', '--stdout', `::${cold}`, `${files.slice(1)}/diary`], { env, encoding: 'utf8' }), text.repeat(50_000));
    }
  };

  /** Run what `audit --undo-plan` prints, as it is printed: on the storage, on the operator's computer, on the server. */
  const carryOut = async (parts: ('storage' | 'operator' | 'server')[], printed = '') => {
    const plan: string = printed || (await operator.run(['audit', '--undo-plan'])).out;
    const [, onStorage = '', onOperator = '', onServer = ''] = plan.split(/^# [1-4]\. .*\n/m), said: string[] = [];
    const run = (script: string, cwd: string) => said.push(execFileSync('sh', ['-e'], { input: script, cwd, encoding: 'utf8', env: { ...process.env, STATE_FOLDER: server.stateFolder }, stdio: ['pipe', 'pipe', 'pipe'] }));
    if (parts.includes('storage')) run(onStorage, '/');
    if (parts.includes('operator')) run(onOperator, operator.folder);
    if (parts.includes('server')) run(onServer, server.folder);
    return { plan, said: said.join('\n') };
  };

  type Deed = { does: () => unknown; rules: string[]; says?: RegExp; names?: () => string[] };
  const deeds: Record<string, Deed> = {
    'deletes an archive in the middle': { does: () => server.borg('delete', `::${good[2]}`), rules: ['R8', 'R2', 'R4'], says: /was deleted/, names: () => [good[2]!] },
    'prunes all but the last': { does: () => server.borg('prune', '--keep-last', '1'), rules: ['R8', 'R2', 'R4'], names: () => good.slice(0, -1) },
    'renames an archive': { does: () => server.borg('rename', `::${good[0]}`, 'web1-1999-01-01T00:00:00'), rules: ['R8', 'R10'], names: () => [good[0]!] },
    'writes an archive anew under its name': { does: () => server.borg('recreate', '--exclude', '*/diary', `::${good[2]}`), rules: ['R8'], says: /written anew/, names: () => [good[2]!] },
    'deletes the newest proof': { does: () => server.borg('delete', `::${good[5]}`), rules: ['R8', 'R4'], names: () => [good[5]!] },
    'overwrites every piece of data it finds': {
      does: () => speakProtocol(server, ['ids = [id for id in repository.list(limit=10000) if id != bytes(32)]', 'for id in ids: repository.put(id, b"y" * 200)', 'repository.commit()']), rules: ['R1', 'R3'], says: /pieces of stored data were overwritten/,
    },
    'overwrites the list of archives': { does: () => speakProtocol(server, ['repository.put(bytes(32), b"z" * 100)', 'repository.commit()']), rules: ['R4'], says: /list of archives became \d+ bytes shorter/ },
    'deletes the list of archives': { does: () => speakProtocol(server, ['repository.delete(bytes(32))', 'repository.commit()']), rules: ['R3'] },
    'deletes single pieces of data, and ends without a list of archives': {
      does: () => speakProtocol(server, ['ids = [id for id in repository.list(limit=10000) if id != bytes(32)]', 'for id in ids[:5]: repository.delete(id)', 'repository.commit()']), rules: ['R2', 'R3'], says: /5 pieces of stored data were deleted|was deleted/,
    },
    'takes an archive out of the list, and deletes nothing': {
      does: () => speakProtocol(server, ['from borg.helpers import Manifest', 'manifest, key = Manifest.load(repository, Manifest.NO_OPERATION_CHECK)', `del manifest.archives["${good[1]}"]`, 'manifest.write()', 'repository.commit()']), rules: ['R4', 'R8'], names: () => [good[1]!],
    },
    'hides an archive of tonight': {
      does: () => { plant(server, `web1-${new Date().toISOString().slice(0, 19)}`, ['--comment', '{{}}'], '/etc/passwd'); speakProtocol(server, ['from borg.helpers import Manifest', 'manifest, key = Manifest.load(repository, Manifest.NO_OPERATION_CHECK)',
        'del manifest.archives[[name for name in manifest.archives if name.startswith("web1-")][-1]]', 'manifest.write()', 'repository.commit()']); }, rules: ['R4'], says: /there is no archive of it/,
    },
    'overwrites the key that may lie in the repository': { does: () => speakProtocol(server, ['repository.save_key(b"garbage")']), rules: ['R7'], says: /key that lies in the repository was overwritten/ },
    'exhausts the nonce': { does: () => speakProtocol(server, ['nonce = repository.get_free_nonce()', 'repository.commit_nonce_reservation(2**64 - 1, nonce)']), rules: ['R7'], says: /nonce.*jumped/ },
    'writes an archive of last year': { does: () => plant(server, 'web1-2025-11-01T02:00:00', ['--timestamp', '2025-11-01T02:00:00']), rules: ['R10'], says: /another time than it was written at/, names: () => ['web1-2025-11-01T02:00:00'] },
    'writes archives a second after the real ones': {
      does: () => good.filter((name) => name.startsWith('web1-2')).forEach((name) => plant(server, name.replace(/\d\d(:\d\d:\d\d)$/, name.includes('T00:') ? '01$1' : '00$1'), ['--timestamp', `${name.slice(5, 15)}T00:00:01`])), rules: ['R10'],
    },
    'writes archives of the future': { does: () => ['01', '02', '03'].forEach((day) => plant(server, `web1-2099-01-${day}T02:00:00`, ['--timestamp', `2099-01-${day}T02:00:00`])), rules: ['R10'], says: /in the future/ },
    'bears a time of last year in the name alone': { does: () => plant(server, 'web1-2025-12-24T02:00:00'), rules: ['R10'], says: /in its name/ },
    'floods the repository with archives of its own': { does: () => { for (let number = 0; number < 12; number++) plant(server, `junk-${number}`); }, rules: ['R5'], says: /12 archives that backup\.js does not write/ },
    'gives an archive a name that would be a command in the plan': {
      does: () => { plant(server, 'x'); speakProtocol(server, ['from borg.helpers import Manifest', 'manifest, key = Manifest.load(repository, Manifest.NO_OPERATION_CHECK)', 'info = manifest.archives["x"]',
        'manifest.archives["x\\ntouch owned\\n"] = (info.id, info.ts)', 'del manifest.archives["x"]', 'manifest.write()', 'repository.commit()']); }, rules: ['R5'],
    },
    'gives an archive a name that borg does not list': {
      does: () => { plant(server, 'x'); speakProtocol(server, ['from borg.helpers import Manifest', 'manifest, key = Manifest.load(repository, Manifest.NO_OPERATION_CHECK)', 'info = manifest.archives["x"]',
        'manifest.archives["a/b"] = (info.id, info.ts)', 'del manifest.archives["x"]', 'manifest.write()', 'repository.commit()']); }, rules: ['R4'],
    },
    'proves what is not there': { does: () => plant(server, 'proven-web1-2026-11-20T02:00:00'), rules: ['R11'], says: /there is no such archive/ },
  };

  for (const [what, deed] of Object.entries(deeds)) {
    test(`${what}: an alarm that names it, and the way back`, async () => {
      asBefore();
      await deed.does();
      const ended = await operator.run(['audit', '--undo-plan', '--json']), { verdict, rules, archives, all } = verdictOf(ended);
      assert.equal(ended.code, 2, ended.out + ended.err);
      assert.equal(verdict, 'alarm');
      for (const rule of deed.rules) assert.ok(rules.includes(rule), `${rule} is not among ${JSON.stringify(all.findings, null, 1)}`);
      if (deed.says) assert.match(JSON.stringify(all.findings), deed.says);
      for (const name of deed.names?.() ?? []) assert.ok(archives.includes(name), `${name} is not named`);
      for (const { at, what: words, undo } of all.findings) assert.ok(Date.parse(at) > 0 && words.length > 20 && undo.length > 20);
      assert.equal(operator.book().mark.transaction, last, 'an alarm must not move the ledger\'s mark');
      const { plan, said } = await carryOut(['storage', 'operator'], all.undoPlan);
      assert.match(said, /^web1: clean$/m, plan);
      for (const place of [storage.repository('web1'), operator.folder]) assert.ok(!fs.existsSync(path.join(place, 'owned')), plan);
      allIsBack();
    });
  }

  test('after a night of everything, and honest nights after it, the plan is carried out to its end, and the server goes on', async () => {
    asBefore();
    server.borg('delete', `::${good[0]}`);
    server.borg('compact');
    speakProtocol(server, ['ids = [id for id in repository.list(limit=10000) if id != bytes(32)]', 'for id in ids[-5:]: repository.put(id, b"y" * 200)', 'repository.commit()']);
    server.borg('break-lock');
    const ended = await operator.run(['audit']);
    assert.equal(ended.code, 2);
    assert.match(ended.out, /^web1: ALARM: \d findings\. Do not prune or compact this repository$/m);
    assert.match((await operator.run(['prune', '--yes'])).err, /backup: error: web1: the audit found \d things wrong .*nothing is pruned/);
    const { plan } = await carryOut(['storage', 'operator', 'server']);
    assert.match(plan, new RegExp(`transaction ${last} is the last good one`));
    allIsBack('checked and read');
    await night('thursday ');
    assert.equal(verdictOf(await operator.run(['audit', '--json'])).verdict, 'clean');
  });

  test('honest nights after the attack are named by the plan, because they go, too', async () => {
    asBefore();
    server.borg('delete', `::${good[0]}`);
    await night('thursday ');
    const newest = server.archives().pop()!, { out } = await operator.run(['audit', '--undo-plan']);
    assert.match(out, /These archives were written later, and go, too[^]*/);
    assert.ok(out.includes(`#   ${newest}`), out);
    await carryOut(['storage', 'operator']);
    allIsBack();
  });

  test('a proof for an archive that an audit knew as unproven is an alarm, until the operator accepts it', async () => {
    asBefore();
    server.borg('delete', `::${good[5]}`); // as if the run had not proven it
    assert.equal((await operator.run(['audit', '--accept', '--yes'])).code, 0);
    assert.equal(operator.book().archives.find(({ name }: any) => name === good[4]).unproven, undefined, 'its run may still be starting services');
    plant(server, good[5]!);
    assert.deepEqual(verdictOf(await operator.run(['audit', '--json'])).rules, []);

    asBefore();
    server.borg('delete', `::${good[5]}`);
    const book = operator.book();
    for (const one of book.archives) one.seenAt = new Date(Date.parse(one.seenAt) - 3 * 3_600_000).toISOString(); // a proof may be written two hours later
    fs.writeFileSync(path.join(operator.folder, 'ledger/web1.json'), JSON.stringify(book));
    assert.equal((await operator.run(['audit', '--accept', '--yes'])).code, 0);
    assert.equal(operator.book().archives.find(({ name }: any) => name === good[4]).unproven, true);
    assert.match((await operator.run(['prune', '--yes'])).err, /the newest archive, .*, is not proven: nothing is pruned/);
    plant(server, good[5]!);
    const { rules, verdict } = verdictOf(await operator.run(['audit', '--json']));
    assert.deepEqual([verdict, rules], ['alarm', ['R11']]);
  });

  test('a night that holds much less than the ones before is an alarm', async () => {
    asBefore();
    fs.renameSync(path.join(files, 'attachments'), path.join(folder, 'attachments'));
    await night('thursday ');
    fs.renameSync(path.join(folder, 'attachments'), path.join(files, 'attachments'));
    const { rules, all } = verdictOf(await operator.run(['audit', '--json']));
    assert.deepEqual(rules, ['R6'], JSON.stringify(all.findings));
    assert.match(all.findings[0].what, /holds [\d.]+ [kM]B, where the ones before hold [\d.]+ MB at least/);
    assert.equal((await operator.run(['prune', '--yes'])).code, 2, 'it prunes with a newest archive that is suspiciously small');
    assert.equal((await operator.run(['audit', '--accept', '--yes'])).code, 0);
    assert.equal(verdictOf(await operator.run(['audit', '--json'])).verdict, 'clean');
  });

  test('who writes with full access, past the append-only server, is found', async () => {
    asBefore();
    execFileSync('borg', ['create', '::web1-2026-11-20T02:00:00', server.script], { env: { ...server.borgEnv(), BORG_REPO: storage.repository('web1') }, stdio: ['ignore', 'pipe', 'pipe'] });
    assert.ok(verdictOf(await operator.run(['audit', '--json'])).rules.includes('R5'));
    asBefore();
    execFileSync('borg', ['delete', `::${good[0]}`], { env: { ...server.borgEnv(), BORG_REPO: storage.repository('web1') }, stdio: ['ignore', 'pipe', 'pipe'] });
    execFileSync('borg', ['compact', '--threshold', '0'], { env: { ...server.borgEnv(), BORG_REPO: storage.repository('web1') }, stdio: ['ignore', 'pipe', 'pipe'] });
    const { rules, all } = verdictOf(await operator.run(['audit', '--json']));
    assert.ok(rules.includes('R2') && rules.includes('R8'), JSON.stringify(all));
    assert.match(JSON.stringify(all), /data files that the last audit knew are not the same/);
  });

  test('a configuration that was changed, a damaged data file and a log that was shortened are found', async () => {
    const repository = storage.repository('web1'), config = path.join(repository, 'config');
    asBefore();
    fs.writeFileSync(config, fs.readFileSync(config, 'utf8').replace('storage_quota = 0', 'storage_quota = 1'));
    assert.match(JSON.stringify(verdictOf(await operator.run(['audit', '--json'])).all), /storage_quota was 0, and is 1/);
    const { said } = await carryOut(['storage', 'operator']);
    assert.match(said, /^web1: clean$/m);
    asBefore();
    fs.writeFileSync(path.join(repository, 'transactions'), fs.readFileSync(path.join(repository, 'transactions'), 'utf8').split('\n').slice(1).join('\n'));
    assert.match(JSON.stringify(verdictOf(await operator.run(['audit', '--json'])).all), /log of transactions was changed/);
    asBefore();
    const file = path.join(repository, 'data/0', String(fs.readdirSync(path.join(repository, 'data/0')).map(Number).sort((a, b) => a - b).find((number) => fs.statSync(path.join(repository, 'data/0', String(number))).size > 3000)));
    const bytes = fs.readFileSync(file);
    bytes[1500]! ^= 1;
    fs.writeFileSync(file, bytes);
    assert.equal(verdictOf(await operator.run(['audit', '--json'])).verdict, 'clean', 'an audit reads only what is new');
    const { rules, all } = verdictOf(await operator.run(['audit', '--full', '--json']));
    assert.deepEqual(rules, ['R9'], JSON.stringify(all));
    asBefore();
  });

  test('what append-only refuses it refuses, a lock that is broken and a repaired list harm nothing, and a repository that is gone is an alarm', async () => {
    asBefore();
    const refused = (...words: string[]) => assert.throws(() => execFileSync('borg', words, { env: { ...server.borgEnv(), BORG_DELETE_I_KNOW_WHAT_I_AM_DOING: 'YES', BORG_CHECK_I_KNOW_WHAT_I_AM_DOING: 'YES' }, stdio: 'pipe' }));
    refused('delete', '::');
    refused('check', '--repair', '--repository-only');
    refused('init', '--encryption', 'none', `${server.settings.repository}x`);
    server.borg('break-lock');
    server.borg('check', '--archives-only');
    assert.deepEqual(verdictOf(await operator.run(['audit', '--json'])).all.findings, []);
    allIsBack();
    fs.rmSync(storage.repository('web1'), { recursive: true });
    const { verdict, rules, archives } = verdictOf(await operator.run(['audit', '--json']));
    assert.deepEqual([verdict, rules, archives.sort()], ['alarm', ['R8'], [...good].sort()]);
    asBefore();
  });

  test('without the passphrase the files alone tell what was deleted and overwritten', async () => {
    asBefore();
    operator.write(operator.entry({ keyFile: '', passphraseFile: '' }));
    assert.equal(verdictOf(await operator.run(['audit', '--json'])).verdict, 'clean');
    server.borg('delete', `::${good[0]}`);
    const { rules, archives } = verdictOf(await operator.run(['audit', '--json']));
    assert.ok(rules.includes('R8') && rules.includes('R4') && archives.includes(good[0]!));
    asBefore();
    for (const more of [['repository.delete(b"q" * 32)'], []]) speakProtocol(server, ['repository.put(b"q" * 32, b"y" * 200)', ...more, 'repository.commit()']); // as with a file that can be read on the second day alone
    assert.deepEqual(verdictOf(await operator.run(['audit', '--json'])).rules, ['R3'], 'what was taken back by who stored it was never there, and is not overwritten later');
    operator.write(operator.entry());
    asBefore();
  });

  test('hides an archive of an honest night when another one was saved after it: the plan gives both back', async () => {
    asBefore();
    for (const text of ['thursday ', 'friday ']) await night(text);
    const all = server.archives(), hidden = all.slice(-4, -2);
    speakProtocol(server, ['from borg.helpers import Manifest', 'manifest, key = Manifest.load(repository, Manifest.NO_OPERATION_CHECK)', ...hidden.map((name) => `del manifest.archives["${name}"]`), 'manifest.write()', 'repository.commit()']);
    assert.ok(verdictOf(await operator.run(['audit', '--json'])).rules.includes('R4'));
    const { plan, said } = await carryOut(['storage', 'operator']);
    assert.match(said, /^web1: clean$/m, plan);
    assert.doesNotMatch(plan, /were written later, and go, too/);
    assert.deepEqual(operator.book().archives.map(({ name }: any) => name), all);
    asBefore();
  });

  test('evidence of a kind that the ledger never had is no alarm: names after audits without the passphrase, files after audits without a shell', async () => {
    asBefore();
    const keyless = operator.entry({ keyFile: '', passphraseFile: '' }), cleanAs = async (entry: Record<string, unknown>) => {
      operator.write(entry);
      const { all } = verdictOf(await operator.run(['audit', '--json']));
      assert.deepEqual(all.findings, [], JSON.stringify(entry));
      return JSON.stringify(all.notes);
    };
    await night('thursday ');
    await cleanAs(keyless);
    await cleanAs(operator.entry()); // without anything new, and yet it names what came
    assert.deepEqual(operator.book().archives.map(({ name }: any) => name).sort(), server.archives().sort());
    await night('friday ');
    await cleanAs(keyless);
    await night('saturday ');
    await cleanAs(operator.entry());

    asBefore();
    fs.rmSync(path.join(operator.folder, 'ledger/web1.json'));
    await cleanAs(keyless);
    await night('thursday ');
    assert.match(await cleanAs(operator.entry()), /archives had no names here before: they are trusted as they are/);
    plant(server, 'web1-2025-12-24T02:00:00');
    assert.deepEqual(verdictOf(await operator.run(['audit', '--json'])).rules, ['R10']);

    asBefore();
    fs.rmSync(path.join(operator.folder, 'ledger/web1.json'));
    await cleanAs(operator.entry({ storage: [] }));
    await night('thursday ');
    assert.match(await cleanAs(operator.entry()), /the files of the repository were not read before/);
    server.borg('delete', `::${good[0]}`);
    assert.ok(verdictOf(await operator.run(['audit', '--json'])).rules.includes('R8'));
    asBefore();
  });

  test('an alarm is not hidden by another server of which nothing can be said, and a storage that answers oddly breaks no ledger', async () => {
    asBefore();
    const odd = (line: string) => {
      const file = path.join(folder, 'odd-shell');
      fs.writeFileSync(file, `#!/bin/sh\necho '${line}'\nexec "$@"\n`, { mode: 0o755 });
      operator.write(operator.entry({ storage: [file, ...(operator.entry().storage as string[])] }));
      return operator.run(['audit', '--json']);
    };
    const ledger = fs.readFileSync(path.join(operator.folder, 'ledger/web1.json'), 'utf8');
    for (const line of ['{"number": 9, "fileTime": "2026-01-01"}', '{"number": 9, "puts": 1, "bytes": 1, "deleted": 0}', '{"place": 1}', '{"found": "x", "place": 1}', 'null']) {
      const ended = await odd(line);
      assert.equal(verdictOf(ended).verdict, 'unknown', line);
      assert.match(ended.err, /says of the repository's files is not understood/);
    }
    assert.equal(fs.readFileSync(path.join(operator.folder, 'ledger/web1.json'), 'utf8'), ledger);
    server.borg('delete', `::${good[2]}`);
    operator.write(operator.entry(), operator.entry({ server: 'web2', keyFile: '/nowhere/key' }));
    assert.equal((await operator.run(['audit'])).code, 2);
    assert.equal((await operator.run(['audit', 'web2'])).code, 64);
    operator.write(operator.entry({ timeZone: '', maxAgeHours: '' }));
    assert.match((await operator.run(['prune', '--yes'])).err, /nothing is pruned/);
    operator.write(operator.entry());
    asBefore();
  });
});
