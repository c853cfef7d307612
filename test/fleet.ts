// `npm run fleet`: all hosts of the fleet, running, to look around in; `npm run fleet enter web1` opens a shell in one of them (or runs
// the words that follow), `npm run fleet stop` ends all of it. It lives in memory and in namespaces of its own: nothing of this machine is stopped or changed.
import { execFileSync, spawn, spawnSync } from 'node:child_process';
import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { aloneCommand } from './alone.ts';
import { addBucardoPair, addDock, addLogicalPair, addToOperator, addWeb, makeFleet } from './fleet-hosts.ts';
import type { Fleet } from './fleet-hosts.ts';
import { waitFor } from './script.ts';

const NOTE = path.join(os.tmpdir(), 'cold-backup-fleet.json'), LOG = path.join(os.tmpdir(), 'cold-backup-fleet.log');
const note = (): { keeper: number; start: string; hosts: Record<string, number> } | null => {
  try {
    const found = JSON.parse(fs.readFileSync(NOTE, 'utf8'));
    return fs.statSync(NOTE).uid === process.getuid?.() && startOf(found.keeper) === found.start ? found : null;
  } catch {
    return null;
  }
};
const startOf = (pid: number): string => fs.readFileSync(`/proc/${pid}/stat`, 'utf8').replace(/^.*\) /s, '').split(' ')[19]!; // pids are used again

const ADD: Record<string, (fleet: Fleet) => Promise<unknown>> = { web1: addWeb, dock1: addDock, a1: addBucardoPair, l1: addLogicalPair }; // a1 comes with a2, l1 with l2

/** The process that holds the fleet: the first one that is not bash in namespaces of its own. */
async function keep(wanted: string[]): Promise<void> {
  const fleet = await makeFleet();
  process.on('SIGTERM', () => void fleet.destroy().then(() => process.exit(0)));
  for (const name of wanted) await ADD[name]!(fleet);
  const servers = Object.keys(fleet.hosts).filter((name) => !/^(storage|operator)$/.test(name));
  await addToOperator(fleet, servers);
  console.log(`ready ${JSON.stringify(Object.fromEntries(Object.entries(fleet.hosts).map(([name, { leader }]) => [name, leader])))}`);
  await fleet.nightIsOver(servers);
  console.log('each of them has taken its first backup, at the hour of its own cron');
  setInterval(() => {}, 1 << 30);
}

async function startFleet(wanted: string[]): Promise<void> {
  const unknown = wanted.find((name) => !ADD[name]);
  if (unknown) throw new Error(`there is no ${unknown} to start; there are ${Object.keys(ADD).join(', ')}`);
  if (note()) throw new Error('it runs already: npm run fleet stop');
  const [program, ...words] = aloneCommand([process.execPath, ...process.execArgv, process.argv[1]!, 'keep', ...wanted]);
  const log = fs.openSync(LOG, 'w', 0o600), child = spawn(program!, words, { detached: true, stdio: ['ignore', log, log], env: { ...process.env, COLD_BACKUP_ALONE: '1' } });
  let hasEnded = false;
  child.on('exit', () => { hasEnded = true; });
  console.log(`booting storage, operator, ${wanted.join(', ')}, and setting them up ...`);
  const text = () => fs.readFileSync(LOG, 'utf8');
  await waitFor(`the fleet: see ${LOG}`, () => hasEnded || /^ready /m.test(text()), 600);
  if (hasEnded) throw new Error(`the fleet did not come up:\n${text()}`);
  const keeper = Number(execFileSync('pgrep', ['--parent', execFileSync('pgrep', ['--parent', String(child.pid)], { encoding: 'utf8' }).trim(), '--full', 'fleet.ts keep'], { encoding: 'utf8' }).split('\n')[0]);
  fs.writeFileSync(NOTE, JSON.stringify({ keeper, start: startOf(keeper), hosts: JSON.parse(/^ready (.*)$/m.exec(text())![1]!) }), { mode: 0o600 });
  child.unref();
  console.log(`It runs. Each server takes its first backup within two minutes, by its own cron. A shell: npm run fleet enter HOST (${Object.keys(note()!.hosts).join(', ')}).
The operator: npm run fleet enter operator, then: cd /root/operator && node backup.js audit. The end: npm run fleet stop`);
}

async function main([word = 'start', name = '', ...command]: string[]): Promise<void> {
  const found = note();
  const wanted = [name, ...command].filter((one) => one !== '');
  if (word === 'keep') return keep(wanted);
  if (word === 'start') return startFleet(wanted.length > 0 ? wanted : Object.keys(ADD));
  if (!found) throw new Error('no fleet runs: npm run fleet');
  if (word === 'enter') {
    if (!found.hosts[name]) throw new Error(`there is no host ${name}; there are ${Object.keys(found.hosts).join(', ')}`);
    const inside = ['nsenter', '--target', String(found.keeper), '--pid', '--mount', '--', 'nsenter', '--target', String(found.hosts[name]), '--all', '--', 'env', '-i', 'HOME=/root', `TERM=${process.env.TERM ?? 'dumb'}`, 'PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin', ...(command.length > 0 ? command : ['bash', '-l'])];
    const terminal = command.length === 0 ? fs.openSync('/dev/tty', 'r+') : 'ignore'; // test/start has closed the standard input
    process.exit(spawnSync(inside[0]!, inside.slice(1), { stdio: [terminal, 'inherit', 'inherit'] }).status ?? 1);
  }
  if (word !== 'stop') throw new Error('npm run fleet [start [HOST ...] | enter HOST [COMMAND] | stop]');
  process.kill(found.keeper, 'SIGTERM');
  await waitFor('the end of the fleet', () => note() === null, 60);
  fs.rmSync(NOTE);
  console.log('It is gone.');
}

main(process.argv.slice(2)).catch((error) => {
  console.error(error.message);
  process.exit(1);
}).then(() => { if (process.argv[2] !== 'keep') process.exit(0); });
