// The raw numbers of each part as a Markdown table: medians, as ratios to the peer that the part is about, the absolute number beside
// it. A part that was not run has no table. Nothing here measures, and nothing is written here.
import fs from 'node:fs';
import path from 'node:path';
import { RAW, median } from './bench-measure.ts';
import type { PartFile, Row } from './bench-measure.ts';

export const HOOKS = 'borgmatic, stop and start hooks', WARM = 'ours, warm pass', ONLY = 'only stop and start';

/** What a part left, or null when it was not run. */
export function readPart(part: string): PartFile | null {
  const file = path.join(RAW, `${part}.json`);
  return fs.existsSync(file) ? JSON.parse(fs.readFileSync(file, 'utf8')) : null;
}

/** The rows that have all of these values. */
export const having = (rows: Row[], facts: Row): Row[] => rows.filter((row) => Object.entries(facts).every(([name, value]) => row[name] === value));
export const values = (rows: Row[], name: string): (string | number | boolean)[] => [...new Set(rows.map((row) => row[name]!))];
/** The median of one number of these rows; null when there are none. */
export const middle = (rows: Row[], name: string): number | null => (rows.length > 0 ? median(rows.map((row) => Number(row[name]))) : null);

export const span = (seconds: number) => (seconds < 10 ? `${seconds.toFixed(seconds < 1 ? 2 : 1)} s` : seconds < 100 ? `${seconds.toFixed(1)} s` : seconds < 7200 ? `${Math.round(seconds)} s` : `${(seconds / 3600).toFixed(1)} h`);
export const megabytes = (bytes: number) => `${(bytes / 1e6).toFixed(bytes < 10e6 ? 1 : 0)} MB`;
const amount = (files: number) => (files >= 1000 ? `${files / 1000}k` : String(files));
const against = (value: number | null, base: number | null, show: (value: number) => string) => (value === null ? '' : base ? `${(value / base).toFixed(2)} (${show(value)})` : show(value));
const table = (head: string[], rows: string[][]) => [head, head.map(() => '---'), ...rows].map((row) => `| ${row.join(' | ')} |`).join('\n');

/** Downtime by method and size, or by method and number of files: ours on other file systems against the hooks on the plain one. */
export function downtimeTable(rows: Row[], along: 'gigabytes' | 'files'): string {
  const columns = values(rows, along) as number[], nights = rows.filter((row) => Number(row.run) > 0);
  const lines = downtimeLines(nights).map(({ label, facts }) => [label, ...columns.map((column) => against(
    middle(having(nights, { ...facts, [along]: column }), 'downSeconds'), middle(having(nights, { fileSystem: 'plain', method: HOOKS, [along]: column }), 'downSeconds'), span))]);
  return table(['services are down (1 = hooks)', ...columns.map((column) => (along === 'gigabytes' ? `${column} GB` : `${amount(column)} files`))], lines);
}

/** The lines of a downtime table, as facts to look for and what to call them. */
export function downtimeLines(rows: Row[]): { label: string; facts: Row }[] {
  return values(rows, 'fileSystem').flatMap((fileSystem) => values(having(rows, { fileSystem }), 'method').map((method) => (
    { label: fileSystem === 'plain' ? String(method) : `${method}, on ${fileSystem === 'xfs' ? 'xfs (reflink)' : fileSystem}`, facts: { fileSystem, method } })));
}

export function lineTable(rows: Row[]): string {
  const columns = (values(rows, 'roundTripMs') as number[]).flatMap((roundTripMs) => ['first', 'nightly'].map((night) => ({ roundTripMs, night })));
  const cell = (method: string, facts: Row) => {
    const of = (name: string, who = method) => middle(having(rows, { ...facts, method: who }), name);
    return `${against(of('downSeconds'), of('downSeconds', HOOKS), span)}, all ${span(of('seconds') ?? 0)}, ${megabytes((of('upBytes') ?? 0) + (of('downBytes') ?? 0))}`;
  };
  return table(['down (1 = hooks), all, carried', ...columns.map(({ roundTripMs, night }) => `${roundTripMs} ms, ${night === 'first' ? 'first backup' : 'nightly'}`)],
    (values(rows, 'method') as string[]).map((method) => [method, ...columns.map((facts) => cell(method, facts))]));
}

