"""Laws of the shared towers, the frozen tokenizer and its model folder."""

from __future__ import annotations

import copy
import json
from importlib.resources import files

import pytest
import torch
from toklip_core import load_tokenizer
from toklip_core.weights import read_model_folder, save_model_folder
from toklip_vq import autoencoder
from toklip_vq.vqgan import VQGAN, VQGANConfig

TINY = VQGANConfig(
    codebook_size=64, codebook_dim=8, channels=16, channel_multipliers=(1, 2, 2, 4), blocks_per_resolution=2,
    z_channels=32, norm_groups=8,
)  # fmt: skip
#: As many pictures of 40 x 24 pixels as take more than 32 MiB at the first level, where the towers work in stripes.
LARGE = 560


def test_codes_of_the_cosine_metric_start_with_unit_norm():
    """As LlamaGen's; uniform rows of 1 / K would have gradients K times as large, and move as much in a step."""
    norms = VQGAN(TINY).codebook.weight.norm(dim=-1)
    torch.testing.assert_close(norms, torch.ones_like(norms))


def tiny(**changes: object) -> VQGAN:
    """A VQGAN whose norms and biases are not identities."""
    torch.manual_seed(0)
    vqgan = VQGAN(TINY.model_copy(update=changes))
    for name, parameter in vqgan.named_parameters():
        if parameter.ndim == 1:
            torch.nn.init.normal_(parameter, mean=float("norm" in name and name.endswith("weight")), std=0.1)
    return vqgan


