// How a night ended, in words: the summary that closes a run, and the message about it.
// People and monitoring read the same words everywhere.
import { count, size, span, transcriptSince } from './say.ts';
import type { HistoryLine } from './history.ts';
import type { Outcome } from './tell.ts';
import { WORDS } from './words.ts';

/** The last block of a run. */
export function summary(line: HistoryLine, services: string): string {
  const parts = line.parts.map((part) => `${part.name} ${span(part.downSeconds)}`).join(', ');
  const pass = (what: HistoryLine['cold']) => (what ? `${size(what.originalBytes)} in ${count(what.files, 'file')} read, ${size(what.deduplicatedBytes)} sent and stored, ${span(what.seconds)}` : 'none');
  const took = (Date.parse(line.endedAt) - Date.parse(line.startedAt)) / 1000;
  return [
    '',
    `${line.outcome}: ${line.exitCode < 2 ? `${line.archive} is proven` : line.error}`,
    ...(line.exitCode < 2 || !line.archive ? [] : [`  archive   ${line.archive}`]),
    `  down      ${span(line.downSeconds)}${parts ? `  (${parts})` : ''}`,
    `  services  ${services}`,
    `  warm      ${pass(line.warm)}`,
    `  cold      ${pass(line.cold)}`,
    `  took      ${span(took)}`,
    ...(line.warnings.length > 0 ? ['  warnings', ...line.warnings.map((one) => `    ${one}`)] : ['  warnings  none']),
  ].join('\n');
}

/**
 * The message of a run. Given its history line, what is down, the outcome, the state of services and a language: outcome and
 * server come first. The body is the summary, in the terminal's words.
 */
export function messageOf(line: HistoryLine, down: string[], outcome: Outcome['outcome'], services: string, language: 'en' | 'es'): Outcome {
  const words = WORDS[language].message, time = span(line.downSeconds);
  const text = { start: words.start, good: words.good(time), warning: words.warning(line.warnings.length, time), failed: words.failed(line.error), down: words.down(down.join(', ')) }[outcome];
  return { server: line.server, outcome, subject: `${words.outcome[outcome]}: ${line.server}: ${text}`, body: outcome === 'start' ? '' : summary(line, services), logTail: transcriptSince(0, 100_000), line };
}
