// The rehearsal of a drill: extracts clusters into the scratch folder, starts and checks each.
// In the sandbox; and it measures. Reads the repository without borg's lock, so that a night neither waits nor is waited for;
// writes only in the scratch folder, which the drill removes.
import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { Problem, count, lastLines, named, pasteable, say, size } from './say.ts';
import { goOn, look } from './shell.ts';
import { freeBytes, isBelow, outermost, plainText } from './files.ts';
import { markOfRun } from './processes.ts';
import { lastGoodRun } from './history.ts';
import type { Settings } from './settings.ts';
import { borgVersion } from './borg.ts';
import { WITHOUT_LOCK, listArchives } from './archives.ts';
import { eachRecord } from './proof.ts';
import { archiveMeant, asPattern, warnUnlessOurs } from './list.ts';
import { measure } from './measure.ts';
import { extract } from './restore.ts';
import { ownManifest, recordFolder, soundManifest } from './record.ts';
import type { Manifest } from './record.ts';
import type { ClusterPassport } from './passport.ts';
import { findPrograms, startInside } from './sandbox.ts';
import { READ_BACK } from './certificate.ts';
import type { Certificate, DrillCheck } from './certificate.ts';
import { SERVER_CHECKS, nameFiles } from './serverchecks.ts';
import { FILE_CHECKS, bad, good } from './checks.ts';
import type { Copy, Verdict } from './checks.ts';
import { lockIn } from './lockin.ts';

const RECORD = ['record/manifest.json', 'record/listing']; // what else lies in that folder of an archive was laid there by somebody else
const NICELY = ['nice', '-n', '5', 'ionice', '-c', '2', '-n', '7']; // a night that comes along goes first

type Drill = { settings: Settings; borg: Settings; id: string; folder: string; archive: string; manifest: Manifest; own: string; full: boolean; checks: DrillCheck[]; extracted: { bytes: number; seconds: number };
  confirm: () => Promise<void> }; // throws Superseded, or what kept the list of archives from us

/** The drill began with the archive that this server remembers as its last, and the repository has a newer one, which is the message: begin again with that. */
export class Superseded extends Error {}

/**
 * Given the drill's settings, those of its own borg, the archive's name or 'latest', and its folder, rehearses. Returns the
 * certificate. Throws Problem when there is nothing to rehearse, Superseded when it began with an older archive than is
 * meant.
 */
