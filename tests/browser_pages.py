"""Pages in a real Chromium with npm's clients in them: bundled by esbuild, loaded from no network.

Fixtures for test modules to import: `bundles`, `page_at`. A page has the server's own origin.
"""

import os
import subprocess
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

import pytest
from playwright.async_api import Page

from real_server import chromium

JS = Path(__file__).parent / "js-browser"
OURS = Path(__file__).parent.parent / "clients" / "js" / "dist" / "index.js"

PageAt = Callable[[str], AbstractAsyncContextManager[Page]]


@pytest.fixture(scope="session")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the scripts for pages."""
    if not (JS / "node_modules").exists() or not OURS.exists():
        missing = pytest.fail if os.environ.get("CI") == "true" else pytest.skip
        missing("the clients are not installed, or ours is not built. To run this test: scripts/setup-servers")
    folder = tmp_path_factory.mktemp("bundles")
    subprocess.run(["node", str(JS / "bundle.mjs"), str(folder)], check=True, timeout=60)
    return folder


@pytest.fixture
async def page_at(program: Callable[[str, str], str]) -> AsyncIterator[PageAt]:
    """`async with page_at(url) as page`: an empty page of that server, as in a browser window of its own."""
    program("node", "apt-get install nodejs npm")
    async with chromium(program("chromium", "apt-get install chromium")) as browser:

        @asynccontextmanager
        async def opened(url: str) -> AsyncIterator[Page]:
            context = await browser.new_context(bypass_csp=True)  # the server's own pages run no scripts of others
            try:
                page = await context.new_page()
                await page.goto(f"{url}/healthz")
                yield page
            finally:
                await context.close()

        yield opened
