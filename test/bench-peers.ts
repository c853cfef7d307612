// Every method of saving that is compared, as data: what it takes to set it up, and a night as the list of commands that are run one
// after the other. Real programs from Debian's packages, as they are configured when installed, with the same cluster, the same
// stop and start commands, the same sshd for a storage, and for all that use borg the same cipher, compression and chunker as ours.
// Each has a folder of its own there, and keys of its own here.
import { execFileSync } from 'node:child_process';
import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import type { Place } from './bench-place.ts';
import { makeServer } from './script.ts';
import type { Server } from './script.ts';
import type { Storage } from './storage.ts';

export type World = { folder: string; place: Place; storage: Storage; port: number }; // port: of the storage, or of the line before it
export type Method = {
  name: string;
  night: (number: number) => string[][]; // commands; the database is stopped and started by them, or stays up
  storedAt: string; // the folder at the storage; '' when it keeps nothing there
  server?: Server; // of ours
  files?: string[]; // what it keeps on this side, removed after every night
};

const COMPRESSION = 'zstd,3', CHUNKER = 'fixed,65536', PASSPHRASE = 'bench';
const user = os.userInfo().username;

/** ssh as all peers use it: a key of the bench, put into the storage's list once. */
function sshWords({ folder, storage, port }: World): string[] {
  const key = path.join(folder, 'peers_key');
  if (!fs.existsSync(key)) {
    execFileSync('ssh-keygen', ['-q', '-t', 'ed25519', '-N', '', '-f', key]);
    storage.authorizeLine(fs.readFileSync(`${key}.pub`, 'utf8'));
  }
  return ['ssh', '-p', String(port), '-i', key, '-o', 'BatchMode=yes', '-o', 'IdentitiesOnly=yes', '-o', 'StrictHostKeyChecking=no', '-o', 'UserKnownHostsFile=/dev/null', '-o', 'LogLevel=ERROR'];
}

const savedPaths = (place: Place) => [place.dataDirectory, ...place.filesFolder ? [place.filesFolder] : []];

/** A borg repository of its own. Returns `env VARIABLES borg`, to which a command is added, and its variables. */
function borgWords(world: World, name: string): { borg: string[]; variables: Record<string, string>; url: string; storedAt: string } {
  const home = path.join(world.folder, `borg-${name}`), storedAt = world.storage.repository(name), url = `ssh://${user}@127.0.0.1:${world.port}${storedAt}`;
  const variables = { BORG_REPO: url, BORG_PASSPHRASE: PASSPHRASE, BORG_BASE_DIR: home, BORG_RSH: sshWords(world).join(' ') };
  const borg = ['env', ...Object.entries(variables).map(([key, value]) => `${key}=${value}`), 'borg'];
  fs.mkdirSync(home);
  execFileSync(borg[0]!, [...borg.slice(1), 'init', '--encryption', 'keyfile-blake2'], { stdio: 'ignore' });
  return { borg, variables, url, storedAt };
}

const createWords = ['create', '--compression', COMPRESSION, '--chunker-params', CHUNKER];

/** Our script, with these settings. */
export async function ours(world: World, name: string, settings: Record<string, unknown>): Promise<Method> {
  const label = name.replace(/\W+/g, '-'), { place, port } = world;
  const storage: Storage = { ...world.storage, port, url: (one) => `ssh://${user}@127.0.0.1:${port}${world.storage.repository(one)}` };
  const server = await makeServer(path.join(world.folder, label), label, storage, { stop: [`postgres ${place.dataDirectory}`], folders: place.filesFolder ? [place.filesFolder] : [],
    compression: COMPRESSION, chunker: CHUNKER, stopTimeoutSeconds: 300, maxDowntimeMinutes: 600, ...settings });
  return { name, server, storedAt: storage.repository(label), night: () => [[process.execPath, server.script]] };
}

/** What no method can be quicker than: the same stop and start with nothing in between. */
export const onlyStopAndStart = ({ place }: World): Method => ({ name: 'only stop and start', storedAt: '', night: () => [place.stop, place.start] });

/** borg by hand between stop and start, as the shortest script does it; without borg's half second of self-test at each start, which our script spares itself where it can. */
export function bareBorg(world: World, name = 'stop, borg create, start', repository = 'bare-borg'): Method {
  const { place } = world, { borg: [env, ...words], storedAt } = borgWords(world, repository), borg = [env!, 'BORG_SELFTEST=disabled', ...words];
  return { name, storedAt, night: (number) => [place.stop, [...borg, ...createWords, `::night-${number}`, ...savedPaths(place)], place.start] };
}

export function borgmatic(world: World): Method {
  const { place } = world, { variables, url, storedAt } = borgWords(world, 'borgmatic'), file = path.join(world.folder, 'borgmatic.yaml');
  const text = JSON.stringify; // a JSON value is a YAML value
  const hook = (argv: string[]) => text([argv.map((word) => `'${word}'`).join(' ')]);
  fs.writeFileSync(file, `location:\n  source_directories: ${text(savedPaths(place))}\n  repositories: ${text([url])}\n`
    + `storage:\n  encryption_passphrase: ${text(PASSPHRASE)}\n  compression: ${COMPRESSION}\n  chunker_params: ${text(CHUNKER)}\n  ssh_command: ${text(variables.BORG_RSH)}\n  borg_base_directory: ${text(variables.BORG_BASE_DIR)}\n  archive_name_format: "night-{now}"\n`
    + `hooks:\n  before_backup: ${hook(place.stop)}\n  after_backup: ${hook(place.start)}\n  on_error: ${hook(place.start)}\n`, { mode: 0o600 });
  return { name: 'borgmatic, stop and start hooks', storedAt, night: () => [['borgmatic', '--config', file, '--syslog-verbosity', '-1', 'create']] };
}

