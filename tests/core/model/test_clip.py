"""Teachers: open_clip's own numbers for pixels and texts, files of weights, and model folders."""

from __future__ import annotations

import logging

import open_clip
import pytest
import torch
from open_clip.constants import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD
from pydantic import ValidationError
from safetensors.torch import load_file, save_file
from toklip_core.model import CLIPConfig, TrunkConfig, VisionConfig, build_vision_tower, clip_from_open_clip, load_clip
from toklip_core.weights import read_model_folder, save_model_folder
from torch import nn

from tests.support.open_clip_models import CLIP, created, register, save_tokenizer, siglip
from tests.support.small_models import small_clip, text_config
from tests.support.starved import raising, system_error

TEXTS = ["a red circle", "Two small_Cats"]
_WEBLI = {"mean": (0.5,) * 3, "std": (0.5,) * 3, "resize_mode": "squash", "hf_hub": "nobody/nothing/"}
_OPENAI = {"mean": OPENAI_DATASET_MEAN, "std": OPENAI_DATASET_STD, "resize_mode": "shortest", "hf_hub": "a/b/"}


def pixels(size=32):
    return torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(3)) * 2 - 1


@torch.no_grad()
def check_same_function(mine, theirs, tokenizer):
    preprocess = theirs.visual.preprocess_cfg
    mean, std = (torch.tensor(preprocess[key])[:, None, None] for key in ("mean", "std"))
    normalised = ((pixels() + 1) / 2 - mean) / std
    torch.testing.assert_close(mine.image_features(pixels()), theirs.encode_image(normalised, normalize=True))
    text = theirs.encode_text(tokenizer(TEXTS), normalize=True)
    torch.testing.assert_close(mine.text_features(TEXTS), text, rtol=0, atol=0)
    assert torch.equal(mine.logit_scale, theirs.logit_scale.reshape(()))
    assert mine.logit_bias == (0 if theirs.logit_bias is None else theirs.logit_bias.reshape(()))


def open_clip_model(monkeypatch, settings, **options):
    register(monkeypatch, "tiny", settings)
    return created("tiny", **options), open_clip.get_tokenizer("tiny")


def test_a_model_like_siglip_is_the_same_function(monkeypatch, tmp_path):
    settings = siglip(save_tokenizer(tmp_path))
    theirs, tokenizer = open_clip_model(monkeypatch, settings, force_preprocess_cfg=_WEBLI)
    mine = clip_from_open_clip(theirs, settings["text_cfg"], tokenizer)
    assert (mine.config.image_size, mine.config.resize) == (32, "squash")
    check_same_function(mine, theirs, tokenizer)


@pytest.mark.slow
@pytest.mark.parametrize("changes", [{}, {"quick_gelu": True}, {"nonscalar_logit_scale": True}, {"custom_text": True}])
def test_a_model_like_clip_is_the_same_function(monkeypatch, changes):
    """It is given pictures that are normalised as OpenAI's were; ours takes pixels in [-1, 1]."""
    settings = {**CLIP, **changes}
    theirs, tokenizer = open_clip_model(monkeypatch, settings)
    mine = clip_from_open_clip(theirs, settings["text_cfg"], tokenizer)
    assert (mine.config.image_size, mine.config.resize) == (32, "crop")
    assert mine.config.vision.mean == OPENAI_DATASET_MEAN
    check_same_function(mine, theirs, tokenizer)


@torch.no_grad()
def test_tokens_of_a_picture_leave_the_class_token_out_and_are_pooled_to_its_feature(monkeypatch):
    theirs, tokenizer = open_clip_model(monkeypatch, CLIP)
    mine = clip_from_open_clip(theirs, CLIP["text_cfg"], tokenizer)
    tokens, pooled = mine.image_tokens(pixels())
    assert tokens.shape == (2, 16, 32) and pooled.shape == (2, 24)
    assert torch.equal(nn.functional.normalize(pooled, dim=-1), mine.image_features(pixels()))


