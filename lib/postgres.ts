// PostgreSQL clusters on this host and in its containers: find, describe, stop, start.
// A cluster is stopped by its own unit or by pg_ctl in `fast` mode, never `immediate`, and never killed. Whether it has
// stopped is not what those commands say: see the chapter before.
import { spawnSync } from 'node:child_process';
import fs from 'node:fs';
import path from 'node:path';
import { Problem, named, warn } from './say.ts';
import { hasSystemd, look, outlivingUs, programPath } from './shell.ts';
import { plainText, readPlainFile } from './files.ts';
import { deviceAndInode, ownerOfFile, procFile, workingFolder } from './processes.ts';
import { describeUnits, refuseWithoutStart } from './units.ts';
import type { Part } from './units.ts';
import { hostPathOf } from './containers.ts';
import type { Container } from './containers.ts';
import { pidFile, runningPostmasters, versionOf } from './postmaster.ts';

export type Tablespace = { oid: string; location: string; link: string };
export type Cluster = {
  name: string; // '15/main' for a Debian cluster, else its data directory
  dataDirectory: string; // as this host sees it
  version: string; // major
  owner: string; // user name, or the number when this host has no name for it
  uid: number;
  gid: number;
  pid: number; // of the postmaster as this host sees it, 0 = not running
  port: string;
  socketFolder: string;
  binaries: string; // folder of the postgres program, inside its container if it has one
  container: string; // '' = on the host
  insideDataDirectory: string; // as its container sees it
  configFolder: string; // Debian: /etc/postgresql/15/main
  roots: string[]; // every path that belongs to it
  tablespaces: Tablespace[];
  walFolder: string;
  configLinks?: { link: string; location: string }[]; // folders of its configuration that it names over a link, which is in no archive: as it does, and where they really lie
  words?: string[]; // of a copy in the sandbox: what goes before a command that is to run where it lives
};

/** Every cluster of this host: Debian's (running or not), and whatever runs, in containers too. */
export async function findClusters(containers: Container[]): Promise<Cluster[]> {
  const found = debianClusters();
  for (const { pid, folder } of runningPostmasters()) {
    const container = containers.find((one) => one.running && (one.pid === pid || procFile(pid, 'cgroup').includes(one.id)));
    const inside = linkAt(`/proc/${pid}/cwd`);
    if (!inside) continue; // it has just ended
    const onHost = (file: string) => { // where it really lies, as everything is saved: Docker tells a mount's source as it was typed
      const place = hostPathOf(file, container?.mounts ?? []);
      return place && realPath(place);
    };
    const dataDirectory = container ? onHost(inside) : inside;
    if (deviceAndInode(dataDirectory) !== workingFolder(pid) && !(container && !dataDirectory)) {
      warn(`a PostgreSQL (process ${pid}) runs in ${inside} of a container or namespace that Docker does not show: it cannot be stopped or saved from here`);
      continue;
    }
    if (container && !dataDirectory) {
      warn(`container ${container.name} keeps its database in ${inside}, which is in no volume: it cannot be saved`);
      continue;
    }
    const known = found.find((one) => deviceAndInode(one.dataDirectory) === deviceAndInode(dataDirectory));
    if (known) Object.assign(known, { pid, binaries: folder, ...addressOf(dataDirectory) });
    else if (deviceAndInode(dataDirectory)) {
      const cluster = describeCluster(container ? `container ${container.name}` : dataDirectory, dataDirectory, '');
      const wal = path.resolve(inside, linkAt(path.join(dataDirectory, 'pg_wal')) || 'pg_wal'); // as its container sees it
      found.push({ ...cluster, pid, binaries: folder, ...addressOf(dataDirectory), container: container?.name ?? '', insideDataDirectory: container ? inside : '',
        walFolder: container ? onHost(wal) || wal : cluster.walFolder, tablespaces: cluster.tablespaces.map((one) => ({ ...one, location: container ? onHost(one.link) : one.location })) });
    }
  }
  for (const cluster of found) cluster.roots = rootsOf(cluster);
  return found;
}

// Debian keeps a folder per cluster under /etc/postgresql (postgresql-common); a stopped one is found only there.
function debianClusters(): Cluster[] {
  const top = '/etc/postgresql', found: Cluster[] = [];
  for (const version of listFolder(top)) {
    for (const name of listFolder(path.join(top, version))) {
      const folder = path.join(top, version, name);
      let text = '';
      for (const file of [path.join(folder, 'postgresql.conf'), ...listFolder(path.join(folder, 'conf.d')).sort().map((one) => path.join(folder, 'conf.d', one))]) {
        try {
          text += `${readPlainFile(fs.realpathSync(file))}\n`;
        } catch { /* not there, or not ours to read */ }
      }
      const set = [...text.matchAll(/^\s*data_directory\s*=?\s*'((?:[^']|'')*)'/gm)].pop()?.[1]?.replaceAll("''", "'");
      const dataDirectory = set ?? `/var/lib/postgresql/${version}/${name}`;
      if (/^[^-]/.test(name) && versionOf(dataDirectory) !== '') found.push(describeCluster(`${version}/${name}`, fs.realpathSync(dataDirectory), folder));
    }
  }
  return found;
}

