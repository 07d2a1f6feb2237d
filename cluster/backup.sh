#!/usr/bin/env bash
# usage: cluster/backup.sh [--without-datasets] FOLDER
#
# Copies what searches know into FOLDER, which must not be there yet, while they run: the home folder (GUIDINO_TUNE_HOME, default
# ~/guidino_tune) without its cache, MLflow's database, and the studies' database, if there is one. Run it on a machine that sees the home
# folder. cluster/restore.sh takes FOLDER to another place or machine, and the searches go on there.
#
#   GUIDINO_TUNE_STORAGE       the studies' database, as searches know it; without it their journals are copied, and a study that has none
#                              is an error: exit code 1, with all else in FOLDER
#   MLFLOW_BACKEND_STORE_URI   MLflow's database, as cluster/mlflow.sh knows it; without it that is mlflow.db in the home folder
#
# The order matters, for a study must know all that MLflow and its folders know of it: what MLflow has got, MLflow, the studies, and then
# the folders of trials that were there before. What a study knows beyond that is sent again, or trained again with the same numbers.
# Databases are copied by pg_dump and by SQLite itself, never as files. Data outside the home folder, such as data sets elsewhere and
# backbones, is not copied. FOLDER holds passwords of MLflow's accounts (hashed) and can be read by you alone.
#
# examples:
#   cluster/backup.sh /backup/guidino-$(date +%F)
#   GUIDINO_TUNE_STORAGE=$(cat url.txt) cluster/backup.sh --without-datasets /backup/guidino-$(date +%F)
#   a line for crontab -e, which knows none of these variables:
#   0 3 * * *  GUIDINO_TUNE_HOME=/shared/guidino_tune /opt/guidino_tune/cluster/backup.sh /backup/guidino-$(date +\%F)
set -euo pipefail
shopt -s nullglob

here=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
usage() { sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p;}' "${BASH_SOURCE[0]}"; }
skip=(cache)
if [[ ${1:-} == --without-datasets ]]; then
    skip+=(datasets)
    shift
fi
case ${1:-} in
    -h | --help) usage; exit 0 ;;
    "" | -*) usage >&2; exit 2 ;;
esac
source "$here/cluster/databases.sh"

