// What is killed, or loses its power, while copies on write are made and read, on xfs and on btrfs: no copy, no list of copies and no mount is left behind.
import { endings } from './kill.ts';
import { scenarios } from './scenario.ts';

scenarios('when it is killed while it snapshots', import.meta.url, endings({ name: 'a run with a snapshot', settings: { warmPass: false } }, 4), 4, ['xfs', 'btrfs']);
