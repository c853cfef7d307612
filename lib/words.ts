// What is written for people in their own language: RESTORE.md, the recovery sheet, messages.
// One table a language, with the same keys (a test compares them). What the terminal says, settings, commands and code stay
// English. Texts within a python block hold no quotes.

const ENGLISH = {
  restore: {
    title: (archive: string) => `Restore ${archive}`, passphrase: 'passphrase', no: 'no', none: 'none',
    intro: (server: string, madeAt: string, system: string, architecture: string) => `Everything that server \`${server}\` saved on ${madeAt}, with all services stopped. It ran ${system} on ${architecture}; the new machine must have the same architecture.`,
    readOn: (part: string) => `Read on to the end before you begin. Paste the blocks into one root shell (bash), one after the other; go on when a block has ended without an error. For one folder, or only a look: do the first chapter, then "${part}".`,
    reach: 'Reach the repository', software: 'The same software', owners: 'The owners of the files', room: 'Stop what runs here, and make room', extract: 'Extract', containers: 'The containers', checks: 'PostgreSQL alone, and is everything there?', start: 'Start, in this order', back: 'To go back', part: 'Only a part',
    need: (isRemote: boolean) => `You need the key file and the passphrase (both are on the recovery sheet; \`borg key import --paper\` makes the file from it)${isRemote ? ' and an ssh key that the storage lets in (its keeper adds one)' : ''}. Change these lines to where they are:`,
    aside: 'old contents are moved aside under this name', versions: '1.2 or 1.4',
    record: '`record/manifest.json` holds all that is known of the old machine, `record/backup.js` and `record/backup.settings.js` the script that made this archive and its settings.',
    fits: (versions: string) => `Files of PostgreSQL fit the same major version only (here: ${versions}), and every extension has to be there, in the same version or a newer one. A newer minor version is good.`,
    fromThere: 'it came from there', sameOrNewest: 'the same version, or the newest', packages: (list: string) => `It had these packages: ${list}.`, noPackage: (command: string) => `If this Debian has no such package any more: \`${command}\`, and the block again.`, unowned: (list: string) => `In no package, so bring them from elsewhere: ${list}`,
    locale: 'A database whose locale is missing lets nobody in:', byName: 'By name; the number may be another one here.', notHere: 'What does not exist here yet cannot be stopped: that is no error.', nothingStopped: 'nothing was stopped for this backup', comeBack: 'These come back. What lies there now is moved aside, nothing is deleted:', noPostgres: 'no PostgreSQL may run there',
    above: 'The folders above them are not in the archive, and borg would make them so that nobody but root can enter:', system: (list: string, command: string) => `${list} cannot be moved aside on a machine that runs. Extract it elsewhere and take what you need: \`${command}\``,
    volumes: 'Docker has to know its volumes before they are filled:', numbers: 'files in volumes belong to numbers, not names', takesLong: 'It takes long, and says nothing unless `--progress` is added after `extract`.',
    noFiles: 'They are no files, so they are made again, not started yet. These were (values of the environment are not in the archive, they may be secrets):',
    container: (name: string, image: string, digest: string, restart: string, user: string, ports: string, mounts: string, environment: string, project: string) => `\`${name}\`: image \`${image}\` (${digest}), restart ${restart}${user && `, user ${user}`}, ports ${ports}, mounts ${mounts}, environment ${environment}${project && `, project ${project}`}`,
    inFolder: (project: string, folder: string) => `${project} in ${folder}`, lost: (project: string, files: string) => `The files of project ${project} are not in this archive: ${files}. Bring them, and run \`docker compose create\` in their folder.`, byHand: (names: string) => `Make ${names} with \`docker create --name ...\` as above.`,
    digest: 'An image from a registry is exactly the same with its digest: `docker pull NAME@sha256:...`. A newer major version of a database does not start on the old files.',
    alone: 'Nobody can reach it from elsewhere yet, and it sends nothing anywhere. If it does not start, its log says why: `/var/log/postgresql/`.', counted: 'Every table is counted, and compared with what was counted while everything ran, shortly before the backup: small differences are what happened in between.',
    recorded: 'recorded', here: 'here', tooLarge: 'None: too large to be counted then', result: '%d tables are as recorded, %d errors', good: 'Good? Then the clusters are stopped again, to be started as usual:',
    partitions: (table: string) => `rows of ${table} may lie in the wrong partition: look at its bounds`, sorted: (libraries: string[]) => `Texts were sorted by ${libraries.join(' and ')}. If these are others here, the indexes that depend on them are built anew (else this does nothing):`,
    programs: (names: string) => `Programs and units of ${names} are in this archive only if their files are among the paths above: else install them first.`, inContainers: 'PostgreSQL in containers, as soon as it answers:',
    others: 'Others hold the same data', partners: 'They went on after this backup. PostgreSQL does not notice that this side went back in time: rows are passed over without an error. So, before applications come back:',
    partner: {
      subscription: (name: string, database: string, quoted: string) => `subscription \`${name}\` of database \`${database}\`: what was sent here after this backup is not sent again. Note its row of \`pg_subscription\` (\`subconninfo\`, \`subpublications\`, \`subslotname\`); then, in that database: \`ALTER SUBSCRIPTION ${quoted} DISABLE; ALTER SUBSCRIPTION ${quoted} SET (slot_name = NONE); DROP SUBSCRIPTION ${quoted};\`, on the publisher \`SELECT pg_drop_replication_slot('...');\`, here \`TRUNCATE\` its tables and \`CREATE SUBSCRIPTION\` as it was: it copies all rows anew.`,
      slot: (name: string, database: string) => `slot \`${name}\`${database && ` of database \`${database}\``}: its reader is ahead of these files, and gets nothing until as much is written here as was lost. Save what it has more than this side; then make its subscription anew over there, as above for a subscription, with this slot dropped here.`,
      standby: (name: string) => `standby \`${name}\`: it is ahead of these files and cannot follow them. Make it anew with \`pg_basebackup\`.`,
      primary: () => 'which is a standby: it follows its primary only while that has all WAL since this backup. Does its log say `requested WAL segment ... has already been removed`? Then make it anew with `pg_basebackup`.',
      bucardo: (name: string, database: string) => `${name} in database \`${database}\`: what was exchanged after this backup is not exchanged again. On the other side: \`UPDATE table SET column = column;\` of every row that may be newer, and Bucardo sends it anew; what was deleted there since is deleted here by hand.`,
    },
    twoOfIt: 'Before applications and users come back: archiving, replication slots and subscriptions now work as on the old machine. If that one still runs, there are two of it.',
    stays: 'Is this machine to stay? `mkdir /opt/cold-backup`, `backup.js` and `backup.settings.js` from `/root/restore/record` into it, key and passphrase where those settings say, and `node backup.js setup`.',
    toGoBack: 'To what was here before: stop as above, then for each path that had old contents (a mount point has them inside, in `.$AWAY`):', remove: 'When all is good for some days, remove the old contents: everything whose name ends with `$AWAY`.',
    onlyPart: 'One folder or file, into an empty folder; nothing that exists is touched. Paths are written without the first slash, and `borg list "::$ARCHIVE"` shows them:', look: (name: string) => `PostgreSQL ${name} beside whatever runs here, only to look (\`shared_preload_libraries=\` keeps jobs from running; an extension that has to be loaded so needs its name there):`,
    rootAlone: 'borg made these for root alone', elseRunning: 'else it would write into those of the running cluster', goOnLooking: 'leave this line away to go on looking; then remove the folder',
  },
  sheet: {
    title: (server: string) => `RECOVERY SHEET of server ${server}`, print: 'Print this, keep it on paper away from the server, then remove this file.', whoHas: 'Whoever has it and can reach the storage can read every backup.', repository: 'repository', passphrase: 'passphrase',
    how: 'When the server is gone: RESTORE.md in every archive says how. First: borg key import --paper ::',
  },
  message: {
    outcome: { start: 'start', good: 'good', warning: 'warning', failed: 'failed', down: 'down' }, start: 'the backup begins', good: (time: string) => `good backup, down ${time}`, warning: (number: number, time: string) => `backup with ${number} ${number === 1 ? 'warning' : 'warnings'}, down ${time}`,
    failed: (error: string) => `NO new backup: ${error}`, down: (parts: string) => `SERVICES NOT RUNNING: ${parts}`, drill: (archive: string, error: string) => `drill of ${archive}: ${error}`, newest: 'the newest archive', runOf: (time: string, error: string, services: string) => `run of ${time}: ${error}${services && `; ${services}`}`, restoreOf: (time: string, error: string, services: string) => `restore of ${time}: ${error}${services && `; ${services}`}`,
  },
};

