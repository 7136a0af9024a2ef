"""Training a teacher: exact resume, its words, weight decay, export, and the command."""

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file
from toklip_core.captioned import CaptionedSamples
from toklip_core.cli import cli
from toklip_core.config import recipe_names, validated
from toklip_core.model import CLIP, CLIPConfig, TokLIP, TrunkConfig, VisionConfig, build_vision_tower, load_clip
from toklip_core.scenes import Scenes, write_scenes
from toklip_core.tasks import (
    TEACHER_RECIPES,
    EncoderTrainConfig,
    TeacherTask,
    TeacherTrainConfig,
    TeacherTraining,
    evaluate_matcher,
    held_out_set,
    teacher as teaching,
    text_tokenizer,
    train_encoder,
    train_teacher,
)
from toklip_core.training import FitReport, parameter_groups
from toklip_core.weights import weights_checksum
from torch import nn

from tests.core.conftest import picture
from tests.support.encoding import encode_with

SCENES = {"kind": "scenes", "count": 40, "objects": 1}


def settings_of(*data: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """A table among the changes replaces the keys that it has."""
    values: dict[str, Any] = {
        "image_size": 32,
        "vision": {"patch_size": 8, "trunk": {"width": 32, "depth": 1, "heads": 2}},
        "text": {"width": 16, "heads": 2, "layers": 1, "context_length": 16},
        "data": list(data or [SCENES]),
        "run": {"steps": 4, "batch_size": 8, "learning_rate": 1e-3, "log_every": 1, "weight_decay": 0.1},
    }
    for name, value in changes.items():
        values[name] = values[name] | value if isinstance(values.get(name), dict) else value
    return values


def config(*data: dict[str, Any], **changes: Any) -> TeacherTrainConfig:
    return validated(TeacherTrainConfig, settings_of(*data, **changes), "mine.toml")


def samples(settings: TeacherTrainConfig) -> CaptionedSamples:
    return CaptionedSamples(settings.data, image_size=32, resize="crop", seed=0)


def stopped_after(steps: int, settings: TeacherTrainConfig, out: Path) -> FitReport:
    """Train; SIGTERM comes in the step of this number."""
    clamp, done = teaching.clamp_logit_scale, []

    def stopping(model: nn.Module) -> None:
        clamp(model)
        done.append(model)
        if len(done) == steps:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(teaching, "clamp_logit_scale", stopping)
        return train_teacher(settings, out)


@pytest.mark.slow
@pytest.mark.parametrize("changes", [{}, {"contrast": "sigmoid", "run": {"accumulate": 2, "workers": 1}}])
def test_steps_are_steps_then_resume_then_steps_bit_for_bit(tmp_path: Path, changes: dict[str, Any]):
    settings = config(held_out={"scenes": 4}, **changes)
    whole = train_teacher(settings, tmp_path / "whole")
    assert stopped_after(2, settings, tmp_path / "parts")[::2] == (2, signal.SIGTERM)
    assert train_teacher(settings, tmp_path / "parts") == whole
    for file in ("checkpoints/step-00000004/model.safetensors", "checkpoints/step-00000004/optimizer.safetensors"):
        assert (tmp_path / "parts" / file).read_bytes() == (tmp_path / "whole" / file).read_bytes()
    for file in ("config.json", "model.safetensors", "tokenizer.json"):
        assert (tmp_path / "parts/model" / file).read_bytes() == (tmp_path / "whole/model" / file).read_bytes()


def test_the_exported_teacher_is_the_one_that_was_evaluated(tmp_path: Path):
    settings = config(held_out={"scenes": 12})
    report = train_teacher(settings, tmp_path / "run")
    held_out = held_out_set(settings.held_out, image_size=32)
    assert held_out is not None
    assert evaluate_matcher(load_clip(tmp_path / "run/model"), held_out).figures == report.figures
    assert report.figures.keys() == {"zero_shot_top1", "image_to_text_r1", "text_to_image_r1"}


@pytest.mark.slow
def test_it_learns(tmp_path: Path):
    write_scenes(Scenes(16, size=32, objects=1), tmp_path / "pictures")
    run = {"steps": 30, "batch_size": 16, "log_every": 10, "warmup_steps": 5}
    source = {"kind": "pictures", "inputs": [str(tmp_path / "pictures")]}
    train_teacher(config(source, vision={"stem": [8, 16, 32]}, run=run), tmp_path / "run")
    first, *_, final = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert final["loss/contrast"] < 0.3 < first["loss/contrast"]


def test_another_seed_is_other_captions_and_other_weights():
    tasks = [TeacherTask(config(run={"seed": seed})) for seed in (0, 0, 1)]
    captions = [[task.samples[0, place]["caption"] for place in range(40)] for task in tasks]
    weights = [weights_checksum(task.model.vision) for task in tasks]
    for one, again, other in (captions, weights):
        assert one == again != other


def test_pictures_are_cropped_as_the_settings_say(tmp_path: Path):
    for number in range(2):
        picture(number).save(tmp_path / f"{number}.png")
        (tmp_path / f"{number}.txt").write_text("a red sofa")
    task = TeacherTask(config({"kind": "pictures", "inputs": [str(tmp_path)]}, smallest_crop_area=0.5))
    crops = CaptionedSamples(task.config.data, image_size=32, resize="crop", seed=0, smallest_crop_area=0.5)
    whole = samples(task.config)
    for place in range(2):
        assert torch.equal(task.samples[0, place]["rgb"], crops[0, place]["rgb"])
        assert not torch.equal(task.samples[0, place]["rgb"], whole[0, place]["rgb"])


def test_an_encoder_can_be_taught_by_it(tmp_path: Path, toy: Path):
    stem = {"stem": [8, 16, 32], "stem_blocks": 1}
    train_teacher(config(vision=stem, run={"steps": 1}), tmp_path / "teacher")
    values = {
        "tokenizer": "mean-colour",
        "teacher": str(tmp_path / "teacher/model"),
        "image_size": 32,
        "data": [SCENES],
        "run": {"steps": 1, "batch_size": 4, "learning_rate": 1e-3},
    }
    train_encoder(EncoderTrainConfig.model_validate(values), tmp_path / "run")
    model, teacher = TokLIP.from_pretrained(tmp_path / "run/model"), load_clip(tmp_path / "teacher/model")
    assert torch.equal(model.text_features(["a red circle"]), teacher.text_features(["a red circle"]))


def test_its_words_are_of_all_sources(tmp_path: Path):
    for number, words in enumerate(["some rare words", "other ones"]):
        write_scenes(Scenes(3, size=16, seed=number), tmp_path / str(number))
        for file in (tmp_path / str(number)).glob("*.txt"):
            file.write_text(words)
    settings = config(*({"kind": "pictures", "inputs": [str(tmp_path / name)]} for name in "01"), text={"captions": 2})
    tokenizer = text_tokenizer(settings, samples(settings))
    assert tokenizer.config.vocabulary == 3 + 5
    assert (tokenizer(["some other words"])[0, :4] > 1).all() and (tokenizer(["none of it"])[0, :3] == 1).all()


def test_of_a_table_no_more_captions_are_taken_than_are_asked_for(tmp_path: Path):
    write_scenes(Scenes(1, size=16), tmp_path)
    picture = next(tmp_path.glob("*.png")).name
    rows = [{"image": picture, "caption": f"word{number:03}"} for number in range(100)]
    (tmp_path / "table.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = config({"kind": "table", "table": str(tmp_path / "table.jsonl")}, text={"captions": 10})
    tokenizer = text_tokenizer(settings, samples(settings))
    assert tokenizer.config.vocabulary == 3 + 10
    assert tokenizer(["word000 word050"])[0, :2].min() > 2, "they are from all over it"


def test_a_token_store_is_refused(tmp_path: Path, toy: Path):
    write_scenes(Scenes(2, size=32), tmp_path / "pictures")
    encode_with([tmp_path / "pictures"], tmp_path / "store", tokenizer="mean-colour", image_size=32)
    with pytest.raises(ValueError, match=r"a teacher sees pixels, and the data is a token store; read the pictures"):
        train_teacher(config({"kind": "store", "store": str(tmp_path / "store")}), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image_size": 36}, r"image_size \(36\) must be a multiple of vision.patch_size \(8\)"),
        ({"text": {"heads": 3}}, r"text: width \(16\) must be a multiple of heads \(3\)"),
        ({"vision": {"trunk": {"width": 32, "depth": 1, "heads": 5}}}, r"width \(32\) must be a multiple of heads"),
        ({"run": {"batch_size": 1}}, r"with run.batch_size 1 there is no other pair .* softmax is always 0; take 2 or"),
        ({"smallest_corp": 0.9}, r"smallest_corp is not a setting; did you mean 'smallest_crop_area'\?"),
    ],
)
def test_settings_that_do_not_fit_are_one_line(changes: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message) as raised:
        config(**changes)
    assert "\n" not in str(raised.value)


def test_one_pair_at_a_time_is_enough_for_a_sigmoid_and_two_in_a_micro_batch_each_for_a_softmax():
    assert config(contrast="sigmoid", run={"batch_size": 1}).run.batch_size == 1
    assert config(run={"batch_size": 2, "accumulate": 2}).run.accumulate == 2


@pytest.fixture
def clip() -> CLIP:
    """Its normalisation is not the usual one."""
    settings = config(vision={"mean": (0.4, 0.5, 0.6), "std": (0.2, 0.3, 0.4)})
    tokenizer = text_tokenizer(settings, samples(settings))
    torch.manual_seed(0)
    return CLIP(CLIPConfig(image_size=32, vision=settings.vision, text=tokenizer.config), tokenizer)


def test_what_is_trained_is_what_is_exported(clip: CLIP):
    training = TeacherTraining(clip, "softmax").eval()
    pixels, captions = torch.rand(3, 3, 32, 32) * 2 - 1, ["a red circle", "a star", "a blue ring"]
    features = training(pixels, clip.text.ids(captions)).features
    assert torch.equal(features["image"], training.assemble().image_features(pixels))
    assert torch.equal(features["text"], training.assemble().text_features(captions))
    assert not torch.allclose(pixels, clip._normalised(pixels), atol=0.1)


@pytest.mark.slow
@pytest.mark.parametrize("contrast", ["softmax", "sigmoid"])
def test_the_bias_is_the_sigmoids_alone(tmp_path: Path, clip: CLIP, contrast: str):
    train_teacher(config(contrast=contrast), tmp_path / "run")
    saved = load_file(tmp_path / "run/checkpoints/step-00000004/model.safetensors")
    assert ("logit_bias" in saved) == (contrast == "sigmoid")
    assert (load_clip(tmp_path / "run/model").logit_bias == -10).item() == (contrast == "softmax")


@pytest.mark.parametrize("stem", [{}, {"stem": [8, 16, 32]}, {"stem": [8, 16, 32], "stem_blocks": 2}])
def test_matrices_alone_are_decayed(stem: dict[str, Any]):
    """Linear layers, convolutions, attention, the projection of texts; not the embedding of words."""
    settings = config(vision=stem)
    tokenizer = text_tokenizer(settings, samples(settings))
    sizes = CLIPConfig(image_size=32, vision=settings.vision, text=tokenizer.config)
    model = TeacherTraining(CLIP(sizes, tokenizer), "sigmoid")
    groups = parameter_groups(model)
    decayed = {name for group in groups for name in group.names if group.weight_decay is None}
    rest = {name for group in groups for name in group.names if group.weight_decay == 0}
    layers = {f"{name}.weight" for name, module in model.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)}
    attention = {name for name, _ in model.named_parameters() if name.endswith("in_proj_weight")}
    assert attention and decayed == layers | attention
    assert rest == {name for name, _ in model.named_parameters()} - decayed
    assert all("blocks" in name for group in groups if group.matrices for name in group.names)
    assert {"vision.blocks.0.mlp.fc1.weight"} <= {name for group in groups if group.matrices for name in group.names}
    assert rest >= {"vision.pos_embed", "vision.attn_pool.latent", "text.network.token_embedding.weight", "logit_scale"}


