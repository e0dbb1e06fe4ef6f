# chatledger in a container: over stdio as it stands (docker run -i), over HTTP with `serve --transport http --host 0.0.0.0`.
# docs/deploy.md shows both.

FROM python:3.13-slim-trixie AS build
ENV UV_COMPILE_BYTECODE=1 UV_LINK_MODE=copy UV_NO_CACHE=1 UV_PYTHON_DOWNLOADS=never UV_PROJECT_ENVIRONMENT=/opt/chatledger
RUN pip install --no-cache-dir --root-user-action=ignore uv==0.13.9
WORKDIR /src
# What it depends on is a layer of its own, which stays until the lock changes.
COPY pyproject.toml uv.lock ./
RUN uv sync --locked --no-default-groups --extra metrics --extra telemetry --no-install-project
COPY README.md LICENSE ./
COPY migrations migrations
COPY storage storage
COPY transfer transfer
COPY server server
RUN uv sync --locked --no-default-groups --extra metrics --extra telemetry --no-editable

FROM python:3.13-slim-trixie
LABEL io.modelcontextprotocol.server.name="chatledger" \
    org.opencontainers.image.title="chatledger" \
    org.opencontainers.image.description="An MCP server that keeps conversations in Postgres and gives them back, to their owner only." \
    org.opencontainers.image.version="0.1.0" \
    org.opencontainers.image.licenses="MIT"
# tini is the first process: it collects what Postgres leaves behind and passes SIGTERM on.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends tini \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --uid 10001 --create-home chatledger \
    && install --directory --owner=chatledger --group=chatledger --mode=0700 /data
COPY --from=build /opt/chatledger /opt/chatledger
ENV PATH=/opt/chatledger/bin:$PATH CHATLEDGER_DATA_DIR=/data
USER 10001:10001
WORKDIR /data
VOLUME /data
EXPOSE 8000
# Where stdio is served there is nothing to ask.
HEALTHCHECK --interval=15s --timeout=5s --start-period=20s CMD ["python", "-c", "import http.client, sys; \
    served = b'http' in open('/proc/1/cmdline', 'rb').read(); \
    ask = http.client.HTTPConnection('127.0.0.1', 8000, timeout=3); \
    served and ask.request('GET', '/healthz'); \
    sys.exit(served and ask.getresponse().status != 200)"]
ENTRYPOINT ["tini", "--", "chatledger"]
CMD ["serve"]
