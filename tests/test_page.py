"""The demo's page as a person uses it, in a real Chromium, on the real server and model."""

import contextlib
import json
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import pytest
from playwright.async_api import Page

from real_server import Server, chromium, read_log, serving

pytestmark = pytest.mark.server

STORY = "Tell me a long story about a river"
WIDE = (1100, 800)
NARROW = (360, 740)
PATIENCE = 60_000  # ms, for an answer of 400 tokens on a busy machine

# Not Playwright's own wait_for_function: that needs eval, which the page's Content-Security-Policy rightly forbids.
UNTIL = """() => new Promise((resolve, reject) => {
  const late = Date.now() + %d;
  (function look() {
    if (%s) resolve();
    else if (Date.now() > late) reject(new Error("not in time"));
    else setTimeout(look, 20);
  })();
})"""

Tabs = Callable[..., AbstractAsyncContextManager[list[Page]]]


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving("demo", tmp_path_factory.mktemp("demo")) as server:
        yield server


@pytest.fixture
def tabs(demo: Server, program: Callable[[str, str], str]) -> Tabs:
    """`tabs(2)` opens two tabs of one browser on the page, and afterwards looks at what they complained of."""
    path = program("chromium", "apt-get install chromium")

    @asynccontextmanager
    async def opened(count: int = 1, size: tuple[int, int] = WIDE, forgiven: str = " ") -> AsyncIterator[list[Page]]:
        complaints: list[str] = []
        async with chromium(path) as browser, contextlib.AsyncExitStack() as stack:
            context = await browser.new_context(viewport={"width": size[0], "height": size[1]})
            stack.push_async_callback(context.close)
            context.set_default_timeout(PATIENCE)
            context.on("console", lambda said: complaints.append(said.text) if said.type in LOUD else None)
            context.on("weberror", lambda error: complaints.append(str(error.error)))
            context.on("request", lambda request: complaints.append(request.url) if foreign(request.url) else None)
            pages = [await context.new_page() for _ in range(count)]
            for page in pages:
                await page.goto(demo.url)
                await page.locator("#about", has_text="SmolLM2").wait_for()
            yield pages
        assert [said for said in complaints if forgiven not in said] == []

    LOUD = ("error", "warning")

    def foreign(url: str) -> bool:
        return not url.startswith((demo.url, "data:", "blob:"))

    return opened


LAST_TEXT = "[...document.querySelectorAll('[data-role=assistant]')].at(-1)?.querySelector('.text')?.textContent ?? ''"
AGAIN = "[...document.querySelectorAll('[data-role=assistant] .text:not([data-retracted])')].at(-1)?.textContent ?? ''"


async def until(page: Page, condition: str) -> None:
    """Waits until the JavaScript expression holds in the page."""
    await page.evaluate(UNTIL % (PATIENCE, condition))


async def text_of(page: Page) -> str:
    """What the newest answer shows."""
    return str(await page.evaluate(LAST_TEXT))


async def text_longer_than(page: Page, length: int) -> str:
    await until(page, f"({LAST_TEXT}).length > {length}")
    return await text_of(page)


async def ask(page: Page, text: str) -> None:
    await page.locator("#composer").fill(text)
    await page.locator("#composer").press("Enter")


async def ended(page: Page, status: str) -> str:
    """Waits for the newest turn's end, and gives its run's id."""
    turn = page.locator("[data-run]").last
    await until(page, "!document.body.hasAttribute('data-running')")
    await page.locator(f"[data-run][data-status={status}]").last.wait_for()
    assert await turn.get_attribute("data-status") == status
    return str(await turn.get_attribute("data-run"))


async def logged_text(server: Server, run_id: str, *, after_retraction: bool = False) -> str:
    """The answer as the server holds it."""
    events = json.loads(b"[%s]" % await read_log(server, f"runs/{run_id}"))
    if after_retraction:
        (at,) = [place for place, event in enumerate(events) if event.get("name") == "message.retracted"]
        events = events[at:]
    return "".join(event["delta"] for event in events if event["type"] == "TEXT_MESSAGE_CONTENT")


