// Coming back in place: a whole archive, one cluster, one folder, on a machine that runs, on a bare one, and whatever goes wrong.
import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import fs from 'node:fs';
import path from 'node:path';
import { allIsWell, answers, expectEnd, good, held, holdIn, leftProcesses, letGo, nearby, nothingIsLeft, randomFile, scenarios, whatRuns, wrap } from './scenario.ts';
import type { World } from './scenario.ts';
import { stamps, treeFacts } from './night.ts';
import { start, waitFor } from './script.ts';
import type { Ended, Running } from './script.ts';
import { PG } from './cluster.ts';

const all = ({ out, err }: Ended) => out + err;
const sh = (command: string) => execFileSync('sh', ['-c', command], { encoding: 'utf8' });

/** What is in a world now: the rows of every table, every file of the folder. */
const contents = (world: World) => ({ rows: world.db.fingerprint(), files: treeFacts(world.files) });

/** After the backup: rows and tables gone and new, files gone, new and changed. Returns what there was before. */
function damage(world: World): ReturnType<typeof contents> {
  const before = contents(world);
  world.db.sql('postgres', 'delete from nights; create table intruder (n int); insert into intruder values (666)');
  fs.rmSync(path.join(world.files, 'file 1'));
  fs.writeFileSync(path.join(world.files, 'file 2'), 'encrypted, pay here');
  fs.writeFileSync(path.join(world.files, 'new'), 'after the backup');
  return before;
}

const inPlace = (world: World, ...words: string[]) => world.server.run(['restore', 'latest', '--in-place', ...words]);

function restored(ended: Ended, code = 0): string {
  assert.equal(ended.code, code, all(ended));
  assert.doesNotMatch(all(ended), /this is a bug/);
  return all(ended);
}

/** The folders that hold what was there before a restore, and stagings that should be gone. */
const left = (world: World, pattern: string) => execFileSync('find', [world.folder, '-name', pattern, '-prune'], { encoding: 'utf8' }).split('\n').filter((one) => one !== '').sort();

// Holds borg when it is about to extract the files themselves.
const HOLD = 'case " $* " in *" extract --sparse "*) touch "$cd_to/held"; while [ ! -e "$cd_to/go" ]; do sleep 0.02; done;; esac';

/** Run the commands that a restore printed below this line. */
function paste(said: string, below: RegExp): void {
  const lines = said.slice(below.exec(said)!.index).split('\n').slice(1);
  const commands = lines.slice(0, lines.findIndex((line) => !line.startsWith('  '))).join('\n');
  execFileSync('bash', ['-c', commands], { stdio: 'ignore' });
}

/** After a restore that died: all runs again, and nothing is left of it. */
async function settled(world: World): Promise<void> {
  await allIsWell(world);
  assert.deepEqual(left(world, '.cold-backup-restore-*'), []);
}

/** A restore under strace: `start` begins one that is killed as it enters its rename(2) number N, or to which something else happens; `numbers` are those of a whole one that touch a place. */
async function underStrace(world: World) {
  const trace = (words: string[], env?: NodeJS.ProcessEnv) => start(['strace', '--string-limit=500', '--trace=rename', ...words, process.execPath, world.server.script, 'restore', 'latest', '--in-place'], { env });
  const log = path.join(world.folder, 'strace');
  restored(await trace([`--output=${log}`]).ended);
  const renames = fs.readFileSync(log, 'utf8').split('\n').filter((line) => line.startsWith('rename('));
  const numbers = renames.flatMap((line, index) => ([world.files, world.db.dataDirectory].some((place) => new RegExp(`"/proc/self/fd/\\d+/${path.basename(place)}"`).test(line)) ? [index + 1] : [])); // in folders that are held open
  return { numbers, start: (number: number, { env }: { env?: NodeJS.ProcessEnv } = {}, happens = (at: number) => `signal=SIGKILL:when=${at}`) => trace([`--output=${log}`, `--inject=rename:${happens(number)}`], env) };
}

/** When to kill: so many milliseconds after the restore has said this. Half of them in their order, other ones every time; COLD_BACKUP_KILLS=17 takes all. */
const MOMENTS: [after: RegExp, ms: number][] = [[/guard/, 300], [/\$ borg .*extract/, 700], [/\$ sync/, 0], [/\$ \S*app\.sh stop/, 100], [/stopped postgres/, 0], [/had put everything/, 0], [/\$ .*pg_ctl start/, 60], [/started web/, 300]];

