# syntax=docker/dockerfile:1.7
# Images of nap-runtime, for Kubernetes, for one machine, and for hosts that shall need nothing but a container runtime:
#
#   docker build --target cpu  -t nap-runtime:0.1.0-cpu  .
#   docker build --target cuda -t nap-runtime:0.1.0-cuda .       hosts need NVIDIA's driver and container toolkit
#
# docs/cluster/images.md says more. Python packages come from constraints.txt, this project from its own wheel.
ARG PYTHON=3.12.12-slim-bookworm

# -- the wheel, from the files that it is made of and nothing else ---------------------------------------------------
FROM python:${PYTHON} AS wheel
WORKDIR /src
COPY pyproject.toml README.md LICENSE CHANGELOG.md ./
COPY runtime runtime
COPY trainer trainer
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /dist .

# -- packages, into a prefix of their own --------------------------------------------------------------------------
FROM python:${PYTHON} AS packages
WORKDIR /build
COPY constraints.txt ./
COPY --from=wheel /dist /dist
ENV DS_BUILD_OPS=0 PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1

FROM packages AS packages-cpu
# torch's own index has the build without CUDA, which sorts before PyPI's of the same version.
RUN pip install --prefix /install -c constraints.txt --extra-index-url https://download.pytorch.org/whl/cpu \
      "$(ls /dist/*.whl)[cloud,cluster,serve,train]"

FROM packages AS packages-cuda
RUN pip install --prefix /install -c constraints.txt "$(ls /dist/*.whl)[cloud,cluster,serve,train]"

# -- what both images have -----------------------------------------------------------------------------------------
FROM python:${PYTHON} AS base
# gcc: torch.compile and DeepSpeed build small pieces when they are first used. openssl: scripts/ray-tls.sh.
# Debian keeps only the newest build of a release, so a pinned one would soon be gone; the base image pins the release.
# hadolint ignore=DL3008
RUN apt-get update \
 && apt-get install -y --no-install-recommends ca-certificates g++ openssl tini \
 && rm -rf /var/lib/apt/lists/* \
 && groupadd --gid 1000 nap \
 && useradd --uid 1000 --gid nap --create-home --shell /bin/bash nap \
 && install -d -o nap -g nap /cache /journal
COPY --chmod=755 scripts/ray-tls.sh /usr/local/bin/ray-tls
COPY --chmod=755 scripts/container-health.py /usr/local/bin/container-health
# Everything is under /usr/local, which login shells have on their PATH too: KubeRay starts Ray in one.
ENV NAP_CACHE=/cache RAY_AUTH_MODE=token RAY_USAGE_STATS_ENABLED=0 PYTHONUNBUFFERED=1
WORKDIR /home/nap
ENTRYPOINT ["tini", "--"]
CMD ["nap", "serve", "--journal", "/journal/jobs.db"]
# A server of `nap serve`, or a node of Ray, whichever runs here.
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s --retries=6 CMD ["container-health"]

FROM base AS cpu
COPY --from=packages-cpu /install /usr/local
USER 1000:1000

FROM base AS cuda
ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
COPY --from=packages-cuda /install /usr/local
USER 1000:1000
