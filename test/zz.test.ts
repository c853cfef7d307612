import { scenarios, good } from './scenario.ts';
import { execFileSync, spawnSync } from 'node:child_process';
import fs from 'node:fs';
scenarios('prof', import.meta.url, {
  'one': async (world) => {
    for (const warm of [true, false]) {
      world.server.writeSettings({ warmPass: warm });
      const e = spawnSync('/usr/bin/time', ['-f', '%e real %U user %S sys', process.execPath, world.server.script, '--verbose'], { encoding: 'utf8' });
      console.log('note: ' + e.stderr.trim().replaceAll('\n', ' '));
      if (warm) for (const l of e.stdout.split('\n')) console.log('note: ' + l.slice(0, 150));
    }
    const e = spawnSync('/usr/bin/time', ['-f', '%e real %U user %S sys', 'borg', 'list', '--short'], { encoding: 'utf8', env: world.server.borgEnv() });
    console.log('note: ' + e.stderr.trim());
    const f = spawnSync('/usr/bin/time', ['-f', '%e real %U user %S sys', 'borg', '--version'], { encoding: 'utf8', env: world.server.borgEnv() });
    console.log('note: ' + f.stderr.trim());
  },
});
