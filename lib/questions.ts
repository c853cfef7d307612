// What is asked of a cluster: the SQL of the passport, and the one way to run it.
// Only looks: read-only sessions, with limits on how long they run and wait for locks. Facts are asked all at once, one by one
// when that fails; one that cannot be had is a warning. No secrets: no role passwords, no connection strings, and whatever looks
// like a password inside a setting is masked. PostgreSQL 12 to 18: a column that only some versions have is read as
// to_jsonb(row)->>'column', which is null where there is none.
import fs from 'node:fs';
import path from 'node:path';
import { look } from './shell.ts';
import { withItsLink } from './files.ts';
import type { Done } from './shell.ts';
import { lastLines, named, warn } from './say.ts';
import { asOwner } from './postgres.ts';
import type { Cluster } from './postgres.ts';

export type Texts = Record<string, string>;
export type AnyFacts = Record<string, any>;

const COUNTED_UP_TO_BYTES = 256 * 1024 * 1024; // larger tables: only what the planner believes
const COUNTING_SECONDS = 30; // for one database; from then on only what the planner believes

// A SELECT as one JSON value: its rows as objects, its single column as a list, its two columns as names and values.
const rowsOf = (select: string) => `(select coalesce(jsonb_agg(x), '[]') from (${select}) x)`;
const listOf = (select: string) => `(select coalesce(jsonb_agg(v), '[]') from (${select}) x(v))`;
export const mapOf = (select: string) => `(select coalesce(jsonb_object_agg(k, v), '{}') from (${select}) x(k, v))`;

// Settings worth telling: all that somebody set, what was fixed when server and cluster were made, what another machine must at least match.
const TOLD_SETTINGS = `source not in ('default', 'client', 'session') and name !~ '^transaction_' or category = 'Preset Options' or name ~ '^(wal_level`
  + `|archive_.*|.*_(library|control)_path|max_(connections|worker_processes|wal_senders|replication_slots|prepared_transactions|locks_per_transaction))$'`;

