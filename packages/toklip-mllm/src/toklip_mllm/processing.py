"""Pictures and text to what the model takes: ids of the VQ tokenizer, and the language model's tokens."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Self, cast

import torch
from huggingface_hub import hf_hub_download
from jinja2 import TemplateError
from PIL import Image
from safetensors.torch import save_file
from toklip_core.checkpoint import hub_file, weights_checksum
from toklip_core.data import Resize, open_picture, to_pixels
from toklip_core.modes import seen
from toklip_core.plugins import VQTokenizer, load_tokenizer
from torch import Tensor, nn
from transformers import AutoProcessor, BatchFeature
from transformers.processing_utils import ProcessorMixin

from toklip_mllm.config import TokLIPLMConfig
from toklip_mllm.messages import Picture, flattened

#: Name, in a processor's folder, of the VQ tokenizer's own weights.
VQ_FILE = "vq.safetensors"

#: Of ``from_pretrained``, what says where on the hub files are.
_OF_HUB = ("revision", "token", "subfolder", "cache_dir", "local_files_only")


class _Loaded:
    """A VQ tokenizer that is loaded. Saving a processor copies its attributes deeply; this one is shared."""

    def __init__(self, tokenizer: VQTokenizer) -> None:
        self.tokenizer = tokenizer

    def __deepcopy__(self, memo: object) -> Self:
        return self


class TokLIPProcessor(ProcessorMixin):  # type: ignore[misc]
    """The VQ tokenizer for pictures, the language model's tokenizer for text, and its chat template for both.

    The VQ tokenizer is loaded on first use, so a token store needs none.

    Args:
        tokenizer: the language model's, with ``image_token`` in its vocabulary. It pads on the left from then on, if it
            was made without a ``padding_side``, and is saved so.
        vq: name of the VQ tokenizer in the registry.
        vq_file: its own weights in the processor's folder; None: those that its name stands for.
        vq_checksum: sha256 of its weights; others are refused.
        image_size: side of the square that a picture becomes.
        resize: "crop" or "squash".
        tokens_per_picture: N.
        image_token: stands for a picture in text.
        chat_template: None: the tokenizer's own.
    """

    # transformers reads the parameters' names: one with "tokenizer" in it would be taken for a second text tokenizer.
    def __init__(
        self,
        tokenizer: Any,  # noqa: ANN401
        vq: str = "",
        vq_file: str | None = None,
        vq_checksum: str | None = None,
        image_size: int = 0,
        resize: Resize = "crop",
        tokens_per_picture: int = 0,
        image_token: str = "<image>",
        chat_template: str | None = None,
    ) -> None:
        known = tokenizer.get_vocab()
        if image_token not in known:
            raise ValueError(f"the tokenizer has no token {image_token!r}; add it as a special token first")
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
        if "padding_side" not in tokenizer.init_kwargs:
            # A batch of prompts ends where answers begin. transformers saves a side that is among these.
            tokenizer.padding_side = tokenizer.init_kwargs["padding_side"] = "left"
        self.vq, self.vq_file, self.vq_checksum = vq, vq_file, vq_checksum
        self.image_size, self.resize = image_size, resize
        self.tokens_per_picture = tokens_per_picture
        self.image_token = image_token
        self._weights: Path | Mapping[str, Tensor] | None = None
        self._source, self._of_hub = "", dict[str, Any]()
        self._loaded: _Loaded | None = None
        #: Of ``image_token``.
        self.image_token_id = int(known[image_token])
        super().__init__(tokenizer, chat_template=chat_template or tokenizer.chat_template)

    @classmethod
    def from_pretrained(cls, name: str | Path, **kwargs: Any) -> Self:  # noqa: ANN401
        """Return a saved processor, as transformers does. The VQ tokenizer is loaded on first use."""
        processor = super().from_pretrained(name, **kwargs)
        # Resolved, for the working folder may be another when a picture comes.
        processor._source = str(Path(name).resolve() if Path(name).is_dir() else name)
        processor._of_hub = {key: kwargs[key] for key in _OF_HUB if kwargs.get(key)}
        return cast(Self, processor)

    def save_pretrained(self, save_directory: str | Path, push_to_hub: bool = False, **kwargs: Any) -> Any:  # noqa: ANN401
        """Write the processor, and the VQ tokenizer's weights if they are its own; with ``push_to_hub`` upload all."""
        folder = Path(save_directory)
        folder.mkdir(parents=True, exist_ok=True)
        own = self._own_weights()
        if isinstance(own, Path):
            self.vq_file = self.vq_file or f"vq{own.suffix}"
            target = folder / self.vq_file
            if own.is_dir() and target.resolve() != own.resolve():
                shutil.copytree(own, target, dirs_exist_ok=True)
            elif own.is_file() and not (target.exists() and target.samefile(own)):
                shutil.copyfile(own, target)
        elif own is not None:
            self.vq_file = VQ_FILE
            save_file({key: tensor.detach().cpu().contiguous() for key, tensor in own.items()}, folder / VQ_FILE)
        if not push_to_hub:
            return super().save_pretrained(save_directory, **kwargs)
        super().save_pretrained(save_directory)
        # With push_to_hub, transformers uploads what it wrote itself in that call, and no weights of ours.
        return self.push_to_hub(kwargs.pop("repo_id", folder.name), **kwargs)

    @property
    def vq_tokenizer(self) -> VQTokenizer:
        """The VQ tokenizer, loaded on first use.

        Raises:
            LookupError: no plugin has it.
            FileNotFoundError: its weights are not there.
            ValueError: its weights are not those that the model was trained with.
        """
        if self._loaded is None:
            own = self._own_weights()
            self.use_vq_tokenizer(load_tokenizer(self.vq, own if isinstance(own, Path) else None), own)
        return cast(_Loaded, self._loaded).tokenizer

    def use_vq_tokenizer(self, tokenizer: VQTokenizer, weights: Path | Mapping[str, Tensor] | None = None) -> None:
        """Take a VQ tokenizer that is loaded already; ValueError if its weights are not those of ``vq_checksum``.

        Args:
            tokenizer: of the name ``vq``.
            weights: its own, a file or folder, or tensors by its names, to be saved with the processor; None: those
                that its name stands for.
        """
        wanted = self.vq_checksum
        if wanted is not None and wanted != (found := weights_checksum(cast(nn.Module, tokenizer))):
            raise ValueError(
                f"the tokenizer {self.vq!r} has other weights (sha256 {found[:16]}) than those the model was trained "
                f"with ({wanted[:16]})"
            )
        self._loaded, self._weights = _Loaded(tokenizer), weights

    @torch.no_grad()
    def encode(self, pictures: Sequence[Picture], device: torch.device | str | None = None) -> Tensor:
        """Return ids (P, h, w), int64, of pictures; ValueError that names the one that cannot be read.

        Args:
            pictures: files, or Pillow's pictures of any mode.
            device: where the VQ tokenizer goes, and stays; None: where it is.
        """
        if isinstance(pictures, str | Path | Image.Image) or not len(pictures):
            raise ValueError(f"got {pictures!r}; wanted a list of pictures")
        pixels = torch.stack([self._pixels(picture, number) for number, picture in enumerate(pictures, start=1)])
        tokenizer = cast(nn.Module, self.vq_tokenizer)
        if device is not None:
            tokenizer.to(device)
        where = next((tensor.device for tensor in tokenizer.state_dict().values()), pixels.device)
        return self.vq_tokenizer.encode(pixels.to(where))

    def __call__(
        self,
        images: Picture | Sequence[Picture] | Sequence[Sequence[Picture]] | None = None,
        text: str | Sequence[str] | None = None,
        *,
        image_ids: Tensor | None = None,
        return_tensors: str | None = None,
        padding: bool | str | None = None,
        max_length: int | None = None,
        device: torch.device | str | None = None,
        **kwargs: Any,  # noqa: ANN401
    ) -> BatchFeature:
        """Return ``input_ids`` and ``attention_mask`` (B, L), and ``image_ids`` (P, h, w) if there are pictures.

        Every ``image_token`` of the text becomes N of them.

        Args:
            images: in reading order; a list of lists has those of each text.
            text: one or several, with ``image_token`` where a picture goes.
            image_ids: ids (P, h, w) instead of pictures.
            return_tensors: "pt" for tensors.
            padding: as of transformers' tokenizers; None: to the longest if tensors are asked for.
            max_length: the longest that is taken.
            device: where pictures are encoded, and tensors go.
            kwargs: of the language model's tokenizer: padding_side, add_special_tokens, ...

        Raises:
            ValueError: texts and pictures differ in number, a picture cannot be read, or a text is longer than
                ``max_length``: truncation would cut pictures in two.
        """
        if text is None:
            raise ValueError(f"got no text; wanted one, with {self.image_token!r} where a picture goes")
        texts = [text] if isinstance(text, str) else list(text)
        side, multiple = kwargs.pop("padding_side", None), kwargs.pop("pad_to_multiple_of", None)
        kwargs.pop("truncation", None)
        tokens = self.tokenizer(texts, **kwargs)["input_ids"]
        if "add_special_tokens" not in kwargs:
            # A text that a chat template rendered has its first token already.
            first = [self.tokenizer.bos_token_id] * 2
            tokens = [row[1:] if row[:2] == first else row for row in tokens]
        found = self._pictures(images, tokens, image_ids, device)
        rows = [[row[i] for i in self.expanded(row)] for row in tokens]
        longest = max(len(row) for row in rows)
        if max_length is not None and longest > max_length:
            raise ValueError(f"got a text of {longest} tokens with its pictures; the longest taken is {max_length}")
        padding = return_tensors is not None if padding is None else padding
        padded = self.tokenizer.pad(
            {"input_ids": rows, "attention_mask": [[1] * len(row) for row in rows]},
            padding=padding,
            max_length=max_length,
            padding_side=side,
            pad_to_multiple_of=multiple,
        )
        data = {"input_ids": padded["input_ids"], "attention_mask": padded["attention_mask"]}
        batch = BatchFeature(data, tensor_type=return_tensors)
        if found is not None:
            batch["image_ids"] = found if return_tensors == "pt" else found.tolist()
        return batch if device is None or return_tensors != "pt" else batch.to(device)

    def expanded(self, tokens: Sequence[int]) -> list[int]:
        """Return for each place of the prompt the index in ``tokens`` that it comes from: N for an image token.

        Both ids and labels follow: ``[ids[i] for i in processor.expanded(ids)]``.
        """
        return [
            index
            for index, token in enumerate(tokens)
            for _ in range(self.tokens_per_picture if token == self.image_token_id else 1)
        ]

    def apply_chat_template(
        self,
        conversation: Sequence[Any],
        chat_template: str | None = None,
        *,
        tokenize: bool = False,
        return_dict: bool = False,
        return_tensors: str | None = None,
        image_ids: Tensor | None = None,
        processor_kwargs: Mapping[str, Any] | None = None,
        **kwargs: Any,  # noqa: ANN401
    ) -> Any:  # noqa: ANN401
        """Render messages with the language model's own chat template; with ``tokenize`` what the model takes.

        Args:
            conversation: messages, or several conversations. A message's content is a text with image tokens, or a list
                of ``{"type": "image", "image": PICTURE}`` (also "path" or "url") and ``{"type": "text", "text": ...}``.
            chat_template: instead of its own.
            tokenize: return tokens, not the text.
            return_dict: with ``tokenize``, all that the model takes, not ``input_ids`` alone.
            return_tensors: "pt" for tensors.
            image_ids: ids (P, h, w) instead of the pictures.
            processor_kwargs: of calling the processor: padding, padding_side, max_length, device.
            kwargs: of the tokenizer's own apply_chat_template: add_generation_prompt, tools, ...; templates that know
                ``enable_thinking``, as Qwen3's, are asked for no thoughts unless it is given.

        Raises:
            ValueError: the tokenizer has no chat template, or a picture is no file; and as for calling the processor.
        """
        template = chat_template or self.chat_template
        if template is None:
            raise ValueError(
                "the language model's tokenizer has no chat template; take an instruction-tuned model, or set "
                "tokenizer.chat_template"
            )
        batched = bool(conversation) and not isinstance(conversation[0], Mapping)
        kwargs.setdefault("enable_thinking", False)
        flat = [flattened(messages, self.image_token) for messages in (conversation if batched else [conversation])]
        render = partial(self.tokenizer.apply_chat_template, chat_template=template, tokenize=False, **kwargs)
        try:
            texts = [render(messages) for messages, _ in flat]
        except TemplateError as error:
            raise ValueError(f"the chat template refuses these messages: {error}") from error
        if not tokenize:
            return texts if batched else texts[0]
        pictures = [found for _, found in flat]
        batch = self(
            images=pictures if image_ids is None and any(pictures) else None,
            text=texts,
            image_ids=image_ids,
            return_tensors=return_tensors,
            add_special_tokens=False,  # the template has them
            **(processor_kwargs or {}),
        )
        return batch if return_dict else batch["input_ids"]

    def _own_weights(self) -> Path | Mapping[str, Tensor] | None:
        if self._weights is not None or self.vq_file is None:
            return self._weights
        if Path(self._source).is_dir():
            return Path(self._source, self._of_hub.get("subfolder", ""), self.vq_file)
        if not self._of_hub:
            return hub_file(self._source, self.vq_file)
        return Path(hf_hub_download(self._source, self.vq_file, **self._of_hub))

    def _pixels(self, picture: Picture, number: int) -> Tensor:
        try:
            opened = seen(picture) if isinstance(picture, Image.Image) else open_picture(picture)
        except (ValueError, OSError) as error:
            name = "" if isinstance(picture, Image.Image) else f" ({str(picture)!r})"
            raise ValueError(f"picture {number}{name} cannot be read: {error}") from error
        return to_pixels(opened, self.image_size, self.resize)

    def _pictures(
        self,
        images: Picture | Sequence[Picture] | Sequence[Sequence[Picture]] | None,
        tokens: Sequence[Sequence[int]],
        image_ids: Tensor | None,
        device: torch.device | str | None,
    ) -> Tensor | None:
        """Ids of the pictures, if they are as many as the texts have places."""
        places = [row.count(self.image_token_id) for row in map(list, tokens)]
        if image_ids is not None:
            given = [len(image_ids)]
        elif images is None:
            given = [0]
        elif isinstance(images, str | Path | Image.Image):
            images, given = [images], [1]
        elif any(isinstance(some, list | tuple) for some in images):
            nested = cast(Sequence[Sequence[Picture]], images)
            images, given = [picture for some in nested for picture in some], [len(some) for some in nested]
        else:
            given = [len(images)]
        if len(given) != len(places):
            given, places = [sum(given)], [sum(places)]
        for number, (wanted, got) in enumerate(zip(places, given, strict=True), start=1):
            if wanted != got:
                which = f"text {number}: " if len(given) > 1 else ""
                raise ValueError(f"{which}got {got} pictures for {wanted} places ({self.image_token}) in the text")
        if image_ids is not None:
            return image_ids
        return self.encode(cast(Sequence[Picture], images), device) if sum(given) else None


AutoProcessor.register(TokLIPLMConfig, TokLIPProcessor, exist_ok=True)