function listFolder(folder: string): string[] {
  try {
    return fs.readdirSync(folder);
  } catch {
    return [];
  }
}

/** Given a data directory, returns its cluster as its files tell: version, owner, links that lead out of it. Not running, as far as this knows. */
export function describeCluster(name: string, dataDirectory: string, configFolder: string): Cluster {
  const { uid, gid } = fs.statSync(dataDirectory);
  const tablespaces = listFolder(path.join(dataDirectory, 'pg_tblspc')).filter((oid) => /^\d+$/.test(oid)).map((oid) => {
    const link = linkAt(path.join(dataDirectory, 'pg_tblspc', oid)) || path.join(dataDirectory, 'pg_tblspc', oid); // no link: allow_in_place_tablespaces
    return { oid, link, location: realPath(path.resolve(dataDirectory, 'pg_tblspc', link)) };
  });
  const wal = path.join(dataDirectory, 'pg_wal'), walLink = linkAt(wal), walFolder = walLink ? realPath(path.resolve(dataDirectory, walLink)) : wal;
  return {
    name, dataDirectory, uid, gid, configFolder, tablespaces, walFolder,
    version: versionOf(dataDirectory),
    owner: userName(uid), pid: 0, port: '', socketFolder: '', binaries: '', container: '', insideDataDirectory: '', roots: [],
  };
}

// What stands in a link; '' when it is none.
function linkAt(file: string): string {
  try {
    return fs.readlinkSync(file);
  } catch {
    return '';
  }
}

// What a path leads to over any number of links; itself when it leads nowhere here, as a container's does.
function realPath(file: string): string {
  try {
    return fs.realpathSync(file);
  } catch {
    return file;
  }
}

function userName(uid: number): string {
  const line = fs.readFileSync('/etc/passwd', 'utf8').split('\n').find((one) => one.split(':')[2] === String(uid));
  return line?.split(':')[0] ?? (spawnSync('getent', ['passwd', String(uid)], { encoding: 'utf8', timeout: 10_000, env: { PATH: programPath() } }).stdout?.split(':')[0] || String(uid)); // LDAP's, too
}

// Everything that belongs to a cluster: borg does not follow links, so what they lead to is named beside the data directory. PostgreSQL owns what it
// writes to: a link to somebody else's folder, which whoever owns the data directory could lay, takes no /root into the archive and back.
function rootsOf(cluster: Cluster): string[] {
  const isOwn = (root: string) => ownerOfFile(root) === cluster.uid;
  const roots = [cluster.dataDirectory, ...[...cluster.tablespaces.map((one) => one.location), cluster.walFolder].filter(isOwn)];
  if (cluster.configFolder) roots.push(cluster.configFolder);
  return [...new Set(roots.filter((root) => root !== '' && fs.existsSync(root)).map((root) => fs.realpathSync(root)))];
}

function addressOf(dataDirectory: string): { port: string; socketFolder: string } {
  const lines = pidFile(dataDirectory);
  return { port: lines[3] ?? '', socketFolder: lines[4] ?? '' };
}

/** Given `15/main`, a data directory or `*`, and all clusters, returns those meant. Throws Problem when there is none. */
export function clustersNamed(what: string, all: Cluster[]): Cluster[] {
  const here = all.filter((one) => one.container === '');
  if (what === '*') return here.filter((one) => one.pid !== 0);
  const folder = what.startsWith('/') ? deviceAndInode(what) : '';
  const one = here.find((cluster) => cluster.name === what || (folder !== '' && deviceAndInode(cluster.dataDirectory) === folder));
  if (one) return [one];
  if (what.startsWith('/') && fs.existsSync(path.join(what, 'global', 'pg_control'))) {
    const cluster = describeCluster(what, fs.realpathSync(what), '');
    return [{ ...cluster, roots: rootsOf(cluster) }];
  }
  const inContainer = all.find((cluster) => cluster.container && cluster.dataDirectory === what);
  throw new Problem(`postgres ${what}: there is no such cluster here`, { hint: inContainer
    ? `it runs in a container: write 'container ${inContainer.container}'`
    : `here are: ${here.map((cluster) => cluster.name).join(', ') || 'none'}; write 'postgres ${here[0]?.name ?? '15/main'}' or 'postgres /its/data/directory'` });
}

