// systemd units: find, describe, stop, start, and see what they really do.
// systemctl's exit codes prove nothing (it answers 0 after a SIGKILL), so the state is read again and again.
import { hasSystemd, look, lookFor, waitUntil } from './shell.ts';
import { Problem, warn } from './say.ts';

/** What a part does at this moment. 'moving': on its way up or down. */
export type State = 'running' | 'stopped' | 'moving';

/** Something that is stopped for the night: plain data, so that it can be printed, kept on disk, and started by anybody from there. */
export type Part = {
  name: string; // as in the settings: 'service nginx', 'container shop-db', 'postgres 15/main'
  kind: 'service' | 'container' | 'postgres' | 'command';
  group: number; // parts of one group are stopped and started together
  wasRunning: boolean;
  stop: string[];
  start: string[];
  running?: string[]; // own command: exit code 0 = it runs
  unit?: string;
  container?: string;
  database?: string; // the database program in the container, '' = none
  healthy?: boolean; // the container's health check was content before
  dataDirectory?: string; // of a PostgreSQL cluster, also of one in a container; as this host sees it
  stopSeconds?: number; // a container is killed by Docker after that
};

const SETTLE_SECONDS = 60; // for a unit that is on its way up or down when the plan is made
const FACTS = 'Id,LoadState,ActiveState,SubState,UnitFileState,Type,BusName,Result,MainPID,CanStart,TriggeredBy,TimeoutStopUSec,FragmentPath';

/** Given unit names, returns the facts systemd knows of each (systemctl(1) show, properties of org.freedesktop.systemd1(5)), in order. */
export async function describeUnits(units: string[]): Promise<Record<string, string>[]> {
  if (units.length === 0) return [];
  const text = await lookFor('systemd does not answer', ['systemctl', 'show', `--property=${FACTS}`, '--', ...units]);
  return text.trimEnd().split('\n\n').map((block) => Object.fromEntries(block.split('\n').map((line) => {
    const at = line.indexOf('=');
    return [line.slice(0, at), line.slice(at + 1)];
  })));
}

/** Given `nginx` of 'service nginx', returns the part. Throws Problem when there is no such unit. */
export async function unitPart(unit: string): Promise<Omit<Part, 'group'>> {
  if (!hasSystemd()) {
    throw new Problem(`service ${unit}: this machine is not run by systemd`, { hint: 'use { name, running, stop, start } with your own commands' });
  }
  let facts: Record<string, string> = {};
  await waitUntil(SETTLE_SECONDS, async () => { // one that is just being restarted runs
    [facts = {}] = await describeUnits([unit]);
    return stateOf(facts) !== 'moving';
  });
  if (facts.LoadState !== 'loaded') {
    throw new Problem(`service ${unit}: no such unit here (${facts.LoadState})`,
      { hint: `look at \`systemctl list-units --all '*${unit.slice(0, 5)}*'\`` });
  }
  if (stateOf(facts) === 'moving') warn(`service ${unit} has been on its way up or down for ${SETTLE_SECONDS} s (does it start over and over?): it is left as it is`);
  // A socket, timer or path that starts the unit goes down with it, or the first request of the night would bring it back.
  // It comes up before the unit: systemd starts no socket of a service that runs already.
  const triggers = (await describeUnits(facts.TriggeredBy!.split(' ').filter((one) => one !== ''))).filter((one) => stateOf(one) === 'running');
  const isRunning = stateOf(facts) === 'running', ran = [...triggers, ...(isRunning ? [facts] : [])];
  ran.forEach(refuseWithoutStart);
  return {
    name: `service ${unit}`,
    kind: 'service',
    wasRunning: ran.length > 0,
    stop: ['systemctl', 'stop', '--', ...triggers.map((one) => one.Id!), facts.Id!], // the unit, too, when only its socket is open: a request may come until then
    start: ['systemctl', 'start', '--', ...(ran.length > 0 ? ran : [facts]).map((one) => one.Id!)],
    unit: isRunning || ran.length === 0 ? facts.Id! : ran[0]!.Id!,
  };
}

