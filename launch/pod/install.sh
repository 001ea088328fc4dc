#!/usr/bin/env bash
# Puts the committed state of this checkout on all machines of a slice, with the libraries of requirements-tpu.txt, and
# mounts POD_BUCKET at /mnt/<bucket>.
#
#   POD_NAME=mine POD_BUCKET=my-bucket launch/pod/install.sh
#
# May be run again, after a commit for instance. Settings: settings.sh.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=settings.sh
source "$(dirname "${BASH_SOURCE[0]}")/settings.sh"

archive="${TMPDIR:-/tmp}/vqim-${POD_NAME}.tar.gz"
run git -C "${HERE}/../.." archive --format=tar.gz --output="${archive}" HEAD
tpus tpu-vm scp "${archive}" "${POD_NAME}:vqim.tar.gz" --worker=all
on all "mkdir -p vqim && tar -xzf vqim.tar.gz -C vqim && bash vqim/launch/pod/setup_worker.sh ${POD_BUCKET}"
