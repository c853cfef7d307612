// The doctor: everything that can be checked while all runs, with a hint for what is not right.
// Changes nothing: it looks, connects, and asks; only a storage that does not call itself append-only gets an empty transaction, which tells
// whether it is. What cannot be known here is said to be unknown, never taken for good.
import fs from 'node:fs';
import path from 'node:path';
import { Problem, answer, count, lastLines, mode, named, pasteable, size, span, warnings } from './say.ts';
import { drillFacts } from './certificate.ts';
import { lastGoodRun, readHistory } from './history.ts';
import { askedToStop, failure, hasSystemd, look } from './shell.ts';
import { freeBytes } from './files.ts';
import { checkSecretFiles, refuseIfOthersCanChange } from './check.ts';
import type { Loaded } from './check.ts';
import type { Settings } from './settings.ts';
import { borgVersion, isRemote, tryRepository } from './borg.ts';
import { compactsNothing, refusesOthers, serverCommandLine, sshToStorage, tryConnection } from './storage.ts';
import { describeUnits } from './units.ts';
import { listArchives } from './archives.ts';
import { strangersAmong } from './list.ts';
import { makePlan, serverName } from './plan.ts';
import type { Plan } from './plan.ts';
import { roomNeeded } from './ready.ts';
import { localTime, scheduleOf } from './schedule.ts';
import { tellsNobody } from './tell.ts';

/** ok: true, false, or null when it cannot be known here. needed: without it a run would fail. */
export type Check = { check: string; ok: boolean | null; detail: string; hint: string; needed: boolean };

/** `doctor`: prints the checks. Returns 0 when all is well, 1 when something is to be wished for, 2 when a run would fail. */
export async function doctor(loaded: Loaded, script: string): Promise<number> {
  const checks = await everyCheck(loaded, script);
  if (mode.json) answer(JSON.stringify(checks.map(({ check, ok, detail, hint }) => ({ check, ok, detail, hint })), null, 1));
  else {
    const shown = mode.quiet ? checks.filter((one) => one.ok === false) : checks;
    if (shown.length > 0) answer(shown.map((one) => `${one.ok === null ? 'unknown' : one.ok ? 'ok' : one.needed ? 'FAILS' : 'to do'}`.padEnd(9) + `${one.check}: ${one.detail}${one.ok !== true && one.hint ? `\n         hint: ${one.hint}` : ''}`).join('\n'));
  }
  return checks.some((one) => one.needed && one.ok === false) ? 2 : checks.some((one) => one.ok === false) ? 1 : 0;
}

