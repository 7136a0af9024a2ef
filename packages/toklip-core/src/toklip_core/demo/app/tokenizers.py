"""One picture through several VQ tokenizers, and which of them need no network.

Shape letters: h and w grid of ids, Q levels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from huggingface_hub import try_to_load_from_cache

from toklip_core.config import Compute
from toklip_core.evaluation import Reconstruction, ids_in_words, reconstruct_image
from toklip_core.pictures import open_picture
from toklip_core.plugins import Registry, TokenizerSpec
from toklip_core.tokenizer import load_tokenizer

#: Columns of the table; see :meth:`TokenizerView.row`.
HEADER = ["tokenizer", "picture", "ids", "ids per picture", "bits per picture", "PSNR (dB)"]


class TokenizerView(NamedTuple):
    """A picture through one tokenizer."""

    name: str
    codebook_sizes: tuple[int, ...]
    reconstruction: Reconstruction

    @property
    def caption(self) -> str:
        """Line below the reconstruction."""
        return f"{self.name}: {self.reconstruction.ids.numel():,} ids, {self.reconstruction.psnr:.2f} dB"

    @property
    def row(self) -> list[str]:
        """Row of the table, see HEADER."""
        rows, columns, _ = self.reconstruction.ids.shape
        side = self.reconstruction.image.width
        return [
            self.name,
            f"{side} x {side}",
            ids_in_words((rows, columns), self.codebook_sizes),
            f"{self.reconstruction.ids.numel():,}",
            f"{rows * columns * sum(map(math.log2, self.codebook_sizes)):,.0f}",
            f"{self.reconstruction.psnr:.2f}",
        ]


def offline_tokenizers(plugins: Registry) -> list[TokenizerSpec]:
    """Return the tokenizers that need no network: those without published weights, and those in the hub's cache."""
    return [spec for spec in plugins.tokenizers.values() if not spec.source or _is_cached(spec.source)]


def shipped_tokenizers(plugins: Registry) -> list[TokenizerSpec]:
    """Return the tokenizers whose weights are in a package: small ones, which load at once."""
    # The weights decide the codebook of the others, and without a path there are none.
    return [spec for spec in plugins.tokenizers.values() if not spec.source and spec.codebook_sizes]


def compare_on(
    file: Path | str, names: Sequence[str], compute: Compute = Compute()
) -> tuple[list[TokenizerView], list[str]]:
    """Return the picture of a file through each tokenizer that loads, and a line for each that does not.

    One tokenizer at a time is in memory.

    Args:
        file: picture.
        names: names of tokenizers.
        compute: device, and maximum pixels of the picture.

    Raises:
        PictureError: the picture cannot be read.
    """
    image = open_picture(file, max_pixels=compute.max_pixels)
    views: list[TokenizerView] = []
    problems: list[str] = []
    for name in names:
        try:
            tokenizer = load_tokenizer(name)
            reconstruction = reconstruct_image(tokenizer, image, device=compute.device)
        except (ValueError, LookupError, OSError) as error:
            problems.append(f"{name} is left out: {error}")
        else:
            views.append(TokenizerView(name, tokenizer.codebook_sizes, reconstruction))
    return views, problems


def _is_cached(source: str) -> bool:
    owner, repository, file = source.split("/", 2)
    return isinstance(try_to_load_from_cache(f"{owner}/{repository}", file), str)
