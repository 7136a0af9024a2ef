"""`toklip app` with all packages, offline, in a real browser: asked, drawn, pointed at, searched, compared, ended."""

from __future__ import annotations

import http.client
import io
import os
import re
import signal
from urllib.parse import quote, urlsplit

import pytest
from PIL import Image

from tests.support.app_page import PATIENCE, browser, page_of, served, tell, write_scene


def answers(page, count):
    """The answers of the chat, once there are so many and the last one is whole."""
    page.locator(".chat .bot .message-content, .chat .bot img").nth(count - 1).wait_for()
    page.wait_for_function("!document.querySelector('.chat [data-testid=status-tracker]:not(.hide)')")
    return page.locator(".chat .bot")


def picture(page, locator):
    """The picture that the page shows, as its server has it, once the browser has seen it."""
    page.wait_for_function("image => image.complete && image.naturalWidth > 0", arg=locator.element_handle())
    return Image.open(io.BytesIO(page.request.get(locator.get_attribute("src")).body()))


def got(server, path, **headers):
    """The response of the server to a request that no browser makes."""
    place = urlsplit(server.address)
    connection = http.client.HTTPConnection(place.hostname, place.port, timeout=PATIENCE / 1000)
    connection.request("GET", path, headers=headers)
    response = connection.getresponse()
    response.read()
    connection.close()
    return response


def ask_and_draw(page, scene):
    page.get_by_role("tab", name="Chat").click()
    tell(page, "how many objects are there?", scene)
    answer = answers(page, 1).last.inner_text().strip()
    assert answer and "⚠" not in answer
    tell(page, "draw a large red circle")
    page.locator(".chat .message-content").filter(has_text="draw a large").wait_for()
    page.locator("#message textarea").fill("what colour is the circle?")  # while the model draws
    image = answers(page, 2).locator("img").last
    drawn = picture(page, image)
    assert drawn.size == (64, 64) and len(set(drawn.convert("L").tobytes())) > 8
    assert re.search("/[0-9a-f]{32}.png$", image.get_attribute("src"))
    assert page.locator("#message textarea").input_value() == "what colour is the circle?"
    page.get_by_test_id("submit-button").click()
    page.locator(".chat .message-content").filter(has_text="what colour").wait_for()
    answer = answers(page, 3).last.inner_text().strip()
    assert answer and "⚠" not in answer


def point_at_a_token(page):
    page.get_by_role("tab", name="Tokens").click()
    page.locator("#token .matches").wait_for()
    grid = page.locator("#grid img")
    assert picture(page, grid).size == (512, 512)
    box, token = grid.bounding_box(), page.locator("#token")
    grid.click(position={"x": box["width"] * 2.5 / 8, "y": box["height"] * 6.5 / 8})
    token.filter(has_text="row 7, column 3").wait_for()
    assert token.locator("code").first.inner_text().isdigit()
    assert token.locator(".matches tr").count() == 8
    # The click also ends the editing of the texts, which are read then: it stays in force, as it does afterwards.
    page.locator("#token-texts textarea").fill("a red circle\na blue star\na yellow square")
    grid.click(position={"x": box["width"] * 4.5 / 8, "y": box["height"] * 0.5 / 8})
    token.filter(has_text="of 3 texts").filter(has_text="row 1, column 5").wait_for()
    page.get_by_role("tab", name="Search").click()
    page.get_by_role("tab", name="Tokens").click()
    page.wait_for_timeout(1000)
    assert "row 1, column 5" in token.inner_text()


def search(page):
    page.get_by_role("tab", name="Search").click()
    page.locator("#text").locator("textarea, input").first.fill("a blue star")
    page.get_by_role("button", name="Search", exact=True).click()
    page.locator("#results .caption-label").nth(11).wait_for()
    cosines = [float(text.split()[0]) for text in page.locator("#results .caption-label").all_inner_texts()]
    assert len(cosines) == 12 and cosines == sorted(cosines, reverse=True)
    assert picture(page, page.locator("#results img").first).size == (64, 64)


def compare_tokenizers(page):
    page.get_by_role("tab", name="Tokenizers").click()
    caption = page.locator("#reconstructions .caption-label").filter(has_text="vqgan-tiny: 4,096 ids")
    caption.wait_for()
    assert " dB" in caption.inner_text()


def nothing_came_from_another_host(server, requests):
    others = [url for url in requests if not url.startswith((f"{server.address}/", "data:", "blob:"))]
    assert len(requests) > 20 and others == []
    assert not server.connections.exists(), server.connections.read_text()
    policy = got(server, "/").getheader("content-security-policy")
    assert policy.startswith("default-src 'self'") and "http" not in policy


def refuse_other_hosts_and_files(server, scene):
    assert got(server, "/", Host="elsewhere.example").status == 400
    assert got(server, f"/gradio_api/file={quote(str(scene))}").status == 403


def end(server):
    """Ctrl-C, while the page is open."""
    assert [path.name for path in server.temporary.glob("toklip-app-*")] != []
    server.process.send_signal(signal.SIGINT)
    _, said = server.process.communicate(timeout=PATIENCE / 1000)
    assert server.process.returncode == 130 and said == ""
    assert [*server.temporary.glob("toklip-app-*")] == []


@pytest.mark.slow
@pytest.mark.skipif(browser() is None and "CI" not in os.environ, reason="there is no Chromium here")
def test_the_page_answers_draws_points_searches_and_compares_without_a_network_and_ends(tmp_path):
    """One test, because its server and its browser take longer to start than all of its steps."""
    assert browser() is not None, "there is no Chromium: apt-get install chromium"
    scene, requests = write_scene(tmp_path), []
    with served(tmp_path) as server, page_of(server.address, requests) as page:
        ask_and_draw(page, scene)
        point_at_a_token(page)
        search(page)
        compare_tokenizers(page)
        nothing_came_from_another_host(server, requests)
        refuse_other_hosts_and_files(server, scene)
        end(server)
