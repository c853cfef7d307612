// Builds dist/backup.js: ONE file, own code first, word for word as written, only without the TypeScript types; the
// libraries last, in one fenced block. The same sources give the same bytes, on every machine.
//   node build/build.mjs [OUTPUT]
import fs from 'node:fs';
import path from 'node:path';
import vm from 'node:vm';
import { createHash } from 'node:crypto';
import { createRequire } from 'node:module';
import { fileURLToPath } from 'node:url';
import { buildSync, transformSync } from 'esbuild';
import { compact, withoutTypes } from './types.mjs';

// The chapters, in the order of the file, which is by who reads them. A chapter imports only earlier ones, so that the file
// reads downwards, with two exceptions: the story of the night stands first, because it is what people come to read, and
// backup.ts calls everything; both may call later chapters, because the line main() is put at the very end of the file.
const CHAPTERS = [
  { file: 'lib/settings.ts', title: 'SETTINGS' },
  { file: 'lib/run.ts', title: 'THE NIGHT' },
  { file: 'lib/about.ts', title: 'ABOUT' },
  { file: 'lib/say.ts', title: 'SAY' },
  { file: 'lib/shell.ts', title: 'SHELL' },
  { file: 'lib/files.ts', title: 'FILES' },
  { file: 'lib/form.ts', title: 'FORM' },
  { file: 'lib/processes.ts', title: 'PROCESSES' },
  { file: 'lib/history.ts', title: 'HISTORY' },
  { file: 'lib/certificate.ts', title: 'CERTIFICATE' },
  { file: 'lib/rules.ts', title: 'RULES' },
  { file: 'lib/check.ts', title: 'CHECK' },
  { file: 'lib/window.ts', title: 'WINDOW' },
  { file: 'lib/tell.ts', title: 'TELL' },
  { file: 'lib/units.ts', title: 'UNITS' },
  { file: 'lib/containers.ts', title: 'CONTAINERS' },
  { file: 'lib/postmaster.ts', title: 'POSTMASTER' },
  { file: 'lib/postgres.ts', title: 'POSTGRES' },
  { file: 'lib/questions.ts', title: 'QUESTIONS' },
  { file: 'lib/borg.ts', title: 'BORG' },
  { file: 'lib/passes.ts', title: 'PASSES' },
  { file: 'lib/archives.ts', title: 'ARCHIVES' },
  { file: 'lib/storage.ts', title: 'STORAGE' },
  { file: 'lib/passport.ts', title: 'PASSPORT' },
  { file: 'lib/partners.ts', title: 'PARTNERS' },
  { file: 'lib/ways.ts', title: 'WAYS' },
  { file: 'lib/snapshot.ts', title: 'SNAPSHOT' },
  { file: 'lib/plan.ts', title: 'PLAN' },
  { file: 'lib/proof.ts', title: 'PROOF' },
  { file: 'lib/ledger.ts', title: 'LEDGER' },
  { file: 'lib/swap.ts', title: 'SWAP' },
  { file: 'lib/pause.ts', title: 'PAUSE' },
  { file: 'lib/words.ts', title: 'WORDS' },
  { file: 'lib/lookthrough.ts', title: 'LOOKING THROUGH' },
  { file: 'lib/runbook.ts', title: 'RESTORE.MD' },
  { file: 'lib/record.ts', title: 'RECORD' },
  { file: 'lib/commands.ts', title: 'COMMANDS' },
  { file: 'lib/ready.ts', title: 'READY' },
  { file: 'lib/copying.ts', title: 'COPYING' },
  { file: 'lib/outcome.ts', title: 'OUTCOME' },
  { file: 'lib/leftovers.ts', title: 'LEFTOVERS' },
  { file: 'lib/guard.ts', title: 'GUARD' },
  { file: 'lib/list.ts', title: 'LIST' },
  { file: 'lib/sandbox.ts', title: 'SANDBOX' },
  { file: 'lib/trial.ts', title: 'EMPTY CLUSTER' },
  { file: 'lib/collations.ts', title: 'COLLATIONS' },
  { file: 'lib/machine.ts', title: 'MACHINE' },
  { file: 'lib/installed.ts', title: 'INSTALLED' },
  { file: 'lib/ahead.ts', title: 'AHEAD' },
  { file: 'lib/judge.ts', title: 'JUDGE' },
  { file: 'lib/measure.ts', title: 'MEASURE' },
  { file: 'lib/restore.ts', title: 'COMING BACK' },
  { file: 'lib/places.ts', title: 'PLACES' },
  { file: 'lib/comeback.ts', title: 'COMEBACK' },
  { file: 'lib/afterwards.ts', title: 'AFTERWARDS' },
  { file: 'lib/inplace.ts', title: 'IN PLACE' },
  { file: 'lib/checks.ts', title: 'CHECKS' },
  { file: 'lib/serverchecks.ts', title: 'SERVER CHECKS' },
  { file: 'lib/lockin.ts', title: 'LOCKED IN' },
  { file: 'lib/rehearsal.ts', title: 'REHEARSAL' },
  { file: 'lib/drill.ts', title: 'DRILL' },
  { file: 'lib/schedule.ts', title: 'SCHEDULE' },
  { file: 'lib/status.ts', title: 'STATUS' },
  { file: 'lib/doctor.ts', title: 'DOCTOR' },
  { file: 'lib/answers.ts', title: 'ANSWERS' },
  { file: 'lib/setup.ts', title: 'SETUP' },
  { file: 'lib/help.ts', title: 'HELP' },
  { file: 'backup.ts', title: 'MAIN PROGRAM' },
  null, // here the operator's part begins
  { file: 'lib/operator.ts', title: 'OPERATOR' },
  { file: 'lib/segments.ts', title: 'SEGMENTS' },
  { file: 'lib/book.ts', title: 'OPERATOR\'S LEDGER' },
  { file: 'lib/findings.ts', title: 'FINDINGS' },
  { file: 'lib/undo.ts', title: 'UNDO' },
  { file: 'lib/audit.ts', title: 'AUDIT' },
  { file: 'lib/retention.ts', title: 'RETENTION' },
  { file: 'lib/pruning.ts', title: 'PRUNING' },
  { file: 'lib/prune.ts', title: 'PRUNE' },
  { file: 'lib/overdue.ts', title: 'OVERDUE' },
  { file: 'lib/fleet.ts', title: 'FLEET' },
  { file: 'lib/reportwords.ts', title: 'REPORT IN WORDS' },
  { file: 'lib/charts.ts', title: 'CHARTS' },
  { file: 'lib/verdict.ts', title: 'VERDICT' },
  { file: 'lib/style.ts', title: 'STYLE' },
  { file: 'lib/page.ts', title: 'PAGE OF A SERVER' },
  { file: 'lib/report.ts', title: 'REPORT' },
];
const MAY_CALL_LATER = ['lib/run.ts', 'backup.ts'];
const MOST_LINES = { readable: 9100, operator: 1850 };
const OLDEST_NODE = 'node18';

