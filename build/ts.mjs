// Lets Node 18 and 20 run the .ts files of the tests directly (Node >= 22.18 can do that by itself).
// Use:  node --import ./build/ts.mjs --test test/*.test.ts
import { readFileSync } from 'node:fs';
import { register } from 'node:module';
import { fileURLToPath } from 'node:url';

if (!process.features.typescript) register(import.meta.url);

export async function load(url, context, nextLoad) {
  if (!url.endsWith('.ts')) return nextLoad(url, context);
  const { default: { transformSync } } = await import('amaro');
  const { code } = transformSync(readFileSync(fileURLToPath(url), 'utf8'), { mode: 'strip-only' });
  return { format: 'module', source: code, shortCircuit: true };
}
