"""Training a tokenizer: exact resume with a discriminator, two processes, recipes, data, the command."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from safetensors.torch import load_file
from toklip_core import load_tokenizer
from toklip_core.cli import cli
from toklip_core.config import load_config, recipe_names
from toklip_core.pictures import entries, find_pictures
from toklip_core.testing import tokenizer_checks
from toklip_core.training import fit
from toklip_core.weights import weights_checksum
from toklip_vq.training import (
    RECIPES,
    FolderSource,
    HeldOutFolder,
    PhotographsSource,
    ScenesSource,
    VQTask,
    VQTrainConfig,
    VQTraining,
    evaluate_vqgan,
    held_out_pictures,
    open_sources,
    samples,
    start_codebook,
    train_vq,
)
from toklip_vq.vqgan import VQGAN

pytestmark = pytest.mark.slow

#: All there is, small: late quantization, entropy, a late discriminator with LeCam, averages.
TINY = """
image_size = 32
[model]
codebook_size = 32
codebook_dim = 4
channels = 8
channel_multipliers = [1, 2]
blocks_per_resolution = 1
z_channels = 8
norm_groups = 4
attention = false
[[data]]
kind = "scenes"
count = 20
[[data]]
kind = "photographs"
count = 10
[held_out]
scenes = 6
[losses]
quantize_from = 1
restart_until = 9
entropy_weight = 0.1
discriminator_weight = 0.5
discriminator_start = 2
discriminator_channels = 8
discriminator_layers = 1
discriminator_norm = "group"
lecam_weight = 0.1
[run]
steps = 5
batch_size = 4
learning_rate = 1e-3
max_grad_norm = 1.0
ema_decay = 0.9
log_every = 1
evaluate_every = 5
save_every = 1
keep = 9
"""


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("settings") / "tiny.toml"
    path.write_text(TINY)
    return path


@pytest.fixture(scope="module")
def whole(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of five steps without a break."""
    out = tmp_path_factory.mktemp("runs") / "whole"
    assert train_vq(load_config(tiny, VQTrainConfig), out).step == 5
    return out


def saved(out: Path) -> dict[str, torch.Tensor]:
    save = max((out / "checkpoints").iterdir())
    files = [*sorted(save.glob("*.safetensors")), out / "model/model.safetensors"]
    return {f"{file.name}:{name}": tensor for file in files for name, tensor in load_file(file).items()}


def assert_same(one: Path, other: Path) -> None:
    mine, theirs = saved(one), saved(other)
    assert mine.keys() == theirs.keys()
    assert [name for name in mine if not torch.equal(mine[name], theirs[name])] == []


def lines(out: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def start(arguments: list[str], **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "toklip_core", "train", "vq", *arguments],
        env=os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())} | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.slow
def test_losses_set_in_at_their_steps(whole: Path):
    steps = [{name for name in line if name.startswith("loss/")} for line in lines(whole)[:5]]
    plain = {"loss/reconstruction"}
    quantized = plain | {"loss/codebook", "loss/entropy"}
    everything = quantized | {"loss/generator", "loss/discriminator", "loss/lecam"}
    assert steps == [plain, quantized, everything, everything, everything]


