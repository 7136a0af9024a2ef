"""TokLIP: folders, the hub, the tokenizer outside of it, and refused input."""

from __future__ import annotations

import copy
import json
import resource

import huggingface_hub
import huggingface_hub.constants
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from toklip_core.model import CLIP, TokLIP, TokLIPConfig, load_model, toklip as model_module
from toklip_core.pictures import PictureError, to_pixels
from toklip_core.weights import weights_checksum

from tests.core.conftest import picture
from tests.support.mean_colour import LEVELS, MeanColour, mean_colour
from tests.support.official_files import write_official
from tests.support.small_models import SIZE, small_clip, small_toklip, text_config, toklip_config

TEXTS = ["a red circle", "a large square"]
FILES = {"config.json", "model.safetensors", "tokenizer.json"}

pytestmark = pytest.mark.usefixtures("toy")


def pixels():
    return torch.rand(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0)) * 2 - 1


@pytest.fixture
def folder(tmp_path):
    """A saved model."""
    small_toklip().save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def edit_config(folder, **changes):
    file = folder / "config.json"
    config = json.loads(file.read_text()) | changes
    file.write_text(json.dumps({key: value for key, value in config.items() if value is not ...}))


def edit_tensors(folder, change):
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


@torch.no_grad()
def check_same_function(mine, theirs):
    for one, other in zip(mine(pixels()), theirs(pixels()), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)
    assert torch.equal(mine.image_features(pixels()), theirs.image_features(pixels()))
    assert torch.equal(mine.text_features(TEXTS), theirs.text_features(TEXTS))
    assert torch.equal(mine.logit_scale, theirs.logit_scale) and torch.equal(mine.logit_bias, theirs.logit_bias)


def test_a_saved_model_is_the_same_function(folder):
    assert {path.name for path in folder.iterdir()} == FILES
    loaded = TokLIP.from_pretrained(folder)
    config = toklip_config().model_copy(update={"tokenizer": mean_colour().record})
    assert loaded.config == config and not loaded.training
    check_same_function(loaded, small_toklip())


def test_a_model_can_be_saved_over_the_files_that_it_is_mapped_from(folder):
    loaded = TokLIP.from_pretrained(folder)
    loaded.logit_scale.data.fill_(2)
    loaded.save_pretrained(folder)
    assert TokLIP.from_pretrained(folder).logit_scale == 2
    check_same_function(TokLIP.from_pretrained(folder), loaded)


def test_training_a_loaded_model_leaves_its_file_as_it_is(folder):
    before = load_file(folder / "model.safetensors")
    loaded = TokLIP.from_pretrained(folder).train()
    loaded(pixels()).pooled.sum().backward()
    torch.optim.SGD(loaded.parameters(), lr=1.0).step()
    assert not torch.equal(loaded.encoder.norm.weight, before["encoder.norm.weight"])
    assert torch.equal(load_file(folder / "model.safetensors")["encoder.norm.weight"], before["encoder.norm.weight"])


def test_the_ways_into_a_model_agree():
    model, image = small_toklip(), picture(0)
    with torch.no_grad():
        given = to_pixels(image, SIZE, "crop")[None]
        seen = model(given)
        assert seen.ids.shape == (1, 8, 8, 1) and seen.codes.shape == (1, 8, 8, 1) and seen.tokens.shape == (1, 64, 32)
        for one, other in zip(model.encode_ids(seen.ids), seen, strict=True):
            assert torch.equal(one, other)
        for one, other in zip(model.encode_pictures([image]), seen, strict=True):
            assert torch.equal(one, other)
        assert torch.equal(model.image_features(given), torch.nn.functional.normalize(seen.pooled, dim=-1))


@torch.no_grad()
def test_a_model_that_squashes_pictures_encodes_the_whole_of_them():
    model, wide = small_toklip(resize="squash"), picture(0, (96, 32))
    seen = model.encode_pictures([wide])
    expected = {way: model(to_pixels(wide, SIZE, way)[None]) for way in ("squash", "crop")}
    assert torch.equal(seen.ids, expected["squash"].ids) and not torch.equal(seen.ids, expected["crop"].ids)
    assert torch.equal(seen.pooled, expected["squash"].pooled)


