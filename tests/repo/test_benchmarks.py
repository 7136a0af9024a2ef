"""Contract: every benchmark runs, each of its rows has a peer or a floor, and one that fails stops no other."""

from __future__ import annotations

import importlib
import json
import os

import pytest
import torch
from toklip_core.drawing import Sampler

from benchmarks import __main__ as benchmarks
from benchmarks._race import HEADER, Figure, Options, Row, elsewhere, race

QUICK = Options(threads=1, repeats=1, quick=True)


@pytest.fixture
def here(monkeypatch):
    """Processes of their own are for figures: here all is one."""
    for name in ("loading", "vq"):
        monkeypatch.setattr(f"benchmarks.{name}.only_from", lambda function, *arguments: next(function(*arguments)))
    monkeypatch.setattr("benchmarks.encoder.elsewhere", lambda function, *arguments: function(*arguments))
    monkeypatch.setattr("benchmarks.scaling.together", lambda count, options: [1.0, 1.0])
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.mark.slow
@pytest.mark.parametrize("name", benchmarks.NAMES)
def test_every_row_has_a_peer_or_a_floor(name, here):
    rows = list(importlib.import_module(f"benchmarks.{name}").rows(QUICK))
    assert rows
    for row in rows:
        assert row.ours.median > 0
        assert row.peer or row.floor, row.what
        assert bool(row.peer) <= bool(row.peer_name), row.what


@pytest.mark.slow
@pytest.mark.parametrize("name", ["encoding", "encoder", "generation", "windows"])
def test_what_is_measured_on_a_gpu_alone_runs(name, here, monkeypatch):
    """The processor stands in for it, with steps that are not compiled: 16 pictures a step, batches up to 64."""
    monkeypatch.setattr(Options, "on_gpu", True)
    uncompiled = Sampler.__init__.__kwdefaults__ | {"compiler": lambda function, **options: function}
    monkeypatch.setattr(Sampler.__init__, "__kwdefaults__", uncompiled)
    rows = list(importlib.import_module(f"benchmarks.{name}").rows(QUICK))
    assert rows and all(row.ours.median > 0 and (row.peer or row.floor) for row in rows)


def test_a_gpu_has_all_benchmarks_that_compute_there(monkeypatch, capsys):
    asked = []
    monkeypatch.setattr("benchmarks.__main__.elsewhere", lambda function, name, options: asked.append(name) or [])
    monkeypatch.setattr("benchmarks.__main__.machine_name", lambda options: f"H100 as {options.device}")
    monkeypatch.setattr("sys.argv", ["benchmarks", "--device", "cuda"])
    assert benchmarks.main() == 0
    assert asked == [name for name in benchmarks.NAMES if name not in ("tokens", "loading", "starting")]
    assert capsys.readouterr().out.startswith("H100 as cuda\n\n| what | unit |")


def raced(turns, repeats):
    """Race a and b: each turn has the seconds of both."""
    clock = iter([time for seconds in turns for one in seconds for time in (0, one)])
    calls = []
    contestants = {name: lambda name=name: calls.append(name) or len(calls) for name in "ab"}
    seconds, results = race(contestants, repeats, clock=lambda: next(clock))
    return seconds, results, "".join(calls)


def test_sides_take_turns_and_all_but_the_first_count():
    seconds, results, calls = raced([(9, 9), (5, 1), (2, 3), (4, 8)], 3)
    assert seconds == {"a": Figure((5, 2, 4)), "b": Figure((1, 3, 8))}
    assert calls == "abababab" and results == {"a": 7, "b": 8}
    assert raced([(5, 1)], 1)[0] == {"a": Figure((5,)), "b": Figure((1,))}


def test_a_figure_is_a_median_and_a_spread_and_a_ratio_is_that_of_the_medians():
    ours, theirs = Figure((1.0, 2.0, 4.0, 2.0, 8.0)), Figure((2.0, 3.0, 4.0, 6.0, 16.0))
    assert (ours.median, ours.spread) == (2, (1, 8))
    assert theirs.ratio(ours) == 2 and theirs.ratio_spread(ours) == (1, 3)
    assert (ours + theirs).repeats == (3, 5, 8, 8, 24) and (ours * 10).repeats == (10, 20, 40, 20, 80)
    with pytest.raises(ValueError, match="shorter"):
        ours.ratio_spread(Figure((1.0,)))


def test_a_row_has_as_many_cells_as_the_header():
    rows = (Row("x", "s", Figure((1.0, 2.0)), Figure((3.0, 5.0)), "timm", 0.5), Row("x", "MiB", Figure((4681.0,))))
    for row in rows:
        assert row.line().count("|") == HEADER.splitlines()[0].count("|")
    assert rows[0].line() == "| x | s | 1.5 (1 to 2) | 4 (3 to 5) | timm | 2.67 (2.5 to 3) | 0.5 | 3.00 |  |  |"
    assert "| MiB | 4,681 |" in rows[1].line()


@pytest.mark.slow
def test_a_process_of_its_own_gives_what_it_yields_and_says_that_it_was_killed():
    assert list(elsewhere(iter, [1, 2])) == [1, 2]
    with pytest.raises(RuntimeError, match="_exit ended with 3"):
        list(elsewhere(os._exit, 3))


def test_one_that_fails_is_named_and_the_others_go_on(monkeypatch, tmp_path, capsys):
    def measured_here(function, name, options):
        if name == "vq":
            raise RuntimeError("ended with -9")
        yield Row(name, "s", Figure((1.0,)), floor=0.5)

    monkeypatch.setattr("benchmarks.__main__.elsewhere", measured_here)
    monkeypatch.setattr("sys.argv", ["benchmarks", "vq", "scaling", "--json", str(tmp_path / "bench.json")])
    assert benchmarks.main() == 1
    result = json.loads((tmp_path / "bench.json").read_text())
    assert result["failed"] == ["vq failed: ended with -9"]
    assert [row["what"] for row in result["rows"]] == ["scaling"]
    assert "| scaling | s | 1 |" in capsys.readouterr().out


def test_an_unknown_benchmark_is_refused(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["benchmarks", "speed"])
    with pytest.raises(SystemExit):
        benchmarks.main()
    assert "there is no benchmark speed; there are tokens, vq," in capsys.readouterr().err


def test_fewer_repeats_than_a_median_wants_are_refused(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["benchmarks", "vq", "--repeats", "2"])
    with pytest.raises(SystemExit):
        benchmarks.main()
    assert "got 2 repeats; a median wants at least 5" in capsys.readouterr().err


def test_what_runs_on_a_processor_alone_is_not_measured_under_the_name_of_a_gpu(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["benchmarks", "loading", "--device", "cuda"])
    with pytest.raises(SystemExit):
        benchmarks.main()
    assert "measured on a processor only: loading; leave out --device" in capsys.readouterr().err
