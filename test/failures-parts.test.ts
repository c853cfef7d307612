// Parts that do not stop, or do not start, and people who interrupt: what can run, runs; what does not is told with exit 3
// and watched until it does.
import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import fs from 'node:fs';
import path from 'node:path';
import { processes } from './night.ts';
import { allIsWell, expectEnd, good, held, holdIn, letGo, nearby, nothingIsLeft, provenArchives, scenarios, whatRuns, wrap } from './scenario.ts';
import type { World } from './scenario.ts';
import { everythingRunsAgain, makeDaemon, waitFor } from './script.ts';

const ALL_RUN = /services: all \d are running again/;
const status = async ({ server }: World) => JSON.parse((await server.run(['status', '--json'])).out);

/** The settings' list of parts with another first one. */
const withFirst = ({ server }: World, ...first: object[]) => [...first, ...(server.settings.stop as object[]).slice(1)];

/** A part whose start fails until the test makes the file `mended`. */
const broken = (world: World, entry: any) => ({ ...entry, start: ['sh', '-c', `[ -e ${world.folder}/mended ] && exec "$@"; echo the port is in use >&2; exit 1`, 'sh', ...entry.start] });

scenarios('a part that fails, a person who interrupts', import.meta.url, {
  'a part that does not stop in its time: the run is called off, everything runs': async (world) => {
    nearby(world);
    const stubborn = makeDaemon(world.folder, 'stubborn', { ignoresStop: true });
    stubborn.startNow();
    world.server.writeSettings({ stop: [world.web.entry, stubborn.entry, ...(world.server.settings.stop as object[]).slice(1)], stopTimeoutSeconds: 2, warmPass: false });
    const app = fs.readFileSync(world.app.pidFile, 'utf8');
    expectEnd(world, await world.server.run(), { code: 2, says: [/error: stubborn did not stop within 2 s: the run is called off/, /ran: .*stubborn\.sh stop/, /raise `stopTimeoutSeconds`/, ALL_RUN] });
    await everythingRunsAgain([world.web, world.app, stubborn], [world.idle], 0.1);
    assert.equal(fs.readFileSync(world.app.pidFile, 'utf8'), app, 'what comes after it in the list was not touched');
    assert.notEqual((await status(world)).outcome, 'down', 'everything runs');
    stubborn.stopNow(); // it ends after all
    await everythingRunsAgain([stubborn], [world.idle]);
    stubborn.stopNow();
    await nothingIsLeft(world);
  },

  'a part that stops long after its time, or after its stop command has given up, is started again by the guard': async (world) => {
    nearby(world);
    const slow = makeDaemon(world.folder, 'slow', { stopSeconds: 7 }), { stop }: any = slow.entry;
    slow.startNow();
    for (const [entry, says] of [[slow.entry, /error: slow did not stop within 2 s/], [{ ...slow.entry, stop: ['timeout', '1', ...stop] }, /error: could not stop slow \(exit code 124\)/]] as const) {
      world.server.writeSettings({ stop: withFirst(world, entry), stopTimeoutSeconds: 2, warmPass: false });
      const before = fs.readFileSync(slow.pidFile, 'utf8');
      expectEnd(world, await world.server.run(), { code: 2, says: [says] });
      await waitFor('it has stopped, late, and runs again', () => slow.running() && fs.readFileSync(slow.pidFile, 'utf8') !== before);
      await allIsWell(world);
      assert.ok(slow.running());
    }
  },

  'a stop command that fails: its words are told, and the part and all others run': async (world) => {
    nearby(world);
    const running = whatRuns(world);
    world.server.writeSettings({ stop: withFirst(world, { ...world.web.entry, stop: ['sh', '-c', 'echo "busy, ask again" >&2; exit 4'] }), warmPass: false });
    const ended = await world.server.run();
    expectEnd(world, ended, { code: 2, says: [/error: could not stop web \(exit code 4\)/, /said: busy, ask again/, /services: web is running again/] });
    assert.doesNotMatch(ended.out, /\$ .*web\.sh start/, 'what was never down is not started beside itself');
    assert.deepEqual(whatRuns(world), running);
    assert.notEqual((await status(world)).outcome, 'down', 'everything runs');
    world.server.writeSettings({ stop: withFirst(world, world.web.entry) });
    await good(world); // and the guard of the failed run has gone with it
  },

  'a part that does not start: exit 3, the others run, and once it is mended the guard brings it up': async (world) => {
    world.server.writeSettings({ stop: withFirst(world, world.web.entry, broken(world, world.app.entry)).filter((one: any) => one !== world.app.entry), warmPass: false });
    const ended = await world.server.run();
    expectEnd(world, ended, { code: 3, outcome: 'down', proven: world.disk === 'tmpfs', says: [/error: not running: app/, /hint: look at its own log, mend it/, /services: NOT RUNNING: app \(\d parts running\)\. Act now: node backup\.js recover/, /the port is in use/] });
    await everythingRunsAgain([world.web], [world.idle, world.app], 0.1);
    assert.equal(world.db.sql('postgres', 'select 1'), '1');
    assert.deepEqual([(await status(world)).outcome, (await status(world)).next], ['down', 'node backup.js recover']);
    const ledger = JSON.parse(fs.readFileSync(path.join(world.server.stateFolder, 'ledger.json'), 'utf8'));
    assert.deepEqual(ledger.parts.filter((part: any) => part.runningAt === null).map((part: any) => part.name), ['app']);
    const again = await world.server.run();
    assert.equal(again.code, 3, again.out + again.err); // no backup while something is down
    fs.writeFileSync(path.join(world.folder, 'mended'), '');
    await allIsWell(world, 60);
    assert.notEqual((await status(world)).outcome, 'down');
    const line = world.server.history().pop();
    assert.deepEqual([line.outcome, line.exitCode, line.error], ['failed', 2, 'something did not start again at the end of the run; the guard started what it had stopped']);
    await good(world);
  },

  'a part that does not start wins over every other end of the run': async (world) => {
    nearby(world);
    world.server.writeSettings({ stop: withFirst(world, broken(world, world.web.entry)), warmPass: false });
    const run = world.server.start([], wrap(world, 'borg', holdIn('cold')));
    await held(world);
    run.signal('SIGTERM');
    const ended = await run.ended;
    expectEnd(world, ended, { code: 3, outcome: 'down', says: [/ended by SIGTERM/, /NOT RUNNING: web/], error: /ended by SIGTERM|not running: web/ });
    await everythingRunsAgain([world.app], [world.web, world.idle], 0.1);
    fs.writeFileSync(path.join(world.folder, 'mended'), '');
    const recovered = await world.server.run(['recover']);
    assert.equal(recovered.code, 0, recovered.out + recovered.err);
    await allIsWell(world, 0.5);
  },

  'a part that comes up in the warm pass: nothing is stopped; one whose own command says no there is stopped all the same, and runs again': async (world) => {
    nearby(world);
    world.server.writeSettings({ warmPass: true });
    for (const [part, expected] of [[world.idle, { code: 2, says: [/idle was started since this run began, so nothing was stopped/, /services: nothing was stopped/] }], [world.web, { code: 0, says: [/\$ \S*web\.sh stop\n/, /services +all 3 are running again/] }]] as const) {
      const run = world.server.start([], wrap(world, 'borg', holdIn('warm')));
      await held(world);
      if (part === world.idle) part.startNow();
      else part.stopNow();
      letGo(world);
      expectEnd(world, await run.ended, expected as any);
      for (const file of ['held', 'go']) fs.rmSync(path.join(world.folder, file));
      if (part === world.idle) part.stopNow();
    }
    await allIsWell(world);
  },

  'a folder that is unmounted with what was stopped is no empty backup': async (world) => {
    const shelf = path.join(world.folder, 'shelf'), mount = ['mount', '-t', 'tmpfs', 'tmpfs', shelf];
    fs.mkdirSync(shelf);
    execFileSync(mount[0]!, mount.slice(1));
    fs.writeFileSync(path.join(shelf, 'book'), 'one');
    nearby(world);
    world.server.writeSettings({ warmPass: false, folders: [world.files, shelf], stop: withFirst(world, world.web.entry, { name: 'shelf', running: ['mountpoint', '-q', shelf], stop: ['umount', shelf], start: mount }) });
    expectEnd(world, await world.server.run(), { code: 2, says: [/shelf \(folder\) is another folder now: it was there when the run began/, ALL_RUN] });
    await allIsWell(world, 0.5);
    execFileSync('umount', [shelf]);
  },

  'SIGTERM in the warm pass: exit 143, nothing was stopped': async (world) => {
    world.server.writeSettings({ warmPass: true });
    const running = whatRuns(world), run = world.server.start([], wrap(world, 'borg', holdIn('warm')));
    await held(world);
    run.signal('SIGTERM');
    expectEnd(world, await run.ended, { code: 143, says: [/error: ended by SIGTERM/, /services: nothing was stopped/] });
    assert.deepEqual(whatRuns(world), running);
    await allIsWell(world);
  },

  'SIGHUP while a part stops: exit 129 after everything runs again': async (world) => {
    nearby(world);
    const slow = makeDaemon(world.folder, 'slow', { stopSeconds: 3 });
    slow.startNow();
    world.server.writeSettings({ stop: [world.web.entry, slow.entry, ...(world.server.settings.stop as object[]).slice(1)], warmPass: false });
    const before = fs.readFileSync(slow.pidFile, 'utf8'), run = world.server.start();
    await waitFor('it stops', () => processes().some((line) => /slow\.sh stop/.test(line))); // the command is there, and beyond the reach of our signal
    run.signal('SIGHUP', true);
    expectEnd(world, await run.ended, { code: 129, says: [/error: ended by SIGHUP/, ALL_RUN] });
    await allIsWell(world, 0.1);
    assert.ok(slow.running() && fs.readFileSync(slow.pidFile, 'utf8') !== before, 'it was waited for, and started');
  },

  'SIGTERM while everything is proven cold: exit 143 after everything runs again': async (world) => {
    nearby(world);
    world.server.writeSettings({ warmPass: false });
    const run = world.server.start([], wrap(world, 'find', `case "$*" in *%C@*) pass=listing;; esac; ${holdIn('listing')}`));
    await held(world);
    run.signal('SIGTERM');
    expectEnd(world, await run.ended, { code: 143, says: [/error: ended by SIGTERM/, ALL_RUN], error: /^ended by SIGTERM$/ });
    await allIsWell(world, 0.1);
  },

  'SIGINT in the cold pass: exit 130 after everything runs again, and a second one changes nothing': async (world) => {
    for (const times of [1, 2]) {
      const run = world.server.start([], wrap(world, 'borg', `[ $pass = cold ] && trap '' INT TERM; ${holdIn('cold')}`));
      await held(world);
      for (let time = 0; time < times; time++) {
        run.signal('SIGINT', true); // as the terminal does it
        await waitFor('it is heard', () => (run.out().match(/ended by SIGINT/g) ?? []).length > time);
      }
      expectEnd(world, await run.ended, { code: 130, says: [/error: ended by SIGINT/, ALL_RUN] });
      await allIsWell(world, 0.5);
      fs.rmSync(path.join(world.folder, 'held'));
      world.server.writeSettings({ warmPass: false });
    }
  },

  'SIGTERM while things start: exit 143 after everything runs again, and the archive is not proven': async (world) => {
    nearby(world);
    const start = ['sh', '-c', 'sleep 2; exec "$@"', 'sh', ...(world.app.entry as any).start];
    world.server.writeSettings({ stop: (world.server.settings.stop as object[]).map((one) => (one === world.app.entry ? { ...world.app.entry, start } : one)), warmPass: false });
    const run = world.server.start();
    await waitFor('it starts', () => /sleep 2/.test(run.out()));
    run.signal('SIGTERM');
    expectEnd(world, await run.ended, { code: 143, says: [/everything is being started again first/, /error: ended by SIGTERM/, ALL_RUN] });
    await allIsWell(world, 0.1);
    assert.equal(provenArchives(world).length, 1, 'only the one of the night before');
    await good(world);
  },
}, undefined, ['tmpfs', 'btrfs'], (name, disk) => disk === 'tmpfs' || !/wins over|warm pass|unmounted/.test(name)); // with a snapshot there is no copying before the stop, and none once something is down
