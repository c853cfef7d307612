// Importing this file gives a test file a machine nearly of its own: it runs again in PID, IPC and mount namespaces of its own, so
// that it sees and ends only its own processes, and the product finds no database of another test that runs beside it.
// Nothing is left over: when the first process of the namespace ends, the kernel ends all others. Needs root; without it the
// test file runs where it is, and decides itself what it can do there.
import { spawnSync } from 'node:child_process';
import fs from 'node:fs';

const OWN_LINKS = '/var/lib/cold-backup'; // where a run that is under way is noted for `recover`

/**
 * Words that run a command alone: bash is process 1, because that one has to reap the orphans. `prepare` is run by it first. Shared memory of
 * System V is its own, because PostgreSQL names it by the inode of its data directory: one that starts while its namesake on another disk
 * ends may find "pre-existing shared memory block is still in use" (once in 1,500 starts).
 */
export function aloneCommand(argv: string[], prepare = ':', namespaces: string[] = []): string[] {
  fs.mkdirSync(OWN_LINKS, { recursive: true, mode: 0o700 });
  const script = `mount -t tmpfs -o mode=700 tmpfs ${OWN_LINKS} && mount -t tmpfs -o mode=1777 tmpfs /dev/shm && { [ ! -d /run/systemd/system ] || mount -t tmpfs tmpfs /run/systemd; } && ${prepare} || exit 70; "$@" & wait $!`;
  return ['unshare', '--pid', '--ipc', '--fork', '--mount', '--mount-proc', '--kill-child', ...namespaces, '--', 'bash', '-c', script, 'alone', ...argv];
}

const isTestFile = /\.test\.ts$/.test(process.argv[1] ?? '');
if (isTestFile && process.getuid?.() === 0 && !process.env.COLD_BACKUP_ALONE) {
  const [program, ...words] = aloneCommand([process.execPath, ...process.execArgv, ...process.argv.slice(1)]);
  const ended = spawnSync(program!, words, { stdio: 'inherit', env: { ...process.env, COLD_BACKUP_ALONE: '1' } });
  if (ended.error) throw ended.error;
  process.exit(ended.status ?? 1);
}
