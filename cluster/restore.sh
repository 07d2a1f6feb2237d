#!/usr/bin/env bash
# usage: cluster/restore.sh FOLDER NEW_HOME
#
# Puts what cluster/backup.sh copied into FOLDER to its new place: the home folder as NEW_HOME, which must be empty or not there, and
# databases where these variables say. FOLDER stays as it is.
#
#   GUIDINO_TUNE_STORAGE       the new database of the studies, where FOLDER holds one: an empty one of a PostgreSQL server, or a new file
#   MLFLOW_BACKEND_STORE_URI   the same for MLflow
#
# The old place must be at rest for good: two searches over two copies of one study would both go on. Then, with GUIDINO_TUNE_HOME=NEW_HOME,
# the same `guidino-tune search` as before goes on with each study: a driver that the backup caught at work is taken for dead (a database is
# watched for a minute), trials go on from their checkpoints under their numbers, and MLflow's database in the home folder learns the new
# place of its files. --data-root names data sets that lie elsewhere now.
#
# examples:
#   cluster/restore.sh /backup/guidino-2026-11-30 /shared/guidino_tune
#   createdb --host db.example.org studies
#   GUIDINO_TUNE_STORAGE=postgresql://me@db.example.org/studies cluster/restore.sh /backup/guidino-2026-11-30 /shared/guidino_tune
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
usage() { sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p;}' "${BASH_SOURCE[0]}"; }
case ${1:-} in -h | --help) usage; exit 0 ;; esac
if (($# != 2)); then usage >&2; exit 2; fi
source "$here/cluster/databases.sh"

backup=$1 home=$2
[[ -d $backup/home ]] || { echo "error: $backup is no folder of cluster/backup.sh" >&2; exit 2; }
if [[ -e $home && -n $(ls -A "$home") ]]; then
    echo "error: $home is not empty" >&2
    echo "  -> name a new folder; nothing is put over what is there" >&2
    exit 2
fi
check_database GUIDINO_TUNE_STORAGE
check_database MLFLOW_BACKEND_STORE_URI
named=("studies GUIDINO_TUNE_STORAGE" "mlflow MLFLOW_BACKEND_STORE_URI")

is_empty() { # URL
    if is_postgres "$1"; then
        [[ $(with_postgres "$1" psql -tAc "SELECT count(*) FROM information_schema.tables WHERE table_schema = 'public'") == 0 ]]
    else
        [[ ! -e $(sqlite_file "$1") ]]
    fi
}

for one in "${named[@]}"; do # everything is looked at before anything is written
    read -r name variable <<< "$one"
    kept=$(compgen -G "$backup/$name.d*" || true)
    url=${!variable:-}
    if [[ -z $kept ]]; then continue; fi
    if [[ -z $url ]]; then
        echo "error: $kept needs a database" >&2
        echo "  -> make an empty one, and name it as $variable" >&2
        exit 2
    fi
    if { [[ $kept == *.dump ]] && ! is_postgres "$url"; } || { [[ $kept == *.db ]] && is_postgres "$url"; }; then
        echo "error: $kept is of another kind of database than $variable" >&2
        exit 2
    fi
    if ! is_empty "$url"; then
        echo "error: the database of $variable cannot be reached, or is not empty" >&2
        echo "  -> make an empty one (createdb), and name that" >&2
        exit 2
    fi
done

umask 077
for one in "${named[@]}"; do
    read -r name variable <<< "$one"
    if [[ -f $backup/$name.dump ]]; then
        with_postgres "${!variable}" pg_restore --no-owner --no-privileges --exit-on-error --single-transaction "$backup/$name.dump"
    elif [[ -f $backup/$name.db ]]; then
        copy_sqlite "$backup/$name.db" "$(sqlite_file "${!variable}")"
    fi
done
mkdir -p "$home"
cp -a "$backup/home/." "$home/"
home=$(cd "$home" && pwd)
echo "$home: $(find "$home/studies" -mindepth 2 -maxdepth 2 -name study.yaml 2> /dev/null | wc -l) studies"
echo "go on: export GUIDINO_TUNE_HOME=$home    then guidino-tune list, and the same searches as before"
