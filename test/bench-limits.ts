// What is judged from the raw numbers: the limits that must hold, each with what was measured; how our cost grows, as straight lines; and
// where those lines lead at 100 GB and a million files. The last is a projection on paper, and says so: nobody measured there.
import { straightLine } from './bench-measure.ts';
import type { Row } from './bench-measure.ts';
import { HOOKS, ONLY, WARM, having, middle, readPart, span, values } from './bench-tables.ts';

const SNAPSHOT = 'ours, snapshot';
const FAR = { gigabytes: 100, files: 1_000_000 }, CHUNK_BYTES = 65_536, BYTES_A_CHUNK = 164, BYTES_A_FILE = 240; // memory of borg's indexes and files cache: borg's manual, "Indexes / Caches memory usage"
const LINE_BITS = 10e6; // a second
const LIMITS = { downMinutes: 120, nightHours: 4.5, memoryMB: 1024 }; // maxDowntimeMinutes as shipped; a window from 01:00 to 05:30; what a small server can spare

const decimals = (value: number, places: number) => value.toFixed(places).replace(/^-(0\.0+)$/, '$1'); // no minus before nothing

type Judged = { what: string; limit: string; measured: string; holds: boolean };

/** Every limit that the parts that were run can say something about. */
export function judge(): Judged[] {
  return [...judgeDowntime(), ...judgeGrowth(), ...judgeCost()];
}

function judgeDowntime(): Judged[] {
  const rows = (readPart('downtime')?.rows ?? []).filter((row) => Number(row.run) > 0);
  return (values(rows, 'gigabytes') as number[]).flatMap((gigabytes) => {
    const down = (method: string, fileSystem = 'plain') => middle(having(rows, { gigabytes, fileSystem, method }), 'downSeconds');
    const [warm, hooks, only, snapshot, onlyThere] = [down(WARM), down(HOOKS), down(ONLY), down(SNAPSHOT, 'btrfs'), down(ONLY, 'btrfs')];
    const found: Judged[] = [];
    if (warm !== null && hooks !== null && gigabytes >= 5) found.push({ what: `warm pass, ${gigabytes} GB: down against the hooks way`, limit: '1/8', measured: `1/${(hooks / warm).toFixed(1)}`, holds: warm <= hooks / 8 });
    if (warm !== null && only !== null) found.push({ what: `warm pass, ${gigabytes} GB: down beyond stop and start`, limit: '1.5 s', measured: span(warm - only), holds: warm - only <= 1.5 });
    if (snapshot !== null && onlyThere !== null) found.push({ what: `btrfs snapshot, ${gigabytes} GB: down beyond stop and start`, limit: '0.3 s', measured: span(snapshot - onlyThere), holds: snapshot - onlyThere <= 0.3 });
    return found;
  });
}

type Growth = { along: 'gigabytes' | 'files'; fileSystem: string; method: string; down: { start: number; slope: number }; night: { start: number; slope: number }; last: number };

/** Straight lines through the nights of part `growth`, beyond what stop and start take alone; where there are two points or more. */
export function growthLines(): Growth[] {
  const rows = (readPart('growth')?.rows ?? []).filter((row) => Number(row.run) > 0);
  return (['gigabytes', 'files'] as const).flatMap((along) => values(rows, 'fileSystem').flatMap((fileSystem) => {
    const here = having(rows, { along, fileSystem }), own = here.filter((row) => row.method !== ONLY), xs = values(own, along).map(Number);
    if (xs.length < 2) return [];
    const line = (name: string) => straightLine(xs.map((x) => ({ x, y: middle(having(own, { [along]: x }), name)! - middle(having(here, { method: ONLY, [along]: x }), name)! })));
    return [{ along, fileSystem: String(fileSystem), method: String(own[0]!.method), down: line('downSeconds'), night: line('seconds'), last: Math.max(...xs) }];
  }));
}

function judgeGrowth(): Judged[] {
  return growthLines().filter(({ along }) => along === 'gigabytes').map(({ fileSystem, method, down, last }) => ({
    what: `${method}, ${fileSystem}, nothing changed: growth of downtime up to ${last} GB`, limit: '0.05 s a GB', measured: `${decimals(down.slope, 3)} s a GB`, holds: down.slope <= 0.05 }));
}

function judgeCost(): Judged[] {
  const nightly = having(readPart('cost')?.rows ?? [], { night: 'nightly' });
  return (values(nightly, 'gigabytes') as number[]).flatMap((gigabytes) => judgeCostAt(having(nightly, { gigabytes }), gigabytes));
}

