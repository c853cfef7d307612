// The outside clock: how long a database is away as one of its users sees it. One session is held open; when the server cuts it,
// the clock runs, and a new session is tried every few milliseconds until the server lets it in and is ready for a query. The same
// for every method, whatever that method says of itself. A process of its own, so that nothing the bench does delays it.
import { fork } from 'node:child_process';
import net from 'node:net';
import { fileURLToPath } from 'node:url';
import { nextMessage } from './bench-measure.ts';
import { repositoryRoot } from './script.ts';

const TRY_EVERY_MS = 4;
const ownFile = fileURLToPath(import.meta.url);

export type Clock = { end: () => Promise<{ downSeconds: number; times: number }> };

/** Watch the cluster behind a socket until end(), which tells for how long, and how many times, nobody could get in. */
export async function watchClock(socketFile: string, role: string): Promise<Clock> {
  const child = fork(ownFile, [socketFile, role], { cwd: repositoryRoot });
  await nextMessage(child); // it has its session
  return { end: async () => { const told = nextMessage(child); child.send('end'); return told; } };
}

/** Ask for a session; `ready` when the server is ready for a query, `over` when it refuses, or ends it later. Called once each at most. */
function openSession(socketFile: string, role: string, ready: () => void, over: () => void): void {
  const words = Buffer.from(`user\0${role}\0database\0postgres\0application_name\0psql\0\0`), head = Buffer.alloc(8);
  head.writeInt32BE(8 + words.length, 0);
  head.writeInt32BE(196608, 4); // protocol 3.0
  let isReady = false, isOver = false, unread: Buffer = Buffer.alloc(0);
  const end = () => { line.destroy(); if (!isOver) { isOver = true; over(); } };
  const line = net.connect(socketFile, () => line.write(Buffer.concat([head, words]))).on('error', end).on('close', end).on('data', (piece: Buffer) => {
    unread = Buffer.concat([unread, piece]);
    while (unread.length >= 5 && unread.length >= 1 + unread.readInt32BE(1)) { // messages: a letter, a length, and so on
      const letter = String.fromCharCode(unread[0]!);
      unread = unread.subarray(1 + unread.readInt32BE(1));
      if (letter === 'E') return end(); // "is shutting down", "is starting up", "terminated by administrator"
      if (letter === 'Z' && !isReady) { isReady = true; ready(); }
    }
  });
}

function runClock(socketFile: string, role: string): void {
  const now = () => Number(process.hrtime.bigint()) / 1e9;
  let downSince = 0, downSeconds = 0, times = 0, hadOne = false, wanted = false;
  const tell = () => { process.send!({ downSeconds, times }); setTimeout(() => process.exit(0), 50); };
  const hold = () => openSession(socketFile, role, () => {
    if (!hadOne) process.send!('watching');
    hadOne = true;
    if (downSince > 0) { downSeconds += now() - downSince; times++; downSince = 0; }
    if (wanted) tell();
  }, () => {
    if (hadOne && downSince === 0) downSince = now();
    setTimeout(hold, TRY_EVERY_MS);
  });
  process.on('message', () => { wanted = true; if (downSince === 0) tell(); });
  process.on('disconnect', () => process.exit(0));
  hold();
}

if (process.argv[1] === ownFile) runClock(process.argv[2]!, process.argv[3]!);
