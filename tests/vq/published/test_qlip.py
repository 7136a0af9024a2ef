"""QLIP: the numbers of the official code, every name of its files, and pictures of one size without any table."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch
from safetensors.torch import save_file
from toklip_core import load_tokenizer
from toklip_core.plugins import tokenizer_spec
from toklip_core.testing import check_the_description_fits, tokenizer_checks
from toklip_core.tokenizer import Tokenizer
from toklip_core.weights import weights_checksum
from toklip_vq.onednn import OneDNNLinear
from toklip_vq.published import load_qlip, load_qlip_towers, qlip_name

from tests.support.deterministic import arrays, constants, weights
from tests.support.refusals import refusing


@pytest.fixture
def small(tmp_path):
    """A file of the published layout: 48 x 48, patches of 8, 3 layers of 64, 28 bits."""
    save_file(weights("qlip_small"), tmp_path / "model.safetensors")
    return tmp_path / "model.safetensors"


def changed(file, **changes):
    """Write a small file again, with other tensors; None leaves one out."""
    tensors = weights("qlip_small") | {name.replace("__", "."): tensor for name, tensor in changes.items()}
    save_file({name: tensor for name, tensor in tensors.items() if tensor is not None}, file)


def test_bits_codes_and_pictures_are_those_of_the_official_code(small):
    """Golden: NVlabs/QLIP, QLIP/modeling_qlip.py, width 64, 3 layers, patch 8, 28 bits, float32 on a CPU."""
    golden = arrays("qlip_small")
    tokenizer = load_qlip(small)
    with torch.no_grad():
        latents = tokenizer.autoencoder.latents(golden["pixels"])
    torch.testing.assert_close(latents.flatten(2).mT, golden["latents"], rtol=0, atol=5e-5)
    ids = tokenizer.encode(golden["pixels"])
    assert ids.shape == (2, 6, 6, 1)
    assert torch.equal(ids.flatten(1), golden["ids_int64"])
    codes = tokenizer.embedding(ids)
    assert torch.equal(codes.flatten(1, 2) > 0, golden["bits"].bool())
    torch.testing.assert_close(codes.flatten(1, 2), golden["quantized"], rtol=0, atol=0)
    with torch.no_grad():
        tokens = tokenizer.autoencoder.tokens(codes)
    torch.testing.assert_close(tokens, golden["post_quant_tokens"], rtol=0, atol=5e-5)
    # The official pictures are normalised as CLIP's input; so is `fed`, the golden's pixels as the network sees them.
    mean, std = torch.tensor([[0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]])[
        ..., None, None
    ]
    torch.testing.assert_close((golden["pixels"] / 2 + 0.5 - mean) / std, golden["fed"], rtol=0, atol=1e-6)
    pictures = tokenizer.decode(ids) / 2 + 0.5
    torch.testing.assert_close((pictures - mean) / std, golden["reconstruction"], rtol=0, atol=5e-5)


def test_weights_stay_packed_between_batches_that_ask_for_the_device(small):
    tokenizer = Tokenizer("small-qlip", load_qlip(small))
    layers = [layer for layer in tokenizer.module.modules() if isinstance(layer, OneDNNLinear)]
    for _ in range(2):
        ids = tokenizer.to("cpu").encode(arrays("qlip_small")["pixels"])
        tokenizer.to(torch.device("cpu")).decode(ids)
    assert layers and all(vars(layer)["_packed"] is not None for layer in layers)
    assert tokenizer.checksum == weights_checksum(load_qlip(small))


@torch.no_grad()
def test_features_of_pictures_and_texts_are_those_of_the_official_code(small):
    golden = arrays("qlip_small")
    small.with_name("config.json").write_text(json.dumps({"text_config": {"num_attention_heads": 4}}))
    towers = load_qlip_towers(small.parent)
    pictures, texts = towers.image_features(golden["pixels"]), towers.text_features(golden["text"])
    torch.testing.assert_close(pictures, golden["image_features_unit"], rtol=0, atol=5e-5)
    torch.testing.assert_close(texts, golden["text_features_unit"], rtol=0, atol=5e-5)
    logits = towers.logit_scale.exp() * pictures @ texts.T
    torch.testing.assert_close(logits, golden["logits_per_image"], rtol=0, atol=5e-5)
    raw = towers.visual_projection(towers.post_layernorm(towers.encoder(golden["pixels"])[:, 0]))
    torch.testing.assert_close(raw, golden["image_features"], rtol=0, atol=5e-5)
    torch.testing.assert_close(towers.text(golden["text"]).text_embeds, golden["text_features"], rtol=0, atol=5e-5)


def test_the_towers_load_strictly_too(small):
    small.with_name("config.json").write_text(json.dumps({"text_config": {"num_attention_heads": 4}}))
    changed(small, visual_projection__bias=None)
    assert load_qlip_towers(small.parent).visual_projection.bias is None
    changed(small, text_model__encoder__layers__1__mlp__fc2__bias=None)
    with refusing("model.safetensors", "missing: text_model.encoder.layers.1.mlp.fc2.bias"):
        load_qlip_towers(small.parent)
    changed(small, text_projection__weight=None)
    with refusing("model.safetensors", "missing: text_projection.weight"):
        load_qlip_towers(small.parent)


@pytest.mark.parametrize("told", [{"num_attention_heads": 0}, {"num_attention_heads": "x"}, {"layer_norm_eps": "x"}])
def test_sizes_of_the_tower_of_texts_that_are_none_are_refused_in_a_line(small, told):
    small.with_name("config.json").write_text(json.dumps({"text_config": told}))
    with refusing("model.safetensors", next(iter(told))):
        load_qlip_towers(small.parent)


def test_without_transformers_a_line_says_what_to_install(small, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with refusing(r"transformers is not installed: pip install 'toklip-vq[transformers]'", kind=LookupError):
        load_qlip_towers(small)


@pytest.mark.slow
@pytest.mark.parametrize("golden", ["qlip_b_16_256", "qlip_b_8_256", "qlip_l_14_392"])
def test_every_name_of_the_published_towers_finds_its_place(golden):
    tensors = constants(golden)
    loaded = load_qlip_towers(tensors).state_dict()
    theirs = {name: name.removeprefix("text.") if name.startswith("text.") else qlip_name(name) for name in loaded}
    assert all(torch.equal(tensor, tensors[theirs[name]]) for name, tensor in loaded.items())
    left = tensors.keys() - set(theirs.values())
    assert all(name.startswith(("vision_decoder.", "vision_model.quant_embed")) or ".rope." in name for name in left)


@pytest.fixture(scope="module")
def loaded():
    return load_qlip(weights("qlip_small"))


@pytest.mark.parametrize("check", tokenizer_checks(), ids=lambda check: check.__name__)
def test_contract(loaded, check):
    check(loaded)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("golden", "name"),
    [
        ("qlip_b_16_256", "qlip-b-16-256"),
        ("qlip_b_8_256", "qlip-b-8-256"),
        ("qlip_l_14_392", "qlip-l-14-392"),  # its sizes are derived, not read
    ],
)
def test_every_name_of_the_published_files_finds_its_place(golden, name):
    """The rest of a file is another tower's: of texts, of the class token, or the rotary tables."""
    tensors, spec = constants(golden), tokenizer_spec(name)
    tokenizer = load_tokenizer(name, tensors)
    loaded = tokenizer.module.autoencoder.state_dict()
    assert all(torch.equal(tensor, tensors[qlip_name(ours)]) for ours, tensor in loaded.items())
    left = tensors.keys() - set(map(qlip_name, loaded))
    others = ("text_model.", "text_projection.", "visual_projection.", "vision_model.post_layernorm.", "logit_scale")
    assert all(name.startswith(others) or ".rope.freqs_" in name for name in left)
    assert spec.licence == "CC-BY-NC-4.0, for noncommercial use only"
    check_the_description_fits(tokenizer)


