// The schedule: what starts this script at night, and when next.
// And, only when somebody says so, its installation as lines of cron or timers of systemd. Changes /etc/cron.d/cold-backup or
// the files cold-backup* in /etc/systemd/system, nothing else.
import fs from 'node:fs';
import path from 'node:path';
import { Problem, pasteable, say } from './say.ts';
import { change, failure, hasSystemd, look } from './shell.ts';
import { pidNamespace, procFile } from './processes.ts';
import type { Settings } from './settings.ts';

const commandLine = (script: string, file: string, words: string) => `${pasteable([process.execPath, script])}${file === script ? '' : ` --settings ${pasteable([file])}`} ${words}`;

/** Given settings, script and settings file, writes the lines for cron: the night, what comes after a power cut, the weekly drill. A drill touches nothing that runs, so it has
 * its own day and hour. cron knows only the machine's own time: the window's start is turned into it, as it is tonight. Throws Problem when no cron would read them. */
export function installCron(settings: Settings, script: string, file: string): void {
  if (!cronRuns() || !fs.existsSync('/etc/cron.d')) throw new Problem('no cron runs here that would read /etc/cron.d',
    { hint: `install one and start it (apt-get install cron)${hasSystemd() ? ', or: node backup.js setup --schedule systemd' : ''}` });
  if (fs.existsSync('/etc/systemd/system/cold-backup.timer')) {
    throw new Problem('systemd starts it already: there would be two runs a night',
      { exitCode: 64, hint: 'first: systemctl disable --now cold-backup.timer cold-backup-recover.timer cold-backup-drill.timer; rm /etc/systemd/system/cold-backup*; systemctl daemon-reload' });
  }
  const begin = startOfWindow(settings);
  const line = (when: string, words: string) => `${when} root ${commandLine(script, file, words).replaceAll('%', '\\%')}`;
  fs.writeFileSync('/etc/cron.d/cold-backup', ['# cold-backup: the nightly run, and what brings services back after a power cut', 'PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin',
    line(`${begin.getMinutes()} ${begin.getHours()} * * *`, '--quiet'), line('@reboot', 'recover --quiet'), line('*/5 * * * *', 'recover --quiet'),
    ...(settings.drill.maxAgeDays > 0 ? [line('0 12 * * 0', 'drill --quiet')] : []), ''].join('\n'), { mode: 0o644 });
  say('wrote /etc/cron.d/cold-backup');
}

// The begin of the window (or 02:00) as this machine's clock shows it, the later one of winter and summer; five minutes in, so
// that no clock is before it.
function startOfWindow(settings: Settings): Date {
  const [winter, summer] = [0, 6].map((month) => windowBegin(settings, new Date(new Date().getFullYear(), month, 15))) as [Date, Date];
  const minutes = (date: Date) => date.getHours() * 60 + date.getMinutes();
  const later = (minutes(summer) - minutes(winter) + 1440) % 1440 < 720 ? summer : winter;
  return new Date(later.getTime() + (settings.window ? 5 * 60_000 : 0));
}

function windowBegin(settings: Settings, begin: Date): Date {
  const { window } = settings;
  if (!window) begin.setHours(2, 0, 0, 0);
  for (let minute = 0; window && minute < 1440; minute++) {
    const clock = new Intl.DateTimeFormat('en-GB', { timeZone: window.timeZone, hour: '2-digit', minute: '2-digit', hourCycle: 'h23' }).format(begin);
    if (clock === window.from) break;
    begin.setMinutes(begin.getMinutes() + 1);
  }
  return begin;
}

