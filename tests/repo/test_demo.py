"""`toklip demo` with all packages: the page needs no other file, and its Python code does the same as the commands."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from toklip_core.cli import cli
from toklip_core.demo.chapters import CHAPTERS, ROW, SCENE, STORE
from toklip_core.pictures import open_picture, to_pixels
from toklip_core.store import TokenStore

from tests.support.pages import ROOT


@pytest.fixture(scope="module")
def shown(tmp_path_factory):
    """A folder with the page, and the working folder of its commands, in work/."""
    folder = tmp_path_factory.mktemp("demo")
    words = ["demo", "--out", str(folder / "demo.html"), "--folder", str(folder / "work")]
    done = CliRunner().invoke(cli, words)
    assert done.exit_code == 0, (done.output, done.exception)
    return folder


@pytest.fixture(scope="module")
def variables(shown):
    """What is left when the Python of all chapters has run, as typed, in the working folder."""
    found: dict = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(shown / "work")
        for chapter in CHAPTERS:
            exec(compile(chapter.python, chapter.title, "exec"), found)
    return found


class Tags(HTMLParser):
    def __init__(self, page):
        super().__init__()
        self.found: list[tuple[str, dict]] = []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))


def pixels(file):
    with Image.open(file) as picture:
        return picture.convert("RGB").tobytes()


@pytest.mark.slow
def test_the_page_loads_nothing_from_elsewhere(shown):
    page = (shown / "demo.html").read_text()
    tags = Tags(page).found
    assert not {tag for tag, _ in tags} & {"script", "link", "iframe", "object"}
    targets = [(tag, name, value) for tag, given in tags for name, value in given.items() if name in ("src", "href")]
    assert targets
    anchors = {given["id"] for _, given in tags if "id" in given}
    for tag, name, value in targets:
        assert value.startswith("data:image/") if name == "src" else value[1:] in anchors, (tag, value[:80])
    style = page[page.index("<style>") : page.index("</style>")]
    assert "url(" not in style and "@import" not in style


def test_every_chapter_shows_its_pictures_its_commands_and_its_python(shown):
    text = Tags((shown / "demo.html").read_text())
    sections = [given["id"] for tag, given in text.found if tag == "section"]
    assert sections == [chapter.name for chapter in CHAPTERS]
    described = [given["alt"] for tag, given in text.found if tag == "img"]
    assert all(picture.caption in described for chapter in CHAPTERS for picture in chapter.pictures)
    page = (shown / "demo.html").read_text()
    assert page.count("<b>$</b> toklip ") == sum(len(chapter.commands) for chapter in CHAPTERS)
    assert "absent" not in re.sub(r"<style>.*?</style>", "", page, flags=re.DOTALL)


@pytest.mark.slow
def test_the_python_from_the_stored_ids_gives_the_pictures_of_the_commands(shown, variables):
    work = shown / "work"
    for python, command in [
        ("photograph-again.png", "decoded/photograph.jpg.png"),
        ("scene-again.png", f"decoded/{SCENE}.png"),
        ("continued-again.png", "continued.png"),
    ]:
        assert pixels(work / python) == pixels(work / command), python


def test_the_ids_on_the_page_are_those_of_the_store_and_of_the_semantic_encoder(shown, variables):
    ids = TokenStore(shown / "work" / STORE)[ROW].ids
    page = (shown / "demo.html").read_text()
    table = page[page.index('<table class="ids">') : page.index("</table>")]
    assert [int(number) for number in re.findall(r">(\d+)</td>", table)] == ids[..., 0].flatten().tolist()
    picture = open_picture(shown / "work" / SCENE)
    of_toklip = variables["model"].encode_pictures([picture]).ids[0]
    assert torch.equal(of_toklip, ids)


def test_the_ids_that_are_asked_about_are_those_of_the_store(shown, variables):
    picture = open_picture(shown / "work" / SCENE)
    of_store = TokenStore(shown / "work" / STORE)[ROW].ids
    assert torch.equal(variables["processor"].encode([picture])[0], of_store)


def test_drawing_goes_on_from_the_ids_of_the_scene(shown, variables):
    picture = open_picture(shown / "work" / SCENE)
    generator = variables["generator"]
    of_generator = generator.tokenizer.encode(to_pixels(picture, 64)[None])[0]
    assert torch.equal(variables["drawn"][0, :4], of_generator[:4])


def test_the_answers_are_those_that_the_page_speaks_of(shown):
    page = (shown / "demo.html").read_text()
    hero = page[: page.index("</header>")]
    assert re.findall(r"<b>([\w ]+)</b></p>", hero) == ["yes", "2", "in the lower right", "no"]
    assert re.findall(r"(a \w+ square) <b>(\d\d)", hero) == [("a yellow square", "65"), ("a blue square", "34")]


def test_the_picture_and_the_row_of_the_store_are_one(shown):
    assert TokenStore(shown / "work" / STORE)[ROW].key == SCENE


def test_the_rates_on_the_page_are_those_of_the_results():
    results = "".join(page.read_text() for page in (ROOT / "docs/results").glob("*.md"))
    rates = [rate for chapter in CHAPTERS for rate in re.findall(r"\d+\.\d %", chapter.text)]
    chance = "0.1 %"  # 1 of 1,000
    assert len(rates) > 5
    for rate in rates:
        assert rate == chance or re.search(rf"(?<![\d.]){re.escape(rate)}", results), rate
