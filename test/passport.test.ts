// The passport, asked of real servers of every major version, of Debian's own and of one in a container.
import './alone.ts';
import { after, beforeEach, describe, test } from 'node:test';
import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { PG, makeCluster } from './cluster.ts';
import type { ClusterOptions, TestCluster } from './cluster.ts';
import { startEngine } from './engine.ts';
import { findContainers } from '../lib/containers.ts';
import { describeCluster, findClusters } from '../lib/postgres.ts';
import type { Cluster } from '../lib/postgres.ts';
import { passportOf } from '../lib/passport.ts';
import { configFilesOf, maskSecrets, queryCluster } from '../lib/questions.ts';
import { manifestOf, soundManifest } from '../lib/record.ts';
import { mode, warnings } from '../lib/say.ts';
import type { Plan } from '../lib/plan.ts';

mode.quiet = true;
const top = fs.mkdtempSync(path.join(os.tmpdir(), 'passport-'));
fs.chmodSync(top, 0o755);
const made: TestCluster[] = [];
let number = 0;

async function make(options: Partial<ClusterOptions> & Pick<ClusterOptions, 'version'>): Promise<TestCluster> {
  number++;
  const cluster = await makeCluster({ folder: path.join(top, String(number)), port: 6000 + number, ...options });
  made.push(cluster);
  return cluster;
}

/** The cluster as lib/postgres.ts describes it, with the address of the running server. */
function described(one: TestCluster): Cluster {
  const cluster = describeCluster('test', one.dataDirectory, '');
  const pid = one.isRunning() ? parseInt(fs.readFileSync(path.join(one.dataDirectory, 'postmaster.pid'), 'utf8')) : 0;
  return { ...cluster, pid, port: String(one.port), socketFolder: one.socketFolder, binaries: one.binaries, roots: [one.dataDirectory] };
}

beforeEach(() => void warnings.splice(0));
after(() => {
  for (const one of made) one.destroy();
  fs.rmSync(top, { recursive: true, force: true });
});

const SECRETS = `
  create role app login password 'hunter2';
  create subscription away connection 'host=192.0.2.1 dbname=x user=y password=hunter2' publication p with (connect = false);
  alter system set primary_conninfo = 'host=192.0.2.1 user=y password=hunter2 application_name=web1';
  alter system set archive_command = 'PGPASSWORD=hunter2 copy-away --token hunter2 %p sftp://me:hunter2@192.0.2.1/%f';
  alter system set ssl_passphrase_command = 'echo hunter2';
  alter database shop set app.jwt_secret = 'hunter2';
  alter role app set app.api_key = 'hunter2';
  select pg_reload_conf();`;
const SHOP = `
  create extension pg_trgm;
  create table customer (id int primary key, name text, town text collate "de-x-icu");
  create index by_name on customer (name);
  create index by_town on customer (town);
  create table parted (key text collate "de-x-icu") partition by range (key);
  insert into customer select g, 'n' || g, 't' || g from generate_series(1, 1000) g;
  create unlogged table basket (id int);
  create materialized view empty as select 1 with no data;
  create sequence number start 9007199254740993;
  select nextval('number');
  create table "We're odd" (id int) tablespace elsewhere;
  insert into "We're odd" values (1), (2);
  create publication all_of_it for all tables;
  analyze customer;`;

