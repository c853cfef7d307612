// What fails while everything still runs: nothing is stopped then, the exit code is 2 (75: not now), and the next run is good.
import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import fs from 'node:fs';
import path from 'node:path';
import { allIsWell, answers, expectEnd, good, held, holdIn, leftProcesses, letGo, nearby, provenArchives, randomFile, scenarios, setQuota, whatRuns, wrap } from './scenario.ts';
import type { World } from './scenario.ts';
import { start, waitFor } from './script.ts';
import type { Ended } from './script.ts';

/** A run that must fail before the first stop. */
async function fails(world: World, says: RegExp[], options: { env?: NodeJS.ProcessEnv } = {}): Promise<Ended> {
  const running = whatRuns(world), ended = await world.server.run([], options);
  expectEnd(world, ended, { code: 2, says: [...says, /services: nothing was stopped/], error: says[0]! });
  assert.deepEqual(whatRuns(world), running, 'something was stopped');
  await allIsWell(world);
  return ended;
}

const clock = (at: Date) => at.toISOString().slice(11, 16);

/** A window that began an hour ago and ends with the first full minute that leaves so many seconds, beside what a whole run took on this machine and what it sets aside for the start. */
function windowOf(world: World, seconds: number): { window: { from: string; until: string; timeZone: string }; end: Date } {
  const { startedAt, endedAt, startSeconds } = world.server.history().pop();
  const end = new Date(Math.ceil((Date.now() + seconds * 1000 + 2 * (Date.parse(endedAt) - Date.parse(startedAt)) + 4000 * startSeconds) / 60_000) * 60_000);
  return { end, window: { from: clock(new Date(Date.now() - 3_600_000)), until: clock(end), timeZone: 'UTC' } };
}

// A network file system that has died, by FUSE's own protocol (linux/fuse.h): it says hello, lets anybody in, and answers nothing else.
const DEAD_DISK = `
import os, struct, subprocess, sys
fd = os.open('/dev/fuse', os.O_RDWR)
subprocess.check_call(['mount', '-i', '-t', 'fuse', '-o', f'fd={fd},rootmode=40755,user_id=0,group_id=0', 'dead', sys.argv[1]], pass_fds=[fd])
while True:
    _, what, number = struct.unpack_from('<IIQ', os.read(fd, 1 << 18))
    if what == 26: os.write(fd, struct.pack('<IiQ', 80, 0, number) + struct.pack('<II', 7, 31) + bytes(56)) # INIT
    if what == 34: os.write(fd, struct.pack('<IiQ', 16, -38, number)) # ACCESS: not done here
`;

