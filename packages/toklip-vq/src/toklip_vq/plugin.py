"""What toklip-vq offers: its tokenizers and its commands. Imports no torch."""

from __future__ import annotations

from pathlib import Path

from toklip_core.plugins import TokenizerSpec, VQTokenizer, hookimpl


def vqgan(weights: Path | None) -> VQTokenizer:
    """Build the tokenizer in a model folder; FileNotFoundError without one."""
    from toklip_vq.vqgan import load_vqgan

    if weights is None:
        raise FileNotFoundError(
            "the tokenizer 'vqgan' needs the folder that `toklip train vq` wrote: pass it as weights (`--weights FOLDER`)"
        )
    return load_vqgan(weights)


@hookimpl
def toklip_register_tokenizers() -> list[TokenizerSpec]:
    """Return the tokenizers of this package."""
    return [
        TokenizerSpec(name="vqgan", factory=vqgan, summary="A model folder that `toklip train vq` wrote; needs --weights FOLDER."),
    ]
