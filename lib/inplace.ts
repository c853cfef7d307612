// In place: `restore ARCHIVE|latest --in-place [PART ...]` puts an archive, or parts of it, where it was, on a machine that runs or on a bare one.
// Everything is extracted beside its place and looked through while all still runs. Then: stop, swap by rename, start, check. The old
// contents stay aside, always; a run that dies is finished or rolled back by its guard, by `recover`, or by the next run (see SWAP).
// Changes: the places, the parts that use them, staging folders. What is stopped and started comes from this machine's settings, or is a name
// out of the archive that fits a pattern; no command of an archive is ever run.
import { randomUUID } from 'node:crypto';
import fs from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { Problem, answer, colored, count, mode, named, openTranscript, pasteable, say, sayBlock, sayError, size, span, warn, warnings } from './say.ts';
import { change, failure, goOn, hasSystemd, look, waitUntil } from './shell.ts';
import type { Loaded } from './check.ts';
import { isPartName } from './rules.ts';
import type { Settings } from './settings.ts';
import type { Part } from './units.ts';
import { containerParts, findContainers } from './containers.ts';
import type { Container } from './containers.ts';
import { clusterPart, clusterState, describeCluster, findClusters, isUsed } from './postgres.ts';
import type { Cluster } from './postgres.ts';
import { askCluster, databaseQuestions, queryCluster } from './questions.ts';
import { borgVersion, listArchives, readFromArchive } from './borg.ts';
import { findPart, isBelow, serverName } from './plan.ts';
import { closeLedger, keepLedger, keepLedgerIfPossible, openLedger, takeLock } from './ledger.ts';
import type { Ledger } from './ledger.ts';
import { isThere, makeSwaps, removeStagings, settleRestore, swapsFor, tellRestore } from './swap.ts';
import { servicesNow, startParts, stopParts, undecidedParts } from './pause.ts';
import type { Manifest } from './record.ts';
import { armGuard, dismissGuard } from './guard.ts';
import { archiveToRestore } from './list.ts';
import { judge } from './judge.ts';
import type { Finding } from './judge.ts';
import { bringBackLeftovers } from './run.ts';
import { countPieces, extractions, findPieces, readManifest, rootsMeant, stage, staged, swapsOf, whereIs, whyNoRoom } from './places.ts';
import type { Piece } from './places.ts';

export type InPlace = { bare: boolean; reindex: boolean; stateFolder: string }; // stateFolder: of the ledger; borg's may be another on a bare machine
type ArchivedCluster = Manifest['plan']['clusters'][number];
/** A restore in place, worked out before anything is changed: printed by --dry-run, and what the run follows. */
type Comeback = {
  archive: string; stamp: string; manifest: Manifest; settings: Settings; how: InPlace; isWhole: boolean;
  pieces: Piece[]; clusters: ArchivedCluster[]; // that come back
  findings: Finding[];
  parts: Part[]; // that run here and are stopped, in this order
  asleep: Part[]; // that do not run here, ran when the archive was made, and can run
};

/** Given the settings, the script and the words, does all of it. Returns the exit code. Throws Problem while nothing has been changed. */
export async function restoreInPlace(loaded: Loaded, script: string, words: string[], how: InPlace): Promise<number> {
  const settings = mode.dryRun ? { ...loaded.settings, stateFolder: temporaryFolder() } : loaded.settings;
  if (!mode.dryRun) await begin(settings, how);
  const startedAt = new Date().toISOString();
  if (!mode.dryRun) openTranscript(path.join(how.stateFolder, 'log'), `${startedAt.slice(0, 19)}-restore`);
  await borgVersion();
  const comeback = await workOut(settings, words, how, startedAt);
  showComeback(comeback);
  if (comeback.findings.some((one) => one.verdict === 'refused')) throw new Problem('this archive cannot work on this machine: see the findings marked "refused"', { hint: 'mend them with the commands above, then begin again; nothing was touched' });
  const noRoom = whyNoRoom(comeback.pieces);
  if (noRoom.length > 0) throw new Problem(`no room for old and new contents together: ${noRoom.join('; ')}`, { hint: `make room, or do it by hand, as root, with the environment that \`node backup.js borg\` sets:\n        ${byHand(comeback).join('\n        ')}` });
  if (mode.dryRun) return warnings.length > 0 ? 1 : 0;
  return carryOut(comeback, script, loaded.file, startedAt);
}

