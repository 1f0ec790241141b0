# Training on NVIDIA GPUs. torch's wheels contain CUDA; the host must have the driver and NVIDIA's
# container toolkit.
#
#   docker build -f docker/cuda.Dockerfile -t intel-ft-cuda .
#   docker run --rm --gpus all --shm-size 1g -v "$PWD:/work" intel-ft-cuda train run.yaml

FROM python:3.11.14-slim-bookworm AS build
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore
WORKDIR /src
RUN python3 -m venv /opt/intel-ft
ENV PATH=/opt/intel-ft/bin:$PATH
COPY requirements.lock ./
RUN pip install --constraint requirements.lock torch
COPY docker/train.txt docker/
RUN pip install --no-deps --constraint requirements.lock --requirement docker/train.txt \
    && pip install --no-deps bitsandbytes==0.50.2
COPY pyproject.toml README.md LICENSE ./
COPY intel_ft intel_ft
RUN pip install --no-deps --no-build-isolation .

FROM python:3.11.14-slim-bookworm
ARG UID=1000
# Triton compiles its launchers with gcc; intel_ft compiles the CPU parts of a step with g++.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends g++ \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --uid "$UID" --create-home intel-ft \
    && install --directory --owner "$UID" /work
COPY --from=build /opt/intel-ft /opt/intel-ft
ENV PATH=/opt/intel-ft/bin:$PATH PYTHONUNBUFFERED=1
ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
USER $UID
WORKDIR /work
ENTRYPOINT ["intel-ft"]
CMD ["--help"]
