#!/usr/bin/env bash
# Deletes the slice, with all that is on its machines, and the request for it.
#
#   POD_NAME=mine launch/pod/delete.sh
#
# Settings: settings.sh.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=settings.sh
source "$(dirname "${BASH_SOURCE[0]}")/settings.sh"

tpus queued-resources delete "${POD_NAME}" --force --quiet
