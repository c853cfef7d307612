// The judge: would these files work on this machine?
// It compares an archive's passport with what is here, before anything is touched, and says of each difference what it would
// break and the command that mends it. It only looks; what the programs can do it asks of an empty cluster of the same version,
// made in the sandbox and thrown away.
// Names out of an archive appear in the commands it prints, always quoted; it runs none of them.
import fs from 'node:fs';
import path from 'node:path';
import { Problem, lastLines, pasteable } from './say.ts';
import { askedToStop, look } from './shell.ts';
import type { ClusterPassport } from './passport.ts';
import type { Texts } from './questions.ts';
import type { Manifest } from './record.ts';
import { findPrograms } from './sandbox.ts';
import type { Programs } from './sandbox.ts';
import { askAbilities, startTrial } from './trial.ts';
import type { Abilities, Order, Trial } from './trial.ts';
import { collationFindings, ordersOf } from './collations.ts';
import { dictionaryFiles, dictionaryFindings, extensionFindings, extensionsOf, librariesOf, libraryFindings } from './installed.ts';
import { partnerFindings } from './ahead.ts';
import { finding, install, machineFindings, neededPackages, notJudged, portFindings } from './machine.ts';

/** 'refused': it cannot work here. 'after': it works once it is mended afterwards (`sql`, by database). 'note': it works; somebody should know. */
export type Finding = {
  cluster: string; // '' = the machine
  about: string; // 'collation', 'extension postgis', 'user app'
  recorded: string;
  here: string;
  breaks: string;
  verdict: 'refused' | 'after' | 'note';
  mend: string[]; // commands to type, in order
  sql: { database: string; text: string }[]; // of 'after': what the restore can do itself
};
export type PlannedCluster = Manifest['plan']['clusters'][number];
type Case = { cluster: PlannedCluster; told: ClusterPassport };

const OTHER_MAJOR = 'files of one major version are nothing to another';
const VERDICTS = ['refused', 'after', 'note'];

/**
 * Given an archive's manifest, the clusters that are meant, and a folder for the empty cluster, returns what differs, the worst first; [] = all is
 * as it was. What could not be judged is a 'note'. Throws only when somebody asked to stop.
 */
export async function judge(manifest: Manifest, clusters: PlannedCluster[], options: { scratch: string }): Promise<Finding[]> {
  const findings = await machineFindings(manifest, clusters), groups = new Map<string, { programs: Programs; cases: Case[] }>();
  for (const cluster of clusters) {
    findings.push(...await portFindings(manifest, cluster, clusters));
    const told = manifest.postgres.find((one) => one.dataDirectory === cluster.dataDirectory), box = await containerHere(cluster), programs = await programsFor(cluster, manifest, box);
    if (!programs) findings.push(await noPrograms(manifest, cluster));
    else if (cluster.container && !box) findings.push(noContainer(manifest, cluster));
    if (told) findings.push(...partnerFindings(told, psqlWords(cluster, told)));
    if (programs && told) groups.set(JSON.stringify(programs), { programs, cases: [...groups.get(JSON.stringify(programs))?.cases ?? [], { cluster, told }] });
    if (!told?.answers) findings.push(notJudged(cluster.name, 'its databases', 'the cluster did not answer when it was saved: its extensions, locales and collations are not on record'));
  }
  for (const { programs, cases } of groups.values()) findings.push(...await askPrograms(manifest, programs, cases, options.scratch));
  return findings.sort((one, other) => VERDICTS.indexOf(one.verdict) - VERDICTS.indexOf(other.verdict));
}

// The image of the cluster's container, if that is here.
async function containerHere({ container }: PlannedCluster): Promise<string> {
  return /^[a-zA-Z0-9][\w.-]*$/.test(container) ? (await look(['docker', 'inspect', '--type=container', '--format={{.Image}}', container])).out.trim() : '';
}

// A container that is here runs in its own image, whatever image the archive speaks of.
async function programsFor(cluster: PlannedCluster, manifest: Manifest, image: string): Promise<Programs | null> {
  if (image) return { version: cluster.version, binaries: cluster.binaries, image };
  const programs = await findPrograms(cluster, manifest);
  return cluster.container && !programs?.image ? null : programs;
}

function noContainer(manifest: Manifest, { name, container }: PlannedCluster): Finding {
  const box = manifest.containers.find((one) => one.name === container);
  const compose = box?.composeService ? [pasteable(['docker', 'compose', ...box.composeFiles.flatMap((file) => ['--file', file]), '--project-name', box.composeProject, 'up', '--no-start', box.composeService])] : [];
  return finding(name, `container ${container}`, { recorded: box?.image ?? '', here: 'missing', breaks: 'its files come back, but nothing runs on them', verdict: 'after', mend: compose.length > 0 ? compose : ['# make the container again, with the mounts that record/manifest.json of the archive tells'] });
}