/** As docker-volume-backup does it: stop, pack everything into a local .tar.gz, start, then send that file. The storage keeps two of them. */
export function tarLocally(world: World): Method {
  const { place } = world, file = path.join(world.folder, 'night.tar.gz'), storedAt = world.storage.repository('tar');
  const ssh = sshWords(world);
  fs.mkdirSync(storedAt);
  const pack = ['tar', '--create', '--gzip', '--file', file, '--absolute-names', ...savedPaths(place)];
  const send = ['scp', '-q', '-O', '-P', String(world.port), ...ssh.slice(3), file]; // the same options, but for the port's letter; -O: as the storage's sshd offers no sftp of its own
  return { name: "docker-volume-backup's way (tar.gz here)", storedAt, files: [file],
    night: (number) => [place.stop, pack, place.start, [...send, `${user}@127.0.0.1:${storedAt}/night-${number % 2}.tar.gz`]] };
}

/** rsnapshot runs at the storage and pulls from the server, over ssh. A night without stop: the files are to be at rest already. */
export function rsnapshot(world: World, stops = true): Method {
  const { place } = world, storedAt = world.storage.repository('rsnapshot'), file = path.join(world.folder, 'rsnapshot.conf');
  fs.writeFileSync(file, [['config_version', '1.2'], ['snapshot_root', `${storedAt}/`], ['cmd_cp', '/bin/cp'], ['cmd_rm', '/bin/rm'], ['cmd_rsync', '/usr/bin/rsync'], ['cmd_ssh', '/usr/bin/ssh'],
    ['ssh_args', sshWords(world).slice(1).join(' ')], ['retain', 'alpha', '60'], ['verbose', '1'], ['lockfile', `${file}.pid`],
    ...savedPaths(place).map((one) => ['backup', `${user}@127.0.0.1:${one}/`, 'server/'])].map((words) => `${words.join('\t')}\n`).join(''));
  const pull = ['rsnapshot', '-c', file, 'alpha'];
  return { name: 'rsnapshot between stop and start', storedAt, night: () => (stops ? [place.stop, pull, place.start] : [pull]) };
}

export function rdiffBackup(world: World, stops = true): Method {
  const { place } = world, storedAt = world.storage.repository('rdiff-backup');
  const push = ['rdiff-backup', '--api-version', '201', '--remote-schema', `${sshWords(world).join(' ')} {h} rdiff-backup server`, '--new', 'backup', place.root, `${user}@127.0.0.1::${storedAt}`];
  return { name: 'rdiff-backup between stop and start', storedAt, night: () => (stops ? [place.stop, push, place.start] : [push]) };
}

/** restic, over sftp. Only without stop. */
export function restic(world: World): Method {
  const { place } = world, storedAt = world.storage.repository('restic'), password = path.join(world.folder, 'restic_password');
  fs.writeFileSync(password, PASSPHRASE);
  const words = ['restic', '--quiet', '--repo', `sftp:${user}@127.0.0.1:${storedAt}`, '--password-file', password, '--cache-dir', path.join(world.folder, 'restic-cache'),
    '--option', `sftp.command=${sshWords(world).join(' ')} ${user}@127.0.0.1 /usr/lib/openssh/sftp-server`];
  execFileSync(words[0]!, [...words.slice(1), 'init'], { stdio: 'ignore' });
  return { name: 'restic, files at rest', storedAt, night: () => [[...words, 'backup', ...savedPaths(place)]] };
}

const asOwner = ({ place: { cluster } }: World, program: string) => ['runuser', '-u', cluster.owner, '--', path.join(cluster.binaries, program), '-h', cluster.socketFolder, '-p', String(cluster.port)];

/** pg_basebackup into a local folder (plain format), then borg. The database stays up. */
export function baseBackup(world: World): Method {
  const { borg, storedAt } = borgWords(world, 'basebackup'), folder = path.join(world.folder, 'basebackup');
  const paths = [folder, ...world.place.filesFolder ? [world.place.filesFolder] : []];
  return { name: 'pg_basebackup, then borg', storedAt, files: [folder],
    night: (number) => [['install', '-d', '-m', '700', '-o', world.place.cluster.owner, folder], [...asOwner(world, 'pg_basebackup'), '-D', folder, '-c', 'fast'], [...borg, ...createWords, `::night-${number}`, ...paths]] };
}

/** pg_dump as plain SQL, straight into borg, which cuts it where its contents say (borg's default chunker: a dump has no pages). The database stays up. */
export function dump(world: World): Method {
  const { borg, storedAt } = borgWords(world, 'dump');
  const quoted = (argv: string[]) => argv.map((word) => `'${word}'`).join(' ');
  const create = (number: number) => [...borg, 'create', '--compression', COMPRESSION, '--stdin-name', 'postgres.sql', `::night-${number}`, '-', ...world.place.filesFolder ? [world.place.filesFolder] : []];
  return { name: 'pg_dump (plain SQL) into borg', storedAt,
    night: (number) => [['bash', '-o', 'pipefail', '-c', `${quoted([...asOwner(world, 'pg_dump'), 'postgres'])} | ${quoted(create(number))}`]] };
}
