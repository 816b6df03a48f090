"""subscriptions/addresses.py and webhooks.py: where webhooks go, whose they are, and what can come back."""

import asyncio
import datetime
import gzip
import importlib
import ipaddress
import json
import socket
import ssl
import threading
from base64 import urlsafe_b64decode

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.hashes import SHA256

from headwater import Streams
from headwater.errors import MissingExtra
from headwater.subscriptions import addresses, webhooks
from headwater.subscriptions.addresses import checked, is_public, reachable
from headwater.subscriptions.refusals import WebhookUrlRejected
from headwater.subscriptions.webhooks import KEY_STREAM, Sender, Undelivered
from webhook_receiver import DONE, TAKEN, Receiver

HOME = ipaddress.ip_address("127.0.0.1")


@pytest.fixture
async def streams():
    async with Streams("memory:", clock=lambda: 1_700_000_000_000) as streams:
        yield streams


@pytest.fixture
async def sender(streams):
    sender = Sender(streams, loopback=True)
    yield sender
    await sender.aclose()


# -- where they go ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "url",
    [
        "https://hooks.example.com/x",
        "https://hooks.example.com:8443/x?y=1",
        "https://8.8.8.8/",
        "https://[2606:4700::1111]/x",
        "http://localhost:8080/x",
        "http://127.0.0.1:1/x",
        "http://127.0.0.9/x",
    ],
)
def test_addresses_that_are_taken(url):
    assert checked(url, loopback=True).authority in url


def test_a_target_is_what_the_address_says():
    assert checked("https://Hooks.Example.com/x?y#z", loopback=False) == (
        "https",
        "hooks.example.com",
        443,
        "hooks.example.com",
        "/x?y",
    )


@pytest.mark.parametrize(
    "url",
    [
        "http://hooks.example.com/x",  # not https
        "ftp://hooks.example.com/x",
        "hooks.example.com/x",
        "https://",
        "https://10.0.0.1/x",
        "https://172.16.0.1/x",
        "https://192.168.0.1/x",
        "https://169.254.169.254/latest/meta-data",
        "https://100.64.0.1/x",
        "https://127.0.0.1/x",
        "https://0.0.0.0/x",
        "https://224.0.0.1/x",
        "https://240.0.0.1/x",
        "https://255.255.255.255/x",
        "https://192.88.99.1/x",
        "https://localhost/x",
        "https://LOCALHOST/x",
        "https://localhost./x",
        "https://a.localhost/x",
        "https://hooks.example.com./x",
        "https://2130706433/x",  # 127.0.0.1 as one number
        "https://0x7f000001/x",
        "https://0x7f.1/x",
        "https://0177.0.0.1/x",
        "https://127.1/x",
        "https://127.0.0.1./x",
        "https://10.0.0.010/x",
        "https://[::1]/x",
        "https://[::]/x",
        "https://[fe80::1]/x",
        "https://[fe80::1%25eth0]/x",
        "https://[fc00::1]/x",
        "https://[ff02::1]/x",
        "https://[fec0::1]/x",
        "https://[::ffff:10.0.0.1]/x",
        "https://[::ffff:8.8.8.8]/x",  # mapped: an odd spelling, whatever it stands for
        "https://[::8.8.8.8]/x",
        "https://[2002:0a00:0001::]/x",  # 6to4
        "https://[2001:0:0a00:1::1]/x",  # Teredo
        "https://[64:ff9b::a00:1]/x",  # NAT64
        "https://[64:ff9b:1::a00:1]/x",
        "https://[2001:db8::1]/x",
        "https://user@hooks.example.com/x",
        "https://user:pass@hooks.example.com/x",
        "https://hooks.example.com@10.0.0.1/x",
        "https://10.0.0.1\\@hooks.example.com/x",
        "https://hooks.example.com:0/x",
        "https://hooks.example.com:/x",
        "https://hooks.example.com:99999/x",
        "https://hooks.example.com:x/x",
        "https://hooks example.com/x",
        "https://hooks.example.com/\n",
        " https://hooks.example.com/",
        "https://höoks.example.com/x",
        "https://%31%30.0.0.1/x",
        "https://①②⑦.0.0.1/x",
        "https://[10.0.0.1]/x",
        "https://[::1/x",
        "https://-a.example/x",
        "https://a..b/x",
        "http://10.0.0.1/hook",
        "http://[::1]/x",
        "http://127.1/x",
        "http://127.1.0.1/x",
        "http://localhost./x",
        "http://localhost.example.com/x",
        "http://127.0.0.1.example.com/x",
        "https://hooks.example.com/" + "x" * 2048,
    ],
)
def test_addresses_that_are_not_taken(url):
    with pytest.raises(WebhookUrlRejected):
        checked(url, loopback=True)


