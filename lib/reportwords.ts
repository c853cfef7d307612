// The words of the report, one table a language, with the same keys (a test compares them). Terminal lines, settings and commands are English in both.

const ENGLISH_REPORT = {
  decimal: '.', locale: 'en-GB',
  title: 'Backups', skip: 'Skip to the servers', madeAt: (when: string) => `As of ${when}`, servers: (number: number) => (number === 1 ? '1 server' : `${number} servers`),
  light: { good: 'Good', warning: 'Attention', failed: 'Failed', unknown: 'Unknown' }, tally: 'How many servers are in which state',
  glance: 'At a glance', state: 'State', server: 'Server', nextStep: 'Next step', lastGood: 'Last good backup', down: 'Down', size: 'Size', drill: 'Last drill', audit: 'Last audit', space: 'Storage', nothingToDo: 'Nothing to do',
  onServer: (server: string) => `on ${server}`, here: 'on this computer', ago: (age: string) => `${age} ago`, days: (number: number) => (number === 1 ? '1 day' : `${number} days`), hours: (number: number) => `${number} h`, minutes: (number: number) => `${number} min`,
  none: 'none yet', notKnown: 'not known', never: 'never', clean: 'clean', alarm: 'ALARM', proven: 'proven', unproven: 'not proven', drillGood: 'proven', drillBad: 'NOT proven', restoreTakes: (time: string) => `a restore takes about ${time}`, noDrills: 'no drills there',
  used: (used: string) => `${used} used`, free: (free: string) => `${free} free`, quota: (quota: string) => `quota ${quota}`, full: (days: string) => `full in ${days}`, notSoon: 'not full for years', noShell: 'not known: the storage gives no shell',
  why: {
    unreachable: (message: string) => `could not be looked at now: ${message}`, alarm: (when: string) => `the audit of ${when} found signs of tampering`, pruning: () => 'a prune was interrupted',
    noKey: () => 'without key and passphrase archives have no names here', noneProven: () => 'there is no proven backup', tooOld: (age: string) => `the last good backup is ${age} old`, neverAudited: () => 'never audited: nobody has looked for tampering',
    unprovenNewest: (when: string) => `the newest archive (${when}) is not proven: that night failed`, drillFailed: (archive: string) => `the last drill could not prove ${archive}`, drillOld: (age: string) => `the last drill is ${age} old`, noDrill: () => 'no restore was ever rehearsed',
    auditOld: (age: string) => `the last audit is ${age} old`, nearlyFull: (days: string) => `at this pace the storage is full in ${days}`, warned: (warning: string) => `the last night warned: ${warning}`,
  },
  nights: 'Nights of the last year', nightsOf: (server: string) => `Nights of ${server} in the last year`, lastNights: (number: number) => `Last ${number} nights`, night: { good: 'good', warning: 'with a warning', failed: 'failed', missing: 'missing' },
  nightCounts: (good: number, warning: number, failed: number, missing: number) => `good: ${good}; with a warning: ${warning}; failed: ${failed}; missing: ${missing}`,
  downChart: 'Downtime per night', sizeChart: 'Size of a backup', newChart: 'Sent per night', chartText: (from: string, until: string, least: string, most: string, last: string) => `From ${from} to ${until}: lowest ${least}, highest ${most}, last ${last}`, aNight: (change: string) => `${change} a night`, tooFew: 'Not enough nights yet for a chart',
  numbers: 'The last nights in numbers', date: 'Night', outcome: 'Outcome', archive: 'Archive', seen: 'Written', byStorage: "by the storage's clock", byServer: "by the server's clock; no audit has seen it yet", holds: 'What it holds', restore: 'Restore', archives: 'Archives', noArchives: 'No archives',
  postgres: (version: string, cluster: string) => `PostgreSQL ${version} (${cluster})`, extensions: 'extensions', containers: 'containers', files: 'paths', same: 'the same software as the archive above', noRecord: (why: string) => `its record cannot be had: ${why}`, notRead: 'its record was not read',
  restoreHow: (server: string) => `On ${server}, into a new folder; nothing that is there is touched:`, bareHow: 'On another machine, add where everything is:', inPlaceHow: 'Everything back to where it was (first with --dry-run, which only shows what would happen):',
  details: (server: string) => `${server} in detail`, legend: 'How to read this', back: 'Back to the overview', hint: 'hint', lookedAt: 'Last known state',
  footer: 'Every fact comes from the storage and the ledger of audits. "Last good" is a backup that was proven cold and read back. Times are in each server\'s time zone. Nothing here was fetched from elsewhere, and the page works without a network.',
};

