// The one file: what the build promises about dist/backup.js, and what it refuses to build.
import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { after, before, describe, test } from 'node:test';
import { fileURLToPath } from 'node:url';

const root = fileURLToPath(new URL('..', import.meta.url));
const dist = path.join(root, 'dist/backup.js');
const scratch = fs.mkdtempSync(path.join(os.tmpdir(), 'cold-backup-file-'));
after(() => fs.rmSync(scratch, { recursive: true, force: true }));

type Ended = { code: number | null; out: string; said: string };

function run(argv: string[], options: { cwd?: string; env?: Record<string, string> } = {}): Ended {
  const ended = spawnSync(argv[0]!, argv.slice(1), { encoding: 'utf8', timeout: 300_000, cwd: options.cwd ?? scratch, env: { ...process.env, ...options.env } });
  return { code: ended.status, out: ended.stdout, said: ended.stderr };
}

/** Builds the sources of `project` into a new file outside it and returns its text. */
function built(project: string, name: string, options: { cwd?: string; env?: Record<string, string>; node?: string } = {}): string {
  const file = path.join(scratch, name);
  const ended = run([options.node ?? process.execPath, path.join(project, 'build/build.mjs'), file], options);
  assert.equal(ended.code, 0, ended.said);
  return fs.readFileSync(file, 'utf8');
}

const linesOf = (text: string) => text.split('\n');
const chapterFiles = () => [...fs.readdirSync(path.join(root, 'lib')).filter((name) => name.endsWith('.ts')).map((name) => `lib/${name}`), 'backup.ts'];

/** A script with this text, alone in an empty folder. */
function alone(text: string): string {
  const folder = fs.mkdtempSync(path.join(scratch, 'alone-'));
  fs.writeFileSync(path.join(folder, 'backup.js'), text);
  return path.join(folder, 'backup.js');
}

// Real binaries of old and new Node.js, from npm, kept between runs outside the repository.
const NODES = [12, 14, 16, 18, 20, 22, 24];
const nodesFolder = path.join(os.tmpdir(), 'cold-backup-test', 'nodes');
const nodeBinary = (version: number) => path.join(nodesFolder, `node_modules/node${version}/bin/node`);
function fetchNodes(): void {
  if (NODES.every((version) => fs.existsSync(nodeBinary(version)))) return;
  fs.mkdirSync(nodesFolder, { recursive: true });
  // the packages that hold nothing but the binary: the package "node" would fetch the same one by an install script
  const wanted = NODES.map((version) => `node${version}@npm:node-${process.platform}-${process.arch}@${version}`);
  const ended = run(['npm', 'install', '--no-save', '--prefix', nodesFolder, ...wanted], { cwd: nodesFolder });
  assert.equal(ended.code, 0, ended.said);
}

