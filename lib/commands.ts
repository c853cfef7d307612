// The commands of a night: the borg calls of its three passes, and the dry run, which shows every command in order.
// Changes nothing: the story of the night runs them.
import { answer, mode, named, pasteable, say, warnings } from './say.ts';
import type { Settings } from './settings.ts';
import { createCommand } from './borg.ts';
import { makePlan } from './plan.ts';
import type { Plan } from './plan.ts';
import type { Proof } from './proof.ts';
import { readLedger } from './ledger.ts';

const rootPaths = (plan: Plan) => plan.roots.map((root) => root.path);
const wholePaths = (plan: Plan) => plan.clusters.flatMap((cluster) => cluster.roots);

export function warmCommand(settings: Settings, plan: Plan): string[] {
  return createCommand(settings, { archive: `${plan.archive}-warm.checkpoint`, roots: rootPaths(plan), whole: wholePaths(plan), comment: { format: 1, kind: 'warm' }, cold: false });
}

export function coldCommand(settings: Settings, plan: Plan, proof: Proof | null): string[] {
  const clusters = plan.clusters.map(({ name, version }) => ({ name, version }));
  const comment = { format: 1, kind: 'cold', server: plan.server, clusters: clusters.slice(0, 20), files: proof?.files, listing: proof?.listingSha256 };
  return createCommand(settings, { archive: plan.archive, roots: [...rootPaths(plan), 'record'], whole: wholePaths(plan), comment, cold: true });
}

export function proofCommand(settings: Settings, plan: Plan, comment: object): string[] {
  return createCommand(settings, { archive: `proven-${plan.archive}`, roots: ['record'], whole: [], comment: { format: 1, kind: 'proof', ...comment }, cold: true });
}

/** `--dry-run`: the plan the real run would have, and every command in order. Writes nothing anywhere. Returns 0, or 1 with warnings. */
export async function showPlan(settings: Settings): Promise<number> {
  const plan = await makePlan(settings, new Date());
  const commands = commandsOf(settings, plan);
  if (mode.json) answer(JSON.stringify({ ...plan, commands, warnings }, null, 1));
  else {
    const stopped = plan.parts.map((part) => `  ${part.name}${part.wasRunning ? '' : '   (not running: stays as it is)'}`);
    answer([`archive ${plan.archive}`, `repository ${plan.repository}`, 'stop, in this order:', ...(stopped.length > 0 ? stopped : ['  nothing']), 'save:',
      ...plan.roots.map((root) => `  ${named(root.path)}   (${root.why})`), 'commands, in this order:', ...commands.map(({ step, argv }) => `  ${step.padEnd(10)} ${pasteable(argv)}`),
      'dry run: nothing above was executed, nothing was written'].join('\n'));
  }
  const left = readLedger(settings.stateFolder);
  if (left) say(`the run of ${left.startedAt} left something stopped: a real run starts that first`);
  return warnings.length > 0 ? 1 : 0;
}

/** Every command of a run that changes something anywhere, in order. */
function commandsOf(settings: Settings, plan: Plan): { step: string; argv: string[] }[] {
  const running = plan.parts.filter((part) => part.wasRunning);
  const checkpoints = plan.clusters.filter((cluster) => cluster.pid !== 0).map((cluster) => ({ step: 'checkpoint', argv: ['psql', '-h', cluster.socketFolder, '-p', cluster.port, '-c', 'CHECKPOINT'] }));
  return [
    ...(settings.before.length > 0 ? [{ step: 'before', argv: settings.before }] : []),
    { step: 'try', argv: ['borg', 'info', '--json'] },
    ...(settings.warmPass ? [...checkpoints, { step: 'warm', argv: warmCommand(settings, plan) }] : []),
    ...checkpoints,
    ...running.map((part) => ({ step: 'stop', argv: part.stop })),
    { step: 'cold', argv: coldCommand(settings, plan, null) },
    ...[...running].reverse().map((part) => ({ step: 'start', argv: part.start })),
    { step: 'read back', argv: ['borg', 'extract', '--stdout', `::${plan.archive}`, 'record/manifest.json'] },
    { step: 'proof', argv: proofCommand(settings, plan, { archive: plan.archive }) },
  ];
}
