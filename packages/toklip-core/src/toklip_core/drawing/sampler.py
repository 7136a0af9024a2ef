"""The sampling loop: draws one id after another, with guidance, plain or compiled.

Each step asks the model for the logits of the next id. With guidance a picture has two rows in the model, one with its
condition and one without.

Letters: B pictures, h and w grid, N = h w, n ids of the prefix, R rows of logits, K ids of the codebook.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, NoReturn, TypeVar

import torch
from torch import Tensor
from tqdm import tqdm

from toklip_core.config import refuse_drawing
from toklip_core.drawing.choice import choose_ids
from toklip_core.drawing.guidance import guide
from toklip_core.drawing.models import CompilableModel, NextIdModel
from toklip_core.drawing.settings import Drawing
from toklip_core.weights import refuse_not_finite

_NO_LOGITS = "the weights are damaged, or numbers too large; load other ones, compute in float32, or lower the guidance"

_Condition = TypeVar("_Condition")


class Sampler(Generic[_Condition]):
    """Draws the ids of pictures with a model.

    A sampler owns the caches and graphs of compiled drawing. Keep it, so that further batches of the same shape are not
    compiled again.

    Args:
        model: says which id comes next, in evaluation mode.
        compiler: compiles a step, called as ``torch.compile`` is.
    """

    def __init__(self, model: NextIdModel[_Condition], *, compiler: Callable[..., Any] = torch.compile) -> None:
        self.model = model
        self._compiler = compiler
        #: Device -> compiled step.
        self._advance_on: dict[str, Callable[..., tuple[Tensor, Tensor]]] = {}
        #: Cache of the last compiled drawing.
        self._kept: Any = None

    @torch.no_grad()
    def draw(
        self,
        condition: _Condition,
        *,
        seeds: Sequence[int],
        drawing: Drawing = Drawing(),
        prefix: Tensor | None = None,
        compiled: bool = False,
        progress: bool = False,
    ) -> Tensor:
        """Draw pictures id by id; return ids (B, h, w), int64.

        Apart from rounding, a picture depends only on its condition, its prefix and its seed: it is the same alone and
        in a batch. All random numbers are drawn before the first step, one for each id.

        Args:
            condition: condition of B pictures, as the model takes it.
            seeds: one seed per picture.
            drawing: settings; those that are None are the model's own.
            prefix: (B, n) ids that the pictures start with, in raster order; n <= N.
            compiled: run with ``torch.compile``, for GPUs: the first step takes a minute, the others are faster.
            progress: show a progress bar on stderr.

        Raises:
            ValueError: a value is out of its range, shapes do not fit, logits are NaN or infinite, or the model cannot
                be compiled.
        """
        model = self.model
        drawing = drawing.completed(model.drawing)
        assert drawing.guidance is not None and drawing.top_k is not None
        refuse_drawing(top_k=drawing.top_k, most=model.codebook_size, seeds=seeds)
        if compiled and not isinstance(model, CompilableModel):
            raise ValueError(f"{type(model).__name__} has no step that can be compiled; draw without compiled")
        batch, count = model.count(condition), model.grid[0] * model.grid[1]
        if len(seeds) != batch:
            raise ValueError(f"got {len(seeds)} seeds for {batch} pictures; wanted one for each")
        ids = torch.zeros(batch, count, dtype=torch.int64, device=model.device)
        known = 0 if prefix is None else _begin(ids, prefix, model.codebook_size)
        if known < count and batch:
            luck = torch.stack([_uniform(seed, count) for seed in seeds]).to(ids.device)
            with tqdm(desc="ids", initial=known, total=count, disable=not progress) as bar:
                canvas = _Canvas(ids, known, luck, drawing.guidance.scales(count), drawing, bar)
                marks = (self._draw_compiled if compiled else self._draw)(condition, canvas)
            refuse_not_finite(marks, "a logit", advice=_NO_LOGITS)
        return ids.unflatten(1, model.grid)  # type: ignore[no-any-return, no-untyped-call]

    def _draw(self, condition: _Condition, canvas: _Canvas) -> Tensor:
        """Draw all ids into the canvas; return the sum (B,) of the marks."""
        ids, known, scales = canvas.ids, canvas.known, canvas.scales
        batch, count = ids.shape
        logits, cache = self.model.prefill(
            condition, ids[:, :known], guided=canvas.is_guided, steps=count - known - 1
        )
        guided_to = max((i for i, scale in enumerate(scales) if scale != 1), default=-1)
        marks = canvas.luck.new_zeros(batch)
        for i in range(known, count):
            if i > known:
                if i > guided_to:
                    cache.keep(batch)
                logits = self.model.step(ids[:, i - 1], cache)
            marks += canvas.put(i, logits)
        return marks

    def _draw_compiled(self, condition: _Condition, canvas: _Canvas) -> Tensor:
        """Do the same as :meth:`_draw`, with every step as one call of a graph with constant shapes."""
        ids, known = canvas.ids, canvas.known
        count = ids.shape[1]
        logits, cache = self.model.prefill(condition, ids[:, :known], guided=canvas.is_guided, steps=0)
        marks = canvas.put(known, logits)
        cache = self._placed(cache)
        scale = torch.tensor(canvas.scales, device=ids.device)
        position = torch.arange(count, device=ids.device)
        advance = self._compiled(ids.device.type)
        for i in range(known + 1, count):
            before, place = ids[:, i - 1].clone(), position[i - 1 : i].clone()
            ids[:, i], mark = advance(self.model, cache, before, place, scale[i], canvas.luck[:, i], canvas.drawing)
            marks += mark
            canvas.bar.update()
        return marks

    def _compiled(self, device: str) -> Callable[..., tuple[Tensor, Tensor]]:
        if device not in self._advance_on:
            mode = "reduce-overhead" if device == "cuda" else "default"
            self._advance_on[device] = self._compiler(_advance, fullgraph=True, mode=mode)
        return self._advance_on[device]

    def _placed(self, cache: Any) -> Any:  # noqa: ANN401
        """Return the cache of the last drawing, filled with this one, or this one if its shapes differ.

        A graph uses fixed memory, so with a new cache each batch would be compiled or recorded again.
        """
        new, old = cache.tensors(), [] if self._kept is None else self._kept.tensors()
        shapes = [[(x.shape, x.dtype, x.device) for x in tensors] for tensors in (old, new)]
        if self._kept is not None and shapes[0] == shapes[1]:
            for place, tensor in zip(old, new, strict=True):
                place.copy_(tensor)
            return self._kept
        for tensor in new:
            torch._dynamo.mark_static_address(tensor, guard=False)  # otherwise CUDA graphs copy them at every step
        self._kept = cache
        return cache


@dataclass
class _Canvas:
    """Pictures that are being drawn."""

    #: (B, N); ids before ``known`` are the prefix.
    ids: Tensor
    known: int
    #: Random numbers (B, N), uniform in [0, 1).
    luck: Tensor
    #: Guidance scale of each id.
    scales: list[float]
    drawing: Drawing
    bar: tqdm[NoReturn]

    @property
    def is_guided(self) -> bool:
        """Return whether any further id is drawn with guidance."""
        return any(scale != 1 for scale in self.scales[self.known :])

    def put(self, i: int, logits: Tensor) -> Tensor:
        """Choose id i of each picture by logits (R, K); return the marks (B,)."""
        guided = guide(logits, len(self.ids), self.scales[i])
        self.ids[:, i] = choose_ids(guided, self.luck[:, i], self.drawing)
        self.bar.update()
        return _mark(guided)


def _advance(
    model: CompilableModel[Any],
    cache: Any,  # noqa: ANN401
    ids: Tensor,
    position: Tensor,
    scale: Tensor,
    luck: Tensor,
    drawing: Drawing,
) -> tuple[Tensor, Tensor]:
    """Return the ids (B,) that follow ``ids`` (B,), which are at ``position`` (1,) of the picture, and their marks."""
    guided = guide(model.step_at(ids, cache, position), len(ids), scale)
    return choose_ids(guided, luck, drawing), _mark(guided)


def _mark(logits: Tensor) -> Tensor:
    """Return marks (B,): 0, or NaN if no id can be chosen by logits (B, K). They are checked once, after the last step.

    -inf excludes an id and is allowed unless all logits are -inf.
    """
    return 0 * logits.amax(-1)


def _uniform(seed: int, count: int) -> Tensor:
    return torch.rand(count, generator=torch.Generator().manual_seed(seed))


def _begin(ids: Tensor, prefix: Tensor, codebook_size: int) -> int:
    """Put a prefix into ids (B, N), and return its length."""
    if prefix.is_floating_point():
        raise ValueError(f"got a prefix of {prefix.dtype}; wanted ids, which are integers")
    if prefix.ndim != 2 or len(prefix) != len(ids) or prefix.shape[1] > ids.shape[1]:
        raise ValueError(f"got the prefix {tuple(prefix.shape)}; wanted ({len(ids)}, n), n from 0 to {ids.shape[1]}")
    if prefix.numel() and not 0 <= int(prefix.min()) <= int(prefix.max()) < codebook_size:
        raise ValueError(f"the prefix has ids from {prefix.min()} to {prefix.max()}; wanted 0 to {codebook_size - 1}")
    ids[:, : prefix.shape[1]] = prefix
    return prefix.shape[1]
