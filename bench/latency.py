#!/usr/bin/env python3
"""How long a request takes when a proxy is half busy, side by side with nginx, HAProxy and Envoy.

Requests come one by one, at random times on 64 connections, and every request's time is noted from when it was due. First
it is found out at which rate each proxy uses half of core 0. Then, in turns, each gets its own rate. Load and backend are one
program on core 1, whose part in the times grows with the rate, and a faster proxy gets a higher one: so then Signalbox, nginx
and HAProxy get the same, the lowest of theirs. Of each quantile the lower quartile over the turns counts, and these are short:
a virtual machine stands still for some milliseconds now and then, and what is not of the proxies is to be in few of them.
"""

import argparse
import json
import pathlib
import shutil
import statistics
import sys
import tempfile
import time

from cpu import add_arguments, wanted
from peers import ONE_HOST, ONE_PATH, ROOT, Bench, Setup, free_port, require, run

CLIENTS = 64
QUANTILES = ["p50", "p99", "p99.9"]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser)
    parser.add_argument("--paced", type=pathlib.Path, default=ROOT / "target/release/signalbox-bench-paced")
    parser.add_argument("--seconds", type=float, default=0.25, help="of each turn")
    parser.add_argument("--rounds", type=int, default=100)
    options = parser.parse_args()
    require(["nginx", "haproxy", "taskset"])
    work = pathlib.Path(tempfile.mkdtemp(prefix="signalbox-bench-"))
    work.chmod(0o755)
    bench = Bench(options, work)
    try:
        measured = measure(bench, wanted(options))
    finally:
        bench.stop_all()
        shutil.rmtree(work, ignore_errors=True)
    publish(measured, options.out)


def measure(bench, names):
    # The backend comes and goes with the load.
    bench.backends["paced"] = free_port()
    ports, rates = {}, {}
    for name in names:
        ports[name] = free_port()
        program = getattr(bench, name)(ports[name], Setup(backend="paced"))
        bench.wait_for(ports[name])
        rates[name] = half_busy(bench, program, ports[name])
        print(f"{name} is half busy at {rates[name]:.0f} requests a second", file=sys.stderr, flush=True)
    able = [name for name in names if name != "envoy"]
    same = min(rates[name] for name in able)
    return {"half busy": at_rates(bench, ports, rates), "the same": at_rates(bench, ports, dict.fromkeys(able, same))}


def half_busy(bench, program, port):
    """The rate at which a proxy uses half of its core. At a higher rate a request costs less, so this takes several steps."""
    rate = 5_000
    for _ in range(5):
        before, begun = program.cpu(), time.monotonic()
        load(bench, port, rate, seconds=2)
        busy = (program.cpu() - before) / (time.monotonic() - begun)
        rate *= min(0.5 / busy, 2)
    return rate


def at_rates(bench, ports, rates):
    """The quantiles of each proxy at its rate."""
    names = list(rates)
    turns = {name: [] for name in names}
    for turn in range(bench.options.rounds):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            turns[name].append(load(bench, ports[name], rates[name], turn))
    measured = {}
    for name in names:
        quartiles = {text: statistics.quantiles((turn[text] for turn in turns[name]), n=4, method="inclusive")[0] for text in QUANTILES}
        measured[name] = {"requests_per_second": round(rates[name]), **quartiles, "turns": turns[name]}
        print(f"{name}: {quartiles}", file=sys.stderr, flush=True)
    return measured


def load(bench, port, rate, seed=0, seconds=None):
    command = [bench.options.paced, f"127.0.0.1:{port}", "--backend", f"127.0.0.1:{bench.backends['paced']}"]
    command += ["--host", ONE_HOST, "--path", ONE_PATH, "--connections", CLIENTS, "--seconds", seconds or bench.options.seconds]
    return json.loads(run([*command, "--rate", rate, "--seed", seed], core=1))


def publish(measured, out):
    out.mkdir(parents=True, exist_ok=True)
    rows = ["| rate | proxy | requests a second | p50, ms | p99, ms | p99.9, ms |", "| --- | --- | --- | --- | --- | --- |"]
    for rate, proxies in measured.items():
        for name, value in proxies.items():
            numbers = [f"{value[key]:.2f}" for key in QUANTILES]
            rows.append(f"| {rate} | {name} | {value['requests_per_second']} | {' | '.join(numbers)} |")
    table = "\n".join(rows) + "\n"
    (out / "latency.json").write_text(json.dumps(measured, indent=2) + "\n")
    (out / "latency.md").write_text(table)
    print(table)


if __name__ == "__main__":
    main()
