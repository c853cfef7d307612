// Who this program is: its version, and whether somebody has changed it since it was built.
// It only reads, and changes nothing on the machine.
import { createHash } from 'node:crypto';

export const VERSION: string = '@VERSION@';

/**
 * Given the text of this script, returns 'as built', or 'edited' when anything but its settings differs from what the build wrote.
 * It tells forty servers with one program from forty with forty; it does not hold off somebody who edits the checksum too.
 */
export function editedOrAsBuilt(text: string): string {
  const sum = /^\/\/ Checksum of all but the settings: ([0-9a-f]{64})$/m.exec(text)?.[1] ?? 'none';
  const rest = text.replace(sum, '').replace(/^const settings = \{(?:.*\};?$|[^]*?^\};?$)/m, '');
  return createHash('sha256').update(rest).digest('hex') === sum ? 'as built' : 'edited';
}
