"""The public face: what is exported and how it is called. It changes only on purpose: then the text below changes too.

And what importing it costs: nothing that is optional is loaded before it is used; where it is missing, the error says
what to install.
"""

from __future__ import annotations

import importlib
import inspect
import subprocess
import sys
import textwrap
from collections.abc import Iterator

import pytest

FACE = """
headwater
  HeadwaterError(message, **detail)
    said
  Limits(message_bytes=16777216, page_bytes=1048576, sweep_seconds=30.0)
  Message(data, offset, time, key=None)
  Offset(generation, position)
    parse(text)
  Page(messages, start, next, up_to_date, closed, outcome=None)
  Retention(seconds=None, bytes=None, messages=None)
  Stamp(producer, epoch, seq)
  Streams(store='memory:', *, limits=…, retention=(), clock=…)
    async aclose(self)
    async append(self, name, *values, key=None, stamp=None, expected=None, close=False, outcome=None)
    at_once(self, name, request)
    async carry_out(self, name, request)
    async close(self, name, outcome='completed')
    async create(self, name, *values, content_type='application/json', ttl=None, expires_at=None,
          retention=None, closed=False, labels=None)
    async cursor(self, name, offset=None, *, max_bytes=None)
    async delete(self, name)
    drain(self)
    follow(self, name, offset=None)
    async fork(self, source, name, offset=None, *, ttl=None, expires_at=None)
    async head(self, name)
    is_open
    async list(self, prefix='', *, after=None, limit=100, newest=False)
    async open(self)
    async page(self, name, offset=None, *, max_bytes=None)
    async read(self, name, offset=None, *, max_bytes=None)
    statistics(self)
    writer(self, name, *, content_type='application/json', ttl=None, labels=None, producer=None, join_ms=0)
  Writer(commits, leases, name, *, content_type='application/json', ttl=None, labels=None, producer=None,
        join_ms=0)
    async aclose(self, outcome='completed', *last)
    async flush(self)
    async leave(self, *last)
    next_epoch(self, head)
    async open(self, *first)
    async send(self, value, *, key=None)
    async take_over(self, head, *first)
  __version__
headwater.http
  App(streams, runs=None, *, auth=None, origins=None, delivery=None, admission=None, long_poll_seconds=30.0,
        pages=None, subscriptions=None, metrics=False)
    numbers(self, directory=None)
  StreamResponse(content, request, *, status_code=200, headers=None, media_type='text/event-stream', owner='',
        framed=None, ttl=3600)
  async error_response(_, error)
  follow(streams, name, request, *, status_code=200, headers=None)
  lifespan(streams, runs=None, subscriptions=None, *, closing=())
  opened(streams, runs=None, producers=None, *, subscriptions=None, closing=(), on_signals=True)
headwater.runs
  Record(id, agent, thread_id, status, created, title='', ended=None, input=None, usage=None, error=None,
        result=None, approvals=None)
  Run(runs, run_id, *, started)
    async approve(self, tool_call_id, *, by='')
    async cancel(self, *, when='now')
    async record(self)
    async reject(self, tool_call_id, message=None, *, by='')
    response(self, request=None, *, status_code=200, headers=None)
    stream
    async wait(self)
  Runs(streams, *agents, delivery=None, on_shutdown='resume', most_resumptions=5)
    async aclose(self)
    async alias(self, run_id, idempotency_key, *, principal='')
    async answer(self, run_id, answers, *, by='')
    async cancel(self, run_id, *, when='now')
    async claimed(self, idempotency_key, *, principal='')
    figures
    async get(self, run_id)
    async interrupt(self)
    async list(self, *, before=None, limit=50, agent=None, status=None, thread=None, principal='')
    async open(self)
    async record(self, run_id)
    register(self, agent, name=None)
    running(self)
    async settle(self, run_id, answers, *, by='')
    async start(self, agent, input, *, thread_id=None, idempotency_key=None, principal='', note=None,
          entry=None, request=None, cancel_when_unread=None)
    statistics(self)
headwater.client
  Batching(linger=0.005, max_bytes=1048576, max_messages=1000, in_flight=5, buffer=8388608, patience=300.0)
  Client(base_url, *, key=None, retry=None, transport=None)
    async aclose(self)
    async append(self, path, *values, content_type='application/json', close=False, if_match=None)
    async close(self, path, outcome=None)
    async create(self, path, *values, content_type='application/json', ttl=None, expires_at=None,
          retention=None, closed=False)
    async delete(self, path)
    follow(self, path_or_url, offset=None, *, by='auto', on_lost=None, on_connected=None, report=False)
    async fork(self, source, name, offset=None, sub_offset=None, *, ttl=None, expires_at=None)
    async head(self, path)
    async info(self, path)
    async list(self, prefix='', *, after=None, limit=100)
    producer(self, stream, *, id=None, epoch=None, claim=False, content_type='application/json',
          boundaries=False, batching=None)
    async read(self, path, offset=None)
  ConditionIgnored(message, **detail)
  Event(data, offset, name='message')
    json(self)
  OffsetExpired(message, **detail)
  Page(messages, offset, up_to_date, closed, outcome=None)
  Producer(batches, post, retry)
    async aclose(self)
    async close(self, outcome=None)
    epoch
    async flush(self)
    id
    offset
    async send(self, *values)
    unsent
  Reader(http, way, retry, on_lost=None, on_connected=None, *, over_to=None, service=None)
    async aclose(self)
    offset
    outcome
    over
  Report(url, ended='left', client='python', events=0, reconnects=0, first_event=None, longest_gap=0.0,
        lost=0.0)
  Retention(seconds=None, bytes=None, messages=None)
  Retry(shortest=0.2, longest=10.0, silence=45.0, connect=10.0, sleep=…, clock=…, jitter=…)
    pause(self, failures, asked=0.0)
  StreamInfo(name, content_type, offset, closed, outcome=None, state=None, start=None, messages=None,
        bytes=None, readers=None, producers=None, created=None, appended=None, ttl=None, expires_at=None,
        retention=None)
  SyncClient(base_url, *, key=None, retry=None, transport=None)
    append(self, path, *values, content_type='application/json', close=False, if_match=None)
    close(self, path, outcome=None)
    create(self, path, *values, content_type='application/json', ttl=None, expires_at=None, retention=None,
          closed=False)
    delete(self, path)
    disconnect(self)
    producer(self, stream, *, id=None, epoch=None, claim=False, content_type='application/json',
          boundaries=False, batching=None)
    read(self, path, offset=None)
  SyncProducer(batches, post, retry)
    close(self, outcome=None)
    epoch
    flush(self)
    id
    leave(self)
    offset
    send(self, *values)
    unsent
  Unreachable(message, **detail)
headwater.server
  PortTaken(message, **detail)
  Protocol(config, server_state, app_state, _loop=None)
    connection_lost(self, exc)
    connection_made(self, transport)
    data_received(self, data)
    eof_received(self)
    handle_websocket_upgrade(self)
    on_body(self, body)
    on_header(self, name, value)
    on_headers_complete(self)
    on_message_begin(self)
    on_message_complete(self)
    pause_writing(self)
    rest(self, cycle, remainder)
    resume_writing(self)
    shutdown(self)
  ServeConfig(store='sqlite:///headwater.db', host='127.0.0.1', port=4437, agents=(), auth=None,
        insecure=False, cors_origins=('loopback',), grace=10.0, heartbeat=15.0, long_poll=30.0,
        sse_max_seconds=None, join_ms=0, slow=…, retention=(), max_appends_per_second=None, max_readers=None,
        max_readers_per_client=None, log_level='info', log_format='human', metrics_port=None,
        metrics_host='127.0.0.1', metrics_dir=None, public_url=None, pages=…, on_shutdown='resume',
        most_resumptions=5, proxy=…)
  listen(host, port)
  run(config, ready=None)
  async serve(config, ready=None)
headwater.sources
  Answer(approved, message=None)
  JSON
  Paused(questions, state)
  Question(tool_call_id, tool, arguments)
  Remembering
  Request(state=None, context=(), forwarded_props=None)
  Resumable
    async resume(self, input, at, sink)
  Resumption(attempt, state, calls=…, messages=(), answers=…)
  RunFailed(code, message)
  Sink
    async checkpoint(self, state, events=())
    async emit(self, event)
    async flush(self)
    keeps
    on_stop(self, stop)
    usage(self, entries)
  Source
    async run(self, input, sink)
  Stopped()
  progress(message=None, *, fraction=None, data=None)
  request()
  tool_call_id()
headwater.testing
  VirtualTimeLoop(*, grace=0.01, stuck_after=30.0)
    run_in_executor(self, executor, func, *args)
    async shutdown_default_executor(self, timeout=None)
    time(self)
  async check_store(make_store, *, reopen=None)
  async left_behind(known=…)
  run_virtual(main, *, grace=0.01)
  virtual_time(test)
"""