/** Facts of a whole cluster of major VERSION: name, and the SQL expression that answers it. */
export const clusterQuestions = (version: number): Texts => ({
  serverVersion: `version()`,
  startedAt: `pg_postmaster_start_time()`,
  superuser: `current_setting('is_superuser')::bool`,
  pgConfig: mapOf(`select name, setting from pg_config`),
  control: `(select to_jsonb(s) || to_jsonb(c) || to_jsonb(i) || to_jsonb(r) || jsonb_build_object('system_identifier', s.system_identifier::text)
    from pg_control_system() s, pg_control_checkpoint() c, pg_control_init() i, pg_control_recovery() r)`,
  settings: mapOf(`select name, current_setting(name, true) from pg_settings where ${TOLD_SETTINGS}`),
  settingSources: mapOf(`select name, source || coalesce(' ' || sourcefile || ':' || sourceline, '') from pg_settings where ${TOLD_SETTINGS}`),
  settingErrors: rowsOf(`select sourcefile as file, sourceline as line, name, error from pg_file_settings where error is not null`),
  pendingRestart: listOf(`select name from pg_settings where pending_restart`),
  preloadLibraries: mapOf(`select name, setting from pg_settings where name like '%preload_libraries'`),
  configurationFiles: listOf(`select sourcefile from pg_file_settings where sourcefile <> ''
    union select to_jsonb(h)->>'file_name' from pg_hba_file_rules h where to_jsonb(h)->>'file_name' <> ''
    union select setting from pg_settings where name in ('config_file', 'hba_file', 'ident_file')`),
  hba: rowsOf(`select * from pg_hba_file_rules`),
  roleSettings: rowsOf(`select d.datname as database, r.rolname as role,
    ${mapOf(`select split_part(c, '=', 1), substr(c, strpos(c, '=') + 1) from unnest(setconfig) c`)} as settings
    from pg_db_role_setting s left join pg_database d on d.oid = s.setdatabase left join pg_roles r on r.oid = s.setrole`),
  tablespaceSizes: rowsOf(`select oid, spcname as name, pg_tablespace_location(oid) as location, pg_tablespace_size(oid) as bytes, spcoptions as options
    from pg_tablespace`),
  roles: listOf(`select to_jsonb(r) - 'rolpassword' - 'rolconfig' from pg_roles r where rolname !~ '^pg_' order by rolname`),
  slots: rowsOf(`select *, pg_wal_lsn_diff(case when pg_is_in_recovery() then pg_last_wal_replay_lsn() else pg_current_wal_lsn() end,
    restart_lsn) as "retainedBytes" from pg_replication_slots`),
  standbys: rowsOf(`select * from pg_stat_replication`),
  subscriptions: listOf(`select to_jsonb(s) - 'subconninfo' || jsonb_build_object('database', datname)
    from pg_subscription s join pg_database d on d.oid = subdbid`),
  preparedTransactions: rowsOf(`select * from pg_prepared_xacts`),
  recovery: `jsonb_build_object('inRecovery', pg_is_in_recovery(), 'received', pg_last_wal_receive_lsn(), 'replayed', pg_last_wal_replay_lsn(),
    'receiver', (select to_jsonb(w) - 'conninfo' from pg_stat_wal_receiver w))`,
  archiver: `(select to_jsonb(a) from pg_stat_archiver a)`,
  wal: `(select jsonb_build_object('files', count(*), 'bytes', sum(size)) from pg_ls_waldir())`,
  databases: rowsOf(`select datname as name, pg_get_userbyid(datdba) as owner, pg_encoding_to_char(encoding) as encoding,
    datcollate as collate, datctype as ctype, coalesce(to_jsonb(d)->>'datlocprovider', 'c') as provider,
    coalesce(to_jsonb(d)->>'datlocale', to_jsonb(d)->>'daticulocale') as locale, to_jsonb(d)->>'daticurules' as rules,
    to_jsonb(d)->>'datcollversion' as recorded, ${version >= 15 ? 'pg_database_collation_actual_version(d.oid)' : 'null'} as actual,
    pg_database_size(d.oid) as bytes, spcname as tablespace, datistemplate as template, datallowconn and datconnlimit <> -2 as connectable
    from pg_database d join pg_tablespace t on t.oid = dattablespace order by datname`),
});

/** Facts of one database. rows is exact, null where it was not counted; estimatedRows is the planner's, -1 where it never looked. */
export const databaseQuestions: Texts = {
  extensions: rowsOf(`select extname as name, extversion as version, extnamespace::regnamespace as schema from pg_extension order by 1`),
  libraries: listOf(`select distinct probin from pg_proc where probin is not null`),
  // Indexes and partition bounds lie in the order of a collation: when its version changes, these need REINDEX.
  collations: rowsOf(`with used(oid, index, partitioned) as (
      select o, i.oid::regclass::text, null from pg_index x join pg_class i on i.oid = indexrelid and i.relkind = 'i' and i.relpersistence <> 't', unnest(indcollation::oid[]) o
        where indrelid >= 16384 and o <> 0
      union select o, null, partrelid::regclass::text from pg_partitioned_table, unnest(partcollation::oid[]) o where o <> 0)
    select (select nspname from pg_namespace n where n.oid = collnamespace) as schema, collname as name, collprovider as provider,
      coalesce(to_jsonb(c)->>'colllocale', to_jsonb(c)->>'colliculocale', to_jsonb(c)->>'collcollate') as locale, to_jsonb(c)->>'collicurules' as rules,
      collisdeterministic as deterministic, collversion as recorded, pg_collation_actual_version(c.oid) as actual, indexes, "partitionedTables"
    from (select oid, array_remove(array_agg(index), null) as indexes, array_remove(array_agg(partitioned), null) as "partitionedTables"
      from used group by oid) u join pg_collation c using (oid) order by 1, 2`),
  relations: mapOf(`select relkind::text || relpersistence::text, count(*) from pg_class where oid >= 16384 group by 1`), // 'rp': permanent tables
  estimatedRows: mapOf(`select oid::regclass, reltuples from pg_class where relkind in ('r', 'm') and relpersistence <> 't' and oid >= 16384`),
  // query_to_xml is the one way to run a SELECT made up inside a SELECT. Smallest tables first, until the time is over.
  // A table that somebody holds locked is left out: waiting for it would cost all the other facts.
  rows: mapOf(`select name, case when clock_timestamp() < statement_timestamp() + interval '${COUNTING_SECONDS} seconds'
      then substring(query_to_xml('select count(*) n from only ' || name, false, true, '')::text from '<n>(\\d+)</n>')::bigint end
    from (select oid::regclass::text as name, pg_relation_size(oid) as bytes from pg_class c
      where relkind in ('r', 'm') and relpersistence <> 't' and relispopulated and oid >= 16384
      and not exists (select from pg_locks l where l.relation = c.oid and mode = 'AccessExclusiveLock')
      order by bytes offset 0) t where bytes <= ${COUNTED_UP_TO_BYTES}`),
  sequences: rowsOf(`select format('%I.%I', schemaname, sequencename) as name, last_value::text as last from pg_sequences`), // text: may exceed 2^53
  unlogged: listOf(`select oid::regclass from pg_class where relpersistence = 'u' and relkind in ('r', 'm')`),
  invalidIndexes: listOf(`select indexrelid::regclass from pg_index where not indisvalid`),
  largeObjects: `(select count(*) from pg_largeobject_metadata)`,
  publications: rowsOf(`select * from pg_publication`),
  foreignServers: rowsOf(`select srvname as name, fdwname as wrapper from pg_foreign_server s join pg_foreign_data_wrapper w on w.oid = srvfdw`),
  eventTriggers: listOf(`select evtname from pg_event_trigger`),
  dictionaries: rowsOf(`select dictname as name, dictinitoption as options from pg_ts_dict where oid >= 16384`),
};

