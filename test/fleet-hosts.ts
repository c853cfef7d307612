// A fleet of real hosts (host.ts) on a network of their own: a storage with one borg user for each server, an operator's computer, and
// production servers as they are out there. Each server is set up as the README says: `setup`, the printed line to the storage's
// keeper, `setup` again with a schedule, and from then on its own cron does the rest.
import assert from 'node:assert/strict';
import { execFileSync, spawn } from 'node:child_process';
import fs from 'node:fs';
import { startHost } from './host.ts';
import type { Host, HostOptions } from './host.ts';
import { distFile, waitFor } from './script.ts';
import { daemon } from './systemd-host.ts';
import { PG } from './cluster.ts';

const SCRIPT = '/opt/cold-backup/backup.js', STATE = '/var/lib/cold-backup', SETTINGS = '/opt/cold-backup/backup.settings.js';
const ADDRESSES: Record<string, string> = Object.fromEntries(['storage', 'operator', 'web1', 'dock1', 'a1', 'a2', 'l1', 'l2', 'web1b', 'dock1b', 'a1b', 'l2b'].map((name, at) => [name, `192.0.2.${at + 10}`]));

export type Fleet = {
  hosts: Record<string, Host>;
  add: (name: string, options?: HostOptions) => Promise<Host>;
  /** Set up as the README says; its cron takes the first backup in about a minute (inMinutes). more: words of `setup`; edit: its settings file, made by then. */
  setUp: (name: string, more: string[], edit?: (text: string) => string, inMinutes?: number) => Promise<void>;
  history: (name: string) => Promise<any[]>;
  /** Wait until each of them has taken a good backup, begun by its own cron. */
  nightIsOver: (names: string[]) => Promise<void>;
  destroy: () => Promise<void>;
};

/** A network namespace with a bridge in it, and a storage and an operator on that. */
export async function makeFleet(): Promise<Fleet> {
  const holder = spawn('unshare', ['--net', 'sleep', 'infinity'], { stdio: 'ignore' });
  const own = fs.readlinkSync('/proc/self/ns/net'), enter = ['nsenter', `--net=/proc/${holder.pid}/ns/net`, '--'];
  process.on('exit', () => holder.kill('SIGKILL'));
  await waitFor('the network namespace', () => fs.existsSync(`/proc/${holder.pid}/ns/net`) && fs.readlinkSync(`/proc/${holder.pid}/ns/net`) !== own, 10);
  execFileSync(enter[0]!, [...enter.slice(1), 'sh', '-ec', 'ip link set lo up; ip link add fleet type bridge; ip link set fleet up']);
  const hosts: Record<string, Host> = {}, times: Record<string, number> = {};

  const fleet: Fleet = {
    hosts,
    add: async (name, options = {}) => hosts[name] = await startHost({ name, ...options, network: { enter, bridge: 'fleet', address: ADDRESSES[name]!, hosts: ADDRESSES } }),
    setUp: async (name, more, edit = (text) => text, inMinutes = 1.5) => {
      const host = hosts[name]!, storage = hosts.storage!;
      await storage.must(`useradd --system --home-dir /srv/${name} --create-home --shell /bin/sh ${name} && install -d -o ${name} -g ${name} -m 700 /srv/${name} /srv/${name}/.ssh`);
      await host.write(SCRIPT, fs.readFileSync(distFile, 'utf8'), 0o755);
      const first = await host.run(['node', SCRIPT, 'setup', '--yes', '--server', name, '--repository', `ssh://${name}@storage/./repository`, '--quota', '5G', ...more]);
      const line = /^command="borg serve .*$/m.exec(first.stdout + first.stderr)?.[0];
      assert.ok(line, first.stdout + first.stderr);
      await storage.write(`/srv/${name}/.ssh/authorized_keys`, `${line}\n`, 0o600, `${name}:${name}`);
      const clock = (minutes: number) => new Date(Date.now() + minutes * 60_000).toISOString().slice(11, 16);
      times[name] = Date.now();
      const window = { from: clock(inMinutes - 5), until: clock(120), timeZone: 'UTC' }; // cron's line is five minutes after the begin
      await host.write(SETTINGS, edit((await host.read(SETTINGS)).replace('window: null', `window: ${JSON.stringify(window)}`)), 0o600);
      const second = await host.run(['node', SCRIPT, 'setup', '--yes', '--schedule', 'cron']);
      assert.equal(second.code, 0, second.stdout + second.stderr);
    },
    history: async (name) => (await hosts[name]!.run(['cat', `${STATE}/history.jsonl`])).stdout.trim().split('\n').filter((one) => one !== '').map((one) => JSON.parse(one)),
    nightIsOver: async (names) => {
      for (const name of names) {
        await hosts[name]!.waitFor(`the first night of ${name}`, async () => (await fleet.history(name)).length > 0, 300);
        const [line] = await fleet.history(name);
        assert.deepEqual([line.outcome, line.warnings, line.error], ['good', [], ''], name);
        assert.ok(Date.parse(line.startedAt) > times[name]!);
      }
    },
    destroy: async () => {
      for (const host of Object.values(hosts)) await host.destroy();
      holder.kill('SIGKILL');
    },
  };
  const storage = await fleet.add('storage');
  await storage.must(`[ -e /etc/ssh/ssh_host_ed25519_key ] || ssh-keygen -q -t ed25519 -N '' -f /etc/ssh/ssh_host_ed25519_key; systemctl enable --now --quiet ssh`);
  await fleet.add('operator');
  return fleet;
}

