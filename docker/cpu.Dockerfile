# Training, merging, export and everything else on CPUs; target `mpi` adds Intel MPI and ssh.
#
#   docker build -f docker/cpu.Dockerfile --target train -t intel-ft .
#   docker run --rm --shm-size 1g -v "$PWD:/work" intel-ft train run.yaml
#
# Versions are those of requirements.lock. The base image is pinned by its tag; to pin its digest, see
# docker/README.md.

FROM python:3.11.14-slim-bookworm AS build
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore
WORKDIR /src
RUN python3 -m venv /opt/intel-ft
ENV PATH=/opt/intel-ft/bin:$PATH
COPY requirements.lock ./
RUN pip install --extra-index-url "$TORCH_INDEX" --constraint requirements.lock torch
COPY docker/train.txt docker/
RUN pip install --no-deps --constraint requirements.lock --requirement docker/train.txt
COPY pyproject.toml README.md LICENSE ./
COPY intel_ft intel_ft
RUN pip install --no-deps --no-build-isolation .

FROM python:3.11.14-slim-bookworm AS train
ARG UID=1000
# g++ compiles the kernels of the step for the CPU of the container (a fifth faster).
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends g++ \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --uid "$UID" --create-home intel-ft \
    && install --directory --owner "$UID" /work
COPY --from=build /opt/intel-ft /opt/intel-ft
ENV PATH=/opt/intel-ft/bin:$PATH PYTHONUNBUFFERED=1
USER $UID
WORKDIR /work
ENTRYPOINT ["intel-ft"]
CMD ["--help"]

# Intel MPI and oneCCL (1.8 GB). mpirun starts ranks on other nodes over ssh: as the same user, on
# port 2222, with a key that compose.yaml creates for its two nodes, or Kubeflow's MPI operator for a
# job. The image contains no key.
FROM train AS mpi
ARG UID=1000
USER 0
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends openssh-client openssh-server \
    && rm -rf /var/lib/apt/lists/* /etc/ssh/ssh_host_* \
    && install --directory --owner "$UID" --mode 700 /keys
COPY requirements-ccl.lock /opt/intel-ft/
RUN pip install --no-cache-dir --no-deps --requirement /opt/intel-ft/requirements-ccl.lock
ENV I_MPI_ROOT=/opt/intel-ft
COPY docker/ssh/client.conf /etc/ssh/ssh_config.d/intel-ft.conf
COPY docker/ssh/server.conf /etc/intel-ft/sshd.conf
COPY docker/ssh/kubernetes.conf /etc/intel-ft/sshd-kubernetes.conf
USER $UID