async def test_an_answer_goes_on_over_a_reload_and_in_a_second_tab(demo: Server, tabs: Tabs) -> None:
    async with tabs(2) as (page, other):
        assert await page.locator("#empty").is_visible()
        await ask(page, STORY)
        seen = await text_longer_than(page, 0)
        for _ in range(3):  # tokens come one after the other, not all at the end
            longer = await text_longer_than(page, len(seen))
            assert longer.startswith(seen)
            seen = longer
        assert await page.locator("body[data-running]").count() == 1

        await page.reload()
        after_reload = await text_longer_than(page, len(seen))
        assert after_reload.startswith(seen)

        await other.goto(page.url)
        await other.reload()  # going to another hash of the same page loads nothing
        in_other = await text_longer_than(other, len(after_reload))
        assert await other.locator("body[data-running]").count() == 1
        in_first = await text_longer_than(page, len(in_other) - 1)
        assert in_first.startswith(in_other)

        run_id = await ended(page, "completed")
        assert await ended(other, "completed") == run_id
        assert await text_of(page) == await text_of(other) == await logged_text(demo, run_id)
        assert await page.locator(f"#threads a[href='#{page.url.partition('#')[2]}']").count() == 1


async def test_stop_keeps_what_there_is(demo: Server, tabs: Tabs) -> None:
    async with tabs() as (page,):
        await ask(page, STORY)
        seen = await text_longer_than(page, 20)
        await page.locator("#stop").click()
        run_id = await ended(page, "cancelled")
        assert (await text_of(page)).startswith(seen)
        assert await text_of(page) == await logged_text(demo, run_id)
        assert "Stopped" in await page.locator("[data-run]").last.inner_text()
        assert await page.locator("#composer").evaluate("element => element === document.activeElement")


async def test_a_slow_tool_shows_its_progress(tabs: Tabs) -> None:
    async with tabs() as (page,):
        await ask(page, "Research the history of tea")
        tool = page.locator("[data-tool]")
        await page.locator("[data-tool][data-phase=running]").wait_for()
        progress = "document.querySelector('[data-tool] progress').value"
        steps: list[float] = [0]
        said: set[str] = set()
        for _ in range(3):
            await until(page, f"{progress} > {steps[-1]}")
            steps.append(await page.evaluate(progress))
            said.add(await tool.locator(".message").inner_text())
        assert len(said) == 3
        await page.locator("[data-tool][data-phase=done]").wait_for()
        assert await tool.locator(".name").inner_text() == "research"
        assert float((await tool.locator(".elapsed").inner_text()).removesuffix(" s")) >= 3
        await ended(page, "completed")
        assert await text_of(page)


async def test_a_killed_server_is_shown_and_survived(demo: Server, tabs: Tabs) -> None:
    async with tabs(forgiven="Failed to load resource") as (page,):
        await ask(page, STORY)
        seen = await text_longer_than(page, 20)
        demo.kill()
        await page.locator("body[data-connection=lost]").wait_for()
        assert "Reconnecting" in await page.locator("#notice").inner_text()
        assert (await text_of(page)).startswith(seen)
        await demo.restart()
        await page.locator("body[data-connection=ok]").wait_for()
        await page.locator("[data-retracted]").wait_for()  # the run goes on, and what was cut off is made again
        assert "server went away here" in await page.locator("[data-run]").last.inner_text()
        await until(page, f"({AGAIN}).length > 20")
        await page.locator("#composer").press("Escape")
        run_id = await ended(page, "cancelled")
        assert str(await page.evaluate(AGAIN)) == await logged_text(demo, run_id, after_retraction=True)
        assert await page.locator("[data-run]").count() == 1


async def test_a_narrow_screen_never_scrolls_sideways(tabs: Tabs) -> None:
    async with tabs(size=NARROW) as (page,):

        async def fits() -> bool:
            return bool(await page.evaluate("document.documentElement.scrollWidth <= innerWidth && scrollX === 0"))

        assert await fits()
        await ask(page, f"What is the weather in Llanfair{'pwllgwyngyll' * 12}?")
        await page.locator("[data-run]").wait_for()
        assert await fits()
        await text_longer_than(page, 40)
        assert await fits()
        await page.keyboard.press("Escape")
        await until(page, "!document.body.hasAttribute('data-running')")
        assert await fits()
        await page.locator("#menu").click()
        await page.locator("body[data-drawer]").wait_for()
        assert await fits()
        await page.keyboard.press("Escape")
        assert await page.locator("#menu").evaluate("element => element === document.activeElement")
