"""What is asked of a server: addresses, headers and bodies, for the asynchronous client and the synchronous one. Pure.

Knows the paths and headers of Durable Streams. Sends nothing.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Any, Final, NamedTuple
from urllib.parse import quote, unquote

import msgspec

from headwater.client.answers import ConditionIgnored
from headwater.errors import BadRequest, MissingExtra
from headwater.model import Retention
from headwater.wire import durable
from headwater.wire.values import to_bytes

try:
    import httpx
except ImportError as error:
    raise MissingExtra("server", "httpx") from error

STREAMS: Final = "/v1/stream/"
LISTED: Final = "/v1/streams"
JSON: Final = "application/json"

ANSWER_SECONDS: Final = 30.0
"""For anything but following: an append waits for a disk, nothing more."""

# What is on this machine is never behind a proxy.
AT_HOME: Final = dict.fromkeys(("all://localhost", "all://127.0.0.1", "all://[::1]"))

_VISIBLE: Final = re.compile(r"[\x21-\x7e]([\x20-\x7e]*[\x21-\x7e])?")


class Ask(NamedTuple):
    """One request about a stream."""

    method: str
    path: str
    """The stream's name, or its URL."""
    headers: dict[str, str]
    content: bytes = b""


class Address:
    """Where a server is, and the key that it alone is sent."""

    def __init__(self, base_url: str, key: str | None) -> None:
        if key and not _VISIBLE.fullmatch(key):
            raise BadRequest("a key is made of visible ASCII characters; this one is not")
        self.base = checked(base_url)
        self._key = key

    def stream(self, path_or_url: str) -> httpx.URL:
        """Where a stream is. Raises BadRequest for a name that can be none."""
        if path_or_url.startswith(("http://", "https://")):
            _stays(re.split(r"[?#]", path_or_url, maxsplit=1)[0])
            return checked(path_or_url)
        return self._at(STREAMS + _quoted(path_or_url))

    def facts(self, path: str) -> httpx.URL:
        """Where the server says what it knows of a stream."""
        if path.startswith(("http://", "https://")):
            raise BadRequest("give the stream's name, like chat/42, not its URL")
        return self._at(f"{LISTED}/{_quoted(path)}")

    def listing(self, query: dict[str, str]) -> httpx.URL:
        """Where it lists its streams."""
        return self._at(LISTED).copy_with(params=query)

    def quality(self) -> httpx.URL:
        """Where the server is told how the service was."""
        return self._at("/v1/quality")

    def _at(self, path: str) -> httpx.URL:
        mount = self.base.raw_path.partition(b"?")[0].rstrip(b"/")
        return self.base.copy_with(raw_path=mount + path.encode())

    def credentials(self, url: httpx.URL) -> dict[str, str]:
        mine = (url.scheme, url.host, url.port) == (self.base.scheme, self.base.host, self.base.port)
        return {"authorization": f"Bearer {self._key}"} if self._key and mine else {}


def create(
    path: str,
    values: tuple[Any, ...],
    *,
    content_type: str | None,
    ttl: int | None,
    expires_at: datetime | int | None,
    retention: Retention | None = None,
    closed: bool,
) -> Ask:
    if ttl is not None and expires_at is not None:
        raise BadRequest("give ttl or expires_at, not both")
    headers = {} if content_type is None else {"content-type": content_type}
    if ttl is not None:
        headers["stream-ttl"] = str(ttl)
    if expires_at is not None:
        headers["stream-expires-at"] = _moment(expires_at)
    if retention is not None:
        headers["stream-retention"] = durable.retention_text(retention)
        durable.parse_retention(headers["stream-retention"])  # other servers would not say what is wrong with it
    if closed:
        headers["stream-closed"] = "true"
    return Ask("PUT", path, headers, body(values, content_type or ""))


