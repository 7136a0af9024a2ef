"""What toklip-vq offers: its tokenizers and its commands. Imports no torch."""

from __future__ import annotations

from toklip_core.plugins import TokenizerSpec, hookimpl


@hookimpl
def toklip_register_tokenizers() -> list[TokenizerSpec]:
    """Return the tokenizers of this package."""
    return []
