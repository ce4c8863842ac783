# `./build.sh image` builds one of three: inference (what is submitted), cpu (no torch), training. The other stages stay
# behind. Two contexts: this folder, and `bundle`, the folder of the bundle that is shipped.
#
# Any base of the Debian family does. Debian 12 brings the Python that the locks are for; elsewhere uv fetches its own.
ARG BASE_IMAGE=nvidia/cuda:12.8.1-base-ubuntu24.04
ARG RUN_AS=10001:10001

# builder: uv, an empty environment. Secrets carry what is particular to a network and stay in no layer:
# certificates (PEM), pip.conf and uv.toml (package indexes); none is needed where PyPI is reached directly.
FROM ${BASE_IMAGE} AS builder
ARG UV_VERSION=0.13.9
RUN apt-get update -qq \
    && DEBIAN_FRONTEND=noninteractive apt-get install -qq --no-install-recommends \
        ca-certificates python3-venv > /dev/null \
    && rm -rf /var/lib/apt/lists/*
ENV UV_PYTHON_INSTALL_DIR=/opt/glioma/python UV_CACHE_DIR=/var/cache/uv UV_LINK_MODE=copy UV_COMPILE_BYTECODE=1 \
    PYC_INVALIDATION_MODE=UNCHECKED_HASH VIRTUAL_ENV=/opt/glioma/venv
RUN --mount=type=secret,id=certificates,target=/run/certificates.pem \
    --mount=type=secret,id=pip.conf,target=/etc/pip.conf \
    --mount=type=secret,id=uv.toml,target=/etc/uv/uv.toml \
    if [ -s /run/certificates.pem ]; then export SSL_CERT_FILE=/run/certificates.pem PIP_CERT=/run/certificates.pem; fi \
    && python3 -m venv /opt/uv \
    && /opt/uv/bin/pip install --quiet --no-cache-dir --disable-pip-version-check "uv==${UV_VERSION}" \
    && mkdir -p /opt/glioma/python \
    && if [ ! -x /usr/bin/python3.11 ]; then /opt/uv/bin/uv python install 3.11; fi \
    && /opt/uv/bin/uv venv --quiet --python 3.11 "$VIRTUAL_ENV" \
    && echo /opt/glioma/app > "$VIRTUAL_ENV/lib/python3.11/site-packages/glioma.pth"
COPY pyproject.toml LICENSE NOTICE CITATION.cff /opt/glioma/app/

# The locks name every file by its hash; nothing is compiled.
FROM builder AS builder-cpu
COPY locks/cpu.txt /opt/glioma/app/locks/
RUN --mount=type=secret,id=certificates,target=/run/certificates.pem \
    --mount=type=secret,id=uv.toml,target=/etc/uv/uv.toml \
    --mount=type=cache,id=glioma-uv,target=/var/cache/uv \
    if [ -s /run/certificates.pem ]; then export SSL_CERT_FILE=/run/certificates.pem; fi \
    && cd /opt/glioma/app && /opt/uv/bin/uv pip sync --quiet --require-hashes locks/cpu.txt \
    # Of OpenVINO only the CPU and its own format are used; libraries' own tests never are (numpy imports some of its).
    && cd "$VIRTUAL_ENV/lib/python3.11/site-packages" \
    && find . -path ./numpy -prune -o -type d -name tests -prune -exec rm -r {} + \
    && cd openvino/libs \
    && rm -f cache.json libopenvino_intel_[gn]pu_plugin.so libopenvino_onnx_* libopenvino_tensorflow_* \
        libopenvino_pytorch_* libopenvino_paddle_* libopenvino_gguf_* libopenvino_jax_*

FROM builder AS builder-runtime
COPY locks/runtime.txt /opt/glioma/app/locks/
RUN --mount=type=secret,id=certificates,target=/run/certificates.pem \
    --mount=type=secret,id=uv.toml,target=/etc/uv/uv.toml \
    --mount=type=cache,id=glioma-uv,target=/var/cache/uv \
    if [ -s /run/certificates.pem ]; then export SSL_CERT_FILE=/run/certificates.pem; fi \
    && cd /opt/glioma/app && /opt/uv/bin/uv pip sync --quiet --require-hashes locks/runtime.txt

FROM builder AS builder-training
COPY locks/training.txt /opt/glioma/app/locks/
RUN --mount=type=secret,id=certificates,target=/run/certificates.pem \
    --mount=type=secret,id=uv.toml,target=/etc/uv/uv.toml \
    --mount=type=cache,id=glioma-uv,target=/var/cache/uv \
    if [ -s /run/certificates.pem ]; then export SSL_CERT_FILE=/run/certificates.pem; fi \
    && cd /opt/glioma/app && /opt/uv/bin/uv pip sync --quiet --require-hashes locks/training.txt

FROM builder AS program
COPY inference /opt/glioma/app/inference
RUN cd /opt/glioma/app && "$VIRTUAL_ENV/bin/python" -m compileall -q --invalidation-mode unchecked-hash inference

FROM program AS training-program
COPY training /opt/glioma/app/training
RUN cd /opt/glioma/app && "$VIRTUAL_ENV/bin/python" -m compileall -q --invalidation-mode unchecked-hash training

# What all images share: Python where the base has the right one, the rules for an unknown user on a read-only root,
# and no compiler. The program is isolated (-I): neither a working directory nor a caller's PYTHON* variables, which
# Apptainer hands through, change what it imports. Libraries that ask for the user's name are given one.
FROM ${BASE_IMAGE} AS base
RUN . /etc/os-release \
    && if [ "$VERSION_CODENAME" = bookworm ]; then \
        apt-get update -qq \
        && DEBIAN_FRONTEND=noninteractive apt-get install -qq --no-install-recommends python3.11 > /dev/null \
        && apt-get clean && rm -rf /var/lib/apt/lists/*; \
    fi
ENV ON_ERROR=empty \
    GLIOMA_BUNDLE=/opt/glioma/bundle \
    MPLCONFIGDIR=/dev/shm/matplotlib \
    LC_ALL=C.UTF-8 \
    USER=glioma \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
WORKDIR /opt/glioma/app
ENTRYPOINT ["/opt/glioma/venv/bin/python", "-I", "-m", "inference"]
HEALTHCHECK --interval=10m --timeout=2m CMD ["/opt/glioma/venv/bin/python", "-I", "-m", "inference", "check"]

# inference: what is submitted. The bundle is checked as the user who will read it. Every stage asks for RUN_AS itself:
# buildah hands no argument on from one stage to the next, and would run the image as root.
FROM base AS inference
COPY --from=builder-runtime /opt/glioma /opt/glioma
COPY --from=program /opt/glioma/app /opt/glioma/app
COPY --from=bundle . /opt/glioma/bundle
ARG RUN_AS
USER ${RUN_AS}
RUN ["/opt/glioma/venv/bin/python", "-I", "-m", "inference", "check"]

# cpu: the same without torch, for places where gigabytes take days to arrive.
FROM base AS cpu
COPY --from=builder-cpu /opt/glioma /opt/glioma
COPY --from=program /opt/glioma/app /opt/glioma/app
COPY --from=bundle . /opt/glioma/bundle
ARG RUN_AS
USER ${RUN_AS}
RUN ["/opt/glioma/venv/bin/python", "-I", "-m", "inference", "check"]

# training: rebuilds every artefact, from data that is mounted into folders that are.
FROM base AS training
COPY --from=builder-training /opt/glioma /opt/glioma
COPY --from=training-program /opt/glioma/app /opt/glioma/app
COPY --from=bundle . /opt/glioma/bundle
ARG RUN_AS
USER ${RUN_AS}
RUN ["/opt/glioma/venv/bin/python", "-I", "-m", "inference", "check"]
ENTRYPOINT ["/opt/glioma/venv/bin/python", "-I", "-m", "training"]
