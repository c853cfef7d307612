// Looking through what came back, by RESTORE.md, before it is let loose.
// Every table that the manifest counted is counted again; indexes that another libc or ICU sorts otherwise are rebuilt. Only
// makes text, quoted for the shell.
import path from 'node:path';
import { pasteable } from './say.ts';
import { quotedName } from './questions.ts';
import type { Manifest } from './record.ts';
import type { RestoreWords } from './words.ts';

export type HostCluster = Manifest['plan']['clusters'][number];

const LOCKED_IN = '-c listen_addresses= -c archive_mode=off -c max_logical_replication_workers=0';

export const q = (...words: string[]) => pasteable(words);
export const block = (lines: string[]) => ['```sh', ...lines, '```'].join('\n');
export const untilFirstError = (lines: string[]) => block(['( set -e', ...lines, ')']); // pasted or not, it ends at the first command that fails

const psqlOf = (one: HostCluster) => ['runuser', '-u', one.owner, '--', 'env', 'PGOPTIONS=-c search_path=pg_catalog', 'psql', '-XqAt', '-h', one.socketFolder || '/var/run/postgresql', '-p', one.port || '5432'];

export const psqlIn = (one: HostCluster) => ['docker', 'exec', '--interactive', '--user', String(one.uid), one.container, 'sh', '-c', 'exec psql -XqAt -U "${POSTGRES_USER:-postgres}" "$@"', 'sh'];

export function checksChapter(manifest: Manifest, clusters: HostCluster[], w: RestoreWords): string[] {
  const ran = clusters.filter((one) => one.pid !== 0);
  if (ran.length === 0) return [];
  const starts = ran.map((one) => (one.configFolder ? `pg_ctlcluster --skip-systemctl-redirect ${one.name.split('/').map((word) => q(word)).join(' ')} start -o ${q(LOCKED_IN)}` : startOf(manifest, one)));
  const connections = Object.fromEntries(ran.map((one) => [one.name, psqlOf(one)]));
  return [`## 7. ${w.checks}`, w.alone, untilFirstError(['systemctl daemon-reload || true', ...starts]), w.counted,
    counting(connections, w),
    ...collationsChapter(manifest, ran, w), ...(ran.some((one) => one.configFolder) ? [w.good,
      block(ran.filter((one) => one.configFolder).map((one) => `pg_ctlcluster --skip-systemctl-redirect ${one.name.split('/').map((word) => q(word)).join(' ')} stop`))] : [])];
}

// Counts every table that the manifest counted. connections: by cluster, the words that run psql there.
export const counting = (connections: Record<string, string[]>, w: RestoreWords, first: string[] = []) => block([...first, `python3 - <<'END'`, 'import json, subprocess, sys', `connections = ${JSON.stringify(connections)}`, 'bad = same = 0',
  `for cluster in json.load(open('/root/restore/record/manifest.json'))['postgres']:`,
  `    for database in cluster['databases'] if cluster['name'] in connections else []:`,
  `        if not database['connectable']: continue`,
  `        tables = database.get('rows') or {}`,
  `        sql = ''.join('select %d, count(*) from only %s;\\n' % (number, name) for number, name in enumerate(tables)) or 'select 1;'`,
  `        done = subprocess.run(connections[cluster['name']] + ['-d', database['name']], input=sql, capture_output=True, text=True)`,
  `        here = dict(line.split('|') for line in done.stdout.split() if '|' in line)`,
  `        if done.stderr: print(cluster['name'], database['name'], done.stderr.strip())`,
  `        for number, (name, rows) in enumerate(tables.items()):`,
  `            found = here.get(str(number))`,
  `            if found is None or (rows and found == '0'): bad += 1`,
  `            if found is not None and rows in (None, int(found)): same += 1   # ${w.tooLarge}`,
  `            else: print(cluster['name'], database['name'], name, '${w.recorded}', rows, '${w.here}', found)`,
  `        bad += 0 if done.returncode == 0 else 1`,
  `print('${w.result}' % (same, bad))`, 'sys.exit(1 if bad else 0)', 'END']);

const startOf = ({ plan }: Manifest, cluster: HostCluster) => q(...plan.parts.find((part) => part.dataDirectory === cluster.dataDirectory)?.start ?? ['true']);

// Indexes lie in the order of libc or ICU: another version may sort otherwise. Only those are rebuilt that this archive has.
function collationsChapter({ postgres, host }: Manifest, clusters: HostCluster[], w: RestoreWords): string[] {
  const lines = clusters.flatMap((cluster) => {
    const facts = postgres.find((one) => one.dataDirectory === cluster.dataDirectory);
    return (['c', 'i'] as const).flatMap((provider) => {
      const sql = (facts?.databases ?? []).flatMap((one) => {
        const used = (one.collations ?? []).filter((collation) => collation.provider === provider && !/^(C|POSIX|C\.utf-?8)$/i.test(collation.locale ?? ''));
        const isOwn = one.provider === provider && Number(cluster.version) >= 15 && one.recorded !== null;
        const statements = [...used.flatMap((collation) => collation.indexes.map((index) => `REINDEX INDEX ${index};`)),
          ...used.filter((collation) => collation.name !== 'default' && collation.recorded !== null).map((collation) => `ALTER COLLATION ${[collation.schema, collation.name].map(quotedName).join('.')} REFRESH VERSION;`),
          ...used.flatMap((collation) => collation.partitionedTables.map((table) => `-- ${w.partitions(table)}`)),
          ...(isOwn ? [`ALTER DATABASE ${quotedName(one.name)} REFRESH COLLATION VERSION;`] : [])];
        return statements.length === 0 ? [] : [`${q(...psqlOf(cluster))} -v ON_ERROR_STOP=1 -d ${q(one.name)} <<'END'`, ...statements.map((text) => text.replaceAll('\n', ' ')), 'END'];
      });
      if (sql.length === 0) return [];
      const differs = provider === 'c' ? `[ "$(getconf GNU_LIBC_VERSION)" != ${q(host.libc)} ]`
        : `[ "$(basename "$(readlink -f "$(ldd ${q(path.join(cluster.binaries || `/usr/lib/postgresql/${cluster.version}/bin`, 'postgres'))} | grep -o '/[^ ]*libicui18n[^ ]*')")")" != ${q(facts?.icu ?? '')} ]`;
      return [`if ${differs}; then`, ...sql, 'fi'];
    });
  });
  return lines.length === 0 ? [] : [w.sorted([host.libc, ...new Set(postgres.map((one) => one.icu).filter((one) => one))]), block(lines)];
}
