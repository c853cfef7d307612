// The sandbox: a PostgreSQL on files that came out of an archive, locked in. Such a copy believes that it is the real cluster: let loose it would
// archive its WAL over the real one's, drink up a publisher's changes, run its cron jobs, and write through its links into live files.
// So it runs in namespaces of its own (mounts, network, processes), in a root folder that holds this machine's programs, read-only, and
// the copy at its original paths and nothing else; as a user that owns nothing else; and with every setting that could reach out forced off
// on the command line, which beats postgresql.auto.conf. A container's cluster gets the same from Docker, in the image it ran in.
// Its process 1 lives as long as our end of a pipe: however we end, everything inside is gone with us, and all its mounts.
import fs from 'node:fs';
import path from 'node:path';
import { spawn } from 'node:child_process';
import type { ChildProcess } from 'node:child_process';
import { Problem, lastLines, named, sayMore } from './say.ts';
import { look, programPath, signalGroup, waitUntil } from './shell.ts';
import { plainText } from './files.ts';
import { OWN_USER, SANDBOX_MARK } from './processes.ts';
import { homeOf, queryCluster, useRole } from './questions.ts';
import type { Cluster } from './postgres.ts';
import type { Manifest } from './record.ts';

/** PostgreSQL of one major version: the folder of its programs, on this host or (image not '') inside that image. */
export type Programs = { version: string; binaries: string; image: string };
/** What of this host is seen inside, and where. */
export type Place = { from: string; at: string };
/** words: put before a command, it runs inside as the sandbox's own user. `folder`/own is /own inside, and may be written. */
export type Sandbox = { folder: string; words: string[]; end: () => Promise<void> };

const PORT = '5432';
const SYSTEM_PATH = '/usr/bin:/bin:/usr/sbin:/sbin';

// sh, as root in namespaces of its own: $1 the new root, $2 the folder that becomes /own, then pairs: what, and where it is to be seen. An archive may have
// chosen these: none leads out of the new root (`..`, a link in what is mounted already), and no program is looked for in them, which would run as root.
const ENTER = `set -e
root=$1 own=$2 PATH=${SYSTEM_PATH}; shift 2
mount -t tmpfs -o mode=755 tmpfs "$root"
cd "$root"; root=$(pwd -P); mkdir proc dev dev/shm tmp own usr etc
for one in bin sbin lib lib32 lib64 libx32; do
  if [ -L /$one ]; then cp -P /$one .; elif [ -d /$one ]; then mkdir $one; mount --rbind /$one $one; fi
done
for one in usr etc; do mount --rbind /$one $one; mount -o remount,bind,ro $one || :; done
mount --bind "$own/passwd" etc/passwd
mount -t proc proc proc; mount -t tmpfs -o mode=1777 tmpfs tmp; mount -t tmpfs -o mode=1777 tmpfs dev/shm
for one in null zero random urandom; do : > dev/$one; mount --bind /dev/$one dev/$one; done
mount --bind "$own" own
ip link set lo up 2> /dev/null || :
while [ $# -gt 0 ]; do
  [ "$(realpath -m "$root$2")" = "$root$2" ] || { echo "$2 leads to another place: the record of this archive cannot be trusted" >&2; exit 1; }
  if [ -d "$1" ]; then mkdir -p "$root$2"; else mkdir -p "$(dirname "$root$2")"; : > "$root$2"; fi
  mount --rbind "$1" "$root$2"; shift 2
done
exec chroot "$root" sh -c 'exec 3<&0; echo ready; cat <&3 > /dev/null & wait $!'`; // when our pipe ends, so does process 1, and with it all inside

/**
 * Find what can run a cluster of an archive here: the image of its container if there is one, else this host's own programs of that major version.
 * Given the cluster and the manifest it stands in, returns the programs, or null when they are not here.
 */