async function everyCheck({ settings, file }: Loaded, script: string): Promise<Check[]> {
  const checks: Check[] = [];
  let plan: Plan | null = null;
  const add = (check: string, ok: boolean | null, detail: string, hint = '', needed = false) => checks.push({ check, ok, detail, hint, needed });
  const attempt = async (check: string, work: () => Promise<string> | string) => {
    try {
      add(check, true, await work(), '', true);
    } catch (error) {
      if (!(error instanceof Problem) || askedToStop()) throw error;
      add(check, false, `${error.message}${error.facts.said ? `: ${lastLines(error.facts.said, 3)}` : ''}`, error.facts.hint ?? '', true);
    }
  };
  add('settings', true, file);
  await attempt('programs', async () => {
    for (const program of ['flock', 'find', 'sort', 'comm', 'bash', ...(isRemote(settings) ? ['ssh'] : [])]) {
      const done = await look([program, program === 'ssh' ? '-V' : '--version']);
      if (done.code !== 0) throw failure(`${program} does not run`, done, 'install util-linux, findutils, coreutils, bash, openssh-client');
    }
    return `borg ${await borgVersion()}`;
  });
  await attempt('key and passphrase files', () => {
    checkSecretFiles(settings);
    if (fs.existsSync(settings.stateFolder)) refuseIfOthersCanChange(settings.stateFolder, '`stateFolder`');
    if (settings.drill.folder && fs.existsSync(settings.drill.folder)) refuseIfOthersCanChange(settings.drill.folder, '`drill.folder`', { isShared: true });
    return 'nobody else can read them';
  });
  if (isRemote(settings)) await attempt('ssh connection', () => tryConnection(settings));
  await attempt('repository', async () => `it opens (${(await tryRepository(settings)).encryption})`);
  await attempt('parts and paths', async () => {
    plan = await makePlan(settings, new Date());
    return `${count(plan.parts.length, 'part')}, ${count(plan.roots.length, 'path')}: all there`;
  });
  const running = (plan as Plan | null)?.parts.filter((one) => one.wasRunning) ?? [], database = running.find((one) => one.dataDirectory), late = running.filter((one) => !one.dataDirectory && one.group > (database?.group ?? Infinity));
  if (late.length > 0) add('order', null, `${late.map((one) => one.name).join(', ')} would stop after ${database!.name}, and start before it`, 'what uses that database has to stand before it in `stop`');
  const unsaved = warnings.filter((one) => UNSAVED.test(one)), others = warnings.filter((one) => !UNSAVED.test(one));
  if (unsaved.length > 0 || !plan) add('unsaved', unsaved.length > 0 ? false : null, unsaved.join('; ') || NO_PLAN, unsaved.length > 0 ? 'mend the settings as it says: until then no archive holds it' : '');
  else add('unsaved', true, 'nothing that runs here is left out');
  if (others.length > 0) add('warned of', false, others.join('; '), 'a run says the same every night, and ends with 1: mend it');
  const history = readHistory(settings.stateFolder), strangers = lastGoodRun(settings.stateFolder) ? await listArchives(settings, serverName(settings)).then((all) => strangersAmong(all, history), () => null) : null;
  add('own name', strangers && strangers.length === 0, strangers === null ? 'nothing to compare with yet' : strangers.length > 0 ? `no run here wrote ${strangers.slice(0, 3).map(named).join(', ')}` : 'every archive of this name was written here',
    strangers === null ? '' : 'does another server write under the same name? Each needs a repository and a `server` of its own: change one of them, and run setup there');
  checks.push(...await checkServer(settings));
  if (hasSystemd()) add('starts at boot', ...await startsAtBoot(plan));
  add('clock', ...await clockIsRight());
  const free = freeBytes(fs.existsSync(settings.stateFolder) ? settings.stateFolder : '/'), needed = roomNeeded(settings.stateFolder);
  const room = `${size(free)} in ${named(settings.stateFolder)}, of which a run needs ${size(needed)}; the storage's own only its keeper knows`;
  add('free space', free >= needed, room, 'make room: without it no run begins', true);
  const nightly = await scheduleOf(script);
  add('schedule', nightly.by !== '', nightly.by === '' ? nightly.why || 'no crontab line and no timer starts this script' : `${nightly.by} starts it${nightly.at ? `, next on ${localTime(nightly.at)}` : ''}`, 'node backup.js setup --schedule cron    (or systemd)');
  const lastRun = history.filter((one) => one.kind === 'run').pop(), isTried = fs.statSync(file).mtimeMs < Date.parse(lastRun?.startedAt ?? '');
  add('told', ...whoIsTold(settings, nightly.by, isTried ? lastRun!.warnings.find((one) => one.startsWith('tell.')) ?? '' : null));
  const { last, ageDays, warning } = drillFacts(settings.stateFolder, settings.drill.maxAgeDays), hasDrills = settings.drill.maxAgeDays > 0;
  const drilled = last && `${last.archive} was ${last.proven ? '' : 'not '}proven ${count(Math.max(0, Math.floor(ageDays!)), 'day')} ago; a restore takes about ${span(last.restoreSeconds)}`;
  const none = hasDrills ? 'none yet' : 'no drills here, say the settings';
  add('last drill', warning ? false : hasDrills && last ? true : null, warning || drilled || none, `node backup.js drill${last ? '' : ' --full'}`);
  const sheet = sheetFile(settings), isHere = fs.existsSync(sheet), wasMade = isHere || fs.existsSync(sheetMark(settings));
  const made = isHere ? `print ${named(sheet)}, keep it away from this server, and remove it here` : 'the recovery sheet was made';
  add('key exported', wasMade, wasMade ? made : 'no recovery sheet was made here', 'run `node backup.js setup`, print the sheet, and keep it away from this server');
  const lies = 'the recovery sheet still lies on this server: who breaks in has it, and who loses the server loses it';
  if (wasMade) add('sheet kept apart', !isHere, isHere ? lies : 'it is not on this server', `print it, put it away, then: rm ${pasteable([sheet, sheet.replace(/txt$/, 'html')])}`);
  return checks;
}

const UNSAVED = /(is not|cannot be|cannot be stopped or) saved\b/; // how whoever looks for clusters, tablespaces and volumes words it
const NO_PLAN = 'not looked at: `parts and paths` failed';

/** What remembers that the sheet was made, when it has been printed and removed. */
export const sheetMark = (settings: Settings) => path.join(path.dirname(settings.keyFile), 'recovery-sheet.made');

/** Where the recovery sheet lies. */
export const sheetFile = (settings: Settings) => path.join(path.dirname(settings.keyFile), 'recovery-sheet.txt');

