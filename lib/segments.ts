// The files of a borg 1 repository, read from outside: its transactions, what each changed, and when.
// That is by the storage's own note. No key is needed and borg is not asked. A repository is a list of segment files that only grows; each entry is crc32, size, tag
// and, for PUT and DELETE, the id of a chunk; a COMMIT ends a transaction, whose number is that of its segment file (borg: docs/internals/data-structures.rst,
// "Segments"; repository.py). The storage's server writes a DELETE before it PUTs an id again, whatever a client asks: a client cannot hide that. The reader below
// is Python, which is there wherever borg is. It only reads, one entry at a time.
import { Problem } from './say.ts';
import { misfit } from './form.ts';
import type { Form } from './form.ts';
import { folderThere, onStorage } from './operator.ts';
import type { OperatedServer } from './operator.ts';

/** One transaction. deletes and found: [id, its place in the transaction]; found: PUTs of the ids that were asked for. manifest: size of the last one, null: none was written. */
export type Transaction = { number: number; time: string | null; fileTime: string; puts: number; bytes: number; manifest: number | null; deletes: [string, number][]; deleted: number; found: [string, number][] };

/** The repository as it was read. oldFiles: the segment files up to `after`; oldLog: the file `transactions` up to its first `logBytes` bytes. state: changes when anybody writes anything, committed or not.
 * now: the storage's own clock; newest: when a data file was written last; quotas: as the repository and authorized_keys say, '500G'; disk: its file system, in bytes. */
export type Reading = { transactions: Transaction[]; config: Record<string, string>; nonce: string; damage: string[]; last: number; bytes: number; segments: number; files: { count: number; sha256: string };
  oldFiles: { count: number; sha256: string }; log: { bytes: number; sha256: string }; oldLog: string; appendOnlyLines: number; state: string; serving: string[]; locked: boolean;
  now: string; newest: string; quotas: string[]; disk: { free: number; total: number; id: number } };

/** What to read: transactions after that one, up to this one (0: all); the ids whose PUTs are wanted; whether data is read, too, and its checksum compared. */
export type Wanted = { after: number; until: number; logBytes: number; ids: string[]; data: boolean };

