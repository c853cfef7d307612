// Weeks of nights on one server. Each night something goes wrong, or nothing: which, and at which moment, is a matter of the seed. The
// clock of a night is given to the programs alone (libfaketime, preloaded into script, borg and the storage's borg: their own idea of
// now is what counts here, and no code of the product has to know); the machine's clock stays. Data change by day, and by a writer up
// to the moment it is stopped. Just before PostgreSQL stops, the part that is stopped before it writes down what there is. In the end
// every archive that counts is extracted with plain borg, PostgreSQL starts on it, and it has to hold exactly that.
import assert from 'node:assert/strict';
import { execFileSync, spawnSync } from 'node:child_process';
import fs from 'node:fs';
import net from 'node:net';
import path from 'node:path';
import { allIsWell, provenArchives } from './scenario.ts';
import type { World } from './scenario.ts';
import { randomBy } from './ending.ts';
import { powerOff } from './kill.ts';
import { makeOperator } from './operator.ts';
import { makeDaemon, waitFor } from './script.ts';
import type { Ended, Running } from './script.ts';

const FAKETIME = '/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1'.replace('x86_64', process.arch === 'arm64' ? 'aarch64' : 'x86_64');
const RELAY_PORT = 2223, DAY_MS = 86_400_000, YEAR_MS = 365 * DAY_MS, HOUR_MS = 3_600_000;
const MEGABYTE = 1 << 20;
// All rows of all tables of a database in one line.
const CONTENT = `select string_agg(relname || ' ' || (xpath('/row/c/text()', query_to_xml(format('select count(*) || '' '' || coalesce(sum(hashtextextended(t::text, 0)), 0) as c from %I t', relname), false, true, '')))[1]::text, ', ' order by relname)
  from pg_class where relkind = 'r' and relnamespace = 'public'::regnamespace`.replace(/\s+/g, ' ');

type Place = { world: World; clock: string; storageClock: string; relay: Relay; writer: ReturnType<typeof makeDaemon>; expected: string; fragile: string; hosts: string };
type Chance = (words: string) => number;
/** What goes wrong in a night. set: before the run; during: at some moment of it; mend: what people or time put right; expects: how the run may end; killed: it may have no word in that. */
type Fault = { name: string; set?: (place: Place, chance: Chance) => void; during?: (place: Place, run: Running, chance: Chance) => Promise<void> | void; mend?: (place: Place) => Promise<void> | void; expects: 'good' | 'failed' | 'any'; killed?: boolean };

type Relay = { cut: () => void; hold: (isHeld: boolean) => void; open: () => void };

/** The line to the storage, which can be cut and held. */
async function makeRelay(target: number): Promise<Relay> {
  let isOpen = true;
  const lines = new Set<net.Socket>();
  const server = net.createServer({ allowHalfOpen: true }, (near) => {
    if (!isOpen) return near.resetAndDestroy();
    const far = net.connect({ port: target, host: '127.0.0.1', allowHalfOpen: true });
    for (const [from, to] of [[near, far], [far, near]] as const) {
      lines.add(from);
      from.on('error', () => to.destroy()).on('close', () => { lines.delete(from); to.destroy(); });
      from.pipe(to);
    }
  });
  await new Promise<void>((resolve) => { server.listen(RELAY_PORT, '127.0.0.1', resolve); });
  return {
    cut: () => { isOpen = false; for (const one of lines) one.resetAndDestroy(); },
    hold: (isHeld) => { for (const one of lines) if (isHeld) one.pause(); else one.resume(); },
    open: () => { isOpen = true; },
  };
}