@pytest.mark.slow
def test_killed_and_resumed_is_uninterrupted_bit_for_bit(tmp_path: Path, tiny: Path, whole: Path):
    out = tmp_path / "run"
    process = start([str(tiny), "--out", str(out)])
    while not list((out / "checkpoints").glob("step-*2")) and process.poll() is None:
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    result = CliRunner().invoke(cli, ["train", "vq", str(tiny), "--out", str(out), "--json"], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert report["step"] == 5 and report["signal"] == 0 and report["figures"].keys() >= {"psnr", "codebook_used"}
    assert_same(out, whole)


def train_with_restarts(config: VQTrainConfig, out: Path) -> None:
    """Train as the command does, but restart codes every second step instead of every hundredth."""
    task = VQTask(config)
    for restart in task.model.restarts:
        restart.period = 2
    assert fit(task, config.run, out).step == 5


@pytest.mark.slow
def test_each_save_is_a_place_to_resume_from(tmp_path: Path, tiny: Path):
    """Before, at and after the steps where quantization and discriminator set in, and where codes restart."""
    config, whole = load_config(tiny, VQTrainConfig, ["model.codebook_size=512"]), tmp_path / "whole"
    train_with_restarts(config, whole)
    counts = load_file(whole / "checkpoints/step-00000003/model.safetensors")["restarts.0.counts"]
    assert 50 < (counts > 0).sum() < 462, "the next step restarts some codes, and keeps those that were in use"
    for step in range(1, 5):
        out = tmp_path / str(step)
        (out / "checkpoints").mkdir(parents=True)
        (out / "run.json").write_bytes((whole / "run.json").read_bytes())
        (out / f"checkpoints/step-{step:08d}").symlink_to(whole / f"checkpoints/step-{step:08d}")
        train_with_restarts(config, out)
        assert_same(out, whole)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["vq", "residual"])
def test_averages_begin_anew_where_codes_start_and_restart(tmp_path: Path, tiny: Path, kind: str):
    """Codes start in the second step and restart in the fourth; an average so slow would still be of random values."""
    config = other(tiny, kind, "model.codebook_size=512", "run.ema_decay=0.9999")
    train_with_restarts(config, tmp_path)
    equal = []
    for step in (1, 2, 3, 4):
        save = tmp_path / f"checkpoints/step-{step:08d}"
        weights, average = load_file(save / "model.safetensors"), load_file(save / "average.safetensors")
        name = next(name for name in average if "codebook" in name)
        equal.append((weights["vqgan." + name] == average[name]).all(-1).float().mean().item())
    started, moved, restarted = equal[1:]
    assert started == 1 and moved < 0.9 and moved < restarted < 1


#: Quantizers, with what each needs in place of TINY's codebook.
OTHERS = {
    "vq": (),
    "ibq": ("model.quantizer=ibq",),
    "lfq": ("model.quantizer=lfq", "model.codebook_size=none", "model.codebook_dim=28", "losses.restart_until=0"),
    "fsq": (
        "model.quantizer=fsq", "model.codebook_size=none", "model.codebook_dim=none",
        "model.values_per_channel=[8, 5, 5]", "losses.restart_until=0", "losses.entropy_weight=0",
    ),
    "residual": ("model.quantizer=residual", "model.ids_per_position=4", "losses.entropy_weight=0"),
}  # fmt: skip


def other(tiny: Path, kind: str, *changes: str) -> VQTrainConfig:
    """Settings of TINY with a quantizer of another kind; "none" leaves a setting out."""
    values = tomllib.loads(tiny.read_text())
    for change in (*OTHERS[kind], *changes):
        (table, name), _, value = *[change.partition("=")[0].split(".")], *change.partition("=")[1:]
        values[table][name] = None if value == "none" else value if value.isalpha() else json.loads(value)
    return VQTrainConfig.model_validate(values)


@pytest.mark.slow
@pytest.mark.parametrize("kind", [kind for kind in OTHERS if kind != "vq"])
def test_a_run_with_another_quantizer_resumes_bit_for_bit(tmp_path: Path, tiny: Path, kind: str):
    whole, out = tmp_path / "whole", tmp_path / "run"
    changes = ("losses.restart_until=0",) if kind != "residual" else ()
    train_vq(other(tiny, kind, *changes), whole)
    for step in (1, 3):
        (out / "checkpoints").mkdir(parents=True)
        (out / "run.json").write_bytes((whole / "run.json").read_bytes())
        shutil.copytree(whole / f"checkpoints/step-{step:08d}", out / f"checkpoints/step-{step:08d}")
        train_vq(other(tiny, kind, *changes), out)
        assert_same(out, whole)
        shutil.rmtree(out)


