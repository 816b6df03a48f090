"""http/subscriptions.py: subscriptions as HTTP tells of them, and who may have them."""

import asyncio
import contextlib
import itertools
import json
import re
import shlex
from pathlib import Path

import pytest

from headwater import Streams
from headwater.http import App, opened
from headwater.http.auth import ACTIONS, Auth, Principal
from headwater.subscriptions import Subscriptions
from headwater.testing import virtual_time
from http_site import START_MS, Site, at, open_site, refused, safe
from webhook_receiver import DONE, Receiver

PULL = {"type": "pull-wake", "pattern": "mail/*", "wake_stream": "wakes"}
S = "__ds/subscriptions/s"


@contextlib.asynccontextmanager
async def site(auth=None, public_url=None):
    loop = asyncio.get_running_loop()
    streams = Streams("memory:", clock=lambda: START_MS + round(loop.time() * 1000))
    subscriptions = Subscriptions(streams, webhooks_to_loopback=True, public_url=public_url)
    async with streams, subscriptions:
        yield Site(streams, App(streams, auth=auth, subscriptions=subscriptions))


def js(value):
    return json.dumps(value)


async def put(site, asked, name=S):
    return await site.ask("PUT", name, js(asked))


def bearer(token):
    return {"authorization": f"Bearer {token}"}


async def test_a_subscription_from_its_making_to_its_end():
    async with site() as here:
        made = await put(here, PULL | {"lease_ttl_ms": 1000, "description": "mails"})
        assert made.status == 201
        assert made.headers["content-type"] == "application/json"
        assert made.headers["cache-control"] == "no-store"
        safe(made)
        assert made.json() == {
            "id": "s",
            "subscription_id": "s",
            "type": "pull-wake",
            "pattern": "mail/*",
            "streams": [],
            "wake_stream": "wakes",
            "lease_ttl_ms": 1000,
            "created_at": made.json()["created_at"],
            "status": "active",
            "description": "mails",
        }
        again = await put(here, PULL | {"lease_ttl_ms": 1000, "description": "mails", "pattern": "/mail/*/"})
        assert (again.status, again.json()) == (200, made.json())
        refused(await put(here, PULL), 409, "SUBSCRIPTION_ALREADY_EXISTS")
        got = await here.ask("GET", S)
        assert (got.status, got.json()) == (200, made.json())
        assert (await here.ask("GET", f"/streams/{S}")).json() == made.json()
        assert (await here.ask("DELETE", S)).status == 204
        assert (await here.ask("DELETE", S)).status == 204
        refused(await here.ask("GET", S), 404, "SUBSCRIPTION_NOT_FOUND")


async def test_pull_wake_as_a_worker_sees_it():
    async with site() as here:
        await here.put("wakes", "[]", "application/json")
        await put(here, PULL)
        nothing = await here.ask("POST", f"{S}/claim", js({"worker": "me"}))
        refused(nothing, 409, "NO_PENDING_WORK")
        assert nothing.json()["error"]["retry"] is True
        await here.put("mail/a", "1", "application/json")
        claim = await here.ask("POST", f"{S}/claim", js({"worker": "me"}))
        assert claim.status == 200
        told = claim.json()
        busy = await here.ask("POST", f"{S}/claim", js({"worker": "you"}))
        refused(busy, 409, "ALREADY_CLAIMED")
        assert busy.json()["error"]["current_holder"] == "me"
        assert busy.json()["error"]["generation"] == 1
        tail = told["streams"][0]["tail_offset"]
        wake = {"wake_id": told["wake_id"], "generation": told["generation"]}
        ack = wake | {"acks": [{"stream": "mail/a", "offset": tail}], "done": True}
        for bad, code in (
            ({"offset": "-1"}, "INVALID_OFFSET"),
            ({"offset": at(9, 9)}, "INVALID_OFFSET"),
            ({"stream": "x", "offset": tail}, "INVALID_OFFSET"),
        ):
            asked = wake | {"acks": [{"stream": "mail/a", **bad}]}
            refused(await here.ask("POST", f"{S}/ack", js(asked), **bearer(told["token"])), 409, code)
        for headers in ({}, bearer("nonsense"), {"authorization": f"Basic {told['token']}"}):
            answer = await here.ask("POST", f"{S}/ack", js(ack), **headers)
            refused(answer, 401, "TOKEN_INVALID")
            assert answer.headers["www-authenticate"] == "Bearer"
        stale = ack | {"generation": 0}
        refused(await here.ask("POST", f"{S}/ack", js(stale), **bearer(told["token"])), 409, "FENCED")
        done = await here.ask("POST", f"{S}/ack", js(ack), **bearer(told["token"]))
        assert (done.status, done.json()) == (200, {"ok": True, "next_wake": False})
        refused(await here.ask("POST", f"{S}/ack", js(ack), **bearer(told["token"])), 409, "FENCED")
        refused(await here.ask("POST", f"{S}/release", js(wake), **bearer(told["token"])), 409, "FENCED")
        await here.post("mail/a", "2", "application/json")
        told = (await here.ask("POST", f"{S}/claim", js({"worker": "me"}))).json()
        wake = {"wake_id": told["wake_id"], "generation": told["generation"]}
        assert (await here.ask("POST", f"{S}/release", js(wake), **bearer(told["token"]))).status == 204
        assert (await here.ask("GET", S)).json()["streams"] == [
            {"path": "mail/a", "link_type": "glob", "acked_offset": tail}
        ]


