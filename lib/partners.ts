// Partners: who else holds the data of a cluster, and notices nothing when that goes back in time.
// By replication, or by Bucardo. A publisher, or the slot of a subscriber, has moved on by then, and rows are passed over
// without an error: so a restore has to say it. Only reads the passport.
import type { ClusterPassport } from './passport.ts';

/**
 * Who replicates with a cluster. subscription: it subscribes elsewhere; slot: somebody subscribes here; standby: somebody follows here;
 * primary: it is itself a standby; bucardo: Bucardo's triggers are in a database. name: what PostgreSQL calls it; database: '' = the whole cluster.
 */
export type Partner = { kind: 'subscription' | 'slot' | 'standby' | 'primary' | 'bucardo'; name: string; database: string };

const OF_A_COPY = /^pg_\d+_sync_\d+/; // slots and walsenders of a subscription's first copy (PostgreSQL manual, "Replication Slot Management")

/** Given what the passport holds of a cluster, returns its partners, each once. */
export function partnersOf({ slots = [], standbys = [], subscriptions = [], recovery = {}, databases }: ClusterPassport): Partner[] {
  const isString = (value: unknown): value is string => typeof value === 'string', isReader = (pid: unknown) => slots.some((slot) => slot.plugin && slot.active_pid === pid);
  const found: Partner[] = [
    ...subscriptions.map(({ subname, database }): Partner => ({ kind: 'subscription', name: subname, database })),
    ...slots.filter((slot) => slot.plugin && isString(slot.slot_name) && slot.temporary !== true && !OF_A_COPY.test(slot.slot_name)).map(({ slot_name: name, database }): Partner => ({ kind: 'slot', name, database: isString(database) ? database : '' })),
    ...standbys.filter(({ pid, application_name: name }) => isString(name) && !isReader(pid) && !OF_A_COPY.test(name) && name !== 'pg_basebackup').map(({ application_name: name }): Partner => ({ kind: 'standby', name, database: '' })),
    ...(recovery.inRecovery === true ? [{ kind: 'primary' as const, name: '', database: '' }] : []),
    ...databases.filter(({ rows = {} }) => Object.keys(rows).some((table) => /^"?bucardo"?\.delta_/.test(table))).map(({ name }): Partner => ({ kind: 'bucardo', name: 'Bucardo', database: name })),
  ];
  return found.filter((one, at) => found.findIndex((other) => JSON.stringify(other) === JSON.stringify(one)) === at);
}
