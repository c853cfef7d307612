// Telling how a run went: to a real web server, a real command, a real file.
import assert from 'node:assert/strict';
import fs from 'node:fs';
import http from 'node:http';
import path from 'node:path';
import { after, before, beforeEach, describe, test } from 'node:test';
import { distFile, start, testFolder } from './script.ts';
import { freePort } from './storage.ts';
import { settings as block } from '../lib/settings.ts';
import { warnings } from '../lib/say.ts';
import { tell } from '../lib/tell.ts';
import type { Outcome } from '../lib/tell.ts';

const folder = testFolder('tell'), stateFolder = path.join(folder, 'state'), metrics = path.join(folder, 'backup.prom'), told = path.join(folder, 'told');
const script = path.join(folder, 'messenger');

type Request = { method: string; path: string; query: URLSearchParams; body: string; title: string; tags: string };
const requests: Request[] = [];
let answers: (number | 'hang')[] = []; // what the next requests get; 200 afterwards
let origin = '';
const server = http.createServer((request, response) => {
  let body = '';
  request.on('data', (piece) => { body += piece; });
  request.on('end', () => {
    const { pathname, searchParams } = new URL(request.url!, 'http://x');
    requests.push({ method: request.method!, path: pathname, query: searchParams, body, title: Buffer.from(String(request.headers.title ?? ''), 'latin1').toString(), tags: String(request.headers.tags ?? '') });
    const answer = answers.shift() ?? 200;
    if (answer !== 'hang') response.writeHead(answer).end('OK');
  });
});

before(async () => {
  fs.mkdirSync(stateFolder);
  fs.writeFileSync(script, `#!/bin/sh\n{ echo "$COLD_BACKUP_OUTCOME|$COLD_BACKUP_SERVER|$COLD_BACKUP_SUBJECT|$*"; cat; } > ${told}\n`, { mode: 0o755 });
  await new Promise<void>((done) => { server.listen(0, '127.0.0.1', done); });
  const address = server.address();
  origin = `http://127.0.0.1:${typeof address === 'object' ? address!.port : 0}`;
});
after(() => { server.closeAllConnections(); server.close(); });
beforeEach(() => {
  requests.length = 0;
  warnings.length = 0;
  answers = [];
  for (const file of [told, metrics]) fs.rmSync(file, { force: true });
});

const settingsWith = (messengers: object) => ({ ...block, stateFolder, tell: { ping: '', command: [], metrics: '', sendLog: false, ...messengers } });

function message(outcome: Outcome['outcome'], line: object = {}): Outcome {
  return { server: 'web1', outcome, subject: `${outcome}: web1: something`, body: 'the summary\nof the night', logTail: 'LOG '.repeat(10_000),
    line: { kind: 'run', startedAt: '2026-11-23T02:00:00.000Z', endedAt: '2026-11-23T03:00:00.000Z', outcome, exitCode: 0, downSeconds: 61.5,
      parts: [{ name: 'a', runningAt: '2026-11-23T02:59:00.000Z' }], warm: { deduplicatedBytes: 1000 }, cold: { deduplicatedBytes: 23 }, ...line } };
}

const gauge = (name: string) => Number(new RegExp(`^cold_backup_${name}\\{server="web1"\\} (\\S+)$`, 'm').exec(fs.readFileSync(metrics, 'utf8'))?.[1] ?? NaN);

