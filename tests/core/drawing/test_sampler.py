"""Laws of drawing with any model that can prefill and step, here one without weights, for every kind of levels."""

from functools import partial

import pytest
import torch
from toklip_core.drawing import CompilableModel, Drawing, Guidance, NextIdModel, Sampler, choose_ids

from tests.support.sums import LEVELS, Sums, SumsThatCompile

GREEDY = Drawing(temperature=0)
every_kind = pytest.mark.parametrize("levels", LEVELS.values(), ids=LEVELS)


def drawn(model=None, conditions=(1, 2, 3), seeds=(7, 8, 9), **options):
    sampler = Sampler(model or Sums())
    return sampler.draw(torch.tensor(conditions), seeds=seeds[: len(conditions)], **options).ids


def test_the_models_of_these_tests_are_what_the_protocols_say():
    assert isinstance(Sums(), NextIdModel) and not isinstance(Sums(), CompilableModel)
    assert isinstance(SumsThatCompile(), CompilableModel)


def test_the_likeliest_id_follows_from_all_ids_before():
    """The likeliest next id of Sums is the condition and all ids so far, modulo K."""
    assert drawn(drawing=GREEDY).flatten(1).tolist() == [[c * 2**i % 11 for i in range(6)] for c in (1, 2, 3)]


@every_kind
def test_the_likeliest_level_follows_from_the_levels_before(levels):
    ids = drawn(Sums(levels), drawing=GREEDY).flatten(1, 2)
    for condition, of_picture in zip((1, 2, 3), ids, strict=True):
        for position, chosen in enumerate(levels.split(of_picture)):
            total = condition + int(of_picture[:position].sum())
            for level, size in enumerate(levels.sizes):
                assert chosen[level] == (total + int(chosen[:level].sum())) % size


def test_with_one_level_the_random_numbers_are_one_for_each_id_as_they_come():
    """The ids of seeds on record: what was drawn before there were levels is drawn still."""
    noise = torch.rand(6, generator=torch.Generator().manual_seed(7))
    total, expected = 1, []
    for number in noise:
        logits = -((torch.arange(11) - total) % 11).float()
        expected.append(int(choose_ids(logits[None], number[None], Drawing())))
        total += expected[-1]
    assert drawn(conditions=(1,), seeds=(7,)).flatten().tolist() == expected


@every_kind
def test_a_picture_is_the_same_alone_and_in_a_batch(levels):
    together = drawn(Sums(levels))
    for row, (condition, seed) in enumerate(zip((1, 2, 3), (7, 8, 9), strict=True)):
        assert torch.equal(drawn(Sums(levels), conditions=(condition,), seeds=(seed,))[0], together[row])


@every_kind
def test_a_prefix_is_kept_and_a_picture_goes_on_from_its_own_beginning(levels):
    whole = drawn(Sums(levels))
    for known in (0, 1, 4, 6):
        assert torch.equal(drawn(Sums(levels), prefix=whole.flatten(1, 2)[:, :known]), whole)


