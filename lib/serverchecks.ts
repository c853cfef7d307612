// What a drill asks of the copy once it runs: databases, libraries, indexes, rows.
// Whether every database opens, libraries load, strings sort as they did, tables and indexes are sound and have the rows that
// they must have; and the questions of the settings. Runs on the copy, inside the sandbox, and may write there.
import fs from 'node:fs';
import path from 'node:path';
import { answerOf } from './form.ts';
import { Problem, count, lastLines, named } from './say.ts';
import { look } from './shell.ts';
import type { Done } from './shell.ts';
import type { Cluster } from './postgres.ts';
import { activityQuestion, askCluster, databaseQuestions, homeOf, mapOf, orderFingerprint, queryCluster, quotedName } from './questions.ts';
import type { Texts } from './questions.ts';
import type { DatabasePassport } from './passport.ts';
import { DAY, TOLD, bad, good, unknown } from './checks.ts';
import type { CheckStep, Copy, Counted, Verdict } from './checks.ts';

export const SERVER_CHECKS: CheckStep[] = [
  { check: 'databases open', examine: async (copy) => {
    const expected = copy.passport.databases.filter((one) => one.connectable).map((one) => one.name);
    const list = await queryCluster(copy.server!, await homeOf(copy.server!), 'select jsonb_agg(datname order by datname) from pg_database where datallowconn and datconnlimit <> -2', DAY);
    if (list.code !== 0) throw new Problem('the copy does not name its databases', { said: list.said });
    copy.databases = answerOf('the copy does not name its databases', list, ['text']);
    const done = await inEach(copy, 'select 1');
    const closed = [...done].filter(([, one]) => one.code !== 0).map(([name, { said }]) => `${named(name)}: ${lastLines(said, 2)}`);
    const missing = expected.filter((name) => !done.has(name));
    return closed.length > 0 ? bad(closed) : good(`${done.size} of ${done.size}${missing.length > 0 ? `; gone since the passport: ${missing.map(named).join(', ')}` : ''}`);
  } },
  { check: 'libraries load', examine: async (copy) => {
    const lines = warningsOf(await inEach(copy, LOAD_ALL, WRITES), 'MISSING');
    return lines.length > 0 ? bad(lines) : good('every library that functions of extensions need');
  } },
  { check: 'collations', examine: compareCollations },
  { check: 'amcheck', examine: runAmcheck },
  { check: 'row counts', examine: compareRows },
  { check: 'heap against index', examine: compareHeapAndIndex },
  { check: 'your queries', examine: askQueries },
  { check: 'dump', examine: async (copy) => {
    if (!copy.full) return unknown('only with --full');
    const done = await inEach(copy, (name) => look([...copy.sandbox.words, 'sh', '-c', 'exec "$@" > /dev/null', 'sh', program(copy, 'pg_dump'), '-h', '/own', '-p', copy.server!.port, '-U', copy.server!.owner, '-d', name], { seconds: DAY }));
    const failed = [...done].filter(([, one]) => one.code !== 0).map(([name, { said }]) => `${named(name)}: ${lastLines(said, 2)}`);
    return failed.length > 0 ? bad(failed) : good(`${count(done.size, 'database')}, from begin to end`);
  } },
];

const WRITES: Texts = { default_transaction_read_only: 'off', session_replication_role: 'replica', client_min_messages: 'warning' }; // replica: no trigger of the cluster's fires
const program = ({ programs }: Copy, name: string) => (programs.image || fs.existsSync(path.join(programs.binaries, name)) ? path.join(programs.binaries, name) : name);

/** Ask every database that may be opened, two at a time: SQL, or something else. Returns how each ended, by name. */
async function inEach(copy: Copy, ask: string | ((database: string) => Promise<Done>), more: Texts = {}): Promise<Map<string, Done>> {
  const names = copy.databases, found = new Map<string, Done>();
  const one = async (name: string) => found.set(name, await (typeof ask === 'string' ? queryCluster(copy.server!, name, ask, DAY, { ...QUIET, ...more }) : ask(name)));
  for (let i = 0; i < names.length; i += 2) await Promise.all(names.slice(i, i + 2).map(one));
  return new Map(names.map((name) => [name, found.get(name)!]));
}

const QUIET: Texts = { session_preload_libraries: '', local_preload_libraries: '', lock_timeout: '0', lc_messages: 'C' };