export async function findPrograms(cluster: Omit<Cluster, 'pid'>, manifest: Manifest): Promise<Programs | null> {
  const { version } = cluster, box = manifest.containers.find((one) => one.name === cluster.container);
  if (!/^\d\d$/.test(version)) return null;
  for (const image of box ? [box.imageId, ...box.imageDigests, box.image] : []) {
    if (/^[a-z0-9][\w./:@-]*$/i.test(image) && (await look(['docker', 'image', 'inspect', '--format={{.Id}}', image])).code === 0) return { version, binaries: cluster.binaries, image };
  }
  for (const binaries of [...(cluster.container ? [] : [cluster.binaries]), `/usr/lib/postgresql/${version}/bin`, `/usr/pgsql-${version}/bin`, '/usr/local/pgsql/bin', '/usr/local/bin', '/usr/bin']) {
    if (path.resolve(binaries) !== binaries || path.dirname(binaries) === '/' || !isOursToRun(path.join(binaries, 'postgres'))) continue; // what lies around it is seen inside: not all of this machine
    // Read, not run: out here it would run as root, and root may have extracted it from such an archive.
    if ((await look(['grep', '--quiet', '--text', `(PostgreSQL) ${version}[.a-z]`, path.join(binaries, 'postgres')])).code === 0) return { version, binaries, image: '' };
  }
  return null;
}

// The archive names the folder: what lies there is run only if nobody else could have put it there.
function isOursToRun(program: string): boolean {
  return path.isAbsolute(program) && [program, path.dirname(program)].every((file) => {
    const facts = fs.statSync(file, { throwIfNoEntry: false });
    return facts && [0, process.getuid?.()].includes(facts.uid) && (facts.mode & 0o022) === 0;
  });
}

/**
 * Open a sandbox in FOLDER (new, empty): PLACES are seen inside where they say. Throws Problem when this machine does not
 * let us lock anything in.
 */
export async function openSandbox(folder: string, places: Place[], programs: Programs): Promise<Sandbox> {
  const own = path.join(folder, 'own'), isRoot = process.getuid?.() === 0, user = isRoot ? OWN_USER : process.getuid!();
  fs.mkdirSync(own, { recursive: true, mode: 0o700 });
  for (const [name, text] of Object.entries({ passwd: `root:x:0:0::/:/bin/sh\ndrill:x:${user}:${user}::/own:/bin/sh\n`, hba: 'local all all trust\n', conf: '', ident: '' })) fs.writeFileSync(path.join(own, name), text, { mode: 0o644 });
  const given = isRoot ? await look(['chown', `${user}:${user}`, own]) : null;
  if (given && given.code !== 0) throw notLockedIn(given.argv, given.said);
  const home = path.dirname(programs.binaries);
  const seen = [...(programs.image || /^\/usr(\/|$)/.test(home) ? [] : [{ from: home, at: home }]), ...places].sort((one, other) => one.at.length - other.at.length);
  const name = path.basename(folder), quoted = (word: string) => word.replaceAll('"', '""'); // as CSV
  const argv = programs.image
    ? ['docker', 'run', '--rm', '--interactive', '--name', name, '--label', `${SANDBOX_MARK}=yes`, '--network', 'none', '--read-only', '--tmpfs', '/tmp', '--cap-drop', 'ALL', '--security-opt', 'no-new-privileges',
      '--user', `${user}:${user}`, ...[{ from: own, at: '/own' }, { from: path.join(own, 'passwd'), at: '/etc/passwd' }, ...seen].flatMap(({ from, at }) => ['--mount', `type=bind,"source=${quoted(from)}","target=${quoted(at)}"`]),
      '--entrypoint', 'sh', programs.image, '-c', 'exec 3<&0; echo ready; cat <&3 > /dev/null & wait $!']
    : ['unshare', ...(isRoot ? [] : ['--user', '--map-current-user', '--keep-caps']), '--mount', '--net', '--pid', '--ipc', '--uts', '--fork', '--kill-child', '--', 'sh', '-c', ENTER, 'sh',
      path.join(folder, 'root'), own, ...seen.flatMap(({ from, at }) => [from, at])];
  if (!programs.image) fs.mkdirSync(path.join(folder, 'root'));
  sayMore(`sandbox: ${argv[0]} ... ${seen.map(({ at }) => named(at)).join(', ')}`);
  const child = spawn(argv[0]!, argv.slice(1), { stdio: ['pipe', 'pipe', 'pipe'], detached: true, cwd: '/', env: { PATH: programPath(), DOCKER_HOST: process.env.DOCKER_HOST } });
  const end = async (patienceMs = 10_000): Promise<void> => {
    const gone = child.exitCode !== null || child.signalCode !== null ? null : new Promise((resolve) => { child.once('exit', resolve); });
    child.stdin.destroy();
    const late = setTimeout(() => signalGroup(child.pid!, 'SIGKILL'), patienceMs); // a daemon or a disk that hangs
    await gone;
    clearTimeout(late);
    if (programs.image) await dockerAnyway('rm', '--force', name);
  };
  await readyOrNot(child, argv).catch(async (error) => {
    await end(0);
    throw error;
  });
  const inner = programs.image ? '' : fs.readFileSync(`/proc/${child.pid}/task/${child.pid}/children`, 'utf8').trim();
  const lowered = ['--no-new-privs', ...(isRoot ? ['--reuid', String(user), '--regid', String(user), '--clear-groups', '--inh-caps=-all', '--bounding-set=-all'] : [])]; // who is not root has none to lose
  const words = programs.image ? ['docker', 'exec', '--env', 'HOME=/own', '--env', 'LC_ALL=C.UTF-8', name]
    : ['env', `PATH=${SYSTEM_PATH}`, 'nsenter', '--target', inner, '--mount', '--net', '--pid', '--ipc', '--uts', '--root', '--wd', ...(isRoot ? [] : ['--user', '--preserve-credentials']), '--',
      'setpriv', ...lowered, '--', 'env', '-i', `PATH=${SYSTEM_PATH}`, 'HOME=/own', 'LC_ALL=C.UTF-8'];
  return { folder, words, end };
}

