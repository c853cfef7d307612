// Coming back in place: a whole archive, one cluster, one folder, on a machine that runs, on a bare one, and whatever goes wrong.
import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import fs from 'node:fs';
import path from 'node:path';
import { allIsWell, answers, good, held, holdIn, letGo, nothingIsLeft, scenarios, whatRuns, wrap } from './scenario.ts';
import type { World } from './scenario.ts';
import { stamps, treeFacts } from './night.ts';
import { everythingRunsAgain, waitFor } from './script.ts';
import type { Ended } from './script.ts';

const all = ({ out, err }: Ended) => out + err;
const sh = (command: string) => execFileSync('sh', ['-c', command], { encoding: 'utf8' });

/** What is in a world now: the rows of every table, every file of the folder. */
const contents = (world: World) => ({ rows: world.db.fingerprint(), files: treeFacts(world.files) });

/** After the backup: rows and tables gone and new, files gone, new and changed. Returns what there was before. */
function damage(world: World): ReturnType<typeof contents> {
  const before = contents(world);
  world.db.sql('postgres', 'delete from nights; create table intruder (n int); insert into intruder values (666)');
  fs.rmSync(path.join(world.files, 'file 1'));
  fs.writeFileSync(path.join(world.files, 'file 2'), 'encrypted, pay here');
  fs.writeFileSync(path.join(world.files, 'new'), 'after the backup');
  return before;
}

const inPlace = (world: World, ...words: string[]) => world.server.run(['restore', 'latest', '--in-place', ...words]);

function restored(ended: Ended, code = 0): string {
  assert.equal(ended.code, code, all(ended));
  assert.doesNotMatch(all(ended), /this is a bug/);
  return all(ended);
}

/** The folders that hold what was there before a restore, and stagings that should be gone. */
const left = (world: World, pattern: string) => execFileSync('find', [world.folder, '-name', pattern, '-prune'], { encoding: 'utf8' }).split('\n').filter((one) => one !== '').sort();

/** Run the commands that a restore printed below this line. */
function paste(said: string, below: RegExp): void {
  const lines = said.slice(below.exec(said)!.index).split('\n').slice(1);
  const commands = lines.slice(0, lines.findIndex((line) => !line.startsWith('  '))).join('\n');
  execFileSync('bash', ['-e', '-c', commands], { stdio: ['ignore', 'ignore', 'inherit'] });
}

scenarios('in place', import.meta.url, {
  'after damage everything comes back as it was saved, what was there lies aside, and the printed commands lead back to it': async (world) => {
    const saved = damage(world), damaged = contents(world);
    const said = restored(await inPlace(world));
    await allIsWell(world);
    assert.deepEqual(contents(world), saved);
    const asides = left(world, '*.before-restore-*');
    assert.deepEqual(asides.map((one) => one.replace(/\.before-restore-.*/, '')), [world.db.dataDirectory, world.files]);
    assert.deepEqual(left(world, '.cold-backup-restore-*'), []);
    assert.equal(treeFacts(asides[1]!), damaged.files);
    console.log(`note: ${/down [\d.]+ s/.exec(said)?.[0]}`);
    paste(said, /Back to the old ones/);
    await allIsWell(world);
    assert.deepEqual(contents(world), damaged);
    restored(await inPlace(world));
    await allIsWell(world);
    assert.deepEqual(contents(world), saved);
    await good(world);
  },
});
