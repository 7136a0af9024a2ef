"""A loaded tokenizer as a value: its properties, that no model contains it, and that other ids are refused."""

import copy
import json
import math

import pytest
import torch
from safetensors.torch import save_file
from toklip_core.model import TokLIP
from toklip_core.plugins import TokenizerSpec
from toklip_core.store import TokenStore, decode_store
from toklip_core.tokenizer import Tokenizer, TokenizerRecord, load_tokenizer
from toklip_core.weights import read_model_folder, save_model_folder, weights_checksum
from torch import nn

from tests.support.encoding import encode_with
from tests.support.mean_colour import LEVELS, MeanColour, mean_colour
from tests.support.refusals import refusing
from tests.support.small_models import small_clip, small_toklip

PIXELS = torch.rand(2, 3, 8, 12, generator=torch.Generator().manual_seed(0)) * 2 - 1
#: Ways to give the same weights, gamma 0.5.
WAYS = ["number.txt", "folder", "folder 0.5 of levels", "levels.safetensors", "tensors"]


@pytest.fixture
def weights(tmp_path, request):
    levels = {"levels": MeanColour(gamma=0.5).levels}
    if request.param == "tensors":
        return levels
    path = tmp_path / request.param
    if "folder" in request.param:
        path.mkdir()
        (path / "weights.txt").write_text("0.5")
    elif path.suffix == ".txt":
        path.write_text("0.5")
    else:
        save_file(levels, path)
    return path


def test_it_gives_what_its_module_gives():
    module = MeanColour()
    tokenizer = Tokenizer("mean-colour", module)
    ids = tokenizer.encode(PIXELS)
    assert torch.equal(ids, module.encode(PIXELS))
    assert torch.equal(tokenizer.embed(ids), module.embedding(ids))
    assert torch.equal(tokenizer.code_map(ids), module.embedding.code_map(ids))
    assert torch.equal(tokenizer.decode(ids), module.decode(ids))
    assert (tokenizer.codebook_sizes, tokenizer.codebook_dim, tokenizer.grid(8, 12)) == ((LEVELS,), 1, (2, 3))


def test_decoded_pixels_are_clamped_and_refused_if_they_are_no_numbers(monkeypatch):
    tokenizer = mean_colour()
    ids = tokenizer.encode(PIXELS)
    decode = tokenizer.module.decode
    monkeypatch.setattr(tokenizer.module, "decode", lambda ids: 3 * decode(ids).bfloat16())
    assert torch.equal(tokenizer.decode_clamped(ids), (3 * decode(ids).bfloat16()).float().clamp(-1, 1))
    monkeypatch.setattr(tokenizer.module, "decode", lambda ids: decode(ids) * math.nan)
    with refusing("a pixel of picture 1 of 2 is not finite"):
        tokenizer.decode_clamped(ids)


def test_its_picture_size_is_the_registered_one(toy):
    assert load_tokenizer("mean-colour").image_size == 32


def test_its_checksum_is_that_of_the_loaded_weights_whatever_they_are_cast_to():
    for arguments in ((torch.bfloat16,), ("cpu", torch.bfloat16)):
        tokenizer = mean_colour().to(*arguments)
        assert tokenizer.module.gain.dtype == torch.bfloat16 and tokenizer.module.levels.dtype == torch.float32
        assert tokenizer.checksum == weights_checksum(MeanColour()) != weights_checksum(tokenizer.module)


def test_one_in_another_dtype_is_a_copy_with_the_same_record():
    tokenizer = mean_colour()
    half = tokenizer.in_dtype(torch.bfloat16)
    assert (half.module.gain.dtype, tokenizer.module.gain.dtype) == (torch.bfloat16, torch.float32)
    assert half.record == tokenizer.record and tokenizer.in_dtype(torch.float32) is tokenizer


def test_its_checksum_is_computed_once_and_only_when_it_is_asked_for(monkeypatch):
    hashed = []
    monkeypatch.setattr("toklip_core.tokenizer.weights_checksum", lambda module: hashed.append(module) or "0" * 64)
    tokenizer = mean_colour()
    tokenizer.to("cpu").encode(PIXELS)
    tokenizer.refuse_other_ids(TokenizerRecord(name="mean-colour"), "a model of unknown weights")
    assert not hashed
    assert tokenizer.checksum == tokenizer.record.checksum == "0" * 64
    assert len(hashed) == 1