function temporaryFolder(): string {
  const folder = fs.mkdtempSync(path.join(tmpdir(), 'cold-backup-'));
  process.on('exit', () => fs.rmSync(folder, { recursive: true, force: true }));
  return folder;
}

async function begin(settings: Settings, { stateFolder }: InPlace): Promise<void> {
  fs.mkdirSync(stateFolder, { recursive: true, mode: 0o700 });
  if (takeLock(stateFolder, 2) === null) throw new Problem('another run is going on', { exitCode: 75, hint: 'wait for its end; `node backup.js status` tells how it went' });
  await bringBackLeftovers({ ...settings, stateFolder });
}

/** Look at archive and machine. Changes nothing. */
async function workOut(settings: Settings, [name = '', ...words]: string[], how: InPlace, startedAt: string): Promise<Comeback> {
  const archive = archiveToRestore(await listArchives(settings, how.bare ? '' : serverName(settings)), name);
  const manifest = { ...readManifest(await readFromArchive(settings, archive, 'record/manifest.json')), archive }; // a record may claim any name
  const stamp = startedAt.slice(0, 19).replaceAll(':', '');
  const pieces = await findPieces(rootsMeant(manifest, words), stamp);
  await countPieces(settings, archive, pieces);
  const clusters = manifest.plan.clusters.filter((one) => whereIs(pieces, one.dataDirectory, (piece) => piece.place) !== '');
  const comeback: Comeback = { archive, stamp, manifest, settings, how, isWhole: words.length === 0, pieces, clusters, findings: await judge(manifest, clusters, { scratch: temporaryFolder() }), parts: [], asleep: [] };
  return { ...comeback, ...await partsOf(comeback) };
}

// ---- what is stopped and started ----

/** What has to stop here for this restore, and what sleeps here but is to run afterwards. */
async function partsOf(comeback: Comeback): Promise<{ parts: Part[]; asleep: Part[] }> {
  const { manifest, pieces, isWhole } = comeback;
  const containers = await findContainers(false), clusters = await findClusters(containers);
  const known = await partsNamed(comeback, containers, clusters);
  const touches = (file: string) => file !== '' && file !== '/' && pieces.some(({ place }) => [file, realOr(file)].some((one) => isBelow(one, place) || isBelow(place, one)));
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
  return { parts: parts.filter((part) => part.wasRunning), asleep: parts.filter((part) => !part.wasRunning && ranThen.has(part.name)).map(withOwnUnit) };
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
        if (!(error instanceof Problem) || error.facts.exitCode) throw error;
        say(`not here: ${error.message}`);
      }
    }
  }
  for (const part of parts) part.dataDirectory ??= clusters.find((one) => one.container !== '' && one.container === part.container)?.dataDirectory;
  return parts;
}

/** What runs in the new state and did not run here: parts that slept, and clusters that come back. Given what was extracted, or is in its place. */
async function partsToCome({ asleep, clusters, parts, pieces, settings }: Comeback): Promise<Part[]> {
  const found = [...asleep];
  for (const cluster of clusters.filter((one) => one.container === '' && one.pid !== 0)) {
    const dataDirectory = whereIs(pieces, cluster.dataDirectory, (piece) => piece.place), folder = whereIs(pieces, cluster.dataDirectory, staged);
    if ([...parts, ...found].some((part) => part.dataDirectory === dataDirectory || part.name === `postgres ${cluster.name}`)) continue;
    const isDebian = /^\d+(\.\d+)?\/[\w.-]+$/.test(cluster.name) && whereIs(pieces, `/etc/postgresql/${cluster.name}`, (piece) => piece.place) !== '';
    const binaries = await programsOf(cluster.version);
    if (!isDebian && binaries === '') warn(`no PostgreSQL ${cluster.version} is here to start ${named(cluster.name)}`);
    else found.push({ ...await clusterPart({ ...describeCluster(isDebian ? cluster.name : dataDirectory, folder, isDebian ? 'Debian' : ''), dataDirectory, binaries }, settings.stopTimeoutSeconds), group: 1_000_000 });
  }
  return found;
}

