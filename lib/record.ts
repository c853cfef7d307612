// The record that travels in every archive: manifest.json, RESTORE.md, listing, script, settings.
// The manifest holds plan, passport and proof. With it an archive explains itself, to a person and to `restore`, with borg, key
// and passphrase alone. Changes only `record/` and `proven/` in the state folder.
import fs from 'node:fs';
import path from 'node:path';
import { Problem, warn } from './say.ts';
import { isBelow } from './files.ts';
import { misfit } from './form.ts';
import type { Form } from './form.ts';
import { VERSION, editedOrAsBuilt } from './about.ts';
import { readHistory } from './history.ts';
import type { HistoryLine } from './history.ts';
import { lastDrill } from './certificate.ts';
import type { Certificate } from './certificate.ts';
import type { Settings } from './settings.ts';
import type { Loaded } from './check.ts';
import type { Passport } from './passport.ts';
import type { Root } from './ways.ts';
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

/** Begin the record anew, with this script and the settings in force. Given the script's file and what was read as settings. */
export function beginRecord(loaded: Loaded, script: string): void {
  const folder = recordFolder(loaded.settings.stateFolder);
  fs.rmSync(folder, { recursive: true, force: true });
  fs.mkdirSync(folder, { recursive: true, mode: 0o700 });
  fs.writeFileSync(path.join(folder, 'backup.js'), fs.readFileSync(script, 'utf8'), { mode: 0o600 });
  fs.writeFileSync(path.join(folder, 'backup.settings.js'), loaded.text, { mode: 0o600 });
}

