// Servers with a past: real borg repositories on this machine with the names, comments, records and histories that backup.js writes, and with the storage's log
// of transactions saying when. A year of nights in seconds, told by the history; a few archives are really there.
import { execFileSync } from 'node:child_process';
import fs from 'node:fs';
import path from 'node:path';

/** What became of a server. nights: how many the history tells; archives: how many are there; newestHours: the age of the last night, by the storage's clock; liesHours: by how much its own clock makes it younger; quota: as the repository's config says; odd: by nights ago, what was not good; text: what its hostile names are made of. */
export type Story = { nights: number; archives: number; newestHours?: number; liesHours?: number; quota?: string; gigabytes?: number; odd?: Record<number, 'warning' | 'failed' | 'missing'>; drillDays?: number; drillProven?: boolean; unprovenHours?: number; text?: string; noRecord?: boolean };

const HOUR = 3_600_000;

/** Given a folder, a name and a story, makes the repository with its key, and returns the server's entry in the operator's file. */
export function makePast(folder: string, name: string, story: Story): Record<string, unknown> {
  const { nights, archives, newestHours = 7, liesHours = 0, gigabytes = 3, odd = {}, text = '' } = story, own = path.join(folder, 'past', name), repository = path.join(folder, 'repositories', name), work = path.join(own, 'work');
  fs.mkdirSync(path.join(work, 'record'), { recursive: true, mode: 0o700 });
  fs.mkdirSync(path.dirname(repository), { recursive: true });
  fs.writeFileSync(path.join(own, 'passphrase'), 'of a test\n', { mode: 0o600 });
  const env = { ...process.env, BORG_REPO: repository, BORG_KEY_FILE: path.join(own, 'key'), BORG_PASSPHRASE: 'of a test', BORG_BASE_DIR: path.join(own, 'borg'), BORG_SELFTEST: 'disabled', BORG_DISPLAY_PASSPHRASE: 'no', TZ: 'UTC' };
  const borg = (...words: string[]) => execFileSync('borg', words, { env, cwd: work, stdio: ['ignore', 'pipe', 'pipe'] });
  borg('init', '--encryption', 'keyfile-blake2');
  const now = Date.now(), at = (nightsAgo: number) => new Date(now - (newestHours - liesHours + 24 * nightsAgo) * HOUR), stamp = (time: Date) => time.toISOString().slice(0, 19), nameAt = (time: Date) => `${name}-${stamp(time)}`;
  fs.writeFileSync(path.join(repository, 'transactions'), `transaction 0, UTC time ${stamp(at(nights))}.000000\n`); // borg's own first one, of today
  const lines = Array.from({ length: nights }, (_, index) => nights - 1 - index).filter((ago) => odd[ago] !== 'missing').map((ago) => {
    const outcome = odd[ago] === undefined ? 'good' : odd[ago]!, wave = Math.sin(ago * 1.7 + name.length) + Math.sin(ago / 9), bytes = Math.round(gigabytes * 1e9 * (1.3 - ago / nights / 2 + wave / 200));
    return { kind: 'run', startedAt: at(ago).toISOString(), endedAt: new Date(at(ago).getTime() + 900_000).toISOString(), outcome, exitCode: outcome === 'good' ? 0 : 1, server: name, archive: nameAt(at(ago)), downSeconds: 14 + 5 * wave + (ago % 31 === 0 ? 40 : 0), startSeconds: 3, parts: [],
      warm: { deduplicatedBytes: Math.round(gigabytes * 4e6 * (2 + wave)) }, cold: { originalBytes: bytes, deduplicatedBytes: Math.round(gigabytes * 1e6 * (2 + wave)), files: 12_000 }, snapshot: '', warnings: outcome === 'warning' ? [`replication slot "old"${text} holds back 1.2 GB of WAL`] : [], error: '' };
  });
  const drill = story.drillDays === undefined ? [] : [{ kind: 'drill', startedAt: at(1).toISOString(), outcome: 'good', certificate: { archive: `${nameAt(at(1))}${text}`, server: name, proven: story.drillProven !== false, madeAt: new Date(Date.now() - story.drillDays * 24 * HOUR).toISOString(), checks: [], restoreSeconds: 540 } }];
  const save = (archive: string, time: Date, ...files: string[]) => {
    borg('create', '--timestamp', stamp(time), `::${archive}`, ...files);
    const number = Math.max(...fs.readdirSync(path.join(repository, 'data/0')).map(Number));
    fs.appendFileSync(path.join(repository, 'transactions'), `transaction ${number}, UTC time ${stamp(new Date(time.getTime() - liesHours * HOUR))}.000000\n`);
  };
  for (let ago = archives - 1; ago >= 0; ago--) {
    if (odd[ago] === 'missing') continue;
    const archive = nameAt(at(ago)), manifest = path.join(work, 'record/manifest.json');
    fs.writeFileSync(manifest, JSON.stringify(manifestOf(name, archive, at(ago), gigabytes, ago, text)));
    fs.writeFileSync(path.join(work, 'record/history.jsonl'), [...lines.filter((line) => line.startedAt <= at(ago).toISOString()), ...drill].map((line) => `${JSON.stringify(line)}\n`).join(''));
    save(archive, at(ago), ...(story.noRecord ? ['record/history.jsonl'] : ['record/manifest.json']));
    if (odd[ago] !== 'failed') save(`proven-${archive}`, new Date(at(ago).getTime() + 60_000), 'record/history.jsonl');
  }
  if (story.unprovenHours !== undefined) save(nameAt(new Date(Date.now() - story.unprovenHours * HOUR)), new Date(Date.now() - story.unprovenHours * HOUR), 'record/manifest.json');
  if (story.quota) fs.writeFileSync(path.join(repository, 'config'), fs.readFileSync(path.join(repository, 'config'), 'utf8').replace(/^storage_quota = .*$/m, `storage_quota = ${story.quota}`));
  fs.rmSync(work, { recursive: true });
  return { server: name, repository, keyFile: path.join(own, 'key'), passphraseFile: path.join(own, 'passphrase'), timeZone: 'Africa/Maputo' };
}

