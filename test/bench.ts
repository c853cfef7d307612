// `npm run bench [RUNS [GB]]`: what the script costs beside what it calls, as ratios measured in one run. Medians; the raw numbers go
// to bench/. Nights on 1 GB of PostgreSQL 15, a restore of GB (5) of it; the storage is on this machine: no line limits either side.
// `npm run bench restore [RUNS [GB]]`: only restore and drill. `npm run bench audit [RUNS]`: an audit of a repository of a million pieces.
import { execFileSync, spawn, spawnSync } from 'node:child_process';
import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { aloneCommand } from './alone.ts';
import { makeDaemon, makeServer, repositoryRoot } from './script.ts';
import type { Server } from './script.ts';
import { startStorage } from './storage.ts';
import { makeHardCluster, watchMemory } from './night.ts';
import type { TestCluster } from './cluster.ts';

const [only, numbers] = ['restore', 'audit'].includes(process.argv[2]!) ? [process.argv[2], process.argv.slice(3)] : ['', process.argv.slice(2)];
const RUNS = Number(numbers[0] ?? 3), GIGABYTES = Number(numbers[1] ?? 5);
const raw: Record<string, number[]> = {};
const median = (name: string): number => {
  const sorted = [...raw[name]!].sort((one, other) => one - other), middle = (sorted.length - 1) / 2;
  return (sorted[Math.floor(middle)]! + sorted[Math.ceil(middle)]!) / 2;
};

/** Run a program to its end; keep how long it took, and the largest memory it had. Throws when it fails. */
async function measure(name: string, argv: string[], options: { env?: NodeJS.ProcessEnv; cwd?: string; memory?: boolean } = {}): Promise<void> {
  const began = process.hrtime.bigint();
  const child = spawn(argv[0]!, argv.slice(1), { stdio: ['ignore', 'ignore', 'pipe'], env: options.env, cwd: options.cwd });
  const peak = options.memory ? watchMemory(child.pid!) : null;
  let said = '';
  child.stderr.on('data', (piece) => { said = (said + piece).slice(-4000); });
  const code = await new Promise((resolve) => { child.on('close', resolve); });
  if (code !== 0) throw new Error(`${name}: exit code ${code}: ${said}`);
  (raw[name] ??= []).push(Number(process.hrtime.bigint() - began) / 1e9);
  if (peak) (raw[`${name}, memory`] ??= []).push(peak());
}

/** What changes on a day: 1 % of the rows. */
function aDayPasses(cluster: TestCluster, day: number): void {
  cluster.sql('postgres', `update filler set word = md5('${day}' || id) where id % 100 = ${day % 100}; checkpoint`);
}

async function bareBorg(cluster: TestCluster, server: Server, name: string): Promise<void> {
  const env = server.borgEnv(), began = process.hrtime.bigint();
  const create = ['create', '--json', '--compression', 'zstd,1', '--chunker-params', 'fixed,65536', `::${name}`, cluster.dataDirectory, cluster.tablespaceFolder, cluster.walFolder];
  await measure('borg info', ['borg', 'info'], { env });
  cluster.stop();
  await measure('borg create', ['borg', ...create], { env });
  cluster.start();
  await measure('borg extract of one file', ['borg', 'extract', '--stdout', `::${name}`, `${cluster.dataDirectory.slice(1)}/PG_VERSION`], { env });
  (raw['stop, borg create, start'] ??= []).push(Number(process.hrtime.bigint() - began) / 1e9);
}

async function bench(folder: string): Promise<void> {
  fs.mkdirSync(folder);
  const cluster = await makeHardCluster(path.join(folder, 'cluster')), storage = await startStorage(path.join(folder, 'storage'));
  try {
    cluster.fillTo(1e9);
    const web = makeDaemon(folder, 'web');
    web.startNow();
    const server = await makeServer(path.join(folder, 'server'), 'web1', storage, { stop: [web.entry, `postgres ${cluster.dataDirectory}`] });
    const bare = await makeServer(path.join(folder, 'bare'), 'bare', storage, { folders: [storage.folder] }); // a repository of its own, of which only borg is used
    for (let run = 0; run < 5 * RUNS; run++) { // by turns, so that all have the same neighbours
      await measure('node -e 0', [process.execPath, '-e', '0']);
      for (const word of ['--version', '--help']) await measure(word, [process.execPath, server.script, word], { memory: true });
      await measure('--dry-run', [process.execPath, server.script, '--dry-run'], { memory: true });
    }
    await bareBorg(cluster, bare, 'first');
    await measure('first night', [process.execPath, server.script], { memory: true });
    const firstBare = raw['stop, borg create, start']!.splice(0)[0]!;
    for (const name of ['borg info', 'borg create', 'borg extract of one file']) raw[name] = [];
    for (let day = 1; day <= RUNS; day++) {
      for (const [warmPass, name] of [[true, 'a night'], [false, 'a night without warm pass']] as const) {
        aDayPasses(cluster, warmPass ? day : day + 50);
        server.writeSettings({ warmPass });
        const turns = [() => bareBorg(cluster, bare, `day${day}${name}`.replaceAll(' ', '-')), () => measure(name, [process.execPath, server.script], { memory: true })];
        for (const turn of day % 2 === 0 ? turns : turns.reverse()) await turn(); // who goes first finds the files less often in memory
        (raw[`${name}, down`] ??= []).push(server.history().pop().downSeconds);
      }
    }
    report(firstBare);
  } finally {
    cluster.destroy();
    storage.destroy();
  }
}

