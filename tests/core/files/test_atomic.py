"""Files are whole or missing, and the next write removes what a killed process left beside them."""

import fcntl
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image
from toklip_core.files import filling, folder_lock, replacing, write_text
from toklip_core.scenes import Scenes, write_scenes
from toklip_core.weights import files as checkpoint, read_model_folder, save_model_folder
from torch import nn


def killed(work: Callable[[], object]) -> None:
    """Do work in a process that kills itself in the middle of it."""
    child = multiprocessing.get_context("fork").Process(target=work)
    child.start()
    child.join()
    assert child.exitcode == -signal.SIGKILL


def kill_this_process(*_: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("name", ["page.html", "n" * 255, "\u00e9" * 127])
def test_a_file_is_replaced_whole_whatever_a_kill_left_and_however_long_its_name_is(tmp_path, name):
    def half() -> None:
        with replacing(tmp_path / name) as beside:
            beside.write_text("half")
            kill_this_process()

    write_text(tmp_path / name, "before")
    killed(half)
    assert (tmp_path / name).read_text() == "before" and len(names(tmp_path)) == 2
    write_text(tmp_path / name, "after")
    assert (tmp_path / name).read_text() == "after" and names(tmp_path) == [name]


def test_a_write_that_fails_leaves_what_was_there(tmp_path):
    write_text(tmp_path / "page.html", "before")
    with pytest.raises(ZeroDivisionError), replacing(tmp_path / "page.html") as beside:
        beside.write_text(f"half {1 / 0}")
    assert (tmp_path / "page.html").read_text() == "before" and names(tmp_path) == ["page.html"]


def test_a_killed_save_of_a_model_leaves_the_earlier_one_and_nothing_after_the_next(tmp_path, monkeypatch):
    save_model_folder(tmp_path, {"width": 3}, nn.Linear(3, 3))
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save_file", lambda tensors, path: path.write_bytes(b"half") and kill_this_process())
        killed(lambda: save_model_folder(tmp_path, {"width": 4}, nn.Linear(4, 4)))
    assert read_model_folder(tmp_path)[0] == {"width": 3}
    save_model_folder(tmp_path, {"width": 5}, nn.Linear(5, 5))
    assert read_model_folder(tmp_path)[0] == {"width": 5}
    assert names(tmp_path) == ["config.json", "model.safetensors"]


def test_a_save_that_is_killed_between_two_moves_leaves_no_config_of_other_weights(tmp_path, monkeypatch):
    save_model_folder(tmp_path, {"width": 3}, nn.Linear(3, 3))
    move = Path.replace
    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", lambda path, to: kill_this_process() if to.suffix == ".json" else move(path, to))
        killed(lambda: save_model_folder(tmp_path, {"width": 4}, nn.Linear(4, 4)))
    with pytest.raises(FileNotFoundError, match=r"is not a model folder: it has no config\.json$"):
        read_model_folder(tmp_path)
    save_model_folder(tmp_path, {"width": 5}, nn.Linear(5, 5))
    assert read_model_folder(tmp_path)[0] == {"width": 5}


def test_saves_into_one_folder_wait_for_each_other(tmp_path):
    modules = {width: nn.Linear(width, 200) for width in range(1, 9)}
    saves = [
        threading.Thread(target=save_model_folder, args=(tmp_path, {"width": width}, module))
        for width, module in modules.items()
    ]
    for save in saves:
        save.start()
    for save in saves:
        save.join()
    config, tensors = read_model_folder(tmp_path)
    assert tensors["weight"].equal(modules[config["width"]].weight)
    assert names(tmp_path) == ["config.json", "model.safetensors"]


def test_a_lock_on_a_folder_ends_where_it_is_left_though_a_process_forked_inside_goes_on(tmp_path):
    context = multiprocessing.get_context("fork")
    done = context.Event()
    with folder_lock(tmp_path):
        child = context.Process(target=done.wait, args=(60,))
        child.start()
    descriptor = os.open(tmp_path, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    finally:
        os.close(descriptor)
        done.set()
        child.join()


def test_killed_scenes_are_whole_pictures_and_texts(tmp_path, monkeypatch):
    save, count = Image.Image.save, iter(range(9))

    def saved(picture: Image.Image, path: Path, *given: object, **named: object) -> None:
        if next(count) < 3:
            save(picture, path, *given, **named)
        else:
            Path(path).write_bytes(b"\x89PNG half of it")
            kill_this_process()

    monkeypatch.setattr(Image.Image, "save", saved)
    killed(lambda: write_scenes(Scenes(9, size=24), tmp_path))
    shown = [path for path in tmp_path.iterdir() if not path.name.startswith(".")]
    assert sorted(path.name for path in shown if path.suffix == ".png") == ["000000.png", "000001.png", "000002.png"]
    for path in shown:
        assert path.read_text() if path.suffix == ".txt" else Image.open(path).load()


def test_a_folder_is_filled_at_once_its_last_file_last_and_other_files_stay(tmp_path):
    folder, beside = tmp_path / "model", tmp_path / ".model.tmp"
    folder.mkdir()
    for name in ("config.json", "notes.txt"):
        (folder / name).write_text("before")
    with pytest.raises(ZeroDivisionError), filling(folder, beside=beside, last="config.json") as new:
        (new / "config.json").write_text(f"{1 / 0}")
    assert names(tmp_path) == ["model"] and (folder / "config.json").read_text() == "before"
    with filling(folder, beside=beside, last="config.json") as new:
        (new / "config.json").write_text("after")
        (new / "vq").mkdir()
        assert (folder / "config.json").read_text() == "before" and not (folder / "vq").exists()
    assert (folder / "config.json").read_text() == "after" and (folder / "notes.txt").read_text() == "before"
    assert names(folder) == ["config.json", "notes.txt", "vq"] and names(tmp_path) == ["model"]
