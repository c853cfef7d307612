// From the raw numbers in bench/ to what a reader sees: tables between two marks in README.md, and charts beside this file. May
// change README.md and README.es.md between their marks, test/bench.svg and test/bench-files.svg; nothing else. Parts that were not run are absent.
import fs from 'node:fs';
import path from 'node:path';
import { chartOf } from './bench-chart.ts';
import { growthLines, growthText, judge, limitsTable } from './bench-limits.ts';
import { auditTable, costTable, downtimeTable, lineTable, having, nightsTable, readPart, restoreTable, startTable, values } from './bench-tables.ts';
import type { PartFile } from './bench-measure.ts';
import { repositoryRoot } from './script.ts';
import { PG } from './cluster.ts';

const BEGIN = '<!-- bench: begin -->', END = '<!-- bench: end -->';
const PARTS = ['downtime', 'files', 'line', 'cost', 'nights', 'growth', 'restore', 'audit'];

/** Write tables and charts, and print the tables. */
export function writeReport(): void {
  const parts = PARTS.map(readPart).filter((part) => part !== null);
  if (parts.length === 0) throw new Error('nothing was measured yet: bench/ holds no numbers');
  const text = parts.map(chapterOf), judged = judge();
  const all = [machineLine(parts), ...judged.length > 0 ? [limitsTable(judged)] : [], ...text.filter((one) => one !== '')].join('\n\n');
  for (const name of ['README.md', 'README.es.md']) {
    const file = path.join(repositoryRoot, name), [before, after] = [fs.readFileSync(file, 'utf8').split(BEGIN)[0], fs.readFileSync(file, 'utf8').split(END)[1]];
    if (before === undefined || after === undefined) throw new Error(`${name} has lost its marks ${BEGIN} and ${END}`);
    fs.writeFileSync(file, `${before}${BEGIN}\n${all}\n${END}${after}`);
  }
  console.log(all);
}

function chapterOf({ part, rows }: PartFile): string {
  if (part === 'downtime' || part === 'files') {
    const along = part === 'files' ? 'files' : 'gigabytes', name = part === 'files' ? 'bench-files.svg' : 'bench.svg';
    fs.writeFileSync(path.join(repositoryRoot, 'test', name), chartOf(rows, along));
    return `![Downtime by method and ${part === 'files' ? 'number of files' : 'size'}](test/${name})\n\n${downtimeTable(rows, along)}`;
  }
  const gigabytes = rows.find((row) => row.gigabytes !== undefined)?.gigabytes, files = rows.find((row) => row.files !== undefined)?.files;
  const about = (what: string) => `${what} (${gigabytes} GB of PostgreSQL, ${files} files):\n\n`;
  if (part === 'line') return `Over a line of ${rows[0]!.megabits} Mbit/s:\n\n${lineTable(rows)}`;
  if (part === 'cost') {
    const nights = rows.filter((row) => row.night !== 'start-up'), tables = values(nights, 'gigabytes').map((size) => `A night, and what it calls (${size} GB of PostgreSQL, ${files} files):\n\n${costTable(having(nights, { gigabytes: size }))}`);
    return [...tables, startTable(rows)].join('\n\n');
  }
  if (part === 'nights') return `${about('Night after night')}${nightsTable(rows)}`;
  if (part === 'growth') return growthLines().length > 0 ? growthText() : '';
  if (part === 'restore') return `${about('Bringing it back')}${restoreTable(rows)}`;
  return auditTable(rows);
}

function machineLine(parts: PartFile[]): string {
  const { machine } = parts[0]!, days = [...new Set(parts.map(({ date }) => date.slice(0, 10)))].sort(), names = ['borgbackup', 'borgmatic', 'restic', 'rsnapshot', 'rdiff-backup', `postgresql-${PG}`];
  return `Measured ${days.join(' and ')} by \`npm run bench\`: ${machine.cores} cores, ${machine.memoryGB} GB of memory, Node ${machine.node}, ${names.map((name) => `${name} ${String(machine[name]).replace(/^\d+:|[-+].*/g, '')}`).join(', ')}; `
    + `medians of ${Math.min(...parts.map(({ runs }) => runs))} runs or more; the storage is a real sshd on the same machine. Numbers are ratios, with the seconds or bytes beside them.`;
}