@pytest.mark.slow
@pytest.mark.parametrize("kind", [kind for kind in OTHERS if kind != "vq"])
def test_a_tokenizer_with_another_quantizer_keeps_the_contract_and_is_used_by_the_commands(
    tmp_path: Path, tiny: Path, kind: str
):
    """The whole path of an FSQ tokenizer, of one with four residual levels, and of the others, of Scenes."""
    settings = other(tiny, kind, "run.steps=4", "losses.discriminator_start=9")
    report = train_vq(settings, tmp_path / "run")
    tokenizer = load_tokenizer("vqgan", tmp_path / "run/model")
    assert len(tokenizer.codebook_sizes) == (4 if kind == "residual" else 1)
    assert report.figures.keys() >= ({"codebook_used_3"} if kind == "residual" else {"codebook_used"})
    for check in tokenizer_checks():
        check(tokenizer)
    pixels = held_out_pictures(HeldOutFolder(scenes=6), size=32)
    rebuilt = tokenizer.decode(tokenizer.encode(pixels)).clamp(-1, 1)
    psnr = -10 * ((rebuilt - pixels) / 2).square().mean((1, 2, 3)).log10().mean()
    assert psnr.item() == pytest.approx(report.figures["psnr"], abs=0.01)
    Image.fromarray(np.full((40, 40, 3), 90, np.uint8)).save(tmp_path / "grey.png")
    chosen = ["--tokenizer", "vqgan", "--weights", tmp_path / "run/model"]
    for words in (
        ["encode", tmp_path / "grey.png", *chosen, "--size", "32", "--out", tmp_path / "store"],
        ["decode", tmp_path / "store", "--weights", tmp_path / "run/model", "--out", tmp_path / "pictures"],
    ):
        result = CliRunner().invoke(cli, list(map(str, words)), catch_exceptions=False)
        assert result.exit_code == 0, result.output
    assert len(list((tmp_path / "pictures").rglob("*.png"))) == 1


@pytest.mark.slow
def test_the_levels_of_a_residual_codebook_start_from_what_is_left(tiny: Path):
    config = other(tiny, "residual")
    vqgan = VQGAN(config.model)
    samples = open_sources(config.data, size=32, seed=0)
    start_codebook(vqgan, samples, config)
    latents = vqgan.latents(torch.stack([samples[0, i] for i in range(30)])).movedim(1, -1).flatten(0, 2)
    errors = []
    for level in vqgan.codebooks():
        assert torch.cdist(level.weight, latents).min(-1).values.max() < 1e-3
        latents = latents - level.weight[level.nearest(latents)]
        errors.append(latents.square().mean().item())
    assert errors == sorted(errors, reverse=True) and errors[3] < 0.3 * errors[0]


@pytest.mark.slow
def test_unused_codes_of_every_level_restart(tiny: Path):
    config = other(tiny, "residual", "losses.discriminator_weight=0")
    torch.manual_seed(0)
    training = VQTask(config).model
    for restart in training.restarts:
        restart.period = 2
    before = [level.weight.detach().clone() for level in training.vqgan.codebooks()]
    pixels = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    training(pixels, 2)
    used = [restart.counts > 0 for restart in training.restarts]
    training(pixels, 3)
    for level, old, kept in zip(training.vqgan.codebooks(), before, used, strict=True):
        assert 0 < kept.sum() < 32
        assert torch.equal((level.weight == old).all(-1), kept)


@pytest.mark.parametrize(
    ("kind", "change", "says"),
    [
        ("fsq", "losses.entropy_weight=0.1", "losses.entropy_weight has no effect with the quantizer 'fsq'; set it"),
        ("lfq", "losses.restart_until=9", "losses.restart_until has no effect with the quantizer 'lfq'; set it to 0"),
        ("residual", "losses.restart_until=1", r"restart_until \(1\) must be above quantize_from \(1\)"),
        ("residual", "losses.discriminator_layers=4", "of 4 layers needs pictures of 48 pixels, and image_size is 32"),
        ("residual", "losses.discriminator_channels=24", "channels 24, whose layers cannot be split into 32 groups"),
    ],
)
def test_losses_without_effect_are_refused(tiny: Path, kind: str, change: str, says: str):
    with pytest.raises(ValueError, match=says):
        other(tiny, kind, change)


