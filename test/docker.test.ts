// The product on a real host with Docker: a Compose project with PostgreSQL in it, and containers that do not behave.
import { after, before, describe } from 'node:test';
import assert from 'node:assert/strict';
import type { Host } from './host.ts';
import { STATE, cannotRun, daemon, install, remove, scenarios } from './systemd-host.ts';
import type { Product } from './systemd-host.ts';

const ROWS = 5_000;
// While /tmp/go is not there PostgreSQL does not end: it waits for its archiver, as on a day when the archive cannot be reached.
const ARCHIVER = `-c archive_mode=on -c 'archive_command=until [ -e /tmp/go ]; do sleep 0.05; done'`;
const docker = (name: string, service: string, needs: string, more: string): string => `docker run --detach --name ${name} --hostname ${name} \
  --label com.docker.compose.project=shop --label com.docker.compose.service=${service} --label com.docker.compose.depends_on=${needs} ${more}`;
// A database by its program's name, which ends on TERM as soon as /tmp/go is there.
const REDIS = `docker run --detach --name redis --volume redis:/data app sh -c 'cp /bin/busybox /tmp/redis-server
  echo "trap \\"until [ -e /tmp/go ]; do sleep 0.05; done; exit 0\\" TERM; while :; do sleep 0.05; done" > /tmp/script; exec -a sh /tmp/redis-server /tmp/script'`;