@virtual_time
async def test_a_worker_may_work_for_longer_than_a_token_is_good_for():
    async with site() as here:
        await here.put("wakes", "[]", "application/json")
        await put(here, PULL | {"lease_ttl_ms": 600_000})
        await here.put("mail/a", "1", "application/json")
        told = (await here.ask("POST", f"{S}/claim", js({"worker": "me"}))).json()
        beat, token = {"wake_id": told["wake_id"], "generation": 1}, told["token"]
        renewals = 0
        for _ in range(30):
            await asyncio.sleep(500)
            answer = await here.ask("POST", f"{S}/ack", js(beat), **bearer(token))
            assert answer.status == 200, answer.body
            renewals += "token" in answer.json()
            token = answer.json().get("token", token)
        assert renewals == 6
        refused(await here.ask("POST", f"{S}/ack", js(beat), **bearer(told["token"])), 401, "TOKEN_EXPIRED")


async def test_explicit_streams_also_those_with_slashes():
    async with site() as here:
        await put(here, {"type": "pull-wake", "streams": ["a/b", "/c/"], "wake_stream": "wakes"})
        assert (await here.ask("POST", f"{S}/streams", js({"streams": ["d/e"]}))).status == 204
        for path in ("d%2Fe", "a/b"):
            assert (await here.ask("DELETE", f"{S}/streams/{path}")).status == 204
        streams = (await here.ask("GET", S)).json()["streams"]
        assert streams == [{"path": "c", "link_type": "explicit", "acked_offset": at(0)}]
        refused(await here.ask("POST", f"{S}/streams", js({"streams": []})), 400, "INVALID_REQUEST")
        unknown = await here.ask("POST", "__ds/subscriptions/x/streams", js({"streams": ["a"]}))
        refused(unknown, 404, "SUBSCRIPTION_NOT_FOUND")


async def test_a_webhook_calls_back_to_where_its_maker_was():
    async with Receiver() as receiver, site() as here:
        made = await put(here, {"type": "webhook", "pattern": "mail/*", "webhook": {"url": receiver.url}})
        signing = made.json()["webhook"]["signing"]
        assert signing == {
            "alg": "ed25519",
            "kid": signing["kid"],
            "jwks_url": "http://testserver/v1/stream/__ds/jwks.json",
        }
        keys = await here.ask("GET", "__ds/jwks.json")
        assert keys.headers["content-type"] == "application/jwk-set+json"
        assert [key["kid"] for key in keys.json()["keys"]] == [signing["kid"]]
        await here.put("mail/a", "1", "application/json")
        told = (await receiver.next()).json()
        assert told["callback_url"] == "http://testserver/v1/stream/__ds/subscriptions/s/callback"
        ack = {"wake_id": told["wake_id"], "generation": told["generation"], "done": True}
        ack["acks"] = [{"path": one["path"], "offset": one["tail_offset"]} for one in told["streams"]]
        path = told["callback_url"].removeprefix("http://testserver")
        refused(await here.ask("POST", f"{S}/ack", js(ack), **bearer(told["callback_token"])), 400, "INVALID_REQUEST")
        answer = await here.ask("POST", path, js(ack), **bearer(told["callback_token"]))
        assert answer.json() == {"ok": True, "next_wake": False}
        refused(await here.ask("POST", path, js(ack), **bearer(told["callback_token"])), 409, "FENCED")