const output = path.resolve(process.argv[2] ?? fileURLToPath(new URL('../dist/backup.js', import.meta.url)));
process.chdir(fileURLToPath(new URL('..', import.meta.url)));
const read = (file) => fs.readFileSync(file, 'utf8');
const version = (folder) => JSON.parse(read(`${folder}/package.json`)).version;
const borrowed = new Map(); // name -> where it comes from: "require('node:fs')", "require('zx/core').$"
const own = {}; // file -> its text in dist

// 1. Own code.
for (const name of fs.readdirSync('lib').filter((one) => one.endsWith('.ts'))) {
  if (!CHAPTERS.some((chapter) => chapter?.file === `lib/${name}`)) refuse(`add lib/${name} to CHAPTERS in build/build.mjs`);
}
const chapters = CHAPTERS.filter((chapter) => !chapter || fs.existsSync(chapter.file) || console.error(`build: not written yet: ${chapter.file}`));
for (const chapter of chapters) if (chapter) own[chapter.file] = attempt(chapter.file, () => chapterText(chapter.file));
const start = /(?<=\n)(\/\/.*\n)*main\(\);\n$/.exec(own['backup.ts'] ?? '')?.[0] ?? refuse('backup.ts must end with the line main();');
own['backup.ts'] = own['backup.ts'].slice(0, -start.length).trimEnd() + '\n'; // it goes to the end of the whole file

