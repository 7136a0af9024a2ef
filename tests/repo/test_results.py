"""Laws and contracts of the scripts in results/: the packages accept their calls, and the pages have their tables."""

import importlib
import json
import re
import sys
from argparse import Namespace
from functools import partial
from pathlib import Path

import pytest
import torch
from toklip_core.config import load_config
from toklip_core.evaluation import evaluate_retrieval, evaluate_zero_shot
from toklip_core.model import load_model
from toklip_core.pictures import normalized
from toklip_core.scenes import parse_caption, parse_scenes
from toklip_core.tasks import ENCODER_RECIPES, TEACHER_RECIPES, EncoderTrainConfig, TeacherTrainConfig
from toklip_core.tokenizer import load_tokenizer
from toklip_gen.evaluation import measure_match, scene_prompts
from toklip_gen.training import RECIPES as GENERATOR_RECIPES, GeneratorTrainConfig
from toklip_mllm.training import RECIPES as MLLM_RECIPES, MLLMTrainConfig
from toklip_vq.training import RECIPES as VQ_RECIPES, VQTrainConfig

from tests.support.pages import ROOT

sys.path.insert(0, str(ROOT / "results"))
import _runs
import comprehension
import generation
import semantics
import small_family
import swapped_words
import unified

PAGES = sorted((ROOT / "docs/results").glob("*.md"))
SCRIPTS = {path.stem for path in (ROOT / "results").glob("[!_]*.py")}
CONFIGS = {
    "vq": (VQTrainConfig, VQ_RECIPES),
    "teacher": (TeacherTrainConfig, TEACHER_RECIPES),
    "encoder": (EncoderTrainConfig, ENCODER_RECIPES),
    "generator": (GeneratorTrainConfig, GENERATOR_RECIPES),
    "mllm": (MLLMTrainConfig, MLLM_RECIPES),
}


@pytest.fixture
def asked(monkeypatch):
    """The commands that scripts would run: trainings as their settings, by the name of their folders."""
    found = {}

    def note(*words, log):
        if words[0] == "train":
            config, recipes = CONFIGS[words[1]]
            changes = [str(word) for word, before in zip(words[1:], words, strict=False) if before == "--set"]
            found[log.name] = load_config(words[2], config, changes, recipes)
        else:
            Path(words[words.index("--out") + 1]).mkdir(parents=True)

    monkeypatch.setattr(_runs, "_toklip", note)
    return found


@pytest.fixture
def digits():
    """The script, where scikit-learn is installed."""
    pytest.importorskip("sklearn")
    return importlib.import_module("digits")


def test_every_script_has_its_place_on_the_page_of_its_name_and_every_place_its_script():
    marker = re.compile(r"^<!-- results: (.+) -->$", re.MULTILINE)
    places = {page.stem: marker.findall(page.read_text("utf-8")) for page in PAGES}
    assert {page: names for page, names in places.items() if names} == {name: [name] for name in SCRIPTS}


def test_tables_replace_what_is_between_their_markers_alone(tmp_path, capsys):
    page = tmp_path / "page.md"
    whole = "a\n\n<!-- results: one -->\n\n{}\n\n<!-- end -->\n\nb\n\n<!-- results: two -->\n\nkept\n\n<!-- end -->\n"
    page.write_text(whole.format("old"))
    for _ in range(2):
        _runs.put(["new", "more"], page, "one")
    assert page.read_text() == whole.format("new\n\nmore")
    assert capsys.readouterr().out == "new\n\nmore\n" * 2


