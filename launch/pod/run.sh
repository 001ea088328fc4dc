#!/usr/bin/env bash
# Starts the same command on all machines of a slice, in the background; one that runs there already is stopped first.
#
#   launch/pod/run.sh train --gin_file=gin/exp/foo.gin --workdir=/mnt/my-bucket/foo
#
# The first argument is a program of launch/, all others are its flags. The command runs in ~/vqim as a service of
# systemd: it outlives the connection, logs.sh shows what it prints, stop.sh stops it. Settings: settings.sh.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=settings.sh
source "$(dirname "${BASH_SOURCE[0]}")/settings.sh"

if [[ $# -eq 0 ]]; then
  echo "run.sh needs a program of launch/ and its flags, such as: run.sh train --gin_file=gin/exp/foo.gin --workdir=..." >&2
  exit 2
fi
verb="$1"
shift
command="sudo systemctl stop ${UNIT} 2>/dev/null; sudo systemctl reset-failed ${UNIT} 2>/dev/null; "
# Expanded on the machines: whose home, whose account.
# shellcheck disable=SC2016
command+='sudo systemd-run --unit='"${UNIT}"' --remain-after-exit --uid="$(id -u)" --working-directory="$HOME/vqim"'
# Hosts that are told to stop agree on a step and save; a large state takes minutes.
command+=" --property=TimeoutStopSec=900 --setenv=PJRT_DEVICE=TPU"
command+=" --setenv=$(quoted "LIBTPU_INIT_ARGS=${POD_LIBTPU_ARGS}")"
[[ -z "${POD_PRELOAD}" ]] || command+=" --setenv=$(quoted "LD_PRELOAD=${POD_PRELOAD}")"
# shellcheck disable=SC2016
command+=' -- "$HOME/vqim/.venv/bin/python" -m launch.'"$(quoted "${verb}" "$@")"
on all "${command}"
