"""Where the browser is, and people at the page of sail annotate."""

from __future__ import annotations

import shutil
from urllib.parse import urlsplit

import pytest

from sail.annotate.server import PageServer
from sail.annotate.store import Annotations

ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
]


@pytest.fixture(scope="session")
def browser():
    """A headless Chromium of the system, driven by playwright; skips where either is missing."""
    api = pytest.importorskip(
        "playwright.sync_api", reason="playwright is not installed: pip install playwright"
    )
    path = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if path is None:
        pytest.skip("no Chromium on PATH: apt-get install chromium")
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture
def labels(tmp_path):
    made = Annotations(tmp_path / "annotations.sqlite")
    yield made
    made.close()


@pytest.fixture
def server(labels, monkeypatch):
    monkeypatch.delenv("SAIL_ANNOTATE_TOKEN", raising=False)
    running = PageServer(labels.path, port=0).start()
    yield running
    running.stop()


@pytest.fixture
def visit(browser):
    """visit(link, name, ...) -> the page of a person in a context of their own; on leaving, nothing may have been said, thrown or
    asked of any other place than the link's."""
    heard, contexts = [], []

    def opened(link, name="ann", *, width=1440, height=900, scheme="light", quiet=True, **more):
        context = browser.new_context(
            viewport={"width": width, "height": height}, color_scheme=scheme, **more
        )
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(15_000)
        if quiet:
            page.on("console", lambda message: heard.append(message.text))
        page.on("pageerror", lambda error: heard.append(str(error)))
        here = urlsplit(link).netloc
        page.on(
            "request", lambda request: heard.append(request.url) if here not in request.url[:40] else None
        )
        page.goto(link)
        if name:
            page.locator("#name").fill(name)
            page.keyboard.press("Enter")
            page.locator("#pair, #message").and_(page.locator(":visible")).wait_for()
        return page

    yield opened
    for context in contexts:
        context.close()
    assert heard == []
