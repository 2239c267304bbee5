# One image for servers and sites. How to build it behind a mirror, how to run it, and how to bring
# your own code is in docs/deploy.md.
#   docker build -t feddkd:0.1.0 .
ARG PYTHON_IMAGE=python:3.11-slim-bookworm

FROM ${PYTHON_IMAGE} AS build
# pip reads these from the environment and ignores the empty ones.
ARG PIP_INDEX_URL=
ARG PIP_EXTRA_INDEX_URL=
ARG PIP_FIND_LINKS=
ARG PIP_CERT=
# Where torch comes from: its CPU build. PyPI's own build for Linux brings gigabytes of CUDA.
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
# vision reads every built-in data set but digits, plot draws the report of a run.
ARG EXTRAS=vision,plot
# A secret that is not given is a file that does not exist, which pip passes over.
ENV PIP_CONFIG_FILE=/run/secrets/pip_conf PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN python3 -m venv /opt/feddkd
WORKDIR /src
# Dependencies first, with the version file alone: a change of code does not install torch again.
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY feddkd/__init__.py feddkd/
RUN --mount=type=secret,id=pip_conf --mount=type=secret,id=ca \
    PIP_EXTRA_INDEX_URL="${PIP_EXTRA_INDEX_URL} ${TORCH_INDEX}" \
    /opt/feddkd/bin/pip install -c constraints.txt ".[${EXTRAS}]"
COPY feddkd feddkd
RUN --mount=type=secret,id=pip_conf --mount=type=secret,id=ca \
    /opt/feddkd/bin/pip install --no-deps --force-reinstall .

FROM ${PYTHON_IMAGE}
ARG VERSION=0.1.0
ARG REVISION=
LABEL org.opencontainers.image.title="feddkd" \
      org.opencontainers.image.description="Server and sites of a federation over gRPC" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.licenses="Apache-2.0"
RUN useradd --uid 10001 --user-group --no-create-home --home-dir /state \
        --shell /usr/sbin/nologin feddkd \
    && install --directory --owner=feddkd --group=feddkd /state /code
COPY --from=build /opt/feddkd /opt/feddkd
# Only /state and /tmp are written to, so the root file system may be read-only.
ENV PATH=/opt/feddkd/bin:$PATH \
    PYTHONPATH=/code \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    MPLCONFIGDIR=/tmp/matplotlib \
    XDG_CACHE_HOME=/tmp/cache
USER 10001:10001
WORKDIR /state
# A server's or a site's --state, and the records of runs.
VOLUME /state
# gRPC, and HTTP where --metrics-port 9464 is given: /metrics, and at a server /healthz and /readyz.
EXPOSE 50061 9464
# Servers and sites answer there alike. Without --metrics-port 9464: docker run --no-healthcheck.
HEALTHCHECK --interval=30s --timeout=10s --start-period=60s CMD ["python3", "-c", \
    "import urllib.request; urllib.request.urlopen('http://127.0.0.1:9464/metrics', timeout=5)"]
ENTRYPOINT ["feddkd"]
CMD ["--help"]
