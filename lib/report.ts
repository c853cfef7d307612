// The report: one HTML file with everything in it, for people who want to see it at a glance.
// On a screen, on paper, or read aloud. It needs no script, no server and no network, and says so to the browser
// (Content-Security-Policy). Changes that one file, whole or not at all.
import fs from 'node:fs';
import path from 'node:path';
import { Problem, answer, mode, named, say, warn } from './say.ts';
import type { Settings } from './settings.ts';
import { VERSION } from './about.ts';
import { canWrite, serversMeant, writeHere } from './operator.ts';
import type { Operator } from './operator.ts';
import { factsOfAll } from './fleet.ts';
import { markup, nightSign, ownMarkup, strip, textOf } from './charts.ts';
import type { Markup } from './charts.ts';
import { LIGHTS, daysOf, judged } from './verdict.ts';
import type { Judged } from './verdict.ts';
import { cards, lamp, nextStep, nightCounts, pageIn, serverSection } from './page.ts';
import type { Page } from './page.ts';
import { STYLE } from './style.ts';

/** `report [SERVER...] --to FILE`: given the operator's settings, writes the page. Returns 0, or 1 when a server could not be looked at. */
export async function report(builtIn: Settings, operator: Operator, names: string[], to: string, language: string): Promise<number> {
  if (to === '') throw new Problem('report needs --to FILE', { exitCode: 64, hint: 'node backup.js report --to backups.html' });
  const file = path.resolve(to), there = fs.statSync(file, { throwIfNoEntry: false });
  if (there && !there.isFile()) throw new Problem(`${named(file)} is there, and is no file`, { exitCode: 64, hint: 'name a file: it is written anew each time' });
  if (!fs.statSync(path.dirname(file), { throwIfNoEntry: false })?.isDirectory()) throw new Problem(`there is no folder ${named(path.dirname(file))}`,
    { exitCode: 64, hint: 'name a file in a folder that is there' });
  canWrite(file, () => fs.accessSync(path.dirname(file), fs.constants.W_OK)); // told before minutes of reading
  const facts = await factsOfAll(builtIn, operator, serversMeant(operator, names)), now = Date.now(), page = pageIn((language || operator.language) as 'en' | 'es', now);
  const judge = ({ words, dateIn }: Page) => facts.map((each) => judged(each, words, dateIn(each.one.timeZone, { dateStyle: 'medium', timeStyle: 'short' }), now)).sort((one, other) => LIGHTS.indexOf(one.light) - LIGHTS.indexOf(other.light));
  writeHere(file, textOf(wholePage(page, judge(page))));
  const told = judge(pageIn('en', now)); // the terminal speaks English
  if (mode.json) answer(JSON.stringify(told.map(({ one, light, why, next, newest, ageHours, drill, audit, space }) => ({ server: one.server, outcome: light, why, next: next?.command ?? '', where: next?.where ?? '', archive: newest?.name ?? '', ageHours, drill, audit, space })), null, 1));
  for (const { one, light, why, next, trouble } of told) if (light !== 'good') (trouble ? warn : say)(`${one.server}: ${light}: ${why[0]}${next ? `; next: ${next.command}` : ''}`);
  say(`wrote ${named(file)}`);
  return facts.some(({ trouble }) => trouble) ? 1 : 0;
}

/** The whole page. */
function wholePage(page: Page, servers: Judged[]): Markup {
  const { words, dateIn, now, language } = page;
  const when = dateIn(Intl.DateTimeFormat().resolvedOptions().timeZone, { dateStyle: 'full', timeStyle: 'short' })(new Date(now).toISOString());
  const tally = LIGHTS.map((light) => ({ light, number: servers.filter((one) => one.light === light).length })).filter(({ number }) => number > 0);
  return markup`<!doctype html>
<html lang="${language}"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'"><meta name="color-scheme" content="light dark">
<title>${words.title}: ${words.servers(servers.length)}</title>
<style>${ownMarkup(STYLE)}</style>
</head><body>
<a class="skip" href="#main">${words.skip}</a>
<header>
<h1>${words.title}</h1>
<p>${words.madeAt(when)} · ${words.servers(servers.length)}</p>
<ul class="tally" aria-label="${words.tally}">${tally.map(({ light, number }) => markup`<li class="${light}"><b>${number}</b> ${lamp(page, light)}</li>`)}</ul>
</header>
<main id="main" tabindex="-1">
<section aria-labelledby="glance">
<h2 id="glance">${words.glance}</h2>
${cards('fleet', [words.state, words.server, words.nextStep, words.lastGood, words.size, words.drill, words.audit, words.space], 1, servers.map((one) => ({ kind: one.light, cells: overviewRow(page, one) })))}
</section>
${servers.map((one) => serverSection(page, one))}
</main>
<footer>
<h2>${words.legend}</h2>
<ul class="legend">${(['good', 'warning', 'failed', 'missing'] as const).map((state) => markup`<li>${nightSign(state)} ${words.night[state]}</li>`)}</ul>
<p>${words.footer}</p>
<p>cold-backup ${VERSION}</p>
</footer>
</body></html>
`;
}

function overviewRow(page: Page, judge: Judged): unknown[] {
  const { words, now, ago, bytes, time, dateIn } = page, { one, light, why, newest, drill, audit } = judge, days = daysOf(judge, 30, now), last = judge.nights[judge.nights.length - 1], date = dateIn(one.timeZone, { dateStyle: 'medium' });
  return [lamp(page, light), markup`<a href="#${one.server}">${one.server}</a>${strip(days, `${one.server}: ${words.lastNights(30)}`, nightCounts(page, days))}`,
    markup`${why[0] && markup`<p>${why[0]}</p>`}${nextStep(page, judge)}`,
    newest ? markup`<b>${ago(newest.seenAt)}</b> <small>${date(newest.seenAt)}${last && markup` · ${words.down.toLowerCase()} ${time(last.downSeconds)}`}</small>` : words.none,
    last ? markup`${bytes(last.bytes)}${growthText(page, judge)}` : words.notKnown,
    drill ? markup`${drill.proven ? words.drillGood : markup`<b>${words.drillBad}</b>`} <small>${ago(drill.madeAt)}</small>` : one.drillMaxAgeDays === 0 ? words.noDrills : words.none,
    audit ? markup`${audit.verdict === 'clean' ? words.clean : markup`<b>${words.alarm}</b>`} <small>${ago(audit.at)}</small>` : words.never, spaceText(page, judge)];
}

/** How much more a backup becomes from night to night, by the last month. */
function growthText({ words, bytes }: Page, { nights }: Judged): unknown {
  const lately = nights.filter(({ outcome }) => outcome !== 'failed').slice(-30), change = lately.length < 2 ? 0 : (lately[lately.length - 1]!.bytes - lately[0]!.bytes) / (lately.length - 1);
  return Math.abs(change) >= 1000 && markup` <small>${words.aNight(`${change > 0 ? '+' : '\u2212'}${bytes(Math.abs(change))}`)}</small>`;
}

function spaceText({ words, bytes }: Page, { space, trouble }: Judged): unknown {
  if (!space) return trouble ? words.notKnown : words.noShell;
  const full = space.daysLeft === null ? '' : space.daysLeft > 1000 ? words.notSoon : words.full(words.days(space.daysLeft));
  return markup`${words.used(bytes(space.usedBytes))} <small>${words.free(bytes(space.freeBytes))}${space.quotaBytes > 0 && ` · ${words.quota(bytes(space.quotaBytes))}`}${full && ` · ${full}`}</small>`;
}
