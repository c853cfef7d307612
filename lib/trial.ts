// The empty cluster: PostgreSQL itself is asked what it can do here. A new cluster of the same programs is made in the sandbox, gets the
// locales, collations, libraries and settings of the saved one to try, tells how it sorts, and is thrown away. No list of ours knows better
// than CREATE DATABASE whether a locale is good. Changes nothing outside its scratch folder.
// Every name here stands in an archive and may be made to harm: it goes in as a quoted word or as data, never as SQL.
import fs from 'node:fs';
import path from 'node:path';
import { failure, look } from './shell.ts';
import { answerOf } from './form.ts';
import { SANDBOX_MARK } from './processes.ts';
import { orderFingerprint, queryCluster, quotedName } from './questions.ts';
import type { AnyFacts, Texts } from './questions.ts';
import type { Cluster } from './postgres.ts';
import { openSandbox, startInside } from './sandbox.ts';
import type { Programs, Sandbox } from './sandbox.ts';

export type Trial = { cluster: Cluster; version: number; system: Texts; end: () => Promise<void> };
/** How a database or collation sorts here: `failed` when it cannot be made, else its version (null: has none) and order. */
export type Order = { failed: string; version: string | null; fingerprint: string };
export type Sorting = { provider: string; encoding: string; collate: string; ctype: string; locale: string | null; rules: string | null; deterministic: boolean | null };
export type Wanted = { extensions: string[]; libraries: string[]; settings: [name: string, value: string][]; files: string[][] };
/** What the programs are and can: by name, what failed ('' = nothing did). */
export type Abilities = {
  version: string; number: number; control: AnyFacts; extensions: Record<string, { control: { is?: string; failed?: string }; known: { is?: string[]; failed?: string } }>;
  libraries: Texts; settings: Texts; files: Record<string, boolean>; share: string;
};

const WRITABLE = { default_transaction_read_only: 'off' }; // it is ours, and empty
export const sqlText = (text: string) => `'${text.replaceAll("'", "''")}'`;
const sqlData = (data: unknown) => `${sqlText(JSON.stringify(data))}::jsonb`;

/**
 * Make an empty cluster below FOLDER and start it, locked in. Returns null when there is no such program. Throws Problem
 * when it, or this machine, does not let us.
 */
export async function startTrial(programs: Programs, folder: string): Promise<Trial | null> {
  const sandbox = await openSandbox(fs.mkdtempSync(path.join(folder, 'cold-backup-judge-')), programs.image || !fs.existsSync('/opt') ? [] : [{ from: '/opt', at: '/opt' }], programs); // libraries may need others from there
  const end = async () => {
    await sandbox.end();
    fs.rmSync(sandbox.folder, { recursive: true, force: true });
  };
  try {
    const made = await look([...sandbox.words, path.join(programs.binaries, 'initdb'), '-D', '/own/empty', '--username=postgres', '--auth=trust', '--encoding=UTF8', '--locale=C', '--wal-segsize=1', '--no-sync']);
    if (made.code === 126 || made.code === 127) {
      await end();
      return null;
    }
    if (made.code !== 0) throw failure(`PostgreSQL ${programs.version} cannot make an empty cluster here`, made);
    fs.writeFileSync(path.join(sandbox.folder, 'own/empty', SANDBOX_MARK), '', { flag: 'wx' }); // never through a link that an image laid there
    const [cluster, system] = await Promise.all([startInside(sandbox, programs, '/own/empty', path.join(sandbox.folder, 'own/empty'), ['postgres']), systemInside(sandbox)]);
    return { cluster, version: Number(programs.version), system, end };
  } catch (error) {
    await end();
    throw error;
  }
}

async function systemInside({ words }: Sandbox): Promise<Texts> {
  return { libc: (await look([...words, 'getconf', 'GNU_LIBC_VERSION'])).out.trim() };
}

