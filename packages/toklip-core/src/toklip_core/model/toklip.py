"""TokLIP: from pictures to ids, codes, semantic tokens and one pooled vector in the space of texts.

    pixels --tokenizer--> ids --its code map--> codes --encoder--> tokens, pooled        texts --text--> features

The VQ tokenizer is passed beside the model: it is frozen, and neither ``train()``, nor DDP, nor a checkpoint of the
model touches it. ``to()`` neither: it follows the pictures that it is given to their device, and keeps its precision.

Shape letters: B batch, S picture side, h and w grid, Q levels, C codebook dim, D model width, T texts, E joint space.
"""

from __future__ import annotations

import math
import re
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, Self, cast

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from toklip_core.config import validated
from toklip_core.files import one_line
from toklip_core.model.clip import CLIP, load_clip
from toklip_core.model.encoder import SemanticEncoder
from toklip_core.model.published import (
    ALIASES,
    IGNORED,
    ModelSpec,
    TokLIPConfig,
    config_of_official,
    model_spec,
    models,
    official_name,
    published_text_tokenizer,
    read_official,
)
from toklip_core.model.text import TOKENIZER_FILE, TextTokenizer, TextTower, read_tokenizer
from toklip_core.pictures import open_picture, refuse_pixels, to_pixels, upright_rgb
from toklip_core.tokenizer import Tokenizer
from toklip_core.weights import (
    CONFIG_FILE,
    WEIGHTS_FILE,
    hub_file,
    hub_folder,
    load_strict,
    read_config,
    read_model_folder,
    refuse_not_finite,
    refuse_other_kind,
    save_model_folder,
    stored_dtype,
    without_values,
)

_NO_TEXT = {r"text\..+": "the text tower was not asked for"}


class Encoding(NamedTuple):
    """Ids, codes, tokens and pooled vectors of B pictures."""

    #: (B, h, w, Q), int64, ids of the VQ tokenizer.
    ids: Tensor
    #: (B, h', w', C), its code map; the grid is that of the ids, except for a tokenizer whose ids form a pyramid.
    codes: Tensor
    #: (B, N, D), N = h' w', in raster order; token i depends on codes 0 to i alone.
    tokens: Tensor
    #: (B, E), not normalised.
    pooled: Tensor


