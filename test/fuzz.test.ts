// Bad input: whatever a broken disk, a half-written file, another program or an intruder puts where this script reads, it neither crashes nor hangs,
// says nothing good of what is not, and runs no command with a word that was not meant. Seeded: see mutate.ts.
import './alone.ts';
import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import fs from 'node:fs';
import path from 'node:path';
import { after, before, describe, test } from 'node:test';
import { crc32 } from './crc.ts';
import { HOSTILE, otherBytes, otherData, randomOf, seed, soak } from './mutate.ts';
import { makeServer, start, testFolder } from './script.ts';
import type { Ended, Server } from './script.ts';
import { startStorage } from './storage.ts';
import type { Storage } from './storage.ts';
import { cannotRunHere } from './night.ts';

const CODES = [0, 1, 2, 3, 64, 75];
const SECONDS = 60; // for one command: more is a hang

describe(`bad input (seed ${seed})`, { skip: cannotRunHere() }, () => {
  const folder = testFolder('fuzz'), files = path.join(folder, 'files'), bin = path.join(folder, 'bin');
  let storage: Storage, server: Server, cold: string;
  before(async () => {
    for (const one of [files, bin]) fs.mkdirSync(one);
    fs.writeFileSync(path.join(files, 'one'), 'x'.repeat(5000));
    storage = await startStorage(path.join(folder, 'storage'));
    server = await makeServer(path.join(folder, 'server'), 'web1', storage, { folders: [files], warmPass: false }, { near: true });
    const ended = await server.run();
    assert.equal(ended.code, 0, ended.out + ended.err);
    cold = server.history().pop().archive;
  });
  after(() => storage?.destroy());

  /** What must hold of every command, whatever it was given. */
  function sane(ended: Ended, what: string): void {
    const said = `${what}\n${ended.out}${ended.err}`;
    assert.ok(CODES.includes(ended.code), `exit code ${ended.code}: ${said}`);
    assert.doesNotMatch(said, /this is a bug|node:internal|\n {4}at /, what);
    assert.doesNotMatch(ended.out + ended.err, /[\x00-\x08\x0b-\x1f\x7f\u202e]/, 'a terminal would obey it');
    assert.ok(ended.seconds < SECONDS, `${ended.seconds} s: ${said}`);
    assert.deepEqual([folder, server.folder, process.cwd(), '/'].filter((place) => fs.existsSync(path.join(place, 'owned'))), [], said);
  }

  /** Do something for so many numbers, two at a time, each with a place of its own. */
  async function many(name: string, count: number, one: (random: () => number, place: string, what: string) => Promise<void>): Promise<void> {
    let next = 0;
    const work = async (hand: number) => {
      for (let number = next++; number < count * soak; number = next++) {
        const place = path.join(folder, `${name} ${hand}`);
        fs.rmSync(place, { recursive: true, force: true });
        fs.mkdirSync(place, { mode: 0o700 });
        await one(randomOf(`${name} ${number}`), place, `${name}, number ${number}, seed ${seed}`);
      }
    };
    await Promise.all([work(1), work(2)]);
  }
  const run = (words: string[], env: NodeJS.ProcessEnv = {}) => {
    const running = start([process.execPath, server.script, ...words], { env });
    const timer = setTimeout(() => running.signal('SIGKILL', true), SECONDS * 1000);
    return running.ended.finally(() => clearTimeout(timer));
  };
  /** A settings file of its own in a place. */
  const settingsIn = (place: string, more: object) => {
    const file = path.join(place, 'settings.js');
    fs.writeFileSync(file, `const settings = ${JSON.stringify({ ...server.settings, stateFolder: path.join(place, 'state'), ...more })};\n`, { mode: 0o600 });
    fs.mkdirSync(path.join(place, 'state'), { mode: 0o700, recursive: true });
    return ['--settings', file];
  };

  test('settings: a good file that is changed anywhere is read, or refused with words', async () => {
    const good = { server: 'web1', stop: [['service nginx', 'container redis'], 'postgres 15/main', { name: 'x', running: ['true'], stop: ['true'], start: ['true'] }], folders: ['/srv'], volumes: ['*'], exclude: ['*.tmp'], repository: 'ssh://borg@storage.example.org/./web1',
      window: { from: '01:00', until: '05:30', timeZone: 'Africa/Maputo' }, tell: { ping: 'https://x.example.org/1', command: ['true'], metrics: '/var/x.prom' }, drill: { queries: [{ cluster: '15/main', database: 'shop', sql: 'select 1', expect: 1 }], folder: '/srv/x' }, language: 'es', stateFolder: '/nowhere/state' };
    const text = `// what is said\nconst settings = ${JSON.stringify(good, null, 2).replace(/"(\w+)":/g, '$1:')};\n`;
    await many('settings', 70, async (random, place, what) => {
      const file = path.join(place, 'settings.js'), isText = random() < 0.5;
      fs.writeFileSync(file, isText ? otherBytes(random, Buffer.from(text)) : `const settings = ${JSON.stringify(otherData(random, good))};\n`, { mode: 0o600 });
      const ended = await run(['--print-settings', '--settings', file]);
      sane(ended, what);
      assert.ok([0, 64].includes(ended.code), `${what}: ${ended.code}`);
      if (ended.code === 0) assert.match(ended.out, /^const settings = \{/);
      else assert.match(ended.err, /^backup: error: (\d+ mistakes? in the settings|.*settings\.js)/);
    });
  });

  test('the history: status answers, and what is no line of it is passed over', async () => {
    const lines = server.history();
    await many('history', 50, async (random, place, what) => {
      const words = settingsIn(place, {}), drill = { ...lines[0], kind: 'drill', certificate: { archive: cold, server: 'web1', proven: true, madeAt: lines[0].endedAt, where: 'x', full: false, checks: [], extractSeconds: 1, extractedBytes: 1, restoreSeconds: 1, drillSeconds: 1 } };
      const all = [...lines, drill, otherData(random, random() < 0.5 ? drill : lines[0])].map((line) => JSON.stringify(line)).join('\n');
      fs.writeFileSync(path.join(place, 'state/history.jsonl'), random() < 0.5 ? all : otherBytes(random, Buffer.from(all)));
      const ended = await run(['status', ...(random() < 0.3 ? ['--json'] : []), ...words]);
      sane(ended, what);
      assert.ok([0, 1, 2].includes(ended.code), what);
    });
  });

  test('the ledger: it is followed word for word, or refused (3)', async () => {
    const ledger = { format: 1, howTo: [], run: 'a-run', server: 'web1', archive: cold, startedAt: '2026-11-20T02:00:00.000Z', deadlineAt: '2026-11-20T04:00:00.000Z', starting: false, reported: 'failed', stopTimeoutSeconds: 5, transcript: '', boot: '', before: { units: [], containers: [] },
      restore: { archive: cold, stamp: '2026', stagings: ['/nowhere/.cold-backup-restore-2026'], swaps: [{ place: '/nowhere/a', staged: '', aside: '/nowhere/b' }], folders: [], made: ['/nowhere/made'], later: [], state: 'old' } };
    const record = path.join(bin, 'part');
    fs.writeFileSync(record, '#!/bin/sh\nfor word; do printf "%s\\0" "$word" >> "$1.argv"; done\nexit 0\n', { mode: 0o755 });
    await many('ledger', 50, async (random, place, what) => {
      const words = settingsIn(place, {}), log = path.join(place, 'log'), mayStart = random() < 0.3, start = [record, log, ...[1, 2, 3].map(() => HOSTILE[Math.floor(random() * HOSTILE.length)]!.replaceAll('\0', ''))];
      const part = { name: 'part', kind: 'command', group: 0, wasRunning: true, stop: ['true'], start, running: ['test', '-e', `${log}.argv`], askedAt: '2026-11-20T02:00:00.000Z', stoppedAt: '2026-11-20T02:00:01.000Z', runningAt: null };
      const text = JSON.stringify(mayStart ? { ...ledger, restore: undefined, parts: [part] } : otherData(random, { ...ledger, parts: [] }));
      fs.writeFileSync(path.join(place, 'state/ledger.json'), mayStart || random() < 0.6 ? text : otherBytes(random, Buffer.from(text)), { mode: 0o600 });
      const ended = await run(['recover', ...words]);
      sane(ended, what);
      assert.ok(mayStart ? ended.code === 0 : [0, 3].includes(ended.code), `${what}: ${ended.code}\n${ended.out}${ended.err}`);
      if (mayStart) assert.deepEqual(fs.readFileSync(`${log}.argv`, 'utf8').split('\0').slice(0, start.length - 1), start.slice(1), what);
      sane(await run(['status', ...words]), what);
    });
  });

  test('a cluster\'s files: a dry run goes on or refuses; what is not shut down is never saved', async () => {
    const control = Buffer.alloc(8192);
    control.writeBigUInt64LE(7_000_000_000_000_000_000n);
    control.writeUInt32LE(1, 16); // shut down
    await many('cluster', 60, async (random, place, what) => {
      const data = path.join(place, 'data'), words = settingsIn(place, { stop: [`postgres ${data}`], folders: [] }), kind = Math.floor(random() * 4);
      for (const one of ['global', 'pg_tblspc', 'pg_wal']) fs.mkdirSync(path.join(data, one), { recursive: true });
      const bytes = kind === 0 ? Buffer.concat([otherBytes(random, control.subarray(0, 20)), control.subarray(20)]) : control;
      fs.writeFileSync(path.join(data, 'global/pg_control'), bytes);
      fs.writeFileSync(path.join(data, 'PG_VERSION'), kind === 1 ? otherBytes(random, Buffer.from('15\n')) : '15\n');
      if (kind === 2) fs.writeFileSync(path.join(data, 'postmaster.pid'), otherBytes(random, Buffer.from(`1\n${data}\n1700000000\n5432\n/tmp\n\n  5432001  0\nready   \n`)));
      if (kind === 3) fs.symlinkSync(HOSTILE[Math.floor(random() * HOSTILE.length)]!.replaceAll('\0', '') || '/', path.join(data, 'pg_tblspc', String(Math.floor(random() * 1e9))));
      const ended = await run(['--dry-run', ...words]);
      sane(ended, what);
      const state = bytes.length < 20 ? -1 : bytes.readUInt32LE(16);
      if (kind === 2 || ![1, 2].includes(state)) assert.equal(ended.code, 2, `${what}: ${ended.out}`);
    });
  });

  test('what borg says, damaged on its way: no night is good whose archive is not', async () => {
    fs.writeFileSync(path.join(bin, 'borg'), `#!/usr/bin/python3
import os, random, subprocess, sys, threading
chance = random.Random(os.environ['DAMAGE'] + repr(sys.argv[1:3]))
program = subprocess.Popen(['/usr/bin/borg'] + sys.argv[1:], stdin=0, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
def damaged(line):
    if chance.random() > float(os.environ['CHANCE']): return line
    at, end = sorted((chance.randrange(len(line) + 1), chance.randrange(len(line) + 1)))
    return chance.choice([b'', line[:at] + b'\\n', line[:at] + line[end:], line[:at] + chance.choice([b'null', b'-1', b'"', b'{}', b'\\x1b[2J', b'\\xff', b'[[[[']) + line[at:], line + line, line.replace(b'"', b'', 1), line.replace(b': ', b': null, "x": ', 1)])
def copy(source, target):
    for line in source:
        if b'"file_status"' not in line or b'"i"' not in line: line = damaged(line) # that borg waits is waited for
        target.write(line); target.flush()
threads = [threading.Thread(target=copy, args=pair) for pair in ((program.stdout, sys.stdout.buffer), (program.stderr, sys.stderr.buffer))]
for one in threads: one.start()
for one in threads: one.join()
sys.exit(program.wait())
`, { mode: 0o755 });
    const commands = [['list'], ['list', 'latest'], ['find', 'one'], ['doctor'], ['restore', 'latest', '--to', 'TO'], ['drill'], []];
    await many('borg', 12, async (random, place, what) => {
      const words = commands[Math.floor(random() * commands.length)]!, to = path.join(place, 'to');
      const ended = await run([...words.map((word) => (word === 'TO' ? to : word)), ...settingsIn(place, {})], { DAMAGE: what, CHANCE: String(random() * 0.5), PATH: `${bin}:${process.env.PATH}` });
      sane(ended, `${what}: ${words.join(' ')}`);
      if (words[0] === 'restore' && ended.code === 0) assert.equal(fs.readFileSync(path.join(to, files, 'one'), 'utf8'), 'x'.repeat(5000));
      if (words.length > 0 || ended.code > 1) return;
      const { archive } = JSON.parse(fs.readFileSync(path.join(place, 'state/history.jsonl'), 'utf8').trim());
      assert.ok(server.archives().includes(`proven-${archive}`), what);
      assert.equal(server.borg('extract', '--stdout', `::${archive}`, path.join(files, 'one').slice(1)), 'x'.repeat(5000));
    });
  });

  test('a borg of which it is never heard that it waits is not waited for longer than an hour', async () => {
    const clock = path.join(folder, 'clock.cjs'), place = path.join(folder, 'never heard');
    fs.mkdirSync(place, { mode: 0o700 });
    fs.writeFileSync(clock, 'const { setTimeout } = globalThis;\nglobalThis.setTimeout = (what, ms, ...more) => setTimeout(what, ms >= 3_600_000 ? ms / 300 : ms, ...more);\n'); // an hour is twelve seconds
    fs.writeFileSync(path.join(bin, 'borg'), '#!/bin/bash\nexec /usr/bin/borg "$@" 2> >(grep --line-buffered -v \'"status": "i"\' >&2)\n', { mode: 0o755 });
    const ended = await run(settingsIn(place, {}), { NODE_OPTIONS: `--require "${clock}"`, PATH: `${bin}:${process.env.PATH}` });
    sane(ended, 'never heard');
    assert.equal(ended.code, 2, ended.out);
    assert.match(ended.err, /error: borg did not begin the copy within an hour[^]*nothing was stopped/);
  });

  test('the record of an archive: what is not as this script writes it is refused, and nothing leads out of the folder', async () => {
    const manifest = JSON.parse(server.borg('extract', '--stdout', `::${cold}`, 'record/manifest.json')), victim = path.join(folder, 'victim');
    fs.mkdirSync(victim);
    const cluster = { name: '15/main', dataDirectory: '/srv/pg', walFolder: '/srv/pg/pg_wal', version: '15', binaries: '/usr/lib/postgresql/15/bin', owner: 'postgres', container: '', socketFolder: '/tmp', port: '5432', uid: 1, gid: 1, pid: 0, roots: ['/srv/pg'], tablespaces: [{ oid: '1', location: '/srv/ts' }], configFolder: '', insideDataDirectory: '' };
    const database = { name: 'shop', owner: 'x', encoding: 'UTF8', collate: 'C', ctype: 'C', provider: 'c', locale: null, rules: null, recorded: null, actual: null, orderFingerprint: '', connectable: true, extensions: [{ name: 'x', version: '1' }], libraries: ['$libdir/x'], collations: [], rows: { 'public.t': 1 } };
    const base = { ...manifest, plan: { ...manifest.plan, clusters: [cluster] }, postgres: [{ ...cluster, answers: true, systemIdentifier: '1', controlData: {}, pgConfig: {}, icu: '', databases: [database], settings: { lc_messages: 'C' }, roles: [{ rolname: 'postgres', rolsuper: true }] }] };
    const lure = path.join(folder, 'lure'), make = (name: string, one: unknown) => {
      fs.writeFileSync(path.join(lure, 'record/manifest.json'), typeof one === 'string' ? one : JSON.stringify(one));
      execFileSync('borg', ['create', `::${name}`, 'record', files.slice(1)], { cwd: lure, env: server.borgEnv(), stdio: 'ignore' });
    };
    for (const one of ['record', files]) fs.mkdirSync(path.join(lure, one), { recursive: true });
    fs.writeFileSync(path.join(lure, 'record/listing'), '');
    const made: string[] = [];
    for (let number = 0; number < 12 * soak; number++) {
      const random = randomOf(`manifest ${number}`), text = JSON.stringify(base);
      made.push(`web1-2026-01-01T00:${String(Math.floor(number / 60) % 60).padStart(2, '0')}:${String(number % 60).padStart(2, '0')}`);
      make(made[number]!, random() < 0.75 ? otherData(random, base) : otherBytes(random, Buffer.from(text)).toString());
    }
    let next = 0;
    await many('manifest', 12, async (random, place, what) => {
      const name = made[next++]!, kind = random(), words = kind < 0.6 ? ['restore', name, '--to', path.join(place, 'to'), '--mend-links'] : kind < 0.8 ? ['restore', name, '--in-place', '--dry-run'] : ['drill', name];
      const ended = await run([...words, ...settingsIn(place, {})]);
      sane(ended, `${what}: ${words.join(' ')}`);
      assert.deepEqual(fs.readdirSync(victim), []);
      if (words[0] === 'drill') assert.notEqual(ended.code, 0, 'what has no files is proven');
    });
    // A record that is no file at all: nobody waits for a pipe.
    fs.rmSync(path.join(lure, 'record/manifest.json'));
    execFileSync('mkfifo', [path.join(lure, 'record/manifest.json')]);
    execFileSync('borg', ['create', '::web1-2026-01-02T00:00:00', 'record'], { cwd: lure, env: server.borgEnv(), stdio: 'ignore' });
    for (const words of [['drill', 'web1-2026-01-02T00:00:00'], ['restore', 'web1-2026-01-02T00:00:00', '--to', path.join(folder, 'to a pipe')]]) {
      const ended = await run(words);
      sane(ended, words.join(' '));
      assert.equal(ended.code, 2, ended.out + ended.err);
    }
  });

  test('a repository\'s files: every damage that an audit reads is an alarm, and what bears a right checksum is no crash', async () => {
    const repository = storage.repository('web1'), ledger = path.join(folder, 'ledger'), operator = (place: string, at: string) => {
      const file = path.join(place, 'operator.js');
      fs.writeFileSync(file, `const settings = ${JSON.stringify({ ledgerFolder: path.join(place, 'ledger'), servers: [{ server: 'web1', repository: at }] })};\n`, { mode: 0o600 });
      return ['--settings', file];
    };
    fs.mkdirSync(ledger, { mode: 0o700 });
    assert.equal((await run(['audit', ...operator(folder, repository)])).code, 0);
    await many('segments', 32, async (random, place, what) => {
      const at = path.join(place, 'repository'), words = operator(place, at);
      execFileSync('cp', ['-a', repository, at]);
      execFileSync('cp', ['-a', ledger, path.join(place, 'ledger')]);
      const segments = fs.readdirSync(path.join(at, 'data/0')).map((name) => path.join(at, 'data/0', name)).filter((file) => fs.statSync(file).size > 60), file = segments[Math.floor(random() * segments.length)]!, was = fs.readFileSync(file);
      const isBlind = random() < 0.3, is = isBlind ? withRightSums(random, was) : otherBytes(random, was);
      fs.writeFileSync(file, is);
      if (random() < 0.2) for (const one of ['transactions', 'nonce', 'config']) if (fs.existsSync(path.join(at, one))) fs.writeFileSync(path.join(at, one), otherBytes(random, fs.readFileSync(path.join(at, one))));
      const ended = await run(['audit', '--full', ...words]);
      sane(ended, what);
      if (!isBlind && !is.equals(was)) assert.equal(ended.code, 2, `${what}: ${ended.out}`);
    });
    const book = JSON.parse(fs.readFileSync(path.join(ledger, 'web1.json'), 'utf8'));
    await many('operator', 20, async (random, place, what) => {
      fs.mkdirSync(path.join(place, 'ledger'), { mode: 0o700 });
      fs.writeFileSync(path.join(place, 'ledger/web1.json'), random() < 0.7 ? JSON.stringify(otherData(random, book)) : otherBytes(random, Buffer.from(JSON.stringify(book))), { mode: 0o600 });
      sane(await run(['audit', ...operator(place, repository)]), what);
    });
    // A storage in somebody else's hands gives no word into the plan that root would run on the server.
    const config = path.join(repository, 'config'), was = fs.readFileSync(config, 'utf8');
    fs.writeFileSync(config, was.replace(/^id = .*$/m, 'id = x"; touch owned; "').replace(/^append_only = .*$/m, 'append_only = 0\n\tR1 touch owned'));
    const ended = await run(['audit', '--undo-plan', ...operator(folder, repository)]);
    sane(ended, 'a hostile configuration');
    assert.equal(ended.code, 2);
    assert.doesNotMatch(ended.out, /touch owned/);
    fs.chmodSync(ledger, 0o777);
    const open = await run(['audit', ...operator(folder, repository)]);
    assert.deepEqual([open.code, /others than root could change `ledgerFolder`/.test(open.err)], [64, true], open.err);
    fs.writeFileSync(config, was);
  });

  /** A segment file with an entry other than it was, its checksum made right again. */
  function withRightSums(random: () => number, bytes: Buffer): Buffer {
    const copy = Buffer.from(bytes), entries: number[] = [];
    for (let at = 8; at + 9 <= copy.length; at += copy.readUInt32LE(at + 4)) entries.push(at);
    const at = entries[Math.floor(random() * entries.length)]!, length = copy.readUInt32LE(at + 4), place = at + 8 + Math.floor(random() * Math.max(1, length - 8));
    copy[place]! ^= 1 << Math.floor(random() * 8);
    if (random() < 0.2) copy.writeUInt32LE(Math.floor(random() * 2 ** 32), at + 4);
    copy.writeUInt32LE(crc32(copy.subarray(at + 4, at + length)), at);
    return copy;
  }

  test('words of one\'s own commands and folders arrive as they are written, whatever they hold', async () => {
    const log = path.join(folder, 'words'), program = path.join(bin, 'words'), words = HOSTILE.filter((word) => word !== '' && !word.includes('\0'));
    fs.writeFileSync(program, `#!/bin/sh\nfor word; do printf '%s\\0' "$word" >> ${log}.$1; done\necho >> ${log}.$1\ncase $1 in stop) touch ${log}.down;; start) rm -f ${log}.down;; running) [ ! -e ${log}.down ];; esac\n`, { mode: 0o755 }); // one log a verb: whether it runs is looked at while it is started
    const odd = HOSTILE.filter((word) => /^[^\0\r\n/]+$/.test(word) && !['.', '..'].includes(word)).map((word) => path.join(folder, 'odd', word));
    for (const one of odd) fs.mkdirSync(one, { recursive: true });
    for (const one of odd) fs.writeFileSync(path.join(one, 'file'), one);
    const command = (word: string) => [program, word, ...words], ended = await run(settingsIn(path.join(folder, 'bin'), { stop: [{ name: HOSTILE[12], running: command('running'), stop: command('stop'), start: command('start') }], folders: odd }));
    sane(ended, 'hostile words');
    assert.equal(ended.code, 0, ended.out + ended.err);
    const told = ['running', 'start', 'stop'].map((verb) => fs.readFileSync(`${log}.${verb}`, 'utf8')).join('').split('\0\n').filter((line) => line !== '').map((line) => line.split('\0'));
    assert.deepEqual([...new Set(told.map(([first]) => first))].sort(), ['running', 'start', 'stop']);
    for (const [, ...others] of told) assert.deepEqual(others, words);
    const { archive } = JSON.parse(fs.readFileSync(path.join(folder, 'bin/state/history.jsonl'), 'utf8').trim()), to = path.join(folder, 'odd came back');
    assert.equal((await run(['restore', archive, ...odd, '--to', to])).code, 0);
    for (const one of odd) assert.equal(fs.readFileSync(path.join(to, one, 'file'), 'utf8'), one);
  });
});
