// The plan: what will be stopped, saved and started, worked out once, before anything is changed.
// It is plain data: printed by --dry-run, stored in the archive, kept on disk while services are down, and what the run follows.
// Changes nothing. Refuses what could not become a good backup, while everything still runs.
import { randomUUID } from 'node:crypto';
import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { Problem, named, say, warn } from './say.ts';
import { look, outlivingUs } from './shell.ts';
import { isBelow, withItsLink } from './files.ts';
import { deviceAndInode } from './processes.ts';
import type { CustomPart, Settings } from './settings.ts';
import { unitPart } from './units.ts';
import type { Part } from './units.ts';
import { containerParts, findContainers, findVolumes, warnOfUnsavedVolumes } from './containers.ts';
import type { Container } from './containers.ts';
import { whyNotCold } from './postmaster.ts';
import { clusterPart, clustersNamed, findClusters } from './postgres.ts';
import type { Cluster } from './postgres.ts';
import { configFilesOf } from './questions.ts';
import { chooseWays } from './ways.ts';
import { waysIn } from './snapshot.ts';
import type { Root } from './ways.ts';

export type Plan = {
  format: 1;
  server: string;
  run: string; // names this run among processes
  archive: string;
  madeAt: string;
  repository: string;
  parts: Part[]; // in the order they are stopped
  clusters: Cluster[]; // whose files are saved: each must be proven cold
  roots: Root[]; // what borg is given
  cold: string[]; // below these nothing may change while it is copied
  containers: string[]; // that are stopped or whose volumes are saved
  exclude: string[];
  warmPass: boolean;
  snapshot: string; // how what is stopped is copied on write: 'subvolume', 'reflink', 'copy', or several of them; '' = not at all
};

/** stage: within a Compose project. */
type Finding = { parts: (Omit<Part, 'group'> & { stage?: number })[]; clusters: Cluster[] };

/** This server's name in archive names. Throws Problem (64) when the host name will not do. */
export function serverName(settings: Settings): string {
  const name = settings.server || os.hostname().split('.')[0]!;
  if (/^[A-Za-z0-9][\w.-]*$/.test(name) && !name.startsWith('proven-')) return name;
  throw new Problem(`the host name ${named(name)} cannot start an archive's name`,
    { exitCode: 64, hint: 'set `server` to letters, digits, dots and dashes' });
}

/**
 * Look at this machine and make the plan of a run. Given the settings, returns the plan; things that want attention are
 * warned of. Throws Problem when something named is not there, or when a running database would be copied.
 */
export async function makePlan(settings: Settings, now: Date): Promise<Plan> {
  const server = serverName(settings);
  const wanted = settings.stop.flat();
  const containers = await findContainers(settings.volumes.length > 0 || wanted.some((one) => typeof one === 'string' && /^(compose|container) /.test(one)));
  const allClusters = await findClusters(containers);
  const parts: Part[] = [], clusters: Cluster[] = [];
  for (const entry of settings.stop) {
    const group = 1 + Math.max(-1, ...parts.map((part) => part.group)); // numbered in the order of `stop`; the stages of a project follow one another
    for (const one of [entry].flat()) {
      const found = await findPart(one, settings, containers, allClusters);
      parts.push(...found.parts.filter((part) => !parts.some((other) => other.name === part.name)).map(({ stage = 0, ...part }) => ({ ...part, group: group + stage })));
      clusters.push(...found.clusters.filter((cluster) => !clusters.some((other) => other.dataDirectory === cluster.dataDirectory)));
    }
  }
  const stopped = parts.flatMap((part) => (part.container ? [part.container] : []));
  for (const part of parts) part.dataDirectory ??= allClusters.find((one) => one.container !== '' && one.container === part.container)?.dataDirectory;
  refuseStopOfDocker(parts);
  const run = randomUUID(), { roots: all, cold } = await findRoots(settings, clusters, containers, stopped);
  const roots = settings.snapshot === 'yes' ? await chooseWays(all, settings.stateFolder, run) : all;
  if (roots.length === 0) throw new Problem('there is nothing to save: no folder, no volume, and no cluster',
    { hint: 'fill in `folders`, `volumes`, or name a cluster in `stop`' });
  const isSaved = (file: string) => roots.some((root) => isBelow(file, root.path));
  for (const cluster of allClusters.filter((one) => isSaved(one.dataDirectory) && !clusters.includes(one))) {
    refuseRunningCluster(cluster, parts);
    clusters.push(cluster);
  }
  for (const cluster of clusters) refuseCrashedCluster(cluster);
  await warnOfUnsaved(allClusters, containers, isSaved);
  return {
    format: 1, server, run, parts, clusters, roots, cold: [...new Set([...cold, ...clusters.flatMap((one) => one.roots)])],
    archive: `${server}-${now.toISOString().slice(0, 19)}`,
    madeAt: now.toISOString(),
    repository: settings.repository,
    containers: containers.filter((one) => stopped.includes(one.name) || one.mounts.some(({ source }) => source && isSaved(source))).map((one) => one.name),
    exclude: settings.exclude,
    warmPass: settings.warmPass,
    snapshot: waysIn(roots),
  };
}

