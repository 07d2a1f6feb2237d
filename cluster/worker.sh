#!/usr/bin/env bash
# usage: cluster/worker.sh HEAD[:PORT] [options of `ray start`]
#
# Adds this machine to the Ray cluster that cluster/head.sh started on HEAD (port 6379). Needed here beforehand: the same versions of
# Python and of this project's libraries, the head's token in ~/.ray/auth_token, and the folders that trials use under the same paths:
# GUIDINO_TUNE_HOME (studies, data sets) on a shared file system.
#
# examples:
#   scp HEAD:.ray/auth_token ~/.ray/ && chmod 600 ~/.ray/auth_token      once
#   cluster/worker.sh 10.0.0.1
#   cluster/worker.sh 10.0.0.1:6380 --num-cpus=16 --block                --block suits a service
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
usage() { sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p;}' "${BASH_SOURCE[0]}"; }
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
address=$1
shift
[[ $address == *:* ]] || address+=:6379
if [[ -x $here/.venv/bin/ray ]]; then PATH=$here/.venv/bin:$PATH; fi
command -v ray > /dev/null || { echo "error: no ray here; install the project first: make search, or pip install" >&2; exit 1; }
if [[ -z ${RAY_AUTH_TOKEN:-} && ! -f ${RAY_AUTH_TOKEN_PATH:-$HOME/.ray/auth_token} ]]; then
    echo "error: no token: ~/.ray/auth_token is not there" >&2
    echo "  -> mkdir -p ~/.ray && scp ${address%:*}:.ray/auth_token ~/.ray/ && chmod 600 ~/.ray/auth_token" >&2
    exit 1
fi

export RAY_AUTH_MODE=token # with an address given, Ray does not use the token by itself
exec ray start --disable-usage-stats --address="$address" "$@"
