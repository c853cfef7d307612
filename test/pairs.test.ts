// Servers that hold the same data: a pair that Bucardo keeps alike both ways, a publisher and its subscriber, a primary and its standby.
// One of them is backed up while the other one is written to. Then both converge, nothing is lost, no slot and no subscription either,
// and WAL that was kept for whoever was away goes.
import './alone.ts';
import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import fs from 'node:fs';
import path from 'node:path';
import { after, before, describe, test } from 'node:test';
import { PG, makeCluster } from './cluster.ts';
import type { TestCluster } from './cluster.ts';
import { cannotRunHere } from './night.ts';
import { makeDaemon, makeServer, testFolder, waitFor as waitForOften } from './script.ts';
import type { Daemon, Ended, Server } from './script.ts';
import { startStorage } from './storage.ts';
import type { Storage } from './storage.ts';

const isRoot = process.getuid?.() === 0;
// Each look is a psql of its own.
function waitFor(what: string, condition: () => boolean, seconds: number): Promise<void> {
  let lookAt = 0;
  return waitForOften(what, () => Date.now() >= lookAt && (lookAt = Date.now() + 400, condition()), seconds);
}
const SMALL = { fsync: 'off', shared_buffers: '8MB', min_wal_size: '2MB', max_wal_size: '8MB' };

