#!/usr/bin/env bash
# Asks for a slice, and waits until it is there.
#
#   POD_NAME=mine POD_TOPOLOGY=4x4x8 launch/pod/create.sh
#
# The request waits in Google's queue for as long as it takes; interrupting this script leaves it there. Settings: settings.sh.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=settings.sh
source "$(dirname "${BASH_SOURCE[0]}")/settings.sh"

tpus queued-resources create "${POD_NAME}" --node-id="${POD_NAME}" --type="${POD_TYPE}" --topology="${POD_TOPOLOGY}" \
  --runtime-version="${POD_IMAGE}" ${POD_SPOT:+--spot}
if [[ -n "${DRY_RUN}" ]]; then
  slice_state
  exit 0
fi
while true; do
  state="$(slice_state)"
  case "${state}" in
    ACTIVE) break ;;
    FAILED | SUSPENDING | SUSPENDED | MISSING)
      echo "${POD_NAME} is ${state}, not ACTIVE: gcloud compute tpus queued-resources describe ${POD_NAME} says why." >&2
      exit 1
      ;;
  esac
  echo "${POD_NAME}: ${state}"
  sleep "${POD_SECONDS}"
done
echo "${POD_NAME}: ACTIVE"