/** The folder of this machine's own programs of a major version, '' = none. */
async function programsOf(version: string): Promise<string> {
  for (const folder of [`/usr/lib/postgresql/${version}/bin`, `/usr/pgsql-${version}/bin`, '/usr/local/pgsql/bin', '/usr/local/bin', '/usr/bin']) {
    const { code, out } = fs.existsSync(path.join(folder, 'pg_ctl')) ? await look([path.join(folder, 'postgres'), '--version']) : { code: 127, out: '' };
    if (code === 0 && new RegExp(` ${version.replace('.', '\\.')}(\\D|$)`).test(out)) return folder;
  }
  return '';
}

// ---- what is said before ----

function showComeback(comeback: Comeback): void {
  const { archive, manifest, pieces, parts, findings, stamp } = comeback;
  const commands = commandsOfComeback(comeback);
  const swaps = pieces.filter((piece) => !piece.isInner && piece.files > 0).map((piece) => ({ ...swapsFor(piece.place, staged(piece), stamp, []).swaps[0]!, why: piece.why, files: piece.files, bytes: piece.bytes }));
  if (mode.dryRun && mode.json) return answer(JSON.stringify({ archive, server: manifest.server, madeAt: manifest.madeAt, findings, parts, stagings: [...new Set(pieces.map((one) => one.staging))], swaps, commands, warnings }, null, 1));
  const text = [`archive ${archive}, of server ${named(manifest.server)}, ${manifest.madeAt}`, ...tableOf(findings), 'comes back:',
    ...swaps.map((one) => `  ${named(one.place)}   (${one.why}; ${count(one.files, 'file')}, ${size(one.bytes)}; ${isThere(one.place) ? `what is there goes to ${named(one.aside)}` : 'nothing is there now'})`),
    'stop, in this order:', ...(parts.length > 0 ? parts.map((part) => `  ${part.name}`) : ['  nothing']),
    'commands, in this order:', ...commands.map(({ step, argv }) => `  ${step.padEnd(8)} ${pasteable(argv)}`), ...(mode.dryRun ? ['dry run: nothing above was executed, nothing was written'] : [])].join('\n');
  (mode.dryRun ? answer : sayBlock)(text);
}

/** The findings of the judge: what the passport says, what is here, what it would break, and the commands that mend it. */
function tableOf(findings: Finding[]): string[] {
  if (findings.length === 0) return [];
  const rows = [['', 'about', 'in the archive', 'here', 'what it would break'], ...findings.map((one) => [one.verdict, [one.cluster, one.about].filter((word) => word !== '').join(': '), one.recorded, one.here, one.breaks])];
  const widths = [0, 1, 2, 3].map((column) => Math.min(40, Math.max(...rows.map((row) => row[column]!.length))));
  return ['what differs:', ...rows.flatMap((row, index) => [`  ${row.map((word, column) => word.padEnd(widths[column] ?? 0)).join('  ').trimEnd()}`, ...(findings[index - 1]?.mend ?? []).map((line) => `            mend: ${line}`)])];
}

