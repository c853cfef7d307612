// Docker containers and Compose projects: find, describe, stop, start, see what they really do.
// A container with a database gets its stop signal and all the time it needs: `docker stop` would end in SIGKILL, and
// still answer 0. Other containers are stopped as Docker does it. They are named, never numbered: a container that was
// made anew in the meantime is found again.
import path from 'node:path';
import { Problem, named, say, warn } from './say.ts';
import { failure, look } from './shell.ts';
import { answerOf } from './form.ts';
import type { Form } from './form.ts';
import { SANDBOX_MARK, pidNamespace, procFile, processes } from './processes.ts';
import type { Process } from './processes.ts';
import type { Part, State } from './units.ts';

export type Mount = { type: string; name: string; source: string; destination: string; readOnly?: boolean };
export type Container = {
  name: string;
  id: string;
  running: boolean;
  paused: boolean;
  removedOnStop: boolean; // docker run --rm
  exitCode: number;
  pid: number;
  health: string; // '' = no health check
  stopSignal: string;
  stopSeconds: number;
  project: string;
  service: string; // of the project
  swarm: boolean; // Docker Swarm starts another one when it stops
  needs: string[]; // services of the same project that this one depends on
  mounts: Mount[];
  database: string; // the database program that runs in it, '' = none
};

const DATABASES = new Set(['postgres', 'postmaster', 'edb-postgres', 'mysqld', 'mariadbd', 'mongod', 'redis-server', 'valkey-server']);
const DOCKER_GRACE_SECONDS = 10; // what `docker stop` waits when a container does not say otherwise

const notOfARehearsal = (field: string) => `{{if not (.Label "${SANDBOX_MARK}")}}{{.${field}}}{{end}}`;

/**
 * Every container of this host, running or not, but for those of rehearsals. [] when Docker is not installed or does not
 * answer and nobody asked for it.
 */
export async function findContainers(needed: boolean): Promise<Container[]> {
  const list = await look(['docker', 'ps', '--all', '--no-trunc', `--format=${notOfARehearsal('ID')}`]);
  if (list.code !== 0) {
    if (!needed) return [];
    throw new Problem('Docker does not answer', { ran: list.argv, said: list.said, hint: 'look at `systemctl status docker`' });
  }
  const ids = list.out.split('\n').filter((id) => id !== '');
  return ids.length === 0 ? [] : describeContainers(ids);
}

const CONTAINER_FORM: Form = {
  Id: 'text', Name: 'text', Config: { 'Labels?': { '*': 'text' } }, State: { Running: 'yes or no', Pid: 'id' },
  'Mounts?': [{ Type: 'text', Destination: 'text' }],
};

