"""What a model of ids offers to a sampler: the logits of the next id.

Letters: B pictures, R rows (B, or 2 B with the rows without the condition last), n ids so far, h and w grid, K ids.
"""

from __future__ import annotations

from typing import Any, Protocol, TypeVar, runtime_checkable

import torch
from torch import Tensor

from toklip_core.drawing.settings import Drawing

_Condition = TypeVar("_Condition", contravariant=True)


class NextIdCache(Protocol):
    """What a model remembers of the pictures that are being drawn."""

    def keep(self, rows: int) -> None:
        """Forget all rows but the first ``rows``: guidance has ended, and those without the condition with it."""

    def tensors(self) -> list[Tensor]:
        """Return the tensors whose place in memory a compiled step depends on; [] if the model has no such step."""


@runtime_checkable
class NextIdModel(Protocol[_Condition]):
    """A model that says which id comes next: ids so far in, logits out.

    A condition is whatever the model draws by, of B pictures at once: classes, features of texts, a prompt of a
    language model. A sampler only hands it on.
    """

    @property
    def codebook_size(self) -> int:
        """K: the number of ids to choose from."""

    @property
    def grid(self) -> tuple[int, int]:
        """Rows h and columns w of the ids of a picture."""

    @property
    def drawing(self) -> Drawing:
        """The model's own settings, for what a caller leaves open."""

    @property
    def device(self) -> torch.device:
        """Device that ids are put on."""

    def count(self, condition: _Condition) -> int:
        """Return B, the number of pictures that a condition is of."""

    def prefill(self, condition: _Condition, ids: Tensor, *, guided: bool, steps: int) -> tuple[Tensor, Any]:
        """Read the first n ids; return the logits (R, K), float32, of id n, and a :class:`NextIdCache`.

        Args:
            condition: condition of B pictures.
            ids: (B, n), int64; n may be 0.
            guided: predict without the condition as well: R = 2 B, the rows without it being last; else R = B.
            steps: number of calls of :meth:`step` that follow, for a model that prepares itself for many.
        """

    def step(self, ids: Tensor, cache: Any) -> Tensor:  # noqa: ANN401 - each model has a cache of its own
        """Read one more id of each picture, (B,); return the logits (R, K), float32, of the id after it."""


@runtime_checkable
class CompilableModel(NextIdModel[_Condition], Protocol[_Condition]):
    """A model with a step whose shapes do not change, for ``torch.compile``."""

    def step_at(self, ids: Tensor, cache: Any, position: Tensor) -> Tensor:  # noqa: ANN401
        """Do what ``step`` does, for ids at a position (1,), int64, counted from 0, that is a tensor."""
