# usage: source cluster/env.sh [DASHBOARD]
#
# Sets what `ray` needs to reach a cluster that cluster/head.sh started, in this shell:
#   RAY_AUTH_MODE=token        with an address given, Ray does not show its token by itself, and ends in an AuthenticationError
#   RAY_API_SERVER_ADDRESS     DASHBOARD, by default http://127.0.0.1:8265: on the head itself, or through ssh -L 8265:127.0.0.1:8265 HEAD
#   PATH                       with this checkout's .venv in front, if there is one
# The token is that of ~/.ray/auth_token.
#
# examples:
#   source cluster/env.sh
#   ray job submit -- python -m guidino_tune.search kvasir          the package as it is installed on the head
#   ray job submit --working-dir . -- python -m guidino_tune.search kvasir      with the code of this folder
#   ray job stop JOB                                                the same submission goes on with the study
case ${1:-} in
    -h | --help)
        sed -n 's/^# \{0,1\}//p' "${BASH_SOURCE[0]:-$0}"
        ;;
    *)
        export RAY_AUTH_MODE=token RAY_API_SERVER_ADDRESS=http://127.0.0.1:8265
        # Within another script $1 may be that script's own.
        case ${1:-} in http://* | https://*) RAY_API_SERVER_ADDRESS=$1 ;; esac
        guidino_tune_checkout=$(cd "$(dirname "${BASH_SOURCE[0]:-$0}")/.." && pwd)
        if [ -x "$guidino_tune_checkout/.venv/bin/ray" ]; then export PATH="$guidino_tune_checkout/.venv/bin:$PATH"; fi
        unset guidino_tune_checkout
        if [ -z "${RAY_AUTH_TOKEN:-}" ] && [ ! -f "${RAY_AUTH_TOKEN_PATH:-$HOME/.ray/auth_token}" ]; then
            echo "error: no token: ~/.ray/auth_token is not there" >&2
            echo "  -> mkdir -p ~/.ray && scp HEAD:.ray/auth_token ~/.ray/ && chmod 600 ~/.ray/auth_token" >&2
        fi
        ;;
esac
