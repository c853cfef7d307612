// What this server stops and what it saves. A file `backup.settings.js` beside this script, with the same
// `const settings = { ... };`, replaces the block whole: then an upgrade is to overwrite `backup.js`.
// Fill in `stop` or `folders`, and `repository`; then:  node backup.js setup  and  node backup.js --dry-run
export const settings: Settings = {
  server: '',                    // '' = this machine's host name; starts every archive's name
  // What to stop, in this order. It is started again in the opposite order. What is not running stays as it is.
  stop: [
    // 'service nginx',          // a systemd unit; a list inside this list is stopped (and started) together
    // 'compose shop',           // every container of a compose project
    // 'container redis',        // one container; 'container *' = every running one
    // { name: 'bucardo', running: ['pgrep', '--full', '^Bucardo '], stop: ['bucardo', 'stop'], start: ['bucardo', 'start'] },
    // 'postgres 15/main',       // a Debian cluster; or its data directory; 'postgres *' = every running cluster
  ],
  // What to save. Clusters named above are saved whole: data, tablespaces, WAL, configuration, wherever they lie.
  folders: [],                   // ['/var/www/uploads']
  volumes: [],                   // ['shop_files']: container volumes; '*' = every volume and bind mount of the containers above
  before: [],                    // command to run first, e.g. to bring up a VPN; root's ssh configuration is honoured too
  exclude: [],                   // borg patterns
  repository: '',                // 'ssh://borg@storage.example.org/./web1'
  sshKey: '/etc/cold-backup/ssh_key',
  knownHostsFile: '/etc/cold-backup/known_hosts',   // the storage's host key; setup shows it and stores it here
  keyFile: '/etc/cold-backup/borg_key',
  passphraseFile: '/etc/cold-backup/passphrase',
  window: null,                  // { from: '01:00', until: '05:30', timeZone: 'Africa/Maputo' }; null = any time
  maxDowntimeMinutes: 120,       // everything runs again by then, and by window.until, backup or not
  stopTimeoutSeconds: 300,       // for one part to stop; past it the run is called off
  warmPass: true,                // copy once while everything runs, so that the stop is short
  snapshot: 'no',                // 'yes' = copy-on-write copy on btrfs or xfs while stopped: costs free space while borg reads
  compression: 'zstd,3',
  chunker: 'fixed,65536',        // for database pages; 'fixed,262144' above 200 GB. Chosen once, before the first backup
  uploadLimitKiB: 0,
  tell: { ping: '', command: [], metrics: '', sendLog: false },   // sendLog: the ping carries the log's end; what --quiet prints, cron mails
  maxAgeHours: 26,               // status: older than this is a failure
  drill: { queries: [ /* { cluster, database, sql, expect } */ ], folder: '', maxAgeDays: 8 },   // maxAgeDays 0 = no drills here
  language: 'en',                // of RESTORE.md, recovery sheet and report: 'en' or 'es'
  stateFolder: '/var/lib/cold-backup',
};

/** Something to stop that is neither a unit, a container nor a cluster: three commands; `running` exits 0 while it runs. */
export interface CustomPart {
  name: string;
  running: string[];
  stop: string[];
  start: string[];
}

/** One entry of `stop`: 'service nginx', 'postgres 15/main', or commands of its own. */
export type PartSpec = string | CustomPart;

/** A question that a drill asks a restored database, and the answer it must give. */
export interface DrillQuery {
  cluster: string;
  database: string;
  sql: string;
  expect: string | number | boolean;
}

/** The hours in which services may be stopped, as a clock in `timeZone` shows them. */
export interface Window {
  from: string;
  until: string;
  timeZone: string;
}

export interface Settings {
  server: string;
  stop: (PartSpec | PartSpec[])[];
  folders: string[];
  volumes: string[];
  before: string[];
  exclude: string[];
  repository: string;
  sshKey: string;
  knownHostsFile: string;
  keyFile: string;
  passphraseFile: string;
  window: Window | null;
  maxDowntimeMinutes: number;
  stopTimeoutSeconds: number;
  warmPass: boolean;
  snapshot: 'no' | 'yes';
  compression: string;
  chunker: string;
  uploadLimitKiB: number;
  tell: { ping: string; command: string[]; metrics: string; sendLog: boolean };
  maxAgeHours: number;
  drill: { queries: DrillQuery[]; folder: string; maxAgeDays: number };
  language: 'en' | 'es';
  stateFolder: string;
}
