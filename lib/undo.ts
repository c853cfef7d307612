// The way back after an alarm: `audit --undo-plan` prints commands and runs none of them. A repository that only grows is as it was when
// the files of later transactions are taken away, and with them what borg derived from them (borg: docs/usage/notes.rst, "Append-only
// mode"). Nothing is thrown away before a copy is made; what honest nights wrote after the attack is named, because it goes, too.
import path from 'node:path';
import { pasteable } from './say.ts';
import { canDecrypt, folderThere } from './operator.ts';
import type { OperatedServer, Operator } from './operator.ts';
import type { Book, Finding, KnownArchive } from './book.ts';
import { hashedConfig, nonceTrouble } from './findings.ts';
import type { Evidence } from './findings.ts';
import { timeOf } from './segments.ts';
import type { Reading } from './segments.ts';

/** Given a server, its ledger and what the audit found, returns the plan as text: one block of shell for the storage, one for the operator's computer, one for the server. */
export function undoPlan({ ledgerFolder }: Operator, one: OperatedServer, book: Book, { reading, fresh, listed }: Evidence, findings: Finding[]): string {
  const { server } = one, folder = pasteable([folderThere(one)]), first = Math.min(...findings.map(({ transaction }) => transaction ?? Infinity));
  const head = [`# ${server}: the way back. Nothing of it has been done.`, ...findings.map(({ rule, what }) => asComment(`${rule} ${what}`))];
  if (!reading) return [...head, '# The storage gives no shell: ask its keeper to put the repository back to the state before the time above (from a snapshot, or by the steps of borg\'s manual, "Append-only mode").'].join('\n');
  const is = hashedConfig(reading.config), was = book.config, keyLost = was.key !== undefined && is.key !== was.key, nonceWrong = nonceTrouble(book, reading) !== '';
  const changed = [...new Set([...Object.keys(was), ...Object.keys(is)])].filter((key) => /^[a-z_]+$/.test(key) && is[key] !== was[key] && !(key === 'key' && keyLost));
  const good = lastGood(book, reading, fresh, listed !== null, first);
  const later = first === Infinity ? [] : reading.transactions.filter(({ number }) => number > good);
  const perFolder = Number(reading.config.segments_per_dir ?? 1000);
  const lost = fresh.filter(({ transaction, kind }) => transaction > good && kind !== 'other'), files = `data/${Math.floor((good + 1) / perFolder)}/${good + 1} to data/${Math.floor(reading.last / perFolder)}/${reading.last}`;
  const storage = [`# 1. On the storage, as the owner of the repository${one.storage.length > 0 ? ` (${pasteable(one.storage)})` : ''}:`, 'set -eu', `cd ${folder}`,
    ...(one.cutAccess.length > 0 ? [`# first, on the operator's computer: ${pasteable(one.cutAccess)}`] : ['# first put a # before this server\'s line in authorized_keys, and end its `borg serve` if one runs (pgrep -af "borg serve")']),
    'quarantine="$PWD.quarantine"; test ! -e "$quarantine"', 'cp -al . "$quarantine"       # hard links: it costs no space',
    'for file in transactions config nonce; do if [ -e $file ]; then cp -a --remove-destination $file "$quarantine"/; fi; done       # these are changed in place',
    ...(later.length > 0 ? rollBack(good, files) : []),
    ...changed.map((key) => (was[key] === undefined ? `sed -i '/^${key} *=/d' config` : `sed -i ${pasteable([`s|^${key} *=.*|${key} = ${was[key]!.replaceAll('|', '\\|')}|`])} config`)),
    ...(nonceWrong ? ['# the nonce must never be lower than one that was used: the highest of what the ledger knows, and 2^40 more', `printf '%016x' ${BigInt(`0x${book.mark?.nonce || '0'}`) + (1n << 40n)} > nonce`] : [])];
  const operator = ['# 2. On the operator\'s computer:',
    ...(keyLost ? ['# the key: from the escrowed export (the recovery sheet); it overwrites the one in the repository', `borg key import ${pasteable([one.repository])} ESCROWED-KEY-FILE`] : []),
    ...(canDecrypt(one) ? ['# borg remembers the newest state it saw, and would take the old one for an attack', `rm -rf ${pasteable([path.join(ledgerFolder, '.cache', server)])}`] : []),
    `node backup.js audit ${server}       # must say: clean`];
  const client = [`# 3. On ${server}, as root, before its next run (its borg remembers the newest state, too):`,
    `rm -f "\${STATE_FOLDER:-/var/lib/cold-backup}"/borg/.config/borg/security/${reading.config.id}/manifest-timestamp`, 'node backup.js borg delete --cache-only', 'node backup.js borg check --verify-data       # reads everything; it may take hours', 'node backup.js list'];
  const restore = ['# 4. Give access back: ' + (one.giveAccess.length > 0 ? pasteable(one.giveAccess) : 'take the # away again'), '# Keep the quarantine until a drill has proven the newest archive; then remove it.'];
  const honest = lost.length === 0 ? [] : ['# These archives were written later, and go, too (they stay readable in the quarantine, where they were not touched):', ...lost.map(({ name }) => asComment(name))];
  if (later.length === 0 && changed.length === 0 && !keyLost && !nonceWrong) return [...head, '# No transaction is to be taken back. What changed was done with full access to the files: bring them back from a copy of the storage,', `# or, when it was you: node backup.js audit ${server} --accept`].join('\n');
  return [...head, ...(later.length > 0 ? [`# Back to transaction ${good}: everything after it goes (from ${timeOf(later[0]!)} on by the storage's clock).`] : []), ...honest, ...(listed ? [] : ['# (without the passphrase archives have no names here)']), '', ...storage, '', ...operator, '', ...client, '', ...restore].join('\n');
}

// Names may be the intruder's: none of them may become a line of its own, which somebody would run.
const asComment = (text: string) => `#   ${text.replace(/\s+/g, ' ')}`;

// The last transaction before the first bad one that ended with an archive which is still listed: what lies between belongs to no archive, or to the deed.
function lastGood(book: Book, { transactions }: Reading, fresh: KnownArchive[], hasNames: boolean, first: number): number {
  const ends = hasNames ? fresh.filter(({ kind }) => kind !== 'other').map(({ transaction }) => transaction) : transactions.map(({ number }) => number);
  return Math.max(book.mark?.transaction ?? 0, ...ends.filter((number) => number < first));
}

// The data files of the transactions after the last good one, then what borg makes anew from those that stay. The log of the append-only server
// loses their lines, too, or their numbers would come twice.
function rollBack(good: number, files: string): string[] {
  return [`# transaction ${good} is the last good one; what came later lies in ${files}`,
    `for file in data/*/*; do if [ "\${file##*/}" -gt ${good} ]; then rm -f "$file"; fi; done`,
    'rm -f hints.* index.* integrity.*       # borg makes them anew',
    `if [ -e transactions ]; then awk '{ number = $2; sub(",", "", number); if (number + 0 <= ${good}) print }' transactions > transactions.new; cat transactions.new > transactions; rm transactions.new; fi`];
}