class TokLIP(nn.Module):
    """A TokLIP: semantic encoder and text tower, with a VQ tokenizer beside them.

    Args:
        config: sizes, preprocessing, and the record of the tokenizer.
        tokenizer: VQ tokenizer; None: the encoder can only read codes.
        text_tokenizer: tokenizer of the text tower; None: texts cannot be read.
        text: whether to build the text tower.

    >>> from toklip_core.scenes import scene
    >>> model = TokLIP.from_pretrained("toklip-tiny")
    >>> encoded = model.encode_pictures([Image.fromarray(scene(0).rgb)])
    >>> encoded.ids.shape, encoded.tokens.shape
    (torch.Size([1, 8, 8, 4]), torch.Size([1, 64, 160]))
    """

    def __init__(
        self,
        config: TokLIPConfig,
        *,
        tokenizer: Tokenizer | None = None,
        text_tokenizer: TextTokenizer | None = None,
        text: bool = True,
    ) -> None:
        super().__init__()
        self.config = config
        self.encoder = SemanticEncoder(config.encoder)
        self.text = TextTower(config.text, text_tokenizer) if text else None
        #: Logarithm of the factor on cosines.
        self.logit_scale = nn.Parameter(torch.tensor(math.log(10.0)))
        #: Bias of the sigmoid contrast; models trained with softmax do not use it.
        self.logit_bias = nn.Parameter(torch.tensor(0.0))
        self._tokenizer = tokenizer

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
        """Return a model: a name in ``toklip models``, a folder, an official .pt, or a repository of the hub.

        Weights are memory-mapped and read when they are first used, so an official file must not change meanwhile.

        Args:
            name: name, path or repository; names and repositories are downloaded unless they are cached.
            text: whether to load the text tower; without it the model takes less than half of the memory.
            tokenizer: whether to load the VQ tokenizer, with weights from the file if it has them.
            dtype: dtype of encoder and text tower; None: as the encoder is stored, float16 as float32. The
                tokenizer stays in float32.
            config: config of an official file whose sizes are not published ones; refused for a folder.

        Raises:
            LookupError: the model is unknown; the message has the nearest names.
            FileNotFoundError: a file is missing and cannot be downloaded.
            ValueError: the weights do not fit, or a folder, which has a config of its own, is given another one.
        """
        path, spec = _located(name)
        if path.is_dir():
            if config is not None:
                raise ValueError(f"{str(name)!r} is a model folder with a config of its own; leave out the other")
            return cls._of_folder(path, dtype, text=text, tokenizer=tokenizer)
        config = config or (spec.config if spec is not None else None)
        return cls._of_official(path, config, dtype, text=text, tokenizer=tokenizer)

    @property
    def tokenizer(self) -> Tokenizer:
        """The VQ tokenizer; LookupError if the model was loaded without it."""
        if self._tokenizer is None:
            raise LookupError("the model was loaded without its VQ tokenizer; load it with tokenizer=True")
        return self._tokenizer

    def forward(self, pixels: Tensor) -> Encoding:
        """Return the encoding of pixels (B, 3, S, S) in [-1, 1]. No gradient flows into the pixels.

        Raises:
            ValueError: pixels are integers, or a number in pixels or results is NaN or infinite.
        """
        refuse_pixels(pixels)
        return self.encode_ids(self.tokenizer.to(pixels.device).encode(pixels))

    def encode_ids(self, ids: Tensor) -> Encoding:
        """Return the encoding of ids (B, h, w, Q), such as those of a store; ValueError if a token is not finite."""
        codes = self.tokenizer.to(ids.device).code_map(ids)
        encoded = Encoding(ids, codes, *self.encoder(codes))
        if not self.training:  # in training the losses are checked instead
            refuse_not_finite(encoded.pooled, "the model's feature")
            refuse_not_finite(encoded.tokens, "a token")
        return encoded

    @torch.no_grad()
    def encode_pictures(self, pictures: Sequence[Image.Image | Path | str]) -> Encoding:
        """Return the encoding of pictures, which are files or Pillow pictures of any mode.

        Raises:
            PictureError: a file is not a readable picture.
            ValueError: there is no picture, or ``pictures`` is a single one instead of a list.
        """
        if isinstance(pictures, str | Path | Image.Image) or not len(pictures):
            raise ValueError(f"got {pictures!r}; wanted a list of pictures")
        opened = (upright_rgb(x) if isinstance(x, Image.Image) else open_picture(x) for x in pictures)
        pixels = [to_pixels(picture, self.config.image_size, self.config.resize) for picture in opened]
        return cast(Encoding, self(torch.stack(pixels).to(self.logit_scale.device)))

    def image_features(self, pixels: Tensor) -> Tensor:
        """Return unit features (B, E), float32, of pixels (B, 3, S, S) in [-1, 1]."""
        return F.normalize(self(pixels).pooled.float(), dim=-1)

    def text_features(self, texts: Sequence[str]) -> Tensor:
        """Return unit features (T, E), float32, of texts. No gradient; LookupError without a text tower."""
        if self.text is None:
            raise LookupError("the model was loaded without its text tower; load it with text=True")
        return self.text.features(texts)

    def save_pretrained(self, folder: Path | str) -> None:
        """Write a model folder: config, weights, the text tokenizer, and the VQ tokenizer's weights if it has its own.

        Raises:
            LookupError: the model was loaded without its text tower or its VQ tokenizer.
            OSError: the folder cannot be written; it is unchanged.
        """
        if self.text is None:
            raise LookupError("the model was loaded without its text tower; load it with text=True to save it")
        words = None if self.text.tokenizer is None else self.text.tokenizer.json
        config = self.config.model_copy(update={"tokenizer": self.tokenizer.record})
        texts = {TOKENIZER_FILE: words}
        save_model_folder(
            folder, config.model_dump(mode="json"), self, texts=texts, also=self.tokenizer.save_into
        )

    def push_to_hub(self, repository: str, *, private: bool = False) -> str:
        """Upload the model folder to ``owner/name`` on the Hugging Face hub; return the address of the upload.

        The token is huggingface_hub's (``hf auth login``).

        Raises:
            OSError: the hub cannot be reached, or refuses the upload.
        """
        from huggingface_hub import HfApi

        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder)
            hub = HfApi()
            try:
                hub.create_repo(repository, private=private, exist_ok=True)
                return str(hub.upload_folder(repo_id=repository, folder_path=folder))
            except Exception as error:  # of requests or httpx, as the release of huggingface_hub has it
                raise OSError(f"cannot upload to {repository!r} ({one_line(error, longest=200)})") from error

    @classmethod
    def _of_folder(cls, folder: Path, dtype: torch.dtype | None, *, text: bool, tokenizer: bool) -> Self:
        values, tensors = read_model_folder(folder)
        if values.get("kind") == "clip":
            raise ValueError(f"{str(folder)!r} holds two towers on pixels, no TokLIP; load it with load_model")
        refuse_other_kind(values, folder, kind="toklip", wanted="TokLIP")
        config = validated(TokLIPConfig, values, folder / CONFIG_FILE)
        vq = config.tokenizer.load(folder, where=f"the model {folder}") if tokenizer else None
        words = read_tokenizer(config.text, folder) if text else None
        return cls._filled(config, tensors, folder, vq, words, dtype, text=text)

    @classmethod
    def _of_official(
        cls, path: Path, config: TokLIPConfig | None, dtype: torch.dtype | None, *, text: bool, tokenizer: bool
    ) -> Self:
        tensors, own = read_official(path)
        config = config or config_of_official(tensors, path)
        vq = _tokenizer_inside(config, path, own) if tokenizer else None
        words = published_text_tokenizer(config) if text else None
        return cls._filled(config, tensors, path, vq, words, dtype, text=text, official=True)

    @classmethod
    def _filled(
        cls,
        config: TokLIPConfig,
        tensors: Mapping[str, Tensor],
        source: Path,
        tokenizer: Tokenizer | None,
        text_tokenizer: TextTokenizer | None,
        dtype: torch.dtype | None,
        *,
        text: bool,
        official: bool = False,
    ) -> Self:
        """Return a model with the tensors of a file."""
        if tokenizer is not None and tokenizer.codebook_dim != config.encoder.codebook_dim:
            raise ValueError(
                f"the tokenizer {tokenizer.name!r} has codes of width {tokenizer.codebook_dim}, but the encoder takes "
                f"{config.encoder.codebook_dim}"
            )
        with without_values():
            model = cls(config, tokenizer=tokenizer, text_tokenizer=text_tokenizer, text=text)
        names = official_name if official else str
        model.to(dtype or stored_dtype(tensors.get(names("encoder.pos_embed"))))
        ignored = (IGNORED if official else {}) | ({} if text else _NO_TEXT)
        load_strict(model, tensors, source=source, name_in_file=names, ignored=ignored, mapped=True)
        return model.eval()