function someMoments(half: number): typeof MOMENTS {
  const mine = MOMENTS.filter((_, index) => index % 2 === half), turn = Math.floor(Date.now() / 1000) % 2;
  return Number(process.env.COLD_BACKUP_KILLS ?? 0) >= MOMENTS.length ? mine : mine.filter((_, index) => index % 2 === turn);
}

async function killAt(world: World, moments: typeof MOMENTS): Promise<void> {
  nearby(world);
  const saved = damage(world);
  for (const [index, [after, ms]] of moments.entries()) {
    const damaged = contents(world), run = world.server.start(['restore', 'latest', '--in-place']);
    await waitFor(`the restore says ${after}`, () => after.test(run.out()), 150).catch((error) => { throw new Error(`${run.out()}${run.err()}`, { cause: error }); });
    await new Promise((done) => { setTimeout(done, ms); });
    run.signal('SIGKILL', index % 2 === 0); // alone, or with its process group
    await run.ended;
    await allIsWell(world, 15, 'a guard may watch');
    await waitFor('nothing is left', () => left(world, '.cold-backup-restore-*').length === 0);
    const now = contents(world), isNew = JSON.stringify(now) === JSON.stringify(saved);
    console.log(`note: killed ${ms} ms after ${after}: ${isNew ? 'new' : 'old'}`);
    assert.deepEqual(now, isNew ? saved : damaged, `killed ${ms} ms after ${after}: ${run.out()}`);
    if (isNew) assert.ok(left(world, '*.before-restore-*').length >= 2);
    if (isNew) damage(world);
  }
  restored(await inPlace(world));
  await allIsWell(world);
  assert.deepEqual(contents(world), saved);
}

