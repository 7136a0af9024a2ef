"""Contract: every benchmark runs, each of its rows has a peer or a floor, and one that fails stops no other."""

from __future__ import annotations

import importlib
import json
import os

import pytest
import torch

from benchmarks import __main__ as benchmarks
from benchmarks._race import HEADER, Options, Row, elsewhere, race

QUICK = Options(threads=1, repeats=1, quick=True)


@pytest.fixture
def here(monkeypatch):
    """Processes of their own are for figures: here all is one."""
    monkeypatch.setattr("benchmarks.loading.elsewhere", lambda function, *arguments: function(*arguments))
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
        assert row.ours > 0
        assert row.peer or row.floor, row.what
        assert bool(row.peer) <= bool(row.peer_name), row.what


def test_the_best_turn_of_each_counts():
    times = iter([0, 5, 0, 1, 0, 2, 0, 3])
    seconds, results = race({"a": lambda: "A", "b": lambda: "B"}, 2, clock=lambda: next(times))
    assert seconds == {"a": 2, "b": 1} and results == {"a": "A", "b": "B"}


def test_a_row_has_as_many_cells_as_the_header():
    for row in (Row("x", "s", 1.0, 2.0, "timm", 0.5), Row("x", "MiB", 4681.0)):
        assert row.line().count("|") == HEADER.splitlines()[0].count("|")


@pytest.mark.slow
def test_a_process_of_its_own_gives_what_it_yields_and_says_that_it_was_killed():
    assert list(elsewhere(iter, [1, 2])) == [1, 2]
    with pytest.raises(RuntimeError, match="_exit ended with 3"):
        list(elsewhere(os._exit, 3))


def test_one_that_fails_is_named_and_the_others_go_on(monkeypatch, tmp_path, capsys):
    def measured_here(function, name, options):
        if name == "vq":
            raise RuntimeError("ended with -9")
        yield Row(name, "s", 1.0, floor=0.5)

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