@every_kind
def test_every_id_is_one_of_its_codebook(levels):
    ids = drawn(Sums(levels), conditions=(1,) * 40, seeds=range(40), drawing=Drawing(temperature=30.0)).flatten(0, 2)
    assert ids.amin(0).tolist() == [0] * len(levels.codebook_sizes)
    assert all(size // 2 < most < size for most, size in zip(ids.amax(0), levels.codebook_sizes, strict=True))


def test_the_likeliest_ids_to_choose_from_are_counted_in_each_level():
    """With top-k = 2, every level is its sum or the number after it."""
    levels = LEVELS["several"]
    ids = drawn(Sums(levels), drawing=Drawing(top_k=2, temperature=30.0)).flatten(1, 2)
    for condition, of_picture in zip((1, 2, 3), ids, strict=True):
        sums = condition + of_picture.sum(1).cumsum(0) - of_picture.sum(1)
        before = of_picture.cumsum(1) - of_picture
        away = (of_picture - sums[:, None] - before) % torch.tensor(levels.sizes)
        assert set(away.flatten().tolist()) == {0, 1}


def test_no_conditions_give_no_pictures():
    assert drawn(conditions=(), seeds=()).shape == (0, *Sums().grid, 1)


def test_a_prefix_that_is_no_ids_is_refused():
    with pytest.raises(ValueError, match=r"^got a prefix of torch\.float32; wanted ids"):
        drawn(prefix=torch.zeros(3, 2, 1))
    with pytest.raises(ValueError, match=r"^the prefix has ids from 0 to 11; wanted 0 to 10"):
        drawn(prefix=torch.tensor([[[0], [11]]] * 3))


@pytest.mark.parametrize(
    ("prefix", "message"),
    [
        (torch.zeros(3, 2, dtype=torch.int64), r"got the prefix \(3, 2\); wanted \(3, n, 3\), n from 0 to 6"),
        (torch.zeros(3, 2, 1, dtype=torch.int64), r"got the prefix \(3, 2, 1\); wanted \(3, n, 3\), n from 0 to 6"),
        (torch.full((3, 2, 3), 5), "^the prefix has ids of level 1 from 5 to 5; wanted 0 to 4"),
        (torch.full((3, 2, 3), -1), "^the prefix has ids of level 0 from -1 to -1; wanted 0 to 10"),
    ],
)
def test_a_prefix_of_other_levels_is_refused(prefix, message):
    with pytest.raises(ValueError, match=message):
        drawn(Sums(LEVELS["several"]), prefix=prefix)


def test_a_model_is_told_how_many_steps_follow_and_whether_it_is_guided():
    model = Sums()
    drawn(model, prefix=torch.zeros(3, 2, 1, dtype=torch.int64), drawing=Drawing(guidance=Guidance(2.0, last=3)))
    assert model.calls == [("prefill", True, 3), ("step", 6), ("step", 3), ("step", 3)]
    assert model.kept == [3, 3]


def test_guidance_that_has_ended_within_the_prefix_asks_for_no_second_rows():
    model = Sums()
    drawn(model, prefix=torch.zeros(3, 4, 1, dtype=torch.int64), drawing=Drawing(guidance=Guidance(2.0, last=3)))
    assert model.calls == [("prefill", False, 1), ("step", 3)]


def test_guidance_0_draws_without_the_condition():
    without = drawn(conditions=(1,), drawing=Drawing(Guidance(0.0), temperature=0))
    assert torch.equal(without, drawn(conditions=(0,), drawing=GREEDY))


def test_a_scale_may_be_a_whole_number():
    assert torch.equal(drawn(drawing=Drawing(Guidance(3))), drawn(drawing=Drawing(Guidance(3.0))))


def test_what_a_caller_leaves_open_is_the_models_own():
    own = Sums(drawing=Drawing(top_k=1))
    assert torch.equal(drawn(own), drawn(drawing=GREEDY))
    assert torch.equal(drawn(own, drawing=Drawing(top_k=0)), drawn())


@every_kind
def test_a_compiled_sampler_draws_the_same_and_finds_its_graph_again(levels):
    graphs = []

    def counting(graph, inputs):
        graphs.append(graph)
        return graph.forward

    sampler = Sampler(SumsThatCompile(levels), compiler=partial(torch.compile, backend=counting))
    for seeds in ((7, 8, 9), (1, 2, 3)):
        options = {"seeds": seeds, "drawing": Drawing(guidance=Guidance(2.0), top_k=5)}
        ids = sampler.draw(torch.tensor([1, 2, 3]), compiled=True, **options).ids
        assert torch.equal(ids, drawn(Sums(levels), **options))
    assert len(graphs) == 1
    torch.compiler.reset()


def test_every_width_of_a_window_is_compiled_with_constant_shapes():
    shapes = []

    def collecting(graph, inputs):
        shapes.append([size for x in inputs for size in getattr(x, "shape", [x])])
        return graph.forward

    sampler = Sampler(SumsThatCompile(), compiler=partial(torch.compile, backend=collecting))
    for window in (1, 2, 3, 4):
        sampler.draw(torch.tensor([1, 2, 3]), seeds=(7, 8, 9), window=window, compiled=True)
    assert len(shapes) == 4 and all(isinstance(size, int) for sizes in shapes for size in sizes)
    torch.compiler.reset()


def test_two_samplers_do_not_share_their_caches():
    plain = partial(Sampler, SumsThatCompile(), compiler=lambda step, **how: step)
    one, other = plain(), plain()
    first = one.draw(torch.tensor([1]), seeds=[0], drawing=GREEDY, compiled=True).ids
    other.draw(torch.tensor([2]), seeds=[0], drawing=GREEDY, compiled=True)
    assert torch.equal(one.draw(torch.tensor([1]), seeds=[0], drawing=GREEDY, compiled=True).ids, first)


GUIDED = {
    "no guidance": Drawing(),
    "guidance": Drawing(Guidance(2.0), top_k=5),
    "a schedule": Drawing(Guidance(3.0, first=1, last=3, power=2.0), temperature=2.0, top_p=0.9),
    "Gumbel noise": Drawing(Guidance(2.0), temperature=2.0, noise="gumbel"),
}


@every_kind
@pytest.mark.parametrize("drawing", GUIDED.values(), ids=GUIDED)
@pytest.mark.parametrize("window", [2, 4, 6, 64, "auto"])
def test_a_window_changes_no_picture_and_needs_no_more_calls(levels, drawing, window):
    for known in (0, 1, 4, 5, 6):
        prefix = torch.ones(3, known, len(levels.codebook_sizes), dtype=torch.int64)
        sampler = Sampler(Sums(levels), window=window)
        ids, calls, _ = sampler.draw(torch.tensor([1, 2, 3]), seeds=(7, 8, 9), drawing=drawing, prefix=prefix)
        assert torch.equal(ids, drawn(Sums(levels), drawing=drawing, prefix=prefix))
        assert calls <= 6 - known


@every_kind
@pytest.mark.parametrize("drawing", GUIDED.values(), ids=GUIDED)
def test_a_compiled_window_changes_no_picture(levels, drawing):
    sampler = Sampler(SumsThatCompile(levels), window=3, compiler=lambda step, **how: step)
    options = {"seeds": (7, 8, 9), "drawing": drawing}
    for known in (0, 2, 5):
        prefix = torch.ones(3, known, len(levels.codebook_sizes), dtype=torch.int64)
        ids = sampler.draw(torch.tensor([1, 2, 3]), compiled=True, prefix=prefix, **options).ids
        assert torch.equal(ids, drawn(Sums(levels), prefix=prefix, **options))


def test_drafts_that_fit_are_read_once_and_others_again():
    """With the condition 0 the likeliest ids are all 0, as the drafts; with 1 every draft is another id."""
    fits, fails = Sums(), Sums()
    drawn = Sampler(fits, window=3).draw(torch.tensor([0]), seeds=[0], drawing=GREEDY)
    Sampler(fails, window=3).draw(torch.tensor([1]), seeds=[0], drawing=GREEDY)
    assert fits.read == [(0, 3), (3, 2)] and drawn.calls == 3
    assert fails.read[:2] == [(0, 3), (1, 3)]


class Recorder:
    """A chooser that tries 4 positions and has chosen 3, which records what it is told."""

    width, chosen = 4, 3

    def __init__(self, most):
        self.noted = []

    def note(self, width, *, positions, seconds):
        self.noted.append(positions)


@pytest.fixture
def recorders(monkeypatch):
    made = []

    def recorder(most):
        made.append(Recorder(most))
        return made[-1]

    monkeypatch.setattr("toklip_core.drawing.sampler.WidthChooser", recorder)
    return made


@pytest.mark.parametrize("compiled", [False, True])
def test_calls_that_have_fewer_positions_left_than_the_window_are_not_timed(recorders, compiled):
    """All drafts fit: after the first position a call draws four, and the last call the one that is left."""
    sampler = Sampler(SumsThatCompile(), window="auto", compiler=lambda step, **how: step)
    assert sampler.draw(torch.tensor([0]), seeds=[0], drawing=GREEDY, compiled=compiled).calls == 3
    assert recorders[0].noted == [4]


def test_calls_are_timed_anew_for_other_settings_and_no_more_for_the_same(recorders):
    sampler = Sampler(Sums(), window="auto")
    for drawing in (GREEDY, GREEDY, Drawing(noise="gumbel"), Drawing(top_k=3)):
        assert sampler.draw(torch.tensor([0]), seeds=[0], drawing=drawing).window == recorders[-1].chosen
    noted = [recorder.noted for recorder in recorders if recorder.noted]
    assert len(noted) == 3 and noted[0] == [4, 4]


def test_a_window_of_1_never_cuts_a_cache(monkeypatch):
    monkeypatch.delattr("tests.support.sums.Totals.cut")
    drawn()


@pytest.mark.parametrize(
    ("window", "message"),
    [
        (0, "got window = 0; wanted 1 to 2147483647, or 'auto'"),
        ("wide", "got window = 'wide'; wanted a number of positions, or 'auto'"),
        (2.5, "got window = 2.5; wanted a number of positions, or 'auto'"),
        ([4], r"got window = \[4\]; wanted a number of positions, or 'auto'"),
    ],
)
def test_a_window_that_is_no_number_of_positions_is_refused(window, message):
    with pytest.raises(ValueError, match=message):
        drawn(window=window)
    with pytest.raises(ValueError, match=message):
        Sampler(Sums(), window=window)


def test_a_sampler_has_a_window():
    with pytest.raises(ValueError, match="got window = None; wanted a number of positions, or 'auto'"):
        Sampler(Sums(), window=None)


def test_what_cannot_be_compiled_is_said():
    with pytest.raises(ValueError, match="Sums has no step that can be compiled; draw without compiled"):
        drawn(compiled=True)