describe('the ping', () => {
  test('tells start, good and failed at the addresses healthchecks has for them, paired by one rid', async () => {
    const settings = settingsWith({ ping: `${origin}/ping/abc` });
    for (const outcome of ['start', 'good', 'warning', 'failed', 'down'] as const) await tell(settings, message(outcome));
    assert.deepEqual(requests.map((one) => `${one.method} ${one.path}`), ['POST /ping/abc/start', 'POST /ping/abc', 'POST /ping/abc', 'POST /ping/abc/fail', 'POST /ping/abc/fail']);
    const [rid] = new Set(requests.map((one) => one.query.get('rid')));
    assert.match(rid!, /^[0-9a-f]{8}-[0-9a-f]{4}-5[0-9a-f]{3}-8[0-9a-f]{3}-[0-9a-f]{12}$/);
    assert.equal(new Set(requests.map((one) => one.query.get('rid'))).size, 1);
    await tell(settings, message('start', { startedAt: '2026-11-24T02:00:00.000Z' }));
    assert.notEqual(requests.pop()!.query.get('rid'), rid, 'another night has another one');
    assert.deepEqual(warnings, []);
  });

  test('keeps the query of an address', async () => {
    await tell(settingsWith({ ping: `${origin}/p/my-slug/?create=1&x=a%20b` }), message('failed'));
    assert.equal(requests[0]!.path, '/p/my-slug/fail');
    assert.deepEqual([...requests[0]!.query.keys()], ['create', 'x', 'rid']);
    assert.equal(requests[0]!.query.get('x'), 'a b');
  });

  test("carries the summary, and the log's end only when asked to", async () => {
    await tell(settingsWith({ ping: origin }), message('failed'));
    await tell(settingsWith({ ping: origin, sendLog: true }), message('failed'));
    await tell(settingsWith({ ping: origin }), { ...message('good'), body: 'ñ'.repeat(50_000) });
    const [short, long, cut] = requests.map((one) => one.body);
    assert.equal(short, 'failed: web1: something\n\nthe summary\nof the night');
    assert.ok(long!.startsWith(`${short}\n\n`) && long!.endsWith('LOG '));
    for (const body of [long!, cut!]) assert.ok(Buffer.byteLength(body) <= 10_010, String(Buffer.byteLength(body)));
  });

  test('is tried once more before it is a warning', async () => {
    answers = [503];
    await tell(settingsWith({ ping: `${origin}/geheim` }), message('good'));
    assert.equal(requests.length, 2);
    assert.deepEqual(warnings, []);
    answers = [404, 404];
    await tell(settingsWith({ ping: `${origin}/geheim?k=geheim` }), message('good'));
    assert.deepEqual(warnings, [`tell.ping (${origin}) did not work: it answered 404`]);
  });

  test('to a server that is not there, or never answers, is a warning that does not show the address', async () => {
    const closed = `http://127.0.0.1:${await freePort()}`;
    await tell(settingsWith({ ping: `${closed}/geheim` }), message('good'));
    answers = ['hang', 'hang'];
    const began = Date.now();
    await tell(settingsWith({ ping: `${origin}/geheim` }), message('good'));
    assert.ok(Date.now() - began < 25_000);
    assert.deepEqual(warnings, [`tell.ping (${closed}) did not work: ECONNREFUSED`, `tell.ping (${origin}) did not work: no answer within 10 s`]);
  });
});

describe('the command', () => {
  test('gets the outcome in its environment and the summary on its standard input', async () => {
    await tell(settingsWith({ command: [script, 'to "me"', '$HOME'] }), message('down'));
    assert.equal(fs.readFileSync(told, 'utf8'), 'down|web1|down: web1: something|to "me" $HOME\nthe summary\nof the night\n');
    assert.deepEqual(fs.readdirSync(stateFolder), [], 'nothing is left of it');
  });

  test('is not run at the start', async () => {
    await tell(settingsWith({ command: [script], metrics }), message('start'));
    assert.ok(!fs.existsSync(told) && !fs.existsSync(metrics));
  });

  test('is run even when the state folder takes nothing', async () => {
    await tell({ ...settingsWith({ command: [script] }), stateFolder: '/proc/nothing' }, message('failed'));
    assert.match(fs.readFileSync(told, 'utf8'), /^failed\|.*\nthe summary/);
  });

  test('that fails or is missing is a warning with its last words', async () => {
    await tell(settingsWith({ command: ['sh', '-c', 'echo no route >&2; exit 7'] }), message('good'));
    await tell(settingsWith({ command: ['/no/such/thing'] }), message('good'));
    assert.equal(warnings[0], 'tell.command did not work: exit code 7, no route');
    assert.match(warnings[1]!, /^tell\.command did not work: exit code 127, .*No such file/);
  });
});