const mountSmall = (folder: string, megabytes: number) => { // with what lies there
  execFileSync('sh', ['-ec', `mkdir -p "$0.all" && cp -a "$0/." "$0.all" && mount -t tmpfs -o mode=700,size=${megabytes}M tmpfs "$0" && cp -a "$0.all/." "$0" && rm -r "$0.all"`, folder]);
};
const fill = (folder: string, leave: number) => {
  const { bavail, bsize } = fs.statfsSync(folder);
  execFileSync('sh', ['-c', 'head -c "$1" /dev/zero > "$0/filler" || true', folder, String(Math.max(0, bavail * bsize - leave))], { stdio: 'ignore' });
};
const free = (folder: string) => fs.rmSync(path.join(folder, 'filler'), { force: true });
export const atClock = (file: string, ms: number) => fs.writeFileSync(file, `${ms < 0 ? '-' : '+'}${Math.abs(Math.round(ms / 1000))}\n`);
export const faked = (clock: string) => ({ LD_PRELOAD: FAKETIME, FAKETIME_TIMESTAMP_FILE: clock, FAKETIME_NO_CACHE: '1', FAKETIME_DONT_FAKE_MONOTONIC: '1', DONT_FAKE_MONOTONIC: '1', NO_FAKE_STAT: '1' });

/** Processes of the server's own borg. */
function borgs(): number[] {
  return fs.readdirSync('/proc').filter((pid) => /^\d+$/.test(pid)).map(Number).filter((pid) => {
    try {
      const line = fs.readFileSync(`/proc/${pid}/cmdline`, 'utf8').replaceAll('\0', ' ');
      return /^\S*python3? \S*borg /.test(line) && !/ serve/.test(line);
    } catch {
      return false;
    }
  });
}

