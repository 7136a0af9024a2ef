"""TokLIP: pictures to ids, codes, semantic tokens and one feature, in the space of texts.

    pixels --tokenizer--> ids --tokenizer--> codes --encoder--> tokens, pooled        texts --text--> features

The VQ tokenizer is passed beside the model: it is frozen, and neither ``train()``, nor DDP, nor a checkpoint of the
model touches it. ``to()`` neither: it follows the pictures that it is given to their device, and keeps its precision.

Shape letters: B batch, S picture side, h and w grid, N = h w, C codebook dim, D model width, T texts, E joint space.
"""

from __future__ import annotations

import json
import logging
import math
import re
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, Self, cast

import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn

from toklip_core.checkpoint import (
    CONFIG_FILE,
    WEIGHTS_FILE,
    hub_file,
    load_strict,
    read_model_folder,
    read_tensors,
    save_model_folder,
    weights_checksum,
)
from toklip_core.clip import CLIP, load_clip
from toklip_core.config import validated
from toklip_core.data import open_picture, to_pixels
from toklip_core.encoder import SemanticEncoder
from toklip_core.plugins import VQTokenizer, load_tokenizer
from toklip_core.published import (
    ALIASES,
    IGNORED,
    TINY,
    ModelSpec,
    TokLIPConfig,
    config_of_official,
    model_spec,
    models,
    official_name,
    read_official,
)
from toklip_core.text import TOKENIZER_FILE, TextTokenizer, TextTower, read_tokenizer

#: The tokenizer's weights in a model folder.
VQ_FILE = "tokenizer.safetensors"

_log = logging.getLogger(__name__)

_NO_TEXT = {r"text\..+": "the text tower was not asked for"}


class Encoded(NamedTuple):
    """Pictures as TokLIP sees them."""

    #: (B, h, w), int64: standard ids of the VQ tokenizer.
    ids: Tensor
    #: (B, h, w, C): rows of its codebook.
    codes: Tensor
    #: (B, N, D), raster order; token i depends on ids 0 to i alone.
    tokens: Tensor
    #: (B, E), not normalised.
    pooled: Tensor


