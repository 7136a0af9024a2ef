"""Damaged folders of `toklip train vq`: one short line that names the file."""

from pathlib import Path

import toklip_vq
from toklip_core import load_tokenizer

from tests.support.damaged_folders import loaded_after_every_damage


def test_a_tokenizer(tmp_path):
    tiny = Path(toklip_vq.__file__).parent / "models" / "vqgan-tiny"
    assert loaded_after_every_damage(tiny, tmp_path, lambda folder: load_tokenizer("vqgan", folder)) == []
