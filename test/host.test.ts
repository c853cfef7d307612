// The test world itself: does a host boot, answer, survive a power cut and go away without a trace? A short check of
// host.ts and engine.ts, so that a failure there is not mistaken for one of the product.

import { after, before, describe, test } from 'node:test';
import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { existsSync, readFileSync, readdirSync } from 'node:fs';
import { basename, dirname } from 'node:path';
import { startEngine } from './engine.ts';
import { startHost } from './host.ts';
import type { Host, Storage } from './host.ts';

const daemon = (description: string, more = ''): string =>
  `[Unit]\nDescription=${description}\n${more}\n[Service]\nExecStart=sleep infinity\n[Install]\nWantedBy=multi-user.target\n`;

/** How many processes live in the control groups of a cage, by the name of its folder. A zombie has no command line. */
const processesOf = (folder: string): number => readdirSync('/proc').filter(pid => {
  const text = (file: string): string => { try { return readFileSync(`/proc/${pid}/${file}`, 'utf8'); } catch { return ''; } };
  return text('cgroup').includes(`/${basename(folder)}/`) && text('cmdline') !== '';
}).length;

const assertNothingLeft = (folder: string): void => {
  assert.ok(!existsSync(folder), 'folder');
  assert.ok(!readFileSync('/proc/self/mounts', 'utf8').includes(folder), 'mounts');
  assert.equal(processesOf(folder), 0);
  assert.equal(execFileSync('find', ['/sys/fs/cgroup', '-name', basename(folder)], { encoding: 'utf8' }), '');
};

describe('a host of the tests', () => {
  let host: Host;
  let storage: Storage;

  before(async () => {
    host = await startHost({
      units: {
        'appdb.service': daemon('the database of the application'),
        'web.service': daemon('the application', 'Requires=appdb.service\nAfter=appdb.service'),
      },
      enable: ['web', 'appdb'],
      clusters: [{ name: 'main', tablespaces: { fast: '/srv/fast' }, sql: 'CREATE TABLE t TABLESPACE fast AS SELECT generate_series(1, 1000) AS n' }],
      cron: { tick: '* * * * * root true\n' },
    });
    await host.startDocker({ images: ['app', 'postgres', 'redis-like'] });
    const compose = 'docker run --detach --restart always --label com.docker.compose.project=shop';
    await host.must(`${compose} --name shop-db --volume shop_db:/var/lib/postgresql/data postgres`);
    await host.must(`${compose} --name shop-app --volume shop_files:/data app`);
    await host.must('docker run --detach --restart always --name redis --volume redis:/data redis-like');
    storage = await host.startStorage({ name: 'web1', quota: '1G' });
  });
  after(() => host?.destroy());

  const allAnswers = async (): Promise<void> => {
    for (const unit of ['web', 'appdb', 'cron', 'ssh', 'postgresql@15-main']) assert.ok(await host.isActive(unit), unit);
    assert.equal(await host.psql('15/main', 'SELECT count(*) FROM t'), '1000');
    await host.waitFor('PostgreSQL in the container', 'docker exec shop-db psql -U postgres -c "SELECT 1"');
    await host.waitFor('the application', 'docker exec shop-app wget -qO- http://127.0.0.1:8080/ | grep -q hello');
    assert.equal(await host.must('docker ps --quiet | wc -l'), '3');
    assert.equal(await host.must('systemctl --failed --no-legend'), '');
  };

  test('everything asked for answers after the first boot', allAnswers);

  test('it has its own name, temp folder and clusters, and this Node', async () => {
    assert.equal(await host.must('hostname'), 'web1');
    assert.equal(await host.must('findmnt --noheadings --output FSTYPE /tmp; ls /root; node --version'), `tmpfs\n${process.version}`);
    assert.equal(await host.must('pg_lsclusters --no-header | wc -l'), '1');
    assert.notEqual(await host.read('/etc/machine-id'), existsSync('/etc/machine-id') && readFileSync('/etc/machine-id', 'utf8'));
    assert.equal((await host.run('id -un; exit 7', { user: 'postgres' })).code, 7);
  });

  test('a signal reaches the command itself, and its exit code comes back', async () => {
    const running = host.start(`trap 'echo caught; exit 9' TERM; echo ready; while :; do sleep 0.05; done`);
    await host.waitFor('the command', () => running.output().includes('ready'));
    running.kill('SIGTERM');
    assert.deepEqual(await running.done, { code: 9, stdout: 'ready\ncaught\n', stderr: '' });
  });

  test('borg reaches the storage by an append-only key and nothing else does', async () => {
    await host.must(`install -d -m 700 /root/.ssh && ssh-keygen -q -t ed25519 -N '' -f /root/.ssh/id_ed25519`);
    await host.write('/root/.ssh/known_hosts', storage.knownHosts);
    await storage.authorize(await host.read('/root/.ssh/id_ed25519.pub'));
    await host.must(['borg', 'init', '--encryption', 'none', storage.url]);
    await host.must(['borg', 'create', `${storage.url}::one`, '/etc/hostname']);
    assert.equal(await host.must(['borg', 'list', '--short', storage.url]), 'one');
    assert.notEqual((await host.run(['borg', 'init', '--encryption', 'none', `${storage.url}x`])).code, 0);
  });

  test('after a power cut the files are there, and the next boot starts everything again', async () => {
    await host.write('/root/note', 'before');
    await host.powerOff();
    assert.equal(await host.read('/root/note'), 'before');
    assert.ok((await host.must('ls /var/lib/postgresql/15/main')).includes('postmaster.pid'));
    await host.boot();
    await allAnswers();
  });

  test('destroyed, it leaves no mount, process, control group or folder', async () => {
    const folder = dirname(host.root);
    assert.ok(processesOf(folder) > 20);
    await host.destroy();
    assertNothingLeft(folder);
  });
});

test('an engine of our own runs beside any other and goes away without a trace', async () => {
  const engine = await startEngine(['app', 'postgres']);
  const folder = dirname(engine.env.DOCKER_HOST.replace('unix://', ''));
  try {
    engine.docker(['run', '--detach', '--name', 'db', 'postgres']);
    engine.docker(['exec', 'db', 'sh', '-c', 'timeout 20 sh -c "until pg_isready -q; do sleep 0.1; done"']);
    assert.equal(engine.docker(['exec', 'db', 'psql', '-U', 'postgres', '-XAtc', 'SELECT 1']), '1');
    engine.docker(['stop', '--time', '30', 'db']);
    assert.equal(engine.docker(['inspect', '--format', '{{.State.ExitCode}}', 'db']), '0');
    assert.match(engine.docker(['run', '--rm', 'postgres', 'id', 'postgres']), /^uid=999\(postgres\)/);
  } finally {
    engine.destroy();
  }
  assertNothingLeft(folder);
});