def test_a_page_without_the_markers_is_refused_and_stays(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("nothing\n")
    with pytest.raises(ValueError, match=r"has 0 times '<!-- results: one -->'"):
        _runs.put(["new"], page, "one")
    assert page.read_text() == "nothing\n"


def test_spread_has_the_mean_and_the_ends():
    assert _runs.spread([0.1, 0.2, 0.6], _runs.percent) == "30.0 % (10.0 to 60.0)"


def test_each_variant_changes_one_thing_of_the_recipe(tmp_path, asked):
    variants = list(semantics.VARIANTS)
    semantics.trained(Namespace(out=tmp_path, jobs=1, steps=40, seeds=[3], scenes=20, variants=variants))
    base = asked["encoder-full-20-40-steps-3"].model_dump()
    changed = {
        name: {key for key, value in asked[f"encoder-{name}-20-40-steps-3"].model_dump().items() if value != base[key]}
        for name in variants
    }
    assert changed == {
        "full": set(),
        "fifth": {"data"},
        "twentieth": {"data"},
        "undistilled": {"losses"},
        "unfitted": {"projector_pictures"},
        "random": {"initial_values", "projector_pictures"},
        "bidirectional": {"causal"},
    }
    assert base["run"]["seed"] == 3 and (base["tokenizer"], base["teacher"]) == (semantics.TOKENIZER, semantics.TEACHER)


@pytest.mark.parametrize("script", [comprehension, generation])
def test_features_are_compared_at_two_budgets_with_one_size(tmp_path, asked, script):
    options = Namespace(out=tmp_path, jobs=1, steps=[40, 80], seeds=[3])
    runs = script.trainings(options, tmp_path / "store")
    _runs.train_all(runs.values(), 1)
    assert len(runs) == 2 * 3
    for (steps, features, seed), run in runs.items():
        config = asked[run.out.name]
        assert [source.store for source in config.data] == [tmp_path / "store"]
        sizes = config.generator if script is generation else config.small
        assert (config.run.steps, config.run.seed, sizes.width, sizes.heads) == (steps, seed, _runs.WIDTH, _runs.HEADS)
        assert (sizes.features if script is generation else config.features) == features


def test_the_networks_that_read_and_draw_have_one_size_and_see_as_many_pictures_of_a_kind(tmp_path, asked):
    options = Namespace(out=tmp_path, jobs=1, steps=40, seeds=[3], features=unified.FEATURES)
    runs = unified.trainings(options, tmp_path / "store", tmp_path / "plain-store")
    _runs.train_all(runs.values(), 1)
    configs = {key: asked[run.out.name] for key, run in runs.items()}
    assert len(configs) == 4 * 3 - 1  # a generator has no features "tokens"
    for (name, features, seed), config in configs.items():
        reads, draws = unified.KINDS[name].reads, unified.KINDS[name].draws
        steps = 40 if reads and draws else 20
        assert (config.run.seed, config.run.steps, config.run.batch_size) == (seed, steps, 32)
        if name == "generator":
            size, found = config.generator, config.generator.features
            assert (size.width, size.hidden_width, size.depth) == (_runs.WIDTH, _runs.HIDDEN, _runs.LAYERS)
        else:
            size, found = config.small, config.features
            assert (size.width, size.hidden, size.layers) == (_runs.WIDTH, _runs.HIDDEN, _runs.LAYERS)
            assert (config.image_head is not None) == draws
            kinds = {source.kind for source in config.data}
            assert kinds == {kind for kind, does in (("scenes", reads), ("drawings", draws)) if does}
        assert found == features


def test_swapped_words_make_another_true_or_false_caption_of_the_same_words():
    text = "a large red circle above a blue square"
    claims = parse_caption(text)
    assert claims is not None
    assert swapped_words.swap_colours(text, claims) == "a large blue circle above a red square"
    assert swapped_words.swap_shapes(text, claims) == "a large red square above a blue circle"
    orange = "an orange circle above a blue square"
    swapped = swapped_words.swap_colours(orange, parse_caption(orange))
    assert swapped == "a blue circle above an orange square"
    assert swapped_words.reverse_relation(text) == "a large red circle below a blue square"
    assert swapped_words.reverse_relation("a star left of a heart") == "a star right of a heart"


def test_a_picture_is_as_likely_as_all_its_levels_together():
    logits = [torch.randn(2, 3, size, dtype=torch.float64) for size in (5, 7)]
    levels = torch.tensor([[[0, 6], [1, 2], [4, 3]], [[2, 2], [3, 0], [0, 1]]])
    chances = [
        [one[b, n].softmax(-1)[levels[b, n, q]] for q, one in enumerate(logits) for n in range(3)] for b in range(2)
    ]
    wanted = torch.stack([torch.stack(own).prod().log() for own in chances]).float()
    torch.testing.assert_close(swapped_words.sum_of_levels(logits, levels), wanted)


@pytest.mark.parametrize("codebook_sizes", [(), (16, 16)])
def test_the_network_that_reads_a_grid_sees_the_whole_of_it_and_names_colour_and_shape(codebook_sizes):
    torch.manual_seed(0)
    net = small_family.network(codebook_sizes, 3).eval()
    grid = torch.randint(16, (2, 8, 8, 2)) if codebook_sizes else torch.randn(2, 8, 8, 3)
    colour, shape = small_family.heads(net(grid))
    assert (colour.shape, shape.shape) == ((2, 8), (2, 8))
    pixels = torch.randn(1, 3, 64, 64)
    cells = small_family.patches(pixels)
    assert cells.shape == (1, 8, 8, 192)
    assert torch.equal(cells[0, 2, 5].sort().values, pixels[0, :, 16:24, 40:48].flatten().sort().values)


def test_fewer_scenes_are_the_first_of_the_same():
    for few, many in zip(semantics.scenes_of(4), semantics.scenes_of(20), strict=True):
        few, many = parse_scenes(few), parse_scenes(many)
        assert len(few) == 4 and [s.objects for s in few] == [s.objects for s in list(many)[:4]]


@pytest.mark.slow
def test_figures_are_those_of_the_packages():
    model, count = load_model("toklip-tiny").eval(), 24
    found = semantics.figures(model, count)
    zero_shot = evaluate_zero_shot("toklip-tiny", f"scenes:held-out?count={count}&objects=1")
    retrieval = evaluate_retrieval("toklip-tiny", f"scenes:held-out?count={count}")
    assert found["top-1"] == pytest.approx(zero_shot.top1)
    assert found["image to text R@1"] == pytest.approx(retrieval.image_to_text["R@1"])
    assert found["text to image R@1"] == pytest.approx(retrieval.text_to_image["R@1"])
    assert found["top-1"] <= min(found["colour of it"], found["shape of it"])


def test_least_squares_find_a_linear_map_and_its_intercept():
    codes, weights = torch.randn(50, 3), torch.randn(4, 5)
    found = semantics.least_squares(codes, semantics.with_one(codes) @ weights)
    torch.testing.assert_close(found, weights, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_what_is_measured_already_is_taken_and_the_rest_measured_by_one_thread_each(tmp_path):
    old, new = tmp_path / "old.json", tmp_path / "a folder/new.json"
    old.write_text('{"of": 2}')
    assert _runs.measured({old: partial(dict, of=3), new: partial(dict, of=4)}, jobs=2) == [{"of": 2}, {"of": 4}]
    assert _runs.measured({tmp_path / "threads.json": torch.get_num_threads}, jobs=1) == [1]
    assert not list(tmp_path.glob(".*"))


def test_the_table_of_generation_has_the_scenes_and_random_ids_below_the_generators(tmp_path):
    options = Namespace(out=tmp_path, jobs=1, steps=[40, 80], seeds=[3], captions=2)
    runs = generation.trainings(options, tmp_path / "store")
    shown = dict.fromkeys([*generation.CLAIMS, generation.DISTANCE], 0.5) | {"reconstructed colour": 0.75}
    del shown["relation"]  # no caption has one
    for split in generation.SPLITS:
        (tmp_path / f"random-ids-{split}-2-captions-3.json").write_text(json.dumps(shown | {"colour": 0.25}))
        for run in runs.values():
            run.out.mkdir(exist_ok=True)
            (run.out / f"{split}-2-captions.json").write_text(json.dumps(shown))
            (run.out / "metrics.jsonl").write_text('{"step": 40, "loss/next_id": 3.0}\n')
    rows = [line.split(" | ") for line in generation.table(runs, options).splitlines()[2:]]
    last = ["the scenes, reconstructed", "ids drawn at random"]
    assert [row[2] for row in rows[:8]] == [*generation.FEATURES * 2, *last]
    assert [row[4] for row in rows[5:8]] == ["50.0 %", "75.0 %", "25.0 %"] and rows[5][8] == ""
    assert len(rows) == 2 * 8


@pytest.mark.slow
def test_figures_of_a_scenes_own_ids_are_those_of_its_reconstruction():
    prompts = scene_prompts(4, split="validation")
    tokenizer = load_tokenizer(generation.TOKENIZER)
    scenes = normalized(torch.stack([torch.from_numpy(prompt.scene.rgb) for prompt in prompts]).movedim(-1, 1))
    found = generation.figures_of_ids(tokenizer, tokenizer.encode(scenes), prompts)
    wanted = measure_match(lambda texts: scenes, prompts, tokenizer=tokenizer)["pixels"]["reconstructed"].as_json()
    assert {name: found[name] for name in wanted} == wanted
    assert 0 < found[generation.DISTANCE] < 0.1 < generation.of_random_ids(4, "validation", 0)[generation.DISTANCE]


@pytest.mark.slow
def test_captions_are_drawn_in_a_row_for_each_generator():
    assert generation.draw_captions(["toklip-gen-tiny"] * 2).size == (10 * (64 + 2) + 2, 2 * (64 + 2) + 2)


@pytest.mark.parametrize("page", [None, "docs/results/of.md"])
def test_the_picture_is_in_out_or_beside_the_folder_of_the_page(tmp_path, page):
    options = Namespace(out=tmp_path / "out", page=page and tmp_path / page)
    file = _runs.picture_file(options, "one.jpg")
    assert file == tmp_path / ("docs/pictures/one.jpg" if page else "out/one.jpg") and file.parent.is_dir()


@pytest.mark.parametrize(("every", "last", "loss"), [(50, 400, 400.0), (10, 600, 575.0), (7, 12, 7.0)])
def test_the_last_loss_is_of_the_last_tenth(tmp_path, every, last, loss):
    logged = [{"step": step, "loss/next_id": float(step)} for step in range(every, last + 1, every)]
    lines = [*logged, {"step": last, "held_out/next_id": 0.0}]
    (tmp_path / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    assert generation.last_loss(tmp_path) == loss


def test_the_recipes_of_digits_are_taken_and_lead_to_one_another(tmp_path, asked, digits):
    options = Namespace(out=tmp_path, jobs=1, steps=40, seeds=[1])
    train, held_out = digits.digits()
    (generator,) = digits.trained(options, train, held_out)
    vq = asked["digits-vq-40-steps-1"].losses
    assert (vq.quantize_from, vq.restart_until) == (10, 30), "the recipe's shares of its steps"
    assert asked[generator.name].toklip == f"{tmp_path}/digits-encoder-40-steps-1/model"
    assert len(list((tmp_path / "digits/train").glob("7/*.png"))) == int((train.labels == 7).sum())


def test_digits_come_back_as_scikit_learn_has_them_within_a_level_or_two(digits):
    train, _ = digits.digits()
    original = digits.load_digits().data[: len(train.labels)]
    assert abs(digits.small(train.pixels) - original).mean() < 1