def load_model(name: str | Path) -> TokLIP | CLIP:
    """Return a TokLIP (see :meth:`TokLIP.from_pretrained`) or a CLIP (see :func:`toklip_core.model.load_clip`).

    Both have ``image_features``, ``text_features``, ``logit_scale`` and, in their config, the preprocessing.

    >>> from toklip_core.scenes import scene
    >>> model = load_model("toklip-tiny")
    >>> pixels = to_pixels(Image.fromarray(scene(0).rgb), 64)
    >>> pictures = model.image_features(pixels[None])
    >>> texts = model.text_features(["a red circle", "a blue square"])
    >>> (pictures @ texts.T).shape
    torch.Size([1, 2])
    """
    if str(name).startswith("open_clip:"):
        return load_clip(name)
    path, _ = _located(name)
    if (path / CONFIG_FILE).is_file() and read_config(path / CONFIG_FILE).get("kind") == "clip":
        return load_clip(path)
    return TokLIP.from_pretrained(name)


def _located(name: str | Path) -> tuple[Path, ModelSpec | None]:
    """Return the folder or official file of a model, and its spec if it has a name.

    Raises:
        LookupError: there is no such file or folder, and no model of this name.
        FileNotFoundError: a file is missing, or cannot be downloaded.
        ValueError: the config of a repository of the hub cannot be read.
    """
    path = Path(name)
    if str(name) in {*models(), *ALIASES}:
        spec = model_spec(str(name))
        if spec.folder is not None:
            return spec.folder, spec
        owner, repository, file = spec.source.split("/", 2)
        way_out = "give its path as the model (PATH/{}; in a training, `--set toklip=PATH`)"
        return hub_file(f"{owner}/{repository}", file, way_out=way_out), spec
    if path.exists():
        return path, None
    if path.suffix in (".pt", ".pth", ".ckpt", ".safetensors"):
        raise FileNotFoundError(f"there is no file {str(name)!r}")
    if re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", str(name)):
        return hub_folder(str(name), [CONFIG_FILE, WEIGHTS_FILE, "tokenizer*"], _is_whole), None
    return path, model_spec(str(name))  # which says what names there are


def _is_whole(folder: Path) -> bool:
    """Return whether a model folder has all its files but the text tokenizer, which it can do without.

    Raises:
        ValueError: its config cannot be read, or is of another format.
    """
    if not (folder / CONFIG_FILE).is_file():
        return False
    record = read_config(folder / CONFIG_FILE).get("tokenizer")
    files = (WEIGHTS_FILE, record.get("file") if isinstance(record, dict) else None)
    return all((folder / file).exists() for file in files if isinstance(file, str))


def _tokenizer_inside(config: TokLIPConfig, path: Path, inside: Mapping[str, Tensor]) -> Tokenizer:
    """Return the tokenizer of an official file, with the weights ``inside`` it; raise ValueError if they do not fit."""
    try:
        # From a mapping of its own, which ends here: what was read of the model's would stay in memory.
        tokenizer = config.tokenizer.load(where=f"the model {path}", weights=read_official(path)[1])
    except ValueError as error:
        raise ValueError(one_line(f"{path}: visual.trunk.vq: {error}")) from error
    tokenizer.weights = inside
    return tokenizer
