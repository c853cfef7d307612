// Collations: does this machine sort texts as the saved one did?
// Indexes on text lie in the order of the C library or of ICU; where another version of them sorts two words the other way
// round, an index no longer finds what is there, and PostgreSQL says at most a warning (before 15 not even that for a
// database's own collation). So versions are compared, and what they do not tell, the order of some 16,000 words.
// The cure is always the same: build the indexes anew, then tell PostgreSQL the new version. Changes nothing.
import { pasteable } from './say.ts';
import type { ClusterPassport, DatabasePassport } from './passport.ts';
import { quotedName } from './questions.ts';
import { askOrders } from './trial.ts';
import type { Order, Sorting, Trial } from './trial.ts';
import type { Finding } from './judge.ts';

/** One collation that a database's indexes use, or (name '') that the database itself has. */
type Use = { database: DatabasePassport; name: string; sorting: Sorting; recorded: string | null; actual: string | null; fingerprint: string; indexes: string[]; partitioned: string[] };
type Judged = Use & { order: Order; there: string | null; here: string | null; otherOrder: boolean };

const PROVIDERS: Record<string, string> = { c: 'libc', i: 'ICU', b: 'builtin' };
const sortingOf = ({ provider, encoding, collate, ctype, locale, rules }: DatabasePassport): Sorting => ({ provider, encoding, collate, ctype, locale, rules, deterministic: null });
const keyOf = (sorting: Sorting) => JSON.stringify(Object.values(sorting));

function usesOf(database: DatabasePassport): Use[] {
  const { recorded, actual } = database, collations = database.collations ?? [];
  const own = collations.find((one) => one.schema === 'pg_catalog' && one.name === 'default');
  return [
    { database, name: '', sorting: sortingOf(database), recorded, actual, fingerprint: database.orderFingerprint, indexes: own?.indexes ?? [], partitioned: own?.partitionedTables ?? [] },
    ...collations.filter((one) => one !== own).map((one): Use => ({
      database, name: `${quotedName(one.schema)}.${quotedName(one.name)}`, recorded: one.recorded, actual: one.actual, fingerprint: one.orderFingerprint,
      indexes: one.indexes, partitioned: one.partitionedTables,
      sorting: { provider: one.provider, encoding: database.encoding, collate: '', ctype: '', locale: one.locale, rules: one.rules, deterministic: one.deterministic },
    })),
  ];
}

/** Ask the empty cluster how each database and collation of a passport sorts here, once for each definition. */
export async function ordersOf(trial: Trial, told: ClusterPassport, known: Map<string, Order>): Promise<void> {
  const definitions = new Map<string, { database: Sorting; collations: Map<string, Sorting> }>();
  for (const { name, sorting, database } of told.databases.flatMap(usesOf)) {
    const own = sortingOf(database), key = keyOf(own);
    if (!definitions.has(key)) definitions.set(key, { database: own, collations: new Map() });
    if (name !== '' && !known.has(key + keyOf(sorting))) definitions.get(key)!.collations.set(keyOf(sorting), sorting);
  }
  await Promise.all([...definitions].map(async ([key, { database, collations }], i) => {
    if (known.has(key) && collations.size === 0) return;
    for (const [one, order] of await askOrders(trial, `d${known.size}_${i}`, database, collations)) known.set(key + one, order);
  }));
}

/**
 * What of a cluster's collations is not as it was. Given its passport, how they sort here, and the C library there and here: it stands in
 * where PostgreSQL notes no version. Returns findings: a locale that is not here, indexes to build anew, versions to refresh.
 */
export function collationFindings(told: ClusterPassport, orders: Map<string, Order>, libc: { there: string; here: string }, psql: string[], missingLocale: (locale: string) => string[]): Finding[] {
  const groups = new Map<string, Judged[]>();
  for (const use of told.databases.flatMap(usesOf)) {
    const { name, sorting, database, recorded, actual, fingerprint } = use;
    const order = orders.get(keyOf(sortingOf(database)) + (name === '' ? '' : keyOf(sorting)));
    if (!order) continue; // its database cannot even be made here, and that is told
    const byLibc = sorting.provider === 'c' && Number(told.version) < (name === '' ? 15 : 13) && !/^(C|POSIX)(\.|$)/i.test(localeOf(sorting)); // these sort by number, in every version
    const there = recorded ?? actual ?? (byLibc && libc.there && libc.here ? libc.there : null), here = order.version ?? (byLibc ? libc.here : null);
    const otherOrder = fingerprint !== '' && order.fingerprint !== '' && fingerprint !== order.fingerprint;
    if (!order.failed && !otherOrder && (there === null || there === here)) continue;
    const key = JSON.stringify([sorting.provider, localeOf(sorting), sorting.rules, there, order.failed ? 'failed' : here, otherOrder]);
    groups.set(key, [...groups.get(key) ?? [], { ...use, order, there, here, otherOrder }]);
  }
  return [...groups.values()].map((uses) => (uses[0]!.order.failed ? missing(told, uses, missingLocale) : changed(told, uses, psql)));
}