scenarios('in place', import.meta.url, {
  'after damage everything comes back as it was saved, what was there lies aside, and the printed commands lead back to it': async (world) => {
    nearby(world);
    const saved = damage(world), damaged = contents(world);
    const said = restored(await inPlace(world));
    await allIsWell(world);
    assert.deepEqual(contents(world), saved);
    const asides = left(world, '*.before-restore-*');
    assert.deepEqual(asides.map((one) => one.replace(/\.before-restore-.*/, '')), [world.db.dataDirectory, world.files]);
    assert.deepEqual(left(world, '.cold-backup-restore-*'), []);
    assert.equal(treeFacts(asides[1]!), damaged.files);
    console.log(`note: ${/down [\d.]+ s/.exec(said)?.[0]}`);
    paste(said, /Back to the old ones/);
    await allIsWell(world);
    assert.deepEqual(contents(world), damaged);
    // While it extracts somebody starts a part: it does not go on in the old contents.
    const meanwhile = world.server.start(['restore', 'latest', '--in-place'], wrap(world, 'borg', HOLD));
    await held(world);
    world.idle.startNow();
    letGo(world);
    assert.match(restored(await meanwhile.ended), /started since this restore began, and stopped now: idle\n[^]*\$ \S*idle\.sh stop[^]*started idle/);
    assert.equal(world.idle.running(), true);
    execFileSync(path.join(world.folder, 'idle.sh'), ['stop']);
    await allIsWell(world);
    assert.deepEqual(contents(world), saved);
    await good(world);
  },

  'what a night left down, for its files are damaged, is mended by a restore, which starts it: nobody has to put anything right before': async (world) => {
    nearby(world);
    const saved = contents(world), script = path.join(world.folder, 'app.sh'), broken = path.join(world.folder, 'broken');
    fs.writeFileSync(broken, '');
    fs.writeFileSync(script, fs.readFileSync(script, 'utf8').replace('\n', `\n[ "$1" = start ] && [ -e ${broken} ] && exit 1\n`));
    const night = world.server.start([], wrap(world, 'borg', holdIn('cold')));
    await held(world);
    fs.truncateSync(path.join(world.db.dataDirectory, 'global/pg_control'));
    letGo(world);
    assert.equal((await night.ended).code, 3);
    const refused = await world.server.run(['restore', 'latest', '--in-place', 'postgres 99/nosuch']);
    assert.equal(refused.code, 3, refused.out + refused.err);
    assert.match(refused.err, /99\/nosuch[^\n]*; left stopped by the run of .* and still not running: app, postgres \S+$/m);
    const attempt = start(['flock', path.join(world.server.stateFolder, 'lock'), 'sh', '-c', `touch ${world.folder}/attempt; sleep 1000`]); // as a guard whose attempt takes long
    await waitFor('an attempt is under way', () => fs.existsSync(path.join(world.folder, 'attempt')));
    const waiting = world.server.start(['restore', 'latest', '--in-place']);
    await waitFor('the restore waits', () => /waiting until its guard is not at work/.test(waiting.out()));
    waiting.signal('SIGINT', true); // as Ctrl-C
    assert.match(restored(await waiting.ended, 3), /ended by SIGINT[^]*what an earlier run stopped is still not running; its guard is trying again/);
    attempt.signal('SIGKILL', true);
    const begin = (lines: string) => {
      for (const file of ['held', 'go']) fs.rmSync(path.join(world.folder, file), { force: true });
      return world.server.start(['restore', 'latest', '--in-place'], wrap(world, 'borg', lines));
    };
    const interrupted = begin(`case " $* " in *" --version "*) touch "$cd_to/begun"; while [ ! -e "$cd_to/on" ]; do sleep 0.02; done;; esac\n${HOLD}`);
    await waitFor('the restore has begun', () => fs.existsSync(path.join(world.folder, 'begun')));
    start([script, 'run']); // app runs when the restore looks, and ends while it extracts: it is down all the same
    await waitFor('app runs', () => world.app.running());
    fs.writeFileSync(path.join(world.folder, 'on'), '');
    await held(world);
    execFileSync(script, ['stop']);
    interrupted.signal('SIGINT');
    assert.match(restored(await interrupted.ended, 3), /services: NOT RUNNING: app, "postgres \S+" \(0 parts running\)/);
    const whole = begin(HOLD);
    await held(world);
    fs.rmSync(broken);
    world.app.startNow(); // and this time it comes up meanwhile
    letGo(world);
    const said = restored(await whole.ended);
    assert.match(said, /left stopped by the run of .* and still not running: app, postgres \S+: this restore goes on[^]*stopped now: app\n[^]*started postgres[^]*started app[^]*started web[^]*services: all 3 are running again/);
    await waitFor('the guard of the night has gone', () => leftProcesses().length === 0, 40);
    await allIsWell(world);
    assert.deepEqual(contents(world), saved);
  },

  'what was dropped between passport and copy, and a cluster that lets nobody in, are no failure of a restore': async (world) => {
    nearby(world);
    const flag = path.join(world.folder, 'tidy'), psql = ['psql', '-h', world.db.socketFolder, '-U', 'postgres', '-qc'].join(' ');
    const tidy = { name: 'tidy', running: ['test', '-e', flag], start: ['touch', flag], stop: ['sh', '-c', `${psql} 'drop table if exists passing' postgres && ${psql} 'drop database if exists away' postgres && rm ${flag}`] };
    fs.writeFileSync(flag, '');
    world.db.sql('postgres', 'create table passing as select 1');
    world.db.sql('postgres', 'create database away');
    world.server.writeSettings({ stop: [tidy, `postgres ${world.db.dataDirectory}`] });
    expectEnd(world, await world.server.run(), { code: 0 });
    const said = restored(await inPlace(world), 1);
    for (const words of [/^restored: /m, /database away of \S+ is not there: it was dropped/, /has no table public\.passing, which had 1 rows a while before the copy/]) assert.match(said, words);
    const hba = path.join(world.db.dataDirectory, 'pg_hba.conf'), trusts = fs.readFileSync(hba, 'utf8');
    const reload = () => process.kill(parseInt(fs.readFileSync(path.join(world.db.dataDirectory, 'postmaster.pid'), 'utf8')), 'SIGHUP');
    world.server.writeSettings({ stop: [`postgres ${world.db.dataDirectory}`] });
    fs.writeFileSync(hba, 'local all all scram-sha-256\n');
    reload();
    await waitFor('it lets nobody in', () => !answers(world.db));
    expectEnd(world, await world.server.run(), { code: 1, warns: /the passport lacks all facts/ });
    assert.match(restored(await inPlace(world), 1), /runs, but was not looked through: it lets nobody in/);
    fs.writeFileSync(hba, trusts);
    reload();
    await allIsWell(world);
  },

  'one cluster comes back alone, then one folder: every other part keeps running, and --dry-run changes nothing at all': async (world) => {
    nearby(world);
    const saved = damage(world), damaged = contents(world);
    const [web, app] = whatRuns(world), places = () => [stamps(world.files, world.server.folder, '/var/lib/cold-backup'), fs.readdirSync(world.folder)];
    const before = places();
    const dry = JSON.parse(restored(await world.server.run(['restore', 'latest', '--in-place', '--dry-run', '--json'])));
    restored(await world.server.run(['restore', 'latest', '--in-place', 'folder', world.files, '--dry-run']));
    assert.deepEqual(places(), before, 'a dry run writes nothing');
    assert.deepEqual(dry.parts.map((part: any) => part.name), ['web', 'app', `postgres ${world.db.dataDirectory}`]);
    assert.deepEqual(dry.swaps.map((one: any) => one.place), [world.files, world.db.dataDirectory]);
    assert.deepEqual([...new Set(dry.commands.map((one: any) => one.step))], ['stage', 'extract', 'sync', 'stop', 'aside', 'place', 'start']);
    const unknown = await inPlace(world, 'postgres', `${PG}/other`);
    assert.equal(unknown.code, 64);
    assert.match(unknown.err, new RegExp(`it holds: postgres ${world.db.dataDirectory}, ${world.files}`));

    restored(await inPlace(world, 'postgres', world.db.dataDirectory));
    await allIsWell(world);
    assert.deepEqual(contents(world), { rows: saved.rows, files: damaged.files });
    assert.deepEqual(whatRuns(world).slice(0, 2), [web, app]);
    const db = whatRuns(world)[2];
    restored(await inPlace(world, world.files));
    await allIsWell(world);
    assert.deepEqual(contents(world), saved);
    assert.deepEqual([whatRuns(world)[2], whatRuns(world)[0] === web], [db, false], 'a folder\'s users were stopped, the database was not');
  },

  'a mount point stays where it is: of a data directory, of a folder, and of a disk below a folder': async (world) => {
    nearby(world);
    const sub = path.join(world.files, 'sub', 'disk');
    fs.mkdirSync(sub, { recursive: true });
    fs.writeFileSync(path.join(sub, 'deep'), 'on a disk of its own, later');
    const own = path.join(sub, 'restored-photos'); // a name like those that a restore makes
    fs.mkdirSync(own);
    fs.writeFileSync(path.join(own, 'photo'), 'as it was saved');
    fs.chownSync(path.join(world.files, 'sub'), 1234, 1234);
    await good(world);
    const saved = contents(world);
    world.db.stop();
    for (const [folder, text] of [[world.db.dataDirectory, 'a new disk'], [sub, 'something else']] as const) { // the machine has other disks now
      fs.rmSync(folder, { recursive: true, force: true });
      fs.mkdirSync(folder);
      execFileSync('mount', ['-t', 'tmpfs', '-o', 'mode=755', 'tmpfs', folder]);
      fs.writeFileSync(path.join(folder, 'old'), text);
    }
    fs.chownSync(path.join(world.files, 'sub'), 0, 0);
    restored(await inPlace(world));
    await allIsWell(world);
    assert.deepEqual(world.db.fingerprint(), saved.rows);
    assert.equal(fs.statSync(world.db.dataDirectory).mode & 0o777, 0o700);
    assert.equal(fs.statSync(path.join(world.files, 'sub')).uid, 1234);
    for (const folder of [world.db.dataDirectory, sub]) {
      sh(`mountpoint ${folder}`);
      assert.deepEqual(fs.readdirSync(folder).filter((name) => /restore/.test(name) && name !== 'restored-photos').flatMap((name) => fs.readdirSync(path.join(folder, name))), ['old']);
    }
    assert.equal(fs.readFileSync(path.join(sub, 'deep'), 'utf8'), 'on a disk of its own, later');
    assert.deepEqual(fs.readdirSync(own), ['photo']);
    world.db.sql('postgres', 'insert into nights values (99)');
    const newer = world.db.fingerprint(), image = path.join(world.files, 'image');
    fs.renameSync(path.join(own, 'photo'), path.join(own, 'renamed'));
    fs.mkdirSync(image);
    execFileSync('mount', ['-t', 'tmpfs', '-o', 'ro', 'tmpfs', image]); // as an ISO is, or another machine's export
    const said = restored(await inPlace(world), 1); // once more: what lies aside already stays
    assert.match(said, new RegExp(`${image} is a mount point where nothing can be written: it stays as it is`));
    sh(`mountpoint ${image} && umount ${image}`);
    assert.deepEqual([world.db.fingerprint(), fs.readdirSync(own)], [saved.rows, ['photo']]);
    assert.equal(fs.readdirSync(sub).filter((name) => name.startsWith('before-restore-')).length, 2);
    paste(said, /Back to the old ones/);
    await allIsWell(world);
    assert.deepEqual([world.db.fingerprint(), fs.readdirSync(own)], [newer, ['renamed']]);
    execFileSync('umount', [sub]);
  },

  'without room for both, while another run goes on, or when a copy of the running system is named: nothing is touched': async (world) => {
    nearby(world);
    const saved = damage(world), damaged = contents(world), running = whatRuns(world);
    const lock = fs.openSync(path.join(world.server.stateFolder, 'lock'), 'r+');
    execFileSync('flock', ['3'], { stdio: ['ignore', 'ignore', 'ignore', lock] });
    assert.match(restored(await inPlace(world), 75), /another run is going on/);
    fs.closeSync(lock);
    const warm = world.server.archives().find((name) => name.endsWith('-warm.checkpoint'))!;
    for (const way of [['--in-place'], ['--to', path.join(world.folder, 'x')]]) assert.match(restored(await world.server.run(['restore', warm, ...way]), 2), /is a copy of the running system/);
    execFileSync('mount', ['-t', 'tmpfs', 'tmpfs', '/usr/lib/postgresql']); // in this scenario's own world
    const plan = await inPlace(world, '--dry-run', '--json'), refused = restored(await inPlace(world), 2);
    execFileSync('umount', ['/usr/lib/postgresql']);
    assert.equal(plan.code, 2, plan.err);
    const [{ verdict, about, mend }] = JSON.parse(plan.out).findings;
    assert.deepEqual([verdict, about], ['refused', 'PostgreSQL']);
    assert.match(mend.join(), new RegExp(String.raw`postgresql-${PG}`));
    assert.match(refused, new RegExp(String.raw`refused +\S+: PostgreSQL +${PG} +none[^]*mend: .*postgresql-${PG}[^]*cannot work on this machine`));
    const { blocks, bfree, bsize } = fs.statfsSync(world.folder);
    execFileSync('mount', ['-o', `remount,size=${(blocks - bfree) * bsize + 30_000_000}`, world.folder]);
    const said = restored(await inPlace(world), 2);
    execFileSync('mount', ['-o', 'remount,size=50%', world.folder]);
    assert.match(said, /free, .* are needed beside the old contents[^]*hint: make room, or do it by hand[^]*web\.sh stop[^]*borg .*extract[^]*web\.sh start/);
    assert.deepEqual([contents(world), whatRuns(world), left(world, '*restore-*')], [damaged, running, []]);
    assert.notDeepEqual(saved, damaged);
  },

  'a part that does not start again: exit code 3, all others run, and the printed commands lead back to what ran': async (world) => {
    nearby(world);
    damage(world);
    const damaged = contents(world), script = path.join(world.folder, 'web.sh'), broken = path.join(world.folder, 'broken');
    fs.writeFileSync(broken, '');
    fs.writeFileSync(script, fs.readFileSync(script, 'utf8').replace('\n', `\n[ "$1" = start ] && [ -e ${broken} ] && exit 1\n`));
    const said = restored(await inPlace(world), 3);
    for (const words of [/not running: web/, /The contents of web1-.* are in place/]) assert.match(said, words);
    assert.deepEqual([world.web.running(), world.app.running(), answers(world.db)], [false, true, true]);
    fs.rmSync(broken);
    paste(said, /Back to the old ones/);
    await allIsWell(world, 40);
    assert.deepEqual(contents(world), damaged);
  },

  'a folder below a linked folder is saved once, where it really lies, and comes back there by either name': async (world) => {
    nearby(world);
    const real = path.join(world.folder, 'real/uploads'), given = path.join(world.folder, 'linked/uploads'), file = path.join(real, 'one');
    fs.mkdirSync(real, { recursive: true });
    fs.symlinkSync(path.join(world.folder, 'real'), path.dirname(given));
    fs.writeFileSync(file, 'as saved');
    world.server.writeSettings({ folders: [given, path.dirname(real)], exclude: [`${given}/cache`], warmPass: false });
    expectEnd(world, await world.server.run(), { code: 1, warns: /`exclude` .*linked\/uploads\/cache leaves nothing out: .*linked\/uploads leads to .*real\/uploads/ });
    for (const part of ['', `folder ${given}`, `folder ${path.dirname(real)}`]) {
      fs.writeFileSync(file, 'damaged');
      restored(await inPlace(world, ...(part === '' ? [] : [part])));
      assert.equal(fs.readFileSync(file, 'utf8'), 'as saved', part);
    }
    assert.ok(fs.lstatSync(path.dirname(given)).isSymbolicLink());
    // An archive of before that was so: the plan names a file by both paths, and borg has it by one.
    const copy = path.join(world.folder, 'copy'), name = 'web1-2026-01-05T00:00:00', { server } = world, record = path.join(copy, 'record/manifest.json');
    fs.mkdirSync(copy);
    execFileSync('borg', ['extract', `::${server.history().pop().archive}`], { cwd: copy, env: server.borgEnv() });
    fs.symlinkSync('real', copy + path.dirname(given));
    const manifest = JSON.parse(fs.readFileSync(record, 'utf8')), root = manifest.plan.roots.find((one: any) => one.path === path.dirname(real));
    manifest.plan.roots = [...manifest.plan.roots.filter((one: any) => !one.path.startsWith(root.path)), { ...root, path: path.join(given, 'one') }, { ...root, path: file }];
    fs.writeFileSync(record, JSON.stringify({ ...manifest, archive: name }));
    execFileSync('borg', ['create', `::${name}`, 'record', ...manifest.plan.roots.map((one: any) => one.path.slice(1))], { cwd: copy, env: server.borgEnv(), stdio: 'ignore' });
    fs.writeFileSync(file, 'damaged');
    restored(await server.run(['restore', name, '--in-place']), 1); // it has no proof
    assert.equal(fs.readFileSync(file, 'utf8'), 'as saved');
    await allIsWell(world, 40);
  },

  'a bare machine needs nothing but repository, key file and passphrase: the archive tells the rest': async (world) => {
    nearby(world);
    const saved = contents(world);
    for (const part of [world.web, world.app]) part.stopNow();
    world.db.stop();
    for (const gone of [path.dirname(world.db.dataDirectory), world.files, world.server.stateFolder, path.join(world.server.folder, 'backup.settings.js')]) fs.rmSync(gone, { recursive: true });
    const here = (...words: string[]) => start([process.execPath, world.server.script, 'restore', 'latest', '--in-place', ...words], { cwd: world.folder }).ended; // relative paths, as people type them
    assert.match(restored(await here('--key-file', 'key'), 64), /--key-file key: it goes with --repository/);
    assert.match(restored(await here('--repository', world.storage.repository('web1'), '--key-file', 'kee'), 64), /--key-file kee: there is no such file/);
    const said = restored(await here('--repository', world.storage.repository('web1'), '--key-file', 'key', '--passphrase-file', 'passphrase'));
    assert.match(said, /no command of an archive is run: web, app, idle[^]*started postgres/);
    assert.deepEqual(contents(world), saved);
    assert.equal(fs.statSync(path.dirname(world.db.dataDirectory)).mode & 0o777, 0o755);
    assert.deepEqual([world.web.running(), world.app.running()], [false, false]);
    assert.ok(fs.existsSync('/var/lib/cold-backup/last-restore.txt'));
    world.db.stop();
  },

  // rename(2) is the only step of a swap: between two of them lie all the states there are. Before the first, and after the last: below.
  'killed between the renames of the swap, alone or with its guard: within 15 s the old contents run, whole, and a second restore works': async (world) => {
    nearby(world);
    const saved = damage(world), { numbers, start: startKilled } = await underStrace(world), [, place, ...others] = numbers;
    await settled(world);
    assert.deepEqual(contents(world), saved);
    assert.equal(others.length, 2, 'four renames for two places');
    damage(world);
    const damaged = contents(world), dies = async (run: Running) => assert.equal((await run.ended).code, 137, run.out() + run.err());
    for (const number of others) {
      await dies(startKilled(number));
      await settled(world);
      assert.deepEqual(contents(world), damaged, `killed before rename ${number}`);
    }
    const heldRun = startKilled(place!, wrap(world, 'borg', HOLD));
    await held(world);
    process.kill(JSON.parse(fs.readFileSync(path.join(world.server.stateFolder, 'guard.json'), 'utf8')).pid, 'SIGKILL');
    letGo(world);
    await dies(heldRun);
    const ledger = JSON.parse(fs.readFileSync(path.join(world.server.stateFolder, 'ledger.json'), 'utf8'));
    assert.equal(ledger.howTo.filter((line: string) => line.startsWith('the old contents of ')).length, 2, 'a person finds the way without us');
    assert.deepEqual([world.web.running(), answers(world.db), fs.existsSync(world.files)], [false, false, false]);
    // A night that finds the disk read-only (until its first rename has failed) tells what is down, as one that cannot start it.
    const night = await start(['strace', '--output=/dev/null', '--trace=rename', '--inject=rename:error=EROFS:when=1', process.execPath, world.server.script]).ended;
    expectEnd(world, night, { code: 3, says: [/error: left stopped by the run of \S+ and not to be started: EROFS/, /services: NOT RUNNING: web, app, /], error: /EROFS/ });
    const said = restored(await world.server.run(['recover']));
    assert.match(said, /was not through: the old contents are in place[^]*services: all 3 are running again/);
    await settled(world);
    assert.deepEqual(contents(world), damaged);
    restored(await inPlace(world));
    await settled(world);
    assert.deepEqual(contents(world), saved);
  },

  'the disk fails in the middle of the swap, and so does the way back: what is needed for it stays, and the old contents run as soon as the disk works': async (world) => {
    nearby(world);
    const { numbers, start: startFailing } = await underStrace(world);
    damage(world);
    const damaged = contents(world), ended = await startFailing(numbers[3]!, {}, (at) => `error=EIO:when=${at}+`).ended; // the first place is new, the second one free; the guard's disk works
    const said = restored(ended, 3);
    for (const words of [/services: NOT RUNNING: web, app, /, /NOT GOOD: it is undecided whether old or new contents are in place/]) assert.match(said, words);
    assert.doesNotMatch(said, /\$ rm -rf/);
    await allIsWell(world, 30);
    await settled(world);
    assert.deepEqual(contents(world), damaged);
  },

  'what comes back to one disk at two mount points is added up; a library that only wants to be preloaded is not missing': async (world) => {
    nearby(world);
    randomFile(world, 'big', 30);
    world.db.sql('postgres', "create function preloaded() returns int language c as '$libdir/plpgsql', 'plpgsql_call_handler'; update pg_proc set probin = '$libdir/pg_cron' where proname = 'preloaded'");
    await good(world);
    execFileSync('mount', ['--bind', world.files, world.files]);
    const dry = () => inPlace(world, '--dry-run', '--json'), plan = JSON.parse(restored(await dry())), needed = plan.swaps.map((one: any) => one.bytes + one.files * 4096);
    assert.equal(plan.stagings.length, 2);
    const { blocks, bavail, bsize } = fs.statfsSync(world.folder);
    execFileSync('mount', ['-o', `remount,size=${(blocks - bavail) * bsize + 64e6 + Math.max(...needed) + Math.min(...needed) / 2}`, world.folder]);
    assert.match(restored(await dry(), 2), /no room for old and new contents together/);
    execFileSync('mount', ['-o', 'remount,size=50%', world.folder]);
    execFileSync('umount', [world.files]);
    assert.match(restored(await inPlace(world)), /1 table with the recorded rows/);
    await allIsWell(world);
  },

  'what does not answer may run all the same, and what the restore itself needs stays: nothing is touched': async (world) => {
    nearby(world);
    const settings = (container: boolean) => ({ stop: [world.web.entry, { ...world.idle.entry, name: 'gone', running: [path.join(world.folder, 'gone.sh')] }, ...(container ? ['container shop'] : []), `postgres ${world.db.dataDirectory}`], repository: world.storage.repository('web1') });
    const dry = (options: { env?: NodeJS.ProcessEnv } = {}) => world.server.run(['restore', 'latest', '--in-place', '--dry-run'], options);
    world.server.writeSettings(settings(true)); // Docker is somewhere in these scenarios, and silent
    assert.match(restored(await dry(), 2), /Docker does not answer/);
    assert.match(restored(await dry(wrap(world, 'docker', 'exit 127')), 1), /not here: gone: [^]*not here: container shop: there is no such container/);
    fs.chmodSync(path.join(world.files, 'file 3'), 0o600); // or it would be refused for a key
    world.server.writeSettings({ ...settings(false), sshKey: path.join(world.files, 'file 3') });
    assert.match(restored(await dry(), 1), new RegExp(`${world.files} holds what this restore itself needs`));
    await allIsWell(world);
  },

  ...Object.fromEntries([0, 1].map((half) => [
    `killed at any moment, part ${half + 1}: within 15 s either the old contents run or the new ones, whole, and the next restore works`,
    (world: World) => killAt(world, someMoments(half)),
  ])),

  'an archive that an intruder wrote runs no command of its own, and nothing of it comes to lie elsewhere': async (world) => {
    nearby(world);
    const saved = contents(world), lure = path.join(world.folder, 'lure'), pwned = path.join(world.folder, 'pwned');
    const newest = world.server.archives().filter((name) => /^web1-[^w]*$/.test(name)).pop();
    fs.mkdirSync(path.join(lure, 'record'), { recursive: true });
    fs.mkdirSync(path.join(lure, world.files), { recursive: true });
    fs.mkdirSync(path.join(world.folder, 'victim'));
    fs.symlinkSync(path.join(world.folder, 'victim'), path.join(lure, world.files, 'link'));
    fs.writeFileSync(path.join(lure, 'record/listing'), '');
    const touch = ['touch', pwned], { server } = world, manifest = JSON.parse(server.borg('extract', '--stdout', `::${newest}`, 'record/manifest.json'));
    let number = 0;
    const attempt = async (change: (one: any) => void, files: string[], bare: boolean) => {
      const one = structuredClone(manifest), name = `web1-2026-01-01T00:00:0${number++}`;
      change(one);
      fs.writeFileSync(path.join(lure, 'record/manifest.json'), JSON.stringify(one));
      execFileSync('borg', ['create', `::${name}`, 'record', ...files], { cwd: lure, env: server.borgEnv(), stdio: 'ignore' });
      const words = bare ? ['--repository', world.storage.repository('web1'), '--key-file', path.join(world.folder, 'key'), '--passphrase-file', path.join(world.folder, 'passphrase')] : [];
      const ended = await server.run(['restore', name, '--in-place', ...words]);
      assert.equal(fs.existsSync(pwned), false, all(ended));
      assert.deepEqual(fs.readdirSync(path.join(world.folder, 'victim')), [], all(ended));
      assert.doesNotMatch(all(ended), /this is a bug/);
      return ended;
    };
    const onlyFolder = (one: any) => { one.plan.roots = [{ path: world.files, why: 'folder', strict: false }]; one.plan.clusters = []; };
    for (const root of ['/etc/../root', '/etc']) assert.ok([2, 64].includes((await attempt((one) => { onlyFolder(one); one.plan.roots[0].path = root; }, [], false)).code), root);
    assert.match((await attempt((one) => { onlyFolder(one); one.plan.roots[0].why = 'volume --help'; }, [], false)).err, /cannot be trusted/);
    // A link, and in a second archive entry a file that borg would write through it.
    fs.mkdirSync(path.join(lure, 'second', world.files, 'link'), { recursive: true });
    fs.writeFileSync(path.join(lure, 'second', world.files, 'link', 'stray'), 'through the link');
    const tar = path.join(world.folder, 'lure.tar');
    fs.writeFileSync(path.join(lure, 'record/manifest.json'), JSON.stringify((() => { const one = structuredClone(manifest); onlyFolder(one); return one; })()));
    sh(`cd ${lure} && tar -cf ${tar} record ${world.files.slice(1)} && cd second && tar -rf ${tar} ${world.files.slice(1)}/link/stray`);
    execFileSync('borg', ['import-tar', '::web1-2026-01-02T00:00:00', tar], { env: server.borgEnv(), stdio: 'ignore' });
    const through = await server.run(['restore', 'web1-2026-01-02T00:00:00', '--in-place']);
    assert.match(restored(through, 2), /lies below .*, a link/);
    assert.deepEqual(fs.readdirSync(path.join(world.folder, 'victim')), []);
    // What it says of parts: its commands are told, its names must look like names. The folder itself does come back.
    const parts = await attempt((one) => {
      onlyFolder(one);
      one.plan.parts = [['own', 'command'], ['service --now x', 'service'], ['container -v', 'container'], ['postgres -x/y', 'postgres']].map(([name, kind], group) => ({ name, kind, group, wasRunning: true, stop: touch, start: touch, running: touch }));
    }, [world.files.slice(1)], true);
    assert.match(restored(parts, 1), /no command of an archive is run: own, "service --now x", "container -v", "postgres -x\/y"/);
    assert.equal(fs.readlinkSync(path.join(world.files, 'link')), path.join(world.folder, 'victim'));
    assert.deepEqual(world.db.fingerprint(), saved.rows);
    await nothingIsLeft(world);
  },
}, 2); // they work more than they wait
