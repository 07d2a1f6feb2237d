#!/usr/bin/env bash
# usage: cluster/mlflow.sh [--auth] [DATABASE_URL] [options of `mlflow server`]
#
# Starts an MLflow server on 127.0.0.1, port 5000, until it is stopped. Without DATABASE_URL it serves what searches without a server wrote:
# mlflow.db in GUIDINO_TUNE_HOME (default: ~/guidino_tune). Pictures and models go into mlartifacts in that folder. The database can also
# be named by MLFLOW_BACKEND_STORE_URI, which keeps its password off the list of processes.
#
# Only the driver of a search writes to MLflow, so a server on the Ray head may stay on 127.0.0.1; look at it through a tunnel. MLflow
# lets in whoever reaches its port, and answers only browsers that ask for this machine by name (others get 403).
#
# --auth asks everybody for a name and a password. Before the first start put a password of 12 or more characters for the user `admin`
# into MLFLOW_AUTH_ADMIN_PASSWORD, and install what MLflow needs for it: pip install 'mlflow[auth]'. The users, with hashed passwords, are
# in mlflow-auth.db in the home folder; `admin` adds more on the page /signup. Searches log in with MLFLOW_TRACKING_USERNAME and
# MLFLOW_TRACKING_PASSWORD from their environment. Everybody may read and change all runs. For another --host add --allowed-hosts NAME, and
# TLS in front of it, as names and passwords cross the network as they are.
#
# examples:
#   cluster/mlflow.sh
#   cluster/mlflow.sh postgresql://user@db.example.org/mlflow --port 5001
#   MLFLOW_AUTH_ADMIN_PASSWORD=$(cat password.txt) cluster/mlflow.sh --auth
#   export MLFLOW_TRACKING_URI=http://127.0.0.1:5000         for searches
#   ssh -L 5000:127.0.0.1:5000 HEAD                          from your desk
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
case ${1:-} in -h | --help)
    sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p;}' "${BASH_SOURCE[0]}"
    exit 0
    ;;
esac
if [[ -x $here/.venv/bin/mlflow ]]; then PATH=$here/.venv/bin:$PATH; fi
command -v mlflow > /dev/null || { echo "error: no mlflow here; install the project first: make search, or pip install" >&2; exit 1; }

home=${GUIDINO_TUNE_HOME:-$HOME/guidino_tune}
mkdir -p "$home/mlartifacts"
home=$(cd "$home" && pwd) # absolute: the URL of a database must be
options=()
if [[ ${1:-} == --auth ]]; then
    shift
    python=$(dirname "$(command -v mlflow)")/python
    if [[ ! -x $python ]]; then python=$(sed -n '1s/^#! *//p' "$(command -v mlflow)"); fi # in ~/.local/bin it stands alone
    if [[ ! -x $python ]]; then
        echo "error: --auth cannot tell with which Python $(command -v mlflow) runs" >&2
        echo "  -> put the folder of an environment that has MLflow and its Python in front of PATH" >&2
        exit 1
    fi
    if ! "$python" -c 'import flask_wtf' 2> /dev/null; then
        echo "error: --auth needs Flask-WTF, which is not here" >&2
        echo "  -> $python -m pip install 'mlflow[auth]'" >&2
        exit 1
    fi
    if [[ ! -f $home/mlflow-auth.db && -z ${MLFLOW_AUTH_ADMIN_PASSWORD:-} ]]; then
        echo "error: no users yet, and no password for the first one, admin" >&2
        echo "  -> put one into MLFLOW_AUTH_ADMIN_PASSWORD, for this first start only" >&2
        exit 2
    fi
    umask 077 # what follows, and what the server writes, is nobody else's business
    if [[ ! -s $home/mlflow-auth.key ]]; then
        "$python" -c 'import secrets; print(secrets.token_hex(32))' > "$home/.mlflow-auth.key.$$"
        mv "$home/.mlflow-auth.key.$$" "$home/mlflow-auth.key" # whole or not at all
    fi
    cat > "$home/mlflow-auth.ini" << END
[mlflow]
default_permission = EDIT
database_uri = sqlite:///${home//%/%%}/mlflow-auth.db
admin_username = admin
authorization_function = mlflow.server.auth:authenticate_request_basic_auth
END
    MLFLOW_FLASK_SERVER_SECRET_KEY=${MLFLOW_FLASK_SERVER_SECRET_KEY:-$(< "$home/mlflow-auth.key")}
    export MLFLOW_FLASK_SERVER_SECRET_KEY MLFLOW_AUTH_CONFIG_PATH=${MLFLOW_AUTH_CONFIG_PATH:-$home/mlflow-auth.ini}
    options=(--app-name basic-auth)
fi
if [[ ${1:-} == *://* ]]; then
    MLFLOW_BACKEND_STORE_URI=$1
    shift
fi
export MLFLOW_BACKEND_STORE_URI=${MLFLOW_BACKEND_STORE_URI:-sqlite:///$home/mlflow.db}
export MLFLOW_DISABLE_TELEMETRY=${MLFLOW_DISABLE_TELEMETRY:-true}
exec mlflow server --host 127.0.0.1 --port 5000 --workers 2 --artifacts-destination "$home/mlartifacts" ${options[@]+"${options[@]}"} "$@"
