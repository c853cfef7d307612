// The report: one HTML file with everything in it, for people who want to see it at a glance, on a screen, on paper, or read aloud. It needs no script, no
// server and no network, and says so to the browser (Content-Security-Policy). Changes that one file, whole or not at all.
import fs from 'node:fs';
import path from 'node:path';
import { Problem, answer, mode, named, pasteable, say, size, span, warn } from './say.ts';
import { writeDurably } from './shell.ts';
import type { Settings } from './settings.ts';
import { VERSION } from './about.ts';
import { serversMeant } from './operator.ts';
import type { Operator } from './operator.ts';
import { factsOfAll } from './fleet.ts';
import type { Night, ShownArchive, ShortPassport } from './fleet.ts';
import { REPORT_WORDS } from './reportwords.ts';
import type { ReportWords } from './reportwords.ts';
import { calendar, curve, markup, nightSign, ownMarkup, strip, textOf } from './charts.ts';
import type { Day, Markup } from './charts.ts';
import { LIGHTS, ageText, daysOf, hoursSince, judged } from './verdict.ts';
import type { Judged, Light } from './verdict.ts';
import { STYLE } from './style.ts';

/** `report [SERVER...] --to FILE`: given the operator's settings, writes the page. Returns 0, or 1 when a server could not be looked at. */
export async function report(builtIn: Settings, operator: Operator, names: string[], to: string, language: string): Promise<number> {
  if (to === '') throw new Problem('report needs --to FILE', { exitCode: 64, hint: 'node backup.js report --to backups.html' });
  const file = path.resolve(to), there = fs.statSync(file, { throwIfNoEntry: false });
  if (there && !there.isFile()) throw new Problem(`${named(file)} is there, and is no file`, { exitCode: 64, hint: 'name a file: it is written anew each time' });
  if (!fs.statSync(path.dirname(file), { throwIfNoEntry: false })?.isDirectory()) throw new Problem(`there is no folder ${named(path.dirname(file))}`, { exitCode: 64, hint: 'name a file in a folder that is there' });
  const page = pageIn((language || operator.language) as 'en' | 'es', Date.now()), servers = page.verdicts(await factsOfAll(builtIn, operator, serversMeant(operator, names)));
  writeDurably(file, textOf(page.whole(servers)));
  if (mode.json) answer(JSON.stringify(servers.map(({ one, light, why, next, newest, ageHours, drill, audit, space }) => ({ server: one.server, outcome: light, why, next: next?.command ?? '', where: next?.where ?? '', archive: newest?.name ?? '', ageHours, drill, audit, space })), null, 1));
  for (const { one, light, why, next, trouble } of servers) if (light !== 'good') (trouble ? warn : say)(`${one.server}: ${light}: ${why[0]}${next ? `; next: ${next.command}` : ''}`);
  say(`wrote ${named(file)}`);
  return servers.some(({ trouble }) => trouble) ? 1 : 0;
}

