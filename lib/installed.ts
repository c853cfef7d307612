// Installed: what a cluster needs beside PostgreSQL itself: libraries, extensions, dictionaries.
// Given what an empty cluster of the same version could do here, says what is missing, older, or does not fit. Only judges.
import fs from 'node:fs';
import path from 'node:path';
import type { ClusterPassport } from './passport.ts';
import type { Texts } from './questions.ts';
import { LOADABLE } from './trial.ts';
import type { Abilities } from './trial.ts';
import { listed } from './collations.ts';
import { finding } from './machine.ts';
import type { Finding, PlannedCluster } from './judge.ts';

type Needed = { library: string; breaks: string; verdict: Finding['verdict'] };

const PRELOADED: Texts = { shared_preload_libraries: 'PostgreSQL does not start', session_preload_libraries: 'nobody can connect', local_preload_libraries: 'nobody can connect' };
const preloads = (text: string) => text.split(',').map((one) => one.trim().replace(/^"(.*)"$/, '$1')).filter((one) => one !== '');

/** The libraries a cluster loads: at its start, at each connection, for its functions, for its slots. The same one may be here more than once. */
export function librariesOf(told: ClusterPassport): Needed[] {
  const inPlugins = (name: string, library: string) => (name === 'local_preload_libraries' && !library.includes('/') ? `$libdir/plugins/${library}` : library);
  const preloaded = Object.entries(PRELOADED).flatMap(([name, breaks]) => preloads(told.preloadLibraries?.[name] ?? '').map((one): Needed => ({ library: inPlugins(name, one), breaks: `${breaks} (${name})`, verdict: 'refused' })));
  const byRole = (told.roleSettings ?? []).flatMap(({ role, database, settings }) => Object.keys(PRELOADED).flatMap((name) => preloads(settings?.[name] ?? '')
    .map((one): Needed => ({ library: inPlugins(name, one), breaks: `${[role && `role ${role}`, database && `database ${database}`].filter(Boolean).join(' in ')} cannot connect (${name})`, verdict: 'refused' }))));
  const used = new Map<string, string[]>();
  for (const { name, libraries } of told.databases) for (const one of libraries ?? []) used.set(one, [...used.get(one) ?? [], name]);
  const slots = (told.slots ?? []).flatMap(({ slot_name: name, plugin }): Needed[] => (plugin ? [{ library: plugin, breaks: `nobody can read slot ${name}`, verdict: 'note' }] : []));
  const archiver = told.settings?.archive_library ? [{ library: told.settings.archive_library, breaks: 'WAL is not archived', verdict: 'note' as const }] : [];
  return [...preloaded, ...byRole, ...[...used].map(([library, names]): Needed => ({ library, breaks: `functions and indexes that use it fail in ${listed(names)}`, verdict: 'refused' })), ...slots, ...archiver];
}

// LOAD may fail because a library wants to be loaded at the start (pg_cron); then it is here. Only what says that it is not, or does not fit, counts.
export const NOT_LOADED = /^(ERROR: +)?(could not access file|could not load library|incompatible library).*/m;

export function libraryFindings(cluster: PlannedCluster, told: ClusterPassport, abilities: Abilities): Finding[] {
  const elsewhere = (told.settings?.dynamic_library_path ?? '').split(':').filter((one) => one.startsWith('/'));
  const isThere = (library: string) => [library, ...elsewhere.map((one) => path.join(one, library))].some((file) => path.isAbsolute(file) && (fs.existsSync(file) || fs.existsSync(`${file}.so`)));
  return librariesOf(told).flatMap(({ library, breaks, verdict }): Finding[] => {
    const failed = LOADABLE.test(library) ? abilities.libraries[library] ?? '' : 'missing';
    if (LOADABLE.test(library) ? !NOT_LOADED.test(failed) : cluster.container) return [];
    if (isThere(library)) return [];
    const here = failed === 'missing' || /^could not access file.*No such file/.test(failed) ? 'missing' : failed;
    return [finding(told.name, `library ${library}`, { recorded: 'in use', here, breaks, verdict })];
  });
}