def test_it_moves_to_a_device():
    """The meta device stands for a GPU."""
    tokenizer = mean_colour()
    assert tokenizer.device.type == "cpu" and tokenizer.to("meta") is tokenizer
    assert tokenizer.device.type == tokenizer.module.levels.device.type == "meta"


def test_a_copy_has_weights_of_its_own():
    tokenizer = mean_colour()
    other = copy.deepcopy(tokenizer)
    other.module.levels.zero_()
    assert torch.equal(tokenizer.embed(torch.arange(LEVELS)[:, None]), MeanColour().levels)
    assert torch.equal(other.embed(torch.arange(LEVELS)[:, None]), torch.zeros(LEVELS, 1))


def test_what_is_no_module_is_refused():
    with pytest.raises(TypeError, match="the factory of the tokenizer 'acme' gives a tuple; return a "):
        Tokenizer("acme", ("acme", None))


@pytest.mark.parametrize("weights", WAYS, indirect=True)
def test_weights_of_its_own_are_saved_beside_a_model_and_found_again(toy, weights, tmp_path):
    first = load_tokenizer("mean-colour", weights)
    assert first.checksum == weights_checksum(MeanColour(gamma=0.5))
    (tmp_path / "model").mkdir()
    first.save_into(tmp_path / "model")
    record = TokenizerRecord.model_validate_json(first.record.model_dump_json())
    assert [path.name for path in (tmp_path / "model").iterdir()] == [record.file]
    again = record.load(tmp_path / "model", where="the model")
    assert torch.equal(again.module.levels, first.module.levels) and again.record == record
    again.save_into(tmp_path / "model")  # over itself
    assert record.load(tmp_path / "model", where="the model").checksum == first.checksum


def test_weights_that_changed_after_they_were_loaded_are_not_saved(toy, tmp_path):
    file = tmp_path / "levels.safetensors"
    save_file({"levels": MeanColour(gamma=0.5).levels}, file)
    tokenizer = load_tokenizer("mean-colour", file)
    model = small_toklip(tokenizer=tokenizer)
    save_file({"levels": MeanColour(gamma=0.25).levels}, file)
    now = weights_checksum(MeanColour(gamma=0.25))
    with refusing(f"{file}' changed", f"sha256 {tokenizer.checksum[:16]}", f"have {now[:16]} now; load the tokenizer"):
        model.save_pretrained(tmp_path / "model")
    assert list((tmp_path / "model").iterdir()) == []


def test_what_holds_tensors_in_turn_is_refused_as_weights(toy):
    levels = {"levels": MeanColour(gamma=0.5).levels}
    with refusing("'model' of the given weights is a dict, not a tensor; pass only the tensors by name"):
        load_tokenizer("mean-colour", {"model": levels})
    with refusing("'step' of the given weights is a int, not a tensor"):
        load_tokenizer("mean-colour", {**levels, "step": 3})
    with refusing("got the name 1 of given weights; wanted tensors by the names of such a file"):
        load_tokenizer("mean-colour", {1: levels["levels"]})


def test_weights_of_its_name_are_named_and_not_saved(toy, tmp_path):
    tokenizer = load_tokenizer("mean-colour")
    (tmp_path / "model").mkdir()
    tokenizer.save_into(tmp_path / "model")
    assert list((tmp_path / "model").iterdir()) == [] and tokenizer.record.file is None
    assert tokenizer.record.load(tmp_path, where="the model").checksum == tokenizer.checksum


def test_weights_that_are_given_take_the_place_of_the_recorded_file(toy, tmp_path):
    (tmp_path / "half.txt").write_text("0.5")
    record = mean_colour(gamma=0.5).record
    with pytest.raises(ValueError, match=r"^the model was made with the tokenizer 'mean-colour'"):
        record.load(where="the model")
    assert record.load(where="the model", weights=tmp_path / "half.txt").checksum == record.checksum


def test_a_record_of_a_tokenizer_that_is_not_installed_says_whose_it_is(toy):
    with pytest.raises(LookupError, match=r"^the model: no VQ tokenizer is named 'mean-color'\. Did you mean"):
        TokenizerRecord(name="mean-color").load(where="the model")