def spelled(thing: object) -> str:
    """The parameters of a callable: names, kinds and plain defaults; annotations are for readers and mypy."""
    assert callable(thing)
    parameters = [
        parameter.replace(annotation=inspect.Parameter.empty, default=plain(parameter.default))
        for parameter in inspect.signature(thing).parameters.values()
    ]
    return str(inspect.Signature(parameters))


class Something:
    """A default that is more than a word."""

    def __repr__(self) -> str:
        return "…"


def plain(default: object) -> object:
    simple = default is inspect.Parameter.empty or isinstance(default, str | int | float | bool | tuple | None)
    return default if simple else Something()


def methods(kind: type) -> Iterator[str]:
    """Its own public methods and attributes, by name."""
    for name in sorted(vars(kind)):
        member = getattr(kind, name)
        if name.startswith("_"):
            continue
        if inspect.isfunction(member) or inspect.ismethod(member):
            awaited = "async " if inspect.iscoroutinefunction(member) else ""
            yield f"    {awaited}{name}{spelled(member)}"
        elif isinstance(vars(kind)[name], property):
            yield f"    {name}"


def face(module_name: str) -> Iterator[str]:
    module = importlib.import_module(module_name)
    yield module_name
    for name in sorted(module.__all__):
        thing = getattr(module, name)
        if inspect.isclass(thing):
            abstract = "_is_protocol" in vars(thing)
            yield f"  {name}" if abstract else f"  {name}{spelled(thing)}"
            yield from methods(thing)
        elif inspect.isfunction(thing):
            awaited = "async " if inspect.iscoroutinefunction(thing) else ""
            yield f"  {awaited}{name}{spelled(thing)}"
        else:
            yield f"  {name}"


