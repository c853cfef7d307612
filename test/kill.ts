// End a run at the boundaries between its steps, and between them (ending.ts): by kill -9 of the script, of its process group, or by a
// power cut. After each, everything that ran runs within 15 seconds (after a power cut: when `recover` has run, as at boot), nothing
// of the run is left, and the next run is good without help; at the end every archive that counts is looked into: it holds cold files only.
import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import fs from 'node:fs';
import path from 'node:path';
import { allIsWell, answers, good as takeGoodOne, nearby, provenArchives } from './scenario.ts';
import type { World } from './scenario.ts';
import { BOUNDARY, chooseEndings, endingEnvironment, hasEnded, inWords, isWhole, random, readBoundaries } from './ending.ts';
import type { Ending } from './ending.ts';
import type { TestCluster } from './cluster.ts';
import { start, waitFor } from './script.ts';

const SHUT_DOWN = 1; // DB_SHUTDOWNED in pg_control.h
const SIDE_BY_SIDE = isWhole ? 4 : 1; // worlds of one kind, when every boundary is tried

/** A kind of run. settings: what is other than usual; prepare: what comes first; more: clusters beside the usual one. */
export type Kind = { name: string; words?: string[]; settings?: Record<string, unknown>; prepare?: (world: World) => Promise<void>; more?: TestCluster[] };

const stateFiles = ({ server }: World) => fs.readdirSync(server.stateFolder).sort().join(' ');
const boundaryFile = ({ folder }: World) => path.join(folder, 'boundaries');

function startWatched(world: World, kind: Kind, ending?: Ending) {
  fs.rmSync(boundaryFile(world), { force: true });
  return start([process.execPath, '--require', BOUNDARY, world.server.script, ...kind.words ?? []], { env: endingEnvironment(boundaryFile(world), ending) });
}

/** Run to the end it is to meet. Returns what it printed, which boundaries it passed, and which of the parts were down when the power went. */
async function runToItsEnd(world: World, kind: Kind, ending: Ending): Promise<{ said: string; passed: string[]; reached: boolean; down: string[] }> {
  const run = startWatched(world, kind, ending);
  let down: string[] = [], hasGone = false;
  void run.ended.then(() => { hasGone = true; });
  if (ending.how === 'power') {
    await waitFor(`the run comes to ${ending.at}`, () => hasGone || hasEnded(boundaryFile(world)));
    down = hasGone ? [] : powerOff(world, kind);
  }
  const { out, err } = await run.ended, text = fs.readFileSync(boundaryFile(world), 'utf8');
  return { said: out + err, passed: readBoundaries(text).map(({ name }) => name), reached: hasEnded(boundaryFile(world)), down };
}

/** Every process of this server ends at once; its storage is another machine, and stays. Returns the parts that were down just then. */
export function powerOff(world: World, { more = [] }: Kind): string[] {
  const living = () => fs.readdirSync('/proc').filter((pid) => /^\d+$/.test(pid) && Number(pid) > 1 && Number(pid) !== process.pid).map(Number).filter((pid) => {
    try {
      return !/sshd|^borg serve| serve --append-only/.test(fs.readFileSync(`/proc/${pid}/cmdline`, 'utf8').replaceAll('\0', ' ')) && !/\) Z /.test(fs.readFileSync(`/proc/${pid}/stat`, 'utf8'));
    } catch {
      return false;
    }
  });
  const send = (signal: NodeJS.Signals) => living().forEach((pid) => { try { process.kill(pid, signal); } catch { /* it ended */ } });
  send('SIGSTOP'); // so that none does anything that another one's end makes it do
  const down = [world.web, world.app].filter((one) => !one.running()).map(({ name }) => name).concat([world.db, ...more].filter((one) => !one.isRunning()).map((one) => one.dataDirectory));
  while (living().length > 0) send('SIGKILL');
  return down;
}

/** The machine has come up, and `recover` has run: what the run had stopped runs. What was cut off by the power alone starts at boot, or stays as it is. */
async function bootAndRecover(world: World, kind: Kind, down: string[]): Promise<void> {
  const ended = await world.server.run(['recover']);
  assert.equal(ended.code, 0, ended.out + ended.err);
  const daemons = [world.web, world.app], clusters = [world.db, ...kind.more ?? []];
  const isUp = (one: string) => daemons.some(({ name, running }) => name === one && running()) || clusters.some((cluster) => cluster.dataDirectory === one && answers(cluster));
  assert.deepEqual(down.filter((one) => !isUp(one)), [], `recover left them down\n${ended.out}${ended.err}`);
  for (const one of daemons.filter(({ running }) => !running())) one.startNow();
  for (const one of clusters.filter((cluster) => !answers(cluster))) one.start();
}

const TOLD = /^failed: the run was killed (or the machine went down; (the guard|recover) started what it had stopped|before it could say how it went; everything runs)$/;

