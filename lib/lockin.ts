// Locked in: a cluster's copy finds in its sandbox only what came with it, at the old paths.
// What an archive says of itself is believed nowhere here: whoever could write one would have this machine's root do as it says.
// Changes only the drill's folder.
import fs from 'node:fs';
import path from 'node:path';
import { Problem, named } from './say.ts';
import { failure, look } from './shell.ts';
import { isBelow } from './files.ts';
import { SANDBOX_MARK } from './processes.ts';
import type { Manifest } from './record.ts';
import { openSandbox } from './sandbox.ts';
import type { Place } from './sandbox.ts';
import type { Copy } from './checks.ts';

/** Given the drill's folder, the manifest and a copy, gives the copy to the sandbox's user and opens its sandbox. Throws Problem when something of it would lead out. */
export async function lockIn(folder: string, manifest: Manifest, copy: Copy): Promise<void> {
  const { passport, files } = copy, roots = passport.roots.filter((root) => fs.statSync(files + root, { throwIfNoEntry: false })?.isDirectory() && !['/etc', '/record'].some((folder) => isBelow(root, folder)));
  if (!fs.lstatSync(copy.onHost, { throwIfNoEntry: false })?.isDirectory()) throw new Problem(`${named(passport.dataDirectory)} is not in this archive, or is no folder there: its record cannot be trusted`);
  for (const root of [...roots, passport.dataDirectory]) if (fs.realpathSync(files + root) !== files + root) throw new Problem(`${named(root)} is a link in this archive, or lies below one: its record cannot be trusted`);
  const mounts = manifest.containers.find((box) => box.name === passport.container)?.mounts ?? [];
  const inside = (root: string): string => {
    if (passport.container && isBelow(root, passport.dataDirectory)) return copy.inside + root.slice(passport.dataDirectory.length); // its mount may be typed over a link
    const mount = mounts.filter((single) => isBelow(root, single.source)).sort((a, b) => b.source.length - a.source.length)[0];
    return mount ? path.normalize(mount.destination + root.slice(mount.source.length)) : root;
  };
  // What lies outside is seen where PostgreSQL looks for it, too: its link may lead there over another one, which is in no archive.
  const wal = path.join(copy.onHost, 'pg_wal'), walLink = fs.lstatSync(wal, { throwIfNoEntry: false })?.isSymbolicLink() ? path.resolve(copy.inside, fs.readlinkSync(wal)) : '';
  const looksFor = [...passport.tablespaces.map(({ link, location }) => [location, link] as const), [passport.walFolder, walLink] as const]
    .filter(([root, link]) => roots.includes(root) && typeof link === 'string' && path.isAbsolute(link) && !roots.some((one) => isBelow(link, inside(one))));
  const places: Place[] = [...roots.map((root) => [root, inside(root)] as const), ...looksFor].map(([root, at]) => ({ from: files + root, at: path.resolve('/', at) })).filter(({ at }, index, all) => all.findIndex((other) => other.at === at) === index);
  const system = places.find(({ at }) => /^\/(|(bin|sbin|lib\w*|etc|proc|dev|sys|own|tmp)(\/.*)?|usr|usr\/local|usr\/(local\/)?(s?bin|lib\w*)(\/.*)?)$/s.test(at) && !/^\/tmp\/./.test(at));
  if (system) throw new Problem(`${named(system.at)} is a folder of the system, no place for a cluster: the record of this archive cannot be trusted`);
  // A standby's copy comes up by itself, and follows nobody. And whatever its owner may have put in the place of our mark goes.
  for (const name of ['standby.signal', 'recovery.signal', SANDBOX_MARK]) fs.rmSync(path.join(copy.onHost, name), { force: true, recursive: true });
  fs.writeFileSync(path.join(copy.onHost, SANDBOX_MARK), '', { flag: 'wx' });
  copy.sandbox = await openSandbox(folder, places, copy.programs);
  const user = fs.statSync(path.join(folder, 'own'));
  const owned = await look(['find', ...places.map(({ from }) => from), '-type', 'b,c', '-delete', '-o', '-exec', 'chown', '--no-dereference', `${user.uid}:${user.gid}`, '{}', '+'], { seconds: 3600 }); // a device would be this machine's
  if (owned.code !== 0) throw failure('the copy cannot be given to the user of the sandbox', owned);
  const opened = await look(['chmod', 'u=rwx,go=', ...places.map(({ from }) => from)]); // PostgreSQL insists
  if (opened.code !== 0) throw failure('the copy cannot be closed to others', opened);
}