def pixels(batch: int = 3, height: int = 40, width: int = 24) -> torch.Tensor:
    return torch.rand(batch, 3, height, width, generator=torch.Generator().manual_seed(1)) * 2 - 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("batch", "attention"), [(3, True), (3, False), (LARGE, True)], ids=["in place", "without attention", "in stripes"]
)
def test_without_gradients_the_towers_give_the_numbers_of_training(batch, attention):
    """Autograd cannot work in place or in stripes: both ways must be the same function."""
    vqgan = tiny(attention=attention)
    latents = vqgan.latents(pixels(batch))
    codes = latents.detach().movedim(1, -1)
    reconstruction = vqgan.reconstruct(codes)
    with torch.no_grad():
        torch.testing.assert_close(vqgan.latents(pixels(batch)), latents, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(vqgan.reconstruct(codes), reconstruction, rtol=1e-4, atol=1e-4)


def test_without_gradients_the_input_is_left_alone():
    vqgan, given = tiny(), pixels()
    codes = torch.randn(1, 5, 3, 8)
    kept, codes_kept = given.clone(), codes.clone()
    with torch.no_grad():
        vqgan.latents(given)
        vqgan.reconstruct(codes)
    assert torch.equal(given, kept)
    assert torch.equal(codes, codes_kept)


def test_every_weight_gets_a_gradient():
    vqgan = tiny()
    latents = vqgan.latents(pixels(1))
    codes = vqgan.codebook.rows()[vqgan.codebook.nearest(latents.movedim(1, -1))].movedim(-1, 1)
    through = latents + (codes - latents.detach())
    vqgan.reconstruct(through.movedim(1, -1)).square().mean().backward()
    assert [name for name, parameter in vqgan.named_parameters() if parameter.grad is None] == []


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_picture_has_the_same_ids_and_pixels_alone_and_in_a_batch(dtype):
    tokenizer = tiny().tokenizer().to(dtype)
    ids = tokenizer.encode(pixels())
    decoded = tokenizer.decode(ids)
    assert ids.unique().numel() > 5
    for i in range(len(ids)):
        assert torch.equal(tokenizer.encode(pixels()[i : i + 1]), ids[i : i + 1])
        assert torch.equal(tokenizer.decode(ids[i : i + 1]), decoded[i : i + 1])


def test_several_pictures_at_once_as_on_a_gpu_have_the_ids_and_pixels_of_each_alone(monkeypatch):
    tokenizer = tiny().tokenizer()
    ids = tokenizer.encode(pixels())
    decoded = tokenizer.decode(ids)
    monkeypatch.setattr(autoencoder, "_parts", lambda ids: [slice(0, 2), slice(2, len(ids))])
    assert len(ids) > 2
    assert (tokenizer.encode(pixels()) == ids).float().mean() > 0.99  # convolutions may round otherwise
    torch.testing.assert_close(tokenizer.decode(ids), decoded, atol=1e-4, rtol=0)


def test_a_gpu_takes_as_many_pictures_at_once_as_fill_it_and_a_cpu_one():
    on_gpu = torch.empty(70, 32, 32, 4, device="meta")
    parts = [range(70)[part] for part in autoencoder._parts(on_gpu)]
    assert [number for part in parts for number in part] == [*range(70)]
    assert {len(part) for part in parts} == {4, 2}
    assert [*autoencoder._parts(torch.empty(2, 80, 80, 1, device="meta"))] == [slice(0, 1), slice(1, 2)]
    assert [*autoencoder._parts(torch.empty(2, 1, 1, 1))] == [slice(0, 1), slice(1, 2)]


def test_ids_do_not_change_under_autocast():
    tokenizer = tiny().tokenizer()
    ids = tokenizer.encode(pixels())
    pictures = tokenizer.decode(ids)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(tokenizer.encode(pixels()), ids)
        assert torch.equal(tokenizer.decode(ids), pictures)


def test_the_tokenizer_stays_as_it_is():
    """No mode, no gradient, no buffer that moves: encoding and train() change nothing."""
    tokenizer = tiny().tokenizer()
    before = {name: tensor.clone() for name, tensor in tokenizer.state_dict().items()}
    ids = tokenizer.encode(pixels())
    assert tokenizer.train() is tokenizer
    assert not any(module.training for module in tokenizer.modules())
    assert not any(parameter.requires_grad for parameter in tokenizer.parameters())
    assert torch.equal(tokenizer.encode(pixels()), ids)
    assert all(torch.equal(before[name], tensor) for name, tensor in tokenizer.state_dict().items())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_for_the_towers_not_for_the_codes(dtype):
    full = tiny().tokenizer()
    half = copy.deepcopy(full).to(dtype)
    assert half.embedding.rows().dtype == torch.float32
    assert torch.equal(half.embedding.rows(), full.embedding.rows())
    ids = half.encode(pixels())
    assert (ids == full.encode(pixels())).float().mean() > 0.5
    decoded = half.decode(ids)
    assert decoded.dtype == torch.float32
    assert (decoded - full.decode(ids)).abs().mean() < 0.05 * full.decode(ids).std()


def test_embedded_ids_are_rows_of_the_codebook():
    tokenizer = tiny().tokenizer()
    rows = tokenizer.embedding.rows()
    ids = tokenizer.encode(pixels())
    assert torch.equal(tokenizer.embedding(ids), rows[ids[..., 0]])
    torch.testing.assert_close(rows.norm(dim=-1), torch.ones(64))


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((1, 3, 40, 20), r"40 x 20; its sides must be multiples of 8"),
        ((3, 40, 24), r"shape \(3, 40, 24\); wanted \(B, 3, H, W\)"),
        ((1, 4, 40, 24), r"shape \(1, 4, 40, 24\); wanted \(B, 3, H, W\)"),
        ((1, 3, 0, 24), r"0 x 24; its sides must be"),
    ],
)
def test_pixels_of_another_shape_are_refused(shape, message):
    with pytest.raises(ValueError, match=message):
        tiny().tokenizer().encode(torch.zeros(shape))


@pytest.mark.parametrize("shape", [(1, 0, 4, 1), (1, 4, 0, 1), (4, 4, 1)])
def test_ids_of_no_grid_are_refused(shape):
    with pytest.raises(ValueError, match=r"got ids of shape \(.*\); wanted \(B, h, w, Q\)"):
        tiny().tokenizer().decode(torch.zeros(shape, dtype=torch.int64))


@pytest.mark.parametrize("metric", ["cosine", "dot", "euclidean"])
def test_the_frozen_form_takes_the_codes_over(metric):
    """A second copy of 262144 x 256 codes would take 256 MiB; those of unit norm are written anew, and narrow."""
    vqgan = tiny(metric=metric)
    rows = vqgan.codebook.rows().detach()
    tokenizer = vqgan.tokenizer()
    torch.testing.assert_close(tokenizer.embedding.rows(), rows, rtol=0, atol=0 if metric != "cosine" else 1e-7)
    assert (tokenizer.embedding.rows().data_ptr() == rows.data_ptr()) == (metric != "cosine")
    assert not any("codebook" in name for name in tokenizer.state_dict())


def test_ids_of_another_tokenizer_are_refused():
    with pytest.raises(ValueError, match="ids from 0 to 64, but the codebook has 64"):
        tiny().tokenizer().decode(torch.tensor([[[[0], [64]]]]))
    with pytest.raises(ValueError, match=r"shape \(2,\); wanted \(B, h, w, Q\)"):
        tiny().tokenizer().decode(torch.zeros(2, dtype=torch.int64))