function manifestOf(server: string, archive: string, at: Date, gigabytes: number, ago: number, text: string): object {
  const minor = ago > 3 ? '15.13' : '15.14', database = (name: string, share: number, extensions: string[]) => ({ name: name + text, bytes: Math.round(gigabytes * share * 1e9), template: false, connectable: true, encoding: 'UTF8', collate: 'C', ctype: 'C', provider: 'c', orderFingerprint: '', extensions: extensions.map((one) => ({ name: one.split(' ')[0], version: one.split(' ')[1], schema: 'public' })) });
  return { format: 1, server, archive, madeAt: at.toISOString(), script: { version: '1', state: 'as built', node: 'v18', file: '/opt/cold-backup/backup.js' }, host: { osRelease: { PRETTY_NAME: `Debian GNU/Linux 12 (bookworm)${text}` }, architecture: 'x64', libc: 'glibc 2.36', users: [], groups: [] }, packages: { all: {}, needed: {}, unowned: [] },
    postgres: [{ name: '15/main', version: '15', walFolder: '/var/lib/postgresql/15/main/pg_wal', binaries: '/usr/lib/postgresql/15/bin', owner: 'postgres', container: '', port: '5432', uid: 100, gid: 100, roots: ['/var/lib/postgresql/15/main'], tablespaces: [], systemIdentifier: '1', controlData: {}, serverVersion: `PostgreSQL ${minor} (Debian ${minor}-0+deb12u1) on x86_64-pc-linux-gnu`, dataDirectory: '/var/lib/postgresql/15/main', databases: [database('shop', 0.7, ['plpgsql 1.0', 'pg_trgm 1.6', 'postgis 3.3.2']), database('crm', 0.2, ['plpgsql 1.0'])] }],
    containers: text ? [{ name: `box${text}`, image: text, imageId: text, imageDigests: [], composeProject: '', composeService: '', composeFiles: [], mounts: [] }] : [], plan: { roots: [{ path: '/var/lib/postgresql/15/main', why: 'postgres 15/main' }, { path: '/var/www/uploads', why: 'folder' }], clusters: [], parts: [], exclude: [] }, parents: [], proof: null, drill: null };
}
