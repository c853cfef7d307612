// What people do wrong, or what is done to them: an old settings file under a new script, an edited script, two servers of one name, a repository that
// moved, a passphrase that was changed, clocks, a host or a cluster or a unit under a new name. Each is told in words with a next command, and everything runs.
import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import fs from 'node:fs';
import path from 'node:path';
import { allIsWell, expectEnd, good, nearby, scenarios, wrap } from './scenario.ts';
import type { World } from './scenario.ts';
import { makeServer, start } from './script.ts';
import type { Ended } from './script.ts';
import { PG } from './cluster.ts';

const all = ({ out, err }: Ended) => out + err;
const DAY = 86_400;

/** A clock that is so many seconds ahead (or behind): for the script, and for what borg writes into an archive. */
function clock(world: World, seconds: number): { env: NodeJS.ProcessEnv } {
  const file = path.join(world.folder, 'clock.cjs');
  fs.writeFileSync(file, `const real = Date, now = () => real.now() + ${seconds * 1000};
globalThis.Date = class extends real { constructor(...given) { super(...(given.length ? given : [now()])); } static now() { return now(); } };
Object.defineProperty(performance, 'timeOrigin', { value: performance.timeOrigin + ${seconds * 1000} });\n`);
  const { env } = wrap(world, 'borg', '');
  const bin = path.join(world.folder, 'bin/borg');
  fs.writeFileSync(bin, `#!/bin/sh\ncase " $* " in *" create "*) for word; do shift; set -- "$@" "$word"; [ "$word" != create ] || set -- "$@" --timestamp "$(date --utc --date='${seconds} seconds' +%Y-%m-%dT%H:%M:%S)"; done;; esac\nexec /usr/bin/borg "$@"\n`, { mode: 0o755 });
  return { env: { ...env, NODE_OPTIONS: `--require ${file}` } };
}

