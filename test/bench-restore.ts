// Part `restore`: `restore --to` of a whole server against bare `borg extract` of the same archive into an empty folder, by turns; and a
// drill of it, of which is counted apart what is neither reading the archive back nor asking PostgreSQL to check: looking, locking
// in, starting, comparing listings, cleaning up.
import { execFileSync } from 'node:child_process';
import fs from 'node:fs';
import path from 'node:path';
import { measure } from './bench-measure.ts';
import { addRow } from './bench-turns.ts';
import type { Part } from './bench-turns.ts';
import { makeHardCluster } from './night.ts';
import { makeServer } from './script.ts';
import type { Server } from './script.ts';
import { startStorage } from './storage.ts';

const OWN_CHECKS = ['files as listed when cold', 'control file', 'starts'];

export async function benchRestore(part: Part, gigabytes: number): Promise<void> {
  const cluster = await makeHardCluster(path.join(part.folder, 'restore-cluster')), storage = await startStorage(path.join(part.folder, 'restore-storage'));
  try {
    cluster.fillTo(gigabytes * 1e9);
    const server = await makeServer(path.join(part.folder, 'restore-server'), 'web1', storage, { stop: [`postgres ${cluster.dataDirectory}`], warmPass: false });
    await measure([process.execPath, server.script]);
    const { archive, cold } = server.history().pop(), facts = { gigabytes, originalBytes: cold.originalBytes, files: cold.files };
    const to = path.join(part.folder, 'restored');
    const turns = [
      async (run: number) => addRow(part, { ...facts, method: 'bare borg extract', run, ...await measure(['borg', 'extract', `::${archive}`], { env: server.borgEnv(), cwd: to }) }),
      async (run: number) => addRow(part, { ...facts, method: 'restore --to', run, ...await measure([process.execPath, server.script, 'restore', 'latest', '--to', to, '--mend-links']) }),
    ];
    for (let run = 0; run < 2 * part.runs; run++) {
      for (const turn of run % 2 === 0 ? turns : [...turns].reverse()) {
        fs.rmSync(to, { recursive: true, force: true });
        fs.mkdirSync(to);
        execFileSync('sync');
        await turn(run);
      }
    }
    fs.rmSync(to, { recursive: true, force: true });
    await benchDrill(part, server, facts);
  } finally {
    cluster.destroy();
    storage.destroy();
  }
}

async function benchDrill(part: Part, server: Server, facts: { gigabytes: number; originalBytes: number; files: number }): Promise<void> {
  for (let run = 0; run < part.runs; run++) {
    const took = await measure([process.execPath, server.script, 'drill', '--quiet']);
    const { certificate } = server.history().pop(), checked = certificate.checks.filter(({ check }: { check: string }) => !OWN_CHECKS.includes(check));
    addRow(part, { ...facts, method: 'drill', run, ...took, ownSeconds: took.seconds - checked.reduce((sum: number, one: { seconds: number }) => sum + one.seconds, 0) });
  }
}