describe('every major version', { concurrency: 2 }, () => {
  for (const version of ['12', '13', '14', '15', '16', '17', '18', 'debian'] as const) {
    test(`PostgreSQL ${version} tells everything, without a warning and without a secret`, async () => {
      const cluster = await make({ version, tablespace: true, walElsewhere: true, sql: 'create database shop',
        settings: { max_prepared_transactions: '5', wal_level: 'logical', archive_mode: 'on' } });
      cluster.sql('shop', SHOP);
      cluster.sql('postgres', SECRETS);
      cluster.sql('postgres', "select pg_create_logical_replication_slot('kept', 'test_decoding')");
      cluster.sql('postgres', 'create table access_tokens as select 1 as id'); // a secret by its name
      cluster.sql('postgres', "begin; create table held (id int); prepare transaction 'held'");

      const passport = await passportOf([described(cluster)], [], [cluster.dataDirectory]);

      const [told] = passport.postgres;
      assert.ok(told);
      const major = version === 'debian' ? PG : version;
      assert.equal(told.systemIdentifier, cluster.sql('postgres', 'select system_identifier from pg_control_system()'));
      assert.match(told.serverVersion!, new RegExp(`^PostgreSQL ${major}\\.`));
      assert.match(told.pgConfig.VERSION!, new RegExp(`^PostgreSQL ${major}\\.`));
      assert.equal(told.controlData[version === 'debian' ? 'Database system identifier' : 'system_identifier'], told.systemIdentifier);
      assert.equal(told.settings!.max_prepared_transactions, '5');
      assert.match(told.settingSources!.max_prepared_transactions!, /postgresql\.conf:\d+$/);
      assert.equal(told.settings!.block_size, '8192');
      assert.equal(told.settings!.data_checksums, version === '18' ? 'on' : 'off');
      assert.match(told.settings!.archive_command!, /^PGPASSWORD=\(masked\) copy-away --token \(masked\) %p sftp:\/\/me:\(masked\)@192\.0\.2\.1\/%f$/);
      if (version === '12') assert.deepEqual(told.pendingRestart, ['primary_conninfo']); // only since 13 it is taken over without a restart
      else assert.equal(told.settings!.primary_conninfo, 'host=192.0.2.1 user=y password=(masked) application_name=web1');
      assert.deepEqual(told.preparedTransactions!.map((one) => one.gid), ['held']);
      assert.deepEqual(told.subscriptions!.map((one) => [one.subname, one.database]), [['away', 'postgres']]);
      assert.equal(told.slots![0]!.slot_name, 'kept');
      assert.ok(told.slots![0]!.retainedBytes >= 0);
      assert.ok(told.roles!.some((one) => one.rolname === 'app'));
      assert.equal(told.tablespaceSizes!.find((one) => one.name === 'elsewhere')!.location, cluster.tablespaceFolder);
      assert.equal(told.walFolder, cluster.walFolder);
      assert.equal(told.recovery!.inRecovery, false);
      assert.match(told.icu, /^libicui18n\.so\.\d+\.\d+$/);
      assert.ok(told.configurationFiles!.includes(path.join(cluster.dataDirectory, 'postgresql.auto.conf')));

      const { activity } = told.databases.find((one) => one.name === 'postgres')!;
      assert.match(activity!['public.access_tokens']!, /^\d+ \d+ \d+$/, 'a drill could not tell whether its rows are all there');
      const shop = told.databases.find((one) => one.name === 'shop')!;
      assert.deepEqual([shop.encoding, shop.collate, shop.provider, shop.connectable], ['UTF8', 'C.UTF-8', 'c', true]);
      assert.deepEqual(shop.rows, { 'public.customer': 1000, 'public.basket': 0, 'public."We\'re odd"': 2 });
      assert.equal(shop.estimatedRows!['public.customer'], 1000);
      assert.deepEqual(shop.sequences, [{ name: 'public.number', last: '9007199254740993' }]);
      assert.deepEqual(shop.unlogged, ['public.basket']);
      assert.ok(shop.extensions!.some((one) => one.name === 'pg_trgm'));
      assert.ok(shop.libraries!.includes('$libdir/pg_trgm'));
      assert.equal(shop.publications![0]!.pubname, 'all_of_it');
      const icu = shop.collations!.find((one) => one.name === 'de-x-icu')!;
      assert.deepEqual([icu.provider, icu.indexes, icu.partitionedTables], ['i', ['public.by_town'], ['public.parted']]);
      assert.match(icu.recorded!, /^\d+\./);
      assert.equal(icu.recorded, icu.actual);
      const usual = shop.collations!.find((one) => one.name === 'default')!;
      assert.deepEqual([usual.provider, usual.locale, usual.indexes], ['c', 'C.UTF-8', ['public.by_name']]);
      assert.match(icu.orderFingerprint, /^[0-9a-f]{64}$/);
      assert.match(shop.orderFingerprint, /^[0-9a-f]{64}$/);
      assert.notEqual(icu.orderFingerprint, shop.orderFingerprint);

      assert.deepEqual(JSON.stringify(passport).match(/.{0,60}(hunter2|SCRAM-SHA).{0,20}/g), null);
      assert.deepEqual(warnings, []);
    });
  }
});

