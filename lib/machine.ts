// This machine beside the saved one, as far as files and processes tell.
// Architecture, users and groups, ports, memory, places for the folders, packages to install. Only looks. What PostgreSQL
// itself has to answer is the judge's.
import fs from 'node:fs';
import { lookup } from 'node:dns/promises';
import { createServer } from 'node:net';
import os from 'node:os';
import path from 'node:path';
import { named, pasteable, size } from './say.ts';
import { look } from './shell.ts';
import { plainText } from './files.ts';
import { deviceAndInode, processes, workingFolder } from './processes.ts';
import type { AnyFacts } from './questions.ts';
import type { ClusterPassport } from './passport.ts';
import type { Manifest } from './record.ts';
import type { Finding, PlannedCluster } from './judge.ts';

export const finding = (cluster: string, about: string, facts: Partial<Finding>): Finding => ({ cluster, about, recorded: '', here: '', breaks: '', verdict: 'refused', mend: [], sql: [], ...facts });
export const notJudged = (cluster: string, about: string, why: string): Finding => finding(cluster, about, { here: 'not judged', breaks: why, verdict: 'note', mend: ['node backup.js drill'] });

/** What differs of the machine as a whole: architecture, users and groups, memory, places. */
export async function machineFindings(manifest: Manifest, clusters: PlannedCluster[]): Promise<Finding[]> {
  const { architecture } = manifest.host;
  const found = architecture === os.arch() || clusters.length === 0 ? [] : [finding('', 'architecture', { recorded: architecture, here: os.arch(), breaks: 'PostgreSQL\'s files are those of one kind of processor', mend: ['# restore on a machine of that architecture'] })];
  const memory = clusters.flatMap((cluster) => {
    const told = manifest.postgres.find((one) => one.dataDirectory === cluster.dataDirectory);
    return told ? memoryFindings(told) : [];
  });
  const links = (await Promise.all(clusters.map((one) => linkFindings(manifest, one)))).flat();
  return [...found, ...await ownerFindings(manifest, clusters), ...memory, ...clusters.flatMap(placeFindings), ...links];
}

const ACCOUNT = /^[a-z_][\w.-]*\$?$/i; // what may stand in a command

/** The users and groups of the saved files by name: borg gives a file to the name, and where there is none, to the number, whoever has it. */
async function ownerFindings({ host, plan }: Manifest, clusters: PlannedCluster[]): Promise<Finding[]> {
  if (plan.roots.every((root) => root.why.startsWith('volume '))) return []; // those go by number, here as there
  const known = async (database: string, facts: AnyFacts[]) => {
    const words = facts.flatMap(({ id, name }) => [String(id), name]).filter((one) => ACCOUNT.test(one) || /^\d+$/.test(one));
    const { out } = words.length > 0 ? await look(['getent', database, ...words]) : { out: '' };
    return new Map(out.split('\n').flatMap((line): [string, string][] => { const [name = '', , id = ''] = line.split(':'); return [[name, id], [id, name]]; }));
  };
  const owners = clusters.filter((one) => one.container === '').map((one): AnyFacts => ({ id: one.uid, name: one.owner }));
  const [users, groups] = await Promise.all([known('passwd', [...host.users, ...owners]), known('group', host.groups)]);
  const missing = (kind: string, here: Map<string, string>, { id, name, group }: AnyFacts, verdict: Finding['verdict']): Finding[] => {
    const holder = here.get(String(id));
    if (id === 0 || (name ? here.has(name) : !holder || plan.clusters.some((one) => one.container !== ''))) return [];
    const ownGroup = host.groups.find((one) => one.id === group)?.name || name;
    const add = kind === 'user' ? ['useradd', ...(holder ? [] : ['--uid', String(id)]), '--gid', ownGroup, '--no-create-home', '--shell', '/usr/sbin/nologin', name] : ['groupadd', ...(holder ? [] : ['--gid', String(id)]), name];
    const first = kind === 'user' && !groups.has(ownGroup) ? [pasteable(['groupadd', ...(holder ? [] : ['--gid', String(group ?? id)]), ownGroup])] : [];
    const breaks = verdict === 'refused' ? 'PostgreSQL runs as this user' : holder ? `what belonged to ${name || id} would belong to ${kind} ${holder} here, who could read and change it` : 'its files would belong to a bare number';
    return [finding('', `${kind} ${name || id}`, { recorded: String(id), here: holder ? `${id} is ${holder}` : 'missing', breaks, verdict, mend: ACCOUNT.test(name) && ACCOUNT.test(ownGroup) ? [...first, pasteable(add)] : [] })];
  };
  const isOwner = ({ name }: AnyFacts) => owners.some((one) => one.name === name);
  return [...[...new Map(owners.map((one) => [one.name, one])).values()].flatMap((one) => missing('user', users, host.users.find((user) => user.id === one.id && user.name === one.name) ?? one, 'refused')),
    ...host.users.filter((one) => !isOwner(one)).flatMap((one) => missing('user', users, one, 'note')),
    ...host.groups.filter((one) => !host.users.some((user) => user.name === one.name && !users.has(user.name))).flatMap((one) => missing('group', groups, one, 'note'))];
}

