"""Plugins of Signalbox, each beside the filter of Envoy that does the same, and the requests that they are measured with."""

import base64
import dataclasses
import hashlib
import json
import pathlib
import subprocess
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
ORIGIN = "https://shop.example.com"
ISSUER = "https://issuer.example.com"
WASM_TOKEN = "a-token-of-the-guest"
KEY = "key-500"
NAMES = [
    "key-auth",
    "jwt, seen before",
    "jwt, verified each time",
    "rate-limit",
    "cors",
    "ip-restriction",
    "ext-auth",
    "wasm",
    "compress",
]
ENVOY = "type.googleapis.com/envoy.extensions.filters.http."


@dataclasses.dataclass
class OfSignalbox:
    """A plugin, and the other resources that it needs."""

    plugin: dict
    consumers: list = dataclasses.field(default_factory=list)
    upstreams: list = dataclasses.field(default_factory=list)
    blobs: list = dataclasses.field(default_factory=list)


@dataclasses.dataclass
class OfEnvoy:
    """A filter, its configuration for each virtual host, and the clusters that it calls, by name."""

    filter: dict
    of_hosts: dict = dataclasses.field(default_factory=dict)
    clusters: dict = dataclasses.field(default_factory=dict)


def headers(bench):
    """The headers of each request, with and without a filter."""
    return {
        "apikey": KEY,
        "Authorization": f"Bearer {token(bench)}",
        "Origin": ORIGIN,
        "Accept-Encoding": "gzip",
        "x-token": WASM_TOKEN,
    }


def signalbox(bench, name):
    if name == "key-auth":
        consumers = [{"name": f"c{n}", "credentials": [{"key_auth": {"key": f"key-{n}"}}]} for n in range(1000)]
        return OfSignalbox({"type": "key-auth", "config": {"in": ["header"]}}, consumers=consumers)
    if name.startswith("jwt"):
        keys = [{"algorithm": "RS256", "key_id": "one", "public_key": public_key(bench)}]
        config = {"issuer": ISSUER, "keys": keys, "cache": name == "jwt, seen before"}
        return OfSignalbox({"type": "jwt", "config": config})
    if name == "rate-limit":
        return OfSignalbox({"type": "rate-limit", "config": {"limit": 1_000_000_000, "window": "1m", "algorithm": "token-bucket"}})
    if name == "cors":
        return OfSignalbox({"type": "cors", "config": {"origins": [ORIGIN]}})
    if name == "ip-restriction":
        return OfSignalbox({"type": "ip-restriction", "config": {"allow": ["127.0.0.0/8", "10.0.0.0/8"]}})
    if name == "ext-auth":
        service = {"name": "authorizer", "targets": [{"address": f"127.0.0.1:{bench.backend('authorizer')}"}]}
        config = {"upstream": "authorizer", "request_headers": ["authorization"]}
        return OfSignalbox({"type": "ext-auth", "config": config}, upstreams=[service])
    if name == "wasm":
        module = guest(bench).read_bytes()
        config = {"module": hashlib.sha256(module).hexdigest(), "config": "bench"}
        return OfSignalbox({"type": "wasm", "config": config}, blobs=[module])
    if name == "compress":
        return OfSignalbox({"type": "compress", "config": {"algorithms": ["gzip"]}})
    raise ValueError(name)