class TokLIP(nn.Module):
    """The model; see the module's text.

    Args:
        config: sizes, preprocessing, and the tokenizer's name.
        tokenizer: the VQ tokenizer; None: then codes can be read, and pictures and ids cannot.
        text_tokenizer: of the text tower; None if it is not there.
        text: build the text tower.
    """

    def __init__(
        self,
        config: TokLIPConfig,
        *,
        tokenizer: VQTokenizer | None = None,
        text_tokenizer: TextTokenizer | None = None,
        text: bool = True,
    ) -> None:
        super().__init__()
        self.config = config
        self.encoder = SemanticEncoder(config.encoder)
        self.text = TextTower(config.text, text_tokenizer) if text else None
        #: The logarithm of what cosines are multiplied by.
        self.logit_scale = nn.Parameter(torch.tensor(math.log(10.0)))
        #: Of the sigmoid; a model that was trained by softmax has no use for it.
        self.logit_bias = nn.Parameter(torch.tensor(0.0))
        # In a tuple: as an attribute it would become a submodule.
        self._outside = (tokenizer,)
        # The tokenizer's weights if they came with the model's: they are saved with it.
        self._tokenizer_tensors: Mapping[str, Tensor] | None = None

    @classmethod
    def from_pretrained(
        cls,
        name: str | Path,
        *,
        text: bool = True,
        tokenizer: bool = True,
        dtype: torch.dtype | None = None,
        config: TokLIPConfig | None = None,
    ) -> Self:
        """Return a model: a name that ``toklip models`` lists, a folder, an official .pt, or a repository of the hub.

        Weights are mapped from the disk and read when they are first used; an official file stays in use meanwhile.

        Args:
            name: names and repositories are downloaded if they are not cached.
            text: load the text tower; without it pictures alone can be read, in less than half of the memory.
            tokenizer: load the VQ tokenizer, the weights from inside the file if it has them.
            dtype: of encoder and text tower; None: as they are stored. The tokenizer stays in float32.
            config: of a file that the official code wrote and whose sizes are none of the published ones.

        Raises:
            LookupError: there is no such model; the message has the nearest names.
            FileNotFoundError: a file is not there and cannot be downloaded.
            ValueError: the weights do not fit.
        """
        path, spec = _located(name)
        config = config or (spec.config if spec is not None else None)
        if path.is_dir():
            model = cls._of_folder(path, text=text, tokenizer=tokenizer)
        else:
            model = cls._of_official(path, config, text=text, tokenizer=tokenizer)
        model.eval()
        return model if dtype is None else model.to(dtype)

    @property
    def tokenizer(self) -> VQTokenizer:
        """The VQ tokenizer; LookupError if the model was loaded without."""
        if self._outside[0] is None:
            raise LookupError("the model was loaded without its VQ tokenizer; load it with tokenizer=True")
        return self._outside[0]

    def forward(self, pixels: Tensor) -> Encoded:
        """Return all of pixels (B, 3, S, S) in [-1, 1]. No gradient flows into the pixels."""
        # A protocol says nothing of modules; that it is one is a law of the contract kit.
        cast(nn.Module, self.tokenizer).to(pixels.device)
        return self.encode_ids(self.tokenizer.encode(pixels))

    def encode_ids(self, ids: Tensor) -> Encoded:
        """Return all of ids (B, h, w), such as a token store has them."""
        cast(nn.Module, self.tokenizer).to(ids.device)
        codes = self.tokenizer.embed(ids)
        return Encoded(ids, codes, *self.encoder(codes))

    @torch.no_grad()
    def encode_pictures(self, pictures: Sequence[Image.Image | Path | str]) -> Encoded:
        """Return all of pictures: files, or RGB pictures; preprocessed as the config says.

        Raises:
            PictureError: a file is no readable picture.
        """
        opened = (x if isinstance(x, Image.Image) else open_picture(x) for x in pictures)
        pixels = [to_pixels(picture, self.config.image_size, self.config.resize) for picture in opened]
        return cast(Encoded, self(torch.stack(pixels).to(self.logit_scale.device)))

    def image_features(self, pixels: Tensor) -> Tensor:
        """Return unit features (B, E), float32, of pixels (B, 3, S, S) in [-1, 1]."""
        return F.normalize(self(pixels).pooled.float(), dim=-1)

    def text_features(self, texts: Sequence[str]) -> Tensor:
        """Return unit features (T, E), float32, of texts. No gradient; LookupError without a text tower."""
        if self.text is None:
            raise LookupError("the model was loaded without its text tower; load it with text=True")
        return self.text.features(texts)

    def save_pretrained(self, folder: Path | str) -> None:
        """Write a model folder: config, weights, the text tokenizer, and the VQ tokenizer's weights if they came along.

        Raises:
            LookupError: the model has no text tower.
        """
        if self.text is None:
            raise LookupError("the model was loaded without its text tower; load it with text=True to save it")
        config = self.config
        if self._tokenizer_tensors is not None:
            config = config.model_copy(update={"tokenizer_file": VQ_FILE})
        words = None if self.text.tokenizer is None else self.text.tokenizer.json
        save_model_folder(
            folder,
            config.model_dump(mode="json"),
            self,
            texts={TOKENIZER_FILE: words},
            tensors={VQ_FILE: self._tokenizer_tensors},
        )

    def push_to_hub(self, repository: str, *, private: bool = False) -> str:
        """Upload the model folder to ``owner/name`` on the Hugging Face hub; return the address of the upload.

        The token is huggingface_hub's (``hf auth login``).

        Raises:
            OSError: the hub cannot be reached, or refuses.
        """
        from huggingface_hub import HfApi

        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder)
            hub = HfApi()
            try:
                hub.create_repo(repository, private=private, exist_ok=True)
                return str(hub.upload_folder(repo_id=repository, folder_path=folder))
            except Exception as error:  # of requests or httpx, as the release of huggingface_hub has it
                raise OSError(f"cannot upload to {repository!r} ({' '.join(str(error).split())[:200]})") from error

    @classmethod
    def _of_folder(cls, folder: Path, *, text: bool, tokenizer: bool) -> Self:
        values, tensors = read_model_folder(folder)
        config = validated(TokLIPConfig, values, folder / CONFIG_FILE)
        file = folder / config.tokenizer_file if config.tokenizer_file else None
        own = read_tensors(file) if file else None
        vq = _tokenizer(config, file) if tokenizer else None
        return cls._filled(config, tensors, folder, vq, read_tokenizer(config.text, folder), own, text=text)

    @classmethod
    def _of_official(cls, path: Path, config: TokLIPConfig | None, *, text: bool, tokenizer: bool) -> Self:
        tensors, own = read_official(path)
        config = config or config_of_official(tensors, path)
        vq = None
        if tokenizer:
            with tempfile.TemporaryDirectory() as folder:  # a tokenizer's factory takes a file
                save_file({name: tensor.contiguous() for name, tensor in own.items()}, Path(folder, VQ_FILE))
                vq = _tokenizer(config, Path(folder, VQ_FILE))
        words = _published_text_tokenizer(config) if text else None
        return cls._filled(config, tensors, path, vq, words, own, text=text, official=True)

    @classmethod
    def _filled(
        cls,
        config: TokLIPConfig,
        tensors: Mapping[str, Tensor],
        source: Path,
        tokenizer: VQTokenizer | None,
        text_tokenizer: TextTokenizer | None,
        tokenizer_tensors: Mapping[str, Tensor] | None,
        *,
        text: bool,
        official: bool = False,
    ) -> Self:
        with torch.device("meta"):
            model = cls(config, tokenizer=tokenizer, text_tokenizer=text_tokenizer, text=text)
        model._tokenizer_tensors = tokenizer_tensors
        ignored = (IGNORED if official else {}) | ({} if text else _NO_TEXT)
        names = official_name if official else str
        load_strict(model, tensors, source=source, name_in_file=names, ignored=ignored, mapped=True)
        return model


