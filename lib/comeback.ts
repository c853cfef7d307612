// What would come back: the parts of an archive that are meant, and every command in order.
// With what has to stop for it here; worked out by looking, before anything is changed. It is plain data, printed by --dry-run,
// and what the restore in place follows. Nothing that an archive says of itself is believed (see PLACES). What is stopped and
// started comes from this machine's own settings; where there are none, names of units, containers and clusters come from the
// archive. Changes nothing.
import fs from 'node:fs';
import path from 'node:path';
import { Problem, answer, count, mode, named, oneLine, pasteable, say, sayBlock, size, warn, warnings } from './say.ts';
import { hasSystemd, look } from './shell.ts';
import { isBelow, temporaryFolder } from './files.ts';
import { processes } from './processes.ts';
import { isPartName } from './rules.ts';
import type { Settings } from './settings.ts';
import type { Loaded } from './check.ts';
import type { Part } from './units.ts';
import { containerParts, findContainers } from './containers.ts';
import type { Container } from './containers.ts';
import { clusterPart, describeCluster, findClusters } from './postgres.ts';
import type { Cluster } from './postgres.ts';
import { listArchives, readFromArchive } from './archives.ts';
import { findPart, serverName } from './plan.ts';
import type { Root } from './ways.ts';
import { isThere, swapsFor } from './swap.ts';
import { isLookedAt } from './runbook.ts';
import { soundManifest } from './record.ts';
import type { Manifest } from './record.ts';
import { archiveMeant, asPattern, warnUnlessOurs } from './list.ts';
import { findPrograms } from './sandbox.ts';
import { judge } from './judge.ts';
import type { Finding } from './judge.ts';
import { LISTING, countPieces, extractions, findPieces, staged, stagingsOf, whereIs } from './places.ts';
import type { Piece } from './places.ts';

export type InPlace = { bare: boolean; reindex: boolean; stateFolder: string };
export type ArchivedCluster = Manifest['plan']['clusters'][number];
/** A restore in place, worked out before anything is changed: printed by --dry-run, and what the run follows. */
export type Comeback = {
  archive: string; stamp: string; manifest: Manifest; settings: Settings; how: InPlace; isWhole: boolean;
  pieces: Piece[]; clusters: ArchivedCluster[]; // that come back
  findings: Finding[];
  parts: Part[]; // that run here and are stopped, in this order
  asleep: Part[]; // that do not run here, ran when the archive was made, and can run
};

const SYSTEM_FOLDERS = ['/', '/bin', '/boot', '/dev', '/etc', '/lib', '/lib32', '/lib64', '/proc', '/root', '/run', '/sbin', '/sys', '/tmp', '/usr', '/var', '/var/cache', '/var/lib', '/var/log', '/var/spool',
  '/var/lib/containerd', '/var/lib/docker', '/etc/group', '/etc/gshadow', '/etc/passwd', '/etc/shadow'];
const NEVER = /^\/(bin|boot|dev|lib|lib32|lib64|proc|run|sbin|sys|usr\/(bin|sbin|lib|lib32|lib64))(\/|$)/;

/** Look at archive and machine. Changes nothing. */
export async function workOut({ settings, file }: Loaded, [name = '', ...words]: string[], how: InPlace, startedAt: string): Promise<Comeback> {
  const archives = await listArchives(settings, how.bare ? '' : serverName(settings)), archive = archiveMeant(archives, name);
  if (name === 'latest') warnUnlessOurs(settings.stateFolder, archives, archive);
  const manifest = { ...soundManifest(await readFromArchive(settings, archive, 'record/manifest.json'), archive), archive }; // a record may claim any name
  const stamp = startedAt.slice(0, 19).replaceAll(':', '');
  const { keyFile, passphraseFile, sshKey, knownHostsFile } = settings;
  const own = [process.execPath, process.argv[1] ?? '', file, keyFile, passphraseFile, sshKey, knownHostsFile].filter((one) => fs.existsSync(one));
  const pieces = await findPieces(rootsMeant(manifest, words, [how.stateFolder, ...own].flatMap((one) => [path.resolve(one), realOr(one)])), stamp);
  await countPieces(settings, archive, pieces);
  const clusters = manifest.plan.clusters.filter((one) => whereIs(pieces, one.dataDirectory, (piece) => piece.place) !== '');
  const scratch = temporaryFolder(), findings = await judge(manifest, clusters, { scratch }).finally(() => fs.rmSync(scratch, { recursive: true, force: true })); // now, not at the end: we may be killed
  const comeback: Comeback = { archive, stamp, manifest, settings, how, isWhole: words.length === 0, pieces, clusters, findings, parts: [], asleep: [] };
  return { ...comeback, ...await partsOf(comeback) };
}