export async function findPart(one: string | CustomPart, settings: Settings, containers: Container[], clusters: Cluster[]): Promise<Finding> {
  if (typeof one !== 'string') return { parts: [await ownPart(one)], clusters: [] };
  const kind = one.slice(0, one.indexOf(' ')), name = one.slice(kind.length + 1);
  if (kind === 'service') return { parts: [await unitPart(name)], clusters: [] };
  if (kind !== 'postgres') {
    const parts = containerParts(one, containers);
    if (parts.length === 0) warn('`container *` means nothing tonight: no container runs');
    return { parts, clusters: [] };
  }
  const found: Finding = { parts: [], clusters: clustersNamed(name, clusters) };
  if (found.clusters.length === 0) warn('`postgres *` means nothing tonight: no cluster runs, and none is saved');
  for (const cluster of found.clusters) found.parts.push(await clusterPart(cluster, settings.stopTimeoutSeconds));
  return found;
}

async function ownPart(one: CustomPart): Promise<Omit<Part, 'group'>> {
  const { code, timedOut, argv, said } = await look(one.running);
  if (code === 127 || code === 126 || timedOut) {
    throw new Problem(`${one.name}: its \`running\` command does not work`,
      { ran: argv, said, hint: 'it must exit 0 while the part runs, and something else while it does not' });
  }
  return { name: one.name, kind: 'command', wasRunning: code === 0, running: one.running, stop: one.stop, start: outlivingUs(one.start) };
}

// Everything to save, each path once. A folder given as a link is saved as the link and as what it leads to.
async function findRoots(settings: Settings, clusters: Cluster[], containers: Container[], stopped: string[]): Promise<{ roots: Root[]; cold: string[] }> {
  const roots: Root[] = [], asItLies = { way: 'cold' as const, because: '', copy: '' };
  for (const cluster of clusters) {
    for (const file of [...cluster.roots, ...await configFilesOf(cluster)]) roots.push({ path: file, why: `cluster ${cluster.name}`, strict: true, ...asItLies });
  }
  for (const { name, path: place, isData } of await findVolumes(settings.volumes, containers, stopped)) {
    const users = containers.filter((one) => one.running && !stopped.includes(one.name) && one.mounts.some(({ source }) => source && isBelow(place, source)));
    if (users.length > 0) warn(`volume ${name} is saved while ${users.map((one) => one.name).join(', ')} may write to it: name the container in \`stop\``);
    if (!isData && settings.folders.some((folder) => path.resolve(folder) === place)) continue; // what containers only look at may stay as it is in a restore; what somebody has named comes back
    for (const file of pathsOf(place, `volume ${name}`)) roots.push({ path: file, why: `volume ${name}`, strict: isData && users.length === 0, ...asItLies });
  }
  for (const folder of settings.folders) {
    const plain = path.resolve(folder);
    for (const file of pathsOf(plain, 'folder')) roots.push({ path: file, why: file === plain ? 'folder' : `folder ${plain} leads here`, strict: false, ...asItLies });
    const real = fs.realpathSync(plain), passed = settings.exclude.find((pattern) => real !== plain && isBelow(pattern.replace(/^[a-z]{2}:/, ''), plain));
    if (passed) warn(`\`exclude\` ${named(passed)} leaves nothing out: ${named(plain)} leads to ${named(real)}, so write it with that path`);
  }
  for (const root of roots) root.id = deviceAndInode(root.path);
  const seen = new Set<string>();
  const unique = roots.filter((root) => !seen.has(root.path) && seen.add(root.path));
  for (const one of clusters) one.configLinks = one.configLinks?.filter(({ link }) => !unique.some((root) => isBelow(link, root.path))); // the others come back with what they lie in
  // borg would store what lies below another root twice. With `exclude` a root inside an excluded folder has to stay: see createCommand().
  return {
    roots: unique.filter((root) => settings.exclude.length > 0 || root.why.startsWith('volume ') || !unique.some((other) => other !== root && isBelow(root.path, other.path))),
    cold: unique.filter((root) => root.strict).map((root) => root.path),
  };
}

