"""Damaged folders of multimodal language models: one short line that names the folder."""

import errno
import json
import os
import shutil

import pytest
import torch
from toklip_core.model import TINY
from toklip_mllm.model import TokLIPForConditionalGeneration, load_language_model
from toklip_mllm.published import FOLDERS, TINY_NAME
from transformers import AutoModelForImageTextToText, AutoProcessor

from tests.support.damaged_folders import NO_OBJECT
from tests.support.refusals import refusing
from tests.support.starved import NO_MEMORY, raising, system_error

FILES = ["config.json", "processor_config.json", "model.safetensors", "tokenizer.json"]
SETTINGS = ["encoder", "encoder_model", "embedding", "embedding_checksum", "grid", "features", "text_config", "dtype"]


@pytest.fixture
def folder(tmp_path):
    shutil.copytree(FOLDERS[TINY_NAME], tmp_path / "model")
    return tmp_path / "model"


@pytest.mark.slow
@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("what", ["empty", "a list", "null", "cut", "deep"])
def test_a_file_that_is_none(folder, file, what):
    (folder / file).write_bytes(NO_OBJECT[what])
    with refusing(str(folder), kind=(ValueError, OSError)):
        load_language_model(folder)


@pytest.mark.parametrize("wrong", [[], "x", -1])
@pytest.mark.parametrize("key", SETTINGS)
def test_a_setting_of_another_type(folder, key, wrong):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {key: wrong}))
    with refusing(str(folder), kind=(ValueError, OSError)):
        load_language_model(folder)


@pytest.mark.parametrize("file", ["config.json", "processor_config.json"])
@pytest.mark.parametrize(("number", "has"), [(None, "has no format number"), (2, "is of format 2")])
def test_a_folder_of_another_format(folder, file, number, has):
    """Whoever loads it: the toolkit, or the Auto classes of transformers."""
    values = json.loads((folder / file).read_text())
    assert values["format"] == 1
    (folder / file).write_text(json.dumps(values | {"format": number}))
    line = f"{folder / file} {has}, and this version of toklip reads format 1; convert or train the model again"
    auto = AutoProcessor if file == "processor_config.json" else AutoModelForImageTextToText
    for loading in (load_language_model, auto.from_pretrained):
        with refusing(line):
            loading(folder)


def test_a_folder_of_another_kind_of_model_is_named_as_that():
    with refusing("holds a 'toklip', and no language model over TokLIP; see `toklip models`"):
        load_language_model(TINY)


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."), NO_MEMORY, MemoryError()]
)
def test_a_folder_is_not_damaged_because_no_memory_is_left(monkeypatch, error):
    monkeypatch.setattr(TokLIPForConditionalGeneration, "from_pretrained", raising(error))
    with pytest.raises(type(error)) as raised:
        load_language_model(TINY_NAME)
    assert raised.value is error


def test_a_connection_that_is_lost_names_the_model_and_says_what_to_do(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr(TokLIPForConditionalGeneration, "from_pretrained", raising(system_error("ECONNRESET")))
    lost = os.strerror(errno.ECONNRESET)
    with refusing("'owner/name' is not a folder", lost, "`hf download owner/name`", kind=FileNotFoundError):
        load_language_model("owner/name")
