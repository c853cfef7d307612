// A drill rehearses a restore: what it finds, what it remembers, what it leaves (nothing), and what it does not disturb.
import assert from 'node:assert/strict';
import { execFileSync, spawnSync } from 'node:child_process';
import fs from 'node:fs';
import path from 'node:path';
import { allIsWell, expectEnd, held, holdIn, leftProcesses, nearby, scenarios, whatRuns, wrap } from './scenario.ts';
import type { World } from './scenario.ts';
import { start, waitFor } from './script.ts';
import type { Ended } from './script.ts';
import { PG } from './cluster.ts';

const CHECKS = ['extract', 'files as listed when cold', 'control file', 'page checksums', 'starts', 'databases open', 'libraries load', 'collations', 'amcheck', 'row counts', 'heap against index', 'your queries', 'dump'];
const scratch = ({ server }: World) => path.join(server.stateFolder, 'drill');
const query = (world: World, sql: string, expect: unknown) => ({ cluster: world.db.dataDirectory, database: 'postgres', sql, expect });
const checkOf = (ended: Ended, name: string) => JSON.parse(ended.out).checks.find((one: any) => one.check === name);

/** Processes, files and mounts of drills. */
function leftOfDrills(world: World): string[] {
  const postmasters = fs.readdirSync('/proc').filter((pid) => /^\d+$/.test(pid) && /\/postgres\0-D/.test(text(`/proc/${pid}/cmdline`)) && text(`/proc/${pid}/status`).includes('\t1999000000\t')).map((pid) => `postgres ${pid}`);
  const files = fs.existsSync(scratch(world)) ? fs.readdirSync(scratch(world)) : [];
  return [...postmasters, ...files, ...leftProcesses(), ...text('/proc/self/mounts').split('\n').filter((line) => line.includes('cold-backup-drill'))];
}

function text(file: string): string {
  try { return fs.readFileSync(file, 'utf8'); } catch { return ''; }
}

const running = (world: World, what: RegExp) => waitFor(String(what), () => fs.existsSync(path.join(world.server.stateFolder, 'log')) && what.test(world.server.lastTranscript()), 150);

/** Lose what the storage holds of a file of the last archive, and have borg mend the repository: with zeros. */
function loseAndMend({ server }: World, file: string): void {
  const { _items } = JSON.parse(server.borg('debug', 'dump-archive', `::${server.history().filter((line) => line.kind !== 'drill').pop().archive}`, '-'));
  const { chunks } = _items.find((one: any) => one.path === file.slice(1));
  for (const [id] of chunks) assert.match(server.borg('debug', 'delete-obj', '::', id.replace(/\W/g, '')), /deleted/); // borg puts a byte of its own before each
  const mended = spawnSync('borg', ['check', '--repair'], { env: { ...server.borgEnv(), BORG_CHECK_I_KNOW_WHAT_I_AM_DOING: 'YES' }, encoding: 'utf8' });
  assert.match(mended.stderr, /Replacing with all-zero chunk/, mended.stdout);
}

