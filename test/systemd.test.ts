// The product on a real systemd host: units, PostgreSQL clusters with and without a unit, whatever goes wrong in between.
import { after, before, describe } from 'node:test';
import assert from 'node:assert/strict';
import type { Host } from './host.ts';
import { cannotRun, daemon, install, remove, scenarios } from './systemd-host.ts';
import type { Product } from './systemd-host.ts';
import { PG } from './cluster.ts';

const ROWS = 20_000;
const units = {
  'web.service': daemon(),
  'worker.service': daemon(), 'mail.service': daemon(),
  'asleep.service': daemon(),
  'appdb.service': daemon(), 'app.service': daemon('Requires=appdb.service\nAfter=appdb.service'),
  'always.service': daemon('', 'ExecStart=sleep infinity\nRestart=always\nRestartSec=100ms'),
  'echo.socket': '[Socket]\nListenStream=127.0.0.1:7007\n[Install]\nWantedBy=sockets.target\n',
  'echo.service': daemon('Requires=echo.socket'),
  'lazy.socket': '[Socket]\nListenStream=127.0.0.1:7008\n[Install]\nWantedBy=sockets.target\n',
  'lazy.service': daemon('Requires=lazy.socket'),
  // Does not end on TERM, and is never killed: like a database that waits for a client.
  'stubborn.service': daemon('', `KillMode=process\nExecStartPre=rm -f /run/let-go\nTimeoutStopSec=infinity\nExecStart=sh -c 'trap "" TERM; while ! [ -e /run/let-go ]; do sleep 0.1; done'`),
  'fragile.service': daemon('', 'ExecStartPre=test ! -e /run/broken\nExecStart=sleep infinity'),
  'plain.socket': '[Socket]\nListenStream=127.0.0.1:7009\n[Install]\nWantedBy=sockets.target\n',
  'plain.service': daemon(), // does not ask for its socket
  'poll.socket': '[Socket]\nListenStream=127.0.0.1:7010\nAccept=yes\n[Install]\nWantedBy=sockets.target\n',
  'poll@.service': '[Service]\nExecStart=sleep 3\nStandardInput=socket\n',
  'deaf.service': daemon('', `TimeoutStopSec=1\nExecStart=sh -c 'trap "" TERM; while :; do sleep 0.2; done'`),
  'lead.service': daemon('Wants=noway.service'), 'noway.service': daemon('RefuseManualStart=yes'),
};
const enable = ['web', 'worker', 'mail', 'appdb', 'app', 'always', 'echo.socket', 'echo.service', 'lazy.socket', 'stubborn', 'fragile', 'plain.socket', 'plain', 'poll.socket', 'deaf', 'lead'];

