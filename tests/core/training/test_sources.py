"""Several sources as one data set, and the replacement of unusable samples."""

import logging
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
from toklip_core.files import is_machine_error
from toklip_core.pictures import Entry, PictureError
from toklip_core.training import Concatenation, UnusableSampleError, first_usable, sources

from tests.support.starved import raising, system_error


class Letters:
    def __init__(self, letters: str) -> None:
        self._letters = letters

    def __len__(self) -> int:
        return len(self._letters)

    def __getitem__(self, key: tuple[int, int]) -> str:
        epoch, index = key
        return f"{epoch}{self._letters[index]}"


def test_sources_follow_one_another_in_every_epoch():
    samples = pickle.loads(pickle.dumps(Concatenation([Letters("abc"), Letters("d"), Letters("ef")])))
    assert [samples[4, index] for index in range(len(samples))] == ["4a", "4b", "4c", "4d", "4e", "4f"]
    assert [samples.place(index) for index in range(6)] == [(0, 0), (0, 1), (0, 2), (1, 0), (2, 0), (2, 1)]
    with pytest.raises(IndexError):
        samples[0, 6]


def read(number: int) -> int:
    if number in (2, 4):
        raise PictureError("cut short")
    if number == 3:
        raise UnusableSampleError("nothing is said")
    return number


def test_the_next_sample_stands_for_what_cannot_be_used_and_the_first_follows_the_last(caplog):
    with caplog.at_level(logging.WARNING):
        found = [first_usable(read, index, 5, name="sample {}".format, what="samples") for index in (1, 2, 7)]
    assert found == [1, 0, 0]
    assert caplog.messages[:3] == [
        "left out: sample 2: cut short", "left out: sample 3: nothing is said", "left out: sample 4: cut short"
    ]  # fmt: skip


def test_samples_of_which_none_can_be_used_are_an_error_and_other_errors_pass():
    with pytest.raises(ValueError, match=r"^none of 2 letters can be used; the last is x1: gone$"):
        first_usable(lambda _: read_error("gone"), 0, 2, name="x{}".format, what="letters")
    with pytest.raises(ZeroDivisionError):
        first_usable(lambda _: 1 // 0, 0, 2, name="x{}".format, what="letters")


def read_error(problem: str) -> None:
    raise PictureError(problem)


@pytest.mark.parametrize("error", [MemoryError(), *map(system_error, ("EMFILE", "EIO", "ENOMEM", "ESTALE"))])
def test_a_machine_that_fails_for_a_moment_does_not_change_a_sample(photos, tmp_path, monkeypatch, error):
    """A sample is a function of the seed, the epoch and the index: no other picture may take its place."""
    (photos / "broken.jpg").write_bytes((photos / "a.jpg").read_bytes()[:200])
    files = [photos / "a.jpg", photos / "b.png", photos / "broken.jpg"]
    assert first_usable(read_from(files), 2, 3, name=str, what="pictures") == "a.jpg"
    monkeypatch.setattr(sources, "_PAUSES", (0, 0))
    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", raising(error))
        with pytest.raises(type(error), match=r"sample 0: ") as raised:
            first_usable(read_from(files), 0, 3, name="sample {}".format, what="pictures")
        assert is_machine_error(raised.value)
        assert getattr(raised.value, "errno", None) == getattr(error, "errno", None)
    assert first_usable(read_from(files), 0, 3, name=str, what="pictures") == "a.jpg"


def test_a_sample_is_read_again_twice_while_the_machine_fails(monkeypatch):
    monkeypatch.setattr(sources, "_PAUSES", (0, 0))
    failures: list[int] = []

    def failing(number: int, times: int) -> int:
        if len(failures) < times:
            failures.append(number)
            raise system_error("EIO")
        return number

    assert first_usable(lambda number: failing(number, 2), 1, 3, name=str, what="samples") == 1
    assert failures == [1, 1]
    failures.clear()
    with pytest.raises(OSError, match=r"^\[Errno \d+\] x1: "):
        first_usable(lambda number: failing(number, 3), 1, 3, name="x{}".format, what="samples")
    assert failures == [1, 1, 1]


def read_from(files: list[Path]) -> Callable[[int], str]:
    def read_one(number: int) -> str:
        Entry(files[number].name, files[number]).image()
        return files[number].name

    return read_one
