"""IBQ: the numbers of the official code, and its Lightning files with all their contents."""

from __future__ import annotations

import pytest
import torch
from toklip_core import load_tokenizer
from toklip_vq.published import load_ibq, taming_name

from tests.support.deterministic import arrays, constants, weights
from tests.support.published_vqgans import lightning_file, write_published


def averaged(name: str) -> str:
    return "model_ema." + name.replace(".", "")


def lightning(raw: dict[str, torch.Tensor], average: dict[str, torch.Tensor]) -> dict[str, object]:
    """A Lightning file with these weights."""
    content = lightning_file(1024)
    losses = {name: tensor for name, tensor in content["state_dict"].items() if "loss" in name}
    state = {"model_ema.decay": torch.tensor(0.999), "model_ema.num_updates": torch.tensor(-1)}
    content["state_dict"] = raw | losses | state | {averaged(name): tensor for name, tensor in average.items()}
    return content


@pytest.mark.slow
def test_ibq_gives_the_numbers_of_the_official_code(tmp_path):
    golden = arrays("ibq_8192")
    torch.save(lightning(constants("ibq_8192"), weights("ibq_8192")), tmp_path / "weights.ckpt")
    tokenizer = load_tokenizer("ibq-8192", tmp_path / "weights.ckpt")
    with torch.no_grad():
        latents = tokenizer.module.autoencoder.latents(golden["pixels"])
    ids = tokenizer.encode(golden["pixels"])
    torch.testing.assert_close(latents, golden["latents"], rtol=0, atol=2e-4)
    assert torch.equal(ids[..., 0].flatten(1), golden["indices"])
    torch.testing.assert_close(tokenizer.embed(ids).movedim(-1, 1), golden["quantized"], rtol=0, atol=2e-4)
    torch.testing.assert_close(tokenizer.decode(ids), golden["reconstruction"], rtol=0, atol=2e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ibq-8192", "ibq-8192-raw"])
def test_every_name_finds_its_place_averaged_by_default_and_raw_on_request(tmp_path, name):
    raw = constants("ibq_8192")
    average = {name: tensor + 1 for name, tensor in raw.items()}
    torch.save(lightning(raw, average), tmp_path / "weights.ckpt")
    module = load_tokenizer(name, tmp_path / "weights.ckpt").module
    loaded = module.autoencoder.state_dict() | {"codebook.weight": module.embedding.rows()}
    expected = raw if name.endswith("raw") else average
    assert len(loaded) == len(expected)
    assert all(torch.equal(tensor, expected[taming_name(ours)]) for ours, tensor in loaded.items())


def test_a_flat_file_of_the_raw_weights_loads(tmp_path):
    tensors = constants("ibq_8192")
    torch.save(tensors, tmp_path / "weights.pt")
    loaded = load_ibq(tmp_path / "weights.pt", 8192, averaged=False).autoencoder
    assert torch.equal(loaded.quant_conv.bias, tensors["quant_conv.bias"])


def test_a_missing_and_a_misshaped_tensor_are_named_as_the_file_has_them(tmp_path):
    content = lightning_file(1024)
    del content["state_dict"]["model_ema.encoderdown0block0conv1bias"]
    content["state_dict"]["model_ema.quantizeembeddingweight"] = torch.zeros(1000, 256)
    torch.save(content, tmp_path / "weights.ckpt")
    with pytest.raises(ValueError) as raised:
        load_tokenizer("ibq-1024", tmp_path / "weights.ckpt")
    assert "missing: model_ema.encoderdown0block0conv1bias;" in str(raised.value)
    assert "model_ema.quantizeembeddingweight is (1000, 256), not (1024, 256)" in str(raised.value)


def test_a_file_without_averaged_weights_says_how_to_take_the_raw_ones(tmp_path):
    torch.save({"state_dict": constants("ibq_8192")}, tmp_path / "weights.ckpt")
    with pytest.raises(ValueError, match=r"has no averaged weights \(model_ema\.\*\); take the raw ones"):
        load_tokenizer("ibq-8192", tmp_path / "weights.ckpt")


def test_another_codebook_size_does_not_fit(tmp_path):
    path = write_published("ibq-1024", tmp_path)
    with pytest.raises(ValueError, match=r"model_ema.quantizeembeddingweight is \(1024, 256\), not \(8192, 256\)"):
        load_tokenizer("ibq-8192", path)