/** Ask what the programs are, which extensions they know, which libraries load, which values settings take, which files of dictionaries are there. */
export async function askAbilities({ cluster }: Trial, wanted: Wanted): Promise<Abilities> {
  const done = await queryCluster(cluster, 'postgres', `
    create function pg_temp.failure(text) returns text language plpgsql as $$begin execute $1; return ''; exception when others then return sqlerrm; end$$;
    create function pg_temp.told(text) returns jsonb language plpgsql as $$declare r jsonb; begin execute $1 into r; return jsonb_build_object('is', r);
      exception when others then return jsonb_build_object('failed', sqlerrm); end$$;
    with share(folder) as materialized (select setting from pg_config where name = 'SHAREDIR')
    select jsonb_build_object('share', (select folder from share), 'version', current_setting('server_version'), 'number', current_setting('server_version_num')::int,
      'control', (select to_jsonb(s) || to_jsonb(i) from pg_control_system() s, pg_control_init() i),
      'extensions', (select coalesce(jsonb_object_agg(x, jsonb_build_object(
          'control', pg_temp.told(format('select to_jsonb(pg_read_file(%L, 0, 100000, true))', folder || '/extension/' || x || '.control')),
          'known', pg_temp.told(format('select jsonb_agg(distinct v) from pg_extension_update_paths(%L) p, unnest(array[source, target]) v', x)))), '{}')
        from share, jsonb_array_elements_text(${sqlData(wanted.extensions.filter((one) => /^[^/\\]+$/.test(one)))}) x),
      'settings', (select coalesce(jsonb_object_agg((x->>0) || '=' || (x->>1), pg_temp.failure(format('select set_config(%L, %L, false)', regexp_replace(x->>0, '^log_timezone$', 'timezone'), x->>1))), '{}')
        from jsonb_array_elements(${sqlData(wanted.settings)}) x),
      'files', (select coalesce(jsonb_object_agg(f->>0, exists(select from jsonb_array_elements_text(f) n where pg_stat_file(folder || '/tsearch_data/' || n, true) is not null)), '{}')
        from share, jsonb_array_elements(${sqlData(wanted.files)}) f),
      'libraries', (select coalesce(jsonb_object_agg(x, pg_temp.failure(format('load %L', x))), '{}') from jsonb_array_elements_text(${sqlData(wanted.libraries.filter((one) => LOADABLE.test(one)))}) x
        where x not in (select probin from pg_proc where probin is not null)))`, 60, WRITABLE); // those every cluster has: small images lack some, and initdb needs the others
  if (done.code !== 0) throw failure('an empty cluster does not tell what it can', { ...done, argv: done.argv.slice(0, 8) });
  return answerOf('an empty cluster does not tell what it can', done, { share: 'text', version: 'text', number: 'number', control: { '*': 'anything' }, extensions: { '*': 'anything' }, settings: { '*': 'anything' }, files: { '*': 'anything' }, libraries: { '*': 'text' } });
}

/** A library that may be loaded to see whether it can be: one of PostgreSQL's own folder. */
export const LOADABLE = /^(\$libdir\/(plugins\/)?)?[\w+-][\w.+-]*$/;

/** Make a database of this definition and see how it sorts; then the collations, by key, in it. Returns their orders: of the database under ''. */
export async function askOrders(trial: Trial, name: string, database: Sorting, collations: Map<string, Sorting>): Promise<Map<string, Order>> {
  const { cluster } = trial, orders = new Map<string, Order>();
  const made = await queryCluster(cluster, 'postgres', createDatabase(trial.version, name, database), 60, WRITABLE);
  if (made.code !== 0 && !/locale|lc_|encoding|icu|provider|rules/i.test(made.said)) throw failure('an empty database cannot be made', { ...made, argv: made.argv.slice(0, 8) }); // no room, say: that tells nothing of locales
  if (made.code !== 0) return orders.set('', { failed: made.said.trim(), version: null, fingerprint: '' });
  const keys = [...collations.keys()], list = keys.map((key, i) => [`c${i}`, collationOptions(collations.get(key)!)]);
  const [fingerprint, told] = await Promise.all([orderFingerprint(cluster, name), queryCluster(cluster, name, `
    create function pg_temp.order_of(name text, options text) returns jsonb language plpgsql as $$begin
      execute format('create collation public.%I (%s)', name, options);
      return jsonb_build_object('failed', '', 'version', (select pg_collation_actual_version(oid) from pg_collation where collname = name));
      exception when others then return jsonb_build_object('failed', sqlerrm); end$$;
    select jsonb_build_object('own', ${trial.version >= 15 ? '(select pg_database_collation_actual_version(oid) from pg_database where datname = current_database())' : 'null'},
      'collations', (select jsonb_object_agg(x->>0, pg_temp.order_of(x->>0, x->>1)) from jsonb_array_elements(${sqlData(list)}) x))`, 60, WRITABLE)]);
  if (told.code !== 0) throw failure('an empty database does not tell how it sorts', { ...told, argv: told.argv.slice(0, 8) });
  const facts = answerOf('an empty database does not tell how it sorts', told, { 'own?': 'text', 'collations?': { '*': { failed: 'text' } } });
  orders.set('', { failed: '', version: facts.own, fingerprint });
  await Promise.all(keys.map(async (key, i) => {
    const { failed, version = null } = facts.collations[`c${i}`];
    orders.set(key, { failed, version, fingerprint: failed ? '' : await orderFingerprint(cluster, name, `public.c${i}`) });
  }));
  return orders;
}

function createDatabase(version: number, name: string, { provider, encoding, collate, ctype, locale, rules }: Sorting): string {
  const words = { i: 'icu', b: 'builtin' }[provider];
  return [`create database ${quotedName(name)} template template0 encoding ${sqlText(encoding)} lc_collate ${sqlText(collate)} lc_ctype ${sqlText(ctype)}`,
    ...(version >= 15 ? [`locale_provider ${words ?? 'libc'}`] : []), ...(words && locale ? [`${words}_locale ${sqlText(locale)}`] : []),
    ...(rules ? [`icu_rules ${sqlText(rules)}`] : [])].join(' ');
}

// These become part of a CREATE COLLATION: each value is a quoted word.
function collationOptions({ provider, locale, rules, deterministic }: Sorting): string {
  return [`provider = ${{ i: 'icu', b: 'builtin' }[provider] ?? 'libc'}`, `locale = ${sqlText(locale ?? '')}`, ...(rules ? [`rules = ${sqlText(rules)}`] : []),
    ...(deterministic === false ? ['deterministic = false'] : [])].join(', ');
}
