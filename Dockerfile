# One image for the listener and the label server: docs/container.md. Build arguments say what is inside.
ARG PYTHON_IMAGE=python:3.12-slim-bookworm

FROM ${PYTHON_IMAGE} AS build
ARG TORCH=2.14.1
ARG TORCHVISION=0.29.1
ARG MONAI=1.6.1
# For a CPU alone give the index of PyTorch's CPU wheels here: the image is some gigabytes smaller.
ARG PIP_EXTRA_INDEX_URL=
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PATH=/opt/mvreg/bin:$PATH
RUN python -m venv /opt/mvreg \
 && pip install "torch==${TORCH}" "torchvision==${TORCHVISION}" "monai==${MONAI}"
WORKDIR /source
COPY pyproject.toml setup.py README.md LICENSE requirements-label.txt ./
COPY bundle/LICENSE bundle/LICENSE
COPY bundle/configs bundle/configs
COPY bundle/docs bundle/docs
COPY monai_mvreg monai_mvreg
# Floors are those of pyproject.toml.
# hadolint ignore=DL3013
RUN pip install ".[dicom,pacs,label]" "torch==${TORCH}" "monai==${MONAI}" \
 && pip install --no-deps -r requirements-label.txt

FROM ${PYTHON_IMAGE}
COPY --from=build /opt/mvreg /opt/mvreg
RUN groupadd --gid 10001 mvreg \
 && useradd --uid 10001 --gid mvreg --no-create-home --home-dir /var/lib/mvreg --shell /usr/sbin/nologin mvreg \
 && install --directory --owner mvreg --group mvreg --mode 700 /var/lib/mvreg
# Nothing is fetched when it runs; what libraries keep for themselves goes where everything may be lost.
ENV PATH=/opt/mvreg/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    HF_HUB_OFFLINE=1 \
    HF_HUB_DISABLE_TELEMETRY=1 \
    HOME=/tmp \
    MVREG_HEALTH=http://127.0.0.1:11180/healthz
USER 10001:10001
WORKDIR /var/lib/mvreg
HEALTHCHECK --interval=30s --timeout=10s --start-period=120s \
    CMD ["python", "-c", "import os, urllib.request as web; web.urlopen(os.environ['MVREG_HEALTH'], timeout=5)"]
ENTRYPOINT ["mvreg"]
CMD ["--help"]