describe('the file', () => {
  test('dist/backup.js is what the sources build', () => {
    assert.ok(built(root, 'same.js') === fs.readFileSync(dist, 'utf8'), 'dist/backup.js is not what the sources build: npm run build');
  });

  test('it has the same bytes from another folder, time zone and language, and from every Node.js', () => {
    fetchNodes();
    const here = built(root, 'here.js', { cwd: root });
    const env = { TZ: 'Asia/Tokyo', LC_ALL: 'C', LANG: 'C' };
    for (const version of [18, 20, 22, 24]) {
      assert.ok(built(root, `there${version}.js`, { cwd: '/', env, node: nodeBinary(version) }) === here, `Node.js ${version} builds another file`);
    }
    assert.ok(!here.includes(root), 'the file holds a path of the machine that built it');
  });

  test('it begins with how to read it and ends with the one line that starts it', () => {
    const lines = linesOf(fs.readFileSync(dist, 'utf8'));
    assert.equal(lines[0], '#!/usr/bin/env node');
    assert.equal(lines.at(-2), 'main();');
    assert.equal(lines.at(-1), '');
    assert.equal(lines.filter((line) => /^main\(/.test(line)).length, 1);
  });

  test("its order is settings, own code, the operator's fence, the libraries' fence", () => {
    const lines = linesOf(fs.readFileSync(dist, 'utf8'));
    const marks = ['// ==== SETTINGS ====', '// ==== WHAT THE PROGRAM USES ====', 'async function main() {', "// ==== OPERATOR'S PART ====", '// ==== LIBRARIES ====', 'function libraries() {'];
    for (const mark of marks) assert.equal(lines.filter((line) => line === mark).length, 1, `not once: ${mark}`);
    const places = marks.map((mark) => lines.indexOf(mark));
    assert.deepEqual(places, [...places].sort((a, b) => a - b));
  });

  test('its contents list names every chapter, in order, by a mark that is there once', () => {
    const text = fs.readFileSync(dist, 'utf8');
    const listed = [...text.matchAll(/^\/\/   ==== (.+?) ==== +\S/gm)].map((found) => found[1]);
    const chapters = [...text.matchAll(/^\/\/ ==== (.+) ====$/gm)].map((found) => found[1]).filter((title) => title !== 'WHAT THE PROGRAM USES');
    assert.deepEqual(listed, chapters);
    assert.ok(listed.length >= chapterFiles().length);
  });

  test('every line of own code and every comment is there as written, but for types, imports and "export"', () => {
    const there = new Set(linesOf(fs.readFileSync(dist, 'utf8')));
    for (const file of chapterFiles()) {
      const source = fs.readFileSync(path.join(root, file), 'utf8').replaceAll('@VERSION@', JSON.parse(fs.readFileSync(path.join(root, 'package.json'), 'utf8')).version)
        .replace(/^(\/\*\*(?:(?!\*\/)[^])*\*\/\n)?(export )?(interface \w+[^\n]*\{\n[^]*?^\}|type \w[^;]*?=[^]*?(^\};?|;[^\n]*))$/gm, ''); // types with the /** */ right above
      const lost = linesOf(source).filter((line) => /^\s*(\/\/|\/?\*)/.test(line) && !there.has(line));
      assert.deepEqual(lost, [], `${file}: comments that are not in dist/backup.js`);
    }
  });

  test('its help, of all and of each command, has at most 40 lines of 80 columns, and names every option that is taken', () => {
    const help = (...words: string[]) => run([process.execPath, dist, ...words]), tables = JSON.parse(help('--help', '--json').out);
    const all = Object.keys(tables.commands).map((command) => ({ command, text: help('help', command).out }));
    for (const { command, text } of all) {
      assert.ok(linesOf(text.trimEnd()).length <= 40 && linesOf(text.trimEnd()).length > 5, `${command}: ${linesOf(text.trimEnd()).length} lines`);
      assert.deepEqual(linesOf(text).filter((line) => line.length > 80), [], command);
      for (const name of Object.keys(tables.options).filter((one) => tables.options[one].commands.includes(command))) assert.match(text, new RegExp(`^ {2}--${name}( |$)`, 'm'));
      if (command !== '' && command !== 'borg' && command !== 'help') assert.equal(help(command, '--help').out, text, 'the same by both ways to ask');
      for (const [line] of text.matchAll(/^ {2}node backup\.js .*$/gm)) {
        const [word = ''] = line.trim().split(' ').slice(2).filter((one) => !one.startsWith('-'));
        assert.ok(word in tables.commands, line);
        for (const [, option] of line.matchAll(/ --([\w-]+)/g)) assert.ok(tables.options[option!], line);
      }
    }
    assert.equal(all[0]!.text, help('--help').out);
    for (const command of Object.keys(tables.commands)) assert.ok(command === '' || new RegExp(`^ {2}${command} `, 'm').test(all[0]!.text), command);
    assert.deepEqual([help('help', 'restor').code, /did you mean "restore"/.test(help('help', 'restor').said), help('help', 'constructor').code], [64, true, 64]);
  });

  test('README.md has the exit codes of the help', () => {
    const readme = fs.readFileSync(path.join(root, 'README.md'), 'utf8'), { exitCodes } = JSON.parse(run([process.execPath, dist, '--help', '--json']).out);
    const section = /^## Exit codes$([^]*?)^## /m.exec(readme)![1]!;
    assert.deepEqual([...section.matchAll(/^\| (\S+) \|/gm)].map(([, code]) => code).filter((code) => code !== 'code'), exitCodes.map(([code]: string[]) => code));
  });
});

describe('alone in an empty folder', () => {
  before(fetchNodes);

  for (const version of [18, 20, 22, 24]) {
    test(`it runs on Node.js ${version}`, () => {
      const script = alone(fs.readFileSync(dist, 'utf8'));
      for (const [option, expected] of [['--version', /as built/], ['--help', /backup\.js/]] as const) {
        const ended = run([nodeBinary(version), script, option]);
        assert.equal(ended.code, 0, ended.said);
        assert.match(ended.out, expected);
        assert.equal(ended.said, '');
      }
      assert.deepEqual(fs.readdirSync(path.dirname(script)), ['backup.js']);
    });
  }

  for (const version of [12, 14, 16]) {
    test(`on Node.js ${version} it says that 18 is needed, and touches nothing`, () => {
      const ended = run([nodeBinary(version), alone(fs.readFileSync(dist, 'utf8'))]);
      assert.equal(ended.code, version === 16 ? 64 : 1, ended.said); // before 15 not even parsed: Node.js itself ends with 1
      assert.match(ended.said, version === 16 ? /has Node\.js 16\..*needs 18 or newer/ : /Node\.js is TOO OLD.*Install Node\.js 18 or newer/);
      assert.equal(ended.out, '');
    });
  }

  test('beside a package.json of type "module" it says what to do', () => {
    const script = alone(fs.readFileSync(dist, 'utf8'));
    fs.writeFileSync(path.join(path.dirname(script), 'package.json'), '{ "type": "module" }');
    const ended = run([process.execPath, script]);
    assert.equal(ended.code, 64);
    assert.match(ended.said, /put backup\.js into a folder of its own/);
  });

  test('cut short anywhere on its way here, it runs nothing', () => {
    const lines = linesOf(fs.readFileSync(dist, 'utf8'));
    for (const part of [0.02, 0.2, 0.5, 0.7, 0.9, 1]) {
      const ended = run([process.execPath, alone(lines.slice(0, Math.floor((lines.length - 2) * part)).join('\n')), '--version']);
      assert.equal(ended.out, '');
    }
  });
});

