// Parts `downtime` and `files`: how long services are down, by method and size, and by method and number of small files. On the
// machine's own file system all methods; on btrfs and on xfs (reflink) our snapshots, beside the shortest that is possible there.
// Where the disk has no room for all repositories at once, the methods take their nights one after the other instead of in turns.
import fs from 'node:fs';
import path from 'node:path';
import { borgmatic, onlyStopAndStart, ours, rdiffBackup, rsnapshot, tarLocally } from './bench-peers.ts';
import type { Method, World } from './bench-peers.ts';
import { makePlace } from './bench-place.ts';
import { inWorld, takeTurns } from './bench-turns.ts';
import type { Part } from './bench-turns.ts';
import type { Row } from './bench-measure.ts';

type Maker = (world: World) => Method | Promise<Method>;
const PLAIN: Maker[] = [
  onlyStopAndStart,
  (world) => ours(world, 'ours, warm pass', { warmPass: true }),
  (world) => ours(world, 'ours, no warm pass', { warmPass: false }),
  borgmatic, tarLocally, rsnapshot, rdiffBackup,
];
const SNAPSHOT: Maker[] = [onlyStopAndStart, (world) => ours(world, 'ours, snapshot', { snapshot: 'yes' })];
const SMALL_CLUSTER_GB = 0.03;

export async function benchDowntime(part: Part, sizesGB: number[]): Promise<void> {
  for (const gigabytes of sizesGB) await benchSize(part, gigabytes, 0);
}

export async function benchFiles(part: Part, fileCounts: number[]): Promise<void> {
  for (const files of fileCounts) await benchSize(part, SMALL_CLUSTER_GB, files);
}

async function benchSize(part: Part, gigabytes: number, files: number): Promise<void> {
  const { bavail, bsize } = fs.statfsSync(part.folder), bytes = gigabytes * 1e9 + files * 12_000;
  const inTurns = bavail * bsize > bytes * (7 + 0.4 * part.runs) + 5e9; // the data, two copies of them as they are, six packed ones, and what changes
  for (const fileSystem of ['plain', 'btrfs', 'xfs'] as const) {
    await inWorld(part, (folder) => makePlace(folder, gigabytes, files, fileSystem), async (world) => {
      const facts = { gigabytes, files, fileSystem, inTurns: inTurns || fileSystem !== 'plain' }, all = fileSystem === 'plain' ? PLAIN : SNAPSHOT;
      if (facts.inTurns) await takeTurns(part, world, await makeMethods(world, all), facts);
      else for (const one of all) await alone(part, world, one, facts);
    });
  }
}

async function makeMethods(world: World, all: Maker[]): Promise<Method[]> {
  const methods: Method[] = [];
  for (const make of all) methods.push(await make(world)); // one after the other: they write the same list of keys
  return methods;
}

/** All nights of one method, which then leaves its room to the next. */
async function alone(part: Part, world: World, make: Maker, facts: Row): Promise<void> {
  const folder = fs.mkdtempSync(path.join(world.folder, 'alone-'));
  fs.chmodSync(folder, 0o755);
  const methods = await makeMethods({ ...world, folder }, [make]);
  await takeTurns(part, world, methods, facts);
  for (const one of [folder, ...methods.map(({ storedAt }) => storedAt)]) if (one !== '') fs.rmSync(one, { recursive: true, force: true });
}
