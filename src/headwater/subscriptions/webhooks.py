"""Webhooks: a wake told by POST, signed so that the receiver knows whose it is (7.1).

The key pair is kept in the store, made once by whoever needs it first, so that all processes sign alike, and receivers
learn the public half from `__ds/jwks.json`.

Knows the network by httpx, signatures by cryptography; both are loaded when the first webhook is used. Nothing of an
answer but its status and whether it says `done` gets further. What is sent goes to checked addresses only, follows no
redirect and uses no proxy of the environment.
"""

from __future__ import annotations

import asyncio
import hashlib
import importlib
import ssl
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any, Final

import msgspec

from headwater.decide import Create, Item
from headwater.errors import HeadwaterError, MissingExtra
from headwater.model import Config, Retention
from headwater.streams import Streams
from headwater.subscriptions.addresses import Address, Target, checked, reachable
from headwater.subscriptions.refusals import WebhookUrlRejected

if TYPE_CHECKING:
    import httpx
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

KEY_STREAM: Final = "headwater/signing-key"

ATTEMPT_SECONDS: Final = 10.0
"""From looking up the name to the end of the answer."""

MOST_ANSWER_BYTES: Final = 64 * 1024
"""Read of an answer; one that is longer says nothing to us."""

MOST_ADDRESSES: Final = 4
"""Tried, where a name has several."""

_MODULES: Final[dict[str, Any]] = {}

Reach = Callable[[Target], Awaitable[list[Address]]]


class Undelivered(HeadwaterError):
    """A wake could not be told of; it is tried again later. Its text is for logs."""


class Signer:
    """The server's key for webhooks."""

    def __init__(self, private: Ed25519PrivateKey) -> None:
        self._private = private
        self.jwk = _jwk(private.public_key().public_bytes_raw())
        """The public half (RFC 8037)."""

    def __repr__(self) -> str:
        return f"<Signer {self.kid}>"

    @property
    def kid(self) -> str:
        return self.jwk["kid"]

    @classmethod
    async def of(cls, streams: Streams) -> Signer:
        """The store's key, made now if it has none. Raises MissingExtra."""
        module = await _loaded("cryptography.hazmat.primitives.asymmetric.ed25519")
        kind: type[Ed25519PrivateKey] = module.Ed25519PrivateKey
        fresh = _text(kind.generate().private_bytes_raw())
        # Whoever creates it first has made the key: a stream that is there is not changed by being created again.
        first = Item(msgspec.json.encode({"ed25519": fresh}))
        await streams.carry_out(KEY_STREAM, Create(Config("application/json", retention=Retention()), [first], True))
        page = await streams.read(KEY_STREAM)
        kept = msgspec.json.decode(page.messages[0].data)["ed25519"]
        return cls(kind.from_private_bytes(_bytes(kept)))

    def signature(self, body: bytes, seconds: int) -> str:
        """The `Webhook-Signature` of `body`, sent at this time (s since 1970)."""
        signed = self._private.sign(f"{seconds}.".encode() + body)
        return f"t={seconds},kid={self.kid},ed25519={_text(signed)}"


def _jwk(public: bytes) -> dict[str, str]:
    required = {"crv": "Ed25519", "kty": "OKP", "x": _text(public)}
    thumbprint = hashlib.sha256(msgspec.json.encode(required)).digest()  # (RFC 7638): these members, in this order
    return {**required, "kid": f"ds_{_text(thumbprint)}", "use": "sig", "alg": "EdDSA"}


