"""UniTok as a CLIP: the vectors of the official code, and the commands that compare pictures with texts."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from click.testing import CliRunner
from PIL import Image
from toklip_core.cli import cli
from toklip_core.evaluation import IdMatcher, load_matcher
from toklip_core.pictures import open_picture, to_pixels
from toklip_core.plugins import registry
from toklip_core.scenes import scene
from toklip_core.weights import weights_checksum
from toklip_vq.published import UniTokCLIPConfig, load_unitok, load_unitok_clip

from tests.support.deterministic import arrays, keys
from tests.support.encoding import encode_with
from tests.support.published_families import named_weights, pooled_weights, unitok_file
from tests.support.refusals import refusing
from tests.vq.published.test_unitok import SMALL

#: The sizes of the goldens.
CONFIG = UniTokCLIPConfig(
    unitok=SMALL,
    text=UniTokCLIPConfig().text.model_copy(
        update={"width": 48, "heads": 4, "layers": 2, "vocabulary": 512, "context_length": 16, "output_dim": 40}
    ),
    image_size=64,
)
#: The same with the vocabulary of CLIP, so that it reads texts.
READER = replace(CONFIG, text=CONFIG.text.model_copy(update={"vocabulary": 49408, "context_length": 77}))


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """The model of the goldens."""
    path = unitok_file(tmp_path_factory.mktemp("weights") / "unitok_tokenizer.pth", golden="unitok_small")
    return load_unitok_clip(path, CONFIG)


@pytest.fixture(scope="module")
def reader(tmp_path_factory):
    """The file of a small model that reads texts."""
    text = {"text_encoder.token_embedding.weight": (49408, 48), "text_encoder.positional_embedding": (77, 48)}
    weights = named_weights(keys("unitok_small") | text)
    path = tmp_path_factory.mktemp("weights") / "small.pth"
    torch.save({"trainer": {"unitok": weights}}, path)
    return path


@pytest.fixture
def small(monkeypatch):
    """The names of the plugin stand for small models."""
    tokenizers, models = registry().tokenizers, registry().models
    tokenizer = replace(tokenizers["unitok"], factory=lambda weights: load_unitok(weights, SMALL), image_size=64)
    model = replace(models["unitok"], match=lambda weights: load_unitok_clip(weights, READER))
    monkeypatch.setitem(tokenizers, "unitok", tokenizer)
    monkeypatch.setitem(models, "unitok", model)


@pytest.fixture
def photos(tmp_path):
    """Three pictures."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for index in range(3):
        Image.fromarray(scene(index).rgb).save(folder / f"{index}.png")
    return folder


@torch.no_grad()
def test_vectors_of_pictures_and_texts_are_those_of_the_official_code(clip):
    """Golden: FoundationVision/UniTok, encode_image and encode_text, at a small size."""
    numbers = arrays("unitok_small")
    encoded = clip.encode_ids(numbers["ids"].transpose(1, 2).reshape(2, 4, 4, 8))
    torch.testing.assert_close(encoded.tokens, numbers["post_quant_tokens"], rtol=0, atol=5e-5)
    torch.testing.assert_close(encoded.pooled, numbers["image_features"], rtol=0, atol=5e-5)
    features = clip.image_features(numbers["pixels"])
    torch.testing.assert_close(features, numbers["image_features_unit"], rtol=0, atol=5e-5)
    texts = clip.text(numbers["text"])
    torch.testing.assert_close(texts, numbers["text_features"], rtol=0, atol=5e-5)
    torch.testing.assert_close(F.normalize(texts, dim=-1), numbers["text_features_unit"], rtol=0, atol=5e-5)
    torch.testing.assert_close(clip.logit_scale.exp(), numbers["logit_scale_exp"], rtol=0, atol=5e-5)


@pytest.mark.slow
def test_the_published_file_has_every_tensor_and_the_tokenizers_are_listed(tmp_path):
    path = unitok_file(tmp_path / "unitok_tokenizer.pth", pooled_weights)
    model, protocol = load_matcher(f"unitok={path}")
    expected = pooled_weights(keys("unitok"))
    loaded = {name.replace("text.network.", "text_encoder."): tensor for name, tensor in model.state_dict().items()}
    assert len(loaded) == 154
    assert all(torch.equal(tensor, expected[name]) for name, tensor in loaded.items())
    assert protocol["tokenizer"] == "unitok"


def test_a_missing_tensor_is_named_as_in_the_file(tmp_path):
    weights = named_weights(keys("unitok_small"))
    del weights["text_encoder.ln_final.bias"]
    with refusing("missing: text_encoder.ln_final.bias"):
        load_unitok_clip(weights, CONFIG)


@pytest.mark.slow
def test_the_tokenizer_stands_beside_the_model_in_float32(clip, reader):
    model = load_unitok_clip(reader, READER)
    before = model.tokenizer.checksum
    model.to(torch.bfloat16)
    assert not any(name.startswith("tokenizer") for name in model.state_dict())
    assert weights_checksum(model.tokenizer.module) == before
    assert isinstance(model, IdMatcher)
    pixels = arrays("unitok_small")["pixels"]
    with torch.no_grad():
        torch.testing.assert_close(model.image_features(pixels), clip.image_features(pixels), rtol=0, atol=0.02)


@pytest.mark.slow
def test_pictures_are_classified_and_a_store_of_ids_is_searched(small, reader, photos, tmp_path):
    model = load_unitok_clip(reader, READER)
    name = f"unitok={reader}"
    done = CliRunner().invoke(cli, ["classify", str(photos), "--model", name, "--labels", "a red circle,a star"])
    assert done.exit_code == 0, done.output
    assert done.stdout.count("a star") == 3

    encode_with([photos], tmp_path / "store", tokenizer="unitok", weights=reader, image_size=64)
    pixels = torch.stack([to_pixels(open_picture(path), 64) for path in sorted(photos.iterdir())])
    with torch.no_grad():
        cosines = model.image_features(pixels) @ model.text_features(["a red circle"])[0]
    for where in (photos, tmp_path / "store"):
        done = CliRunner().invoke(cli, ["search", str(where), "a red circle", "--model", name, "--json"])
        assert done.exit_code == 0, done.output
        found = [hit["cosine"] for hit in json.loads(done.stdout)["pictures"]]
        assert found == pytest.approx(cosines.sort(descending=True).values.tolist(), abs=1e-4)
