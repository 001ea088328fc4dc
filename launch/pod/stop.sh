#!/usr/bin/env bash
# Stops a run: all machines are sent SIGTERM, stop after the same step, and save. The slice stays, and costs.
#
#   launch/pod/stop.sh
#
# The same run.sh again goes on from there. Settings: settings.sh.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=settings.sh
source "$(dirname "${BASH_SOURCE[0]}")/settings.sh"

on all "sudo systemctl stop ${UNIT}"
