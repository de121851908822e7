# Signalbox. `make run` and `make test` do all the set-up on a fresh machine.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.PHONY: run test soak lint bench ui clean

# Builds and starts it all: a control plane on SQLite, three proxies, two backends, a trickle of traffic.
run: ui
	cargo build --bins
	exec target/debug/signalbox-demo

# Unit, contract, system and browser tests; all of them real.
# One build of everything first: the system tests start the programs that stand beside them.
test: setup-test ui
	cargo build --workspace --all-targets
	cargo test --workspace --no-fail-fast

# Ten minutes of all protocols, faults and a revision a second; make test has twelve seconds of it.
soak: setup-test
	cargo build --bins
	SIGNALBOX_SOAK_SECONDS=600 cargo test -p signalbox-tests --test system -- soak --nocapture

lint: setup-test ui
	cargo fmt --all --check
	cargo clippy --workspace --all-targets -- -D warnings
	cd admin-ui && npm run lint
	if command -v cargo-deny >/dev/null; then cargo deny check bans licenses sources; else echo "cargo-deny is not installed: skipping licences and bans (cargo install cargo-deny)"; fi

# Side by side with other proxies; see bench/README.md.
bench: setup-test ui
	bench/run

ui: setup-run
	scripts/ui.sh

setup-%:
	scripts/setup.sh $*

clean:
	rm -rf target admin-ui/dist admin-ui/node_modules
