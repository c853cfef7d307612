// What is killed, or loses its power, on a real host: units, containers with every kind of restart, several clusters, all in one run. The
// boundaries at which it happens are those of ending.ts; after a power cut the host boots, and the @reboot line of cron does the rest.
import { after, before, describe, test } from 'node:test';
import assert from 'node:assert/strict';
import fs from 'node:fs';
import type { Host } from './host.ts';
import { SCRIPT, STATE, cannotRun, daemon, install, remove } from './systemd-host.ts';
import type { Product } from './systemd-host.ts';
import { BOUNDARY, chooseEndings, endingEnvironment, inWords, isWhole, readBoundaries } from './ending.ts';
import type { Ending } from './ending.ts';
import { PG } from './cluster.ts';

const ROWS = 1_000;
const run = (name: string, more: string) => `docker run --detach --name ${name} --hostname ${name} --label com.docker.compose.project=shop --label com.docker.compose.service=${name} ${more}`;

describe('killed on a real host', { skip: cannotRun }, () => {
  let host: Host, product: Product;

  before(async () => {
    product = await install({
      units: { 'web.service': daemon(), 'worker.service': daemon(), 'mail.service': daemon(), 'asleep.service': daemon() }, enable: ['web', 'worker', 'mail'],
      clusters: [{ name: 'main', sql: `CREATE TABLE t AS SELECT generate_series(1, ${ROWS}) n` }, { name: 'other' }],
    }, { stop: ['service web', ['service worker', 'service mail'], 'service asleep', 'compose shop', 'postgres *'], volumes: ['*'] }, async (made) => {
      host = made;
      await host.startDocker({ images: ['app', 'postgres', 'redis-like'] });
      await host.must(run('db', '--restart unless-stopped --volume db:/var/lib/postgresql/data postgres'));
      await host.must(run('cache', '--restart always --volume cache:/data redis-like'));
      await host.must(run('app', `--restart unless-stopped --volume files:/data --health-cmd 'wget -qO- http://127.0.0.1:8080/' --health-interval 1s app`));
      await host.must(`${run('batch', '--restart unless-stopped app')} && docker stop --time 1 batch`); // stopped on purpose
      await host.waitFor('PostgreSQL in its container', `docker exec db psql -U postgres -c "CREATE TABLE t AS SELECT generate_series(1, ${ROWS}) n"`);
      await host.waitFor('the health check', `docker inspect --format '{{.State.Health.Status}}' app | grep -x healthy`);
    });
    await host.write('/opt/boundary.cjs', fs.readFileSync(BOUNDARY, 'utf8'));
    await product.expect(['setup', '--yes', '--schedule', 'cron'], 0);
    await host.must(`sed -i -n '/PATH=\\|recover/p' /etc/cron.d/cold-backup && grep -q @reboot /etc/cron.d/cold-backup`); // the night itself is begun here
  });
  after(() => remove(host));

  const watched = (ending?: Ending) => host.start(['node', '--require', '/opt/boundary.cjs', SCRIPT], { env: endingEnvironment('/srv/boundaries', ending) });

  test(`at ${isWhole ? 'every boundary' : 'any boundary'} of a run with units, containers and clusters: what ran runs again, what was stopped on purpose does not, the next run is good`, { timeout: isWhole ? 14_400_000 : 600_000 }, async () => {
    await product.expect([], 0);
    product.judge(await watched().done, 0);
    const boundaries = readBoundaries(await host.read('/srv/boundaries')), chosen = chooseEndings(boundaries, 'host', 5);
    assert.ok(boundaries.length > 150, `only ${boundaries.length} boundaries`);
    console.log(`# ${boundaries.length} boundaries, ${chosen.length} ends`);
    const all = await product.whatRuns(), missed: string[] = [];
    for (const ending of chosen) {
      await host.must('rm -f /srv/boundaries');
      const killed = watched(ending), words = inWords(ending);
      let hasGone = false;
      void killed.done.then(() => { hasGone = true; });
      const isReached = async () => (await host.run('grep -q "^- ended" /srv/boundaries')).code === 0;
      await host.waitFor(words, async () => hasGone || await isReached(), 60);
      const reached = await isReached();
      console.log(`# ${words}${reached ? '' : ': not reached'}`);
      if (!reached) missed.push(words);
      if (reached && ending.how === 'power') {
        await host.powerOff();
        await host.boot();
      }
      await killed.done;
      try {
        await host.waitFor('the guard has no more to watch', `! grep -qs '"runningAt": null' ${STATE}/ledger.json`, 40);
        await product.everythingRunsAgain(all, ending.how === 'power' ? 60 : 15).catch(async (error) => { if (!await isUndecided()) throw error; }); // a guard may watch what may still follow its stop
        await product.expect([], 0, /is proven/);
        await product.everythingRunsAgain(all);
        assert.equal(await host.must('docker inspect --format "{{.State.Running}}" batch'), 'false');
      } catch (error) {
        throw new Error(`${words}\n${killed.output()}`, { cause: error });
      }
    }
    assert.ok(missed.length <= 1 + chosen.length / 10, `these boundaries were not there again: ${missed.join(', ')}`);
    const { archive } = await product.lastRun();
    for (const [folder, user, config] of [[`/var/lib/postgresql/${PG}/main`, 'postgres', `/etc/postgresql/${PG}/main`], [await host.must(['docker', 'volume', 'inspect', '--format={{.Mountpoint}}', 'db']), '999', '']] as const) {
      assert.equal((await product.bootExtracted(archive, folder, 'SELECT count(*) FROM t', user, config)).answer, String(ROWS));
    }
  });

  const isUndecided = async () => (await host.run(`grep -q '"stoppedAt": null' ${STATE}/ledger.json && ! grep -q '"runningAt": null' ${STATE}/ledger.json`)).code === 0;
});