async def test_behind_a_proxy_callbacks_go_to_the_public_address():
    async with Receiver(usual=DONE) as receiver, site(public_url="https://streams.example/x/") as here:
        made = await put(here, {"type": "webhook", "pattern": "mail/*", "webhook": {"url": receiver.url}})
        root = "https://streams.example/x/v1/stream/__ds"
        assert made.json()["webhook"]["signing"]["jwks_url"] == f"{root}/jwks.json"
        await here.put("mail/a", "1", "application/json")
        assert (await receiver.next()).json()["callback_url"] == f"{root}/subscriptions/s/callback"


@pytest.mark.parametrize(
    "asked",
    [
        [],
        {},
        {"type": "other", "pattern": "a"},
        {"type": "webhook", "pattern": "a"},
        {"type": "webhook", "pattern": "a", "webhook": "http://127.0.0.1/"},
        {"type": "webhook", "pattern": "a", "webhook": {"url": 1}},
        {"type": "pull-wake", "pattern": "a"},
        {"type": "pull-wake", "wake_stream": "w"},
        {"type": "pull-wake", "wake_stream": "w", "pattern": "", "streams": []},
        PULL | {"pattern": 1},
        PULL | {"pattern": "a*b"},
        PULL | {"streams": "a"},
        PULL | {"streams": [1]},
        PULL | {"streams": ["/"]},
        PULL | {"lease_ttl_ms": 999},
        PULL | {"lease_ttl_ms": "1000"},
        PULL | {"lease_ttl_ms": True},
        PULL | {"lease_ttl_ms": 1000.5},
        PULL | {"description": 1},
        PULL | {"leese": 1},
    ],
)
async def test_what_cannot_be_a_subscription_is_refused(asked):
    async with site() as here:
        answer = await put(here, asked)
        refused(answer, 400, "INVALID_REQUEST")
        refused(await here.ask("GET", S), 404, "SUBSCRIPTION_NOT_FOUND")


async def test_other_requests_that_make_no_sense():
    async with site() as here:
        await put(here, PULL)
        refused(await here.ask("PUT", S, "{"), 400, "INVALID_REQUEST")
        for url in ("http://10.0.0.1/hook", "https://169.254.169.254/", "https://localhost/"):
            asked = {"type": "webhook", "pattern": "a", "webhook": {"url": url}}
            refused(await put(here, asked, "__ds/subscriptions/t"), 400, "WEBHOOK_URL_REJECTED")
        for body in ({}, {"worker": ""}, {"worker": 1}):
            refused(await here.ask("POST", f"{S}/claim", js(body)), 400, "INVALID_REQUEST")
        await here.put("mail/a", "1", "application/json")
        token = (await here.ask("POST", f"{S}/claim", js({"worker": "me"}))).json()["token"]
        wake = {"wake_id": "w", "generation": 1}
        acks = [{"acks": acks} for acks in ("a", [1], [{"stream": "a"}])]
        for body in ({}, {"wake_id": "w"}, *(wake | some for some in acks)):
            refused(await here.ask("POST", f"{S}/ack", js(body), **bearer(token)), 400, "INVALID_REQUEST")
        refused(await put(here, PULL, "__ds/subscriptions/" + "x" * 257), 400, "INVALID_REQUEST")
        all_of = "__ds/subscriptions"
        for path in ("__ds", "__ds/", "__ds/x", all_of, f"{all_of}/", f"{S}/x", f"{S}/", f"{S}/a/b"):
            refused(await here.ask("GET", path), 404, "SUBSCRIPTION_NOT_FOUND")
        for method, path, allowed in (
            ("POST", S, "PUT, GET, DELETE"),
            ("GET", f"{S}/claim", "POST"),
            ("GET", f"{S}/streams", "POST"),
            ("PUT", f"{S}/streams/a", "DELETE"),
            ("POST", "__ds/jwks.json", "GET"),
        ):
            answer = await here.ask(method, path)
            assert (answer.status, answer.headers["allow"]) == (405, allowed)
        assert (await here.ask("OPTIONS", S)).status == 204