/**
 * For each table its file and how many rows the server has seen inserted and deleted: what shows later whether somebody touched it. To be asked BEFORE rows are counted: what is
 * written in between then shows as touched, and never the other way round.
 */
export const activityQuestion: Texts = {
  activity: mapOf(`select oid::regclass, concat_ws(' ', pg_relation_filenode(oid), pg_stat_get_tuples_inserted(oid), pg_stat_get_tuples_deleted(oid))
    from pg_class where relkind in ('r', 'm') and relpersistence <> 't' and oid >= 16384`),
};

export const quotedName = (name: string) => `"${name.replaceAll('"', '""')}"`;

// The files of a cluster as we see them: in a container below /proc/PID/root (proc(5)).
export const rootOf = (cluster: Cluster) => (cluster.container && cluster.pid ? `/proc/${cluster.pid}/root` : '');
// The words before a command that is to look around where the cluster lives.
export const placeOf = (cluster: Cluster) => cluster.words ?? (cluster.container ? ['docker', 'exec', cluster.container] : []);
const roleThatWorks = new Map<string, string>(); // by data directory, where it is not the first choice of queryCluster()
/** From now on this cluster is asked as this role. */
export const useRole = (cluster: Cluster, role: string) => roleThatWorks.set(cluster.dataDirectory, role);

