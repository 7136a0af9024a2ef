"""The script that makes a language model of a generator: without rotation, a layer computes what the block did."""

import sys

import pytest
import torch
from toklip_core.model import attend_causally
from toklip_gen.generator import load_generator
from toklip_mllm import load_language_model

from tests.support.pages import ROOT

sys.path.insert(0, str(ROOT / "docs/examples"))
import generator_as_language_model
from generator_as_language_model import channel_order, copy_words, image_head_of, language_model_of


@pytest.fixture(scope="module")
def whole():
    return load_generator("toklip-gen-tiny", dtype=torch.float32)


def test_a_pair_is_put_where_it_rotates_at_about_its_speed():
    # 4 pairs: two of rows, which take 8 places of the text each, and two of columns, at speeds of 1 and 0.01
    order = channel_order(8, columns=8, base=10_000.0)
    speeds = [(2, 1.0), (0, 1 / 8), (3, 0.01), (1, 0.01 / 8)]
    assert order.tolist() == [2 * pair for pair, _ in speeds] + [2 * pair + 1 for pair, _ in speeds]


@pytest.mark.slow
def test_a_layer_computes_what_the_block_did_where_nothing_rotates(whole):
    generator = whole.generator
    layers = language_model_of(generator, load_language_model("toklip-mllm-tiny")[1].tokenizer).eval().model.layers
    width = generator.config.width // generator.config.heads
    x = torch.randn(2, 5, generator.config.width, generator=torch.Generator().manual_seed(0))
    cos, sin = torch.ones(5, width), torch.zeros(5, width)
    with torch.no_grad():
        for block, layer in zip(generator.blocks, layers, strict=True):
            found = layer(x, position_embeddings=(cos[None], sin[None]))
            torch.testing.assert_close(found, block(x, cos, sin, attend_causally), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("heads", [4, 8])
def test_the_image_head_has_the_heads_of_the_generator(whole, heads):
    config = whole.generator.config.model_copy(update={"heads": heads})
    assert image_head_of(config).level_heads == heads


def test_words_that_the_generator_knows_get_its_embeddings_and_the_others_stay_random(whole):
    from toklip_mllm.model import build_language_model

    tokenizer = load_language_model("toklip-mllm-tiny")[1].tokenizer
    model, _ = build_language_model(
        language_model_of(whole.generator, tokenizer),
        whole.toklip,
        tokenizer=tokenizer,
        image_head=image_head_of(whole.generator.config),
    )
    count = copy_words(whole.generator, whole.toklip.text, model, tokenizer)
    rows = model.get_input_embeddings().weight
    known, unknown = (rows[tokenizer.get_vocab()[word]] for word in ("\u2581red", "\u2581what"))
    features, _ = whole.toklip.text.embeddings(["red"])
    alone = torch.zeros(1, 32, features.shape[-1])
    alone[0, 7] = features[0, 0]
    torch.testing.assert_close(known, whole.generator.condition(alone)[0, 7])
    assert 40 < count < len(tokenizer) and not torch.allclose(known, unknown)


def test_a_generator_of_another_kind_is_refused_in_one_line(whole, tmp_path, monkeypatch, capsys):
    other = whole.generator.config.model_copy(update={"qk_norm": False})
    monkeypatch.setattr(whole.generator, "config", other)
    monkeypatch.setattr(generator_as_language_model, "load_generator", lambda *_, **__: whole)
    monkeypatch.setattr(sys, "argv", ["script", str(tmp_path / "out")])
    with pytest.raises(SystemExit, match="2"):
        generator_as_language_model.main()
    assert "toklip-gen-tiny is another kind" in capsys.readouterr().err and not (tmp_path / "out").exists()