async def test_where_none_are_kept_they_are_not_found_and_no_stream_has_their_name():
    async with open_site() as here:
        refused(await here.ask("GET", S), 404, "not_found")
        refused(await here.put("__ds/x", "1"), 404, "SUBSCRIPTION_NOT_FOUND")


async def test_they_are_opened_and_closed_with_the_streams():
    streams = Streams("memory:")
    subscriptions = Subscriptions(streams)
    async with opened(streams, subscriptions=subscriptions, on_signals=False):
        assert subscriptions.is_open
        here = Site(streams, App(streams, subscriptions=subscriptions))
        assert (await put(here, PULL)).status == 201
    assert not subscriptions.is_open
    assert not streams.is_open
    refused(await here.ask("GET", S), 404, "not_found")


# -- who may have them ------------------------------------------------------------------------------------------------


class Desk(Auth):
    """Lets everybody in as who stands there."""

    def __init__(self, actions=ACTIONS, streams=("*",)):
        self.principal = Principal("tester", frozenset(actions), tuple(streams))

    def authenticate(self, headers):
        return self.principal


@pytest.mark.parametrize(
    ("actions", "streams", "asked", "allowed"),
    [
        (ACTIONS, ["*"], PULL, True),
        ({"subscribe", "read", "append"}, ["mail/*", "wakes"], PULL, True),
        ({"read", "append"}, ["*"], PULL, False),
        ({"subscribe", "append"}, ["*"], PULL, False),
        ({"subscribe", "read"}, ["*"], PULL, False),  # the wake stream
        (ACTIONS, ["mail/*"], PULL, False),  # the same
        (ACTIONS, ["mail/a*", "wakes"], PULL, False),
        (ACTIONS, ["mail/?", "wakes"], PULL, False),
        (ACTIONS, ["mail/*", "wakes"], PULL | {"pattern": "**"}, False),
        (ACTIONS, ["mail/*", "wakes"], PULL | {"pattern": "mail/**"}, False),
        (ACTIONS, ["mail/*", "mail", "wakes"], PULL | {"pattern": "mail/**"}, True),
        (ACTIONS, ["mail/*", "wakes"], PULL | {"streams": ["x"]}, False),
        (ACTIONS, ["*"], PULL | {"wake_stream": "responses/x"}, False),  # written by the server alone
        (ACTIONS, ["*"], PULL | {"pattern": "runs/*"}, True),
        ({"subscribe", "append"}, ["*"], PULL | {"pattern": "runs/*"}, False),
    ],
)
async def test_a_key_subscribes_to_what_it_wholly_covers(actions, streams, asked, allowed):
    async with site(Desk(actions, streams)) as here:
        answer = await put(here, asked)
        if allowed:
            assert answer.status == 201
        else:
            refused(answer, 403, "forbidden")


async def test_a_key_that_does_not_cover_it_does_nothing_with_it():
    desk = Desk()
    async with site(desk) as here:
        await here.put("wakes", "[]", "application/json")
        await put(here, PULL)
        await here.put("mail/a", "1", "application/json")
        told = (await here.ask("POST", f"{S}/claim", js({"worker": "me"}))).json()
        desk.principal = Principal("tester", ACTIONS, ("mail/a",))
        for method, path, body in (
            ("GET", S, ""),
            ("DELETE", S, ""),
            ("POST", f"{S}/claim", js({"worker": "me"})),
            ("POST", f"{S}/streams", js({"streams": ["mail/a"]})),
            ("DELETE", f"{S}/streams/mail/a", ""),
        ):
            refused(await here.ask(method, path, body), 403, "forbidden")
        ack = {"wake_id": told["wake_id"], "generation": told["generation"]}
        answer = await here.ask("POST", f"{S}/ack", js(ack), **bearer(told["token"]))
        assert answer.status == 200, "the token of a wake is enough"
        desk.principal = Principal("tester", ACTIONS, ("mail/*",))
        refused(await here.ask("POST", f"{S}/streams", js({"streams": ["other"]})), 403, "forbidden")
        assert (await here.ask("GET", S)).status == 200


