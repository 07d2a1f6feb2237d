# shellcheck shell=bash disable=SC2154
# Sourced by backup.sh and restore.sh, which set `here`: databases are copied by themselves, with their passwords on no command line.

if [[ -x $here/.venv/bin/python ]]; then python=$here/.venv/bin/python; else python=python3; fi

is_postgres() { [[ $1 == postgresql://* || $1 == postgresql+*://* || $1 == postgres://* ]]; }

# The file of an SQLite URL.
sqlite_file() { "$python" -c 'import sys; from urllib.parse import unquote; print(unquote(sys.argv[1].partition(":///")[2]))' "$1"; }

check_database() { # VARIABLE
    local url=${!1:-}
    if [[ -z $url ]]; then return; fi
    if is_postgres "$url"; then
        for program in pg_dump pg_restore psql; do
            if ! command -v "$program" > /dev/null; then
                echo "error: no $program here, which $1 needs" >&2
                echo "  -> apt-get install postgresql-client" >&2
                exit 1
            fi
        done
    elif [[ $url != sqlite:///* ]]; then
        echo "error: $1 is neither a PostgreSQL nor an SQLite database" >&2
        echo "  -> copy it with its own tools, after MLflow's and before the home folder, and unset $1 for this script" >&2
        exit 2
    fi
}

# Runs a program of PostgreSQL on the database of a URL as SQLAlchemy takes it.
with_postgres() { # URL PROGRAM [ARGUMENTS]
    local parts
    # The password goes through the environment; the driver is nothing that libpq knows.
    parts=$(DATABASE=$1 "$python" -c '
import os
from urllib.parse import unquote, urlsplit
parts = urlsplit(os.environ["DATABASE"])
login, at, place = parts.netloc.rpartition("@")
user, _, password = login.partition(":")
print(f"postgresql://{user}{at}{place}{parts.path}" + (f"?{parts.query}" if parts.query else ""))
print(unquote(password))
') || return 1
    local password=${parts#*$'\n'} url=${parts%%$'\n'*}
    if [[ $password == "$parts" || -z $password ]]; then "${@:2}" --dbname="$url"; else PGPASSWORD=$password "${@:2}" --dbname="$url"; fi
}

dump_database() { # URL TARGET, without suffix
    if is_postgres "$1"; then
        with_postgres "$1" pg_dump --format=custom --no-owner --no-privileges --file="$2.dump"
    else
        copy_sqlite "$(sqlite_file "$1")" "$2.db"
    fi
}

# As it is between two transactions, whoever writes to it meanwhile.
copy_sqlite() { # FILE TARGET
    "$python" -c '
import contextlib, pathlib, sqlite3, sys
source = pathlib.Path(sys.argv[1]).absolute().as_uri() + "?mode=ro"
with contextlib.closing(sqlite3.connect(source, uri=True, timeout=60)) as one, contextlib.closing(sqlite3.connect(sys.argv[2])) as copy:
    one.backup(copy)
' "$1" "$2"
}