const SCENARIOS: Record<string, (world: World) => Promise<void>> = {
  'an older settings file and an older state folder go on under a newer script; an edited script says so': async (world) => {
    nearby(world);
    const { server } = world, old = ['server', 'stop', 'folders', 'volumes', 'before', 'exclude', 'repository', 'sshKey', 'knownHostsFile', 'keyFile', 'passphraseFile', 'window', 'maxDowntimeMinutes', 'stopTimeoutSeconds', 'warmPass', 'snapshot', 'compression', 'chunker', 'uploadLimitKiB', 'tell', 'maxAgeHours', 'drill', 'language', 'stateFolder']; // of 0.1.0
    const defaults = JSON.parse((await server.run(['--print-settings', '--json'])).out);
    const first = Object.fromEntries(old.map((key) => [key, server.settings[key] ?? defaults[key].value]));
    fs.writeFileSync(server.settingsFile, `const settings = ${JSON.stringify({ ...first, tell: { ping: '', command: [], metrics: '' }, drill: { queries: [], folder: '', maxAgeDays: 8 } })};\n`);
    const lines = server.history().map(({ kind, startedAt, endedAt, outcome, exitCode, server: name, archive, downSeconds, startSeconds, parts, warm, cold, snapshot, warnings, error }) => ({ kind, startedAt, endedAt, outcome, exitCode, server: name, archive, downSeconds, startSeconds, parts, warm, cold, snapshot, warnings, error })); // a line of 0.1.0
    fs.writeFileSync(path.join(server.stateFolder, 'history.jsonl'), lines.map((line) => `${JSON.stringify(line)}\n`).join(''));
    assert.match((await server.run(['status'])).out, /^OK: web1: /);
    await good(world);
    fs.appendFileSync(server.script, '// mine\n');
    assert.match((await server.run(['--version'])).out, /\(edited\)$/m);
    await good(world);
    const manifest = JSON.parse(server.borg('extract', '--stdout', `::${server.history().pop().archive}`, 'record/manifest.json'));
    assert.equal(manifest.script.state, 'edited');
    // Half an upgrade: a download that was cut off runs nothing.
    const whole = fs.readFileSync(server.script, 'utf8'), betweenFunctions = whole.indexOf('\n}\n', 300_000) + 3, inComment = whole.indexOf('\n// ', betweenFunctions) + 5;
    for (const [at, says] of [[betweenFunctions, /^backup: error: this file ends too early: download it again$/m], [inComment, /ends too early/], [whole.lastIndexOf('main();'), /ends too early/], [whole.indexOf(' {\n', inComment) + 2, /SyntaxError/]] as const) {
      fs.writeFileSync(server.script, whole.slice(0, at));
      const ended = await server.run(['status']);
      assert.notEqual(ended.code, 0, `cut off at ${at}`);
      assert.match(ended.err, says, `cut off at ${at}`);
    }
    await allIsWell(world, 0.1);
  },

  'two servers of one name in one repository: doctor, drill and restore say so': async (world) => {
    nearby(world);
    const { server, folder } = world, other = await makeServer(path.join(folder, 'other'), 'web1', world.storage, { folders: [world.files], warmPass: false }, { near: true, setUp: false });
    for (const name of ['borg_key', 'passphrase']) fs.copyFileSync(path.join(server.folder, 'etc', name), path.join(other.folder, 'etc', name));
    await good(world);
    const mine = server.history().pop().archive, before = JSON.parse((await server.run(['doctor', '--json'])).out).find(({ check }: any) => check === 'own name');
    assert.equal(before.ok, true, before.detail);
    const theirs = await other.run();
    assert.ok(theirs.code <= 1, all(theirs)); // the cluster is none of theirs
    const stranger = other.history().pop().archive, own = JSON.parse((await server.run(['doctor', '--json'])).out).find(({ check }: any) => check === 'own name');
    assert.equal(own.ok, false);
    assert.match(own.detail, new RegExp(`no run here wrote ${stranger}`));
    assert.match(own.hint, /Each needs a repository and a `server` of its own/);
    for (const words of [['restore', 'latest', world.files, '--to', path.join(folder, 'back')], ['drill']]) {
      const ended = await server.run(words);
      assert.equal(ended.code, 1, all(ended));
      assert.match(ended.err, new RegExp(`warning: the last good run here wrote ${mine}, and no run here wrote ${stranger}: does another server write under the same name\\?`));
    }
    await good(world);
    assert.equal((await server.run(['restore', 'latest', world.files, '--to', path.join(folder, 'again')])).code, 0);
  },

  'a repository that moved, and a passphrase that was changed: nothing is stopped, and the hint leads on': async (world) => {
    nearby(world);
    const { server, storage } = world, place = storage.repository('web1');
    await good(world);
    fs.renameSync(place, `${place}-moved`);
    const gone = await server.run();
    expectEnd(world, gone, { code: 2, says: [/the repository cannot be used/, /hint: there is no repository there yet: run `node backup\.js setup`/, /services: nothing was stopped|nothing was stopped/], provenLater: true });
    server.writeSettings({ repository: `${place}-moved` });
    const moved = await server.run();
    expectEnd(world, moved, { code: 2, says: [/hint: the repository is at another place than before.* run `node backup\.js borg info` on a terminal and answer its question/], provenLater: true });
    assert.match(execFileSync(process.execPath, [server.script, 'borg', 'info'], { input: 'y\n', encoding: 'utf8', stdio: ['pipe', 'pipe', 'ignore'] }), /Repository ID/);
    expectEnd(world, await server.run(), { code: 0, provenLater: true });
    await allIsWell(world);
    const passphrase = path.join(server.folder, 'etc/passphrase');
    execFileSync('borg', ['key', 'change-passphrase'], { env: { ...server.borgEnv(), BORG_NEW_PASSPHRASE: 'another one' }, stdio: ['ignore', 'ignore', 'pipe'] });
    const wrong = await server.run();
    expectEnd(world, wrong, { code: 2, says: [/hint: is `passphraseFile` the one that belongs to this key\?/], provenLater: true });
    await allIsWell(world, 0.1);
    fs.writeFileSync(passphrase, 'another one\n');
    expectEnd(world, await server.run(), { code: 0, provenLater: true });
    await allIsWell(world);
  },

  'a clock that was a year ahead for a night: status does not call that recent, and latest is what was written last': async (world) => {
    nearby(world);
    const { server, folder } = world;
    const ahead = await server.run([], clock(world, 365 * DAY));
    expectEnd(world, ahead, { code: 0 });
    const future = server.history().pop().archive, year = new Date().getUTCFullYear() + 1;
    assert.match(future, new RegExp(`^web1-${year}-`));
    const status = await server.run(['status']);
    assert.equal(status.code, 2);
    assert.match(status.out, new RegExp(`^CRITICAL: web1: ${future} bears a time that is still to come`));
    assert.match(status.out, /this server's clock was wrong then, or is now\n[^]*next +look at `date`, and set the clock; then take a backup: node backup\.js --now/);
    await good(world);
    const now = server.history().pop().archive, back = await server.run(['restore', 'latest', world.files, '--to', path.join(folder, 'back'), '--json']);
    assert.equal(back.code, 1, all(back));
    assert.equal(JSON.parse(back.out).archive, now);
    assert.match(back.err, new RegExp(`1 archive bears a time that is still to come, as ${future}: a clock was wrong, there or here\\. Not counting these, the latest is ${now}`));
    const drill = await server.run(['drill', '--json']);
    assert.deepEqual([drill.code, JSON.parse(drill.out).archive], [1, now], drill.err);
    assert.match((await server.run(['status'])).out, /^(OK|WARNING): web1: /);
    assert.match((await server.run(['list'])).out, new RegExp(`^${future} `, 'm'));
    await allIsWell(world, 0.1);
  },

  'a clock that was a year behind for a night: the newest archive is found by what runs remember': async (world) => {
    nearby(world);
    const { server, folder } = world, newer = server.history().pop().archive;
    const behind = await server.run([], clock(world, -365 * DAY));
    expectEnd(world, behind, { code: 0, provenLater: true });
    const older = server.history().pop().archive;
    const status = await server.run(['status']);
    assert.deepEqual([status.code, /^CRITICAL: web1: .* old/.test(status.out)], [2, true], status.out);
    const back = await server.run(['restore', 'latest', world.files, '--to', path.join(folder, 'back')]);
    assert.equal(back.code, 1);
    assert.match(back.err, new RegExp(`the last good run here wrote ${older}, which does not bear the latest time, so ${newer} is taken: a clock was wrong\\. Name the archive`));
    await good(world);
    assert.equal((await server.run(['status'])).code, 0);
    assert.equal((await server.run(['restore', 'latest', world.files, '--to', path.join(folder, 'again')])).code, 0);
  },

  'a host that was renamed goes on under its new name, is told once, and finds its old archives by what list says': async (world) => {
    nearby(world);
    const { server, folder } = world;
    server.writeSettings({ server: '' });
    const as = (name: string, ...words: string[]) => start(['unshare', '--uts', '--', 'sh', '-c', 'hostname "$0" && exec "$@"', name, process.execPath, server.script, ...words]).ended;
    const list = await as('web2', 'list');
    assert.equal(list.out, 'no archives yet\n');
    assert.match(list.err, /no archive here is of web2, but there are some of web1: was this server renamed\? Then write its old name as `server`/);
    assert.match((await as('web2', 'restore', 'latest', '--to', path.join(folder, 'back'))).err, /web1: was this server renamed\?[^]*error: there is no proven archive yet/);
    const first = await as('web2');
    expectEnd(world, first, { code: 1, warns: /this server was called web1 until now, and its archives begin with web2 from here on/ });
    await allIsWell(world);
    expectEnd(world, await as('web2'), { code: 0 });
    await allIsWell(world);
    assert.equal((await as('web2', 'drill')).code, 0);
    server.writeSettings({ server: 'web1' });
    assert.match((await as('web2', 'list')).out, /^web1-.* proven/m);
  },

  'a cluster that was upgraded to a new major version, and a unit that was renamed: nothing is stopped, and what is here is named': async (world) => {
    nearby(world);
    const { server, db } = world;
    execFileSync('mount', ['-t', 'tmpfs', 'tmpfs', '/etc/postgresql']); // this scenario's own
    fs.mkdirSync(`/etc/postgresql/${PG}/main`, { recursive: true });
    fs.writeFileSync(`/etc/postgresql/${PG}/main/postgresql.conf`, `data_directory = '${db.dataDirectory}'\n`);
    const stop = server.settings.stop as unknown[];
    server.writeSettings({ stop: [...stop.slice(0, -1), 'postgres 14/main'] });
    expectEnd(world, await server.run(), { code: 2, says: [/postgres 14\/main: there is no such cluster here/, new RegExp(String.raw`hint: here are: ${PG}/main; write 'postgres ${PG}/main'`), /nothing was stopped/] });
    await allIsWell(world, 0.1);
    server.writeSettings({ stop: [...stop.slice(0, -1), `postgres ${PG}/main`] });
    assert.match((await server.run(['--dry-run'])).out, new RegExp(String.raw`^ {2}postgres ${PG}/main$`, 'm'));
    execFileSync('umount', ['/etc/postgresql']);
    execFileSync('mount', ['-t', 'tmpfs', 'tmpfs', '/run/systemd']);
    fs.mkdirSync('/run/systemd/system'); // as if systemd ran this machine, where no unit has that name any more
    server.writeSettings({ stop: ['service shop', ...stop] });
    const systemctl = wrap(world, 'true', ''), file = path.join(world.folder, 'bin/systemctl');
    fs.writeFileSync(file, '#!/bin/sh\nfor last; do :; done\nprintf "Id=%s.service\\nLoadState=not-found\\nActiveState=inactive\\nTriggeredBy=\\n" "$last"\n', { mode: 0o755 });
    expectEnd(world, await server.run([], systemctl), { code: 2, says: [/service shop: no such unit here \(not-found\)/, /hint: look at `systemctl list-units --all '\*shop\*'`/, /nothing was stopped/] });
    await allIsWell(world, 0.1);
    execFileSync('umount', ['/run/systemd']);
    server.writeSettings({ stop });
    await good(world);
  },
};

scenarios('what people do wrong', import.meta.url, SCENARIOS, 2);