/** Ask Docker, also when we were asked to stop, but not for ever: its daemon may hang. Returns how it ended. */
export const dockerAnyway = (...words: string[]) => look(['timeout', '--kill-after=5', '60', 'docker', ...words], { unlimited: true });

// The first line says that all is mounted; when there is none, the reason is on stderr. A daemon or a disk that hangs says nothing at all.
async function readyOrNot(child: ChildProcess, argv: string[]): Promise<void> {
  let said = '', isReady: boolean | null = null;
  child.stderr!.on('data', (piece) => { said = (said + piece).slice(-4096); });
  child.stdin!.on('error', () => {}); // it has gone
  const told = new Promise<boolean>((resolve) => {
    child.stdout!.once('data', () => resolve(true));
    child.once('error', (error) => { said += error.message; resolve(false); });
    child.once('exit', () => resolve(false));
  }).then((is) => { isReady = is; });
  await waitUntil(120, () => isReady !== null, 100, told);
  if (!isReady) throw notLockedIn(argv, isReady === null ? `${said}\nno answer within 120 s` : said);
}

const notLockedIn = (argv: string[], said: string) => new Problem('a copy of PostgreSQL cannot be locked in here, so it is not started',
  { ran: argv.slice(0, 12), said: lastLines(said, 3), hint: 'rehearse it on another machine, where root may make namespaces: `node backup.js drill` runs on the operator\'s computer, too' });

// What a copy may not have: every one of these could reach out, or needs what is not here. Nothing in postgresql.auto.conf overrules the
// command line; what a role or a database sets of its own reaches nobody, for there is no network.
const FORCED: Record<string, string> = {
  listen_addresses: '', unix_socket_directories: '/own', port: PORT, config_file: '/own/conf', hba_file: '/own/hba', ident_file: '/own/ident', external_pid_file: '/own/pid',
  archive_mode: 'off', archive_command: '', restore_command: '', archive_cleanup_command: '', recovery_end_command: '', primary_conninfo: '', primary_slot_name: '',
  shared_preload_libraries: '', max_logical_replication_workers: '0', max_wal_senders: '0', autovacuum: 'off', ssl: 'off', huge_pages: 'off', shared_buffers: '128MB',
  logging_collector: 'off', log_destination: 'stderr', log_statement: 'none', lc_messages: 'C', jit: 'off', fsync: 'off',
};
const FORCED_SINCE: [number, Record<string, string>][] = [[15, { archive_library: '' }], [17, { event_triggers: 'off', summarize_wal: 'off', sync_replication_slots: 'off' }]];
// These must be as they were, or the server refuses its own files (manual, "Hot Standby" and "Replication Slots").
const KEPT: Record<string, string> = { 'wal_level setting': 'wal_level', 'max_connections setting': 'max_connections', 'max_worker_processes setting': 'max_worker_processes',
  'max_prepared_xacts setting': 'max_prepared_transactions', 'max_locks_per_xact setting': 'max_locks_per_transaction', 'track_commit_timestamp setting': 'track_commit_timestamp' };

