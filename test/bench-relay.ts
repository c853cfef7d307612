// A slow line: a relay in front of the storage's sshd that holds every byte back for half a round trip and lets through no more
// than so many bits a second, each way, all connections together. A new connection first costs one round trip, as TCP's own handshake
// does. It counts what it carries, too; without delay and rate it only counts. A process of its own. (The kernel's netem is not
// everywhere; this needs nothing but Node.)
import { execFileSync, fork } from 'node:child_process';
import fs from 'node:fs';
import net from 'node:net';
import { fileURLToPath } from 'node:url';
import { nextMessage } from './bench-measure.ts';
import { repositoryRoot } from './script.ts';

const ownFile = fileURLToPath(import.meta.url);
const SOCKET_BUFFERS = ['/proc/sys/net/ipv4/tcp_rmem', '/proc/sys/net/ipv4/tcp_wmem']; // of our own network namespace, as its interface lo is

export type Line = { port: number; carriedBytes: () => Promise<{ up: number; down: number }>; destroy: () => void };

/** Lay a line to a port of this machine. roundTripMs and megabits 0 = as fast as it goes. "up" is away from who connects. */
export async function layLine(target: number, roundTripMs = 0, megabits = 0): Promise<Line> {
  const before = SOCKET_BUFFERS.map((file) => fs.readFileSync(file, 'utf8'));
  const setPacketBytes = (bytes: number) => execFileSync('ip', ['link', 'set', 'lo', 'mtu', String(bytes)]);
  if (megabits > 0) {
    SOCKET_BUFFERS.forEach((file) => fs.writeFileSync(file, '4096 65536 131072')); // or megabytes hide in the kernel before the relay
    setPacketBytes(1500); // lo's packets of 64 KB do not fit into such buffers
  }
  const child = fork(ownFile, [target, roundTripMs, megabits].map(String), { cwd: repositoryRoot });
  const port: number = await nextMessage(child);
  return {
    port,
    carriedBytes: () => { const told = nextMessage(child); child.send('count'); return told; },
    destroy: () => {
      child.kill();
      SOCKET_BUFFERS.forEach((file, at) => fs.writeFileSync(file, before[at]!));
      if (megabits > 0) setPacketBytes(65_536);
    },
  };
}

/** One direction: bytes wait for their turn on the line, then travel for half a round trip. The source is paused while too many are on their way. */
function makeDirection(roundTripMs: number, megabits: number) {
  const bytesPerMs = megabits > 0 ? megabits * 1e6 / 8 / 1000 : Infinity, roomBytes = megabits > 0 ? bytesPerMs * roundTripMs + 65536 : 1 << 20;
  let freeAt = 0, carried = 0;
  const pump = (from: net.Socket, to: net.Socket) => {
    const onTheWay: { at: number; deliver: () => void }[] = []; // in the order of departure, which is that of arrival
    let bytesOnTheWay = 0, isFull = false, timer: NodeJS.Timeout | null = null;
    const goOn = () => { if (bytesOnTheWay <= roomBytes && !isFull) from.resume(); };
    const arrive = () => {
      timer = null;
      while (onTheWay.length > 0 && onTheWay[0]!.at <= performance.now()) onTheWay.shift()!.deliver();
      if (onTheWay.length > 0) timer ??= setTimeout(arrive, Math.ceil(onTheWay[0]!.at - performance.now()));
    };
    const depart = (bytes: number, deliver: () => void) => {
      freeAt = Math.max(performance.now(), freeAt) + bytes / bytesPerMs;
      onTheWay.push({ at: freeAt + roundTripMs / 2, deliver });
      if (timer === null) arrive();
    };
    from.on('data', (piece: Buffer) => {
      carried += piece.length;
      bytesOnTheWay += piece.length;
      if (bytesOnTheWay > roomBytes) from.pause();
      depart(piece.length, () => {
        bytesOnTheWay -= piece.length;
        if (!to.destroyed && !to.write(piece)) { isFull = true; from.pause(); to.once('drain', () => { isFull = false; goOn(); }); }
        goOn();
      });
    });
    from.on('end', () => depart(0, () => to.end())).on('error', () => to.destroy()).on('close', () => depart(0, () => to.destroySoon()));
  };
  return { pump, carried: () => carried };
}

function runLine(target: number, roundTripMs: number, megabits: number): void {
  const up = makeDirection(roundTripMs, megabits), down = makeDirection(roundTripMs, megabits);
  const server = net.createServer({ allowHalfOpen: true, pauseOnConnect: true, noDelay: true }, (near) => {
    const connect = () => {
      const far = net.connect({ port: target, host: '127.0.0.1', allowHalfOpen: true, noDelay: true });
      up.pump(near, far);
      down.pump(far, near);
      near.resume();
    };
    if (roundTripMs > 0) setTimeout(connect, roundTripMs); else connect();
  });
  server.listen(0, '127.0.0.1', () => process.send!((server.address() as net.AddressInfo).port));
  process.on('message', () => process.send!({ up: up.carried(), down: down.carried() }));
  process.on('disconnect', () => process.exit(0));
}

if (process.argv[1] === ownFile) runLine(Number(process.argv[2]), Number(process.argv[3]), Number(process.argv[4]));
