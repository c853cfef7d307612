// RESTORE.md: how to bring back this very archive by hand, for somebody without this script.
// It needs borg, the key file and the passphrase. Facts of the night are filled in, nothing is told that this archive does not
// need, and every block can be pasted as it stands: a test does it, on a fresh machine. Only makes text; names in it are quoted
// for the shell.
import os from 'node:os';
import path from 'node:path';
import { oneLine, pasteable } from './say.ts';
import { isBelow, outermost } from './files.ts';
import { quotedName } from './questions.ts';
import { partnersOf } from './partners.ts';
import type { Manifest } from './record.ts';
import type { Root } from './ways.ts';
import { WORDS } from './words.ts';
import type { RestoreWords } from './words.ts';
import { block, checksChapter, counting, psqlIn, q, untilFirstError } from './lookthrough.ts';
import type { HostCluster } from './lookthrough.ts';

type Places = { byName: string[]; byNumber: string[]; system: string[]; looked: string[] };

// Folders that a running machine cannot do without: they are not swapped, but laid aside to be compared.
const SYSTEM = /^\/(|etc|etc\/(passwd|group|g?shadow)|usr(\/.*)?|var|var\/(lib|log|cache|spool)|var\/lib\/(docker|containerd)|boot|root|home|bin|sbin|lib\w*|run|dev|proc|sys|tmp)$/;
const OF_THE_SYSTEM = /^\/((etc|root|usr)\/|var\/((cache|log|run|spool|lib\/(apt|containerd|dbus|docker|dpkg|rpm|systemd))(\/|$)|lib$))/; // but not /var/www, /var/lib/shop
/** Whether this is the machine's own, at which containers only look (`/etc/group:/etc/group:ro`): another machine's would harm it. What lies below a folder that is named comes back with it. Given a root, and the manifest. */
export function isLookedAt({ path: place, why, strict }: Root, { plan, containers }: Pick<Manifest, 'plan' | 'containers'>): boolean {
  const source = why.startsWith('volume /') ? why.slice('volume '.length) : ''; // a bind mount; what is a volume of Docker's is the containers' own
  const uses = containers.flatMap(({ mounts }) => mounts.filter((one) => one.source === source)); // none: the passport lacks its container, so nobody knows
  if (plan.roots.some((one) => !one.why.startsWith('volume ') && isBelow(place, one.path))) return false;
  return OF_THE_SYSTEM.test(place) && !strict && uses.length > 0 && uses.every((one) => one.writable === false);
}

const stored = (places: string[]) => q(...places.map((one) => `pp:${one.slice(1)}`));

