// Nights in turns: a day passes, a method takes its night, the same day passes once more, the next method takes its night. Who
// begins changes from round to round, because who comes later finds more of the files in memory. Every night is timed by the outside
// clock, and ours also by what it says of itself; a method that fails ends the bench, for a failed night would be a quick one.
import fs from 'node:fs';
import path from 'node:path';
import { keepRows, measureAll } from './bench-measure.ts';
import type { Row } from './bench-measure.ts';
import type { Method, World } from './bench-peers.ts';
import type { Place } from './bench-place.ts';
import { startStorage } from './storage.ts';

export type Part = { name: string; folder: string; runs: number; rows: Row[] };

/** Add a row and keep all of them on disk. */
export function addRow(part: Part, row: Row): void {
  part.rows.push(row);
  keepRows(part.name, part.runs, part.rows);
}

/** Build a storage for a place, do something with both, and take everything down again, whatever happens. */
export async function inWorld(part: Part, makePlace: (folder: string) => Promise<Place>, work: (world: World) => Promise<void>): Promise<void> {
  const folder = fs.mkdtempSync(path.join(part.folder, `${part.name}-`));
  fs.chmodSync(folder, 0o755);
  const storage = await startStorage(path.join(folder, 'storage'));
  let place: Place | undefined;
  try {
    place = await makePlace(path.join(folder, 'place'));
    await work({ folder, place, storage, port: storage.port });
  } finally {
    place?.destroy();
    storage.destroy();
    fs.rmSync(folder, { recursive: true, force: true });
  }
}

/** One night of one method, watched from outside. */
export async function oneNight(world: World, method: Method, number: number): Promise<Row> {
  const clock = await world.place.watch();
  const took = await measureAll(method.night(number), method.server ? [0, 1] : [0]); // 1: ours is good, with a warning
  const { downSeconds, times } = await clock.end();
  for (const file of method.files ?? []) fs.rmSync(file, { recursive: true, force: true });
  const row = { method: method.name, downSeconds, downTimes: times, ...took };
  if (!method.server) return row;
  const told = method.server.history().pop(), passes = [told.warm, told.cold].filter((pass) => pass), sum = (name: string) => passes.reduce((all, pass) => all + pass[name], 0);
  return { ...row, toldSeconds: told.downSeconds, snapshot: told.snapshot, borgSeconds: sum('seconds'), newBytes: sum('deduplicatedBytes') };
}

/** First nights (run 0), then `runs` rounds of nights, each after a day. The rows carry `facts`. `dayPasses` false: nothing changes in between. */
export async function takeTurns(part: Part, world: World, methods: Method[], facts: Row, dayPasses = true): Promise<void> {
  for (let run = 0; run <= part.runs; run++) {
    const turn = run % methods.length;
    for (const method of [...methods.slice(turn), ...methods.slice(0, turn)]) {
      if (dayPasses && run > 0) world.place.dayPasses(run);
      const row = await oneNight(world, method, run);
      console.error(`${part.name} ${JSON.stringify(facts)} ${run === 0 ? 'first night' : `night ${run}`}: ${method.name}: down ${Number(row.downSeconds).toFixed(2)} s, all ${Number(row.seconds).toFixed(1)} s`);
      if (/snapshot/.test(method.name) && row.snapshot === '') console.error(`${part.name}: no snapshot was used for "${method.name}": this row is left out`);
      else addRow(part, { ...facts, run, ...row });
    }
  }
}
