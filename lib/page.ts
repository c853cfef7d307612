// The report's page of one server: state, next step, a year of nights, curves, archives.
// Of each archive what it holds and the command that brings it back. And what that and the overview (the next chapter) share:
// the words and forms of a language, lamps, tables. Only makes text.
import { pasteable, size, span } from './say.ts';
import type { Night, ShownArchive, ShortPassport } from './fleet.ts';
import { REPORT_WORDS } from './reportwords.ts';
import type { ReportWords } from './reportwords.ts';
import { calendar, curve, markup, nightSign, ownMarkup } from './charts.ts';
import type { Day, Markup } from './charts.ts';
import { ageText, daysOf, hoursSince } from './verdict.ts';
import type { Judged, Light } from './verdict.ts';

/** What every piece of the page needs: its words and time, and how sizes, spans, ages and dates are written. */
export type Page = { language: 'en' | 'es'; words: ReportWords; now: number; bytes: (number: number) => string; time: (seconds: number) => string; ago: (at: string) => string; dateIn: (timeZone: string, form: Intl.DateTimeFormatOptions) => (at: string) => string };

/** Given a language and the time, returns that. */
export function pageIn(language: 'en' | 'es', now: number): Page {
  const words = REPORT_WORDS[language], local = (text: string) => text.replace('.', words.decimal);
  return { language, words, now, bytes: (number) => local(size(number)), time: (seconds) => local(span(seconds)), ago: (at) => words.ago(ageText(hoursSince(at, now), words)),
    dateIn: (timeZone, form) => (at) => new Intl.DateTimeFormat(words.locale, { ...form, timeZone }).format(new Date(at)) };
}

export const code = (command: string) => markup`<code>${command}</code>`;
export const lamp = ({ words }: Page, light: Light) => markup`<span class="lamp ${light}">${ownMarkup(LAMPS[light])}${words.light[light]}</span>`;
export const nightCounts = ({ words }: Page, days: Day[]) => words.nightCounts(...(['good', 'warning', 'failed', 'missing'] as const).map((state) => days.filter((one) => one.state === state).length) as [number, number, number, number]);
export const nextStep = ({ words }: Page, { next, one }: Judged) => (next ? markup`${code(next.command)} <small>${next.where === 'here' ? words.here : words.onServer(one.server)}</small>` : words.nothingToDo);

// A circle, a triangle, a square with a cross, a diamond: the state without its colour.
const lampOf = (shape: string) => `<svg class="lampsign" aria-hidden="true" viewBox="0 0 14 14" width="14" height="14">${shape}</svg>`;
const LAMPS: Record<Light, string> = {
  good: lampOf('<circle cx="7" cy="7" r="6.5"/><path class="in" d="M4 7.2l2.2 2.2L10.2 5"/>'), warning: lampOf('<path d="M7 .5l7 13H0z"/><path class="in" d="M7 5v4m0 1.2v1.3"/>'),
  failed: lampOf('<path d="M1 1h12v12H1z"/><path class="in" d="M4.2 4.2l5.6 5.6m0-5.6l-5.6 5.6"/>'), unknown: lampOf('<path d="M7 0l7 7-7 7-7-7z"/><path class="in" d="M7 4v3.4m0 1.2v1.3"/>'),
};

/** A table that is a stack of cards on a narrow screen: the roles keep it a table for a screen reader. title: which cell names the row. */
export function cards(kind: string, heads: string[], title: number, rows: { kind: string; cells: unknown[] }[]): Markup {
  return markup`<table class="cards ${kind}" role="table">
<thead role="rowgroup"><tr role="row">${heads.map((head) => markup`<th role="columnheader" scope="col">${head}</th>`)}</tr></thead>
<tbody role="rowgroup">
${rows.map((one) => markup`<tr role="row" class="${one.kind}">${one.cells.map((content, at) => (at === title ? markup`<th role="rowheader" scope="row">${content}</th>` : markup`<td role="cell" data-head="${heads[at]}"><div>${content}</div></td>`))}</tr>
`)}</tbody>
</table>`;
}

/** All about one server. */
export function serverSection(page: Page, judge: Judged): Markup {
  const { words, now } = page, { one, light, why, trouble } = judge, days = daysOf(judge, 365, now);
  return markup`<section class="server" id="${one.server}" aria-labelledby="h-${one.server}">
<h2 id="h-${one.server}">${one.server} ${lamp(page, light)}</h2>
${why.length > 0 && markup`<ul class="why">${why.map((each) => markup`<li>${each}</li>`)}${trouble?.hint && markup`<li>${words.hint}: ${trouble.hint}</li>`}</ul>`}
<p>${words.nextStep}: ${nextStep(page, judge)}</p>
<h3>${words.nights}</h3>
<p>${nightCounts(page, days)}</p>
<div class="wide" role="region" aria-label="${words.nightsOf(one.server)}" tabindex="0">${calendar(days, words.locale, words.nightsOf(one.server), nightCounts(page, days))}</div>
<div class="charts">${chartsOf(page, judge)}</div>
${numbersOf(page, judge)}
<h3>${words.archives}</h3>
${archiveTable(page, judge)}
<p class="back"><a href="#main">${words.back}</a></p>
</section>
`;
}