function judgeCostAt(rows: Row[], gigabytes: number): Judged[] {
  const of = (method: string, name: string) => middle(having(rows, { method }), name);
  return values(rows, 'method').map(String).filter((method) => method.startsWith('ours')).flatMap((method) => [
    { what: `${method}, ${gigabytes} GB: a whole night against by hand`, ratio: of(method, 'seconds')! / of('by hand', 'seconds')! },
    { what: `${method}, ${gigabytes} GB: all its passes against one \`borg create\``, ratio: of(method, 'borgSeconds')! / of('one borg create', 'seconds')! },
  ]).map(({ what, ratio }) => ({ what, limit: '1.15', measured: ratio.toFixed(2), holds: ratio <= 1.15 }));
}

export function limitsTable(judged: Judged[]): string {
  return ['| must hold | at most | measured | |', '|---|---|---|---|', ...judged.map(({ what, limit, measured, holds }) => `| ${what} | ${limit} | ${measured} | ${holds ? 'holds' : '**does not hold**'} |`)].join('\n');
}

/** The lines as a table, and what they come to far out. */
export function growthText(): string {
  const lines = growthLines(), unit = (along: string) => (along === 'gigabytes' ? 'GB' : '100k files'), each = (along: string) => (along === 'gigabytes' ? 1 : 100_000);
  const at = ({ start, slope }: { start: number; slope: number }, x: number) => Math.max(0, start + slope * x);
  const rows = lines.map(({ along, fileSystem, method, down, night }) => `| ${method}${fileSystem === 'plain' ? '' : `, on ${fileSystem}`} | ${unit(along)} | ${down.start.toFixed(2)} s + ${decimals(down.slope * each(along), 3)} s | ${night.start.toFixed(1)} s + ${decimals(night.slope * each(along), 2)} s | ${span(at(down, FAR[along]))} | ${span(at(night, FAR[along]))} |`);
  return ['| nothing changed; beyond stop and start | for each | down | whole night | down at 100 GB, or a million files (on paper) | whole night there (on paper) |', '|---|---|---|---|---|---|', ...rows, '', projection(lines)].join('\n');
}

function projection(lines: Growth[]): string {
  const chunks = FAR.gigabytes * 1e9 / CHUNK_BYTES, memoryMB = (chunks * BYTES_A_CHUNK + FAR.files * (BYTES_A_CHUNK + BYTES_A_FILE)) / 1e6;
  const plain = lines.filter(({ fileSystem }) => fileSystem === 'plain'), window = LIMITS.nightHours * 3600, windowHours = `a window of ${LIMITS.nightHours} h`;
  const far = (pick: (line: Growth) => { slope: number }) => plain.reduce((all, line) => all + Math.max(0, pick(line).slope) * FAR[line.along], 0);
  const first = firstNight('seconds'), sending = firstNight('newBytes') * 8 / LINE_BITS, quiet = far(({ night }) => night), down = far((line) => line.down);
  const filled = [
    { what: `the first backup (${span(first)} with the storage near)`, part: first / window, of: windowHours },
    { what: `sending the first backup over 10 Mbit/s (${span(sending)})`, part: sending / window, of: windowHours },
    { what: `a night on which nothing changed (${span(quiet)})`, part: quiet / window, of: windowHours },
    { what: `being down with the warm pass (${span(down)})`, part: down / (LIMITS.downMinutes * 60), of: `${LIMITS.downMinutes} minutes` },
    { what: `borg's memory (${Math.round(memoryMB)} MB: ${(chunks / 1e6).toFixed(1)} million chunks and a million files)`, part: memoryMB / LIMITS.memoryMB, of: '1 GB' },
  ].sort((one, other) => other.part - one.part);
  return `Projection on paper, 100 GB and a million files together: ${filled.map(({ what, part, of }) => `${what} takes ${(100 * part).toFixed(0)} % of ${of}`).join('; ')}. What breaks first: ${filled[0]!.what.replace(/ \(.*/, '')}.`;
}

/** What the first backup comes to at the far end (its seconds, its new bytes), from the first nights of part `growth`. */
function firstNight(name: 'seconds' | 'newBytes'): number {
  const rows = having(readPart('growth')?.rows ?? [], { run: 0, fileSystem: 'plain', method: WARM });
  return (['gigabytes', 'files'] as const).reduce((sum, along) => {
    const points = having(rows, { along }).map((row) => ({ x: Number(row[along]), y: Number(row[name]) }));
    return points.length < 2 ? sum : sum + Math.max(0, straightLine(points).slope) * FAR[along];
  }, 0);
}
