# One build, two images: `--target control-plane` and `--target proxy`.
FROM node:22-bookworm-slim AS ui
WORKDIR /src/admin-ui
COPY admin-ui/package.json admin-ui/package-lock.json ./
RUN npm ci --no-audit --no-fund
COPY admin-ui ./
RUN npm run build

FROM rust:1.95-bookworm AS build
WORKDIR /src
COPY . .
COPY --from=ui /src/admin-ui/dist admin-ui/dist
RUN --mount=type=cache,target=/usr/local/cargo/registry \
    --mount=type=cache,target=/src/target \
    cargo build --release --locked -p signalbox-control-plane -p signalbox-proxy \
    && cp target/release/signalbox-control-plane target/release/signalbox-proxy /usr/local/bin/

FROM debian:bookworm-slim AS base
RUN useradd --system --create-home --home-dir /var/lib/signalbox --uid 10001 signalbox
USER signalbox
WORKDIR /var/lib/signalbox

FROM base AS control-plane
COPY --from=build /usr/local/bin/signalbox-control-plane /usr/local/bin/
ENV SIGNALBOX_ADMIN_ADDRESS=0.0.0.0:9080 SIGNALBOX_XDS_ADDRESS=0.0.0.0:9081
EXPOSE 9080 9081
HEALTHCHECK --interval=5s --timeout=4s --start-period=30s CMD ["signalbox-control-plane", "--check-health"]
ENTRYPOINT ["signalbox-control-plane"]

FROM base AS proxy
COPY --from=build /usr/local/bin/signalbox-proxy /usr/local/bin/
ENV SIGNALBOX_ADMIN_ADDRESS=0.0.0.0:9082
EXPOSE 8080 9082
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=5s --timeout=4s --start-period=30s CMD ["signalbox-proxy", "--check-health"]
ENTRYPOINT ["signalbox-proxy"]
