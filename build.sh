#!/usr/bin/env bash
# The one front door. Usage: ./build.sh COMMAND; without a command this text.
#
#   demo    set everything up, segment a synthetic case with the embedded bundle, score it, draw it (in demo/)
#   test    set everything up and run the tests
#   lint    ruff and mypy
#   lock    pin every dependency anew (locks/*.txt)
#   setup   only make the environment (.venv), from locks/dev.txt
set -euo pipefail
cd "$(dirname "$0")"

UV_VERSION=0.13.9

# uv comes from wherever pip finds packages, into an environment of its own.
uv() {
    if [ ! -x .venv-tools/bin/uv ]; then
        "${PYTHON:-python3.11}" -m venv .venv-tools
        .venv-tools/bin/pip install --quiet --disable-pip-version-check "uv==$UV_VERSION"
    fi
    .venv-tools/bin/uv "$@"
}

# The environment is made anew only when its lock has changed. pyradiomics is compiled (gcc is needed, for seconds).
setup() {
    if cmp --silent locks/dev.txt .venv/lock.txt; then return; fi
    command -v gcc > /dev/null || { echo "build.sh: gcc is needed to compile pyradiomics (Debian: apt-get install gcc)" >&2; exit 2; }
    [ -x .venv/bin/python ] || uv venv --quiet --python "${PYTHON:-python3.11}" .venv
    VIRTUAL_ENV=.venv uv pip sync --quiet --require-hashes locks/dev.txt
    cp locks/dev.txt .venv/lock.txt
}

lock() {
    pin() { uv pip compile --quiet --python-version 3.11 --generate-hashes --no-emit-index-url pyproject.toml "$@"; }
    # The widest first: the others then take their versions from it.
    pin --extra dev --output-file locks/dev.txt
    pin --constraint locks/dev.txt --output-file locks/cpu.txt
    pin --constraint locks/dev.txt --extra gpu --output-file locks/runtime.txt
    pin --constraint locks/dev.txt --extra training --output-file locks/training.txt
}

demo() {
    setup
    rm -rf demo
    .venv/bin/python -m training phantoms --count 1 --seed 7 --output demo/input --labels demo/reference
    .venv/bin/python -m inference infer --data_path demo/input --output_path demo/output \
        --record demo/record.json --report demo/report
    .venv/bin/python -m training evaluate --reference demo/reference --prediction demo/output --version 2023 \
        --output demo/scores.json --table demo/scores.md
    head -n 5 demo/scores.md
    .venv/bin/python -m training picture --input demo/input --reference demo/reference --prediction demo/output \
        --output demo/demo.png
    echo "picture: demo/demo.png    page: demo/report/index.html"
}

case "${1:-}" in
    demo | lock | setup) "$1" ;;
    test) setup; shift; .venv/bin/python -m pytest "$@" ;;
    lint) setup; .venv/bin/ruff check; .venv/bin/ruff format --check; .venv/bin/mypy ;;
    *) sed -n '2,/^set/{/^#/s/^# \{0,1\}//p}' "$0"; [ -z "${1:-}" ] || exit 2 ;;
esac