/**
 * Given the words after --in-place, returns the roots that are meant: when there are none, all but the system's folders, what is
 * the machine's own (see isLookedAt), and those with our own files. Throws Problem (64) for a part that is not in the archive.
 */
function rootsMeant(manifest: Manifest, words: string[], own: string[]): Root[] {
  const kinds = ['postgres', 'cluster', 'compose', 'container', 'volume', 'folder'], names: string[] = [];
  for (const word of words) {
    if (kinds.includes(names[names.length - 1] ?? '')) names.push(`${names.pop()} ${word}`);
    else names.push(word);
  }
  const { roots } = manifest.plan, chosen = names.length === 0 ? roots : names.flatMap((name) => rootsOfPart(manifest, name));
  const isOwn = (folder: string) => own.some((file) => isBelow(file, folder));
  const isNamed = ({ why }: Root) => names.some((name) => name === why || `volume ${name}` === why);
  const stays = chosen.filter((root) => !isNamed(root) && isThere(root.path) && isLookedAt(root, manifest));
  const usable = chosen.filter((root) => !stays.includes(root) && (/^volume [^/]/.test(root.why) || !(SYSTEM_FOLDERS.includes(root.path) || NEVER.test(root.path) || isOwn(root.path))));
  for (const one of chosen.filter((root) => !usable.includes(root))) {
    const text = stays.includes(one) ? `${named(one.path)} stays as it is here: containers only look at it`
      : `${named(one.path)} ${isOwn(one.path) ? 'holds what this restore itself needs' : 'belongs to the system'}, and is not exchanged as a whole`;
    const hint = `node backup.js restore ${manifest.archive} ${one.path} --to FOLDER, and take from there what you need`;
    if (names.length > 0 && !stays.includes(one)) throw new Problem(text, { exitCode: 64, hint });
    warn(`${text}: ${hint}`);
  }
  if (usable.length === 0) throw new Problem('this archive holds nothing that could be put in its place', { exitCode: 64 });
  return [...new Set(usable)];
}

function rootsOfPart({ plan, containers }: Manifest, wanted: string): Root[] {
  const [, kind = '', name = wanted] = /^(postgres|cluster|compose|container|volume|folder) (.+)$/.exec(wanted) ?? [];
  const is = (...words: string[]) => kind === '' || words.includes(kind), plain = name.startsWith('/') ? path.resolve(name) : name;
  const cluster = plan.clusters.find((one) => is('postgres', 'cluster') && (one.name === plain || one.dataDirectory === plain));
  const mounts = containers.filter((one) => (kind === 'compose' ? one.composeProject === plain : kind === 'container' && one.name === plain)).flatMap((one) => one.mounts);
  const found = plan.roots.filter((root) => (cluster && root.why === `cluster ${cluster.name}`) || (is('volume') && root.why === `volume ${plain}`)
    || (is('folder') && (root.path === plain || root.why === `folder ${plain} leads here`)) || mounts.some((mount) => mount.source && (isBelow(root.path, mount.source) || [`volume ${mount.source}`, `folder ${mount.source} leads here`].includes(root.why))));
  if (found.length === 0 && cluster) found.push(...plan.roots.filter((root) => cluster.roots.some((one) => isBelow(one, root.path)))); // in volumes, or below a folder
  if (found.length > 0) return found;
  const known = [...plan.clusters.filter((one) => one.container === '').map((one) => `postgres ${one.name}`),
    ...plan.roots.filter((one) => /^(volume|folder)/.test(one.why)).map((one) => (one.why === 'folder' ? one.path : one.why))];
  throw new Problem(`${named(wanted)} is no part of this archive`, { exitCode: 64,
    hint: `it holds: ${[...new Set(known)].map((one) => (one.includes(' ') ? one : named(one))).join(', ')}. One file of these: node backup.js restore ARCHIVE PATH --to FOLDER` });
}

