"""http/origins.py: which web pages may talk to this server, and under which names."""

import pytest

from headwater.errors import BadRequest, Forbidden
from headwater.http.origins import ALLOWED_HEADERS, EXPOSED_HEADERS, Origins, checked_origin
from headwater.testing import virtual_time
from http_site import open_site

APP = "https://app.example.com"


@pytest.mark.parametrize(
    ("allowed", "origin", "answer"),
    [
        (("loopback",), "http://localhost:5173", True),
        (("loopback",), "http://127.0.0.1", True),
        (("loopback",), "https://[::1]:8443", True),
        (("loopback",), "http://LOCALHOST:1", True),
        (("loopback",), APP, False),
        (("loopback",), "http://localhost.evil.com", False),
        (("loopback",), "http://evil.com#localhost", False),
        (("loopback",), "null", False),
        (("loopback",), "http://[::1", False),
        (("loopback",), "", False),
        ((APP,), APP, True),
        ((APP + "/",), APP, True),
        ((APP,), "http://app.example.com", False),
        ((APP,), APP + ":444", False),
        ((APP,), APP + ".evil.com", False),
        ((APP,), "http://localhost", False),
        (("*",), "null", True),
        ((), APP, False),
    ],
)
def test_pages_that_are_welcome(allowed, origin, answer):
    assert Origins(allowed).allows(origin) is answer


@pytest.mark.parametrize(
    ("method", "headers", "refused"),
    [
        ("POST", {"host": "h"}, False),  # no browser, or its own page
        ("POST", {"host": "h:1", "origin": "http://h:1"}, False),
        ("POST", {"host": "h:1", "origin": "http://h:2"}, True),
        ("POST", {"host": "h", "origin": "http://localhost:3000"}, False),
        ("GET", {"host": "h", "origin": "http://evil.com"}, False),
        ("HEAD", {"host": "h", "origin": "http://evil.com"}, False),
        ("OPTIONS", {"host": "h", "origin": "http://evil.com"}, False),
        *((method, {"host": "h", "origin": "http://evil.com"}, True) for method in ("POST", "PUT", "DELETE", "PATCH")),
        ("POST", {"host": "h", "origin": "null"}, True),
        ("POST", {"host": "", "origin": "null"}, True),
        ("POST", {"origin": "null"}, True),
        ("POST", {"host": "h", "origin": "http://[::1"}, True),
    ],
)
def test_a_page_of_elsewhere_may_not_write(method, headers, refused):
    if refused:
        with pytest.raises(Forbidden, match="--cors-origin"):
            Origins().check(method, headers)
    else:
        Origins().check(method, headers)


@pytest.mark.parametrize(
    ("host", "refused"),
    [
        ("127.0.0.1:4437", False),
        ("localhost", False),
        ("LocalHost:1", False),
        ("[::1]:4437", False),
        ("mine.test:80", False),
        ("evil.com:4437", True),
        ("127.0.0.1.evil.com", True),
        ("localhost@evil.com", True),
        ("[::1", True),
        ("", True),
    ],
)
@pytest.mark.parametrize("method", ["GET", "OPTIONS", "POST"])
def test_a_name_that_is_not_ours_is_refused_for_it_may_be_rebound(host, refused, method):
    ours = Origins(hosts=["Mine.test"])
    if refused:
        with pytest.raises(Forbidden, match="--auth"):
            ours.check(method, {"host": host})
    else:
        ours.check(method, {"host": host})
    Origins(hosts=None).check(method, {"host": host})


