"""Reading, refusing, fitting and naming weights."""

from __future__ import annotations

import argparse
import os
import pickle
import random
import subprocess
import sys
import tracemalloc
import zipfile

import huggingface_hub.constants
import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from toklip_core.weights import (
    hub_file,
    hub_folder,
    load_strict,
    read_model_folder,
    read_tensors,
    save_model_folder,
    state_dict_in,
    weights_checksum,
    why_not_fetched,
)
from torch import nn

from tests.support.refusals import refusing
from tests.support.starved import NO_MEMORY, no_file_handles, raising, system_error


class Command:
    """What a malicious file holds: unpickled, it runs a shell command."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


def layer() -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(3, 2)


@pytest.mark.parametrize("how", ["zip", "legacy", "bare pickle"])
def test_a_malicious_file_is_refused_and_does_not_run(tmp_path, how):
    proof = tmp_path / "it-ran"
    content = {"model": layer().state_dict(), "extra": Command(f"touch {proof}")}
    path = tmp_path / "weights.pt"
    if how == "bare pickle":
        path.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=how == "zip")
    with pytest.raises(ValueError, match=r"weights.pt' is (refused: it asks to run posix.system|damaged)") as raised:
        read_tensors(path)
    assert "\n" not in str(raised.value)
    assert not proof.exists()


def test_an_object_of_some_class_is_refused_with_its_name(tmp_path):
    torch.save(layer(), tmp_path / "module.pt")
    with pytest.raises(ValueError, match=r"asks to run torch\.nn\.modules\.linear\.Linear, and weights need no code"):
        read_tensors(tmp_path / "module.pt")


def test_numpy_scalars_and_script_arguments_beside_the_tensors_are_read(tmp_path):
    """Published files have them: TokLIP's a loss as a numpy scalar, LlamaGen's the arguments of the training script."""
    beside = {"loss": np.float64(1.5), "step": np.int64(3), "args": argparse.Namespace(lr=1e-4)}
    torch.save({"model": layer().state_dict(), **beside}, tmp_path / "weights.pt")
    content = read_tensors(tmp_path / "weights.pt")
    assert {name: content[name] for name in beside} == beside
    assert torch.equal(content["model"]["weight"], layer().weight)


@pytest.mark.parametrize("keep", [0, 10, 1000, -100])
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_a_truncated_file_is_one_line(tmp_path, suffix, keep):
    path = tmp_path / f"weights{suffix}"
    tensors = {"weight": torch.ones(1000)}
    (save_file if suffix == ".safetensors" else torch.save)(tensors, path)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ValueError, match="fetch it again") as raised:
        read_tensors(path)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_file_with_bytes_turned_over_is_read_or_refused(tmp_path, zipped):
    """Torch's reader trips over them in a dozen ways, none of which may reach a user."""
    path = tmp_path / "weights.pt"
    torch.save({"weight": torch.ones(7), "step": 3}, path, _use_new_zipfile_serialization=zipped)
    whole = path.read_bytes()
    draw = random.Random(0)
    refused = 0
    for _ in range(150):
        torn = bytearray(whole)
        for _ in range(3):
            torn[draw.randrange(len(torn))] = draw.randrange(256)
        path.write_bytes(torn)
        try:
            read_tensors(path)
        except ValueError:
            refused += 1
    assert refused > 20


@pytest.mark.parametrize("wrong", [None, 3, torch.ones(2), {1: torch.ones(2)}])
def test_a_layout_that_is_no_table_of_tensors_is_named(wrong):
    with pytest.raises(ValueError, match=r"'x.pt' holds a \w+ where tensors by name are wanted"):
        state_dict_in({"model": wrong}, ("ema", "model"), source="x.pt")


def deflated(path, content):
    """Write a torch file, its entries compressed."""
    torch.save(content, path)
    with zipfile.ZipFile(path) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in entries.items():
            archive.writestr(name, data)


def test_a_compressed_torch_file_is_refused_before_it_fills_the_memory(tmp_path, monkeypatch):
    path = tmp_path / "bomb.pt"
    deflated(path, {"weight": torch.zeros(10_000_000)})
    assert path.stat().st_size < 100_000
    monkeypatch.setattr(torch, "load", lambda *arguments, **options: pytest.fail("it was read"))
    with refusing("bomb.pt' is refused: it is compressed, ", " bytes for 40"):
        read_tensors(path)