/** The same as systemd's timers. Throws Problem when this machine is not run by systemd. */
export async function installTimers(settings: Settings, script: string, file: string): Promise<void> {
  if (!hasSystemd()) throw new Problem('this machine is not run by systemd', { hint: 'use --schedule cron' });
  const at = settings.window ? `*-*-* ${settings.window.from}:00 ${settings.window.timeZone}` : '*-*-* 02:00:00';
  const forSystemd = (words: string) => commandLine(script, file, words).replace(/[%$]/g, '$&$&'); // systemd.service(5): both are expanded, in quotes, too
  const service = (what: string, words: string, more: string[]) => ['[Unit]', `Description=cold-backup: ${what}`, 'Wants=network-online.target', 'After=network-online.target', '',
    '[Service]', 'Type=oneshot', `ExecStart=${forSystemd(words)}`, ...more, ''].join('\n');
  const timer = (when: string[]) => ['[Unit]', 'Description=cold-backup', '', '[Timer]', ...when, '', '[Install]', 'WantedBy=timers.target', ''].join('\n');
  const files = {
    // No sandboxing: what the unit may not do, the daemons that a `start` command of the settings starts might not do either, for they inherit it.
    // The script ends its children itself; whatever it leaves running lives in units of its own.
    'cold-backup.service': service('the nightly run', '--quiet', [`ExecStopPost=${forSystemd('recover --quiet')}`, 'KillMode=mixed', 'TimeoutStartSec=infinity', 'TimeoutStopSec=30min', 'SuccessExitStatus=75', 'OOMScoreAdjust=-500']),
    'cold-backup.timer': timer([`OnCalendar=${at}`]), // not Persistent: a missed night must not stop services in the morning
    'cold-backup-recover.service': service('start what an interrupted run left stopped', 'recover --quiet', ['SuccessExitStatus=75']),
    'cold-backup-recover.timer': timer(['OnBootSec=20s', 'OnUnitActiveSec=5min', 'AccuracySec=1s']),
    ...(settings.drill.maxAgeDays > 0 ? { 'cold-backup-drill.service': service('rehearse a restore', 'drill --quiet', ['Nice=19', 'IOSchedulingClass=idle', 'TimeoutStartSec=infinity', 'SuccessExitStatus=75']),
      'cold-backup-drill.timer': timer(['OnCalendar=Sun *-*-* 12:00:00', 'RandomizedDelaySec=15min']) } : {}),
  };
  for (const [name, text] of Object.entries(files)) fs.writeFileSync(path.join('/etc/systemd/system', name), text, { mode: 0o644 });
  for (const argv of [['systemctl', 'daemon-reload'], ['systemctl', 'enable', '--now', ...Object.keys(files).filter((name) => name.endsWith('.timer'))]]) {
    const done = await change(argv);
    if (done.code !== 0) throw failure('the timers cannot be installed', done);
  }
  fs.rmSync('/etc/cron.d/cold-backup', { force: true }); // one schedule at a time, and never none
  say(`installed ${Object.keys(files).filter((name) => name.endsWith('.timer')).join(', ')}`);
}

// ---- what is installed ----

function textIfAny(file: string): string {
  try {
    return fs.readFileSync(file, 'utf8');
  } catch { // not there, a folder, or not for us
    return '';
  }
}

const textsIn = (folder: string) => (fs.existsSync(folder) ? fs.readdirSync(folder) : []).map((name) => ({ name, text: textIfAny(path.join(folder, name)) }));

// Whether a cron is at work here: a process of that name (busybox's is crond) that is in no container, or systemd-cron, which has none. Without systemd it may be
// started later, so there it is enough that one is installed.
const cronRuns = () => ['/usr/lib/systemd/system-generators/systemd-crontab-generator', ...(hasSystemd() ? [] : ['/usr/sbin/cron', '/usr/sbin/crond'])].some((file) => fs.existsSync(file)) || fs.readdirSync('/proc').map(Number)
  .some((pid) => /^(cron|crond|fcron)\n$/.test(procFile(pid, 'comm')) && pidNamespace(pid) === pidNamespace(process.pid));