def invoke(*arguments: object) -> Any:
    return CliRunner().invoke(cli, ["train", "teacher", *map(str, arguments)])


def test_the_command_trains_and_prints_json(tmp_path: Path):
    more = ["vision.trunk.width=32", "vision.trunk.heads=4", "vision.stem=[8, 16, 32]"]
    more += ["text.width=16", "text.heads=4", "text.captions=20", "held_out.scenes=4"]
    more += ["run.steps=2", "run.warmup_steps=1", "run.batch_size=4", "run.precision=no", "run.workers=0"]
    overrides = [word for override in more for word in ("--set", override)]
    done = invoke("scenes-tiny", "--out", tmp_path / "run", "--json", *overrides)
    assert done.exit_code == 0, done.output
    report = json.loads(done.stdout)
    assert (report["step"], report["signal"]) == (2, 0) and "zero_shot_top1" in report["figures"]
    again = invoke("scenes-tiny", "--out", tmp_path / "run", *overrides)
    assert again.stdout.startswith(f"{tmp_path / 'run/model'}: step 2, zero_shot_top1 ")


def test_the_command_lists_its_recipes_and_wants_a_folder():
    assert [line.split()[0] for line in invoke("--list").stdout.splitlines()] == recipe_names(TEACHER_RECIPES)
    done = invoke("scenes-tiny")
    assert done.exit_code == 2 and "name a recipe or a TOML file, and --out FOLDER" in done.stderr


