# Two images: `server` (what a plain build gives) and `trainer`, which adds what the demo's workers need.
#
#     docker build -t stepwell .
#     docker build -t stepwell-trainer --target trainer .
#
# Any base will do that has python3, 3.11 or newer, with its venv module.
ARG BASE_IMAGE=python:3.12-slim-bookworm


# Stepwell's own wheel.
FROM ${BASE_IMAGE} AS wheel
WORKDIR /source
COPY requirements-build.lock ./
RUN python3 -m venv /opt/build \
    && /opt/build/bin/pip install --no-cache-dir --require-hashes --requirement requirements-build.lock
COPY . .
RUN /opt/build/bin/pip wheel --no-cache-dir --no-deps --no-build-isolation --wheel-dir /wheels .


# Environments. They are copied whole into the images below, to the same path, so that pip's caches, the locks and the
# source stay behind.
FROM ${BASE_IMAGE} AS server-environment
WORKDIR /source
COPY requirements-server.lock ./
RUN python3 -m venv /opt/stepwell \
    && /opt/stepwell/bin/pip install --no-cache-dir --require-hashes --requirement requirements-server.lock
COPY --from=wheel /wheels /wheels
RUN /opt/stepwell/bin/pip install --no-cache-dir --no-deps --no-index /wheels/*.whl

FROM ${BASE_IMAGE} AS trainer-environment
WORKDIR /source
COPY requirements-demo.lock ./
RUN python3 -m venv /opt/stepwell \
    && /opt/stepwell/bin/pip install --no-cache-dir --require-hashes --requirement requirements-demo.lock
COPY --from=wheel /wheels /wheels
RUN /opt/stepwell/bin/pip install --no-cache-dir --no-deps --no-index /wheels/*.whl


# What both images have in common: a user without rights, and two places to write to. Everything else may be read-only.
#   /data                 snapshots; a volume
#   /var/cache/stepwell   compiled kernels; a tmpfs of this user with mode 0700, or a volume to keep them
FROM ${BASE_IMAGE} AS base
RUN groupadd --gid 10001 stepwell \
    && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin stepwell \
    && install --directory --owner=10001 --group=10001 --mode=0700 /data /var/cache/stepwell
ENV PATH=/opt/stepwell/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    STEPWELL_KERNEL_CACHE=/var/cache/stepwell
USER 10001:10001
ENTRYPOINT ["stepwell"]


FROM base AS trainer
COPY --from=trainer-environment /opt/stepwell /opt/stepwell
CMD ["--help"]


FROM base AS server
COPY --from=server-environment /opt/stepwell /opt/stepwell
VOLUME ["/data"]
EXPOSE 50051
HEALTHCHECK --interval=15s --timeout=5s --start-period=30s --retries=3 CMD ["stepwell", "healthcheck"]
# Safe as it stands: the server listens on the container's loopback only. To be reached from outside it wants an address
# and --insecure, on a network that is private, as in docker-compose.yml.
CMD ["serve", "--data-dir", "/data"]