test('of the host: system, packages that own what is in use, owners of the saved files', async () => {
  const cluster = await make({ version: 'debian', settings: { shared_preload_libraries: 'pg_stat_statements' }, sql: 'create extension pg_trgm' });
  const stranger = path.join(cluster.dataDirectory, 'stranger');
  fs.writeFileSync(stranger, '');
  fs.chownSync(stranger, 4242, 4243);
  const { host, packages } = await passportOf([described(cluster)], [], [cluster.dataDirectory]);
  assert.ok(host.osRelease.ID);
  assert.match(host.libc, /^glibc \d/);
  assert.match(host.pageSize, /^\d+$/);
  assert.ok(host.locales.includes('C.utf8'));
  assert.deepEqual(host.users.map(({ id, name }) => [id, name]), [[fs.statSync(cluster.dataDirectory).uid, cluster.owner], [4242, '']]);
  assert.ok(host.groups.some(({ id }) => id === 4243));
  for (const name of [`postgresql-${PG}`, 'borgbackup', 'nodejs']) assert.equal(packages.needed[name], packages.all[name]);
  assert.ok(Object.keys(packages.needed).some((name) => name.startsWith('libc6')));
  assert.ok(Object.keys(packages.all).length > Object.keys(packages.needed).length);
  assert.equal(packages.node, process.versions.node);
  assert.match(packages.borg, /^\d+\./);
  assert.deepEqual(packages.unowned, []);
});

test('programs and libraries that no package owns are named', async () => {
  const cluster = await make({ version: '16', sql: 'create extension pg_trgm' });
  const { packages } = await passportOf([described(cluster)], [], []);
  for (const name of ['postgres', 'pg_trgm.so', 'plpgsql.so', 'pg_trgm.control', 'english.stop']) {
    assert.ok(packages.unowned.some((file) => path.basename(file) === name), name);
  }
});

test('of a cluster that does not run, the files are told, without a warning', async () => {
  const cluster = await make({ version: 'debian' });
  const identifier = cluster.sql('postgres', 'select system_identifier from pg_control_system()');
  cluster.stop();
  const [told] = (await passportOf([described(cluster)], [], [])).postgres;
  assert.deepEqual([told!.answers, told!.systemIdentifier, told!.databases], [false, identifier, []]);
  assert.equal(told!.controlData['Database cluster state'], 'shut down');
  assert.match(told!.pgConfig.VERSION!, new RegExp(String.raw`^PostgreSQL ${PG}`));
  assert.deepEqual(warnings, []);
});

test('a table that somebody holds locked costs only its own count', async () => {
  const cluster = await make({ version: '14', sql: 'create table locked (id int); create table free (id int); create sequence kept; insert into free values (1)' });
  const holder = spawn('psql', ['-X', '-q', '-h', cluster.socketFolder, '-p', String(cluster.port), '-U', cluster.owner, '-d', 'postgres'], { stdio: ['pipe', 'ignore', 'inherit'] });
  holder.stdin.write('begin; lock table locked in access exclusive mode;\n');
  while (cluster.sql('postgres', "select count(*) from pg_locks where mode = 'AccessExclusiveLock'") !== '1') await sleep(20);
  const [told] = (await passportOf([described(cluster)], [], [])).postgres;
  holder.stdin.end();
  const database = told!.databases.find((one) => one.name === 'postgres')!;
  assert.deepEqual(database.rows, { 'public.free': 1 });
  assert.ok('public.locked' in database.estimatedRows!);
  assert.deepEqual(warnings, []);
});

test('facts that its role may not see are warnings, the others are there', async () => {
  const cluster = await make({ version: 'debian', superuser: 'chief', sql: 'create role postgres login; create table t as select 1 id; grant select on t to postgres' });
  const [told] = (await passportOf([described(cluster)], [], [])).postgres;
  assert.equal(told!.databases.find((one) => one.name === 'postgres')!.rows!['public.t'], 1);
  assert.equal(told!.hba, undefined);
  assert.ok(warnings.some((one) => /lacks 'hba' of postgres test.*permission denied/.test(one)), warnings.join('\n'));
});

test('where no role has the name of the owner, postgres is asked', async () => {
  const cluster = await make({ version: 'debian', owner: 'nobody', superuser: 'postgres' });
  const [told] = (await passportOf([described(cluster)], [], [])).postgres;
  assert.equal(told!.answers, true);
  assert.deepEqual(warnings, []);
});

test('a cluster that wants a password is not waited for', async () => {
  const cluster = await make({ version: 'debian', sql: "alter role postgres password 'hunter2'" });
  fs.writeFileSync(path.join(cluster.dataDirectory, 'pg_hba.conf'), 'local all all scram-sha-256\n');
  cluster.stop();
  cluster.start();
  const startedAt = Date.now();
  const [told] = (await passportOf([described(cluster)], [], [])).postgres;
  assert.ok(Date.now() - startedAt < 45_000); // look() would wait for a minute
  assert.equal(told!.answers, false);
  assert.match(warnings.join('\n'), /lacks all facts of postgres test.*no password supplied/s);
});