/** What a drill takes beside reading the archive back and what it asks PostgreSQL to check: looking, locking in, starting, comparing listings, cleaning up. */
async function benchDrill(server: Server): Promise<void> {
  for (let run = 0; run < RUNS; run++) {
    await measure('drill', [process.execPath, server.script, 'drill', '--quiet'], { memory: true });
    const { certificate } = server.history().pop(), checked = certificate.checks.filter(({ check }: { check: string }) => !['files as listed when cold', 'control file', 'starts'].includes(check));
    (raw['drill, its own part'] ??= []).push(raw.drill!.at(-1)! - checked.reduce((sum: number, one: { seconds: number }) => sum + one.seconds, 0));
  }
  console.log(`drill of the same archive: ${median('drill').toFixed(1)} s, of which ${median('drill, its own part').toFixed(1)} s are its own part; memory of the script ${median('drill, memory').toFixed(0)} MB`);
}

/** `restore --to` of a whole server against bare `borg extract` of the same archive into an empty folder, by turns. */
async function benchRestore(folder: string): Promise<void> {
  fs.mkdirSync(folder);
  const cluster = await makeHardCluster(path.join(folder, 'cluster')), storage = await startStorage(path.join(folder, 'storage'));
  try {
    cluster.fillTo(GIGABYTES * 1e9);
    const server = await makeServer(path.join(folder, 'server'), 'web1', storage, { stop: [`postgres ${cluster.dataDirectory}`], warmPass: false });
    await measure('a night, for the restore', [process.execPath, server.script]);
    const { archive, cold } = server.history().pop(), to = path.join(folder, 'back');
    const turns = [
      () => measure('bare borg extract', ['borg', 'extract', `::${archive}`], { env: server.borgEnv(), cwd: to }),
      () => measure('restore --to', [process.execPath, server.script, 'restore', 'latest', '--to', to, '--mend-links'], { memory: true }),
    ];
    for (let run = 0; run < 2 * RUNS; run++) {
      for (const turn of run % 2 === 0 ? turns : [...turns].reverse()) {
        fs.rmSync(to, { recursive: true, force: true });
        fs.mkdirSync(to);
        execFileSync('sync');
        await turn();
      }
    }
    const [bare, own] = ['bare borg extract', 'restore --to'].map((name) => median(name)) as [number, number];
    const pairs = raw['restore --to']!.map((seconds, run) => seconds / raw['bare borg extract']![run]!).map((ratio) => ratio.toFixed(3));
    console.log(`\nrestore --to, ${(cold.originalBytes / 1e9).toFixed(1)} GB in ${cold.files} files, ${2 * RUNS} runs each, medians: ${own.toFixed(1)} s, bare borg extract ${bare.toFixed(1)} s, ratio ${(own / bare).toFixed(3)} (pairs: ${pairs.join(', ')}); memory of the script ${median('restore --to, memory').toFixed(0)} MB`);
    fs.rmSync(to, { recursive: true, force: true });
    await benchDrill(server);
  } finally {
    cluster.destroy();
    storage.destroy();
  }
}

function report(firstBare: number): void {
  const seconds = (name: string) => `${median(name).toFixed(median(name) < 1 ? 3 : 1)} s`;
  const memory = (name: string) => (raw[`${name}, memory`] ? `${median(`${name}, memory`).toFixed(0)} MB` : '');
  const ratio = (name: string, other: string) => `${(median(name) / median(other)).toFixed(2)} x \`${other}\``;
  const night = 'stop, borg create, start';
  raw[`first ${night}`] = [firstBare];
  const rows = [
    ...['--version', '--help', '--dry-run'].map((name) => [name, seconds(name), ratio(name, 'node -e 0'), memory(name)]),
    ['first night', seconds('first night'), ratio('first night', `first ${night}`), memory('first night')],
    ...['a night', 'a night without warm pass'].map((name) => [name, seconds(name), ratio(name, night), memory(name)]),
    ...['a night, down', 'a night without warm pass, down'].map((name) => [name, seconds(name), ratio(name, 'borg create'), '']),
    ...['node -e 0', 'borg info', 'borg create', 'borg extract of one file', night].map((name) => [name, seconds(name), '', '']),
  ];
  console.log(`\n1 GB of PostgreSQL 15, 1 % of the rows changed a day, ${RUNS} runs, medians; Node ${process.version}, ${execFileSync('borg', ['--version'], { encoding: 'utf8' }).trim()}, ${os.cpus().length} cores.`);
  console.log(`"${night}" is borg info + stop + create + start + extract of one file, by hand.\n`);
  console.log(['| what | takes | ratio | memory of the script |', '|---|---|---|---|', ...rows.map((row) => `| ${row.join(' | ')} |`)].join('\n'));
}

