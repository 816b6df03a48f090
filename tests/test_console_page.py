"""The console as a person uses it: in a real Chromium, on a real server."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import pytest
from playwright.async_api import Error, Page

from hostile_agent import MARKUP
from real_server import Server, chromium, read_log, serving

pytestmark = pytest.mark.server

WIDE = (1280, 800)
NARROW = (390, 844)
PATIENCE = 20_000

# Not Playwright's own wait_for_function: that needs eval, which the page's policy rightly forbids.
UNTIL = """([late, condition]) => new Promise((resolve, reject) => {
  const end = Date.now() + late;
  (function look() {
    const element = document.querySelector(condition);
    if (element) resolve();
    else if (Date.now() > end) reject(new Error("never: " + condition));
    else setTimeout(look, 20);
  })();
})"""

Tab = Callable[..., AbstractAsyncContextManager[Page]]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("console")
    agents = (
        "tests.agents_to_read:bot",
        "tests.hostile_agent:hostile",
        "<img src=a onerror=b>=tests.hostile_agent:hostile",
    )
    with serving("serve", folder, *agents) as started:
        yield started


@pytest.fixture
def tab(program: Callable[[str, str], str]) -> Tab:
    """`async with tab(server, "#/streams") as page`; afterwards the page must have complained of nothing."""
    path = program("chromium", "apt-get install chromium")

    @asynccontextmanager
    async def opened(
        server: Server, place: str, size: tuple[int, int] = WIDE, forgiven: tuple[str, ...] = (), **context: Any
    ) -> AsyncIterator[Page]:
        complaints: list[str] = []
        async with chromium(path) as browser, contextlib.AsyncExitStack() as stack:
            here = await browser.new_context(viewport={"width": size[0], "height": size[1]}, **context)
            stack.push_async_callback(here.close)
            here.set_default_timeout(PATIENCE)
            here.on("console", lambda said: complaints.append(said.text) if said.type in ("error", "warning") else None)
            here.on("weberror", lambda error: complaints.append(str(error.error)))
            here.on("dialog", lambda dialog: complaints.append(f"dialog: {dialog.message}"))
            here.on("request", lambda request: complaints.append(request.url) if strange(server, request.url) else None)
            page = await here.new_page()
            await page.goto(f"{server.url}/console/{place}")
            yield page
        assert [said for said in complaints if not any(part in said for part in forgiven)] == []

    def strange(server: Server, url: str) -> bool:
        return not url.startswith((f"{server.url}/console/", f"{server.url}/v1/streams", f"{server.url}/v1/runs"))

    return opened


async def until(page: Page, selector: str) -> None:
    """Waits until an element is like that."""
    await page.evaluate(UNTIL, [PATIENCE, selector])


async def ask(server: Server, method: str, path: str, **request: Any) -> httpx.Response:
    async with httpx.AsyncClient(base_url=server.url, timeout=30) as client:
        answer = await client.request(method, path, **request)
        assert answer.is_success, answer.text
        return answer


async def make(server: Server, name: str, *messages: Any) -> None:
    headers = {"content-type": "application/json"}
    await ask(server, "PUT", f"/v1/stream/{quote(name)}", headers=headers)
    if messages:
        await append(server, name, *messages)


async def append(server: Server, name: str, *messages: Any) -> None:
    headers = {"content-type": "application/json"}
    await ask(server, "POST", f"/v1/stream/{quote(name)}", json=list(messages), headers=headers)


async def start(server: Server, text: str, agent: str = "bot") -> str:
    return str((await ask(server, "POST", "/v1/runs", json={"agent": agent, "input": text})).json()["id"])


async def ended(server: Server, run_id: str) -> list[dict[str, Any]]:
    """Its events, once it has ended."""
    await ask(server, "GET", f"/v1/runs/{run_id}/events")
    events: list[dict[str, Any]] = json.loads(b"[%s]" % await read_log(server, f"runs/{run_id}"))
    return events


def answer_of(events: list[dict[str, Any]]) -> str:
    """The text as a reader of these events has it: messages apart, as the page shows them."""
    texts: dict[str, str] = {}
    for event in events:
        if event["type"] == "TEXT_MESSAGE_CONTENT":
            texts[event["messageId"]] = texts.get(event["messageId"], "") + event["delta"]
    return "\n\n".join(filter(None, texts.values()))


async def rows(page: Page) -> list[str]:
    """The positions that are shown, in order."""
    shown = await page.locator(".list .row:not([hidden])").evaluate_all("rows => rows.map(row => row.dataset.position)")
    return sorted(shown, key=int)


# --- overview ---------------------------------------------------------------------------------------------------------


async def test_the_overview_is_live(server: Server, tab: Tab) -> None:
    async with tab(server, "#/") as page:
        await until(page, ".charts[data-seconds='2'] canvas")
        assert await page.locator(".chart").count() >= 6
        readers = page.locator(".chart", has=page.locator("h2", has_text="Readers").first).first.locator("b").first
        assert (await readers.inner_text()).isdecimal()
        await page.keyboard.press("2")  # an hour
        await until(page, ".choice button:nth-child(2)[aria-pressed=true]")
        assert page.url.endswith("#/?range=1")
        before = await page.evaluate("getComputedStyle(document.body).backgroundColor")
        await page.locator("#theme").click()
        await page.locator("#theme").click()
        assert await page.evaluate("getComputedStyle(document.body).backgroundColor") != before
        await page.reload()
        assert await page.locator("html").get_attribute("data-theme") == "dark"


# --- streams ----------------------------------------------------------------------------------------------------------


async def test_streams_are_found_turned_and_opened_by_keys(server: Server, tab: Tab) -> None:
    await asyncio.gather(*[make(server, f"many/{number:03}", number) for number in range(120)])
    async with tab(server, "#/streams?q=many/") as page:
        await until(page, "tr[data-key='many/049']")
        assert await page.locator("tbody tr").count() == 50
        twice = "for (const _ of [1, 2]) document.dispatchEvent(new KeyboardEvent('keydown', { key: ']' }))"
        await page.evaluate(twice)  # the second one before the page is there: it counts for nothing
        await until(page, "tr[data-key='many/099']")
        await page.keyboard.press("[")
        await until(page, "tr[data-key='many/000']")
        for last in ("many/099", "many/119"):
            await page.keyboard.press("]")
            await until(page, f"tr[data-key='{last}']")
        assert await page.locator("tbody tr").count() == 20
        await page.keyboard.press("/")
        await page.keyboard.type("many/07")
        await until(page, "tr[data-key='many/070']:first-child")
        assert await page.locator("tbody tr").count() == 10
        assert "q=many%2F07" in page.url
        first = page.locator("tr[data-key='many/070']")
        top = (await first.bounding_box())["y"]  # type: ignore[index]
        await append(server, "many/070", *range(40))
        await first.locator(".number", has_text="41").wait_for()
        assert (await first.bounding_box())["y"] == top  # type: ignore[index]
        await page.keyboard.press("Escape")
        for key in ("j", "j", "k", "Enter"):
            await page.keyboard.press(key)
        await until(page, ".player[data-shown='41']")
        assert page.url.endswith("#/stream/many%2F070")


# --- one stream -------------------------------------------------------------------------------------------------------


async def test_a_stream_is_followed_and_scrubbed_with_few_elements(server: Server, tab: Tab) -> None:
    for at in range(0, 6000, 1000):
        await (append if at else make)(server, "long", *({"n": number} for number in range(at, at + 1000)))
    async with tab(server, "#/stream/long") as page:
        await until(page, ".player[data-shown='6000']")
        await until(page, ".row[data-position='5999']")
        await append(server, "long", {"n": "new"})
        await until(page, ".player[data-shown='6001']")
        assert '"new"' in await page.locator(".row[data-position='6000'] .line").inner_text()
        assert await page.locator(".list .row").count() < 80
        scrubber = page.locator("input[type=range]")
        await scrubber.fill("3000")
        await until(page, ".player[data-shown='3000']")
        await page.locator(".row[data-position='2999'] .line", has_text='{"n":2999}').wait_for()
        assert (await rows(page))[-1] == "2999"
        await scrubber.press("ArrowRight")
        await until(page, ".player[data-shown='3001'][data-mode=at]")
        await append(server, "long", {"n": "later"})
        await page.locator(".where", has_text="of 6,002").wait_for()
        assert await page.locator(".player").get_attribute("data-shown") == "3001"
        await page.wait_for_url("**at=3001")
        await page.reload()
        await until(page, ".player[data-shown='3001']")
        await page.keyboard.press("l")
        await until(page, ".player[data-shown='6002'][data-mode=live]")


async def test_a_message_is_shown_as_it_is(server: Server, tab: Tab) -> None:
    raw = '{"b": 1.0, "a": 12345678901234567890, "deep": [{"x": []}, null]}'
    await make(server, "shown")
    headers = {"content-type": "application/json"}
    await ask(server, "POST", "/v1/stream/shown", content=f"[{raw}]", headers=headers)
    await append(server, "shown", "x" * 9000)
    async with tab(server, "#/stream/shown") as page:
        await page.locator(".row[data-position='0']").click()
        body = page.locator(".panel:not([hidden]) .body")
        kept = json.loads(b"[%s]" % await read_log(server, "shown"))[0]
        pretty = await body.inner_text()
        assert json.loads(pretty) == kept
        assert "12345678901234567890" in pretty  # no number goes through a float
        assert len(pretty.splitlines()) > 8
        await page.locator(".panel button", has_text="raw").click()
        assert await body.inner_text() == (await read_log(server, "shown")).decode().partition(',"xxx')[0]
        await page.keyboard.press("j")
        await page.locator(".cut button").click()
        await page.locator(".cut").wait_for(state="detached")
        assert await body.inner_text() == json.dumps("x" * 9000)


async def test_readers_formats_and_downloads(server: Server, tab: Tab) -> None:
    await make(server, "read", 1, 2, 3)
    following = httpx.AsyncClient(timeout=30)
    async with following, following.stream("GET", f"{server.url}/v1/stream/read?format=ndjson") as response:
        lines = response.aiter_lines()
        assert await anext(lines) == "1"
        async with tab(server, "#/stream/read") as page:
            await page.locator("[data-which=readers]").click()
            await page.locator(".panel td", has_text="ndjson").wait_for()
            await page.locator(".panel td", has_text="console").wait_for()  # this page itself
            assert await page.locator(".panel tbody tr").count() == 2
            await page.locator("[data-which=formats]").click()
            for name, wanted in (("sse", "data:1"), ("ndjson", "2"), ("durable", "data:[1,2,3]")):
                await page.locator(".panel select").select_option(name)
                await page.locator(".panel .body", has_text=wanted).wait_for()
            async with page.expect_download() as coming:
                await page.locator("select.download").select_option("ndjson")
            saved = await (await coming.value).path()
            assert await asyncio.to_thread(saved.read_bytes) == b"1\n2\n3\n"


# --- one run ----------------------------------------------------------------------------------------------------------


async def test_a_replay_shows_the_log_and_nothing_else(server: Server, tab: Tab) -> None:
    run_id = await start(server, "slowly")
    events = await ended(server, run_id)
    async with tab(server, f"#/run/{run_id}") as page:
        await until(page, f".said[data-events='{len(events)}']")
        text = page.locator(".said .text")
        assert await text.evaluate("element => element.textContent") == answer_of(events)
        for at in (0, 5, len(events) // 2, len(events) - 1):  # at each place: what a reader had by then
            await page.locator("input[type=range]").fill(str(at))
            await until(page, f".said[data-events='{at}']")
            assert await text.evaluate("element => element.textContent") == answer_of(events[:at])
        await page.locator("input[type=range]").fill("0")
        await page.locator(".speed select").select_option("2")
        began = await page.evaluate("performance.now()")
        await page.locator(".controls .icon").click()
        await until(page, ".player[data-mode=replay]")
        await until(page, f".player[data-mode=at][data-shown='{len(events)}']")
        took = (await page.evaluate("performance.now()") - began) / 1000
        assert await text.evaluate("element => element.textContent") == answer_of(events)
        assert took > 1.8 / 2  # the words came over 1.9 s
        seen = {}
        for at in range(len(events)):  # row by row, what the log holds
            await page.evaluate("at => { document.querySelector('.list').scrollTop = at * 24 }", at)
            for row in await page.locator(".list .row:not([hidden])").all():
                position = await row.get_attribute("data-position")
                if position not in seen:
                    seen[position] = (await row.locator(".line").text_content() or "").split("  ")[0]
            if len(seen) == len(events):
                break
        types = [event["name"] if event["type"] == "CUSTOM" else event["type"] for event in events]
        assert [seen[str(at)] for at in range(len(events))] == types
        tool = page.locator(".lane[data-kind=text]")
        assert await tool.count() == 1
        assert (
            await tool.locator(".label").inner_text()
            == f"{len(events) - sum(t != 'TEXT_MESSAGE_CONTENT' for t in types)} pieces"
        )


async def test_a_question_is_answered_and_a_run_cancelled(server: Server, tab: Tab) -> None:
    yes, no, held = [await start(server, text) for text in ("approval", "approval", "hold")]
    async with tab(server, f"#/run/{yes}") as page:
        await page.locator(".question button", has_text="Approve").click()
        await until(page, ".head .chip[data-state=completed]")
        await until(page, ".lane[data-kind=approval][data-state=yes]")
        assert await page.locator(".question").count() == 0
        assert "dared" in await page.locator(".said .text").inner_text()
        await page.evaluate("hash => { location.hash = hash }", f"#/run/{no}")
        await page.locator(".question input").fill("too risky")
        await page.locator(".question button", has_text="Reject").click()
        await until(page, ".head .chip[data-state=completed]")
        await until(page, ".lane[data-kind=approval][data-state=no]")
        await page.evaluate("hash => { location.hash = hash }", f"#/run/{held}")
        await page.locator(".said .text", has_text="Hel").wait_for()
        await page.locator("button.danger").click()
        await until(page, ".head .chip[data-state=cancelled]")
        assert await page.locator("button.danger").is_hidden()
    decided = [event for event in await ended(server, no) if event.get("name") == "approval.decided"]
    assert [(event["value"]["approved"], event["value"]["message"]) for event in decided] == [(False, "too risky")]


# --- what must not happen ---------------------------------------------------------------------------------------------


async def test_what_streams_say_is_never_markup(server: Server, tab: Tab) -> None:
    name = f"evil {MARKUP}".replace("/", "∕")
    await make(server, name, {MARKUP: MARKUP, "__proto__": {"x": 1}}, MARKUP)
    await ask(server, "PUT", "/v1/stream/evil.html", headers={"content-type": "text/html"}, content=MARKUP)
    runs = [await start(server, MARKUP, agent) for agent in ("hostile", "<img src=a onerror=b>", "bot")]
    for run_id in runs:
        await ended(server, run_id)
    places = ["#/", "#/streams?q=evil", "#/runs", f"#/stream/{quote(name, safe='')}", "#/stream/evil.html"]
    places += [f"#/run/{run_id}" for run_id in runs]
    places += [f"#/stream/{quote(MARKUP, safe='')}", f"#/run/{quote(MARKUP, safe='')}", f"#/{quote(MARKUP, safe='')}"]
    async with tab(server, "#/", forgiven=("404", "requires 'TrustedHTML'")) as page:
        shown = ""
        for place in places:
            await page.evaluate("place => { location.hash = place }", place)
            await page.locator("h1").first.wait_for()
            if place.startswith(("#/stream/", "#/run/")):
                for _ in range(20):
                    await page.keyboard.press("j")
                for tab_ in ("formats", "readers", "message"):
                    await page.locator(f"[data-which={tab_}]").click()
            elif place != "#/" and place in places[1:3]:
                await until(page, "tbody tr")
            shown += await page.locator("body").inner_text()
            assert await page.evaluate("window.hit") is None, place
            assert await page.locator("main img, main script, main iframe, main a[href^=javascript]").count() == 0
        assert shown.count("<img src=/stolen") > 10
        with pytest.raises(Error, match="TrustedHTML"):  # nor could it be, whatever the page's code did
            await page.evaluate("document.body.innerHTML = '<b>x</b>'")


async def test_a_key_is_asked_for_and_kept_in_the_tab(tab: Tab, tmp_path: Path) -> None:
    keys = tmp_path / "keys.toml"
    keys.write_text('[[key]]\nname = "ops"\nsecret = "ops-secret-0123456789"\n')
    with serving("serve", tmp_path, "--auth", str(keys)) as server:
        async with tab(server, "#/streams", forgiven=("401",)) as page:
            field = page.locator("input[type=password]")
            await field.fill("wrong")
            await field.press("Enter")
            await page.locator("[role=alert]", has_text="does not know").wait_for()
            await page.locator("input[type=password]").fill("ops-secret-0123456789")
            await page.locator("input[type=password]").press("Enter")
            await page.locator("h1", has_text="Streams").wait_for()
            await page.reload()
            await page.locator("h1", has_text="Streams").wait_for()
            headers = {"authorization": "Bearer ops-secret-0123456789", "content-type": "application/json"}
            await ask(server, "PUT", "/v1/stream/a", headers=headers, content="[1]")
            await page.locator("tr[data-key=a] a").click()
            await until(page, ".player[data-shown='1']")
            async with page.expect_download() as coming:
                await page.locator("select.download").select_option("text")
            assert await asyncio.to_thread((await (await coming.value).path()).read_bytes) == b"1\n"
            assert await page.evaluate("[localStorage.length, document.cookie]") == [0, ""]
            assert "secret" not in page.url


async def test_a_narrow_screen_never_scrolls_sideways(server: Server, tab: Tab) -> None:
    await make(server, "wide/" + "x" * 300, {"text": "y" * 3000})
    run_id = await start(server, "tool")
    await ended(server, run_id)
    async with tab(server, "#/", size=NARROW) as page:
        for place in ("#/", "#/streams", "#/runs", f"#/stream/wide%2F{'x' * 300}", f"#/run/{run_id}"):
            await page.evaluate("place => { location.hash = place }", place)
            await page.locator("h1").first.wait_for()
            await until(page, {"#/": ".chart canvas", "#/streams": "tbody tr", "#/runs": "tbody tr"}.get(place, ".row"))
            for width in await page.evaluate(
                "[document.documentElement.scrollWidth, document.querySelector('#main').scrollWidth]"
            ):
                assert width <= NARROW[0], place


async def test_the_page_says_that_the_server_is_gone_and_goes_on(tab: Tab, tmp_path: Path) -> None:
    with serving("serve", tmp_path) as server:
        await make(server, "a", 1)
        async with tab(server, "#/stream/a", forgiven=("Failed to load resource",)) as page:
            await until(page, ".player[data-shown='1']")
            server.kill()
            await until(page, "#link[data-state=lost]")
            await server.restart()
            await append(server, "a", 2)
            await until(page, ".player[data-shown='2']")
            await until(page, "#link[data-state=ok]")
