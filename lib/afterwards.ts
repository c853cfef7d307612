// Afterwards: what a restore in place has put back is asked whether it works.
// Every cluster that ran answers, every database opens, its libraries load, its tables have about the rows they had. Changes
// nothing, but for a REINDEX that somebody has asked for. Wrong is only what the copy, compared file by file, cannot explain.
import { count, lastLines, named, say, warn } from './say.ts';
import { goOn, waitUntil } from './shell.ts';
import { answerOf } from './form.ts';
import { findContainers } from './containers.ts';
import { findClusters } from './postgres.ts';
import type { Cluster } from './postgres.ts';
import { databaseQuestions, queryCluster } from './questions.ts';
import type { Manifest } from './record.ts';
import { NOT_LOADED } from './installed.ts';
import { whereIs } from './places.ts';
import type { ArchivedCluster, Comeback } from './comeback.ts';

/** Every cluster that came back answers, every database opens, its libraries load; what its tables are is told. Returns what is wrong. */
export async function checkWhatCameBack(comeback: Comeback): Promise<string[]> {
  const { clusters, pieces, manifest } = comeback, wrong: string[] = [];
  const running = await findClusters(await findContainers(false));
  for (const cluster of clusters.filter((one) => one.pid !== 0)) {
    const folder = whereIs(pieces, cluster.dataDirectory, (piece) => piece.place), here = running.find((one) => one.dataDirectory === folder && one.pid !== 0);
    const passport = manifest.postgres.find((one) => one.dataDirectory === cluster.dataDirectory);
    if (!here) warn(`cluster ${named(cluster.name)} is in place, and nothing here starts it`);
    else if (!await waitUntil(passport?.answers ? 30 : 3, async () => (await queryCluster(here, 'template1', 'select 1')).code === 0)) {
      if (passport?.answers) wrong.push(`cluster ${named(cluster.name)} does not answer`);
      else warn(`cluster ${named(cluster.name)} runs, but was not looked through: it lets nobody in without a password, or another way that we have not, as when it was saved`);
    }
    else wrong.push(...await mendAfterwards(comeback, cluster, here), ...await checkDatabases(here, passport?.databases ?? []));
    goOn();
  }
  return wrong;
}

const IN_ENGLISH = { lc_messages: 'C' }; // what the server says is looked into
async function checkDatabases(here: Cluster, recorded: Manifest['postgres'][number]['databases']): Promise<string[]> {
  const wrong: string[] = [];
  const present = (await queryCluster(here, 'template1', 'select datname from pg_database where datallowconn')).out.split('\n').filter((name) => name !== '' && !/=|:\/\//.test(name)); // psql would take these for addresses
  let same = 0;
  for (const { name, rows = {} } of recorded.filter((one) => one.connectable && !/=|:\/\//.test(one.name))) {
    const of = `database ${named(name)} of ${named(here.name)}`;
    if (!present.includes(name)) { warn(`${of} is not there: it was dropped a while before the copy`); continue; } // every file is as it was when all was cold: see compareWithListing()
    const done = await queryCluster(here, name, `select jsonb_build_object('rows', ${databaseQuestions.rows}, 'tables', ${databaseQuestions.estimatedRows}, 'libraries',
      (select coalesce(jsonb_agg(distinct probin), '[]') from pg_proc where probin is not null and oid >= 16384))`, 60, IN_ENGLISH); // those of extensions: the server has its own
    const { code, said } = done, why = lastLines(said, 1);
    if (code === 1 && /lock timeout|statement timeout/.test(why)) { warn(`${of} is in use, and was not looked through: ${why}`); continue; }
    if (code !== 0) { wrong.push(`${of} ${code === 2 ? 'does not open' : 'cannot be read'}: ${why}`); continue; }
    const facts: { libraries: string[]; tables: Record<string, number>; rows: Record<string, number | null> } = answerOf(of, done, { libraries: ['text'], tables: { '*': 'anything' }, rows: { '*': 'anything' } });
    for (const library of facts.libraries) { // one by one: some only want to be preloaded (see the judge)
      const missing = NOT_LOADED.exec((await queryCluster(here, name, `load '${library.replaceAll("'", "''")}'`, 60, IN_ENGLISH)).said);
      if (missing) wrong.push(`${of} misses a library: ${missing[0]}`);
    }
    for (const [table, then] of Object.entries(rows)) {
      const now = facts.rows[table] ?? null; // null: not counted
      if (facts.tables[table] === undefined) warn(`${of} has no table ${table}, which had ${then} rows a while before the copy`);
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
  const byReindex = open.filter((one) => one.sql.length > 0), byHand = open.filter((one) => one.sql.length === 0);
  if (byReindex.length > 0 && !how.reindex) warn(`${named(cluster.name)}: to be mended now, or do it all again with --reindex: ${byReindex.flatMap((one) => one.mend).join('; ')}`);
  for (const { about, breaks, mend } of byHand) warn(`${named(cluster.name)}, ${about}: ${breaks}. To be mended now: ${mend.join('; ')}`);
  for (const { database, text } of how.reindex ? open.flatMap((one) => one.sql) : []) {
    say(`  ${named(here.name)}, ${named(database)}: ${text}`);
    const done = text.startsWith('\\') || /=|:\/\//.test(database) ? { code: 1, said: 'this is no SQL' } : await queryCluster(here, database, text, 24 * 3600, { default_transaction_read_only: 'off', lock_timeout: '5min' });
    if (done.code !== 0) return [`this failed in ${named(database)}: ${text.slice(0, 200)}: ${lastLines(done.said, 1)}`];
  }
  return [];
}
