#!/usr/bin/env bash
# Speed and memory on the GPU of this machine, with ten paper-size networks of random weights; first whether it is right.
# Usage: benchmarks/gpu.sh CASES RESULTS   (CASES: a folder of scans; RESULTS: a folder for JSON files)
set -euo pipefail
cases=$(realpath "$1") results=$(realpath -m "$2")
cd "$(dirname "$0")/.."
python=${PYTHON:-.venv/bin/python}
mkdir -p "$results"
"$python" -m pytest tests/inference/predict/engines/test_torch_engine.py tests/inference/predict/engines/test_channels_last.py
"$python" -m benchmarks bundle --size paper --output "$results/bundle"
measure() { # NAME COMMAND OPTION...: what it says goes to the terminal, and to NAME.json
    "$python" -m benchmarks "$2" --bundle "$results/bundle" --input "$cases" --device cuda --json "$results/$1.json" "${@:3}"
}
measure paper speed --profile paper --cases 5
measure fast speed --profile fast --cases 5
measure nnunet nnunet
