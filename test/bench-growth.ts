// Part `growth`: how our downtime and our whole night grow with gigabytes and with files, when nothing has changed since the night
// before: with the warm pass on the machine's own file system, with a snapshot on btrfs and on xfs (reflink). The report lays straight
// lines through the points and follows them, on paper, to 100 GB and a million files.
import { onlyStopAndStart, ours } from './bench-peers.ts';
import { makePlace } from './bench-place.ts';
import { inWorld, takeTurns } from './bench-turns.ts';
import type { Part } from './bench-turns.ts';

const SMALL_CLUSTER_GB = 0.03;

export async function benchGrowth(part: Part, sizesGB: number[], fileCounts: number[]): Promise<void> {
  const points = [...sizesGB.map((gigabytes) => ({ along: 'gigabytes', gigabytes, files: 0 })), ...fileCounts.map((files) => ({ along: 'files', gigabytes: SMALL_CLUSTER_GB, files }))];
  for (const point of points) {
    for (const fileSystem of ['plain', 'btrfs', 'xfs'] as const) {
      await inWorld(part, (folder) => makePlace(folder, point.gigabytes, point.files, fileSystem), async (world) => {
        const own = fileSystem === 'plain' ? await ours(world, 'ours, warm pass', { warmPass: true }) : await ours(world, 'ours, snapshot', { snapshot: 'yes' });
        await takeTurns(part, world, [onlyStopAndStart(world), own], { ...point, fileSystem }, false);
      });
    }
  }
}
