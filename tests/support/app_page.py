"""`toklip app` as a process, and its page in a headless Chromium. As a script it takes the pictures of the docs:

    python tests/support/app_page.py
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image
from toklip_core.scenes import Scenes

ROOT = Path(__file__).parents[2]
#: What Debian's and others' packages call it.
_BROWSERS = ("chromium", "chromium-browser", "google-chrome")
_FLAGS = [
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
]
#: Written to a folder of sys.path: no connection of the process leaves this machine, and each try is noted.
_OFFLINE = """
import os, socket
connect = socket.socket.connect
def local(self, address):
    if isinstance(address, tuple) and address[0] not in ("127.0.0.1", "::1", "localhost"):
        with open(os.environ["CONNECTIONS"], "a") as file:
            print(address, file=file)
        raise OSError("the test has no network")
    return connect(self, address)
socket.socket.connect = local
"""
#: Most milliseconds that an answer may take, also beside other tests.
PATIENCE = 120_000


class Server(NamedTuple):
    """A running `toklip app`."""

    address: str
    process: subprocess.Popen[str]
    #: Where its temporary folder is.
    temporary: Path
    #: A line for each connection to another machine that it tried.
    connections: Path


def browser() -> str | None:
    """Return the path of a Chromium; None if there is none."""
    return next(filter(None, map(shutil.which, _BROWSERS)), None)


@contextmanager
def served(folder: Path, *words: str) -> Iterator[Server]:
    """Run `toklip app` on a free port in a folder, without a network; it is ended like by Ctrl-C."""
    (folder / "site").mkdir()
    (folder / "tmp").mkdir()
    (folder / "site" / "sitecustomize.py").write_text(_OFFLINE)
    connections = folder / "connections"
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(folder / "site"), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep),
        "CONNECTIONS": str(connections),
        "TMPDIR": str(folder / "tmp"),
    }
    command = [sys.executable, "-m", "toklip_core", "app", "--no-browser", "--port", "0", *words]
    with subprocess.Popen(
        command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None and process.stderr is not None
        line = process.stdout.readline()
        assert line.startswith("toklip app: http://127.0.0.1:"), line + process.stderr.read()
        try:
            yield Server(line.split()[-1], process, folder / "tmp", connections)
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGINT)


@contextmanager
def page_of(address: str, requests: list[str]) -> Iterator[Any]:
    """Open a page in Chromium; the addresses of all that it asks for are added to ``requests``."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as player, tempfile.TemporaryDirectory() as profile:
        context = player.chromium.launch_persistent_context(
            profile, executable_path=browser(), args=_FLAGS, headless=True, viewport={"width": 1280, "height": 860}
        )
        context.set_default_timeout(PATIENCE)
        page = context.pages[0]
        page.on("request", lambda request: requests.append(request.url))
        page.goto(address)
        page.get_by_role("tab", name="Search").wait_for()
        yield page
        context.close()


def write_scene(folder: Path) -> Path:
    """Write a scene of a blue and a yellow square."""
    file = folder / "scene.png"
    Image.fromarray(Scenes(63, seed=3, split="validation", background="plain")[62].rgb).save(file)
    return file


def tell(page: Any, text: str, picture: Path | None = None) -> None:
    """Say something in the chat, after a picture."""
    if picture is not None:
        page.locator("#message input[type=file]").set_input_files(str(picture))
        page.locator("#message img").wait_for()
    page.locator("#message textarea").fill(text)
    page.get_by_test_id("submit-button").click()


def _take_pictures() -> None:
    """Write the pictures of the docs: a conversation, and the tokens of a scene."""
    pictures = ROOT / "docs" / "pictures"
    with tempfile.TemporaryDirectory() as temporary, served(Path(temporary)) as server:
        with page_of(server.address, []) as page:
            page.set_viewport_size({"width": 1180, "height": 1160})
            page.get_by_role("tab", name="Chat").click()
            tell(page, "draw a red circle above a blue square")
            page.locator(".chat .bot img").first.wait_for()
            tell(page, "what colour is the upper one?")
            page.locator(".chat .bot").nth(1).wait_for()
            page.wait_for_timeout(2000)
            page.evaluate("window.scrollTo(0, 0)")  # the chat scrolls to its end
            page.screenshot(path=pictures / "app.png")
            page.set_viewport_size({"width": 1280, "height": 840})
            page.get_by_role("tab", name="Tokens").click()
            page.locator("#map img").wait_for()
            page.wait_for_timeout(2000)
            page.screenshot(path=pictures / "app-tokens.png")


if __name__ == "__main__":
    _take_pictures()
