#!/usr/bin/env python3
"""How long a request takes when a proxy is half busy, side by side with nginx, HAProxy and Envoy.

First it is found out how many requests a second each takes, with all of core 0 for the proxy. Then, in turns, each gets
half of what it takes, evenly over time on 32 connections, and every request's time is noted, the backend's part included.
That part grows with the rate, and a faster proxy gets a higher one. So then all that can get the same rate: half of what
the slowest of Signalbox, nginx and HAProxy takes. Of each quantile the median over the turns counts.
"""

import argparse
import json
import pathlib
import re
import shutil
import statistics
import sys
import tempfile

from cpu import PROXIES, add_arguments
from peers import ONE_HOST, ONE_PATH, Bench, Setup, free_port, require, run

CLIENTS = 32
QUANTILES = {"p50": 0.5, "p99": 0.99, "p99.9": 0.999}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser)
    parser.add_argument("--seconds", type=float, default=2, help="of each turn")
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    require(["nginx", "haproxy", "h2load", "taskset"])
    work = pathlib.Path(tempfile.mkdtemp(prefix="signalbox-bench-"))
    work.chmod(0o755)
    bench = Bench(options, work)
    try:
        measured = measure(bench, [name for name in PROXIES if name not in options.without.split(",")])
    finally:
        bench.stop_all()
        shutil.rmtree(work, ignore_errors=True)
    publish(measured, options.out)


def measure(bench, names):
    seconds = bench.options.seconds
    ports, capacities = {}, {}
    for name in names:
        ports[name] = free_port()
        getattr(bench, name)(ports[name], Setup())
    for name in names:
        bench.wait_for(ports[name])
        load(ports[name], 5_000)
        outputs = [load(ports[name], round(10_000 * seconds)) for _ in range(3)]
        capacities[name] = statistics.median(float(re.search(r"([\d.]+) req/s", output).group(1)) for output in outputs)
        print(f"{name} takes {capacities[name]:.0f} requests a second", file=sys.stderr, flush=True)
    own = {name: capacity / 2 for name, capacity in capacities.items()}
    same = min(rate for name, rate in own.items() if name != "envoy")
    able = {name: same for name, capacity in capacities.items() if capacity > 1.2 * same}
    return {"half of its own": at_rates(bench, ports, own), "the same": at_rates(bench, ports, able)}


def at_rates(bench, ports, rates):
    """The quantiles of each proxy at its rate."""
    log = bench.work / "times"
    names = list(rates)
    turns = {name: [] for name in names}
    for turn in range(bench.options.rounds):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            each = round(rates[name] / CLIENTS)
            log.unlink(missing_ok=True)
            load(ports[name], round(each * CLIENTS * bench.options.seconds), "--rps", each, "--log-file", log)
            times = sorted(int(line.split("\t")[2]) for line in log.read_text().splitlines())
            at = {text: times[min(int(len(times) * share), len(times) - 1)] / 1000 for text, share in QUANTILES.items()}
            turns[name].append(at)
    measured = {}
    for name in names:
        medians = {text: statistics.median(turn[text] for turn in turns[name]) for text in QUANTILES}
        measured[name] = {"requests_per_second": round(rates[name]), **medians, "turns": turns[name]}
        print(f"{name}: {medians}", file=sys.stderr, flush=True)
    return measured


def load(port, count, *more):
    command = ["h2load", "--h1", "-t", "1", "-c", CLIENTS, "-n", count, *more]
    output = run([*command, "-H", f":authority: {ONE_HOST}", f"http://127.0.0.1:{port}{ONE_PATH}"], core=1)
    if not re.search(rf"{count} 2xx", output):
        sys.exit(f"the load has met errors:\n{output}")
    return output


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
