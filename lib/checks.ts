// What a drill looks at in a copy before it runs: files as listed when cold, page checksums.
// The chapter after this one asks the rest of a copy that runs. No single check sees all: a page of zeros passes checksums,
// amcheck and pg_dump, and only counting sees it; an index whose collation changed its order passes everything but amcheck.
// All of it runs inside the sandbox, on the copy, and may write there.
import fs from 'node:fs';
import path from 'node:path';
import type { DrillQuery } from './settings.ts';
import { count, lastLines, named, size } from './say.ts';
import { failure, look } from './shell.ts';
import { controlState } from './postmaster.ts';
import type { Cluster } from './postgres.ts';
import type { ClusterPassport } from './passport.ts';
import { isBelow } from './files.ts';
import { LISTING_FORMAT, eachRecord } from './proof.ts';
import type { Programs, Sandbox } from './sandbox.ts';

/**
 * A cluster out of an archive: `files` holds what was extracted, at full paths below it; `inside` is its data directory as
 * the sandbox sees it. server: once it runs.
 */
export type Copy = { passport: ClusterPassport; sandbox: Sandbox; programs: Programs; files: string; onHost: string; inside: string; listing: string; queries: DrillQuery[]; full: boolean;
  server: Cluster | null; databases: string[]; counted: Map<string, Counted> }; // once it runs: what it is, its databases, rows by database
export type Counted = { rows: Record<string, number>; broken: string[] };
export type Verdict = { ok: boolean | null; detail: string; damaged?: string[] }; // damaged: files, to be named once the server answers
export type CheckStep = { check: string; examine: (copy: Copy) => Promise<Verdict> };

export const TOLD = 5; // of each kind of damage; the first ones tell where to look
export const DAY = 86_400;
export const good = (detail: string): Verdict => ({ ok: true, detail });
export const unknown = (detail: string): Verdict => ({ ok: null, detail });
export const bad = (lines: string[], damaged: string[] = []): Verdict => ({ ok: false, detail: [...lines.slice(0, TOLD), ...(lines.length > TOLD ? [`and ${lines.length - TOLD} more`] : [])].join('\n'), damaged });

// ---- while it does not run ----

export const FILE_CHECKS: CheckStep[] = [
  { check: 'files as listed when cold', examine: compareListing },
  { check: 'control file', examine: async ({ onHost, passport }) => {
    const { state, systemIdentifier } = controlState(onHost);
    if (!state.startsWith('shut down')) return bad([`the cluster was not shut down: its state is "${state}"`]);
    return systemIdentifier === passport.systemIdentifier ? good(state) : bad([`this is another cluster: system identifier ${systemIdentifier} instead of ${passport.systemIdentifier}`]);
  } },
  { check: 'page checksums', examine: async ({ sandbox, programs, inside }) => {
    const done = await look([...sandbox.words, path.join(programs.binaries, 'pg_checksums'), '--check', '-D', inside], { seconds: DAY });
    if (done.code === 0) return good(`${/^Blocks scanned:\s+(\d+)/m.exec(done.out)?.[1] ?? 'all'} pages`);
    if (/not enabled/.test(done.said)) return unknown('this cluster has none, and a restore needs none: `pg_checksums --enable`, while it is stopped, gives it some');
    if (done.code === 126 || done.code === 127) return unknown('pg_checksums is not installed here');
    const lines = [...done.said.matchAll(/verification failed in file "([^"]+)", block (\d+)/g)].map(([, file = '', block]) => ({ file, block }));
    return lines.length > 0 ? bad(lines.map(({ file, block }) => `${named(file)}, page ${block}`), lines.map(({ file }) => file)) : bad([lastLines(done.said, 3)]);
  } },
];

// The listing was written when all was stopped; ctime and owners are this copy's own, and sockets are in no archive.
async function compareListing({ passport, files, listing }: Copy): Promise<Verdict> {
  const roots = passport.roots, [was, is, found] = ['was', 'is', 'found'].map((name) => path.join(path.dirname(files), name)) as [string, string, string]; // not beside the listing: an archive may have laid links there
  const there = roots.map((root) => files + root).filter((root) => fs.existsSync(root));
  if (there.length === 0) return bad(['nothing of it is in this archive']); // find(1) without a path would look where we are
  const raw = fs.openSync(found, 'w', 0o600);
  const done = await look(['find', ...there, '-printf', LISTING_FORMAT], { stdout: raw, seconds: DAY }).finally(() => fs.closeSync(raw));
  if (done.code !== 0) throw failure('the extracted files cannot be listed', done);
  const total = { bytes: 0, files: 0 };
  const write = async (from: string, to: string, place: string): Promise<void> => {
    const out = fs.openSync(to, 'w', 0o600);
    let lines: string[] = [];
    await eachRecord(from, (record) => {
      const [type = '', mode, , , bytes, changed, , ...rest] = record.split('\t'), file = rest.join('\t').slice(place.length);
      if (type === 's' || !roots.some((root) => isBelow(Buffer.from(file, 'latin1').toString(), root))) return;
      if (place && type === 'f') Object.assign(total, { bytes: total.bytes + Number(bytes), files: total.files + 1 });
      lines.push(`${file}\t${type}\t${type === 'l' ? '' : mode}\t${type === 'f' ? `${bytes} bytes, changed ${changed}` : ''}\0`);
      if (lines.length > 1000) fs.writeSync(out, Buffer.from(lines.splice(0).join(''), 'latin1'));
    });
    fs.writeSync(out, Buffer.from(lines.join(''), 'latin1'));
    fs.closeSync(out);
    const sorted = await look(['sort', '--zero-terminated', '--unique', `--output=${to}`, to], { seconds: DAY });
    if (sorted.code !== 0) throw failure('the listings cannot be compared', sorted);
  };
  await write(listing, was, '');
  await write(found, is, files);
  const differing = await look(['comm', '--zero-terminated', '-3', was, is], { seconds: DAY, keepBytes: 1 << 20 });
  if (differing.code !== 0) throw failure('the listings cannot be compared', differing);
  const facts = new Map<string, { was?: string; is?: string }>();
  for (const record of differing.out.split('\0').filter((one) => one !== '')) {
    const isHere = record.startsWith('\t'), [file = '', ...rest] = record.replace(/^\t/, '').split('\t');
    facts.set(file, { ...facts.get(file), [isHere ? 'is' : 'was']: rest.join(' ').trim() });
  }
  if (facts.size === 0) return good(`${count(total.files, 'file')}, ${size(total.bytes)}`);
  return bad([...facts].map(([file, one]) => `${named(file)}: ${one.was === undefined ? 'was not there' : one.is === undefined ? 'is missing' : `was ${one.was}, is ${one.is}`}`), [...facts.keys()]);
}