const meminfo = (name: string) => Number(new RegExp(`^${name}:\\s+(\\d+)`, 'm').exec(fs.readFileSync('/proc/meminfo', 'utf8'))?.[1] ?? 0);
const inBytes = (text = '') => {
  const [, number, unit = ''] = /^(\d+)\s*(B|kB|MB|GB|TB)?$/.exec(text) ?? [];
  return Number(number ?? 0) * ({ B: 1, kB: 2 ** 10, MB: 2 ** 20, GB: 2 ** 30, TB: 2 ** 40 }[unit] ?? 1);
};

/** Shared memory that this machine cannot have: PostgreSQL does not start. */
function memoryFindings({ name, settings = {}, container }: ClusterPassport): Finding[] {
  const needed = inBytes(settings.shared_memory_size ?? settings.shared_buffers), all = (meminfo('MemTotal') + meminfo('SwapTotal')) * 1024;
  const pages = Number(settings.shared_memory_size_in_huge_pages ?? Math.ceil(needed / 1024 / (meminfo('Hugepagesize') || 2048)));
  const change = container ? '# lower shared_buffers in its configuration' : '# lower shared_buffers in its postgresql.conf after the restore, or give the machine more memory';
  const canMap = fs.readFileSync('/proc/sys/vm/overcommit_memory', 'utf8').trim() === '1' || needed <= all; // proc(5): the kernel refuses one mapping larger than everything there is
  if (settings.huge_pages === 'on' && pages > meminfo('HugePages_Total')) {
    return [finding(name, 'huge pages', { recorded: `huge_pages = on, ${pages} pages`, here: String(meminfo('HugePages_Total')), breaks: 'PostgreSQL does not start', mend: [`sysctl --write vm.nr_hugepages=${pages}`] })];
  }
  return canMap ? [] : [finding(name, 'memory', { recorded: `${size(needed)} shared`, here: `${size(all)} in all`, breaks: 'PostgreSQL does not start', mend: [change] })];
}

/** Places where the folders of a cluster cannot be made. */
function placeFindings({ name, container, dataDirectory, walFolder, tablespaces }: PlannedCluster): Finding[] {
  const places = container ? [dataDirectory] : [dataDirectory, walFolder, ...tablespaces.map((one) => one.location)];
  return [...new Set(places)].filter((place) => path.isAbsolute(place)).flatMap((place) => {
    let above = place;
    while (!fs.existsSync(above)) above = path.dirname(above);
    const facts = fs.statSync(above);
    let why = facts.isDirectory() ? '' : `${named(above)} is no folder`;
    try {
      fs.accessSync(above, fs.constants.W_OK);
    } catch (error) {
      why ||= `${named(above)} cannot be written: ${error instanceof Error ? error.message.replace(/, access.*/, '') : error}`;
    }
    return why ? [finding(name, `place ${named(place)}`, { recorded: 'a folder', here: why, breaks: 'it cannot be put back' })] : [];
  });
}

