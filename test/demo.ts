// `npm run demo`: a PostgreSQL and a storage that live for a minute in a folder of their own, a real backup from one to the
// other, and the way back. What this machine itself runs is neither read nor stopped.
import assert from 'node:assert/strict';
import { execFileSync, spawn, spawnSync } from 'node:child_process';
import type { ChildProcess } from 'node:child_process';
import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { aloneCommand } from './alone.ts';
import { makeDaemon, makeServer } from './script.ts';
import type { Daemon } from './script.ts';
import { startStorage } from './storage.ts';
import type { Storage } from './storage.ts';
import { PG } from './cluster.ts';
import type { TestCluster } from './cluster.ts';
import { makeHardCluster } from './night.ts';

const began = Date.now();
const folder = fs.mkdtempSync(path.join(os.tmpdir(), 'cold-backup-demo-'));
let cluster: TestCluster | null = null, storage: Storage | null = null, web: Daemon | null = null, child: ChildProcess | null = null, step = 0;

const tell = (text: string) => console.log(process.stdout.isTTY ? `\n\x1b[1m${++step}. ${text}\x1b[0m` : `\n${++step}. ${text}`);
const note = (text: string) => console.log(`   ${text}`);

/** Run a command and show it, and all that it says, as it says it. */
function show(argv: string[], options: { cwd?: string; env?: NodeJS.ProcessEnv } = {}): Promise<number> {
  console.log(`   $ ${argv.map((word) => (word === process.execPath ? 'node' : path.dirname(word) === path.join(folder, 'server') ? path.basename(word) : word)).join(' ')}`);
  child = spawn(argv[0]!, argv.slice(1), { stdio: ['ignore', 'inherit', 'inherit'], detached: true, ...options });
  return new Promise((resolve) => { child!.on('exit', (code) => { child = null; resolve(code ?? 1); }); });
}

async function demonstrate(): Promise<void> {
  fs.chmodSync(folder, 0o755); // PostgreSQL's user has to pass
  tell(`A server to back up, in ${folder}`);
  cluster = await makeHardCluster(path.join(folder, 'cluster'));
  cluster.fillTo(200e6);
  note(`PostgreSQL ${PG} of its own (own port, own folder): 200 MB in two databases, a tablespace, its WAL in another folder, ICU collations.`);
  web = makeDaemon(folder, 'web');
  const uploads = path.join(folder, 'uploads');
  web.startNow();
  fs.mkdirSync(uploads);
  for (let n = 1; n <= 200; n++) fs.writeFileSync(path.join(uploads, `invoice ${n}.txt`), `invoice ${n}\n`.repeat(n));
  note('A small service "web", and 200 attachments in uploads/.');

  tell('A storage: a real sshd with a forced, append-only `borg serve`');
  storage = await startStorage(path.join(folder, 'storage'));
  note(`It listens on 127.0.0.1:${storage.port}. From there nobody can delete a backup, and it holds nothing but ciphertext.`);

  tell('Settings, and `setup`: makes ssh key, borg key, passphrase and repository, then checks what can be checked');
  const server = await makeServer(path.join(folder, 'server'), 'web1', storage, { stop: [web.entry, `postgres ${cluster.dataDirectory}`], folders: [uploads] }, { quota: '5G' });
  const node = (...words: string[]) => show([process.execPath, server.script, ...words]);
  assert.equal(await node('setup', '--yes'), 0);

  tell('What a run would do; nothing is stopped, nothing is written');
  assert.ok(await node('--dry-run') <= 1);

  tell('The first backup: copied once while all runs (warm), then stopped, proven cold, copied, started again');
  const first = await node();
  assert.ok(first <= 1);
  if (first === 1) note('The warning is about a database of this machine itself: it is told every night, so that none is forgotten.');

  tell('A day passes: some rows change, a file is added. The second backup reads what changed');
  cluster.sql('postgres', 'update filler set word = upper(word) where id % 1000 = 0');
  fs.writeFileSync(path.join(uploads, 'invoice 201.txt'), 'the newest\n');
  assert.ok(await node('--quiet') <= 1);
  const { downSeconds, cold } = server.history().pop();
  note(`Services were down for ${downSeconds.toFixed(1)} s; ${(cold.deduplicatedBytes / 1e6).toFixed(1)} MB were new in the cold pass.`);
  assert.ok(cluster.isRunning() && web.running());
  note('PostgreSQL and "web" run again.');
  assert.equal(await node('list'), 0);
  assert.ok(await node('status') <= 1);

  tell('Is it worth anything? A drill: the archive is extracted, PostgreSQL starts on the copy, locked in, and every row is counted');
  const before = cluster.fingerprint();
  const drill = await node('drill', '--full');
  if (drill === 2 && process.getuid?.() !== 0) note('Not proven: without root this machine may not let us lock a PostgreSQL in. As root it does.');
  else assert.ok(drill <= 1);
  assert.deepEqual(cluster.fingerprint(), before);
  note('The PostgreSQL that was backed up ran on all the while, and was neither asked nor touched.');

  tell('The way back of one folder, into a new one');
  const back = path.join(folder, 'back');
  assert.ok(await node('restore', 'latest', uploads, '--to', back) <= 1);
  execFileSync('diff', ['--recursive', uploads, back + uploads]);
  note('Every attachment came back. `restore latest --in-place` would put everything back where it was, beside what it replaces.');
}

function cleanUp(): void {
  web?.stopNow();
  cluster?.destroy();
  storage?.destroy();
  fs.rmSync(folder, { recursive: true, force: true, maxRetries: 3 });
}

async function main(): Promise<void> {
  for (const [signal, code] of [['SIGINT', 130], ['SIGTERM', 143], ['SIGHUP', 129]] as const) {
    process.on(signal, async () => {
      console.log(`\n${signal}: cleaning up`);
      const last = child, ended = last && new Promise((resolve) => { last.on('exit', resolve); });
      last?.kill('SIGTERM'); // a backup that is under way starts everything again, and ends
      await ended;
      cleanUp();
      process.exit(code);
    });
  }
  try {
    await demonstrate();
    tell('Gone again: the PostgreSQL, the storage and the folder of this demonstration');
  } finally {
    cleanUp();
  }
  note(`It took ${Math.round((Date.now() - began) / 1000)} s.`);
}

// Root can have a world of its own, in which other databases of this machine are not even seen.
if (process.getuid?.() === 0 && !process.env.COLD_BACKUP_ALONE) {
  fs.rmdirSync(folder);
  const [program, ...words] = aloneCommand([process.execPath, ...process.execArgv, ...process.argv.slice(1)]);
  for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP'] as const) process.on(signal, () => {});
  const { status } = spawnSync(program!, words, { stdio: 'inherit', env: { ...process.env, COLD_BACKUP_ALONE: '1' } });
  process.exit(status ?? 1);
}
main().then(() => process.exit(0));
