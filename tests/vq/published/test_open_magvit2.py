"""Open-MAGVIT2: the numbers of the official code, and its Lightning files with all their contents."""

from __future__ import annotations

import json
import os

import pytest
import torch
from toklip_core import load_tokenizer
from toklip_core.testing import check_the_description_fits, tokenizer_checks
from toklip_vq.published import (
    OPEN_MAGVIT2_CONFIGS,
    OpenMAGVIT2,
    OpenMAGVIT2Config,
    load_open_magvit2,
    open_magvit2_name,
)

from tests.support.deterministic import GOLDENS, arrays, constant, small_weights

SMALL = json.loads((GOLDENS / "open_magvit2.json").read_text())
PUBLISHED = json.loads((GOLDENS / "open_magvit2.keys.json").read_text())

#: Tokenizer -> its file in the golden; that of 262144-pretrain has the names and shapes of that of 256.
FILES = {
    "open-magvit2-256": "256",
    "open-magvit2-128": "128",
    "open-magvit2-16384-pretrain": "pretrain_16384",
    "open-magvit2-262144-pretrain": "256",
}

SIZES = SMALL["config"]["ddconfig"]
CONFIG = OpenMAGVIT2Config(SIZES["z_channels"], SIZES["ch"], tuple(SIZES["ch_mult"]), SIZES["num_res_blocks"])


def small_file() -> dict[str, torch.Tensor]:
    state = {"model_ema.decay": torch.tensor(0.999), "model_ema.num_updates": torch.tensor(-1, dtype=torch.int32)}
    return small_weights("open_magvit2") | state


def published_weights(name: str) -> dict[str, torch.Tensor]:
    return {key: constant(key, tuple(shape)) for key, shape in PUBLISHED[FILES[name]].items()}


@pytest.mark.parametrize("averaged", [True, False])
def test_it_gives_the_numbers_of_the_official_code(tmp_path, averaged):
    golden, which = arrays("open_magvit2"), "ema_" if averaged else ""
    torch.save({"state_dict": small_file(), "epoch": 1}, tmp_path / "weights.ckpt")
    tokenizer = load_open_magvit2(tmp_path / "weights.ckpt", CONFIG, averaged=averaged)
    with torch.no_grad():
        latents = tokenizer.autoencoder.latents(golden["pixels"])
    ids = tokenizer.encode(golden["pixels"])
    torch.testing.assert_close(latents, golden[f"{which}latents"], rtol=0, atol=5e-5)
    assert torch.equal(ids[..., 0], golden[f"{which}ids"])
    assert torch.equal(ids[..., 0] % 64, golden[f"{which}ids_first"])
    assert torch.equal(ids[..., 0] // 64, golden[f"{which}ids_second"])
    assert torch.equal(tokenizer.embedding(ids).movedim(-1, 1), golden[f"{which}quantized"])
    torch.testing.assert_close(tokenizer.decode(ids), golden[f"{which}reconstruction"], rtol=0, atol=5e-5)


@pytest.mark.slow
@pytest.mark.parametrize("sizes", OPEN_MAGVIT2_CONFIGS)
def test_contract(sizes):
    torch.manual_seed(0)
    small = OPEN_MAGVIT2_CONFIGS[sizes]._replace(channels=32, blocks_per_resolution=1)
    tokenizer = OpenMAGVIT2(small).tokenizer()
    for check in tokenizer_checks():
        check(tokenizer)


@pytest.mark.slow
@pytest.mark.parametrize("suffix", ["", "-raw"])
@pytest.mark.parametrize("name", FILES)
def test_every_name_finds_its_place_averaged_by_default_and_raw_on_request(tmp_path, name, suffix):
    tensors = published_weights(name)
    torch.save({"state_dict": tensors, "pytorch-lightning_version": "2.2.0"}, tmp_path / "weights.ckpt")
    tokenizer = load_tokenizer(name + suffix, tmp_path / "weights.ckpt")
    check_the_description_fits(tokenizer)
    loaded = tokenizer.module
    levels = len(loaded.autoencoder.encoder.levels)
    raw = {open_magvit2_name(ours, levels): tensor for ours, tensor in loaded.autoencoder.state_dict().items()}
    assert raw.keys() == {key for key in tensors if key.startswith(("encoder.", "decoder."))}
    taken = {key: key if suffix else "model_ema." + key.replace(".", "") for key in raw}
    assert all(torch.equal(tensor, tensors[taken[key]]) for key, tensor in raw.items())


def test_a_missing_a_foreign_and_a_misshaped_tensor_are_named_as_the_file_has_them():
    tensors = small_file()
    del tensors["model_ema.encoderconv_inweight"]
    tensors["quantize.embedding.weight"] = torch.zeros(8, 18)
    tensors["model_ema.decoderadaptive0gammaweight"] = torch.zeros(32, 14)
    with pytest.raises(ValueError) as raised:
        load_open_magvit2(tensors, CONFIG)
    assert "missing: model_ema.encoderconv_inweight;" in str(raised.value)
    assert "not expected: quantize.embedding.weight;" in str(raised.value)
    assert "model_ema.decoderadaptive0gammaweight is (32, 14), not (32, 18)" in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_file_without_averaged_weights_says_how_to_take_the_raw_ones():
    tensors = {name: tensor for name, tensor in small_file().items() if not name.startswith("model_ema.")}
    load_open_magvit2(tensors, CONFIG, averaged=False)
    with pytest.raises(ValueError, match=r"has no averaged weights \(model_ema\.\*\); take the raw ones"):
        load_open_magvit2(tensors, CONFIG)


def test_a_file_that_would_run_code_is_refused(tmp_path):
    class Code:
        def __reduce__(self):
            return os.system, ("true",)

    torch.save({"state_dict": small_file(), "hyper_parameters": Code()}, tmp_path / "weights.ckpt")
    with pytest.raises(ValueError, match=r"is refused: it asks to run posix\.system"):
        load_open_magvit2(tmp_path / "weights.ckpt", CONFIG)


def test_sides_must_be_multiples_of_the_factor_and_a_picture_needs_two_ids():
    tokenizer = load_open_magvit2(small_file(), CONFIG)
    assert tokenizer.grid(80, 48) == (5, 3)
    with pytest.raises(ValueError, match="got a picture of 72 x 48; its sides must be multiples of 16"):
        tokenizer.grid(72, 48)
    with pytest.raises(ValueError, match="got a picture of a single id"):
        tokenizer.grid(16, 16)
    with pytest.raises(ValueError, match="got a picture of a single id"):
        tokenizer.decode(torch.zeros(1, 1, 1, 1, dtype=torch.int64))