@pytest.mark.parametrize("name", ["..", "../other", "/etc/passwd", "", ".hidden", "a/b", "x\n"])
def test_a_record_names_a_file_beside_itself(name):
    with pytest.raises(ValueError, match="should match pattern"):
        TokenizerRecord(name="mean-colour", file=name)


@pytest.mark.parametrize(
    ("record", "same"),
    [
        (mean_colour().record, True),
        (TokenizerRecord(name="mean-colour"), True),
        (mean_colour(gamma=0.5).record, False),
        (mean_colour().record.model_copy(update={"name": "mean-colour-slow"}), False),
        (TokenizerRecord(name="mean-colour-slow"), False),
    ],
)
def test_ids_are_the_same_if_names_and_checksums_are(record, same):
    ours = mean_colour()
    if same:
        ours.refuse_other_ids(record, "the store")
        ours.record.refuse_other_ids(record, "the store")
        return
    for mine in (ours, ours.record):
        with pytest.raises(ValueError, match=r"^the store was made with the tokenizer '[\w-]+' \(.*\), and this is "):
            mine.refuse_other_ids(record, "the store")


def refusal(call):
    with pytest.raises(ValueError) as raised:
        call()
    return str(raised.value)


def test_the_refusal_is_the_same_wherever_ids_are_read(toy, photos, tmp_path, monkeypatch):
    """What follows the name of the model or the store. Generators and language models have tests of their own."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "half.txt").write_text("0.5")
    encode_with([photos], "store", tokenizer="mean-colour", weights="half.txt", image_size=32)
    small_toklip(tokenizer=mean_colour(weights=tmp_path / "half.txt")).save_pretrained("model")
    file = tmp_path / "model" / "config.json"
    config = json.loads(file.read_text())
    file.write_text(json.dumps(config | {"tokenizer": config["tokenizer"] | {"file": None}}))
    said = {
        refusal(call).partition(" was made ")[2]
        for call in (
            lambda: decode_store("store", "out"),
            lambda: TokLIP.from_pretrained("model"),
            lambda: mean_colour().refuse_other_ids(TokenStore("store").info.tokenizer, "the token store"),
        )
    }
    (line,) = said
    half, whole = mean_colour(gamma=0.5).record, mean_colour().record
    assert line.startswith(f"with the tokenizer {half}, and this is {whole}, whose ids mean other pictures; name that")


def test_no_model_contains_it():
    model = small_toklip()
    assert isinstance(model.tokenizer, Tokenizer) and not isinstance(model.tokenizer, nn.Module)
    assert not any(isinstance(module, MeanColour) for _, module in model.named_modules())
    assert not any("levels" in name or "tokenizer" in name for name in model.state_dict())


def test_a_factory_gets_a_path_tensors_or_nothing(monkeypatch, tmp_path):
    given = []
    spec = TokenizerSpec(name="acme", factory=lambda weights: given.append(weights) or MeanColour(), summary="")
    monkeypatch.setattr("toklip_core.tokenizer.tokenizer_spec", lambda name: spec)
    tensors = {"levels": torch.zeros(1)}
    for weights in (None, str(tmp_path), tmp_path, tensors):
        load_tokenizer("acme", weights)
    assert given[:3] == [None, tmp_path, tmp_path] and given[3] is tensors


@pytest.mark.parametrize(
    ("format", "has"),
    [(..., "has no format number"), (0, "is of format 0"), (2, "is of format 2"), ("1", "is of format '1'")],
)
def test_a_model_folder_of_another_format_is_refused_with_what_to_do(tmp_path, toy, format, has):
    small_toklip().save_pretrained(tmp_path / "toklip")
    small_clip().save_pretrained(tmp_path / "clip")
    save_model_folder(tmp_path / "any", {"width": 3}, nn.Linear(3, 3))
    from toklip_core.model import load_model

    loaders = {"toklip": load_model, "clip": load_model, "any": read_model_folder}
    for name, load in loaders.items():
        file = tmp_path / name / "config.json"
        config = json.loads(file.read_text())
        assert config["format"] == 1
        load(tmp_path / name)
        values = {key: value for key, value in (config | {"format": format}).items() if value is not ...}
        file.write_text(json.dumps(values))
        line = refusal(lambda load=load, name=name: load(tmp_path / name))
        assert line == (
            f"{file} {has}, and this version of toklip reads format 1; convert or train the model again, or use the "
            "version that wrote it"
        )
