// HTML in which nothing from outside can become markup, and the report's pictures.
// Small SVG of plain paths, each with a title and a text that says the same. No picture speaks by colour alone: a night that
// failed is a cross, a warning a triangle, a missing one an empty square. Only makes text.
import { printable } from './say.ts';

/** What became of a day: a night, 'missing', or '' where there is nothing to say yet. */
export type DayState = 'good' | 'warning' | 'failed' | 'missing' | '';
export type Day = { day: string; state: DayState };
/** Text that is markup of our own making. The mark is a symbol, which no JSON can hold. */
export type Markup = { [OURS]: string };
const OURS = Symbol('markup');

const MOST_SHOWN = 2000; // characters of one text

/** A template whose values are escaped, unless they are markup themselves (or lists of it). Nothing and false are left out. */
export function markup(texts: TemplateStringsArray, ...values: unknown[]): Markup {
  return { [OURS]: texts.map((text, index) => text + (index < values.length ? escaped(values[index]) : '')).join('') };
}

export const textOf = (made: Markup) => made[OURS];
/** Markup of our own, as it stands: never a word from outside. */
export const ownMarkup = (text: string): Markup => ({ [OURS]: text });

function escaped(value: unknown): string {
  if (value === null || value === undefined || value === false) return '';
  if (Array.isArray(value)) return value.map(escaped).join('');
  if (typeof value === 'object' && OURS in value) return (value as Markup)[OURS];
  return printable(String(value)).slice(0, MOST_SHOWN).replace(/[&<>"'`]/g, (sign) => `&#${sign.charCodeAt(0)};`);
}

// Each state in a square of 9 by 9, drawn from its left upper corner.
const SHAPES: Record<Exclude<DayState, ''>, string> = { good: 'h9v9h-9z', warning: 'm4.5 0l5 9h-10z', failed: 'm1 1l7 7m0-7l-7 7', missing: 'm1.5 1.5h6v6h-6z' };
const STEP = 12;

const shapes = (places: { state: DayState; x: number; y: number }[]) => Object.entries(SHAPES).map(([state, shape]) => {
  const path = places.filter((one) => one.state === state).map(({ x, y }) => `M${x} ${y}${shape}`).join('');
  return path && markup`<path class="n-${state}" d="${ownMarkup(path)}"/>`;
});

let pictures = 0; // each title and text has a name of its own in the page

/** An SVG with its title and the text that says what it shows. */
function picture(width: number, height: number, title: string, text: string, content: unknown): Markup {
  const id = `p${++pictures}`;
  return markup`<svg role="img" aria-labelledby="${id}t ${id}d" viewBox="0 0 ${width} ${height}" width="${width}" height="${height}"><title id="${id}t">${title}</title><desc id="${id}d">${text}</desc>${content}</svg>`;
}

/** One night as a sign by itself, for a legend or a table; its word stands beside it. */
export const nightSign = (state: Exclude<DayState, ''>) => markup`<svg class="sign" aria-hidden="true" viewBox="-1 -1 11 11" width="11" height="11">${shapes([{ state, x: 0, y: 0 }])}</svg>`;

/** The last days in a row. */
export const strip = (days: Day[], title: string, text: string) => picture(days.length * STEP, 11, title, text, shapes(days.map(({ state }, index) => ({ state, x: index * STEP + 1, y: 1 }))));

/** A year of days: a column a week, Monday on top. */
export function calendar(days: Day[], locale: string, title: string, text: string): Markup {
  const weekday = (day: string) => (new Date(`${day}T00:00:00Z`).getUTCDay() + 6) % 7, first = weekday(days[0]!.day), left = 34, top = 16;
  const places = days.map(({ day, state }, index) => ({ day, state, x: left + Math.floor((index + first) / 7) * STEP, y: top + weekday(day) * STEP }));
  const inWords = (day: string, form: Intl.DateTimeFormatOptions) => new Intl.DateTimeFormat(locale, { ...form, timeZone: 'UTC' }).format(new Date(`${day}T00:00:00Z`));
  const months = places.filter(({ day }, index) => day.endsWith('-01') && index < days.length - 14), weekdays = places.slice(0, 7).filter(({ day }) => weekday(day) % 2 === 0);
  return picture(left + 54 * STEP, top + 7 * STEP, title, text, [
    months.map(({ day, x }) => markup`<text x="${x}" y="10">${inWords(day, { month: 'short' })}</text>`), weekdays.map(({ day, y }) => markup`<text x="0" y="${y + 8}">${inWords(day, { weekday: 'short' })}</text>`), shapes(places)]);
}

/** Values over days as bars, or as a line. labels: the highest value, the first day, the last day. values: null where there is none. */
export function curve(values: (number | null)[], kind: 'bars' | 'line', title: string, text: string, [most, from, until]: [string, string, string]): Markup {
  const width = 320, height = 110, left = 4, bottom = 88, top = 18, step = (width - left - 4) / Math.max(1, values.length), highest = Math.max(...values.map((one) => one ?? 0), 1e-9);
  const points = values.map((value, index) => ({ value, x: left + index * step, y: bottom - ((value ?? 0) / highest) * (bottom - top) })).filter(({ value }) => value !== null), round = (number: number) => Math.round(number * 10) / 10;
  const bars = points.map(({ x, y }) => `M${round(x)} ${bottom}V${round(Math.min(y, bottom - 1))}h${round(Math.max(step * 0.75, 0.8))}V${bottom}z`).join(''), line = points.map(({ x, y }, index) => `${index === 0 ? 'M' : 'L'}${round(x + step / 2)} ${round(y)}`).join('');
  const ends = points.length > 1 ? `${line}L${round(points[points.length - 1]!.x + step / 2)} ${bottom}L${round(points[0]!.x + step / 2)} ${bottom}z` : '';
  return picture(width, height, title, text, markup`<path class="axis" d="M${left} ${bottom + 0.5}H${width - 4}M${left} ${top + 0.5}H${width - 4}"/>
    ${kind === 'bars' ? markup`<path class="bars" d="${ownMarkup(bars)}"/>` : markup`<path class="area" d="${ownMarkup(ends)}"/><path class="line" d="${ownMarkup(line)}"/>`}
    <text x="${left}" y="${top - 5}">${most}</text><text x="${left}" y="${height - 7}">${from}</text><text x="${width - 4}" y="${height - 7}" text-anchor="end">${until}</text>`);
}
