"""A lone surrogate, which JSON and a terminal can contain, becomes U+FFFD in every text that is read."""

import json

import pytest
import torch
from click.testing import CliRunner
from toklip_core.captioned import CaptionedSamples, CaptionedTable
from toklip_core.cli import cli
from toklip_core.evaluation import karpathy_pairs, refuse_duplicates, table_pairs
from toklip_core.files import replace_lone_surrogates

from tests.core.conftest import picture
from tests.support.small_models import small_clip, small_toklip

HALF, TYPED = "a red circle \ud83d", "a red circle caf\udce9"  # JSON's, and Latin-1 in a terminal of UTF-8


@pytest.mark.parametrize(
    ("text", "whole"),
    [
        (HALF, "a red circle \ufffd"),
        (TYPED, "a red circle caf\ufffd"),
        ("\ud83d\ude00 and \U0001f600", "\U0001f600 and \U0001f600"),  # two halves in a row are a character
        ("\ude00\ud83d", "\ufffd\ufffd"),
        ("größe", "größe"),
        ("", ""),
    ],
)
def test_half_a_character_is_replaced_and_two_halves_are_one(text, whole):
    assert replace_lone_surrogates(text) == whole


@pytest.fixture
def folder(tmp_path):
    picture(0).save(tmp_path / "a.png")
    picture(1).save(tmp_path / "b.png")
    return tmp_path


def test_a_caption_in_a_table_or_a_karpathy_file_is_whole(folder):
    (folder / "t.jsonl").write_text('{"image": "a.png", "captions": ["one \\ud83d", "two \\ud83d\\ude00"]}\n')
    (pair,) = table_pairs(folder / "t.jsonl", folder)
    assert list(pair.captions) == ["one \ufffd", "two \U0001f600"]
    source = CaptionedTable(kind="table", table=folder / "t.jsonl", caption="captions")
    data = CaptionedSamples([source], image_size=32, resize="crop", seed=0)
    assert {data[epoch, 0]["caption"] for epoch in range(20)} == {"one \ufffd", "two \U0001f600"}
    row = {"filename": "a.png", "split": "test", "sentences": [{"raw": "one \ud83d"}]}
    (folder / "k.json").write_text(json.dumps({"images": [row]}))
    assert [list(pair.captions) for pair in karpathy_pairs(folder / "k.json", "test", folder)] == [["one \ufffd"]]


def test_a_text_tower_reads_half_a_character_as_its_replacement():
    model = small_clip()
    halves, whole = (model.text_features([text]) for text in (HALF, "a red circle \ufffd"))
    assert torch.equal(halves, whole)
    assert model.text.tokenizer.unknown_words([HALF]) == model.text.tokenizer.unknown_words(["\ufffd"])


def test_texts_that_differ_in_a_half_alone_are_alike():
    with pytest.raises(ValueError, match="the text 'a \ufffd' occurs twice"):
        refuse_duplicates(["a \ud83d", "a \udce9"], "text")


@pytest.mark.parametrize(
    "words",
    [
        ["search", "b.png", TYPED],
        ["classify", "b.png", "--labels", f"{TYPED},a blue star"],
        ["classify", "b.png", "--labels", "red circle,blue star", "--template", "a {} \udce9"],
        ["explain", "a.png", TYPED, "a blue star"],
    ],
    ids=["search", "classify", "template", "explain"],
)
def test_half_a_character_on_the_command_line_is_no_traceback(toy, folder, monkeypatch, words):
    small_toklip().save_pretrained(folder / "model")
    monkeypatch.chdir(folder)
    result = CliRunner().invoke(cli, [*words, "--model", "model", "--device", "cpu", "--json"])
    assert result.exit_code == 0, result.output
    assert "\\ufffd" in result.stdout and "\\ud83d" not in result.stdout and "\\udce9" not in result.stdout