describe('on a host with Docker', { skip: cannotRun }, () => {
  let host: Host, product: Product;
  const scenario = scenarios(() => product);
  const sql = (text: string): Promise<string> => host.must(['docker', 'exec', 'shop-db', 'psql', '-U', 'postgres', '-XqAt', '-c', text]);
  const startedAt = (name: string): Promise<string> => host.must(['docker', 'inspect', '--format={{.State.StartedAt}}', name]);

  before(async () => {
    product = await install({ units: { 'web.service': daemon() }, enable: ['web'] }, { stop: ['service web', 'compose shop'], volumes: ['*'] }, async (made) => {
      host = made;
      await host.startDocker({ images: ['app', 'postgres', 'redis-like'] });
      await host.must('mkdir -p /srv/uploads && echo picture > /srv/uploads/one');
      await host.must(docker('shop-db', 'db', '', `--restart unless-stopped --volume shop_db:/var/lib/postgresql/data postgres ${ARCHIVER}`));
      await host.must(docker('shop-cache', 'cache', '', '--restart always --volume shop_cache:/data redis-like'));
      await host.must(docker('shop-app', 'app', 'db:service_started:false,cache:service_started:false', `--restart always --volume shop_files:/data --volume /srv/uploads:/uploads
        --health-cmd 'wget -qO- http://127.0.0.1:8080/' --health-interval 1s app`.replace('\n', ' ')));
      await host.must(`${docker('shop-batch', 'batch', '', 'app')} && docker stop --time 1 shop-batch`);
      await host.waitFor('PostgreSQL in its container', 'docker exec shop-db psql -U postgres -c "SELECT 1"');
      await host.must('docker exec shop-db touch /tmp/go');
      await sql(`CREATE TABLE t AS SELECT n, md5(n::text) FROM generate_series(1, ${ROWS}) n`);
      await host.waitFor('the health check', `docker inspect --format '{{.State.Health.Status}}' shop-app | grep -x healthy`);
    });
  });
  after(() => remove(host));

  scenario('a good night: in the order of depends_on, the cluster in the container is recognised, proven cold, and boots with all its rows; the project comes back by its name', async () => {
    await product.set({ warmPass: true });
    const batch = await startedAt('shop-batch');
    const said = await product.expect([], 0, /warnings +none/, /services +all 4 are running again/);
    const at = (words: string): number => { assert.ok(said.includes(words), `${words}\n${said}`); return said.indexOf(words); };
    for (const one of ['db', 'cache']) {
      assert.ok(at('stopped container shop-app') < at(`docker ${one === 'db' ? 'kill --signal SIGINT' : 'stop --time 10'} shop-${one}`), said);
      assert.ok(at(`started container shop-${one}`) < at('$ docker start shop-app'), said);
    }
    assert.equal(await startedAt('shop-batch'), batch);
    await product.set({ warmPass: false });
    const { archive } = await product.lastRun();
    const folder = await host.must(['docker', 'volume', 'inspect', '--format={{.Mountpoint}}', 'shop_db']);
    const files = await product.borg(`borg list --short ::${archive}`);
    for (const file of ['srv/uploads/one', 'var/lib/docker/volumes/shop_files/_data/index.html', 'var/lib/docker/volumes/shop_cache/_data/dump']) assert.ok(files.split('\n').includes(file), file);
    const { answer, manifest } = await product.bootExtracted(archive, folder, 'SELECT count(*) FROM t', '999');
    assert.equal(answer, String(ROWS));
    const [cluster, ...others] = manifest.postgres;
    assert.deepEqual([others, cluster.container, cluster.databases.map((one: { name: string }) => one.name).includes('postgres')], [[], 'shop-db', true]);
    assert.equal(cluster.systemIdentifier, await sql('SELECT system_identifier FROM pg_control_system()'));
    assert.deepEqual(manifest.proof.clusters.map((one: { state: string }) => one.state), ['shut down']);
    await sql('DROP TABLE t');
    await host.must('echo damaged > /srv/uploads/one');
    await product.expect(['restore', 'latest', '--in-place', 'compose', 'shop'], 0, /stopped container shop-app[^]*started container shop-app/);
    assert.deepEqual([await sql('SELECT count(*) FROM t'), await host.read('/srv/uploads/one')], [String(ROWS), 'picture\n']);
  });

  scenario('no restart policy brings a container back while it is copied; when a restart of Docker does, there is no proof: exit code 2', async () => {
    const running = await product.startHeld();
    assert.equal(await host.must('docker ps --quiet'), '');
    await host.must('systemctl restart docker'); // "always" starts its containers when Docker comes up
    await product.releaseCopy();
    product.judge(await running.done, 2, /container shop-app runs: something started it/, /services: all 4 are running again/);
  });

  scenario('PostgreSQL in a container that takes longer than its time is not killed: the run is called off, and it runs again when it has ended', async () => {
    await product.set({ stopTimeoutSeconds: 6 });
    await host.must('docker exec shop-db rm /tmp/go');
    const running = product.start();
    await host.waitFor('the end of patience', () => running.output().includes('$ docker start shop-cache'));
    await host.must('docker exec shop-db touch /tmp/go');
    product.judge(await running.done, 2, /container shop-db did not stop within 6 s: the run is called off/, /services: all \d are running again/);
    assert.doesNotMatch(await host.must('docker logs shop-db 2>&1'), /was not properly shut down|automatic recovery/);
    await product.set({ stopTimeoutSeconds: 60 });
  });

  scenario('a container that ignores TERM is killed by Docker in the end: a warning', async () => {
    await host.must('docker run --detach --name deaf --stop-timeout 1 app sleep 1000');
    await product.set({ stop: ['container deaf', 'compose shop'] });
    await product.expect([], 1, /container deaf had to be killed/);
    await host.must('docker rm --force deaf');
  });

  scenario('a container with a database that somebody kills while it stops, or that goes down with the script that began it: no proof, exit code 2; PostgreSQL itself says how it ended', async () => {
    for (const [made, signal, exitCode] of [[REDIS, 'KILL', 137], [REDIS.replace('docker run', 'docker run --init').replace('exec -a sh /tmp/redis-server /tmp/script', '(exec -a sh /tmp/redis-server /tmp/script); true'), '', 143]] as const) {
      await host.must(made);
      await host.waitFor('its database', 'pgrep -x redis-server');
      await product.set({ stop: ['container redis', 'compose shop'] });
      const running = product.start();
      await host.waitFor('its stop', () => running.output().includes('docker kill --signal SIGTERM redis'));
      if (signal) await host.must(`docker kill --signal ${signal} redis`);
      product.judge(await running.done, 2, new RegExp(`container redis \\(redis-server\\) was killed \\(exit code ${exitCode}\\)`), /services: all 4 are running again/);
      const { archive } = await product.lastRun();
      assert.ok(!(await product.archives()).some((name) => name.includes(archive)));
      await host.must('docker exec redis touch /tmp/go; docker rm --force redis; docker volume rm redis');
    }
    // A script that stops PostgreSQL and ends with its signal's code all the same: that it was shut down, its control file says.
    await host.must(`docker run --detach --name wrapped --stop-signal TERM --volume wrapped:/var/lib/postgresql/data postgres sh -c 'trap "/usr/bin/setpriv --reuid 999 --regid 999 --clear-groups pg_ctl stop; exit" TERM; /entrypoint postgres & wait'`);
    const isUp = () => host.waitFor('PostgreSQL below its script', 'docker exec wrapped psql -U postgres -c "SELECT 1"');
    await isUp();
    assert.equal(await host.must('docker kill --signal TERM wrapped > /dev/null; docker wait wrapped'), '143');
    await host.must('docker start wrapped');
    await isUp();
    await product.set({ stop: ['container wrapped', 'compose shop'] });
    await product.expect([], 0, /services +all 4 are running again/);
    await host.must('docker rm --force wrapped; docker volume rm wrapped');
    await product.set({ stop: ['service web', 'compose shop'] });
  });

  scenario('a volume that a running container may write to, and a volume that nothing saves, are named in warnings', async () => {
    await host.must('docker volume create --opt type=tmpfs --opt device=tmpfs peeker_memory; docker run --detach --name peeker --volume shop_files:/data --volume peeker_own:/own --volume peeker_memory:/memory app');
    const said = await product.expect([], 1, /volume shop_files is saved while peeker may write to it: name the container in `stop`/, /volume peeker_own \(of peeker\) is not saved/);
    assert.doesNotMatch(said, /peeker_memory/, 'nothing of it outlives its container');
    await product.expect(['doctor'], 1, /^to do +unsaved: (?!.*may write to it).*volume peeker_own \(of peeker\) is not saved.*\n {9}hint: mend the settings as it says/m, /^to do +warned of: volume shop_files is saved while peeker may write to it/m);
    await host.must('docker rm --force peeker; docker volume rm peeker_own peeker_memory');
  });

  scenario('read-only looks at the host are saved as folders are, all of / is not, and what Docker mounts from elsewhere or Swarm holds is refused while everything runs', async () => {
    await host.must(`mkdir -p /srv/logs /srv/elsewhere && echo one > /srv/logs/log && docker volume create --opt type=tmpfs --opt device=tmpfs memory
      docker run --detach --name shipper --volume /srv/logs:/logs:ro --volume /:/rootfs:ro --volume memory:/memory app
      docker volume create --opt type=none --opt o=bind --opt device=/srv/elsewhere bound`);
    await product.set({ stop: ['container shipper', 'compose shop'] });
    const running = await product.startHeld();
    await host.must('echo two >> /srv/logs/log');
    await product.releaseCopy();
    product.judge(await running.done, 1, /a container sees all of \//, /volume memory is in memory only: there is nothing to save in it/, /warning: changed while it was copied: \/srv\/logs\/log/);
    const { archive, warnings } = await product.lastRun();
    assert.equal(warnings.length, 1, warnings.join('\n'));
    assert.doesNotMatch(await product.borg(`borg list --short ::${archive}`), /^(etc|proc|rootfs)\//m);
    for (const [made, says] of [['--volume bound:/data', /volume bound is mounted by Docker from \/srv\/elsewhere, and is empty while its containers are stopped/], ['--label com.docker.swarm.service.id=x', /container odd belongs to a Docker Swarm service/]] as const) {
      await host.must(`docker run --detach --name odd ${made} app`);
      await product.set({ stop: ['container odd', 'compose shop'] });
      await product.expect([], 2, says, /services: nothing was stopped/);
      await host.must('docker rm --force odd');
    }
    await product.set({ stop: ['service docker', 'compose shop'] });
    await product.expect([], 2, /service docker and containers are named in `stop`/, /services: nothing was stopped/);
    await host.must('docker rm --force shipper; docker volume rm bound memory; rm -r /srv/logs /srv/elsewhere');
    await product.set({ stop: ['service web', 'compose shop'] });
  });

  scenario('a container that is made anew under its name while everything is stopped is the one that is started; a unit or container under a new name is told before anything stops', async () => {
    const idOf = () => host.must(['docker', 'inspect', '--format={{.Id}}', 'shop-cache']), before = await idOf();
    const running = await product.startHeld();
    await host.must(`docker rm shop-cache && ${docker('shop-cache', 'cache', '', '--restart always --volume shop_cache:/data redis-like').replace('docker run --detach', 'docker create')}`);
    await product.releaseCopy();
    product.judge(await running.done, 0, /started container shop-cache/, /services +all 4 are running again/);
    assert.notEqual(await idOf(), before);
    for (const [entry, says] of [['service shop-web', /service shop-web: no such unit here \(not-found\)[^]*hint: look at `systemctl list-units/], ['container shop-caches', /container shop-caches: there is no such container here[^]*hint: look at `docker ps --all`/]] as const) {
      await product.set({ stop: [entry, 'compose shop'] });
      await product.expect([], 2, says, /services: nothing was stopped/);
    }
    await product.set({ stop: ['service web', 'compose shop'] });
  });

  scenario('kill -9 of the whole process group in the middle of the copy', async () => {
    const all = await product.whatRuns();
    const running = await product.startHeld();
    running.kill('SIGKILL', true);
    await running.done;
    await product.everythingRunsAgain(all);
    assert.equal(await sql('SELECT count(*) FROM t'), String(ROWS));
    assert.match((await product.lastRun()).error, /the guard started what it had stopped/);
  });

  scenario('kill -9 of the whole process group while PostgreSQL stops', async () => {
    const all = await product.whatRuns();
    await host.must('docker exec shop-db rm /tmp/go');
    const running = product.start();
    await host.waitFor('its stop', () => running.output().includes('docker kill --signal SIGINT shop-db'));
    running.kill('SIGKILL', true);
    await host.must('docker exec shop-db touch /tmp/go');
    await running.done;
    await product.everythingRunsAgain(all);
    assert.equal(await sql('SELECT count(*) FROM t'), String(ROWS));
    assert.ok(!(await host.run(`ls ${STATE}/ledger.json`)).stdout);
    await product.expect([], 0);
  });
});
