// The walk for a server that has no settings yet: questions on a terminal, or options.
// Either ends in a settings file beside the script, which its owner then reads and edits. It looks at what runs to make a proposal, and whether what is answered
// is here. Changes one file, never one that is there, and not before every answer is as its setting must be.
import { hostname } from 'node:os';
import fs from 'node:fs';
import path from 'node:path';
import { createInterface } from 'node:readline/promises';
import { Problem, named, say, sayBlock, warnings } from './say.ts';
import { look } from './shell.ts';
import { writeDurably } from './files.ts';
import { TABLE } from './rules.ts';
import type { Settings } from './settings.ts';
import { findContainers } from './containers.ts';
import { findClusters } from './postgres.ts';
import { findPart } from './plan.ts';

/** Whether somebody sits at a terminal and can answer. */
export const canAsk = () => Boolean(process.stdin.isTTY);

/**
 * Ask one question. Given what an empty answer means and what an answer must look like (or what says what is wrong with one, '' = nothing), returns the answer;
 * asks again until it fits. doubt: what may be wrong with it; the same answer once more is believed. Throws Problem: 64 without a terminal, 130 at Ctrl-C and Ctrl-D.
 */
export async function ask(question: string, usual: string, form: RegExp | ((answer: string) => string), how: 'shown' | 'hidden' = 'shown', doubt = async (_answer: string) => ''): Promise<string> {
  if (!canAsk()) throw new Problem(`${question} There is no terminal to answer on`, { exitCode: 64, hint: 'run it on a terminal, or with --yes' });
  const lines = createInterface({ input: process.stdin, output: process.stderr, terminal: true });
  let isAnswered = false;
  const calledOff = new Promise<never>((_, refuse) => {
    lines.once('close', () => isAnswered || refuse(new Problem('called off', { exitCode: 130, hint: 'call it again whenever you like: what it said it wrote or made is kept' })));
  });
  try {
    for (let doubted: string | null = null; ;) {
      const asked = lines.question(`${question}${usual ? ` [${usual}]` : ''} `);
      if (how === 'hidden') Object.assign(lines, { _writeToOutput: () => {} }); // no other way is left to hide what is typed (nodejs/node #30427)
      const answer = (await Promise.race([calledOff, asked.catch(() => calledOff)])).trim() || usual;
      const wrong = typeof form === 'function' ? form(answer) : form.test(answer) ? '' : 'not understood: please write it as the brackets show';
      const why = wrong || (answer === doubted ? '' : await doubt(answer));
      if (why === '') return answer;
      doubted = wrong === '' ? answer : null;
      process.stderr.write(`${why}${doubted === null ? '' : '. Write it anew, or the same once more to keep it'}\n`);
    }
  } catch (error) {
    process.stderr.write('\n'); // the prompt's line has no end
    throw error;
  } finally {
    isAnswered = true;
    lines.close();
  }
}

export const agrees = async (question: string) => /^y/i.test(await ask(`${question} [yes/no]`, '', /^(y(es)?|no?)$/i));

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
    await findPart(one, usual, containers, clusters).catch((error) => {
      if (!(error instanceof Problem)) throw error;
      wrong.push(error.message);
    });
  }
  warnings.splice(known); // they are of an answer that may be another one yet: the doctor looks again
  return wrong.join('; ');
}

async function foldersNotHere(folders: string[], stop: string[]): Promise<string> {
  if (folders.length + stop.length === 0) return 'nothing is stopped: name at least one';
  const gone = folders.filter((one) => !fs.existsSync(one));
  return gone.length > 0 ? `not here: ${gone.map(named).join(', ')}` : '';
}

/** What is wrong with a value of a setting, as its rule will say when the file is read; '' = nothing. */
function mistakesIn(name: string, value: unknown): string {
  const found: string[] = [];
  if (value !== null) TABLE.find((one) => one.name === name)!.rule(value, name, (at, message) => found.push(`${at.replace(/^.*\[(\d+)\]$/, (_, index) => `word ${Number(index) + 1}`)} ${message}`));
  return found.join('; ');
}

// '01:00-05:30 Africa/Maputo' as the setting; null = any time. What cannot be read is left for the rule to refuse.
const windowIn = (answer: string) => (answer === 'any' ? null : { .../^(?<from>[^\s-]*)-?(?<until>\S*) *(?<timeZone>.*)$/.exec(answer)?.groups }) as Settings['window'];

