"""CLIP and SigLIP: two towers, pictures and texts in one space. What TokLIP starts from and learns from.

    pixels (B, 3, S, S) in [-1, 1] -> vision -> (B, E)        texts -> text -> (T, E)

Any SigLIP, SigLIP2 or CLIP of open_clip, or one that ``toklip train teacher`` made.

Shape letters: B batch, S picture side, N patches, D width, T texts, E joint space.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from toklip_core.checkpoint import load_strict, read_model_folder, save_model_folder
from toklip_core.config import Config, validated
from toklip_core.text import TOKENIZER_FILE, TextConfig, TextTokenizer, TextTower, read_tokenizer
from toklip_core.trunk import VisionConfig, activation_of, build_vision_tower, described_tower


class CLIPConfig(Config):
    """Two towers on pixels and texts: ``config.json`` of a teacher."""

    kind: Literal["clip"] = "clip"
    image_size: int = Field(gt=0, description="S: side of the square that the vision tower takes.")
    resize: Literal["crop", "squash"] = Field(default="squash", description="How a picture becomes that square.")
    vision: VisionConfig
    text: TextConfig


class CLIP(nn.Module):
    """Two towers.

    Args:
        config: sizes and preprocessing.
        tokenizer: of the text tower; None if it is not there.
    """

    def __init__(self, config: CLIPConfig, tokenizer: TextTokenizer | None) -> None:
        super().__init__()
        self.config = config
        self.vision = build_vision_tower(config.vision, config.image_size)
        self.text = TextTower(config.text, tokenizer)
        #: The logarithm of what cosines are multiplied by; it starts at ln 10, and the bias at -10, as in SigLIP.
        self.logit_scale = nn.Parameter(torch.tensor(math.log(10.0)))
        self.logit_bias = nn.Parameter(torch.tensor(-10.0))

    def image_tokens(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Return tokens (B, N, D), after the last norm, and pooled features (B, E), not normalised, of pixels."""
        tokens: Tensor = self.vision.forward_features(self._normalised(pixels))
        return tokens[:, self.vision.num_prefix_tokens :], self.vision.forward_head(tokens)

    def image_features(self, pixels: Tensor) -> Tensor:
        """Return unit features (B, E), float32, of pixels (B, 3, S, S) in [-1, 1]."""
        return F.normalize(self.image_tokens(pixels)[1].float(), dim=-1)

    def text_features(self, texts: Sequence[str]) -> Tensor:
        """Return unit features (T, E), float32, of texts. No gradient."""
        return self.text.features(texts)

    def save_pretrained(self, folder: Path | str) -> None:
        """Write a model folder: ``config.json``, ``model.safetensors`` and ``tokenizer.json``."""
        words = None if self.text.tokenizer is None else self.text.tokenizer.json
        save_model_folder(folder, self.config.model_dump(mode="json"), self, texts={TOKENIZER_FILE: words})

    def _normalised(self, pixels: Tensor) -> Tensor:
        dtype = self.logit_scale.dtype
        if self.config.vision.mean == self.config.vision.std == (0.5, 0.5, 0.5):  # [-1, 1] is it already
            return pixels.to(dtype)
        mean, std = (pixels.new_tensor(x).view(3, 1, 1) for x in (self.config.vision.mean, self.config.vision.std))
        return ((pixels / 2 + 0.5 - mean) / std).to(dtype)


def load_clip(source: str | Path) -> CLIP:
    """Return a teacher.

    Args:
        source: a folder that ``toklip train teacher`` wrote, or ``open_clip:NAME/TAG``, such as
            ``open_clip:ViT-SO400M-16-SigLIP2-384/webli``; TAG may be a file of weights. This may download.

    Raises:
        FileNotFoundError: the folder or the weights are not there.
        LookupError: open_clip knows no such model.
        ValueError: the weights do not fit.
    """
    if str(source).startswith("open_clip:"):
        name, _, tag = str(source).removeprefix("open_clip:").partition("/")
        return _load_open_clip(name, tag)
    folder = Path(source)
    values, tensors = read_model_folder(folder)
    config = validated(CLIPConfig, values, folder)
    with torch.device("meta"):
        clip = CLIP(config, read_tokenizer(config.text, folder))
    load_strict(clip, tensors, source=folder)
    return clip


