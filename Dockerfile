# One image, two programs: k8sproxy (the default) and recorder.
#
#   docker build --build-arg REVISION=$(git rev-parse HEAD) --tag k8sproxy:0.1.0 .
#   docker run --read-only --volume ./k8sproxy.yaml:/etc/k8sproxy/k8sproxy.yaml:ro .. k8sproxy:0.1.0
#   docker run --entrypoint recorder ..
#
# It writes nothing but what its configuration names (the CA of tls.source: generated, an admin socket).

# The version that the tests run on.
ARG PYTHON_VERSION=3.11

FROM python:${PYTHON_VERSION}-slim AS build
WORKDIR /src
COPY requirements.lock ./
# mypyc compiles the hot modules: it needs a C compiler, and looks at the types of every package that is imported.
RUN apt-get update && apt-get install --yes --no-install-recommends gcc libc6-dev && rm -rf /var/lib/apt/lists/*
RUN pip install --no-cache-dir --requirement requirements.lock
# The environment has no pip of its own: what runs can't install anything into it.
RUN python -m venv --without-pip /opt/k8sproxy
COPY pyproject.toml setup.py README.md LICENSE ./
COPY k8sproxy/ k8sproxy/
COPY recorder/ recorder/
RUN K8SPROXY_COMPILE=1 pip wheel --no-cache-dir --no-deps --no-build-isolation --wheel-dir /wheels .
# The lock holds the tests' packages too. As constraints it says which versions; the wheel says which packages.
RUN pip --python /opt/k8sproxy/bin/python install --no-cache-dir --constraint requirements.lock "$(ls /wheels/*.whl)[recorder]"

FROM python:${PYTHON_VERSION}-slim
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="k8sproxy" \
      org.opencontainers.image.description="kubectl over a tailnet: the connection itself is the identity" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
COPY --from=build /opt/k8sproxy /opt/k8sproxy
# Modules were compiled when they were installed, and the root file system may be read-only.
ENV PATH=/opt/k8sproxy/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1
# The number, so that Kubernetes can tell that it is not root (runAsNonRoot).
USER 65532:65532
EXPOSE 443 9002
ENTRYPOINT ["k8sproxy"]
CMD ["serve", "--config", "/etc/k8sproxy/k8sproxy.yaml"]
