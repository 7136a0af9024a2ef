"""Speed of TokLIP-L, of steps with its cache, and of training from a token store, beside the official code if given.

    python benchmarks/encoder.py --toklip PATH/TokLIP --json encoder.json

Weights are random, of the published shapes, and the same on both sides; pictures are noise. Without gradient the two
sides take turns in one process, and each figure is the smallest of the repeats. The floor is what the multiplications
of ours would take at the rate of a large matrix product measured in the same run.

In bfloat16 the official code is under autocast, as when it was trained: its weights stay in float32, and its tokenizer
too rounds. Ours has the encoder's weights in bfloat16 and the tokenizer in float32, or both in bfloat16.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from _race import PRODUCT, Row, machine_name, operation_count, product, race, table, write_json
from toklip_core.clip import CLIP, CLIPConfig
from toklip_core.data import normalized
from toklip_core.distillation import EncoderTraining, Frozen, contrast
from toklip_core.encoder import SemanticEncoder, encoder_from_tower
from toklip_core.model import TokLIP
from toklip_core.published import model_spec, official_name
from toklip_core.settings import EncoderTrainConfig
from toklip_core.text import EOS_ID, TextConfig, TextTokenizer, word_tokenizer
from toklip_core.trunk import VisionConfig
from toklip_vq.llamagen import CONFIGS, llamagen_name
from toklip_vq.vqgan import VQGAN, VQGANTokenizer, build_vqgan
from torch import Tensor, nn

#: timm's name of the L model in the official code.
TOWER = "vit_so400m_patch16_toklip_384"
#: Of the contestant whose ids are those of float32.
EXACT_IDS = " but for the tokenizer"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
CAPTIONS = ["a red circle on a blue ground", "two green stars"]


def main() -> None:
    """Print the table; write it as JSON where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--toklip", type=Path, help="a checkout of TencentARC/TokLIP to compare with")
    parser.add_argument("--json", type=Path, help="the file to write")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--part", choices=["pictures", "steps", "training"], help="one part of the table")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    machine = machine_name(options.threads)
    print(machine)
    parts: dict[str, Callable[[], list[Row]]] = {
        # The official code brings an open_clip of its own: ours has to be imported before.
        "training": lambda: training_rows(options.repeats),
        "steps": lambda: step_rows(options.repeats),
        "pictures": lambda: picture_rows(options.toklip, options.repeats),
    }
    rows = [row for name, measure in parts.items() if options.part in (None, name) for row in measure()]
    print(table(rows))
    if options.json:
        write_json(options.json, machine, rows)


@torch.no_grad()
def picture_rows(path: Path | None, repeats: int) -> list[Row]:
    """One picture of 384 px through TokLIP-L: the tokenizer, the encoder alone, and both."""
    vqgan = build_vqgan(CONFIGS["VQ-16"])
    model = TokLIP(model_spec("toklip-l-384").config, tokenizer=VQGANTokenizer(copy.deepcopy(vqgan)), text=False).eval()
    model.requires_grad_(False)  # or the counter of operations asks for a graph of attention pooling's query
    half = copy.deepcopy(model).to(torch.bfloat16)
    half_tokenizer = copy.deepcopy(cast(nn.Module, model.tokenizer)).to(torch.bfloat16)
    pixels = torch.rand(1, 3, 384, 384) * 2 - 1
    codes = model.tokenizer.embed(model.tokenizer.encode(pixels))
    contestants: dict[str, Callable[[], Any]] = {
        "tokenizer, float32": lambda: model.tokenizer.encode(pixels),
        "tokenizer, bfloat16": lambda: half_tokenizer.encode(pixels),
        "encoder, float32": lambda: model.encoder(codes),
        "encoder, bfloat16": lambda: half.encoder(codes),
        "all, float32": lambda: model(pixels),
        "all, bfloat16": lambda: half.encode_ids(half_tokenizer.encode(pixels)),
        f"all, bfloat16{EXACT_IDS}": lambda: half(pixels),
    }
    contestants |= {f"product, {name}": product(dtype) for name, dtype in DTYPES.items()}
    if path:
        contestants |= official_contestants(official_tower(path, model.encoder, vqgan), pixels, codes)
    seconds, results = race(contestants, repeats)
    counts = {name: operation_count(contestants[f"{name}, float32"]) for name in ("tokenizer", "encoder")}
    floors = {
        f"{name}, {dtype}": count / PRODUCT * seconds[f"product, {dtype}"]
        for name, count in counts.items()
        for dtype in DTYPES
    }
    floors |= {f"all, {dtype}": floors[f"tokenizer, {dtype}"] + floors[f"encoder, {dtype}"] for dtype in DTYPES}
    floors[f"all, bfloat16{EXACT_IDS}"] = floors["tokenizer, float32"] + floors["encoder, bfloat16"]
    targets = {"all, float32": "1.1x", "all, bfloat16": "1.3x", f"all, bfloat16{EXACT_IDS}": "1.3x"}
    return [
        Row(
            what=f"L, one picture of 384 px, {name}",
            unit="s",
            ours=seconds[name],
            official=seconds.get(f"official {name.removesuffix(EXACT_IDS)}"),
            floor=floor,
            target=targets.get(name, ""),
            note=f"{seconds[name] / floor:.2f} of the floor{agreement(name, results)}",
        )
        for name, floor in floors.items()
    ]


