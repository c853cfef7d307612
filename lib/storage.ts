// The storage as this server reaches it: its address, ssh, and what `borg serve` says of itself.
// It asks, and changes nothing, but for one empty transaction where nothing else tells whether the storage is append-only.
import fs from 'node:fs';
import { Problem, named } from './say.ts';
import { failure, look } from './shell.ts';
import type { Settings } from './settings.ts';
import { askBorg, sshCommand } from './borg.ts';

// A test call that every `borg serve` since 1.1 answers before it opens anything: its error report shows the server's own
// command line and version (borg, remote.py, inject_exception). MessagePack: negotiate, then inject_exception(kind=divide).
const ASK_SERVER = 'g6FpAaFtqW5lZ290aWF0ZaFhgatjbGllbnRfZGF0YYGuY2xpZW50X3ZlcnNpb26TAQIEg6FpAqFtsGluamVjdF9leGNlcHRpb26hYYGka2luZKZkaXZpZGU=';

/** The parts of a repository address on ssh: ssh://user@host:port/path, or user@host:path. */
export function repositoryAddress(repository: string): { user: string; host: string; port: string; path: string } {
  const url = /^ssh:\/\/(?:([^@/]+)@)?(\[[^\]]+\]|[^:/]+)(?::(\d+))?(\/.*)$/.exec(repository) ?? /^(?:([^@/:]+)@)?(\[[^\]]+\]|[^:/]+)()?:(.+)$/.exec(repository);
  if (!url) throw new Problem(`repository ${named(repository)} is no address on ssh`, { exitCode: 64 });
  const [, user = '', host, port = '', rest] = url;
  return { user, host: host!.replace(/^\[|\]$/g, ''), port, path: rest!.replace(/^\/(?=\.\/|~)/, '') }; // borg: /./x and /~/x start at the home folder
}

/** The ssh command to the storage, without the command to run there. */
export function sshToStorage(settings: Settings): string[] {
  const { user, host, port } = repositoryAddress(settings.repository);
  return [...sshCommand(settings), ...(port ? ['-p', port] : []), '--', user ? `${user}@${host}` : host];
}

// ssh by itself, because borg hides what ssh says. A forced command answers in its own way: any answer but 255 is a connection.
export async function tryConnection(settings: Settings): Promise<string> {
  const done = await look([...sshToStorage(settings), 'borg --version']);
  if (done.code !== 255) return done.out.trim() || 'the storage answers';
  const hint = /Permission denied/i.test(done.said) ? 'the storage does not know our key: put the line that `node backup.js setup` prints into its authorized_keys'
    : /host key/i.test(done.said) && !fs.existsSync(settings.knownHostsFile) ? 'setup has not been finished here: node backup.js setup'
    : /kex_exchange_identification/.test(done.said) ? 'the storage hangs up at once. Since 9.8 sshd does so for some minutes after several logins that failed (sshd_config(5), PerSourcePenalties): wait, and try again. Else ask its keeper'
    : /host key/i.test(done.said) ? 'the storage\'s host key is not the one in `knownHostsFile`: ask its keeper before you change anything' : 'is the address right (`repository` in the settings), and the storage reachable from here (VPN, firewall, name)?';
  throw failure('no ssh connection to the storage', done, hint);
}

/**
 * What the server on the storage says of itself: its command line, and borg's version; null when it does
 * not say. Nothing is opened or written.
 */
export async function serverCommandLine(ssh: string[]): Promise<{ words: string | null; version: string | null }> {
  const report = await look(['sh', '-c', 'bytes=$1; shift; printf %s "$bytes" | base64 -d | exec "$@"', 'sh', ASK_SERVER, ...ssh, 'borg serve']);
  const text = `${report.out}\n${report.said}`;
  return { words: /sys\.argv: \[(.*?)\]/.exec(text)?.[1]?.replaceAll("', '", ' ').replace(/^'|'$/g, '') ?? null, version: /Borg: (\d+\.\d+\.\d+\S*)/.exec(text)?.[1] ?? null };
}

/**
 * Whether a repository beside ours is refused, as one below the same folder would not be with `--restrict-to-path`. Returns
 * null when it cannot be seen. It asks for a list, and makes nothing.
 */
export async function refusesOthers(settings: Settings): Promise<boolean | null> {
  const done = await askBorg({ ...settings, repository: `${settings.repository.replace(/\/+$/, '')}-other` }, ['list', '--short']);
  if (/PathNotAllowed|Repository path not allowed/.test(done.said)) return true;
  return done.code === 0 || /Repository\.(DoesNotExist|InvalidRepository)|Passphrase|Keyfile/.test(done.said) ? false : null;
}

/**
 * The second way to ask, when the command line does not tell: `compact` with a threshold that no data file can reach. A server that may compact says that it
 * begins to, an append-only one passes over it (repository.py, commit()). Returns null when neither can be seen. It adds an empty transaction, and deletes nothing on either.
 */
export async function compactsNothing(settings: Settings): Promise<boolean | null> {
  const done = await askBorg(settings, ['compact', '--debug', '--threshold', '1000']);
  if (done.code !== 0 || !/check_free_space/.test(done.said)) return null;
  return !/Compaction started/i.test(done.said);
}
