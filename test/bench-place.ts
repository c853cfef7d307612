// Where the data lie that all methods save: a real cluster of so many gigabytes and so many small files (attachments), on the
// machine's own file system, or on btrfs or xfs in a file of the bench's own (mounted in its own mount namespace, gone afterwards).
// A day in an office passes the same way every time: the newest 1 % of the rows are written again, one row in 20,000 anywhere, 0.1 %
// are new, and a smaller table is touched all over; 0.5 % of the files are new, 0.1 % written again. To pass the same day
// a second time changes the same rows and files again: so every method finds the same amount of change before its night.
import { execFileSync } from 'node:child_process';
import { createCipheriv } from 'node:crypto';
import fs from 'node:fs';
import path from 'node:path';
import { watchClock } from './bench-clock.ts';
import type { Clock } from './bench-clock.ts';
import { makeCluster } from './cluster.ts';
import type { TestCluster } from './cluster.ts';
import { freePort } from './storage.ts';

export type FileSystem = 'plain' | 'btrfs' | 'xfs';
export type Place = {
  fileSystem: FileSystem;
  gigabytes: number;
  files: number;
  root: string; // holds all of it: what a method copies that takes one folder
  dataDirectory: string;
  filesFolder: string; // '' when there are none
  cluster: TestCluster;
  stop: string[]; // commands: the same for every method that does not bring its own
  start: string[];
  dayPasses: (day: number) => void;
  watch: () => Promise<Clock>;
  destroy: () => void;
};

/** Make a place in a folder, its cluster running. Its databases take `gigabytes`, at least the 30 MB of an empty cluster. */
export async function makePlace(folder: string, gigabytes: number, files: number, fileSystem: FileSystem = 'plain'): Promise<Place> {
  const image = `${folder}.image`, root = path.join(folder, 'live'), filesFolder = files > 0 ? path.join(root, 'files') : '';
  fs.mkdirSync(folder, { recursive: true });
  if (fileSystem !== 'plain') mountImage(image, folder, fileSystem, gigabytes * 2.5e9 + files * 50_000 + 2e9);
  try {
    fs.mkdirSync(root);
    const own = [path.join(root, 'data'), ...filesFolder ? [filesFolder] : []];
    if (fileSystem === 'btrfs') own.forEach((one) => execFileSync('btrfs', ['subvolume', 'create', one], { stdio: 'ignore' }));
    const cluster = await makeCluster({ folder: root, version: 'debian', port: await freePort(), initdb: ['--data-checksums'],
      settings: { autovacuum: 'off', shared_buffers: '128MB', max_wal_size: '256MB' } }); // no vacuum at a moment of its own: every run is the same
    const rows = fillCluster(cluster, gigabytes);
    if (files > 0) writeFiles(filesFolder, 0, files, 0);
    execFileSync('sync');
    const control = (...words: string[]) => ['runuser', '-u', cluster.owner, '--', path.join(cluster.binaries, 'pg_ctl'), '-D', cluster.dataDirectory, '-w', '-s', ...words];
    return {
      fileSystem, gigabytes, files, root, filesFolder, cluster, dataDirectory: cluster.dataDirectory,
      stop: control('stop', '-m', 'fast'), start: control('start', '-l', path.join(root, 'server.log')),
      dayPasses: (day) => { changeCluster(cluster, rows, day); changeFiles(filesFolder, files, day); },
      watch: () => watchClock(path.join(cluster.socketFolder, `.s.PGSQL.${cluster.port}`), cluster.owner),
      destroy: () => { cluster.destroy(); removeFolder(folder, image, fileSystem); },
    };
  } catch (error) {
    removeFolder(folder, image, fileSystem);
    throw error;
  }
}

function mountImage(image: string, folder: string, fileSystem: FileSystem, bytes: number): void {
  fs.writeFileSync(image, '');
  fs.truncateSync(image, Math.ceil(bytes / 1e6) * 1e6); // takes no room until it is written to
  execFileSync(`mkfs.${fileSystem}`, ['-q', image], { stdio: 'ignore' });
  execFileSync('mount', ['-o', 'loop', image, folder]);
  fs.chmodSync(folder, 0o755); // PostgreSQL's user has to pass
}

function removeFolder(folder: string, image: string, fileSystem: FileSystem): void {
  if (fileSystem !== 'plain') {
    try { execFileSync('umount', [folder]); } catch { execFileSync('umount', ['--lazy', folder]); }
    fs.rmSync(image, { force: true });
  }
  fs.rmSync(folder, { recursive: true, force: true });
}

/** Table filler is the past of many years, table stock is what is touched every day. Returns the rows of filler. */
function fillCluster(cluster: TestCluster, gigabytes: number): number {
  cluster.fillTo(Math.max(gigabytes * 1e9 / 1.05, 9e6));
  const rows = Number(cluster.sql('postgres', 'select max(id) from filler'));
  cluster.sql('postgres', `create table stock (id int primary key, amount int, note text);
    insert into stock select g, 0, md5(g::text) || md5((-g)::text) from generate_series(1, ${Math.ceil(rows / 20)}) g;`);
  cluster.sql('postgres', 'vacuum (freeze, analyze)');
  cluster.sql('postgres', 'checkpoint');
  return rows;
}

function changeCluster(cluster: TestCluster, rows: number, day: number): void {
  const some = Math.max(1, Math.round(rows / 1000)), scattered = Math.max(1, Math.round(rows / 20_000));
  cluster.sql('postgres', `
    update filler set word = substr(md5('${day} ' || id || clock_timestamp()), 1, 8) where id > ${rows - 10 * some} and id <= ${rows};
    update filler set word = substr(md5('${day} ' || id || clock_timestamp()), 1, 8) where id in (select (g * 20011::bigint + ${day} * 7919) % ${rows} + 1 from generate_series(1, ${scattered}) g);
    insert into filler select ${1e12 + day * 1e8} + g, g % 97, substr(md5(g::text), 1, 8),
      (select string_agg(encode(sha512((${day} || ' ' || g || ' ' || i)::bytea), 'hex'), '') from generate_series(1, 7) i) from generate_series(1, ${some}) g
      on conflict (id) do update set word = substr(md5(excluded.word || clock_timestamp()), 1, 8);
    update stock set amount = amount + 1 where id % 5 = ${day % 5};`);
}

const noise = Buffer.alloc(16 << 20);
createCipheriv('aes-128-ctr', Buffer.alloc(16, 7), Buffer.alloc(16)).update(noise).copy(noise); // the same every time; does not compress, as photographs do not

/** Files `from` to `until` of 4 to 16 KB, in folders of a thousand; `day` is in their contents. */
function writeFiles(folder: string, from: number, until: number, day: number): void {
  for (let number = from; number < until; number++) {
    const inside = path.join(folder, String(Math.floor(number / 1000)).padStart(4, '0'));
    if (number === from || number % 1000 === 0) fs.mkdirSync(inside, { recursive: true });
    const at = (number * 4099 + day * 104_729) % (noise.length - 20_000), bytes = 4096 + number * 2657 % 12_289;
    fs.writeFileSync(path.join(inside, `${number}.jpg`), Buffer.concat([Buffer.from(`${number} ${day}\n`), noise.subarray(at, at + bytes)]));
  }
}

function changeFiles(folder: string, files: number, day: number): void {
  if (files === 0) return;
  const added = Math.ceil(files / 200);
  writeFiles(folder, files + day * added, files + (day + 1) * added, day);
  for (let number = day % 1000; number < files; number += 1000) writeFiles(folder, number, number + 1, day);
}
