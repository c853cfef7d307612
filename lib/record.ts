// The record that travels in every archive: manifest.json (plan, passport, proof), RESTORE.md, the listing, this script and
// the settings in force. With it an archive explains itself, to a person and to `restore`, with borg, key and passphrase alone.
// Changes only `record/` and `proven/` in the state folder.
import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { VERSION, editedOrAsBuilt } from './about.ts';
import { pasteable } from './say.ts';
import { readHistory } from './history.ts';
import type { HistoryLine } from './history.ts';
import { lastDrill } from './certificate.ts';
import type { Certificate } from './certificate.ts';
import type { Loaded } from './check.ts';
import type { Passport } from './passport.ts';
import type { Plan } from './plan.ts';
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
    ...passport, plan, parents: parentsOf([...plan.roots.map((root) => root.path), ...socketsOf(plan)]), proof: null, drill: lastDrill(readHistory(loaded.settings.stateFolder)),
  };
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

/** Write manifest.json with the proof, and RESTORE.md. Given the manifest, returns its text: what will be read back. */
export function finishRecord(stateFolder: string, manifest: Manifest): string {
  const folder = recordFolder(stateFolder);
  fs.writeFileSync(path.join(folder, 'RESTORE.md'), restoreText(manifest), { mode: 0o600 });
  const text = `${JSON.stringify(manifest, null, 1)}\n`;
  fs.writeFileSync(path.join(folder, 'manifest.json'), text, { mode: 0o600 }); // last: the newest file is the one borg reads anew every time
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

const block = (lines: string[]) => ['```sh', ...lines, '```'].join('\n');

/** RESTORE.md: how to restore this very archive by hand with borg, key file and passphrase, in commands that can be pasted. */
function restoreText(manifest: Manifest): string {
  const { plan, host, packages } = manifest;
  const onHost = manifest.postgres.filter((cluster) => cluster.container === '');
  const user = (uid: number) => host.users.find((one) => one.id === uid)?.name || uid, group = (gid: number) => host.groups.find((one) => one.id === gid)?.name || gid;
  const folders = plan.roots.map((root) => `- ${pasteable([root.path])} (${root.why})`);
  return [
    `# Restore ${manifest.archive}`,
    `Everything that server \`${manifest.server}\` saved on ${manifest.madeAt}, with all services stopped. It ran ${host.osRelease.PRETTY_NAME ?? os.type()} on ${host.architecture}.\n` +
    'You need: borg 1.2 or 1.4, the key file and the passphrase (both are on the recovery sheet), and an ssh key that the storage accepts (`export BORG_RSH="ssh -i FILE"`; its keeper can let in a new one). Everything below is done as root, on a machine of the same architecture.',
    '## 1. Reach the repository',
    block(['apt-get install --yes borgbackup', `export BORG_REPO=${pasteable([plan.repository])}`, 'export BORG_KEY_FILE=/root/borg_key   # the key file; `borg key import` makes it from the sheet',
      'read -rs -p "passphrase: " BORG_PASSPHRASE; export BORG_PASSPHRASE', 'borg list', `borg list ::${manifest.archive} record`]),
    'If borg says that the repository was at another place before, that is true on a new machine: answer yes.',
    '## 2. The same software',
    'Files of PostgreSQL fit the same major version only, and its extensions and locales have to be there. These were:',
    block([`# ${Object.entries(packages.needed).map(([name, version]) => `${name} ${version}`).join(', ')}`,
      `apt-get install --yes ${Object.keys(packages.needed).filter((name) => /^(postgresql|postgis|locales)/.test(name)).map((name) => pasteable([name.split(':')[0]!])).join(' ') || 'postgresql'}`]),
    `Locales: ${host.locales.join(', ')}. Check with \`locale -a\`; make missing ones with \`dpkg-reconfigure locales\`.`,
    ...(packages.unowned.length > 0 ? [`In no package, so copy them from elsewhere: ${packages.unowned.join(', ')}`] : []),
    '## 3. Stop what runs there, and make room',
    onHost.length > 0 ? block(onHost.map((cluster) => (cluster.configFolder ? `systemctl stop postgresql@${cluster.name.replace('/', '-')}   # and move its old data directory aside` : `# stop PostgreSQL in ${cluster.dataDirectory}`)))
      : 'Stop everything that uses the folders below.',
    ['These paths come back; what lies there now has to be moved away first:', '', ...folders].join('\n'),
    '## 4. Extract',
    'The folders above the saved ones are not in the archive: PostgreSQL cannot enter them if borg makes them, so make them first.',
    block([...manifest.parents.map((one) => `[ -d ${pasteable([one.path])} ] || install -d -m ${one.mode} -o ${user(one.uid)} -g ${group(one.gid)} ${pasteable([one.path])}`),
      `cd / && borg extract --progress --sparse ${manifest.containers.length > 0 && onHost.length === 0 ? '--numeric-ids ' : ''}::${manifest.archive} --exclude record`]),
    ...(manifest.containers.length > 0 ? ['Files of container volumes belong to numbers, not names: `borg extract --numeric-ids` gives them back as they were; for clusters on the host leave it out.'] : []),
    'Only a part of it, or a look first? Extract into an empty folder; paths are written without the first slash:',
    block(['mkdir /srv/look && cd /srv/look', `borg --umask 0022 extract --sparse ::${manifest.archive} ${pasteable([(plan.roots[0]?.path ?? '/record').slice(1)])}`]),
    ...(onHost.length > 0 ? ['A data directory that was extracted elsewhere still leads to the old places: before PostgreSQL is started on it, turn the link `pg_wal` and every link in `pg_tblspc` to the extracted folders. Else it would write into those of the running cluster.'] : []),
    '## 5. Start',
    block([...plan.parts.filter((part) => part.wasRunning).map((part) => pasteable(part.start)).reverse(), ...(plan.parts.length === 0 ? ['# nothing was stopped for this backup'] : [])]),
    '## 6. Check',
    'Row counts, sizes, extensions and collations of every database are in `record/manifest.json`. A collation version that differs from `recorded` there means: REINDEX the indexes it names, then `ALTER DATABASE ... REFRESH COLLATION VERSION`.',
    ...manifest.containers.map((one) => `Container \`${one.name}\` was made from image \`${one.image}\` (${one.imageDigests.join(', ') || one.imageId}), project \`${one.composeProject || '-'}\`, files ${one.composeFiles.join(', ') || '-'}.`),
  ].join('\n\n') + '\n';
}