def test_a_converted_model_shares_the_weights_it_came_from(monkeypatch):
    theirs, tokenizer = open_clip_model(monkeypatch, CLIP)
    mine = clip_from_open_clip(theirs, CLIP["text_cfg"], tokenizer)
    assert mine.vision.patch_embed.proj.weight.data_ptr() == theirs.visual.conv1.weight.data_ptr()
    assert mine.text.network.token_embedding.weight.data_ptr() == theirs.token_embedding.weight.data_ptr()


def test_a_model_in_half_precision_is_converted_to_float32(monkeypatch):
    theirs, tokenizer = open_clip_model(monkeypatch, CLIP, precision="pure_bf16")
    mine = clip_from_open_clip(theirs, CLIP["text_cfg"], tokenizer)
    assert {parameter.dtype for parameter in mine.parameters()} == {torch.float32}


def test_an_unknown_way_to_resize_is_refused(monkeypatch):
    theirs, tokenizer = open_clip_model(monkeypatch, CLIP, force_preprocess_cfg={"resize_mode": "longest"})
    with pytest.raises(ValueError, match="got the resize mode 'longest'; wanted one of squash, shortest"):
        clip_from_open_clip(theirs, CLIP["text_cfg"], tokenizer)


@pytest.mark.slow
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_a_file_of_weights_of_a_named_model_is_loaded(monkeypatch, tmp_path, suffix):
    theirs, tokenizer = open_clip_model(monkeypatch, CLIP)
    file = tmp_path / f"weights{suffix}"
    if suffix == ".pt":  # as a training of open_clip writes it
        state = {f"module.{name}": tensor for name, tensor in theirs.state_dict().items()}
        torch.save({"epoch": 3, "name": "tiny", "state_dict": state}, file)
    else:
        save_file(theirs.state_dict(), file)
    check_same_function(load_clip(f"open_clip:tiny/{file}"), theirs, tokenizer)


def test_pictures_for_a_file_of_weights_are_prepared_as_for_the_published_ones(monkeypatch, tmp_path):
    """open_clip itself would prepare them as for OpenAI's CLIP, though the name is SigLIP's."""
    settings = siglip(save_tokenizer(tmp_path / "tokenizer"))
    register(monkeypatch, "tiny", settings, webli=_WEBLI)
    theirs = created("tiny", force_preprocess_cfg=_WEBLI)
    torch.save(theirs.state_dict(), tmp_path / "weights.pt")
    mine = load_clip(f"open_clip:tiny/{tmp_path}/weights.pt")
    assert (mine.config.resize, mine.config.vision.mean) == ("squash", (0.5, 0.5, 0.5))
    check_same_function(mine, theirs, open_clip.get_tokenizer("tiny"))


def test_the_activation_of_published_weights_is_theirs_and_not_the_names(monkeypatch, tmp_path):
    """ViT-B-32/openai was trained with QuickGELU, which the name does not say; open_clip would warn and take GELU."""
    register(monkeypatch, "tiny", {**CLIP, "quick_gelu": True})
    theirs = created("tiny")
    torch.save(theirs.state_dict(), tmp_path / "weights.pt")
    register(monkeypatch, "tiny", CLIP, openai={**_OPENAI, "quick_gelu": True, "file": str(tmp_path / "weights.pt")})
    mine = load_clip("open_clip:tiny/openai")
    assert mine.config.text.activation == mine.config.vision.trunk.activation == "quick_gelu"
    check_same_function(mine, theirs, open_clip.get_tokenizer("tiny"))


def test_unknown_names_and_tags_of_open_clip_are_one_line(monkeypatch):
    register(monkeypatch, "tiny", CLIP, webli=_WEBLI)
    with pytest.raises(LookupError, match="open_clip has no model 'tinny'; did you mean 'tiny'"):
        load_clip("open_clip:tinny/webli")
    for tag in ("/weblo", "/", ""):
        with pytest.raises(LookupError, match=r"open_clip has no weights '(weblo)?' of tiny, .* one of: webli"):
            load_clip(f"open_clip:tiny{tag}")


