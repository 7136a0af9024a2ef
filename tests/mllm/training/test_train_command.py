"""`toklip train mllm`: recipes, and one line for settings that do not fit."""

import pytest
from click.testing import CliRunner
from toklip_core.cli import cli
from toklip_core.config import load_config, recipe_names
from toklip_mllm.training import RECIPES, MLLMTrainConfig

from tests.support.refusals import last_error
from tests.support.small_mllms import language_model, tokenizer


def train(*words: str):
    return CliRunner().invoke(cli, ["train", "mllm", *words])


#: LLaVA-1.5's scripts: scripts/v1_5/pretrain.sh, finetune.sh, finetune_lora.sh.
PUBLISHED = {
    "llava-stage-1": {"learning_rate": 1e-3, "batch_size": 256, "pictures": 558_128, "train": ("connector",)},
    "llava-stage-2": {"learning_rate": 2e-5, "batch_size": 128, "pictures": 665_298},
    "llava-stage-2-lora": {"learning_rate": 2e-4, "batch_size": 128, "pictures": 665_298, "connector": 2e-5},
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_recipes_have_the_published_settings(name):
    config, wanted = load_config(name, MLLMTrainConfig, [], RECIPES), PUBLISHED[name]
    run = config.run
    assert (run.learning_rate, run.batch_size) == (wanted["learning_rate"], wanted["batch_size"])
    assert (run.schedule, run.weight_decay, run.precision) == ("cosine", 0.0, "bf16")
    assert abs(run.steps - wanted["pictures"] / run.batch_size) < 1, "one epoch"
    assert run.warmup_steps == pytest.approx(0.03 * run.steps, abs=1)
    assert config.train == wanted.get("train", ("connector", "language_model"))
    rate = run.learning_rate * config.connector_learning_rate_factor
    assert rate == pytest.approx(wanted.get("connector", run.learning_rate))
    assert config.max_length == 2048


def test_lora_has_the_published_rank():
    lora = load_config("llava-stage-2-lora", MLLMTrainConfig, [], RECIPES).lora
    assert lora is not None and (lora.rank, lora.alpha, lora.dropout) == (128, 256, 0.05)


@pytest.mark.parametrize("name", recipe_names(RECIPES))
def test_every_recipe_parses_and_is_listed(name):
    load_config(name, MLLMTrainConfig, [], RECIPES)
    assert name in train("--list").stdout


BASE = """
toklip = "toklip-tiny"
train = ["connector"]
language_model = "language"
[[data]]
kind = "scenes"
count = 4
[run]
steps = 2
batch_size = 2
learning_rate = 1e-3
"""


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["start=runs/one/model"], "got start and language_model of start, language_model and small"),
        (["run.stpes=1"], "run.stpes is not a setting; did you mean 'steps'?"),
        (["lora.rank=2"], "lora adapts a language model that knows something; put language_model into train"),
        (["frozen_dtype=bfloat16"], "frozen_dtype bfloat16 goes with run.precision 'bf16', and got 'no'"),
        (["data.0.root=x"], "data.0.root is not a setting"),
        (["train=[]"], "train"),
    ],
)
def test_settings_that_do_not_fit_are_one_line(overrides, message, tmp_path):
    (tmp_path / "mine.toml").write_text(BASE)
    words = [word for override in overrides for word in ("--set", override)]
    done = train(str(tmp_path / "mine.toml"), "--out", str(tmp_path / "run"), *words)
    assert done.exit_code == 1 and len(done.output.splitlines()) == 1, done.output
    last_error(done.output, message)


def test_a_recipe_that_is_not_there_names_the_nearest():
    assert "Did you mean 'scenes-tiny-unified'?" in train("scenes-tiny-unifed", "--out", "x").output


def test_without_a_folder_the_command_says_what_it_needs():
    done = train("scenes-tiny-stage-1")
    assert done.exit_code == 2 and "--out FOLDER" in done.output


@pytest.fixture
def models(toy, tmp_path, monkeypatch):
    """A TokLIP and a language model in folders beside the settings."""
    from tests.support.small_models import small_toklip

    monkeypatch.chdir(tmp_path)
    small_toklip().save_pretrained("toklip")
    language_model().save_pretrained("language")
    (tmp_path / "mine.toml").write_text(BASE.replace("toklip-tiny", "toklip"))


def test_a_language_model_without_a_chat_template_is_one_line(models, tmp_path):
    tokenizer(template=None).save_pretrained("language")
    done = train("mine.toml", "--out", "run")
    assert done.exit_code == 1 and "has no chat template" in done.output, done.output


def test_a_missing_file_of_conversations_is_one_line(models):
    tokenizer().save_pretrained("language")
    data = '[{kind = "conversations", file = "none.json"}]'
    done = train("mine.toml", "--out", "run", "--set", f"data={data}")
    assert done.exit_code == 1 and "none.json" in done.output, done.output
