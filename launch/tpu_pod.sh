#!/usr/bin/env bash

usage() {
    cat <<'USAGE'
Trains on all workers of a TPU VM pod, from your own machine, with gcloud:

    TPU=NAME ZONE=ZONE launch/tpu_pod.sh --config CONFIG --workdir DIR [--config.x.y=z …]
    TPU=NAME ZONE=ZONE launch/tpu_pod.sh stop      save, then end the run on all workers

All arguments are passed to `python -m lsrjax.main`, followed by --tpu_pod. It runs in
FOLDER of every worker, which has to contain lsrjax (pip install 'lsrjax[tpu]'), the
config, and the data. The work directory has to be shared by all workers, for example a
mounted bucket or Filestore. To copy a folder to all workers:

    gcloud compute tpus tpu-vm scp --recurse . NAME:lsrjax --zone ZONE --worker=all

The exit code is that of gcloud, which is not 0 if any worker fails; the output says
which. After a failure or preemption, the same command resumes from the last checkpoint.
If the connection breaks, the run may continue on the workers: `stop` ends it.

Environment variables:

    TPU              name of the TPU VM
    ZONE             its zone (that of gcloud's configuration)
    PROJECT          its project (that of gcloud's configuration)
    FOLDER           where to run on the workers (lsrjax, in the home folder)
    PYTHON           the interpreter there (python3)
    DOCTOR           0: start without `python -m lsrjax.doctor`, which looks for
                     problems in advance (1)
    FORWARD          names of variables of this shell that the workers get, separated
                     by spaces (HF_HUB_OFFLINE HF_ENDPOINT HF_HOME). Not for tokens:
                     other users can read a command line. Log in on the workers.
    GCLOUD_OPTIONS   more options of gcloud … ssh, separated by spaces (--internal-ip)
USAGE
}

say() { echo "tpu_pod.sh: $*" >&2; }

if [[ $# == 0 || $1 == -h || $1 == --help ]]; then
    usage
    [[ $# == 0 ]] && exit 2
    exit 0
fi
set -u
if [[ -z ${TPU:-} ]]; then
    say "set TPU to the name of the TPU VM. See -h."
    exit 2
fi
if ! command -v gcloud >/dev/null; then
    say "gcloud is not installed: https://cloud.google.com/sdk/docs/install"
    exit 2
fi

read -ra options <<<"${GCLOUD_OPTIONS:-}"
options+=(--worker=all)
[[ -n ${ZONE:-} ]] && options+=(--zone "$ZONE")
[[ -n ${PROJECT:-} ]] && options+=(--project "$PROJECT")

on_all_workers() {
    gcloud compute tpus tpu-vm ssh "$TPU" "${options[@]}" --command "$1"
}

if [[ $# == 1 && $1 == stop ]]; then
    # The brackets keep pkill from matching its own command line.
    on_all_workers "pkill -TERM -f -- '-m [l]srjax.main'"
    exit
fi

variables=
for name in ${FORWARD:-HF_HUB_OFFLINE HF_ENDPOINT HF_HOME}; do
    [[ -n ${!name:-} ]] && variables+="export $name=$(printf %q "${!name}") && "
done
arguments=$(printf ' %q' "$@")
python="$(printf %q "${PYTHON:-python3}") -m"
# Unquoted, so that a ~ is expanded on the workers.
before="cd ${FOLDER:-lsrjax} && $variables"
if [[ ${DOCTOR:-1} != 0 ]]; then
    on_all_workers "$before$python lsrjax.doctor$arguments --tpu_pod"
    code=$?
    if ((code)); then
        say "not started: python -m lsrjax.doctor found errors, above. DOCTOR=0 starts" \
            "without it."
        exit "$code"
    fi
fi
on_all_workers "$before$python lsrjax.main$arguments --tpu_pod"
