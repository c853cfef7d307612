// The README, in both languages: it says the same in both, its links lead somewhere, and what it names of the script is there.
import { test } from 'node:test';
import assert from 'node:assert/strict';
import { execFileSync, spawnSync } from 'node:child_process';
import fs from 'node:fs';
import path from 'node:path';
import { distFile, repositoryRoot, testFolder } from './script.ts';

const read = (name: string) => fs.readFileSync(path.join(repositoryRoot, name), 'utf8');
const english = read('README.md'), spanish = read('README.es.md'), script = fs.readFileSync(distFile, 'utf8');

type Section = { level: number; heading: string; text: string; blocks: { language: string; body: string }[] };

/** A document as its headings and what stands below each: prose (code blocks taken out), and the code blocks. */
function sectionsOf(document: string): Section[] {
  const sections: Section[] = [];
  let block: { language: string; body: string } | null = null;
  for (const line of document.split('\n')) {
    const fence = /^ *```(\w*)$/.exec(line), heading = /^(#+) (.*)$/.exec(line), section = sections[sections.length - 1];
    if (fence && block) block = null;
    else if (fence) section!.blocks.push(block = { language: fence[1]!, body: '' });
    else if (block) block.body += `${line}\n`;
    else if (heading) sections.push({ level: heading[1]!.length, heading: heading[2]!, text: '', blocks: [] });
    else section!.text += `${line}\n`;
  }
  assert.equal(block, null, 'a code block without an end');
  return sections;
}

const en = sectionsOf(english), es = sectionsOf(spanish);
const all = (text: string, pattern: RegExp) => [...text.matchAll(pattern)].map((found) => found[1]!);
const words = (text: string) => all(text, /`([^`]+)`/g).sort();
const anchorOf = (heading: string) => `#${heading.toLowerCase().replace(/[^\p{L}\p{M}\p{N} _-]/gu, '').replaceAll(' ', '-')}`; // as GitHub makes it
const linksOf = (text: string) => all(text, /\]\(([^)]+)\)/g);
const rows = (text: string) => text.split('\n').filter((line) => line.startsWith('|') && !/^[|-]+$/.test(line)).map((line) => line.replaceAll('\\|', '').split('|').slice(1, -1));
/** The commands of a block, without what is said about them. */
const commands = ({ language, body }: Section['blocks'][number]) => body.split('\n').map((line) => line.replace(language === 'js' ? /\s+\/\/ .*$/ : language === 'sh' || language === 'console' ? /\s+# .*$/ : /$^/, ''));

test('README.es.md says what README.md says: the same headings, commands, tables, lists, links and pictures', () => {
  assert.deepEqual(es.map(({ level }) => level), en.map(({ level }) => level));
  for (const [index, here] of en.entries()) {
    const there = es[index]!, where = `${here.heading} / ${there.heading}`;
    if (here.heading.startsWith('`')) assert.equal(there.heading, here.heading); // the text of an error is not translated
    assert.deepEqual(there.blocks.map(commands), here.blocks.map(commands), where);
    assert.deepEqual(there.blocks.map(({ language }) => language), here.blocks.map(({ language }) => language), where);
    assert.deepEqual(words(there.text), words(here.text), where);
    assert.deepEqual(rows(there.text).map((row) => row.map(words)), rows(here.text).map((row) => row.map(words)), where);
    for (const item of [/^( *\d+)\. /gm, /^( *-) /gm]) assert.deepEqual(all(there.text, item), all(here.text, item), where);
    const inEnglish = linksOf(there.text).map((link) => (link.startsWith('#') ? anchorOf(en[es.findIndex(({ heading }) => anchorOf(heading) === link)]?.heading ?? link) : link === 'README.md' ? 'README.es.md' : link.replace('.es.svg', '.en.svg')));
    assert.deepEqual(inEnglish.sort(), linksOf(here.text).sort(), where);
  }
  const bench = /<!-- bench: begin -->[^]*<!-- bench: end -->/;
  assert.equal(bench.exec(spanish)?.[0], bench.exec(english)?.[0]);
});

test('every link within the README and to a file leads somewhere, and the contents name every chapter', () => {
  for (const [document, sections] of [[english, en], [spanish, es]] as const) {
    const anchors = sections.map(({ heading }) => anchorOf(heading));
    assert.equal(new Set(anchors).size, anchors.length, 'two headings are alike');
    const links = linksOf(document.replace(/<!-- bench: begin -->[^]*<!-- bench: end -->/, ''));
    assert.deepEqual(links.filter((link) => (link.startsWith('#') ? !anchors.includes(link) : !/^https:/.test(link) && !fs.existsSync(path.join(repositoryRoot, link)))), []);
    const listed = linksOf(sections[1]!.text), chapters = sections.slice(2).filter(({ level }) => level === 2).map(({ heading }) => anchorOf(heading));
    assert.deepEqual(chapters.filter((one) => !listed.includes(one)), []);
  }
});

test('a runbook has at most twelve steps, numbered as they are done', () => {
  for (const { heading, text } of en) {
    const steps = all(text, /^(\d+)\. /gm).map(Number);
    assert.deepEqual(steps, steps.map((_, index) => index + 1), heading);
    assert.ok(steps.length <= 12, heading);
  }
});

test('what the README names of the script is there: commands, options, settings, error texts, chapters and functions', () => {
  const spoken = en.flatMap(({ text, blocks }) => [...words(text), ...blocks.flatMap(({ body }) => body.split('\n'))]);
  const called = spoken.flatMap((one) => all(one, /(?:node \S*?(?:backup|new|mine)\.js|^(?=(?:drill|restore|audit|prune|status|setup|find|list)(?: |$))) ?([^`|;&#\n]*)/g));
  assert.ok(called.length > 60, String(called.length));
  const helpOf = (...command: string[]) => spawnSync(process.execPath, [distFile, ...command, '--help'], { encoding: 'utf8' }).stdout, help = helpOf();
  const known = (word: string, text: string) => new RegExp(`(^|[\\s,[])${word}(?![\\w-])`, 'm').test(text);
  const commandsHere = [...new Set(called.map((one) => /^([a-z]+)(?= |$)/.exec(one.trim())?.[1] ?? ''))].filter((command) => command !== '');
  assert.deepEqual(commandsHere.filter((command) => !known(command, help)), []);
  const everyHelp = [help, ...commandsHere.map((command) => helpOf(command))].join('\n');
  assert.deepEqual([...new Set(called.flatMap((one) => all(one, /(--[a-z][a-z-]*)/g)))].filter((option) => !known(option, everyHelp) && option !== '--verify-data'), []);
  const block = /^const settings = \{[^]*?^\};/m.exec(script)![0];
  const keys = rows(en.find(({ heading }) => heading === 'Settings')!.text).slice(1).flatMap(([first]) => words(first!));
  assert.deepEqual(keys.filter((key) => !new RegExp(`\\b${key}:`).test(block)), []);
  const texts = en.filter(({ heading }) => heading.startsWith('`')).map(({ heading }) => heading.slice(1, -1)), said = script.replaceAll("\\'", "'");
  assert.ok(texts.length > 10);
  assert.deepEqual(texts.flatMap((one) => one.split('...').map((piece) => piece.trim())).filter((piece) => piece.length > 3 && !said.includes(piece)), []);
  const keeper = words(en.find(({ heading }) => heading === 'On the storage')!.text).filter((one) => /^(apt-get|adduser|install|printf) /.test(one)), printed = script.replaceAll('${user}', 'borg').replaceAll('\\\\n', '\\n');
  assert.equal(keeper.length, 4);
  assert.deepEqual(keeper.filter((one) => !printed.includes(one)), []);
  const questions = en.find(({ heading }) => heading === 'What setup asks')!.blocks[0]!.body.split('\n').map((line) => /^(?!no ssh)[^?]*[a-z)]\?/.exec(line)?.[0] ?? '').filter((one) => one !== '');
  assert.ok(questions.length >= 10, questions.join('\n'));
  assert.deepEqual(questions.filter((one) => !said.replaceAll('${sheet}', '/etc/cold-backup/recovery-sheet.txt').includes(one)), []);
  const without = en.find(({ heading }) => heading === 'Without us')!.text, table = rows(without).slice(1, 8).flatMap((row) => words(row[1]!));
  assert.deepEqual(table.filter((one) => !(one.startsWith('====') ? script.includes(`\n// ${one}\n`) : new RegExp(`^(async )?function ${one}\\(`, 'm').test(script))), []);
  for (const code of rows(en.find(({ heading }) => heading === 'Exit codes')!.text).slice(1).map((row) => row[0]!.trim())) assert.ok(help.includes(`${code} `), code);
});

test('the playbook that the README shows is the one that a test runs', () => {
  const [inventory, playbook] = en.find(({ heading }) => heading === 'Many servers: Ansible')!.blocks;
  assert.equal(inventory!.body, read('test/ansible/servers.yml'));
  assert.equal(playbook!.body, read('test/ansible/cold-backup.yml'));
});

test('own edits are carried over to a new version by the commands of the README', () => {
  const folder = testFolder('upgrade'), file = (name: string) => path.join(folder, name);
  const bash = (text: string) => execFileSync('bash', ['-c', text], { cwd: folder, encoding: 'utf8', stdio: ['ignore', 'pipe', 'pipe'] });
  const edited = script.replace("from the top, as far as you like", 'from the top. We added a line for our proxy');
  assert.notEqual(edited, script);
  fs.writeFileSync(file('release.js'), script);
  fs.writeFileSync(file('backup.js'), edited.replace(/^ {2}server: '',/m, "  server: 'web1',").replace("repository: '',", "repository: '/srv/web1',").replace('folders: [], ', "folders: ['/etc'],"));
  fs.writeFileSync(file('new.js'), script.replace('// The command line: which command', '// A line of the next version.\n$&'));
  const [apart] = en.find(({ heading }) => heading === 'Install')!.blocks, [carry] = en.find(({ heading }) => heading === 'Carry your own edits over')!.blocks;
  bash(apart!.body);
  assert.match(fs.readFileSync(file('backup.settings.js'), 'utf8'), /^const settings = \{\n {2}server: 'web1',[^]*^\};\n$/m);
  bash('diff -u release.js backup.js; true');
  const [diff, patch, version] = carry!.body.split('\n');
  bash(`${diff!.replace(/ +# .*/, '')} || [ $? = 1 ]`);
  bash(patch!.replace(/ +# .*/, ''));
  assert.match(bash(version!), /\(edited\)/);
  assert.match(bash('node backup.js --print-settings'), /web1/);
  const carried = fs.readFileSync(file('mine.js'), 'utf8');
  assert.ok(carried.includes('We added a line for our proxy') && carried.includes('// A line of the next version.'));
});

test('the pictures are the same in both languages, say in words what they show, and hold nothing that runs or is fetched', () => {
  const shapes = (text: string) => text.replace(/>[^<>]*[^<>\s][^<>]*</g, '><');
  for (const name of ['night', 'keys']) {
    const [one, other] = [read(`test/pictures/${name}.en.svg`), read(`test/pictures/${name}.es.svg`)];
    assert.equal(shapes(one.replace(/<style>[^]*<\/style>/, '')), shapes(other.replace(/<style>[^]*<\/style>/, '')));
    assert.notEqual(one, other);
    for (const text of [one, other]) {
      assert.match(text, /<title id="title">.{10,}<\/title>\s*<desc id="desc">.{100,}<\/desc>/);
      assert.match(text, /prefers-color-scheme: dark/);
      assert.doesNotMatch(text, /<script|<image|href|url\(|@import|foreignObject/);
    }
  }
});