describe('on a systemd host', { skip: cannotRun }, () => {
  let host: Host, product: Product;
  const scenario = scenarios(() => product);

  before(async () => {
    product = await install({ units, enable, clusters: [
      { name: 'main', tablespaces: { fast: '/srv/fast' }, walFolder: '/srv/wal', initdb: ['--data-checksums'],
        sql: `CREATE TABLE t AS SELECT n, md5(n::text) FROM generate_series(1, ${ROWS}) n; CREATE TABLE f TABLESPACE fast AS SELECT * FROM t` },
      { name: 'other', startConf: 'manual' },
    ] }, { stop: ['service web'], folders: ['/srv/uploads'] }, async (made) => {
      host = made;
      await host.must('mkdir /srv/uploads && head -c 3000000 /dev/urandom > /srv/uploads/picture');
    });
  });
  after(() => remove(host));

  scenario('a good night: units, a list of units, a cluster with tablespace and WAL elsewhere; the archive boots with all its rows', async () => {
    await product.set({ stop: ['postgres *', 'service web', ['service worker', 'service mail']], warmPass: true });
    await product.expect(['doctor'], 1, new RegExp(String.raw`^unknown +order: service web, service worker, service mail would stop after postgres ${PG}/main, and start before it$`, 'm'));
    await product.set({ stop: ['service web', ['service worker', 'service mail'], 'postgres *'] });
    await product.expect(['doctor'], 1, /^(?![^]* order: )[^]*schedule/);
    const said = await product.expect([], 0, /warnings +none/, /services +all 5 are running again/);
    assert.ok(said.indexOf('stopped service web') < said.indexOf('stopped service worker'), said);
    assert.ok(said.indexOf(`started postgres ${PG}/main`) < said.indexOf('started service mail') && said.indexOf('started service worker') < said.indexOf('started service web'), said);
    const { archive, outcome } = await product.lastRun();
    assert.equal(outcome, 'good');
    assert.deepEqual(await product.archives(), [`${archive}-warm.checkpoint`, archive, `proven-${archive}`]);
    const { answer, manifest } = await product.bootExtracted(archive, `/var/lib/postgresql/${PG}/main`, 'SELECT count(*), (SELECT count(*) FROM f) FROM t', 'postgres', `/etc/postgresql/${PG}/main`);
    assert.equal(answer, `${ROWS}|${ROWS}`);
    assert.deepEqual(manifest.postgres.map((one: { name: string }) => one.name).sort(), [`${PG}/main`, `${PG}/other`]);
    await product.set({ warmPass: false });
  });

  scenario('a unit that requires a stopped one goes down with it, is started again, and a warning names it', async () => {
    await product.set({ stop: ['service appdb', 'postgres *'] });
    await product.expect([], 1, /unit app\.service went down with the others and was started again: name it in `stop`/);
  });

  scenario('what was not running stays down, Restart=always does not bring a unit back too early, and no request wakes a socket\'s unit', async () => {
    await product.set({ stop: ['service asleep', 'service always', 'service echo', 'service lazy', 'postgres *'] });
    const running = await product.startHeld();
    for (const port of [7007, 7008]) assert.notEqual((await host.run(['bash', '-c', `exec 3<>/dev/tcp/127.0.0.1/${port}`])).code, 0);
    for (const unit of ['asleep', 'always', 'echo', 'lazy', `postgresql@${PG}-main`]) assert.ok(!await host.isActive(unit), unit);
    await product.releaseCopy();
    product.judge(await running.done, 0);
    assert.deepEqual((await product.lastRun()).parts.map(({ name }) => name).filter((name) => name.includes('asleep')), []);
  });

  scenario('a connection that ends while everything is stopped is no unit that went down; a socket comes up before its unit; what systemd had to kill is told', async () => {
    await product.set({ stop: ['service plain', 'service deaf', 'postgres *'] });
    const connection = host.start(['bash', '-c', 'exec 3<>/dev/tcp/127.0.0.1/7010; sleep 5']); // as a monitoring agent is asked every minute
    await host.waitFor('its unit', `systemctl is-active 'poll@*'`);
    const running = await product.startHeld();
    await host.waitFor('its end', `! systemctl is-active 'poll@*'`);
    await product.releaseCopy();
    const said = product.judge(await running.done, 1, /warning: service deaf\.service had to be killed, or crashed/);
    assert.doesNotMatch(said, /poll|plain.*went down with the others/);
    await connection.done;
    assert.deepEqual((await product.lastRun()).warnings.length, 1);
  });

  scenario('a unit that somebody stops in the warm pass stays as it is; its socket, which would wake it, is closed for the copy and opened again', async () => {
    await product.set({ stop: ['service web', 'service mail', 'service plain', 'postgres *'], warmPass: true });
    await host.must('rm -f /run/warm-held /run/borg-held; touch /run/hold-warm /run/hold-borg');
    const running = product.start();
    await host.waitFor('the warm pass', 'test -e /run/warm-held');
    await host.must('systemctl stop mail plain.service; rm /run/hold-warm');
    await product.copyIsHeld(running);
    const isOpen = async () => await host.isActive('plain.socket'), duringTheCopy = await isOpen();
    await product.releaseCopy();
    product.judge(await running.done, 0, /service mail has stopped since this run began: it stays so/, /service plain has stopped since this run began/, /services +all \d are running again/);
    assert.deepEqual([duringTheCopy, await isOpen(), await host.isActive('mail'), await host.isActive('plain')], [false, true, false, false]);
    await host.must('systemctl start mail plain');
    await product.set({ warmPass: false });
  });

  scenario('what somebody stops in a night that stops nothing stays down', async () => {
    await product.set({ stop: ['service asleep'] });
    const running = await product.startHeld();
    await host.must('systemctl stop mail');
    await product.releaseCopy();
    const said = product.judge(await running.done, 1, /is not saved/);
    assert.doesNotMatch(said, /went down with the others/);
    assert.ok(!await host.isActive('mail'));
    await host.must('systemctl start mail');
  });

  scenario('what nothing would start again is not stopped', async () => {
    for (const [entry, says] of [['service noway', /noway\.service runs, but systemd would not start it again \(RefuseManualStart\)/], [`postgres ${PG}/other`, new RegExp(String.raw`postgres ${PG}/other runs, but its start\.conf says "disabled"`)]] as const) {
      await product.set({ stop: ['service web', entry] });
      await host.write(`/etc/postgresql/${PG}/other/start.conf`, 'disabled\n', 0o644);
      await product.expect([], 2, says, /services: nothing was stopped/);
      await host.write(`/etc/postgresql/${PG}/other/start.conf`, 'manual\n', 0o644);
    }
  });

  scenario('a unit that somebody starts in the middle of the copy: no proof, exit code 2', async () => {
    await product.set({ stop: ['service web', 'service worker', 'postgres *'] });
    const running = await product.startHeld();
    await host.must('systemctl start worker');
    await product.releaseCopy();
    product.judge(await running.done, 2, /service worker\.service runs: something started it/, /services: .*running again/);
  });

  scenario('a unit that does not stop: the run is called off, and it is started again as soon as it has really stopped', async () => {
    await product.set({ stop: ['service web', 'service stubborn', 'postgres *'], stopTimeoutSeconds: 2 });
    const said = await product.expect([], 3, /service stubborn did not stop within 2 s: the run is called off/, /NOT RUNNING: "?service stubborn/);
    assert.doesNotMatch(said, /stopped postgres/);
    assert.ok(await host.isActive('web'));
    const { outcome, archive } = await product.lastRun();
    assert.equal(outcome, 'down');
    assert.ok(!(await product.archives()).includes(archive));
    await product.expect(['status'], 2, /left something stopped/);
    await host.must('touch /run/let-go');
    await host.waitFor('it to be started again', async () => await host.isActive('stubborn'));
    await product.set({ stopTimeoutSeconds: 60 });
  });

  scenario('a unit that does not start again: exit code 3, all others are up, and once it is mended the guard starts it', async () => {
    await product.set({ stop: ['service web', 'service fragile', 'postgres *'] });
    const running = await product.startHeld();
    await host.must('touch /run/broken');
    await product.releaseCopy();
    product.judge(await running.done, 3, /could not start service fragile/, /NOT RUNNING: "?service fragile"? \(.*running\)\. Act now: node backup\.js recover/);
    for (const unit of ['web', `postgresql@${PG}-main`]) assert.ok(await host.isActive(unit), unit);
    const { archive } = await product.lastRun();
    assert.ok((await product.archives()).includes(`proven-${archive}`), 'what was copied is cold all the same, and may be needed just then');
    await product.expect([], 3, /still not running/); // whoever holds the lock at this moment, the guard or this run
    assert.equal((await product.lastRun()).outcome, 'down');
    await host.must('rm /run/broken');
    await host.waitFor('the guard to start it', async () => await host.isActive('fragile'), 40);
  });

  scenario('PostgreSQL started by hand in the middle of the copy: no proof, exit code 2', async () => {
    await product.set({ stop: ['service web', 'postgres *'] });
    const running = await product.startHeld();
    await host.must(['systemctl', 'start', `postgresql@${PG}-main`]);
    await product.releaseCopy();
    product.judge(await running.done, 2, /not proven cold/, /services: .*running again/);
    const { archive } = await product.lastRun();
    assert.ok(!(await product.archives()).includes(`proven-${archive}`));
  });

  scenario('a cluster started outside systemd is really stopped, and started by its own unit', async () => {
    await product.set({ stop: ['service web', `postgres ${PG}/other`] });
    await host.must(`systemctl stop postgresql@${PG}-other`);
    await host.must(`pg_ctlcluster ${PG} other start`, { user: 'postgres' });
    assert.ok(!await host.isActive(`postgresql@${PG}-other`));
    const running = await product.startHeld();
    assert.match(await host.must(`pg_lsclusters --no-header ${PG} other`), / down /);
    await product.releaseCopy();
    product.judge(await running.done, 1, new RegExp(String.raw`PostgreSQL cluster "?${PG}/main"? .*is not saved`));
    assert.equal(await host.psql(`${PG}/other`, 'SELECT 1'), '1');
  });

  scenario('a cluster that does not run, and is saved below `folders`, has to stay cold, too', async () => {
    await host.must(`systemctl stop postgresql@${PG}-other`);
    const was = product.settings.folders;
    await product.set({ stop: ['service web'], folders: [`/var/lib/postgresql/${PG}/other`] });
    const running = await product.startHeld();
    await host.must(`touch /var/lib/postgresql/${PG}/other/postgresql.auto.conf`);
    await product.releaseCopy();
    product.judge(await running.done, 2, /files? changed under a stopped part while it was copied: .*postgresql\.auto\.conf/, /services: .* running again/);
    assert.match(await host.must(`pg_lsclusters --no-header ${PG} other`), / down /, 'it did not run before');
    await host.must(`systemctl start postgresql@${PG}-other`);
    await product.set({ folders: was });
  });
});