// What a DO block had to say, and what kept it from its work.
function warningsOf(ends: Map<string, Done>, word: string): string[] {
  return [...ends].flatMap(([database, { code, said }]) => [
    ...[...said.matchAll(new RegExp(`^WARNING:  ${word} (.*)$`, 'gm'))].map(([, what]) => `${named(database)}: ${what}`), ...(code === 0 ? [] : [`${named(database)}: ${lastLines(said, 2)}`])]);
}

const LOAD_ALL = `do $$ declare one text; begin for one in select distinct probin from pg_proc where probin is not null and oid >= 16384 loop
  begin execute 'load ' || quote_literal(one); exception when others then
    if sqlerrm ~ '^(could not|incompatible)' then raise warning 'MISSING %', replace(one || ': ' || sqlerrm, chr(10), ' '); end if; end; end loop; end $$`; // some only want to be preloaded, which here they never are

// Equal version numbers do not mean an equal order, nor other ones another: what strings really sort like decides, and amcheck after it.
async function compareCollations(copy: Copy): Promise<Verdict> {
  const server = copy.server!, wrong: string[] = [], renamed: string[] = [];
  let compared = 0;
  for (const was of copy.passport.databases.filter((one) => one.collations && copy.databases.includes(one.name))) {
    const is: Partial<DatabasePassport> = await askCluster(server, was.name, { collations: databaseQuestions.collations! });
    for (const { schema, name, indexes, partitionedTables, orderFingerprint: before } of was.collations!) {
      const here = is.collations?.find((one) => one.schema === schema && one.name === name), affected = [...indexes, ...partitionedTables].join(', ');
      if (!here || affected === '') continue;
      const after = await orderFingerprint(server, was.name, name === 'default' ? undefined : `${quotedName(schema)}.${quotedName(name)}`);
      compared++;
      if (before && after !== before) wrong.push(`${named(was.name)}: collation ${name} sorts otherwise than it did: REINDEX ${affected}`);
      else if (here.recorded !== here.actual && here.actual) renamed.push(`${named(was.name)}: collation ${name} is of version ${here.actual}, was ${here.recorded}: REINDEX ${affected}, then REFRESH`);
    }
  }
  if (wrong.length > 0) return bad(wrong);
  return renamed.length > 0 ? unknown(`sample strings still sort alike, but\n${renamed.slice(0, TOLD).join('\n')}`) : good(`${count(compared, 'collation')} that indexes use sort as they did`);
}

// An index on a function that finds its own functions and tables only by the search_path of its applications cannot be compared with its table, but is not damaged: no damage has these codes.
const NOT_FOUND = "'42883', '42P01', '42704', '3F000'"; // function, table, type, schema (manual, "PostgreSQL Error Codes")

// Like pg_amcheck --heapallindexed --install-missing (so in pg_catalog: `public` may be gone), but for every version, and where only the extension is installed, or an old one (1.0 of PostgreSQL 10 compares nothing). One statement a database; what fails is named.
const AMCHECK = `do $$ declare one record; bad record; more text; home text; begin
  begin create extension if not exists amcheck schema pg_catalog; alter extension amcheck update; exception when others then null; end;
  select quote_ident(nspname) into home from pg_extension e join pg_namespace n on n.oid = extnamespace where extname = 'amcheck';
  if home is null then raise warning 'LACKING'; return; end if;
  if to_regproc(home || '.verify_heapam') is not null then
    for one in select c.oid, c.oid::regclass as name from pg_class c join pg_am a on a.oid = relam where amname = 'heap' and relkind in ('r', 'm', 't') and relpersistence <> 't' loop
      begin
        for bad in execute format('select * from %s.verify_heapam(%L::regclass)', home, one.oid) loop
          raise warning 'DAMAGED table %, page %, row %: %', one.name, bad.blkno, bad.offnum, replace(bad.msg, chr(10), ' ');
        end loop;
      exception when others then raise warning 'DAMAGED table %: %', one.name, replace(sqlerrm, chr(10), ' '); end;
    end loop;
  end if;
  for one in select x.oid, x.oid::regclass as name, indrelid::regclass as tab, amname from pg_index join pg_class x on x.oid = indexrelid join pg_am a on a.oid = x.relam
      where amname in ('btree', 'gin') and indisvalid and indisready and x.relkind = 'i' and x.relpersistence <> 't' loop
    begin
      if one.amname = 'btree' then execute format('select %s.bt_index_check(%L::regclass, true)', home, one.oid);
      elsif to_regproc(home || '.gin_index_check') is not null then execute format('select %s.gin_index_check(%L::regclass)', home, one.oid); end if;
    exception when others then
      get stacked diagnostics more = pg_exception_detail;
      raise warning '% index % of table %: %', case when sqlstate in (${NOT_FOUND}) then 'UNKNOWN' else 'DAMAGED' end, one.name, one.tab, replace(sqlerrm || ' ' || more, chr(10), ' ');
    end;
  end loop; end $$`;

