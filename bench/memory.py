#!/usr/bin/env python3
"""What an idle connection takes of a proxy's memory, side by side with nginx, HAProxy and Envoy.

Many clients connect, make one request each, and stay. What counts is how much the proxy grows by them (its own memory and its
share of what it shares: Pss), with what they made it use for a moment and did not give back. 10,000 routes are loaded before, and
a hundred clients were there. The kernel's part is not in it.
"""

import argparse
import json
import pathlib
import shutil
import subprocess
import sys
import tempfile
import time

from cpu import add_arguments, wanted
from peers import ONE_HOST, ONE_PATH, Bench, Setup, free_port, require

# Seconds after the last request: a proxy may give up memory that it does not need.
SETTLED = 3
TITLES = {False: "HTTP/1.1", True: "HTTP/1.1 over TLS 1.3"}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser)
    parser.add_argument("--connections", type=int, default=10_000)
    options = parser.parse_args()
    require(["nginx", "haproxy", "taskset", "openssl"])
    work = pathlib.Path(tempfile.mkdtemp(prefix="signalbox-bench-"))
    work.chmod(0o755)
    bench = Bench(options, work)
    try:
        measured = {
            tls: {n: measure(bench, n, tls) for n in wanted(options)} for tls in TITLES
        }
    finally:
        bench.stop_all()
        shutil.rmtree(work, ignore_errors=True)
    publish(measured, options)


def measure(bench, name, tls):
    port = free_port()
    program = getattr(bench, name)(port, Setup(tls=tls))
    bench.wait_for(port)
    # What the first connections bring is no part of each.
    with hold(bench, port, tls, 100):
        time.sleep(SETTLED)
    before = program.memory()
    with hold(bench, port, tls, bench.options.connections):
        time.sleep(SETTLED)
        grown = program.memory() - before
    bench.stop_all()
    measured = {"before": before, "per_connection": grown / bench.options.connections}
    print(f"{TITLES[tls]}: {name}: {measured}", file=sys.stderr, flush=True)
    return measured


class hold:
    """Connections that are there inside a `with`."""

    def __init__(self, bench, port, tls, count):
        command = [bench.options.peer, "idle", f"127.0.0.1:{port}", "--count", count, *["--tls"] * tls]
        command += ["--host", ONE_HOST, "--path", ONE_PATH]
        pinned = ["taskset", "-c", "1", *map(str, command)]
        self.client = subprocess.Popen(pinned, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def __enter__(self):
        if self.client.stdout.readline() != "ready\n":
            sys.exit("the connections were not taken")

    def __exit__(self, *_):
        self.client.stdin.close()
        self.client.wait(30)


def publish(measured, options):
    options.out.mkdir(parents=True, exist_ok=True)
    heading = [f"{TITLES[tls]}, KiB a connection" for tls in measured]
    rows = [f"| proxy | {' | '.join(heading)} |", "| --- | --- | --- |"]
    for name in measured[False]:
        numbers = [f"{measured[tls][name]['per_connection'] / 1024:.1f}" for tls in measured]
        rows.append(f"| {name} | {' | '.join(numbers)} |")
    table = "\n".join(rows) + "\n"
    named = {TITLES[tls]: value for tls, value in measured.items()}
    (options.out / "memory.json").write_text(json.dumps({"connections": options.connections, **named}, indent=2) + "\n")
    (options.out / "memory.md").write_text(table)
    print(table)


if __name__ == "__main__":
    main()
