"""The official files: every name has its place, tensors are mapped, and no code is run."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from toklip_core.model import (
    IGNORED,
    TokLIP,
    config_of_official,
    model_spec,
    models,
    official_name,
    published_text_tokenizer,
    read_official,
)
from torch import nn

from tests.support.official_files import official_state, write_official
from tests.support.small_models import small_toklip

GOLDENS = Path(__file__).parents[2] / "goldens"

pytestmark = pytest.mark.usefixtures("toy")


def load(path, **options):
    return TokLIP.from_pretrained(path, config=small_toklip().config, **options)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "golden"), [("toklip-s-256", "toklip_s_256"), ("toklip-l-384", "toklip_l_384")])
def test_every_name_of_a_published_file_is_loaded_or_ignored_with_a_reason(name, golden):
    with torch.device("meta"):
        model = TokLIP(model_spec(name).config)
    loaded = {official_name(ours): tuple(tensor.shape) for ours, tensor in model.state_dict().items()}
    published = {
        theirs: tuple(shape) for theirs, shape in json.loads((GOLDENS / f"{golden}.keys.json").read_text()).items()
    }
    rest = {theirs for theirs in published if theirs not in loaded}
    assert all(any(re.fullmatch(pattern, theirs) and why for pattern, why in IGNORED.items()) for theirs in rest)
    assert {theirs: published[theirs] for theirs in loaded} == loaded
    empty = {theirs: torch.empty(shape, device="meta") for theirs, shape in published.items()}
    assert config_of_official(empty, "x.pt") == model_spec(name).config


def test_no_two_tensors_have_one_official_name():
    model = small_toklip()
    assert len({official_name(name) for name in model.state_dict()}) == len(model.state_dict())


def test_published_models_are_named_by_their_pictures():
    for name, spec in models().items():
        if spec.config is not None:
            side = int(name.rsplit("-", 1)[1])
            assert spec.config.image_size == side and spec.config.encoder.grid == (side // 16, side // 16)
            assert f"{side} px, {(side // 16) ** 2} tokens" in spec.summary
            assert spec.source.endswith(f"_{side}.pt") and spec.licence


def test_an_unknown_name_is_one_line_with_the_nearest():
    with pytest.raises(LookupError, match=r"no model is named 'toklip-x-512', .* Did you mean 'toklip-xl-512'\?"):
        model_spec("toklip-x-512")
    assert model_spec("toklip-b-256") is model_spec("toklip-s-256")


def test_numpy_scalars_beside_the_tensors_are_read_over(tmp_path):
    scalars = {"loss": np.float64(1.5), "flag": np.bool_(True), "half": np.float16(2)}
    assert load(write_official(tmp_path / "x.pt", small_toklip(), **scalars)).config == small_toklip().config


def test_names_may_be_those_of_a_model_that_was_not_wrapped(tmp_path):
    torch.save({"state_dict": official_state(small_toklip())}, tmp_path / "x.pt")
    torch.save(official_state(small_toklip()), tmp_path / "flat.pt")
    for name in ("x.pt", "flat.pt"):
        assert torch.equal(load(tmp_path / name).encoder.pos_embed, small_toklip().encoder.pos_embed)


def test_the_tokenizer_inside_the_file_is_the_one_to_use(tmp_path):
    model = small_toklip()
    model.tokenizer.module.levels.mul_(0.5)
    loaded = load(write_official(tmp_path / "x.pt", model))
    assert torch.equal(loaded.tokenizer.module.levels, model.tokenizer.module.levels)
    assert torch.equal(loaded.tokenizer.weights["levels"], model.tokenizer.module.levels)


def file_at(address):
    """The file that an address of this process is mapped from."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        place, *_, = line.split()
        start, end = (int(x, 16) for x in place.split("-"))
        if start <= address < end:
            return line.split(maxsplit=5)[5:] or [""]
    return [""]


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="only Linux says what is mapped")
@pytest.mark.parametrize("kind", ["official", "folder"])
def test_weights_are_mapped_from_the_disk_and_the_optimizer_is_left_there(tmp_path, kind):
    path = write_official(tmp_path / "x.pt", small_toklip())
    if kind == "folder":
        load(path).save_pretrained(tmp_path / "folder")
        path = tmp_path / "folder"
    loaded = load(path) if kind == "official" else TokLIP.from_pretrained(path)
    file = path if path.is_file() else path / "model.safetensors"
    for name, parameter in loaded.named_parameters():
        assert file_at(parameter.data_ptr()) == [str(file)], name


