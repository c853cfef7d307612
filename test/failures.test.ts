import { scenarios, good } from './scenario.ts';
scenarios('a failure', import.meta.url, {
  'good': async (world) => { await good(world); },
});