def envoy(bench, name):
    def of(kind, config, message, **more):
        typed = {"@type": f"{ENVOY}{kind}.v3.{message}", **config}
        return OfEnvoy({"name": f"envoy.filters.http.{kind}", "typed_config": typed}, **more)

    if name == "key-auth":
        config = {
            "credentials": [{"key": f"key-{n}", "client": f"c{n}"} for n in range(1000)],
            "key_sources": [{"header": "apikey"}],
            "forwarding": {"header": "x-consumer-username"},
        }
        return of("api_key_auth", config, "ApiKeyAuth")
    if name.startswith("jwt"):
        provider = {"issuer": ISSUER, "forward": True, "local_jwks": {"inline_string": key_set(bench)}}
        if name == "jwt, seen before":
            provider["jwt_cache_config"] = {"jwt_cache_size": 1000}
        rule = {"match": {"prefix": "/"}, "requires": {"provider_name": "one"}}
        return of("jwt_authn", {"providers": {"one": provider}, "rules": [rule]}, "JwtAuthentication")
    if name == "rate-limit":
        always = {"default_value": {"numerator": 100, "denominator": "HUNDRED"}}
        config = {
            "stat_prefix": "limit",
            "token_bucket": {"max_tokens": 1_000_000_000, "tokens_per_fill": 1_000_000_000, "fill_interval": "60s"},
            "filter_enabled": always,
            "filter_enforced": always,
            "enable_x_ratelimit_headers": "DRAFT_VERSION_03",
        }
        return of("local_ratelimit", config, "LocalRateLimit")
    if name == "cors":
        policy = {"@type": f"{ENVOY}cors.v3.CorsPolicy", "allow_origin_string_match": [{"exact": ORIGIN}]}
        return of("cors", {}, "Cors", of_hosts={"envoy.filters.http.cors": policy})
    if name == "ip-restriction":
        ranges = [{"address_prefix": "127.0.0.0", "prefix_len": 8}, {"address_prefix": "10.0.0.0", "prefix_len": 8}]
        principals = [{"remote_ip": each} for each in ranges]
        policies = {"known": {"permissions": [{"any": True}], "principals": principals}}
        return of("rbac", {"rules": {"action": "ALLOW", "policies": policies}}, "RBAC")
    if name == "ext-auth":
        port = bench.backend("authorizer")
        server = {"uri": f"http://127.0.0.1:{port}", "cluster": "authorizer", "timeout": "1s"}
        return of("ext_authz", {"http_service": {"server_uri": server}}, "ExtAuthz", clusters={"authorizer": port})
    if name == "wasm":
        text = {"@type": "type.googleapis.com/google.protobuf.StringValue", "value": "bench"}
        code = {"local": {"filename": str(guest(bench))}}
        machine = {"runtime": "envoy.wasm.runtime.v8", "code": code}
        return of("wasm", {"config": {"name": "guest", "configuration": text, "vm_config": machine}}, "Wasm")
    if name == "compress":
        gzip = {
            "name": "gzip",
            "typed_config": {"@type": "type.googleapis.com/envoy.extensions.compression.gzip.compressor.v3.Gzip"},
        }
        return of("compressor", {"compressor_library": gzip}, "Compressor")
    raise ValueError(name)


def guest(bench):
    """The guest in C of the tests, which reads, sets and removes a header of the request, and sets one of the response."""
    module = bench.work / "guest.wasm"
    if not module.exists():
        options = ["--target=wasm32", "-nostdlib", "-O2", "-Wl,--no-entry"]
        subprocess.run(["clang", *options, "-o", module, ROOT / "wasm/guests/c/guest.c"], check=True)
    return module


def private_key(bench):
    path = bench.work / "jwt.pem"
    if not path.exists():
        openssl("genpkey", "-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048", "-out", path)
    return path


def public_key(bench):
    return openssl("pkey", "-in", private_key(bench), "-pubout").decode()


def key_set(bench):
    modulus = openssl("rsa", "-in", private_key(bench), "-noout", "-modulus").decode().strip().split("=")[1]
    key = {"kty": "RSA", "kid": "one", "alg": "RS256", "n": url_safe(bytes.fromhex(modulus)), "e": "AQAB"}
    return json.dumps({"keys": [key]})


def token(bench):
    path = bench.work / "token"
    if not path.exists():
        claims = {"iss": ISSUER, "sub": "ada", "exp": int(time.time()) + 86400, "role": "admin"}
        parts = [url_safe(json.dumps(part).encode()) for part in ({"alg": "RS256", "kid": "one", "typ": "JWT"}, claims)]
        signed = ".".join(parts)
        signature = openssl("dgst", "-sha256", "-sign", private_key(bench), given=signed.encode())
        path.write_text(f"{signed}.{url_safe(signature)}")
    return path.read_text()


def url_safe(data):
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def openssl(*arguments, given=None):
    return subprocess.run(["openssl", *map(str, arguments)], input=given, capture_output=True, check=True).stdout