/** A chapter without its types, without its imports (noted in `borrowed`) and without the word "export". */
function chapterText(file) {
  const source = read(file), text = withoutTypes(source);
  if (!text.startsWith('// ')) throw new Error('please open the chapter with a // comment');
  const head = /^(?:\/\/.*\n|[ \t]*\n|import [^;]*;\n)*/.exec(text)[0]; // imports stand only here: a text further down may look like one
  const body = text.slice(head.length).replace(/^export (?=async |const |let |function |class )/gm, '');
  const exported = buildSync({ stdin: { contents: text }, write: false, format: 'esm', metafile: true, outfile: 'x' }).metafile.outputs.x.exports;
  if (text.length - head.length - body.length !== exported.length * 'export '.length) throw new Error('an export of an unknown form');
  const plain = head.replace(/^import ([^;]*?) from '([^']+)';\n/gm, (line, what, from) => {
    noteImport(file, what, from);
    return '';
  }).concat(body).replace(/\n{3,}/g, (lines) => (source.includes(lines) ? lines : '\n\n')); // what types leave behind; a text may hold blank lines
  new vm.Script(plain); // throws when an import, an export or an await outside a function is left
  if (/\bimport\(/.test(compact(plain, 'js'))) throw new Error('please import at the head of the chapter, not with import()');
  return plain.trim() + '\n';
}

function noteImport(file, what, from) {
  const [, whole, list = ''] = /^([\w$]+)?(?:, )?(?:\{([^}]*)\})?$/.exec(what) ?? refuse(`${file}: please import by name: ${what}`);
  const names = list.split(',').map((name) => name.trim().split(' as ')).filter(([name]) => name !== '');
  if (from.startsWith('.')) {
    if (names.some(([, renamed]) => renamed)) refuse(`${file}: one thing, one name: please import without "as": ${what}`);
    const earlier = path.posix.join(path.posix.dirname(file), from) in own;
    if (!earlier && !MAY_CALL_LATER.includes(file)) refuse(`${file} imports ${from}, which is no earlier chapter`);
    return;
  }
  const found = names.map(([name, renamed]) => [renamed ?? name, `require('${from}').${name}`]);
  if (whole) found.push([whole, `require('${from}')`]);
  if (whole && /^node:(?!fs$|path$|os$)/.test(from)) console.error(`build: note: ${file} loads ${from} at every start; its functions by name would wait for their first call`);
  for (const [name, origin] of found) {
    if ((borrowed.get(name) ?? origin) !== origin) refuse(`${file}: ${name} is already ${borrowed.get(name)}`);
    borrowed.set(name, origin);
  }
}

// 2. Libraries: compiled by esbuild into the body of one function.
const byOrigin = [...borrowed].map(([name, origin]) => ({ name, origin })).sort((a, b) => (a.origin < b.origin ? -1 : 1));
const [node, libraries] = [true, false].map((kind) => byOrigin.filter(({ origin }) => origin.startsWith("require('node:") === kind));
const { outputFiles: [{ text: compiled }], metafile } = buildSync({ bundle: true, write: false, metafile: true, legalComments: 'none',
  platform: 'node', format: 'cjs', target: OLDEST_NODE, minify: true, lineLimit: 160,
  stdin: { contents: `module.exports = { ${libraries.map(({ name, origin }) => `get ${name}() { return ${origin}; }`)} };`, resolveDir: process.cwd() },
  absWorkingDir: process.cwd() }); // esbuild's own idea of it is older than the chdir above
const packages = new Set(Object.keys(metafile.inputs).flatMap((file) => /.*node_modules\/((@[^/]+\/)?[^/]+)/.exec(file)?.[1] ?? []));
const licences = read('build/licenses.txt').trim();
for (const name of packages) if (!licences.includes(`\n${name} - `)) refuse(`the licence of ${name} is missing in build/licenses.txt`);

