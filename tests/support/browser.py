"""A real Chromium without a window, with what its console said."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser, BrowserContext, ConsoleMessage, Page

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
FLAGS = (
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync"),
)
SECONDS = 60.0

needs_browser = pytest.mark.skipif(
    CHROMIUM is None or find_spec("playwright") is None, reason="there is no Chromium here: apt-get install chromium"
)


@contextmanager
def open_browser() -> Iterator["Browser"]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=list(FLAGS))
        yield browser
        browser.close()


class Tabs:
    """Tabs of one browser profile, and the problems that their consoles told of."""

    def __init__(self, context: "BrowserContext", url: str) -> None:
        self.context = context
        self.url = url
        self.problems: list[str] = []
        context.set_default_timeout(SECONDS * 1000)

    def open(self, path: str) -> "Page":
        page = self.context.new_page()
        page.on("console", self._note)
        page.on("pageerror", lambda error: self.problems.append(str(error)))
        page.goto(self.url + path)
        return page

    def _note(self, message: "ConsoleMessage") -> None:
        if message.type == "error":
            self.problems.append(f"{message.text} ({message.location.get('url')})")
