# The image of every node: `docker build -t registry.example.com/omai-ray:0.1.0 .`
# For GPUs, with CUDA's torch: `--build-arg TORCH_INDEX=https://pypi.org/simple`, tagged …-gpu.
FROM python:3.11.14-slim-bookworm

ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
ARG EXTRAS=minilm,postgres,redis

# g++ builds kernels for the CPU at hand; the head's autoscaler reaches its nodes by ssh and rsync;
# the probes that KubeRay puts into pods run wget.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends g++ openssh-client procps rsync wget \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home --uid 1000 --shell /bin/bash omai \
    && install --directory --owner=omai --group=omai --mode=0700 /etc/omai /var/lib/omai

WORKDIR /opt/omai
COPY constraints.txt ./
RUN python -m pip install --no-cache-dir --index-url "$TORCH_INDEX" "$(grep '^torch==' constraints.txt)" \
    && python -m pip install --no-cache-dir 'boto3>=1.40,<2' 'google-api-python-client>=2.180,<3'
COPY pyproject.toml README.md LICENSE ./
COPY omai_ray omai_ray
COPY deployments deployments
COPY pipelines pipelines
RUN python -m pip install --no-cache-dir --constraint constraints.txt ".[$EXTRAS]" \
    && printf '#!/bin/sh\nexec python -m deployments.haproxy "$@"\n' > /usr/local/bin/omai-haproxy \
    && chmod 0755 /usr/local/bin/omai-haproxy

# Serve reads these where it starts. `proxy: haproxy` of the settings needs them; see docs/clusters.md.
ENV OMAI_STATE_DIR=/var/lib/omai \
    RAY_AUTH_MODE=token \
    RAY_USAGE_STATS_ENABLED=0 \
    RAY_worker_niceness=0 \
    RAY_SERVE_ENABLE_HA_PROXY=1 \
    RAY_SERVE_THROUGHPUT_OPTIMIZED=1 \
    RAY_SERVE_HAPROXY_BINARY_PATH=/usr/local/bin/omai-haproxy \
    RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH=deployments.edge:middlewares

USER omai
WORKDIR /home/omai
EXPOSE 8000
CMD ["omai-ray", "serve", "--host", "0.0.0.0"]