@pytest.mark.parametrize(
    ("recipe", "change", "says"),
    [
        *[
            ("scenes-tiny", f"losses.{change}", "without a discriminator; change losses.discriminator_weight, or set")
            for change in (
                "discriminator_loss_weight=2", "discriminator_start=2", "discriminator_channels=8", "lecam_weight=1",
                "discriminator_layers=2", "discriminator_norm=group", "generator_loss=non-saturating",
                "clip_discriminator=false",
            )
        ],
        ("scenes-tiny", "losses.perceptual_weight=2", "without a perceptual loss; change losses.perceptual, or"),
        ("scenes-residual", "losses.entropy_temperature=2", "with entropy_weight 0; change losses.entropy_weight, or"),
        ("scenes-fsq", "losses.codebook_weight=2", "with the quantizer 'fsq'; change model.quantizer, or set it to"),
        ("scenes-fsq", "losses.beta=2", "with the quantizer 'fsq'; change model.quantizer, or set it to 0.25"),
        ("scenes-fsq", "losses.beta_placement=code", "with the quantizer 'fsq'; change model.quantizer, or set it to"),
    ],
)  # fmt: skip
def test_a_typed_setting_of_a_loss_that_is_off_is_refused(recipe: str, change: str, says: str):
    with pytest.raises(ValueError, match=f"{change.partition('=')[0]} has no effect {says}"):
        load_config(recipe, VQTrainConfig, [change], RECIPES)


@pytest.mark.parametrize("recipe", ["llamagen-vq16-imagenet", "ibq-16384-imagenet"])
@pytest.mark.parametrize(
    "changes",
    [
        ["discriminator_weight=0"], ["perceptual=none"], ["codebook_weight=0"], ["entropy_weight=0"],
        ["discriminator_weight=0", "discriminator_start=9"], ["entropy_weight=0", "entropy_temperature=2"],
    ],
)  # fmt: skip
def test_a_loss_of_a_recipe_is_turned_off_by_its_weight_alone(recipe: str, changes: list[str]):
    """Whatever the recipe says about it, or a sweep over the weight; and the settings can be read again."""
    config = load_config(recipe, VQTrainConfig, [f"losses.{change}" for change in changes], RECIPES)
    assert VQTrainConfig.model_validate(config.model_dump()) == config


@pytest.mark.parametrize("recipe", recipe_names(RECIPES))
def test_a_file_that_lists_every_setting_of_a_recipe_is_accepted(recipe: str):
    settings = load_config(recipe, VQTrainConfig, [], RECIPES)
    assert VQTrainConfig.model_validate(settings.model_dump()) == settings


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["vq", "residual"])
def test_two_processes_agree_with_one_within_rounding(tmp_path: Path, tiny: Path, kind: str):
    """Losses, gradients and averages of gradients, with entropy, LeCam and discriminator on.

    At a small learning rate: Adam's first steps are as large for a gradient of 1e-9 as for one of 1, and would
    turn the last bit of a sum into a step of full size.
    """
    one, two = tmp_path / "one", tmp_path / "two"
    changes = [*OTHERS[kind], "run.learning_rate=1e-6"]
    train_vq(load_config(tiny, VQTrainConfig, changes), one)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": "1"}
    arguments = [str(tiny), "--out", str(two), *(word for change in changes for word in ("--set", change))]
    pair = [start(arguments, RANK=rank, LOCAL_RANK=rank, **shared) for rank in "01"]
    outputs = [process.communicate(timeout=300) for process in pair]
    assert [process.returncode for process in pair] == [0, 0], outputs
    assert "psnr" in outputs[0][0] and not outputs[1][0], "the first process alone speaks"
    for mine, theirs in zip(lines(one), lines(two), strict=True):
        mine.pop("steps_per_second", None), theirs.pop("steps_per_second", None)
        assert theirs == pytest.approx(mine, rel=1e-4, abs=1e-6)
    mine, theirs = saved(one), saved(two)
    assert mine.keys() == theirs.keys()
    for name in mine:
        torch.testing.assert_close(theirs[name].float(), mine[name].float(), **closeness(name), msg=name)


