// The record that travels in every archive: manifest.json (plan, passport, proof), RESTORE.md, the listing, this script and
// the settings in force. With it an archive explains itself, to a person and to `restore`, with borg, key and passphrase alone.
// Changes only `record/` and `proven/` in the state folder.
import fs from 'node:fs';
import path from 'node:path';
import { Problem } from './say.ts';
import { VERSION, editedOrAsBuilt } from './about.ts';
import { readHistory } from './history.ts';
import type { HistoryLine } from './history.ts';
import { lastDrill } from './certificate.ts';
import type { Certificate } from './certificate.ts';
import type { Settings } from './settings.ts';
import type { Loaded } from './check.ts';
import type { Passport } from './passport.ts';
import type { Plan } from './plan.ts';
import { restoreText } from './runbook.ts';
import type { Proof } from './proof.ts';

/** A folder above a saved path: borg keeps none of these, and PostgreSQL does not start below a folder it may not enter. */
export type Parent = { path: string; mode: string; uid: number; gid: number };
export type Manifest = { format: 1; server: string; archive: string; madeAt: string; script: { version: string; state: string; node: string; file: string } }
  & Passport & { plan: Plan; parents: Parent[]; proof: Proof | null; drill: Certificate | null }; // drill: the last one, of an earlier archive

const KEPT_HISTORY_LINES = 500;

/** Where the record is made. */
export const recordFolder = (stateFolder: string) => path.join(stateFolder, 'record');
export const listingFile = (stateFolder: string) => path.join(recordFolder(stateFolder), 'listing');

/** Make the record, but for the proof: everything that can be written while all still runs. Returns the manifest. */
export function prepareRecord(loaded: Loaded, script: string, plan: Plan, passport: Passport): Manifest {
  const folder = recordFolder(loaded.settings.stateFolder);
  fs.rmSync(folder, { recursive: true, force: true });
  fs.mkdirSync(folder, { recursive: true, mode: 0o700 });
  const text = fs.readFileSync(script, 'utf8');
  fs.writeFileSync(path.join(folder, 'backup.js'), text, { mode: 0o600 });
  fs.writeFileSync(path.join(folder, 'backup.settings.js'), loaded.text, { mode: 0o600 });
  return {
    format: 1, server: plan.server, archive: plan.archive, madeAt: plan.madeAt,
    script: { version: VERSION, state: editedOrAsBuilt(text), node: process.version, file: script },
    ...passport, plan, parents: parentsOf([...plan.roots.map((root) => root.path), ...plan.clusters.flatMap((one) => one.roots), ...socketsOf(plan)]), proof: null, drill: lastDrill(readHistory(loaded.settings.stateFolder)),
  };
}

/** The newest file of a pass is one that borg reads anew the next time (borg issue 5992): let it be one of ours, not a cluster's. */
export function touchRecord(stateFolder: string): void {
  const now = new Date();
  fs.utimesSync(path.join(recordFolder(stateFolder), 'backup.js'), now, now);
}

// PostgreSQL does not start without the folder of its socket, which is in no backup.
function socketsOf(plan: Plan): string[] {
  return plan.clusters.filter((one) => one.container === '' && fs.existsSync(one.socketFolder)).map((one) => path.join(one.socketFolder, '.s.PGSQL'));
}

function parentsOf(roots: string[]): Parent[] {
  const parents = new Map<string, Parent>();
  for (const root of roots) {
    for (let folder = path.dirname(root); folder !== '/' && !parents.has(folder); folder = path.dirname(folder)) {
      const { mode: bits, uid, gid } = fs.statSync(folder);
      parents.set(folder, { path: folder, mode: (bits & 0o7777).toString(8).padStart(4, '0'), uid, gid });
    }
  }
  return [...parents.values()].sort((one, other) => (one.path < other.path ? -1 : 1));
}