const localeOf = ({ locale, collate }: Sorting) => locale || collate;

function missing(told: ClusterPassport, uses: Judged[], missingLocale: (locale: string) => string[]): Finding {
  const { sorting, order } = uses[0]!;
  const whole = uses.filter((one) => one.name === '').map((one) => one.database), parts = uses.filter((one) => one.name !== '');
  const breaks = [...(whole.length > 0 ? [`${listed(whole.map((one) => one.name))} cannot be opened`] : []), ...parts.map((one) => `indexes of ${one.database.name} cannot be used: ${listed(one.indexes)}`)];
  return { cluster: told.name, about: `locale ${localeOf(sorting)}`, recorded: `${PROVIDERS[sorting.provider] ?? sorting.provider} locale`, here: order.failed.replace(/^ERROR: +/, '').split('\n')[0]!,
    breaks: breaks.join('; '), verdict: parts.length > 0 || whole.some((one) => one.connectable) ? 'refused' : 'note', mend: sorting.provider === 'c' ? missingLocale(localeOf(sorting)) : [], sql: [] };
}

function changed(told: ClusterPassport, uses: Judged[], psql: string[]): Finding {
  const { sorting, there, here, otherOrder } = uses[0]!;
  const sql = [...new Map(uses.flatMap((use) => cure(told, use)).map((one) => [JSON.stringify(one), one])).values()];
  const indexes = uses.flatMap((use) => use.indexes.map((one) => `${use.database.name}: ${one}`)), partitioned = uses.flatMap((use) => use.partitioned.map((one) => `${use.database.name}: ${one}`));
  const breaks = [
    otherOrder ? 'texts sort in another order' : 'texts may sort in another order (16,000 short ones do not)',
    ...(indexes.length > 0 ? [`until built anew, ${indexes.length} ${indexes.length === 1 ? 'index' : 'indexes'} may miss rows: ${listed(indexes)}`] : []),
    ...(partitioned.length > 0 ? [`rows may lie in the wrong partition, which only a dump and reload cures: ${listed(partitioned)}`] : []),
    ...(uses.some((use) => use.recorded !== null && use.actual !== null && use.recorded !== use.actual) ? ['it was so on the saved server already'] : []),
  ];
  const sign = (version: string | null, which: 'fingerprint' | 'order') => `${version ?? 'no version'}${otherOrder ? `, order ${(which === 'order' ? uses[0]!.order.fingerprint : uses[0]!.fingerprint).slice(0, 8)}` : ''}`;
  return { cluster: told.name, about: `collation ${localeOf(sorting)} (${PROVIDERS[sorting.provider] ?? sorting.provider})`, recorded: sign(there, 'fingerprint'), here: sign(here, 'order'),
    breaks: breaks.join('; '), verdict: sql.length > 0 || partitioned.length > 0 ? 'after' : 'note', mend: psqlCommands(psql, sql), sql };
}

// A name as PostgreSQL writes it (regclass): schema.index, each plain or quoted. Anything else in its place is not run.
const QUOTED_NAME = /^(?:"(?:[^"]|"")+"|[a-z_\u0080-\uffff][\w$\u0080-\uffff]*)\.(?:"(?:[^"]|"")+"|[a-z_\u0080-\uffff][\w$\u0080-\uffff]*)$/;

/** REINDEX, then REFRESH, which PostgreSQL only does from a version to another (ALTER COLLATION; for databases since 15). */
function cure(told: ClusterPassport, { database, name, indexes, recorded, order }: Judged): Finding['sql'] {
  const at = database.connectable ? database.name : 'postgres';
  const reindex = indexes.every((one) => QUOTED_NAME.test(one)) ? indexes.map((one) => `reindex index ${one}`) : [`reindex database ${quotedName(database.name)}`];
  const canRefresh = recorded !== null && order.version !== null && recorded !== order.version && (name !== '' || Number(told.version) >= 15);
  const refresh = name === '' ? `alter database ${quotedName(database.name)} refresh collation version` : `alter collation ${name} refresh version`;
  return [...reindex, ...(canRefresh ? [refresh] : [])].map((text) => ({ database: at, text }));
}

/** One command for each database. */
function psqlCommands(psql: string[], sql: Finding['sql']): string[] {
  const databases = [...new Set(sql.map((one) => one.database))];
  const asWord = (name: string) => (/=|:\/\//.test(name) ? `dbname='${name.replace(/['\\]/g, '\\$&')}'` : name); // psql would take it for a connection string
  return databases.map((database) => pasteable([...psql, '-d', asWord(database), ...sql.filter((one) => one.database === database).flatMap(({ text }) => ['-c', text])]));
}

/** At most five names, and how many more. */
export function listed(names: string[]): string {
  return names.slice(0, 5).join(', ') + (names.length > 5 ? ` and ${names.length - 5} more` : '');
}
