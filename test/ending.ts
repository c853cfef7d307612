// Which ends a run is to meet: at the boundaries between its steps, which one recorded run has told (boundary.cjs), and between them.
// In CI a few, others with every seed: one out of each stretch of the run. COLD_BACKUP_EVERY_BOUNDARY=1 takes all of them (COLD_BACKUP_FROM=n: from there on),
// COLD_BACKUP_SEED=n repeats the same ones, COLD_BACKUP_KILLS=n takes so many of each kind of run.
import fs from 'node:fs';
import path from 'node:path';
import { repositoryRoot } from './script.ts';

export const BOUNDARY = path.join(repositoryRoot, 'test/boundary.cjs');
export const seed = Number(process.env.COLD_BACKUP_SEED ??= String(Date.now() % 1_000_000)); // the scenarios' own processes get it, too
export const isWhole = process.env.COLD_BACKUP_EVERY_BOUNDARY === '1';

/** at: a boundary's name; how: kill -9 of the script or of its group, or everything at once; afterMs: later than the boundary. */
export type Ending = { at: string; how: 'script' | 'group' | 'power'; afterMs: number };
type Boundary = { ms: number; name: string };

/** The same numbers between 0 and 1 for the same words, whichever scenario asks first (mulberry32). */
export const random = (words: string) => randomBy(seed, words);
export function randomBy(seed: number, words: string): number {
  let state = [...`${seed} ${words}`].reduce((sum, sign) => Math.imul(sum ^ sign.charCodeAt(0), 0x01000193), 0x811c9dc5) + 0x6d2b79f5;
  state = Math.imul(state ^ (state >>> 15), state | 1);
  state ^= state + Math.imul(state ^ (state >>> 7), state | 61);
  return ((state ^ (state >>> 14)) >>> 0) / 4_294_967_296;
}

/** The environment in which a run writes its boundaries to a file, and meets this end. */
export function endingEnvironment(file: string, ending?: Ending): Record<string, string> {
  return { COLD_BACKUP_BOUNDARIES: file, ...(ending ? { COLD_BACKUP_END_AT: ending.at, COLD_BACKUP_END_HOW: ending.how, COLD_BACKUP_END_AFTER_MS: String(ending.afterMs) } : {}) };
}

/** What a run has written to its file of boundaries. */
export function readBoundaries(text: string): Boundary[] {
  return text.split('\n').map((line) => /^(\d+) (.*)$/.exec(line)).filter((match) => match !== null).map(([, ms, name]) => ({ ms: Number(ms), name: name! }));
}

export const hasEnded = (file: string) => fs.existsSync(file) && /^- ended/m.test(fs.readFileSync(file, 'utf8'));
export const inWords = ({ at, how, afterMs }: Ending) => `seed ${seed}: ${{ script: 'kill -9', group: 'kill -9 of the group', power: 'power off' }[how]}${afterMs ? ` ${afterMs} ms after` : ' at'} "${at}"`;

/** Given the boundaries of a recorded run and a name for it, returns the ends to try. */
export function chooseEndings(boundaries: Boundary[], words: string, most: number): Ending[] {
  const how = (name: string) => (['script', 'group', 'power'] as const)[Math.floor(3 * random(`how ${words} ${name}`))]!;
  const at = ({ name }: Boundary): Ending => ({ at: name, how: how(name), afterMs: 0 });
  const between = ({ name, ms }: Boundary, index: number): Ending => ({ at: name, how: how(`between ${name}`), afterMs: 1 + Math.floor(random(`between ${words} ${name}`) * ((boundaries[index + 1]?.ms ?? ms) - ms)) });
  const isLong = (one: Boundary, index: number) => (boundaries[index + 1]?.ms ?? 0) - one.ms > 20;
  if (isWhole) return boundaries.flatMap((one, index) => [at(one), ...(isLong(one, index) ? [between(one, index)] : [])]).slice(Number(process.env.COLD_BACKUP_FROM ?? 0));
  const count = Number(process.env.COLD_BACKUP_KILLS ?? most), size = boundaries.length / count;
  return Array.from({ length: count }, (_, stretch) => {
    const index = Math.floor((stretch + random(`which ${words} ${stretch}`)) * size), one = boundaries[index]!;
    return isLong(one, index) && random(`between or at ${words} ${stretch}`) < 0.5 ? between(one, index) : at(one);
  });
}