// ---- what is stopped and started ----

/** Whether a path lies below a place, or a place below it, links followed. '/' does not count: what sees all does not mean this. */
export function touchesPlace(pieces: Piece[]): (file: string) => boolean {
  const places = pieces.flatMap(({ place }) => [place, realOr(place)]);
  return (file) => file !== '' && file !== '/' && [file, realOr(file)].some((one) => places.some((place) => isBelow(one, place) || isBelow(place, one)));
}

/** What has to stop here for this restore, and what sleeps here but is to run afterwards. */
export async function partsOf(comeback: Comeback): Promise<{ parts: Part[]; asleep: Part[] }> {
  const { manifest, pieces, isWhole } = comeback;
  const containers = await findContainers(await isDockerNeeded(comeback)), clusters = await findClusters(containers);
  const known = await partsNamed(comeback, containers, clusters);
  const touches = touchesPlace(pieces);
  const mountsIt = (name: string | undefined) => containers.find((one) => one.name === name)?.mounts.some(({ source }) => touches(source)) ?? false;
  const hasFolder = pieces.some((piece) => piece.why.startsWith('folder'));
  const isMeant = (part: Part) => isWhole || (hasFolder && (part.kind === 'service' || part.kind === 'command')) || touches(part.dataDirectory ?? '') || mountsIt(part.container);
  const parts = known.filter(isMeant);
  const isNew = (part: Omit<Part, 'group'>) => !parts.some((one) => one.name === part.name || (part.dataDirectory && one.dataDirectory === part.dataDirectory));
  for (const one of containers.filter((each) => each.running && mountsIt(each.name))) parts.push(...containerParts(`container ${one.name}`, containers).filter(isNew).map((part) => ({ ...part, group: 900_000 })));
  for (const one of clusters.filter((each) => each.container === '' && [each.dataDirectory, ...each.roots].some(touches))) {
    const part = await clusterPart(one, comeback.settings.stopTimeoutSeconds);
    if (isNew(part)) parts.push({ ...part, group: 1_000_000 }); // the freshly made `main` of Debian's package, above all
  }
  const ranThen = new Set(manifest.plan.parts.filter((part) => part.wasRunning).map((part) => part.name));
  return { parts: parts.filter((part) => part.wasRunning), asleep: parts.filter((part) => !part.wasRunning && part.kind !== 'postgres' && ranThen.has(part.name)).map(withOwnUnit) };
}

// Where Docker is, its answer is needed: what does not answer may run all the same, and would go on writing into the old contents.
async function isDockerNeeded({ settings, how, manifest }: Comeback): Promise<boolean> {
  const names = how.bare ? manifest.plan.parts.map((part) => part.name) : [...settings.stop.flat(), ...settings.volumes.map(() => 'container *')];
  const isMeant = names.some((one) => isPartName(one) && /^(compose|container) /.test(one)) || processes().some(({ program }) => program === 'dockerd');
  return isMeant && (await look(['docker', '--version'])).code !== 127;
}

function realOr(file: string): string {
  try {
    return fs.realpathSync(file);
  } catch {
    return file;
  }
}

// A unit that did not run is in no command of its part.
const withOwnUnit = (part: Part): Part => (part.kind === 'service' && part.unit ? { ...part, start: ['systemctl', 'start', '--', part.unit], stop: ['systemctl', 'stop', '--', part.unit] } : part);

/** The parts of this machine's own settings; on a bare machine those whose names are in the archive. What is not here is told. */
async function partsNamed({ settings, how, manifest }: Comeback, containers: Container[], clusters: Cluster[]): Promise<Part[]> {
  const names = manifest.plan.parts.filter(({ name, kind }) => isPartName(name) && /^(service|container|postgres)$/.test(kind) && !/\*$/.test(name)).map((part) => part.name);
  const foreign = how.bare ? manifest.plan.parts.filter((part) => !names.includes(part.name)) : [];
  if (foreign.length > 0) say(`not stopped or started, for no command of an archive is run: ${foreign.map((part) => named(part.name)).join(', ')}`);
  const parts: Part[] = [];
  for (const [index, entry] of (how.bare ? names : settings.stop).entries()) {
    for (const one of [entry].flat()) {
      try {
        const found = await findPart(one, settings, containers, clusters);
        parts.push(...found.parts.filter((part) => !parts.some((other) => other.name === part.name)).map(({ stage: step = 0, ...part }) => ({ ...part, group: index * 100 + step })));
      } catch (error) {
        const lacksProgram = typeof one !== 'string' && [126, 127].includes((await look(one.running)).code);
        if (!(error instanceof Problem) || error.facts.exitCode || (error.facts.ran && !lacksProgram)) throw error; // a command that failed says nothing of the part
        (String(one).startsWith('postgres ') ? say : warn)(`not here: ${error.message}`); // a cluster may come back
      }
    }
  }
  for (const part of parts) part.dataDirectory ??= clusters.find((one) => one.container !== '' && one.container === part.container)?.dataDirectory;
  return parts;
}

