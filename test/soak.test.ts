// `npm run soak -- --nights 30 --seed N`: weeks of nights in some minutes (weeks.ts). In the tests: five nights, always the same ones.
import assert from 'node:assert/strict';
import path from 'node:path';
import { parseArgs } from 'node:util';
import { allIsWell, expectEnd, nearby, scenarios } from './scenario.ts';
import type { World } from './scenario.ts';
import { atClock, faked, weeks } from './weeks.ts';

const { values } = parseArgs({ options: { nights: { type: 'string' }, seed: { type: 'string' } }, strict: false });
const isCalled = values.nights !== undefined || values.seed !== undefined;
if (isCalled) process.env.COLD_BACKUP_LIVE = '1';
const nights = Number(process.env.COLD_BACKUP_NIGHTS ??= String(values.nights ?? (isCalled ? 30 : 5))), seed = Number(process.env.COLD_BACKUP_SOAK_SEED ??= String(values.seed ?? (isCalled ? Date.now() % 100_000 : 6)));

// What takes its time to stop, sets the clock meanwhile: what is waited for is waited for by no clock.
const CLOCKS = Object.fromEntries([['forward', 3600], ['back', -3600]].map(([way, seconds]) => [`the clock is set ${way} by an hour while a part stops: the run waits for it as it would have, and is good`, async (world: World) => {
  nearby(world);
  const clock = path.join(world.folder, 'clock'), app = world.app.entry as { stop: string[] };
  atClock(clock, 0);
  world.server.writeSettings({ warmPass: false, stop: [world.web.entry, { ...app, stop: ['sh', '-c', `sleep 0.2; echo ${Number(seconds) > 0 ? '+' : ''}${seconds} > ${clock}; exec ${app.stop.join(' ')}`] }, `postgres ${world.db.dataDirectory}`] });
  expectEnd(world, await world.server.run([], { env: faked(clock) }), { code: 0, says: [/is proven/] });
  const { downSeconds } = world.server.history().pop();
  assert.ok(downSeconds > 0.2 && downSeconds < 60, `down ${downSeconds} s`);
  await allIsWell(world, 1);
}]));

scenarios('weeks', import.meta.url, {
  [`${nights} nights, each with its own trouble: everything runs every morning, the history is true, and every archive that counts holds exactly what there was`]: async (world) => {
    const { good, lost, down, untrue } = await weeks(world, nights, seed);
    assert.deepEqual({ lost, down, untrue }, { lost: 0, down: 0, untrue: 0 });
    assert.ok(good > 0);
  },
  ...(isCalled ? {} : CLOCKS),
}, 1, undefined, undefined, 10 + nights);