// Throws Problem when it is not there.
function pathsOf(file: string, why: string): string[] {
  if (fs.existsSync(file)) return withItsLink(file);
  throw new Problem(`${named(file)} (${why}) does not exist`, { hint: 'nothing was stopped; mend the settings, or mount what is missing' });
}

// Nobody could ask how the containers ended, and Docker starts them again in its own way.
function refuseStopOfDocker(parts: Part[]): void {
  const docker = parts.find((part) => part.wasRunning && /^(docker|containerd)\./.test(part.unit ?? ''));
  if (docker && parts.some((part) => part.container && part.wasRunning)) throw new Problem(`${docker.name} and containers are named in \`stop\`: Docker has to run while containers are stopped and started`,
    { hint: `nothing was stopped; take '${docker.name}' out of \`stop\`` });
}

function refuseRunningCluster(cluster: Cluster, parts: Part[]): void {
  const isStopped = parts.some((part) => part.dataDirectory === cluster.dataDirectory || (cluster.container !== '' && part.container === cluster.container));
  if (cluster.pid === 0 || isStopped) return;
  const what = cluster.container ? `container ${cluster.container}` : `postgres ${cluster.name}`;
  throw new Problem(`${named(cluster.dataDirectory)} would be saved, but PostgreSQL runs in it and nothing stops it: the copy would be worthless`,
    { hint: `name '${what}' in \`stop\`` });
}

// One that does not run stays as it is all night: what is wrong with it now would only be found once everything is stopped.
function refuseCrashedCluster({ name, dataDirectory, pid }: Cluster): void {
  const why = pid === 0 ? whyNotCold(dataDirectory) : [];
  if (why.length > 0) throw new Problem(`cluster ${named(name)} does not run and is not proven cold: ${why.join(', ')}`,
    { hint: 'start it and let it recover; then stop it cleanly, or let it run' });
}

// What is found here and saved by nothing is told every night: the database that was added last year and never backed up.
async function warnOfUnsaved(clusters: Cluster[], containers: Container[], isSaved: (file: string) => boolean): Promise<void> {
  for (const cluster of clusters) {
    const how = cluster.container ? 'name its volume in `volumes`' : `name 'postgres ${cluster.name}' in \`stop\``;
    if (!isSaved(cluster.dataDirectory)) {
      const tell = cluster.pid === 0 ? say : warn, still = cluster.pid === 0 ? ', which does not run,' : '';
      tell(`PostgreSQL cluster ${named(cluster.name)} in ${named(cluster.dataDirectory)}${still} is not saved: ${how}`);
    }
    else for (const { oid, location, link } of cluster.tablespaces) {
      if (!location || !isSaved(location)) warn(`tablespace ${oid} of ${named(cluster.name)} in ${named(location || link)} is not saved: ${how}`);
    }
    if (isSaved(cluster.dataDirectory) && !isSaved(cluster.walFolder)) throw new Problem(`the WAL of ${named(cluster.name)} in ${named(cluster.walFolder)} is not saved, and without it the copy does not start`,
      { hint: how });
  }
  await warnOfUnsavedVolumes(containers, isSaved);
}