test('when another cluster answers on its address, its facts are not taken', async () => {
  const [one, other] = [await make({ version: 'debian' }), await make({ version: 'debian' })];
  const [told] = (await passportOf([{ ...described(one), socketFolder: other.socketFolder, port: String(other.port) }], [], [])).postgres;
  assert.equal(told!.answers, false);
  assert.match(warnings.join('\n'), /another cluster answers/);
});

test('a cluster without database "postgres", with one in LATIN1 and with one that takes no connections is told', async () => {
  const cluster = await make({ version: '17', sql: "create database latin encoding 'LATIN1' locale 'C' template template0; create database closed allow_connections false" });
  cluster.sql('latin', `set client_encoding = 'UTF8'; create table "Straße" (id int)`);
  cluster.sql('template1', 'drop database postgres');
  const [told] = (await passportOf([described(cluster)], [], [])).postgres;
  const latin = told!.databases.find((one) => one.name === 'latin')!;
  assert.deepEqual(latin.rows, { 'public."Straße"': 0 });
  assert.match(latin.orderFingerprint, /^[0-9a-f]{64}$/);
  assert.equal(told!.databases.find((one) => one.name === 'closed')!.connectable, false);
  assert.deepEqual(warnings, []);
});

test('WAL that a forgotten slot holds back is told with slot and size, and a slot in use is not', async () => {
  const cluster = await make({ version: 'debian', settings: { wal_level: 'logical' } });
  cluster.sql('postgres', "select pg_create_physical_replication_slot('gone', true)");
  await passportOf([described(cluster)], [], []);
  assert.deepEqual(warnings, [], 'it holds back next to nothing');
  for (let segment = 0; segment < 33; segment++) cluster.sql('postgres', "select pg_logical_emit_message(false, 'x', 'x'), pg_switch_wal()");
  const [told] = (await passportOf([described(cluster)], [], [])).postgres;
  assert.match(warnings.join('\n'), /^replication slot gone of test, which nobody uses, holds back 5[0-9][0-9] MB of WAL: .*pg_drop_replication_slot\('gone'\)$/);
  assert.ok(Number(told!.slots![0]!.retainedBytes) > 500e6);
});

test('a table above 256 MB is told by its estimate', async () => {
  const cluster = await make({ version: 'debian' });
  cluster.fillTo(300_000_000);
  cluster.sql('postgres', 'analyze filler');
  const [told] = (await passportOf([described(cluster)], [], [])).postgres;
  const database = told!.databases.find((one) => one.name === 'postgres')!;
  assert.deepEqual(database.rows, {});
  assert.ok(database.estimatedRows!['public.filler']! > 200_000);
});

test('what is asked through queryCluster() runs in a read-only session', async () => {
  const cluster = await make({ version: '13' });
  const { code, said } = await queryCluster(described(cluster), 'postgres', 'create table made (id int)');
  assert.equal(code, 1);
  assert.match(said, /read-only transaction/);
});

test('configuration outside the data directory is found: included files, certificates', async () => {
  const outside = path.join(top, 'extra.conf'), key = path.join(top, 'server.key'), linked = path.join(top, 'linked'), real = path.join(top, 'real'), current = path.join(top, 'current.conf');
  fs.mkdirSync(real);
  fs.symlinkSync(real, linked);
  fs.symlinkSync(path.join(linked, 'more.conf'), current);
  for (const name of ['more.conf', 'below.conf']) fs.writeFileSync(path.join(real, name), "work_mem = '5MB'\n");
  fs.writeFileSync(outside, "work_mem = '5MB'\n");
  fs.writeFileSync(key, '');
  const cluster = await make({ version: 'debian' });
  fs.appendFileSync(path.join(cluster.dataDirectory, 'postgresql.conf'), `include '${outside}'\nssl_key_file = '${key}'\ninclude '${linked}/below.conf'\ninclude '${current}'\n`);
  cluster.stop();
  cluster.start();
  const told = described(cluster);
  assert.deepEqual((await configFilesOf(told)).sort(), [current, outside, path.join(real, 'below.conf'), path.join(real, 'more.conf'), key], 'where it lies, and a link to it: borg saves one file by one path');
  assert.deepEqual(told.configLinks, [{ link: linked, location: real }], 'and what leads there is noted');
});

