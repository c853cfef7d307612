// The product started by cron and by systemd as `setup --schedule` installs it, killed by both, and after a power cut.
// Beside units there are things that no unit holds: a daemon that own commands start, and a cluster that pg_ctl starts.
import { after, before, describe } from 'node:test';
import assert from 'node:assert/strict';
import type { Host } from './host.ts';
import { SCRIPT, STATE, cannotRun, daemon, install, remove, scenarios } from './systemd-host.ts';
import type { Product } from './systemd-host.ts';
import { PG } from './cluster.ts';

const PIGEON = `#!/bin/sh
# A daemon as people write them: it forks, keeps its number in a file, and knows nothing of systemd.
case "$1" in
  run) while :; do sleep 0.2; done ;;
  start) "$0" running || { setsid "$0" run < /dev/null > /dev/null 2>&1 & echo $! > /srv/pigeon.pid; } ;;
  stop) kill "$(cat /srv/pigeon.pid)" ;;
  running) grep -qs pigeon "/proc/$(cat /srv/pigeon.pid)/cmdline" ;;
esac
`;
const pigeon = (word: string): string[] => ['/usr/local/bin/pigeon', word];
const BARE = '/srv/bare';

describe('started by cron and by systemd', { skip: cannotRun }, () => {
  let host: Host, product: Product;
  const scenario = scenarios(() => product);
  const nights = async (): Promise<number> => (await host.run(`wc -l < ${STATE}/history.jsonl`)).code === 0 ? (await product.history()).length : 0;

  before(async () => {
    product = await install({ units: { 'web.service': daemon(), 'byhand.service': daemon() }, enable: ['web'] }, {
      stop: ['service web', 'service byhand', { name: 'pigeon', running: pigeon('running'), stop: pigeon('stop'), start: pigeon('start') }, `postgres ${BARE}`],
    }, async (made) => {
      host = made;
      await host.write('/usr/local/bin/pigeon', PIGEON, 0o755);
      await host.must('systemctl start byhand; pigeon start'); // neither is started at boot
      const bin = await host.must(`ls -d /usr/lib/postgresql/${PG}/bin`);
      await host.must(`install -d -o postgres ${BARE} && setpriv --reuid postgres --regid postgres --init-groups sh -c '${bin}/initdb --no-sync -A trust -D ${BARE} && ${bin}/pg_ctl start -w -D ${BARE} -l ${BARE}/log -o "-p 5444 -k /tmp"' > /dev/null`);
    });
  });
  after(() => remove(host));

  const answers = async (): Promise<void> => assert.equal(await host.must(`psql -h /tmp -p 5444 -U postgres -XqAtc 'SELECT 1'`), '1');

  scenario('cron starts the run at the hour of the window, and it has nothing to mail', async () => {
    await host.write('/usr/sbin/sendmail', '#!/bin/sh\ncat >> /srv/mail\n', 0o755);
    const clock = (minutes: number): string => new Date(Date.now() + minutes * 60_000).toISOString().slice(11, 16);
    await product.set({ window: { from: clock(60), until: clock(120), timeZone: 'UTC' } });
    await product.expect([], 75, /outside the window/);
    await product.set({ window: { from: clock(1.2 - 5), until: clock(120), timeZone: 'UTC' } }); // cron's line is five minutes after the begin
    await host.must('systemctl stop cron');
    await product.expect(['setup', '--yes', '--schedule', 'cron'], 2, /no cron runs here that would read \/etc\/cron\.d/, /hint: .*apt-get install cron.*--schedule systemd/);
    await host.must('test ! -e /etc/cron.d/cold-backup && systemctl start cron');
    await product.expect(['setup', '--yes', '--schedule', 'cron'], 0, /wrote \/etc\/cron\.d\/cold-backup/);
    await host.must('systemctl stop cron');
    await product.expect(['status'], 2, /^ {2}next run +nothing starts it, a crontab line is there, but no cron runs/m);
    await host.must('systemctl start cron');
    await product.expect(['status'], 2, /^CRITICAL: .*: no good backup yet$/m, /^ {2}next run +\d{4}-\d\d-\d\d \d\d:\d\d, in .* \(cron\)$/m);
    // Beside it, every minute: a server whose night cannot begin, and the question whether all is well, of one where it is not.
    await host.write('/srv/failing.js', `const settings = ${JSON.stringify({ ...product.settings, server: 'failing', before: ['false'], stateFolder: '/srv/failing' })};\n`, 0o600);
    await host.write('/etc/cron.d/failing', ['--now --quiet', 'status --quiet'].map((words) => `* * * * * root /usr/bin/env node ${SCRIPT} --settings /srv/failing.js ${words}\n`).join(''), 0o644);
    await host.waitFor('cron', async () => await nights() === 1, 100);
    // In the first minute `status` may be asked before the other has failed; in the next it is asked again.
    await host.waitFor('cron\'s mail of both', async () => /(?=[^]*^backup: error)(?=[^]*^CRITICAL: .*; the last run failed)/m.test((await host.run('cat /srv/mail')).stdout), 200);
    await host.must('rm /etc/cron.d/failing');
    const { outcome, warnings } = await product.lastRun();
    assert.deepEqual([outcome, warnings], ['good', []]);
    const readable = (mail: string) => (/^Content-Transfer-Encoding: quoted-printable$/m.test(mail) ? mail.replace(/=\n/g, '').replace(/=([0-9A-F]{2})/g, (_, byte) => String.fromCharCode(parseInt(byte, 16))) : mail); // as cron of Debian 13 sends long lines
    const mails = (await host.must('cat /srv/mail')).split(/^(?=From: )/m).map(readable), about = (words: RegExp) => mails.filter((mail) => words.test(mail));
    assert.ok(mails.every((mail) => /^Subject: .*failing\.js (--now|status) --quiet$/m.test(mail)), `of the good night there is no mail: ${mails.join('\n')}`);
    assert.match(about(/^Subject: .* --now --quiet$/m)[0]!, /^backup: error: the `before` command failed \(exit code 1\)\n {2}ran: {2}false\n {2}hint: mend it, .*\n {2}services: nothing was stopped$/m);
    assert.match(about(/^Subject: .* status --quiet$/m).at(-1)!, /^CRITICAL: failing: no good backup yet; the last run failed: the `before` command failed \(exit code 1\)$[^]*^ {2}next +node backup\.js doctor$/m);
    await product.set({ window: null });
    await answers();
  });

  scenario('after a power cut in the middle of the copy, the @reboot line starts what does not start at boot', async () => {
    const runs = await product.whatRuns();
    await product.startHeld();
    await host.powerOff();
    await host.boot();
    await product.everythingRunsAgain(runs, 20);
    await answers();
    assert.match((await product.lastRun()).error, /recover started what it had stopped/);
    await host.must('rm /etc/cron.d/cold-backup');
  });

  scenario('timers that cannot be enabled leave the lines of cron where they are', async () => {
    await product.expect(['setup', '--yes', '--schedule', 'cron'], 0, /wrote \/etc\/cron\.d\/cold-backup/);
    await host.must('systemctl mask --quiet cold-backup-recover.timer');
    await product.expect(['setup', '--yes', '--schedule', 'systemd'], 2, /the timers cannot be installed/);
    await host.must('test -s /etc/cron.d/cold-backup && systemctl unmask --quiet cold-backup-recover.timer');
  });

  scenario('the timer\'s unit takes the backup, and what it started again lives on when the unit has ended', async () => {
    await product.expect(['setup', '--yes', '--schedule', 'systemd'], 0, /installed cold-backup\.timer/, /^to do +told: a systemd timer mails nobody/m);
    assert.match(await host.must('systemctl list-timers --no-legend'), /cold-backup\.timer/);
    await product.expect(['status'], 1, /^ {2}next run +\d{4}-\d\d-\d\d 02:00, in .* \(systemd\)$/m, /^ {2}warnings +the last run failed: .*\n {2}next +node backup\.js doctor$/m);
    const past = await nights();
    await host.must('systemctl start cold-backup.service');
    assert.equal(await nights(), past + 1);
    assert.equal((await product.lastRun()).outcome, 'good');
    await answers();
  });

  scenario('kill -9 of everything in the timer\'s unit in the middle of the copy: all comes back, and the next night is good', async () => {
    const runs = await product.whatRuns();
    await host.must('touch /run/hold-borg');
    const running = host.start('systemctl start cold-backup.service');
    await product.copyIsHeld(running);
    await host.must('systemctl kill --signal KILL cold-backup.service');
    assert.notEqual((await running.done).code, 0);
    await product.everythingRunsAgain(runs);
    await answers();
    await product.releaseCopy();
    await host.must('systemctl start cold-backup.service');
    assert.equal((await product.lastRun()).outcome, 'good');
    await answers();
  });

  scenario('after a power cut in the middle of the copy, the recover timer starts what does not start at boot', async () => {
    const runs = await product.whatRuns();
    await product.startHeld();
    await host.powerOff();
    await host.boot();
    await product.everythingRunsAgain(runs, 40);
    await answers();
    assert.match((await product.lastRun()).error, /recover started what it had stopped/);
  });
});