const READER = String.raw`
import configparser, datetime, hashlib, json, os, struct, sys, time, zlib
served = os.path.realpath(SERVED)
if not os.path.isdir(os.path.join(REPO, 'data')): sys.exit('NOT THERE: no repository in ' + os.path.abspath(REPO))
os.chdir(REPO)
say = lambda **what: sys.stdout.write(json.dumps(what) + '\n')
digest = lambda lines: hashlib.sha256(''.join('%d %d\n' % line for line in lines).encode()).hexdigest()
segments = {}
for folder in os.listdir('data'):
    for name in os.listdir(os.path.join('data', folder)):
        if name.isdigit(): segments[int(name)] = os.path.join('data', folder, name)
log, times = b'', {}
if os.path.exists('transactions'): log = open('transactions', 'rb').read()
log = log[:log.rfind(b'\n') + 1]
for line in log.decode('ascii', 'replace').split('\n'):
    words = line.replace(',', '').split()
    if len(words) == 5 and words[1].isdigit(): times[int(words[1])] = words[4]
sizes = [(number, os.stat(segments[number]).st_size) for number in sorted(segments)]
wanted, manifest_id = set(map(bytes.fromhex, IDS)), bytes(32)
last, damage, pending = AFTER, [], []
fresh = lambda: dict(puts=0, bytes=0, manifest=None, deleted=0)
now, place = fresh(), 0
for number, size_of_file in sizes:
    if number <= AFTER or (UNTIL and number > UNTIL): continue
    try: file = open(segments[number], 'rb')
    except FileNotFoundError: continue # the rest of a broken upload, cleaned up just now
    with file:
        if file.read(8) != b'BORG_SEG': pending.append('data file %d does not begin as one' % number)
        while True:
            head = file.read(9)
            if not head: break
            crc, size, tag = struct.unpack('<IIB', head) if len(head) == 9 else (0, 0, 255)
            if tag > 2 or size < (9 if tag == 2 else 41):
                pending.append('data file %d cannot be read from byte %d on' % (number, file.tell() - len(head)))
                break
            key, rest = (file.read(32), size - 41) if tag < 2 else (b'', size - 9)
            if rest > os.fstat(file.fileno()).st_size - file.tell():
                pending.append('data file %d: the entry before byte %d is longer than the file' % (number, file.tell()))
                break
            place += 1
            if DATA or rest < 4096:
                data = file.read(rest)
                if len(data) < rest or zlib.crc32(data, zlib.crc32(head[4:] + key)) != crc: pending.append('data file %d: the entry before byte %d is damaged' % (number, file.tell()))
            else: file.seek(rest, 1)
            if tag == 2:
                for text in pending[:20]: damage.append(text)
                last, pending, place = number, [], 0
                stamp = datetime.datetime.fromtimestamp(os.fstat(file.fileno()).st_mtime, datetime.timezone.utc).strftime('%Y-%m-%dT%H:%M:%S.%f')
                say(number=number, time=times.get(number), fileTime=stamp, **now)
                now = fresh()
            elif key == manifest_id:
                if tag == 0: now['manifest'] = size
                if tag == 0: now['bytes'] += size
            elif tag == 0:
                now['puts'] += 1
                now['bytes'] += size
                if key in wanted: say(found=key.hex(), place=place)
            else:
                now['deleted'] += 1
                if now['deleted'] <= 10000: say(deleted=key.hex(), place=place)
        if number <= last and size_of_file < file.tell(): damage.append('data file %d is cut off' % number)
config = configparser.ConfigParser(interpolation=None)
config.read('config')
serving = []
for pid in filter(str.isdigit, os.listdir('/proc') if os.path.isdir('/proc') else []):
    try: words = open('/proc/%s/cmdline' % pid, 'rb').read().decode('utf8', 'replace').split('\0')
    except OSError: continue
    if 'serve' not in words or not any('borg' in os.path.basename(word) for word in words[:3]): continue
    allowed = [word.split('=', 1)[1] if '=' in word else words[at + 1] for at, word in enumerate(words) if word.startswith('--restrict-to-')]
    try: home = os.readlink('/proc/%s/cwd' % pid)
    except OSError: home = '/'
    places = [os.path.realpath(os.path.join(home, os.path.expanduser(one))) for one in allowed]
    if not places or any(served == one or served.startswith(one.rstrip('/') + '/') for one in places): serving.append('process %s: %s' % (pid, ' '.join(words).strip()))
committed = [line for line in sizes if line[0] <= last]
stamped = lambda at: datetime.datetime.fromtimestamp(at, datetime.timezone.utc).strftime('%Y-%m-%dT%H:%M:%SZ')
disk, home, quotas = os.statvfs('.'), os.path.expanduser('~'), [config['repository'].get('storage_quota', '0')]
lines = open(home + '/.ssh/authorized_keys', errors='replace') if os.access(home + '/.ssh/authorized_keys', os.R_OK) else []
for words in [line.split(chr(34))[1].split() for line in lines if line.count(chr(34)) > 1]:
    after = lambda option: [word.split('=', 1)[1] if '=' in word else following for word, following in zip(words, words[1:] + ['']) if word.startswith(option)]
    if served in [os.path.realpath(os.path.join(home, os.path.expanduser(one))) for one in after('--restrict-to-')]: quotas += after('--storage-quota')
say(config=dict(config['repository']), nonce=open('nonce').read().strip() if os.path.exists('nonce') else '', damage=damage[:100], last=last,
    bytes=sum(size for number, size in committed), segments=len(committed), files=dict(count=len(committed), sha256=digest(committed)),
    oldFiles=dict(count=len([1 for line in sizes if line[0] <= AFTER]), sha256=digest([line for line in sizes if line[0] <= AFTER])),
    log=dict(bytes=len(log), sha256=hashlib.sha256(log).hexdigest()), oldLog=hashlib.sha256(log[:LOG]).hexdigest(), appendOnlyLines=len(times),
    now=stamped(time.time()), newest=stamped(os.stat(segments[sizes[-1][0]]).st_mtime) if sizes else '', quotas=quotas, disk=dict(free=disk.f_bavail * disk.f_frsize, total=disk.f_blocks * disk.f_frsize, id=os.stat('.').st_dev),
    state=hashlib.sha256(repr((digest(sizes), log, open('nonce').read() if os.path.exists('nonce') else '')).encode()).hexdigest(), serving=serving, locked=os.path.exists('lock.exclusive') and bool(os.listdir('lock.exclusive')))
`;