def test_pictures_are_files_or_pictures_of_any_mode(photos):
    model, image = small_toklip(), picture(3).convert("RGBA")
    seen = model.encode_pictures([photos / "deep/d.jpg", str(photos / "a.jpg"), image, image.convert("L")])
    assert seen.pooled.shape == (4, 32) and not seen.pooled.requires_grad
    assert torch.equal(seen.ids[2:3], model.encode_pictures([image.convert("RGB")]).ids)


def test_a_tiff_that_lies_on_its_side_has_the_same_ids_as_a_file_and_as_a_picture(tmp_path):
    """Pillow itself turns a TIFF once its pixels are read."""
    exif = Image.Exif()
    exif[0x0112] = 6
    picture(0).save(tmp_path / "a.tif", exif=exif)
    with Image.open(tmp_path / "a.tif") as closed:
        closed.load()
    opened = [tmp_path / "a.tif", Image.open(tmp_path / "a.tif"), Image.open(tmp_path / "a.tif").copy(), closed]
    ids = small_toklip().encode_pictures(opened).ids
    assert torch.equal(ids, ids[:1].expand_as(ids))


def test_what_are_no_pictures_is_one_line(tmp_path):
    (tmp_path / "text.png").write_text("no picture")
    with pytest.raises(PictureError, match="no picture in a format that is known here"):
        small_toklip().encode_pictures([tmp_path / "text.png"])
    for one in ([], "a.png", tmp_path, Image.new("RGB", (8, 8))):
        with pytest.raises(ValueError, match="wanted a list of pictures"):
            small_toklip().encode_pictures(one)


def test_the_tokenizer_is_no_part_of_the_module():
    model = small_toklip()
    model.tokenizer.module.train(False)
    names = [*dict(model.named_modules()), *dict(model.named_parameters()), *dict(model.named_buffers())]
    assert not any("tokenizer" in name or "levels" in name for name in [*names, *model.state_dict()])
    assert not any(isinstance(module, MeanColour) for module in model.modules())
    model.train()
    assert not model.tokenizer.module.training
    model.to(torch.bfloat16)
    assert model.tokenizer.module.levels.dtype == torch.float32
    assert copy.deepcopy(model).tokenizer.module is not model.tokenizer.module


def test_the_tokenizer_follows_the_pictures_to_their_device():
    """The meta device stands for a GPU: what is on it cannot be mixed with what is not."""
    model = small_toklip().to("meta")
    assert model.tokenizer.module.levels.device.type == "cpu"
    assert model(pixels().to("meta")).pooled.device.type == "meta"
    model = small_toklip().to("meta")
    assert model.encode_ids(torch.zeros(1, 8, 8, 1, dtype=torch.int64, device="meta")).tokens.device.type == "meta"


def test_gradients_reach_every_weight_of_both_towers():
    model = small_toklip()
    image, text = model(pixels()).pooled, model.text(model.text.ids(TEXTS))
    (model.logit_scale.exp() * image @ text.T + model.logit_bias).square().sum().backward()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []


def test_the_text_tower_can_be_left_out(folder):
    loaded = TokLIP.from_pretrained(folder, text=False)
    assert not any(name.startswith("text.") for name in loaded.state_dict())
    assert torch.equal(loaded(pixels()).pooled, small_toklip()(pixels()).pooled)
    with pytest.raises(LookupError, match=r"was loaded without its text tower; load it with text=True$"):
        loaded.text_features(TEXTS)
    with pytest.raises(LookupError, match="load it with text=True to save it"):
        loaded.save_pretrained(folder)


def test_the_tokenizer_can_be_left_out_where_its_package_is_missing(folder):
    edit_config(folder, tokenizer={"name": "of-another-package"})
    with pytest.raises(LookupError, match="no VQ tokenizer is named 'of-another-package'"):
        TokLIP.from_pretrained(folder)
    loaded = TokLIP.from_pretrained(folder, tokenizer=False)
    codes = small_toklip()(pixels()).codes
    assert torch.equal(loaded.encoder(codes).pooled, small_toklip()(pixels()).pooled)
    with pytest.raises(LookupError, match="was loaded without its VQ tokenizer; load it with tokenizer=True"):
        loaded(pixels())


