# Running an exported model, and publishing it: OpenVINO without torch.
#
#   docker build -f docker/inference.Dockerfile -t intel-ft-inference .
#   docker run --rm -it -v "$PWD/openvino:/model:ro" intel-ft-inference
#   docker run --rm -v "$PWD/openvino:/model:ro" intel-ft-inference generate /model "Name three rivers."

FROM python:3.11.14-slim-bookworm AS build
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore
WORKDIR /src
RUN python3 -m venv /opt/intel-ft
ENV PATH=/opt/intel-ft/bin:$PATH
COPY requirements.lock ./
COPY docker/inference.txt docker/
RUN pip install --no-deps --constraint requirements.lock --requirement docker/inference.txt
COPY pyproject.toml README.md LICENSE ./
COPY intel_ft intel_ft
RUN pip install --no-deps --no-build-isolation .

FROM python:3.11.14-slim-bookworm
ARG UID=1000
RUN useradd --uid "$UID" --create-home intel-ft
COPY --from=build /opt/intel-ft /opt/intel-ft
ENV PATH=/opt/intel-ft/bin:$PATH PYTHONUNBUFFERED=1
USER $UID
WORKDIR /home/intel-ft
ENTRYPOINT ["intel-ft"]
CMD ["chat", "/model"]