def test_an_entry_that_claims_more_than_the_file_has_is_refused(tmp_path):
    path = tmp_path / "claims.pt"
    torch.save({"weight": torch.zeros(1000)}, path)
    data = bytearray(path.read_bytes())
    place = data.rindex(b"PK\x01\x02")  # where the last entry is listed
    data[place + 24 : place + 28] = (2**31).to_bytes(4, "little")
    path.write_bytes(data)
    with refusing("claims.pt'"):
        read_tensors(path)


@pytest.mark.parametrize(
    "wrapped",
    [
        "module.{}",
        "_orig_mod.{}",
        "module._orig_mod.{}",
        "_orig_mod.module.{}",
        "module.module.{}",
        "_fsdp_wrapped_module.{}",
    ],
)
def test_what_wrappers_put_into_names_is_taken_out(wrapped):
    tensors = layer().state_dict()
    found = state_dict_in({"model": {wrapped.format(name): x for name, x in tensors.items()}}, ["model"], source="a")
    assert found.keys() == tensors.keys()


def test_a_part_called_module_keeps_its_name_and_a_compiled_part_does_not():
    found = state_dict_in({"tower.module.weight": 1, "head._orig_mod.weight": 2}, [], source="a")
    assert found == {"tower.module.weight": 1, "head.weight": 2}


def test_two_names_that_are_one_without_the_wrapper_are_refused():
    with refusing("'a.pt' has two tensors 'weight', one of them as 'module.weight'"):
        state_dict_in({"weight": 1, "module.weight": 2}, [], source="a.pt")


@pytest.mark.parametrize("nothing", [None, {}])
def test_a_layout_without_anything_in_it_counts_as_not_there(nothing):
    content = {"ema": nothing, "model": {"weight": 1}}
    assert state_dict_in(content, ("ema", "model"), source="a.pt") == {"weight": 1}


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.float8_e5m2])
def test_a_weight_that_is_not_finite_is_refused_by_name(value, dtype):
    tensors = {"theirs.weight": torch.ones(2, 3), "theirs.bias": torch.tensor([1.0, value]).to(dtype)}
    with refusing("the tensor 'theirs.bias' of 'a.pt' has NaN or infinity in it"):
        load_strict(layer(), tensors, source="a.pt", name_in_file=lambda name: f"theirs.{name}")
    with torch.device("meta"):
        module = nn.Linear(3, 2)
    with refusing("'theirs.bias' of 'a.pt'"):
        load_strict(module, tensors, source="a.pt", name_in_file=lambda name: f"theirs.{name}", mapped=True)


def test_integers_are_no_weights():
    tensors = {"weight": torch.ones(2, 3, dtype=torch.int8), "bias": torch.ones(2)}
    with refusing("'a.pt' does not fit: of another shape: weight is of torch.int8, not (2, 3)"):
        load_strict(layer(), tensors, source="a.pt")


@pytest.mark.parametrize("wrong", [torch.ones(2, device="meta"), torch.ones(2).to_sparse()])
def test_a_tensor_without_plain_numbers_does_not_fit(wrong):
    with refusing("bias is a tensor without plain numbers"):
        load_strict(layer(), {"weight": torch.ones(2, 3), "bias": wrong}, source="a.pt")


def test_a_message_of_many_names_is_short():
    module = nn.ModuleDict({f"a_block_with_a_long_name_{i}_{'x' * 30}": nn.Linear(3, 2) for i in range(9)})
    tensors = {f"another_long_name_{i}_{'y' * 40}": torch.ones(1) for i in range(9)}
    with refusing("does not fit: missing: a_block_with", " and ", "more; not expected: another_long_name_0"):
        load_strict(module, tensors, source=f"/a/folder/that/is/{'deep/' * 10}a.pt")


def test_what_is_no_weights_file_is_one_line(tmp_path):
    (tmp_path / "text.ckpt").write_text("version https://git-lfs.github.com/spec/v1\nsize 5\n")
    torch.save([torch.ones(1)], tmp_path / "list.pt")
    with pytest.raises(ValueError, match="no file of weights; fetch it again"):
        read_tensors(tmp_path / "text.ckpt")
    with pytest.raises(ValueError, match="holds a list, not tensors by name"):
        read_tensors(tmp_path / "list.pt")
    with pytest.raises(ValueError, match="is a folder; name the weights file in it"):
        read_tensors(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"there is no weights file .*absent.pt"):
        read_tensors(tmp_path / "absent.pt")


