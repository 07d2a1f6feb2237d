#!/usr/bin/env bash
# usage: cluster/mlflow.sh [DATABASE_URL] [options of `mlflow server`]
#
# Starts an MLflow server on 127.0.0.1, port 5000, until it is stopped. Without DATABASE_URL it serves what searches without a server wrote:
# mlflow.db in GUIDINO_TUNE_HOME (default: ~/guidino_tune). Pictures and models go into mlartifacts in that folder. The database can also
# be named by MLFLOW_BACKEND_STORE_URI, which keeps its password off the list of processes.
#
# Only the driver of a search writes to MLflow, so a server on the Ray head may stay on 127.0.0.1; look at it through a tunnel. MLflow
# lets in whoever reaches its port: before another --host, read about --allowed-hosts and --app-name basic-auth in `mlflow server --help`.
#
# examples:
#   cluster/mlflow.sh
#   cluster/mlflow.sh postgresql://user@db.example.org/mlflow --port 5001
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
if [[ ${1:-} == *://* ]]; then
    MLFLOW_BACKEND_STORE_URI=$1
    shift
fi
export MLFLOW_BACKEND_STORE_URI=${MLFLOW_BACKEND_STORE_URI:-sqlite:///$home/mlflow.db}
export MLFLOW_DISABLE_TELEMETRY=${MLFLOW_DISABLE_TELEMETRY:-true}
exec mlflow server --host 127.0.0.1 --port 5000 --workers 2 --artifacts-destination "$home/mlartifacts" "$@"