async function noPrograms(manifest: Manifest, cluster: PlannedCluster): Promise<Finding> {
  const box = manifest.containers.find((one) => one.name === cluster.container);
  if (cluster.container) {
    const name = box?.imageDigests[0] ?? '', docker = (await look(['docker', 'version'])).code;
    return finding(cluster.name, 'image', { recorded: name || box?.image || '', here: docker === 0 ? 'missing' : docker === 127 ? 'no Docker' : 'Docker does not answer', breaks: 'the container cannot be started',
      mend: [...(docker === 127 ? ['apt-get install --yes docker.io'] : []), ...(name ? [pasteable(['docker', 'pull', name])] : ['# this image was made on the saved server: build it again as there, or bring it with `docker save`']),
        ...(name && box?.image ? [pasteable(['docker', 'tag', name, box.image])] : [])] });
  }
  const here = ['/usr/lib/postgresql', '/usr'].flatMap((folder) => (fs.existsSync(folder) ? fs.readdirSync(folder) : [])).flatMap((name) => /^(?:pgsql-)?(\d\d)$/.exec(name)?.[1] ?? []);
  const [packages] = neededPackages(manifest, cluster);
  return finding(cluster.name, 'PostgreSQL', { recorded: cluster.version, here: here.join(', ') || 'none', mend: await install(packages, cluster.version),
    breaks: `${OTHER_MAJOR}${fs.existsSync('/etc/debian_version') ? `; Debian makes and starts a cluster ${cluster.version}/main of its own with the packages, which the restore moves aside` : ''}` });
}

/** Everything that only the programs themselves can say, of all clusters that run by them, from one empty cluster. */
async function askPrograms(manifest: Manifest, programs: Programs, cases: Case[], scratch: string): Promise<Finding[]> {
  let trial: Trial | null = null;
  try {
    trial = await startTrial(programs, scratch);
    if (!trial) return cases.map(({ told }) => finding(told.name, 'PostgreSQL', { recorded: told.version, here: `no ${path.join(programs.binaries, 'initdb')}${programs.image ? ' in the image of the container here' : ''}`, breaks: OTHER_MAJOR }));
    const abilities = await askAbilities(trial, {
      extensions: [...new Set(cases.flatMap(({ told }) => extensionsOf(told).map((one) => one.name)))],
      libraries: [...new Set(cases.flatMap(({ told }) => librariesOf(told).map((one) => one.library)))],
      settings: cases.flatMap(({ told }) => placeSettings(told)), files: cases.flatMap(({ told }) => dictionaryFiles(told).map((one) => one.names)),
    });
    const orders = new Map<string, Order>(), libc = trial.system.libc ?? '';
    for (const { told } of cases) await ordersOf(trial, told, orders);
    const files = new Map<ClusterPassport, Finding[]>();
    for (const { cluster, told } of cases) files.set(told, await withMeans(manifest, cluster, told, [...libraryFindings(cluster, told, abilities), ...extensionFindings(told, abilities), ...dictionaryFindings(cluster, told, abilities)]));
    return cases.flatMap(({ cluster, told }) => [
      ...compiledFindings(told, abilities), ...files.get(told)!, ...settingFindings(cluster, told, abilities),
      ...collationFindings(told, orders, { there: (told.system ?? manifest.host).libc, here: libc }, psqlWords(cluster, told), (locale) => makeLocale(locale, cluster)),
    ]);
  } catch (error) {
    if (!(error instanceof Problem) || askedToStop()) throw error;
    const why = [error.message, lastLines(error.facts.said ?? '', 2)].filter((one) => one !== '').join(': ');
    return cases.map(({ cluster }) => notJudged(cluster.name, 'extensions, locales and collations', `no empty cluster can be asked: ${why}`));
  } finally {
    await trial?.end();
  }
}

// What is fixed when PostgreSQL is compiled, as pg_controldata and as pg_control_system() and pg_control_init() call it: the server refuses files that differ in any.
const COMPILED: Texts = { 'pg_control version number': 'pg_control_version', 'Catalog version number': 'catalog_version_no', 'Maximum data alignment': 'max_data_alignment', 'Database block size': 'database_block_size',
  'Blocks per segment of large relation': 'blocks_per_segment', 'WAL block size': 'wal_block_size', 'Maximum length of identifiers': 'max_identifier_length', 'Maximum columns in an index': 'max_index_columns',
  'Maximum size of a TOAST chunk': 'max_toast_chunk_size', 'Size of a large-object chunk': 'large_object_chunk_size', 'Float8 argument passing': 'float8_pass_by_value' };