const sessionSettings = (settings: Record<string, string | undefined>) => Object.entries(settings).filter(([, value]) => value !== undefined).map(([name, value]) => `-c ${name}=${value}`).join(' ');
const asDatabaseWord = (database: string) => (/=|:\/\//.test(database) ? `dbname='${database.replace(/['\\]/g, '\\$&')}'` : database); // else psql takes such a name for an address

/**
 * Given a running cluster, a database and SQL, runs it with psql as the cluster's owner over its socket, in a read-only session.
 * The role is the owner's name, in a container $POSTGRES_USER, and 'postgres' where that one does not get in.
 * `more`: settings of the session beside the usual ones, or instead of them. Returns how psql ended, `out` being the bare values (-A -t); code 2 = no connection, 1 = SQL failed. Never waits: for no password (-w),
 * not long for a lock. Throws nothing for what psql does.
 */
export async function queryCluster(cluster: Cluster, database: string, sql: string, seconds = 60, more: Record<string, string | undefined> = {}): Promise<Done> {
  if (cluster.port === '') return { argv: [], code: 2, out: '', said: 'its port is not known', timedOut: false }; // psql would ask whoever has port 5432
  const env = {
    PGCONNECT_TIMEOUT: '5', PGAPPNAME: 'cold-backup', PGCLIENTENCODING: 'UTF8',
    PGOPTIONS: sessionSettings({ search_path: 'pg_catalog', statement_timeout: `${seconds}s`, lock_timeout: '2s', default_transaction_read_only: 'on', jit: 'off', ...more }),
  };
  const own = path.join(cluster.binaries, 'psql');
  const psql = [fs.existsSync(rootOf(cluster) + own) ? own : 'psql', // one from PATH will do: a newer psql speaks to older servers
    '-X', '-w', '-q', '-A', '-t', '-v', 'ON_ERROR_STOP=1', '-h', cluster.socketFolder || 'localhost', '-p', cluster.port, '-d', asDatabaseWord(database), '-c', sql];
  // Name and password are in the container's environment and stay there: this shell is the container's.
  const within = ['sh', '-c', 'export PGPASSWORD="${PGPASSWORD:-$POSTGRES_PASSWORD}"; role=$1; shift; exec "$@" -U "${role:-${POSTGRES_USER:-postgres}}"', 'sh'];
  const inContainer = ['docker', 'exec', '--user', String(cluster.uid), ...Object.entries(env).flatMap(([name, value]) => ['--env', `${name}=${value}`]), cluster.container];
  const inSandbox = [...cluster.words ?? [], 'env', ...Object.entries(env).map(([name, value]) => `${name}=${value}`)];
  const attempt = (role: string) => {
    const options = { cwd: '/', env, seconds: seconds + 10, keepBytes: 64 * 1024 * 1024 };
    if (cluster.words) return look([...inSandbox, ...psql, '-U', role || 'postgres'], options);
    if (cluster.container) return look([...inContainer, ...within, role, ...psql], options);
    return look([...asOwner(cluster), ...psql, ...(role ? ['-U', role] : [])], options);
  };
  const known = roleThatWorks.get(cluster.dataDirectory);
  const first = await attempt(known ?? '');
  if (first.code !== 2 || known) return first; // 2: no connection; why, it says in the server's language
  const second = await attempt('postgres');
  if (second.code === 2) return first;
  roleThatWorks.set(cluster.dataDirectory, 'postgres');
  return second;
}

const SECRET = '[\\w.-]*(?:passw(?:or)?d|passphrase|secret|token|credential|access_?key|api_?key)[\\w.-]*';
const SECRET_NAME = new RegExp(`^(?!password_encryption$)${SECRET}$`, 'i');
const SECRET_VALUE = new RegExp(`(${SECRET}\\s*=\\s*|--${SECRET}\\s+)('(?:[^'\\\\]|\\\\.)*'|"[^"]*"|[^\\s;&'"]+)`, 'gi'); // password=x, --token x
const SECRET_IN_URL = /(\w:\/\/[^\s:/@]*:)[^\s@]+@/g; // postgres://user:x@host

/** Given a setting's name and value, returns the value with '(masked)' in the place of whatever looks like a password, token or key. */
export function maskSecrets(name: string, value: string): string {
  if (SECRET_NAME.test(name) && value !== '') return '(masked)';
  return value.replace(SECRET_VALUE, '$1(masked)').replace(SECRET_IN_URL, '$1(masked)@');
}

// The answers to questions, by name. They go as one statement; when that fails, one by one, and those that fail are warnings.
export async function askCluster(cluster: Cluster, database: string, questions: Texts): Promise<AnyFacts> {
  const ask = async (some: Texts): Promise<AnyFacts> => {
    const pairs = Object.entries(some).map(([name, sql]) => `'${name}', ${sql.replace(/\s*\n\s*/g, ' ')}`);
    const { code, out, said } = await queryCluster(cluster, database, `select jsonb_build_object(${pairs.join(', ')})`);
    if (code !== 0) return { failedWith: code, said };
    try {
      return JSON.parse(out, (name, value) => (typeof value === 'string' && !('activity' in some) ? maskSecrets(name, value) : value)); // its names are tables: access_tokens, passwords
    } catch { // whoever answers there need not be PostgreSQL
      return { failedWith: 1, said: 'the answer is not understood' };
    }
  };
  const facts = await ask(questions);
  if (facts.failedWith === undefined) return facts;
  const lacking = (what: string, said: string) => warn(`the passport lacks ${what} of postgres ${named(cluster.name)}, database ${named(database)}: ${lastLines(said, 2)}`);
  if (facts.failedWith !== 1) { // 1: a statement failed; anything else: no psql, no connection
    lacking('all facts', facts.said);
    return {};
  }
  const found: AnyFacts = {};
  for (const [name, sql] of Object.entries(questions)) {
    const one = await ask({ [name]: sql });
    if (one.failedWith === undefined) Object.assign(found, one);
    else lacking(`'${name}'`, one.said);
  }
  return found;
}

/**
 * Given a database and a collation ("schema"."name" in SQL; the database's own when left out), returns a SHA-256 of some 16,000 short strings
 * in its order, '' when it cannot be had. Two machines with the same one sort alike, whatever their collation versions say: those may
 * change where the order does not, and are not recorded at all before PostgreSQL 13. (With glibc 2.28, 1-1 and 11 changed places.)
 */
export async function orderFingerprint(cluster: Cluster, database: string, collation = '"default"'): Promise<string> {
  const { code, out } = await queryCluster(cluster, database, `select encode(sha256(convert_to(string_agg(s, ' ' order by s collate ${collation}, s collate "C"), 'UTF8')), 'hex')
    from (select case when getdatabaseencoding() = 'UTF8' then 1400 else 126 end) l(top), generate_series(32, top) a, unnest(array[45, 49, 97, 228, 1078, 8217]) b,
    lateral (values (chr(a) || chr(b)), (chr(b) || chr(a) || chr(b))) v(s) where b <= top`);
  return code === 0 ? out.trim() : '';
}

// The database to ask about the whole cluster; people may have dropped `postgres`.
export async function homeOf(cluster: Cluster): Promise<string> {
  return (await queryCluster(cluster, 'postgres', 'select 1')).code === 0 ? 'postgres' : 'template1';
}

/**
 * Given a cluster, returns the files that configure it and lie outside its roots: included settings, hba, ident, certificates, keys; notes folders that it names over a link.
 * [] when it does not run, and in a container, where they come in through mounts.
 */
export async function configFilesOf(cluster: Cluster): Promise<string[]> {
  if (cluster.pid === 0 || cluster.container) return [];
  const { configurationFiles } = clusterQuestions(Number(cluster.version));
  const keys = listOf(`select setting from pg_settings where name ~ '^(ssl_.*_(file|dir)|krb_server_keyfile)$' and setting <> ''`);
  const facts = await askCluster(cluster, await homeOf(cluster), { files: configurationFiles!, keys });
  const files: string[] = [...facts.files ?? [], ...facts.keys ?? []].map((file) => path.resolve(cluster.dataDirectory, file)).filter((file) => fs.existsSync(file));
  cluster.configLinks = [...new Set(files.map((file) => path.dirname(file)))].map((link) => ({ link, location: fs.realpathSync(link) })).filter(({ link, location }) => link !== location);
  const outside = [...new Set(files.flatMap(withItsLink))].filter((file) => !cluster.roots.some((root) => file.startsWith(`${root}/`)));
  if (outside.length === 0) return [];
  // A superuser of the database may name what he likes, as /etc/shadow: what PostgreSQL itself cannot read is no configuration of its.
  const { code, out } = await look([...asOwner(cluster), 'sh', '-c', 'for one; do [ ! -r "$one" ] || printf "%s\\0" "$one"; done', 'sh', ...outside], { cwd: '/' });
  return code === 0 ? outside.filter((file) => out.split('\0').includes(file)) : outside;
}