// Whether a line of a crontab or unit takes the backup, given the script: after the script's name, up to what the shell does with it (a pipe, a file, the next command), stands
// no command (`drill`, `status`), and no option with which nothing is taken. FILE of --settings is neither.
export const isNight = (line: string, script: string) => !/^\s*#/.test(line) && line.split(script).slice(1)
  .map((after) => after.replace(/^['"]/, '').replace(/\s--settings[ =]+('[^']*'|"[^"]*"|[^\s'"])+/, '').split(/\d*>|\s#|[|;&<]/)[0]!)
  .some((words) => words.split(/\s+/).every((word) => word === '' || /^--(?!dry-run|help|version|print-settings)/.test(word)));

/** Given the script, returns what starts its nightly run ('' = nothing that is known here, and then why, if a crontab line is there all the same) and when next (null: not within eight days, or it cannot be told). */
export async function scheduleOf(script: string): Promise<{ by: '' | 'cron' | 'systemd'; at: Date | null; why: string }> {
  const crontabs = [...textsIn('/etc/cron.d').filter(({ name }) => !/[.~]/.test(name)).map(({ text }) => text), textIfAny('/etc/crontab'), (await look(['crontab', '-l'])).out];
  const lines = crontabs.flatMap((text) => text.split('\n').filter((line) => isNight(line, script)));
  const hasOwnZone = crontabs.some((text) => /^CRON_TZ=/m.test(text)); // then when is not known here
  const times = (hasOwnZone ? [] : lines).map((line) => nextOf(line, new Date())).filter((one) => one !== null).sort((one, other) => one.getTime() - other.getTime());
  if (lines.length > 0 && cronRuns()) return { by: 'cron', at: times[0] ?? null, why: '' };
  const why = lines.length > 0 ? 'a crontab line is there, but no cron runs' : '';
  const starts = (text: string) => text.split('\n').some((line) => line.startsWith('ExecStart=') && isNight(line, script));
  const unit = textsIn('/etc/systemd/system').find(({ name, text }) => name.endsWith('.service') && starts(text))?.name.replace(/service$/, 'timer');
  const { out } = unit ? await look(['systemctl', 'show', '--property=ActiveState,NextElapseUSecRealtime', unit], { env: { TZ: 'UTC' } }) : { out: '' };
  if (!unit || /^ActiveState=inactive/m.test(out)) return { by: '', at: null, why };
  const [, day, hour] = /(\d{4}-\d\d-\d\d) (\d\d:\d\d:\d\d)/.exec(out) ?? [];
  return { by: 'systemd', at: day ? new Date(`${day}T${hour}Z`) : null, why: '' };
}

/**
 * Given a line of a crontab, returns when cron starts it next (crontab(5): of day and weekday one is enough when both are
 * given); null when it does not within eight days, or its form is not known here.
 */
export function nextOf(line: string, now: Date): Date | null {
  const short: Record<string, string> = { '@daily': '0 0 * * *', '@midnight': '0 0 * * *', '@hourly': '0 * * * *', '@weekly': '0 0 * * 0' };
  const [minute = '', hour = '', day = '', month = '', weekday = ''] = line.trim().replace(/^@\w+/, (word) => short[word] ?? '').split(/\s+/);
  const fits = (field: string, value: number, least = 0) => field.split(',').some((one) => {
    const [, from, until, step] = /^(\*|\d+)(?:-(\d+))?(?:\/(\d+))?$/.exec(one) ?? [], first = from === '*' ? least : Number(from), last = from === '*' ? 99 : Number(until ?? (step ? 99 : from));
    return value >= first && value <= last && (value - first) % Number(step ?? 1) === 0;
  });
  for (let at = Math.ceil((now.getTime() + 1) / 60_000) * 60_000, end = at + 8 * 86_400_000; at < end; at += 60_000) {
    const one = new Date(at), isDay = fits(day, one.getDate(), 1), isWeekday = fits(weekday, one.getDay()) || fits(weekday, one.getDay() + 7);
    if (fits(minute, one.getMinutes()) && fits(hour, one.getHours()) && fits(month, one.getMonth() + 1, 1) && (day.startsWith('*') || weekday.startsWith('*') ? isDay && isWeekday : isDay || isWeekday)) return one;
  }
  return null;
}

/** '2026-11-24 02:05', as this machine's clock shows it. */
export const localTime = (at: Date) => `${at.toLocaleDateString('sv-SE')} ${at.toTimeString().slice(0, 5)}`;
