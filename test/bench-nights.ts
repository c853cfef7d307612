// Part `nights`: what seven nights cost the storage and the line. Every night the same day has passed for all: those that save files at
// rest find the cluster stopped, those that save a running database find it running; nobody's downtime is measured here.
// Storage: what `du` says of the method's folder, hard links once. Line: what a relay in front of the storage carried, both ways.
import { execFileSync } from 'node:child_process';
import fs from 'node:fs';
import { baseBackup, dump, ours, rdiffBackup, restic, rsnapshot } from './bench-peers.ts';
import type { Method, World } from './bench-peers.ts';
import { measureAll } from './bench-measure.ts';
import { makePlace } from './bench-place.ts';
import { layLine } from './bench-relay.ts';
import { addRow, inWorld } from './bench-turns.ts';
import type { Part } from './bench-turns.ts';

const METHODS: { make: (world: World) => Method | Promise<Method>; atRest: boolean }[] = [ // those with the database running first
  { make: (world) => ours(world, 'ours, warm pass', { warmPass: true }), atRest: false },
  { make: (world) => ours(world, 'ours, no warm pass', { warmPass: false }), atRest: false },
  { make: baseBackup, atRest: false },
  { make: dump, atRest: false },
  { make: restic, atRest: true },
  { make: (world) => rsnapshot(world, false), atRest: true },
  { make: (world) => rdiffBackup(world, false), atRest: true },
];

export async function benchNights(part: Part, gigabytes: number, files: number, nights: number): Promise<void> {
  await inWorld(part, (folder) => makePlace(folder, gigabytes, files), async (world) => {
    const lines = [], methods: (Method & { atRest: boolean })[] = [];
    for (const { make, atRest } of METHODS) {
      const line = await layLine(world.storage.port);
      lines.push(line);
      methods.push({ ...await make({ ...world, port: line.port }), atRest });
    }
    try {
      for (let night = 0; night <= nights; night++) { // night 0 is the first backup
        if (night > 0) world.place.dayPasses(night);
        for (const [at, method] of methods.entries()) {
          if (world.place.cluster.isRunning() === method.atRest) world.place.cluster[method.atRest ? 'stop' : 'start']();
          const stored = storedBytes(method), carried = await lines[at]!.carriedBytes(), took = await measureAll(method.night(night), method.server ? [0, 1] : [0]);
          const carriedAfter = await lines[at]!.carriedBytes();
          for (const file of method.files ?? []) fs.rmSync(file, { recursive: true, force: true });
          const row = { gigabytes, files, night, method: method.name, addedBytes: storedBytes(method) - stored, upBytes: carriedAfter.up - carried.up, downBytes: carriedAfter.down - carried.down, ...took };
          addRow(part, row);
          console.error(`night ${night}: ${method.name.replace(' between stop and start', ', files at rest')}: ${(row.addedBytes / 1e6).toFixed(1)} MB stored, ${((row.upBytes + row.downBytes) / 1e6).toFixed(1)} MB carried`);
        }
        world.place.cluster.start();
      }
    } finally {
      lines.forEach((line) => line.destroy());
    }
  });
}

function storedBytes({ storedAt }: Method): number {
  return fs.existsSync(storedAt) ? Number(execFileSync('du', ['--summarize', '--block-size=1', storedAt], { encoding: 'utf8' }).split('\t')[0]) : 0;
}
