"""http/auth.py: key files, and that every route passes the one seam."""

import hashlib

import pytest

from headwater.errors import BadRequest, Forbidden, Unauthorized
from headwater.http.auth import ACTIONS, Auth, Keys, OpenDoor, Principal
from headwater.testing import virtual_time
from http_site import Site, open_site

KEY = "a-key-of-some-length"
OTHER = "another-key-of-some-length"
DIGEST = hashlib.sha256(KEY.encode()).hexdigest()


def keys_from(tmp_path, text: str) -> Keys:
    path = tmp_path / "keys.toml"
    path.write_text(text)
    return Keys.from_file(str(path))


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


# -- the key file -----------------------------------------------------------------------------------------------------


def test_a_key_file_names_principals_by_secret_or_digest(tmp_path):
    keys = keys_from(
        tmp_path,
        f"""
        [[key]]
        name = "front end"
        sha256 = "{DIGEST.upper()}"
        actions = ["read"]
        streams = ["chat/*", "runs/?"]
        [[key]]
        secret = "{OTHER}"
        """,
    )
    assert keys.authenticate(bearer(KEY)) == Principal("front end", frozenset({"read"}), ("chat/*", "runs/?"))
    assert keys.authenticate({"authorization": f"bearer  {OTHER} "}) == Principal("key 2", ACTIONS, ("*",))
    assert repr(keys) == "<Keys [2 keys]>"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "has no \\[\\[key\\]\\] entry"),
        ("key = []", "has no"),
        ('key = "x"', "has no"),
        ("[[key]", "is not valid TOML"),
        ("key = [1]", "key 1 of the key file: is not a table"),
        ('[[key]]\nname = "x"', "needs either `secret` or `sha256`"),
        (f'[[key]]\nsecret = "{KEY}"\nsha256 = "{DIGEST}"', "needs either"),
        ('[[key]]\nsecret = "short"', "at least 16 characters"),
        ("[[key]]\nsecret = 12345678901234567", "a secret is a text"),
        ('[[key]]\nsha256 = "abc"', "64 hexadecimal digits"),
        (f'[[key]]\nsha256 = "{"g" * 64}"', "64 hexadecimal digits"),
        (f'[[key]]\nsha256 = "{DIGEST}"\nactions = ["write"]', "`actions` is a list out of"),
        (f'[[key]]\nsha256 = "{DIGEST}"\nactions = "read"', "`actions` is a list out of"),
        (f'[[key]]\nsha256 = "{DIGEST}"\nactions = [["read"]]', "`actions` is a list out of"),
        (f'[[key]]\nsha256 = "{DIGEST}"\nstreams = "chat/*"', "`streams` is a list"),
        (f'[[key]]\nsha256 = "{DIGEST}"\nstreams = [1]', "`streams` is a list"),
        (f'[[key]]\nsha256 = "{DIGEST}"\nstream = ["x"]', "unknown setting 'stream'"),
        (
            f'[[key]]\nname = "a"\nsha256 = "{DIGEST}"\n[[key]]\nsecret = "{KEY}"',
            "key 2 of the key file: is the same as that of 'a'",
        ),
    ],
)
def test_a_key_file_with_a_mistake_says_which_and_shows_no_secret(tmp_path, text, said):
    with pytest.raises(BadRequest, match=said) as raised:
        keys_from(tmp_path, text)
    for secret in (KEY, "short", "12345678901234567", DIGEST):
        assert secret not in str(raised.value)


def test_a_key_file_that_cannot_be_read(tmp_path):
    with pytest.raises(BadRequest, match="cannot be read"):
        Keys.from_file(str(tmp_path / "none.toml"))
    with pytest.raises(BadRequest, match="cannot be read"):
        Keys.from_file(str(tmp_path))
    (tmp_path / "latin.toml").write_bytes(b'[[key]]\nname = "\xe9"')
    with pytest.raises(BadRequest, match="not valid TOML"):
        Keys.from_file(str(tmp_path / "latin.toml"))