/**
 * Where PostgreSQL looks for its files, when that is another path than the one by which they are saved: of the data directory by Debian's configuration, of a tablespace by
 * its link. A link on the way there is in no archive, and where it leads may be something else: the empty cluster, above all, that Debian made with the package. Of what
 * configures it only what is not there at all counts: a certificate that was renewed since may well lie elsewhere.
 */
async function linkFindings({ postgres }: Manifest, { name, container, dataDirectory, configFolder, roots, tablespaces, configLinks = [] }: PlannedCluster): Promise<Finding[]> {
  const configured = configFolder && postgres.find((one) => one.dataDirectory === dataDirectory)?.settings?.data_directory, found: Finding[] = [];
  const pairs = container ? [] : [{ link: configured || '', location: dataDirectory }, ...tablespaces.filter((one) => roots.includes(one.location)), ...configLinks.filter((one) => !fs.existsSync(one.link))];
  for (const { link, location } of pairs.filter((one) => typeof one.link === 'string' && path.isAbsolute(one.link) && one.link !== one.location)) {
    const [leads = '', place] = (await look(['realpath', '--canonicalize-missing', '--zero', '--', link, location])).out.split('\0');
    const isInTheWay = fs.lstatSync(link, { throwIfNoEntry: false }) !== undefined, aside = configFolder ? [['systemctl', 'stop', '--', `postgresql@${name.replace('/', '-')}`]] : [];
    if (leads !== place) found.push(finding(name, `link ${named(link)}`, { recorded: `leads to ${named(location)}`, here: isInTheWay ? `leads to ${named(leads)}` : 'missing', breaks: 'PostgreSQL would not find what comes back, or run in something else',
      mend: [...(isInTheWay ? [...aside, ['mv', '-T', '--', link, `${link}.aside`]] : []), ['mkdir', '-p', '--', path.dirname(link)], ['ln', '-s', '-T', '--', location, link]].map(pasteable) }));
  }
  return found;
}

const NOT_FOR_POSTGRES = /^(libc6|glibc.*|musl|libicu.*|icu-libs|locales|locales-all|tzdata|borgbackup2?|nodejs|postgresql-common)(:.*)?$/;

/** The packages of the saved server that a cluster's programs and extensions came from, and those of them that are not among `installed`. */
export function neededPackages(manifest: Manifest, { version }: PlannedCluster, installed: Set<string> = new Set()): [all: string[], missing: string[]] {
  const names = Object.keys(manifest.packages.needed).filter((name) => !NOT_FOR_POSTGRES.test(name)).map((name) => name.split(':')[0]!)
    .filter((name) => /^[a-z0-9][a-z0-9+.-]+$/.test(name) && (!/postgresql-?(\w+-)?\d\d/.test(name) || name.includes(version)));
  const all = names.some((name) => name.includes('postgresql')) ? names : [`postgresql-${version}`, ...names];
  return [all, all.filter((name) => !installed.has(name))];
}

/** The commands that install packages here; with PostgreSQL's own package source where the distribution has not this version. */
export async function install(packages: string[], version: string): Promise<string[]> {
  if (fs.existsSync('/usr/bin/dnf')) return [pasteable(['dnf', 'install', ...packages])];
  const isKnown = (await look(['apt-cache', 'show', '--no-all-versions', `postgresql-${version}`])).code === 0;
  return ['apt-get update', ...(isKnown ? [] : ['apt-get install --yes postgresql-common', '/usr/share/postgresql-common/pgdg/apt.postgresql.org.sh -y']), pasteable(['apt-get', 'install', '--yes', ...packages])];
}

