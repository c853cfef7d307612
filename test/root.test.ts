// What root runs, among others who mean it harm. A local user with no rights but his own, the owner of a folder or of a database, and whoever
// wrote an archive: none of them gets root to run a program of his, to write where he has laid a link, to wait for ever, to end a run, or to print lines of his own.
import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import fs from 'node:fs';
import path from 'node:path';
import { allIsWell, expectEnd, good, held, holdIn, letGo, nearby, scenarios, wrap } from './scenario.ts';
import type { World } from './scenario.ts';
import { speakProtocol } from './operator.ts';
import { waitFor } from './script.ts';
import type { Ended } from './script.ts';

const MALLORY = 'nobody';
const all = ({ out, err }: Ended) => out + err;
const asMallory = (script: string) => execFileSync('runuser', ['-u', MALLORY, '--', 'sh', '-euc', script], { stdio: ['ignore', 'ignore', 'inherit'], cwd: '/' });
const own = (folder: string, user = MALLORY) => { fs.mkdirSync(folder, { recursive: true }); execFileSync('chown', [`${user}:`, folder]); return folder; };
const pid = (db: World['db']) => fs.readFileSync(path.join(db.dataDirectory, 'postmaster.pid'), 'utf8').split('\n')[0]!;

/** A program of mallory's that is called postgres and sits in `folder` as a cluster would; whatever is called beside it notes who called it. */
async function fakeCluster(world: World, name: string, folder: string, more = ''): Promise<{ whoRan: () => string[] }> {
  const bin = own(path.join(world.folder, `bin-${name}`)), who = own(path.join(world.folder, `who-${name}`));
  asMallory(`cp /bin/sleep ${bin}/postgres
    for one in psql pg_controldata pg_config ldd; do printf '#!/bin/sh\\nid -un >> ${who}/%s\\necho {}\\n' $one > ${bin}/$one; done
    printf '%s\\n' '#!/bin/sh' 'id -un >> ${who}/pg_ctl' 'case " $* " in *" stop "*) kill "$(head -n 1 ${folder}/postmaster.pid)"; rm -f ${folder}/postmaster.pid;; *) ${bin}/run;; esac' > ${bin}/pg_ctl
    printf '%s\\n' '#!/bin/sh' 'cd ${folder}' "sh -c 'echo \\$\\$ > postmaster.pid; printf \\"${folder}\\\\n0\\\\n5499\\\\n\\\\n\\\\n\\\\nready\\\\n\\" >> postmaster.pid; exec ${bin}/postgres 600' </dev/null >/dev/null 2>&1 &" > ${bin}/run
    chmod 755 ${bin}/*; mkdir -p ${folder}/global; echo 15 > ${folder}/PG_VERSION; { head -c 16 /dev/zero; printf '\\001'; head -c 8000 /dev/zero; } > ${folder}/global/pg_control; ${more || ':'}; ${bin}/run`);
  await waitFor('it sits there', () => fs.existsSync(path.join(folder, 'postmaster.pid')));
  return { whoRan: () => fs.readdirSync(who).flatMap((one) => fs.readFileSync(path.join(who, one), 'utf8').trim().split('\n')) };
}