def test_loading_names_what_does_not_fit_as_the_file_has_it():
    tensors = {"theirs.weight": torch.ones(2, 4), "theirs.scale": torch.ones(1), "seen": torch.ones(1)}
    with pytest.raises(ValueError) as raised:
        load_strict(
            layer(), tensors, source="a.pt", name_in_file=lambda n: f"theirs.{n}", ignored={"seen": "a counter"}
        )
    assert str(raised.value) == (
        "'a.pt' does not fit: missing: theirs.bias; not expected: theirs.scale; "
        "of another shape: theirs.weight is (2, 4), not (2, 3)"
    )


def test_a_value_that_is_no_tensor_does_not_fit():
    with pytest.raises(ValueError, match=r"bias is a float, not \(2,\)"):
        load_strict(layer(), {"weight": torch.ones(2, 3), "bias": 0.5}, source="a.pt")


def test_loading_fills_a_module_of_the_meta_device_in_its_own_dtype():
    with torch.device("meta"):
        module = nn.Linear(3, 2)
    load_strict(module, {name: t.half() for name, t in layer().state_dict().items()}, source="a.pt")
    assert torch.equal(module.weight, layer().weight.half().float())


def test_a_failed_load_changes_nothing():
    module = layer()
    with pytest.raises(ValueError, match="missing: bias"):
        load_strict(module, {"weight": torch.zeros(2, 3)}, source="a.pt")
    assert torch.equal(module.weight, layer().weight)


def test_the_checksum_is_of_names_dtypes_shapes_and_values():
    checksum = weights_checksum(layer())
    assert len(checksum) == 64
    assert weights_checksum(layer().eval().requires_grad_(False)) == checksum
    assert weights_checksum(layer().to(torch.bfloat16)) != checksum
    assert weights_checksum(nn.Sequential(layer())) != checksum
    changed = layer()
    changed.bias.data[1] = changed.bias.data[1].nextafter(torch.tensor(9.0))
    assert weights_checksum(changed) != checksum
    convolution = nn.Conv2d(2, 3, 3)
    assert weights_checksum(convolution) == weights_checksum(convolution.to(memory_format=torch.channels_last))


def test_a_model_folder_holds_config_and_tensors_and_nothing_else(tmp_path):
    folder = tmp_path / "deep" / "model"
    module = nn.Conv2d(2, 3, 3).to(memory_format=torch.channels_last)
    save_model_folder(folder, {"width": 3}, module)
    config, tensors = read_model_folder(folder)
    assert config == {"width": 3}
    assert all(torch.equal(tensors[name], tensor) for name, tensor in module.state_dict().items())
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.safetensors"]


def test_a_failed_save_leaves_the_model_that_was_there(tmp_path):
    save_model_folder(tmp_path, {"width": 3}, layer())
    with pytest.raises(TypeError):
        save_model_folder(tmp_path, {"width": object()}, nn.Linear(1, 1))
    config, tensors = read_model_folder(tmp_path)
    assert config == {"width": 3}
    assert torch.equal(tensors["weight"], layer().weight)