async function runAmcheck(copy: Copy): Promise<Verdict> {
  const made = await inEach(copy, AMCHECK, WRITES), lacking = [...made].filter(([, { said }]) => /^WARNING:  LACKING$/m.test(said)).map(([name]) => named(name));
  if (lacking.length === made.size) return unknown('the extension amcheck is not installed here (Debian: it comes with postgresql-NN; others: postgresql-contrib)');
  const lines = warningsOf(made, 'DAMAGED');
  if (lines.length > 0) return bad(lines);
  const looked = `tables and indexes of ${count(made.size - lacking.length, 'database')}`, unlooked = warningsOf(made, 'UNKNOWN');
  if (unlooked.length > 0) return unknown([`${looked}, but for these, whose functions need a search_path:`, ...bad(unlooked).detail.split('\n')].join('\n'));
  return lacking.length > 0 ? unknown(`${looked}; amcheck cannot be had in ${lacking.slice(0, TOLD).join(', ')}`) : good(looked);
}

// ---- counting ----

const COUNTABLE = "relkind in ('r', 'm') and relpersistence <> 't' and relispopulated and c.oid >= 16384";
const HAS_INDEX = `exists (select from pg_index join pg_class x on x.oid = indexrelid join pg_am a on a.oid = x.relam where indrelid = c.oid and amname = 'btree' and indisvalid and indpred is null)`;
const BY_HEAP: Texts = { ...QUIET, enable_indexscan: 'off', enable_indexonlyscan: 'off', enable_bitmapscan: 'off' };
const BY_INDEX: Texts = { ...QUIET, enable_seqscan: 'off', enable_bitmapscan: 'off' };
const countAll = (which: string) => `select ${mapOf(`select c.oid::regclass, substring(query_to_xml('select count(*) n from only ' || c.oid::regclass, false, true, '')::text from '<n>(\\d+)</n>')::bigint
  from pg_class c where ${COUNTABLE} and ${which}`)}`;

/** Given a database, counts the rows of its tables. Returns them by name; a table that cannot be read is told in `broken`. */
async function countRows(server: Cluster, database: string, which: string, scan: Texts): Promise<Counted> {
  const all = await queryCluster(server, database, countAll(which), DAY, scan);
  if (all.code === 0) return { rows: answerOf(`${named(database)} cannot be counted`, all, { '*': 'anything' }), broken: [] };
  const list = await queryCluster(server, database, `select coalesce(jsonb_agg(c.oid::regclass::text), '[]') from pg_class c where ${COUNTABLE} and ${which}`, DAY, QUIET);
  const rows: Record<string, number> = {}, broken: string[] = [];
  for (const name of list.code === 0 ? answerOf(`${named(database)} does not name its tables`, list, ['text']) : []) { // one by one: which is it?
    const { code, out, said } = await queryCluster(server, database, `select count(*) from only ${name}`, DAY, scan);
    if (code === 0) rows[name] = Number(out);
    else broken.push(`${named(database)}: table ${name} cannot be read: ${lastLines(said, 1)}`);
  }
  return { rows, broken: broken.length > 0 || list.code === 0 ? broken : [`${named(database)}: ${lastLines(all.said, 2)}`] };
}

/**
 * Given what the passport counted and the server's own statistics of inserted and deleted rows then and now, returns the fewest and most rows that there can be. Statistics survive a
 * clean stop: a table that nobody touched since has exactly as many. One that was rewritten (VACUUM FULL, TRUNCATE) can have any number.
 */
export function rowsExpected(rows: number, then: string | undefined, now: string | undefined): { least: number; most: number } {
  const [file, inserted = NaN, deleted = NaN] = (then ?? '').split(' ').map(Number), [fileNow, insertedNow = NaN, deletedNow = NaN] = (now ?? '').split(' ').map(Number);
  if (then && now && !Number.isNaN(file) && file !== fileNow) return { least: 0, most: Infinity };
  const more = insertedNow - inserted, less = deletedNow - deleted;
  if (more >= 0 && less >= 0) return { least: rows - less, most: rows + more };
  return { least: Math.ceil(rows * 0.8), most: Infinity }; // no statistics, or begun anew: then only a loss that no evening explains
}