@pytest.mark.parametrize(
    ("without", "more", "match"),
    [
        ("visual.trunk.norm.bias", {}, r"x\.pt' does not fit: missing: visual\.trunk\.norm\.bias$"),
        ("text.ln_final.weight", {}, r"x\.pt' does not fit: missing: text\.ln_final\.weight$"),
        ("visual.trunk.vq.levels", {}, r"x\.pt: visual\.trunk\.vq: 'the given .*' does not fit: missing: levels$"),
        ("visual.trunk.pos_embed", {}, r"x\.pt' holds no TokLIP: it has no visual\.trunk\.pos_embed$"),
        ("", {"run": nn.Linear(1, 1)}, r"x\.pt' is refused: it asks to run torch\.nn\.modules\.linear\.Linear"),
        ("", {"optimizer": {"state": Path("x")}}, r"x\.pt' is refused: it asks to run pathlib"),
        ("", {"state_dict": 3}, r"x\.pt' holds a int where tensors by name are wanted"),
    ],
    ids=str,
)
def test_a_file_that_does_not_fit_is_one_line(tmp_path, without, more, match):
    path = write_official(tmp_path / "x.pt", small_toklip(), without=[without], **more)
    with pytest.raises(ValueError, match=match) as raised:
        load(path)
    assert "\n" not in str(raised.value)


def test_a_tensor_too_many_is_one_line(tmp_path):
    state = official_state(small_toklip()) | {"visual.trunk.reg_token": torch.ones(1)}
    torch.save({"state_dict": state}, tmp_path / "x.pt")
    with pytest.raises(ValueError, match=r"x\.pt' does not fit: not expected: visual\.trunk\.reg_token$"):
        load(tmp_path / "x.pt")


@pytest.mark.parametrize("part", [0.2, 0.9, 0.999])
def test_a_truncated_file_is_one_line(tmp_path, part):
    path = write_official(tmp_path / "x.pt", small_toklip())
    path.write_bytes(path.read_bytes()[: int(part * path.stat().st_size)])
    says = r"x\.pt' is (cut short|damaged), or no file of weights( \(.*\))?; fetch it again"
    with pytest.raises(ValueError, match=says):
        load(path)


def test_the_vision_side_loads_from_a_file_whose_text_tower_is_damaged(tmp_path):
    path = write_official(tmp_path / "x.pt", small_toklip(), without=["text.ln_final.weight"])
    assert load(path, text=False, tokenizer=False).text is None
    assert load(path, text=False).tokenizer.codebook_dim == 1


def test_reading_gives_the_tokenizers_tensors_by_its_own_names(tmp_path):
    tensors, own = read_official(write_official(tmp_path / "x.pt", small_toklip()))
    assert set(own) == {"levels"}
    assert not any(name.startswith("module.") for name in tensors)


def test_a_text_tokenizer_that_is_not_to_be_had_is_a_warning(monkeypatch, tmp_path, caplog):
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    assert published_text_tokenizer(model_spec("toklip-l-384").config) is None
    assert re.search(
        r"texts cannot be read: tokenizer\.json is not in the hub's cache .* fetch https://\S+ to any place and give "
        r"it to `toklip convert` \(`--text-tokenizer PATH/tokenizer\.json`\)",
        caplog.text,
    )
    assert published_text_tokenizer(small_toklip().config) is None
