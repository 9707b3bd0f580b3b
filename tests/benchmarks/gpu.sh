#!/usr/bin/env bash
# Checks on a GPU, then everything that is measured there, as one table and as JSON:
#   bash tests/benchmarks/gpu.sh --results docs/benchmarks
# A check or a benchmark that fails does not keep the others from running.
set -u
cd "$(dirname "$0")/../.." || exit

# Warnings of torch's compiler differ between versions and fail nothing here.
run=(timeout --signal INT)
pytest=(python -m pytest -q -W default --jaxtyping-packages= -p no:cacheprovider)
failed=0

"${run[@]}" 150 "${pytest[@]}" tests/gpu tests/oracles/test_no_sync.py || failed=1
"${run[@]}" 440 "${pytest[@]}" --benchmark-quiet "$@" \
    tests/benchmarks/test_attention_gpu.py \
    tests/benchmarks/test_training.py \
    tests/benchmarks/test_pooling.py \
    tests/benchmarks/test_losses.py \
    tests/benchmarks/test_masks.py || failed=1
exit "$failed"
