# Data plane: the default is a CPU worker with TensorRT-RTX; for GPUs
#   --build-arg EXTRAS=worker,gpu,rtx,tensorrt,otel,buckets --build-arg TORCH=cuda
FROM python:3.13-slim
ARG EXTRAS=worker,cpu,rtx,otel,buckets
ARG TORCH=cpu
ARG TORCH_CPU_INDEX=https://download.pytorch.org/whl/cpu
ENV PYTHONUNBUFFERED=1 PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /opt/farm
COPY pyproject.toml constraints.txt README.md ./
# torch first, in a layer of its own: it is the largest part and changes least. From the index of CPU
# builds torch alone: it has only some versions of what torch needs, which the next install brings.
# hadolint ignore=SC2086
RUN if [ "$TORCH" = cpu ]; then only="--no-deps --index-url $TORCH_CPU_INDEX"; fi && \
    pip install -c constraints.txt $only torch
COPY distributions distributions
COPY farm farm
COPY workers workers
COPY migrations migrations
RUN pip install -c constraints.txt ".[$EXTRAS]" ./distributions/server
COPY deploy/worker_health.py ./
# Each by its name: `install -d` gives the owner to the last folder of a path alone.
RUN useradd --create-home --uid 1000 farm && install -d -o farm /var/lib/farm /var/lib/farm/store
USER 1000
CMD ["farm", "worker"]
