// Lets Node 18 and 20 run the .ts files of the tests directly (Node >= 22.18 can do that by itself).
// Use:  node --import ./build/ts.mjs --test test/*.test.ts
// What was stripped once is kept in node_modules/.cache: loading the stripper takes two seconds, and every scenario is a process of its own.
import { createHash } from 'node:crypto';
import fs from 'node:fs';
import { register } from 'node:module';
import { fileURLToPath } from 'node:url';

if (!process.features.typescript) register(import.meta.url);

const cache = fileURLToPath(new URL('../node_modules/.cache/stripped/', import.meta.url));

export async function load(url, context, nextLoad) {
  if (!url.endsWith('.ts')) return nextLoad(url, context);
  const text = fs.readFileSync(fileURLToPath(url), 'utf8'), kept = `${cache}${createHash('sha256').update(text).digest('hex')}.mjs`;
  if (!fs.existsSync(kept)) {
    const { default: { transformSync } } = await import('amaro');
    fs.mkdirSync(cache, { recursive: true });
    const draft = `${kept}.${process.pid}`; // several processes may come here at once
    fs.writeFileSync(draft, transformSync(text, { mode: 'strip-only' }).code);
    fs.renameSync(draft, kept);
  }
  return { format: 'module', source: fs.readFileSync(kept), shortCircuit: true };
}