// A million pieces of 1.5 kB in 40 transactions, written by borg's own server code; read from scratch, and again when nothing is new.
async function benchAudit(folder: string): Promise<void> {
  fs.mkdirSync(folder, { recursive: true });
  const repository = path.join(folder, 'web1'), env = { ...process.env, BORG_BASE_DIR: path.join(folder, 'borg') };
  execFileSync('borg', ['init', '--encryption', 'none', repository], { env, stdio: 'ignore' });
  execFileSync('/usr/bin/python3', ['-'], { env, stdio: ['pipe', 'ignore', 'inherit'], input: ['import os, hashlib, borg.logger', 'borg.logger.setup_logging()', 'from borg.repository import Repository',
    `with Repository(${JSON.stringify(repository)}, exclusive=True, append_only=True) as repository:`, '    for transaction in range(40):',
    '        for number in range(25000): repository.put(hashlib.sha256(b"%d %d" % (transaction, number)).digest(), os.urandom(1500))',
    '        repository.put(bytes(32), os.urandom(500 + 50 * transaction))', '        repository.commit()'].join('\n') });
  fs.copyFileSync(path.join(repositoryRoot, 'dist/backup.js'), path.join(folder, 'backup.js'));
  fs.writeFileSync(path.join(folder, 'backup.settings.js'), `const settings = { servers: [{ server: 'web1', repository: ${JSON.stringify(repository)} }] };\n`, { mode: 0o600 });
  fs.chmodSync(folder, 0o700);
  const argv = [process.execPath, path.join(folder, 'backup.js'), 'audit', '--quiet'];
  for (let run = 0; run < RUNS; run++) {
    fs.rmSync(path.join(folder, 'ledger'), { recursive: true, force: true });
    await measure('first audit', argv, { memory: true });
    await measure('audit of nothing new', argv, { memory: true });
    await measure('audit --full', [...argv, '--full'], { memory: true });
    await measure('borg check --repository-only', ['borg', 'check', '--repository-only', repository], { env });
  }
  const row = (name: string) => `| ${name} | ${median(name).toFixed(1)} s | ${(median(name) / median('borg check --repository-only')).toFixed(2)} | ${raw[`${name}, memory`] ? `${Math.round(median(`${name}, memory`))} MB` : ''} |`;
  console.log(`\nA repository of a million pieces, ${RUNS} runs, medians.\n\n| what | takes | against borg check | memory of the script |\n|---|---|---|---|\n${['first audit', 'audit of nothing new', 'audit --full', 'borg check --repository-only'].map(row).join('\n')}`);
}

function keepRaw(): void {
  fs.mkdirSync(path.join(repositoryRoot, 'bench'), { recursive: true });
  fs.writeFileSync(path.join(repositoryRoot, 'bench', `${new Date().toISOString().slice(0, 19)}.json`), `${JSON.stringify(raw, null, 1)}\n`);
}

if (process.getuid?.() === 0 && !process.env.COLD_BACKUP_ALONE) { // other databases of this machine would be warned of
  const [program, ...words] = aloneCommand([process.execPath, ...process.execArgv, ...process.argv.slice(1)]);
  process.exit(spawnSync(program!, words, { stdio: 'inherit', env: { ...process.env, COLD_BACKUP_ALONE: '1' } }).status ?? 1);
}
const folder = fs.mkdtempSync(path.join(os.tmpdir(), 'cold-backup-bench-'));
fs.chmodSync(folder, 0o755); // PostgreSQL's user has to pass
const parts = [...(only ? [] : [() => bench(path.join(folder, 'nights'))]), ...(only === 'audit' ? [] : [() => benchRestore(path.join(folder, 'restore'))]), ...(only === 'restore' ? [] : [() => benchAudit(path.join(folder, 'audit'))])];
parts.reduce((before, part) => before.then(part), Promise.resolve()).then(keepRaw).finally(() => fs.rmSync(folder, { recursive: true, force: true })).then(() => process.exit(0));
