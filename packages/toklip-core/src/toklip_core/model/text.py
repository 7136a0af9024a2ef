"""The text tower, from texts to the joint space: canonicalisation, tokenizer, and open_clip's text transformer.

    texts -clean-> -tokenizer-> ids (T, L), int64 -> network -> (T, E) -> unit features

The training data of a model decides how texts must be prepared, so these settings are stored with the weights. SigLIP2,
for example, needs lower case without punctuation, padded to 64 tokens (https://github.com/google-research/big_vision/issues/187).

Shape letters: T texts, L context length, E joint space.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, Self

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from toklip_core.config import LARGEST_COUNT, LARGEST_RATIO, LARGEST_WIDTH, MOST_LAYERS, Config
from toklip_core.files import one_line, read_text, replace_lone_surrogates
from toklip_core.model.trunk import Activation
from toklip_core.weights import refuse_not_finite

_log = logging.getLogger(__name__)

TOKENIZER_FILE = "tokenizer.json"

#: Special ids of tokenizers from :func:`word_tokenizer`.
PAD_ID, UNKNOWN_ID, EOS_ID = 0, 1, 2

#: Number of texts that go through the network at a time.
_CHUNK = 256


class TextConfig(Config):
    """The sizes of a text tower, and how its texts are prepared."""

    context_length: int = Field(
        gt=0,
        le=LARGEST_WIDTH,
        description="Context length L in tokens; longer texts are refused or cut with a warning, shorter ones padded.",
    )
    vocabulary: int = Field(
        gt=0, le=LARGEST_COUNT, description="Vocabulary size, the number of rows of the token embedding."
    )
    width: int = Field(gt=0, le=LARGEST_WIDTH, description="Width of a token embedding.")
    heads: int = Field(gt=0, le=LARGEST_WIDTH, description="Number of attention heads; must divide the width.")
    layers: int = Field(gt=0, le=MOST_LAYERS, description="Number of transformer blocks.")
    mlp_ratio: float = Field(
        default=4.0, gt=0, le=LARGEST_RATIO, description="Hidden width of the MLPs as a multiple of the width."
    )
    activation: Activation = Field(default="gelu_tanh", description="Activation of the MLPs.")
    norm_eps: float = Field(default=1e-6, gt=0, description="Epsilon of the layer norms.")
    causal: bool = Field(
        default=False, description="Causal attention: each token sees only those before it, as in CLIP."
    )
    pad_mask: bool = Field(
        default=False,
        description="Mask padding in attention; a batch is then cut to its longest text, which is faster.",
    )
    pooling: Literal["first", "last", "argmax", "eos"] = Field(
        default="last", description="Token whose output represents the text; argmax is the end-of-text token of CLIP."
    )
    output_dim: int = Field(gt=0, le=LARGEST_WIDTH, description="Width E of the joint space of pictures and texts.")
    projection_bias: bool = Field(default=True, description="Add a bias to the last linear layer.")
    clean: Literal["canonicalize", "lower", "whitespace"] = Field(
        default="canonicalize",
        description="How a text is cleaned; canonicalize makes it lower case without punctuation, as SigLIP and "
        "SigLIP2 expect.",
    )
    tokenizer: Literal["file", "clip"] = Field(
        default="file",
        description="Text tokenizer: tokenizer.json beside the weights, or CLIP's own, which comes with open_clip.",
    )
    bos_id: int | None = Field(
        default=None, ge=0, le=LARGEST_COUNT, description="Token id put before a text, if the tokenizer is a file."
    )
    eos_id: int | None = Field(
        default=None, ge=0, le=LARGEST_COUNT, description="Token id put after a text, if the tokenizer is a file."
    )
    pad_id: int = Field(
        default=0, ge=0, le=LARGEST_COUNT, description="Token id that pads a text to the context length."
    )

    @model_validator(mode="after")
    def _sizes_fit(self) -> Self:
        if self.width % self.heads:
            raise ValueError(f"width ({self.width}) must be a multiple of heads ({self.heads})")
        special = (self.bos_id is not None) + (self.eos_id is not None)
        if self.context_length <= special:
            raise ValueError(f"context_length ({self.context_length}) leaves no room beside {special} special tokens")
        return self

    @model_validator(mode="after")
    def _padding_is_unseen(self) -> Self:
        ends = self.eos_id is not None and self.eos_id != self.pad_id
        if self.pad_mask and (self.causal or self.pooling != "eos" or not ends):
            raise ValueError("pad_mask goes with pooling = 'eos', an eos_id that is not pad_id, and causal = false")
        return self


def refuse_other_space(text: TextConfig, joint_dim: int) -> None:
    """Raise ValueError if the joint space has another width for texts than for pictures."""
    if text.output_dim != joint_dim:
        raise ValueError(
            f"texts become {text.output_dim} numbers and pictures {joint_dim}: set output_dim so that both are the same"
        )


class TextTokenizer:
    """Tokenizer from texts to ids (T, L), int64.

    Args:
        config: preparation of texts.
        json: content of ``tokenizer.json``; None: CLIP's own tokenizer.

    Raises:
        ValueError: ``json`` is missing or damaged.
    """

    def __init__(self, config: TextConfig, json: str | None) -> None:
        self.config = config
        self.json = json
        #: Number of cut texts that :meth:`warn_of_cut` has counted.
        self.cut = 0
        self._clip: Any = None
        self._file: Any = None
        if config.tokenizer == "clip":
            from open_clip.tokenizer import SimpleTokenizer

            self._clip = SimpleTokenizer(context_length=config.context_length, clean=config.clean)
        elif json is None:
            raise ValueError(f"the text tower wants {TOKENIZER_FILE}, and there is none")
        else:
            from tokenizers import Tokenizer

            try:
                self._file = Tokenizer.from_str(json)
            except Exception as error:  # the library raises no other
                raise ValueError(f"{TOKENIZER_FILE} is damaged: {error}") from error
            self._file.no_padding()
            self._file.no_truncation()

    def __call__(self, texts: Sequence[str]) -> Tensor:
        """Return the ids (T, L) of texts; the end-of-text token stays when a text is cut.

        Raises:
            ValueError: ``texts`` is a single text, or an id is not in the text tower's vocabulary.
        """
        if isinstance(texts, str):  # it would be read letter by letter
            raise ValueError(f"got one text, {texts[:50]!r}; wanted a list of texts")
        texts = list(map(replace_lone_surrogates, texts))
        ids: Tensor = self._of_file(texts) if self._clip is None else self._clip(texts)
        if ids.numel() and (largest := int(ids.max())) >= self.config.vocabulary:
            raise ValueError(
                f"the text tokenizer gives the id {largest}, but the text tower knows {self.config.vocabulary}: they "
                "belong to different models"
            )
        return ids

    def lengths(self, texts: Sequence[str]) -> list[int]:
        """Return the number of tokens of each whole text, with special tokens, which may exceed the context length."""
        texts = list(map(replace_lone_surrogates, texts))
        if self._clip is not None:
            return [len(self._clip.encode(text)) + 2 for text in texts]
        special = (self.config.bos_id is not None) + (self.config.eos_id is not None)
        return [len(words.ids) + special for words in self._words(texts)]

    def cut_texts(self, texts: Sequence[str]) -> list[str]:
        """Return the texts that are longer than the context length."""
        lengths = self.lengths(texts)
        return [text for text, length in zip(texts, lengths, strict=True) if length > self.config.context_length]

    def warn_of_cut(self, texts: Sequence[str], ids: Tensor) -> int:
        """Return how many texts were cut when they became ids (T, L), and log the first time that any is.

        Only texts that fill their row of ids are tokenized again, to see whether they are longer.
        """
        padding = 0 if self._clip is not None else self.config.pad_id
        ends = self._clip is not None or self.config.eos_id is not None
        # The last two, because the end is the padding, too, in some tokenizers.
        full = (ids[:, -2:] != padding).any(1).tolist() if ends else [True] * len(texts)
        cut = self.cut_texts([text for text, is_full in zip(texts, full, strict=True) if is_full])
        if cut and not self.cut:
            _log.warning(
                "texts are cut after %d tokens, which is what the model reads; the first is %r",
                self.config.context_length,
                one_line(cut[0], longest=80),
            )
        self.cut += len(cut)
        return len(cut)

    def unknown_words(self, texts: Sequence[str]) -> list[str]:
        """Return the distinct words for which the tokenizer has no id; all of them have the same one."""
        from open_clip.tokenizer import get_clean_fn

        unknown = None if self._file is None else getattr(self._file.model, "unk_token", None)
        if unknown is None:
            return []
        clean = get_clean_fn(self.config.clean)
        texts = [clean(replace_lone_surrogates(text)) for text in texts]
        encoded = self._file.encode_batch(texts, add_special_tokens=False)
        found = [
            text[start:end]
            for text, words in zip(texts, encoded, strict=True)
            for token, (start, end) in zip(words.tokens, words.offsets, strict=True)
            if token == unknown
        ]
        return list(dict.fromkeys(found))

    def _words(self, texts: Sequence[str]) -> Any:  # noqa: ANN401  (of tokenizers)
        from open_clip.tokenizer import get_clean_fn

        clean = get_clean_fn(self.config.clean)
        return self._file.encode_batch([clean(text) for text in texts], add_special_tokens=False)

    def _of_file(self, texts: Sequence[str]) -> Tensor:
        config = self.config
        before = [] if config.bos_id is None else [config.bos_id]
        after = [] if config.eos_id is None else [config.eos_id]
        room = config.context_length - len(before) - len(after)
        rows = torch.full((len(texts), config.context_length), config.pad_id, dtype=torch.int64)
        for row, words in zip(rows, self._words(texts), strict=True):
            filled = torch.tensor([*before, *words.ids[:room], *after], dtype=torch.int64)
            row[: len(filled)] = filled
        return rows


class TextTower(nn.Module):
    """A text transformer of open_clip with its tokenizer.

    Args:
        config: sizes, and preparation of texts.
        tokenizer: tokenizer of the texts; None: only ids can be read.
    """

    def __init__(self, config: TextConfig, tokenizer: TextTokenizer | None) -> None:
        super().__init__()
        self.config = config
        self.tokenizer = tokenizer
        self.network: Any = _build_network(config)
        #: Standard deviation of the word embeddings, and what it was computed of.
        self._spread: tuple[object, Tensor] | None = None

    def forward(self, ids: Tensor) -> Tensor:
        """Return pooled vectors (T, E), not normalised, of ids (T, L)."""
        features: Tensor = self.network(self._cut(ids))[0]
        return features

    def ids(self, texts: Sequence[str]) -> Tensor:
        """Return the ids (T, L) of texts on the device of the weights; log the first time that a text is cut.

        Raises:
            FileNotFoundError: the tokenizer is missing.
        """
        ids, tokenizer = self._read(texts)
        tokenizer.warn_of_cut(texts, ids)
        return ids.to(self.network.positional_embedding.device)

    @torch.no_grad()
    def tokens(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Return tokens (T, n, width) of texts, after the last norm and before pooling, and a mask (T, n), bool.

        The mask is True up to the last id that is not padding. n is L, or less if all texts are short and the tower
        does not see padding. Texts that are too long are cut without a line in the log; see
        :meth:`TextTokenizer.cut_texts`. No gradient.
        """
        ids = self._ids_without_padding(texts)
        tokens: Tensor = self.network(ids)[1]
        refuse_not_finite(tokens, "a token", "text")
        return tokens, self._filled(ids)

    @torch.no_grad()
    def embeddings(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Return the word embeddings (T, n, width) of texts, scaled to unit spread, and a mask (T, n), bool.

        The embeddings of the whole vocabulary have a standard deviation of 1. They do not depend on the other words or
        on the place in the text. The mask, and what becomes of long texts, is as in :meth:`tokens`. No gradient.
        """
        ids = self._ids_without_padding(texts)
        table: Tensor = self.network.token_embedding.weight
        return F.embedding(ids, table) / self._spread_of(table), self._filled(ids)

    def _spread_of(self, table: Tensor) -> Tensor:
        """Return the standard deviation of a table, which is computed again only if it was moved, loaded or trained."""
        state = (id(table), table.data_ptr(), table.dtype, None if table.is_inference() else table._version)
        if self._spread is None or self._spread[0] != state:
            self._spread = (state, table.std())
        return self._spread[1]

    def _read(self, texts: Sequence[str]) -> tuple[Tensor, TextTokenizer]:
        """Return the ids (T, L) of texts, and the tokenizer; FileNotFoundError if it is missing."""
        if self.tokenizer is None:
            raise FileNotFoundError(
                f"the text tokenizer is missing: put its {TOKENIZER_FILE} beside the weights, into the model's folder"
            )
        return self.tokenizer(texts), self.tokenizer

    def _ids_without_padding(self, texts: Sequence[str]) -> Tensor:
        ids, _ = self._read(texts)
        return self._cut(ids.to(self.network.positional_embedding.device))

    def _filled(self, ids: Tensor) -> Tensor:
        """Return a mask that is True up to the last id that is not padding."""
        filled = (ids != self.config.pad_id).long()
        return filled.flip(1).cummax(1).values.flip(1).bool()

    def _cut(self, ids: Tensor) -> Tensor:
        """Return ids without the padding that all rows share, if the network does not see padding."""
        if not self.config.pad_mask:
            return ids
        return ids[:, : int((ids != self.config.pad_id).sum(1).max())]

    @torch.no_grad()
    def features(self, texts: Sequence[str]) -> Tensor:
        """Return unit features (T, E), float32, of texts. No gradient. ValueError if a number is not finite."""
        if not texts:
            return torch.empty(0, self.config.output_dim, device=self.network.positional_embedding.device)
        chunks = [self(self.ids(texts[start : start + _CHUNK])) for start in range(0, len(texts), _CHUNK)]
        features = F.normalize(torch.cat(chunks).float(), dim=-1)
        refuse_not_finite(features, "the model's feature", "text")
        return features


def read_tokenizer(config: TextConfig, folder: Path) -> TextTokenizer | None:
    """Return the tokenizer of a model folder; None if its file is missing, ValueError if it is damaged."""
    file = folder / TOKENIZER_FILE
    if config.tokenizer == "clip":
        return TextTokenizer(config, None)
    if not file.is_file():
        return None
    try:
        return TextTokenizer(config, read_text(file))
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from error


def word_tokenizer(texts: Iterable[str]) -> tuple[str, int]:
    """Return the ``tokenizer.json`` for the words of canonicalised texts, and its number of ids.

    It suits data with a small vocabulary, such as Scenes. Ids from 3 on are the sorted words.
    """
    from open_clip.tokenizer import canonicalize_text
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = sorted({word for text in texts for word in canonicalize_text(text).split()})
    vocabulary = {"<pad>": PAD_ID, "<unk>": UNKNOWN_ID, "<eos>": EOS_ID}
    vocabulary |= {word: len(vocabulary) + i for i, word in enumerate(words)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return str(tokenizer.to_str()), len(vocabulary)


def _build_network(config: TextConfig) -> Any:  # noqa: ANN401 - open_clip ships no types
    from open_clip.transformer import LayerNorm, QuickGELU, TextTransformer

    activation = {"gelu": nn.GELU, "gelu_tanh": partial(nn.GELU, approximate="tanh"), "quick_gelu": QuickGELU}
    network = TextTransformer(
        context_length=config.context_length,
        vocab_size=config.vocabulary,
        width=config.width,
        heads=config.heads,
        layers=config.layers,
        mlp_ratio=config.mlp_ratio,
        output_dim=config.output_dim,
        no_causal_mask=not config.causal,
        use_pad_mask=config.pad_mask,
        pad_id=config.pad_id,
        eos_id=config.eos_id or 0,
        pool_type=config.pooling,
        proj_bias=config.projection_bias,
        act_layer=activation[config.activation],
        norm_layer=partial(LayerNorm, eps=config.norm_eps),
        output_tokens=True,
    )
    if config.causal:  # a buffer that is in no file, so it must not stay on the meta device
        with torch.device("cpu"):
            network.attn_mask = network.build_causal_mask()
    return network
