// The README's playbook, run by Ansible over ssh: Debian's ansible-core here, real servers with sshd and systemd (host.ts) there, each
// its own storage. Only what names machines is another: addresses, paths, and packages that no network brings here.
import { after, before, describe, test } from 'node:test';
import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { createHash } from 'node:crypto';
import fs from 'node:fs';
import path from 'node:path';
import { startHost } from './host.ts';
import type { Host, Storage } from './host.ts';
import { STATE, cannotRun, daemon, remove } from './systemd-host.ts';
import { distFile, repositoryRoot, start, testFolder } from './script.ts';

const readme = fs.readFileSync(path.join(repositoryRoot, 'README.md'), 'utf8');
const playbook = path.join(repositoryRoot, 'test/ansible/cold-backup.yml');

describe('many servers, by Ansible', { skip: cannotRun }, () => {
  const folder = testFolder('ansible'), home = path.join(folder, 'home'), file = (name: string) => path.join(folder, name);
  const ansible = { cwd: folder, env: { HOME: home, ANSIBLE_HOST_KEY_CHECKING: 'False', ANSIBLE_PIPELINING: 'True', ANSIBLE_NOCOLOR: '1', ANSIBLE_LOCALHOST_WARNING: 'False', LANG: 'C.UTF-8' } };
  let servers: { name: string; host: Host; storage: Storage }[] = [];

  before(async () => {
    fs.mkdirSync(home, { mode: 0o700 });
    for (const name of ['cold-backup.yml', 'backup.js']) fs.copyFileSync(name === 'backup.js' ? distFile : playbook, file(name));
    execFileSync('ssh-keygen', ['-q', '-t', 'ed25519', '-N', '', '-f', file('ssh_key')]);
    servers = await Promise.all(['web1', 'shop'].map(async (name) => {
      const host = await startHost({ name, units: { 'web.service': daemon() }, enable: ['web'] }), storage = await host.startStorage({ name });
      await host.write('/root/.ssh/authorized_keys', fs.readFileSync(file('ssh_key.pub'), 'utf8'), 0o600);
      await host.write('/srv/uploads/plan', `the plan of ${name}\n`);
      return { name, host, storage };
    }));
    writeInventory();
  });
  after(() => Promise.all(servers.map(({ host }) => remove(host))));

  function writeInventory(changes: Record<string, unknown> = {}): void {
    const hosts = servers.map(({ name, host, storage }) => [name, {
      ansible_ssh_common_args: `-o ProxyCommand="nsenter --target ${host.leader} --net busybox nc 127.0.0.1 22"`, storage_host_key: storage.knownHosts.trim(),
      settings: { server: name, repository: storage.url, stop: ['service web'], folders: ['/srv/uploads'], compression: 'zstd,1', window: null, language: 'es', ...changes },
    }]);
    const vars = { ansible_user: 'root', ansible_python_interpreter: '/usr/bin/python3', ansible_ssh_private_key_file: file('ssh_key'), script_sha256: createHash('sha256').update(fs.readFileSync(distFile)).digest('hex'),
      packages: ['borgbackup'], quota: '5G' };
    fs.writeFileSync(file('servers.yml'), JSON.stringify({ backed_up: { vars, hosts: Object.fromEntries(hosts) } })); // JSON is YAML
  }

  // Returns what Ansible said, and how often it says that something was changed on a server.
  async function play(expected: number): Promise<{ said: string; changed: number[] }> {
    const { code, out, err } = await start(['ansible-playbook', '-i', 'servers.yml', 'cold-backup.yml'], ansible).ended;
    assert.equal(code, expected, out + err);
    return { said: out + err, changed: [...out.matchAll(/ok=\d+ +changed=(\d+)/g)].map(([, number]) => Number(number)) };
  }

  const files = (place: string): string => execFileSync('grep', ['--recursive', '--text', '--no-messages', '', place], { encoding: 'utf8', maxBuffer: 1 << 28 });

  test('two plays with the storage\'s line between them set every server up; its keys stay there, and a third play changes nothing', async () => {
    const first = await play(0);
    for (const { name, host } of servers) {
      const line = new RegExp(`^command="borg serve --append-only --restrict-to-repository \\./${name} --storage-quota 5G",restrict ssh-ed25519 \\S+ cold-backup ${name}$`, 'm').exec(fs.readFileSync(file('for-the-storage.txt'), 'utf8'))?.[0];
      assert.ok(line, first.said);
      await host.write('/srv/borg/.ssh/authorized_keys', `${line}\n`, 0o600, 'borg:borg');
    }
    const second = await play(0), third = await play(0);
    assert.deepEqual([second.changed, third.changed], [[1, 1], [0, 0]], second.said + third.said);
    const seen = first.said + second.said + third.said + files(folder), secrets: string[] = [];
    for (const { host } of servers) {
      const keys = await host.must('cd /etc/cold-backup && sed -n 5p ssh_key && sed -n 2p borg_key && cat passphrase');
      assert.equal(keys.split('\n').length, 3, keys);
      secrets.push(...keys.split('\n'));
      await host.must('systemctl is-enabled --quiet cold-backup.timer cold-backup-recover.timer cold-backup-drill.timer');
      assert.match(await host.must('node /opt/cold-backup/backup.js --version'), /as built/);
    }
    assert.equal(new Set(secrets).size, 6, 'every server has keys of its own');
    assert.deepEqual(secrets.filter((secret) => secret.length < 30 || seen.includes(secret)), [], 'a secret came to the machine that Ansible runs on');
  });

  test('the night that the timer starts is good on each of them', async () => {
    for (const { name, host } of servers) {
      await host.must('systemctl start cold-backup.service');
      const { outcome, server, parts } = JSON.parse(await host.must(`tail -n 1 ${STATE}/history.jsonl`));
      assert.deepEqual([outcome, server, parts.map((part: { name: string }) => part.name)], ['good', name, ['service web']]);
      assert.ok(await host.isActive('web'));
    }
    const look = /`(ansible backed_up [^`]*)`/.exec(readme)![1]!, { code, out, err } = await start(['sh', '-c', look], ansible).ended;
    assert.equal(code, 0, out + err);
    for (const { name } of servers) assert.match(out, new RegExp(`^OK: ${name}: ${name}-`, 'm'));
  });

  test('the way to leave that the README shows: plain borg, on a server as Ansible has set it up', async () => {
    const { host, storage } = servers[0]!, { archive } = JSON.parse(await host.must(`tail -n 1 ${STATE}/history.jsonl`));
    const [, block] = /^```sh\n(export BORG_REPO=[^`]*)```$/m.exec(readme)!, leave = block!.replace('ssh://borg@storage.example.org/./web1', storage.url).replace('web1-2026-11-23T02:00:00', archive);
    assert.ok(leave.includes(storage.url) && leave.includes(`::${archive}`));
    assert.match(await host.must(`set -e; mkdir /srv/leave; cd /srv/leave; ${leave}\ntest -s record/RESTORE.md -a -s record/backup.js`), new RegExp(`^proven-${archive} `, 'm'));
  });

  test('settings with a mistake, and a script with another sum, come to no server', async () => {
    const whole = () => Promise.all(servers.map(({ host }) => host.must('sha256sum /opt/cold-backup/*; stat --format "%n %Y" /opt/cold-backup/*')));
    const before = await whole();
    writeInventory({ folder: ['/srv/uploads'] });
    assert.match((await play(2)).said, /did you mean .{0,3}"folders/);
    writeInventory({ warmPass: false });
    fs.appendFileSync(file('backup.js'), '// changed on the way\n');
    assert.match((await play(2)).said, /another sha256 than script_sha256/);
    assert.deepEqual(await whole(), before);
  });
});
