"""A tokenizer's tensors are read from the files of a whole model, sharded or not, without the rest."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from toklip_vq import sharded_weights
from toklip_vq.sharded_weights import read_tokenizer_tensors

from tests.support.starved import no_file_handles

TOKENIZER = {"vq.quantize.embedding.weight": torch.ones(4, 2), "vq.quant_conv.bias": torch.ones(2)}
REST = {"lm_head.weight": torch.zeros(2, 2)}


def write_shards(folder: Path, suffix: str, write) -> None:
    """The tokenizer in two shards, and a third, with the rest in it, that is not there."""
    base = "model" if suffix == "safetensors" else "pytorch_model"
    shards = [f"{base}-0000{i}-of-00003.{suffix}" for i in (1, 2, 3)]
    for shard, (name, tensor) in zip(shards, TOKENIZER.items(), strict=False):
        write({name: tensor, "other": torch.zeros(1)}, folder / shard)
    weight_map = dict(zip([*TOKENIZER, *REST], shards, strict=True))
    (folder / f"{base}.{suffix}.index.json").write_text(json.dumps({"weight_map": weight_map}))


def same(own) -> bool:
    found = own.tensors
    return found.keys() == TOKENIZER.keys() and all(torch.equal(found[name], TOKENIZER[name]) for name in found)


@pytest.mark.parametrize(("suffix", "write"), [("safetensors", save_file), ("bin", torch.save)])
def test_only_the_shards_of_the_tokenizer_are_opened(tmp_path, suffix, write):
    write_shards(tmp_path, suffix, write)
    own = read_tokenizer_tensors(tmp_path, ["gone.", "vq."])
    assert own.prefix == "vq."
    assert same(own)
    assert "quant_conv.bias" in own and "vq.quant_conv.bias" not in own


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("model.safetensors", save_file),
        ("pytorch_model.bin", torch.save),
        ("any.ckpt", lambda weights, path: torch.save({"state_dict": weights, "epoch": 1}, path)),
    ],
)
def test_a_single_file_gives_the_tokenizer_alone(tmp_path, name, write):
    write(TOKENIZER | REST, tmp_path / name)
    assert same(read_tokenizer_tensors(tmp_path / name, ["vq."]))


def test_tensors_that_are_given_are_taken_as_those_of_a_file():
    own = read_tokenizer_tensors(TOKENIZER | REST, ["gone.", "vq."])
    assert own.prefix == "vq." and same(own)
    with pytest.raises(ValueError, match=r"'the given state dict' has no gone\.quantize\.embedding\.weight; its names"):
        read_tokenizer_tensors(TOKENIZER, ["gone."])


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod."])
@pytest.mark.parametrize(("suffix", "write"), [("safetensors", save_file), ("bin", torch.save)])
def test_what_wrappers_put_into_names_is_taken_out(tmp_path, suffix, write, prefix):
    base = "model" if suffix == "safetensors" else "pytorch_model"
    named = {prefix + name: tensor for name, tensor in (TOKENIZER | REST).items()}
    write(named, tmp_path / f"{base}.{suffix}")
    assert same(read_tokenizer_tensors(tmp_path, ["vq."]))
    (tmp_path / f"{base}.{suffix}.index.json").write_text(
        json.dumps({"weight_map": dict.fromkeys(named, f"{base}.{suffix}")})
    )
    assert same(read_tokenizer_tensors(tmp_path, ["vq."]))


def test_a_shard_that_is_missing_is_named(tmp_path):
    write_shards(tmp_path, "safetensors", save_file)
    (tmp_path / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"model-00002-of-00003\.safetensors"):
        read_tokenizer_tensors(tmp_path, ["vq."])


def test_a_tensor_that_its_shard_lacks_is_left_to_strict_loading(tmp_path):
    write_shards(tmp_path, "safetensors", save_file)
    save_file({"other": torch.zeros(1)}, tmp_path / "model-00002-of-00003.safetensors")
    assert read_tokenizer_tensors(tmp_path, ["vq."]).tensors.keys() == {"vq.quantize.embedding.weight"}


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ('{"weight_map": {"vq.quantize.embedding.weight": "../away.safetensors"}}', "outside of its folder"),
        ('{"weight_map": {"vq.quantize.embedding.weight": ".."}}', "names '..', outside of its folder"),
        ('{"weights": 1}', "is not an index of shards: its weight_map"),
        ("[1, 2]", "holds a list, not an object"),
        ("not JSON", "is not JSON"),
    ],
)
def test_an_index_that_is_none_is_refused(tmp_path, index, message):
    (tmp_path / "model.safetensors.index.json").write_text(index)
    with pytest.raises(ValueError, match=message):
        read_tokenizer_tensors(tmp_path, ["vq."])


def test_an_index_is_no_file_of_weights(tmp_path):
    """It would be saved beside a model without its shards."""
    (tmp_path / "model.safetensors.index.json").write_text('{"weight_map": {"vq.quantize.embedding.weight": "a"}}')
    with pytest.raises(ValueError, match="is not a file of weights; if it is an index of shards, name its folder"):
        read_tokenizer_tensors(tmp_path / "model.safetensors.index.json", ["vq."])


def test_a_folder_without_weights_says_what_it_looked_for(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"has no weights: none of model\.safetensors\.index\.json"):
        read_tokenizer_tensors(tmp_path, ["vq."])
    with pytest.raises(FileNotFoundError, match="there is no weights file"):
        read_tokenizer_tensors(tmp_path / "nothing.safetensors", ["vq."])


def test_a_damaged_file_is_refused(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"\xff" * 64)
    with pytest.raises(ValueError, match="not a whole safetensors file"):
        read_tokenizer_tensors(tmp_path, ["vq."])
    torch.save({"state_dict": 3}, tmp_path / "number.ckpt")
    with pytest.raises(ValueError, match="holds a int where tensors by name are wanted"):
        read_tokenizer_tensors(tmp_path / "number.ckpt", ["vq."])


class Touch:
    """What a malicious file does when it is read."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def write_pickle(content, path):
    path.write_bytes(pickle.dumps(content, protocol=2))


@pytest.mark.parametrize("write", [torch.save, write_pickle])
def test_code_in_a_file_is_refused_and_does_not_run(tmp_path, write):
    write(TOKENIZER | {"bad": Touch(tmp_path / "ran")}, tmp_path / "pytorch_model.bin")
    with pytest.raises(ValueError, match="refused"):
        read_tokenizer_tensors(tmp_path, ["vq."])
    assert not (tmp_path / "ran").exists()


def test_too_many_open_files_are_no_missing_shard(tmp_path):
    """The library that reads it calls every file missing that it cannot open."""
    save_file(TOKENIZER, tmp_path / "model.safetensors")
    assert sharded_weights._names(tmp_path / "model.safetensors")
    with pytest.raises(OSError, match="Too many open files"), no_file_handles():
        sharded_weights._names(tmp_path / "model.safetensors")