describe('as built or edited', () => {
  const version = (text: string) => run([process.execPath, alone(text), '--version']).out;
  const text = () => fs.readFileSync(dist, 'utf8');

  test('a file nobody touched is as built', () => assert.match(version(text()), /as built/));

  test('other settings do not count, whatever they hold', () => {
    const odd = "const settings = {\n  server: 'web1', // $& $1 */ }; const settings = {\n  exclude: ['};', \"// ==== LIBRARIES ====\"],\n};";
    const changed = text().replace(/^const settings = \{[^]*?^\};/m, () => odd);
    assert.notEqual(changed, text());
    assert.match(version(changed), /as built/);
    for (const block of ["const settings = { folders: ['/x'], repository: '/y' };", "const settings = {\n  repository: '/y', folders: ['/x'],\n}"]) assert.match(version(text().replace(/^const settings = \{[^]*?^\};/m, () => block)), /as built/);
    assert.deepEqual(JSON.parse(run([process.execPath, alone(text()), '--version', '--json']).out), { version: JSON.parse(fs.readFileSync(path.join(root, 'package.json'), 'utf8')).version, state: 'as built' });
  });

  const edits: [string, (whole: string) => string][] = [
    ['own code', (whole) => whole.replace('async function main() {', 'async function main() {\n  // ours')],
    ['the libraries', (whole) => whole.replace('function libraries() {', 'function libraries() { ')],
    ['the lines right after the settings', (whole) => whole.replace(/^(const settings = \{[^]*?^\};)/m, '$1\n\n')],
    ['the checksum', (whole) => whole.replace(/^(\/\/ Checksum of all but the settings: )\w/m, '$1x')],
  ];
  for (const [what, edit] of edits) {
    test(`a change in ${what} makes it edited`, () => {
      assert.notEqual(edit(text()), text());
      assert.match(version(edit(text())), /edited/);
    });
  }
});

