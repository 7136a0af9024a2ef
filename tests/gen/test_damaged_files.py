"""Damaged generators and references: one short line that names the file."""

import numpy as np
import pytest
import torch
from toklip_core.weights import save_model_folder
from toklip_gen.evaluation import (
    Activations,
    Extractor,
    ReferenceInfo,
    adm_npz,
    load_reference,
    read_samples,
    references,
    write_reference,
)
from toklip_gen.generator import load_generator

from tests.support.damaged_folders import loaded_after_every_damage
from tests.support.refusals import refusing
from tests.support.small_generators import small_config, small_generator
from tests.support.starved import no_file_handles, raising

EXTRACTOR = Extractor("small", "sha256 1", "as they are", lambda levels: Activations(levels.float().mean((2, 3)), None))
INFO = ReferenceInfo(
    extractor="small", weights="sha256 1", image_size=8, pictures=9, source="here"
)


@pytest.mark.slow
def test_a_generator(toy, tmp_path):
    save_model_folder(tmp_path / "generator", small_config().model_dump(mode="json"), small_generator())
    assert loaded_after_every_damage(tmp_path / "generator", tmp_path, load_generator) == []


@pytest.fixture
def reference(tmp_path):
    path = tmp_path / "reference.npz"
    write_reference(path, torch.rand(9, 3, generator=torch.Generator().manual_seed(0)), INFO)
    assert load_reference(path, EXTRACTOR).features.shape == (9, 3)
    return path


@pytest.mark.parametrize("part", [0, 0.3, 0.7, 0.99])
def test_a_reference_that_is_cut(reference, part):
    data = reference.read_bytes()
    reference.write_bytes(data[: int(part * len(data))])
    with refusing(str(reference)):
        load_reference(reference, EXTRACTOR)


@pytest.mark.parametrize("turned", range(40))
def test_a_reference_with_bytes_turned_over_is_read_or_refused(reference, turned):
    data = bytearray(reference.read_bytes())
    generator = np.random.default_rng(turned)
    for place in generator.integers(0, len(data), 5):
        data[place] = generator.integers(256)
    reference.write_bytes(data)
    try:
        load_reference(reference, EXTRACTOR)
    except ValueError as error:
        assert str(reference) in str(error) and len(str(error)) <= 360 and "\n" not in str(error)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"toklip": np.array("[]")}, "input should be a valid dictionary"),
        ({"toklip": np.array("{")}, "is not JSON"),
        ({"toklip": np.array(INFO.model_dump_json().replace("8", '"x"'))}, "image_size: got 'x'"),
        ({"mu": np.zeros((3, 3))}, "'mu' is (3, 3) float64"),
        ({"mu": np.array([0.0, np.nan, 0.0])}, "the tensor 'mu'"),
        ({"sigma": np.full((3, 3), np.inf)}, "the tensor 'sigma'"),
        ({"sigma": np.zeros((2, 2))}, "'sigma' is (2, 2), and 'mu' has 3 numbers"),
        ({"features": np.full((9, 3), np.nan)}, "the tensor 'features'"),
        ({"features": np.zeros((9, 4))}, "'features' is (9, 4), and 'mu' has 3 numbers"),
        ({"features": np.array(["a"])}, "'features' is (1,) <U1"),
        ({"mu": None}, "'mu' is nothing"),
    ],
)
def test_a_reference_of_something_else(reference, changes, says):
    with np.load(reference) as file:
        arrays = dict(file) | changes
    np.savez(reference, **{name: array for name, array in arrays.items() if array is not None})
    with refusing(str(reference), says):
        load_reference(reference, EXTRACTOR)


def test_an_array_that_is_no_archive(tmp_path):
    np.save(tmp_path / "a.npy", np.zeros(3))
    (tmp_path / "a.npy").rename(tmp_path / "a.npz")
    with refusing("a.npz"):
        load_reference(tmp_path / "a.npz", EXTRACTOR)
    with refusing("a.npz"):
        list(read_samples(tmp_path / "a.npz"))


def test_a_small_file_that_takes_all_memory_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("toklip_gen.evaluation.references._LARGEST", 1_000_000)
    np.savez_compressed(tmp_path / "bomb.npz", mu=np.zeros(1_000_000))
    assert (tmp_path / "bomb.npz").stat().st_size < 20_000
    with refusing("bomb.npz is not an .npz of arrays, or is cut short: its arrays take 8000128 bytes"):
        load_reference(tmp_path / "bomb.npz", EXTRACTOR)


@pytest.mark.parametrize(
    "array", [np.zeros((2, 0, 4, 3), np.uint8), np.zeros(3), np.asfortranarray(np.zeros((2, 4, 4, 3), np.uint8))]
)
def test_pictures_that_are_none(tmp_path, array):
    np.savez(tmp_path / "a.npz", arr_0=array)
    with refusing("a.npz"):
        list(read_samples(tmp_path / "a.npz"))


def test_features_that_are_no_numbers_are_in_no_figure():
    with refusing("a feature of broken's of picture 1 of 2 is not finite"):
        Extractor("broken", "", "", lambda levels: Activations(levels.float() * torch.nan, None))(torch.ones(2, 3))


def test_an_archive_is_not_cut_short_because_the_machine_fails(tmp_path, monkeypatch):
    path = tmp_path / "a.npz"
    np.savez(path, arr_0=np.zeros((2, 8, 8, 3), np.uint8))
    assert len(list(read_samples(path))) == 2
    with pytest.raises(OSError, match="Too many open files"), no_file_handles():
        list(read_samples(path))
    with pytest.raises(OSError, match="Too many open files"), no_file_handles():
        references._arrays(path)
    monkeypatch.setattr(adm_npz, "_header", raising(MemoryError()))
    with pytest.raises(MemoryError):
        list(read_samples(path))
