#!/usr/bin/env bash
# train_nap_tiny.sh OUT [OPTION…]: train the bundled model on all visible GPUs (or on the CPU) into OUT.
# OUT gets nap-tiny/ (the model), train.jsonl and state.tar.* (float32 weights for --init: cat them into tar x).
# Further options go to nap_trainer.train_tiny, such as --set max_seconds=480. PYTHON=… picks the interpreter.
set -euo pipefail
out=${1:?usage: train_nap_tiny.sh OUT [OPTION…]}
shift
cd "$(dirname "$0")/.."
export PYTHONPATH=runtime:trainer OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} NCCL_NVLS_ENABLE=0
python=${PYTHON:-python3}
gpus=$("$python" -c 'import torch; print(torch.cuda.device_count() or 1)')
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p "$out"
"$python" -m torch.distributed.run --standalone --nproc_per_node "$gpus" -m nap_trainer.train_tiny \
  --config examples/train/nap-tiny.yaml --out "$out" --state "$work/state" "$@"
tar -C "$work" -cf - state | split -b 15000000 - "$out/state.tar."
