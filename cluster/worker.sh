#!/usr/bin/env bash
# usage: cluster/worker.sh [--rejoin] HEAD[:PORT] [options of `ray start`]
#
# Adds this machine to the Ray cluster that cluster/head.sh started on HEAD (port 6379). Needed here beforehand: the same versions of
# Python and of this project's libraries, the head's token in ~/.ray/auth_token, and the folders that trials use under the same paths:
# GUIDINO_TUNE_HOME (studies, data sets) on a shared file system. A head that does not answer yet is waited for, WAIT seconds (default 300).
#
# --rejoin stays in front and joins again whenever this machine was given up, as after its network was away, and whenever the head was
# started anew; until it is ended (SIGTERM, Ctrl-C).
#
# examples:
#   scp HEAD:.ray/auth_token ~/.ray/ && chmod 600 ~/.ray/auth_token      once
#   cluster/worker.sh 10.0.0.1
#   cluster/worker.sh --rejoin 10.0.0.1                                  suits a service
#   WAIT=3600 cluster/worker.sh 10.0.0.1:6380 --num-cpus=16
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
usage() { sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p;}' "${BASH_SOURCE[0]}"; }
rejoin=false
if [[ ${1:-} == --rejoin ]]; then
    rejoin=true
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

# Ray asks DNS alone, and for minutes, where a name is only in /etc/hosts; an address connects at once.
name=${address%:*} port=${address##*:}
ip=$({ getent ahostsv4 "$name" || getent ahosts "$name"; } 2> /dev/null | awk '$2 == "STREAM" {print $1; exit}') || true
if [[ -z $ip ]]; then
    echo "error: nobody knows the address of $name" >&2
    echo "  -> give its number, such as 10.0.0.1, or put it into /etc/hosts" >&2
    exit 2
fi

ended=false node=
answers() { timeout 3 bash -c ": < /dev/tcp/$ip/$port" 2> /dev/null; }
await_head() {
    local end=$((SECONDS + ${WAIT:-300}))
    answers || echo "waiting for the head at $ip:$port, at most ${WAIT:-300} s" >&2
    until $ended || answers; do
        if ((SECONDS >= end)); then
            echo "error: nothing answers at $ip:$port" >&2
            echo "  -> start it there with cluster/head.sh, and open its ports to this machine" >&2
            return 1
        fi
        sleep 2 & wait $! || true # a signal is heard while one waits, and not while one sleeps
    done
}

# Seconds that a node trains on without its head: about what a head waits for a node before it gives its trials to others (Ray's own: 60).
export RAY_gcs_rpc_server_reconnect_timeout_s=${RAY_gcs_rpc_server_reconnect_timeout_s:-20}
export RAY_AUTH_MODE=token # with an address given, Ray does not use the token by itself
await_head
if ! $rejoin; then exec ray start --disable-usage-stats --address="$ip:$port" "$@"; fi

trap 'ended=true; [[ -z $node ]] || kill "$node" 2> /dev/null || true' TERM INT
while ! $ended; do
    ray start --disable-usage-stats --address="$ip:$port" --block "$@" &
    node=$!
    wait "$node" || true
    if $ended; then
        wait "$node" || true
        break
    fi
    echo "this node is out of the cluster: joining again in 5 s" >&2
    sleep 5 & wait $! || true
    await_head || true
done