// Clusters on the host that ran when they were saved and do not run here.
function clustersToCome({ clusters, parts, pieces }: Pick<Comeback, 'clusters' | 'parts' | 'pieces'>): ArchivedCluster[] {
  return clusters.filter((one) => one.container === '' && one.pid !== 0
    && !parts.some((part) => part.dataDirectory === whereIs(pieces, one.dataDirectory, (piece) => piece.place) || part.name === `postgres ${one.name}`));
}

/** What runs in the new state and did not run here: parts that slept, and clusters that come back. Given what was extracted, or is in its place. */
export async function partsToCome({ asleep, clusters, parts, pieces, settings, manifest }: Comeback): Promise<Part[]> {
  const found = [...asleep];
  for (const cluster of clustersToCome({ clusters, parts, pieces })) {
    const dataDirectory = whereIs(pieces, cluster.dataDirectory, (piece) => piece.place), folder = whereIs(pieces, cluster.dataDirectory, staged);
    const isDebian = /^\d+(\.\d+)?\/[\w.-]+$/.test(cluster.name) && whereIs(pieces, `/etc/postgresql/${cluster.name}`, (piece) => piece.place) !== '';
    const binaries = (await findPrograms(cluster, manifest))?.binaries ?? '';
    if (!isDebian && binaries === '') warn(`no PostgreSQL ${cluster.version} is here to start ${named(cluster.name)}`);
    else found.push({ ...await clusterPart({ ...describeCluster(isDebian ? cluster.name : dataDirectory, folder, isDebian ? 'Debian' : ''), dataDirectory, binaries }, settings.stopTimeoutSeconds),
      ...(isDebian ? {} : await ownUnit(cluster, dataDirectory, manifest)), group: 1_000_000 });
  }
  return found;
}

// Debian's clusters have units by their names. Of another one the archive has the name: believed when the unit of that name here speaks of that data directory.
async function ownUnit(cluster: ArchivedCluster, dataDirectory: string, manifest: Manifest): Promise<Partial<Part>> {
  const unit: unknown = manifest.plan.parts.find((part) => part.dataDirectory === cluster.dataDirectory)?.unit;
  if (!hasSystemd() || typeof unit !== 'string' || !/^[\w@.:-]+\.service$/.test(unit)) return {};
  const { out } = await look(['systemctl', 'show', '--property=Environment,ExecStart', '--', unit]);
  return out.split(/[\s=;]+/).some((word) => path.resolve('/', word) === dataDirectory) ? { unit, start: ['systemctl', 'start', '--', unit], stop: ['systemctl', 'stop', '--', unit] } : {};
}

// ---- what is said before ----