def closeness(name: str) -> dict[str, float]:
    """How close a tensor of :func:`saved` is: five steps of Adam at 1e-6 move a weight by up to 5e-6."""
    # The norm after this layer has one channel a group, which cancels the bias: rounding alone moves it.
    if name.startswith("optimizer.") or name.endswith("discriminator.stack.2.bias"):
        return {"rtol": 1e-3, "atol": 1e-5}
    if "codebook" in name:  # A row starts, and starts again, as a latent, which differs by rounding.
        return {"rtol": 1e-6, "atol": 1e-6}
    return {"rtol": 2e-7, "atol": 1e-7}


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["vq", "fsq", "residual"])
def test_thirty_steps_lower_the_loss_and_the_result_is_a_tokenizer(tmp_path: Path, tiny: Path, kind: str):
    run = {"steps": 30, "batch_size": 16, "save_every": 30, "evaluate_every": 30, "learning_rate": 3e-3}
    late = {"losses.quantize_from": 20, "losses.restart_until": 0, "losses.discriminator_start": 99,
            "model.patch_size": 2, "model.channels": 16}
    settings = {f"run.{key}": value for key, value in run.items()} | late | {"run.warmup_steps": 5}
    overrides = [f"{key}={value}" for key, value in settings.items()]
    report = train_vq(other(tiny, kind, *overrides), tmp_path / "run")
    losses = [line["loss/reconstruction"] for line in lines(tmp_path / "run") if "loss/reconstruction" in line]
    assert np.mean(losses[-5:]) < 0.6 * np.mean(losses[:5])
    tokenizer = load_tokenizer("vqgan", tmp_path / "run/model")
    pixels = held_out_pictures(HeldOutFolder(scenes=6), size=32)
    rebuilt = tokenizer.decode(tokenizer.encode(pixels)).clamp(-1, 1)
    psnr = -10 * ((rebuilt - pixels) / 2).square().mean((1, 2, 3)).log10().mean()
    assert psnr.item() == pytest.approx(report.figures["psnr"], abs=0.01)
    assert report.figures.get("codebook_used", report.figures.get("codebook_used_3")) > 0