const SPANISH: typeof ENGLISH = {
  restore: {
    title: (archive) => `Restaurar ${archive}`, passphrase: 'frase de paso', no: 'no', none: 'ninguno',
    intro: (server, madeAt, system, architecture) => `Todo lo que el servidor \`${server}\` guardó el ${madeAt}, con todos los servicios detenidos. Funcionaba con ${system} en ${architecture}; la máquina nueva debe tener la misma arquitectura.`,
    readOn: (part) => `Lea hasta el final antes de empezar. Pegue los bloques, uno tras otro, en una misma shell de root (bash); continúe cuando cada bloque haya terminado sin errores. Para recuperar una sola carpeta, o solo mirar: siga el primer capítulo y después «${part}».`,
    reach: 'Acceder al repositorio', software: 'El mismo software', owners: 'Los propietarios de los archivos', room: 'Detener lo que está en marcha aquí y hacer sitio', extract: 'Extraer', containers: 'Los contenedores', checks: 'PostgreSQL a solas: ¿está todo?', start: 'Arrancar, en este orden', back: 'Para volver atrás', part: 'Solo una parte',
    need: (isRemote) => `Necesita el archivo de clave y la frase de paso (ambos están en la hoja de recuperación; \`borg key import --paper\` crea el archivo a partir de ella)${isRemote ? ' y una clave ssh que el almacenamiento acepte (la añade quien lo administra)' : ''}. Ajuste estas líneas según dónde estén:`,
    aside: 'lo que había se aparta con este nombre', versions: '1.2 o 1.4',
    record: '`record/manifest.json` contiene todo lo que se sabe de la máquina antigua; `record/backup.js` y `record/backup.settings.js`, el script que creó esta copia y su configuración.',
    fits: (versions) => `Los archivos de PostgreSQL solo sirven con la misma versión mayor (aquí: ${versions}), y todas las extensiones deben estar instaladas, en la misma versión o en una posterior. Una versión menor posterior es válida.`,
    fromThere: 'procedía de ahí', sameOrNewest: 'la misma versión o la más reciente', packages: (list) => `Tenía estos paquetes: ${list}.`, noPackage: (command) => `Si este Debian ya no ofrece ese paquete: \`${command}\`, y repita el bloque.`, unowned: (list) => `No pertenecen a ningún paquete, así que tráigalos de otro sitio: ${list}`,
    locale: 'Una base de datos cuya configuración regional falta no admite conexiones:', byName: 'Por nombre; aquí el número puede ser otro.', notHere: 'Lo que todavía no existe aquí no se puede detener: no es un error.', nothingStopped: 'no se detuvo nada para esta copia', comeBack: 'Esto es lo que se recupera. Lo que haya ahora ahí se aparta; no se borra nada:', noPostgres: 'ahí no debe haber ningún PostgreSQL en marcha',
    above: 'Las carpetas superiores no están en la copia, y borg las crearía de modo que solo root pudiera entrar:', system: (list, command) => `${list} no se puede apartar en una máquina en marcha. Extráigalo en otro sitio y tome lo que necesite: \`${command}\``,
    volumes: 'Docker debe conocer sus volúmenes antes de llenarlos:', numbers: 'los archivos de los volúmenes pertenecen a números, no a nombres', takesLong: 'Tarda bastante y no muestra nada, salvo que añada `--progress` después de `extract`.',
    noFiles: 'No son archivos, así que se crean de nuevo, sin arrancarlos todavía. Eran estos (los valores del entorno no están en la copia, porque pueden ser secretos):',
    container: (name, image, digest, restart, user, ports, mounts, environment, project) => `\`${name}\`: imagen \`${image}\` (${digest}), reinicio ${restart}${user && `, usuario ${user}`}, puertos ${ports}, montajes ${mounts}, entorno ${environment}${project && `, proyecto ${project}`}`,
    inFolder: (project, folder) => `${project} en ${folder}`, lost: (project, files) => `Los archivos del proyecto ${project} no están en esta copia: ${files}. Tráigalos y ejecute \`docker compose create\` en su carpeta.`, byHand: (names) => `Cree ${names} con \`docker create --name ...\` según lo anterior.`,
    digest: 'Con su digest, la imagen de un registro es exactamente la misma: `docker pull NOMBRE@sha256:...`. Una versión mayor posterior de una base de datos no arranca con los archivos antiguos.',
    alone: 'Nadie puede conectarse todavía desde fuera, y no envía nada a ningún sitio. Si no arranca, su registro dice por qué: `/var/log/postgresql/`.', counted: 'Se cuentan las filas de todas las tablas y se comparan con las que había poco antes de la copia, con todo en marcha: las diferencias pequeñas son lo que ocurrió entre medias.',
    recorded: 'anotadas', here: 'aquí', tooLarge: 'None: era demasiado grande para contarla', result: '%d tablas tal como se anotaron, %d errores', good: '¿Todo bien? Entonces los clústeres se vuelven a detener, para arrancarlos de la forma habitual:',
    partitions: (table) => `puede haber filas de ${table} en una partición equivocada: revise sus límites`, sorted: (libraries) => `Los textos se ordenaban con ${libraries.join(' y ')}. Si aquí son otras versiones, se reconstruyen los índices que dependen de ellas (si no, esto no hace nada):`,
    programs: (names) => `Los programas y unidades de ${names} están en esta copia solo si sus archivos figuran entre las rutas anteriores; si no, instálelos antes.`, inContainers: 'PostgreSQL en contenedores, en cuanto responda:',
    others: 'Otros tienen los mismos datos', partners: 'Siguieron adelante después de esta copia. PostgreSQL no nota que este lado ha vuelto atrás en el tiempo: se saltan filas sin ningún error. Por eso, antes de que vuelvan las aplicaciones:',
    partner: {
      subscription: (name, database, quoted) => `suscripción \`${name}\` de la base \`${database}\`: lo que llegó aquí después de esta copia no se envía otra vez. Anote su fila de \`pg_subscription\` (\`subconninfo\`, \`subpublications\`, \`subslotname\`); después, en esa base: \`ALTER SUBSCRIPTION ${quoted} DISABLE; ALTER SUBSCRIPTION ${quoted} SET (slot_name = NONE); DROP SUBSCRIPTION ${quoted};\`, en el publicador \`SELECT pg_drop_replication_slot('...');\`, aquí \`TRUNCATE\` de sus tablas y \`CREATE SUBSCRIPTION\` como era: copia todas las filas de nuevo.`,
      slot: (name, database) => `slot \`${name}\`${database && ` de la base \`${database}\``}: quien lo lee está por delante de estos archivos, y no recibe nada hasta que aquí se escriba tanto como se perdió. Guarde lo que tenga de más; después, rehaga allí su suscripción, como se dice arriba de una suscripción, y borre este slot aquí.`,
      standby: (name) => `réplica \`${name}\`: está por delante de estos archivos y no puede seguirlos. Rehágala con \`pg_basebackup\`.`,
      primary: () => 'que es una réplica: solo sigue a su primario mientras este tenga todo el WAL desde esta copia. ¿Dice su registro `requested WAL segment ... has already been removed`? Entonces, rehágala con `pg_basebackup`.',
      bucardo: (name, database) => `${name} en la base \`${database}\`: lo que se intercambió después de esta copia no se intercambia otra vez. En el otro lado: \`UPDATE table SET column = column;\` de todas las filas que puedan ser más nuevas, y Bucardo las envía de nuevo; lo que allí se haya borrado desde entonces se borra aquí a mano.`,
    },
    twoOfIt: 'Antes de que vuelvan las aplicaciones y los usuarios: el archivado, los slots de replicación y las suscripciones funcionan ahora como en la máquina antigua. Si aquella sigue en marcha, habrá dos iguales.',
    stays: '¿Esta máquina va a sustituir a la antigua? `mkdir /opt/cold-backup`, copie allí `backup.js` y `backup.settings.js` desde `/root/restore/record`, ponga la clave y la frase de paso donde dice esa configuración y ejecute `node backup.js setup`.',
    toGoBack: 'A lo que había antes: detenga todo como arriba y, después, para cada ruta que tuviera contenido anterior (un punto de montaje lo tiene dentro, en `.$AWAY`):', remove: 'Cuando todo lleve unos días funcionando bien, elimine el contenido anterior: todo aquello cuyo nombre termina en `$AWAY`.',
    onlyPart: 'Una carpeta o un archivo, en una carpeta vacía; no se toca nada de lo que existe. Las rutas se escriben sin la primera barra, y `borg list "::$ARCHIVE"` las muestra:', look: (name) => `PostgreSQL ${name} junto a lo que esté en marcha aquí, solo para mirar (\`shared_preload_libraries=\` evita que se ejecuten tareas; una extensión que deba cargarse así necesita que su nombre figure ahí):`,
    rootAlone: 'borg las creó solo para root', elseRunning: 'de lo contrario, escribiría en los del clúster en marcha', goOnLooking: 'omita esta línea para seguir mirando; después elimine la carpeta',
  },
  sheet: {
    title: (server) => `HOJA DE RECUPERACIÓN del servidor ${server}`, print: 'Imprima esta hoja, guárdela en papel lejos del servidor y elimine después este archivo.', whoHas: 'Quien la tenga y pueda acceder al almacenamiento podrá leer todas las copias.', repository: 'repositorio', passphrase: 'frase de paso',
    how: 'Si se pierde el servidor: el archivo RESTORE.md de cada copia explica cómo recuperarlo. Primero: borg key import --paper ::',
  },
  message: {
    outcome: { start: 'inicio', good: 'correcto', warning: 'aviso', failed: 'fallo', down: 'detenido' }, start: 'empieza la copia', good: (time) => `copia correcta, servicios detenidos ${time}`, warning: (number, time) => `copia con ${number} ${number === 1 ? 'aviso' : 'avisos'}, servicios detenidos ${time}`,
    failed: (error) => `NO hay copia nueva: ${error}`, down: (parts) => `SERVICIOS DETENIDOS: ${parts}`, drill: (archive, error) => `simulacro de ${archive}: ${error}`, newest: 'la copia más reciente', runOf: (time, error, services) => `ejecución de ${time}: ${error}${services && `; ${services}`}`, restoreOf: (time, error, services) => `restauración de ${time}: ${error}${services && `; ${services}`}`,
  },
};

export const WORDS = { en: ENGLISH, es: SPANISH };
export type RestoreWords = typeof ENGLISH.restore;
