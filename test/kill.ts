// Kill a run at random moments of its real life, the script alone or with its whole process group. After each, everything runs within
// 15 seconds and the next run is good without help; at the end every archive that counts is looked into: it holds cold files only.
// COLD_BACKUP_SEED=n repeats the same moments, COLD_BACKUP_KILLS=n takes so many of them.
import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import fs from 'node:fs';
import path from 'node:path';
import { allIsWell, good as takeGoodOne, nearby, provenArchives } from './scenario.ts';
import type { World } from './scenario.ts';
import { waitFor } from './script.ts';

const SHUT_DOWN = 1; // DB_SHUTDOWNED in pg_control.h
const seed = Number(process.env.COLD_BACKUP_SEED ??= String(Date.now() % 1_000_000)); // the scenarios' own processes get it, too

/** The same numbers between 0 and 1 for the same words, whichever scenario asks first (mulberry32). */
function random(words: string): number {
  let state = [...`${seed} ${words}`].reduce((sum, sign) => Math.imul(sum ^ sign.charCodeAt(0), 0x01000193), 0x811c9dc5) + 0x6d2b79f5;
  state = Math.imul(state ^ (state >>> 15), state | 1);
  state ^= state + Math.imul(state ^ (state >>> 7), state | 61);
  return ((state ^ (state >>> 14)) >>> 0) / 4_294_967_296;
}

/** When to kill: so many random milliseconds, at most, after the run has printed this. */
export type Moment = [after: RegExp, mostMs: number];
export const MOMENTS: Moment[] = [
  [/^/, 1500], [/plan: stop/, 800], [/-warm\.checkpoint/, 1200], [/backup\.js guard/, 400], [/web\.sh stop/, 100], [/stopped web/, 500], [/app\.sh stop/, 400], [/stopped app/, 200],
  [/pg_ctl stop/, 150], [/stopped postgres/, 300], [/"kind":"cold"/, 500], [/"kind":"cold"/, 1500], [/pg_ctl start/, 150], [/started postgres/, 100], [/started app/, 100], [/started web/, 1000], [/"kind":"proof"/, 800],
];

/** Kill a run at each moment; after each, everything runs and the next run is good. At the end every archive that counts is looked into. */
async function killAt(world: World, moments: Moment[], wholeGroup: boolean): Promise<void> {
  const rows = new Map<string, number>(), good: string[] = [];
  for (const [after, mostMs] of moments) {
    const delay = Math.round(random(`${after} ${mostMs} ${wholeGroup}`) * mostMs), moment = `${delay} ms after ${after}${wholeGroup ? ', whole group' : ''}`;
    console.log(`note: seed ${seed}: killed ${moment}`);
    const count = Number(world.db.sql('postgres', 'insert into nights select max(n) + 1 from nights; select count(*) from nights'));
    world.server.writeSettings({ warmPass: /warm|\^/.test(String(after)) });
    const run = world.server.start();
    await waitFor(`the run says ${after}`, () => after.test(run.out()));
    await new Promise((done) => { setTimeout(done, delay); });
    run.signal('SIGKILL', wholeGroup);
    const { out, err } = await run.ended;
    rows.set(/plan: stop .* to (\S+) \(/.exec(out)?.[1] ?? '', count);
    try {
      await allIsWell(world, 15, 'a guard may watch');
      world.server.writeSettings({ warmPass: false });
      await takeGoodOne(world, true);
      good.push(world.server.history().pop().archive);
      rows.set(good.at(-1)!, count);
    } catch (error) {
      throw new Error(`killed ${moment}\n${out}${err}`, { cause: error });
    }
  }
  const [first, ...proven] = provenArchives(world);
  assert.deepEqual(good.filter((archive) => !proven.includes(archive)), [], 'said to be good, and not proven');
  for (const archive of [first!, ...proven]) assert.equal(controlState(world, archive), SHUT_DOWN, `${archive} is proven, but its cluster is not shut down`);
  const archive = proven[Math.floor(random(`which one ${wholeGroup}`) * proven.length)]!;
  assert.equal(rowsIn(world, archive), rows.get(archive), `the rows of ${archive}`);
}

/** The state in the control file of an archived cluster, read with plain borg. */
function controlState({ server, db }: World, archive: string): number {
  const bytes = execFileSync('borg', ['extract', '--stdout', `::${archive}`, `${db.dataDirectory}/global/pg_control`.slice(1)], { env: server.borgEnv(), stdio: ['ignore', 'pipe', 'ignore'] });
  return bytes.readUInt32LE(16);
}

/** Extract a cluster with plain borg, start it, count the nights in it. */
export function rowsIn({ folder, server, db }: World, archive: string): number {
  const to = path.join(folder, 'extracted'), data = path.join(to, db.dataDirectory), control = path.join(db.binaries, 'pg_ctl');
  fs.mkdirSync(to, { mode: 0o755 });
  execFileSync('borg', ['extract', `::${archive}`, db.dataDirectory.slice(1)], { cwd: to, env: server.borgEnv(), stdio: 'ignore' });
  for (let above = path.dirname(data); above.length >= to.length; above = path.dirname(above)) fs.chmodSync(above, 0o755); // borg keeps nothing of them
  const asOwner = (...argv: string[]) => execFileSync('runuser', ['-u', db.owner, '--', ...argv], { cwd: '/', encoding: 'utf8' });
  asOwner(control, 'start', '-D', data, '-w', '-s', '-l', path.join(db.socketFolder, 'extracted.log'), '-o', '-p 5433');
  const count = asOwner('psql', '-X', '-A', '-t', '-h', db.socketFolder, '-p', '5433', '-d', 'postgres', '-c', 'select count(*) from nights');
  asOwner(control, 'stop', '-D', data, '-m', 'fast', '-s');
  assert.match(fs.readFileSync(path.join(db.socketFolder, 'extracted.log'), 'utf8'), /database system was shut down at/, 'it needed recovery');
  return Number(count);
}

/** So many of the moments, in their order: other ones with every seed. */
function someMoments(wholeGroup: boolean, moments: Moment[], most: number): Moment[] {
  const turn = (moment: Moment) => random(`turn of ${moment} ${wholeGroup}`);
  const chosen = [...moments].sort((one, other) => turn(one) - turn(other)).slice(0, Number(process.env.COLD_BACKUP_KILLS ?? most));
  return moments.filter((moment) => chosen.includes(moment));
}

/** Loops over the moments, several servers side by side: each takes every third of them; one of the three has ssh between. */
export const killLoops = (moments: Moment[], most: number) => Object.fromEntries([false, true].flatMap((wholeGroup) => [0, 1, 2].map((third) => [
  `kill -9 of ${wholeGroup ? 'its whole process group' : 'the script alone'} at any moment, part ${third + 1}: within 15 s all runs, what is proven is cold, the next run is good`,
  (world: World) => {
    if (third > 0) nearby(world);
    return killAt(world, someMoments(wholeGroup, moments, most).filter((_, index) => index % 3 === third), wholeGroup);
  },
])));