home=${GUIDINO_TUNE_HOME:-$HOME/guidino_tune}
[[ -d $home ]] || { echo "error: $home is no folder" >&2; echo "  -> name the home folder as GUIDINO_TUNE_HOME" >&2; exit 2; }
home=$(cd "$home" && pwd)
[[ ! -e $1 ]] || { echo "error: $1 is there already" >&2; echo "  -> give each backup a folder of its own" >&2; exit 2; }
mkdir -p "$(dirname "$1")"
target=$(cd "$(dirname "$1")" && pwd)/$(basename "$1")
if [[ $target/ == "$home"/* ]]; then echo "error: $target lies in the home folder, which is copied" >&2; exit 2; fi
check_database GUIDINO_TUNE_STORAGE
check_database MLFLOW_BACKEND_STORE_URI

for url in "${GUIDINO_TUNE_STORAGE:-}" "${MLFLOW_BACKEND_STORE_URI:-}"; do # a file in the home folder is copied once
    if [[ $url == sqlite:///* && $(dirname "$(sqlite_file "$url")") == "$home" ]]; then skip+=("$(basename "$(sqlite_file "$url")")"); fi
done

umask 077
draft=$target.partial.$$ stage=$home/.backup.$$
trap 'rm -rf "$draft" "$stage"' EXIT
trap 'exit 130' INT TERM HUP
mkdir -p "$draft/home" "$stage"
cd "$home"

listing() { (cd "$1" 2> /dev/null && find . -printf '%p %i\n' | sort) || true; }

# A tree that others work in, as it was at one moment: by hard links, which take no time, so that nothing is removed meanwhile. Where the
# file system has none, by copies.
stage() { # PATH, relative to the home folder
    local before code link=-l
    ln "$stage/.probe" "$stage/.link" 2> /dev/null || link=
    rm -f "$stage/.link"
    mkdir -p "$stage/$(dirname "$1")"
    for _ in 1 2 3 4 5; do
        rm -rf "${stage:?}/$1"
        before=$(listing "$1") code=0
        cp -a $link "$1" "$stage/$1" 2> "$stage/.said" || code=$?
        if [[ $before == "$(listing "$1")" ]]; then
            if ((code)); then cat "$stage/.said" >&2; exit 1; fi
            return
        fi
    done
    echo "note: $home/$1 changes all the time; what of it was copied may be repeated by its search" >&2
}
: > "$stage/.probe"

# 1. What MLflow has got, by the ledgers of the studies; 2. MLflow, which may have more; 3. its files, of which it may know fewer.
for ledger in studies/*/mlflow-sent.jsonl; do
    mkdir -p "$draft/home/$(dirname "$ledger")"
    cp -a "$ledger" "$draft/home/$ledger"
done
if [[ -n ${MLFLOW_BACKEND_STORE_URI:-} ]]; then
    dump_database "$MLFLOW_BACKEND_STORE_URI" "$draft/mlflow"
elif [[ -f mlflow.db ]]; then
    copy_sqlite mlflow.db "$draft/home/mlflow.db"
fi
if [[ -f mlflow-auth.db ]]; then copy_sqlite mlflow-auth.db "$draft/home/mlflow-auth.db"; fi
if [[ -d mlartifacts ]]; then stage mlartifacts; fi

# 4. The studies. A trial is in its study before it has a folder, so all folders that are there now are known to the copy.
studies=() trials=() lacking=()
for definition in studies/*/study.yaml; do
    study=$(dirname "$definition")
    studies+=("$study")
    for trial in "$study"/trials/*/; do trials+=("${trial%/}"); done
done
# A trial that ends before its folder's turn has no checkpoints by then, and the copy of its study takes it for running.
for trial in "${trials[@]}"; do
    if [[ -d $trial/checkpoints ]]; then
        stage "$trial/checkpoints"
        mkdir -p "$stage/.early/$trial"
        if [[ -d $stage/$trial/checkpoints ]]; then mv "$stage/$trial/checkpoints" "$stage/.early/$trial/"; fi
    fi
done
for study in "${studies[@]}"; do
    mkdir -p "$draft/home/$study"
    if [[ -f $study/optuna.journal ]]; then
        cp -a "$study/optuna.journal" "$draft/home/$study/"
    elif [[ -z ${GUIDINO_TUNE_STORAGE:-} ]]; then
        lacking+=("$study")
    fi
done
if [[ -n ${GUIDINO_TUNE_STORAGE:-} ]]; then dump_database "$GUIDINO_TUNE_STORAGE" "$draft/studies"; fi

# 5. The folders of these trials, and everything else.
for trial in "${trials[@]}"; do
    stage "$trial"
    early=$stage/.early/$trial/checkpoints
    if [[ -d $early && -d $stage/$trial && ! -d $stage/$trial/checkpoints ]]; then mv "$early" "$stage/$trial/"; fi
done
for study in "${studies[@]}"; do
    for part in "$study"/*; do
        case $(basename "$part") in
            optuna.journal | mlflow-sent.jsonl | trials | ray | driver.lock) ;;
            *) stage "$part" ;;
        esac
    done
done
for part in *; do
    case " ${skip[*]} studies mlartifacts mlflow.db mlflow.db-journal mlflow.db-wal mlflow.db-shm mlflow-auth.db " in
        *" $part "*) ;;
        *) stage "$part" ;;
    esac
done
rm -rf "$stage/.probe" "$stage/.said" "$stage/.early"
if [[ -d $stage/studies ]]; then (cd "$stage" && find studies -path '*/trials/*/.*' -prune -exec rm -rf {} +); fi # drafts, and locks
cp -a "$stage/." "$draft/home/"
for part in . studies "${studies[@]}" "${studies[@]/%//trials}"; do # who may read them there may here
    if [[ -d $draft/home/$part ]]; then chmod --reference="$part" "$draft/home/$part"; fi
done
sync -f "$draft"
mv "$draft" "$target"
echo "$target: ${#studies[@]} studies, ${#trials[@]} trials, $(du -sh "$target" | cut -f 1)"
echo "restore: cluster/restore.sh $target NEW_HOME"
if ((${#lacking[@]})); then
    echo "error: the trials of ${lacking[*]} are in a database, which was not copied" >&2
    echo "  -> name it as GUIDINO_TUNE_STORAGE, and make another copy" >&2
    exit 1
fi
