"""Alternatives: they check the caller's key, put in the upstream's and send the call on, without any other policy.

They are in an environment of their own, which ``make bench-peers`` makes; nginx is taken from the path, if it is there.
A peer that is missing or does not start is named in the table, with the reason.
"""

from __future__ import annotations

import contextlib
import re
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Final

from bench.servers import Server, process, request, said
from sandbox.__main__ import CALLER_KEY, ROOT, UPSTREAM_KEY
from sandbox.ports import free_port

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

    from bench.servers import World

BIN: Final = ROOT / ".venv" / "peers" / "bin"


class MissingError(Exception):
    """A peer that is not installed. The text says how to install it."""


def _program(name: str) -> str:
    path = BIN / name
    if not path.exists():
        raise MissingError("not installed; `make bench-peers` does that")
    return str(path)


# ---------------------------------------------------------------- Envoy

_ENVOY: Final = """
static_resources:
  listeners:
  - address: {socket_address: {address: 127.0.0.1, port_value: PORT}}
    filter_chains:
    - filters:
      - name: http
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: bench
          http_filters:
          - name: caller-key
            typed_config:
              "@type": type.googleapis.com/envoy.extensions.filters.http.rbac.v3.RBAC
              rules:
                policies:
                  caller:
                    permissions: [{any: true}]
                    principals: [{header: {name: x-api-key, string_match: {exact: CALLER_KEY}}}]
          - name: router
            typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}
          route_config:
            virtual_hosts:
            - name: all
              domains: ["*"]
              routes:
              - match: {path: /stripe/invoices/}
                route: {cluster: upstream, timeout: 25s}
                request_headers_to_add:
                - header: {key: x-api-key, value: UPSTREAM_KEY}
                  append_action: OVERWRITE_IF_EXISTS_OR_ADD
  clusters:
  - name: upstream
    type: STATIC
    load_assignment:
      cluster_name: upstream
      endpoints:
      - lb_endpoints: [{endpoint: {address: {socket_address: {address: 127.0.0.1, port_value: UPSTREAM_PORT}}}}]
"""


@contextlib.contextmanager
def envoy(world: World) -> Iterator[Server]:
    """Envoy: role-based access by header, a header overwritten, one event loop."""
    port = free_port()
    config = _write(world, "envoy.yaml", _ENVOY, port)
    with _quiet([_program("envoy"), "-c", config, "--concurrency", "1", "-l", "error", "--use-dynamic-base-id"]) as pid:
        yield Server(port, pid, request())


# ---------------------------------------------------------------- nginx with Lua

_NGINX: Final = """
daemon off;
worker_processes 1;
pid FOLDER/nginx.pid;
error_log FOLDER/nginx.log error;
load_module MODULES/ndk_http_module.so;
load_module MODULES/ngx_http_lua_module.so;
events {}
http {
  access_log off;
  client_body_temp_path FOLDER/body;
  proxy_temp_path FOLDER/proxy;
  fastcgi_temp_path FOLDER/fastcgi;
  uwsgi_temp_path FOLDER/uwsgi;
  scgi_temp_path FOLDER/scgi;
  keepalive_requests 10000000;
  upstream upstream { server 127.0.0.1:UPSTREAM_PORT; keepalive 16; keepalive_requests 10000000; }
  server {
    listen 127.0.0.1:PORT;
    location = /stripe/invoices/ {
      access_by_lua_block {
        if ngx.var.http_x_api_key ~= "CALLER_KEY" then return ngx.exit(401) end
        ngx.req.set_header("x-api-key", "UPSTREAM_KEY")
      }
      proxy_http_version 1.1;
      proxy_set_header Connection "";
      proxy_pass http://upstream;
    }
  }
}
"""


@contextlib.contextmanager
def nginx(world: World) -> Iterator[Server]:
    """Nginx: the key compared and put in by Lua, one worker."""
    program = shutil.which("nginx")
    if program is None:
        raise MissingError("not on the path; on Debian: apt-get install nginx libnginx-mod-http-lua")
    built = subprocess.run([program, "-V"], capture_output=True, text=True, check=True).stderr
    modules = re.search(r"--modules-path=(\S+)", built)
    if modules is None or not Path(modules[1], "ngx_http_lua_module.so").exists():
        raise MissingError("without its Lua module; on Debian: apt-get install libnginx-mod-http-lua")
    port = free_port()
    config = _write(world, "nginx.conf", _NGINX.replace("MODULES", modules[1]), port)
    with _quiet([program, "-p", str(world.folder), "-c", config]) as pid:
        yield Server(port, pid, request())


# ---------------------------------------------------------------- LiteLLM

_LITELLM: Final = """
general_settings:
  master_key: CALLER_KEY
  pass_through_endpoints:
  - path: /stripe/invoices/
    target: http://127.0.0.1:UPSTREAM_PORT/stripe/invoices/
    auth: true
    headers: {x-api-key: UPSTREAM_KEY}
"""


@contextlib.contextmanager
def litellm(world: World) -> Iterator[Server]:
    """LiteLLM's proxy: a pass-through endpoint behind its master key. It sends the form on as JSON."""
    port = free_port()
    config = _write(world, "litellm.yaml", _LITELLM, port)
    options = ["--config", config, "--host", "127.0.0.1", "--port", str(port), "--num_workers", "1"]
    # No network access: no telemetry, and the price list that is bundled.
    settings = {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_TELEMETRY": "False", "NO_PROXY": "*"}
    with _quiet([_program("litellm"), *options, "--telemetry", "False"], settings) as pid:
        yield Server(port, pid, request(header=f"Authorization: Bearer {CALLER_KEY}"))


# ---------------------------------------------------------------- wenlucer

_WENLUCER: Final = """
import sys
from wenlucer import SecretProxy
proxy = SecretProxy()
proxy.add_api("stripe", sys.argv[1] + "/stripe", sys.argv[2], "header:x-api-key")
print(proxy.create_key("bench", limits={"requests_per_minute": 6_000_000}), flush=True)
proxy.run(host="127.0.0.1", port=int(sys.argv[3]), log_level="error", access_log=False)
"""


@contextlib.contextmanager
def wenlucer(world: World) -> Iterator[Server]:
    """Run wenlucer with a key of its own making."""
    port = free_port()
    arguments = [_program("python"), "-c", _WENLUCER, world.origin, UPSTREAM_KEY, str(port)]
    with process(arguments, {}, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as started:
        yield Server(port, started.pid, request(header=f"Authorization: Bearer {said(started)}"))


PEERS: Final[dict[str, Callable[[World], AbstractContextManager[Server]]]] = {
    "Envoy": envoy,
    "nginx with Lua": nginx,
    "LiteLLM": litellm,
    "wenlucer": wenlucer,
}


def _write(world: World, name: str, template: str, port: int) -> str:
    path = world.folder / name
    words = {
        "UPSTREAM_PORT": str(world.upstream.port),
        "UPSTREAM_KEY": UPSTREAM_KEY,
        "CALLER_KEY": CALLER_KEY,
        "PORT": str(port),
        "FOLDER": str(world.folder),
    }
    path.write_text(re.sub("|".join(words), lambda found: words[found[0]], template))
    return str(path)


@contextlib.contextmanager
def _quiet(arguments: list[str], settings: dict[str, str] | None = None) -> Iterator[int]:
    with process(arguments, settings or {}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as started:
        yield started.pid