/** What the storage itself reports of the command it forces on us: shell, paths, append-only, quota, version. */
async function checkServer(settings: Settings): Promise<Check[]> {
  const names = ['no shell', 'other paths refused', 'append-only', 'quota', 'server version', 'own borg'];
  const unknown = (detail: string) => names.map((check): Check => ({ check, ok: null, detail, hint: '', needed: false }));
  if (!isRemote(settings)) return unknown('the repository is a path on this machine');
  const shell = await look([...sshToStorage(settings), 'echo PROBE-$((6*7))']);
  if (shell.code === 255) return unknown('no ssh connection');
  const { words, version } = await serverCommandLine(sshToStorage(settings)), isAppendOnly = words?.includes('--append-only') || await compactsNothing(settings), others = await refusesOthers(settings);
  const says = (what: string) => (words === null ? null : words.includes(what));
  const own = await borgVersion().catch(() => ''), isOld = own === '' ? null : /^1\.2\.[0-4]\b/.test(own);
  const line = 'the line that `node backup.js setup` prints, whole, in the storage\'s authorized_keys';
  return [
    { check: 'no shell', ok: !shell.out.includes('PROBE-42'), detail: shell.out.includes('PROBE-42') ? 'our key opens a shell on the storage' : 'our key opens no shell', hint: line, needed: false },
    { check: 'other paths refused', ok: others, detail: others === false ? `the repository beside ours can be reached${words ? `: ${words}` : ''}` : others ? 'the repository beside ours is refused' : 'the storage does not say', hint: line, needed: false },
    { check: 'append-only', ok: isAppendOnly, detail: isAppendOnly === null ? 'the storage does not say' : `${words ?? 'by what `compact` does there'}${isAppendOnly && !words?.includes('--append-only') ? '; the repository itself is set so' : ''}`, hint: line, needed: false },
    { check: 'quota', ok: says('--storage-quota'), detail: words ? /--storage-quota (\S+)/.exec(words)?.[1] ?? words : 'the storage does not say', hint: 'without a quota one server can fill the storage of all', needed: false },
    { check: 'server version', ok: version === null ? null : /^1\.[2-9]/.test(version), detail: version ? `borg ${version}` : 'the storage does not say', hint: 'borg 1.2 or 1.4 is what this script is tested with there', needed: false },
    // The proof that an archive is genuine is looked at by who reads it, not by `borg serve` (borg: docs/changes.rst, "Pre-1.2.5 archives spoofing vulnerability").
    { check: 'own borg', ok: isOld === null ? null : !isOld, detail: own ? `borg ${own}` : 'it does not run', hint: 'leave it where the storage is yours; else put 1.2.8 or newer here and on the operator\'s computer: before 1.2.5 borg believes archives forged there (CVE-2023-36811)', needed: false },
  ];
}

// Whether somebody would hear of a night that failed. trouble: what the last run had with `tell` as it is now, '' = none; null: no run has called it.
function whoIsTold(settings: Settings, startedBy: string, trouble: string | null): [boolean | null, string, string] {
  const hint = 'set `tell`, or let your monitoring ask `node backup.js status` every day';
  if (!tellsNobody(settings)) return trouble === null ? [null, 'by `tell`, not tried yet', 'the next run calls it: look then whether that came; it warns when it did not']
    : [trouble === '', trouble || 'by `tell`', trouble && 'mend it; node backup.js --now tries it'];
  if (startedBy === 'systemd') return [false, 'a systemd timer mails nobody, and `tell` is empty', hint];
  if (startedBy === 'cron') return [null, 'cron mails root what --quiet prints; whether somebody reads that is not known here', hint];
  return [null, 'nothing starts it, so there is nothing to tell', hint];
}

// What is not started at boot stays down after a power cut in the day, when no run left a ledger.
async function startsAtBoot(plan: Plan | null): Promise<[boolean | null, string, string]> {
  if (!plan) return [null, NO_PLAN, ''];
  const units = plan.parts.filter((part) => part.wasRunning && part.unit).map((part) => part.unit!), all = await describeUnits(units).catch(() => null);
  if (!all) return [null, 'systemd does not answer', ''];
  const not = all.filter((facts) => facts.UnitFileState === 'disabled' && facts.TriggeredBy === '').map((facts) => facts.Id!);
  return [not.length === 0, not.length > 0 ? `not started at boot: ${not.join(', ')}` : 'every unit named in `stop` that runs', `systemctl enable ${not.join(' ')}`];
}

// An archive bears this clock's time, and the audit compares it with the storage's own. timedatectl is not asked: it would start a service (systemd-timedated).
async function clockIsRight(): Promise<[boolean | null, string, string]> {
  const hint = 'install chrony or systemd-timesyncd: an archive an hour off is an alarm at the next audit';
  if (fs.existsSync('/run/systemd/timesync/synchronized')) return [true, 'kept right by systemd-timesyncd', hint];
  const status = /^Leap status\s*: (.*)$/m.exec((await look(['chronyc', '-n', 'tracking'])).out)?.[1] ?? '';
  if (status) return [status === 'Normal', `chrony says: ${status}`, hint];
  return [null, 'nothing here tells whether it is right', hint];
}