/** The reader as a text for python3. served: where the repository is when `borg serve` opens it; folder: where it is now. Its last line is a JSON object. */
export function readerText(folder: string, served: string, { after, until, logBytes, ids, data }: Wanted): string {
  const values = { REPO: folder, SERVED: served, AFTER: after, UNTIL: until, LOG: logBytes, IDS: ids };
  return `${Object.entries(values).map(([name, value]) => `${name} = ${JSON.stringify(value)}\n`).join('')}DATA = ${data ? 'True' : 'False'}\n${READER}`;
}

const SUM: Form = { sha256: 'text' };
// What READER prints: a line for each piece that was found or deleted, one for each transaction, and at the end one for the whole.
const FOUND_LINE: Form = { found: 'hex', place: 'number' }, DELETED_LINE: Form = { deleted: 'hex', place: 'number' };
const TRANSACTION_LINE: Form = { number: 'id', 'time?': 'time', fileTime: 'time', puts: 'number', bytes: 'number', 'manifest?': 'number', deleted: 'number' };
const LAST_LINE: Form = { config: { '*': 'text', id: 'hex' }, nonce: 'text', damage: ['text'], last: 'id', bytes: 'number', segments: 'number', files: { ...SUM, count: 'number' }, oldFiles: { ...SUM, count: 'number' }, log: { ...SUM, bytes: 'number' },
  oldLog: 'text', appendOnlyLines: 'number', state: 'text', serving: ['text'], locked: 'yes or no',
  now: 'time', newest: 'text', quotas: ['text'], disk: { free: 'number', total: 'number', id: 'number' } };

// A storage that is in an intruder's hands may answer anything.
function readerLine(line: string, server: string): any {
  let what: any = null;
  try {
    what = JSON.parse(line);
  } catch { /* told below */ }
  const form = what?.config ? LAST_LINE : what?.found !== undefined ? FOUND_LINE : what?.place !== undefined ? DELETED_LINE : TRANSACTION_LINE, odd = misfit(what, form);
  if (odd) throw new Problem(`what the storage of ${server} says of the repository's files is not understood (${odd})`,
    { said: line.slice(0, 200), hint: 'is that a plain shell over there, which says nothing of its own? Else ask the storage\'s keeper' });
  return what;
}

/**
 * Given a server, what is wanted and (when it is not the settings') the folder, reads the repository's files where they lie,
 * and returns what they say. Throws Problem when they cannot be read.
 */
export async function readRepository(one: OperatedServer, wanted: Wanted, folder = folderThere(one)): Promise<Reading> {
  const transactions: Transaction[] = [], found: [string, number][] = [], deletes: [string, number][] = [];
  let rest: Omit<Reading, 'transactions'> | null = null;
  const onLine = (line: string) => {
    const what = readerLine(line, one.server);
    if (what.config) rest = what;
    else if (what.found !== undefined) found.push([what.found, what.place]);
    else if (what.place !== undefined) deletes.push([what.deleted, what.place]);
    else transactions.push({ ...what, found: found.splice(0), deletes: deletes.splice(0) });
  };
  await onStorage(one, `the files of the repository of ${one.server} cannot be read`, ['python3', '-'], readerText(folder, folderThere(one), wanted),
    { looks: true, onLine, keepBytes: 0, seconds: wanted.after === STATE_ALONE.after ? 600 : 24 * 3600 });
  if (!rest) throw new Problem(`the files of the repository of ${one.server} were not read to their end`);
  return { ...rest as Omit<Reading, 'transactions'>, transactions };
}

/** When a transaction was, as the storage itself noted: ISO 8601 UTC, to the second. */
export const timeOf = ({ time, fileTime }: Transaction) => `${(time ?? fileTime).slice(0, 19)}Z`;

/** What to read when only the repository's state is of interest, not its transactions: no data file has so high a number, so none is opened. */
export const STATE_ALONE: Wanted = { after: 2 ** 32 - 1, until: 0, logBytes: 0, ids: [], data: false };
