"""A loaded VQ tokenizer as one value, and the record by which models and token stores find it again.

    load_tokenizer(name, weights) -> Tokenizer --.record--> TokenizerRecord, in a config.json or the metadata of a store
                                         ^                          |
                                         `-------- .load(folder) ---'   other weights are refused

Shape letters: B batch, H and W picture sides, h and w the grid of ids, Q levels (ids per position), C codebook dim.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Self

import torch
from pydantic import Field
from torch import Tensor, nn

from toklip_core.config import Config, FileName, is_file_name
from toklip_core.embeddings import CodeEmbedding
from toklip_core.files import one_line
from toklip_core.plugins import VQTokenizer, Weights, tokenizer_spec
from toklip_core.weights import refuse_damaged, refuse_not_finite, source_name, weights_checksum, write_weights


class TokenizerRecord(Config):
    """Record of the VQ tokenizer of a model or a token store, from which the tokenizer is loaded again.

    >>> record = load_tokenizer("vqgan-tiny").record
    >>> print(record)
    'vqgan-tiny' (sha256 f2bec61e217c7dff)
    >>> record.load(where="the model first").codebook_sizes
    (1024, 1024, 1024, 1024)
    """

    name: str = Field(description="Name of the VQ tokenizer, as `toklip tokenizers` lists it.")
    file: FileName | None = Field(
        default=None,
        description="Tokenizer weights, a file or folder beside the config; by default the tokenizer's own.",
    )
    checksum: str | None = Field(default=None, description="SHA-256 of the tokenizer's weights; others are refused.")

    def load(self, folder: Path | None = None, *, where: str, weights: Weights | None = None) -> Tokenizer:
        """Load the tokenizer again.

        Args:
            folder: the folder that ``file`` is in.
            where: what has the record, for messages: "the model runs/first/model".
            weights: weights to use instead of ``file``, or of those of the tokenizer's name.

        Raises:
            LookupError: no plugin registered the name.
            FileNotFoundError: the weights are missing, or cannot be downloaded.
            ValueError: the weights do not fit, or are not those of the record.
        """
        own = folder / self.file if self.file and folder is not None else None
        try:
            tokenizer = load_tokenizer(self.name, own if weights is None else weights)
        except LookupError as error:
            raise LookupError(f"{where}: {error}") from error
        tokenizer.refuse_other_ids(self, where)
        return tokenizer

    def refuse_other_ids(self, record: TokenizerRecord, where: str) -> None:
        """Raise ValueError unless ids mean the same by both records: equal names and, where both are known, checksums.

        Args:
            record: record of a model or a token store.
            where: what has that record, for the message: "the token store photos".
        """
        known = record.checksum is not None and self.checksum is not None
        if record.name != self.name or (known and record.checksum != self.checksum):
            raise ValueError(
                one_line(
                    f"{where} was made with the tokenizer {record}, and this is {self}, whose ids mean other pictures; "
                    "name that tokenizer and its weights, or make it again with this one"
                )
            )

    def __str__(self) -> str:
        known = "unknown weights" if self.checksum is None else f"sha256 {self.checksum[:16]}"
        return f"{self.name!r} ({known})"


class Tokenizer:
    """A loaded VQ tokenizer: its name, its weights and their checksum, and all that :class:`VQTokenizer` can do.

    It is not an ``nn.Module``: in a model's attribute it is not part of that model, so ``train()``, DDP and checkpoints
    do not touch it.

    Args:
        name: name that a plugin registered.
        module: the frozen tokenizer that the plugin's factory built.
        weights: file, folder or tensors that it was built with; None: those of its name.

    Raises:
        TypeError: the module is not a ``torch.nn.Module``.

    >>> tokenizer = load_tokenizer("vqgan-tiny")
    >>> tokenizer.codebook_sizes, tokenizer.codebook_dim, tokenizer.grid(64, 96)
    ((1024, 1024, 1024, 1024), 8, (8, 12))
    >>> ids = tokenizer.encode(torch.zeros(1, 3, 64, 64))
    >>> tuple(ids.shape), tuple(tokenizer.embed(ids).shape), tuple(tokenizer.decode(ids).shape)
    ((1, 8, 8, 4), (1, 8, 8, 8), (1, 3, 64, 64))
    """

    def __init__(self, name: str, module: VQTokenizer, weights: Weights | None = None) -> None:
        if not isinstance(module, nn.Module):
            kind = type(module).__name__
            raise TypeError(f"the factory of the tokenizer {name!r} gives a {kind}; return a torch.nn.Module")
        self.name = name
        self.module: nn.Module = module
        self.weights = weights
        self._vq: VQTokenizer = module

    @property
    def embedding(self) -> CodeEmbedding:
        """From ids to codes; see :mod:`toklip_core.embeddings`."""
        return self._vq.embedding

    @property
    def codebook_sizes(self) -> tuple[int, ...]:
        """Codebook size of each of the Q levels: ids of level q lie in [0, K_q)."""
        return self._vq.embedding.codebook_sizes

    @property
    def codebook_dim(self) -> int:
        """Width C of a code."""
        return self._vq.embedding.codebook_dim

    @property
    def image_size(self) -> int:
        """Side in pixels of the pictures that it was trained at, or that suit it, as registered."""
        return tokenizer_spec(self.name).image_size

    @property
    def device(self) -> torch.device:
        """Device that it is on; the CPU if it has no tensors."""
        first = next(chain(self.module.parameters(), self.module.buffers()), None)
        return torch.device("cpu") if first is None else first.device

    @cached_property
    def checksum(self) -> str:
        """SHA-256 of the weights as they were loaded; see :func:`toklip_core.weights.weights_checksum`."""
        return weights_checksum(self.module)

    @property
    def record(self) -> TokenizerRecord:
        """Record of the tokenizer, for a config in whose folder :meth:`save_into` writes."""
        file = None
        if isinstance(self.weights, Path):
            file = f"tokenizer{self.weights.suffix}"
            file = file if is_file_name(file) else "tokenizer"  # such as a folder "vq-0.5 of photographs"
        elif self.weights is not None:
            file = "tokenizer.safetensors"
        return TokenizerRecord(name=self.name, file=file, checksum=self.checksum)

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Return the grid (h, w) of the ids of a picture of height x width pixels.

        Raises:
            ValueError: the tokenizer does not take this size; the message has those it takes.
        """
        return self._vq.grid(height, width)

    def encode(self, pixels: Tensor) -> Tensor:
        """Return the ids (B, h, w, Q), int64, of pixels (B, 3, H, W) in [-1, 1]. No gradient."""
        return self._vq.encode(pixels)

    def embed(self, ids: Tensor) -> Tensor:
        """Return the codes (..., C), float32, of ids (..., Q): a function of each position alone, exact to the bit."""
        codes: Tensor = self._vq.embedding(ids)
        return codes

    def code_map(self, ids: Tensor) -> Tensor:
        """Return the codes (B, h', w', C) that encoders read; see :meth:`CodeEmbedding.code_map`."""
        return self._vq.embedding.code_map(ids)

    def decode(self, ids: Tensor) -> Tensor:
        """Return pixels (B, 3, H, W), float32, near [-1, 1], of ids (B, h, w, Q). No gradient."""
        return self._vq.decode(ids)

    def decode_clamped(self, ids: Tensor) -> Tensor:
        """Return pixels (B, 3, H, W), float32 in [-1, 1], of ids (B, h, w, Q) on any device. No gradient.

        Raises:
            ValueError: a pixel is NaN or infinite.
        """
        pixels = self.decode(ids.to(self.device)).float()
        refuse_not_finite(pixels, "a pixel")
        return pixels.clamp(-1, 1)

    def to(
        self, device: torch.device | str | torch.dtype | None = None, dtype: torch.dtype | None = None
    ) -> Self:
        """Move the tokenizer to a device, its networks to a dtype; the checksum stays that of the loaded weights.

        A dtype may also stand alone, as for a module: ``tokenizer.to(torch.bfloat16)``.
        """
        if isinstance(device, torch.dtype):
            device, dtype = None, device
        if dtype is not None:
            _ = self.checksum  # before the weights change
        # Every batch asks for its device; modules are not walked through where they are already.
        if dtype is not None or (device is not None and torch.device(device) != self.device):
            self.module.to(device=device, dtype=dtype)
        return self

    def in_dtype(self, dtype: torch.dtype) -> Tokenizer:
        """Return the tokenizer if its networks have this dtype, or else a copy of it that has; this one is not cast."""
        tensors = chain(self.module.parameters(), self.module.buffers())
        if all(tensor.dtype == dtype for tensor in tensors if tensor.is_floating_point()):
            return self
        cast = Tokenizer(self.name, copy.deepcopy(self._vq), self.weights)
        cast.checksum = self.checksum
        return cast.to(dtype)

    def save_into(self, folder: Path) -> None:
        """Write the weights it was built with into a model folder, by the record's file name; none for those of a name.

        The copy is loaded once, because the weights may have changed since they were loaded.

        Raises:
            OSError, SafetensorError: they cannot be written.
            ValueError: the copy has another checksum than the record, or cannot be loaded.
        """
        if self.weights is None or (file := self.record.file) is None:
            return
        write_weights(self.weights, folder / file)
        copied = load_tokenizer(self.name, folder / file).checksum
        if copied != self.checksum:
            raise ValueError(
                one_line(
                    f"{source_name(self.weights)!r} changed since it was loaded: its weights had sha256 "
                    f"{self.checksum[:16]}, and have {copied[:16]} now; load the tokenizer again, or restore them"
                )
            )

    def refuse_other_ids(self, record: TokenizerRecord, where: str) -> None:
        """Raise ValueError unless the ids of a record are this tokenizer's; see :class:`TokenizerRecord`."""
        # A checksum that is not needed is not computed.
        mine = TokenizerRecord(name=self.name) if record.checksum is None else self.record
        mine.refuse_other_ids(record, where)