# -- the seam ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"authorization": ""},
        {"authorization": KEY},
        {"authorization": f"Basic {KEY}"},
        bearer("wrong"),
        bearer(""),
        bearer(DIGEST),
    ],
)
def test_who_has_no_valid_key_is_nobody(headers):
    with pytest.raises(Unauthorized) as raised:
        Keys({DIGEST: Principal("x")}).authenticate(headers)
    assert KEY not in str(raised.value)
    assert "wrong" not in str(raised.value)


@pytest.mark.parametrize(
    ("actions", "patterns", "action", "stream", "allowed"),
    [
        ({"read"}, ("*",), "read", "a/b/c", True),
        ({"read"}, ("*",), "append", "a", False),
        (ACTIONS, ("chat/*",), "read", "chat/1", True),
        (ACTIONS, ("chat/*",), "read", "chat/1/2", True),
        (ACTIONS, ("chat/*",), "read", "chats", False),
        (ACTIONS, ("chat/*",), "read", "Chat/1", False),
        (ACTIONS, ("chat/*",), "read", "x/chat/1", False),
        (ACTIONS, ("a", "b?"), "read", "b1", True),
        (ACTIONS, ("a", "b?"), "read", "b12", False),
        (ACTIONS, (), "read", "a", False),
        (set(), ("*",), "read", "a", False),
    ],
)
def test_an_action_needs_its_right_and_a_pattern(actions, patterns, action, stream, allowed):
    keys, principal = Keys({}), Principal("x", frozenset(actions), patterns)
    assert keys.allows(principal, action, stream) is allowed
    if not allowed:
        with pytest.raises(Forbidden, match=action):
            keys.authorize(principal, action, stream)


def test_the_open_door_lets_everybody_do_everything():
    door = OpenDoor()
    principal = door.authenticate({})
    assert all(door.allows(principal, action, "x") for action in ACTIONS)
    assert repr(door) == "<OpenDoor>"


# -- every route ------------------------------------------------------------------------------------------------------


class Silent:
    """A source that says nothing and ends."""

    name = "silent"

    async def run(self, input, sink):  # noqa: A002
        return None


PLAIN = {"content_type": "text/plain"}
START = '{"agent": "silent", "input": "hi"}'
ROUTES = [
    # method, path, body, headers, the rights it takes
    ("PUT", "/v1/stream/new", "", PLAIN, {"create"}),
    ("POST", "/v1/stream/s", "x", PLAIN, {"append"}),
    ("POST", "/v1/stream/s", "", {"stream_closed": "true"}, {"close"}),
    ("POST", "/v1/stream/s", "x", PLAIN | {"stream_closed": "true"}, {"append", "close"}),
    ("GET", "/v1/stream/s", "", {}, {"read"}),
    ("GET", "/v1/stream/s?offset=now&live=long-poll", "", {}, {"read"}),
    ("GET", "/v1/stream/closed?offset=-1&live=sse", "", {}, {"read"}),
    ("GET", "/v1/stream/closed?format=sse", "", {}, {"read"}),
    ("HEAD", "/v1/stream/s", "", {}, {"read"}),
    ("DELETE", "/v1/stream/s", "", {}, {"delete"}),
    ("GET", "/v1/streams", "", {}, {"list"}),
    ("POST", "/v1/runs", START, {}, {"start"}),
    ("GET", "/v1/runs", "", {}, {"list"}),
    ("GET", "/v1/runs/RUN", "", {}, {"read"}),
    ("GET", "/v1/runs/RUN/events", "", {}, {"read"}),
    ("HEAD", "/v1/runs/RUN/events", "", {}, {"read"}),
    ("POST", "/v1/runs/RUN/cancel", "", {}, {"cancel"}),
]
OPEN_ROUTES = [("OPTIONS", "/v1/stream/s"), ("OPTIONS", "/v1/runs"), ("GET", "/healthz"), ("GET", "/readyz")]


