// The drill: a restore, rehearsed. Extracts the clusters of an archive into a scratch folder, starts each in the sandbox, checks it, measures, and
// throws it away. Changes the scratch folder (which it removes, whatever happens; what a killed drill left, the next run, drill or `recover`
// removes) and adds a line to the history. The running clusters are never touched, and a nightly run neither waits for it nor sees it: it has its own
// lock, its own borg cache, reads without borg's lock, and everything it starts is nice to others.
import fs from 'node:fs';
import path from 'node:path';
import { randomUUID } from 'node:crypto';
import { Problem, answer, mode, openTranscript, sayBlock, sayError, warn, warnings } from './say.ts';
import { SANDBOX_MARK, endRun } from './processes.ts';
import { remember } from './history.ts';
import type { HistoryLine } from './history.ts';
import { refuseIfOthersCanChange } from './check.ts';
import type { Settings } from './settings.ts';
import { tell } from './tell.ts';
import { takeLock } from './ledger.ts';
import { WORDS } from './words.ts';
import { dockerAnyway } from './sandbox.ts';
import { Superseded, rehearse } from './rehearsal.ts';
import { certificateText, failedChecks } from './certificate.ts';
import type { Certificate } from './certificate.ts';

const SCRATCH = 'cold-backup-drill-'; // and the drill's id
const LOCK = 'drill.lock';

const scratchOf = (settings: Settings) => settings.drill.folder || path.join(settings.stateFolder, 'drill');

/** Remove what drills left that were killed: processes, containers, files. Does nothing while one is under way. */
export async function sweepDrills(settings: Settings): Promise<void> {
  const scratch = scratchOf(settings), factsOf = (name: string) => fs.lstatSync(path.join(scratch, name), { throwIfNoEntry: false });
  const isLeftover = (name: string) => name.startsWith(SCRATCH) && factsOf(name)?.isDirectory() && factsOf(name)?.uid === process.getuid?.(); // in /var/tmp others make such names, too
  const left = () => (fs.existsSync(scratch) ? fs.readdirSync(scratch).filter(isLeftover) : []);
  if (left().length === 0) return;
  const lock = takeLock(settings.stateFolder, 0, LOCK);
  if (lock === null) return;
  for (const name of left()) await removeScratch(path.join(scratch, name));
  fs.closeSync(lock);
}

// What cannot be removed is told, and keeps neither a night nor a certificate from its end: the next one tries again.
async function removeScratch(folder: string): Promise<void> {
  await endRun(path.basename(folder).slice(SCRATCH.length), ['SIGKILL']); // a borg that still extracts
  const name = path.basename(folder), left = await dockerAnyway('ps', '--all', '--quiet', `--filter=label=${SANDBOX_MARK}`, `--filter=name=${name}`);
  if (left.out.trim()) await dockerAnyway('rm', '--force', name);
  await fs.promises.rm(folder, { recursive: true, force: true, maxRetries: 3 }).catch((error) => warn(`what a drill left cannot be removed: ${error.message}`));
}

/** `drill [ARCHIVE|latest]`: rehearse a restore. Returns 0 proven, 1 with warnings, 2 not proven. Throws Problem: 75 another drill is under way. */
export async function drill(settings: Settings, server: string, [name = 'latest']: string[], full: boolean): Promise<number> {
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
  let certificate: Certificate | null = null, trouble: unknown = null;
  try {
    const attempt = (archive: string) => rehearse(settings, { ...settings, stateFolder: folder }, server, archive, id, folder, full, startedAt);
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
async function endDrill(settings: Settings, certificate: Certificate | null, trouble: unknown, startedAt: Date, server: string): Promise<number> {
  const asked = trouble instanceof Problem ? trouble.facts.exitCode ?? 2 : 2;
  if (trouble) sayError(trouble);
  if (certificate) (certificate.proven ? sayBlock : (text: string) => answerUnlessJson(text))(certificateText(certificate));
  const exitCode = !certificate ? asked : !certificate.proven ? 2 : warnings.length > 0 ? 1 : 0;
  const error = trouble instanceof Error ? trouble.message : certificate && !certificate.proven ? `not proven: ${failedChecks(certificate)}` : '';
  const line: HistoryLine = { kind: 'drill', startedAt: startedAt.toISOString(), endedAt: new Date().toISOString(), outcome: exitCode === 0 ? 'good' : exitCode === 1 ? 'warning' : 'failed', exitCode, server: certificate?.server ?? server,
    archive: certificate?.archive ?? '', downSeconds: 0, startSeconds: 0, parts: [], warm: null, cold: null, snapshot: '', warnings: [...warnings], error, ...(certificate ? { certificate } : {}) };
  const words = WORDS[settings.language].message;
  if (exitCode < 128) { // a drill that was called off says nothing about an archive
    try {
      remember(settings.stateFolder, line);
    } catch (full: any) {
      warn(`the history cannot be written: ${full.message}`);
    }
    if (exitCode >= 2) await tell(settings, { server: line.server, outcome: 'failed', subject: `${words.outcome.failed}: ${line.server}: ${words.drill(line.archive || words.newest, error)}`, body: certificate ? certificateText(certificate) : error, logTail: '', line });
  }
  if (mode.json && certificate) answer(JSON.stringify(certificate, null, 1));
  else if (mode.json) answer(JSON.stringify({ archive: line.archive, proven: false, checks: [], restoreSeconds: null, exitCode, error }));
  return exitCode;
}

const answerUnlessJson = (text: string) => (mode.json ? sayBlock(text) : answer(text)); // not proven: shown with --quiet, too