async function describeContainers(ids: string[]): Promise<Container[]> {
  const done = await look(['docker', 'inspect', '--type=container', ...ids]); // one that has just gone makes exit code 1
  if (done.code !== 0 && !done.said.split('\n').every((line) => line.trim() === '' || /no such/i.test(line))) throw failure('Docker does not tell about its containers', done, 'look at `systemctl status docker`');
  const everyone = processes();
  return answerOf('Docker does not tell about its containers', done, [CONTAINER_FORM], done.out || '[]').map((facts: any): Container => {
    const labels = facts.Config.Labels ?? {};
    const depends = String(labels['com.docker.compose.depends_on'] ?? '').split(',').filter((one) => one !== '');
    return {
      name: facts.Name.replace(/^\//, ''),
      id: facts.Id,
      running: facts.State.Running,
      paused: facts.State.Paused,
      removedOnStop: Boolean(facts.HostConfig?.AutoRemove),
      exitCode: facts.State.ExitCode,
      pid: facts.State.Pid,
      health: facts.State.Health?.Status ?? '',
      stopSignal: String(facts.Config.StopSignal || 'SIGTERM'),
      stopSeconds: facts.Config.StopTimeout ?? DOCKER_GRACE_SECONDS,
      project: labels['com.docker.compose.project'] ?? '',
      service: labels['com.docker.compose.service'] ?? '',
      swarm: Boolean(labels['com.docker.swarm.service.id']),
      needs: depends.map((one) => one.split(':')[0]!),
      mounts: (facts.Mounts ?? []).map((one: any) => ({ type: one.Type, name: one.Name ?? '', source: one.Source, destination: one.Destination, readOnly: one.RW === false })),
      database: facts.State.Running ? databaseIn(facts.State.Pid, facts.Id, everyone) : '',
    };
  });
}

// A container's processes are those in its PID namespace (unless it shares the host's) or in its cgroup.
function databaseIn(pid: number, id: string, everyone: Process[]): string {
  const own = pidNamespace(process.pid), theirs = pidNamespace(pid);
  return everyone.find((one) => DATABASES.has(one.program)
    && (one.pid === pid || procFile(one.pid, 'cgroup').includes(id) || (theirs !== own && pidNamespace(one.pid) === theirs)))?.program ?? '';
}

// The containers of a project in stages: what nothing needs stops first (stage 0), what it needs after that, as Compose does it.
function stagesOfProject(project: string, all: Container[]): { one: Container; stage: number }[] {
  const members = all.filter((one) => one.project === project);
  const stageOf = (one: Container, above: Container[]): number => {
    const needing = members.filter((other) => other.needs.includes(one.service) && ![...above, one].includes(other)); // a circle ends here
    return Math.max(0, ...needing.map((other) => stageOf(other, [...above, one]) + 1));
  };
  return members.map((one) => ({ one, stage: stageOf(one, []) })).sort((one, other) => one.stage - other.stage);
}

/** Given `container X`, `container *` or `compose X` and all containers, returns the parts. Throws Problem when nothing is meant by it. */
export function containerParts(what: string, all: Container[]): (Omit<Part, 'group'> & { stage: number })[] {
  const [kind, name] = [what.slice(0, what.indexOf(' ')), what.slice(what.indexOf(' ') + 1)];
  const byName = name === '*' ? all.filter((one) => one.running) : all.filter((one) => one.name === name);
  const meantOnes = kind === 'compose' ? stagesOfProject(name, all) : byName.map((one) => ({ one, stage: 0 }));
  if (meantOnes.length === 0 && name !== '*') {
    throw new Problem(`${what}: there is no such ${kind === 'compose' ? 'project' : 'container'} here`, { hint: 'look at `docker ps --all`' });
  }
  return meantOnes.map(({ one, stage }) => ({ ...containerPart(one), stage }));
}

function containerPart(one: Container): Omit<Part, 'group'> {
  if (one.paused) throw new Problem(`container ${one.name} is paused`, { hint: `\`docker unpause ${one.name}\`, or take it out of \`stop\`` });
  if (one.removedOnStop && one.running) throw new Problem(`container ${one.name} was made with --rm: Docker removes it when it stops, and nobody could start it again`,
    { hint: `make it anew without --rm, or take it out of \`stop\`` });
  if (one.swarm && one.running) throw new Problem(`container ${one.name} belongs to a Docker Swarm service: Swarm starts another one as soon as it stops`,
    { hint: `use { name, running, stop: ['docker', 'service', 'scale', ...], start } with your own commands` });
  return {
    name: `container ${one.name}`,
    kind: 'container',
    wasRunning: one.running,
    stop: stopCommand(one),
    start: ['docker', 'start', one.name],
    container: one.name,
    database: one.database,
    healthy: one.health === 'healthy',
    stopSeconds: one.stopSeconds,
  };
}

// A database gets its stop signal and nothing else; we wait. PostgreSQL takes TERM for "when the last client has gone":
// where an image says nothing better, INT follows at once, which means "now" (postgres(1)). The first signal has to be the
// container's own: only then does Docker see a stop that was wanted, and no restart policy brings it back.
function stopCommand(one: Container): string[] {
  if (one.database === '') return ['docker', 'stop', '--time', String(one.stopSeconds), one.name];
  const own = ['docker', 'kill', '--signal', one.stopSignal, one.name];
  if (!/postgres|postmaster/.test(one.database) || /^(SIG)?INT$|^2$/.test(one.stopSignal)) return own;
  return ['sh', '-c', 'docker kill --signal "$2" "$1" && docker kill --signal INT "$1"', 'sh', one.name, one.stopSignal];
}

/** What a container does now: { state, healthy, exitCode, exists }. */
export async function containerState(name: string): Promise<{ state: State; healthy: boolean; exitCode: number; exists: boolean }> {
  const done = await look(['docker', 'inspect', '--type=container', '--format={{json .State}}', name]), { code, said } = done;
  if (code !== 0) { // it is gone, or Docker does not answer, and then nobody knows
    const isGone = /no such (container|object)/i.test(said);
    return { state: isGone ? 'stopped' : 'moving', healthy: false, exitCode: 0, exists: !isGone };
  }
  const state = answerOf(`container ${name}`, done, { Running: 'yes or no', ExitCode: 'number' });
  const running: State = state.Restarting ? 'moving' : state.Running ? 'running' : 'stopped';
  return { state: running, healthy: (state.Health?.Status ?? 'healthy') === 'healthy', exitCode: state.ExitCode, exists: true };
}

/** Names of the running containers. */
export async function runningContainers(): Promise<string[]> {
  const { code, out } = await look(['docker', 'ps', `--format=${notOfARehearsal('Names')}`, '--filter=status=running']);
  return code === 0 ? out.split('\n').filter((name) => name !== '') : [];
}

/** Given a path as a container sees it, returns the path on this host, or '' when it lies in no volume (and dies with the container). */
export function hostPathOf(inside: string, mounts: Mount[]): string {
  const best = mounts.filter(({ source, destination }) => source && (inside === destination || inside.startsWith(`${destination.replace(/\/$/, '')}/`)))
    .sort((one, other) => other.destination.length - one.destination.length)[0];
  return best ? path.join(best.source, inside.slice(best.destination.replace(/\/$/, '').length)) : '';
}

/** isData: a container that is stopped may write to it, so nothing changes there while it is stopped. */
export type Volume = { name: string; path: string; isData: boolean };

/**
 * Given the names of `volumes` in the settings, all containers and those that are stopped, returns the paths to save.
 * '*' = every volume and bind mount of the containers that are stopped. Throws Problem for a volume that is not there, or lies elsewhere.
 */
export async function findVolumes(names: string[], all: Container[], stopped: string[]): Promise<Volume[]> {
  const found: Volume[] = [];
  for (const name of names.filter((one) => one !== '*')) found.push({ name, path: await placeOfNamedVolume(name), isData: true });
  const mounts = names.includes('*') ? all.filter((one) => stopped.includes(one.name)).flatMap((one) => one.mounts) : [];
  for (const { type, name, source } of mounts) {
    if (!/^(bind|volume)$/.test(type) || !source || /^\/(proc|sys|dev|run|var\/run)(\/|$)/.test(source)) continue;
    if (source === '/') say('a container sees all of / : `volumes: [\'*\']` does not mean that; what is to be saved there belongs into `folders`');
    else found.push({ name: name || source, path: type === 'volume' ? await placeOfNamedVolume(name) : source, isData: mounts.some((one) => one.source === source && !one.readOnly) });
  }
  for (const name of new Set(found.filter((one) => one.path === IN_MEMORY).map((one) => one.name))) say(`volume ${name} is in memory only: there is nothing to save in it`);
  return found.filter((one) => one.path !== IN_MEMORY);
}

const IN_MEMORY = ''; // where a volume lies that is a tmpfs: nothing of it is left when its containers are stopped

// Where a volume lies. One that Docker mounts from elsewhere (docker_volume_create(1), `device`) is empty there as soon as its containers are stopped.
async function placeOfNamedVolume(name: string): Promise<string> {
  const done = await look(['docker', 'volume', 'inspect', '--format={{json .}}', name]), { code, said, argv } = done;
  if (code !== 0) throw new Problem(`volume ${name}: there is none of that name`, { ran: argv, said, hint: 'look at `docker volume ls`' });
  const { Mountpoint, Options } = answerOf(`volume ${name}`, done, { Mountpoint: 'path', 'Options?': { '*': 'text' } });
  if (Options?.type === 'tmpfs') return IN_MEMORY;
  if (Options?.device) throw new Problem(`volume ${name} is mounted by Docker from ${named(Options.device)}, and is empty while its containers are stopped`,
    { hint: `a folder of this machine: name it in \`folders\` instead; another machine's: mount it by /etc/fstab and name that folder, or save it over there` });
  return Mountpoint;
}

/** Given all containers and every path that is saved, warns of volumes in use here that nothing saves. */
export async function warnOfUnsavedVolumes(all: Container[], isSaved: (path: string) => boolean): Promise<void> {
  const open = new Map<string, string[]>();
  for (const { name: container, mounts } of all) {
    for (const { type, name, source } of mounts) {
      if (type === 'volume' && !isSaved(source)) open.set(name, [...(open.get(name) ?? []), container]);
    }
  }
  for (const [volume, users] of open) if (!await isInMemory(volume)) warn(`volume ${volume} (of ${users.join(', ')}) is not saved: name it in \`volumes\``);
}

async function isInMemory(volume: string): Promise<boolean> {
  return (await look(['docker', 'volume', 'inspect', '--format={{.Options.type}}', volume])).out.trim() === 'tmpfs';
}
