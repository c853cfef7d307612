// The judge, on real clusters: what it calls fine starts and passes pg_amcheck, what it refuses really fails, and the REINDEX list it gives cures.
// The machine is changed by mounts over its files, in namespaces of this file's own (./alone.ts): nobody else sees them.
import './alone.ts';
import { after, before, describe, test } from 'node:test';
import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import fs from 'node:fs';
import { createServer } from 'node:net';
import path from 'node:path';
import { PG, binariesOf, makeCluster } from './cluster.ts';
import type { TestCluster } from './cluster.ts';
import { cannotRunHere, makeHardCluster } from './night.ts';
import { testFolder } from './script.ts';
import { describeCluster } from '../lib/postgres.ts';
import { passportOf } from '../lib/passport.ts';
import { judge } from '../lib/judge.ts';
import type { Finding } from '../lib/judge.ts';
import { mode } from '../lib/say.ts';

mode.quiet = true;
const skip = process.getuid?.() === 0 ? cannotRunHere(['localedef', 'unshare', `/usr/lib/postgresql/${PG}/bin/pg_amcheck`]) : 'needs root';
const run = (program: string, ...words: string[]) => execFileSync(program, words, { encoding: 'utf8', stdio: ['ignore', 'pipe', 'pipe'], cwd: '/', env: { ...process.env, LC_ALL: 'C' } });
const inShare = (name: string) => `/usr/share/postgresql/${PG}/extension${name && `/${name}`}`, library = (name: string) => `/usr/lib/postgresql/${PG}/lib/${name}.so`;

/** Another file or folder in the place of one of the machine's, while `action` runs. */
async function withInstead<T>(place: string, other: string, action: () => Promise<T> | T): Promise<T> {
  run('mount', '--bind', other, place);
  try { return await action(); } finally { run('umount', '--lazy', place); }
}

/** What a backup of this cluster, made now, would know. `changes` are made to the record, as if it came from another machine. */
async function manifestOf(one: TestCluster, change: (manifest: any) => void = () => {}): Promise<any> {
  const pid = one.isRunning() ? parseInt(fs.readFileSync(path.join(one.dataDirectory, 'postmaster.pid'), 'utf8')) : 0;
  const cluster = { ...describeCluster('test', one.dataDirectory, ''), pid, port: String(one.port), socketFolder: one.socketFolder, binaries: one.binaries, roots: [one.dataDirectory] };
  const manifest = { ...await passportOf([cluster], [], [one.dataDirectory]), plan: { clusters: [cluster], roots: [{ path: one.dataDirectory, why: 'postgres test' }] } };
  change(manifest);
  return JSON.parse(JSON.stringify(manifest));
}