@virtual_time
async def test_cors_on_every_answer_to_a_welcome_page_and_on_none_to_others():
    async with open_site(origins=Origins([APP])) as site:
        await site.put("t", "a")
        for method, url in [
            ("GET", "t"),
            ("GET", "none"),
            ("GET", "t?offset=bad"),
            ("PATCH", "t"),
            ("HEAD", "t"),
            ("GET", "/x"),
        ]:
            mine = await site.ask(method, url, origin=APP)
            assert mine.headers["access-control-allow-origin"] == APP
            assert mine.headers["access-control-expose-headers"] == EXPOSED_HEADERS
            assert "access-control-allow-credentials" not in mine.headers
            other = await site.ask(method, url, origin="https://evil.com")
            assert not [name for name in other.headers if name.startswith("access-control")]
            assert mine.headers["vary"] == other.headers["vary"]
            assert mine.headers["vary"].startswith("origin")
        live = site.call("GET", "t?offset=-1&live=sse", origin=APP)
        await live.started()
        assert live.headers["access-control-allow-origin"] == APP
        await live.leave()


@virtual_time
async def test_preflight_allows_what_the_protocol_needs():
    async with open_site(origins=Origins([APP])) as site:
        for url in ("t", "/v1/runs", "/v1/streams"):
            call = await site.ask("OPTIONS", url, origin=APP, access_control_request_method="PUT")
            assert (call.status, call.body) == (204, b"")
            assert set(call.headers["access-control-allow-methods"].split(", ")) >= {
                "GET",
                "HEAD",
                "POST",
                "PUT",
                "DELETE",
            }
            assert call.headers["access-control-allow-headers"] == ALLOWED_HEADERS
            assert call.headers["access-control-max-age"] == "86400"
        needed = {"if-none-match", "last-event-id", "content-type", "authorization", "producer-seq", "idempotency-key"}
        needed |= {"stream-outcome", "stream-closed", "stream-retention", "if-match", "stream-fork-sub-offset"}
        assert needed <= set(ALLOWED_HEADERS.split(", "))
        # The official OpenAI client in a browser, TanStack AI, and the AI SDK.
        said = {"x-stainless-lang", "x-stainless-retry-count", "x-stainless-timeout", "x-stainless-helper-method"}
        said |= {"x-stainless-runtime-version", "openai-project", "x-run-id", "x-vercel-ai-ui-message-stream"}
        assert said <= set(ALLOWED_HEADERS.split(", "))
        shown = {"stream-next-offset", "stream-cursor", "stream-sse-data-encoding", "x-run-id", "location"}
        shown |= {"retry-after", "x-vercel-ai-ui-message-stream", "x-stream-id"}  # what resumableFetch and clients read
        assert shown <= set(EXPOSED_HEADERS.split(", "))
        stranger = await site.ask("OPTIONS", "t", origin="https://evil.com", access_control_request_method="PUT")
        assert "access-control-allow-origin" not in stranger.headers


@virtual_time
async def test_a_refused_page_changes_nothing_and_is_told_in_json():
    async with open_site(origins=Origins(hosts=["testserver"])) as site:
        for method in ("PUT", "POST", "DELETE"):
            call = await site.ask(method, "t", "x", content_type="text/plain", origin="https://evil.com")
            assert (call.status, call.json()["error"]["code"]) == (403, "forbidden")
        assert await site.streams.list() == []
        rebound = await site.ask("GET", "t", host="evil.com")
        assert (rebound.status, rebound.json()["error"]["code"]) == (403, "forbidden")
        broken = await site.ask("GET", "/healthz", origin="http://[::1")
        assert broken.status == 200


@pytest.mark.parametrize(
    "text", ["*", "loopback", APP, APP + "/", "http://[::1]:3000", "https://App.Example.com:8443", "app-x://a_b"]
)
def test_what_can_be_an_origin(text):
    assert checked_origin(text) == text
    assert Origins([text]).allows(text.lower().rstrip("/")) or text == "loopback"


@pytest.mark.parametrize(
    "text",
    ["", "app.example.com", APP + "/x", APP + "?a", "https://", "https://*.example.com", "null", APP + ":x", "ä://b"],
)
def test_what_cannot_is_refused_with_one_that_can(text):
    with pytest.raises(BadRequest, match="scheme://host"):
        checked_origin(text)