async function compareRows(copy: Copy): Promise<Verdict> {
  const server = copy.server!, wrong: string[] = [], gone: string[] = [], tracks = copy.passport.settings?.track_counts !== 'off' && copy.passport.recovery?.inRecovery !== true; // a standby counts nothing
  let tables = 0, exact = 0, total = 0;
  for (const name of copy.databases) {
    copy.counted.set(name, await countRows(server, name, 'true', BY_HEAP));
    wrong.push(...copy.counted.get(name)!.broken);
  }
  for (const was of copy.passport.databases.filter((one) => one.rows && copy.counted.has(one.name))) {
    const { rows: is, broken } = copy.counted.get(was.name)!, activity: Record<string, string> = (await askCluster(server, was.name, activityQuestion)).activity ?? {};
    for (const [name, rows] of Object.entries(was.rows!)) {
      if (rows === null || broken.some((line) => line.includes(` table ${name} `))) continue;
      if (is[name] === undefined) {
        gone.push(name);
        continue;
      }
      const { least, most } = rowsExpected(rows, tracks ? was.activity?.[name] : undefined, activity[name]);
      tables++;
      total += is[name]!;
      if (least === most) exact++;
      if (is[name]! < least || is[name]! > most) wrong.push(`${named(was.name)}: table ${name} has ${is[name]} rows, ${least === most ? `not ${rows}` : `fewer than the ${least} that there must be`}`);
    }
  }
  if (wrong.length > 0) return bad(wrong);
  return good(`${count(total, 'row')} in ${count(tables, 'table')}, ${exact} of them untouched since the passport and exactly as then${gone.length > 0 ? `; gone since: ${gone.slice(0, TOLD).join(', ')}` : ''}`);
}

async function compareHeapAndIndex(copy: Copy): Promise<Verdict> {
  const wrong: string[] = [];
  let tables = 0;
  for (const [name, heap] of copy.counted) {
    const index = await countRows(copy.server!, name, HAS_INDEX, BY_INDEX);
    wrong.push(...index.broken);
    for (const [table, rows] of Object.entries(index.rows)) {
      tables++;
      if (heap.rows[table] !== undefined && heap.rows[table] !== rows) wrong.push(`${named(name)}: table ${table} has ${heap.rows[table]} rows, but its index knows ${rows}`);
    }
  }
  return wrong.length > 0 ? bad(wrong) : good(tables > 0 ? `${count(tables, 'table')} counted both ways` : 'no table here has an index that counts all its rows');
}

async function askQueries({ queries, server }: Copy): Promise<Verdict> {
  const wrong: string[] = [];
  for (const { database, sql, expect } of queries) {
    const { code, out, said } = await queryCluster(server!, database, sql, DAY, { ...QUIET, search_path: undefined });
    const answer = out.replace(/\n$/, ''), wanted = expect === true ? 't' : expect === false ? 'f' : String(expect);
    if (code !== 0 || answer !== wanted) wrong.push(`${sql}: ${code === 0 ? `the answer is ${named(answer.slice(0, 100))}, not ${named(wanted)}` : lastLines(said, 2)}`);
  }
  return wrong.length > 0 ? bad(wrong) : queries.length > 0 ? good(count(queries.length, 'right answer')) : unknown('none: `drill.queries` in the settings');
}

/** Given files of a copy that runs, returns what they are: 'base/5/16384: table public.orders of database shop'. */
export async function nameFiles(copy: Copy, files: string[]): Promise<string[]> {
  const found: string[] = [];
  for (const file of [...new Set(files)].slice(0, TOLD)) {
    const [, oid, node] = /\/(?:base|PG_\d+_\d+)\/(\d+)\/(\d+)(?:[._][^/]*)?$/.exec(file) ?? [];
    if (!oid || !node) continue;
    const database = (await queryCluster(copy.server!, await homeOf(copy.server!), `select datname from pg_database where oid = ${oid}`)).out.trim();
    const { out } = await queryCluster(copy.server!, database, `select case relkind when 'i' then 'index ' when 't' then 'TOAST table ' else 'table ' end || c.oid::regclass || coalesce(' of table ' || indrelid::regclass, '')
      from pg_class c left join pg_index on indexrelid = c.oid where pg_relation_filenode(c.oid) = ${node}`);
    if (out.trim()) found.push(`${named(path.basename(file))} is ${out.trim()} in database ${named(database)}`);
  }
  return found;
}
