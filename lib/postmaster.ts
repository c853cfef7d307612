// What a PostgreSQL cluster does at this moment, and in which state its files are.
// Read from processes, from postmaster.pid and from the bytes of the control file, and asked of the socket itself; no client
// program and no password is needed. Nothing else is believed: `systemctl stop postgresql` returns 0 while it runs, and
// "shut down" is written while the postmaster still waits for its archiver. Only looks.
import fs from 'node:fs';
import { connect } from 'node:net';
import path from 'node:path';
import { Problem, named } from './say.ts';
import { readPlainFile } from './files.ts';
import { OWN_USER, SANDBOX_MARK, deviceAndInode, ownerOf, ownerOfFile, procFile, processes, workingFolder } from './processes.ts';
import type { State } from './units.ts';

const SERVER_PROGRAMS = new Set(['postgres', 'postmaster', 'edb-postgres']);
const STATES = ['starting up', 'shut down', 'shut down in recovery', 'shutting down', 'in crash recovery', 'in archive recovery', 'in production'];

/**
 * The postmasters that run, but for those of rehearsals: the process whose working directory is a data directory and whose number stands in postmaster.pid.
 * Anybody may call a program `postgres`, and its folder a cluster: PostgreSQL itself insists on an owner that is not root and on a data directory of that
 * owner (miscinit.c, checkDataDir), so who does not comply is none, and nothing here runs anything of it.
 */
export function runningPostmasters(): { pid: number; folder: string }[] {
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
export function versionOf(dataDirectory: string): string {
  try {
    return /^\d+(\.\d+)?$/.exec(readPlainFile(path.join(dataDirectory, 'PG_VERSION')).toString().trim())?.[0] ?? '';
  } catch {
    return '';
  }
}

// postmaster.pid: pid, data directory, start, port, socket folder, address, shared memory, status ("ready" since 10).
export function pidFile(dataDirectory: string): string[] {
  try {
    return readPlainFile(path.join(dataDirectory, 'postmaster.pid')).toString().split('\n').map((line) => line.trim());
  } catch {
    return [];
  }
}

/** What a cluster does now, by its processes and its postmaster.pid. 'moving': starting or stopping. */
export function clusterState(dataDirectory: string): State {
  if (!isUsed(dataDirectory)) return 'stopped';
  return /^(ready|standby)$/.test(pidFile(dataDirectory)[7] ?? '') ? 'running' : 'moving';
}

// Every PostgreSQL process, and what its archive_command started, has the data directory as its working directory, in a
// container too. The shell of somebody else who looks around there does not count; that of its owner does, for nobody can know. '' = nobody uses it.
export function userOf(dataDirectory: string): string {
  const folder = deviceAndInode(dataDirectory);
  if (folder === '') return '';
  const { uid } = fs.statSync(dataDirectory);
  const one = processes().find(({ pid, program }) => (SERVER_PROGRAMS.has(program) || ownerOf(pid) === uid) && workingFolder(pid) === folder);
  return one ? `process ${one.pid} (${named(one.program)})` : '';
}

export const isUsed = (dataDirectory: string): boolean => userOf(dataDirectory) !== '';

/**
 * Whether a cluster answers on its socket or port: sends SSLRequest (PostgreSQL manual, "Message Formats"), which every server answers
 * with one letter before it asks who we are. No user, no password, no client program needed.
 */
export async function clusterAnswers(dataDirectory: string): Promise<boolean> {
  const [, , , port, sockets, address, , status] = pidFile(dataDirectory);
  if (!/^(ready|standby)$/.test(status ?? '')) return false;
  const postmaster = runningPostmasters().find(({ pid }) => workingFolder(pid) === deviceAndInode(dataDirectory));
  if (!postmaster) return false;
  const socket = `/proc/${postmaster.pid}/root${sockets}/.s.PGSQL.${port}`; // as the postmaster sees it: containers too
  if (!sockets && !address) return true; // it listens nowhere; its own word has to do
  return new Promise((resolve) => {
    const line = sockets ? connect(socket) : connect(Number(port), address === '*' ? '127.0.0.1' : address);
    const end = (yes: boolean) => { line.destroy(); resolve(yes); };
    line.setTimeout(5000, () => end(false));
    line.on('error', () => end(false));
    line.on('close', () => end(false));
    line.on('connect', () => line.write(Buffer.from([0, 0, 0, 8, 4, 210, 22, 47]))); // length 8, code 80877103
    line.on('data', () => end(true));
  });
}

/** The state in the bytes of global/pg_control (pg_control.h, the same place since 8.x): { state, systemIdentifier }. */
export function controlState(dataDirectory: string): { state: string; systemIdentifier: string } {
  const file = path.join(dataDirectory, 'global', 'pg_control');
  let bytes: Buffer;
  try {
    bytes = readPlainFile(file);
  } catch (error: any) {
    throw new Problem(`${named(file)} cannot be read: ${error.message}`, { hint: 'this cluster is damaged, or none' });
  }
  if (bytes.length < 20) throw new Problem(`${named(file)} is too short: this cluster is damaged`);
  return { state: STATES[bytes.readUInt32LE(16)] ?? `unknown (${bytes.readUInt32LE(16)})`, systemIdentifier: String(bytes.readBigUInt64LE(0)) };
}

/** Given a data directory, returns why it is not proven cold; [] = it is cold. */
export function whyNotCold(dataDirectory: string): string[] {
  const why = [];
  const { state } = controlState(dataDirectory);
  if (!state.startsWith('shut down')) why.push(`its state is "${state}"`);
  if (fs.existsSync(path.join(dataDirectory, 'postmaster.pid'))) why.push('postmaster.pid is there');
  const user = userOf(dataDirectory);
  if (user !== '') why.push(`${user} still uses it`);
  return why;
}
