// A fleet for some minutes: hosts with a network between them, set up as the README says, backed up by their own cron, audited by the
// operator, restored onto new and empty hosts. Two servers of it are in every run of the tests; with COLD_BACKUP_WHOLE_FLEET=1 all six
// (two pairs more), each of which is lost and comes back. `npm run fleet` starts all of them, to look around in.
import './alone.ts';
import assert from 'node:assert/strict';
import { after, before, describe, test } from 'node:test';
import { addBucardoPair, addDock, addLogicalPair, addToOperator, addWeb, comeBack, composeUp, makeFleet, ownFolders, withDocker } from './fleet-hosts.ts';
import type { Fleet } from './fleet-hosts.ts';
import type { Host } from './host.ts';
import { cannotRun } from './systemd-host.ts';
import { PG } from './cluster.ts';

const isWhole = process.env.COLD_BACKUP_WHOLE_FLEET === '1', SERVERS = ['dock1', 'web1', ...(isWhole ? ['a1', 'a2', 'l1', 'l2'] : [])].sort();

describe('a fleet', { skip: cannotRun }, () => {
  let fleet: Fleet;
  before(async () => {
    fleet = await makeFleet();
    await Promise.all([addWeb(fleet), addDock(fleet), ...(isWhole ? [addBucardoPair(fleet), addLogicalPair(fleet)] : [])]);
  }, { timeout: 600_000 });
  after(() => fleet?.destroy());

  test('every server takes its first backup at the hour of its own cron, over the network, as a user of its own on the storage', async () => {
    await fleet.nightIsOver(SERVERS);
    const { web1, dock1 } = fleet.hosts;
    for (const unit of ['nginx', 'app', `postgresql@${PG}-main`]) assert.ok(await web1!.isActive(unit), unit);
    assert.equal(await web1!.must('busybox wget -qO- http://127.0.0.1/orders'), '3000');
    assert.deepEqual((await dock1!.must(`docker ps --format '{{.Names}}'`)).split('\n').sort(), ['app', 'cache', 'db']);
    const refused = await web1!.run(['ssh', '-i', '/etc/cold-backup/ssh_key', '-o', 'UserKnownHostsFile=/etc/cold-backup/known_hosts', '-o', 'BatchMode=yes', 'dock1@storage', 'true']);
    assert.notEqual(refused.code, 0, 'the key of one server opens nothing of another');
  });

  test('the operator audits all of them, and each is clean', async () => {
    await addToOperator(fleet, SERVERS);
    const operator = fleet.hosts.operator!, audit = () => operator.run(['node', '/root/operator/backup.js', 'audit', '--json']);
    await audit(); // trusts what it found
    const { code, stdout, stderr } = await audit();
    assert.equal(code, 0, stdout + stderr);
    assert.deepEqual(JSON.parse(stdout).map(({ server, verdict }: any) => `${server} ${verdict}`).sort(), SERVERS.map((name) => `${name} clean`));
  });

  test('web1 is gone: a new and empty host takes its place, with units, application, rows and attachments', async () => {
    await fleet.hosts.web1!.powerOff();
    const { host } = await comeBack(fleet, 'web1', 'web1b', { clusters: [{ name: 'main' }] }, async (one) => { await ownFolders(one, ['/var/www', '/etc/nginx']); await one.must('mkdir -p /var/log/nginx'); }); // as Debian's packages make it
    await host.must('systemctl daemon-reload; systemctl start nginx app');
    await host.waitFor('the application', async () => (await host.run('busybox wget -qO- http://127.0.0.1/orders')).stdout.trim() === '3000', 20);
    assert.equal(await host.must('busybox wget -qO- "http://127.0.0.1/uploads/invoice%207.txt"; stat -c %U "/var/www/uploads/invoice 7.txt"'), 'invoice 7\nwww-data');
    assert.equal(await host.psql(`${PG}/main`, 'select count(*), count(distinct word) from orders', 'shop'), '3000|3000');
    assert.equal(await host.psql(`${PG}/main`, 'set enable_seqscan = off; select count(*) from places where at && ST_MakeEnvelope(0, 0, 10, 90, 4326)', 'shop'), '32');
  });

  if (isWhole) test('dock1 is gone: its volumes come back onto a new host, and the project that is made again finds its rows and files', async () => {
    await fleet.hosts.dock1!.powerOff();
    const { host } = await comeBack(fleet, 'dock1', 'dock1b', {}, withDocker);
    await composeUp(host);
    await host.waitFor('PostgreSQL in its container', async () => (await host.run('docker exec db psql -U postgres -Atc "select count(*) from orders"')).stdout.trim() === '700', 60);
    await host.waitFor('the health check', `docker inspect --format '{{.State.Health.Status}}' app | grep -x healthy`);
    assert.equal(await host.must('docker exec app cat /uploads/one'), 'picture');
  });

  if (isWhole) test('one side of Bucardo is gone: it comes back a day behind, is told so, and both sides are alike again', async () => {
    const { a1, a2 } = fleet.hosts, rows = (host: Host) => host.psql(`${PG}/main`, `select string_agg(place || ' ' || n, ', ' order by place, n) from orders`, 'shop');
    const write = (host: Host, place: string, n: number) => host.psql(`${PG}/main`, `insert into orders (place, n) values ('${place}', ${n})`, 'shop');
    await write(a1!, 'one', 1);
    await write(a2!, 'two', 1);
    for (const host of [a1!, a2!]) await host.waitFor('what was written after the backup is exchanged', async () => await rows(host) === 'one 1, two 1', 60);
    await a1!.powerOff();
    await write(a2!, 'two', 2); // while it is away
    const { host, said } = await comeBack(fleet, 'a1', 'a1b', { clusters: [{ name: 'main' }] }, (one) => one.must('mkdir -p /run/bucardo /var/log/bucardo'));
    assert.match(said, /warning: .*, Bucardo in shop: what was exchanged after this backup is not exchanged again/);
    await host.must('bucardo --dbuser=bucardo start');
    await host.waitFor('what was never sent arrives', async () => await rows(host) === 'two 2', 90); // and what was once exchanged does not
    await a2!.psql(`${PG}/main`, 'update orders set n = n', 'shop');
    await write(host, 'three', 1);
    for (const one of [host, a2!]) await one.waitFor('both are alike', async () => await rows(one) === 'one 1, three 1, two 1, two 2', 90);
  });

  if (isWhole) test('a subscriber is gone: it comes back a day behind, is told so, and copies all rows anew', async () => {
    const { l1, l2 } = fleet.hosts, rows = (host: Host) => host.psql(`${PG}/main`, 'select string_agg(n::text, \' \' order by n) from orders', 'shop');
    for (const n of [1, 2]) await l1!.psql(`${PG}/main`, `insert into orders (place, n) values ('here', ${n})`, 'shop');
    await l2!.waitFor('they arrive', async () => await rows(l2!) === '1 2', 30);
    const written = await l1!.psql(`${PG}/main`, 'select pg_current_wal_lsn()', 'shop'); // what the publisher does not know to have arrived it would send again
    await l1!.waitFor('the publisher knows', async () => await l1!.psql(`${PG}/main`, `select confirmed_flush_lsn >= '${written}' from pg_replication_slots where slot_name = 's'`, 'shop') === 't', 60);
    await l2!.powerOff();
    const { host, said } = await comeBack(fleet, 'l2', 'l2b', { clusters: [{ name: 'main' }] });
    assert.match(said, /warning: .*, subscription s of shop: what was sent here after this backup is not sent again/);
    await l1!.psql(`${PG}/main`, `insert into orders (place, n) values ('here', 3)`, 'shop');
    await host.waitFor('it goes on', async () => await rows(host) === '3', 150); // once the publisher has noticed that the old one is gone (wal_sender_timeout)
    for (const sql of ['alter subscription s disable', 'alter subscription s set (slot_name = none)', 'drop subscription s']) await host.psql(`${PG}/main`, sql, 'shop');
    await l1!.psql(`${PG}/main`, `select pg_drop_replication_slot('s')`, 'shop');
    await host.psql(`${PG}/main`, 'truncate orders', 'shop');
    await host.psql(`${PG}/main`, `create subscription s connection 'host=l1 dbname=shop user=postgres' publication p`, 'shop');
    await host.waitFor('all rows are there', async () => await rows(host) === '1 2 3', 60);
  });
});