def test_an_empty_batch_gives_an_empty_batch():
    tokenizer = tiny().tokenizer()
    ids = tokenizer.encode(torch.zeros(0, 3, 40, 24))
    assert ids.shape == (0, 5, 3, 1)
    assert tokenizer.decode(ids).shape == (0, 3, 40, 24)


def test_a_model_folder_gives_back_the_tokenizer(tmp_path):
    save_model_folder(tmp_path, TINY.model_dump(), tiny())
    tokenizer = tiny().tokenizer()
    loaded = load_tokenizer("vqgan", tmp_path)
    assert torch.equal(loaded.encode(pixels()), tokenizer.encode(pixels()))
    assert (loaded.codebook_sizes, loaded.codebook_dim, loaded.grid(16, 24)) == ((64,), 8, (2, 3))


def test_a_folder_of_half_precision_gives_float32_weights(tmp_path):
    save_model_folder(tmp_path, TINY.model_dump(), tiny().to(torch.float16))
    loaded = load_tokenizer("vqgan", tmp_path)
    assert {parameter.dtype for parameter in loaded.module.parameters()} == {torch.float32}


def shipped_tensors() -> dict[str, torch.Tensor]:
    return read_model_folder(files("toklip_vq") / "models" / "vqgan-tiny")[1]


def codebooks(tensors: dict[str, torch.Tensor]) -> list[str]:
    return [name for name in tensors if name.startswith("codebook.")]


def test_tensors_take_the_place_of_the_shipped_weights():
    """As those inside the file of a model do; the sizes are the shipped ones."""
    shipped = load_tokenizer("vqgan-tiny")
    tensors = shipped_tensors()
    assert load_tokenizer("vqgan-tiny", tensors).checksum == shipped.checksum
    for name in codebooks(tensors):
        tensors[name] *= 2
    ids = torch.tensor([[5, 6, 7, 8]])
    assert torch.equal(load_tokenizer("vqgan-tiny", tensors).embed(ids), 2 * shipped.embed(ids))
    with pytest.raises(ValueError, match=r"^'the given state dict' does not fit: missing: encoder\.conv_in\.weight"):
        load_tokenizer("vqgan-tiny", {name: tensors[name] for name in codebooks(tensors)})


def test_a_saved_model_finds_its_tensors_again(tmp_path):
    """They are saved as one file, which the tokenizer reads with the shipped config."""
    given = shipped_tensors()
    given |= {name: given[name] + 1 for name in codebooks(given)}
    first = load_tokenizer("vqgan-tiny", given)
    first.save_into(tmp_path)
    assert first.record.load(tmp_path, where="the model").checksum == first.checksum
    with pytest.raises(FileNotFoundError, match=r"there is no weights file '.*nowhere'"):
        load_tokenizer("vqgan-tiny", tmp_path / "nowhere")


@pytest.mark.parametrize("name", ["vqgan-tiny", "llamagen-vq16-t2i", "ibq-1024-raw", "janus-vq16"])
def test_no_tensors_are_not_the_published_ones(name):
    with pytest.raises(ValueError, match=r"^'the given state dict' (does not fit: missing: |has no )"):
        load_tokenizer(name, {})


def test_a_folder_of_another_format_is_refused(tmp_path):
    save_model_folder(tmp_path, TINY.model_dump(), tiny())
    config = json.loads((tmp_path / "config.json").read_text())
    assert config.pop("format") == 1
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"config\.json has no format number, .* train the model again"):
        load_tokenizer("vqgan", tmp_path)


def test_without_a_folder_the_message_says_how_to_give_one():
    with pytest.raises(FileNotFoundError, match="`--weights FOLDER`"):
        load_tokenizer("vqgan")


def test_a_config_that_cannot_be_built_is_refused():
    with pytest.raises(ValueError, match=r"a width of 16 x 1 cannot be split into 32 groups"):
        VQGANConfig(codebook_size=64, codebook_dim=8, channels=16)
    with pytest.raises(ValueError, match="extra"):
        VQGANConfig(codebook_size=64, codebook_dim=8, chanels=16)  # type: ignore[call-arg]


def test_the_tiny_tokenizer_takes_no_folder_of_another(tmp_path):
    with pytest.raises(ValueError, match="as weights of vqgan-tiny; load it as the tokenizer vqgan"):
        load_tokenizer("vqgan-tiny", tmp_path)
