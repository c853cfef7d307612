// What is killed, or loses its power, while copies on write are made and read, on xfs and on btrfs: no copy, no list of copies and no mount is left behind.
import { isWhole } from './ending.ts';
import { endings } from './kill.ts';
import { scenarios } from './scenario.ts';

scenarios('when it is killed while it snapshots', import.meta.url, endings({ name: 'a run with a snapshot', settings: { warmPass: false } }, 4), isWhole ? 2 : 4, ['xfs', 'btrfs'], undefined, isWhole ? 240 : 10);