test('a fact that would keep `restore` from the archive is told in the night', async () => {
  const stateFolder = path.join(top, 'state'), passport = await passportOf([], [], []);
  const plan = { server: 'web1', archive: 'web1-2026-11-23T02:00:00', madeAt: '2026-11-23T02:00:00.000Z', repository: '/r', roots: [], clusters: [], parts: [], exclude: [], containers: [] } as unknown as Plan;
  fs.mkdirSync(path.join(stateFolder, 'record'), { recursive: true });
  fs.writeFileSync(path.join(stateFolder, 'record/backup.js'), '');
  soundManifest(JSON.stringify(manifestOf(stateFolder, 'backup.js', plan, passport)), plan.archive);
  assert.deepEqual(warnings, []);
  const odd = manifestOf(stateFolder, 'backup.js', plan, { ...passport, containers: [{ name: 'shop', image: null } as any] });
  assert.throws(() => soundManifest(JSON.stringify(odd), plan.archive), /containers\[0\]\.image is not what it should be/);
  assert.match(warnings.join('\n'), /^`restore` and `drill` will refuse this archive, for containers\[0\]\.image is not what it should be; RESTORE\.md/);
});

test('secrets are masked, paths and harmless words are not', () => {
  assert.equal(maskSecrets('ssl_key_file', '/etc/ssl/private/key.pem'), '/etc/ssl/private/key.pem');
  assert.equal(maskSecrets('password_encryption', 'scram-sha-256'), 'scram-sha-256');
  assert.equal(maskSecrets('primary_conninfo', "user=a password='hun \\' ter2' host=b passfile=/x/.pgpass"), 'user=a password=(masked) host=b passfile=/x/.pgpass');
  assert.equal(maskSecrets('0', 'ldapbindpasswd=hunter2'), 'ldapbindpasswd=(masked)');
  assert.equal(maskSecrets('0', 'radiussecrets="a,b"'), 'radiussecrets=(masked)');
  assert.equal(maskSecrets('restore_command', 'AWS_SECRET_ACCESS_KEY=hunter2 fetch %f'), 'AWS_SECRET_ACCESS_KEY=(masked) fetch %f');
  assert.equal(maskSecrets('x', 'postgresql://me:hunter2@host/db'), 'postgresql://me:(masked)@host/db');
});

test('PostgreSQL in a container is asked by the name in its environment, and the container is described without its secrets', { skip: process.getuid?.() !== 0 }, async () => {
  const engine = await startEngine(['postgres']);
  try {
    Object.assign(process.env, engine.env);
    engine.docker(['run', '--detach', '--name', 'shop-db', '--network', 'none', '--restart', 'unless-stopped', '--env', 'POSTGRES_USER=chief', '--env', 'POSTGRES_PASSWORD=hunter2',
      '--label', 'com.docker.compose.project=shop', '--label', 'com.docker.compose.service=db', '--label', 'com.docker.compose.project.config_files=/srv/shop/compose.yml', 'postgres']);
    let cluster: Cluster | undefined;
    for (const until = Date.now() + 30_000; !cluster && Date.now() < until; await sleep(200)) {
      cluster = (await findClusters(await findContainers(true))).find((one) => one.container === 'shop-db');
      if (cluster && (await queryCluster({ ...cluster, port: '5432', socketFolder: '/var/run/postgresql' }, 'postgres', 'select 1')).code !== 0) cluster = undefined;
    }
    assert.ok(cluster);
    const passport = await passportOf([{ ...cluster, port: '5432', socketFolder: '/var/run/postgresql' }], ['shop-db'], cluster.roots);
    const [told] = passport.postgres, [container] = passport.containers;
    assert.equal(told!.answers, true);
    assert.equal(told!.controlData['Database system identifier'], told!.systemIdentifier);
    assert.ok(told!.roles!.some((one) => one.rolname === 'chief'));
    assert.ok(told!.databases.length >= 3);
    assert.match(told!.system!.kernel, /^Linux/);
    assert.deepEqual([container!.name, container!.image, container!.composeProject, container!.composeService, container!.composeFiles], ['shop-db', 'postgres', 'shop', 'db', ['/srv/shop/compose.yml']]);
    assert.deepEqual([container!.restartPolicy, container!.stopSignal, container!.hasHealthCheck], ['unless-stopped', 'SIGINT', false]);
    assert.match(container!.imageId, /^sha256:/);
    assert.equal(container!.mounts[0]!.destination, '/var/lib/postgresql/data');
    assert.ok(container!.environmentNames.includes('POSTGRES_PASSWORD'));
    assert.deepEqual(JSON.stringify(passport).match(/.{0,60}hunter2.{0,20}/g), null);
    assert.deepEqual(warnings, []);
  } finally {
    delete process.env.DOCKER_HOST;
    engine.destroy();
  }
});
