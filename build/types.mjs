// Takes the TypeScript types out of a source and leaves everything else as it was written: comments, names, blank lines.
// amaro (the stripper that Node.js itself uses) puts blanks of equal length in the place of a type; exactly those are removed.
import amaro from 'amaro';
import { transformSync } from 'esbuild';

/** The program in CODE without comments and white space, as esbuild understands it. Throws when it is no valid program. */
export function compact(code, loader, target = 'esnext') {
  return transformSync(code, { loader, target, minifyWhitespace: true, logLevel: 'silent',
    tsconfigRaw: { compilerOptions: { verbatimModuleSyntax: true, target: 'esnext' } } }).code;
}

const DECLARATION = /^(export |declare )*(type|interface) /;

/** Given a TypeScript source, returns it as JavaScript. Throws when that would be another program. */
export function withoutTypes(source) {
  const text = amaro.transformSync(source, { mode: 'strip-only' }).code;
  if (text.length !== source.length) throw new Error('please use plain letters inside types');
  let out = '';
  for (let i = 0, end; i < text.length; i = end) {
    for (end = i; end < text.length && !/\s/.test(text[end]); ) end++;
    if (end > i) {
      out += text.slice(i, end);
      continue;
    }
    while (end < text.length && /\s/.test(text[end])) end++; // i..end is white space, and in it first..last was a type
    let first = i, last = end - 1;
    while (first < end && text[first] === source[first]) first++;
    while (last >= first && text[last] === source[last]) last--;
    const declares = first < end && DECLARATION.test(source.slice(first, last + 1));
    let rest = first === end ? '' : source.slice(last + 1, end);
    while (declares && text.startsWith('//', end) && !rest.includes('\n')) { // what is said beside a line of a type goes with it
      const lineEnd = text.indexOf('\n', end);
      for (end = lineEnd; end < text.length && /\s/.test(text[end]); ) end++;
      let until = end - 1; // the type may go on behind its comment
      while (until >= lineEnd && text[until] === source[until]) until--;
      rest = source.slice(until + 1, end);
    }
    const gap = first === end || last < first ? text.slice(i, end) : gapLeftBy(source.slice(i, first), source.slice(first, last + 1), rest, text[end]);
    out += gap; // in two steps: gapLeftBy may take a comment off the end of `out`
  }
  if (compact(source, 'ts') !== compact(out, 'js')) throw new Error('taking out the types would change the program');
  return out;

  // What stays of `before TYPE after`: no hole in a line, no doubled blank line.
  function gapLeftBy(before, type, after, next = '\n') {
    const startsLine = before.includes('\n') || out === '';
    if (startsLine && after.includes('\n')) { // whole lines; a /** */ right above a type goes with it, a // stays
      if (DECLARATION.test(type) && !/\n[ \t]*\n/.test(before)) out = out.replace(/(^|\n)[ \t]*\/\*\*(?:(?!\*\/)[^])*\*\/$/, '$1');
      before = before.replace(/[^\n]*$/, '');
      after = after.replace(/^[ \t]*\n/, '');
    } else if (startsLine || (before === '' && out.endsWith('('))) after = after.replace(/^[ \t]+/, '');
    else if (/^[,;:)\]}.\n ]/.test(after + next)) before = before.replace(/[ \t]+$/, '');
    return (before + after).replace(/\n{3,}/g, '\n\n');
  }
}
