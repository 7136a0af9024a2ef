"""`toklip encode` and `toklip decode`: a round trip, and nothing lost or repeated however they end."""

import errno
import fcntl
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from toklip_core.cli import cli
from toklip_core.config import compute as devices
from toklip_core.model import CLIP, TokLIP, load_clip
from toklip_core.pictures import (
    PictureError,
    all_views,
    find_pictures,
    normalized,
    open_picture,
    resized,
    to_pixels,
    upright_crops,
)
from toklip_core.store import (
    EncodeReport,
    FeatureInfo,
    PartWriter,
    TokenStore,
    decode_store,
    reading,
    report_paths,
    writing,
)
from toklip_core.tokenizer import Tokenizer, load_tokenizer
from toklip_core.weights import weights_checksum

from tests.core.conftest import picture
from tests.support import kill_often
from tests.support.encoding import encode_with
from tests.support.refusals import refusing
from tests.support.small_models import small_clip, small_toklip
from tests.support.starved import system_error
from tests.support.warm import warm_python


def run(*arguments):
    result = CliRunner().invoke(cli, [*map(str, arguments)])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


def environment(toy):
    return os.environ | {"PYTHONPATH": str(toy), "OMP_NUM_THREADS": "1"}


def python(toy, *arguments, command=(sys.executable,), **options):
    command = [*command, *map(str, arguments)]
    return subprocess.Popen(
        command, env=environment(toy), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options
    )


def contents(store):
    return {row.key: (row.ids.tolist(), row.caption) for row in TokenStore(store)}