def _load_open_clip(name: str, tag: str) -> CLIP:
    import open_clip

    settings = open_clip.get_model_config(name)
    if settings is None:
        raise LookupError(f"open_clip has no model {name!r}; `open_clip.list_models()` lists them")
    if not tag:
        tags = ", ".join(open_clip.list_pretrained_tags_by_model(name)) or "none, give a file of weights"
        raise LookupError(f"name the weights, open_clip:{name}/TAG; known are {tags}")
    try:
        model = open_clip.create_model(name, pretrained=tag)
        tokenizer = open_clip.get_tokenizer(name)
    except RuntimeError as error:  # what open_clip raises for tags, downloads and misfits alike
        words = " ".join(str(error).split())[:200]
        raise ValueError(f"open_clip cannot load {name!r} with {tag!r}: {words}") from error
    return clip_from_open_clip(model, settings["text_cfg"], tokenizer)


def clip_from_open_clip(model: Any, text_settings: dict[str, Any], tokenizer: Any) -> CLIP:  # noqa: ANN401
    """Return a model of open_clip as a :class:`CLIP`, the same function of pixels and texts.

    Args:
        model: open_clip's CLIP or CustomTextCLIP with a vision transformer and open_clip's text transformer.
        text_settings: ``text_cfg`` of its configuration.
        tokenizer: as ``open_clip.get_tokenizer`` gives it.

    Raises:
        ValueError: one of the towers is of another kind.
    """
    from open_clip.model import CLIPTextCfg, convert_to_custom_text_state_dict

    trunk, patch, vision = described_tower(model.visual)
    text = getattr(model, "text", model)
    settings = CLIPTextCfg(**text_settings)
    if settings.hf_model_name or settings.embed_cls or not hasattr(text, "token_embedding"):
        raise ValueError("got a text tower of transformers or CoCa; wanted open_clip's own text transformer")
    preprocess = model.visual.preprocess_cfg
    projection = text.text_projection
    linear = isinstance(projection, nn.Linear)
    words = _text_words(tokenizer)
    config = CLIPConfig(
        image_size=int(preprocess["size"][0] if isinstance(preprocess["size"], tuple | list) else preprocess["size"]),
        resize="squash" if preprocess["resize_mode"] == "squash" else "crop",
        vision=VisionConfig(trunk=trunk, patch_size=patch, mean=preprocess["mean"], std=preprocess["std"]),
        text=TextConfig(
            context_length=text.context_length,
            vocabulary=settings.vocab_size,
            width=settings.width,
            heads=settings.heads,
            layers=settings.layers,
            mlp_ratio=settings.mlp_ratio,
            activation=activation_of(text.transformer.resblocks[0].mlp.gelu),
            norm_eps=text.ln_final.eps,
            causal=not settings.no_causal_mask,
            pooling=settings.pool_type,
            output_dim=projection.out_features if linear else projection.shape[1],
            projection_bias=linear,
            **{key: value for key, value in words.items() if key != "json"},
        ),
    )
    with torch.device("meta"):
        clip = CLIP(config, TextTokenizer(config.text, words["json"]))
    tensors = {f"vision.{name}": tensor for name, tensor in vision.items()}
    for name, tensor in convert_to_custom_text_state_dict(model.state_dict()).items():
        if name.startswith("text."):
            tensors["text.network." + name.removeprefix("text.")] = tensor
    tensors["logit_scale"] = model.logit_scale.detach()
    bias = getattr(model, "logit_bias", None)
    tensors["logit_bias"] = torch.tensor(0.0) if bias is None else bias.detach()
    load_strict(clip, tensors, source="the model of open_clip")
    return clip


def _text_words(tokenizer: Any) -> dict[str, Any]:  # noqa: ANN401
    """How open_clip's tokenizer writes a text."""
    if type(tokenizer).__name__ == "SimpleTokenizer":
        return {"tokenizer": "clip", "clean": "lower", "json": None}
    inner = tokenizer.tokenizer
    special = inner("").input_ids
    before = inner.bos_token_id if special and special[0] == inner.bos_token_id else None
    after = special[-1] if special and special[-1] != before else None
    return {
        "tokenizer": "file",
        "clean": tokenizer.clean_fn.__name__.removeprefix("_clean_"),
        "bos_id": before,
        "eos_id": after,
        "pad_id": inner.pad_token_id or 0,
        "json": inner.backend_tokenizer.to_str(),
    }
