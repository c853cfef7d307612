// What is written for people, in English and Spanish: nothing is missing in either, and both say the same things of the same things.
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { WORDS } from '../lib/words.ts';
import { REPORT_WORDS } from '../lib/reportwords.ts';
import { messageOf } from '../lib/outcome.ts';
import type { HistoryLine } from '../lib/history.ts';

type Entry = { at: string; text: string; given: string[] };

/** Every text of a table by its place; a function is called with marks that must come back. */
function entries(table: object, at = ''): Entry[] {
  return Object.entries(table).flatMap(([key, value]): Entry[] => {
    const place = `${at}${key}`;
    if (typeof value === 'object') return entries(value, `${place}.`);
    if (typeof value === 'string') return [{ at: place, text: value, given: [] }];
    const marks = Array.from({ length: value.length }, (_, index) => `MARK${index}`);
    return [{ at: place, text: value(...(place.endsWith('sorted') ? [marks] : marks)), given: marks }, ...['servers', 'days', 'warning'].filter((name) => place.endsWith(name) && value.length < 3).map((name) => ({ at: `${place} of one`, text: value(1, ...marks.slice(1)), given: [] }))];
  });
}

for (const [name, { en, es }] of Object.entries({ 'RESTORE.md, the recovery sheet and messages': WORDS, 'the report': REPORT_WORDS })) {
  test(`${name}: no text is missing in a language, and each says what it is given`, () => {
    const english = entries(en), spanish = entries(es);
    assert.ok(english.length > 50);
    assert.deepEqual(spanish.map(({ at }) => at), english.map(({ at }) => at));
    const used = ({ text, given }: Entry) => given.filter((mark) => text.includes(mark));
    for (const [index, { at, text, given }] of english.entries()) {
      const other = spanish[index]!;
      assert.ok(text.trim() !== '' && other.text.trim() !== '', at);
      assert.deepEqual(used(other), used(english[index]!), at);
      if (!/isRemote|need$/.test(at)) assert.deepEqual(used(other), given, `${at}: something given is not said`);
      const code = (said: string) => (said.match(/`[^`]*`/g) ?? []).map((one) => one.replace('NOMBRE', 'NAME'));
      assert.deepEqual(code(other.text), code(text), `${at}: commands and names are the same in every language`);
      for (const sign of ['%d', '$AWAY', '"', "'"]) if (/^restore\.(result|recorded|here|tooLarge)/.test(at)) assert.equal(other.text.includes(sign), text.includes(sign), at);
    }
    const same = english.filter(({ text, given }, index) => text === spanish[index]!.text && given.length === 0 && !text.startsWith('MARK')).map(({ at }) => at);
    assert.deepEqual(same.filter((at) => !/^(restore\.no|locale|hours|minutes)$/.test(at)), [], 'these are not translated');
  });
}

test('the subject of a message begins with outcome and server in both languages, and the body has the words of the terminal', () => {
  const line = { kind: 'run', startedAt: '2026-11-23T02:00:00.000Z', endedAt: '2026-11-23T03:00:00.000Z', outcome: 'failed', exitCode: 2, server: 'web1', archive: 'web1-2026-11-23T02:00:00', downSeconds: 61.4, startSeconds: 1, parts: [], warm: null, cold: null, snapshot: '', warnings: ['one'], error: 'the line was cut' } as HistoryLine;
  const subjects = (language: 'en' | 'es') => (['start', 'good', 'warning', 'failed', 'down'] as const).map((outcome) => messageOf(line, ['service nginx'], outcome, 'all run', language));
  assert.deepEqual(subjects('en').map(({ subject }) => subject), ['start: web1: the backup begins', 'good: web1: good backup, down 1 min 1 s', 'warning: web1: backup with 1 warning, down 1 min 1 s', 'failed: web1: NO new backup: the line was cut', 'down: web1: SERVICES NOT RUNNING: service nginx']);
  assert.deepEqual(subjects('es').map(({ subject }) => subject), ['inicio: web1: empieza la copia', 'correcto: web1: copia correcta, servicios detenidos 1 min 1 s', 'aviso: web1: copia con 1 aviso, servicios detenidos 1 min 1 s', 'fallo: web1: NO hay copia nueva: the line was cut', 'detenido: web1: SERVICIOS DETENIDOS: service nginx']);
  assert.deepEqual(subjects('es').map(({ body, outcome }) => [body, outcome]), subjects('en').map(({ body, outcome }) => [body, outcome]));
});
