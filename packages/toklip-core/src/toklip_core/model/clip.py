"""CLIP and SigLIP: two towers for pictures and texts in one space. They are the start and the teachers of TokLIPs.

    pixels (B, 3, S, S) in [-1, 1] -> vision -> (B, E)        texts -> text -> (T, E)

A model is a SigLIP, SigLIP2 or CLIP of open_clip, or comes from ``toklip train teacher``.

Shape letters: B batch, S picture side, N patches, D width, T texts, E joint space.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Self, cast

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from toklip_core.config import LARGEST_SIDE, Config, ResizeSetting, validated
from toklip_core.files import is_machine_error, one_line, read_json_object
from toklip_core.model.published import CLIP_TINY
from toklip_core.model.text import (
    TOKENIZER_FILE,
    TextConfig,
    TextTokenizer,
    TextTower,
    read_tokenizer,
    refuse_other_space,
)
from toklip_core.model.trunk import VisionConfig, activation_of, build_vision_tower, described_tower
from toklip_core.pictures import refuse_pixels
from toklip_core.weights import (
    CONFIG_FILE,
    load_strict,
    read_model_folder,
    read_tensors,
    refuse_not_finite,
    refuse_other_kind,
    save_model_folder,
    why_not_fetched,
    without_values,
)

#: open_clip's name of a way to resize -> ours.
_RESIZE: dict[str, Literal["crop", "squash"]] = {"squash": "squash", "shortest": "crop"}

#: A model of open_clip, for messages.
_OF_OPEN_CLIP = "open_clip:ViT-B-16-SigLIP2-256/webli"
#: Texts for comparing two tokenizers: an empty one, one with signs and capitals, and one that is too long.
_SAMPLES = ("", "Two small_Cats &amp; a dog: isn't it?", "a long caption " * 100)


class CLIPConfig(Config):
    """The sizes of a CLIP (vision tower on pixels, text tower), stored as ``config.json`` in a teacher's folder."""

    kind: Literal["clip"] = "clip"
    image_size: int = Field(
        gt=0, le=LARGEST_SIDE, description="Side S of the square that the vision tower reads, in pixels."
    )
    resize: ResizeSetting = "squash"
    vision: VisionConfig
    text: TextConfig

    @model_validator(mode="after")
    def _one_space(self) -> Self:
        refuse_other_space(self.text, self.vision.trunk.joint_dim)
        return self