describe('the build', () => {
  const settings = "// What is saved.\nexport const settings: { server: string } = {\n  server: '',\n};\n";
  const main = '// The commands.\nimport { one } from \'./lib/one.ts\';\n\nasync function main(): Promise<void> {\n  console.log(one());\n}\n\nmain();\n';
  const one = "// The first chapter. It has two sentences.\n\nexport function one(): string {\n  return 'one';\n}\n";
  const two = "// The second chapter.\nimport { one } from './one.ts';\n\nexport const two = (): string => one();\n";

  /** Builds a tiny project of these files (and the chapters one and two, backup.ts) and returns how the build ended. */
  function build(files: Record<string, string>): Ended & { text: string } {
    const project = fs.mkdtempSync(path.join(scratch, 'project-'));
    fs.cpSync(path.join(root, 'build'), path.join(project, 'build'), { recursive: true });
    fs.copyFileSync(path.join(root, 'package.json'), path.join(project, 'package.json'));
    fs.symlinkSync(fs.realpathSync(path.join(root, 'node_modules')), path.join(project, 'node_modules'));
    fs.mkdirSync(path.join(project, 'lib'));
    const script = path.join(project, 'build/build.mjs');
    const list = "[{ file: 'lib/settings.ts', title: 'SETTINGS' }, { file: 'lib/one.ts', title: 'ONE' }, { file: 'lib/two.ts', title: 'TWO' }, { file: 'backup.ts', title: 'MAIN' }, null]";
    fs.writeFileSync(script, fs.readFileSync(script, 'utf8').replace(/^const CHAPTERS = \[[^]*?^\];/m, `const CHAPTERS = ${list};`));
    const all = { 'lib/settings.ts': settings, 'lib/one.ts': one, 'lib/two.ts': two, 'backup.ts': main, ...files };
    for (const [name, text] of Object.entries(all)) fs.writeFileSync(path.join(project, name), text);
    const output = path.join(project, 'dist/backup.js');
    const ended = run([process.execPath, script]);
    return { ...ended, text: fs.existsSync(output) ? fs.readFileSync(output, 'utf8') : '' };
  }

  test('a tiny project builds and runs', () => {
    const ended = build({});
    assert.equal(ended.code, 0, ended.said);
    assert.match(ended.text, /^\/\/   ==== ONE ==== +The first chapter\.$/m);
    assert.equal(run([process.execPath, alone(ended.text)]).out, 'one\n');
  });

  test('types leave no holes, and texts, numbers and blank lines stay as they were', () => {
    const source = one + [
      '', '/** Goes with its type. */', 'export interface Shape {', '  a: string; // with it', '}', '', '// Stays: a note for the reader.', 'type Other = { b: number };', '',
      'export function typed<T extends Shape>(this: void, value?: T | null, ...more: Array<[string, number]>): asserts value is T {',
      '  const list = new Map<string, T[]>(); // kept', '  const mode = 0o600 as const, sure = value! as Shape;', '  if (list.size > mode) throw new Error(`', '', '', '  export HOME=/root`);',
      '  more.map(([name, size]: [string, number]): string => `${name satisfies string}\\u00e9 "${size}"`);', '  return void sure;', '}', ''].join('\n');
    const ended = build({ 'lib/one.ts': source });
    assert.equal(ended.code, 0, ended.said);
    const expected = [
      '', '// Stays: a note for the reader.', '',
      'function typed(value, ...more) {',
      '  const list = new Map(); // kept', '  const mode = 0o600, sure = value;', '  if (list.size > mode) throw new Error(`', '', '', '  export HOME=/root`);',
      '  more.map(([name, size]) => `${name}\\u00e9 "${size}"`);', '  return void sure;', '}', ''].join('\n');
    assert.ok(ended.text.includes(expected), ended.text.slice(ended.text.indexOf("return 'one'"), ended.text.indexOf('// ==== TWO')));
  });

  const refusals: [string, RegExp, Record<string, string>][] = [
    ['one name for two things', /already been declared/, { 'lib/two.ts': `${two}\nfunction one() {}\n` .replace(/import.*\n/, '') }],
    ['one name from two modules', /join is already/, { 'lib/one.ts': `// One.\nimport { join } from 'node:path';\n${one}`, 'lib/two.ts': `// Two.\nimport { join } from 'node:path/win32';\n${two}` }],
    ['an import of a later chapter', /lib\/one\.ts imports \.\/two\.ts, which is no earlier chapter/, { 'lib/one.ts': `// One.\nimport { two } from './two.ts';\n${one}` }],
    ['a chapter that has no place', /add lib\/three\.ts to CHAPTERS/, { 'lib/three.ts': '// Three.\n' }],
    ['a renamed chapter name', /without "as"/, { 'lib/two.ts': two.replace('{ one }', '{ one as first }').replace('one()', 'first()') }],
    ['import * as', /import by name/, { 'lib/one.ts': `// One.\nimport * as fs from 'node:fs';\n${one}` }],
    ['import()', /not with import\(\)/, { 'lib/one.ts': `${one}export const later = () => import('node:fs');\n` }],
    ['an import below the head', /import statement/i, { 'lib/one.ts': `${one}import fs from 'node:fs';\n` }],
    ['export { }', /export/, { 'lib/one.ts': `${one}const x = 1;\nexport { x };\n` }],
    ['await outside a function', /await/, { 'lib/one.ts': `${one}await one();\n` }],
    ['an enum', /lib\/one\.ts/, { 'lib/one.ts': `${one}enum Color { Red }\n` }],
    ['syntax newer than Node.js 18', /newer than node18/, { 'lib/one.ts': `${one}export const letters = /[[a-z]--[aeiou]]/v;\n` }],
    ['a library used otherwise than by a call', /please only call \$\(\)/, { 'lib/one.ts': `// One.\nimport { $ } from 'zx/core';\n${one}$.verbose = false;\n` }],
    ['a chapter without an opening comment', /open the chapter/, { 'lib/one.ts': 'export const one = () => 1;\n' }],
    ['a main program that does not end with main()', /main\(\);/, { 'backup.ts': main.replace(/\nmain\(\);\n$/, '') }],
    ['more lines than a reader can be asked to read', /the readable part has \d+ lines, more than \d+/, { 'lib/one.ts': one + '// line\n'.repeat(9200) }],
  ];
  for (const [what, message, files] of refusals) {
    test(`it refuses ${what}`, () => {
      const ended = build(files);
      assert.equal(ended.code, 1, ended.out);
      assert.match(ended.said, message);
    });
  }
});
