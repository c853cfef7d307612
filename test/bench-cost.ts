// Part `cost`: what our script costs beside what it calls. A whole night against the same by hand (`borg info`, stop, `borg create`, start,
// `borg extract` of one file); the seconds of our passes against that one `borg create`; CPU seconds and memory of the whole
// process tree; and how long each program takes to start and do nothing.
import { bareBorg, ours } from './bench-peers.ts';
import type { Method, World } from './bench-peers.ts';
import { measure, measureAll } from './bench-measure.ts';
import type { Row } from './bench-measure.ts';
import { makePlace } from './bench-place.ts';
import { addRow, inWorld, oneNight } from './bench-turns.ts';
import type { Part } from './bench-turns.ts';

const STARTS_PER_RUN = 5;

export async function benchCost(part: Part, sizesGB: number[], files: number): Promise<void> {
  for (const gigabytes of sizesGB) await benchNightsOf(part, gigabytes, files, gigabytes === sizesGB[0]);
}

async function benchNightsOf(part: Part, gigabytes: number, files: number, isFirst: boolean): Promise<void> {
  await inWorld(part, (folder) => makePlace(folder, gigabytes, files), async (world) => {
    const bare = bareBorg(world), [, create] = bare.night(0) as [string[], string[], string[]];
    const borg = create.slice(0, create.indexOf('create')), oneFile = `${world.place.dataDirectory.slice(1)}/PG_VERSION`;
    const byHand: Method = { name: 'by hand', storedAt: bare.storedAt, night: (number) => [[...borg, 'info'], ...bare.night(number), [...borg, 'extract', '--stdout', `::night-${number}`, oneFile]] };
    const alone = bareBorg(world, 'one borg create', 'bare-borg-alone'); // a repository of its own, or it would find less that is new
    const methods = [byHand, alone, await ours(world, 'ours, warm pass', { warmPass: true }), await ours(world, 'ours, no warm pass', { warmPass: false })];
    if (isFirst) await benchStarts(part, methods[2]!.server!.script);
    const note = (night: string, row: Row) => {
      addRow(part, { gigabytes, files, night, ...row });
      console.error(`cost, ${gigabytes} GB, ${night}: ${row.method}: ${Number(row.seconds).toFixed(1)} s, CPU ${Number(row.cpuSeconds).toFixed(1)} s, ${Number(row.memoryMB).toFixed(0)} MB`);
    };
    for (let run = 0; run <= part.runs; run++) {
      const turn = run % methods.length, night = run === 0 ? 'first' : 'nightly';
      for (const method of [...methods.slice(turn), ...methods.slice(0, turn)]) {
        if (run > 0) world.place.dayPasses(run);
        note(night, { run, ...method === alone ? await onlyCreate(world, alone, run) : await oneNight(world, method, run) });
      }
    }
  });
}

/** Its `borg create` alone is measured: the night by hand cannot be cut open. */
async function onlyCreate(world: World, { name, night }: Method, number: number): Promise<Row> {
  const [stop, create, start] = night(number) as [string[], string[], string[]], borg = create.slice(0, create.indexOf('create'));
  await measureAll([[...borg, 'info'], stop]);
  const pass = await measure(create);
  await measureAll([start]);
  return { method: name, ...pass };
}

async function benchStarts(part: Part, script: string): Promise<void> {
  const programs: Record<string, string[]> = {
    'node -e 0': [process.execPath, '-e', '0'], 'backup.js --version': [process.execPath, script, '--version'], 'backup.js --help': [process.execPath, script, '--help'],
    'backup.js --dry-run': [process.execPath, script, '--dry-run'], 'borgmatic --version': ['borgmatic', '--version'], 'restic version': ['restic', 'version'], 'borg --version': ['borg', '--version'],
  };
  for (let run = 1; run <= STARTS_PER_RUN * part.runs; run++) {
    for (const [program, argv] of Object.entries(programs)) addRow(part, { night: 'start-up', method: program, run, ...await measure(argv) });
  }
}