/** Run a kind of run to each of these ends; after each, everything runs and the next run is good. At the end every archive that counts is looked into. */
async function endAll(world: World, kind: Kind, endings: Ending[], usualFiles: string): Promise<void> {
  const rows = new Map<string, number>(), good: string[] = [], missed: string[] = [];
  for (const ending of endings) {
    const count = Number(world.db.sql('postgres', 'insert into nights select max(n) + 1 from nights; select count(*) from nights'));
    world.server.writeSettings(kind.settings);
    await kind.prepare?.(world);
    const lines = world.server.history().length, began = Date.now();
    const { said, passed, reached, down } = await runToItsEnd(world, kind, ending);
    if (!reached) missed.push(ending.at);
    const archive = /plan: stop .* to (\S+) \(/.exec(said)?.[1] ?? '';
    rows.set(archive, count);
    try {
      if (reached && ending.how === 'power') await bootAndRecover(world, kind, down);
      const guardAt = passed.findIndex((name) => /^started node backup\.js guard/.test(name)), isGuarded = ending.how !== 'power' && guardAt >= 0 && guardAt < passed.length - 1;
      if (ending.how !== 'power' && !isGuarded) assert.match(String((await world.server.run(['recover'])).code), /^(0|75)$/); // perhaps no guard was there yet: cron calls it every five minutes
      if (kind.words) assert.equal((await world.server.run(kind.words)).code, 0);
      await allIsWell(world, 15, 'a guard may watch');
      for (const one of kind.more ?? []) await waitFor(`${one.dataDirectory} answers`, () => answers(one), 15);
      const isStopped = kind.words || (passed.some((name) => /started web\.sh stop/.test(name)) && !passed.some((name) => /^rm ledger\.json #/.test(name)));
      const isTold = () => world.server.history().slice(lines).some((line) => line.archive === archive || TOLD.test(`${line.outcome}: ${line.error}`));
      if (reached && (isStopped || isGuarded)) await waitFor('the history tells of it', isTold, 5);
      world.server.writeSettings({ warmPass: false });
      await takeGoodOne(world, true);
      assert.equal(stateFiles(world), usualFiles, 'something is left in the state folder');
      assert.doesNotMatch(fs.readFileSync('/proc/self/mountinfo', 'utf8'), /cold-backup-snapshot/, 'a mount is left');
      good.push(world.server.history().pop().archive);
      rows.set(good.at(-1)!, count);
      console.log(`note: ${inWords(ending)}${reached ? '' : ': not reached'}, ${((Date.now() - began) / 1000).toFixed(1)} s`);
    } catch (error) {
      throw new Error(`${inWords(ending)}\n${said}`, { cause: error });
    }
  }
  assert.ok(missed.length <= 1 + endings.length / 10, `these boundaries were not there again: ${missed.join(', ')}`);
  const [first, ...proven] = provenArchives(world);
  assert.deepEqual(good.filter((archive) => !proven.includes(archive)), [], 'said to be good, and not proven');
  for (const archive of [first!, ...proven]) assert.equal(controlState(world, archive), SHUT_DOWN, `${archive} is proven, but its cluster is not shut down`);
  const counted = proven.filter((one) => rows.has(one)), archive = counted[Math.floor(random(`which one ${kind.name}`) * counted.length)]!;
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
  asOwner(control, 'start', '-D', data, '-w', '-s', '-l', path.join(db.socketFolder, 'extracted.log'), '-o', '-p 5499');
  const count = asOwner('psql', '-X', '-A', '-t', '-h', db.socketFolder, '-p', '5499', '-d', 'postgres', '-c', 'select count(*) from nights');
  asOwner(control, 'stop', '-D', data, '-m', 'fast', '-s');
  assert.match(fs.readFileSync(path.join(db.socketFolder, 'extracted.log'), 'utf8'), /database system was shut down at/, 'it needed recovery');
  return Number(count);
}

/** Scenarios that end a kind of run at every boundary, or at so many of them. far: with ssh between; else the repository lies near, which takes half the time. */
export const endings = (kind: Kind, most: number, options: { far?: boolean; make?: (world: World) => Promise<Partial<Kind>> } = {}) => Object.fromEntries(Array.from({ length: SIDE_BY_SIDE }, (_, part) => [
  `killed, or its power cut, at ${isWhole ? 'every boundary' : 'any boundary'} of ${kind.name}${SIDE_BY_SIDE > 1 ? `, part ${part + 1}` : ''}: what ran runs again, what is proven is cold, nothing is left, the next run is good`,
  async (world: World) => {
    if (!options.far) nearby(world);
    const whole: Kind = { ...kind, ...await options.make?.(world) };
    world.server.writeSettings(whole.settings);
    await takeGoodOne(world, true); // in the place and with the settings in which it is watched
    const usualFiles = stateFiles(world);
    await whole.prepare?.(world);
    const ended = await startWatched(world, whole).ended;
    assert.equal(ended.code, 0, ended.out + ended.err);
    const boundaries = readBoundaries(fs.readFileSync(boundaryFile(world), 'utf8')), chosen = chooseEndings(boundaries, `${kind.name} ${world.disk}`, most);
    assert.ok(boundaries.length > (kind.words ? 20 : 100), `only ${boundaries.length} boundaries`);
    if (part === 0) console.log(`note: ${boundaries.length} boundaries, ${chosen.length} ends`);
    await endAll(world, whole, chosen.filter((_, index) => index % SIDE_BY_SIDE === part), usualFiles);
  },
]));

/** A run whose power is cut when everything is stopped: what `recover` finds. */
export async function cutInTheMiddle(world: World): Promise<void> {
  const { reached } = await runToItsEnd(world, { name: '' }, { at: 'writeFile RESTORE.md #1', how: 'power', afterMs: 0 });
  assert.ok(reached);
}