// An application as its owners write it: it holds a connection, answers over HTTP, and ends on TERM.
const APP = `const http = require('node:http'), { execFile } = require('node:child_process');
const server = http.createServer((_, answer) => execFile('psql', ['-U', 'postgres', '-Atc', 'select count(*) from orders', 'shop'], (error, rows) => answer.writeHead(error ? 500 : 200).end(error ? String(error) : rows)));
server.listen(8080, '127.0.0.1');
process.on('SIGTERM', () => server.close(() => process.exit(0)));
`;

const SITE = `server { listen 80 default_server; root /var/www; location /orders { proxy_pass http://127.0.0.1:8080/; } }\n`;

/** web1: nginx, an application behind it, PostgreSQL with PostGIS, attachments. */
export async function addWeb(fleet: Fleet): Promise<Host> {
  const host = await fleet.add('web1', {
    units: { 'app.service': daemon(`After=postgresql@${PG}-main.service`, 'User=postgres\nExecStart=/usr/bin/node /opt/app/server.js') },
    clusters: [{ name: 'main', initdb: ['--data-checksums'], sql: 'create database shop' }],
  });
  await host.psql(`${PG}/main`, `create table orders as select n, md5(n::text) as word from generate_series(1, 3000) n; alter table orders add primary key (n)`, 'shop');
  await host.psql(`${PG}/main`, `create extension postgis; create table places as select n, ST_SetSRID(ST_MakePoint(n % 180, n % 90), 4326) as at from generate_series(1, 500) n; create index on places using gist (at)`, 'shop');
  await host.write('/opt/app/server.js', APP);
  await host.must(`mkdir -p /var/www/uploads && for n in $(seq 200); do echo "invoice $n" > "/var/www/uploads/invoice $n.txt"; done; chown -R www-data: /var/www/uploads`);
  await host.write('/etc/nginx/conf.d/shop.conf', SITE);
  await host.must('rm -f /etc/nginx/sites-enabled/default; mkdir -p /var/log/nginx; systemctl enable --now --quiet nginx app');
  await fleet.setUp('web1', ['--stop', 'service nginx,service app,postgres *', '--folders', '/var/www,/opt/app,/etc/nginx,/etc/systemd/system']);
  return host;
}

const container = (name: string, more: string) => `docker run --detach --name ${name} --hostname ${name} --label com.docker.compose.project=shop --label com.docker.compose.service=${name} ${more}`;

/** What `docker compose up` would do for the project shop. */
export async function composeUp(host: Host): Promise<void> {
  await host.must(container('db', '--restart unless-stopped --volume db:/var/lib/postgresql/data postgres'));
  await host.must(container('cache', '--restart always --volume cache:/data redis-like'));
  await host.must(container('app', `--restart unless-stopped --volume files:/data --volume /srv/uploads:/uploads --health-cmd 'wget -qO- http://127.0.0.1:8080/' --health-interval 1s app`));
}

