// Settings: what is read, what is refused and with which words, and what is shown of them.
import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import fs from 'node:fs';
import path from 'node:path';
import { before, describe, test } from 'node:test';
import { distFile, start, testFolder } from './script.ts';
import type { Ended } from './script.ts';
import { stateFoldersIn } from '../lib/check.ts';

const folder = testFolder('settings');
const script = path.join(folder, 'backup.js'), beside = path.join(folder, 'backup.settings.js'), file = path.join(folder, 'my.settings.js');
before(() => fs.copyFileSync(distFile, script));

const ask = (...words: string[]): Promise<Ended> => start([process.execPath, script, '--print-settings', ...words]).ended;

/** Writes a settings file and asks what it comes to. */
async function asked(text: string, ...words: string[]): Promise<Ended> {
  fs.writeFileSync(file, text, { mode: 0o600 });
  return ask('--settings', file, ...words);
}

async function inForce(text: string): Promise<any> {
  const ended = await asked(text, '--json');
  assert.equal(ended.code, 0, ended.err);
  return JSON.parse(ended.out);
}

/** The mistakes told about a file, without its name: 'line 3: folders ...'. */
async function mistakes(text: string): Promise<string[]> {
  const ended = await asked(text);
  assert.equal(ended.code, 64, ended.out);
  assert.equal(ended.out, '');
  const [head, ...list] = ended.err.trimEnd().split('\n');
  assert.equal(head, `backup: error: ${list.length} mistake${list.length === 1 ? '' : 's'} in the settings; nothing was touched`);
  return list.map((line) => line.replace(`  ${file}, `, ''));
}

const needed = "folders: ['/srv'], repository: '/backup/repo'";
const mistakesIn = (more: string) => mistakes(`const settings = { ${needed},\n${more} };\n`);

