// What is saved, and what is left out: paths that lie in each other, patterns that must not reach into a cluster, and how fast it may go.
import './alone.ts';
import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { randomBytes } from 'node:crypto';
import fs from 'node:fs';
import path from 'node:path';
import { after, before, describe, test } from 'node:test';
import { makeServer, testFolder, waitFor } from './script.ts';
import type { Server } from './script.ts';
import { startStorage } from './storage.ts';
import type { Storage } from './storage.ts';
import type { TestCluster } from './cluster.ts';
import { cannotRunHere, fingerprintOfRestored, makeHardCluster, mendLinks } from './night.ts';

describe('the choice of what is saved', { skip: cannotRunHere() }, () => {
  const folder = testFolder('choice'), srv = path.join(folder, 'srv');
  let cluster: TestCluster, storage: Storage, server: Server, rows: Record<string, string>;

  before(async () => {
    for (const one of ['srv/www/uploads', 'srv/www/cache', 'srv/pg']) fs.mkdirSync(path.join(folder, one), { recursive: true });
    cluster = await makeHardCluster(path.join(srv, 'pg'));
    fs.writeFileSync(path.join(srv, 'www', 'uploads', 'report.conf'), 'an attachment\n');
    fs.writeFileSync(path.join(srv, 'www', 'uploads', 'photo'), 'a photo\n');
    fs.writeFileSync(path.join(srv, 'www', 'cache', 'page'), 'made anew at any time\n');
    fs.symlinkSync('www/uploads', path.join(srv, 'uploads'));
    storage = await startStorage(path.join(folder, 'storage'));
    server = await makeServer(path.join(folder, 'server'), 'web1', storage, { stop: [`postgres ${cluster.dataDirectory}/`] }, { near: true });
    rows = cluster.fingerprint();
  });
  after(() => {
    cluster?.destroy();
    storage?.destroy();
  });

  const backUp = async (changes: Record<string, unknown>): Promise<string[]> => {
    server.writeSettings(changes);
    const ended = await server.run();
    assert.equal(ended.code, 0, ended.out + ended.err);
    return server.borg('list', '--format', '/{path}{NL}', `::${server.history().pop().archive}`).trim().split('\n');
  };
  const assertClusterComes = (name: string): void => {
    const there = path.join(folder, name);
    fs.mkdirSync(there, { mode: 0o755 });
    execFileSync('borg', ['--umask', '0022', 'extract', `::${server.history().pop().archive}`], { env: server.borgEnv(), cwd: there, stdio: 'ignore' });
    mendLinks(there + cluster.dataDirectory, there);
    assert.deepEqual(fingerprintOfRestored(cluster, there + cluster.dataDirectory), rows);
    fs.rmSync(there, { recursive: true });
  };

  test('paths that lie in each other, twice given, or given as links are stored once', async () => {
    const files = await backUp({ folders: [`${srv}/`, `${srv}/www/uploads/`, `${srv}/uploads`, `${srv}/pg/data`], exclude: [] });
    assert.deepEqual(files.filter((file, at) => files.indexOf(file) !== at), []);
    for (const file of ['www/uploads/photo', 'www/cache/page', 'uploads', 'pg/data/PG_VERSION', 'pg/tablespace', 'pg/wal']) assert.ok(files.includes(`${srv}/${file}`), file);
    assertClusterComes('once');
  });

  test('a pattern leaves out files, but never any of a cluster, and nothing is stored twice', async () => {
    const files = await backUp({ folders: [srv], exclude: ['*.conf', '*/cache', 'sh:**/base', `${srv}/pg`, 'pp:/tmp/nowhere'] });
    assert.deepEqual(files.filter((file, at) => files.indexOf(file) !== at), []);
    assert.deepEqual(files.filter((file) => /cache|report\.conf/.test(file)), []);
    for (const file of ['www/uploads/photo', 'pg/data/postgresql.conf', 'pg/data/base/1/PG_VERSION']) assert.ok(files.includes(`${srv}/${file}`), file);
    assertClusterComes('without');
  });

  test('what is proven to be cold is what is stored, each file once', async () => {
    const files = await backUp({ folders: [srv], exclude: ['*.conf', '*/cache'] });
    const listing = server.borg('extract', '--stdout', `::${server.history().pop().archive}`, 'record/listing').split('\0').filter((line) => line !== '').map((line) => line.split('\t').slice(7).join('\t'));
    assert.deepEqual(listing.sort(), files.filter((file) => !file.startsWith('/record/')).sort());
  });

  test('a regular expression does not reach into a cluster, either', async () => {
    const files = await backUp({ folders: [srv], exclude: ['re:/(base|cache)$', `pf:${srv.slice(1)}/pg`] });
    assert.deepEqual(files.filter((file) => /\/cache/.test(file)), []);
    assert.ok(files.includes(`${srv}/pg/data/base/1/PG_VERSION`));
    assertClusterComes('expression');
  });

  test('no pattern leaves out our own record, or configuration of a cluster that lies elsewhere', async () => {
    const certificate = path.join(folder, 'certificate.pem');
    fs.writeFileSync(certificate, 'everybody');
    cluster.sql('postgres', `alter system set ssl_cert_file = '${certificate}'`);
    cluster.sql('postgres', 'select pg_reload_conf()');
    await waitFor('it has read that', () => cluster.sql('postgres', 'show ssl_cert_file') === certificate);
    const files = await backUp({ folders: [srv], exclude: ['*.md', '*.js', '*.jsonl', '*listing', '*.pem', 're:^record'] });
    for (const file of ['/record/RESTORE.md', '/record/backup.js', '/record/backup.settings.js', '/record/listing', '/record/manifest.json', certificate]) assert.ok(files.includes(file), file);
    const proof = server.borg('list', '--format', '{path} ', `::proven-${server.history().pop().archive}`);
    assert.match(proof, /^record\/history\.jsonl record\/proof\.json $/);
  });

  test('the upload keeps below uploadLimitKiB', async () => {
    fs.writeFileSync(path.join(srv, 'www', 'uploads', 'big'), randomBytes(6_000_000));
    const far = await makeServer(path.join(folder, 'far'), 'web2', storage, { folders: [path.join(srv, 'www')], uploadLimitKiB: 1500 }); // by path there is no upload
    const ended = await far.run();
    assert.ok(ended.code <= 1, ended.out + ended.err); // the cluster that nothing saves is a warning
    const { warm } = far.history().pop();
    assert.ok(warm.deduplicatedBytes > 5.9e6 && warm.deduplicatedBytes / warm.seconds < 1500 * 1024 * 1.1, JSON.stringify(warm));
  });
});