def load_tokenizer(name: str, weights: Weights | str | None = None, *, image_size: int | None = None) -> Tokenizer:
    """Load the tokenizer that a plugin registered as ``name``.

    Args:
        name: name that ``toklip tokenizers`` lists.
        weights: file, folder, or tensors by the names that such a file has, to load instead of the published weights;
            what holds them in turn, such as {"model": tensors}, is refused. None takes the shipped or published ones:
            this may download.
        image_size: side of the pictures it is for; one that its name does not take is refused before anything is
            loaded or downloaded.

    Raises:
        LookupError: no plugin registered the name; the message has the nearest names.
        FileNotFoundError: the weights are missing, or cannot be downloaded.
        ValueError: it does not take the size, the weights are not tensors by name or do not fit, or one of them is NaN
            or infinite.

    >>> load_tokenizer("vqgan-tiny").encode(torch.zeros(1, 3, 32, 64)).shape
    torch.Size([1, 4, 8, 4])
    """
    given = Path(weights) if isinstance(weights, str) else weights
    spec = tokenizer_spec(name)
    spec.refuse_size(image_size)
    if isinstance(given, Mapping):
        _refuse_no_tensors(given)
    tokenizer = Tokenizer(name, spec.factory(given), given)
    # Whatever way a plugin reads its weights: one NaN among them is id 0 everywhere.
    refuse_damaged(tokenizer.module, weights if isinstance(weights, Path | str) else name)
    return tokenizer


def _refuse_no_tensors(weights: Mapping[str, object]) -> None:
    """Raise ValueError unless all values are tensors: nothing else can be saved beside a model."""
    for name, value in weights.items():
        if not isinstance(name, str):
            raise ValueError(f"got the name {name!r} of given weights; wanted tensors by the names of such a file")
        if not isinstance(value, Tensor):
            raise ValueError(
                one_line(
                    f"{name!r} of the given weights is a {type(value).__name__}, not a tensor; pass only the tensors "
                    "by name, or the path of the file"
                )
            )
