#!/usr/bin/env node
// cold-backup 0.1.0 - one file; it needs Node.js 18 or newer, and borg. Nothing is installed.
//
// What it does to this machine when cron calls it: looks at everything, and tries all that can fail, while all still
// runs. Copies once, warm, to the storage. Stops the services, containers and PostgreSQL clusters that the settings name,
// proves from their own files that they are cold, sends one encrypted borg archive over ssh, and starts everything again,
// whatever happens meanwhile. Then it reads the archive's record back.
// It never deletes an archive, never kills PostgreSQL, never starts what was not running, and calls nobody else.
//
// How to read it: from the top, as far as you like. The settings; the night; what the night is made of, a chapter for each
// outside program; coming back; checks and set-up. You can stop reading at the fence "OPERATOR'S PART"; below "LIBRARIES" nobody edits.
// How to change it: edit this file, or only the settings; then try:  node backup.js --dry-run
// `node backup.js --version` says "as built", or "edited" when anything but the settings is no longer what this sum says.
// Checksum of all but the settings: ed367150a55a80ae3befe9761512cbdd6473e2076f764445689b4e8741b9b0b9
//
// Contents. Search for a mark, with its ====, to come to the chapter:
//   ==== SETTINGS ====         What this server stops and what it saves.
//   ==== THE NIGHT ====        The night: takeBackup() is the whole run, in the order it happens.
//   ==== ABOUT ====            Who this program is: its version, and whether somebody has changed it since it was built.
//   ==== SAY ====              What people read: messages on a terminal or in cron's mail, errors with a hint, the transcript.
//   ==== SHELL ====            Running other programs through zx, safely under root's cron.
//   ==== FILES ====            Files and folders, as root may read and write them where others can lay links and pipes.
//   ==== FORM ====             What comes from elsewhere must have the form that is read out of it.
//   ==== PROCESSES ====        Who runs on this machine, read from /proc.
//   ==== HISTORY ====          What has happened on this server: history.jsonl in the state folder, one JSON object a run.
//   ==== CERTIFICATE ====      The certificate: what a drill found, in the history, in the archives that follow, and in words.
//   ==== RULES ====            What each setting may be, and what it is when it is not written: TABLE, one line a setting.
//   ==== CHECK ====            Reading the settings: from this script, from backup.settings.js beside it, or from --settings FILE.
//   ==== WINDOW ====           The hours of the night: when a run may stop things, and by when everything runs again.
//   ==== TELL ====             Telling people and machines how a night went: by a ping, a command, a file for Prometheus.
//   ==== UNITS ====            systemd units: find, describe, stop, start, and see what they really do.
//   ==== CONTAINERS ====       Docker containers and Compose projects: find, describe, stop, start, see what they really do.
//   ==== POSTMASTER ====       What a PostgreSQL cluster does at this moment, and in which state its files are.
//   ==== POSTGRES ====         PostgreSQL clusters on this host and in its containers: find, describe, stop, start.
//   ==== QUESTIONS ====        What is asked of a cluster: the SQL of the passport, and the one way to run it.
//   ==== BORG ====             borg: the one chapter that knows its arguments, environment, exit codes and messages.
//   ==== PASSES ====           A pass: one `borg create`, from its command to what came of it.
//   ==== ARCHIVES ====         The archives of a repository: their lists, and their names, which say what each of them is.
//   ==== STORAGE ====          The storage as this server reaches it: its address, ssh, and what `borg serve` says of itself.
//   ==== PASSPORT ====         The passport: everything needed to build a machine on which the saved files work.
//   ==== PARTNERS ====         Partners: who else holds the data of a cluster, and notices nothing when that goes back in time.
//   ==== WAYS ====             Ways: how each path gets into the archive when `snapshot` is 'yes', and why.
//   ==== SNAPSHOT ====         Copy-on-write copies, for `snapshot: 'yes'`: made in an instant while everything is stopped.
//   ==== PLAN ====             The plan: what will be stopped, saved and started, worked out once, before anything is changed.
//   ==== PROOF ====            The proof that what is copied is cold, taken before the cold pass and again after it.
//   ==== LEDGER ====           The ledger: what a run has stopped, on disk before each stop, and the lock of that run.
//   ==== SWAP ====             The swap: what was restored takes its place, and the old contents go aside, by rename(2) alone.
//   ==== PAUSE ====            The pause: stop the parts, each seen stopped, and start them again, each seen running.
//   ==== WORDS ====            What is written for people in their own language: RESTORE.md, the recovery sheet, messages.
//   ==== LOOKING THROUGH ====  Looking through what came back, by RESTORE.md, before it is let loose.
//   ==== RESTORE.MD ====       RESTORE.md: how to bring back this very archive by hand, for somebody without this script.
//   ==== RECORD ====           The record that travels in every archive: manifest.json, RESTORE.md, listing, script, settings.
//   ==== COMMANDS ====         The commands of a night: the borg calls of its three passes, and the dry run, which shows them all.
//   ==== READY ====            Ready?
//   ==== COPYING ====          Copying: the warm pass while everything runs, then the copy of what is cold.
//   ==== OUTCOME ====          How a night ended, in words: the summary that closes a run, and the message about it.
//   ==== LEFTOVERS ====        Leftovers: what a dead run left stopped is started, and told in its place.
//   ==== GUARD ====            The guard: a second process that outlives the run, whatever kills it, and `recover`.
//   ==== LIST ====             What is in the repository: the archives, the files in one, the versions of a file in all.
//   ==== SANDBOX ====          The sandbox: a PostgreSQL on files that came out of an archive, locked in.
//   ==== EMPTY CLUSTER ====    The empty cluster: PostgreSQL itself is asked what it can do here.
//   ==== COLLATIONS ====       Collations: does this machine sort texts as the saved one did?
//   ==== MACHINE ====          This machine beside the saved one, as far as files and processes tell.
//   ==== INSTALLED ====        Installed: what a cluster needs beside PostgreSQL itself: libraries, extensions, dictionaries.
//   ==== AHEAD ====            Ahead: what the judge says of partners when a cluster goes back in time (see PARTNERS).
//   ==== JUDGE ====            The judge: would these files work on this machine?
//   ==== MEASURE ====          What is about to be extracted: how many files and bytes, which links, and whether all stays inside.
//   ==== COMING BACK ====      Coming back: `restore ... --to FOLDER` lays an archive, or part of it, into an empty folder.
//   ==== PLACES ====           Where things come back to: which roots of an archive are meant, and where they lie here.
//   ==== COMEBACK ====         What would come back: the parts of an archive that are meant, and every command in order.
//   ==== AFTERWARDS ====       Afterwards: what a restore in place has put back is asked whether it works.
//   ==== IN PLACE ====         In place: `restore ... --in-place` puts an archive, or parts of it, where it was.
//   ==== CHECKS ====           What a drill looks at in a copy before it runs: files as listed when cold, page checksums.
//   ==== SERVER CHECKS ====    What a drill asks of the copy once it runs: databases, libraries, indexes, rows.
//   ==== LOCKED IN ====        Locked in: a cluster's copy finds in its sandbox only what came with it, at the old paths.
//   ==== REHEARSAL ====        The rehearsal of a drill: extracts clusters into the scratch folder, starts and checks each.
//   ==== DRILL ====            The drill: a restore, rehearsed.
//   ==== SCHEDULE ====         The schedule: what starts this script at night, and when next.
//   ==== STATUS ====           The status: is there a good recent backup, and what is to be done?
//   ==== DOCTOR ====           The doctor: everything that can be checked while all runs, with a hint for what is not right.
//   ==== ANSWERS ====          The walk for a server that has no settings yet: questions on a terminal, or options.
//   ==== SETUP ====            Setup: make what is missing, keep what is there, say what the storage needs.
//   ==== HELP ====             What the command line knows: commands, options, exit codes, as data.
//   ==== MAIN PROGRAM ====     The command line: which command, with which options.
//   ==== OPERATOR'S PART ====  What follows runs only on the operator's own machine.
//   ==== OPERATOR ====         The operator's own computer: its settings name every server with full access to its repository.
//   ==== SEGMENTS ====         The files of a borg 1 repository, read from outside: its transactions, what each changed, and when.
//   ==== OPERATOR'S LEDGER ==== The operator's ledger: what audits saw of a server's repository, one JSON file a server.
//   ==== FINDINGS ====         What an audit finds wrong, rule by rule.
//   ==== UNDO ====             The way back after an alarm: `audit --undo-plan` prints commands and runs none of them.
//   ==== AUDIT ====            The audit: has somebody tampered with an append-only repository?
//   ==== RETENTION ====        Which archives stay.
//   ==== PRUNING ====          A repository pruned in a hard-linked copy beside it, which no server can reach.
//   ==== PRUNE ====            Retention, from the operator's computer, after a clean audit: what goes, what is refused.
//   ==== OVERDUE ====          Which servers have no recent backup?
//   ==== FLEET ====            What the operator knows of each server, for the report.
//   ==== REPORT IN WORDS ====  The words of the report, one table a language, with the same keys (a test compares them).
//   ==== CHARTS ====           HTML in which nothing from outside can become markup, and the report's pictures.
//   ==== VERDICT ====          What is to be said of each server, and the one next step.
//   ==== STYLE ====            How the report looks: light, dark, narrow, on paper.
//   ==== PAGE OF A SERVER ==== The report's page of one server: state, next step, a year of nights, curves, archives.
//   ==== REPORT ====           The report: one HTML file with everything in it, for people who want to see it at a glance.
//   ==== LIBRARIES ====        Written by others and compiled: nothing to edit.
'use strict';

var canary = null; canary ??= 1; // SyntaxError here? Then Node.js is TOO OLD for backup.js. Install Node.js 18 or newer. Nothing was touched.
if (parseInt(process.versions.node, 10) < 18) {
  console.error('backup: error: this machine has Node.js ' + process.versions.node + ', and backup.js needs 18 or newer');
  console.error('  hint: install a newer Node.js, or put its one binary beside this script and call that: ./node backup.js');
  process.exit(64);
}
if (typeof require !== 'function') {
  console.error('backup: error: a package.json near backup.js says "type": "module"');
  console.error('  hint: put backup.js into a folder of its own.');
  process.exit(64);
}
process.on('exit', (code) => { // main() stands at the very end and takes this away: a download that was cut off may hold only whole functions, run nothing, and be content
  if (code !== 0) return; // something else is wrong, and has been said
  console.error('backup: error: this file ends too early: download it again');
  process.exitCode = 2;
});

// =========================================================================================================
// ==== SETTINGS ====
// What this server stops and what it saves. A file `backup.settings.js` beside this script, with the same
// `const settings = { ... };`, replaces the block whole: then an upgrade is to overwrite `backup.js`.
// Fill in `stop` or `folders`, and `repository`; then:  node backup.js setup  and  node backup.js --dry-run
const settings = {
  server: '',                    // '' = this machine's host name; starts every archive's name
  // What to stop, in this order. It is started again in the opposite order. What is not running stays as it is.
  stop: [
    // 'service nginx',          // a systemd unit; a list inside this list is stopped (and started) together
    // 'compose shop',           // every container of a compose project
    // 'container redis',        // one container; 'container *' = every running one
    // { name: 'bucardo', running: ['pgrep', '--full', '^Bucardo '], stop: ['bucardo', 'stop'], start: ['bucardo', 'start'] },
    // 'postgres 15/main',       // a Debian cluster; or its data directory; 'postgres *' = every running cluster
  ],
  // What to save. Clusters named above are saved whole: data, tablespaces, WAL, configuration, wherever they lie.
  folders: [],                   // ['/var/www/uploads']
  volumes: [],                   // ['shop_files']: container volumes; '*' = every volume and bind mount of the containers above
  before: [],                    // command to run first, e.g. to bring up a VPN; root's ssh configuration is honoured too
  exclude: [],                   // borg patterns
  repository: '',                // 'ssh://borg@storage.example.org/./web1'
  sshKey: '/etc/cold-backup/ssh_key',
  knownHostsFile: '/etc/cold-backup/known_hosts',   // the storage's host key; setup shows it and stores it here
  keyFile: '/etc/cold-backup/borg_key',
  passphraseFile: '/etc/cold-backup/passphrase',
  window: null,                  // { from: '01:00', until: '05:30', timeZone: 'Africa/Maputo' }; null = any time
  maxDowntimeMinutes: 120,       // everything runs again by then, and by window.until, backup or not
  stopTimeoutSeconds: 300,       // for one part to stop; past it the run is called off
  warmPass: true,                // copy once while everything runs, so that the stop is short
  snapshot: 'no',                // 'yes' = copy-on-write copy on btrfs or xfs while stopped: costs free space while borg reads
  compression: 'zstd,3',
  chunker: 'fixed,65536',        // for database pages; 'fixed,262144' above 200 GB. Chosen once, before the first backup
  uploadLimitKiB: 0,
  tell: { ping: '', command: [], metrics: '', sendLog: false },   // sendLog: the ping carries the log's end; what --quiet prints, cron mails
  maxAgeHours: 26,               // status: older than this is a failure
  drill: { queries: [ /* { cluster, database, sql, expect } */ ], folder: '', maxAgeDays: 8 },   // maxAgeDays 0 = no drills here
  language: 'en',                // of RESTORE.md, recovery sheet and report: 'en' or 'es'
  stateFolder: '/var/lib/cold-backup',
};

// =========================================================================================================
// ==== WHAT THE PROGRAM USES ====
// Parts of Node.js; then libraries, which stand at the end of this file. Functions are loaded when they are first
// called, so that `--help` and `status` answer about as fast as Node.js itself starts.

const spawn = (...given) => require('node:child_process').spawn(...given);
const spawnSync = (...given) => require('node:child_process').spawnSync(...given);
const createHash = (...given) => require('node:crypto').createHash(...given);
const randomBytes = (...given) => require('node:crypto').randomBytes(...given);
const randomUUID = (...given) => require('node:crypto').randomUUID(...given);
const lookup = (...given) => require('node:dns/promises').lookup(...given);
const fs = require('node:fs');
const connect = (...given) => require('node:net').connect(...given);
const createServer = (...given) => require('node:net').createServer(...given);
const os = require('node:os');
const constants = require('node:os').constants;
const homedir = (...given) => require('node:os').homedir(...given);
const hostname = (...given) => require('node:os').hostname(...given);
const path = require('node:path');
const dirname = (...given) => require('node:path').dirname(...given);
const join = (...given) => require('node:path').join(...given);
const resolve = (...given) => require('node:path').resolve(...given);
const createInterface = (...given) => require('node:readline/promises').createInterface(...given);
const sleep = (...given) => require('node:timers/promises').setTimeout(...given);
const inspect = (...given) => require('node:util').inspect(...given);
const runInNewContext = (...given) => require('node:vm').runInNewContext(...given);
const minimist = (...given) => libraries().minimist(...given);
const $ = (...given) => libraries().$(...given);

// =========================================================================================================
// ==== THE NIGHT ====
// The night: takeBackup() is the whole run, in the order it happens. Read it first; every step is a function of an earlier chapter.
// Between "from here services are down" and "from here services run again" nothing may be lost: whatever fails, hangs or
// is asked of us there, everything that was stopped is started before anything else is judged.

const PROOF_WHILE_DOWN_MS = 120_000; // the guard tries again only when the run has ended

/** `node backup.js`: take the backup. Returns the exit code (contract: 0 good, 1 with warnings, 2 failed, 3 something is down, 75 not now, 128+n). */
async function takeBackup(loaded, script) {
  const { settings } = loaded;
  if (mode.dryRun) return showPlan(settings);
  listenToSignals();
  fs.mkdirSync(settings.stateFolder, { recursive: true, mode: 0o700 });
  refuseIfOthersCanChange(settings.stateFolder, '`stateFolder`');
  takeRunLock(settings.stateFolder);
  const left = await startLeftovers(settings);
  if (left) return endNight({ ...beginNight(loaded, script), ledger: left.ledger, down: left.down }, left.why);
  await sweepDrills(settings).catch((error) => warn(`what a drill left behind cannot be removed: ${error.message}`)); // it may be a disk full of files
  await dropCopies(settings.stateFolder); // so may a killed run
  if (!mode.now && !isInWindow(settings.window, new Date())) {
    const { from, until, timeZone } = settings.window;
    throw new Problem(`it is outside the window ${from} to ${until} (${timeZone})`,
      { exitCode: 75, hint: '`node backup.js --now` takes the backup all the same' });
  }
  const night = beginNight(loaded, script);
  try {
    await runTheNight(night);
  } catch (error) {
    return await endNight(night, error);
  }
  return endNight(night, null);
}

/** The story. Throws Problem when there is no new good backup; night.down tells what is not running then. */
async function runTheNight(night) {
  const { settings } = night.loaded;
  await runBefore(settings).finally(() => tell(settings, messageOf(night.line, [], 'start', '', settings.language))); // `before` may bring up the line there
  const [plan, storage] = await sideBySide(makePlan(settings, new Date(night.line.startedAt)), tryStorage(settings));
  night.line.archive = plan.archive;
  await tryThisMachine(settings, plan);
  night.line.snapshot = plan.snapshot;
  say(`plan: stop ${count(plan.parts.filter((part) => part.wasRunning).length, 'part')}, save ${count(plan.roots.length, 'path')} to ${plan.archive} (${storage})`);
  beginRecord(night.loaded, night.script);
  const looking = passportOf(plan.clusters, plan.containers, plan.roots.map((root) => root.path));
  const [passport] = await sideBySide(looking, settings.warmPass ? warmPass(night, plan) : Promise.resolve());
  const manifest = manifestOf(settings.stateFolder, night.script, plan, passport);

  if (plan.snapshot === '') night.cold = beginColdPass(night, plan);
  if (plan.snapshot !== '' || plan.parts.some((part) => part.wasRunning)) {
    night.guardPid = await armGuard(night.script, settings.stateFolder, night.loaded.file, plan.run, [plan.archive, night.line.startedAt]);
  }
  await untilBorgWaits(night); // with repository, key and caches open: nothing of that is left for when services are down
  await checkpointAll(plan);
  if (plan.snapshot !== '') await flushDisks(plan.roots);
  await lookAgain(plan.parts);
  const { deadlineAt, beginStartAt } = tonightsDeadline(settings, night.windowEnd);
  night.ledger = await openLedger(settings.stateFolder, { run: plan.run, server: plan.server, archive: plan.archive, startedAt: night.line.startedAt,
    deadlineAt: deadlineAt.toISOString(), stopTimeoutSeconds: settings.stopTimeoutSeconds });
  const callOff = () => askToStop(`the deadline (everything runs again by ${deadlineAt.toTimeString().slice(0, 5)})`, 2);
  const alarm = setTimeout(callOff, beginStartAt.getTime() - Date.now());
  let trouble = null, wasAsked = false, copied = null;
  try {
    // From here services are down.
    await stopParts(plan.parts, night.ledger, settings.stateFolder);
    copied = await (plan.snapshot === '' ? copyCold(night, plan, manifest) : copyOnWrite(night, plan));
  } catch (error) {
    trouble = error;
    wasAsked = askedToStop() !== null;
    await night.cold?.callOff(); // seen dead, or killed and stuck, before anything is started: no archive is ever completed with files that are in use again
  }
  clearTimeout(alarm);
  night.down = await startEverything(night);
  // From here services run again. First an error of our own is told, then that we were asked to end, and only then what that broke.
  if (trouble && !wasAsked) throw trouble;
  goOn();
  if (trouble) throw trouble;
  const isDown = night.down.length > 0 ? new Problem(`not running: ${night.down.join(', ')}`,
    { hint: 'look at its own log, mend it, then run `node backup.js recover`; the guard keeps trying' }) : null;
  if (isDown && plan.snapshot !== '') throw isDown; // the guard goes on when this run has ended, and a snapshot takes long to read
  const patience = isDown ? setTimeout(() => askToStop(isDown.message, 3, isDown.facts.hint), PROOF_WHILE_DOWN_MS) : undefined;
  try {
    if (plan.snapshot !== '') copied = await copyTheSnapshot(night, plan, manifest, copied);
    await proveTheArchive(night, plan, await finishColdPass(night, plan), copied);
  } finally {
    clearTimeout(patience); // nobody who is told of it then is cut short
  }
  if (isDown) throw isDown; // with a good archive: just then one may be needed
}

/** When everything must run again, and when to begin with that. Throws Problem when the window is over, or leaves no time for a copy. */
function tonightsDeadline(settings, windowEndsAt) {
  const lastStart = lastGoodRun(settings.stateFolder)?.startSeconds ?? 0;
  const { deadlineAt, beginStartAt, isTooLate } = deadlines(settings.maxDowntimeMinutes, new Date(), windowEndsAt, lastStart);
  if (isTooLate) throw new Problem('the window is over, or all but over: nothing was stopped',
    { hint: 'begin earlier, or make the window longer; what was uploaded counts tomorrow' });
  return { deadlineAt, beginStartAt };
}

/** Start everything again, whatever has happened. Returns what is still down. Never throws: an unforeseen error is told, and counts as down. */
async function startEverything(night) {
  const { stateFolder } = night.loaded.settings, ledger = night.ledger;
  const began = performance.now();
  let down;
  try {
    down = await startParts(ledger, stateFolder);
  } catch (error) {
    sayError(error);
    down = ledger.parts.filter((part) => part.runningAt === null).map((part) => part.name);
  }
  const now = steadyNow().toISOString();
  const from = ledger.parts.map((part) => Date.parse(part.askedAt)), until = ledger.parts.map((part) => Date.parse(part.runningAt ?? now));
  night.line.downSeconds = ledger.parts.length > 0 ? (Math.max(...until) - Math.min(...from)) / 1000 : 0;
  night.line.startSeconds = (performance.now() - began) / 1000;
  night.line.parts = ledger.parts.map(({ name, stoppedAt, runningAt }, index) => ({ name, stoppedAt, runningAt, downSeconds: (until[index] - from[index]) / 1000 }));
  if (down.length === 0 && undecidedParts(ledger).length === 0) closeLedger(stateFolder);
  else keepLedgerIfPossible(stateFolder, ledger); // the guard goes on from it
  return down;
}

/** Read the record back out of the archive, compare, and only then write the archive that says it is good: its borg waits for the proof meanwhile. */
async function proveTheArchive(night, plan, cold, { first, second, manifestText }) {
  const { settings } = night.loaded, line = finishedLine(night, null);
  const { archiveId: id, originalBytes, deduplicatedBytes, files } = cold;
  const facts = { archive: plan.archive, id, originalBytes, deduplicatedBytes, files, downSeconds: line.downSeconds, outcome: line.outcome };
  const folder = writeHistory(settings.stateFolder, line);
  const ownCache = { env: { BORG_CACHE_DIR: path.join(folder, 'cache') } }; // the usual one is locked by the proof's borg
  const proof = beginPass(settings, proofCommand(settings, plan, facts),
    { cwd: folder, run: plan.run, title: 'proof', tested: true, expectedBytes: 0, seconds: 3600 });
  try {
    const readBack = () => readFromArchive(settings, plan.archive, 'record/manifest.json', ownCache, WITHOUT_LOCK);
    const back = await readBack().catch(() => proof.isWaiting.then(readBack)); // until the waiting borg has the lock, a prune may be in the way
    if (back !== manifestText) throw new Problem(`record/manifest.json came back from ${plan.archive} other than it was written`,
      { hint: 'the storage or the line damages data: run `node backup.js borg check --verify-data`' });
  } catch (error) {
    await proof.callOff();
    throw error;
  }
  proof.feed(`${JSON.stringify({ format: 1, ...facts, before: first, after: second }, null, 1)}\n`);
  await proof.end;
}

// ---- around the story: the history line, messages, the summary ----

function beginNight(loaded, script) {
  const startedAt = steadyNow().toISOString(), { stateFolder } = loaded.settings;
  openTranscript(path.join(stateFolder, 'log'), startedAt.slice(0, 19));
  const line = { kind: 'run', startedAt, endedAt: '', outcome: 'failed', exitCode: 2, server: serverName(loaded.settings), archive: '', downSeconds: 0, startSeconds: 0,
    parts: [], warm: null, cold: null, snapshot: '', warnings: [], error: '' };
  return { loaded, script, line, ledger: null, cold: null, down: [], guardPid: 0, windowEnd: mode.now ? null : windowEnd(loaded.settings.window, new Date()) };
}

function finishedLine(night, error) {
  const ofError = error instanceof Problem ? error.facts.exitCode ?? 2 : 2;
  const exitCode = night.down.length > 0 ? 3 : error ? ofError : warnings.length > 0 ? 1 : 0;
  const outcome = night.down.length > 0 ? 'down' : error ? 'failed' : warnings.length > 0 ? 'warning' : 'good';
  return { ...night.line, endedAt: steadyNow().toISOString(), outcome, exitCode, warnings: [...warnings], error: error instanceof Error ? error.message : '' };
}

/** Tell how it ended: error block, history, messages, summary. Returns the exit code. */
async function endNight(night, error) {
  const { settings } = night.loaded;
  await night.cold?.callOff();
  await dropCopies(settings.stateFolder);
  if (night.ledger?.parts.length === 0) closeLedger(settings.stateFolder);
  const services = night.ledger ? servicesNow(night.ledger, night.down) : 'nothing was stopped';
  if (error) sayError(error, services);
  const ended = finishedLine(night, error);
  await tell(settings, messageOf(ended, night.down, ended.outcome, services, settings.language));
  if (night.ledger && readLedgerQuietly(settings.stateFolder)) keepLedgerIfPossible(settings.stateFolder, Object.assign(night.ledger, { reported: night.down.length > 0 ? 'down' : 'failed' }));
  const line = finishedLine(night, error); // a messenger that failed is a warning, too
  try {
    remember(settings.stateFolder, line);
  } catch (trouble) {
    warn(`the history cannot be written: ${trouble.message}`);
  }
  if (night.guardPid && !readLedgerQuietly(settings.stateFolder)) dismissGuard(night.guardPid, settings.stateFolder);
  sayBlock(summary(line, services));
  if (mode.json) answer(JSON.stringify(line));
  return line.exitCode;
}

// =========================================================================================================
// ==== ABOUT ====
// Who this program is: its version, and whether somebody has changed it since it was built.
// It only reads, and changes nothing on the machine.

const VERSION = '0.1.0';

/**
 * Given the text of this script, returns 'as built', or 'edited' when anything but its settings differs from what the build wrote.
 * It tells forty servers with one program from forty with forty; it does not hold off somebody who edits the checksum too.
 */
function editedOrAsBuilt(text) {
  const sum = /^\/\/ Checksum of all but the settings: ([0-9a-f]{64})$/m.exec(text)?.[1] ?? 'none';
  const rest = text.replace(sum, '').replace(/^const settings = \{(?:.*\};?$|[^]*?^\};?$)/m, '');
  return createHash('sha256').update(rest).digest('hex') === sum ? 'as built' : 'edited';
}

// =========================================================================================================
// ==== SAY ====
// What people read: messages on a terminal or in cron's mail, errors with a hint, the transcript.
// May change: its own log file in the state folder. Never touches anything else.
// Everything that comes from outside (file names, what programs said) is made printable first.

/** How this call was asked to behave; filled in once from the command line. */
const mode = { dryRun: false, json: false, quiet: false, verbose: false, color: false, now: false };

/** An expected problem: told in words, without a stack. Everything else that is thrown is a bug in this file. */
class Problem extends Error {
  facts;
  constructor(message, facts = {}) {
    super(message);
    this.facts = facts;
  }
}

const transcript = { fd: null, file: '' };
const KEPT_TRANSCRIPTS = 60;
let liveLine = false; // the last thing on the terminal is a progress line without a line end

/** Start the transcript of a run in FOLDER; transcripts beyond the newest 60 are removed. Returns its path. */
function openTranscript(folder, name) {
  fs.mkdirSync(folder, { recursive: true, mode: 0o700 });
  const old = fs.readdirSync(folder).filter((file) => file.endsWith('.log')).sort();
  for (const file of old.slice(0, Math.max(0, old.length - KEPT_TRANSCRIPTS + 1))) fs.rmSync(path.join(folder, file), { force: true });
  transcript.file = path.join(folder, `${name}.log`);
  transcript.fd = fs.openSync(transcript.file, 'a', 0o600);
  return transcript.file;
}

/** Given nothing, returns where the transcript stands: its descriptor (null: none), path and length in bytes. */
function transcriptNow() {
  let bytes = 0;
  try {
    bytes = transcript.fd === null ? 0 : fs.fstatSync(transcript.fd).size;
  } catch { /* a transcript that cannot be read is no reason to stop */ }
  return { ...transcript, bytes };
}

/** The last `limit` bytes of the transcript written since byte `from`. */
function transcriptSince(from, limit) {
  const { fd, file, bytes } = transcriptNow();
  if (fd === null || bytes <= from) return '';
  try {
    const length = Math.min(bytes - from, limit);
    const buffer = Buffer.alloc(length);
    const reader = fs.openSync(file, 'r');
    fs.readSync(reader, buffer, 0, length, bytes - length);
    fs.closeSync(reader);
    return buffer.toString();
  } catch {
    return '';
  }
}

/** Text from outside, safe for a terminal: control characters become visible, so that a file name cannot move the cursor. */
function printable(text) {
  return text.replace(UNSEEN, asCode);
}

/** What a terminal obeys, or shows in another order or not at all; line ends and tabs are not among them. */
const UNSEEN = /[\x00-\x08\x0b-\x1f\x7f-\x9f\xad\u061c\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb]/g;
const asCode = (sign) => `\\u${sign.charCodeAt(0).toString(16).padStart(4, '0')}`;

/** Words of somebody else on one line: none of them can look like a line of ours. */
function oneLine(text) {
  return printable(text.replace(/\s*[\r\n]\s*/g, ' '));
}

/** A path or name on one line: as it is when plain, as a JSON string when it holds spaces, quotes or line ends. */
function named(name) {
  return /^[\w@%+=:,./*-]+$/.test(name) ? name : printable(JSON.stringify(name));
}

/**
 * A command as a person may paste it into any shell. A word with line ends or unseen signs is written as bash reads it
 * ($'...'): no line of it stands alone.
 */
function pasteable(argv) {
  const isPlain = (word) => /^[\w@%+=:,./-]+$/.test(word), needsBash = (word) => word.includes('\n') || printable(word) !== word;
  const forBash = (word) => `$'${word.replace(/[\\']/g, '\\$&').replaceAll('\n', '\\n').replace(UNSEEN, asCode)}'`;
  const inQuotes = (word) => `'${word.replaceAll("'", `'\\''`)}'`;
  return argv.map((word) => (isPlain(word) ? word : needsBash(word) ? forBash(word) : inQuotes(word))).join(' ');
}

function clock() {
  return new Date().toTimeString().slice(0, 8); // local time: what the reader's own clock shows
}

function write(line, stream, shown) {
  if (shown) {
    stream.write(`${liveLine && stream.isTTY ? '\r\x1b[K' : ''}${line}\n`);
    liveLine = false;
  }
  try {
    if (transcript.fd !== null) fs.writeSync(transcript.fd, `${line}\n`);
  } catch { /* a full disk must not keep services down: the run goes on without its transcript */ }
}

const normal = () => (mode.json ? process.stderr : process.stdout); // with --json, stdout is one JSON document

/** Tell what happens: a line with the time. Not shown with --quiet, always in the transcript. */
function say(text) {
  write(`${clock()} ${printable(text).replaceAll('\n', '\n         ')}`, normal(), !mode.quiet); // who names things may write what looks like a line of ours: it is no line
}

/** The same without a time, for blocks that are read as a whole. */
function sayBlock(text) {
  write(printable(text), normal(), !mode.quiet);
}

/** Details for --verbose; always in the transcript. */
function sayMore(text) {
  write(`${clock()}   ${printable(text)}`, normal(), mode.verbose && !mode.quiet);
}

/** The answer of a command that was asked a question: shown even with --quiet. */
function answer(text) {
  if (liveLine) normal().write('\r\x1b[K');
  liveLine = false;
  process.stdout.write(`${printable(text)}\n`);
}

const warnings = [];

/** Something needs a person's attention: shown even with --quiet, ends up in the summary and makes exit code 1. */
function warn(words) {
  const text = oneLine(words); // some are a database's, or a storage's
  if (warnings.includes(text)) return;
  warnings.push(text);
  write(`${clock()} ${colored('33', 'warning:')} ${text}`, process.stderr, true);
}

function colored(code, text) {
  return mode.color ? `\x1b[${code}m${text}\x1b[0m` : text;
}

/** One live line that overwrites itself on a terminal; nothing elsewhere (plain lines are the caller's). */
function sayLive(text) {
  const stream = normal();
  if (!stream.isTTY || mode.quiet) return false;
  stream.write(`\r\x1b[K${printable(text).slice(0, (stream.columns || 80) - 1)}`);
  liveLine = true;
  return true;
}

/** An error as one block: what, the command, what it said, a hint, and (after the first stop) the state of the machine. */
function sayError(error, services = '') {
  const lines = [], { code = '', message } = (error ?? {});
  if (error instanceof Problem) {
    lines.push(`backup: error: ${error.message}`);
    if (error.facts.ran) lines.push(`  ran:  ${pasteable(error.facts.ran)}`);
    if (error.facts.said) lines.push(`  said: ${lastLines(error.facts.said, 5).replaceAll('\n', '\n        ')}`);
    if (error.facts.hint) lines.push(`  hint: ${error.facts.hint}`);
  } else if (/^(ENOSPC|EDQUOT|EROFS|EIO)$/.test(code)) { // no bug: a disk
    lines.push(`backup: error: ${message}`, '  hint: a disk here is full or broken, most likely that of `stateFolder`: look at `df -h` and `dmesg`');
  } else if (/^(EACCES|EPERM)$/.test(code) && process.getuid?.() !== 0) {
    lines.push(`backup: error: ${message}`, '  hint: this user may not do that; run it as root');
  } else {
    lines.push(`backup: error: this is a bug in backup.js\n${error instanceof Error ? error.stack : String(error)}`);
  }
  if (services) lines.push(`  services: ${services}`);
  write(printable(lines.join('\n')).replace('error:', colored('31', 'error:')), process.stderr, true); // colours last: printable() would show them as codes
}

/** The last lines of what a program said, without empty ones. */
function lastLines(text, count) {
  return text.split(/[\r\n]+/).filter((line) => line.trim() !== '').slice(-count).join('\n');
}

/** 1234567 bytes as '1.2 MB'; powers of 1000, as borg counts. */
function size(bytes) {
  const units = ['B', 'kB', 'MB', 'GB', 'TB', 'PB'];
  let step = 0;
  while (bytes >= 999.5 && step < units.length - 1) {
    bytes /= 1000;
    step++;
  }
  return `${step === 0 || bytes >= 100 ? Math.round(bytes) : bytes.toFixed(1)} ${units[step]}`;
}

/** Seconds as '1.3 s', '4 min 10 s', '2 h 5 min'. */
function span(seconds) {
  if (seconds < 60) return `${seconds.toFixed(seconds < 10 ? 1 : 0)} s`;
  const whole = Math.round(seconds);
  if (whole < 3600) return `${Math.floor(whole / 60)} min ${whole % 60} s`;
  return `${Math.floor(whole / 3600)} h ${Math.floor((whole % 3600) / 60)} min`;
}

const TOLD_NAMES = 20;

/** Files by name, the first of them: there may be a hundred thousand, and a warning is kept for ever. */
function someNames(files, all = files.length) {
  const told = files.slice(0, TOLD_NAMES);
  return `${told.map(named).join(', ')}${all > told.length ? ` and ${all - told.length} more` : ''}`;
}

/** A count with its word: '1 part', '3 archives'. */
function count(number, word) {
  return `${number} ${word}${number === 1 ? '' : 's'}`;
}

// =========================================================================================================
// ==== SHELL ====
// Running other programs through zx, safely under root's cron.
// No standard input (zx would leave a socket there, and bash reads ~/.bashrc when it finds one), an own process group, bounded
// memory, an own time limit, C locale. Two verbs: look() never changes anything on the machine; change() does, is always
// printed, and never happens in a dry run. Signals, and the hour by which everything must run again, end the programs that
// may be ended, never this script itself.

/** A list that forgets its oldest pieces beyond a limit: however much a program prints, our memory stays small. */
class Tail extends Array {
  bytes = 0;
  limit = 64 * 1024;
  push(piece) {
    this.bytes += piece.length;
    while (this.length > 0 && this.bytes > this.limit) this.bytes -= this.shift().length;
    return super.push(piece);
  }
}

function tail(limit) {
  const list = new Tail();
  list.limit = limit;
  return list;
}

const STEP_OF_LADDER_MS = 3_000;
const LONGEST_LINE = 64 * 1024;
const enders = new Set(); // one for each running program that may be ended
let stopRequest = null; // somebody asked us to stop: a signal, the deadline
let shielded = false; // while things are started again nothing is given up, whatever anybody asks

/** Ask the night to end early: programs that may be ended are, then everything is started again. The first one who asks counts. */
function askToStop(why, exitCode, hint) {
  const startsNothing = exitCode > 128 && hint;
  if (stopRequest) return say(`${why}: ${startsNothing ? 'what is under way is being ended' : 'everything is being started again'}, please wait`);
  stopRequest = { why, exitCode, hint };
  if (shielded) return say(`${why}: everything is being started again first, please wait`);
  say(`${why}: ending what is under way${startsNothing ? '' : '; what was stopped, if anything, is started again'}`);
  for (const end of enders) end();
}

/** Who asked to stop, if anybody: { why, exitCode }. */
function askedToStop() {
  return stopRequest;
}

/** Throws when somebody asked to stop and services are not being started just now. Called between steps and in every wait. */
function goOn() {
  if (stopRequest && !shielded) throw new Problem(stopRequest.why, { exitCode: stopRequest.exitCode, hint: stopRequest.hint });
}

/** From here on nothing is given up any more: services are coming back. */
function shield(on) {
  shielded = on;
}

/** A signal is a request, not the end: whatever was stopped is started first. hint: of a command that stops nothing, what is left behind. */
function listenToSignals(hint) {
  for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP']) {
    process.on(signal, () => askToStop(hint ? 'called off' : `ended by ${signal}`, 128 + os.constants.signals[signal], hint));
  }
}

/** Now, by a clock that nobody sets while this process runs: so that times of one run can be compared. */
const steadyNow = () => new Date(performance.timeOrigin + performance.now());

/**
 * Wait in short steps until `condition` says yes, and look at once when `news` comes. Returns false when `seconds` are over.
 * Throws when asked to stop.
 */
async function waitUntil(seconds, condition, stepMs = 100, news = null) {
  const end = performance.now() + seconds * 1000; // no clock: that one may be set meanwhile
  for (;;) {
    if (await condition()) return true;
    goOn();
    if (!(performance.now() < end)) return false;
    const step = sleep(Math.min(stepMs, Math.max(1, end - performance.now())));
    if (news === null) await step;
    else if (await Promise.race([step.then(() => false), news.then(() => true)])) news = null;
    stepMs = Math.min(1000, stepMs * 1.2);
  }
}

/** Two things at once. Waits for both, whatever comes of them. Throws what the first one threw, else what the second one did. */
async function sideBySide(one, other) {
  await Promise.allSettled([one, other]);
  return [await one, await other];
}

/** Do something for each, four at a time. Returns what came of them, in the same order. */
async function fourAtATime(all, work) {
  const results = [];
  for (let from = 0; from < all.length; from += 4) results.push(...await Promise.all(all.slice(from, from + 4).map(work)));
  return results;
}

/** Where programs are looked for: cron gives root only /usr/bin:/bin; Docker, sshd and PostgreSQL's wrappers may be elsewhere. */
const programPath = () => `${process.env.PATH ?? ''}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin`.split(':').filter((folder) => folder.startsWith('/')).join(':'); // none that depends on where we are

// What changes how other programs load or speak is left out. A program of somebody else's gets no more than it needs: its owner can read its environment, and ours may hold secrets.
const UNWANTED = /^(BORG_|COLD_BACKUP_|ZX_|PG|LC_|LANGUAGE|LD_|GCONV_PATH|NODE_(OPTIONS|PATH)$|BASH|ENV$|SHELLOPTS|CDPATH|IFS$|PYTHON|PERL|SYSTEMD_|POSIXLY_CORRECT|CREDENTIALS_DIRECTORY)/;
const NEEDED_BY_OTHERS = /^(HOME|LANG|TZ|TERM|TMPDIR|USER|LOGNAME|SHELL)$/;

function environment(argv, extra) {
  const isOthers = argv.some((word) => word === 'runuser' || word === 'pg_ctlcluster');
  const own = Object.entries(process.env).filter(([name, value]) => value !== undefined && !UNWANTED.test(name) && (!isOthers || NEEDED_BY_OTHERS.test(name)));
  return { ...Object.fromEntries(own), PATH: programPath(), LC_ALL: 'C', ...extra };
}

/** Send a signal to a program and everything it started. */
function signalGroup(group, signal) {
  try {
    process.kill(-group, signal);
  } catch { /* it has ended already */ }
}

/** Run one program to its end. Never throws for what the program does; callers judge `code`. */
async function runProgram(argv, options) {
  if (!options.unlimited) goOn();
  const ends = transcriptNow();
  const toFile = options.toTranscript ? (ends.fd ?? 'ignore') : 'pipe';
  const stdout = tail(options.keepBytes ?? 16 * 1024 * 1024), stderr = tail(64 * 1024);
  const child = $({
    stdio: [options.onStart ? 'pipe' : options.stdin ?? 'ignore', options.stdout ?? toFile, toFile],
    detached: true, // an own process group: Ctrl-C on the terminal reaches us, not docker or systemctl
    nothrow: true,
    quiet: true,
    cwd: options.cwd,
    env: environment(argv, { ...options.env, ...(options.onStart ? { SHLVL: '1' } : {}) }), // without it, bash with a pipe as its input reads ~/.bashrc
    store: { stdout, stderr, stdall: tail(0) },
  })`exec ${argv}`;
  let trouble = null; // of who listens: thrown where somebody can catch it
  const heard = (listener) => (line) => {
    try {
      if (trouble === null) listener(line);
    } catch (error) {
      trouble = error;
    }
  };
  if (options.onLine && child.stdout) eachLine(child.stdout, heard(options.onLine));
  if (options.onErrorLine && child.stderr) eachLine(child.stderr, heard(options.onErrorLine));
  let timedOut = false;
  const timers = [];
  const end = () => (options.ladder ?? ['SIGTERM', 'SIGKILL']).forEach((signal, step) => {
    timers.push(setTimeout(() => child.pid && signalGroup(child.pid, signal), step * STEP_OF_LADDER_MS));
  });
  options.onStart?.({ end, feed: (text) => child.child?.stdin?.on('error', () => {}).end(text) }); // it may have ended before it has read all
  if (options.seconds && !options.unlimited) timers.push(setTimeout(() => { timedOut = true; end(); }, options.seconds * 1000));
  if (!options.unlimited && !shielded) enders.add(end);
  try {
    const result = await Promise.race([child, exitOf(child.child)]);
    if (trouble !== null) throw trouble;
    const code = result.signal ? 128 + os.constants.signals[result.signal] : result.exitCode ?? 127;
    const said = options.toTranscript ? transcriptSince(ends.bytes, 4096) : Buffer.concat(stderr).toString();
    return { argv, code, out: Buffer.concat(stdout).toString(), said, timedOut };
  } finally {
    enders.delete(end);
    timers.forEach(clearTimeout);
  }
}

// A daemon that the program left behind may keep our pipe open for ever: a few seconds after the program's own end we have heard enough.
function exitOf(child) {
  return new Promise((resolve) => {
    child?.once('exit', (exitCode, signal) => setTimeout(() => resolve({ exitCode, signal }), STEP_OF_LADDER_MS).unref());
  });
}

function eachLine(stream, onLine) {
  let rest = '';
  stream.on('data', (piece) => {
    const lines = (rest + piece.toString()).split(/[\r\n]+/);
    rest = lines.pop().slice(-LONGEST_LINE);
    for (const line of lines) onLine(line);
  });
  stream.on('end', () => rest && onLine(rest));
}

/** Look at something: a command that never changes anything. Returns how it ended, never throws for it. */
async function look(argv, options = {}) {
  const done = await runProgram(argv, { seconds: 60, ...options });
  sayMore(`looked: ${pasteable(argv).slice(0, 400)}${done.code === 0 ? '' : ` (exit code ${done.code}: ${lastLines(done.said, 1)})`}`);
  return done;
}

/** Like look(), but the answer is needed. Given what it is for, returns stdout. Throws Problem with `hint` when it fails. */
async function lookFor(what, argv, hint = '', options = {}) {
  const done = await look(argv, options);
  if (done.code !== 0) throw failure(what, done, hint);
  return done.out;
}

/**
 * Change something: printed, then done. Returns how it ended. A dry run never comes here; if one does, it is a fault of
 * ours, and nothing is changed.
 */
async function change(argv, options = {}) {
  if (mode.dryRun) throw new Error(`a dry run was about to change something: ${pasteable(argv)}`);
  say(`  $ ${pasteable(argv)}`);
  return runProgram(argv, options);
}

/** A Problem out of a program that failed: what could not be done, the command, its last words. */
function failure(what, done, hint = '') {
  const how = done.timedOut ? 'no end within its time' : done.code === 127 ? 'not installed?' : `exit code ${done.code}`;
  return new Problem(`${what} (${how})`, { ran: done.argv, said: done.said || done.out, ...(hint ? { hint } : {}) });
}

/** Whether this host is run by systemd (sd_booted(3)). */
function hasSystemd() {
  return fs.existsSync('/run/systemd/system');
}

/** Under systemd, a command that leaves a process behind gets a scope of its own: what a timer's unit started is killed when the unit ends. */
function outlivingUs(argv) {
  return hasSystemd() && process.getuid?.() === 0 ? ['systemd-run', '--scope', '--quiet', '--collect', '--', ...argv] : argv;
}

// =========================================================================================================
// ==== FILES ====
// Files and folders, as root may read and write them where others can lay links and pipes.
// Nothing here follows a link, waits for a pipe, or leaves half a file behind. Changes the files that it is given, nothing else.

/** Whether a path is the folder or lies below it. */
function isBelow(file, folder) {
  return file === folder || file.startsWith(folder === '/' ? '/' : `${folder}/`);
}

/** Given paths, returns those that lie below no other one, each once: borg is not to be given what it finds on its way. */
const outermost = (places) => [...new Set(places)].filter((one, _, all) => !all.some((other) => other !== one && isBelow(one, other)));

/**
 * What stands in a file that somebody else could have laid there: no link, no pipe (which would keep us for ever), no device, not endless.
 * Given the path and the most bytes it may have. Throws as fs does, and for anything but an ordinary file.
 */
function readPlainFile(file, mostBytes = 1 << 20) {
  const refuseOdd = (facts) => { if (!facts.isFile() || facts.size > mostBytes) throw new Error(`${file} is no ordinary file`); };
  refuseOdd(fs.lstatSync(file)); // to open a device may do something
  const fd = fs.openSync(file, fs.constants.O_RDONLY | fs.constants.O_NOFOLLOW | fs.constants.O_NONBLOCK);
  try {
    refuseOdd(fs.fstatSync(fd));
    return fs.readFileSync(fd);
  } finally {
    fs.closeSync(fd);
  }
}

/** The same as text, '' when it cannot be had. */
function plainText(file, mostBytes) {
  try {
    return readPlainFile(file, mostBytes).toString();
  } catch {
    return '';
  }
}

/**
 * Given a folder that we have just made, empty and ours alone, returns a path by which it stays the same folder as long as this process lives: who owns the
 * folder above could rename it and lay a link in its place, for root to write through. Throws Problem when that has happened already.
 */
function heldFolder(folder) {
  try {
    const fd = fs.openSync(folder, fs.constants.O_RDONLY | fs.constants.O_DIRECTORY | fs.constants.O_NOFOLLOW), held = `/proc/${process.pid}/fd/${fd}`; // open until we end
    const { uid, mode } = fs.fstatSync(fd);
    if (uid === process.getuid?.() && (mode & 0o022) === 0 && fs.readdirSync(held).length === 0) return held;
  } catch { /* a link, or gone */ }
  throw new Problem(`${named(folder)} is not the folder that was made just now: somebody else can write there`,
    { hint: 'restore into a folder that only root can change' });
}

/** Given a path that is there, returns the paths by which it is saved, over no link: what it leads to, and before that the link, when it is one itself. */
function withItsLink(file) {
  return [...new Set([path.join(fs.realpathSync(path.dirname(file)), path.basename(file)), fs.realpathSync(file)])];
}

/** Bytes that are free for us on the disk of a folder. */
function freeBytes(folder) {
  if (!fs.statfsSync) return Infinity; // before Node 18.15
  const { bavail, bsize } = fs.statfsSync(folder);
  return bavail * bsize;
}

/** Write a file so that it is whole or absent, whatever happens, a power cut included. Given mode 0600 unless told. */
function writeDurably(file, text, fileMode = 0o600) {
  const draft = `${file}.new`;
  fs.rmSync(draft, { force: true });
  const fd = fs.openSync(draft, 'wx', fileMode); // wx: never through a link that somebody else laid there
  try {
    fs.writeFileSync(fd, text);
    fs.fsyncSync(fd);
  } finally {
    fs.closeSync(fd);
  }
  fs.renameSync(draft, file);
  const folder = fs.openSync(path.dirname(file), 'r');
  fs.fsyncSync(folder);
  fs.closeSync(folder);
}

/** A folder of our own that goes when we do. */
function temporaryFolder() {
  const folder = fs.mkdtempSync(path.join(os.tmpdir(), 'cold-backup-'));
  process.on('exit', () => fs.rmSync(folder, { recursive: true, force: true }));
  return folder;
}

// =========================================================================================================
// ==== FORM ====
// What comes from elsewhere must have the form that is read out of it. It is a program's JSON, a record in an archive, a file of ours that a
// bad disk has been at: when it is otherwise, nothing of it is used, and that is a problem told in words, never a crash in the middle of something. Only judges.

const isText = (value) => typeof value === 'string' && !value.includes('\0');
const KINDS_OF_VALUE = {
  text: isText,
  'text or null': (value) => value == null || isText(value),
  path: (value) => isText(value) && value.startsWith('/') && path.resolve(value) === value,
  time: (value) => isText(value) && !Number.isNaN(Date.parse(value)),
  number: (value) => Number.isFinite(value),
  id: (value) => Number.isInteger(value) && value >= 0 && value < 2 ** 32,
  server: (value) => isText(value) && /^[A-Za-z0-9][\w.-]*$/.test(value),
  version: (value) => isText(value) && /^\d+(\.\d+)?$/.test(value),
  hex: (value) => isText(value) && /^[0-9a-f]*$/.test(value),
  bits: (value) => isText(value) && /^[0-7]{3,5}$/.test(value),
  'yes or no': (value) => typeof value === 'boolean',
  anything: () => true,
};

/**
 * Given a value and the form it should have, returns the place of the first thing that is otherwise ('plan.roots[0].path',
 * or `at` itself); '' when all is right.
 */
function misfit(value, form, at = 'it') {
  if (typeof form === 'string') return KINDS_OF_VALUE[form](value) ? '' : at;
  const isList = Array.isArray(value);
  if (isList !== Array.isArray(form) || typeof value !== 'object' || value === null) return at;
  const places = isList ? value.map((one, index) => [one, (form)[0], `${at}[${index}]`])
    : Object.entries(form).flatMap(([key, one]) => {
      if (key === '*') return Object.entries(value).map(([name, own]) => [own, one, `${at}.${name}`]);
      const name = key.replace(/\?$/, '');
      return name !== key && value[name] == null ? [] : [[value[name], one, at === 'it' ? name : `${at}.${name}`]];
    });
  for (const place of places) {
    const found = misfit(...place);
    if (found !== '') return found;
  }
  return '';
}

/**
 * What a program answered as JSON. Given what was asked, in words, how the program ended, and the form, returns the answer.
 * Throws Problem when it is not understood.
 */
function answerOf(what, done, form, text = done.out) {
  let answer, odd = 'it is no JSON';
  try {
    answer = JSON.parse(text);
    odd = misfit(answer, form);
  } catch { /* cut off, or not for us */ }
  if (odd) throw failure(`${what}: the answer is not understood (${odd})`, done);
  return answer;
}

// =========================================================================================================
// ==== PROCESSES ====
// Who runs on this machine, read from /proc. No exit code of a stop command is believed: processes are.
// Never changes anything but for endRun(), which ends the borg and ssh of one run of ours and nothing else.

/** The start time of a process in clock ticks since boot, or '' when it is gone or a zombie. With the pid it names a process for good. */
function startOfProcess(pid) {
  try {
    const fields = fs.readFileSync(`/proc/${pid}/stat`, 'utf8').replace(/^.*\) /s, '').split(' '); // the name may hold anything
    return fields[0] === 'Z' || fields[0] === 'X' ? '' : fields[19];
  } catch {
    return '';
  }
}

/** A file in the data directory of every copy that a drill or the judge runs, a label on its container: no run takes those for the server's own. */
const SANDBOX_MARK = 'cold-backup-sandbox';
/** Who they belong to when we are root: nobody's number, on no machine. Root of an unprivileged container has only some numbers (user_namespaces(7)): there the highest of those. */
const OWN_USER = Math.min(1_999_000_000, ...['uid_map', 'gid_map'].map((name) => Math.max(0, ...[...procFile(process.pid, name).matchAll(/^ *(\d+) +\d+ +(\d+)$/gm)].map(([, first, count]) => Number(first) + Number(count) - 1))));
const RUN_MARK = 'COLD_BACKUP_RUN'; // in the environment of every borg we start, and so of its ssh

/** Every process that can be seen: pid, program name, and folder of the program. */
function processes() {
  const found = [];
  for (const entry of fs.readdirSync('/proc')) {
    if (!/^\d+$/.test(entry)) continue;
    try {
      const program = fs.readlinkSync(`/proc/${entry}/exe`).replace(/ \(deleted\)$/, ''); // replaced by an upgrade
      found.push({ pid: Number(entry), program: path.basename(program), folder: path.dirname(program) });
    } catch { /* a kernel thread, or gone by now */ }
  }
  return found;
}

/** 'device:inode' of a folder: the same folder has the same one inside and outside a container. '' when it is not there. */
function deviceAndInode(folder) {
  try {
    const { dev, ino } = fs.statSync(folder, { bigint: true });
    return `${dev}:${ino}`;
  } catch {
    return '';
  }
}

/**
 * The working directory of a process as device:inode. One on a network file system that has died keeps whoever asks for ever, with no time limit and
 * no signal: so only those are asked that can matter, never somebody's shell.
 */
const workingFolder = (pid) => deviceAndInode(`/proc/${pid}/cwd`);

/** The text of a file below /proc, or '' when the process is gone. */
function procFile(pid, name) {
  try {
    return fs.readFileSync(`/proc/${pid}/${name}`, 'latin1');
  } catch {
    return '';
  }
}

/** The uid that a file or folder belongs to, -1 when it is gone or not for us to see, as what another user has mounted (FUSE). */
function ownerOfFile(file) {
  try {
    return fs.statSync(file).uid;
  } catch {
    return -1;
  }
}

/** The uid of a process, -1 when it is gone. */
const ownerOf = (pid) => ownerOfFile(`/proc/${pid}`);

/** The PID namespace of a process, '' when it cannot be known: all processes of a container share one. */
function pidNamespace(pid) {
  try {
    return fs.readlinkSync(`/proc/${pid}/ns/pid`);
  } catch {
    return '';
  }
}

/** The environment that marks a program as belonging to a run. */
function markOfRun(run) {
  return { [RUN_MARK]: run };
}

function processesOfRun(run) {
  const own = process.getuid?.();
  return processes().map(({ pid }) => pid).filter((pid) => {
    if (pid === process.pid || !procFile(pid, 'environ').split('\0').includes(`${RUN_MARK}=${run}`)) return false;
    return startOfProcess(pid) !== '' && ownerOf(pid) === own; // nobody else's, whatever it claims
  });
}

/**
 * End every borg (and its ssh) that a run left behind, and see it dead. Given the run's id and the signals, each of which gets three
 * seconds; KILL is always the last. (INT lets borg keep a checkpoint.) Returns whether none is left. Services come back only after this, so that no
 * archive is ever completed with files that are in use again.
 */
async function endRun(run, signals = ['SIGTERM', 'SIGKILL']) {
  for (const signal of [...signals, 'SIGKILL']) {
    for (const pid of processesOfRun(run)) {
      try {
        process.kill(pid, signal);
      } catch { /* it has just ended */ }
    }
    for (let waited = 0; waited < 3000; waited += 50) {
      if (processesOfRun(run).length === 0) return true;
      await sleep(50);
    }
  }
  return processesOfRun(run).length === 0;
}

// =========================================================================================================
// ==== HISTORY ====
// What has happened on this server: history.jsonl in the state folder, one JSON object a run.
// Changes that one file, and only adds to it. A line that cannot be read (a power cut while it was written) is passed over,
// never repaired.

const historyFile = (stateFolder) => path.join(stateFolder, 'history.jsonl');

const PASS_FORM = { files: 'number', originalBytes: 'number', compressedBytes: 'number', deduplicatedBytes: 'number', seconds: 'number' };
const LINE_FORM = {
  'kind?': 'text', startedAt: 'time', endedAt: 'time', outcome: 'text', exitCode: 'number', archive: 'text', downSeconds: 'number', 'startSeconds?': 'number',
  'warnings?': ['text'], 'error?': 'text', 'warm?': PASS_FORM, 'cold?': PASS_FORM,
  'certificate?': { archive: 'text', proven: 'yes or no', madeAt: 'time', restoreSeconds: 'number', checks: [{ check: 'text' }] },
};

/** Every line of the history, oldest first; [] when there is none. */
function readHistory(stateFolder) {
  let text = '';
  try {
    text = fs.readFileSync(historyFile(stateFolder), 'utf8');
  } catch {
    return [];
  }
  return text.split('\n').flatMap((line) => {
    try {
      const one = JSON.parse(line);
      return misfit(one, LINE_FORM) === '' ? [{ kind: 'run', ...one }] : [];
    } catch {
      return [];
    }
  });
}

/** Add a line to the history, on disk when this returns. Throws when the disk is full: the caller warns. */
function remember(stateFolder, line) {
  const file = historyFile(stateFolder);
  const fd = fs.openSync(file, 'a+', 0o600);
  try {
    const { size: length } = fs.fstatSync(fd);
    const last = Buffer.alloc(1);
    const torn = length > 0 && fs.readSync(fd, last, 0, 1, length - 1) === 1 && last[0] !== 10; // a power cut in mid line
    fs.writeFileSync(fd, `${torn ? '\n' : ''}${JSON.stringify(line)}\n`); // all of it, or it throws
    fs.fsyncSync(fd);
  } finally {
    fs.closeSync(fd);
  }
}

/**
 * Given the history, returns the trend, or null when no night was good yet: what the last good nights were like, at most seven. Medians, their
 * range, and how much more a night the whole becomes; times in seconds, the rest in bytes.
 */
function trendOf(history) {
  const nights = history.filter((line) => line.kind === 'run' && /^(good|warning)$/.test(line.outcome) && line.cold).slice(-7);
  if (nights.length === 0) return null;
  const median = (numbers) => [...numbers].sort((one, other) => one - other)[Math.floor(numbers.length / 2)];
  const down = nights.map((line) => line.downSeconds), whole = nights.map((line) => line.cold.originalBytes), last = whole[whole.length - 1];
  return {
    nights: nights.length, downSeconds: median(down), leastDownSeconds: Math.min(...down), mostDownSeconds: Math.max(...down),
    newBytes: median(nights.map((line) => (line.warm?.deduplicatedBytes ?? 0) + line.cold.deduplicatedBytes)),
    originalBytes: last, growthBytes: Math.round((last - whole[0]) / Math.max(1, nights.length - 1)),
  };
}

/** The last run with a cold pass that counted, if there is one: the measure for tonight. */
function lastGoodRun(stateFolder) {
  return readHistory(stateFolder).filter((line) => line.kind === 'run' && /^(good|warning)$/.test(line.outcome)).pop();
}

// =========================================================================================================
// ==== CERTIFICATE ====
// The certificate: what a drill found, in the history, in the archives that follow, and in words. `status` and `doctor` ask for the last one.
// Only reckons and words; the drill writes it into the history.

/** The last drill in the history, or null. */
function lastDrill(history) {
  return history.filter((line) => line.kind === 'drill' && line.certificate).pop()?.certificate ?? null;
}

/**
 * What is to be said of the drills of a server. Given its state folder and after how many days one is too old (0 = no drills here), returns the last
 * certificate and a warning, '' when all is well: a new server has as many days from its first good backup.
 */
function drillFacts(stateFolder, maxAgeDays, now = Date.now()) {
  const history = readHistory(stateFolder), last = lastDrill(history);
  const daysSince = (time) => (now - Date.parse(time)) / 86_400_000, ageDays = last ? daysSince(last.madeAt) : null;
  const first = history.find((line) => line.kind === 'run' && line.exitCode < 2);
  const saying = (warning) => ({ last, ageDays, warning });
  if (maxAgeDays === 0) return saying('');
  if (last === null) return saying(first && daysSince(first.endedAt) > maxAgeDays ? `no drill yet, and the first backup is more than ${maxAgeDays} days old` : '');
  if (!last.proven) return saying(`the last drill did not prove ${last.archive}: ${failedChecks(last)}`);
  if (ageDays < -1 / 24) return saying(`the last drill was on ${last.madeAt}, which is still to come: a clock was wrong`);
  return saying(ageDays > maxAgeDays ? `the last drill is ${span(ageDays * 86_400)} old` : '');
}

const failedChecks = ({ checks }) => checks.filter((one) => one.ok === false).map((one) => one.check).join(', ');

/** The check of all that is no database. */
const READ_BACK = 'everything read back';

/** The certificate as a person reads it. */
function certificateText(one) {
  const line = ({ check, ok, seconds, detail }) => `  ${ok === null ? '-   ' : ok ? 'ok  ' : 'FAIL'} ${check.padEnd(26)} ${span(seconds).padStart(8)}  ${detail.replaceAll('\n', `\n${' '.repeat(43)}`)}`;
  const clusters = [...new Set(one.checks.map(({ cluster }) => cluster))], leftOut = one.checks.some(({ check, ok }) => check === READ_BACK && ok === null);
  const works = leftOut ? ': its databases came back and work; folders and volumes were not read back' : ' came back and works';
  return [
    '',
    `${one.proven ? 'PROVEN' : 'NOT PROVEN'}: ${one.archive}${one.proven ? works : `: ${failedChecks(one) || 'it could not be rehearsed'}`}`,
    `  rehearsed ${one.madeAt.slice(0, 19)}Z on ${one.where}${one.full ? ', in full' : ''}`,
    ...clusters.flatMap((name) => [...(name ? [`  postgres ${named(name)}`] : []), ...one.checks.filter(({ cluster }) => cluster === name).map(line)]),
    `  extracted ${size(one.extractedBytes)} in ${span(one.extractSeconds)}; a restore of the whole archive would take about ${span(one.restoreSeconds)} here; the drill took ${span(one.drillSeconds)}`,
  ].join('\n');
}

// =========================================================================================================
// ==== RULES ====
// What each setting may be, and what it is when it is not written: TABLE, one line a setting. Only judges; reads nothing, changes nothing.

const isGroup = (value) => typeof value === 'object' && value !== null && !Array.isArray(value);
const isLine = (value) => typeof value === 'string' && value.trim() !== '' && !/[\0\r\n]/.test(value);

function shown(value) {
  if (Array.isArray(value)) return 'a list';
  return isGroup(value) ? 'a group in { }' : typeof value === 'function' ? 'a function' : inspect(value, { maxStringLength: 60 });
}

const must = (be, isRight, known = []) => (value, at, wrong) =>
  isRight(value) || wrong(at, `must be ${be}, not ${shown(value)}${isLine(value) ? meant(value, known) : ''}`);
const like = (pattern, be) => must(be, (value) => isLine(value) && pattern.test(value));
const oneOf = (...known) => must(known.map((one) => `'${one}'`).join(' or '), (value) => known.some((one) => one === value), known);
const aLanguage = oneOf('en', 'es');
const aNumber = (least, most, kind) => must(`a ${kind === 'whole' ? 'whole ' : ''}number from ${least} to ${most}, without quotes`,
  (value) => typeof value === 'number' && value >= least && value <= most && (kind === 'any' || Number.isInteger(value)));
const yesOrNo = must('true or false, without quotes', (value) => typeof value === 'boolean');
const aText = must('text in quotes, on one line and not empty', isLine);
const aWord = must('text in quotes, and not empty', (value) => typeof value === 'string' && value !== '' && !value.includes('\0'));

const each = (rule) => (value, at, wrong) => (Array.isArray(value)
  ? Array.from(value, (one, index) => rule(one, `${at}[${index}]`, wrong)) // unlike forEach, it sees the hole in ['a', , 'b'], too
  : wrong(at, `must be a list in [ ], not ${shown(value)}`));

/** A list in which nothing stands twice, in lists inside it neither; '/var/www/' is '/var/www', and 'service x.service' is 'service x'. */
const aListOf = (rule) => (value, at, wrong) => {
  each(rule)(value, at, wrong);
  const seen = new Set(), noteEach = each((one, place) => {
    const name = isGroup(one) ? one.name : isLine(one) ? one.replace(/(?<=.)\/+$|(?<=^service .*)\.service$/, '') : undefined;
    if (Array.isArray(one)) noteEach(one, place, wrong);
    else if (name !== undefined && seen.has(name)) wrong(place, `${shown(name)} is in the list already`);
    seen.add(name);
  });
  if (Array.isArray(value)) noteEach(value, at, wrong);
};

const aCommand = (value, at, wrong) => {
  if (!Array.isArray(value)) return wrong(at, `must be a list of words, like ${isLine(value) ? inspect(value.split(/\s+/)) : "['vpn', 'up']"}, not ${shown(value)}`);
  each(aWord)(value, at, wrong);
  if (isLine(value[0]) && value[0].startsWith('-')) wrong(at, 'must begin with a program, not with an option');
};

/** A group that has exactly these keys. */
const aGroup = (rules) => (value, at, wrong) => {
  if (!isGroup(value)) return wrong(at, `must be a group in { } with ${Object.keys(rules).join(', ')}, not ${shown(value)}`);
  refuseUnknown(value, at, Object.keys(rules), wrong);
  for (const [key, rule] of Object.entries(rules)) {
    if (value[key] === undefined) wrong(`${at}.${key}`, 'is missing');
    else rule(value[key], `${at}.${key}`, wrong);
  }
};

function refuseUnknown(group, at, known, wrong) {
  for (const key of Object.keys(group)) {
    if (!known.includes(key)) wrong(at ? `${at}.${key}` : key, `is not a known setting${meant(key, known)}`);
  }
}

const aPath = like(/^\/(?!.*(\/\/|\/\.\.?(\/|$)))/, "a whole path like '/var/www', without // or .. in it");
const aName = like(/^(?!-)\S+$/, 'a name without blanks that does not start with -');
const aPattern = like(/^(?!-)/, 'a borg pattern that does not start with -');
const aServer = like(/^(?!proven-)[A-Za-z0-9][\w.-]*$/, "of letters, digits, dots, _ and -, and cannot start with '-' or 'proven-'");
const aCompression = like(/^(obfuscate,\d+,)?(auto,)?(none|lz4|zstd(,([1-9]|1\d|2[0-2]))?|(zlib|lzma)(,\d)?)$/, "one that borg knows, as 'zstd,3', 'lz4' or 'zlib,6'");
const aChunker = like(/^(default|fixed,\d+(,\d+)?|(buzhash,)?\d+,\d+,\d+,\d+)$/, "one that borg knows, as 'fixed,65536' or 'buzhash,19,23,21,4095'");
const aClock = like(/^([01]\d|2[0-3]):[0-5]\d$/, "a time from '00:00' to '23:59', with four digits");

// What is written in these three is never repeated in a message: it may be a password.
const aSecretFile = (value, at, wrong) => aPath(value, at, () => wrong(at, 'must be the whole path of a file'));
const aRepository = (value, at, wrong) => {
  const url = /^ssh:\/\/([^\s@:/-][^\s@:/]*@)?([^\s@:/[-][^\s@:/]*|\[[\da-fA-F:.]+\])(:\d+)?\/\S+$/, asForScp = /^([^\s@:/-][^\s@:/]*@)?[^\s@:/-][^\s@:/]*:(?!\/\/)\S+$/;
  if (isLine(value) && /^(\w+:\/\/)?[^/@]*:[^/@]*@/.test(value)) wrong(at, 'holds a password, which every user here could see with `ps`: use an ssh key');
  else if (!isLine(value) || value.replace(/\[.*?\]/, '').includes('::') || ![url, asForScp, /^\//].some((form) => form.test(value))) wrong(at, "must be like 'ssh://borg@storage.example.org/./web1', or a path that starts with /");
};
const aWebAddress = (value, at, wrong) => (isLine(value) && /^(?!.*\.\.\.$)https?:\/\/[^\s/?#@]+([/?#]\S*)?$/.test(value))
  || wrong(at, "must be a whole address that starts with 'https://' or 'http://', without user and password, and without the dots of an example");

const aTimeZone = (value, at, wrong) => {
  try {
    if (isLine(value) && /^[A-Za-z]/.test(value)) return new Intl.DateTimeFormat('en', { timeZone: value });
  } catch { /* it is unknown */ }
  wrong(at, `must be a time zone like 'Africa/Maputo', not ${shown(value)}${isLine(value) ? meant(value, Intl.supportedValuesOf?.('timeZone') ?? []) : ''}`);
};
const aWindow = (value, at, wrong) => {
  aGroup({ from: aClock, until: aClock, timeZone: aTimeZone })(value, at, wrong);
  if (isGroup(value) && value.from === value.until) wrong(at, 'ends when it begins: write null for any time');
};

const anAnswer = must('text, a number, true or false', (value) => ['string', 'number', 'boolean'].includes(typeof value) && !Number.isNaN(value));
const aQuery = aGroup({ cluster: aText, database: aText, sql: aWord, expect: anAnswer });

// The words that an entry of `stop` starts with, what may follow, and an example.
const KINDS = new Map([
  ['service', { name: /^(?!-)[\w@:.\\-]+$/, example: 'service nginx' }],
  ['compose', { name: /^[A-Za-z0-9][\w.-]*$/, example: 'compose shop' }],
  ['container', { name: /^(\*|[A-Za-z0-9][\w.-]*)$/, example: 'container redis' }],
  ['postgres', { name: /^(\*|\d+(\.\d+)?\/[^/\s-][^/\s]*|\/.+)$/, example: 'postgres 15/main' }],
]);
const notEmpty = (rule) => (value, at, wrong) => (Array.isArray(value) && value.length === 0 ? wrong(at, 'is an empty list') : rule(value, at, wrong));
const anOwnPart = aGroup({ name: like(/^(?!-)/, 'a name that does not start with -'), running: notEmpty(aCommand), stop: notEmpty(aCommand), start: notEmpty(aCommand) });

const aPartSpec = (value, at, wrong) => {
  if (isGroup(value)) return anOwnPart(value, at, wrong);
  if (!isLine(value)) return aText(value, at, wrong);
  const [word = ''] = value.split(' '), kind = KINDS.get(word), known = [...KINDS.keys()];
  if (!kind) wrong(at, `must start with ${known.join(', ')} (like 'service web'), not ${shown(value)}${meant(word, known)}`);
  else if (!kind.name.test(value.slice(word.length + 1))) wrong(at, `must be like '${kind.example}', not ${shown(value)}`);
};

/** Whether a text is an entry of `stop` by its form: 'service nginx', 'container redis', 'postgres 15/main'. */
const isPartName = (text) => typeof text === 'string' && isRight(aPartSpec, text);

function isRight(rule, value) {
  let mistakes = 0;
  rule(value, '', () => { mistakes++; });
  return mistakes === 0;
}

const anEntryOfStop = (value, at, wrong) => (Array.isArray(value) ? notEmpty(each(aPartSpec)) : aPartSpec)(value, at, wrong);

// ---- every setting: its name, what it is when not written, what it may be, what it is for ----

const TABLE = [ // the initial value is always right
  { name: 'server', initial: '', rule: aServer, help: "starts every archive's name; '' = the host name" },
  { name: 'stop', initial: [], rule: aListOf(anEntryOfStop), help: 'what to stop, in this order' },
  { name: 'folders', initial: [], rule: aListOf(aPath), help: 'folders to save' },
  { name: 'volumes', initial: [], rule: aListOf(aName), help: "container volumes to save; '*' = all of the containers in stop" },
  { name: 'before', initial: [], rule: aCommand, help: 'command to run first' },
  { name: 'exclude', initial: [], rule: aListOf(aPattern), help: 'borg patterns' },
  { name: 'repository', initial: '', rule: aRepository, help: 'where the archives go' },
  { name: 'sshKey', initial: '/etc/cold-backup/ssh_key', rule: aPath, help: 'key for the storage' },
  { name: 'knownHostsFile', initial: '/etc/cold-backup/known_hosts', rule: aPath, help: "the storage's host key" },
  { name: 'keyFile', initial: '/etc/cold-backup/borg_key', rule: aSecretFile, help: "borg's key" },
  { name: 'passphraseFile', initial: '/etc/cold-backup/passphrase', rule: aSecretFile, help: "the passphrase of borg's key" },
  { name: 'window', initial: null, rule: aWindow, help: 'when services may be stopped; null = any time' },
  { name: 'maxDowntimeMinutes', initial: 120, rule: aNumber(0.01, 10_080, 'any'), help: 'everything runs again by then, backup or not' },
  { name: 'stopTimeoutSeconds', initial: 300, rule: aNumber(1, 86_400, 'whole'), help: 'for one part to stop' },
  { name: 'warmPass', initial: true, rule: yesOrNo, help: 'copy once while everything runs' },
  { name: 'snapshot', initial: 'no', rule: oneOf('no', 'yes'), help: "'yes' = copy on write while stopped (btrfs, xfs)" },
  { name: 'compression', initial: 'zstd,3', rule: aCompression, help: 'as borg takes it' },
  { name: 'chunker', initial: 'fixed,65536', rule: aChunker, help: 'as borg takes it; never changed after the first backup' },
  { name: 'uploadLimitKiB', initial: 0, rule: aNumber(0, 1e9, 'whole'), help: 'per second; 0 = no limit' },
  { name: 'tell.ping', initial: '', rule: aWebAddress, help: 'address of a check like those of healthchecks.io' },
  { name: 'tell.command', initial: [], rule: aCommand, help: 'run at the end, with the summary on its standard input' },
  { name: 'tell.metrics', initial: '', rule: aPath, help: 'file for Prometheus: its name ends in .prom' },
  { name: 'tell.sendLog', initial: false, rule: yesOrNo, help: "the ping carries the log's end, too" },
  { name: 'maxAgeHours', initial: 26, rule: aNumber(0, 100_000, 'any'), help: 'status: older than this is a failure' },
  { name: 'drill.queries', initial: [], rule: aListOf(aQuery), help: 'asked of every restored database: { cluster, database, sql, expect }' },
  { name: 'drill.folder', initial: '', rule: aPath, help: "scratch space; '' = in the state folder" },
  { name: 'drill.maxAgeDays', initial: 8, rule: aNumber(0, 10_000, 'any'), help: 'status: an older drill is a warning; 0 = no drills here' },
  { name: 'language', initial: 'en', rule: aLanguage, help: 'of what is written for people' },
  { name: 'stateFolder', initial: '/var/lib/cold-backup', rule: aPath, help: 'history, ledger, transcripts, cache of borg' },
];

/** ' - did you mean "folders"?' when a known word is at most two slips away from this one, or holds it; '' otherwise. */
function meant(word, known) {
  const small = word.toLowerCase(), allowed = small.length < 4 ? [0, 1] : [0, 1, 2];
  const near = allowed.flatMap((slips) => known.filter((name) => isNear(small, name.toLowerCase(), slips)));
  const [best] = [...near, ...known.filter((name) => small.length > 2 && name.toLowerCase().includes(small))];
  return best ? ` - did you mean "${best}"?` : '';
}

/** Whether one word becomes the other by so many slips: a letter too many, one missing, a wrong one, two in the wrong order. */
function isNear(one, other, slips) {
  if (one === other || slips === 0) return one === other;
  let same = 0;
  while (one[same] === other[same]) same++;
  const a = one.slice(same), b = other.slice(same);
  const swapped = a.slice(1, 2) + a.slice(0, 1) + a.slice(2);
  return isNear(a.slice(1), b, slips - 1) || isNear(a, b.slice(1), slips - 1) || isNear(a.slice(1), b.slice(1), slips - 1) || isNear(swapped, b, slips - 1);
}

// =========================================================================================================
// ==== CHECK ====
// Reading the settings: from this script, from backup.settings.js beside it, or from --settings FILE.
// It tells every mistake at once, with its line. A file that others could change is refused: what stands in it is run as root.
// So is a key that others could read.
// Changes nothing on the machine. Settings are data: they are read where no file, program or network is in reach.

/**
 * Given the block of this script, the script's real path, and FILE of --settings ('' = none), returns the settings in force with
 * every default filled in. The file replaces the block whole: what it does not say has its default, not the block's value.
 * Throws Problem (64) with every mistake in one list, or when others could change the file.
 */
function loadSettings(builtIn, script, file) {
  return loadWith(builtIn, script, settingsSource(script, file), filledIn);
}

/** Where the settings stand: FILE of --settings, or backup.settings.js beside the script, or the script itself. */
function settingsSource(script, file) {
  const beside = path.join(path.dirname(script), 'backup.settings.js');
  const source = file ? path.resolve(file) : fs.lstatSync(beside, { throwIfNoEntry: false }) ? beside : script;
  return fs.existsSync(source) && fs.realpathSync(source) === script ? script : source;
}

/** The same for any settings: fill checks what was found, says what is wrong with it, and returns it with its defaults. */
function loadWith(builtIn, script, source, fill) {
  let whole;
  try {
    whole = fs.readFileSync(source, 'utf8');
  } catch (error) {
    throw new Problem(`the settings ${named(source)} cannot be read: ${error.code ?? error.message}`, { exitCode: 64 });
  }
  refuseIfOthersCanChange(source, 'the settings');
  refuseIfOthersCanChange(script, 'backup.js');
  const scan = scanSettings(whole);
  const found = source === script ? builtIn : readAsData(whole, source, scan);
  const mistakes = scan.twice.map(({ at, line }) => ({ line, text: `${at} is given twice: JavaScript would take the last one and say nothing` }));
  const wrong = (at, message) => mistakes.push({ line: lineOf(scan.lines, at), text: `${at || 'settings'} ${message}` });
  const settings = fill(found, wrong);
  if (mistakes.length > 0) {
    const list = mistakes.sort((one, other) => one.line - other.line).map(({ line, text }) => `${source}${line ? `, line ${line}` : ''}: ${text}`);
    throw new Problem(`${count(list.length, 'mistake')} in the settings; nothing was touched\n  ${list.join('\n  ')}`, { exitCode: 64 });
  }
  const copy = JSON.stringify({ settings, given: found }); // plain data, of nobody else's making
  return { ...JSON.parse(copy), file: source, text: source === script ? scan.block : whole, lines: scan.lines };
}

/** What is given, with every default beside it; nothing is checked. */
const withDefaults = (found) => filledIn(found, () => {});

/** Every setting of TABLE, checked: what is given, or the default. */
function filledIn(found, wrong) {
  const filled = {};
  if (!isGroup(found)) {
    wrong('', `must be a group: const settings = { ... }; and not ${shown(found)}`);
    return filled;
  }
  const keysOf = (group) => TABLE.filter(({ name }) => name.startsWith(`${group}.`)).map(({ name }) => name.slice(group.length + 1));
  refuseUnknown(found, '', TABLE.map(({ name }) => name.replace(/\..*/, '')), wrong);
  for (const { name, initial, rule } of TABLE) {
    const [first = '', key] = name.split('.'), given = found[first];
    if (key && !filled[first]) {
      filled[first] = {};
      if (isGroup(given)) refuseUnknown(given, first, keysOf(first), wrong);
      else if (given !== undefined) wrong(first, `must be a group in { }, not ${shown(given)}`);
    }
    const holder = key ? filled[first] : filled, value = !key ? given : isGroup(given) ? given[key] : undefined;
    if (value !== undefined && value !== initial) rule(value, name, wrong);
    holder[key ?? first] = value === undefined ? initial : value;
  }
  const isEmpty = (list) => Array.isArray(list) && list.length === 0;
  if (filled.repository === '') wrong('repository', "is needed, like 'ssh://borg@storage.example.org/./web1'");
  if (isEmpty(filled.stop) && isEmpty(filled.folders) && isEmpty(filled.volumes)) wrong('stop', 'and folders are empty: one must say what to back up');
  return filled;
}

function readAsData(text, file, { lines, openLine }) {
  try {
    return runInNewContext(`${text}\n;settings`, Object.create(null), { filename: file, timeout: 1000 });
  } catch (error) {
    const said = String(error?.stack ?? error).split('\n    at ')[0]; // file:line, the line, ^ below the place, what it is
    const line = Number(/^.*:(\d+)\n/.exec(said)?.[1] ?? 0), isOurs = line > text.split('\n').length; // in what we added
    const what = lines.size === 0 ? 'there is no `const settings = { ... };` in it' : isOurs ? 'it ends too early' : 'it is not valid JavaScript';
    const hint = /[:[,(]\s*\w+:\/\//.test(said) ? "put the address in quotes: 'https://...'" : openLine ? `the bracket opened in line ${openLine} is never closed, or by one of another kind` : /[\u2018-\u201f\u00b4]/.test(said) ? "write plain quotes: '" : '';
    throw new Problem(`${file}${line && !isOurs ? `, line ${line}` : ''}: ${what}`,
      { exitCode: 64, ...(isOurs ? {} : { said }), ...(hint ? { hint } : {}) });
  }
}

// ---- where each setting stands ----

const TOKEN = /\/\/.*|\/\*[^]*?\*\/|'(?:[^'\\\n]|\\[^])*'|"(?:[^"\\\n]|\\[^])*"|`(?:[^`\\]|\\[^])*`|[\w$.+\u0080-\uffff-]+|\n|\S/g;
const CLOSES = { '}': '{', ']': '[', ')': '(' };

/**
 * Given a text with `settings = { ... }`, returns the line of each name ('tell.ping') and list item ('stop[2]'), names given twice,
 * the object's own text, and the line of a bracket that is not closed. It knows texts, comments and brackets, not JavaScript.
 */
function scanSettings(text) {
  const scan = { lines: new Map(), twice: [], block: '', openLine: 0 };
  const start = /^[ \t]*(?:const |let |var )?settings\s*=\s*(?=\{)/m.exec(text);
  if (!start) return scan;
  const begin = start.index + start[0].length;
  const open = [];
  let at = '', isNext = false, line = text.slice(0, begin).split('\n').length;
  scan.lines.set('', line);
  for (const { 0: token, index } of text.slice(begin).matchAll(TOKEN)) {
    const inside = open[open.length - 1], isComment = /^\/[/*]/.test(token);
    if (inside && token in CLOSES) {
      if (inside.bracket !== CLOSES[token]) break;
      open.pop();
      isNext = false;
      if (open.length === 0) return { ...scan, block: `${text.slice(start.index, begin + index + 1).trimStart()};\n` };
    } else if (inside && token === ',') {
      inside.item++;
      isNext = true;
    } else if (inside && isNext && inside.bracket === '{' && !isComment && token !== '\n') { // a name; its value follows
      at = `${inside.at}${inside.at && '.'}${token.replace(/^(['"])(.*)\1$/, '$2')}`;
      if (scan.lines.has(at)) scan.twice.push({ at, line });
      scan.lines.set(at, line);
      isNext = false;
    } else if (!isComment && token !== '\n') {
      if (inside && isNext) scan.lines.set(at = `${inside.at}[${inside.item}]`, line); // the first sign of an item
      if ('{[('.includes(token)) open.push({ bracket: token, at, item: 0, line });
      isNext = token === '{' || token === '[';
    }
    line += token.split('\n').length - 1;
  }
  return { ...scan, openLine: open[open.length - 1]?.line ?? 0 };
}

/** The line of a setting, or of the one around it when it is not written; 0 when nobody knows. */
function lineOf(lines, at) {
  for (let place = at; place; place = place.replace(/(\.[^.[]*|\[\d+\]|^[^.[]*)$/, '')) {
    const line = lines.get(place);
    if (line) return line;
  }
  return lines.get('') ?? 0;
}

/** Given the text of settings that cannot be read any more, returns every state folder named in it: `recover` looks into all of them. */
function stateFoldersIn(text) {
  return [...text.matchAll(/\bstateFolder['"]?\s*:\s*(['"`])(\/[^'"`\n]*)\1/g)].map((match) => match[2]);
}

// ---- who may change and read them ----

/**
 * Throws Problem when somebody else than root or this user could change a file or folder, or swap it in one of the folders above. Given it and what
 * it is, in words. exitCode: 64 unless told. isShared: it may itself be a folder like /var/tmp, where others make names of their own.
 */
function refuseIfOthersCanChange(file, what, { exitCode = 64, isShared = false } = {}) {
  const places = new Set(), own = [file, fs.realpathSync(file)];
  for (const start of own) {
    for (let place = start; !places.has(place); place = path.dirname(place)) places.add(place);
  }
  const isSticky = (mode) => (mode & 0o41000) === 0o41000; // as /tmp: nobody replaces there what another has made
  refuseOthers(`others than root could change ${what}`, [...places], 'go-w', ({ mode }, place) => (isSticky(mode) && (isShared || !own.includes(place)) ? 0 : mode & 0o022), exitCode);
}

/** Whether a folder is safe for names that root makes up: nobody else can lay anything there, or swap it for another. */
function isOursAlone(folder) {
  try {
    refuseIfOthersCanChange(folder, '');
    return true;
  } catch (error) {
    if (error instanceof Problem) return false;
    throw error;
  }
}

/** Throws Problem (64) when a key or passphrase file is there and somebody else could read it, or when others say which storage is the right one. */
function checkSecretFiles({ keyFile, passphraseFile, sshKey, knownHostsFile }) {
  if (knownHostsFile && fs.existsSync(knownHostsFile)) refuseIfOthersCanChange(knownHostsFile, 'which storage is believed');
  refuseOthers('others could read the key or passphrase', [keyFile, passphraseFile, sshKey], 'go=', ({ mode }) => mode & 0o077);
}

function refuseOthers(what, places, change, tooMuch, exitCode = 64) {
  const me = process.getuid?.() ?? 0, found = [], mends = [];
  for (const place of places) {
    const facts = fs.statSync(place, { throwIfNoEntry: false });
    const isOthers = facts && ![0, me].includes(facts.uid);
    if (!facts || (!isOthers && tooMuch(facts, place) === 0)) continue;
    found.push(`${named(place)} (mode ${(facts.mode & 0o7777).toString(8).padStart(4, '0')}, owner ${facts.uid === 0 ? 'root' : `uid ${facts.uid}`})`);
    if (isOthers) mends.push(`chown ${me === 0 ? 'root' : me} ${named(place)}`);
    if (tooMuch(facts, place) !== 0) mends.push(`chmod ${change} ${named(place)}`);
  }
  if (found.length > 0) throw new Problem(`${what}: ${found.join(', ')}`, { exitCode, hint: mends.join(' && ') });
}

// ---- showing ----

/** The settings in force as a settings file, each with where it comes from and what it is for. */
function printSettings(loaded) {
  const lines = [], settings = loaded.settings;
  let group = '';
  for (const { name, help } of TABLE) {
    const [first = '', key] = name.split('.'), indent = key ? '    ' : '  ';
    if (group && group !== first) lines.push('  },');
    if (key && group !== first) lines.push(`  ${first}: {`);
    group = key ? first : '';
    const from = originOf(loaded, name), value = inspect(key ? settings[first][key] : settings[first], { depth: null, maxArrayLength: null, maxStringLength: null, breakLength: 100 })
      .replace(UNSEEN, asCode);
    lines.push(`${indent}${key ?? first}: ${value.replaceAll('\n', `\n${indent}`)}, // ${from === 'default' ? from : `from ${from}`}; ${help}`);
  }
  return `const settings = {\n${lines.join('\n')}\n};`;
}

/** The same for programs: { key: { value, from } }. */
function settingsAsJson(loaded) {
  return Object.fromEntries(Object.entries(loaded.settings).map(([key, value]) => [key, { value, from: originOf(loaded, key) }]));
}

function originOf({ given, lines, file }, name) {
  const [first = '', key] = name.split('.'), outer = given[first], value = key ? isGroup(outer) ? outer[key] : undefined : outer;
  return value === undefined ? 'default' : `${named(file)}${lines.size > 0 ? `, line ${lineOf(lines, name)}` : ''}`;
}

// =========================================================================================================
// ==== WINDOW ====
// The hours of the night: when a run may stop things, and by when everything runs again. Only reckons; changes nothing.

let clockOf = null; // made once: to make it takes longer than to use it

/** The clock of a time zone at an instant, in minutes since its midnight. */
function minutesOfDay(at, timeZone) {
  if (clockOf?.timeZone !== timeZone) clockOf = { timeZone, format: new Intl.DateTimeFormat('en-GB', { timeZone, hour: '2-digit', minute: '2-digit', hourCycle: 'h23' }) };
  const parts = clockOf.format.formatToParts(at);
  const number = (type) => Number(parts.find((part) => part.type === type)?.value);
  return number('hour') * 60 + number('minute');
}

const minutesOf = (clock) => Number(clock.slice(0, 2)) * 60 + Number(clock.slice(3));

/** Given the settings' window and an instant, returns whether it lies inside. No window = any time. A window may go over midnight. */
function isInWindow(window, now) {
  if (!window) return true;
  const clock = minutesOfDay(now, window.timeZone), from = minutesOf(window.from), until = minutesOf(window.until);
  return from <= until ? clock >= from && clock < until : clock >= from || clock < until;
}

/** The instant the window that we are in ends, or null without one: the first full minute that lies outside, also on the night the clocks change. */
function windowEnd(window, now) {
  if (!window) return null;
  let minute = Math.floor(now.getTime() / 60_000);
  do minute++; while (isInWindow(window, new Date(minute * 60_000)));
  return new Date(minute * 60_000);
}

/**
 * Given the most minutes of downtime, the instant before the first stop, the end of the window (fixed when the run began; null = none) and
 * how long the last start took, returns by when everything runs again, when to begin with that, and whether it is too late to stop anything.
 */
function deadlines(maxMinutes, now, windowEndsAt, lastStartSeconds) {
  const limit = new Date(now.getTime() + maxMinutes * 60_000);
  const deadlineAt = windowEndsAt && windowEndsAt < limit ? windowEndsAt : limit;
  const total = (deadlineAt.getTime() - now.getTime()) / 1000, needed = 2 * Math.max(0, lastStartSeconds) + 10; // ending borg takes up to 10 s
  const margin = Math.min(needed + 10, total / 3);
  return { deadlineAt, beginStartAt: new Date(deadlineAt.getTime() - margin * 1000), isTooLate: deadlineAt === windowEndsAt && total < 2 * needed };
}

// =========================================================================================================
// ==== TELL ====
// Telling people and machines how a night went: by a ping, a command, a file for Prometheus.
// Decides nothing. Changes the metrics file, and whatever the settings' own command does. A messenger that fails is a
// warning and never an error. What is secret in an address (its path) is never printed.

const PING_BYTES = 10_000; // self-hosted healthchecks keep no more of a ping's body (PING_BODY_LIMIT)
const SUMMARY_BYTES = 3_000;
const PING_SECONDS = 10;
const COMMAND_SECONDS = 60;

/**
 * Given the settings and a message, sends it by every messenger that is set, all at the same time: the slowest one decides how
 * long it takes, at most a minute. At the start of a run only the ping is sent. Never throws: who could not be told is a warning.
 */
async function tell(settings, what) {
  const { ping, command, metrics } = settings.tell, isEnd = what.outcome !== 'start';
  await Promise.all([
    ping && attempt(`tell.ping (${ping.split(/[/?#]/).slice(0, 3).join('/')})`, () => sendPing(settings, what)),
    isEnd && command.length > 0 && attempt('tell.command', () => runMessenger(settings, what)),
    isEnd && metrics && attempt('tell.metrics', async () => writeMetrics(settings, what)),
  ]);
}

/** Whether the settings name no messenger at all. */
const tellsNobody = ({ tell: { ping, command, metrics } }) => !ping && !metrics && command.length === 0;

async function attempt(name, messenger) {
  try {
    await messenger();
  } catch (error) {
    warn(`${name} did not work: ${error.message}`);
  }
}

async function sendPing(settings, what) {
  const address = pingAddress(settings.tell.ping, what), summary = Buffer.from(`${what.subject}\n\n${what.body}`).subarray(0, SUMMARY_BYTES).toString();
  const withLog = settings.tell.sendLog && what.outcome !== 'start';
  const body = withLog ? `${summary}\n\n${Buffer.from(what.logTail).subarray(SUMMARY_BYTES - PING_BYTES)}` : summary;
  const trouble = await post(address, body) && await post(address, body); // twice: a lost packet is no reason to wake somebody
  if (trouble) throw new Error(trouble);
}

/** The address for this outcome. `rid` pairs the end of a run with its start, also when the guard tells the end in the run's place. */
function pingAddress(ping, { outcome, server, line }) {
  const address = new URL(ping), end = { start: '/start', good: '', warning: '', failed: '/fail', down: '/fail' }[outcome];
  const sum = createHash('sha256').update(`${server} ${line.kind} ${line.startedAt}`).digest('hex');
  const id = sum.replace(/^(.{8})(.{4}).(.{3}).(.{3})(.{12}).*/, '$1-$2-5$3-8$4-$5'); // in the form of a UUID
  if (end) address.pathname = address.pathname.replace(/\/$/, '') + end;
  address.search = `${address.search ? `${address.search}&` : '?'}rid=${id}`;
  return address;
}

/** Returns '' when the other side took it, otherwise why not. fetch()'s own messages are not used: they may hold the whole address. */
async function post(address, body) {
  try {
    const response = await fetch(address, { method: 'POST', body, headers: { 'Content-Type': 'text/plain; charset=utf-8' }, signal: AbortSignal.timeout(PING_SECONDS * 1000) });
    await response.body?.cancel();
    return response.ok ? '' : `it answered ${response.status}`;
  } catch (error) {
    return error.name === 'TimeoutError' ? `no answer within ${PING_SECONDS} s` : String(error.cause?.code ?? error.name);
  }
}

async function runMessenger(settings, what) {
  const env = { COLD_BACKUP_OUTCOME: what.outcome, COLD_BACKUP_SERVER: what.server, COLD_BACKUP_SUBJECT: what.subject };
  const stdin = fileToRead(`${what.body}\n`, settings.stateFolder);
  // timeout(1) and not our own limit: after a signal change() begins nothing that may be ended, but somebody must still be told.
  const { code, said, out } = await change(['timeout', '-k', '5', String(COMMAND_SECONDS), ...settings.tell.command], { env, stdin, unlimited: true });
  if (stdin !== undefined) fs.closeSync(stdin);
  if (code === 124 || code === 137) throw new Error(`no end within ${COMMAND_SECONDS} s`);
  if (code !== 0) throw new Error(`exit code ${code}, ${lastLines(said || out, 1) || 'without a word'}`);
}

/** A descriptor from which the text can be read, of a file that has no name any more. undefined: no disk has room, the subject must do. */
function fileToRead(text, stateFolder) {
  for (const folder of [stateFolder, os.tmpdir(), '/dev/shm']) { // a full disk is just what somebody has to be told of
    const file = path.join(folder, `.message-${randomUUID()}`);
    try {
      fs.writeFileSync(file, text, { mode: 0o600, flag: 'wx' });
      return fs.openSync(file, 'r');
    } catch { /* the next one */ } finally {
      fs.rmSync(file, { force: true });
    }
  }
  return undefined;
}

function writeMetrics({ tell: { metrics }, stateFolder }, what) {
  if (what.line.kind === 'drill') return; // these are about runs
  const old = plainText(metrics); // its folder may be another user's
  const told = Number(/^cold_backup_last_success_timestamp_seconds\{.*\} (\d+)$/m.exec(old)?.[1] ?? 0);
  const isGood = what.outcome === 'good' || what.outcome === 'warning';
  const text = metricsText(what, isGood ? epochSeconds(what.line.endedAt) : Math.max(told, epochSeconds(lastGoodRun(stateFolder)?.endedAt)));
  fs.rmSync(`${metrics}.new`, { force: true });
  const fd = fs.openSync(`${metrics}.new`, 'wx');
  fs.writeFileSync(fd, text);
  fs.fchmodSync(fd, 0o644); // whatever our umask is: who reads it is not root
  fs.closeSync(fd);
  fs.renameSync(`${metrics}.new`, metrics);
}

const epochSeconds = (time) => Math.round(Date.parse(String(time)) / 1000) || 0; // since 1970; 0: never

function metricsText({ server, outcome, line }, success) {
  const down = (line.parts ?? []).filter((part) => part.runningAt === null).length;
  const gauges = [
    ['last_run_timestamp_seconds', 'When the last run ended', epochSeconds(line.endedAt)],
    ['last_success_timestamp_seconds', 'When the last run with a proven archive ended, 0: never', success],
    ['last_exit_code', 'Exit code of the last run: 0 good, 1 with warnings, 2 failed, 3 something is down', line.exitCode],
    ['down_seconds', 'How long services were down in the last run', line.downSeconds],
    ['duration_seconds', 'How long the last run took', epochSeconds(line.endedAt) - epochSeconds(line.startedAt)],
    ['stored_bytes', 'What the last run added to the repository', (line.warm?.deduplicatedBytes ?? 0) + (line.cold?.deduplicatedBytes ?? 0)],
    ['services_down', 'How many parts the last run could not start again', outcome === 'down' ? Math.max(1, down) : 0],
  ];
  const label = server.replace(/\\/g, '\\\\').replace(/"/g, '\\"').replace(/\n/g, '\\n');
  return gauges.map(([name, help, value]) => `# HELP cold_backup_${name} ${help}\n# TYPE cold_backup_${name} gauge\ncold_backup_${name}{server="${label}"} ${Number(value) || 0}\n`).join('');
}

// =========================================================================================================
// ==== UNITS ====
// systemd units: find, describe, stop, start, and see what they really do.
// systemctl's exit codes prove nothing (it answers 0 after a SIGKILL), so the state is read again and again.

const SETTLE_SECONDS = 60; // for a unit that is on its way up or down when the plan is made
const FACTS = 'Id,LoadState,ActiveState,SubState,UnitFileState,Type,BusName,Result,MainPID,CanStart,TriggeredBy,TimeoutStopUSec,FragmentPath';

/** Given unit names, returns the facts systemd knows of each (systemctl(1) show, properties of org.freedesktop.systemd1(5)), in order. */
async function describeUnits(units) {
  if (units.length === 0) return [];
  const text = await lookFor('systemd does not answer', ['systemctl', 'show', `--property=${FACTS}`, '--', ...units]);
  return text.trimEnd().split('\n\n').map((block) => Object.fromEntries(block.split('\n').map((line) => {
    const at = line.indexOf('=');
    return [line.slice(0, at), line.slice(at + 1)];
  })));
}

/** Given `nginx` of 'service nginx', returns the part. Throws Problem when there is no such unit. */
async function unitPart(unit) {
  if (!hasSystemd()) {
    throw new Problem(`service ${unit}: this machine is not run by systemd`, { hint: 'use { name, running, stop, start } with your own commands' });
  }
  let facts = {};
  await waitUntil(SETTLE_SECONDS, async () => { // one that is just being restarted runs
    [facts = {}] = await describeUnits([unit]);
    return stateOf(facts) !== 'moving';
  });
  if (facts.LoadState !== 'loaded') {
    throw new Problem(`service ${unit}: no such unit here (${facts.LoadState})`,
      { hint: `look at \`systemctl list-units --all '*${unit.slice(0, 5)}*'\`` });
  }
  if (stateOf(facts) === 'moving') warn(`service ${unit} has been on its way up or down for ${SETTLE_SECONDS} s (does it start over and over?): it is left as it is`);
  // A socket, timer or path that starts the unit goes down with it, or the first request of the night would bring it back.
  // It comes up before the unit: systemd starts no socket of a service that runs already.
  const triggers = (await describeUnits(facts.TriggeredBy.split(' ').filter((one) => one !== ''))).filter((one) => stateOf(one) === 'running');
  const isRunning = stateOf(facts) === 'running', ran = [...triggers, ...(isRunning ? [facts] : [])];
  ran.forEach(refuseWithoutStart);
  return {
    name: `service ${unit}`,
    kind: 'service',
    wasRunning: ran.length > 0,
    stop: ['systemctl', 'stop', '--', ...triggers.map((one) => one.Id), facts.Id], // the unit, too, when only its socket is open: a request may come until then
    start: ['systemctl', 'start', '--', ...(ran.length > 0 ? ran : [facts]).map((one) => one.Id)],
    unit: isRunning || ran.length === 0 ? facts.Id : ran[0].Id,
  };
}

/** Given the part of a unit that has ended since unitPart() saw it, returns which of its sockets, timers and paths are still active. */
async function triggersLeft({ start, unit }) {
  const facts = await describeUnits(start.slice(start.indexOf('--') + 1).filter((one) => one !== unit));
  return facts.filter((one) => stateOf(one) === 'running').map((one) => one.Id);
}

/** Given the facts of a unit that runs, throws Problem when systemd would not start it again: then it is not stopped. */
function refuseWithoutStart({ Id, LoadState, CanStart }) {
  if (CanStart !== 'no' && LoadState === 'loaded') return;
  throw new Problem(`${Id} runs, but systemd would not start it again (${LoadState === 'loaded' ? 'RefuseManualStart' : LoadState})`,
    { hint: `nothing was stopped; look at \`systemctl cat ${Id}\` and mend that, or take it out of \`stop\`` });
}

function stateOf(facts) {
  if (/^(active|reloading|refreshing)$/.test(facts.ActiveState)) return 'running';
  return facts.ActiveState === 'inactive' || facts.ActiveState === 'failed' ? 'stopped' : 'moving';
}

/** The state of a unit now. */
async function unitState(unit) {
  const { out } = await look(['systemctl', 'show', '--property=ActiveState', '--', unit]);
  return stateOf({ ActiveState: out.trim().replace('ActiveState=', '') });
}

/** Given units that were stopped, returns those that run all the same, and those that systemd had to kill for it. */
async function judgeStopped(units) {
  const facts = await describeUnits(units), ids = (of) => facts.filter(of).map((one) => one.Id);
  return { running: ids((one) => stateOf(one) === 'running'), killed: ids((one) => stateOf(one) === 'stopped' && /^(timeout|signal|core-dump|watchdog|oom-kill)$/.test(one.Result)) };
}

/**
 * Everything active on this host: services, sockets, timers and paths. Not sessions, what exists only as long as one command, or a unit that a socket
 * makes for each connection (x@... of x.socket, systemd.socket(5) Accept=): nobody can start that again.
 */
async function activeUnits() {
  if (!hasSystemd()) return [];
  const { out } = await look(['systemctl', 'list-units', '--state=active', '--type=service,socket,timer,path', '--plain', '--no-legend', '--full']);
  const units = out.split('\n').map((line) => line.split(' ')[0]).filter((unit) => unit !== '');
  return units.filter((unit) => !/^(user@|user-runtime-dir@|run-|session-|cold-backup-guard)/.test(unit) && !(unit.includes('@') && units.includes(`${unit.split('@')[0]}.socket`)));
}

/**
 * Given the units that were active before and are not now, returns those that did not simply end their work: helpers that
 * D-Bus or a timer starts on demand come and go by themselves. After a reboot, what is enabled comes by itself as well.
 */
async function lostUnits(before, rebooted) {
  const now = new Set(await activeUnits());
  const gone = await describeUnits(before.filter((unit) => !now.has(unit)));
  return gone.filter((facts) => stateOf(facts) === 'stopped' && facts.LoadState === 'loaded'
    && !facts.FragmentPath.startsWith('/run/systemd/transient/')
    && !(rebooted && facts.UnitFileState !== 'disabled')
    && !(facts.Result === 'success' && (/\.timer/.test(facts.TriggeredBy) || (facts.BusName !== '' && facts.UnitFileState === 'static'))))
    .map((facts) => facts.Id);
}

// =========================================================================================================
// ==== CONTAINERS ====
// Docker containers and Compose projects: find, describe, stop, start, see what they really do.
// A container with a database gets its stop signal and all the time it needs: `docker stop` would end in SIGKILL, and
// still answer 0. Other containers are stopped as Docker does it. They are named, never numbered: a container that was
// made anew in the meantime is found again.

const DATABASES = new Set(['postgres', 'postmaster', 'edb-postgres', 'mysqld', 'mariadbd', 'mongod', 'redis-server', 'valkey-server']);
const DOCKER_GRACE_SECONDS = 10; // what `docker stop` waits when a container does not say otherwise

const notOfARehearsal = (field) => `{{if not (.Label "${SANDBOX_MARK}")}}{{.${field}}}{{end}}`;

/**
 * Every container of this host, running or not, but for those of rehearsals. [] when Docker is not installed or does not
 * answer and nobody asked for it.
 */
async function findContainers(needed) {
  const list = await look(['docker', 'ps', '--all', '--no-trunc', `--format=${notOfARehearsal('ID')}`]);
  if (list.code !== 0) {
    if (!needed) return [];
    throw new Problem('Docker does not answer', { ran: list.argv, said: list.said, hint: 'look at `systemctl status docker`' });
  }
  const ids = list.out.split('\n').filter((id) => id !== '');
  return ids.length === 0 ? [] : describeContainers(ids);
}

const CONTAINER_FORM = {
  Id: 'text', Name: 'text', Config: { 'Labels?': { '*': 'text' } }, State: { Running: 'yes or no', Pid: 'id' },
  'Mounts?': [{ Type: 'text', Destination: 'text' }],
};

async function describeContainers(ids) {
  const done = await look(['docker', 'inspect', '--type=container', ...ids]); // one that has just gone makes exit code 1
  if (done.code !== 0 && !done.said.split('\n').every((line) => line.trim() === '' || /no such/i.test(line))) throw failure('Docker does not tell about its containers', done, 'look at `systemctl status docker`');
  const everyone = processes();
  return answerOf('Docker does not tell about its containers', done, [CONTAINER_FORM], done.out || '[]').map((facts) => {
    const labels = facts.Config.Labels ?? {};
    const depends = String(labels['com.docker.compose.depends_on'] ?? '').split(',').filter((one) => one !== '');
    return {
      name: facts.Name.replace(/^\//, ''),
      id: facts.Id,
      running: facts.State.Running,
      paused: facts.State.Paused,
      removedOnStop: Boolean(facts.HostConfig?.AutoRemove),
      exitCode: facts.State.ExitCode,
      pid: facts.State.Pid,
      health: facts.State.Health?.Status ?? '',
      stopSignal: String(facts.Config.StopSignal || 'SIGTERM'),
      stopSeconds: facts.Config.StopTimeout ?? DOCKER_GRACE_SECONDS,
      project: labels['com.docker.compose.project'] ?? '',
      service: labels['com.docker.compose.service'] ?? '',
      swarm: Boolean(labels['com.docker.swarm.service.id']),
      needs: depends.map((one) => one.split(':')[0]),
      mounts: (facts.Mounts ?? []).map((one) => ({ type: one.Type, name: one.Name ?? '', source: one.Source, destination: one.Destination, readOnly: one.RW === false })),
      database: facts.State.Running ? databaseIn(facts.State.Pid, facts.Id, everyone) : '',
    };
  });
}

// A container's processes are those in its PID namespace (unless it shares the host's) or in its cgroup.
function databaseIn(pid, id, everyone) {
  const own = pidNamespace(process.pid), theirs = pidNamespace(pid);
  return everyone.find((one) => DATABASES.has(one.program)
    && (one.pid === pid || procFile(one.pid, 'cgroup').includes(id) || (theirs !== own && pidNamespace(one.pid) === theirs)))?.program ?? '';
}

// The containers of a project in stages: what nothing needs stops first (stage 0), what it needs after that, as Compose does it.
function stagesOfProject(project, all) {
  const members = all.filter((one) => one.project === project);
  const stageOf = (one, above) => {
    const needing = members.filter((other) => other.needs.includes(one.service) && ![...above, one].includes(other)); // a circle ends here
    return Math.max(0, ...needing.map((other) => stageOf(other, [...above, one]) + 1));
  };
  return members.map((one) => ({ one, stage: stageOf(one, []) })).sort((one, other) => one.stage - other.stage);
}

/** Given `container X`, `container *` or `compose X` and all containers, returns the parts. Throws Problem when nothing is meant by it. */
function containerParts(what, all) {
  const [kind, name] = [what.slice(0, what.indexOf(' ')), what.slice(what.indexOf(' ') + 1)];
  const byName = name === '*' ? all.filter((one) => one.running) : all.filter((one) => one.name === name);
  const meantOnes = kind === 'compose' ? stagesOfProject(name, all) : byName.map((one) => ({ one, stage: 0 }));
  if (meantOnes.length === 0 && name !== '*') {
    throw new Problem(`${what}: there is no such ${kind === 'compose' ? 'project' : 'container'} here`, { hint: 'look at `docker ps --all`' });
  }
  return meantOnes.map(({ one, stage }) => ({ ...containerPart(one), stage }));
}

function containerPart(one) {
  if (one.paused) throw new Problem(`container ${one.name} is paused`, { hint: `\`docker unpause ${one.name}\`, or take it out of \`stop\`` });
  if (one.removedOnStop && one.running) throw new Problem(`container ${one.name} was made with --rm: Docker removes it when it stops, and nobody could start it again`,
    { hint: `make it anew without --rm, or take it out of \`stop\`` });
  if (one.swarm && one.running) throw new Problem(`container ${one.name} belongs to a Docker Swarm service: Swarm starts another one as soon as it stops`,
    { hint: `use { name, running, stop: ['docker', 'service', 'scale', ...], start } with your own commands` });
  return {
    name: `container ${one.name}`,
    kind: 'container',
    wasRunning: one.running,
    stop: stopCommand(one),
    start: ['docker', 'start', one.name],
    container: one.name,
    database: one.database,
    healthy: one.health === 'healthy',
    stopSeconds: one.stopSeconds,
  };
}

// A database gets its stop signal and nothing else; we wait. PostgreSQL takes TERM for "when the last client has gone":
// where an image says nothing better, INT follows at once, which means "now" (postgres(1)). The first signal has to be the
// container's own: only then does Docker see a stop that was wanted, and no restart policy brings it back.
function stopCommand(one) {
  if (one.database === '') return ['docker', 'stop', '--time', String(one.stopSeconds), one.name];
  const own = ['docker', 'kill', '--signal', one.stopSignal, one.name];
  if (!/postgres|postmaster/.test(one.database) || /^(SIG)?INT$|^2$/.test(one.stopSignal)) return own;
  return ['sh', '-c', 'docker kill --signal "$2" "$1" && docker kill --signal INT "$1"', 'sh', one.name, one.stopSignal];
}

/** What a container does now: { state, healthy, exitCode, exists }. */
async function containerState(name) {
  const done = await look(['docker', 'inspect', '--type=container', '--format={{json .State}}', name]), { code, said } = done;
  if (code !== 0) { // it is gone, or Docker does not answer, and then nobody knows
    const isGone = /no such (container|object)/i.test(said);
    return { state: isGone ? 'stopped' : 'moving', healthy: false, exitCode: 0, exists: !isGone };
  }
  const state = answerOf(`container ${name}`, done, { Running: 'yes or no', ExitCode: 'number' });
  const running = state.Restarting ? 'moving' : state.Running ? 'running' : 'stopped';
  return { state: running, healthy: (state.Health?.Status ?? 'healthy') === 'healthy', exitCode: state.ExitCode, exists: true };
}

/** Names of the running containers. */
async function runningContainers() {
  const { code, out } = await look(['docker', 'ps', `--format=${notOfARehearsal('Names')}`, '--filter=status=running']);
  return code === 0 ? out.split('\n').filter((name) => name !== '') : [];
}

/** Given a path as a container sees it, returns the path on this host, or '' when it lies in no volume (and dies with the container). */
function hostPathOf(inside, mounts) {
  const best = mounts.filter(({ source, destination }) => source && (inside === destination || inside.startsWith(`${destination.replace(/\/$/, '')}/`)))
    .sort((one, other) => other.destination.length - one.destination.length)[0];
  return best ? path.join(best.source, inside.slice(best.destination.replace(/\/$/, '').length)) : '';
}

/**
 * Given the names of `volumes` in the settings, all containers and those that are stopped, returns the paths to save.
 * '*' = every volume and bind mount of the containers that are stopped. Throws Problem for a volume that is not there, or lies elsewhere.
 */
async function findVolumes(names, all, stopped) {
  const found = [];
  for (const name of names.filter((one) => one !== '*')) found.push({ name, path: await placeOfNamedVolume(name), isData: true });
  const mounts = names.includes('*') ? all.filter((one) => stopped.includes(one.name)).flatMap((one) => one.mounts) : [];
  for (const { type, name, source } of mounts) {
    if (!/^(bind|volume)$/.test(type) || !source || /^\/(proc|sys|dev|run|var\/run)(\/|$)/.test(source)) continue;
    if (source === '/') say('a container sees all of / : `volumes: [\'*\']` does not mean that; what is to be saved there belongs into `folders`');
    else found.push({ name: name || source, path: type === 'volume' ? await placeOfNamedVolume(name) : source, isData: mounts.some((one) => one.source === source && !one.readOnly) });
  }
  for (const name of new Set(found.filter((one) => one.path === IN_MEMORY).map((one) => one.name))) say(`volume ${name} is in memory only: there is nothing to save in it`);
  return found.filter((one) => one.path !== IN_MEMORY);
}

const IN_MEMORY = ''; // where a volume lies that is a tmpfs: nothing of it is left when its containers are stopped

// Where a volume lies. One that Docker mounts from elsewhere (docker_volume_create(1), `device`) is empty there as soon as its containers are stopped.
async function placeOfNamedVolume(name) {
  const done = await look(['docker', 'volume', 'inspect', '--format={{json .}}', name]), { code, said, argv } = done;
  if (code !== 0) throw new Problem(`volume ${name}: there is none of that name`, { ran: argv, said, hint: 'look at `docker volume ls`' });
  const { Mountpoint, Options } = answerOf(`volume ${name}`, done, { Mountpoint: 'path', 'Options?': { '*': 'text' } });
  if (Options?.type === 'tmpfs') return IN_MEMORY;
  if (Options?.device) throw new Problem(`volume ${name} is mounted by Docker from ${named(Options.device)}, and is empty while its containers are stopped`,
    { hint: `a folder of this machine: name it in \`folders\` instead; another machine's: mount it by /etc/fstab and name that folder, or save it over there` });
  return Mountpoint;
}

/** Given all containers and every path that is saved, warns of volumes in use here that nothing saves. */
async function warnOfUnsavedVolumes(all, isSaved) {
  const open = new Map();
  for (const { name: container, mounts } of all) {
    for (const { type, name, source } of mounts) {
      if (type === 'volume' && !isSaved(source)) open.set(name, [...(open.get(name) ?? []), container]);
    }
  }
  for (const [volume, users] of open) if (!await isInMemory(volume)) warn(`volume ${volume} (of ${users.join(', ')}) is not saved: name it in \`volumes\``);
}

async function isInMemory(volume) {
  return (await look(['docker', 'volume', 'inspect', '--format={{.Options.type}}', volume])).out.trim() === 'tmpfs';
}

// =========================================================================================================
// ==== POSTMASTER ====
// What a PostgreSQL cluster does at this moment, and in which state its files are.
// Read from processes, from postmaster.pid and from the bytes of the control file, and asked of the socket itself; no client
// program and no password is needed. Nothing else is believed: `systemctl stop postgresql` returns 0 while it runs, and
// "shut down" is written while the postmaster still waits for its archiver. Only looks.

const SERVER_PROGRAMS = new Set(['postgres', 'postmaster', 'edb-postgres']);
const STATES = ['starting up', 'shut down', 'shut down in recovery', 'shutting down', 'in crash recovery', 'in archive recovery', 'in production'];

/**
 * The postmasters that run, but for those of rehearsals: the process whose working directory is a data directory and whose number stands in postmaster.pid.
 * Anybody may call a program `postgres`, and its folder a cluster: PostgreSQL itself insists on an owner that is not root and on a data directory of that
 * owner (miscinit.c, checkDataDir), so who does not comply is none, and nothing here runs anything of it.
 */
function runningPostmasters() {
  return processes().filter(({ pid, program }) => {
    if (!SERVER_PROGRAMS.has(program)) return false;
    const folder = `/proc/${pid}/cwd`, status = procFile(pid, 'status'), owner = Number(/^Uid:\t\d+\t(\d+)/m.exec(status)?.[1] ?? 0);
    if (owner === 0 || ownerOfFile(`${folder}/.`) !== owner) return false;
    if ([OWN_USER, process.getuid?.()].includes(owner) && fs.existsSync(`${folder}/${SANDBOX_MARK}`)) return false; // a rehearsal. On another's word no cluster is left out
    const [own] = pidFile(folder), inside = /^NSpid:.*?(\d+)\s*$/m.exec(status)?.[1]; // its number as its own container counts
    return own !== undefined && own === inside && versionOf(folder) !== '';
  });
}

/** The major version of a data directory, '' when it is none. */
function versionOf(dataDirectory) {
  try {
    return /^\d+(\.\d+)?$/.exec(readPlainFile(path.join(dataDirectory, 'PG_VERSION')).toString().trim())?.[0] ?? '';
  } catch {
    return '';
  }
}

// postmaster.pid: pid, data directory, start, port, socket folder, address, shared memory, status ("ready" since 10).
function pidFile(dataDirectory) {
  try {
    return readPlainFile(path.join(dataDirectory, 'postmaster.pid')).toString().split('\n').map((line) => line.trim());
  } catch {
    return [];
  }
}

/** What a cluster does now, by its processes and its postmaster.pid. 'moving': starting or stopping. */
function clusterState(dataDirectory) {
  if (!isUsed(dataDirectory)) return 'stopped';
  return /^(ready|standby)$/.test(pidFile(dataDirectory)[7] ?? '') ? 'running' : 'moving';
}

// Every PostgreSQL process, and what its archive_command started, has the data directory as its working directory, in a
// container too. The shell of somebody else who looks around there does not count; that of its owner does, for nobody can know. '' = nobody uses it.
function userOf(dataDirectory) {
  const folder = deviceAndInode(dataDirectory);
  if (folder === '') return '';
  const { uid } = fs.statSync(dataDirectory);
  const one = processes().find(({ pid, program }) => (SERVER_PROGRAMS.has(program) || ownerOf(pid) === uid) && workingFolder(pid) === folder);
  return one ? `process ${one.pid} (${named(one.program)})` : '';
}

const isUsed = (dataDirectory) => userOf(dataDirectory) !== '';

/**
 * Whether a cluster answers on its socket or port: sends SSLRequest (PostgreSQL manual, "Message Formats"), which every server answers
 * with one letter before it asks who we are. No user, no password, no client program needed.
 */
async function clusterAnswers(dataDirectory) {
  const [, , , port, sockets, address, , status] = pidFile(dataDirectory);
  if (!/^(ready|standby)$/.test(status ?? '')) return false;
  const postmaster = runningPostmasters().find(({ pid }) => workingFolder(pid) === deviceAndInode(dataDirectory));
  if (!postmaster) return false;
  const socket = `/proc/${postmaster.pid}/root${sockets}/.s.PGSQL.${port}`; // as the postmaster sees it: containers too
  if (!sockets && !address) return true; // it listens nowhere; its own word has to do
  return new Promise((resolve) => {
    const line = sockets ? connect(socket) : connect(Number(port), address === '*' ? '127.0.0.1' : address);
    const end = (yes) => { line.destroy(); resolve(yes); };
    line.setTimeout(5000, () => end(false));
    line.on('error', () => end(false));
    line.on('close', () => end(false));
    line.on('connect', () => line.write(Buffer.from([0, 0, 0, 8, 4, 210, 22, 47]))); // length 8, code 80877103
    line.on('data', () => end(true));
  });
}

/** The state in the bytes of global/pg_control (pg_control.h, the same place since 8.x): { state, systemIdentifier }. */
function controlState(dataDirectory) {
  const file = path.join(dataDirectory, 'global', 'pg_control');
  let bytes;
  try {
    bytes = readPlainFile(file);
  } catch (error) {
    throw new Problem(`${named(file)} cannot be read: ${error.message}`, { hint: 'this cluster is damaged, or none' });
  }
  if (bytes.length < 20) throw new Problem(`${named(file)} is too short: this cluster is damaged`);
  return { state: STATES[bytes.readUInt32LE(16)] ?? `unknown (${bytes.readUInt32LE(16)})`, systemIdentifier: String(bytes.readBigUInt64LE(0)) };
}

/** Given a data directory, returns why it is not proven cold; [] = it is cold. */
function whyNotCold(dataDirectory) {
  const why = [];
  const { state } = controlState(dataDirectory);
  if (!state.startsWith('shut down')) why.push(`its state is "${state}"`);
  if (fs.existsSync(path.join(dataDirectory, 'postmaster.pid'))) why.push('postmaster.pid is there');
  const user = userOf(dataDirectory);
  if (user !== '') why.push(`${user} still uses it`);
  return why;
}

// =========================================================================================================
// ==== POSTGRES ====
// PostgreSQL clusters on this host and in its containers: find, describe, stop, start.
// A cluster is stopped by its own unit or by pg_ctl in `fast` mode, never `immediate`, and never killed. Whether it has
// stopped is not what those commands say: see the chapter before.

/** Every cluster of this host: Debian's (running or not), and whatever runs, in containers too. */
async function findClusters(containers) {
  const found = debianClusters();
  for (const { pid, folder } of runningPostmasters()) {
    const container = containers.find((one) => one.running && (one.pid === pid || procFile(pid, 'cgroup').includes(one.id)));
    const inside = linkAt(`/proc/${pid}/cwd`);
    if (!inside) continue; // it has just ended
    const onHost = (file) => { // where it really lies, as everything is saved: Docker tells a mount's source as it was typed
      const place = hostPathOf(file, container?.mounts ?? []);
      return place && realPath(place);
    };
    const dataDirectory = container ? onHost(inside) : inside;
    if (deviceAndInode(dataDirectory) !== workingFolder(pid) && !(container && !dataDirectory)) {
      warn(`a PostgreSQL (process ${pid}) runs in ${inside} of a container or namespace that Docker does not show: it cannot be stopped or saved from here`);
      continue;
    }
    if (container && !dataDirectory) {
      warn(`container ${container.name} keeps its database in ${inside}, which is in no volume: it cannot be saved`);
      continue;
    }
    const known = found.find((one) => deviceAndInode(one.dataDirectory) === deviceAndInode(dataDirectory));
    if (known) Object.assign(known, { pid, binaries: folder, ...addressOf(dataDirectory) });
    else if (deviceAndInode(dataDirectory)) {
      const cluster = describeCluster(container ? `container ${container.name}` : dataDirectory, dataDirectory, '');
      const wal = path.resolve(inside, linkAt(path.join(dataDirectory, 'pg_wal')) || 'pg_wal'); // as its container sees it
      found.push({ ...cluster, pid, binaries: folder, ...addressOf(dataDirectory), container: container?.name ?? '', insideDataDirectory: container ? inside : '',
        walFolder: container ? onHost(wal) || wal : cluster.walFolder, tablespaces: cluster.tablespaces.map((one) => ({ ...one, location: container ? onHost(one.link) : one.location })) });
    }
  }
  for (const cluster of found) cluster.roots = rootsOf(cluster);
  return found;
}

// Debian keeps a folder per cluster under /etc/postgresql (postgresql-common); a stopped one is found only there.
function debianClusters() {
  const top = '/etc/postgresql', found = [];
  for (const version of listFolder(top)) {
    for (const name of listFolder(path.join(top, version))) {
      const folder = path.join(top, version, name);
      let text = '';
      for (const file of [path.join(folder, 'postgresql.conf'), ...listFolder(path.join(folder, 'conf.d')).sort().map((one) => path.join(folder, 'conf.d', one))]) {
        try {
          text += `${readPlainFile(fs.realpathSync(file))}\n`;
        } catch { /* not there, or not ours to read */ }
      }
      const set = [...text.matchAll(/^\s*data_directory\s*=?\s*'((?:[^']|'')*)'/gm)].pop()?.[1]?.replaceAll("''", "'");
      const dataDirectory = set ?? `/var/lib/postgresql/${version}/${name}`;
      if (/^[^-]/.test(name) && versionOf(dataDirectory) !== '') found.push(describeCluster(`${version}/${name}`, fs.realpathSync(dataDirectory), folder));
    }
  }
  return found;
}

function listFolder(folder) {
  try {
    return fs.readdirSync(folder);
  } catch {
    return [];
  }
}

/** Given a data directory, returns its cluster as its files tell: version, owner, links that lead out of it. Not running, as far as this knows. */
function describeCluster(name, dataDirectory, configFolder) {
  const { uid, gid } = fs.statSync(dataDirectory);
  const tablespaces = listFolder(path.join(dataDirectory, 'pg_tblspc')).filter((oid) => /^\d+$/.test(oid)).map((oid) => {
    const link = linkAt(path.join(dataDirectory, 'pg_tblspc', oid)) || path.join(dataDirectory, 'pg_tblspc', oid); // no link: allow_in_place_tablespaces
    return { oid, link, location: realPath(path.resolve(dataDirectory, 'pg_tblspc', link)) };
  });
  const wal = path.join(dataDirectory, 'pg_wal'), walLink = linkAt(wal), walFolder = walLink ? realPath(path.resolve(dataDirectory, walLink)) : wal;
  return {
    name, dataDirectory, uid, gid, configFolder, tablespaces, walFolder,
    version: versionOf(dataDirectory),
    owner: userName(uid), pid: 0, port: '', socketFolder: '', binaries: '', container: '', insideDataDirectory: '', roots: [],
  };
}

// What stands in a link; '' when it is none.
function linkAt(file) {
  try {
    return fs.readlinkSync(file);
  } catch {
    return '';
  }
}

// What a path leads to over any number of links; itself when it leads nowhere here, as a container's does.
function realPath(file) {
  try {
    return fs.realpathSync(file);
  } catch {
    return file;
  }
}

function userName(uid) {
  const line = fs.readFileSync('/etc/passwd', 'utf8').split('\n').find((one) => one.split(':')[2] === String(uid));
  return line?.split(':')[0] ?? (spawnSync('getent', ['passwd', String(uid)], { encoding: 'utf8', timeout: 10_000, env: { PATH: programPath() } }).stdout?.split(':')[0] || String(uid)); // LDAP's, too
}

// Everything that belongs to a cluster: borg does not follow links, so what they lead to is named beside the data directory. PostgreSQL owns what it
// writes to: a link to somebody else's folder, which whoever owns the data directory could lay, takes no /root into the archive and back.
function rootsOf(cluster) {
  const isOwn = (root) => ownerOfFile(root) === cluster.uid;
  const roots = [cluster.dataDirectory, ...[...cluster.tablespaces.map((one) => one.location), cluster.walFolder].filter(isOwn)];
  if (cluster.configFolder) roots.push(cluster.configFolder);
  return [...new Set(roots.filter((root) => root !== '' && fs.existsSync(root)).map((root) => fs.realpathSync(root)))];
}

function addressOf(dataDirectory) {
  const lines = pidFile(dataDirectory);
  return { port: lines[3] ?? '', socketFolder: lines[4] ?? '' };
}

/** Given `15/main`, a data directory or `*`, and all clusters, returns those meant. Throws Problem when there is none. */
function clustersNamed(what, all) {
  const here = all.filter((one) => one.container === '');
  if (what === '*') return here.filter((one) => one.pid !== 0);
  const folder = what.startsWith('/') ? deviceAndInode(what) : '';
  const one = here.find((cluster) => cluster.name === what || (folder !== '' && deviceAndInode(cluster.dataDirectory) === folder));
  if (one) return [one];
  if (what.startsWith('/') && fs.existsSync(path.join(what, 'global', 'pg_control'))) {
    const cluster = describeCluster(what, fs.realpathSync(what), '');
    return [{ ...cluster, roots: rootsOf(cluster) }];
  }
  const inContainer = all.find((cluster) => cluster.container && cluster.dataDirectory === what);
  throw new Problem(`postgres ${what}: there is no such cluster here`, { hint: inContainer
    ? `it runs in a container: write 'container ${inContainer.container}'`
    : `here are: ${here.map((cluster) => cluster.name).join(', ') || 'none'}; write 'postgres ${here[0]?.name ?? '15/main'}' or 'postgres /its/data/directory'` });
}

/** Given a cluster, returns the part: stopped and started by what runs it now, its own unit above all. Throws Problem when nothing would start it again. */
async function clusterPart(cluster, stopSeconds) {
  const part = { name: `postgres ${cluster.name}`, kind: 'postgres', wasRunning: cluster.pid !== 0, dataDirectory: cluster.dataDirectory };
  const auto = plainText(path.join(cluster.configFolder, 'start.conf')).replace(/#.*/g, '').trim(); // pg_ctlcluster(1): "disabled" also forbids to start it by hand
  if (cluster.configFolder && cluster.pid !== 0 && auto === 'disabled') throw new Problem(`postgres ${cluster.name} runs, but its start.conf says "disabled": nothing would start it again`,
    { hint: `nothing was stopped; write \`manual\` or \`auto\` into ${named(path.join(cluster.configFolder, 'start.conf'))}` });
  const unit = /\/([^/\n]+\.service)$/m.exec(procFile(cluster.pid, 'cgroup'))?.[1] ?? '';
  if (unit && hasSystemd()) {
    const [facts] = await describeUnits([unit]);
    if (facts?.MainPID === String(cluster.pid)) {
      refuseWithoutStart(facts);
      warnOfShortStop(unit, facts.TimeoutStopUSec ?? '', stopSeconds);
      return { ...part, stop: ['systemctl', 'stop', '--', unit], start: ['systemctl', 'start', '--', unit], unit };
    }
  }
  if (cluster.configFolder) {
    const [version, name] = cluster.name.split('/');
    const start = hasSystemd() ? ['systemctl', 'start', '--', `postgresql@${version}-${name}`] : ['pg_ctlcluster', version, name, 'start'];
    return { ...part, start, stop: ['pg_ctlcluster', '--skip-systemctl-redirect', version, name, 'stop', '--mode', 'fast', '--', '-t', String(stopSeconds)] };
  }
  const control = [...asOwner(cluster), path.join(cluster.binaries || '/usr/lib/postgresql/bin', 'pg_ctl')];
  const common = ['-D', configArgument(cluster), '-w', '-t', String(stopSeconds)];
  return { ...part, stop: [...control, 'stop', '-m', 'fast', ...common], start: outlivingUs([...control, 'start', ...common, ...await startArguments(cluster)]) };
}

// systemd kills what has not stopped in the unit's own time, and PostgreSQL must never be killed.
function warnOfShortStop(unit, limit, stopSeconds) {
  const seconds = [...limit.matchAll(/([\d.]+)(h|min|s)(?=\s|$)/g)].reduce((sum, [, number, word]) => sum + Number(number) * { h: 3600, min: 60, s: 1 }[word], 0);
  if (seconds > 0 && seconds < stopSeconds) warn(`${unit} is killed by systemd after ${limit}: set TimeoutStopSec=${stopSeconds} or more (systemctl edit ${unit})`);
}

/** The words that run a command as the owner of a cluster. */
function asOwner(cluster) {
  return process.getuid?.() === cluster.uid ? [] : ['runuser', '-u', cluster.owner, '--'];
}

// The words the postmaster was started with: the same ones start it again.
function commandLineOf(cluster) {
  return procFile(cluster.pid, 'cmdline').split('\0').slice(1, -1).map((word) => Buffer.from(word, 'latin1').toString());
}

function configArgument(cluster) {
  const given = commandLineOf(cluster);
  const at = given.indexOf('-D');
  return at >= 0 && given[at + 1]?.startsWith('/') ? given[at + 1] : cluster.dataDirectory; // -D may be the folder of the configuration
}

async function startArguments(cluster) {
  const given = commandLineOf(cluster);
  const at = given.indexOf('-D');
  const others = at >= 0 ? [...given.slice(0, at), ...given.slice(at + 2)] : given;
  let log = '/dev/null';
  try {
    const target = fs.readlinkSync(`/proc/${cluster.pid}/fd/2`);
    if (target.startsWith('/') && fs.statSync(target).isFile() && (await look([...asOwner(cluster), 'test', '-w', target])).code === 0) log = target;
  } catch { /* it says nothing anywhere */ }
  const quoted = others.map((word) => `'${word.replaceAll("'", `'\\''`)}'`).join(' ');
  return ['-l', log, ...(quoted ? ['-o', quoted] : [])];
}

// =========================================================================================================
// ==== QUESTIONS ====
// What is asked of a cluster: the SQL of the passport, and the one way to run it.
// Only looks: read-only sessions, with limits on how long they run and wait for locks. Facts are asked all at once, one by one
// when that fails; one that cannot be had is a warning. No secrets: no role passwords, no connection strings, and whatever looks
// like a password inside a setting is masked. PostgreSQL 12 to 18: a column that only some versions have is read as
// to_jsonb(row)->>'column', which is null where there is none.

const COUNTED_UP_TO_BYTES = 256 * 1024 * 1024; // larger tables: only what the planner believes
const COUNTING_SECONDS = 30; // for one database; from then on only what the planner believes

// A SELECT as one JSON value: its rows as objects, its single column as a list, its two columns as names and values.
const rowsOf = (select) => `(select coalesce(jsonb_agg(x), '[]') from (${select}) x)`;
const listOf = (select) => `(select coalesce(jsonb_agg(v), '[]') from (${select}) x(v))`;
const mapOf = (select) => `(select coalesce(jsonb_object_agg(k, v), '{}') from (${select}) x(k, v))`;

// Settings worth telling: all that somebody set, what was fixed when server and cluster were made, what another machine must at least match.
const TOLD_SETTINGS = `source not in ('default', 'client', 'session') and name !~ '^transaction_' or category = 'Preset Options' or name ~ '^(wal_level`
  + `|archive_.*|.*_(library|control)_path|max_(connections|worker_processes|wal_senders|replication_slots|prepared_transactions|locks_per_transaction))$'`;

/** Facts of a whole cluster of major VERSION: name, and the SQL expression that answers it. */
const clusterQuestions = (version) => ({
  serverVersion: `version()`,
  startedAt: `pg_postmaster_start_time()`,
  superuser: `current_setting('is_superuser')::bool`,
  pgConfig: mapOf(`select name, setting from pg_config`),
  control: `(select to_jsonb(s) || to_jsonb(c) || to_jsonb(i) || to_jsonb(r) || jsonb_build_object('system_identifier', s.system_identifier::text)
    from pg_control_system() s, pg_control_checkpoint() c, pg_control_init() i, pg_control_recovery() r)`,
  settings: mapOf(`select name, current_setting(name, true) from pg_settings where ${TOLD_SETTINGS}`),
  settingSources: mapOf(`select name, source || coalesce(' ' || sourcefile || ':' || sourceline, '') from pg_settings where ${TOLD_SETTINGS}`),
  settingErrors: rowsOf(`select sourcefile as file, sourceline as line, name, error from pg_file_settings where error is not null`),
  pendingRestart: listOf(`select name from pg_settings where pending_restart`),
  preloadLibraries: mapOf(`select name, setting from pg_settings where name like '%preload_libraries'`),
  configurationFiles: listOf(`select sourcefile from pg_file_settings where sourcefile <> ''
    union select to_jsonb(h)->>'file_name' from pg_hba_file_rules h where to_jsonb(h)->>'file_name' <> ''
    union select setting from pg_settings where name in ('config_file', 'hba_file', 'ident_file')`),
  hba: rowsOf(`select * from pg_hba_file_rules`),
  roleSettings: rowsOf(`select d.datname as database, r.rolname as role,
    ${mapOf(`select split_part(c, '=', 1), substr(c, strpos(c, '=') + 1) from unnest(setconfig) c`)} as settings
    from pg_db_role_setting s left join pg_database d on d.oid = s.setdatabase left join pg_roles r on r.oid = s.setrole`),
  tablespaceSizes: rowsOf(`select oid, spcname as name, pg_tablespace_location(oid) as location, pg_tablespace_size(oid) as bytes, spcoptions as options
    from pg_tablespace`),
  roles: listOf(`select to_jsonb(r) - 'rolpassword' - 'rolconfig' from pg_roles r where rolname !~ '^pg_' order by rolname`),
  slots: rowsOf(`select *, pg_wal_lsn_diff(case when pg_is_in_recovery() then pg_last_wal_replay_lsn() else pg_current_wal_lsn() end,
    restart_lsn) as "retainedBytes" from pg_replication_slots`),
  standbys: rowsOf(`select * from pg_stat_replication`),
  subscriptions: listOf(`select to_jsonb(s) - 'subconninfo' || jsonb_build_object('database', datname)
    from pg_subscription s join pg_database d on d.oid = subdbid`),
  preparedTransactions: rowsOf(`select * from pg_prepared_xacts`),
  recovery: `jsonb_build_object('inRecovery', pg_is_in_recovery(), 'received', pg_last_wal_receive_lsn(), 'replayed', pg_last_wal_replay_lsn(),
    'receiver', (select to_jsonb(w) - 'conninfo' from pg_stat_wal_receiver w))`,
  archiver: `(select to_jsonb(a) from pg_stat_archiver a)`,
  wal: `(select jsonb_build_object('files', count(*), 'bytes', sum(size)) from pg_ls_waldir())`,
  databases: rowsOf(`select datname as name, pg_get_userbyid(datdba) as owner, pg_encoding_to_char(encoding) as encoding,
    datcollate as collate, datctype as ctype, coalesce(to_jsonb(d)->>'datlocprovider', 'c') as provider,
    coalesce(to_jsonb(d)->>'datlocale', to_jsonb(d)->>'daticulocale') as locale, to_jsonb(d)->>'daticurules' as rules,
    to_jsonb(d)->>'datcollversion' as recorded, ${version >= 15 ? 'pg_database_collation_actual_version(d.oid)' : 'null'} as actual,
    pg_database_size(d.oid) as bytes, spcname as tablespace, datistemplate as template, datallowconn and datconnlimit <> -2 as connectable
    from pg_database d join pg_tablespace t on t.oid = dattablespace order by datname`),
});

/** Facts of one database. rows is exact, null where it was not counted; estimatedRows is the planner's, -1 where it never looked. */
const databaseQuestions = {
  extensions: rowsOf(`select extname as name, extversion as version, extnamespace::regnamespace as schema from pg_extension order by 1`),
  libraries: listOf(`select distinct probin from pg_proc where probin is not null`),
  // Indexes and partition bounds lie in the order of a collation: when its version changes, these need REINDEX.
  collations: rowsOf(`with used(oid, index, partitioned) as (
      select o, i.oid::regclass::text, null from pg_index x join pg_class i on i.oid = indexrelid and i.relkind = 'i' and i.relpersistence <> 't', unnest(indcollation::oid[]) o
        where indrelid >= 16384 and o <> 0
      union select o, null, partrelid::regclass::text from pg_partitioned_table, unnest(partcollation::oid[]) o where o <> 0)
    select (select nspname from pg_namespace n where n.oid = collnamespace) as schema, collname as name, collprovider as provider,
      coalesce(to_jsonb(c)->>'colllocale', to_jsonb(c)->>'colliculocale', to_jsonb(c)->>'collcollate') as locale, to_jsonb(c)->>'collicurules' as rules,
      collisdeterministic as deterministic, collversion as recorded, pg_collation_actual_version(c.oid) as actual, indexes, "partitionedTables"
    from (select oid, array_remove(array_agg(index), null) as indexes, array_remove(array_agg(partitioned), null) as "partitionedTables"
      from used group by oid) u join pg_collation c using (oid) order by 1, 2`),
  relations: mapOf(`select relkind::text || relpersistence::text, count(*) from pg_class where oid >= 16384 group by 1`), // 'rp': permanent tables
  estimatedRows: mapOf(`select oid::regclass, reltuples from pg_class where relkind in ('r', 'm') and relpersistence <> 't' and oid >= 16384`),
  // query_to_xml is the one way to run a SELECT made up inside a SELECT. Smallest tables first, until the time is over.
  // A table that somebody holds locked is left out: waiting for it would cost all the other facts.
  rows: mapOf(`select name, case when clock_timestamp() < statement_timestamp() + interval '${COUNTING_SECONDS} seconds'
      then substring(query_to_xml('select count(*) n from only ' || name, false, true, '')::text from '<n>(\\d+)</n>')::bigint end
    from (select oid::regclass::text as name, pg_relation_size(oid) as bytes from pg_class c
      where relkind in ('r', 'm') and relpersistence <> 't' and relispopulated and oid >= 16384
      and not exists (select from pg_locks l where l.relation = c.oid and mode = 'AccessExclusiveLock')
      order by bytes offset 0) t where bytes <= ${COUNTED_UP_TO_BYTES}`),
  sequences: rowsOf(`select format('%I.%I', schemaname, sequencename) as name, last_value::text as last from pg_sequences`), // text: may exceed 2^53
  unlogged: listOf(`select oid::regclass from pg_class where relpersistence = 'u' and relkind in ('r', 'm')`),
  invalidIndexes: listOf(`select indexrelid::regclass from pg_index where not indisvalid`),
  largeObjects: `(select count(*) from pg_largeobject_metadata)`,
  publications: rowsOf(`select * from pg_publication`),
  foreignServers: rowsOf(`select srvname as name, fdwname as wrapper from pg_foreign_server s join pg_foreign_data_wrapper w on w.oid = srvfdw`),
  eventTriggers: listOf(`select evtname from pg_event_trigger`),
  dictionaries: rowsOf(`select dictname as name, dictinitoption as options from pg_ts_dict where oid >= 16384`),
};

/**
 * For each table its file and how many rows the server has seen inserted and deleted: what shows later whether somebody touched it. To be asked BEFORE rows are counted: what is
 * written in between then shows as touched, and never the other way round.
 */
const activityQuestion = {
  activity: mapOf(`select oid::regclass, concat_ws(' ', pg_relation_filenode(oid), pg_stat_get_tuples_inserted(oid), pg_stat_get_tuples_deleted(oid))
    from pg_class where relkind in ('r', 'm') and relpersistence <> 't' and oid >= 16384`),
};

const quotedName = (name) => `"${name.replaceAll('"', '""')}"`;

// The files of a cluster as we see them: in a container below /proc/PID/root (proc(5)).
const rootOf = (cluster) => (cluster.container && cluster.pid ? `/proc/${cluster.pid}/root` : '');
// The words before a command that is to look around where the cluster lives.
const placeOf = (cluster) => cluster.words ?? (cluster.container ? ['docker', 'exec', cluster.container] : []);
const roleThatWorks = new Map(); // by data directory, where it is not the first choice of queryCluster()
/** From now on this cluster is asked as this role. */
const useRole = (cluster, role) => roleThatWorks.set(cluster.dataDirectory, role);

const sessionSettings = (settings) => Object.entries(settings).filter(([, value]) => value !== undefined).map(([name, value]) => `-c ${name}=${value}`).join(' ');
const asDatabaseWord = (database) => (/=|:\/\//.test(database) ? `dbname='${database.replace(/['\\]/g, '\\$&')}'` : database); // else psql takes such a name for an address

/**
 * Given a running cluster, a database and SQL, runs it with psql as the cluster's owner over its socket, in a read-only session.
 * The role is the owner's name, in a container $POSTGRES_USER, and 'postgres' where that one does not get in.
 * `more`: settings of the session beside the usual ones, or instead of them. Returns how psql ended, `out` being the bare values (-A -t); code 2 = no connection, 1 = SQL failed. Never waits: for no password (-w),
 * not long for a lock. Throws nothing for what psql does.
 */
async function queryCluster(cluster, database, sql, seconds = 60, more = {}) {
  if (cluster.port === '') return { argv: [], code: 2, out: '', said: 'its port is not known', timedOut: false }; // psql would ask whoever has port 5432
  const env = {
    PGCONNECT_TIMEOUT: '5', PGAPPNAME: 'cold-backup', PGCLIENTENCODING: 'UTF8',
    PGOPTIONS: sessionSettings({ search_path: 'pg_catalog', statement_timeout: `${seconds}s`, lock_timeout: '2s', default_transaction_read_only: 'on', jit: 'off', ...more }),
  };
  const own = path.join(cluster.binaries, 'psql');
  const psql = [fs.existsSync(rootOf(cluster) + own) ? own : 'psql', // one from PATH will do: a newer psql speaks to older servers
    '-X', '-w', '-q', '-A', '-t', '-v', 'ON_ERROR_STOP=1', '-h', cluster.socketFolder || 'localhost', '-p', cluster.port, '-d', asDatabaseWord(database), '-c', sql];
  // Name and password are in the container's environment and stay there: this shell is the container's.
  const within = ['sh', '-c', 'export PGPASSWORD="${PGPASSWORD:-$POSTGRES_PASSWORD}"; role=$1; shift; exec "$@" -U "${role:-${POSTGRES_USER:-postgres}}"', 'sh'];
  const inContainer = ['docker', 'exec', '--user', String(cluster.uid), ...Object.entries(env).flatMap(([name, value]) => ['--env', `${name}=${value}`]), cluster.container];
  const inSandbox = [...cluster.words ?? [], 'env', ...Object.entries(env).map(([name, value]) => `${name}=${value}`)];
  const attempt = (role) => {
    const options = { cwd: '/', env, seconds: seconds + 10, keepBytes: 64 * 1024 * 1024 };
    if (cluster.words) return look([...inSandbox, ...psql, '-U', role || 'postgres'], options);
    if (cluster.container) return look([...inContainer, ...within, role, ...psql], options);
    return look([...asOwner(cluster), ...psql, ...(role ? ['-U', role] : [])], options);
  };
  const known = roleThatWorks.get(cluster.dataDirectory);
  const first = await attempt(known ?? '');
  if (first.code !== 2 || known) return first; // 2: no connection; why, it says in the server's language
  const second = await attempt('postgres');
  if (second.code === 2) return first;
  roleThatWorks.set(cluster.dataDirectory, 'postgres');
  return second;
}

const SECRET = '[\\w.-]*(?:passw(?:or)?d|passphrase|secret|token|credential|access_?key|api_?key)[\\w.-]*';
const SECRET_NAME = new RegExp(`^(?!password_encryption$)${SECRET}$`, 'i');
const SECRET_VALUE = new RegExp(`(${SECRET}\\s*=\\s*|--${SECRET}\\s+)('(?:[^'\\\\]|\\\\.)*'|"[^"]*"|[^\\s;&'"]+)`, 'gi'); // password=x, --token x
const SECRET_IN_URL = /(\w:\/\/[^\s:/@]*:)[^\s@]+@/g; // postgres://user:x@host

/** Given a setting's name and value, returns the value with '(masked)' in the place of whatever looks like a password, token or key. */
function maskSecrets(name, value) {
  if (SECRET_NAME.test(name) && value !== '') return '(masked)';
  return value.replace(SECRET_VALUE, '$1(masked)').replace(SECRET_IN_URL, '$1(masked)@');
}

// The answers to questions, by name. They go as one statement; when that fails, one by one, and those that fail are warnings.
async function askCluster(cluster, database, questions) {
  const ask = async (some) => {
    const pairs = Object.entries(some).map(([name, sql]) => `'${name}', ${sql.replace(/\s*\n\s*/g, ' ')}`);
    const { code, out, said } = await queryCluster(cluster, database, `select jsonb_build_object(${pairs.join(', ')})`);
    if (code !== 0) return { failedWith: code, said };
    try {
      return JSON.parse(out, (name, value) => (typeof value === 'string' && !('activity' in some) ? maskSecrets(name, value) : value)); // its names are tables: access_tokens, passwords
    } catch { // whoever answers there need not be PostgreSQL
      return { failedWith: 1, said: 'the answer is not understood' };
    }
  };
  const facts = await ask(questions);
  if (facts.failedWith === undefined) return facts;
  const lacking = (what, said) => warn(`the passport lacks ${what} of postgres ${named(cluster.name)}, database ${named(database)}: ${lastLines(said, 2)}`);
  if (facts.failedWith !== 1) { // 1: a statement failed; anything else: no psql, no connection
    lacking('all facts', facts.said);
    return {};
  }
  const found = {};
  for (const [name, sql] of Object.entries(questions)) {
    const one = await ask({ [name]: sql });
    if (one.failedWith === undefined) Object.assign(found, one);
    else lacking(`'${name}'`, one.said);
  }
  return found;
}

/**
 * Given a database and a collation ("schema"."name" in SQL; the database's own when left out), returns a SHA-256 of some 16,000 short strings
 * in its order, '' when it cannot be had. Two machines with the same one sort alike, whatever their collation versions say: those may
 * change where the order does not, and are not recorded at all before PostgreSQL 13. (With glibc 2.28, 1-1 and 11 changed places.)
 */
async function orderFingerprint(cluster, database, collation = '"default"') {
  const { code, out } = await queryCluster(cluster, database, `select encode(sha256(convert_to(string_agg(s, ' ' order by s collate ${collation}, s collate "C"), 'UTF8')), 'hex')
    from (select case when getdatabaseencoding() = 'UTF8' then 1400 else 126 end) l(top), generate_series(32, top) a, unnest(array[45, 49, 97, 228, 1078, 8217]) b,
    lateral (values (chr(a) || chr(b)), (chr(b) || chr(a) || chr(b))) v(s) where b <= top`);
  return code === 0 ? out.trim() : '';
}

// The database to ask about the whole cluster; people may have dropped `postgres`.
async function homeOf(cluster) {
  return (await queryCluster(cluster, 'postgres', 'select 1')).code === 0 ? 'postgres' : 'template1';
}

/**
 * Given a cluster, returns the files that configure it and lie outside its roots: included settings, hba, ident, certificates, keys; notes folders that it names over a link.
 * [] when it does not run, and in a container, where they come in through mounts.
 */
async function configFilesOf(cluster) {
  if (cluster.pid === 0 || cluster.container) return [];
  const { configurationFiles } = clusterQuestions(Number(cluster.version));
  const keys = listOf(`select setting from pg_settings where name ~ '^(ssl_.*_(file|dir)|krb_server_keyfile)$' and setting <> ''`);
  const facts = await askCluster(cluster, await homeOf(cluster), { files: configurationFiles, keys });
  const files = [...facts.files ?? [], ...facts.keys ?? []].map((file) => path.resolve(cluster.dataDirectory, file)).filter((file) => fs.existsSync(file));
  cluster.configLinks = [...new Set(files.map((file) => path.dirname(file)))].map((link) => ({ link, location: fs.realpathSync(link) })).filter(({ link, location }) => link !== location);
  const outside = [...new Set(files.flatMap(withItsLink))].filter((file) => !cluster.roots.some((root) => file.startsWith(`${root}/`)));
  if (outside.length === 0) return [];
  // A superuser of the database may name what he likes, as /etc/shadow: what PostgreSQL itself cannot read is no configuration of its.
  const { code, out } = await look([...asOwner(cluster), 'sh', '-c', 'for one; do [ ! -r "$one" ] || printf "%s\\0" "$one"; done', 'sh', ...outside], { cwd: '/' });
  return code === 0 ? outside.filter((file) => out.split('\0').includes(file)) : outside;
}

// =========================================================================================================
// ==== BORG ====
// borg: the one chapter that knows its arguments, environment, exit codes and messages.
// Of borg 1.2 and 1.4; borg 2 is refused. Changes only the repository, by adding archives; never deletes, renames or recreates
// one. borg's cache lies in the state folder. Secrets reach borg by file: the passphrase is read by borg itself
// (BORG_PASSCOMMAND), and is in no argument and no log.

const PATIENT_LOCK_WAIT = '180'; // seconds, while everything still runs; longer than the storage takes to notice a dead connection
const SHORT_LOCK_WAIT = '10'; // borg looks again after a tenth of its patience (locking.py): after 1 s, and not 18, a dead run's lock is gone

const ASK_THE_DOCTOR = 'run `node backup.js doctor`: it tries the ssh connection by itself and shows what ssh says';

// What borg calls its own troubles (docs/internals/frontends.rst, "Message IDs"), and what to do about each.
const HINTS = {
  LockTimeout: 'another borg is using the repository or its cache; a lock left by a dead one disappears when the storage notices',
  'Repository.DoesNotExist': 'there is no repository there yet: run `node backup.js setup`',
  'Repository.InvalidRepository': 'what is there is no borg repository: is `repository` right?',
  'Repository.InsufficientFreeSpaceError': 'the storage is full',
  'Repository.StorageQuotaExceeded': 'the storage quota is reached: raise it in the storage\'s authorized_keys, or prune from the operator\'s machine',
  PathNotAllowed: 'the storage\'s authorized_keys line allows another path than `repository` says',
  PassphraseWrong: 'is `passphraseFile` the one that belongs to this key?',
  PasscommandFailure: 'can `passphraseFile` be read?',
  KeyfileNotFoundError: 'is `keyFile` there? Without it nobody can read this repository: bring it back from the recovery sheet',
  KeyfileMismatchError: '`keyFile` belongs to another repository',
  KeyfileInvalidError: '`keyFile` is damaged: bring it back from the recovery sheet',
  ConnectionClosed: ASK_THE_DOCTOR, ConnectionClosedWithHint: ASK_THE_DOCTOR, ConnectionBrokenWithHint: ASK_THE_DOCTOR, // the last one is 1.4's
  'Cache.RepositoryAccessAborted': 'the repository is at another place than before, or another one is there. If you moved it, run `node backup.js borg info` on a terminal and answer its question',
  'Cache.RepositoryReplay': 'the repository is older than what this server last saw: somebody rolled it back. Ask the operator to audit it',
  'Archive.AlreadyExists': 'an archive of this second exists already: start the run again',
};

function shellWord(word) {
  return `'${word.replaceAll("'", `'\\''`)}'`; // BORG_RSH and BORG_PASSCOMMAND are split as a shell would
}

/** The ssh command for this repository: our key, the known host, no questions, and an end when the line is dead. */
function sshCommand(settings) {
  const quoted = (file) => `"${file.replaceAll('%', '%%')}"`; // ssh_config(5) splits at spaces and expands %
  return ['ssh', '-o', 'BatchMode=yes', '-o', 'ConnectTimeout=20', '-o', 'ServerAliveInterval=10', '-o', 'ServerAliveCountMax=6',
    '-o', 'StrictHostKeyChecking=yes', ...(fs.existsSync(settings.knownHostsFile) ? ['-o', `UserKnownHostsFile=${quoted(settings.knownHostsFile)}`] : []),
    ...(fs.existsSync(settings.sshKey) ? ['-o', 'IdentitiesOnly=yes', '-i', settings.sshKey] : [])]; // without them, root's own
}

/** The environment of every borg: repository, key, passphrase command, cache in the state folder; no question is ever answered yes. */
function borgEnvironment(settings, run = '') {
  return {
    BORG_REPO: settings.repository,
    BORG_KEY_FILE: settings.keyFile,
    BORG_PASSCOMMAND: `cat ${shellWord(settings.passphraseFile)}`,
    BORG_RSH: sshCommand(settings).map(shellWord).join(' '),
    BORG_BASE_DIR: path.join(settings.stateFolder, 'borg'),
    // borg takes a lock for stale when its owner on this host is dead; without a network card it would take us for another host every time.
    ...(fs.existsSync('/etc/machine-id') ? { BORG_HOST_ID: `${hostname()}@${fs.readFileSync('/etc/machine-id', 'utf8').trim()}` } : {}),
    BORG_EXIT_CODES: 'modern', // 1.4: tells warnings apart; 1.2 does not know it
    BORG_RELOCATED_REPO_ACCESS_IS_OK: 'no',
    BORG_UNKNOWN_UNENCRYPTED_REPO_ACCESS_IS_OK: 'no',
    LC_ALL: 'C.UTF-8',
    TZ: 'UTC',
    ...(run ? markOfRun(run) : {}),
  };
}

/** 0 is good; 1 and from 100 on are warnings (docs/usage/general/return-codes.rst.inc), but for 126 and 127, with which who was to start borg says that it cannot. */
function borgOnlyWarned(code) {
  return code === 1 || (code >= 100 && code < 126);
}

/** A Problem out of a borg that failed: its own last error, and the hint for it. */
function borgFailure(what, done) {
  const said = [];
  let hint = '';
  for (const line of done.said.split('\n')) {
    const note = parseLine(line);
    if (!note) {
      if (line.trim() !== '' && !line.startsWith('{')) said.push(line);
    } else if (note.type === 'log_message' && note.message && /WARNING|ERROR|CRITICAL/.test(note.levelname ?? '')) {
      said.push(/^Traceback .*\n(?: .*\n)*(.*)/m.exec(note.message)?.[1] ?? note.message); // of a traceback only what it was
      hint = HINTS[note.msgid ?? ''] ?? hint;
      if (/quota.*exceeded/i.test(note.message)) hint = HINTS['Repository.StorageQuotaExceeded'];
      if (/BrokenPipeError|ConnectionResetError/.test(note.message)) hint = HINTS.ConnectionClosed;
    }
  }
  return failure(what, { ...done, said: said.join('\n') }, hint || 'run `node backup.js doctor`');
}

// borg prints one JSON object a line, but ssh and Python's tracebacks mix in: what is no JSON is no note.
function parseLine(line) {
  if (!line.startsWith('{')) return null;
  try {
    return JSON.parse(line);
  } catch {
    return null;
  }
}

/**
 * Ask borg something that changes nothing in the repository. Returns how it ended. Its locks are waited for, with little patience and then with much. It
 * need not test itself: that costs 0.2 s of every start, and whoever copies or extracts does it.
 */
async function askBorg(settings, [command, ...rest], options = {}) {
  const ask = (lockWait) => look(['borg', '--log-json', ...(command === '--version' ? [] : ['--lock-wait', lockWait]), command, ...rest],
    { seconds: 3600, ...options, env: { ...borgEnvironment(settings), BORG_SELFTEST: 'disabled', ...options.env } });
  let done = await ask(SHORT_LOCK_WAIT);
  if (/"msgid": "LockTimeout"/.test(done.said)) done = await ask(PATIENT_LOCK_WAIT);
  goOn(); // it may have ended because we were asked to stop
  return done;
}

let version = ''; // asked once

/** borg's version here. Throws Problem when it is missing, older than 1.2 or not borg 1. */
async function borgVersion() {
  if (version) return version;
  const done = await look(['borg', '--version']);
  if (done.code !== 0) throw failure('borg does not run', done, 'install it: `apt-get install borgbackup`');
  const found = /\d+\.\d+\S*/.exec(done.out)?.[0] ?? '';
  const [major, minor] = found.split('.').map(Number);
  if (major !== 1) throw new Problem(`borg ${found} is installed, but this script speaks to borg 1.2 and 1.4`,
    { hint: 'install borg 1.4 beside it; borg 2 repositories are a format of their own' });
  if (minor < 2) throw new Problem(`borg ${found} is too old`, { hint: 'version 1.2.5 or newer is needed' });
  return version = found;
}

/** What the repository says of itself; brings borg's cache in step, which would otherwise cost time while services are down. */
async function tryRepository(settings) {
  for (const [key, file] of Object.entries({ keyFile: settings.keyFile, passphraseFile: settings.passphraseFile, ...(isRemote(settings) ? { sshKey: settings.sshKey } : {}) })) {
    if (!fs.existsSync(file)) throw new Problem(`${key} ${named(file)} is not there`,
      { hint: 'run `node backup.js setup`, or bring it back from the recovery sheet' });
  }
  const done = await askBorg(settings, ['info', '--json']);
  if (done.code !== 0 && !borgOnlyWarned(done.code)) throw borgFailure('the repository cannot be used', done);
  const facts = answerOf('the repository cannot be used', done, { encryption: { mode: 'text' }, repository: { id: 'text' } });
  const encryption = String(facts.encryption.mode);
  if (/^(none|authenticated)/.test(encryption)) throw new Problem(`the repository is not encrypted (${encryption}): the storage could read everything`,
    { hint: 'make a new one with `node backup.js setup`' });
  return { id: facts.repository.id, encryption };
}

function isRemote(settings) {
  return !settings.repository.startsWith('/');
}

// =========================================================================================================
// ==== PASSES ====
// A pass: one `borg create`, from its command to what came of it. The cold pass is begun while everything still runs and waits, with
// repository, key and caches open, until it is fed the manifest: none of that is left for when services are down. So does the proof, until the archive has been read back.
// Adds an archive to the repository; changes nothing else. What borg could not read as it was is told by name.

const diesWithUs = (signal) => ['setpriv', '--pdeathsig', signal, '--']; // or it would hold the repository for as long as its upload takes; and one that waits take our death for the end of its input, and copy what runs
const GENTLY = ['SIGINT', 'SIGTERM', 'SIGKILL']; // INT: borg keeps a checkpoint, so that the upload goes on from there
const LONGEST_DEATH_MS = 15_000; // what was killed, and still waits for a disk that hangs, runs no line of its program any more: nobody need wait for it
const KEPT_NAMES = 100_000; // of changed files: one of a cluster must not be lost among many others

/**
 * A `borg create` command: archive name, the roots, and those of clusters, from which nothing is ever left out, as from our own record. A root `-` is
 * the file `fed`, which borg reads from its standard input: there it waits, with repository, key and caches open, until it is given it.
 */
function createCommand(settings, what) {
  const comment = JSON.stringify(what.comment).replace(/[{}]/g, '$&$&'); // braces are placeholders for borg
  // borg would store a root inside another root twice, so inner roots are left out, and found while it walks the outer one.
  // An inner root may lie in an excluded folder: `--pattern '- X'` still walks into X, `--exclude X` does not. But `re:` and `pf:` may
  // match the folder alone, and `-` would then store the files in it: with these, both roots are given, and the inner one is stored twice.
  const nested = what.roots.filter((root) => root.startsWith('/') && what.roots.some((other) => root.startsWith(`${other}/`)));
  const onTheWay = nested.length > 0 && !settings.exclude.some((pattern) => /^(re|pf):/.test(pattern));
  const excluded = (pattern) => (onTheWay ? ['--pattern', `- ${/^[a-z]{2}:/.test(pattern) ? '' : 'fm:'}${pattern}`] : ['--exclude', pattern]);
  const waits = what.fed !== undefined;
  return [...diesWithUs(waits ? 'KILL' : 'INT'), 'borg', '--log-json', '--progress', '--lock-wait', PATIENT_LOCK_WAIT,
    ...(settings.uploadLimitKiB ? ['--upload-ratelimit', String(settings.uploadLimitKiB)] : []),
    'create', '--json', '--list', '--filter', waits ? 'CEi' : 'CE', ...(waits ? ['--stdin-name', what.fed, '--stdin-mode', '0600'] : []),
    ...(what.filesCache ? ['--files-cache', what.filesCache] : []),
    '--compression', settings.compression,
    '--chunker-params', settings.chunker,
    '--checkpoint-interval', '300', // what an interrupted night has uploaded counts the next night
    '--comment', comment,
    ...(settings.exclude.length === 0 ? [] : ['record', ...what.whole].flatMap((root) => ['--pattern', `+ pp:${root}`])), // the first match counts
    ...settings.exclude.flatMap(excluded),
    `::${what.archive}`, ...what.roots.filter((root) => !onTheWay || !nested.includes(root))];
}

/**
 * Begin one pass. Given the command, the folder relative roots are in, the run's mark, the name of the pass and last night's
 * size, shows progress. tested: an earlier pass of this run has done borg's self-test, so it is skipped. `end` throws
 * Problem when borg failed: then there is no archive of that name.
 */
function beginPass(settings, command, options) {
  const waits = command.includes('-'), ladder = waits ? ['SIGTERM', 'SIGKILL'] : [...GENTLY];
  const listener = listenToPass(progressTeller(options.title, options.expectedBytes));
  let began = Date.now(), program = null, calledOff = null;
  const pass = async () => {
    const done = await change(command, {
      cwd: options.cwd,
      env: { ...borgEnvironment(settings, options.run), ...(options.tested ? { BORG_SELFTEST: 'disabled' } : {}) },
      ladder, seconds: options.seconds, onErrorLine: listener.onLine,
      ...(waits ? { onStart: (started) => { program = started; } } : {}),
    });
    program = null;
    goOn(); // borg may have ended because we asked it to
    if (done.timedOut) throw new Problem(`${options.title} did not get through in time: ${listener.reached()}`,
      { ran: command.slice(0, 6), hint: 'what was uploaded counts: the next run goes on from there' });
    if (done.code !== 0 && !borgOnlyWarned(done.code)) throw borgFailure(`${options.title} failed`, { ...done, argv: shortened(command) });
    const { id: archiveId, stats } = answerOf(options.title, done, { archive: { id: 'text', stats: { nfiles: 'number', original_size: 'number', compressed_size: 'number', deduplicated_size: 'number' } } }).archive;
    return { ...listener.found, complaints: done.code === 0 ? [] : listener.found.complaints, archiveId, files: stats.nfiles, seconds: (Date.now() - began) / 1000,
      originalBytes: stats.original_size, compressedBytes: stats.compressed_size, deduplicatedBytes: stats.deduplicated_size };
  };
  const end = pass(), until = async (event) => void await Promise.race([event, end]);
  const underWay = {
    end, isWaiting: until(listener.isWaiting), isRead: until(listener.isRead),
    feed: (text) => {
      began = Date.now();
      ladder.splice(0, ladder.length, ...GENTLY);
      program?.feed(text);
    },
    callOff: () => calledOff ??= (async () => {
      program?.end();
      const hasEnded = await Promise.race([end.then(() => true, () => true), sleep(LONGEST_DEATH_MS, false)]);
      if (!hasEnded) warn(`the borg of the ${options.title} has been killed and does not go away (a disk or a network file system that hangs?): it will write nothing more`);
    })(),
  };
  for (const one of [end, underWay.isWaiting, underWay.isRead]) one.catch(() => {}); // who does not wait for one of them hears it from another
  return underWay;
}

// What borg says while it works: how far it is, what it could not read as it was, and where in its work it is.
function listenToPass(progress) {
  const found = { changed: [], unread: [], complaints: [] };
  let progressAt = 0, markWaiting = () => {}, markRead = () => {};
  const isWaiting = new Promise((resolve) => { markWaiting = resolve; }), isRead = new Promise((resolve) => { markRead = resolve; });
  const keep = (list, text) => { if (list.length < KEPT_NAMES) list.push(text); };
  const onLine = (line) => {
    const isProgress = /"type": ?"archive_progress"/.test(line), isLast = /"finished": ?true/.test(line);
    if (isProgress && !isLast && Date.now() - progressAt < 200) return; // many a second, and one would see none of them
    if (isProgress) progressAt = Date.now();
    // Only what is said at the top level counts: borg passes on whatever a storage puts into its log messages, but never under these types (remote.py).
    const note = parseLine(line);
    switch (note?.type) {
      case 'archive_progress': return note.finished ? markRead() : progress(note); // finished: said before the archive is saved (archiver.py, create_inner)
      case 'file_status':
        if (note.status === 'i') markWaiting(); // said before it is read (archive.py, process_pipe)
        if (note.status === 'C') keep(found.changed, absolute(String(note.path)));
        if (note.status === 'E') keep(found.unread, absolute(String(note.path)));
        return;
      case 'log_message':
        if (/WARNING|ERROR|CRITICAL/.test(note.levelname ?? '')) keep(found.complaints, note.message ?? '');
    }
  };
  return { found, onLine, isWaiting, isRead, reached: progress.reached };
}

/** A pass from begin to end. */
const takePass = (settings, command, options) => beginPass(settings, command, options).end;

// Hundreds of paths are no help in an error.
function shortened(command) {
  return command.length > 24 ? [...command.slice(0, 24), '...'] : command;
}

function absolute(file) {
  return file.startsWith('/') ? file : `/${file}`;
}

/** Tells how far a pass is: a live line on a terminal, a plain line every five minutes elsewhere. */
function progressTeller(title, expectedBytes) {
  const began = Date.now();
  let shownAt = 0, toldAt = Date.now(), last = 'nothing yet';
  const tell = (note) => {
    const now = Date.now(), bytes = note.original_size ?? 0, seconds = (now - began) / 1000;
    last = `${note.nfiles ?? 0} files, ${size(bytes)} read, ${size(note.deduplicated_size ?? 0)} new`;
    if (now - shownAt < 250) return;
    shownAt = now;
    const left = expectedBytes > bytes && bytes > 0 ? `, about ${span((expectedBytes - bytes) * seconds / bytes)} left` : '';
    const line = `${title}: ${last}, ${size(bytes / Math.max(seconds, 0.1))}/s${left}`;
    if (!sayLive(`${line}  ${note.path ?? ''}`) && now - toldAt > 300_000) {
      toldAt = now;
      say(line);
    }
  };
  return Object.assign(tell, { reached: () => last });
}

// =========================================================================================================
// ==== ARCHIVES ====
// The archives of a repository: their lists, and their names, which say what each of them is. Only reads.

const WITHOUT_LOCK = ['--bypass-lock']; // a run that is under way is not in the way

/**
 * Given the server ('' = any) and an archive's name, returns 'cold', 'proof' (the cold one of its name is good), 'warm' (a copy of what
 * ran), 'checkpoint' (what an interrupted pass had sent), or 'other' (neither this script nor a pass of it writes such a name there).
 */
function kindOf(server, name) {
  const own = new RegExp(`^(proven-)?${server ? server.replaceAll('.', '\\.') : '.+?'}-\\d{4}-\\d\\d-\\d\\dT\\d\\d:\\d\\d:\\d\\d(-warm\\.checkpoint)?((?:\\.checkpoint(?:\\.\\d+)?)?)$`).exec(name);
  if (!own) return 'other';
  return own[3] ? 'checkpoint' : own[2] ? 'warm' : own[1] ? 'proof' : 'cold';
}

/** The time in an archive's name, as ISO 8601 UTC; '' when there is none. */
function stampOf(name) {
  const stamp = /\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d/.exec(name)?.[0];
  return stamp ? `${stamp}Z` : '';
}

/** The server in the name of a cold archive. */
const serverIn = (archive) => archive.slice(0, -'-2026-11-23T02:00:00'.length);

/** Every archive of the repository, checkpoints too, oldest first. more: words for borg, as WITHOUT_LOCK. */
async function listEverything(settings, more = [], options = {}) {
  const done = await askBorg(settings, ['list', ...more, '--json', '--consider-checkpoints', '--format', '{comment}{end}'], { keepBytes: 1 << 28, ...options });
  if (done.code !== 0) throw borgFailure('the archives cannot be listed', done);
  return answerOf('the archives cannot be listed', done, { archives: [{ id: 'text', name: 'text', start: 'time', 'end?': 'time', 'comment?': 'text' }] }).archives.map(({ id, name, start, end, comment }) => {
    let facts = {};
    try {
      const read = JSON.parse(comment ?? '');
      if (typeof read === 'object' && read !== null) facts = read;
    } catch { /* another tool's */ }
    return { id, name, startedAt: `${start.slice(0, 19)}Z`, endedAt: `${(end ?? start).slice(0, 19)}Z`, facts };
  });
}

/** The ids of all archives alone, in the same order. No archive is opened for it, so it stays fast with thousands. */
async function listIds(settings, options = {}) {
  const done = await askBorg(settings, ['list', '--consider-checkpoints', '--format', '{id}{NL}'], options);
  if (done.code !== 0) throw borgFailure('the archives cannot be listed', done);
  return done.out.split('\n').filter((line) => line !== '');
}

/**
 * Given all archives, oldest first, returns the ids of those that another tool wrote here before this script wrote its first, though they are named like ours
 * (`{hostname}-{now}`). Ours have a comment of ours, or a proof.
 */
function writtenBefore(all) {
  const names = new Set(all.map(({ name }) => name)), first = all.findIndex(({ name, facts }) => facts.format === 1 || names.has(`proven-${name}`));
  return new Set(all.slice(0, Math.max(0, first)).filter(({ name }) => kindOf('', name) === 'cold').map(({ id }) => id));
}

/**
 * The archives of this server ('' = of any), oldest first. A cold archive is 'proven' when its `proven-` twin is there; sizes come from the
 * twin's comment, so that one listing answers everything. 'other': what another tool wrote here before. Those of other servers, and interrupted passes, are left out.
 */
async function listArchives(settings, server, more = [], options = {}) {
  const all = await listEverything(settings, more, options), proofs = new Map(all.filter(({ name }) => kindOf('', name) === 'proof').map(({ name, facts }) => [name.slice('proven-'.length), facts]));
  const before = writtenBefore(all), others = new Set(all.filter(({ id, name }) => kindOf('', name) === 'cold' && !before.has(id)).map(({ name }) => serverIn(name)));
  if (server !== '' && others.size > 0 && !others.has(server)) warn(`no archive here is of ${server}, but there are some of ${[...others].slice(0, 5).map(named).join(', ')}: was this server renamed? Then write its old name as \`server\``);
  return all.flatMap(({ id, name, startedAt }) => {
    const isOther = before.has(id) || kindOf('', name) === 'other' && !/\.checkpoint(\.\d+)?$/.test(name), kind = kindOf(server, name), proof = proofs.get(name);
    if (!isOther && kind !== 'cold' && kind !== 'warm') return [];
    return [{
      archive: name,
      madeAt: stampOf(isOther ? '' : name) || startedAt,
      kind: isOther ? 'other' : kind === 'warm' ? 'warm' : proof === undefined ? 'unproven' : 'proven',
      originalBytes: proof?.originalBytes ?? null,
      deduplicatedBytes: proof?.deduplicatedBytes ?? null,
      downSeconds: proof?.downSeconds ?? null,
      files: proof?.files ?? null,
    }];
  });
}

/** One file out of an archive, as text. more: words for borg, as WITHOUT_LOCK. Throws Problem when it is not there. */
async function readFromArchive(settings, archive, file, options = {}, more = []) {
  const done = await askBorg(settings, ['extract', ...more, '--stdout', `::${archive}`, file], { keepBytes: 256 * 1024 * 1024, ...options });
  if (done.code !== 0) throw borgFailure(`${file} cannot be read back from ${archive}`, done);
  return done.out;
}

// =========================================================================================================
// ==== STORAGE ====
// The storage as this server reaches it: its address, ssh, and what `borg serve` says of itself.
// It asks, and changes nothing, but for one empty transaction where nothing else tells whether the storage is append-only.

// A test call that every `borg serve` since 1.1 answers before it opens anything: its error report shows the server's own
// command line and version (borg, remote.py, inject_exception). MessagePack: negotiate, then inject_exception(kind=divide).
const ASK_SERVER = 'g6FpAaFtqW5lZ290aWF0ZaFhgatjbGllbnRfZGF0YYGuY2xpZW50X3ZlcnNpb26TAQIEg6FpAqFtsGluamVjdF9leGNlcHRpb26hYYGka2luZKZkaXZpZGU=';

/** The parts of a repository address on ssh: ssh://user@host:port/path, or user@host:path. */
function repositoryAddress(repository) {
  const url = /^ssh:\/\/(?:([^@/]+)@)?(\[[^\]]+\]|[^:/]+)(?::(\d+))?(\/.*)$/.exec(repository) ?? /^(?:([^@/:]+)@)?(\[[^\]]+\]|[^:/]+)()?:(.+)$/.exec(repository);
  if (!url) throw new Problem(`repository ${named(repository)} is no address on ssh`, { exitCode: 64 });
  const [, user = '', host, port = '', rest] = url;
  return { user, host: host.replace(/^\[|\]$/g, ''), port, path: rest.replace(/^\/(?=\.\/|~)/, '') }; // borg: /./x and /~/x start at the home folder
}

/** The ssh command to the storage, without the command to run there. */
function sshToStorage(settings) {
  const { user, host, port } = repositoryAddress(settings.repository);
  return [...sshCommand(settings), ...(port ? ['-p', port] : []), '--', user ? `${user}@${host}` : host];
}

// ssh by itself, because borg hides what ssh says. A forced command answers in its own way: any answer but 255 is a connection.
async function tryConnection(settings) {
  const done = await look([...sshToStorage(settings), 'borg --version']);
  if (done.code !== 255) return done.out.trim() || 'the storage answers';
  const hint = /Permission denied/i.test(done.said) ? 'the storage does not know our key: put the line that `node backup.js setup` prints into its authorized_keys'
    : /host key/i.test(done.said) && !fs.existsSync(settings.knownHostsFile) ? 'setup has not been finished here: node backup.js setup'
    : /kex_exchange_identification/.test(done.said) ? 'the storage hangs up at once. Since 9.8 sshd does so for some minutes after several logins that failed (sshd_config(5), PerSourcePenalties): wait, and try again. Else ask its keeper'
    : /host key/i.test(done.said) ? 'the storage\'s host key is not the one in `knownHostsFile`: ask its keeper before you change anything' : 'is the address right (`repository` in the settings), and the storage reachable from here (VPN, firewall, name)?';
  throw failure('no ssh connection to the storage', done, hint);
}

/**
 * What the server on the storage says of itself: its command line, and borg's version; null when it does
 * not say. Nothing is opened or written.
 */
async function serverCommandLine(ssh) {
  const report = await look(['sh', '-c', 'bytes=$1; shift; printf %s "$bytes" | base64 -d | exec "$@"', 'sh', ASK_SERVER, ...ssh, 'borg serve']);
  const text = `${report.out}\n${report.said}`;
  return { words: /sys\.argv: \[(.*?)\]/.exec(text)?.[1]?.replaceAll("', '", ' ').replace(/^'|'$/g, '') ?? null, version: /Borg: (\d+\.\d+\.\d+\S*)/.exec(text)?.[1] ?? null };
}

/**
 * Whether a repository beside ours is refused, as one below the same folder would not be with `--restrict-to-path`. Returns
 * null when it cannot be seen. It asks for a list, and makes nothing.
 */
async function refusesOthers(settings) {
  const done = await askBorg({ ...settings, repository: `${settings.repository.replace(/\/+$/, '')}-other` }, ['list', '--short']);
  if (/PathNotAllowed|Repository path not allowed/.test(done.said)) return true;
  return done.code === 0 || /Repository\.(DoesNotExist|InvalidRepository)|Passphrase|Keyfile/.test(done.said) ? false : null;
}

/**
 * The second way to ask, when the command line does not tell: `compact` with a threshold that no data file can reach. A server that may compact says that it
 * begins to, an append-only one passes over it (repository.py, commit()). Returns null when neither can be seen. It adds an empty transaction, and deletes nothing on either.
 */
async function compactsNothing(settings) {
  const done = await askBorg(settings, ['compact', '--debug', '--threshold', '1000']);
  if (done.code !== 0 || !/check_free_space/.test(done.said)) return null;
  return !/Compaction started/i.test(done.said);
}

// =========================================================================================================
// ==== PASSPORT ====
// The passport: everything needed to build a machine on which the saved files work.
// And to say no on one where they would not. Gathered while the databases still answer, from them, from their files, and from
// the machine or container they run in. It only looks. A fact that cannot be had is a warning, never a reason for no backup.
// Of a container's environment it holds the names only.

const HELD_BACK_BYTES = 500e6; // of WAL, by a slot that nobody uses

// The facts of every database, a few at a time, each with the order its collations sort in (asked once for each definition).
async function databasesOf(cluster, rows) {
  const known = new Map();
  const orderOf = (database, definition, collation) => {
    const key = JSON.stringify(definition);
    if (!known.has(key)) known.set(key, orderFingerprint(cluster, database, collation));
    return known.get(key);
  };
  const complete = async (row) => {
    if (!row.connectable) return { ...row, orderFingerprint: '' };
    const facts = { ...await askCluster(cluster, row.name, activityQuestion), ...await askCluster(cluster, row.name, databaseQuestions) }; // in this order
    const own = await orderOf(row.name, [row.encoding, row.provider, row.collate, row.ctype, row.locale, row.rules]);
    for (const one of facts.collations ?? []) {
      const { schema, name, provider, locale, rules, deterministic } = one;
      const quoted = [schema, name].map(quotedName).join('.');
      if (provider === 'd') Object.assign(one, { provider: row.provider, locale: row.locale ?? row.collate, recorded: row.recorded, actual: row.actual, orderFingerprint: own });
      else one.orderFingerprint = await orderOf(row.name, [row.encoding, provider, locale, rules, deterministic], quoted);
    }
    return { ...row, ...facts, orderFingerprint: own };
  };
  return fourAtATime(rows, complete);
}

// `NAME = value`, `NAME="value"` or `Name:  value`, one a line.
function pairsIn(text, sign) {
  const lines = text.split('\n').filter((line) => line.includes(sign));
  return Object.fromEntries(lines.map((line) => [line.slice(0, line.indexOf(sign)).trim(), line.slice(line.indexOf(sign) + 1).trim().replace(/^(["'])(.*)\1$/, '$2')]));
}

async function clusterPassport(cluster) {
  const { pid, ...known } = cluster;
  const root = rootOf(cluster), place = [...(cluster.container || cluster.words ? [] : asOwner(cluster)), ...placeOf(cluster)]; // whoever runs a cluster names its programs: root runs none of them
  let control = { state: 'unknown', systemIdentifier: '' };
  try {
    control = controlState(cluster.dataDirectory);
  } catch (error) {
    warn(`the control file of postgres ${cluster.name} cannot be read: ${error}`);
  }
  if (!pid) say(`postgres ${cluster.name} does not run: its passport holds only what its files tell`);
  let facts = pid ? await askCluster(cluster, await homeOf(cluster), clusterQuestions(Number(cluster.version))) : {};
  if (facts.control && control.systemIdentifier && facts.control.system_identifier !== control.systemIdentifier) {
    warn(`on the socket of postgres ${cluster.name} another cluster answers: the passport lacks its facts`);
    facts = {};
  }
  const { control: controlTold, pgConfig: configTold, databases, ...server } = facts;
  const ask = (name, ...words) => look([...place, 'env', 'LC_ALL=C', path.join(cluster.binaries || `/usr/lib/postgresql/${cluster.version}/bin`, name), ...words], { cwd: '/' });
  const controlData = await ask('pg_controldata', '-D', cluster.insideDataDirectory || cluster.dataDirectory);
  const icu = /libicui18n\S* => (\/\S+)/.exec((await look([...place, 'ldd', path.join(cluster.binaries, 'postgres')], { cwd: '/' })).out)?.[1] ?? '';
  for (const slot of server.slots ?? []) warnOfSlot(cluster.name, slot);
  const passport = {
    ...known, ...server,
    answers: server.serverVersion !== undefined,
    systemIdentifier: control.systemIdentifier,
    controlData: controlData.code === 0 ? pairsIn(controlData.out, ':') : controlTold ?? control,
    pgConfig: configTold ?? pairsIn((await ask('pg_config')).out, '='),
    icu: path.basename(icu && fs.existsSync(root + icu) ? fs.realpathSync(root + icu) : icu), // libicui18n.so.72 is a link to libicui18n.so.72.1
    databases: await databasesOf(cluster, databases ?? []),
  };
  if (cluster.container && pid) Object.assign(passport, { system: await systemOf(place), packages: await packagesOf(place, filesInUse(cluster, passport)) });
  return passport;
}

// While a subscriber or standby is away (for its own backup, too) its slot keeps WAL for it, without end or up to max_slot_wal_keep_size; beyond that it is lost.
function warnOfSlot(cluster, { slot_name: slot, active, retainedBytes, wal_status: status }) {
  const name = `replication slot ${named(String(slot))} of ${named(cluster)}`, held = Number(retainedBytes), drop = `select pg_drop_replication_slot('${slot}')`;
  if (status === 'lost') return warn(`${name} has lost WAL that its subscriber or standby still needs, because of max_slot_wal_keep_size: that one has to be made anew; ${drop}`);
  if (status === 'unreserved') return warn(`${name} is about to lose WAL that its subscriber or standby still needs: bring that one back now, or raise max_slot_wal_keep_size`);
  if (active === false && held > HELD_BACK_BYTES) warn(`${name}, which nobody uses, holds back ${size(held)} of WAL: it is saved every night, and may fill the disk (max_slot_wal_keep_size is the limit). Forgotten? ${drop}`);
}

// What of PostgreSQL's own files a cluster needs beside its data: the server, libraries in use, extensions, dictionaries.
function filesInUse(cluster, { pgConfig, preloadLibraries, databases }) {
  const folder = pgConfig.PKGLIBDIR ?? '', share = pgConfig.SHAREDIR ?? '', root = rootOf(cluster);
  const preloaded = Object.values(preloadLibraries ?? {}).flatMap((list) => list.split(',').map((one) => one.trim().replaceAll('"', '')));
  const libraries = [...preloaded, ...databases.flatMap((one) => one.libraries ?? [])].filter((one) => one !== '');
  const extensions = databases.flatMap((one) => one.extensions ?? []).map(({ name }) => path.join(share, 'extension', `${name}.control`));
  const words = path.join(share, 'tsearch_data');
  const dictionaries = share && fs.existsSync(root + words) ? fs.readdirSync(root + words).map((name) => path.join(words, name)) : [];
  const files = [path.join(cluster.binaries, 'postgres'), ...extensions, ...dictionaries,
    ...libraries.map((one) => path.resolve(folder, one.replace(/^\$libdir\//, '')).replace(/(\.so)?$/, '.so'))];
  return [...new Set(files)].filter((file) => fs.existsSync(root + file));
}

// `list` names every installed package, `line` finds name and version in it; `owners`, given files, names their packages.
const PACKAGERS = [
  { list: ['dpkg-query', '--show', '--showformat', '${db:Status-Abbrev}${binary:Package}\t${Version}\n'], line: /^ii (\S+)\t(\S+)$/gm,
    owners: ['dpkg-query', '--search'] },
  { list: ['rpm', '--query', '--all', '--queryformat', '%{NAME}\t%{VERSION}-%{RELEASE}\n'], line: /^(\S+)\t(\S+)$/gm,
    owners: ['rpm', '--query', '--queryformat', '%{NAME}: /\n', '--file'] },
  { list: ['apk', 'info', '--verbose'], line: /^(\S+)-(\d[^-\s]*-r\d+)$/gm, owners: [] },
];
const NEEDED_PACKAGES = /^(libc6|glibc|glibc-.*|musl|libicu\d*|icu-libs|locales|locales-all|tzdata|borgbackup2?|nodejs|postgresql-common)(:.*)?$/;

// Every package with its version; those that are needed by name or because they own one of FILES; the FILES that no package owns.
async function packagesOf(place, files) {
  for (const { list, line, owners } of PACKAGERS) {
    const { code, out } = await look([...place, ...list]);
    if (code !== 0) continue;
    const all = Object.fromEntries([...out.matchAll(line)].map(([, name, version]) => [name, version]));
    const needed = new Set(Object.keys(all).filter((name) => NEEDED_PACKAGES.test(name)));
    let unowned = files;
    if (owners.length > 0 && files.length > 0) {
      const { out: owned } = await look([...place, ...owners, ...files]); // all in one call: each reads the whole database
      for (const [, names] of owned.matchAll(/^(?!diversion )([^/\n]+): \//gm)) names.split(', ').forEach((name) => needed.add(name));
      unowned = files.filter((file) => (list[0] === 'rpm' ? owned.includes(`file ${file} is not owned`) : !owned.includes(`: ${file}\n`)));
    }
    return { all, needed: Object.fromEntries([...needed].sort().map((name) => [name, all[name] ?? ''])), unowned };
  }
  return { all: {}, needed: {}, unowned: files };
}

async function systemOf(place) {
  const told = async (...argv) => (await look([...place, ...argv])).out.trim();
  const [osRelease, kernel, glibc, pageSize, locales] = await Promise.all([
    told('cat', '/etc/os-release'), told('uname', '-srm'), told('getconf', 'GNU_LIBC_VERSION'), told('getconf', 'PAGE_SIZE'), told('locale', '-a'),
  ]);
  const libc = glibc || lastLines((await look([...place, 'ldd'])).said, 3).replaceAll('\n', ' '); // musl tells its version only so
  return { osRelease: pairsIn(osRelease, '='), kernel, libc, pageSize, locales: locales.split('\n').filter((one) => one !== '') };
}

// The owners of the saved files: borg keeps names, but a number is what lies on the disk, and a container's has no name here.
async function ownersOf(roots) {
  const seen = { users: new Set(), groups: new Set() };
  const onLine = (line) => {
    const [user = '', group = ''] = line.split(':');
    seen.users.add(user);
    seen.groups.add(group);
  };
  const done = roots.length > 0 ? await look(['find', ...roots, '-printf', '%U:%G\\n'], { seconds: 900, keepBytes: 0, onLine }) : null;
  if (done?.timedOut) warn('the owners of the saved files were not all seen in 15 minutes: the passport may lack some');
  const namesOf = async (database, ids) => {
    const numbers = [...ids].map(Number).sort((one, other) => one - other);
    const { out } = numbers.length > 0 ? await look(['getent', database, ...numbers.map(String)]) : { out: '' }; // those it does not know are left out
    const known = new Map(out.split('\n').map((line) => line.split(':')).map((fields) => [Number(fields[2]), fields]));
    return numbers.map((id) => {
      const [name = '', , , group, , home, shell] = known.get(id) ?? [];
      return database === 'passwd' ? { id, name, group: group ? Number(group) : null, home: home ?? '', shell: shell ?? '' } : { id, name };
    });
  };
  return { users: await namesOf('passwd', seen.users), groups: await namesOf('group', seen.groups) };
}

async function containersOf(names) {
  if (names.length === 0) return [];
  const done = await look(['docker', 'inspect', '--type=container', ...names]); // one that has just gone makes exit code 1, the others are told
  const found = JSON.parse(done.out || '[]');
  if (done.code !== 0) warn(`not every container is in the passport: ${lastLines(done.said, 2)}`);
  const images = await look(['docker', 'image', 'inspect', ...new Set(found.map((one) => one.Image))]);
  const digests = new Map(JSON.parse(images.out || '[]').map((image) => [image.Id, image.RepoDigests ?? []]));
  return found.map(({ Name, Id, Image, Config, HostConfig, Mounts, NetworkSettings }) => {
    const label = (name) => Config.Labels?.[`com.docker.compose.${name}`] ?? '';
    return {
      name: Name.replace(/^\//, ''), id: Id, image: Config.Image, imageId: Image, imageDigests: digests.get(Image) ?? [],
      composeProject: label('project'), composeService: label('service'), composeFolder: label('project.working_dir'),
      composeFiles: label('project.config_files').split(',').filter((file) => file !== ''),
      mounts: Mounts.map((one) => ({ type: one.Type, name: one.Name ?? '', source: one.Source, destination: one.Destination, writable: one.RW })),
      restartPolicy: HostConfig.RestartPolicy?.Name ?? '', user: Config.User,
      environmentNames: (Config.Env ?? []).map((one) => one.split('=')[0]), // the values can be secrets
      stopSignal: Config.StopSignal ?? '', stopTimeoutSeconds: Config.StopTimeout ?? null,
      hasHealthCheck: Boolean(Config.Healthcheck) && Config.Healthcheck.Test?.[0] !== 'NONE',
      networks: Object.keys(NetworkSettings?.Networks ?? {}), ports: Object.keys(HostConfig.PortBindings ?? {}),
    };
  });
}

/**
 * Given all clusters to be saved, the names of the containers and every path to be saved, returns the passport.
 * Looks only. Never throws for a fact that cannot be had: warns of it, and leaves it out.
 */
async function passportOf(clusters, containers, roots) {
  const [system, owners, postgres, boxes, borg] = await Promise.all([
    orLacking('facts of this machine', systemOf([]), { osRelease: {}, kernel: '', libc: '', pageSize: '', locales: [] }),
    orLacking('the owners of the saved files', ownersOf(roots), { users: [], groups: [] }),
    Promise.all(clusters.map((one) => orLacking(`postgres ${one.name}`, clusterPassport(one),
      { ...one, answers: false, systemIdentifier: '', controlData: {}, pgConfig: {}, icu: '', databases: [] }))),
    orLacking('the containers', containersOf(containers), []),
    borgVersion().catch(() => ''),
  ]);
  const files = clusters.flatMap((cluster, i) => (cluster.container ? [] : filesInUse(cluster, postgres[i])));
  const packages = await packagesOf([], [...new Set(files)]);
  if (Object.keys(packages.all).length === 0) warn('the passport lacks the packages of this machine: neither dpkg-query, rpm nor apk lists them');
  return {
    host: { name: os.hostname(), architecture: os.arch(), timeZone: Intl.DateTimeFormat().resolvedOptions().timeZone, ...system, ...owners },
    packages: { ...packages, borg, node: process.version.slice(1) },
    postgres,
    containers: boxes,
  };
}

// Whatever goes wrong here costs one fact, not the night. Only a wish to stop goes through.
async function orLacking(what, gathered, otherwise) {
  try {
    return await gathered;
  } catch (error) {
    goOn();
    warn(`the passport lacks ${what}: ${error instanceof Problem ? error.message : error}`);
    return otherwise;
  }
}

// =========================================================================================================
// ==== PARTNERS ====
// Partners: who else holds the data of a cluster, and notices nothing when that goes back in time.
// By replication, or by Bucardo. A publisher, or the slot of a subscriber, has moved on by then, and rows are passed over
// without an error: so a restore has to say it. Only reads the passport.

const OF_A_COPY = /^pg_\d+_sync_\d+/; // slots and walsenders of a subscription's first copy (PostgreSQL manual, "Replication Slot Management")

/** Given what the passport holds of a cluster, returns its partners, each once. */
function partnersOf({ slots = [], standbys = [], subscriptions = [], recovery = {}, databases }) {
  const isString = (value) => typeof value === 'string', isReader = (pid) => slots.some((slot) => slot.plugin && slot.active_pid === pid);
  const found = [
    ...subscriptions.map(({ subname, database }) => ({ kind: 'subscription', name: subname, database })),
    ...slots.filter((slot) => slot.plugin && isString(slot.slot_name) && slot.temporary !== true && !OF_A_COPY.test(slot.slot_name)).map(({ slot_name: name, database }) => ({ kind: 'slot', name, database: isString(database) ? database : '' })),
    ...standbys.filter(({ pid, application_name: name }) => isString(name) && !isReader(pid) && !OF_A_COPY.test(name) && name !== 'pg_basebackup').map(({ application_name: name }) => ({ kind: 'standby', name, database: '' })),
    ...(recovery.inRecovery === true ? [{ kind: 'primary', name: '', database: '' }] : []),
    ...databases.filter(({ rows = {} }) => Object.keys(rows).some((table) => /^"?bucardo"?\.delta_/.test(table))).map(({ name }) => ({ kind: 'bucardo', name: 'Bucardo', database: name })),
  ];
  return found.filter((one, at) => found.findIndex((other) => JSON.stringify(other) === JSON.stringify(one)) === at);
}

// =========================================================================================================
// ==== WAYS ====
// Ways: how each path gets into the archive when `snapshot` is 'yes', and why.
// A btrfs subvolume is snapshotted; other folders on btrfs and xfs are copied by reflink; small ones are simply copied; what
// allows none of these is read while everything is stopped, as without a snapshot. Only looks, before the stop and at the
// space while the copies are read.

const COPY_MARK = '.cold-backup-snapshot-';
const SMALL_FOLDER = { files: 500, bytes: 16e6 };
const LEAST_FREE = 256e6;
const FREE_SHARE = 0.1; // of what lies on the file system: blocks that are written while a copy is there are new ones

/** Where file systems are mounted (proc(5), mountinfo); the last one of a folder is the one that is seen. */
function mounts() {
  const plain = (word) => word.replace(/\\(\d{3})/g, (_, octal) => String.fromCharCode(parseInt(octal, 8)));
  return fs.readFileSync('/proc/self/mountinfo', 'latin1').trimEnd().split('\n').map((line) => {
    const [left = '', right = ''] = line.split(' - ');
    return { folder: Buffer.from(plain(left.split(' ')[4] ?? ''), 'latin1').toString(), type: right.split(' ')[0] ?? '', device: left.split(' ')[2] ?? '' };
  });
}

const hasCopy = (root) => root.copy !== '';
const liesIn = (file, folder) => file !== folder && isBelow(file, folder);

/** Given the paths to save, returns them with the way of each, and why. Looks only. `run` names the copies. */
async function chooseWays(roots, stateFolder, run) {
  const all = mounts(), hasBtrfs = (await look(['btrfs', '--version'])).code === 0;
  const chosen = [];
  for (const [index, root] of roots.entries()) chosen.push({ ...root, ...await wayOf(root.path, `${COPY_MARK}${run.slice(0, 8)}-${index}`, { roots, all, hasBtrfs, stateFolder }) });
  const short = withoutSpace(chosen);
  for (const [folder, why] of short) {
    warn(`no snapshot of ${named(folder)}: ${why}`);
    Object.assign(chosen.find((one) => one.path === folder), { way: 'cold', because: why, copy: '' });
  }
  readWithOuter(chosen);
  const isWorthIt = chosen.some((one) => one.way === 'subvolume' || one.way === 'reflink') || !chosen.some((one) => one.way === 'cold');
  if (isWorthIt) return chosen;
  return chosen.map((one) => (one.way === 'cold' ? one : { ...one, way: 'cold', because: 'nothing is snapshotted, so it is read with the others', copy: '' }));
}

// borg reads a path inside one that is read cold with that one. A copy of it, too, would be listed twice.
function readWithOuter(roots) {
  const inner = roots.filter((one) => hasCopy(one) && roots.some((outer) => outer.way === 'cold' && liesIn(one.path, outer.path)));
  for (const one of inner) Object.assign(one, { way: 'cold', because: 'it is read with what it lies in', copy: '' });
}

async function wayOf(folder, name, { roots, all, hasBtrfs, stateFolder }) {
  const cold = (because) => ({ way: 'cold', because, copy: '' });
  const facts = fs.lstatSync(folder), mountOf = (file) => all.filter((one) => isBelow(file, one.folder)).sort((one, other) => one.folder.length - other.folder.length).pop();
  if (!facts.isDirectory() && !facts.isFile()) return { way: 'link', because: 'it holds nothing itself', copy: '' };
  if (process.getuid?.() !== 0) return cold('a snapshot needs root');
  if (stateFolder === folder || liesIn(stateFolder, folder)) return cold('the state folder lies in it');
  const inside = all.find((one) => liesIn(one.folder, folder)), own = mountOf(folder);
  if (inside) return cold(`${named(inside.folder)} is mounted in it`);
  const top = roots.map((root) => root.path).filter((one) => liesIn(folder, one)).sort((one, other) => one.length - other.length)[0] ?? folder; // a copy must not lie in what is saved
  // Whoever owns the folder beside could swap the copy there for a link, and have root write or delete where it leads: then it lies further up.
  let beside = path.dirname(top);
  while (beside !== '/' && mountOf(beside) === own && !isOursAlone(beside)) beside = path.dirname(beside);
  const isMount = own.folder === folder, isBesideSame = mountOf(beside) === own && isOursAlone(beside);
  const isSubvolume = own.type === 'btrfs' && facts.isDirectory() && facts.ino === 256; // the number of every subvolume's own folder
  if (isSubvolume && hasBtrfs && (isBesideSame || (top === folder && isOursAlone(folder)))) {
    const nested = await look(['btrfs', 'subvolume', 'list', '-o', folder]);
    if (nested.code === 0 && nested.out.trim() === '') return { way: 'subvolume', because: 'a subvolume of btrfs', copy: path.join(isBesideSame ? beside : folder, name) };
  }
  if (isSmall(folder)) return { way: 'copy', because: 'it is small', copy: path.join(stateFolder, name) };
  if (own.type !== 'btrfs' && own.type !== 'xfs') return cold(`${own.type} cannot copy on write`);
  if (isMount || mountOf(path.dirname(top)) !== own) return cold(`${named(isMount ? folder : top)} is a mount point: there is no place for a copy beside it`);
  if (!isBesideSame) return cold(`others than root could change ${named(own.folder)}, where the copy would lie: let that folder itself belong to root`);
  return { way: 'reflink', because: `on ${own.type}`, copy: path.join(beside, name) };
}

function isSmall(folder) {
  let files = 0, bytes = 0;
  const walk = (file) => {
    const facts = fs.lstatSync(file);
    files++;
    bytes += facts.isFile() ? facts.size : 0;
    if (files > SMALL_FOLDER.files || bytes > SMALL_FOLDER.bytes) return false;
    return !facts.isDirectory() || namesIn(file, SMALL_FOLDER.files + 1).every((name) => walk(path.join(file, name)));
  };
  try {
    return walk(folder);
  } catch { // it is changing just now
    return false;
  }
}

// The first names of a folder; it may hold a million.
function namesIn(folder, most) {
  const names = [], opened = fs.opendirSync(folder);
  for (let one = opened.readSync(); one !== null && names.length < most; one = opened.readSync()) names.push(one.name);
  opened.closeSync();
  return names;
}

const isOnWrite = (root) => root.way === 'subvolume' || root.way === 'reflink';

/** What a file system must have free while a copy on write lies on it, in bytes. */
function neededOn(folder) {
  const { bavail, bfree, blocks, bsize } = fs.statfsSync(folder);
  return { free: bavail * bsize, needed: Math.max(LEAST_FREE, FREE_SHARE * (blocks - bfree) * bsize) };
}

// A full disk is a PANIC for PostgreSQL, so without room for what is written while borg reads there is no snapshot.
function withoutSpace(roots) {
  const found = new Map();
  for (const root of roots.filter(isOnWrite)) {
    if (!fs.statfsSync) found.set(root.path, 'this Node.js does not tell how much space is free: 18.15 or newer does');
    else {
      const { free, needed } = neededOn(path.dirname(root.copy));
      if (free < needed) found.set(root.path, `only ${size(free)} are free there, and ${size(needed)} are needed for what is written while borg reads`);
    }
  }
  return found;
}

/** Watch the space while borg reads the copies; `onShort` is called once, when half of what was needed is gone. Returns a function that ends it. */
function watchSpace(roots, onShort) {
  const places = [...new Set(roots.filter(isOnWrite).map((root) => path.dirname(root.copy)))].map((folder) => ({ folder, least: neededOn(folder).needed / 2 }));
  const shortOf = () => {
    for (const { folder, least } of places) {
      const { free } = neededOn(folder);
      if (free < least) return `only ${size(free)} are left in ${named(folder)}: the snapshot is given up before the disk is full`;
    }
    return '';
  };
  const timer = setInterval(() => {
    let why = '';
    try {
      why = shortOf();
    } catch (error) { // the folder of the copies is gone, or its disk is
      why = `the space for the snapshot cannot be seen: ${error.message}`;
    }
    if (why === '') return;
    clearInterval(timer);
    onShort(why);
  }, 500);
  return () => clearInterval(timer);
}

/** How a path is read when a snapshot is asked for, in words. */
function howRead({ way, because }) {
  return way === 'cold' ? `no snapshot, it is read while everything is stopped: ${because}` : `${way === 'subvolume' ? 'snapshot' : way}: ${because}`;
}

// =========================================================================================================
// ==== SNAPSHOT ====
// Copy-on-write copies, for `snapshot: 'yes'`: made in an instant while everything is stopped.
// borg reads them while everything runs again, each in the way that was chosen for it.
// Changes: folders of its own, named .cold-backup-snapshot-…, beside what they are copies of, or above. They are on a list in
// the state folder before they are made, and whoever finds that list without its run (the guard, `recover`, the next run)
// removes them.

const LONGEST_COPY_SECONDS = 86_400;

const listFile = (stateFolder) => path.join(stateFolder, 'snapshots.json');
/** The ways of the copies in words: 'subvolume, copy'; '' when there are none. */
const waysIn = (roots) => [...new Set(roots.filter(hasCopy).map((root) => root.way))].sort().reverse().join(', ');

function noteCopies(stateFolder, roots) {
  writeDurably(listFile(stateFolder), `${JSON.stringify({ copies: roots.filter(hasCopy).map(({ way, copy }) => ({ way, copy })) }, null, 1)}\n`);
}

/**
 * Try one or two files of each path that is to be copied by reflink, while everything runs: xfs may have been made without it, and
 * one file of btrfs with the attribute C fails the whole copy. What cannot be is told, and read while everything is stopped.
 */
async function tryReflinks(roots, run) {
  for (const root of roots.filter((one) => one.way === 'reflink')) {
    const sample = (await look(['find', root.path, '-type', 'f', '-size', '+16k', '-print', '-quit'])).out.replace(/\n$/, '') || root.path;
    let done = await tryReflink(sample, root.copy, run);
    const odd = done.code === 0 && root.because === 'on btrfs' ? await fileWithoutCopyOnWrite(root.path) : '';
    if (odd !== '') done = await tryReflink(odd, root.copy, run);
    if (done.code === 0) continue;
    warn(`no snapshot of ${named(root.path)}: ${lastLines(done.said, 1)} (xfs must have been made with reflink=1; on btrfs, files with the attribute C need a subvolume of their own)`);
    Object.assign(root, { way: 'cold', because: 'cp cannot copy it on write', copy: '' });
  }
  readWithOuter(roots);
}

async function tryReflink(file, copy, run) {
  const done = await change(['cp', '--archive', '--reflink=always', '--no-target-directory', '--', file, copy], { env: markOfRun(run) });
  await change(['rm', '-rf', '--', copy], { unlimited: true });
  return done;
}

// The first file below a folder that has the attribute C (chattr(1)), as systemd gives it to its journals; '' when there is none, or nobody can tell.
async function fileWithoutCopyOnWrite(folder) {
  let found = '';
  const onLine = (line) => { found ||= /^\S*C\S* (\/.*)$/.exec(line)?.[1] ?? ''; }; // a name may have a second line
  await look(['find', folder, '-type', 'f', '-exec', 'lsattr', '--', '{}', '+'], { seconds: 600, keepBytes: 0, onLine });
  return found;
}

/** The command that makes each copy. */
function copyCommands(roots) {
  return roots.filter(hasCopy).map(({ path: from, way, copy }) => (way === 'subvolume' ? ['btrfs', 'subvolume', 'snapshot', '-r', from, copy]
    : ['cp', '--archive', `--reflink=${way === 'reflink' ? 'always' : 'auto'}`, '--no-target-directory', '--', from, copy]));
}

/** A snapshot writes first what is still in memory (btrfs-subvolume(8)); so does a reflink. Let that be done before anything is stopped. */
async function flushDisks(roots) {
  await look(['sync', '--file-system', ...roots.filter(isOnWrite).map((root) => root.path)], { seconds: 600 });
}

/**
 * Make the copies; everything is stopped. `run` marks what makes them: whoever finds the run dead ends it before it removes
 * them. Throws Problem when one cannot be made.
 */
async function makeCopies(roots, run) {
  const ends = await Promise.allSettled(copyCommands(roots).map((argv) => change(argv, { seconds: LONGEST_COPY_SECONDS, env: markOfRun(run) }))); // all have ended before any is removed
  goOn(); // one may have ended because we were asked to
  for (const end of ends) {
    if (end.status === 'rejected') throw end.reason;
    if (end.value.code !== 0) throw failure('the snapshot could not be made', end.value);
  }
}

/** Remove every copy on the list, and the list. Never throws: what cannot be removed is warned of, and stays on it. */
async function dropCopies(stateFolder) {
  let copies;
  try {
    copies = JSON.parse(fs.readFileSync(listFile(stateFolder), 'utf8')).copies;
  } catch {
    return;
  }
  try {
    const there = copies.filter(({ copy }) => path.isAbsolute(copy) && path.basename(copy).startsWith(COPY_MARK) && fs.existsSync(copy));
    for (const { way, copy } of there) {
      const done = await change(way === 'subvolume' ? ['btrfs', 'subvolume', 'delete', copy] : ['rm', '-rf', '--', copy], { unlimited: true });
      if (done.code !== 0 || fs.existsSync(copy)) warn(`${named(copy)}, a snapshot of ours, could not be removed: ${done.said.trim()}`);
    }
    if (there.every(({ copy }) => !fs.existsSync(copy))) fs.rmSync(listFile(stateFolder), { force: true });
  } catch (error) { // a damaged list, or a file system that has become read-only
    warn(`snapshots of ours could not be removed: ${error.message}`);
  }
}

const hasCopies = (stateFolder) => fs.existsSync(listFile(stateFolder));

/**
 * The words that run a command to which the copies lie where the originals lie: in a mount namespace of its own, which is gone with
 * the command, however that ends (mount_namespaces(7)).
 */
function inCopies(roots, argv) {
  const pairs = roots.filter(hasCopy).sort((one, other) => one.path.length - other.path.length).flatMap((root) => [root.copy, root.path]);
  if (pairs.length === 0) return argv;
  return ['unshare', '--mount', '--propagation', 'private', '--', 'sh', '-c', BIND, 'sh', String(pairs.length / 2), ...pairs, ...argv];
}

const BIND = 'n=$1; shift; while [ "$n" -gt 0 ]; do mount --bind "$1" "$2" || exit 2; shift 2; n=$((n - 1)); done; exec "$@"';

/** Where the copy of a file lies; the file itself when there is none. */
function copyOf(file, roots) {
  const [root] = roots.filter((one) => hasCopy(one) && (one.path === file || liesIn(file, one.path))).sort((one, other) => other.path.length - one.path.length); // the innermost is mounted on top
  return root ? `${root.copy}${file.slice(root.path.length)}` : file;
}

/**
 * What every original is, to be compared when borg has read its copy: one that was moved away takes the mount on it along,
 * and borg reads what runs.
 */
function whatLies(roots) {
  return roots.filter(hasCopy).map((root) => `${root.path} ${deviceAndInode(root.path)}`).join('\n');
}

// =========================================================================================================
// ==== PLAN ====
// The plan: what will be stopped, saved and started, worked out once, before anything is changed.
// It is plain data: printed by --dry-run, stored in the archive, kept on disk while services are down, and what the run follows.
// Changes nothing. Refuses what could not become a good backup, while everything still runs.

/** This server's name in archive names. Throws Problem (64) when the host name will not do. */
function serverName(settings) {
  const name = settings.server || os.hostname().split('.')[0];
  if (/^[A-Za-z0-9][\w.-]*$/.test(name) && !name.startsWith('proven-')) return name;
  throw new Problem(`the host name ${named(name)} cannot start an archive's name`,
    { exitCode: 64, hint: 'set `server` to letters, digits, dots and dashes' });
}

/**
 * Look at this machine and make the plan of a run. Given the settings, returns the plan; things that want attention are
 * warned of. Throws Problem when something named is not there, or when a running database would be copied.
 */
async function makePlan(settings, now) {
  const server = serverName(settings);
  const wanted = settings.stop.flat();
  const containers = await findContainers(settings.volumes.length > 0 || wanted.some((one) => typeof one === 'string' && /^(compose|container) /.test(one)));
  const allClusters = await findClusters(containers);
  const parts = [], clusters = [];
  for (const entry of settings.stop) {
    const group = 1 + Math.max(-1, ...parts.map((part) => part.group)); // numbered in the order of `stop`; the stages of a project follow one another
    for (const one of [entry].flat()) {
      const found = await findPart(one, settings, containers, allClusters);
      parts.push(...found.parts.filter((part) => !parts.some((other) => other.name === part.name)).map(({ stage = 0, ...part }) => ({ ...part, group: group + stage })));
      clusters.push(...found.clusters.filter((cluster) => !clusters.some((other) => other.dataDirectory === cluster.dataDirectory)));
    }
  }
  const stopped = parts.flatMap((part) => (part.container ? [part.container] : []));
  for (const part of parts) part.dataDirectory ??= allClusters.find((one) => one.container !== '' && one.container === part.container)?.dataDirectory;
  refuseStopOfDocker(parts);
  const run = randomUUID(), { roots: all, cold } = await findRoots(settings, clusters, containers, stopped);
  const roots = settings.snapshot === 'yes' ? await chooseWays(all, settings.stateFolder, run) : all;
  if (roots.length === 0) throw new Problem('there is nothing to save: no folder, no volume, and no cluster',
    { hint: 'fill in `folders`, `volumes`, or name a cluster in `stop`' });
  const isSaved = (file) => roots.some((root) => isBelow(file, root.path));
  for (const cluster of allClusters.filter((one) => isSaved(one.dataDirectory) && !clusters.includes(one))) {
    refuseRunningCluster(cluster, parts);
    clusters.push(cluster);
  }
  for (const cluster of clusters) refuseCrashedCluster(cluster);
  await warnOfUnsaved(allClusters, containers, isSaved);
  return {
    format: 1, server, run, parts, clusters, roots, cold: [...new Set([...cold, ...clusters.flatMap((one) => one.roots)])],
    archive: `${server}-${now.toISOString().slice(0, 19)}`,
    madeAt: now.toISOString(),
    repository: settings.repository,
    containers: containers.filter((one) => stopped.includes(one.name) || one.mounts.some(({ source }) => source && isSaved(source))).map((one) => one.name),
    exclude: settings.exclude,
    warmPass: settings.warmPass,
    snapshot: waysIn(roots),
  };
}

async function findPart(one, settings, containers, clusters) {
  if (typeof one !== 'string') return { parts: [await ownPart(one)], clusters: [] };
  const kind = one.slice(0, one.indexOf(' ')), name = one.slice(kind.length + 1);
  if (kind === 'service') return { parts: [await unitPart(name)], clusters: [] };
  if (kind !== 'postgres') {
    const parts = containerParts(one, containers);
    if (parts.length === 0) warn('`container *` means nothing tonight: no container runs');
    return { parts, clusters: [] };
  }
  const found = { parts: [], clusters: clustersNamed(name, clusters) };
  if (found.clusters.length === 0) warn('`postgres *` means nothing tonight: no cluster runs, and none is saved');
  for (const cluster of found.clusters) found.parts.push(await clusterPart(cluster, settings.stopTimeoutSeconds));
  return found;
}

async function ownPart(one) {
  const { code, timedOut, argv, said } = await look(one.running);
  if (code === 127 || code === 126 || timedOut) {
    throw new Problem(`${one.name}: its \`running\` command does not work`,
      { ran: argv, said, hint: 'it must exit 0 while the part runs, and something else while it does not' });
  }
  return { name: one.name, kind: 'command', wasRunning: code === 0, running: one.running, stop: one.stop, start: outlivingUs(one.start) };
}

// Everything to save, each path once. A folder given as a link is saved as the link and as what it leads to.
async function findRoots(settings, clusters, containers, stopped) {
  const roots = [], asItLies = { way: 'cold', because: '', copy: '' };
  for (const cluster of clusters) {
    for (const file of [...cluster.roots, ...await configFilesOf(cluster)]) roots.push({ path: file, why: `cluster ${cluster.name}`, strict: true, ...asItLies });
  }
  for (const { name, path: place, isData } of await findVolumes(settings.volumes, containers, stopped)) {
    const users = containers.filter((one) => one.running && !stopped.includes(one.name) && one.mounts.some(({ source }) => source && isBelow(place, source)));
    if (users.length > 0) warn(`volume ${name} is saved while ${users.map((one) => one.name).join(', ')} may write to it: name the container in \`stop\``);
    if (!isData && settings.folders.some((folder) => path.resolve(folder) === place)) continue; // what containers only look at may stay as it is in a restore; what somebody has named comes back
    for (const file of pathsOf(place, `volume ${name}`)) roots.push({ path: file, why: `volume ${name}`, strict: isData && users.length === 0, ...asItLies });
  }
  for (const folder of settings.folders) {
    const plain = path.resolve(folder);
    for (const file of pathsOf(plain, 'folder')) roots.push({ path: file, why: file === plain ? 'folder' : `folder ${plain} leads here`, strict: false, ...asItLies });
    const real = fs.realpathSync(plain), passed = settings.exclude.find((pattern) => real !== plain && isBelow(pattern.replace(/^[a-z]{2}:/, ''), plain));
    if (passed) warn(`\`exclude\` ${named(passed)} leaves nothing out: ${named(plain)} leads to ${named(real)}, so write it with that path`);
  }
  for (const root of roots) root.id = deviceAndInode(root.path);
  const seen = new Set();
  const unique = roots.filter((root) => !seen.has(root.path) && seen.add(root.path));
  for (const one of clusters) one.configLinks = one.configLinks?.filter(({ link }) => !unique.some((root) => isBelow(link, root.path))); // the others come back with what they lie in
  // borg would store what lies below another root twice. With `exclude` a root inside an excluded folder has to stay: see createCommand().
  return {
    roots: unique.filter((root) => settings.exclude.length > 0 || root.why.startsWith('volume ') || !unique.some((other) => other !== root && isBelow(root.path, other.path))),
    cold: unique.filter((root) => root.strict).map((root) => root.path),
  };
}

// Throws Problem when it is not there.
function pathsOf(file, why) {
  if (fs.existsSync(file)) return withItsLink(file);
  throw new Problem(`${named(file)} (${why}) does not exist`, { hint: 'nothing was stopped; mend the settings, or mount what is missing' });
}

// Nobody could ask how the containers ended, and Docker starts them again in its own way.
function refuseStopOfDocker(parts) {
  const docker = parts.find((part) => part.wasRunning && /^(docker|containerd)\./.test(part.unit ?? ''));
  if (docker && parts.some((part) => part.container && part.wasRunning)) throw new Problem(`${docker.name} and containers are named in \`stop\`: Docker has to run while containers are stopped and started`,
    { hint: `nothing was stopped; take '${docker.name}' out of \`stop\`` });
}

function refuseRunningCluster(cluster, parts) {
  const isStopped = parts.some((part) => part.dataDirectory === cluster.dataDirectory || (cluster.container !== '' && part.container === cluster.container));
  if (cluster.pid === 0 || isStopped) return;
  const what = cluster.container ? `container ${cluster.container}` : `postgres ${cluster.name}`;
  throw new Problem(`${named(cluster.dataDirectory)} would be saved, but PostgreSQL runs in it and nothing stops it: the copy would be worthless`,
    { hint: `name '${what}' in \`stop\`` });
}

// One that does not run stays as it is all night: what is wrong with it now would only be found once everything is stopped.
function refuseCrashedCluster({ name, dataDirectory, pid }) {
  const why = pid === 0 ? whyNotCold(dataDirectory) : [];
  if (why.length > 0) throw new Problem(`cluster ${named(name)} does not run and is not proven cold: ${why.join(', ')}`,
    { hint: 'start it and let it recover; then stop it cleanly, or let it run' });
}

// What is found here and saved by nothing is told every night: the database that was added last year and never backed up.
async function warnOfUnsaved(clusters, containers, isSaved) {
  for (const cluster of clusters) {
    const how = cluster.container ? 'name its volume in `volumes`' : `name 'postgres ${cluster.name}' in \`stop\``;
    if (!isSaved(cluster.dataDirectory)) {
      const tell = cluster.pid === 0 ? say : warn, still = cluster.pid === 0 ? ', which does not run,' : '';
      tell(`PostgreSQL cluster ${named(cluster.name)} in ${named(cluster.dataDirectory)}${still} is not saved: ${how}`);
    }
    else for (const { oid, location, link } of cluster.tablespaces) {
      if (!location || !isSaved(location)) warn(`tablespace ${oid} of ${named(cluster.name)} in ${named(location || link)} is not saved: ${how}`);
    }
    if (isSaved(cluster.dataDirectory) && !isSaved(cluster.walFolder)) throw new Problem(`the WAL of ${named(cluster.name)} in ${named(cluster.walFolder)} is not saved, and without it the copy does not start`,
      { hint: how });
  }
  await warnOfUnsavedVolumes(containers, isSaved);
}

// =========================================================================================================
// ==== PROOF ====
// The proof that what is copied is cold, taken before the cold pass and again after it.
// Both times everything is stopped. Reads the clusters' control files, the process list, the containers' exit codes, and size
// and times of every saved file. Writes only its listings in the state folder.

// type, mode, uid, gid, bytes, modified, changed, path; NUL at the end, because a name may hold anything else
const LISTING_FORMAT = '%y\\t%m\\t%U\\t%G\\t%s\\t%T@\\t%C@\\t%p\\0';
const KILLED = 137; // 128 + SIGKILL
const LONGEST_RECORD = 1 << 20;

/**
 * Prove that everything the plan saves is cold, and write the listing of it to `file`. Returns the proof.
 * Throws Problem when a cluster is not cleanly shut down, is in use, when a part runs, a container with a database was killed, or a folder is another one.
 */
async function prove(plan, file) {
  plan.roots.forEach(refuseOtherFolder);
  await refuseWhatRuns(plan.parts);
  const clusters = plan.clusters.map(({ name, dataDirectory }) => {
    const why = whyNotCold(dataDirectory);
    if (why.length > 0) throw new Problem(`cluster ${named(name)} is not proven cold: ${why.join(', ')}`,
      { hint: 'start it, let it recover, stop it by hand and look at its log' });
    return { name, dataDirectory, ...controlState(dataDirectory) };
  });
  return { provenAt: new Date().toISOString(), clusters, ...await writeListing(plan, file, plan.roots.filter((root) => root.way !== 'subvolume')) };
}

// borg passes over a root that is gone with a warning that names no file, and saves an empty folder where something was unmounted by what was stopped.
function refuseOtherFolder({ path: file, why, id }) {
  const isThere = fs.existsSync(file), now = deviceAndInode(file), deviceOf = (one) => one.split(':')[0];
  if (isThere && (now === id || !fs.statSync(file).isDirectory())) return;
  if (isThere && deviceOf(now) === deviceOf(id ?? '') && fs.readdirSync(file).length > 0) return; // replaced as a whole, on the same disk
  throw new Problem(`${named(file)} (${why}) is ${isThere ? 'another folder now' : 'gone'}: it was there when the run began`,
    { hint: 'is something unmounted, or moved, since the others stopped? This archive does not count as a backup' });
}

// Also of parts that did not run when the plan was made: what came up since may write.
async function refuseWhatRuns(parts) {
  const units = parts.flatMap(({ kind, unit }) => (kind === 'service' && unit ? [unit] : [])), { running, killed } = await judgeStopped(units);
  if (running.length > 0) throw new Problem(`service ${running[0]} runs: something started it while it should be stopped`, { hint: `look at \`journalctl --unit ${running[0]}\` for who did` });
  for (const { unit, wasRunning } of parts) if (wasRunning && killed.includes(unit ?? '')) warn(`service ${unit} had to be killed, or crashed: it did not stop by itself in its time`);
  for (const { name, container, database, dataDirectory, wasRunning } of parts) {
    if (!container) continue;
    const { exitCode, state } = await containerState(container), hint = `look at \`docker logs ${container}\``;
    if (state === 'running') throw new Problem(`${name} runs: something started it while it should be stopped`, { hint: `${hint} for who did` });
    if (!wasRunning) continue;
    if (state !== 'stopped') throw new Problem(`${name} cannot be seen stopped: it is being started again, or Docker does not answer`, { hint });
    // Every database ends with 0. Above 128 stands the signal that ended the first process, and with that the kernel kills all others in the container (pid_namespaces(7)).
    // A script that stops PostgreSQL may end so, too (`exit` in a trap of dash): whether that was shut down, its control file tells for sure.
    if (database && exitCode > 128 && (exitCode === KILLED || !dataDirectory)) throw new Problem(`${name} (${database}) was killed (exit code ${exitCode}), it did not stop by itself: its files are not cold`,
      { hint: `${hint}; give it more time with \`stopTimeoutSeconds\`, and let a script that starts it do that with \`exec\`, or wait for it and end with 0` });
    if (exitCode === KILLED) warn(`${name} had to be killed: it did not stop by itself in its time`);
  }
}

/**
 * Write size and times of every file below some roots to `file`; returns how many they are and the sum of the listing.
 * fromCopies: read in their snapshot, and added to what is there.
 */
async function writeListing(plan, file, roots, fromCopies = false) {
  const fd = fs.openSync(file, fromCopies ? 'a' : 'w', 0o600);
  try {
    const isWhole = (place) => plan.exclude.length > 0 && roots.some((root) => !root.strict && isBelow(place, root.path));
    const whole = outermost(plan.clusters.flatMap((cluster) => cluster.roots).filter(isWhole)); // clusters below `folders`: of these borg leaves nothing out
    for (const strict of [true, false]) {
      const paths = [...new Set([...roots.filter((root) => root.strict === strict).map((root) => root.path), ...strict ? whole : []])];
      if (paths.length === 0) continue;
      const find = ['find', ...paths, ...(strict ? [] : prunedPaths([...whole.map((place) => place.replace(/[*?[\\]/g, '\\$&')), ...plan.exclude])), '-printf', LISTING_FORMAT];
      const done = await look(fromCopies ? inCopies(plan.roots, find) : find, { stdout: fd, seconds: 24 * 3600, env: markOfRun(plan.run) });
      if (done.code !== 0 && strict) throw failure('not every file below a stopped part can be listed', done);
    }
  } finally {
    fs.closeSync(fd);
  }
  const sum = createHash('sha256');
  let files = 0;
  const known = new Set(plan.clusters.map((cluster) => `${cluster.dataDirectory}${CONTROL_FILE}`));
  await eachRecord(file, (record) => {
    files++;
    if (!record.endsWith(CONTROL_FILE)) return;
    const control = pathIn(record), folder = control.slice(0, -CONTROL_FILE.length); // a cluster that the plan does not know
    if (!known.has(control) && isUsed(folder)) throw new Problem(`PostgreSQL runs in ${named(folder)}, which is saved and which nothing stopped`,
      { hint: 'was it started in the meantime, or does it run in a container that Docker does not show?' });
  }, (piece) => sum.update(piece));
  return { files, listingSha256: sum.digest('hex') };
}

const CONTROL_FILE = '/global/pg_control';
const pathIn = (record) => Buffer.from(record.split('\t').slice(7).join('\t'), 'latin1').toString();

/** Each NUL-ended record of a file, byte for byte (latin1), without ever holding the whole of it. */
async function eachRecord(file, onRecord, onPiece = () => {}) {
  let rest = '';
  for await (const piece of fs.createReadStream(file, { highWaterMark: 1 << 20 })) {
    onPiece(piece);
    const records = (rest + piece.toString('latin1')).split('\0');
    rest = records.pop();
    if (rest.length > LONGEST_RECORD) throw new Problem(`${named(file)} is no listing: it has a name without an end`);
    for (const record of records) onRecord(record);
  }
}

// What borg leaves out below `folders` may change as it likes. borg's plain patterns are shell patterns, as find's are;
// others (sh:, re:) are listed all the same, and at worst cause a needless warning.
function prunedPaths(exclude) {
  const plain = exclude.map((pattern) => pattern.replace(/^(fm|pp):/, '')).filter((pattern) => !/^[a-z]{2}:/.test(pattern));
  return plain.flatMap((pattern) => ['-path', pattern.replace(/\/$/, ''), '-prune', '-o']);
}

/**
 * Prove again, after the copy and before anything is started. Given the first proof and both listings' paths: throws
 * Problem when something under a stopped part changed in between; what changed under `folders` is a warning with its name.
 */
async function proveAgain(plan, first, before, after) {
  const second = await prove(plan, after);
  if (second.listingSha256 === first.listingSha256) return second;
  const changes = await differingPaths(plan, before, after).finally(() => [after, `${after}.sorted`, `${before}.sorted`, `${after}.changes`].forEach((file) => fs.rmSync(file, { force: true })));
  if (changes.cold.count > 0) {
    throw new Problem(`${count(changes.cold.count, 'file')} changed under a stopped part while it was copied: ${someNames(changes.cold.told, changes.cold.count)}`,
      { hint: 'somebody or something started it in the meantime; this archive does not count as a backup' });
  }
  if (changes.warm.count > 0) warn(`changed while it was copied: ${someNames(changes.warm.told, changes.warm.count)}`);
  return second;
}

/**
 * Services run again, and everything has been copied: prove of the copies that they are what was stopped. Given both proofs and the first one's listing,
 * completes that proof and listing with what lies in snapshots, and returns the proof. Throws Problem when a copy is not cold, or not what its original
 * was; what changed under `folders` meanwhile may be so in the copy, too.
 */
async function proveCopies(plan, first, second, file) {
  for (const { name, dataDirectory } of plan.clusters) {
    const why = whyNotCold(copyOf(dataDirectory, plan.roots));
    if (copyOf(dataDirectory, plan.roots) !== dataDirectory && why.length > 0) throw new Problem(`the copy of cluster ${named(name)} is not cold: ${why.join(', ')}`);
  }
  const copied = plan.roots.filter((root) => root.way === 'reflink' || root.way === 'copy'), again = `${file}-of-copies`;
  try {
    await writeListing(plan, again, copied, true);
    for (const roots of [copied.filter((root) => root.strict), copied.filter((root) => !root.strict)]) {
      const [was, is] = [await sumOfListing(file, roots), await sumOfListing(again, roots)];
      if (was === is) continue;
      const where = roots.map((root) => named(root.path)).join(', '), hasChanged = roots.every((root) => !root.strict) && second.listingSha256 !== first.listingSha256;
      if (hasChanged) say(`what changed below ${where} is in the copies as it was before, or after`); // proveAgain() has warned of it, by name
      else throw new Problem(`the copies on ${where} are not what was stopped: ${was.split(' ')[0]} files then, ${is.split(' ')[0]} there`,
        { hint: 'did something change there while it was copied? This archive does not count as a backup' });
    }
  } finally {
    fs.rmSync(again, { force: true });
  }
  return { ...first, ...await writeListing(plan, file, plan.roots.filter((root) => root.way === 'subvolume'), true) };
}

// How many records there are below some roots, and a sum of them that knows no order: a copy has other ctimes, its folders another size, and another order.
async function sumOfListing(file, roots) {
  let files = 0, sum = 0n;
  await eachRecord(file, (record) => {
    if (!roots.some((root) => isBelow(pathIn(record), root.path))) return;
    const [type, bits, uid, gid, bytes, modified] = record.split('\t');
    files++;
    sum += createHash('sha256').update([type, bits, uid, gid, type === 'd' ? '' : bytes, modified, pathIn(record)].join('\t')).digest().readBigUInt64LE();
  });
  return `${files} ${sum}`;
}

// sort and comm do it on disk: a listing may be larger than our memory should be. A folder changes with its files: it is told only by itself.
async function differingPaths(plan, before, after) {
  for (const file of [before, after]) {
    const sorted = await look(['sort', '--zero-terminated', `--output=${file}.sorted`, file], { seconds: 3600 });
    if (sorted.code !== 0) throw failure('the listings cannot be compared', sorted);
  }
  const fd = fs.openSync(`${after}.changes`, 'w', 0o600);
  const done = await look(['comm', '--zero-terminated', '-3', `${before}.sorted`, `${after}.sorted`], { stdout: fd, seconds: 3600 }).finally(() => fs.closeSync(fd));
  if (done.code !== 0) throw failure('the listings cannot be compared', done);
  const found = { cold: { count: 0, told: [] }, warm: { count: 0, told: [] } };
  let last = '';
  for (const folders of [false, true]) {
    await eachRecord(`${after}.changes`, (record) => {
      const line = record.replace(/^\t/, ''), file = pathIn(line);
      if (line.startsWith('d\t') !== folders || file === last) return; // before and after are two lines
      last = file;
      const changes = plan.cold.some((root) => isBelow(file, root)) ? found.cold : found.warm;
      if (folders && changes.count > 0) return;
      if (changes.told.includes(file)) return;
      changes.count++;
      if (changes.told.length < TOLD_NAMES) changes.told.push(file);
    });
  }
  return found;
}

// =========================================================================================================
// ==== LEDGER ====
// The ledger: what a run has stopped, on disk before each stop, and the lock of that run.
// The lock tells whether the run is still alive. Whoever finds a ledger without its run (the guard, `recover`, the next run)
// starts everything from it, with nothing else to go by.
// Changes ledger.json and lock in the state folder, and a link to it for `recover`; never a part.

const STAGING = '.cold-backup-restore-'; // begins the name of every staging folder

const ELSEWHERE = '/var/lib/cold-backup/elsewhere'; // links to ledgers in other state folders: `recover` finds them without settings

const ledgerFile = (stateFolder) => path.join(stateFolder, 'ledger.json');

/**
 * Take a lock of a state folder: that of runs, or another one by its name. Returns the open file that holds it (the kernel
 * lets go when this process ends, however it ends), or null.
 */
function takeLock(stateFolder, waitSeconds, name = 'lock') {
  const file = path.join(stateFolder, name);
  let fd;
  try {
    fd = fs.openSync(file, fs.constants.O_CREAT | fs.constants.O_RDWR, 0o600);
  } catch {
    fd = fs.openSync(file, 'r'); // a file system that has become read-only must not keep services down
  }
  // flock(1) locks the open file, which is ours as well as its own: the lock stays when flock has ended (flock(2)).
  const { status, signal } = spawnSync('flock', ['--timeout', String(waitSeconds), '3'], { stdio: ['ignore', 'ignore', 'ignore', fd], env: { PATH: programPath() } });
  if (status === 0) return fd;
  fs.closeSync(fd);
  if (status !== 1 && !signal) throw new Problem('flock(1) does not work: without it two runs could go on at the same time', // Ctrl-C ends it, too
    { hint: 'install util-linux; is it on the PATH?' });
  return null;
}

const FOLDER_FACTS = { mode: 'id', uid: 'id', gid: 'id' };
const LEDGER_FORM = {
  run: 'text', server: 'text', archive: 'text', startedAt: 'time', deadlineAt: 'time', stopTimeoutSeconds: 'number',
  before: { units: ['text'], containers: ['text'] },
  parts: [{
    name: 'text', kind: 'text', group: 'number', start: ['text'], 'stop?': ['text'], 'running?': ['text'], 'stopSeconds?': 'number',
    'unit?': 'text', 'container?': 'text', 'database?': 'text', 'dataDirectory?': 'path', askedAt: 'time', 'stoppedAt?': 'time', 'runningAt?': 'time',
  }],
  'restore?': {
    archive: 'text', stamp: 'text', state: 'text', stagings: ['path'], made: ['path'],
    swaps: [{ place: 'path', staged: 'text', aside: 'path' }], folders: [{ path: 'path', before: FOLDER_FACTS, after: FOLDER_FACTS }],
    later: [{ name: 'text', group: 'number', start: ['text'], 'stop?': ['text'] }],
  },
};

/** The ledger in a state folder; null when nothing is stopped. Throws Problem when it is there and cannot be understood. */
function readLedger(stateFolder) {
  const file = ledgerFile(stateFolder);
  let text = '', facts = { uid: -1, mode: 0 };
  try {
    const fd = fs.openSync(file, 'r');
    facts = fs.fstatSync(fd); // of the very file that is read
    text = fs.readFileSync(fd, 'utf8');
    fs.closeSync(fd);
  } catch (error) {
    if (error.code === 'ENOENT' || error.code === 'ENOTDIR') return null;
    throw new Problem(`${file} cannot be read: ${error.message}`, { exitCode: 3 });
  }
  const bad = (why) => new Problem(`${file} is damaged: ${why}`,
    { exitCode: 3, hint: `read it: it tells what was stopped and how to start it; start that by hand, then remove the file` });
  if (![0, process.getuid?.()].includes(facts.uid) || (facts.mode & 0o022) !== 0) throw bad('others could have written it'); // what stands in it is run as root
  let ledger;
  try {
    ledger = JSON.parse(text);
  } catch {
    throw bad('it is no JSON');
  }
  const odd = ledger?.format === 1 ? misfit(ledger, LEDGER_FORM) || ledger.parts.map((part, index) => (part.start.length === 0 ? `parts[${index}].start` : '')).join('') : 'its form';
  if (odd) throw bad(`it is no ledger (${odd})`);
  const isPath = (value) => typeof value === 'string' && path.isAbsolute(value) && path.normalize(value) === value;
  const { stagings = [], swaps = [], folders = [], made = [] } = ledger.restore ?? {};
  if (![...stagings, ...made].every(isPath) || !stagings.every((one) => path.basename(one).startsWith(STAGING))) throw bad('it is no ledger of a restore');
  if (!swaps.every((one) => isPath(one?.place) && isPath(one.aside) && (one.staged === '' || isPath(one.staged))) || !folders.every((one) => isPath(one?.path))) throw bad('it is no ledger of a restore');
  return ledger;
}

/** The same, null also when it cannot be understood. */
function readLedgerQuietly(stateFolder) {
  try {
    return readLedger(stateFolder);
  } catch {
    return null;
  }
}

/** Write the ledger to disk. Throws when that is impossible: then nothing more is stopped. */
function keepLedger(stateFolder, ledger) {
  const open = ledger.parts.filter((part) => part.runningAt === null);
  ledger.howTo = ['These parts were stopped by cold-backup and have not been seen running since.', 'To start them: node backup.js recover. Or by hand, in this order:',
    ...(ledger.restore?.state === '' && ledger.restore.swaps.length > 0 ? ['A restore was under way: only `recover` knows whether old or new contents are in place. By hand, before anything is started:',
      ...ledger.restore.swaps.map(({ place, aside }) => `the old contents of ${named(place)} are in ${named(aside)} if that is there`)] : []),
    ...[...open].reverse().map((part) => pasteable(part.start))];
  const odd = misfit(ledger, LEDGER_FORM);
  if (odd) throw new Error(`the ledger could not be read back: ${odd}`);
  writeDurably(ledgerFile(stateFolder), `${JSON.stringify(ledger, null, 1)}\n`);
}

// While things start, a ledger that cannot be written (a full disk) must not keep them down: at worst a part is started twice.
function keepLedgerIfPossible(stateFolder, ledger) {
  try {
    keepLedger(stateFolder, ledger);
  } catch (error) {
    warn(`the ledger cannot be written: ${error.message}`);
  }
}

// The kernel's boot, and the start of process 1, which in a container begins anew while the kernel runs on.
function bootName() {
  return `${fs.readFileSync('/proc/sys/kernel/random/boot_id', 'utf8').trim()} ${startOfProcess(1)}`;
}

function linkElsewhere(stateFolder) {
  return path.join(ELSEWHERE, stateFolder.replaceAll('%', '%25').replaceAll('/', '%2F'));
}

/** The state folders in which a run was interrupted, other than the usual one. */
function stateFoldersElsewhere() {
  try {
    return fs.statSync(ELSEWHERE).uid === 0 ? fs.readdirSync(ELSEWHERE).map((name) => fs.readlinkSync(path.join(ELSEWHERE, name))) : [];
  } catch {
    return [];
  }
}

/** What is active on this host now. */
const activeOnHost = async () => ({ units: await activeUnits(), containers: await runningContainers() });

/** Open the ledger of a run: nothing stopped yet, what is active on this host noted. */
async function openLedger(stateFolder, facts) {
  const ledger = { format: 1, howTo: [], ...facts, starting: false, reported: '', boot: bootName(), parts: [], before: await activeOnHost() };
  if (process.getuid?.() === 0 && path.dirname(ELSEWHERE) !== stateFolder) {
    fs.mkdirSync(ELSEWHERE, { recursive: true, mode: 0o700 });
    fs.rmSync(linkElsewhere(stateFolder), { force: true });
    fs.symlinkSync(stateFolder, linkElsewhere(stateFolder));
  }
  return ledger;
}

/** Everything runs: the ledger goes. One that cannot be removed (a disk that fails) is a warning: who finds it again finds that all of it runs. */
function closeLedger(stateFolder) {
  try {
    fs.rmSync(ledgerFile(stateFolder), { force: true });
    if (process.getuid?.() === 0) fs.rmSync(linkElsewhere(stateFolder), { force: true }); // nobody else may look there
  } catch (error) {
    warn(`the ledger cannot be removed: ${error.message}`);
  }
}

// =========================================================================================================
// ==== SWAP ====
// The swap: what was restored takes its place, and the old contents go aside, by rename(2) alone.
// Each rename is done or not done, whatever happens. Everything is in the ledger before the first of them. Whoever comes later
// decides by what lies on the disk. Of one swap:
//   staged is there, aside is not      not begun: the place is as it was
//   staged is there, and so is aside   half: the old contents are aside, the place is free
//   staged has gone, the place is there   done
//   neither of them is there           nobody knows (a disk is not mounted): nothing is started
// (When the archive has nothing for a place, staged is '': done when the place is free.) All swaps done is the new state;
// anything else is rolled back to the old one. Renames only what the ledger names, removes only stagings; nothing old is ever
// deleted.

/** Whether something lies there, be it a link that leads nowhere. */
const isThere = (file) => fs.lstatSync(file, { throwIfNoEntry: false }) !== undefined;

function stateOfSwap({ place, staged, aside }) {
  if (staged === '') return isThere(place) && !isThere(aside) ? 'not begun' : 'done';
  if (isThere(staged)) return isThere(aside) ? 'half' : 'not begun';
  return isThere(place) ? 'done' : 'unknown';
}

/** Make every swap. Throws what rename(2) throws: then settleSwaps() rolls back. */
function makeSwaps({ swaps, stamp }) {
  for (const swap of swaps) {
    if (isThere(swap.place)) {
      fs.mkdirSync(path.dirname(swap.aside), { recursive: true, mode: 0o700 });
      rename(swap.place, swap.aside);
    }
    if (swap.staged) intoPlace(swap.staged, swap.place, stamp);
  }
}

// rename(2) in the very folders that the paths name: who owns a folder on the way could have laid a link there, for root to move things through.
function rename(from, to) {
  const opened = [];
  const inItsFolder = (file) => {
    const folder = path.dirname(file), fd = fs.openSync(folder, fs.constants.O_RDONLY | fs.constants.O_DIRECTORY);
    opened.push(fd);
    const is = fs.readlinkSync(`/proc/self/fd/${fd}`);
    if (is !== folder) throw new Problem(`${named(folder)} is now ${named(is)}: somebody laid a link on the way, and nothing is moved through it`);
    return `/proc/self/fd/${fd}/${path.basename(file)}`;
  };
  try {
    fs.renameSync(inItsFolder(from), inItsFolder(to));
  } catch (error) {
    if (error.code !== 'EXDEV') throw error;
    throw new Problem(`${named(from)} cannot be moved to ${named(to)}: they do not lie on one file system`,
      { hint: `is this an overlay (a container, a live system)? What its lower layer brought cannot be renamed there: make the folder its own first, with cp -a beside it, rm -r, mv` });
  } finally {
    opened.forEach((fd) => fs.closeSync(fd));
  }
}

// Somebody may have made something in a place while it was free: it is kept, too.
function intoPlace(from, place, stamp) {
  if (isThere(place)) rename(place, `${place}.stray-${stamp}`);
  rename(from, place);
}

function undoSwap(swap, stamp) {
  if (stateOfSwap(swap) === 'done' && swap.staged) rename(swap.place, swap.staged);
  if (isThere(swap.aside)) intoPlace(swap.aside, swap.place, stamp);
}

/**
 * Given a restore whose run is over, or has made its swaps, sees whether all are made: then the new state it is, else all are undone.
 * May be called as often as one likes. Throws Problem when a disk that holds a place is not there.
 */
function settleSwaps(restore) {
  const states = restore.swaps.map(stateOfSwap), lost = restore.swaps[states.indexOf('unknown')];
  if (lost) throw new Problem(`neither the old nor the new contents of ${named(lost.place)} can be seen`,
    { exitCode: 3, hint: 'is its disk mounted? Mount it, then run `node backup.js recover`' });
  const isNew = states.length > 0 && states.every((state) => state === 'done');
  if (!isNew) for (const swap of [...restore.swaps].reverse()) undoSwap(swap, restore.stamp);
  for (const { path: folder, before, after } of restore.folders) giveFolder(folder, isNew ? after : before);
  if (!isNew) for (const folder of [...restore.swaps.map(({ aside }) => path.dirname(aside)), ...restore.made]) removeIfEmpty(folder, restore);
  const touched = new Set(restore.swaps.flatMap(({ place, staged, aside }) => [place, staged || place, aside].map((file) => path.dirname(file))));
  for (const folder of touched) syncFolder(folder);
  return isNew ? 'new' : 'old';
}

/** Give a folder to somebody: the folder itself, never what a link in its place leads to. */
function giveFolder(folder, { mode, uid, gid }) {
  if (!isThere(folder)) return;
  const fd = fs.openSync(folder, fs.constants.O_RDONLY | fs.constants.O_DIRECTORY | fs.constants.O_NOFOLLOW);
  try {
    fs.fchownSync(fd, uid, gid);
    fs.fchmodSync(fd, mode);
  } finally {
    fs.closeSync(fd);
  }
}

function removeIfEmpty(folder, { made, stamp }) {
  for (let one = folder; made.includes(one) || one.includes(stamp); one = path.dirname(one)) {
    try {
      fs.rmdirSync(one);
    } catch { return; } // it holds something, or has gone
  }
}

// A rename is on the disk when its folder is (fsync(2)); what runs on the new state must never find itself back in the old one.
function syncFolder(folder) {
  if (!isThere(folder)) return;
  const fd = fs.openSync(folder, 'r');
  try {
    fs.fsyncSync(fd);
  } finally {
    fs.closeSync(fd);
  }
}

/** Remove the folders with what was extracted and did not come into its place. */
async function removeStagings({ stagings }) {
  for (const folder of stagings.filter((one) => path.basename(one).startsWith(STAGING) && isThere(one))) {
    const done = await change(['rm', '-rf', '--one-file-system', '--', folder], { unlimited: true }); // rm(1) is not led astray by who swaps folders for links meanwhile; Node's own way is
    if (done.code !== 0) warn(`${named(folder)} cannot be removed: ${lastLines(done.said, 1)}`);
  }
}

/** In the new state things run that did not run here before: given a settled ledger, notes them as parts to start. */
function noteLater(ledger) {
  const now = new Date().toISOString();
  const more = ledger.restore.later.filter((part) => !ledger.parts.some((one) => one.name === part.name));
  ledger.parts.push(...more.map((part) => ({ ...part, askedAt: now, stoppedAt: now, runningAt: null })));
  ledger.parts.sort((one, other) => one.group - other.group);
}

/** The commands that lead from the new state back to the old one, to be pasted. */
function wayBack(stateFolder, ledger, isOpen) {
  const { swaps, stamp, folders } = ledger.restore, parts = ledger.parts, mounts = mountPoints();
  const away = (aside) => aside.replace(`before-restore-${stamp}`, `restored-${stamp}`);
  const opened = new Map(swaps.map(({ place, aside }) => [path.dirname(place), path.dirname(aside)])), isEntry = ({ place }) => folders.some((one) => one.path === path.dirname(place));
  const entries = (folder, to, except) => ['find', folder, '-mindepth', '1', '-maxdepth', '1', ...except.flatMap((name) => ['-not', '-name', name]), '-exec', 'mv', '-t', to, '--', '{}', '+'];
  const around = (folder) => fs.readdirSync(folder).filter((name) => mounts.some((one) => isBelow(one, path.join(folder, name))));
  return [
    ...(isOpen ? [['rm', ledgerFile(stateFolder)]] : []), // else the guard would start what it finds stopped
    ...parts.filter((part) => part.stop.length > 0).map((part) => part.stop),
    ...[...swaps].reverse().filter((swap) => !isEntry(swap)).flatMap(({ place, aside }) => [
      ...(path.dirname(aside) === path.dirname(place) ? [] : [['mkdir', '-p', '-m', '700', path.dirname(away(aside))]]),
      ['mv', '-T', '--', place, away(aside)], ...(isThere(aside) ? [['mv', '-T', '--', aside, place]] : [])]),
    ...folders.filter((one) => opened.has(one.path) && isThere(one.path)).flatMap(({ path: folder, before }) => {
      const aside = opened.get(folder), stays = ['lost+found', `${STAGING}*`, 'before-restore-????-??-??T??????', 'restored-????-??-??T??????', ...around(folder)];
      return [['mkdir', '-p', '-m', '700', away(aside)], entries(folder, away(aside), stays),
        ...(isThere(aside) ? [entries(aside, folder, around(folder))] : []), ['chown', `${before.uid}:${before.gid}`, folder], ['chmod', before.mode.toString(8), folder]];
    }),
    ...[...parts].reverse().map((part) => part.start),
  ];
}

const RESTORE_NOTE = 'last-restore.txt';

/** What came of a restore, for people: which state runs, where the other one lies, how to get there. Kept in the state folder, and returned. */
function tellRestore(stateFolder, ledger, isOpen) {
  const { archive, swaps, state } = ledger.restore;
  if (state === '') return ''; // a disk is missing: nobody knows yet
  const asides = tops(swaps.map(({ aside }) => aside).filter(isThere));
  const text = state === 'old' ? `The old contents are in place; nothing of ${archive} is. The other way: the same restore of ${archive} again, with the same parts`
    : [`The contents of ${archive} are in place. The old ones lie in:`, ...asides.map((one) => `  ${named(one)}`), ...(asides.length === 0 ? ['  (there were none)'] : []),
      'Back to the old ones, with these commands:', ...wayBack(stateFolder, ledger, isOpen).map((argv) => `  ${pasteable(argv)}`),
      ...(asides.length > 0 ? ['When you need the old ones no more:', `  ${pasteable(['rm', '-rf', '--', ...asides])}`] : [])].join('\n');
  try {
    writeDurably(path.join(stateFolder, RESTORE_NOTE), `${ledger.startedAt}\n${text}\n`);
  } catch (error) {
    warn(`${RESTORE_NOTE} cannot be written: ${error.message}`);
  }
  return text;
}

// What lies aside, each folder once: those of a mount point's entries are all in one.
function tops(asides) {
  return [...new Set(asides.map((one) => /^(.*?\bbefore-restore-[^/]*)\//.exec(one)?.[1] ?? one))];
}

/**
 * Given the ledger of a restore, settles its swaps, notes what runs in the new state, and shows systemd new units. The
 * stagings stay until things have been started.
 */
async function settleRestore(ledger) {
  const restore = ledger.restore;
  if (restore.state !== '') return;
  restore.state = settleSwaps(restore);
  if (restore.state === 'new') noteLater(ledger);
  const hasUnits = restore.swaps.some(({ place }) => /^\/(etc|usr|lib)\//.test(place)); // or configuration that a generator reads
  if (restore.state === 'new' && hasUnits && hasSystemd()) { // whatever comes of it, things have to be started
    await change(['timeout', '-k', '5', '60', 'systemctl', 'daemon-reload'], { unlimited: true }).catch((error) => warn(`systemd has not been told of new units: ${error.message}`));
  }
  say(restore.state === 'new' ? `the restore of ${restore.archive} had put everything in its place: the new contents stay` : `the restore of ${restore.archive} was not through: the old contents are in place`);
}

// ---- where things can be swapped ----

/** Every mount point of this machine, read anew. */
function mountPoints() {
  return [...new Set(mounts().map((mount) => mount.folder))];
}

const mountOf = (file, mounts) => mounts.filter((one) => isBelow(file, one)).reduce((best, one) => (one.length > best.length ? one : best), '/');

/** Given an absolute path, returns the nearest folder at or above it that is there. */
function nearestFolder(file) {
  let folder = file;
  while (!fs.statSync(folder, { throwIfNoEntry: false })?.isDirectory()) folder = path.dirname(folder);
  return folder;
}

/** Where to extract what will be renamed into a place: the topmost folder of the same file system and mount, so that rename(2) works. */
function stagingFor(place, stamp, mounts) {
  let top = mounts.includes(place) ? place : nearestFolder(path.dirname(place));
  const device = fs.statSync(top).dev, mount = mountOf(top, mounts);
  while (top !== '/' && fs.statSync(path.dirname(top)).dev === device && mountOf(path.dirname(top), mounts) === mount) top = path.dirname(top);
  return path.join(top, `${STAGING}${stamp}`);
}

// Below /etc/postgresql every folder is taken for a cluster (pg_lsclusters(1)).
const asideOf = (place, stamp) => (isBelow(place, '/etc/postgresql') ? place.replace('/etc/postgresql', `/etc/postgresql.before-restore-${stamp}`) : `${place}.before-restore-${stamp}`);

/** The swaps that put `staged` in its place. What is a mount point, or holds one, stays where it is: then its entries are swapped one by one. */
function swapsFor(place, staged, stamp, mounts) {
  if (!mounts.some((one) => isBelow(one, place))) return { swaps: [{ place, staged, aside: asideOf(place, stamp) }], folders: [] };
  const found = { swaps: [], folders: [] };
  const walk = (folder, from, aside) => {
    if (isThere(from)) found.folders.push({ path: folder, before: factsOf(folder), after: factsOf(from) });
    const isOurs = (name) => name === 'lost+found' || name.startsWith(STAGING) || /^(before-restore|restored)-\d{4}-\d\d-\d\dT\d{6}$/.test(name); // restored-photos is not
    const names = new Set([folder, from].filter(isThere).flatMap((one) => fs.readdirSync(one)).filter((name) => !isOurs(name)));
    for (const name of names) {
      const [own, next, beside] = [path.join(folder, name), path.join(from, name), path.join(aside, name)];
      if (mounts.includes(own)) continue; // a piece of its own
      if (mounts.some((one) => isBelow(one, own))) walk(own, next, beside);
      else found.swaps.push({ place: own, staged: isThere(next) ? next : '', aside: beside });
    }
  };
  walk(place, staged, mounts.includes(place) ? path.join(place, `before-restore-${stamp}`) : asideOf(place, stamp));
  return found;
}

function factsOf(folder) {
  const { mode, uid, gid } = fs.statSync(folder);
  return { mode: mode & 0o7777, uid, gid };
}

// =========================================================================================================
// ==== PAUSE ====
// The pause: stop the parts, each seen stopped, and start them again, each seen running.
// Before each stop, what will have to be started is in the ledger on disk; a part counts as back only when it has been seen running.
// Changes: the parts of the plan, and the ledger. Never kills a part.

const START_SECONDS = 300; // for one part to be seen running and healthy
const START_ATTEMPTS = 3;
const PATIENCE_MS = 60_000; // with one part, before the next ones are started all the same

/** What a part does now, by what it really is: unit, container, cluster, or the answer of its own command. */
async function partState(part) {
  const states = [];
  if (part.unit) states.push(await unitState(part.unit));
  if (part.container) states.push((await containerState(part.container)).state);
  if (part.dataDirectory) states.push(clusterState(part.dataDirectory));
  if (part.running) {
    const { code, timedOut } = await look(part.running);
    states.push(timedOut ? 'moving' : code === 0 ? 'running' : 'stopped');
  }
  return states.every((state) => state === states[0]) ? states[0] : 'moving';
}

/** Whether a part runs and does its work: active, answering, healthy if it has a health check that was content before. */
async function runsWell(part) {
  try {
    return await doesItsWork(part);
  } catch { // whoever should know does not answer
    return false;
  }
}

async function doesItsWork(part) {
  if (part.kind === 'postgres') return (!part.unit || await unitState(part.unit) === 'running') && clusterAnswers(part.dataDirectory);
  if (part.container) {
    const { state, healthy } = await containerState(part.container);
    return state === 'running' && (healthy || !part.healthy) && (!part.dataDirectory || clusterAnswers(part.dataDirectory));
  }
  return await partState(part) === 'running';
}

/**
 * Right before the first stop, which may be hours after the plan: what has stopped since stays stopped. Throws Problem when a part came up since:
 * how to stop that one was not looked at.
 */
async function lookAgain(parts) {
  await Promise.all(parts.map(async (part) => {
    const state = await partState(part);
    if (state === 'running' && !part.wasRunning) throw new Problem(`${part.name} was started since this run began, so nothing was stopped`, { hint: 'begin again: `node backup.js --now`' });
    if (state !== 'stopped' || !part.wasRunning || part.running) return; // by its own command it may only have failed to answer: then it is stopped all the same
    say(`${part.name} has stopped since this run began: it stays so`);
    const triggers = part.kind === 'service' ? await triggersLeft(part) : [];
    part.wasRunning = triggers.length > 0;
    if (part.wasRunning) Object.assign(part, { unit: triggers[0], start: ['systemctl', 'start', '--', ...triggers] }); // or its socket or timer starts it in the middle of the copy
  }));
}

/**
 * Stop the running parts in order, each seen stopped before the next; parts of one group together. Before each stop the
 * ledger is on disk. Throws Problem when a part does not stop in its time: what is stopped by then stands in the ledger.
 */
async function stopParts(parts, ledger, stateFolder) {
  for (const group of new Set(parts.map((part) => part.group))) {
    const together = parts.filter((part) => part.group === group && part.wasRunning)
      .map((part) => ({ ...part, askedAt: steadyNow().toISOString(), stoppedAt: null, runningAt: null }));
    if (together.length === 0) continue;
    goOn(); // asked to end before this group went down: then it need not
    ledger.parts.push(...together);
    keepLedger(stateFolder, ledger);
    const ends = await Promise.allSettled(together.map((part) => stopPart(part, ledger.stopTimeoutSeconds)));
    keepLedger(stateFolder, ledger);
    for (const end of ends) if (end.status === 'rejected') throw end.reason;
  }
}

// The command is not waited for as such: what counts is the part itself. A command that failed while the part runs on ends the wait.
async function stopPart(part, limitSeconds) {
  const began = Date.now();
  const command = { done: null };
  const stopped = change(part.stop, { unlimited: true, toTranscript: true }).then((done) => { command.done = done; });
  const seen = await waitUntil(limitSeconds, async () => {
    const finished = command.done;
    const state = await partState(part);
    if (state === 'running' && finished && finished.code !== 0) {
      part.refused = true;
      throw failure(`could not stop ${part.name}`, finished, 'find out why (its own log), and stop and start it once by hand; then: node backup.js --now');
    }
    return state === 'stopped' && finished !== null; // docker stop may still be at work on what has just ended
  }, 30, stopped);
  if (!seen) {
    const user = part.dataDirectory ? userOf(part.dataDirectory) : '';
    throw new Problem(`${part.name} did not stop within ${limitSeconds} s: the run is called off`, { ran: part.stop,
      hint: `find out what keeps it (a long query, a client that does not let go${user && `; ${user} is in its data directory`}), or raise \`stopTimeoutSeconds\`` });
  }
  part.stoppedAt = steadyNow().toISOString();
  say(`stopped ${part.name} in ${span((Date.now() - began) / 1000)}`);
}

/**
 * Start everything in the ledger, in reverse, each seen running and healthy; one that fails does not keep the others down.
 * Then whatever else was active on the host before and is not now. Nothing interrupts this. Returns what is still down.
 */
async function startParts(ledger, stateFolder) {
  shield(true);
  try {
    ledger.starting = true;
    keepLedgerIfPossible(stateFolder, ledger);
    const starts = [];
    for (const group of [...new Set(ledger.parts.map((part) => part.group))].reverse()) {
      const together = ledger.parts.filter((part) => part.group === group && part.runningAt === null).map((part) => startPart(part, ledger));
      await Promise.race([Promise.allSettled(together), sleep(PATIENCE_MS)]); // one that takes long does not keep the others down
      starts.push(...together);
      keepLedgerIfPossible(stateFolder, ledger);
    }
    await Promise.allSettled(starts);
    const down = await startWhatElseWasActive(ledger).catch((error) => {
      warn(`what else was active on this host could not be seen: ${error.message}`);
      return [];
    });
    for (const part of ledger.parts) { // a part may start well and fall over at once, or need one that came after it
      if (await runsWell(part)) {
        part.runningAt ??= steadyNow().toISOString();
        continue;
      }
      part.runningAt = null;
      if (part.stoppedAt !== null) await startPart(part, ledger); // else it has been waited for long enough; the guard goes on
      if (part.runningAt === null) down.push(part.name);
    }
    keepLedgerIfPossible(stateFolder, ledger);
    return down;
  } finally {
    shield(false);
  }
}

async function startPart(part, ledger) {
  const began = Date.now();
  const isDecided = part.stoppedAt !== null || await waitForEndOfStop(part, ledger.stopTimeoutSeconds);
  if (part.running && await runsWell(part)) { // nobody says that an own start command does nothing while its part runs: it may make a second one
    part.runningAt = steadyNow().toISOString();
    return say(part.stoppedAt ? `${part.name} runs already: somebody else has started it` : `${part.name} was not seen to stop, and runs: should it still end, the guard starts it`);
  }
  const limitSeconds = isDecided ? START_SECONDS : 5; // what still hangs in its stop must not keep the others down
  for (let attempt = 1; attempt <= START_ATTEMPTS; attempt++) {
    const command = { done: null };
    const started = change(part.start, { unlimited: true, toTranscript: true }).then((done) => { command.done = done; });
    let underWayAt = performance.now();
    const seen = await waitUntil(limitSeconds, async () => {
      if (await runsWell(part)) return true;
      if (command.done === null || await partState(part) !== 'stopped') underWayAt = performance.now();
      // It will not come by waiting: its start failed, or it fell over. A daemon of an own command may show itself late.
      return Boolean(command.done?.code) || performance.now() - underWayAt > (part.running ? 60_000 : 3_000);
    }, 30, started);
    if (seen && await runsWell(part)) {
      part.runningAt = steadyNow().toISOString();
      return say(`started ${part.name} in ${span((Date.now() - began) / 1000)}`);
    }
    if (command.done?.code) warn(`${failure(`could not start ${part.name}`, command.done).message}: ${lastLines(command.done.said, 1)} (ran: ${pasteable(part.start)})`);
    else warn(`${part.name} ${seen ? 'was started and went down at once' : `has not been seen running within ${limitSeconds} s`}`);
    if (!seen) return;
    await waitUntil(2, () => false);
  }
}

// A stop that was asked for and not seen through is still under way: the part may go down after we found it running, and
// starting it before that would do nothing. So it is waited for, until it has stopped or has shown that it runs on.
async function waitForEndOfStop(part, limitSeconds) {
  const asked = Date.parse(part.askedAt);
  const undecided = Math.min(limitSeconds, Math.max(8, (part.database === '' ? part.stopSeconds ?? 0 : 0) + 3));
  return waitUntil(limitSeconds, async () => {
    const state = await partState(part);
    if (state === 'stopped') part.stoppedAt = steadyNow().toISOString();
    return state === 'stopped' || (state === 'running' && steadyNow().getTime() - asked > undecided * 1000);
  });
}

// Units that required a stopped one went down with it, and so may have containers: nobody named them, but they ran.
async function startWhatElseWasActive(ledger) {
  if (ledger.parts.length === 0) return []; // nothing was stopped: what has ended since did so by itself, or somebody wanted it
  const down = [];
  const ours = new Set(ledger.parts.flatMap((part) => [part.unit ?? '', part.container ?? '']));
  const lost = await lostUnits(ledger.before.units, ledger.boot !== bootName());
  for (const unit of lost.filter((one) => !ours.has(one))) {
    const { code } = await change(['systemctl', 'start', '--', unit], { toTranscript: true, seconds: START_SECONDS });
    if (code !== 0) down.push(`service ${unit}`);
    warn(`unit ${unit} went down with the others and was ${code === 0 ? '' : 'NOT '}started again: name it in \`stop\``);
  }
  const running = new Set(await runningContainers()), wholeDocker = ledger.parts.some((part) => /^(docker|containerd)\./.test(part.unit ?? ''));
  for (const name of ledger.before.containers.filter((one) => !running.has(one) && !ours.has(one))) {
    const { exists, exitCode } = await containerState(name);
    if (!exists || (exitCode === 0 && !wholeDocker)) continue; // it was removed, or had done its work
    const { code } = await change(['docker', 'start', name], { toTranscript: true, seconds: START_SECONDS });
    if (code !== 0) down.push(`container ${name}`);
    warn(`container ${name} went down with the others and was ${code === 0 ? '' : 'NOT '}started again: name it in \`stop\``);
  }
  return down;
}

/**
 * Parts that run, but were asked to stop and never seen to: they may still follow. They stay in the ledger for an hour, and are
 * watched. An active unit, a cluster that answers, and a container that `docker stop` has let go of will not follow any more;
 * of another database in a container, and of an own command, nobody can know: one that failed may only have grown tired of waiting.
 */
function undecidedParts(ledger) {
  const limit = (ledger.stopTimeoutSeconds + 3600) * 1000;
  const isKnown = (part) => part.runningAt !== null && Boolean(part.unit || part.dataDirectory || (part.database === '' && part.stopSeconds + 3 < ledger.stopTimeoutSeconds));
  return ledger.parts.filter((part) => part.stoppedAt === null && !(part.refused && !part.running) && !isKnown(part) && Date.now() - Date.parse(part.askedAt) < limit);
}

/** The state of the machine in words: the last line of every error after the first stop. */
function servicesNow(ledger, down) {
  const others = ledger.parts.filter(({ name }) => !down.includes(name)).length; // what is down may be no part, but have gone down with one
  if (down.length > 0) return `NOT RUNNING: ${down.map(named).join(', ')} (${count(others, 'part')} running). Act now: node backup.js recover`;
  if (others === 0) return 'nothing was stopped';
  return others === 1 ? `${ledger.parts[0].name} is running again` : `all ${others} are running again`;
}

// =========================================================================================================
// ==== WORDS ====
// What is written for people in their own language: RESTORE.md, the recovery sheet, messages.
// One table a language, with the same keys (a test compares them). What the terminal says, settings, commands and code stay
// English. Texts within a python block hold no quotes.

const ENGLISH = {
  restore: {
    title: (archive) => `Restore ${archive}`, passphrase: 'passphrase', no: 'no', none: 'none',
    intro: (server, madeAt, system, architecture) => `Everything that server \`${server}\` saved on ${madeAt}, with all services stopped. It ran ${system} on ${architecture}; the new machine must have the same architecture.`,
    readOn: (part) => `Read on to the end before you begin. Paste the blocks into one root shell (bash), one after the other; go on when a block has ended without an error. For one folder, or only a look: do the first chapter, then "${part}".`,
    reach: 'Reach the repository', software: 'The same software', owners: 'The owners of the files', room: 'Stop what runs here, and make room', extract: 'Extract', containers: 'The containers', checks: 'PostgreSQL alone, and is everything there?', start: 'Start, in this order', back: 'To go back', part: 'Only a part',
    need: (isRemote) => `You need the key file and the passphrase (both are on the recovery sheet; \`borg key import --paper\` makes the file from it)${isRemote ? ' and an ssh key that the storage lets in (its keeper adds one)' : ''}. Change these lines to where they are:`,
    aside: 'old contents are moved aside under this name', versions: '1.2 or 1.4',
    record: '`record/manifest.json` holds all that is known of the old machine, `record/backup.js` and `record/backup.settings.js` the script that made this archive and its settings.',
    fits: (versions) => `Files of PostgreSQL fit the same major version only (here: ${versions}), and every extension has to be there, in the same version or a newer one. A newer minor version is good.`,
    fromThere: 'it came from there', sameOrNewest: 'the same version, or the newest', packages: (list) => `It had these packages: ${list}.`, noPackage: (command) => `If this Debian has no such package any more: \`${command}\`, and the block again.`, unowned: (list) => `In no package, so bring them from elsewhere: ${list}`,
    locale: 'A database whose locale is missing lets nobody in:', byName: 'By name; the number may be another one here.', notHere: 'What does not exist here yet cannot be stopped: that is no error.', nothingStopped: 'nothing was stopped for this backup', comeBack: 'These come back. What lies there now is moved aside, nothing is deleted:', noPostgres: 'no PostgreSQL may run there', lookedFor: 'PostgreSQL looks for it there',
    above: 'The folders above them are not in the archive, and borg would make them so that nobody but root can enter:', system: (list, command) => `${list} cannot be moved aside on a machine that runs. Extract it elsewhere and take what you need: \`${command}\``,
    volumes: 'Docker has to know its volumes before they are filled:', numbers: 'files in volumes belong to numbers, not names', lookedAt: 'containers only look at it: what is here stays', takesLong: 'It takes long, and says nothing unless `--progress` is added after `extract`.',
    noFiles: 'They are no files, so they are made again, not started yet. These were (values of the environment are not in the archive, they may be secrets):',
    container: (name, image, digest, restart, user, ports, mounts, environment, project) => `\`${name}\`: image \`${image}\` (${digest}), restart ${restart}${user && `, user ${user}`}, ports ${ports}, mounts ${mounts}, environment ${environment}${project && `, project ${project}`}`,
    inFolder: (project, folder) => `${project} in ${folder}`, lost: (project, files) => `The files of project ${project} are not in this archive: ${files}. Bring them, and run \`docker compose create\` in their folder.`, byHand: (names) => `Make ${names} with \`docker create --name ...\` as above.`,
    digest: 'An image from a registry is exactly the same with its digest: `docker pull NAME@sha256:...`. A newer major version of a database does not start on the old files.',
    alone: 'Nobody can reach it from elsewhere yet, and it sends nothing anywhere. If it does not start, its log says why: `/var/log/postgresql/`.', counted: 'Every table is counted, and compared with what was counted while everything ran, shortly before the backup: small differences are what happened in between.',
    recorded: 'recorded', here: 'here', tooLarge: 'None: too large to be counted then', result: '%d tables are as recorded, %d errors', good: 'Good? Then the clusters are stopped again, to be started as usual:',
    partitions: (table) => `rows of ${table} may lie in the wrong partition: look at its bounds`, sorted: (libraries) => `Texts were sorted by ${libraries.join(' and ')}. If these are others here, the indexes that depend on them are built anew (else this does nothing):`,
    programs: (names) => `Programs and units of ${names} are in this archive only if their files are among the paths above: else install them first.`, inContainers: 'PostgreSQL in containers, as soon as it answers:',
    others: 'Others hold the same data', partners: 'They went on after this backup. PostgreSQL does not notice that this side went back in time: rows are passed over without an error. So, before applications come back:',
    partner: {
      subscription: (name, database, quoted) => `subscription \`${name}\` of database \`${database}\`: what was sent here after this backup is not sent again. Note its row of \`pg_subscription\` (\`subconninfo\`, \`subpublications\`, \`subslotname\`); then, in that database: \`ALTER SUBSCRIPTION ${quoted} DISABLE; ALTER SUBSCRIPTION ${quoted} SET (slot_name = NONE); DROP SUBSCRIPTION ${quoted};\`, on the publisher \`SELECT pg_drop_replication_slot('...');\`, here \`TRUNCATE\` its tables and \`CREATE SUBSCRIPTION\` as it was: it copies all rows anew.`,
      slot: (name, database) => `slot \`${name}\`${database && ` of database \`${database}\``}: its reader is ahead of these files, and gets nothing until as much is written here as was lost. Save what it has more than this side; then make its subscription anew over there, as above for a subscription, with this slot dropped here.`,
      standby: (name) => `standby \`${name}\`: it is ahead of these files and cannot follow them. Make it anew with \`pg_basebackup\`.`,
      primary: () => 'which is a standby: it follows its primary only while that has all WAL since this backup. Does its log say `requested WAL segment ... has already been removed`? Then make it anew with `pg_basebackup`.',
      bucardo: (name, database) => `${name} in database \`${database}\`: what was exchanged after this backup is not exchanged again. On the other side: \`UPDATE table SET column = column;\` of every row that may be newer, and Bucardo sends it anew; what was deleted there since is deleted here by hand.`,
    },
    twoOfIt: 'Before applications and users come back: archiving, replication slots and subscriptions now work as on the old machine. If that one still runs, there are two of it.',
    stays: 'Is this machine to stay? `mkdir /opt/cold-backup`, `backup.js` and `backup.settings.js` from `/root/restore/record` into it, key and passphrase where those settings say, and `node backup.js setup`.',
    toGoBack: 'To what was here before: stop as above, then for each path that had old contents (a mount point has them inside, in `.$AWAY`):', remove: 'When all is good for some days, remove the old contents: everything whose name ends with `$AWAY`.',
    onlyPart: 'One folder or file, into an empty folder; nothing that exists is touched. Paths are written without the first slash, and `borg list "::$ARCHIVE"` shows them:', look: (name) => `PostgreSQL ${name} beside whatever runs here, only to look (\`shared_preload_libraries=\` keeps jobs from running; an extension that has to be loaded so needs its name there):`,
    rootAlone: 'borg made these for root alone', elseRunning: 'else it would write into those of the running cluster', goOnLooking: 'leave this line away to go on looking; then remove the folder',
  },
  sheet: {
    title: (server) => `RECOVERY SHEET of server ${server}`, print: 'Print this, keep it on paper away from the server, then remove this file.', whoHas: 'Whoever has it and can reach the storage can read every backup.', repository: 'repository', passphrase: 'passphrase',
    how: 'When the server is gone, as root in an empty folder on a machine with borg (typing the key takes about 8 minutes):', keeper: 'First: ssh-keygen -t ed25519 there makes an ssh key, and the storage\'s keeper lets it in, with a line like this server\'s.', shows: (print) => `The storage shows itself as ${print}.`, then: 'borg key import asks for the id below, then for each numbered line. ARCHIVE is the newest name that is in the list a second time, with proven- before it. record/RESTORE.md says all that follows.',
  },
  message: {
    outcome: { start: 'start', good: 'good', warning: 'warning', failed: 'failed', down: 'down' }, start: 'the backup begins', good: (time) => `good backup, down ${time}`, warning: (number, time) => `backup with ${number} ${number === 1 ? 'warning' : 'warnings'}, down ${time}`,
    failed: (error) => `NO new backup: ${error}`, down: (parts) => `SERVICES NOT RUNNING: ${parts}`, drill: (archive, error) => `drill of ${archive}: ${error}`, newest: 'the newest archive', runOf: (time, error, services) => `run of ${time}: ${error}${services && `; ${services}`}`, restoreOf: (time, error, services) => `restore of ${time}: ${error}${services && `; ${services}`}`,
  },
};

const SPANISH = {
  restore: {
    title: (archive) => `Restaurar ${archive}`, passphrase: 'frase de paso', no: 'no', none: 'ninguno',
    intro: (server, madeAt, system, architecture) => `Todo lo que el servidor \`${server}\` guardó el ${madeAt}, con todos los servicios detenidos. Funcionaba con ${system} en ${architecture}; la máquina nueva debe tener la misma arquitectura.`,
    readOn: (part) => `Lea hasta el final antes de empezar. Pegue los bloques, uno tras otro, en una misma shell de root (bash); continúe cuando cada bloque haya terminado sin errores. Para recuperar una sola carpeta, o solo mirar: siga el primer capítulo y después «${part}».`,
    reach: 'Acceder al repositorio', software: 'El mismo software', owners: 'Los propietarios de los archivos', room: 'Detener lo que está en marcha aquí y hacer sitio', extract: 'Extraer', containers: 'Los contenedores', checks: 'PostgreSQL a solas: ¿está todo?', start: 'Arrancar, en este orden', back: 'Para volver atrás', part: 'Solo una parte',
    need: (isRemote) => `Necesita el archivo de clave y la frase de paso (ambos están en la hoja de recuperación; \`borg key import --paper\` crea el archivo a partir de ella)${isRemote ? ' y una clave ssh que el almacenamiento acepte (la añade quien lo administra)' : ''}. Ajuste estas líneas según dónde estén:`,
    aside: 'lo que había se aparta con este nombre', versions: '1.2 o 1.4',
    record: '`record/manifest.json` contiene todo lo que se sabe de la máquina antigua; `record/backup.js` y `record/backup.settings.js`, el script que creó esta copia y su configuración.',
    fits: (versions) => `Los archivos de PostgreSQL solo sirven con la misma versión mayor (aquí: ${versions}), y todas las extensiones deben estar instaladas, en la misma versión o en una posterior. Una versión menor posterior es válida.`,
    fromThere: 'procedía de ahí', sameOrNewest: 'la misma versión o la más reciente', packages: (list) => `Tenía estos paquetes: ${list}.`, noPackage: (command) => `Si este Debian ya no ofrece ese paquete: \`${command}\`, y repita el bloque.`, unowned: (list) => `No pertenecen a ningún paquete, así que tráigalos de otro sitio: ${list}`,
    locale: 'Una base de datos cuya configuración regional falta no admite conexiones:', byName: 'Por nombre; aquí el número puede ser otro.', notHere: 'Lo que todavía no existe aquí no se puede detener: no es un error.', nothingStopped: 'no se detuvo nada para esta copia', comeBack: 'Esto es lo que se recupera. Lo que haya ahora ahí se aparta; no se borra nada:', noPostgres: 'ahí no debe haber ningún PostgreSQL en marcha', lookedFor: 'PostgreSQL lo busca ahí',
    above: 'Las carpetas superiores no están en la copia, y borg las crearía de modo que solo root pudiera entrar:', system: (list, command) => `${list} no se puede apartar en una máquina en marcha. Extráigalo en otro sitio y tome lo que necesite: \`${command}\``,
    volumes: 'Docker debe conocer sus volúmenes antes de llenarlos:', numbers: 'los archivos de los volúmenes pertenecen a números, no a nombres', lookedAt: 'los contenedores solo lo miran: lo que hay aquí se queda', takesLong: 'Tarda bastante y no muestra nada, salvo que añada `--progress` después de `extract`.',
    noFiles: 'No son archivos, así que se crean de nuevo, sin arrancarlos todavía. Eran estos (los valores del entorno no están en la copia, porque pueden ser secretos):',
    container: (name, image, digest, restart, user, ports, mounts, environment, project) => `\`${name}\`: imagen \`${image}\` (${digest}), reinicio ${restart}${user && `, usuario ${user}`}, puertos ${ports}, montajes ${mounts}, entorno ${environment}${project && `, proyecto ${project}`}`,
    inFolder: (project, folder) => `${project} en ${folder}`, lost: (project, files) => `Los archivos del proyecto ${project} no están en esta copia: ${files}. Tráigalos y ejecute \`docker compose create\` en su carpeta.`, byHand: (names) => `Cree ${names} con \`docker create --name ...\` según lo anterior.`,
    digest: 'Con su digest, la imagen de un registro es exactamente la misma: `docker pull NOMBRE@sha256:...`. Una versión mayor posterior de una base de datos no arranca con los archivos antiguos.',
    alone: 'Nadie puede conectarse todavía desde fuera, y no envía nada a ningún sitio. Si no arranca, su registro dice por qué: `/var/log/postgresql/`.', counted: 'Se cuentan las filas de todas las tablas y se comparan con las que había poco antes de la copia, con todo en marcha: las diferencias pequeñas son lo que ocurrió entre medias.',
    recorded: 'anotadas', here: 'aquí', tooLarge: 'None: era demasiado grande para contarla', result: '%d tablas tal como se anotaron, %d errores', good: '¿Todo bien? Entonces los clústeres se vuelven a detener, para arrancarlos de la forma habitual:',
    partitions: (table) => `puede haber filas de ${table} en una partición equivocada: revise sus límites`, sorted: (libraries) => `Los textos se ordenaban con ${libraries.join(' y ')}. Si aquí son otras versiones, se reconstruyen los índices que dependen de ellas (si no, esto no hace nada):`,
    programs: (names) => `Los programas y unidades de ${names} están en esta copia solo si sus archivos figuran entre las rutas anteriores; si no, instálelos antes.`, inContainers: 'PostgreSQL en contenedores, en cuanto responda:',
    others: 'Otros tienen los mismos datos', partners: 'Siguieron adelante después de esta copia. PostgreSQL no nota que este lado ha vuelto atrás en el tiempo: se saltan filas sin ningún error. Por eso, antes de que vuelvan las aplicaciones:',
    partner: {
      subscription: (name, database, quoted) => `suscripción \`${name}\` de la base \`${database}\`: lo que llegó aquí después de esta copia no se envía otra vez. Anote su fila de \`pg_subscription\` (\`subconninfo\`, \`subpublications\`, \`subslotname\`); después, en esa base: \`ALTER SUBSCRIPTION ${quoted} DISABLE; ALTER SUBSCRIPTION ${quoted} SET (slot_name = NONE); DROP SUBSCRIPTION ${quoted};\`, en el publicador \`SELECT pg_drop_replication_slot('...');\`, aquí \`TRUNCATE\` de sus tablas y \`CREATE SUBSCRIPTION\` como era: copia todas las filas de nuevo.`,
      slot: (name, database) => `slot \`${name}\`${database && ` de la base \`${database}\``}: quien lo lee está por delante de estos archivos, y no recibe nada hasta que aquí se escriba tanto como se perdió. Guarde lo que tenga de más; después, rehaga allí su suscripción, como se dice arriba de una suscripción, y borre este slot aquí.`,
      standby: (name) => `réplica \`${name}\`: está por delante de estos archivos y no puede seguirlos. Rehágala con \`pg_basebackup\`.`,
      primary: () => 'que es una réplica: solo sigue a su primario mientras este tenga todo el WAL desde esta copia. ¿Dice su registro `requested WAL segment ... has already been removed`? Entonces, rehágala con `pg_basebackup`.',
      bucardo: (name, database) => `${name} en la base \`${database}\`: lo que se intercambió después de esta copia no se intercambia otra vez. En el otro lado: \`UPDATE table SET column = column;\` de todas las filas que puedan ser más nuevas, y Bucardo las envía de nuevo; lo que allí se haya borrado desde entonces se borra aquí a mano.`,
    },
    twoOfIt: 'Antes de que vuelvan las aplicaciones y los usuarios: el archivado, los slots de replicación y las suscripciones funcionan ahora como en la máquina antigua. Si aquella sigue en marcha, habrá dos iguales.',
    stays: '¿Esta máquina va a sustituir a la antigua? `mkdir /opt/cold-backup`, copie allí `backup.js` y `backup.settings.js` desde `/root/restore/record`, ponga la clave y la frase de paso donde dice esa configuración y ejecute `node backup.js setup`.',
    toGoBack: 'A lo que había antes: detenga todo como arriba y, después, para cada ruta que tuviera contenido anterior (un punto de montaje lo tiene dentro, en `.$AWAY`):', remove: 'Cuando todo lleve unos días funcionando bien, elimine el contenido anterior: todo aquello cuyo nombre termina en `$AWAY`.',
    onlyPart: 'Una carpeta o un archivo, en una carpeta vacía; no se toca nada de lo que existe. Las rutas se escriben sin la primera barra, y `borg list "::$ARCHIVE"` las muestra:', look: (name) => `PostgreSQL ${name} junto a lo que esté en marcha aquí, solo para mirar (\`shared_preload_libraries=\` evita que se ejecuten tareas; una extensión que deba cargarse así necesita que su nombre figure ahí):`,
    rootAlone: 'borg las creó solo para root', elseRunning: 'de lo contrario, escribiría en los del clúster en marcha', goOnLooking: 'omita esta línea para seguir mirando; después elimine la carpeta',
  },
  sheet: {
    title: (server) => `HOJA DE RECUPERACIÓN del servidor ${server}`, print: 'Imprima esta hoja, guárdela en papel lejos del servidor y elimine después este archivo.', whoHas: 'Quien la tenga y pueda acceder al almacenamiento podrá leer todas las copias.', repository: 'repositorio', passphrase: 'frase de paso',
    how: 'Si se pierde el servidor, como root en una carpeta vacía de una máquina con borg (teclear la clave lleva unos 8 minutos):', keeper: 'Antes: ssh-keygen -t ed25519 crea allí una clave ssh, y quien administra el almacenamiento la acepta, con una línea como la de este servidor.', shows: (print) => `El almacenamiento se presenta como ${print}.`, then: 'borg key import pide el id de abajo y después cada línea numerada. ARCHIVE es el nombre más reciente que aparece en la lista dos veces, la segunda con proven- delante. record/RESTORE.md explica todo lo demás.',
  },
  message: {
    outcome: { start: 'inicio', good: 'correcto', warning: 'aviso', failed: 'fallo', down: 'detenido' }, start: 'empieza la copia', good: (time) => `copia correcta, servicios detenidos ${time}`, warning: (number, time) => `copia con ${number} ${number === 1 ? 'aviso' : 'avisos'}, servicios detenidos ${time}`,
    failed: (error) => `NO hay copia nueva: ${error}`, down: (parts) => `SERVICIOS DETENIDOS: ${parts}`, drill: (archive, error) => `simulacro de ${archive}: ${error}`, newest: 'la copia más reciente', runOf: (time, error, services) => `ejecución de ${time}: ${error}${services && `; ${services}`}`, restoreOf: (time, error, services) => `restauración de ${time}: ${error}${services && `; ${services}`}`,
  },
};

const WORDS = { en: ENGLISH, es: SPANISH };

// =========================================================================================================
// ==== LOOKING THROUGH ====
// Looking through what came back, by RESTORE.md, before it is let loose.
// Every table that the manifest counted is counted again; indexes that another libc or ICU sorts otherwise are rebuilt. Only
// makes text, quoted for the shell.

const LOCKED_IN = '-c listen_addresses= -c archive_mode=off -c max_logical_replication_workers=0';

const q = (...words) => pasteable(words);
const block = (lines) => ['```sh', ...lines, '```'].join('\n');
const untilFirstError = (lines) => block(['( set -e', ...lines, ')']); // pasted or not, it ends at the first command that fails

const psqlOf = (one) => ['runuser', '-u', one.owner, '--', 'env', 'PGOPTIONS=-c search_path=pg_catalog', 'psql', '-XqAt', '-h', one.socketFolder || '/var/run/postgresql', '-p', one.port || '5432'];

const psqlIn = (one) => ['docker', 'exec', '--interactive', '--user', String(one.uid), one.container, 'sh', '-c', 'exec psql -XqAt -U "${POSTGRES_USER:-postgres}" "$@"', 'sh'];

function checksChapter(manifest, clusters, w) {
  const ran = clusters.filter((one) => one.pid !== 0);
  if (ran.length === 0) return [];
  const starts = ran.map((one) => (one.configFolder ? `pg_ctlcluster --skip-systemctl-redirect ${one.name.split('/').map((word) => q(word)).join(' ')} start -o ${q(LOCKED_IN)}` : startOf(manifest, one)));
  const connections = Object.fromEntries(ran.map((one) => [one.name, psqlOf(one)]));
  return [`## 7. ${w.checks}`, w.alone, untilFirstError(['systemctl daemon-reload || true', ...starts]), w.counted,
    counting(connections, w),
    ...collationsChapter(manifest, ran, w), ...(ran.some((one) => one.configFolder) ? [w.good,
      block(ran.filter((one) => one.configFolder).map((one) => `pg_ctlcluster --skip-systemctl-redirect ${one.name.split('/').map((word) => q(word)).join(' ')} stop`))] : [])];
}

// Counts every table that the manifest counted. connections: by cluster, the words that run psql there.
const counting = (connections, w, first = []) => block([...first, `python3 - <<'END'`, 'import json, subprocess, sys', `connections = ${JSON.stringify(connections)}`, 'bad = same = 0',
  `for cluster in json.load(open('/root/restore/record/manifest.json'))['postgres']:`,
  `    for database in cluster['databases'] if cluster['name'] in connections else []:`,
  `        if not database['connectable']: continue`,
  `        tables = database.get('rows') or {}`,
  `        sql = ''.join('select %d, count(*) from only %s;\\n' % (number, name) for number, name in enumerate(tables)) or 'select 1;'`,
  `        done = subprocess.run(connections[cluster['name']] + ['-d', database['name']], input=sql, capture_output=True, text=True)`,
  `        here = dict(line.split('|') for line in done.stdout.split() if '|' in line)`,
  `        if done.stderr: print(cluster['name'], database['name'], done.stderr.strip())`,
  `        for number, (name, rows) in enumerate(tables.items()):`,
  `            found = here.get(str(number))`,
  `            if found is None or (rows and found == '0'): bad += 1`,
  `            if found is not None and rows in (None, int(found)): same += 1   # ${w.tooLarge}`,
  `            else: print(cluster['name'], database['name'], name, '${w.recorded}', rows, '${w.here}', found)`,
  `        bad += 0 if done.returncode == 0 else 1`,
  `print('${w.result}' % (same, bad))`, 'sys.exit(1 if bad else 0)', 'END']);

const startOf = ({ plan }, cluster) => q(...plan.parts.find((part) => part.dataDirectory === cluster.dataDirectory)?.start ?? ['true']);

// Indexes lie in the order of libc or ICU: another version may sort otherwise. Only those are rebuilt that this archive has.
function collationsChapter({ postgres, host }, clusters, w) {
  const lines = clusters.flatMap((cluster) => {
    const facts = postgres.find((one) => one.dataDirectory === cluster.dataDirectory);
    return (['c', 'i']).flatMap((provider) => {
      const sql = (facts?.databases ?? []).flatMap((one) => {
        const used = (one.collations ?? []).filter((collation) => collation.provider === provider && !/^(C|POSIX|C\.utf-?8)$/i.test(collation.locale ?? ''));
        const isOwn = one.provider === provider && Number(cluster.version) >= 15 && one.recorded !== null;
        const statements = [...used.flatMap((collation) => collation.indexes.map((index) => `REINDEX INDEX ${index};`)),
          ...used.filter((collation) => collation.name !== 'default' && collation.recorded !== null).map((collation) => `ALTER COLLATION ${[collation.schema, collation.name].map(quotedName).join('.')} REFRESH VERSION;`),
          ...used.flatMap((collation) => collation.partitionedTables.map((table) => `-- ${w.partitions(table)}`)),
          ...(isOwn ? [`ALTER DATABASE ${quotedName(one.name)} REFRESH COLLATION VERSION;`] : [])];
        return statements.length === 0 ? [] : [`${q(...psqlOf(cluster))} -v ON_ERROR_STOP=1 -d ${q(one.name)} <<'END'`, ...statements.map((text) => text.replaceAll('\n', ' ')), 'END'];
      });
      if (sql.length === 0) return [];
      const differs = provider === 'c' ? `[ "$(getconf GNU_LIBC_VERSION)" != ${q(host.libc)} ]`
        : `[ "$(basename "$(readlink -f "$(ldd ${q(path.join(cluster.binaries || `/usr/lib/postgresql/${cluster.version}/bin`, 'postgres'))} | grep -o '/[^ ]*libicui18n[^ ]*')")")" != ${q(facts?.icu ?? '')} ]`;
      return [`if ${differs}; then`, ...sql, 'fi'];
    });
  });
  return lines.length === 0 ? [] : [w.sorted([host.libc, ...new Set(postgres.map((one) => one.icu).filter((one) => one))]), block(lines)];
}

// =========================================================================================================
// ==== RESTORE.MD ====
// RESTORE.md: how to bring back this very archive by hand, for somebody without this script.
// It needs borg, the key file and the passphrase. Facts of the night are filled in, nothing is told that this archive does not
// need, and every block can be pasted as it stands: a test does it, on a fresh machine. Only makes text; names in it are quoted
// for the shell.

// Folders that a running machine cannot do without: they are not swapped, but laid aside to be compared.
const SYSTEM = /^\/(|etc|etc\/(passwd|group|g?shadow)|usr(\/.*)?|var|var\/(lib|log|cache|spool)|var\/lib\/(docker|containerd)|boot|root|home|bin|sbin|lib\w*|run|dev|proc|sys|tmp)$/;
const OF_THE_SYSTEM = /^\/((etc|root|usr)\/|var\/((cache|log|run|spool|lib\/(apt|containerd|dbus|docker|dpkg|rpm|systemd))(\/|$)|lib$))/; // but not /var/www, /var/lib/shop
/** Whether this is the machine's own, at which containers only look (`/etc/group:/etc/group:ro`): another machine's would harm it. What lies below a folder that is named comes back with it. Given a root, and the manifest. */
function isLookedAt({ path: place, why, strict }, { plan, containers }) {
  const source = why.startsWith('volume /') ? why.slice('volume '.length) : ''; // a bind mount; what is a volume of Docker's is the containers' own
  const uses = containers.flatMap(({ mounts }) => mounts.filter((one) => one.source === source)); // none: the passport lacks its container, so nobody knows
  if (plan.roots.some((one) => !one.why.startsWith('volume ') && isBelow(place, one.path))) return false;
  return OF_THE_SYSTEM.test(place) && !strict && uses.length > 0 && uses.every((one) => one.writable === false);
}

const stored = (places) => q(...places.map((one) => `pp:${one.slice(1)}`));

/** Given the manifest of an archive and a language, returns its RESTORE.md: the same commands in every language. */
function restoreText(manifest, language) {
  const w = WORDS[language].restore;
  const clusters = manifest.plan.clusters.filter((one) => one.container === '');
  const places = placesOf(manifest, clusters);
  const chapters = [...reachChapter(manifest, w), ...softwareChapter(manifest, clusters, w), ...ownersChapter(manifest, places, w),
    ...makeRoom(manifest, clusters, places, w), ...extraction(manifest, places, w), ...containersAgain(manifest, w), ...checksChapter(manifest, clusters, w),
    ...startChapter(manifest, clusters, w), ...partnersChapter(manifest, w), ...goingBack(places, w), ...onlyAPart(manifest, clusters, places, w)];
  let number = 0; // of those chapters that this archive needs
  return chapters.map((one) => one.replace(/^## \d+/, () => `## ${++number}`)).join('\n\n') + '\n';
}

function placesOf({ plan, containers }, clusters) {
  const system = plan.roots.filter((root) => SYSTEM.test(root.path) && !/^volume \/usr\/./.test(root.why)).map((root) => root.path);
  const looked = plan.roots.filter((root) => isLookedAt(root, { plan, containers })).map((root) => root.path).filter((one) => !system.includes(one));
  const byNumber = plan.roots.filter((root) => root.why.startsWith('volume ')).map((root) => root.path).filter((one) => !system.includes(one) && !looked.includes(one));
  const byName = [...clusters.flatMap((one) => one.roots), ...plan.roots.map((root) => root.path)].filter((one) => ![...system, ...looked, ...byNumber].includes(one));
  return { byName: outermost(byName).sort(), byNumber: outermost(byNumber), system: outermost(system), looked: outermost(looked) };
}

function reachChapter({ archive, server, madeAt, plan, host }, w) {
  const isRemote = !plan.repository.startsWith('/');
  return [`# ${w.title(archive)}`, `${w.intro(server, madeAt, host.osRelease.PRETTY_NAME ?? os.type(), host.architecture)}\n${w.readOn(w.part)}`, `## 1. ${w.reach}`, w.need(isRemote),
    block([`export BORG_REPO=${q(plan.repository)}`, 'export BORG_KEY_FILE=/root/borg_key', ...(isRemote ? [`export BORG_RSH='ssh -i /root/.ssh/id_ed25519'`] : []), `read -rs -p "${w.passphrase}: " BORG_PASSPHRASE`]),
    block(['export BORG_PASSPHRASE BORG_RELOCATED_REPO_ACCESS_IS_OK=yes LC_ALL=C.UTF-8', `export ARCHIVE=${q(archive)} AWAY="before-$(date +%Y%m%d-%H%M%S)"   # ${w.aside}`,
      `command -v borg >/dev/null || { apt-get update && apt-get install --yes borgbackup; }   # ${w.versions}`, 'mkdir -p /root/restore && cd /root/restore && borg extract "::$ARCHIVE" record && ls record']),
    w.record];
}

function softwareChapter(manifest, clusters, w) {
  const { packages, containers } = manifest, isDebian = Object.keys(packages.all).some((name) => name === 'dpkg');
  const names = [...(clusters.length > 0 ? Object.keys(packages.needed).filter((name) => !/^(libc6|libicu\d*|tzdata|nodejs|borgbackup)/.test(name)) : []),
    ...(containers.length > 0 ? Object.keys(packages.all).filter((name) => /^(docker\.io|docker-ce|docker-compose.*|containerd(\.io)?)$/.test(name)) : [])];
  if (names.length === 0) return [];
  const exact = names.map((name) => `${name.split(':')[0]}=${packages.all[name]}`);
  const pgdg = exact.some((one) => one.includes('pgdg'));
  const versions = [...new Set(clusters.map((one) => one.version))].join(', ');
  return [`## 2. ${w.software}`, ...(versions ? [w.fits(versions)] : []),
    isDebian ? untilFirstError([`missing=; for package in ${q(...exact)}; do`, `  [ "$(dpkg-query -Wf '\${db:Status-Status}' "\${package%%=*}" 2>/dev/null)" = installed ] || missing="$missing $package"; done`,
      'if [ -n "$missing" ]; then', '  apt-get update', ...(pgdg ? [`  apt-get install --yes postgresql-common ca-certificates && /usr/share/postgresql-common/pgdg/apt.postgresql.org.sh -y   # ${w.fromThere}`] : []),
      `  for package in $missing; do apt-get install --yes "$package" || apt-get install --yes "\${package%%=*}"; done   # ${w.sameOrNewest}`, 'fi'])
      : w.packages(exact.join(', ')),
    ...(isDebian && !pgdg && versions ? [w.noPackage('apt-get install postgresql-common && /usr/share/postgresql-common/pgdg/apt.postgresql.org.sh -y')] : []),
    ...(packages.unowned.length > 0 ? [w.unowned(packages.unowned.map((one) => `\`${one}\``).join(', '))] : []), ...locales(manifest, w)];
}

// Of a locale as PostgreSQL names it ('de_DE.UTF-8', 'de_DE@euro'): what `locale -a` calls it, and its line in /etc/locale.gen.
function locales({ postgres }, w) {
  const databases = postgres.filter((one) => one.container === '').flatMap((one) => one.databases), collations = databases.flatMap((one) => one.collations ?? []);
  const settings = postgres.filter((one) => one.container === '').flatMap((one) => Object.entries(one.settings ?? {}).filter(([name]) => /^lc_/.test(name)).map(([, value]) => value));
  const used = new Set([...databases.flatMap((one) => [one.collate, one.ctype]), ...collations.filter((one) => one.provider === 'c').map((one) => one.locale ?? ''), ...settings]);
  const lines = [...used].filter((one) => /^[a-z]{2,3}_[A-Z]{2}/.test(one)).sort().map((name) => {
    const [, base = '', codeset = '', variant = ''] = /^([^.@]*)\.?([^@]*)(@.*)?$/.exec(name) ?? [];
    const charset = codeset === '' ? (variant === '@euro' ? 'ISO-8859-15' : 'ISO-8859-1') : codeset.toUpperCase().replace(/^UTF-?8$/, 'UTF-8').replace(/^ISO-?8859-?(\d+)$/, 'ISO-8859-$1');
    const full = `${base}${codeset ? `.${charset}` : ''}${variant}`, listed = `${base}${codeset ? `.${codeset.toLowerCase().replaceAll('-', '')}` : ''}${variant}`;
    return `locale -a | grep -qxF ${q(listed)} || { echo ${q(`${full} ${charset}`)} >> /etc/locale.gen && locale-gen; }`;
  });
  return lines.length === 0 ? [] : [w.locale, block(lines)];
}

// Files of the host come back to the user of that name; numbers may differ.
function ownersChapter({ host }, { byName }, w) {
  const users = host.users.filter((one) => one.id !== 0 && one.name), groups = host.groups.filter((one) => one.id !== 0 && one.name);
  const lines = [...groups.map((one) => `getent group ${q(one.name)} >/dev/null || groupadd --gid ${one.id} ${q(one.name)} || groupadd ${q(one.name)}`),
    ...users.map((one) => {
      const group = (groups.find((other) => other.id === one.group) ?? groups.find((other) => other.name === one.name))?.name, rest = `--no-create-home ${one.home ? `--home-dir ${q(one.home)} ` : ''}${one.shell ? `--shell ${q(one.shell)} ` : ''}${group ? `--gid ${q(group)} ` : ''}`;
      return `getent passwd ${q(one.name)} >/dev/null || useradd --uid ${one.id} ${rest}${q(one.name)} || useradd ${rest}${q(one.name)}`;
    })];
  if (byName.length === 0 || lines.length === 0) return [];
  return [`## 3. ${w.owners}`, w.byName, block(lines)];
}

// What lies in the way is moved, never deleted. Below /etc it would be found by programs (Debian takes a folder below /etc/postgresql for a cluster): it goes to /root.
const asidePath = (place) => (isBelow(place, '/etc') ? `/root/$AWAY${pasteable([place])}` : `${pasteable([place])}.$AWAY`);

function makeRoom({ plan, parents, host, postgres }, clusters, { byName, byNumber, system }, w) {
  const stops = plan.parts.filter((part) => part.wasRunning).map((part) => `${q(...part.stop)} || true`);
  const debian = clusters.filter((one) => one.configFolder && !plan.parts.some((part) => part.wasRunning && part.dataDirectory === one.dataDirectory)).map((one) => `systemctl stop ${q(`postgresql@${one.name.replace('/', '-')}`)} || true`);
  // What PostgreSQL looks for over a link that is in no archive: see the judge's linkFindings().
  const links = clusters.flatMap((one) => [[postgres.find((told) => told.dataDirectory === one.dataDirectory)?.settings?.data_directory || one.dataDirectory, one.dataDirectory], ...one.tablespaces.filter(({ location }) => one.roots.includes(location)).map(({ link, location }) => [link, location])])
    .filter(([link, to]) => path.isAbsolute(link) && link !== to);
  const user = (uid) => host.users.find((one) => one.id === uid)?.name || String(uid), group = (gid) => host.groups.find((one) => one.id === gid)?.name || String(gid);
  const needed = parents.filter((one) => !byName.some((place) => isBelow(one.path, place))).filter((one) => !byNumber.some((volume) => isBelow(volume, one.path)) || byName.some((place) => isBelow(place, one.path)));
  return [`## 4. ${w.room}`, w.notHere, block([...stops, ...debian].concat(stops.length + debian.length === 0 ? [`true   # ${w.nothingStopped}`] : [])),
    w.comeBack, [...byName, ...byNumber].map((one) => `- \`${one}\``).join('\n'),
    untilFirstError([...clusters.map((one) => `[ ! -e ${q(`${one.dataDirectory}/postmaster.pid`)} ]   # ${w.noPostgres}`),
      'aside() {', '  [ -e "$1" ] || [ -L "$1" ] || return 0', '  if mountpoint -q "$1"; then mkdir "$1/.$AWAY"; find "$1" -mindepth 1 -maxdepth 1 ! -name ".$AWAY" ! -name lost+found -exec mv -t "$1/.$AWAY" {} +; return; fi',
      '  [ ! -e "$2" ]; mkdir -p "${2%/*}"; mv -T "$1" "$2"', '}', ...[...byName, ...byNumber].map((one) => `aside ${q(one)} ${asidePath(one)}`),
      ...links.map(([link, to]) => `[ "$(realpath -m ${q(link)})" = "$(realpath -m ${q(to)})" ] || { aside ${q(link)} ${asidePath(link)}; mkdir -p ${q(path.dirname(link))}; ln -s -T ${q(to, link)}; }   # ${w.lookedFor}`),
      ...clusters.flatMap((one) => one.configLinks ?? []).map(({ link, location }) => `[ -e ${q(link)} ] || { mkdir -p ${q(path.dirname(link))}; ln -sf -T ${q(location, link)}; }   # ${w.lookedFor}`)]),
    ...(needed.length > 0 ? [w.above,
      block(needed.map((one) => `[ -d ${q(one.path)} ] || install -d -m ${one.mode} -o ${q(user(one.uid))} -g ${q(group(one.gid))} ${q(one.path)}`))] : []),
    ...(system.length > 0 ? [w.system(system.map((one) => `\`${one}\``).join(', '), `mkdir /root/old && cd /root/old && borg extract "::$ARCHIVE" ${stored(system)}`)] : [])];
}

function extraction({ containers, plan }, { byName, byNumber, looked }, w) {
  const mounts = containers.flatMap((one) => one.mounts);
  const volumes = byNumber.flatMap((place) => mounts.filter((one) => one.type === 'volume' && one.source === place).map((one) => ({ place, name: String(one.name) })).slice(0, 1));
  const otherVolumes = [...new Set(plan.roots.filter((root) => byNumber.includes(root.path) && root.path.endsWith('/_data')).map((root) => root.why.slice('volume '.length)))].filter((one) => !volumes.some(({ name }) => name === one) && !one.includes('/'));
  const make = [...volumes.map(({ name }) => name), ...otherVolumes];
  return [`## 5. ${w.extract}`, ...(make.length > 0 ? [w.volumes, block(make.map((name) => `docker volume inspect ${q(name)} >/dev/null 2>&1 || docker volume create ${q(name)}`))] : []),
    untilFirstError(['cd /', ...(byName.length > 0 ? [`borg extract --sparse "::$ARCHIVE" ${stored(byName)}${byNumber.some((one) => byName.some((place) => isBelow(one, place))) ? byNumber.map((one) => ` --exclude ${stored([one])}`).join('') : ''}`] : []),
      ...(byNumber.length > 0 ? [`borg extract --sparse --numeric-ids "::$ARCHIVE" ${stored(byNumber)}   # ${w.numbers}`] : []),
      ...looked.map((one) => `[ -e ${q(one)} ] || borg extract --sparse --numeric-ids "::$ARCHIVE" ${stored([one])}   # ${w.lookedAt}`)]), // a source that is missing is made by Docker, an empty folder
    w.takesLong];
}

function containersAgain({ containers, plan }, w) {
  if (containers.length === 0) return [];
  const isSaved = (file) => plan.roots.some((root) => isBelow(file, root.path));
  const lines = containers.map((one) => `- ${w.container(one.name, one.image, one.imageDigests.join(', ') || one.imageId, one.restartPolicy || w.no, one.user, one.ports.join(', ') || w.none,
    one.mounts.map((mount) => `${mount.name || mount.source}:${mount.destination}${mount.writable ? '' : ':ro'}`).join(' ') || w.none, one.environmentNames.filter((name) => name !== 'PATH').join(' ') || w.none, one.composeProject ? w.inFolder(one.composeProject, one.composeFolder) : '')}`);
  const projects = [...new Set(containers.filter((one) => one.composeProject && one.composeFiles.length > 0).map((one) => JSON.stringify([one.composeProject, one.composeFolder, one.composeFiles])))].map((one) => JSON.parse(one));
  const ready = projects.filter(([, , files]) => files.every(isSaved)), lost = projects.filter(([, , files]) => !files.every(isSaved));
  const byHand = containers.filter((one) => !one.composeProject || one.composeFiles.length === 0);
  return [`## 6. ${w.containers}`, w.noFiles, lines.join('\n'),
    ...(ready.length > 0 ? [block(ready.map(([project, folder, files]) => `docker compose --project-name ${q(project)} --project-directory ${q(folder)} ${files.map((file) => `--file ${q(file)}`).join(' ')} create`))] : []),
    ...lost.map(([project, , files]) => w.lost(project, files.join(', '))),
    ...(byHand.length > 0 ? [w.byHand(byHand.map((one) => `\`${one.name}\``).join(', '))] : []),
    w.digest];
}

function startChapter(manifest, clusters, w) {
  const { plan } = manifest;
  const runsAlready = (part) => clusters.some((one) => one.pid !== 0 && !one.configFolder && one.dataDirectory === part.dataDirectory);
  const parts = [...plan.parts].reverse().filter((part) => part.wasRunning && !runsAlready(part));
  const lines = [...parts.map((part) => q(...part.start))];
  if (lines.length === 0) return [];
  const inContainers = plan.clusters.filter((one) => one.container !== '' && one.pid !== 0);
  const missing = parts.filter((part) => part.kind === 'service' || part.kind === 'command').map((part) => part.name);
  return [`## 8. ${w.start}`, ...(missing.length > 0 ? [w.programs(missing.join(', '))] : []), block(lines),
    ...(inContainers.length > 0 ? [w.inContainers, counting(Object.fromEntries(inContainers.map((one) => [one.name, psqlIn(one)])), w,
      inContainers.map((one) => `for i in $(seq 60); do ${q(...psqlIn(one))} -d template1 -c 'select' </dev/null >/dev/null 2>&1 && break; sleep 1; done`))] : []),
    w.twoOfIt, w.stays];
}

// Who holds the same data went on while these clusters go back in time: nobody would notice.
function partnersChapter({ postgres }, w) {
  const inText = (name) => oneLine(name).replaceAll('`', "'"); // nobody's name opens a block in this file
  const lines = postgres.flatMap((one) => partnersOf(one).map(({ kind, name, database }) => `- PostgreSQL ${inText(one.name)}, ${w.partner[kind](inText(name), inText(database), inText(quotedName(name)))}`));
  return lines.length === 0 ? [] : [`## ${w.others}`, w.partners, lines.join('\n')];
}

function goingBack({ byName, byNumber }, w) {
  const places = [...byName, ...byNumber];
  if (places.length === 0) return [];
  return [`## ${w.back}`, w.toGoBack,
    ['```', ...places.map((one) => `mv -T ${q(one)} ${q(one)}.restored && mv -T ${asidePath(one)} ${q(one)}`), '```'].join('\n'), w.remove];
}

function onlyAPart({ plan }, clusters, { byName, byNumber, system }, w) {
  const folder = plan.roots.find((root) => root.why === 'folder')?.path ?? [...byName, ...byNumber, ...system][0];
  const numeric = folder && byNumber.includes(folder) ? '--numeric-ids ' : '';
  return [`## ${w.part}`, w.onlyPart,
    untilFirstError([`mkdir -m 700 "/root/part-$AWAY" && cd "/root/part-$AWAY"`, `borg extract --sparse ${numeric}"::$ARCHIVE" ${stored([folder ?? '/record'])}`, 'find . -maxdepth 4 | head -20']),
    ...clusters.filter((one) => one.configFolder).flatMap((one) => besides(one, w))];
}

// A second PostgreSQL beside the first: its links turned to the copy, its own socket, nothing that reaches out, no jobs of its libraries.
function besides(cluster, w) {
  const inside = (place) => `"$L"${q(place)}`, bin = cluster.binaries || `/usr/lib/postgresql/${cluster.version}/bin`, config = inside(cluster.configFolder);
  const links = [...(cluster.walFolder !== `${cluster.dataDirectory}/pg_wal` ? [{ link: 'pg_wal', to: cluster.walFolder }] : []), ...cluster.tablespaces.filter((one) => one.location).map((one) => ({ link: `pg_tblspc/${one.oid}`, to: one.location }))];
  const as = `runuser -u ${q(cluster.owner)} --`;
  const settings = [`config_file=$C/postgresql.conf`, 'data_directory=$D', 'hba_file=$C/pg_hba.conf', 'ident_file=$C/pg_ident.conf', 'external_pid_file=$D/look.pid', 'unix_socket_directories=$L', 'port=5999', 'listen_addresses=', 'archive_mode=off', 'max_logical_replication_workers=0', 'shared_preload_libraries=', 'ssl=off', 'logging_collector=off',
    ...(Number(cluster.version) < 15 ? ['stats_temp_directory=pg_stat_tmp'] : [])]; // Debian's names one for all that bear this cluster's name; from 15 on there is none
  return [w.look(cluster.name),
    untilFirstError([`L="/var/lib/postgresql/look-$AWAY"; D=${inside(cluster.dataDirectory)}; C=${config}`, 'install -d -m 711 "$L" && cd "$L"', `borg extract --sparse "::$ARCHIVE" ${stored(outermost([...cluster.roots, cluster.configFolder]))}`,
      `find "$L" -type d -user root -exec chmod go+x {} +   # ${w.rootAlone}`,
      ...links.map(({ link, to }) => `ln -sfn ${inside(to)} "$D/${link}"   # ${w.elseRunning}`), `chown ${q(cluster.owner)} "$L"`,
      `${as} ${q(path.join(bin, 'pg_ctl'))} start -w -s -l "$L/log" -D "$D" -o "${settings.map((one) => `-c ${one}`).join(' ')}"`,
      `${as} psql -h "$L" -p 5999 -d postgres -c 'show data_directory' -c '\\l'`,
      `${as} ${q(path.join(bin, 'pg_ctl'))} stop -s -D "$D"   # ${w.goOnLooking}`])];
}

// =========================================================================================================
// ==== RECORD ====
// The record that travels in every archive: manifest.json, RESTORE.md, listing, script, settings.
// The manifest holds plan, passport and proof. With it an archive explains itself, to a person and to `restore`, with borg, key
// and passphrase alone. Changes only `record/` and `proven/` in the state folder.

const KEPT_HISTORY_LINES = 500;

/** Where the record is made. */
const recordFolder = (stateFolder) => path.join(stateFolder, 'record');
const listingFile = (stateFolder) => path.join(recordFolder(stateFolder), 'listing');

/** Begin the record anew, with this script and the settings in force. Given the script's file and what was read as settings. */
function beginRecord(loaded, script) {
  const folder = recordFolder(loaded.settings.stateFolder);
  fs.rmSync(folder, { recursive: true, force: true });
  fs.mkdirSync(folder, { recursive: true, mode: 0o700 });
  fs.writeFileSync(path.join(folder, 'backup.js'), fs.readFileSync(script, 'utf8'), { mode: 0o600 });
  fs.writeFileSync(path.join(folder, 'backup.settings.js'), loaded.text, { mode: 0o600 });
}

/** The manifest, but for the proof: all of it that can be known while everything still runs. Warns of a fact that would keep `restore` from it. */
function manifestOf(stateFolder, script, plan, passport) {
  const text = fs.readFileSync(path.join(recordFolder(stateFolder), 'backup.js'), 'utf8');
  const manifest = {
    format: 1, server: plan.server, archive: plan.archive, madeAt: plan.madeAt,
    script: { version: VERSION, state: editedOrAsBuilt(text), node: process.version, file: script },
    ...passport, plan, parents: parentsOf([...plan.roots.map((root) => root.path), ...plan.clusters.flatMap((one) => one.roots), ...socketsOf(plan)]), proof: null, drill: lastDrill(readHistory(stateFolder)),
  };
  const odd = misfit(manifest, MANIFEST_FORM);
  if (odd) warn(`\`restore\` and \`drill\` will refuse this archive, for ${odd} is not what it should be; RESTORE.md in it says how to bring it back by hand`);
  return manifest;
}

/** The newest file of a pass is one that borg reads anew the next time (borg issue 5992): let it be one of ours, not a cluster's. */
function touchRecord(stateFolder) {
  const now = new Date();
  fs.utimesSync(path.join(recordFolder(stateFolder), 'backup.js'), now, now);
}

// PostgreSQL does not start without the folder of its socket, which is in no backup.
function socketsOf(plan) {
  return plan.clusters.filter((one) => one.container === '' && fs.existsSync(one.socketFolder)).map((one) => path.join(one.socketFolder, '.s.PGSQL'));
}

function parentsOf(roots) {
  const parents = new Map();
  for (const root of roots) {
    for (let folder = path.dirname(root); folder !== '/' && !parents.has(folder); folder = path.dirname(folder)) {
      const { mode: bits, uid, gid } = fs.statSync(folder);
      parents.set(folder, { path: folder, mode: (bits & 0o7777).toString(8).padStart(4, '0'), uid, gid });
    }
  }
  return [...parents.values()].sort((one, other) => (one.path < other.path ? -1 : 1));
}

/**
 * Write manifest.json with the proof, and RESTORE.md in this language. Given the manifest, returns its text: what borg is
 * fed, and what will be read back.
 */
function finishRecord({ stateFolder, language }, manifest) {
  const folder = recordFolder(stateFolder);
  fs.writeFileSync(path.join(folder, 'RESTORE.md'), restoreText(manifest, language), { mode: 0o600 });
  const text = `${JSON.stringify(manifest, null, 1)}\n`;
  fs.writeFileSync(path.join(folder, 'manifest.json'), text, { mode: 0o600 });
  return text;
}

/** Write what the `proven-` archive holds beside the proof: the history with this run. Returns the folder. */
function writeHistory(stateFolder, line) {
  const folder = path.join(stateFolder, 'proven');
  fs.rmSync(folder, { recursive: true, force: true });
  fs.mkdirSync(path.join(folder, 'record'), { recursive: true, mode: 0o700 });
  const lines = [...readHistory(stateFolder), line].slice(-KEPT_HISTORY_LINES);
  fs.writeFileSync(path.join(folder, 'record', 'history.jsonl'), lines.map((one) => `${JSON.stringify(one)}\n`).join(''), { mode: 0o600 });
  return folder;
}

// Everything that `restore`, `drill` and the judge read.
const FOUND_IN_DATABASE = {
  name: 'text', encoding: 'text', collate: 'text', ctype: 'text', provider: 'text', orderFingerprint: 'text', 'locale?': 'text', 'rules?': 'text', 'recorded?': 'text', 'actual?': 'text',
  'extensions?': [{ name: 'text', version: 'text' }], 'libraries?': ['text'], 'rows?': { '*': 'anything' }, 'activity?': { '*': 'text or null' }, 'dictionaries?': [{ name: 'text' }],
  'collations?': [{ schema: 'text', name: 'text', provider: 'text', orderFingerprint: 'text', indexes: ['text'], partitionedTables: ['text'],
    'locale?': 'text', 'rules?': 'text', 'recorded?': 'text', 'actual?': 'text' }],
};
const SAVED_CLUSTER = {
  name: 'text', dataDirectory: 'path', walFolder: 'path', version: 'version', binaries: 'text', owner: 'text', container: 'text', 'socketFolder?': 'text', port: 'text',
  uid: 'id', gid: 'id', roots: ['path'], tablespaces: [{ oid: 'text', location: 'text', 'link?': 'text' }], 'configLinks?': [{ link: 'text', location: 'text' }],
};
const PACKAGES = { all: { '*': 'text' }, needed: { '*': 'text' }, unowned: ['text'] };
const MANIFEST_FORM = {
  server: 'server', madeAt: 'text', packages: PACKAGES, parents: [{ path: 'path', mode: 'bits', uid: 'id', gid: 'id' }], 'proof?': { clusters: [{ dataDirectory: 'text', systemIdentifier: 'text' }] },
  host: { architecture: 'text', libc: 'text', users: [{ id: 'id', 'name?': 'text', 'group?': 'id' }], groups: [{ id: 'id', 'name?': 'text' }] },
  containers: [{ name: 'text', image: 'text', imageId: 'text', imageDigests: ['text'], composeProject: 'text', composeService: 'text', composeFiles: ['text'],
    mounts: [{ 'type?': 'text', 'name?': 'text', source: 'text', destination: 'text' }] }],
  postgres: [{ ...SAVED_CLUSTER, systemIdentifier: 'text', controlData: { '*': 'anything' }, databases: [FOUND_IN_DATABASE], 'insideDataDirectory?': 'text', 'packages?': PACKAGES,
    'system?': { libc: 'text' }, 'serverVersion?': 'text', 'settings?': { '*': 'text or null' }, 'preloadLibraries?': { '*': 'text or null' }, 'roles?': [{ rolname: 'text' }],
    'roleSettings?': [{ 'role?': 'text', 'database?': 'text', 'settings?': { '*': 'text or null' } }], 'standbys?': [{ 'pid?': 'number', 'application_name?': 'text' }],
    'slots?': [{ 'slot_name?': 'text', 'plugin?': 'text', 'database?': 'text', 'active_pid?': 'number', 'temporary?': 'yes or no' }], 'subscriptions?': [{ subname: 'text', database: 'text' }] }],
  plan: { roots: [{ path: 'path', why: 'text' }], clusters: [{ ...SAVED_CLUSTER, pid: 'id' }], parts: [{ name: 'text', kind: 'text', group: 'number' }], exclude: ['text'] },
};

/**
 * Given the text of an archive's manifest and the archive's name, returns it. Throws Problem when it is not what this script
 * writes: then nothing in it is used.
 */
function soundManifest(text, archive) {
  const bad = (what) => new Problem(`the record of ${archive} cannot be trusted: ${what}`,
    { hint: `look at it: node backup.js borg extract --stdout ::${archive} record/manifest.json` });
  let manifest;
  try {
    manifest = JSON.parse(text);
  } catch {
    throw bad('record/manifest.json is no JSON');
  }
  const odd = manifest?.format === 1 ? misfit(manifest, MANIFEST_FORM) : 'its form';
  if (odd) throw bad(`${odd} is not what it should be`);
  return manifest;
}

/** Where a path as it is typed lies in the archive: `folders` may name it over a link, and what that leads to is saved. */
function asSaved({ plan }, file) {
  const typedOf = ({ why }) => /^folder (.*) leads here$/s.exec(why)?.[1] ?? '';
  const root = plan.roots.find((one) => typedOf(one) !== '' && isBelow(file, typedOf(one)) && !plan.roots.some((other) => other.path === file));
  return root ? root.path + file.slice(typedOf(root).length) : file;
}

/** The text of the manifest in the state folder when it is this archive's: what this server saved last. '' when it is another one's. */
function ownManifest(stateFolder, archive) {
  try {
    const text = fs.readFileSync(path.join(recordFolder(stateFolder), 'manifest.json'), 'utf8');
    return JSON.parse(text).archive === archive ? text : '';
  } catch { // there is none, or a run was killed while it wrote it
    return '';
  }
}

// =========================================================================================================
// ==== COMMANDS ====
// The commands of a night: the borg calls of its three passes, and the dry run, which shows them all.
// Changes nothing: the story of the night runs them.

const rootPaths = (plan) => plan.roots.map((root) => root.path);
const EARLY_RECORDS = ['record/backup.js', 'record/backup.settings.js'];
const LATE_RECORDS = ['record/RESTORE.md', 'record/listing']; // written when all is stopped. The newest file of all is one that borg reads anew the next time
const pathsWithoutCopy = (plan) => plan.roots.filter((root) => root.way === 'cold').map((root) => root.path);
const filesCache = (plan) => (plan.roots.some((root) => root.way === 'reflink') ? 'mtime,size' : ''); // every night's copy has new inodes, and a new ctime
const wholePaths = (plan) => [...new Set([...plan.clusters.flatMap((cluster) => cluster.roots), ...plan.roots.filter(({ why }) => why.startsWith('cluster ')).map((root) => root.path)])];

/** What a warm pass has to read: what is copied on write need not be there before, but the first night, whose upload may take days. */
function warmPaths(plan, isFirst) {
  return plan.snapshot === '' || isFirst ? rootPaths(plan) : pathsWithoutCopy(plan);
}

function warmCommand(settings, plan, paths, at = plan.madeAt) {
  return createCommand(settings, { archive: `${plan.server}-${at.slice(0, 19)}-warm.checkpoint`, roots: [...paths, 'record'], whole: wholePaths(plan), comment: { format: 1, kind: 'warm' }, filesCache: filesCache(plan) });
}

function coldCommand(settings, plan) {
  const clusters = plan.clusters.map(({ name, version }) => ({ name, version }));
  const comment = { format: 1, kind: 'cold', server: plan.server, clusters: clusters.slice(0, 20) };
  const early = plan.snapshot ? pathsWithoutCopy(plan) : [], late = rootPaths(plan).filter((root) => !early.includes(root)); // borg has read the early ones when it comes to `-`, and waits
  return inCopies(plan.roots, createCommand(settings, { archive: plan.archive, roots: [...EARLY_RECORDS, ...early, '-', ...late, ...LATE_RECORDS], fed: 'record/manifest.json', whole: wholePaths(plan), comment, filesCache: filesCache(plan) }));
}

function proofCommand(settings, plan, comment) {
  return createCommand(settings, { archive: `proven-${plan.archive}`, roots: ['record/history.jsonl', '-'], fed: 'record/proof.json', whole: [], comment: { format: 1, kind: 'proof', ...comment } });
}

/** `--dry-run`: the plan the real run would have, and every command in order. Writes nothing anywhere. Returns 0, or 1 with warnings. */
async function showPlan(settings) {
  const plan = await makePlan(settings, new Date());
  const commands = commandsOf(settings, plan), trend = trendOf(readHistory(settings.stateFolder));
  const expected = trend && { downSeconds: trend.downSeconds, newBytes: trend.newBytes, nights: trend.nights };
  if (mode.json) answer(JSON.stringify({ ...plan, commands, expected, warnings }, null, 1));
  else {
    const stopped = plan.parts.map((part) => `  ${part.name}${part.wasRunning ? '' : '   (not running: stays as it is)'}`);
    answer([`archive ${plan.archive}`, `repository ${plan.repository}`, 'stop, in this order:', ...(stopped.length > 0 ? stopped : ['  nothing']), 'save:',
      ...plan.roots.map((root) => `  ${named(root.path)}   (${root.why}${settings.snapshot === 'yes' ? `; ${howRead(root)}` : ''})`), 'commands, in this order:', ...commands.map(({ step, argv, note }) => `  ${step.padEnd(10)} ${pasteable(argv)}${note ? `   # ${note}` : ''}`),
      expected ? `expected, from the last ${count(expected.nights, 'good night')}: down ${span(expected.downSeconds)}, ${size(expected.newBytes)} to send` : 'expected: no good night yet to reckon from; the first one sends everything',
      'dry run: nothing above was executed, nothing was written'].join('\n'));
  }
  const left = readLedger(settings.stateFolder);
  if (left) say(`the run of ${left.startedAt} left something stopped: a real run starts that first`);
  return warnings.length > 0 ? 1 : 0;
}

/** Every command of a run that changes something anywhere, in order. */
function commandsOf(settings, plan) {
  const running = plan.parts.filter((part) => part.wasRunning);
  const cold = { step: 'cold', argv: coldCommand(settings, plan) }, warm = warmPaths(plan, lastGoodRun(settings.stateFolder) === undefined);
  const checkpoints = plan.clusters.filter((cluster) => cluster.pid !== 0).map((cluster) => ({ step: 'checkpoint', argv: ['psql', '-h', cluster.socketFolder, '-p', cluster.port, '-c', 'CHECKPOINT'] }));
  return [
    ...(settings.before.length > 0 ? [{ step: 'before', argv: settings.before }] : []),
    { step: 'try', argv: ['borg', 'info', '--json'] },
    ...(settings.warmPass && warm.length > 0 ? [...checkpoints, { step: 'warm', argv: warmCommand(settings, plan, warm) }] : []),
    ...(plan.snapshot ? [] : [{ ...cold, note: 'begins here, and waits until everything is stopped' }]),
    ...checkpoints,
    ...running.map((part) => ({ step: 'stop', argv: part.stop })),
    ...(plan.snapshot ? [...copyCommands(plan.roots).map((argv) => ({ step: 'snapshot', argv })), ...(pathsWithoutCopy(plan).length > 0 ? [{ ...cold, note: 'waits when it has read what has no snapshot' }] : [])] : []),
    ...[...running].reverse().map((part) => ({ step: 'start', argv: part.start })),
    ...(plan.snapshot && pathsWithoutCopy(plan).length === 0 ? [cold] : []),
    { step: 'proof', argv: proofCommand(settings, plan, { archive: plan.archive }), note: 'waits until the record has been read back' },
    { step: 'read back', argv: ['borg', 'extract', '--bypass-lock', '--stdout', `::${plan.archive}`, 'record/manifest.json'] },
  ];
}

// =========================================================================================================
// ==== READY ====
// Ready? What is tried while everything still runs, before anything is stopped.
// Runs the settings' own `before`; otherwise only tries, and leaves nothing behind.

/** Run the settings' `before`, if there is one. Throws Problem when it fails. */
async function runBefore(settings) {
  if (settings.before.length === 0) return;
  const done = await change(settings.before, { seconds: 600, toTranscript: true }); // it may leave a daemon behind
  goOn(); // it may have ended because we were asked to
  if (done.code !== 0) throw failure('the `before` command failed', done, 'mend it, or take it out of the settings; nothing was stopped');
}

/** The storage, the key and this server's borg are tried while everything still runs. Returns what they are. Throws Problem: nothing was stopped. */
async function tryStorage(settings) {
  const version = await borgVersion();
  const { encryption } = await tryRepository(settings).catch(async (error) => {
    if (isRemote(settings) && error.facts?.ran) await tryConnection(settings); // when it is ssh that fails, what ssh says is the better story
    throw error;
  });
  return `borg ${version}, ${encryption}`;
}

/** The free space, and whether the file systems can copy on write, are tried while everything still runs, too. Throws Problem: nothing was stopped. */
async function tryThisMachine(settings, plan) {
  const lastName = lastGoodRun(settings.stateFolder)?.server ?? plan.server;
  if (lastName !== plan.server) {
    warn(`this server was called ${lastName} until now, and its archives begin with ${plan.server} from here on: if that is not meant, write the old name as \`server\``);
  }
  const free = freeBytes(settings.stateFolder), needed = roomNeeded(settings.stateFolder);
  if (free < needed) throw new Problem(`${named(settings.stateFolder)} has ${size(free)} free, ${size(needed)} are needed`,
    { hint: 'make room: services are not stopped without a place for the ledger' });
  if (plan.snapshot !== '') {
    noteCopies(settings.stateFolder, plan.roots);
    await tryReflinks(plan.roots, plan.run);
    plan.snapshot = waysIn(plan.roots);
  }
  if (settings.snapshot === 'yes') for (const root of plan.roots.filter(({ way }) => way !== 'link')) say(`${named(root.path)}: ${howRead(root)}`);
}

/** How many bytes a run may need in its state folder, by what the last good one saved: two listings, record, transcript. */
const roomNeeded = (stateFolder) => 64e6 + 600 * (lastGoodRun(stateFolder)?.cold?.files ?? 0);

// =========================================================================================================
// ==== COPYING ====
// Copying: the warm pass while everything runs, then the copy of what is cold.
// Without a snapshot or with one. Each step of it is one line of the night (the chapter THE NIGHT), in this order. Stops and
// starts nothing. Changes the repository and, in the state folder, the record.

/** The warm pass puts the bulk on storage while everything runs. Throws Problem when it fails, or is not through when the window ends. */
async function warmPass(night, plan) {
  const { settings } = night.loaded, paths = warmPaths(plan, lastGoodRun(settings.stateFolder) === undefined);
  if (paths.length === 0) return;
  for (let pass = 1, before = Infinity; pass <= MOST_WARM_PASSES; pass++) { // what changed during a long one is for the next one, not for when services are down
    const { seconds } = await oneWarmPass(night, plan, paths);
    if (seconds < LONG_PASS_SECONDS || seconds > before / 2) return;
    before = seconds;
  }
}

const MOST_WARM_PASSES = 3;
const LONG_PASS_SECONDS = 60;

async function oneWarmPass(night, plan, paths) {
  const { settings } = night.loaded, last = night.line.warm;
  await checkpointAll(plan); // or the changes are still in memory and all of them are left for the cold pass
  touchRecord(settings.stateFolder);
  const command = warmCommand(settings, plan, paths, last ? new Date().toISOString() : plan.madeAt), expectedBytes = lastGoodRun(settings.stateFolder)?.warm?.originalBytes ?? 0;
  const untilEnd = night.windowEnd ? Math.max(1, (night.windowEnd.getTime() - Date.now()) / 1000) : undefined;
  const warm = await takePass(settings, command, { cwd: settings.stateFolder, run: plan.run, title: 'warm pass', expectedBytes, seconds: untilEnd });
  // Files that changed or went are no matter here: the cold pass decides.
  night.line.warm = { ...passFacts(warm), deduplicatedBytes: warm.deduplicatedBytes + (last?.deduplicatedBytes ?? 0), seconds: warm.seconds + (last?.seconds ?? 0) };
  say(`warm pass: ${size(warm.originalBytes)} in ${count(warm.files, 'file')} read, ${size(warm.deduplicatedBytes)} new, ${span(warm.seconds)}`);
  return warm;
}

/** CHECKPOINT in every running cluster that will be stopped: what it writes now it need not write while everything waits. */
async function checkpointAll(plan) {
  await Promise.all(plan.clusters.filter((cluster) => cluster.pid !== 0).map(async (cluster) => {
    const { code, said } = await queryCluster(cluster, await homeOf(cluster), 'CHECKPOINT', 1800);
    if (code !== 0) warn(`no CHECKPOINT in ${named(cluster.name)}, so its stop takes longer: ${lastLines(said, 1)}`);
  }));
}

/** Begin the cold pass while everything still runs. It waits. */
function beginColdPass(night, plan) {
  const { settings } = night.loaded;
  const expectedBytes = lastGoodRun(settings.stateFolder)?.cold?.originalBytes ?? 0;
  return beginPass(settings, coldCommand(settings, plan), { cwd: settings.stateFolder, run: plan.run, title: 'cold pass', tested: night.line.warm !== null, expectedBytes });
}

/** Wait until borg asks for the manifest. It has an hour: if we never hear that it waits, both sides would wait for ever. */
async function untilBorgWaits(night) {
  const late = setTimeout(() => askToStop('borg did not begin the copy within an hour', 2, 'call `node backup.js doctor`; is this a borg that says other things than 1.2 and 1.4 do?'), 3_600_000);
  await (night.cold?.isWaiting ?? Promise.resolve()).finally(() => clearTimeout(late));
}

/** While everything is stopped: prove, write the record, let borg copy, prove again. Throws Problem when the copy is not proven. */
async function copyCold(night, plan, manifest) {
  const { stateFolder } = night.loaded.settings;
  const first = await prove(plan, listingFile(stateFolder));
  const manifestText = finishRecord(night.loaded.settings, { ...manifest, proof: first });
  night.cold.feed(manifestText);
  await night.cold.isRead;
  return { first, second: await stillCold(night, plan, first), manifestText };
}

/** While everything is stopped: prove, snapshot what can be, let borg read the rest, prove again. Throws Problem when it is not proven. */
async function copyOnWrite(night, plan) {
  const { stateFolder } = night.loaded.settings;
  const first = await prove(plan, listingFile(stateFolder));
  await makeCopies(plan.roots, plan.run);
  if (plan.roots.some((root) => root.way === 'cold')) night.cold = beginColdPass(night, plan);
  await night.cold?.isWaiting;
  return { first, second: await stillCold(night, plan, first), manifestText: '' };
}

/**
 * Services run again: prove of the copies that they are what was stopped, and let borg read them. Throws Problem when they
 * are not, or when space runs short.
 */
async function copyTheSnapshot(night, plan, manifest, { first, second }) {
  const { stateFolder } = night.loaded.settings, was = whatLies(plan.roots);
  const endWatch = watchSpace(plan.roots, (why) => askToStop(why, 2, 'make room, or set `snapshot: \'no\'`'));
  try {
    night.cold ??= beginColdPass(night, plan);
    const proof = await proveCopies(plan, first, second, listingFile(stateFolder));
    const manifestText = finishRecord(night.loaded.settings, { ...manifest, proof });
    night.cold.feed(manifestText);
    await night.cold.isRead;
    if (whatLies(plan.roots) !== was) throw new Problem('a saved folder was moved away while borg read its snapshot: this archive does not count as a backup');
    return { first: proof, second, manifestText };
  } finally {
    endWatch();
  }
}

/** Everything is still stopped: prove again. */
async function stillCold(night, plan, first) {
  const { stateFolder } = night.loaded.settings, after = path.join(stateFolder, 'listing-after');
  const second = await proveAgain(plan, first, listingFile(stateFolder), after);
  fs.rmSync(after, { force: true });
  await Promise.all(night.ledger.parts.map(async (part) => { // clusters and containers have been proven; of others only this tells
    if (await partState(part) === 'running') warn(`${part.name} was started by somebody while it should have been stopped`);
  }));
  return second;
}

/**
 * Services run again, and borg has read everything: let it finish the archive, and judge what it says. Throws Problem when
 * the archive is no backup.
 */
async function finishColdPass(night, plan) {
  const late = setTimeout(() => askToStop('the storage did not take the end of the copy within an hour', 2), 3_600_000);
  const cold = await night.cold.end.finally(() => clearTimeout(late));
  night.line.cold = passFacts(cold);
  judgePass(plan, cold);
  return cold;
}

// What borg itself noticed while it read. A file below a stopped part that it could not read, or saw changing, is no backup.
function judgePass(plan, { changed, unread, complaints }) {
  const isCold = (file) => plan.cold.some((root) => isBelow(file, root));
  const broken = [...changed, ...unread].filter(isCold);
  const isLost = (file) => unread.includes(file) || (!changed.includes(file) && complaints.some((line) => line.startsWith(`${file}: `))); // it could not even enter the folder above
  const lost = plan.roots.find((root) => isLost(root.path));
  if (lost) throw new Problem(`${named(lost.path)} could not be read: this archive does not count as a backup`,
    { said: complaints.slice(-5).join('\n') });
  if (broken.length > 0) throw new Problem(`borg could not read these as they were: ${someNames(broken)}`,
    { said: complaints.slice(-5).join('\n') });
  if (unread.length > 0) warn(`not in the archive, borg could not read it: ${someNames(unread)}`);
  if (changed.length > 0) warn(`changed while it was copied: ${someNames(changed)}`);
  if (changed.length + unread.length === 0) for (const line of complaints.slice(0, TOLD_NAMES)) warn(`borg: ${line}`);
}

function passFacts({ files, originalBytes, compressedBytes, deduplicatedBytes, seconds }) {
  return { files, originalBytes, compressedBytes, deduplicatedBytes, seconds };
}

// =========================================================================================================
// ==== OUTCOME ====
// How a night ended, in words: the summary that closes a run, and the message about it.
// People and monitoring read the same words everywhere.

/** The last block of a run. */
function summary(line, services) {
  const parts = line.parts.map((part) => `${part.name} ${span(part.downSeconds)}`).join(', ');
  const pass = (what) => (what ? `${size(what.originalBytes)} in ${count(what.files, 'file')} read, ${size(what.deduplicatedBytes)} sent and stored, ${span(what.seconds)}` : 'none');
  const took = (Date.parse(line.endedAt) - Date.parse(line.startedAt)) / 1000;
  return [
    '',
    `${line.outcome}: ${line.exitCode < 2 ? `${line.archive} is proven` : line.error}`,
    ...(line.exitCode < 2 || !line.archive ? [] : [`  archive   ${line.archive}`]),
    `  down      ${span(line.downSeconds)}${parts ? `  (${parts})` : ''}`,
    `  services  ${services}`,
    `  warm      ${pass(line.warm)}`,
    `  cold      ${pass(line.cold)}`,
    `  took      ${span(took)}`,
    ...(line.warnings.length > 0 ? ['  warnings', ...line.warnings.map((one) => `    ${one}`)] : ['  warnings  none']),
  ].join('\n');
}

/**
 * The message of a run. Given its history line, what is down, the outcome, the state of services and a language: outcome and
 * server come first. The body is the summary, in the terminal's words.
 */
function messageOf(line, down, outcome, services, language) {
  const words = WORDS[language].message, time = span(line.downSeconds);
  const text = { start: words.start, good: words.good(time), warning: words.warning(line.warnings.length, time), failed: words.failed(line.error), down: words.down(down.join(', ')) }[outcome];
  return { server: line.server, outcome, subject: `${words.outcome[outcome]}: ${line.server}: ${text}`, body: outcome === 'start' ? '' : summary(line, services), logTail: transcriptSince(0, 100_000), line };
}

// =========================================================================================================
// ==== LEFTOVERS ====
// Leftovers: what a dead run left stopped is started, and told in its place.
// By whoever comes first: the guard, `recover`, or the next run, which holds the run's lock then. The dead run's borg is ended first.
// Changes: the parts in the ledger, the ledger itself, the history, and what a restore had laid beside its places.

/**
 * Take the lock of a run, kept until this process ends. Throws Problem when it is taken: 3 when what an earlier run stopped
 * is down, and its guard is at work, else 75.
 */
function takeRunLock(stateFolder) {
  if (takeLock(stateFolder, 2) !== null) return;
  if (readLedgerQuietly(stateFolder)?.reported === 'down') throw new Problem('what an earlier run stopped is still not running; its guard is trying again just now',
    { exitCode: 3, hint: 'look at its log, mend it; then run `node backup.js recover`' });
  throw new Problem('another run is going on', { exitCode: 75, hint: 'wait for its end; `node backup.js status` tells how it went' });
}

/**
 * Start what a dead run left stopped. Given the lock is ours, its ledger, who does it, and the settings if they can be read,
 * returns what is still down; the ledger stays as long as something is. Writes the history line the dead run could not write.
 */
async function bringBack(stateFolder, ledger, who, settings) {
  shield(true);
  const what = ledger.restore ? 'the restore' : 'the run', left = ledger.parts.filter((part) => part.runningAt === null).map((part) => part.name);
  say(`${what} of ${ledger.startedAt} ended before ${left.join(', ') || 'all'} ran again: ${who} starts what is missing`);
  if (!await endRun(ledger.run)) warn('a borg of the dead run cannot be ended');
  if (ledger.restore) await settleRestore(ledger); // before anything is started: either all is new, or all is old
  const down = await startParts(ledger, stateFolder);
  const outcome = down.length > 0 ? 'down' : 'failed';
  await dropCopies(stateFolder); // services come first
  if (ledger.restore) await endRestore(stateFolder, ledger, down);
  if (ledger.reported !== outcome && (!ledger.restore || down.length > 0)) {
    const why = ledger.reported === '' ? 'the run was killed or the machine went down' : 'something did not start again at the end of the run';
    await reportDeadRun(stateFolder, ledger, `${why}; ${who} ${down.length > 0 ? `could not start ${down.join(', ')}` : 'started what it had stopped'}`, down, settings);
  }
  ledger.reported = outcome;
  if (down.length === 0 && undecidedParts(ledger).length === 0) closeLedger(stateFolder);
  else keepLedgerIfPossible(stateFolder, ledger);
  say(`services: ${servicesNow(ledger, down)}`);
  return down;
}

/** What a run has left down, and what to say of it. */
const leftBy = (ledger, down, what = `still not running: ${down.join(', ')}`, facts = {}) => ({ ledger, down, why: new Problem(`left stopped by the run of ${ledger.startedAt} and ${what}`,
  { hint: 'mend it first; then run `node backup.js recover`', ...facts, exitCode: 3 }) });

/**
 * Start what a dead run left stopped. Given that the lock is ours. Returns what is still down, and why; null when all runs.
 * Throws when the ledger cannot be understood, or when its restore cannot be settled though nothing is down.
 */
async function startLeftovers(settings) {
  const ledger = readLedger(settings.stateFolder);
  if (!ledger) return null;
  try {
    const down = await bringBack(settings.stateFolder, ledger, 'this run', settings);
    return down.length > 0 ? leftBy(ledger, down) : null;
  } catch (error) { // the disk of a restore is gone or read-only: nothing could even be tried
    const down = ledger.parts.filter((part) => part.runningAt === null).map((part) => part.name);
    if (down.length === 0) throw error;
    return leftBy(ledger, down, `not to be started: ${error.message}`, error.facts);
  }
}

// A restore is no run of the history. What was extracted and is not in its place goes; what to do now is told.
async function endRestore(stateFolder, ledger, down) {
  await removeStagings(ledger.restore);
  const text = tellRestore(stateFolder, ledger, down.length > 0);
  if (ledger.reported === '') sayBlock(text);
}

/** Write the history line that a dead run could not write, and send its message. Given its ledger, why it ended, what is down, and the settings if they can be read. */
async function reportDeadRun(stateFolder, ledger, error, down, settings) {
  const endedAt = new Date().toISOString();
  const stops = ledger.parts.map((part) => Date.parse(part.askedAt)), starts = ledger.parts.map((part) => Date.parse(part.runningAt ?? endedAt));
  const line = {
    kind: 'run', startedAt: ledger.startedAt, endedAt, outcome: down.length > 0 ? 'down' : 'failed', exitCode: down.length > 0 ? 3 : 2,
    server: ledger.server, archive: ledger.archive, downSeconds: stops.length > 0 ? Math.max(0, Math.max(...starts) - Math.min(...stops)) / 1000 : 0, startSeconds: 0, // a machine may come up with its clock behind
    parts: ledger.parts.map((part) => ({ name: part.name, stoppedAt: part.stoppedAt, runningAt: part.runningAt,
      downSeconds: Math.max(0, Date.parse(part.runningAt ?? endedAt) - Date.parse(part.askedAt)) / 1000 })),
    warm: null, cold: null, snapshot: '', warnings: [...warnings], error,
  };
  try {
    if (!ledger.restore) remember(stateFolder, line);
  } catch (error) {
    warn(`the history cannot be written: ${error.message}`);
  }
  const words = WORDS[settings?.language ?? 'en'].message, services = ledger.parts.length > 0 ? servicesNow(ledger, down) : '';
  const what = (ledger.restore ? words.restoreOf : words.runOf)(ledger.startedAt, line.error, services);
  const subject = `${words.outcome[line.outcome]}: ${ledger.server}: ${what}`;
  if (settings) await tell(settings, { server: ledger.server, outcome: down.length > 0 ? 'down' : 'failed', subject, body: subject, logTail: transcriptSince(0, 50_000), line });
}

// =========================================================================================================
// ==== GUARD ====
// The guard: a second process that outlives the run, whatever kills it, and `recover`.
// `recover` does the same work at boot and from cron. Both wait for the run's lock, which the kernel lets go when the run
// dies; if a ledger is left then, they end the dead run's borg first, so that no half-cold archive is completed, and start
// everything in the ledger.
// Changes: the parts in the ledger, the ledger, the history; it ends a run that hangs past its deadline, and removes what a dead one left beside (snapshots,
// staging folders). Under systemd the guard is a transient unit of its own: everything a finished unit leaves behind is killed (systemd.kill(5)).

const guardFile = (stateFolder) => path.join(stateFolder, 'guard.json');
const RETRY_SECONDS = 15;

/**
 * Given the script, its state folder and settings file, starts the guard and waits until it watches. night: of a backup, its
 * archive and when it began. Returns its pid. Throws Problem: nothing may be stopped without it.
 */
async function armGuard(script, stateFolder, settingsFile, run, night = []) {
  fs.rmSync(guardFile(stateFolder), { force: true });
  const command = [process.execPath, script, 'guard', stateFolder, run, String(process.pid), startOfProcess(process.pid), ...night, '--settings', settingsFile];
  if (hasSystemd() && process.getuid?.() === 0) {
    const kept = ['PATH', 'HOME', 'DOCKER_HOST'].flatMap((name) => (process.env[name] ? [`--setenv=${name}=${process.env[name]}`] : []));
    const unit = ['systemd-run', '--quiet', '--collect', `--unit=cold-backup-guard-${run}`, '--property=OOMScoreAdjust=-900'];
    const done = await change([...unit, ...kept, '--', ...command]);
    if (done.code !== 0) throw failure('the guard cannot be started', done);
  } else {
    say(`  $ ${pasteable(command)}`);
    spawn(command[0], command.slice(1), { detached: true, stdio: 'ignore', cwd: '/' }).unref(); // setsid(2): no signal to our group or terminal reaches it
  }
  let pid = 0;
  const armed = await waitUntil(20, () => {
    try {
      const note = JSON.parse(fs.readFileSync(guardFile(stateFolder), 'utf8'));
      pid = note.run === run ? note.pid : 0;
    } catch { /* not yet */ }
    return pid !== 0;
  }, 20);
  if (!armed) throw new Problem('the guard has not come up: without it nothing is stopped', { hint: 'try it by hand: `node backup.js recover`' });
  return pid;
}

/** Nothing is left to guard: send the guard away. */
function dismissGuard(pid, stateFolder) {
  try {
    if (pid && procFile(pid, 'cmdline').includes(`\0guard\0${stateFolder}\0`)) process.kill(pid, 'SIGTERM'); // hours later the number may be another one's
  } catch { /* it has gone */ }
  fs.rmSync(guardFile(stateFolder), { force: true });
}

/** The guard's own life: `node backup.js guard STATE-FOLDER RUN PID START [ARCHIVE STARTED-AT]`, started by the run, of no use to people. */
async function guard(words, settings) {
  const [stateFolder, run, pid, start, ...night] = words;
  process.on('SIGTERM', () => !fs.existsSync(ledgerFile(stateFolder)) && process.exit(0));
  for (const signal of ['SIGINT', 'SIGHUP']) process.on(signal, () => {});
  fs.writeFileSync(guardFile(stateFolder), JSON.stringify({ run, pid: process.pid }), { mode: 0o600 });
  for (;;) {
    try {
      if (await guardOnce(stateFolder, run, Number(pid), start, settings)) continue;
      if (night.length === 2) await tellOfSilentEnd(stateFolder, run, night, settings);
      return 0;
    } catch (error) { // whatever it is: as long as something may be stopped, the guard goes on
      if (!fs.existsSync(stateFolder)) return 0; // and with it any ledger
      sayError(error);
      await sleep(RETRY_SECONDS * 1000);
    }
  }
}

/** One turn of the guard: wait for the lock, or for the deadline, and do what has to be done. Returns whether there is more to guard. */
async function guardOnce(stateFolder, run, pid, start, settings) {
  const lock = takeLock(stateFolder, 2);
  if (lock === null) {
    if (isOverdue(stateFolder, run) && startOfProcess(pid) === start) process.kill(pid, 'SIGKILL'); // the run hangs past its deadline
    await sleep(20);
    return true;
  }
  let down, ledger;
  try {
    ledger = readLedger(stateFolder);
    if (!ledger || ledger.run !== run) {
      await endRun(run); // nothing is stopped, but the run may have been killed while its borg wrote
      await dropCopies(stateFolder);
      return false;
    }
    keepTranscript(stateFolder, 'guard');
    down = await bringBack(stateFolder, ledger, 'the guard', settings);
  } finally {
    fs.closeSync(lock); // `recover`, people and the next run may do something as well
  }
  if (down.length === 0 && undecidedParts(ledger).length === 0) return false;
  if (down.length === 0) await watchUndecided(stateFolder, ledger);
  else await sleep(RETRY_SECONDS * 1000);
  return true;
}

// A run that tells how it went sends its guard away. This one was killed when everything ran (again), and said nothing: with a snapshot, or in a long
// last phase, that may be hours after the stop.
async function tellOfSilentEnd(stateFolder, run, [archive, startedAt], settings) {
  const isMine = plainText(guardFile(stateFolder)).includes(JSON.stringify(run)); // one that a full disk has cut off names no run: then nothing is said
  if (!isMine || readHistory(stateFolder).some((line) => line.startedAt === startedAt)) return;
  await reportDeadRun(stateFolder, { startedAt, archive, server: serverIn(archive), parts: [] }, 'the run was killed before it could say how it went; everything runs', [], settings);
}

// A full disk must not keep us from starting things: then there is no transcript.
function keepTranscript(stateFolder, who) {
  try {
    if (transcriptNow().fd === null) openTranscript(path.join(stateFolder, 'log'), `${new Date().toISOString().slice(0, 19)}-${who}`);
  } catch (error) {
    warn(`no transcript: ${error.message}`);
  }
}

// A run that is past its deadline and does not even start things any more hangs: on a dead disk, or in a bug.
function isOverdue(stateFolder, run) {
  const ledger = readLedgerQuietly(stateFolder), grace = ledger?.starting ? 600_000 : 0;
  return ledger?.run === run && steadyNow().getTime() > Date.parse(ledger.deadlineAt) + grace;
}

// What was asked to stop and never did may do so now: then it is started. A new run that stops it on purpose holds the lock.
async function watchUndecided(stateFolder, ledger) {
  shield(true);
  while (undecidedParts(ledger).length > 0) {
    await sleep(1000);
    if (readLedger(stateFolder)?.run !== ledger.run) return; // a later run, or `recover`, has taken care of it
    for (const part of undecidedParts(ledger)) {
      if (await partState(part) !== 'stopped') continue;
      const lock = takeLock(stateFolder, 0);
      if (lock === null) continue;
      if (readLedger(stateFolder)?.run !== ledger.run) return fs.closeSync(lock);
      await change(part.start, { toTranscript: true });
      say(`started ${part.name}, which had stopped late`);
      part.stoppedAt = new Date().toISOString();
      keepLedgerIfPossible(stateFolder, ledger);
      fs.closeSync(lock);
    }
  }
}

/**
 * `recover`: start whatever an interrupted run left stopped, in each of the state folders. Works without settings. Returns the exit
 * code: 0 nothing left to do or all up again, 3 something is still down, 75 a run is going on.
 */
async function recover(stateFolders, settings) {
  listenToSignals();
  const codes = [];
  for (const stateFolder of stateFolders.filter((one) => fs.existsSync(ledgerFile(one)) || hasCopies(one))) {
    try {
      codes.push(await recoverIn(stateFolder, settings));
    } catch (error) { // one state folder in disorder does not keep the others down
      sayError(error);
      codes.push(3);
    }
  }
  const code = codes.includes(3) ? 3 : Math.max(0, ...codes);
  if (code === 0) say('nothing is left stopped');
  if (mode.json) answer(JSON.stringify({ exitCode: code }));
  return code;
}

async function recoverIn(stateFolder, settings) {
  refuseIfOthersCanChange(stateFolder, named(stateFolder), { exitCode: 3 }); // no run begins in such a folder, so what lies there is not ours
  // Has that run told how it ended, then whoever holds the lock is its guard, which tries again from time to time.
  const lock = takeLock(stateFolder, readLedgerQuietly(stateFolder)?.reported ? 60 : 0);
  if (lock === null) {
    const isDown = readLedgerQuietly(stateFolder)?.reported === 'down';
    say(isDown ? 'what is down is being started by its guard just now' : 'a run, or its guard, is at work: nothing to recover');
    return isDown ? 3 : 75;
  }
  try {
    const ledger = readLedger(stateFolder);
    if (!ledger) await dropCopies(stateFolder); // the run was killed when all ran again, and borg read the snapshot
    if (!ledger) return 0;
    keepTranscript(stateFolder, 'recover');
    const down = await bringBack(stateFolder, ledger, 'recover', settings);
    if (down.length > 0) sayError(new Problem(`not running: ${down.join(', ')}`,
      { hint: 'look at its own log, mend it, then run `node backup.js recover` again' }), servicesNow(ledger, down));
    return down.length > 0 ? 3 : 0;
  } finally {
    fs.closeSync(lock);
  }
}

// =========================================================================================================
// ==== LIST ====
// What is in the repository: the archives, the files in one, the versions of a file in all.
// And borg itself, for everything this script does not do: `borg` does whatever it is told; `list` and `find` only read.

const MOST_VERSIONS = 30_000; // of files that `find` keeps in mind, about 1 kB each

/** What was asked of borg. When it failed, a borg that is missing or too old is the better story; asking that first would cost every look a start of it. */
async function orWrongBorg(asked) {
  try {
    return await asked;
  } catch (error) {
    await borgVersion();
    throw error;
  }
}

/** `list [ARCHIVE [PATH]]`: given the server ('' = any) and the words, prints the archives (newest last), or the files of one. Returns 0, or 1 with warnings. */
async function list(settings, server, words) {
  const archives = await orWrongBorg(listArchives(settings, server));
  if (words.length > 0) return listFiles(settings, archiveMeant(archives, words[0], 'look'), words[1]);
  if (mode.json) answer(JSON.stringify(archives, null, 1));
  else if (archives.length === 0) answer('no archives yet');
  else answer(archives.map(archiveLine).join('\n'));
  return warnings.length > 0 ? 1 : 0;
}

function archiveLine(one) {
  const facts = one.originalBytes === null ? '' : `  ${size(one.originalBytes)}, ${size(one.deduplicatedBytes ?? 0)} new, down ${span(one.downSeconds ?? 0)}`;
  return `${named(one.archive).padEnd(40)} ${one.kind.padEnd(8)}${facts}`;
}

/**
 * Given the archives and a name or 'latest', returns the archive's name: 'latest' is the newest proven one. An unproven one is warned of; a copy of
 * the running system may be looked at, and is never restored from. Throws Problem when there is none.
 */
function archiveMeant(archives, name, use = 'restore') {
  if (name === 'latest') {
    const proven = archives.filter((one) => one.kind === 'proven');
    if (proven.length === 0) throw new Problem('there is no proven archive yet',
      { hint: '`node backup.js list` shows what there is; an unproven one has to be named in full' });
    const past = proven.filter((one) => Date.parse(one.madeAt) < Date.now() + 3_600_000), ahead = proven.length - past.length;
    const [newest, last] = [past.length > 0 ? past : proven, proven].map((some) => some[some.length - 1].archive);
    if (ahead > 0) warn(`${count(ahead, 'archive')} bear${ahead === 1 ? 's' : ''} a time that is still to come, as ${last}: a clock was wrong, there or here. `
      + `${past.length > 0 ? 'Not counting these,' : 'All do, so'} the latest is ${newest}`);
    return newest;
  }
  const found = archives.find((one) => one.archive === name);
  if (!found) throw new Problem(`there is no archive ${named(name)}`, { hint: '`node backup.js list` shows what there is' });
  if (found.kind === 'warm' && use === 'restore') {
    throw new Problem(`${name} is a copy of the running system: its files do not belong together, and a database in it is worthless`,
      { hint: `use \`latest\`; if it must be this one: node backup.js borg extract ${pasteable([`::${name}`])} PATH` });
  }
  if (found.kind === 'other') warn(`${name} was not written by this script: nothing proves that it was cold`);
  if (found.kind === 'unproven') warn(`${name} is not proven: it does not count as a backup`);
  return found.archive;
}

/** The archives of this name that no run here remembers, though they are newer than its last good one: another server writes under the same name. Given the history, too. */
function strangersAmong(archives, history) {
  const own = new Set(history.map((line) => line.archive)), last = history.filter((line) => line.kind === 'run' && line.exitCode < 2).pop();
  return !last ? [] : archives.filter((one) => one.kind === 'proven' && !own.has(one.archive) && one.madeAt > stampOf(last.archive)).map((one) => one.archive);
}

/** Given what `latest` came to, warns when it is not what the last good run here wrote: another server's, or a clock was wrong, or somebody deleted. */
function warnUnlessOurs(stateFolder, archives, latest) {
  const last = lastGoodRun(stateFolder)?.archive ?? latest;
  if (last === latest) return;
  let why = 'which is not among the archives any more: ask the operator for an audit';
  if (archives.some((one) => one.archive === last)) why = `which does not bear the latest time, so ${named(latest)} is taken: a clock was wrong. Name the archive that you mean`;
  if (strangersAmong(archives, readHistory(stateFolder)).includes(latest)) why = `and no run here wrote ${named(latest)}: does another server write under the same name?`;
  warn(`the last good run here wrote ${named(last)}, ${why}`);
}

/** A path as it was on the server, as a pattern of borg's: itself and everything below it. */
const asPattern = (file) => `pp:${file.replace(/^\//, '')}`;

/** One line of borg's listing of an archive. Throws Problem when it is none. */
function entryIn(line) {
  try {
    const one = JSON.parse(line);
    if (misfit(one, { path: 'text', type: 'text', 'source?': 'text', 'size?': 'number' }) === '') return one;
  } catch { /* cut off */ }
  throw new Problem('a line of the listing of an archive cannot be read',
    { said: line.slice(0, 200), hint: 'call it again; when it stays so: node backup.js borg check' });
}

/** The manifest of an archive: on its own server from the state folder when it is still there. Throws Problem when it cannot be had or is none. */
async function readManifest(settings, archive) {
  return soundManifest(ownManifest(settings.stateFolder, archive) || await readFromArchive(settings, archive, 'record/manifest.json'), archive);
}

// borg's own lines are not shown: a line end in a file's name would look like another file.
async function listFiles(settings, archive, file, asTyped = file) {
  const wanted = path.resolve('/', file ?? '/');
  let shown = 0;
  const show = (line) => {
    const before = shown++ === 0 ? '[' : ',\n';
    if (mode.json) return process.stdout.write(`${before}${line}`);
    const one = entryIn(line), link = one.source ? ` ${one.type === 'l' ? '->' : '='} ${named(one.type === 'l' ? one.source : `/${one.source}`)}` : '';
    return process.stdout.write(`${oneLine(`${one.mode} ${String(one.user).padEnd(8)} ${String(one.group).padEnd(8)} ${String(one.size).padStart(12)} ${String(one.mtime).slice(0, 19)}`)} ${named(`/${one.path}`)}${link}\n`);
  };
  const done = await askBorg(settings, ['list', '--json-lines', `::${archive}`, ...(wanted === '/' ? [] : [asPattern(wanted)])], { onLine: show, keepBytes: 0 });
  if (done.code !== 0 && !borgOnlyWarned(done.code)) throw borgFailure(`${archive} cannot be listed`, done);
  if (shown === 0 && wanted !== '/') {
    const saved = await readManifest(settings, archive).then((manifest) => asSaved(manifest, wanted), () => wanted); // another tool's has none
    if (saved !== wanted && asTyped === file) return listFiles(settings, archive, saved, wanted);
    throw notInArchive(archive, [asTyped ?? wanted]);
  }
  if (mode.json) answer(shown === 0 ? '[]' : ']');
  return warnings.length > 0 ? 1 : 0;
}

function notInArchive(archive, missing) {
  return new Problem(`not in ${archive}: ${missing.map(named).join(', ')}`,
    { hint: `node backup.js find ${pasteable([path.basename(missing[0])])}` });
}

/** `find PATTERN`: which archives hold the files whose path contains the text (or matches the glob), newest first. Returns 0, or 1 when none does. */
async function find(settings, server, [pattern = '']) {
  const archives = (await orWrongBorg(listArchives(settings, server))).filter((one) => one.kind !== 'warm').reverse();
  const found = new Map(), began = Date.now();
  let left = archives.reduce((sum, one) => sum + 1 + (one.files ?? 0) * 1e-5, 0); // at a guess: borg starts in 1 s and lists 100,000 files in another
  let kept = 0, toldAt = Date.now();
  say(`searching ${count(archives.length, 'archive')}, newest first: about ${span(left)}`);
  for (const [index, { archive }] of archives.entries()) {
    const onLine = (line) => { kept += noteVersion(found, index, entryIn(line), kept < MOST_VERSIONS); };
    const done = await askBorg(settings, ['list', '--json-lines', `::${archive}`, ...findPatterns(pattern)], { onLine, keepBytes: 0 });
    if (done.code !== 0 && !borgOnlyWarned(done.code)) throw borgFailure(`${archive} cannot be searched`, done);
    left = (Date.now() - began) / 1000 / (index + 1) * (archives.length - index - 1);
    if (sayLive(`${index + 1} of ${archives.length} archives, about ${span(left)} left`) || Date.now() - toldAt < 60_000) continue;
    toldAt = Date.now();
    say(`searched ${index + 1} of ${archives.length} archives, about ${span(left)} left`);
  }
  if (kept > MOST_VERSIONS) warn(`more than ${MOST_VERSIONS} versions of files match, and not all are shown: write more of the path`);
  if (found.size === 0) say(`no archive holds ${named(pattern)}`);
  tellVersions(found, archives.map((one) => one.archive));
  return found.size === 0 || warnings.length > 0 ? 1 : 0;
}

function findPatterns(pattern) {
  const plain = pattern.replace(/^\//, ''), fromRoot = pattern.startsWith('/');
  if (/[*?[]/.test(plain)) return [`fm:${plain}`, ...(fromRoot ? [] : [`fm:*/${plain}`])];
  return [`re:${fromRoot ? '^' : ''}${plain.replace(/[.*+?^${}()|[\]\\]/g, '\\$&')}`];
}

// Returns 1 for a version that was not known; of those it remembers only while there is room.
function noteVersion(found, index, one, hasRoom) {
  if (one.type === 'd') return 0;
  const file = `/${one.path}`, modifiedAt = `${String(one.mtime).slice(0, 19)}Z`, linkOf = String(one.mode).startsWith('h') ? `/${one.source}` : '';
  const known = found.get(file)?.find((version) => version.modifiedAt === modifiedAt && version.bytes === one.size);
  const last = known?.runs[known.runs.length - 1];
  if (last && last[1] >= index - 1) last[1] = index;
  else if (known) known.runs.push([index, index]);
  else if (hasRoom) found.set(file, [...found.get(file) ?? [], { modifiedAt, bytes: one.size, linkOf, runs: [[index, index]] }]);
  return known ? 0 : 1;
}

function tellVersions(found, archives) {
  const holding = ({ runs }) => runs.flatMap(([from, to]) => archives.slice(from, to + 1));
  const sign = (index) => (index === 0 ? '[' : ',');
  let index = 0;
  for (const [file, versions] of found) { // one by one: all of it as one text could be too much
    if (mode.json) answer(`${sign(index++)}${JSON.stringify({ path: file, versions: versions.map((one) => ({ modifiedAt: one.modifiedAt, bytes: one.bytes, linkOf: one.linkOf, archives: holding(one) })) })}`);
    else answer([named(file), ...versions.map((one) => versionLine(one, holding(one)))].join('\n'));
  }
  if (mode.json) answer(index === 0 ? '[]' : ']');
}

function versionLine({ modifiedAt, bytes, linkOf }, archives) {
  const more = archives.length > 1 ? ` and ${archives.length - 1} more, the oldest ${named(archives[archives.length - 1])}` : '';
  return `  changed ${modifiedAt}  ${linkOf === '' ? size(bytes).padStart(8) : `hard link of ${named(linkOf)}`}  in ${named(archives[0])}${more}`;
}

/** `borg ARGS...`: borg on this terminal, with this server's repository, key and passphrase. Returns its exit code. */
async function borgItself(settings, words) {
  const hasTerminal = [process.stdin, process.stdout, process.stderr].some((stream) => stream.isTTY); // it sends INT and HUP to both of us, and a second INT means to borg: at once
  for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP']) process.on(signal, () => { if (!hasTerminal || signal === 'SIGTERM') child.kill(signal); });
  const child = spawn('borg', words, { stdio: 'inherit', env: { ...process.env, PATH: programPath(), ...borgEnvironment(settings), BORG_RELOCATED_REPO_ACCESS_IS_OK: undefined } });
  return new Promise((resolve, reject) => {
    child.on('error', () => reject(new Problem('borg does not run', { hint: 'install it: `apt-get install borgbackup`' })));
    child.on('exit', (code, signal) => resolve(signal ? 128 + constants.signals[signal] : code ?? 2));
  });
}

// =========================================================================================================
// ==== SANDBOX ====
// The sandbox: a PostgreSQL on files that came out of an archive, locked in. Such a copy believes that it is the real cluster: let loose it would
// archive its WAL over the real one's, drink up a publisher's changes, run its cron jobs, and write through its links into live files.
// So it runs in namespaces of its own (mounts, network, processes), in a root folder that holds this machine's programs, read-only, and
// the copy at its original paths and nothing else; as a user that owns nothing else; and with every setting that could reach out forced off
// on the command line, which beats postgresql.auto.conf. A container's cluster gets the same from Docker, in the image it ran in.
// Its process 1 lives as long as our end of a pipe: however we end, everything inside is gone with us, and all its mounts.

const PORT = '5432';
const SYSTEM_PATH = '/usr/bin:/bin:/usr/sbin:/sbin';

// sh, as root in namespaces of its own: $1 the new root, $2 the folder that becomes /own, then pairs: what, and where it is to be seen. An archive may have
// chosen these: none leads out of the new root (`..`, a link in what is mounted already), and no program is looked for in them, which would run as root.
const ENTER = `set -e
root=$1 own=$2 PATH=${SYSTEM_PATH}; shift 2
mount -t tmpfs -o mode=755 tmpfs "$root"
cd "$root"; root=$(pwd -P); mkdir proc dev dev/shm tmp own usr etc
for one in bin sbin lib lib32 lib64 libx32; do
  if [ -L /$one ]; then cp -P /$one .; elif [ -d /$one ]; then mkdir $one; mount --rbind /$one $one; fi
done
for one in usr etc; do mount --rbind /$one $one; mount -o remount,bind,ro $one || :; done
mount --bind "$own/passwd" etc/passwd
mount -t proc proc proc; mount -t tmpfs -o mode=1777 tmpfs tmp; mount -t tmpfs -o mode=1777 tmpfs dev/shm
for one in null zero random urandom; do : > dev/$one; mount --bind /dev/$one dev/$one; done
mount --bind "$own" own
ip link set lo up 2> /dev/null || :
while [ $# -gt 0 ]; do
  [ "$(realpath -m "$root$2")" = "$root$2" ] || { echo "$2 leads to another place: the record of this archive cannot be trusted" >&2; exit 1; }
  if [ -d "$1" ]; then mkdir -p "$root$2"; else mkdir -p "$(dirname "$root$2")"; : > "$root$2"; fi
  mount --rbind "$1" "$root$2"; shift 2
done
exec chroot "$root" sh -c 'exec 3<&0; echo ready; cat <&3 > /dev/null & wait $!'`; // when our pipe ends, so does process 1, and with it all inside

/**
 * Find what can run a cluster of an archive here: the image of its container if there is one, else this host's own programs of that major version.
 * Given the cluster and the manifest it stands in, returns the programs, or null when they are not here.
 */
async function findPrograms(cluster, manifest) {
  const { version } = cluster, box = manifest.containers.find((one) => one.name === cluster.container);
  if (!/^\d\d$/.test(version)) return null;
  for (const image of box ? [box.imageId, ...box.imageDigests, box.image] : []) {
    if (/^[a-z0-9][\w./:@-]*$/i.test(image) && (await look(['docker', 'image', 'inspect', '--format={{.Id}}', image])).code === 0) return { version, binaries: cluster.binaries, image };
  }
  for (const binaries of [...(cluster.container ? [] : [cluster.binaries]), `/usr/lib/postgresql/${version}/bin`, `/usr/pgsql-${version}/bin`, '/usr/local/pgsql/bin', '/usr/local/bin', '/usr/bin']) {
    if (path.resolve(binaries) !== binaries || path.dirname(binaries) === '/' || !isOursToRun(path.join(binaries, 'postgres'))) continue; // what lies around it is seen inside: not all of this machine
    // Read, not run: out here it would run as root, and root may have extracted it from such an archive.
    if ((await look(['grep', '--quiet', '--text', `(PostgreSQL) ${version}[.a-z]`, path.join(binaries, 'postgres')])).code === 0) return { version, binaries, image: '' };
  }
  return null;
}

// The archive names the folder: what lies there is run only if nobody else could have put it there.
function isOursToRun(program) {
  return path.isAbsolute(program) && [program, path.dirname(program)].every((file) => {
    const facts = fs.statSync(file, { throwIfNoEntry: false });
    return facts && [0, process.getuid?.()].includes(facts.uid) && (facts.mode & 0o022) === 0;
  });
}

/**
 * Open a sandbox in FOLDER (new, empty): PLACES are seen inside where they say. Throws Problem when this machine does not
 * let us lock anything in.
 */
async function openSandbox(folder, places, programs) {
  const own = path.join(folder, 'own'), isRoot = process.getuid?.() === 0, user = isRoot ? OWN_USER : process.getuid();
  fs.mkdirSync(own, { recursive: true, mode: 0o700 });
  for (const [name, text] of Object.entries({ passwd: `root:x:0:0::/:/bin/sh\ndrill:x:${user}:${user}::/own:/bin/sh\n`, hba: 'local all all trust\n', conf: '', ident: '' })) fs.writeFileSync(path.join(own, name), text, { mode: 0o644 });
  const given = isRoot ? await look(['chown', `${user}:${user}`, own]) : null;
  if (given && given.code !== 0) throw notLockedIn(given.argv, given.said);
  const home = path.dirname(programs.binaries);
  const seen = [...(programs.image || /^\/usr(\/|$)/.test(home) ? [] : [{ from: home, at: home }]), ...places].sort((one, other) => one.at.length - other.at.length);
  const name = path.basename(folder), quoted = (word) => word.replaceAll('"', '""'); // as CSV
  const argv = programs.image
    ? ['docker', 'run', '--rm', '--interactive', '--name', name, '--label', `${SANDBOX_MARK}=yes`, '--network', 'none', '--read-only', '--tmpfs', '/tmp', '--cap-drop', 'ALL', '--security-opt', 'no-new-privileges',
      '--user', `${user}:${user}`, ...[{ from: own, at: '/own' }, { from: path.join(own, 'passwd'), at: '/etc/passwd' }, ...seen].flatMap(({ from, at }) => ['--mount', `type=bind,"source=${quoted(from)}","target=${quoted(at)}"`]),
      '--entrypoint', 'sh', programs.image, '-c', 'exec 3<&0; echo ready; cat <&3 > /dev/null & wait $!']
    : ['unshare', ...(isRoot ? [] : ['--user', '--map-current-user', '--keep-caps']), '--mount', '--net', '--pid', '--ipc', '--uts', '--fork', '--kill-child', '--', 'sh', '-c', ENTER, 'sh',
      path.join(folder, 'root'), own, ...seen.flatMap(({ from, at }) => [from, at])];
  if (!programs.image) fs.mkdirSync(path.join(folder, 'root'));
  sayMore(`sandbox: ${argv[0]} ... ${seen.map(({ at }) => named(at)).join(', ')}`);
  const child = spawn(argv[0], argv.slice(1), { stdio: ['pipe', 'pipe', 'pipe'], detached: true, cwd: '/', env: { PATH: programPath(), DOCKER_HOST: process.env.DOCKER_HOST } });
  const end = async (patienceMs = 10_000) => {
    const gone = child.exitCode !== null || child.signalCode !== null ? null : new Promise((resolve) => { child.once('exit', resolve); });
    child.stdin.destroy();
    const late = setTimeout(() => signalGroup(child.pid, 'SIGKILL'), patienceMs); // a daemon or a disk that hangs
    await gone;
    clearTimeout(late);
    if (programs.image) await dockerAnyway('rm', '--force', name);
  };
  await readyOrNot(child, argv).catch(async (error) => {
    await end(0);
    throw error;
  });
  const inner = programs.image ? '' : fs.readFileSync(`/proc/${child.pid}/task/${child.pid}/children`, 'utf8').trim();
  const lowered = ['--no-new-privs', ...(isRoot ? ['--reuid', String(user), '--regid', String(user), '--clear-groups', '--inh-caps=-all', '--bounding-set=-all'] : [])]; // who is not root has none to lose
  const words = programs.image ? ['docker', 'exec', '--env', 'HOME=/own', '--env', 'LC_ALL=C.UTF-8', name]
    : ['env', `PATH=${SYSTEM_PATH}`, 'nsenter', '--target', inner, '--mount', '--net', '--pid', '--ipc', '--uts', '--root', '--wd', ...(isRoot ? [] : ['--user', '--preserve-credentials']), '--',
      'setpriv', ...lowered, '--', 'env', '-i', `PATH=${SYSTEM_PATH}`, 'HOME=/own', 'LC_ALL=C.UTF-8'];
  return { folder, words, end };
}

/** Ask Docker, also when we were asked to stop, but not for ever: its daemon may hang. Returns how it ended. */
const dockerAnyway = (...words) => look(['timeout', '--kill-after=5', '60', 'docker', ...words], { unlimited: true });

// The first line says that all is mounted; when there is none, the reason is on stderr. A daemon or a disk that hangs says nothing at all.
async function readyOrNot(child, argv) {
  let said = '', isReady = null;
  child.stderr.on('data', (piece) => { said = (said + piece).slice(-4096); });
  child.stdin.on('error', () => {}); // it has gone
  const told = new Promise((resolve) => {
    child.stdout.once('data', () => resolve(true));
    child.once('error', (error) => { said += error.message; resolve(false); });
    child.once('exit', () => resolve(false));
  }).then((is) => { isReady = is; });
  await waitUntil(120, () => isReady !== null, 100, told);
  if (!isReady) throw notLockedIn(argv, isReady === null ? `${said}\nno answer within 120 s` : said);
}

const notLockedIn = (argv, said) => new Problem('a copy of PostgreSQL cannot be locked in here, so it is not started',
  { ran: argv.slice(0, 12), said: lastLines(said, 3), hint: 'rehearse it on another machine, where root may make namespaces: `node backup.js drill` runs on the operator\'s computer, too' });

// What a copy may not have: every one of these could reach out, or needs what is not here. Nothing in postgresql.auto.conf overrules the
// command line; what a role or a database sets of its own reaches nobody, for there is no network.
const FORCED = {
  listen_addresses: '', unix_socket_directories: '/own', port: PORT, config_file: '/own/conf', hba_file: '/own/hba', ident_file: '/own/ident', external_pid_file: '/own/pid',
  archive_mode: 'off', archive_command: '', restore_command: '', archive_cleanup_command: '', recovery_end_command: '', primary_conninfo: '', primary_slot_name: '',
  shared_preload_libraries: '', max_logical_replication_workers: '0', max_wal_senders: '0', autovacuum: 'off', ssl: 'off', huge_pages: 'off', shared_buffers: '128MB',
  logging_collector: 'off', log_destination: 'stderr', log_statement: 'none', lc_messages: 'C', jit: 'off', fsync: 'off',
};
const FORCED_SINCE = [[15, { archive_library: '' }], [17, { event_triggers: 'off', summarize_wal: 'off', sync_replication_slots: 'off' }]];
// These must be as they were, or the server refuses its own files (manual, "Hot Standby" and "Replication Slots").
const KEPT = { 'wal_level setting': 'wal_level', 'max_connections setting': 'max_connections', 'max_worker_processes setting': 'max_worker_processes',
  'max_prepared_xacts setting': 'max_prepared_transactions', 'max_locks_per_xact setting': 'max_locks_per_transaction', 'track_commit_timestamp setting': 'track_commit_timestamp' };

/**
 * Start the cluster in a data directory of the sandbox and wait until it answers. Given its path inside, the path on this host, and names of roles of which one should be
 * its superuser, returns it as a running cluster, `owner` being that role: queryCluster() and its like ask it. Throws Problem with what the server says.
 */
async function startInside(sandbox, programs, dataDirectory, onHost, roles) {
  const facts = await look([...sandbox.words, path.join(programs.binaries, 'pg_controldata'), '-D', dataDirectory]);
  const kept = Object.entries(KEPT).flatMap(([told, name]) => {
    const value = new RegExp(`^${told}:\\s+(\\w+)$`, 'm').exec(facts.out)?.[1];
    return value ? [[name, value]] : [];
  });
  if (kept.length === 0) kept.push(['wal_level', 'logical'], ['max_prepared_transactions', '1000'], ['max_connections', '1000'], ['max_worker_processes', '100']); // no pg_controldata here: more than it can have had
  const slots = fs.existsSync(path.join(onHost, 'pg_replslot')) ? fs.readdirSync(path.join(onHost, 'pg_replslot')).length : 0;
  const newer = FORCED_SINCE.filter(([since]) => Number(programs.version) >= since).map(([, settings]) => settings);
  const settings = { ...FORCED, ...Object.assign({}, ...newer), ...Object.fromEntries(kept), max_replication_slots: String(slots + 10), data_directory: dataDirectory };
  const options = Object.entries(settings).flatMap(([name, value]) => ['-c', `${name}=${value}`]);
  const cluster = { name: `copy of ${dataDirectory}`, dataDirectory: onHost, version: programs.version, owner: '', uid: OWN_USER, gid: OWN_USER, pid: 1, port: PORT, socketFolder: '/own',
    binaries: programs.binaries, container: '', insideDataDirectory: dataDirectory, configFolder: '', roots: [], tablespaces: [], walFolder: '', words: sandbox.words };
  const log = path.join(sandbox.folder, 'own/log'), said = () => lastLines(plainText(log, 1 << 26), 4);
  const control = (...words) => look([...sandbox.words, path.join(programs.binaries, 'pg_ctl'), ...words, '-D', dataDirectory, '-w', '-t', '3600', '-s'], { seconds: 3700 });
  const begin = async () => {
    const done = await control('start', '-l', '/own/log', '-o', options.map((word) => `'${word.replaceAll("'", `'\\''`)}'`).join(' ')); // pg_ctl gives them to a shell
    if (done.code !== 0) throw new Problem('PostgreSQL does not start on the copy',
      { ran: ['pg_ctl', 'start', '-D', dataDirectory], said: said() || done.said });
  };
  const asSuperuser = async (role) => {
    useRole(cluster, role);
    return (await queryCluster(cluster, await homeOf(cluster), 'select current_setting(\'is_superuser\')')).out.trim() === 'on' ? { ...cluster, owner: role } : null;
  };
  await begin();
  for (const role of roles) {
    const found = await asSuperuser(role);
    if (found) return found;
  }
  await control('stop', '-m', 'fast'); // who is it? In single-user mode nobody is asked for a name
  const alone = await look([...sandbox.words, 'sh', '-c', 'echo "$1" | { shift; exec "$@"; }', 'sh', 'select rolname from pg_roles where rolsuper and rolcanlogin order by oid limit 1',
    path.join(programs.binaries, 'postgres'), '--single', '-D', dataDirectory, ...options, 'template1'], { seconds: 3600 });
  await begin();
  const found = await asSuperuser(/rolname = "(.*)"\t\(typeid/.exec(alone.out)?.[1] ?? '');
  if (!found) throw new Problem('PostgreSQL runs on the copy, but no superuser of it may log in',
    { said: said(), hint: `tried: ${roles.map(named).join(', ')}` });
  return found;
}

// =========================================================================================================
// ==== EMPTY CLUSTER ====
// The empty cluster: PostgreSQL itself is asked what it can do here. A new cluster of the same programs is made in the sandbox, gets the
// locales, collations, libraries and settings of the saved one to try, tells how it sorts, and is thrown away. No list of ours knows better
// than CREATE DATABASE whether a locale is good. Changes nothing outside its scratch folder.
// Every name here stands in an archive and may be made to harm: it goes in as a quoted word or as data, never as SQL.

const WRITABLE = { default_transaction_read_only: 'off' }; // it is ours, and empty
const sqlText = (text) => `'${text.replaceAll("'", "''")}'`;
const sqlData = (data) => `${sqlText(JSON.stringify(data))}::jsonb`;

/**
 * Make an empty cluster below FOLDER and start it, locked in. Returns null when there is no such program. Throws Problem
 * when it, or this machine, does not let us.
 */
async function startTrial(programs, folder) {
  const sandbox = await openSandbox(fs.mkdtempSync(path.join(folder, 'cold-backup-judge-')), programs.image || !fs.existsSync('/opt') ? [] : [{ from: '/opt', at: '/opt' }], programs); // libraries may need others from there
  const end = async () => {
    await sandbox.end();
    fs.rmSync(sandbox.folder, { recursive: true, force: true });
  };
  try {
    const made = await look([...sandbox.words, path.join(programs.binaries, 'initdb'), '-D', '/own/empty', '--username=postgres', '--auth=trust', '--encoding=UTF8', '--locale=C', '--wal-segsize=1', '--no-sync']);
    if (made.code === 126 || made.code === 127) {
      await end();
      return null;
    }
    if (made.code !== 0) throw failure(`PostgreSQL ${programs.version} cannot make an empty cluster here`, made);
    fs.writeFileSync(path.join(sandbox.folder, 'own/empty', SANDBOX_MARK), '', { flag: 'wx' }); // never through a link that an image laid there
    const [cluster, system] = await Promise.all([startInside(sandbox, programs, '/own/empty', path.join(sandbox.folder, 'own/empty'), ['postgres']), systemInside(sandbox)]);
    return { cluster, version: Number(programs.version), system, end };
  } catch (error) {
    await end();
    throw error;
  }
}

async function systemInside({ words }) {
  return { libc: (await look([...words, 'getconf', 'GNU_LIBC_VERSION'])).out.trim() };
}

/** Ask what the programs are, which extensions they know, which libraries load, which values settings take, which files of dictionaries are there. */
async function askAbilities({ cluster }, wanted) {
  const done = await queryCluster(cluster, 'postgres', `
    create function pg_temp.failure(text) returns text language plpgsql as $$begin execute $1; return ''; exception when others then return sqlerrm; end$$;
    create function pg_temp.told(text) returns jsonb language plpgsql as $$declare r jsonb; begin execute $1 into r; return jsonb_build_object('is', r);
      exception when others then return jsonb_build_object('failed', sqlerrm); end$$;
    with share(folder) as materialized (select setting from pg_config where name = 'SHAREDIR')
    select jsonb_build_object('share', (select folder from share), 'version', current_setting('server_version'), 'number', current_setting('server_version_num')::int,
      'control', (select to_jsonb(s) || to_jsonb(i) from pg_control_system() s, pg_control_init() i),
      'extensions', (select coalesce(jsonb_object_agg(x, jsonb_build_object(
          'control', pg_temp.told(format('select to_jsonb(pg_read_file(%L, 0, 100000, true))', folder || '/extension/' || x || '.control')),
          'known', pg_temp.told(format('select jsonb_agg(distinct v) from pg_extension_update_paths(%L) p, unnest(array[source, target]) v', x)))), '{}')
        from share, jsonb_array_elements_text(${sqlData(wanted.extensions.filter((one) => /^[^/\\]+$/.test(one)))}) x),
      'settings', (select coalesce(jsonb_object_agg((x->>0) || '=' || (x->>1), pg_temp.failure(format('select set_config(%L, %L, false)', regexp_replace(x->>0, '^log_timezone$', 'timezone'), x->>1))), '{}')
        from jsonb_array_elements(${sqlData(wanted.settings)}) x),
      'files', (select coalesce(jsonb_object_agg(f->>0, exists(select from jsonb_array_elements_text(f) n where pg_stat_file(folder || '/tsearch_data/' || n, true) is not null)), '{}')
        from share, jsonb_array_elements(${sqlData(wanted.files)}) f),
      'libraries', (select coalesce(jsonb_object_agg(x, pg_temp.failure(format('load %L', x))), '{}') from jsonb_array_elements_text(${sqlData(wanted.libraries.filter((one) => LOADABLE.test(one)))}) x
        where x not in (select probin from pg_proc where probin is not null)))`, 60, WRITABLE); // those every cluster has: small images lack some, and initdb needs the others
  if (done.code !== 0) throw failure('an empty cluster does not tell what it can', { ...done, argv: done.argv.slice(0, 8) });
  return answerOf('an empty cluster does not tell what it can', done, { share: 'text', version: 'text', number: 'number', control: { '*': 'anything' }, extensions: { '*': 'anything' }, settings: { '*': 'anything' }, files: { '*': 'anything' }, libraries: { '*': 'text' } });
}

/** A library that may be loaded to see whether it can be: one of PostgreSQL's own folder. */
const LOADABLE = /^(\$libdir\/(plugins\/)?)?[\w+-][\w.+-]*$/;

/** Make a database of this definition and see how it sorts; then the collations, by key, in it. Returns their orders: of the database under ''. */
async function askOrders(trial, name, database, collations) {
  const { cluster } = trial, orders = new Map();
  const made = await queryCluster(cluster, 'postgres', createDatabase(trial.version, name, database), 60, WRITABLE);
  if (made.code !== 0 && !/locale|lc_|encoding|icu|provider|rules/i.test(made.said)) throw failure('an empty database cannot be made', { ...made, argv: made.argv.slice(0, 8) }); // no room, say: that tells nothing of locales
  if (made.code !== 0) return orders.set('', { failed: made.said.trim(), version: null, fingerprint: '' });
  const keys = [...collations.keys()], list = keys.map((key, i) => [`c${i}`, collationOptions(collations.get(key))]);
  const [fingerprint, told] = await Promise.all([orderFingerprint(cluster, name), queryCluster(cluster, name, `
    create function pg_temp.order_of(name text, options text) returns jsonb language plpgsql as $$begin
      execute format('create collation public.%I (%s)', name, options);
      return jsonb_build_object('failed', '', 'version', (select pg_collation_actual_version(oid) from pg_collation where collname = name));
      exception when others then return jsonb_build_object('failed', sqlerrm); end$$;
    select jsonb_build_object('own', ${trial.version >= 15 ? '(select pg_database_collation_actual_version(oid) from pg_database where datname = current_database())' : 'null'},
      'collations', (select jsonb_object_agg(x->>0, pg_temp.order_of(x->>0, x->>1)) from jsonb_array_elements(${sqlData(list)}) x))`, 60, WRITABLE)]);
  if (told.code !== 0) throw failure('an empty database does not tell how it sorts', { ...told, argv: told.argv.slice(0, 8) });
  const facts = answerOf('an empty database does not tell how it sorts', told, { 'own?': 'text', 'collations?': { '*': { failed: 'text' } } });
  orders.set('', { failed: '', version: facts.own, fingerprint });
  await Promise.all(keys.map(async (key, i) => {
    const { failed, version = null } = facts.collations[`c${i}`];
    orders.set(key, { failed, version, fingerprint: failed ? '' : await orderFingerprint(cluster, name, `public.c${i}`) });
  }));
  return orders;
}

function createDatabase(version, name, { provider, encoding, collate, ctype, locale, rules }) {
  const words = { i: 'icu', b: 'builtin' }[provider];
  return [`create database ${quotedName(name)} template template0 encoding ${sqlText(encoding)} lc_collate ${sqlText(collate)} lc_ctype ${sqlText(ctype)}`,
    ...(version >= 15 ? [`locale_provider ${words ?? 'libc'}`] : []), ...(words && locale ? [`${words}_locale ${sqlText(locale)}`] : []),
    ...(rules ? [`icu_rules ${sqlText(rules)}`] : [])].join(' ');
}

// These become part of a CREATE COLLATION: each value is a quoted word.
function collationOptions({ provider, locale, rules, deterministic }) {
  return [`provider = ${{ i: 'icu', b: 'builtin' }[provider] ?? 'libc'}`, `locale = ${sqlText(locale ?? '')}`, ...(rules ? [`rules = ${sqlText(rules)}`] : []),
    ...(deterministic === false ? ['deterministic = false'] : [])].join(', ');
}

// =========================================================================================================
// ==== COLLATIONS ====
// Collations: does this machine sort texts as the saved one did?
// Indexes on text lie in the order of the C library or of ICU; where another version of them sorts two words the other way
// round, an index no longer finds what is there, and PostgreSQL says at most a warning (before 15 not even that for a
// database's own collation). So versions are compared, and what they do not tell, the order of some 16,000 words.
// The cure is always the same: build the indexes anew, then tell PostgreSQL the new version. Changes nothing.

const PROVIDERS = { c: 'libc', i: 'ICU', b: 'builtin' };
const sortingOf = ({ provider, encoding, collate, ctype, locale, rules }) => ({ provider, encoding, collate, ctype, locale, rules, deterministic: null });
const keyOf = (sorting) => JSON.stringify(Object.values(sorting));

function usesOf(database) {
  const { recorded, actual } = database, collations = database.collations ?? [];
  const own = collations.find((one) => one.schema === 'pg_catalog' && one.name === 'default');
  return [
    { database, name: '', sorting: sortingOf(database), recorded, actual, fingerprint: database.orderFingerprint, indexes: own?.indexes ?? [], partitioned: own?.partitionedTables ?? [] },
    ...collations.filter((one) => one !== own).map((one) => ({
      database, name: `${quotedName(one.schema)}.${quotedName(one.name)}`, recorded: one.recorded, actual: one.actual, fingerprint: one.orderFingerprint,
      indexes: one.indexes, partitioned: one.partitionedTables,
      sorting: { provider: one.provider, encoding: database.encoding, collate: '', ctype: '', locale: one.locale, rules: one.rules, deterministic: one.deterministic },
    })),
  ];
}

/** Ask the empty cluster how each database and collation of a passport sorts here, once for each definition. */
async function ordersOf(trial, told, known) {
  const definitions = new Map();
  for (const { name, sorting, database } of told.databases.flatMap(usesOf)) {
    const own = sortingOf(database), key = keyOf(own);
    if (!definitions.has(key)) definitions.set(key, { database: own, collations: new Map() });
    if (name !== '' && !known.has(key + keyOf(sorting))) definitions.get(key).collations.set(keyOf(sorting), sorting);
  }
  await Promise.all([...definitions].map(async ([key, { database, collations }], i) => {
    if (known.has(key) && collations.size === 0) return;
    for (const [one, order] of await askOrders(trial, `d${known.size}_${i}`, database, collations)) known.set(key + one, order);
  }));
}

/**
 * What of a cluster's collations is not as it was. Given its passport, how they sort here, and the C library there and here: it stands in
 * where PostgreSQL notes no version. Returns findings: a locale that is not here, indexes to build anew, versions to refresh.
 */
function collationFindings(told, orders, libc, psql, missingLocale) {
  const groups = new Map();
  for (const use of told.databases.flatMap(usesOf)) {
    const { name, sorting, database, recorded, actual, fingerprint } = use;
    const order = orders.get(keyOf(sortingOf(database)) + (name === '' ? '' : keyOf(sorting)));
    if (!order) continue; // its database cannot even be made here, and that is told
    const byLibc = sorting.provider === 'c' && Number(told.version) < (name === '' ? 15 : 13) && !/^(C|POSIX)(\.|$)/i.test(localeOf(sorting)); // these sort by number, in every version
    const there = recorded ?? actual ?? (byLibc && libc.there && libc.here ? libc.there : null), here = order.version ?? (byLibc ? libc.here : null);
    const otherOrder = fingerprint !== '' && order.fingerprint !== '' && fingerprint !== order.fingerprint;
    if (!order.failed && !otherOrder && (there === null || there === here)) continue;
    const key = JSON.stringify([sorting.provider, localeOf(sorting), sorting.rules, there, order.failed ? 'failed' : here, otherOrder]);
    groups.set(key, [...groups.get(key) ?? [], { ...use, order, there, here, otherOrder }]);
  }
  return [...groups.values()].map((uses) => (uses[0].order.failed ? missing(told, uses, missingLocale) : changed(told, uses, psql)));
}

const localeOf = ({ locale, collate }) => locale || collate;

function missing(told, uses, missingLocale) {
  const { sorting, order } = uses[0];
  const whole = uses.filter((one) => one.name === '').map((one) => one.database), parts = uses.filter((one) => one.name !== '');
  const breaks = [...(whole.length > 0 ? [`${listed(whole.map((one) => one.name))} cannot be opened`] : []), ...parts.map((one) => `indexes of ${one.database.name} cannot be used: ${listed(one.indexes)}`)];
  return { cluster: told.name, about: `locale ${localeOf(sorting)}`, recorded: `${PROVIDERS[sorting.provider] ?? sorting.provider} locale`, here: order.failed.replace(/^ERROR: +/, '').split('\n')[0],
    breaks: breaks.join('; '), verdict: parts.length > 0 || whole.some((one) => one.connectable) ? 'refused' : 'note', mend: sorting.provider === 'c' ? missingLocale(localeOf(sorting)) : [], sql: [] };
}

function changed(told, uses, psql) {
  const { sorting, there, here, otherOrder } = uses[0];
  const sql = [...new Map(uses.flatMap((use) => cure(told, use)).map((one) => [JSON.stringify(one), one])).values()];
  const indexes = uses.flatMap((use) => use.indexes.map((one) => `${use.database.name}: ${one}`)), partitioned = uses.flatMap((use) => use.partitioned.map((one) => `${use.database.name}: ${one}`));
  const breaks = [
    otherOrder ? 'texts sort in another order' : 'texts may sort in another order (16,000 short ones do not)',
    ...(indexes.length > 0 ? [`until built anew, ${indexes.length} ${indexes.length === 1 ? 'index' : 'indexes'} may miss rows: ${listed(indexes)}`] : []),
    ...(partitioned.length > 0 ? [`rows may lie in the wrong partition, which only a dump and reload cures: ${listed(partitioned)}`] : []),
    ...(uses.some((use) => use.recorded !== null && use.actual !== null && use.recorded !== use.actual) ? ['it was so on the saved server already'] : []),
  ];
  const sign = (version, which) => `${version ?? 'no version'}${otherOrder ? `, order ${(which === 'order' ? uses[0].order.fingerprint : uses[0].fingerprint).slice(0, 8)}` : ''}`;
  return { cluster: told.name, about: `collation ${localeOf(sorting)} (${PROVIDERS[sorting.provider] ?? sorting.provider})`, recorded: sign(there, 'fingerprint'), here: sign(here, 'order'),
    breaks: breaks.join('; '), verdict: sql.length > 0 || partitioned.length > 0 ? 'after' : 'note', mend: psqlCommands(psql, sql), sql };
}

// A name as PostgreSQL writes it (regclass): schema.index, each plain or quoted. Anything else in its place is not run.
const QUOTED_NAME = /^(?:"(?:[^"]|"")+"|[a-z_\u0080-\uffff][\w$\u0080-\uffff]*)\.(?:"(?:[^"]|"")+"|[a-z_\u0080-\uffff][\w$\u0080-\uffff]*)$/;

/** REINDEX, then REFRESH, which PostgreSQL only does from a version to another (ALTER COLLATION; for databases since 15). */
function cure(told, { database, name, indexes, recorded, order }) {
  const at = database.connectable ? database.name : 'postgres';
  const reindex = indexes.every((one) => QUOTED_NAME.test(one)) ? indexes.map((one) => `reindex index ${one}`) : [`reindex database ${quotedName(database.name)}`];
  const canRefresh = recorded !== null && order.version !== null && recorded !== order.version && (name !== '' || Number(told.version) >= 15);
  const refresh = name === '' ? `alter database ${quotedName(database.name)} refresh collation version` : `alter collation ${name} refresh version`;
  return [...reindex, ...(canRefresh ? [refresh] : [])].map((text) => ({ database: at, text }));
}

/** One command for each database. */
function psqlCommands(psql, sql) {
  const databases = [...new Set(sql.map((one) => one.database))];
  const asWord = (name) => (/=|:\/\//.test(name) ? `dbname='${name.replace(/['\\]/g, '\\$&')}'` : name); // psql would take it for a connection string
  return databases.map((database) => pasteable([...psql, '-d', asWord(database), ...sql.filter((one) => one.database === database).flatMap(({ text }) => ['-c', text])]));
}

/** At most five names, and how many more. */
function listed(names) {
  return names.slice(0, 5).join(', ') + (names.length > 5 ? ` and ${names.length - 5} more` : '');
}

// =========================================================================================================
// ==== MACHINE ====
// This machine beside the saved one, as far as files and processes tell.
// Architecture, users and groups, ports, memory, places for the folders, packages to install. Only looks. What PostgreSQL
// itself has to answer is the judge's.

const finding = (cluster, about, facts) => ({ cluster, about, recorded: '', here: '', breaks: '', verdict: 'refused', mend: [], sql: [], ...facts });
const notJudged = (cluster, about, why) => finding(cluster, about, { here: 'not judged', breaks: why, verdict: 'note', mend: ['node backup.js drill'] });

/** What differs of the machine as a whole: architecture, users and groups, memory, places. */
async function machineFindings(manifest, clusters) {
  const { architecture } = manifest.host;
  const found = architecture === os.arch() || clusters.length === 0 ? [] : [finding('', 'architecture', { recorded: architecture, here: os.arch(), breaks: 'PostgreSQL\'s files are those of one kind of processor', mend: ['# restore on a machine of that architecture'] })];
  const memory = clusters.flatMap((cluster) => {
    const told = manifest.postgres.find((one) => one.dataDirectory === cluster.dataDirectory);
    return told ? memoryFindings(told) : [];
  });
  const links = (await Promise.all(clusters.map((one) => linkFindings(manifest, one)))).flat();
  return [...found, ...await ownerFindings(manifest, clusters), ...memory, ...clusters.flatMap(placeFindings), ...links];
}

const ACCOUNT = /^[a-z_][\w.-]*\$?$/i; // what may stand in a command

/** The users and groups of the saved files by name: borg gives a file to the name, and where there is none, to the number, whoever has it. */
async function ownerFindings({ host, plan }, clusters) {
  if (plan.roots.every((root) => root.why.startsWith('volume '))) return []; // those go by number, here as there
  const known = async (database, facts) => {
    const words = facts.flatMap(({ id, name }) => [String(id), name]).filter((one) => ACCOUNT.test(one) || /^\d+$/.test(one));
    const { out } = words.length > 0 ? await look(['getent', database, ...words]) : { out: '' };
    return new Map(out.split('\n').flatMap((line) => { const [name = '', , id = ''] = line.split(':'); return [[name, id], [id, name]]; }));
  };
  const owners = clusters.filter((one) => one.container === '').map((one) => ({ id: one.uid, name: one.owner }));
  const [users, groups] = await Promise.all([known('passwd', [...host.users, ...owners]), known('group', host.groups)]);
  const missing = (kind, here, { id, name, group }, verdict) => {
    const holder = here.get(String(id));
    if (id === 0 || (name ? here.has(name) : !holder || plan.clusters.some((one) => one.container !== ''))) return [];
    const ownGroup = host.groups.find((one) => one.id === group)?.name || name;
    const add = kind === 'user' ? ['useradd', ...(holder ? [] : ['--uid', String(id)]), '--gid', ownGroup, '--no-create-home', '--shell', '/usr/sbin/nologin', name] : ['groupadd', ...(holder ? [] : ['--gid', String(id)]), name];
    const first = kind === 'user' && !groups.has(ownGroup) ? [pasteable(['groupadd', ...(holder ? [] : ['--gid', String(group ?? id)]), ownGroup])] : [];
    const breaks = verdict === 'refused' ? 'PostgreSQL runs as this user' : holder ? `what belonged to ${name || id} would belong to ${kind} ${holder} here, who could read and change it` : 'its files would belong to a bare number';
    return [finding('', `${kind} ${name || id}`, { recorded: String(id), here: holder ? `${id} is ${holder}` : 'missing', breaks, verdict, mend: ACCOUNT.test(name) && ACCOUNT.test(ownGroup) ? [...first, pasteable(add)] : [] })];
  };
  const isOwner = ({ name }) => owners.some((one) => one.name === name);
  return [...[...new Map(owners.map((one) => [one.name, one])).values()].flatMap((one) => missing('user', users, host.users.find((user) => user.id === one.id && user.name === one.name) ?? one, 'refused')),
    ...host.users.filter((one) => !isOwner(one)).flatMap((one) => missing('user', users, one, 'note')),
    ...host.groups.filter((one) => !host.users.some((user) => user.name === one.name && !users.has(user.name))).flatMap((one) => missing('group', groups, one, 'note'))];
}

const meminfo = (name) => Number(new RegExp(`^${name}:\\s+(\\d+)`, 'm').exec(fs.readFileSync('/proc/meminfo', 'utf8'))?.[1] ?? 0);
const inBytes = (text = '') => {
  const [, number, unit = ''] = /^(\d+)\s*(B|kB|MB|GB|TB)?$/.exec(text) ?? [];
  return Number(number ?? 0) * ({ B: 1, kB: 2 ** 10, MB: 2 ** 20, GB: 2 ** 30, TB: 2 ** 40 }[unit] ?? 1);
};

/** Shared memory that this machine cannot have: PostgreSQL does not start. */
function memoryFindings({ name, settings = {}, container }) {
  const needed = inBytes(settings.shared_memory_size ?? settings.shared_buffers), all = (meminfo('MemTotal') + meminfo('SwapTotal')) * 1024;
  const pages = Number(settings.shared_memory_size_in_huge_pages ?? Math.ceil(needed / 1024 / (meminfo('Hugepagesize') || 2048)));
  const change = container ? '# lower shared_buffers in its configuration' : '# lower shared_buffers in its postgresql.conf after the restore, or give the machine more memory';
  const canMap = fs.readFileSync('/proc/sys/vm/overcommit_memory', 'utf8').trim() === '1' || needed <= all; // proc(5): the kernel refuses one mapping larger than everything there is
  if (settings.huge_pages === 'on' && pages > meminfo('HugePages_Total')) {
    return [finding(name, 'huge pages', { recorded: `huge_pages = on, ${pages} pages`, here: String(meminfo('HugePages_Total')), breaks: 'PostgreSQL does not start', mend: [`sysctl --write vm.nr_hugepages=${pages}`] })];
  }
  return canMap ? [] : [finding(name, 'memory', { recorded: `${size(needed)} shared`, here: `${size(all)} in all`, breaks: 'PostgreSQL does not start', mend: [change] })];
}

/** Places where the folders of a cluster cannot be made. */
function placeFindings({ name, container, dataDirectory, walFolder, tablespaces }) {
  const places = container ? [dataDirectory] : [dataDirectory, walFolder, ...tablespaces.map((one) => one.location)];
  return [...new Set(places)].filter((place) => path.isAbsolute(place)).flatMap((place) => {
    let above = place;
    while (!fs.existsSync(above)) above = path.dirname(above);
    const facts = fs.statSync(above);
    let why = facts.isDirectory() ? '' : `${named(above)} is no folder`;
    try {
      fs.accessSync(above, fs.constants.W_OK);
    } catch (error) {
      why ||= `${named(above)} cannot be written: ${error instanceof Error ? error.message.replace(/, access.*/, '') : error}`;
    }
    return why ? [finding(name, `place ${named(place)}`, { recorded: 'a folder', here: why, breaks: 'it cannot be put back' })] : [];
  });
}

/**
 * Where PostgreSQL looks for its files, when that is another path than the one by which they are saved: of the data directory by Debian's configuration, of a tablespace by
 * its link. A link on the way there is in no archive, and where it leads may be something else: the empty cluster, above all, that Debian made with the package. Of what
 * configures it only what is not there at all counts: a certificate that was renewed since may well lie elsewhere.
 */
async function linkFindings({ postgres }, { name, container, dataDirectory, configFolder, roots, tablespaces, configLinks = [] }) {
  const configured = configFolder && postgres.find((one) => one.dataDirectory === dataDirectory)?.settings?.data_directory, found = [];
  const pairs = container ? [] : [{ link: configured || '', location: dataDirectory }, ...tablespaces.filter((one) => roots.includes(one.location)), ...configLinks.filter((one) => !fs.existsSync(one.link))];
  for (const { link, location } of pairs.filter((one) => typeof one.link === 'string' && path.isAbsolute(one.link) && one.link !== one.location)) {
    const [leads = '', place] = (await look(['realpath', '--canonicalize-missing', '--zero', '--', link, location])).out.split('\0');
    const isInTheWay = fs.lstatSync(link, { throwIfNoEntry: false }) !== undefined, aside = configFolder ? [['systemctl', 'stop', '--', `postgresql@${name.replace('/', '-')}`]] : [];
    if (leads !== place) found.push(finding(name, `link ${named(link)}`, { recorded: `leads to ${named(location)}`, here: isInTheWay ? `leads to ${named(leads)}` : 'missing', breaks: 'PostgreSQL would not find what comes back, or run in something else',
      mend: [...(isInTheWay ? [...aside, ['mv', '-T', '--', link, `${link}.aside`]] : []), ['mkdir', '-p', '--', path.dirname(link)], ['ln', '-s', '-T', '--', location, link]].map(pasteable) }));
  }
  return found;
}

const NOT_FOR_POSTGRES = /^(libc6|glibc.*|musl|libicu.*|icu-libs|locales|locales-all|tzdata|borgbackup2?|nodejs|postgresql-common)(:.*)?$/;

/** The packages of the saved server that a cluster's programs and extensions came from, and those of them that are not among `installed`. */
function neededPackages(manifest, { version }, installed = new Set()) {
  const names = Object.keys(manifest.packages.needed).filter((name) => !NOT_FOR_POSTGRES.test(name)).map((name) => name.split(':')[0])
    .filter((name) => /^[a-z0-9][a-z0-9+.-]+$/.test(name) && (!/postgresql-?(\w+-)?\d\d/.test(name) || name.includes(version)));
  const all = names.some((name) => name.includes('postgresql')) ? names : [`postgresql-${version}`, ...names];
  return [all, all.filter((name) => !installed.has(name))];
}

/** The commands that install packages here; with PostgreSQL's own package source where the distribution has not this version. */
async function install(packages, version) {
  if (fs.existsSync('/usr/bin/dnf')) return [pasteable(['dnf', 'install', ...packages])];
  const isKnown = (await look(['apt-cache', 'show', '--no-all-versions', `postgresql-${version}`])).code === 0;
  return ['apt-get update', ...(isKnown ? [] : ['apt-get install --yes postgresql-common', '/usr/share/postgresql-common/pgdg/apt.postgresql.org.sh -y']), pasteable(['apt-get', 'install', '--yes', ...packages])];
}

/** Who else has a cluster's port or socket. Clusters that lie where these will come back are stopped by the restore and do not count. */
async function portFindings({ postgres }, cluster, all) {
  const { port, name } = cluster;
  if (cluster.container || !/^\d{1,5}$/.test(port)) return [];
  const settings = postgres.find((one) => one.dataDirectory === cluster.dataDirectory)?.settings ?? {};
  const places = new Set(all.map((one) => deviceAndInode(one.dataDirectory)).filter((one) => one !== '')), everyone = processes();
  const isOurs = (pid) => everyone.some((one) => one.pid === pid && places.has(workingFolder(pid)));
  const found = (here, breaks, verdict) => finding(name, `port ${port}`, { recorded: 'its own', here, breaks, verdict, mend: [`ss --listening --processes --numeric '( sport = :${port} )'   # who it is; stop it, or give it another port`] });
  for (const folder of (settings.unix_socket_directories ?? cluster.socketFolder).split(',').map((one) => one.trim().replace(/^"(.*)"$/, '$1')).filter((one) => one.startsWith('/'))) {
    const lock = path.join(folder, `.s.PGSQL.${port}.lock`), pid = Math.abs(parseInt(plainText(lock)));
    const alive = everyone.find((one) => one.pid === pid);
    if (alive && /^(postgres|postmaster|edb-postgres)$/.test(alive.program) && !isOurs(pid)) return [found(`${alive.program} (process ${pid}) has its socket in ${named(folder)}`, 'PostgreSQL does not start', 'refused')];
  }
  const listeners = listenersOf(Number(port)).filter((inode) => !everyone.some(({ pid }) => holds(pid, inode) && places.has(workingFolder(pid))));
  if (listeners.length === 0) return [];
  const holder = everyone.find(({ pid }) => listeners.some((inode) => holds(pid, inode)));
  const wanted = (settings.listen_addresses ?? 'localhost').split(',').map((one) => one.trim()).filter((one) => one !== '');
  const addresses = (await Promise.all(wanted.map(async (one) => (one === '*' ? ['0.0.0.0', '::'] : (await lookup(one, { all: true }).catch(() => [])).map(({ address }) => address))))).flat();
  const free = await Promise.all(addresses.map((address) => canListen(Number(port), address)));
  if (free.every((one) => one)) return [];
  const here = holder ? `${holder.program} (process ${holder.pid}) listens on it` : 'somebody listens on it';
  return [free.some((one) => one) ? found(here, 'PostgreSQL starts, but not on every address', 'note') : found(here, 'PostgreSQL does not start', 'refused')];
}

// The inodes of the sockets that listen on a TCP port (proc(5), /proc/net/tcp: state 0A).
function listenersOf(port) {
  const text = ['tcp', 'tcp6'].map((one) => { try { return fs.readFileSync(`/proc/net/${one}`, 'utf8'); } catch { return ''; } }).join('');
  const hex = port.toString(16).toUpperCase().padStart(4, '0');
  return text.split('\n').map((line) => line.trim().split(/\s+/)).filter((fields) => fields[1]?.endsWith(`:${hex}`) && fields[3] === '0A').map((fields) => fields[9]);
}

function holds(pid, inode) {
  try {
    return fs.readdirSync(`/proc/${pid}/fd`).some((fd) => { try { return fs.readlinkSync(`/proc/${pid}/fd/${fd}`) === `socket:[${inode}]`; } catch { return false; } });
  } catch {
    return false;
  }
}

// Tried for a moment, and only where somebody else listens on the same port: addresses overlap in more ways than one wants to know.
function canListen(port, host) {
  return new Promise((resolve) => {
    const server = createServer();
    server.once('error', () => resolve(false));
    server.listen({ port, host, ipv6Only: true }, () => server.close(() => resolve(true)));
  });
}

// =========================================================================================================
// ==== INSTALLED ====
// Installed: what a cluster needs beside PostgreSQL itself: libraries, extensions, dictionaries.
// Given what an empty cluster of the same version could do here, says what is missing, older, or does not fit. Only judges.

const PRELOADED = { shared_preload_libraries: 'PostgreSQL does not start', session_preload_libraries: 'nobody can connect', local_preload_libraries: 'nobody can connect' };
const preloads = (text) => text.split(',').map((one) => one.trim().replace(/^"(.*)"$/, '$1')).filter((one) => one !== '');

/** The libraries a cluster loads: at its start, at each connection, for its functions, for its slots. The same one may be here more than once. */
function librariesOf(told) {
  const inPlugins = (name, library) => (name === 'local_preload_libraries' && !library.includes('/') ? `$libdir/plugins/${library}` : library);
  const preloaded = Object.entries(PRELOADED).flatMap(([name, breaks]) => preloads(told.preloadLibraries?.[name] ?? '').map((one) => ({ library: inPlugins(name, one), breaks: `${breaks} (${name})`, verdict: 'refused' })));
  const byRole = (told.roleSettings ?? []).flatMap(({ role, database, settings }) => Object.keys(PRELOADED).flatMap((name) => preloads(settings?.[name] ?? '')
    .map((one) => ({ library: inPlugins(name, one), breaks: `${[role && `role ${role}`, database && `database ${database}`].filter(Boolean).join(' in ')} cannot connect (${name})`, verdict: 'refused' }))));
  const used = new Map();
  for (const { name, libraries } of told.databases) for (const one of libraries ?? []) used.set(one, [...used.get(one) ?? [], name]);
  const slots = (told.slots ?? []).flatMap(({ slot_name: name, plugin }) => (plugin ? [{ library: plugin, breaks: `nobody can read slot ${name}`, verdict: 'note' }] : []));
  const archiver = told.settings?.archive_library ? [{ library: told.settings.archive_library, breaks: 'WAL is not archived', verdict: 'note' }] : [];
  return [...preloaded, ...byRole, ...[...used].map(([library, names]) => ({ library, breaks: `functions and indexes that use it fail in ${listed(names)}`, verdict: 'refused' })), ...slots, ...archiver];
}

// LOAD may fail because a library wants to be loaded at the start (pg_cron); then it is here. Only what says that it is not, or does not fit, counts.
const NOT_LOADED = /^(ERROR: +)?(could not access file|could not load library|incompatible library).*/m;

function libraryFindings(cluster, told, abilities) {
  const elsewhere = (told.settings?.dynamic_library_path ?? '').split(':').filter((one) => one.startsWith('/'));
  const isThere = (library) => [library, ...elsewhere.map((one) => path.join(one, library))].some((file) => path.isAbsolute(file) && (fs.existsSync(file) || fs.existsSync(`${file}.so`)));
  return librariesOf(told).flatMap(({ library, breaks, verdict }) => {
    const failed = LOADABLE.test(library) ? abilities.libraries[library] ?? '' : 'missing';
    if (LOADABLE.test(library) ? !NOT_LOADED.test(failed) : cluster.container) return [];
    if (isThere(library)) return [];
    const here = failed === 'missing' || /^could not access file.*No such file/.test(failed) ? 'missing' : failed;
    return [finding(told.name, `library ${library}`, { recorded: 'in use', here, breaks, verdict })];
  });
}

function extensionsOf(told) {
  const found = new Map();
  for (const database of told.databases) {
    for (const { name, version } of database.extensions ?? []) {
      const key = JSON.stringify([name, version]);
      found.set(key, { name, version, databases: [...found.get(key)?.databases ?? [], database.name] });
    }
  }
  return [...found.values()];
}

// Whether the first version is the newer one: '3.10.1' is newer than '3.9'.
function isNewer(one, other) {
  const [mine, theirs] = [one, other].map((version) => version.split(/[.-]/).map((part) => parseInt(part) || 0));
  const at = mine.findIndex((part, i) => part !== (theirs[i] ?? 0));
  return at >= 0 && mine[at] > (theirs[at] ?? 0);
}

/**
 * An extension's objects are in the database; from here come its library (judged on its own) and its scripts, which tell
 * what version the library is of.
 */
function extensionFindings(told, abilities) {
  return extensionsOf(told).flatMap(({ name, version, databases }) => {
    const { control, known } = abilities.extensions[name] ?? {};
    if (!control || !known) return [];
    if (known.failed !== undefined) {
      return [finding(told.name, `extension ${name}`, { recorded: version, here: 'no control file', verdict: 'note', breaks: `what ${listed(databases)} hold of it works as far as its library does; it cannot be updated, and no dump with it restored here` })];
    }
    const own = /^\s*default_version\s*=\s*'([^']+)'/m.exec(control.is ?? '')?.[1], versions = [...known.is ?? [], ...(own ? [own] : [])];
    if (versions.length === 0 || versions.includes(version)) return [];
    const here = own ?? versions.reduce((best, one) => (isNewer(one, best) ? one : best));
    if (!isNewer(version, here)) return [finding(told.name, `extension ${name}`, { recorded: version, here, verdict: 'note', breaks: `no script leads from ${version} to ${here}: after ALTER EXTENSION ... UPDATE is asked for, ${listed(databases)} may need it made anew` })];
    const hasLibrary = /^\s*module_pathname/m.test(control.is ?? '');
    return [finding(told.name, `extension ${name}`, { recorded: version, here: `${here}, older`, verdict: hasLibrary ? 'refused' : 'note',
      breaks: hasLibrary ? `functions that came after ${here} are not in the library here, and fail in ${listed(databases)}` : `what ${listed(databases)} hold of it works; no dump with it can be restored here` })];
  });
}

const DICTIONARY_FILES = { dictfile: ['dict', 'ths'], afffile: ['affix'], stopwords: ['stop'], synonyms: ['syn'], rules: ['rules'] };

/** The files that dictionaries of text search read, each under the names it may have. */
function dictionaryFiles(told) {
  return told.databases.flatMap(({ name: database, dictionaries }) => (dictionaries ?? []).flatMap(({ name: dictionary, options }) => [...String(options ?? '').matchAll(/(\w+)\s*=\s*'([a-z0-9_]+)'/gi)]
    .flatMap(([, option, file]) => (DICTIONARY_FILES[option.toLowerCase()] ? [{ database, dictionary, names: DICTIONARY_FILES[option.toLowerCase()].map((kind) => `${file}.${kind}`) }] : []))));
}

function dictionaryFindings(cluster, told, abilities) {
  // Debian's are links into /var/cache/postgresql, which the sandbox does not show.
  const isThere = (names) => abilities.files[names[0]] || (!cluster.container && names.some((name) => fs.existsSync(path.join(abilities.share, 'tsearch_data', name))));
  return dictionaryFiles(told).filter(({ names }) => !isThere(names)).map(({ database, dictionary, names }) => finding(told.name, `dictionary ${dictionary}`, { recorded: names[0], here: 'missing', verdict: 'after',
    breaks: `text search with it fails in ${database}`, mend: [`# copy ${path.join(abilities.share, 'tsearch_data', names[0])} from the saved server or its backup`] }));
}

// =========================================================================================================
// ==== AHEAD ====
// Ahead: what the judge says of partners when a cluster goes back in time (see PARTNERS).
// Only makes text; names in it are quoted.

// What is said of each kind of partner: what goes wrong in silence, and the commands against it, the last ones for a person.
const PARTNERS = {
  subscription: ({ name, database }, psql) => ({ about: `subscription ${name} of ${database}`, breaks: 'what was sent here after this backup is not sent again, and no error says so', mend: [
    `${psql('-d', database, '-Atc', `select subconninfo, subpublications, subslotname from pg_subscription where subname = '${name.replaceAll("'", "''")}'`)}   # keep the answer`,
    psql('-d', database, ...['disable', 'set (slot_name = none)'].flatMap((what) => ['-c', `alter subscription ${quotedName(name)} ${what}`]), '-c', `drop subscription ${quotedName(name)}`),
    `# there: select pg_drop_replication_slot(...); here: truncate its tables, then create the subscription as it was: it copies all rows anew`] }),
  slot: ({ name, database }) => ({ about: `slot ${name}${database && ` of ${database}`}`, breaks: 'its reader is ahead of these files: what is written here is not sent to it, without an error, until as much is written as was lost', mend: [
    '# there: save what it has more than these files; then make its subscription anew (disable it, set slot_name = none, drop it), drop this slot here, truncate its tables, create it again'] }),
  standby: ({ name }) => ({ about: `standby ${name}`, breaks: 'it is ahead of these files, and cannot follow them', mend: ['# there: make it anew with pg_basebackup'] }),
  primary: () => ({ about: 'its primary', breaks: 'it follows only while its primary has all WAL since this backup', verdict: 'note', mend: ['# its log says "requested WAL segment ... has already been removed"? Then make it anew with pg_basebackup'] }),
  bucardo: ({ database }) => ({ about: `Bucardo in ${database}`, breaks: 'what was exchanged after this backup is not exchanged again, and no error says so', mend: [
    '# on the other side: UPDATE table SET column = column, of every row that may be newer, and Bucardo sends it anew; what was deleted there since is deleted here by hand'] }),
};

/** Given a cluster's passport and the words of its psql, returns what is to be done with each who holds the same data, and went on. */
function partnerFindings(told, psqlWords) {
  const psql = (...words) => pasteable([...psqlWords, ...words]);
  return partnersOf(told).map((one) => {
    const { about, ...facts } = PARTNERS[one.kind](one, psql);
    return finding(told.name, about, { recorded: 'at work', here: 'may have gone on', verdict: 'after', ...facts });
  });
}

// =========================================================================================================
// ==== JUDGE ====
// The judge: would these files work on this machine?
// It compares an archive's passport with what is here, before anything is touched, and says of each difference what it would
// break and the command that mends it. It only looks; what the programs can do it asks of an empty cluster of the same version,
// made in the sandbox and thrown away.
// Names out of an archive appear in the commands it prints, always quoted; it runs none of them.

const OTHER_MAJOR = 'files of one major version are nothing to another';
const VERDICTS = ['refused', 'after', 'note'];

/**
 * Given an archive's manifest, the clusters that are meant, and a folder for the empty cluster, returns what differs, the worst first; [] = all is
 * as it was. What could not be judged is a 'note'. Throws only when somebody asked to stop.
 */
async function judge(manifest, clusters, options) {
  const findings = await machineFindings(manifest, clusters), groups = new Map();
  for (const cluster of clusters) {
    findings.push(...await portFindings(manifest, cluster, clusters));
    const told = manifest.postgres.find((one) => one.dataDirectory === cluster.dataDirectory), box = await containerHere(cluster), programs = await programsFor(cluster, manifest, box);
    if (!programs) findings.push(await noPrograms(manifest, cluster));
    else if (cluster.container && !box) findings.push(noContainer(manifest, cluster));
    if (told) findings.push(...partnerFindings(told, psqlWords(cluster, told)));
    if (programs && told) groups.set(JSON.stringify(programs), { programs, cases: [...groups.get(JSON.stringify(programs))?.cases ?? [], { cluster, told }] });
    if (!told?.answers) findings.push(notJudged(cluster.name, 'its databases', 'the cluster did not answer when it was saved: its extensions, locales and collations are not on record'));
  }
  for (const { programs, cases } of groups.values()) findings.push(...await askPrograms(manifest, programs, cases, options.scratch));
  return findings.sort((one, other) => VERDICTS.indexOf(one.verdict) - VERDICTS.indexOf(other.verdict));
}

// The image of the cluster's container, if that is here.
async function containerHere({ container }) {
  return /^[a-zA-Z0-9][\w.-]*$/.test(container) ? (await look(['docker', 'inspect', '--type=container', '--format={{.Image}}', container])).out.trim() : '';
}

// A container that is here runs in its own image, whatever image the archive speaks of.
async function programsFor(cluster, manifest, image) {
  if (image) return { version: cluster.version, binaries: cluster.binaries, image };
  const programs = await findPrograms(cluster, manifest);
  return cluster.container && !programs?.image ? null : programs;
}

function noContainer(manifest, { name, container }) {
  const box = manifest.containers.find((one) => one.name === container);
  const compose = box?.composeService ? [pasteable(['docker', 'compose', ...box.composeFiles.flatMap((file) => ['--file', file]), '--project-name', box.composeProject, 'up', '--no-start', box.composeService])] : [];
  return finding(name, `container ${container}`, { recorded: box?.image ?? '', here: 'missing', breaks: 'its files come back, but nothing runs on them', verdict: 'after', mend: compose.length > 0 ? compose : ['# make the container again, with the mounts that record/manifest.json of the archive tells'] });
}

async function noPrograms(manifest, cluster) {
  const box = manifest.containers.find((one) => one.name === cluster.container);
  if (cluster.container) {
    const name = box?.imageDigests[0] ?? '', docker = (await look(['docker', 'version'])).code;
    return finding(cluster.name, 'image', { recorded: name || box?.image || '', here: docker === 0 ? 'missing' : docker === 127 ? 'no Docker' : 'Docker does not answer', breaks: 'the container cannot be started',
      mend: [...(docker === 127 ? ['apt-get install --yes docker.io'] : []), ...(name ? [pasteable(['docker', 'pull', name])] : ['# this image was made on the saved server: build it again as there, or bring it with `docker save`']),
        ...(name && box?.image ? [pasteable(['docker', 'tag', name, box.image])] : [])] });
  }
  const here = ['/usr/lib/postgresql', '/usr'].flatMap((folder) => (fs.existsSync(folder) ? fs.readdirSync(folder) : [])).flatMap((name) => /^(?:pgsql-)?(\d\d)$/.exec(name)?.[1] ?? []);
  const [packages] = neededPackages(manifest, cluster);
  return finding(cluster.name, 'PostgreSQL', { recorded: cluster.version, here: here.join(', ') || 'none', mend: await install(packages, cluster.version),
    breaks: `${OTHER_MAJOR}${fs.existsSync('/etc/debian_version') ? `; Debian makes and starts a cluster ${cluster.version}/main of its own with the packages, which the restore moves aside` : ''}` });
}

/** Everything that only the programs themselves can say, of all clusters that run by them, from one empty cluster. */
async function askPrograms(manifest, programs, cases, scratch) {
  let trial = null;
  try {
    trial = await startTrial(programs, scratch);
    if (!trial) return cases.map(({ told }) => finding(told.name, 'PostgreSQL', { recorded: told.version, here: `no ${path.join(programs.binaries, 'initdb')}${programs.image ? ' in the image of the container here' : ''}`, breaks: OTHER_MAJOR }));
    const abilities = await askAbilities(trial, {
      extensions: [...new Set(cases.flatMap(({ told }) => extensionsOf(told).map((one) => one.name)))],
      libraries: [...new Set(cases.flatMap(({ told }) => librariesOf(told).map((one) => one.library)))],
      settings: cases.flatMap(({ told }) => placeSettings(told)), files: cases.flatMap(({ told }) => dictionaryFiles(told).map((one) => one.names)),
    });
    const orders = new Map(), libc = trial.system.libc ?? '';
    for (const { told } of cases) await ordersOf(trial, told, orders);
    const files = new Map();
    for (const { cluster, told } of cases) files.set(told, await withMeans(manifest, cluster, told, [...libraryFindings(cluster, told, abilities), ...extensionFindings(told, abilities), ...dictionaryFindings(cluster, told, abilities)]));
    return cases.flatMap(({ cluster, told }) => [
      ...compiledFindings(told, abilities), ...files.get(told), ...settingFindings(cluster, told, abilities),
      ...collationFindings(told, orders, { there: (told.system ?? manifest.host).libc, here: libc }, psqlWords(cluster, told), (locale) => makeLocale(locale, cluster)),
    ]);
  } catch (error) {
    if (!(error instanceof Problem) || askedToStop()) throw error;
    const why = [error.message, lastLines(error.facts.said ?? '', 2)].filter((one) => one !== '').join(': ');
    return cases.map(({ cluster }) => notJudged(cluster.name, 'extensions, locales and collations', `no empty cluster can be asked: ${why}`));
  } finally {
    await trial?.end();
  }
}

// What is fixed when PostgreSQL is compiled, as pg_controldata and as pg_control_system() and pg_control_init() call it: the server refuses files that differ in any.
const COMPILED = { 'pg_control version number': 'pg_control_version', 'Catalog version number': 'catalog_version_no', 'Maximum data alignment': 'max_data_alignment', 'Database block size': 'database_block_size',
  'Blocks per segment of large relation': 'blocks_per_segment', 'WAL block size': 'wal_block_size', 'Maximum length of identifiers': 'max_identifier_length', 'Maximum columns in an index': 'max_index_columns',
  'Maximum size of a TOAST chunk': 'max_toast_chunk_size', 'Size of a large-object chunk': 'large_object_chunk_size', 'Float8 argument passing': 'float8_pass_by_value' };

function compiledFindings(told, abilities) {
  const found = [], number = Math.floor(abilities.number / 10000);
  const recordedMinor = /^PostgreSQL \d+\.(\d+)/.exec(told.serverVersion ?? '')?.[1];
  if (String(number) !== told.version) return [finding(told.name, 'PostgreSQL', { recorded: told.version, here: String(number), breaks: OTHER_MAJOR })];
  for (const [label, name] of Object.entries(COMPILED)) {
    const plain = (value) => String(value).replace('by value', 'true').replace('by reference', 'false');
    const recorded = told.controlData[label] ?? told.controlData[name], here = abilities.control[name];
    if (recorded === undefined || here === undefined || plain(recorded) === plain(here)) continue;
    found.push(finding(told.name, label.toLowerCase(), { recorded: String(recorded), here: String(here), breaks: 'this PostgreSQL is compiled otherwise and refuses the files', mend: ['# install the same build of PostgreSQL'] }));
  }
  if (recordedMinor && Number(recordedMinor) > abilities.number % 10000) {
    found.push(finding(told.name, 'minor version', { recorded: `${told.version}.${recordedMinor}`, here: abilities.version, breaks: 'it works, without the repairs made since', verdict: 'note', mend: [`apt-get install --only-upgrade postgresql-${told.version}`] }));
  }
  return found;
}

// How to bring what is missing: the packages of the saved server that are not here, or, when all are, these same ones anew.
async function withMeans(manifest, cluster, told, findings) {
  if (findings.length === 0) return [];
  const digest = manifest.containers.find((one) => one.name === cluster.container)?.imageDigests[0];
  const [all, missing] = neededPackages(manifest, cluster, new Set((await look(['dpkg-query', '--show', '--showformat', '${db:Status-Abbrev}\t${Package}\n'])).out.split('\n').flatMap((line) => (line.startsWith('ii') ? [line.split('\t')[1]] : []))));
  const packages = missing.length > 0 ? await install(missing, cluster.version) : [pasteable(['apt-get', 'install', '--reinstall', '--yes', ...all])];
  const unowned = (told.packages ?? manifest.packages).unowned;
  const means = ({ about }) => {
    const file = unowned.find((one) => path.basename(one) === `${path.basename(about.replace(/^library /, ''))}.so`);
    if (file) return [`# it came in no package: copy ${pasteable([file])} from the saved server or its backup`];
    return cluster.container ? [digest ? pasteable(['docker', 'pull', digest]) : '# make the container from the image it had'] : packages;
  };
  return findings.map((one) => ({ ...one, mend: one.mend.length > 0 ? one.mend : means(one) }));
}

/** The settings whose values are names of something on the machine: PostgreSQL does not start with one it does not know. */
function placeSettings(told) {
  return Object.entries(told.settings ?? {}).filter(([name]) => /^(lc_(messages|monetary|numeric|time)|timezone|log_timezone)$/i.test(name));
}

function settingFindings(cluster, told, abilities) {
  return placeSettings(told).filter(([name, value]) => abilities.settings[`${name}=${value}`]).map(([name, value]) => finding(told.name, `setting ${name}`, { recorded: value, here: 'not known here',
    breaks: 'PostgreSQL does not start', mend: /zone/i.test(name) ? ['apt-get install --yes tzdata', 'apt-get install --yes tzdata-legacy   # Debian 13 and newer keep old names there'] : makeLocale(value, cluster) }));
}

/** The commands that make a locale here. */
function makeLocale(locale, cluster) {
  const [, language, codeset, modifier = ''] = /^([a-z]{2,3}_[A-Z]{2})(?:\.([\w-]+))?(@\w+)?$/.exec(locale) ?? [];
  if (cluster.container) return ['# the image lacks it: make the container from the image it had'];
  if (!language) return ['apt-get install --yes locales-all'];
  if (fs.existsSync('/usr/bin/dnf')) return [`dnf install glibc-langpack-${language.split('_')[0]}`];
  const charset = !codeset ? 'ISO-8859-1' : /^utf-?8$/i.test(codeset) ? 'UTF-8' : codeset.toUpperCase().replace(/^ISO-?8859-?/, 'ISO-8859-');
  return ['apt-get install --yes locales', `echo '${language}${codeset ? `.${charset}` : ''}${modifier} ${charset}' >> /etc/locale.gen && locale-gen`];
}

/** The words before `-d DATABASE` that ask this cluster, once it runs, as its superuser. */
function psqlWords(cluster, told) {
  const superuser = told.roles?.find((one) => one.rolsuper)?.rolname;
  if (cluster.container) return ['docker', 'exec', '--user', String(cluster.uid), cluster.container, 'psql', ...(superuser ? ['-U', superuser] : [])];
  return ['runuser', '-u', cluster.owner, '--', 'psql', ...(cluster.socketFolder ? ['-h', cluster.socketFolder] : []), ...(cluster.port ? ['-p', cluster.port] : [])];
}

// =========================================================================================================
// ==== MEASURE ====
// What is about to be extracted: how many files and bytes, which links, and whether all stays inside.
// borg must not write outside the folder it is given. Only looks: at borg's listing of an archive, or at the listing in the
// state folder when it is the same archive's.

const nothingYet = () => ({ files: 0, entries: 0, bytes: 0, above: [], links: new Map() });

function add(listed, isFolder, bytes) {
  listed.entries++;
  listed.files += isFolder ? 0 : 1;
  listed.bytes += bytes;
}

/**
 * Given an archive and paths (none: all of it), returns what they are. Throws Problem when a path is not there, or when
 * extracting them is not safe.
 */
async function measure(settings, archive, wanted, more = [], options = {}) {
  const listed = nothingYet(), seen = new Set(), parents = new Set(foldersAbove(wanted));
  const why = watchEntries(listed.links);
  let trouble = '';
  const onLine = (line) => {
    if (trouble) return;
    const one = parseEntry(line), file = `/${one?.path}`;
    trouble = one ? why(one) : 'a line of its listing cannot be read';
    if (!one || trouble) return;
    const roots = wanted.filter((root) => isBelow(file, root));
    roots.forEach((root) => seen.add(root));
    if (roots.length === 0 && parents.has(file)) return void listed.above.push(file);
    add(listed, one.type === 'd', one.type === '-' ? one.size : 0);
  };
  const done = await askBorg(settings, ['list', ...more, '--json-lines', '--format', '{size}{path}', `::${archive}`, ...[...parents].map(asExactly), ...wanted.map(asPattern)], { ...options, onLine, keepBytes: 0 });
  if (done.code !== 0 && !borgOnlyWarned(done.code)) throw borgFailure(`${archive} cannot be listed`, done);
  if (trouble) throw unsafe(archive, trouble);
  const missing = wanted.filter((root) => !seen.has(root)), link = listed.above.find((one) => listed.links.has(one));
  if (missing.length > 0 && link) throw new Problem(`not in ${archive}: ${named(missing[0])}`,
    { hint: `${named(link)} is a link to ${named(listed.links.get(link))}: name the path below that` });
  if (missing.length > 0) throw notInArchive(archive, missing);
  return listed;
}

/**
 * The same from the state folder: the listing of what this server saved last, when that is this archive. borg reads its own for a second and more.
 * A hard link counts as a file of its own there. Returns null when borg has to be asked: another archive, or something about a path that only borg's listing tells.
 */
async function measureOwn(settings, archive, wanted) {
  const file = listingFile(settings.stateFolder), record = recordFolder(settings.stateFolder);
  if (!ownManifest(settings.stateFolder, archive) || !fs.existsSync(file)) return null;
  const listed = nothingYet(), seen = new Set(), parents = new Set(foldersAbove(wanted));
  const isRead = await eachRecord(file, (line) => {
    const [type = '', , , , bytes] = line.split('\t'), one = pathIn(line);
    if (type === 'l') listed.links.set(one, '');
    const isMeant = wanted.length === 0 || wanted.some((root) => isBelow(one, root));
    if (wanted.includes(one)) seen.add(one);
    if (isMeant && type !== 's') add(listed, type === 'd', type === 'f' ? Number(bytes) : 0);
    else if (parents.has(one)) listed.above.push(one);
  }).then(() => ownManifest(settings.stateFolder, archive) !== '', () => false); // a night that begins meanwhile makes a new record
  if (!isRead) return null;
  if (wanted.length === 0) for (const name of fs.readdirSync(record)) add(listed, false, fs.statSync(path.join(record, name)).size);
  return wanted.every((one) => seen.has(one) && !listed.links.has(one)) ? listed : null;
}

const foldersAbove = (files) => files.flatMap((file) => file.split('/').slice(2).map((_, index) => file.split('/').slice(0, index + 2).join('/')));
const asExactly = (file) => `re:^${file.slice(1).replace(/[.*+?^${}()|[\]\\]/g, '\\$&')}\\Z`; // borg 1.2 complains of every pf: that it never matched

function parseEntry(line) {
  try {
    const one = JSON.parse(line);
    return typeof one.path === 'string' ? one : null;
  } catch {
    return null;
  }
}

const unsafe = (archive, why) => new Problem(`${archive} is not safe to extract: ${why}. Files would be written outside the folder, so nothing was`,
  { hint: 'restore only the paths you need, if you trust them; if nobody made such links on the server, somebody made this archive to harm you' });

/**
 * borg writes through a link that the archive itself holds, follows `..` in names, and makes hard links to files outside (tried with 1.2.4). Returns
 * a function that is given every entry in the archive's order and says what is unsafe about it, '' when nothing is. Remembers only links, in `links`.
 */
function watchEntries(links) {
  const isOdd = (file) => /(^|\/)\.{0,2}(\/|$)/.test(file); // begins with /, or has an empty part, . or ..
  let folder = '', link = ''; // of the last entry: most entries lie in the same folder
  const linkAbove = (file) => {
    const own = path.posix.dirname(file);
    if (own !== folder) {
      folder = own;
      link = links.size === 0 ? '' : foldersAbove([`/${file}`]).find((one) => links.has(one)) ?? '';
    }
    return link;
  };
  return (one) => {
    const isHardLink = one.type !== 'l' && Boolean(one.source);
    if (isOdd(one.path) || (isHardLink && isOdd(one.source))) return `${named(one.path)} leads out of it`;
    const above = linkAbove(one.path) || (isHardLink ? linkAbove(`${one.source}/.`) : '');
    if (above) return `${named(`/${one.path}`)} lies below ${named(above)}, a link`;
    if (one.type === 'l') {
      links.set(`/${one.path}`, one.source);
      folder = ''; // what was said of this folder may not hold any more
    }
    return '';
  };
}

// =========================================================================================================
// ==== COMING BACK ====
// Coming back: `restore ... --to FOLDER` lays an archive, or part of it, into an empty folder.
// Writes only below that folder, which must be empty: nothing that exists is ever overwritten. Stops nothing, starts nothing. What would be
// written elsewhere (an archive can be made so) is refused before anything is written. What an archive says of itself (its manifest) is used
// for owners and modes of folders below FOLDER, and for nothing else.

/**
 * `restore ARCHIVE|latest [PATH ...] --to FOLDER`. Given the words, the folder and whether links are to be mended, extracts whole paths
 * below the folder: owners by name where they belong to this host's users, by number in container volumes, modes, xattrs,
 * ACLs, hard links, holes. Returns 0, or 1 with warnings. Throws Problem: nothing was touched, or the folder holds what came until then.
 */
async function restoreTo(settings, server, words, to, mendLinks) {
  const [name = '', ...paths] = words;
  const asked = paths.map((one) => path.resolve('/', one)).filter((one, _, all) => !all.includes('/') && one !== '/');
  const target = path.resolve(to);
  refuseUsedFolder(target);
  const { archive, manifest, listed, wanted } = await lookAt(settings, server, name, asked);
  await refuseWithoutRoom(target, listed, () => measure(settings, archive, wanted));
  warnOfLinks(wanted, listed);
  fs.mkdirSync(target, { recursive: true, mode: 0o700 });
  const held = heldFolder(target);
  makeParents(held, manifest, wanted);
  for (const { argv, title } of extractCommands(archive, manifest, wanted, listed.above)) (await extract(settings, argv, target, title, {}, held)).damaged.forEach((one) => warn(one));
  if (mendLinks) {
    mendClusterLinks(target, held, manifest);
    fs.chmodSync(held, 0o711); // PostgreSQL's user has to pass, now that root has done its work there
  }
  if (!mendLinks && manifest.plan.clusters.some((one) => fs.existsSync(pathBelow(target, one.dataDirectory)) && hasLinks(one))) {
    warn('links of a cluster (WAL or tablespaces) still lead to the places on its server: before you start it here, restore with --mend-links');
  }
  if (mode.json) answer(JSON.stringify({ archive, folder: target, files: listed.files, bytes: listed.bytes }));
  sayBlock(`restored ${count(listed.files, 'file')}, ${size(listed.bytes)}, from ${archive} into ${named(target)}`);
  return warnings.length > 0 ? 1 : 0;
}

const pathBelow = (target, file) => path.join(target, path.resolve('/', file)); // never above the folder, whatever the archive says
const hasLinks = (cluster) => cluster.tablespaces.length > 0 || path.basename(cluster.walFolder) !== 'pg_wal' || path.dirname(cluster.walFolder) !== cluster.dataDirectory;

/**
 * Everything that has to be known before a restore, given the archive's name or 'latest' and paths (none: all): the archive, its manifest, the paths as they
 * were saved, and what they are. A start of borg over ssh takes a second or more, so the looks are made side by side; what `latest` will turn out to be is guessed
 * from the history meanwhile. Throws Problem when it is not there, must not be restored from, or would write outside the folder it is extracted to.
 */
async function lookAt(settings, server, name, wanted) {
  const looks = (archive) => Promise.allSettled([readManifest(settings, archive), measureOwn(settings, archive, wanted).then((own) => own ?? measure(settings, archive, wanted))]);
  const guess = name === 'latest' ? lastGoodRun(settings.stateFolder)?.archive ?? '' : name;
  const [[archives], guessed] = await Promise.all([Promise.allSettled([orWrongBorg(listArchives(settings, server))]), guess ? looks(guess) : null]); // no borg is left behind when one fails
  if (archives.status === 'rejected') throw archives.reason;
  const archive = archiveMeant(archives.value, name);
  if (name === 'latest') warnUnlessOurs(settings.stateFolder, archives.value, archive);
  const [manifest, listed] = archive === guess && guessed ? guessed : await looks(archive);
  const isOther = archives.value.some((one) => one.archive === archive && one.kind === 'other');
  if (manifest.status === 'rejected' && !isOther) throw manifest.reason;
  const record = manifest.status === 'fulfilled' ? manifest.value : NO_RECORD, meant = listed.status === 'rejected' ? wanted.map((one) => asSaved(record, one)) : wanted;
  if (listed.status === 'rejected' && meant.every((one) => wanted.includes(one))) throw listed.reason;
  const found = listed.status === 'fulfilled' ? listed.value : await measure(settings, archive, meant);
  for (const [index, one] of meant.entries()) if (one !== wanted[index]) say(`${named(wanted[index])} was reached over a link, and saved as ${named(one)}`);
  for (const root of record.plan.roots) { // volumes are extracted in a pass of their own, whatever the order in the archive
    const link = [...found.links.keys()].find((one) => one !== root.path && isBelow(root.path, one));
    if (link) throw unsafe(archive, `${named(root.path)} lies below ${named(link)}, a link`);
  }
  return { archive, manifest: record, listed: found, wanted: meant };
}

// Another tool's archive has no record: its files come back, and what stands around them is not known.
const NO_RECORD = { plan: { roots: [], clusters: [] }, parents: [] };

function refuseUsedFolder(target) {
  const facts = fs.lstatSync(target, { throwIfNoEntry: false });
  if (facts && (!facts.isDirectory() || fs.readdirSync(target).length > 0)) {
    throw new Problem(`${named(target)} is not an empty folder: nothing is ever extracted over something`,
      { exitCode: 64, hint: 'name a new folder; it is made' });
  }
  if (facts && (facts.uid !== process.getuid?.() || (facts.mode & 0o022) !== 0)) throw new Problem(`others can write to ${named(target)}, and could lay links there while it is filled`,
    { exitCode: 64, hint: 'name a new folder; it is made' });
}

// A link comes back as a link: who names one usually wants what it leads to.
function warnOfLinks(wanted, { links }) {
  for (const one of wanted) {
    const to = links.get(one);
    if (to && !wanted.includes(path.resolve(path.dirname(one), to))) warn(`${named(one)} is a link to ${named(to)}: only the link is restored; name what it leads to as well`);
  }
}

// Told to be too large, it is asked of borg again: a hard link takes no room.
async function refuseWithoutRoom(target, listed, again) {
  let place = target;
  while (!fs.existsSync(place)) place = path.dirname(place);
  const free = freeBytes(place), room = ({ bytes, entries }) => bytes + entries * 4096 + 64e6, needed = free < room(listed) ? room(await again()) : 0;
  if (free < needed) throw new Problem(`${named(place)} has ${size(free)} free, ${size(needed)} are needed`,
    { hint: 'restore to another disk, or only the paths you need' });
}

// borg makes missing folders above a saved path as root, mode 0700, and PostgreSQL could not pass: they are made as they were.
function makeParents(target, manifest, wanted) {
  const roots = manifest.plan.roots.map((root) => root.path).filter((root) => wanted.length === 0 || wanted.some((one) => isBelow(root, one) || isBelow(one, root)));
  for (const parent of manifest.parents.filter((one) => roots.some((root) => isBelow(root, one.path)))) {
    const folder = pathBelow(target, parent.path);
    fs.mkdirSync(folder, { recursive: true });
    if (process.getuid?.() === 0) fs.chownSync(folder, parent.uid, parent.gid);
    fs.chmodSync(folder, parseInt(parent.mode, 8) & 0o7777);
  }
}

/**
 * The borg commands that extract paths (none: all) and the folders of the archive above them. A cluster on the host belongs to the user of that
 * name here; what lies in a container's volume belongs to a number, whoever has it here: so there may be two.
 */
function extractCommands(archive, manifest, wanted, above) {
  const volumes = manifest.plan.roots.filter((root) => root.why.startsWith('volume ')).map((root) => root.path);
  const command = (more, patterns) => ['borg', '--log-json', '--progress', 'extract', '--sparse', ...more, `::${archive}`, ...patterns];
  const isVolume = (file) => volumes.some((volume) => isBelow(file, volume));
  const patterns = (isMeant, whole) => [...above.filter(isMeant).map(asExactly), ...outermost(whole).map(asPattern)];
  const byName = patterns((file) => !isVolume(file), wanted.filter((file) => !isVolume(file)));
  const nested = volumes.filter((volume) => wanted.length === 0 || wanted.some((file) => !isVolume(file) && isBelow(volume, file)));
  const numbered = patterns(isVolume, [...wanted.filter(isVolume), ...nested]);
  if (numbered.length === 0) return [{ title: 'restore', argv: command([], byName) }];
  return [
    ...(wanted.length === 0 || byName.length > 0 ? [{ title: 'restore by name', argv: command(volumes.flatMap((volume) => ['--exclude', asPattern(volume)]), byName) }] : []),
    { title: 'restore by number', argv: command(['--numeric-ids'], numbered) },
  ];
}

/**
 * Extract with a progress line. What borg warns of is a warning. Returns whether it warned, and a line for each file that it calls damaged: that is there, with zeros
 * where `borg check --repair` found a chunk missing. Throws Problem when it failed: the folder then holds what came until then.
 */
async function extract(settings, argv, target, title, mark = {}, cwd = target) {
  const progress = showProgress(title), damaged = [];
  const onErrorLine = (line) => { // of all that it says only the end is kept
    progress.onLine(line);
    const note = /BackupError|damaged|inconsisten/.test(line) ? parseLine(line) : null; // borg 1.2 says why; 1.4.0 "backup error", and its message id tells
    const [, file] = /^(.*): (?:backup error|File has damaged .*chunks|Size inconsistency detected)/s.exec(note?.message ?? '') ?? [];
    if ((file !== undefined || note?.msgid === 'BackupError') && damaged.length < 100) damaged.push(`${named(file === undefined ? note.message : `/${file}`)} is damaged in the repository: borg has zeros for what is missing`);
  };
  const done = await change(argv, { cwd, env: { ...borgEnvironment(settings), BORG_RELOCATED_REPO_ACCESS_IS_OK: 'yes', ...mark }, onErrorLine });
  goOn();
  if (done.code !== 0 && !borgOnlyWarned(done.code)) throw borgFailure(`${title} failed${progress.underWay() ? ` at /${progress.underWay()}` : ''}; what came until then is in ${named(target)}`, done);
  if (done.code !== 0) warn(`borg warned while it extracted: ${borgFailure('', done).facts.said ?? ''}`);
  return { warned: done.code !== 0, damaged };
}

/**
 * Given a title, returns what is given each line of borg's progress, and says which file is under way: a live line on a
 * terminal, a plain one every five minutes elsewhere.
 */
function showProgress(title) {
  const began = Date.now();
  let shownAt = 0, toldAt = began, file = '';
  const onLine = (line) => {
    file = /"info": \["((?:[^"\\]|\\.)*)"\]/.exec(line)?.[1] ?? file;
    const percent = /"type": "progress_percent".*"current": (\d+).*"total": (\d+)/.exec(line) ?? /"current": (\d+), "total": (\d+)/.exec(line);
    if (!percent || percent[2] === '0' || Date.now() - shownAt < 250) return;
    shownAt = Date.now();
    const done = Number(percent[1]) / Number(percent[2]), seconds = (shownAt - began) / 1000;
    const words = `${title}: ${Math.round(done * 100)} % of ${size(Number(percent[2]))}${done > 0.02 ? `, about ${span(seconds / done - seconds)} left` : ''}`;
    if (sayLive(words) || shownAt - toldAt < 300_000) return;
    toldAt = shownAt;
    say(words);
  };
  return { onLine, underWay: () => file };
}

// The links of a data directory are absolute: started as it is, a copy would write into the WAL and tablespaces of the running cluster.
function mendClusterLinks(target, held, manifest) {
  for (const cluster of manifest.plan.clusters) {
    const folder = pathBelow(held, cluster.dataDirectory);
    const links = [...cluster.tablespaces.filter((one) => /^\d+$/.test(one.oid)).map((one) => ({ link: path.join(folder, 'pg_tblspc', one.oid), to: one.location })), { link: path.join(folder, 'pg_wal'), to: cluster.walFolder }];
    for (const { link, to } of links) {
      const facts = fs.lstatSync(link, { throwIfNoEntry: false });
      if (!facts?.isSymbolicLink()) continue;
      // The manifest is what the saved server wrote of itself: no name in it may lead out of the folder.
      const shown = path.join(target, path.relative(held, link));
      if (!isBelow(fs.realpathSync(path.dirname(link)), fs.realpathSync(held))) throw new Problem(`${named(shown)} leads out of ${named(target)}: this archive's record cannot be trusted`);
      if (!fs.existsSync(pathBelow(held, to))) warn(`${named(shown)} leads nowhere: ${named(to)} was not restored with it`);
      fs.rmSync(link);
      fs.symlinkSync(pathBelow(target, to), link);
      if (process.getuid?.() === 0) fs.lchownSync(link, facts.uid, facts.gid);
      say(`mended the link ${named(shown)}`);
    }
  }
}

// =========================================================================================================
// ==== PLACES ====
// Where things come back to: which roots of an archive are meant, and where they lie here.
// And how they get beside their places. Nothing that an archive says of itself is believed: its paths are checked before they
// are used, its names fit a pattern before they become an argument, its commands are never run. Writes only staging folders;
// the swap comes later.

/** The folders that are made, each where something is extracted to. */
const stagingsOf = (pieces) => [...new Set(pieces.filter((piece) => piece.files > 0).map((piece) => piece.staging))];
const staged = (piece) => path.join(piece.staging, piece.recorded);
const LISTING = 'record/listing'; // of every file's size and time when all was cold; it comes with the first extraction
const VOLUME_NAME = /^[A-Za-z0-9][\w.-]*$/;

/** Given the roots that are meant, returns the pieces: where each lies here, and where it is extracted to. Only looks. */
async function findPieces(roots, stamp) {
  const mounts = mountPoints(), pieces = [];
  const add = (piece) => pieces.push({ ...piece, staging: stagingFor(piece.place, stamp, mounts), files: 0, bytes: 0 });
  for (const { path: recorded, why, strict } of [...roots].sort((one, other) => one.path.length - other.path.length)) {
    const around = pieces.filter((piece) => isBelow(recorded, piece.recorded)).pop();
    const { place, isMade } = why.startsWith('volume ') ? await placeOfVolume(why.slice(7), recorded) : { place: realPlace(recorded), isMade: true };
    if (place === '') {
      warn(`${why} lies in memory here, as long as its containers run: it does not come back`);
      continue;
    }
    if (around && around.place + recorded.slice(around.recorded.length) === place && mounts.includes(place)) continue; // it is there already
    const facts = { recorded, why, strict, byNumber: why.startsWith('volume '), volume: isMade ? '' : why.slice(7) };
    const isInner = around !== undefined && around.place + recorded.slice(around.recorded.length) === place;
    add({ ...facts, place, isInner });
    if (isInner) pieces[pieces.length - 1].staging = around.staging;
    else for (const mount of mounts.filter((one) => one !== place && isBelow(one, place) && !pieces.some((piece) => piece.place === one))) {
      // Not on an image, a read-only export, or what a user has mounted for himself alone (fuse(8), allow_root): what the archive has for it is extracted with the piece around, and no swap touches a mount point.
      if ((await look(['test', '-w', mount])).code !== 0) {
        warn(`${named(mount)} is a mount point where nothing can be written: it stays as it is`);
        continue;
      }
      add({ ...facts, volume: '', place: mount, recorded: recorded + mount.slice(place.length), isInner: false });
    }
  }
  return pieces;
}

// The folders above may be links here; the place itself is what is exchanged.
function realPlace(file) {
  const above = nearestFolder(path.dirname(file));
  return path.join(fs.realpathSync(above), file.slice(above.length));
}

/** A volume lies where Docker has the one of that name here; '' = in memory. A name that is a path was a bind mount. */
async function placeOfVolume(name, recorded) {
  if (name.startsWith('/')) return { place: realPlace(recorded), isMade: true };
  if (!VOLUME_NAME.test(name)) throw new Problem(`volume ${named(name)}: the record of this archive cannot be trusted`);
  const done = await look(['docker', 'volume', 'inspect', '--format={{json .}}', name]);
  if (done.code === 0) {
    const facts = answerOf(`volume ${name}`, done, { Mountpoint: 'path', 'Options?': { '*': 'text' } });
    if (facts.Options?.type === 'tmpfs') return { place: '', isMade: true };
    if (facts.Options?.device) throw new Problem(`volume ${name} is mounted by Docker from elsewhere (${JSON.stringify(facts.Options)})`,
      { hint: 'restore it with --to, and copy it into a running container' });
    return { place: fs.existsSync(facts.Mountpoint) ? fs.realpathSync(facts.Mountpoint) : facts.Mountpoint, isMade: true };
  }
  const info = await look(['docker', 'info', '--format={{.DockerRootDir}}']);
  if (info.code !== 0) throw failure(`volume ${name}: Docker does not answer`, info, 'install and start Docker first, or name other parts');
  return { place: path.join(realPlace(info.out.trim()), 'volumes', name, '_data'), isMade: false };
}

/** Where a recorded path lies here; '' when it does not come back. */
function whereIs(pieces, recorded, where) {
  const piece = pieces.filter((one) => isBelow(recorded, one.recorded)).sort((one, other) => other.recorded.length - one.recorded.length)[0];
  return piece ? where(piece) + recorded.slice(piece.recorded.length) : '';
}

/**
 * Count what the archive holds of each piece. Throws Problem when a root is missing, a file is damaged, or a path would lead out of
 * the staging folder: borg writes through a link that an archive has laid before.
 */
async function countPieces(settings, archive, pieces) {
  const links = new Map(), why = watchEntries(links);
  let trouble = '', damaged = '';
  const onLine = (line) => {
    if (trouble) return;
    const one = parseEntry(line);
    trouble = one ? why(one) : 'a line of its listing cannot be read';
    if (!one || trouble) return;
    if (one.healthy === false) damaged ||= one.path;
    const piece = pieces.filter((each) => isBelow(`/${one.path}`, each.recorded)).sort((a, b) => b.recorded.length - a.recorded.length)[0];
    if (!piece) return;
    piece.files++;
    piece.bytes += one.type === '-' ? one.size : 0;
  };
  const done = await askBorg(settings, ['list', '--json-lines', `::${archive}`, asPattern(LISTING), ...pieces.map((piece) => asPattern(piece.recorded))], { onLine, keepBytes: 0 });
  if (done.code !== 0 && !borgOnlyWarned(done.code)) throw borgFailure(`${archive} cannot be listed`, done);
  const belowLink = pieces.find((piece) => [...links.keys()].some((link) => link !== piece.recorded && isBelow(piece.recorded, link))); // some come in a pass of their own
  if (trouble || belowLink) throw unsafe(archive, trouble || `${named(belowLink.recorded)} lies below a link`);
  if (damaged) throw new Problem(`${named(`/${damaged}`)} in ${archive} is damaged: nothing of it is extracted`,
    { hint: 'restore an older archive, and let the operator audit the repository' });
  const full = pieces.filter((piece) => piece.files > 0), isHad = ({ place }) => full.some((one) => one.place === place); // a file named over a linked folder, and as it lies: borg saves it once
  const missing = pieces.find((piece) => !isHad(piece) && !mountPoints().includes(piece.place));
  if (missing) throw new Problem(`${named(missing.recorded)} is not in ${archive}`, { hint: 'node backup.js list shows what is' });
  for (const piece of pieces.filter((one) => !isHad(one))) warn(`${named(piece.place)} is a mount point, and the archive has nothing for it: it stays as it is`);
  const second = full.find((piece) => full.some((one) => one !== piece && one.place === piece.place));
  if (second) throw new Problem(`two paths of ${archive} lead to ${named(second.place)} here, over a link: ${full.filter((one) => one.place === second.place).map((one) => named(one.recorded)).join(' and ')}`, { hint: 'name one of the parts, or restore with --to' });
}

/** Given the pieces, returns why there is no room for old and new contents together; [] = there is. A disk may have several stagings: of its subvolumes, of what is mounted from it. */
function whyNoRoom(pieces) {
  const all = mounts(), points = mountPoints(), disks = new Map();
  for (const { staging, bytes, files } of pieces.filter((piece) => piece.files > 0)) {
    const folder = path.dirname(staging), point = mountOf(folder, points), { device } = all.filter((one) => one.folder === point).pop();
    disks.set(device, { folder, needed: (disks.get(device)?.needed ?? 64e6) + bytes + files * 4096 });
  }
  return [...disks.values()].filter(({ folder, needed }) => freeBytes(folder) < needed)
    .map(({ folder, needed }) => `the disk of ${named(folder)} has ${size(freeBytes(folder))} free, ${size(needed)} are needed beside the old contents`);
}

/**
 * The commands that extract every piece beside its place, and the folder each runs in: one for each file system and kind of
 * owners. The first brings the listing, too.
 */
function extractions(archive, pieces) {
  const ownOf = (cwd, byNumber) => pieces.filter((piece) => piece.staging === cwd && piece.byNumber === byNumber && piece.files > 0);
  const kinds = [...new Set(pieces.map((piece) => piece.staging))].flatMap((cwd) => [false, true].map((byNumber) => ({ cwd, byNumber, own: ownOf(cwd, byNumber) })));
  return kinds.filter(({ own }) => own.length > 0).map(({ cwd, byNumber, own }, index) => {
    const others = pieces.filter((piece) => !own.includes(piece) && own.some((one) => isBelow(piece.recorded, one.recorded)));
    return { cwd, bytes: own.reduce((sum, one) => sum + one.bytes, 0), argv: ['borg', '--log-json', '--progress', 'extract', '--sparse', ...(byNumber ? ['--numeric-ids'] : []),
      ...others.flatMap((piece) => ['--exclude', asPattern(piece.recorded)]), `::${archive}`, ...(index === 0 ? [asPattern(LISTING)] : []), ...outermost(own.map((piece) => piece.recorded)).map(asPattern)] };
  });
}

/** Extract every piece beside its place, while everything still runs, and see that it is whole. Throws Problem when it is not. */
async function stage(settings, manifest, pieces, run) {
  const stagings = stagingsOf(pieces);
  const held = new Map(stagings.map((staging) => [staging, (fs.mkdirSync(staging, { mode: 0o700 }), heldFolder(staging))]));
  const commands = extractions(manifest.archive, pieces);
  for (const { argv, cwd } of commands) {
    const env = { ...borgEnvironment(settings, run), BORG_RELOCATED_REPO_ACCESS_IS_OK: 'yes' };
    const done = await change(argv, { cwd: held.get(cwd), env, onErrorLine: showProgress('extract').onLine });
    goOn(); // borg may have ended because somebody asked us to stop
    if (done.code !== 0) throw borgFailure('not everything could be extracted', done); // a warning, too: something of a file did not come back
  }
  await compareWithListing(manifest, pieces, commands[0].cwd);
  for (const cluster of manifest.plan.clusters) refuseBadCluster(manifest, cluster, pieces);
  for (const staging of stagings) {
    const done = await change(['sync', '--file-system', staging], { seconds: 3600 });
    if (done.code !== 0) throw failure('what was extracted cannot be brought to disk', done);
  }
}

// record/listing was written when everything was cold: every file below a stopped part must have come back with that size and time.
async function compareWithListing(manifest, pieces, folder) {
  const isWhole = (piece) => piece.files > 0 && piece.strict && (manifest.plan.exclude.length === 0 || piece.why.startsWith('cluster '));
  const roots = pieces.filter(isWhole).map((piece) => ({ recorded: latin(piece.recorded), staged: latin(staged(piece)) }));
  const [listing, told, seen, found] = [path.join(folder, LISTING), path.join(folder, '.told'), path.join(folder, '.seen'), path.join(folder, '.found')];
  if (!fs.lstatSync(listing, { throwIfNoEntry: false })?.isFile()) throw new Problem('this archive has no record/listing to compare with',
    { hint: 'restore an older one' });
  await reduce(listing, told, (file) => (roots.some((root) => isBelow(file, root.recorded)) ? file : null));
  const all = fs.openSync(found, 'wx', 0o600);
  const listed = roots.length === 0 ? null : await look(['find', ...pieces.filter(isWhole).map(staged), '-printf', '%y\\t\\t\\t\\t%s\\t%T@\\t\\t%p\\0'], { stdout: all, seconds: 24 * 3600 });
  fs.closeSync(all);
  if (listed && listed.code !== 0) throw failure('what was extracted cannot be listed', listed);
  const prefixes = [...new Set(pieces.map((piece) => latin(piece.staging)))];
  await reduce(found, seen, (file) => file.slice(prefixes.find((prefix) => isBelow(file, prefix)).length));
  for (const file of [told, seen]) await lookFor('what was extracted cannot be compared', ['sort', '--zero-terminated', '--unique', `--output=${file}`, file], '', { seconds: 3600 });
  const unlike = await lookFor('what was extracted cannot be compared', ['comm', '--zero-terminated', '-3', told, seen], '', { seconds: 3600 });
  const differing = [...new Set(unlike.split('\0').filter((one) => one !== '').map((one) => one.replace(/^\t/, '').split('\t').slice(3).join('\t')))];
  if (differing.length === 0) return;
  throw new Problem(`not as they were saved: ${count(differing.length, 'file')}: ${differing.slice(0, 10).map(named).join(', ')}`,
    { hint: 'this archive is damaged, or its record is: restore an older one' });
}

const latin = (file) => Buffer.from(file).toString('latin1');

// Of a listing, what must be the same here: kind and path, of files size and time, too. borg saves no sockets. Seconds will do: not every file system keeps more.
async function reduce(from, to, pathOf) {
  const fd = fs.openSync(to, 'wx', 0o600);
  let lines = [];
  const flush = () => { fs.writeSync(fd, lines.join(''), null, 'latin1'); lines = []; };
  await eachRecord(from, (record) => {
    const [kind = '', , , , bytes = '', time = ''] = record.split('\t'), file = pathOf(latin(pathIn(record)));
    if (file !== null && kind !== 's') lines.push(`${kind}\t${kind === 'f' ? bytes : ''}\t${kind === 'f' ? time.replace(/\..*/, '') : ''}\t${file}\0`);
    if (lines.length > 10_000) flush();
  });
  flush();
  fs.closeSync(fd);
}

/** A cluster that comes back must have been shut down, be the one that was saved, and find what its links lead to. */
function refuseBadCluster({ plan, proof, containers }, cluster, pieces) {
  const folder = whereIs(pieces, cluster.dataDirectory, staged);
  if (!folder) return;
  const bad = (why, hint = 'restore an older archive') => new Problem(`cluster ${named(cluster.name)} of this archive would not start: ${why}`, { hint });
  if (!fs.lstatSync(folder, { throwIfNoEntry: false })?.isDirectory() || !fs.lstatSync(path.join(folder, 'global', 'pg_control'), { throwIfNoEntry: false })?.isFile()) throw bad('it has no control file');
  const { state, systemIdentifier } = controlState(folder), told = proof?.clusters.find((one) => one.dataDirectory === cluster.dataDirectory);
  if (!state.startsWith('shut down')) throw bad(`its state is "${state}"`);
  if (isThere(path.join(folder, 'postmaster.pid'))) throw bad('it was not shut down when it was saved');
  if (told && told.systemIdentifier !== systemIdentifier) throw bad('its control file is another cluster\'s');
  if (fs.statSync(folder).uid === 0) throw bad('it belongs to root');
  const mounts = (containers.find((one) => one.name === cluster.container)?.mounts ?? []).map((one) => ({ type: one.type, name: one.name, source: one.source, destination: one.destination }));
  const spaces = path.join(folder, 'pg_tblspc'), oids = fs.lstatSync(spaces, { throwIfNoEntry: false })?.isDirectory() ? fs.readdirSync(spaces) : [];
  for (const link of ['pg_wal', ...oids.map((oid) => `pg_tblspc/${oid}`)]) {
    if (!fs.lstatSync(path.join(folder, link), { throwIfNoEntry: false })?.isSymbolicLink()) continue;
    const leads = path.resolve(cluster.dataDirectory, path.dirname(link), fs.readlinkSync(path.join(folder, link)));
    const target = cluster.container ? hostPathOf(leads, mounts) : leads;
    if (target && !whereIs(pieces, target, (piece) => piece.place) && !fs.existsSync(target)) throw bad(`its ${link} leads to ${named(target)}, which is not there and does not come back`,
      link === 'pg_wal' && whereIs(pieces, cluster.walFolder, (piece) => piece.place) ? `it lay in ${named(cluster.walFolder)}, over a link that no archive holds: ${pasteable(['mkdir', '-p', path.dirname(target)])} && ${pasteable(['ln', '-s', '-T', cluster.walFolder, target])}, then begin again` : undefined);
  }
  say(`cluster ${named(cluster.name)} was shut down when it was saved (${plan.archive})`);
}

/** The swaps of all pieces, as plain data. Given what was extracted. */
function swapsOf(pieces, stamp) {
  const mounts = mountPoints(), each = pieces.filter((piece) => !piece.isInner && piece.files > 0).map((piece) => swapsFor(piece.place, staged(piece), stamp, mounts));
  return { swaps: each.flatMap((one) => one.swaps), folders: each.flatMap((one) => one.folders) };
}

// =========================================================================================================
// ==== COMEBACK ====
// What would come back: the parts of an archive that are meant, and every command in order.
// With what has to stop for it here; worked out by looking, before anything is changed. It is plain data, printed by --dry-run,
// and what the restore in place follows. Nothing that an archive says of itself is believed (see PLACES). What is stopped and
// started comes from this machine's own settings; where there are none, names of units, containers and clusters come from the
// archive. Changes nothing.

const SYSTEM_FOLDERS = ['/', '/bin', '/boot', '/dev', '/etc', '/lib', '/lib32', '/lib64', '/proc', '/root', '/run', '/sbin', '/sys', '/tmp', '/usr', '/var', '/var/cache', '/var/lib', '/var/log', '/var/spool',
  '/var/lib/containerd', '/var/lib/docker', '/etc/group', '/etc/gshadow', '/etc/passwd', '/etc/shadow'];
const NEVER = /^\/(bin|boot|dev|lib|lib32|lib64|proc|run|sbin|sys|usr\/(bin|sbin|lib|lib32|lib64))(\/|$)/;

/** Look at archive and machine. Changes nothing. */
async function workOut({ settings, file }, [name = '', ...words], how, startedAt) {
  const archives = await listArchives(settings, how.bare ? '' : serverName(settings)), archive = archiveMeant(archives, name);
  if (name === 'latest') warnUnlessOurs(settings.stateFolder, archives, archive);
  const manifest = { ...soundManifest(await readFromArchive(settings, archive, 'record/manifest.json'), archive), archive }; // a record may claim any name
  const stamp = startedAt.slice(0, 19).replaceAll(':', '');
  const { keyFile, passphraseFile, sshKey, knownHostsFile } = settings;
  const own = [process.execPath, process.argv[1] ?? '', file, keyFile, passphraseFile, sshKey, knownHostsFile].filter((one) => fs.existsSync(one));
  const pieces = await findPieces(rootsMeant(manifest, words, [how.stateFolder, ...own].flatMap((one) => [path.resolve(one), realOr(one)])), stamp);
  await countPieces(settings, archive, pieces);
  const clusters = manifest.plan.clusters.filter((one) => whereIs(pieces, one.dataDirectory, (piece) => piece.place) !== '');
  const scratch = temporaryFolder(), findings = await judge(manifest, clusters, { scratch }).finally(() => fs.rmSync(scratch, { recursive: true, force: true })); // now, not at the end: we may be killed
  const comeback = { archive, stamp, manifest, settings, how, isWhole: words.length === 0, pieces, clusters, findings, parts: [], asleep: [] };
  return { ...comeback, ...await partsOf(comeback) };
}

/**
 * Given the words after --in-place, returns the roots that are meant: when there are none, all but the system's folders, what is
 * the machine's own (see isLookedAt), and those with our own files. Throws Problem (64) for a part that is not in the archive.
 */
function rootsMeant(manifest, words, own) {
  const kinds = ['postgres', 'cluster', 'compose', 'container', 'volume', 'folder'], names = [];
  for (const word of words) {
    if (kinds.includes(names[names.length - 1] ?? '')) names.push(`${names.pop()} ${word}`);
    else names.push(word);
  }
  const { roots } = manifest.plan, chosen = names.length === 0 ? roots : names.flatMap((name) => rootsOfPart(manifest, name));
  const isOwn = (folder) => own.some((file) => isBelow(file, folder));
  const isNamed = ({ why }) => names.some((name) => name === why || `volume ${name}` === why);
  const stays = chosen.filter((root) => !isNamed(root) && isThere(root.path) && isLookedAt(root, manifest));
  const usable = chosen.filter((root) => !stays.includes(root) && (/^volume [^/]/.test(root.why) || !(SYSTEM_FOLDERS.includes(root.path) || NEVER.test(root.path) || isOwn(root.path))));
  for (const one of chosen.filter((root) => !usable.includes(root))) {
    const text = stays.includes(one) ? `${named(one.path)} stays as it is here: containers only look at it`
      : `${named(one.path)} ${isOwn(one.path) ? 'holds what this restore itself needs' : 'belongs to the system'}, and is not exchanged as a whole`;
    const hint = `node backup.js restore ${manifest.archive} ${one.path} --to FOLDER, and take from there what you need`;
    if (names.length > 0 && !stays.includes(one)) throw new Problem(text, { exitCode: 64, hint });
    warn(`${text}: ${hint}`);
  }
  if (usable.length === 0) throw new Problem('this archive holds nothing that could be put in its place', { exitCode: 64 });
  return [...new Set(usable)];
}

function rootsOfPart({ plan, containers }, wanted) {
  const [, kind = '', name = wanted] = /^(postgres|cluster|compose|container|volume|folder) (.+)$/.exec(wanted) ?? [];
  const is = (...words) => kind === '' || words.includes(kind), plain = name.startsWith('/') ? path.resolve(name) : name;
  const cluster = plan.clusters.find((one) => is('postgres', 'cluster') && (one.name === plain || one.dataDirectory === plain));
  const mounts = containers.filter((one) => (kind === 'compose' ? one.composeProject === plain : kind === 'container' && one.name === plain)).flatMap((one) => one.mounts);
  const found = plan.roots.filter((root) => (cluster && root.why === `cluster ${cluster.name}`) || (is('volume') && root.why === `volume ${plain}`)
    || (is('folder') && (root.path === plain || root.why === `folder ${plain} leads here`)) || mounts.some((mount) => mount.source && (isBelow(root.path, mount.source) || [`volume ${mount.source}`, `folder ${mount.source} leads here`].includes(root.why))));
  if (found.length === 0 && cluster) found.push(...plan.roots.filter((root) => cluster.roots.some((one) => isBelow(one, root.path)))); // in volumes, or below a folder
  if (found.length > 0) return found;
  const known = [...plan.clusters.filter((one) => one.container === '').map((one) => `postgres ${one.name}`),
    ...plan.roots.filter((one) => /^(volume|folder)/.test(one.why)).map((one) => (one.why === 'folder' ? one.path : one.why))];
  throw new Problem(`${named(wanted)} is no part of this archive`, { exitCode: 64,
    hint: `it holds: ${[...new Set(known)].map((one) => (one.includes(' ') ? one : named(one))).join(', ')}. One file of these: node backup.js restore ARCHIVE PATH --to FOLDER` });
}

// ---- what is stopped and started ----

/** Whether a path lies below a place, or a place below it, links followed. '/' does not count: what sees all does not mean this. */
function touchesPlace(pieces) {
  const places = pieces.flatMap(({ place }) => [place, realOr(place)]);
  return (file) => file !== '' && file !== '/' && [file, realOr(file)].some((one) => places.some((place) => isBelow(one, place) || isBelow(place, one)));
}

/** What has to stop here for this restore, and what sleeps here but is to run afterwards. */
async function partsOf(comeback) {
  const { manifest, pieces, isWhole } = comeback;
  const containers = await findContainers(await isDockerNeeded(comeback)), clusters = await findClusters(containers);
  const known = await partsNamed(comeback, containers, clusters);
  const touches = touchesPlace(pieces);
  const mountsIt = (name) => containers.find((one) => one.name === name)?.mounts.some(({ source }) => touches(source)) ?? false;
  const hasFolder = pieces.some((piece) => piece.why.startsWith('folder'));
  const isMeant = (part) => isWhole || (hasFolder && (part.kind === 'service' || part.kind === 'command')) || touches(part.dataDirectory ?? '') || mountsIt(part.container);
  const parts = known.filter(isMeant);
  const isNew = (part) => !parts.some((one) => one.name === part.name || (part.dataDirectory && one.dataDirectory === part.dataDirectory));
  for (const one of containers.filter((each) => each.running && mountsIt(each.name))) parts.push(...containerParts(`container ${one.name}`, containers).filter(isNew).map((part) => ({ ...part, group: 900_000 })));
  for (const one of clusters.filter((each) => each.container === '' && [each.dataDirectory, ...each.roots].some(touches))) {
    const part = await clusterPart(one, comeback.settings.stopTimeoutSeconds);
    if (isNew(part)) parts.push({ ...part, group: 1_000_000 }); // the freshly made `main` of Debian's package, above all
  }
  const ranThen = new Set(manifest.plan.parts.filter((part) => part.wasRunning).map((part) => part.name));
  return { parts: parts.filter((part) => part.wasRunning), asleep: parts.filter((part) => !part.wasRunning && part.kind !== 'postgres' && ranThen.has(part.name)).map(withOwnUnit) };
}

// Where Docker is, its answer is needed: what does not answer may run all the same, and would go on writing into the old contents.
async function isDockerNeeded({ settings, how, manifest }) {
  const names = how.bare ? manifest.plan.parts.map((part) => part.name) : [...settings.stop.flat(), ...settings.volumes.map(() => 'container *')];
  const isMeant = names.some((one) => isPartName(one) && /^(compose|container) /.test(one)) || processes().some(({ program }) => program === 'dockerd');
  return isMeant && (await look(['docker', '--version'])).code !== 127;
}

function realOr(file) {
  try {
    return fs.realpathSync(file);
  } catch {
    return file;
  }
}

// A unit that did not run is in no command of its part.
const withOwnUnit = (part) => (part.kind === 'service' && part.unit ? { ...part, start: ['systemctl', 'start', '--', part.unit], stop: ['systemctl', 'stop', '--', part.unit] } : part);

/** The parts of this machine's own settings; on a bare machine those whose names are in the archive. What is not here is told. */
async function partsNamed({ settings, how, manifest }, containers, clusters) {
  const names = manifest.plan.parts.filter(({ name, kind }) => isPartName(name) && /^(service|container|postgres)$/.test(kind) && !/\*$/.test(name)).map((part) => part.name);
  const foreign = how.bare ? manifest.plan.parts.filter((part) => !names.includes(part.name)) : [];
  if (foreign.length > 0) say(`not stopped or started, for no command of an archive is run: ${foreign.map((part) => named(part.name)).join(', ')}`);
  const parts = [];
  for (const [index, entry] of (how.bare ? names : settings.stop).entries()) {
    for (const one of [entry].flat()) {
      try {
        const found = await findPart(one, settings, containers, clusters);
        parts.push(...found.parts.filter((part) => !parts.some((other) => other.name === part.name)).map(({ stage: step = 0, ...part }) => ({ ...part, group: index * 100 + step })));
      } catch (error) {
        const lacksProgram = typeof one !== 'string' && [126, 127].includes((await look(one.running)).code);
        if (!(error instanceof Problem) || error.facts.exitCode || (error.facts.ran && !lacksProgram)) throw error; // a command that failed says nothing of the part
        (String(one).startsWith('postgres ') ? say : warn)(`not here: ${error.message}`); // a cluster may come back
      }
    }
  }
  for (const part of parts) part.dataDirectory ??= clusters.find((one) => one.container !== '' && one.container === part.container)?.dataDirectory;
  return parts;
}

// Clusters on the host that ran when they were saved and do not run here.
function clustersToCome({ clusters, parts, pieces }) {
  return clusters.filter((one) => one.container === '' && one.pid !== 0
    && !parts.some((part) => part.dataDirectory === whereIs(pieces, one.dataDirectory, (piece) => piece.place) || part.name === `postgres ${one.name}`));
}

/** What runs in the new state and did not run here: parts that slept, and clusters that come back. Given what was extracted, or is in its place. */
async function partsToCome({ asleep, clusters, parts, pieces, settings, manifest }) {
  const found = [...asleep];
  for (const cluster of clustersToCome({ clusters, parts, pieces })) {
    const dataDirectory = whereIs(pieces, cluster.dataDirectory, (piece) => piece.place), folder = whereIs(pieces, cluster.dataDirectory, staged);
    const isDebian = /^\d+(\.\d+)?\/[\w.-]+$/.test(cluster.name) && whereIs(pieces, `/etc/postgresql/${cluster.name}`, (piece) => piece.place) !== '';
    const binaries = (await findPrograms(cluster, manifest))?.binaries ?? '';
    if (!isDebian && binaries === '') warn(`no PostgreSQL ${cluster.version} is here to start ${named(cluster.name)}`);
    else found.push({ ...await clusterPart({ ...describeCluster(isDebian ? cluster.name : dataDirectory, folder, isDebian ? 'Debian' : ''), dataDirectory, binaries }, settings.stopTimeoutSeconds),
      ...(isDebian ? {} : await ownUnit(cluster, dataDirectory, manifest)), group: 1_000_000 });
  }
  return found;
}

// Debian's clusters have units by their names. Of another one the archive has the name: believed when the unit of that name here speaks of that data directory.
async function ownUnit(cluster, dataDirectory, manifest) {
  const unit = manifest.plan.parts.find((part) => part.dataDirectory === cluster.dataDirectory)?.unit;
  if (!hasSystemd() || typeof unit !== 'string' || !/^[\w@.:-]+\.service$/.test(unit)) return {};
  const { out } = await look(['systemctl', 'show', '--property=Environment,ExecStart', '--', unit]);
  return out.split(/[\s=;]+/).some((word) => path.resolve('/', word) === dataDirectory) ? { unit, start: ['systemctl', 'start', '--', unit], stop: ['systemctl', 'stop', '--', unit] } : {};
}

// ---- what is said before ----

function showComeback(comeback) {
  const { archive, manifest, pieces, parts, findings, stamp } = comeback;
  const commands = commandsOfComeback(comeback), later = [...comeback.asleep.map((part) => part.name), ...clustersToCome(comeback).map((one) => `postgres ${one.name}`)];
  const swaps = pieces.filter((piece) => !piece.isInner && piece.files > 0).map((piece) => ({ ...swapsFor(piece.place, staged(piece), stamp, []).swaps[0], why: piece.why, files: piece.files, bytes: piece.bytes }));
  const stagings = stagingsOf(pieces);
  if (mode.dryRun && mode.json) return answer(JSON.stringify({ archive, server: manifest.server, madeAt: manifest.madeAt, findings, parts, later, stagings, swaps, commands, warnings }, null, 1));
  const text = [`archive ${archive}, of server ${named(manifest.server)}, ${oneLine(manifest.madeAt)}`, ...tableOf(findings), 'comes back:',
    ...swaps.map((one) => `  ${named(one.place)}   (${oneLine(one.why)}; ${count(one.files, 'file')}, ${size(one.bytes)}; ${isThere(one.place) ? `what is there goes to ${named(one.aside)}` : 'nothing is there now'})`),
    'stop, in this order:', ...(parts.length > 0 ? parts.map((part) => `  ${part.name}`) : ['  nothing']),
    ...(later.length > 0 ? [`start afterwards, though it does not run now: ${later.map(named).join(', ')}`] : []),
    'commands, in this order:', ...commands.map(({ step, argv }) => `  ${step.padEnd(8)} ${pasteable(argv)}`), ...(mode.dryRun ? ['dry run: nothing above was executed, nothing was written'] : [])].join('\n');
  (mode.dryRun ? answer : sayBlock)(text);
}

/** The findings of the judge: what the passport says, what is here, what it would break, and the commands that mend it. */
function tableOf(findings) {
  if (findings.length === 0) return [];
  const rows = [['', 'about', 'in the archive', 'here', 'what it would break'], ...findings.map((one) => [one.verdict, [one.cluster, one.about].filter((word) => word !== '').join(': '), one.recorded, one.here, one.breaks].map(oneLine))];
  const widths = [0, 1, 2, 3].map((column) => Math.min(40, Math.max(...rows.map((row) => row[column].length))));
  const line = (row) => `  ${row.map((word, column) => word.padEnd(widths[column] ?? 0)).join('  ').trimEnd()}`;
  return ['what differs:', ...rows.flatMap((row, index) => [line(row), ...(findings[index - 1]?.mend ?? []).map((command) => `            mend: ${oneLine(command)}`)])];
}

/** Every command of a restore, in order. Of a mount point that stays, the swaps are known only when its entries are there. */
function commandsOfComeback({ archive, pieces, parts, asleep, stamp }) {
  const stagings = stagingsOf(pieces);
  const swaps = pieces.filter((piece) => !piece.isInner && piece.files > 0).flatMap((piece) => swapsFor(piece.place, staged(piece), stamp, []).swaps);
  return [
    ...pieces.filter((piece) => piece.volume !== '').map((piece) => ({ step: 'volume', argv: ['docker', 'volume', 'create', piece.volume] })),
    ...stagings.map((folder) => ({ step: 'stage', argv: ['mkdir', '-m', '700', folder] })),
    ...extractions(archive, pieces).map(({ argv, cwd }) => ({ step: 'extract', argv: ['env', '-C', cwd, ...argv] })),
    ...stagings.map((folder) => ({ step: 'sync', argv: ['sync', '--file-system', folder] })),
    ...parts.map((part) => ({ step: 'stop', argv: part.stop })),
    ...swaps.flatMap(({ place, staged: from, aside }) => [...(isThere(place) ? [{ step: 'aside', argv: ['mv', '-T', '--', place, aside] }] : []), { step: 'place', argv: ['mv', '-T', '--', from, place] }]),
    ...[...parts, ...asleep].sort((one, other) => other.group - one.group).map((part) => ({ step: 'start', argv: part.start })),
  ];
}

// The way without room for both, as RESTORE.md of the archive has it in full.
function byHand({ archive, pieces, parts }) {
  const top = pieces.filter((piece) => !piece.isInner && piece.files > 0);
  return [...parts.map((part) => pasteable(part.stop)), ...top.filter((piece) => isThere(piece.place)).map((piece) => `move ${named(piece.place)} to another disk, then remove it here`),
    ...extractions(archive, pieces.map((piece) => ({ ...piece, staging: '/' }))).map(({ argv }) => `cd / && ${pasteable(argv.filter((word) => word !== '--log-json' && word !== asPattern(LISTING)))}`),
    ...top.filter((piece) => piece.place !== piece.recorded).map((piece) => `mv ${named(piece.recorded)} ${named(piece.place)}`), ...[...parts].reverse().map((part) => pasteable(part.start)),
    `see also: node backup.js restore ${archive} record --to FOLDER, and RESTORE.md there`];
}

// =========================================================================================================
// ==== AFTERWARDS ====
// Afterwards: what a restore in place has put back is asked whether it works.
// Every cluster that ran answers, every database opens, its libraries load, its tables have about the rows they had. Changes
// nothing, but for a REINDEX that somebody has asked for. Wrong is only what the copy, compared file by file, cannot explain.

/** Every cluster that came back answers, every database opens, its libraries load; what its tables are is told. Returns what is wrong. */
async function checkWhatCameBack(comeback) {
  const { clusters, pieces, manifest } = comeback, wrong = [];
  const running = await findClusters(await findContainers(false));
  for (const cluster of clusters.filter((one) => one.pid !== 0)) {
    const folder = whereIs(pieces, cluster.dataDirectory, (piece) => piece.place), here = running.find((one) => one.dataDirectory === folder && one.pid !== 0);
    const passport = manifest.postgres.find((one) => one.dataDirectory === cluster.dataDirectory);
    if (!here) warn(`cluster ${named(cluster.name)} is in place, and nothing here starts it`);
    else if (!await waitUntil(passport?.answers ? 30 : 3, async () => (await queryCluster(here, 'template1', 'select 1')).code === 0)) {
      if (passport?.answers) wrong.push(`cluster ${named(cluster.name)} does not answer`);
      else warn(`cluster ${named(cluster.name)} runs, but was not looked through: it lets nobody in without a password, or another way that we have not, as when it was saved`);
    }
    else wrong.push(...await mendAfterwards(comeback, cluster, here), ...await checkDatabases(here, passport?.databases ?? []));
    goOn();
  }
  return wrong;
}

const IN_ENGLISH = { lc_messages: 'C' }; // what the server says is looked into
async function checkDatabases(here, recorded) {
  const wrong = [];
  const present = (await queryCluster(here, 'template1', 'select datname from pg_database where datallowconn')).out.split('\n').filter((name) => name !== '' && !/=|:\/\//.test(name)); // psql would take these for addresses
  let same = 0;
  for (const { name, rows = {} } of recorded.filter((one) => one.connectable && !/=|:\/\//.test(one.name))) {
    const of = `database ${named(name)} of ${named(here.name)}`;
    if (!present.includes(name)) { warn(`${of} is not there: it was dropped a while before the copy`); continue; } // every file is as it was when all was cold: see compareWithListing()
    const done = await queryCluster(here, name, `select jsonb_build_object('rows', ${databaseQuestions.rows}, 'tables', ${databaseQuestions.estimatedRows}, 'libraries',
      (select coalesce(jsonb_agg(distinct probin), '[]') from pg_proc where probin is not null and oid >= 16384))`, 60, IN_ENGLISH); // those of extensions: the server has its own
    const { code, said } = done, why = lastLines(said, 1);
    if (code === 1 && /lock timeout|statement timeout/.test(why)) { warn(`${of} is in use, and was not looked through: ${why}`); continue; }
    if (code !== 0) { wrong.push(`${of} ${code === 2 ? 'does not open' : 'cannot be read'}: ${why}`); continue; }
    const facts = answerOf(of, done, { libraries: ['text'], tables: { '*': 'anything' }, rows: { '*': 'anything' } });
    for (const library of facts.libraries) { // one by one: some only want to be preloaded (see the judge)
      const missing = NOT_LOADED.exec((await queryCluster(here, name, `load '${library.replaceAll("'", "''")}'`, 60, IN_ENGLISH)).said);
      if (missing) wrong.push(`${of} misses a library: ${missing[0]}`);
    }
    for (const [table, then] of Object.entries(rows)) {
      const now = facts.rows[table] ?? null; // null: not counted
      if (facts.tables[table] === undefined) warn(`${of} has no table ${table}, which had ${then} rows a while before the copy`);
      else if (now === null || then === null || now === then) same++;
      else if (now < then / 2) warn(`${of}: ${table} has ${now} rows, and had ${then} a while before the copy`);
      else say(`${of}: ${table} has ${now} rows, and had ${then} a while before the copy`);
    }
  }
  say(`cluster ${named(here.name)} answers: ${count(recorded.length, 'database')}, ${count(same, 'table')} with the recorded rows`);
  return wrong;
}

/** What the judge found to be mended in the database: done with --reindex, else told. */
async function mendAfterwards({ findings, how }, cluster, here) {
  const open = findings.filter((one) => one.verdict === 'after' && one.cluster === cluster.name);
  const byReindex = open.filter((one) => one.sql.length > 0), byHand = open.filter((one) => one.sql.length === 0);
  if (byReindex.length > 0 && !how.reindex) warn(`${named(cluster.name)}: to be mended now, or do it all again with --reindex: ${byReindex.flatMap((one) => one.mend).join('; ')}`);
  for (const { about, breaks, mend } of byHand) warn(`${named(cluster.name)}, ${about}: ${breaks}. To be mended now: ${mend.join('; ')}`);
  for (const { database, text } of how.reindex ? open.flatMap((one) => one.sql) : []) {
    say(`  ${named(here.name)}, ${named(database)}: ${text}`);
    const done = text.startsWith('\\') || /=|:\/\//.test(database) ? { code: 1, said: 'this is no SQL' } : await queryCluster(here, database, text, 24 * 3600, { default_transaction_read_only: 'off', lock_timeout: '5min' });
    if (done.code !== 0) return [`this failed in ${named(database)}: ${text.slice(0, 200)}: ${lastLines(done.said, 1)}`];
  }
  return [];
}

// =========================================================================================================
// ==== IN PLACE ====
// In place: `restore ... --in-place` puts an archive, or parts of it, where it was.
// On a machine that runs, or on a bare one. Everything is extracted beside its place and looked through while all still runs.
// Then: stop, swap by rename, start, check. The old contents stay aside, always; a run that dies is finished or rolled back by
// its guard, by `recover`, or by the next run (see SWAP).
// Changes: the places, the parts that use them, staging folders, volumes that Docker does not have yet.

// `how`: { bare: no settings here, reindex, stateFolder: where ledger and lock are }; on a bare machine borg's cache is elsewhere (settings.stateFolder).
/** Given the settings, the script, the words and how, does all of it. Returns the exit code. Throws Problem while nothing has been changed. */
async function restoreInPlace(loaded, script, words, how) {
  const settings = mode.dryRun ? { ...loaded.settings, stateFolder: temporaryFolder() } : loaded.settings;
  const left = mode.dryRun ? null : await begin(settings, how);
  try {
    return await lookAndCarryOut({ ...loaded, settings }, script, words, how, left);
  } catch (error) {
    if (left && error instanceof Problem) throw new Problem(`${error.message}; ${left.why.message}`, { ...error.facts, exitCode: 3 }); // nothing was touched, so it is down still
    throw error;
  }
}

async function lookAndCarryOut(loaded, script, words, how, left) {
  const startedAt = new Date().toISOString();
  if (!mode.dryRun) openTranscript(path.join(how.stateFolder, 'log'), `${startedAt.slice(0, 19)}-restore`);
  await borgVersion();
  const comeback = await workOut(loaded, words, how, startedAt);
  showComeback(comeback);
  const why = whyNot(comeback);
  if (why && !(mode.dryRun && mode.json)) throw why;
  if (why) sayError(why); // the plan, with its findings, is the answer already
  if (why) return 2;
  if (mode.dryRun) return warnings.length > 0 ? 1 : 0;
  return carryOut(comeback, left, script, loaded.file, startedAt);
}

/** What speaks against it, before anything is touched: a finding of the judge, or no room. */
function whyNot(comeback) {
  if (comeback.findings.some((one) => one.verdict === 'refused')) return new Problem('this archive cannot work on this machine: see the findings marked "refused"',
    { hint: 'mend them with the commands above, then begin again; nothing was touched' });
  const noRoom = whyNoRoom(comeback.pieces);
  return noRoom.length === 0 ? null : new Problem(`no room for old and new contents together: ${noRoom.join('; ')}`,
    { hint: `make room, or do it by hand, as root, with the environment that \`node backup.js borg\` sets:\n        ${byHand(comeback).join('\n        ')}` });
}

// What an earlier run left down may be down for the very files that are to come back: so that does not keep us. Returns it.
async function begin(settings, { stateFolder }) {
  fs.mkdirSync(stateFolder, { recursive: true, mode: 0o700 });
  refuseIfOthersCanChange(stateFolder, '`stateFolder`');
  const isTold = () => readLedgerQuietly(stateFolder)?.reported === 'down'; // then its guard has the lock from time to time
  let isOurs = false;
  if (isTold()) {
    say('an earlier run left something stopped: waiting until its guard is not at work; each part that does not come up takes it up to ten minutes');
    await waitUntil(3600, () => askedToStop() !== null || (isOurs = takeLock(stateFolder, 0) !== null) || !isTold(), 500);
  }
  if (!isOurs) takeRunLock(stateFolder);
  const ledger = readLedger(stateFolder), isTried = ledger?.reported === 'down' && ledger.restore?.state !== ''; // a moment ago, and its swaps, if any, are settled
  const down = isTried ? ledger.parts.filter((part) => part.runningAt === null).map((part) => part.name) : [];
  const left = ledger && down.length > 0 ? leftBy(ledger, down) : await startLeftovers({ ...settings, stateFolder });
  if (left?.ledger.restore?.state === '') throw left.why; // whether old or new contents lie in place is still to be settled
  if (left) say(`${left.why.message}: this restore goes on, and starts it in the end`);
  return left;
}

// Our ledger takes the place of the one that was left, in one rename: at every moment there is one that tells what is down. The guard of that other run
// can do nothing while we have the lock, and ends when it finds another run's ledger, or none. A night numbers its groups otherwise (see partsNamed).
async function carryOver(ledger, { ledger: other }, asleep) {
  const watched = undecidedParts(other); // they run, and may still follow their stop
  const groupOf = ({ name, kind, group }) => asleep.find((one) => one.name === name)?.group ?? (other.restore ? group : kind === 'postgres' ? 1_000_000 : group * 100);
  ledger.parts.push(...other.parts.filter((part) => part.runningAt === null || watched.includes(part)).map((part) => ({ ...part, group: groupOf(part) })));
  const gone = other.before.units.filter((one) => !ledger.before.units.includes(one)); // with those parts, or with an earlier boot
  return { units: other.boot === ledger.boot ? gone : await lostUnits(gone, true), containers: other.before.containers.filter((one) => !ledger.before.containers.includes(one)) };
}

/** The story: extract, look through, stop, swap, start, check. Returns the exit code. */
async function carryOut(comeback, left, script, file, startedAt) {
  const { archive, stamp, settings, pieces, manifest, how } = comeback, { stateFolder } = how;
  const ledger = await openLedger(stateFolder, { run: randomUUID(), server: how.bare ? manifest.server : serverName(settings), archive, startedAt,
    deadlineAt: '9999-01-01T00:00:00.000Z', stopTimeoutSeconds: settings.stopTimeoutSeconds });
  const lost = left ? await carryOver(ledger, left, comeback.asleep) : { units: [], containers: [] };
  const andLost = ({ units, containers }) => ({ units: [...new Set([...units, ...lost.units])], containers: [...new Set([...containers, ...lost.containers])] });
  ledger.before = andLost(ledger.before);
  const restore = ledger.restore = { archive, stamp, stagings: stagingsOf(pieces), swaps: [], folders: [], made: [], later: [], state: '' };
  let guardPid = 0, trouble = null, down = [];
  try {
    keepLedger(stateFolder, ledger); // whoever finds it without us removes the stagings
    guardPid = await armGuard(script, stateFolder, file, ledger.run);
    await makeVolumes(pieces);
    await stage(settings, manifest, pieces, ledger.run);
    await lookOnceMore(comeback);
    ledger.before = andLost(await activeOnHost());
    Object.assign(restore, { later: await partsToCome(comeback), made: missingFolders(comeback) });
    ledger.parts = ledger.parts.filter((part) => !comeback.parts.some(({ name }) => name === part.name)); // what has come up since is noted anew as it is stopped
    ledger.deadlineAt = new Date(Date.now() + settings.maxDowntimeMinutes * 60_000).toISOString();
    // From here services are down.
    await stopParts(comeback.parts, ledger, stateFolder);
    await refuseUsedPlaces(comeback);
    Object.assign(restore, swapsOf(pieces, stamp)); // only now nothing comes or goes any more in the places
    keepLedger(stateFolder, ledger); // all swaps, before the first one
    makeFolders(comeback, restore.made);
    makeSwaps(restore);
  } catch (error) {
    trouble = error;
  }
  try {
    await settleRestore(ledger);
    ledger.parts.sort((one, other) => one.group - other.group); // what was taken over came first
    keepLedgerIfPossible(stateFolder, ledger);
    down = await startParts(ledger, stateFolder);
  } catch (error) { // a disk has gone: the guard goes on
    sayError(error);
    down = ledger.parts.filter((part) => part.runningAt === null).map((part) => part.name).concat(ledger.parts.length === 0 ? ['everything'] : []);
  }
  // From here services run again.
  return finish(comeback, ledger, guardPid, down, trouble);
}

async function makeVolumes(pieces) {
  for (const { volume, place } of pieces.filter((piece) => piece.volume !== '')) {
    const done = await change(['docker', 'volume', 'create', volume]);
    if (done.code !== 0) throw failure(`volume ${volume} cannot be made`, done);
    if (!fs.existsSync(place)) throw new Problem(`Docker made the volume ${volume} elsewhere than in ${named(place)}`,
      { hint: 'begin again: now it is there' });
  }
}

/** Folders above the places, and of sockets, that are not here: PostgreSQL does not start below a folder that it may not enter. */
function missingFolders({ manifest, pieces, clusters }) {
  const needed = [...pieces.map((piece) => path.dirname(piece.place)), ...clusters.filter((one) => one.container === '' && path.isAbsolute(one.socketFolder ?? '')).map((one) => path.resolve(one.socketFolder))]
    .filter((folder) => !pieces.some((piece) => isBelow(folder, piece.place)));
  const known = manifest.parents.map((one) => one.path);
  return [...new Set(needed.flatMap((folder) => [...known.filter((one) => isBelow(folder, one)), folder]))].filter((folder) => !isThere(folder)).sort();
}

function makeFolders({ manifest }, folders) {
  const idHere = (list, file, id) => {
    const name = list.find((one) => one.id === id)?.name, line = fs.readFileSync(file, 'utf8').split('\n').find((one) => name && one.startsWith(`${name}:`));
    return line ? Number(line.split(':')[2]) : id;
  };
  for (const folder of folders) {
    const parent = manifest.parents.find((one) => one.path === folder);
    fs.mkdirSync(folder, { recursive: true, mode: 0o755 });
    if (!parent) continue;
    const uid = idHere(manifest.host.users.map(({ id, name }) => ({ id, name })), '/etc/passwd', parent.uid), gid = idHere(manifest.host.groups.map(({ id, name }) => ({ id, name })), '/etc/group', parent.gid);
    giveFolder(folder, { mode: parseInt(parent.mode, 8) & 0o7777, uid, gid });
  }
}

// The extraction may have taken hours: what came up meanwhile is stopped, too, else it would go on in the old contents; what else was stopped stays so.
async function lookOnceMore(comeback) {
  const before = comeback.parts.map((part) => part.name);
  Object.assign(comeback, await partsOf(comeback));
  const started = comeback.parts.map((part) => part.name).filter((name) => !before.includes(name));
  if (started.length > 0) say(`started since this restore began, and stopped now: ${started.join(', ')}`);
}

// Somebody may have started a cluster or a container by hand since it was stopped.
async function refuseUsedPlaces({ pieces, clusters, parts }) {
  const folders = [...clusters.map((one) => whereIs(pieces, one.dataDirectory, (piece) => piece.place)), ...parts.map((part) => part.dataDirectory ?? '')].filter((folder) => folder !== '' && fs.existsSync(folder));
  const used = folders.find((folder) => isUsed(folder) || clusterState(folder) !== 'stopped');
  if (used) throw new Problem(`PostgreSQL runs in ${named(used)}, and it was stopped a moment ago`, { hint: 'who started it? Then begin again' });
  const touches = touchesPlace(pieces), box = (await findContainers(false)).find((one) => one.running && one.mounts.some(({ source }) => touches(source)));
  if (box) throw new Problem(`container ${box.name} runs, and has mounted what comes back`, { hint: 'who started it? Then begin again' });
}

/** Close what is over, check what came back, tell it all. Returns the exit code. */
async function finish(comeback, ledger, guardPid, down, trouble) {
  const { how: { stateFolder } } = comeback, { state } = ledger.restore, isOpen = down.length > 0 || undecidedParts(ledger).length > 0;
  if (state !== '') await removeStagings(ledger.restore); // until then they are needed: without them no swap can be undone, and one that was never begun looks done
  ledger.reported = down.length > 0 ? 'down' : 'failed';
  if (isOpen) keepLedgerIfPossible(stateFolder, ledger); // the guard goes on from it
  else closeLedger(stateFolder);
  if (guardPid && !isOpen) dismissGuard(guardPid, stateFolder);
  const wrong = trouble || state !== 'new' || down.length > 0 ? [] : await checkWhatCameBack(comeback).catch((error) => {
    trouble = askedToStop() ? error : null;
    return trouble ? [] : [`the check did not get through: ${error.message}`];
  });
  return tellEnd(comeback, ledger, { down, isOpen, trouble, wrong });
}

/** Tell what runs now and how to get to the other state. Returns the exit code. */
function tellEnd({ archive, how }, ledger, { down, isOpen, trouble, wrong }) {
  const { state, swaps } = ledger.restore, seconds = downSecondsOf(ledger);
  const services = ledger.parts.length > 0 || down.length === 0 ? servicesNow(ledger, down) : 'NOTHING IS STARTED. Act now: node backup.js recover';
  if (trouble) sayError(trouble, services);
  const text = swaps.length > 0 ? tellRestore(how.stateFolder, ledger, isOpen) : '';
  if (!trouble && down.length > 0) sayError(new Problem(`not running: ${down.join(', ')}`,
    { hint: state === '' ? 'mend or mount the disk, then: node backup.js recover' : 'look at its own log; mend it, and the guard starts it. Or go back with the commands below' }), services);
  if (wrong.length > 0) sayError(new Problem(`${archive} is in place and runs, but ${wrong.join('; ')}`,
    { hint: 'go back with the commands below, or restore another archive' }), services);
  const asked = trouble instanceof Problem ? trouble.facts.exitCode ?? 2 : 2, isBad = trouble !== null || wrong.length > 0;
  const exitCode = down.length > 0 ? 3 : isBad ? asked : warnings.length > 0 ? 1 : 0;
  const place = { new: `${archive} is in place`, old: 'the old contents are in place', '': 'it is undecided whether old or new contents are in place' }[state];
  const lines = [`${exitCode >= 2 ? 'NOT GOOD' : 'restored'}: ${place}, down ${span(seconds)}; services: ${services}`, text,
    ...(warnings.length > 0 ? ['warnings', ...warnings.map((one) => `  ${one}`)] : [])];
  sayBlock(`\n${lines.filter((line) => line !== '').join('\n')}`);
  if (mode.json) answer(JSON.stringify({ archive, state, exitCode, downSeconds: seconds, swaps, wrong, down, warnings }));
  return exitCode;
}

function downSecondsOf({ parts }) {
  const end = (part) => Date.parse(part.runningAt ?? new Date().toISOString());
  return parts.length === 0 ? 0 : (Math.max(...parts.map(end)) - Math.min(...parts.map((part) => Date.parse(part.askedAt)))) / 1000;
}

// =========================================================================================================
// ==== CHECKS ====
// What a drill looks at in a copy before it runs: files as listed when cold, page checksums.
// The chapter after this one asks the rest of a copy that runs. No single check sees all: a page of zeros passes checksums,
// amcheck and pg_dump, and only counting sees it; an index whose collation changed its order passes everything but amcheck.
// All of it runs inside the sandbox, on the copy, and may write there.

const TOLD = 5; // of each kind of damage; the first ones tell where to look
const DAY = 86_400;
const good = (detail) => ({ ok: true, detail });
const unknown = (detail) => ({ ok: null, detail });
const bad = (lines, damaged = []) => ({ ok: false, detail: [...lines.slice(0, TOLD), ...(lines.length > TOLD ? [`and ${lines.length - TOLD} more`] : [])].join('\n'), damaged });

// ---- while it does not run ----

const FILE_CHECKS = [
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
async function compareListing({ passport, files, listing }) {
  const roots = passport.roots, [was, is, found] = ['was', 'is', 'found'].map((name) => path.join(path.dirname(files), name)); // not beside the listing: an archive may have laid links there
  const there = roots.map((root) => files + root).filter((root) => fs.existsSync(root));
  if (there.length === 0) return bad(['nothing of it is in this archive']); // find(1) without a path would look where we are
  const raw = fs.openSync(found, 'w', 0o600);
  const done = await look(['find', ...there, '-printf', LISTING_FORMAT], { stdout: raw, seconds: DAY }).finally(() => fs.closeSync(raw));
  if (done.code !== 0) throw failure('the extracted files cannot be listed', done);
  const total = { bytes: 0, files: 0 };
  const write = async (from, to, place) => {
    const out = fs.openSync(to, 'w', 0o600);
    let lines = [];
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
  const facts = new Map();
  for (const record of differing.out.split('\0').filter((one) => one !== '')) {
    const isHere = record.startsWith('\t'), [file = '', ...rest] = record.replace(/^\t/, '').split('\t');
    facts.set(file, { ...facts.get(file), [isHere ? 'is' : 'was']: rest.join(' ').trim() });
  }
  if (facts.size === 0) return good(`${count(total.files, 'file')}, ${size(total.bytes)}`);
  return bad([...facts].map(([file, one]) => `${named(file)}: ${one.was === undefined ? 'was not there' : one.is === undefined ? 'is missing' : `was ${one.was}, is ${one.is}`}`), [...facts.keys()]);
}

// =========================================================================================================
// ==== SERVER CHECKS ====
// What a drill asks of the copy once it runs: databases, libraries, indexes, rows.
// Whether every database opens, libraries load, strings sort as they did, tables and indexes are sound and have the rows that
// they must have; and the questions of the settings. Runs on the copy, inside the sandbox, and may write there.

const SERVER_CHECKS = [
  { check: 'databases open', examine: async (copy) => {
    const expected = copy.passport.databases.filter((one) => one.connectable).map((one) => one.name);
    const list = await queryCluster(copy.server, await homeOf(copy.server), 'select jsonb_agg(datname order by datname) from pg_database where datallowconn and datconnlimit <> -2', DAY);
    if (list.code !== 0) throw new Problem('the copy does not name its databases', { said: list.said });
    copy.databases = answerOf('the copy does not name its databases', list, ['text']);
    const done = await inEach(copy, 'select 1');
    const closed = [...done].filter(([, one]) => one.code !== 0).map(([name, { said }]) => `${named(name)}: ${lastLines(said, 2)}`);
    const missing = expected.filter((name) => !done.has(name));
    return closed.length > 0 ? bad(closed) : good(`${done.size} of ${done.size}${missing.length > 0 ? `; gone since the passport: ${missing.map(named).join(', ')}` : ''}`);
  } },
  { check: 'libraries load', examine: async (copy) => {
    const lines = warningsOf(await inEach(copy, LOAD_ALL, WRITES), 'MISSING');
    return lines.length > 0 ? bad(lines) : good('every library that functions of extensions need');
  } },
  { check: 'collations', examine: compareCollations },
  { check: 'amcheck', examine: runAmcheck },
  { check: 'row counts', examine: compareRows },
  { check: 'heap against index', examine: compareHeapAndIndex },
  { check: 'your queries', examine: askQueries },
  { check: 'dump', examine: async (copy) => {
    if (!copy.full) return unknown('only with --full');
    const done = await inEach(copy, (name) => look([...copy.sandbox.words, 'sh', '-c', 'exec "$@" > /dev/null', 'sh', program(copy, 'pg_dump'), '-h', '/own', '-p', copy.server.port, '-U', copy.server.owner, '-d', name], { seconds: DAY }));
    const failed = [...done].filter(([, one]) => one.code !== 0).map(([name, { said }]) => `${named(name)}: ${lastLines(said, 2)}`);
    return failed.length > 0 ? bad(failed) : good(`${count(done.size, 'database')}, from begin to end`);
  } },
];

const WRITES = { default_transaction_read_only: 'off', session_replication_role: 'replica', client_min_messages: 'warning' }; // replica: no trigger of the cluster's fires
const program = ({ programs }, name) => (programs.image || fs.existsSync(path.join(programs.binaries, name)) ? path.join(programs.binaries, name) : name);

/** Ask every database that may be opened, two at a time: SQL, or something else. Returns how each ended, by name. */
async function inEach(copy, ask, more = {}) {
  const names = copy.databases, found = new Map();
  const one = async (name) => found.set(name, await (typeof ask === 'string' ? queryCluster(copy.server, name, ask, DAY, { ...QUIET, ...more }) : ask(name)));
  for (let i = 0; i < names.length; i += 2) await Promise.all(names.slice(i, i + 2).map(one));
  return new Map(names.map((name) => [name, found.get(name)]));
}

const QUIET = { session_preload_libraries: '', local_preload_libraries: '', lock_timeout: '0', lc_messages: 'C' };

// What a DO block had to say, and what kept it from its work.
function warningsOf(ends, word) {
  return [...ends].flatMap(([database, { code, said }]) => [
    ...[...said.matchAll(new RegExp(`^WARNING:  ${word} (.*)$`, 'gm'))].map(([, what]) => `${named(database)}: ${what}`), ...(code === 0 ? [] : [`${named(database)}: ${lastLines(said, 2)}`])]);
}

const LOAD_ALL = `do $$ declare one text; begin for one in select distinct probin from pg_proc where probin is not null and oid >= 16384 loop
  begin execute 'load ' || quote_literal(one); exception when others then
    if sqlerrm ~ '^(could not|incompatible)' then raise warning 'MISSING %', replace(one || ': ' || sqlerrm, chr(10), ' '); end if; end; end loop; end $$`; // some only want to be preloaded, which here they never are

// Equal version numbers do not mean an equal order, nor other ones another: what strings really sort like decides, and amcheck after it.
async function compareCollations(copy) {
  const server = copy.server, wrong = [], renamed = [];
  let compared = 0;
  for (const was of copy.passport.databases.filter((one) => one.collations && copy.databases.includes(one.name))) {
    const is = await askCluster(server, was.name, { collations: databaseQuestions.collations });
    for (const { schema, name, indexes, partitionedTables, orderFingerprint: before } of was.collations) {
      const here = is.collations?.find((one) => one.schema === schema && one.name === name), affected = [...indexes, ...partitionedTables].join(', ');
      if (!here || affected === '') continue;
      const after = await orderFingerprint(server, was.name, name === 'default' ? undefined : `${quotedName(schema)}.${quotedName(name)}`);
      compared++;
      if (before && after !== before) wrong.push(`${named(was.name)}: collation ${name} sorts otherwise than it did: REINDEX ${affected}`);
      else if (here.recorded !== here.actual && here.actual) renamed.push(`${named(was.name)}: collation ${name} is of version ${here.actual}, was ${here.recorded}: REINDEX ${affected}, then REFRESH`);
    }
  }
  if (wrong.length > 0) return bad(wrong);
  return renamed.length > 0 ? unknown(`sample strings still sort alike, but\n${renamed.slice(0, TOLD).join('\n')}`) : good(`${count(compared, 'collation')} that indexes use sort as they did`);
}

// An index on a function that finds its own functions and tables only by the search_path of its applications cannot be compared with its table, but is not damaged: no damage has these codes.
const NOT_FOUND = "'42883', '42P01', '42704', '3F000'"; // function, table, type, schema (manual, "PostgreSQL Error Codes")

// Like pg_amcheck --heapallindexed --install-missing (so in pg_catalog: `public` may be gone), but for every version, and where only the extension is installed, or an old one (1.0 of PostgreSQL 10 compares nothing). One statement a database; what fails is named.
const AMCHECK = `do $$ declare one record; bad record; more text; home text; begin
  begin create extension if not exists amcheck schema pg_catalog; alter extension amcheck update; exception when others then null; end;
  select quote_ident(nspname) into home from pg_extension e join pg_namespace n on n.oid = extnamespace where extname = 'amcheck';
  if home is null then raise warning 'LACKING'; return; end if;
  if to_regproc(home || '.verify_heapam') is not null then
    for one in select c.oid, c.oid::regclass as name from pg_class c join pg_am a on a.oid = relam where amname = 'heap' and relkind in ('r', 'm', 't') and relpersistence <> 't' loop
      begin
        for bad in execute format('select * from %s.verify_heapam(%L::regclass)', home, one.oid) loop
          raise warning 'DAMAGED table %, page %, row %: %', one.name, bad.blkno, bad.offnum, replace(bad.msg, chr(10), ' ');
        end loop;
      exception when others then raise warning 'DAMAGED table %: %', one.name, replace(sqlerrm, chr(10), ' '); end;
    end loop;
  end if;
  for one in select x.oid, x.oid::regclass as name, indrelid::regclass as tab, amname from pg_index join pg_class x on x.oid = indexrelid join pg_am a on a.oid = x.relam
      where amname in ('btree', 'gin') and indisvalid and indisready and x.relkind = 'i' and x.relpersistence <> 't' loop
    begin
      if one.amname = 'btree' then execute format('select %s.bt_index_check(%L::regclass, true)', home, one.oid);
      elsif to_regproc(home || '.gin_index_check') is not null then execute format('select %s.gin_index_check(%L::regclass)', home, one.oid); end if;
    exception when others then
      get stacked diagnostics more = pg_exception_detail;
      raise warning '% index % of table %: %', case when sqlstate in (${NOT_FOUND}) then 'UNKNOWN' else 'DAMAGED' end, one.name, one.tab, replace(sqlerrm || ' ' || more, chr(10), ' ');
    end;
  end loop; end $$`;

async function runAmcheck(copy) {
  const made = await inEach(copy, AMCHECK, WRITES), lacking = [...made].filter(([, { said }]) => /^WARNING:  LACKING$/m.test(said)).map(([name]) => named(name));
  if (lacking.length === made.size) return unknown('the extension amcheck is not installed here (Debian: it comes with postgresql-NN; others: postgresql-contrib)');
  const lines = warningsOf(made, 'DAMAGED');
  if (lines.length > 0) return bad(lines);
  const looked = `tables and indexes of ${count(made.size - lacking.length, 'database')}`, unlooked = warningsOf(made, 'UNKNOWN');
  if (unlooked.length > 0) return unknown([`${looked}, but for these, whose functions need a search_path:`, ...bad(unlooked).detail.split('\n')].join('\n'));
  return lacking.length > 0 ? unknown(`${looked}; amcheck cannot be had in ${lacking.slice(0, TOLD).join(', ')}`) : good(looked);
}

// ---- counting ----

const COUNTABLE = "relkind in ('r', 'm') and relpersistence <> 't' and relispopulated and c.oid >= 16384";
const HAS_INDEX = `exists (select from pg_index join pg_class x on x.oid = indexrelid join pg_am a on a.oid = x.relam where indrelid = c.oid and amname = 'btree' and indisvalid and indpred is null)`;
const BY_HEAP = { ...QUIET, enable_indexscan: 'off', enable_indexonlyscan: 'off', enable_bitmapscan: 'off' };
const BY_INDEX = { ...QUIET, enable_seqscan: 'off', enable_bitmapscan: 'off' };
const countAll = (which) => `select ${mapOf(`select c.oid::regclass, substring(query_to_xml('select count(*) n from only ' || c.oid::regclass, false, true, '')::text from '<n>(\\d+)</n>')::bigint
  from pg_class c where ${COUNTABLE} and ${which}`)}`;

/** Given a database, counts the rows of its tables. Returns them by name; a table that cannot be read is told in `broken`. */
async function countRows(server, database, which, scan) {
  const all = await queryCluster(server, database, countAll(which), DAY, scan);
  if (all.code === 0) return { rows: answerOf(`${named(database)} cannot be counted`, all, { '*': 'anything' }), broken: [] };
  const list = await queryCluster(server, database, `select coalesce(jsonb_agg(c.oid::regclass::text), '[]') from pg_class c where ${COUNTABLE} and ${which}`, DAY, QUIET);
  const rows = {}, broken = [];
  for (const name of list.code === 0 ? answerOf(`${named(database)} does not name its tables`, list, ['text']) : []) { // one by one: which is it?
    const { code, out, said } = await queryCluster(server, database, `select count(*) from only ${name}`, DAY, scan);
    if (code === 0) rows[name] = Number(out);
    else broken.push(`${named(database)}: table ${name} cannot be read: ${lastLines(said, 1)}`);
  }
  return { rows, broken: broken.length > 0 || list.code === 0 ? broken : [`${named(database)}: ${lastLines(all.said, 2)}`] };
}

/**
 * Given what the passport counted and the server's own statistics of inserted and deleted rows then and now, returns the fewest and most rows that there can be. Statistics survive a
 * clean stop: a table that nobody touched since has exactly as many. One that was rewritten (VACUUM FULL, TRUNCATE) can have any number.
 */
function rowsExpected(rows, then, now) {
  const [file, inserted = NaN, deleted = NaN] = (then ?? '').split(' ').map(Number), [fileNow, insertedNow = NaN, deletedNow = NaN] = (now ?? '').split(' ').map(Number);
  if (then && now && !Number.isNaN(file) && file !== fileNow) return { least: 0, most: Infinity };
  const more = insertedNow - inserted, less = deletedNow - deleted;
  if (more >= 0 && less >= 0) return { least: rows - less, most: rows + more };
  return { least: Math.ceil(rows * 0.8), most: Infinity }; // no statistics, or begun anew: then only a loss that no evening explains
}

async function compareRows(copy) {
  const server = copy.server, wrong = [], gone = [], tracks = copy.passport.settings?.track_counts !== 'off' && copy.passport.recovery?.inRecovery !== true; // a standby counts nothing
  let tables = 0, exact = 0, total = 0;
  for (const name of copy.databases) {
    copy.counted.set(name, await countRows(server, name, 'true', BY_HEAP));
    wrong.push(...copy.counted.get(name).broken);
  }
  for (const was of copy.passport.databases.filter((one) => one.rows && copy.counted.has(one.name))) {
    const { rows: is, broken } = copy.counted.get(was.name), activity = (await askCluster(server, was.name, activityQuestion)).activity ?? {};
    for (const [name, rows] of Object.entries(was.rows)) {
      if (rows === null || broken.some((line) => line.includes(` table ${name} `))) continue;
      if (is[name] === undefined) {
        gone.push(name);
        continue;
      }
      const { least, most } = rowsExpected(rows, tracks ? was.activity?.[name] : undefined, activity[name]);
      tables++;
      total += is[name];
      if (least === most) exact++;
      if (is[name] < least || is[name] > most) wrong.push(`${named(was.name)}: table ${name} has ${is[name]} rows, ${least === most ? `not ${rows}` : `fewer than the ${least} that there must be`}`);
    }
  }
  if (wrong.length > 0) return bad(wrong);
  return good(`${count(total, 'row')} in ${count(tables, 'table')}, ${exact} of them untouched since the passport and exactly as then${gone.length > 0 ? `; gone since: ${gone.slice(0, TOLD).join(', ')}` : ''}`);
}

async function compareHeapAndIndex(copy) {
  const wrong = [];
  let tables = 0;
  for (const [name, heap] of copy.counted) {
    const index = await countRows(copy.server, name, HAS_INDEX, BY_INDEX);
    wrong.push(...index.broken);
    for (const [table, rows] of Object.entries(index.rows)) {
      tables++;
      if (heap.rows[table] !== undefined && heap.rows[table] !== rows) wrong.push(`${named(name)}: table ${table} has ${heap.rows[table]} rows, but its index knows ${rows}`);
    }
  }
  return wrong.length > 0 ? bad(wrong) : good(tables > 0 ? `${count(tables, 'table')} counted both ways` : 'no table here has an index that counts all its rows');
}

async function askQueries({ queries, server }) {
  const wrong = [];
  for (const { database, sql, expect } of queries) {
    const { code, out, said } = await queryCluster(server, database, sql, DAY, { ...QUIET, search_path: undefined });
    const answer = out.replace(/\n$/, ''), wanted = expect === true ? 't' : expect === false ? 'f' : String(expect);
    if (code !== 0 || answer !== wanted) wrong.push(`${sql}: ${code === 0 ? `the answer is ${named(answer.slice(0, 100))}, not ${named(wanted)}` : lastLines(said, 2)}`);
  }
  return wrong.length > 0 ? bad(wrong) : queries.length > 0 ? good(count(queries.length, 'right answer')) : unknown('none: `drill.queries` in the settings');
}

/** Given files of a copy that runs, returns what they are: 'base/5/16384: table public.orders of database shop'. */
async function nameFiles(copy, files) {
  const found = [];
  for (const file of [...new Set(files)].slice(0, TOLD)) {
    const [, oid, node] = /\/(?:base|PG_\d+_\d+)\/(\d+)\/(\d+)(?:[._][^/]*)?$/.exec(file) ?? [];
    if (!oid || !node) continue;
    const database = (await queryCluster(copy.server, await homeOf(copy.server), `select datname from pg_database where oid = ${oid}`)).out.trim();
    const { out } = await queryCluster(copy.server, database, `select case relkind when 'i' then 'index ' when 't' then 'TOAST table ' else 'table ' end || c.oid::regclass || coalesce(' of table ' || indrelid::regclass, '')
      from pg_class c left join pg_index on indexrelid = c.oid where pg_relation_filenode(c.oid) = ${node}`);
    if (out.trim()) found.push(`${named(path.basename(file))} is ${out.trim()} in database ${named(database)}`);
  }
  return found;
}

// =========================================================================================================
// ==== LOCKED IN ====
// Locked in: a cluster's copy finds in its sandbox only what came with it, at the old paths.
// What an archive says of itself is believed nowhere here: whoever could write one would have this machine's root do as it says.
// Changes only the drill's folder.

/** Given the drill's folder, the manifest and a copy, gives the copy to the sandbox's user and opens its sandbox. Throws Problem when something of it would lead out. */
async function lockIn(folder, manifest, copy) {
  const { passport, files } = copy, roots = passport.roots.filter((root) => fs.statSync(files + root, { throwIfNoEntry: false })?.isDirectory() && !['/etc', '/record'].some((folder) => isBelow(root, folder)));
  if (!fs.lstatSync(copy.onHost, { throwIfNoEntry: false })?.isDirectory()) throw new Problem(`${named(passport.dataDirectory)} is not in this archive, or is no folder there: its record cannot be trusted`);
  for (const root of [...roots, passport.dataDirectory]) if (fs.realpathSync(files + root) !== files + root) throw new Problem(`${named(root)} is a link in this archive, or lies below one: its record cannot be trusted`);
  const mounts = manifest.containers.find((box) => box.name === passport.container)?.mounts ?? [];
  const inside = (root) => {
    if (passport.container && isBelow(root, passport.dataDirectory)) return copy.inside + root.slice(passport.dataDirectory.length); // its mount may be typed over a link
    const mount = mounts.filter((single) => isBelow(root, single.source)).sort((a, b) => b.source.length - a.source.length)[0];
    return mount ? path.normalize(mount.destination + root.slice(mount.source.length)) : root;
  };
  // What lies outside is seen where PostgreSQL looks for it, too: its link may lead there over another one, which is in no archive.
  const wal = path.join(copy.onHost, 'pg_wal'), walLink = fs.lstatSync(wal, { throwIfNoEntry: false })?.isSymbolicLink() ? path.resolve(copy.inside, fs.readlinkSync(wal)) : '';
  const looksFor = [...passport.tablespaces.map(({ link, location }) => [location, link]), [passport.walFolder, walLink]]
    .filter(([root, link]) => roots.includes(root) && typeof link === 'string' && path.isAbsolute(link) && !roots.some((one) => isBelow(link, inside(one))));
  const places = [...roots.map((root) => [root, inside(root)]), ...looksFor].map(([root, at]) => ({ from: files + root, at: path.resolve('/', at) })).filter(({ at }, index, all) => all.findIndex((other) => other.at === at) === index);
  const system = places.find(({ at }) => /^\/(|(bin|sbin|lib\w*|etc|proc|dev|sys|own|tmp)(\/.*)?|usr|usr\/local|usr\/(local\/)?(s?bin|lib\w*)(\/.*)?)$/s.test(at) && !/^\/tmp\/./.test(at));
  if (system) throw new Problem(`${named(system.at)} is a folder of the system, no place for a cluster: the record of this archive cannot be trusted`);
  // A standby's copy comes up by itself, and follows nobody. And whatever its owner may have put in the place of our mark goes.
  for (const name of ['standby.signal', 'recovery.signal', SANDBOX_MARK]) fs.rmSync(path.join(copy.onHost, name), { force: true, recursive: true });
  fs.writeFileSync(path.join(copy.onHost, SANDBOX_MARK), '', { flag: 'wx' });
  copy.sandbox = await openSandbox(folder, places, copy.programs);
  const user = fs.statSync(path.join(folder, 'own'));
  const owned = await look(['find', ...places.map(({ from }) => from), '-type', 'b,c', '-delete', '-o', '-exec', 'chown', '--no-dereference', `${user.uid}:${user.gid}`, '{}', '+'], { seconds: 3600 }); // a device would be this machine's
  if (owned.code !== 0) throw failure('the copy cannot be given to the user of the sandbox', owned);
  const opened = await look(['chmod', 'u=rwx,go=', ...places.map(({ from }) => from)]); // PostgreSQL insists
  if (opened.code !== 0) throw failure('the copy cannot be closed to others', opened);
}

// =========================================================================================================
// ==== REHEARSAL ====
// The rehearsal of a drill: extracts clusters into the scratch folder, starts and checks each.
// In the sandbox; and it measures. Reads the repository without borg's lock, so that a night neither waits nor is waited for;
// writes only in the scratch folder, which the drill removes.

const RECORD = ['record/manifest.json', 'record/listing']; // what else lies in that folder of an archive was laid there by somebody else
const NICELY = ['nice', '-n', '5', 'ionice', '-c', '2', '-n', '7']; // a night that comes along goes first

/** The drill began with the archive that this server remembers as its last, and the repository has a newer one, which is the message: begin again with that. */
class Superseded extends Error {}

/**
 * Given the drill's settings, those of its own borg, the archive's name or 'latest', and its folder, rehearses. Returns the
 * certificate. Throws Problem when there is nothing to rehearse, Superseded when it began with an older archive than is
 * meant.
 */
async function rehearse(settings, borg, server, name, id, folder, full, startedAt) {
  const record = path.join(folder, 'files/record'), extracted = { bytes: 0, seconds: 0 };
  const marked = { env: markOfRun(id) }; // who removes the scratch folder of a killed drill ends its borgs first: they would make it anew
  const version = borgVersion(), listed = patiently(() => listArchives(borg, server, WITHOUT_LOCK, marked)).then((all) => {
    const meant = archiveMeant(all, name);
    if (name === 'latest') warnUnlessOurs(settings.stateFolder, all, meant);
    return meant;
  });
  // Each start of borg takes a second. What this server itself saved last is safe to extract, and its record is here: that begins before the list
  // of archives is there. Of any other archive it is looked first whether borg would write elsewhere.
  let archive = name === 'latest' ? lastGoodRun(settings.stateFolder)?.archive ?? '' : name;
  const own = archive && copyOwnRecord(settings.stateFolder, archive, record);
  if (own) {
    for (const one of [version, listed]) one.catch(() => {}); // heard in confirm()
  } else {
    const [found, meant] = await Promise.allSettled([version, listed]); // no borg is left behind when one fails
    for (const one of [found, meant]) if (one.status === 'rejected') throw one.reason;
    archive = await listed;
    await patiently(() => measure(borg, archive, [], WITHOUT_LOCK, marked));
    await extractFrom({ id, folder, borg, archive }, RECORD, 'record');
  }
  const confirm = async () => {
    await version;
    if (await listed !== archive) throw new Superseded(await listed);
  };
  for (const name of own ? [] : ['manifest.json', 'listing']) if (!fs.lstatSync(path.join(record, name), { throwIfNoEntry: false })?.isFile()) throw new Problem(`${archive} has no record/${name}, so it cannot be rehearsed`,
    { hint: 'was it written by this script? `node backup.js list` tells' });
  const manifest = soundManifest(own || plainText(path.join(record, 'manifest.json'), 1 << 28), archive);
  const one = { settings, borg, id, folder, archive, manifest, own, full, checks: [], extracted, confirm };
  const all = await bytesBelow(path.join(folder, 'files/record/listing'), ['/']);
  for (const cluster of manifest.postgres) await rehearseCluster(one, cluster);
  await confirm();
  if (manifest.postgres.length === 0 || full) await readBack(one, all.bytes);
  else if (manifest.plan.roots.some(({ why }) => !why.startsWith('cluster '))) {
    one.checks.push({ cluster: '', check: READ_BACK, ok: null, seconds: 0, detail: 'only with --full' });
  }
  for (const { cluster, ...query } of settings.drill.queries) {
    if (!manifest.postgres.some((known) => isNamed(known, cluster))) one.checks.push({ cluster, check: 'your queries', ok: false, seconds: 0, detail: `no cluster ${named(cluster)} in this archive: ${query.sql}` });
  }
  const { bytes, seconds } = one.extracted;
  return { archive, server: manifest.server, proven: one.checks.length > 0 && one.checks.every((check) => check.ok !== false), madeAt: startedAt.toISOString(), where: os.hostname(), full, checks: one.checks, extractedBytes: bytes,
    extractSeconds: seconds, restoreSeconds: Math.round(10 * seconds * (bytes > 0 ? Math.max(1, all.bytes / bytes) : 1)) / 10, drillSeconds: (Date.now() - startedAt.getTime()) / 1000 };
}

// A night that comes along makes a new record: its first step removes the old one, its last step writes the manifest, which is copied last here.
function copyOwnRecord(stateFolder, archive, to) {
  const text = ownManifest(stateFolder, archive), names = ['listing', 'manifest.json'];
  if (!text) return '';
  try {
    fs.mkdirSync(path.dirname(to), { mode: 0o711 }); // the sandbox's user has to pass
    fs.mkdirSync(to, { mode: 0o700 });
    for (const name of names) fs.copyFileSync(path.join(recordFolder(stateFolder), name), path.join(to, name));
    return fs.readFileSync(path.join(to, 'manifest.json'), 'utf8') === text ? text : '';
  } catch {
    return '';
  }
}

// borg without its lock may look at the repository in the very moment in which a run completes an archive.
async function patiently(ask) {
  for (let attempt = 1; ; attempt++) {
    const began = Date.now();
    try {
      return await ask();
    } catch (error) {
      goOn();
      if (attempt === 3 || Date.now() - began > 15_000 || !(error instanceof Problem) || /passphrase|key ?file|integrity/i.test(`${error.facts.said} ${error.facts.hint}`)) throw error;
      say(`the repository was busy: ${error.message}; once more`);
      await look(['sleep', '2']);
    }
  }
}

const isNamed = ({ name, dataDirectory }, wanted) => [name, `postgres ${name}`, dataDirectory, name.replace(/^container /, '')].includes(wanted);

async function rehearseCluster(one, passport) {
  const cluster = passport.name;
  const step = async (check, work) => {
    const began = Date.now();
    say(`${cluster}: ${check}`);
    const verdict = await work().catch(async (error) => {
      goOn();
      await one.confirm();
      if (!(error instanceof Problem)) throw error;
      return { ok: false, detail: [error.message, ...(error.facts.said ? [lastLines(error.facts.said, 4)] : []), ...(error.facts.hint ? [error.facts.hint] : [])].join('\n') };
    });
    goOn();
    one.checks.push({ cluster, check, ok: verdict.ok, seconds: (Date.now() - began) / 1000, detail: verdict.detail });
    return verdict;
  };
  const files = path.join(one.folder, 'files'), onHost = files + passport.dataDirectory, inside = passport.insideDataDirectory || passport.dataDirectory;
  const queries = one.settings.drill.queries.filter((query) => isNamed(passport, query.cluster));
  const copy = { passport, files, onHost, inside, listing: path.join(files, 'record/listing'), queries, full: one.full, // and what is not known yet:
    programs: { version: '', binaries: '', image: '' }, sandbox: { folder: '', words: [], end: async () => {} }, server: null, databases: [], counted: new Map() };
  const begun = await step('extract', async () => {
    const programs = await findPrograms(passport, one.manifest);
    if (!programs) throw new Problem(`no PostgreSQL ${named(passport.version)} here to start it with`,
      { hint: packagesMissing(passport, one.manifest) });
    copy.programs = programs;
    return extractCluster(one, copy);
  });
  if (begun.ok === false) return await removeFiles(one);
  try {
    const damaged = [];
    const first = await step(FILE_CHECKS[0].check, () => FILE_CHECKS[0].examine(copy));
    damaged.push(...first.damaged ?? []);
    await lockIn(one.folder, one.manifest, copy);
    for (const { check, examine } of FILE_CHECKS.slice(1)) damaged.push(...(await step(check, () => examine(copy))).damaged ?? []);
    const started = await step('starts', async () => {
      copy.server = await startInside(copy.sandbox, copy.programs, copy.inside, copy.onHost, superusers(passport));
      return { ok: true, detail: `PostgreSQL ${passport.version}, ${copy.programs.image ? `in image ${copy.programs.image}` : 'with this host\'s own programs'}` };
    });
    if (started.ok) for (const { check, examine } of SERVER_CHECKS) await step(check, () => examine(copy));
    if (started.ok && damaged.length > 0) one.checks.find((check) => check.cluster === cluster && check.ok === false).detail += (await nameFiles(copy, damaged)).map((line) => `\n${line}`).join('');
  } finally {
    await copy.sandbox.end();
    await removeFiles(one);
  }
}

// Several files at a time: to free what the kernel remembers of 5 GB takes seconds. What cannot be removed is told at the end of the drill.
async function removeFiles({ folder }) {
  const names = ['own', 'root', ...fs.readdirSync(path.join(folder, 'files')).map((top) => `files/${top}`)].filter((name) => name !== 'files/record');
  await Promise.allSettled(names.map((name) => fs.promises.rm(path.join(folder, name), { recursive: true, force: true, maxRetries: 3 })));
}

// Roles out of the archive; the one that initdb made comes first.
function superusers({ roles = [], owner }) {
  const known = roles.filter((role) => role.rolsuper && role.rolcanlogin).sort((a, b) => Number(a.oid) - Number(b.oid)).map((role) => String(role.rolname));
  return [...new Set([...known, owner, 'postgres'])].filter((role) => role !== '').slice(0, 10);
}

function packagesMissing({ version, container }, { packages, containers, postgres }) {
  const box = containers.find((one) => one.name === container);
  if (box) return pasteable(['docker', 'pull', box.imageDigests[0] ?? box.image]);
  const own = postgres.find((one) => one.version === version)?.packages ?? packages;
  const names = Object.keys(own.needed).filter((name) => name.startsWith('postgresql-') && name.includes(version)).map((name) => name.split(':')[0]);
  return `apt-get install ${[...new Set([`postgresql-${version}`, ...names])].filter((name) => /^[\w.+-]+$/.test(name)).join(' ')}`;
}

/** Extract the files of a cluster. Given that what runs it is here, refuses without room, or when borg cannot read everything. */
async function extractCluster(one, { passport, listing }) {
  const roots = outermost(passport.roots.filter((root) => root !== '/' && !isBelow(root, '/record'))); // pg_wal lies below the data directory, most often
  const left = fs.readdirSync(path.join(one.folder, 'files')).filter((name) => name !== 'record'); // borg would write through a link of the last cluster's
  if (left.length > 0) throw new Problem(`what was extracted before cannot be removed: ${left.map(named).join(', ')}`);
  if (roots.length === 0 || !roots.some((root) => isBelow(passport.dataDirectory, root))) throw new Problem('the record of this archive does not name its files');
  const { bytes, files } = await bytesBelow(listing, roots);
  const free = freeBytes(one.folder), needed = bytes * 1.02 + files * 4096 + 200e6; // WAL, temporary files, catalogs that are vacuumed
  if (free < needed) throw new Problem(`${named(path.dirname(one.folder))} has ${size(free)} free, ${size(needed)} are needed`,
    { hint: '`drill.folder` may name a larger disk' });
  const { seconds, damaged } = await extractFrom(one, [...roots.map((root) => root.slice(1)), ...(one.own ? RECORD : [])], `extracting ${passport.name}`);
  await one.confirm();
  if (one.own && fs.readFileSync(path.join(one.folder, 'files/record/manifest.json'), 'utf8') !== one.own) throw new Problem('the record in the archive is not the one that this server wrote with it');
  one.extracted = { bytes: one.extracted.bytes + bytes, seconds: one.extracted.seconds + seconds };
  return damaged.length > 0 ? bad(damaged) : good(`${count(files, 'file')}, ${size(bytes)}, ${size(bytes / Math.max(seconds, 0.1))}/s`);
}

async function extractFrom(one, paths, title) {
  const target = path.join(one.folder, 'files'), began = Date.now();
  fs.mkdirSync(target, { recursive: true, mode: 0o711 });
  const { damaged } = await patiently(() => extract(one.borg, [...NICELY, 'borg', '--umask', '0022', '--log-json', '--progress', 'extract', '--bypass-lock', '--sparse', '--noflags', `::${one.archive}`, ...paths.map(asPattern)], target, title, markOfRun(one.id)));
  return { seconds: (Date.now() - began) / 1000, damaged };
}

/** How many files lie below these paths, and how large they are, by the listing in the archive. */
async function bytesBelow(listing, roots) {
  const found = { files: 0, bytes: 0 };
  await eachRecord(listing, (record) => {
    const [type, , , , bytes, , , ...file] = record.split('\t');
    if (type === 'd' || !roots.some((root) => isBelow(Buffer.from(file.join('\t'), 'latin1').toString(), root))) return;
    found.files++;
    found.bytes += Number(bytes);
  });
  return found;
}

/** Read everything in the archive back, without writing it anywhere: every chunk comes over the line, is decrypted and verified by borg. */
async function readBack(one, bytes) {
  const began = Date.now();
  say('reading everything back');
  let verdict;
  try {
    const { warned, damaged } = await patiently(() => extract(one.borg, [...NICELY, 'borg', '--log-json', '--progress', 'extract', '--bypass-lock', '--dry-run', `::${one.archive}`], one.folder, 'reading everything back', markOfRun(one.id)));
    verdict = warned ? bad(damaged.length > 0 ? damaged : ['borg warned, which it never does of good files that it only reads']) : good(`${size(bytes)}, every chunk came and was whole`);
    if (one.extracted.bytes === 0) one.extracted = { bytes, seconds: (Date.now() - began) / 1000 };
  } catch (error) {
    goOn();
    if (!(error instanceof Problem)) throw error;
    verdict = { ok: false, detail: `${error.message}\n${lastLines(error.facts.said ?? '', 3)}` };
  }
  one.checks.push({ cluster: '', check: READ_BACK, ok: verdict.ok, seconds: (Date.now() - began) / 1000, detail: verdict.detail });
}

// =========================================================================================================
// ==== DRILL ====
// The drill: a restore, rehearsed. Extracts the clusters of an archive into a scratch folder, starts each in the sandbox, checks it, measures, and
// throws it away. Changes the scratch folder (which it removes, whatever happens; what a killed drill left, the next run, drill or `recover`
// removes) and adds a line to the history. The running clusters are never touched, and a nightly run neither waits for it nor sees it: it has its own
// lock, its own borg cache, reads without borg's lock, and everything it starts is nice to others.

const SCRATCH = 'cold-backup-drill-'; // and the drill's id
const LOCK = 'drill.lock';

const scratchOf = (settings) => settings.drill.folder || path.join(settings.stateFolder, 'drill');

/** Remove what drills left that were killed: processes, containers, files. Does nothing while one is under way. */
async function sweepDrills(settings) {
  const scratch = scratchOf(settings), factsOf = (name) => fs.lstatSync(path.join(scratch, name), { throwIfNoEntry: false });
  const isLeftover = (name) => name.startsWith(SCRATCH) && factsOf(name)?.isDirectory() && factsOf(name)?.uid === process.getuid?.(); // in /var/tmp others make such names, too
  const left = () => (fs.existsSync(scratch) ? fs.readdirSync(scratch).filter(isLeftover) : []);
  if (left().length === 0) return;
  const lock = takeLock(settings.stateFolder, 0, LOCK);
  if (lock === null) return;
  for (const name of left()) await removeScratch(path.join(scratch, name));
  fs.closeSync(lock);
}

// What cannot be removed is told, and keeps neither a night nor a certificate from its end: the next one tries again.
async function removeScratch(folder) {
  await endRun(path.basename(folder).slice(SCRATCH.length), ['SIGKILL']); // a borg that still extracts
  const name = path.basename(folder), left = await dockerAnyway('ps', '--all', '--quiet', `--filter=label=${SANDBOX_MARK}`, `--filter=name=${name}`);
  if (left.out.trim()) await dockerAnyway('rm', '--force', name);
  await fs.promises.rm(folder, { recursive: true, force: true, maxRetries: 3 }).catch((error) => warn(`what a drill left cannot be removed: ${error.message}`));
}

/** `drill [ARCHIVE|latest]`: rehearse a restore. Returns 0 proven, 1 with warnings, 2 not proven. Throws Problem: 75 another drill is under way. */
async function drill(settings, server, [name = 'latest'], full) {
  fs.mkdirSync(settings.stateFolder, { recursive: true, mode: 0o700 });
  refuseIfOthersCanChange(settings.stateFolder, '`stateFolder`');
  await sweepDrills(settings);
  const lock = takeLock(settings.stateFolder, 1, LOCK);
  if (lock === null) throw new Problem('another drill is under way',
    { exitCode: 75, hint: 'wait for its end; `node backup.js status` tells how it went' });
  const startedAt = new Date(), id = randomUUID(), scratch = scratchOf(settings);
  openTranscript(path.join(settings.stateFolder, 'log'), `${startedAt.toISOString().slice(0, 19)}-drill`);
  fs.mkdirSync(scratch, { recursive: true, mode: 0o711 });
  refuseIfOthersCanChange(scratch, '`drill.folder`', { isShared: true });
  const folder = path.join(fs.realpathSync(scratch), `${SCRATCH}${id}`);
  fs.mkdirSync(folder, { mode: 0o700 }); // whatever comes out of the archive, setuid or a device, nobody else reaches it
  let certificate = null, trouble = null;
  try {
    const attempt = (archive) => rehearse(settings, { ...settings, stateFolder: folder }, server, archive, id, folder, full, startedAt);
    certificate = await attempt(name).catch(async (error) => {
      if (!(error instanceof Superseded)) throw error;
      await fs.promises.rm(path.join(folder, 'files'), { recursive: true });
      return attempt(error.message);
    });
  } catch (error) {
    trouble = error;
  }
  await removeScratch(folder);
  return endDrill(settings, certificate, trouble, startedAt, server);
}

/** Tell how it ended: certificate, history, messages. Returns the exit code. */
async function endDrill(settings, certificate, trouble, startedAt, server) {
  const asked = trouble instanceof Problem ? trouble.facts.exitCode ?? 2 : 2;
  if (trouble) sayError(trouble);
  if (certificate) (certificate.proven ? sayBlock : (text) => answerUnlessJson(text))(certificateText(certificate));
  const exitCode = !certificate ? asked : !certificate.proven ? 2 : warnings.length > 0 ? 1 : 0;
  const error = trouble instanceof Error ? trouble.message : certificate && !certificate.proven ? `not proven: ${failedChecks(certificate)}` : '';
  const line = { kind: 'drill', startedAt: startedAt.toISOString(), endedAt: new Date().toISOString(), outcome: exitCode === 0 ? 'good' : exitCode === 1 ? 'warning' : 'failed', exitCode, server: certificate?.server ?? server,
    archive: certificate?.archive ?? '', downSeconds: 0, startSeconds: 0, parts: [], warm: null, cold: null, snapshot: '', warnings: [...warnings], error, ...(certificate ? { certificate } : {}) };
  const words = WORDS[settings.language].message;
  if (exitCode < 128) { // a drill that was called off says nothing about an archive
    try {
      remember(settings.stateFolder, line);
    } catch (full) {
      warn(`the history cannot be written: ${full.message}`);
    }
    if (exitCode >= 2) await tell(settings, { server: line.server, outcome: 'failed', subject: `${words.outcome.failed}: ${line.server}: ${words.drill(line.archive || words.newest, error)}`, body: certificate ? certificateText(certificate) : error, logTail: '', line });
  }
  if (mode.json && certificate) answer(JSON.stringify(certificate, null, 1));
  else if (mode.json) answer(JSON.stringify({ archive: line.archive, proven: false, checks: [], restoreSeconds: null, exitCode, error }));
  return exitCode;
}

const answerUnlessJson = (text) => (mode.json ? sayBlock(text) : answer(text)); // not proven: shown with --quiet, too

// =========================================================================================================
// ==== SCHEDULE ====
// The schedule: what starts this script at night, and when next.
// And, only when somebody says so, its installation as lines of cron or timers of systemd. Changes /etc/cron.d/cold-backup or
// the files cold-backup* in /etc/systemd/system, nothing else.

const commandLine = (script, file, words) => `${pasteable([process.execPath, script])}${file === script ? '' : ` --settings ${pasteable([file])}`} ${words}`;

/** Given settings, script and settings file, writes the lines for cron: the night, what comes after a power cut, the weekly drill. A drill touches nothing that runs, so it has
 * its own day and hour. cron knows only the machine's own time: the window's start is turned into it, as it is tonight. Throws Problem when no cron would read them. */
function installCron(settings, script, file) {
  if (!cronRuns() || !fs.existsSync('/etc/cron.d')) throw new Problem('no cron runs here that would read /etc/cron.d',
    { hint: `install one and start it (apt-get install cron)${hasSystemd() ? ', or: node backup.js setup --schedule systemd' : ''}` });
  if (fs.existsSync('/etc/systemd/system/cold-backup.timer')) {
    throw new Problem('systemd starts it already: there would be two runs a night',
      { exitCode: 64, hint: 'first: systemctl disable --now cold-backup.timer cold-backup-recover.timer cold-backup-drill.timer; rm /etc/systemd/system/cold-backup*; systemctl daemon-reload' });
  }
  const begin = startOfWindow(settings);
  const line = (when, words) => `${when} root ${commandLine(script, file, words).replaceAll('%', '\\%')}`;
  fs.writeFileSync('/etc/cron.d/cold-backup', ['# cold-backup: the nightly run, and what brings services back after a power cut', 'PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin',
    line(`${begin.getMinutes()} ${begin.getHours()} * * *`, '--quiet'), line('@reboot', 'recover --quiet'), line('*/5 * * * *', 'recover --quiet'),
    ...(settings.drill.maxAgeDays > 0 ? [line('0 12 * * 0', 'drill --quiet')] : []), ''].join('\n'), { mode: 0o644 });
  say('wrote /etc/cron.d/cold-backup');
}

// The begin of the window (or 02:00) as this machine's clock shows it, the later one of winter and summer; five minutes in, so
// that no clock is before it.
function startOfWindow(settings) {
  const [winter, summer] = [0, 6].map((month) => windowBegin(settings, new Date(new Date().getFullYear(), month, 15)));
  const minutes = (date) => date.getHours() * 60 + date.getMinutes();
  const later = (minutes(summer) - minutes(winter) + 1440) % 1440 < 720 ? summer : winter;
  return new Date(later.getTime() + (settings.window ? 5 * 60_000 : 0));
}

function windowBegin(settings, begin) {
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
async function installTimers(settings, script, file) {
  if (!hasSystemd()) throw new Problem('this machine is not run by systemd', { hint: 'use --schedule cron' });
  const at = settings.window ? `*-*-* ${settings.window.from}:00 ${settings.window.timeZone}` : '*-*-* 02:00:00';
  const forSystemd = (words) => commandLine(script, file, words).replace(/[%$]/g, '$&$&'); // systemd.service(5): both are expanded, in quotes, too
  const service = (what, words, more) => ['[Unit]', `Description=cold-backup: ${what}`, 'Wants=network-online.target', 'After=network-online.target', '',
    '[Service]', 'Type=oneshot', `ExecStart=${forSystemd(words)}`, ...more, ''].join('\n');
  const timer = (when) => ['[Unit]', 'Description=cold-backup', '', '[Timer]', ...when, '', '[Install]', 'WantedBy=timers.target', ''].join('\n');
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

function textIfAny(file) {
  try {
    return fs.readFileSync(file, 'utf8');
  } catch { // not there, a folder, or not for us
    return '';
  }
}

const textsIn = (folder) => (fs.existsSync(folder) ? fs.readdirSync(folder) : []).map((name) => ({ name, text: textIfAny(path.join(folder, name)) }));

// Whether a cron is at work here: a process of that name (busybox's is crond) that is in no container, or systemd-cron, which has none. Without systemd it may be
// started later, so there it is enough that one is installed.
const cronRuns = () => ['/usr/lib/systemd/system-generators/systemd-crontab-generator', ...(hasSystemd() ? [] : ['/usr/sbin/cron', '/usr/sbin/crond'])].some((file) => fs.existsSync(file)) || fs.readdirSync('/proc').map(Number)
  .some((pid) => /^(cron|crond|fcron)\n$/.test(procFile(pid, 'comm')) && pidNamespace(pid) === pidNamespace(process.pid));

// Whether a line of a crontab or unit takes the backup, given the script: after the script's name, up to what the shell does with it (a pipe, a file, the next command), stands
// no command (`drill`, `status`), and no option with which nothing is taken. FILE of --settings is neither.
const isNight = (line, script) => !/^\s*#/.test(line) && line.split(script).slice(1)
  .map((after) => after.replace(/^['"]/, '').replace(/\s--settings[ =]+('[^']*'|"[^"]*"|[^\s'"])+/, '').split(/\d*>|\s#|[|;&<]/)[0])
  .some((words) => words.split(/\s+/).every((word) => word === '' || /^--(?!dry-run|help|version|print-settings)/.test(word)));

/** Given the script, returns what starts its nightly run ('' = nothing that is known here, and then why, if a crontab line is there all the same) and when next (null: not within eight days, or it cannot be told). */
async function scheduleOf(script) {
  const crontabs = [...textsIn('/etc/cron.d').filter(({ name }) => !/[.~]/.test(name)).map(({ text }) => text), textIfAny('/etc/crontab'), (await look(['crontab', '-l'])).out];
  const lines = crontabs.flatMap((text) => text.split('\n').filter((line) => isNight(line, script)));
  const hasOwnZone = crontabs.some((text) => /^CRON_TZ=/m.test(text)); // then when is not known here
  const times = (hasOwnZone ? [] : lines).map((line) => nextOf(line, new Date())).filter((one) => one !== null).sort((one, other) => one.getTime() - other.getTime());
  if (lines.length > 0 && cronRuns()) return { by: 'cron', at: times[0] ?? null, why: '' };
  const why = lines.length > 0 ? 'a crontab line is there, but no cron runs' : '';
  const starts = (text) => text.split('\n').some((line) => line.startsWith('ExecStart=') && isNight(line, script));
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
function nextOf(line, now) {
  const short = { '@daily': '0 0 * * *', '@midnight': '0 0 * * *', '@hourly': '0 * * * *', '@weekly': '0 0 * * 0' };
  const [minute = '', hour = '', day = '', month = '', weekday = ''] = line.trim().replace(/^@\w+/, (word) => short[word] ?? '').split(/\s+/);
  const fits = (field, value, least = 0) => field.split(',').some((one) => {
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
const localTime = (at) => `${at.toLocaleDateString('sv-SE')} ${at.toTimeString().slice(0, 5)}`;

// =========================================================================================================
// ==== STATUS ====
// The status: is there a good recent backup, and what is to be done?
// Answers from the state folder alone, so it works without the network; the first line is that of a monitoring plugin, the rest
// is one screen for a person. With --remote it asks the repository, too. Only reads.

const TO_SCHEDULE = 'node backup.js setup --schedule cron';

/**
 * `status [--remote]`: prints one line and one screen (or JSON). Returns 0 good, 1 with a warning, 2 nothing recent enough
 * or something is left stopped. With --quiet it says nothing when all is well.
 */
async function status(settings, script, remote) {
  const known = await whatIsKnown(settings, remote), { server, good, trend, left, asked, drills } = known, drill = drills.last;
  const nextRun = await scheduleOf(script), warnings = statusWarnings(known), next = whatToDo(known, nextRun.by);
  const isBad = left !== null || known.disorder !== '' || !known.isRecent, isGood = !isBad && known.last.outcome === 'good' && drills.warning === '' && known.trouble === '';
  const [outcome, mark, code] = left ? ['down', 'CRITICAL', 2] : isBad ? ['failed', 'CRITICAL', 2] : isGood ? ['good', 'OK', 0] : ['warning', 'WARNING', 1];
  if (mode.json) {
    answer(JSON.stringify({ server, outcome, ageHours: good ? known.ageHours : null, archive: good?.archive ?? '', downSeconds: good?.downSeconds ?? null, trend,
      drill: drill && { archive: drill.archive, proven: drill.proven, madeAt: drill.madeAt, ageDays: drills.ageDays, restoreSeconds: drill.restoreSeconds },
      warnings, next, nextRun: { by: nextRun.by, at: nextRun.at?.toISOString() ?? null }, remote: asked }));
  } else if (!mode.quiet || code > 0) {
    const line = (name, text) => `  ${name.padEnd(11)} ${text}`;
    answer([`${mark}: ${server}: ${headline(known, warnings)}`,
      ...(trend ? trendLines(good, trend).map(([name, text]) => line(name, text)) : []),
      line('next run', nextRun.at ? `${localTime(nextRun.at)}, in ${days((nextRun.at.getTime() - Date.now()) / 3_600_000)} (${nextRun.by})`
        : nextRun.by ? `by ${nextRun.by}, when is not known here` : `nothing starts it${nextRun.why && `, ${nextRun.why}`}: ${TO_SCHEDULE}`),
      line('last drill', drill ? `${drill.proven ? 'proved' : 'DID NOT PROVE'} ${drill.archive}, ${days(Math.max(0, drills.ageDays * 24))} ago; a restore takes about ${span(drill.restoreSeconds)}`
        : settings.drill.maxAgeDays === 0 ? 'none here, say the settings' : 'none yet'),
      ...(asked ? [line('repository', `${good ? `${asked.archive ? 'has that archive' : 'DOES NOT HAVE that archive'}${asked.proof ? ' and its proof' : ''}; ` : ''}newest proven: ${asked.newest || 'none'}`)] : []),
      ...(warnings.length > 0 ? warnings : ['none']).map((one, index) => line(index === 0 ? 'warnings' : '', one)),
      line('next', next || (code === 0 ? 'nothing to do' : 'see the warnings'))].join('\n'));
  }
  return code;
}

async function whatIsKnown(settings, remote) {
  const runs = readHistory(settings.stateFolder).filter((line) => line.kind === 'run'), server = serverName(settings);
  const good = runs.filter((line) => /^(good|warning)$/.test(line.outcome)).pop(), ageHours = good ? (Date.now() - Date.parse(good.endedAt)) / 3_600_000 : NaN;
  let left = null, disorder = '';
  try {
    left = leftStopped(settings.stateFolder);
  } catch (error) { // a monitoring plugin answers in any case
    disorder = error.message;
  }
  const { asked, trouble } = remote ? await askRepository(settings, server, good?.archive ?? '') : { asked: null, trouble: '' };
  const isAhead = ageHours < -1, isLost = asked !== null && good !== undefined && !asked.proof;
  return { settings, server, trend: trendOf(runs), good, last: runs[runs.length - 1], ageHours, left, disorder, asked, trouble, drills: drillFacts(settings.stateFolder, settings.drill.maxAgeDays),
    isAhead, isLost, isRecent: !isAhead && !isLost && ageHours <= settings.maxAgeHours };
}

function statusWarnings({ good, last, disorder, asked, trouble, drills, isAhead, isLost }) {
  return [
    disorder,
    isAhead ? `the last good run ended at ${good.endedAt}, which is still to come: this server's clock was wrong then, or is now` : '',
    isLost ? `${good.archive} ${asked.archive ? 'has no proof in the repository' : 'is not in the repository any more'}` : '',
    trouble ? `the repository was not asked: ${trouble}` : '',
    last && last !== good && last.error ? `the last run failed: ${last.error}` : '',
    ...(last?.warnings ?? []),
    drills.warning,
  ].filter((one) => one !== '');
}

/** The one command that helps most; '' = none. */
function whatToDo({ settings, good, last, left, trouble, drills, isAhead, isLost, isRecent }, startedBy) {
  if (left) return 'node backup.js recover';
  if (isLost) return 'node backup.js list';
  if (isAhead) return 'look at `date`, and set the clock; then take a backup: node backup.js --now';
  if (!isRecent || trouble) return 'node backup.js doctor';
  if (drills.warning) return 'node backup.js drill';
  if (last !== good) return 'node backup.js doctor';
  if (drills.last === null && settings.drill.maxAgeDays > 0) return 'node backup.js drill';
  if (startedBy === '') return TO_SCHEDULE;
  return startedBy === 'systemd' && tellsNobody(settings) ? 'set `tell` in the settings, unless your monitoring asks `status` every day: a systemd timer mails nobody' : '';
}

/** What a monitoring plugin shows after the name: the backup, and what is wrong first of all. */
function headline({ settings, good, ageHours, left, isAhead, isLost, isRecent }, warnings) {
  if (left) return `the run of ${left.startedAt} left something stopped`;
  if (good && isAhead) return `${good.archive} bears a time that is still to come`;
  const why = good && !isRecent && !isLost ? [`older than ${settings.maxAgeHours} h`, ...warnings] : warnings;
  return `${good ? `${good.archive}, ${span(Math.max(0, ageHours) * 3600)} old, was down ${span(good.downSeconds)}` : 'no good backup yet'}${why.length > 0 ? `; ${oneLine(why[0])}` : ''}${why.length > 1 ? ` (and ${why.length - 1} more)` : ''}`;
}

function trendLines(good, trend) {
  const grows = trend.growthBytes, growth = grows === 0 ? '' : `, ${grows > 0 ? 'growing' : 'shrinking'} by ${size(Math.abs(grows))} a night`;
  const isFirst = trend.nights === 1; // then all of it was new
  return [['down', `${span(good.downSeconds)}${isFirst ? '' : `; in the last ${trend.nights} good nights ${span(trend.leastDownSeconds)} to ${span(trend.mostDownSeconds)}`}`],
    ['size', `${size(trend.originalBytes)} in all, ${size(trend.newBytes)} ${isFirst ? 'stored' : 'new a night'}${growth}`]];
}

const days = (hours) => (hours < 48 ? span(hours * 3600) : count(Math.floor(hours / 24), 'day'));

/** Whether the repository really has an archive and its proof. It waits for no lock, and a repository that cannot be reached is told, not thrown. */
async function askRepository(settings, server, archive) {
  try {
    const all = await listArchives(settings, server, WITHOUT_LOCK, { seconds: 300 }), found = all.find((one) => one.archive === archive);
    return { asked: { archive: Boolean(found), proof: found?.kind === 'proven', newest: all.filter(({ kind }) => kind === 'proven').pop()?.archive ?? '' }, trouble: '' };
  } catch (error) {
    if (!(error instanceof Problem)) throw error;
    goOn();
    return { asked: null, trouble: error.message };
  }
}

/** The ledger of a run that is over and left something stopped; null when all runs, or while a run is at work, which starts it itself. */
function leftStopped(stateFolder) {
  const ledger = readLedger(stateFolder);
  if (!ledger || (ledger.parts.every((part) => part.runningAt !== null) && ledger.restore?.state !== '')) return null; // a restore may be undecided with nothing stopped
  const lock = ledger.reported === 'down' ? 0 : takeLock(stateFolder, 0);
  if (lock) fs.closeSync(lock);
  return lock === null ? null : ledger;
}

// =========================================================================================================
// ==== DOCTOR ====
// The doctor: everything that can be checked while all runs, with a hint for what is not right.
// Changes nothing: it looks, connects, and asks; only a storage that does not call itself append-only gets an empty transaction, which tells
// whether it is. What cannot be known here is said to be unknown, never taken for good.

/** `doctor`: prints the checks. Returns 0 when all is well, 1 when something is to be wished for, 2 when a run would fail. */
async function doctor(loaded, script) {
  const checks = await everyCheck(loaded, script);
  if (mode.json) answer(JSON.stringify(checks.map(({ check, ok, detail, hint }) => ({ check, ok, detail, hint })), null, 1));
  else {
    const shown = mode.quiet ? checks.filter((one) => one.ok === false) : checks;
    if (shown.length > 0) answer(shown.map((one) => `${one.ok === null ? 'unknown' : one.ok ? 'ok' : one.needed ? 'FAILS' : 'to do'}`.padEnd(9) + `${one.check}: ${one.detail}${one.ok !== true && one.hint ? `\n         hint: ${one.hint}` : ''}`).join('\n'));
  }
  return checks.some((one) => one.needed && one.ok === false) ? 2 : checks.some((one) => one.ok === false) ? 1 : 0;
}

async function everyCheck({ settings, file }, script) {
  const checks = [];
  let plan = null;
  const add = (check, ok, detail, hint = '', needed = false) => checks.push({ check, ok, detail, hint, needed });
  const attempt = async (check, work) => {
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
  const running = (plan)?.parts.filter((one) => one.wasRunning) ?? [], database = running.find((one) => one.dataDirectory), late = running.filter((one) => !one.dataDirectory && one.group > (database?.group ?? Infinity));
  if (late.length > 0) add('order', null, `${late.map((one) => one.name).join(', ')} would stop after ${database.name}, and start before it`, 'what uses that database has to stand before it in `stop`');
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
  add('told', ...whoIsTold(settings, nightly.by, isTried ? lastRun.warnings.find((one) => one.startsWith('tell.')) ?? '' : null));
  const { last, ageDays, warning } = drillFacts(settings.stateFolder, settings.drill.maxAgeDays), hasDrills = settings.drill.maxAgeDays > 0;
  const drilled = last && `${last.archive} was ${last.proven ? '' : 'not '}proven ${count(Math.max(0, Math.floor(ageDays)), 'day')} ago; a restore takes about ${span(last.restoreSeconds)}`;
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
const sheetMark = (settings) => path.join(path.dirname(settings.keyFile), 'recovery-sheet.made');

/** Where the recovery sheet lies. */
const sheetFile = (settings) => path.join(path.dirname(settings.keyFile), 'recovery-sheet.txt');

/** What the storage itself reports of the command it forces on us: shell, paths, append-only, quota, version. */
async function checkServer(settings) {
  const names = ['no shell', 'other paths refused', 'append-only', 'quota', 'server version', 'own borg'];
  const unknown = (detail) => names.map((check) => ({ check, ok: null, detail, hint: '', needed: false }));
  if (!isRemote(settings)) return unknown('the repository is a path on this machine');
  const shell = await look([...sshToStorage(settings), 'echo PROBE-$((6*7))']);
  if (shell.code === 255) return unknown('no ssh connection');
  const { words, version } = await serverCommandLine(sshToStorage(settings)), isAppendOnly = words?.includes('--append-only') || await compactsNothing(settings), others = await refusesOthers(settings);
  const says = (what) => (words === null ? null : words.includes(what));
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
function whoIsTold(settings, startedBy, trouble) {
  const hint = 'set `tell`, or let your monitoring ask `node backup.js status` every day';
  if (!tellsNobody(settings)) return trouble === null ? [null, 'by `tell`, not tried yet', 'the next run calls it: look then whether that came; it warns when it did not']
    : [trouble === '', trouble || 'by `tell`', trouble && 'mend it; node backup.js --now tries it'];
  if (startedBy === 'systemd') return [false, 'a systemd timer mails nobody, and `tell` is empty', hint];
  if (startedBy === 'cron') return [null, 'cron mails root what --quiet prints; whether somebody reads that is not known here', hint];
  return [null, 'nothing starts it, so there is nothing to tell', hint];
}

// What is not started at boot stays down after a power cut in the day, when no run left a ledger.
async function startsAtBoot(plan) {
  if (!plan) return [null, NO_PLAN, ''];
  const units = plan.parts.filter((part) => part.wasRunning && part.unit).map((part) => part.unit), all = await describeUnits(units).catch(() => null);
  if (!all) return [null, 'systemd does not answer', ''];
  const not = all.filter((facts) => facts.UnitFileState === 'disabled' && facts.TriggeredBy === '').map((facts) => facts.Id);
  return [not.length === 0, not.length > 0 ? `not started at boot: ${not.join(', ')}` : 'every unit named in `stop` that runs', `systemctl enable ${not.join(' ')}`];
}

// An archive bears this clock's time, and the audit compares it with the storage's own. timedatectl is not asked: it would start a service (systemd-timedated).
async function clockIsRight() {
  const hint = 'install chrony or systemd-timesyncd: an archive an hour off is an alarm at the next audit';
  if (fs.existsSync('/run/systemd/timesync/synchronized')) return [true, 'kept right by systemd-timesyncd', hint];
  const status = /^Leap status\s*: (.*)$/m.exec((await look(['chronyc', '-n', 'tracking'])).out)?.[1] ?? '';
  if (status) return [status === 'Normal', `chrony says: ${status}`, hint];
  return [null, 'nothing here tells whether it is right', hint];
}

// =========================================================================================================
// ==== ANSWERS ====
// The walk for a server that has no settings yet: questions on a terminal, or options.
// Either ends in a settings file beside the script, which its owner then reads and edits. It looks at what runs to make a proposal, and whether what is answered
// is here. Changes one file, never one that is there, and not before every answer is as its setting must be.

/** Whether somebody sits at a terminal and can answer. */
const canAsk = () => Boolean(process.stdin.isTTY);

/**
 * Ask one question. Given what an empty answer means and what an answer must look like (or what says what is wrong with one, '' = nothing), returns the answer;
 * asks again until it fits. doubt: what may be wrong with it; the same answer once more is believed. Throws Problem: 64 without a terminal, 130 at Ctrl-C and Ctrl-D.
 */
async function ask(question, usual, form, how = 'shown', doubt = async (_answer) => '') {
  if (!canAsk()) throw new Problem(`${question} There is no terminal to answer on`, { exitCode: 64, hint: 'run it on a terminal, or with --yes' });
  const lines = createInterface({ input: process.stdin, output: process.stderr, terminal: true });
  let isAnswered = false;
  const calledOff = new Promise((_, refuse) => {
    lines.once('close', () => isAnswered || refuse(new Problem('called off', { exitCode: 130, hint: 'call it again whenever you like: what it said it wrote or made is kept' })));
  });
  try {
    for (let doubted = null; ;) {
      const asked = lines.question(`${question}${usual ? ` [${usual}]` : ''} `);
      if (how === 'hidden') Object.assign(lines, { _writeToOutput: () => {} }); // no other way is left to hide what is typed (nodejs/node #30427)
      const answer = (await Promise.race([calledOff, asked.catch(() => calledOff)])).trim() || usual;
      const wrong = typeof form === 'function' ? form(answer) : form.test(answer) ? '' : 'not understood: please write it as the brackets show';
      const why = wrong || (answer === doubted ? '' : await doubt(answer));
      if (why === '') return answer;
      doubted = wrong === '' ? answer : null;
      process.stderr.write(`${why}${doubted === null ? '' : '. Write it anew, or the same once more to keep it'}\n`);
    }
  } catch (error) {
    process.stderr.write('\n'); // the prompt's line has no end
    throw error;
  } finally {
    isAnswered = true;
    lines.close();
  }
}

const agrees = async (question) => /^y/i.test(await ask(`${question} [yes/no]`, '', /^(y(es)?|no?)$/i));

const USUAL_UNITS = /^(nginx|apache2|httpd|caddy|tomcat\d*|odoo|php[\d.]*-fpm|gunicorn|uwsgi|supervisor|geoserver|redis-server|rabbitmq-server|memcached)\.service$/;

/** What runs here that is usually stopped for a backup, as entries of `stop`: web servers first, databases last. */
async function proposal() {
  const units = (await look(['systemctl', 'list-units', '--type=service', '--state=running', '--plain', '--no-legend'])).out.split('\n').map((line) => line.split(' ')[0]).filter((unit) => USUAL_UNITS.test(unit));
  const containers = (await look(['docker', 'ps', '--quiet'])).out.trim() !== '', clusters = / online/.test((await look(['pg_lsclusters', '--no-header'])).out);
  return [...units.map((unit) => `service ${unit.replace(/\.service$/, '')}`), ...(containers ? ['container *'] : []), ...(clusters ? ['postgres *'] : [])];
}

const wordsIn = (text) => text.split(',').map((one) => one.trim()).filter((one) => one !== '');

/** Which of these entries of `stop` are not on this machine, and why; '' = all are. A slip is seen at its question, not after the last one. */
async function partsNotHere(entries, usual) {
  const containers = await findContainers(false), clusters = await findClusters(containers), wrong = [], known = warnings.length;
  for (const one of entries) {
    await findPart(one, usual, containers, clusters).catch((error) => {
      if (!(error instanceof Problem)) throw error;
      wrong.push(error.message);
    });
  }
  warnings.splice(known); // they are of an answer that may be another one yet: the doctor looks again
  return wrong.join('; ');
}

async function foldersNotHere(folders, stop) {
  if (folders.length + stop.length === 0) return 'nothing is stopped: name at least one';
  const gone = folders.filter((one) => !fs.existsSync(one));
  return gone.length > 0 ? `not here: ${gone.map(named).join(', ')}` : '';
}

/** What is wrong with a value of a setting, as its rule will say when the file is read; '' = nothing. */
function mistakesIn(name, value) {
  const found = [];
  if (value !== null) TABLE.find((one) => one.name === name).rule(value, name, (at, message) => found.push(`${at.replace(/^.*\[(\d+)\]$/, (_, index) => `word ${Number(index) + 1}`)} ${message}`));
  return found.join('; ');
}

// '01:00-05:30 Africa/Maputo' as the setting; null = any time. What cannot be read is left for the rule to refuse.
const windowIn = (answer) => (answer === 'any' ? null : { .../^(?<from>[^\s-]*)-?(?<until>\S*) *(?<timeZone>.*)$/.exec(answer)?.groups });

/** A quota as borg takes it: the letters are capitals, and less than 10M is too little (borg serve --storage-quota). */
const QUOTA = /^(\d+(\.\d+)?[GTP]|[1-9]\d+(\.\d+)?M|[1-9]\d{4,}K|[1-9]\d{7,})$/;

// What is wrong with an option is told without its value: an address may hold a password.
function refuseOption(option, why) {
  if (why) throw new Problem(`--${option}: ${why}`, { exitCode: 64, hint: 'nothing was touched: mend it, and call setup again' });
}

/** Throws Problem (64) when a quota is given ('' = none) and borg would not take it. */
const refuseQuota = (quota) => refuseOption('quota', quota && !QUOTA.test(quota) ? 'must be like 500G, and no less than 10M' : '');

/**
 * Given the script, the settings as they are before (`usual`: nothing but defaults), and what the command line says (server, repository, stop, folders, volumes, window, language:
 * lists with commas; quota), asks for the rest and writes backup.settings.js beside the script. Throws Problem (64), with nothing written, when nobody can be asked, or what it says is wrong.
 */
async function firstSettings(script, usual, given, yes) {
  const isAsked = !yes && canAsk();
  const answerTo = async (key, question, otherwise, valueOf, doubt = async (_answer) => '') => {
    const form = (answer) => mistakesIn(key, valueOf(answer)), said = given[key];
    if (said) refuseOption(key, form(said) || await doubt(said));
    return valueOf(said || (isAsked ? await ask(question, otherwise, form, 'shown', doubt) : otherwise));
  };
  if (!isAsked && !(given.repository && (given.stop || given.folders || given.volumes))) throw new Problem('there are no settings yet',
    { exitCode: 64, hint: 'run setup on a terminal, which asks; or fill in the block at the top of backup.js; or say all here: setup --repository ssh://borg@storage.example.org/./web1 --stop \'postgres *\' --folders /srv/files' });
  refuseQuota(given.quota ?? '');
  const asItIs = (answer) => answer;
  const server = await answerTo('server', 'The name of this server (every archive begins with it)?', hostname().split('.')[0], asItIs);
  const repository = await answerTo('repository', 'Where do the archives go (ssh://borg@storage.example.org/./NAME, or a path)?', '', asItIs,
    async (answer) => (answer.endsWith('/NAME') ? 'write another name for NAME' : ''));
  const stop = await answerTo('stop', 'What is stopped for the copy, in this order, with commas (service nginx, compose shop, container *, postgres *)? Name your applications, too',
    isAsked ? (await proposal()).join(', ') : '', wordsIn, (answer) => partsNotHere(wordsIn(answer), usual));
  const folders = await answerTo('folders', 'Which folders are saved, with commas (databases named above are saved whole anyway)?', '', wordsIn, (answer) => foldersNotHere(wordsIn(answer), stop));
  const stopsContainers = stop.some((one) => /^(container|compose) /.test(one)), hasVolumes = stopsContainers || given.volumes || (await look(['docker', 'ps', '--all', '--quiet'])).out.trim() !== '';
  const volumes = hasVolumes ? await answerTo('volumes', 'Which container volumes (\'*\' = all of the containers above)?', stopsContainers ? '*' : '', wordsIn) : [];
  const usualWindow = isAsked ? `01:00-05:30 ${Intl.DateTimeFormat().resolvedOptions().timeZone}` : 'any';
  const window = await answerTo('window', 'Between which hours may it be down (01:00-05:30 Africa/Maputo, or: any)?', usualWindow, windowIn);
  const language = await answerTo('language', 'Language of what is written for people (en, es)?', 'en', asItIs);
  const settings = { server, stop, folders, volumes, repository, window, language };
  const file = path.join(path.dirname(script), 'backup.settings.js'), lines = Object.entries(settings).map(([key, value]) => `  ${key}: ${JSON.stringify(value)},`);
  const text = `// What this server stops and saves; every other setting has its default (node backup.js --print-settings).\nconst settings = {\n${lines.join('\n')}\n};\n`;
  writeDurably(file, text);
  sayBlock(text);
  say(`wrote ${named(file)}: read it, and edit it whenever you like`);
}

// =========================================================================================================
// ==== SETUP ====
// Setup: make what is missing, keep what is there, say what the storage needs.
// An ssh key, a passphrase, the known host, the repository with its key, the recovery sheet. It may be run again and again.
// Changes: files beside `sshKey`, `keyFile`, `passphraseFile`, `knownHostsFile`, the new repository, and a schedule only when
// told. Never touches a service, never changes what exists.

/** `setup`: given the settings, the script and the options, makes what is missing. Returns 0 when a run would now work. */
async function setup(loaded, script, options) {
  const { settings } = loaded, isAsked = !options.yes && canAsk();
  refuseQuota(options.quota);
  await borgVersion();
  for (const file of [settings.sshKey, settings.keyFile, settings.passphraseFile, settings.knownHostsFile, path.join(settings.stateFolder, 'x')]) {
    fs.mkdirSync(path.dirname(file), { recursive: true, mode: 0o700 });
  }
  for (const [given, place] of [[options.keyFile, settings.keyFile], [options.passphraseFile, settings.passphraseFile]]) {
    if (given && path.resolve(given) !== place) takeOver(given, place);
  }
  if (isRemote(settings)) {
    await makeSshKey(settings);
    await makeKnownHost(loaded, options.yes);
    await reachStorage(loaded, options.quota, isAsked);
  }
  await makeRepository(settings, isAsked);
  if (isRemote(settings)) sayBlock(reserveOnStorage(settings));
  await writeSheet(settings);
  if (isAsked) await confirmSheet(settings);
  const schedule = options.schedule || (isAsked && !fs.existsSync('/etc/cron.d/cold-backup') && !fs.existsSync('/etc/systemd/system/cold-backup.timer') ? await ask('Start it every night by cron, by systemd, or not yet?', 'no', /^(cron|systemd|no)$/) : '');
  if (schedule === 'cron') installCron(settings, script, loaded.file);
  if (schedule === 'systemd') await installTimers(settings, script, loaded.file);
  const code = await doctor(loaded, script);
  sayBlock(code < 2 ? `\nnothing fails${lastGoodRun(settings.stateFolder) ? '' : '; next: node backup.js --dry-run'}` : '\nmend what FAILS, then: node backup.js setup');
  return code === 1 ? 0 : code;
}

/** A key or passphrase of a repository that is there already, put where the settings say. Throws Problem (64) rather than overwrite another one. */
function takeOver(given, place) {
  const text = fs.readFileSync(given, 'utf8');
  if (fs.existsSync(place) && fs.readFileSync(place, 'utf8') !== text) throw new Problem(`${named(place)} is there already, and is another one than ${named(given)}`,
    { exitCode: 64, hint: 'move it away first, when you are sure that nothing is encrypted with it' });
  writeDurably(place, text);
  say(`${named(given)} is now ${named(place)}, too`);
}

/** Show what the storage's keeper has to do, unless it is done already, and wait until it is, when somebody is here to say so. Throws Problem while the storage does not let us in. */
async function reachStorage({ settings, file }, quota, isAsked) {
  const { words } = isAsked && !quota ? await serverCommandLine(sshToStorage(settings)) : { words: null }, folder = repositoryAddress(settings.repository).path;
  if (['--append-only', '--storage-quota', `--restrict-to-repository ${folder} `].every((one) => `${words} `.includes(one))) return say(`this server's line is on the storage: ${words}`);
  const granted = isAsked ? await ask('How much may this server store there?', quota || '500G', QUOTA) : quota || '500G';
  sayBlock(storageInstructions(settings, granted));
  for (;;) {
    try {
      await tryConnection(settings); // says what to do while the storage does not know the key
      return;
    } catch (error) {
      if (!(error instanceof Problem) || !isAsked) throw error;
      const said = lastLines(error.facts.said ?? '', 1), isNew = /Permission denied/i.test(said); // as it is for everybody the first time: no failure yet
      sayBlock(`${isNew ? 'The storage does not accept this server\'s key yet: the line above is not there, is broken in two, or lies in a file that its user may not read' : error.message}${said && ` (ssh said: ${said})`}`);
      const hint = isNew ? `put the line above into authorized_keys there, then: node backup.js setup --quota ${granted}` : /host key|hangs up/.test(error.facts.hint ?? '') ? error.facts.hint : mendAddress(file);
      if (!isNew) sayBlock(`hint: ${hint}`);
      if (!await agrees(isNew ? 'Is the line in its place now?' : 'Try again (no: to mend something first)?')) throw new Problem(error.message, { ...error.facts, hint });
    }
  }
}

async function makeSshKey(settings) {
  const { sshKey } = settings, isHere = fs.existsSync(sshKey), hint = '`sshKey` must be a private key of ssh without a passphrase';
  if (isHere && !fs.existsSync(`${sshKey}.pub`)) writeDurably(`${sshKey}.pub`, await lookFor('the ssh key has no public half', ['ssh-keygen', '-y', '-P', '', '-f', sshKey], hint));
  if (isHere) return;
  const done = await change(['ssh-keygen', '-q', '-t', 'ed25519', '-N', '', '-C', `cold-backup ${serverName(settings)}`, '-f', sshKey]);
  if (done.code !== 0) throw failure('the ssh key cannot be made', done);
}

// Read once: an address that is mended meanwhile is seen by the next call.
const mendAddress = (file) => `is the address wrong? Mend \`repository\` in ${named(file)}, and call setup again. Else: is the storage reachable from here (VPN, firewall, name)?`;

async function makeKnownHost({ settings, file }, yes) {
  if (fs.existsSync(settings.knownHostsFile)) return;
  const { host, port } = repositoryAddress(settings.repository), what = `the storage ${host} does not show its host key`;
  const hint = `${mendAddress(file)} `
    + 'What root\'s ssh configuration says of it (an alias, ProxyJump), ssh-keyscan does not read: then log in there once, '
    + `compare the fingerprint, and: ${pasteable(['cp', path.join(homedir(), '.ssh/known_hosts'), settings.knownHostsFile])}`;
  const keys = await lookFor(what, ['ssh-keyscan', '-T', '10', ...(port ? ['-p', port] : []), '--', host], hint);
  if (keys.trim() === '') throw new Problem(what, { hint });
  const draft = `${settings.knownHostsFile}.new`;
  fs.writeFileSync(draft, keys, { mode: 0o600 });
  const prints = await look(['ssh-keygen', '-l', '-f', draft]);
  sayBlock(`The storage's host keys; compare one of them with what its keeper says:\n${prints.out.trimEnd()}`);
  if (!yes && !await agrees('Is this the storage?')) {
    fs.rmSync(draft);
    throw new Problem('the host key was not accepted', { hint: 'ask the storage\'s keeper for its fingerprint (ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub)' });
  }
  fs.renameSync(draft, settings.knownHostsFile);
}

/** The line that gives this server the right to add archives to its own repository on the storage, and no other right (sshd(8), borg serve). */
function authorizedKeysLine(settings, quota) {
  const { path: folder } = repositoryAddress(settings.repository);
  const key = fs.readFileSync(`${settings.sshKey}.pub`, 'utf8').trim();
  return `command="borg serve --append-only --restrict-to-repository ${pasteable([folder]).replaceAll('"', '\\"')} --storage-quota ${quota}",restrict ${key}`;
}

/** What the storage's keeper does once for the storage, and once for each server. The line stands alone, to be pasted. */
function storageInstructions(settings, quota) {
  const user = repositoryAddress(settings.repository).user || 'borg';
  return `
This line belongs into authorized_keys of the storage's user, there: ~${user}/.ssh/authorized_keys, which is
/srv/${user}/.ssh/authorized_keys on a storage made as below (the quota is what this server may use):

${authorizedKeysLine(settings, quota)}

On a storage that is new, its keeper does this first, as root (Debian):
  apt-get install borgbackup openssh-server
  adduser --system --group --shell /bin/sh --home /srv/${user} ${user}
  install -d -m 700 -o ${user} -g ${user} /srv/${user}/.ssh
  cat >> /srv/${user}/.ssh/authorized_keys          # paste the line above, Enter, Ctrl-D
  chown ${user}: /srv/${user}/.ssh/authorized_keys
  printf 'ClientAliveInterval 10\\nClientAliveCountMax 6\\n' > /etc/ssh/sshd_config.d/borg.conf && systemctl reload ssh   # a dead line frees its lock
`;
}

// Not before the repository is there. As its user: a file of root's would shut the server out.
function reserveOnStorage(settings) {
  const { user, path: folder } = repositoryAddress(settings.repository);
  return `Now that the repository is there, the storage's keeper does this once (is it done? then nothing), as root, so that a full disk can still be cleaned up:\n  runuser -l ${user || 'borg'} -c 'borg config ${pasteable([folder])} additional_free_space 2G'`;
}

/** Find the repository or make it. One that is there already (of borgmatic, or of this server's former self) is taken over with its archives. */
async function makeRepository(settings, isAsked) {
  let there = await askBorg(settings, ['info', '--json']);
  // An empty folder that the storage's keeper has made is no repository yet.
  if (/"msgid": "Repository\.(DoesNotExist|InvalidRepository)"/.test(there.said)) return initRepository(settings);
  // Only of a repository that it has found does borg say this; of a key file that is not there, 1.2 says it with an error of Python's that names it.
  const lacksKeyFile = () => there.code !== 0 && (/"msgid": "Keyfile/.test(there.said) || there.said.includes(settings.keyFile));
  const lacksKey = () => lacksKeyFile() || (there.code !== 0 && /"msgid": "(Pass|RepoKeyNotFound)/.test(there.said));
  if (lacksKeyFile() && !fs.existsSync(settings.keyFile) && await findKey(settings)) there = await askBorg(settings, ['info', '--json']);
  if (lacksKey() && !fs.existsSync(settings.passphraseFile) && isAsked) {
    writeDurably(settings.passphraseFile, `${await ask('The repository is there already. Its passphrase?', '', /./, 'hidden')}\n`);
    there = await askBorg(settings, ['info', '--json']);
    if (there.code !== 0) fs.rmSync(settings.passphraseFile);
  }
  if (lacksKey() && !(fs.existsSync(settings.passphraseFile) && fs.existsSync(settings.keyFile))) {
    throw new Problem('the repository is there, but its key or passphrase is not here', { said: borgFailure('', there).facts.said,
      hint: 'bring both from the recovery sheet, or from where the tool before kept them: node backup.js setup --passphrase-file FILE --key-file FILE; do not make new ones' });
  }
  if (there.code !== 0) throw borgFailure('the repository cannot be reached yet', there);
  if (!fs.existsSync(settings.keyFile)) { // the key lies in the repository: a copy here, or whoever holds our ssh key could destroy the only one
    const done = await change(['borg', 'key', 'export', '::', settings.keyFile], { env: borgEnvironment(settings), seconds: 600 });
    if (done.code !== 0) throw borgFailure('the key cannot be exported', done);
    fs.chmodSync(settings.keyFile, 0o600);
  }
  say(`the repository is there (${(await tryRepository(settings)).encryption})`);
}

async function initRepository(settings) {
  if (!fs.existsSync(settings.passphraseFile)) {
    writeDurably(settings.passphraseFile, `${randomBytes(32).toString('base64url')}\n`);
    say(`made the passphrase: ${named(settings.passphraseFile)}`);
  }
  // keyfile: the key stays here and on paper. In the repository (repokey) whoever holds our ssh key could overwrite it.
  const made = await change(['borg', '--log-json', 'init', '--encryption', 'keyfile-blake2', ...(isRemote(settings) ? [] : ['--make-parent-dirs'])], { env: { ...borgEnvironment(settings), BORG_DISPLAY_PASSPHRASE: 'no' }, seconds: 600 });
  if (made.code !== 0) throw borgFailure('the repository cannot be made', made);
  say('made the repository and its key');
}

/** borg keeps keys in ~/.config/borg/keys: the one with which this repository opens, or lacks only its passphrase, is copied to where the settings say. Returns whether there is one. */
async function findKey(settings) {
  const folder = path.join(homedir(), '.config/borg/keys');
  for (const name of fs.existsSync(folder) ? fs.readdirSync(folder) : []) {
    const done = await askBorg({ ...settings, keyFile: path.join(folder, name) }, ['info', '--json']);
    if (done.code !== 0 && !/"msgid": "Pass/.test(done.said)) continue;
    takeOver(path.join(folder, name), settings.keyFile);
    return true;
  }
  return false;
}

// The storage's host key, for whoever meets it again from another machine; '' when it stands in known_hosts under another name.
async function fingerprint(settings) {
  const { host, port } = repositoryAddress(settings.repository);
  const { out } = await look(['ssh-keygen', '-l', '-F', port && port !== '22' ? `[${host}]:${port}` : host, '-f', settings.knownHostsFile]);
  return (/\bED25519 SHA256:\S+/.exec(out) ?? /\S+ SHA256:\S+/.exec(out))?.[0] ?? '';
}

/** The recovery sheet: what a restore needs when this server is gone, as text and as a page to print with the key in QR codes. Both lie beside the key, readable by root only. */
async function writeSheet(settings) {
  const sheet = sheetFile(settings), page = sheet.replace(/txt$/, 'html');
  if (fs.existsSync(sheet) || fs.existsSync(sheetMark(settings))) return; // printed and removed: it is not written to disk again
  const exported = [];
  for (const form of ['--paper', '--qr-html']) {
    const draft = `${sheet}.key`;
    const done = await change(['borg', 'key', 'export', form, '::', draft], { env: borgEnvironment(settings), seconds: 600 });
    if (done.code !== 0) throw borgFailure('the key cannot be exported', done);
    exported.push(fs.readFileSync(draft, 'utf8').replace(/^To restore key use .*\n+/, '')); // borg's own hint, which names no repository: the steps do
    fs.rmSync(draft);
  }
  const words = WORDS[settings.language].sheet, pad = Math.max(words.repository.length, words.passphrase.length) + 2, title = words.title(serverName(settings));
  const isOnSsh = isRemote(settings), print = isOnSsh ? await fingerprint(settings) : '';
  const steps = [`export ${pasteable([`BORG_REPO=${settings.repository}`])} BORG_KEY_FILE=/root/borg_key`, 'borg key import --paper ::', 'borg list ::', 'borg extract ::ARCHIVE record'].map((line) => `  ${line}`);
  const text = [words.print, words.whoHas, '', `${words.repository.padEnd(pad)}${settings.repository}`, `${words.passphrase.padEnd(pad)}${fs.readFileSync(settings.passphraseFile, 'utf8').trim()}`, '', words.how, ...(isOnSsh ? [words.keeper] : []), ...(print ? [words.shows(print)] : []), ...steps, words.then];
  const html = (lines) => lines.join('\n').replace(/[&<>]/g, (sign) => `&#${sign.charCodeAt(0)};`);
  writeDurably(page, exported[1].replace(/<div id="printout">/, (paper) => `${paper}\n<h1>${html([title])}</h1>\n<pre style="white-space: pre-wrap">${html(text)}</pre>\n`)); // onto the paper of borg's own page, which draws the codes itself
  writeDurably(sheet, [title, '', ...text, '', exported[0], ''].join('\n'));
  writeDurably(sheetMark(settings), `the recovery sheet was made on ${new Date().toISOString()}; to have it made again, remove this file and run setup\n`);
  say(`wrote the recovery sheet: ${named(sheet)}, and the same to print with QR codes: ${named(page)}`);
}

/** Somebody who says that the sheet is printed has it removed from the server. */
async function confirmSheet(settings) {
  const sheet = sheetFile(settings);
  if (!fs.existsSync(sheet)) return;
  if (!await agrees(`Is the recovery sheet (${sheet}, or .html) printed, and kept away from this server? Then both are removed here`)) return;
  for (const file of [sheet, sheet.replace(/txt$/, 'html')]) fs.rmSync(file, { force: true });
  say('the recovery sheet is removed from this server');
}

// =========================================================================================================
// ==== HELP ====
// What the command line knows: commands, options, exit codes, as data. `--help`, the reading of options and the README's tables come from here.

const BARE = ['restore', 'list', 'find', 'drill'];

const COMMAND_TABLE = {
  '': { usage: ['[--dry-run] [--now]'], what: 'take the backup: this is what crontab calls', examples: ['node backup.js --dry-run', 'node backup.js --quiet', 'node backup.js --now'],
    more: ['Looks, tries all that can fail, copies once while all runs, stops the parts,', 'proves that they are cold, copies, starts everything again, reads back.', 'With --dry-run it only says so, in order, and changes nothing.'] },
  setup: { usage: ['[--yes] [--schedule cron|systemd]'], what: 'make settings, keys, passphrase, repository; it asks', examples: ['node backup.js setup', 'node backup.js setup --yes --schedule cron'],
    more: ['Makes what is missing and keeps what is there; may be called again and again.', 'Prints the line that the storage needs, writes the recovery sheet, and ends', 'with `doctor`: 0 when a run would now work. --yes asks nothing.'] },
  doctor: { usage: [''], what: 'check everything that can be checked while all runs', examples: ['node backup.js doctor'], more: ['Changes nothing; only a repository whose storage does not call itself', 'append-only gets an empty transaction. Each check that failed has a hint. 2: a', 'run would fail; 1: there is something to be wished for.'] },
  status: { usage: ['[--remote]', '--all [SERVER...]'], what: 'is there a good recent backup? (for monitoring, too)', examples: ['node backup.js status', 'node backup.js status --json', 'node backup.js status --all --quiet'],
    more: ['0 good, 1 with a warning, 2 nothing recent enough (`maxAgeHours`). It needs no', 'network; --remote asks the repository, too, whether archive and proof are there.',
      "--all, on the operator's computer: servers whose newest proven archive, by the", "storage's own clock, is too old. It reads file times there, and uses no key."] },
  list: { usage: ['[ARCHIVE [PATH]]'], what: 'the archives, or the files in one', examples: ['node backup.js list', 'node backup.js list latest /var/www'], more: ['`proven`: a good backup. `unproven`: a night that did not end well.'] },
  find: { usage: ['PATTERN'], what: 'which archives hold this file, in which versions', examples: ['node backup.js find plan.pdf', "node backup.js find '/srv/*/2026/*.pdf'"], more: ['PATTERN is a part of a path, or a glob.'] },
  restore: { usage: ['ARCHIVE|latest [PATH ...] --to FOLDER', 'ARCHIVE|latest --in-place [PART ...] [--reindex]'], what: 'into a new folder, or where it was; never over it',
    examples: ['node backup.js restore latest --to /srv/back', 'node backup.js restore latest /etc/nginx --to /srv/back', 'node backup.js restore latest --in-place --dry-run'],
    more: ['--to: an empty or new folder; nothing that is there is touched. --in-place: what', 'lies there is moved aside, never deleted; first it says what differs here and', 'the command that mends it, and refuses what cannot work.'] },
  drill: { usage: ['[ARCHIVE|latest] [--full]'], what: 'rehearse a restore: extract, start, check, discard', examples: ['node backup.js drill'], more: ['Touches nothing that runs. Prints a certificate, and stores it. 2: not proven.'] },
  recover: { usage: [''], what: 'start whatever an interrupted run left stopped', examples: ['node backup.js recover'], more: ['For boot and every five minutes; needs no settings. 3: something stays down.'] },
  borg: { usage: ['ARGS...'], what: "borg itself, with this server's repository and key", examples: ['node backup.js borg list', 'node backup.js borg info ::ARCHIVE'], more: ['All that follows goes to borg as it stands.'] },
  audit: { usage: ['[SERVER...] [--undo-plan] [--accept] [--full]'], what: 'was the append-only repository tampered with?', examples: ['node backup.js audit', 'node backup.js audit web1 --undo-plan'], operator: true,
    more: ['Compares the repository with the ledger of earlier audits. 2: alarm.'] },
  prune: { usage: ['[SERVER...] [--yes] [--dry-run]'], what: 'retention, after a clean audit', examples: ['node backup.js prune --dry-run', 'node backup.js prune web1'], operator: true,
    more: ['Deletes in a copy beside the repository, checks it, and lets it take its place.', 'Shows the list and asks first.'] },
  report: { usage: ['[SERVER...] --to FILE.html [--lang en|es]'], what: 'all servers on one page, for people', examples: ['node backup.js report --to backups.html', 'node backup.js report web1 --to web1.html --lang es'], operator: true,
    more: ['One file with everything in it: no script, no network. It prints well. 1: a', 'server could not be looked at, and its row says so.'] },
  help: { usage: ['[COMMAND]'], what: 'this, or all about one command', examples: ['node backup.js help restore'], more: [] },
};

const OPTION_TABLE = {
  'dry-run': { value: '', what: 'only say what would be done', commands: ['', 'restore', 'prune'] },
  now: { value: '', what: 'take the backup outside the window, too', commands: [''] },
  yes: { value: '', what: 'ask nothing', commands: ['setup', 'audit', 'prune'] },
  schedule: { value: 'cron|systemd', what: 'start it every night from now on', commands: ['setup'] },
  quota: { value: 'SIZE', what: 'how much the storage grants this server', commands: ['setup'] },
  server: { value: 'NAME', what: "an answer to setup's question, as are the next", commands: ['setup'] },
  stop: { value: 'LIST', what: 'what to stop, with commas', commands: ['setup'] },
  folders: { value: 'LIST', what: 'folders to save, with commas', commands: ['setup'] },
  volumes: { value: 'LIST', what: 'container volumes to save, with commas', commands: ['setup'] },
  window: { value: 'HOURS', what: "'01:00-05:30 Africa/Maputo', or any", commands: ['setup'] },
  language: { value: 'en|es', what: 'of what is written for people', commands: ['setup'] },
  remote: { value: '', what: 'ask the repository, too', commands: ['status'] },
  all: { value: '', what: "every server of the operator's file", commands: ['status'] },
  to: { value: 'WHERE', what: 'the new folder; of report: the file', commands: ['restore', 'report'] },
  'mend-links': { value: '', what: "turn a cluster's links to the extracted files", commands: ['restore'] },
  'in-place': { value: '', what: 'everything back to where it was', commands: ['restore'] },
  reindex: { value: '', what: 'build indexes anew whose order changed', commands: ['restore'] },
  full: { value: '', what: 'read all data; of drill: dump every database, too', commands: ['drill', 'audit'] },
  'undo-plan': { value: '', what: 'print how to undo what was found', commands: ['audit'] },
  accept: { value: '', what: 'take what was found as it is, from now on', commands: ['audit'] },
  lang: { value: 'en|es', what: 'language of the page', commands: ['report'] },
  repository: { value: 'URL', what: 'without settings: where the archives are', commands: [...BARE, 'setup'] },
  'key-file': { value: 'FILE', what: 'without settings: the borg key', commands: [...BARE, 'setup'] },
  'passphrase-file': { value: 'FILE', what: 'without settings: the passphrase', commands: [...BARE, 'setup'] },
  'ssh-key': { value: 'FILE', what: 'without settings: the ssh key', commands: BARE },
  settings: { value: 'FILE', what: 'in place of the settings in or beside backup.js', commands: [] },
  'print-settings': { value: '', what: 'each setting in force, and where it comes from', commands: [] },
  json: { value: '', what: 'one JSON document on stdout, all else on stderr', commands: [] },
  quiet: { value: '', what: "only warnings and errors, for cron's mail", commands: [] },
  verbose: { value: '', what: 'show every look, too', commands: [] },
  'no-color': { value: '', what: 'no colours (nor with NO_COLOR set)', commands: [] },
  version: { value: '', what: 'its version, and whether somebody edited it', commands: [] },
  help: { value: '', what: 'this, or with a command all about it', commands: [] },
};

const EXIT_TABLE = [
  ['0', 'good'], ['1', 'done, but a warning needs attention'], ['2', 'failed: no new good backup; everything that was stopped runs again'],
  ['3', 'something that was stopped IS NOT RUNNING: act now'], ['64', 'wrong usage or settings'], ['75', 'not now: another run, or outside the window'], ['128+n', 'ended by signal n, after everything was started again'],
];

const optionRow = ([name, { value, what }]) => `  ${`--${name}${value ? ` ${value}` : ''}`.padEnd(24)} ${what}`;
const commandRow = ([name, { what }]) => `  ${(name || '(no command)').padEnd(13)} ${what}`;

/** What `--help` prints, of all or of one command: at most 40 lines of 80 columns. With --json the tables themselves. Throws Problem (64) for a command that there is not. */
function helpText(name) {
  if (mode.json) return JSON.stringify({ commands: COMMAND_TABLE, options: OPTION_TABLE, exitCodes: EXIT_TABLE }, null, 1);
  const command = Object.keys(COMMAND_TABLE).includes(name) && COMMAND_TABLE[name], options = Object.entries(OPTION_TABLE), commands = Object.entries(COMMAND_TABLE);
  if (!command) throw new Problem(`unknown command ${name}${meant(name, Object.keys(COMMAND_TABLE))}`, { exitCode: 64, hint: '`node backup.js --help` lists all' });
  if (name === '') {
    return ['backup.js - stop everything, copy the files with borg, start everything again', '', 'usage: node backup.js [COMMAND] [OPTIONS]', '', ...commands.filter(([, one]) => !one.operator).map(commandRow),
      "on the operator's computer:", ...commands.filter(([, one]) => one.operator).map(commandRow), '', ...options.filter(([, one]) => one.commands.length === 0 || one.commands.includes('')).map(optionRow), '',
      ...EXIT_TABLE.map(([code, what]) => `  ${code.padEnd(6)} ${what}`), '', 'first:  node backup.js setup    more of each:  node backup.js help COMMAND'].join('\n');
  }
  const own = options.filter(([, one]) => one.commands.includes(name));
  return [...command.usage.map((words, index) => `${index === 0 ? 'usage:' : '      '} node backup.js ${name} ${words}`.trimEnd()), '', `${command.what}${command.operator ? " (on the operator's computer)" : ''}`, ...command.more, ...(own.length > 0 ? ['', ...own.map(optionRow)] : []),
    '', ...command.examples.map((one) => `  ${one}`), '', 'also --settings FILE, --json, --quiet, --verbose; see node backup.js --help'].join('\n');
}

// =========================================================================================================
// ==== MAIN PROGRAM ====
// The command line: which command, with which options. Nothing is done here; each command is a chapter of its own.

const COMMANDS = Object.keys(COMMAND_TABLE).filter((name) => name !== '');
const [FLAGS, VALUES] = [true, false].map((isFlag) => Object.keys(OPTION_TABLE).filter((name) => (OPTION_TABLE[name].value === '') === isFlag));

// minimist takes `--dry-run false` and `--no-dry-run` for "no dry run": a slip like that must not begin a real one.
function refuseSlips(argv) {
  const own = argv.slice(0, argv.includes('borg') ? argv.indexOf('borg') : argv.length);
  mode.json = own.includes('--json'); // what is wrong with the rest is told so, too
  for (const [index, word] of own.entries()) {
    const name = word.replace(/^--/, '').split('=')[0];
    const isSlip = /^--no-/.test(word) ? word !== '--no-color' : word.startsWith('--') && FLAGS.includes(name) && (word.includes('=') || /^(true|false)$/.test(own[index + 1] ?? ''));
    if (isSlip) throw new Problem(`${word} is not understood: an option without a value is given, or it is not`,
      { exitCode: 64, hint: '`node backup.js --help` lists all' });
  }
}

/** The words of the command line as options. Throws Problem (64) with a suggestion for what is not known. */
function readOptions(argv) {
  refuseSlips(argv);
  const unknown = [];
  const found = minimist(argv.map((word) => (word === '--no-color' ? '--no-colour' : word)), { // minimist takes --no-x for the opposite of --x
    boolean: [...FLAGS.filter((flag) => flag !== 'no-color'), 'colour'], string: [...VALUES, '_'], alias: { h: 'help', V: 'version' }, default: { colour: true },
    stopEarly: argv.includes('borg') && !argv.slice(0, argv.indexOf('borg')).some((word) => !word.startsWith('-') && argv[argv.indexOf(word) - 1] !== '--settings'),
    unknown: (word) => !word.startsWith('-') || word === '-' || (unknown.push(word), false),
  });
  if (unknown.length > 0) {
    const known = [...FLAGS, ...VALUES];
    throw new Problem(`unknown option ${unknown[0]}${meant(unknown[0].replace(/^-+/, '').split('=')[0], known).replace(/"(.+)"/, '"--$1"')}`,
      { exitCode: 64, hint: '`node backup.js --help` lists all' });
  }
  const [command = '', ...words] = found._;
  if (command !== '' && !(command === 'guard' && words.length > 3) && !COMMANDS.includes(command)) throw new Problem(`unknown command ${command}${meant(command, COMMANDS)}`,
    { exitCode: 64, hint: '`node backup.js --help` lists all' });
  for (const [option, { commands }] of Object.entries(OPTION_TABLE)) {
    if (found[option] && commands.length > 0 && !commands.includes(command) && !found.help) throw new Problem(`--${option} does not go with ${command || 'taking the backup'}`,
      { exitCode: 64, hint: `it belongs to ${commands[0] || 'the backup itself'}` });
  }
  for (const option of VALUES) {
    if (Array.isArray(found[option]) || found[option] === '') throw new Problem(`--${option} needs one value`, { exitCode: 64 });
  }
  if (found.schedule && !['cron', 'systemd'].includes(found.schedule)) throw new Problem(`--schedule ${found.schedule}: it is 'cron' or 'systemd'`,
    { exitCode: 64 });
  for (const option of ['lang', 'language']) if (found[option] && !['en', 'es'].includes(found[option])) throw new Problem(`--${option} ${found[option]}: it is 'en' or 'es'`,
    { exitCode: 64 });
  for (const option of ['key-file', 'passphrase-file', 'ssh-key'].filter((one) => found[one] && !found.help)) {
    const why = !found.repository && command !== 'setup' ? 'it goes with --repository' : fs.existsSync(found[option]) ? '' : 'there is no such file';
    if (why) throw new Problem(`--${option} ${found[option]}: ${why}`, { exitCode: 64 });
  }
  if (command === 'restore' && !found.help) refuseRestore(words, found.to ?? '', found);
  if (command === 'find' && !words[0] && !found.help) throw new Problem('find needs a part of a path',
    { exitCode: 64, hint: 'node backup.js find plan.pdf' });
  const most = { help: 1, list: 2, find: 1, drill: 1, restore: Infinity, borg: Infinity, guard: Infinity, audit: Infinity, prune: Infinity, report: Infinity, status: found.all ? Infinity : 0 };
  if (words.length > (most[command] ?? 0)) throw new Problem(`too many words: ${words.slice(most[command] ?? 0).join(' ')}`,
    { exitCode: 64, hint: '`node backup.js --help`' });
  Object.assign(mode, { dryRun: found['dry-run'], json: found.json, quiet: found.quiet, verbose: found.verbose, now: found.now,
    color: found.colour && !process.env.NO_COLOR && Boolean(process.stderr.isTTY) });
  return { command, words, values: Object.fromEntries(VALUES.map((option) => [option, found[option] ?? ''])), flags: Object.fromEntries(FLAGS.map((flag) => [flag, Boolean(found[flag])])) };
}

// Into a folder, or in place: one of the two.
function refuseRestore(words, to, flags) {
  const hint = 'node backup.js restore latest --to /srv/back, or: node backup.js restore latest --in-place';
  const why = words.length === 0 ? 'restore needs an archive' : Boolean(to) === Boolean(flags['in-place']) ? 'restore needs --to FOLDER or --in-place, one of them'
    : to && (flags['dry-run'] || flags.reindex) ? '--dry-run and --reindex go with --in-place' : flags['in-place'] && flags['mend-links'] ? '--mend-links goes with --to' : '';
  if (why) throw new Problem(why, { exitCode: 64, hint });
}

/** Given the command line without node and script, does what it says. Returns the exit code. */
async function obey(argv) {
  const { command: name, words, values, flags } = readOptions(argv);
  if (['setup', 'doctor', 'list', 'find', 'restore', 'drill', 'audit', 'prune', 'report', 'status'].includes(name)) listenToSignals(name === 'setup' ? 'what is there is kept: call setup again whenever you like' : undefined); // Ctrl-C ends the borg they are waiting for
  const script = fs.realpathSync(process.argv[1]), file = values.settings;
  if (flags.help || name === 'help') return answered(helpText(name === 'help' ? words[0] ?? '' : name));
  if (flags.version) {
    const state = editedOrAsBuilt(fs.readFileSync(script, 'utf8'));
    return answered(mode.json ? JSON.stringify({ version: VERSION, state }) : `cold-backup ${VERSION} (${state})`);
  }
  if (name === 'recover') return recoverAll(script, file);
  if (name === 'guard') return guard(words, loadedOrNull(script, file)?.settings ?? null);
  if (name === 'audit') return audit(settings, loadOperator(script, file), words, { full: flags.full, accept: flags.accept, yes: flags.yes, undoPlan: flags['undo-plan'] });
  if (name === 'prune') return prune(settings, loadOperator(script, file), words, flags.yes);
  if (name === 'report') return report(settings, loadOperator(script, file), words, values.to, values.lang);
  if (name === 'status' && flags.all) return statusOfAll(loadOperator(script, file), words);
  if (name === 'setup') await answerFirst(script, file, values, flags.yes);
  const loaded = values.repository && name !== 'setup' ? bareMachine(values) : loadSettings(settings, script, file);
  const server = values.repository ? '' : serverName(loaded.settings); // on a bare machine: whatever lies in the repository
  const isEmergency = values.repository && name !== 'drill'; // a restore on a bare machine is not kept waiting for a chmod
  if (['', 'list', 'find', 'restore', 'drill', 'borg'].includes(name) && !isEmergency && !flags['print-settings']) checkSecretFiles(loaded.settings);
  if (flags['print-settings']) return answered(mode.json ? JSON.stringify(settingsAsJson(loaded), null, 1) : printSettings(loaded));
  if (name === 'setup') return setup(loaded, script, { yes: flags.yes, schedule: values.schedule, quota: values.quota, keyFile: values['key-file'], passphraseFile: values['passphrase-file'] }).finally(goOn); // what a signal ended has not failed
  if (name === 'doctor') return doctor(loaded, script);
  if (name === 'status') return status(loaded.settings, script, flags.remote);
  if (name === 'list') return list(loaded.settings, server, words);
  if (name === 'find') return find(loaded.settings, server, words);
  if (name === 'restore' && flags['in-place']) {
    return restoreInPlace(loaded, script, words, { bare: Boolean(values.repository), reindex: flags.reindex, stateFolder: values.repository ? withDefaults(settings).stateFolder : loaded.settings.stateFolder });
  }
  if (name === 'restore') return restoreTo(loaded.settings, server, words, values.to, flags['mend-links']);
  if (name === 'drill') return drill(loaded.settings, server, words, flags.full);
  if (name === 'borg') return borgItself(loaded.settings, words);
  return takeBackup(loaded, script);
}

// On a server without settings `setup` begins by making them; where there are some, what they say is edited there.
async function answerFirst(script, file, values, yes) {
  const isFilled = settingsSource(script, file) !== script || settings.repository !== '' || settings.stop.length + settings.folders.length + settings.volumes.length > 0;
  const said = ['repository', 'server', 'stop', 'folders', 'volumes', 'window', 'language'].find((key) => values[key]);
  if (!isFilled) return firstSettings(script, withDefaults(settings), values, yes);
  if (said) throw new Problem(`--${said}: this server has settings already`, { exitCode: 64, hint: `edit them: ${settingsSource(script, file)}` });
}

// A machine without settings: repository, key and passphrase are on the command line; borg's cache lives as long as we do.
function bareMachine(values) {
  const whole = withDefaults(settings);
  const own = { server: '', repository: /^[^/]*:/.test(values.repository) ? values.repository : resolve(values.repository), keyFile: resolve(values['key-file'] || whole.keyFile), passphraseFile: resolve(values['passphrase-file'] || whole.passphraseFile),
    sshKey: resolve(values['ssh-key'] || whole.sshKey), stateFolder: temporaryFolder() }; // borg reads them in other folders than ours
  return { settings: { ...whole, ...own }, file: 'the command line', text: '', given: own, lines: new Map() };
}

function answered(text) {
  answer(text);
  return 0;
}

function loadedOrNull(script, file) {
  try {
    return loadSettings(settings, script, file === script ? '' : file);
  } catch {
    return null;
  }
}

// `recover` has to work when the settings are broken or gone: then every state folder that may be meant is looked into.
function everyStateFolder(script, file) {
  const loaded = loadedOrNull(script, file);
  const folders = [...stateFoldersElsewhere(), loaded?.settings.stateFolder ?? '', settings.stateFolder ?? '', '/var/lib/cold-backup'];
  for (const source of loaded ? [] : [file, join(dirname(script), 'backup.settings.js')]) {
    try {
      folders.push(...stateFoldersIn(fs.readFileSync(source, 'utf8')));
    } catch { /* not there */ }
  }
  return [[...new Set(folders.filter((folder) => folder.startsWith('/')))], loaded?.settings ?? null];
}

async function recoverAll(script, file) {
  const [folders, known] = everyStateFolder(script, file), code = await recover(folders, known);
  if (known) await sweepDrills(known); // after what people wait for
  return code;
}

async function main() {
  process.removeAllListeners('exit'); // the file is whole (see the top)
  process.exitCode = 2; // should all work ever end without an answer, it was not good
  for (const stream of [process.stdout, process.stderr]) stream.on('error', () => {}); // a closed terminal or pipe must not kill us
  let code;
  try {
    code = await obey(process.argv.slice(2));
  } catch (error) {
    sayError(error);
    const { exitCode = 2, hint = '' } = error instanceof Problem ? error.facts : {};
    if (mode.json) answer(JSON.stringify({ outcome: 'failed', exitCode, error: (error).message, hint }));
    code = exitCode;
  }
  // What was printed is out before we leave; a command that hangs somewhere must not keep us.
  await Promise.race([Promise.all([process.stdout, process.stderr].map((stream) => new Promise((done) => { stream.write('', done); }))), new Promise((done) => { setTimeout(done, 2000).unref(); })]);
  process.exit(code);
}

// =========================================================================================================
// ==== OPERATOR'S PART ====
// What follows runs only on the operator's own machine. A client can stop reading here.

// =========================================================================================================
// ==== OPERATOR ====
// The operator's own computer: its settings name every server with full access to its repository. Nothing on a production server
// can do what follows: there is no such file there, and its ssh key may only add. This chapter reads the file, and
// runs programs on the storage. What stands on the storage is not believed here, only looked at.

const NO_SERVER = { server: '', repository: '', sshKey: '', knownHostsFile: '', keyFile: '', passphraseFile: '', storage: [], cutAccess: [], giveAccess: [], timeZone: 'UTC', maxAgeHours: 26, drillMaxAgeDays: 8 };
const KEEP = { last: 3, daily: 7, weekly: 4, monthly: 12, yearly: 3 };
const RULES_OF_SERVER = { server: aServer, repository: aRepository, sshKey: aPath, knownHostsFile: aPath, keyFile: aSecretFile, passphraseFile: aSecretFile, storage: aCommand, cutAccess: aCommand, giveAccess: aCommand, timeZone: aTimeZone, maxAgeHours: aNumber(0, 100_000, 'any'), drillMaxAgeDays: aNumber(0, 10_000, 'any') };

/**
 * Given the block of this script (for its names), the script and FILE of --settings, returns the operator's settings. Throws
 * Problem (64) when there is no such file, or with every mistake in it.
 */
function loadOperator(script, file) {
  const source = settingsSource(script, file), hint = 'on the operator\'s computer: write `const settings = { ledgerFolder, servers: [ ... ] };` (see README) into backup.settings.js beside backup.js, or name it with --settings FILE';
  if (source === script) throw new Problem('there is no operator\'s file here: audit, prune and report are not for a production server',
    { exitCode: 64, hint });
  const { settings } = loadWith(null, script, source, (found, wrong) => {
    if (isGroup(found) && !('servers' in found) && ('stop' in found || 'folders' in found || 'repository' in found)) {
      throw new Problem(`${named(source)} is the file of a production server, not the operator's: audit, prune and report are not for a production server`, { exitCode: 64, hint });
    }
    return filledOperator(found, wrong);
  });
  const folder = path.resolve(path.dirname(fs.realpathSync(source)), settings.ledgerFolder);
  return { ...settings, ledgerFolder: folder, file: source };
}

function filledOperator(found, wrong) {
  if (!isGroup(found)) return wrong('', `must be a group: const settings = { ... }; and not ${shown(found)}`), {};
  refuseUnknown(found, '', ['ledgerFolder', 'servers', 'language'], wrong);
  const { ledgerFolder = 'ledger', servers, language = 'en' } = found;
  aLanguage(language, 'language', wrong);
  if (typeof ledgerFolder !== 'string' || ledgerFolder === '') wrong('ledgerFolder', `must be a folder, not ${shown(ledgerFolder)}`);
  if (!Array.isArray(servers)) wrong('servers', `must be a list of servers in [ ], not ${shown(servers)}`);
  const list = Array.isArray(servers) ? servers.map((one, index) => filledServer(one, `servers[${index}]`, wrong)) : [];
  list.forEach(({ server }, index) => {
    if (list.findIndex((other) => other.server === server) < index) wrong(`servers[${index}].server`, `${shown(server)} is in the list already`);
  });
  return { ledgerFolder, servers: list, language };
}

function filledServer(given, at, wrong) {
  if (!isGroup(given)) return wrong(at, `must be a group in { }, not ${shown(given)}`), {};
  const one = Object.fromEntries(Object.entries(given).filter(([, value]) => value !== '')); // '' is: not given
  refuseUnknown(one, at, [...Object.keys(RULES_OF_SERVER), 'keep'], wrong);
  for (const [key, rule] of Object.entries(RULES_OF_SERVER)) {
    if (one[key] !== undefined) rule(one[key], `${at}.${key}`, wrong);
    else if (key === 'server' || key === 'repository') wrong(`${at}.${key}`, 'is missing');
  }
  const keep = isGroup(one.keep) ? { ...KEEP, ...one.keep } : one.keep ?? KEEP; // aGroup wants all of them
  aGroup({ last: aNumber(1, 1e6, 'whole'), ...Object.fromEntries(['daily', 'weekly', 'monthly', 'yearly'].map((rule) => [rule, aNumber(0, 1e6, 'whole')])) })(keep, `${at}.keep`, wrong);
  if (Boolean((one.cutAccess)?.length) !== Boolean((one.giveAccess)?.length)) wrong(`${at}.cutAccess`, 'and giveAccess go together: what is cut must be given back');
  return { ...NO_SERVER, ...one, keep };
}

/** The servers named, or all. Throws Problem (64) for a name that is not in the file. */
function serversMeant({ servers, file }, names) {
  const unknown = names.filter((name) => !servers.some(({ server }) => server === name));
  if (unknown.length > 0) throw new Problem(`no such server in ${named(file)}: ${unknown.join(', ')}`,
    { exitCode: 64, hint: `it names ${servers.map(({ server }) => server).join(', ') || 'none'}` });
  if (servers.length === 0) throw new Problem(`${named(file)} names no server`, { exitCode: 64 });
  return servers.filter(({ server }) => names.length === 0 || names.includes(server));
}

/** The settings with which borg is run for this server from here: full access, its own cache. Throws Problem (64) when others could read a key. */
function borgSettings(builtIn, { ledgerFolder }, one) {
  const { server, repository, sshKey, knownHostsFile, keyFile, passphraseFile } = one;
  const settings = { ...builtIn, server, repository, sshKey, knownHostsFile, keyFile, passphraseFile, stateFolder: path.join(ledgerFolder, '.cache', server) };
  checkSecretFiles(settings);
  for (const file of [sshKey, keyFile, passphraseFile]) {
    if (file && !fs.existsSync(file)) throw new Problem(`${named(file)} is not there`,
      { exitCode: 64, hint: 'the escrowed key and passphrase stand on the recovery sheet of this server' });
  }
  canWrite(ledgerFolder, () => fs.mkdirSync(path.join(settings.stateFolder, 'borg'), { recursive: true, mode: 0o700 }));
  return settings;
}

/** From here a repository may be somewhere else than yesterday: its pruned copy, a storage that moved. That it is the same one, its id in the ledger tells. */
const ANYWHERE = { env: { BORG_RELOCATED_REPO_ACCESS_IS_OK: 'yes' } };
/** Whether archives can be named: with key and passphrase. Without, the audit reads the repository's files alone. */
const canDecrypt = ({ passphraseFile }) => passphraseFile !== '';
/** Whether the repository's files can be read: by a shell there, or because they lie here. */
const hasShell = ({ storage, repository }) => storage.length > 0 || repository.startsWith('/');

/** The repository's folder as the storage's shell sees it, which starts in the home folder. */
function folderThere({ repository }) {
  const folder = isRemote({ repository }) ? repositoryAddress(repository).path : repository;
  return folder.replace(/^~\//, './').replace(/(?<=.)\/+$/, '');
}

/** Write something on the operator's own disk. Throws Problem when that cannot be: a disk that is full, a folder of somebody else's. */
function canWrite(place, write) {
  try {
    write();
  } catch (error) {
    throw new Problem(`${named(place)} cannot be written: ${error.code ?? error.message}`, { hint: 'look at `df -h`, and at who may write there' });
  }
}

/** Write a file there, whole or not at all. */
const writeHere = (file, text) => canWrite(file, () => writeDurably(file, text));

// A line that died silently (a VPN, a firewall) holds nothing up for longer than a minute; who says so otherwise is heard.
const aliveOrEnded = (words) => (path.basename(words[0] ?? '') !== 'ssh' || words.some((word) => /ServerAlive/i.test(word)) ? words
  : [words[0], '-o', 'ServerAliveInterval=10', '-o', 'ServerAliveCountMax=6', ...words.slice(1)]);

let scratch = ''; // made once
const IS_GONE = 'is not there any more'; // what an audit of a known repository makes an alarm of

/** Run a script (of sh or python3) on the storage: it goes there on standard input, so that no shell in between reads its words. looks: it changes nothing. */
async function onStorage(one, what, interpreter, script, options = {}) {
  const file = path.join(scratch ||= temporaryFolder(), 'script');
  fs.writeFileSync(file, script, { mode: 0o600 });
  const fd = fs.openSync(file, 'r'), { looks = false, ...more } = options;
  fs.rmSync(file); // several servers are read at the same time
  try {
    const done = await (looks ? look : change)([...aliveOrEnded(one.storage), ...interpreter], { seconds: 3600, ...more, stdin: fd });
    if (done.code === 0) return done;
    if (/^NOT THERE: /m.test(done.said)) throw new Problem(`the repository of ${one.server} ${IS_GONE}`,
      { said: done.said, hint: 'was a prune interrupted? `node backup.js prune` puts it in order. Else ask the storage\'s keeper' });
    const [, refused] = /^REFUSED: (.*)$/m.exec(done.said) ?? [];
    if (refused) throw new Problem(`${what}: ${refused}`);
    const hint = done.code === 127 ? `${interpreter[0]} is not there: borg is a Python program, so install python3 on the storage` : `does this open a shell there: ${one.storage.join(' ')}`;
    throw failure(what, done, one.storage.length > 0 && (looks || [126, 127, 255].includes(done.code)) ? hint : '');
  } finally {
    fs.closeSync(fd);
  }
}

// =========================================================================================================
// ==== SEGMENTS ====
// The files of a borg 1 repository, read from outside: its transactions, what each changed, and when.
// That is by the storage's own note. No key is needed and borg is not asked. A repository is a list of segment files that only grows; each entry is crc32, size, tag
// and, for PUT and DELETE, the id of a chunk; a COMMIT ends a transaction, whose number is that of its segment file (borg: docs/internals/data-structures.rst,
// "Segments"; repository.py). The storage's server writes a DELETE before it PUTs an id again, whatever a client asks: a client cannot hide that. The reader below
// is Python, which is there wherever borg is. It only reads, one entry at a time.

const READER = String.raw`
import configparser, datetime, hashlib, json, os, struct, sys, time, zlib
served = os.path.realpath(SERVED)
if not os.path.isdir(os.path.join(REPO, 'data')): sys.exit('NOT THERE: no repository in ' + os.path.abspath(REPO))
os.chdir(REPO)
say = lambda **what: sys.stdout.write(json.dumps(what) + '\n')
digest = lambda lines: hashlib.sha256(''.join('%d %d\n' % line for line in lines).encode()).hexdigest()
segments = {}
for folder in os.listdir('data'):
    for name in os.listdir(os.path.join('data', folder)):
        if name.isdigit(): segments[int(name)] = os.path.join('data', folder, name)
log, times = b'', {}
if os.path.exists('transactions'): log = open('transactions', 'rb').read()
log = log[:log.rfind(b'\n') + 1]
for line in log.decode('ascii', 'replace').split('\n'):
    words = line.replace(',', '').split()
    if len(words) == 5 and words[1].isdigit(): times[int(words[1])] = words[4]
sizes = [(number, os.stat(segments[number]).st_size) for number in sorted(segments)]
wanted, manifest_id = set(map(bytes.fromhex, IDS)), bytes(32)
last, damage, pending = AFTER, [], []
fresh = lambda: dict(puts=0, bytes=0, manifest=None, deleted=0)
now, place = fresh(), 0
for number, size_of_file in sizes:
    if number <= AFTER or (UNTIL and number > UNTIL): continue
    try: file = open(segments[number], 'rb')
    except FileNotFoundError: continue # the rest of a broken upload, cleaned up just now
    with file:
        if file.read(8) != b'BORG_SEG': pending.append('data file %d does not begin as one' % number)
        while True:
            head = file.read(9)
            if not head: break
            crc, size, tag = struct.unpack('<IIB', head) if len(head) == 9 else (0, 0, 255)
            if tag > 2 or size < (9 if tag == 2 else 41):
                pending.append('data file %d cannot be read from byte %d on' % (number, file.tell() - len(head)))
                break
            key, rest = (file.read(32), size - 41) if tag < 2 else (b'', size - 9)
            if rest > os.fstat(file.fileno()).st_size - file.tell():
                pending.append('data file %d: the entry before byte %d is longer than the file' % (number, file.tell()))
                break
            place += 1
            if DATA or rest < 4096:
                data = file.read(rest)
                if len(data) < rest or zlib.crc32(data, zlib.crc32(head[4:] + key)) != crc: pending.append('data file %d: the entry before byte %d is damaged' % (number, file.tell()))
            else: file.seek(rest, 1)
            if tag == 2:
                for text in pending[:20]: damage.append(text)
                last, pending, place = number, [], 0
                stamp = datetime.datetime.fromtimestamp(os.fstat(file.fileno()).st_mtime, datetime.timezone.utc).strftime('%Y-%m-%dT%H:%M:%S.%f')
                say(number=number, time=times.get(number), fileTime=stamp, **now)
                now = fresh()
            elif key == manifest_id:
                if tag == 0: now['manifest'] = size
                if tag == 0: now['bytes'] += size
            elif tag == 0:
                now['puts'] += 1
                now['bytes'] += size
                if key in wanted: say(found=key.hex(), place=place)
            else:
                now['deleted'] += 1
                if now['deleted'] <= 10000: say(deleted=key.hex(), place=place)
        if number <= last and size_of_file < file.tell(): damage.append('data file %d is cut off' % number)
config = configparser.ConfigParser(interpolation=None)
config.read('config')
serving = []
for pid in filter(str.isdigit, os.listdir('/proc') if os.path.isdir('/proc') else []):
    try: words = open('/proc/%s/cmdline' % pid, 'rb').read().decode('utf8', 'replace').split('\0')
    except OSError: continue
    if 'serve' not in words or not any('borg' in os.path.basename(word) for word in words[:3]): continue
    allowed = [word.split('=', 1)[1] if '=' in word else words[at + 1] for at, word in enumerate(words) if word.startswith('--restrict-to-')]
    try: home = os.readlink('/proc/%s/cwd' % pid)
    except OSError: home = '/'
    places = [os.path.realpath(os.path.join(home, os.path.expanduser(one))) for one in allowed]
    if not places or any(served == one or served.startswith(one.rstrip('/') + '/') for one in places): serving.append('process %s: %s' % (pid, ' '.join(words).strip()))
committed = [line for line in sizes if line[0] <= last]
stamped = lambda at: datetime.datetime.fromtimestamp(at, datetime.timezone.utc).strftime('%Y-%m-%dT%H:%M:%SZ')
disk, home, quotas = os.statvfs('.'), os.path.expanduser('~'), [config['repository'].get('storage_quota', '0')]
lines = open(home + '/.ssh/authorized_keys', errors='replace') if os.access(home + '/.ssh/authorized_keys', os.R_OK) else []
for words in [line.split(chr(34))[1].split() for line in lines if line.count(chr(34)) > 1]:
    after = lambda option: [word.split('=', 1)[1] if '=' in word else following for word, following in zip(words, words[1:] + ['']) if word.startswith(option)]
    if served in [os.path.realpath(os.path.join(home, os.path.expanduser(one))) for one in after('--restrict-to-')]: quotas += after('--storage-quota')
say(config=dict(config['repository']), nonce=open('nonce').read().strip() if os.path.exists('nonce') else '', damage=damage[:100], last=last,
    bytes=sum(size for number, size in committed), segments=len(committed), files=dict(count=len(committed), sha256=digest(committed)),
    oldFiles=dict(count=len([1 for line in sizes if line[0] <= AFTER]), sha256=digest([line for line in sizes if line[0] <= AFTER])),
    log=dict(bytes=len(log), sha256=hashlib.sha256(log).hexdigest()), oldLog=hashlib.sha256(log[:LOG]).hexdigest(), appendOnlyLines=len(times),
    now=stamped(time.time()), newest=stamped(os.stat(segments[sizes[-1][0]]).st_mtime) if sizes else '', quotas=quotas, disk=dict(free=disk.f_bavail * disk.f_frsize, total=disk.f_blocks * disk.f_frsize, id=os.stat('.').st_dev),
    state=hashlib.sha256(repr((digest(sizes), log, open('nonce').read() if os.path.exists('nonce') else '')).encode()).hexdigest(), serving=serving, locked=os.path.exists('lock.exclusive') and bool(os.listdir('lock.exclusive')))
`;

/** The reader as a text for python3. served: where the repository is when `borg serve` opens it; folder: where it is now. Its last line is a JSON object. */
function readerText(folder, served, { after, until, logBytes, ids, data }) {
  const values = { REPO: folder, SERVED: served, AFTER: after, UNTIL: until, LOG: logBytes, IDS: ids };
  return `${Object.entries(values).map(([name, value]) => `${name} = ${JSON.stringify(value)}\n`).join('')}DATA = ${data ? 'True' : 'False'}\n${READER}`;
}

const SUM = { sha256: 'text' };
// What READER prints: a line for each piece that was found or deleted, one for each transaction, and at the end one for the whole.
const FOUND_LINE = { found: 'hex', place: 'number' }, DELETED_LINE = { deleted: 'hex', place: 'number' };
const TRANSACTION_LINE = { number: 'id', 'time?': 'time', fileTime: 'time', puts: 'number', bytes: 'number', 'manifest?': 'number', deleted: 'number' };
const LAST_LINE = { config: { '*': 'text', id: 'hex' }, nonce: 'text', damage: ['text'], last: 'id', bytes: 'number', segments: 'number', files: { ...SUM, count: 'number' }, oldFiles: { ...SUM, count: 'number' }, log: { ...SUM, bytes: 'number' },
  oldLog: 'text', appendOnlyLines: 'number', state: 'text', serving: ['text'], locked: 'yes or no',
  now: 'time', newest: 'text', quotas: ['text'], disk: { free: 'number', total: 'number', id: 'number' } };

// A storage that is in an intruder's hands may answer anything.
function readerLine(line, server) {
  let what = null;
  try {
    what = JSON.parse(line);
  } catch { /* told below */ }
  const form = what?.config ? LAST_LINE : what?.found !== undefined ? FOUND_LINE : what?.place !== undefined ? DELETED_LINE : TRANSACTION_LINE, odd = misfit(what, form);
  if (odd) throw new Problem(`what the storage of ${server} says of the repository's files is not understood (${odd})`,
    { said: line.slice(0, 200), hint: 'is that a plain shell over there, which says nothing of its own? Else ask the storage\'s keeper' });
  return what;
}

/**
 * Given a server, what is wanted and (when it is not the settings') the folder, reads the repository's files where they lie,
 * and returns what they say. Throws Problem when they cannot be read.
 */
async function readRepository(one, wanted, folder = folderThere(one)) {
  const transactions = [], found = [], deletes = [];
  let rest = null;
  const onLine = (line) => {
    const what = readerLine(line, one.server);
    if (what.config) rest = what;
    else if (what.found !== undefined) found.push([what.found, what.place]);
    else if (what.place !== undefined) deletes.push([what.deleted, what.place]);
    else transactions.push({ ...what, found: found.splice(0), deletes: deletes.splice(0) });
  };
  await onStorage(one, `the files of the repository of ${one.server} cannot be read`, ['python3', '-'], readerText(folder, folderThere(one), wanted),
    { looks: true, onLine, keepBytes: 0, seconds: wanted.after === STATE_ALONE.after ? 600 : 24 * 3600 });
  if (!rest) throw new Problem(`the files of the repository of ${one.server} were not read to their end`);
  return { ...rest, transactions };
}

/** When a transaction was, as the storage itself noted: ISO 8601 UTC, to the second. */
const timeOf = ({ time, fileTime }) => `${(time ?? fileTime).slice(0, 19)}Z`;

/** What to read when only the repository's state is of interest, not its transactions: no data file has so high a number, so none is opened. */
const STATE_ALONE = { after: 2 ** 32 - 1, until: 0, logBytes: 0, ids: [], data: false };

// =========================================================================================================
// ==== OPERATOR'S LEDGER ====
// The operator's ledger: what audits saw of a server's repository, one JSON file a server.
// In the code it is `book`: `ledger` is what a night has stopped. It is readable, on the operator's computer. It is what the storage and the server are measured by, so it never forgets: archives
// that were pruned stay in it, with the day. Written whole or not at all. Changes only files in `ledgerFolder`.

const bookFile = ({ ledgerFolder }, server) => path.join(ledgerFolder, `${server}.json`);

const MARK_FORM = { transaction: 'id', previous: 'id', time: 'time', files: { count: 'number', sha256: 'text' }, log: { bytes: 'number', sha256: 'text' }, manifestBytes: 'number', nonce: 'text' };
const BOOK_FORM = { server: 'text', firstAuditAt: 'time', lastAuditAt: 'time', 'mark?': MARK_FORM, 'namedUntil?': 'id', appendOnly: 'yes or no', config: { '*': 'text' },
  days: [{ day: 'text', bytes: 'number', transactions: 'number' }], audits: [{ at: 'time' }], prunes: [{ at: 'time', freedBytes: 'number' }],
  archives: [{ id: 'text', name: 'text', kind: 'text', seenAt: 'time', seenBy: 'text', transaction: 'id', claimedAt: 'time', endedAt: 'time',
    'originalBytes?': 'number', 'files?': 'number', 'newBytes?': 'number', 'goneAt?': 'time' }],
  'pruning?': { startedAt: 'time', stage: 'text', deleting: ['text'], accessCut: 'yes or no', 'mark?': MARK_FORM, 'bytes?': ['number'] } };

/** The ledger of a server; null before its first audit. Throws Problem (64) when there is a file and it cannot be read as a ledger: it is never begun anew by itself. */
function readBook(operator, { server, repository }) {
  const file = bookFile(operator, server);
  let text;
  try {
    text = fs.readFileSync(file, 'utf8');
  } catch (error) {
    if (error.code === 'ENOENT') return null;
    throw new Problem(`the ledger ${named(file)} cannot be read: ${error.code}`, { exitCode: 64 });
  }
  try {
    const book = JSON.parse(text);
    if (book.format !== 1 || misfit(book, BOOK_FORM)) throw new Error();
    if (book.server !== server) throw new Problem(`the ledger ${named(file)} is that of ${book.server}`, { exitCode: 64 });
    return { ...book, repository };
  } catch (error) {
    if (error instanceof Problem) throw error;
    throw new Problem(`the ledger ${named(file)} is damaged`,
      { exitCode: 64, hint: 'bring it back from your own backup. If there is none, move it away: the next audit begins a new one, and trusts what it finds' });
  }
}

const newBook = ({ server, repository }, now) => ({ format: 1, server, repository, firstAuditAt: now, lastAuditAt: now,
  mark: null, appendOnly: false, config: {}, archives: [], days: [], audits: [], prunes: [], pruning: null });

/** One audit or prune of a server at a time, on this computer. Returns the lock: an open file. Throws Problem (75) when there is another one. */
function lockBook({ ledgerFolder }, server) {
  canWrite(ledgerFolder, () => { fs.mkdirSync(ledgerFolder, { recursive: true, mode: 0o700 }); fs.accessSync(ledgerFolder, fs.constants.W_OK); });
  refuseIfOthersCanChange(ledgerFolder, '`ledgerFolder`');
  const lock = takeLock(ledgerFolder, 1, `.${server}.lock`);
  if (lock !== null) return lock;
  throw new Problem(`${server}: another audit or prune of it is going on`, { exitCode: 75, hint: 'wait for its end' });
}

/**
 * Audit or prune each server meant, alone on its ledger. Given what to do and what to note of one that failed, returns the exit code: an alarm or a failure (2) is
 * never hidden by another server's "not now".
 */
async function eachServer(operator, names, work, failed) {
  const codes = [0];
  for (const one of serversMeant(operator, names)) {
    let lock = null;
    try {
      lock = lockBook(operator, one.server);
      codes.push(await work(one));
    } catch (error) {
      if (!(error instanceof Problem)) throw error;
      if (error.message !== askedToStop()?.why) sayError(error); // that is told in the end
      failed(one.server, error.message);
      codes.push(error.facts.exitCode ?? 2);
      goOn();
    } finally {
      if (lock !== null) fs.closeSync(lock);
    }
  }
  return [2, 64, 75].find((code) => codes.includes(code)) ?? Math.max(...codes);
}

/** Write the ledger, on disk when this returns. */
const writeBook = (operator, book) => writeHere(bookFile(operator, book.server), `${JSON.stringify(book, null, 1)}\n`);
/** The last transaction up to which archives have names in the ledger: audits without the key move the mark alone. 0: no audit saw names and transactions both. */
const namedUntil = (book) => book.namedUntil ?? (book.archives.length > 0 ? book.mark?.transaction ?? 0 : 0);
/** The archives that are still there, as far as the ledger knows. */
const present = (book) => book.archives.filter((one) => !one.goneAt);

// =========================================================================================================
// ==== FINDINGS ====
// What an audit finds wrong, rule by rule. Given the ledger, what was read of the repository's files and (with the key) the list of archives,
// these functions return findings in words a person understands. They only judge: nothing is read or changed here.
// R1 overwritten, R2 deleted, R3 without a manifest, R4 manifest shrunk, R5 not expected, R6 sudden growth or shrinking, R7 key, configuration
// or nonce changed, R8 archive gone, R9 damaged, R10 times that do not fit the storage's own, R11 a proof that is none.

const HOUR = 3_600_000;
const SMALLEST_ENTRY = 32; // bytes by which the manifest shrinks, at least, when an archive leaves it: the id alone. A checkpoint's name that becomes the final one is 11
const MOST_TRANSACTIONS = 600; // a day: one every five minutes, twice
const MOST_ARCHIVES = 150; // a day
const LATEST_PROOF = 2 * HOUR; // after its archive
const NONCE_JUMP = 1n << 44n; // a session takes 2^28 at least (borg: NONCE_SPACE_RESERVATION)

const aFinding = (rule, at, transaction, archives, what) => ({ rule, at, archives, what, undo: '', transaction });
const apart = (one, other) => Math.abs(Date.parse(one) - Date.parse(other));
const sha256 = (text) => createHash('sha256').update(text).digest('hex');

/** Everything that is wrong, the earliest first. */
function findingsOf(evidence) {
  const { reading, listed, isFirst, book } = evidence, areFilesKnown = book.mark !== null, areNamesKnown = book.archives.length > 0 || namedUntil(book) > 0;
  if (isFirst) return reading ? damagedFiles(reading, evidence.now) : []; // what was there before we came is trusted
  const rewrites = reading && areFilesKnown ? rewritten(evidence, reading) : [], missing = listed ? goneArchives(evidence, listed) : [];
  const found = [...rewrites, ...missing];
  if (reading && areFilesKnown) found.push(...manifests(evidence, reading, found.length > 0), ...unexpected(evidence, reading));
  if (reading && Object.keys(book.config).length > 0) found.push(...configuration(evidence, reading));
  if (reading) found.push(...damagedFiles(reading, evidence.now));
  if (listed && areNamesKnown) found.push(...strangers(evidence), ...wrongTimes(evidence), ...falseProofs(evidence, listed));
  if (listed ? areNamesKnown : areFilesKnown) found.push(...oddSizes(evidence));
  return onceEach(found).sort((one, other) => (one.transaction ?? Infinity) - (other.transaction ?? Infinity) || (one.rule < other.rule ? -1 : 1));
}

// An archive whose deletion was seen in the files is also missing in the list: told once.
function onceEach(found) {
  const told = new Set();
  return found.filter(({ rule, archives }) => rule !== 'R8' || archives.some((name) => !told.has(name) && told.add(name)));
}

/** R1 and R2, and R8 where an archive itself was deleted. An honest run deletes one thing: its own last checkpoint, right after it. */
function rewritten({ book, puts, fresh, listed }, { transactions, oldFiles }) {
  const found = [], known = new Map([...book.archives, ...fresh].map((one) => [one.id, one]));
  let before = book.mark?.transaction ?? 0;
  for (const one of transactions) {
    const overwritten = [], deleted = [], checkpoints = [];
    for (const [id, place] of one.deletes) {
      const all = puts.get(id) ?? [], isEarlier = ([number, at]) => number < one.number || (number === one.number && at < place);
      const last = all.filter(isEarlier).pop()?.[0], archive = known.get(id), isKept = archive && archive.kind !== 'checkpoint' && !archive.goneAt;
      if (last === one.number) continue; // what one transaction puts and takes back was never there: a file that could not be read to its end
      if (all.some((put) => !isEarlier(put))) overwritten.push(id);
      else if (last === before && !isKept && (archive || !listed || before > namedUntil(book))) checkpoints.push(id); // up to there the ledger knows each archive
      else if (archive && isKept) found.push(aFinding('R8', timeOf(one), one.number, [archive.name], `archive ${named(archive.name)} was deleted, or renamed or written anew, which deletes it, too`));
      else deleted.push(id);
    }
    if (checkpoints.length > 1 || deleted.length > 0 || overwritten.length > 0 || one.manifest === null) deleted.push(...checkpoints); // no honest run
    const uncounted = one.deleted - one.deletes.length, where = `in transaction ${one.number}`;
    if (overwritten.length > 0) found.push(aFinding('R1', timeOf(one), one.number, [], `${count(overwritten.length, 'piece')} of stored data ${overwritten.length === 1 ? 'was' : 'were'} overwritten ${where}: every archive that holds such a piece is damaged`));
    if (deleted.length + uncounted > 0) found.push(aFinding('R2', timeOf(one), one.number, [], `${count(deleted.length + uncounted, 'piece')} of stored data ${deleted.length + uncounted === 1 ? 'was' : 'were'} deleted ${where}`));
    before = one.number;
  }
  const { mark } = book;
  if (mark && oldFiles.sha256 !== mark.files.sha256) {
    found.push(aFinding('R2', book.lastAuditAt, null, [], `the data files that the last audit knew are not the same any more (${mark.files.count} then, ${oldFiles.count} now): somebody with full access deleted, compacted, repaired or rolled back, and it was not \`prune\``));
  }
  return found;
}

/** R3: a transaction without a list of archives. R4 with the key: one stored data, and no archive in the list is its. R4 without the key: the list became shorter. */
function manifests({ book, listed, fresh, puts }, { transactions }, isTampered) {
  const found = [], shorter = [], ends = new Set(fresh.map(({ transaction }) => transaction)), freshIds = new Set(fresh.map(({ id }) => id)), accounted = new Set([...puts].filter(([id]) => !freshIds.has(id)).flatMap(([, list]) => list.map(([number]) => number)));
  let last = book.mark?.manifestBytes ?? 0;
  for (const one of transactions) {
    if (listed && one.puts > 0 && one.manifest !== null && !ends.has(one.number) && !accounted.has(one.number)) {
      found.push(aFinding('R4', timeOf(one), one.number, [], `transaction ${one.number} stored ${size(one.bytes)}, and there is no archive of it: it was taken out of the list, or somebody stores other things here`));
    }
    if (one.manifest === null) found.push(aFinding('R3', timeOf(one), one.number, [], `transaction ${one.number} has no list of archives: no borg client ends one so`));
    else {
      if (last - one.manifest >= SMALLEST_ENTRY) shorter.push(aFinding('R4', timeOf(one), one.number, [], `the list of archives became ${last - one.manifest} bytes shorter in transaction ${one.number}: an archive was taken out of it`));
      last = one.manifest;
    }
  }
  // Who hid an archive did it later than its run: the way back leads to before that.
  for (const one of found) if (one.rule === 'R4') one.transaction = shorter.find(({ transaction }) => transaction > one.transaction)?.transaction ?? one.transaction;
  return listed && !isTampered ? found : [...found, ...shorter]; // another compression makes the list shorter, too: with the names that alone is no alarm
}

/** R5, from the files: written around the append-only server, its log changed, too much in a day. */
function unexpected({ book, fresh }, { transactions, oldLog }) {
  const found = [], outside = transactions.filter((one) => book.appendOnly && one.time === null);
  if (outside.length > 0) found.push(aFinding('R5', timeOf(outside[0]), outside[0].number, [], `${count(outside.length, 'transaction')} (${listedBriefly(outside.map(({ number }) => String(number)))}) did not come through the append-only server: somebody wrote with full access, and it was not \`prune\``));
  if (book.mark && book.mark.log.bytes > 0 && oldLog !== book.mark.log.sha256) found.push(aFinding('R5', book.lastAuditAt, null, [], 'the storage\'s own log of transactions was changed, not only added to'));
  for (const [day, list] of byDay(transactions)) {
    if (list.length > MOST_TRANSACTIONS) found.push(aFinding('R5', timeOf(list[0]), list[0].number, [], `a flood: ${list.length} transactions on ${day}`));
  }
  for (const [day, list] of groups(fresh, ({ seenAt }) => seenAt.slice(0, 10))) {
    if (list.length > MOST_ARCHIVES) found.push(aFinding('R5', list[0].seenAt, list[0].transaction || null, list.map(({ name }) => name), `a flood: ${list.length} new archives on ${day}`));
  }
  return found;
}

/** R5, by name: archives that this script does not write. */
function strangers({ fresh, book }) {
  const other = fresh.filter(({ kind }) => kind === 'other');
  if (other.length === 0) return [];
  return [aFinding('R5', other[0].seenAt, other[0].transaction || null, other.map(({ name }) => name), `${count(other.length, 'archive')} that backup.js does not write on ${book.server}: ${listedBriefly(other.map(({ name }) => named(name)))}`)];
}

/** R7. */
function configuration({ book, now }, reading) {
  const is = hashedConfig(reading.config), was = book.config, found = [];
  for (const key of new Set([...Object.keys(was), ...Object.keys(is)])) {
    if (was[key] === is[key]) continue;
    const what = key === 'id' ? 'this is another repository: its id changed' : key === 'key' ? 'the key that lies in the repository was overwritten' : `the repository's configuration changed: ${key} was ${was[key] ?? 'not there'}, and is ${is[key] ?? 'not there'}`;
    found.push(aFinding('R7', now, null, [], what));
  }
  const nonce = nonceTrouble(book, reading);
  return nonce ? [...found, aFinding('R7', now, null, [], `the repository's nonce, which keeps its encryption safe, ${nonce}`)] : found;
}

/** What became of the nonce; '' when it only grew. */
function nonceTrouble({ mark }, { nonce }) {
  const [before, after] = [mark?.nonce, nonce].map((hex) => (/^[0-9a-f]+$/.test(hex ?? '') ? BigInt(`0x${hex}`) : null));
  if (before == null) return '';
  if (after == null) return 'is gone';
  if (after >= before && after - before <= NONCE_JUMP) return '';
  return `${after < before ? 'went back' : 'jumped'}: from ${mark.nonce} to ${nonce}${after < before ? '' : '. At its end no backup could be written any more'}`;
}

/** The configuration as the ledger keeps it: the key only as a checksum. What `borg check` notes there for itself is left out. */
const hashedConfig = (config) =>
  Object.fromEntries(Object.entries(config).filter(([key]) => key !== 'last_segment_checked').map(([key, value]) => [key, key === 'key' ? `sha256 ${sha256(value)}` : value]));

/** R9. */
const damagedFiles = ({ damage }, now) => (damage.length === 0 ? [] : [aFinding('R9', now, null, [], `the repository's files are damaged: ${listedBriefly(damage, 5)}`)]);

/** R8, by the list of archives. */
function goneArchives({ book, reading }, listed) {
  const ids = new Set(listed.map(({ id }) => id)), names = new Set(listed.map(({ name }) => name));
  return present(book).filter(({ id, kind }) => kind !== 'checkpoint' && !ids.has(id)).map(({ id, name }) => {
    const deletion = reading?.transactions.find(({ deletes }) => deletes.some(([one]) => one === id));
    return aFinding('R8', deletion ? timeOf(deletion) : book.lastAuditAt, deletion?.number ?? null, [name], names.has(name)
      ? `archive ${named(name)} is not the one of the last audit: it was deleted and written anew` : `archive ${named(name)} is gone: it was deleted or renamed`);
  });
}

/** R10. What the client claims, against what the storage saw. */
function wrongTimes({ book, fresh, reading }) {
  return fresh.flatMap((one) => {
    const stamp = stampOf(one.name), wrong = (what) => [aFinding('R10', one.seenAt, one.transaction || null, [one.name], `archive ${named(one.name)} ${what}`)];
    const seen = `the storage saw it on ${one.seenAt}`;
    if (one.seenBy === 'storage' && one.transaction <= namedUntil(book) && reading) return wrong('is new in the list, but its data is older than the last audit');
    if (Date.parse(one.endedAt) - Date.parse(one.seenAt) > HOUR) return wrong(`claims a time in the future: ${one.endedAt}; ${seen}`);
    if (one.seenBy === 'storage' ? apart(one.endedAt, one.seenAt) > HOUR : Date.parse(one.endedAt) < Date.parse(book.lastAuditAt) - HOUR) return wrong(`claims another time than it was written at: ${one.endedAt}; ${seen}`);
    if (stamp && (Date.parse(stamp) - Date.parse(one.claimedAt) > HOUR || Date.parse(one.seenAt) - Date.parse(stamp) > 7 * 24 * HOUR)) return wrong(`bears another time in its name than it was written at; ${seen}`);
    return [];
  });
}

/** R11. Only the run itself says that an archive is good, and at once. */
function falseProofs({ book, fresh }, listed) {
  const all = new Map([...present(book), ...fresh].map((one) => [one.name, one]));
  return fresh.filter(({ kind }) => kind === 'proof').flatMap((proof) => {
    const name = proof.name.slice('proven-'.length), cold = all.get(name), claims = listed.find(({ id }) => id === proof.id)?.facts.id;
    const wrong = (what) => [aFinding('R11', proof.seenAt, proof.transaction || null, [name, proof.name], what)];
    if (!cold) return wrong(`${proof.name} says that ${name} is good, and there is no such archive`);
    if (cold.unproven) return wrong(`${name} was not proven at an earlier audit, and now there is a proof of it: only the run itself could know (if that audit fell into the minutes in which the run was starting its services again, all is well)`);
    if (Date.parse(proof.seenAt) - Date.parse(cold.seenAt) > LATEST_PROOF) return wrong(`the proof of ${name} was written ${span(apart(proof.seenAt, cold.seenAt) / 1000)} after it: a run writes it at once`);
    if (claims && claims !== cold.id) return wrong(`${proof.name} was written for another archive of that name: ${name} was written anew`);
    return [];
  });
}

/** R6. Given archives that are new and proven, how they compare with those before: a night that holds half or less, or thrice and more, or sends more than ever. */
function oddSizes({ book, fresh, reading, listed }) {
  const proven = provenOnes(present(book)), found = [];
  for (const one of provenOnes(fresh)) {
    const wrong = (what) => found.push(aFinding('R6', one.seenAt, one.transaction || null, [one.name], `${one.name} ${what}`));
    const odd = oddSize(one, proven);
    if (odd) wrong(odd);
    const sent = proven.slice(-14).flatMap(({ newBytes }) => newBytes ?? []);
    if (reading && isSudden(one.newBytes ?? 0, sent, reading.bytes)) wrong(`sent ${size(one.newBytes)}, where the nights before sent ${size(Math.max(...sent))} at most: was everything changed, as by encryption?`);
    proven.push(one);
  }
  for (const [day, list] of reading && !listed ? byDay(reading.transactions) : []) {
    const bytes = list.reduce((sum, one) => sum + one.bytes, 0) + (book.days.find((one) => one.day === day)?.bytes ?? 0), before = book.days.filter((one) => one.day < day).slice(-14).map((one) => one.bytes);
    if (isSudden(bytes, before, reading.bytes)) found.push(aFinding('R6', timeOf(list[0]), list[0].number, [], `${size(bytes)} came on ${day}, where the days before brought ${size(Math.max(...before))} at most: was everything changed, as by encryption?`));
  }
  return found;
}

const provenOnes = (archives) => {
  const proofs = new Set(archives.filter(({ kind }) => kind === 'proof').map(({ name }) => name.slice('proven-'.length)));
  return archives.filter(({ name, kind }) => kind === 'cold' && proofs.has(name)).sort((one, other) => (one.seenAt < other.seenAt ? -1 : 1));
};

/** In which way the size of an archive is not that of the up to seven before it; '' when it is. */
function oddSize({ originalBytes, files }, earlier) {
  const known = earlier.slice(-7).filter((one) => one.originalBytes !== null);
  if (known.length < 3 || originalBytes === null) return '';
  const [least, most] = [Math.min(...known.map((one) => one.originalBytes)), Math.max(...known.map((one) => one.originalBytes))], fewest = Math.min(...known.map((one) => one.files ?? 0));
  if (originalBytes < least / 2 && least - originalBytes > 1e6) return `holds ${size(originalBytes)}, where the ones before hold ${size(least)} at least`;
  if (files !== null && files < fewest / 2 && fewest - files > 20) return `holds ${count(files, 'file')}, where the ones before hold ${fewest} at least`;
  return originalBytes > most * 3 && originalBytes - most > 16e6 ? `holds ${size(originalBytes)}, where the ones before hold ${size(most)} at most` : '';
}

const isSudden = (bytes, before, repositoryBytes) => before.length >= 5 && bytes > 16e6 && bytes > 5 * Math.max(...before) && bytes > (repositoryBytes - bytes) / 2;

const byDay = (transactions) => groups(transactions, (one) => timeOf(one).slice(0, 10));

function groups(list, keyOf) {
  const found = new Map();
  for (const one of list) found.set(keyOf(one), [...found.get(keyOf(one)) ?? [], one]);
  return found;
}

const listedBriefly = (texts, most = 10) => texts.slice(0, most).join(', ') + (texts.length > most ? ` and ${texts.length - most} more` : '');

// =========================================================================================================
// ==== UNDO ====
// The way back after an alarm: `audit --undo-plan` prints commands and runs none of them. A repository that only grows is as it was when
// the files of later transactions are taken away, and with them what borg derived from them (borg: docs/usage/notes.rst, "Append-only
// mode"). Nothing is thrown away before a copy is made; what honest nights wrote after the attack is named, because it goes, too.

/** Given a server, its ledger and what the audit found, returns the plan as text: one block of shell for the storage, one for the operator's computer, one for the server. */
function undoPlan({ ledgerFolder }, one, book, { reading, fresh, listed }, findings) {
  const { server } = one, folder = pasteable([folderThere(one)]), first = Math.min(...findings.map(({ transaction }) => transaction ?? Infinity));
  const head = [`# ${server}: the way back. Nothing of it has been done.`, ...findings.map(({ rule, what }) => asComment(`${rule} ${what}`))];
  if (!reading) return [...head, '# The storage gives no shell: ask its keeper to put the repository back to the state before the time above (from a snapshot, or by the steps of borg\'s manual, "Append-only mode").'].join('\n');
  const is = hashedConfig(reading.config), was = book.config, keyLost = was.key !== undefined && is.key !== was.key, nonceWrong = nonceTrouble(book, reading) !== '';
  const changed = [...new Set([...Object.keys(was), ...Object.keys(is)])].filter((key) => /^[a-z_]+$/.test(key) && is[key] !== was[key] && !(key === 'key' && keyLost));
  const good = lastGood(book, reading, fresh, listed !== null, first);
  const later = first === Infinity ? [] : reading.transactions.filter(({ number }) => number > good);
  const perFolder = Number(reading.config.segments_per_dir ?? 1000);
  const lost = fresh.filter(({ transaction, kind }) => transaction > good && kind !== 'other'), files = `data/${Math.floor((good + 1) / perFolder)}/${good + 1} to data/${Math.floor(reading.last / perFolder)}/${reading.last}`;
  const storage = [`# 1. On the storage, as the owner of the repository${one.storage.length > 0 ? ` (${pasteable(one.storage)})` : ''}:`, 'set -eu', `cd ${folder}`,
    ...(one.cutAccess.length > 0 ? [`# first, on the operator's computer: ${pasteable(one.cutAccess)}`] : ['# first put a # before this server\'s line in authorized_keys, and end its `borg serve` if one runs (pgrep -af "borg serve")']),
    'quarantine="$PWD.quarantine"; test ! -e "$quarantine"', 'cp -al . "$quarantine"       # hard links: it costs no space',
    'for file in transactions config nonce; do if [ -e $file ]; then cp -a --remove-destination $file "$quarantine"/; fi; done       # these are changed in place',
    ...(later.length > 0 ? rollBack(good, files) : []),
    ...changed.map((key) => (was[key] === undefined ? `sed -i '/^${key} *=/d' config` : `sed -i ${pasteable([`s|^${key} *=.*|${key} = ${was[key].replaceAll('|', '\\|')}|`])} config`)),
    ...(nonceWrong ? ['# the nonce must never be lower than one that was used: the highest of what the ledger knows, and 2^40 more', `printf '%016x' ${BigInt(`0x${book.mark?.nonce || '0'}`) + (1n << 40n)} > nonce`] : [])];
  const operator = ['# 2. On the operator\'s computer:',
    ...(keyLost ? ['# the key: from the escrowed export (the recovery sheet); it overwrites the one in the repository', `borg key import ${pasteable([one.repository])} ESCROWED-KEY-FILE`] : []),
    ...(canDecrypt(one) ? ['# borg remembers the newest state it saw, and would take the old one for an attack', `rm -rf ${pasteable([path.join(ledgerFolder, '.cache', server)])}`] : []),
    `node backup.js audit ${server}       # must say: clean`];
  const client = [`# 3. On ${server}, as root, before its next run (its borg remembers the newest state, too):`,
    `rm -f "\${STATE_FOLDER:-/var/lib/cold-backup}"/borg/.config/borg/security/${reading.config.id}/manifest-timestamp`, 'node backup.js borg delete --cache-only', 'node backup.js borg check --verify-data       # reads everything; it may take hours', 'node backup.js list'];
  const restore = ['# 4. Give access back: ' + (one.giveAccess.length > 0 ? pasteable(one.giveAccess) : 'take the # away again'), '# Keep the quarantine until a drill has proven the newest archive; then remove it.'];
  const honest = lost.length === 0 ? [] : ['# These archives were written later, and go, too (they stay readable in the quarantine, where they were not touched):', ...lost.map(({ name }) => asComment(name))];
  if (later.length === 0 && changed.length === 0 && !keyLost && !nonceWrong) return [...head, '# No transaction is to be taken back. What changed was done with full access to the files: bring them back from a copy of the storage,', `# or, when it was you: node backup.js audit ${server} --accept`].join('\n');
  return [...head, ...(later.length > 0 ? [`# Back to transaction ${good}: everything after it goes (from ${timeOf(later[0])} on by the storage's clock).`] : []), ...honest, ...(listed ? [] : ['# (without the passphrase archives have no names here)']), '', ...storage, '', ...operator, '', ...client, '', ...restore].join('\n');
}

// Names may be the intruder's: none of them may become a line of its own, which somebody would run.
const asComment = (text) => `#   ${text.replace(/\s+/g, ' ')}`;

// The last transaction before the first bad one that ended with an archive which is still listed: what lies between belongs to no archive, or to the deed.
function lastGood(book, { transactions }, fresh, hasNames, first) {
  const ends = hasNames ? fresh.filter(({ kind }) => kind !== 'other').map(({ transaction }) => transaction) : transactions.map(({ number }) => number);
  return Math.max(book.mark?.transaction ?? 0, ...ends.filter((number) => number < first));
}

// The data files of the transactions after the last good one, then what borg makes anew from those that stay. The log of the append-only server
// loses their lines, too, or their numbers would come twice.
function rollBack(good, files) {
  return [`# transaction ${good} is the last good one; what came later lies in ${files}`,
    `for file in data/*/*; do if [ "\${file##*/}" -gt ${good} ]; then rm -f "$file"; fi; done`,
    'rm -f hints.* index.* integrity.*       # borg makes them anew',
    `if [ -e transactions ]; then awk '{ number = $2; sub(",", "", number); if (number + 0 <= ${good}) print }' transactions > transactions.new; cat transactions.new > transactions; rm transactions.new; fi`];
}

// =========================================================================================================
// ==== AUDIT ====
// The audit: has somebody tampered with an append-only repository?
// It reads what is new since the last audit, compares it with the ledger, and says `clean` or `alarm`. A clean one moves the ledger's mark forward; an alarm leaves
// it where it was, so that every audit after it finds the same, until it is undone, or the operator accepts it. Changes the ledger alone; on the storage nothing.

const SETTLED = 90; // seconds after which a new archive without its proof counts as unproven: until then its run is starting services again

/** `audit [SERVER...]`: given the operator's file, audits each server. Returns 0 when all are clean, 2 after an alarm or when one could not be audited. */
async function audit(builtIn, operator, names, options) {
  const results = [];
  const exitCode = await eachServer(operator, names, async (one) => {
    const { server, verdict, findings, notes, book, evidence } = await auditServer(builtIn, operator, one, options);
    const plan = findings.length > 0 ? undoPlan(operator, one, book, evidence, findings) : `# ${server}: no alarm, so there is nothing to undo`;
    results.push({ server, verdict, findings, notes, newTransactions: evidence.reading?.transactions.length ?? null, archives: present(book).length, ...(options.undoPlan ? { undoPlan: plan } : {}) });
    if (options.undoPlan && !mode.json) answer(plan);
    else if (!mode.json && !(mode.quiet && verdict === 'clean')) answer(auditText(server, verdict, findings, notes));
    return verdict === 'alarm' ? 2 : 0;
  }, (server, error) => results.push({ server, verdict: 'unknown', findings: [], notes: [], error }));
  if (mode.json) answer(JSON.stringify(results, null, 1));
  return exitCode;
}

/** Audit one server and write its ledger. Throws Problem when the repository cannot be read. */
async function auditServer(builtIn, operator, one, options = {}) {
  const now = new Date().toISOString(), was = readBook(operator, one), book = was ?? newBook(one, now);
  if (!hasShell(one) && !canDecrypt(one)) throw new Problem(`${one.server}: without a shell on the storage and without the passphrase there is nothing to audit by`,
    { exitCode: 64, hint: 'give `storage`, or `keyFile` and `passphraseFile`' });
  if (book.pruning) throw new Problem(`${one.server}: the prune of ${book.pruning.startedAt} was interrupted`,
    { hint: `node backup.js prune ${one.server} puts it in order, and audits` });
  let evidence;
  try {
    evidence = await gather(builtIn, operator, one, { book, isFirst: was === null, now }, options.full === true);
  } catch (error) { // a known repository that is not there is an alarm; whatever else fails is no verdict at all
    if (was === null || !(error instanceof Problem) || !error.message.endsWith(IS_GONE)) throw error;
    evidence = { book, isFirst: false, reading: null, puts: new Map(), listed: [], listTrouble: error, fresh: [], now };
  }
  const findings = findingsOf(evidence).map((found) => ({ ...found, undo: undoOf(one, found) }));
  if (evidence.listTrouble && findings.length === 0) throw evidence.listTrouble;
  const notes = notesOf(evidence, canDecrypt(one));
  if (findings.length > 0 && options.accept && !mode.json) answer(auditText(one.server, 'alarm', findings, []));
  const isAccepted = findings.length > 0 && options.accept === true && (options.yes || await agrees(`Take what was found on ${one.server} as it is, from now on?`));
  const verdict = findings.length > 0 && !isAccepted ? 'alarm' : 'clean';
  book.lastAuditAt = verdict === 'clean' ? now : book.lastAuditAt;
  book.audits.push({ at: now, verdict, transactions: evidence.reading?.transactions.length ?? 0, findings, ...(isAccepted ? { accepted: `by the operator, ${now}` } : {}) });
  if (verdict === 'clean') moveForward(evidence, isAccepted ? findings : []);
  if (!mode.dryRun) writeBook(operator, book);
  return { server: one.server, verdict, findings: isAccepted ? [] : findings, notes: isAccepted ? [...notes, `${count(findings.length, 'finding')} accepted`] : notes, book, evidence };
}

/** Read what there is to judge by: the files since the mark, the list of archives, and where in the files the ids that matter were PUT. */
async function gather(builtIn, operator, one, { book, isFirst, now }, full) {
  const mark = book.mark, after = mark?.transaction ?? 0, logBytes = mark?.log.bytes ?? 0, began = Date.now();
  const { reading, listed, listTrouble } = await readUntilSettled(one, canDecrypt(one) ? borgSettings(builtIn, operator, one) : null, book, isFirst);
  if (full && reading) reading.damage = (await readRepository(one, { after: 0, until: reading.last, logBytes, ids: [], data: true })).damage;
  const known = new Set(book.archives.map(({ id }) => id)), added = listed?.filter(({ id }) => !known.has(id)) ?? [];
  const puts = new Map(), at = new Map(reading?.transactions.map((transaction) => [transaction.number, timeOf(transaction)]));
  const ids = new Set([...added.map(({ id }) => id), ...reading?.transactions.flatMap(({ deletes }) => deletes.map(([id]) => id)) ?? []]);
  if (reading && ids.size > 0) await findPuts(one, { after: mark?.previous ?? 0, until: reading.last, logBytes, ids: [...ids], data: false }, puts, at);
  const missing = reading ? added.filter(({ id }) => !puts.has(id)).map(({ id }) => id) : [];
  if (missing.length > 0 && after > 0) await findPuts(one, { after: 0, until: reading.last, logBytes, ids: missing, data: false }, puts, at);
  const fresh = added.map((archive) => knownArchive(archive, one.server, puts.get(archive.id)?.[0]?.[0] ?? 0, at, { book, reading, isFirst, now }));
  noteSizes(fresh, listed ?? []);
  countNewBytes(fresh, book, reading);
  say(`${one.server}: ${reading ? `read ${count(reading.transactions.length, 'transaction')}${after > 0 ? ' since the last audit' : ''} in ${span((Date.now() - began) / 1000)}` : 'no shell on the storage: only the list of archives is compared'}`);
  return { book, isFirst, reading, puts, listed, listTrouble, fresh, now };
}

/**
 * Read the files since the mark and list the archives, until nobody wrote between the first look and the last. What came meanwhile is added to what was read:
 * during a long upload nothing is read twice.
 */
async function readUntilSettled(one, settings, book, isFirst) {
  const { mark } = book, read = (after) => readRepository(one, { after, until: 0, logBytes: mark?.log.bytes ?? 0, ids: [], data: mark !== null });
  let reading = hasShell(one) ? await read(mark?.transaction ?? 0) : null;
  for (;;) {
    let listed = null, listTrouble = null;
    const isNew = !reading || isFirst || reading.transactions.length > 0 || namedUntil(book) < reading.last; // else the list is that of the last audit
    try {
      if (settings && isNew) listed = await orWrongBorg(listSettled(settings, one.server, book));
    } catch (error) { // it may be what was done to the repository that keeps borg from reading it: the files tell
      if (!(error instanceof Problem) || isFirst || !reading) throw error;
      listTrouble = error;
    }
    if (!reading || !isNew) return { reading, listed, listTrouble };
    const later = await read(reading.last); // an upload that is not committed is no matter
    if (later.transactions.length === 0 && later.log.sha256 === reading.log.sha256) return { reading, listed, listTrouble };
    const isSame = later.oldFiles.sha256 === reading.files.sha256, isLogged = reading.appendOnlyLines === 0 || reading.transactions.at(-1)?.time !== null; // the log gets its line after the commit
    reading = !isSame || !isLogged ? await read(mark?.transaction ?? 0)
      : { ...later, transactions: [...reading.transactions, ...later.transactions], damage: [...reading.damage, ...later.damage], oldFiles: reading.oldFiles };
  }
}

// A run writes its proof when all services are up again: an archive of a minute ago need not have one.
async function listSettled(settings, server, book) {
  const known = new Set(book.archives.map(({ id }) => id)), began = Date.now();
  for (;;) {
    const listed = await listEverything(settings, WITHOUT_LOCK, ANYWHERE), names = new Set(listed.map(({ name }) => name));
    const open = listed.find(({ id, name, endedAt }) => !known.has(id) && kindOf(server, name) === 'cold' && !names.has(`proven-${name}`) && Math.abs(Date.now() - Date.parse(endedAt)) < SETTLED * 1000 && Date.now() - Date.parse(stampOf(name)) < 86_400_000);
    if (!open || Date.now() - began > SETTLED * 1000) return listed;
    say(`${server}: ${open.name} was written just now, and has no proof yet: waiting for it, ${SETTLED} s at most`);
    await sleep(5000);
    goOn();
  }
}

async function findPuts(one, wanted, puts, at) {
  const { transactions } = await readRepository(one, wanted);
  for (const transaction of transactions) {
    at.set(transaction.number, timeOf(transaction));
    for (const [id, place] of transaction.found) puts.set(id, [...puts.get(id) ?? [], [transaction.number, place]]);
  }
}

function knownArchive({ id, name, startedAt, endedAt }, server, transaction, at, { book: { mark, lastAuditAt }, reading, isFirst, now }) {
  const logged = transaction > 0 && (mark !== null || reading.appendOnlyLines > 0), between = [lastAuditAt, endedAt, now].map((time) => `${time.slice(0, 19)}Z`).sort()[1];
  const seenAt = logged ? at.get(transaction) : isFirst ? endedAt : between; // who lies can only lie within the time between two audits
  return { id, name, kind: kindOf(server, name), seenAt, seenBy: logged ? 'storage' : isFirst ? 'first audit' : 'audit', transaction, claimedAt: startedAt, endedAt, originalBytes: null, files: null, newBytes: null };
}

// How much an archive holds, as the comment of its proof says.
function noteSizes(archives, listed) {
  const facts = new Map(listed.map((one) => [one.name, one.facts])), numberOrNull = (value) => (typeof value === 'number' && value >= 0 ? value : null);
  for (const one of archives) {
    const proof = one.kind === 'cold' && facts.get(`proven-${one.name}`);
    if (proof) Object.assign(one, { originalBytes: numberOrNull(proof.originalBytes), files: numberOrNull(proof.files) });
  }
}

// What a run sent: everything since the proof before it.
function countNewBytes(fresh, book, reading) {
  let before = book.mark?.transaction ?? (book.audits.length === 0 ? 0 : Infinity); // what came before the mark was not read
  for (const cold of provenOnes(fresh)) {
    const proof = fresh.find(({ name }) => name === `proven-${cold.name}`);
    if (reading && proof.transaction > before) cold.newBytes = reading.transactions.filter(({ number }) => number > before && number <= proof.transaction).reduce((sum, { bytes }) => sum + bytes, 0);
    before = Math.max(before, proof.transaction);
  }
}

/** The ledger takes in what was found: the new mark, archives, bytes a day. Given what was accepted, too. */
function moveForward({ book, reading, listed, fresh, now }, accepted) {
  book.namedUntil = listed && reading ? reading.last : namedUntil(book);
  if (reading) {
    const { transactions, last, files, log, nonce } = reading, lastOne = transactions[transactions.length - 1];
    const manifestBytes = transactions.reduce((bytes, { manifest }) => manifest ?? bytes, book.mark?.manifestBytes ?? 0);
    book.mark = { transaction: last, previous: lastOne ? transactions[transactions.length - 2]?.number ?? book.mark?.transaction ?? 0 : book.mark?.previous ?? 0, time: lastOne ? timeOf(lastOne) : book.mark?.time ?? now, files, log, manifestBytes, nonce };
    book.appendOnly ||= reading.appendOnlyLines > 0;
    book.config = hashedConfig(reading.config);
    for (const [day, list] of byDay(transactions)) {
      const known = book.days.find((one) => one.day === day) ?? { day, bytes: 0, transactions: 0 };
      if (known.transactions === 0) book.days.push(known);
      known.bytes += list.reduce((sum, { bytes }) => sum + bytes, 0);
      known.transactions += list.length;
    }
  }
  if (!listed) return;
  const ids = new Set(listed.map(({ id }) => id)), before = writtenBefore(listed), names = new Set(listed.map(({ name }) => name));
  book.archives.push(...fresh);
  for (const one of present(book)) {
    if (!ids.has(one.id)) Object.assign(one, { goneAt: now, goneBy: one.kind === 'checkpoint' ? 'its run' : accepted.length > 0 ? 'accepted' : 'unknown' });
    else if (one.kind === 'cold' && before.has(one.id)) one.kind = 'other';
    else if (one.kind === 'cold' && names.has(`proven-${one.name}`)) delete one.unproven;
    else if (one.kind === 'cold' && Date.parse(now) - Date.parse(one.seenAt) > LATEST_PROOF) one.unproven = true; // until then its run may be starting services
  }
}

function undoOf({ server }, { rule, transaction }) {
  if (rule === 'R9') return 'borg check on the storage; restore the damaged files from a copy of the storage';
  if (transaction === null && rule === 'R7') return `node backup.js audit ${server} --undo-plan prints how to put it back`;
  if (transaction === null) return 'ask who has full access to the storage; when it was you: node backup.js audit --accept';
  return `nothing is lost until somebody prunes or compacts: node backup.js audit ${server} --undo-plan prints the way back to before transaction ${transaction}`;
}

function notesOf({ book, isFirst, reading, listed, listTrouble, fresh, now }, hasKey) {
  const proven = provenOnes([...present(book), ...fresh]).pop(), all = listed?.length ?? 0, notes = [];
  if (isFirst) notes.push(`first audit: it trusts what it found${reading ? `, ${count(reading.transactions.length, 'transaction')} in ${size(reading.bytes)}` : ''}${listed ? `, ${count(all, 'archive')}` : ''}`);
  if (isFirst) notes.push(...oddAtFirst({ reading, fresh }));
  if (!isFirst && reading && !book.mark) notes.push('the files of the repository were not read before, or not since a prune in place: they are trusted as they are');
  if (!isFirst && listed && book.archives.length === 0 && namedUntil(book) === 0) notes.push('archives had no names here before: they are trusted as they are');
  if (listTrouble) notes.push(`the archives cannot be listed: ${listTrouble.message}: ${lastLines(listTrouble.facts.said ?? '', 1)}`);
  else if (!hasKey) notes.push('without the passphrase archives have no names here, and times are not compared');
  if (!reading) notes.push('the storage has no shell: overwritten data, a changed key or configuration and damage cannot be seen');
  if (hasKey && proven) notes.push(`newest proven archive: ${proven.name}, ${span(Math.max(0, Date.parse(now) - Date.parse(proven.seenAt)) / 1000)} ago`);
  if (hasKey && !proven) notes.push('there is no proven archive');
  return notes;
}

/** What somebody should look at before the first audit's trust is built upon. */
function oddAtFirst({ reading, fresh }) {
  if (!reading) return [];
  const odd = [], removing = reading.transactions.filter(({ deletes }) => deletes.length > 1).length, outside = reading.transactions.slice(1).filter(({ time }) => time === null).length;
  if (removing > 0) odd.push(`${count(removing, 'transaction')} deleted data before this audit: if nobody pruned, look at the archives now`);
  if (outside > 0) odd.push(`${count(outside, 'transaction')} did not come through an append-only server`);
  const off = fresh.filter((one) => one.seenBy === 'storage' && stampOf(one.name) !== '' && Math.abs(Date.parse(one.endedAt) - Date.parse(one.seenAt)) > 3_600_000);
  if (off.length > 0) odd.push(`${count(off.length, 'archive')} bear another time than the storage saw: ${listedBriefly(off.map(({ name }) => named(name)), 5)}`);
  return odd;
}

function auditText(server, verdict, findings, notes) {
  if (verdict === 'clean') return [`${server}: clean`, ...notes.map((note) => `  ${note}`)].join('\n');
  return [`${server}: ALARM: ${count(findings.length, 'finding')}. Do not prune or compact this repository`, ...findings.flatMap(({ rule, at, archives, what, undo }) => [`  ${rule.padEnd(4)} ${at.slice(0, 19)}Z  ${oneLine(what)}`,
    ...(archives.length > 0 ? [`       archives: ${listedBriefly(archives.map(named), 20)}`] : []), `       undo: ${undo}`]),
  ...notes.map((note) => `  note: ${note}`), `  next: node backup.js audit ${server} --undo-plan    (or, when you know who did it and want to keep it: --accept)`].join('\n');
}

// =========================================================================================================
// ==== RETENTION ====
// Which archives stay. By the times that the storage saw, in the server's time zone, never by a time that the server wrote. Only judges.

const WEEK = 7 * 24 * 3_600_000;
const KEEP_RULES = ['last', 'daily', 'weekly', 'monthly', 'yearly'];

/**
 * Given the ledger, the rules, the time zone, the archive that a drill proved last ('' = none) and the time, returns the fate of every archive
 * that is there, oldest first. As `borg prune` does it: a rule counts only archives that no earlier rule keeps; of a day, week, month or year the
 * last one stays; and the oldest of all stays while a rule is not filled. A proof shares the fate of its archive.
 */
function fatesOf(book, keep, timeZone, drilled, now) {
  const all = present(book), proven = provenOnes(all).reverse(), why = new Map(); // by id
  for (const rule of KEEP_RULES) {
    let kept = 0, last = '';
    for (const one of proven) {
      const period = periodOf(rule, one, timeZone);
      if (kept >= keep[rule] || period === last) continue;
      last = period;
      if (why.has(one.id)) continue;
      why.set(one.id, `${rule} ${++kept}`);
    }
    const oldest = proven[proven.length - 1];
    if (oldest && rule !== 'last' && kept < keep[rule] && keep[rule] > 0 && !why.has(oldest.id)) why.set(oldest.id, `${rule}, the oldest`);
  }
  const dated = proven.find(({ name }) => name === drilled);
  if (dated && !why.has(dated.id)) why.set(dated.id, 'a drill proved it last');
  const isOld = ({ seenAt }) => now.getTime() - Date.parse(seenAt) > WEEK;
  const isProven = new Set(proven.map(({ id }) => id)), byName = new Map(proven.map((one) => [one.name, one]));
  return all.map((archive) => {
    const cold = archive.kind === 'proof' ? byName.get(archive.name.slice('proven-'.length)) : archive;
    if (cold && isProven.has(cold.id)) return { archive, stays: why.has(cold.id), why: why.get(cold.id) ?? 'no rule keeps it' };
    if (archive.kind === 'other') return { archive, stays: true, why: 'not written by backup.js' };
    if (archive.kind === 'proof') return { archive, stays: true, why: 'a proof without its archive' };
    const what = archive.kind === 'cold' ? 'unproven' : archive.kind;
    return isOld(archive) ? { archive, stays: false, why: `${what}, older than a week` } : { archive, stays: true, why: `${what}, not a week old` };
  }).sort((one, other) => (one.archive.seenAt < other.archive.seenAt ? -1 : 1));
}

// The day, ISO week, month or year in which the storage saw it, as the server's clock shows it.
function periodOf(rule, { id, seenAt }, timeZone) {
  if (rule === 'last') return id;
  const day = new Intl.DateTimeFormat('sv-SE', { timeZone, year: 'numeric', month: '2-digit', day: '2-digit' }).format(new Date(seenAt)); // 2026-11-23
  if (rule === 'daily') return day;
  if (rule === 'monthly') return day.slice(0, 7);
  if (rule === 'yearly') return day.slice(0, 4);
  const monday = new Date(`${day}T00:00:00Z`);
  monday.setUTCDate(monday.getUTCDate() - (monday.getUTCDay() + 6) % 7); // a week is named by its Monday
  return monday.toISOString().slice(0, 10);
}

// =========================================================================================================
// ==== PRUNING ====
// A repository pruned in a hard-linked copy beside it, which no server can reach.
// Delete, compact, check, list there; then two renames. Whatever breaks before them leaves the repository as it was; whatever breaks after is finished by the next
// call. Changes, on the storage: the copy, and in the end the repository; here: the ledger, and what borg remembers of the repository.

const NAMES_AT_A_TIME = 200;

/** Throws Problem (75) while somebody is connected to the repository. */
function refuseIfWriting(one, { serving, locked }) {
  if (!locked && serving.length === 0) return;
  throw new Problem(`${one.server}: somebody is connected to this repository, and could write to it meanwhile: nothing is pruned`,
    { exitCode: 75, said: serving.join('\n') || 'the repository is locked',
    hint: one.cutAccess.length > 0 ? 'does `cutAccess` end its `borg serve`, too?' : 'call again when its run is over, or give `cutAccess` and `giveAccess` in the operator\'s file' });
}

// The copy bears the time of its own prune: a script of a call that is long dead, and comes late, finds no copy of its own and touches nothing.
const foldersOf = ({ one, book }) => {
  const folder = folderThere(one), ending = `.pruning-${book.pruning.startedAt.replace(/\W/g, '')}`;
  return { folder, copy: folder + ending, old: `${folder}.before-prune`, ending };
};

// What borg remembers of the copy (cache, newest state seen) is kept apart: a copy that is thrown away must not make the repository itself look rolled back.
const memoryOfCopy = ({ stateFolder }) => `${stateFolder}.pruning`;

/**
 * Run a script of sh beside the repository, which knows $folder, $copy and $old. It ends by itself even when the line breaks, and one waits for the other (a lock
 * on the folder above). Returns how it ended; what it set aside is told. Throws Problem when it fails.
 */
async function runThere(job, what, script) {
  const { folder, copy, old } = foldersOf(job);
  const done = await onStorage(job.one, `${job.one.server}: ${what}`, ['sh', '-s'], `set -eu
trap '' HUP PIPE
folder=${pasteable([folder])} copy=${pasteable([copy])} old=${pasteable([old])}
if command -v flock > /dev/null && [ -r "$(dirname "$folder")" ]; then exec 9< "$(dirname "$folder")"; flock 9 || true; fi
refuse() { echo "REFUSED: $1" >&2; exit 1; }
aside() { if [ -e "$folder" ]; then other="$folder.unexpected-$(date +%s)"; mv -T "$folder" "$other"; echo "ASIDE: $other"; fi; }
${script}`, { unlimited: true });
  const [, aside] = /^ASIDE: (.*)$/m.exec(done.out) ?? [];
  if (aside) warn(`${job.one.server}: while the repository was not at its place, another one was made there: it lies in ${aside} now. Look at it, then remove it`);
  return done;
}

/** Delete, compact and check in a hard-linked copy, and let it take the repository's place. Returns the bytes that became free. */
async function pruneInCopy(job, going) {
  const { operator, one, settings, book, audited } = job;
  const began = await readRepository(one, STATE_ALONE);
  refuseIfWriting(one, began);
  if (began.state !== audited) throw wroteMeanwhile(one); // what no audit saw is not compacted away
  refuseWithoutSpace(one, began, Math.min(began.bytes, Number(began.config.max_segment_size ?? 5e8)));
  // What borg changes in place is copied, all else is linked: borg never writes into a data file that is there (repository.py, LoggedIO).
  await runThere(job, 'the copy cannot be made', `
if [ -L "$folder" ]; then refuse "the repository is a link: name the folder itself in the operator's file"; fi
if [ "$(stat -c %d "$folder")" != "$(stat -c %d "$folder/..")" ]; then refuse 'the repository is a file system of its own: it belongs into a folder there, beside which a copy has its place'; fi
if [ -e "$old" ]; then refuse "$old is there, left by an earlier prune: look at it, then remove it"; fi
rm -rf "$folder".pruning-*
cp -al "$folder" "$copy"
for file in transactions config nonce README; do
  if [ -e "$folder/$file" ]; then cp -a --remove-destination "$folder/$file" "$copy/"; fi
done
rm -rf "$copy"/lock.*
`);
  try {
    const there = { ...settings, repository: settings.repository.replace(/\/+$/, '') + foldersOf(job).ending, stateFolder: memoryOfCopy(settings) };
    fs.rmSync(there.stateFolder, { recursive: true, force: true });
    fs.cpSync(settings.stateFolder, there.stateFolder, { recursive: true });
    const left = await deleteByName(there, book, going);
    refuseWithoutSpace(one, await readRepository(one, STATE_ALONE), await bytesWrittenAnew(there));
    await compactAndCheck(there, left, expectedAfter(book, going));
    const is = await readRepository(one, STATE_ALONE);
    refuseIfWriting(one, is);
    if (is.state !== began.state) throw wroteMeanwhile(one);
    await runThere(job, 'the copy cannot be made ready', `
chown -R --reference="$folder" "$copy" 2> /dev/null || true
owner=$(stat -c %u "$folder")
if find "$copy" ! -user "$owner" | grep -q .; then refuse 'not everything in the copy belongs to the owner of the repository: run this as its owner, or as root'; fi
sync
`);
    const after = await readRepository(one, { ...STATE_ALONE, after: 0 }, foldersOf(job).copy), numbers = after.transactions.map(({ number }) => number);
    book.pruning = { ...book.pruning, stage: 'swap', deleting: going.map(({ archive }) => archive.id), bytes: [began.bytes, after.bytes],
      mark: { transaction: after.last, previous: numbers[numbers.length - 2] ?? 0, time: new Date().toISOString(), files: after.files, log: after.log, manifestBytes: 0, nonce: after.nonce } };
  } catch (error) {
    await runThere(job, 'the copy cannot be removed', 'rm -rf "$copy"\n');
    if (error instanceof Problem && !/nothing (was|is) pruned/.test(error.message)) error.message += '; nothing was pruned';
    throw error;
  }
  writeBook(operator, book);
  await swap(job, began);
  return finishPrune(job);
}

const RELOCATED = { ...ANYWHERE, seconds: 7 * 24 * 3600 };

/** The archives that stay: in the ledger, and not going. */
const expectedAfter = (book, going) => present(book).filter(({ id }) => !going.some(({ archive }) => archive.id === id));

/**
 * Delete by name, and be sure that these and no others are gone (borg 1.2 deletes what it finds, and is content). Returns
 * the ids that are left. Throws Problem when anything is not as it should be.
 */
async function deleteByName(there, book, going) {
  for (let from = 0; from < going.length; from += NAMES_AT_A_TIME) {
    const [first, ...others] = going.slice(from, from + NAMES_AT_A_TIME).map(({ archive }) => archive.name);
    await borgMust(there, 'the archives cannot be deleted', ['delete', `::${first}`, ...others]);
  }
  const left = await listIds(there, RELOCATED), missing = expectedAfter(book, going).filter(({ id }) => !left.includes(id));
  const still = going.map(({ archive }) => archive).filter(({ id }) => left.includes(id)), names = [...missing, ...still].map(({ name }) => name);
  if (names.length > 0) throw new Problem(`after the deletion these are ${missing.length > 0 ? 'gone, too' : 'still there'}: ${names.join(', ')}`);
  return left;
}

/** Compact what was deleted, and read all that is left. Given the ids and the archives that must be there then. Throws Problem when anything is not as it should be. */
async function compactAndCheck(there, left, expected) {
  await borgMust(there, 'the repository cannot be compacted', ['compact']);
  await borgMust(there, 'the repository does not pass its check after pruning', ['check', '--repository-only']);
  if ((await listIds(there, RELOCATED)).length !== left.length) throw new Problem('after compacting the list of archives is another one');
  const newest = provenOnes(expected).pop();
  if (newest) JSON.parse(await readFromArchive(there, newest.name, 'record/manifest.json', RELOCATED)); // it can still be read
}

async function borgMust(settings, what, words, options = {}) {
  say(`  $ borg ${words.join(' ')}`);
  const done = await askBorg(settings, words, { ...RELOCATED, ...options });
  if (done.code !== 0) throw borgFailure(what, done);
}

/**
 * How many bytes compacting will write: what still counts in each data file of which more than a tenth is free. With a threshold that no file reaches borg only
 * says so, file by file (repository.py, compact_segments()). Their room comes free only with the old repository, which has links to them.
 */
async function bytesWrittenAnew(there) {
  let bytes = 0;
  const onErrorLine = (line) => {
    const [, percent, freeable] = /maybe freeable: ([\d.]+)% \[(\d+) bytes\]/.exec(parseLine(line)?.message ?? '') ?? [];
    if (Number(percent) > 10) bytes += (Number(freeable) / Number(percent)) * 100 - Number(freeable);
  };
  await borgMust(there, 'what compacting would write cannot be seen', ['compact', '--debug', '--threshold', '1000'], { onErrorLine });
  return bytes;
}

function refuseWithoutSpace(one, { bytes, segments, disk }, writtenBytes) {
  const needed = writtenBytes + bytes / 20 + 16e6;
  if (disk.free < needed) throw new Problem(`${one.server}: the storage has ${size(disk.free)} free; compacting ${size(bytes)} in ${count(segments, 'file')} needs ${size(needed)}`
    + ' besides what is there: nothing was pruned', { hint: 'make room on the storage. Nothing is freed before the result has been checked' });
}

const wroteMeanwhile = (one) => new Problem(`${one.server}: somebody wrote to the repository since it was audited: nothing was pruned, and nothing is lost`,
  { exitCode: 75, hint: 'call again when its run is over' });

/**
 * The pruned copy takes the repository's place: two renames, and between them, while no server can open it, a last look whether anybody wrote until then; if so, the old one goes
 * back. All in one script over there, which ends even when the line breaks. Who reached the empty place meanwhile and made a repository of its own there finds it aside.
 */
async function swap(job, { state }) {
  const { folder, old } = foldersOf(job), isSame = `*'"state": "${state}"'*'"serving": []'*'"locked": false'*`; // the last three of READER's last line
  const done = await runThere(job, 'the copy cannot take the place of the repository', `
if [ ! -e "$copy" ]; then refuse 'the copy is not there any more: another prune was called meanwhile'; fi
mv -T "$folder" "$old"
is=$(python3 - <<'END_OF_READER' || true
${readerText(old, folder, STATE_ALONE)}
END_OF_READER
)
aside
case "$is" in
  ${isSame}) mv -T "$copy" "$folder"; sync; echo swapped;;
  *) mv -T "$old" "$folder"; rm -rf "$copy"; echo back;;
esac
`);
  if (/^swapped$/m.test(done.out)) return;
  job.book.pruning.stage = 'done';
  throw wroteMeanwhile(job.one);
}

/**
 * What a swap that was killed left on the storage. As long as both are there, the copy and the old one, the second rename was not done: the old one is the repository,
 * whatever stands at its place. Returns whether the swap was done, and only the old one is to be removed.
 */
async function mendSwap(job) {
  const done = await runThere(job, 'what an interrupted prune left cannot be removed', `
if [ -e "$old" ] && { [ -e "$copy" ] || [ ! -e "$folder" ]; }; then aside; mv -T "$old" "$folder"; sync; fi
if [ -e "$folder" ]; then rm -rf "$copy"; fi
if [ -e "$old" ]; then echo swapped; fi
`);
  return /^swapped$/m.test(done.out);
}

/** After the swap: write the ledger, and only then remove the repository as it was. Returns the bytes that became free. */
async function finishPrune(job) {
  const { operator, one, settings, book } = job;
  if (fs.existsSync(memoryOfCopy(settings))) {
    fs.rmSync(settings.stateFolder, { recursive: true, force: true });
    fs.renameSync(memoryOfCopy(settings), settings.stateFolder);
  }
  const gone = new Set(book.pruning.deleting), at = new Date().toISOString();
  const deleted = present(book).filter(({ id }) => gone.has(id));
  for (const archive of deleted) Object.assign(archive, { goneAt: at, goneBy: 'prune' });
  book.mark = book.pruning.mark; // of the copy, before anybody could write to it: what came since is for the next audit
  book.namedUntil = book.mark.transaction;
  const [was, is] = book.pruning.bytes, freedBytes = Math.max(0, was - is);
  if (deleted.length > 0) book.prunes.push({ at, deleted: deleted.map(({ name }) => name), freedBytes });
  writeBook(operator, book); // before the old one goes: a call that is killed here finds it and removes it
  await runThere(job, 'the repository as it was cannot be removed', `
id() { sed -n 's/^id *= *//p' "$1/config"; }
if [ -e "$old" ] && { [ -z "$(id "$old")" ] || [ "$(id "$old")" != "$(id "$folder")" ]; }; then refuse "$folder is not the repository that was pruned: $old is the one, whole"; fi
rm -rf "$old"
`);
  book.pruning.stage = 'done';
  say(`${one.server}: ${count(deleted.length, 'archive')} deleted, ${size(freedBytes)} freed`);
  return freedBytes;
}

// =========================================================================================================
// ==== PRUNE ====
// Retention, from the operator's computer, after a clean audit: what goes, what is refused.
// The question, and the servers' access around it, which is always given back. What is deleted is deleted in a copy (the chapter before), or, where the storage
// gives no shell, in the repository itself. Changes: the repository, the ledger, and access by the operator's own commands.

/** `prune [SERVER...]`: given the operator's file, prunes each server after a clean audit. Returns 0, 2 when one was refused or failed, 75 when somebody is writing just now. */
async function prune(builtIn, operator, names, yes) {
  const results = [];
  const exitCode = await eachServer(operator, names, async (one) => {
    results.push(await pruneServer(builtIn, operator, one, yes));
    return 0;
  }, (server, error) => results.push({ server, outcome: 'refused', deleted: [], kept: [], freedBytes: 0, error }));
  if (mode.json) answer(JSON.stringify(results, null, 1));
  return exitCode;
}

/** Prune one server. Throws Problem when it is refused, or when it failed: then the repository is what it was. */
async function pruneServer(builtIn, operator, one, yes) {
  if (!canDecrypt(one)) throw new Problem(`${one.server}: prune needs \`keyFile\` and \`passphraseFile\`: archives are deleted by name`, { exitCode: 64 });
  if (!mode.dryRun && !yes && !process.stdin.isTTY) throw new Problem(`${one.server}: prune asks before it deletes, and there is no terminal to answer on`,
    { exitCode: 64, hint: 'run it on a terminal, or with --yes' });
  const settings = borgSettings(builtIn, operator, one), before = readBook(operator, one);
  if (before?.pruning && !mode.dryRun) await finishInterrupted({ operator, one, settings, book: before, audited: '' });
  await refuseAppendOnly(one, settings);
  const { verdict, book, findings, evidence } = await auditServer(builtIn, operator, one);
  if (verdict === 'alarm') throw new Problem(`${one.server}: the audit found ${count(findings.length, 'thing')} wrong (${findings[0].what}): nothing is pruned`,
    { hint: `node backup.js audit ${one.server}` });
  const odd = before ? [] : oddAtFirst(evidence);
  if (odd.length > 0) throw new Problem(`${one.server}: this was its first audit, and there is something to look at first: nothing is pruned`,
    { said: odd.join('\n'), hint: 'look at the archives; when all is well, call prune again' });
  const job = { operator, one, settings, book, audited: evidence.reading?.state ?? '' };
  await refuseUnsure(job);
  const fates = fatesOf(book, one.keep, one.timeZone, await drilledLast(job), new Date()), going = fates.filter(({ stays }) => !stays);
  if (!mode.json) answer(fatesText(one.server, fates));
  const result = { server: one.server, outcome: 'nothing to prune', deleted: going.map(({ archive }) => archive.name), kept: fates.filter(({ stays }) => stays).map(({ archive, why }) => ({ archive: archive.name, why })), freedBytes: 0 };
  if (going.length === 0) return result;
  if (mode.dryRun) return { ...result, outcome: 'dry run' };
  if (!yes && !await agrees(`Delete these ${going.length} archives of ${one.server} for ever?`)) return { ...result, outcome: 'refused', deleted: [], error: 'the operator said no' };
  return { ...result, outcome: 'pruned', freedBytes: await withAccessCut(job, () => (hasShell(one) ? pruneInCopy(job, going) : pruneInPlace(job, going))) };
}

function fatesText(server, fates) {
  const going = fates.filter(({ stays }) => !stays).length;
  return [`${server}: ${count(going, 'archive')} of ${fates.length} to delete`, ...fates.filter(({ archive }) => archive.kind !== 'proof').map(({ archive, stays, why }) => `  ${stays ? 'keep  ' : 'DELETE'} ${named(archive.name)}  seen ${archive.seenAt}  (${why})`)].join('\n');
}

/** A prune through a key that may only add would delete nothing, and look as if it had. */
async function refuseAppendOnly(one, settings) {
  const words = isRemote(settings) ? (await serverCommandLine(sshToStorage(settings))).words : null;
  const reading = hasShell(one) ? (await readRepository(one, STATE_ALONE)).config : {};
  if (words?.includes('--append-only') || /^(1|true|yes|on)$/i.test(reading.append_only ?? '')) {
    throw new Problem(`${one.server}: this connection may only add: nothing could be pruned through it`, { ...(words ? { said: words } : {}), hint: 'prune with the operator\'s own key, which authorized_keys does not force into --append-only (and with append_only = 0 in the repository\'s config)' });
  }
}

/** Nothing is pruned on the strength of a newest archive that may be worthless, or while somebody writes. */
async function refuseUnsure({ one, book }) {
  const cold = present(book).filter(({ kind }) => kind === 'cold').sort((a, b) => (a.seenAt < b.seenAt ? -1 : 1)), newest = cold[cold.length - 1];
  if (newest && !provenOnes(present(book)).includes(newest)) throw new Problem(`${one.server}: the newest archive, ${newest.name}, is not proven: nothing is pruned`,
    { hint: `look at that night first (\`node backup.js status\` on ${one.server}); prune after the next good one` });
  if (hasShell(one)) refuseIfWriting(one, await readRepository(one, STATE_ALONE));
}

/** The archive that the last drill on the server proved, as the history in the newest proof tells; '' when there is none. What it claims can only keep more. */
async function drilledLast({ settings, book, one }) {
  const newest = provenOnes(present(book)).pop();
  if (!newest) return '';
  const lines = (await readFromArchive(settings, `proven-${newest.name}`, 'record/history.jsonl', ANYWHERE)).split('\n').filter((line) => /"kind":"drill"/.test(line));
  return lines.map((line) => answerOf(`${one.server}: the history in the newest proof`, { argv: [], code: 0, out: line, said: '', timedOut: false }, { 'certificate?': { archive: 'text', proven: 'yes or no' } })).filter(({ certificate }) => certificate?.proven).pop()?.certificate.archive ?? '';
}

/**
 * Cut the server's access by the operator's command, do the work, and give it back, whatever happened. That it is cut stands
 * in the ledger first: a later call gives it back when this one is killed.
 */
async function withAccessCut(job, work) {
  const { operator, one, book } = job;
  book.pruning = { startedAt: new Date().toISOString(), stage: hasShell(one) ? 'copy' : 'hosted', deleting: [], accessCut: one.cutAccess.length > 0 };
  writeBook(operator, book);
  return thenGiveBack(job, async () => {
    if (one.cutAccess.length > 0) {
      const done = await change(one.cutAccess, { seconds: 600 });
      if (done.code !== 0) throw failure(`${one.server}: its access could not be cut: nothing was pruned`, done);
    }
    return work();
  });
}

async function thenGiveBack(job, work) {
  let failed = null;
  const result = await work().catch((error) => { failed = error; });
  await giveBack(job, failed);
  if (failed) throw failed;
  return result;
}

async function giveBack({ operator, one, book, settings }, failed) {
  if (book.pruning?.accessCut) {
    const done = await change(one.giveAccess, { seconds: 600, unlimited: true });
    if (done.code !== 0) throw failure(`${one.server}: ITS ACCESS COULD NOT BE GIVEN BACK: it cannot save its data tonight${failed instanceof Problem ? ` (and before: ${failed.message})` : ''}`, done, 'mend it and run `node backup.js prune` again, or give it back by hand');
    book.pruning.accessCut = false;
  }
  if (book.pruning?.stage !== 'swap' && (book.pruning?.stage !== 'hosted' || book.pruning.deleting.length === 0)) {
    book.pruning = null;
    fs.rmSync(memoryOfCopy(settings), { recursive: true, force: true });
  }
  writeBook(operator, book);
}

/** What an interrupted prune left: not yet swapped, or in the middle of it, it is undone; swapped, it is finished. Access is given back in any case. */
async function finishInterrupted(job) {
  const { one, book } = job;
  say(`${one.server}: the prune of ${book.pruning.startedAt} was interrupted: what it left is put in order first`);
  await thenGiveBack(job, async () => {
    if (book.pruning.stage === 'hosted') await noteDeleted(job.settings, book);
    else if (await mendSwap(job) && book.pruning.stage === 'swap') await finishPrune(job);
    book.pruning.stage = 'done';
  });
}

/** Hosted borg: no copy can be made there, so borg deletes and compacts in the repository itself. Returns 0: how much became free is not told. */
async function pruneInPlace({ operator, one, settings, book }, going) {
  book.pruning.deleting = going.map(({ archive }) => archive.id);
  writeBook(operator, book); // killed from here on, the next call still knows who deleted them
  say(`${one.server}: the storage gives no shell: there is no copy to go back to, and nothing but borg's own lock keeps the server from writing meanwhile`);
  try {
    await compactAndCheck(settings, await deleteByName(settings, book, going), expectedAfter(book, going));
    await noteDeleted(settings, book);
  } catch (error) { // what is gone was deleted by us, whatever came after it
    const isNoted = await noteDeleted(settings, book).then(() => true, () => false);
    if (error instanceof Problem) error.message += isNoted ? '; what was deleted until then is noted' : '; what was deleted is not known yet: call prune again';
    throw error;
  }
  return 0;
}

// Which of those that were to be deleted are gone. After it nothing is left to do.
async function noteDeleted(settings, book) {
  const left = await listIds(settings, ANYWHERE), at = new Date().toISOString(), deleted = present(book).filter(({ id }) => book.pruning.deleting.includes(id) && !left.includes(id));
  book.pruning.stage = 'done';
  for (const archive of deleted) Object.assign(archive, { goneAt: at, goneBy: 'prune' });
  book.mark = null; // compacting wrote data files anew: the next audit that can read them takes them as they are
  if (deleted.length > 0) book.prunes.push({ at, deleted: deleted.map(({ name }) => name), freedBytes: 0 });
}

// =========================================================================================================
// ==== OVERDUE ====
// Which servers have no recent backup? Asked by the operator, as often as cron likes.
// It reads the ledger, and on the storage the times of what was written since the last audit, by the storage's own clock. No borg key and no passphrase is touched. So it is known
// that a server wrote, and whether as much as its proven nights do; that the archive is proven, only an audit can tell, and the answer says which of the two it is. Only reads.

const UNAUDITED_DAYS = 8; // for so long it is enough that a server wrote as it does on a proven night

/**
 * `status --all [SERVER...]`: given the operator's settings, prints a line for each server. Returns 0, 1 or 2, as the worst
 * of them. With --quiet only those of which something is to be said.
 */
async function statusOfAll(operator, names) {
  const all = await fourAtATime(serversMeant(operator, names), (one) => overdueOf(operator, one));
  const marks = { good: 'OK', warning: 'WARNING', failed: 'CRITICAL' }, shown = all.filter(({ outcome }) => !mode.quiet || outcome !== 'good');
  if (mode.json) answer(JSON.stringify(all, null, 1));
  else if (shown.length > 0) answer(shown.map(({ server, outcome, why, next }) => `${marks[outcome]}: ${server}: ${why}${next ? `\n  next: ${next}` : ''}`).join('\n'));
  return all.some(({ outcome }) => outcome === 'failed') ? 2 : all.some(({ outcome }) => outcome === 'warning') ? 1 : 0;
}

async function overdueOf(operator, one) {
  const { server, maxAgeHours } = one, found = { server, outcome: 'failed', ageHours: null, archive: '', seenAt: '', writtenAt: '', since: null, lastAuditAt: '', why: '', next: `node backup.js audit ${server}` };
  const is = (outcome, why, next = found.next) => ({ ...found, outcome, why, next });
  try {
    const book = readBook(operator, one), newest = book && provenOnes(present(book)).pop();
    if (book && newest) Object.assign(found, { archive: newest.name, seenAt: newest.seenAt, lastAuditAt: book.lastAuditAt });
    const { now, writtenAt, since } = hasShell(one) ? await writtenSince(one, book) : { now: new Date().toISOString(), writtenAt: '', since: [] };
    const hours = (time) => (Date.parse(now) - Date.parse(time)) / 3_600_000, ago = (time) => `${span(Math.max(0, hours(time)) * 3600)} ago`;
    Object.assign(found, { writtenAt, since: hasShell(one) ? since.length : null, ageHours: newest ? Math.max(0, hours(newest.seenAt)) : null });
    const known = newest ? `${newest.name}, proven, written ${ago(newest.seenAt)} by the ${newest.seenBy === 'storage' ? 'storage' : 'server'}'s clock` : 'no proven archive is known';
    if (newest && hours(newest.seenAt) <= maxAgeHours) return is('good', known, '');
    if (!hasShell(one)) return is('warning', `${known}; the storage gives no shell: what came since, only an audit can tell`);
    if (writtenAt === '' || hours(writtenAt) > maxAgeHours) return is('failed', `${known}; nothing came since${writtenAt ? `: last written to ${ago(writtenAt)}` : ''}`, `node backup.js doctor    (on ${server})`);
    if (!book) return is('warning', `written to ${ago(writtenAt)}; never audited, so whether it is proven is not known`);
    const recent = since.filter((time) => hours(time) <= maxAgeHours).length, usual = newest ? transactionsOfANight(book) : 0;
    if (recent < usual) return is('failed', `${known}; written to ${ago(writtenAt)}, but in ${recent} of the ${usual} transactions of a proven night: it did not come to its proof`, `node backup.js status    (on ${server})`);
    const wrote = `written to ${ago(writtenAt)}${newest ? ', in as many transactions as a proven night' : ''}; whether it is proven, an audit with the key tells; ${known}`, isAlarm = book.audits[book.audits.length - 1]?.verdict === 'alarm';
    if (isAlarm || !newest || (Date.now() - Date.parse(book.lastAuditAt)) / 86_400_000 > UNAUDITED_DAYS) return is('warning', `${wrote}; the last audit was ${ago(book.lastAuditAt)}${isAlarm ? ', and an alarm' : ''}`);
    return is('good', wrote, '');
  } catch (error) {
    if (!(error instanceof Problem)) throw error;
    goOn();
    return is('failed', `its storage cannot be looked at: ${error.message}${error.facts.said ? `: ${lastLines(error.facts.said, 1)}` : ''}`);
  }
}

/** What the storage's files say: its clock, when it was written to last, and the times of the transactions that no audit has seen. */
async function writtenSince(one, book) {
  const mark = book?.mark, { now, newest, transactions } = await readRepository(one, mark ? { ...STATE_ALONE, after: mark.transaction } : STATE_ALONE), since = transactions.map(timeOf);
  const proven = book && provenOnes(present(book)).pop();
  return { now, writtenAt: since[since.length - 1] ?? proven?.seenAt ?? mark?.time ?? newest, since }; // a prune, too, writes data files, so their own times prove nothing
}

/** How many transactions a proven night has at least: what lies between one proof and the next, as the ledger knows it. */
function transactionsOfANight(book) {
  const all = present(book).filter(({ transaction }) => transaction > 0), proofs = all.filter(({ kind }) => kind === 'proof').map(({ transaction }) => transaction).sort((a, b) => a - b).slice(-8);
  const counts = proofs.slice(1).map((proof, index) => new Set(all.filter(({ transaction }) => transaction > proofs[index] && transaction <= proof).map(({ transaction }) => transaction)).size);
  return Math.min(...counts.length > 0 ? counts : [2]); // an archive and its proof
}

// =========================================================================================================
// ==== FLEET ====
// What the operator knows of each server, for the report.
// Out of the ledger, a read-only look at the storage, and (with the key) the list of archives, the history in the newest proof and the record of each archive. What never changes
// any more (a history, a passport) is kept beside the ledger, so that a second report reads only what is new, and one of a server that cannot be reached still shows what was
// known. Everything that comes from an archive may be an intruder's: it is taken by form and length, never as it stands. Changes only files in `ledgerFolder`/.report.

const MOST_LINES = 1000, MOST_TEXT = 300, MOST_ITEMS = 100; // of what an archive says
const LONGEST = { seconds: 1800 };

/** Given the operator's settings and the servers, returns what is known of each. Never throws a Problem: who cannot be reached says why. */
async function factsOfAll(builtIn, operator, servers) {
  const facts = await fourAtATime(servers, (one) => lookAtServer(builtIn, operator, one));
  shareDisks(facts);
  return facts;
}

async function lookAtServer(builtIn, operator, one) {
  const kept = readKept(operator, one.server);
  let book = null, reading = null, listed = null, trouble = null;
  try {
    book = readBook(operator, one);
    reading = hasShell(one) ? await readRepository(one, STATE_ALONE) : null;
    const settings = canDecrypt(one) ? borgSettings(builtIn, operator, one) : null;
    if (settings) {
      listed = await listEverything(settings, WITHOUT_LOCK, { ...ANYWHERE, ...LONGEST });
      await readNew(settings, one.server, listed, kept);
      writeKept(operator, one.server, kept);
    }
  } catch (error) {
    if (!(error instanceof Problem)) throw error;
    goOn();
    trouble = { message: `${error.message}${error.facts.said ? `: ${lastLines(error.facts.said, 2)}` : ''}`, hint: error.facts.hint ?? '' };
  }
  const last = book?.audits[book.audits.length - 1];
  return { one, trouble, archives: archivesOf(one.server, listed, book, kept), nights: kept.nights, drill: kept.drill, audit: last ? { at: last.at, verdict: last.verdict } : null, isPruning: Boolean(book?.pruning), space: spaceOf(one, reading, book) };
}

const isFuture = (time) => Date.parse(time) > Date.now() + 3_600_000; // a time that a client claims, and cannot be

// Newest first, by the time that counts. Without a list of today: those of the last audit.
function archivesOf(server, listed, book, kept) {
  const known = new Map(book?.archives.map((one) => [one.id, one])), all = listed ?? (book ? present(book) : []);
  const names = new Set(all.map(({ name }) => name)), before = writtenBefore(listed ?? []);
  return all.filter(({ id, name }) => kindOf(server, name) === 'cold' && !before.has(id) && known.get(id)?.kind !== 'other').map(({ id, name, endedAt }) => {
    const seen = known.get(id), isSeen = seen?.seenBy === 'storage', seenAt = isSeen ? seen.seenAt : endedAt;
    return { name, seenAt, isSeen, isProven: names.has(`proven-${name}`) && !isFuture(seenAt), passport: kept.passports[id] ?? '' };
  }).sort((one, other) => (one.seenAt < other.seenAt ? 1 : -1));
}

/** Read what is new: the history in the newest proof, and the record of each archive that was never read. A record that cannot be had is told, and no reason for no report. */
async function readNew(settings, server, listed, kept) {
  const before = writtenBefore(listed), cold = listed.filter(({ id, name }) => kindOf(server, name) === 'cold' && !before.has(id)), read = (archive, file) => readFromArchive(settings, archive, file, { ...ANYWHERE, ...LONGEST }, WITHOUT_LOCK);
  const newest = listed.filter(({ name, endedAt }) => kindOf(server, name) === 'proof' && !isFuture(endedAt)).pop();
  const fresh = cold.filter(({ id }) => typeof kept.passports[id] !== 'object').reverse();
  if (fresh.length > 3) say(`${server}: reading the records of ${fresh.length} archives; the next report has them at hand`);
  if (newest && newest.id !== kept.proof) Object.assign(kept, historyIn(await read(newest.name, 'record/history.jsonl')), { proof: newest.id });
  for (const { id, name } of fresh) {
    try {
      kept.passports[id] = shortPassport(await read(name, 'record/manifest.json'), name);
    } catch (error) {
      if (!(error instanceof Problem)) throw error;
      goOn();
      kept.passports[id] = short(error.message);
    }
  }
  const ids = new Set(cold.map(({ id }) => id));
  kept.passports = Object.fromEntries(Object.entries(kept.passports).filter(([id]) => ids.has(id)));
}

// ---- what an archive says, by form and length ----

const short = (value) => (typeof value === 'string' ? value.slice(0, MOST_TEXT) : '');
const amount = (value) => (typeof value === 'number' && value >= 0 && value < 1e18 ? value : 0);
const items = (value) => (Array.isArray(value) ? value.filter((one) => one !== null && one !== undefined).slice(0, MOST_ITEMS) : []);
const isTime = (value) => typeof value === 'string' && /^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z$/.test(value) && !Number.isNaN(Date.parse(value));

/** Given the text of a history, returns its runs and the last drill with a certificate. */
function historyIn(text) {
  const nights = [];
  let drill = null;
  for (const line of text.split('\n').slice(-MOST_LINES)) {
    let one = null;
    try { one = JSON.parse(line); } catch { /* an empty one, or none of ours */ }
    if (!isTime(one?.startedAt)) continue;
    const { certificate: found } = one;
    if (one.kind === 'drill' && isTime(found?.madeAt)) drill = { archive: short(found.archive), proven: found.proven === true, madeAt: found.madeAt, restoreSeconds: amount(found.restoreSeconds) };
    if (one.kind !== 'drill') {
      nights.push({ startedAt: one.startedAt, outcome: one.outcome === 'good' || one.outcome === 'warning' ? one.outcome : 'failed', archive: short(one.archive), downSeconds: amount(one.downSeconds), bytes: amount(one.cold?.originalBytes),
        newBytes: amount(one.warm?.deduplicatedBytes) + amount(one.cold?.deduplicatedBytes), warnings: items(one.warnings).slice(0, 10).map(short) });
    }
  }
  return { nights, drill };
}

function shortPassport(text, archive) {
  const { host, postgres, containers, plan } = soundManifest(text, archive);
  return {
    system: short(host?.osRelease?.PRETTY_NAME), architecture: short(host?.architecture), paths: items(plan.roots).map(({ path: place }) => short(place)), containers: items(containers).map(({ name, image }) => `${short(name)} (${short(image)})`),
    clusters: items(postgres).map((one) => ({ name: short(one.name), version: /^PostgreSQL (\S{1,20})/.exec(short(one.serverVersion))?.[1] ?? short(one.version),
      databases: items(one.databases).filter(({ template }) => template !== true).map(({ name, bytes, extensions }) => ({ name: short(name), bytes: amount(bytes), extensions: items(extensions).filter((each) => each.name !== 'plpgsql').map((each) => `${short(each.name)} ${short(each.version)}`) })) })),
  };
}

// ---- space ----

const bytesOfQuota = (quota) => {
  const [, number, unit] = /^([\d.]+)([KMGTP]?)B?$/i.exec(quota) ?? [];
  return Number(number ?? 0) * 1000 ** ' KMGTP'.indexOf(unit?.toUpperCase() || ' '); // borg: parse_file_size
};

function spaceOf({ storage }, reading, book) {
  if (!reading) return null;
  const quotas = reading.quotas.map(bytesOfQuota).filter((bytes) => bytes > 0), since = new Date(Date.now() - 30 * 86_400_000).toISOString().slice(0, 10);
  const all = [...book?.days ?? []].sort((one, other) => (one.day < other.day ? -1 : 1)), lately = all.filter(({ day }) => day > since);
  const days = lately.length > 0 ? (Date.parse(book.lastAuditAt) - Date.parse(lately[0].day)) / 86_400_000 : 0; // what came after the last audit is not known
  const came = lately.filter(({ day }) => day !== all[0].day).reduce((sum, { bytes }) => sum + bytes, 0); // on the first day of all came everything
  const freed = (book?.prunes ?? []).filter(({ at }) => at.slice(0, 10) > since).reduce((sum, { freedBytes }) => sum + freedBytes, 0);
  return { usedBytes: reading.bytes, freeBytes: reading.disk.free, quotaBytes: quotas.length > 0 ? Math.min(...quotas) : 0, disk: JSON.stringify([storage.filter((word) => !word.startsWith('-')), reading.disk.id]),
    perDay: days >= 2 ? Math.max(0, came - freed) / days : null, daysLeft: null };
}

/** A disk is full for all of its servers on the same day; a quota for its own alone. */
function shareDisks(facts) {
  for (const { space } of facts) {
    if (!space || space.perDay === null) continue;
    const together = facts.reduce((sum, other) => sum + (other.space?.disk === space.disk ? other.space.perDay ?? 0 : 0), 0), days = [[space.freeBytes, together], ...(space.quotaBytes > 0 ? [[Math.max(0, space.quotaBytes - space.usedBytes), space.perDay]] : [])];
    const left = Math.min(...days.map(([room, perDay]) => room / Math.max(perDay, 1)));
    space.daysLeft = Math.floor(Math.min(left, 36_500));
  }
}

const keptFile = ({ ledgerFolder }, server) => path.join(ledgerFolder, '.report', `${server}.json`);

function readKept(operator, server) {
  try {
    const { format, ...kept } = JSON.parse(fs.readFileSync(keptFile(operator, server), 'utf8'));
    if (format === 1) return kept;
  } catch { /* there is none, or it is damaged: it is read again */ }
  return { proof: '', nights: [], drill: null, passports: {} };
}

function writeKept(operator, server, kept) {
  canWrite(operator.ledgerFolder, () => fs.mkdirSync(path.dirname(keptFile(operator, server)), { recursive: true, mode: 0o700 }));
  writeHere(keptFile(operator, server), JSON.stringify({ format: 1, ...kept }));
}

// =========================================================================================================
// ==== REPORT IN WORDS ====
// The words of the report, one table a language, with the same keys (a test compares them). Terminal lines, settings and commands are English in both.

const ENGLISH_REPORT = {
  decimal: '.', locale: 'en-GB',
  title: 'Backups', skip: 'Skip to the servers', madeAt: (when) => `As of ${when}`, servers: (number) => (number === 1 ? '1 server' : `${number} servers`),
  light: { good: 'Good', warning: 'Attention', failed: 'Failed', unknown: 'Unknown' }, tally: 'How many servers are in which state',
  glance: 'At a glance', state: 'State', server: 'Server', nextStep: 'Next step', lastGood: 'Last good backup', down: 'Down', size: 'Size', drill: 'Last drill', audit: 'Last audit', space: 'Storage', nothingToDo: 'Nothing to do',
  onServer: (server) => `on ${server}`, here: 'on this computer', ago: (age) => `${age} ago`, days: (number) => (number === 1 ? '1 day' : `${number} days`), hours: (number) => `${number} h`, minutes: (number) => `${number} min`,
  none: 'none yet', notKnown: 'not known', never: 'never', clean: 'clean', alarm: 'ALARM', proven: 'proven', unproven: 'not proven', drillGood: 'proven', drillBad: 'NOT proven', restoreTakes: (time) => `a restore takes about ${time}`, noDrills: 'no drills there',
  used: (used) => `${used} used`, free: (free) => `${free} free`, quota: (quota) => `quota ${quota}`, full: (days) => `full in ${days}`, notSoon: 'not full for years', noShell: 'not known: the storage gives no shell',
  why: {
    unreachable: (message) => `could not be looked at now: ${message}`, alarm: (when) => `the audit of ${when} found signs of tampering`, pruning: () => 'a prune was interrupted',
    noKey: () => 'without key and passphrase archives have no names here', noneProven: () => 'there is no proven backup', tooOld: (age) => `the last good backup is ${age} old`, neverAudited: () => 'never audited: nobody has looked for tampering',
    unprovenNewest: (when) => `the newest archive (${when}) is not proven: that night failed`, drillFailed: (archive) => `the last drill could not prove ${archive}`, drillOld: (age) => `the last drill is ${age} old`, noDrill: () => 'no restore was ever rehearsed',
    auditOld: (age) => `the last audit is ${age} old`, nearlyFull: (days) => `at this pace the storage is full in ${days}`, warned: (warning) => `the last night warned: ${warning}`,
  },
  nights: 'Nights of the last year', nightsOf: (server) => `Nights of ${server} in the last year`, lastNights: (number) => `Last ${number} nights`, night: { good: 'good', warning: 'with a warning', failed: 'failed', missing: 'missing' },
  nightCounts: (good, warning, failed, missing) => `good: ${good}; with a warning: ${warning}; failed: ${failed}; missing: ${missing}`,
  downChart: 'Downtime per night', sizeChart: 'Size of a backup', newChart: 'Sent per night', chartText: (from, until, least, most, last) => `From ${from} to ${until}: lowest ${least}, highest ${most}, last ${last}`, aNight: (change) => `${change} a night`, tooFew: 'Not enough nights yet for a chart',
  numbers: 'The last nights in numbers', date: 'Night', outcome: 'Outcome', archive: 'Archive', seen: 'Written', byStorage: "by the storage's clock", byServer: "by the server's clock; no audit has seen it yet", holds: 'What it holds', restore: 'Restore', archives: 'Archives', noArchives: 'No archives',
  postgres: (version, cluster) => `PostgreSQL ${version} (${cluster})`, extensions: 'extensions', containers: 'containers', files: 'paths', same: 'the same software as the archive above', noRecord: (why) => `its record cannot be had: ${why}`, notRead: 'its record was not read',
  restoreHow: (server) => `On ${server}, into a new folder; nothing that is there is touched:`, bareHow: 'On another machine, add where everything is:', inPlaceHow: 'Everything back to where it was (first with --dry-run, which only shows what would happen):',
  details: (server) => `${server} in detail`, legend: 'How to read this', back: 'Back to the overview', hint: 'hint', lookedAt: 'Last known state',
  footer: 'Every fact comes from the storage and the ledger of audits. "Last good" is a backup that was proven cold and read back. Times are in each server\'s time zone. Nothing here was fetched from elsewhere, and the page works without a network.',
};

const SPANISH_REPORT = {
  decimal: ',', locale: 'es',
  title: 'Copias de seguridad', skip: 'Ir a los servidores', madeAt: (when) => `Actualizado el ${when}`, servers: (number) => (number === 1 ? '1 servidor' : `${number} servidores`),
  light: { good: 'Correcto', warning: 'Atención', failed: 'Fallo', unknown: 'Sin datos' }, tally: 'Cuántos servidores hay en cada estado',
  glance: 'De un vistazo', state: 'Estado', server: 'Servidor', nextStep: 'Siguiente paso', lastGood: 'Última copia válida', down: 'Inactividad', size: 'Tamaño', drill: 'Último simulacro', audit: 'Última auditoría', space: 'Almacenamiento', nothingToDo: 'Nada que hacer',
  onServer: (server) => `en ${server}`, here: 'en este equipo', ago: (age) => `hace ${age}`, days: (number) => (number === 1 ? '1 día' : `${number} días`), hours: (number) => `${number} h`, minutes: (number) => `${number} min`,
  none: 'aún no hay', notKnown: 'se desconoce', never: 'nunca', clean: 'limpia', alarm: 'ALARMA', proven: 'comprobada', unproven: 'sin comprobar', drillGood: 'superado', drillBad: 'NO superado', restoreTakes: (time) => `restaurar lleva unos ${time}`, noDrills: 'allí no se hacen simulacros',
  used: (used) => `${used} ocupados`, free: (free) => `${free} libres`, quota: (quota) => `cuota de ${quota}`, full: (days) => `se llena en ${days}`, notSoon: 'tardará años en llenarse', noShell: 'se desconoce: el almacenamiento no ofrece una shell',
  why: {
    unreachable: (message) => `ahora no se ha podido consultar: ${message}`, alarm: (when) => `la auditoría de ${when} encontró indicios de manipulación`, pruning: () => 'una purga quedó interrumpida',
    noKey: () => 'sin la clave y la frase de paso, aquí no se ven los nombres de las copias', noneProven: () => 'no hay ninguna copia comprobada', tooOld: (age) => `la última copia válida es de hace ${age}`, neverAudited: () => 'nunca se ha auditado: nadie ha buscado manipulaciones',
    unprovenNewest: (when) => `la copia más reciente (${when}) está sin comprobar: aquella noche falló`, drillFailed: (archive) => `el último simulacro no pudo comprobar ${archive}`, drillOld: (age) => `el último simulacro es de hace ${age}`, noDrill: () => 'nunca se ha ensayado una restauración',
    auditOld: (age) => `la última auditoría es de hace ${age}`, nearlyFull: (days) => `a este ritmo, el almacenamiento se llena en ${days}`, warned: (warning) => `la última noche hubo un aviso: ${warning}`,
  },
  nights: 'Noches del último año', nightsOf: (server) => `Noches de ${server} en el último año`, lastNights: (number) => `Últimas ${number} noches`, night: { good: 'correcta', warning: 'con avisos', failed: 'fallida', missing: 'sin copia' },
  nightCounts: (good, warning, failed, missing) => `correctas: ${good}; con avisos: ${warning}; fallidas: ${failed}; sin copia: ${missing}`,
  downChart: 'Tiempo de inactividad por noche', sizeChart: 'Tamaño de una copia', newChart: 'Enviado por noche', chartText: (from, until, least, most, last) => `Del ${from} al ${until}: mínimo ${least}, máximo ${most}, último ${last}`, aNight: (change) => `${change} por noche`, tooFew: 'Todavía no hay noches suficientes para un gráfico',
  numbers: 'Las últimas noches en cifras', date: 'Noche', outcome: 'Resultado', archive: 'Copia', seen: 'Escrita', byStorage: 'según el reloj del almacenamiento', byServer: 'según el reloj del servidor; ninguna auditoría la ha visto aún', holds: 'Qué contiene', restore: 'Restaurar', archives: 'Copias', noArchives: 'No hay copias',
  postgres: (version, cluster) => `PostgreSQL ${version} (${cluster})`, extensions: 'extensiones', containers: 'contenedores', files: 'rutas', same: 'el mismo software que la copia de arriba', noRecord: (why) => `no se puede leer su ficha: ${why}`, notRead: 'no se ha leído su ficha',
  restoreHow: (server) => `En ${server}, en una carpeta nueva; no se toca nada de lo que hay:`, bareHow: 'En otra máquina, indique además dónde está todo:', inPlaceHow: 'Todo de vuelta a su sitio (primero con --dry-run, que solo muestra lo que pasaría):',
  details: (server) => `${server} en detalle`, legend: 'Cómo leer esta página', back: 'Volver al resumen', hint: 'sugerencia', lookedAt: 'Último estado conocido',
  footer: 'Todos los datos proceden del almacenamiento y del registro de auditorías. Una copia es «válida» si se comprobó con todo detenido y después se releyó. Las horas están en la zona horaria de cada servidor. La página no descarga nada y funciona sin red.',
};

const REPORT_WORDS = { en: ENGLISH_REPORT, es: SPANISH_REPORT };

// =========================================================================================================
// ==== CHARTS ====
// HTML in which nothing from outside can become markup, and the report's pictures.
// Small SVG of plain paths, each with a title and a text that says the same. No picture speaks by colour alone: a night that
// failed is a cross, a warning a triangle, a missing one an empty square. Only makes text.

const OURS = Symbol('markup');

const MOST_SHOWN = 2000; // characters of one text

/** A template whose values are escaped, unless they are markup themselves (or lists of it). Nothing and false are left out. */
function markup(texts, ...values) {
  return { [OURS]: texts.map((text, index) => text + (index < values.length ? escaped(values[index]) : '')).join('') };
}

const textOf = (made) => made[OURS];
/** Markup of our own, as it stands: never a word from outside. */
const ownMarkup = (text) => ({ [OURS]: text });

function escaped(value) {
  if (value === null || value === undefined || value === false) return '';
  if (Array.isArray(value)) return value.map(escaped).join('');
  if (typeof value === 'object' && OURS in value) return (value)[OURS];
  return printable(String(value)).slice(0, MOST_SHOWN).replace(/[&<>"'`]/g, (sign) => `&#${sign.charCodeAt(0)};`);
}

// Each state in a square of 9 by 9, drawn from its left upper corner.
const SHAPES = { good: 'h9v9h-9z', warning: 'm4.5 0l5 9h-10z', failed: 'm1 1l7 7m0-7l-7 7', missing: 'm1.5 1.5h6v6h-6z' };
const STEP = 12;

const shapes = (places) => Object.entries(SHAPES).map(([state, shape]) => {
  const path = places.filter((one) => one.state === state).map(({ x, y }) => `M${x} ${y}${shape}`).join('');
  return path && markup`<path class="n-${state}" d="${ownMarkup(path)}"/>`;
});

let pictures = 0; // each title and text has a name of its own in the page

/** An SVG with its title and the text that says what it shows. */
function picture(width, height, title, text, content) {
  const id = `p${++pictures}`;
  return markup`<svg role="img" aria-labelledby="${id}t ${id}d" viewBox="0 0 ${width} ${height}" width="${width}" height="${height}"><title id="${id}t">${title}</title><desc id="${id}d">${text}</desc>${content}</svg>`;
}

/** One night as a sign by itself, for a legend or a table; its word stands beside it. */
const nightSign = (state) => markup`<svg class="sign" aria-hidden="true" viewBox="-1 -1 11 11" width="11" height="11">${shapes([{ state, x: 0, y: 0 }])}</svg>`;

/** The last days in a row. */
const strip = (days, title, text) => picture(days.length * STEP, 11, title, text, shapes(days.map(({ state }, index) => ({ state, x: index * STEP + 1, y: 1 }))));

/** A year of days: a column a week, Monday on top. */
function calendar(days, locale, title, text) {
  const weekday = (day) => (new Date(`${day}T00:00:00Z`).getUTCDay() + 6) % 7, first = weekday(days[0].day), left = 34, top = 16;
  const places = days.map(({ day, state }, index) => ({ day, state, x: left + Math.floor((index + first) / 7) * STEP, y: top + weekday(day) * STEP }));
  const inWords = (day, form) => new Intl.DateTimeFormat(locale, { ...form, timeZone: 'UTC' }).format(new Date(`${day}T00:00:00Z`));
  const months = places.filter(({ day }, index) => day.endsWith('-01') && index < days.length - 14), weekdays = places.slice(0, 7).filter(({ day }) => weekday(day) % 2 === 0);
  return picture(left + 54 * STEP, top + 7 * STEP, title, text, [
    months.map(({ day, x }) => markup`<text x="${x}" y="10">${inWords(day, { month: 'short' })}</text>`), weekdays.map(({ day, y }) => markup`<text x="0" y="${y + 8}">${inWords(day, { weekday: 'short' })}</text>`), shapes(places)]);
}

/** Values over days as bars, or as a line. labels: the highest value, the first day, the last day. values: null where there is none. */
function curve(values, kind, title, text, [most, from, until]) {
  const width = 320, height = 110, left = 4, bottom = 88, top = 18, step = (width - left - 4) / Math.max(1, values.length), highest = Math.max(...values.map((one) => one ?? 0), 1e-9);
  const points = values.map((value, index) => ({ value, x: left + index * step, y: bottom - ((value ?? 0) / highest) * (bottom - top) })).filter(({ value }) => value !== null), round = (number) => Math.round(number * 10) / 10;
  const bars = points.map(({ x, y }) => `M${round(x)} ${bottom}V${round(Math.min(y, bottom - 1))}h${round(Math.max(step * 0.75, 0.8))}V${bottom}z`).join(''), line = points.map(({ x, y }, index) => `${index === 0 ? 'M' : 'L'}${round(x + step / 2)} ${round(y)}`).join('');
  const ends = points.length > 1 ? `${line}L${round(points[points.length - 1].x + step / 2)} ${bottom}L${round(points[0].x + step / 2)} ${bottom}z` : '';
  return picture(width, height, title, text, markup`<path class="axis" d="M${left} ${bottom + 0.5}H${width - 4}M${left} ${top + 0.5}H${width - 4}"/>
    ${kind === 'bars' ? markup`<path class="bars" d="${ownMarkup(bars)}"/>` : markup`<path class="area" d="${ownMarkup(ends)}"/><path class="line" d="${ownMarkup(line)}"/>`}
    <text x="${left}" y="${top - 5}">${most}</text><text x="${left}" y="${height - 7}">${from}</text><text x="${width - 4}" y="${height - 7}" text-anchor="end">${until}</text>`);
}

// =========================================================================================================
// ==== VERDICT ====
// What is to be said of each server, and the one next step.
// Rules in the order in which they matter; the first that holds names the command. Only judges.

const AUDIT_DAYS = 8, FULL_DAYS = 30;
const HOURS_BETWEEN_NIGHTS = 12; // a newest archive that is not proven, and younger than that, may be of a run that is under way
const LIGHTS = ['failed', 'unknown', 'warning', 'good']; // the worst first

const hoursSince = (time, now) => Math.max(0, now - Date.parse(time)) / 3_600_000;

/** '5 h', '3 days': how old something is, in the words of a language. */
function ageText(hours, words) {
  return hours < 1 ? words.minutes(Math.round(hours * 60)) : hours < 48 ? words.hours(Math.round(hours)) : words.days(Math.floor(hours / 24));
}

/** Given a server's facts, the words, how a time is shown and now, returns the verdict. */
function judged(facts, words, shownTime, now) {
  const { one, trouble, archives, nights, drill, audit, isPruning, space } = facts, { server } = one, why = words.why;
  const newest = archives.find(({ isProven }) => isProven) ?? null, ageHours = newest && hoursSince(newest.seenAt, now), latest = archives[0], lastNight = nights[nights.length - 1];
  const drillHours = drill && hoursSince(drill.madeAt, now), auditHours = audit && hoursSince(audit.at, now), isReached = !trouble;
  const age = (hours) => ageText(hours ?? 0, words), here = (command) => ({ command: `node backup.js ${command}`, where: 'here' }), there = (command) => ({ ...here(command), where: 'server' });
  const rules = [
    [audit?.verdict === 'alarm', 'failed', () => why.alarm(shownTime(audit.at)), here(`audit ${server} --undo-plan`)],
    [!isReached, 'unknown', () => why.unreachable(trouble.message), here(`audit ${server}`)],
    [isPruning, 'warning', () => why.pruning(), here(`prune ${server}`)],
    [isReached && !newest && !canDecrypt(one), 'unknown', () => why.noKey(), here(`audit ${server}`)],
    [isReached && !newest && canDecrypt(one), 'failed', () => why.noneProven(), there('doctor')],
    [isReached && newest !== null && ageHours > one.maxAgeHours, 'failed', () => why.tooOld(age(ageHours)), there('doctor')],
    [isReached && latest !== undefined && !latest.isProven && newest !== null && latest.seenAt > newest.seenAt && hoursSince(latest.seenAt, now) > HOURS_BETWEEN_NIGHTS, 'warning', () => why.unprovenNewest(shownTime(latest.seenAt)), there('status')],
    [one.drillMaxAgeDays > 0 && drill?.proven === false, 'warning', () => why.drillFailed(drill.archive), there('drill')],
    [audit === null, 'warning', () => why.neverAudited(), here(`audit ${server}`)],
    [isReached && one.drillMaxAgeDays > 0 && newest !== null && drill === null, 'warning', () => why.noDrill(), there('drill')],
    [one.drillMaxAgeDays > 0 && drill !== null && drillHours > one.drillMaxAgeDays * 24, 'warning', () => why.drillOld(age(drillHours)), there('drill')],
    [audit !== null && auditHours > AUDIT_DAYS * 24, 'warning', () => why.auditOld(age(auditHours)), here(`audit ${server}`)],
    [space !== null && space.daysLeft !== null && space.daysLeft < FULL_DAYS, 'warning', () => why.nearlyFull(words.days(space.daysLeft)), here(`prune ${server}`)],
    [lastNight?.outcome === 'warning', 'warning', () => why.warned(lastNight.warnings[0] ?? ''), there('status')],
  ];
  const holding = rules.filter(([holds]) => holds), light = LIGHTS.find((one) => holding.some(([, each]) => each === one)) ?? 'good', first = holding.find(([, each]) => each === light);
  return { ...facts, light, why: holding.map(([, , say]) => say()), next: first?.[3] ?? null, newest, ageHours };
}

/** What became of each of the last days, as the clock of the server's time zone shows them: the best of a day's runs counts. Before the first night there is nothing to say. */
function daysOf({ one, nights, archives }, count, now) {
  const day = new Intl.DateTimeFormat('sv-SE', { timeZone: one.timeZone, year: 'numeric', month: '2-digit', day: '2-digit' }), states = new Map(); // 2026-11-23
  const note = (time, state) => {
    const at = day.format(new Date(time)), was = states.get(at), order = ['good', 'warning', 'failed'];
    if (!was || order.indexOf(state) < order.indexOf(was)) states.set(at, state);
  };
  for (const { startedAt, outcome } of nights) note(startedAt, outcome);
  const told = new Set(nights.map(({ archive }) => archive));
  for (const { name, seenAt, isProven } of archives) if (!told.has(name)) note(seenAt, isProven ? 'good' : 'failed'); // beyond the history, or after it
  const first = [...states.keys()].sort()[0] ?? '', today = day.format(new Date(now)), noon = Date.parse(`${today}T12:00:00Z`);
  return Array.from({ length: count }, (_, index) => new Date(noon - (count - 1 - index) * 86_400_000).toISOString().slice(0, 10))
    .map((one) => ({ day: one, state: states.get(one) ?? (first === '' || one < first || one === today ? '' : 'missing') }));
}

// =========================================================================================================
// ==== STYLE ====
// How the report looks: light, dark, narrow, on paper. Colours have the contrast of WCAG AA on their ground, in both.

const STYLE = `
:root { --ground: #f5f6f8; --paper: #fff; --text: #1b2330; --quiet: #4d586a; --line: #d5dae2; --link: #1a56b0; --good: #1b7742; --warning: #8f5b00; --failed: #b3202b; --unknown: #545f70; --curve: #3568b5; --tint: #e8eef8; --night: #47996d; }
@media (prefers-color-scheme: dark) { :root { --ground: #12161c; --paper: #1a2029; --text: #e4e8ee; --quiet: #a5b0bf; --line: #333c49; --link: #8ab4f8; --good: #5bc489; --warning: #e3ab45; --failed: #ff8a86; --unknown: #a9b3c1; --curve: #7fa9ec; --tint: #232f43; --night: #3f8f66; } }
* { box-sizing: border-box; }
html { scroll-behavior: auto; -webkit-text-size-adjust: 100%; }
body { margin: 0 auto; max-width: 84rem; padding: 1.25rem clamp(.75rem, 2.5vw, 2rem) 3rem; background: var(--ground); color: var(--text); font: .94rem/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", sans-serif; }
h1 { font-size: 1.7rem; margin: 0; letter-spacing: -.01em; } h2 { font-size: 1.2rem; margin: 0 0 .6rem; } h3 { font-size: 1rem; margin: 1.4rem 0 .3rem; }
p { margin: 0 0 .3rem; } small { font-size: .84em; color: var(--quiet); } a { color: var(--link); }
a:focus-visible, [tabindex]:focus-visible, summary:focus-visible { outline: 3px solid var(--link); outline-offset: 2px; } main:focus { outline: none; }
.skip { position: absolute; left: -99rem; } .skip:focus { left: 1rem; top: .5rem; background: var(--paper); padding: .5rem 1rem; z-index: 2; }
header p { color: var(--quiet); } section, footer { background: var(--paper); border: 1px solid var(--line); border-radius: 10px; padding: 1.1rem clamp(.8rem, 2vw, 1.4rem); margin: 1rem 0; overflow-wrap: break-word; } code, .why, .fleet p { overflow-wrap: anywhere; }
code { font: .86em/1.45 ui-monospace, "DejaVu Sans Mono", Menlo, Consolas, monospace; background: var(--tint); padding: .12em .4em; border-radius: 4px; -webkit-box-decoration-break: clone; box-decoration-break: clone; }
.tally { list-style: none; display: flex; flex-wrap: wrap; gap: .6rem; padding: 0; margin: .8rem 0 0; } .tally li { background: var(--paper); border: 1px solid var(--line); border-left: 4px solid var(--c); border-radius: 8px; padding: .35rem .9rem; } .tally b { font-size: 1.35rem; margin-right: .35rem; }
.good { --c: var(--good); } .warning { --c: var(--warning); } .failed { --c: var(--failed); } .unknown { --c: var(--unknown); }
.fleet td:first-child { padding-right: 1rem; } .lamp { color: var(--c); font-weight: 600; font-size: .95rem; white-space: nowrap; } .lampsign { max-width: none; vertical-align: -1.5px; margin-right: .35rem; fill: var(--c); } .lampsign .in { fill: none; stroke: var(--paper); stroke-width: 1.7; }
table { border-collapse: collapse; width: 100%; font-size: .93rem; } th, td { text-align: left; vertical-align: top; padding: .55rem .7rem .55rem 0; border-top: 1px solid var(--line); } thead th { border-top: 0; color: var(--quiet); font-weight: 600; font-size: .85rem; padding-top: 0; } tbody th { font-weight: 600; }
.cards small { display: block; } .fleet tbody th { min-width: 11rem; } .fleet tbody th a { display: block; } .fleet td[data-head]:nth-of-type(2) { min-width: 13rem; max-width: 20rem; }
svg { max-width: 100%; height: auto; } svg text { fill: var(--quiet); font-size: 10px; font-family: inherit; } .fleet th svg { display: block; margin-top: .35rem; width: 11rem; }
.n-good { fill: var(--night); } .n-warning { fill: var(--warning); } .n-failed { fill: none; stroke: var(--failed); stroke-width: 2.6; } .n-missing { fill: none; stroke: var(--quiet); stroke-width: 1; }
.sign { width: 11px; height: 11px; vertical-align: -1px; } .axis { stroke: var(--line); fill: none; } .bars { fill: var(--curve); } .area { fill: var(--tint); } .line { fill: none; stroke: var(--curve); stroke-width: 1.8; }
.wide { overflow-x: auto; } .wide > svg { min-width: 40rem; max-width: none; width: min(100%, 52rem); } .charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(15rem, 1fr)); gap: 1rem; margin-top: 1rem; } figure { margin: 0; } figcaption { font-size: .84rem; color: var(--quiet); } figcaption b { display: block; color: var(--text); font-size: .93rem; }
details { margin: 1rem 0; } summary { cursor: pointer; color: var(--link); } .of { color: var(--quiet); }
.how dt { font-size: .88rem; color: var(--quiet); } .how dd { margin: 0 0 .5rem; } .archives td p { margin: 0; } .archives th:first-child { width: 13.5rem; } .archives th:nth-child(2) { width: 10rem; } .archives th:nth-child(3) { width: 5rem; } .archives th:nth-child(5) { width: 19rem; } .archives td code { font-size: .8em; } .why { margin: 0 0 .6rem; padding-left: 1.2rem; } .legend { list-style: none; display: flex; flex-wrap: wrap; gap: .3rem 1.4rem; padding: 0; } .back { margin-top: .8rem; }
@media screen and (max-width: 62rem) { .cards thead { position: absolute; left: -99rem; } .cards, .cards tbody, .cards tr, .cards td, .cards tbody th { display: block; width: auto !important; max-width: none !important; } .cards tr { border-top: 3px solid var(--c, var(--line)); padding: .7rem 0; } .cards td, .cards tbody th { border: 0; padding: .18rem 0; }
  .cards td { display: grid; grid-template-columns: 8.5rem minmax(0, 1fr); gap: .6rem; } .cards td::before { content: attr(data-head); color: var(--quiet); font-size: .85rem; } .fleet td:first-child { display: block; } .fleet td:first-child::before { content: none; } .cards small { display: inline; } .fleet th svg { width: 100%; max-width: 22rem; } figure svg { width: 100%; max-width: 30rem; } }
@media screen and (max-width: 30rem) { .cards td { grid-template-columns: 6.5rem minmax(0, 1fr); } body { font-size: 14px; } }
@media print { @page { size: A4; margin: 12mm 10mm; } :root { --ground: #fff; --paper: #fff; --text: #000; --quiet: #444; --line: #bbb; --link: #000; --good: #1b7742; --warning: #8f5b00; --failed: #b3202b; --unknown: #545f70; --curve: #3568b5; --tint: #eee; --night: #47996d; } html { font-size: 10.5px; } body { font-size: 1rem; padding: 0; max-width: none; } .fleet td[data-head]:nth-of-type(2) { width: 26%; } section, footer { border: 0; padding: 0; border-radius: 0; } .server { break-before: page; }
  tr, figure, .wide > svg { break-inside: avoid; } .wide { overflow: visible; } .wide > svg { min-width: 0; width: 100%; } .fleet tbody th, .fleet td[data-head]:nth-of-type(2) { min-width: 0; } .archives th:nth-child(5) { width: 15rem; } .fleet th svg { width: 7rem; } .charts { grid-template-columns: repeat(3, 1fr); } .skip, .back, details { display: none; } a { text-decoration: none; } * { -webkit-print-color-adjust: exact; print-color-adjust: exact; } thead { display: table-header-group; } }
`;

// =========================================================================================================
// ==== PAGE OF A SERVER ====
// The report's page of one server: state, next step, a year of nights, curves, archives.
// Of each archive what it holds and the command that brings it back. And what that and the overview (the next chapter) share:
// the words and forms of a language, lamps, tables. Only makes text.

/** Given a language and the time, returns that. */
function pageIn(language, now) {
  const words = REPORT_WORDS[language], local = (text) => text.replace('.', words.decimal);
  return { language, words, now, bytes: (number) => local(size(number)), time: (seconds) => local(span(seconds)), ago: (at) => words.ago(ageText(hoursSince(at, now), words)),
    dateIn: (timeZone, form) => (at) => new Intl.DateTimeFormat(words.locale, { ...form, timeZone }).format(new Date(at)) };
}

const code = (command) => markup`<code>${command}</code>`;
const lamp = ({ words }, light) => markup`<span class="lamp ${light}">${ownMarkup(LAMPS[light])}${words.light[light]}</span>`;
const nightCounts = ({ words }, days) => words.nightCounts(...(['good', 'warning', 'failed', 'missing']).map((state) => days.filter((one) => one.state === state).length));
const nextStep = ({ words }, { next, one }) => (next ? markup`${code(next.command)} <small>${next.where === 'here' ? words.here : words.onServer(one.server)}</small>` : words.nothingToDo);

// A circle, a triangle, a square with a cross, a diamond: the state without its colour.
const lampOf = (shape) => `<svg class="lampsign" aria-hidden="true" viewBox="0 0 14 14" width="14" height="14">${shape}</svg>`;
const LAMPS = {
  good: lampOf('<circle cx="7" cy="7" r="6.5"/><path class="in" d="M4 7.2l2.2 2.2L10.2 5"/>'), warning: lampOf('<path d="M7 .5l7 13H0z"/><path class="in" d="M7 5v4m0 1.2v1.3"/>'),
  failed: lampOf('<path d="M1 1h12v12H1z"/><path class="in" d="M4.2 4.2l5.6 5.6m0-5.6l-5.6 5.6"/>'), unknown: lampOf('<path d="M7 0l7 7-7 7-7-7z"/><path class="in" d="M7 4v3.4m0 1.2v1.3"/>'),
};

/** A table that is a stack of cards on a narrow screen: the roles keep it a table for a screen reader. title: which cell names the row. */
function cards(kind, heads, title, rows) {
  return markup`<table class="cards ${kind}" role="table">
<thead role="rowgroup"><tr role="row">${heads.map((head) => markup`<th role="columnheader" scope="col">${head}</th>`)}</tr></thead>
<tbody role="rowgroup">
${rows.map((one) => markup`<tr role="row" class="${one.kind}">${one.cells.map((content, at) => (at === title ? markup`<th role="rowheader" scope="row">${content}</th>` : markup`<td role="cell" data-head="${heads[at]}"><div>${content}</div></td>`))}</tr>
`)}</tbody>
</table>`;
}

/** All about one server. */
function serverSection(page, judge) {
  const { words, now } = page, { one, light, why, trouble } = judge, days = daysOf(judge, 365, now);
  return markup`<section class="server" id="${one.server}" aria-labelledby="h-${one.server}">
<h2 id="h-${one.server}">${one.server} ${lamp(page, light)}</h2>
${why.length > 0 && markup`<ul class="why">${why.map((each) => markup`<li>${each}</li>`)}${trouble?.hint && markup`<li>${words.hint}: ${trouble.hint}</li>`}</ul>`}
<p>${words.nextStep}: ${nextStep(page, judge)}</p>
<h3>${words.nights}</h3>
<p>${nightCounts(page, days)}</p>
<div class="wide" role="region" aria-label="${words.nightsOf(one.server)}" tabindex="0">${calendar(days, words.locale, words.nightsOf(one.server), nightCounts(page, days))}</div>
<div class="charts">${chartsOf(page, judge)}</div>
${numbersOf(page, judge)}
<h3>${words.archives}</h3>
${archiveTable(page, judge)}
<p class="back"><a href="#main">${words.back}</a></p>
</section>
`;
}

function chartsOf({ words, time, bytes, dateIn }, { one, nights }) {
  const done = nights.filter(({ outcome }) => outcome !== 'failed').slice(-90), day = dateIn(one.timeZone, { day: 'numeric', month: 'short' });
  if (done.length < 2) return markup`<p>${words.tooFew}</p>`;
  const from = day(done[0].startedAt), until = day(done[done.length - 1].startedAt);
  const draw = (title, valueOf, shown, kind) => {
    const values = done.map(valueOf), [least, most, last] = [Math.min(...values), Math.max(...values), values[values.length - 1]].map(shown), text = words.chartText(from, until, least, most, last);
    return markup`<figure><figcaption><b>${title}</b> ${text}</figcaption>${curve(values, kind, `${title}, ${one.server}`, text, [most, from, until])}</figure>`;
  };
  return [draw(words.downChart, (night) => night.downSeconds, time, 'bars'), draw(words.sizeChart, (night) => night.bytes, bytes, 'line'), draw(words.newChart, (night) => night.newBytes, bytes, 'bars')];
}

function numbersOf({ words, time, bytes, dateIn }, { one, nights }) {
  const date = dateIn(one.timeZone, { dateStyle: 'medium', timeStyle: 'short' });
  if (nights.length === 0) return null;
  return markup`<details><summary>${words.numbers} <span class="of">(${one.server})</span></summary><div class="wide" role="region" aria-label="${words.numbers}: ${one.server}" tabindex="0"><table><thead><tr>${[words.date, words.outcome, words.down, words.size, words.newChart].map((head) => markup`<th scope="col">${head}</th>`)}</tr></thead>
<tbody>${nights.slice(-30).reverse().map((night) => markup`<tr><th scope="row">${date(night.startedAt)}</th><td>${nightSign(night.outcome)} ${words.night[night.outcome]}${night.warnings.map((warning) => markup`<br><small>${warning}</small>`)}</td><td>${time(night.downSeconds)}</td><td>${bytes(night.bytes)}</td><td>${bytes(night.newBytes)}</td></tr>`)}</tbody></table></div></details>`;
}

function archiveTable(page, judge) {
  const { words, bytes, dateIn } = page, { one, archives, newest, nights } = judge, night = new Map(nights.map((each) => [each.archive, each])), date = dateIn(one.timeZone, { dateStyle: 'medium', timeStyle: 'short' });
  if (archives.length === 0) return markup`<p>${words.noArchives}</p>`;
  const bare = ['--repository', one.repository, ...(one.keyFile ? ['--key-file', one.keyFile] : []), ...(one.passphraseFile ? ['--passphrase-file', one.passphraseFile] : []), ...(one.sshKey ? ['--ssh-key', one.sshKey] : [])];
  let above = '';
  const rows = archives.map((archive) => {
    const software = typeof archive.passport === 'string' ? '' : JSON.stringify({ ...archive.passport, clusters: archive.passport.clusters.map(({ name, version, databases }) => [name, version, databases.map((each) => [each.name, each.extensions])]) });
    const isSame = software !== '' && software === above, made = night.get(archive.name);
    above = software;
    return { kind: '', cells: [markup`${archive.name} <small>${archive.isProven ? words.proven : markup`<b>${words.unproven}</b>`}</small>`, markup`${date(archive.seenAt)} <small>${archive.isSeen ? words.byStorage : words.byServer}</small>`,
      made ? bytes(made.bytes) : words.notKnown, holdings(page, archive, isSame), archive.isProven && code(`node backup.js restore ${archive.name} --to /srv/${archive.name}`)] };
  });
  return markup`${newest && markup`<dl class="how"><dt>${words.restoreHow(one.server)}</dt><dd>${code(`node backup.js restore ${newest.name} --to /srv/${newest.name}`)}</dd><dt>${words.inPlaceHow}</dt><dd>${code(`node backup.js restore ${newest.name} --in-place --dry-run`)}</dd><dt>${words.bareHow}</dt><dd>${code(pasteable(bare))}</dd></dl>`}
${cards('archives', [words.archive, words.seen, words.size, words.holds, words.restore], 0, rows)}`;
}

function holdings({ words, bytes }, { passport }, isSame) {
  if (typeof passport === 'string') return passport === '' ? words.notRead : words.noRecord(passport);
  const { system, architecture, paths, containers, clusters } = passport;
  const databases = (all) => all.map(({ name, bytes: number, extensions }) => `${name} ${bytes(number)}${!isSame && extensions.length > 0 ? ` (${extensions.join(', ')})` : ''}`).join('; ');
  return markup`${clusters.map(({ name, version, databases: all }) => markup`<p><b>${words.postgres(version, name)}</b> ${databases(all)}</p>`)}${isSame ? markup`<p>${words.same}</p>`
    : markup`<p>${system}, ${architecture}</p>${containers.length > 0 && markup`<p>${words.containers}: ${containers.join(', ')}</p>`}<p>${words.files}: ${paths.join(', ')}</p>`}`;
}

// =========================================================================================================
// ==== REPORT ====
// The report: one HTML file with everything in it, for people who want to see it at a glance.
// On a screen, on paper, or read aloud. It needs no script, no server and no network, and says so to the browser
// (Content-Security-Policy). Changes that one file, whole or not at all.

/** `report [SERVER...] --to FILE`: given the operator's settings, writes the page. Returns 0, or 1 when a server could not be looked at. */
async function report(builtIn, operator, names, to, language) {
  if (to === '') throw new Problem('report needs --to FILE', { exitCode: 64, hint: 'node backup.js report --to backups.html' });
  const file = path.resolve(to), there = fs.statSync(file, { throwIfNoEntry: false });
  if (there && !there.isFile()) throw new Problem(`${named(file)} is there, and is no file`, { exitCode: 64, hint: 'name a file: it is written anew each time' });
  if (!fs.statSync(path.dirname(file), { throwIfNoEntry: false })?.isDirectory()) throw new Problem(`there is no folder ${named(path.dirname(file))}`,
    { exitCode: 64, hint: 'name a file in a folder that is there' });
  canWrite(file, () => fs.accessSync(path.dirname(file), fs.constants.W_OK)); // told before minutes of reading
  const facts = await factsOfAll(builtIn, operator, serversMeant(operator, names)), now = Date.now(), page = pageIn((language || operator.language), now);
  const judge = ({ words, dateIn }) => facts.map((each) => judged(each, words, dateIn(each.one.timeZone, { dateStyle: 'medium', timeStyle: 'short' }), now)).sort((one, other) => LIGHTS.indexOf(one.light) - LIGHTS.indexOf(other.light));
  writeHere(file, textOf(wholePage(page, judge(page))));
  const told = judge(pageIn('en', now)); // the terminal speaks English
  if (mode.json) answer(JSON.stringify(told.map(({ one, light, why, next, newest, ageHours, drill, audit, space }) => ({ server: one.server, outcome: light, why, next: next?.command ?? '', where: next?.where ?? '', archive: newest?.name ?? '', ageHours, drill, audit, space })), null, 1));
  for (const { one, light, why, next, trouble } of told) if (light !== 'good') (trouble ? warn : say)(`${one.server}: ${light}: ${why[0]}${next ? `; next: ${next.command}` : ''}`);
  say(`wrote ${named(file)}`);
  return facts.some(({ trouble }) => trouble) ? 1 : 0;
}

/** The whole page. */
function wholePage(page, servers) {
  const { words, dateIn, now, language } = page;
  const when = dateIn(Intl.DateTimeFormat().resolvedOptions().timeZone, { dateStyle: 'full', timeStyle: 'short' })(new Date(now).toISOString());
  const tally = LIGHTS.map((light) => ({ light, number: servers.filter((one) => one.light === light).length })).filter(({ number }) => number > 0);
  return markup`<!doctype html>
<html lang="${language}"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'"><meta name="color-scheme" content="light dark">
<title>${words.title}: ${words.servers(servers.length)}</title>
<style>${ownMarkup(STYLE)}</style>
</head><body>
<a class="skip" href="#main">${words.skip}</a>
<header>
<h1>${words.title}</h1>
<p>${words.madeAt(when)} · ${words.servers(servers.length)}</p>
<ul class="tally" aria-label="${words.tally}">${tally.map(({ light, number }) => markup`<li class="${light}"><b>${number}</b> ${lamp(page, light)}</li>`)}</ul>
</header>
<main id="main" tabindex="-1">
<section aria-labelledby="glance">
<h2 id="glance">${words.glance}</h2>
${cards('fleet', [words.state, words.server, words.nextStep, words.lastGood, words.size, words.drill, words.audit, words.space], 1, servers.map((one) => ({ kind: one.light, cells: overviewRow(page, one) })))}
</section>
${servers.map((one) => serverSection(page, one))}
</main>
<footer>
<h2>${words.legend}</h2>
<ul class="legend">${(['good', 'warning', 'failed', 'missing']).map((state) => markup`<li>${nightSign(state)} ${words.night[state]}</li>`)}</ul>
<p>${words.footer}</p>
<p>cold-backup ${VERSION}</p>
</footer>
</body></html>
`;
}

function overviewRow(page, judge) {
  const { words, now, ago, bytes, time, dateIn } = page, { one, light, why, newest, drill, audit } = judge, days = daysOf(judge, 30, now), last = judge.nights[judge.nights.length - 1], date = dateIn(one.timeZone, { dateStyle: 'medium' });
  return [lamp(page, light), markup`<a href="#${one.server}">${one.server}</a>${strip(days, `${one.server}: ${words.lastNights(30)}`, nightCounts(page, days))}`,
    markup`${why[0] && markup`<p>${why[0]}</p>`}${nextStep(page, judge)}`,
    newest ? markup`<b>${ago(newest.seenAt)}</b> <small>${date(newest.seenAt)}${last && markup` · ${words.down.toLowerCase()} ${time(last.downSeconds)}`}</small>` : words.none,
    last ? markup`${bytes(last.bytes)}${growthText(page, judge)}` : words.notKnown,
    drill ? markup`${drill.proven ? words.drillGood : markup`<b>${words.drillBad}</b>`} <small>${ago(drill.madeAt)}</small>` : one.drillMaxAgeDays === 0 ? words.noDrills : words.none,
    audit ? markup`${audit.verdict === 'clean' ? words.clean : markup`<b>${words.alarm}</b>`} <small>${ago(audit.at)}</small>` : words.never, spaceText(page, judge)];
}

/** How much more a backup becomes from night to night, by the last month. */
function growthText({ words, bytes }, { nights }) {
  const lately = nights.filter(({ outcome }) => outcome !== 'failed').slice(-30), change = lately.length < 2 ? 0 : (lately[lately.length - 1].bytes - lately[0].bytes) / (lately.length - 1);
  return Math.abs(change) >= 1000 && markup` <small>${words.aNight(`${change > 0 ? '+' : '\u2212'}${bytes(Math.abs(change))}`)}</small>`;
}

function spaceText({ words, bytes }, { space, trouble }) {
  if (!space) return trouble ? words.notKnown : words.noShell;
  const full = space.daysLeft === null ? '' : space.daysLeft > 1000 ? words.notSoon : words.full(words.days(space.daysLeft));
  return markup`${words.used(bytes(space.usedBytes))} <small>${words.free(bytes(space.freeBytes))}${space.quotaBytes > 0 && ` · ${words.quota(bytes(space.quotaBytes))}`}${full && ` · ${full}`}</small>`;
}

// =========================================================================================================
// ==== LIBRARIES ====
// Written by others and compiled: nothing to edit. The last line of the file starts the program.
//
// minimist 1.2.8, zx 8.8.5
// Licences of the libraries in this block, each with its full text below.
//
// zx - Apache License 2.0 - Copyright Google LLC and contributors - https://github.com/google/zx
//   and, inside zx:
//   chalk - MIT - Copyright (c) Sindre Sorhus <sindresorhus@gmail.com> (https://sindresorhus.com)
//     (with ansi-styles and supports-color inside, same author, same licence)
//   zurk, @webpod/ps, @webpod/ingrid - MIT - Copyright (c) 2024 Webpod
//   which - ISC - Copyright (c) Isaac Z. Schlueter and Contributors
//   isexe - ISC - Copyright (c) 2016-2022 Isaac Z. Schlueter and Contributors
// minimist - MIT - James Halliday and contributors - https://github.com/minimistjs/minimist
//
// ---- The MIT License (minimist, chalk, zurk, @webpod/ps, @webpod/ingrid) ----
//
// Permission is hereby granted, free of charge, to any person obtaining a copy of
// this software and associated documentation files (the "Software"), to deal in
// the Software without restriction, including without limitation the rights to
// use, copy, modify, merge, publish, distribute, sublicense, and/or sell copies of
// the Software, and to permit persons to whom the Software is furnished to do so,
// subject to the following conditions:
//
// The above copyright notice and this permission notice shall be included in all
// copies or substantial portions of the Software.
//
// THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR
// IMPLIED, INCLUDING BUT NOT LIMITED TO THE WARRANTIES OF MERCHANTABILITY, FITNESS
// FOR A PARTICULAR PURPOSE AND NONINFRINGEMENT. IN NO EVENT SHALL THE AUTHORS OR
// COPYRIGHT HOLDERS BE LIABLE FOR ANY CLAIM, DAMAGES OR OTHER LIABILITY, WHETHER
// IN AN ACTION OF CONTRACT, TORT OR OTHERWISE, ARISING FROM, OUT OF OR IN
// CONNECTION WITH THE SOFTWARE OR THE USE OR OTHER DEALINGS IN THE SOFTWARE.
//
// ---- The ISC License (which, isexe) ----
//
// Permission to use, copy, modify, and/or distribute this software for any
// purpose with or without fee is hereby granted, provided that the above
// copyright notice and this permission notice appear in all copies.
//
// THE SOFTWARE IS PROVIDED "AS IS" AND THE AUTHOR DISCLAIMS ALL WARRANTIES
// WITH REGARD TO THIS SOFTWARE INCLUDING ALL IMPLIED WARRANTIES OF
// MERCHANTABILITY AND FITNESS. IN NO EVENT SHALL THE AUTHOR BE LIABLE FOR
// ANY SPECIAL, DIRECT, INDIRECT, OR CONSEQUENTIAL DAMAGES OR ANY DAMAGES
// WHATSOEVER RESULTING FROM LOSS OF USE, DATA OR PROFITS, WHETHER IN AN
// ACTION OF CONTRACT, NEGLIGENCE OR OTHER TORTIOUS ACTION, ARISING OUT OF OR
// IN CONNECTION WITH THE USE OR PERFORMANCE OF THIS SOFTWARE.
//
// ---- The Apache License 2.0 (zx) ----
//
//                                  Apache License
//                            Version 2.0, January 2004
//                         http://www.apache.org/licenses/
//
//    TERMS AND CONDITIONS FOR USE, REPRODUCTION, AND DISTRIBUTION
//
//    1. Definitions.
//
//       "License" shall mean the terms and conditions for use, reproduction,
//       and distribution as defined by Sections 1 through 9 of this document.
//
//       "Licensor" shall mean the copyright owner or entity authorized by
//       the copyright owner that is granting the License.
//
//       "Legal Entity" shall mean the union of the acting entity and all
//       other entities that control, are controlled by, or are under common
//       control with that entity. For the purposes of this definition,
//       "control" means (i) the power, direct or indirect, to cause the
//       direction or management of such entity, whether by contract or
//       otherwise, or (ii) ownership of fifty percent (50%) or more of the
//       outstanding shares, or (iii) beneficial ownership of such entity.
//
//       "You" (or "Your") shall mean an individual or Legal Entity
//       exercising permissions granted by this License.
//
//       "Source" form shall mean the preferred form for making modifications,
//       including but not limited to software source code, documentation
//       source, and configuration files.
//
//       "Object" form shall mean any form resulting from mechanical
//       transformation or translation of a Source form, including but
//       not limited to compiled object code, generated documentation,
//       and conversions to other media types.
//
//       "Work" shall mean the work of authorship, whether in Source or
//       Object form, made available under the License, as indicated by a
//       copyright notice that is included in or attached to the work
//       (an example is provided in the Appendix below).
//
//       "Derivative Works" shall mean any work, whether in Source or Object
//       form, that is based on (or derived from) the Work and for which the
//       editorial revisions, annotations, elaborations, or other modifications
//       represent, as a whole, an original work of authorship. For the purposes
//       of this License, Derivative Works shall not include works that remain
//       separable from, or merely link (or bind by name) to the interfaces of,
//       the Work and Derivative Works thereof.
//
//       "Contribution" shall mean any work of authorship, including
//       the original version of the Work and any modifications or additions
//       to that Work or Derivative Works thereof, that is intentionally
//       submitted to Licensor for inclusion in the Work by the copyright owner
//       or by an individual or Legal Entity authorized to submit on behalf of
//       the copyright owner. For the purposes of this definition, "submitted"
//       means any form of electronic, verbal, or written communication sent
//       to the Licensor or its representatives, including but not limited to
//       communication on electronic mailing lists, source code control systems,
//       and issue tracking systems that are managed by, or on behalf of, the
//       Licensor for the purpose of discussing and improving the Work, but
//       excluding communication that is conspicuously marked or otherwise
//       designated in writing by the copyright owner as "Not a Contribution."
//
//       "Contributor" shall mean Licensor and any individual or Legal Entity
//       on behalf of whom a Contribution has been received by Licensor and
//       subsequently incorporated within the Work.
//
//    2. Grant of Copyright License. Subject to the terms and conditions of
//       this License, each Contributor hereby grants to You a perpetual,
//       worldwide, non-exclusive, no-charge, royalty-free, irrevocable
//       copyright license to reproduce, prepare Derivative Works of,
//       publicly display, publicly perform, sublicense, and distribute the
//       Work and such Derivative Works in Source or Object form.
//
//    3. Grant of Patent License. Subject to the terms and conditions of
//       this License, each Contributor hereby grants to You a perpetual,
//       worldwide, non-exclusive, no-charge, royalty-free, irrevocable
//       (except as stated in this section) patent license to make, have made,
//       use, offer to sell, sell, import, and otherwise transfer the Work,
//       where such license applies only to those patent claims licensable
//       by such Contributor that are necessarily infringed by their
//       Contribution(s) alone or by combination of their Contribution(s)
//       with the Work to which such Contribution(s) was submitted. If You
//       institute patent litigation against any entity (including a
//       cross-claim or counterclaim in a lawsuit) alleging that the Work
//       or a Contribution incorporated within the Work constitutes direct
//       or contributory patent infringement, then any patent licenses
//       granted to You under this License for that Work shall terminate
//       as of the date such litigation is filed.
//
//    4. Redistribution. You may reproduce and distribute copies of the
//       Work or Derivative Works thereof in any medium, with or without
//       modifications, and in Source or Object form, provided that You
//       meet the following conditions:
//
//       (a) You must give any other recipients of the Work or
//           Derivative Works a copy of this License; and
//
//       (b) You must cause any modified files to carry prominent notices
//           stating that You changed the files; and
//
//       (c) You must retain, in the Source form of any Derivative Works
//           that You distribute, all copyright, patent, trademark, and
//           attribution notices from the Source form of the Work,
//           excluding those notices that do not pertain to any part of
//           the Derivative Works; and
//
//       (d) If the Work includes a "NOTICE" text file as part of its
//           distribution, then any Derivative Works that You distribute must
//           include a readable copy of the attribution notices contained
//           within such NOTICE file, excluding those notices that do not
//           pertain to any part of the Derivative Works, in at least one
//           of the following places: within a NOTICE text file distributed
//           as part of the Derivative Works; within the Source form or
//           documentation, if provided along with the Derivative Works; or,
//           within a display generated by the Derivative Works, if and
//           wherever such third-party notices normally appear. The contents
//           of the NOTICE file are for informational purposes only and
//           do not modify the License. You may add Your own attribution
//           notices within Derivative Works that You distribute, alongside
//           or as an addendum to the NOTICE text from the Work, provided
//           that such additional attribution notices cannot be construed
//           as modifying the License.
//
//       You may add Your own copyright statement to Your modifications and
//       may provide additional or different license terms and conditions
//       for use, reproduction, or distribution of Your modifications, or
//       for any such Derivative Works as a whole, provided Your use,
//       reproduction, and distribution of the Work otherwise complies with
//       the conditions stated in this License.
//
//    5. Submission of Contributions. Unless You explicitly state otherwise,
//       any Contribution intentionally submitted for inclusion in the Work
//       by You to the Licensor shall be under the terms and conditions of
//       this License, without any additional terms or conditions.
//       Notwithstanding the above, nothing herein shall supersede or modify
//       the terms of any separate license agreement you may have executed
//       with Licensor regarding such Contributions.
//
//    6. Trademarks. This License does not grant permission to use the trade
//       names, trademarks, service marks, or product names of the Licensor,
//       except as required for reasonable and customary use in describing the
//       origin of the Work and reproducing the content of the NOTICE file.
//
//    7. Disclaimer of Warranty. Unless required by applicable law or
//       agreed to in writing, Licensor provides the Work (and each
//       Contributor provides its Contributions) on an "AS IS" BASIS,
//       WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or
//       implied, including, without limitation, any warranties or conditions
//       of TITLE, NON-INFRINGEMENT, MERCHANTABILITY, or FITNESS FOR A
//       PARTICULAR PURPOSE. You are solely responsible for determining the
//       appropriateness of using or redistributing the Work and assume any
//       risks associated with Your exercise of permissions under this License.
//
//    8. Limitation of Liability. In no event and under no legal theory,
//       whether in tort (including negligence), contract, or otherwise,
//       unless required by applicable law (such as deliberate and grossly
//       negligent acts) or agreed to in writing, shall any Contributor be
//       liable to You for damages, including any direct, indirect, special,
//       incidental, or consequential damages of any character arising as a
//       result of this License or out of the use or inability to use the
//       Work (including but not limited to damages for loss of goodwill,
//       work stoppage, computer failure or malfunction, or any and all
//       other commercial damages or losses), even if such Contributor
//       has been advised of the possibility of such damages.
//
//    9. Accepting Warranty or Additional Liability. While redistributing
//       the Work or Derivative Works thereof, You may choose to offer,
//       and charge a fee for, acceptance of support, warranty, indemnity,
//       or other liability obligations and/or rights consistent with this
//       License. However, in accepting such obligations, You may act only
//       on Your own behalf and on Your sole responsibility, not on behalf
//       of any other Contributor, and only if You agree to indemnify,
//       defend, and hold each Contributor harmless for any liability
//       incurred by, or claims asserted against, such Contributor by reason
//       of your accepting any such warranty or additional liability.
//
//    END OF TERMS AND CONDITIONS
//
//    APPENDIX: How to apply the Apache License to your work.
//
//       To apply the Apache License to your work, attach the following
//       boilerplate notice, with the fields enclosed by brackets "[]"
//       replaced with your own identifying information. (Don't include
//       the brackets!)  The text should be enclosed in the appropriate
//       comment syntax for the file format. We also recommend that a
//       file or class name and description of purpose be included on the
//       same "printed page" as the copyright notice for easier
//       identification within third-party archives.
//
//    Copyright [yyyy] [name of copyright owner]
//
//    Licensed under the Apache License, Version 2.0 (the "License");
//    you may not use this file except in compliance with the License.
//    You may obtain a copy of the License at
//
//        http://www.apache.org/licenses/LICENSE-2.0
//
//    Unless required by applicable law or agreed to in writing, software
//    distributed under the License is distributed on an "AS IS" BASIS,
//    WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
//    See the License for the specific language governing permissions and
//    limitations under the License.

function libraries() {
if (libraries.loaded) return libraries.loaded;
var module = { exports: {} };
var V=(e,t)=>()=>{try{return t||e((t={exports:{}}).exports,t),t.exports}catch(r){throw t=0,r}};var tt=V(($o,et)=>{"use strict";function cr(e,t){var r=e;t.slice(0,-1).forEach(function(o){r=r[o]||{}});var n=t[t.length-1];return n in r}function Qe(e){return typeof e==
"number"||/^0x[0-9a-f]+$/i.test(e)?!0:/^[-+]?(?:\d+(?:\.\d*)?|\.\d+)(e[-+]?\d+)?$/.test(e)}function Ze(e,t){return t==="constructor"&&typeof e[t]=="function"||t===
"__proto__"}et.exports=function(e,t){t||(t={});var r={bools:{},strings:{},unknownFn:null};typeof t.unknown=="function"&&(r.unknownFn=t.unknown),typeof t.boolean==
"boolean"&&t.boolean?r.allBools=!0:[].concat(t.boolean).filter(Boolean).forEach(function(p){r.bools[p]=!0});var n={};function o(p){return n[p].some(function(_){
return r.bools[_]})}Object.keys(t.alias||{}).forEach(function(p){n[p]=[].concat(t.alias[p]),n[p].forEach(function(_){n[_]=[p].concat(n[p].filter(function(x){return _!==
x}))})}),[].concat(t.string).filter(Boolean).forEach(function(p){r.strings[p]=!0,n[p]&&[].concat(n[p]).forEach(function(_){r.strings[_]=!0})});var s=t.default||
{},a={_:[]};function i(p,_){return r.allBools&&/^--[^=]+$/.test(_)||r.strings[p]||r.bools[p]||n[p]}function u(p,_,x){for(var m=p,k=0;k<_.length-1;k++){var I=_[k];
if(Ze(m,I))return;m[I]===void 0&&(m[I]={}),(m[I]===Object.prototype||m[I]===Number.prototype||m[I]===String.prototype)&&(m[I]={}),m[I]===Array.prototype&&(m[I]=
[]),m=m[I]}var A=_[_.length-1];Ze(m,A)||((m===Object.prototype||m===Number.prototype||m===String.prototype)&&(m={}),m===Array.prototype&&(m=[]),m[A]===void 0||r.
bools[A]||typeof m[A]=="boolean"?m[A]=x:Array.isArray(m[A])?m[A].push(x):m[A]=[m[A],x])}function l(p,_,x){if(!(x&&r.unknownFn&&!i(p,x)&&r.unknownFn(x)===!1)){var m=!r.
strings[p]&&Qe(_)?Number(_):_;u(a,p.split("."),m),(n[p]||[]).forEach(function(k){u(a,k.split("."),m)})}}Object.keys(r.bools).forEach(function(p){l(p,s[p]===void 0?
!1:s[p])});var h=[];e.indexOf("--")!==-1&&(h=e.slice(e.indexOf("--")+1),e=e.slice(0,e.indexOf("--")));for(var d=0;d<e.length;d++){var c=e[d],f,v;if(/^--.+=/.test(
c)){var T=c.match(/^--([^=]+)=([\s\S]*)$/);f=T[1];var w=T[2];r.bools[f]&&(w=w!=="false"),l(f,w,c)}else if(/^--no-.+/.test(c))f=c.match(/^--no-(.+)/)[1],l(f,!1,c);else if(/^--.+/.
test(c))f=c.match(/^--(.+)/)[1],v=e[d+1],v!==void 0&&!/^(-|--)[^-]/.test(v)&&!r.bools[f]&&!r.allBools&&(!n[f]||!o(f))?(l(f,v,c),d+=1):/^(true|false)$/.test(v)?(l(
f,v==="true",c),d+=1):l(f,r.strings[f]?"":!0,c);else if(/^-[^-]+/.test(c)){for(var g=c.slice(1,-1).split(""),S=!1,b=0;b<g.length;b++){if(v=c.slice(b+2),v==="-"){
l(g[b],v,c);continue}if(/[A-Za-z]/.test(g[b])&&v[0]==="="){l(g[b],v.slice(1),c),S=!0;break}if(/[A-Za-z]/.test(g[b])&&/-?\d+(\.\d*)?(e-?\d+)?$/.test(v)){l(g[b],v,
c),S=!0;break}if(g[b+1]&&g[b+1].match(/\W/)){l(g[b],c.slice(b+2),c),S=!0;break}else l(g[b],r.strings[g[b]]?"":!0,c)}f=c.slice(-1)[0],!S&&f!=="-"&&(e[d+1]&&!/^(-|--)[^-]/.
test(e[d+1])&&!r.bools[f]&&(!n[f]||!o(f))?(l(f,e[d+1],c),d+=1):e[d+1]&&/^(true|false)$/.test(e[d+1])?(l(f,e[d+1]==="true",c),d+=1):l(f,r.strings[f]?"":!0,c))}else if((!r.
unknownFn||r.unknownFn(c)!==!1)&&a._.push(r.strings._||!Qe(c)?c:Number(c)),t.stopEarly){a._.push.apply(a._,e.slice(d+1));break}}return Object.keys(s).forEach(function(p){
cr(a,p.split("."))||(u(a,p.split("."),s[p]),(n[p]||[]).forEach(function(_){u(a,_.split("."),s[p])}))}),t["--"]?a["--"]=h.slice():h.forEach(function(p){a._.push(
p)}),a}});var X=V((jo,lt)=>{var rt=Object.create,G=Object.defineProperty,nt=Object.getOwnPropertyDescriptor,ie=Object.getOwnPropertyNames,ot=Object.getPrototypeOf,Se=Object.
prototype.hasOwnProperty,dr=(e,t)=>{for(var r in t)G(e,r,{get:t[r],enumerable:!0})},K=(e,t,r,n)=>{if(t&&typeof t=="object"||typeof t=="function")for(let o of ie(
t))!Se.call(e,o)&&o!==r&&G(e,o,{get:()=>t[o],enumerable:!(n=nt(t,o))||n.enumerable});return e},fr=(e,t,r)=>(r=e!=null?rt(ot(e)):{},K(t||!e||!e.__esModule?G(r,"d\
efault",{value:e,enumerable:!0}):r,e)),hr=e=>K(G({},"__esModule",{value:!0}),e),pr=(e,t,r)=>new Promise((n,o)=>{var s=u=>{try{i(r.next(u))}catch(l){o(l)}},a=u=>{
try{i(r.throw(u))}catch(l){o(l)}},i=u=>u.done?n(u.value):Promise.resolve(u.value).then(s,a);i((r=r.apply(e,t)).next())}),st=Object.defineProperties,it=Object.getOwnPropertyDescriptors,
we=Object.getOwnPropertySymbols,at=Object.prototype.propertyIsEnumerable,D=(e,t)=>(t=Symbol[e])?t:Symbol.for("Symbol."+e),ae=e=>{throw TypeError(e)},ye=(e,t,r)=>t in
e?G(e,t,{enumerable:!0,configurable:!0,writable:!0,value:r}):e[t]=r,vr=(e,t)=>{for(var r in t||(t={}))Se.call(t,r)&&ye(e,r,t[r]);if(we)for(var r of we(t))at.call(
t,r)&&ye(e,r,t[r]);return e},mr=(e,t)=>st(e,it(t)),Ee=function(e,t){this[0]=e,this[1]=t},gr=(e,t,r)=>{var n=(a,i,u,l)=>{try{var h=r[a](i),d=(i=h.value)instanceof
Ee,c=h.done;Promise.resolve(d?i[0]:i).then(f=>d?n(a==="return"?a:"next",i[1]?{done:f.done,value:f.value}:f,u,l):u({value:f,done:c})).catch(f=>n("throw",f,u,l))}catch(f){
l(f)}},o=a=>s[a]=i=>new Promise((u,l)=>n(a,i,u,l)),s={};return r=r.apply(e,t),s[D("asyncIterator")]=()=>s,o("next"),o("throw"),o("return"),s},_r=e=>{var t=e[D("\
asyncIterator")],r=!1,n,o={};return t==null?(t=e[D("iterator")](),n=s=>o[s]=a=>t[s](a)):(t=t.call(e),n=s=>o[s]=a=>{if(r){if(r=!1,s==="throw")throw a;return a}return r=
!0,{done:!1,value:new Ee(new Promise(i=>{var u=t[s](a);u instanceof Object||ae("Object expected"),i(u)}),1)}}),o[D("iterator")]=()=>o,n("next"),"throw"in t?n("t\
hrow"):o.throw=s=>{throw s},"return"in t&&n("return"),o},br=(e,t,r)=>(t=e[D("asyncIterator")])?t.call(e):(e=e[D("iterator")](),t={},r=(n,o)=>(o=e[n])&&(t[n]=s=>new Promise(
(a,i,u)=>(s=o.call(e,s),u=s.done,Promise.resolve(s.value).then(l=>a({value:l,done:u}),i)))),r("next"),r("return"),t),wr=Math.pow,yr=(e,t,r)=>(K(e,t,"default"),r&&
K(r,t,"default")),Sr=(e,t)=>function(){return t||(0,e[ie(e)[0]])((t={exports:{}}).exports,t),t.exports},Er=(e,t)=>function(){return e&&(t=(0,e[ie(e)[0]])(e=0)),
t},Oe=(e,t,r)=>t.has(e)||ae("Cannot "+r),Or=(e,t,r)=>(Oe(e,t,"read from private field"),r?r.call(e):t.get(e)),Pr=(e,t,r)=>t.has(e)?ae("Cannot add the same priva\
te member more than once"):t instanceof WeakSet?t.add(e):t.set(e,r),xr=(e,t,r,n)=>(Oe(e,t,"write to private field"),n?n.call(e,r):t.set(e,r),r);lt.exports={__create:rt,
__defProp:G,__getOwnPropDesc:nt,__getOwnPropNames:ie,__getProtoOf:ot,__hasOwnProp:Se,__export:dr,__copyProps:K,__toESM:fr,__toCommonJS:hr,__async:pr,__defProps:st,
__getOwnPropDescs:it,__getOwnPropSymbols:we,__propIsEnum:at,__knownSymbol:D,__typeError:ae,__defNormalProp:ye,__spreadValues:vr,__spreadProps:mr,__await:Ee,__asyncGenerator:gr,
__yieldStar:_r,__forAwait:br,__pow:wr,__reExport:yr,__commonJS:Sr,__esm:Er,__accessCheck:Oe,__privateGet:Or,__privateAdd:Pr,__privateSet:xr}});var Pe=V((qo,ft)=>{"use strict";var{__export:Cr,__toCommonJS:Tr}=X(),ut={};Cr(ut,{bus:()=>kr});ft.exports=Tr(ut);var ct=!1,Ir=()=>ct=!0,Q=new Map,dt=Q.set.bind(
Q);function Ar(e,t){if(ct)throw new Error("bus is locked");return dt(e,t),new Proxy(t,{get(r,n){var o,s;return Q.get(e)[n]||((s=(o=Q.get(e))==null?void 0:o.default)==
null?void 0:s[n])},apply(r,n,o){return Q.get(e).apply(n,o)}})}var kr={override:dt,wrap:Ar,lock:Ir}});var re=V((Uo,qt)=>{"use strict";var{__create:Do,__spreadValues:F,__spreadProps:Ne,__commonJS:ee,__export:Lr,__toESM:R,__toCommonJS:Mr,__async:fe}=X(),Rr=ee({"no\
de_modules/isexe/dist/cjs/posix.js"(e){"use strict";Object.defineProperty(e,"__esModule",{value:!0}),e.sync=e.isexe=void 0;var t=require("fs"),r=require("fs").promises,
n=(i,...u)=>fe(null,[i,...u],function*(l,h={}){let{ignoreErrors:d=!1}=h;try{return s(yield(0,r.stat)(l),h)}catch(c){let f=c;if(d||f.code==="EACCES")return!1;throw f}});
e.isexe=n;var o=(i,u={})=>{let{ignoreErrors:l=!1}=u;try{return s((0,t.statSync)(i),u)}catch(h){let d=h;if(l||d.code==="EACCES")return!1;throw d}};e.sync=o;var s=(i,u)=>i.
isFile()&&a(i,u),a=(i,u)=>{var l,h,d,c,f,v,T,w;let g=(h=u.uid)!=null?h:(l=process.getuid)==null?void 0:l.call(process),S=(f=(c=u.groups)!=null?c:(d=process.getgroups)==
null?void 0:d.call(process))!=null?f:[],b=(w=(T=u.gid)!=null?T:(v=process.getgid)==null?void 0:v.call(process))!=null?w:S[0];if(g===void 0||b===void 0)throw new Error(
"cannot get uid or gid");let p=new Set([b,...S]),_=i.mode,x=i.uid,m=i.gid,k=parseInt("100",8),I=parseInt("010",8),A=parseInt("001",8),J=k|I;return!!(_&A||_&I&&p.
has(m)||_&k&&x===g||_&J&&g===0)}}}),Nr=ee({"node_modules/isexe/dist/cjs/win32.js"(e){"use strict";Object.defineProperty(e,"__esModule",{value:!0}),e.sync=e.isexe=
void 0;var t=require("fs"),r=require("fs").promises,n=(i,...u)=>fe(null,[i,...u],function*(l,h={}){let{ignoreErrors:d=!1}=h;try{return a(yield(0,r.stat)(l),l,h)}catch(c){
let f=c;if(d||f.code==="EACCES")return!1;throw f}});e.isexe=n;var o=(i,u={})=>{let{ignoreErrors:l=!1}=u;try{return a((0,t.statSync)(i),i,u)}catch(h){let d=h;if(l||
d.code==="EACCES")return!1;throw d}};e.sync=o;var s=(i,u)=>{let{pathExt:l=process.env.PATHEXT||""}=u,h=l.split(";");if(h.indexOf("")!==-1)return!0;for(let d=0;d<
h.length;d++){let c=h[d].toLowerCase(),f=i.substring(i.length-c.length).toLowerCase();if(c&&f===c)return!0}return!1},a=(i,u,l)=>i.isFile()&&s(u,l)}}),Br=ee({"no\
de_modules/isexe/dist/cjs/options.js"(e){"use strict";Object.defineProperty(e,"__esModule",{value:!0})}}),$r=ee({"node_modules/isexe/dist/cjs/index.js"(e){"use \
strict";var t=e&&e.__createBinding||(Object.create?(function(l,h,d,c){c===void 0&&(c=d);var f=Object.getOwnPropertyDescriptor(h,d);(!f||("get"in f?!h.__esModule:
f.writable||f.configurable))&&(f={enumerable:!0,get:function(){return h[d]}}),Object.defineProperty(l,c,f)}):(function(l,h,d,c){c===void 0&&(c=d),l[c]=h[d]})),r=e&&
e.__setModuleDefault||(Object.create?(function(l,h){Object.defineProperty(l,"default",{enumerable:!0,value:h})}):function(l,h){l.default=h}),n=e&&e.__importStar||
function(l){if(l&&l.__esModule)return l;var h={};if(l!=null)for(var d in l)d!=="default"&&Object.prototype.hasOwnProperty.call(l,d)&&t(h,l,d);return r(h,l),h},o=e&&
e.__exportStar||function(l,h){for(var d in l)d!=="default"&&!Object.prototype.hasOwnProperty.call(h,d)&&t(h,l,d)};Object.defineProperty(e,"__esModule",{value:!0}),
e.sync=e.isexe=e.posix=e.win32=void 0;var s=n(Rr());e.posix=s;var a=n(Nr());e.win32=a,o(Br(),e);var i=process.env._ISEXE_TEST_PLATFORM_||process.platform,u=i===
"win32"?a:s;e.isexe=u.isexe,e.sync=u.sync}}),jr=ee({"node_modules/which/lib/index.js"(e,t){"use strict";var{isexe:r,sync:n}=$r(),{join:o,delimiter:s,sep:a,posix:i}=require("path"),
u=process.platform==="win32",l=new RegExp(`[${i.sep}${a===i.sep?"":a}]`.replace(/(\\)/g,"\\$1")),h=new RegExp(`^\\.${l.source}`),d=w=>Object.assign(new Error(`n\
ot found: ${w}`),{code:"ENOENT"}),c=(w,{path:g=process.env.PATH,pathExt:S=process.env.PATHEXT,delimiter:b=s})=>{let p=w.match(l)?[""]:[...u?[process.cwd()]:[],...(g||
"").split(b)];if(u){let _=S||[".EXE",".CMD",".BAT",".COM"].join(b),x=_.split(b).flatMap(m=>[m,m.toLowerCase()]);return w.includes(".")&&x[0]!==""&&x.unshift(""),
{pathEnv:p,pathExt:x,pathExtExe:_}}return{pathEnv:p,pathExt:[""]}},f=(w,g)=>{let S=/^".*"$/.test(w)?w.slice(1,-1):w;return(!S&&h.test(g)?g.slice(0,2):"")+o(S,g)},
v=(w,...g)=>fe(null,[w,...g],function*(S,b={}){let{pathEnv:p,pathExt:_,pathExtExe:x}=c(S,b),m=[];for(let k of p){let I=f(k,S);for(let A of _){let J=I+A;if(yield r(
J,{pathExt:x,ignoreErrors:!0})){if(!b.all)return J;m.push(J)}}}if(b.all&&m.length)return m;if(b.nothrow)return null;throw d(S)}),T=(w,g={})=>{let{pathEnv:S,pathExt:b,
pathExtExe:p}=c(w,g),_=[];for(let x of S){let m=f(x,w);for(let k of b){let I=m+k;if(n(I,{pathExt:p,ignoreErrors:!0})){if(!g.all)return I;_.push(I)}}}if(g.all&&_.
length)return _;if(g.nothrow)return null;throw d(w)};t.exports=v,v.sync=T}}),Ct={};Lr(Ct,{VoidStream:()=>ue,buildCmd:()=>At,chalk:()=>Nn,exec:()=>kt,isStringLiteral:()=>wn,
ps:()=>$n,which:()=>Bn});qt.exports=Mr(Ct);var xe=10,ht=(e=0)=>t=>`\x1B[${t+e}m`,pt=(e=0)=>t=>`\x1B[${38+e};5;${t}m`,vt=(e=0)=>(t,r,n)=>`\x1B[${38+e};2;${t};${r}\
;${n}m`,O={modifier:{reset:[0,0],bold:[1,22],dim:[2,22],italic:[3,23],underline:[4,24],overline:[53,55],inverse:[7,27],hidden:[8,28],strikethrough:[9,29]},color:{
black:[30,39],red:[31,39],green:[32,39],yellow:[33,39],blue:[34,39],magenta:[35,39],cyan:[36,39],white:[37,39],blackBright:[90,39],gray:[90,39],grey:[90,39],redBright:[
91,39],greenBright:[92,39],yellowBright:[93,39],blueBright:[94,39],magentaBright:[95,39],cyanBright:[96,39],whiteBright:[97,39]},bgColor:{bgBlack:[40,49],bgRed:[
41,49],bgGreen:[42,49],bgYellow:[43,49],bgBlue:[44,49],bgMagenta:[45,49],bgCyan:[46,49],bgWhite:[47,49],bgBlackBright:[100,49],bgGray:[100,49],bgGrey:[100,49],bgRedBright:[
101,49],bgGreenBright:[102,49],bgYellowBright:[103,49],bgBlueBright:[104,49],bgMagentaBright:[105,49],bgCyanBright:[106,49],bgWhiteBright:[107,49]}},Fo=Object.keys(
O.modifier),qr=Object.keys(O.color),Dr=Object.keys(O.bgColor),Vo=[...qr,...Dr];function Fr(){let e=new Map;for(let[t,r]of Object.entries(O)){for(let[n,o]of Object.
entries(r))O[n]={open:`\x1B[${o[0]}m`,close:`\x1B[${o[1]}m`},r[n]=O[n],e.set(o[0],o[1]);Object.defineProperty(O,t,{value:r,enumerable:!1})}return Object.defineProperty(
O,"codes",{value:e,enumerable:!1}),O.color.close="\x1B[39m",O.bgColor.close="\x1B[49m",O.color.ansi=ht(),O.color.ansi256=pt(),O.color.ansi16m=vt(),O.bgColor.ansi=
ht(xe),O.bgColor.ansi256=pt(xe),O.bgColor.ansi16m=vt(xe),Object.defineProperties(O,{rgbToAnsi256:{value(t,r,n){return t===r&&r===n?t<8?16:t>248?231:Math.round((t-
8)/247*24)+232:16+36*Math.round(t/255*5)+6*Math.round(r/255*5)+Math.round(n/255*5)},enumerable:!1},hexToRgb:{value(t){let r=/[a-f\d]{6}|[a-f\d]{3}/i.exec(t.toString(
16));if(!r)return[0,0,0];let[n]=r;n.length===3&&(n=[...n].map(s=>s+s).join(""));let o=Number.parseInt(n,16);return[o>>16&255,o>>8&255,o&255]},enumerable:!1},hexToAnsi256:{
value:t=>O.rgbToAnsi256(...O.hexToRgb(t)),enumerable:!1},ansi256ToAnsi:{value(t){if(t<8)return 30+t;if(t<16)return 90+(t-8);let r,n,o;if(t>=232)r=((t-232)*10+8)/
255,n=r,o=r;else{t-=16;let i=t%36;r=Math.floor(t/36)/5,n=Math.floor(i/6)/5,o=i%6/5}let s=Math.max(r,n,o)*2;if(s===0)return 30;let a=30+(Math.round(o)<<2|Math.round(
n)<<1|Math.round(r));return s===2&&(a+=60),a},enumerable:!1},rgbToAnsi:{value:(t,r,n)=>O.ansi256ToAnsi(O.rgbToAnsi256(t,r,n)),enumerable:!1},hexToAnsi:{value:t=>O.
ansi256ToAnsi(O.hexToAnsi256(t)),enumerable:!1}}),O}var Vr=Fr(),$=Vr,Be=R(require("process"),1),Gr=R(require("os"),1),mt=R(require("tty"),1);function L(e,t=globalThis.
Deno?globalThis.Deno.args:Be.default.argv){let r=e.startsWith("-")?"":e.length===1?"-":"--",n=t.indexOf(r+e),o=t.indexOf("--");return n!==-1&&(o===-1||n<o)}var{
env:P}=Be.default,ce;L("no-color")||L("no-colors")||L("color=false")||L("color=never")?ce=0:(L("color")||L("colors")||L("color=true")||L("color=always"))&&(ce=1);
function Ur(){if("FORCE_COLOR"in P)return P.FORCE_COLOR==="true"?1:P.FORCE_COLOR==="false"?0:P.FORCE_COLOR.length===0?1:Math.min(Number.parseInt(P.FORCE_COLOR,10),
3)}function zr(e){return e===0?!1:{level:e,hasBasic:!0,has256:e>=2,has16m:e>=3}}function Wr(e,{streamIsTTY:t,sniffFlags:r=!0}={}){let n=Ur();n!==void 0&&(ce=n);
let o=r?ce:n;if(o===0)return 0;if(r){if(L("color=16m")||L("color=full")||L("color=truecolor"))return 3;if(L("color=256"))return 2}if("TF_BUILD"in P&&"AGENT_NAME"in
P)return 1;if(e&&!t&&o===void 0)return 0;let s=o||0;if(P.TERM==="dumb")return s;if(Be.default.platform==="win32"){let a=Gr.default.release().split(".");return Number(
a[0])>=10&&Number(a[2])>=10586?Number(a[2])>=14931?3:2:1}if("CI"in P)return["GITHUB_ACTIONS","GITEA_ACTIONS","CIRCLECI"].some(a=>a in P)?3:["TRAVIS","APPVEYOR",
"GITLAB_CI","BUILDKITE","DRONE"].some(a=>a in P)||P.CI_NAME==="codeship"?1:s;if("TEAMCITY_VERSION"in P)return/^(9\.(0*[1-9]\d*)\.|\d{2,}\.)/.test(P.TEAMCITY_VERSION)?
1:0;if(P.COLORTERM==="truecolor"||P.TERM==="xterm-kitty"||P.TERM==="xterm-ghostty"||P.TERM==="wezterm")return 3;if("TERM_PROGRAM"in P){let a=Number.parseInt((P.
TERM_PROGRAM_VERSION||"").split(".")[0],10);switch(P.TERM_PROGRAM){case"iTerm.app":return a>=3?3:2;case"Apple_Terminal":return 2}}return/-256(color)?$/i.test(P.
TERM)?2:/^screen|^xterm|^vt100|^vt220|^rxvt|color|ansi|cygwin|linux/i.test(P.TERM)||"COLORTERM"in P?1:s}function gt(e,t={}){let r=Wr(e,F({streamIsTTY:e&&e.isTTY},
t));return zr(r)}var Yr={stdout:gt({isTTY:mt.default.isatty(1)}),stderr:gt({isTTY:mt.default.isatty(2)})},Hr=Yr;function Jr(e,t,r){let n=e.indexOf(t);if(n===-1)
return e;let o=t.length,s=0,a="";do a+=e.slice(s,n)+t+r,s=n+o,n=e.indexOf(t,s);while(n!==-1);return a+=e.slice(s),a}function Kr(e,t,r,n){let o=0,s="";do{let a=e[n-
1]==="\r";s+=e.slice(o,a?n-1:n)+t+(a?`\r
`:`
`)+r,o=n+1,n=e.indexOf(`
`,o)}while(n!==-1);return s+=e.slice(o),s}var{stdout:_t,stderr:bt}=Hr,Ce=Symbol("GENERATOR"),U=Symbol("STYLER"),Z=Symbol("IS_EMPTY"),wt=["ansi","ansi","ansi256",
"ansi16m"],z=Object.create(null),Xr=(e,t={})=>{if(t.level&&!(Number.isInteger(t.level)&&t.level>=0&&t.level<=3))throw new Error("The `level` option should be an\
 integer from 0 to 3");let r=_t?_t.level:0;e.level=t.level===void 0?r:t.level},Qr=e=>{let t=(...r)=>r.join(" ");return Xr(t,e),Object.setPrototypeOf(t,te.prototype),
t};function te(e){return Qr(e)}Object.setPrototypeOf(te.prototype,Function.prototype);for(let[e,t]of Object.entries($))z[e]={get(){let r=de(this,Ie(t.open,t.close,
this[U]),this[Z]);return Object.defineProperty(this,e,{value:r}),r}};z.visible={get(){let e=de(this,this[U],!0);return Object.defineProperty(this,"visible",{value:e}),
e}};var Te=(e,t,r,...n)=>e==="rgb"?t==="ansi16m"?$[r].ansi16m(...n):t==="ansi256"?$[r].ansi256($.rgbToAnsi256(...n)):$[r].ansi($.rgbToAnsi(...n)):e==="hex"?Te("\
rgb",t,r,...$.hexToRgb(...n)):$[r][e](...n),Zr=["rgb","hex","ansi256"];for(let e of Zr){z[e]={get(){let{level:r}=this;return function(...n){let o=Ie(Te(e,wt[r],
"color",...n),$.color.close,this[U]);return de(this,o,this[Z])}}};let t="bg"+e[0].toUpperCase()+e.slice(1);z[t]={get(){let{level:r}=this;return function(...n){let o=Ie(
Te(e,wt[r],"bgColor",...n),$.bgColor.close,this[U]);return de(this,o,this[Z])}}}}var en=Object.defineProperties(()=>{},Ne(F({},z),{level:{enumerable:!0,get(){return this[Ce].
level},set(e){this[Ce].level=e}}})),Ie=(e,t,r)=>{let n,o;return r===void 0?(n=e,o=t):(n=r.openAll+e,o=t+r.closeAll),{open:e,close:t,openAll:n,closeAll:o,parent:r}},
de=(e,t,r)=>{let n=(...o)=>tn(n,o.length===1?""+o[0]:o.join(" "));return Object.setPrototypeOf(n,en),n[Ce]=e,n[U]=t,n[Z]=r,n},tn=(e,t)=>{if(e.level<=0||!t)return e[Z]?
"":t;let r=e[U];if(r===void 0)return t;let{openAll:n,closeAll:o}=r;if(t.includes("\x1B"))for(;r!==void 0;)t=Jr(t,r.close,r.open),r=r.parent;let s=t.indexOf(`
`);return s!==-1&&(t=Kr(t,o,n,s)),n+t+o};Object.defineProperties(te.prototype,z);var rn=te(),Go=te({level:bt?bt.level:0}),nn=rn,on=R(jr(),1),Tt=R(require("process"),
1),yt=R(require("fs"),1),Ae=R(require("os"),1),sn=/\r?\n|\r|\n/,St="-",an=(e,t=" ")=>{if(typeof e!="string")throw new Error("parseLine: line must be a string");
let r={spaces:[],words:[]},n=()=>{s&&(r.words.push({s:a,e:a+s.length-1,w:s}),s="",a=-1)},o,s="",a=-1;for(let i in[...e]){let u=e[+i-1],l=e[i];if(o){s+=l,l===o&&
u!=="\\"&&(o=void 0);continue}if(l===t){r.spaces.push(+i),n();continue}a===-1&&(a=+i),(l==='"'||l==="'")&&(o=l),s+=l}return n(),r},ln=(e,t)=>e.split(sn).filter(
Boolean).map(r=>an(r,t)),Et=({words:e},t)=>e.filter(({e:r})=>r<t).length,un=e=>e[0].spaces.reduce((t,r)=>{let n=Et(e[0],r);return e.every(o=>o.spaces.includes(r)&&
n===Et(o,r))&&t.push(r),t},[]),cn=e=>{let t=ln(e),r=un(t),n=[Number.NEGATIVE_INFINITY,...r,Number.POSITIVE_INFINITY],o=[];for(let{words:s}of t){let a=[];o.push(
a);for(let i in s){let{w:u,s:l,e:h}=s[i];for(let d in n){let c=n[+d],f=n[+d+1];if(f===void 0)break;let v=a[d]||(a[d]=[]);l>c&&h<f&&v.push(u)}}}return dn(o)},dn=e=>{
let t=[],[r,...n]=e;for(let o of n){let s={};t.push(s);for(let a in r){let i=r[a];if(i.length!==0){if(i.length>o[a].length)throw new Error("Malformed grid: row \
has more columns than headers");for(let u in i){let l=i[u],h=+u+1===i.length?Number.POSITIVE_INFINITY:+u+1;s[l]=o[a].slice(+u,h)}}}}return t},fn=(e,t=!1)=>{let r=e.
split(/\r*\n+/).filter(Boolean),n=r.shift(),o=n.trim().split(/\s\s+/),s=o.length,a=n.length;if(t&&(console.log("Headers:",o),console.log("Line lengths:",r.map(f=>f.
length))),r.every(f=>a/f.length<2)){let v=Array.from({length:a}).map((w,g)=>r.every(S=>S[g]===" ")).reduce((w,g,S,b)=>(g&&!b[S-1]&&w.push(S),w),[0]),T=[];t&&console.
log("Borders:",v);for(let w of r){let g=[];for(let S in o){let b=o[S],p=v[S],_=v[+S+1]||a,x=w.slice(p,_).trim();g.push([b,[x||St]])}T.push(Object.fromEntries(g))}
return T}let i="",u,l=e.slice(n.length),h=[],d=[],c=f=>{let v=i.trim()||(h.length===0?f:i.trim());v&&(h.push(v),h.length===s&&(d.push(Object.fromEntries(o.map((T,w)=>[
T,[h[w]]]))),h.length=0),i="")};for(let f of l)i+=f,f===" "?u===`
`?c(St):u===" "&&c():f===`
`&&c(),u=f;return c(),d},hn={unix:cn,win:fn},Ot=(e,{format:t="unix",debug:r=!1}={})=>{let n=hn[t];if(!n)throw new Error(`unsupported format: ${t}`);return n(e,r)},
Pt=R(require("child_process"),1),le=R(require("process"),1),pn=R(require("events"),1),It=require("stream"),vn=R(require("process"),1),ke=!vn.default.versions.deno&&
global||globalThis,mn=ke.setImmediate||(e=>ke.setTimeout(e,0)),gn=()=>{},_n=()=>Math.random().toString(36).slice(2),bn=e=>typeof e?.then=="function",wn=(e,...t)=>{
var r;return e?.length>0&&((r=e.raw)==null?void 0:r.length)===e.length&&t.length+1===e.length},yn=(e,...t)=>Object.defineProperties(e,t.reduce((r,n)=>F(F({},r),
Object.fromEntries(Object.entries(Object.getOwnPropertyDescriptors(n)).filter(([,o])=>!Object.prototype.hasOwnProperty.call(o,"value")||o.value!==void 0))),{})),
At=(e,t,r,n=Sn)=>{if(r.some(bn))return Promise.all(r).then(a=>At(e,t,a,n));let o=t[0],s=0;for(;s<r.length;){let a=Array.isArray(r[s])?r[s].map(i=>e(n(i))).join(
" "):e(n(r[s]));o+=a+t[++s]}return o},Sn=e=>typeof e?.stdout=="string"?e.stdout.replace(/\n$/,""):`${e}`,En={get id(){return _n()},cmd:"",get cwd(){return le.default.
cwd()},sync:!1,args:[],input:null,env:le.default.env,get ee(){return new pn.default},get ac(){return ke.AbortController&&new AbortController},get signal(){var e;
return(e=this.ac)==null?void 0:e.signal},on:{},detached:le.default.platform!=="win32",shell:!0,spawn:Pt.spawn,spawnSync:Pt.spawnSync,spawnOpts:{},get store(){return xn()},
callback:gn,get stdin(){return new ue},get stdout(){return new ue},get stderr(){return new ue},stdio:["pipe","pipe","pipe"],run:mn,stack:""},On=(...e)=>yn(F({},
En),{get signal(){var t;return(t=this.ac)==null?void 0:t.signal}},...e),Pn=(e,t)=>{t&&e.stdin&&!e.stdin.destroyed&&(t instanceof It.Readable?t.pipe(e.stdin):(e.
stdin.write(t),e.stdin.end()))},ue=class extends It.Transform{_transform(e,t,r){this.emit("data",e),r()}},xt=({spawnOpts:e,stdio:t,cwd:r,shell:n,input:o,env:s,detached:a,
signal:i})=>Ne(F({},e),{env:s,cwd:r,stdio:t,shell:n,input:o,windowsHide:!0,detached:a,signal:i}),Le=(e,t,r={})=>{for(let[n,o]of Object.entries(r))t[e](n,o);e===
"on"&&t.once("end",()=>Le("off",t,r))},xn=()=>({stdout:[],stderr:[],stdall:[]}),Cn=e=>{var t,r;let n=Date.now(),o=[e.stdin,e.stdout,e.stderr],s=(a,i)=>{e.store[a].
push(i),e.store.stdall.push(i),e.ee.emit(a,i,e),e.ee.emit("stdall",i,e)};try{if(e.sync){Le("on",e.ee,e.on);let a=xt(e),i=e.spawnSync(e.cmd,e.args,a);e.ee.emit("\
start",i,e),((t=i.stdout)==null?void 0:t.length)>0&&(e.stdout.write(i.stdout),s("stdout",i.stdout)),((r=i.stderr)==null?void 0:r.length)>0&&(e.stderr.write(i.stderr),
s("stderr",i.stderr)),e.callback(null,e.fulfilled=Ne(F({},i),{get stdout(){return e.store.stdout.join("")},get stderr(){return e.store.stderr.join("")},get stdall(){
return e.store.stdall.join("")},stdio:o,duration:Date.now()-n,ctx:e})),e.ee.emit("end",e.fulfilled,e)}else e.run(()=>{var a,i,u;Le("on",e.ee,e.on);let l=null,h=!1,
d=xt(e),c=e.spawn(e.cmd,e.args,d),f=v=>{if(d.detached&&c.pid)try{le.default.kill(-c.pid)}catch{c.kill()}h=!0,e.ee.emit("abort",v,e)};e.child=c,e.ee.emit("start",
c,e),(a=d.signal)==null||a.addEventListener("abort",f),Pn(c,e.input||e.stdin),(i=c.stdout)==null||i.on("data",v=>{s("stdout",v)}).pipe(e.stdout),(u=c.stderr)==null||
u.on("data",v=>{s("stderr",v)}).pipe(e.stderr),c.once("error",v=>{l=v,e.ee.emit("err",l,e)}).once("exit",()=>{var v,T;h&&((v=c.stdout)==null||v.destroy(),(T=c.stderr)==
null||T.destroy())}).once("close",(v,T)=>{var w;e.fulfilled={error:l,status:v,signal:T,get stdout(){return e.store.stdout.join("")},get stderr(){return e.store.
stderr.join("")},get stdall(){return e.store.stdall.join("")},stdio:o,duration:Date.now()-n,ctx:e},(w=d.signal)==null||w.removeEventListener("abort",f),e.callback(
l,e.fulfilled),e.ee.emit("end",e.fulfilled,e)})},e)}catch(a){e.callback(a,e.fulfilled={error:a,status:null,signal:null,stdout:"",stderr:"",stdall:"",stdio:o,duration:Date.
now()-n,ctx:e}),e.ee.emit("err",a,e),e.ee.emit("end",e.fulfilled,e)}return e},kt=e=>Cn(On(e)),Lt=Tt.default.platform==="win32",Tn=Lt&&Number.parseInt(Ae.default.
release().split(".")[2],10)>=26e3,Me={wmic:{cmd:"wmic process get ProcessId,ParentProcessId,CommandLine",args:[],parse(e){return Ot(An(e),{format:"win"})}},ps:{
cmd:"ps",args:["-lx"],parse(e){return Ot(e,{format:"unix"})}},pwsh:{cmd:"pwsh",args:["-NoProfile","-Command",'"Get-CimInstance Win32_Process | Select-Object Pro\
cessId,ParentProcessId,CommandLine | ConvertTo-Json -Compress"'],parse(e){let t=[];try{t=JSON.parse(e)}catch{return[]}return t.map(r=>({ProcessId:[r.ProcessId+""],
ParentProcessId:[r.ParentProcessId+""],CommandLine:r.CommandLine?[r.CommandLine]:[]}))}}},Mt=e=>{if(e==="")return!1;if(!e.includes("/")&&!e.includes("\\"))return!0;
if(e.length>3&&e[0]==='"')return e[e.length-1]==='"'?Mt(e.slice(1,-1)):!1;try{if(!yt.default.existsSync(e))return!1;let t=yt.default.lstatSync(e);return t.isFile()||
t.isSymbolicLink()}catch{return!1}},$e=(e={},t=he)=>je({query:e,cb:t,sync:!1}),Rt=(e={},t=he)=>je({query:e,cb:t,sync:!0});$e.sync=Rt;var je=({query:e={},cb:t=he,
sync:r=!1})=>{let n=r?Ln.bind(null,[]):jt,{promise:o,resolve:s,reject:a}=n(),i=[],u=Lt?Tn?"pwsh":"wmic":"ps",{parse:l,cmd:h,args:d}=Me[u];return kt({cmd:h,args:d,
callback:(f,{stdout:v})=>{if(f){a(f),t(f);return}i.push(...In(kn(l(v)),e)),s(i),t(null,i)},sync:r,run(f){f()}}),Object.assign(o,i)},In=(e,t={})=>{let r=(t.pid===
void 0?[]:[t.pid].flat(1)).map(o=>o+""),n=[o=>t.command?new RegExp(t.command,"i").test(o.command):!0,o=>t.arguments?new RegExp(t.arguments,"i").test(o.arguments.
join(" ")):!0,o=>t.ppid?t.ppid+""===o.ppid:!0];return e.filter(o=>(r.length===0||r.includes(o.pid))&&n.every(s=>s(o)))},An=e=>{let t=e.indexOf(Me.wmic.cmd+Ae.default.
EOL),r=e.includes(">")?e.trimEnd().lastIndexOf(Ae.default.EOL):e.length;return(t>0?e.slice(t+Me.wmic.cmd.length,r):e.slice(0,r)).trimStart()},Nt=(e,t,r=!1)=>{let n=e.
filter(o=>o.ppid===t+"");return[...n,...n.flatMap(o=>r?Nt(e,o.pid,!0):[])]},qe=({cb:e=he,opts:t,sync:r=!1})=>{if(typeof t=="string"||typeof t=="number")return qe(
{opts:{pid:t},cb:e,sync:r});let n=s=>e(s),o=s=>{if(t===void 0)return s;let{pid:a,recursive:i=!1}=t,u=Nt(s,a,i);return e(null,u),u};try{let s=je({sync:r});return r?
o(s):s.then(o,a=>{throw n(a),a})}catch(s){return n(s),Promise.reject(s)}},Bt=(e,t)=>fe(null,null,function*(){return qe({opts:e,cb:t})}),$t=(e,t)=>qe({opts:e,cb:t,
sync:!0});Bt.sync=$t;var Re=(e,t,r)=>{if(typeof t=="function")return Re(e,void 0,t);if(typeof t=="string"||typeof t=="number")return Re(e,{signal:t},r);let{promise:n,
resolve:o,reject:s}=jt(),{timeout:a=30,signal:i="SIGTERM"}=t||{};try{Tt.default.kill(+e,i)}catch(c){return s(c),r?.(c),n}let u=0,l,h=!1,d=c=>$e({pid:e},(f,v=[])=>{
h||(f?(clearTimeout(l),s(f),c?.(f,e)):v.length>0?(u=u-1||0,d(c)):(u++,u===5?(clearTimeout(l),o(e),c?.(null,e)):d(c)))});return r?(d(r),l=setTimeout(()=>{h=!0,r(
new Error("Kill process timeout"))},a*1e3)):o(e),n},kn=e=>e.reduce((t,r)=>{var n,o;let s=(n=r.PID||r.ProcessId)==null?void 0:n[0],a=(o=r.PPID||r.ParentProcessId)==
null?void 0:o[0],i=r.CMD||r.CommandLine||r.COMMAND||[],u=i.length===1?i[0].split(/\s+/):i;if(s&&u.length>0){let l=u.findIndex((c,f)=>Mt(u.slice(0,f).join(" "))),
h=(l===-1?u:u.slice(0,l)).join(" "),d=l===-1?[]:u.slice(l);t.push({pid:s,ppid:a,command:h,arguments:d})}return t},[]),jt=()=>{let e,t,r=new Promise((n,o)=>{e=n,
t=o});return{resolve:e,reject:t,promise:r}},Ln=(e={})=>({promise:e,resolve:Mn,reject(t){throw t}}),he=()=>{},Mn=e=>e,Rn={kill:Re,lookup:$e,lookupSync:Rt,tree:Bt,
treeSync:$t},De=Pe(),Nn=De.bus.wrap("chalk",nn),Bn=De.bus.wrap("which",on.default),$n=De.bus.wrap("ps",Rn)});var Ge=V((Wo,Gt)=>{"use strict";var{__spreadValues:jn,__spreadProps:qn,__export:Dn,__toESM:Dt,__toCommonJS:Fn}=X(),Ft={};Dn(Ft,{bufArrJoin:()=>Hn,bufToString:()=>Ve,
getLast:()=>Jn,getLines:()=>oo,identity:()=>zn,isString:()=>Vt,isStringLiteral:()=>Gn.isStringLiteral,iteratorToArray:()=>so,noop:()=>Un,once:()=>eo,parseBool:()=>no,
parseDuration:()=>Zn,preferLocalBin:()=>Kn,proxyOverride:()=>to,quote:()=>Xn,quotePowerShell:()=>Qn,randomId:()=>Wn,toCamelCase:()=>ro});Gt.exports=Fn(Ft);var Fe=Dt(
require("path"),1),Vn=Dt(require("process"),1),Gn=re();function Un(){}function zn(e){return e}function Wn(){return Math.random().toString(36).slice(2)}function Vt(e){
return typeof e=="string"}var Yn=new TextDecoder("utf-8"),Ve=e=>Vt(e)?e:Yn.decode(e),Hn=e=>e.reduce((t,r)=>t+Ve(r),""),Jn=e=>e[e.length-1];function Kn(e,...t){let r=Vn.
default.platform==="win32"?Object.keys(e).reverse().find(o=>o.toUpperCase()==="PATH")||"Path":"PATH",n=t.map(o=>o&&[Fe.default.resolve(o,"node_modules",".bin"),
Fe.default.resolve(o)]).flat().concat(e[r]).filter(Boolean).join(Fe.default.delimiter);return qn(jn({},e),{[r]:n})}function Xn(e){return e===""?"$''":/^[\w/.\-@:=]+$/.
test(e)?e:"$'"+e.replace(/\\/g,"\\\\").replace(/'/g,"\\'").replace(/\f/g,"\\f").replace(/\n/g,"\\n").replace(/\r/g,"\\r").replace(/\t/g,"\\t").replace(/\v/g,"\\v").
replace(/\0/g,"\\0")+"'"}function Qn(e){return e===""?"''":/^[\w/.\-]+$/.test(e)?e:"'"+e.replace(/'/g,"''")+"'"}function Zn(e){if(typeof e=="number"){if(isNaN(e)||
e<0)throw new Error(`Invalid duration: "${e}".`);return e}let[t,r,n]=e.match(/^(\d+)(m?s?)$/)||[];if(!t)throw new Error(`Unknown duration: "${e}".`);return+r*({
s:1e3,ms:1,m:6e4}[n]||1)}var eo=e=>{let t=!1,r;return(...n)=>t?r:(t=!0,r=e(...n))},to=(e,...t)=>new Proxy(e,{get(r,n){var o,s;return(s=(o=t.find(a=>n in a))==null?
void 0:o[n])!=null?s:Reflect.get(r,n)}}),ro=e=>e.toLowerCase().replace(/([a-z])[_-]+([a-z])/g,(t,r,n)=>r+n.toUpperCase()),no=e=>e==="true"||e!=="false"&&e,oo=(e,t,r)=>{
let n=((t.pop()||"")+Ve(e)).split(r);return t.push(n.pop()),n},so=e=>{let t=[],r;for(;!(r=e.next()).done;)t.push(r.value);return t}});var ur=V((Yo,lr)=>{"use strict";var{__spreadValues:Yt,__spreadProps:io,__export:ao,__toESM:H,__toCommonJS:lo,__async:uo,__await:Ue,__asyncGenerator:co,__yieldStar:We,
__forAwait:fo}=X(),Ht={};ao(Ht,{$:()=>E,Fail:()=>C,ProcessOutput:()=>oe,ProcessPromise:()=>or,bus:()=>Po.bus,cd:()=>Ro,chalk:()=>ze.chalk,defaults:()=>Ke,kill:()=>ir,
log:()=>_e,os:()=>Co,path:()=>xo.default,ps:()=>ze.ps,quote:()=>Ut.quote,quotePowerShell:()=>Ut.quotePowerShell,resolveDefaults:()=>ar,syncProcessCwd:()=>Mo,useBash:()=>sr,
usePowerShell:()=>Lo,usePwsh:()=>ko,which:()=>ze.which,within:()=>nr});lr.exports=lo(Ht);var Jt=require("async_hooks"),Kt=require("buffer"),Ye=H(require("child_process"),
1),ho=require("events"),po=H(require("fs"),1),vo=require("os"),B=H(require("process"),1),pe=require("util"),Xt={2:"Misuse of shell builtins",126:"Invoked comman\
d cannot execute",127:"Command not found",128:"Invalid exit argument",129:"Hangup",130:"Interrupt",131:"Quit and dump core",132:"Illegal instruction",133:"Trace\
/breakpoint trap",134:"Process aborted",135:'Bus error: "access to undefined portion of memory object"',136:'Floating point exception: "erroneous arithmetic ope\
ration"',137:"Kill (terminate immediately)",138:"User-defined 1",139:"Segmentation violation",140:"User-defined 2",141:"Write to pipe with no one reading",142:"\
Signal raised by alarm",143:"Termination (request to terminate)",145:"Child process terminated, stopped (or continued*)",146:"Continue if stopped",147:"Stop exe\
cuting temporarily",148:"Terminal stop signal",149:'Background process attempting to read from tty ("in")',150:'Background process attempting to write to tty ("\
out")',151:"Urgent data available on socket",152:"CPU time limit exceeded",153:"File size limit exceeded",154:'Signal raised by timer counting virtual time: "vi\
rtual timer expired"',155:"Profiling timer expired",157:"Pollable event",159:"Bad syscall"},Qt={0:"Success",1:"Not super-user",2:"No such file or directory",3:"\
No such process",4:"Interrupted system call",5:"I/O error",6:"No such device or address",7:"Arg list too long",8:"Exec format error",9:"Bad file number",10:"No \
children",11:"No more processes",12:"Not enough core",13:"Permission denied",14:"Bad address",15:"Block device required",16:"Mount device busy",17:"File exists",
18:"Cross-device link",19:"No such device",20:"Not a directory",21:"Is a directory",22:"Invalid argument",23:"Too many open files in system",24:"Too many open f\
iles",25:"Not a typewriter",26:"Text file busy",27:"File too large",28:"No space left on device",29:"Illegal seek",30:"Read only file system",31:"Too many links",
32:"Broken pipe",33:"Math arg out of domain of func",34:"Math result not representable",35:"File locking deadlock error",36:"File or path name too long",37:"No \
record locks available",38:"Function not implemented",39:"Directory not empty",40:"Too many symbolic links",42:"No message of desired type",43:"Identifier remov\
ed",44:"Channel number out of range",45:"Level 2 not synchronized",46:"Level 3 halted",47:"Level 3 reset",48:"Link number out of range",49:"Protocol driver not \
attached",50:"No CSI structure available",51:"Level 2 halted",52:"Invalid exchange",53:"Invalid request descriptor",54:"Exchange full",55:"No anode",56:"Invalid\
 request code",57:"Invalid slot",59:"Bad font file fmt",60:"Device not a stream",61:"No data (for no delay io)",62:"Timer expired",63:"Out of streams resources",
64:"Machine is not on the network",65:"Package not installed",66:"The object is remote",67:"The link has been severed",68:"Advertise error",69:"Srmount error",70:"\
Communication error on send",71:"Protocol error",72:"Multihop attempted",73:"Cross mount point (not really error)",74:"Trying to read unreadable message",75:"Va\
lue too large for defined data type",76:"Given log. name not unique",77:"f.d. invalid for this operation",78:"Remote address changed",79:"Can   access a needed \
shared lib",80:"Accessing a corrupted shared lib",81:".lib section in a.out corrupted",82:"Attempting to link in too many libs",83:"Attempting to exec a shared \
library",84:"Illegal byte sequence",86:"Streams pipe error",87:"Too many users",88:"Socket operation on non-socket",89:"Destination address required",90:"Messag\
e too long",91:"Protocol wrong type for socket",92:"Protocol not available",93:"Unknown protocol",94:"Socket type not supported",95:"Not supported",96:"Protocol\
 family not supported",97:"Address family not supported by protocol family",98:"Address already in use",99:"Address not available",100:"Network interface is not\
 configured",101:"Network is unreachable",102:"Connection reset by network",103:"Connection aborted",104:"Connection reset by peer",105:"No buffer space availab\
le",106:"Socket is already connected",107:"Socket is not connected",108:"Can't send after socket shutdown",109:"Too many references",110:"Connection timed out",
111:"Connection refused",112:"Host is down",113:"Host is unreachable",114:"Socket already connected",115:"Connection already in progress",116:"Stale file handle",
122:"Quota exceeded",123:"No medium (in tape drive)",125:"Operation canceled",130:"Previous owner died",131:"State not recoverable"},mo="https://google.github.i\
o/zx",be=class me extends Error{static formatExitMessage(t,r,n,o,s=""){if(t==0&&r==null)return`exit code: ${t}`;let a=me.getExitCodeInfo(t),i=`${n}
    at ${o}
    exit code: ${t}${a?" ("+a+")":""}`;return r!=null&&(i+=`
    signal: ${r}`),s&&(i+=`
    details: 
${s}`),i}static formatErrorMessage(t,r){return`${t.message}
    errno: ${t.errno} (${me.getErrnoMessage(t.errno)})
    code: ${t.code}
    at ${r}`}static formatErrorDetails(t=[],r=20){if(t.length<r)return t.join(`
`);let n=t.filter(o=>/(fail|error|not ok|exception)/i.test(o));return n.length===0&&(n=t),n.slice(0,r).join(`
`)+(n.length>r?`
...`:"")}static getExitCodeInfo(t){return Xt[t]}static getCallerLocationFromString(t="unknown"){let r=t.split(/^\s*(at\s)?/m).filter(s=>s?.includes(":")),n=r.findIndex(
s=>s.includes("Proxy.set")),o=n<0?n:n+2;return(r.find(s=>s.includes("file://"))||r[o]||t).trim()}static getCallerLocation(t=new Error("zx error")){return me.getCallerLocationFromString(
t.stack)}static getErrnoMessage(t){return Qt[-t]||"Unknown error"}};be.DOCS_URL=mo;be.EXIT_CODES=Xt;be.ERRNO_CODES=Qt;var C=be,j=re(),go=require("util"),_o=H(require("process"),
1),bo={cmd({cmd:e}){return Oo(e)},stdout({data:e}){return e},stderr({data:e}){return e},custom({data:e}){return e},fetch(e){let t=e.init?" "+(0,go.inspect)(e.init):
"";return`$ ${j.chalk.greenBright("fetch")} ${e.url}${t}
`},cd(e){return`$ ${j.chalk.greenBright("cd")} ${e.dir}
`},retry(e){let t=`Attempt: ${e.attempt}${e.total==1/0?"":`/${e.total}`}`,r=e.delay>0?`; next in ${e.delay}ms`:"";return`${j.chalk.bgRed.white(" FAIL ")} ${t}${r}\

`},end(){return""},kill(){return""}},_e=function(e){var t;if(!e.verbose)return;let r=_e.output||_o.default.stderr,n=((t=_e.formatters)==null?void 0:t[e.kind])||
bo[e.kind];n&&r.write(n(e))},wo=/\s/,yo="()[]{}<>;:+|&=",So="|&;><",Eo=new Set(["if","then","else","elif","fi","case","esac","for","select","while","until","do",
"done","in","EOF"]);function Oo(e){if(e==null)return j.chalk.grey("undefined");let t="",r="$ ",n="",o="",s=0,a=()=>{let i=n.trim();i?(s++,o==="syntax"?(So.includes(
i)&&(s=0),r+=j.chalk.red(n)):o==="quote"||o==="dollar"?r+=j.chalk.yellowBright(n):Eo.has(i)?r+=j.chalk.cyanBright(n):s===1?(r+=j.chalk.greenBright(n),s=1/0):r+=
n):r+=n,o="",n=""};for(let i of[...e])if(t)n+=i,i===t&&(a(),t="");else if(i==="$")a(),o="dollar",n+=i,a();else if(i==="'"||i==='"')a(),o="quote",t=i,n+=i;else if(wo.
test(i))a(),n+=i;else if(yo.includes(i)){let u=i==="="&&s===0;u&&(s=1),a(),o="syntax",n+=i,a(),u&&(s=-1)}else n+=i;return a(),r.replaceAll(`
`,j.chalk.reset(`
> `))+`
`}var N=re(),y=Ge(),Po=Pe(),xo=H(require("path"),1),Co=H(require("os"),1),ze=re(),Ut=Ge(),Y=Symbol("processCwd"),Je=Symbol("syncExec"),Zt=Symbol("end-piped-from"),
er=Symbol("snapshot"),zt=Kt.Buffer.from(vo.EOL),Wt=10,tr=/\r?\n/,He="SIGTERM",To="ZX_",Io=new Set(["cwd","preferLocal","detached","verbose","quiet","timeout","t\
imeoutSignal","killSignal","prefix","postfix","shell"]),Ke=ar({[Y]:B.default.cwd(),[Je]:!1,verbose:!1,env:B.default.env,sync:!1,shell:!0,stdio:"pipe",nothrow:!1,
quiet:!1,detached:!1,preferLocal:!1,spawn:Ye.default.spawn,spawnSync:Ye.default.spawnSync,log:_e,kill:ir,killSignal:He,timeoutSignal:He}),rr=new Jt.AsyncLocalStorage,
ge=()=>rr.getStore()||Ke,Ao=(e,t,r,n)=>io(Yt({},e),{ac:e.ac||new AbortController,ee:new ho.EventEmitter,from:t,pieces:r,args:n,cmd:""});function nr(e){return rr.
run(Yt({},ge()),e)}var E=new Proxy(function(e,...t){let r=ge();if(!Array.isArray(e))return function(...a){return nr(()=>Object.assign(E,r,e).apply(this,a))};let n=C.
getCallerLocation(),o=()=>o[er]=Ao(r,n,e,t),s=new or(o);return s.isHalted()||s.run(),s.sync?s.output:s},{set(e,t,r){return Reflect.set(t in Function.prototype?e:
ge(),t==="sync"?Je:t,r)},get(e,t){return t==="sync"?E({sync:!0}):Reflect.get(t in Function.prototype?e:ge(),t)}}),q=class M extends Promise{constructor(t){let r,
n;super((...s)=>{[r=y.noop,n=y.noop]=s,t(...s)}),this._stage="initial",this._id=(0,y.randomId)(),this._piped=!1,this._stdin=new N.VoidStream,this._zurk=null,this.
_output=null,this.writable=!0;let o=t[er];if(o){this._snapshot=o,this._resolve=r,this._reject=n,o.halt&&(this._stage="halted");try{this.build()}catch(s){this.finalize(
oe.fromError(s),!0)}}else M.disarm(this)}build(){let t=this._snapshot;if(!t.shell)throw new C(`No shell is available: ${C.DOCS_URL}/shell`);if(!t.quote)throw new C(
`No quote function is defined: ${C.DOCS_URL}/quotes`);if(t.pieces.some(r=>r==null))throw new C(`Malformed command at ${t.from}`);t.cmd=(0,N.buildCmd)(t.quote,t.
pieces,t.args)}run(){var t,r;if(M.bus.runBack(this),this.isRunning()||this.isSettled())return this;this._stage="running";let n=this,o=n._snapshot,s=n.id,a=o.cwd||
o[Y];if(o.preferLocal){let i=o.preferLocal===!0?[o.cwd,o[Y]]:[o.preferLocal].flat();o.env=(0,y.preferLocalBin)(o.env,...i)}return this._zurk=(0,N.exec)({cmd:n.fullCmd,
cwd:a,input:(r=(t=o.input)==null?void 0:t.stdout)!=null?r:o.input,stdin:n._stdin,sync:n.sync,signal:n.signal,shell:(0,y.isString)(o.shell)?o.shell:!0,id:s,env:o.
env,spawn:o.spawn,spawnSync:o.spawnSync,store:o.store,stdio:o.stdio,detached:o.detached,ee:o.ee,run(i,u){var l,h;(h=(l=n.cmd).then)!=null&&h.call(l,d=>{o.cmd=d,
u.cmd=n.fullCmd,i()},d=>n.finalize(oe.fromError(d)))||i()},on:{start:()=>{o.log({kind:"cmd",cmd:o.cmd,cwd:a,verbose:n.isVerbose(),id:s}),n.timeout(o.timeout,o.timeoutSignal)},
stdout:i=>{o.log({kind:"stdout",data:i,verbose:!n._piped&&n.isVerbose(),id:s})},stderr:i=>{o.log({kind:"stderr",data:i,verbose:!n.isQuiet(),id:s})},end:(i,u)=>{
let{error:l,status:h,signal:d,duration:c,ctx:{store:f}}=i,{stdout:v,stderr:T}=f,{cause:w,exitCode:g,signal:S}=n._breakerData||{},b=S??d,p=g??h,_=w??l,x=new oe({
code:p,signal:b,error:_,duration:c,store:f,from:o.from});o.log({kind:"end",signal:b,exitCode:p,duration:c,error:_,verbose:n.isVerbose(),id:s}),v.length&&(0,y.getLast)(
(0,y.getLast)(v))!==Wt&&u.on.stdout(zt,u),T.length&&(0,y.getLast)((0,y.getLast)(T))!==Wt&&u.on.stderr(zt,u),n.finalize(x)}}}),this}break(t,r,n){this.isRunning()&&
(this._breakerData={exitCode:t,signal:r,cause:n},this.kill(r))}finalize(t,r=!1){if(!this.isSettled())if(this._output=t,M.bus.unpipeBack(this),t.ok||this.isNothrow())
this._stage="fulfilled",this._resolve(t);else{if(this._stage="rejected",r)throw this._resolve(t),t.cause||t;if(this._reject(t),this.sync)throw t}}abort(t){if(this.
isSettled())throw new C("Too late to abort the process.");if(this.signal!==this.ac.signal)throw new C("The signal is controlled by another process.");if(!this.child)
throw new C("Trying to abort a process without creating one.");this.ac.abort(t)}kill(t){if(this.isSettled())throw new C("Too late to kill the process.");if(!this.
child)throw new C("Trying to kill a process without creating one.");if(!this.pid)throw new C("The process pid is undefined.");return E.kill(this.pid,t||this._snapshot.
killSignal||E.killSignal)}stdio(t,r="pipe",n="pipe"){return this._snapshot.stdio=Array.isArray(t)?t:[t,r,n],this}nothrow(t=!0){return this._snapshot.nothrow=t,this}quiet(t=!0){
return this._snapshot.quiet=t,this}verbose(t=!0){return this._snapshot.verbose=t,this}timeout(t=0,r=E.timeoutSignal){if(this.isSettled())return this;let n=this.
_snapshot;return n.timeout=(0,y.parseDuration)(t),n.timeoutSignal=r,this._timeoutId&&clearTimeout(this._timeoutId),n.timeout&&this.isRunning()&&(this._timeoutId=
setTimeout(()=>this.kill(n.timeoutSignal),n.timeout),this.finally(()=>clearTimeout(this._timeoutId)).catch(y.noop)),this}halt(){return this}get id(){return this.
_id}get pid(){var t;return(t=this.child)==null?void 0:t.pid}get cmd(){return this._snapshot.cmd}get fullCmd(){let{prefix:t="",postfix:r="",cmd:n}=this._snapshot;
return t+n+r}get child(){var t;return(t=this._zurk)==null?void 0:t.child}get stdin(){var t;return(t=this.child)==null?void 0:t.stdin}get stdout(){var t;return(t=
this.child)==null?void 0:t.stdout}get stderr(){var t;return(t=this.child)==null?void 0:t.stderr}get exitCode(){return this.then(t=>t.exitCode,t=>t.exitCode)}get signal(){
return this._snapshot.signal||this.ac.signal}get ac(){return this._snapshot.ac}get output(){return this._output}get stage(){return this._stage}get sync(){return this.
_snapshot[Je]}get[Symbol.toStringTag](){return"ProcessPromise"}[Symbol.toPrimitive](){return this.toString()}json(){return this.then(t=>t.json())}text(t){return this.
then(r=>r.text(t))}lines(t){return this.then(r=>r.lines(t))}buffer(){return this.then(t=>t.buffer())}blob(t){return this.then(r=>r.blob(t))}isQuiet(){return this.
_snapshot.quiet}isVerbose(){return this._snapshot.verbose&&!this.isQuiet()}isNothrow(){return this._snapshot.nothrow}isHalted(){return this.stage==="halted"&&!this.
sync}isSettled(){return!!this.output}isRunning(){return this.stage==="running"}get pipe(){let t=s=>this._pipe.bind(this,s),r=t("stdout"),n=t("stderr"),o=t("stda\
ll");return Object.assign(r,{stdout:r,stderr:n,stdall:o})}unpipe(t){return M.bus.unpipe(this,t),this}_pipe(t,r,...n){if((0,y.isString)(r))return this._pipe(t,po.
default.createWriteStream(r));if((0,y.isStringLiteral)(r,...n))return this._pipe(t,E({halt:!0,signal:this.signal})(r,...n));let o=r instanceof M;if(o&&r.isSettled())
throw new C("Cannot pipe to a settled process.");if(!o&&r.writableEnded)throw new C("Cannot pipe to a closed stream.");this._piped=!0,M.bus.pipe(this,r);let{ee:s}=this.
_snapshot,a=this.output,i=new N.VoidStream,u=()=>{var c;return!!((c=M.bus.refs.get(this))!=null&&c.has(r))},l=()=>{u()&&setImmediate(()=>{M.bus.unpipe(this,r),M.
bus.sources(r).length===0&&i.end()})},h=()=>{for(let c of this._zurk.store[t])i.write(c)},d=()=>{a&&(o&&!a.ok&&r.break(a.exitCode,a.signal,a.cause),h(),l())};if(!a){
let c=f=>u()&&i.write(f);s.once(t,()=>{h(),s.on(t,c)}).once("end",()=>{s.removeListener(t,c),l()})}return o?(i.pipe(r._stdin),this.isHalted()?s.once("start",()=>r.
run()):(r.run(),this.catch(c=>r.break(c.exitCode,c.signal,c.cause))),d(),r):(i.once("end",()=>r.emit(Zt)).pipe(r),d(),M.promisifyStream(r,this))}then(t,r){return super.
then(t,r)}catch(t){return super.catch(t)}[Symbol.asyncIterator](){return co(this,null,function*(){let t=[],r=this._snapshot.delimiter||E.delimiter||tr;for(let i of this.
_zurk.store.stdout)yield*We((0,y.getLines)(i,t,r));try{for(var n=fo(this.stdout||[]),o,s,a;o=!(s=yield new Ue(n.next())).done;o=!1){let i=s.value;yield*We((0,y.
getLines)(i,t,r))}}catch(i){a=[i]}finally{try{o&&(s=n.return)&&(yield new Ue(s.call(n)))}finally{if(a)throw a[0]}}t[0]&&(yield t[0]),yield new Ue(this)})}emit(t,...r){
return this}on(t,r){return this._stdin.on(t,r),this}once(t,r){return this._stdin.once(t,r),this}write(t,r,n){return this._stdin.write(t,r,n),this}end(t,r){return this.
_stdin.end(t,r),this}removeListener(t,r){return this._stdin.removeListener(t,r),this}static disarm(t,r=!0){Object.getOwnPropertyNames(M.prototype).forEach(n=>{if(!(n in
Promise.prototype)){if(!r){Reflect.deleteProperty(t,n);return}Object.defineProperty(t,n,{configurable:!0,get(){throw new C("Inappropriate usage. Apply $ instead\
 of direct instantiation.")}})}})}};q.bus={refs:new Map,streams:new WeakMap,pipe(e,t){(this.refs.get(e)||this.refs.set(e,new Set).get(e)).add(t)},unpipe(e,t){let r=this.
refs.get(e);r&&(t&&r.delete(t),!r.size&&(this.refs.delete(e),e._piped=!1))},unpipeBack(e,t){if(t)return this.unpipe(t,e);for(let r of this.refs.keys())this.unpipe(
r,e)},runBack(e){var t;for(let r of this.sources(e))r instanceof q?r.run():(t=this.streams.get(r))==null||t.run()},sources(e){let t=[];for(let[r,n]of this.refs.
entries())n.has(e)&&t.push(r);return t}};q.promisifyStream=(e,t)=>{let r=q.bus.streams.get(e)||(0,y.proxyOverride)(e,{then(n=y.noop,o=y.noop){return new Promise(
(s,a)=>{let i=()=>s(n((0,y.proxyOverride)(e,t.output)));e.once("error",u=>a(o(u))).once("finish",i).once(Zt,i)})},run(){t.run()},pipe(...n){let o=e.pipe.apply(e,
n);return o instanceof q?o:q.promisifyStream(o,t)}});return q.bus.streams.set(e,r),r};var or=q,se=class W extends Error{constructor(t=null,r=null,n="",o="",s="",a="",i=0,u=null,l="",h={
stdout:[n],stderr:[o],stdall:[s]}){super(a);let d=t!==null&&typeof t=="object"?t:{code:t,signal:r,duration:i,error:u,from:l,store:h};Object.defineProperties(this,
{_dto:{value:d,enumerable:!1},cause:{get(){return d.error},enumerable:!1},stdout:{get:(0,y.once)(()=>(0,y.bufArrJoin)(d.store.stdout))},stderr:{get:(0,y.once)(()=>(0,y.
bufArrJoin)(d.store.stderr))},stdall:{get:(0,y.once)(()=>(0,y.bufArrJoin)(d.store.stdall))},message:{get:(0,y.once)(()=>d.error||a?W.getErrorMessage(d.error||new Error(
a),d.from):W.getExitMessage(d.code,d.signal,this.stderr,d.from,this.stderr.trim()?"":W.getErrorDetails(this.lines())))}})}get exitCode(){return this._dto.code}get signal(){
return this._dto.signal}get duration(){return this._dto.duration}get[Symbol.toStringTag](){return"ProcessOutput"}get ok(){return!this._dto.error&&this.exitCode===
0}json(){return JSON.parse(this.stdall)}buffer(){return Kt.Buffer.from(this.stdall)}blob(t="text/plain"){if(!globalThis.Blob)throw new C("Blob is not supported \
in this environment. Provide a polyfill");return new Blob([this.buffer()],{type:t})}text(t="utf8"){return t==="utf8"?this.toString():this.buffer().toString(t)}lines(t){
return(0,y.iteratorToArray)(this[Symbol.iterator](t))}toString(){return this.stdall}valueOf(){return this.stdall.trim()}[Symbol.toPrimitive](){return this.valueOf()}*[Symbol.
iterator](t=this._dto.delimiter||E.delimiter||tr){let r=[];for(let n of this._dto.store.stdall)yield*We((0,y.getLines)(n,r,t));r[0]&&(yield r[0])}[pe.inspect.custom](){
let t=W.getExitCodeInfo(this.exitCode);return`ProcessOutput {
  stdout: ${N.chalk.green((0,pe.inspect)(this.stdout))},
  stderr: ${N.chalk.red((0,pe.inspect)(this.stderr))},
  signal: ${(0,pe.inspect)(this.signal)},
  exitCode: ${(this.ok?N.chalk.green:N.chalk.red)(this.exitCode)}${t?N.chalk.grey(" ("+t+")"):""},
  duration: ${this.duration}
}`}static fromError(t){let r=new W;return r._dto.error=t,r}};se.getExitMessage=C.formatExitMessage;se.getErrorMessage=C.formatErrorMessage;se.getErrorDetails=C.
formatErrorDetails;se.getExitCodeInfo=C.getExitCodeInfo;var oe=se,sr=()=>Xe("bash",!1),ko=()=>Xe("pwsh"),Lo=()=>Xe("powershell.exe");function Xe(e,t=!0){E.shell=
N.which.sync(e),E.prefix=t?"":"set -euo pipefail;",E.postfix=t?"; exit $LastExitCode":"",E.quote=t?y.quotePowerShell:y.quote}try{let{shell:e,prefix:t,postfix:r}=E;
sr(),(0,y.isString)(e)&&(E.shell=e),(0,y.isString)(t)&&(E.prefix=t),(0,y.isString)(r)&&(E.postfix=r)}catch{}var ve;function Mo(e=!0){ve=ve||(0,Jt.createHook)({init:ne,
before:ne,promiseResolve:ne,after:ne,destroy:ne}),e?ve.enable():ve.disable()}function ne(){E[Y]!=B.default.cwd()&&B.default.chdir(E[Y])}function Ro(e){e instanceof
oe&&(e=e.toString().trim()),E.log({kind:"cd",dir:e,verbose:!E.quiet&&E.verbose}),B.default.chdir(e),E[Y]=B.default.cwd()}function ir(e){return uo(this,arguments,
function*(t,r=E.killSignal||He){if(typeof t!="number"&&typeof t!="string"||!/^\d+$/.test(t))throw new C(`Invalid pid: ${t}`);if(E.log({kind:"kill",pid:t,signal:r,
verbose:!E.quiet&&E.verbose}),!(B.default.platform==="win32"&&(yield new Promise(n=>{Ye.default.exec(`taskkill /pid ${t} /t /f`,o=>n(!o))})))){for(let n of yield N.
ps.tree({pid:t,recursive:!0}))try{B.default.kill(+n.pid,r)}catch{}try{B.default.kill(-t,r)}catch{try{B.default.kill(+t,r)}catch{}}}})}function ar(e=Ke,t=To,r=B.
default.env,n=Io){return Object.entries(r).reduce((o,[s,a])=>{if(a&&s.startsWith(t)){let i=(0,y.toCamelCase)(s.slice(t.length)),u=(0,y.parseBool)(a);n.has(i)&&(o[i]=
u)}return o},e)}});module.exports={get minimist(){return tt()},get $(){return ur().$}};
return libraries.loaded = module.exports;
}

// The build puts this line at the very end of the file: a download that was cut short runs nothing.
main();
