// Two weeks of honest work on one repository over real ssh: nights with warm passes, uploads that broke off, a full storage, checkpoints, `doctor`,
// an audit in the middle of a night, a prune. None of it may be an alarm: an operator who is called for nothing stops listening.
import './alone.ts';
import assert from 'node:assert/strict';
import { randomBytes } from 'node:crypto';
import fs from 'node:fs';
import path from 'node:path';
import { after, before, describe, test } from 'node:test';
import { makeDaemon, makeServer, start, testFolder, waitFor } from './script.ts';
import type { Server } from './script.ts';
import { startStorage } from './storage.ts';
import type { Storage } from './storage.ts';
import { makeOperator, verdictOf } from './operator.ts';
import type { OperatorHere } from './operator.ts';
import { cannotRunHere } from './night.ts';

describe('two weeks of honest work', { skip: cannotRunHere() }, () => {
  const folder = testFolder('honest'), files = path.join(folder, 'files');
  let storage: Storage, server: Server, operator: OperatorHere, nights = 0;

  before(async () => {
    fs.mkdirSync(files);
    const web = makeDaemon(folder, 'web', { stopSeconds: 0.2 });
    web.startNow();
    storage = await startStorage(path.join(folder, 'storage'));
    server = await makeServer(path.join(folder, 'server'), 'web1', storage, { stop: [web.entry], folders: [files] });
    await night();
    operator = makeOperator(path.join(folder, 'op'), storage, server);
    operator.write(operator.entry({ keep: { last: 2, daily: 1, weekly: 0, monthly: 0, yearly: 0 } }));
  });
  after(() => storage?.destroy());

  const authorize = (options: { quota?: string }) => {
    const keys = path.join(storage.folder, 'authorized_keys');
    fs.writeFileSync(keys, fs.readFileSync(keys, 'utf8').split('\n').filter((line) => !/append-only/.test(line)).join('\n'));
    storage.authorize(fs.readFileSync(path.join(server.folder, 'etc/ssh_key.pub'), 'utf8'), 'web1', options);
  };
  async function night(code = 0): Promise<void> {
    fs.writeFileSync(path.join(files, `day ${nights++}`), randomBytes(200_000));
    fs.appendFileSync(path.join(files, 'log'), `another day\n`.repeat(nights * 100));
    const ended = await server.run();
    assert.equal(ended.code, code, ended.out + ended.err);
  }
  const clean = async (...words: string[]) => {
    const ended = await operator.run(['audit', '--json', ...words]), { all } = verdictOf(ended);
    assert.deepEqual(all.findings, []);
    assert.equal(ended.code, 0);
  };

  test('nights, one after the other, audited now and then', async () => {
    await clean();
    for (const isAudited of [true, false, false, true]) {
      await night();
      if (isAudited) await clean();
    }
    await clean('--full');
  });

  test('an upload that broke off, by a cut line, by Ctrl-C and by kill -9, and the night that goes on from it', async () => {
    for (const [index, breakOff] of [() => storage.cut(), (pid: number) => process.kill(pid, 'SIGINT'), (pid: number) => process.kill(-pid, 'SIGKILL')].entries()) {
      fs.writeFileSync(path.join(files, `big ${index}`), randomBytes(3_000_000));
      server.writeSettings({ uploadLimitKiB: 500 });
      const running = server.start(), repository = path.join(storage.repository('web1'), 'data'), was = megabytes(repository);
      await waitFor('a part is uploaded', () => megabytes(repository) > was + 0.7);
      breakOff(running.pid);
      await running.ended;
      await waitFor('borg has ended', () => storage.connections().length === 0, 120);
      server.writeSettings({ uploadLimitKiB: 0 });
      await clean();
      await night();
      await clean();
    }
  });

  const megabytes = (place: string): number => fs.readdirSync(place, { withFileTypes: true }).reduce((sum, one) => sum + (one.isDirectory() ? megabytes(path.join(place, one.name)) : fs.statSync(path.join(place, one.name)).size / 1e6), 0);

  test('checkpoints during a long upload, with audits while it goes on', async () => {
    fs.writeFileSync(path.join(folder, 'long'), randomBytes(2_500_000));
    const upload = start(['borg', '--upload-ratelimit', '300', 'create', '--checkpoint-interval', '1', '--chunker-params', 'fixed,65536', `::web1-${new Date().toISOString().slice(0, 19)}-warm.checkpoint`, path.join(folder, 'long')], { env: server.borgEnv() });
    for (let number = 0; number < 3; number++) await clean();
    assert.equal((await upload.ended).code, 0);
    await clean();
    await night();
    await clean();
  });

  test('an audit in the middle of a night waits for its proof', async () => {
    fs.writeFileSync(path.join(files, 'in between'), randomBytes(2_000_000));
    server.writeSettings({ uploadLimitKiB: 1000 });
    const running = server.start(), cold = () => server.lastTranscript().includes('"kind":"cold"');
    await waitFor('the cold pass has begun', cold);
    await Promise.all([clean(), running.ended.then(({ code }) => assert.equal(code, 0))]);
    server.writeSettings({ uploadLimitKiB: 0 });
    await clean();
  });

  test('a storage that is full, and has room again', async () => {
    authorize({ quota: '7M' });
    fs.writeFileSync(path.join(files, 'too much'), randomBytes(8_000_000));
    await night(2);
    await clean();
    authorize({});
    await night();
    await clean();
  });

  test('doctor, break-lock, compact without effect, and another compression', async () => {
    await server.run(['doctor']);
    server.borg('break-lock');
    server.borg('compact');
    await clean();
    server.writeSettings({ compression: 'zlib,6' });
    await night();
    await clean();
  });

  test('but a night in which everything has changed, as encryption by an intruder changes it, is an alarm', async () => {
    fs.writeFileSync(path.join(files, 'big 0'), randomBytes(90_000_000));
    await night();
    const { rules, all } = verdictOf(await operator.run(['audit', '--json']));
    assert.deepEqual(rules, ['R6'], JSON.stringify(all.findings));
    assert.match(JSON.stringify(all.findings), /sent [\d.]+ MB, where the nights before sent [\d.]+ MB at most/);
    assert.equal((await operator.run(['audit', '--accept', '--yes'])).code, 0);
    fs.rmSync(path.join(files, 'big 0'));
  });

  test('a prune, and the nights after it', async () => {
    const ended = await operator.run(['prune', '--yes']);
    assert.equal(ended.code, 0, ended.out + ended.err);
    await clean();
    for (let number = 0; number < 2; number++) await night();
    await clean('--full');
    assert.equal((await operator.run(['prune', '--yes'])).code, 0);
    await night();
    await clean();
  });
});