def test_a_folder_that_is_no_model_folder_is_one_line(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"is not a model folder: it has no config.json"):
        read_model_folder(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(FileNotFoundError, match=r"it has no model.safetensors"):
        read_model_folder(tmp_path)
    save_file({"weight": torch.ones(1)}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"config\.json is not JSON"):
        read_model_folder(tmp_path)
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(ValueError, match="holds a list, not an object"):
        read_model_folder(tmp_path)


def test_without_network_and_cache_a_line_says_what_to_fetch_and_where_to_put_it(monkeypatch, tmp_path):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(FileNotFoundError) as raised:
        hub_file("owner/model", "weights.ckpt")
    message = str(raised.value)
    assert "fetch https://huggingface.co/owner/model/resolve/main/weights.ckpt to any place" in message
    assert "(`--weights PATH/weights.ckpt`; in a training, `--set tokenizer_weights=PATH`)" in message
    assert "\n" not in message


def test_a_cached_file_needs_no_network(monkeypatch, tmp_path):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    repository = tmp_path / "models--owner--model"
    snapshot = repository / "snapshots" / "0123"
    snapshot.mkdir(parents=True)
    (snapshot / "weights.ckpt").write_text("content")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0123")
    assert hub_file("owner/model", "weights.ckpt").read_text() == "content"


@pytest.mark.parametrize("how", ["entries", "bytes"])
def test_a_pickle_that_asks_for_memory_is_one_line(tmp_path, how):
    class Bytes:
        def __reduce__(self):
            return bytearray, (10**15,)

    path = tmp_path / "greedy.pt"
    torch.save({"weight": Bytes()} if how == "bytes" else {"weight": torch.zeros(4).expand(10**12, 4)}, path)
    if how == "entries":
        with refusing("greedy.pt"):
            load_strict(layer(), read_tensors(path), source=path)
    else:
        with refusing("greedy.pt"):
            read_tensors(path)


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        ("Cannot reach the hub: offline. To disable it, unset it.", "Cannot reach the hub: offline"),
        ("Got: ConnectError: no name\nAn error happened while trying to locate", "Got: ConnectError: no name"),
        ("", "OSError"),
    ],
)
def test_why_a_file_was_not_fetched_is_a_whole_sentence(said, reason, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    assert why_not_fetched(OSError(said)) == reason


def test_a_hub_that_is_switched_off_is_said_to_be(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for fetch in (lambda: hub_file("owner/name", "x.pt"), lambda: hub_folder("owner/name", ["*"], lambda folder: True)):
        with pytest.raises(FileNotFoundError, match=r"downloaded \(HF_HUB_OFFLINE is set, so nothing is downloaded\)"):
            fetch()


@pytest.mark.parametrize(
    "error",
    [
        NO_MEMORY,
        RuntimeError("unable to mmap 300 bytes from file </weights.pt>: Cannot allocate memory (12)"),
        RuntimeError("unable to open file </weights.pt> in read-only mode: Too many open files (24)"),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        system_error("EIO"),
    ],
)
def test_a_machine_that_cannot_read_weights_does_not_call_them_cut_short(tmp_path, monkeypatch, error):
    torch.save(layer().state_dict(), tmp_path / "weights.pt")
    monkeypatch.setattr(torch, "load", raising(error))
    with pytest.raises(type(error)) as raised:
        read_tensors(tmp_path / "weights.pt")
    assert raised.value is error


def write(tensors, path):
    if path.suffix == ".safetensors":
        save_file(tensors, path)
    else:
        torch.save(tensors, path, _use_new_zipfile_serialization=path.stem != "old")


@pytest.mark.parametrize("name", ["weights.pt", "old.pt", "weights.safetensors"])
def test_too_many_open_files_are_no_missing_weights(tmp_path, name):
    write(layer().state_dict(), tmp_path / name)
    read_tensors(tmp_path / name)
    with refusing(name, "Too many open files", kind=OSError), no_file_handles():
        read_tensors(tmp_path / name)


def test_no_memory_is_filled_to_see_whether_a_file_fits_into_it(tmp_path, monkeypatch):
    write(layer().state_dict(), tmp_path / "old.pt")
    with (tmp_path / "old.pt").open("r+b") as file:
        file.truncate(2**26)
    monkeypatch.setattr(torch, "load", raising(MemoryError()))
    tracemalloc.start()
    try:
        with refusing("old.pt' is cut short, or no file of weights (MemoryError)"):
            read_tensors(tmp_path / "old.pt")
        assert tracemalloc.get_traced_memory()[1] < 2**24
    finally:
        tracemalloc.stop()


def test_what_is_wrong_with_a_torn_file_is_said(tmp_path):
    torch.save(layer().state_dict(), tmp_path / "weights.pt")
    (tmp_path / "weights.pt").write_bytes((tmp_path / "weights.pt").read_bytes()[:200])
    with refusing("weights.pt' is cut short, or no file of weights (", "); fetch it again"):
        read_tensors(tmp_path / "weights.pt")


STARVED = """
import resource, sys
from pathlib import Path
from toklip_core.weights import read_tensors
used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 50_000_000, resource.RLIM_INFINITY))
try:
    read_tensors(sys.argv[1])
except Exception as error:
    print(type(error).__name__, error)
"""


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the limit is Linux's")
@pytest.mark.parametrize("name", ["weights.pt", "old.pt", "weights.safetensors"])
def test_weights_that_do_not_fit_into_memory_are_not_cut_short(tmp_path, name):
    write({"weight": torch.zeros(50_000_000)}, tmp_path / name)
    done = subprocess.run(
        [sys.executable, "-c", STARVED, str(tmp_path / name)], capture_output=True, text=True, check=True
    )
    assert "allocate memory" in done.stdout and "fetch it again" not in done.stdout, done.stdout
