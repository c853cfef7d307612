// Part `audit`: the operator's audit of a repository of pieces (a million) of 1.5 kB in 40 transactions, written by borg's own server
// code; read from scratch, again when nothing is new, and whole, against `borg check --repository-only`.
import { execFileSync } from 'node:child_process';
import fs from 'node:fs';
import path from 'node:path';
import { measure } from './bench-measure.ts';
import { addRow } from './bench-turns.ts';
import type { Part } from './bench-turns.ts';
import { distFile } from './script.ts';

export async function benchAudit(part: Part, pieces: number): Promise<void> {
  const folder = path.join(part.folder, 'audit'), repository = path.join(folder, 'web1'), env = { BORG_BASE_DIR: path.join(folder, 'borg') };
  fs.mkdirSync(folder, { recursive: true });
  try {
    writeRepository(repository, pieces, { ...process.env, ...env });
    fs.copyFileSync(distFile, path.join(folder, 'backup.js'));
    fs.writeFileSync(path.join(folder, 'backup.settings.js'), `const settings = { servers: [{ server: 'web1', repository: ${JSON.stringify(repository)} }] };\n`, { mode: 0o600 });
    fs.chmodSync(folder, 0o700);
    const audit = [process.execPath, path.join(folder, 'backup.js'), 'audit', '--quiet'];
    for (let run = 0; run < part.runs; run++) {
      fs.rmSync(path.join(folder, 'ledger'), { recursive: true, force: true });
      addRow(part, { method: 'first audit', pieces, run, ...await measure(audit) });
      addRow(part, { method: 'audit of nothing new', pieces, run, ...await measure(audit) });
      addRow(part, { method: 'audit --full', pieces, run, ...await measure([...audit, '--full']) });
      addRow(part, { method: 'borg check --repository-only', pieces, run, ...await measure(['borg', 'check', '--repository-only', repository], { env }) });
    }
  } finally {
    fs.rmSync(folder, { recursive: true, force: true });
  }
}

function writeRepository(repository: string, pieces: number, env: NodeJS.ProcessEnv): void {
  execFileSync('borg', ['init', '--encryption', 'none', repository], { env, stdio: 'ignore' });
  execFileSync('/usr/bin/python3', ['-'], { env, stdio: ['pipe', 'ignore', 'inherit'], input: ['import os, hashlib, borg.logger', 'borg.logger.setup_logging()', 'from borg.repository import Repository',
    `with Repository(${JSON.stringify(repository)}, exclusive=True, append_only=True) as repository:`, '    for transaction in range(40):',
    `        for number in range(${Math.ceil(pieces / 40)}): repository.put(hashlib.sha256(b"%d %d" % (transaction, number)).digest(), os.urandom(1500))`,
    '        repository.put(bytes(32), os.urandom(500 + 50 * transaction))', '        repository.commit()'].join('\n') });
}