def load_model(name: str | Path) -> TokLIP | CLIP:
    """Return a TokLIP (see :meth:`TokLIP.from_pretrained`) or a CLIP (see :func:`toklip_core.clip.load_clip`).

    Both have ``image_features``, ``text_features``, ``logit_scale`` and, in their config, the preprocessing.
    """
    folder = Path(name)
    if str(name).startswith("open_clip:"):
        return load_clip(name)
    if (folder / CONFIG_FILE).is_file():
        values, _ = read_model_folder(folder)
        if values.get("kind") == "clip":
            return load_clip(folder)
    return TokLIP.from_pretrained(name)


def _located(name: str | Path) -> tuple[Path, ModelSpec | None]:
    """The folder or official file of a model, and its spec if it has a name."""
    path = Path(name)
    if str(name) in {*models(), *ALIASES}:
        spec = model_spec(str(name))
        if not spec.source:
            return TINY, spec
        owner, repository, file = spec.source.split("/", 2)
        return hub_file(f"{owner}/{repository}", file), spec
    if path.exists():
        return path, None
    if re.fullmatch(r"[\w.-]+/[\w.-]+", str(name)):
        return _of_hub(str(name)), None
    return path, model_spec(str(name))  # which says what names there are


def _of_hub(repository: str) -> Path:
    """The cached folder of a repository on the hub; its files are downloaded if they are not there."""
    folder = hub_file(repository, CONFIG_FILE).parent
    config = json.loads((folder / CONFIG_FILE).read_text("utf-8"))
    hub_file(repository, WEIGHTS_FILE)
    for file in (TOKENIZER_FILE, config.get("tokenizer_file")):
        if file is not None:
            hub_file(repository, file)
    return folder


def _tokenizer(config: TokLIPConfig, weights: Path | None) -> VQTokenizer:
    tokenizer = load_tokenizer(config.tokenizer, weights)
    if tokenizer.codebook_dim != config.encoder.codebook_dim:
        raise ValueError(
            f"the tokenizer {config.tokenizer!r} has codes of width {tokenizer.codebook_dim}, but the encoder takes "
            f"{config.encoder.codebook_dim}"
        )
    wanted = config.tokenizer_checksum
    if wanted is not None and wanted != (found := weights_checksum(cast(nn.Module, tokenizer))):
        raise ValueError(
            f"the tokenizer {config.tokenizer!r} has other weights (sha256 {found[:16]}) than those the model was "
            f"trained with ({wanted[:16]})"
        )
    return tokenizer


def _published_text_tokenizer(config: TokLIPConfig) -> TextTokenizer | None:
    """The text tokenizer of a published model; None, so that pictures can be read, if it is not to be had."""
    source = next((spec.text_tokenizer for spec in models().values() if spec.config == config), "")
    if not source:
        return None
    owner, repository, file = source.split("/", 2)
    try:
        return TextTokenizer(config.text, hub_file(f"{owner}/{repository}", file).read_text("utf-8"))
    except FileNotFoundError as error:
        _log.warning("texts cannot be read: %s", error)
        return None
