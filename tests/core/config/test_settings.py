"""Settings: files, recipes, overrides, and errors in one line."""

from pathlib import Path
from typing import Annotated, ClassVar, Literal

import pytest
from pydantic import Field
from toklip_core.config import Config, HeldOut, RunConfig, changed_keys, load_config, recipe_names, validated


class Folder(Config):
    kind: Literal["folder"]
    folder: str


class Count(Config):
    kind: Literal["count"]
    count: int = 1


class Training(Config):
    name: str = "plain"
    data: tuple[Annotated[Folder | Count, Field(discriminator="kind")], ...] = ()
    run: RunConfig


RECIPE = """
[[data]]
kind = "count"
[[data]]
kind = "folder"
folder = "here"
[run]
steps = 10
batch_size = 4
learning_rate = 1e-3
"""


@pytest.fixture
def recipes(tmp_path: Path) -> Path:
    (tmp_path / "small.toml").write_text(RECIPE)
    (tmp_path / "README.md").write_text("no recipe")
    return tmp_path


def test_a_path_and_a_recipe_name_give_the_same_settings(recipes: Path):
    by_name = load_config("small", Training, recipes=recipes)
    assert by_name == load_config(recipes / "small.toml", Training)
    assert by_name.run.steps == 10
    assert recipe_names(recipes) == ["small"]


def test_overrides_reach_tables_and_lists_and_are_toml_or_else_text(recipes: Path):
    overrides = ["run.steps=20", "data.1.folder=/a/b c", "run.betas=[0.5, 0.9]", 'name="x=y"']
    config = load_config("small", Training, overrides, recipes)
    assert config.run.steps == 20
    assert config.run.betas == (0.5, 0.9)
    assert config.data[1] == Folder(kind="folder", folder="/a/b c")
    assert config.name == "x=y"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("run.stpes=20", r"run.stpes is not a setting; did you mean 'steps'\?"),
        ("data.0.cuont=2", r"data.0.cuont is not a setting; did you mean 'count'\?"),
        ("data.0.count=two", r"data.0.count: got 'two', but input should be a valid integer"),
        ("data=[{kind='folder'}]", r"data.0.folder is missing; set it in the file or with --set data.0.folder=..."),
        ("rnu=2", r"rnu is not a setting; did you mean 'run'\?"),
        ("run.steps=-1", "run.steps: got -1, but input should be greater than 0"),
        ("run.betas=[0.9, 1.5]", "run.betas.1: got 1.5, but input should be less than 1"),
        ("run.schedule=cosin", "run.schedule: got 'cosin', but input should be 'constant', 'cosine' or 'multi-step'"),
        ("run.warmup_steps=10", r"run: warmup_steps \(10\) must be below steps \(10\)"),
        ("run.accumulate=3", r"run: batch_size \(4\) must be a multiple of accumulate \(3\)"),
        ("run.milestones=[5]", "run: milestones and schedule = 'multi-step' go together"),
        ("run.final_learning_rate=1e-4", "run: final_learning_rate has no effect without schedule = 'cosine'; set"),
        ("run.drop=0.5", "run: drop has no effect without schedule = 'multi-step'; set both, or set it to 0.1"),
        ("run.milestones=[0]", "run.milestones.0: got 0, but input should be greater than 0"),
        ("data.2.count=1", "'2' is none of the 2 entries"),
        ("data.one.count=1", "'one' is none of the 2 entries"),
        ("run.steps.first=1", "got --set run.steps.first, but run.steps is a value and has no 'first'"),
        ("run.steps", "it needs the form key=value"),
        ("=3", "it needs the form key=value"),
        ("data.0.kind=none", "data.0: got .* but input tag 'none'"),
    ],
)
def test_a_wrong_override_is_one_line_that_names_the_key(recipes: Path, override: str, message: str):
    with pytest.raises(ValueError, match=message) as raised:
        load_config("small", Training, [override], recipes)
    assert "\n" not in str(raised.value)


def test_a_run_with_milestones_may_be_shortened(recipes: Path):
    stepped = ["run.schedule=multi-step", "run.milestones=[4, 8]", "run.drop=0.5", "run.steps=2"]
    assert load_config("small", Training, stepped, recipes).run.milestones == (4, 8)


def test_a_missing_setting_is_named(recipes: Path):
    (recipes / "short.toml").write_text("[run]\nsteps = 1\nlearning_rate = 1")
    with pytest.raises(ValueError, match=r"run.batch_size is missing; set it in the file or with --set"):
        load_config("short", Training, recipes=recipes)


def test_a_missing_setting_of_a_model_folder_is_named_without_an_option_that_its_readers_lack():
    with pytest.raises(ValueError, match=r"^config\.json: run is missing; set it in the file$"):
        validated(Training, {}, "config.json")


def test_an_unknown_recipe_lists_the_known_ones(recipes: Path):
    with pytest.raises(LookupError, match=r"no recipe is named 'smal'. Did you mean 'small'\? Recipes: small."):
        load_config("smal", Training, recipes=recipes)


def test_a_missing_file_is_named(recipes: Path):
    with pytest.raises(FileNotFoundError, match=r"no file 'none.toml'; give a TOML file or one of the recipes small"):
        load_config("none.toml", Training, recipes=recipes)


def test_a_file_that_is_not_toml_is_named(recipes: Path):
    (recipes / "broken.toml").write_text("steps 3")
    with pytest.raises(ValueError, match="broken is not TOML"):
        load_config("broken", Training, recipes=recipes)


def test_settings_do_not_change(recipes: Path):
    config = load_config("small", Training, recipes=recipes)
    with pytest.raises(ValueError, match="frozen"):
        config.name = "other"


def test_changed_keys_are_dotted_and_look_into_lists():
    old = {"a": 1, "b": {"c": [1, {"d": 2}], "e": 3}, "gone": None}
    new = {"a": 1, "b": {"c": [1, {"d": 5}], "e": 4}, "new": 1}
    assert changed_keys(old, new) == ["b.c.1.d", "b.e", "gone", "new"]
    assert changed_keys(old, old) == []


class HeldOutLetters(HeldOut):
    own: ClassVar[tuple[str, ...]] = ("letters", "words")

    letters: Path | None = None
    words: Path | None = None


def test_held_out_data_are_scenes_or_ones_own_and_by_default_none():
    assert HeldOutLetters().scenes == 0 and HeldOutLetters().letters is None
    assert HeldOutLetters(letters=Path("a"), words=Path("b")) and HeldOutLetters(scenes=3)
    with pytest.raises(ValueError, match="give scenes, or letters and words, and not both"):
        HeldOutLetters(scenes=3, words=Path("b"))


def test_a_wrong_entry_alone_is_one_problem():
    class Several(Config):
        entries: tuple[int, ...] = Field(min_length=1)

    with pytest.raises(ValueError, match=r"^here: entries.0: got 'x', but input should be a valid integer[^;]*$"):
        validated(Several, {"entries": ["x"]}, "here")
    with pytest.raises(ValueError, match=r"entries: got .*at least 1 item"):
        validated(Several, {"entries": []}, "here")
