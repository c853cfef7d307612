// Damage, for fuzzing: the same for the same seed, on every machine. COLD_BACKUP_SEED=n repeats another one, COLD_BACKUP_FUZZ=n takes n times as much.
export const seed = Number(process.env.COLD_BACKUP_SEED ?? 20261126);
export const soak = Number(process.env.COLD_BACKUP_FUZZ ?? 1);

/** Numbers between 0 and 1, the same ones for the same words (mulberry32). */
export function randomOf(words: string): () => number {
  let state = [...`${seed} ${words}`].reduce((sum, sign) => Math.imul(sum ^ sign.charCodeAt(0), 0x01000193), 0x811c9dc5) | 0;
  return () => {
    state = (state + 0x6d2b79f5) | 0;
    let mixed = Math.imul(state ^ (state >>> 15), state | 1);
    mixed ^= mixed + Math.imul(mixed ^ (mixed >>> 7), mixed | 61);
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 4_294_967_296;
  };
}

const pick = <T>(random: () => number, list: readonly T[]): T => list[Math.floor(random() * list.length)]!;

/** Words that programs, shells and terminals take for something else. */
export const HOSTILE = ['', ' ', '-', '--', '-rf', '--help', '.', '..', '../../etc', '/', '~', '*', '$(touch owned)', '`touch owned`', '; touch owned', '| touch owned', '&& touch owned', '$HOME', '${IFS}', '%n%s', '\\', '\\n', "'", '"', "'\"'", 'line\nend', '\r', 'tab\there',
  '\x1b[2J\x1b[31m', '\u202egpj.exe', '\u0000', '\ufeff', 'ñandú 日本', 'x'.repeat(255), '{now}', '__proto__', 'constructor', '::', 'a=b', 'ssh://x', '#', '!'] as const;
const ODD = [null, true, false, 0, -1, 0.5, 1e308, -1e308, 2 ** 53, 4_294_967_296, NaN, [], {}, [[]], [null], { a: 1 }, '1', ...HOSTILE];

/** A copy of plain data with one to three values, keys or items other than they were. */
export function otherData(random: () => number, data: unknown): unknown {
  const copy = structuredClone(data);
  for (let left = 1 + Math.floor(random() * 3); left > 0; left--) {
    let holder: any = { copy }, key: string = 'copy';
    while (typeof holder[key] === 'object' && holder[key] !== null && Object.keys(holder[key]).length > 0 && (holder[key] === copy || random() < 0.8)) [holder, key] = [holder[key], pick(random, Object.keys(holder[key]))];
    if (holder.copy === copy) continue;
    if (random() < 0.2) Array.isArray(holder) ? holder.splice(Number(key), 1) : delete holder[key];
    else if (random() < 0.1) holder[pick(random, HOSTILE)] = pick(random, ODD);
    else holder[key] = pick(random, ODD);
  }
  return copy;
}

/** Bytes with one to four places other than they were: bits, cuts, repeats, other people's words. */
export function otherBytes(random: () => number, bytes: Buffer): Buffer {
  let copy = Buffer.from(bytes);
  for (let left = 1 + Math.floor(random() * 4); left > 0; left--) {
    const at = Math.floor(random() * copy.length), length = 1 + Math.floor(random() * Math.min(40, copy.length - at)), kind = Math.floor(random() * 6);
    if (kind === 0 && copy.length > 0) copy[at]! ^= 1 << Math.floor(random() * 8);
    else if (kind === 1) copy = Buffer.concat([copy.subarray(0, at), copy.subarray(at + length)]);
    else if (kind === 2) copy = Buffer.concat([copy.subarray(0, at + length), copy.subarray(at)]);
    else if (kind === 3) copy = Buffer.concat([copy.subarray(0, at), Buffer.from(pick(random, HOSTILE)), copy.subarray(at)]);
    else if (kind === 4 && random() < 0.3) copy = copy.subarray(0, at);
    else if (copy.length > 0) copy.fill(pick(random, [0, 0xff, 0x7f, 10]), at, Math.min(copy.length, at + length));
  }
  return copy;
}