// 3. All together.
const operator = { title: "OPERATOR'S PART", text: "// What follows runs only on the operator's own machine. A client can stop reading here.\n" };
const vendor = { title: 'LIBRARIES', text: `// Written by others and compiled: nothing to edit. The last line of the file starts the program.
//
// ${[...packages].sort().map((name) => `${name} ${version(`node_modules/${name}`)}`).join(', ')}
${licences.replace(/^/gm, '// ').replace(/ +$/gm, '')}

function libraries() {
if (libraries.loaded) return libraries.loaded;
var module = { exports: {} };
${compiled.trim()}
return libraries.loaded = module.exports;
}

` };
const byCall = (name, origin) => `const ${name} = (...given) => ${origin}(...given);\n`;
const uses = { title: 'WHAT THE PROGRAM USES', text: `// Parts of Node.js; then libraries, which stand at the end of this file. Functions are loaded when they are first
// called, so that \`--help\` and \`status\` answer about as fast as Node.js itself starts.

${node.map(({ name, origin }) => (isFunction(origin) ? byCall(name, origin) : `const ${name} = ${origin};\n`)).join('')}${
  libraries.map(({ name }) => byCall(name, `libraries().${name}`)).join('')}` };
const [settings, ...others] = chapters.map((chapter) => (chapter ? { title: chapter.title, text: own[chapter.file] } : operator));
const contents = [settings, ...others, vendor].map(({ title, text }) => `//   ${`==== ${title} ====`.padEnd(26)} ${firstWords(title, text)}\n`).join('');
let text = read('build/header.js').replace('@CONTENTS@\n', () => contents) + [settings, uses, ...others, vendor]
  .map((part) => `\n// ${'='.repeat(105)}\n// ==== ${part.title} ====\n${part.text}`).join('') + start;
text = text.replaceAll('@VERSION@', version('.'));
const counted = text.replace('@CHECKSUM@', '').replace(/^const settings = \{(?:.*\};?$|[^]*?^\};?$)/m, ''); // as lib/about.ts does
text = text.replace('@CHECKSUM@', createHash('sha256').update(counted).digest('hex'));

/** Whether "require('node:crypto').createHash" is a function to call, and no class or object. */
function isFunction(origin) {
  const [, from, name] = /^require\('(.+)'\)\.(.+)$/.exec(origin) ?? [];
  return /^[a-z]/.test(name ?? '') && typeof createRequire(import.meta.url)(from)[name] === 'function';
}

/** The first sentence of a chapter, which has to go into one line. */
function firstWords(title, text) {
  const sentence = /^(?:\/\/.*\n)*/.exec(text)[0].replace(/^\/\/ ?/gm, '').replace(/\s+/g, ' ').trim().replace(/(?<=[^.][.?]) .*/, '');
  return sentence.length <= 100 ? sentence : refuse(`the first sentence of chapter ${title} has more than 100 characters: ${sentence}`);
}

// 4. Checks on the whole.
attempt('a name is used twice', () => transformSync(`${text.replace(/^#!.*/, '')}\nexport {}`, { format: 'esm', logLevel: 'silent' }));
if (compact(text, 'js') !== compact(text, 'js', OLDEST_NODE)) refuse(`own code uses syntax newer than ${OLDEST_NODE}`);
for (const { name } of libraries) {
  const plainName = name.replace('$', '\\$');
  const otherUse = new RegExp(`\\b(new|instanceof) ${plainName}(?![\\w$])|(?<![\\w$.])${plainName}[.[]`);
  for (const file in own) if (otherUse.test(compact(own[file], 'js'))) refuse(`${file}: please only call ${name}(): it is loaded at its first call`);
}
const [fence, end] = [operator, vendor].map(({ title }) => text.split('\n').indexOf(`// ==== ${title} ====`) + 1);
const lines = { readable: fence, operator: end - fence };
for (const part in lines) if (lines[part] > MOST_LINES[part]) refuse(`the ${part} part has ${lines[part]} lines, more than ${MOST_LINES[part]}`);
fs.mkdirSync(path.dirname(output), { recursive: true });
fs.writeFileSync(`${output}.new`, text, { mode: 0o755 });
fs.renameSync(`${output}.new`, output); // whole or not at all: somebody may be running it
console.log(`${output}: ${lines.readable} lines to the operator's fence, ${lines.operator} from there to the libraries, ${Buffer.byteLength(text)} bytes`);

function refuse(what) {
  console.error(`build: error: ${what}`);
  process.exit(1);
}

function attempt(what, action) {
  try { return action(); } catch (error) { return refuse(`${what}: ${error.message}`); }
}