scenarios('a failure while everything runs', import.meta.url, {
  'a network file system that has died under somebody\'s shell, and is not saved, keeps nobody waiting': async (world) => {
    nearby(world);
    const dead = path.join(world.folder, 'dead');
    fs.mkdirSync(dead);
    const disk = start(['python3', '-c', DEAD_DISK, dead]);
    await waitFor('it is mounted', () => fs.readFileSync('/proc/self/mountinfo', 'utf8').includes(` ${dead} `));
    const shell = start(['sh', '-c', 'cd "$1" && exec sleep 1000', 'sh', dead]);
    await waitFor('somebody stands there', () => fs.readlinkSync(`/proc/${shell.pid}/cwd`) === dead);
    const run = world.server.start(), late = setTimeout(() => [run, disk].forEach((one) => one.signal('SIGKILL')), 60_000); // as long as the disk is there, not even KILL ends who waits for it
    expectEnd(world, await run.ended, { code: 0 });
    clearTimeout(late);
    await allIsWell(world);
    for (const one of [shell, disk]) one.signal('SIGKILL');
    await Promise.all([shell.ended, disk.ended]);
  },

  'the window ends during the warm pass: nothing is stopped, and it says how far it came': async (world) => {
    world.server.writeSettings({ warmPass: true });
    randomFile(world, 'big', 60);
    world.server.writeSettings({ window: windowOf(world, 20).window, uploadLimitKiB: 100 });
    const ended = await fails(world, [/warm pass did not get through in time: \d+ files, [\d.]+ MB read, [\d.]+ MB new/]);
    assert.match(ended.err, /what was uploaded counts/);
    assert.equal(world.server.archives().some((name) => name.endsWith('-warm.checkpoint.checkpoint')), true, 'what was uploaded is kept');
    world.server.writeSettings({ uploadLimitKiB: 0, window: null });
    await good(world);
  },

  'a warm pass that took more than a minute is made once more, so that the stop is short': async (world) => {
    randomFile(world, 'big', 5);
    world.server.writeSettings({ warmPass: true, uploadLimitKiB: 75 });
    const run = world.server.start();
    await waitFor('the warm pass is under way', () => /-warm\.checkpoint/.test(run.out()));
    await new Promise((done) => { setTimeout(done, 20_000); });
    randomFile(world, 'made meanwhile', 1);
    const ended = await run.ended;
    expectEnd(world, ended, { code: 0 });
    assert.equal([...ended.out.matchAll(/ \$ .*borg .*-warm\.checkpoint /g)].length, 2, ended.out);
    const { warm, cold } = world.server.history().pop();
    assert.ok(warm.deduplicatedBytes > 6e6 && cold.deduplicatedBytes < 1e6, JSON.stringify({ warm, cold }));
    const kinds = JSON.parse((await world.server.run(['list', '--json'])).out).map(({ kind }: { kind: string }) => kind);
    assert.deepEqual(kinds.slice(-3), ['warm', 'warm', 'proven']);
    await allIsWell(world);
  },

  'the end of the window is kept by force, with everything up by then': async (world) => {
    nearby(world);
    const { window, end } = windowOf(world, 20);
    world.server.writeSettings({ window, warmPass: false });
    const ended = await world.server.run([], wrap(world, 'borg', holdIn('cold')));
    expectEnd(world, ended, { code: 2, says: [/the deadline \(everything runs again by/, /services: all 3 are running again/] });
    await allIsWell(world, 0.1);
    assert.ok(Date.now() <= end.getTime(), 'it took longer than the window');
    for (const { runningAt } of world.server.history().pop().parts) assert.ok(Date.parse(runningAt) < end.getTime());
  },

  'borg that is missing, too old or of version 2 is told, and nothing is stopped': async (world) => {
    await fails(world, [/borg does not run \(not installed\?\)/, /apt-get install borgbackup/], wrap(world, 'borg', 'exit 127'));
    await fails(world, [/borg 1\.1\.16 is too old/], wrap(world, 'borg', '[ "$1" = --version ] && { echo borg 1.1.16; exit; }'));
    await fails(world, [/borg 2\.0\.0b14 is installed, but this script speaks to borg 1/], wrap(world, 'borg', '[ "$1" = --version ] && { echo borg 2.0.0b14; exit; }'));
  },

  'a storage that cannot be reached, or is another one, is told, and nothing is stopped': async (world) => {
    const known = path.join(world.server.folder, 'etc/known_hosts'), right = fs.readFileSync(known);
    world.storage.stop();
    await fails(world, [/no ssh connection to the storage/, /Connection refused/, /hint: is the address right .*, and the storage reachable from here/]);
    await world.storage.start();
    fs.rmSync(path.join(world.folder, 'other'), { force: true });
    execFileSync('ssh-keygen', ['-q', '-t', 'ed25519', '-N', '', '-f', path.join(world.folder, 'other')]);
    fs.writeFileSync(known, `[127.0.0.1]:${world.storage.port} ${fs.readFileSync(path.join(world.folder, 'other.pub'), 'utf8')}`);
    await fails(world, [/no ssh connection to the storage/, /Host key verification failed|REMOTE HOST IDENTIFICATION HAS CHANGED/, /hint: .*knownHostsFile/]);
    fs.writeFileSync(known, right);
    await good(world);
  },

  'a wrong passphrase, a missing key file and a missing ssh key are told by name, and nothing is stopped': async (world) => {
    const etc = path.join(world.server.folder, 'etc'), file = (name: string) => path.join(etc, name);
    const passphrase = fs.readFileSync(file('passphrase'));
    fs.writeFileSync(file('passphrase'), 'another one\n');
    await fails(world, [/the repository cannot be used/, /hint: is `passphraseFile` the one that belongs to this key/]);
    fs.writeFileSync(file('passphrase'), passphrase);
    for (const [name, key] of [['borg_key', 'keyFile'], ['ssh_key', 'sshKey']] as const) {
      fs.renameSync(file(name), file('away'));
      await fails(world, [new RegExp(`${key} .*${name} is not there`), /recovery sheet/]);
      fs.renameSync(file('away'), file(name));
    }
  },

  'a repository that somebody else has locked is told, and nothing is stopped': async (world) => {
    const other = start(['borg', 'with-lock', '::', 'sh', '-c', `touch ${world.folder}/locked; exec sleep 1000`], { env: world.server.borgEnv() });
    await waitFor('the other client has the lock', () => fs.existsSync(path.join(world.folder, 'locked')));
    const running = whatRuns(world);
    // the product waits three minutes: long enough for the test that it would
    const ended = await world.server.run([], wrap(world, 'borg', 'for word do shift; [ "$word" = 180 ] && word=2; set -- "$@" "$word"; done'));
    expectEnd(world, ended, { code: 2, says: [/the repository cannot be used/, /[Ll]ock/, /hint: another borg is using the repository/, /services: nothing was stopped/] });
    assert.deepEqual(whatRuns(world), running);
    other.signal('SIGTERM', true);
    await other.ended;
    await good(world);
  },

  'a `before` command that fails is told, and nothing is stopped': async (world) => {
    nearby(world);
    world.server.writeSettings({ before: ['sh', '-c', 'echo the VPN is down >&2; exit 7'] });
    await fails(world, [/the `before` command failed \(exit code 7\)/, /said: the VPN is down/, /hint: mend it, or take it out of the settings/]);
    world.server.writeSettings({ before: ['sleep', '300'] });
    const run = world.server.start();
    await waitFor('it runs', () => /\$ sleep 300/.test(run.out()));
    run.signal('SIGTERM');
    expectEnd(world, await run.ended, { code: 143, says: [/error: ended by SIGTERM/, /services: nothing was stopped/], error: /^ended by SIGTERM$/ });
  },

  'a folder that is not there is told, and nothing is stopped': async (world) => {
    nearby(world);
    world.server.writeSettings({ folders: [world.files, `${world.folder}/uploads`] });
    await fails(world, [/uploads \(folder\) does not exist/, /hint: nothing was stopped/]);
  },

  'a folder that goes in the warm pass never becomes a good backup': async (world) => {
    world.server.writeSettings({ warmPass: true });
    nearby(world);
    const run = world.server.start([], wrap(world, 'borg', `[ $pass = warm ] && mv ${world.files} ${world.files}.gone`));
    const ended = await run.ended;
    expectEnd(world, ended, { code: 2, says: [/files \(folder\) is gone: it was there when the run began/, /services: all 3 are running again/], error: /is gone/ });
    await allIsWell(world);
  },

  'a running cluster inside a folder that nothing stops is refused': async (world) => {
    nearby(world);
    world.server.writeSettings({ stop: [world.web.entry, world.app.entry], folders: [path.join(world.folder, 'db')] });
    await fails(world, [/db\/data would be saved, but PostgreSQL runs in it and nothing stops it/, /name 'postgres .*data' in `stop`/]);
  },

  'a cluster that crashed before the night is no backup, and nothing is stopped for it': async (world) => {
    nearby(world);
    execFileSync('pkill', ['-KILL', 'postgres']);
    await waitFor('the cluster is dead', () => !answers(world.db));
    const ended = await world.server.run();
    expectEnd(world, ended, { code: 2, says: [/db\/data does not run and is not proven cold: its state is "in production"/, /hint: start it and let it recover/, /services: nothing was stopped/], error: /not proven cold/ });
    assert.equal(answers(world.db), false, 'it did not run before, and must not now');
    world.db.start();
    await good(world);
  },

  'the storage quota is reached in the warm pass: nothing is stopped': async (world) => {
    world.server.writeSettings({ warmPass: true });
    randomFile(world, 'big', 12);
    setQuota(world, '10M');
    await fails(world, [/warm pass failed/, /quota/i, /hint: the storage quota is reached/]);
    setQuota(world, '60M');
    await good(world);
  },

  'two runs at once: the second one says so with 75, the first one is not disturbed': async (world) => {
    const first = world.server.start([], wrap(world, 'borg', holdIn('cold')));
    await held(world);
    const lines = world.server.history().length, second = await world.server.run();
    assert.equal(second.code, 75);
    assert.match(second.err, /error: another run is going on/);
    assert.equal(world.server.history().length, lines, 'the second run is no line of the history');
    const recover = await world.server.run(['recover']);
    assert.equal(recover.code, 75);
    assert.match(recover.out, /nothing to recover/);
    assert.equal(world.web.running(), false, 'the first run still goes on');
    letGo(world);
    expectEnd(world, await first.ended, { code: 0 });
    await allIsWell(world);
  },

  'a record that comes back as another one, or not at all: services run, and there is no proof': async (world) => {
    nearby(world);
    for (const [lines, says] of [['echo "{}"; exit 0', /record\/manifest\.json came back from .* other than it was written/], ['echo "no such chunk" >&2; exit 2', /cannot be read back from .* \(exit code 2\)[^]*said: no such chunk/]] as const) {
      const ended = await world.server.run([], wrap(world, 'borg', `[ $pass = extract ] && { ${lines}; }`));
      expectEnd(world, ended, { code: 2, says: [says, /services: all 3 are running again/] });
      await allIsWell(world);
    }
    assert.equal(provenArchives(world).length, 1, 'only the first night is proven');
    await good(world);
  },

  'the script is killed while the record is read back: the borg that waits for the proof ends, and writes none': async (world) => {
    nearby(world);
    const run = world.server.start([], wrap(world, 'borg', holdIn('extract')));
    await held(world);
    await waitFor('borg waits for the proof', () => leftProcesses().some((line) => line.includes(' create ') && line.includes('record/proof.json')));
    run.signal('SIGKILL');
    await run.ended;
    letGo(world);
    await allIsWell(world);
    assert.equal(provenArchives(world).length, 1, 'only the first night is proven');
    await good(world);
  },

  'the script is killed in the warm pass: its borg does not hold the repository until it is through': async (world) => {
    nearby(world);
    world.server.writeSettings({ warmPass: true });
    const run = world.server.start([], wrap(world, 'borg', holdIn('warm')));
    await held(world);
    run.signal('SIGKILL');
    await run.ended;
    await allIsWell(world);
    letGo(world);
    await good(world);
  },

  'outside the window it is 75, after what a dead run left stopped was started; --now takes the backup all the same': async (world) => {
    nearby(world);
    const run = world.server.start([], wrap(world, 'borg', holdIn('cold')));
    await held(world);
    const guard = JSON.parse(fs.readFileSync(path.join(world.server.stateFolder, 'guard.json'), 'utf8')).pid;
    process.kill(guard, 'SIGKILL');
    run.signal('SIGKILL');
    await run.ended;
    const inAnHour = new Date(Date.now() + 3_600_000), later = new Date(Date.now() + 7_200_000);
    world.server.writeSettings({ window: { from: clock(inAnHour), until: clock(later), timeZone: 'UTC' } });
    const ended = await world.server.run();
    assert.equal(ended.code, 75, ended.out + ended.err);
    assert.match(ended.err, /error: it is outside the window .* \(UTC\)[^]*--now/);
    await allIsWell(world, 0.1);
    const line = world.server.history().pop();
    assert.deepEqual([line.outcome, line.exitCode, /this run started what it had stopped/.test(line.error)], ['failed', 2, true]);
    const again = await world.server.run();
    assert.equal(again.code, 75);
    assert.equal(world.server.history().pop().startedAt, line.startedAt, 'a run outside the window is no line of the history');
    expectEnd(world, await world.server.run(['--now']), { code: 0 });
    await allIsWell(world);
  },
});