const MOMENTS = [/plan: stop/, /"kind":"warm"|\{"format":1,"kind":"warm"/, /backup\.js guard/, /stopped web/, /stopped app/, /pg_ctl stop/, /stopped postgres/, /started postgres/, /started web/, /::proven-/];

/** Wait for one of the moments of a run, and a little more. False when it has ended before. */
async function atSomeMoment(run: Running, chance: Chance, moments = MOMENTS): Promise<boolean> {
  const moment = moments[Math.floor(chance('moment') * moments.length)]!;
  let hasEnded = false;
  void run.ended.then(() => { hasEnded = true; });
  await waitFor(`the run says ${moment}`, () => hasEnded || moment.test(run.out()));
  await new Promise((done) => { setTimeout(done, chance('later') * 400); }); // a moment by chance, not a wait for something
  return !hasEnded;
}

const shift = (file: string, ms: number) => atClock(file, Number(fs.readFileSync(file, 'utf8')) * 1000 + ms);
const repositories = ({ world }: Place) => path.join(world.storage.folder, 'repositories');
const keyFile = ({ world }: Place) => String(world.server.settings.keyFile);

const FAULTS: Fault[] = [
  { name: 'nothing', expects: 'good' },
  { name: 'borg is killed', expects: 'any', during: async (place, run, chance) => { if (await atSomeMoment(run, chance)) borgs().forEach((pid) => { try { process.kill(pid, 'SIGKILL'); } catch { /* it ended */ } }); } },
  { name: 'the line is cut', expects: 'any', during: async ({ relay }, run, chance) => { if (await atSomeMoment(run, chance)) relay.cut(); }, mend: ({ relay }) => relay.open() },
  { name: 'the line is silent for three seconds', expects: 'good', during: async ({ relay }, run, chance) => {
    if (!await atSomeMoment(run, chance)) return;
    relay.hold(true);
    await new Promise((done) => { setTimeout(done, 3000); });
    relay.hold(false);
  } },
  { name: 'the storage is full', expects: 'failed', set: (place) => fill(repositories(place), 200_000), mend: (place) => free(repositories(place)) },
  { name: 'the storage fills up in mid run', expects: 'any', during: async (place, run, chance) => { if (await atSomeMoment(run, chance)) fill(repositories(place), 0); }, mend: (place) => free(repositories(place)) },
  { name: 'the power goes', expects: 'any', killed: true, during: async (place, run, chance) => { if (await atSomeMoment(run, chance)) powerOff(place.world, { name: '' }); }, mend: async ({ world, writer, clock }) => {
    const ended = await world.server.run(['recover'], { env: faked(clock) }); // as the @reboot line has it
    assert.equal(ended.code, 0, ended.out + ended.err);
    for (const one of [world.web, world.app, writer].filter(({ running }) => !running())) one.startNow(); // as their units do at boot
    if (!answersNow(world)) world.db.start();
  } },
  { name: 'a part does not start at the first attempt', expects: 'any', set: ({ fragile }) => fs.writeFileSync(fragile, '') },
  { name: 'it is started twice', expects: 'good', during: async ({ world }, run, chance) => {
    if (!await atSomeMoment(run, chance, MOMENTS.slice(0, -2))) return;
    const second = await world.server.run();
    assert.equal(second.code, 75, second.out + second.err);
  } },
  { name: 'the clock jumps by an hour', expects: 'any', during: async ({ clock }, run, chance) => { if (await atSomeMoment(run, chance)) shift(clock, chance('which way') < 0.5 ? HOUR_MS : -HOUR_MS); } },
  { name: 'the clock jumps by a year', expects: 'any', killed: true, during: async ({ clock }, run, chance) => { if (await atSomeMoment(run, chance)) shift(clock, chance('which way') < 0.5 ? YEAR_MS : -YEAR_MS); } },
  { name: 'the clock is a year ahead', expects: 'any', set: ({ clock }) => shift(clock, YEAR_MS) },
  { name: 'the local disk is full', expects: 'failed', set: ({ world }) => fill(world.server.stateFolder, 20e6), mend: ({ world }) => free(world.server.stateFolder) },
  { name: 'the local disk fills up in mid run', expects: 'any', during: async ({ world }, run, chance) => { if (await atSomeMoment(run, chance)) fill(world.server.stateFolder, 0); }, mend: ({ world }) => free(world.server.stateFolder) },
  { name: 'the kernel kills the script for memory', expects: 'any', killed: true, during: async (place, run, chance) => { if (await atSomeMoment(run, chance)) run.signal('SIGKILL'); } },
  { name: 'the state folder is read-only', expects: 'any', during: async ({ world }, run, chance) => {
    if (await atSomeMoment(run, chance)) execFileSync('sh', ['-ec', 'mount --bind "$0" "$0" && mount -o remount,bind,ro "$0"', world.server.stateFolder]);
  }, mend: ({ world }) => execFileSync('sh', ['-c', 'while mountpoint -q "$0" && ! touch "$0/.writable" 2>/dev/null; do umount --lazy "$0"; done; rm -f "$0/.writable"', world.server.stateFolder]) && undefined },
  { name: 'names of machines are not found', expects: 'failed', set: ({ hosts }) => fs.writeFileSync(hosts, '127.0.0.1 localhost\n'), mend: ({ hosts }) => fs.writeFileSync(hosts, HOSTS) },
  { name: 'others can read the key file', expects: 'failed', set: (place) => fs.chmodSync(keyFile(place), 0o644), mend: (place) => fs.chmodSync(keyFile(place), 0o600) },
  { name: 'the key file is gone', expects: 'failed', set: (place) => fs.renameSync(keyFile(place), `${keyFile(place)}.away`), mend: (place) => fs.renameSync(`${keyFile(place)}.away`, keyFile(place)) },
];
const HOSTS = '127.0.0.1 localhost storage.test\n';

const answersNow = ({ db }: World): boolean => {
  try { return db.sql('postgres', 'select 1') === '1'; } catch { return false; }
};

/** The server of the scenarios, with clocks, a writer, a storage at the end of a line, and disks of its own for the repository and the state folder. */
async function makePlace(world: World): Promise<Place> {
  const { folder, storage, server, db } = world, file = (name: string) => path.join(folder, name);
  const clock = file('clock'), storageClock = file('storage-clock'), expected = file('expected'), fragile = file('fragile'), hosts = file('hosts');
  for (const one of [clock, storageClock]) atClock(one, 0);
  fs.writeFileSync(hosts, HOSTS);
  execFileSync('mount', ['--bind', hosts, '/etc/hosts']);
  const config = path.join(storage.folder, 'sshd_config'), variables = Object.entries(faked(storageClock)).map(([name, value]) => `${name}=${value}`).join(' ');
  fs.writeFileSync(config, fs.readFileSync(config, 'utf8').replace('SetEnv ', `SetEnv ${variables} `));
  mountSmall(path.join(storage.folder, 'repositories'), 400);
  mountSmall(server.stateFolder, 110);
  storage.stop();
  await storage.start();
  const relay = await makeRelay(storage.port), known = String(server.settings.knownHostsFile);
  fs.appendFileSync(known, fs.readFileSync(known, 'utf8').replaceAll('[127.0.0.1]:2222', `[storage.test]:${RELAY_PORT}`));
  const psql = `runuser -u ${db.owner} -- psql -X -q -A -t -h ${db.socketFolder} -p ${db.port} -d postgres`;
  const writer = makeDaemon(folder, 'writer', { work: `${psql} -c "insert into entries select g, md5(random()::text) from generate_series(1, 20) g" 2>/dev/null; date >> ${world.files}/journal` });
  db.sql('postgres', 'create table entries (n int, word text)');
  fs.writeFileSync(file('note.sh'), `#!/bin/sh
# Write down what there is, then stop. Between two runs the part that is stopped here has nothing else to do.
rows=$(${psql} -c "${CONTENT}")
files=$(cd ${world.files} && find . -type f -print0 | sort -z | xargs -0 sha256sum | sha256sum)
printf '%s\\n%s\\n' "$rows" "$files" > ${expected}
exec ${file('app.sh')} stop\n`, { mode: 0o755 });
  fs.writeFileSync(file('web-start.sh'), `#!/bin/sh\nif [ -e ${fragile} ]; then rm ${fragile}; echo "not today" >&2; exit 1; fi\nexec ${file('web.sh')} start\n`, { mode: 0o755 });
  server.writeSettings({
    repository: storage.url('web1').replace(/127\.0\.0\.1:\d+/, `storage.test:${RELAY_PORT}`), warmPass: true, maxAgeHours: 26,
    stop: [writer.entry, { ...world.web.entry, start: [file('web-start.sh')] }, { ...world.app.entry, stop: [file('note.sh')] }, world.idle.entry, `postgres ${db.dataDirectory}`],
  });
  fs.rmSync(path.join(server.stateFolder, 'borg'), { recursive: true, force: true }); // there borg remembers where it was
  writer.startNow();
  return { world, clock, storageClock, relay, writer, expected, fragile, hosts };
}

/** A working day: rows and files come, change and go; now and then a table. */
function work({ world }: Place, night: number, chance: Chance): void {
  const rows = 200 + Math.floor(chance('rows') * 800);
  world.db.sql('postgres', `insert into entries select g, md5((g * ${night})::text) from generate_series(1, ${rows}) g; update entries set word = upper(word) where n % 17 = ${night % 17}; delete from entries where n % 97 = ${night % 97}`);
  if (night % 4 === 1) world.db.sql('postgres', `create table month_${night} as select * from entries limit 500`);
  if (night % 7 === 6) world.db.sql('postgres', 'vacuum full entries');
  for (let number = 0; number < 5; number++) fs.writeFileSync(path.join(world.files, `file ${Math.floor(chance(`file ${number}`) * 60)}`), `night ${night}\n`.repeat(1 + Math.floor(chance(`length ${number}`) * 5000)));
  fs.writeFileSync(path.join(world.files, 'picture'), execFileSync('head', ['-c', String(Math.floor(chance('picture') * MEGABYTE)), '/dev/urandom']));
  fs.rmSync(path.join(world.files, `file ${Math.floor(chance('gone') * 60)}`), { force: true });
}

/** So many of the faults, in the order of the seed: none a second time before all had their turn; the first night is a good one. */
function faultsOf(nights: number, seed: number): Fault[] {
  const only = FAULTS.filter(({ name }) => name === process.env.COLD_BACKUP_FAULT); // to look closer at one
  if (only.length > 0) return Array(nights).fill(only[0]);
  const turn = (round: number) => [...FAULTS].sort((one, other) => randomBy(seed, `${round} ${one.name}`) - randomBy(seed, `${round} ${other.name}`));
  return [FAULTS[0]!, ...Array.from({ length: Math.ceil(nights / FAULTS.length) }, (_, round) => turn(round)).flat()].slice(0, nights);
}

export type Totals = { nights: number; faults: number; good: number; lost: number; down: number; untrue: number };

/** Let so many nights pass. Prints a line for each, restores everything in the end, prints the totals and returns them. */
export async function weeks(world: World, nights: number, seed: number): Promise<Totals> {
  const place = await makePlace(world), contents = new Map<string, string>(), totals: Totals = { nights, faults: 0, good: 0, lost: 0, down: 0, untrue: 0 };
  const [first] = provenArchives(world);
  const operator = makeOperator(path.join(world.folder, 'op'), world.storage, world.server);
  const audit = () => operator.run(['audit', '--json'], faked(place.storageClock));
  await audit(); // trusts what it found
  console.log(`note: seed ${seed}`);
  for (const [index, fault] of faultsOf(nights, seed).entries()) {
    const night = index + 1, chance: Chance = (words) => randomBy(seed, `${night} ${words}`);
    for (const one of [place.clock, place.storageClock]) atClock(one, night * DAY_MS);
    work(place, night, chance);
    const before = new Set(provenArchives(world)), lines = world.server.history().length;
    fs.rmSync(place.expected, { force: true });
    fault.set?.(place, chance);
    const run = world.server.start([], { env: faked(place.clock) });
    await fault.during?.(place, run, chance);
    const ended = await run.ended;
    const ranAtEnd = isUp(place);
    await fault.mend?.(place);
    fs.rmSync(place.fragile, { force: true });
    if (fault.name !== 'nothing') totals.faults++;
    let wrong = '';
    if (!await settles(place, ended)) { totals.down++; wrong = 'DOWN'; }
    const after = provenArchives(world).filter((one) => !before.has(one)), told = world.server.history().slice(lines).filter(({ kind }) => kind === 'run');
    if (fs.existsSync(place.expected)) for (const archive of [...after, ...told.map((line) => line.archive)]) contents.set(archive, fs.readFileSync(place.expected, 'utf8'));
    const untrue = isUntrue(fault, ended, told, after, ranAtEnd);
    if (untrue) { totals.untrue++; wrong += ` UNTRUE: ${untrue}`; }
    totals.good += after.length;
    console.log(`note: night ${String(night).padStart(2)}  ${fault.name.padEnd(46)} exit ${String(ended.code).padEnd(4)} ${(told.at(-1)?.outcome ?? 'no line').padEnd(8)} ${after.length ? 'proven' : '-     '}  down ${told.at(-1)?.downSeconds.toFixed(1) ?? '?'} s  ${wrong}${told.at(-1)?.error.slice(0, 120) ?? ''}`);
    if (wrong) console.log(ended.out.slice(-6000) + ended.err.slice(-3000));
  }
  place.writer.stopNow();
  const proven = provenArchives(world).filter((one) => one !== first);
  for (const archive of proven) {
    const found = contentOf(place, archive);
    if (found === contents.get(archive)) continue;
    totals.lost++;
    console.log(`LOST ${archive}: it holds\n${found}and should hold\n${contents.get(archive)}`);
  }
  execFileSync('borg', ['check'], { env: nearEnvironment(world), stdio: ['ignore', 'pipe', 'pipe'] }); // the repository has come through all of it
  const { out, err } = await audit(), [{ verdict, findings }] = JSON.parse(out) as [{ verdict: string; findings: { rule: string; what: string }[] }];
  const others = findings.filter(({ rule }) => rule !== 'R10'); // another time than the storage's: so it was
  totals.untrue += others.length;
  for (const { rule, what } of others) console.log(`FALSE ALARM ${rule} ${what}\n${err}`);
  const { nights: all, faults, good, lost, down, untrue } = totals;
  const table = { nights: all, faults, 'good backups': good, 'restored at the end': proven.length, 'lost data': lost, 'services left down': down, 'untrue words': untrue, audit: verdict + (findings.length > 0 ? ` (${findings.length} times R10: the clock was wrong)` : '') };
  for (const [what, number] of Object.entries(table)) console.log(`note: ${what.padEnd(20)} ${number}`);
  return totals;
}

const isUp = ({ world, writer }: Place) => [world.web, world.app, writer].every((one) => one.running()) && answersNow(world);

/** Everything runs again, and nothing of the run is left. */
async function settles(place: Place, ended: Ended): Promise<boolean> {
  try {
    await waitFor('the writer runs', () => place.writer.running(), 40); // a part that failed once is tried again by the guard, every 15 s
    await allIsWell(place.world, 40, 'a guard may watch');
    await waitFor('nobody works on it any more', () => spawnSync('flock', ['--nonblock', path.join(place.world.server.stateFolder, 'lock'), 'true']).status === 0, 60);
    return true;
  } catch (error) {
    console.log(`${error}\n${ended.out}${ended.err}`);
    return false;
  }
}

/** What the run said and remembered, against what was seen from outside. Returns what is not true, or ''. */
function isUntrue(fault: Fault, ended: Ended, told: any[], proven: string[], ranAtEnd: boolean): string {
  const last = told.at(-1), isGood = ended.code === 0 || ended.code === 1;
  if (/this is a bug/.test(ended.err)) return 'it says that it has a bug';
  if (isGood && proven.length !== 1) return `exit code ${ended.code}, and ${proven.length} new proofs`; // the other way round: it lost the line when the proof was there already
  if (isGood && !ranAtEnd) return `exit code ${ended.code}, and something does not run`;
  if (ended.code === 2 && !ranAtEnd) return 'exit code 2, and something does not run';
  if (last && !fault.killed && ![64, 75].includes(ended.code) && last.exitCode !== ended.code) return `exit code ${ended.code}, and the history says ${last.exitCode}`;
  if (last && /^(good|warning)$/.test(last.outcome) && !proven.includes(last.archive)) return `the history says ${last.outcome}`;
  if (fault.expects === 'good' && !isGood) return `exit code ${ended.code}: there was no reason to fail`;
  if (fault.expects === 'failed' && isGood) return `exit code ${ended.code}, with that?`;
  return '';
}

// The line to the storage ends here: plain borg reads the repository where it lies.
const nearEnvironment = ({ server, storage }: World) => ({ ...server.borgEnv(), BORG_REPO: storage.repository('web1') });

/** What an archive holds: extracted with plain borg, its PostgreSQL started on a socket of its own. */
function contentOf({ world }: Place, archive: string): string {
  const { folder, db, files } = world;
  const to = path.join(folder, 'back'), data = path.join(to, db.dataDirectory), control = path.join(db.binaries, 'pg_ctl'), log = path.join(db.socketFolder, 'back.log');
  fs.mkdirSync(to, { mode: 0o755 });
  try {
    execFileSync('borg', ['extract', '--numeric-ids', `::${archive}`], { cwd: to, env: nearEnvironment(world), stdio: 'ignore' });
    for (let above = path.dirname(data); above.length >= to.length; above = path.dirname(above)) fs.chmodSync(above, 0o755); // borg keeps nothing of them
    const asOwner = (...argv: string[]) => execFileSync('runuser', ['-u', db.owner, '--', ...argv], { cwd: '/', encoding: 'utf8' });
    fs.rmSync(log, { force: true });
    asOwner(control, 'start', '-D', data, '-w', '-s', '-l', log, '-o', '-p 5499');
    const rows = asOwner('psql', '-X', '-A', '-t', '-h', db.socketFolder, '-p', '5499', '-d', 'postgres', '-c', CONTENT).trimEnd();
    asOwner(control, 'stop', '-D', data, '-m', 'fast', '-s');
    if (!/database system was shut down/.test(fs.readFileSync(log, 'utf8'))) return 'it needed recovery\n';
    const sums = execFileSync('sh', ['-c', 'cd "$0" && find . -type f -print0 | sort -z | xargs -0 sha256sum | sha256sum', to + files], { encoding: 'utf8' }).trimEnd();
    return `${rows}\n${sums}\n`;
  } catch (error) {
    return `${error}\n`;
  } finally {
    fs.rmSync(to, { recursive: true, force: true });
  }
}