export function showComeback(comeback: Comeback): void {
  const { archive, manifest, pieces, parts, findings, stamp } = comeback;
  const commands = commandsOfComeback(comeback), later = [...comeback.asleep.map((part) => part.name), ...clustersToCome(comeback).map((one) => `postgres ${one.name}`)];
  const swaps = pieces.filter((piece) => !piece.isInner && piece.files > 0).map((piece) => ({ ...swapsFor(piece.place, staged(piece), stamp, []).swaps[0]!, why: piece.why, files: piece.files, bytes: piece.bytes }));
  const stagings = stagingsOf(pieces);
  if (mode.dryRun && mode.json) return answer(JSON.stringify({ archive, server: manifest.server, madeAt: manifest.madeAt, findings, parts, later, stagings, swaps, commands, warnings }, null, 1));
  const text = [`archive ${archive}, of server ${named(manifest.server)}, ${oneLine(manifest.madeAt)}`, ...tableOf(findings), 'comes back:',
    ...swaps.map((one) => `  ${named(one.place)}   (${oneLine(one.why)}; ${count(one.files, 'file')}, ${size(one.bytes)}; ${isThere(one.place) ? `what is there goes to ${named(one.aside)}` : 'nothing is there now'})`),
    'stop, in this order:', ...(parts.length > 0 ? parts.map((part) => `  ${part.name}`) : ['  nothing']),
    ...(later.length > 0 ? [`start afterwards, though it does not run now: ${later.map(named).join(', ')}`] : []),
    'commands, in this order:', ...commands.map(({ step, argv }) => `  ${step.padEnd(8)} ${pasteable(argv)}`), ...(mode.dryRun ? ['dry run: nothing above was executed, nothing was written'] : [])].join('\n');
  (mode.dryRun ? answer : sayBlock)(text);
}

/** The findings of the judge: what the passport says, what is here, what it would break, and the commands that mend it. */
function tableOf(findings: Finding[]): string[] {
  if (findings.length === 0) return [];
  const rows = [['', 'about', 'in the archive', 'here', 'what it would break'], ...findings.map((one) => [one.verdict, [one.cluster, one.about].filter((word) => word !== '').join(': '), one.recorded, one.here, one.breaks].map(oneLine))];
  const widths = [0, 1, 2, 3].map((column) => Math.min(40, Math.max(...rows.map((row) => row[column]!.length))));
  const line = (row: string[]) => `  ${row.map((word, column) => word.padEnd(widths[column] ?? 0)).join('  ').trimEnd()}`;
  return ['what differs:', ...rows.flatMap((row, index) => [line(row), ...(findings[index - 1]?.mend ?? []).map((command) => `            mend: ${oneLine(command)}`)])];
}

/** Every command of a restore, in order. Of a mount point that stays, the swaps are known only when its entries are there. */
function commandsOfComeback({ archive, pieces, parts, asleep, stamp }: Comeback): { step: string; argv: string[] }[] {
  const stagings = stagingsOf(pieces);
  const swaps = pieces.filter((piece) => !piece.isInner && piece.files > 0).flatMap((piece) => swapsFor(piece.place, staged(piece), stamp, []).swaps);
  return [
    ...pieces.filter((piece) => piece.volume !== '').map((piece) => ({ step: 'volume', argv: ['docker', 'volume', 'create', piece.volume] })),
    ...stagings.map((folder) => ({ step: 'stage', argv: ['mkdir', '-m', '700', folder] })),
    ...extractions(archive, pieces).map(({ argv, cwd }) => ({ step: 'extract', argv: ['env', '-C', cwd, ...argv] })),
    ...stagings.map((folder) => ({ step: 'sync', argv: ['sync', '--file-system', folder] })),
    ...parts.map((part) => ({ step: 'stop', argv: part.stop })),
    ...swaps.flatMap(({ place, staged: from, aside }) => [...(isThere(place) ? [{ step: 'aside', argv: ['mv', '-T', '--', place, aside] }] : []), { step: 'place', argv: ['mv', '-T', '--', from, place] }]),
    ...[...parts, ...asleep].sort((one, other) => other.group - one.group).map((part) => ({ step: 'start', argv: part.start })),
  ];
}

// The way without room for both, as RESTORE.md of the archive has it in full.
export function byHand({ archive, pieces, parts }: Comeback): string[] {
  const top = pieces.filter((piece) => !piece.isInner && piece.files > 0);
  return [...parts.map((part) => pasteable(part.stop)), ...top.filter((piece) => isThere(piece.place)).map((piece) => `move ${named(piece.place)} to another disk, then remove it here`),
    ...extractions(archive, pieces.map((piece) => ({ ...piece, staging: '/' }))).map(({ argv }) => `cd / && ${pasteable(argv.filter((word) => word !== '--log-json' && word !== asPattern(LISTING)))}`),
    ...top.filter((piece) => piece.place !== piece.recorded).map((piece) => `mv ${named(piece.recorded)} ${named(piece.place)}`), ...[...parts].reverse().map((part) => pasteable(part.start)),
    `see also: node backup.js restore ${archive} record --to FOLDER, and RESTORE.md there`];
}
