#!/usr/bin/env bash
# usage: cluster/head.sh [options of `ray start`]
#
# Starts the head of a Ray cluster on this machine, with token authentication, and with the dashboard, through which jobs are submitted
# too, on 127.0.0.1. The token is made in ~/.ray/auth_token if there is none yet.
#
# The nodes find each other on the network: without workers on other machines add --node-ip-address=127.0.0.1, and with them keep the
# ports closed to everybody else; who holds the token can run any code as you.
#
# A node that no longer answers is given up after about 20 s (Ray's own setting: a minute), and `ray job stop` leaves a search 60 s to put
# everything away (Ray's own: 3 s). Variables that are set win: RAY_health_check_*, RAY_JOB_STOP_WAIT_TIME_S.
#
# examples:
#   cluster/head.sh                                          all CPUs and GPUs of this machine, port 6379
#   cluster/head.sh --num-cpus=0 --num-gpus=0                this machine only steers; searches wait for nodes that compute
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

# Of a node that is only busy, the process that is asked still answers: it trains nothing.
export RAY_health_check_period_ms=${RAY_health_check_period_ms:-2000}
export RAY_health_check_timeout_ms=${RAY_health_check_timeout_ms:-4000}
export RAY_health_check_failure_threshold=${RAY_health_check_failure_threshold:-3}
export RAY_gcs_rpc_server_reconnect_timeout_s=${RAY_gcs_rpc_server_reconnect_timeout_s:-20} # as in cluster/worker.sh
export RAY_JOB_STOP_WAIT_TIME_S=${RAY_JOB_STOP_WAIT_TIME_S:-60}

port=6379 address=$(hostname -I 2> /dev/null | cut -d ' ' -f 1) || true
for option in "$@"; do
    if [[ $option == --port=* ]]; then port=${option#--port=}; fi
    if [[ $option == --node-ip-address=* ]]; then address=${option#--node-ip-address=}; fi
done
cat << END
worker:  copy ~/.ray/auth_token to the other machine (same place, mode 600), then there: cluster/worker.sh ${address:-$(hostname)}:$port
search:  cluster/submit.sh kvasir
         or, in any folder: source $here/cluster/env.sh && ray job submit -- python -m guidino_tune.search kvasir
desk:    ssh -L 8265:127.0.0.1:8265 ${address:-$(hostname)}    then the same, from your own checkout

END
exec ray start --head --disable-usage-stats --dashboard-host=127.0.0.1 --dashboard-port=8265 "$@"
