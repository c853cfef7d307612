// The passport: everything needed to build a machine on which the saved files work.
// And to say no on one where they would not. Gathered while the databases still answer, from them, from their files, and from
// the machine or container they run in. It only looks. A fact that cannot be had is a warning, never a reason for no backup.
// Of a container's environment it holds the names only.
import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { fourAtATime, goOn, look } from './shell.ts';
import { Problem, lastLines, named, say, size, warn } from './say.ts';
import { borgVersion } from './borg.ts';
import { controlState } from './postmaster.ts';
import { asOwner } from './postgres.ts';
import type { Cluster } from './postgres.ts';
import { activityQuestion, askCluster, clusterQuestions, databaseQuestions, homeOf, orderFingerprint, placeOf, quotedName, rootOf } from './questions.ts';
import type { AnyFacts, Texts } from './questions.ts';

export type UsedCollation = {
  schema: string; name: string; provider: string; locale: string | null; rules: string | null; deterministic: boolean | null;
  recorded: string | null; actual: string | null; indexes: string[]; partitionedTables: string[]; orderFingerprint: string;
};
export type DatabaseFacts = {
  extensions: { name: string; version: string; schema: string }[]; libraries: string[]; collations: UsedCollation[];
  relations: Record<string, number>; rows: Record<string, number | null>; estimatedRows: Record<string, number>;
  sequences: { name: string; last: string | null }[]; unlogged: string[]; invalidIndexes: string[]; largeObjects: number;
  activity: Texts; publications: AnyFacts[]; foreignServers: AnyFacts[]; eventTriggers: string[]; dictionaries: AnyFacts[];
};
export type DatabasePassport = {
  name: string; owner: string; encoding: string; collate: string; ctype: string; provider: string; locale: string | null;
  rules: string | null; recorded: string | null; actual: string | null; bytes: number; tablespace: string; template: boolean;
  connectable: boolean; orderFingerprint: string;
} & Partial<DatabaseFacts>;
export type ServerFacts = {
  serverVersion: string; startedAt: string; superuser: boolean; settings: Texts; settingSources: Texts; settingErrors: AnyFacts[];
  pendingRestart: string[]; preloadLibraries: Texts; configurationFiles: string[]; hba: AnyFacts[]; roleSettings: AnyFacts[];
  tablespaceSizes: AnyFacts[]; roles: AnyFacts[]; slots: AnyFacts[]; standbys: AnyFacts[]; subscriptions: AnyFacts[];
  preparedTransactions: AnyFacts[]; recovery: AnyFacts; archiver: AnyFacts; wal: { files: number; bytes: number };
};
export type SystemFacts = { osRelease: Texts; kernel: string; libc: string; pageSize: string; locales: string[] };
export type PackageFacts = { all: Texts; needed: Texts; unowned: string[] };
export type ClusterPassport = Omit<Cluster, 'pid'> & {
  answers: boolean; systemIdentifier: string; controlData: AnyFacts; pgConfig: Texts; icu: string;
  databases: DatabasePassport[]; system?: SystemFacts; packages?: PackageFacts;
} & Partial<ServerFacts>;
export type ContainerPassport = {
  name: string; id: string; image: string; imageId: string; imageDigests: string[]; composeProject: string; composeService: string;
  composeFolder: string; composeFiles: string[]; mounts: AnyFacts[]; restartPolicy: string; environmentNames: string[]; user: string;
  stopSignal: string; stopTimeoutSeconds: number | null; hasHealthCheck: boolean; networks: string[]; ports: string[];
};
export type Passport = {
  host: SystemFacts & { name: string; architecture: string; timeZone: string; users: AnyFacts[]; groups: AnyFacts[] };
  packages: PackageFacts & { borg: string; node: string };
  postgres: ClusterPassport[];
  containers: ContainerPassport[];
};

const HELD_BACK_BYTES = 500e6; // of WAL, by a slot that nobody uses

// The facts of every database, a few at a time, each with the order its collations sort in (asked once for each definition).
async function databasesOf(cluster: Cluster, rows: DatabasePassport[]): Promise<DatabasePassport[]> {
  const known = new Map<string, Promise<string>>();
  const orderOf = (database: string, definition: unknown[], collation?: string): Promise<string> => {
    const key = JSON.stringify(definition);
    if (!known.has(key)) known.set(key, orderFingerprint(cluster, database, collation));
    return known.get(key)!;
  };
  const complete = async (row: DatabasePassport): Promise<DatabasePassport> => {
    if (!row.connectable) return { ...row, orderFingerprint: '' };
    const facts = { ...await askCluster(cluster, row.name, activityQuestion), ...await askCluster(cluster, row.name, databaseQuestions) }; // in this order
    const own = await orderOf(row.name, [row.encoding, row.provider, row.collate, row.ctype, row.locale, row.rules]);
    for (const one of facts.collations ?? []) {
      const { schema, name, provider, locale, rules, deterministic } = one;
      const quoted = [schema, name].map(quotedName).join('.');
      if (provider === 'd') Object.assign(one, { provider: row.provider, locale: row.locale ?? row.collate, recorded: row.recorded, actual: row.actual, orderFingerprint: own });
      else one.orderFingerprint = await orderOf(row.name, [row.encoding, provider, locale, rules, deterministic], quoted);
    }
    return { ...row, ...facts, orderFingerprint: own };
  };
  return fourAtATime(rows, complete);
}