export async function rehearse(settings: Settings, borg: Settings, server: string, name: string, id: string, folder: string, full: boolean, startedAt: Date): Promise<Certificate> {
  const record = path.join(folder, 'files/record'), extracted = { bytes: 0, seconds: 0 };
  const marked = { env: markOfRun(id) }; // who removes the scratch folder of a killed drill ends its borgs first: they would make it anew
  const version = borgVersion(), listed = patiently(() => listArchives(borg, server, WITHOUT_LOCK, marked)).then((all) => {
    const meant = archiveMeant(all, name);
    if (name === 'latest') warnUnlessOurs(settings.stateFolder, all, meant);
    return meant;
  });
  // Each start of borg takes a second. What this server itself saved last is safe to extract, and its record is here: that begins before the list
  // of archives is there. Of any other archive it is looked first whether borg would write elsewhere.
  let archive = name === 'latest' ? lastGoodRun(settings.stateFolder)?.archive ?? '' : name;
  const own = archive && copyOwnRecord(settings.stateFolder, archive, record);
  if (own) {
    for (const one of [version, listed]) one.catch(() => {}); // heard in confirm()
  } else {
    const [found, meant] = await Promise.allSettled([version, listed]); // no borg is left behind when one fails
    for (const one of [found, meant]) if (one.status === 'rejected') throw one.reason;
    archive = await listed;
    await patiently(() => measure(borg, archive, [], WITHOUT_LOCK, marked));
    await extractFrom({ id, folder, borg, archive }, RECORD, 'record');
  }
  const confirm = async () => {
    await version;
    if (await listed !== archive) throw new Superseded(await listed);
  };
  for (const name of own ? [] : ['manifest.json', 'listing']) if (!fs.lstatSync(path.join(record, name), { throwIfNoEntry: false })?.isFile()) throw new Problem(`${archive} has no record/${name}, so it cannot be rehearsed`,
    { hint: 'was it written by this script? `node backup.js list` tells' });
  const manifest = soundManifest(own || plainText(path.join(record, 'manifest.json'), 1 << 28), archive);
  const one: Drill = { settings, borg, id, folder, archive, manifest, own, full, checks: [], extracted, confirm };
  const all = await bytesBelow(path.join(folder, 'files/record/listing'), ['/']);
  for (const cluster of manifest.postgres) await rehearseCluster(one, cluster);
  await confirm();
  if (manifest.postgres.length === 0 || full) await readBack(one, all.bytes);
  else if (manifest.plan.roots.some(({ why }) => !why.startsWith('cluster '))) {
    one.checks.push({ cluster: '', check: READ_BACK, ok: null, seconds: 0, detail: 'only with --full' });
  }
  for (const { cluster, ...query } of settings.drill.queries) {
    if (!manifest.postgres.some((known) => isNamed(known, cluster))) one.checks.push({ cluster, check: 'your queries', ok: false, seconds: 0, detail: `no cluster ${named(cluster)} in this archive: ${query.sql}` });
  }
  const { bytes, seconds } = one.extracted;
  return { archive, server: manifest.server, proven: one.checks.length > 0 && one.checks.every((check) => check.ok !== false), madeAt: startedAt.toISOString(), where: os.hostname(), full, checks: one.checks, extractedBytes: bytes,
    extractSeconds: seconds, restoreSeconds: Math.round(10 * seconds * (bytes > 0 ? Math.max(1, all.bytes / bytes) : 1)) / 10, drillSeconds: (Date.now() - startedAt.getTime()) / 1000 };
}

// A night that comes along makes a new record: its first step removes the old one, its last step writes the manifest, which is copied last here.
function copyOwnRecord(stateFolder: string, archive: string, to: string): string {
  const text = ownManifest(stateFolder, archive), names = ['listing', 'manifest.json'];
  if (!text) return '';
  try {
    fs.mkdirSync(path.dirname(to), { mode: 0o711 }); // the sandbox's user has to pass
    fs.mkdirSync(to, { mode: 0o700 });
    for (const name of names) fs.copyFileSync(path.join(recordFolder(stateFolder), name), path.join(to, name));
    return fs.readFileSync(path.join(to, 'manifest.json'), 'utf8') === text ? text : '';
  } catch {
    return '';
  }
}

// borg without its lock may look at the repository in the very moment in which a run completes an archive.
async function patiently<T>(ask: () => Promise<T>): Promise<T> {
  for (let attempt = 1; ; attempt++) {
    const began = Date.now();
    try {
      return await ask();
    } catch (error) {
      goOn();
      if (attempt === 3 || Date.now() - began > 15_000 || !(error instanceof Problem) || /passphrase|key ?file|integrity/i.test(`${error.facts.said} ${error.facts.hint}`)) throw error;
      say(`the repository was busy: ${error.message}; once more`);
      await look(['sleep', '2']);
    }
  }
}

const isNamed = ({ name, dataDirectory }: ClusterPassport, wanted: string) => [name, `postgres ${name}`, dataDirectory, name.replace(/^container /, '')].includes(wanted);