def test_a_folder_without_its_text_tokenizer_reads_pictures(folder):
    (folder / "tokenizer.json").unlink()
    loaded = TokLIP.from_pretrained(folder)
    assert loaded.image_features(pixels()).shape == (2, 32)
    with pytest.raises(FileNotFoundError, match=r"the text tokenizer is missing: put its tokenizer\.json beside"):
        loaded.text_features(TEXTS)


def test_a_dtype_is_of_the_towers_and_not_of_the_tokenizer(folder):
    loaded = TokLIP.from_pretrained(folder, dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.bfloat16}
    assert loaded.tokenizer.module.levels.dtype == torch.float32
    exact = small_toklip()
    assert torch.equal(loaded(pixels()).ids, exact(pixels()).ids)
    for mine, theirs in [
        (loaded.image_features(pixels()), exact.image_features(pixels())),
        (loaded.text_features(TEXTS), exact.text_features(TEXTS)),
    ]:
        assert mine.dtype == torch.float32
        assert torch.cosine_similarity(mine, theirs).min() > 0.999


def test_weights_keep_the_dtype_that_they_are_stored_in_unless_another_is_asked_for(tmp_path):
    half = small_toklip().to(torch.bfloat16)
    half.save_pretrained(tmp_path / "half")
    assert TokLIP.from_pretrained(tmp_path / "half").encoder.pos_embed.dtype == torch.bfloat16
    check_same_function(TokLIP.from_pretrained(tmp_path / "half"), half)
    whole = TokLIP.from_pretrained(tmp_path / "half", dtype=torch.float32)
    assert {parameter.dtype for parameter in whole.parameters()} == {torch.float32}


def test_float16_is_for_files_and_computes_in_float32(tmp_path):
    half = small_toklip().to(torch.float16)
    half.save_pretrained(tmp_path / "half")
    loaded = TokLIP.from_pretrained(tmp_path / "half")
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.float32}
    check_same_function(loaded, half.float())


@pytest.mark.parametrize("kind", ["file", "folder", "tensors"])
def test_the_tokenizers_own_weights_travel_with_the_model(tmp_path, kind):
    """Weights that are a text file with a number, in a file or, where the tokenizer takes one, in a folder."""
    own = tmp_path / "own.txt"
    if kind == "tensors":
        own = {"levels": torch.linspace(-1, 1, LEVELS)[:, None] * 2}
    elif kind == "file":
        own.write_text("2")
    else:
        own = tmp_path / "own"
        own.mkdir()
        (own / "weights.txt").write_text("2")
    model = small_toklip(tokenizer=mean_colour(weights=own))
    model.save_pretrained(tmp_path / "one")
    for _ in range(2):  # into a new folder, then over itself
        loaded = TokLIP.from_pretrained(tmp_path / "one")
        assert loaded.tokenizer.module.levels[-1] == 2
        loaded.save_pretrained(tmp_path / "two")
        loaded = TokLIP.from_pretrained(tmp_path / "two")
        assert loaded.tokenizer.module.levels[-1] == 2
        loaded.save_pretrained(tmp_path / "two")
    suffix = {"file": ".txt", "folder": "", "tensors": ".safetensors"}[kind]
    assert {path.name for path in (tmp_path / "two").iterdir()} == FILES | {f"tokenizer{suffix}"}


def test_another_tokenizer_than_the_one_it_was_trained_with_is_refused(folder):
    record = mean_colour().record.model_dump()
    edit_config(folder, tokenizer=record)
    assert TokLIP.from_pretrained(folder).tokenizer.codebook_sizes == (LEVELS,)
    edit_config(folder, tokenizer=record | {"checksum": weights_checksum(MeanColour(gamma=0.5))})
    with pytest.raises(ValueError, match=r"model was made with the tokenizer 'mean-colour' \(sha256 \w{16}\), and "):
        TokLIP.from_pretrained(folder)
    assert TokLIP.from_pretrained(folder, tokenizer=False).config.tokenizer.checksum


def test_a_tokenizer_of_another_width_is_refused(tmp_path):
    encoder = toklip_config().encoder.model_copy(update={"codebook_dim": 2})
    small_toklip(encoder=encoder).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="'mean-colour' has codes of width 1, but the encoder takes 2"):
        TokLIP.from_pretrained(tmp_path)