export function costTable(rows: Row[]): string {
  const of = (method: string, name: string, night: string) => middle(having(rows, { method, night }), name), size = (memoryMB: number | null) => `${Math.round(memoryMB ?? 0)} MB`;
  const lines = ['first', 'nightly'].flatMap((night) => values(having(rows, { night }), 'method').map(String).map((method) => {
    const isOurs = method.startsWith('ours'), isPass = method === 'one borg create', hand = (name: string) => against(of(method, name, night), isPass ? null : of('by hand', name, night), span);
    const passes = isOurs ? against(of(method, 'borgSeconds', night), of('one borg create', 'seconds', night), span) : isPass ? against(1, 1, () => span(of(method, 'seconds', night)!)) : '';
    return [night === 'first' ? `${method}, first night` : method, isPass ? '' : hand('seconds'), passes, hand('cpuSeconds'), size(of(method, 'memoryMB', night)), isOurs ? size(of(method, 'ownMB', night)) : ''];
  }));
  return table(['a night', 'all of it (1 = by hand)', 'passes of borg (1 = one `borg create`)', 'CPU (1 = by hand)', 'memory of all', 'of the script'], lines);
}

export function startTable(rows: Row[]): string {
  const starts = having(rows, { night: 'start-up' }), base = middle(having(starts, { method: 'node -e 0' }), 'seconds');
  return table(['start-up', 'takes (1 = `node -e 0`)'], values(starts, 'method').map((method) => [`\`${method}\``, against(middle(having(starts, { method }), 'seconds'), base, (value) => `${Math.round(value * 1000)} ms`)]));
}

export function nightsTable(rows: Row[]): string {
  const nights = rows.filter((row) => Number(row.night) > 0), carried = (row: Row): Row => ({ ...row, carriedBytes: Number(row.upBytes) + Number(row.downBytes) });
  const lines = values(rows, 'method').map((method) => {
    const own = having(nights, { method }), first = having(rows, { method, night: 0 });
    const ours = having(nights, { method: WARM }), whole = [...first, ...own].reduce((sum, row) => sum + Number(row.addedBytes), 0);
    return [String(method).replace(' between stop and start', ', files at rest'), against(middle(own, 'addedBytes'), middle(ours, 'addedBytes'), megabytes),
      against(middle(own.map(carried), 'carriedBytes'), middle(ours.map(carried), 'carriedBytes'), megabytes), megabytes(middle(first, 'addedBytes') ?? 0), megabytes(whole)];
  });
  const last = Math.max(...values(rows, 'night').map(Number));
  return table(['a night adds (median)', 'to the storage (1 = ours)', 'carried by the line (1 = ours)', 'first backup', `stored after it and ${last} nights`], lines);
}

export function restoreTable(rows: Row[]): string {
  const of = (method: string, name: string) => middle(having(rows, { method }), name);
  const lines = values(rows, 'method').map((method) => [`\`${method}\`${method === 'drill' ? `, of which ${span(of('drill', 'ownSeconds') ?? 0)} its own part` : ''}`,
    against(of(String(method), 'seconds'), of('bare borg extract', 'seconds'), span), `${Math.round(of(String(method), method === 'bare borg extract' ? 'memoryMB' : 'ownMB') ?? 0)} MB`]);
  return table(['bringing back', 'takes (1 = bare `borg extract`)', 'memory of it'], lines);
}

export function auditTable(rows: Row[]): string {
  const of = (method: string, name: string) => middle(having(rows, { method }), name), check = 'borg check --repository-only';
  const lines = values(rows, 'method').map(String).map((method) => [`\`${method}\``, against(of(method, 'seconds'), of(check, 'seconds'), span), `${Math.round(of(method, 'ownMB') ?? 0)} MB`]);
  return table([`a repository of ${rows[0]!.pieces} pieces`, 'takes (1 = `borg check`)', 'memory of it'], lines);
}
