#!/usr/bin/env bash
# usage: cluster/slurm/step.sh head [options of `ray start`] | worker | driver [options of `guidino-tune search`]
#
# What a job of cluster/slurm/search.sbatch, which sets the variables that are read here, runs on its nodes: a Ray node until SIGUSR2 comes,
# or the search, once all nodes have joined.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
if [[ -x $here/.venv/bin/ray ]]; then PATH=$here/.venv/bin:$PATH; fi
command -v ray > /dev/null || { echo "error: no ray on $(hostname); install the project there, or name a CONTAINER" >&2; exit 2; }

own_folder() { # that nobody else can have made
    mkdir -p "${1%/*}"
    mkdir -m 700 "$1" 2> /dev/null || [[ -O $1 && ! -L $1 ]] || { echo "error: somebody else has $1 on $(hostname)" >&2; exit 2; }
}

node() { # a Ray node with what Slurm gave to this job here, by a script of cluster/ and its options
    # Preemption tells all processes of all steps to end. The trials must not: the search stops them, once they have saved.
    local before='import os, signal, sys
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
os.execvp(sys.argv[1], sys.argv[1:])'
    trap '' INT TERM
    trap : USR2
    own_folder "$NODE_FOLDER"
    own_folder "$RAY_TMPDIR"
    rm -rf "$RAY_TMPDIR/ray" # of a start that was killed
    local script=$1 options=() code=0
    shift
    read -ra options <<< "${RAY_START_OPTIONS:-}"
    # Other Ray nodes may be on this machine: ports that are free. Images do not go through Ray's store.
    python -c "$before" bash "$here/cluster/$script" "$@" --num-cpus="$SLURM_CPUS_ON_NODE" --num-gpus="${SLURM_GPUS_ON_NODE:-0}" \
        --object-store-memory=500000000 --min-worker-port=0 --max-worker-port=0 --dashboard-agent-listen-port=0 \
        ${options[@]+"${options[@]}"} < /dev/null &
    wait $! || code=$?
    if ((code == 140)); then code=0; fi # SIGUSR2
    # The others that were sent it may be ending, and write.
    rm -rf "$NODE_FOLDER" "$RAY_TMPDIR" 2> /dev/null || { sleep 2; rm -rf "$NODE_FOLDER" "$RAY_TMPDIR"; }
    return "$code"
}

await_nodes() { # until as many nodes have joined as the job has
    local end=$((SECONDS + WAIT)) ip=${RAY_ADDRESS%:*} port=${RAY_ADDRESS##*:}
    until timeout 3 bash -c ": < /dev/tcp/$ip/$port" 2> /dev/null; do
        if ((SECONDS >= end)); then
            echo "error: Ray's head does not answer at $RAY_ADDRESS, after $WAIT s; see $RAY_LOG" >&2
            return 1
        fi
        sleep 0.5
    done
    python -c '
import sys, time, ray
ray.init(logging_level="ERROR", log_to_driver=False)
wanted, names, end = int(sys.argv[1]), sys.argv[2], time.monotonic() + float(sys.argv[3])
while len(there := [node["NodeManagerAddress"] for node in ray.nodes() if node["Alive"]]) < wanted:
    if time.monotonic() > end:
        found = ", ".join(there)
        sys.exit(f"error: {len(there)} of the {wanted} nodes ({names}) have joined Ray within the time (WAIT): {found}; see {sys.argv[4]}")
    time.sleep(0.2)
' "$SLURM_JOB_NUM_NODES" "$SLURM_JOB_NODELIST" $((end - SECONDS)) "$RAY_LOG"
}

case ${1:-} in
    head) node head.sh --block --node-ip-address="${RAY_ADDRESS%:*}" "${@:2}" ;;
    worker) node worker.sh --rejoin "$RAY_ADDRESS" ;;
    driver)
        await_nodes
        export PYTHONUNBUFFERED=1 # into a file
        exec python -m guidino_tune.search "${@:2}"
        ;;
    *)
        sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p;}' "${BASH_SOURCE[0]}" >&2
        exit 2
        ;;
esac