describe('the metrics', () => {
  test('are whole, for everybody to read, and say what Prometheus wants to know', async () => {
    const umask = process.umask(0o077);
    await tell(settingsWith({ metrics }), message('warning', { exitCode: 1 }));
    process.umask(umask);
    assert.equal(fs.statSync(metrics).mode & 0o7777, 0o644);
    assert.deepEqual(fs.readdirSync(folder).filter((name) => name.startsWith('backup.prom')), ['backup.prom']);
    assert.equal(gauge('last_run_timestamp_seconds'), Date.parse('2026-11-23T03:00:00Z') / 1000);
    assert.equal(gauge('last_success_timestamp_seconds'), Date.parse('2026-11-23T03:00:00Z') / 1000);
    assert.deepEqual(['last_exit_code', 'down_seconds', 'duration_seconds', 'stored_bytes', 'services_down'].map(gauge), [1, 61.5, 3600, 1023, 0]);
    const text = fs.readFileSync(metrics, 'utf8');
    assert.ok(text.endsWith('\n'));
    for (const line of text.trimEnd().split('\n')) assert.match(line, /^(# HELP cold_backup_\w+ \S.*|# TYPE cold_backup_\w+ gauge|cold_backup_\w+\{server="web1"\} [\d.]+)$/);
  });

  test('keep the time of the last success when a run fails, and count what is down', async () => {
    await tell(settingsWith({ metrics }), message('good'));
    await tell(settingsWith({ metrics }), message('down', { endedAt: '2026-11-24T03:00:00.000Z', exitCode: 3, parts: [{ runningAt: null }, { runningAt: null }, { runningAt: 'x' }], warm: null, cold: null }));
    assert.equal(gauge('last_success_timestamp_seconds'), Date.parse('2026-11-23T03:00:00Z') / 1000);
    assert.deepEqual(['last_exit_code', 'services_down', 'stored_bytes'].map(gauge), [3, 2, 0]);
    assert.equal(gauge('last_run_timestamp_seconds'), Date.parse('2026-11-24T03:00:00Z') / 1000);
  });

  test('take the last success from the history when the file is gone', async () => {
    const history = path.join(stateFolder, 'history.jsonl');
    fs.writeFileSync(history, '{"kind":"run","startedAt":"2026-11-20T01:00:00Z","endedAt":"2026-11-20T02:00:00Z","outcome":"good","exitCode":0,"archive":"web1-2026-11-20T01:00:00","downSeconds":1}\n');
    await tell(settingsWith({ metrics }), message('failed'));
    fs.rmSync(history);
    assert.equal(gauge('last_success_timestamp_seconds'), Date.parse('2026-11-20T02:00:00Z') / 1000);
    fs.rmSync(metrics);
    await tell(settingsWith({ metrics }), message('failed'));
    assert.equal(gauge('last_success_timestamp_seconds'), 0);
  });

  test('of a drill are none: these are about runs', async () => {
    await tell(settingsWith({ metrics }), message('good', { kind: 'drill' }));
    assert.ok(!fs.existsSync(metrics));
  });

  test('escape the label, and a folder that is not there is a warning', async () => {
    await tell(settingsWith({ metrics }), { ...message('good'), server: 'a"b\\c\nd' });
    assert.match(fs.readFileSync(metrics, 'utf8'), /\{server="a\\"b\\\\c\\nd"\} /);
    await tell(settingsWith({ metrics: path.join(folder, 'gone', 'x.prom') }), message('good'));
    assert.match(warnings[0]!, /^tell\.metrics did not work: ENOENT/);
  });
});

describe('by protocols that others speak', () => {
  test('ntfy takes the message that a line of curl publishes: the subject as its title, the summary as its text', async () => {
    const command = ['sh', '-c', `curl --silent --show-error --fail --header "Title: $COLD_BACKUP_SUBJECT" --header "Tags: $COLD_BACKUP_OUTCOME" --data-binary @- ${origin}/backups`];
    await tell(settingsWith({ command }), { ...message('failed'), subject: 'fallo: web1: NO hay copia nueva: la línea se cortó' });
    assert.deepEqual(requests.map(({ method, path: topic, title, tags, body }) => [method, topic, title, tags, body]), [['POST', '/backups', 'fallo: web1: NO hay copia nueva: la línea se cortó', 'failed', 'the summary\nof the night\n']]);
    assert.deepEqual(warnings, []);
    answers = [507];
    await tell(settingsWith({ command }), message('failed'));
    assert.match(warnings[0]!, /^tell\.command did not work: exit code 22, curl: .* 507/);
  });

  test('a check of healthchecks is started, up and down as the nights go', async () => {
    const states: string[] = [], started = new Map<string, number>();
    for (const outcome of ['start', 'good', 'start', 'failed', 'start', 'warning', 'start', 'down'] as const) {
      requests.length = 0;
      await tell(settingsWith({ ping: `${origin}/ping/5bf66975-d4c7-4bf5-bcc8-b8d8a82ea278` }), message(outcome, { startedAt: `2026-11-2${states.length >> 1}T02:00:00.000Z` }));
      // As hc/api/views.py reads an address: /ping/UUID, and then /start, /log, /fail or an exit code.
      const [, action = ''] = /^\/ping\/[0-9a-f-]{36}(?:\/(start|log|fail|\d{1,3}))?$/.exec(requests[0]!.path) ?? assert.fail(requests[0]!.path), rid = requests[0]!.query.get('rid')!;
      if (action === 'start') started.set(rid, states.length);
      else assert.equal(started.get(rid), states.length - 1, 'it knows how long the night took');
      states.push(action === 'start' ? 'started' : action === '' || action === '0' ? 'up' : 'down');
    }
    assert.deepEqual(states, ['started', 'up', 'started', 'down', 'started', 'up', 'started', 'down']);
  });
});

describe('a run', () => {
  test('that fails tells everybody, and a messenger that fails keeps none of the others silent', async () => {
    const own = path.join(folder, 'own');
    fs.mkdirSync(own);
    fs.copyFileSync(distFile, path.join(own, 'backup.js'));
    const settings = { server: 'web1', folders: [own], repository: '/nowhere', before: ['false'], stateFolder: path.join(own, 'state'), tell: { ping: `${origin}/geheim`, command: [script], metrics } };
    fs.writeFileSync(path.join(own, 'backup.settings.js'), `const settings = ${JSON.stringify(settings)};\n`, { mode: 0o600 });
    const ended = await start([process.execPath, path.join(own, 'backup.js'), '--now']).ended;
    assert.equal(ended.code, 2, ended.err);
    assert.deepEqual(requests.map((one) => one.path), ['/geheim/start', '/geheim/fail']);
    assert.equal(requests[0]!.query.get('rid'), requests[1]!.query.get('rid'));
    assert.match(requests[1]!.body, /^failed: web1: NO new backup/);
    assert.match(fs.readFileSync(told, 'utf8'), /^failed\|web1\|failed: web1: NO new backup/);
    assert.deepEqual([gauge('last_exit_code'), gauge('last_success_timestamp_seconds')], [2, 0]);
    answers = [500, 500, 500, 500];
    fs.rmSync(told);
    const again = await start([process.execPath, path.join(own, 'backup.js'), '--now']).ended;
    assert.equal(again.code, 2);
    assert.ok(fs.existsSync(told));
    assert.ok(again.err.includes(`warning: tell.ping (${origin}) did not work: it answered 500`), again.err);
    assert.ok(!`${again.out}${again.err}${ended.out}${ended.err}`.includes('geheim'));
  });
});