def without_tables():
    """Changes that leave the rotary tables out of a small file, and with them the width of its heads."""
    towers, tables = ("vision_model", "vision_decoder"), ("freqs_cos", "freqs_sin")
    return {f"{tower}__rope__{table}": None for tower in towers for table in tables}


def test_the_bias_of_the_projection_and_the_rotary_tables_may_be_there_or_not(small):
    """A built model lists the tables once more for each layer; transformers saves one pair per tower."""
    pixels = arrays("qlip_small")["pixels"]
    ids = load_qlip(small).encode(pixels)
    layer = "vision_model__encoder__layers__0__self_attn__rope__freqs_cos"
    changed(small, visual_projection__bias=None, **{layer: torch.zeros(36, 16)})
    assert torch.equal(load_qlip(small).encode(pixels), ids)
    changed(small, **without_tables())
    told = {"num_attention_heads": 4, "layer_norm_eps": 1e-6}
    small.with_name("config.json").write_text(json.dumps({"vision_config": told, "decoder_config": told}))
    assert torch.equal(load_qlip(small.parent).encode(pixels), ids)


def test_sizes_that_tensors_do_not_show_are_those_of_the_config_of_a_folder(small):
    """A file alone has the published ones, whatever lies beside it, so that a copy is the same tokenizer."""
    changed(small, **without_tables())
    config = small.with_name("config.json")
    config.write_text(json.dumps({"vision_config": {"num_attention_heads": 2, "layer_norm_eps": 1e-5}}))
    sizes = load_qlip(small.parent).autoencoder.sizes
    encoder, decoder = sizes.encoder, sizes.decoder
    assert load_qlip(small).autoencoder.sizes.encoder.norm_eps == 1e-6
    assert (encoder.heads, encoder.norm_eps) == (2, 1e-5)
    assert (decoder.heads, decoder.norm_eps) == (1, 1e-6)  # as published: heads of 64
    config.write_text(json.dumps({"vision_config": {"num_attention_heads": 5}}))
    with refusing("model.safetensors", "encoder", "multiple of 4 heads (5)"):
        load_qlip(small.parent)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"vision_decoder__encoder__layers__2__mlp__w3__bias": None},
            "missing: vision_decoder.encoder.layers.2.mlp.w3.bias",
        ),
        ({"vision_model__quant_embed__c_proj__weight": None}, "missing: vision_model.quant_embed.c_proj.weight"),
        ({"vision_decoder__norm__weight": torch.zeros(0)}, "decoder"),
        ({"vision_model__extra": torch.zeros(1)}, "not expected: vision_model.extra"),
        ({"vision_decoder__conv_out__bias": torch.zeros(3)}, "vision_decoder.conv_out.bias is (3,), not (192,)"),
        ({"vision_model__embeddings__position_embedding__weight": torch.zeros(38, 64)}, "is (38, 64), not (37, 64)"),
    ],
)
def test_a_file_that_does_not_fit_is_refused_in_a_line_with_the_name_in_it(small, changes, message):
    changed(small, **changes)
    with refusing("model.safetensors", message):
        load_qlip(small)