def fork(ask: Ask, source: httpx.URL, offset: str | None, sub_offset: int | None) -> Ask:
    """The creation `ask`, as a fork (4.2)."""
    headers = {**ask.headers, "stream-forked-from": source.raw_path.decode("ascii")}
    if offset is not None:
        headers["stream-fork-offset"] = offset
    if sub_offset is not None:
        headers["stream-fork-sub-offset"] = str(sub_offset)
    return ask._replace(headers=headers)


def append(path: str, values: tuple[Any, ...], *, content_type: str, close: bool, if_match: str | None) -> Ask:
    headers = {"content-type": content_type}
    if close:
        headers["stream-closed"] = "true"
    if if_match is not None:
        headers["if-match"] = f'"{if_match}"'
    return Ask("POST", path, headers, body(values, content_type))


def close(path: str, outcome: str | None) -> Ask:
    return Ask("POST", path, {"stream-closed": "true"} | outcome_header(outcome))


def outcome_header(outcome: str | None) -> dict[str, str]:
    """How the stream ended: a header of Headwater's, which other servers skip."""
    return {} if outcome is None else {"stream-outcome": visible("an outcome", outcome)}


def visible(what: str, text: str) -> str:
    """`text`, which can stand in a header. Raises BadRequest."""
    if not _VISIBLE.fullmatch(text):
        raise BadRequest(f"{what} is made of visible ASCII characters; {text!r} is not")
    return text


def body(values: tuple[Any, ...], content_type: str) -> bytes:
    """JSON goes as an array, which a server takes apart by one level: so a list is still one message."""
    if is_json(content_type):
        parts = [message(value, content_type) for value in values]
        return b"[%s]" % b",".join(parts) if parts else b""
    if len(values) > 1:
        raise BadRequest(f"one append to a stream of {content_type} is one message")
    return b"".join([to_bytes(value) for value in values])


def message(value: Any, content_type: str) -> bytes:
    """The bytes of one message: bytes and str as they are, anything else as JSON. Raises BadRequest, TypeError."""
    data = to_bytes(value)
    if is_json(content_type):
        try:
            msgspec.json.decode(data, type=msgspec.Raw)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise BadRequest('the message is not valid JSON (a text stands in quotes: "hello")') from error
    return data


def offset_after(response: httpx.Response, if_match: str | None = None) -> str:
    """Where an append or a closing says that the stream now ends. Raises ConditionIgnored."""
    offset = response.headers.get("stream-next-offset", "")
    if if_match is not None and "etag" not in response.headers:  # who compares says what to compare next
        raise ConditionIgnored(
            "the append was carried out unconditionally: this server ignores if_match, which Headwater servers know",
            offset=offset,
        )
    return str(offset)


def is_json(content_type: str) -> bool:
    return content_type.partition(";")[0].strip().lower() == JSON


def checked(url: str) -> httpx.URL:
    """A server's URL. Raises BadRequest."""
    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL as error:
        raise BadRequest(f"{url!r} is not a URL: {error}") from error
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise BadRequest(f"{url!r} is not the URL of a server; one looks like http://127.0.0.1:4437")
    return parsed


def _quoted(name: str) -> str:
    """A stream's name as a path: whatever has a meaning in a URL is part of the name there. Raises BadRequest."""
    if not name:
        raise BadRequest("name a stream, like chat/42")
    _stays(name)
    try:
        return quote(name)
    except UnicodeEncodeError as error:
        raise BadRequest(f"a stream's name is text; {name!r} is not") from error


def _stays(path: str) -> None:
    """Raises BadRequest for a path that leads elsewhere: clients, proxies and servers would take it for another."""
    if not {".", ".."}.isdisjoint([*path.split("/"), *unquote(path).split("/")]):
        raise BadRequest(f"a stream's name has no segments . or .. (nor %2e): {path!r} would lead to another stream")


def _moment(at: datetime | int) -> str:
    """RFC 3339. An int is ms since 1970; a datetime without a zone could mean any hour, and is refused."""
    if isinstance(at, int):
        at = datetime.fromtimestamp(at / 1000, UTC)
    elif at.tzinfo is None:
        raise BadRequest("expires_at needs a time zone, like datetime.now(UTC) has")
    return at.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