/** Who else has a cluster's port or socket. Clusters that lie where these will come back are stopped by the restore and do not count. */
export async function portFindings({ postgres }: Manifest, cluster: PlannedCluster, all: PlannedCluster[]): Promise<Finding[]> {
  const { port, name } = cluster;
  if (cluster.container || !/^\d{1,5}$/.test(port)) return [];
  const settings = postgres.find((one) => one.dataDirectory === cluster.dataDirectory)?.settings ?? {};
  const places = new Set(all.map((one) => deviceAndInode(one.dataDirectory)).filter((one) => one !== '')), everyone = processes();
  const isOurs = (pid: number) => everyone.some((one) => one.pid === pid && places.has(workingFolder(pid)));
  const found = (here: string, breaks: string, verdict: Finding['verdict']) => finding(name, `port ${port}`, { recorded: 'its own', here, breaks, verdict, mend: [`ss --listening --processes --numeric '( sport = :${port} )'   # who it is; stop it, or give it another port`] });
  for (const folder of (settings.unix_socket_directories ?? cluster.socketFolder).split(',').map((one) => one.trim().replace(/^"(.*)"$/, '$1')).filter((one) => one.startsWith('/'))) {
    const lock = path.join(folder, `.s.PGSQL.${port}.lock`), pid = Math.abs(parseInt(plainText(lock)));
    const alive = everyone.find((one) => one.pid === pid);
    if (alive && /^(postgres|postmaster|edb-postgres)$/.test(alive.program) && !isOurs(pid)) return [found(`${alive.program} (process ${pid}) has its socket in ${named(folder)}`, 'PostgreSQL does not start', 'refused')];
  }
  const listeners = listenersOf(Number(port)).filter((inode) => !everyone.some(({ pid }) => holds(pid, inode) && places.has(workingFolder(pid))));
  if (listeners.length === 0) return [];
  const holder = everyone.find(({ pid }) => listeners.some((inode) => holds(pid, inode)));
  const wanted = (settings.listen_addresses ?? 'localhost').split(',').map((one) => one.trim()).filter((one) => one !== '');
  const addresses = (await Promise.all(wanted.map(async (one) => (one === '*' ? ['0.0.0.0', '::'] : (await lookup(one, { all: true }).catch(() => [])).map(({ address }) => address))))).flat();
  const free = await Promise.all(addresses.map((address) => canListen(Number(port), address)));
  if (free.every((one) => one)) return [];
  const here = holder ? `${holder.program} (process ${holder.pid}) listens on it` : 'somebody listens on it';
  return [free.some((one) => one) ? found(here, 'PostgreSQL starts, but not on every address', 'note') : found(here, 'PostgreSQL does not start', 'refused')];
}

// The inodes of the sockets that listen on a TCP port (proc(5), /proc/net/tcp: state 0A).
function listenersOf(port: number): string[] {
  const text = ['tcp', 'tcp6'].map((one) => { try { return fs.readFileSync(`/proc/net/${one}`, 'utf8'); } catch { return ''; } }).join('');
  const hex = port.toString(16).toUpperCase().padStart(4, '0');
  return text.split('\n').map((line) => line.trim().split(/\s+/)).filter((fields) => fields[1]?.endsWith(`:${hex}`) && fields[3] === '0A').map((fields) => fields[9]!);
}

function holds(pid: number, inode: string): boolean {
  try {
    return fs.readdirSync(`/proc/${pid}/fd`).some((fd) => { try { return fs.readlinkSync(`/proc/${pid}/fd/${fd}`) === `socket:[${inode}]`; } catch { return false; } });
  } catch {
    return false;
  }
}

// Tried for a moment, and only where somebody else listens on the same port: addresses overlap in more ways than one wants to know.
function canListen(port: number, host: string): Promise<boolean> {
  return new Promise((resolve) => {
    const server = createServer();
    server.once('error', () => resolve(false));
    server.listen({ port, host, ipv6Only: true }, () => server.close(() => resolve(true)));
  });
}
