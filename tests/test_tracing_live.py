"""Tracing as it is switched on in the field: `opentelemetry-instrument headwater serve`, exporting OTLP over HTTP."""

import http.client
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import real_server
from headwater.wire.sse import Decoder
from otlp_receiver import Receiver, Span, receiving
from real_server import Server

CALLER = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
TRACE, CALLING = CALLER.split("-")[1:3]
INSTALL = "pip install opentelemetry-distro opentelemetry-exporter-otlp-proto-http"


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with receiving() as started:
        yield started


@pytest.fixture
def server(
    receiver: Receiver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, program: Callable[[str, str], str]
) -> Iterator[Server]:
    monkeypatch.setenv("PATH", f"{Path(real_server.HEADWATER).parent}{os.pathsep}{os.environ['PATH']}")
    told = {
        "OTEL_EXPORTER_OTLP_ENDPOINT": receiver.endpoint,
        "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf",
        "OTEL_LOGS_EXPORTER": "none",
        "OTEL_SERVICE_NAME": "chat",
        "OTEL_BSP_SCHEDULE_DELAY": "50",
    }
    for name, value in told.items():
        monkeypatch.setitem(real_server.ENVIRONMENT, name, value)
    server = Server("serve", tmp_path, "tests.agents_to_read:bot")
    server._command.insert(0, program("opentelemetry-instrument", INSTALL))
    try:
        server.start()
        yield server
    finally:
        if server.running:
            server.kill()


def ask(
    server: Server, method: str, path: str, body: object = None, **headers: str
) -> tuple[http.client.HTTPResponse, bytes]:
    asking = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
    sent = {name.replace("_", "-"): value for name, value in headers.items()}
    asking.request(method, path, None if body is None else json.dumps(body), {**sent, "connection": "close"})
    answer = asking.getresponse()
    return answer, answer.read()


def of(name: str, outcome: str | None = None) -> Callable[[Span], bool]:
    return lambda span: span.name == name and outcome in (None, span.attributes.get("headwater.run.outcome"))


@pytest.mark.server
def test_a_collector_gets_one_trace_of_caller_run_model_tool_and_reader(server: Server, receiver: Receiver) -> None:
    asked = {"agent": "bot", "input": "tool"}
    answer, body = ask(server, "POST", "/v1/runs", asked, accept="text/event-stream", traceparent=CALLER)
    assert answer.status == 201
    events = [json.loads(event.data) for event in Decoder().feed(body)]
    assert events[-1]["type"] == "RUN_FINISHED"
    run, reader = receiver.until(of("headwater.run")), receiver.until(of("headwater.subscribe"))
    tool = receiver.until(of("execute_tool search"))
    assert (run.trace, run.parent, run.service) == (TRACE, CALLING, "chat")
    assert events[0]["metadata"]["traceparent"] == answer.getheader("traceparent") == f"00-{TRACE}-{run.id}-01"
    assert (reader.trace, reader.parent, reader.links) == (TRACE, CALLING, [run.id])
    assert reader.attributes["headwater.reason"] == "ended"
    assert (tool.trace, tool.parent) == (TRACE, run.id)
    chats = [span for span in receiver.spans if span.name.startswith("chat")]
    assert [(span.trace, span.parent) for span in chats] == [(TRACE, run.id)] * 2
    assert run.began <= chats[0].began <= chats[0].ended <= tool.ended <= chats[1].began <= run.ended


@pytest.mark.server
def test_a_new_process_goes_on_in_the_same_trace_and_nothing_that_was_said_leaves(
    server: Server, receiver: Receiver
) -> None:
    asked = {"agent": "bot", "input": "slowly"}
    answer, _ = ask(server, "POST", "/v1/runs", asked, traceparent=CALLER)
    where = answer.getheader("location")
    server.stop()
    left = receiver.until(of("headwater.run", "left"))
    server.start()
    _, body = ask(server, "GET", f"{where}?rollup=0")
    assert json.loads(Decoder().feed(body)[-1].data)["type"] == "RUN_FINISHED"
    again = receiver.until(of("headwater.run", "completed"))
    assert (again.trace, again.parent) == (left.trace, left.id) == (TRACE, left.id)
    assert again.attributes["headwater.run.attempt"] == 1
    server.stop()  # with it go the last metrics
    assert {"gen_ai.invoke_agent.duration", "gen_ai.client.operation.duration"} <= receiver.metrics
    assert b"word 1" not in receiver.bytes
    assert b"slowly" not in receiver.bytes
