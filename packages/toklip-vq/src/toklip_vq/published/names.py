"""Names of tensors in published files, from our names by patterns."""

from __future__ import annotations

import re
from collections.abc import Sequence


def published_name(name: str, patterns: Sequence[tuple[str, str]]) -> str:
    """Return a name after all replacements, one after another, of patterns for ``re.sub``.

    >>> published_name("codebook.weight", [(r"^codebook\\.", "quantize."), ("weight$", "rows")])
    'quantize.rows'
    """
    for pattern, replacement in patterns:
        name = re.sub(pattern, replacement, name)
    return name
