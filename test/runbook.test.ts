// RESTORE.md, as written: its blocks are executed, one after the other, on a fresh machine that has never seen the product.
import { after, describe, test } from 'node:test';
import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import fs from 'node:fs';
import path from 'node:path';
import { startHost } from './host.ts';
import type { Host } from './host.ts';
import { treeFacts } from './night.ts';
import { testFolder } from './script.ts';
import { cannotRun, daemon, install, remove } from './systemd-host.ts';
import { PG } from './cluster.ts';

const CONTAINER = '--name shop-db --volume shop_db:/var/lib/postgresql/data --volume /etc/shop/conf:/conf:ro postgres'; // of docker run, and of docker create

describe('RESTORE.md', { skip: cannotRun }, () => {
  const kept = testFolder('runbook'), hosts: (Host | undefined)[] = [];
  after(async () => { for (const host of hosts) await remove(host); });
  const keep = (from: string, name: string) => execFileSync('cp', ['-a', from, path.join(kept, name)]);
  const dump = async (host: Host, cluster: string) => (await host.must(['pg_dumpall', '--cluster', cluster], { user: 'postgres' })).split('\n').filter((line) => !/^\\(un)?restrict /.test(line)); // random words

  /** Everything of files a restore has to bring back, owners by name: numbers differ between machines. */
  const facts = async (host: Host, folder: string) => treeFacts(host.root + folder).replace(/^([^\t\n]*\t\S+ \S+) \d+ \d+/gm, '$1')
    + await host.must(`cd '${folder}' && find . -printf '%P %u %g\\n' | sort && getfacl --recursive .`);

  test('a server with two clusters, tablespace, WAL elsewhere, a locale and a user of its own, and one in a container, comes back on a fresh machine by pasting its blocks', { timeout: 400_000 }, async () => {
    const units = { 'web.service': daemon() }, clusters = [`${PG}/main`, `${PG}/sec_2`], folders = ['/srv/up loads', `/etc/postgresql/${PG}/main`, `/etc/postgresql/${PG}/sec_2`];
    const sql = `create role app login; create database shop owner app template template0 encoding 'UTF8' locale 'de_DE.UTF-8';
      create table t as select n, md5(n::text) from generate_series(1, 5000) n; create table f tablespace fast as select * from t`;
    const product = await install({ units, enable: ['web'] }, { stop: ['service web', 'container shop-db', 'postgres *'], folders: ['/srv/up loads'], volumes: ['*'] }, async (made) => {
      hosts.push(made);
      await made.must(`useradd --uid 4711 app && localedef -i de_DE -f UTF-8 de_DE.UTF-8 && mkdir -p '/srv/up loads/sub' && cd '/srv/up loads' && head -c 300000 /dev/urandom > sub/picture && ln sub/picture again
        ln -s sub/picture link && chown -R app:app . && chmod 2750 sub && setfacl -m u:www-data:r sub/picture`);
      await made.createCluster({ name: 'main', tablespaces: { fast: '/srv/fast' }, walFolder: '/srv/wal', initdb: ['--data-checksums'], sql });
      await made.createCluster({ name: 'sec_2', settings: { max_connections: '33' }, sql: 'create table only_here as select generate_series(1, 7)' });
      await made.must(`systemctl stop postgresql@${PG}-sec_2 && mv /var/lib/postgresql/${PG}/sec_2 /srv/moved && ln -s /srv/moved /var/lib/postgresql/${PG}/sec_2`); // as many make room
      await made.must(`mkdir -p /srv/conf/v3 && ln -s v3 /srv/conf/current && echo "work_mem = '5MB'" > /srv/conf/v3/more.conf && echo "include '/srv/conf/current/more.conf'" >> /etc/postgresql/${PG}/sec_2/postgresql.conf && systemctl start postgresql@${PG}-sec_2`);
      await made.startDocker({ images: ['postgres'] });
      await made.must(`mkdir /etc/shop && echo of the old machine > /etc/shop/conf && docker run --detach ${CONTAINER}`);
      await made.waitFor('PostgreSQL in its container', 'docker exec shop-db psql -U postgres -c "create table boxed as select generate_series(1, 500) n"');
      await made.psql(`${PG}/main`, 'create table words (w text primary key, v text collate "en-x-icu"); create index on words (v); insert into words select md5(n::text), n from generate_series(1, 500) n', 'shop');
    });
    const old = product.host;
    await product.expect([], 0, /is proven/);
    const { archive } = await product.lastRun();
    const rows = await Promise.all(clusters.map((one) => dump(old, one)));
    const files = await Promise.all(folders.map((folder) => facts(old, folder)));
    const data = await old.must(`stat -c '%a %U %G' /var/lib/postgresql/${PG}/main /srv/fast /srv/wal`);
    const text = await product.borg(`borg extract --stdout ::${archive} record/RESTORE.md`);
    keep(`${old.root}/srv/borg/web1`, 'repository');
    keep(`${old.root}/etc/cold-backup/borg_key`, 'borg_key');
    const passphrase = await old.read('/etc/cold-backup/passphrase');
    await remove(hosts.pop());

    const fresh = await startHost({ name: 'new', units, debianWaits: false, clusters: [{ name: 'main', sql: 'create table of_the_package()' }] });
    hosts.push(fresh);
    await fresh.must(`mkdir '/srv/up loads' && touch '/srv/up loads/in the way' && useradd --uid 4711 taken && ! locale -a | grep -q de_DE`);
    await fresh.startDocker({ images: ['postgres'] });
    const storage = await fresh.startStorage({ name: 'web1' });
    execFileSync('cp', ['-a', path.join(kept, 'repository'), `${fresh.root}/srv/borg/web1`]);
    await fresh.must(`chown -R borg:borg /srv/borg/web1 && mkdir -p -m 700 /root/.ssh && ssh-keygen -q -t ed25519 -N '' -f /root/.ssh/id_ed25519`);
    await storage.authorize(await fresh.read('/root/.ssh/id_ed25519.pub'));
    await fresh.write('/root/.ssh/known_hosts', storage.knownHosts);
    await fresh.write('/root/borg_key', fs.readFileSync(path.join(kept, 'borg_key'), 'utf8'), 0o600);

    if (process.env.COLD_BACKUP_KEEP) fs.writeFileSync(process.env.COLD_BACKUP_KEEP, text);
    const blocksOf = (part: string) => [...part.matchAll(/^```sh\n([^]*?)^```$/gm)].map((match) => match[1]!), [before, later] = text.split(/^(?=## 7\. )/m) as [string, string];
    assert.match(before, /^- `shop-db`: image `postgres` .*mounts .*shop_db:\/var\/lib\/postgresql\/data[^]*Make `shop-db` with `docker create --name \.\.\.` as above/m);
    const blocks = [...blocksOf(before), `docker create ${CONTAINER}\n`, ...blocksOf(later)]; // what it tells a person to do by hand, and nothing else is ours
    const done = await fresh.run(['bash', '-ec', blocks.join('\necho "--- a block ended"\n')], { input: passphrase, timeout: 200 });
    const said = done.stdout + done.stderr;
    assert.equal(done.code, 0, said);
    assert.match(said, /^4 tables are as recorded, 0 errors$/m, said);
    assert.match(said, /^1 tables are as recorded, 0 errors$/m, said);
    assert.equal(await fresh.must('docker exec shop-db psql -U postgres -XqAtc "select count(*) from boxed"; stat -c %u /var/lib/docker/volumes/shop_db/_data/PG_VERSION; docker exec shop-db cat /conf; stat -c %a /etc/shop'), '500\n999\nof the old machine\n755');
    for (const line of ['apt-get', 'REINDEX']) assert.ok(!said.includes(line), said);
    assert.ok(await fresh.isActive('web') && await fresh.isActive(`postgresql@${PG}-main`) && await fresh.isActive(`postgresql@${PG}-sec_2`), said);
    for (const [index, one] of clusters.entries()) assert.deepEqual(await dump(fresh, one), rows[index]);
    for (const [index, folder] of folders.entries()) assert.equal(await facts(fresh, folder), files[index]);
    assert.equal(await fresh.must(`stat -c '%a %U %G' /var/lib/postgresql/${PG}/main /srv/fast /srv/wal`), data);
    assert.notEqual(await fresh.must('id -u app'), '4711');
    assert.equal(await fresh.must(`readlink /var/lib/postgresql/${PG}/sec_2 /srv/conf/current`), '/srv/moved\n/srv/conf/v3');
    assert.equal(await fresh.must(`ls /etc/postgresql/${PG} | sort`), 'main\nsec_2');
    // What was here before lies aside, whole; the part and the look lie beside.
    assert.equal(await fresh.must(`ls /srv/up\\ loads.before-*; ls -d /root/before-*/etc/postgresql/${PG}/main/postgresql.conf /var/lib/postgresql/${PG}/main.before-*/PG_VERSION | wc -l`), 'in the way\n2');
    assert.equal(await fresh.must(`cmp "$(echo /root/part-before-*)/srv/up loads/sub/picture" '/srv/up loads/sub/picture' && ls -d /var/lib/postgresql/look-before-*/srv/fast | wc -l`), '1');
    assert.match(said, /data_directory[\s-]*\/var\/lib\/postgresql\/look-before-/);
  });
});
