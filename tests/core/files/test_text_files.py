"""Text files from users: byte-order marks are dropped, other encodings are named, characters are whole."""

import codecs
import json
from pathlib import Path

import pytest
from click.testing import CliRunner
from pydantic import BaseModel
from toklip_core.captioned import CaptionedTable, PictureTable
from toklip_core.cli import cli
from toklip_core.config import load_config
from toklip_core.evaluation import karpathy_pairs, read_labels
from toklip_core.files import json_rows, read_json
from toklip_core.weights import read_config

from tests.core.conftest import picture


class Settings(BaseModel):
    """One setting."""

    steps: int


def table(file: Path) -> list[list[str]]:
    found = PictureTable(CaptionedTable(kind="table", table=file))
    return [found.captions(number) for number in range(len(found))]


KARPATHY = {"images": [{"filename": "a.png", "split": "test", "sentences": [{"raw": "red"}]}]}
#: Name -> text, and what reads it to one value whatever the file begins with.
FILES = {
    "settings.toml": ("steps = 3\n", lambda file: load_config(file, Settings).steps),
    "labels.txt": ("red\nblue\n", lambda file: read_labels(None, file)),
    "table.csv": ("image,caption\na.png,red\n", table),
    "table.tsv": ("image\tcaption\na.png\tred\n", table),
    "table.jsonl": ('{"image": "a.png", "caption": "red"}\n', table),
    "dataset_coco.json": (
        json.dumps(KARPATHY),
        lambda file: [pair.captions for pair in karpathy_pairs(file, "test", file.parent)],
    ),
    "config.json": ('{"format": 1, "kind": "x"}', read_config),
    "list.json": ("[1, 2]", lambda file: list(json_rows(file))),
    "lines.jsonl": ("1\n\n2\n", lambda file: list(json_rows(file))),
}


@pytest.mark.parametrize("name", FILES)
def test_a_byte_order_mark_is_no_part_of_a_text(name, tmp_path):
    picture(0).save(tmp_path / "a.png")
    text, read = FILES[name]
    file = tmp_path / name
    file.write_bytes(text.encode())
    plain = read(file)
    file.write_bytes(codecs.BOM_UTF8 + text.encode())
    assert read(file) == plain


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-be", "latin-1"])
@pytest.mark.parametrize("name", FILES)
def test_another_encoding_is_refused_by_the_name_of_the_file(name, encoding, tmp_path):
    text, read = FILES[name]
    file = tmp_path / name
    file.write_bytes((codecs.BOM_UTF16_BE if encoding == "utf-16-be" else b"") + f"{text}ü".encode(encoding))
    with pytest.raises(ValueError, match=rf"{name} is not UTF-8 text \(.*\); save it as UTF-8$"):
        read(file)


def test_the_config_of_convert_may_have_a_byte_order_mark(tmp_path):
    (tmp_path / "config.json").write_bytes(codecs.BOM_UTF8 + b"[]")
    words = ["convert", "x.pt", str(tmp_path / "out"), "--config", str(tmp_path / "config.json")]
    assert "config.json' holds a list, not an object" in CliRunner().invoke(cli, words).output


def test_json_gives_whole_characters_wherever_a_text_is(tmp_path):
    file = tmp_path / "x.json"
    file.write_text(r'[{"a\ud83d": ["\uD83D", {"b": "\ude00!"}], "whole": "\ud83d\ude00", "number": 1}]')
    whole = {"a\ufffd": ["\ufffd", {"b": "\ufffd!"}], "whole": "😀", "number": 1}
    assert read_json(file) == [whole] and list(json_rows(file)) == [(1, whole)]


def test_a_line_that_is_no_json_is_named_by_its_place_in_the_file(tmp_path):
    (tmp_path / "x.jsonl").write_text('\n{"a": 1}\n\n{\n')
    with pytest.raises(ValueError, match=r"x.jsonl, row 4 is not JSON"):
        list(json_rows(tmp_path / "x.jsonl"))