class CLIP(nn.Module):
    """A vision tower and a text tower.

    Args:
        config: sizes and preprocessing.
        tokenizer: tokenizer of the text tower; None: texts cannot be read.
    """

    def __init__(self, config: CLIPConfig, tokenizer: TextTokenizer | None) -> None:
        super().__init__()
        self.config = config
        self.vision = build_vision_tower(config.vision, config.image_size)
        self.text = TextTower(config.text, tokenizer)
        #: Logarithm of the factor on cosines. It starts at ln 10, and the bias at -10, as in SigLIP.
        self.logit_scale = nn.Parameter(torch.tensor(math.log(10.0)))
        self.logit_bias = nn.Parameter(torch.tensor(-10.0))

    def image_tokens(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Return tokens (B, N, D), after the last norm, and pooled vectors (B, E), not normalised, of pixels."""
        tokens: Tensor = self.vision.forward_features(self._normalised(pixels))
        return tokens[:, self.vision.num_prefix_tokens :], self.vision.forward_head(tokens)

    def patches(self, pixels: Tensor) -> Tensor:
        """Return the embedded patches (B, N, D) of pixels (B, 3, S, S) in [-1, 1], the inputs of the transformer."""
        return cast(Tensor, self.vision.patch_embed(self._normalised(pixels)))

    def image_features(self, pixels: Tensor) -> Tensor:
        """Return unit features (B, E), float32, of pixels (B, 3, S, S) in [-1, 1].

        Raises:
            ValueError: pixels are integers, or a number in pixels or results is NaN or infinite.
        """
        refuse_pixels(pixels)
        features = F.normalize(self.image_tokens(pixels)[1].float(), dim=-1)
        if not self.training:  # in training the losses are checked instead
            refuse_not_finite(features, "the model's feature")
        return features

    def text_features(self, texts: Sequence[str]) -> Tensor:
        """Return unit features (T, E), float32, of texts. No gradient."""
        return self.text.features(texts)

    def save_pretrained(self, folder: Path | str) -> None:
        """Write a model folder: ``config.json``, ``model.safetensors`` and ``tokenizer.json``."""
        words = None if self.text.tokenizer is None else self.text.tokenizer.json
        save_model_folder(folder, self.config.model_dump(mode="json"), self, texts={TOKENIZER_FILE: words})

    def _normalised(self, pixels: Tensor) -> Tensor:
        dtype = self.logit_scale.dtype
        if self.config.vision.mean == self.config.vision.std == (0.5, 0.5, 0.5):  # that is [-1, 1]
            return pixels.to(dtype)
        mean, std = (pixels.new_tensor(x).view(3, 1, 1) for x in (self.config.vision.mean, self.config.vision.std))
        return ((pixels / 2 + 0.5 - mean) / std).to(dtype)


def load_clip(source: str | Path) -> CLIP:
    """Return a CLIP, which can be a teacher, in evaluation mode.

    Args:
        source: ``clip-tiny``, which ships with the package; a folder of ``toklip train teacher``; or
            ``open_clip:NAME/TAG``, such as ``open_clip:ViT-SO400M-16-SigLIP2-384/webli``, which may be downloaded. TAG
            may be the path of a weights file; pictures are then prepared as for the first tag of the name.

    Raises:
        FileNotFoundError: the folder or the weights are missing and cannot be downloaded.
        LookupError: open_clip does not know the name or the tag, or transformers is not installed.
        ValueError: the weights do not fit, or the model is of another kind.
    """
    if str(source).startswith("open_clip:"):
        name, _, tag = str(source).removeprefix("open_clip:").partition("/")
        return _load_open_clip(name, tag)
    folder = CLIP_TINY if str(source) == CLIP_TINY.name else Path(source)
    if not (folder / CONFIG_FILE).is_file():
        raise FileNotFoundError(
            f"{str(source)!r} is not a model folder: it has no {CONFIG_FILE}; take {CLIP_TINY.name}, train one "
            f"(`toklip train teacher`), or name one of open_clip's (open_clip:NAME/TAG, such as {_OF_OPEN_CLIP})"
        )
    _refuse_folder_of_transformers(folder)
    values, tensors = read_model_folder(folder)
    if values.get("kind") == "toklip":
        raise ValueError(f"{str(folder)!r} holds a TokLIP, no teacher: a teacher sees pixels, with two towers")
    refuse_other_kind(values, folder, kind="clip", wanted="teacher")
    config = validated(CLIPConfig, values, folder / CONFIG_FILE)
    with without_values():
        clip = CLIP(config, read_tokenizer(config.text, folder))
    load_strict(clip, tensors, source=folder, mapped=True)
    return clip.eval()


def _refuse_folder_of_transformers(folder: Path) -> None:
    kind = read_json_object(folder / CONFIG_FILE).get("model_type")
    if isinstance(kind, str):
        raise ValueError(
            f"{str(folder)!r} is a model of transformers ({one_line(kind, longest=40)}); name open_clip's copy of it, "
            f"such as {_OF_OPEN_CLIP}"
        )


def _load_open_clip(name: str, tag: str) -> CLIP:
    import open_clip

    if name.startswith("hf-hub:"):
        raise LookupError(f"got {name}/{tag}, a name of the hub; give open_clip's own, such as {_OF_OPEN_CLIP}")
    if name not in open_clip.list_models():
        near = difflib.get_close_matches(name, open_clip.list_models(), n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ";"
        raise LookupError(f"open_clip has no model {name!r}{hint} `open_clip.list_models()` lists them")
    tags = open_clip.list_pretrained_tags_by_model(name)
    published = open_clip.get_pretrained_cfg(name, tag)
    if not published and not Path(tag).is_file():
        raise LookupError(
            f"open_clip has no weights {tag!r} of {name}, and there is no such file; write open_clip:{name}/TAG, where "
            f"TAG is the path of a file or one of: {', '.join(tags) or 'none is published'}"
        )
    settings = open_clip.get_model_config(name)
    _refuse_other_text(settings["text_cfg"])
    if not published and Path(tag).suffix not in (".npz", ".npy"):
        read_tensors(tag)  # reports a damaged file, or code, in one line instead of open_clip's page
    prepared = published or (open_clip.get_pretrained_cfg(name, tags[0]) if tags else {})
    try:
        model = open_clip.create_model(
            name,
            pretrained=tag,
            # With only a name, open_clip would use GELU for weights of QuickGELU, and warn.
            force_quick_gelu=bool(published.get("quick_gelu")),
            # For a file, open_clip would prepare pictures as for OpenAI's CLIP, whatever the name is.
            force_preprocess_cfg={key: prepared[key] for key in ("mean", "std", "resize_mode") if key in prepared},
        )
        tokenizer = open_clip.get_tokenizer(name)
    except ModuleNotFoundError as error:  # transformers, for the tokenizers of SigLIP
        raise LookupError(f"{error.name} is not installed: pip install 'toklip-core[train]'") from error
    except (RuntimeError, OSError) as error:  # open_clip's errors for misfits and downloads, and transformers' errors
        if is_machine_error(error):
            raise
        if isinstance(error, OSError) or published:
            words = why_not_fetched(error)
            raise FileNotFoundError(f"open_clip cannot load {name}/{tag} or its tokenizer: {words}") from error
        raise ValueError(f"{tag!r} does not fit {name}: {one_line(error, longest=200)}") from error
    return clip_from_open_clip(model, settings["text_cfg"], tokenizer)


def clip_from_open_clip(model: Any, text_settings: Mapping[str, Any], tokenizer: Any) -> CLIP:  # noqa: ANN401
    """Return a model of open_clip as a :class:`CLIP` in evaluation mode, the same function of pixels and texts.

    It shares the tensors of the model that are on the CPU in float32.

    Args:
        model: CLIP or CustomTextCLIP from ``open_clip.create_model``, with a vision transformer and open_clip's text
            transformer.
        text_settings: ``text_cfg`` of its configuration.
        tokenizer: tokenizer from ``open_clip.get_tokenizer``.

    Raises:
        ValueError: one of the towers, or the tokenizer, is of another kind.
    """
    _refuse_other_text(text_settings)
    trunk, patch, vision = described_tower(model.visual)
    preprocess = model.visual.preprocess_cfg
    if preprocess["resize_mode"] not in _RESIZE:
        raise ValueError(f"got the resize mode {preprocess['resize_mode']!r}; wanted one of {', '.join(_RESIZE)}")
    size = preprocess["size"]
    text, tensors = _text_of(model)
    words, json = _text_words(tokenizer)
    config = CLIPConfig(
        image_size=int(size[0] if isinstance(size, tuple | list) else size),
        resize=_RESIZE[preprocess["resize_mode"]],
        vision=VisionConfig(trunk=trunk, patch_size=patch, mean=preprocess["mean"], std=preprocess["std"]),
        text=_text_config(text, text_settings, words),
    )
    mine = TextTokenizer(config.text, json)
    if not torch.equal(mine(_SAMPLES), tokenizer(list(_SAMPLES))):
        raise ValueError("the tokenizer prepares texts in a way that is not supported; wanted that of CLIP or SigLIP")
    with without_values():
        clip = CLIP(config, mine)
    tensors = {f"text.network.{name}": tensor for name, tensor in tensors.items()}
    tensors |= {f"vision.{name}": tensor for name, tensor in vision.items()}
    tensors["logit_scale"] = model.logit_scale.detach().reshape(())
    bias = getattr(model, "logit_bias", None)
    tensors["logit_bias"] = torch.tensor(0.0) if bias is None else bias.detach().reshape(())
    load_strict(clip, tensors, source="the model of open_clip", mapped=True)
    return clip.eval()


def _refuse_other_text(settings: Mapping[str, Any]) -> None:
    if settings.get("hf_model_name") or settings.get("embed_cls"):
        raise ValueError("got a text tower of transformers or CoCa; wanted open_clip's own text transformer")


def _text_of(model: Any) -> tuple[Any, dict[str, Tensor]]:  # noqa: ANN401
    """Return the text tower, or the model that contains its modules, and its tensors with a projection."""
    if hasattr(model, "text"):
        text, tensors = model.text, dict(model.text.state_dict())
    else:
        text = model
        tensors = {k: x for k, x in model.state_dict().items() if not k.startswith(("visual.", "logit_"))}
    if text.text_projection is None:  # as in SigLIP's i18n; the identity changes nothing
        tensors["text_projection"] = torch.eye(text.ln_final.normalized_shape[0])
    return text, tensors


def _text_config(text: Any, settings: Mapping[str, Any], words: dict[str, Any]) -> TextConfig:  # noqa: ANN401
    from open_clip.model import CLIPTextCfg

    known = CLIPTextCfg(**settings)
    projection = text.text_projection
    linear = isinstance(projection, nn.Linear)
    if known.pool_type == "eos":
        words = words | {"eos_id": known.eos_id}
    return TextConfig(
        context_length=text.context_length,
        vocabulary=known.vocab_size,
        width=known.width,
        heads=known.heads,
        layers=known.layers,
        mlp_ratio=known.mlp_ratio,
        activation=activation_of(text.transformer.resblocks[0].mlp.gelu),
        norm_eps=text.ln_final.eps,
        causal=not known.no_causal_mask,
        pooling=known.pool_type,
        output_dim=known.width if projection is None else projection.out_features if linear else projection.shape[1],
        projection_bias=linear,
        **words,
    )


def _text_words(tokenizer: Any) -> tuple[dict[str, Any], str | None]:  # noqa: ANN401
    """Return the fields of TextConfig that describe open_clip's tokenizer, and its ``tokenizer.json``."""
    kind = type(tokenizer).__name__
    if kind not in ("SimpleTokenizer", "HFTokenizer"):
        raise ValueError(f"got a tokenizer {kind}; wanted open_clip's SimpleTokenizer or HFTokenizer")
    clean = tokenizer.clean_fn.__name__.removeprefix("_clean_")
    if kind == "SimpleTokenizer":
        return {"tokenizer": "clip", "clean": clean}, None
    inner = tokenizer.tokenizer
    special = inner("").input_ids
    before = inner.bos_token_id if special and special[0] == inner.bos_token_id else None
    after = special[-1] if special and special[-1] != before else None
    words = {"tokenizer": "file", "clean": clean, "bos_id": before, "eos_id": after, "pad_id": inner.pad_token_id or 0}
    return words, inner.backend_tokenizer.to_str()
