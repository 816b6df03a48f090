"""The servers that are measured, each started afresh on a port of its own and on the first processor.

A `Served` says how to read and to publish there; all of them are given the same messages by the same load generator.
Knows how each is started and stopped; nothing of questions.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

RIG = Path(__file__).parent
BUILT = RIG / "build"
REPOSITORY = RIG.parents[1]
JS = REPOSITORY / "tests" / "js"
PROGRAMS = Path(sys.executable).parent
PATIENCE_SECONDS = 30


class Served(NamedTuple):
    """A server that is ready."""

    pids: Sequence[int]
    port: int
    get: str
    """Path of a stream of events; `%d` is the stream's number."""
    post: str
    """… to publish to; empty where the server makes the messages itself."""
    options: Sequence[str] = ()
    """Of the load generator, for what is published otherwise than as a bare JSON string."""


Server = Callable[[], AbstractContextManager[Served]]


class Missing(Exception):
    """What a server needs is not on this machine; the message is the line that installs it."""


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port: int = free.getsockname()[1]
        return port


def compiled(name: str) -> Path:
    """The program made of `c/{name}.c`."""
    source, program = RIG / "c" / f"{name}.c", BUILT / name
    if not program.exists() or program.stat().st_mtime < source.stat().st_mtime:
        if (compiler := shutil.which("cc")) is None:
            raise Missing("sudo apt-get install gcc libc6-dev")
        BUILT.mkdir(exist_ok=True)
        subprocess.run([compiler, "-O2", "-Wall", "-Wextra", "-o", program, source], check=True)
    return program


def pinned(core: int) -> Callable[[], None]:
    """For a child process: run on this processor alone, if there is more than one."""
    return lambda: os.sched_setaffinity(0, {core}) if (os.cpu_count() or 1) > core else None


@contextmanager
def running(command: Sequence[object], port: int, env: Mapping[str, str] | None = None) -> Iterator[int]:
    """The process id, once the port answers."""
    words = [str(word) for word in command]
    quiet = subprocess.DEVNULL
    environment = {**os.environ, **(env or {})}
    with subprocess.Popen(words, stdout=quiet, stderr=quiet, env=environment, preexec_fn=pinned(0)) as process:
        try:
            late = time.monotonic() + PATIENCE_SECONDS
            while True:
                with socket.socket() as tried:
                    if tried.connect_ex(("127.0.0.1", port)) == 0:
                        break
                if process.poll() is not None or time.monotonic() > late:
                    raise RuntimeError(f"{words[0]} did not start")
                time.sleep(0.05)
            yield process.pid
        finally:
            process.kill()


def request(port: int, method: str, path: str, body: bytes = b"", content_type: str = "application/json") -> bytes:
    """One request to a server, and its answer."""
    fields = [f"host: 127.0.0.1:{port}", f"content-type: {content_type}", f"content-length: {len(body)}"]
    head = "\r\n".join([f"{method} {path} HTTP/1.1", *fields, "connection: close", "", ""])
    with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_SECONDS) as to:
        to.sendall(head.encode() + body)
        parts = []
        while part := to.recv(65536):
            parts.append(part)
        return b"".join(parts)


def create(port: int, path: str, streams: int, content_type: str = "application/json") -> None:
    for number in range(streams):
        name = path % number if "%d" in path else path
        request(port, "PUT", name, content_type=content_type)


# -- ours ------------------------------------------------------------------------------------------------------------


@contextmanager
def headwater(store: str = "memory:", streams: int = 1, options: Sequence[str] = ()) -> Iterator[Served]:
    """`headwater serve`: the direct way."""
    port = free_port()
    command = [PROGRAMS / "headwater", "serve", "--store", store, "--port", port, "--log-level", "warning", *options]
    with running(command, port) as pid:
        create(port, "/v1/stream/b%d", streams)
        yield Served([pid], port, "/v1/stream/b%d?format=sse", "/v1/stream/b%d")


@contextmanager
def headwater_portable(streams: int = 1) -> Iterator[Served]:
    """The same application on a plain uvicorn: through ASGI's `send`."""
    with python_app("headwater_app:app", "/v1/stream/b%d?format=sse", "/v1/stream/b%d") as served:
        create(served.port, "/v1/stream/b%d", streams)
        yield served


# -- peers -----------------------------------------------------------------------------------------------------------


@contextmanager
def floor() -> Iterator[Served]:
    port = free_port()
    with running([compiled("floor"), port], port) as pid:
        yield Served([pid], port, "/events", "/events")


