// The chart: downtime by method and size on a logarithmic scale, as one SVG file without scripts, readable on a light and on a dark page.
// A bar is a median; its number stands beside it. Nothing is measured here.
import type { Row } from './bench-measure.ts';
import { downtimeLines, having, middle, span, values } from './bench-tables.ts';

type Group = { label: string; bars: { seconds: number; column: number }[] };
const WIDTH = 900, LEFT = 330, RIGHT = 70, BAR = 13, GAP = 9, TOP = 62;
const STYLE = `text { font: 13px system-ui, sans-serif; fill: #24292f } .small { font-size: 11px } .title { font-size: 16px; font-weight: 600 }
  .page { fill: #ffffff } .grid { stroke: #d0d7de } .b0 { fill: #9ecae1 } .b1 { fill: #4292c6 } .b2 { fill: #08519c } .own .b0 { fill: #a1d99b } .own .b1 { fill: #41ab5d } .own .b2 { fill: #006d2c }
  @media (prefers-color-scheme: dark) { text { fill: #e6edf3 } .page { fill: #0d1117 } .grid { stroke: #30363d } .b2 { fill: #2f81f7 } .own .b2 { fill: #2ea043 } }`;

/** Given the rows of part `downtime` or `files`, returns a chart of them; its bars are sorted by the largest size. */
export function chartOf(rows: Row[], along: 'gigabytes' | 'files'): string {
  const nights = rows.filter((row) => Number(row.run) > 0), columns = (values(nights, along) as number[]).slice(-3);
  const groups: Group[] = downtimeLines(nights).map(({ label, facts }) => ({ label, bars: columns.flatMap((size, column) => {
    const seconds = middle(having(nights, { ...facts, [along]: size }), 'downSeconds');
    return seconds === null ? [] : [{ seconds, column }];
  }) })).filter(({ bars }) => bars.length > 0).sort((one, other) => one.bars.at(-1)!.seconds - other.bars.at(-1)!.seconds);
  const all = groups.flatMap(({ bars }) => bars.map(({ seconds }) => seconds));
  const low = 10 ** Math.floor(Math.log10(Math.min(...all))), high = 10 ** Math.ceil(Math.log10(Math.max(...all)) + 0.001);
  const x = (seconds: number) => LEFT + (WIDTH - LEFT - RIGHT) * Math.log10(seconds / low) / Math.log10(high / low);
  let y = TOP;
  const drawn = groups.map((group) => { const text = drawGroup(group, y, x, LEFT); y += group.bars.length * BAR + GAP; return text; });
  const ticks = Array.from({ length: Math.round(Math.log10(high / low)) + 1 }, (_, power) => low * 10 ** power);
  const grid = ticks.map((tick) => `<line class="grid" x1="${x(tick)}" y1="${TOP - 6}" x2="${x(tick)}" y2="${y}"/><text class="small" text-anchor="middle" x="${x(tick)}" y="${y + 16}">${Number(tick.toPrecision(1))} s</text>`);
  const legend = columns.map((size, column) => { // of bars that are not ours; ours have the same shades in green
    const left = LEFT + column * 110;
    return `<rect class="b${column}" x="${left}" y="36" width="12" height="12"/><text class="small" x="${left + 18}" y="46">${along === 'gigabytes' ? `${size} GB` : `${size / 1000}k files`}</text>`;
  });
  const title = `Seconds that services are down, by method and ${along === 'gigabytes' ? 'size' : 'number of small files'} (logarithmic scale)`;
  return [`<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${WIDTH} ${y + 28}" role="img" aria-label="${title}">`, `<style>${STYLE}</style>`,
    `<rect class="page" width="${WIDTH}" height="${y + 28}"/>`, `<text class="title" x="16" y="24">${title}</text>`, ...legend, ...grid, ...drawn, '</svg>', ''].join('\n');
}

function drawGroup({ label, bars }: Group, top: number, x: (seconds: number) => number, left: number): string {
  const text = label.replaceAll('&', '&amp;').replaceAll('<', '&lt;'), middleY = top + bars.length * BAR / 2 + 4;
  const drawn = bars.map(({ seconds, column }, at) => {
    const end = x(seconds), y = top + at * BAR;
    return `<rect class="b${column}" x="${left}" y="${y}" width="${Math.max(1, end - left).toFixed(1)}" height="${BAR - 2}"/><text class="small" x="${(end + 5).toFixed(1)}" y="${y + BAR - 3}">${span(seconds)}</text>`;
  });
  return `<g${label.startsWith('ours') ? ' class="own"' : ''}><text text-anchor="end" x="${left - 10}" y="${middleY}">${text}</text>${drawn.join('')}</g>`;
}
