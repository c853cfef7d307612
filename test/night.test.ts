// The night as it is meant to go: a gigabyte of PostgreSQL and a tree of hostile names, two nights, and everything that
// a person does with the result: list it, ask for its status, and bring it all back with nothing but borg.
import './alone.ts';
import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import fs from 'node:fs';
import path from 'node:path';
import { after, before, describe, test } from 'node:test';
import { makeDaemon, makeServer, testFolder, everythingRunsAgain } from './script.ts';
import type { Daemon, Ended, Server } from './script.ts';
import { startStorage } from './storage.ts';
import type { Storage } from './storage.ts';
import { PG } from './cluster.ts';
import type { TestCluster } from './cluster.ts';
import { PASSWORDS, cannotRunHere, filesWith, fingerprintOfRestored, makeHardCluster, makeHostileTree, mendLinks, treeFacts, watchCommandLines, watchMemory } from './night.ts';

const STAMP = String.raw`\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d`;

describe('a night', { skip: cannotRunHere() }, () => {
  const folder = testFolder('night'), tree = path.join(folder, 'uploads of 2026'), link = path.join(folder, 'uploads'), record = path.join(folder, 'record');
  let cluster: TestCluster, storage: Storage, server: Server, web: Daemon, rows: Record<string, string>, facts: string;
  let first: Ended, memory: number, seen: string[], archive: string;

  before(async () => {
    cluster = await makeHardCluster(path.join(folder, 'cluster'));
    cluster.fillTo(1_050_000_000);
    makeHostileTree(tree);
    fs.symlinkSync(tree, link);
    web = makeDaemon(folder, 'web');
    web.startNow();
    storage = await startStorage(path.join(folder, 'storage'));
    const watch = watchCommandLines();
    server = await makeServer(path.join(folder, 'server'), 'web1', storage, { stop: [web.entry, `postgres ${cluster.dataDirectory}/`], folders: [`${link}/`] });
    rows = cluster.fingerprint();
    facts = treeFacts(tree);
    const run = server.start();
    const peak = watchMemory(run.pid);
    first = await run.ended;
    memory = peak();
    seen = watch.stop();
    archive = server.history()[0]?.archive;
  });
  after(() => {
    cluster?.destroy();
    storage?.destroy();
  });

  test('a gigabyte is saved, proven, and everything runs again', async () => {
    assert.equal(first.code, 0, first.out + first.err);
    assert.equal(first.err, '');
    assert.match(archive, new RegExp(`^web1-${STAMP}$`));
    assert.deepEqual(server.archives(), [`${archive}-warm.checkpoint`, archive, `proven-${archive}`]);
    assert.ok(server.history()[0].cold.originalBytes > 1e9);
    await everythingRunsAgain([web]);
    assert.ok(cluster.isRunning());
  });

  test('the script itself needs less than 100 MB, however much it saves', () => {
    assert.ok(memory > 10 && memory < 100, `${memory.toFixed(0)} MB`);
  });

  test('no passphrase and no role password is in any command line, message, log, plan, history or record', async () => {
    const secrets = [...PASSWORDS, fs.readFileSync(String(server.settings.passphraseFile), 'utf8').trim()];
    const plan = await server.run(['--dry-run', '--json', '--verbose']);
    for (const text of [...seen, first.out, first.err, plan.out, plan.err]) for (const secret of secrets) assert.ok(!text.includes(secret), text);
    assert.ok(seen.some((line) => line.includes('borg --log-json --progress')), 'the watcher saw borg');
    assert.deepEqual(filesWith(server.stateFolder, secrets), []);
  });

  test('the summary is the last block, and the same words are in the transcript', () => {
    const last = first.out.split('\n\n').pop()!;
    assert.match(last, new RegExp(`^good: web1-${STAMP} is proven\n  down +\\d.* s  \\(web .*, postgres .*cluster/data .*\\)\n  services  all 2 are running again\n  warm +1\\.\\d GB in \\d+ files read, .* sent and stored, .*\n  cold .*\n  took .*\n  warnings  none\n$`));
    const transcript = fs.readFileSync(path.join(server.stateFolder, 'log', `${archive.slice('web1-'.length)}.log`), 'utf8');
    for (const line of first.out.split('\n')) assert.ok(transcript.includes(line), line);
    assert.doesNotMatch(first.out + first.err, /[\r\x1b]/); // no terminal, no live line
  });

  test('the archive explains itself: record/ and comment', () => {
    execFileSync('borg', ['extract', `::${archive}`, 'record'], { env: server.borgEnv(), cwd: folder });
    const read = (file: string) => fs.readFileSync(path.join(record, file), 'utf8');
    const manifest = JSON.parse(read('manifest.json'));
    for (const key of ['format', 'server', 'archive', 'madeAt', 'script', 'host', 'packages', 'postgres', 'containers', 'plan', 'proof']) assert.ok(key in manifest, key);
    assert.deepEqual([manifest.format, manifest.server, manifest.archive], [1, 'web1', archive]);
    const [pg] = manifest.postgres;
    assert.match(pg.systemIdentifier, /^\d{15,}$/);
    assert.match(pg.pgConfig.VERSION, new RegExp(String.raw`^PostgreSQL ${PG}`));
    assert.deepEqual(pg.databases.map((one: any) => one.name).sort(), ['postgres', 'shop', 'template0', 'template1']);
    const shop = pg.databases.find((one: any) => one.name === 'shop');
    assert.deepEqual([shop.provider, shop.locale, shop.extensions.map((one: any) => one.name).sort().join()], ['i', 'es', 'hstore,pg_trgm,plpgsql']);
    assert.equal(manifest.proof.clusters[0].state, 'shut down');
    assert.deepEqual(manifest.plan.parts.map((part: any) => part.name), ['web', `postgres ${cluster.dataDirectory}`]);
    assert.equal(read('backup.js'), fs.readFileSync(server.script, 'utf8'));
    assert.equal(read('backup.settings.js'), fs.readFileSync(server.settingsFile, 'utf8'));
    assert.match(read('RESTORE.md'), new RegExp(`^# Restore ${archive}\n`));
    const info = JSON.parse(server.borg('info', '--json', `::${archive}`)).archives[0];
    assert.ok(info.comment.length < 2000);
    assert.deepEqual([JSON.parse(info.comment).kind, JSON.parse(info.comment).server], ['cold', 'web1']);
  });

  test('the listing names every file that was saved', () => {
    const listing = fs.readFileSync(path.join(record, 'listing'), 'utf8'); // decoded: what is not UTF-8 becomes U+FFFD here, and ? in borg's own list
    const listed = new Set(listing.split('\0').filter((line) => line !== '').map((line) => line.split('\t').slice(7).join('\t').replaceAll('\ufffd', '?')));
    const stored = server.borg('list', '--format', '/{path}{NUL}', `::${archive}`).split('\0').filter((file) => file !== '' && !/^\/record($|\/)/.test(file));
    assert.deepEqual(stored.filter((file) => !listed.has(file)), []);
    assert.equal(listed.size, stored.length);
    assert.ok(listed.has(`${tree}/latin-???`));
  });

  test('the proven archive holds the proof and the history', () => {
    fs.rmSync(record, { recursive: true });
    execFileSync('borg', ['extract', `::proven-${archive}`], { env: server.borgEnv(), cwd: folder });
    assert.deepEqual(fs.readdirSync(record).sort(), ['history.jsonl', 'proof.json']);
    const proof = JSON.parse(fs.readFileSync(path.join(record, 'proof.json'), 'utf8'));
    assert.equal(proof.archive, archive);
    assert.equal(proof.before.listingSha256, proof.after.listingSha256);
    assert.deepEqual(fs.readFileSync(path.join(record, 'history.jsonl'), 'utf8').trim().split('\n').map((line) => JSON.parse(line).archive), [archive]);
  });

  test('plain borg brings everything back into an empty folder, and PostgreSQL finds every row', async () => {
    const empty = path.join(folder, 'extracted');
    fs.mkdirSync(empty, { mode: 0o755 });
    execFileSync('borg', ['--umask', '0022', 'extract', '--sparse', `::${archive}`], { env: server.borgEnv(), cwd: empty, stdio: 'ignore' });
    assert.equal(treeFacts(empty + tree), facts);
    assert.equal(fs.readlinkSync(empty + link), tree);
    const over = path.join(folder, 'over the link'), one = await server.run(['restore', archive, path.join(link, 'with space'), '--to', over]); // as it was typed in the settings
    assert.equal(one.code, 0, one.out + one.err);
    assert.equal(fs.readFileSync(path.join(over, tree, 'with space'), 'utf8'), fs.readFileSync(path.join(tree, 'with space'), 'utf8'));
    assert.match((await server.run(['list', archive, path.join(link, 'with space')])).out, /with space"?$/m);
    assert.match((await server.run(['list', archive, path.join(link, 'nothing')])).err, /not in \S+: .*uploads\/nothing/);
    assert.ok(fs.statSync(path.join(empty + tree, 'sparse')).blocks < 1000, 'holes stay holes');
    mendLinks(empty + cluster.dataDirectory, empty);
    assert.deepEqual(fingerprintOfRestored(cluster, empty + cluster.dataDirectory), rows);
    fs.rmSync(empty, { recursive: true });
  });

  test('the second night reads what has changed, and its history says so', async () => {
    cluster.sql('postgres', 'update filler set word = upper(word) where id < 500; insert into faraway values (0, \'new\')');
    fs.appendFileSync(path.join(tree, 'plain.txt'), 'and more\n');
    rows = cluster.fingerprint();
    facts = treeFacts(tree);
    const ended = await server.run();
    assert.equal(ended.code, 0, ended.out + ended.err);
    const lines = server.history();
    assert.equal(lines.length, 2);
    for (const line of lines) {
      assert.deepEqual([line.kind, line.outcome, line.exitCode, line.warnings, line.error, line.snapshot], ['run', 'good', 0, [], '', '']);
      assert.ok(Date.parse(line.endedAt) > Date.parse(line.startedAt));
      assert.deepEqual(line.parts.map((part: any) => part.name), ['web', `postgres ${cluster.dataDirectory}`]);
      for (const part of line.parts) assert.ok(Date.parse(part.runningAt) > Date.parse(part.stoppedAt) && part.downSeconds > 0 && part.downSeconds <= line.downSeconds);
      for (const pass of [line.warm, line.cold]) for (const key of ['files', 'originalBytes', 'compressedBytes', 'deduplicatedBytes', 'seconds']) assert.ok(pass[key] > 0, key);
    }
    const [, second] = lines;
    assert.ok(second.warm.deduplicatedBytes < 60e6 && second.warm.seconds < lines[0].warm.seconds, JSON.stringify(second.warm));
    assert.ok(second.cold.deduplicatedBytes < 60e6 && second.downSeconds < 20, JSON.stringify(second));
  });

  test('list shows the archives, and the files in one', async () => {
    const [, { archive: newest }] = server.history();
    const words = await server.run(['list']);
    assert.equal(words.code, 0, words.err);
    assert.equal(words.out.match(/ proven .* GB, .* new, down .* s$/gm)?.length, 2, words.out);
    const all = JSON.parse((await server.run(['list', '--json'])).out);
    assert.deepEqual(all.map((one: any) => one.kind), ['warm', 'proven', 'warm', 'proven']);
    for (const one of all.filter(({ kind }: any) => kind === 'proven')) {
      assert.ok(one.originalBytes > 1e9 && one.deduplicatedBytes > 0, JSON.stringify(one));
      assert.equal(one.archive, `web1-${one.madeAt.replace('Z', '')}`);
    }
    const files = await server.run(['list', archive]);
    const names = files.out.split('\n');
    assert.ok(names.some((line) => /^-rw------- root .* \/record\/manifest\.json$/.test(line)), names[names.length - 2]);
    assert.ok(names.some((line) => line.endsWith('/line\\nend"')) && !names.includes('end'), 'a name cannot forge a line');
    const some = await server.run(['list', 'latest', tree, '--json']);
    const paths = JSON.parse(some.out).map((one: any) => `/${one.path}`);
    assert.ok(paths.includes(`${tree}/quote's "both"`) && paths.every((one: string) => one.startsWith(tree)), some.out);
    const unknown = await server.run(['list', 'web1-2000-01-01T00:00:00']);
    assert.deepEqual([unknown.code, /there is no archive/.test(unknown.err)], [2, true]);
    assert.equal((await server.run(['borg', 'info'])).code, 0);
    assert.match((await server.run(['borg', 'list', '--short', `::${newest}`])).out, /^record\/RESTORE\.md$/m);
  });

  test('status is a monitoring plugin', async () => {
    const file = path.join(server.stateFolder, 'history.jsonl'), text = fs.readFileSync(file, 'utf8'), [one, newest] = server.history();
    const statusWith = (changes: object, ...words: string[]) => { // as if the last run had ended otherwise
      fs.writeFileSync(file, [one, { ...newest, ...changes }].map((line) => `${JSON.stringify(line)}\n`).join(''));
      return server.run(['status', ...words]);
    };
    const hoursAgo = (hours: number) => new Date(Date.now() - hours * 3_600_000).toISOString();
    assert.equal((await statusWith({ kind: undefined })).code, 0, 'a run is what is no drill');
    const good = await statusWith({}, '--json'), answer = JSON.parse(good.out);
    assert.equal(good.code, 0);
    for (const key of ['server', 'outcome', 'ageHours', 'archive', 'downSeconds', 'drill', 'warnings', 'next']) assert.ok(key in answer, key);
    assert.deepEqual([answer.server, answer.outcome, answer.archive, answer.warnings, answer.ageHours < 0.1], ['web1', 'good', newest.archive, [], true]);
    const nightsAs = (...gigabytes: number[]) => { // seven nights and more, each larger and longer than the one before
      fs.writeFileSync(file, gigabytes.map((size) => `${JSON.stringify({ ...newest, downSeconds: size, warm: null, cold: { ...newest.cold, originalBytes: size * 1e9, deduplicatedBytes: size * 1e6 } })}\n`).join(''));
      return server.run(['status', '--json']);
    };
    assert.deepEqual(JSON.parse((await nightsAs(1, 2, 3, 4, 5, 6, 7, 8)).out).trend, { nights: 7, downSeconds: 5, leastDownSeconds: 2, mostDownSeconds: 8, newBytes: 5e6, originalBytes: 8e9, growthBytes: 1e9 });
    assert.match((await server.run(['--dry-run'])).out, /^expected, from the last 7 good nights: down 5\.0 s, 5\.0 MB to send$/m);
    assert.match((await statusWith({ endedAt: hoursAgo(25.9) })).out, new RegExp(`^OK: web1: ${newest.archive}, 25 h .* old, was down .* s\n {2}down +.* s; in the last 2 good nights .* s to .* s\n {2}size +.* in all, .* new a night(, (growing|shrinking) by .* a night)?\n {2}next run +nothing starts it: .*\n {2}last drill +none yet\n {2}warnings +none\n {2}next +node backup\.js drill\n$`));
    server.writeSettings({ drill: { maxAgeDays: 0 } }); // nothing is left to do but to have it started
    assert.match((await statusWith({})).out, /^ {2}next +node backup\.js setup --schedule cron\n$/m);
    server.writeSettings({ drill: undefined });
    const quiet = await statusWith({}, '--quiet');
    assert.deepEqual([quiet.code, quiet.out + quiet.err], [0, '']);
    const remote = await statusWith({}, '--remote', '--json');
    assert.deepEqual([remote.code, JSON.parse(remote.out).remote], [0, { archive: true, proof: true, newest: newest.archive }], remote.err);
    const lost = await statusWith({ archive: 'web1-2026-01-01T02:00:00' }, '--remote');
    assert.deepEqual([lost.code, /^CRITICAL: .*; web1-2026-01-01T02:00:00 is not in the repository any more$/m.test(lost.out), /^ {2}warnings +web1-2026-01-01T02:00:00 is not in the repository any more$/m.test(lost.out)], [2, true, true], lost.out);
    storage.stop();
    const away = await statusWith({}, '--remote');
    assert.deepEqual([away.code, /^WARNING: web1: .*; the repository was not asked: /.test(away.out), /the repository was not asked: .*\n {2}next +node backup\.js doctor/.test(away.out)], [1, true, true], away.out);
    assert.equal((await statusWith({})).code, 0, 'without --remote it needs no network');
    await storage.start();
    const warned = await statusWith({ outcome: 'warning', exitCode: 1, warnings: ['a wheel is loose'] });
    assert.deepEqual([warned.code, /^WARNING: web1: .*; a wheel is loose$/m.test(warned.out), /^ {2}warnings +a wheel is loose$/m.test(warned.out)], [1, true, true], warned.out);
    const old = await statusWith({ endedAt: hoursAgo(26.1) });
    assert.deepEqual([old.code, /^CRITICAL: web1: .*; older than 26 h$/m.test(old.out), /next +node backup\.js doctor/.test(old.out)], [2, true, true], old.out);
    const failed = await statusWith({ outcome: 'failed', exitCode: 2, error: 'the line was cut' }, '--json');
    assert.deepEqual([failed.code, JSON.parse(failed.out).archive, /the line was cut/.test(failed.out)], [1, archive, true], failed.out); // the one before is recent enough
    fs.writeFileSync(file, text);
  });

  test('a server that is gone comes back by the commands of RESTORE.md alone', async () => {
    const [, { archive: newest }] = server.history();
    const text = server.borg('extract', '--stdout', `::${newest}`, 'record/RESTORE.md');
    const etc = path.dirname(String(server.settings.keyFile)), blocks = [...text.matchAll(/^```sh\n([^]*?)^```$/gm)].map((match) => match[1]!).join('');
    // What a person changes in the first block; and this machine's own /root is left alone.
    const pasted = blocks.replace('/root/borg_key', `${etc}/borg_key`).replace(/^export BORG_RSH=.*$/m, `export BORG_RSH='${server.borgEnv().BORG_RSH}'`).replaceAll(/(["= ])\/root\/(?=restore|part)/g, `$1${folder}/root/`).replaceAll("'/root/restore", `'${folder}/root/restore`);
    web.stopNow();
    cluster.stop();
    for (const gone of [path.dirname(cluster.dataDirectory), tree, link]) fs.renameSync(gone, path.join(folder, `${path.basename(gone)} of yesterday`));
    const { BORG_PASSPHRASE, BORG_REPO, BORG_KEY_FILE, BORG_RSH, ...env } = server.borgEnv();
    execFileSync('bash', ['-ec', pasted], { env, input: `${BORG_PASSPHRASE}\n`, stdio: ['pipe', 'ignore', 'pipe'] });
    assert.equal(treeFacts(link), facts);
    assert.ok(cluster.isRunning());
    assert.deepEqual(cluster.fingerprint(), rows);
    await everythingRunsAgain([web]);
    fs.rmSync(path.join(folder, 'cluster of yesterday'), { recursive: true });
  });
});