/** Given a cluster, returns the part: stopped and started by what runs it now, its own unit above all. Throws Problem when nothing would start it again. */
export async function clusterPart(cluster: Cluster, stopSeconds: number): Promise<Omit<Part, 'group'>> {
  const part = { name: `postgres ${cluster.name}`, kind: 'postgres' as const, wasRunning: cluster.pid !== 0, dataDirectory: cluster.dataDirectory };
  const auto = plainText(path.join(cluster.configFolder, 'start.conf')).replace(/#.*/g, '').trim(); // pg_ctlcluster(1): "disabled" also forbids to start it by hand
  if (cluster.configFolder && cluster.pid !== 0 && auto === 'disabled') throw new Problem(`postgres ${cluster.name} runs, but its start.conf says "disabled": nothing would start it again`,
    { hint: `nothing was stopped; write \`manual\` or \`auto\` into ${named(path.join(cluster.configFolder, 'start.conf'))}` });
  const unit = /\/([^/\n]+\.service)$/m.exec(procFile(cluster.pid, 'cgroup'))?.[1] ?? '';
  if (unit && hasSystemd()) {
    const [facts] = await describeUnits([unit]);
    if (facts?.MainPID === String(cluster.pid)) {
      refuseWithoutStart(facts);
      warnOfShortStop(unit, facts.TimeoutStopUSec ?? '', stopSeconds);
      return { ...part, stop: ['systemctl', 'stop', '--', unit], start: ['systemctl', 'start', '--', unit], unit };
    }
  }
  if (cluster.configFolder) {
    const [version, name] = cluster.name.split('/') as [string, string];
    const start = hasSystemd() ? ['systemctl', 'start', '--', `postgresql@${version}-${name}`] : ['pg_ctlcluster', version, name, 'start'];
    return { ...part, start, stop: ['pg_ctlcluster', '--skip-systemctl-redirect', version, name, 'stop', '--mode', 'fast', '--', '-t', String(stopSeconds)] };
  }
  const control = [...asOwner(cluster), path.join(cluster.binaries || '/usr/lib/postgresql/bin', 'pg_ctl')];
  const common = ['-D', configArgument(cluster), '-w', '-t', String(stopSeconds)];
  return { ...part, stop: [...control, 'stop', '-m', 'fast', ...common], start: outlivingUs([...control, 'start', ...common, ...await startArguments(cluster)]) };
}

// systemd kills what has not stopped in the unit's own time, and PostgreSQL must never be killed.
function warnOfShortStop(unit: string, limit: string, stopSeconds: number): void {
  const seconds = [...limit.matchAll(/([\d.]+)(h|min|s)(?=\s|$)/g)].reduce((sum, [, number, word]) => sum + Number(number) * { h: 3600, min: 60, s: 1 }[word as 'h']!, 0);
  if (seconds > 0 && seconds < stopSeconds) warn(`${unit} is killed by systemd after ${limit}: set TimeoutStopSec=${stopSeconds} or more (systemctl edit ${unit})`);
}

/** The words that run a command as the owner of a cluster. */
export function asOwner(cluster: Cluster): string[] {
  return process.getuid?.() === cluster.uid ? [] : ['runuser', '-u', cluster.owner, '--'];
}

// The words the postmaster was started with: the same ones start it again.
function commandLineOf(cluster: Cluster): string[] {
  return procFile(cluster.pid, 'cmdline').split('\0').slice(1, -1).map((word) => Buffer.from(word, 'latin1').toString());
}

function configArgument(cluster: Cluster): string {
  const given = commandLineOf(cluster);
  const at = given.indexOf('-D');
  return at >= 0 && given[at + 1]?.startsWith('/') ? given[at + 1]! : cluster.dataDirectory; // -D may be the folder of the configuration
}

async function startArguments(cluster: Cluster): Promise<string[]> {
  const given = commandLineOf(cluster);
  const at = given.indexOf('-D');
  const others = at >= 0 ? [...given.slice(0, at), ...given.slice(at + 2)] : given;
  let log = '/dev/null';
  try {
    const target = fs.readlinkSync(`/proc/${cluster.pid}/fd/2`);
    if (target.startsWith('/') && fs.statSync(target).isFile() && (await look([...asOwner(cluster), 'test', '-w', target])).code === 0) log = target;
  } catch { /* it says nothing anywhere */ }
  const quoted = others.map((word) => `'${word.replaceAll("'", `'\\''`)}'`).join(' ');
  return ['-l', log, ...(quoted ? ['-o', quoted] : [])];
}
