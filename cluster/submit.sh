#!/usr/bin/env bash
# usage: cluster/submit.sh [--no-wait | --keep] SPACE [options of `guidino-tune search`]
#
# Runs a search as a job on a Ray cluster: uploads this checkout (.gitignore says what stays here) and runs, on the cluster's head,
#   python -m guidino_tune.search SPACE ...
# Shows its output until it ends; --no-wait returns at once. Submitted again, the same command continues the study. --keep does that by
# itself whenever the search was killed or its head was started anew, until it ends, is stopped (`ray job stop`), or refuses its command.
#
# The cluster is that at RAY_API_SERVER_ADDRESS, by default http://127.0.0.1:8265: on the head itself, or at the near end of
#   ssh -L 8265:127.0.0.1:8265 HEAD
# One that does not answer yet is waited for, WAIT seconds (default 60): a head's dashboard is up some time after the head.
# Needs the head's token in ~/.ray/auth_token. GUIDINO_TUNE_HOME, MLFLOW_TRACKING_URI, MLFLOW_EXPERIMENT_NAME, HF_HOME and HF_HUB_OFFLINE
# are passed on if they are set; passwords, HF_TOKEN and GUIDINO_TUNE_STORAGE are not (the dashboard shows what is passed, and the command
# with its options): set those where the head is started. Paths are paths on the cluster.
#
# examples:
#   cluster/submit.sh demo
#   cluster/submit.sh --no-wait kvasir --data-root /shared/Kvasir-SEG --trials 200
#   cluster/submit.sh --keep kvasir                          suits a service; see cluster/systemd/guidino-search.service
#   RAY_AUTH_MODE=token .venv/bin/ray job logs --follow JOB --address http://127.0.0.1:8265      also: job list, job stop
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
usage() { sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p;}' "cluster/submit.sh"; }
options=() keep=false
case ${1:-} in
    --no-wait)
        options=(--no-wait)
        shift
        ;;
    --keep)
        keep=true
        shift
        ;;
esac
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
address=${RAY_API_SERVER_ADDRESS:-http://127.0.0.1:8265}
answers() { # true also when it refuses the question: it is there
    python3 - "$address" 2> /dev/null << 'END'
import sys, urllib.error, urllib.request
try:
    urllib.request.urlopen(f"{sys.argv[1].rstrip('/')}/api/version", timeout=5).close()
except urllib.error.HTTPError:
    pass
END
}
await_dashboard() { # for as many seconds, or for ever
    local end=$((SECONDS + ${1:-0})) waits=false
    until answers; do
        if [[ -n ${1:-} ]] && ((SECONDS >= end)); then
            echo "error: nothing answers at $address" >&2
            echo "  -> start the head there with cluster/head.sh, or from your desk: ssh -L 8265:127.0.0.1:8265 HEAD" >&2
            return 1
        fi
        $waits || echo "waiting for the cluster's dashboard at $address${1:+, at most $1 s}" >&2
        waits=true
        sleep 1
    done
}
submit() {
    ray job submit --address "$address" ${options[@]+"${options[@]}"} --working-dir . --runtime-env-json "$environment" -- \
        python -m guidino_tune.search "$@"
}
follow() {
    ray job logs --follow --address "$address" "$1" || true
    sleep 2
}
if ! $keep; then
    await_dashboard "${WAIT:-60}"
    submit "$@"
    exit
fi

# The exit code that is to be ours; `runs` while it does; `lost` when the search is to go on; `unknown` when there is no such job.
how_it_is() {
    python3 - "$address" "$1" << 'END'
import sys
from ray.job_submission import JobSubmissionClient
try:
    job = JobSubmissionClient(sys.argv[1]).get_job_info(sys.argv[2])
except OSError:  # the head is gone once more
    sys.exit(print("lost"))
except RuntimeError as error:
    if "404" not in str(error):
        sys.exit(f"error: {error}")
    sys.exit(print("unknown"))
if job.status in ("PENDING", "RUNNING"):
    sys.exit(print("runs"))
code = {"SUCCEEDED": 0, "STOPPED": 130}.get(job.status, job.driver_exit_code)
# 75: again later. Whoever was killed by a signal has a negative code, or one above 128; without a code nobody saw its end.
print(code if code is not None and (0 <= code < 128 or code == 130) and code != 75 else "lost")
END
}
await_dashboard "${WAIT:-60}" || exit 75
pause=10 begun=$SECONDS taken=false # one search was taken by the cluster: whatever happens now, its command is none that it refuses
while true; do
    job=search-$(date +%s)-$$
    options=(--no-wait --submission-id "$job")
    if submit "$@"; then
        taken=true
        follow "$job"
    fi
    while true; do
        await_dashboard
        state=$(how_it_is "$job") || exit 1
        [[ $state == runs ]] || break
        taken=true
        follow "$job" # its output broke off, as with a tunnel
    done
    case $state in
        lost) ;;
        unknown) $taken || exit 1 ;; # not taken, as `ray job submit` said; else its head is gone and this is another
        *) exit "$state" ;;
    esac
    if ((SECONDS - begun > 120)); then pause=10; fi
    echo "the search did not end by itself: again in $pause s" >&2
    sleep "$pause"
    pause=$((pause < 300 ? pause * 2 : 300)) begun=$SECONDS
done
