// Ready? What is tried while everything still runs, before anything is stopped.
// Runs the settings' own `before`; otherwise only tries, and leaves nothing behind.
import { Problem, named, say, size, warn } from './say.ts';
import { change, failure, goOn } from './shell.ts';
import { freeBytes } from './files.ts';
import { lastGoodRun } from './history.ts';
import type { Settings } from './settings.ts';
import { borgVersion, isRemote, tryRepository } from './borg.ts';
import { tryConnection } from './storage.ts';
import { howRead } from './ways.ts';
import { noteCopies, tryReflinks, waysIn } from './snapshot.ts';
import type { Plan } from './plan.ts';

/** Run the settings' `before`, if there is one. Throws Problem when it fails. */
export async function runBefore(settings: Settings): Promise<void> {
  if (settings.before.length === 0) return;
  const done = await change(settings.before, { seconds: 600, toTranscript: true }); // it may leave a daemon behind
  goOn(); // it may have ended because we were asked to
  if (done.code !== 0) throw failure('the `before` command failed', done, 'mend it, or take it out of the settings; nothing was stopped');
}

/** The storage, the key and this server's borg are tried while everything still runs. Returns what they are. Throws Problem: nothing was stopped. */
export async function tryStorage(settings: Settings): Promise<string> {
  const version = await borgVersion();
  const { encryption } = await tryRepository(settings).catch(async (error) => {
    if (isRemote(settings) && error.facts?.ran) await tryConnection(settings); // when it is ssh that fails, what ssh says is the better story
    throw error;
  });
  return `borg ${version}, ${encryption}`;
}

/** The free space, and whether the file systems can copy on write, are tried while everything still runs, too. Throws Problem: nothing was stopped. */
export async function tryThisMachine(settings: Settings, plan: Plan): Promise<void> {
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
export const roomNeeded = (stateFolder: string): number => 64e6 + 600 * (lastGoodRun(stateFolder)?.cold?.files ?? 0);