describe('what is in force', () => {
  test('a file that says only the least has a default for everything else', async () => {
    const all = await inForce(`const settings = { ${needed} };`);
    assert.deepEqual(all.folders, { value: ['/srv'], from: `${file}, line 1` });
    assert.deepEqual(all.maxDowntimeMinutes, { value: 120, from: 'default' });
    assert.deepEqual(all.tell.value, { ping: '', command: [], metrics: '', sendLog: false });
    assert.deepEqual(all.drill.value, { queries: [], folder: '', maxAgeDays: 8 });
    assert.deepEqual(Object.keys(all), ['server', 'stop', 'folders', 'volumes', 'before', 'exclude', 'repository', 'sshKey', 'knownHostsFile', 'keyFile', 'passphraseFile',
      'window', 'maxDowntimeMinutes', 'stopTimeoutSeconds', 'warmPass', 'snapshot', 'compression', 'chunker', 'uploadLimitKiB', 'tell', 'maxAgeHours', 'drill', 'language', 'stateFolder']);
  });

  test('every setting of the block in the script has the default that stands there', async () => {
    const block = /^const settings = \{[^]*?^\};/m.exec(fs.readFileSync(distFile, 'utf8'))![0];
    const written = await inForce(block.replace("folders: []", "folders: ['/srv']").replace("repository: ''", "repository: '/repo'"));
    const defaults = await inForce(`const settings = { ${needed} };`);
    for (const key of Object.keys(defaults)) if (key !== 'folders' && key !== 'repository') assert.deepEqual(written[key].value, defaults[key].value, key);
  });

  test('the block counts when no file lies beside the script, and is replaced whole by one that does', async () => {
    const text = fs.readFileSync(distFile, 'utf8').replace('folders: [],', "folders: ['/srv'],").replace("repository: '',", "repository: '/repo',").replace('maxAgeHours: 26', 'maxAgeHours: 30');
    const own = path.join(testFolder('block'), 'backup.js');
    fs.writeFileSync(own, text);
    const line = text.slice(0, text.indexOf('maxAgeHours: 30')).split('\n').length;
    const block = JSON.parse((await start([process.execPath, own, '--print-settings', '--json']).ended).out);
    assert.deepEqual(block.maxAgeHours, { value: 30, from: `${own}, line ${line}` });
    fs.writeFileSync(path.join(path.dirname(own), 'backup.settings.js'), `const settings = { ${needed} };`);
    const replaced = JSON.parse((await start([process.execPath, own, '--print-settings', '--json']).ended).out);
    assert.deepEqual(replaced.maxAgeHours, { value: 26, from: 'default' });
    const named = JSON.parse((await start([process.execPath, own, '--print-settings', '--json', '--settings', own]).ended).out);
    assert.equal(named.maxAgeHours.value, 30, 'the script itself may be named');
  });

  test('what is printed can be saved as a settings file, and says the same', async () => {
    const text = `const settings = { ${needed}, server: 'a.b-c_1', stop: [['service a', 'compose b'], 'container *', 'postgres *', 'postgres 15/main', 'postgres /srv/pg data',
      { name: 'it\\'s "one"', running: ['a', 'b c'], stop: ['sh', '-c', 'x\\ny'], start: ['ñ', '"'] }], window: { from: '23:00', until: '05:30', timeZone: 'Africa/Maputo' },
      exclude: ['*.tmp', 're:\\\\.cache$'], tell: { ping: 'https://hc.example.org/ping/x', sendLog: true },
      drill: { queries: [{ cluster: '15/main', database: 'shop', sql: 'select\\n1', expect: 1 }] } };`;
    const first = await inForce(text);
    const printed = (await asked(text)).out;
    assert.match(printed, /^ {2}server: 'a\.b-c_1', \/\/ from .*my\.settings\.js, line 1; /m);
    assert.match(printed, /^ {4}metrics: '', \/\/ default; /m);
    const second = await inForce(printed);
    for (const key of Object.keys(first)) assert.deepEqual(second[key].value, first[key].value, key);
  });

  test('any repository that borg takes is taken', async () => {
    for (const one of ['ssh://borg@storage.example.org/./web1', 'ssh://storage:2222/srv/x', 'ssh://u@[2001:db8::1]:22/~/x', 'borg@host:web1', 'host:/srv/web1', '/mnt/backup/web1']) {
      assert.equal((await inForce(`const settings = { folders: ['/srv'], repository: '${one}' };`)).repository.value, one);
    }
  });
});

