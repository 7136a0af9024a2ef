"""The plugin of lmms-eval: found by its command, and a score on a task that is made here. `nox -s lmms` runs it."""

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.support.mllm_runs import write_model

pytestmark = pytest.mark.skipif(find_spec("lmms_eval") is None, reason="lmms-eval is not installed: nox -s lmms")

TASK = """
task: local_colours
dataset_path: json
dataset_kwargs:
  data_files:
    test: {folder}/rows.jsonl
test_split: test
output_type: generate_until
doc_to_visual: !function reading.visual
doc_to_text: !function reading.text
doc_to_target: answer
generation_kwargs:
  max_new_tokens: 3
  until: ["."]
process_results: !function reading.score
metric_list:
  - metric: answered
    aggregation: !function reading.mean
    higher_is_better: true
metadata:
  - version: 0.0
"""
READING = """
from PIL import Image

def visual(row):
    return [Image.open(path).convert("RGB") for path in row["images"]]

def text(row, lmms_eval_specific_kwargs=None):
    return row["question"]

def score(row, results):
    assert isinstance(results[0], str)
    return {"answered": float(results[0] == row["answer"])}

def mean(scores):
    return sum(scores) / len(scores)
"""


def test_its_command_finds_the_plugin_and_scores_a_local_task(tmp_path):
    from PIL import Image

    said = write_model(tmp_path / "model", site := tmp_path / "site", new_tokens=3)
    tasks = tmp_path / "tasks"
    tasks.mkdir()
    rows = []
    for number, colour in enumerate(["red", "lime", "blue", "white", "black"]):
        path = tasks / f"{number}.png"
        Image.new("RGB", (40, 32), colour).save(path)
        # One without a picture, and one with two.
        images = [[], [path], [path, path]][number % 3]
        question = "what is it ?"
        # The last answer is wrong, so that the score is known.
        answer = said(question, images) if number < 4 else "never said"
        rows.append({"images": [str(path) for path in images], "question": question, "answer": answer})
    (tasks / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tasks / "local_colours.yaml").write_text(TASK.format(folder=tasks))
    (tasks / "reading.py").write_text(READING)
    command = ["--model", "toklip", "--model_args", f"pretrained={tmp_path / 'model'},device=cpu"]
    command += ["--tasks", "local_colours", "--include_path", str(tasks), "--batch_size", "2"]
    done = subprocess.run(
        [sys.executable, "-m", "lmms_eval", *command, "--output_path", str(tmp_path / "out")],
        env=os.environ
        | {"PYTHONPATH": str(site), "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hf"), "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    results = [*Path(tmp_path / "out").rglob("*_results.json")]
    assert len(results) == 1, done.stdout[-3000:] + done.stderr[-3000:]
    figures = json.loads(results[0].read_text())["results"]["local_colours"]
    assert figures["answered,none"] == pytest.approx(0.8)


def test_what_cannot_be_asked_for_is_refused(tmp_path):
    from toklip_mllm.evaluation import TokLIPLM

    with pytest.raises(ValueError, match="got dtype 'float8'; known are auto"):
        TokLIPLM(dtype="float8")
    with pytest.raises(ValueError, match="got batch_size 'auto'; wanted a number"):
        TokLIPLM(batch_size="auto")
