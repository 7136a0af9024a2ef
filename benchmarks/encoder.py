"""TokLIP-L on a picture, steps with its cache, and the training of TokLIP-S from pixels and from a token store.

In bfloat16 the official code is under autocast, as when it was trained: its weights stay in float32, and its tokenizer
too rounds. Ours has the encoder's weights in bfloat16 and the tokenizer in float32, or both in bfloat16. Without the
official code timm's vision transformer of the same sizes is the peer of the encoder, with the causal mask, on pixels.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from toklip_core.model import (
    CLIP,
    EOS_ID,
    CLIPConfig,
    SemanticEncoder,
    TextConfig,
    TextTokenizer,
    TokLIP,
    TrunkConfig,
    VisionConfig,
    build_vision_tower,
    official_name,
    word_tokenizer,
)
from toklip_core.pictures import normalized
from toklip_core.tasks import EncoderTask, EncoderTrainConfig
from toklip_core.tokenizer import Tokenizer
from toklip_core.training import CPUAttention, build_optimizers
from toklip_vq.published import CONFIGS
from toklip_vq.vqgan import VQGAN
from torch import Tensor, nn

from benchmarks._race import (
    DTYPES,
    Options,
    Row,
    elsewhere,
    floor,
    noise,
    operation_count,
    prepare,
    published,
    race,
    vqgan,
    weight_bytes,
)
from benchmarks.vq import tokenizer_in_place

#: timm's name of the L model in the official code.
TOWER = "vit_so400m_patch16_toklip_384"
#: Name of the contestant whose ids are those of float32.
EXACT_IDS = " but for the tokenizer"
CAPTIONS = ["a red circle on a blue ground", "two green stars"]


def rows(options: Options) -> Iterator[Row]:
    """Yield what each part gives.

    The pictures have a process of their own: where much memory was freed before, the official tokenizer, which takes
    and gives back 2 GB for each picture, is a quarter faster than in a fresh process. It also brings an
    open_clip of its own, which would be imported in place of ours.
    """
    yield from training_rows(options)
    yield from step_rows(options)
    yield from elsewhere(fresh_picture_rows, options)


def fresh_picture_rows(options: Options) -> Iterator[Row]:
    """Yield the rows of pictures in a process that has done nothing before."""
    prepare(options)
    yield from picture_rows(options)


@torch.no_grad()
def picture_rows(options: Options) -> Iterator[Row]:
    """One picture of 384 px through TokLIP-L: the tokenizer, the encoder alone, and both."""
    vq = vqgan(CONFIGS["VQ-16"], options)
    config = published("toklip-l-384", options)
    tokenizer = copy.deepcopy(vq).tokenizer()
    model = TokLIP(config, tokenizer=Tokenizer(config.tokenizer.name, tokenizer), text=False).eval().to(options.device)
    model.requires_grad_(False)  # or the counter of operations asks for a graph of attention pooling's query
    half = copy.deepcopy(model).to(torch.bfloat16)
    half_tokenizer = copy.deepcopy(tokenizer).to(torch.bfloat16)
    pixels = noise(1, config.image_size, options)
    codes = tokenizer.embedding(tokenizer.encode(pixels))
    contestants: dict[str, Callable[[], Any]] = {
        "tokenizer, float32": lambda: tokenizer.encode(pixels),
        "tokenizer, bfloat16": lambda: half_tokenizer.encode(pixels),
        "encoder, float32": lambda: model.encoder(codes),
        "encoder, bfloat16": lambda: half.encoder(codes),
        "all, float32": lambda: model(pixels),
        "all, bfloat16": lambda: half.encode_ids(half_tokenizer.encode(pixels)),
        f"all, bfloat16{EXACT_IDS}": lambda: half(pixels),
    }
    counts = {name: operation_count(contestants[f"{name}, float32"]) for name in ("tokenizer", "encoder")}
    if options.toklip:
        tower = official_tower(options.toklip, model.encoder, vq)
        contestants |= official_contestants(tower, pixels, codes)
    else:
        contestants |= timm_contestants(config.encoder.trunk, pixels)
    seconds, results = race(contestants, options.repeats)
    floors = {f"{name}, {key}": floor(options, count, DTYPES[key]) for name, count in counts.items() for key in DTYPES}
    floors |= {f"all, {dtype}": floors[f"tokenizer, {dtype}"] + floors[f"encoder, {dtype}"] for dtype in DTYPES}
    floors[f"all, bfloat16{EXACT_IDS}"] = floors["tokenizer, float32"] + floors["encoder, bfloat16"]
    wanted = {"all, float32": "1.1x", "all, bfloat16": "1.3x", f"all, bfloat16{EXACT_IDS}": "1.3x"}
    for name, least in floors.items():
        yield Row(
            what=f"L, one picture of {config.image_size} px, {name}",
            unit="s",
            ours=seconds[name],
            peer=seconds.get(f"peer {name.removesuffix(EXACT_IDS)}"),
            peer_name="TokLIP" if options.toklip else "timm" if name.startswith("encoder") else "",
            floor=least,
            wanted=wanted.get(name, ""),
            note=agreement(name, results, official=options.toklip is not None),
        )


def agreement(name: str, results: dict[str, Any], *, official: bool) -> str:
    """Say what the two sides have in common, or bfloat16 with float32."""
    exact: Any = results["all, float32"]
    theirs: Any = results.get(f"peer {name.removesuffix(EXACT_IDS)}")
    words = []
    if name == "tokenizer, bfloat16":
        words += [f"{share_changed(results[name], exact.ids)} of our ids change"]
    if name.startswith("tokenizer") and official:
        words += [f"{share_changed(theirs, exact.ids)} of the official ids differ"]
    if name == "all, float32" and official:
        words += [f"pooled features differ by {(theirs - exact.pooled).abs().max() / exact.pooled.abs().max():.0e}"]
    if name.startswith("all, bfloat16"):
        words += [f"cosine to float32 {cosine(results[name].pooled, exact.pooled):.5f}"]
        words += [f"official {cosine(theirs, exact.pooled):.5f}"] if official else []
    return "; ".join(words)


def share_changed(ids: Tensor, exact: Tensor) -> str:
    """Return the share of ids that are not the exact ones."""
    return f"{(ids.flatten() != exact.flatten()).float().mean().item():.1%}"


def cosine(features: Tensor, exact: Tensor) -> float:
    """Return the cosine between two features (1, E)."""
    return F.cosine_similarity(features.float(), exact).item()


@torch.no_grad()
def step_rows(options: Options) -> Iterator[Row]:
    """A step of TokLIP-L with its cache, early and late, and the prefill of a whole picture."""
    config = published("toklip-l-384", options).encoder
    encoder = SemanticEncoder(config).eval().to(options.device)
    count = config.grid[0] * config.grid[1]
    codes = F.normalize(torch.randn(1, count, config.codebook_dim, device=options.device), dim=-1)
    _, cache = encoder.prefill(codes)

    def step(position: int) -> Callable[[], Tensor]:
        def run() -> Tensor:
            cache.length = position
            return encoder.step(codes[:, position : position + 1], cache)

        return run

    early, late = 5, count * 7 // 8
    steps, _ = race({"early": step(early), "late": step(late)}, 5 * options.repeats)
    whole: dict[str, Callable[[], Any]] = {
        "prefill": lambda: encoder.prefill(codes),
        "forward": lambda: encoder(codes.view(1, *config.grid, -1)),
    }
    seconds, _ = race(whole, options.repeats)
    # A step reads every weight of its path once, and the keys and values that it attends to.
    weights = weight_bytes(encoder.projector, encoder.blocks, encoder.norm)
    kept = sum(x.nbytes for x in (*cache.keys, *cache.values)) / count
    yield Row(
        f"L, a step at position {early}, float32",
        "ms",
        steps["early"] * 1000,
        floor=1000 * floor(options, 0, read=weights + early * kept),
    )
    yield Row(
        f"L, a step at position {late}, float32",
        "ms",
        steps["late"] * 1000,
        steps["early"] * 1000,
        f"ours at position {early}",
        1000 * floor(options, 0, read=weights + late * kept),
        "above 0.83",
    )
    least = floor(options, operation_count(whole["prefill"]))
    name = f"L, prefill of {count} codes, float32"
    yield Row(name, "s", seconds["prefill"], seconds["forward"], "our forward pass", least)


def training_rows(options: Options) -> Iterator[Row]:
    """Yield a training step of TokLIP-S at 256 px from a store, beside forward and backward pass from pixels.

    A step from a store also clips the gradients and updates the weights; it reads no file. On a GPU it has 16 pictures,
    as many as in the published training, otherwise two.
    """
    config, batch = published("toklip-s-256", options), 16 if options.on_gpu else 2
    side = config.image_size
    task = task_of(config.encoder.trunk, side, options)
    captions = CAPTIONS * (batch // 2)
    rgb = torch.randint(0, 256, (batch, 3, side, side), dtype=torch.uint8, device=options.device)
    with torch.no_grad():
        features = task.prepare(cast(Any, {"rgb": rgb, "captions": captions})).pooled
        stored = {"ids": task.tokenizer.encode(normalized(rgb)), "teacher": features, "captions": captions}
    weights = {name: weight for name, weight in task.model.named_parameters() if weight.requires_grad}
    (optimizer,) = build_optimizers(weights, task.config.run, task.parameter_groups(), fused=True)
    for precision, dtype in DTYPES.items():
        contestants = {
            "pixels": step_of(task, task.model, {"rgb": rgb, "captions": captions}, dtype),
            "store": step_of(task, task.model, stored, dtype),
        }

        def update(passes: Callable[[], float] = contestants["store"]) -> float:
            loss = passes()
            nn.utils.clip_grad_norm_(weights.values(), 1.0)
            optimizer.step()
            return loss

        operations = operation_count(contestants["store"])
        seconds, losses = race(contestants, options.repeats)
        yield Row(
            f"S, forward and backward on {batch} x {side} px from a store, {precision}",
            "s",
            seconds["store"],
            seconds["pixels"],
            "ours from pixels",
            floor(options, operations, dtype),
            "1.5x",
            f"losses {losses['pixels']:.4f} and {losses['store']:.4f}",
        )
        steps, _ = race({"step": update}, options.repeats)
        least, step = floor(options, operations, dtype), steps["step"]
        yield Row(
            f"S, a training step on {batch} x {side} px from a store, {precision}",
            "s",
            step,
            floor=least,
            note=f"{least / step.median:.0%} of the peak; {batch / step.median:.1f} pictures a second",
        )


def task_of(trunk: TrunkConfig, side: int, options: Options) -> EncoderTask:
    """Return the task of training an encoder of some sizes by a random teacher."""
    json, words = word_tokenizer(CAPTIONS)
    # The text tower reads each caption once, in the first turn of each side, which does not count: a small one.
    text = TextConfig(
        context_length=64, vocabulary=words, width=64, heads=1, layers=1, output_dim=trunk.joint_dim, eos_id=EOS_ID
    )
    vision = VisionConfig(trunk=trunk, patch_size=16)
    teacher = CLIP(CLIPConfig(image_size=side, vision=vision, text=text), TextTokenizer(text, json))
    config = EncoderTrainConfig.model_validate(
        {
            "tokenizer": "llamagen-vq16-t2i",
            "teacher": "random",
            "image_size": side,
            "data": [{"kind": "scenes", "count": 2}],
            "run": {"steps": 1, "batch_size": 2, "learning_rate": 1e-5},
        }
    )
    tokenizer = Tokenizer(config.tokenizer, vqgan(CONFIGS["VQ-16"], options).tokenizer())
    task = EncoderTask(config, tokenizer, teacher)
    task.model.train().to(options.device)
    return task


def step_of(
    task: EncoderTask, model: nn.Module, batch: dict[str, Any], dtype: torch.dtype = torch.float32
) -> Callable[[], float]:
    """Return the call of a forward and a backward pass of the task's model, wrapped or not, which gives the loss."""

    def run() -> float:
        model.zero_grad(set_to_none=True)
        device = next(model.parameters()).device.type
        with CPUAttention(), torch.autocast(device, torch.bfloat16, enabled=dtype == torch.bfloat16):  # as `fit` does
            with torch.no_grad():
                prepared = task.prepare(cast(Any, batch))
            losses = task.objective(model, prepared, 0)
        assert task.contrast is not None
        total = sum(losses.losses.values()) + sum(task.contrast(losses.features).losses.values())
        with CPUAttention():
            total.backward()
        return float(total.detach())

    return run


