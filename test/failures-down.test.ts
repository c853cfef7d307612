// What fails while services are down: everything runs again, whatever it was, and what is no good backup is not proven.
import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import fs from 'node:fs';
import path from 'node:path';
import { allIsWell, answers, expectEnd, good, held, holdIn, letGo, nearby, nothingIsLeft, randomFile, scenarios, setQuota, wrap, wrapReal } from './scenario.ts';
import type { World } from './scenario.ts';
import { everythingRunsAgain, waitFor } from './script.ts';

const ALL_RUN = /services: all 3 are running again/;
const WEAK = 'setpriv --inh-caps=-dac_override,-dac_read_search --bounding-set=-dac_override,-dac_read_search'; // borg as one that is not root's, or root on NFS
const inState = (world: World, name: string) => path.join(world.server.stateFolder, name);

scenarios('a failure while services are down', import.meta.url, {
  'borg fails in the cold pass: its own words are told, and the next run is good': async (world) => {
    world.server.writeSettings({ warmPass: true });
    const ended = await world.server.run([], wrap(world, 'borg', '[ $pass = cold ] && { echo "disk on fire" >&2; exit 2; }'));
    expectEnd(world, ended, { code: 2, says: [/error: cold pass failed \(exit code 2\)/, /said: disk on fire/, ALL_RUN] });
    await allIsWell(world);
    await good(world);
  },

  'a file of a stopped cluster that changes during the copy makes no backup': async (world) => {
    nearby(world);
    const file = path.join(world.db.dataDirectory, 'base/1/112');
    const ended = await world.server.run([], wrap(world, 'borg', `[ $pass = cold ] && printf x >> ${file}`));
    expectEnd(world, ended, { code: 2, says: [/1 file changed under a stopped part while it was copied: .*base\/1\/112/, ALL_RUN] });
    await allIsWell(world);
    const list = JSON.parse((await world.server.run(['list', '--json'])).out);
    assert.equal(list.filter((one: any) => one.kind === 'unproven').length, 1);
    assert.deepEqual(fs.readdirSync(world.server.stateFolder).filter((name) => /listing|sorted|\.new$/.test(name)), [], 'listings are left over');
  },

  'borg that warns of a changed file under a stopped cluster makes no backup': async (world) => {
    nearby(world);
    const note = JSON.stringify({ type: 'file_status', status: 'C', path: `${world.db.dataDirectory}/global/pg_control` });
    const ended = await world.server.run([], wrap(world, 'borg', `[ $pass = cold ] && { borg_real() { /usr/bin/borg "$@"; }; borg_real "$@"; echo '${note}' >&2; exit 1; }`));
    expectEnd(world, ended, { code: 2, says: [/borg could not read these as they were: .*pg_control/, ALL_RUN] });
    await allIsWell(world);
  },

  'a file under `folders` that changes during the copy is a warning with its name, and the backup is good': async (world) => {
    nearby(world);
    const ended = await world.server.run([], wrap(world, 'borg', `[ $pass = cold ] && echo more >> '${world.files}/file 7'`));
    expectEnd(world, ended, { code: 1, warns: /changed while it was copied: "?.*files\/file 7/ });
    await allIsWell(world);
  },

  'files that borg cannot read are one warning, with the names of the first of them': async (world) => {
    nearby(world);
    execFileSync('sh', ['-c', 'chown 65534 "$1"/* && chmod 600 "$1"/*', 'sh', world.files]);
    world.server.writeSettings({ stop: [world.web.entry] }); // it could not read the cluster either
    const ended = await world.server.run([], wrap(world, 'borg', `[ $pass = cold ] && exec ${WEAK} /usr/bin/borg "$@"`));
    expectEnd(world, ended, { code: 1, warns: /^not in the archive, borg could not read it: ([^,\n]*files\/file \d+"?, ){19}[^,\n]*files\/file \d+"? and 30 more$/m });
    await allIsWell(world);
  },

  'a folder that goes while everything is stopped never becomes a good backup': async (world) => {
    nearby(world);
    const ended = await world.server.run([], wrap(world, 'borg', `[ $pass = cold ] && mv ${world.files} ${world.files}.gone`));
    expectEnd(world, ended, { code: 2, says: [/files \(folder\) is gone/, ALL_RUN] });
    await allIsWell(world);
  },

  'a folder that borg cannot come to, which is one warning among its words, never becomes a good backup': async (world) => {
    nearby(world);
    const closed = path.join(world.folder, 'closed'), shown = path.join(closed, 'shown');
    fs.mkdirSync(shown, { recursive: true });
    fs.writeFileSync(path.join(shown, 'file'), 'never seen');
    fs.chmodSync(closed, 0o700);
    fs.chownSync(closed, 65534, 65534);
    world.server.writeSettings({ stop: [world.web.entry], folders: [world.files, shown] });
    const ended = await world.server.run([], wrap(world, 'borg', `[ $pass = cold ] && exec ${WEAK} /usr/bin/borg "$@"`));
    expectEnd(world, ended, { code: 2, says: [/closed\/shown could not be read: this archive does not count as a backup/, /said: .*closed\/shown: .*Permission denied/, /services: web is running again/] });
    await allIsWell(world);
  },

  'borg that cannot be killed, because its disk hangs, keeps nothing down': async (world) => {
    nearby(world);
    const disk = path.join(world.folder, 'hangs'), image = path.join(world.folder, 'image');
    fs.mkdirSync(disk);
    for (const argv of [['truncate', '-s', '8M', image], ['mkfs.ext4', '-q', image], ['mount', '-o', 'loop', image, disk], ['fsfreeze', '--freeze', disk]]) execFileSync(argv[0]!, argv.slice(1));
    try {
      world.server.writeSettings({ maxDowntimeMinutes: 1, stop: [world.web.entry, { ...world.app.entry, stop: ['false'] }, `postgres ${world.db.dataDirectory}`] });
      const ended = await world.server.run([], wrapReal(world, `[ $pass = cold ] && { echo '{"type": "file_status", "status": "i", "path": "held"}' >&2; echo > ${disk}/cache; }`));
      expectEnd(world, ended, { code: 2, says: [/could not stop app/, /services: all \d are running again/], warns: /the borg of the cold pass has been killed and does not go away/ });
      assert.ok(world.server.history().pop().downSeconds < 30);
      await everythingRunsAgain([world.web, world.app], [world.idle]);
    } finally {
      execFileSync('fsfreeze', ['--unfreeze', disk]);
    }
    await allIsWell(world, 15, 'a guard may watch'); // app has not obeyed
    execFileSync('umount', [disk]);
  },

  'borg that hangs is ended by the deadline, and one that ignores INT and TERM, too': async (world) => {
    nearby(world);
    world.server.writeSettings({ maxDowntimeMinutes: 0.5, warmPass: false });
    for (const trap of ['', "trap '' INT TERM; "]) {
      const ended = await world.server.run([], wrap(world, 'borg', `[ $pass = cold ] && { ${trap}while :; do sleep 0.1; done; }`));
      expectEnd(world, ended, { code: 2, says: [/the deadline \(everything runs again by \d\d:\d\d\)/, ALL_RUN], error: /^the deadline/ });
      await allIsWell(world, 0.1);
      assert.ok(world.server.history().pop().downSeconds < 30, 'it was down for longer than maxDowntimeMinutes');
      await nothingIsLeft(world);
    }
  },

  'the connection is cut in the cold pass: everything runs again, and the next run is good': async (world) => {
    world.server.writeSettings({ warmPass: false, uploadLimitKiB: 200 });
    randomFile(world, 'big', 20);
    const run = world.server.start();
    const stored = () => Number(execFileSync('du', ['-sk', world.storage.repository('web1')], { encoding: 'utf8' }).split('\t')[0]);
    const before = stored();
    await waitFor('data arrives', () => (world.disk !== 'tmpfs' || !world.web.running()) && stored() > before + 500, 60);
    world.storage.cut();
    expectEnd(world, await run.ended, { code: 2, says: [/error: cold pass failed/, /said: .*(Connection closed|Broken pipe)/i, /hint: run `node backup\.js doctor`: it tries the ssh connection/, ALL_RUN] });
    await allIsWell(world);
    world.server.writeSettings({ uploadLimitKiB: 0 });
    await good(world);
  },

  'the storage quota is reached in the cold pass: everything runs again': async (world) => {
    world.server.writeSettings({ warmPass: false });
    randomFile(world, 'big', 12);
    setQuota(world, '10M');
    expectEnd(world, await world.server.run(), { code: 2, says: [/error: cold pass failed/, /hint: the storage quota is reached/, ALL_RUN] });
    await allIsWell(world);
    setQuota(world, '60M');
    await good(world);
  },

  'the local disk is full after the first stop: everything runs again, and with room the next run is good': async (world) => {
    nearby(world);
    execFileSync('sh', ['-c', 'mkdir "$1.old" && mv "$1"/* "$1.old" && mount -t tmpfs -o size=90m tmpfs "$1" && chmod 700 "$1" && mv "$1.old"/* "$1"', 'sh', world.server.stateFolder]);
    const full = path.join(world.folder, 'full.sh');
    fs.writeFileSync(full, `#!/bin/sh\n"$@"; cat /dev/zero > ${inState(world, 'filler')} 2>/dev/null; true\n`, { mode: 0o755 });
    const web: any = { ...world.web.entry };
    world.server.writeSettings({ stop: [{ ...web, stop: [full, ...web.stop] }, ...(world.server.settings.stop as any[]).slice(1)] });
    const ended = await world.server.run();
    assert.equal(ended.code, 2, ended.out + ended.err);
    assert.match(ended.err, /ENOSPC|No space left on device/);
    assert.doesNotMatch(ended.err, /this is a bug/);
    assert.match(ended.err, /services: .*running again/);
    await allIsWell(world);
    fs.rmSync(inState(world, 'filler'));
    world.server.writeSettings({ stop: [world.web.entry, ...(world.server.settings.stop as any[]).slice(1)] });
    await good(world);
  },

  'a cluster that somebody starts during the copy: no backup, and it runs on': async (world) => {
    nearby(world);
    const run = world.server.start([], wrap(world, 'borg', holdIn('cold')));
    await held(world);
    world.db.start();
    letGo(world);
    expectEnd(world, await run.ended, { code: 2, says: [/db\/data is not proven cold: .*process \d+ \(\w+\) still uses it/, ALL_RUN] });
    await allIsWell(world);
    assert.match(world.db.sql('postgres', 'select n from nights'), /^1$/);
  },

  'a cluster that somebody starts and stops during the copy: no backup': async (world) => {
    nearby(world);
    const run = world.server.start([], wrap(world, 'borg', holdIn('cold')));
    await held(world);
    world.db.start();
    world.db.stop();
    letGo(world);
    expectEnd(world, await run.ended, { code: 2, says: [/files? changed under a stopped part while it was copied: .*pg_control/, ALL_RUN] });
    await allIsWell(world);
  },

  'a part that somebody starts during the copy and that writes below `folders` is told': async (world) => {
    nearby(world);
    const run = world.server.start([], wrap(world, 'borg', holdIn('cold')));
    await held(world);
    world.web.startNow();
    const pid = fs.readFileSync(world.web.pidFile, 'utf8');
    fs.writeFileSync(path.join(world.files, 'written by web'), 'hello');
    letGo(world);
    expectEnd(world, await run.ended, { code: 1, warns: /changed while it was copied: .*written by web/, says: [/web runs already: somebody else has started it/] });
    await allIsWell(world);
    assert.equal(fs.readFileSync(world.web.pidFile, 'utf8'), pid, 'no second one beside it');
    assert.doesNotMatch(run.out(), /\$ \S*web\.sh start/);
  },

  'a storage that says borg has read all, while it still reads, is not believed': async (world) => {
    const big = path.join(world.files, 'big'), lie = { type: 'log_message', levelname: 'WARNING', name: 'borg', message: 'x', more: { type: 'archive_progress', finished: true } };
    randomFile(world, 'big', 20);
    fs.writeFileSync(path.join(world.folder, 'lie'), `${JSON.stringify(lie)}\n`);
    fs.writeFileSync(path.join(world.storage.folder, 'authorized_keys'), '');
    world.storage.authorize(fs.readFileSync(path.join(world.server.folder, 'etc/ssh_key.pub'), 'utf8'), 'web1', { before: `cat ${world.folder}/lie >&2` });
    const run = world.server.start([], wrapReal(world, `[ $pass = cold ] && exec strace -f -qq -P ${big} -e trace=read -e inject=read:delay_exit=30000 -e signal=none -o "$cd_to/read" /usr/bin/borg "$@"`)); // 320 reads of 30 ms
    await waitFor('borg is in the middle of the file', () => fs.existsSync(path.join(world.folder, 'read')) && fs.readFileSync(path.join(world.folder, 'read'), 'utf8').split('\n').length > 60, 180);
    assert.deepEqual([world.web.running(), answers(world.db)], [false, false], 'services run while borg reads');
    expectEnd(world, await run.ended, { code: 0 });
    await allIsWell(world);
  },
}, undefined, ['tmpfs', 'btrfs'], (name, disk) => disk === 'tmpfs' || /^borg fails|connection is cut|quota|local disk/.test(name)); // with a snapshot services run already when the copy fails