/** Given the part of a unit that has ended since unitPart() saw it, returns which of its sockets, timers and paths are still active. */
export async function triggersLeft({ start, unit }: Part): Promise<string[]> {
  const facts = await describeUnits(start.slice(start.indexOf('--') + 1).filter((one) => one !== unit));
  return facts.filter((one) => stateOf(one) === 'running').map((one) => one.Id!);
}

/** Given the facts of a unit that runs, throws Problem when systemd would not start it again: then it is not stopped. */
export function refuseWithoutStart({ Id, LoadState, CanStart }: Record<string, string>): void {
  if (CanStart !== 'no' && LoadState === 'loaded') return;
  throw new Problem(`${Id} runs, but systemd would not start it again (${LoadState === 'loaded' ? 'RefuseManualStart' : LoadState})`,
    { hint: `nothing was stopped; look at \`systemctl cat ${Id}\` and mend that, or take it out of \`stop\`` });
}

function stateOf(facts: Record<string, string>): State {
  if (/^(active|reloading|refreshing)$/.test(facts.ActiveState!)) return 'running';
  return facts.ActiveState === 'inactive' || facts.ActiveState === 'failed' ? 'stopped' : 'moving';
}

/** The state of a unit now. */
export async function unitState(unit: string): Promise<State> {
  const { out } = await look(['systemctl', 'show', '--property=ActiveState', '--', unit]);
  return stateOf({ ActiveState: out.trim().replace('ActiveState=', '') });
}

/** Given units that were stopped, returns those that run all the same, and those that systemd had to kill for it. */
export async function judgeStopped(units: string[]): Promise<{ running: string[]; killed: string[] }> {
  const facts = await describeUnits(units), ids = (of: (one: Record<string, string>) => boolean) => facts.filter(of).map((one) => one.Id!);
  return { running: ids((one) => stateOf(one) === 'running'), killed: ids((one) => stateOf(one) === 'stopped' && /^(timeout|signal|core-dump|watchdog|oom-kill)$/.test(one.Result!)) };
}

/**
 * Everything active on this host: services, sockets, timers and paths. Not sessions, what exists only as long as one command, or a unit that a socket
 * makes for each connection (x@... of x.socket, systemd.socket(5) Accept=): nobody can start that again.
 */
export async function activeUnits(): Promise<string[]> {
  if (!hasSystemd()) return [];
  const { out } = await look(['systemctl', 'list-units', '--state=active', '--type=service,socket,timer,path', '--plain', '--no-legend', '--full']);
  const units = out.split('\n').map((line) => line.split(' ')[0]!).filter((unit) => unit !== '');
  return units.filter((unit) => !/^(user@|user-runtime-dir@|run-|session-|cold-backup-guard)/.test(unit) && !(unit.includes('@') && units.includes(`${unit.split('@')[0]}.socket`)));
}

/**
 * Given the units that were active before and are not now, returns those that did not simply end their work: helpers that
 * D-Bus or a timer starts on demand come and go by themselves. After a reboot, what is enabled comes by itself as well.
 */
export async function lostUnits(before: string[], rebooted: boolean): Promise<string[]> {
  const now = new Set(await activeUnits());
  const gone = await describeUnits(before.filter((unit) => !now.has(unit)));
  return gone.filter((facts) => stateOf(facts) === 'stopped' && facts.LoadState === 'loaded'
    && !facts.FragmentPath!.startsWith('/run/systemd/transient/')
    && !(rebooted && facts.UnitFileState !== 'disabled')
    && !(facts.Result === 'success' && (/\.timer/.test(facts.TriggeredBy!) || (facts.BusName !== '' && facts.UnitFileState === 'static'))))
    .map((facts) => facts.Id!);
}
