"""From ids to codes: lookup tables, bits, values of channels, and a pyramid of maps.

    ids (..., Q) --forward--> codes (..., C)         a function of the ids of that position alone, exact to the bit
    ids (B, h, w, Q) --code_map--> (B, h', w', C)    what encoders and language models read

Embeddings have no parameters that train: what they keep are buffers, which are saved with the module that contains
them. A model that keeps the embedding of its tokenizer stores :attr:`CodeEmbedding.config` and builds it again with
:meth:`EmbeddingConfig.build`.

Shape letters: B batch, h and w the grid of the ids, Q levels (ids per position), K codebook size, C codebook dim.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate
from typing import Annotated, Literal, Self

import torch
import torch.nn.functional as F
from pydantic import ConfigDict, Field, RootModel, model_validator
from torch import Tensor, nn

from toklip_core.config import LARGEST_COUNT, LARGEST_SCALE, LARGEST_SIDE, LARGEST_WIDTH, Config

#: Largest number of bits of an id: ids of one level fit into int64, and so does a codebook size of 2^62.
MOST_BITS = 62

Bits = Annotated[int, Field(ge=1, le=MOST_BITS)]
CodebookSize = Annotated[int, Field(gt=0, le=2**MOST_BITS)]
_Shape = tuple[Annotated[int, Field(ge=1, le=LARGEST_COUNT)], Annotated[int, Field(ge=1, le=LARGEST_WIDTH)]]


class CodeEmbedding(nn.Module):
    """Base of the embeddings: from ids (..., Q) to codes (..., C), float32, whatever ``.to(dtype)`` says.

    A subclass has :attr:`codebook_sizes`, :attr:`codebook_dim`, :attr:`config` and ``forward``. A code depends on the
    ids of its position alone and is bit for bit the same in any batch; autocast does not reach it.

    >>> embedding = TableEmbedding([torch.eye(3), torch.zeros(5, 2)])
    >>> embedding(torch.tensor([[2, 0], [1, 4]])).shape
    torch.Size([2, 5])
    >>> embedding.codebook_sizes, embedding.codebook_dim
    ((3, 5), 5)
    """

    #: Codebook size of each level: ids of level q lie in [0, K_q).
    codebook_sizes: tuple[int, ...]
    #: Width C of a code, all levels together.
    codebook_dim: int
    #: Whether the code map at a position depends on the ids of that position alone. Generators need that.
    is_local: bool = True
    #: Whether each level refines the sum of those before it. A generator then draws the levels one after another.
    levels_are_residual: bool = False

    @property
    def config(self) -> EmbeddingConfig:
        """Kind and sizes of the embedding, without its tables."""
        raise NotImplementedError

    def forward(self, ids: Tensor) -> Tensor:
        """Return the codes (..., C), float32, of ids (..., Q), int64.

        Ids out of range are not looked for, see :meth:`refuse_ids`.

        Raises:
            ValueError: ``ids`` are not integers, or their last dimension is not Q.
        """
        raise NotImplementedError

    def code_map(self, ids: Tensor) -> Tensor:
        """Return the codes (B, h', w', C) that encoders read, of ids (B, h, w, Q); see :meth:`map_grid`."""
        codes: Tensor = self(ids)
        return codes

    def map_grid(self, grid: tuple[int, int]) -> tuple[int, int]:
        """Return the grid (h', w') of the code map of ids on a grid (h, w)."""
        return grid

    def refuse_ids(self, ids: Tensor) -> None:
        """Raise ValueError unless ``ids`` (..., Q) are integers and lie in [0, K_q) at each level.

        >>> BitEmbedding(3).refuse_ids(torch.tensor([[7], [8]]))
        Traceback (most recent call last):
        ValueError: got ids from 7 to 8, but the codebook has 8; take the tokenizer that made them
        """
        self._refuse_shape(ids)
        if not ids.numel():
            return
        flat = ids.reshape(-1, ids.shape[-1])
        for level, (low, high, size) in enumerate(
            zip(flat.amin(0).tolist(), flat.amax(0).tolist(), self.codebook_sizes, strict=True)
        ):
            if low < 0 or high >= size:
                where = f" of level {level}" if len(self.codebook_sizes) > 1 else ""
                raise ValueError(
                    f"got ids from {low} to {high}, but the codebook{where} has {size}; take the tokenizer that made "
                    "them"
                )

    def _refuse_shape(self, ids: Tensor) -> None:
        if ids.dtype != torch.int64:
            raise ValueError(f"got ids of {ids.dtype}; wanted torch.int64")
        levels = len(self.codebook_sizes)
        if ids.ndim == 0 or ids.shape[-1] != levels:
            shape = tuple(ids.shape)
            raise ValueError(f"got ids of shape {shape}; wanted (..., {levels}), the last dimension one id per level")

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        # `.to(torch.bfloat16)` is for the networks around it: rounded codes would be other codes.
        kept = dict(self._buffers)
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, buffer in self._buffers.items():
            before = kept[name]
            if buffer is not None and before is not None and buffer.dtype != before.dtype:
                self._buffers[name] = before.to(buffer.device)
        return self


class TableEmbedding(CodeEmbedding):
    """One lookup table per level, whose rows are concatenated or summed.

    Args:
        tables: the codes (K_q, C_q) of each level; all of the same width if they are summed. The memory of those in
            float32 is shared.
        combine: ``concat`` (levels are independent), or ``sum`` (residual quantisation: each level refines the sum of
            those before it).
        shared: whether all levels have the first table, which is then kept once.

    Raises:
        ValueError: there is no table, one is not of shape (K, C), the shapes do not fit together, or ``combine`` is
            another word.

    >>> table = torch.tensor([[0.0, 0.0], [1.0, 0.5]])
    >>> residual = TableEmbedding([table] * 3, combine="sum", shared=True)
    >>> residual(torch.tensor([1, 0, 1])), list(residual.state_dict())
    (tensor([2., 1.]), ['table_0'])
    """

    def __init__(
        self,
        tables: Sequence[Tensor],
        combine: Literal["concat", "sum"] = "concat",
        shared: bool = False,
    ) -> None:
        super().__init__()
        _refuse_other("combine", combine, ("concat", "sum"))
        shapes = [tuple(table.shape) for table in tables]
        alike = set(shapes if shared else [shape[1:] for shape in shapes] if combine == "sum" else [])
        if not shapes or any(len(shape) != 2 or 0 in shape for shape in shapes) or len(alike) > 1:
            raise ValueError(
                f"got tables of shapes {shapes}; wanted one (K, C) per level, of one width if they are summed, "
                "and of one shape if they are shared"
            )
        self.codebook_sizes = tuple(int(table.shape[0]) for table in tables)
        widths = [int(table.shape[1]) for table in tables]
        self.codebook_dim = widths[0] if combine == "sum" else sum(widths)
        self.levels_are_residual = combine == "sum"
        self._widths, self._shared = widths, shared
        for level, table in enumerate(tables[:1] if shared else tables):
            self.register_buffer(f"table_{level}", table.detach().float())

    @property
    def config(self) -> EmbeddingConfig:
        """Kind and sizes of the embedding, without its tables."""
        shapes = tuple(zip(self.codebook_sizes, self._widths, strict=True))
        combine: Literal["concat", "sum"] = "sum" if self.levels_are_residual else "concat"
        return EmbeddingConfig(TableConfig(tables=shapes, combine=combine, shared=self._shared))

    def rows(self, level: int = 0) -> Tensor:
        """Return the table (K_q, C_q) of a level, in place: it must not be changed."""
        table: Tensor = self.get_buffer(f"table_{0 if self._shared else level}")
        return table

    def forward(self, ids: Tensor) -> Tensor:
        """Return the rows of ids (..., Q), concatenated or summed: codes (..., C)."""
        self._refuse_shape(ids)
        codes = [F.embedding(ids[..., level], self.rows(level)) for level in range(len(self.codebook_sizes))]
        if not self.levels_are_residual:
            return torch.cat(codes, dim=-1) if len(codes) > 1 else codes[0]
        for level_codes in codes[1:]:
            codes[0] = codes[0] + level_codes
        return codes[0]


class BitEmbedding(CodeEmbedding):
    """The binary digits of an id as a code, without a table (LFQ, BSQ): digit 1 is ``scale``, digit 0 is ``-scale``.

    Args:
        bits: number of bits of an id, for one level or for each level; C is their sum, K = 2^bits.
        scale: absolute value of all entries of a code.
        order: ``little``: channel 0 of a level is its least significant bit; ``big``: its most significant one.

    Raises:
        ValueError: a number of bits is not in 1 to 62, or ``order`` is another word.

    >>> embedding = BitEmbedding(3)
    >>> embedding(torch.tensor([[0], [1], [6]])).tolist()
    [[-1.0, -1.0, -1.0], [1.0, -1.0, -1.0], [-1.0, 1.0, 1.0]]
    >>> embedding.ids_of(torch.tensor([False, True, True]))
    tensor([6])
    """

    def __init__(
        self, bits: int | tuple[int, ...], scale: float = 1.0, order: Literal["little", "big"] = "little"
    ) -> None:
        super().__init__()
        _refuse_other("order", order, ("little", "big"))
        self.bits = (bits,) if isinstance(bits, int) else tuple(bits)
        if not self.bits or not all(1 <= count <= MOST_BITS for count in self.bits):
            raise ValueError(f"got bits = {bits}; wanted 1 to {MOST_BITS} for each level")
        self.scale, self.order = scale, order
        self.codebook_sizes = tuple(2**count for count in self.bits)
        self.codebook_dim = sum(self.bits)

    @property
    def config(self) -> EmbeddingConfig:
        """Kind and sizes of the embedding."""
        return EmbeddingConfig(BitConfig(bits=self.bits, scale=self.scale, order=self.order))

    def forward(self, ids: Tensor) -> Tensor:
        """Return the codes (..., C), all ``scale`` or ``-scale``, of ids (..., Q)."""
        self._refuse_shape(ids)
        digits = [ids[..., level, None] >> shifts & 1 for level, shifts in enumerate(self._shifts(ids.device))]
        return (2 * torch.cat(digits, dim=-1) - 1).float() * self.scale

    def ids_of(self, signs: Tensor) -> Tensor:
        """Return the ids (..., Q), int64, of codes that are given by their signs (..., C), True for ``scale``."""
        per_level = torch.split(signs.long(), list(self.bits), dim=-1)
        shifts = self._shifts(signs.device)
        return torch.stack([(s << shift).sum(-1) for s, shift in zip(per_level, shifts, strict=True)], dim=-1)

    def _shifts(self, device: torch.device) -> Iterator[Tensor]:
        """Yield, for each level, the place of the bit of each channel."""
        for count in self.bits:
            shifts = torch.arange(count, device=device)
            yield shifts if self.order == "little" else count - 1 - shifts


class ScalarEmbedding(CodeEmbedding):
    """The digits of an id as a code, without a table (FSQ): channel c takes L_c values, evenly spaced in [-1, 1].

    Args:
        values_per_channel: number of values L of each channel, for one level of ids or for each of them. Channel 0 of
            a level is its least significant digit; K is the product.

    Raises:
        ValueError: a channel has less than two values, a product is above 2^62, or numbers stand beside tuples.

    >>> embedding = ScalarEmbedding((3, 5))
    >>> embedding(torch.tensor([[0], [5], [14]])).tolist()
    [[-1.0, -1.0], [1.0, -0.5], [1.0, 1.0]]
    >>> embedding.ids_of(torch.tensor([2, 1]))
    tensor([5])
    """

    def __init__(self, values_per_channel: tuple[int, ...] | tuple[tuple[int, ...], ...]) -> None:
        super().__init__()
        per_level = tuple(each for each in values_per_channel if isinstance(each, tuple))
        numbers = tuple(each for each in values_per_channel if isinstance(each, int))
        whole = len(values_per_channel) in (len(per_level), len(numbers))
        per_level = per_level or (numbers,)
        self.values_per_channel = per_level
        self.codebook_sizes = tuple(math.prod(counts) for counts in per_level)
        least, most = min((count for counts in per_level for count in counts), default=0), max(self.codebook_sizes)
        if not whole or least < 2 or most > 2**MOST_BITS or not all(per_level):
            raise ValueError(
                f"got values_per_channel = {values_per_channel}; wanted two values or more per channel, and a product "
                f"of at most 2^{MOST_BITS}, for one level or in a tuple for each level"
            )
        self.codebook_dim = sum(map(len, per_level))

    @property
    def config(self) -> EmbeddingConfig:
        """Kind and sizes of the embedding."""
        return EmbeddingConfig(ScalarConfig(values_per_channel=self.values_per_channel))

    def forward(self, ids: Tensor) -> Tensor:
        """Return the codes (..., C) in [-1, 1] of ids (..., Q)."""
        self._refuse_shape(ids)
        channels = []
        for level, counts in enumerate(self.values_per_channel):
            for count, place in zip(counts, _places(counts), strict=True):
                digits = ids[..., level] // place % count
                channels.append((2 * digits - (count - 1)).float() / (count - 1))
        return torch.stack(channels, dim=-1)

    def ids_of(self, digits: Tensor) -> Tensor:
        """Return the ids (..., Q), int64, of digits (..., C), integers in [0, L_c)."""
        per_level = torch.split(digits.long(), [len(counts) for counts in self.values_per_channel], dim=-1)
        places = [torch.tensor(_places(counts), device=digits.device) for counts in self.values_per_channel]
        return torch.stack([(d * p).sum(-1) for d, p in zip(per_level, places, strict=True)], dim=-1)


def _refuse_other(name: str, word: str, known: tuple[str, ...]) -> None:
    if word not in known:
        raise ValueError(f"got {name} = {word!r}; wanted {' or '.join(map(repr, known))}")


def _places(counts: tuple[int, ...]) -> list[int]:
    """Return the place value of each digit, the least significant first."""
    return list(accumulate(counts[:-1], operator.mul, initial=1))


class PyramidEmbedding(CodeEmbedding):
    """One table for maps of growing size, whose sum is the code map (TokenFlow).

    The ids of a picture are a line (B, 1, N, 1): scale after scale, each row by row, N the sum of their squares.

    Args:
        table: the codes (K, C), whose memory is shared if they are float32.
        scales: sides of the maps; the last one is the side of the code map.

    Raises:
        ValueError: the table is not of shape (K, C), or there is no scale.

    >>> pyramid = PyramidEmbedding(torch.eye(4), scales=(1, 2))
    >>> pyramid.map_grid((1, 5)), pyramid.code_map(torch.zeros(2, 1, 5, 1, dtype=torch.int64)).shape
    ((2, 2), torch.Size([2, 2, 2, 4]))
    """

    is_local = False

    def __init__(self, table: Tensor, scales: Sequence[int]) -> None:
        super().__init__()
        self.scales = tuple(scales)
        if table.ndim != 2 or not table.numel() or not self.scales or min(self.scales) < 1:
            raise ValueError(
                f"got a table of shape {tuple(table.shape)} and scales {self.scales}; wanted (K, C) and a side"
            )
        self.codebook_sizes, self.codebook_dim = (int(table.shape[0]),), int(table.shape[1])
        self.register_buffer("table_0", table.detach().float())

    @property
    def config(self) -> EmbeddingConfig:
        """Kind and sizes of the embedding, without its table."""
        return EmbeddingConfig(PyramidConfig(table=(self.codebook_sizes[0], self.codebook_dim), scales=self.scales))

    def rows(self) -> Tensor:
        """Return the table (K, C), in place: it must not be changed."""
        return self.get_buffer("table_0")

    def forward(self, ids: Tensor) -> Tensor:
        """Return the rows (..., C) of ids (..., 1)."""
        self._refuse_shape(ids)
        return F.embedding(ids[..., 0], self.rows())

    def code_map(self, ids: Tensor) -> Tensor:
        """Return the code maps (B, s, s, C), s the last scale, of ids (B, 1, N, 1).

        Each map is resized bicubically to the last scale, and they are summed, the smallest first.

        Raises:
            ValueError: ``ids`` are not such lines.
        """
        self.map_grid((int(ids.shape[1]), int(ids.shape[2])) if ids.ndim == 4 else (0, 0))
        with torch.autocast(ids.device.type, enabled=False):
            # One by one: how the bicubic kernel splits its work must not depend on the rest of the batch.
            maps = [self._sum_of_maps(codes) for codes in self(ids)[:, 0]]
        side = self.scales[-1]
        return torch.stack(maps) if maps else self.rows().new_empty(0, side, side, self.codebook_dim)

    def map_grid(self, grid: tuple[int, int]) -> tuple[int, int]:
        """Return the last scale, twice; ValueError unless ``grid`` is (1, N)."""
        wanted = (1, sum(scale**2 for scale in self.scales))
        if tuple(grid) != wanted:
            raise ValueError(
                f"got ids on a grid of {grid[0]} x {grid[1]}; wanted a line, 1 x {wanted[1]}; keep the "
                "shape that encode gives ids, or take the tokenizer that made them"
            )
        return self.scales[-1], self.scales[-1]

    def _sum_of_maps(self, codes_NC: Tensor) -> Tensor:
        side = self.scales[-1]
        total_1Css = codes_NC.new_zeros(1, self.codebook_dim, side, side)
        maps = torch.split(codes_NC, [scale**2 for scale in self.scales])
        for scale, rows_nC in zip(self.scales, maps, strict=True):
            total_1Css += F.interpolate(rows_nC.T.reshape(1, -1, scale, scale), size=(side, side), mode="bicubic")
        return total_1Css[0].permute(1, 2, 0)


class TableConfig(Config):
    """Sizes of a :class:`TableEmbedding`."""

    kind: Literal["table"] = "table"
    tables: tuple[_Shape, ...] = Field(min_length=1, description="Shape (K, C) of the table of each level.")
    combine: Literal["concat", "sum"] = Field(default="concat", description="How the codes of the levels are combined.")
    shared: bool = Field(default=False, description="Whether all levels have one table.")

    @model_validator(mode="after")
    def _one_shape_if_shared(self) -> Self:
        if self.shared and len(set(self.tables)) > 1:
            raise ValueError(f"shared tables have one shape, and tables has {len(set(self.tables))}")
        return self

    def build(self) -> TableEmbedding:
        """Return the embedding, with tables of zeros."""
        kept = [torch.zeros(shape) for shape in (self.tables[:1] if self.shared else self.tables)]
        tables = kept * len(self.tables) if self.shared else kept
        return TableEmbedding(tables, self.combine, self.shared)


class BitConfig(Config):
    """Sizes of a :class:`BitEmbedding`."""

    kind: Literal["bits"] = "bits"
    bits: tuple[Bits, ...] = Field(min_length=1, description="Number of bits of each level.")
    scale: float = Field(default=1.0, gt=0, le=LARGEST_SCALE, description="Absolute value of all entries of a code.")
    order: Literal["little", "big"] = Field(
        default="little", description="Whether the first channel is the least (little) or the most significant bit."
    )

    def build(self) -> BitEmbedding:
        """Return the embedding."""
        return BitEmbedding(self.bits, self.scale, self.order)


class ScalarConfig(Config):
    """Sizes of a :class:`ScalarEmbedding`."""

    kind: Literal["scalar"] = "scalar"
    values_per_channel: tuple[tuple[Annotated[int, Field(ge=2, le=LARGEST_COUNT)], ...], ...] = Field(
        min_length=1, description="Number of values of each channel, for each level of ids."
    )

    def build(self) -> ScalarEmbedding:
        """Return the embedding."""
        return ScalarEmbedding(self.values_per_channel)


class PyramidConfig(Config):
    """Sizes of a :class:`PyramidEmbedding`."""

    kind: Literal["pyramid"] = "pyramid"
    table: _Shape = Field(description="Shape (K, C) of the table.")
    scales: tuple[Annotated[int, Field(ge=1, le=LARGEST_SIDE)], ...] = Field(
        min_length=1, description="Sides of the maps; the last one is the side of the code map."
    )

    def build(self) -> PyramidEmbedding:
        """Return the embedding, with a table of zeros."""
        return PyramidEmbedding(torch.zeros(self.table), self.scales)


class EmbeddingConfig(
    RootModel[Annotated[TableConfig | BitConfig | ScalarConfig | PyramidConfig, Field(discriminator="kind")]]
):
    """Kind and sizes of a :class:`CodeEmbedding`, as a model's config stores them; without the tables.

    >>> EmbeddingConfig.model_validate({"kind": "bits", "bits": [18]}).build().codebook_sizes
    (262144,)
    >>> TableEmbedding([torch.eye(3)]).config.model_dump(mode="json")
    {'kind': 'table', 'tables': [[3, 3]], 'combine': 'concat', 'shared': False}
    """

    model_config = ConfigDict(frozen=True)

    def build(self) -> CodeEmbedding:
        """Return the embedding that the config describes, with tables of zeros."""
        return self.root.build()