def agreement(name: str, results: dict[str, Any]) -> str:
    """Say what the two sides have in common, or bfloat16 with float32."""
    exact, theirs = results["all, float32"], results.get(f"official {name.removesuffix(EXACT_IDS)}")
    words = ""
    if name.startswith("tokenizer"):
        words += f"; {share_changed(results[name], exact.ids)} of our ids change" if "bfloat16" in name else ""
        words += "" if theirs is None else f"; {share_changed(theirs, exact.ids)} of the official ids differ"
    elif name == "all, float32" and theirs is not None:
        words = f"; pooled features differ by {(theirs - exact.pooled).abs().max() / exact.pooled.abs().max():.0e}"
    elif name.startswith("all, bfloat16"):
        words = f"; cosine to float32 {cosine(results[name].pooled, exact.pooled):.5f}"
        words += "" if theirs is None else f", official {cosine(theirs, exact.pooled):.5f}"
    return words


def share_changed(ids: Tensor, exact: Tensor) -> str:
    """Return the share of ids that are not the exact ones."""
    return f"{(ids.flatten() != exact.flatten()).float().mean().item():.1%}"


def cosine(features: Tensor, exact: Tensor) -> float:
    """Return the cosine between two features (1, E)."""
    return F.cosine_similarity(features.float(), exact).item()


@torch.no_grad()
def step_rows(repeats: int) -> list[Row]:
    """A step of TokLIP-L with its cache, early and late, and the prefill of a whole picture."""
    encoder = SemanticEncoder(model_spec("toklip-l-384").config.encoder).eval()
    codes = F.normalize(torch.randn(1, 576, 8), dim=-1)
    _, cache = encoder.prefill(codes)

    def step(position: int) -> Callable[[], Tensor]:
        def run() -> Tensor:
            cache.length = position
            return encoder.step(codes[:, position], cache)

        return run

    contestants: dict[str, Callable[[], Any]] = {
        "step 5": step(5),
        "step 500": step(500),
        "prefill": lambda: encoder.prefill(codes),
        "whole": lambda: encoder(codes.unflatten(1, (24, 24))),
        "product": product(torch.float32),
    }
    early_and_late, rest = dict(list(contestants.items())[:2]), dict(list(contestants.items())[2:])
    seconds = race(early_and_late, 4 * repeats)[0] | race(rest, repeats)[0]
    floor = operation_count(contestants["prefill"]) / PRODUCT * seconds["product"]
    late = f"{seconds['step 500'] / seconds['step 5']:.2f} times the one at position 5"
    return [
        Row("L, a step at position 5, float32", "ms", 1000 * seconds["step 5"]),
        Row("L, a step at position 500, float32", "ms", 1000 * seconds["step 500"], target="within 20 %", note=late),
        Row(
            "L, prefill of 576 codes, float32",
            "s",
            seconds["prefill"],
            floor=floor,
            note=f"{seconds['prefill'] / seconds['whole']:.2f} times the encoder's forward pass",
        ),
    ]


