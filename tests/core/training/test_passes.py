"""Micro-batches are the whole batch: contrast and distillation together, in one process, in two, and sharded."""

import json
import math
import os
import resource
import shutil
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from toklip_core.config import RunConfig
from toklip_core.training import (
    Evaluation,
    FitReport,
    Losses,
    derived_seed,
    fit,
    pooled_distillation,
    sigmoid_contrast,
    softmax_contrast,
    token_distillation,
)
from toklip_core.training.loop import _Window
from torch import Tensor, nn

from tests.support.checkpoints import last, last_checkpoint
from tests.support.processes import run_together
from tests.support.refusals import refusing
from tests.support.toy_tasks import ToyTask

pytestmark = pytest.mark.slow

#: What `accelerate launch` tells its processes when its file says distributed_type FSDP and
#: fsdp_config: fsdp_version 2, fsdp_auto_wrap_policy TRANSFORMER_BASED_WRAP, fsdp_reshard_after_forward true.
FSDP2 = {
    "ACCELERATE_USE_FSDP": "true",
    "FSDP_VERSION": "2",
    "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
    "FSDP_TRANSFORMER_CLS_TO_WRAP": "TransformerEncoderLayer",
    "FSDP_RESHARD_AFTER_FORWARD": "true",
    "FSDP_CPU_RAM_EFFICIENT_LOADING": "true",
}


class Captioned:
    """A picture of five tokens, its caption as a vector, and what a teacher makes of the picture."""

    def __len__(self) -> int:
        return 24

    def __getitem__(self, key: tuple[int, int]) -> dict[str, Tensor]:
        noise = torch.Generator().manual_seed(derived_seed(*key))
        picture, teacher = torch.randn(2, 5, 16, generator=noise)
        return {"picture": picture, "teacher": teacher, "caption": torch.randn(8, generator=noise)}


class TwoTowers(nn.Module):
    """Blocks with dropout for pictures, one layer for captions, and the two shared parameters of a contrast."""

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(16, 2, 32, dropout, batch_first=True) for _ in range(2)
        )
        self.text = nn.Linear(8, 16)
        # With a dimension, without which FSDP 2 shards no parameter.
        self.logit_scale = nn.Parameter(torch.tensor([math.log(10)]))
        self.logit_bias = nn.Parameter(torch.tensor([-2.0]))
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        if self.training:
            self.seen = self.seen + len(batch["picture"])  # another tensor, which is harder to put back
        tokens = batch["picture"]
        for block in self.blocks:
            tokens = block(tokens)
        shared = {"scale": self.logit_scale.exp().sum(), "bias": self.logit_bias.sum()}
        return {"tokens": tokens, "text": F.normalize(self.text(batch["caption"]), dim=-1)} | shared


def objective(model: nn.Module, batch: dict[str, Tensor], step: int) -> Losses:
    found = model(batch)
    tokens, teacher = found["tokens"], batch["teacher"]
    pooled = F.normalize(tokens.mean(1), dim=-1)
    losses = {
        "pooled": 10 * pooled_distillation(pooled, F.normalize(teacher.mean(1), dim=-1)),
        "token": token_distillation(tokens, teacher),
    }
    features = {"image": pooled, "text": found["text"], "scale": found["scale"], "bias": found["bias"]}
    return Losses(losses, {"norm": tokens.norm()}, features)


def contrast(features: Mapping[str, Tensor]) -> Losses:
    image, text, scale = features["image"], features["text"], features["scale"]
    losses = {
        "softmax": softmax_contrast(image, text, scale),
        "sigmoid": sigmoid_contrast(image, text, scale, features["bias"]),
    }
    return Losses(losses, {"scale": scale})


def train(
    out: Path,
    *,
    dropout: float = 0.0,
    objective: Any = objective,
    members: dict[str, Any] | None = None,
    **changes: Any,
) -> tuple[FitReport, nn.Module]:
    torch.manual_seed(0)
    model = TwoTowers(dropout)
    values = {"steps": 1, "batch_size": 16, "learning_rate": 1e-3, "log_every": 1, "save_every": 1}

    task = ToyTask(model, Captioned(), objective, contrast=contrast, evaluate=evaluate, **(members or {}))
    return fit(task, RunConfig(**(values | changes)), out), model