/** A host with Docker and the images of the project. */
export const withDocker = (host: Host): Promise<void> => host.startDocker({ images: ['app', 'postgres', 'redis-like'] });

/** dock1: a compose project: PostgreSQL, a cache, an application with a health check, one container that was stopped on purpose. */
export async function addDock(fleet: Fleet): Promise<Host> {
  const host = await fleet.add('dock1');
  await withDocker(host);
  await host.must('mkdir -p /srv/uploads && echo picture > /srv/uploads/one');
  await composeUp(host);
  await host.must(`${container('batch', '--restart unless-stopped app')} && docker stop --time 1 batch`);
  await host.waitFor('PostgreSQL in its container', 'docker exec db psql -U postgres -c "create table orders as select generate_series(1, 700) n"');
  await host.waitFor('the health check', `docker inspect --format '{{.State.Health.Status}}' app | grep -x healthy`);
  await fleet.setUp('dock1', ['--stop', 'compose shop', '--volumes', '*']);
  return host;
}

const PEERS = { settings: { listen_addresses: '*', wal_level: 'logical' } };
const ORDERS = 'create table orders (id uuid primary key default gen_random_uuid(), place text, n int)';
// A person who trusts the network between two hosts.
const trust = async (host: Host): Promise<void> => {
  await host.must(`(echo 'local all all trust'; echo 'host all all 192.0.2.0/24 trust'; echo 'host replication all 192.0.2.0/24 trust') > /etc/postgresql/${PG}/main/pg_hba.conf && systemctl reload postgresql@${PG}-main`);
};