def training_rows(repeats: int) -> list[Row]:
    """Forward and backward pass of the training of TokLIP-S on two pictures of 256 px, from pixels and from a store."""
    spec = model_spec("toklip-s-256").config
    trunk = spec.encoder.trunk
    json, words = word_tokenizer(CAPTIONS)
    # The text tower reads each caption once, in the first turn of each side, which is not the quickest: a small one.
    text = TextConfig(
        context_length=64, vocabulary=words, width=64, heads=1, layers=1, output_dim=trunk.joint_dim, eos_id=EOS_ID
    )
    vision = VisionConfig(trunk=trunk, patch_size=16)
    teacher = CLIP(CLIPConfig(image_size=256, vision=vision, text=text), TextTokenizer(text, json))
    teacher.requires_grad_(False).eval()
    tokenizer = VQGANTokenizer(build_vqgan(CONFIGS["VQ-16"]))
    config = EncoderTrainConfig.model_validate(
        {
            "tokenizer": spec.tokenizer,
            "teacher": "random",
            "image_size": 256,
            "data": [{"kind": "scenes", "count": 2}],
            "run": {"steps": 1, "batch_size": 2, "learning_rate": 1e-5},
        }
    )
    encoder = encoder_from_tower(teacher.vision, codebook_dim=8, grid=(16, 16))
    training = EncoderTraining(encoder, teacher, config.losses).train()
    frozen = Frozen(tokenizer, teacher, config)
    pixels = torch.randint(0, 256, (2, 3, 256, 256), dtype=torch.uint8)
    with torch.no_grad():
        features = frozen({"pixels": pixels, "captions": CAPTIONS}).pooled
        stored = {"ids": tokenizer.encode(normalized(pixels)), "teacher": features}

    def passes(batch: dict[str, Any], precision: str) -> Callable[[], float]:
        def run() -> float:
            training.zero_grad(set_to_none=True)
            with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"):
                losses = training(*frozen(cast(Any, batch | {"captions": CAPTIONS})))
            total = sum(losses.losses.values()) + sum(contrast(losses.features, "softmax", 1.0).losses.values())
            total.backward()
            return float(total.detach())

        return run

    rows = []
    for precision in DTYPES:
        contestants = {"pixels": passes({"pixels": pixels}, precision), "store": passes(stored, precision)}
        seconds, losses = race(contestants, min(repeats, 3))
        words = f"{seconds['pixels'] / seconds['store']:.2f} times as long from pixels, {seconds['pixels']:.2f} s"
        rows.append(
            Row(
                f"S, training on 2 x 256 px from a store, {precision}",
                "s",
                seconds["store"],
                target="1.5x pixels",
                note=words + f"; losses {losses['pixels']:.4f} and {losses['store']:.4f}",
            )
        )
    return rows


def official_tower(path: Path, encoder: SemanticEncoder, vqgan: VQGAN) -> nn.Module:
    """Return the official vision tower on our weights: the encoder's very own, a copy of the tokenizer's.

    Its constructor downloads the tokenizer into the working directory unless it is there.
    """
    state = {llamagen_name(name): tensor for name, tensor in vqgan.state_dict().items()}
    sys.path.insert(0, str(path.absolute() / "src"))
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(sys.stderr), contextlib.chdir(folder):
        file = Path("tokenizer", "pretrained_models", "vq_ds16_t2i.pt")
        file.parent.mkdir(parents=True)
        torch.save({"model": state | {"quantize.codebook_used": torch.zeros(65536)}}, file)
        import timm_local  # type: ignore[import-not-found]

        tower: nn.Module = timm_local.create_model(TOWER, num_classes=0, global_pool="map")
    ours = {official_name(f"encoder.{name}"): tensor for name, tensor in encoder.state_dict().items()}
    kept = {name: tensor for name, tensor in tower.state_dict().items() if name.startswith("vq.")}
    tower.load_state_dict(kept | {name.removeprefix("visual.trunk."): x for name, x in ours.items()}, assign=True)
    return tower.eval()


def official_contestants(tower: Any, pixels: Tensor, codes: Tensor) -> dict[str, Callable[[], Any]]:  # noqa: ANN401
    """Return the official counterparts of the contestants."""
    alone = copy.copy(tower)
    alone._modules = {**tower._modules, "vq": Given(codes)}

    def halved(run: Callable[[], Tensor]) -> Callable[[], Tensor]:
        def inside() -> Tensor:
            with torch.autocast("cpu", torch.bfloat16):
                return run()

        return inside

    exact: dict[str, Callable[[], Any]] = {
        "official tokenizer": lambda: tower.vq.encode(pixels)[2][2],
        "official encoder": lambda: alone(pixels),
        "official all": lambda: tower(pixels),
    }
    return {f"{name}, float32": run for name, run in exact.items()} | {
        f"{name}, bfloat16": halved(run) for name, run in exact.items()
    }


class Given(nn.Module):
    """In the place of the official tokenizer: codes (B, h, w, C) that are known."""

    def __init__(self, codes: Tensor) -> None:
        super().__init__()
        self.codes = codes.movedim(-1, 1)

    def encode(self, pixels: Tensor) -> tuple[Tensor, None, None]:
        """Return the codes."""
        return self.codes, None, None


if __name__ == "__main__":
    main()
