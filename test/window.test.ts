// The hours of the night: pure reckoning, so it is asked directly, with the instants that go wrong.
import { test } from 'node:test';
import assert from 'node:assert/strict';
import { deadlines, isInWindow, windowEnd } from '../lib/window.ts';
import { isNight, localTime, nextOf } from '../lib/schedule.ts';

const berlin = { from: '01:00', until: '05:30', timeZone: 'Europe/Berlin' }, late = { from: '22:00', until: '04:00', timeZone: 'Africa/Maputo' };
const end = (window: typeof berlin, at: string) => windowEnd(window, new Date(at))!.toISOString();

test('a window is in the time zone of its users, and may go over midnight', () => {
  assert.equal(isInWindow(berlin, new Date('2026-11-23T00:00:00Z')), true);
  assert.equal(isInWindow(berlin, new Date('2026-11-22T23:59:00Z')), false);
  assert.equal(isInWindow(berlin, new Date('2026-11-23T04:30:00Z')), false);
  assert.equal(isInWindow(late, new Date('2026-11-23T20:00:00Z')), true);
  assert.equal(isInWindow(late, new Date('2026-11-24T01:59:00Z')), true);
  assert.equal(isInWindow(late, new Date('2026-11-24T02:00:00Z')), false);
  assert.equal(isInWindow(null, new Date()), true);
});

test('a window ends at its hour also in the nights the clocks change', () => {
  assert.equal(end(berlin, '2026-11-23T00:00:00Z'), '2026-11-23T04:30:00.000Z');
  assert.equal(end(berlin, '2026-10-24T23:30:00Z'), '2026-10-25T04:30:00.000Z'); // summer time ends at 03:00
  assert.equal(end(berlin, '2026-03-29T00:30:00Z'), '2026-03-29T03:30:00.000Z'); // and begins at 02:00
  assert.equal(end(late, '2026-11-23T21:00:00Z'), '2026-11-24T02:00:00.000Z');
  const short = { from: '00:00', until: '01:30', timeZone: 'Europe/Lisbon' };
  assert.equal(end(short, '2026-03-29T00:40:00Z'), '2026-03-29T01:00:00.000Z'); // its end lies in the hour that is left out
  assert.equal(end(short, '2026-10-25T00:20:00Z'), '2026-10-25T00:30:00.000Z'); // and here it comes twice: the first one counts
});

test('services are not stopped when the window is over, or too short for them to come back', () => {
  const now = new Date('2026-11-23T04:00:00Z'), at = (minutes: number) => new Date(now.getTime() + minutes * 60_000);
  assert.equal(deadlines(120, now, at(-1), 0).isTooLate, true, 'a long warm pass must not run into the morning');
  assert.equal(deadlines(120, now, at(10), 240).isTooLate, true, 'starting took four minutes last time');
  assert.equal(deadlines(120, now, at(60), 240).isTooLate, false);
  assert.equal(deadlines(0.5, now, null, 240).isTooLate, false, 'without a window only the downtime is limited');
  const { deadlineAt, beginStartAt } = deadlines(120, now, at(60), 30);
  assert.deepEqual([deadlineAt, beginStartAt], [at(60), new Date(at(60).getTime() - 80_000)]);
});

test('when cron starts a line next is reckoned as crontab(5) says', () => {
  const now = new Date(2026, 10, 26, 9, 30, 20), next = (line: string) => { const at = nextOf(line, now); return at && localTime(at); }; // a Thursday
  assert.deepEqual(['5 2 * * * root x', '31 9 * * *', '*/20 9-10 * * *', '0 12 * * 0', '0 12 * * 7', '0 3 27,28 * 5', '0 3 1 * 5', '@daily root x', '0 3 * 11 *', '30-50/10 9 * * *', '0 2 30 2 *', 'whenever * * * *', '0 3 * * sat', '0 3 */2 * *'].map(next),
    ['2026-11-27 02:05', '2026-11-26 09:31', '2026-11-26 09:40', '2026-11-29 12:00', '2026-11-29 12:00', '2026-11-27 03:00', '2026-11-27 03:00', '2026-11-27 00:00', '2026-11-27 03:00', '2026-11-26 09:40', null, null, null, '2026-11-27 03:00']);
});

test('which line of a crontab takes the backup is told by what follows the script, up to what the shell does with it', () => {
  const script = '/opt/cold-backup/backup.js', takes = (line: string) => isNight(line, script), begin = `5 2 * * * root /usr/bin/node ${script}`;
  for (const more of ['', ' --quiet', ` --settings /etc/drill.js --quiet`, ` --settings '/srv/my files/status.js' --quiet`, ' --quiet 2>&1 | mail -s "backup report" root', ' --quiet || echo drill', ' --now>>/var/log/recover', '; echo status', ' --quiet # no drill']) {
    assert.equal(takes(begin + more), true, more);
  }
  for (const more of [' recover --quiet', ' drill', ' --quiet status', ' --dry-run', ' list', ' setup --yes', ' --help', '.old --quiet']) assert.equal(takes(begin + more), false, more);
  assert.equal(takes(`# ${begin}`), false);
  assert.equal(takes(`5 2 * * * root [ -x ${script} ] && ${script} --quiet`), true);
  assert.equal(isNight(`5 2 * * * root node '/srv/my scripts/backup.js' --quiet`, '/srv/my scripts/backup.js'), true);
});