class Sender:
    """Sends webhooks from this process."""

    def __init__(
        self,
        streams: Streams,
        *,
        loopback: bool = False,
        tls: ssl.SSLContext | None = None,
        reach: Reach = reachable,
    ) -> None:
        """`loopback`: plain http to this machine is allowed; `tls`: whom to trust, None: the usual authorities."""
        self.loopback = loopback
        self._streams, self._tls, self._reach = streams, tls, reach
        self._signer: Signer | None = None
        self._http: httpx.AsyncClient | None = None

    def __repr__(self) -> str:
        return f"<Sender [{'loopback allowed' if self.loopback else 'https only'}]>"

    async def check(self, url: str) -> None:
        """Raises WebhookUrlRejected, and MissingExtra where webhooks cannot be sent."""
        checked(url, loopback=self.loopback)
        await _loaded("httpx")
        await self.signer()

    async def signer(self) -> Signer:
        """The store's key. Raises MissingExtra."""
        if self._signer is None:
            self._signer = await Signer.of(self._streams)
        return self._signer

    async def post(self, url: str, body: bytes) -> bool:
        """Send `body`, signed; whether the answer says that all is done. Raises Undelivered."""
        httpx = await _loaded("httpx")
        headers = {"webhook-signature": (await self.signer()).signature(body, self._streams.clock() // 1000)}
        try:
            async with asyncio.timeout(ATTEMPT_SECONDS):
                target = checked(url, loopback=self.loopback)
                addresses = await self._reach(target)
                return await self._tried(target, addresses, body, headers)
        except TimeoutError:
            raise Undelivered(f"no answer within {ATTEMPT_SECONDS:g} s") from None
        except WebhookUrlRejected as error:
            raise Undelivered(str(error)) from None
        except (httpx.HTTPError, httpx.InvalidURL, OSError) as error:
            raise Undelivered(type(error).__name__) from None

    async def _tried(self, target: Target, addresses: list[Address], body: bytes, headers: Mapping[str, str]) -> bool:
        """One address after the other, until one takes the connection."""
        httpx = await _loaded("httpx")
        last: Exception = Undelivered("the name of this host stands for no address")
        for address in addresses[:MOST_ADDRESSES]:
            try:
                return await self._post(target, address, body, headers)
            except (httpx.ConnectError, httpx.ConnectTimeout) as error:
                last = error
        raise last

    async def _post(self, target: Target, address: Address, body: bytes, headers: Mapping[str, str]) -> bool:
        http = await self._client()
        host = f"[{address}]" if address.version == 6 else str(address)
        sent = {**headers, "host": target.authority, "content-type": "application/json"}
        # Connects to the number that was checked; the certificate has to be that of the name none the less.
        async with http.stream(
            "POST",
            f"{target.scheme}://{host}:{target.port}{target.path}",
            content=body,
            headers=sent,
            extensions={"sni_hostname": target.host},
        ) as answer:
            if not answer.is_success:
                raise Undelivered(f"answered with status {answer.status_code}")
            return _says_done(await _beginning(answer))

    async def _client(self) -> httpx.AsyncClient:
        if self._http is None:
            module = await _loaded("httpx")
            made = await asyncio.to_thread(self._made, module)  # reads the authorities' certificates from disk
            if self._http is None:
                self._http = made
        return self._http

    def _made(self, module: Any) -> httpx.AsyncClient:
        # Connections are not kept: the next wake may find another address behind the name.
        limits = module.Limits(max_keepalive_connections=0)
        made: httpx.AsyncClient = module.AsyncClient(
            verify=self._tls or True,
            trust_env=False,
            follow_redirects=False,
            limits=limits,
            timeout=ATTEMPT_SECONDS,
            headers={"user-agent": "headwater", "accept": "application/json", "accept-encoding": "identity"},
        )
        return made

    async def aclose(self) -> None:
        http, self._http = self._http, None
        if http is not None:
            await http.aclose()


async def _beginning(answer: httpx.Response) -> bytes:
    """The body of an answer; nothing of one that is too long."""
    body = b""
    async for chunk in answer.aiter_raw():  # as it came: what is unpacked could be any size
        body += chunk
        if len(body) > MOST_ANSWER_BYTES:
            return b""
    return body


def _says_done(body: bytes) -> bool:
    try:
        said: Any = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return False
    return isinstance(said, dict) and said.get("done") is True


async def _loaded(name: str) -> Any:
    """A module of an optional package. Raises MissingExtra."""
    if name not in _MODULES:  # not sys.modules, where it is before it is whole
        try:
            _MODULES[name] = await asyncio.to_thread(importlib.import_module, name)
        except ImportError as error:
            raise MissingExtra("server", name.partition(".")[0]) from error
    return _MODULES[name]


def _text(data: bytes) -> str:
    return urlsafe_b64encode(data).rstrip(b"=").decode()


def _bytes(text: str) -> bytes:
    return urlsafe_b64decode(text + "=" * (-len(text) % 4))