def test_photographs_become_ids_and_pictures_again(toy, photos, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (photos / "a.txt").write_text("soft colours")
    result = run("encode", "photos", "--out", "store", "--tokenizer", "mean-colour", "--json", "--workers", 0)
    report = json.loads(result.stdout)
    assert result.exit_code == 0 and (report["pictures"], report["skipped"], report["unreadable"]) == (5, 0, 0)
    assert report["store"] == "store" and report["pictures_per_second"] > 0

    tokenizer, store = load_tokenizer("mean-colour"), TokenStore("store")
    rows = {row.key: row for row in store}
    assert sorted(rows) == ["photos/a.jpg", "photos/b.png", "photos/c.webp", "photos/deep/d.jpg", "photos/deep/e.bmp"]
    for key, row in rows.items():
        assert torch.equal(row.ids, tokenizer.encode(to_pixels(open_picture(key), 32)[None])[0]), key
        assert row.caption == ("soft colours" if key == "photos/a.jpg" else None)

    assert json.loads(run("decode", "store", "--out", "again", "--json").stdout)["pictures"] == 5
    for key, row in rows.items():
        pixels = normalized(torch.from_numpy(np.array(Image.open(f"again/{key}.png"))).permute(2, 0, 1))
        assert (pixels - tokenizer.decode(row.ids[None])[0]).abs().max() <= 1 / 255 + 1e-6


def test_ids_do_not_depend_on_workers_batches_or_ranks(toy, photos, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ways = {
        "one": {"batch_size": 1},
        "workers": {"batch_size": 2, "workers": 2},
        "all": {"batch_size": 32, "workers": 1, "part_rows": 2},
    }
    stores = []
    for name, way in ways.items():
        encode_with(["photos"], tmp_path / name, tokenizer="mean-colour", **way)
        stores.append(contents(tmp_path / name))
    for rank in range(2):
        encode_with(["photos"], tmp_path / "ranks", tokenizer="mean-colour", rank=rank, world_size=2)
    assert {path.name[:10] for path in (tmp_path / "ranks").glob("part-*")} == {f"part-{rank:05d}" for rank in range(2)}
    assert all(store == stores[0] for store in [*stores[1:], contents(tmp_path / "ranks")])


def test_shuffled_every_part_has_pictures_of_all_folders_and_the_rows_are_the_same(toy, tmp_path, monkeypatch):
    """Also when it is stopped and goes on, and among ranks; a picture's place follows from its key."""
    monkeypatch.chdir(tmp_path)
    for number in range(48):
        path = Path(f"pictures/class-{number // 12}/{number:02}.png")
        path.parent.mkdir(parents=True, exist_ok=True)
        picture(number).save(path)
    settings = {"tokenizer": "mean-colour", "part_rows": 12, "batch_size": 4}
    encode_with(["pictures"], "sorted", **settings)
    encode_with(["pictures"], "shuffled", shuffle=True, **settings)
    folders = [[Path(key).parent.name for key in TokenStore(store).keys()] for store in ("sorted", "shuffled")]
    assert [len(set(found[:12])) for found in folders] == [1, 4]
    stopped = encode_with(["pictures"], "stopped", shuffle=True, stop=lambda: True, **settings)
    assert stopped.pictures == 4
    encode_with(["pictures"], "stopped", shuffle=True, workers=2, **settings)
    for rank in range(2):
        encode_with(["pictures"], "ranks", shuffle=True, rank=rank, world_size=2, **settings)
    assert contents("sorted") == contents("shuffled") == contents("stopped") == contents("ranks")
    again = run("encode", "pictures", "--out", "shuffled", "--tokenizer", "mean-colour", "--shuffle", "--workers", 0)
    assert again.exit_code == 0 and "48 were there before" in again.stderr


def test_the_launchers_variables_share_the_work(toy, photos, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # shares follow from keys, which follow from the path as typed
    shares = []
    for rank in range(2):
        result = CliRunner().invoke(
            cli,
            ["encode", "photos", "--out", "s", "--tokenizer", "mean-colour", "--json"],
            env={"RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": "2"},
        )
        shares.append(json.loads(result.stdout)["pictures"])
    assert sum(shares) == len(TokenStore("s")) == 5 and min(shares) > 0


@pytest.mark.slow
def test_the_default_device_is_this_process_s_accelerator_of_whatever_make(monkeypatch):
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("mps"))
    assert devices.default_device() == "mps:0"
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("xpu"))
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert devices.default_device() == "xpu:1"
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    assert devices.default_device() == "cpu"


@pytest.mark.slow
def test_torchrun_shares_the_work(toy, photos, tmp_path):
    arguments = ["encode", "photos", "--out", "s", "--tokenizer", "mean-colour", "--workers", 0]
    launcher = ["-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone", "-m", "toklip_core"]
    process = python(toy, *launcher, *arguments, cwd=tmp_path)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    assert len(list(TokenStore(tmp_path / "s").keys())) == 5 and len(list((tmp_path / "s").glob("part-*"))) == 2


def test_a_second_encode_adds_what_is_new_and_tries_again_what_was_broken(toy, photos, tmp_path):
    store = tmp_path / "store"
    good = (photos / "a.jpg").read_bytes()
    (photos / "a.jpg").write_bytes(good[: len(good) // 2])
    first = run("encode", photos, "--out", store, "--tokenizer", "mean-colour")
    assert first.exit_code == 0 and first.stdout == ""
    line = first.stderr.splitlines()[-1]
    assert (
        line.startswith(f"1 could not be read, see {tmp_path}/.store.unreadable; the first: ") and "runcated" in line
    )  # the decoder's words, which vary
    assert [(Path(row.key).name, row.source) for row in TokenStore(store).unreadable()] == [
        ("a.jpg", str(photos / "a.jpg"))
    ]

    (photos / "a.jpg").write_bytes(good)
    picture(9).save(photos / "z.png")
    report = json.loads(run("encode", photos, "--out", store, "--tokenizer", "mean-colour", "--json").stdout)
    assert (report["pictures"], report["skipped"], report["unreadable"]) == (2, 4, 0)
    keys = list(TokenStore(store).keys())
    assert len(keys) == len(set(keys)) == 6 and TokenStore(store).unreadable() == []


def test_an_encode_goes_on_with_inputs_from_a_generator(toy, photos, tmp_path):
    for skipped in (0, 5):
        inputs = (path for path in [photos])
        report = encode_with(inputs, tmp_path / "store", tokenizer="mean-colour")
        assert report.skipped == skipped


def test_another_number_of_ranks_goes_on_where_the_first_ended(toy, photos, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    first = encode_with(["photos"], tmp_path / "s", tokenizer="mean-colour", rank=1, world_size=2)
    second = encode_with(["photos"], tmp_path / "s", tokenizer="mean-colour")
    assert second.skipped == first.pictures > 0 and second.pictures == 5 - first.pictures > 0
    assert len(set(TokenStore(tmp_path / "s").keys())) == len(TokenStore(tmp_path / "s")) == 5


@pytest.mark.slow
def test_every_one_of_many_keys_is_known_again(toy, tmp_path):
    """Enough of them to meet every last byte of a digest."""
    line = picture(0, (4, 4))
    (tmp_path / "many").mkdir()
    for number in range(1500):
        line.save(tmp_path / f"many/{number}.bmp")
    encode_with([tmp_path / "many"], tmp_path / "s", tokenizer="mean-colour", image_size=4)
    again = encode_with([tmp_path / "many"], tmp_path / "s", tokenizer="mean-colour", image_size=4)
    assert (again.pictures, again.skipped) == (0, 1500)


@pytest.mark.slow
def test_ten_kills_lose_and_repeat_nothing(toy, tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    data = {}
    for number in range(2000):
        path = folder / f"{number:04d}.jpg"
        picture(number, (40, 32)).save(path)
        if number % 100 == 7:
            data[path.name] = path.read_bytes()
            path.write_bytes(data[path.name][: len(data[path.name]) * 2 // 3])
    process = python(toy, Path(kill_often.__file__), folder, tmp_path / "store", 10)
    output, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    outcome = json.loads(output)
    assert sorted(outcome["parts"]) == outcome["parts"] and outcome["parts"][-1] > 3  # the kills met it at work
    store = TokenStore(tmp_path / "store")
    keys = list(store.keys())
    assert len(keys) == len(set(keys)) == 1980
    assert {Path(row.key).name for row in store.unreadable()} == set(data) and len(store.unreadable()) == 20
    assert outcome["report"]["unreadable"] == 20 and outcome["report"]["skipped"] > 3 * 16
    assert not [path for path in tmp_path.rglob("*") if "tmp" in path.name]


@pytest.mark.slow
@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_signal_ends_an_encode_with_everything_written(toy, tmp_path, number, status):
    folder, store = tmp_path / "pictures", tmp_path / "store"
    folder.mkdir()
    for seed in range(600):
        picture(seed, (32, 32)).save(folder / f"{seed}.png")
    arguments = ["encode", folder, "--out", store, "--tokenizer", "mean-colour-slow", "--batch-size", 4, "--json"]
    process = python(toy, "-m", "toklip_core", *arguments, "--workers", 1, start_new_session=True)
    while not (store / ".rank-00000.lock").exists():
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.02)
    time.sleep(0.5)
    os.killpg(process.pid, number)  # as a terminal and a scheduler do
    output, errors = process.communicate(timeout=60)
    assert process.returncode == status and errors == ""
    report = json.loads(output)
    assert report["stopped"] and 0 < report["pictures"] < 600
    assert len(TokenStore(store)) == report["pictures"]


def workers_of(process):
    """The processes that read pictures, once there are any."""
    while True:
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        lines = {child: Path(f"/proc/{child}/cmdline") for child in children}
        names = {child: line.read_bytes() for child, line in lines.items() if line.exists()}
        if found := [int(child) for child, name in names.items() if b"resource_tracker" not in name]:
            return found
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.02)


def slow_encode(toy, tmp_path):
    """An encode by two workers that takes a while and writes often, and its store of 400 pictures."""
    folder, store = tmp_path / "pictures", tmp_path / "store"
    folder.mkdir()
    for seed in range(400):
        picture(seed, (32, 32)).save(folder / f"{seed}.bmp")
    encode = (
        "import sys, toklip_core.store.encode as e; from dataclasses import replace; from toklip_core.cli import cli\n"
        "encode = e.encode_pictures\n"
        "def often(i, s, settings, **more): return encode(i, s, replace(settings, part_seconds=0), **more)\n"
        "e.encode_pictures = often; cli(sys.argv[1:])"
    )
    arguments = ["encode", folder, "--out", store, "--tokenizer", "mean-colour-slow", "--batch-size", 4]
    return python(toy, "-c", encode, *arguments, "--workers", 2, start_new_session=True), store


@pytest.mark.slow
def test_a_signal_to_the_workers_ends_none_of_them(toy, tmp_path):
    process, store = slow_encode(toy, tmp_path)
    for number in 2 * [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]:
        for worker in workers_of(process):
            os.kill(worker, number)
        time.sleep(0.05)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    assert len(TokenStore(store)) == 400


@pytest.mark.slow
def test_a_killed_worker_ends_an_encode_in_one_line_with_everything_written(toy, tmp_path):
    process, store = slow_encode(toy, tmp_path)
    while not list(store.glob("part-*")):
        time.sleep(0.01)
    (worker, *_) = workers_of(process)  # by now: a child that lives for a moment at the start is not a worker
    os.kill(worker, signal.SIGKILL)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1 and errors.count("\n") == 1, errors
    assert errors.startswith("Error: a process that reads pictures was killed")
    assert "--max-pixels" in errors and "--workers" in errors
    assert 0 < len(set(TokenStore(store).keys())) == len(TokenStore(store)) < 400
    arguments = ["encode", tmp_path / "pictures", "--out", store, "--tokenizer", "mean-colour-slow"]
    assert run(*arguments, "--workers", 1).exit_code == 0 and len(TokenStore(store)) == 400


@pytest.mark.slow
def test_a_worker_that_dies_of_a_picture_names_it_and_keeps_what_is_encoded(toy, photos, tmp_path):
    """As where the system ends it for want of memory: at that picture, whichever worker it is."""
    dies = (
        "import os, sys; from toklip_core.pictures import find; from toklip_core.cli import cli\n"
        "read = find.open_picture\n"
        "def opened(path, **more): return os.kill(os.getpid(), 9) if 'huge' in str(path) else read(path, **more)\n"
        "find.open_picture = opened; cli(sys.argv[1:])"
    )
    picture(9).save(photos / "deep/huge.png")
    arguments = ["encode", photos, "--out", tmp_path / "s", "--tokenizer", "mean-colour", "--batch-size", 1]
    process = python(toy, "-c", dies, *arguments, "--workers", 1, command=warm_python())
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1 and errors.count("\n") == 1, errors
    assert "while it read " in errors and "photos/deep/huge.png, mostly for want" in errors
    assert len(TokenStore(tmp_path / "s")) > 0


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_an_error_in_a_worker_ends_an_encode_with_everything_written(toy, photos, tmp_path, workers):
    """Whichever error, and though the workers leave signals to this process: none of them may be waited for."""
    fails = (
        "import sys, time; from toklip_core.store import reading as encode; from toklip_core.cli import cli\n"
        "read = encode.entries\n"
        "def failing(sources):\n"
        "    yield from read(sources)\n"
        "    time.sleep(2)\n"
        "    raise KeyError('unforeseen')\n"
        "encode.entries = failing; cli(sys.argv[1:])"
    )
    arguments = ["encode", photos, "--out", tmp_path / "s", "--tokenizer", "mean-colour", "--batch-size", 1]
    process = python(toy, "-c", fails, *arguments, "--workers", workers, command=warm_python(), start_new_session=True)
    try:
        _, errors = process.communicate(timeout=60)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 1 and "unforeseen" in errors
    assert len(TokenStore(tmp_path / "s")) == 5


def test_an_encode_ends_no_process_that_it_did_not_start(photos):
    reader = reading.SquareReader((8,), cropped=False, resize="crop", batch_size=1)
    work = reading.PictureWork(find_pictures([photos]), (), reader, 2**20)
    batches = reading.batches_of_workers(work, 1)
    next(batches)
    (worker,) = multiprocessing.active_children()
    other = multiprocessing.Process(target=time.sleep, args=(60,))
    other.start()
    try:
        batches.close()
        worker.join(5)
        assert other.is_alive() and not worker.is_alive()
    finally:
        other.kill()
        other.join()


def test_what_waits_is_written_where_a_batch_fails(toy, photos, tmp_path, monkeypatch):
    add = PartWriter.add_table

    def failing(writer, *arguments):
        if len(writer) == 3:
            raise ValueError("the fourth")
        add(writer, *arguments)

    monkeypatch.setattr(PartWriter, "add_table", failing)
    with pytest.raises(ValueError, match="the fourth"):
        encode_with([photos], tmp_path / "s", tokenizer="mean-colour", batch_size=1)
    assert len(TokenStore(tmp_path / "s")) == 3


def test_a_store_that_no_file_can_be_renamed_into_has_its_unfinished_parts_inside(toy, photos, tmp_path, monkeypatch):
    """As a folder that is mounted there, from the same disk too, which no question about mounts tells."""
    replace, store = Path.replace, tmp_path / "store"

    def within(path, target):
        if path.parent != Path(target).parent:
            raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))
        return replace(path, target)

    monkeypatch.setattr(Path, "replace", within)
    (photos / "broken.png").write_bytes(b"broken")
    report = encode_with([photos], store, tokenizer="mean-colour")
    assert report.pictures == 5 and f"see {store / '.unreadable'}" in report.as_text()
    assert len(TokenStore(store)) == 5 and len(TokenStore(store).unreadable()) == 1
    assert sorted(path.name for path in tmp_path.iterdir() if path.name.startswith((".", "store"))) == ["store"]
    assert not list(store.glob("*.tmp"))


@pytest.mark.parametrize("at", [".store.", "store.", "store/."])
def test_what_is_named_like_something_of_a_store_and_is_not_is_left_alone(toy, photos, tmp_path, at):
    (photos / "broken.png").write_bytes(b"broken")
    (tmp_path / "store").mkdir()
    (tmp_path / f"{at}unreadable").mkdir()
    names = ["part-notes.tmp", "part-1.tmp", "part-00000-000001.parquet.tmp.tmp", "unreadable/rank-abc.jsonl"]
    mine = [tmp_path / f"{at}{name}" for name in names]
    for path in mine:
        path.write_text("mine")
    for seen in (0, 5):
        report = encode_with([photos], tmp_path / "store", tokenizer="mean-colour")
        assert (report.pictures, report.skipped, report.unreadable) == (5 - seen, seen, 1)
    assert [path.read_text() for path in mine] == ["mine"] * len(mine)
    assert len(TokenStore(tmp_path / "store").unreadable()) == 1


@pytest.mark.parametrize("at", ["store.unreadable", ".store.unreadable"])
def test_a_report_that_cannot_be_written_costs_no_encode(toy, photos, tmp_path, at, caplog):
    for name in ("a", "b"):
        (photos / f"broken-{name}.png").write_bytes(b"broken")
    (tmp_path / at).write_text("mine")
    report = encode_with([photos], tmp_path / "store", tokenizer="mean-colour")
    assert (report.pictures, report.unreadable) == (5, 2) and (tmp_path / at).read_text() == "mine"
    written = at == "store.unreadable"
    assert len(TokenStore(tmp_path / "store").unreadable()) == 2 * written
    assert ("see " in report.as_text()) == written and "broken-a.png: no picture" in report.as_text()
    assert caplog.text.count("the list of unreadable pictures cannot be written: ") == (not written)


def test_another_encode_keeps_what_was_reported(toy, photos, tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / f"broken-{name}.png").write_bytes(b"broken")
        picture(0).save(tmp_path / name / f"{name}.png")
        for _ in range(2):
            report = encode_with([tmp_path / name], tmp_path / "store", tokenizer="mean-colour")
            assert report.unreadable == 1
    store = TokenStore(tmp_path / "store")
    assert [Path(row.key).name for row in store.unreadable()] == ["broken-a.png", "broken-b.png"]
    (lines,) = (path.read_text().splitlines() for path in report_paths(store.path))
    assert len(lines) == 2
    picture(1).save(tmp_path / "a/broken-a.png")
    encode_with([tmp_path / "a"], tmp_path / "store", tokenizer="mean-colour")
    assert [Path(row.key).name for row in TokenStore(store.path).unreadable()] == ["broken-b.png"]


def test_a_long_picture_that_pillow_would_not_crop_is_encoded(toy, tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 2000)
    picture(0, (900, 90)).save(tmp_path / "long.png")
    picture(0, (700, 90)).save(tmp_path / "shorter.png")
    with pytest.raises(Image.DecompressionBombError):
        picture(0, (900, 90)).crop((90, 0, 810, 90))
    report = encode_with([tmp_path], tmp_path / "store", tokenizer="mean-colour")
    assert (report.pictures, report.unreadable) == (2, 0)
    assert Image.MAX_IMAGE_PIXELS == 2000
    with pytest.raises(PictureError, match=r"^its pixels are more than the limit of 3000; raise max_pixels"):
        open_picture(tmp_path / "long.png", max_pixels=3000)


def test_ids_that_a_tokenizer_should_not_make_are_refused(toy, photos, tmp_path, monkeypatch):
    right = Tokenizer.encode
    for ids, says in {
        (lambda ids: ids - 1000): r"got ids from -\d+ to -\d+, but the codebook has",
        (lambda ids: ids[:, 1:]): r"made ids of the grid \(\d+, \d+\), but its grid\(\) says \(",
    }.items():
        monkeypatch.setattr(Tokenizer, "encode", lambda self, pixels, ids=ids: ids(right(self, pixels)))
        with pytest.raises(ValueError, match=says):
            encode_with([photos], tmp_path / "store", tokenizer="mean-colour")
        assert not [*(tmp_path / "store").glob("part-*")]


def test_batches_have_the_same_pictures_whichever_of_them_can_be_read():
    """A repeated share of Ray relies on it."""

    def unopened(number, *, readable):
        def image():
            if not readable:
                raise OSError("the server does not answer")
            return picture(number)

        return SimpleNamespace(key=str(number), path="there", image=image, caption=lambda: None)

    def batches(broken):
        pictures = [unopened(number, readable=number not in broken) for number in range(11)]
        reader = reading.SquareReader((8,), cropped=False, resize="crop", batch_size=4)
        return [{*batch.keys, *(row.key for row in batch.unreadable)} for batch in reader.batches(pictures, {"2"})]

    assert batches({}) == batches({3}) == batches({4, 5, 6, 7, 8}) == batches(range(11))
    assert [len(batch) for batch in batches({})] == [4, 4, 2]


def test_a_picture_that_there_is_no_memory_for_is_reported_alone(toy, photos, tmp_path, monkeypatch):
    def starved(image, size, resize="crop"):
        if image.size == (9, 9):
            raise MemoryError
        return resized(image, size, resize)

    monkeypatch.setattr(reading, "resized", starved)
    picture(9, (9, 9)).save(photos / "huge.png")
    report = encode_with([photos], tmp_path / "s", tokenizer="mean-colour")
    assert (report.pictures, report.unreadable) == (5, 1)
    assert report.first_unreadable.endswith("huge.png: there was not enough memory to read it")


def test_a_log_gets_a_line_now_and_then_and_a_short_run_none(toy, photos, tmp_path, monkeypatch):
    arguments = ["encode", photos, "--tokenizer", "mean-colour", "--batch-size", 1, "--workers", 0, "--json"]
    assert run(*arguments, "--out", tmp_path / "short").stderr == ""
    monkeypatch.setattr(devices, "_LINE_SECONDS", 1e-6)
    lines = run(*arguments, "--out", tmp_path / "long").stderr.split("\n")
    assert lines[-3].strip().startswith("5 of 5 pictures, ") and "1 of 5 pictures, " in lines[0]


def test_pictures_that_were_there_before_do_not_count_in_the_speed(toy, tmp_path, monkeypatch):
    kept = []

    def bar(*arguments, **options):
        kept.append(devices.progress_bar(*arguments, **options))
        return kept[-1]

    monkeypatch.setattr("toklip_core.store.encode.progress_bar", bar)
    for count in (6, 8):
        words = ["encode", f"scenes:train?count={count}", "--tokenizer", "mean-colour", "--size", 32, "--workers", 0]
        run(*words, "--out", tmp_path / "store")
    first, second = kept
    assert (first.initial, first.n) == (0, 6) and (second.initial, second.n) == (6, 8)


@pytest.mark.slow
def test_more_workers_than_cores_are_no_matter_for_a_warning(toy, photos, tmp_path):
    many = (os.cpu_count() or 1) + 3
    for number in range(many):
        picture(number).save(photos / f"{number}.png")
    report = encode_with([photos], tmp_path / "s", tokenizer="mean-colour", batch_size=1, workers=many)
    assert report.pictures == 5 + many


def test_two_encodes_at_once_into_one_store_are_refused(toy, photos, tmp_path):
    held = tmp_path / "store/.rank-00000.lock"
    held.parent.mkdir()
    code = f"import fcntl, sys; f = open({str(held)!r}, 'w'); fcntl.lockf(f, fcntl.LOCK_EX); print(flush=True); input()"
    other = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    other.stdout.readline()
    with pytest.raises(OSError, match=r"another encode is at work in .* as rank 0"):
        encode_with([photos], held.parent, tokenizer="mean-colour")
    other.communicate(b"\n")
    assert encode_with([photos], held.parent, tokenizer="mean-colour").pictures == 5


WRITER = """
import sys
from pathlib import Path
from toklip_core.store import writing
store, rank, world_size = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
try:
    with writing(store, rank, world_size):
        print(world_size, flush=True)
        input()
except OSError as error:
    print("refused:", error, flush=True)
"""


def writer(store, rank, world_size):
    """Another process that is at work in a store until it gets a line; its first line says how many ranks it is of."""
    command = [sys.executable, "-c", WRITER, str(store), str(rank), str(world_size)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def test_an_encode_by_another_number_of_ranks_waits_for_the_end_of_the_first(toy, photos, tmp_path):
    store = tmp_path / "store"
    other = writer(store, 1, 2)
    assert other.stdout.readline() == "2\n"
    half_written = tmp_path / ".store.part-00001-000001.parquet.tmp"
    half_written.touch()
    with pytest.raises(OSError, match=r"an encode by 2 processes is at work in .*, and this is one of 1, which would"):
        encode_with([photos], store, tokenizer="mean-colour")
    assert half_written.exists() and not list(store.glob("part-*"))
    first = encode_with([photos], store, tokenizer="mean-colour", rank=0, world_size=2)
    assert half_written.exists()
    other.communicate("\n")
    assert encode_with([photos], store, tokenizer="mean-colour").pictures == 5 - first.pictures
    assert not half_written.exists() and len(set(TokenStore(store).keys())) == len(TokenStore(store)) == 5


def test_a_killed_encode_leaves_no_lock(toy, photos, tmp_path):
    """Whatever number of ranks it was of, and whatever files of locks there are."""
    for world_size in (2, 3):
        other = writer(tmp_path / "store", 0, world_size)
        assert other.stdout.readline() == f"{world_size}\n"
        with pytest.raises(OSError, match=f"an encode by {world_size} processes is at work in"):
            encode_with([photos], tmp_path / "store", tokenizer="mean-colour")
        other.kill()
        other.communicate()
    assert len(list((tmp_path / "store").glob(".*.lock"))) >= 3
    assert encode_with([photos], tmp_path / "store", tokenizer="mean-colour").pictures == 5


def test_writers_that_start_at_one_moment_are_the_ranks_of_one_encode(tmp_path):
    others = [writer(tmp_path / "store", rank, world_size) for rank in range(3) for world_size in (3, 4)]
    said = [other.stdout.readline() for other in others]
    for other in others:
        other.communicate("\n")
    assert {line for line in said if "refused" not in line} in ({"3\n"}, {"4\n"})
    assert sum("refused" in line for line in said) == 3


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP])
def test_a_file_system_without_locks_is_written_without_them(toy, photos, tmp_path, monkeypatch, number):
    def no_locks(*arguments):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "lockf", no_locks)
    assert encode_with([photos], tmp_path / "store", tokenizer="mean-colour").pictures == 5


@pytest.mark.slow
def test_a_full_disk_is_one_line_and_keeps_what_is_complete(toy, tmp_path):
    """The limit of a file's size stands for the disk: it ends a write in the middle, as a full disk does."""
    folder, store = tmp_path / "pictures", tmp_path / "store"
    folder.mkdir()
    for seed in range(8):
        picture(seed, (32, 32)).save(folder / f"{seed}.png")
    encode_with([folder], store, tokenizer="mean-colour", image_size=512)
    before = {path.name: path.read_bytes() for path in store.glob("part-*")}
    for seed in range(8, 40):
        picture(seed, (32, 32)).save(folder / f"{seed}.png")
    limited = (
        "import resource, sys; from toklip_core.cli import cli; "
        "resource.setrlimit(resource.RLIMIT_FSIZE, (8192, 8192)); cli(sys.argv[1:])"
    )
    arguments = ["encode", folder, "--out", store, "--tokenizer", "mean-colour", "--size", 512, "--workers", 0]
    process = python(toy, "-c", limited, *arguments, command=warm_python())
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1 and errors.count("\n") == 1
    assert f"no room to write in {store}" in errors and "make room, run it again" in errors
    assert {path.name: path.read_bytes() for path in store.glob("part-*")} == before
    assert not list(store.glob(".part-*"))
    assert encode_with([folder], store, tokenizer="mean-colour", image_size=512).pictures == 32


def test_decode_completes_what_is_there_and_leaves_no_half_picture(toy, photos, tmp_path):
    encode_with([photos], tmp_path / "s", tokenizer="mean-colour")
    assert decode_store(tmp_path / "s", tmp_path / "out").pictures == 5
    written = sorted((tmp_path / "out").rglob("*.png"))
    written[0].unlink()
    written[1].write_bytes(b"mine")
    report = decode_store(tmp_path / "s", tmp_path / "out")
    assert (report.pictures, report.skipped) == (1, 4)
    assert written[0].exists() and written[1].read_bytes() == b"mine"
    assert not list((tmp_path / "out").rglob("*.tmp"))


@pytest.mark.parametrize("key", ["../out.jpg", "/../out.jpg", "a/../../out.jpg", "link/out.jpg"])
def test_a_store_cannot_make_decode_write_elsewhere(toy, tmp_path, key):
    encode_with([save(tmp_path / "a.jpg")], tmp_path / "good", tokenizer="mean-colour")
    good = TokenStore(tmp_path / "good")
    writer = PartWriter(tmp_path / "evil", good.info)
    writer.add([key], good[0].ids[None], [None])
    writer.flush()
    out, outside = tmp_path / "deep/out", tmp_path / "outside"
    out.mkdir(parents=True)
    outside.mkdir()
    (out / "link").symlink_to(outside)
    before = sorted(tmp_path.rglob("*"))
    result = run("decode", tmp_path / "evil", "--out", out)
    assert result.exit_code == 1 and f"the first is {key!r}: the key leads out of the folder" in result.stderr
    assert sorted(path for path in tmp_path.rglob("*") if path.name != ".decode.lock") == before


def save(path):
    picture(0).save(path)
    return path


def test_decode_refuses_other_weights_than_the_stores(toy, photos, tmp_path):
    for name, number in (("one", "0.5"), ("other", "0.7")):
        (tmp_path / name).write_text(number)
    encode_with([photos], tmp_path / "s", tokenizer="mean-colour", weights=tmp_path / "one")
    assert decode_store(tmp_path / "s", tmp_path / "out", weights=tmp_path / "one").pictures == 5
    with pytest.raises(ValueError, match=r"s was made with the tokenizer 'mean-colour' \(sha256 [0-9a-f]{16}\), and"):
        decode_store(tmp_path / "s", tmp_path / "out", weights=tmp_path / "other")


def test_bfloat16_and_squash_are_kept_in_the_store(toy, photos, tmp_path):
    run(
        "encode",
        photos,
        "--out",
        tmp_path / "s",
        "--tokenizer",
        "mean-colour",
        "--dtype",
        "bfloat16",
        "--resize",
        "squash",
    )
    info = TokenStore(tmp_path / "s").info
    assert (info.dtype, info.resize, info.image_size) == ("bfloat16", "squash", 32)
    assert (
        info.tokenizer
        == TokenStore(encode_with([photos], tmp_path / "t", tokenizer="mean-colour").store).info.tokenizer
    )  # of the weights, whatever they are computed in


def test_a_squashed_picture_has_the_ids_of_the_whole_of_it_and_so_have_its_crops(toy, tmp_path):
    wide = picture(0, (96, 32))
    wide.save(tmp_path / "wide.png")
    given = {"tokenizer": "mean-colour", "resize": "squash", "augment": "ten-crop"}
    [row] = TokenStore(encode_with([tmp_path / "wide.png"], tmp_path / "s", **given).store)
    tokenizer = load_tokenizer("mean-colour")
    ids = {way: tokenizer.encode(to_pixels(wide, 32, way)[None])[0] for way in ("squash", "crop")}
    assert torch.equal(row.ids, ids["squash"]) and not torch.equal(row.ids, ids["crop"])
    upright = {way: torch.from_numpy(upright_crops(wide, 32, way)).movedim(-1, 1)[None] for way in ("squash", "crop")}
    crops = {way: tokenizer.encode(normalized(all_views(levels)[0])) for way, levels in upright.items()}
    assert torch.equal(row.crops, crops["squash"]) and not torch.equal(row.crops, crops["crop"])


@pytest.fixture
def models(toy, tmp_path):
    """Folders of a TokLIP and of a teacher whose pictures are of another size."""
    small_toklip().save_pretrained(tmp_path / "toklip")
    teacher = small_clip()
    config = teacher.config.model_copy(update={"image_size": 16})
    smaller = CLIP(config, teacher.text.tokenizer)
    smaller.save_pretrained(tmp_path / "teacher")
    return {"model": tmp_path / "toklip", "teacher": tmp_path / "teacher"}


def pixels_of(photos, key, size):
    return to_pixels(open_picture(photos.parent / key), size)[None]


def halves(feature):
    return feature.detach().half().float()


def close(first, second):
    """But for the last bit of float16: the models see other batches."""
    return torch.allclose(first, second, rtol=2**-9, atol=2**-11)


def test_features_of_models_are_stored_beside_the_ids(models, photos, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    arguments = ["--workers", 1, "--model", "toklip", "--tokens", "--teacher", "teacher"]
    assert run("encode", "photos", "--out", "s", *arguments).exit_code == 0
    store, model, teacher = TokenStore("s"), TokLIP.from_pretrained("toklip"), load_clip(tmp_path / "teacher")
    plain = encode_with(["photos"], "ids", tokenizer="mean-colour")
    assert contents("s") == contents(plain.store)
    assert (store.info.image_size, store.info.resize, store.info.tokenizer.name) == (32, "crop", "mean-colour")
    with torch.no_grad():
        for row in store:
            pixels = pixels_of(photos, row.key, 32)
            assert close(row.pooled, halves(model.image_features(pixels)[0])) and abs(row.pooled.norm() - 1) < 1e-3
            assert close(row.tokens, halves(model(pixels).tokens[0])) and row.tokens.shape == (64, 32)
            assert close(row.teacher, halves(teacher.image_features(pixels_of(photos, row.key, 16))[0]))


def test_a_store_says_whose_features_it_has(models, photos, tmp_path):
    encode_with([photos], tmp_path / "s", **models, tokens=True)
    info = TokenStore(tmp_path / "s").info
    model, teacher = TokLIP.from_pretrained(models["model"]), load_clip(models["teacher"])
    assert info.pooled == FeatureInfo(model="toklip", weights_checksum=weights_checksum(model.encoder), width=32)
    assert info.tokens == info.pooled.model_copy(update={"count": 64})
    assert info.teacher == FeatureInfo(model="teacher", weights_checksum=weights_checksum(teacher), width=32)
    assert info.tokenizer.checksum == weights_checksum(model.tokenizer.module)


def test_an_encode_with_features_goes_on_where_it_ended(models, photos, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    whole = encode_with(["photos"], tmp_path / "whole", **models)
    first = encode_with(["photos"], tmp_path / "s", **models, batch_size=2, stop=lambda: True)
    shares = [encode_with(["photos"], tmp_path / "s", **models, rank=rank, world_size=2) for rank in range(2)]
    assert first.pictures == 2 and sum(share.pictures for share in shares) == 3
    expected = {row.key: row for row in TokenStore(whole.store)}
    rows = list(TokenStore(tmp_path / "s"))
    assert len(rows) == 5 and all(
        close(row.pooled, expected[row.key].pooled) and close(row.teacher, expected[row.key].teacher) for row in rows
    )


def test_loaded_models_serve_as_well_as_their_folders(models, photos, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    encode_with(["photos"], "folders", **models)
    loaded = {"model": TokLIP.from_pretrained(models["model"]), "teacher": load_clip(models["teacher"])}
    encode_with(["photos"], "objects", **loaded)
    for mine, theirs in zip(TokenStore("objects"), TokenStore("folders"), strict=True):
        assert mine.key == theirs.key and torch.equal(mine.pooled, theirs.pooled)
        assert torch.equal(mine.teacher, theirs.teacher)
    assert TokenStore("objects").info.pooled.weights_checksum == TokenStore("folders").info.pooled.weights_checksum


def test_features_in_bfloat16_point_where_those_in_float32_do(models, photos, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = TokLIP.from_pretrained(models["model"])
    for dtype in ("float32", "bfloat16"):
        encode_with(["photos"], dtype, model=model, teacher=models["teacher"], dtype=dtype)
    half, full = (list(TokenStore(dtype)) for dtype in ("bfloat16", "float32"))
    for name in ("pooled", "teacher"):
        cosines = [getattr(a, name) @ getattr(b, name) for a, b in zip(half, full, strict=True)]
        assert min(cosines) > 0.999 and not all(
            torch.equal(getattr(a, name), getattr(b, name)) for a, b in zip(half, full, strict=True)
        )
    assert {weight.dtype for weight in model.parameters()} == {torch.float32}


def test_an_encode_in_bfloat16_leaves_a_loaded_models_tokenizer_as_it_was(models, photos, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = TokLIP.from_pretrained(models["model"])
    before = {name: tensor.clone() for name, tensor in model.tokenizer.module.state_dict().items()}
    encode_with(["photos"], "half", model=model, dtype="bfloat16")
    encode_with(["photos"], "half by name", model=models["model"], dtype="bfloat16")
    after = model.tokenizer.module.state_dict()
    assert {name: tensor.dtype for name, tensor in after.items()} == {name: before[name].dtype for name in before}
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    for mine, theirs in zip(TokenStore("half"), TokenStore("half by name"), strict=True):
        assert torch.equal(mine.ids, theirs.ids) and torch.equal(mine.pooled, theirs.pooled)
    assert TokenStore("half").info.tokenizer == TokenStore("half by name").info.tokenizer


def test_the_teacher_says_how_pictures_become_squares_unless_somebody_else_does(models, photos, tmp_path):
    def resize(**arguments):
        path = tmp_path / f"s{len(list(tmp_path.iterdir()))}"
        return TokenStore(encode_with([photos], path, **arguments).store).info.resize

    assert load_clip(models["teacher"]).config.resize == "squash"
    assert resize(tokenizer="mean-colour", teacher=models["teacher"]) == "squash"
    assert resize(tokenizer="mean-colour", teacher=models["teacher"], resize="crop") == "crop"
    assert resize(**models) == "crop"
    assert resize(tokenizer="mean-colour") == "crop"


def test_a_store_takes_no_other_features(models, photos, tmp_path):
    store = tmp_path / "s"
    encode_with([photos], store, tokenizer="mean-colour", teacher=models["teacher"], resize="crop")
    with pytest.raises(ValueError, match=r"it has teacher.model None \(the store: 'teacher'\)"):
        encode_with([photos], store, tokenizer="mean-colour")
    with pytest.raises(ValueError, match=r"it has pooled.model 'toklip' \(the store: None\)"):
        encode_with([photos], store, **models)
    small_clip(seed=1).save_pretrained(tmp_path / "other/teacher")
    other = {"tokenizer": "mean-colour", "teacher": tmp_path / "other/teacher", "resize": "crop"}
    with pytest.raises(ValueError, match=r"it has teacher.weights_checksum '[0-9a-f]+' \(the store: '[0-9a-f]+'\); t"):
        encode_with([photos], store, **other)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--tokens"], "tokens are those of a model; name one"),
        (["--model", "MODEL", "--tokenizer", "other"], "got the tokenizer 'other', but the model has 'mean-colour'"),
        (["--model", "MODEL", "--size", "64"], "got the size '64', but the model has 32; leave out --size"),
        (["--model", "MODEL", "--resize", "squash"], "got the resize 'squash', but the model has 'crop'; leave out"),
        (["--model", "MODEL", "--weights", "w"], "got the weights 'w', but the model has those of its tok"),
        (["--model", "TEACHER"], "holds two towers on pixels, no TokLIP"),
        (["--model", "nowhere"], "nowhere"),
        (["--teacher", "MODEL"], "holds a TokLIP, no teacher"),
        (["--teacher", "nowhere"], "'nowhere' is not a model folder"),
    ],
)
def test_models_that_do_not_fit_are_one_line(models, photos, tmp_path, arguments, message):
    places = {"MODEL": models["model"], "TEACHER": models["teacher"]}
    tokenizer = [] if "--model" in arguments else ["--tokenizer", "mean-colour"]
    words = [places.get(word, word) for word in arguments]
    result = run("encode", photos, "--out", tmp_path / "s", "--workers", 0, *tokenizer, *words)
    assert result.exit_code == 1 and message in result.stderr and result.stderr.count("\n") == 1
    assert not list(tmp_path.glob("s/part-*"))


def test_the_folder_of_the_pictures_is_no_place_for_the_store(photos, tmp_path):
    before = sorted(photos.rglob("*"))
    with refusing("as the store and as a folder of pictures", "photos"):
        encode_with([photos], photos / "../photos", tokenizer="mean-colour")
    assert sorted(photos.rglob("*")) == before


def test_a_folder_of_other_files_is_no_place_for_the_store(toy, photos, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/notes.txt").write_text("mine")
    with refusing("is no token store: it holds 'notes.txt' and no part; name an empty or a new folder"):
        encode_with([photos], tmp_path / "mine", tokenizer="mean-colour")
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["notes.txt"]


def test_a_tokenizer_or_a_model_is_needed(photos, tmp_path):
    with pytest.raises(ValueError, match="got neither a tokenizer nor a model"):
        encode_with([photos], tmp_path / "s")


def test_large_rows_are_written_in_more_parts(models, photos, tmp_path):
    more = {"batch_size": 1, "part_bytes": 5000}  # a picture takes 4.3 kB
    encode_with([photos], tmp_path / "s", model=models["model"], tokens=True, **more)
    assert [path.name for path in sorted((tmp_path / "s").glob("part-*"))] == [
        f"part-00000-00000{n}.parquet" for n in (1, 2, 3)
    ]


@pytest.mark.parametrize(("pictures", "said"), [(1, "1 picture encoded into s"), (2, "2 pictures encoded into s")])
def test_one_picture_is_not_said_in_the_plural(pictures, said):
    report = EncodeReport(
        store="s",
        pictures=pictures,
        skipped=0,
        unreadable=0,
        first_unreadable="",
        seconds=1.0,
        stopped=False,
        rank=0,
    )
    assert report.as_text().startswith(said)


def test_an_encode_inside_another_into_one_store_is_refused(toy, photos, tmp_path):
    """The locks of the system do not keep one process from itself."""
    refused = []

    def stop():
        with pytest.raises(OSError, match=r"another encode is at work in .* as rank 0; wait for its end") as raised:
            encode_with([photos], tmp_path / "store", tokenizer="mean-colour")
        refused.append(str(raised.value))
        return False

    report = encode_with([photos], tmp_path / "store", tokenizer="mean-colour", batch_size=2, part_rows=2, stop=stop)
    store = TokenStore(tmp_path / "store")
    assert report.pictures == len(set(store.keys())) == len(store) == 5
    assert len(refused) == 3


def test_encodes_in_two_threads_lose_no_picture(toy, photos, tmp_path):
    store, start, outcomes = tmp_path / "store", threading.Barrier(2), []

    def work():
        start.wait()
        try:
            outcomes.append(encode_with([photos], store, tokenizer="mean-colour", batch_size=1).pictures)
        except OSError:
            outcomes.append(0)

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(outcomes) == len(set(TokenStore(store).keys())) == len(TokenStore(store)) == 5


def test_ranks_of_one_encode_work_side_by_side_in_one_process(toy, photos, tmp_path):
    store = tmp_path / "store"
    with writing(store, 0, 2):
        with writing(store, 1, 2), pytest.raises(OSError, match="as rank 1"), writing(store, 1, 2):
            pass
        refused = pytest.raises(OSError, match=r"an encode by 2 processes is at work in .*, and this is one of 1")
        with refused, writing(store, 0, 1):
            pass
        other = writer(store, 0, 1)
        assert other.communicate()[0].startswith("refused: an encode by 2 processes"), "the end of rank 1 freed nothing"
    with writing(store, 0, 1):
        pass


def test_a_part_that_has_appeared_meanwhile_is_not_replaced(toy, photos, tmp_path):
    """As on a file system without locks."""
    encode_with([photos], tmp_path / "other", tokenizer="mean-colour")
    theirs = next((tmp_path / "other").glob("part-*"))
    store = tmp_path / "store"

    def stop():
        (store / theirs.name).write_bytes(theirs.read_bytes())
        return False

    with refusing(theirs.name, "was written meanwhile", kind=OSError):
        encode_with([photos], store, tokenizer="mean-colour", stop=stop)
    assert (store / theirs.name).read_bytes() == theirs.read_bytes()
    assert not list(tmp_path.glob(".store.part-*"))


@pytest.mark.parametrize("name", ["EMFILE", "EIO", "ESTALE"])
def test_a_picture_that_the_machine_cannot_read_now_is_read_by_the_next_encode(
    toy, photos, tmp_path, monkeypatch, name
):
    opened = Path.open

    def failing(path, *arguments, **options):
        if path.name == "c.webp":
            raise system_error(name)
        return opened(path, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", failing)
        report = encode_with([photos], tmp_path / "s", tokenizer="mean-colour")
    assert (report.pictures, report.unreadable) == (4, 1)
    assert os.strerror(getattr(errno, name)) in report.first_unreadable
    report = encode_with([photos], tmp_path / "s", tokenizer="mean-colour")
    assert (report.pictures, report.skipped, report.unreadable) == (1, 4, 0)
