// Looking changes nothing, and tells what the run then does: `--dry-run`, `doctor`, and what is shown while a run goes on.
import './alone.ts';
import assert from 'node:assert/strict';
import { execFileSync, spawn } from 'node:child_process';
import fs from 'node:fs';
import path from 'node:path';
import { after, before, describe, test } from 'node:test';
import { everythingRunsAgain, makeDaemon, makeServer, testFolder, waitFor } from './script.ts';
import type { Daemon, Server } from './script.ts';
import { startStorage } from './storage.ts';
import type { Storage } from './storage.ts';
import type { TestCluster } from './cluster.ts';
import { cannotRunHere, makeHardCluster, makeHostileTree, onTerminal, processes, stamps, watchMemory } from './night.ts';

const WRITES = /^\d+ +(?:(?:mkdir|rmdir|unlink|rename|link|symlink|mknod|chmod|fchmodat|chown|lchown|fchownat|truncate|utime|setxattr|lsetxattr)\w*\(|(?:open|openat|creat)\(.*O_(?:WRONLY|RDWR|CREAT))/;

describe('looking', { skip: cannotRunHere(['strace', 'script']) }, () => {
  const folder = testFolder('look'), home = path.join(folder, 'home');
  let cluster: TestCluster, storage: Storage, server: Server, web: Daemon, idle: Daemon;

  before(async () => {
    cluster = await makeHardCluster(path.join(folder, 'cluster'));
    makeHostileTree(path.join(folder, 'tree'));
    fs.mkdirSync(home);
    web = makeDaemon(folder, 'web');
    idle = makeDaemon(folder, 'idle');
    web.startNow();
    storage = await startStorage(path.join(folder, 'storage'));
    server = await makeServer(path.join(folder, 'server'), 'web1', storage, { stop: [[web.entry, idle.entry], `postgres ${cluster.dataDirectory}`], folders: [path.join(folder, 'tree')], exclude: ['*/deeper below'] });
  });
  after(() => {
    cluster?.destroy();
    storage?.destroy();
  });

  const everywhere = () => stamps(server.folder, storage.folder, home, path.join(folder, 'tree'), '/var/lib/cold-backup', '/etc/cold-backup');

  for (const words of [[], ['--json'], ['--verbose']]) {
    test(`a dry run writes nothing anywhere: ${['--dry-run', ...words].join(' ')}`, async () => {
      const was = everywhere(), log = path.join(folder, 'strace');
      execFileSync('strace', ['-f', '--seccomp-bpf', '-qq', '-o', log, '-e', 'trace=file,fchmod,fchown,ftruncate', '-e', 'signal=none', process.execPath, server.script, '--dry-run', ...words], { env: { ...process.env, HOME: home }, stdio: 'ignore' });
      const calls = fs.readFileSync(log, 'utf8').split('\n').filter((line) => WRITES.test(line) && !/= -1 |"\/dev\/(null|tty)"/.test(line));
      assert.match(fs.readFileSync(log, 'utf8'), /execve\("[^"]*\/psql"/); // strace saw everything that was started
      assert.deepEqual(calls, []);
      assert.equal(everywhere(), was);
      await everythingRunsAgain([web], [idle], 0);
    });
  }

  test('a dry run needs no state folder and makes none', async () => {
    server.writeSettings({ stateFolder: path.join(folder, 'not made yet', 'state') });
    const ended = await server.run(['--dry-run']);
    server.writeSettings({ stateFolder: server.stateFolder });
    assert.equal(ended.code, 0, ended.err);
    assert.ok(!fs.existsSync(path.join(folder, 'not made yet')));
  });

  test('a dry run shows the parts, paths and commands that the run then has', async () => {
    const shown = await server.run(['--dry-run']);
    assert.equal(shown.code, 0, shown.err);
    const { commands, expected: _, ...plan } = JSON.parse((await server.run(['--dry-run', '--json'])).out);
    const ended = await server.run();
    assert.equal(ended.code, 0, ended.out + ended.err);
    const { archive } = server.history()[0];
    const real = JSON.parse(server.borg('extract', '--stdout', `::${archive}`, 'record/manifest.json')).plan;
    const lasting = ({ archive: _, run: __, madeAt: ___, ...rest }: any) => rest;
    assert.deepEqual(lasting(plan.warnings ? { ...plan, warnings: undefined } : plan), { ...lasting(real), warnings: undefined });
    // Names of archives hold the time, comments what was proven; the guard is the run itself.
    const plain = (line: string) => line.replaceAll(/--comment '[^']*'/g, '--comment').replaceAll(/web1-\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d/g, 'ARCHIVE');
    const quoted = (argv: string[]) => argv.map((word) => (/^[\w@%+=:,./-]+$/.test(word) ? word : `'${word.replaceAll("'", `'\\''`)}'`)).join(' ');
    const ran = [...ended.out.matchAll(/^\S+ +\$ (.*)$/gm)].map((match) => plain(match[1]!)).filter((line) => !/backup\.js guard /.test(line));
    const changing = commands.filter((one: any) => ['before', 'warm', 'stop', 'cold', 'start', 'proof'].includes(one.step)).map((one: any) => plain(quoted(one.argv)));
    assert.deepEqual(changing, ran);
    for (const line of changing) assert.ok(plain(shown.out).includes(line), line);
    assert.match(shown.out, /^expected: no good night yet/m);
    assert.match(shown.out, /^ {2}idle {3}\(not running: stays as it is\)$/m);
    await everythingRunsAgain([web], [idle], 0);
  });

  test('a good night under --quiet says nothing at all, and old transcripts go', async () => {
    const log = path.join(server.stateFolder, 'log');
    for (let day = 0; day < 200; day++) fs.writeFileSync(path.join(log, `2025-01-01T00:00:${String(day).padStart(3, '0')}.log`), 'old\n');
    const ended = await server.run(['--quiet']);
    assert.deepEqual([ended.code, ended.out, ended.err], [0, '', '']);
    assert.ok(fs.readdirSync(log).length <= 62, 'transcripts are bounded in number');
    assert.ok(server.history().every(({ startedAt }) => fs.existsSync(path.join(log, `${startedAt.slice(0, 19)}.log`))));
  });

  test('on a terminal one live line tells how far it is, and is gone at the end', { timeout: 240_000 }, async () => {
    fs.writeFileSync(path.join(folder, 'tree', 'big'), Buffer.alloc(150_000_000, 'cold backup '));
    const { code, screen } = await onTerminal([process.execPath, server.script], { TERM: 'xterm', NO_COLOR: '1' });
    assert.equal(code, 0, screen);
    const live = screen.split('\r\x1b[K').slice(1).map((piece) => piece.split('\r\n')[0]!);
    assert.ok(live.some((line) => /^(warm|cold) pass: \d+ files, .* read, .* new, .*\/s/.test(line)), screen);
    for (const line of live) assert.ok(line.length < 80 || / \$ /.test(line), line); // it never wraps
    const lasting = screen.replaceAll(/\r\x1b\[K[^\r\n]*(?=\r\x1b)/g, '');
    assert.doesNotMatch(lasting.replaceAll('\r\x1b[K', '').replaceAll('\r\n', '\n'), /[\r\x1b]/);
    assert.match(screen, /\n {2}warnings {2}none\r\n$/);
  });

  test('with --json a run is one history line on stdout, and all else is on stderr', async () => {
    const ended = await server.run(['--json']);
    assert.equal(ended.code, 0, ended.err);
    assert.deepEqual(JSON.parse(ended.out), server.history().pop());
    assert.match(ended.err, /^good: web1-.* is proven$/m);
    for (const words of [['--json', '--no-such-thing'], ['restore', '--json']]) {
      const wrong = await server.run(words), { outcome, exitCode, error } = JSON.parse(wrong.out);
      assert.deepEqual([wrong.code, outcome, exitCode, wrong.err.includes(error)], [64, 'failed', 64, true], words.join(' '));
    }
    assert.equal((await server.run(['guard'])).code, 64, 'the script alone calls it');
  });

  test('the memory of the script stays under 100 MB when borg prints 300 MB of progress', async () => {
    const bin = path.join(folder, 'bin');
    fs.mkdirSync(bin);
    const note = JSON.stringify({ type: 'archive_progress', original_size: 1, compressed_size: 1, deduplicated_size: 1, nfiles: 1, path: 'x'.repeat(400), time: 1 });
    fs.writeFileSync(path.join(bin, 'borg'), `#!/bin/sh\ncase " $* " in *-warm.checkpoint*) yes '${note}' | head -c 300000000 >&2;; esac\nPATH=\${PATH#*:} exec borg "$@"\n`, { mode: 0o755 });
    const run = server.start([], { env: { PATH: `${bin}:${process.env.PATH}` } });
    const peak = watchMemory(run.pid);
    const ended = await run.ended, megabytes = peak();
    assert.equal(ended.code, 0, ended.out + ended.err);
    assert.ok(megabytes > 10 && megabytes < 100, `${megabytes.toFixed(0)} MB`);
  });

  test('a signal while the repository is being tried ends the run as a signal does, and nothing was stopped', async () => {
    const run = server.start();
    await waitFor('borg info runs', () => processes().some((line) => /\/borg --log-json .* info --json/.test(line)));
    run.signal('SIGTERM');
    const ended = await run.ended;
    assert.equal(ended.code, 143, ended.out + ended.err);
    assert.match(ended.err, /^backup: error: ended by SIGTERM\n {2}services: nothing was stopped$/m);
    await everythingRunsAgain([web], [idle], 0);
  });

  test('doctor lists every check by its name, with a hint for each that fails', async () => {
    const ended = await server.run(['doctor', '--json']), checks = JSON.parse(ended.out);
    assert.equal(ended.code, 1, ended.out + ended.err); // no schedule
    for (const one of checks) {
      assert.deepEqual(Object.keys(one).slice(0, 4), ['check', 'ok', 'detail', 'hint']);
      assert.ok([true, false, null].includes(one.ok) && (one.ok !== false || one.hint !== ''), JSON.stringify(one));
    }
    const verdict = Object.fromEntries(checks.map((one: any) => [one.check, one.ok]));
    for (const check of ['no shell', 'other paths refused', 'append-only', 'key exported', 'unsaved']) assert.equal(verdict[check], true, check);
    assert.match(checks.find((one: any) => one.check === 'append-only').detail, /^\S*borg serve --append-only --restrict-to-(repository|path) /); // as one would type it
    assert.deepEqual([verdict.quota, verdict.schedule], [false, false]); // this storage sets none, and nobody installed one
    assert.deepEqual([verdict['server version'], verdict['own borg']], [true, !/ 1\.2\.[0-4]\b/.test(execFileSync('borg', ['--version'], { encoding: 'utf8' }))]); // who reads an archive has to know a forged one, not `borg serve`
  });

  test('doctor takes for unknown what it could not look at, and reckons the free space as a run does', async () => {
    const verdict = async (code: number): Promise<Record<string, any>> => {
      const ended = await server.run(['doctor', '--json']);
      assert.equal(ended.code, code, ended.out + ended.err);
      return Object.fromEntries(JSON.parse(ended.out).map((one: any) => [one.check, one]));
    };
    const { folders } = server.settings as { folders: string[] }, history = path.join(server.stateFolder, 'history.jsonl'), was = fs.existsSync(history) ? fs.readFileSync(history) : null;
    server.writeSettings({ folders: [...folders, '/nosuch'] });
    const lost = await verdict(2);
    assert.deepEqual([lost['parts and paths'].ok, lost.unsaved.ok, lost['free space'].ok], [false, null, true]);
    server.writeSettings({ folders });
    const at = '2026-11-26T02:00:00', cold = { files: 1e12, originalBytes: 0, compressedBytes: 0, deduplicatedBytes: 0, seconds: 1 }; // a run that large would not begin here
    fs.appendFileSync(history, `${JSON.stringify({ kind: 'run', startedAt: `${at}.000Z`, endedAt: `${at}.000Z`, outcome: 'good', exitCode: 0, server: 'web1', archive: `web1-${at}`, downSeconds: 0, startSeconds: 0, parts: [], warm: null, cold, snapshot: '', warnings: [], error: '' })}\n`);
    const full = await verdict(2);
    if (was) fs.writeFileSync(history, was);
    else fs.rmSync(history);
    assert.match(full['free space'].detail, /of which a run needs 600 TB/);
    server.writeSettings({ tell: { command: ['true'] } });
    assert.deepEqual([(await verdict(1)).told.ok, (await server.run()).code, (await verdict(1)).told.ok], [null, 0, true], 'a messenger that no run has called is not known to work');
    server.writeSettings({ tell: {} });
  });

  // It stands first on PATH, as a borg in /usr/local/bin would, and counts what it hears. `exec`, for the shell of `script` hears Ctrl-C, too: dash waits for its child, and then ends as one that was interrupted.
  test('Ctrl-C reaches borg once, and borg is found where cron\'s PATH does not lead', async () => {
    const log = path.join(folder, 'heard'), bin = path.join(folder, 'bin-of-borg');
    fs.mkdirSync(bin);
    fs.writeFileSync(path.join(bin, 'borg'), `#!/bin/sh\ntrap 'echo INT >> ${log}' INT\necho up >> ${log}\nfor i in $(seq 40); do sleep 0.1; done\nexec /usr/bin/borg "$@"\n`, { mode: 0o755 });
    const child = spawn('script', ['-qefc', `exec ${process.execPath} ${server.script} borg --version`, '/dev/null'], { stdio: ['pipe', 'pipe', 'inherit'], env: { ...process.env, PATH: `${bin}:${process.env.PATH}`, TERM: 'dumb' } });
    let said = '';
    child.stdout.on('data', (piece) => { said += piece; });
    const ended = new Promise<number>((resolve) => { child.on('close', (code) => resolve(code ?? 2)); });
    await waitFor('borg runs', () => fs.existsSync(log));
    child.stdin.write('\x03');
    assert.equal(await ended, 0, said);
    assert.match(said, /borg 1\./);
    assert.equal(fs.readFileSync(log, 'utf8'), 'up\nINT\n');
    fs.rmSync(bin, { recursive: true });
    const bare = await server.run(['borg', '--version'], { env: { PATH: path.dirname(process.execPath) === '/usr/bin' ? '/bin' : path.dirname(process.execPath) } });
    assert.equal(bare.code, 0, bare.out + bare.err);
  });

  test('doctor changes nothing but the cache of borg', async () => {
    const without = () => everywhere().split('\n').filter((line) => !line.startsWith(`${server.stateFolder}/borg`) && !line.startsWith(storage.folder)).join('\n');
    const was = without();
    await server.run(['doctor']);
    assert.equal(without(), was);
  });
});
