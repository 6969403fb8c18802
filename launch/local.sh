#!/usr/bin/env bash

usage() {
    cat <<'USAGE'
Trains in several processes of this machine, as one run:

    launch/local.sh PROCESSES --config CONFIG [--workdir DIR …]

All arguments but the first are passed to `python -m lsrjax.main`. GPUs are divided
among the processes. They connect through a free port of 127.0.0.1, which is not
protected from other users of this machine. (A single process uses all devices just as
well; this script is for trying out a run of several processes, and for machines where
that is faster.)

SIGTERM, SIGUSR1, SIGINT and SIGHUP are passed on to all processes. When one fails, the
others are ended. The exit code is that of the first that failed, or else 75 if one of
them saved its state and has to be started again.

Environment variables:

    PYTHON     the interpreter (python)
    LOG_DIR    a folder for the output, with a file for each process; without it, all
               output is printed, with the number of the process before each line
    GRACE      seconds that the others have to end by themselves (20)
USAGE
}

say() { echo "local.sh: $*" >&2; }

if [[ $# == 0 || $1 == -h || $1 == --help ]]; then
    usage
    [[ $# == 0 ]] && exit 2
    exit 0
fi
if [[ ! $1 =~ ^[1-9][0-9]*$ ]]; then
    say "the first argument is the number of processes, not '$1'. See -h."
    exit 2
fi
set -u
readonly AGAIN=75 # lsrjax.main: saved; start it again
processes=$1
shift
python=${PYTHON:-python}

# Separate process groups: a Ctrl-C reaches this script alone and is passed on once.
set -m

devices=()
if [[ -n ${CUDA_VISIBLE_DEVICES:-} ]]; then
    IFS=, read -ra devices <<<"$CUDA_VISIBLE_DEVICES"
elif command -v nvidia-smi >/dev/null; then
    mapfile -t devices < <(nvidia-smi --query-gpu=index --format=csv,noheader 2>/dev/null)
fi
share=$((${#devices[@]} / processes))
if ((${#devices[@]} && (share == 0 || ${#devices[@]} % processes))); then
    say "${#devices[@]} GPUs do not divide over $processes processes."
    exit 2
fi

flags=()
if ((processes > 1)); then
    port=$("$python" -c 'import socket
with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    print(free.getsockname()[1])') || exit
    flags=(--coordinator "127.0.0.1:$port" --num_processes "$processes")
fi
[[ -n ${LOG_DIR:-} ]] && { mkdir -p "$LOG_DIR" || exit; }

prefix() {
    # Lives until the process has written its last line.
    trap '' INT TERM USR1 HUP
    exec sed -u "s/^/[$1] /"
}

# Starts process $1; the rest is its command.
start() {
    local number=$1
    shift
    if ((share)); then
        local IFS=,
        export CUDA_VISIBLE_DEVICES="${devices[*]:number * share:share}"
    fi
    if [[ -n ${LOG_DIR:-} ]]; then
        "$@" </dev/null >"$LOG_DIR/$number.log" 2>&1 &
    else
        "$@" </dev/null > >(prefix "$number") 2> >(prefix "$number" >&2) &
    fi
    pids[number]=$!
}

pids=()
# shellcheck disable=SC2317
forward() {
    say "SIG$1 goes to all processes."
    ((${#pids[@]})) && kill -s "$1" "${pids[@]}" 2>/dev/null
}
for signal in TERM USR1 INT HUP; do
    # shellcheck disable=SC2064
    trap "forward $signal" "$signal"
done

for ((i = 0; i < processes; i++)); do
    own=()
    ((processes > 1)) && own=(--process_id "$i")
    start "$i" "$python" -m lsrjax.main "$@" "${flags[@]}" "${own[@]}"
done

failure=0 # the first exit code but 0 and 75
again=0
deadline=
while ((${#pids[@]})); do
    sleep 0.2 &
    wait $! # until a signal or the end of the sleep
    for i in "${!pids[@]}"; do
        kill -0 "${pids[i]}" 2>/dev/null && continue
        wait "${pids[i]}"
        code=$?
        unset "pids[i]"
        ((code == 0)) && continue
        say "process $i ended with exit code $code."
        : "${deadline:=$((SECONDS + ${GRACE:-20}))}"
        if ((code == AGAIN)); then
            again=$AGAIN
        elif ((failure == 0)); then
            failure=$code
            ((${#pids[@]})) && kill -s TERM "${pids[@]}" 2>/dev/null
        fi
    done
    if [[ -n $deadline ]] && ((SECONDS > deadline && ${#pids[@]})); then
        say "processes ${!pids[*]} did not end in ${GRACE:-20} s and are killed."
        kill -s KILL "${pids[@]}" 2>/dev/null
        deadline=$((SECONDS + 3600))
    fi
done
exit $((failure ? failure : again))