/** The page in a language, as of a time. Returns the functions that need both. */
function pageIn(language: 'en' | 'es', now: number) {
  const words: ReportWords = REPORT_WORDS[language], local = (text: string) => text.replace('.', words.decimal), bytes = (number: number) => local(size(number)), time = (seconds: number) => local(span(seconds));
  const dateIn = (timeZone: string, form: Intl.DateTimeFormatOptions) => {
    const format = new Intl.DateTimeFormat(words.locale, { ...form, timeZone });
    return (at: string) => format.format(new Date(at));
  };
  const ago = (at: string) => words.ago(ageText(hoursSince(at, now), words));
  const code = (command: string) => markup`<code>${command}</code>`;

  function verdicts(facts: Awaited<ReturnType<typeof factsOfAll>>): Judged[] {
    const all = facts.map((one) => judged(one, words, dateIn(one.one.timeZone, { dateStyle: 'medium', timeStyle: 'short' }), now));
    return all.sort((one, other) => LIGHTS.indexOf(one.light) - LIGHTS.indexOf(other.light));
  }

  const lamp = (light: Light) => markup`<span class="lamp ${light}">${ownMarkup(LAMPS[light])}${words.light[light]}</span>`;
  const countsOf = (days: Day[]) => words.nightCounts(...(['good', 'warning', 'failed', 'missing'] as const).map((state) => days.filter((one) => one.state === state).length) as [number, number, number, number]);
  const next = ({ next: step, one }: Judged) => (step ? markup`${code(step.command)} <small>${step.where === 'here' ? words.here : words.onServer(one.server)}</small>` : words.nothingToDo);

  function whole(servers: Judged[]): Markup {
    const when = dateIn(Intl.DateTimeFormat().resolvedOptions().timeZone, { dateStyle: 'full', timeStyle: 'short' })(new Date(now).toISOString());
    const tally = LIGHTS.map((light) => ({ light, number: servers.filter((one) => one.light === light).length })).filter(({ number }) => number > 0);
    return markup`<!doctype html>
<html lang="${language}">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<meta name="color-scheme" content="light dark">
<title>${words.title}: ${words.servers(servers.length)}</title>
<style>${ownMarkup(STYLE)}</style>
</head>
<body>
<a class="skip" href="#main">${words.skip}</a>
<header>
<h1>${words.title}</h1>
<p>${words.madeAt(when)} · ${words.servers(servers.length)}</p>
<ul class="tally" aria-label="${words.tally}">${tally.map(({ light, number }) => markup`<li class="${light}"><b>${number}</b> ${lamp(light)}</li>`)}</ul>
</header>
<main id="main" tabindex="-1">
<section aria-labelledby="glance">
<h2 id="glance">${words.glance}</h2>
${table('fleet', [words.state, words.server, words.nextStep, words.lastGood, words.size, words.drill, words.audit, words.space], 1, servers.map((one) => ({ kind: one.light, cells: row(one) })))}
</section>
${servers.map(section)}
</main>
<footer>
<h2>${words.legend}</h2>
<ul class="legend">${(['good', 'warning', 'failed', 'missing'] as const).map((state) => markup`<li>${nightSign(state)} ${words.night[state]}</li>`)}</ul>
<p>${words.footer}</p>
<p>cold-backup ${VERSION}</p>
</footer>
</body>
</html>
`;
  }

  /** A table that is a stack of cards on a narrow screen: the roles keep it a table for a screen reader. title: which cell names the row. */
  function table(kind: string, heads: string[], title: number, rows: { kind: string; cells: unknown[] }[]): Markup {
    return markup`<table class="cards ${kind}" role="table">
<thead role="rowgroup"><tr role="row">${heads.map((head) => markup`<th role="columnheader" scope="col">${head}</th>`)}</tr></thead>
<tbody role="rowgroup">
${rows.map((one) => markup`<tr role="row" class="${one.kind}">${one.cells.map((content, at) => (at === title ? markup`<th role="rowheader" scope="row">${content}</th>` : markup`<td role="cell" data-head="${heads[at]}"><div>${content}</div></td>`))}</tr>
`)}</tbody>
</table>`;
  }

  function row(judge: Judged): unknown[] {
    const { one, light, why, newest, drill, audit } = judge, days = daysOf(judge, 30, now), last = judge.nights[judge.nights.length - 1], date = dateIn(one.timeZone, { dateStyle: 'medium' });
    return [lamp(light), markup`<a href="#${one.server}">${one.server}</a>${strip(days, `${one.server}: ${words.lastNights(30)}`, countsOf(days))}`,
      markup`${why[0] && markup`<p>${why[0]}</p>`}${next(judge)}`,
      newest ? markup`<b>${ago(newest.seenAt)}</b> <small>${date(newest.seenAt)}${last && markup` · ${words.down.toLowerCase()} ${time(last.downSeconds)}`}</small>` : words.none,
      last ? markup`${bytes(last.bytes)}${growth(judge)}` : words.notKnown,
      drill ? markup`${drill.proven ? words.drillGood : markup`<b>${words.drillBad}</b>`} <small>${ago(drill.madeAt)}</small>` : one.drillMaxAgeDays === 0 ? words.noDrills : words.none,
      audit ? markup`${audit.verdict === 'clean' ? words.clean : markup`<b>${words.alarm}</b>`} <small>${ago(audit.at)}</small>` : words.never, spaceText(judge)];
  }

  function growth({ nights }: Judged): unknown {
    const lately = nights.filter(({ outcome }) => outcome !== 'failed').slice(-30), change = lately.length < 2 ? 0 : (lately[lately.length - 1]!.bytes - lately[0]!.bytes) / (lately.length - 1);
    return Math.abs(change) >= 1000 && markup` <small>${words.aNight(`${change > 0 ? '+' : '\u2212'}${bytes(Math.abs(change))}`)}</small>`;
  }

  function spaceText({ space, trouble }: Judged): unknown {
    if (!space) return trouble ? words.notKnown : words.noShell;
    const full = space.daysLeft === null ? '' : space.daysLeft > 1000 ? words.notSoon : words.full(words.days(space.daysLeft));
    return markup`${words.used(bytes(space.usedBytes))} <small>${words.free(bytes(space.freeBytes))}${space.quotaBytes > 0 && ` · ${words.quota(bytes(space.quotaBytes))}`}${full && ` · ${full}`}</small>`;
  }

  function section(judge: Judged): Markup {
    const { one, light, why, trouble } = judge, days = daysOf(judge, 365, now);
    return markup`<section class="server" id="${one.server}" aria-labelledby="h-${one.server}">
<h2 id="h-${one.server}">${one.server} ${lamp(light)}</h2>
${why.length > 0 && markup`<ul class="why">${why.map((each) => markup`<li>${each}</li>`)}${trouble?.hint && markup`<li>${words.hint}: ${trouble.hint}</li>`}</ul>`}
<p>${words.nextStep}: ${next(judge)}</p>
<h3>${words.nights}</h3>
<p>${countsOf(days)}</p>
<div class="wide" role="region" aria-label="${words.nightsOf(one.server)}" tabindex="0">${calendar(days, words.locale, words.nightsOf(one.server), countsOf(days))}</div>
<div class="charts">${charts(judge)}</div>
${numbers(judge)}
<h3>${words.archives}</h3>
${archiveTable(judge)}
<p class="back"><a href="#main">${words.back}</a></p>
</section>
`;
  }

  function charts({ one, nights }: Judged): unknown {
    const done = nights.filter(({ outcome }) => outcome !== 'failed').slice(-90), day = dateIn(one.timeZone, { day: 'numeric', month: 'short' });
    if (done.length < 2) return markup`<p>${words.tooFew}</p>`;
    const from = day(done[0]!.startedAt), until = day(done[done.length - 1]!.startedAt);
    const draw = (title: string, valueOf: (night: Night) => number, shown: (number: number) => string, kind: 'bars' | 'line') => {
      const values = done.map(valueOf), [least, most, last] = [Math.min(...values), Math.max(...values), values[values.length - 1]!].map(shown) as [string, string, string], text = words.chartText(from, until, least, most, last);
      return markup`<figure><figcaption><b>${title}</b> ${text}</figcaption>${curve(values, kind, `${title}, ${one.server}`, text, [most, from, until])}</figure>`;
    };
    return [draw(words.downChart, (night) => night.downSeconds, time, 'bars'), draw(words.sizeChart, (night) => night.bytes, bytes, 'line'), draw(words.newChart, (night) => night.newBytes, bytes, 'bars')];
  }

  function numbers({ one, nights }: Judged): unknown {
    const date = dateIn(one.timeZone, { dateStyle: 'medium', timeStyle: 'short' });
    if (nights.length === 0) return null;
    return markup`<details><summary>${words.numbers} <span class="of">(${one.server})</span></summary><div class="wide" role="region" aria-label="${words.numbers}: ${one.server}" tabindex="0"><table><thead><tr>${[words.date, words.outcome, words.down, words.size, words.newChart].map((head) => markup`<th scope="col">${head}</th>`)}</tr></thead>
<tbody>${nights.slice(-30).reverse().map((night) => markup`<tr><th scope="row">${date(night.startedAt)}</th><td>${nightSign(night.outcome)} ${words.night[night.outcome]}${night.warnings.map((warning) => markup`<br><small>${warning}</small>`)}</td><td>${time(night.downSeconds)}</td><td>${bytes(night.bytes)}</td><td>${bytes(night.newBytes)}</td></tr>`)}</tbody></table></div></details>`;
  }

  function archiveTable(judge: Judged): unknown {
    const { one, archives, newest, nights } = judge, night = new Map(nights.map((each) => [each.archive, each])), date = dateIn(one.timeZone, { dateStyle: 'medium', timeStyle: 'short' });
    if (archives.length === 0) return markup`<p>${words.noArchives}</p>`;
    const bare = ['--repository', one.repository, ...(one.keyFile ? ['--key-file', one.keyFile] : []), ...(one.passphraseFile ? ['--passphrase-file', one.passphraseFile] : []), ...(one.sshKey ? ['--ssh-key', one.sshKey] : [])];
    let above = '';
    const rows = archives.map((archive) => {
      const software = typeof archive.passport === 'string' ? '' : JSON.stringify({ ...archive.passport, clusters: archive.passport.clusters.map(({ name, version, databases }) => [name, version, databases.map((each) => [each.name, each.extensions])]) });
      const isSame = software !== '' && software === above, made = night.get(archive.name);
      above = software;
      return { kind: '', cells: [markup`${archive.name} <small>${archive.isProven ? words.proven : markup`<b>${words.unproven}</b>`}</small>`, markup`${date(archive.seenAt)} <small>${archive.isSeen ? words.byStorage : words.byServer}</small>`,
        made ? bytes(made.bytes) : words.notKnown, holdings(archive, isSame), archive.isProven && code(`node backup.js restore ${archive.name} --to /srv/${archive.name}`)] };
    });
    return markup`${newest && markup`<dl class="how"><dt>${words.restoreHow(one.server)}</dt><dd>${code(`node backup.js restore ${newest.name} --to /srv/${newest.name}`)}</dd><dt>${words.inPlaceHow}</dt><dd>${code(`node backup.js restore ${newest.name} --in-place --dry-run`)}</dd><dt>${words.bareHow}</dt><dd>${code(pasteable(bare))}</dd></dl>`}
${table('archives', [words.archive, words.seen, words.size, words.holds, words.restore], 0, rows)}`;
  }

  function holdings({ passport }: ShownArchive, isSame: boolean): unknown {
    if (typeof passport === 'string') return passport === '' ? words.notRead : words.noRecord(passport);
    const { system, architecture, paths, containers, clusters } = passport as ShortPassport;
    const databases = (all: ShortPassport['clusters'][number]['databases']) => all.map(({ name, bytes: number, extensions }) => `${name} ${bytes(number)}${!isSame && extensions.length > 0 ? ` (${extensions.join(', ')})` : ''}`).join('; ');
    return markup`${clusters.map(({ name, version, databases: all }) => markup`<p><b>${words.postgres(version, name)}</b> ${databases(all)}</p>`)}${isSame ? markup`<p>${words.same}</p>`
      : markup`<p>${system}, ${architecture}</p>${containers.length > 0 && markup`<p>${words.containers}: ${containers.join(', ')}</p>`}<p>${words.files}: ${paths.join(', ')}</p>`}`;
  }

  return { verdicts, whole };
}

// A circle, a triangle, a square with a cross, a diamond: the state without its colour.
const lampOf = (shape: string) => `<svg class="lampsign" aria-hidden="true" viewBox="0 0 14 14" width="14" height="14">${shape}</svg>`;
const LAMPS: Record<Light, string> = {
  good: lampOf('<circle cx="7" cy="7" r="6.5"/><path class="in" d="M4 7.2l2.2 2.2L10.2 5"/>'), warning: lampOf('<path d="M7 .5l7 13H0z"/><path class="in" d="M7 5v4m0 1.2v1.3"/>'),
  failed: lampOf('<path d="M1 1h12v12H1z"/><path class="in" d="M4.2 4.2l5.6 5.6m0-5.6l-5.6 5.6"/>'), unknown: lampOf('<path d="M7 0l7 7-7 7-7-7z"/><path class="in" d="M7 4v3.4m0 1.2v1.3"/>'),
};