def test_files_that_do_not_fit_are_one_line(monkeypatch, tmp_path):
    register(monkeypatch, "tiny", CLIP)
    state = created("tiny").state_dict()
    torch.save({"state_dict": state, "run": nn.Linear(1, 1)}, tmp_path / "code.pt")
    with pytest.raises(ValueError, match=r"code.pt' is refused: it asks to run torch.nn.modules.linear.Linear"):
        load_clip(f"open_clip:tiny/{tmp_path}/code.pt")
    del state["visual.ln_post.bias"]
    torch.save(state, tmp_path / "less.pt")
    with pytest.raises(ValueError, match=r"less.pt' does not fit tiny: .*visual.ln_post.bias") as raised:
        load_clip(f"open_clip:tiny/{tmp_path}/less.pt")
    assert "\n" not in str(raised.value)
    (tmp_path / "short.pt").write_bytes((tmp_path / "less.pt").read_bytes()[:1000])
    with pytest.raises(ValueError, match=r"short.pt' is cut short"):
        load_clip(f"open_clip:tiny/{tmp_path}/short.pt")


def test_weights_that_cannot_be_downloaded_are_one_line(monkeypatch, caplog):
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    register(monkeypatch, "tiny", CLIP, webli=_WEBLI)
    with caplog.at_level(logging.CRITICAL), pytest.raises(FileNotFoundError, match="tiny/webli or its tokenizer"):
        load_clip("open_clip:tiny/webli")


def test_without_transformers_a_line_says_what_to_install(monkeypatch, tmp_path):
    def missing(name):
        raise ModuleNotFoundError("No module named 'transformers'", name="transformers")

    register(monkeypatch, "tiny", CLIP)
    torch.save(created("tiny").state_dict(), tmp_path / "weights.pt")
    monkeypatch.setattr(open_clip, "get_tokenizer", missing)
    with pytest.raises(LookupError, match=r"transformers is not installed: pip install 'toklip-core\[train\]'"):
        load_clip(f"open_clip:tiny/{tmp_path}/weights.pt")


@torch.no_grad()
def test_a_saved_teacher_is_the_same_function(tmp_path):
    saved = small_clip()
    saved.save_pretrained(tmp_path / "teacher")
    assert {path.name for path in (tmp_path / "teacher").iterdir()} == {
        "config.json",
        "model.safetensors",
        "tokenizer.json",
    }
    loaded = load_clip(tmp_path / "teacher")
    assert loaded.config == saved.config and not loaded.training
    assert torch.equal(loaded.image_features(pixels()), saved.image_features(pixels()))
    assert torch.equal(loaded.text_features(TEXTS), saved.text_features(TEXTS))


def test_a_converted_clip_is_saved_without_a_tokenizer_of_its_own(monkeypatch, tmp_path):
    """CLIP's comes with open_clip; the causal mask, which no file has, is there after loading."""
    theirs, tokenizer = open_clip_model(monkeypatch, CLIP)
    clip_from_open_clip(theirs, CLIP["text_cfg"], tokenizer).save_pretrained(tmp_path / "clip")
    assert {path.name for path in (tmp_path / "clip").iterdir()} == {"config.json", "model.safetensors"}
    check_same_function(load_clip(tmp_path / "clip"), theirs, tokenizer)


def test_a_loaded_teacher_refuses_features_that_are_not_finite(tmp_path):
    small_clip().save_pretrained(tmp_path)
    loaded = load_clip(tmp_path)
    loaded.vision.norm.weight.data.fill_(torch.nan)
    with pytest.raises(ValueError, match="the model's feature of picture 1 of 2 is not finite"):
        loaded.image_features(torch.zeros(2, 3, 32, 32))


def test_a_teacher_can_be_trained_after_loading(tmp_path):
    """Its weights are mapped from the disk, and changing them leaves the file as it is."""
    small_clip().save_pretrained(tmp_path)
    before = load_file(tmp_path / "model.safetensors")
    loaded = load_clip(tmp_path)
    (loaded.image_features(pixels())[0, 0] + loaded.text(loaded.text.ids(TEXTS))[0, 0]).backward()
    torch.optim.SGD(loaded.parameters(), lr=1.0).step()
    assert not torch.equal(loaded.vision.norm.weight, before["vision.norm.weight"])
    after = load_file(tmp_path / "model.safetensors")
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


