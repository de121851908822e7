# `make run` and `make test` install what they need on a fresh machine.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.PHONY: run test soak lint bench dashboards ui clean

# Builds and starts a control plane on SQLite, three proxies, two backends and a client that sends some requests. `make run` and
# `make test` share one build: tests/layers.rs checks that both build packages with the same features.
run: ui
	cargo build --bins
	exec target/debug/signalbox-demo

# Runs unit, contract, system and browser tests. Everything is built first, because the system tests start the programs that are
# in the same directory.
test: setup-test ui
	cargo build --workspace --all-targets
	RUST_TEST_THREADS=4 cargo test --workspace --no-fail-fast

# Runs all protocols, faults and a revision a second for ten minutes. `make test` does so for twelve seconds.
soak: setup-test
	cargo build --bins
	SIGNALBOX_SOAK_SECONDS=600 cargo test --workspace --test system -- soak --nocapture

lint: setup-test ui
	cargo fmt --all --check
	rustfmt --edition 2024 --check plugins/src/*.rs
	cargo clippy --workspace --all-targets -- -D warnings
	cd admin-ui && npm run lint
	if command -v cargo-deny >/dev/null; then cargo deny check bans licenses sources; else echo "cargo-deny is not installed: skipping licences and bans (cargo install cargo-deny)"; fi

# Compares Signalbox with other proxies; see bench/README.md.
bench: setup-test ui
	bench/run

# Makes Grafana's dashboards from observability/grafana/dashboards.py.
dashboards:
	python3 -B observability/grafana/generate.py

ui: setup-run
	scripts/ui.sh

setup-%:
	scripts/setup.sh $*

clean:
	rm -rf target admin-ui/dist admin-ui/node_modules
