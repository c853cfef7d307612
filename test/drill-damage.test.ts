// Damaged on purpose: an archive that is whole for borg, with something wrong inside that a drill has to notice and to name. Each damage is done to
// files out of a good archive, with their times kept, and archived anew by plain borg, record and proof with it: as a broken disk or memory does it.
import './alone.ts';
import { after, before, describe, test } from 'node:test';
import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import fs from 'node:fs';
import path from 'node:path';
import { PG, makeCluster } from './cluster.ts';
import type { TestCluster } from './cluster.ts';
import { startStorage } from './storage.ts';
import type { Storage } from './storage.ts';
import { makeServer, testFolder } from './script.ts';
import type { Server } from './script.ts';

const isRoot = process.getuid?.() === 0;
if (!isRoot && process.env.COLD_BACKUP_NO_SKIP) throw new Error('a drill in namespaces, and locales of its own, need root');
const PAGE = 8192, ROWS = 8_000;
const TABLES = ['flipped', 'header', 'zeroed', 'garbage', 'foreign_page', 'key', 'index_zeroed', 'truncated', 'emptied', 'gone'];

describe('a drill notices damage and names it', { skip: isRoot ? false : 'needs root' }, () => {
  const top = testFolder('damage'), tree = path.join(top, 'tree');
  let storage: Storage, server: Server, cluster: TestCluster, made = 0, repository = '';
  const files: Record<string, { heap: string; index: string }> = {};

  before(async () => {
    // A mount of its own over the locales: this test makes one and changes it, and nobody else sees it.
    for (const [folder, name] of [['/usr/lib/locale', 'locale'], [`/usr/lib/postgresql/${PG}/lib`, 'lib']] as const) {
      fs.mkdirSync(path.join(top, name, 'up'), { recursive: true });
      execFileSync('mount', ['-t', 'tmpfs', 'tmpfs', path.join(top, name)]);
      for (const one of ['up', 'work']) fs.mkdirSync(path.join(top, name, one));
      execFileSync('mount', ['-t', 'overlay', 'overlay', '-o', `lowerdir=${folder},upperdir=${path.join(top, name, 'up')},workdir=${path.join(top, name, 'work')}`, folder]);
    }
    makeLocale('es_ES');
    storage = await startStorage(path.join(top, 'storage'));
    const linked = path.join(top, 'linked'); // what lies outside is named over a link, which is in no archive
    for (const name of ['space', 'wal']) fs.mkdirSync(path.join(top, 'outside', name), { recursive: true });
    execFileSync('chown', ['--recursive', 'postgres:', path.join(top, 'outside')]);
    fs.symlinkSync(path.join(top, 'outside'), linked);
    cluster = await makeCluster({ folder: path.join(top, 'pg'), version: 'debian', port: 5481, settings: { fsync: 'off', max_wal_size: '4MB', min_wal_size: '2MB' }, initdb: ['--wal-segsize=1', `--waldir=${linked}/wal`] });
    cluster.sql('postgres', `create tablespace linked location '${linked}/space'`);
    cluster.sql('postgres', `create database victims template template0 lc_collate 'zz_ZZ.utf8' lc_ctype 'zz_ZZ.utf8'`);
    cluster.sql('victims', `create extension pg_trgm; ${TABLES.map((name) => `create table ${name} (id int primary key, note text);
      insert into ${name} select g, md5('${name}' || g) from generate_series(1, ${ROWS}) g; create index ${name}_note on ${name} (note);`).join('\n')}
      create table words (word text); insert into words select chr(a) || chr(b) || chr(c) from generate_series(97, 122) a, unnest(array[97, 241, 110, 246, 111, 122, 229]) b, unnest(array[229, 228, 122, 241]) c;
      create index words_word on words (word);
      create table spaced tablespace linked as select generate_series(1, 1000) n`);
    if (Number(PG) < 17) cluster.sql('victims', `create table folded (word text); insert into folded select word from words limit 100; create function fold(text) returns text language sql immutable as 'select lower($1)';
      create function fold_all(text) returns text language plpgsql immutable as 'begin return fold($1); end'; create index folded_index on folded (fold_all(word))`); // newer ones make no index that needs a search_path
    cluster.sql('victims', 'vacuum analyze');
    for (const name of ['hardened', 'passing', 'upgraded']) cluster.sql('postgres', `create database ${name}`);
    cluster.sql('upgraded', `create extension amcheck version '1.0'; create table kept (id int primary key)`); // as PostgreSQL 10 had it
    cluster.sql('hardened', `drop schema public; create schema app; create table app.kept (id int primary key, note text); insert into app.kept select g, md5(g::text) from generate_series(1, 1000) g`);
    fs.writeFileSync(path.join(cluster.dataDirectory, 'cold-backup-sandbox'), 'laid here by the owner of the cluster');
    for (const [database, name, table] of [...TABLES.map((one) => ['victims', one, one]), ['hardened', 'kept', 'app.kept']] as [string, string, string][]) {
      const [heap, index] = ['', '_pkey'].map((end) => cluster.sql(database, `select pg_relation_filepath('${table}${end}')`)) as [string, string];
      files[name] = { heap: path.join(cluster.dataDirectory, heap), index: path.join(cluster.dataDirectory, index) };
    }
    repository = storage.repository('web1'); // read from its own disk: that is faster, and no other than over ssh
    // A part that drops a database when it stops: the passport knows it, and no copy has it.
    const flag = path.join(top, 'runs'), psql = ['psql', '-h', cluster.socketFolder, '-p', '5481', '-U', 'postgres', '-qc', '"drop database passing"', 'postgres'];
    const tidy = { name: 'tidy', running: ['test', '-e', flag], stop: ['sh', '-c', `${psql.join(' ')} && rm ${flag}`], start: ['touch', flag] };
    fs.writeFileSync(flag, '');
    server = await makeServer(path.join(top, 'server'), 'web1', storage, { stop: [tidy, `postgres ${cluster.dataDirectory}`], warmPass: false }, { near: true });
    const ended = await server.run();
    assert.equal(ended.code, 0, ended.out + ended.err);
    fs.mkdirSync(tree);
    execFileSync('borg', ['extract', `::${server.archives().find((name) => /^web1-/.test(name))}`], { cwd: tree, env: server.borgEnv() });
  });
  after(() => {
    cluster?.destroy();
    storage?.destroy();
    for (const place of ['/usr/lib/locale', `/usr/lib/postgresql/${PG}/lib`, path.join(top, 'locale'), path.join(top, 'lib')]) execFileSync('umount', ['--lazy', place]);
  });

  function makeLocale(from: string): void {
    fs.rmSync('/usr/lib/locale/zz_ZZ.utf8', { recursive: true, force: true });
    try { execFileSync('localedef', ['--no-archive', '-i', from, '-f', 'UTF-8', '/usr/lib/locale/zz_ZZ.utf8'], { stdio: 'ignore' }); } catch { /* it warns, and makes it */ }
    assert.ok(fs.existsSync('/usr/lib/locale/zz_ZZ.utf8/LC_COLLATE'));
  }

  /** A drill of an archive in which this was done to the files. Returns what it found, as JSON. */
  async function drillOf(damage: (place: string) => void, queries: object[] = []): Promise<{ code: number; proven: boolean; fails: Record<string, string>; all: string }> {
    const number = ++made, copy = path.join(top, `copy${number}`), name = `web1-2026-02-${String(number).padStart(2, '0')}T02:00:00`;
    execFileSync('cp', ['-a', tree, copy]);
    for (let folder = path.dirname(copy + cluster.dataDirectory); folder !== copy; folder = path.dirname(folder)) fs.chmodSync(folder, 0o755); // borg made them for root alone
    damage(copy);
    execFileSync('borg', ['create', '--lock-wait', '60', `${repository}::${name}`, 'record', 'tmp'], { cwd: copy, env: server.borgEnv(), stdio: 'ignore' });
    fs.rmSync(copy, { recursive: true });
    const own = path.join(top, `server${number}`); // a state folder, and so a lock, for each
    fs.mkdirSync(own);
    const settings = path.join(own, 'settings.js');
    fs.writeFileSync(settings, `const settings = ${JSON.stringify({ ...server.settings, repository, stateFolder: path.join(own, 'state'), drill: { queries } })};\n`, { mode: 0o600 });
    const ended = await server.run(['drill', name, '--json', '--settings', settings]);
    const certificate = JSON.parse(ended.out), fails = Object.fromEntries(certificate.checks.filter((one: any) => one.ok === false).map((one: any) => [one.check, one.detail]));
    assert.doesNotMatch(ended.err, /this is a bug/);
    assert.equal(ended.code, certificate.proven ? 1 : 2, ended.err); // 1: it warns that such an archive has no proof
    assert.match(ended.err, /is not proven: it does not count as a backup/);
    return { code: ended.code, proven: certificate.proven, fails, all: ended.out + ended.err };
  }

  /** Change the bytes of a file below `place`, and nothing else of it. */
  function edit(place: string, file: string, change: (bytes: Buffer) => Buffer | void): void {
    const where = place + file, keep = path.join(place, 'times');
    execFileSync('touch', ['--reference', where, keep]);
    const bytes = fs.readFileSync(where), after = change(bytes) ?? bytes;
    fs.writeFileSync(where, after);
    execFileSync('touch', ['--reference', keep, where]);
    fs.rmSync(keep);
  }
  const pageAt = (bytes: Buffer, page: number) => bytes.subarray(page * PAGE, (page + 1) * PAGE);
  const firstTuple = (page: Buffer) => page.readUInt32LE(24) & 0x7fff; // line pointer 1: offset in its low 15 bits

  test('the same files without any damage are proven', async () => {
    const { proven, fails, all } = await drillOf(() => {});
    assert.deepEqual({ proven, fails }, { proven: true, fails: {} });
    assert.match(all, /gone since the passport: passing/);
    if (Number(PG) < 17) assert.match(all, /functions need a search_path:\\nvictims: index public\.folded_index of table public\.folded: function fold\(text\) does not exist/, 'it is sound, and cannot be compared with its table');
    assert.doesNotMatch(all, /lacks all facts/, 'of a database that is gone nothing else is asked');
    assert.doesNotMatch(all, /upgraded: index/, 'its amcheck is brought up to date, in the copy');
  });

  test('a flipped byte, a broken row header, a page of zeros and a page of garbage are each named, with table and page', async () => {
    const { proven, fails } = await drillOf((place) => {
      edit(place, files.flipped!.heap, (bytes) => { const page = pageAt(bytes, 7), at = page.indexOf(Buffer.from(/[0-9a-f]{32}/.exec(page.toString('latin1'))![0])); page[at + 5] = page[at + 5]! ^ 1; });
      edit(place, files.header!.heap, (bytes) => { const page = pageAt(bytes, 3); page.writeUInt32LE(0x7ffffff0, firstTuple(page)); });
      edit(place, files.zeroed!.heap, (bytes) => void pageAt(bytes, 3).fill(0));
      edit(place, files.garbage!.heap, (bytes) => void pageAt(bytes, 3).fill('garbage '));
    });
    assert.equal(proven, false);
    assert.match(fails.amcheck!, /flipped/, 'a flipped byte in an indexed column: only the index knows what it was');
    assert.match(fails.amcheck!, /table public\.header, page 3, row 1/);
    assert.match(fails['heap against index']!, /table public\.zeroed has \d+ rows, but its index knows 8000/);
    assert.match(fails['row counts']!, /table public\.zeroed has 7\d+ rows, not 8000/, 'nobody touched it since the passport, so it must have exactly as many');
    assert.match(fails['row counts']! + fails.amcheck!, /garbage.*(page|block) 3/);
  });

  test('a page from elsewhere, a changed index key and an index page of zeros are each named', async () => {
    const { proven, fails } = await drillOf((place) => {
      edit(place, files.foreign_page!.heap, (bytes) => void pageAt(bytes, 5).copy(pageAt(bytes, 3)));
      edit(place, files.key!.index, (bytes) => {
        const page = pageAt(bytes, 2), tuple = (page.readUInt32LE(24 + 4 * 50) & 0x7fff) + 8; // row 51 of a leaf: its key follows 8 bytes of header
        page.writeInt32LE(page.readInt32LE(tuple) + 6_000, tuple);
      });
      edit(place, files.index_zeroed!.index, (bytes) => void pageAt(bytes, 4).fill(0));
    });
    assert.equal(proven, false);
    assert.match(fails.amcheck!, /foreign_page/);
    assert.match(fails.amcheck!, /index public\.key_pkey of table public\.key: (item order|high key) invariant violated.*tid=\(2,/s);
    assert.match(fails.amcheck!, /index_zeroed.*(block|page) 4/);
  });

  test('a table cut short, an emptied one and a missing index file are each named by file and by table', async () => {
    const { proven, fails } = await drillOf((place) => {
      edit(place, files.truncated!.heap, (bytes) => bytes.subarray(0, bytes.length - PAGE));
      edit(place, files.emptied!.heap, () => Buffer.alloc(0));
      fs.rmSync(place + files.gone!.index);
      edit(place, files.kept!.heap, (bytes) => { const page = pageAt(bytes, 3); page.writeUInt32LE(0x7ffffff0, firstTuple(page)); });
    });
    assert.equal(proven, false);
    const listing = fails['files as listed when cold']!;
    for (const [file, what] of [[files.truncated!.heap, 'is f 600 \\d+ bytes'], [files.emptied!.heap, 'is f 600 0 bytes'], [files.gone!.index, 'is missing']] as const) assert.match(listing, new RegExp(`${file}: .*${what}`));
    assert.match(listing, /is table public\.truncated in database victims/);
    assert.match(listing, /is table public\.emptied in database victims/);
    assert.match(listing, /is index public\.gone_pkey of table public\.gone in database victims/);
    assert.match(fails.amcheck!, /hardened: table app\.kept, page 3, row 1/, 'without the schema public');
    assert.match(fails['row counts']!, /public\.truncated has \d+ rows, not 8000/);
    assert.match(fails['row counts']!, /public\.emptied has 0 rows, not 8000/);
  });

  test('a cluster that was not shut down, and one that is another, are not taken for what they should be', async () => {
    const control = path.join(cluster.dataDirectory, 'global/pg_control');
    const running = await drillOf((place) => edit(place, control, (bytes) => void bytes.writeUInt32LE(6, 16)));
    assert.match(running.fails['control file']!, /was not shut down: its state is "in production"/);
    const other = await drillOf((place) => edit(place, control, (bytes) => void bytes.writeBigUInt64LE(7n, 0)));
    assert.match(other.fails['control file']!, /another cluster: system identifier 7 instead of \d+/);
  });

  test('where a cluster has page checksums, a flipped byte is named by table and page without starting anything', async () => {
    const { fails } = await drillOf((place) => {
      execFileSync('runuser', ['-u', 'postgres', '--', `/usr/lib/postgresql/${PG}/bin/pg_checksums`, '--enable', '--no-sync', '-D', place + cluster.dataDirectory], { stdio: 'ignore', cwd: '/' });
      edit(place, files.flipped!.heap, (bytes) => { bytes[7 * PAGE + 5000] = bytes[7 * PAGE + 5000]! ^ 1; });
    });
    assert.match(fails['page checksums']!, new RegExp(`${files.flipped!.heap}, page 7`));
  });

  test('a record that was made to harm whoever rehearses it: nothing of it runs out here, nothing is written out here', async () => {
    const [evil, other, live, programs, owned] = ['evil', 'other', 'live', 'programs', 'owned'].map((name) => path.join(top, name)) as [string, string, string, string, string];
    const program = (folder: string, name: string, rest: string) => fs.writeFileSync(path.join(folder, name), `#!/bin/sh\ntouch ${owned}\n${rest}\n`, { mode: 0o755 });
    const system = '/x' + '/..'.repeat(20) + '/usr/sbin'; // where chroot(8) is looked for, as root, before there is a new root
    fs.mkdirSync(path.join(live, 'main'), { recursive: true });
    fs.writeFileSync(path.join(live, 'main/standby.signal'), '');
    fs.mkdirSync(programs);
    program(programs, 'postgres', `echo "postgres (Postgre""SQL) ${PG}.0"`);
    /** A drill of an archive with such a record. Without queries there are folders of somebody else's in the place of the cluster. */
    const forged = async (change: (passport: any, manifest: any, place: string) => void, queries: object[] = []) => {
      const found = await drillOf((place) => {
        const record = path.join(place, 'record/manifest.json'), manifest = JSON.parse(fs.readFileSync(record, 'utf8')), [passport] = manifest.postgres;
        if (queries.length === 0) {
          fs.rmSync(place + path.dirname(cluster.dataDirectory), { recursive: true });
          for (const folder of [evil, other]) fs.mkdirSync(place + folder);
          for (const folder of [evil, other]) program(place + folder, 'chroot', 'exit 1');
          Object.assign(passport, { dataDirectory: evil, roots: [evil, other] });
        }
        change(passport, manifest, place);
        fs.writeFileSync(record, JSON.stringify(manifest));
      }, queries);
      assert.equal(found.proven, false);
      assert.deepEqual([fs.existsSync(owned), fs.readdirSync(path.join(live, 'main'))], [false, ['standby.signal']], found.all);
      return found;
    };
    const isOfTheSystem = /\/usr(\/sbin)? is a folder of the system, no place for a cluster/;
    assert.match((await forged(({ tablespaces }) => { tablespaces.push({ oid: '1', location: other, link: system }); })).all, isOfTheSystem);
    assert.match((await forged((passport) => { Object.assign(passport, { container: 'nobody', insideDataDirectory: system }); })).all, isOfTheSystem);
    assert.match((await forged((passport, { containers }) => {
      passport.container = 'box';
      containers.push({ name: 'box', image: 'none', imageId: 'none', imageDigests: [], composeProject: '', composeService: '', composeFiles: [], mounts: [{ source: other, destination: '/usr/' }] });
    })).all, isOfTheSystem);
    assert.match((await forged(({ tablespaces }, _, place) => {
      fs.symlinkSync('/usr', path.join(place + evil, 'link'));
      tablespaces.push({ oid: '1', location: evil, link: '/q' }, { oid: '2', location: other, link: '/q/link/sbin' });
    })).all, /\/q\/link\/sbin leads to another place/);
    assert.match((await forged((passport, _, place) => {
      fs.symlinkSync(live, path.join(place + evil, 'link'));
      passport.dataDirectory = path.join(evil, 'link/main');
    })).all, /is a link in this archive, or lies below one/);
    // What does not keep the copy from being rehearsed.
    const query = { cluster: cluster.dataDirectory, database: 'postgres', sql: "select count(*) from pg_ls_dir('.') f where f = 'device'", expect: 0 };
    const { fails } = await forged((passport, _, place) => {
      for (const name of ['listing.found', 'listing.was', 'listing.is']) fs.symlinkSync(path.join(live, 'main', name), path.join(place, 'record', name));
      execFileSync('mknod', [path.join(place + passport.dataDirectory, 'device'), 'c', '1', '5']);
      passport.binaries = programs;
    }, [query]);
    assert.deepEqual(Object.keys(fails), ['files as listed when cold'], JSON.stringify(fails));
  });

  test('a collation whose order changed under an equal version number is found, with the indexes to make anew; a missing library is named', async () => {
    makeLocale('sv_SE'); // the same name, the same glibc, another alphabet
    fs.rmSync(`/usr/lib/postgresql/${PG}/lib/pg_trgm.so`);
    const { proven, fails } = await drillOf(() => {});
    makeLocale('es_ES');
    assert.equal(proven, false);
    assert.match(fails.collations!, /victims: collation default sorts otherwise than it did: REINDEX .*words_word/);
    assert.match(fails.amcheck!, /index public\.words_word of table public\.words: item order invariant violated/);
    assert.match(fails['libraries load']!, /victims: \$libdir\/pg_trgm: could not access file/);
  });
});