/** Every command of a restore, in order. Of a mount point that stays, the swaps are known only when its entries are there. */
function commandsOfComeback({ archive, pieces, parts, asleep, stamp }: Comeback): { step: string; argv: string[] }[] {
  const stagings = [...new Set(pieces.map((piece) => piece.staging))];
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
function byHand({ archive, pieces, parts }: Comeback): string[] {
  const top = pieces.filter((piece) => !piece.isInner && piece.files > 0);
  return [...parts.map((part) => pasteable(part.stop)), ...top.filter((piece) => isThere(piece.place)).map((piece) => `move ${named(piece.place)} to another disk, then remove it here`),
    ...extractions(archive, pieces.map((piece) => ({ ...piece, staging: '/' }))).map(({ argv }) => `cd / && ${pasteable(argv.filter((word) => word !== '--log-json'))}`),
    ...top.filter((piece) => piece.place !== piece.recorded).map((piece) => `mv ${named(piece.recorded)} ${named(piece.place)}`), ...[...parts].reverse().map((part) => pasteable(part.start)),
    `see also: node backup.js restore ${archive} record --to FOLDER, and RESTORE.md there`];
}

// ---- the run ----

/** The story: extract, look through, stop, swap, start, check. Returns the exit code. */
async function carryOut(comeback: Comeback, script: string, file: string, startedAt: string): Promise<number> {
  const { archive, stamp, settings, pieces, manifest, how: { stateFolder } } = comeback;
  const ledger = await openLedger(stateFolder, { run: randomUUID(), server: serverName(settings), archive, startedAt, deadlineAt: '9999-01-01T00:00:00.000Z', stopTimeoutSeconds: settings.stopTimeoutSeconds, transcript: startedAt });
  const restore = ledger.restore = { archive, stamp, stagings: [...new Set(pieces.map((piece) => piece.staging))], swaps: [], folders: [], made: [], later: [], state: '' };
  let guardPid = 0, trouble: unknown = null, down: string[] = [];
  try {
    keepLedger(stateFolder, ledger); // whoever finds it without us removes the stagings
    guardPid = await armGuard(script, stateFolder, file, ledger.run);
    await makeVolumes(pieces);
    await stage(settings, manifest, pieces, ledger.run);
    Object.assign(restore, swapsOf(pieces, stamp), { later: await partsToCome(comeback), made: missingFolders(comeback) });
    ledger.deadlineAt = new Date(Date.now() + settings.maxDowntimeMinutes * 60_000).toISOString();
    keepLedger(stateFolder, ledger); // all swaps, before the first one
    // From here services are down.
    await stopParts(comeback.parts, ledger, stateFolder);
    refuseUsedPlaces(comeback);
    makeFolders(comeback, restore.made);
    makeSwaps(restore);
  } catch (error) {
    trouble = error;
  }
  try {
    settleRestore(ledger);
    keepLedgerIfPossible(stateFolder, ledger);
    if (ledger.restore.state === 'new' && hasSystemd()) await change(['systemctl', 'daemon-reload'], { unlimited: true }); // units and generators of what came back
    down = await startParts(ledger, stateFolder);
  } catch (error) { // a disk has gone: the guard goes on
    sayError(error);
    down = ledger.parts.filter((part) => part.runningAt === null).map((part) => part.name).concat(ledger.parts.length === 0 ? ['everything'] : []);
  }
  // From here services run again.
  return finish(comeback, ledger, guardPid, down, trouble);
}

async function makeVolumes(pieces: Piece[]): Promise<void> {
  for (const { volume, place } of pieces.filter((piece) => piece.volume !== '')) {
    const done = await change(['docker', 'volume', 'create', volume]);
    if (done.code !== 0) throw failure(`volume ${volume} cannot be made`, done);
    if (!fs.existsSync(place)) throw new Problem(`Docker made the volume ${volume} elsewhere than in ${named(place)}`, { hint: 'begin again: now it is there' });
  }
}

/** Folders above the places, and of sockets, that are not here: PostgreSQL does not start below a folder that it may not enter. */
function missingFolders({ manifest, pieces, clusters }: Comeback): string[] {
  const needed = [...pieces.map((piece) => path.dirname(piece.place)), ...clusters.filter((one) => one.container === '' && path.isAbsolute(one.socketFolder ?? '')).map((one) => path.resolve(one.socketFolder))]
    .filter((folder) => !pieces.some((piece) => isBelow(folder, piece.place)));
  const known = manifest.parents.map((one) => one.path);
  return [...new Set(needed.flatMap((folder) => [...known.filter((one) => isBelow(folder, one)), folder]))].filter((folder) => !isThere(folder)).sort();
}

function makeFolders({ manifest }: Comeback, folders: string[]): void {
  const idHere = (list: { id: number; name: string }[], file: string, id: number) => {
    const name = list.find((one) => one.id === id)?.name, line = fs.readFileSync(file, 'utf8').split('\n').find((one) => name && one.startsWith(`${name}:`));
    return line ? Number(line.split(':')[2]) : id;
  };
  for (const folder of folders) {
    const parent = manifest.parents.find((one) => one.path === folder);
    fs.mkdirSync(folder, { recursive: true, mode: 0o755 });
    if (!parent) continue;
    fs.chownSync(folder, idHere(manifest.host.users.map(({ id, name }) => ({ id, name })), '/etc/passwd', parent.uid), idHere(manifest.host.groups.map(({ id, name }) => ({ id, name })), '/etc/group', parent.gid));
    fs.chmodSync(folder, parseInt(parent.mode, 8) & 0o7777);
  }
}

// Somebody may have started a cluster by hand since it was stopped.
function refuseUsedPlaces({ pieces, clusters, parts }: Comeback): void {
  const folders = [...clusters.map((one) => whereIs(pieces, one.dataDirectory, (piece) => piece.place)), ...parts.map((part) => part.dataDirectory ?? '')].filter((folder) => folder !== '' && fs.existsSync(folder));
  const used = folders.find((folder) => isUsed(folder) || clusterState(folder) !== 'stopped');
  if (used) throw new Problem(`PostgreSQL runs in ${named(used)}, and it was stopped a moment ago`, { hint: 'who started it? Then begin again' });
}

/** Tell what runs now and how to get to the other state; check what came back. Returns the exit code. */
async function finish(comeback: Comeback, ledger: Ledger, guardPid: number, down: string[], trouble: unknown): Promise<number> {
  const { how: { stateFolder }, archive } = comeback, restore = ledger.restore!, isOpen = down.length > 0 || undecidedParts(ledger).length > 0;
  removeStagings(restore);
  if (!isOpen) closeLedger(stateFolder);
  else {
    ledger.reported = down.length > 0 ? 'down' : 'failed'; // the guard goes on from the ledger
    keepLedgerIfPossible(stateFolder, ledger);
  }
  const services = servicesNow(ledger, down), wrong: string[] = [];
  if (guardPid && !isOpen) dismissGuard(guardPid, stateFolder);
  if (trouble) sayError(trouble, services);
  if (!trouble && restore.state === 'new' && down.length === 0) wrong.push(...await checkWhatCameBack(comeback).catch((error) => [`the check did not get through: ${error.message}`]));
  const text = restore.swaps.length > 0 ? tellRestore(stateFolder, ledger, isOpen) : '';
  if (!trouble && down.length > 0) sayError(new Problem(`not running: ${down.join(', ')}`, { hint: 'look at its own log; mend it, and the guard starts it. Or go back with the commands below' }), services);
  if (wrong.length > 0) sayError(new Problem(`${archive} is in place and runs, but ${wrong.join('; ')}`, { hint: 'go back with the commands below, or restore another archive' }), services);
  const asked = trouble instanceof Problem ? trouble.facts.exitCode ?? 2 : 2, isBad = trouble !== null || wrong.length > 0;
  const exitCode = down.length > 0 ? 3 : isBad ? asked : warnings.length > 0 ? 1 : 0, seconds = downSecondsOf(ledger);
  const head = trouble || wrong.length > 0 || down.length > 0 ? colored('31', 'NOT GOOD') : 'restored';
  sayBlock(['', `${head}: ${restore.state === 'new' ? `${archive} is in place` : 'the old contents are in place'}, down ${span(seconds)}; services: ${services}`, text, ...(warnings.length > 0 ? ['warnings', ...warnings.map((one) => `  ${one}`)] : [])].filter((line, index) => index === 0 || line !== '').join('\n'));
  if (mode.json) answer(JSON.stringify({ archive, state: restore.state, exitCode, downSeconds: seconds, swaps: restore.swaps, wrong, down, warnings }));
  return exitCode;
}

function downSecondsOf({ parts }: Ledger): number {
  const end = (part: Ledger['parts'][number]) => Date.parse(part.runningAt ?? new Date().toISOString());
  return parts.length === 0 ? 0 : (Math.max(...parts.map(end)) - Math.min(...parts.map((part) => Date.parse(part.askedAt)))) / 1000;
}

// ---- afterwards ----

/** Every cluster that came back answers, every database opens, its libraries load, its tables are there. Returns what is wrong. */
async function checkWhatCameBack(comeback: Comeback): Promise<string[]> {
  const { clusters, pieces, manifest } = comeback, wrong: string[] = [];
  const running = await findClusters(await findContainers(false));
  for (const cluster of clusters.filter((one) => one.pid !== 0)) {
    const folder = whereIs(pieces, cluster.dataDirectory, (piece) => piece.place), here = running.find((one) => one.dataDirectory === folder && one.pid !== 0);
    const passport = manifest.postgres.find((one) => one.dataDirectory === cluster.dataDirectory);
    if (!here) warn(`cluster ${named(cluster.name)} is in place, and nothing here starts it`);
    else if (!await waitUntil(30, async () => (await queryCluster(here, 'template1', 'select 1')).code === 0)) wrong.push(`cluster ${named(cluster.name)} does not answer`);
    else wrong.push(...await mendAfterwards(comeback, cluster, here), ...await checkDatabases(here, passport?.databases ?? []));
    goOn();
  }
  return wrong;
}

async function checkDatabases(here: Cluster, recorded: Manifest['postgres'][number]['databases']): Promise<string[]> {
  const wrong: string[] = [];
  const present = (await queryCluster(here, 'template1', 'select datname from pg_database where datallowconn')).out.split('\n').filter((name) => name !== '' && !/=|:\/\//.test(name)); // psql would take these for addresses
  let same = 0;
  for (const { name, rows = {}, connectable } of recorded.filter((one) => one.connectable && !/=|:\/\//.test(one.name))) {
    const of = `database ${named(name)} of ${named(here.name)}`;
    if (!present.includes(name) && connectable) { wrong.push(`${of} is missing`); continue; }
    const opened = await queryCluster(here, name, 'select 1');
    if (opened.code !== 0) { wrong.push(`${of} does not open: ${opened.said.trim().split('\n').pop()}`); continue; }
    const facts = await askCluster(here, name, { libraries: databaseQuestions.libraries!, rows: databaseQuestions.rows! });
    for (const library of facts.libraries ?? []) {
      const loaded = await queryCluster(here, name, `load '${String(library).replaceAll("'", "''")}'`);
      if (loaded.code !== 0) wrong.push(`${of} misses a library: ${loaded.said.trim().split('\n').pop()}`);
    }
    for (const [table, then] of Object.entries(rows)) {
      const now = facts.rows?.[table];
      if (now === undefined) wrong.push(`${of} has no table ${table}, which had ${then} rows`);
      else if (now === null || then === null || now === then) same++;
      else if (now < then / 2) warn(`${of}: ${table} has ${now} rows, and had ${then} a while before the copy`);
      else say(`${of}: ${table} has ${now} rows, and had ${then} a while before the copy`);
    }
  }
  say(`cluster ${named(here.name)} answers: ${count(recorded.length, 'database')}, ${count(same, 'table')} with the recorded rows`);
  return wrong;
}

/** What the judge found to be mended in the database: done with --reindex, else told. */
async function mendAfterwards({ findings, how }: Comeback, cluster: ArchivedCluster, here: Cluster): Promise<string[]> {
  const open = findings.filter((one) => one.verdict === 'after' && one.cluster === cluster.name);
  if (open.length > 0 && !how.reindex) warn(`${named(cluster.name)}: to be mended now, or do it all again with --reindex: ${open.flatMap((one) => one.mend).join('; ')}`);
  for (const { database, text } of how.reindex ? open.flatMap((one) => one.sql) : []) {
    say(`  ${named(here.name)}, ${named(database)}: ${text}`);
    const done = text.startsWith('\\') || /=|:\/\//.test(database) ? { code: 1, said: 'this is no SQL' } : await queryCluster(here, database, text, 24 * 3600, true);
    if (done.code !== 0) return [`this failed in ${named(database)}: ${text.slice(0, 200)}: ${done.said.trim().split('\n').pop()}`];
  }
  return [];
}
