"""Emu3.5's tokenizer: the numbers of the official code, its files, and the sizes that they tell."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file
from toklip_core import load_tokenizer
from toklip_core.testing import check_the_description_fits, tokenizer_checks
from toklip_vq.published import load_emu3_5, taming_name

from tests.support.deterministic import arrays, constants, small_weights


def file(folder, weights=None):
    torch.save({"state_dict": weights or small_weights("emu3_5_vision")}, folder / "model.ckpt")
    return folder / "model.ckpt"


def test_it_gives_the_numbers_of_the_official_code_at_the_sizes_of_its_tensors(tmp_path):
    golden = arrays("emu3_5_vision")
    tokenizer = load_tokenizer("emu3-5-vision", file(tmp_path))
    with torch.no_grad():
        latents = tokenizer.module.autoencoder.latents(golden["pixels"])
    ids = tokenizer.encode(golden["pixels"])
    torch.testing.assert_close(latents, golden["latents"], rtol=0, atol=5e-5)
    assert torch.equal(ids[..., 0], golden["ids"])
    assert torch.equal(tokenizer.embed(ids).movedim(-1, 1), golden["quantized"])
    torch.testing.assert_close(tokenizer.decode(ids), golden["reconstruction"], rtol=0, atol=5e-5)


def test_a_folder_has_either_file(tmp_path):
    file(tmp_path)
    ids = load_emu3_5(tmp_path).encode(arrays("emu3_5_vision")["pixels"])
    (tmp_path / "model.ckpt").unlink()
    save_file(small_weights("emu3_5_vision"), tmp_path / "model.safetensors")
    assert torch.equal(load_emu3_5(tmp_path).encode(arrays("emu3_5_vision")["pixels"]), ids)


def test_a_copy_beside_the_config_of_a_model_is_the_same_tokenizer(tmp_path):
    tokenizer = load_tokenizer("emu3-5-vision", file(tmp_path))
    (tmp_path / "model").mkdir()
    (tmp_path / "model/config.json").write_text('{"model_type": "llama", "codebook_size": 3}')
    tokenizer.save_into(tmp_path / "model")
    loaded = tokenizer.record.load(tmp_path / "model", where="the model")
    assert loaded.checksum == tokenizer.checksum


@pytest.mark.slow
def test_contract(tmp_path):
    tokenizer = load_emu3_5(file(tmp_path))
    for check in tokenizer_checks():
        check(tokenizer)


@pytest.mark.slow
def test_every_name_of_the_published_file_finds_its_place(tmp_path):
    tensors = constants("emu3_5_vision")
    torch.save(tensors, tmp_path / "model.ckpt")
    tokenizer = load_tokenizer("emu3-5-vision", tmp_path / "model.ckpt")
    check_the_description_fits(tokenizer)
    loaded = tokenizer.module
    table = loaded.embedding.rows()
    ours = {taming_name(name): tensor for name, tensor in loaded.autoencoder.state_dict().items()}
    ours["quantize.embedding.weight"] = table
    assert ours.keys() == tensors.keys()
    assert all(torch.equal(tensor, tensors[name]) for name, tensor in ours.items())


def test_a_missing_and_a_foreign_tensor_are_named(tmp_path):
    tensors = small_weights("emu3_5_vision") | {"quantize.usage": torch.zeros(8192)}
    del tensors["quant_conv.bias"]
    with pytest.raises(ValueError, match=r"missing: quant_conv.bias; not expected: quantize.usage$"):
        load_emu3_5(file(tmp_path, tensors))


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("encoder.down.0.attn.0.norm.weight", (32,), "not expected: encoder.down.0.attn.0.norm.weight"),
        ("encoder.conv_in.weight", (40, 3, 3, 3), "cannot be split into 32 groups"),
        ("encoder.conv_in.weight", (32, 4, 3, 3), r"encoder.conv_in.weight is \(32, 4, 3, 3\), not \(32, 3, 3, 3\)"),
        ("encoder.conv_in.weight", (), r"encoder.conv_in.weight is \(\), not"),
        ("encoder.conv_out.weight", (), "model.ckpt' does not fit: missing"),
        ("quantize.embedding.weight", (2, 3, 4), "model.ckpt' does not fit: missing"),
        ("encoder.down.999999999.block.0.conv1.weight", (1,), "not expected: encoder.down.999999999"),
    ],
)
def test_tensors_that_do_not_fit_are_refused_in_one_line(tmp_path, name, shape, message):
    with pytest.raises(ValueError, match=message) as raised:
        load_emu3_5(file(tmp_path, small_weights("emu3_5_vision") | {name: torch.zeros(shape)}))
    assert "\n" not in str(raised.value)


def test_sides_must_be_multiples_of_the_factor(tmp_path):
    tokenizer = load_emu3_5(file(tmp_path))
    assert tokenizer.grid(512, 1024) == (32, 64)
    with pytest.raises(ValueError, match="got a picture of 512 x 1000; its sides must be multiples of 16"):
        tokenizer.grid(512, 1000)
