// Retention, on a repository of our own over real ssh: what stays, what is refused, and what happens when it is interrupted anywhere.
// After every test: every archive that should be there can be read to its last byte, and nothing of a prune is left on the storage.
import './alone.ts';
import assert from 'node:assert/strict';
import { execFileSync, spawn } from 'node:child_process';
import { randomBytes } from 'node:crypto';
import fs from 'node:fs';
import path from 'node:path';
import { after, before, describe, test } from 'node:test';
import { makeServer, testFolder, waitFor } from './script.ts';
import type { Server } from './script.ts';
import { startStorage } from './storage.ts';
import type { Storage } from './storage.ts';
import { makeOperator, plant, speakProtocol, verdictOf } from './operator.ts';
import type { OperatorHere } from './operator.ts';
import { cannotRunHere } from './night.ts';

describe('prune', { skip: cannotRunHere() }, () => {
  const folder = testFolder('prune'), files = path.join(folder, 'files'), kept = path.join(folder, 'kept'), bin = path.join(folder, 'bin');
  const changing = ['storage/repositories', 'server/state', 'server/other-borg', 'op/ledger'];
  const keep = { last: 2, daily: 4, weekly: 3, monthly: 2, yearly: 1 };
  let storage: Storage, server: Server, operator: OperatorHere, all: string[], env: NodeJS.ProcessEnv;

  const local = (words: string[]) => execFileSync('borg', words, { env, encoding: 'utf8', stdio: ['ignore', 'pipe', 'pipe'] });
  const pruned = (): string[] => operator.book().archives.filter(({ goneBy }: any) => goneBy === 'prune').map(({ name }: any) => name);
  const names = () => local(['list', '--short', '--consider-checkpoints']).trim().split('\n');

  before(async () => {
    fs.mkdirSync(files);
    storage = await startStorage(path.join(folder, 'storage'));
    server = await makeServer(path.join(folder, 'server'), 'web1', storage, { folders: [files], warmPass: false });
    env = { ...server.borgEnv(), BORG_REPO: storage.repository('web1'), BORG_BASE_DIR: path.join(folder, 'local-borg') };
    makeHistory();
    for (const text of ['yesterday ', 'today ']) {
      fs.writeFileSync(path.join(files, 'diary'), text.repeat(50_000));
      assert.equal((await server.run()).code, 0);
      if (text === 'yesterday ') assert.equal((await server.run(['drill'])).code, 0);
    }
    operator = makeOperator(path.join(folder, 'op'), storage, server);
    operator.write(operator.entry({ keep }));
    assert.equal(verdictOf(await operator.run(['audit', '--json'])).verdict, 'clean');
    all = server.archives();
    fs.mkdirSync(kept);
    for (const one of changing) execFileSync('cp', ['-a', '--parents', one, kept], { cwd: folder });
    fs.mkdirSync(bin);
  });
  after(() => storage?.destroy());

  // The nights before: made in a minute, with the storage's log saying when. Every third has a warm pass, one was never proven; one is near midnight in UTC.
  function makeHistory(): void {
    const source = path.join(folder, 'night'), log = path.join(storage.repository('web1'), 'transactions');
    for (let daysAgo = 75; daysAgo >= 2; daysAgo -= daysAgo > 20 ? 9 : 1) {
      const day = new Date(Date.now() - daysAgo * 86_400_000).toISOString().slice(0, 10), at = `${day}T${daysAgo === 3 ? '22:30' : '02:00'}:00`;
      fs.writeFileSync(source, `${day}\n`.repeat(20_000));
      for (const name of [...(daysAgo % 3 === 0 ? [`web1-${at}-warm.checkpoint`] : []), `web1-${at}`, ...(daysAgo === 11 ? [] : [`proven-web1-${at}`])]) {
        local(['create', '--timestamp', at, `::${name}`, source]);
        const number = Math.max(...fs.readdirSync(path.join(storage.repository('web1'), 'data/0')).map(Number));
        fs.appendFileSync(log, `transaction ${number}, UTC time ${at}.000000\n`);
      }
    }
  }

  const asBefore = () => {
    changing.forEach((one) => {
      fs.rmSync(path.join(folder, one), { recursive: true, force: true });
      execFileSync('cp', ['-a', path.join(kept, one), path.join(folder, one)]);
    });
    fs.rmSync(path.join(folder, 'local-borg'), { recursive: true, force: true });
    operator.write(operator.entry({ keep }));
    for (const file of fs.readdirSync(bin)) fs.rmSync(path.join(bin, file));
  };

  /** What is in the repository is exactly this, whole, and of a prune nothing is left. */
  const holds = (expected: string[]) => {
    assert.deepEqual(names(), expected);
    local(['check', '--verify-data']);
    assert.deepEqual(fs.readdirSync(path.join(folder, 'storage/repositories')), ['web1']);
  };

  // borg's own idea of the same rules, by times that are honest here; two nights run today have proofs, like all the others but one.
  const borgSays = (zone: string) => execFileSync('sh', ['-c', `borg prune --dry-run --list --glob-archives 'web1-*' ${Object.entries(keep).map(([rule, number]) => `--keep-${rule} ${number}`).join(' ')} 2>&1`], { env: { ...env, TZ: zone }, encoding: 'utf8' });

  test('it keeps what borg would keep by the same rules, deletes the rest with its proofs, and the nights go on', async () => {
    const { out } = await operator.run(['prune', '--dry-run', '--json']), [planned] = JSON.parse(out);
    assert.equal(planned.outcome, 'dry run');
    assert.deepEqual(names(), all, 'a dry run changed something');
    const unproven = all.filter((name) => name.startsWith('web1-') && !name.includes('warm') && !all.includes(`proven-${name}`));
    assert.equal(unproven.length, 1);
    local(['delete', `::${unproven[0]}`]); // borg does not know of proofs: without the unproven one its rules and ours see the same archives
    const said = borgSays('Africa/Maputo'), borgWould = [...said.matchAll(/^Keeping archive \(rule: .*?\):\s+(\S+)/gm)].map((match) => match[1]!);
    assert.ok(borgWould.length > 8, said);
    asBefore();
    const coldKept = planned.kept.map(({ archive }: any) => archive).filter((name: string) => /^web1-.*:\d\d$/.test(name));
    assert.deepEqual(coldKept.sort(), borgWould.sort());

    const ended = await operator.run(['prune', '--yes', '--json']), [done] = JSON.parse(ended.out);
    assert.equal(ended.code, 0, ended.out + ended.err);
    assert.equal(done.outcome, 'pruned');
    assert.ok(done.deleted.includes(unproven[0]) && done.freedBytes > 10_000, ended.out);
    assert.deepEqual(done.deleted, planned.deleted);
    const left = all.filter((name) => !done.deleted.includes(name));
    holds(left);
    assert.ok(!left.some((name) => name.includes('-warm') && Date.now() - Date.parse(`${name.slice(5, 24)}Z`) > 7 * 86_400_000), 'a warm one older than a week is left');
    const book = operator.book();
    assert.equal(book.archives.length, all.length, 'the ledger forgets nothing');
    assert.deepEqual(book.archives.filter(({ goneBy }: any) => goneBy === 'prune').map(({ name }: any) => name).sort(), [...done.deleted].sort());
    assert.equal(book.pruning, null);
    assert.deepEqual(verdictOf(await operator.run(['audit', '--json'])).all.findings, []);
    assert.equal((await server.run()).code, 0);
    assert.deepEqual(verdictOf(await operator.run(['audit', '--json'])).all.findings, []);
    assert.match((await operator.run(['prune', '--yes'])).out, /1 archive of|2 archives of|0 archives of/);
  });

  test('what a drill proved last stays, and so does the newest proven one, whatever the rules say', async () => {
    asBefore();
    operator.write(operator.entry({ keep: { last: 1, daily: 0, weekly: 0, monthly: 0, yearly: 0 } }));
    const [{ kept: stays }] = JSON.parse((await operator.run(['prune', '--dry-run', '--json'])).out), cold = all.filter((name) => /^web1-.*:\d\d$/.test(name)).slice(-2);
    assert.deepEqual(stays.filter(({ archive, why }: any) => cold.includes(archive) || /drill|last/.test(why)).map(({ archive, why }: any) => [archive, why]).filter(([archive]: string[]) => archive!.startsWith('web1-')),
      [[cold[0], 'a drill proved it last'], [cold[1], 'last 1']]);
  });

  test('it asks, and without a terminal or --yes it does nothing; on a production server it does not exist', async () => {
    asBefore();
    const ended = await operator.run(['prune']);
    assert.equal(ended.code, 64);
    assert.match(ended.err, /prune asks before it deletes, and there is no terminal/);
    const there = await server.run(['prune', '--yes']);
    assert.equal(there.code, 64);
    assert.match(there.err, /is the file of a production server, not the operator's/);
    fs.rmSync(path.join(operator.folder, 'ledger/web1.json'));
    local(['create', '::made-past-the-append-only-server', server.script]);
    assert.match((await operator.run(['prune', '--yes'])).err, /this was its first audit, and there is something to look at first: nothing is pruned\n.*\n? {2}said: 1 transaction did not come/);
    asBefore();
    operator.write(operator.entry({ keep, sshKey: path.join(server.folder, 'etc/ssh_key') }));
    const appendOnly = await operator.run(['prune', '--yes']);
    assert.equal(appendOnly.code, 2, appendOnly.out);
    assert.match(appendOnly.err, /this connection may only add/);
    asBefore();
    execFileSync('sed', ['-i', 's/^append_only = .*/append_only = 1/', path.join(storage.repository('web1'), 'config')]);
    assert.match((await operator.run(['prune', '--yes'])).err, /this connection may only add/);
    asBefore();
    holds(all);
  });

  test('while a client is connected it waits for another hour; with cutAccess and giveAccess it ends the connection, and gives access back', async () => {
    asBefore();
    const idle = spawn('ssh', ['-i', `${server.folder}/etc/ssh_key`, '-o', `UserKnownHostsFile=${server.folder}/etc/known_hosts`, '-p', String(storage.port), '127.0.0.1', 'borg serve'], { stdio: ['pipe', 'pipe', 'ignore'] });
    const keys = path.join(storage.folder, 'authorized_keys'), serves = () => execFileSync('sh', ['-c', 'cat /proc/[0-9]*/cmdline 2>/dev/null | tr "\\0" " "'], { encoding: 'utf8' }).includes('serve --append-only');
    await waitFor('the client is connected', serves);
    const refused = await operator.run(['prune', '--yes']);
    assert.equal(refused.code, 75, refused.out + refused.err);
    assert.match(refused.err, /somebody is connected to this repository/);
    holds(all);
    const cut = path.join(folder, 'cut'), give = path.join(folder, 'give');
    fs.writeFileSync(cut, `#!/bin/sh\nset -e\nsed -i '/append-only/s/^/#/' ${keys}\nfor pid in $(cd /proc && ls -d [0-9]*); do if tr '\\0' ' ' 2>/dev/null < /proc/$pid/cmdline | grep -q 'borg serve --append-only'; then kill $pid; fi; done\nsleep 0.3\n`, { mode: 0o755 });
    fs.writeFileSync(give, `#!/bin/sh\nsed -i 's/^#*\\(.*append-only\\)/\\1/' ${keys}\n`, { mode: 0o755 });
    operator.write(operator.entry({ keep, cutAccess: [cut], giveAccess: [give] }));
    assert.equal((await operator.run(['prune', '--yes'])).code, 75, 'it looks before it cuts: a run that is under way is not killed');
    idle.kill();
    await waitFor('the client is gone', () => !serves());
    const done = await operator.run(['prune', '--yes']);
    assert.equal(done.code, 0, done.out + done.err);
    assert.doesNotMatch(fs.readFileSync(keys, 'utf8'), /^#/m);

    asBefore();
    operator.write(operator.entry({ keep, cutAccess: [cut], giveAccess: [give] }));
    fs.writeFileSync(path.join(bin, 'borg'), '#!/bin/sh\ncase " $* " in *" check "*) echo it is bad >&2; exit 2;; esac\nexec /usr/bin/borg "$@"\n', { mode: 0o755 });
    const failed = await operator.run(['prune', '--yes'], { PATH: `${bin}:${process.env.PATH}` });
    assert.equal(failed.code, 2);
    assert.match(failed.err, /does not pass its check after pruning \(exit code 2\); nothing was pruned/);
    assert.doesNotMatch(fs.readFileSync(keys, 'utf8'), /^#/m, 'access was not given back');
    holds(all);

    fs.writeFileSync(path.join(bin, 'borg'), `#!/bin/sh\ncase " $* " in *" compact "*) touch ${folder}/compacting; while [ ! -e ${folder}/end ]; do sleep 0.05; done; exit 1;; esac\nexec /usr/bin/borg "$@"\n`, { mode: 0o755 });
    const script = operator.start(['prune', '--yes'], { PATH: `${bin}:${process.env.PATH}` });
    await waitFor('it compacts', () => fs.existsSync(path.join(folder, 'compacting')));
    script.signal('SIGKILL');
    await script.ended;
    assert.match(fs.readFileSync(keys, 'utf8'), /^#/m);
    fs.writeFileSync(path.join(folder, 'end'), '');
    fs.rmSync(path.join(bin, 'borg'));
    const next = await operator.run(['prune', '--yes']);
    assert.equal(next.code, 0, next.out + next.err);
    assert.match(next.out + next.err, /was interrupted/);
    assert.doesNotMatch(fs.readFileSync(keys, 'utf8'), /^#/m, 'access was not given back by the next call');
  });

  // A wrapper around ssh that ends the whole prune before or after the n-th script it sends to the storage.
  const killing = (when: 'before' | 'after', number: number, instead = ''): NodeJS.ProcessEnv => {
    fs.rmSync(path.join(folder, 'count'), { force: true });
    fs.writeFileSync(path.join(bin, 'ssh'), ['#!/bin/sh', `case " $* " in *" sh -s ") echo x >> ${folder}/count;; *) exec /usr/bin/ssh "$@";; esac`,
      `die() { [ "$(wc -l < ${folder}/count)" -eq ${number} ] && kill -9 "$(cat ${folder}/pid)" && sleep 0.2; }`,
      ...(when === 'before' ? [`if [ "$(wc -l < ${folder}/count)" -eq ${number} ]; then ${instead}die; exit 1; fi`, 'exec /usr/bin/ssh "$@"'] : ['/usr/bin/ssh "$@"', 'code=$?', 'die', 'exit $code']), ''].join('\n'), { mode: 0o755 });
    return { PATH: `${bin}:${process.env.PATH}` };
  };
  const killedAt = async (when: 'before' | 'after', number: number, instead = '') => {
    const script = operator.start(['prune', '--yes'], killing(when, number, instead));
    fs.writeFileSync(path.join(folder, 'pid'), String(script.pid));
    assert.equal((await script.ended).code, 137);
    fs.rmSync(path.join(bin, 'ssh'));
  };
  const AFTER: Record<string, ['before' | 'after', number]> = { 'its copy was made': ['after', 1], 'the copy was pruned and checked': ['after', 2], 'the copy has taken the repository\'s place': ['after', 3], 'the old one was removed': ['after', 4] };
  for (const [moment, [when, number]] of Object.entries(AFTER)) {
    test(`killed when ${moment}: every archive is there, and the next call brings it to its end`, async () => {
      asBefore();
      await killedAt(when, number);
      assert.deepEqual(all.filter((name) => !names().includes(name) && operator.book().pruning?.deleting.length === 0), [], 'something is gone too early');
      const next = await operator.run(['prune', '--yes', '--json']);
      assert.equal(next.code, 0, next.out + next.err);
      const gone = operator.book().archives.filter(({ goneBy }: any) => goneBy === 'prune').map(({ name }: any) => name);
      assert.ok(gone.length > 10);
      holds(all.filter((name) => !gone.includes(name)));
      assert.equal(verdictOf(await operator.run(['audit', '--json'])).verdict, 'clean');
    });
  }

  test('a power cut on the storage between the two renames: the repository is put back, then pruned', async () => {
    asBefore();
    await killedAt('before', 3);
    const repository = storage.repository('web1');
    fs.renameSync(repository, `${repository}.before-prune`);
    const next = await operator.run(['prune', '--yes']);
    assert.equal(next.code, 0, next.out + next.err);
    holds(all.filter((name) => !pruned().includes(name)));
  });

  test('and when somebody made a new repository at the empty place meanwhile: it is set aside, named, and the good one is put back', async () => {
    asBefore();
    await killedAt('before', 3);
    const repository = storage.repository('web1'), fresh = { ...server.borgEnv(), BORG_BASE_DIR: path.join(folder, 'fresh-borg') };
    fs.renameSync(repository, `${repository}.before-prune`);
    execFileSync('borg', ['init', '--encryption', 'none'], { env: fresh, stdio: 'pipe' }); // by the append-only key
    const next = await operator.run(['prune', '--yes']), [, aside] = /another one was made there: it lies in (\S+\.unexpected-\d+) now/.exec(next.err) ?? [];
    assert.equal(next.code, 0, next.out + next.err);
    fs.rmSync(aside!, { recursive: true });
    holds(all.filter((name) => !pruned().includes(name)));
  });

  test('a script of a call that was killed, which comes to the storage when the next call is over, touches nothing', async () => {
    asBefore();
    await killedAt('before', 3, `cat > ${folder}/late; `);
    const late = fs.readFileSync(path.join(folder, 'late'), 'utf8'), next = await operator.run(['prune', '--yes']);
    assert.equal(next.code, 0, next.out + next.err);
    assert.match(late, /swapped/);
    assert.throws(() => execFileSync('sh', ['-s'], { input: late, stdio: 'pipe' }), /REFUSED: the copy is not there any more/);
    holds(all.filter((name) => !pruned().includes(name)));
  });

  test('a repository that is a link, or a file system of its own, or with an old one beside it: refused in words, before anything is touched', async () => {
    asBefore();
    const repository = storage.repository('web1'), aside = path.join(folder, 'elsewhere'), refused = async (words: RegExp) => {
      const ended = await operator.run(['prune', '--yes']);
      assert.equal(ended.code, 2, ended.out + ended.err);
      assert.match(ended.err, words);
      assert.doesNotMatch(ended.err, /does this open a shell/);
    };
    fs.mkdirSync(`${repository}.before-prune`);
    await refused(/before-prune is there, left by an earlier prune/);
    fs.rmdirSync(`${repository}.before-prune`);
    fs.renameSync(repository, aside);
    fs.symlinkSync(aside, repository);
    await refused(/the copy cannot be made: the repository is a link/);
    fs.rmSync(repository);
    fs.mkdirSync(repository);
    execFileSync('mount', ['-t', 'tmpfs', '-o', 'size=200m', 'tmpfs', repository]);
    try {
      execFileSync('cp', ['-a', `${aside}/.`, repository]);
      await refused(/the repository is a file system of its own/);
    } finally {
      execFileSync('umount', [repository]);
    }
    fs.rmdirSync(repository);
    fs.renameSync(aside, repository);
    holds(all);
  });

  test('a night that runs while the copy is pruned loses nothing: the copy is thrown away', async () => {
    asBefore();
    const holding = `#!/bin/sh\ncase " $* " in *" compact "*) touch ${folder}/held; while [ ! -e ${folder}/go ]; do sleep 0.05; done;; esac\nexec /usr/bin/borg "$@"\n`;
    fs.writeFileSync(path.join(bin, 'borg'), holding, { mode: 0o755 });
    const running = operator.start(['prune', '--yes'], { PATH: `${bin}:${process.env.PATH}` });
    await waitFor('it compacts', () => fs.existsSync(path.join(folder, 'held')));
    assert.equal((await server.run()).code, 0);
    fs.writeFileSync(path.join(folder, 'go'), '');
    const ended = await running.ended;
    assert.equal(ended.code, 75, ended.out + ended.err);
    assert.match(ended.err, /somebody wrote to the repository since it was audited: nothing was pruned, and nothing is lost/);
    const more = server.archives();
    assert.equal(more.length, all.length + 2);
    holds(more);
    assert.equal((await operator.run(['prune', '--yes'])).code, 0);
    asBefore();
    for (const file of ['held', 'go']) fs.rmSync(path.join(folder, file));
    fs.writeFileSync(path.join(bin, 'borg'), holding, { mode: 0o755 });
    const raced = operator.start(['prune', '--yes'], { PATH: `${bin}:${process.env.PATH}` });
    await waitFor('it compacts', () => fs.existsSync(path.join(folder, 'held')));
    speakProtocol(server, ['for number in range(1, 21):', '    repository.put(bytes([number]) * 32, b"junk")', '    repository.commit()']); // asks for no lock
    fs.writeFileSync(path.join(folder, 'go'), '');
    assert.equal((await raced.ended).code, 75);
    assert.deepEqual(names(), all);
    assert.equal(verdictOf(await operator.run(['audit', '--json'])).verdict, 'alarm');
  });

  test('without room on the storage it says what is missing, and touches nothing', async () => {
    asBefore();
    const repositories = path.join(folder, 'storage/repositories'), aside = path.join(folder, 'aside');
    fs.renameSync(repositories, aside);
    fs.mkdirSync(repositories);
    execFileSync('mount', ['-t', 'tmpfs', '-o', 'size=12m', 'tmpfs', repositories]);
    try {
      execFileSync('cp', ['-a', path.join(aside, 'web1'), repositories]);
      const ended = await operator.run(['prune', '--yes']);
      assert.equal(ended.code, 2, ended.out + ended.err);
      assert.match(ended.err, /the storage has [\d.]+ MB free; compacting .* needs [\d.]+ MB besides what is there: nothing was pruned/);
      holds(all);
    } finally {
      execFileSync('umount', [repositories]);
    }
    fs.rmSync(aside, { recursive: true });
  });

  test('what compacting writes anew, and frees only with the old repository, is reckoned before it begins', async () => {
    asBefore();
    const repository = storage.repository('web1'), repositories = path.dirname(repository), aside = path.join(folder, 'aside');
    for (const one of ['stays', 'goes']) fs.writeFileSync(path.join(folder, one), randomBytes(12_000_000));
    for (const [daysAgo, ...sources] of [[20, 'stays', 'goes'], [1, 'stays']] as const) { // the first one's data is in one data file, of which the second one needs half
      const at = `${new Date(Date.now() - daysAgo * 86_400_000).toISOString().slice(0, 10)}T02:00:00`;
      local(['create', '--timestamp', at, `::web1-${at}-warm.checkpoint`, ...sources.map((one) => path.join(folder, one))]);
      fs.appendFileSync(path.join(repository, 'transactions'), `transaction ${Math.max(...fs.readdirSync(path.join(repository, 'data/0')).map(Number))}, UTC time ${at}.000000\n`);
    }
    execFileSync('sed', ['-i', 's/^max_segment_size = .*/max_segment_size = 1000000/', path.join(repository, 'config')]);
    fs.rmSync(path.join(operator.folder, 'ledger/web1.json'));
    assert.equal((await operator.run(['audit'])).code, 0);
    const whole = names(), bytes = Number(execFileSync('du', ['-s', '--block-size=1', repository], { encoding: 'utf8' }).split('\t')[0]);
    fs.renameSync(repositories, aside);
    fs.mkdirSync(repositories);
    execFileSync('mount', ['-t', 'tmpfs', '-o', `size=${bytes + 25_000_000}`, 'tmpfs', repositories]); // one data file, a twentieth and 16 MB would fit
    try {
      execFileSync('cp', ['-a', path.join(aside, 'web1'), repositories]);
      const ended = await operator.run(['prune', '--yes']);
      assert.equal(ended.code, 2, ended.out + ended.err);
      assert.match(ended.err, /the storage has 2[3-5]\.\d MB free; compacting .* needs (29|3[01])\.\d MB besides what is there: nothing was pruned/);
      assert.match(ended.out, /borg compact --debug --threshold 1000/);
      holds(whole);
    } finally {
      execFileSync('umount', [repositories]);
      fs.rmdirSync(repositories);
      fs.renameSync(aside, repositories);
    }
  });

  test('hosted borg, without a shell: audited by the list, pruned in place, and said plainly; killed in between, the next audit is no alarm', async () => {
    asBefore();
    fs.rmSync(path.join(operator.folder, 'ledger'), { recursive: true });
    operator.write(operator.entry({ keep, storage: [] }));
    const first = await operator.run(['audit']);
    assert.match(first.out, /the storage has no shell: overwritten data, a changed key or configuration and damage cannot be seen/);
    assert.equal(first.code, 0, first.out + first.err);
    server.borg('delete', `::${all[0]}`);
    const { rules, archives } = verdictOf(await operator.run(['audit', '--json']));
    assert.deepEqual([rules, archives], [['R8'], [all[0]]]);
    asBefore();
    fs.rmSync(path.join(operator.folder, 'ledger'), { recursive: true });
    operator.write(operator.entry({ keep, storage: [] }));
    assert.equal((await operator.run(['audit'])).code, 0);
    fs.writeFileSync(path.join(bin, 'borg'), `#!/bin/sh\ncase " $* " in *" compact "*) kill -9 "$(cat ${folder}/pid)"; sleep 0.2;; esac\nexec /usr/bin/borg "$@"\n`, { mode: 0o755 });
    const script = operator.start(['prune', '--yes'], { PATH: `${bin}:${process.env.PATH}` });
    fs.writeFileSync(path.join(folder, 'pid'), String(script.pid));
    assert.equal((await script.ended).code, 137);
    const next = await operator.run(['prune', '--yes']);
    assert.equal(next.code, 0, next.out + next.err);
    assert.match(next.out + next.err, /was interrupted/);
    const gone = operator.book().archives.filter(({ goneBy }: any) => goneBy === 'prune').map(({ name }: any) => name);
    assert.ok(gone.length > 10);
    holds(all.filter((name) => !gone.includes(name)));
    plant(server, 'web1-2026-11-01T02:00:00', ['--timestamp', '2026-11-01T02:00:00']);
    assert.ok(verdictOf(await operator.run(['audit', '--json'])).rules.includes('R10'));
  });

  test('hosted borg, audited once a week: each night counts as the day on which it was, and no alarm is raised', async () => {
    asBefore();
    fs.rmSync(path.join(operator.folder, 'ledger'), { recursive: true });
    operator.write(operator.entry({ keep, storage: [] }));
    assert.equal((await operator.run(['audit'])).code, 0);
    const staying = async () => JSON.parse((await operator.run(['prune', '--dry-run', '--json'])).out)[0].kept.map(({ archive }: any) => archive), all = operator.book(), planned = await staying();
    const lastAuditAt = new Date(Date.now() - 12 * 86_400_000).toISOString(), book = { ...all, lastAuditAt, archives: all.archives.filter(({ endedAt }: any) => endedAt < lastAuditAt) };
    assert.ok(all.archives.length - book.archives.length > 10);
    fs.writeFileSync(path.join(operator.folder, 'ledger/web1.json'), JSON.stringify(book));
    assert.deepEqual(verdictOf(await operator.run(['audit', '--json'])).all.findings, []);
    for (const { seenAt, seenBy, endedAt } of operator.book().archives) assert.equal(seenAt, endedAt, seenBy);
    assert.deepEqual(await staying(), planned);
    operator.write(operator.entry({ keep, storage: [], maxAgeHours: 48 }));
    assert.match((await operator.run(['status', '--all'])).out, /^OK: web1: .*, proven, written .* ago by the server's clock$/m);
  });

  test('hosted borg: a prune that fails after its deletion says so, and what it deleted is no alarm', async () => {
    const failing = async (script: string) => {
      asBefore();
      fs.rmSync(path.join(operator.folder, 'ledger'), { recursive: true });
      operator.write(operator.entry({ keep, storage: [] }));
      assert.equal((await operator.run(['audit'])).code, 0);
      fs.writeFileSync(path.join(bin, 'borg'), `#!/bin/sh\ncase " $* " in ${script} esac\nexec /usr/bin/borg "$@"\n`, { mode: 0o755 });
      const ended = await operator.run(['prune', '--yes'], { PATH: `${bin}:${process.env.PATH}` });
      fs.rmSync(path.join(bin, 'borg'));
      assert.equal(ended.code, 2, ended.out + ended.err);
      assert.doesNotMatch(ended.err, /nothing was pruned/);
      return ended.err;
    };
    assert.match(await failing('*" compact "*) exit 2;;'), /the repository cannot be compacted .*; what was deleted until then is noted/);
    assert.equal(operator.book().pruning, null);
    assert.ok(pruned().length > 10);
    assert.deepEqual(verdictOf(await operator.run(['audit', '--json'])).all.findings, []);
    assert.match(await failing(`*" compact "*) touch ${bin}/gone; exit 2;; *" list "*) [ ! -e ${bin}/gone ] || exit 2;;`), /the repository cannot be compacted .*; what was deleted is not known/);
    assert.match((await operator.run(['audit'])).err, /the prune of .* was interrupted/);
    assert.equal((await operator.run(['prune', '--yes'])).code, 0);
    assert.ok(pruned().length > 10);
    assert.deepEqual(verdictOf(await operator.run(['audit', '--json'])).all.findings, []);
  });
});
