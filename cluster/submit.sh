#!/usr/bin/env bash
# usage: cluster/submit.sh [--no-wait] SPACE [options of `guidino-tune search`]
#
# Runs a search as a job on a Ray cluster: uploads this checkout (.gitignore says what stays here) and runs, on the cluster's head,
#   python -m guidino_tune.search SPACE ...
# Shows its output until it ends; --no-wait returns at once. Submitted again, the same command continues the study.
#
# The cluster is that at RAY_API_SERVER_ADDRESS, by default http://127.0.0.1:8265: on the head itself, or at the near end of
#   ssh -L 8265:127.0.0.1:8265 HEAD
# Needs the head's token in ~/.ray/auth_token. GUIDINO_TUNE_HOME, MLFLOW_TRACKING_URI, MLFLOW_EXPERIMENT_NAME, HF_HOME and HF_HUB_OFFLINE
# are passed on if they are set; passwords, HF_TOKEN and GUIDINO_TUNE_STORAGE are not (the dashboard shows what is passed, and the command
# with its options): set those where the head is started. Paths are paths on the cluster.
#
# examples:
#   cluster/submit.sh demo
#   cluster/submit.sh --no-wait kvasir --data-root /shared/Kvasir-SEG --trials 200
#   RAY_AUTH_MODE=token .venv/bin/ray job logs --follow JOB --address http://127.0.0.1:8265      also: job list, job stop
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
usage() { sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p;}' "cluster/submit.sh"; }
wait_or_not=()
if [[ ${1:-} == --no-wait ]]; then
    wait_or_not=(--no-wait)
    shift
fi
case ${1:-} in
    -h | --help)
        usage
        exit 0
        ;;
    "" | -*)
        usage >&2
        exit 2
        ;;
esac
# A login without a password is a token on HTTP, and at a database the name of a user, which is no secret.
has_password() {
    local url=${1,,}
    [[ $url =~ ://[^/@[:space:]]*:.+@ || $url =~ https?://[^/]*@ || $url =~ ://.*[?\&\;][^=]*(password|passwd|token|secret|api_?key)[^=]*= ]]
}
for argument in "$@"; do
    if has_password "$argument"; then
        echo "error: a URL with a password would be shown in Ray's dashboard, with the command" >&2
        echo "  -> put it into GUIDINO_TUNE_STORAGE where the head is started" >&2
        exit 2
    fi
done
if [[ -x .venv/bin/ray ]]; then PATH=$PWD/.venv/bin:$PATH; fi
command -v ray > /dev/null || { echo "error: no ray here; install the project first: make search, or pip install" >&2; exit 1; }

# `ray job stop` kills what has not ended after 3 s, unless the job says otherwise: too soon to tell MLflow how its runs ended.
export RAY_JOB_STOP_WAIT_TIME_S=${RAY_JOB_STOP_WAIT_TIME_S:-60}
passed_on=(GUIDINO_TUNE_HOME MLFLOW_TRACKING_URI MLFLOW_EXPERIMENT_NAME HF_HOME HF_HUB_OFFLINE RAY_JOB_STOP_WAIT_TIME_S)
if [[ ${MLFLOW_TRACKING_URI:-} == *@* ]] || has_password "${MLFLOW_TRACKING_URI:-}"; then
    echo "note: MLFLOW_TRACKING_URI holds a login, which the dashboard would show: not passed on; set it where the head is started" >&2
    unset MLFLOW_TRACKING_URI
fi
environment=$(python3 -c '
import json, os, sys
print(json.dumps({"env_vars": {name: os.environ[name] for name in sys.argv[1:] if os.environ.get(name)}}))
' "${passed_on[@]}")
export RAY_AUTH_MODE=${RAY_AUTH_MODE:-token} # with an address given, Ray does not use the token by itself
exec ray job submit --address "${RAY_API_SERVER_ADDRESS:-http://127.0.0.1:8265}" ${wait_or_not[@]+"${wait_or_not[@]}"} \
    --working-dir . --runtime-env-json "$environment" -- python -m guidino_tune.search "$@"