def test_this_machine_is_for_development_only():
    for url in ("http://localhost:8080/x", "http://127.0.0.1/x"):
        with pytest.raises(WebhookUrlRejected, match="https://"):
            checked(url, loopback=False)


async def test_what_a_name_stands_for_is_looked_at_all_of_it(monkeypatch):
    def stand_for(*texts):
        async def resolved(host, port):
            return [ipaddress.ip_address(text) for text in texts]

        monkeypatch.setattr(addresses, "resolved", resolved)

    public, local = checked("https://hooks.example.com/", loopback=True), checked("http://localhost/", loopback=True)
    stand_for("8.8.8.8", "2606:4700::1111")
    assert [str(address) for address in await reachable(public)] == ["8.8.8.8", "2606:4700::1111"]
    for texts in (["10.0.0.1"], ["8.8.8.8", "127.0.0.1"], ["8.8.8.8", "::ffff:8.8.8.8"]):
        stand_for(*texts)
        with pytest.raises(WebhookUrlRejected):
            await reachable(public)
    stand_for("127.0.0.1", "::1")
    assert len(await reachable(local)) == 2
    stand_for("127.0.0.1", "10.0.0.1")
    with pytest.raises(WebhookUrlRejected):
        await reachable(local)


async def test_the_systems_resolver_is_asked():
    target = checked("http://localhost:80/", loopback=True)
    assert HOME in await reachable(target)
    assert all(address.is_loopback and not is_public(address) for address in await reachable(target))


# -- whose they are ---------------------------------------------------------------------------------------------------


def verified(jwk, signature, body):
    """As a receiver would, from the published key alone; raises where it is wrong."""
    stamp, kid, signed = (part.partition("=")[2] for part in signature.split(","))
    assert kid == jwk["kid"]
    key = Ed25519PublicKey.from_public_bytes(urlsafe_b64decode(jwk["x"] + "="))
    key.verify(urlsafe_b64decode(signed + "=="), f"{stamp}.".encode() + body)
    return int(stamp)


async def test_the_key_is_made_once_for_all_processes(tmp_path):
    url = f"sqlite:///{tmp_path}/a.db"
    async with Streams(url) as one, Streams(url) as other:
        signers = await asyncio.gather(Sender(one).signer(), Sender(other).signer())
        assert signers[0].jwk == signers[1].jwk
        head = await one.head(KEY_STREAM)
        assert (head.tail, head.closed) == (1, True)
    async with Streams(url) as later:
        assert (await Sender(later).signer()).jwk == signers[0].jwk


def test_the_key_id_is_a_thumbprint():
    # The key and thumbprint of RFC 8037, A.2 and A.3.
    public = urlsafe_b64decode("11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo=")
    assert webhooks._jwk(public) == {
        "crv": "Ed25519",
        "kty": "OKP",
        "x": "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo",
        "kid": "ds_kPrK_qmxVWaYVA9wwBF6Iuo3vVzz7TxHCTwXBygrS4k",
        "use": "sig",
        "alg": "EdDSA",
    }


async def test_what_is_sent_is_signed(sender):
    async with Receiver(DONE) as receiver:
        assert await sender.post(receiver.url, b'{"wake":1}') is True
        webhook = await receiver.next()
    jwk = (await sender.signer()).jwk
    assert verified(jwk, webhook.headers["webhook-signature"], webhook.body) == 1_700_000_000
    assert (webhook.target, webhook.body) == ("/hook?a=b", b'{"wake":1}')
    assert webhook.headers["host"] == f"127.0.0.1:{receiver.port}"
    assert webhook.headers["content-type"] == "application/json"


# -- what comes back --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "done"),
    [
        (DONE, True),
        (TAKEN, False),
        ((204, b""), False),
        ((200, b'{"done":"true"}'), False),
        ((200, b"[true]"), False),
        ((200, b"\xff"), False),
        ((200, b'{"done":true' + b" " * 70_000 + b"}"), False),
        ((200, b'{"done":true' + b" " * 60_000 + b"}"), True),
        ((200, gzip.compress(b'{"done":true}')), False),
    ],
)
async def test_only_done_in_so_many_words_is_done(sender, answer, done):
    async with Receiver(answer) as receiver:
        assert await sender.post(receiver.url, b"{}") is done


@pytest.mark.parametrize("status", [302, 307, 400, 404, 500, 503])
async def test_every_other_answer_is_a_failure_and_no_redirect_is_followed(sender, status):
    async with Receiver((status, b"secret")) as receiver:
        with pytest.raises(Undelivered) as raised:
            await sender.post(receiver.url, b"{}")
    assert str(raised.value) == f"answered with status {status}"
    assert len(receiver.received) == 1


