// A copy under drill believes that it is the real cluster. It must not archive, subscribe, run jobs, listen or write through its links: shown with a
// cluster that would do all of that the moment it is let loose. And: every PostgreSQL from 12 to 18, and one in a container.
import './alone.ts';
import { after, before, describe, test } from 'node:test';
import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import fs from 'node:fs';
import path from 'node:path';
import { PG, makeCluster } from './cluster.ts';
import type { MajorVersion, TestCluster } from './cluster.ts';
import { startEngine } from './engine.ts';
import { freePort, startStorage } from './storage.ts';
import type { Storage } from './storage.ts';
import { makeServer, testFolder, waitFor } from './script.ts';

const isRoot = process.getuid?.() === 0;
if (!isRoot && process.env.COLD_BACKUP_NO_SKIP) throw new Error('these drills need root');

describe('a drill, locked in', { skip: isRoot ? false : 'needs root' }, () => {
  const top = testFolder('locked');
  let storage: Storage;
  const clusters: TestCluster[] = [];
  before(async () => { storage = await startStorage(path.join(top, 'storage')); });
  after(() => {
    for (const one of clusters) one.destroy();
    storage?.destroy();
  });
  const failed = (certificate: any) => certificate.checks.filter((one: any) => one.ok === false);
  const contents = (folder: string) => execFileSync('find', [folder, '-printf', '%P %s %T@ %C@\\n'], { encoding: 'utf8' });

  test('a copy with archive_command, a subscription, pg_cron and settings and links that point elsewhere reaches nothing and nobody', async () => {
    const archive = path.join(top, 'archive'), outside = path.join(top, 'outside'), port = await freePort();
    for (const folder of [archive, outside]) fs.mkdirSync(folder, { mode: 0o777 });
    for (const folder of [archive, outside]) fs.chmodSync(folder, 0o777);
    const publisher = await makeCluster({ folder: path.join(top, 'publisher'), version: 'debian', port: 5491, settings: { wal_level: 'logical', fsync: 'off' }, sql: 'create table news (n int primary key); create publication p for table news' });
    clusters.push(publisher);
    const live = await makeCluster({ folder: path.join(top, 'live'), version: 'debian', port, tablespace: true, walElsewhere: true, initdb: ['--wal-segsize=1'], sql: `create table news (n int primary key); create extension pg_cron`,
      settings: { wal_level: 'logical', archive_mode: 'on', archive_command: `cp %p ${archive}/%f && pwd >> ${archive}/who`, shared_preload_libraries: 'pg_cron', 'cron.database_name': 'postgres', listen_addresses: '127.0.0.1',
        external_pid_file: `${outside}/live.pid`, data_directory: path.join(top, 'live/data'), logging_collector: 'on', log_directory: outside, log_filename: 'live.log', log_statement: 'all', fsync: 'off', min_wal_size: '2MB', max_wal_size: '8MB' } });
    clusters.push(live);
    live.sql('postgres', `select cron.schedule('* * * * *', $$copy (select now()) to program 'cat >> ${outside}/cron'$$)`);
    live.sql('postgres', `alter system set archive_command = 'touch ${outside}/from-auto-conf; cp %p ${archive}/%f && pwd >> ${archive}/who'`);
    live.sql('postgres', `create subscription s connection 'host=${publisher.socketFolder} port=5491 user=postgres dbname=postgres' publication p`);
    fs.symlinkSync(outside, path.join(live.dataDirectory, 'a_link_that_leads_out'));
    const rows = () => live.sql('postgres', 'select count(*) from news');
    publisher.sql('postgres', 'insert into news select generate_series(1, 100)');
    await waitFor('it subscribes', () => rows() === '100');

    const queries = Object.entries({
      "select string_agg(distinct backend_type, ' ') from pg_stat_activity where backend_type !~ '^(client backend|checkpointer|background writer|walwriter|parallel worker)$'": '',
      "select current_setting('archive_mode') || ' ' || current_setting('shared_preload_libraries') || ' ' || current_setting('listen_addresses')": 'off  ',
      'select count(*) from pg_stat_subscription where pid is not null': 0,
      "select count(*) from regexp_split_to_table(rtrim(pg_read_file('/proc/net/dev', 0, 9999), E'\\n'), E'\\n')": 3, // two lines of heading, and lo
      [`select count(*) from pg_ls_dir('${outside}', true, false)`]: 0,
      "select count(*) from pg_ls_dir('a_link_that_leads_out', true, false)": 0,
      "select count(*) from pg_ls_dir('/', true, false) d where d in ('var', 'home', 'root', 'srv', 'run')": 0,
      "select current_setting('data_directory') = (select setting from pg_settings where name = 'data_directory') and count(*) = 100 from news": true,
    }).map(([sql, expect]) => ({ cluster: live.dataDirectory, database: 'postgres', sql, expect }));
    const server = await makeServer(path.join(top, 'server'), 'web1', storage, { stop: [`postgres ${live.dataDirectory}`], warmPass: false, drill: { queries } }, { near: true });
    const ended = await server.run();
    assert.equal(ended.code, 1, ended.out + ended.err); // the publisher is not saved
    const slot = () => publisher.sql('postgres', "select slot_name, active_pid from pg_replication_slots") + publisher.sql('postgres', 'select count(*), min(pid) from pg_stat_replication');
    await waitFor('the live one subscribes again', () => /\d$/.test(publisher.sql('postgres', 'select active_pid from pg_replication_slots')));
    live.sql('postgres', "select cron.unschedule(1)"); // the live one's job would run in every minute
    const state = () => ({ slot: slot(), archive: contents(archive), cron: fs.existsSync(`${outside}/cron`) ? fs.readFileSync(`${outside}/cron`, 'utf8') : '', pid: fs.readFileSync(`${outside}/live.pid`, 'utf8'), files: fs.readdirSync(outside) });
    const before = state();
    const drill = await server.run(['drill', '--json']);
    assert.deepEqual(failed(JSON.parse(drill.out)), [], drill.err);
    assert.equal(drill.code, 0, drill.out + drill.err);
    assert.deepEqual(state(), before);
    assert.doesNotMatch(fs.readFileSync(`${outside}/live.log`, 'utf8'), /pg_sleep|verify_heapam|pg_ls_dir/, 'the drill asked its copy, not the live cluster');
    publisher.sql('postgres', 'insert into news select generate_series(101, 200)');
    await waitFor('the real subscriber has every row', () => rows() === '200');
    assert.ok(!fs.existsSync(`${archive}/who`) || !fs.readFileSync(`${archive}/who`, 'utf8').includes('drill'));
  });

  test('clusters of PostgreSQL 12 to 18 in one archive: each is proven', async () => {
    const versions: MajorVersion[] = (['12', '13', '14', '15', '16', '17', '18'] as const).map((one) => (one === PG ? 'debian' : one));
    const own: TestCluster[] = [];
    for (const [index, version] of versions.entries()) {
      own.push(await makeCluster({ folder: path.join(top, `v${version}`), version, port: 5600 + index, initdb: ['--wal-segsize=1', '--data-checksums'], settings: { fsync: 'off', min_wal_size: '2MB', max_wal_size: '4MB' }, ...(version === '16' ? { superuser: 'the boss' } : {}),
        sql: 'create table t (n int primary key, words text[]); insert into t select g, array[md5(g::text)] from generate_series(1, 3000) g; create index on t using gin (words); delete from t where n % 10 = 0' }));
    }
    clusters.push(...own);
    const server = await makeServer(path.join(top, 'all'), 'all', storage, { stop: [own.map((one) => `postgres ${one.dataDirectory}`)], warmPass: false }, { near: true });
    const ended = await server.run();
    assert.ok(ended.code <= 1, ended.out + ended.err);
    const drill = await server.run(['drill', '--json']), certificate = JSON.parse(drill.out);
    assert.deepEqual(failed(certificate), [], drill.err);
    assert.equal(certificate.proven, true);
    for (const one of own) {
      const isKnown = one !== own[4]; // of the one whose superuser has a name of its own the passport knows only what its files tell
      const found = Object.fromEntries(certificate.checks.filter((check: any) => check.cluster === one.dataDirectory).map((check: any) => [check.check, check]));
      assert.match(found['row counts'].detail, isKnown ? /^2700 rows in 1 table, 1 of them untouched/ : /^0 rows in 0 tables/, one.dataDirectory);
      assert.equal(found.amcheck.ok, true, one.dataDirectory);
      assert.match(found['heap against index'].detail, /1 table/);
    }
  });

  test('a cluster in a container, be its folder and its WAL mounted over a link, is rehearsed in its own image, and the container goes on; in place it comes back, and what containers only look at stays', async () => {
    const engine = await startEngine(['postgres']), [looked, other] = ['/var/cache', '/var/tmp'].map((folder) => fs.mkdtempSync(`${folder}/cold-backup-looked-at-`)) as [string, string], [real, linked] = [path.join(top, 'real'), path.join(top, 'linked')];
    try {
      fs.mkdirSync(path.join(real, 'pgdata'), { recursive: true });
      fs.mkdirSync(path.join(real, 'conf'));
      fs.symlinkSync(real, linked);
      const stays = path.join(looked, 'conf'), site = path.join(looked, 'site'), comeBack = [site, path.join(site, 'inner'), path.join(other, 'data')]; // inner: containers only look at it, and it lies below what `folders` names
      const write = (text: string) => { for (const folder of [stays, ...comeBack]) fs.writeFileSync(path.join(folder, 'group'), text); };
      for (const folder of [stays, ...comeBack]) fs.mkdirSync(folder);
      write('of the old machine');
      const mounts = ['--volume', `${linked}/pgdata:/var/lib/postgresql/data`, '--volume', `${linked}/pgwal:/wal`, '--env', 'POSTGRES_INITDB_WALDIR=/wal', '--volume', `${real}/conf:/conf:ro`, ...[stays, ...comeBack].flatMap((folder) => ['--volume', `${folder}:/looked-at/${path.basename(folder)}:ro`]), '--volume', 'cache:/cache'];
      const runLinked = () => engine.docker(['run', '--detach', '--name', 'linked-db', '--network', 'none', ...mounts, 'postgres']);
      const linkedSql = (text: string) => engine.docker(['exec', '--user', '999', 'linked-db', 'psql', '-U', 'postgres', '-XqAtc', text]);
      runLinked();
      engine.docker(['run', '--detach', '--name', 'shop-db', '--network', 'none', '--volume', 'shop_data:/var/lib/postgresql/data', 'postgres']);
      const sql = (text: string) => engine.docker(['exec', '--user', '999', 'shop-db', 'psql', '-U', 'postgres', '-XqAtc', text]);
      await waitFor('the container answers', () => { try { return sql('select 1') === '1'; } catch { return false; } });
      sql('create table orders (n int primary key); insert into orders select generate_series(1, 500)');
      await waitFor('the other one answers', () => { try { return linkedSql('select 1') === '1'; } catch { return false; } });
      linkedSql('create table bills (n int primary key); insert into bills select generate_series(1, 70)');
      const server = await makeServer(path.join(top, 'dock'), 'dock1', storage, { folders: [path.join(top, 'storage/sshd_config')], warmPass: false }, { near: true });
      server.writeSettings({ stop: ['container shop-db', 'container linked-db'], volumes: ['*'], folders: [site] });
      const ended = await server.run([], { env: engine.env });
      assert.ok(ended.code <= 1, ended.out + ended.err);
      const pid = () => engine.docker(['inspect', '--format', '{{.State.Pid}} {{.RestartCount}}', 'shop-db']), before = pid();
      const drill = await server.run(['drill', '--json'], { env: engine.env }), certificate = JSON.parse(drill.out);
      assert.deepEqual(failed(certificate), [], drill.err);
      assert.equal(certificate.proven, true, drill.err);
      for (const [name, rows] of [['shop-db', 500], ['linked-db', 70]] as const) {
        const found = Object.fromEntries(certificate.checks.filter((check: any) => check.cluster === `container ${name}`).map((check: any) => [check.check, check]));
        assert.match(found.starts.detail, /in image sha256:/);
        assert.match(found['row counts'].detail, new RegExp(`^${rows} rows in 1 table`));
      }
      assert.equal(pid(), before);
      const runbook = server.borg('extract', '--stdout', `::${certificate.archive}`, 'record/RESTORE.md');
      assert.deepEqual([`${real}/conf`, ...comeBack, stays].map((place) => [runbook.includes(`\naside ${place} `), runbook.includes(`\n[ -e ${place} ] || borg extract --sparse --numeric-ids "::$ARCHIVE" pp:${place.slice(1)} `)]),
        [[true, false], ...comeBack.map(() => [true, false]), [false, true]], 'what containers only look at comes back where it is missing');
      assert.doesNotMatch(runbook, /\/root\/old/);
      assert.equal(engine.docker(['ps', '--all', '--format', '{{.Names}}']), 'shop-db\nlinked-db', 'no other container is left');
      assert.equal(engine.docker(['volume', 'ls', '--quiet']), 'cache\nshop_data', 'and no volume');
      // A night beside it sees nothing of a drill's container either.
      const under = server.start(['drill'], { env: engine.env });
      await waitFor('the drill has its container', () => engine.docker(['ps', '--format', '{{.Names}}']).includes('cold-backup-drill'), 60);
      server.writeSettings({ stop: ['container *'] });
      assert.deepEqual(JSON.parse((await server.run(['--dry-run', '--json'], { env: engine.env })).out).parts.map((one: any) => one.name).sort(), ['container linked-db', 'container shop-db']);
      assert.equal((await under.ended).code, 0);

      for (const one of [sql, linkedSql]) one('create table intruder (n int)');
      write('of this machine');
      engine.docker(['rm', '--force', 'linked-db']);
      engine.docker(['volume', 'rm', 'cache']);
      engine.docker(['volume', 'create', '--opt', 'type=tmpfs', '--opt', 'device=tmpfs', 'cache']);
      runLinked();
      const alone = await server.run(['restore', 'latest', '--in-place', 'container', 'linked-db', '--dry-run', '--json'], { env: engine.env });
      assert.ok(JSON.parse(alone.out).swaps.some((one: any) => one.place === path.join(real, 'pgdata')), 'what it mounts over a link is its own, too');
      const cluster = await server.run(['restore', 'latest', '--in-place', 'postgres', 'container linked-db', '--dry-run', '--json'], { env: engine.env });
      assert.deepEqual(JSON.parse(cluster.out).swaps.map((one: any) => one.place).sort(), ['pgdata', 'pgwal'].map((name) => path.join(real, name)), 'a cluster comes back with its WAL, and with nothing else');
      const back = await server.run(['restore', 'latest', '--in-place'], { env: engine.env }), all = back.out + back.err;
      assert.equal(back.code, 1, all);
      for (const words of [new RegExp(`${stays} stays as it is here: containers only look at it`), /volume cache lies in memory here/, /services: all 2 are running again/]) assert.match(all, words);
      assert.deepEqual([sql, linkedSql].map((one) => one("select string_agg(relname, ' ') from pg_class where relkind = 'r' and oid >= 16384")), ['orders', 'bills']);
      assert.doesNotMatch(all, new RegExp(`${site}\\S* stays as it is`));
      assert.deepEqual([stays, ...comeBack].map((folder) => fs.readFileSync(path.join(folder, 'group'), 'utf8')), ['of this machine', ...comeBack.map(() => 'of the old machine')], 'what `folders` names comes back, and what is none of the system\'s');
      assert.ok(fs.readdirSync(real).some((name) => name.startsWith('conf.before-restore-')), 'what is no folder of the system comes back, be it read-only');
    } finally {
      for (const folder of [looked, other]) fs.rmSync(folder, { recursive: true });
      engine.destroy();
    }
  });
});
