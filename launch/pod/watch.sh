#!/usr/bin/env bash
# Keeps a run going until it is finished: makes the slice if there is none, makes it anew when Google has taken it away,
# installs, starts the command.
#
#   POD_SPOT=1 POD_BUCKET=my-bucket launch/pod/watch.sh train --gin_file=gin/exp/foo.gin --workdir=/mnt/my-bucket/foo
#
# Takes what run.sh takes, and is to run on a machine that stays, such as your own. Training gets --end_if_hanging, unless
# --noend_if_hanging is given. What ended by itself since it hung or lost a process, or was killed, is started again, at
# most three times an hour. Ends with code 0 when the command has ended well, and with 1 when it has failed while its
# machines are well. With --dry_run it prints one round, from taking away to starting. Settings: settings.sh.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=settings.sh
source "$(dirname "${BASH_SOURCE[0]}")/settings.sh"

if [[ $# -eq 0 ]]; then
  echo "watch.sh needs what run.sh needs: a program of launch/ and its flags." >&2
  exit 2
fi

# What systemd on the first machine says of the run: running, exited (well), failed, dead (there is none).
run_state() {
  on 0 "systemctl show ${UNIT} --property=SubState --value" 2>/dev/null || echo unreachable
}

# Whether the first machine's process was killed, or ended itself with the code of vqim/training/watchdog.py.
may_go_on() {
  local how
  how="$(on 0 "systemctl show ${UNIT} --property=Result --property=ExecMainStatus" 2>/dev/null)"
  [[ "${how}" == *ExecMainStatus=70* || "${how}" == *Result=signal* || "${how}" == *Result=oom-kill* ]]
}

start() {
  "${HERE}/install.sh" && "${HERE}/run.sh" "$@"
}

# --restore=STEP is for the first start: with it, a later one would go back again.
start_again() {
  local words=()
  while [[ $# -gt 0 ]]; do
    case "$1" in
      --restore | -restore) shift ;;
      --restore=* | -restore=*) ;;
      *) words+=("$1") ;;
    esac
    shift
  done
  start "${words[@]}"
}

if [[ "$1" == train ]]; then
  set -- train --end_if_hanging "${@:2}"
fi

if [[ -n "${DRY_RUN}" ]]; then
  slice_state
  "${HERE}/delete.sh"
  "${HERE}/create.sh"
  start "$@"
  run_state
  exit 0
fi
failures=0
restarts=0
last_start=0
starting=start
while true; do
  slice="$(slice_state)"
  state="-"
  case "${slice}" in
    ACTIVE)
      state="$(run_state)"
      case "${state}" in
        exited) echo "${POD_NAME}: the run has ended well." && exit 0 ;;
        # SIGTERM before a slice is taken away looks the same for a while.
        failed) failures=$((failures + 1)) ;;
        dead)
          if "${starting}" "$@"; then
            starting=start_again
          else
            echo "${POD_NAME}: could not start; once more in ${POD_SECONDS} s." >&2
          fi
          ;;
        *) failures=0 ;;
      esac
      if [[ ${failures} -ge 5 ]] && may_go_on; then
        [[ $((SECONDS - last_start)) -lt 3600 ]] || restarts=0
        if [[ ${restarts} -lt 3 ]]; then
          echo "${POD_NAME}: the run hung, lost a process or was killed; it is started again." >&2
          failures=0 restarts=$((restarts + 1)) last_start=${SECONDS}
          start_again "$@" || echo "${POD_NAME}: could not start; once more in ${POD_SECONDS} s." >&2
        fi
      fi
      if [[ ${failures} -ge 5 ]]; then
        echo "${POD_NAME}: the run has failed; launch/pod/logs.sh shows why." >&2
        exit 1
      fi
      ;;
    SUSPENDED | FAILED | MISSING)
      failures=0
      [[ "${slice}" == MISSING ]] || "${HERE}/delete.sh"
      "${HERE}/create.sh" || true # it may be taken away before it is there
      ;;
  esac
  echo "${POD_NAME}: slice ${slice}, run ${state}"
  sleep "${POD_SECONDS}"
done
