"""One question at a time to a server, and its answer: for commands that look at more than streams.

Knows httpx and the errors; sends the key to that server alone.
"""

from __future__ import annotations

from types import TracebackType
from typing import Any, Final, Self

import httpx
import msgspec

from headwater.client import Unreachable
from headwater.client.answers import error_of
from headwater.client.asking import AT_HOME, Address
from headwater.client.reader import unreachable
from headwater.errors import BadRequest, HeadwaterError

ANSWER_SECONDS: Final = 10.0
"""Somebody sits and waits."""


class Asking:
    """A server. Use it with `with`."""

    def __init__(self, base_url: str, key: str | None) -> None:
        self._address = Address(base_url, key)
        self.base = str(self._address.base).rstrip("/")
        self._http = httpx.Client(timeout=ANSWER_SECONDS, mounts=AT_HOME)

    def __repr__(self) -> str:
        return f"<Asking {self.base}>"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, _: object, __: TracebackType | None) -> None:
        self._http.close()

    def get(self, path_or_url: str, query: dict[str, str] | None = None) -> httpx.Response:
        """What is there. Raises Unreachable, and what the server's answer of 300 or above means."""
        try:
            url = httpx.URL(f"{self.base}{path_or_url}" if path_or_url.startswith("/") else path_or_url)
            url = url.copy_merge_params(query or {})
            response = self._http.get(url, headers=self._address.credentials(url))
        except (httpx.UnsupportedProtocol, httpx.LocalProtocolError, httpx.InvalidURL) as error:
            raise BadRequest(f"this request cannot be sent: {error}") from error
        except httpx.RequestError as error:
            raise unreachable(url, error) from error
        if response.status_code >= 300:
            raise error_of(response.status_code, response.content)
        return response

    def json(self, path_or_url: str, query: dict[str, str] | None = None) -> dict[str, Any]:
        """The object that is there."""
        try:
            return msgspec.json.decode(self.get(path_or_url, query).content, type=dict[str, Any])
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise HeadwaterError(f"{self.base} does not answer like a Headwater server") from error

    def facts(self, name: str) -> dict[str, Any]:
        """What is known of a stream. Raises StreamNotFound, and BadRequest for a name that can be none."""
        return self.json(str(self._address.facts(name)))


def helped(error: Unreachable) -> Unreachable:
    """The same with what to do about it."""
    return Unreachable(f"{error}; start a server with `headwater serve`, or name another with --server URL")
