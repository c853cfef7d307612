// Who this program is: its version, and whether somebody has changed it since it was built.
// It only reads, and changes nothing on the machine.
import { createHash } from 'node:crypto';

export const VERSION: string = '@VERSION@';

/**
 * Given the text of this script, returns 'as built', or 'edited' when anything but its settings differs from what the build wrote.
 * It tells forty servers with one program from forty with forty; it does not hold off somebody who edits the checksum too.
 */
export function editedOrAsBuilt(text: string): string {
  const sum = /^\/\/ Checksum of all but the settings: ([0-9a-f]{64})$/m.exec(text)?.[1] ?? 'none';
  const rest = text.replace(sum, '').replace(/^const settings = \{[^]*?^\};/m, '');
  return createHash('sha256').update(rest).digest('hex') === sum ? 'as built' : 'edited';
}

/** What `--help` prints: at most 40 lines of 80 columns. */
export const HELP = `backup.js - stop everything, copy the files with borg, start everything again

usage: node backup.js [COMMAND] [OPTIONS]

  (no command)           take the backup: this is what crontab calls
  setup                  make settings, keys, passphrase, repository; it asks
  doctor                 check everything that can be checked while all runs
  status                 is there a good recent backup? (for monitoring, too)
  list [ARCHIVE [PATH]]  the archives, or the files in one
  find PATTERN           which archives hold this file, in which versions
  restore ARCHIVE|latest [PATH ...] --to FOLDER [--mend-links]
  restore ARCHIVE|latest --in-place [PART ...] [--reindex]
                         into a new folder, or where it was; never over it
  drill [ARCHIVE] [--full]  rehearse a restore: extract, start, check, discard
  recover                start whatever an interrupted run left stopped
  borg ARGS...           borg itself, with this server's repository and key
on the operator's computer:
  audit [SERVER...] [--undo-plan] [--accept] [--full]  was it tampered with?
  prune [SERVER...] [--yes]      retention, after a clean audit

  --dry-run              only say what would be done: backup, restore, prune
  --now                  take the backup outside the window, too
  --settings FILE        in place of the settings in backup.js or beside it
  --print-settings       each setting in force, and where it comes from
  --repository, --key-file, --passphrase-file, --ssh-key
                         list, find, restore, drill: in place of settings
  --yes, --schedule cron|systemd, --quota, and each answer as --server,
  --stop, --folders, --volumes, --window, --language: setup
  --json                 one JSON document on stdout, all else on stderr
  --quiet, --verbose     only warnings and errors (for cron's mail); all looks
  --no-color, --version, --help

exit codes
  0  good                        1  done, but a warning needs attention
  2  failed: no new good backup; everything that was stopped runs again
  3  something that was stopped IS NOT RUNNING: act now
  64 wrong usage or settings     75 not now: another run, or outside the window
  128+n  ended by signal n, after everything was started again

first time:  node backup.js setup   then:  node backup.js --dry-run
`;
