"""What toklip-vq offers: its tokenizers and its commands. Imports no torch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Literal

from toklip_core.plugins import TokenizerSpec, VQTokenizer, hookimpl

#: Name -> size, file on the hub (repository/file). Source: README of FoundationVision/LlamaGen.
_LLAMAGEN: dict[str, tuple[Literal["VQ-16", "VQ-8"], str]] = {
    "llamagen-vq16-c2i": ("VQ-16", "FoundationVision/LlamaGen/vq_ds16_c2i.pt"),
    "llamagen-vq16-t2i": ("VQ-16", "peizesun/llamagen_t2i/vq_ds16_t2i.pt"),
    "llamagen-vq8-c2i": ("VQ-8", "FoundationVision/LlamaGen/vq_ds8_c2i.pt"),
}

#: Name -> codebook size, file on the hub. Source: docs/IBQ.md of TencentARC/SEED-Voken.
_IBQ: dict[str, tuple[int, str]] = {
    "ibq-1024": (1024, "TencentARC/IBQ-Tokenizer-1024/imagenet256_1024.ckpt"),
    "ibq-8192": (8192, "TencentARC/IBQ-Tokenizer-8192/imagenet256_8192.ckpt"),
    "ibq-16384": (16384, "TencentARC/IBQ-Tokenizer-16384/imagenet256_16384.ckpt"),
    "ibq-262144": (262144, "TencentARC/IBQ-Tokenizer-262144/imagenet256_262144.ckpt"),
    "ibq-16384-pretrain": (16384, "TencentARC/IBQ-Tokenizer-16384-Pretrain/IBQ_pretrain_16384.ckpt"),
    "ibq-262144-pretrain": (262144, "TencentARC/IBQ-Tokenizer-262144-Pretrain/IBQ_pretrain_262144.ckpt"),
}


def _vqgan(weights: Path | None) -> VQTokenizer:
    from toklip_vq.vqgan import load_vqgan

    if weights is None:
        raise FileNotFoundError(
            "the tokenizer 'vqgan' is a folder that `toklip train vq` wrote: pass it as weights (`--weights FOLDER`)"
        )
    return load_vqgan(weights)


def _llamagen(size: Literal["VQ-16", "VQ-8"], source: str) -> Callable[[Path | None], VQTokenizer]:
    def factory(weights: Path | None) -> VQTokenizer:
        from toklip_vq.llamagen import load_llamagen

        return load_llamagen(weights or _published(source), size)

    return factory


def _ibq(codebook_size: int, source: str, *, ema: bool) -> Callable[[Path | None], VQTokenizer]:
    def factory(weights: Path | None) -> VQTokenizer:
        from toklip_vq.ibq import load_ibq

        return load_ibq(weights or _published(source), codebook_size, ema=ema)

    return factory


def _published(source: str) -> Path:
    from toklip_core.checkpoint import hub_file

    repository, _, filename = source.rpartition("/")
    return hub_file(repository, filename)


def _llamagen_spec(name: str, size: Literal["VQ-16", "VQ-8"], source: str) -> TokenizerSpec:
    task = "class" if name.endswith("c2i") else "text"
    return TokenizerSpec(
        name=name,
        factory=_llamagen(size, source),
        summary=f"LlamaGen {size}, 16384 codes, of the {task}-to-image models.",
        source=source,
    )


def _ibq_spec(name: str, size: int, source: str, *, ema: bool) -> TokenizerSpec:
    data = "200M pictures" if name.endswith("pretrain") else "ImageNet"
    return TokenizerSpec(
        name=name if ema else f"{name}-raw",
        factory=_ibq(size, source, ema=ema),
        summary=f"IBQ, {size} codes, trained on {data}; {'averaged' if ema else 'raw'} weights.",
        source=source,
    )


@hookimpl
def toklip_register_tokenizers() -> list[TokenizerSpec]:
    """Return the tokenizers of this package."""
    return [
        TokenizerSpec(
            name="vqgan", factory=_vqgan, summary="A folder that `toklip train vq` wrote; needs --weights FOLDER."
        ),
        *(_llamagen_spec(name, size, source) for name, (size, source) in _LLAMAGEN.items()),
        *(_ibq_spec(name, size, source, ema=ema) for name, (size, source) in _IBQ.items() for ema in (True, False)),
    ]
