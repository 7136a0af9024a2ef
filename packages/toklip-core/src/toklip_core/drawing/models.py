"""Protocol of models that predict the next ids of a picture, for samplers.

Shape letters: B pictures, R rows (B, or 2 B with the rows without the condition last), n positions so far or of a step,
h and w grid, Q ids of a position, L levels of them, q levels so far, K_q size of level q, S width of a state, M any
number.
"""

from __future__ import annotations

from typing import Any, Protocol, TypeVar, runtime_checkable

import torch
from torch import Tensor

from toklip_core.drawing.levels import IdLevels
from toklip_core.drawing.settings import Drawing

_Condition = TypeVar("_Condition", contravariant=True)


class NextIdCache(Protocol):
    """Cache of a model for the pictures that are being drawn."""

    def keep(self, rows: int) -> None:
        """Drop all rows but the first ``rows``, when guidance ends and rows without the condition are not needed."""

    def cut(self, positions: int) -> None:
        """Forget all positions of the pictures but the first ``positions``, when those after them were drafts.

        The next step reads the ids from position ``positions`` on. A window of 1 has no drafts, so this is never
        called.
        """

    def tensors(self) -> list[Tensor]:
        """Return the tensors whose memory a compiled step uses; an empty list if the model has no such step."""


@runtime_checkable
class NextIdModel(Protocol[_Condition]):
    """A model that predicts the next ids: from the ids so far to a state, and from a state to logits, level by level.

    A condition is whatever the model needs for B pictures, such as classes, features of texts, or a prompt of a
    language model. A sampler only passes it on.
    """

    @property
    def levels(self) -> IdLevels:
        """Levels in which the ids of a position are predicted."""

    @property
    def grid(self) -> tuple[int, int]:
        """Rows h and columns w of the ids of a picture."""

    @property
    def drawing(self) -> Drawing:
        """The model's own settings of drawing, used for settings that a caller leaves open."""

    @property
    def device(self) -> torch.device:
        """Device of the ids."""

    def count(self, condition: _Condition) -> int:
        """Return the number B of pictures of a condition."""

    def prefill(self, condition: _Condition, ids: Tensor, *, guided: bool, steps: int) -> tuple[Tensor, Any]:
        """Read the ids of the first n positions; return the states (R, S) of position n, and a :class:`NextIdCache`.

        Args:
            condition: condition of B pictures.
            ids: (B, n, Q), int64; n may be 0.
            guided: predict without the condition as well: R = 2 B, the rows without it being last; else R = B.
            steps: greatest number of calls of :meth:`step` that follow, for a model that prepares itself for many.
        """

    def step(self, ids: Tensor, cache: Any) -> Tensor:  # noqa: ANN401 - each model has a cache of its own
        """Read the ids (B, n, Q) of the next n positions; return the states (R, n, S) of those after each of them.

        A state depends on the ids up to its own, so some of the ids may be drafts; see :meth:`NextIdCache.cut`.
        """

    def logits(self, states: Tensor, before: Tensor, cache: Any) -> Tensor:  # noqa: ANN401
        """Return the logits (M, K_q), float32, of level q.

        Args:
            states: (M, S), of any pictures and positions, from :meth:`prefill` or :meth:`step`.
            before: (M, q), the levels of the same position that are chosen; q is 0 for the first.
            cache: cache of the pictures, which does not change.
        """


@runtime_checkable
class CompilableModel(NextIdModel[_Condition], Protocol[_Condition]):
    """A model with a step of constant shapes, for ``torch.compile``."""

    def step_at(self, ids: Tensor, cache: Any, positions: Tensor) -> Tensor:  # noqa: ANN401
        """Return the result of ``step`` for ids (B, n, Q) at positions (n,), int64, counted from 0.

        What the cache holds of these positions is overwritten.
        """
