// What is killed while copies on write are made and read, on xfs and on btrfs: no copy, no list of copies and no mount is left behind.
import { killLoops } from './kill.ts';
import type { Moment } from './kill.ts';
import { scenarios } from './scenario.ts';

const MOMENTS: Moment[] = [
  [/web\.sh stop/, 100], [/stopped app/, 200], [/stopped postgres/, 300], [/reflink=always|subvolume snapshot/, 150], [/reflink=auto/, 200], [/pg_ctl start/, 150], [/started postgres/, 100],
  [/started web/, 300], [/"kind":"cold"/, 400], [/"kind":"cold"/, 1500], [/"kind":"proof"/, 800],
];

scenarios('when it is killed while it snapshots', import.meta.url, killLoops(MOMENTS, 3), 4, ['xfs', 'btrfs']);
