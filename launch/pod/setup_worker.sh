#!/usr/bin/env bash
# Run by install.sh on each machine of a slice: installs vqim in ~/vqim/.venv, and mounts a bucket.
#
#   bash vqim/launch/pod/setup_worker.sh [bucket]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
bucket="${1:-}"
gcsfuse_version=3.4.4

# A machine that has just started may be busy with updates of its own.
get() {
  sudo apt-get -o DPkg::Lock::Timeout=600 -qq update
  sudo DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=600 -qq --yes install "$@"
}

# An allocator of memory: POD_PRELOAD in settings.sh.
ldconfig -p | grep --quiet libtcmalloc_minimal.so.4 || get libtcmalloc-minimal4
# Ubuntu 22.04 has Python 3.10; uv brings 3.11.
python3 -m pip --version >/dev/null 2>&1 || get python3-pip
python3 -m pip install --quiet --user uv
uv="$(python3 -m site --user-base)/bin/uv"
[[ -x .venv/bin/python ]] || "${uv}" venv --quiet --python 3.11 .venv
# Nothing is resolved anew: every machine, and whoever asked the TPU compiler, has the same versions.
"${uv}" pip install --quiet --python .venv --no-deps --requirement launch/pod/requirements-tpu.txt
"${uv}" pip install --quiet --python .venv --no-deps --editable .

if [[ -n "${bucket}" ]]; then
  if ! command -v gcsfuse >/dev/null; then
    package="gcsfuse_${gcsfuse_version}_amd64.deb"
    releases=https://github.com/GoogleCloudPlatform/gcsfuse/releases/download
    curl --fail --silent --show-error --location --output "/tmp/${package}" \
      "${releases}/v${gcsfuse_version}/${package}"
    get "/tmp/${package}"
  fi
  folder="/mnt/${bucket}"
  if ! mountpoint --quiet "${folder}"; then
    sudo install --directory --owner="$(id -un)" "${folder}"
    # Hosts look at each other's files: nothing of what is there, or is not, may come from a cache.
    gcsfuse --metadata-cache-ttl-secs=0 --metadata-cache-negative-ttl-secs=0 "${bucket}" "${folder}"
  fi
fi
.venv/bin/python -c 'import importlib.metadata as packages
print(*(f"{name} {packages.version(name)}" for name in ("torch", "torch_xla", "jax", "jaxlib", "libtpu")))'
