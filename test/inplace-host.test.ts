// In place on a real systemd host: a Debian cluster with a tablespace and its own units comes back to a fresh host, where the package's own
// `main` runs.
import { after, before, describe, test } from 'node:test';
import assert from 'node:assert/strict';
import type { Host } from './host.ts';
import { cannotRun, daemon, install, remove, scenarios } from './systemd-host.ts';
import type { Product } from './systemd-host.ts';
import { PG } from './cluster.ts';

const ROWS = 20_000;
const RUN_CONTAINER = 'docker run --detach --name shop-db --volume shop_db:/var/lib/postgresql/data postgres';

describe('in place on a systemd host', { skip: cannotRun }, () => {
  let host: Host, product: Product;
  const scenario = scenarios(() => product);
  const container = async (sql: string) => (await host.run(['docker', 'exec', 'shop-db', 'psql', '-U', 'postgres', '-XqAt', '-c', sql])).stdout.trim();

  before(async () => {
    product = await install({ units: { 'web.service': daemon() }, enable: ['web'], clusters: [
      { name: 'main', tablespaces: { fast: '/srv/fast' }, walFolder: '/srv/wal', sql: `CREATE TABLE t AS SELECT n, md5(n::text) FROM generate_series(1, ${ROWS}) n; CREATE TABLE f TABLESPACE fast AS SELECT * FROM t` },
    ] }, { stop: ['service web', 'container shop-db', 'postgres *'], folders: ['/srv/uploads'], volumes: ['shop_db'] }, async (made) => {
      host = made;
      await host.startDocker({ images: ['postgres'] });
      await host.must(RUN_CONTAINER);
      await host.waitFor('PostgreSQL in its container', 'docker exec shop-db psql -U postgres -c "CREATE TABLE t AS SELECT generate_series(1, 500) n"');
      await host.must('mkdir /srv/uploads && echo picture > /srv/uploads/one && chown www-data: /srv/uploads/one');
    });
  });
  after(() => remove(host));

  test('on a fresh host the package\'s own cluster makes way for the one that was saved, with tablespace, WAL and configuration, and Docker gets its volume back', async () => {
    await host.must(`echo "port = 5433" >> /etc/postgresql/${PG}/main/postgresql.conf; systemctl restart postgresql@${PG}-main`);
    await product.expect([], 0);
    await host.must(`cp -a /etc/cold-backup /root/paper; pg_dropcluster --stop ${PG} main; systemctl stop web
      docker rm --force --volumes shop-db; docker volume rm shop_db
      rm -rf /srv/fast /srv/wal /srv/uploads /etc/cold-backup /opt/cold-backup/backup.settings.js /var/lib/cold-backup
      pg_createcluster ${PG} main -- --no-sync && systemctl daemon-reload && systemctl start postgresql@${PG}-main`);
    const words = ['restore', 'latest', '--in-place', '--repository', '/srv/borg/web1', '--key-file', '/root/paper/borg_key', '--passphrase-file', '/root/paper/passphrase'];
    const said = await product.expect(words, 1, /cluster "container shop-db" is in place, and nothing here starts it/, /docker volume create shop_db/, new RegExp(String.raw`systemctl stop -- postgresql@${PG}-main\.service`), /systemctl start -- web\.service/, /down [\d.]+ s/);
    console.log(`# ${/down [\d.]+ s/.exec(said)?.[0]}`);
    assert.equal(await host.psql(`${PG}/main`, 'SELECT count(*), (SELECT count(*) FROM f), current_setting($$port$$) FROM t'), `${ROWS}|${ROWS}|5433`);
    assert.match(await host.must('pg_lsclusters --no-header'), new RegExp(String.raw`^${PG} +main +5433 online postgres /var/lib/postgresql/${PG}/main +\S+$`));
    assert.equal(await host.must(`ls -d /etc/postgresql.before-restore-*/${PG}/main /var/lib/postgresql/${PG}/main.before-restore-* | wc -l`), '2');
    assert.equal(await host.must(`stat -c %U:%a /var/lib/postgresql/${PG}/main /srv/fast /srv/uploads/one`), 'postgres:700\npostgres:700\nwww-data:644');
    assert.equal(await host.must('ls -A / | grep -c cold-backup-restore || true'), '0');
    await host.must(RUN_CONTAINER);
    await host.waitFor('the container\'s rows', async () => (await container('SELECT count(*) FROM t')) === '500');
    await host.must(`mkdir -p /etc/cold-backup; cp -a /root/paper/. /etc/cold-backup`);
  });

  scenario('a volume comes back alone: its container is stopped and started, files belong to its numbers, nothing else is touched', async () => {
    await product.set({});
    await container('DROP TABLE t');
    const main = await host.must(`head -1 /var/lib/postgresql/${PG}/main/postmaster.pid`);
    await product.expect(['restore', 'latest', '--in-place', 'shop_db'], 0, /stopped container shop-db/, /started container shop-db/, /with the recorded rows/);
    assert.equal(await container('SELECT count(*) FROM t'), '500');
    assert.equal(await host.must(`head -1 /var/lib/postgresql/${PG}/main/postmaster.pid`), main);
    assert.equal(await host.must('stat -c %u /var/lib/docker/volumes/shop_db/_data/PG_VERSION'), '999');
  });

  scenario('a cluster that is not one of Debian\'s comes back by its own unit, though nothing of it ran here', async () => {
    await host.write('/etc/systemd/system/own-db.service', daemon('', `Type=notify\nUser=postgres\nKillSignal=SIGINT\nTimeoutStopSec=600\nExecStart=/usr/lib/postgresql/${PG}/bin/postgres -D /srv/own/data -p 5499`), 0o644);
    await host.must(`install -d -o postgres /srv/own && runuser -u postgres -- /usr/lib/postgresql/${PG}/bin/initdb --no-sync -D /srv/own/data && systemctl daemon-reload && systemctl start own-db`);
    await product.expect([], 0);
    await host.must('systemctl stop own-db; rm -rf /srv/own/data');
    await product.expect(['restore', 'latest', '--in-place', 'postgres', '/srv/own/data'], 0, /\$ systemctl start -- own-db\.service/, /started postgres \/srv\/own\/data/);
    assert.equal(await host.must('systemctl is-active own-db'), 'active');
    await host.must('systemctl stop own-db; rm -rf /srv/own /etc/systemd/system/own-db.service; systemctl daemon-reload');
  });

  scenario('what goes down with a cluster starts again with it, if it ran right before the stop: what came up beside the extraction, and what is enabled, be something down since before a power cut; what was stopped meanwhile stays so', async () => {
    for (const name of ['api', 'late']) await host.write(`/etc/systemd/system/${name}.service`, daemon(`Requires=postgresql@${PG}-main.service\nAfter=postgresql@${PG}-main.service`));
    await host.write('/etc/systemd/system/tool.service', daemon());
    await host.write('/etc/systemd/system/web.service.d/broken.conf', '[Service]\nExecStartPre=test ! -e /srv/broken\n');
    await host.must('systemctl daemon-reload; systemctl enable --now api tool');
    const running = await product.startHeld();
    await host.must('touch /srv/broken');
    await product.releaseCopy();
    product.judge(await running.done, 3, /NOT RUNNING: "service web"/);
    await host.powerOff();
    await host.boot();
    await host.must('docker start shop-db; touch /run/hold-extract');
    const restore = product.start(['restore', 'latest', '--in-place', 'postgres', `${PG}/main`]);
    await host.waitFor('its extraction', 'test -e /run/extract-held');
    await host.must('rm /srv/broken; systemctl start late; systemctl stop tool');
    await product.releaseCopy();
    product.judge(await restore.done, 1, /unit api\.service went down with the others and was started again/, /unit late\.service went down with the others and was started again/, /started service web/);
    assert.deepEqual(await Promise.all(['web', 'api', 'late', 'tool'].map((name) => host.isActive(name))), [true, true, true, false]);
    await host.must('systemctl disable --now api late tool; cd /etc/systemd/system; rm -r web.service.d api.service late.service tool.service; systemctl daemon-reload');
  });
});