scenarios('a drill', import.meta.url, {
  'an archive is proven: the certificate is printed, remembered and in the next archives, and nothing else is left': async (world) => {
    const { server } = world, before = whatRuns(world);
    server.writeSettings({ drill: { queries: [query(world, 'select count(*) from nights', 1), query(world, "select exists (select from nights where n = 1)", true), query(world, "select string_agg(distinct backend_type, ' ') from pg_stat_activity where backend_type !~ '^(client backend|checkpointer|background writer|walwriter|parallel worker)$'", '')] } });
    const told = await server.run(['drill', '--full']);
    assert.equal(told.code, 0, told.out + told.err);
    assert.match(told.out, /\nPROVEN: web1-\S+ came back and works\n/);
    assert.match(told.out, /ok +row counts .* exactly as then/);
    assert.match(told.out, /a restore of the whole archive would take about [\d.]+ s here/);
    assert.deepEqual(whatRuns(world), before, 'nothing that runs was touched');
    assert.deepEqual(leftOfDrills(world), []);
    const { certificate, ...line } = server.history().pop();
    assert.deepEqual({ kind: line.kind, outcome: line.outcome, archive: line.archive }, { kind: 'drill', outcome: 'good', archive: server.history()[0].archive });
    assert.deepEqual(certificate.checks.map((one: any) => one.check), [...CHECKS, 'everything read back']);
    assert.ok(certificate.checks.every((one: any) => typeof one.seconds === 'number' && one.ok !== false && (one.ok || one.check === 'page checksums')), JSON.stringify(certificate));
    assert.equal(certificate.checks.find((one: any) => one.check === 'your queries').detail, '3 right answers');
    assert.ok(certificate.proven && certificate.restoreSeconds > 0 && certificate.archive === line.archive);
    const { drill } = JSON.parse((await server.run(['status', '--json'])).out);
    assert.equal(drill.proven, true);
    assert.equal(JSON.parse((await server.run(['doctor', '--json'])).out).find((one: any) => one.check === 'last drill').ok, true);
    const memory = ['record', 'history.jsonl'].map((name) => path.join(server.stateFolder, name));
    for (const one of memory) execFileSync('cp', ['-a', one, `${one}.then`]);
    expectEnd(world, await server.run(), { code: 0 });
    const { archive } = server.history().pop();
    // A machine that was put back to yesterday remembers an older archive than there is: the newest one is rehearsed all the same.
    for (const one of memory) execFileSync('sh', ['-c', 'mv "$1" "$1.now" && mv "$1.then" "$1"', 'sh', one]);
    const newest = JSON.parse((await server.run(['drill', '--json'])).out);
    assert.deepEqual([newest.archive, newest.proven, newest.checks.map((one: any) => one.check)], [archive, true, [...CHECKS, 'everything read back']]);
    assert.deepEqual(newest.checks.pop(), { cluster: '', check: 'everything read back', ok: null, seconds: 0, detail: 'only with --full' });
    for (const one of memory) execFileSync('sh', ['-c', 'rm -r "$1" && mv "$1.now" "$1"', 'sh', one]);
    assert.equal(JSON.parse(server.borg('extract', '--stdout', `::${archive}`, 'record/manifest.json')).drill.archive, certificate.archive);
    assert.match(server.borg('extract', '--stdout', `::proven-${archive}`, 'record/history.jsonl'), /"certificate":\{"archive"/);
    server.writeSettings({ drill: { queries: [query(world, 'select count(*) from nights', 2)] } });
    const wrong = await server.run(['drill', archive, '--json']);
    assert.equal(wrong.code, 2);
    assert.deepEqual(Object.keys(JSON.parse(wrong.out)).filter((key) => ['archive', 'proven', 'checks', 'restoreSeconds'].includes(key)), ['archive', 'proven', 'checks', 'restoreSeconds']);
    assert.match(checkOf(wrong, 'your queries').detail, /select count\(\*\) from nights: the answer is 1, not 2/);
    const { outcome, warnings, next } = JSON.parse((await server.run(['status', '--json'])).out);
    assert.equal(outcome, 'warning');
    assert.match(warnings.join(), /the last drill did not prove web1-.*: your queries/);
    assert.equal(next, 'node backup.js drill');
    await allIsWell(world);
  },

  'a night and a drill at the same time: neither waits for the other, and the night neither stops, saves nor mentions the copy': async (world) => {
    const { server } = world;
    nearby(world);
    server.writeSettings({ stop: [world.web.entry, world.app.entry, world.idle.entry, 'postgres *'], drill: { queries: [query(world, 'select pg_sleep(300) is not null', true)] } });
    const drill = server.start(['drill', '--json']);
    await running(world, /your queries/);
    const second = await server.run(['drill']);
    assert.equal(second.code, 75);
    assert.match(second.err, /another drill is under way/);
    const night = await server.run();
    expectEnd(world, night, { code: 0 });
    assert.doesNotMatch(night.out + night.err, /cold-backup-drill|warning:/);
    assert.equal(drill.out(), '', 'the drill is still at it: the night did not wait');
    assert.deepEqual(JSON.parse(server.borg('extract', '--stdout', `::${server.history().pop().archive}`, 'record/manifest.json')).plan.clusters.map((one: any) => one.dataDirectory), [world.db.dataDirectory]);
    drill.signal('SIGTERM');
    assert.equal((await drill.ended).code, 143);
    assert.deepEqual(leftOfDrills(world), []);
    // And the other way round: a drill while a night copies.
    const hold = wrap(world, 'borg', holdIn('cold'));
    const under = server.start([], hold);
    await held(world);
    server.writeSettings({ drill: { queries: [] } });
    const meanwhile = await server.run(['drill', '--json']);
    assert.equal(JSON.parse(meanwhile.out).proven, true, meanwhile.err);
    fs.writeFileSync(path.join(world.folder, 'go'), '');
    assert.equal((await under.ended).code, 0);
    await allIsWell(world);
  },

  'killed with -9 at any moment, it leaves no process, and `recover` or the next drill remove its files': async (world) => {
    const { server } = world;
    nearby(world);
    server.writeSettings({ drill: { queries: [query(world, 'select pg_sleep(60) is not null', true)] } });
    for (const [moment, clean] of [[/: extract$/m, ['recover']], [/your queries/, ['drill', '--json']]] as const) {
      const drill = server.start(['drill']);
      await running(world, moment);
      drill.signal('SIGKILL', true);
      await drill.ended;
      server.writeSettings({ drill: { queries: [] } });
      await waitFor('no copy runs', () => !leftOfDrills(world).some((one) => one.startsWith('postgres ')), 10);
      assert.equal((await server.run([...clean])).code, 0);
      await waitFor('nothing is left', () => leftOfDrills(world).length === 0, 15).catch((error) => { throw new Error(`${error.message}: ${leftOfDrills(world)}`); });
      server.writeSettings({ drill: { queries: [query(world, 'select pg_sleep(60) is not null', true)] } });
    }
    await allIsWell(world);
  },

  'without room, without the programs, with a wrong passphrase or no key it says so, leaves nothing, and proves nothing': async (world) => {
    const { server } = world, small = path.join(world.folder, 'small'), etc = path.join(server.folder, 'etc');
    nearby(world);
    fs.mkdirSync(small);
    execFileSync('mount', ['-t', 'tmpfs', '-o', 'size=20m', 'tmpfs', small]);
    const expect = async (says: RegExp, json: boolean) => {
      const ended = await server.run(['drill', '--json']);
      assert.equal(ended.code, 2, ended.out + ended.err);
      assert.match(ended.err + ended.out, says);
      assert.equal(JSON.parse(ended.out).proven, false);
      assert.equal(JSON.parse(ended.out).checks.length > 0, json);
    };
    server.writeSettings({ drill: { folder: small } });
    await expect(/small has [\d.]+ MB free, \d+ MB are needed[^]*drill\.folder/, true);
    assert.deepEqual(fs.readdirSync(small), []);
    server.writeSettings({ drill: {} });
    execFileSync('mount', ['-t', 'tmpfs', 'tmpfs', '/usr/lib/postgresql']); // in this scenario's own world
    await expect(new RegExp(String.raw`no PostgreSQL ${PG} here[^]*apt-get install postgresql-${PG}`), true);
    execFileSync('umount', ['/usr/lib/postgresql']);
    fs.renameSync(path.join(etc, 'borg_key'), path.join(etc, 'gone'));
    await expect(/borg_key|key file/i, false);
    fs.renameSync(path.join(etc, 'gone'), path.join(etc, 'borg_key'));
    fs.writeFileSync(path.join(etc, 'passphrase'), 'another one\n');
    await expect(/is `passphraseFile` the one that belongs to this key/, false);
    assert.deepEqual(leftOfDrills(world), []);
    await allIsWell(world);
  },

  'a chunk that is damaged on the storage: the file it belongs to is named': async (world) => {
    nearby(world);
    const { server, storage } = world, data = path.join(storage.repository('web1'), 'data/0'), hba = path.join(world.db.dataDirectory, 'pg_hba.conf');
    loseAndMend(world, hba); // borg only warns of it, and no copy under drill reads it
    const mended = await server.run(['drill', '--json']);
    assert.equal(mended.code, 2, mended.out + mended.err);
    assert.equal(checkOf(mended, 'extract').detail, `${hba} is damaged in the repository: borg has zeros for what is missing`);
    const segments = fs.readdirSync(data).map((name) => path.join(data, name)).sort((a, b) => fs.statSync(b).size - fs.statSync(a).size);
    const bytes = fs.readFileSync(segments[0]!);
    for (let at = 100_000; at < bytes.length * 0.8; at += 5_000) bytes[at] = bytes[at]! ^ 0xff;
    fs.writeFileSync(segments[0]!, bytes);
    const ended = await server.run(['drill', '--json', '--full']);
    assert.equal(ended.code, 2, ended.out + ended.err);
    assert.match(checkOf(ended, 'extract').detail, new RegExp(`failed at ${world.db.dataDirectory}/\\S+[^]*integrity`, 'i'));
    assert.match(checkOf(ended, 'everything read back').detail, /failed at \//);
    await allIsWell(world);
  },

  'on the operator\'s machine, without root and without settings, repository, key file and passphrase are enough': async (world) => {
    const home = path.join(world.folder, 'operator'), users = path.join(world.folder, 'users'), etc = path.join(world.server.folder, 'etc');
    fs.mkdirSync(path.join(home, 'tmp'), { recursive: true });
    for (const name of ['borg_key', 'passphrase', 'ssh_key']) fs.copyFileSync(path.join(etc, name), path.join(home, name));
    fs.copyFileSync(world.server.script, path.join(home, 'backup.js'));
    fs.mkdirSync(path.join(home, '.ssh'));
    fs.copyFileSync(path.join(etc, 'known_hosts'), path.join(home, '.ssh/known_hosts'));
    fs.writeFileSync(users, `${fs.readFileSync('/etc/passwd', 'utf8')}operator:x:4321:4321::${home}:/bin/sh\n`);
    execFileSync('mount', ['--bind', users, '/etc/passwd']); // in this scenario's own world
    execFileSync('chown', ['-R', '4321:4321', home]);
    execFileSync('chmod', ['-R', 'go=', home]);
    const { storage } = world, as = ['setpriv', '--reuid', '4321', '--regid', '4321', '--clear-groups', '--', 'env', `HOME=${home}`, `TMPDIR=${home}/tmp`];
    const ended = await start([...as, process.execPath, path.join(home, 'backup.js'), 'drill', 'latest', '--json', '--repository', `ssh://root@127.0.0.1:${storage.port}${storage.repository('web1')}`,
      '--key-file', `${home}/borg_key`, '--passphrase-file', `${home}/passphrase`, '--ssh-key', `${home}/ssh_key`], { cwd: '/' }).ended;
    assert.equal(ended.code, 0, ended.out + ended.err);
    assert.deepEqual(JSON.parse(ended.out).checks.filter((one: any) => one.ok === false), []);
    assert.equal(checkOf(ended, 'amcheck').ok, true);
    assert.deepEqual(fs.readdirSync(path.join(home, 'tmp')), [], 'nothing of it is left');
    await allIsWell(world);
  },

  'as root of a container that has only 65,536 numbers, the copy belongs to the highest of them': async (world) => {
    nearby(world);
    world.server.writeSettings({ drill: { queries: [query(world, "select pg_read_file('/proc/self/status', 0, 9999) ~ 'Uid:\\t65535\\t65535\\t'", true)] } });
    const inContainer = `unshare --user sh -c 'until grep -q 65536 /proc/self/uid_map; do sleep 0.02; done; exec "$@"' sh "$@" &
      until [ "$(readlink /proc/$!/ns/user)" != "$(readlink /proc/self/ns/user)" ]; do sleep 0.02; done
      for map in gid_map uid_map; do echo 0 0 65536 > /proc/$!/$map; done
      wait $!`;
    const ended = await start(['sh', '-c', inContainer, 'sh', process.execPath, world.server.script, 'drill', '--json']).ended;
    assert.equal(ended.code, 0, ended.out + ended.err);
    assert.equal(checkOf(ended, 'your queries').ok, true);
    assert.deepEqual(leftOfDrills(world), []);
    await allIsWell(world);
  },

  'a copy that does not get locked in, because a disk or a daemon hangs, does not keep it from ending': async (world) => {
    nearby(world);
    const drill = world.server.start(['drill'], wrap(world, 'unshare', 'touch "$cd_to/held"; sleep 1000'));
    let ended: Ended | null = null;
    void drill.ended.then((one) => { ended = one; });
    await held(world);
    drill.signal('SIGTERM');
    await waitFor('it ends', () => ended !== null, 30);
    assert.equal(ended!.code, 143);
    await waitFor('nothing is left', () => leftOfDrills(world).length === 0, 15);
    await allIsWell(world);
  },

  'a server without a database: everything is read back': async (world) => {
    nearby(world);
    world.server.writeSettings({ stop: [world.web.entry], folders: [world.files] });
    assert.ok((await world.server.run()).code <= 1); // the cluster that nothing saves is a warning
    const ended = await world.server.run(['drill', '--json']);
    assert.deepEqual(JSON.parse(ended.out).checks.map((one: any) => [one.check, one.ok]), [['everything read back', true]], ended.err);
    assert.equal(ended.code, 0);
    // What it leaves and cannot remove is told, and takes nothing from what it found.
    const busy = await world.server.run(['drill', '--json'], wrap(world, 'borg', '[ $pass = extract ] && mkdir busy && mount -t tmpfs tmpfs busy'));
    assert.equal(busy.code, 1, busy.err);
    assert.match(busy.err, /what a drill left cannot be removed: EBUSY/);
    assert.deepEqual([JSON.parse(busy.out).proven, world.server.history().pop().certificate.proven], [true, true]);
    execFileSync('umount', [path.join(scratch(world), leftOfDrills(world)[0]!, 'busy')]);
    // A program that reads nothing at all has the code of a mere warning.
    const nothing = await world.server.run(['drill', '--json'], wrap(world, 'ionice', 'exit 1'));
    fs.rmSync(path.join(world.folder, 'bin/ionice'));
    assert.deepEqual([nothing.code, checkOf(nothing, 'everything read back').ok], [2, false], nothing.out);
    assert.deepEqual(leftOfDrills(world), [], 'the one that could not be removed is gone, too');
    const file = path.join(world.files, 'file 7');
    loseAndMend(world, file);
    const as14 = `s/: File has damaged [^"]*"/: backup error", "msgid": "BackupError"/`; // as borg 1.4.0 says it, which gives no reason
    for (const options of [{}, wrap(world, 'borg', `[ $pass = extract ] && exec bash -c 'exec 2> >(sed '"'"'${as14}'"'"' >&2); exec /usr/bin/borg "$@"' borg "$@"`)]) {
      const mended = await world.server.run(['drill', '--json'], options);
      assert.equal(mended.code, 2, mended.out);
      assert.equal(checkOf(mended, 'everything read back').detail, `"${file}" is damaged in the repository: borg has zeros for what is missing`);
      const back = await world.server.run(['restore', 'latest', file, '--to', fs.mkdtempSync(path.join(world.folder, 'back-'))], options);
      assert.deepEqual([back.code, back.err.includes(`warning: "${file}" is damaged in the repository`)], [1, true], back.out + back.err);
    }
    await allIsWell(world);
  },
}, 2); // they work more than they wait
