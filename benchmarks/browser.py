"""Pages in a real browser: headless Chromium, with everything that it asks for and complains about."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from playwright.sync_api import Browser, Page, sync_playwright

_BAD = ("error", "warning")
_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


class NoBrowserError(RuntimeError):
    """There is no Chromium on this machine."""


@dataclass
class Seen:
    """What a page did while it was open: addresses asked for, and errors and warnings in plain words."""

    requests: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)


def find_chromium() -> str:
    """The program's path. Raises NoBrowserError where there is none."""
    for name in _NAMES:
        found = shutil.which(name)
        if found is not None:
            return found
    raise NoBrowserError(f"none of {', '.join(_NAMES)} is on the PATH: install Chromium (Debian's package: chromium).")


@contextmanager
def chromium() -> Iterator[Browser]:
    """A browser without a window. Raises NoBrowserError."""
    program = find_chromium()
    # Chromium refuses its sandbox to root; the pages here are our own
    own = ["--no-sandbox"] if os.geteuid() == 0 else []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=[*own, "--disable-dev-shm-usage"])
        try:
            yield browser
        finally:
            browser.close()


@contextmanager
def opened(
    browser: Browser, file: Path, *, width: int = 1200, height: int = 900, dark: bool = False, scale: float = 1.0
) -> Iterator[tuple[Page, Seen]]:
    """A local page in a fresh profile, loaded to the end; `width` and `height` in CSS pixels, `scale` device pixels
    per CSS pixel."""
    context = browser.new_context(
        viewport={"width": width, "height": height},
        color_scheme="dark" if dark else "light",
        device_scale_factor=scale,
    )
    seen = Seen()
    try:
        page = context.new_page()
        page.on("request", lambda request: seen.requests.append(request.url))
        page.on("console", lambda said: seen.complaints.append(said.text) if said.type in _BAD else None)
        page.on("pageerror", lambda error: seen.complaints.append(str(error)))
        page.on("requestfailed", lambda request: seen.complaints.append(f"{request.url}: {request.failure}"))
        page.goto(file.resolve().as_uri(), wait_until="load")
        yield page, seen
    finally:
        context.close()
