# Control plane: API, migrations, Flower. No torch.
FROM python:3.13-slim
ENV PYTHONUNBUFFERED=1 PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /opt/farm
COPY pyproject.toml constraints.txt README.md ./
COPY distributions distributions
COPY farm farm
COPY workers workers
COPY migrations migrations
RUN pip install -c constraints.txt ".[server,otel,buckets]" ./distributions/server
# Each by its name: `install -d` gives the owner to the last folder of a path alone.
RUN useradd --create-home --uid 1000 farm && install -d -o farm /var/lib/farm /var/lib/farm/store && \
    install -d -o farm -m 700 /var/lib/farm/signing
USER 1000
EXPOSE 8000 5555
CMD ["farm", "api", "--host", "0.0.0.0", "--port", "8000"]
