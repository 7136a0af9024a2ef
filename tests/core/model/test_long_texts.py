"""A text too long for the text tower is refused if a user typed it, and otherwise counted."""

import json
import logging
import re

import pytest
import torch
from click.testing import CliRunner
from open_clip.tokenizer import SimpleTokenizer
from toklip_core.cli import cli
from toklip_core.evaluation import evaluate_retrieval, evaluate_zero_shot, text_features
from toklip_core.model import TextTokenizer
from toklip_core.tasks import train_encoder, train_teacher

from tests.core.conftest import picture
from tests.core.tasks.test_teacher import config as teacher_config
from tests.support.encoder_runs import config, pictures
from tests.support.small_models import small_clip, small_toklip, text_config, words

FITS = " ".join(["red"] * 11)  # and the end: 12, all that the small models read
LONG = FITS + " circle"


@pytest.fixture
def folder(toy, tmp_path, monkeypatch):
    """The small TokLIP, and two pictures of two classes."""
    monkeypatch.chdir(tmp_path)
    small_toklip().save_pretrained("model")
    for number, name in enumerate(["star", "circle"]):
        (tmp_path / "classes" / name).mkdir(parents=True)
        picture(number).save(tmp_path / "classes" / name / f"{number}.png")
        picture(number).save(tmp_path / f"{number}.png")
    return tmp_path


def tokenizer(kind):
    if kind == "file":
        return small_clip().text.tokenizer
    if kind == "padded with the end":  # as SigLIP's
        padded = text_config().model_copy(update={"pad_id": text_config().eos_id})
        return TextTokenizer(padded, words())
    config = text_config().model_copy(
        update={"tokenizer": "clip", "context_length": 12, "vocabulary": 49408, "clean": "lower", "eos_id": None}
    )
    return TextTokenizer(config, None)


@pytest.mark.parametrize("kind", ["file", "clip"])
def test_the_length_of_a_text_is_that_of_its_ids_uncut(kind):
    read = tokenizer(kind)
    fits = FITS if kind == "file" else " ".join(["red"] * 10)  # CLIP's begins with a token, too
    assert read.lengths(["red", fits, f"{fits} circle"])[1:] == [12, 13]
    assert read.cut_texts(["red", fits, f"{fits} circle"]) == [f"{fits} circle"]
    assert torch.equal(read([fits])[:, :11], read([f"{fits} circle"])[:, :11])
    if kind == "clip":
        assert (SimpleTokenizer(context_length=20)([f"{fits} circle"]) > 0).sum() == 13


@pytest.mark.parametrize("kind", ["file", "clip", "padded with the end"])
def test_that_texts_are_cut_is_said_once_and_counted(kind, caplog):
    read = tokenizer(kind)
    for texts in (["red"], [LONG, "red", LONG], [FITS[:-4], LONG]):
        read.warn_of_cut(texts, read(texts))
    assert read.cut == 3
    assert len(caplog.records) == 1 and "texts are cut after 12 tokens" in caplog.text and LONG in caplog.text


def test_from_the_python_api_a_cut_is_said(caplog):
    model = small_clip()
    model.text_features([FITS])
    assert not caplog.records
    model.text_features([LONG])
    assert "texts are cut after 12 tokens" in caplog.text


@pytest.mark.parametrize(
    "words",
    [
        ["search", "0.png", LONG],
        ["classify", "0.png", "--labels", f"a red circle,{LONG}"],
        ["classify", "0.png", "--labels", "red,blue", "--template", f"{LONG[:-10]} {{}} star"],
        ["explain", "0.png", "a red circle", LONG],
    ],
    ids=["search", "classify", "template", "explain"],
)
def test_a_typed_text_that_would_be_cut_is_refused(folder, words):
    result = CliRunner().invoke(cli, [*words, "--model", "model", "--device", "cpu"])
    assert result.exit_code == 1
    line = result.output.strip().splitlines()[-1]
    wanted = r"Error: the text '.*' has 13 tokens, and the model reads 12: it would be cut; shorten it"
    assert re.fullmatch(wanted, line)


@pytest.mark.parametrize("command", [["search", "0.png"], ["classify", "0.png", "--labels"], ["explain", "0.png"]])
def test_a_typed_text_that_just_fits_is_read(folder, command, caplog):
    result = CliRunner().invoke(cli, [*command, FITS, "--model", "model", "--device", "cpu", "--json"])
    assert result.exit_code == 0, result.output
    assert "cut" not in caplog.text


def test_captions_of_retrieval_that_are_cut_are_counted_in_the_protocol_and_said_once(folder, caplog):
    rows = [{"image": "0.png", "captions": [LONG, "a red star"]}, {"image": "1.png", "captions": [f"{LONG} blue", "a"]}]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    report = evaluate_retrieval("model", "pairs.jsonl")
    assert report.protocol["cut"] == "2 of 4 texts, after the 12 tokens that the model reads"
    assert "2 of 4 texts" in report.as_text() and caplog.text.count("texts are cut after 12 tokens") == 1


def test_names_of_classes_that_are_cut_are_counted_in_the_protocol(folder):
    report = evaluate_zero_shot("model", "classes", templates=["a {}", f"{FITS} {{}}"])
    assert report.protocol["cut"] == "2 of 4 texts, after the 12 tokens that the model reads"
    assert "cut" not in evaluate_zero_shot("model", "classes", templates=["a {}"]).protocol


def test_a_model_without_a_tokenizer_of_ours_is_none_to_ask(caplog):
    class Other:
        def text_features(self, texts):
            return torch.ones(len(texts), 4)

    with caplog.at_level(logging.WARNING):
        assert text_features(Other(), [LONG]).shape == (1, 4)
    assert not caplog.records


@pytest.mark.slow
@pytest.mark.parametrize("known", [False, True], ids=["read with their batch", "known before the first step"])
def test_captions_of_a_training_that_are_cut_are_said_at_the_first_and_counted_at_the_end(
    world, tmp_path, caplog, known
):
    source = pictures(world)
    if known:
        rows = [{"image": f"{n:02}.png", "caption": LONG if n % 3 == 0 else f"a red {n}"} for n in range(12)]
        (tmp_path / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        source = {"kind": "table", "table": str(tmp_path / "t.jsonl"), "root": str(world / "pictures")}
    else:
        for number in (0, 3):
            file = world / f"pictures/{number:02}.txt"
            file.write_text(LONG)
    train_encoder(config(world, source, run={"steps": 3}), tmp_path / "run")  # 12 captions: each picture once
    cut = 1 if known else 2  # distinct captions are read once
    assert caplog.text.count("texts are cut after 12 tokens") == 1
    assert f"{cut} caption{'' if cut == 1 else 's'} w{'as' if cut == 1 else 'ere'} cut after 12 tokens" in caplog.text


def test_captions_of_a_teachers_training_that_are_cut_are_counted(tmp_path, caplog):
    for number in range(4):
        picture(number).save(tmp_path / f"{number}.png")
        (tmp_path / f"{number}.txt").write_text("a red circle " * (6 if number else 1))
    source = {"kind": "pictures", "inputs": [str(tmp_path)]}
    train_teacher(teacher_config(source, run={"steps": 2, "batch_size": 4, "accumulate": 2}), tmp_path / "run")
    assert caplog.text.count("texts are cut after 16 tokens") == 1
    assert "6 captions were cut after 16 tokens" in caplog.text
