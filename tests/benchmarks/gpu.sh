#!/usr/bin/env bash
# Everything that is measured on a GPU, as one table and as JSON, then checks of what runs there:
#   bash tests/benchmarks/gpu.sh --results docs/benchmarks
# Under ten minutes. What fails, or takes too long, does not keep the rest from running.
set -u
cd "$(dirname "$0")/../.." || exit

# Warnings of torch's compiler differ between versions and fail nothing here.
pytest=(python -m pytest -q -W default --jaxtyping-packages= -p no:cacheprovider)
failed=0

# In this order: a run that is cut off still writes what it has.
timeout --signal INT 440 "${pytest[@]}" --benchmark-quiet "$@" \
    -k "test_l2 or test_m3 or test_e2 or test_e1 or test_a3 or test_t1 or test_a2" \
    tests/benchmarks/test_pooling.py \
    tests/benchmarks/test_masks.py \
    tests/benchmarks/test_losses.py \
    tests/benchmarks/test_tower_gpu.py \
    tests/benchmarks/test_training.py \
    tests/benchmarks/test_attention_gpu.py || failed=1
# The checks take what is left of 580 seconds, the longest last; 0 would be no limit.
last=tests/gpu/test_memory.py
left() { echo $((SECONDS < 579 ? 580 - SECONDS : 1)); }
timeout --signal INT "$(left)" "${pytest[@]}" \
    tests/oracles/test_no_sync.py tests/gpu --ignore "$last" || failed=1
timeout --signal INT "$(left)" "${pytest[@]}" "$last" || failed=1
exit "$failed"
