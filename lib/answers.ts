// The walk for a server that has no settings yet: questions on a terminal, or options.
// Either ends in a settings file beside the script, which its owner then reads and edits. It looks at what runs to make a
// proposal, and whether what is answered is here. Changes one file, and never one that is there.
import { hostname } from 'node:os';
import fs from 'node:fs';
import path from 'node:path';
import { createInterface } from 'node:readline/promises';
import { Problem, named, say, sayBlock, warnings } from './say.ts';
import { look } from './shell.ts';
import { writeDurably } from './files.ts';
import type { Settings } from './settings.ts';
import { findContainers } from './containers.ts';
import { findClusters } from './postgres.ts';
import { findPart } from './plan.ts';

/** Whether somebody sits at a terminal and can answer. */
export const canAsk = () => Boolean(process.stdin.isTTY);

/**
 * Ask one question. Given what an empty answer means and what an answer must look like, returns the answer; asks again until
 * it fits. doubt: what may be wrong with it ('' = nothing); the same answer once more is believed. Throws Problem (64)
 * without a terminal.
 */
export async function ask(question: string, usual: string, form: RegExp, how: 'shown' | 'hidden' = 'shown', doubt = async (_answer: string) => ''): Promise<string> {
  if (!canAsk()) throw new Problem(`${question} There is no terminal to answer on`, { exitCode: 64, hint: 'run it on a terminal, or with --yes' });
  const lines = createInterface({ input: process.stdin, output: process.stderr, terminal: true });
  try {
    for (let doubted: string | null = null; ;) {
      const asked = lines.question(`${question}${usual ? ` [${usual}]` : ''} `);
      if (how === 'hidden') (lines as any)._writeToOutput = () => {}; // no other way is left to hide what is typed (nodejs/node #30427)
      const answer = (await asked).trim() || usual;
      const why = !form.test(answer) ? 'not understood: please write it as the question shows' : answer === doubted ? '' : await doubt(answer);
      if (why === '') return answer;
      doubted = form.test(answer) ? answer : null;
      process.stderr.write(`${why}${doubted === null ? '' : '. Write it anew, or the same once more to keep it'}\n`);
    }
  } finally {
    lines.close();
  }
}

export async function agrees(question: string): Promise<boolean> {
  return /^y/i.test(await ask(`${question} [yes/no]`, '', /^(y(es)?|no?)$/i));
}

const USUAL_UNITS = /^(nginx|apache2|httpd|caddy|tomcat\d*|odoo|php[\d.]*-fpm|gunicorn|uwsgi|supervisor|geoserver|redis-server|rabbitmq-server|memcached)\.service$/;

/** What runs here that is usually stopped for a backup, as entries of `stop`: web servers first, databases last. */
async function proposal(): Promise<string[]> {
  const units = (await look(['systemctl', 'list-units', '--type=service', '--state=running', '--plain', '--no-legend'])).out.split('\n').map((line) => line.split(' ')[0]!).filter((unit) => USUAL_UNITS.test(unit));
  const containers = (await look(['docker', 'ps', '--quiet'])).out.trim() !== '', clusters = / online/.test((await look(['pg_lsclusters', '--no-header'])).out);
  return [...units.map((unit) => `service ${unit.replace(/\.service$/, '')}`), ...(containers ? ['container *'] : []), ...(clusters ? ['postgres *'] : [])];
}

const wordsIn = (text: string) => text.split(',').map((one) => one.trim()).filter((one) => one !== '');

/** Which of these entries of `stop` are not on this machine, and why; '' = all are. A slip is seen at its question, not after the last one. */
async function partsNotHere(entries: string[], usual: Settings): Promise<string> {
  const containers = await findContainers(false), clusters = await findClusters(containers), wrong: string[] = [], known = warnings.length;
  for (const one of entries) {
    try {
      await findPart(one, usual, containers, clusters);
    } catch (error) {
      if (!(error instanceof Problem)) throw error;
      wrong.push(error.message);
    }
  }
  warnings.splice(known); // they are of an answer that may be another one yet: the doctor looks again
  return wrong.join('; ');
}