def test_towers_of_two_spaces_are_refused():
    with pytest.raises(ValueError, match="texts become 24 numbers and pictures 32: set output_dim so that both are"):
        toklip_config(text=text_config().model_copy(update={"output_dim": 24}))


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"image_sise": 3}, r"config\.json: image_sise is not a setting; did you mean 'image_size'\?"),
        ({"resize": ...}, r"config\.json: resize is missing"),
        ({"resize": "stretch"}, r"config\.json: resize: got 'stretch'"),
        ({"tokenizer": {"name": "x", "file": "../other"}}, r"config\.json: tokenizer\.file: got '../other"),
        ({"tokenizer": {"name": "x", "file": ".."}}, r"config\.json: tokenizer\.file: got '\.\.'"),
        ({"kind": "clip"}, "holds two towers on pixels, no TokLIP; load it with load_model"),
    ],
    ids=str,
)
def test_a_config_that_does_not_fit_is_one_line(folder, changes, match):
    edit_config(folder, **changes)
    with pytest.raises(ValueError, match=match) as raised:
        TokLIP.from_pretrained(folder)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda x: x.pop("encoder.blocks.1.attn.qkv.weight"), r"fit: missing: encoder\.blocks\.1\.attn\.qkv\.weight$"),
        (lambda x: x.update(extra=torch.ones(1)), "fit: not expected: extra$"),
        (lambda x: x.update(logit_scale=torch.ones(2)), r"fit: of another shape: logit_scale is \(2,\), not \(\)$"),
        (lambda x: x.pop("encoder.pos_embed"), r"fit: missing: encoder\.pos_embed$"),
    ],
)
def test_weights_that_do_not_fit_are_one_line(folder, change, match):
    edit_tensors(folder, change)
    with pytest.raises(ValueError, match=match):
        TokLIP.from_pretrained(folder)


def test_a_truncated_file_is_one_line(folder):
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(ValueError, match="is not a whole safetensors file") as raised:
        TokLIP.from_pretrained(folder)
    assert "\n" not in str(raised.value)


def test_an_official_file_is_the_same_function_and_so_is_its_folder(tmp_path):
    model = small_toklip()
    file = write_official(tmp_path / "small.pt", model)
    loaded = TokLIP.from_pretrained(file, config=model.config)
    loaded.text.tokenizer = model.text.tokenizer  # of a published model it is downloaded
    check_same_function(loaded, model)
    loaded.save_pretrained(tmp_path / "converted")
    assert {path.name for path in (tmp_path / "converted").iterdir()} == FILES | {"tokenizer.safetensors"}
    check_same_function(TokLIP.from_pretrained(tmp_path / "converted"), model)


def test_a_file_of_another_size_wants_its_config(tmp_path):
    file = write_official(tmp_path / "small.pt", small_toklip())
    with pytest.raises(ValueError, match=r"a position embedding \(1, 64, 32\), which no published model has; give its"):
        TokLIP.from_pretrained(file)


def test_a_name_that_nobody_has_is_one_line_with_the_nearest():
    with pytest.raises(LookupError, match=r"no model is named 'toklip-l-38', and no folder or file. Did you mean 'tok"):
        TokLIP.from_pretrained("toklip-l-38")
    with pytest.raises(FileNotFoundError, match=r"there is no file 'weights/TokLIP_L_384\.pt'"):
        TokLIP.from_pretrained("weights/TokLIP_L_384.pt")