/**
 * Start the cluster in a data directory of the sandbox and wait until it answers. Given its path inside, the path on this host, and names of roles of which one should be
 * its superuser, returns it as a running cluster, `owner` being that role: queryCluster() and its like ask it. Throws Problem with what the server says.
 */
export async function startInside(sandbox: Sandbox, programs: Programs, dataDirectory: string, onHost: string, roles: string[]): Promise<Cluster> {
  const facts = await look([...sandbox.words, path.join(programs.binaries, 'pg_controldata'), '-D', dataDirectory]);
  const kept = Object.entries(KEPT).flatMap(([told, name]): [string, string][] => {
    const value = new RegExp(`^${told}:\\s+(\\w+)$`, 'm').exec(facts.out)?.[1];
    return value ? [[name, value]] : [];
  });
  if (kept.length === 0) kept.push(['wal_level', 'logical'], ['max_prepared_transactions', '1000'], ['max_connections', '1000'], ['max_worker_processes', '100']); // no pg_controldata here: more than it can have had
  const slots = fs.existsSync(path.join(onHost, 'pg_replslot')) ? fs.readdirSync(path.join(onHost, 'pg_replslot')).length : 0;
  const newer = FORCED_SINCE.filter(([since]) => Number(programs.version) >= since).map(([, settings]) => settings);
  const settings: Record<string, string> = { ...FORCED, ...Object.assign({}, ...newer), ...Object.fromEntries(kept), max_replication_slots: String(slots + 10), data_directory: dataDirectory };
  const options = Object.entries(settings).flatMap(([name, value]) => ['-c', `${name}=${value}`]);
  const cluster: Cluster = { name: `copy of ${dataDirectory}`, dataDirectory: onHost, version: programs.version, owner: '', uid: OWN_USER, gid: OWN_USER, pid: 1, port: PORT, socketFolder: '/own',
    binaries: programs.binaries, container: '', insideDataDirectory: dataDirectory, configFolder: '', roots: [], tablespaces: [], walFolder: '', words: sandbox.words };
  const log = path.join(sandbox.folder, 'own/log'), said = () => lastLines(plainText(log, 1 << 26), 4);
  const control = (...words: string[]) => look([...sandbox.words, path.join(programs.binaries, 'pg_ctl'), ...words, '-D', dataDirectory, '-w', '-t', '3600', '-s'], { seconds: 3700 });
  const begin = async () => {
    const done = await control('start', '-l', '/own/log', '-o', options.map((word) => `'${word.replaceAll("'", `'\\''`)}'`).join(' ')); // pg_ctl gives them to a shell
    if (done.code !== 0) throw new Problem('PostgreSQL does not start on the copy',
      { ran: ['pg_ctl', 'start', '-D', dataDirectory], said: said() || done.said });
  };
  const asSuperuser = async (role: string): Promise<Cluster | null> => {
    useRole(cluster, role);
    return (await queryCluster(cluster, await homeOf(cluster), 'select current_setting(\'is_superuser\')')).out.trim() === 'on' ? { ...cluster, owner: role } : null;
  };
  await begin();
  for (const role of roles) {
    const found = await asSuperuser(role);
    if (found) return found;
  }
  await control('stop', '-m', 'fast'); // who is it? In single-user mode nobody is asked for a name
  const alone = await look([...sandbox.words, 'sh', '-c', 'echo "$1" | { shift; exec "$@"; }', 'sh', 'select rolname from pg_roles where rolsuper and rolcanlogin order by oid limit 1',
    path.join(programs.binaries, 'postgres'), '--single', '-D', dataDirectory, ...options, 'template1'], { seconds: 3600 });
  await begin();
  const found = await asSuperuser(/rolname = "(.*)"\t\(typeid/.exec(alone.out)?.[1] ?? '');
  if (!found) throw new Problem('PostgreSQL runs on the copy, but no superuser of it may log in',
    { said: said(), hint: `tried: ${roles.map(named).join(', ')}` });
  return found;
}
