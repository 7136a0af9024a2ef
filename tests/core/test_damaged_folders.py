"""Damaged model folders and run folders: one short line that names the file, whatever the damage."""

import json

import pytest
from accelerate import Accelerator
from toklip_core.model import TINY, TokLIP, load_clip, load_model
from toklip_core.store import TokenStore
from toklip_core.training import LastEvaluation, RunFolder, TrainState
from torch import nn

from tests.support.damaged_folders import NO_OBJECT, loaded_after_every_damage
from tests.support.refusals import refusing
from tests.support.small_models import small_clip


@pytest.mark.slow
def test_a_toklip(tmp_path):
    assert loaded_after_every_damage(TINY, tmp_path, load_model) == []


def test_a_teacher(tmp_path):
    small_clip().save_pretrained(tmp_path / "clip")
    assert loaded_after_every_damage(tmp_path / "clip", tmp_path, load_clip) == []


def test_a_name_that_climbs_is_no_name_of_the_hub(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with refusing("'../x'", kind=LookupError):
        TokLIP.from_pretrained("../x")


def run_folder(path):
    return RunFolder(path, Accelerator(cpu=True), keep=2)


@pytest.fixture
def run(tmp_path):
    """A run with a checkpoint of step 3, its folder and its state."""
    state = TrainState(nn.Linear(2, 2), (), {}, None)
    folder = run_folder(tmp_path / "run")
    with folder.open({"a": 1}, harmless=set()):
        folder.save(3, state, LastEvaluation(2, {"top1": 0.5}))
    return tmp_path / "run", state


@pytest.mark.parametrize("what", NO_OBJECT)
def test_settings_of_a_run_that_are_none(run, what):
    path, _ = run
    (path / "run.json").write_bytes(NO_OBJECT[what])
    if what == "nothing in it":
        with refusing("holds a run of another release (format none"), run_folder(path).open({"a": 1}, harmless=set()):
            pass
        return
    words = (str(path / "run.json"), "copy the run.json that the same command writes into another folder")
    with refusing(*words), run_folder(path).open({"a": 1}, harmless=set()):
        pass


@pytest.mark.parametrize(("found", "words"), [({}, "none"), ({"format": 0}, "0"), ({"format": "9" * 999}, "'9999")])
def test_a_run_of_another_format_is_refused_with_what_to_do(run, found, words):
    path, _ = run
    (path / "run.json").write_text(json.dumps({"a": 1} | found))
    message = (f"holds a run of another release (format {words}", "resumes 1); finish it with that release, or choose")
    with refusing(*message), run_folder(path).open({"a": 1}, harmless=set()):
        pass


def test_a_run_within_its_format_goes_on(run):
    path, state = run
    assert json.loads((path / "run.json").read_text()) == {"format": 1, "a": 1}
    with run_folder(path).open({"a": 1}, harmless=set()):
        assert run_folder(path).load(state, steps=9) == (3, LastEvaluation(2, {"top1": 0.5}))


_NO_PROGRESS = {
    "figures of no numbers": b'{"step": 3, "figures": [], "scaler": {}}',
    "figures of no step": b'{"step": 3, "figures": {}, "evaluated_at": "2", "scaler": {}}',
}


@pytest.mark.parametrize("what", [*NO_OBJECT, *_NO_PROGRESS])
def test_progress_of_a_save_that_is_none(run, what):
    path, state = run
    content = (NO_OBJECT | _NO_PROGRESS)[what]
    (path / "checkpoints" / "step-00000003" / "progress.json").write_bytes(content)
    with refusing("step-00000003 is damaged (", "delete it to go on from the one before it"):
        run_folder(path).load(state, steps=9)


@pytest.mark.parametrize("part", ["model", "optimizer", "average"])
def test_tensors_of_a_save_that_are_cut(run, part):
    path, state = run
    file = path / "checkpoints" / "step-00000003" / f"{part}.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    with refusing("step-00000003 is damaged ("):
        run_folder(path).load(state, steps=9)


@pytest.mark.parametrize(
    "line",
    [
        '{"key": 1}',
        "[]",
        '{"key": [], "source": "b", "reason": "c"}',
        '{"key": "a", "source": "b", "reason": "c", "more": 1}',
    ],
)
def test_reports_of_a_store_that_are_none(tmp_path, line):
    from toklip_core.store import UnreadableLog, read_report

    (tmp_path / ".unreadable").mkdir()
    (tmp_path / ".unreadable" / "rank-00000.jsonl").write_text(f"{line}\n")
    with refusing("rank-00000.jsonl, row 1 is "):
        read_report(tmp_path)
    UnreadableLog(tmp_path)  # an encode does not end by it


def test_an_empty_store_is_named(tmp_path):
    (tmp_path / "part-00000-000001.parquet").write_bytes(b"")
    with refusing("part-00000-000001.parquet is damaged"):
        TokenStore(tmp_path)


def test_the_other_processes_hear_of_an_error_that_nobody_expected(tmp_path, monkeypatch):
    told = []
    first = "toklip_core.training.run_folder.first_anywhere"
    monkeypatch.setattr(first, lambda problem: told.append(problem) or problem)

    def work():
        raise MemoryError("no memory is left")

    with pytest.raises(MemoryError):
        run_folder(tmp_path)._in_every_process(work, "cannot write")
    assert told == ["MemoryError('no memory is left')"]