/** a1 and a2: Bucardo, which lives on a1, keeps both alike. */
export async function addBucardoPair(fleet: Fleet): Promise<void> {
  for (const name of ['a1', 'a2']) {
    const host = await fleet.add(name, { clusters: [{ name: 'main', sql: 'create database shop', ...PEERS }] });
    await trust(host);
    await host.psql(`${PG}/main`, ORDERS, 'shop');
  }
  const a1 = fleet.hosts.a1!;
  await a1.write('/etc/bucardorc', 'dbhost=/var/run/postgresql\ndbport=5432\ndbname=bucardo\n');
  await a1.must('mkdir -p /run/bucardo /var/log/bucardo && printf "P\\n" | bucardo --dbuser=postgres --batch --piddir=/run/bucardo install');
  await a1.must(`export DBUSER=bucardo; b="bucardo --dbuser=bucardo"; $b add db a1 dbname=shop dbhost=/var/run/postgresql dbuser=postgres; $b add db a2 dbname=shop dbhost=a2 dbuser=postgres
    $b add sync shop tables=orders dbs=a1:source,a2:source conflict_strategy=bucardo_latest; $b start`);
  await a1.waitFor('Bucardo', `pgrep --full '^Bucardo Controller'`);
  await fleet.setUp('a1', ['--stop', 'postgres *', '--folders', '/etc/bucardorc'], (text) => text.replace(/stop: \[/, `stop: [\n    { name: 'bucardo', running: ['pgrep', '--full', '^Bucardo '], stop: ['bucardo', '--dbuser=bucardo', 'stop'], start: ['bucardo', '--dbuser=bucardo', 'start'] },\n    `));
  await fleet.setUp('a2', ['--stop', 'postgres *'], undefined, 3.5); // while Bucardo comes up it ends when a database is missing: the windows of a pair must not meet
}

/** l1 and l2: what is written to l1 goes to l2 by logical replication. */
export async function addLogicalPair(fleet: Fleet): Promise<void> {
  for (const name of ['l1', 'l2']) {
    const host = await fleet.add(name, { clusters: [{ name: 'main', sql: 'create database shop', ...PEERS }] });
    await trust(host);
    await host.psql(`${PG}/main`, ORDERS, 'shop');
  }
  await fleet.hosts.l1!.psql(`${PG}/main`, 'create publication p for all tables', 'shop');
  await fleet.hosts.l2!.psql(`${PG}/main`, `create subscription s connection 'host=l1 dbname=shop user=postgres' publication p`, 'shop');
  for (const name of ['l1', 'l2']) await fleet.setUp(name, ['--stop', 'postgres *']);
}

/** The operator's computer learns of these servers: full access to the storage, key and passphrase from their recovery sheets. */
export async function addToOperator(fleet: Fleet, names: string[]): Promise<void> {
  const operator = fleet.hosts.operator!, storage = fleet.hosts.storage!;
  await operator.write('/root/operator/backup.js', fs.readFileSync(distFile, 'utf8'), 0o755);
  await operator.must(`[ -e /root/operator/ssh_key ] || ssh-keygen -q -t ed25519 -N '' -f /root/operator/ssh_key; install -d -m 700 /root/.ssh`);
  const publicKey = await operator.must('cat /root/operator/ssh_key.pub'), hostKey = (await storage.must('cat /etc/ssh/ssh_host_ed25519_key.pub')).split(' ').slice(0, 2).join(' ');
  await operator.write('/root/.ssh/known_hosts', `storage ${hostKey}\n`, 0o600);
  for (const name of names) {
    await storage.must(['sh', '-c', 'echo "$1" >> "$0"', `/srv/${name}/.ssh/authorized_keys`, publicKey]);
    for (const [from, to] of [['borg_key', 'key'], ['passphrase', 'passphrase']]) await operator.write(`/root/operator/${name}.${to}`, `${await fleet.hosts[name]!.read(`/etc/cold-backup/${from}`)}`, 0o600);
  }
  const servers = names.map((name) => ({ server: name, repository: `ssh://${name}@storage/./repository`, sshKey: '/root/operator/ssh_key', keyFile: `/root/operator/${name}.key`, passphraseFile: `/root/operator/${name}.passphrase`,
    storage: ['ssh', '-i', '/root/operator/ssh_key', `${name}@storage`] }));
  await operator.write('/root/operator/backup.settings.js', `const settings = ${JSON.stringify({ ledgerFolder: 'ledger', servers }, null, 2)};\n`, 0o600);
}

/** A host's file tree lies over this machine's, and what came from below cannot be renamed (overlayfs, "redirect_dir"): these folders become its own, as on any other machine. */
export const ownFolders = (host: Host, folders: string[]): Promise<string> => host.must(['sh', '-ec', 'for one; do [ ! -e "$one" ] || { cp -a "$one" "$one.own"; rm -rf "$one"; mv "$one.own" "$one"; }; done', 'sh', ...folders]);

/** A new, empty host takes the place of a server, by the runbook "The server is gone". prepare: what its administrator does first. Returns the host, and what the restore said. */
export async function comeBack(fleet: Fleet, name: string, as: string, options: HostOptions = {}, prepare: (host: Host) => Promise<unknown> = async () => {}): Promise<{ host: Host; said: string }> {
  const host = await fleet.add(as, options), storage = fleet.hosts.storage!;
  await prepare(host);
  await host.write(SCRIPT, fs.readFileSync(distFile, 'utf8'), 0o755);
  await host.must(`install -d -m 700 /root/.ssh && ssh-keygen -q -t ed25519 -N '' -f /root/.ssh/id_ed25519`);
  await storage.must(['sh', '-c', 'echo "command=\\"borg serve --append-only --restrict-to-repository ./repository\\",restrict $1" >> "$0"', `/srv/${name}/.ssh/authorized_keys`, await host.must('cat /root/.ssh/id_ed25519.pub')]);
  await host.write('/root/.ssh/known_hosts', `storage ${(await storage.must('cat /etc/ssh/ssh_host_ed25519_key.pub')).split(' ').slice(0, 2).join(' ')}\n`, 0o600);
  for (const file of ['borg_key', 'passphrase']) await host.write(`/root/${file}`, await fleet.hosts[name]!.read(`/etc/cold-backup/${file}`), 0o600);
  const words = ['--repository', `ssh://${name}@storage/./repository`, '--key-file', '/root/borg_key', '--passphrase-file', '/root/passphrase', '--ssh-key', '/root/.ssh/id_ed25519'];
  const looked = await host.run(['node', SCRIPT, 'restore', 'latest', '--in-place', '--dry-run', ...words]);
  assert.ok(looked.code <= 1, looked.stdout + looked.stderr);
  const ended = await host.run(['node', SCRIPT, 'restore', 'latest', '--in-place', ...words]);
  assert.ok(ended.code <= 1, ended.stdout + ended.stderr);
  assert.match(ended.stdout, /is in place/);
  return { host, said: ended.stdout + ended.stderr };
}
