# This file builds two images: `--target control-plane` and `--target proxy`. Their programs contain the names of functions, but no
# other debug information; `--target debug --output DIR` writes the debug information to files, for gdb and perf.
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
    && mkdir -p /out/bin /out/debug /out/lib /out/state \
    && for program in signalbox-control-plane signalbox-proxy; do \
        objcopy --only-keep-debug target/release/$program /out/debug/$program.debug \
        && objcopy --strip-debug target/release/$program /out/bin/$program \
        && (cd /out/debug && objcopy --add-gnu-debuglink=$program.debug /out/bin/$program) || exit 1; \
    done \
    && cp "$(gcc -print-file-name=libgcc_s.so.1)" /out/lib/

FROM scratch AS debug
COPY --from=build /out/debug /

# The base image has the C library and the certificates of the authorities, but no shell.
FROM gcr.io/distroless/base-nossl-debian12 AS base
COPY --from=build /out/lib/libgcc_s.so.1 /usr/lib/
COPY --from=build --chown=10001:10001 /out/state /var/lib/signalbox
USER 10001:10001
WORKDIR /var/lib/signalbox

FROM base AS control-plane
COPY --from=build /out/bin/signalbox-control-plane /usr/local/bin/
ENV SIGNALBOX_ADMIN_ADDRESS=0.0.0.0:9080 SIGNALBOX_XDS_ADDRESS=0.0.0.0:9081
EXPOSE 9080 9081
HEALTHCHECK --interval=5s --timeout=4s --start-period=30s CMD ["signalbox-control-plane", "--check-health"]
ENTRYPOINT ["signalbox-control-plane"]

FROM base AS proxy
COPY --from=build /out/bin/signalbox-proxy /usr/local/bin/
ENV SIGNALBOX_ADMIN_ADDRESS=0.0.0.0:9082
EXPOSE 8080 9082
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=5s --timeout=4s --start-period=30s CMD ["signalbox-proxy", "--check-health"]
ENTRYPOINT ["signalbox-proxy"]