describe('servers that hold the same data', { skip: cannotRunHere() || (isRoot ? false : 'needs root: Bucardo as a system service') }, () => {
  const folder = testFolder('pairs');
  let storage: Storage;
  const clusters: Record<string, TestCluster> = {}, daemons: Daemon[] = [];

  const cluster = async (name: string, port: number, settings: Record<string, string> = {}): Promise<TestCluster> =>
    clusters[name] = await makeCluster({ folder: path.join(folder, name), version: 'debian', port, initdb: ['--wal-segsize=1'], settings: { ...SMALL, ...settings } });
  /** An application that never stops writing to a cluster: every row has a place and a number of its own. */
  const writer = (name: string, { socketFolder, port, owner }: TestCluster, database: string): Daemon => {
    const daemon = makeDaemon(folder, `writer-${name}`, { work: `runuser -u ${owner} -- psql -X -q -h ${socketFolder} -p ${port} -d ${database} -c "insert into orders (place, n) select '${name}', coalesce(max(n), 0) + 1 from orders where place = '${name}' returning n" -A -t >> ${folder}/written-${name} 2>/dev/null` });
    daemons.push(daemon);
    return daemon;
  };
  const stop = ({ entry }: Daemon) => execFileSync((entry as { stop: string[] }).stop[0]!, ['stop']); // what it was about to write, it writes
  const written = (name: string): number => fs.readFileSync(path.join(folder, `written-${name}`), 'utf8').trim().split('\n').filter((line) => line !== '').length;
  const orders = (one: TestCluster, database = 'shop') => one.sql(database, "select place || ' ' || count(*) || ' ' || count(distinct n) from orders group by place order by 1");
  const server = (name: string, stop: unknown[]): Promise<Server> => makeServer(path.join(folder, `server-${name}`), name, storage, { stop, warmPass: false, stopTimeoutSeconds: 60 }, { near: true });
  const others = /is not saved: name/; // each of these servers sees the clusters of the others, which really are on other machines
  const isGood = ({ code, out, err }: Ended, { history }: Server) => {
    assert.ok(code <= 1, out + err);
    const line = history().pop();
    assert.deepEqual(line.warnings.filter((one: string) => !others.test(one)), [], out + err);
    return line;
  };
  /** Both hold the same rows, each exactly once, and all that any application was told to be written. */
  async function converge(one: TestCluster, two: TestCluster, names: string[], seconds = 60): Promise<void> {
    const wanted = names.map((name) => `${name} ${written(name)} ${written(name)}`).join('\n');
    await waitFor(`both converge to ${wanted}`, () => orders(one) === wanted && orders(two) === wanted, seconds)
      .catch((error) => { throw new Error(`${error.message}\n${orders(one)}\n--\n${orders(two)}`); });
    assert.deepEqual(one.fingerprint()['shop.public.orders'], two.fingerprint()['shop.public.orders']);
  }

  const runbook = (one: Server, archive: string) => one.borg('extract', '--stdout', `::${archive}`, 'record/RESTORE.md');

  before(async () => { storage = await startStorage(path.join(folder, 'storage')); });
  after(() => {
    for (const one of daemons) one.stopNow();
    for (const one of Object.values(clusters)) one.destroy();
    storage?.destroy();
  });

  test('Bucardo both ways: a1 is backed up while a2 is written to, then a2 while a1 is; both converge to the same rows, without a conflict', async () => {
    const a1 = await cluster('a1', 5501), a2 = await cluster('a2', 5502), run = path.join(folder, 'bucardo');
    fs.mkdirSync(run);
    for (const one of [a1, a2]) {
      one.sql('postgres', 'create database shop');
      one.sql('shop', 'create table orders (id uuid primary key default gen_random_uuid(), place text, n int, at timestamptz default now())');
    }
    const at = ({ socketFolder, port }: TestCluster, user: string) => [`--dbhost=${socketFolder}`, `--dbport=${port}`, `--dbuser=${user}`, '--dbname=bucardo', `--piddir=${run}`, `--log-dest=${run}`];
    const bucardo = (...words: string[]) => execFileSync('bucardo', [...at(a1, 'bucardo'), ...words], { cwd: run, encoding: 'utf8', stdio: ['ignore', 'pipe', 'pipe'] }); // it notes things where it is called
    execFileSync('bucardo', [...at(a1, 'postgres'), '--batch', 'install'], { cwd: run, input: 'P\n', stdio: ['pipe', 'pipe', 'pipe'] });
    for (const [name, { socketFolder, port }] of Object.entries({ a1, a2 })) bucardo('add', 'db', name, 'dbname=shop', `dbhost=${socketFolder}`, `dbport=${port}`, 'dbuser=postgres');
    bucardo('add', 'sync', 'shop', 'tables=orders', 'dbs=a1:source,a2:source', 'conflict_strategy=bucardo_latest');
    bucardo('set', `piddir=${run}`, `log_conflict_file=${run}/conflicts`, `reason_file=${run}/reason`, `warning_file=${run}/warnings`, 'mcp_pingtime=2', 'mcp_dbproblem_sleep=2', 'kid_restart_sleep=1');
    const words = (word: string) => ['env', '--chdir', run, 'bucardo', ...at(a1, 'bucardo'), word];
    const running = () => { try { return execFileSync('pgrep', ['--full', '^Bucardo '], { encoding: 'utf8' }) !== ''; } catch { return false; } };
    bucardo('start');
    await waitFor('Bucardo runs', running, 20);
    const one = writer('one', a1, 'shop'), two = writer('two', a2, 'shop');
    for (const each of [one, two]) each.startNow();
    await waitFor('rows go both ways', () => /two/.test(orders(a1)) && /one/.test(orders(a2)), 30);

    // As the settings have it: whoever is asked by `bucardo status` says yes as long as its database answers.
    const first = await server('a1', [one.entry, { name: 'bucardo', running: ['pgrep', '--full', '^Bucardo '], stop: words('stop'), start: words('start') }, `postgres ${a1.dataDirectory}`]);
    const past = written('two'), line = isGood(await first.run(), first);
    assert.deepEqual(line.parts.map(({ name }: any) => name), ['writer-one', 'bucardo', `postgres ${a1.dataDirectory}`]);
    assert.ok(written('two') > past, 'a2 was written to meanwhile');
    assert.ok(running() && one.running());
    assert.match(runbook(first, line.archive), /^- PostgreSQL .*a1.*, Bucardo in database `shop`: what was exchanged after this backup is not exchanged again/m);

    const sent = written('one');
    await waitFor('Bucardo works again', () => Number(/^one (\d+)/m.exec(orders(a2))?.[1]) > sent, 30); // while it comes up it bears no loss of a database (it ends): the windows of a pair must not meet

    const second = await server('a2', [two.entry, `postgres ${a2.dataDirectory}`]);
    const before = written('one');
    isGood(await second.run(), second);
    assert.ok(written('one') > before, 'a1 was written to meanwhile');
    const both = { one: written('one'), two: written('two') };
    await waitFor('the applications go on', () => written('one') > both.one && written('two') > both.two, 20);
    for (const each of [one, two]) stop(each);
    await converge(a1, a2, ['one', 'two'], 90); // Bucardo itself looks after a database that was away
    assert.ok(!fs.existsSync(`${run}/conflicts`) || fs.readFileSync(`${run}/conflicts`, 'utf8') === '', 'a conflict');
    bucardo('stop');
    await waitFor('Bucardo ends', () => !running(), 30);
    for (const each of [a1, a2]) each.stop();
  });

  test('logical replication: publisher and subscriber are backed up while the other one works; slots stay, both converge, kept WAL goes; what max_slot_wal_keep_size has cost is told', async () => {
    const publisher = await cluster('publisher', 5503, { wal_level: 'logical' }), subscriber = await cluster('subscriber', 5504, { wal_retrieve_retry_interval: '500' });
    for (const one of [publisher, subscriber]) {
      one.sql('postgres', 'create database shop');
      one.sql('shop', 'create table orders (place text, n int, primary key (place, n))');
    }
    publisher.sql('shop', 'create publication p for all tables');
    subscriber.sql('shop', `create subscription s connection 'host=${publisher.socketFolder} port=5503 dbname=shop user=postgres' publication p`);
    const app = writer('published', publisher, 'shop');
    app.startNow();
    const slot = () => publisher.sql('shop', "select slot_name || ' ' || active || ' ' || wal_status from pg_replication_slots");
    const walMegabytes = () => Number(publisher.sql('shop', 'checkpoint; select sum(size) / 1048576 from pg_ls_waldir()'));
    await waitFor('rows arrive', () => /published/.test(orders(subscriber)), 30);

    const first = await server('publisher', [app.entry, `postgres ${publisher.dataDirectory}`]);
    const line = isGood(await first.run(), first);
    assert.match(runbook(first, line.archive), /^- PostgreSQL .*publisher.*, slot `s` of database `shop`: its reader is ahead of these files/m);
    await waitFor('the subscriber is back', () => slot() === 's true reserved', 30);
    assert.equal(JSON.parse(first.borg('extract', '--stdout', `::${line.archive}`, 'record/manifest.json')).postgres[0].slots[0].slot_name, 's');

    const second = await server('subscriber', [`postgres ${subscriber.dataDirectory}`]);
    const before = written('published'), busy = () => publisher.sql('shop', "insert into orders select 'bulk', g from generate_series(coalesce((select max(n) + 1 from orders where place = 'bulk'), 1), coalesce((select max(n) from orders where place = 'bulk'), 0) + 40000) g");
    const ended = second.run();
    await waitFor('it is away', () => slot() !== 's true reserved', 30);
    busy(); // some MB of WAL that the slot keeps for it
    isGood(await ended, second);
    assert.ok(written('published') > before, 'the publisher was written to meanwhile');
    await waitFor('the subscriber is back', () => slot() === 's true reserved', 30);
    stop(app);
    fs.writeFileSync(path.join(folder, 'written-bulk'), '1\n'.repeat(40000));
    await converge(publisher, subscriber, ['bulk', 'published']);
    await waitFor('WAL that was kept for it goes', () => walMegabytes() <= 10, 30);

    // A limit that is too small for the time a subscriber needs for its own backup.
    publisher.sql('postgres', "alter system set max_slot_wal_keep_size = '2MB'");
    publisher.sql('postgres', 'select pg_reload_conf()');
    subscriber.stop();
    for (let turn = 0; turn < 4; turn++) { busy(); publisher.sql('shop', 'checkpoint'); }
    await waitFor('the slot has lost its WAL', () => / lost$/.test(slot()), 30);
    const late = await first.run();
    assert.equal(late.code, 1, late.out + late.err);
    assert.match(first.history().pop().warnings.join('\n'), /^replication slot s of \S+ has lost WAL that its subscriber or standby still needs, because of max_slot_wal_keep_size: that one has to be made anew; select pg_drop_replication_slot\('s'\)$/m);
    assert.ok(publisher.isRunning());
    publisher.stop();
  });

  test('a subscriber that comes back from an archive lacks rows without an error: the restore says so, and what it says mends it', async () => {
    const publisher = await cluster('ahead', 5507, { wal_level: 'logical' }), subscriber = await cluster('behind', 5508, { wal_retrieve_retry_interval: '500' });
    for (const one of [publisher, subscriber]) {
      one.sql('postgres', 'create database shop');
      one.sql('shop', 'create table orders (place text, n int, primary key (place, n))');
    }
    const numbers = (one: TestCluster) => one.sql('shop', 'select string_agg(n::text, \' \' order by n) from orders'), write = (n: number) => publisher.sql('shop', `insert into orders values ('here', ${n})`);
    const connection = `connection 'host=${publisher.socketFolder} port=5507 dbname=shop user=postgres' publication p with (slot_name = ours)`;
    publisher.sql('shop', 'create publication p for all tables');
    subscriber.sql('shop', `create subscription "our shop" ${connection}`);
    write(1);
    await waitFor('it arrives', () => numbers(subscriber) === '1', 30);
    const saved = await server('behind', [`postgres ${subscriber.dataDirectory}`]), { archive } = isGood(await saved.run(), saved);
    assert.match(runbook(saved, archive), /^- PostgreSQL .*behind.*, subscription `our shop` of database `shop`: .*`ALTER SUBSCRIPTION "our shop" DISABLE;/m);
    write(2);
    await waitFor('it arrives', () => numbers(subscriber) === '1 2', 30);

    const { findings } = JSON.parse((await saved.run(['restore', 'latest', '--in-place', '--dry-run', '--json'])).out), told = findings.find(({ about }: any) => about === 'subscription our shop of shop');
    assert.equal(told?.verdict, 'after', JSON.stringify(findings));
    const ended = await saved.run(['restore', 'latest', '--in-place']);
    assert.equal(ended.code, 1, ended.out + ended.err);
    assert.match(ended.err, /warning: .*, subscription our shop of shop: what was sent here after this backup is not sent again, and no error says so\. To be mended now: /);
    write(3);
    await waitFor('it goes on', () => numbers(subscriber) === '1 3', 30); // 2 never comes
    const answer = execFileSync('bash', ['-ec', told.mend[0]], { encoding: 'utf8', cwd: '/' });
    assert.match(answer, /^host=\S+ port=5507 dbname=shop user=postgres\|\{p\}\|ours$/m);
    execFileSync('bash', ['-ec', told.mend[1]], { cwd: '/', stdio: 'ignore' });
    publisher.sql('shop', `select pg_drop_replication_slot('ours')`);
    subscriber.sql('shop', 'truncate orders');
    subscriber.sql('shop', `create subscription "our shop" ${connection}`);
    await waitFor('all rows are there', () => numbers(subscriber) === '1 2 3', 30);
    for (const one of [subscriber, publisher]) one.stop();
  });

  test('a standby is a source: it is shut down in recovery, follows its primary again, and its archive comes up with its rows', async () => {
    const primary = await cluster('primary', 5505), standby = path.join(folder, 'standby', 'data');
    primary.sql('postgres', 'create database shop');
    primary.sql('shop', "create table orders (place text, n int, primary key (place, n)); insert into orders select 'first', g from generate_series(1, 500) g");
    const own = (argv: string[]) => execFileSync('runuser', ['-u', primary.owner, '--', ...argv], { cwd: '/', encoding: 'utf8', stdio: ['ignore', 'pipe', 'ignore'] });
    fs.mkdirSync(path.join(folder, 'standby/socket'), { recursive: true });
    execFileSync('chown', ['-R', primary.owner, path.join(folder, 'standby')]);
    own([`/usr/lib/postgresql/${PG}/bin/pg_basebackup`, '-h', primary.socketFolder, '-p', '5505', '-U', 'postgres', '-D', standby, '-R', '-C', '-S', 'standby', '-X', 'stream', '--checkpoint=fast', '--no-sync']);
    fs.appendFileSync(path.join(standby, 'postgresql.conf'), `\nport = 5506\nunix_socket_directories = '${folder}/standby/socket'\nwal_retrieve_retry_interval = 500\n`);
    const copy = clusters.standby = await makeCluster({ folder: path.join(folder, 'standby'), version: 'debian', port: 5506 }); // as it lies there
    assert.equal(copy.sql('postgres', 'select pg_is_in_recovery()'), 't');
    const app = writer('primary', primary, 'shop');
    app.startNow();
    await waitFor('rows arrive', () => /primary/.test(orders(copy)), 30);

    const source = await server('standby', [`postgres ${standby}`]);
    const before = written('primary'), line = isGood(await source.run(), source);
    const { proof, postgres: [passport] } = JSON.parse(source.borg('extract', '--stdout', `::${line.archive}`, 'record/manifest.json'));
    assert.deepEqual(proof.clusters.map(({ state }: any) => state), ['shut down in recovery']);
    assert.equal(passport.recovery.inRecovery, true);
    assert.match(runbook(source, line.archive), /^- PostgreSQL .*standby.*, which is a standby: it follows its primary only while that has all WAL since this backup/m);
    const origin = await server('primary', [`postgres ${primary.dataDirectory}`]);
    assert.match(runbook(origin, isGood(await origin.run(), origin).archive), /^- PostgreSQL .*primary.*, standby `walreceiver`: it is ahead of these files/m);
    await waitFor('the primary is written to meanwhile, and it follows', () => written('primary') > before && copy.sql('postgres', "select count(*) from pg_stat_wal_receiver where status = 'streaming'") === '1', 30);
    stop(app);
    fs.writeFileSync(path.join(folder, 'written-first'), '1\n'.repeat(500));
    await converge(primary, copy, ['first', 'primary']);
    const drill = await source.run(['drill', '--json']);
    assert.equal(drill.code, 0, drill.out + drill.err);
    for (const one of [copy, primary]) one.stop();
  });
});
