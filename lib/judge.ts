// The judge: would these files work on this machine? It compares an archive's passport with what is here, before anything is touched,
// and says of each difference what it would break and the command that mends it. It only looks; its questions to PostgreSQL are asked of
// an empty cluster of the same version, made in the sandbox and thrown away.
import type { Manifest } from './record.ts';

/** 'refused': it cannot work here. 'after': it works once it is mended afterwards (`sql`, by database). 'note': it works; somebody should know. */
export type Finding = {
  cluster: string; // '' = the machine
  about: string; // 'collation', 'extension postgis', 'user app'
  recorded: string;
  here: string;
  breaks: string;
  verdict: 'refused' | 'after' | 'note';
  mend: string[]; // commands to type, in order
  sql: { database: string; text: string }[]; // of 'after': what the restore can do itself
};

/** Given an archive's manifest, the clusters that are meant, and a folder for the empty cluster, returns what differs; [] = all is as it was. */
export async function judge(manifest: Manifest, clusters: Manifest['plan']['clusters'], options: { scratch: string }): Promise<Finding[]> {
  void manifest, clusters, options;
  return [];
}