def test_what_is_no_teacher_is_one_line(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"is not a model folder: it has no config\.json"):
        load_clip(tmp_path)
    clip = small_clip()
    config = clip.config.model_dump(mode="json")
    save_model_folder(tmp_path, {**config, "kind": "toklip"}, clip)
    with pytest.raises(ValueError, match="holds a TokLIP, no teacher"):
        load_clip(tmp_path)
    save_model_folder(tmp_path, {**config, "image_sise": 3}, clip)
    with pytest.raises(ValueError, match=r"config.json: image_sise is not a setting; did you mean 'image_size'"):
        load_clip(tmp_path)
    save_model_folder(tmp_path, config, clip.text)
    with pytest.raises(ValueError, match=r"does not fit: missing: logit_scale, .*; not expected: network"):
        load_clip(tmp_path)


def test_checkpoints_of_others_are_refused_with_a_name_of_open_clip(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "siglip2", "vision_config": {}}')
    with pytest.raises(ValueError, match=r"is a model of transformers \(siglip2\); name open_clip's copy of it"):
        load_clip(tmp_path)
    with pytest.raises(LookupError, match=r"got hf-hub:timm/ViT-B-16-SigLIP2-256, a name of the hub; give open_clip's"):
        load_clip("open_clip:hf-hub:timm/ViT-B-16-SigLIP2-256")


def test_towers_of_two_spaces_are_refused():
    _, trunk = text_config(), small_clip().config.vision.trunk
    wide = VisionConfig(trunk=trunk.model_copy(update={"output_dim": 24}), patch_size=8)
    with pytest.raises(ValueError, match="texts become 32 numbers and pictures 24: set output_dim so that both are"):
        CLIPConfig(image_size=32, vision=wide, text=text_config())


def test_a_folder_without_its_text_tokenizer_reads_pictures(tmp_path):
    small_clip().save_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    loaded = load_clip(tmp_path)
    assert loaded.image_features(pixels()).shape == (2, 32)
    with pytest.raises(FileNotFoundError, match=r"the text tokenizer is missing: put its tokenizer.json beside"):
        loaded.text_features(TEXTS)
    assert read_model_folder(tmp_path)[0]["kind"] == "clip"


def test_a_stem_treats_each_picture_alone_and_its_blocks_add_to_what_they_read():
    trunk = TrunkConfig(width=16, depth=1, heads=2)
    stem = VisionConfig(trunk=trunk, patch_size=8, stem=(8, 8, 16), stem_blocks=2)
    tower = build_vision_tower(stem, 32).eval()
    drawn = torch.randn(3, 3, 32, 32)
    patches = tower.patch_embed(drawn)
    assert patches.shape == (3, 16, 16)
    torch.testing.assert_close(tower.patch_embed(drawn[1:2]), patches[1:2])
    blocks = [module for module in tower.patch_embed.layers if isinstance(module, nn.Sequential)]
    assert len(blocks) == 6
    for block in blocks:
        torch.nn.init.zeros_(block[-2].weight)  # the last norm; GELU makes 0 of its 0
    plain = build_vision_tower(stem.model_copy(update={"stem_blocks": 0}), 32).eval()
    kept = [module for module in tower.patch_embed.layers if module not in blocks]
    plain.patch_embed.layers = nn.Sequential(*kept)
    torch.testing.assert_close(plain.patch_embed(drawn), tower.patch_embed(drawn))


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"stem_blocks": 1}, "stem_blocks has no effect without a stem"),
        ({"stem": (8, 0, 16)}, "greater than 0"),
        ({"stem": (8, 16, 17)}, "a stem has 17 channels; wanted a number below 16, or a multiple of 8"),
        ({"std": (0.5, 0.0, 0.5)}, "greater than 0"),
    ],
)
def test_a_tower_that_cannot_be_built_or_divides_by_zero_is_refused(settings, match):
    with pytest.raises(ValidationError, match=match):
        VisionConfig(trunk=TrunkConfig(width=16, depth=1, heads=2), patch_size=8, **settings)


def test_a_connection_that_is_lost_names_the_weights(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr(open_clip, "create_model", raising(system_error("ECONNRESET")))
    with pytest.raises(FileNotFoundError, match=r"open_clip cannot load ViT-B-32/openai or its tokenizer: .*reset"):
        load_clip("open_clip:ViT-B-32/openai")
