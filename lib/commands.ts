// The commands of a night: the borg calls of its three passes, and the dry run, which shows them all.
// Changes nothing: the story of the night runs them.
import { answer, count, mode, named, pasteable, say, size, span, warnings } from './say.ts';
import type { Settings } from './settings.ts';
import { createCommand } from './passes.ts';
import { makePlan } from './plan.ts';
import type { Plan } from './plan.ts';
import { howRead } from './ways.ts';
import { copyCommands, inCopies } from './snapshot.ts';
import { readLedger } from './ledger.ts';
import { lastGoodRun, readHistory, trendOf } from './history.ts';

const rootPaths = (plan: Plan) => plan.roots.map((root) => root.path);
const EARLY_RECORDS = ['record/backup.js', 'record/backup.settings.js'];
const LATE_RECORDS = ['record/RESTORE.md', 'record/listing']; // written when all is stopped. The newest file of all is one that borg reads anew the next time
const pathsWithoutCopy = (plan: Plan) => plan.roots.filter((root) => root.way === 'cold').map((root) => root.path);
const filesCache = (plan: Plan) => (plan.roots.some((root) => root.way === 'reflink') ? 'mtime,size' : ''); // every night's copy has new inodes, and a new ctime
const wholePaths = (plan: Plan) => [...new Set([...plan.clusters.flatMap((cluster) => cluster.roots), ...plan.roots.filter(({ why }) => why.startsWith('cluster ')).map((root) => root.path)])];

/** What a warm pass has to read: what is copied on write need not be there before, but the first night, whose upload may take days. */
export function warmPaths(plan: Plan, isFirst: boolean): string[] {
  return plan.snapshot === '' || isFirst ? rootPaths(plan) : pathsWithoutCopy(plan);
}

export function warmCommand(settings: Settings, plan: Plan, paths: string[], at = plan.madeAt): string[] {
  return createCommand(settings, { archive: `${plan.server}-${at.slice(0, 19)}-warm.checkpoint`, roots: [...paths, 'record'], whole: wholePaths(plan), comment: { format: 1, kind: 'warm' }, filesCache: filesCache(plan) });
}

export function coldCommand(settings: Settings, plan: Plan): string[] {
  const clusters = plan.clusters.map(({ name, version }) => ({ name, version }));
  const comment = { format: 1, kind: 'cold', server: plan.server, clusters: clusters.slice(0, 20) };
  const early = plan.snapshot ? pathsWithoutCopy(plan) : [], late = rootPaths(plan).filter((root) => !early.includes(root)); // borg has read the early ones when it comes to `-`, and waits
  return inCopies(plan.roots, createCommand(settings, { archive: plan.archive, roots: [...EARLY_RECORDS, ...early, '-', ...late, ...LATE_RECORDS], fed: 'record/manifest.json', whole: wholePaths(plan), comment, filesCache: filesCache(plan) }));
}

export function proofCommand(settings: Settings, plan: Plan, comment: object): string[] {
  return createCommand(settings, { archive: `proven-${plan.archive}`, roots: ['record/history.jsonl', '-'], fed: 'record/proof.json', whole: [], comment: { format: 1, kind: 'proof', ...comment } });
}

/** `--dry-run`: the plan the real run would have, and every command in order. Writes nothing anywhere. Returns 0, or 1 with warnings. */
export async function showPlan(settings: Settings): Promise<number> {
  const plan = await makePlan(settings, new Date());
  const commands = commandsOf(settings, plan), trend = trendOf(readHistory(settings.stateFolder));
  const expected = trend && { downSeconds: trend.downSeconds, newBytes: trend.newBytes, nights: trend.nights };
  if (mode.json) answer(JSON.stringify({ ...plan, commands, expected, warnings }, null, 1));
  else {
    const stopped = plan.parts.map((part) => `  ${part.name}${part.wasRunning ? '' : '   (not running: stays as it is)'}`);
    answer([`archive ${plan.archive}`, `repository ${plan.repository}`, 'stop, in this order:', ...(stopped.length > 0 ? stopped : ['  nothing']), 'save:',
      ...plan.roots.map((root) => `  ${named(root.path)}   (${root.why}${settings.snapshot === 'yes' ? `; ${howRead(root)}` : ''})`), 'commands, in this order:', ...commands.map(({ step, argv, note }) => `  ${step.padEnd(10)} ${pasteable(argv)}${note ? `   # ${note}` : ''}`),
      expected ? `expected, from the last ${count(expected.nights, 'good night')}: down ${span(expected.downSeconds)}, ${size(expected.newBytes)} to send` : 'expected: no good night yet to reckon from; the first one sends everything',
      'dry run: nothing above was executed, nothing was written'].join('\n'));
  }
  const left = readLedger(settings.stateFolder);
  if (left) say(`the run of ${left.startedAt} left something stopped: a real run starts that first`);
  return warnings.length > 0 ? 1 : 0;
}

/** Every command of a run that changes something anywhere, in order. */
function commandsOf(settings: Settings, plan: Plan): { step: string; argv: string[]; note?: string }[] {
  const running = plan.parts.filter((part) => part.wasRunning);
  const cold = { step: 'cold', argv: coldCommand(settings, plan) }, warm = warmPaths(plan, lastGoodRun(settings.stateFolder) === undefined);
  const checkpoints = plan.clusters.filter((cluster) => cluster.pid !== 0).map((cluster) => ({ step: 'checkpoint', argv: ['psql', '-h', cluster.socketFolder, '-p', cluster.port, '-c', 'CHECKPOINT'] }));
  return [
    ...(settings.before.length > 0 ? [{ step: 'before', argv: settings.before }] : []),
    { step: 'try', argv: ['borg', 'info', '--json'] },
    ...(settings.warmPass && warm.length > 0 ? [...checkpoints, { step: 'warm', argv: warmCommand(settings, plan, warm) }] : []),
    ...(plan.snapshot ? [] : [{ ...cold, note: 'begins here, and waits until everything is stopped' }]),
    ...checkpoints,
    ...running.map((part) => ({ step: 'stop', argv: part.stop })),
    ...(plan.snapshot ? [...copyCommands(plan.roots).map((argv) => ({ step: 'snapshot', argv })), ...(pathsWithoutCopy(plan).length > 0 ? [{ ...cold, note: 'waits when it has read what has no snapshot' }] : [])] : []),
    ...[...running].reverse().map((part) => ({ step: 'start', argv: part.start })),
    ...(plan.snapshot && pathsWithoutCopy(plan).length === 0 ? [cold] : []),
    { step: 'proof', argv: proofCommand(settings, plan, { archive: plan.archive }), note: 'waits until the record has been read back' },
    { step: 'read back', argv: ['borg', 'extract', '--bypass-lock', '--stdout', `::${plan.archive}`, 'record/manifest.json'] },
  ];
}