export function extensionsOf(told: ClusterPassport): { name: string; version: string; databases: string[] }[] {
  const found = new Map<string, { name: string; version: string; databases: string[] }>();
  for (const database of told.databases) {
    for (const { name, version } of database.extensions ?? []) {
      const key = JSON.stringify([name, version]);
      found.set(key, { name, version, databases: [...found.get(key)?.databases ?? [], database.name] });
    }
  }
  return [...found.values()];
}

// Whether the first version is the newer one: '3.10.1' is newer than '3.9'.
function isNewer(one: string, other: string): boolean {
  const [mine, theirs] = [one, other].map((version) => version.split(/[.-]/).map((part) => parseInt(part) || 0)) as [number[], number[]];
  const at = mine.findIndex((part, i) => part !== (theirs[i] ?? 0));
  return at >= 0 && mine[at]! > (theirs[at] ?? 0);
}

/**
 * An extension's objects are in the database; from here come its library (judged on its own) and its scripts, which tell
 * what version the library is of.
 */
export function extensionFindings(told: ClusterPassport, abilities: Abilities): Finding[] {
  return extensionsOf(told).flatMap(({ name, version, databases }): Finding[] => {
    const { control, known } = abilities.extensions[name] ?? {};
    if (!control || !known) return [];
    if (known.failed !== undefined) {
      return [finding(told.name, `extension ${name}`, { recorded: version, here: 'no control file', verdict: 'note', breaks: `what ${listed(databases)} hold of it works as far as its library does; it cannot be updated, and no dump with it restored here` })];
    }
    const own = /^\s*default_version\s*=\s*'([^']+)'/m.exec(control.is ?? '')?.[1], versions = [...known.is ?? [], ...(own ? [own] : [])];
    if (versions.length === 0 || versions.includes(version)) return [];
    const here = own ?? versions.reduce((best, one) => (isNewer(one, best) ? one : best));
    if (!isNewer(version, here)) return [finding(told.name, `extension ${name}`, { recorded: version, here, verdict: 'note', breaks: `no script leads from ${version} to ${here}: after ALTER EXTENSION ... UPDATE is asked for, ${listed(databases)} may need it made anew` })];
    const hasLibrary = /^\s*module_pathname/m.test(control.is ?? '');
    return [finding(told.name, `extension ${name}`, { recorded: version, here: `${here}, older`, verdict: hasLibrary ? 'refused' : 'note',
      breaks: hasLibrary ? `functions that came after ${here} are not in the library here, and fail in ${listed(databases)}` : `what ${listed(databases)} hold of it works; no dump with it can be restored here` })];
  });
}

const DICTIONARY_FILES: Record<string, string[]> = { dictfile: ['dict', 'ths'], afffile: ['affix'], stopwords: ['stop'], synonyms: ['syn'], rules: ['rules'] };

/** The files that dictionaries of text search read, each under the names it may have. */
export function dictionaryFiles(told: ClusterPassport): { database: string; dictionary: string; names: string[] }[] {
  return told.databases.flatMap(({ name: database, dictionaries }) => (dictionaries ?? []).flatMap(({ name: dictionary, options }) => [...String(options ?? '').matchAll(/(\w+)\s*=\s*'([a-z0-9_]+)'/gi)]
    .flatMap(([, option, file]) => (DICTIONARY_FILES[option!.toLowerCase()] ? [{ database, dictionary, names: DICTIONARY_FILES[option!.toLowerCase()]!.map((kind) => `${file}.${kind}`) }] : []))));
}

export function dictionaryFindings(cluster: PlannedCluster, told: ClusterPassport, abilities: Abilities): Finding[] {
  // Debian's are links into /var/cache/postgresql, which the sandbox does not show.
  const isThere = (names: string[]) => abilities.files[names[0]!] || (!cluster.container && names.some((name) => fs.existsSync(path.join(abilities.share, 'tsearch_data', name))));
  return dictionaryFiles(told).filter(({ names }) => !isThere(names)).map(({ database, dictionary, names }) => finding(told.name, `dictionary ${dictionary}`, { recorded: names[0]!, here: 'missing', verdict: 'after',
    breaks: `text search with it fails in ${database}`, mend: [`# copy ${path.join(abilities.share, 'tsearch_data', names[0]!)} from the saved server or its backup`] }));
}
