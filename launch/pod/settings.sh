# shellcheck shell=bash
# What the scripts in this folder share: settings, which the environment may give, and how they call gcloud.
#
#   POD_NAME        of the slice, and of the queued resource that asks for it
#   POD_ZONE        where it is
#   POD_PROJECT     the Google Cloud project; gcloud's own unless given
#   POD_TYPE, POD_TOPOLOGY      v4 and 4x4x8 are 128 chips on 32 hosts, which Google also calls v4-256; 2x2x1 is one host
#   POD_IMAGE       the software that Google puts on the machines
#   POD_SPOT        1: cheaper, and may be taken away at any time; empty: not
#   POD_BUCKET      a Cloud Storage bucket that install.sh mounts at /mnt/<bucket>; none unless given
#   POD_SECONDS     between two looks at something that is awaited
#   POD_LIBTPU_ARGS options of the TPU's compiler, LIBTPU_INIT_ARGS of the run; unless given, those in libtpu_args.txt,
#                   with which all-gathers go on beside products (docs/tpu_estimates.md)
#   POD_PRELOAD     LD_PRELOAD of the run; unless given, tcmalloc, with which training stands still for less time while a
#                   state is saved (docs/reliability.md)
#
# With --dry_run as first argument, or DRY_RUN=1, a script prints its commands and runs none.

POD_NAME="${POD_NAME:-vqim}"
POD_ZONE="${POD_ZONE:-us-central2-b}"
POD_PROJECT="${POD_PROJECT:-}"
POD_TYPE="${POD_TYPE:-v4}"
POD_TOPOLOGY="${POD_TOPOLOGY:-4x4x8}"
POD_IMAGE="${POD_IMAGE:-tpu-ubuntu2204-base}"
POD_SPOT="${POD_SPOT:-}"
POD_BUCKET="${POD_BUCKET:-}"
POD_SECONDS="${POD_SECONDS:-30}"
DRY_RUN="${DRY_RUN:-}"

# shellcheck disable=SC2034  # for those who source this
HERE="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
POD_LIBTPU_ARGS="${POD_LIBTPU_ARGS-$(paste -sd ' ' "${HERE}/libtpu_args.txt")}"
POD_PRELOAD="${POD_PRELOAD-/usr/lib/x86_64-linux-gnu/libtcmalloc_minimal.so.4}"
# shellcheck disable=SC2034
UNIT=vqim # the systemd service that a run is on each machine

case "${1:-}" in
  --dry_run)
    DRY_RUN=1
    shift
    ;;
  --help | -h)
    sed -n '2,/^[^#]/s/^# \{0,1\}//p' "$0"
    exit 0
    ;;
esac
export DRY_RUN

# Words as one would type them.
quoted() {
  local word line=""
  for word; do
    if [[ "${word}" =~ ^[A-Za-z0-9_./:=,@%+-]+$ ]]; then line+=" ${word}"; else line+=" ${word@Q}"; fi
  done
  echo "${line:1}"
}

# Runs a command, or prints it.
run() {
  if [[ -n "${DRY_RUN}" ]]; then quoted "$@"; else "$@"; fi
}

# gcloud compute tpus ..., in our zone and project.
tpus() {
  run gcloud compute tpus "$@" --zone="${POD_ZONE}" ${POD_PROJECT:+"--project=${POD_PROJECT}"}
}

# on WORKER COMMAND: runs a shell command on one machine of the slice, or on all.
on() {
  tpus tpu-vm ssh "${POD_NAME}" --worker="$1" --command="$2"
}

# The state of the queued resource: ACTIVE, WAITING_FOR_RESOURCES ..., MISSING if there is none.
slice_state() {
  tpus queued-resources describe "${POD_NAME}" --format="value(state.state)" 2>/dev/null || echo MISSING
}
