#!/usr/bin/env bash
# Speed and memory on the GPU of this machine, with ten paper-size networks of random weights.
# Usage: benchmarks/gpu.sh CASES RESULTS   (CASES: a folder of scans; RESULTS: a folder for JSON files)
set -euo pipefail
cases=$(realpath "$1") results=$(realpath -m "$2")
cd "$(dirname "$0")/.."
python=${PYTHON:-.venv/bin/python}
mkdir -p "$results"
"$python" -m benchmarks bundle --size paper --output "$results/bundle"
for profile in paper fast; do
    "$python" -m benchmarks speed --bundle "$results/bundle" --input "$cases" --device cuda --cases 5 \
        --profile "$profile" --json "$results/$profile.json"
done
"$python" -m benchmarks speed --bundle "$results/bundle" --input "$cases" --device cuda --against nnunet \
    --json "$results/against.json"
