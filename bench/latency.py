#!/usr/bin/env python3
"""How long a request takes when a proxy is half busy, side by side with nginx, HAProxy and Envoy.

First it is found out how many requests a second each takes, with all of core 0 for the proxy. Then, in turns, each gets
half of what it takes, evenly over time on 32 connections, and every request's time is noted, the backend's part included.
"""

import argparse
import json
import pathlib
import re
import shutil
import sys
import tempfile

from cpu import PROXIES, add_arguments
from peers import ONE_HOST, ONE_PATH, Bench, Setup, free_port, require, run

CLIENTS = 32
QUANTILES = {"p50": 0.5, "p99": 0.99, "p99.9": 0.999}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser)
    parser.add_argument("--seconds", type=float, default=5, help="of each turn")
    parser.add_argument("--rounds", type=int, default=5)
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
    seconds, rounds = bench.options.seconds, bench.options.rounds
    ports, rates, times = {}, {}, {name: [] for name in names}
    for name in names:
        ports[name] = free_port()
        getattr(bench, name)(ports[name], Setup())
    for name in names:
        bench.wait_for(ports[name])
        load(ports[name], 5_000)
        output = load(ports[name], round(10_000 * seconds))
        capacity = float(re.search(r"([\d.]+) req/s", output).group(1))
        rates[name] = int(capacity / 2 / CLIENTS) * CLIENTS
        print(f"{name} takes {capacity:.0f} requests a second", file=sys.stderr, flush=True)
    log = bench.work / "times"
    for turn in range(rounds):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            log.unlink(missing_ok=True)
            load(ports[name], round(rates[name] * seconds), "--rps", rates[name] // CLIENTS, "--log-file", log)
            lines = [line.split("\t") for line in log.read_text().splitlines()]
            times[name] += [int(line[2]) for line in lines]
    measured = {}
    for name in names:
        ordered = sorted(times[name])
        at = {text: ordered[min(int(len(ordered) * share), len(ordered) - 1)] / 1000 for text, share in QUANTILES.items()}
        measured[name] = {"requests_per_second": rates[name], "requests": len(ordered), **at, "max": ordered[-1] / 1000}
        print(f"{name}: {measured[name]}", file=sys.stderr, flush=True)
    return measured


def load(port, count, *more):
    command = ["h2load", "--h1", "-t", "1", "-c", CLIENTS, "-n", count, *more]
    output = run([*command, "-H", f":authority: {ONE_HOST}", f"http://127.0.0.1:{port}{ONE_PATH}"], core=1)
    if not re.search(rf"{count} 2xx", output):
        sys.exit(f"the load has met errors:\n{output}")
    return output


def publish(measured, out):
    out.mkdir(parents=True, exist_ok=True)
    rows = ["| proxy | requests a second | p50, ms | p99, ms | p99.9, ms | slowest, ms |", "| --- | --- | --- | --- | --- | --- |"]
    for name, value in measured.items():
        numbers = [f"{value[key]:.2f}" for key in (*QUANTILES, "max")]
        rows.append(f"| {name} | {value['requests_per_second']} | {' | '.join(numbers)} |")
    table = "\n".join(rows) + "\n"
    (out / "latency.json").write_text(json.dumps(measured, indent=2) + "\n")
    (out / "latency.md").write_text(table)
    print(table)


if __name__ == "__main__":
    main()
