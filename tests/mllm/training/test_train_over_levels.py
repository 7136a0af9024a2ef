"""`toklip train mllm` and `toklip ask` over four ids per position, over ids of 28 bits, and over a pyramid."""

import json
import shutil

import pytest
import torch
from click.testing import CliRunner
from toklip_core import plugins
from toklip_core.cli import cli
from toklip_mllm.model import load_language_model
from toklip_mllm.training import train_mllm

from tests.support import mean_colour
from tests.support.mllm_runs import assert_same_run, config, exported, file_data, lines, write_tokens, write_world

pytestmark = pytest.mark.slow

SETTINGS = """
toklip = "toklip"
language_model = "language"
train = ["connector", "language_model"]
max_length = 256
[[data]]
kind = "conversations"
file = "conversations.json"
root = "pictures"
[run]
steps = 3
batch_size = 4
learning_rate = 1e-2
log_every = 1
save_every = 1
keep = 9
"""


@pytest.fixture(scope="module", params=mean_colour.OTHERS)
def world(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(mean_colour.install(folder / "site")))
        plugins.registry.cache_clear()
        write_world(folder, mean_colour.several(request.param))
        patch.chdir(folder)
        (folder / "mine.toml").write_text(SETTINGS)
        yield folder
    plugins.registry.cache_clear()


def toklip(*words: str) -> str:
    done = CliRunner().invoke(cli, words, obj=plugins.registry())
    assert done.exit_code == 0, done.output
    return done.stdout


def test_a_run_of_the_command_is_resumed_bit_for_bit_and_its_model_answers(world):
    toklip("train", "mllm", "mine.toml", "--out", "whole")
    broken = world / "broken"
    (broken / "checkpoints").mkdir(parents=True)
    for file in ("run.json", "metrics.jsonl"):
        shutil.copy(world / "whole" / file, broken)
    shutil.copytree(world / "whole/checkpoints/step-00000001", broken / "checkpoints/step-00000001")
    toklip("train", "mllm", "mine.toml", "--out", "broken")
    assert_same_run(broken, world / "whole")
    model, processor = load_language_model(world / "whole/model")
    tables = {name: table for name, table in model.state_dict().items() if name.startswith("vision.embedding")}
    assert len(tables) == len(processor.vq_tokenizer.embedding.state_dict())
    assert all(torch.equal(table, exported(world / "whole")[name]) for name, table in tables.items())
    question = ["pictures/00.png", "what is it ?", "--model", "whole/model", "--max-new-tokens", "4", "--json"]
    said = json.loads(toklip("ask", *question, "--device", "cpu"))
    assert said["prompt_tokens"] > 64 and said["new_tokens"] >= 1
    rows = [{"image": "pictures/00.png", "question": "what is it ?", "answer": "red circle"}]
    (world / "questions.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    told = json.loads(toklip("evaluate", "vqa", "questions.jsonl", "--model", "whole/model", "--json"))
    assert told["protocol"]["questions"] == 1


def test_a_token_store_trains_the_same_model_as_its_pictures_and_its_tokens_do_within_rounding(world, tmp_path):
    run = {"learning_rate": 1e-4, "steps": 2}
    write_tokens(world)
    for name, changes in (("pictures", {}), ("store", {"store": "store"}), ("tokens", {"store": "tokens"})):
        changes = {key: str(world / value) for key, value in changes.items()}
        train_mllm(config(world, file_data(world, **changes), run=run), tmp_path / name)
    mine, theirs = exported(tmp_path / "pictures"), exported(tmp_path / "store")
    assert [name for name in mine if not torch.equal(mine[name], theirs[name])] == []
    for mine, theirs in zip(lines(tmp_path / "store"), lines(tmp_path / "tokens"), strict=True):
        assert theirs["loss/text"] == pytest.approx(mine["loss/text"], rel=2**-10)