function chartsOf({ words, time, bytes, dateIn }: Page, { one, nights }: Judged): unknown {
  const done = nights.filter(({ outcome }) => outcome !== 'failed').slice(-90), day = dateIn(one.timeZone, { day: 'numeric', month: 'short' });
  if (done.length < 2) return markup`<p>${words.tooFew}</p>`;
  const from = day(done[0]!.startedAt), until = day(done[done.length - 1]!.startedAt);
  const draw = (title: string, valueOf: (night: Night) => number, shown: (number: number) => string, kind: 'bars' | 'line') => {
    const values = done.map(valueOf), [least, most, last] = [Math.min(...values), Math.max(...values), values[values.length - 1]!].map(shown) as [string, string, string], text = words.chartText(from, until, least, most, last);
    return markup`<figure><figcaption><b>${title}</b> ${text}</figcaption>${curve(values, kind, `${title}, ${one.server}`, text, [most, from, until])}</figure>`;
  };
  return [draw(words.downChart, (night) => night.downSeconds, time, 'bars'), draw(words.sizeChart, (night) => night.bytes, bytes, 'line'), draw(words.newChart, (night) => night.newBytes, bytes, 'bars')];
}

function numbersOf({ words, time, bytes, dateIn }: Page, { one, nights }: Judged): unknown {
  const date = dateIn(one.timeZone, { dateStyle: 'medium', timeStyle: 'short' });
  if (nights.length === 0) return null;
  return markup`<details><summary>${words.numbers} <span class="of">(${one.server})</span></summary><div class="wide" role="region" aria-label="${words.numbers}: ${one.server}" tabindex="0"><table><thead><tr>${[words.date, words.outcome, words.down, words.size, words.newChart].map((head) => markup`<th scope="col">${head}</th>`)}</tr></thead>
<tbody>${nights.slice(-30).reverse().map((night) => markup`<tr><th scope="row">${date(night.startedAt)}</th><td>${nightSign(night.outcome)} ${words.night[night.outcome]}${night.warnings.map((warning) => markup`<br><small>${warning}</small>`)}</td><td>${time(night.downSeconds)}</td><td>${bytes(night.bytes)}</td><td>${bytes(night.newBytes)}</td></tr>`)}</tbody></table></div></details>`;
}

function archiveTable(page: Page, judge: Judged): unknown {
  const { words, bytes, dateIn } = page, { one, archives, newest, nights } = judge, night = new Map(nights.map((each) => [each.archive, each])), date = dateIn(one.timeZone, { dateStyle: 'medium', timeStyle: 'short' });
  if (archives.length === 0) return markup`<p>${words.noArchives}</p>`;
  const bare = ['--repository', one.repository, ...(one.keyFile ? ['--key-file', one.keyFile] : []), ...(one.passphraseFile ? ['--passphrase-file', one.passphraseFile] : []), ...(one.sshKey ? ['--ssh-key', one.sshKey] : [])];
  let above = '';
  const rows = archives.map((archive) => {
    const software = typeof archive.passport === 'string' ? '' : JSON.stringify({ ...archive.passport, clusters: archive.passport.clusters.map(({ name, version, databases }) => [name, version, databases.map((each) => [each.name, each.extensions])]) });
    const isSame = software !== '' && software === above, made = night.get(archive.name);
    above = software;
    return { kind: '', cells: [markup`${archive.name} <small>${archive.isProven ? words.proven : markup`<b>${words.unproven}</b>`}</small>`, markup`${date(archive.seenAt)} <small>${archive.isSeen ? words.byStorage : words.byServer}</small>`,
      made ? bytes(made.bytes) : words.notKnown, holdings(page, archive, isSame), archive.isProven && code(`node backup.js restore ${archive.name} --to /srv/${archive.name}`)] };
  });
  return markup`${newest && markup`<dl class="how"><dt>${words.restoreHow(one.server)}</dt><dd>${code(`node backup.js restore ${newest.name} --to /srv/${newest.name}`)}</dd><dt>${words.inPlaceHow}</dt><dd>${code(`node backup.js restore ${newest.name} --in-place --dry-run`)}</dd><dt>${words.bareHow}</dt><dd>${code(pasteable(bare))}</dd></dl>`}
${cards('archives', [words.archive, words.seen, words.size, words.holds, words.restore], 0, rows)}`;
}

function holdings({ words, bytes }: Page, { passport }: ShownArchive, isSame: boolean): unknown {
  if (typeof passport === 'string') return passport === '' ? words.notRead : words.noRecord(passport);
  const { system, architecture, paths, containers, clusters } = passport as ShortPassport;
  const databases = (all: ShortPassport['clusters'][number]['databases']) => all.map(({ name, bytes: number, extensions }) => `${name} ${bytes(number)}${!isSame && extensions.length > 0 ? ` (${extensions.join(', ')})` : ''}`).join('; ');
  return markup`${clusters.map(({ name, version, databases: all }) => markup`<p><b>${words.postgres(version, name)}</b> ${databases(all)}</p>`)}${isSame ? markup`<p>${words.same}</p>`
    : markup`<p>${system}, ${architecture}</p>${containers.length > 0 && markup`<p>${words.containers}: ${containers.join(', ')}</p>`}<p>${words.files}: ${paths.join(', ')}</p>`}`;
}
