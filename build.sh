#!/usr/bin/env bash
# The one front door. Usage: ./build.sh COMMAND; without a command this text.
#
#   demo    segment a synthetic case with the embedded bundle, score it, draw it (in demo/); sets up .venv-cpu, without
#           PyTorch: 180 MB to download, 0.7 GB on disk
#   test    set everything up in .venv, with PyTorch (8 GB), and run the tests that take seconds; arguments go to pytest
#   test-slow
#           the tests that take minutes: training on phantoms, the documentation's blocks, agreement of engines
#   lint    ruff and mypy
#   image   [--cpu | --training] [--bundle DIR] [--base IMAGE] [--run-as UID:GID] [--tag NAME:TAG]
#           build a container image with docker, podman or buildah, whichever works: glioma-africa:inference (what is
#           submitted, with PyTorch), :cpu (without, small) or :training. SSL_CERT_FILE, PIP_CONFIG_FILE and
#           UV_CONFIG_FILE, where set, are used for fetching packages and stay out of the image
#   export  NAME:TAG FILE.tar.gz
#           an image as one file, and its sha256 beside it, for `docker load` or Apptainer where there is no network
#   image-test [--cpu | --inference | --training]
#           build images on a Debian base made here and run every calling form in them (root, buildah, debootstrap)
#   docs    build the documentation (docs/_build/html), warnings are errors
#   lock    pin every dependency anew (locks/*.txt)
#   setup   [--cpu]
#           only make the environment: .venv from locks/dev.txt, or .venv-cpu from locks/cpu.txt
#
# Python 3.11 is used where it is found (or PYTHON names it); through another python3, uv comes and fetches 3.11 itself.
set -euo pipefail
cd "$(dirname "$0")"

UV_VERSION=0.13.9

is_311() { "$1" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' 2> /dev/null; }

# The Python that is there, the right one if possible.
found_python() {
    local candidate
    for candidate in ${PYTHON:+"$PYTHON"} python3.11 python3; do
        if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 9))' 2> /dev/null; then echo "$candidate"; return; fi
    done
    return 1
}

# Whether C can be compiled, against Python where that is the system's: a Python that uv fetches brings its own headers.
can_compile() {
    local include="" headers='#include <stdio.h>'
    if is_311 "$1"; then
        include="$("$1" -c 'import sysconfig; print(sysconfig.get_path("include"))')"
        headers='#include <Python.h>'
    fi
    gcc -fsyntax-only ${include:+"-I$include"} -xc - <<< "$headers" 2> /dev/null
}

# Everything that is missing is said at once, and before anything is downloaded.
check_needs() { # LOCK
    local python missing=""
    if ! python="$(found_python)"; then
        missing=" python3 python3-venv"
    elif [ ! -x .venv-tools/bin/uv ] && ! "$python" -c 'import ensurepip, venv' 2> /dev/null; then
        missing=" python3-venv"
    fi
    # pyradiomics has no wheel: it is compiled here, for seconds.
    if grep --quiet '^pyradiomics' "$1" && ! can_compile "${python:-python3.11}"; then
        missing="$missing gcc libc6-dev python3-dev"
    fi
    [ -z "$missing" ] || { echo "build.sh: something is missing. On Debian or Ubuntu: apt-get install$missing" >&2; exit 2; }
}

# uv comes from wherever pip finds packages, into an environment of its own; so does a Python that it fetches.
uv() {
    if [ ! -x .venv-tools/bin/uv ]; then
        "$(found_python)" -m venv .venv-tools
        .venv-tools/bin/pip install --quiet --disable-pip-version-check "uv==$UV_VERSION"
    fi
    UV_PYTHON_INSTALL_DIR="$PWD/.venv-tools/python" .venv-tools/bin/uv "$@"
}

# An environment is made anew only when its lock has changed. Python code is compiled once: where it cannot be cached
# later, every start would take seconds more.
environment() { # FOLDER LOCK
    local python
    if cmp --silent "$2" "$1/lock.txt"; then return; fi
    check_needs "$2"
    python="$(found_python)"
    is_311 "$python" || python=3.11
    [ -x "$1/bin/python" ] || uv venv --quiet --python "$python" "$1"
    VIRTUAL_ENV="$1" uv pip sync --quiet --compile-bytecode --require-hashes "$2"
    cp "$2" "$1/lock.txt"
}

setup() {
    case "${1:-}" in
        --cpu) environment .venv-cpu locks/cpu.txt ;;
        "") environment .venv locks/dev.txt ;;
        *) echo "build.sh: setup: unknown option $1" >&2; return 2 ;;
    esac
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
    setup --cpu
    local python=.venv-cpu/bin/python
    rm -rf demo
    "$python" -m training phantoms --count 1 --seed 7 --output demo/input --labels demo/reference
    "$python" -m inference infer --data_path demo/input --output_path demo/output \
        --record demo/record.json --report demo/report
    "$python" -m training picture --input demo/input --reference demo/reference --prediction demo/output \
        --output demo/demo.png &
    "$python" -m training evaluate --reference demo/reference --prediction demo/output --version 2023 \
        --output demo/scores.json --table demo/scores.md
    wait $!
    cat << END

