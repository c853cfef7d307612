// The report and `status --all`, on the operator's computer: a real server over real ssh that stops a real PostgreSQL, and others with a past of their own.
// The page is looked at by a real browser, with the rules of axe-core.
import './alone.ts';
import assert from 'node:assert/strict';
import { execFileSync, spawn, spawnSync } from 'node:child_process';
import fs from 'node:fs';
import path from 'node:path';
import { after, before, describe, test } from 'node:test';
import { makeServer, repositoryRoot, testFolder, waitFor } from './script.ts';
import type { Server } from './script.ts';
import { freePort, startStorage } from './storage.ts';
import type { Storage } from './storage.ts';
import { makeOperator } from './operator.ts';
import type { OperatorHere } from './operator.ts';
import { makePast } from './past.ts';
import { PG, makeCluster } from './cluster.ts';
import type { TestCluster } from './cluster.ts';
import { cannotRunHere } from './night.ts';
import { REPORT_WORDS } from '../lib/reportwords.ts';
import { restoreText } from '../lib/runbook.ts';

const HOSTILE = '"><script>alert(1)</script><img src=x onerror=alert(1)>\'&\u202e\u0007`${7*7}`';

describe('the report', { skip: cannotRunHere(['chromium']) }, () => {
  const folder = testFolder('report'), files = path.join(folder, 'files'), bin = path.join(folder, 'bin'), calls = path.join(folder, 'calls');
  let storage: Storage, server: Server, operator: OperatorHere, cluster: TestCluster, entries: Record<string, unknown>[], page = '';

  before(async () => {
    fs.mkdirSync(files);
    fs.writeFileSync(path.join(files, 'diary'), 'dear diary\n');
    cluster = await makeCluster({ folder: path.join(folder, 'cluster'), version: 'debian', port: await freePort(), settings: { fsync: 'off' } });
    cluster.sql('postgres', 'create extension pg_trgm; create table t as select generate_series(1, 1000) as n');
    storage = await startStorage(path.join(folder, 'storage'));
    server = await makeServer(path.join(folder, 'server'), 'web1', storage, { stop: [`postgres ${cluster.dataDirectory}`], folders: [files], warmPass: false, language: 'es', drill: { queries: [], folder: '', maxAgeDays: 0 } }, { quota: '5G' });
    for (let night = 0; night < 2; night++) assert.equal((await server.run()).code, 0);
    operator = makeOperator(path.join(folder, 'op'), storage, server);
    entries = [operator.entry({ drillMaxAgeDays: 0 }), makePast(folder, 'shop', { nights: 40, archives: 3, drillDays: 2, odd: { 5: 'missing', 9: 'failed', 20: 'warning' } }), makePast(folder, 'late', { nights: 30, archives: 2, newestHours: 50, liesHours: 48, drillDays: 2, quota: '50K' }),
      makePast(folder, 'evil', { nights: 9, archives: 2, drillDays: 2, drillProven: false, odd: { 0: 'warning' }, text: HOSTILE }), makePast(folder, 'bare', { nights: 3, archives: 1, noRecord: true, unprovenHours: 20, newestHours: 25, drillDays: 1 })];
    operator.write(...entries, { ...operator.entry(), server: 'gone', repository: `ssh://nobody@127.0.0.1:${await freePort()}/./gone`, storage: [] });
    assert.equal((await operator.run(['audit', 'web1', 'shop', 'late', 'evil', 'bare'])).code, 0);
    fs.mkdirSync(bin);
    fs.writeFileSync(path.join(bin, 'borg'), `#!/bin/sh\necho "$*" >> ${calls}\nPATH=$(echo "$PATH" | sed 's#^[^:]*:##') exec borg "$@"\n`, { mode: 0o755 });
  });
  after(() => {
    cluster?.stop();
    storage?.destroy();
  });

  const watched = () => ({ PATH: `${bin}:${process.env.PATH}` });
  const read = (file: string) => fs.readFileSync(file, 'utf8'), sectionOf = (name: string, text = page) => new RegExp(`<section class="server" id="${name}"[^]*?</section>`).exec(text)![0];
  const rowOf = (name: string, text = page) => text.split('<tr role="row"').find((row) => row.includes(`<a href="#${name}">`))!;
  const plain = (text: string) => text.replace(/<(title|desc)[^]*?<\/\1>/g, '').replace(/<[^>]+>/g, ' ').replace(/&#(\d+);/g, (sign, code) => String.fromCharCode(Number(code))).replace(/\s+/g, ' ');

  test('shows every server with its state and the one next step, the worst first; one that cannot be reached says why, and the exit code is 1', async () => {
    const file = path.join(folder, 'page.html'), ended = await operator.run(['report', '--to', file, '--json']);
    assert.equal(ended.code, 1, ended.err);
    page = read(file);
    assert.equal(fs.statSync(file).mode & 0o777, 0o600);
    const told = JSON.parse(ended.out), of = (name: string) => told.find((one: any) => one.server === name);
    assert.deepEqual(told.map((one: any) => one.outcome), ['failed', 'unknown', 'warning', 'warning', 'good', 'good']);
    assert.deepEqual(['late', 'gone', 'web1', 'shop'].map((name) => [of(name).outcome, of(name).next]), [['failed', 'node backup.js doctor'], ['unknown', 'node backup.js audit gone'], ['good', ''], ['good', '']]);
    assert.match(plain(rowOf('late')), /Failed late the last good backup is 2 days old node backup\.js doctor on late .* quota 50\.0 kB · full in \d+ days/, 'by the storage\'s clock, whatever the server says');
    assert.match(plain(rowOf('gone')), /Unknown gone could not be looked at now: .* node backup\.js audit gone on this computer/);
    assert.match(plain(sectionOf('gone')), /hint: \S/);
    assert.match(plain(rowOf('web1')), /Good web1 Nothing to do 0 min ago .* clean .* quota 5\.0 GB/);
    assert.match(plain(rowOf('bare')), /the newest archive \(.*\) is not proven: that night failed node backup\.js status on bare/);
    assert.match(plain(sectionOf('bare')), /its record cannot be had: record\/manifest\.json cannot be read back/);
    assert.match(plain(sectionOf('shop')), /good: 37; with a warning: 1; failed: 1; missing: 1/);
  });

  test('tells of each archive what it holds, and the command that it prints restores it', async () => {
    const { archive } = server.history().pop(), section = plain(sectionOf('web1'));
    assert.match(section, new RegExp(`${archive} proven .* by the storage's clock .*PostgreSQL ${PG}\\.\\d+ .*postgres [\\d.]+ MB \\(pg_trgm 1\\.6\\).*Debian GNU/Linux`));
    assert.match(section, /the same software as the archive above/);
    assert.match(plain(sectionOf('shop')), /PostgreSQL 15\.14 \(15\/main\) shop 2\.1 GB \(pg_trgm 1\.6, postgis 3\.3\.2\); crm 600 MB/);
    const codesIn = (name: string) => [...sectionOf(name).matchAll(/<code>([^<]*)<\/code>/g)].map((found) => plain(found[1]!)), back = (at: string, words: string) => {
      const to = path.join(folder, `back-${path.basename(at)}`);
      execFileSync('sh', ['-c', words.replace(/--to \S+/, `--to ${to}`)], { cwd: at, stdio: ['ignore', 'pipe', 'pipe'] });
      return to;
    };
    const onServer = back(server.folder, codesIn('web1').find((one) => one.startsWith(`node backup.js restore ${archive} --to `))!);
    assert.equal(read(path.join(onServer, files, 'diary')), 'dear diary\n');
    const [command, , where] = codesIn('shop');
    assert.match(`${command} ${where}`, /^node backup\.js restore shop-\S+ --to \S+ --repository \S+ --key-file \S+ --passphrase-file \S+$/);
    assert.ok(fs.existsSync(path.join(back(operator.folder, `${command} ${where}`), 'record/manifest.json')));
  });

  test('RESTORE.md and recovery sheet of a server with language es are Spanish, with the commands of the English ones', () => {
    const { archive } = server.history().pop(), inArchive = (file: string) => server.borg('extract', '--stdout', `::${archive}`, `record/${file}`), spanish = inArchive('RESTORE.md');
    assert.match(spanish, new RegExp(`^# Restaurar ${archive}\n\nTodo lo que el servidor .web1. guardó el `));
    assert.match(read(path.join(server.folder, 'etc/recovery-sheet.txt')), /^HOJA DE RECUPERACIÓN del servidor web1\n\nImprima [^]*^repositorio +ssh:[^]*^frase de paso +\S{40}/m);
    const blocks = (text: string) => [...text.matchAll(/^```(?:sh)?\n([^]*?)^```$/gm)].map(([, block]) => block!.replace(/ {3}#.*$/gm, '').replace(/^read -rs .*$/gm, '').replace(/^ *(else: )?print\(.*$/gm, ''));
    const manifest = JSON.parse(inArchive('manifest.json')), english = restoreText(manifest, 'en');
    assert.deepEqual(blocks(spanish), blocks(english));
    assert.ok(blocks(english).length > 8 && english.startsWith(`# Restore ${archive}\n`));
    const asDebian = (version: string) => restoreText({ ...manifest, plan: { ...manifest.plan, clusters: manifest.plan.clusters.map((one: any) => ({ ...one, version, configFolder: '/etc/postgresql/main' })) } }, 'en');
    assert.deepEqual(['14', '15'].map((version) => /pg_ctl start [^\n]* -c port=5999 [^\n]* -c stats_temp_directory=pg_stat_tmp"/.test(asDebian(version))), [true, false], 'a second PostgreSQL 14 keeps out of the folder of the first one');
  });

  test('nothing out of an archive becomes markup, and the page asks nothing of anybody', () => {
    assert.ok(plain(page).includes('alert(1)'), 'the hostile names are on the page, as text');
    assert.doesNotMatch(page, /[\u202e\u0007]/);
    const tags = page.match(/<[a-z!][^>]*>/gi)!;
    assert.deepEqual(tags.filter((tag) => /\s(src|action|srcset|on\w+|xlink:href)=|\shref="[^#]/i.test(tag)), []);
    assert.deepEqual([...new Set(tags.map((tag) => /^<!?(\w+)/.exec(tag)![1]))].filter((name) => /^(script|img|link|iframe|object|embed|form|base|image|use)$/i.test(name!)), []);
    assert.doesNotMatch(page, /url\(|@import|https?:/);
    assert.match(page, /<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">/);
  });

  test('a second one reads no record and no history again, and waits for no lock', async () => {
    fs.writeFileSync(calls, '');
    const holder = spawn('borg', ['with-lock', '::', 'sh', '-c', 'echo held; sleep 300'], { env: { ...server.borgEnv(), BORG_REPO: storage.repository('web1') }, stdio: ['ignore', 'pipe', 'ignore'], detached: true });
    await waitFor('the lock is held', () => fs.readdirSync(storage.repository('web1')).some((name) => name === 'lock.exclusive'));
    const ended = await operator.run(['report', 'web1', 'shop', '--to', path.join(folder, 'again.html')], watched());
    process.kill(-holder.pid!, 'SIGKILL');
    fs.rmSync(path.join(storage.repository('web1'), 'lock.exclusive'), { recursive: true, force: true });
    assert.equal(ended.code, 0, ended.err);
    assert.deepEqual([...new Set(read(calls).trim().split('\n').map((line) => /(?:^| )(list|extract|info)(?: |$)/.exec(line)?.[1]))], ['list']);
    assert.equal(plain(sectionOf('shop', read(path.join(folder, 'again.html')))), plain(sectionOf('shop')));
  });

  test('in Spanish it is Spanish from the first word to the last, and knows a single server', async () => {
    const file = path.join(folder, 'es.html');
    assert.equal((await operator.run(['report', 'shop', '--to', file, '--lang', 'es'])).code, 0);
    const text = read(file), { en, es } = REPORT_WORDS;
    assert.match(text, /^<!doctype html>\n<html lang="es">/);
    assert.match(plain(text), /Copias de seguridad .*Correcto shop .*Nada que hacer hace 7 h .*3,\d GB \+\S+ MB por noche superado hace 2 días limpia/);
    const english = Object.entries(en).filter(([key, value]) => typeof value === 'string' && value.length > 5 && value !== es[key as 'title']).map(([, value]) => value as string);
    assert.ok(english.length > 30);
    assert.deepEqual(english.filter((word) => new RegExp(`\\b${word.replace(/[()."]/g, '.')}\\b`).test(plain(text.replace(/<code>[^]*?<\/code>/g, '')))), []);
    const wrong = await operator.run(['report', '--to', file, '--lang', 'fr']);
    assert.deepEqual([wrong.code, /--lang fr: it is 'en' or 'es'/.test(wrong.err)], [64, true]);
  });

  test('is read by a screen reader, in light and dark, wide and narrow: axe-core finds nothing', () => {
    const axe = path.join(repositoryRoot, 'node_modules/axe-core/axe.min.js'), look = path.join(folder, 'look.html');
    for (const file of ['page.html', 'es.html']) {
      fs.writeFileSync(look, read(path.join(folder, file)).replace(/<meta http-equiv[^>]*>/, '').replace('<details>', '<details open>').replace('</body>', `<script src="file://${axe}"></script><script>
        axe.run(document, { resultTypes: ['violations'] }).then(({ violations, passes }) => { document.body.textContent = 'AXE' + JSON.stringify({ scheme: matchMedia('(prefers-color-scheme: dark)').matches ? 'dark' : 'light', width: innerWidth, passes: passes.length,
          violations: violations.map(({ id, nodes }) => [id, nodes.length, nodes[0].html.slice(0, 200), nodes[0].failureSummary]) }) + 'AXE'; });</script></body>`));
      for (const [scheme, width] of [[1, 1280], [0, 1280], [0, 500]] as const) {
        const dom = execFileSync('chromium', ['--headless=new', '--no-sandbox', '--disable-gpu', `--user-data-dir=${folder}/chromium`, '--allow-file-access-from-files', `--blink-settings=preferredColorScheme=${scheme}`, `--window-size=${width},1000`, '--virtual-time-budget=30000', '--dump-dom', `file://${look}`], { encoding: 'utf8', stdio: ['ignore', 'pipe', 'ignore'], timeout: 120_000, maxBuffer: 1 << 28 });
        const found = JSON.parse(/AXE(\{.*\})AXE/s.exec(dom)![1]!.replace(/&lt;/g, '<').replace(/&gt;/g, '>').replace(/&amp;/g, '&'));
        assert.deepEqual(found.violations, [], `${file} ${JSON.stringify(found)}`);
        assert.ok(found.passes > 15 && found.scheme === (scheme === 0 ? 'dark' : 'light') && (width > 600) === (found.width > 600), JSON.stringify(found));
      }
    }
  });

  test('needs a file to write to, and never writes over anything else', async () => {
    const there = path.join(folder, 'a folder');
    fs.mkdirSync(there);
    for (const [words, error] of [[[], /report needs --to FILE\n {2}hint: node backup\.js report --to backups\.html/], [['--to', there], /is there, and is no file/], [['--to', '/dev/null'], /is there, and is no file/], [['--to', path.join(there, 'x/y.html')], /there is no folder/]] as const) {
      const ended = await operator.run(['report', 'shop', ...words]);
      assert.equal(ended.code, 64, words.join(' '));
      assert.match(ended.err, error);
    }
    assert.deepEqual(fs.readdirSync(there), []);
    execFileSync('mount', ['-t', 'tmpfs', '-o', 'ro', 'tmpfs', there]);
    const ended = await operator.run(['report', 'shop', '--to', path.join(there, 'page.html')], watched());
    execFileSync('umount', [there]);
    assert.equal(ended.code, 2);
    assert.match(ended.err, /page\.html.* cannot be written: EROFS\n {2}hint: look at `df -h`/);
  });

  test('what prunes freed counts against what came: a repository that stays as it is is never full', async () => {
    const ledger = path.join(operator.folder, 'ledger/late.json'), was = read(ledger), book = JSON.parse(was);
    const perDay = async () => JSON.parse((await operator.run(['report', 'late', '--to', path.join(folder, 'space.html'), '--json'])).out)[0].space.perDay;
    assert.ok(await perDay() > 0);
    fs.writeFileSync(ledger, JSON.stringify({ ...book, prunes: [{ at: new Date().toISOString(), deleted: [], freedBytes: 1e12 }] }));
    assert.equal(await perDay(), 0);
    fs.writeFileSync(ledger, was);
  });

  // ---- status --all ----

  const statusOf = async (...words: string[]) => {
    const ended = await operator.run(['status', '--all', '--json', ...words]), all = JSON.parse(ended.out);
    return { code: ended.code, of: (name: string) => all.find((one: any) => one.server === name), outcomes: all.map((one: any) => `${one.server} ${one.outcome}`) };
  };

  test('status --all names the servers whose newest proven archive is too old, and touches no key', async () => {
    operator.write(...entries);
    for (const key of ['borg_key', 'passphrase']) fs.renameSync(path.join(operator.folder, key), path.join(operator.folder, `${key}.away`));
    fs.writeFileSync(calls, '');
    const { code, of, outcomes } = await statusOf();
    assert.deepEqual([code, outcomes], [2, ['web1 good', 'shop good', 'late failed', 'evil good', 'bare good']]);
    assert.match(of('late').why, /^late-\S+, proven, written 5\d h \d+ min ago by the storage's clock; nothing came since/);
    const quiet = await operator.run(['status', '--all', '--quiet'], watched());
    assert.equal(quiet.code, 2);
    assert.match(quiet.out, /^CRITICAL: late: .*\n {2}next: node backup\.js doctor {4}\(on late\)\n$/);
    assert.equal(read(calls), '', 'no borg was called');
    for (const key of ['borg_key', 'passphrase']) fs.renameSync(path.join(operator.folder, `${key}.away`), path.join(operator.folder, key));
    assert.equal((await operator.run(['status', '--all', 'shop', 'web1', '--quiet'])).out, '');
  });

  test('the key that the README gives to cron is enough for status --all, without any other, and can change nothing on the storage', async () => {
    const key = path.join(operator.folder, 'watch_key'), line = /^ *(command="bwrap .*) ssh-ed25519 AAAA\.\.\. watch$/m.exec(read(path.join(repositoryRoot, 'README.md')))![1]!;
    execFileSync('ssh-keygen', ['-q', '-t', 'ed25519', '-N', '', '-f', key]);
    storage.authorizeLine(`${line} ${read(`${key}.pub`)}`);
    const ssh = (operator.entry().storage as string[]).map((word) => (word === path.join(operator.folder, 'ssh_key') ? key : word));
    operator.write({ server: 'web1', repository: storage.url('web1'), storage: ssh });
    assert.deepEqual((await statusOf()).outcomes, ['web1 good']);
    const { status, stderr } = spawnSync(ssh[0]!, [...ssh.slice(1), `touch ${storage.repository('web1')}/x`], { encoding: 'utf8' });
    assert.deepEqual([status, /Read-only file system/.test(stderr)], [1, true], stderr);
    operator.write(...entries);
  });

  test('what came since the last audit counts when it is as much as a proven night, and a night without its proof does not', async () => {
    const bookFile = path.join(operator.folder, 'ledger/web1.json'), text = read(bookFile), old = (hours: number) => text.replaceAll(/"seenAt": "([^"]*)"/g, () => `"seenAt": "${new Date(Date.now() - hours * 3_600_000).toISOString().slice(0, 19)}Z"`);
    fs.writeFileSync(bookFile, old(40)); // as if the nights that the audit saw lay two days back
    assert.match((await statusOf('web1')).of('web1').why, /nothing came since/);
    server.borg('create', '::web1-2026-11-26T01:00:00', server.script); // killed before its proof
    const unproven = await statusOf('web1');
    assert.deepEqual([unproven.code, unproven.of('web1').since], [2, 1]);
    assert.match(unproven.of('web1').why, /in 1 of the 2 transactions of a proven night: it did not come to its proof/);
    server.borg('delete', '::web1-2026-11-26T01:00:00');
    assert.equal((await server.run()).code, 0);
    const { code, of } = await statusOf('web1');
    assert.deepEqual([code, of('web1').outcome, of('web1').ageHours > 39], [0, 'good', true]);
    assert.match(of('web1').why, /^written to .* ago, in as many transactions as a proven night; whether it is proven, an audit with the key tells; web1-/);
    fs.writeFileSync(bookFile, old(40).replace(/"lastAuditAt": "[^"]*"/, '"lastAuditAt": "2026-01-01T00:00:00.000Z"'));
    assert.deepEqual([(await statusOf('web1')).code, (await statusOf('web1')).of('web1').next], [1, 'node backup.js audit web1']);
    fs.writeFileSync(bookFile, text);
    operator.write(operator.entry({ storage: [] }));
    const hosted = path.join(folder, 'hosted.html');
    assert.deepEqual([(await statusOf('web1')).code, (await operator.run(['report', '--to', hosted])).code, /not known: the storage gives no shell/.test(plain(rowOf('web1', read(hosted))))], [0, 0, true]);
    operator.write(...entries);
    storage.stop();
    const away = await statusOf('web1');
    assert.deepEqual([away.code, /its storage cannot be looked at/.test(away.of('web1').why)], [2, true]);
    const file = path.join(folder, 'away.html');
    assert.equal((await operator.run(['report', 'web1', '--to', file])).code, 1);
    assert.match(plain(rowOf('web1', read(file))), /Unknown web1 could not be looked at now/);
    assert.match(plain(sectionOf('web1', read(file))), new RegExp(`PostgreSQL ${PG}\\.\\d+ .*pg_trgm`), 'what was known of it is still there');
  });
});
