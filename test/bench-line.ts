// Part `line`: first backup and nightly one over a slow line of 10 Mbit/s, with round trips of 20 and 100 ms (bench-relay.ts). Every
// run has new repositories, so that first backups have a median, too. The data are small, for the line is: 12 MB of files that do
// not compress and a small cluster.
import { borgmatic, ours, rdiffBackup, rsnapshot } from './bench-peers.ts';
import type { Method, World } from './bench-peers.ts';
import { makePlace } from './bench-place.ts';
import { layLine } from './bench-relay.ts';
import { addRow, inWorld, oneNight } from './bench-turns.ts';
import type { Part } from './bench-turns.ts';

const MEGABITS = 10, ROUND_TRIPS_MS = [20, 100], CLUSTER_GB = 0.03;
const METHODS: ((world: World) => Method | Promise<Method>)[] = [
  (world) => ours(world, 'ours, warm pass', { warmPass: true }),
  (world) => ours(world, 'ours, no warm pass', { warmPass: false }),
  borgmatic, rsnapshot, rdiffBackup,
];

export async function benchLine(part: Part, files = 1200): Promise<void> {
  for (const roundTripMs of ROUND_TRIPS_MS) {
    for (let run = 1; run <= part.runs; run++) {
      await inWorld(part, (folder) => makePlace(folder, CLUSTER_GB, files), async (world) => {
        for (const make of METHODS) { // each has the line alone, and one of its own, to count what it carried
          const line = await layLine(world.storage.port, roundTripMs, MEGABITS);
          try {
            const method = await make({ ...world, port: line.port });
            for (const night of ['first', 'nightly']) {
              if (night === 'nightly') world.place.dayPasses(run);
              const before = await line.carriedBytes(), row = await oneNight(world, method, night === 'first' ? 0 : 1), after = await line.carriedBytes();
              addRow(part, { roundTripMs, megabits: MEGABITS, night, run, ...row, upBytes: after.up - before.up, downBytes: after.down - before.down });
              console.error(`line ${roundTripMs} ms ${night}: ${method.name}: down ${Number(row.downSeconds).toFixed(2)} s, all ${Number(row.seconds).toFixed(1)} s, ${((after.up + after.down - before.up - before.down) / 1e6).toFixed(1)} MB carried`);
            }
          } finally {
            line.destroy();
          }
        }
      });
    }
  }
}