def test_a_file_of_another_size_is_refused_under_a_published_name(small):
    with refusing("model.safetensors", "a QLIP with patches of 8 px, not 16"):
        load_tokenizer("qlip-b-16-256", small)
    with refusing("model.safetensors", "a QLIP with pictures of 48 px, not 256"):
        load_tokenizer("qlip-b-8-256", small)


def test_a_file_that_asks_to_run_code_is_refused(tmp_path):
    torch.save({"vision_model": print}, tmp_path / "model.bin")
    with refusing("model.bin", "is refused: it asks to run"):
        load_qlip(tmp_path / "model.bin")


def test_pictures_have_one_size_and_ids_one_shape(small):
    tokenizer = load_qlip(small)
    assert tokenizer.grid(48, 48) == (6, 6)
    with refusing("got a picture of 48 x 56", "takes 48 x 48 alone"):
        tokenizer.encode(torch.zeros(1, 3, 48, 56))
    with refusing("got ids on a grid of 6 x 5; this tokenizer has 6 x 6"):
        tokenizer.decode(torch.zeros(1, 6, 5, 1, dtype=torch.int64))
    with refusing("got ids from 0 to 268435456, but the codebook has 268435456"):
        tokenizer.decode(torch.eye(6, dtype=torch.int64)[None, ..., None] * 2**28)


def test_half_precision_in_the_file_gives_float32_weights(small):
    save_file({name: tensor.bfloat16() for name, tensor in weights("qlip_small").items()}, small)
    assert {tensor.dtype for tensor in load_qlip(small).state_dict().values()} == {torch.float32}


def test_nothing_is_as_large_as_a_table_of_all_ids(small):
    """A table of 2^28 rows takes 256 MiB even with one byte a row."""
    largest = 0

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            nonlocal largest
            result = function(*args, **(kwargs or {}))
            for tensor in result if isinstance(result, tuple | list) else (result,):
                if isinstance(tensor, torch.Tensor) and not tensor.is_meta:
                    largest = max(largest, tensor.numel() * tensor.element_size())
            return result

    with Watch():
        tokenizer = load_qlip(small)
        ids = tokenizer.encode(arrays("qlip_small")["pixels"])
        tokenizer.embedding.code_map(ids)
        tokenizer.decode(ids)
    assert 0 < largest < 2**20


@pytest.mark.slow
def test_the_ids_of_a_picture_take_little_memory_above_the_weights(small):
    code = (
        "import resource, sys, torch\n"
        "from toklip_vq.published import load_qlip\n"
        "tokenizer = load_qlip(sys.argv[1])\n"
        "pixels = torch.zeros(1, 3, 48, 48)\n"
        "tokenizer.autoencoder.latents(pixels)\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "assert tokenizer.embedding(torch.randint(2**28, (1, 32, 32, 1))).shape == (1, 32, 32, 28)\n"
        "assert tokenizer.embedding(tokenizer.encode(pixels)).shape == (1, 6, 6, 28)\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)\n"
    )
    command = [sys.executable, "-c", code, str(small)]
    kilobytes = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    assert int(kilobytes.stdout) < 50 * 1024
