// What comes from elsewhere must have the form that is read out of it. It is a program's JSON, a record in an archive, a file of ours that a
// bad disk has been at: when it is otherwise, nothing of it is used, and that is a problem told in words, never a crash in the middle of something. Only judges.
import path from 'node:path';
import { failure } from './shell.ts';
import type { Done } from './shell.ts';

/** A kind of value, a list of one form, or a group: a key that ends in '?' may be missing or null, '*' stands for every key. */
export type Form = keyof typeof KINDS_OF_VALUE | readonly [Form] | { readonly [key: string]: Form };

const isText = (value: any) => typeof value === 'string' && !value.includes('\0');
const KINDS_OF_VALUE = {
  text: isText,
  'text or null': (value: any) => value == null || isText(value),
  path: (value: any) => isText(value) && value.startsWith('/') && path.resolve(value) === value,
  time: (value: any) => isText(value) && !Number.isNaN(Date.parse(value)),
  number: (value: any) => Number.isFinite(value),
  id: (value: any) => Number.isInteger(value) && value >= 0 && value < 2 ** 32,
  server: (value: any) => isText(value) && /^[A-Za-z0-9][\w.-]*$/.test(value),
  version: (value: any) => isText(value) && /^\d+(\.\d+)?$/.test(value),
  hex: (value: any) => isText(value) && /^[0-9a-f]*$/.test(value),
  bits: (value: any) => isText(value) && /^[0-7]{3,5}$/.test(value),
  'yes or no': (value: any) => typeof value === 'boolean',
  anything: () => true,
};

/**
 * Given a value and the form it should have, returns the place of the first thing that is otherwise ('plan.roots[0].path',
 * or `at` itself); '' when all is right.
 */
export function misfit(value: any, form: Form, at = 'it'): string {
  if (typeof form === 'string') return KINDS_OF_VALUE[form](value) ? '' : at;
  const isList = Array.isArray(value);
  if (isList !== Array.isArray(form) || typeof value !== 'object' || value === null) return at;
  const places: [any, Form, string][] = isList ? value.map((one, index) => [one, (form as readonly [Form])[0], `${at}[${index}]`])
    : Object.entries(form).flatMap(([key, one]): [any, Form, string][] => {
      if (key === '*') return Object.entries(value).map(([name, own]) => [own, one, `${at}.${name}`]);
      const name = key.replace(/\?$/, '');
      return name !== key && value[name] == null ? [] : [[value[name], one, at === 'it' ? name : `${at}.${name}`]];
    });
  for (const place of places) {
    const found = misfit(...place);
    if (found !== '') return found;
  }
  return '';
}

/**
 * What a program answered as JSON. Given what was asked, in words, how the program ended, and the form, returns the answer.
 * Throws Problem when it is not understood.
 */
export function answerOf(what: string, done: Done, form: Form, text = done.out): any {
  let answer, odd = 'it is no JSON';
  try {
    answer = JSON.parse(text);
    odd = misfit(answer, form);
  } catch { /* cut off, or not for us */ }
  if (odd) throw failure(`${what}: the answer is not understood (${odd})`, done);
  return answer;
}