/** The manifest, but for the proof: all of it that can be known while everything still runs. Warns of a fact that would keep `restore` from it. */
export function manifestOf(stateFolder: string, script: string, plan: Plan, passport: Passport): Manifest {
  const text = fs.readFileSync(path.join(recordFolder(stateFolder), 'backup.js'), 'utf8');
  const manifest: Manifest = {
    format: 1, server: plan.server, archive: plan.archive, madeAt: plan.madeAt,
    script: { version: VERSION, state: editedOrAsBuilt(text), node: process.version, file: script },
    ...passport, plan, parents: parentsOf([...plan.roots.map((root) => root.path), ...plan.clusters.flatMap((one) => one.roots), ...socketsOf(plan)]), proof: null, drill: lastDrill(readHistory(stateFolder)),
  };
  const odd = misfit(manifest, MANIFEST_FORM);
  if (odd) warn(`\`restore\` and \`drill\` will refuse this archive, for ${odd} is not what it should be; RESTORE.md in it says how to bring it back by hand`);
  return manifest;
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

/**
 * Write manifest.json with the proof, and RESTORE.md in this language. Given the manifest, returns its text: what borg is
 * fed, and what will be read back.
 */
export function finishRecord({ stateFolder, language }: Settings, manifest: Manifest): string {
  const folder = recordFolder(stateFolder);
  fs.writeFileSync(path.join(folder, 'RESTORE.md'), restoreText(manifest, language), { mode: 0o600 });
  const text = `${JSON.stringify(manifest, null, 1)}\n`;
  fs.writeFileSync(path.join(folder, 'manifest.json'), text, { mode: 0o600 });
  return text;
}

/** Write what the `proven-` archive holds beside the proof: the history with this run. Returns the folder. */
export function writeHistory(stateFolder: string, line: HistoryLine): string {
  const folder = path.join(stateFolder, 'proven');
  fs.rmSync(folder, { recursive: true, force: true });
  fs.mkdirSync(path.join(folder, 'record'), { recursive: true, mode: 0o700 });
  const lines = [...readHistory(stateFolder), line].slice(-KEPT_HISTORY_LINES);
  fs.writeFileSync(path.join(folder, 'record', 'history.jsonl'), lines.map((one) => `${JSON.stringify(one)}\n`).join(''), { mode: 0o600 });
  return folder;
}

// Everything that `restore`, `drill` and the judge read.
const FOUND_IN_DATABASE: Form = {
  name: 'text', encoding: 'text', collate: 'text', ctype: 'text', provider: 'text', orderFingerprint: 'text', 'locale?': 'text', 'rules?': 'text', 'recorded?': 'text', 'actual?': 'text',
  'extensions?': [{ name: 'text', version: 'text' }], 'libraries?': ['text'], 'rows?': { '*': 'anything' }, 'activity?': { '*': 'text or null' }, 'dictionaries?': [{ name: 'text' }],
  'collations?': [{ schema: 'text', name: 'text', provider: 'text', orderFingerprint: 'text', indexes: ['text'], partitionedTables: ['text'],
    'locale?': 'text', 'rules?': 'text', 'recorded?': 'text', 'actual?': 'text' }],
};
const SAVED_CLUSTER: Form = {
  name: 'text', dataDirectory: 'path', walFolder: 'path', version: 'version', binaries: 'text', owner: 'text', container: 'text', 'socketFolder?': 'text', port: 'text',
  uid: 'id', gid: 'id', roots: ['path'], tablespaces: [{ oid: 'text', location: 'text', 'link?': 'text' }], 'configLinks?': [{ link: 'text', location: 'text' }],
};
const PACKAGES: Form = { all: { '*': 'text' }, needed: { '*': 'text' }, unowned: ['text'] };
const MANIFEST_FORM: Form = {
  server: 'server', madeAt: 'text', packages: PACKAGES, parents: [{ path: 'path', mode: 'bits', uid: 'id', gid: 'id' }], 'proof?': { clusters: [{ dataDirectory: 'text', systemIdentifier: 'text' }] },
  host: { architecture: 'text', libc: 'text', users: [{ id: 'id', 'name?': 'text', 'group?': 'id' }], groups: [{ id: 'id', 'name?': 'text' }] },
  containers: [{ name: 'text', image: 'text', imageId: 'text', imageDigests: ['text'], composeProject: 'text', composeService: 'text', composeFiles: ['text'],
    mounts: [{ 'type?': 'text', 'name?': 'text', source: 'text', destination: 'text' }] }],
  postgres: [{ ...SAVED_CLUSTER, systemIdentifier: 'text', controlData: { '*': 'anything' }, databases: [FOUND_IN_DATABASE], 'insideDataDirectory?': 'text', 'packages?': PACKAGES,
    'system?': { libc: 'text' }, 'serverVersion?': 'text', 'settings?': { '*': 'text or null' }, 'preloadLibraries?': { '*': 'text or null' }, 'roles?': [{ rolname: 'text' }],
    'roleSettings?': [{ 'role?': 'text', 'database?': 'text', 'settings?': { '*': 'text or null' } }], 'standbys?': [{ 'pid?': 'number', 'application_name?': 'text' }],
    'slots?': [{ 'slot_name?': 'text', 'plugin?': 'text', 'database?': 'text', 'active_pid?': 'number', 'temporary?': 'yes or no' }], 'subscriptions?': [{ subname: 'text', database: 'text' }] }],
  plan: { roots: [{ path: 'path', why: 'text' }], clusters: [{ ...SAVED_CLUSTER, pid: 'id' }], parts: [{ name: 'text', kind: 'text', group: 'number' }], exclude: ['text'] },
};

/**
 * Given the text of an archive's manifest and the archive's name, returns it. Throws Problem when it is not what this script
 * writes: then nothing in it is used.
 */
export function soundManifest(text: string, archive: string): Manifest {
  const bad = (what: string) => new Problem(`the record of ${archive} cannot be trusted: ${what}`,
    { hint: `look at it: node backup.js borg extract --stdout ::${archive} record/manifest.json` });
  let manifest: any;
  try {
    manifest = JSON.parse(text);
  } catch {
    throw bad('record/manifest.json is no JSON');
  }
  const odd = manifest?.format === 1 ? misfit(manifest, MANIFEST_FORM) : 'its form';
  if (odd) throw bad(`${odd} is not what it should be`);
  return manifest;
}

/** Where a path as it is typed lies in the archive: `folders` may name it over a link, and what that leads to is saved. */
export function asSaved({ plan }: Manifest, file: string): string {
  const typedOf = ({ why }: Root) => /^folder (.*) leads here$/s.exec(why)?.[1] ?? '';
  const root = plan.roots.find((one) => typedOf(one) !== '' && isBelow(file, typedOf(one)) && !plan.roots.some((other) => other.path === file));
  return root ? root.path + file.slice(typedOf(root).length) : file;
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