async def test_agreeing_to_one_does_not_tell_what_was_added_to_it():
    desk = Desk()
    async with site(desk) as here:
        asked = {"type": "pull-wake", "streams": ["mail/a"], "wake_stream": "wakes"}
        assert (await put(here, asked)).status == 201
        assert (await here.ask("POST", f"{S}/streams", js({"streams": ["secret"]}))).status == 204
        desk.principal = Principal("tester", ACTIONS, ("mail/*", "wakes"))
        refused(await put(here, asked), 403, "forbidden")
        desk.principal = Principal("tester")
        assert (await put(here, asked)).status == 200


@pytest.mark.parametrize("action", ["ack", "callback", "release"])
async def test_nothing_is_taken_in_from_who_has_no_token(action):
    async with site() as here:
        await put(here, PULL)
        answer = await here.ask("POST", f"{S}/{action}", "no JSON", **bearer("1.99999999999." + "x" * 43))
        refused(answer, 401, "TOKEN_INVALID")


async def test_rules_of_another_kind_are_asked_too():
    class Tenant(Desk):
        def authorize(self, principal, action, stream):
            super().authorize(principal, action, stream)
            if not stream.startswith("tenant/"):
                from headwater.errors import Forbidden

                raise Forbidden("not yours")

    async with site(Tenant()) as here:
        wake = {"wake_stream": "tenant/wakes"}
        refused(await put(here, PULL | wake | {"pattern": "**"}), 403, "forbidden")
        refused(await put(here, PULL | wake | {"pattern": "tenant/**"}), 403, "forbidden")
        assert (await put(here, PULL | wake | {"pattern": "tenant/*/**"})).status == 201


def printed(example):
    """The requests of an example in docs/subscriptions.md: method, URL, body."""
    page = (Path(__file__).parent.parent / "docs" / "subscriptions.md").read_text()
    text = re.search(rf"<!-- {example}: .*?```\n(.*?)```", page, re.DOTALL)[1].replace("\\\n", " ")
    for line in text.splitlines():
        words = shlex.split(line.replace("$S", "/v1/stream").replace("$J", "J"))
        said = dict(itertools.pairwise(words))
        (url,) = [word for word in words if word.startswith("/v1/")]
        yield said.get("-X", "GET"), url, said.get("-d", "")


async def test_the_webhook_of_the_docs_works_as_printed():
    async with Receiver(usual=DONE) as receiver, site() as here:
        for method, url, body in printed("webhook"):
            body = body.replace("http://localhost:8080/hook", receiver.url)
            assert (await here.ask(method, url, body, content_type="application/json")).status in (201, 204)
        wake = json.loads((await receiver.next()).body)
        assert wake.keys() == {
            "subscription_id", "wake_id", "generation", "streams", "callback_url", "callback_token",
        }  # fmt: skip
        assert wake["streams"][0].keys() >= {"path", "acked_offset", "tail_offset", "has_pending"}


async def test_the_worker_of_the_docs_works_as_printed():
    async with site() as here:
        *making, looking, claiming = printed("pull-wake")
        for method, url, body in making:
            assert (await here.ask(method, url, body, content_type="application/json")).status == 201
        async with asyncio.timeout(10):
            while (woken := (await here.ask(*looking)).json()) == []:
                await asyncio.sleep(0.001)
        assert [wake["stream"] for wake in woken] == ["images/1"]
        claim = (await here.ask(*claiming)).json()
        acks = [{"stream": one["path"], "offset": one["tail_offset"]} for one in claim["streams"]]
        ack = {"wake_id": claim["wake_id"], "generation": claim["generation"], "acks": acks, "done": True}
        done = await here.ask("POST", "__ds/subscriptions/resizer/ack", js(ack), **bearer(claim["token"]))
        assert (done.status, done.json()) == (200, {"ok": True, "next_wake": False})