/** Given the manifest of an archive and a language, returns its RESTORE.md: the same commands in every language. */
export function restoreText(manifest: Manifest, language: 'en' | 'es'): string {
  const w = WORDS[language].restore;
  const clusters = manifest.plan.clusters.filter((one) => one.container === '');
  const places = placesOf(manifest, clusters);
  const chapters = [...reachChapter(manifest, w), ...softwareChapter(manifest, clusters, w), ...ownersChapter(manifest, places, w),
    ...makeRoom(manifest, clusters, places, w), ...extraction(manifest, places, w), ...containersAgain(manifest, w), ...checksChapter(manifest, clusters, w),
    ...startChapter(manifest, clusters, w), ...partnersChapter(manifest, w), ...goingBack(places, w), ...onlyAPart(manifest, clusters, places, w)];
  let number = 0; // of those chapters that this archive needs
  return chapters.map((one) => one.replace(/^## \d+/, () => `## ${++number}`)).join('\n\n') + '\n';
}

function placesOf({ plan, containers }: Manifest, clusters: HostCluster[]): Places {
  const system = plan.roots.filter((root) => SYSTEM.test(root.path) && !/^volume \/usr\/./.test(root.why)).map((root) => root.path);
  const looked = plan.roots.filter((root) => isLookedAt(root, { plan, containers })).map((root) => root.path).filter((one) => !system.includes(one));
  const byNumber = plan.roots.filter((root) => root.why.startsWith('volume ')).map((root) => root.path).filter((one) => !system.includes(one) && !looked.includes(one));
  const byName = [...clusters.flatMap((one) => one.roots), ...plan.roots.map((root) => root.path)].filter((one) => ![...system, ...looked, ...byNumber].includes(one));
  return { byName: outermost(byName).sort(), byNumber: outermost(byNumber), system: outermost(system), looked: outermost(looked) };
}

function reachChapter({ archive, server, madeAt, plan, host }: Manifest, w: RestoreWords): string[] {
  const isRemote = !plan.repository.startsWith('/');
  return [`# ${w.title(archive)}`, `${w.intro(server, madeAt, host.osRelease.PRETTY_NAME ?? os.type(), host.architecture)}\n${w.readOn(w.part)}`, `## 1. ${w.reach}`, w.need(isRemote),
    block([`export BORG_REPO=${q(plan.repository)}`, 'export BORG_KEY_FILE=/root/borg_key', ...(isRemote ? [`export BORG_RSH='ssh -i /root/.ssh/id_ed25519'`] : []), `read -rs -p "${w.passphrase}: " BORG_PASSPHRASE`]),
    block(['export BORG_PASSPHRASE BORG_RELOCATED_REPO_ACCESS_IS_OK=yes LC_ALL=C.UTF-8', `export ARCHIVE=${q(archive)} AWAY="before-$(date +%Y%m%d-%H%M%S)"   # ${w.aside}`,
      `command -v borg >/dev/null || { apt-get update && apt-get install --yes borgbackup; }   # ${w.versions}`, 'mkdir -p /root/restore && cd /root/restore && borg extract "::$ARCHIVE" record && ls record']),
    w.record];
}

function softwareChapter(manifest: Manifest, clusters: HostCluster[], w: RestoreWords): string[] {
  const { packages, containers } = manifest, isDebian = Object.keys(packages.all).some((name) => name === 'dpkg');
  const names = [...(clusters.length > 0 ? Object.keys(packages.needed).filter((name) => !/^(libc6|libicu\d*|tzdata|nodejs|borgbackup)/.test(name)) : []),
    ...(containers.length > 0 ? Object.keys(packages.all).filter((name) => /^(docker\.io|docker-ce|docker-compose.*|containerd(\.io)?)$/.test(name)) : [])];
  if (names.length === 0) return [];
  const exact = names.map((name) => `${name.split(':')[0]}=${packages.all[name]}`);
  const pgdg = exact.some((one) => one.includes('pgdg'));
  const versions = [...new Set(clusters.map((one) => one.version))].join(', ');
  return [`## 2. ${w.software}`, ...(versions ? [w.fits(versions)] : []),
    isDebian ? untilFirstError([`missing=; for package in ${q(...exact)}; do`, `  [ "$(dpkg-query -Wf '\${db:Status-Status}' "\${package%%=*}" 2>/dev/null)" = installed ] || missing="$missing $package"; done`,
      'if [ -n "$missing" ]; then', '  apt-get update', ...(pgdg ? [`  apt-get install --yes postgresql-common ca-certificates && /usr/share/postgresql-common/pgdg/apt.postgresql.org.sh -y   # ${w.fromThere}`] : []),
      `  for package in $missing; do apt-get install --yes "$package" || apt-get install --yes "\${package%%=*}"; done   # ${w.sameOrNewest}`, 'fi'])
      : w.packages(exact.join(', ')),
    ...(isDebian && !pgdg && versions ? [w.noPackage('apt-get install postgresql-common && /usr/share/postgresql-common/pgdg/apt.postgresql.org.sh -y')] : []),
    ...(packages.unowned.length > 0 ? [w.unowned(packages.unowned.map((one) => `\`${one}\``).join(', '))] : []), ...locales(manifest, w)];
}

// Of a locale as PostgreSQL names it ('de_DE.UTF-8', 'de_DE@euro'): what `locale -a` calls it, and its line in /etc/locale.gen.
function locales({ postgres }: Manifest, w: RestoreWords): string[] {
  const databases = postgres.filter((one) => one.container === '').flatMap((one) => one.databases), collations = databases.flatMap((one) => one.collations ?? []);
  const settings = postgres.filter((one) => one.container === '').flatMap((one) => Object.entries(one.settings ?? {}).filter(([name]) => /^lc_/.test(name)).map(([, value]) => value));
  const used = new Set([...databases.flatMap((one) => [one.collate, one.ctype]), ...collations.filter((one) => one.provider === 'c').map((one) => one.locale ?? ''), ...settings]);
  const lines = [...used].filter((one) => /^[a-z]{2,3}_[A-Z]{2}/.test(one)).sort().map((name) => {
    const [, base = '', codeset = '', variant = ''] = /^([^.@]*)\.?([^@]*)(@.*)?$/.exec(name) ?? [];
    const charset = codeset === '' ? (variant === '@euro' ? 'ISO-8859-15' : 'ISO-8859-1') : codeset.toUpperCase().replace(/^UTF-?8$/, 'UTF-8').replace(/^ISO-?8859-?(\d+)$/, 'ISO-8859-$1');
    const full = `${base}${codeset ? `.${charset}` : ''}${variant}`, listed = `${base}${codeset ? `.${codeset.toLowerCase().replaceAll('-', '')}` : ''}${variant}`;
    return `locale -a | grep -qxF ${q(listed)} || { echo ${q(`${full} ${charset}`)} >> /etc/locale.gen && locale-gen; }`;
  });
  return lines.length === 0 ? [] : [w.locale, block(lines)];
}

// Files of the host come back to the user of that name; numbers may differ.
function ownersChapter({ host }: Manifest, { byName }: Places, w: RestoreWords): string[] {
  const users = host.users.filter((one) => one.id !== 0 && one.name), groups = host.groups.filter((one) => one.id !== 0 && one.name);
  const lines = [...groups.map((one) => `getent group ${q(one.name)} >/dev/null || groupadd --gid ${one.id} ${q(one.name)} || groupadd ${q(one.name)}`),
    ...users.map((one) => {
      const group = (groups.find((other) => other.id === one.group) ?? groups.find((other) => other.name === one.name))?.name, rest = `--no-create-home ${one.home ? `--home-dir ${q(one.home)} ` : ''}${one.shell ? `--shell ${q(one.shell)} ` : ''}${group ? `--gid ${q(group)} ` : ''}`;
      return `getent passwd ${q(one.name)} >/dev/null || useradd --uid ${one.id} ${rest}${q(one.name)} || useradd ${rest}${q(one.name)}`;
    })];
  if (byName.length === 0 || lines.length === 0) return [];
  return [`## 3. ${w.owners}`, w.byName, block(lines)];
}

// What lies in the way is moved, never deleted. Below /etc it would be found by programs (Debian takes a folder below /etc/postgresql for a cluster): it goes to /root.
const asidePath = (place: string) => (isBelow(place, '/etc') ? `/root/$AWAY${pasteable([place])}` : `${pasteable([place])}.$AWAY`);

function makeRoom({ plan, parents, host, postgres }: Manifest, clusters: HostCluster[], { byName, byNumber, system }: Places, w: RestoreWords): string[] {
  const stops = plan.parts.filter((part) => part.wasRunning).map((part) => `${q(...part.stop)} || true`);
  const debian = clusters.filter((one) => one.configFolder && !plan.parts.some((part) => part.wasRunning && part.dataDirectory === one.dataDirectory)).map((one) => `systemctl stop ${q(`postgresql@${one.name.replace('/', '-')}`)} || true`);
  // What PostgreSQL looks for over a link that is in no archive: see the judge's linkFindings().
  const links = clusters.flatMap((one): [string, string][] => [[postgres.find((told) => told.dataDirectory === one.dataDirectory)?.settings?.data_directory || one.dataDirectory, one.dataDirectory], ...one.tablespaces.filter(({ location }) => one.roots.includes(location)).map(({ link, location }): [string, string] => [link, location])])
    .filter(([link, to]) => path.isAbsolute(link) && link !== to);
  const user = (uid: number) => host.users.find((one) => one.id === uid)?.name || String(uid), group = (gid: number) => host.groups.find((one) => one.id === gid)?.name || String(gid);
  const needed = parents.filter((one) => !byName.some((place) => isBelow(one.path, place))).filter((one) => !byNumber.some((volume) => isBelow(volume, one.path)) || byName.some((place) => isBelow(place, one.path)));
  return [`## 4. ${w.room}`, w.notHere, block([...stops, ...debian].concat(stops.length + debian.length === 0 ? [`true   # ${w.nothingStopped}`] : [])),
    w.comeBack, [...byName, ...byNumber].map((one) => `- \`${one}\``).join('\n'),
    untilFirstError([...clusters.map((one) => `[ ! -e ${q(`${one.dataDirectory}/postmaster.pid`)} ]   # ${w.noPostgres}`),
      'aside() {', '  [ -e "$1" ] || [ -L "$1" ] || return 0', '  if mountpoint -q "$1"; then mkdir "$1/.$AWAY"; find "$1" -mindepth 1 -maxdepth 1 ! -name ".$AWAY" ! -name lost+found -exec mv -t "$1/.$AWAY" {} +; return; fi',
      '  [ ! -e "$2" ]; mkdir -p "${2%/*}"; mv -T "$1" "$2"', '}', ...[...byName, ...byNumber].map((one) => `aside ${q(one)} ${asidePath(one)}`),
      ...links.map(([link, to]) => `[ "$(realpath -m ${q(link)})" = "$(realpath -m ${q(to)})" ] || { aside ${q(link)} ${asidePath(link)}; mkdir -p ${q(path.dirname(link))}; ln -s -T ${q(to, link)}; }   # ${w.lookedFor}`),
      ...clusters.flatMap((one) => one.configLinks ?? []).map(({ link, location }) => `[ -e ${q(link)} ] || { mkdir -p ${q(path.dirname(link))}; ln -sf -T ${q(location, link)}; }   # ${w.lookedFor}`)]),
    ...(needed.length > 0 ? [w.above,
      block(needed.map((one) => `[ -d ${q(one.path)} ] || install -d -m ${one.mode} -o ${q(user(one.uid))} -g ${q(group(one.gid))} ${q(one.path)}`))] : []),
    ...(system.length > 0 ? [w.system(system.map((one) => `\`${one}\``).join(', '), `mkdir /root/old && cd /root/old && borg extract "::$ARCHIVE" ${stored(system)}`)] : [])];
}

function extraction({ containers, plan }: Manifest, { byName, byNumber, looked }: Places, w: RestoreWords): string[] {
  const mounts = containers.flatMap((one) => one.mounts);
  const volumes = byNumber.flatMap((place) => mounts.filter((one) => one.type === 'volume' && one.source === place).map((one) => ({ place, name: String(one.name) })).slice(0, 1));
  const otherVolumes = [...new Set(plan.roots.filter((root) => byNumber.includes(root.path) && root.path.endsWith('/_data')).map((root) => root.why.slice('volume '.length)))].filter((one) => !volumes.some(({ name }) => name === one) && !one.includes('/'));
  const make = [...volumes.map(({ name }) => name), ...otherVolumes];
  return [`## 5. ${w.extract}`, ...(make.length > 0 ? [w.volumes, block(make.map((name) => `docker volume inspect ${q(name)} >/dev/null 2>&1 || docker volume create ${q(name)}`))] : []),
    untilFirstError(['cd /', ...(byName.length > 0 ? [`borg extract --sparse "::$ARCHIVE" ${stored(byName)}${byNumber.some((one) => byName.some((place) => isBelow(one, place))) ? byNumber.map((one) => ` --exclude ${stored([one])}`).join('') : ''}`] : []),
      ...(byNumber.length > 0 ? [`borg extract --sparse --numeric-ids "::$ARCHIVE" ${stored(byNumber)}   # ${w.numbers}`] : []),
      ...looked.map((one) => `[ -e ${q(one)} ] || borg extract --sparse --numeric-ids "::$ARCHIVE" ${stored([one])}   # ${w.lookedAt}`)]), // a source that is missing is made by Docker, an empty folder
    w.takesLong];
}

function containersAgain({ containers, plan }: Manifest, w: RestoreWords): string[] {
  if (containers.length === 0) return [];
  const isSaved = (file: string) => plan.roots.some((root) => isBelow(file, root.path));
  const lines = containers.map((one) => `- ${w.container(one.name, one.image, one.imageDigests.join(', ') || one.imageId, one.restartPolicy || w.no, one.user, one.ports.join(', ') || w.none,
    one.mounts.map((mount) => `${mount.name || mount.source}:${mount.destination}${mount.writable ? '' : ':ro'}`).join(' ') || w.none, one.environmentNames.filter((name) => name !== 'PATH').join(' ') || w.none, one.composeProject ? w.inFolder(one.composeProject, one.composeFolder) : '')}`);
  const projects = [...new Set(containers.filter((one) => one.composeProject && one.composeFiles.length > 0).map((one) => JSON.stringify([one.composeProject, one.composeFolder, one.composeFiles])))].map((one): [string, string, string[]] => JSON.parse(one));
  const ready = projects.filter(([, , files]) => files.every(isSaved)), lost = projects.filter(([, , files]) => !files.every(isSaved));
  const byHand = containers.filter((one) => !one.composeProject || one.composeFiles.length === 0);
  return [`## 6. ${w.containers}`, w.noFiles, lines.join('\n'),
    ...(ready.length > 0 ? [block(ready.map(([project, folder, files]) => `docker compose --project-name ${q(project)} --project-directory ${q(folder)} ${files.map((file) => `--file ${q(file)}`).join(' ')} create`))] : []),
    ...lost.map(([project, , files]) => w.lost(project, files.join(', '))),
    ...(byHand.length > 0 ? [w.byHand(byHand.map((one) => `\`${one.name}\``).join(', '))] : []),
    w.digest];
}

function startChapter(manifest: Manifest, clusters: HostCluster[], w: RestoreWords): string[] {
  const { plan } = manifest;
  const runsAlready = (part: (typeof plan.parts)[number]) => clusters.some((one) => one.pid !== 0 && !one.configFolder && one.dataDirectory === part.dataDirectory);
  const parts = [...plan.parts].reverse().filter((part) => part.wasRunning && !runsAlready(part));
  const lines = [...parts.map((part) => q(...part.start))];
  if (lines.length === 0) return [];
  const inContainers = plan.clusters.filter((one) => one.container !== '' && one.pid !== 0);
  const missing = parts.filter((part) => part.kind === 'service' || part.kind === 'command').map((part) => part.name);
  return [`## 8. ${w.start}`, ...(missing.length > 0 ? [w.programs(missing.join(', '))] : []), block(lines),
    ...(inContainers.length > 0 ? [w.inContainers, counting(Object.fromEntries(inContainers.map((one) => [one.name, psqlIn(one)])), w,
      inContainers.map((one) => `for i in $(seq 60); do ${q(...psqlIn(one))} -d template1 -c 'select' </dev/null >/dev/null 2>&1 && break; sleep 1; done`))] : []),
    w.twoOfIt, w.stays];
}

// Who holds the same data went on while these clusters go back in time: nobody would notice.
function partnersChapter({ postgres }: Manifest, w: RestoreWords): string[] {
  const inText = (name: string) => oneLine(name).replaceAll('`', "'"); // nobody's name opens a block in this file
  const lines = postgres.flatMap((one) => partnersOf(one).map(({ kind, name, database }) => `- PostgreSQL ${inText(one.name)}, ${w.partner[kind](inText(name), inText(database), inText(quotedName(name)))}`));
  return lines.length === 0 ? [] : [`## ${w.others}`, w.partners, lines.join('\n')];
}

function goingBack({ byName, byNumber }: Places, w: RestoreWords): string[] {
  const places = [...byName, ...byNumber];
  if (places.length === 0) return [];
  return [`## ${w.back}`, w.toGoBack,
    ['```', ...places.map((one) => `mv -T ${q(one)} ${q(one)}.restored && mv -T ${asidePath(one)} ${q(one)}`), '```'].join('\n'), w.remove];
}

function onlyAPart({ plan }: Manifest, clusters: HostCluster[], { byName, byNumber, system }: Places, w: RestoreWords): string[] {
  const folder = plan.roots.find((root) => root.why === 'folder')?.path ?? [...byName, ...byNumber, ...system][0];
  const numeric = folder && byNumber.includes(folder) ? '--numeric-ids ' : '';
  return [`## ${w.part}`, w.onlyPart,
    untilFirstError([`mkdir -m 700 "/root/part-$AWAY" && cd "/root/part-$AWAY"`, `borg extract --sparse ${numeric}"::$ARCHIVE" ${stored([folder ?? '/record'])}`, 'find . -maxdepth 4 | head -20']),
    ...clusters.filter((one) => one.configFolder).flatMap((one) => besides(one, w))];
}

// A second PostgreSQL beside the first: its links turned to the copy, its own socket, nothing that reaches out, no jobs of its libraries.
function besides(cluster: HostCluster, w: RestoreWords): string[] {
  const inside = (place: string) => `"$L"${q(place)}`, bin = cluster.binaries || `/usr/lib/postgresql/${cluster.version}/bin`, config = inside(cluster.configFolder);
  const links = [...(cluster.walFolder !== `${cluster.dataDirectory}/pg_wal` ? [{ link: 'pg_wal', to: cluster.walFolder }] : []), ...cluster.tablespaces.filter((one) => one.location).map((one) => ({ link: `pg_tblspc/${one.oid}`, to: one.location }))];
  const as = `runuser -u ${q(cluster.owner)} --`;
  const settings = [`config_file=$C/postgresql.conf`, 'data_directory=$D', 'hba_file=$C/pg_hba.conf', 'ident_file=$C/pg_ident.conf', 'external_pid_file=$D/look.pid', 'unix_socket_directories=$L', 'port=5999', 'listen_addresses=', 'archive_mode=off', 'max_logical_replication_workers=0', 'shared_preload_libraries=', 'ssl=off', 'logging_collector=off',
    ...(Number(cluster.version) < 15 ? ['stats_temp_directory=pg_stat_tmp'] : [])]; // Debian's names one for all that bear this cluster's name; from 15 on there is none
  return [w.look(cluster.name),
    untilFirstError([`L="/var/lib/postgresql/look-$AWAY"; D=${inside(cluster.dataDirectory)}; C=${config}`, 'install -d -m 711 "$L" && cd "$L"', `borg extract --sparse "::$ARCHIVE" ${stored(outermost([...cluster.roots, cluster.configFolder]))}`,
      `find "$L" -type d -user root -exec chmod go+x {} +   # ${w.rootAlone}`,
      ...links.map(({ link, to }) => `ln -sfn ${inside(to)} "$D/${link}"   # ${w.elseRunning}`), `chown ${q(cluster.owner)} "$L"`,
      `${as} ${q(path.join(bin, 'pg_ctl'))} start -w -s -l "$L/log" -D "$D" -o "${settings.map((one) => `-c ${one}`).join(' ')}"`,
      `${as} psql -h "$L" -p 5999 -d postgres -c 'show data_directory' -c '\\l'`,
      `${as} ${q(path.join(bin, 'pg_ctl'))} stop -s -D "$D"   # ${w.goOnLooking}`])];
}
