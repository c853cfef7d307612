// What is killed: the script alone or with its whole process group, or everything at once, at any boundary between the steps of real runs,
// and of `recover` (kill.ts); the guard as well. Within 15 seconds everything runs, no archive that counts holds anything but cold files, and the next run is good without help.
import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import fs from 'node:fs';
import path from 'node:path';
import { allIsWell, answers, expectEnd, good as takeGoodOne, held, holdIn, letGo, nearby, provenArchives, scenarios, whatRuns, wrap } from './scenario.ts';
import type { World } from './scenario.ts';
import { isWhole } from './ending.ts';
import { cutInTheMiddle, endings } from './kill.ts';
import { makeCluster } from './cluster.ts';

const guardPid = ({ server }: World): number => JSON.parse(fs.readFileSync(path.join(server.stateFolder, 'guard.json'), 'utf8')).pid;
const ledgerFile = ({ server }: World) => path.join(server.stateFolder, 'ledger.json');

/** A run whose borg is held in the cold pass, and that is then killed with its guard: everything is down, only the ledger is left. */
async function killedWithGuard(world: World): Promise<void> {
  nearby(world);
  const run = world.server.start([], wrap(world, 'borg', holdIn('cold')));
  await held(world);
  process.kill(guardPid(world), 'SIGKILL');
  run.signal('SIGKILL', true);
  await run.ended;
  assert.deepEqual([world.web.running(), world.app.running(), answers(world.db)], [false, false, false]);
  const ledger = JSON.parse(fs.readFileSync(ledgerFile(world), 'utf8'));
  assert.deepEqual(ledger.howTo.slice(2).map((line: string) => /web|app|pg_ctl/.exec(line)?.[0]), ['pg_ctl', 'app', 'web'], 'the ledger tells how to start them by hand');
}

async function recovers(world: World): Promise<void> {
  const ended = await world.server.run(['recover']);
  assert.equal(ended.code, 0, ended.out + ended.err);
  assert.match(ended.out, /services: all 3 are running again[^]*nothing is left stopped/);
  await allIsWell(world, 0.5);
  const line = world.server.history().pop();
  assert.deepEqual([line.outcome, line.exitCode, line.error], ['failed', 2, 'the run was killed or the machine went down; recover started what it had stopped']);
  assert.deepEqual(line.parts.map((part: any) => [part.name, part.runningAt !== null]), [['web', true], ['app', true], [`postgres ${world.db.dataDirectory}`, true]]);
  assert.ok(!provenArchives(world).includes(line.archive));
}

/** Everything that a power cut ends, at once. */
async function powerCut(world: World): Promise<void> {
  const run = world.server.start([], wrap(world, 'borg', holdIn('cold')));
  await held(world);
  execFileSync('pkill', ['-KILL', '--full', 'borg|backup\\.js|postgres']); // script, guard, borg here and on the storage
  await run.ended;
}

/** Three clusters more: two are stopped together, one alone. */
async function manyClusters(world: World) {
  const more = await Promise.all([1, 2, 3].map((number) => makeCluster({ folder: path.join(world.folder, `db${number}`), version: 'debian', port: 5440 + number, initdb: ['--wal-segsize=1'], settings: { fsync: 'off', min_wal_size: '2MB', shared_buffers: '4MB' } })));
  const [one, two, three] = more.map((cluster) => `postgres ${cluster.dataDirectory}`);
  return { more, settings: { warmPass: false, stop: [world.web.entry, world.app.entry, world.idle.entry, [one, two], three, `postgres ${world.db.dataDirectory}`] } };
}

scenarios('when it is killed', import.meta.url, {
  ...endings({ name: 'a run with a warm pass', settings: { warmPass: true } }, 5, { far: true }),
  ...endings({ name: 'a run without a warm pass', settings: { warmPass: false } }, 5),
  ...endings({ name: 'a run with many clusters', settings: { warmPass: false } }, 5, { make: manyClusters }),
  ...endings({ name: 'recover', words: ['recover'], settings: { warmPass: false }, prepare: cutInTheMiddle }, 4),

  'script and guard are killed: recover starts everything': async (world) => {
    await killedWithGuard(world);
    await recovers(world);
    const again = await world.server.run(['recover']);
    assert.deepEqual([again.code, again.out.includes('nothing is left stopped')], [0, true]);
    await takeGoodOne(world);
  },

  'script and guard are killed, and the settings are broken: recover starts everything': async (world) => {
    await killedWithGuard(world);
    fs.writeFileSync(world.server.settingsFile, 'const settings = { stop: [\n', { mode: 0o600 });
    await recovers(world);
    assert.equal((await world.server.run()).code, 64);
  },

  'script and guard are killed, and the settings are gone: recover starts everything': async (world) => {
    await killedWithGuard(world);
    fs.rmSync(world.server.settingsFile);
    await recovers(world);
    world.server.writeSettings();
    await takeGoodOne(world);
  },

  'after a power cut recover starts what ran': async (world) => {
    await powerCut(world);
    await recovers(world);
    await takeGoodOne(world);
  },

  'after a power cut the next run starts what ran, and is good': async (world) => {
    await powerCut(world);
    const ended = await world.server.run();
    expectEnd(world, ended, { code: 0, says: [/this run starts what is missing/, /is proven/] });
    assert.ok(ended.seconds < 25, `${ended.seconds} s: the locks of a borg that is dead held it up`);
    await allIsWell(world, 0.5);
    assert.deepEqual(world.server.history().slice(-2).map((line) => line.outcome), ['failed', 'good']);
  },

  'killed between the cold archive and its proof: the archive is there and unproven, and the next run is good': async (world) => {
    nearby(world);
    world.server.writeSettings({ warmPass: false });
    for (const pass of ['extract', 'proof']) {
      const run = world.server.start([], wrap(world, 'borg', holdIn(pass)));
      await held(world);
      const running = whatRuns(world);
      run.signal('SIGKILL', true);
      await run.ended;
      if (pass === 'extract') letGo(world);
      await allIsWell(world);
      assert.deepEqual(whatRuns(world), running, 'everything ran already');
      const told = world.server.history().pop();
      assert.deepEqual([told.outcome, told.exitCode, told.error], ['failed', 2, 'the run was killed before it could say how it went; everything runs']);
      for (const file of ['held', 'go']) fs.rmSync(path.join(world.folder, file), { force: true });
      const list = JSON.parse((await world.server.run(['list', '--json'])).out);
      assert.deepEqual(list.slice(-1).map((one: any) => one.kind), ['unproven']);
      assert.match((await world.server.run(['list'])).out, /unproven *\n$/);
    }
    await takeGoodOne(world);
  },
}, isWhole ? 2 : undefined, undefined, undefined, isWhole ? 240 : 10);