async def test_proxies_of_the_environment_are_not_used(sender, monkeypatch):
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    async with Receiver(DONE) as receiver:
        assert await sender.post(receiver.url, b"{}")


async def test_silence_is_a_failure(sender, monkeypatch):
    monkeypatch.setattr(webhooks, "ATTEMPT_SECONDS", 0.05)

    async def never(_):
        await asyncio.Event().wait()

    async with Receiver(never) as receiver:
        with pytest.raises(Undelivered, match="no answer within"):
            await sender.post(receiver.url, b"{}")


async def test_nobody_there_is_a_failure(sender):
    async with Receiver() as receiver:
        url = receiver.url
    with pytest.raises(Undelivered, match="ConnectError"):
        await sender.post(url, b"{}")


async def test_the_address_is_checked_again_before_sending(streams):
    sender = Sender(streams, loopback=False)
    async with Receiver() as receiver:
        with pytest.raises(Undelivered, match="https://"):
            await sender.post(receiver.url, b"{}")
        with pytest.raises(Undelivered, match="private, local or reserved"):
            await sender.post(f"https://127.0.0.1:{receiver.port}/", b"{}")
    assert receiver.received == []


@pytest.fixture(scope="module")
def authority(tmp_path_factory):
    """TLS for hooks.example.com: the server's side, and that of a client which trusts it."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "test")])
    start = datetime.datetime.now(datetime.UTC) - datetime.timedelta(days=1)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(start)
        .not_valid_after(start + datetime.timedelta(days=10))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("hooks.example.com")]), critical=False)
        .sign(key, SHA256())
    )
    path = tmp_path_factory.mktemp("tls") / "all.pem"
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    path.write_bytes(private + certificate.public_bytes(serialization.Encoding.PEM))
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(path)
    client = ssl.create_default_context(cafile=str(path))
    return server, client


async def at_home(_):
    """Stands for the resolver: the public name is this machine."""
    return [ipaddress.ip_address("127.0.0.2"), HOME]


async def test_the_certificate_is_that_of_the_name_though_a_number_is_connected_to(streams, authority):
    server, client = authority
    asked = []
    server.sni_callback = lambda _, name, __: asked.append(name)
    sender = Sender(streams, tls=client, reach=at_home)
    async with Receiver(DONE, tls=server) as receiver:
        # The first address refuses the connection; the second one takes it.
        assert await sender.post(f"https://hooks.example.com:{receiver.port}/x", b"{}")
        assert (await receiver.next()).headers["host"] == f"hooks.example.com:{receiver.port}"
        with pytest.raises(Undelivered, match="ConnectError"):
            await sender.post(f"https://other.example.com:{receiver.port}/x", b"{}")
    assert asked[0] == "hooks.example.com"
    assert len(receiver.received) == 1
    await sender.aclose()


async def test_a_certificate_nobody_vouches_for_is_not_enough(streams, authority):
    sender = Sender(streams, reach=at_home)
    async with Receiver(DONE, tls=authority[0]) as receiver:
        with pytest.raises(Undelivered):
            await sender.post(f"https://hooks.example.com:{receiver.port}/x", b"{}")
    assert receiver.received == []
    await sender.aclose()


@pytest.mark.parametrize("missing", ["httpx", "cryptography"])
async def test_without_its_packages_the_error_says_what_to_install(sender, monkeypatch, missing):
    monkeypatch.setattr(webhooks, "_MODULES", {})
    import_module = importlib.import_module

    def imported(name):
        if name.partition(".")[0] == missing:
            raise ImportError(name)
        return import_module(name)

    monkeypatch.setattr(importlib, "import_module", imported)
    with pytest.raises(MissingExtra, match=f"{missing} is not installed; run: pip install 'headwater\\[server\\]'"):
        await sender.check("https://hooks.example.com/")


async def test_what_is_kept_of_the_key_is_for_the_server_alone(streams, sender):
    await sender.signer()
    (name, _), *_ = await streams.list("headwater/")
    assert name == KEY_STREAM
    assert set(json.loads((await streams.read(KEY_STREAM)).messages[0].data)) == {"ed25519"}
    assert "ed25519" not in repr(sender) + repr(await sender.signer())


async def test_a_name_server_that_is_silent_holds_no_thread_of_the_applications(monkeypatch):
    silent = threading.Event()

    def wait(*_, **__):
        assert silent.wait(10)
        raise OSError

    monkeypatch.setattr(socket, "getaddrinfo", wait)
    looking = [asyncio.create_task(addresses.resolved("silent.example", 443)) for _ in range(50)]
    await asyncio.sleep(0)
    async with asyncio.timeout(5):
        assert await asyncio.to_thread(lambda: "at once") == "at once"
    silent.set()
    assert {type(error) for error in await asyncio.gather(*looking, return_exceptions=True)} == {OSError}