def wrapped(line: str) -> list[str]:
    indent = " " * (len(line) - len(line.lstrip()) + 6)
    return textwrap.wrap(line, 110, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)


MODULES = ("", ".http", ".runs", ".client", ".server", ".sources", ".testing")


def test_the_face_is_the_one_that_was_agreed() -> None:
    lines = [line for module in MODULES for long in face(f"headwater{module}") for line in wrapped(long)]
    assert "\n".join(lines) == FACE.strip()


# --- what importing it costs -----------------------------------------------------------------------------------------

BLOCKER = """
import sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {blocked!r}:
            raise ModuleNotFoundError("No module named " + repr(name), name=name)

sys.meta_path.insert(0, Blocker())
"""


def python(code: str, *, without: tuple[str, ...] = ()) -> str:
    """What `code` prints in a fresh process in which the packages `without` are not installed."""
    program = (BLOCKER.format(blocked=without) if without else "") + code
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


OPTIONAL = ("agents", "openai", "ag_ui", "pydantic", "fastapi", "uvicorn", "uvloop", "httptools", "httpx", "typer")


def test_importing_headwater_and_its_http_loads_nothing_optional() -> None:
    code = "import sys, headwater, headwater.http; print(*(name for name in sys.modules if '.' not in name))"
    assert set(python(code).split()) & set(OPTIONAL) == set()


def test_streams_work_where_nothing_optional_is_installed() -> None:
    code = """
import asyncio
from headwater import Streams
from headwater.http import App, StreamResponse, follow, lifespan

async def main():
    async with Streams("memory:") as streams:
        App(streams)
        async with streams.writer("a") as writer:
            await writer.send(1)
        print((await streams.read("a")).messages[0].data)

asyncio.run(main())
"""
    assert python(code, without=OPTIONAL) == "b'1'"


@pytest.mark.parametrize(
    ("module", "missing", "extra"),
    [
        ("headwater.runs", "ag_ui", "agents"),
        ("headwater.sources.openai_agents", "agents", "agents"),
        ("headwater.http.chatkit", "chatkit", "chatkit"),
        ("headwater.client", "httpx", "server"),
        ("headwater.server", "uvicorn", "server"),
        ("headwater.server", "uvloop", "server"),
        ("headwater.cli.app", "typer", "server"),
        ("headwater.demo.main", "agents", "demo"),
        ("headwater.demo.main", "openai", "demo"),
    ],
)
def test_a_missing_extra_is_named_with_the_line_that_installs_it(module: str, missing: str, extra: str) -> None:
    code = f"""
from headwater.errors import MissingExtra
try:
    import {module}
except MissingExtra as error:
    print(isinstance(error, ImportError), error)
"""
    said = python(code, without=(missing,))
    assert said.startswith("True ")
    assert said.endswith(f"is not installed; run: pip install 'headwater[{extra}]'")


def test_giving_an_agent_without_the_sdk_is_the_same_error() -> None:
    code = """
from headwater import Streams
from headwater.runs import Runs

class Agent:
    name = "mine"

Agent.__module__ = "agents.agent"
try:
    Runs(Streams("memory:"), Agent())
except ImportError as error:
    print(error)
"""
    assert python(code, without=("agents",)).endswith("run: pip install 'headwater[agents]'")
