// The product on a real host (host.ts), installed as its README says, with the host as its own storage: real systemd, sshd,
// borg, PostgreSQL, Docker. scenario() is a test that ends with the one invariant: everything that ran before runs again,
// nothing else does, and no process of the run is left.
import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import fs from 'node:fs';
import { basename, dirname } from 'node:path';
import { test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { isDeepStrictEqual } from 'node:util';
import { startHost } from './host.ts';
import type { Host, HostOptions, Result, RunOptions, Running } from './host.ts';
import { distFile } from './script.ts';

export const SCRIPT = '/opt/cold-backup/backup.js';
export const STATE = '/var/lib/cold-backup';

/** Why these tests cannot run here, for `skip`; false = they can, or must. */
export const cannotRun: string | false = process.getuid!() === 0 || process.env.COLD_BACKUP_NO_SKIP === '1' ? false
  : 'needs root: it boots small hosts with systemd-nspawn (COLD_BACKUP_NO_SKIP=1 makes this a failure)';

/** A unit that runs until it is told to end; `more` for [Unit], `service` instead of the usual ExecStart. */
export const daemon = (more = '', service = 'ExecStart=sleep infinity'): string =>
  `[Unit]\nDescription=a service of the tests\n${more}\n[Service]\n${service}\n[Install]\nWantedBy=multi-user.target\n`;

// Put first on PATH. It passes everything on to borg; but while /run/hold-borg is there a cold pass waits before it reads a file, and while
// /run/hold-warm or /run/hold-extract is there a warm one, or an extraction, before it begins.
const BORG = `#!/bin/sh
case "$*" in
  *::*-warm.checkpoint*) while [ -e /run/hold-warm ]; do : > /run/warm-held; sleep 0.05; done ;;
  *::proven-*) ;;
  *' extract --sparse '*) while [ -e /run/hold-extract ]; do : > /run/extract-held; sleep 0.05; done ;;
  *' create '*) if [ -e /run/hold-borg ]; then
    echo '{"type": "file_status", "status": "i", "path": "held"}' >&2 # as borg says when it waits for what it is fed
    cat > /run/fed
    while [ -e /run/hold-borg ]; do : > /run/borg-held; sleep 0.05; done
    exec < /run/fed
  fi ;;
esac
exec /usr/bin/borg "$@"
`;

// Everything that runs, one a line. What systemd or a person makes on the fly (scopes, sessions) comes and goes; the product's
// own timers are no service.
const WHAT_RUNS = `systemctl list-units --state=active --type=service,socket,timer,path,mount --plain --no-legend --full | cut -d' ' -f1 | grep -Ev '^(run-|user|session-|-|tmp|var-lib-docker-)|^cold-backup.*timer'
docker ps --format 'container {{.Names}}' 2>/dev/null
pg_lsclusters --no-header | awk '{ print "cluster", $1, $2, $4 }'
ps -eo args= | grep -E '^[^ ]*/postgres -D |/pigeon run$'`;
const LEFT_OF_RUN = `ps -eo pid=,args= | grep -E '/backup\\.js|bin/borg |[ /]ssh -o|borg-held' | grep -v grep`;

export type HistoryLine = { kind: string; outcome: string; exitCode: number; archive: string; warnings: string[]; error: string; downSeconds: number; parts: { name: string; downSeconds: number; runningAt: string | null }[] };

export class Product {
  readonly host: Host;
  settings: Record<string, unknown> = {};
  private running: Running[] = [];

  constructor(host: Host) {
    this.host = host;
  }

  /** Other settings from here on; what is not given keeps its value. */
  async set(changes: Record<string, unknown>): Promise<void> {
    Object.assign(this.settings, changes);
    await this.host.write('/opt/cold-backup/backup.settings.js', `const settings = ${JSON.stringify(this.settings, null, 2)};\n`, 0o600);
  }

  start(words: string[] = [], options: RunOptions = {}): Running {
    const running = this.host.start(['node', SCRIPT, ...words], options);
    this.running.push(running);
    return running;
  }

  /** After a scenario that broke off: its runs end before the next one begins. */
  async endRuns(): Promise<void> {
    await this.releaseCopy();
    for (const running of this.running) await running.done.catch(() => {});
    this.running = [];
  }

  /** Runs the script to its end. Given its exit code and what it must say; returns all it said. */
  async expect(words: string[], code: number, ...says: RegExp[]): Promise<string> {
    return this.judge(await this.start(words).done, code, ...says);
  }

  judge({ code, stdout, stderr }: Result, expected: number, ...says: RegExp[]): string {
    const said = stdout + stderr;
    assert.equal(code, expected, `exit code ${code} instead of ${expected}:\n${said}`);
    for (const words of says) assert.match(said, words);
    return said;
  }

  /** Starts a run and returns when everything is stopped and the cold pass is about to begin; it waits for releaseCopy(). */
  async startHeld(words: string[] = []): Promise<Running> {
    await this.host.must('rm -f /run/borg-held; touch /run/hold-borg');
    const running = this.start(words);
    await this.copyIsHeld(running);
    return running;
  }

  async copyIsHeld(running?: Running): Promise<void> {
    await this.host.waitFor('the cold pass', 'test -e /run/borg-held', 120).catch((error) => { throw new Error(`${error.message}\n${running?.output()}`); });
  }

  async releaseCopy(): Promise<void> {
    await this.host.must('rm -f /run/hold-borg /run/borg-held /run/hold-extract /run/extract-held');
  }

  async history(): Promise<HistoryLine[]> {
    return (await this.host.must(['cat', `${STATE}/history.jsonl`])).split('\n').map((line) => JSON.parse(line));
  }

  async lastRun(): Promise<HistoryLine> {
    return (await this.history()).pop()!;
  }

  /** borg itself, as somebody with key and passphrase uses it on another machine: nothing of our script's. */
  borg(words: string, options: RunOptions = {}): Promise<string> {
    const rsh = 'ssh -o BatchMode=yes -o UserKnownHostsFile=/etc/cold-backup/known_hosts -i /etc/cold-backup/ssh_key';
    return this.host.must(`export BORG_REPO=${this.settings.repository} BORG_KEY_FILE=/etc/cold-backup/borg_key BORG_PASSPHRASE="$(cat /etc/cold-backup/passphrase)"
      export BORG_BASE_DIR=/srv/other-borg BORG_RSH='${rsh}'; ${words}`, options);
  }

  async archives(): Promise<string[]> {
    return (await this.borg('borg list --short --consider-checkpoints')).split('\n');
  }

  /** Extracts an archive with plain borg and starts the cluster in it; returns the answer to a question in SQL, and the manifest. */
  async bootExtracted(archive: string, dataDirectory: string, sql: string, asUser: string, configFolder = ''): Promise<{ answer: string; manifest: any }> {
    const copy = '/srv/copy', data = copy + dataDirectory;
    await this.borg(`mkdir -m 755 ${copy} && cd ${copy} && borg extract --numeric-ids ::${archive}`);
    const manifest = JSON.parse(await this.host.read(`${copy}/record/manifest.json`));
    const config = configFolder ? `-c config_file=${copy}${configFolder}/postgresql.conf -c hba_file=${copy}${configFolder}/pg_hba.conf -c ident_file=${copy}${configFolder}/pg_ident.conf -c data_directory=${data}` : '';
    // Links that lead out of the data directory are led into the copy, so that nothing of the running cluster is touched.
    const answer = await this.host.must(`set -e; cd ${copy}; find . -type d ! -perm -005 ! -user postgres ! -user 999 -exec chmod o+rx {} +
      for link in $(find ${data} -path '*/pg_tblspc/*' -type l) $(find ${data}/pg_wal -maxdepth 0 -type l); do ln -sfn "${copy}$(readlink $link)" $link; done
      bin=$(echo /usr/lib/postgresql/$(cat ${data}/PG_VERSION)/bin); as="setpriv --reuid ${asUser} --regid ${asUser} ${asUser === 'postgres' ? '--init-groups' : '--clear-groups'}"
      $as $bin/pg_ctl start -w -s -l /dev/null -D ${data} -o "-p 5999 -k /tmp -c listen_addresses= -c external_pid_file= ${config}"
      $as psql -h /tmp -p 5999 -U postgres -XqAt -v ON_ERROR_STOP=1 -d postgres -c "${sql}" || { $as $bin/pg_ctl stop -s -m fast -D ${data}; exit 1; }
      $as $bin/pg_ctl stop -s -m fast -D ${data}; rm -rf ${copy}`);
    return { answer, manifest };
  }

  async whatRuns(): Promise<string[]> {
    return (await this.host.run(WHAT_RUNS)).stdout.trim().split('\n').sort();
  }

  /** The invariant. Throws what is missing and what is too much after `seconds`. */
  async everythingRunsAgain(before: string[], seconds = 15): Promise<void> {
    const state = async () => ({ runs: await this.whatRuns(), left: (await this.host.run(LEFT_OF_RUN)).stdout, ledger: (await this.host.run(`ls ${STATE}/ledger.json ${STATE}/elsewhere/* 2>/dev/null`)).stdout });
    const wanted = { runs: before, left: '', ledger: '' };
    for (const until = Date.now() + seconds * 1000; Date.now() < until; await sleep(50)) {
      if (isDeepStrictEqual(await state(), wanted)) return;
    }
    const now = await state();
    const missing = before.filter((one) => !now.runs.includes(one)), tooMuch = now.runs.filter((one) => !before.includes(one));
    assert.deepEqual({ ...now, runs: undefined, missing, tooMuch }, { ...wanted, runs: undefined, missing: [], tooMuch: [] });
  }
}

/** Turns the host off for good, and makes sure that it leaves no folder, mount, process or control group here. */
export async function remove(host: Host | undefined): Promise<void> {
  if (!host) return;
  const folder = dirname(host.root);
  await host.destroy();
  assert.ok(!fs.existsSync(folder), folder);
  assert.ok(!fs.readFileSync('/proc/self/mounts', 'utf8').includes(folder), 'mounts');
  assert.equal(execFileSync('find', ['/sys/fs/cgroup', '-name', basename(folder)], { encoding: 'utf8' }), ''); // a group that is gone holds no process
}

/** Given how to get the product, returns scenario(name, body): a test that ends with the invariant. */
export function scenarios(product: () => Product): (name: string, body: () => Promise<void>) => void {
  return (name, body) => void test(name, async () => {
    const before = await product().whatRuns();
    try {
      await body();
    } finally {
      await product().endRuns();
    }
    await product().everythingRunsAgain(before);
  });
}

/** Boots a host and sets the product up as its README says: copy, settings, setup, the printed line to the storage, setup again. `prepare` comes first. */
export async function install(options: HostOptions, settings: Record<string, unknown>, prepare: (host: Host) => Promise<void> = async () => {}): Promise<Product> {
  const host = await startHost(options);
  try {
    await prepare(host);
    const storage = await host.startStorage({ name: 'web1' });
    await host.write(SCRIPT, fs.readFileSync(distFile, 'utf8'), 0o755);
    await host.write('/usr/local/sbin/borg', BORG, 0o755);
    const product = new Product(host);
    await product.set({ repository: storage.url, compression: 'zstd,1', stopTimeoutSeconds: 60, warmPass: false, ...settings });
    const said = await product.expect(['setup', '--yes'], 2, /belongs into authorized_keys/);
    const line = /^command="borg serve .*$/m.exec(said)?.[0];
    assert.ok(line, said);
    await host.write('/srv/borg/.ssh/authorized_keys', `${line}\n`, 0o600, 'borg:borg');
    await product.expect(['setup', '--yes'], 0, /made the repository/);
    return product;
  } catch (error) {
    await host.destroy();
    throw error;
  }
}