function foldersNotHere(folders: string[]): string {
  const gone = folders.filter((one) => !fs.existsSync(one));
  return gone.length > 0 ? `not here: ${gone.map(named).join(', ')}` : '';
}

function whyNoTimeZone(window: string): string {
  const zone = window.split(' ')[1] ?? 'UTC';
  try {
    new Intl.DateTimeFormat('en', { timeZone: zone });
    return '';
  } catch {
    return `${zone} is no time zone that is known here (they are called Africa/Maputo, America/Lima, UTC)`;
  }
}

/**
 * Given the script, the settings as they are before (`usual`: nothing but defaults), and what the command line says (server, repository, stop, folders, volumes, window, language: lists with commas),
 * asks for the rest and writes backup.settings.js beside the script. Throws Problem (64) when nobody can be asked for what is missing.
 */
export async function firstSettings(script: string, usual: Settings, given: Record<string, string>, yes: boolean): Promise<void> {
  const isAsked = !yes && canAsk();
  const answerTo = async (key: string, question: string, otherwise: string, form: RegExp, doubt = async (_answer: string) => '') => given[key] || (isAsked ? ask(question, otherwise, form, 'shown', doubt) : otherwise);
  if (!isAsked && !given.repository) throw new Problem('there are no settings yet',
    { exitCode: 64, hint: 'run setup on a terminal, which asks; or fill in the block at the top of backup.js; or say all here: setup --repository ssh://borg@storage.example.org/./web1 --stop \'postgres *\' --folders /srv/files' });
  const server = await answerTo('server', 'The name of this server (every archive begins with it)?', hostname(), /^(?!proven-)[A-Za-z0-9][\w.-]*$/);
  const repository = await answerTo('repository', 'Where do the archives go (ssh://borg@storage.example.org/./NAME, or a path)?', '', /^(?!\S*\/NAME$)(ssh:\/\/\S+|\/\S+|[^\s:]+:\S+)$/);
  const stop = wordsIn(await answerTo('stop', 'What is stopped for the copy, in this order, with commas (service nginx, compose shop, container *, postgres *)?', isAsked ? (await proposal()).join(', ') : '', /^( *(service|compose|container|postgres) [^,]+(,|$))*$/, (answer) => partsNotHere(wordsIn(answer), usual)));
  const folders = wordsIn(await answerTo('folders', 'Which folders are saved, with commas (databases named above are saved whole anyway)?', '', stop.length > 0 ? /^/ : /^\//, async (answer) => foldersNotHere(wordsIn(answer))));
  const volumes = wordsIn(await answerTo('volumes', 'Which container volumes (\'*\' = all of the containers above)?', stop.some((one) => /^(container|compose) /.test(one)) ? '*' : '', /^/));
  const window = await answerTo('window', 'Between which hours may it be down (01:00-05:30 Africa/Maputo, or: any)?', isAsked ? `01:00-05:30 ${Intl.DateTimeFormat().resolvedOptions().timeZone}` : 'any', /^(any|\d\d:\d\d-\d\d:\d\d \S+)$/, async (answer) => whyNoTimeZone(answer));
  const [, from = '', until = '', timeZone = ''] = /^(\d\d:\d\d)-(\d\d:\d\d) (\S+)$/.exec(window) ?? [];
  const language = await answerTo('language', 'Language of what is written for people (en, es)?', 'en', /^(en|es)$/);
  const settings: Partial<Settings> = { server, stop, folders, volumes, repository, window: until ? { from, until, timeZone } : null, language: language as 'en' | 'es' };
  const file = path.join(path.dirname(script), 'backup.settings.js'), lines = Object.entries(settings).map(([key, value]) => `  ${key}: ${JSON.stringify(value)},`);
  const text = `// What this server stops and saves; every other setting has its default (node backup.js --print-settings).\nconst settings = {\n${lines.join('\n')}\n};\n`;
  writeDurably(file, text);
  sayBlock(text);
  say(`wrote ${named(file)}: read it, and edit it whenever you like`);
}
