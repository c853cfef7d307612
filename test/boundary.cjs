// Loaded into a run by `node --require`, this finds every boundary between its steps: where a program is started or has ended, and where
// a file has been written, renamed or removed. So a step that the product gets tomorrow is covered by itself, and the product
// holds no hook that anybody could pull. Each boundary gets a line in $COLD_BACKUP_BOUNDARIES: milliseconds and name. At the one named in
// $COLD_BACKUP_END_AT (so many milliseconds after it) the run ends as $COLD_BACKUP_END_HOW says: script or group by SIGKILL;
// power: it stands still, and whoever reads the file turns everything off.
'use strict';
const fs = require('node:fs'), programs = require('node:child_process'), { basename } = require('node:path');
const { COLD_BACKUP_BOUNDARIES: file, COLD_BACKUP_END_AT: endAt, COLD_BACKUP_END_HOW: how, COLD_BACKUP_END_AFTER_MS: afterMs = '0' } = process.env;
for (const name of Object.keys(process.env)) if (/^COLD_BACKUP_(BOUNDARIES|END_)/.test(name)) delete process.env[name]; // the guard is not to meet its end there

const log = fs.openSync(file, 'a'), counts = new Map(), seenSinceChange = new Set();
const note = (line) => fs.writeSync(log, `${line}\n`);

function end() {
  note(`- ended by ${how}`);
  if (how === 'power') Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0);
  process.kill(how === 'group' ? 0 : process.pid, 'SIGKILL');
}

// A look that is repeated until something has changed is one boundary, or every run would have others.
function boundary(what, isChange) {
  if (!isChange && seenSinceChange.has(what)) return;
  seenSinceChange.add(what);
  if (isChange) seenSinceChange.clear();
  const count = (counts.get(what) ?? 0) + 1, name = `${what} #${count}`;
  counts.set(what, count);
  note(`${Math.round(performance.now())} ${name}`);
  if (name !== endAt) return;
  if (afterMs === '0') end();
  else setTimeout(end, Number(afterMs));
}

// Paths, times and numbers are others in every run; so are the words beyond the first few.
function plain(words) {
  return words.flat().filter((word) => typeof word === 'string').join(' ').replace(/^.*?\bexec /s, '').replace(/\$?'([^']*)'/g, '$1')
    .replace(/\S*\/(?=\S)/g, '').replace(/\d{4}-\d\d-\d\dT[\d:.]+Z?/g, 'TIME').replace(/[0-9a-f]{7,}(-[0-9a-f]+)*|\d+/g, 'N').replace(/\s+/g, ' ').trim().slice(0, 90);
}

for (const name of ['spawn', 'spawnSync', 'execFile', 'execFileSync']) {
  const real = programs[name];
  programs[name] = (...given) => {
    const words = plain(given.slice(0, 2)), started = real(...given);
    if (/Sync$/.test(name)) return boundary(`ran ${words}`, false), started;
    boundary(`started ${words}`, false);
    return started.once('exit', () => boundary(`ended ${words}`, false));
  };
}
for (const name of ['writeFileSync', 'appendFileSync', 'renameSync', 'rmSync', 'mkdirSync', 'rmdirSync', 'symlinkSync', 'linkSync', 'copyFileSync', 'fsyncSync', 'chmodSync', 'chownSync', 'utimesSync', 'truncateSync']) {
  const real = fs[name];
  fs[name] = (...given) => {
    const result = real(...given);
    const target = given[name === 'renameSync' || name === 'symlinkSync' ? 1 : 0];
    boundary(`${name.replace('Sync', '')} ${typeof target === 'string' ? plain([basename(target)]) : ''}`.trim(), true);
    return result;
  };
}
boundary('the beginning', false);