/** A quota as borg takes it: the letters are capitals, and less than 10M is too little (borg serve --storage-quota). */
export const QUOTA = /^(\d+(\.\d+)?[GTP]|[1-9]\d+(\.\d+)?M|[1-9]\d{4,}K|[1-9]\d{7,})$/;

// What is wrong with an option is told without its value: an address may hold a password.
function refuseOption(option: string, why: string): void {
  if (why) throw new Problem(`--${option}: ${why}`, { exitCode: 64, hint: 'nothing was touched: mend it, and call setup again' });
}

/** Throws Problem (64) when a quota is given ('' = none) and borg would not take it. */
export const refuseQuota = (quota: string) => refuseOption('quota', quota && !QUOTA.test(quota) ? 'must be like 500G, and no less than 10M' : '');

/**
 * Given the script, the settings as they are before (`usual`: nothing but defaults), and what the command line says (server, repository, stop, folders, volumes, window, language:
 * lists with commas; quota), asks for the rest and writes backup.settings.js beside the script. Throws Problem (64), with nothing written, when nobody can be asked, or what it says is wrong.
 */
export async function firstSettings(script: string, usual: Settings, given: Record<string, string>, yes: boolean): Promise<void> {
  const isAsked = !yes && canAsk();
  const answerTo = async <T>(key: keyof Settings, question: string, otherwise: string, valueOf: (answer: string) => T, doubt = async (_answer: string) => '') => {
    const form = (answer: string) => mistakesIn(key, valueOf(answer)), said = given[key];
    if (said) refuseOption(key, form(said) || await doubt(said));
    return valueOf(said || (isAsked ? await ask(question, otherwise, form, 'shown', doubt) : otherwise));
  };
  if (!isAsked && !(given.repository && (given.stop || given.folders || given.volumes))) throw new Problem('there are no settings yet',
    { exitCode: 64, hint: 'run setup on a terminal, which asks; or fill in the block at the top of backup.js; or say all here: setup --repository ssh://borg@storage.example.org/./web1 --stop \'postgres *\' --folders /srv/files' });
  refuseQuota(given.quota ?? '');
  const asItIs = (answer: string) => answer;
  const server = await answerTo('server', 'The name of this server (every archive begins with it)?', hostname().split('.')[0]!, asItIs);
  const repository = await answerTo('repository', 'Where do the archives go (ssh://borg@storage.example.org/./NAME, or a path)?', '', asItIs,
    async (answer) => (answer.endsWith('/NAME') ? 'write another name for NAME' : ''));
  const stop = await answerTo('stop', 'What is stopped for the copy, in this order, with commas (service nginx, compose shop, container *, postgres *)? Name your applications, too',
    isAsked ? (await proposal()).join(', ') : '', wordsIn, (answer) => partsNotHere(wordsIn(answer), usual));
  const folders = await answerTo('folders', 'Which folders are saved, with commas (databases named above are saved whole anyway)?', '', wordsIn, (answer) => foldersNotHere(wordsIn(answer), stop));
  const stopsContainers = stop.some((one) => /^(container|compose) /.test(one)), hasVolumes = stopsContainers || given.volumes || (await look(['docker', 'ps', '--all', '--quiet'])).out.trim() !== '';
  const volumes = hasVolumes ? await answerTo('volumes', 'Which container volumes (\'*\' = all of the containers above)?', stopsContainers ? '*' : '', wordsIn) : [];
  const usualWindow = isAsked ? `01:00-05:30 ${Intl.DateTimeFormat().resolvedOptions().timeZone}` : 'any';
  const window = await answerTo('window', 'Between which hours may it be down (01:00-05:30 Africa/Maputo, or: any)?', usualWindow, windowIn);
  const language = await answerTo('language', 'Language of what is written for people (en, es)?', 'en', asItIs);
  const settings = { server, stop, folders, volumes, repository, window, language };
  const file = path.join(path.dirname(script), 'backup.settings.js'), lines = Object.entries(settings).map(([key, value]) => `  ${key}: ${JSON.stringify(value)},`);
  const text = `// What this server stops and saves; every other setting has its default (node backup.js --print-settings).\nconst settings = {\n${lines.join('\n')}\n};\n`;
  writeDurably(file, text);
  sayBlock(text);
  say(`wrote ${named(file)}: read it, and edit it whenever you like`);
}