// `NAME = value`, `NAME="value"` or `Name:  value`, one a line.
function pairsIn(text: string, sign: string): Texts {
  const lines = text.split('\n').filter((line) => line.includes(sign));
  return Object.fromEntries(lines.map((line) => [line.slice(0, line.indexOf(sign)).trim(), line.slice(line.indexOf(sign) + 1).trim().replace(/^(["'])(.*)\1$/, '$2')]));
}

async function clusterPassport(cluster: Cluster): Promise<ClusterPassport> {
  const { pid, ...known } = cluster;
  const root = rootOf(cluster), place = [...(cluster.container || cluster.words ? [] : asOwner(cluster)), ...placeOf(cluster)]; // whoever runs a cluster names its programs: root runs none of them
  let control = { state: 'unknown', systemIdentifier: '' };
  try {
    control = controlState(cluster.dataDirectory);
  } catch (error) {
    warn(`the control file of postgres ${cluster.name} cannot be read: ${error}`);
  }
  if (!pid) say(`postgres ${cluster.name} does not run: its passport holds only what its files tell`);
  let facts = pid ? await askCluster(cluster, await homeOf(cluster), clusterQuestions(Number(cluster.version))) : {};
  if (facts.control && control.systemIdentifier && facts.control.system_identifier !== control.systemIdentifier) {
    warn(`on the socket of postgres ${cluster.name} another cluster answers: the passport lacks its facts`);
    facts = {};
  }
  const { control: controlTold, pgConfig: configTold, databases, ...server } = facts;
  const ask = (name: string, ...words: string[]) => look([...place, 'env', 'LC_ALL=C', path.join(cluster.binaries || `/usr/lib/postgresql/${cluster.version}/bin`, name), ...words], { cwd: '/' });
  const controlData = await ask('pg_controldata', '-D', cluster.insideDataDirectory || cluster.dataDirectory);
  const icu = /libicui18n\S* => (\/\S+)/.exec((await look([...place, 'ldd', path.join(cluster.binaries, 'postgres')], { cwd: '/' })).out)?.[1] ?? '';
  for (const slot of server.slots ?? []) warnOfSlot(cluster.name, slot);
  const passport: ClusterPassport = {
    ...known, ...server,
    answers: server.serverVersion !== undefined,
    systemIdentifier: control.systemIdentifier,
    controlData: controlData.code === 0 ? pairsIn(controlData.out, ':') : controlTold ?? control,
    pgConfig: configTold ?? pairsIn((await ask('pg_config')).out, '='),
    icu: path.basename(icu && fs.existsSync(root + icu) ? fs.realpathSync(root + icu) : icu), // libicui18n.so.72 is a link to libicui18n.so.72.1
    databases: await databasesOf(cluster, databases ?? []),
  };
  if (cluster.container && pid) Object.assign(passport, { system: await systemOf(place), packages: await packagesOf(place, filesInUse(cluster, passport)) });
  return passport;
}

// While a subscriber or standby is away (for its own backup, too) its slot keeps WAL for it, without end or up to max_slot_wal_keep_size; beyond that it is lost.
function warnOfSlot(cluster: string, { slot_name: slot, active, retainedBytes, wal_status: status }: AnyFacts): void {
  const name = `replication slot ${named(String(slot))} of ${named(cluster)}`, held = Number(retainedBytes), drop = `select pg_drop_replication_slot('${slot}')`;
  if (status === 'lost') return warn(`${name} has lost WAL that its subscriber or standby still needs, because of max_slot_wal_keep_size: that one has to be made anew; ${drop}`);
  if (status === 'unreserved') return warn(`${name} is about to lose WAL that its subscriber or standby still needs: bring that one back now, or raise max_slot_wal_keep_size`);
  if (active === false && held > HELD_BACK_BYTES) warn(`${name}, which nobody uses, holds back ${size(held)} of WAL: it is saved every night, and may fill the disk (max_slot_wal_keep_size is the limit). Forgotten? ${drop}`);
}

// What of PostgreSQL's own files a cluster needs beside its data: the server, libraries in use, extensions, dictionaries.
function filesInUse(cluster: Cluster, { pgConfig, preloadLibraries, databases }: ClusterPassport): string[] {
  const folder = pgConfig.PKGLIBDIR ?? '', share = pgConfig.SHAREDIR ?? '', root = rootOf(cluster);
  const preloaded = Object.values(preloadLibraries ?? {}).flatMap((list) => list.split(',').map((one) => one.trim().replaceAll('"', '')));
  const libraries = [...preloaded, ...databases.flatMap((one) => one.libraries ?? [])].filter((one) => one !== '');
  const extensions = databases.flatMap((one) => one.extensions ?? []).map(({ name }) => path.join(share, 'extension', `${name}.control`));
  const words = path.join(share, 'tsearch_data');
  const dictionaries = share && fs.existsSync(root + words) ? fs.readdirSync(root + words).map((name) => path.join(words, name)) : [];
  const files = [path.join(cluster.binaries, 'postgres'), ...extensions, ...dictionaries,
    ...libraries.map((one) => path.resolve(folder, one.replace(/^\$libdir\//, '')).replace(/(\.so)?$/, '.so'))];
  return [...new Set(files)].filter((file) => fs.existsSync(root + file));
}

// `list` names every installed package, `line` finds name and version in it; `owners`, given files, names their packages.
const PACKAGERS = [
  { list: ['dpkg-query', '--show', '--showformat', '${db:Status-Abbrev}${binary:Package}\t${Version}\n'], line: /^ii (\S+)\t(\S+)$/gm,
    owners: ['dpkg-query', '--search'] },
  { list: ['rpm', '--query', '--all', '--queryformat', '%{NAME}\t%{VERSION}-%{RELEASE}\n'], line: /^(\S+)\t(\S+)$/gm,
    owners: ['rpm', '--query', '--queryformat', '%{NAME}: /\n', '--file'] },
  { list: ['apk', 'info', '--verbose'], line: /^(\S+)-(\d[^-\s]*-r\d+)$/gm, owners: [] },
];
const NEEDED_PACKAGES = /^(libc6|glibc|glibc-.*|musl|libicu\d*|icu-libs|locales|locales-all|tzdata|borgbackup2?|nodejs|postgresql-common)(:.*)?$/;

// Every package with its version; those that are needed by name or because they own one of FILES; the FILES that no package owns.
async function packagesOf(place: string[], files: string[]): Promise<PackageFacts> {
  for (const { list, line, owners } of PACKAGERS) {
    const { code, out } = await look([...place, ...list]);
    if (code !== 0) continue;
    const all: Texts = Object.fromEntries([...out.matchAll(line)].map(([, name, version]) => [name, version]));
    const needed = new Set(Object.keys(all).filter((name) => NEEDED_PACKAGES.test(name)));
    let unowned = files;
    if (owners.length > 0 && files.length > 0) {
      const { out: owned } = await look([...place, ...owners, ...files]); // all in one call: each reads the whole database
      for (const [, names] of owned.matchAll(/^(?!diversion )([^/\n]+): \//gm)) names!.split(', ').forEach((name) => needed.add(name));
      unowned = files.filter((file) => (list[0] === 'rpm' ? owned.includes(`file ${file} is not owned`) : !owned.includes(`: ${file}\n`)));
    }
    return { all, needed: Object.fromEntries([...needed].sort().map((name) => [name, all[name] ?? ''])), unowned };
  }
  return { all: {}, needed: {}, unowned: files };
}

async function systemOf(place: string[]): Promise<SystemFacts> {
  const told = async (...argv: string[]) => (await look([...place, ...argv])).out.trim();
  const [osRelease, kernel, glibc, pageSize, locales] = await Promise.all([
    told('cat', '/etc/os-release'), told('uname', '-srm'), told('getconf', 'GNU_LIBC_VERSION'), told('getconf', 'PAGE_SIZE'), told('locale', '-a'),
  ]);
  const libc = glibc || lastLines((await look([...place, 'ldd'])).said, 3).replaceAll('\n', ' '); // musl tells its version only so
  return { osRelease: pairsIn(osRelease, '='), kernel, libc, pageSize, locales: locales.split('\n').filter((one) => one !== '') };
}

// The owners of the saved files: borg keeps names, but a number is what lies on the disk, and a container's has no name here.
async function ownersOf(roots: string[]): Promise<{ users: AnyFacts[]; groups: AnyFacts[] }> {
  const seen = { users: new Set<string>(), groups: new Set<string>() };
  const onLine = (line: string) => {
    const [user = '', group = ''] = line.split(':');
    seen.users.add(user);
    seen.groups.add(group);
  };
  const done = roots.length > 0 ? await look(['find', ...roots, '-printf', '%U:%G\\n'], { seconds: 900, keepBytes: 0, onLine }) : null;
  if (done?.timedOut) warn('the owners of the saved files were not all seen in 15 minutes: the passport may lack some');
  const namesOf = async (database: string, ids: Set<string>): Promise<AnyFacts[]> => {
    const numbers = [...ids].map(Number).sort((one, other) => one - other);
    const { out } = numbers.length > 0 ? await look(['getent', database, ...numbers.map(String)]) : { out: '' }; // those it does not know are left out
    const known = new Map(out.split('\n').map((line) => line.split(':')).map((fields) => [Number(fields[2]), fields]));
    return numbers.map((id) => {
      const [name = '', , , group, , home, shell] = known.get(id) ?? [];
      return database === 'passwd' ? { id, name, group: group ? Number(group) : null, home: home ?? '', shell: shell ?? '' } : { id, name };
    });
  };
  return { users: await namesOf('passwd', seen.users), groups: await namesOf('group', seen.groups) };
}

async function containersOf(names: string[]): Promise<ContainerPassport[]> {
  if (names.length === 0) return [];
  const done = await look(['docker', 'inspect', '--type=container', ...names]); // one that has just gone makes exit code 1, the others are told
  const found: AnyFacts[] = JSON.parse(done.out || '[]');
  if (done.code !== 0) warn(`not every container is in the passport: ${lastLines(done.said, 2)}`);
  const images = await look(['docker', 'image', 'inspect', ...new Set(found.map((one) => one.Image))]);
  const digests = new Map<string, string[]>(JSON.parse(images.out || '[]').map((image: AnyFacts) => [image.Id, image.RepoDigests ?? []]));
  return found.map(({ Name, Id, Image, Config, HostConfig, Mounts, NetworkSettings }) => {
    const label = (name: string): string => Config.Labels?.[`com.docker.compose.${name}`] ?? '';
    return {
      name: Name.replace(/^\//, ''), id: Id, image: Config.Image, imageId: Image, imageDigests: digests.get(Image) ?? [],
      composeProject: label('project'), composeService: label('service'), composeFolder: label('project.working_dir'),
      composeFiles: label('project.config_files').split(',').filter((file) => file !== ''),
      mounts: Mounts.map((one: AnyFacts) => ({ type: one.Type, name: one.Name ?? '', source: one.Source, destination: one.Destination, writable: one.RW })),
      restartPolicy: HostConfig.RestartPolicy?.Name ?? '', user: Config.User,
      environmentNames: (Config.Env ?? []).map((one: string) => one.split('=')[0]), // the values can be secrets
      stopSignal: Config.StopSignal ?? '', stopTimeoutSeconds: Config.StopTimeout ?? null,
      hasHealthCheck: Boolean(Config.Healthcheck) && Config.Healthcheck.Test?.[0] !== 'NONE',
      networks: Object.keys(NetworkSettings?.Networks ?? {}), ports: Object.keys(HostConfig.PortBindings ?? {}),
    };
  });
}

/**
 * Given all clusters to be saved, the names of the containers and every path to be saved, returns the passport.
 * Looks only. Never throws for a fact that cannot be had: warns of it, and leaves it out.
 */
export async function passportOf(clusters: Cluster[], containers: string[], roots: string[]): Promise<Passport> {
  const [system, owners, postgres, boxes, borg] = await Promise.all([
    orLacking('facts of this machine', systemOf([]), { osRelease: {}, kernel: '', libc: '', pageSize: '', locales: [] }),
    orLacking('the owners of the saved files', ownersOf(roots), { users: [], groups: [] }),
    Promise.all(clusters.map((one) => orLacking(`postgres ${one.name}`, clusterPassport(one),
      { ...one, answers: false, systemIdentifier: '', controlData: {}, pgConfig: {}, icu: '', databases: [] }))),
    orLacking('the containers', containersOf(containers), []),
    borgVersion().catch(() => ''),
  ]);
  const files = clusters.flatMap((cluster, i) => (cluster.container ? [] : filesInUse(cluster, postgres[i]!)));
  const packages = await packagesOf([], [...new Set(files)]);
  if (Object.keys(packages.all).length === 0) warn('the passport lacks the packages of this machine: neither dpkg-query, rpm nor apk lists them');
  return {
    host: { name: os.hostname(), architecture: os.arch(), timeZone: Intl.DateTimeFormat().resolvedOptions().timeZone, ...system, ...owners },
    packages: { ...packages, borg, node: process.version.slice(1) },
    postgres,
    containers: boxes,
  };
}

// Whatever goes wrong here costs one fact, not the night. Only a wish to stop goes through.
async function orLacking<T>(what: string, gathered: Promise<T>, otherwise: T): Promise<T> {
  try {
    return await gathered;
  } catch (error) {
    goOn();
    warn(`the passport lacks ${what}: ${error instanceof Problem ? error.message : error}`);
    return otherwise;
  }
}