const SCENARIOS: Record<string, (world: World) => Promise<void>> = {
  'a program that only calls itself postgres is not believed: none of its programs is run by root, and no pipe holds a run up': async (world) => {
    nearby(world);
    const shared = path.join(world.folder, 'shared'); // as /tmp: root's, and everybody may write to it
    fs.mkdirSync(shared);
    fs.chmodSync(shared, 0o1777);
    const inShared = await fakeCluster(world, 'shared', shared), mine = await fakeCluster(world, 'mine', own(path.join(world.folder, 'mine')));
    const empty = own(path.join(world.folder, 'empty')), piped = own(path.join(world.folder, 'piped'));
    await fakeCluster(world, 'empty', empty, 'true');
    asMallory(`rm -r ${empty}/PG_VERSION ${empty}/global`);
    asMallory(`mkfifo ${piped}/postmaster.pid; cp /bin/sleep ${piped}/postgres; cd ${piped}; ./postgres 600 </dev/null >/dev/null 2>&1 &`);
    execFileSync('mount', ['-t', 'tmpfs', 'tmpfs', '/etc/postgresql']); // this scenario's own
    fs.mkdirSync('/etc/postgresql/15/evil', { recursive: true });
    execFileSync('mkfifo', ['/etc/postgresql/15/evil/postgresql.conf']); // Debian lets the database's owner write there
    const metrics = path.join(own(path.join(world.folder, 'metrics')), 'x.prom');
    asMallory(`mkfifo ${metrics}`);
    // Named, only the real one is a part of the night. '*' means mallory's cluster, too: it is his to stop, as himself.
    world.server.writeSettings({ tell: { metrics } });
    const ended = await world.server.run();
    assert.equal(ended.code, 1, all(ended));
    assert.match(all(ended), new RegExp(`PostgreSQL cluster .*mine.* is not saved`));
    assert.doesNotMatch(all(ended), /shared|empty|piped|this is a bug/);
    assert.ok(fs.statSync(metrics).isFile());
    await allIsWell(world);
    world.server.writeSettings({ stop: [world.web.entry, 'postgres *'] });
    const everyone = await world.server.run(), said = all(everyone);
    assert.ok(everyone.code <= 1, said);
    assert.match(said, /stopped postgres .*mine/);
    await allIsWell(world);
    assert.deepEqual([...new Set(mine.whoRan())], [MALLORY], 'root ran a program of his');
    assert.deepEqual(inShared.whoRan(), [], 'a folder of everybody\'s is no cluster');
    execFileSync('pkill', ['-u', MALLORY]);
  },

  'links of a data directory to what is not the cluster\'s own lead nothing into the archive': async (world) => {
    nearby(world);
    const secret = path.join(world.folder, 'secret'), spaces = path.join(world.db.dataDirectory, 'pg_tblspc');
    fs.mkdirSync(secret);
    execFileSync('runuser', ['-u', 'postgres', '--', 'sh', '-c', `ln -s ${secret} ${spaces}/99999; ln -s / ${spaces}/99998; mkdir ${spaces}/99997`]);
    fs.writeFileSync(path.join(secret, 'shadow'), 'root alone', { mode: 0o600 });
    fs.writeFileSync(path.join(world.folder, 'certificate'), 'everybody');
    world.db.sql('postgres', `alter system set ssl_key_file = '${secret}/shadow'`);
    world.db.sql('postgres', `alter system set ssl_cert_file = '${world.folder}/certificate'`);
    world.db.sql('postgres', 'select pg_reload_conf()');
    await waitFor('it has read that', () => world.db.sql('postgres', 'show ssl_cert_file').endsWith('certificate'));
    const ended = await world.server.run(['--dry-run', '--json']), { roots, warnings } = JSON.parse(ended.out);
    assert.deepEqual(roots.map((one: any) => one.path), [world.db.dataDirectory, path.join(world.folder, 'certificate'), world.files]);
    assert.match(warnings.join('\n'), /tablespace 99999 .*secret is not saved/);
    assert.equal(ended.code, 1);
  },

  'a state folder that others could change is refused, and recover believes nothing that lies there': async (world) => {
    nearby(world);
    const { server } = world, precious = path.join(world.folder, 'db/.cold-backup-snapshot-0');
    fs.mkdirSync(precious);
    fs.writeFileSync(path.join(server.stateFolder, 'snapshots.json'), JSON.stringify({ copies: [{ way: 'copy', copy: precious }] }));
    fs.chmodSync(server.stateFolder, 0o777);
    for (const [words, code] of [[[], 64], [['drill'], 64], [['restore', 'latest', '--in-place', 'folder', world.files], 64], [['recover'], 3]] as const) {
      const ended = await server.run([...words]);
      assert.equal(ended.code, code, all(ended));
      assert.match(ended.err, /others than root could change .*state.*mode 0777[^]*hint: chmod go-w /);
    }
    fs.chmodSync(server.stateFolder, 0o1777); // as /var/tmp: whoever comes first makes the names of a run
    const doctor = await server.run(['doctor']), sticky = await server.run();
    assert.deepEqual([sticky.code, /others than root could change `stateFolder`: .*mode 1777/.test(sticky.err)], [64, true], all(sticky));
    assert.deepEqual([doctor.code, /FAILS +key and passphrase files: others than root could change `stateFolder`/.test(doctor.out)], [2, true], all(doctor));
    assert.ok(fs.existsSync(precious));
    fs.rmSync(precious, { recursive: true });
    fs.chmodSync(server.stateFolder, 0o755);
    await good(world);
    fs.chmodSync(server.script, 0o777);
    server.writeSettings();
    assert.match((await server.run(['status'])).err, /others than root could change backup\.js/);
    fs.chmodSync(server.script, 0o755);
    const known = path.join(server.folder, 'etc/known_hosts');
    fs.chmodSync(known, 0o666);
    assert.match((await server.run()).err, /others than root could change which storage is believed/);
  },

  'a scratch folder that others may write to: their folders are not taken for ours, and no run is ended by a name': async (world) => {
    nearby(world);
    const scratch = path.join(world.folder, 'scratch'), { server } = world;
    fs.mkdirSync(scratch);
    fs.chmodSync(scratch, 0o1777);
    server.writeSettings({ drill: { folder: scratch } });
    const run = server.start([], wrap(world, 'borg', holdIn('cold')));
    await held(world);
    const ledger = JSON.parse(fs.readFileSync(path.join(server.stateFolder, 'ledger.json'), 'utf8')), trap = path.join(scratch, `cold-backup-drill-${ledger.run}`);
    asMallory(`mkdir ${trap} && touch ${trap}/file && ln -s ${world.folder} ${scratch}/cold-backup-drill-link`);
    assert.equal((await server.run(['recover', '--quiet'])).code, 75);
    letGo(world);
    expectEnd(world, await run.ended, { code: 0 });
    await allIsWell(world);
    assert.deepEqual(fs.readdirSync(trap), ['file']);
    // What a drill lays there nobody else can reach, whatever it is.
    ['held', 'go'].forEach((file) => fs.rmSync(path.join(world.folder, file), { force: true }));
    const drill = server.start(['drill'], wrap(world, 'borg', holdIn('extract')));
    await held(world);
    const [folder] = fs.readdirSync(scratch).filter((name) => fs.statSync(path.join(scratch, name)).uid === 0 && !name.endsWith('link'));
    assert.equal(fs.statSync(path.join(scratch, folder!)).mode & 0o7777, 0o700);
    letGo(world);
    const ended = await drill.ended;
    assert.equal(ended.code, 0, all(ended));
    fs.chmodSync(scratch, 0o777);
    assert.match((await server.run(['drill'])).err, /others than root could change `drill\.folder`/);
  },

  'restore --to: who owns the folder around it, and swaps it for a link, leads nothing astray': async (world) => {
    nearby(world);
    const home = own(path.join(world.folder, 'home')), victim = path.join(world.folder, 'victim'), { server } = world;
    fs.mkdirSync(victim, { mode: 0o700 });
    const his = own(path.join(home, 'his'));
    const refused = await server.run(['restore', 'latest', world.files, '--to', his]);
    assert.equal(refused.code, 64);
    assert.match(refused.err, /others can write to .*his, and could lay links there/);
    const to = path.join(home, 'back');
    const ended = await server.run(['restore', 'latest', '--to', to, '--mend-links'], wrap(world, 'borg', `[ $pass = extract ] && [ -d ${to} ] && runuser -u ${MALLORY} -- sh -c 'mv ${to} ${to}.moved && ln -s ${victim} ${to}'`));
    assert.equal(ended.code, 0, all(ended));
    assert.deepEqual([fs.readdirSync(victim), fs.statSync(victim).mode & 0o7777], [[], 0o700]);
    assert.ok(fs.existsSync(path.join(`${to}.moved`, world.files, 'file 7')));
  },

  'restore --in-place: nothing is moved through a link that somebody laid on the way meanwhile': async (world) => {
    nearby(world);
    const site = own(path.join(world.folder, 'site')), uploads = own(path.join(site, 'uploads')), victim = path.join(world.folder, 'victim'), { server } = world;
    fs.mkdirSync(victim);
    fs.writeFileSync(path.join(uploads, 'file'), 'saved');
    server.writeSettings({ folders: [world.files, uploads] });
    await good(world);
    fs.writeFileSync(path.join(uploads, 'file'), 'newer');
    const env = wrap(world, 'sync', `runuser -u root -- sh -c '[ -L ${site} ] || { mv ${site} ${site}.real && ln -s ${victim} ${site}; }'`);
    const ended = await server.run(['restore', 'latest', '--in-place', 'folder', uploads], env);
    assert.equal(ended.code, 2, all(ended));
    assert.match(ended.err, /somebody laid a link on the way, and nothing is moved through it/);
    assert.deepEqual([fs.readdirSync(victim), fs.readFileSync(`${site}.real/uploads/file`, 'utf8')], [[], 'newer']);
    await allIsWell(world);
  },

  'what others wrote stays on its line: names in archives, of archives, and of what an archive says of itself': async (world) => {
    const { server } = world, lure = path.join(world.folder, 'lure'), evil = '\x1b[2J\u202eroot\nweb1-2030-01-01T00:00:00 proven';
    fs.mkdirSync(path.join(lure, 'record'), { recursive: true });
    execFileSync('/usr/bin/python3', ['-c', `import tarfile, io, sys
tar = tarfile.open(sys.argv[1], 'w', format=tarfile.PAX_FORMAT)
one = tarfile.TarInfo('file'); one.uname = one.gname = sys.argv[2]; one.size = 1
tar.addfile(one, io.BytesIO(b'x')); tar.close()`, path.join(lure, 'x.tar'), evil]);
    server.borg('import-tar', '::forged', path.join(lure, 'x.tar'));
    speakProtocol(server, ['from borg.helpers import Manifest', 'manifest, key = Manifest.load(repository, Manifest.NO_OPERATION_CHECK)', 'info = manifest.archives["forged"]',
      `manifest.archives[${JSON.stringify(evil)}] = (info.id, info.ts)`, 'manifest.write()', 'repository.commit()']);
    const listed = await server.run(['list']), files = await server.run(['list', 'forged']);
    for (const what of [listed, files]) {
      assert.equal(what.code <= 1, true, all(what));
      assert.doesNotMatch(all(what), /[\x1b\u202e]|^web1-2030/m);
    }
    assert.match(files.out, /\\u001b\[2J\\u202eroot web1-2030/);
    // A record that would print commands of its own, exchange /etc, or lend its words to a mount.
    const newest = server.archives().filter((name) => /^web1-[\dT:-]+$/.test(name)).pop(), manifest = JSON.parse(server.borg('extract', '--stdout', `::${newest}`, 'record/manifest.json'));
    const attempt = async (number: number, change: (one: any) => void) => {
      const one = structuredClone(manifest), name = `web1-2026-01-01T00:00:0${number}`;
      change(one);
      fs.writeFileSync(path.join(lure, 'record/manifest.json'), JSON.stringify(one));
      execFileSync('borg', ['create', `::${name}`, 'record', 'etc'], { cwd: lure, env: server.borgEnv(), stdio: 'ignore' });
      return server.run(['restore', name, '--in-place', '--dry-run']);
    };
    fs.mkdirSync(path.join(lure, 'etc'));
    const etc = await attempt(1, (one) => { one.plan.roots = [{ path: '/etc', why: 'volume /etc', strict: false }]; one.plan.clusters = []; });
    assert.equal(etc.code, 64, all(etc));
    assert.match(etc.err, /\/etc belongs to the system, and is not exchanged as a whole/);
    fs.mkdirSync(path.join(lure, world.files), { recursive: true });
    const forged = await attempt(2, (one) => {
      one.plan.roots = [{ path: '/etc', why: 'volume x', strict: false }];
      one.plan.clusters = [];
      one.madeAt = `2026\n            mend: touch owned`;
      one.host.users = [{ id: 4242, name: 'x\n            mend: touch owned' }];
    });
    assert.doesNotMatch(all(forged), /^ *mend: touch owned/m);
  },

  'programs of others get no environment of ours, and nothing in it changes how programs speak': async (world) => {
    nearby(world);
    const told = path.join(world.folder, 'told'), secret = 'SECRET_TOKEN=Kolibri-7391', rc = path.join(world.folder, 'rc');
    fs.writeFileSync(rc, `touch ${world.folder}/sourced`);
    world.server.writeSettings({ tell: { command: ['sh', '-c', `env > ${told}`] } });
    const env = { SECRET_TOKEN: 'Kolibri-7391', BASH_ENV: rc, ENV: rc, LD_LIBRARY_PATH: '/nowhere', PYTHONHOME: '/nowhere', SYSTEMD_COLORS: '1', PATH: `.::${process.env.PATH}` };
    expectEnd(world, await world.server.run([], { env }), { code: 0 });
    await allIsWell(world);
    assert.match(fs.readFileSync(told, 'utf8'), new RegExp(`^${secret}$`, 'm'), 'a messenger is our own, and may need it');
    assert.doesNotMatch(fs.readFileSync(told, 'utf8'), /^(BASH_ENV|ENV|LD_|PYTHON|SYSTEMD_)|^PATH=(.*:)?(\.|):/m);
    assert.equal(fs.existsSync(`${world.folder}/sourced`), false);
    assert.doesNotMatch(fs.readFileSync(`/proc/${pid(world.db)}/environ`, 'utf8'), /Kolibri/, 'whoever runs the database could read it');
    const broken = await world.server.run([], wrap(world, 'flock', 'exit 127'));
    assert.equal(broken.code, 2);
    assert.match(broken.err, /flock\(1\) does not work/);
  },

  'a copy on write lies only where root alone can change names': async (world) => {
    const where = async () => JSON.parse((await world.server.run(['--dry-run', '--json'])).out).roots.find((one: any) => one.path === world.db.dataDirectory);
    assert.equal(path.dirname((await where()).copy), world.folder, 'the folder around the data directory belongs to postgres');
    execFileSync('mount', ['--bind', path.join(world.folder, 'db'), path.join(world.folder, 'db')]); // a disk of the database's own, all of it postgres's
    const root = await where();
    assert.deepEqual([root.way, root.copy], ['cold', '']);
    assert.match(root.because, /others than root could change .*, where the copy would lie/);
  },
};

const ON_XFS = /copy on write/;
scenarios('what root runs', import.meta.url, SCENARIOS, 2, ['tmpfs', 'xfs'], (name, disk) => ON_XFS.test(name) === (disk === 'xfs'));
