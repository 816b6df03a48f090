"""What a stream holds, message by message; who follows it; and how a format would say it.

Knows streams, formats and readers. Every answer is bounded, whatever the stream holds, and is for people: nothing here
is a promise to programs.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any, Final

import msgspec
from starlette.responses import Response, StreamingResponse

from headwater.delivery import Delivery
from headwater.errors import BadRequest, NotAcceptable
from headwater.formats import NAMES, by_name
from headwater.formats.durable import DurableEvents
from headwater.formats.entries import Entries, entry_of
from headwater.formats.format import Format, is_json
from headwater.http.access import may_read
from headwater.http.admission import Admission
from headwater.http.exchange import Exchange
from headwater.http.socket import SocketResource
from headwater.model import Head, Offset
from headwater.streams import Streams

MOST_ENTRIES: Final = 1000
MOST_READERS: Final = 200
MOST_SHOWN: Final = 1024 * 1024
"""Bytes of a message that may be asked for; SHOWN where nobody asks."""
SHOWN: Final = 4096
PREVIEW_BYTES: Final = 128 * 1024


class Looking:
    """At the streams of one server."""

    def __init__(self, delivery: Delivery, admission: Admission, sockets: SocketResource) -> None:
        self._delivery, self._admission, self._sockets = delivery, admission, sockets
        self._streams: Streams = delivery.streams

    async def entries(self, exchange: Exchange, name: str) -> Response:
        """`?from=POSITION&limit=&most=`: messages from there on; without it, the newest ones."""
        may_read(exchange, name)
        limit = exchange.whole_number("limit", 200, MOST_ENTRIES)
        most = exchange.whole_number("most", SHOWN, MOST_SHOWN)
        head = await self._streams.head(name)
        start = min(max(_position(exchange, head.tail - limit), head.start), head.tail)
        page = await self._streams.read(name, Offset(head.generation, start))
        entries = [entry_of(message, most) for message in page.messages[:limit]]
        return _json(_standing(head) | {"from": start, "entries": entries})

    async def live(self, exchange: Exchange, name: str) -> None:
        """`?offset=&most=`: messages as they come."""
        may_read(exchange, name)
        most = exchange.whole_number("most", SHOWN, MOST_SHOWN)
        cursor = await self._streams.cursor(name, exchange.headers.get("last-event-id") or exchange.query("offset"))
        scope, receive, send = exchange.scope, exchange.receive, exchange.send
        try:
            with self._admission.response(scope, exchange.client):
                await self._delivery.respond(scope, receive, send, cursor, Entries(most))
        except BaseException:
            cursor.close()
            raise

    async def readers(self, exchange: Exchange, name: str) -> Response:
        """Who follows it through this process, the one furthest behind first. No addresses, no names."""
        may_read(exchange, name)
        tail = (await self._streams.head(name)).tail
        found = [*self._http_readers(name, tail), *self._channels(name, tail)]
        found.sort(key=lambda one: (-one["behind"], -one["silent"]))
        return _json({"readers": found[:MOST_READERS], "count": len(found)})

    def _http_readers(self, name: str, tail: int) -> Iterator[dict[str, Any]]:
        for one in self._delivery.standing(name):
            yield {
                "transport": one.format.transport,
                "offset": str(one.offset),
                "behind": max(0, tail - one.offset.position),
                "silent": round(one.silent_seconds, 1),
                "stalled": one.is_full,
            }

    def _channels(self, name: str, tail: int) -> Iterator[dict[str, Any]]:
        for socket in self._sockets.sockets:
            for channel in socket.channels:
                if channel.stream == name and channel.cursor is not None:
                    at = channel.cursor.offset
                    yield {
                        "transport": "websocket",
                        "offset": str(at),
                        "behind": max(0, tail - at.position),
                        "silent": round(socket.silent_seconds, 1),
                        "stalled": channel.credit <= 0,
                    }

    async def preview(self, exchange: Exchange, name: str) -> Response:
        """`?format=&from=`: the bytes that a client of this format gets, from its first one on."""
        may_read(exchange, name)
        head = await self._streams.head(name)
        format_ = _format(exchange.query("format") or "sse", name, head)
        start = head.start if format_.folds else min(max(_position(exchange, head.start), head.start), head.tail)
        page = await self._streams.read(name, Offset(head.generation, start), max_bytes=PREVIEW_BYTES)
        data = format_.opening + format_.render(page) + (format_.ending(page) if page.closed else b"")
        headers = {
            "cache-control": "no-store",
            "x-content-type": format_.content_type,
            "x-whole": "true" if page.closed and len(data) <= PREVIEW_BYTES else "false",
            "content-disposition": "attachment",  # somebody else's bytes are never a page of this server's
        }
        return Response(data[:PREVIEW_BYTES], 200, headers, "application/octet-stream")

    async def download(self, exchange: Exchange, name: str) -> Response:
        """`?format=text` (the bytes as they are) or `ndjson`: all that the stream holds by now, as a file."""
        may_read(exchange, name)
        wanted = exchange.query("format") or "text"
        if wanted not in ("text", "ndjson"):
            raise NotAcceptable("a download is text (the bytes as they are) or ndjson")
        head = await self._streams.head(name)
        format_ = by_name(wanted, head.config.content_type)
        file = "".join(letter if letter.isalnum() and letter.isascii() else "_" for letter in name)
        ending = "ndjson" if wanted == "ndjson" else "bin"
        headers = {"cache-control": "no-store", "content-disposition": f'attachment; filename="{file[:100]}.{ending}"'}
        return StreamingResponse(self._pages(name, head, format_), 200, headers, "application/octet-stream")

    async def _pages(self, name: str, head: Head, format_: Format) -> AsyncIterator[bytes]:
        at = Offset(head.generation, head.start)
        while at.position < head.tail:
            page = await self._streams.read(name, at)
            shown = [message for message in page.messages if message.offset.position <= head.tail]
            yield format_.render(page._replace(messages=shown))
            at = page.next


def formats_of(name: str, head: Head) -> list[str]:
    """Names that `preview` knows for this stream."""
    return [*NAMES, "durable", *(_of_runs() if _is_run(name, head) else ())]


def _format(wanted: str, name: str, head: Head) -> Format:
    """Raises NotAcceptable."""
    if wanted in NAMES:
        return by_name(wanted, head.config.content_type)
    if wanted == "durable":
        return DurableEvents(head.config.content_type, "0")
    of_runs = _of_runs() if _is_run(name, head) else {}
    if wanted not in of_runs:
        raise NotAcceptable(f"there is no format {wanted[:40]!r} for this stream")
    return of_runs[wanted](name.partition("/")[2], head.labels.get("agent", ""))


def _is_run(name: str, head: Head) -> bool:
    return name.startswith("runs/") and head.labels.get("kind") == "run" and is_json(head.config.content_type)


def _of_runs() -> dict[str, Callable[[str, str], Format]]:
    """What needs the extra of runs is loaded where there are any."""
    from headwater.formats.agui_events import AguiEvents
    from headwater.formats.ai_sdk import UiMessageChunks
    from headwater.formats.langgraph import LangGraphEvents
    from headwater.formats.openai_chat import ChatChunks, ChatFold
    from headwater.formats.openai_responses import ResponseEvents, ResponseFold
    from headwater.formats.projection import ProjectedEvents
    from headwater.formats.run_text import RunText

    return {
        "run text": lambda run_id, agent: RunText(),
        "ag-ui": lambda run_id, agent: AguiEvents(),
        "ai-sdk": lambda run_id, agent: ProjectedEvents(UiMessageChunks(), run_id),
        "openai-responses": lambda run_id, agent: ResponseEvents(ResponseFold(run_id, agent)),
        "openai-chat": lambda run_id, agent: ChatChunks(ChatFold(run_id, agent)),
        "langgraph": lambda run_id, agent: LangGraphEvents(("messages-tuple", "values"), run_id),
    }


def _standing(head: Head) -> dict[str, Any]:
    return {
        "content_type": head.config.content_type,
        "generation": str(head.generation),
        "start": head.start,
        "tail": head.tail,
        "offset": str(head.offset),
        "closed": head.closed,
        "outcome": head.outcome,
    }


def _position(exchange: Exchange, default: int) -> int:
    text = exchange.query("from")
    if text is None:
        return default
    if not (text.isascii() and text.isdecimal() and len(text) <= 16):
        raise BadRequest("from is a position: how many messages come before it")
    return int(text)


def _json(said: object) -> Response:
    return Response(msgspec.json.encode(said), 200, {"cache-control": "no-store"}, "application/json")
