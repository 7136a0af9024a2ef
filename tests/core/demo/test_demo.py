"""`toklip demo` without the other packages, without a folder to write to, and with a command that fails."""

import re

import click
import pytest
from click.testing import CliRunner
from toklip_core.cli import cli
from toklip_core.cli.group import ErrorsAsLines
from toklip_core.demo import write_demo
from toklip_core.demo.chapters import CHAPTERS
from toklip_core.plugins import Plugin, Registry, discover

NOTHING = discover([])


def demo(*words, status=0):
    result = CliRunner().invoke(cli, ["demo", *map(str, words)], obj=NOTHING)
    assert result.exit_code == status, (result.output, result.exception)
    return result


def test_a_chapter_whose_package_is_missing_says_which_and_the_page_is_written_all_the_same(tmp_path):
    done = demo("--out", tmp_path / "demo.html")
    page = (tmp_path / "demo.html").read_text()
    assert re.findall(r'<p class="absent">(.*?)</p>', page)[-1] == (
        "comes with toklip-vq and toklip-gen: pip install toklip-vq toklip-gen"
    )
    assert all(chapter.title in page for chapter in CHAPTERS)
    assert f"{CHAPTERS[-1].title} (left out: it comes with toklip-vq and toklip-gen)\n" in done.stderr
    assert "more with: pip install toklip-gen toklip-mllm toklip-vq\n" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["demo.html"]


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--out", "."], "which is a folder; name a file, such as"),
        (["--out", "demo.png"], "but the page is HTML; name a file such as"),
        (["--out", "absent/demo.html"], "to write demo.html into; make it first"),
        (["--out", "/proc/demo.html"], "/proc/.demo.html.tmp"),
        (["--folder", "full"], "is not empty; name an empty or a new one"),
        (["--folder", "full/file"], "full/file is a file, and a folder is wanted there"),
    ],
)
def test_what_cannot_be_written_is_said_in_one_line_before_the_work(tmp_path, monkeypatch, words, line):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "full").mkdir()
    (tmp_path / "full/file").touch()
    done = demo(*words, status=1)
    assert line in done.stderr and len(done.stderr.splitlines()) == 1


def test_the_name_of_the_page_may_have_no_suffix(tmp_path):
    page = tmp_path / "page"
    write_demo(page, tmp_path / "work", commands=click.Group("toklip"), found=Registry((), {}, {}), say=lambda _: None)
    assert page.read_text().startswith("<!")


def test_ctrl_c_in_a_command_stops_the_demo(tmp_path):
    def interrupted():
        raise KeyboardInterrupt

    found = Registry((Plugin(name="vq", module="vq", distribution="toklip-vq", version="1"),), {}, {})
    anything = {"ignore_unknown_options": True, "allow_extra_args": True}
    command = click.Command("encode", callback=interrupted, context_settings=anything)
    group = ErrorsAsLines("cli", commands={"encode": command})
    with pytest.raises(KeyboardInterrupt):
        write_demo(tmp_path / "demo.html", tmp_path / "work", commands=group, found=found, say=lambda _: None)
    assert not (tmp_path / "demo.html").exists()


def test_a_command_that_fails_leaves_the_earlier_page_as_it_was(tmp_path):
    found = Registry((Plugin(name="vq", module="vq", distribution="toklip-vq", version="1"),), {}, {})
    (tmp_path / "demo.html").write_text("earlier")
    with pytest.raises(click.ClickException, match="No such command 'encode'"):
        write_demo(
            tmp_path / "demo.html", tmp_path / "work", commands=click.Group("toklip"), found=found, say=lambda _: None
        )
    assert (tmp_path / "demo.html").read_text() == "earlier"
    assert {path.name for path in tmp_path.iterdir()} == {"demo.html", "work"}