def test_held_out_pictures_that_cannot_be_read_are_named_before_the_first_step(tmp_path: Path, tiny: Path):
    (tmp_path / "held-out").mkdir()
    for number in range(4):
        Image.new("RGB", (32, 32), (number, 0, 0)).save(tmp_path / f"held-out/{number}.png")
    (tmp_path / "held-out/3.png").write_bytes(b"\x89PNG")
    settings = load_config(tiny, VQTrainConfig, ["held_out.scenes=0", f"held_out.folder={tmp_path / 'held-out'}"])
    with pytest.raises(ValueError, match=r"^1 of 4 held-out pictures cannot be read, the first is .*3\.png: "):
        train_vq(settings, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    few = HeldOutFolder(folder=tmp_path / "held-out", pictures=2)
    with pytest.raises(ValueError, match=r"^1 of 2 held-out"):  # the first and the last
        held_out_pictures(few, size=32)
    (tmp_path / "held-out/3.png").unlink()
    assert held_out_pictures(few, size=32).shape == (2, 3, 32, 32)
    with pytest.raises(ValueError, match=r"32 x 32 pixels are more than the limit of 1000; raise max_pixels"):
        held_out_pictures(few.model_copy(update={"max_pixels": 1000}), size=32)


def test_packed_objects_are_those_that_were_packed(tmp_path: Path):
    for name in ("a.png", "b/ä.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (8, 8)).save(tmp_path / name)
    found = list(entries(find_pictures([tmp_path, "scenes:train?count=2"])))
    assert len(found) == 4 and list(samples._PickleArray(iter(found))) == found and len(samples._PickleArray([])) == 0


#: Weight of a loss -> the losses that it weighs.
WEIGHTS = {
    "reconstruction_weight": {"reconstruction"},
    "perceptual_weight": {"perceptual"},
    "codebook_weight": {"codebook"},
    "entropy_weight": {"entropy"},
    "discriminator_weight": {"generator"},
    "discriminator_loss_weight": {"discriminator", "lecam"},
    "lecam_weight": {"lecam"},
}


class Distance(torch.nn.Module):
    """A stand-in for LPIPS, whose weights are not there: mean distances (B,) of pictures."""

    def forward(self, pictures: torch.Tensor, pixels: torch.Tensor) -> torch.Tensor:
        return (pictures - pixels).abs().mean((1, 2, 3))


def test_each_weight_is_a_factor_on_its_losses_alone(tiny: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("toklip_vq.training.task.load_lpips", lambda network: Distance())
    pixels = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1

    def losses(**weights: float) -> dict[str, float]:
        changes = [f"losses.{name}={weight}" for name, weight in (dict.fromkeys(WEIGHTS, 0.5) | weights).items()]
        config = load_config(tiny, VQTrainConfig, ["losses.perceptual=squeeze", *changes])
        torch.manual_seed(0)
        found = VQTraining(VQGAN(config.model), config.losses)(pixels, 3).losses
        return {name: loss.item() for name, loss in found.items()}

    plain = losses()
    assert plain.keys() == set().union(*WEIGHTS.values()) and all(map(abs, plain.values()))
    for name, weighed in WEIGHTS.items():
        expected = {loss: value * (3 if loss in weighed else 1) for loss, value in plain.items()}
        assert losses(**{name: 1.5}) == pytest.approx(expected, rel=1e-5), name


@pytest.mark.parametrize(("clip", "limit"), [("true", 1.0), ("false", 0.0)])
def test_the_discriminator_is_clipped_by_itself_or_not_at_all(tiny: Path, clip: str, limit: float):
    groups = VQTask(load_config(tiny, VQTrainConfig, [f"losses.clip_discriminator={clip}"])).parameter_groups()
    assert [(group.clip_with, group.max_grad_norm) for group in groups] == [("vqgan", None), ("discriminator", limit)]


def test_the_generator_moves_the_tokenizer_alone_and_the_discriminator_itself_alone(tiny: Path):
    task = VQTask(load_config(tiny, VQTrainConfig))
    model, groups = task.model, task.parameter_groups()
    losses = model(torch.rand(2, 3, 32, 32) * 2 - 1, 3).losses
    weights = [[weight for name, weight in model.named_parameters() if name in group.names] for group in groups]

    def reaches(loss: torch.Tensor, group: list[torch.nn.Parameter]) -> bool:
        return any(g is not None for g in torch.autograd.grad(loss, group, retain_graph=True, allow_unused=True))

    assert [reaches(losses["generator"], group) for group in weights] == [True, False]
    assert [reaches(losses["discriminator"] + losses["lecam"], group) for group in weights] == [False, True]


@pytest.mark.slow
def test_the_codebook_starts_from_latents(tiny: Path):
    config = load_config(tiny, VQTrainConfig)
    vqgan = VQGAN(config.model)
    samples = open_sources(config.data, size=32, seed=0)
    start_codebook(vqgan, samples, config)
    rows = torch.nn.functional.normalize(vqgan.latents(torch.stack([samples[0, i] for i in range(30)])), dim=1)
    distance = torch.cdist(vqgan.codebook.weight, rows.movedim(1, -1).flatten(0, 2)).min(-1).values
    assert distance.max() < 1e-3


def test_a_collapsed_codebook_is_warned_of(tiny: Path, caplog: pytest.LogCaptureFixture):
    vqgan = VQGAN(load_config(tiny, VQTrainConfig).model)
    torch.nn.init.zeros_(vqgan.quant_conv.weight)
    with torch.no_grad():
        evaluation = evaluate_vqgan(vqgan, torch.zeros(4, 3, 32, 32), batch_size=2)
    assert evaluation.figures["codebook_perplexity"] == pytest.approx(1.0)
    assert "codebook collapse: 1 of 32 codes in use on 4 held-out pictures" in caplog.text
    assert evaluation.pictures["reconstructions"].shape == (2, 3, 32, 64)


#: The settings of the published runs: SEED-Voken's and LlamaGen's own configurations.
PUBLISHED_RUNS = {
    "llamagen-vq16-imagenet": {
        "learning_rate": 1e-4, "betas": (0.9, 0.95), "batch_size": 128, "max_grad_norm": 1.0, "weight_decay": 0.0,
        "precision": "bf16",
    },
    "ibq-16384-imagenet": {
        "learning_rate": 1e-4, "betas": (0.5, 0.9), "batch_size": 256, "milestones_in_epochs": (250, 300),
    },
}  # fmt: skip


@pytest.mark.parametrize("name", PUBLISHED_RUNS)
def test_recipes_have_the_published_settings(name: str):
    run = load_config(name, VQTrainConfig, ["data.0.folder=/pictures"], RECIPES).run
    wanted = dict(PUBLISHED_RUNS[name])
    epochs = wanted.pop("milestones_in_epochs", ())
    assert {key: getattr(run, key) for key in wanted} == wanted
    assert [round(step * run.batch_size / 1_281_167) for step in run.milestones] == list(epochs)


def test_pictures_must_fit_the_patches_too():
    with pytest.raises(ValueError, match=r"image_size \(60\) must be a multiple of the model's downsampling, 8"):
        load_config("scenes-tiny", VQTrainConfig, ["image_size=60"], RECIPES)


#: Number of weights of each recipe's tokenizer; that of LlamaGen is that of the published file.
SIZES = {
    "ibq-16384-imagenet": 110_982_019,
    "llamagen-vq16-imagenet": 71_883_403,
    "scenes-fsq": 1_463_572,
    "scenes-residual": 1_472_152,
    "scenes-tiny": 3_640_120,
}


def test_every_recipe_parses_and_builds_a_tokenizer_of_its_size():
    found = {}
    for name in recipe_names(RECIPES):
        config = load_config(name, VQTrainConfig, ["data.0.folder=/pictures"] if "imagenet" in name else [], RECIPES)
        with torch.device("meta"):
            found[name] = sum(weight.numel() for weight in VQGAN(config.model).parameters())
    assert found == SIZES


@pytest.mark.slow
def test_samples_depend_on_seed_epoch_and_index_alone():
    sources = [ScenesSource(kind="scenes", count=3), PhotographsSource(kind="photographs", count=2)]
    samples = [open_sources(sources, size=24, seed=seed) for seed in (1, 1, 2)]
    keys = [(epoch, index) for epoch in (0, 1) for index in range(5)]
    pictures = [[mixture[key] for key in keys] for mixture in samples]
    assert all(torch.equal(one, other) for one, other in zip(*pictures[:2], strict=True))
    assert not torch.equal(pictures[0][4], pictures[2][4]), "another seed crops elsewhere"
    assert len({picture.numpy().tobytes() for picture in pictures[0]}) == 10, "another epoch draws anew"
    assert all(picture.shape == (3, 24, 24) and -1 <= picture.min() < picture.max() <= 1 for picture in pictures[0])


def test_another_seed_is_other_crops_other_weights_and_other_first_codes(tiny: Path):
    configs = [load_config(tiny, VQTrainConfig, [f"run.seed={seed}"]) for seed in (0, 0, 1)]
    tasks = [VQTask(config) for config in configs]
    crops = [task.samples[0, 25].tolist() for task in tasks]
    weights = [weights_checksum(task.model) for task in tasks]
    codes = []
    for config in configs:
        start_codebook(tasks[0].model.vqgan, tasks[0].samples, config)
        codes.append(tasks[0].model.vqgan.codebook.weight.tolist())
    for one, again, other in (crops, weights, codes):
        assert one == again != other


def test_a_folder_is_cropped_and_its_broken_pictures_are_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    gradient = np.linspace(0, 255, 60, dtype=np.uint8)[None, :, None].repeat(40, 0).repeat(3, 2)
    Image.fromarray(gradient).save(tmp_path / "wide.png")
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8\xff not a picture")
    whole = FolderSource(kind="folder", folder=tmp_path, smallest_crop_side=1.0, flip=False)
    crops = [open_sources([whole], size=20, seed=0)[epoch, index] for epoch in range(4) for index in range(2)]
    assert "broken.jpg: no picture in a format" in caplog.text
    for crop in crops:
        slopes = crop[0].diff(dim=-1)
        assert slopes.min() >= 0 and slopes.mean() * 19 == pytest.approx(2 * 38 / 59, abs=0.05), "40 of 60 columns"
    flipped = FolderSource(kind="folder", folder=tmp_path, smallest_crop_side=0.5)
    slopes = [open_sources([flipped], size=20, seed=0)[epoch, 1][0].diff(dim=-1).mean().item() for epoch in range(12)]
    assert min(slopes) < 0 < max(slopes)
    sides = [abs(slope) * 19 / (2 * 38 / 59) for slope in slopes]  # of the short side
    assert 0.45 < min(sides) < 0.6 and 0.9 < max(sides) < 1.05


def test_a_folder_counts_as_often_as_it_is_told(tmp_path: Path):
    for value in (0, 255):
        Image.new("RGB", (30, 30), (value,) * 3).save(tmp_path / f"{value}.png")
    mixture = open_sources([FolderSource(kind="folder", folder=tmp_path, count=3)], size=16, seed=0)
    values = [mixture[epoch, index].mean().item() for epoch in (0, 1) for index in range(3)]
    assert values == [-1, 1, -1, 1, -1, 1]


def test_the_command_lists_recipes_and_explains_what_it_needs():
    run = CliRunner().invoke
    listed = run(cli, ["train", "vq", "--list"])
    assert listed.exit_code == 0 and "scenes-tiny" in listed.stdout
    for arguments, message in [
        (["scenes-tniy", "--out", "x"], "Did you mean 'scenes-tiny'?"),
        (["scenes-tiny", "--out", "x", "--set", "run.stpes=1"], "run.stpes is not a setting; did you mean 'steps'?"),
        (["scenes-tiny"], "--out FOLDER"),
        (["llamagen-vq16-imagenet", "--out", "x"], "imagenet/train"),
    ]:
        result = run(cli, ["train", "vq", *arguments])
        assert result.exit_code in (1, 2) and message in result.output, result.output


def test_what_a_short_run_does_not_reach_is_said(tiny: Path, caplog: pytest.LogCaptureFixture):
    VQTask(load_config(tiny, VQTrainConfig, ["run.steps=1"]))
    assert "losses.quantize_from (1) is not reached in 1 steps: the exported codes are random" in caplog.text
    assert "losses.discriminator_start (2) is not reached in 1 steps" in caplog.text


def test_the_codebook_starts_once_in_a_step_of_several_micro_batches(tiny: Path, monkeypatch: pytest.MonkeyPatch):
    started: list[VQGAN] = []
    monkeypatch.setattr("toklip_vq.training.task.start_codebook", lambda vqgan, *_: started.append(vqgan))
    task = VQTask(load_config(tiny, VQTrainConfig, ["run.accumulate=2"]))
    for _ in range(2):
        task.objective(task.model, torch.zeros(2, 3, 32, 32), 1)
    assert len(started) == 1


def test_held_out_pictures_are_spread_over_the_folder(tmp_path: Path):
    for level in range(5):
        Image.new("RGB", (8, 8), (50 * level,) * 3).save(tmp_path / f"{level}.png")
    pixels = held_out_pictures(HeldOutFolder(folder=tmp_path, pictures=3), size=8)
    assert pixels is not None
    levels = [round(float((picture.mean() + 1) * 127.5)) for picture in pixels]
    assert levels == [0, 100, 200]