def timm_contestants(trunk: TrunkConfig, pixels: Tensor) -> dict[str, Callable[[], Any]]:
    """Return timm's vision transformer, causal, and pooled as ours is."""
    vision = VisionConfig(trunk=trunk, patch_size=16)
    tower = build_vision_tower(vision, pixels.shape[-1]).eval().requires_grad_(False).to(pixels.device)
    towers = {"float32": tower, "bfloat16": copy.deepcopy(tower).to(torch.bfloat16)}

    def forward(name: str) -> Callable[[], Tensor]:
        seen = pixels.to(DTYPES[name])
        return lambda: towers[name].pool(towers[name].forward_features(seen, is_causal=True))

    return {f"peer encoder, {name}": forward(name) for name in towers}


def official_tower(path: Path, encoder: SemanticEncoder, vq: VQGAN) -> nn.Module:
    """Return the official vision tower on our weights: the encoder's very own, a copy of the tokenizer's."""
    sys.path.insert(0, str(path / "src"))
    trunk = encoder.config.trunk
    sizes = {"img_size": 16 * encoder.config.grid[0], "embed_dim": trunk.width, "num_heads": trunk.heads}
    with tokenizer_in_place(vq):
        import timm_local  # type: ignore[import-not-found]

        tower: nn.Module = timm_local.create_model(TOWER, num_classes=0, global_pool="map", depth=trunk.depth, **sizes)
    ours = {official_name(f"encoder.{name}"): tensor for name, tensor in encoder.state_dict().items()}
    kept = {name: tensor for name, tensor in tower.state_dict().items() if name.startswith("vq.")}
    tower.load_state_dict(kept | {name.removeprefix("visual.trunk."): x for name, x in ours.items()}, assign=True)
    return tower.eval().to(encoder.pos_embed.device)


def official_contestants(tower: Any, pixels: Tensor, codes: Tensor) -> dict[str, Callable[[], Any]]:  # noqa: ANN401
    """Return the official counterparts of the contestants."""
    alone = copy.copy(tower)
    alone._modules = {**tower._modules, "vq": Given(codes)}

    def halved(run: Callable[[], Tensor]) -> Callable[[], Tensor]:
        def inside() -> Tensor:
            with torch.autocast(pixels.device.type, torch.bfloat16):
                return run()

        return inside

    exact: dict[str, Callable[[], Any]] = {
        "peer tokenizer": lambda: tower.vq.encode(pixels)[2][2],
        "peer encoder": lambda: alone(pixels),
        "peer all": lambda: tower(pixels),
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
