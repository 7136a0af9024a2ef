"""LlamaGen: the numbers of the official code, and every layout of its files."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file
from toklip_core import load_tokenizer
from toklip_vq.nearest import unit_rows
from toklip_vq.published import llamagen_name, load_llamagen

from tests.support.deterministic import arrays, constants, weights
from tests.support.published_vqgans import write_published
from tests.support.refusals import refusing


@pytest.fixture(scope="module")
def vq16(tmp_path_factory):
    """VQ-16 with the weights of the goldens, through the file layout that is published."""
    path = tmp_path_factory.mktemp("weights") / "vq_ds16_c2i.pt"
    torch.save({"model": weights("llamagen_vq16")}, path)
    yield load_tokenizer("llamagen-vq16-c2i", path)
    path.unlink()


@pytest.mark.slow
def test_vq16_gives_the_numbers_of_the_official_code(vq16):
    golden = arrays("llamagen_vq16")
    with torch.no_grad():
        latents = vq16.module.autoencoder.latents(golden["pixels"])
    ids = vq16.encode(golden["pixels"])
    torch.testing.assert_close(latents, golden["latents"], rtol=0, atol=2e-4)
    assert torch.equal(ids.flatten(1), golden["indices"])
    torch.testing.assert_close(vq16.embed(ids).movedim(-1, 1), golden["quantized"], rtol=0, atol=2e-4)
    torch.testing.assert_close(vq16.decode(ids), golden["reconstruction"], rtol=0, atol=2e-4)


@pytest.mark.slow
def test_vq16_in_stripes_gives_the_numbers_of_the_official_code(vq16):
    """Sixteen pictures at once are as large as one of 256 x 256, which the towers work through in stripes."""
    golden = {name: torch.cat(8 * [array]) for name, array in arrays("llamagen_vq16").items()}
    with torch.no_grad():
        latents = vq16.module.autoencoder.latents(golden["pixels"])
    torch.testing.assert_close(latents, golden["latents"], rtol=0, atol=2e-4)
    ids = vq16.encode(golden["pixels"])
    assert torch.equal(ids[..., 0].flatten(1), golden["indices"])
    torch.testing.assert_close(vq16.decode(ids), golden["reconstruction"], rtol=0, atol=2e-4)


@pytest.mark.slow
def test_tensors_of_a_file_give_the_tokenizer_of_the_file(vq16):
    """As they come out of the file of a TokLIP."""
    assert load_tokenizer("llamagen-vq16-c2i", weights("llamagen_vq16")).checksum == vq16.checksum


@pytest.mark.slow
@pytest.mark.parametrize(
    ("golden", "name"), [("llamagen_vq16", "llamagen-vq16-t2i"), ("llamagen_vq8", "llamagen-vq8-c2i")]
)
def test_every_name_of_the_published_files_finds_its_place(tmp_path, golden, name):
    tensors = constants(golden)
    torch.save({"model": tensors}, tmp_path / "weights.pt")
    module = load_tokenizer(name, tmp_path / "weights.pt").module
    loaded = module.autoencoder.state_dict()
    assert len(loaded) == len(tensors) - 2  # all but the codes and the counter `quantize.codebook_used`
    assert torch.equal(module.embedding.rows(), unit_rows(tensors["quantize.embedding.weight"]))
    assert all(torch.equal(tensor, tensors[llamagen_name(ours)]) for ours, tensor in loaded.items())


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["ema", "model", "state_dict", "flat", "safetensors"])
def test_every_layout_loads_the_weights_that_are_preferred(tmp_path, layout):
    tensors = constants("llamagen_vq8")
    path = tmp_path / ("model.safetensors" if layout == "safetensors" else "weights.pt")
    if layout == "safetensors":
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)
    elif layout == "ema":  # a file of training: the average, and what it is an average of
        torch.save({"steps": 3, "ema": tensors, "model": {}, "state_dict": {}}, path)
    else:
        torch.save(tensors if layout == "flat" else {"steps": 3, layout: tensors}, path)
    loaded = load_llamagen(path, "VQ-8").autoencoder
    assert torch.equal(loaded.quant_conv.bias, tensors["quant_conv.bias"])


@pytest.mark.slow
@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod."])
def test_names_of_a_training_in_several_processes_or_compiled_are_read(tmp_path, prefix):
    """An average that was not taken is None beside the weights."""
    tensors = constants("llamagen_vq8")
    content = {"ema": None, "model": {prefix + name: tensor for name, tensor in tensors.items()}}
    torch.save(content, tmp_path / "weights.pt")
    loaded = load_llamagen(tmp_path / "weights.pt", "VQ-8").autoencoder
    assert torch.equal(loaded.quant_conv.bias, tensors["quant_conv.bias"])


def test_a_weight_that_is_not_finite_is_refused_by_name(tmp_path):
    tensors = constants("llamagen_vq8")
    tensors["encoder.conv_in.bias"][3] = torch.nan
    torch.save({"model": tensors}, tmp_path / "weights.pt")
    with refusing("'encoder.conv_in.bias' of '", "weights.pt' has NaN or infinity"):
        load_tokenizer("llamagen-vq8-c2i", tmp_path / "weights.pt")


def test_a_missing_a_misshaped_and_a_strange_tensor_are_named(tmp_path):
    tensors = constants("llamagen_vq8")
    del tensors["decoder.mid.1.proj_out.bias"]
    tensors["encoder.conv_in.weight"] = torch.zeros(128, 4, 3, 3)
    tensors["encoder.extra"] = torch.zeros(1)
    torch.save({"model": tensors}, tmp_path / "weights.pt")
    with pytest.raises(ValueError) as raised:
        load_tokenizer("llamagen-vq8-c2i", tmp_path / "weights.pt")
    message = str(raised.value)
    assert "missing: decoder.mid.1.proj_out.bias;" in message
    assert "not expected: encoder.extra;" in message
    assert "encoder.conv_in.weight is (128, 4, 3, 3), not (128, 3, 3, 3)" in message


def test_a_file_of_the_other_size_does_not_fit(tmp_path):
    path = write_published("llamagen-vq16-c2i", tmp_path)
    with refusing("not expected: encoder.conv_blocks.2.res.0.nin_shortcut"):
        load_tokenizer("llamagen-vq8-c2i", path)
