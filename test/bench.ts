// `npm run bench`: what is measured of this script and its peers, as ratios in one run; medians of three. Real programs from
// Debian's packages, a real sshd, real clusters, nothing else of this machine is touched: the bench runs in PID, mount and network
// namespaces of its own, and removes all it made, however it ends. Needs root, and room for eight times the largest size.
//   npm run bench [-- PART...] [--runs 3] [--sizes 1,5] [--files 10k,100k] [--nights 7] [--all]     --all: 1,5,20 and 10k,100k,500k
//   npm run bench report                                                               tables and chart from bench/*.json again
// Parts: downtime files line cost nights growth restore audit. Raw numbers: bench/PART.json. Tables: README.md. Chart: test/bench.svg.
import { spawn } from 'node:child_process';
import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { parseArgs } from 'node:util';
import { aloneCommand } from './alone.ts';
import { benchAudit } from './bench-audit.ts';
import { benchCost } from './bench-cost.ts';
import { benchDowntime, benchFiles } from './bench-downtime.ts';
import { benchGrowth } from './bench-growth.ts';
import { benchLine } from './bench-line.ts';
import { benchNights } from './bench-nights.ts';
import { writeReport } from './bench-report.ts';
import { benchRestore } from './bench-restore.ts';
import type { Part } from './bench-turns.ts';

const { values, positionals } = parseArgs({ allowPositionals: true, options: { runs: { type: 'string', default: '3' }, sizes: { type: 'string' }, files: { type: 'string' }, nights: { type: 'string', default: '7' }, all: { type: 'boolean', default: false } } });
const numbers = (text: string) => text.split(',').map((one) => Number(one.replace(/k$/, '')) * (one.endsWith('k') ? 1000 : 1));
/** What --sizes and --files say, else what a part takes by itself. */
const sizes = (usual: string) => numbers(values.sizes ?? usual), files = (usual: string) => numbers(values.files ?? usual);

const PARTS: Record<string, (part: Part) => Promise<void>> = {
  downtime: (part) => benchDowntime(part, sizes(values.all ? '1,5,20' : '1,5')),
  files: (part) => benchFiles(part, files(values.all ? '10k,100k,500k' : '10k,100k')),
  line: (part) => benchLine(part, files('1200')[0]),
  cost: (part) => benchCost(part, sizes('1,5'), files('10k')[0]!),
  nights: (part) => benchNights(part, sizes('1')[0]!, files('2k')[0]!, Number(values.nights)),
  growth: (part) => benchGrowth(part, sizes('0.5,1,2,4'), files('10k,50k,100k')),
  restore: (part) => benchRestore(part, sizes('5')[0]!),
  audit: (part) => benchAudit(part, files('1000k')[0]!),
};

/** Run this file once more, alone; end it when we are ended; remove its folder. */
function runAlone(): void {
  const folder = fs.mkdtempSync(path.join(os.tmpdir(), 'cold-backup-bench-'));
  fs.chmodSync(folder, 0o755); // PostgreSQL's user has to pass
  const [program, ...words] = aloneCommand([process.execPath, ...process.execArgv, ...process.argv.slice(1)], 'ip link set lo up', ['--net']);
  const child = spawn(program!, words, { stdio: 'inherit', env: { ...process.env, COLD_BACKUP_ALONE: '1', COLD_BACKUP_BENCH_FOLDER: folder } });
  for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP'] as const) process.on(signal, () => child.kill('SIGKILL')); // all in its namespace ends with it, and what it mounted is gone
  child.on('exit', (code) => {
    fs.rmSync(folder, { recursive: true, force: true, maxRetries: 10, retryDelay: 200 });
    process.exit(code ?? 1);
  });
}

async function runParts(folder: string, wanted: string[]): Promise<void> {
  for (const name of wanted) await PARTS[name]!({ name, folder, runs: Number(values.runs), rows: [] });
  writeReport();
}

const wanted = positionals.length > 0 ? positionals : Object.keys(PARTS), unknown = wanted.filter((name) => !PARTS[name]);
if (wanted.join() === 'report') writeReport();
else if (unknown.length > 0) throw new Error(`no such part: ${unknown.join(', ')}; there are: ${Object.keys(PARTS).join(', ')}, report`);
else if (process.getuid?.() !== 0) throw new Error('the bench has to be run as root: it mounts file systems and has namespaces of its own');
else if (!process.env.COLD_BACKUP_ALONE) runAlone();
else runParts(process.env.COLD_BACKUP_BENCH_FOLDER!, wanted).then(() => process.exit(0), (error) => { console.error(error); process.exit(1); });