class Granting(Auth):
    """Knows one key, whose rights a test sets, and notes what it was asked for."""

    def __init__(self) -> None:
        self.principal = Principal("tester")
        self.asked: set[str] = set()
        self.keys = Keys({DIGEST: self.principal})

    def authenticate(self, headers):
        self.keys.authenticate(headers)
        return self.principal

    def authorize(self, principal, action, stream):
        self.asked.add(action)
        super().authorize(principal, action, stream)


async def prepared(site: Site) -> str:
    await site.streams.create("s", content_type="text/plain")
    await site.streams.create("closed", closed=True)
    run = await site.app.runs.start("silent", "hi")  # type: ignore[union-attr]
    await run.wait()
    return run.id


@pytest.mark.parametrize(
    ("method", "path", "body", "headers", "rights"), ROUTES, ids=[f"{r[0]} {r[1]} {sorted(r[4])}" for r in ROUTES]
)
def test_every_route_takes_its_rights_and_no_other_will_do(method, path, body, headers, rights):
    @virtual_time
    async def run() -> None:
        auth = Granting()
        async with open_site(sources=[Silent()], auth=auth, long_poll_seconds=1) as site:
            url = path.replace("RUN", await prepared(site))

            async def asked(**more: str) -> int:
                return (await site.ask(method, url, body, **headers, **more)).status or 0

            nobody = await site.ask(method, url, body, **headers)
            assert (nobody.status, nobody.headers["www-authenticate"]) == (401, "Bearer")
            assert (await asked(**bearer("wrong"))) == 401
            for missing in rights:  # all but one of those it takes
                auth.principal = Principal("tester", ACTIONS - {missing})
                refused = await site.ask(method, url, body, **headers, **bearer(KEY))
                assert refused.status == 403
                assert KEY.encode() not in refused.body
            auth.principal = Principal("tester", ACTIONS, ("elsewhere/*",))
            assert (await asked(**bearer(KEY))) == 403
            auth.asked.clear()
            auth.principal = Principal("tester", frozenset(rights))
            assert (await asked(**bearer(KEY))) < 300
            assert auth.asked == rights

    run()


@virtual_time
async def test_what_takes_no_key():
    async with open_site(sources=[Silent()], auth=Granting()) as site:
        for method, path in OPEN_ROUTES:
            assert (await site.ask(method, path)).status in (200, 204)


@virtual_time
async def test_nothing_is_told_of_streams_that_may_not_be_read():
    """Neither whether they are there, nor, in a list, their names (G10)."""
    auth = Granting()
    async with open_site(auth=auth) as site:
        for name in ("a/mine/1", "a/theirs/1", "a/theirs/2", "a/zine/1"):
            await site.streams.create(name)
        auth.principal = Principal("tester", ACTIONS, ("a/?ine*", "a/"))
        for name in ("a/theirs/1", "a/nothing"):
            assert (await site.ask("GET", f"/v1/stream/{name}", **bearer(KEY))).status == 403
        listed, after = [], ""
        while after is not None:
            page = (await site.ask("GET", f"/v1/streams?prefix=a/&limit=1&after={after}", **bearer(KEY))).json()
            after = page["next"]
            listed += [one["name"] for one in page["streams"]] + [after]
        assert set(listed) == {"a/mine/1", "a/zine/1", None}


@virtual_time
async def test_a_body_is_not_taken_in_from_who_may_not_append():
    auth = Granting()
    auth.principal = Principal("tester", frozenset({"read"}))
    async with open_site(auth=auth) as site:
        await site.streams.create("s")
        for method, close in (("POST", "false"), ("POST", "true"), ("PUT", "false")):
            call = site.call(method, "s", "x" * 1000, content_type="text/plain", stream_closed=close, **bearer(KEY))
            assert ((await call.done()).status, call._asked) == (403, False)