async function rehearseCluster(one: Drill, passport: ClusterPassport): Promise<void> {
  const cluster = passport.name;
  const step = async (check: string, work: () => Promise<Verdict>): Promise<Verdict> => {
    const began = Date.now();
    say(`${cluster}: ${check}`);
    const verdict = await work().catch(async (error): Promise<Verdict> => {
      goOn();
      await one.confirm();
      if (!(error instanceof Problem)) throw error;
      return { ok: false, detail: [error.message, ...(error.facts.said ? [lastLines(error.facts.said, 4)] : []), ...(error.facts.hint ? [error.facts.hint] : [])].join('\n') };
    });
    goOn();
    one.checks.push({ cluster, check, ok: verdict.ok, seconds: (Date.now() - began) / 1000, detail: verdict.detail });
    return verdict;
  };
  const files = path.join(one.folder, 'files'), onHost = files + passport.dataDirectory, inside = passport.insideDataDirectory || passport.dataDirectory;
  const queries = one.settings.drill.queries.filter((query) => isNamed(passport, query.cluster));
  const copy: Copy = { passport, files, onHost, inside, listing: path.join(files, 'record/listing'), queries, full: one.full, // and what is not known yet:
    programs: { version: '', binaries: '', image: '' }, sandbox: { folder: '', words: [], end: async () => {} }, server: null, databases: [], counted: new Map() };
  const begun = await step('extract', async () => {
    const programs = await findPrograms(passport, one.manifest);
    if (!programs) throw new Problem(`no PostgreSQL ${named(passport.version)} here to start it with`,
      { hint: packagesMissing(passport, one.manifest) });
    copy.programs = programs;
    return extractCluster(one, copy);
  });
  if (begun.ok === false) return await removeFiles(one);
  try {
    const damaged: string[] = [];
    const first = await step(FILE_CHECKS[0]!.check, () => FILE_CHECKS[0]!.examine(copy));
    damaged.push(...first.damaged ?? []);
    await lockIn(one.folder, one.manifest, copy);
    for (const { check, examine } of FILE_CHECKS.slice(1)) damaged.push(...(await step(check, () => examine(copy))).damaged ?? []);
    const started = await step('starts', async () => {
      copy.server = await startInside(copy.sandbox, copy.programs, copy.inside, copy.onHost, superusers(passport));
      return { ok: true, detail: `PostgreSQL ${passport.version}, ${copy.programs.image ? `in image ${copy.programs.image}` : 'with this host\'s own programs'}` };
    });
    if (started.ok) for (const { check, examine } of SERVER_CHECKS) await step(check, () => examine(copy));
    if (started.ok && damaged.length > 0) one.checks.find((check) => check.cluster === cluster && check.ok === false)!.detail += (await nameFiles(copy, damaged)).map((line) => `\n${line}`).join('');
  } finally {
    await copy.sandbox.end();
    await removeFiles(one);
  }
}

// Several files at a time: to free what the kernel remembers of 5 GB takes seconds. What cannot be removed is told at the end of the drill.
async function removeFiles({ folder }: Drill): Promise<void> {
  const names = ['own', 'root', ...fs.readdirSync(path.join(folder, 'files')).map((top) => `files/${top}`)].filter((name) => name !== 'files/record');
  await Promise.allSettled(names.map((name) => fs.promises.rm(path.join(folder, name), { recursive: true, force: true, maxRetries: 3 })));
}

// Roles out of the archive; the one that initdb made comes first.
function superusers({ roles = [], owner }: ClusterPassport): string[] {
  const known = roles.filter((role) => role.rolsuper && role.rolcanlogin).sort((a, b) => Number(a.oid) - Number(b.oid)).map((role) => String(role.rolname));
  return [...new Set([...known, owner, 'postgres'])].filter((role) => role !== '').slice(0, 10);
}

function packagesMissing({ version, container }: ClusterPassport, { packages, containers, postgres }: Manifest): string {
  const box = containers.find((one) => one.name === container);
  if (box) return pasteable(['docker', 'pull', box.imageDigests[0] ?? box.image]);
  const own = postgres.find((one) => one.version === version)?.packages ?? packages;
  const names = Object.keys(own.needed).filter((name) => name.startsWith('postgresql-') && name.includes(version)).map((name) => name.split(':')[0]!);
  return `apt-get install ${[...new Set([`postgresql-${version}`, ...names])].filter((name) => /^[\w.+-]+$/.test(name)).join(' ')}`;
}

