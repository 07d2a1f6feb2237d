#!/usr/bin/env bash
# usage: cluster/head.sh [options of `ray start`]
#
# Starts the head of a Ray cluster on this machine, with token authentication, and with the dashboard, through which jobs are submitted
# too, on 127.0.0.1. The token is made in ~/.ray/auth_token if there is none yet.
#
# The nodes find each other on the network: without workers on other machines add --node-ip-address=127.0.0.1, and with them keep the
# ports closed to everybody else; who holds the token can run any code as you.
#
# examples:
#   cluster/head.sh                                          all CPUs and GPUs of this machine, port 6379
#   cluster/head.sh --node-ip-address=127.0.0.1              this machine alone
#   cluster/head.sh --port=6380 --num-gpus=2 --block         other options of `ray start`; --block suits a service
#   ssh -L 8265:127.0.0.1:8265 HEAD                          from your desk: dashboard and job submission through a tunnel
#   RAY_AUTH_MODE=token .venv/bin/ray stop                   ends what runs on this machine
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
case ${1:-} in -h | --help)
    sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p;}' "${BASH_SOURCE[0]}"
    exit 0
    ;;
esac
if [[ -x $here/.venv/bin/ray ]]; then PATH=$here/.venv/bin:$PATH; fi # jobs run the `python` that is found first
command -v ray > /dev/null || { echo "error: no ray here; install the project first: make search, or pip install" >&2; exit 1; }

# Without a token `ray start` would start an open cluster, and without this variable tools that are given an address send none.
export RAY_AUTH_MODE=token
umask 077
ray get-auth-token --generate > /dev/null
if [[ -f $HOME/.ray/auth_token ]]; then chmod 600 "$HOME/.ray/auth_token"; fi

port=6379
for option in "$@"; do
    if [[ $option == --port=* ]]; then port=${option#--port=}; fi
done
ray start --head --disable-usage-stats --dashboard-host=127.0.0.1 --dashboard-port=8265 "$@"

cat << END

worker:  copy ~/.ray/auth_token to the other machine (same place, mode 600), then there: cluster/worker.sh $(hostname):$port
search:  cluster/submit.sh kvasir    (sets RAY_AUTH_MODE=token; for other uses of ray: export RAY_AUTH_MODE=token)
END
