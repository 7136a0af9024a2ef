"""Every training on a GPU: the loss is the processor's, a run in bfloat16 goes on where it ended, its model loads."""

import json
import math
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from accelerate.utils import send_to_device
from toklip_core.model import TokLIP, load_clip
from toklip_core.tasks import EncoderTask, EncoderTrainConfig, TeacherTask, TeacherTrainConfig
from toklip_core.tokenizer import load_tokenizer
from toklip_core.training import Task, fit
from toklip_gen.generator import load_generator
from toklip_gen.training import GeneratorTask, GeneratorTrainConfig
from toklip_mllm.model import load_language_model
from toklip_mllm.training import MLLMTask, MLLMTrainConfig
from toklip_vq.training import VQTask, VQTrainConfig

from tests.support.small_models import SIZE

# What the libraries of a GPU warn of cannot be known where there is none: it is shown.
pytestmark = [pytest.mark.gpu, pytest.mark.filterwarnings("default")]

SCENES = {"kind": "scenes", "count": 12}
MUON = {"muon_learning_rate": 0.02} if hasattr(torch.optim, "Muon") else {}


class Training(NamedTuple):
    """A kind of task, its settings but for the run, and what loads the folder that it writes."""

    task: Any
    config: Any
    load: Any
    settings: dict[str, Any]
    run: dict[str, Any]

    def begin(self, world: Path, steps: int) -> tuple[Task, Any]:
        """Return the task, and the settings of its run."""
        run = {"steps": steps, "batch_size": 4, "learning_rate": 1e-3, "log_every": 1, "precision": "bf16"}
        text = json.dumps(self.settings | {"run": run | self.run}).replace("WORLD", str(world))
        config = self.config.model_validate(json.loads(text))
        return self.task(config), config.run


def encoder_task(config):
    return EncoderTask(config, load_tokenizer(config.tokenizer), load_clip(config.teacher))


ENCODER = {"tokenizer": "vqgan-tiny", "teacher": "WORLD/teacher", "image_size": SIZE, "held_out": {"scenes": 4}}
MLLM = {
    "toklip": "toklip-tiny",
    "small": {"width": 32, "hidden": 48, "heads": 2, "layers": 1, "context_length": 160, "conversations": 12},
    "train": ["connector", "language_model"],
    "data": [SCENES | {"turns": 2}],
    "max_length": 140,
    "held_out": {"scenes": 2},
}
TRAININGS = {
    "vq": Training(
        VQTask,
        VQTrainConfig,
        lambda folder: load_tokenizer("vqgan", folder),
        {
            "image_size": SIZE,
            "model": {
                "codebook_size": 32, "codebook_dim": 4, "channels": 8, "channel_multipliers": [1, 2],
                "blocks_per_resolution": 1, "z_channels": 8, "norm_groups": 4,
            },
            "data": [SCENES],
            "held_out": {"scenes": 4},
            "losses": {
                "quantize_from": 1, "restart_until": 9, "entropy_weight": 0.1, "discriminator_weight": 0.5,
                "discriminator_start": 2, "discriminator_channels": 8, "discriminator_layers": 1, "lecam_weight": 0.1,
            },
        },
        {"ema_decay": 0.9, "max_grad_norm": 1.0},
    ),
    "teacher": Training(
        TeacherTask,
        TeacherTrainConfig,
        load_clip,
        {
            "image_size": SIZE,
            "vision": {"patch_size": 8, "trunk": {"width": 32, "depth": 1, "heads": 2}},
            "text": {"width": 16, "heads": 2, "layers": 1, "context_length": 16},
            "data": [SCENES],
            "held_out": {"scenes": 4},
        },
        MUON,
    ),
    "encoder from a store": Training(
        encoder_task,
        EncoderTrainConfig,
        TokLIP.from_pretrained,
        ENCODER | {"data": [{"kind": "store", "store": "WORLD/store"}], "losses": {"pooled_weight": 10.0}},
        {"accumulate": 2, **MUON},
    ),
    "encoder from pictures": Training(
        encoder_task,
        EncoderTrainConfig,
        TokLIP.from_pretrained,
        ENCODER | {
            "data": [SCENES],
            "smallest_crop_area": 0.9,
            "grad_checkpointing": True,
            "losses": {"pooled_weight": 10.0, "token_weight": 1.0, "contrast": "sigmoid"},
        },
        {"workers": 1},
    ),
    "mllm": Training(MLLMTask, MLLMTrainConfig, load_language_model, MLLM, {}),
    "unified mllm": Training(
        MLLMTask,
        MLLMTrainConfig,
        load_language_model,
        MLLM | {
            "train": ["connector", "language_model", "image_head"],
            "image_head": {},
            "data": [*MLLM["data"], {"kind": "drawings", "pictures": SCENES}],
        },
        {},
    ),
    "generator": Training(
        GeneratorTask,
        GeneratorTrainConfig,
        load_generator,
        {
            "toklip": "toklip-tiny",
            "image_size": 64,
            "generator": {"width": 32, "depth": 2, "heads": 2, "features": "concat", "grad_checkpointing": True},
            "condition": {"kind": "text", "length": 32},
            "dropout": 0.0,
            "data": [{"kind": "store", "store": "WORLD/large"}],
            "held_out": {"store": "WORLD/large", "pictures": 4},
            "sampling": {"guidance": 2.0},
        },
        {"ema_decay": 0.9},
    ),
}  # fmt: skip
pytestmark.append(pytest.mark.parametrize("name", TRAININGS))


def loss_and_gradient(task: Task, device: str) -> tuple[float, float]:
    """Return the loss of a task with its first weights in float32, all terms of it, and the norm of its gradient."""
    model = task.model.to(device).train()
    batch = send_to_device(task.collate([task.samples[0, index] for index in range(4)]), torch.device(device))
    torch.manual_seed(0)
    with torch.no_grad():
        prepared = task.prepare(batch)
    found = task.objective(model, prepared, 3)
    losses = [*found.losses.values()]
    if task.contrast is not None:
        losses += task.contrast(found.features).losses.values()
    loss = torch.stack(losses).sum()
    loss.backward()
    gradients = [weight.grad for weight in model.parameters() if weight.grad is not None]
    return loss.item(), torch.nn.utils.get_total_norm(gradients).item()


def test_the_first_loss_and_its_gradient_are_those_of_a_cpu(name, world, device):
    on_cpu, there = (
        loss_and_gradient(TRAININGS[name].begin(world, steps=1)[0], where) for where in ("cpu", device)
    )
    assert there == pytest.approx(on_cpu, rel=1e-3)


def test_a_run_in_bfloat16_goes_on_where_it_ended_and_its_model_loads_on_a_cpu(name, world, tmp_path, device):
    for steps in (2, 4):
        task, run = TRAININGS[name].begin(world, steps)
        assert fit(task, run, tmp_path / "run").step == steps
        assert {weight.device.type for weight in task.model.parameters()} == {torch.device(device).type}
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    losses = [(line["step"], x) for line in lines for key, x in line.items() if key.startswith("loss/")]
    assert {step for step, _ in losses} == {1, 2, 3, 4} and all(math.isfinite(loss) for _, loss in losses)
    assert any(key.startswith("evaluate/") for line in lines for key in line)
    assert TRAININGS[name].load(tmp_path / "run/model")  # whatever is not finite is refused
