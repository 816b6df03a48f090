"""Who may do what: one seam, `authorize(principal, action, stream)`, that every action over HTTP passes.

Without a key file the door is open to whoever reaches the socket, which is why `headwater serve` then binds to
loopback only. With one (`--auth keys.toml`) each request carries `Authorization: Bearer <key>`:

    [[key]]
    name = "front end"                  # the principal, shown in logs
    sha256 = "9f86d081…"                # of the key; or `secret = "…"` where the file itself is kept secret
    actions = ["read"]                  # create append close read delete list start cancel approve subscribe observe
    streams = ["chat/*", "runs/*"]      # shell patterns of stream names; either left out: all

To start an agent takes `start` for `runs/<its name>`, to answer what a run asks `approve` for its stream, to list takes
`list` for the prefix that is asked for. To subscribe takes `subscribe` and `read` for all that a subscription's pattern
can ever mean, and `append` for its wake stream. To see the server's metrics takes
`observe` for `headwater/metrics`.

Knows the errors. No secret ever gets into a message or a repr.
"""

from __future__ import annotations

import abc
import hashlib
import tomllib
from collections.abc import Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, ClassVar, Final, Literal, NamedTuple, get_args

from headwater.errors import BadRequest, Forbidden, Unauthorized
from headwater.subscriptions.globs import covered, shapes

Action = Literal[
    "create", "append", "close", "read", "delete", "list", "start", "cancel", "approve", "subscribe", "observe"
]  # fmt: skip
ACTIONS: Final[frozenset[str]] = frozenset(get_args(Action))


class Principal(NamedTuple):
    """Who asks, and what was granted."""

    name: str
    actions: frozenset[str] = ACTIONS
    streams: tuple[str, ...] = ("*",)


class Auth(abc.ABC):
    """The seam: from a request to a principal, and from a principal to yes or no."""

    open_to_all: ClassVar[bool] = False
    """Everybody may read everything, so that shared caches may keep what is read."""

    @abc.abstractmethod
    def authenticate(self, headers: Mapping[str, str]) -> Principal:
        """Who sends these headers (lower-case names). Raises Unauthorized."""

    def authorize(self, principal: Principal, action: Action, stream: str) -> None:
        """Raises Forbidden unless `principal` may do `action` to `stream`."""
        if not self.allows(principal, action, stream):
            raise Forbidden(f"this key does not allow to {action} here")

    def allows(self, principal: Principal, action: Action, stream: str) -> bool:
        return action in principal.actions and any(fnmatchcase(stream, pattern) for pattern in principal.streams)

    def authorize_all(self, principal: Principal, action: Action, pattern: str) -> None:
        """Raises Forbidden unless `principal` surely may do `action` to every stream that the pattern can mean."""
        for shape in shapes(pattern):
            self.authorize(principal, action, shape)  # so that whoever has rules of another kind is asked, too
        if not covered(pattern, principal.streams):
            raise Forbidden(f"this key does not allow to {action} all that the pattern can mean")


ANYONE: Final = Principal("anyone")


class OpenDoor(Auth):
    """No keys: everybody is the same principal and may do everything."""

    open_to_all = True

    def __repr__(self) -> str:
        return "<OpenDoor>"

    def authenticate(self, headers: Mapping[str, str]) -> Principal:
        return ANYONE

    def allows(self, principal: Principal, action: Action, stream: str) -> bool:
        return True


class Keys(Auth):
    """API keys, compared by their SHA-256, so that the time a look-up takes says nothing about a key."""

    def __init__(self, principals: Mapping[str, Principal]) -> None:
        """`principals` by the SHA-256 of the key, in lower-case hex."""
        self._principals = dict(principals)

    def __repr__(self) -> str:
        return f"<Keys [{len(self._principals)} keys]>"

    @classmethod
    def from_file(cls, path: str) -> Keys:
        """Read a key file. Raises BadRequest that says what is wrong in it."""
        try:
            entries = tomllib.loads(Path(path).read_text("utf-8")).get("key", [])
        except OSError as error:
            raise BadRequest(f"the key file {path} cannot be read") from error
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise BadRequest(f"the key file {path} is not valid TOML") from error
        if not isinstance(entries, list) or not entries:
            raise BadRequest(f"the key file {path} has no [[key]] entry")
        principals: dict[str, Principal] = {}
        for number, entry in enumerate(entries, start=1):
            digest, principal = _entry(entry, number)
            if digest in principals:
                raise BadRequest(f"key {number} of the key file: is the same as that of {principals[digest].name!r}")
            principals[digest] = principal
        return cls(principals)

    def authenticate(self, headers: Mapping[str, str]) -> Principal:
        scheme, _, key = headers.get("authorization", "").partition(" ")
        principal = self._principals.get(hashlib.sha256(key.strip().encode()).hexdigest())
        if scheme.lower() != "bearer" or principal is None:
            raise Unauthorized("send a valid key: Authorization: Bearer <key>")
        return principal


def _entry(entry: Any, number: int) -> tuple[str, Principal]:
    """One [[key]] table: the hash it is found by, and whom it names."""

    def wrong(what: str) -> BadRequest:
        return BadRequest(f"key {number} of the key file: {what}")

    if not isinstance(entry, dict):
        raise wrong("is not a table")
    unknown = set(entry) - {"name", "sha256", "secret", "actions", "streams"}
    if unknown:
        raise wrong(f"unknown setting {sorted(unknown)[0]!r}")
    secret, digest = entry.get("secret"), entry.get("sha256")
    if (secret is None) == (digest is None):
        raise wrong("needs either `secret` or `sha256`")
    if secret is not None:
        if not isinstance(secret, str) or len(secret) < 16:
            raise wrong("a secret is a text of at least 16 characters")
        digest = hashlib.sha256(secret.encode()).hexdigest()
    digest = str(digest).lower()
    if len(digest) != 64 or not set(digest) <= set("0123456789abcdef"):
        raise wrong("`sha256` is 64 hexadecimal digits")
    actions, streams = entry.get("actions", sorted(ACTIONS)), entry.get("streams", ["*"])
    if not isinstance(actions, list) or not all(isinstance(one, str) and one in ACTIONS for one in actions):
        raise wrong(f"`actions` is a list out of {', '.join(sorted(ACTIONS))}")
    if not isinstance(streams, list) or not all(isinstance(pattern, str) for pattern in streams):
        raise wrong("`streams` is a list of patterns")
    return digest, Principal(str(entry.get("name", f"key {number}")), frozenset(actions), tuple(streams))