def test_positions_start_so_that_agreement_depends_on_the_offset_alone():
    trunk = TrunkConfig(width=8, depth=1, heads=2)
    places = build_vision_tower(VisionConfig(trunk=trunk, patch_size=8), 32).pos_embed.detach()[0].unflatten(0, (4, 4))
    agreement = torch.einsum("ijd,kld->ijkl", places, places)
    for down, right in ((0, 0), (0, 1), (1, 0), (2, 1)):
        same = [agreement[i, j, i + down, j + right] for i in range(4 - down) for j in range(4 - right)]
        assert torch.stack(same).std() < 1e-5
    assert agreement[0, 0, 0, 0] > agreement[0, 0, 0, 1] > agreement[0, 0, 1, 1]


def test_a_width_that_sines_do_not_fit_starts_too():
    trunk = TrunkConfig(width=6, depth=1, heads=3)
    assert build_vision_tower(VisionConfig(trunk=trunk, patch_size=8), 32).pos_embed.shape == (1, 16, 6)


def test_a_run_does_not_go_on_with_captions_of_other_words(tmp_path: Path):
    """Their embeddings would be those of the words before."""
    for number in range(8):
        picture(number).save(tmp_path / f"{number}.png")
        (tmp_path / f"{number}.txt").write_text("a red sofa" if number else "a grey sofa")
    settings = config({"kind": "pictures", "inputs": [str(tmp_path / "*.png")]})
    stopped_after(1, settings, tmp_path / "run")
    (tmp_path / "0.txt").write_text("a grey couch")
    with pytest.raises(ValueError, match="holds a run with other settings of vocabulary"):
        train_teacher(settings, tmp_path / "run")
