"""LlamaGen's own files: their layouts, and the names of tensors in them.

A file contains a training run. The generator lies under ``model`` (DDP), ``module`` (DeepSpeed) or ``state_dict``, or
at the top level (FSDP). Gate and up of the SwiGLU are two tensors there and one here.

Source: autoregressive/sample/sample_c2i.py and models/gpt.py of FoundationVision/LlamaGen.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from toklip_core.tokenizer import TokenizerRecord
from toklip_core.weights import load_strict, read_tensors, state_dict_in, stored_dtype, without_values
from torch import Tensor

from toklip_gen.generator.config import SIZES, ClassCondition, GeneratorConfig, TextCondition
from toklip_gen.generator.model import Generator
from toklip_gen.published import LLAMAGEN

LAYOUTS = ("model", "module", "state_dict")

#: Names in an official file that the generator does not take -> reason.
IGNORED = {
    r"layers\.\d+\.attention\.kv_cache\.[kv]_cache": "a cache, which a run that had drawn pictures saved",
    r"freqs_cis|causal_mask": "computed here",
}

#: Separator between the two names of a merged tensor.
_AND = " and "
_GATE, _UP = r"(layers\.\d+\.feed_forward)\.w1\.weight", r"\1.w3.weight"

#: Patterns of our names -> names in an official file.
_NAMES = (
    (r"condition\.weight", "cls_embedding.embedding_table.weight"),
    (r"condition\.nothing", "cls_embedding.uncond_embedding"),
    (r"condition\.(fc\d)\.weight", r"cls_embedding.cap_proj.\1.weight"),
    (r"input\.weight", "tok_embeddings.weight"),
    (r"blocks\.(\d+)\.qkv\.weight", r"layers.\1.attention.wqkv.weight"),
    (r"blocks\.(\d+)\.proj\.weight", r"layers.\1.attention.wo.weight"),
    (r"blocks\.(\d+)\.norm1\.weight", r"layers.\1.attention_norm.weight"),
    (r"blocks\.(\d+)\.norm2\.weight", r"layers.\1.ffn_norm.weight"),
    (r"blocks\.(\d+)\.gate_up\.weight", rf"layers.\1.feed_forward.w1.weight{_AND}layers.\1.feed_forward.w3.weight"),
    (r"blocks\.(\d+)\.down\.weight", r"layers.\1.feed_forward.w2.weight"),
    (r"norm\.weight", "norm.weight"),
    (r"head\.weight", "output.weight"),
)


def load_official(
    path: Path | str, config: GeneratorConfig | None = None, dtype: torch.dtype | None = None
) -> Generator:
    """Return LlamaGen's generator in evaluation mode; no code in the file is run.

    Args:
        path: .pt file, or safetensors with the official names.
        config: config of the generator; None: that of the published file with the same name, because a file does not
            tell its grid and heads.
        dtype: dtype of the generator; None: as stored, float16 as float32.

    Raises:
        FileNotFoundError: the file is missing.
        LookupError: no config is given, and no published file has this name.
        ValueError: the file is damaged or contains code, or its tensors do not fit.
    """
    path = Path(path)
    tensors = official_tensors(state_dict_in(read_tensors(path), LAYOUTS, source=path))
    if config is None:
        try:
            config = llamagen_config(path.name)
        except LookupError as error:
            way_out = "so rename it to its published name, such as c2i_B_256.pt"
            raise LookupError(f"{error}; a file tells neither its grid nor its heads, {way_out}") from error
    with without_values():
        generator = Generator(config)
    generator.to(dtype or stored_dtype(tensors.get("norm.weight")))
    load_strict(generator, tensors, source=path, name_in_file=official_name, ignored=IGNORED, mapped=True)
    return generator.eval()


def official_name(name: str) -> str:
    """Return the name in official files for a tensor of a generator; a merged tensor has both names."""
    for pattern, replacement in _NAMES:
        if re.fullmatch(pattern, name):
            return re.sub(pattern, replacement, name)
    return name


def official_tensors(state: Mapping[str, Any]) -> dict[str, Any]:
    """Return tensors by their official names; gate and up are merged, under both names."""
    tensors = dict(state)
    for name in list(tensors):
        other = re.sub(_GATE, _UP, name)
        pair = tensors.get(name), tensors.get(other)
        if other != name and all(isinstance(tensor, Tensor) for tensor in pair):
            del tensors[name], tensors[other]
            tensors[f"{name}{_AND}{other}"] = torch.cat(pair)  # type: ignore[arg-type]
    return tensors


def llamagen_config(name: str) -> GeneratorConfig:
    """Return the config of a LlamaGen generator by its name or its file's name; LookupError if it is unknown."""
    named = {key: file for key, file in LLAMAGEN.items() if name in (key, file.source.rsplit("/", 1)[1])}
    if not named:
        raise LookupError(f"no generator of LlamaGen's, and no file of one, is named {name!r}")
    (key, file), *_ = named.items()
    width, depth, heads = SIZES[file.size]
    of_class = "c2i" in key
    side = file.image_size // 16
    return GeneratorConfig(
        tokenizer=TokenizerRecord(name=f"llamagen-vq16-{'c2i' if of_class else 't2i'}"),
        codebook_sizes=(16384,),
        image_size=(file.image_size, file.image_size),
        grid=(side, side),
        resize="crop",  # center_crop_arr in its extract_codes_c2i.py
        width=width,
        depth=depth,
        heads=heads,
        condition=ClassCondition(classes=1000)
        if of_class
        else TextCondition(encoder="google/flan-t5-xl", length=120, width=2048),
        # Settings of sample_c2i.py and sample_t2i.py.
        guidance=4.0 if of_class else 7.5,
        top_k=2000 if of_class else 1000,
    )
