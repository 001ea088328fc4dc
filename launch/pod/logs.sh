#!/usr/bin/env bash
# Shows what a run has printed, and goes on as it prints more.
#
#   launch/pod/logs.sh [worker]
#
# Of the first machine unless another is named, by its number. Ctrl-C ends the showing, not the run. Settings: settings.sh.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=settings.sh
source "$(dirname "${BASH_SOURCE[0]}")/settings.sh"

on "${1:-0}" "sudo journalctl --unit=${UNIT} --lines=200 --follow --output=cat"