const SPANISH_REPORT: typeof ENGLISH_REPORT = {
  decimal: ',', locale: 'es',
  title: 'Copias de seguridad', skip: 'Ir a los servidores', madeAt: (when) => `Actualizado el ${when}`, servers: (number) => (number === 1 ? '1 servidor' : `${number} servidores`),
  light: { good: 'Correcto', warning: 'Atención', failed: 'Fallo', unknown: 'Sin datos' }, tally: 'Cuántos servidores hay en cada estado',
  glance: 'De un vistazo', state: 'Estado', server: 'Servidor', nextStep: 'Siguiente paso', lastGood: 'Última copia válida', down: 'Inactividad', size: 'Tamaño', drill: 'Último simulacro', audit: 'Última auditoría', space: 'Almacenamiento', nothingToDo: 'Nada que hacer',
  onServer: (server) => `en ${server}`, here: 'en este equipo', ago: (age) => `hace ${age}`, days: (number) => (number === 1 ? '1 día' : `${number} días`), hours: (number) => `${number} h`, minutes: (number) => `${number} min`,
  none: 'aún no hay', notKnown: 'se desconoce', never: 'nunca', clean: 'limpia', alarm: 'ALARMA', proven: 'comprobada', unproven: 'sin comprobar', drillGood: 'superado', drillBad: 'NO superado', restoreTakes: (time) => `restaurar lleva unos ${time}`, noDrills: 'allí no se hacen simulacros',
  used: (used) => `${used} ocupados`, free: (free) => `${free} libres`, quota: (quota) => `cuota de ${quota}`, full: (days) => `se llena en ${days}`, notSoon: 'tardará años en llenarse', noShell: 'se desconoce: el almacenamiento no ofrece una shell',
  why: {
    unreachable: (message) => `ahora no se ha podido consultar: ${message}`, alarm: (when) => `la auditoría de ${when} encontró indicios de manipulación`, pruning: () => 'una purga quedó interrumpida',
    noKey: () => 'sin la clave y la frase de paso, aquí no se ven los nombres de las copias', noneProven: () => 'no hay ninguna copia comprobada', tooOld: (age) => `la última copia válida es de hace ${age}`, neverAudited: () => 'nunca se ha auditado: nadie ha buscado manipulaciones',
    unprovenNewest: (when) => `la copia más reciente (${when}) está sin comprobar: aquella noche falló`, drillFailed: (archive) => `el último simulacro no pudo comprobar ${archive}`, drillOld: (age) => `el último simulacro es de hace ${age}`, noDrill: () => 'nunca se ha ensayado una restauración',
    auditOld: (age) => `la última auditoría es de hace ${age}`, nearlyFull: (days) => `a este ritmo, el almacenamiento se llena en ${days}`, warned: (warning) => `la última noche hubo un aviso: ${warning}`,
  },
  nights: 'Noches del último año', nightsOf: (server) => `Noches de ${server} en el último año`, lastNights: (number) => `Últimas ${number} noches`, night: { good: 'correcta', warning: 'con avisos', failed: 'fallida', missing: 'sin copia' },
  nightCounts: (good, warning, failed, missing) => `correctas: ${good}; con avisos: ${warning}; fallidas: ${failed}; sin copia: ${missing}`,
  downChart: 'Tiempo de inactividad por noche', sizeChart: 'Tamaño de una copia', newChart: 'Enviado por noche', chartText: (from, until, least, most, last) => `Del ${from} al ${until}: mínimo ${least}, máximo ${most}, último ${last}`, aNight: (change) => `${change} por noche`, tooFew: 'Todavía no hay noches suficientes para un gráfico',
  numbers: 'Las últimas noches en cifras', date: 'Noche', outcome: 'Resultado', archive: 'Copia', seen: 'Escrita', byStorage: 'según el reloj del almacenamiento', byServer: 'según el reloj del servidor; ninguna auditoría la ha visto aún', holds: 'Qué contiene', restore: 'Restaurar', archives: 'Copias', noArchives: 'No hay copias',
  postgres: (version, cluster) => `PostgreSQL ${version} (${cluster})`, extensions: 'extensiones', containers: 'contenedores', files: 'rutas', same: 'el mismo software que la copia de arriba', noRecord: (why) => `no se puede leer su ficha: ${why}`, notRead: 'no se ha leído su ficha',
  restoreHow: (server) => `En ${server}, en una carpeta nueva; no se toca nada de lo que hay:`, bareHow: 'En otra máquina, indique además dónde está todo:', inPlaceHow: 'Todo de vuelta a su sitio (primero con --dry-run, que solo muestra lo que pasaría):',
  details: (server) => `${server} en detalle`, legend: 'Cómo leer esta página', back: 'Volver al resumen', hint: 'sugerencia', lookedAt: 'Último estado conocido',
  footer: 'Todos los datos proceden del almacenamiento y del registro de auditorías. Una copia es «válida» si se comprobó con todo detenido y después se releyó. Las horas están en la zona horaria de cada servidor. La página no descarga nada y funciona sin red.',
};

export const REPORT_WORDS = { en: ENGLISH_REPORT, es: SPANISH_REPORT };
export type ReportWords = typeof ENGLISH_REPORT;