@pytest.mark.parametrize("name", ["toklip-s-256", "toklip-b-256"])
def test_a_name_and_its_alias_are_one_file_of_the_hub(monkeypatch, tmp_path, name):
    def asked(repository, filename, *, way_out):
        assert (repository, filename) == ("TencentARC/TokLIP", "TokLIP_S_256.pt")
        return write_official(tmp_path / "small.pt", small_toklip())

    monkeypatch.setattr(model_module, "hub_file", asked)
    with pytest.raises(ValueError, match=r"small\.pt' does not fit: missing: visual\.trunk\.blocks\.2\."):
        TokLIP.from_pretrained(name, tokenizer=False)


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """An empty cache of the hub, and no network; the value is the folder of the cached repository owner/name."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    repository = tmp_path / "hub" / "models--owner--name"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("0123")
    return repository / "snapshots" / "0123"


@pytest.mark.parametrize("own", [None, "2"])
def test_a_repository_in_the_cache_of_the_hub_needs_no_network(hub, tmp_path, own):
    (tmp_path / "own.txt").write_text(own or "")
    model = small_toklip(tokenizer=mean_colour(weights=tmp_path / "own.txt" if own else None))
    model.save_pretrained(hub)
    loaded = TokLIP.from_pretrained("owner/name")
    assert loaded.tokenizer.module.levels[-1] == float(own or 1)
    assert torch.equal(loaded.text_features(TEXTS), model.text_features(TEXTS))
    assert isinstance(load_model("owner/name"), TokLIP)


def test_a_repository_that_is_not_all_in_the_cache_is_downloaded(hub, tmp_path, monkeypatch):
    small_toklip().save_pretrained(hub)
    (hub / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"repository 'owner/name' is not a whole model folder, or not all"):
        TokLIP.from_pretrained("owner/name")
    small_toklip().save_pretrained(tmp_path / "fetched")
    asked = []

    def download(repository, *, local_files_only=False, allow_patterns=None):
        asked.append((repository, allow_patterns))
        return str(hub if local_files_only else tmp_path / "fetched")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    check_same_function(TokLIP.from_pretrained("owner/name"), small_toklip())
    assert asked[-1] == ("owner/name", ["config.json", "model.safetensors", "tokenizer*"])


def test_what_is_nowhere_is_one_line(hub):
    with pytest.raises(FileNotFoundError, match="there is no folder 'runs/last', and the hub's repository of this"):
        TokLIP.from_pretrained("runs/last")
    with pytest.raises(FileNotFoundError, match=r"fetch https://.*/TokLIP_L_384\.pt to any place and give its path as"):
        TokLIP.from_pretrained("toklip-l-384")


class FakeHub:
    """Remembers what is uploaded."""

    files: dict[str, bytes]

    def __init__(self):
        type(self).files = {}

    def create_repo(self, repository, *, private, exist_ok):
        if repository == "nobody/name":
            raise RuntimeError("403 Forbidden:\nyou are not nobody")
        assert (repository, private, exist_ok) == ("owner/name", True, True)

    def upload_folder(self, *, repo_id, folder_path):
        from pathlib import Path

        type(self).files = {path.name: path.read_bytes() for path in Path(folder_path).iterdir()}
        return f"https://huggingface.co/{repo_id}/commit/0123"


def test_a_push_uploads_the_model_folder(monkeypatch, tmp_path, folder):
    monkeypatch.setattr(huggingface_hub, "HfApi", FakeHub)
    assert small_toklip().push_to_hub("owner/name", private=True).startswith("https://huggingface.co/owner/name")
    assert FakeHub.files == {path.name: path.read_bytes() for path in folder.iterdir()}
    official = TokLIP.from_pretrained(write_official(tmp_path / "x.pt", small_toklip()), config=toklip_config())
    official.push_to_hub("owner/name", private=True)
    assert set(FakeHub.files) == {"config.json", "model.safetensors", "tokenizer.safetensors"}


def test_a_hub_that_refuses_is_one_line(monkeypatch):
    monkeypatch.setattr(huggingface_hub, "HfApi", FakeHub)
    with pytest.raises(OSError, match=r"cannot upload to 'nobody/name' \(403 Forbidden: you are not nobody\)"):
        small_toklip().push_to_hub("nobody/name")


def test_a_full_disk_leaves_the_saved_model_as_it_was(folder, tmp_path):
    """A limit on the size of files fails a write as a full disk does."""
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    (tmp_path / "own.txt").write_text("2")
    other = small_toklip(seed=1, tokenizer=mean_colour(weights=tmp_path / "own.txt"))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, hard))
    try:
        with pytest.raises(OSError, match=r"cannot write the model into '.*model'"):
            other.save_pretrained(folder)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_a_folder_says_itself_whether_it_is_a_teacher(folder, tmp_path):
    small_clip().save_pretrained(tmp_path / "teacher")
    assert isinstance(load_model(tmp_path / "teacher"), CLIP)
    assert isinstance(load_model(str(folder)), TokLIP)
    with pytest.raises(LookupError, match="no model is named 'nothing'"):
        load_model("nothing")


def test_a_config_survives_json(folder):
    config = toklip_config()
    assert TokLIPConfig.model_validate_json(config.model_dump_json()) == config
