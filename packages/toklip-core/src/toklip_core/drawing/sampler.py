"""The sampling loop: draws the ids of the positions from the first to the last, with guidance, plain or compiled.

Each call asks the model for the states of the next positions, and for logits from them, level by level. With guidance a
picture has two rows in the model, one with its condition and one without.

All random numbers are fixed beforehand, so the ids of a position are a function of those before it. With a window of W,
a call reads W ids, of which all but the first are drafts, and draws the W ids that follow them. Those up to the first
that differs from its draft have the right ids before them, so they are final; the others are the next drafts. Each call
gives at least one position, and the ids are those of a window of 1, in at most as many calls.

Source: Jacobi iteration of x_i = F_i(x_0 ... x_(i-1)), for sampling with fixed noise as in Wiggers and Hoogeboom,
Predictive Sampling with Forecasting Autoregressive Models, https://arxiv.org/abs/2002.09928.

Shape letters: B pictures, h and w grid, N = h w, n positions of the prefix or of a call, Q ids of a position, L levels
of them, R rows, S width of a state.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from types import FunctionType
from typing import Any, Generic, NamedTuple, NoReturn, TypeVar

import torch
from torch import Tensor
from tqdm import tqdm

from toklip_core.config import refuse_drawing
from toklip_core.drawing.choice import choose_ids
from toklip_core.drawing.guidance import guide
from toklip_core.drawing.models import CompilableModel, NextIdModel
from toklip_core.drawing.noise import GumbelNoise, Noise, UniformNoise
from toklip_core.drawing.settings import Drawing
from toklip_core.drawing.window import WidthChooser, Window, refuse_window
from toklip_core.weights import refuse_not_finite

_NO_LOGITS = "the weights are damaged, or numbers too large; load other ones, compute in float32, or lower the guidance"

_Condition = TypeVar("_Condition")

#: From the first of n positions, and n, to the ids (B, n, Q) that are chosen there, and NaN flags (B, n).
_Call = Callable[[int, int], tuple[Tensor, Tensor]]


class DrawResult(NamedTuple):
    """Ids of pictures that were drawn, and what they took."""

    #: (B, h, w, Q), int64.
    ids: Tensor
    #: Number of calls of the model, the first of which reads the prefix; 0 if the prefix is the whole picture.
    calls: int
    #: Width of the window. That of "auto" is the fastest that was tried in full, 1 before any was. 1 if nothing was
    #: drawn.
    window: int


class Sampler(Generic[_Condition]):
    """Draws the ids of pictures with a model.

    A sampler owns the caches and graphs of compiled drawing. Keep it, so that further batches of the same shape are not
    compiled again.

    Args:
        model: model that predicts the next id, in evaluation mode.
        window: largest number of positions that a call of the model draws; "auto" times the first calls, and chooses.
            Apart from rounding, the ids do not depend on it.
        compiler: compiles a step, called as ``torch.compile`` is; another one is for tests.

    Raises:
        ValueError: the window is neither a number, 1 or more, nor "auto".
    """

    def __init__(
        self,
        model: NextIdModel[_Condition],
        *,
        window: Window = 1,
        compiler: Callable[..., Any] = torch.compile,
    ) -> None:
        refuse_window(window)
        self.model = model
        self.window = window
        self._compiler = compiler
        #: Number of positions, of pictures, device and settings but guidance -> compiled step.
        self._advance_for: dict[tuple[int, int, str, Drawing], Callable[..., tuple[Tensor, Tensor]]] = {}
        #: Cache of the last compiled drawing.
        self._kept: Any = None
        #: Number of pictures, length of the prefix, settings, compiled or not -> the chooser for "auto".
        self._choosers: dict[tuple[int, int, Drawing, bool], WidthChooser] = {}

    @torch.no_grad()
    def draw(
        self,
        condition: _Condition,
        *,
        seeds: Sequence[int],
        drawing: Drawing = Drawing(),
        prefix: Tensor | None = None,
        window: Window | None = None,
        compiled: bool = False,
        progress: bool = False,
    ) -> DrawResult:
        """Draw pictures id by id; return ids (B, h, w, Q), int64, with calls of the model and width of the window.

        Apart from rounding, a picture depends only on its condition, its prefix and its seed: it is the same alone and
        in a batch. All random numbers are a function of the seed, the position and the level.

        Args:
            condition: condition of B pictures, as the model takes it.
            seeds: one seed per picture.
            drawing: settings; those that are None are the model's own.
            prefix: (B, n, Q) ids that the pictures start with, in raster order; n <= N.
            window: window of this drawing; None: that of the sampler.
            compiled: run with ``torch.compile``, meant for GPUs, where it was not measured: the first step takes a
                minute. With a window of "auto" each width that is tried takes a minute.
            progress: show a progress bar on stderr.

        Raises:
            ValueError: a value is out of its range, shapes do not fit, logits are NaN or infinite, or the model cannot
                be compiled.
        """
        model, window = self.model, self.window if window is None else window
        refuse_window(window)
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
        calls, width = 0, 1
        if known < count and batch:
            kind = GumbelNoise if drawing.noise == "gumbel" else UniformNoise
            noise = kind(seeds, count, model.levels.sizes, ids.device)
            with tqdm(desc="ids", initial=known, total=count, disable=not progress) as bar:
                pictures = _Pictures(ids, known, noise, drawing.guidance.scales(count), drawing, bar)
                calls, width = self._draw(condition, pictures, window, compiled=compiled)
            refuse_not_finite(pictures.nan_flags, "a logit", advice=_NO_LOGITS)
        # The call has no types in torch.
        return DrawResult(ids.unflatten(1, model.grid), calls, width)  # type: ignore[no-untyped-call]

    def _draw(self, condition: _Condition, pictures: _Pictures, window: Window, *, compiled: bool) -> tuple[int, int]:
        """Draw all ids of pictures; return the number of calls of the model, and the width of the window."""
        ids, known, drawing = pictures.ids, pictures.done, pictures.drawing
        batch, count, _ = ids.shape
        steps = 0 if compiled else count - known - 1
        states, cache = self.model.prefill(condition, ids[:, :known], guided=pictures.is_guided, steps=steps)
        pictures.accept(known, *_choose(self.model, states[:, None], cache, pictures.choice(known, 1), drawing))
        calls, chooser = 1, None
        if window == "auto":
            chooser = self._choosers.setdefault((batch, known, drawing, compiled), WidthChooser(count - known - 1))
        call = self._compiled_call(cache, pictures) if compiled else self._plain_call(cache, pictures)
        while (done := pictures.done) < count:
            start = time.perf_counter()
            width = chooser.width if chooser else int(window)
            # Compiled calls have constant shapes, so the last ones begin with positions that are done.
            n = min(width, count - 1 if compiled else count - done)
            first = min(done, count - n)
            pictures.draft(first + n - 1)
            pictures.accept(first, *call(first, n))
            calls += 1
            if chooser and width <= count - done:  # the last calls have fewer positions left than they could draw
                ids[0, 0, 0].item()  # waits for the device
                chooser.note(width, positions=pictures.done - done, seconds=time.perf_counter() - start)
        return calls, chooser.chosen if chooser else int(window)

    def _plain_call(self, cache: Any, pictures: _Pictures) -> _Call:  # noqa: ANN401 - the model's own
        model, ids, held = self.model, pictures.ids, pictures.done - 1

        def call(first: int, n: int) -> tuple[Tensor, Tensor]:
            nonlocal held
            if held > first - 1:
                cache.cut(first - 1)
            if first > pictures.guided_to:
                cache.keep(len(ids))
            states = model.step(ids[:, first - 1 : first - 1 + n], cache)
            held = first - 1 + n
            return _choose(model, states, cache, pictures.choice(first, n), pictures.drawing)

        return call

    def _compiled_call(self, cache: Any, pictures: _Pictures) -> _Call:  # noqa: ANN401 - the model's own
        """Return the same as :meth:`_plain_call`, as one graph with constant shapes."""
        fixed, ids = self._fixed(cache), pictures.ids
        positions = torch.arange(ids.shape[1], device=ids.device)

        def call(first: int, n: int) -> tuple[Tensor, Tensor]:
            advance = self._compiled(n, pictures)
            read = slice(first - 1, first - 1 + n)
            choice = pictures.choice(first, n, as_tensor=True)
            return advance(self.model, fixed, ids[:, read].clone(), positions[read].clone(), choice, pictures.drawing)

        return call

    def _compiled(self, width: int, pictures: _Pictures) -> Callable[..., tuple[Tensor, Tensor]]:
        """Return the step for so many positions of such pictures; each kind has a graph, with constant shapes."""
        device = pictures.ids.device.type
        kind = (width, len(pictures.ids), device, replace(pictures.drawing, guidance=None))  # its scale is a tensor
        if kind not in self._advance_for:
            mode = "reduce-overhead" if device == "cuda" else "default"
            # torch compiles eight graphs of a function and fails at the ninth, so each graph has a function of its own.
            step = FunctionType(_advance.__code__.replace(), globals())
            self._advance_for[kind] = self._compiler(step, fullgraph=True, mode=mode, dynamic=False)
        return self._advance_for[kind]

    def _fixed(self, cache: Any) -> Any:  # noqa: ANN401 - the model's own
        """Return the cache of the last drawing, filled with this one, or this one if its shapes differ.

        A graph uses fixed memory, so with a new cache each batch would be compiled or recorded again.
        """
        new, old = cache.tensors(), [] if self._kept is None else self._kept.tensors()
        shapes = [[(x.shape, x.dtype, x.device) for x in tensors] for tensors in (old, new)]
        if self._kept is not None and shapes[0] == shapes[1]:
            for kept, tensor in zip(old, new, strict=True):
                kept.copy_(tensor)
            return self._kept
        for tensor in new:
            torch._dynamo.mark_static_address(tensor, guard=False)  # otherwise CUDA graphs copy them at every step
        self._kept = cache
        return cache


@dataclass
class _Choice:
    """What the ids of some positions are chosen by, beside the logits."""

    #: Guidance scale of all of them, or of each, (n,).
    scale: float | Tensor
    #: Random numbers of each level, (B, n) or (B, n, K_q).
    noise: list[Tensor]


@dataclass
class _Pictures:
    """Pictures that are being drawn."""

    #: (B, N, Q); positions before ``done`` are final, and those before ``drafted`` have drafts.
    ids: Tensor
    done: int
    noise: Noise
    #: Guidance scale of each position.
    scales: list[float]
    drawing: Drawing
    bar: tqdm[NoReturn]

    def __post_init__(self) -> None:
        self.drafted = self.done
        #: Last position with guidance; -1 without.
        self.guided_to = max((i for i, scale in enumerate(self.scales) if scale != 1), default=-1)
        #: Whether any further id is drawn with guidance.
        self.is_guided = self.guided_to >= self.done
        #: Sum (B,) of the NaN flags of all positions; see :func:`_choose`.
        self.nan_flags = torch.zeros(len(self.ids), device=self.ids.device)

    def choice(self, first: int, n: int, *, as_tensor: bool = False) -> _Choice:
        """Return what the ids of n positions from ``first`` on are chosen by; a scale is a tensor for a graph."""
        scales = self.scales[first : first + n]
        if as_tensor or any(scale != scales[0] for scale in scales):
            return _Choice(torch.tensor(scales, device=self.ids.device), self.noise.at(first, n))
        return _Choice(scales[0], self.noise.at(first, n))

    def draft(self, until: int) -> None:
        """Repeat the last ids as drafts of the positions before ``until`` that have none.

        Ids chosen by the newest logits of another position, which cost time, gave no fewer calls with an earlier
        toklip-gen-tiny; nor did those above.
        """
        if until > self.drafted:
            self.ids[:, self.drafted : until] = self.ids[:, self.drafted - 1 : self.drafted]
            self.drafted = until

    def accept(self, first: int, chosen: Tensor, nan_flags: Tensor) -> None:
        """Take the ids (B, n, Q) that are chosen at positions from ``first`` on, and their NaN flags (B, n).

        They are final up to the first position at which they differ from the drafts in any picture.
        """
        known, end = self.done - first, first + chosen.shape[1]
        done = end
        if end - self.done > 1:
            same = (chosen == self.ids[:, first:end]).all(-1).all(0)[known:-1]
            done = self.done + 1 + int(same.cumprod(0).sum())
        self.ids[:, self.done : end] = chosen[:, known:]
        self.nan_flags += nan_flags[:, known : done - first].sum(1)
        self.bar.update(done - self.done)
        self.done, self.drafted = done, max(self.drafted, end)
        self.noise.drop(done)


def _advance(
    model: CompilableModel[Any],
    cache: Any,  # noqa: ANN401 - the model's own
    ids: Tensor,
    positions: Tensor,
    choice: _Choice,
    drawing: Drawing,
) -> tuple[Tensor, Tensor]:
    """Return the ids that follow each of the ids (B, n, Q) at positions (n,), and NaN flags (B, n)."""
    return _choose(model, model.step_at(ids, cache, positions), cache, choice, drawing)


def _choose(
    model: NextIdModel[Any],
    states: Tensor,
    cache: Any,  # noqa: ANN401 - the model's own
    choice: _Choice,
    drawing: Drawing,
) -> tuple[Tensor, Tensor]:
    """Choose ids (B, n, Q) by states (R, n, S), level by level; return them and NaN flags (B, n).

    A NaN flag is 0, or NaN if no id can be chosen by the logits. Flags are checked once, after the last call; -inf
    excludes an id and is allowed unless all logits of a level are -inf.
    """
    batch, n = choice.noise[0].shape[:2]
    rows, flat = len(states) // batch, states.flatten(0, 1)
    scale = choice.scale.repeat(batch)[:, None] if isinstance(choice.scale, Tensor) else choice.scale
    chosen = torch.zeros(batch * n, 0, dtype=torch.int64, device=states.device)
    nan_flags = torch.zeros(batch * n, device=states.device)
    for numbers in choice.noise:
        logits = guide(model.logits(flat, chosen.repeat(rows, 1), cache), batch * n, scale)
        chosen = torch.cat([chosen, choose_ids(logits, numbers.flatten(0, 1), drawing)[:, None]], dim=1)
        nan_flags = nan_flags + 0 * logits.amax(-1)
    # The calls have no types in torch.
    return model.levels.join(chosen).unflatten(0, (batch, n)), nan_flags.unflatten(0, (batch, n))  # type: ignore[no-untyped-call]


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