@contextmanager
def python_app(app: str, get: str = "/events", post: str = "/events", http: str = "httptools") -> Iterator[Served]:
    """An application of `apps/`, served by uvicorn with uvloop and httptools, or another `http`."""
    port = free_port()
    command: list[object] = [PROGRAMS / "uvicorn", app, "--app-dir", RIG / "apps", "--port", port]
    command += ["--loop", "uvloop", "--http", http, "--log-level", "warning", "--no-access-log"]
    with running(command, port) as pid:
        yield Served([pid], port, get, post)


@contextmanager
def node_reference(streams: int = 1, folder: str = "") -> Iterator[Served]:
    """The reference server of Durable Streams: in memory, or with its files in a folder."""
    node = _node(JS / "node_modules", "tests/js")
    env = {**os.environ, "DATA_DIR": folder}
    command = [node, str(JS / "reference-server.mjs")]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, preexec_fn=pinned(0), env=env
    ) as process:
        assert process.stdout is not None
        try:
            said = next(line for line in process.stdout if line.startswith(b"http"))  # after what recovery says
            port = int(said.decode().rsplit(":", 1)[1])
            create(port, "/v1/stream/b%d", streams)
            yield Served([process.pid], port, "/v1/stream/b%d?offset=-1&live=sse", "/v1/stream/b%d")
        finally:
            process.kill()


@contextmanager
def better_sse() -> Iterator[Served]:
    """npm's better-sse on Node's own HTTP server."""
    port, apps = free_port(), RIG / "apps"
    node = _node(apps / "node_modules", "bench/rig/apps")
    with running([node, apps / "better-sse.mjs", port], port) as pid:
        yield Served([pid], port, "/events", "/events")


def _node(modules: Path, where: str) -> str:
    node = shutil.which("node")
    if node is None:
        raise Missing("sudo apt-get install nodejs npm")
    if not modules.exists():
        raise Missing(f"cd {where} && npm ci")
    return node


@contextmanager
def nchan() -> Iterator[Served]:
    """nginx with Debian's nchan module, one worker, messages kept in its memory."""
    nginx, module = shutil.which("nginx", path="/usr/sbin:/usr/bin"), Path("/usr/lib/nginx/modules/ngx_nchan_module.so")
    if nginx is None or not module.exists():
        raise Missing("sudo apt-get install nginx-light libnginx-mod-nchan")
    port = free_port()
    with tempfile.TemporaryDirectory() as folder:
        template = (RIG / "apps" / "nchan.conf").read_text()
        at = Path(folder) / "nginx.conf"
        at.write_text(template.replace("@PORT@", str(port)).replace("@MODULE@", str(module)).replace("@AT@", folder))
        with running([nginx, "-c", at, "-g", "daemon off; master_process off;"], port) as pid:
            yield Served([pid], port, "/events/b%d", "/publish/b%d")


@contextmanager
def pushpin() -> Iterator[Served]:
    """Debian's Pushpin before an application of `apps/` that holds nothing."""
    found = shutil.which("pushpin")
    if found is None:
        raise Missing("sudo apt-get install pushpin")
    with ExitStack() as stack:
        behind = stack.enter_context(python_app("pushpin_origin:app"))
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        port, control = free_port(), free_port()
        template = (RIG / "apps" / "pushpin.conf").read_text()
        for name, value in (("@PORT@", port), ("@CONTROL@", control), ("@AT@", folder)):
            template = template.replace(name, str(value))
        (folder / "pushpin.conf").write_text(template)
        (folder / "routes").write_text(f"* 127.0.0.1:{behind.port}\n")
        pid = stack.enter_context(running([found, "--config", folder / "pushpin.conf"], port))
        item = '{"items":[{"channel":"b","formats":{"http-stream":{"content":"data: '
        options = ["--post-port", str(control), "--prefix", item, "--suffix", '\\n\\n"}}}]}']
        yield Served(_family(pid), port, "/events", "/publish/", options)


def _family(pid: int) -> list[int]:
    """A process and all it started."""
    listed = subprocess.run(["ps", "-eo", "pid=,ppid="], capture_output=True, text=True, check=True).stdout
    parents = {int(child): int(parent) for child, parent in (line.split() for line in listed.splitlines())}
    family = [pid]
    for member in family:
        family += [child for child, parent in parents.items() if parent == member]
    return family