def evaluate(model: nn.Module) -> Evaluation:
    batch = {name: x[None] for name, x in Captioned()[0, 0].items()}
    return Evaluation({"norm": model(batch)["tokens"].norm().item()})


def gradients(out: Path) -> dict[str, Tensor]:
    """The gradients of the first step: Adam's first moment after it is a tenth of them."""
    moments = last(out, "optimizer")
    return {name: 10 * moment for name, moment in moments.items() if name.endswith("exp_avg")}


def lines(out: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def assert_gradients_agree(mine: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    assert mine.keys() == theirs.keys() and {"logit_scale/exp_avg", "text.weight/exp_avg"} <= mine.keys()
    largest = max(gradient.abs().max() for gradient in theirs.values())
    for name, gradient in theirs.items():
        assert gradient.abs().max() > 0, name
        torch.testing.assert_close(mine[name], gradient, rtol=1e-5, atol=2e-7 * largest.item(), msg=name)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A step of the whole batch at once."""
    out = tmp_path_factory.mktemp("runs") / "whole"
    train(out)
    return out


def test_four_micro_batches_have_every_gradient_of_the_whole_batch(tmp_path: Path, whole: Path):
    train(tmp_path / "run", accumulate=4)
    assert_gradients_agree(gradients(tmp_path / "run"), gradients(whole))


def test_losses_of_both_kinds_are_logged_as_of_the_whole_batch(tmp_path: Path, whole: Path):
    train(tmp_path / "run", accumulate=4)
    names = {"loss/pooled", "loss/token", "loss/softmax", "loss/sigmoid", "scale", "norm"}
    mine, theirs = lines(tmp_path / "run")[0], lines(whole)[0]
    assert names <= mine.keys() and mine.keys() == theirs.keys()
    for name in names - {"norm"}:  # which is not a mean over samples
        assert mine[name] == pytest.approx(theirs[name], rel=1e-6), name


@pytest.mark.parametrize(("accumulate", "precision"), [(1, "no"), (4, "no"), (1, "bf16"), (4, "bf16")])
def test_dropout_and_autocast_are_the_same_in_both_passes(tmp_path: Path, accumulate: int, precision: str):
    """Against all micro-batches in one graph, which is what two passes save the memory of."""
    train(tmp_path / "run", dropout=0.3, accumulate=accumulate, precision=precision)

    batches: list[dict[str, Tensor]] = []

    def noting(model: nn.Module, batch: dict[str, Tensor], step: int) -> Losses:
        batches.append(batch)
        return objective(model, batch, step)

    _, model = train(tmp_path / "other", dropout=0.3, objective=noting, learning_rate=1e-30)
    parts: list[Losses] = []
    for micro in range(accumulate):
        rows = slice(micro * 16 // accumulate, (micro + 1) * 16 // accumulate)
        torch.manual_seed(derived_seed(0, 0, micro, 0))
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            parts.append(objective(model, {name: x[rows] for name, x in batches[0].items()}, 0))
    features = {name: torch.cat([part.features[name].float() for part in parts]) for name in ("image", "text")}
    between = contrast(features | {name: parts[-1].features[name] for name in ("scale", "bias")})
    total = sum(sum(part.losses.values()) for part in parts) / accumulate + sum(between.losses.values())
    names, weights = zip(*model.named_parameters(), strict=True)
    expected = torch.autograd.grad(total, weights)
    assert_gradients_agree(
        gradients(tmp_path / "run"), {f"{n}/exp_avg": x for n, x in zip(names, expected, strict=True)}
    )


@pytest.mark.slow
@pytest.mark.parametrize("accumulate", [1, 4])
def test_steps_are_steps_then_resume_then_steps_bit_for_bit(tmp_path: Path, accumulate: int):
    told: list[int] = []
    settings = {"steps": 4, "save_every": 9, "dropout": 0.3, "accumulate": accumulate, "ema_decay": 0.9}

    def stopping(model: nn.Module, batch: dict[str, Tensor], step: int) -> Losses:
        if step == 1 and not told:
            told.append(step)  # a second signal ends the process at once
            os.kill(os.getpid(), signal.SIGTERM)
        return objective(model, batch, step)

    train(tmp_path / "whole", **settings)
    assert train(tmp_path / "parts", objective=stopping, **settings)[0].step == 2
    train(tmp_path / "parts", **settings)
    for part in ("model", "average", "optimizer"):
        mine, theirs = last(tmp_path / "parts", part), last(tmp_path / "whole", part)
        assert mine.keys() == theirs.keys() and mine
        assert [name for name in mine if not torch.equal(mine[name], theirs[name])] == []


@pytest.mark.parametrize("accumulate", [1, 4])
def test_each_micro_batch_is_prepared_once_without_gradients_under_autocast(tmp_path: Path, accumulate: int):
    """Though a contrast with micro-batches has two passes: both get what was prepared, in its order."""
    made: list[dict[str, Tensor]] = []
    taken: list[dict[str, Tensor]] = []

    def prepare(batch: dict[str, Tensor]) -> dict[str, Tensor]:
        assert not torch.is_grad_enabled() and torch.is_autocast_enabled("cpu")
        made.append({**batch})
        return made[-1]

    def noting(model: nn.Module, batch: dict[str, Tensor], step: int) -> Losses:
        taken.append(batch)
        return objective(model, batch, step)

    train(tmp_path / "run", objective=noting, members={"prepare": prepare}, accumulate=accumulate, precision="bf16")
    assert [len(batch["picture"]) for batch in made] == [16 // accumulate] * accumulate
    passes = 1 if accumulate == 1 else 2
    assert [*map(id, taken)] == [*map(id, made)] * passes


def test_buffers_count_a_sample_once(tmp_path: Path):
    train(tmp_path / "run", accumulate=4)
    assert last(tmp_path / "run", "model")["seen"] == 16


def test_the_first_pass_keeps_no_graph(tmp_path: Path):
    graphs: list[bool] = []

    def noting(model: nn.Module, batch: dict[str, Tensor], step: int) -> Losses:
        result = objective(model, batch, step)
        graphs.append(result.features["image"].requires_grad)
        return result

    train(tmp_path / "run", accumulate=4, objective=noting)
    assert graphs == [False] * 4 + [True] * 4


def test_features_may_be_labels_and_constants(tmp_path: Path, whole: Path):
    """What the contrast reads without a gradient: ids of captions, features of a frozen tower."""

    def more(model: nn.Module, batch: dict[str, Tensor], step: int) -> Losses:
        result = objective(model, batch, step)
        constants = {"ids": torch.arange(len(batch["caption"])), "frozen": batch["caption"], "size": torch.tensor(3)}
        return result._replace(features={**result.features, **constants})

    train(tmp_path / "run", accumulate=4, objective=more)
    assert_gradients_agree(gradients(tmp_path / "run"), gradients(whole))


@pytest.mark.parametrize("accumulate", [1, 2])
def test_without_a_contrast_a_step_is_objective_backward_and_adamw(tmp_path: Path, accumulate: int):
    """Bit for bit, with dropout, and each micro-batch seen once."""
    batches: list[dict[str, Tensor]] = []

    def plain(model: nn.Module, batch: dict[str, Tensor], step: int) -> Losses:
        batches.append(batch)
        losses = objective(model, batch, step).losses
        return Losses(losses | {"text": model(batch)["text"].square().sum()})

    def unshared() -> TwoTowers:
        torch.manual_seed(0)
        model = TwoTowers(dropout=0.3)
        model.logit_scale.requires_grad_(False)
        model.logit_bias.requires_grad_(False)
        return model

    run = RunConfig(steps=3, batch_size=8, learning_rate=1e-3, accumulate=accumulate)
    model, other = unshared(), unshared()
    fit(ToyTask(model, Captioned(), plain), run, tmp_path / "run")
    assert len(batches) == 3 * accumulate

    weights = [weight for weight in other.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=1e-3, betas=run.betas, weight_decay=0, fused=True)
    for number, batch in enumerate([*batches]):
        step, micro = divmod(number, accumulate)
        torch.manual_seed(derived_seed(0, step, micro, 0))
        (sum(plain(other, batch, step).losses.values()) / accumulate).backward()
        if micro == accumulate - 1:
            optimizer.step()
            optimizer.zero_grad()
    assert all(torch.equal(one, two) for one, two in zip(model.parameters(), other.parameters(), strict=True))


def clamp(model: nn.Module) -> None:
    assert isinstance(model, TwoTowers) and not torch.is_grad_enabled()
    model.logit_scale.clamp_(max=math.log(10) - 0.1)


def test_after_each_step_a_parameter_can_be_clamped(tmp_path: Path):
    _, model = train(tmp_path / "run", members={"after_step": clamp})
    limit = torch.tensor([math.log(10) - 0.1])
    assert torch.equal(model.logit_scale, limit)
    assert torch.equal(last(tmp_path / "run", "model")["logit_scale"], limit), "in the checkpoint too"


def in_two_processes(folder: Path) -> None:
    """Steps by DDP, then by FSDP 2, at once and in two micro-batches; sharded runs with and without a break."""
    from torch.distributed.tensor import DTensor

    for accumulate in (1, 2):
        train(folder / f"replicated-{accumulate}", accumulate=accumulate, members={"after_step": clamp})
    write_means(folder)
    if not knows_fsdp2():
        return
    os.environ.update(FSDP2)
    shard_on_cpus()
    for accumulate in (1, 2):
        _, model = train(folder / f"sharded-{accumulate}", accumulate=accumulate, members={"after_step": clamp})
        assert all(isinstance(weight, DTensor) for weight in model.parameters())
    train(folder / "sharded-bf16", precision="bf16", objective=in_float32)
    more = {"accumulate": 2, "dropout": 0.3, "ema_decay": 0.9}
    for name, steps in (("whole", 3), ("parts", 1), ("parts", 3), ("full", 1)):
        train(folder / name, steps=steps, save_every=9, **more)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    if os.environ["RANK"] == "1":
        resource.setrlimit(resource.RLIMIT_FSIZE, (1500, before[1]))  # a file may not grow beyond these bytes
    with pytest.raises(OSError, match=r"save step 2; the last checkpoint is step 1 in .*full.checkpoints \(") as raised:
        train(folder / "full", steps=3, save_every=1, **more)
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert "\n" not in str(raised.value) and len(str(raised.value)) < 360
    if os.environ["RANK"] == "0":  # which tidies up
        names = [save.name for save in (folder / "full/checkpoints").iterdir()]
        assert names == ["step-00000001"], "and nothing half-written"
    train(folder / "full", steps=3, save_every=9, **more)


def in_float32(model: nn.Module, batch: Mapping[str, Tensor], step: int) -> Losses:
    """The losses; parameters keep their precision, although the computation is under autocast."""
    losses = objective(model, batch, step)
    assert {losses.features[name].dtype for name in ("scale", "bias")} == {torch.float32}
    return losses


def write_means(folder: Path) -> None:
    """Means over the processes, of a metric that one of them cannot measure, and of one that none can."""
    from accelerate import Accelerator

    window = _Window(Accelerator(cpu=True), cast(Any, None))
    mine, none = (0.5 if os.environ["RANK"] == "1" else math.nan), math.nan
    metrics = {"accuracy": torch.tensor(mine), "other": torch.tensor(none)}
    window.add(1, Losses({"error": torch.tensor(float(os.environ["RANK"]))}, metrics))
    (folder / f"means-{os.environ['RANK']}.json").write_text(json.dumps([*window._means()]))


def test_a_metric_is_the_mean_of_the_processes_that_measure_it(pair: Path):
    for rank in (0, 1):
        error, accuracy, other = json.loads((pair / f"means-{rank}.json").read_text())
        assert (error, accuracy) == ([1, "loss/error", 0.5], [1, "accuracy", 0.5]) and math.isnan(other[2])


def knows_fsdp2() -> bool:
    from accelerate.utils import FullyShardedDataParallelPlugin

    return "fsdp_version" in FullyShardedDataParallelPlugin.__dataclass_fields__ and torch.__version__ >= "2.9"


def shard_on_cpus() -> None:
    """Make accelerate obey the launcher on CPUs too: on its list of what it shards on, they are missing."""
    from accelerate.state import AcceleratorState
    from accelerate.utils import DistributedType

    original = AcceleratorState.__init__

    def sharding(self: Any, *arguments: Any, fsdp_plugin: Any = None, **more: Any) -> None:
        original(self, *arguments, fsdp_plugin=fsdp_plugin, **more)
        if fsdp_plugin is not None:
            if self._mixed_precision != "no":
                fsdp_plugin.set_mixed_precision(self._mixed_precision)
            self.distributed_type, self.fsdp_plugin = DistributedType.FSDP, fsdp_plugin

    AcceleratorState.__init__ = sharding


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The runs of two processes."""
    folder = tmp_path_factory.mktemp("pair")
    run_together(in_two_processes, folder)
    return folder


@pytest.fixture
def shards(pair: Path) -> Path:
    if not knows_fsdp2():
        pytest.skip("these releases of torch and accelerate know no FSDP 2 with sharded checkpoints")
    return pair


@pytest.mark.slow
@pytest.mark.parametrize("accumulate", [1, 2])
def test_two_processes_have_every_gradient_and_loss_of_one(pair: Path, accumulate: int, whole: Path):
    assert_gradients_agree(gradients(pair / f"replicated-{accumulate}"), gradients(whole))
    assert_losses_agree(lines(pair / f"replicated-{accumulate}"), lines(whole))


@pytest.mark.parametrize("accumulate", [1, 2])
def test_two_processes_that_share_the_weights_have_every_gradient_and_loss_of_one(
    shards: Path, accumulate: int, whole: Path
):
    assert_gradients_agree(gradients(shards / f"sharded-{accumulate}"), gradients(whole))
    assert_losses_agree(lines(shards / f"sharded-{accumulate}"), lines(whole))


def assert_losses_agree(mine: list[dict[str, float]], theirs: list[dict[str, float]]) -> None:
    for one, other in zip(mine, theirs, strict=True):
        assert one.keys() == other.keys()
        for name in (name for name in one if name.startswith("loss/")):
            assert one[name] == pytest.approx(other[name], rel=1e-6), name


def test_a_sharded_run_clamps_evaluates_and_exports_what_one_process_does(tmp_path: Path, shards: Path):
    train(tmp_path / "run", members={"after_step": clamp})
    mine, theirs = (load_file(out / "model/model.safetensors") for out in (shards / "sharded-1", tmp_path / "run"))
    assert {name: x.shape for name, x in mine.items()} == {name: x.shape for name, x in theirs.items()}
    assert mine["logit_scale"] == theirs["logit_scale"]
    figures = [lines(out)[-1]["evaluate/norm"] for out in (shards / "sharded-1", tmp_path / "run")]
    assert figures[0] == pytest.approx(figures[1], rel=1e-5)


@pytest.mark.parametrize("run", ["parts", "full"])
def test_a_sharded_run_resumes_bit_for_bit(shards: Path, run: str):
    """After its end, and after one of the processes had a full disk."""
    for part in ("model", "average", "optimizer"):
        mine, theirs = last(shards / run, part), last(shards / "whole", part)
        assert mine.keys() == theirs.keys() and mine
        assert [name for name in mine if not torch.equal(mine[name], theirs[name])] == []


def test_each_process_saves_its_shards_and_nothing_is_a_pickle(shards: Path):
    names = ["progress.json", *(f"shard-0000{rank}-model-00001-of-00001.safetensors" for rank in (1, 2))]
    save = last_checkpoint(shards / "whole")
    assert sorted(file.name for file in save.iterdir()) == names
    parts = [last(shards / "whole", part) for part in ("model", "average", "optimizer")]
    whole = sum(tensor.nbytes for tensors in parts for tensor in tensors.values())
    sizes = [sum(tensor.nbytes for tensor in load_file(save / name).values()) for name in names[1:]]
    assert sum(sizes) == whole and max(sizes) < 0.6 * whole


def alone(tmp_path: Path, shards: Path) -> Path:
    """A copy of a finished sharded run, for one process."""
    return Path(shutil.copytree(shards / "whole", tmp_path / "run"))


def finish(out: Path) -> None:
    train(out, steps=3, accumulate=2, dropout=0.3, ema_decay=0.9)


def test_one_process_reads_the_shards_of_two(tmp_path: Path, shards: Path):
    run = alone(tmp_path, shards)
    shutil.rmtree(run / "model")
    finish(run)
    file = "model/model.safetensors"
    assert (run / file).read_bytes() == (shards / "whole" / file).read_bytes()


def test_a_shard_that_is_cut_or_missing_is_said(tmp_path: Path, shards: Path):
    run = alone(tmp_path, shards)
    shard = last_checkpoint(run) / "shard-00002-model-00001-of-00001.safetensors"
    shard.write_bytes(shard.read_bytes()[:-1])
    with refusing("step-00000003 is damaged (", "; delete it to go on from the one before it"):
        finish(run)
    shard.unlink()
    with refusing("step-00000003 is damaged (a shard is missing)"):
        finish(run)