/** Write manifest.json with the proof, and RESTORE.md in this language. Given the manifest, returns its text: what borg is fed, and what will be read back. */
export function finishRecord({ stateFolder, language }: Settings, manifest: Manifest): string {
  const folder = recordFolder(stateFolder);
  fs.writeFileSync(path.join(folder, 'RESTORE.md'), restoreText(manifest, language), { mode: 0o600 });
  const text = `${JSON.stringify(manifest, null, 1)}\n`;
  fs.writeFileSync(path.join(folder, 'manifest.json'), text, { mode: 0o600 });
  return text;
}

/** Write what the `proven-` archive holds: the second proof and the history with this run. Returns the folder. */
export function writeProof(stateFolder: string, proof: object, line: HistoryLine): string {
  const folder = path.join(stateFolder, 'proven');
  fs.rmSync(folder, { recursive: true, force: true });
  fs.mkdirSync(path.join(folder, 'record'), { recursive: true, mode: 0o700 });
  fs.writeFileSync(path.join(folder, 'record', 'proof.json'), `${JSON.stringify(proof, null, 1)}\n`, { mode: 0o600 });
  const lines = [...readHistory(stateFolder), line].slice(-KEPT_HISTORY_LINES);
  fs.writeFileSync(path.join(folder, 'record', 'history.jsonl'), lines.map((one) => `${JSON.stringify(one)}\n`).join(''), { mode: 0o600 });
  return folder;
}

/** Given the text of an archive's manifest and the archive's name, returns it. Throws Problem when it is not what this script writes: then nothing in it is used. */
export function soundManifest(text: string, archive: string): Manifest {
  const bad = (what: string) => new Problem(`the record of ${archive} cannot be trusted: ${what}`, { hint: `look at it: node backup.js borg extract --stdout ::${archive} record/manifest.json` });
  let manifest: any;
  try {
    manifest = JSON.parse(text);
  } catch {
    throw bad('record/manifest.json is no JSON');
  }
  const isText = (value: any) => typeof value === 'string' && !value.includes('\0');
  const isPath = (value: any) => isText(value) && value.startsWith('/') && path.resolve(value) === value;
  const all = (list: any, check: (one: any) => boolean) => Array.isArray(list) && list.every((one) => one !== null && typeof one === 'object' && check(one));
  const { plan, parents, containers, postgres, host } = manifest ?? {};
  if (manifest?.format !== 1 || !isText(manifest.server) || !isText(manifest.madeAt)) throw bad('its form is not known here');
  if (!all(plan?.roots, (one) => isPath(one.path) && isText(one.why))) throw bad('a path to restore is none');
  if (!all(plan.clusters, (one) => isText(one.name) && isPath(one.dataDirectory) && isPath(one.walFolder) && isText(one.binaries) && isText(one.container) && isText(one.socketFolder ?? '') && /^\d+(\.\d+)?$/.test(one.version)
    && all(one.tablespaces, (space) => isText(space.oid) && isText(space.location)))) throw bad('a cluster is none');
  if (!all(plan.parts, (one) => isText(one.name) && isText(one.kind) && Number.isInteger(one.group)) || !Array.isArray(plan.exclude)) throw bad('a part is none');
  if (!all(parents, (one) => isPath(one.path) && /^[0-7]{3,5}$/.test(one.mode) && Number.isInteger(one.uid) && Number.isInteger(one.gid))) throw bad('a folder is none');
  if (!all(containers, (one) => isText(one.name) && all(one.mounts, (mount) => isText(mount.source) && isText(mount.destination)))) throw bad('a container is none');
  if (!all(postgres, (one) => isText(one.name) && isPath(one.dataDirectory) && Array.isArray(one.databases))) throw bad('its passport is none');
  if (![host?.users, host?.groups, manifest.proof?.clusters ?? []].every((list) => all(list, () => true))) throw bad('its passport is none');
  return manifest;
}

/** The text of the manifest in the state folder when it is this archive's: what this server saved last. '' when it is another one's. */
export function ownManifest(stateFolder: string, archive: string): string {
  try {
    const text = fs.readFileSync(path.join(recordFolder(stateFolder), 'manifest.json'), 'utf8');
    return JSON.parse(text).archive === archive ? text : '';
  } catch { // there is none, or a run was killed while it wrote it
    return '';
  }
}