The score against the phantom's truth (demo/scores.md has all of it):
$(head -n 5 demo/scores.md)

Page, to open in a browser:  demo/report/index.html
Picture:                     demo/demo.png
Next, your own scans, in IN/<ID>/<ID>-t1n.nii.gz, -t1c, -t2w and -t2f:
  $python -m inference infer --data_path IN --output_path OUT --record record.json --report report
END
}

# docker is often installed where no daemon answers.
container_engine() {
    for engine in docker podman buildah; do
        if command -v "$engine" > /dev/null && "$engine" info > /dev/null 2>&1; then echo "$engine"; return; fi
    done
    echo "build.sh: needs docker, podman or buildah, working" >&2
    return 2
}

image() {
    local target=inference bundle=weights/embedded base="" tag="" run_as="" engine
    while [ $# -gt 0 ]; do
        case "$1" in
            --cpu | --training) target="${1#--}"; shift ;;
            --bundle) bundle="$2"; shift 2 ;;
            --base) base="$2"; shift 2 ;;
            --run-as) run_as="$2"; shift 2 ;;
            --tag) tag="$2"; shift 2 ;;
            *) echo "build.sh: image: unknown option $1" >&2; return 2 ;;
        esac
    done
    [ -f "$bundle/manifest.json" ] || { echo "build.sh: $bundle: no bundle (manifest.json) here" >&2; return 2; }
    # Nothing in a small image needs CUDA's base.
    [ "$target" != cpu ] || base="${base:-docker.io/library/debian:bookworm-slim}"
    engine="$(container_engine)"
    first() { sed -n "s/^ *\"\?$1\"\? *[:=] *\"\([^\"]*\)\".*/\1/p" "$2" | head -n 1; }
    local options=(
        --file Dockerfile --target "$target" --tag "${tag:-glioma-africa:$target}" --build-context "bundle=$bundle"
        --label "org.opencontainers.image.title=glioma-africa ($target)"
        --label "org.opencontainers.image.version=$(first version pyproject.toml)"
        --label "org.opencontainers.image.revision=$(git describe --always --dirty --abbrev=40 2> /dev/null || echo unknown)"
        --label "org.opencontainers.image.licenses=Apache-2.0"
        --label "glioma-africa.bundle.name=$(first name "$bundle/manifest.json")"
        --label "glioma-africa.bundle.version=$(first version "$bundle/manifest.json")"
        --label "glioma-africa.bundle.licence=$(first licence "$bundle/manifest.json")"
        ${base:+--build-arg "BASE_IMAGE=$base"} ${run_as:+--build-arg "RUN_AS=$run_as"}
        ${SSL_CERT_FILE:+--secret "id=certificates,src=$SSL_CERT_FILE"}
        ${PIP_CONFIG_FILE:+--secret "id=pip.conf,src=$PIP_CONFIG_FILE"}
        ${UV_CONFIG_FILE:+--secret "id=uv.toml,src=$UV_CONFIG_FILE"}
    )
    # The OCI format that podman and buildah prefer has no health check.
    [ "$engine" = docker ] || options+=(--format docker --layers)
    "$engine" build "${options[@]}" .
}

# An image as a file. `docker load`, `podman load` and Apptainer (docker-archive:) read it as it is.
export_image() {
    [ $# -eq 2 ] || { echo "build.sh: export: expected NAME:TAG and FILE.tar.gz" >&2; return 2; }
    local engine file
    engine="$(container_engine)"
    file="$(realpath "$2")"
    if [ "$engine" = buildah ]; then
        local plain="${file%.gz}"
        rm -f "$plain"
        buildah push --quiet "$1" "docker-archive:$plain:$1"
        gzip --fast --force "$plain"
    else
        "$engine" save "$1" | gzip --fast > "$file"
    fi
    (cd "$(dirname "$file")" && sha256sum "$(basename "$file")" | tee "$(basename "$file").sha256")
}

case "${1:-}" in
    demo | lock) "$1" ;;
    setup) shift; setup "$@" ;;
    image) shift; image "$@" ;;
    export) shift; export_image "$@" ;;
    image-test) setup; shift; .venv/bin/python -m tests.image.calls "$@" ;;
    # A process per core, each with one thread: more would wait for each other.
    test) setup; shift; OMP_NUM_THREADS=1 .venv/bin/python -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder "$@" ;;
    test-slow) setup; shift; .venv/bin/python -m pytest -m slow "$@" ;;
    docs) setup; .venv/bin/python -m sphinx -W --keep-going -n -q -b html docs docs/_build/html; echo "docs/_build/html/index.html" ;;
    lint) setup; .venv/bin/ruff check; .venv/bin/ruff format --check; .venv/bin/mypy ;;
    *) sed -n '2,/^set/{/^#/s/^# \{0,1\}//p}' "$0"; [ -z "${1:-}" ] || exit 2 ;;
esac
