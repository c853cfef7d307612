// Ahead: what the judge says of partners when a cluster goes back in time (see PARTNERS).
// Only makes text; names in it are quoted.
import { pasteable } from './say.ts';
import type { ClusterPassport } from './passport.ts';
import { partnersOf } from './partners.ts';
import type { Partner } from './partners.ts';
import { quotedName } from './questions.ts';
import { finding } from './machine.ts';
import type { Finding } from './judge.ts';

// What is said of each kind of partner: what goes wrong in silence, and the commands against it, the last ones for a person.
const PARTNERS: Record<Partner['kind'], (one: Partner, psql: (...words: string[]) => string) => Pick<Finding, 'about' | 'breaks' | 'mend'> & { verdict?: Finding['verdict'] }> = {
  subscription: ({ name, database }, psql) => ({ about: `subscription ${name} of ${database}`, breaks: 'what was sent here after this backup is not sent again, and no error says so', mend: [
    `${psql('-d', database, '-Atc', `select subconninfo, subpublications, subslotname from pg_subscription where subname = '${name.replaceAll("'", "''")}'`)}   # keep the answer`,
    psql('-d', database, ...['disable', 'set (slot_name = none)'].flatMap((what) => ['-c', `alter subscription ${quotedName(name)} ${what}`]), '-c', `drop subscription ${quotedName(name)}`),
    `# there: select pg_drop_replication_slot(...); here: truncate its tables, then create the subscription as it was: it copies all rows anew`] }),
  slot: ({ name, database }) => ({ about: `slot ${name}${database && ` of ${database}`}`, breaks: 'its reader is ahead of these files: what is written here is not sent to it, without an error, until as much is written as was lost', mend: [
    '# there: save what it has more than these files; then make its subscription anew (disable it, set slot_name = none, drop it), drop this slot here, truncate its tables, create it again'] }),
  standby: ({ name }) => ({ about: `standby ${name}`, breaks: 'it is ahead of these files, and cannot follow them', mend: ['# there: make it anew with pg_basebackup'] }),
  primary: () => ({ about: 'its primary', breaks: 'it follows only while its primary has all WAL since this backup', verdict: 'note', mend: ['# its log says "requested WAL segment ... has already been removed"? Then make it anew with pg_basebackup'] }),
  bucardo: ({ database }) => ({ about: `Bucardo in ${database}`, breaks: 'what was exchanged after this backup is not exchanged again, and no error says so', mend: [
    '# on the other side: UPDATE table SET column = column, of every row that may be newer, and Bucardo sends it anew; what was deleted there since is deleted here by hand'] }),
};

/** Given a cluster's passport and the words of its psql, returns what is to be done with each who holds the same data, and went on. */
export function partnerFindings(told: ClusterPassport, psqlWords: string[]): Finding[] {
  const psql = (...words: string[]) => pasteable([...psqlWords, ...words]);
  return partnersOf(told).map((one) => {
    const { about, ...facts } = PARTNERS[one.kind](one, psql);
    return finding(told.name, about, { recorded: 'at work', here: 'may have gone on', verdict: 'after', ...facts });
  });
}
