# One image for servers and clients.
#   docker build -t feddkd:0.1.0 .
#   docker run --rm feddkd:0.1.0 run --engine in-process
#   docker run -p 50061:50061 -v server-state:/state -v ./federation:/etc/feddkd:ro feddkd:0.1.0 \
#     server /etc/feddkd/federation.toml --listen 0.0.0.0:50061 --state /state \
#     --tls-cert /etc/feddkd/cert.pem --tls-key /etc/feddkd/key.pem
# For GPUs: --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cu130 (or whichever CUDA the hosts' drivers know).
ARG PYTHON_IMAGE=python:3.11-slim-bookworm

FROM ${PYTHON_IMAGE} AS build
# Where torch comes from: its CPU build. PyPI's own build for Linux brings gigabytes of CUDA.
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
# torchvision reads every built-in data set but digits.
ARG EXTRAS=vision
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN python -m venv /opt/feddkd
WORKDIR /src
# Dependencies first, with the version file alone, so that a change of code does not install torch again.
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY feddkd/__init__.py feddkd/
RUN /opt/feddkd/bin/pip install --extra-index-url "${TORCH_INDEX}" -c constraints.txt ".[${EXTRAS}]"
COPY feddkd feddkd
RUN /opt/feddkd/bin/pip install --no-deps --force-reinstall .

FROM ${PYTHON_IMAGE}
LABEL org.opencontainers.image.title="feddkd" org.opencontainers.image.licenses="Apache-2.0"
RUN useradd --uid 10001 --user-group --no-create-home --home-dir /state --shell /usr/sbin/nologin feddkd \
    && install --directory --owner=feddkd --group=feddkd /state
COPY --from=build /opt/feddkd /opt/feddkd
ENV PATH=/opt/feddkd/bin:$PATH PYTHONUNBUFFERED=1
USER 10001:10001
WORKDIR /state
# A server's or a client's --state, and the records of runs.
VOLUME /state
# gRPC, and Prometheus metrics where --metrics-port 9464 is given.
EXPOSE 50061 9464
ENTRYPOINT ["feddkd"]
CMD ["--help"]
