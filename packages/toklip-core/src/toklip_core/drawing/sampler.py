"""The sampling loop: draws the ids of one position after another, with guidance, plain or compiled.

Each step asks the model for the states of the next position, and for logits from them, level by level. With guidance a
picture has two rows in the model, one with its condition and one without.

Letters: B pictures, h and w grid, N = h w, n positions of the prefix, Q ids of a position, L levels of them, R rows,
S width of a state.
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
        """Draw pictures id by id; return ids (B, h, w, Q), int64.

        Apart from rounding, a picture depends only on its condition, its prefix and its seed: it is the same alone and
        in a batch. All random numbers are drawn before the first step, one for each level of a position.

        Args:
            condition: condition of B pictures, as the model takes it.
            seeds: one seed per picture.
            drawing: settings; those that are None are the model's own.
            prefix: (B, n, Q) ids that the pictures start with, in raster order; n <= N.
            compiled: run with ``torch.compile``, for GPUs: the first step takes a minute, the others are faster.
            progress: show a progress bar on stderr.

        Raises:
            ValueError: a value is out of its range, shapes do not fit, logits are NaN or infinite, or the model cannot
                be compiled.
        """
        model = self.model
        drawing = drawing.completed(model.drawing)
        assert drawing.guidance is not None and drawing.top_k is not None
        refuse_drawing(top_k=drawing.top_k, most=max(model.levels.sizes), seeds=seeds)
        if compiled and not isinstance(model, CompilableModel):
            raise ValueError(f"{type(model).__name__} has no step that can be compiled; draw without compiled")
        batch, count = model.count(condition), model.grid[0] * model.grid[1]
        if len(seeds) != batch:
            raise ValueError(f"got {len(seeds)} seeds for {batch} pictures; wanted one for each")
        sizes = model.levels.codebook_sizes
        ids = torch.zeros(batch, count, len(sizes), dtype=torch.int64, device=model.device)
        known = 0 if prefix is None else _begin(ids, prefix, sizes)
        if known < count and batch:
            shape = (count, len(model.levels.sizes))
            luck = torch.stack([_uniform(seed, shape) for seed in seeds]).to(ids.device)
            with tqdm(desc="ids", initial=known, total=count, disable=not progress) as bar:
                canvas = _Canvas(ids, known, luck, drawing.guidance.scales(count), drawing, bar)
                marks = (self._draw_compiled if compiled else self._draw)(condition, canvas)
            refuse_not_finite(marks, "a logit", advice=_NO_LOGITS)
        return ids.unflatten(1, model.grid)  # type: ignore[no-any-return, no-untyped-call]

    def _draw(self, condition: _Condition, canvas: _Canvas) -> Tensor:
        """Draw all ids into the canvas; return the sum (B,) of the marks."""
        ids, known, scales = canvas.ids, canvas.known, canvas.scales
        batch, count, _ = ids.shape
        states, cache = self.model.prefill(
            condition, ids[:, :known], guided=canvas.is_guided, steps=count - known - 1
        )
        guided_to = max((i for i, scale in enumerate(scales) if scale != 1), default=-1)
        marks = canvas.luck.new_zeros(batch)
        for i in range(known, count):
            if i > known:
                if i > guided_to:
                    cache.keep(batch)
                states = self.model.step(ids[:, i - 1 : i], cache)[:, 0]
            marks += canvas.put(i, self.model, states, cache)
        return marks

    def _draw_compiled(self, condition: _Condition, canvas: _Canvas) -> Tensor:
        """Do the same as :meth:`_draw`, with every step as one call of a graph with constant shapes."""
        ids, known = canvas.ids, canvas.known
        count = ids.shape[1]
        states, cache = self.model.prefill(condition, ids[:, :known], guided=canvas.is_guided, steps=0)
        marks = canvas.put(known, self.model, states, cache)
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

    #: (B, N, Q); positions before ``known`` are the prefix.
    ids: Tensor
    known: int
    #: Random numbers (B, N, L), uniform in [0, 1).
    luck: Tensor
    #: Guidance scale of each position.
    scales: list[float]
    drawing: Drawing
    bar: tqdm[NoReturn]

    @property
    def is_guided(self) -> bool:
        """Return whether any further id is drawn with guidance."""
        return any(scale != 1 for scale in self.scales[self.known :])

    def put(self, i: int, model: NextIdModel[Any], states: Tensor, cache: Any) -> Tensor:  # noqa: ANN401
        """Choose the ids of position i of each picture by states (R, S); return the marks (B,)."""
        self.ids[:, i], marks = _chosen(model, states, cache, self.scales[i], self.luck[:, i], self.drawing)
        self.bar.update()
        return marks


def _advance(
    model: CompilableModel[Any],
    cache: Any,  # noqa: ANN401
    ids: Tensor,
    position: Tensor,
    scale: Tensor,
    luck: Tensor,
    drawing: Drawing,
) -> tuple[Tensor, Tensor]:
    """Return the ids (B, Q) that follow ``ids`` (B, Q), which are at ``position`` (1,) of the picture, and marks."""
    return _chosen(model, model.step_at(ids[:, None], cache, position)[:, 0], cache, scale, luck, drawing)


def _chosen(
    model: NextIdModel[Any],
    states: Tensor,
    cache: Any,  # noqa: ANN401
    scale: float | Tensor,
    luck: Tensor,
    drawing: Drawing,
) -> tuple[Tensor, Tensor]:
    """Choose the ids (B, Q) of a position by states (R, S) and numbers (B, L), level by level; return them and marks.

    A mark is 0, or NaN if no id can be chosen by the logits. Marks (B,) are checked once, after the last step; -inf
    excludes an id and is allowed unless all logits of a level are -inf.
    """
    batch = len(luck)
    chosen = torch.zeros(batch, 0, dtype=torch.int64, device=luck.device)
    marks = luck.new_zeros(batch)
    for level in range(luck.shape[1]):
        logits = model.logits(states, chosen.repeat(len(states) // batch, 1), cache)
        logits = guide(logits, batch, scale)
        chosen = torch.cat([chosen, choose_ids(logits, luck[:, level], drawing)[:, None]], dim=1)
        marks = marks + 0 * logits.amax(-1)
    return model.levels.join(chosen), marks


def _uniform(seed: int, shape: tuple[int, int]) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def _begin(ids: Tensor, prefix: Tensor, codebook_sizes: Sequence[int]) -> int:
    """Put a prefix into ids (B, N, Q), and return its length."""
    if prefix.is_floating_point():
        raise ValueError(f"got a prefix of {prefix.dtype}; wanted ids, which are integers")
    batch, count, each = ids.shape
    if prefix.ndim != 3 or prefix.shape[0] != batch or prefix.shape[1] > count or prefix.shape[2] != each:
        wanted = f"({batch}, n, {each}), n from 0 to {count}"
        raise ValueError(f"got the prefix {tuple(prefix.shape)}; wanted {wanted}")
    for level, size in enumerate(codebook_sizes):
        own = prefix[..., level]
        if own.numel() and not 0 <= int(own.min()) <= int(own.max()) < size:
            where = f" of level {level}" if each > 1 else ""
            raise ValueError(f"the prefix has ids{where} from {own.min()} to {own.max()}; wanted 0 to {size - 1}")
    ids[:, : prefix.shape[1]] = prefix
    return prefix.shape[1]
