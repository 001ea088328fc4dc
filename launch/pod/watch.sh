#!/usr/bin/env bash
# Keeps a run going until it is finished: makes the slice if there is none, makes it anew when Google has taken it away,
# installs, starts the command.
#
#   POD_SPOT=1 POD_BUCKET=my-bucket launch/pod/watch.sh train --gin_file=gin/exp/foo.gin --workdir=/mnt/my-bucket/foo
#
# Takes what run.sh takes, and is to run on a machine that stays, such as your own. Ends with code 0 when the command has
# ended well, and with 1 when it has failed while its machines are well. With --dry_run it prints one round, from taking
# away to starting. Settings: settings.sh.
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

start() {
  "${HERE}/install.sh" && "${HERE}/run.sh" "$@"
}

if [[ -n "${DRY_RUN}" ]]; then
  slice_state
  "${HERE}/delete.sh"
  "${HERE}/create.sh"
  start "$@"
  run_state
  exit 0
fi
failures=0
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
        dead) start "$@" || echo "${POD_NAME}: could not start; once more in ${POD_SECONDS} s." >&2 ;;
        *) failures=0 ;;
      esac
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
