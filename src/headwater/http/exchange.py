"""One HTTP request and what a resource needs of it: headers, query, body within bounds, and who asks.

Knows ASGI, the auth seam and the errors. Resources get an Exchange and give a Response, or hand the connection to
delivery.
"""

from __future__ import annotations

import re
from typing import Final
from urllib.parse import parse_qsl

import msgspec
from starlette.datastructures import Headers

from headwater.delivery import Receive, Scope, Send
from headwater.errors import BadRequest, TooLarge
from headwater.http.admission import place
from headwater.http.auth import Action, Auth, Principal
from headwater.wire.durable import unescaped

_DIGITS: Final = re.compile(r"[0-9]{1,16}", re.ASCII)


class Exchange:
    """A request on its way through the application."""

    def __init__(self, scope: Scope, receive: Receive, send: Send, auth: Auth) -> None:
        self.scope, self.receive, self.send = scope, receive, send
        self.method: str = scope["method"]
        self.headers = Headers(scope=scope)
        self.auth = auth
        self._principal: Principal | None = None
        self._query: dict[str, list[str]] | None = None

    def __repr__(self) -> str:
        return f"<Exchange {self.method} {self.scope['path']!r}>"

    @property
    def path(self) -> str:
        """The path within this application, wherever it is mounted; `%2F` counts as the slash it stands for.

        Raises BadRequest where its escapes are no UTF-8: servers put the same character for all of those.
        """
        raw = self.scope.get("raw_path") or b""
        if b"%" in raw and unescaped(raw.decode("latin-1")) is None:
            raise BadRequest("the escapes of this address are no UTF-8")
        path: str = self.scope["path"]
        return path.removeprefix(self.prefix)

    @property
    def prefix(self) -> str:
        """Where this application is mounted: empty, or like `/headwater`."""
        return str(self.scope.get("root_path", ""))

    @property
    def principal(self) -> Principal:
        """Who asks. Raises Unauthorized."""
        if self._principal is None:
            self._principal = self.auth.authenticate(self.headers)
        return self._principal

    @property
    def client(self) -> str:
        """Whom limits count: the principal, or the network address where everybody is the same one."""
        return place(self.scope.get("client")) if self.auth.open_to_all else self.principal.name

    def authorize(self, action: Action, stream: str) -> None:
        """The seam that every action passes. Raises Unauthorized or Forbidden."""
        self.auth.authorize(self.principal, action, stream)

    def allows(self, action: Action, stream: str) -> bool:
        return self.auth.allows(self.principal, action, stream)

    def query(self, name: str) -> str | None:
        """A query parameter, None where it is absent. Raises BadRequest where it stands twice."""
        if self._query is None:
            self._query = {}
            for key, value in self._pairs():
                self._query.setdefault(key, []).append(value)
        values = self._query.get(name, [])
        if len(values) > 1:
            raise BadRequest(f"{name} is given more than once")
        return values[0] if values else None

    def _pairs(self) -> list[tuple[str, str]]:
        try:
            return parse_qsl(self.scope["query_string"].decode("latin-1"), keep_blank_values=True, errors="strict")
        except UnicodeDecodeError as error:
            raise BadRequest("the escapes of this query are no UTF-8") from error

    async def body(self, most: int) -> bytes:
        """The whole body. Raises TooLarge beyond `most` bytes, before it is held in memory."""
        too_large = TooLarge(f"a body may have {most:,} bytes; send more than one, or keep large things elsewhere")
        length = self.headers.get("content-length", "0")
        if length.isdecimal() and int(length) > most:
            raise too_large
        chunks: list[bytes] = []
        size, more = 0, True
        while more:
            event = await self.receive()
            if event["type"] == "http.disconnect":
                raise BadRequest("the client left before its body had arrived")
            chunks.append(event.get("body", b""))
            size += len(chunks[-1])
            if size > most:
                raise too_large
            more = event.get("more_body", False)
        return b"".join(chunks)

    async def json(self, most: int) -> dict[str, object]:
        """The body as a JSON object. Raises BadRequest."""
        try:
            value = msgspec.json.decode(await self.body(most))
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise BadRequest("the body is not valid JSON, or nested too deeply") from error
        if not isinstance(value, dict):
            raise BadRequest("the body is a JSON object")
        return value

    def whole_number(self, name: str, default: int, most: int) -> int:
        """A query parameter from 1 to `most`. Raises BadRequest."""
        text = self.query(name)
        if text is None:
            return default
        if not _DIGITS.fullmatch(text) or not 1 <= int(text) <= most:
            raise BadRequest(f"{name} is a whole number from 1 to {most}")
        return int(text)
