// The command line: what is not understood begins nothing.
import { test } from 'node:test';
import assert from 'node:assert/strict';
import path from 'node:path';
import fs from 'node:fs';
import { distFile, start, testFolder } from './script.ts';

const folder = testFolder('words'), script = path.join(folder, 'backup.js');
fs.copyFileSync(process.env.COLD_BACKUP_FILE ?? distFile, script);
const run = (...words: string[]) => start([process.execPath, script, ...words]).ended;

test('a slip in an option of the dry run never begins a real run', async () => {
  for (const words of [['--dry-run', 'false'], ['--dry-run=false'], ['--no-dry-run'], ['--dryrun'], ['--no-settings']]) {
    const { code, err } = await run(...words);
    assert.equal(code, 64, words.join(' '));
    assert.match(err, /is not understood|unknown option/);
  }
});

test('unknown commands and options are refused with what was probably meant', async () => {
  for (const [words, meant] of [[['restor'], 'restore'], [['--setings', 'x'], '--settings'], [['stauts'], 'status']] as const) {
    const { code, err } = await run(...words);
    assert.equal(code, 64);
    assert.match(err, new RegExp(`did you mean "${meant}"`));
  }
});

test('a command without its words says which', async () => {
  for (const words of [['restore'], ['restore', 'latest'], ['find'], ['list', 'a', 'b', 'c'], ['status', 'x'], ['list', '--to', '/x'], ['--schedule', 'cron'], ['setup', '--schedule', 'daily'], ['--settings'], ['--settings', ''], ['status', '--all', '--to', 'x'], ['list', '--remote'], ['help', 'a', 'b'], ['setup', '--language', 'fr']]) {
    assert.equal((await run(...words)).code, 64, words.join(' '));
  }
});

test('with --json a refusal is a document, too', async () => {
  const { code, out } = await run('--json');
  assert.equal(code, 64);
  assert.deepEqual({ outcome: 'failed', exitCode: 64 }, (({ outcome, exitCode }) => ({ outcome, exitCode }))(JSON.parse(out)));
});