describe('mistakes', () => {
  test('all of them are told at once, each with its own line', async () => {
    const list = await mistakes(`// folders: 'not me'
const settings = {
  folderz: ['/srv'],
  drill: { folder: 'x',
    queries: [{ cluster: '15/main', database: 'shop', sql: 'select 1',
      expct: 1 }] },
  /* folders: { */
  folders: [
    '/srv', // it's [ "here"
    'relative/x',
    '/srv/', '/a//b',
  ],
  repository: "/x", "tell": { 'ping': 'ftp://secret', comand: [] },
  maxDowntimeMinutes: '120',
};`);
    assert.deepEqual(list.map((line) => line.slice(0, 60)), [
      'line 3: folderz is not a known setting - did you mean "folders"?',
      "line 4: drill.folder must be a whole path like '/var/www', without // or .. in it, not 'x'",
      'line 5: drill.queries[0].expect is missing',
      'line 6: drill.queries[0].expct is not a known setting - did you mean "expect"?',
      "line 10: folders[1] must be a whole path like '/var/www', without // or .. in it, not 'relative/x'",
      "line 11: folders[3] must be a whole path like '/var/www', without // or .. in it, not '/a//b'",
      "line 11: folders[2] '/srv' is in the list already",
      'line 13: tell.comand is not a known setting - did you mean "command"?',
      "line 13: tell.ping must be a whole address that starts with 'https://' or 'http://', without user and password",
      "line 14: maxDowntimeMinutes must be a number from 0.01 to 10080, without quotes, not '120'",
    ].map((line) => line.slice(0, 60)));
    assert.ok(!list.join().includes('secret'), 'an address is never repeated');
  });

  const one: Record<string, [string, RegExp]> = {
    'a stop entry with an unknown word': ["stop: ['servise nginx']", /^line 2: stop\[0\] must start with service, compose, .* not 'servise nginx' - did you mean "service"\?$/],
    'a stop entry without a word': ["stop: ['nginx']", /must start with service/],
    'a name that would be an option': ["stop: ['container -f']", /must be like 'container redis'/],
    'a service of two words': ["stop: ['service nginx php']", /must be like 'service nginx'/],
    'a cluster without version': ["stop: ['postgres main']", /must be like 'postgres 15\/main'/],
    'a part that stands in two lists': ["stop: ['service a', ['service b', 'service a.service']]", /^line 2: stop\[1\]\[1\] 'service a' is in the list already$/],
    'an empty list inside stop': ['stop: [[]]', /stop\[0\] is an empty list/],
    'commands of its own without start': ["stop: [{ name: 'x', running: ['a'], stop: ['b'] }]", /stop\[0\]\.start is missing/],
    'a command that is one text': ["stop: [{ name: 'x', running: 'a -b', stop: ['b'], start: ['c'] }]", /stop\[0\]\.running must be a list of words, like \[ 'a', '-b' \]/],
    'a command without words': ["stop: [{ name: 'x', running: [], stop: ['b'], start: ['c'] }]", /stop\[0\]\.running is an empty list/],
    'a hole in a list': ["exclude: ['a', , 'b']", /exclude\[1\] must be .* not undefined/],
    'a pattern that is an option': ["exclude: ['--delete']", /exclude\[0\] must be a borg pattern/],
    'a NUL in a path': ["volumes: ['a\\0b']", /volumes\[0\]/],
    'yes in quotes': ["warmPass: 'yes'", /warmPass must be true or false, without quotes, not 'yes'/],
    'a word that is nearly right': ["snapshot: 'yess'", /snapshot must be 'no' or 'yes', not 'yess' - did you mean "yes"\?/],
    'a negative limit': ['uploadLimitKiB: -1', /uploadLimitKiB must be a whole number from 0/],
    'no downtime at all': ['maxDowntimeMinutes: 0', /maxDowntimeMinutes must be a number/],
    'no number': ['maxAgeHours: NaN', /maxAgeHours must be a number/],
    'a clock with three digits': ["window: { from: '1:00', until: '05:00', timeZone: 'UTC' }", /window\.from must be a time/],
    'a window without time zone': ["window: { from: '01:00', until: '05:00' }", /^line 2: window\.timeZone is missing/],
    'a window of no length': ["window: { from: '01:00', until: '01:00', timeZone: 'UTC' }", /window ends when it begins/],
    'a time zone that is nearly right': ["window: { from: '01:00', until: '05:00', timeZone: 'Africa/Maputu' }", /did you mean "Africa\/Maputo"\?/],
    'a name that proofs have': ["server: 'proven-web'", /server must be/],
    'a name with a blank': ["server: 'web 1'", /server must be/],
    'a setting at the wrong place': ["ping: 'https://x'", /ping is not a known setting$/],
    'a group that is text': ["tell: 'me'", /tell must be a group/],
    'null for no address': ['tell: { ping: null }', /tell\.ping must be a whole address/],
    'an address as the README shortens it': ["tell: { ping: 'https://hc-ping.com/...' }", /tell\.ping must be a whole address/],
    'a setting given twice': ["folders: ['/other']", /^line 2: folders is given twice/],
    'an unknown compression': ["compression: 'gzip'", /compression must be one that borg knows/],
    'an unknown chunker': ["chunker: 'fixed'", /chunker must be one that borg knows/],
    'a function': ["server: () => 'x'", /server must be .* not a function/],
  };
  for (const [what, [more, expected]] of Object.entries(one)) {
    test(what, async () => {
      const list = await mistakesIn(more);
      assert.equal(list.length, 1, list.join('\n'));
      assert.match(list[0]!, expected);
    });
  }

  test('a repository must be given, be one that borg takes, and hold no password', async () => {
    const of = (repository: string) => mistakes(`const settings = { folders: ['/srv'], ${repository} };`);
    assert.match((await of('')).join(), /^line 1: repository is needed/);
    for (const bad of ['relative/x', 'http://host/x', 'ssh://host', 'sftp://u@host/x', 'ssh://-oProxyCommand=x/x', '/repo::archive', '/repo\\n']) {
      assert.match((await of(`repository: '${bad}'`)).join(), /^line 1: repository must be like 'ssh:\/\//, bad);
    }
    for (const bad of ['ssh://u:geheim@host/x', 'u:geheim@host:x']) {
      const [told] = await of(`repository: '${bad}'`);
      assert.match(told!, /repository holds a password/);
      assert.ok(!told!.includes('geheim'));
    }
  });

  test('a passphrase written in place of its file is not repeated', async () => {
    assert.deepEqual(await mistakesIn("passphraseFile: 'geheim'"), ['line 2: passphraseFile must be the whole path of a file']);
  });

  test('something must be backed up', async () => {
    assert.match((await mistakes("const settings = { repository: '/r',\n stop: [] };")).join(), /^line 2: stop and folders are empty/);
  });

  test('a file that is no JavaScript shows the line and the place in it', async () => {
    const ended = await asked("const settings = {\n  folders: ['/srv']\n  warmPass: true,\n};");
    assert.equal(ended.code, 64);
    assert.match(ended.err, /my\.settings\.js, line 3: it is not valid JavaScript\n.*\n +warmPass: true,\n +\^+\n +SyntaxError/);
  });

  test('a bracket that is never closed is told with the line where it was opened', async () => {
    assert.match((await asked("const settings = {\n  stop: [\n    'service a',\n  folders: [],\n};")).err, /hint: the bracket opened in line 2 is never closed/);
    assert.match((await asked('const settings = {\n  stop: [],\n')).err, /it ends too early\n {2}hint: the bracket opened in line 1/);
  });

  test('an address without quotes is told', async () => {
    assert.match((await asked('const settings = {\n  tell: { ping: https://hc.example.org/abc },\n};')).err, /line 2: [^]*hint: put the address in quotes/);
  });

  test('quotes out of a word processor are told', async () => {
    assert.match((await asked('const settings = {\n  server: \u201cweb\u201d };')).err, /line 2: [^]*hint: write plain quotes/);
  });

  test('a file without settings, an endless one and a missing one end with 64, too', async () => {
    for (const text of ['', 'module.exports = {};', '{ "folders": [] }']) assert.match((await asked(text)).err, /there is no `const settings = /);
    assert.equal((await asked(`const settings = { ${needed} }; while (true);`)).code, 64);
    assert.equal((await asked('const settings = [];')).code, 64);
    assert.equal((await ask('--settings', path.join(folder, 'gone.js'))).code, 64);
    fs.symlinkSync('/nowhere/at all', beside);
    const ended = await ask();
    fs.rmSync(beside);
    assert.equal(ended.code, 64, 'a link to nowhere is no reason to take the block');
  });

  test('a settings file reaches no file and no program', async () => {
    for (const text of ["require('fs')", 'process.exit(0)', "this.constructor.constructor('return process')().exit(0)", "import('node:fs')"]) {
      assert.equal((await asked(`const settings = { ${needed}, x: ${text} };`)).code, 64, text);
    }
  });
});

describe('who could change them', { skip: process.getuid?.() !== 0 && 'needs root' }, () => {
  const good = `const settings = { ${needed} };`;

  test('a file that others can write is refused, with the command that mends it', async () => {
    fs.writeFileSync(beside, good);
    for (const bits of ['0666', '0620']) {
      execFileSync('chmod', [bits, beside]);
      const ended = await ask();
      assert.equal(ended.code, 64);
      assert.ok(ended.err.includes(`others than root could change the settings: ${beside} (mode ${bits}, owner root)\n  hint: chmod go-w ${beside}`), ended.err);
    }
    execFileSync('sh', ['-c', `chmod 600 ${beside}; chown 1234 ${beside}`]);
    const ended = await ask();
    assert.ok(ended.err.includes(`(mode 0600, owner uid 1234)\n  hint: chown root ${beside}`), ended.err);
    execFileSync('sh', ['-c', ended.err.split('hint: ')[1]!]);
    assert.equal((await ask()).code, 0, 'the hint mends it');
    fs.rmSync(beside);
  });

  test('so is one in a folder where others could put another in its place', async () => {
    const open = path.join(folder, 'open', 'deeper');
    fs.mkdirSync(open, { recursive: true });
    fs.writeFileSync(path.join(open, 'x.js'), good);
    fs.chmodSync(path.dirname(open), 0o777);
    assert.match((await ask('--settings', path.join(open, 'x.js'))).err, /settings: \S+\/open \(mode 0777, owner root\)\n {2}hint: chmod go-w \S+\/open$/m);
    fs.chmodSync(path.dirname(open), 0o1777);
    assert.equal((await ask('--settings', path.join(open, 'x.js'))).code, 0, 'a sticky folder is safe');
    fs.chownSync(path.dirname(open), 1234, 0);
    assert.equal((await ask('--settings', path.join(open, 'x.js'))).code, 64, 'unless it is the folder of somebody else');
  });

  test('so is a link into such a folder, and the script itself when its block counts', async () => {
    const open = path.join(folder, 'linked');
    fs.mkdirSync(open);
    fs.chmodSync(open, 0o777);
    fs.writeFileSync(path.join(open, 'x.js'), good);
    fs.symlinkSync(path.join(open, 'x.js'), path.join(folder, 'link.js'));
    assert.equal((await ask('--settings', path.join(folder, 'link.js'))).code, 64);
    fs.chmodSync(script, 0o777);
    assert.match((await ask()).err, /others than root could change the settings/);
    fs.chmodSync(script, 0o755);
  });

  test('a key or passphrase that others could read is refused before anything is done', async () => {
    const key = path.join(folder, 'key'), passphrase = path.join(folder, 'passphrase');
    fs.writeFileSync(key, 'k', { mode: 0o640 });
    fs.writeFileSync(passphrase, 'p', { mode: 0o604 });
    fs.writeFileSync(file, `const settings = { ${needed}, before: ['false'], keyFile: '${key}', passphraseFile: '${passphrase}', sshKey: '${folder}/none', stateFolder: '${folder}/state' };`, { mode: 0o600 });
    const ended = await start([process.execPath, script, '--settings', file]).ended;
    assert.equal(ended.code, 64, ended.err);
    assert.ok(ended.err.includes(`others could read the key or passphrase: ${key} (mode 0640, owner root), ${passphrase} (mode 0604, owner root)\n  hint: chmod go= ${key} && chmod go= ${passphrase}`), ended.err);
    for (const words of [['--dry-run'], ['list'], ['find', 'x'], ['restore', 'latest', '--to', `${folder}/back`], ['drill'], ['borg', 'list']]) {
      const other = await start([process.execPath, script, '--settings', file, ...words]).ended;
      assert.deepEqual([other.code, /others could read the key or passphrase/.test(other.err)], [64, true], words.join(' '));
    }
    assert.ok(!fs.existsSync(`${folder}/state`));
  });
});

test('recover finds the state folders of settings that cannot be read', () => {
  assert.deepEqual(stateFoldersIn("const settings = { stateFolder: '/a b', [[[\n \"stateFolder\": \"/c\", // stateFolder:'/d'\n stateFolder: 'x'"), ['/a b', '/c', '/d']);
});
