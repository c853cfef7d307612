// A whole fleet for some minutes: hosts with a network between them, set up as the README says, backed up by their own cron, audited by
// the operator, restored onto a new and empty host. Here its shortened form; `npm run fleet` starts all of it, to look around in.
import './alone.ts';
import assert from 'node:assert/strict';
import { after, before, describe, test } from 'node:test';
import { addDock, addToOperator, addWeb, comeBack, makeFleet } from './fleet-hosts.ts';
import type { Fleet } from './fleet-hosts.ts';
import { cannotRun } from './systemd-host.ts';

describe('a fleet', { skip: cannotRun }, () => {
  let fleet: Fleet;
  before(async () => {
    fleet = await makeFleet();
    await Promise.all([addWeb(fleet), addDock(fleet)]);
  }, { timeout: 300_000 });
  after(() => fleet?.destroy());

  test('every server takes its first backup at the hour of its own cron, over the network, as a user of its own on the storage', async () => {
    await fleet.nightIsOver(['web1', 'dock1']);
    const { web1, dock1 } = fleet.hosts;
    for (const unit of ['web', 'app', 'postgresql@15-main']) assert.ok(await web1!.isActive(unit), unit);
    assert.equal(await web1!.must('curl -s http://127.0.0.1:8080/ || busybox wget -qO- http://127.0.0.1:8080/'), '3000');
    assert.deepEqual((await dock1!.must(`docker ps --format '{{.Names}}'`)).split('\n').sort(), ['app', 'cache', 'db']);
    const refused = await web1!.run(['ssh', '-i', '/etc/cold-backup/ssh_key', '-o', 'UserKnownHostsFile=/etc/cold-backup/known_hosts', '-o', 'BatchMode=yes', 'dock1@storage', 'true']);
    assert.notEqual(refused.code, 0, 'the key of one server opens nothing of another');
  });

  test('the operator audits all of them, and each is clean', async () => {
    await addToOperator(fleet, ['web1', 'dock1']);
    const operator = fleet.hosts.operator!, audit = () => operator.run(['node', '/root/operator/backup.js', 'audit', '--json']);
    await audit(); // trusts what it found
    const { code, stdout, stderr } = await audit();
    assert.equal(code, 0, stdout + stderr);
    assert.deepEqual(JSON.parse(stdout).map(({ server, verdict }: any) => `${server} ${verdict}`).sort(), ['dock1 clean', 'web1 clean']);
  });

  test('web1 is gone: a new and empty host takes its place, with units, application, rows and attachments', async () => {
    await fleet.hosts.web1!.powerOff();
    const host = await comeBack(fleet, 'web1', 'web1b', { clusters: [{ name: 'main' }] }); // as Debian's package makes it
    await host.must('systemctl daemon-reload; systemctl start web app');
    await host.waitFor('the application', async () => (await host.run('busybox wget -qO- http://127.0.0.1:8080/')).stdout.trim() === '3000', 20);
    assert.equal(await host.must('busybox wget -qO- "http://127.0.0.1/uploads/invoice%207.txt"; stat -c %U "/var/www/uploads/invoice 7.txt"'), 'invoice 7\nwww-data');
    assert.equal(await host.psql('15/main', 'select count(*), count(distinct word) from orders', 'shop'), '3000|3000');
  });
});