/** Extract the files of a cluster. Given that what runs it is here, refuses without room, or when borg cannot read everything. */
async function extractCluster(one: Drill, { passport, listing }: Copy): Promise<Verdict> {
  const roots = outermost(passport.roots.filter((root) => root !== '/' && !isBelow(root, '/record'))); // pg_wal lies below the data directory, most often
  const left = fs.readdirSync(path.join(one.folder, 'files')).filter((name) => name !== 'record'); // borg would write through a link of the last cluster's
  if (left.length > 0) throw new Problem(`what was extracted before cannot be removed: ${left.map(named).join(', ')}`);
  if (roots.length === 0 || !roots.some((root) => isBelow(passport.dataDirectory, root))) throw new Problem('the record of this archive does not name its files');
  const { bytes, files } = await bytesBelow(listing, roots);
  const free = freeBytes(one.folder), needed = bytes * 1.02 + files * 4096 + 200e6; // WAL, temporary files, catalogs that are vacuumed
  if (free < needed) throw new Problem(`${named(path.dirname(one.folder))} has ${size(free)} free, ${size(needed)} are needed`,
    { hint: '`drill.folder` may name a larger disk' });
  const { seconds, damaged } = await extractFrom(one, [...roots.map((root) => root.slice(1)), ...(one.own ? RECORD : [])], `extracting ${passport.name}`);
  await one.confirm();
  if (one.own && fs.readFileSync(path.join(one.folder, 'files/record/manifest.json'), 'utf8') !== one.own) throw new Problem('the record in the archive is not the one that this server wrote with it');
  one.extracted = { bytes: one.extracted.bytes + bytes, seconds: one.extracted.seconds + seconds };
  return damaged.length > 0 ? bad(damaged) : good(`${count(files, 'file')}, ${size(bytes)}, ${size(bytes / Math.max(seconds, 0.1))}/s`);
}

async function extractFrom(one: Pick<Drill, 'id' | 'folder' | 'borg' | 'archive'>, paths: string[], title: string): Promise<{ seconds: number; damaged: string[] }> {
  const target = path.join(one.folder, 'files'), began = Date.now();
  fs.mkdirSync(target, { recursive: true, mode: 0o711 });
  const { damaged } = await patiently(() => extract(one.borg, [...NICELY, 'borg', '--umask', '0022', '--log-json', '--progress', 'extract', '--bypass-lock', '--sparse', '--noflags', `::${one.archive}`, ...paths.map(asPattern)], target, title, markOfRun(one.id)));
  return { seconds: (Date.now() - began) / 1000, damaged };
}

/** How many files lie below these paths, and how large they are, by the listing in the archive. */
async function bytesBelow(listing: string, roots: string[]): Promise<{ files: number; bytes: number }> {
  const found = { files: 0, bytes: 0 };
  await eachRecord(listing, (record) => {
    const [type, , , , bytes, , , ...file] = record.split('\t');
    if (type === 'd' || !roots.some((root) => isBelow(Buffer.from(file.join('\t'), 'latin1').toString(), root))) return;
    found.files++;
    found.bytes += Number(bytes);
  });
  return found;
}

/** Read everything in the archive back, without writing it anywhere: every chunk comes over the line, is decrypted and verified by borg. */
async function readBack(one: Drill, bytes: number): Promise<void> {
  const began = Date.now();
  say('reading everything back');
  let verdict: Verdict;
  try {
    const { warned, damaged } = await patiently(() => extract(one.borg, [...NICELY, 'borg', '--log-json', '--progress', 'extract', '--bypass-lock', '--dry-run', `::${one.archive}`], one.folder, 'reading everything back', markOfRun(one.id)));
    verdict = warned ? bad(damaged.length > 0 ? damaged : ['borg warned, which it never does of good files that it only reads']) : good(`${size(bytes)}, every chunk came and was whole`);
    if (one.extracted.bytes === 0) one.extracted = { bytes, seconds: (Date.now() - began) / 1000 };
  } catch (error) {
    goOn();
    if (!(error instanceof Problem)) throw error;
    verdict = { ok: false, detail: `${error.message}\n${lastLines(error.facts.said ?? '', 3)}` };
  }
  one.checks.push({ cluster: '', check: READ_BACK, ok: verdict.ok, seconds: (Date.now() - began) / 1000, detail: verdict.detail });
}