function compiledFindings(told: ClusterPassport, abilities: Abilities): Finding[] {
  const found: Finding[] = [], number = Math.floor(abilities.number / 10000);
  const recordedMinor = /^PostgreSQL \d+\.(\d+)/.exec(told.serverVersion ?? '')?.[1];
  if (String(number) !== told.version) return [finding(told.name, 'PostgreSQL', { recorded: told.version, here: String(number), breaks: OTHER_MAJOR })];
  for (const [label, name] of Object.entries(COMPILED)) {
    const plain = (value: unknown) => String(value).replace('by value', 'true').replace('by reference', 'false');
    const recorded = told.controlData[label] ?? told.controlData[name], here = abilities.control[name];
    if (recorded === undefined || here === undefined || plain(recorded) === plain(here)) continue;
    found.push(finding(told.name, label.toLowerCase(), { recorded: String(recorded), here: String(here), breaks: 'this PostgreSQL is compiled otherwise and refuses the files', mend: ['# install the same build of PostgreSQL'] }));
  }
  if (recordedMinor && Number(recordedMinor) > abilities.number % 10000) {
    found.push(finding(told.name, 'minor version', { recorded: `${told.version}.${recordedMinor}`, here: abilities.version, breaks: 'it works, without the repairs made since', verdict: 'note', mend: [`apt-get install --only-upgrade postgresql-${told.version}`] }));
  }
  return found;
}

// How to bring what is missing: the packages of the saved server that are not here, or, when all are, these same ones anew.
async function withMeans(manifest: Manifest, cluster: PlannedCluster, told: ClusterPassport, findings: Finding[]): Promise<Finding[]> {
  if (findings.length === 0) return [];
  const digest = manifest.containers.find((one) => one.name === cluster.container)?.imageDigests[0];
  const [all, missing] = neededPackages(manifest, cluster, new Set((await look(['dpkg-query', '--show', '--showformat', '${db:Status-Abbrev}\t${Package}\n'])).out.split('\n').flatMap((line) => (line.startsWith('ii') ? [line.split('\t')[1]!] : []))));
  const packages = missing.length > 0 ? await install(missing, cluster.version) : [pasteable(['apt-get', 'install', '--reinstall', '--yes', ...all])];
  const unowned = (told.packages ?? manifest.packages).unowned;
  const means = ({ about }: Finding): string[] => {
    const file = unowned.find((one) => path.basename(one) === `${path.basename(about.replace(/^library /, ''))}.so`);
    if (file) return [`# it came in no package: copy ${pasteable([file])} from the saved server or its backup`];
    return cluster.container ? [digest ? pasteable(['docker', 'pull', digest]) : '# make the container from the image it had'] : packages;
  };
  return findings.map((one) => ({ ...one, mend: one.mend.length > 0 ? one.mend : means(one) }));
}

/** The settings whose values are names of something on the machine: PostgreSQL does not start with one it does not know. */
function placeSettings(told: ClusterPassport): [string, string][] {
  return Object.entries(told.settings ?? {}).filter(([name]) => /^(lc_(messages|monetary|numeric|time)|timezone|log_timezone)$/i.test(name));
}

function settingFindings(cluster: PlannedCluster, told: ClusterPassport, abilities: Abilities): Finding[] {
  return placeSettings(told).filter(([name, value]) => abilities.settings[`${name}=${value}`]).map(([name, value]) => finding(told.name, `setting ${name}`, { recorded: value, here: 'not known here',
    breaks: 'PostgreSQL does not start', mend: /zone/i.test(name) ? ['apt-get install --yes tzdata', 'apt-get install --yes tzdata-legacy   # Debian 13 and newer keep old names there'] : makeLocale(value, cluster) }));
}

/** The commands that make a locale here. */
function makeLocale(locale: string, cluster: PlannedCluster): string[] {
  const [, language, codeset, modifier = ''] = /^([a-z]{2,3}_[A-Z]{2})(?:\.([\w-]+))?(@\w+)?$/.exec(locale) ?? [];
  if (cluster.container) return ['# the image lacks it: make the container from the image it had'];
  if (!language) return ['apt-get install --yes locales-all'];
  if (fs.existsSync('/usr/bin/dnf')) return [`dnf install glibc-langpack-${language.split('_')[0]}`];
  const charset = !codeset ? 'ISO-8859-1' : /^utf-?8$/i.test(codeset) ? 'UTF-8' : codeset.toUpperCase().replace(/^ISO-?8859-?/, 'ISO-8859-');
  return ['apt-get install --yes locales', `echo '${language}${codeset ? `.${charset}` : ''}${modifier} ${charset}' >> /etc/locale.gen && locale-gen`];
}

/** The words before `-d DATABASE` that ask this cluster, once it runs, as its superuser. */
function psqlWords(cluster: PlannedCluster, told: ClusterPassport): string[] {
  const superuser = told.roles?.find((one) => one.rolsuper)?.rolname;
  if (cluster.container) return ['docker', 'exec', '--user', String(cluster.uid), cluster.container, 'psql', ...(superuser ? ['-U', superuser] : [])];
  return ['runuser', '-u', cluster.owner, '--', 'psql', ...(cluster.socketFolder ? ['-h', cluster.socketFolder] : []), ...(cluster.port ? ['-p', cluster.port] : [])];
}
