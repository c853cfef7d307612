#!/usr/bin/env node
// cold-backup @VERSION@ - one file; it needs Node.js 18 or newer, and borg. Nothing is installed.
//
// What it does to this machine when cron calls it: looks at everything, and tries all that can fail, while all still
// runs. Copies once, warm, to the storage. Stops the services, containers and PostgreSQL clusters that the settings name,
// proves from their own files that they are cold, sends one encrypted borg archive over ssh, and starts everything again,
// whatever happens meanwhile. Then it reads the archive's record back.
// It never deletes an archive, never kills PostgreSQL, never starts what was not running, and calls nobody else.
//
// How to read it: from the top, as far as you like. The settings; the night; what the night is made of, a chapter for each
// outside program; coming back; checks and set-up. You can stop reading at the fence "OPERATOR'S PART"; below "LIBRARIES" nobody edits.
// How to change it: edit this file, or only the settings; then try:  node backup.js --dry-run
// `node backup.js --version` says "as built", or "edited" when anything but the settings is no longer what this sum says.
// Checksum of all but the settings: @CHECKSUM@
//
// Contents. Search for a mark, with its ====, to come to the chapter:
@CONTENTS@
'use strict';

var canary = null; canary ??= 1; // SyntaxError here? Then Node.js is TOO OLD for backup.js. Install Node.js 18 or newer. Nothing was touched.
if (parseInt(process.versions.node, 10) < 18) {
  console.error('backup: error: this machine has Node.js ' + process.versions.node + ', and backup.js needs 18 or newer');
  console.error('  hint: install a newer Node.js, or put its one binary beside this script and call that: ./node backup.js');
  process.exit(64);
}
if (typeof require !== 'function') {
  console.error('backup: error: a package.json near backup.js says "type": "module"');
  console.error('  hint: put backup.js into a folder of its own.');
  process.exit(64);
}
process.on('exit', (code) => { // main() stands at the very end and takes this away: a download that was cut off may hold only whole functions, run nothing, and be content
  if (code !== 0) return; // something else is wrong, and has been said
  console.error('backup: error: this file ends too early: download it again');
  process.exitCode = 2;
});