describe('the judge', { skip }, () => {
  const top = testFolder('judge'), scratch = path.join(top, 'scratch'), empty = path.join(top, 'empty'), nothing = path.join(top, 'nothing');
  const locales = path.join(top, 'locales'), danish = path.join(top, 'danish');
  let cluster: TestCluster, saved: any;

  const findings = async (manifest: any): Promise<Finding[]> => judge(manifest, manifest.plan.clusters, { scratch });
  /** What it says of one thing, once nothing else is refused. */
  const only = async (about: string | RegExp, manifest: any): Promise<Finding> => {
    const all = await findings(manifest), meant = all.find((one) => (typeof about === 'string' ? one.about === about : about.test(one.about)));
    assert.ok(meant, JSON.stringify(all, null, 1));
    return meant;
  };
  const amcheck = (one: TestCluster) => run('runuser', '-u', one.owner, '--', `/usr/lib/postgresql/${PG}/bin/pg_amcheck`, '-h', one.socketFolder, '-p', String(one.port), '--all', '--heapallindexed', '--install-missing');
  const fails = (action: () => unknown, pattern: RegExp) => assert.throws(action, (error: any) => pattern.test(`${error.message}${error.stderr}${fs.readFileSync(path.join(top, 'pg', 'server.log'), 'utf8').split('\n').slice(-15).join('\n')}`) || assert.fail(error));
  /** Stopped, then started under what `action` made of the machine. */
  const doesNotStart = (one: TestCluster, pattern: RegExp) => {
    one.stop();
    try { fails(() => one.start(), pattern); } finally { if (one.isRunning()) one.stop(); }
  };

  before(async () => {
    fs.mkdirSync(scratch);
    fs.mkdirSync(empty);
    fs.writeFileSync(nothing, '');
    run('cp', '-a', '/usr/lib/locale', locales);
    fs.rmSync(path.join(locales, 'locale-archive'), { force: true }); // what other locales the machine has is not our matter
    run('localedef', '-i', 'en_US', '-f', 'UTF-8', '--no-archive', path.join(locales, 'en_US.utf8'));
    run('localedef', '-i', 'da_DK', '-f', 'UTF-8', '--no-archive', danish);
    run('mount', '--bind', locales, '/usr/lib/locale');
    cluster = await makeHardCluster(path.join(top, 'pg'), { settings: { max_wal_size: '64MB', fsync: 'off', shared_preload_libraries: 'pg_stat_statements', lc_messages: 'en_US.UTF-8', timezone: 'Africa/Maputo', listen_addresses: '127.0.0.1' } });
    cluster.sql('postgres', `create database office template template0 encoding 'UTF8' lc_collate 'en_US.UTF-8' lc_ctype 'en_US.UTF-8'`);
    cluster.sql('office', `
      create collation blind (provider = icu, locale = 'und-u-ks-level2', deterministic = false);
      create schema "We're odd"; create table "We're odd"."Towns; drop" (name text, plain text collate blind);
      insert into "We're odd"."Towns; drop" select chr(97 + g % 26) || chr(97 + g / 26 % 26) || g, 'T' || g from generate_series(1, 5000) g;
      create index on "We're odd"."Towns; drop" (name); create index "its ""Index""" on "We're odd"."Towns; drop" (plain);
      create table parted (key text) partition by range (key); create table parted_a partition of parted for values from (minvalue) to ('m');
      create index on parted (key); insert into parted values ('a'), ('aa'), ('b')`);
    saved = await manifestOf(cluster);
  });
  after(() => {
    cluster?.destroy();
    try { run('umount', '--lazy', '/usr/lib/locale'); } catch { /* not mounted */ }
  });

  test('a machine like the saved one is fine, within seconds; the cluster starts there and every index is sound', async () => {
    const began = Date.now();
    assert.deepEqual(await findings(saved), []);
    console.log(`judged in ${((Date.now() - began) / 1000).toFixed(1)} s`);
    assert.deepEqual(fs.readdirSync(scratch), [], 'nothing of the empty cluster is left');
    cluster.stop();
    cluster.start();
    amcheck(cluster);
  });

  test('a library that is missing, or of another make, is refused, and its functions do fail', async () => {
    await withInstead(library('pg_trgm'), nothing, () => withInstead(library('pg_stat_statements'), nothing, async () => {
      const found = await findings(saved);
      assert.deepEqual(found.map((one) => [one.about, one.verdict, one.breaks]), [['library pg_stat_statements', 'refused', 'PostgreSQL does not start (shared_preload_libraries)'],
        ['library $libdir/pg_trgm', 'refused', 'functions and indexes that use it fail in shop']]);
      assert.match(found[1]!.mend.join(), new RegExp(String.raw`apt-get install --reinstall .*postgresql-${PG}`));
      fails(() => cluster.sql('shop', `select similarity('a', 'b')`), /file too short/);
      doesNotStart(cluster, /could not load library.*pg_stat_statements/);
    }));
    cluster.start();
  });

  test('an extension that is older here is refused; one without its control file works and is noted', async () => {
    const older = path.join(top, 'older');
    run('cp', '-a', inShare(''), older);
    for (const name of fs.readdirSync(older).filter((one) => /^pg_trgm--.*1\.6\.sql|^hstore/.test(one))) fs.rmSync(path.join(older, name));
    fs.writeFileSync(path.join(older, 'pg_trgm.control'), fs.readFileSync(inShare('pg_trgm.control'), 'utf8').replace("'1.6'", "'1.5'"));
    await withInstead(inShare(''), older, () => withInstead(library('pg_trgm'), library('pg_buffercache'), async () => { // that one has none of its functions, as an older one has not the newest
      assert.deepEqual((await findings(saved)).map((one) => [one.about, one.verdict, one.recorded, one.here]), [['extension pg_trgm', 'refused', '1.6', '1.5, older'], ['extension hstore', 'note', '1.8', 'no control file']]);
      fails(() => cluster.sql('shop', `select similarity('a', 'b')`), /could not find function/);
      assert.equal(cluster.sql('shop', `select count(*) from customers where more @> 'n=>7'`), '1');
    }));
  });

  test('a locale that is not here is refused: the database does not open, and PostgreSQL does not start with its messages', async () => {
    await withInstead('/usr/lib/locale/en_US.utf8', empty, async () => {
      const all = await findings(saved);
      assert.deepEqual(all.map((one) => [one.about, one.verdict]), [['setting lc_messages', 'refused'], ['locale en_US.UTF-8', 'refused']]);
      assert.match(all[1]!.breaks, /^office cannot be opened/);
      assert.match(all[1]!.mend.join(), /echo 'en_US.UTF-8 UTF-8' >> \/etc\/locale.gen && locale-gen/);
      fails(() => cluster.sql('office', 'select 1'), /database locale is incompatible with operating system/);
      doesNotStart(cluster, /invalid value for parameter "lc_messages"/);
    });
    cluster.start();
  });

  test('another major version, another architecture, another block size are refused', async () => {
    const binaries = binariesOf('16');
    await withInstead(`/usr/lib/postgresql/${PG}`, empty, async () => {
      const other = structuredClone(saved);
      other.plan.clusters[0].binaries = binaries;
      const found = await only('PostgreSQL', other);
      assert.deepEqual([found.verdict, found.recorded], ['refused', PG]);
      assert.match(found.mend.join('\n'), new RegExp(String.raw`apt-get install --yes postgresql-${PG}`));
      assert.match(found.breaks, new RegExp(String.raw`cluster ${PG}/main of its own`));
    });
    cluster.stop();
    fails(() => run('runuser', '-u', cluster.owner, '--', path.join(binaries, 'postgres'), '-D', cluster.dataDirectory), new RegExp(`initialized by PostgreSQL version ${PG}, which is not compatible with this version 16`));
    cluster.start();
    const found = await findings({ ...saved, host: { ...saved.host, architecture: 'arm64' }, postgres: [{ ...saved.postgres[0], controlData: { ...saved.postgres[0].controlData, 'Database block size': '16384', 'Float8 argument passing': 'by reference' } }] });
    assert.deepEqual(found.map((one) => [one.about, one.verdict, one.recorded, one.here]), [['architecture', 'refused', 'arm64', process.arch],
      ['database block size', 'refused', '16384', '8192'], ['float8 argument passing', 'refused', 'by reference', 'true']]);
  });

  test('what the machine lacks is refused: the user, the port, the place, the memory; of other owners it says whose number it is here', async () => {
    const passwd = path.join(top, 'passwd'), wall = createServer().unref();
    await new Promise<void>((done) => { wall.listen(0, '127.0.0.1', done); });
    fs.writeFileSync(passwd, fs.readFileSync('/etc/passwd', 'utf8').replace(/^postgres:.*\n/m, ''));
    const { port } = wall.address() as any, other = structuredClone(saved);
    other.plan.clusters[0].port = String(port);
    other.plan.clusters[0].tablespaces[0].location = `${passwd}/elsewhere`;
    Object.assign(other.postgres[0].settings, { shared_memory_size: '999GB', timezone: 'Mars/Olympus' });
    other.postgres[0].databases.find((one: any) => one.name === 'shop').dictionaries = [{ name: 'good', options: "stopwords = 'english'" }, { name: 'maputo', options: "dictfile = 'nowhere', afffile = 'nowhere'" }];
    other.host.users.push({ id: 65534, name: 'app; reboot', group: 1 }, { id: 1_234_567, name: 'app', group: 1_234_567 });
    const found = await withInstead('/etc/passwd', passwd, () => {
      assert.throws(() => run('runuser', '-u', 'postgres', '--', 'true'), /does not exist/);
      return findings(other);
    }), byName = new Map(found.map((one) => [one.about, one]));
    assert.deepEqual(found.map((one) => [one.about, one.verdict]), [['user postgres', 'refused'], ['memory', 'refused'], [`place ${passwd}/elsewhere`, 'refused'], [`port ${port}`, 'refused'], ['setting timezone', 'refused'],
      ['dictionary maputo', 'after'], ['dictionary maputo', 'after'], ['user app; reboot', 'note'], ['user app', 'note']]);
    assert.match(byName.get('user app; reboot')!.breaks, /would belong to user nobody here/);
    assert.deepEqual(byName.get('user app; reboot')!.mend, [], 'a name that is no name is in no command');
    assert.deepEqual(byName.get('user app')!.mend, ['groupadd --gid 1234567 app', 'useradd --uid 1234567 --gid app --no-create-home --shell /usr/sbin/nologin app']);
    fails(() => cluster.sql('shop', `create text search dictionary maputo (template = ispell, dictfile = 'nowhere', afffile = 'nowhere')`), /could not open (dictionary|affix) file/);
    // The saved machine's configuration named the data directory and a certificate over links, and a tablespace's link led over one: here something else lies there, or nothing.
    const over = structuredClone(saved), [package_, missing, current] = [path.join(top, `package/${PG}/main`), path.join(top, 'none/ts'), path.join(top, 'certs/current')];
    fs.mkdirSync(package_, { recursive: true });
    over.plan.clusters[0].configFolder = `/etc/postgresql/${PG}/main`;
    over.plan.clusters[0].roots.push(over.plan.clusters[0].tablespaces[0].location);
    over.plan.clusters[0].tablespaces[0].link = missing;
    over.postgres[0].settings.data_directory = package_;
    over.plan.clusters[0].configLinks = [{ link: current, location: path.join(top, 'certs/v3') }, { link: top, location: '/renewed/since' }];
    const links = (await findings(over)).filter((one) => one.about.startsWith('link '));
    assert.deepEqual(links.map((one) => [one.about, one.verdict, one.here]), [[`link ${package_}`, 'refused', `leads to ${package_}`], [`link ${missing}`, 'refused', 'missing'], [`link ${current}`, 'refused', 'missing']]);
    for (const one of links.flatMap(({ mend }) => mend).filter((line) => !line.startsWith('systemctl stop -- postgresql@'))) run('bash', '-c', one); // as a person pastes them
    assert.equal(fs.realpathSync(package_), cluster.dataDirectory);
    assert.deepEqual((await findings(over)).filter((one) => one.about.startsWith('link ')), []);
    const twin = structuredClone(saved); // of another place, with the port of the one that runs here
    twin.plan.clusters[0].dataDirectory = '/srv/twin';
    assert.match((await only(`port ${cluster.port}`, twin)).here, /^postgres \(process \d+\) has its socket in /);
    cluster.stop();
    const startWith = (option: string) => run('runuser', '-u', cluster.owner, '--', `${cluster.binaries}/postgres`, '-D', cluster.dataDirectory, '-c', option);
    fails(() => startWith(`port=${port}`), /could not create any TCP\/IP sockets/);
    fails(() => startWith('shared_buffers=999GB'), /could not map anonymous shared memory/);
    fails(() => startWith('timezone=Mars/Olympus'), /invalid value for parameter "TimeZone"/i);
    wall.close();
    cluster.start();
  });

  test('a collation that sorts otherwise under the same version: its REINDEX list cures what pg_amcheck finds broken', async () => {
    await withInstead('/usr/lib/locale/en_US.utf8', danish, async () => {
      const found = await findings(saved);
      assert.deepEqual(found.map((one) => [one.about, one.verdict]), [['collation en_US.UTF-8 (libc)', 'after']], JSON.stringify(found));
      assert.match(found[0]!.breaks, /sort in another order.*office: "We're odd"\."Towns; drop_name_idx".*wrong partition.*office: public\.parted/);
      cluster.stop();
      cluster.start();
      assert.throws(() => amcheck(cluster), (error: any) => /invariant violated for index "Towns; drop_name_idx"/.test(error.stdout) || assert.fail(error.stdout + error.stderr));
      cure(cluster, found);
      amcheck(cluster);
      cluster.stop();
    });
    cluster.start();
    cure(cluster, [{ sql: [{ database: 'office', text: 'reindex database office' }] } as Finding]); // back to the order of before
  });

  test('a collation of another version, of ICU or the C library: REINDEX and REFRESH, then the warning is gone', async () => {
    cluster.sql('postgres', `update pg_database set datcollversion = '2.28' where datname = 'office'; update pg_database set datcollversion = '50.1' where datname = 'shop'`);
    cluster.sql('shop', `update pg_collation set collversion = '50.1' where collname = 'de-x-icu'`);
    cluster.sql('office', `update pg_collation set collversion = '50.1' where collname = 'blind'`);
    const warning = (database: string) => run('runuser', '-u', cluster.owner, '--', 'sh', '-c', `psql -X -h ${cluster.socketFolder} -p ${cluster.port} -d ${database} -c 'select 1' 2>&1`);
    assert.match(warning('office'), /collation version mismatch/);
    const found = await findings(await manifestOf(cluster));
    assert.deepEqual(found.map((one) => [one.about, one.verdict, one.recorded]), [['collation en_US.UTF-8 (libc)', 'after', '2.28'], ['collation und-u-ks-level2 (ICU)', 'after', '50.1'], ['collation es (ICU)', 'after', '50.1'], ['collation de (ICU)', 'after', '50.1']]);
    assert.match(found[0]!.mend.join('\n'), /^runuser -u postgres -- psql .* -d office -c 'reindex index .*' -c 'alter database "office" refresh collation version'$/);
    assert.match(found[3]!.breaks, /shop: public.customers_name_idx/);
    for (const one of found.flatMap(({ mend }) => mend)) run('bash', '-c', one); // as a person pastes them
    for (const database of ['office', 'shop']) assert.doesNotMatch(warning(database), /mismatch/);
    amcheck(cluster);
  });

  test('a record that lacks facts, or lies, is judged as far as it goes, and runs nothing', async () => {
    const { postgres: [told], plan } = structuredClone(saved), office = told.databases.find((one: any) => one.name === 'office');
    const slept = { ...told, name: 'slept', dataDirectory: '/srv/slept', answers: false, databases: [], settings: undefined }; // of a cluster that did not run there is only what its files tell
    const gone = path.join(top, 'gone'), sql = `x'; copy (select 1) to program 'touch ${gone}'; --`;
    Object.assign(office, { recorded: '1.0', collate: sql, orderFingerprint: sql, libraries: [sql, '$libdir/../../../../tmp/evil', '/tmp/evil'] });
    Object.assign(office.extensions[0], { name: sql });
    Object.assign(office.collations[0], { name: `x"; ${sql}`, locale: sql, indexes: [`public.x; ${sql}`], recorded: '1.0' });
    Object.assign(told.settings, { lc_messages: sql });
    const found = await findings({ ...saved, postgres: [told, slept], plan: { ...plan, clusters: [...plan.clusters, { ...plan.clusters[0], name: 'slept', dataDirectory: '/srv/slept' }] } });
    assert.deepEqual(found.filter((one) => one.cluster === 'slept' && !/^port/.test(one.about)).map((one) => [one.about, one.verdict, one.here]), [['its databases', 'note', 'not judged']]);
    assert.ok(found.some((one) => one.about === 'library /tmp/evil' && one.verdict === 'refused'));
    assert.ok(found.every((one) => one.sql.every(({ text }) => !text.includes('copy (') || /^(reindex|alter) [^;]*"[^"]*(""[^"]*)*"/.test(text))), JSON.stringify(found));
    assert.equal(fs.existsSync(gone), false);
  });

  for (const version of ['13', '18'] as const) {
    test(`PostgreSQL ${version}: of what changed, and of nothing else, REINDEX and the REFRESH that this version has`, async () => {
      const one = await makeCluster({ folder: path.join(top, version), version, port: 6100 + Number(version), sql: `create database shop template template0 encoding 'UTF8' lc_collate 'en_US.UTF-8' lc_ctype 'en_US.UTF-8'`
        + (version === '18' ? `; create database plain template template0 encoding 'UTF8' locale_provider builtin builtin_locale 'C.UTF-8'` : '') });
      try {
        one.sql('shop', `create collation blind (provider = icu, locale = 'de-u-ks-level2', deterministic = false); create table t (a text, b text collate blind, c text collate "en_US.utf8");
          insert into t select 'a' || g, 'b' || g, 'c' || g from generate_series(1, 100) g; create index on t (a); create index on t (b); create index on t (c)`);
        one.sql('shop', `set allow_system_table_mods = on; update pg_collation set collversion = '1.1' where collname in ('blind', 'en_US.utf8')`);
        const changed = await manifestOf(one, ({ postgres: [told], host }) => {
          host.libc = 'glibc 2.19';
          told.databases.find((database: any) => database.name === 'shop').collations.forEach((collation: any) => { collation.orderFingerprint = 'other'; });
        });
        const found = await findings(changed);
        const own = version === '13' ? ['collation en_US.UTF-8 (libc)', 'glibc 2.19'] : null; // 15 and newer note the version of the database's own
        assert.deepEqual(found.map((each) => [each.about, each.recorded.split(',')[0]]).sort(), [...(own ? [own] : []), ['collation de-u-ks-level2 (ICU)', '1.1'], ['collation en_US.utf8 (libc)', '1.1']].sort());
        cure(one, found);
        assert.equal(one.sql('shop', `select count(*) from pg_collation where collname in ('blind', 'en_US.utf8') and collversion <> pg_collation_actual_version(oid)`), '0');
      } finally {
        one.destroy();
      }
    });
  }

  function cure(one: TestCluster, found: Finding[]): void {
    for (const { database, text } of found.flatMap(({ sql }) => sql)) one.sql(database, text);
  }
});
