"""Pictures and text to what the model takes: ids of the VQ tokenizer, and the language model's tokens."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple, Self, cast

import torch
from huggingface_hub import hf_hub_download
from jinja2 import TemplateError
from PIL import Image
from toklip_core.config import MAX_PIXELS, validated
from toklip_core.files import replace_lone_surrogates
from toklip_core.pictures import Resize, to_picture, to_pixels
from toklip_core.plugins import Weights
from toklip_core.tokenizer import Tokenizer, TokenizerRecord
from toklip_core.weights import MODEL_FORMAT, hub_file, refuse_other_format, write_weights
from torch import Tensor
from transformers import AutoProcessor, BatchFeature
from transformers.processing_utils import MultiModalData, ProcessingKwargs, ProcessorMixin, TextKwargs
from transformers.utils.chat_template_utils import render_jinja_template

from toklip_mllm.model.config import TokLIPLMConfig
from toklip_mllm.model.messages import as_items, flatten, normalize, open_drawn, pictures_in
from toklip_mllm.model.pictures import PictureInput, read_picture, to_list

#: Options of ``from_pretrained`` that say where on the hub files are.
_OF_HUB = ("revision", "token", "subfolder", "cache_dir", "local_files_only")

#: How a chat template marks what the assistant says.
MARKS_TURNS = re.compile(r"\{%-?\s*generation\s*-?%\}")

#: Options of ``apply_chat_template`` that are for the call of the processor and not for the template.
_CALLED = {*TextKwargs.__annotations__, "device", "fetch", "generation_mode", "images"}
_CALLED |= {"text_kwargs", "images_kwargs", "common_kwargs"}

#: Text of a user's message for testing how a template reads messages.
_PROBE = "what-a-user-says"


class _TokenRows(NamedTuple):
    """Rows of tokens, and the number of pictures in each."""

    data: dict[str, list[Any]]
    places: list[int]


class _SharedTokenizer:
    """A loaded VQ tokenizer that is not copied when a processor is saved, which deep-copies its attributes."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer

    def __deepcopy__(self, memo: object) -> Self:
        return self


class TokLIPProcessor(ProcessorMixin):  # type: ignore[misc]
    """Processor of pictures and text: a VQ tokenizer, the language model's tokenizer, and its chat template.

    The VQ tokenizer is loaded on first use, so it is not needed when ids come from a token store.

    Args:
        tokenizer: tokenizer of the language model, with ``image_token`` in its vocabulary. If it was made without a
            ``padding_side``, it pads on the left from then on, and is saved so.
        vq: fields of :class:`toklip_core.TokenizerRecord`: the VQ tokenizer, whose own weights, if it has any, are
            saved in the processor's folder.
        image_size: side in pixels of the square that a picture becomes.
        resize: "crop", "squash" or "pad", the way to make a picture square.
        tokens_per_picture: number N of tokens per picture.
        image_token: token that stands for a picture in a text.
        begin_token: token that opens a picture that the assistant draws; None: the model draws none.
        chat_template: chat template; None: the tokenizer's own.
        format: number of the format of model folders; a saved processor of another format is refused.

    >>> from toklip_core.scenes import scene
    >>> from toklip_mllm.model import load_language_model
    >>> model, processor = load_language_model("toklip-mllm-tiny")
    >>> picture = Image.fromarray(scene(0).rgb)
    >>> question = {"type": "text", "text": "how many objects are there?"}
    >>> messages = [{"role": "user", "content": [{"type": "image", "image": picture}, question]}]
    >>> inputs = processor.apply_chat_template(
    ...     messages, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    ... )
    >>> inputs["image_ids"].shape
    torch.Size([1, 8, 8, 4])
    >>> answer = model.generate(**inputs, max_new_tokens=4, do_sample=False)[:, inputs["input_ids"].shape[1] :]
    >>> processor.batch_decode(answer, skip_special_tokens=True)
    ['3']
    """

    # transformers takes a parameter with "tokenizer" in its name for a second text tokenizer.
    def __init__(  # noqa: PLR0913 - transformers sets each key of processor_config.json by its name
        self,
        tokenizer: Any,  # noqa: ANN401
        vq: Mapping[str, Any] | None = None,
        image_size: int = 0,
        resize: Resize = "crop",
        tokens_per_picture: int = 0,
        image_token: str = "<image>",
        begin_token: str | None = None,
        chat_template: str | None = None,
        format: int = MODEL_FORMAT,
    ) -> None:
        known = tokenizer.get_vocab()
        if image_token not in known:
            raise ValueError(f"the tokenizer has no token {image_token!r}; add it as a special token first")
        if begin_token is not None and begin_token not in known:
            raise ValueError(f"the tokenizer has no token {begin_token!r}; add it as a special token first")
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
        if "padding_side" not in tokenizer.init_kwargs:
            # The prompts of a batch must end together. transformers saves a side that is among these.
            tokenizer.padding_side = tokenizer.init_kwargs["padding_side"] = "left"
        self.vq = None if vq is None else _record(vq).model_dump()
        self.format = format
        self.image_size, self.resize = image_size, resize
        self.tokens_per_picture = tokens_per_picture
        self.image_token = image_token
        self.begin_token = begin_token
        self._source, self._of_hub = "", dict[str, Any]()
        self._loaded: _SharedTokenizer | None = None
        #: Id of ``image_token``.
        self.image_token_id = int(known[image_token])
        super().__init__(tokenizer, chat_template=chat_template or tokenizer.chat_template)

    @classmethod
    def get_processor_dict(cls, name: str | Path, **kwargs: Any) -> Any:  # noqa: ANN401
        """Read a saved processor's config, as in transformers; ValueError if it is of another format."""
        values, rest = super().get_processor_dict(name, **kwargs)
        refuse_other_format(values, f"{name}/processor_config.json")
        return values, rest

    @classmethod
    def from_pretrained(cls, name: str | Path, **kwargs: Any) -> Self:  # noqa: ANN401
        """Load a saved processor, as in transformers. The VQ tokenizer is loaded on first use."""
        processor = super().from_pretrained(name, **kwargs)
        # Resolved, because the working folder may change before a picture comes.
        processor._source = str(Path(name).resolve() if Path(name).is_dir() else name)
        processor._of_hub = {key: kwargs[key] for key in _OF_HUB if kwargs.get(key)}
        return cast(Self, processor)

    def save_pretrained(self, save_directory: str | Path, push_to_hub: bool = False, **kwargs: Any) -> Any:  # noqa: ANN401
        """Save the processor, with the VQ tokenizer's own weights if it has any; ``push_to_hub`` uploads all of it."""
        folder = Path(save_directory)
        folder.mkdir(parents=True, exist_ok=True)
        if self.vq is not None and self.vq_record.file is not None:
            write_weights(self._own_weights(), folder / self.vq_record.file)
        if not push_to_hub:
            return super().save_pretrained(save_directory, **kwargs)
        super().save_pretrained(save_directory)
        # With push_to_hub, transformers only uploads the files that it wrote itself.
        return self.push_to_hub(kwargs.pop("repo_id", folder.name), **kwargs)

    @property
    def vq_record(self) -> TokenizerRecord:
        """Record of the VQ tokenizer; ValueError if the processor has none."""
        return _record(self.vq or {})

    @property
    def vq_tokenizer(self) -> Tokenizer:
        """VQ tokenizer, loaded on first use.

        Raises:
            LookupError: no plugin offers the tokenizer.
            FileNotFoundError: its weights are missing.
            ValueError: its weights are not those that the model was trained with.
        """
        if self._loaded is None:
            record = self.vq_record
            own = None if record.file is None else self._own_weights()
            self._loaded = _SharedTokenizer(record.load(where=f"the processor {self._source}".rstrip(), weights=own))
        return self._loaded.tokenizer

    def use_vq_tokenizer(self, tokenizer: Tokenizer) -> None:
        """Use a VQ tokenizer that is already loaded; ValueError if its ids are not those that the model reads."""
        tokenizer.refuse_other_ids(self.vq_record, "the processor")
        self.vq = tokenizer.record.model_dump()
        self._loaded = _SharedTokenizer(tokenizer)

    def use_begin_token(self, token: str) -> None:
        """Open pictures that the assistant draws by a token of the tokenizer; ValueError if it has no such token."""
        if token not in self.tokenizer.get_vocab():
            raise ValueError(f"the tokenizer has no token {token!r}; add it as a special token first")
        self.begin_token = token

    def postprocess(self, image_ids: Tensor, return_tensors: str = "PIL.Image.Image") -> BatchFeature:
        """Decode drawn ids (B, h, w, Q) to pictures: ``pixel_values`` of the batch that is returned.

        Args:
            image_ids: ids from ``generate(..., generation_mode="image")``.
            return_tensors: "PIL.Image.Image" for B Pillow pictures; "pt" or "np" for pixels (B, 3, H, W), float32 in
                [-1, 1].

        Raises:
            ValueError: the ids are of another grid or number of levels, a pixel is not finite, or ``return_tensors``
                is none of these.
        """
        if return_tensors not in ("PIL.Image.Image", "pt", "np"):
            raise ValueError(f"got return_tensors {return_tensors!r}; wanted 'PIL.Image.Image', 'pt' or 'np'")
        tokenizer = self.vq_tokenizer
        wanted = (*tokenizer.grid(self.image_size, self.image_size), len(tokenizer.codebook_sizes))
        if tuple(image_ids.shape[1:]) != wanted:
            shape = ", ".join(map(str, wanted))
            raise ValueError(f"got ids {tuple(image_ids.shape)}; wanted (pictures, {shape}), the model's one grid")
        pixels = tokenizer.decode_clamped(image_ids)
        if return_tensors == "PIL.Image.Image":
            return BatchFeature({"pixel_values": list(map(to_picture, pixels.cpu()))})
        return BatchFeature({"pixel_values": pixels.numpy(force=True) if return_tensors == "np" else pixels})

    @torch.no_grad()
    def encode(
        self,
        pictures: Sequence[PictureInput],
        device: torch.device | str | None = None,
        *,
        fetch: bool = False,
        max_pixels: int = MAX_PIXELS,
    ) -> Tensor:
        """Encode pictures to ids (P, h, w, Q), int64; ValueError names a picture that cannot be read.

        Args:
            pictures: list of pictures, each a file, its bytes, a data URI or base64 of it, a Pillow picture of any
                mode, or values as :func:`toklip_mllm.model.to_image` takes them; or an array (P, H, W, C) or
                (P, C, H, W).
            device: device to move the VQ tokenizer to, where it stays; None: leave it where it is.
            fetch: download pictures given by URL; otherwise they are refused.
            max_pixels: maximum pixels of a picture, see :func:`toklip_core.pictures.open_picture`.
        """
        if isinstance(pictures, str | bytes | Path | Image.Image) or not len(pictures):
            raise ValueError(f"got {repr(pictures)[:80]}; wanted a list of pictures")
        flat, _ = to_list(pictures)
        images = (read_picture(one, number, fetch=fetch, max_pixels=max_pixels) for number, one in enumerate(flat, 1))
        pixels = torch.stack([to_pixels(image, self.image_size, self.resize) for image in images])
        tokenizer = self.vq_tokenizer if device is None else self.vq_tokenizer.to(device)
        return tokenizer.encode(pixels.to(tokenizer.device))

    @property
    def model_input_names(self) -> list[str]:
        """Names of the model's inputs in a batch."""
        return ["input_ids", "attention_mask", "image_ids"]

    def __call__(
        self,
        images: PictureInput | Sequence[PictureInput] | Sequence[Sequence[PictureInput]] | None = None,
        text: str | Sequence[str] | None = None,
        *,
        image_ids: Tensor | None = None,
        fetch: bool | None = None,
        generation_mode: str = "text",
        **kwargs: Any,  # noqa: ANN401
    ) -> BatchFeature:
        """Return ``input_ids`` and ``attention_mask`` (B, L), and ``image_ids`` (P, h, w, Q) if there are pictures.

        Every ``image_token`` of the text becomes N of them.

        Args:
            images: pictures in reading order, or one list of pictures per text; see :meth:`encode` for their types.
            text: one text or several, with ``image_token`` where a picture goes.
            image_ids: ids (P, h, w, Q) instead of pictures.
            fetch: download pictures given by URL; otherwise they are refused.
            generation_mode: "image" puts the begin token after each text, for
                ``generate(..., generation_mode="image")``; "text" does not.
            kwargs: options as for every processor of transformers. Options of the language model's tokenizer:
                ``return_tensors`` ("pt", "np"), ``padding`` (by default to the longest if tensors are asked for),
                ``padding_side``, ``truncation``, ``max_length``, ``add_special_tokens``, ...; a text longer than
                ``max_length`` is refused unless ``truncation`` is given. ``device``: device to encode pictures on and
                to move tensors to.

        Raises:
            ValueError: texts and pictures differ in number, a picture cannot be read, or a text is longer than
                ``max_length``, or truncation would cut a picture in two.
        """
        if text is None:
            raise ValueError(f"got no text; wanted one, with {self.image_token!r} where a picture goes")
        texts = [text] if isinstance(text, str) else list(text)
        if wrong := [one for one in texts if not isinstance(one, str)]:
            raise ValueError(f"got a {type(wrong[0]).__name__} where a text is wanted")
        texts = [replace_lone_surrogates(one) + self._begin_of(generation_mode) for one in texts]
        nested = kwargs.pop("text_kwargs", None) or {}
        if twice := sorted(nested.keys() & kwargs.keys()):
            raise ValueError(f"got {', '.join(twice)} in text_kwargs and beside it; give each once")
        kwargs |= nested
        typed = kwargs.pop("return_mm_token_type_ids", False)
        if kwargs.pop("return_text_replacement_offsets", False):
            raise ValueError("return_text_replacement_offsets is not offered; count the image tokens in input_ids")
        merged = self._merge_kwargs(ProcessingKwargs, **kwargs)
        options, device = merged["text_kwargs"], merged["images_kwargs"].get("device")
        return_tensors = options.pop("return_tensors", None)
        if options.get("padding") is None:
            options["padding"] = return_tensors is not None
        encoded = self._tokens(texts, options)
        found = self._pictures(images, encoded.places, image_ids, device, bool(fetch))
        data: dict[str, Any] = dict(encoded.data)
        if typed:  # 1 in the places of pictures
            data["mm_token_type_ids"] = [[int(x == self.image_token_id) for x in row] for row in data["input_ids"]]
        if found is not None:
            data["image_ids"] = found.numpy(force=True) if return_tensors == "np" else found
        batch = BatchFeature(data, tensor_type=return_tensors)
        if found is not None and return_tensors is None:
            batch["image_ids"] = found.tolist()
        return batch if device is None or return_tensors != "pt" else batch.to(device)

    def _get_num_multimodal_tokens(
        self, image_sizes: Sequence[tuple[int, int]] | None = None, **_: object
    ) -> MultiModalData:
        """Return the number of tokens, N, for pictures of some sizes. vLLM calls this method by this name."""
        number = len(image_sizes or ())
        return MultiModalData(num_image_tokens=[self.tokens_per_picture] * number, num_image_patches=[1] * number)

    def expand(self, tokens: Sequence[int]) -> list[int]:
        """Return an index into ``tokens`` for each place of the prompt, where an image token fills N places.

        Use it for ids and labels: ``[ids[i] for i in processor.expand(ids)]``.
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
        return_assistant_tokens_mask: bool = False,
        image_ids: Tensor | None = None,
        processor_kwargs: Mapping[str, Any] | None = None,
        **kwargs: Any,  # noqa: ANN401
    ) -> Any:  # noqa: ANN401
        """Render messages with the language model's own chat template; with ``tokenize``, return the model's inputs.

        Args:
            conversation: messages, or several conversations. A message's content is a text with image tokens, or a list
                of ``{"type": "image", "image": PICTURE}`` (also "path", "url", "base64"), ``{"type": "image_url",
                "image_url": {"url": PICTURE}}`` and ``{"type": "text", "text": ...}``.
            chat_template: template to use instead of the processor's own, or the name of one if it has several.
            tokenize: return tokens instead of text.
            return_dict: with ``tokenize``, return all inputs of the model, not only ``input_ids``.
            return_tensors: type of the tensors, "pt" or "np".
            return_assistant_tokens_mask: with both, also return ``assistant_masks``, 1 where the assistant speaks.
            image_ids: ids (P, h, w, Q) instead of the pictures.
            processor_kwargs: options of calling the processor: padding, truncation, max_length, device, fetch, ...
            kwargs: variables of the template: add_generation_prompt, tools, ...; ``enable_thinking``, which templates
                such as Qwen3's know, is off unless it is given. Options of calling the processor may be given here too.

        Raises:
            ValueError: there is no chat template, it refuses the messages, it does not mark what the assistant says, or
                calling the processor raises it.
        """
        called = {key: kwargs.pop(key) for key in [*kwargs] if key in _CALLED}
        called = {"add_special_tokens": False, **(processor_kwargs or {}), **called}  # the template adds them
        first = next(iter(conversation), None)
        batched = isinstance(first, list | tuple) or hasattr(first, "messages")
        conversations = [normalize(messages) for messages in (conversation if batched else [conversation])]
        marked = tokenize and return_dict and return_assistant_tokens_mask
        texts, said = self.render(conversations, chat_template, return_assistant_tokens_mask=marked, **kwargs)
        if not tokenize:
            texts = [text + self._begin_of(called.get("generation_mode", "text")) for text in texts]
            return texts if batched else texts[0]
        beside = called.pop("images", None)
        pictures = [*map(pictures_in, conversations)] if beside is None else beside if batched else [beside]
        if return_tensors is not None:
            called["return_tensors"] = return_tensors
        offsets = called.get("return_offsets_mapping", False)
        if marked:
            called["return_offsets_mapping"] = True
        batch = self(
            images=pictures if image_ids is None else None,
            text=texts,
            image_ids=image_ids,
            **called,
        )
        if marked:
            rows = batch["offset_mapping"] if offsets else batch.pop("offset_mapping")
            masks = [self._mask(*row) for row in zip(texts, said, rows, strict=True)]
            batch["assistant_masks"] = masks
            batch = batch.convert_to_tensors(called.get("return_tensors"))
            if "device" in called and called.get("return_tensors") == "pt":
                batch = batch.to(called["device"])
        return batch if return_dict else batch["input_ids"]

    def template(self, chosen: str | None = None) -> str:
        """Return a chat template: the given one, the processor's own one of that name, or its only or default one.

        Raises:
            ValueError: there is no such template.
        """
        own = self.chat_template
        if isinstance(own, Mapping):
            chosen = own.get(chosen or "default", chosen)
        elif chosen is None:
            chosen = own
        if chosen is None:
            raise ValueError(
                "the language model's tokenizer has no chat template; take an instruction-tuned model, or set "
                "tokenizer.chat_template"
            )
        return chosen

    def render(
        self, conversations: Sequence[Sequence[Any]], chat_template: str | None = None, **kwargs: Any  # noqa: ANN401
    ) -> tuple[list[str], list[list[tuple[int, int]]]]:
        """Return the texts of conversations, with an image token per picture, and where in them the assistant speaks.

        A picture in a message of the assistant is one that it draws, so the begin token, if there is one, comes before
        it. A template for texts gets texts, with a line break between a picture and text after it. A template for lists
        of items, as in models that read pictures, gets these.

        Args:
            conversations: see :meth:`apply_chat_template`.
            chat_template: see :meth:`apply_chat_template`.
            kwargs: variables of the template, and ``return_assistant_tokens_mask``, without which no places are
                returned.

        Raises:
            ValueError: there is no chat template, it refuses the messages, or it does not mark what the assistant says.
        """
        template = self.template(chat_template)
        if kwargs.get("return_assistant_tokens_mask") and not MARKS_TURNS.search(template):
            raise ValueError(
                "the chat template does not mark what the assistant says; put {% generation %} and {% endgeneration %} "
                "around it"
            )
        if kwargs.get("continue_final_message") and kwargs.get("add_generation_prompt"):
            raise ValueError("got continue_final_message and add_generation_prompt; give one of them")
        if kwargs.pop("sanitize_control_tokens", False):
            raise ValueError("sanitize_control_tokens is not offered; take control tokens out of the messages first")
        kwargs = {"enable_thinking": False, **self.tokenizer.special_tokens_map, **kwargs}
        rendered = [normalize(messages) for messages in conversations]
        reads_items = _reads_items(template, tuple(self.tokenizer.special_tokens_map.items()))
        if not reads_items:
            rendered = [flatten(messages, self.image_token)[0] for messages in rendered]
        if self.begin_token is not None:
            rendered = [open_drawn(messages, self.image_token, self.begin_token) for messages in rendered]
        if reads_items:
            rendered = [as_items(messages) for messages in rendered]
        try:
            texts, said = render_jinja_template(rendered, chat_template=template, **kwargs)
        except TemplateError as error:
            raise ValueError(f"the chat template refuses these messages: {error}") from error
        return texts, [[(start, end) for start, end in spans] for spans in said]

    def _begin_of(self, generation_mode: str) -> str:
        """Return the text that begins what is generated; ValueError if the mode is unknown, or no picture is drawn."""
        if generation_mode not in ("text", "image"):
            raise ValueError(f"got generation_mode {generation_mode!r}; wanted 'text' or 'image'")
        if generation_mode == "text":
            return ""
        if self.begin_token is None:
            raise ValueError("the processor has no begin token, because its model has no image head and draws nothing")
        return self.begin_token

    def _own_weights(self) -> Weights:
        """Weights of the VQ tokenizer that has its own: in memory, beside the config, or on the hub."""
        if self._loaded is not None and self._loaded.tokenizer.weights is not None:
            return self._loaded.tokenizer.weights
        file = self.vq_record.file
        assert file is not None
        if Path(self._source).is_dir():
            return Path(self._source, self._of_hub.get("subfolder", ""), file)
        if not self._of_hub:
            return hub_file(self._source, file)
        return Path(hf_hub_download(self._source, file, **self._of_hub))

    def _tokens(self, texts: Sequence[str], options: dict[str, Any]) -> _TokenRows:
        """Return the tokens of texts, with N image tokens per picture; ValueError if a picture would be cut."""
        longest, truncation = options.get("max_length"), options.get("truncation")
        if truncation in (None, False, "do_not_truncate") and options["padding"] != "max_length":
            options.pop("max_length", None)  # because it alone would cause truncation
        if "add_special_tokens" not in options and self._begin(texts):
            options["add_special_tokens"] = False
        options = {"return_token_type_ids": False, **options}
        masked = options.pop("return_attention_mask", None) is not False
        expanded = [text.replace(self.image_token, self.image_token * self.tokens_per_picture) for text in texts]
        data = dict(self.tokenizer(expanded, return_attention_mask=True, **options))
        if len(data["input_ids"]) != len(texts):
            raise ValueError("return_overflowing_tokens is not offered: the rest of a text may begin within a picture")
        places = [text.count(self.image_token) for text in texts]
        for number, (row, mask) in enumerate(zip(data["input_ids"], data["attention_mask"], strict=True)):
            which = f"text {number + 1}: " if len(texts) > 1 else ""
            if truncation is None and longest is not None and sum(mask) > longest:
                raise ValueError(
                    f"{which}got a text of {sum(mask)} tokens with its pictures; the longest taken is {longest}: give "
                    "a shorter one, or truncation=True"
                )
            self._refuse_cut(row, sum(mask), places[number], which)
        return _TokenRows(data if masked else {key: data[key] for key in data if key != "attention_mask"}, places)

    def _refuse_cut(self, row: Sequence[int], length: int, places: int, which: str) -> None:
        found, wanted = row.count(self.image_token_id), places * self.tokens_per_picture
        if found < wanted:
            raise ValueError(
                f"{which}truncation to {length} tokens would leave {found} of the {wanted} that stand for pictures; "
                "raise max_length, or give fewer pictures"
            )
        if found > wanted:
            raise ValueError(
                f"{which}{found - wanted} words become {self.image_token!r}, which stands for pictures; take an "
                "image_token that nothing else becomes"
            )

    def _begin(self, texts: Sequence[str]) -> bool:
        """Return whether texts begin with the token that the tokenizer would add, as rendered chat templates do."""
        first = self.tokenizer.bos_token
        begun = [bool(first) and text.startswith(first) for text in texts]
        if not any(begun) or self.tokenizer("")["input_ids"][:1] != [self.tokenizer.bos_token_id]:
            return False
        if not all(begun):
            raise ValueError(f"some of the texts begin with {first!r}, others do not; give add_special_tokens")
        return True

    def _mask(self, text: str, said: Sequence[tuple[int, int]], offsets: Any) -> list[int]:  # noqa: ANN401
        """Return 1 for each token of a row that the assistant says, else 0.

        Args:
            text: text with one image token per picture.
            said: ranges in the text where the assistant speaks.
            offsets: (L, 2), ranges of the tokens in the text with N image tokens per picture; (0, 0) for padding.
        """
        more = len(self.image_token) * (self.tokens_per_picture - 1)
        moved = [[place + more * text.count(self.image_token, 0, place) for place in span] for span in said]
        return [int(any(first < end and last > start for start, end in moved)) for first, last in offsets]

    def _pictures(
        self,
        images: PictureInput | Sequence[PictureInput] | Sequence[Sequence[PictureInput]] | None,
        places: list[int],
        image_ids: Tensor | None,
        device: torch.device | str | None,
        fetch: bool,
    ) -> Tensor | None:
        """Return the ids of the pictures; ValueError if texts and pictures differ in number."""
        flat, each = ([], None) if images is None else to_list(images)
        if each is None or image_ids is not None:
            given, places = [len(flat) if image_ids is None else len(image_ids)], [sum(places)]
        elif len(each) != len(places):
            raise ValueError(f"got {len(each)} lists of pictures for {len(places)} texts; wanted one for each text")
        else:
            given = each
        for number, (wanted, got) in enumerate(zip(places, given, strict=True), start=1):
            if wanted != got:
                which = f"text {number}: " if len(given) > 1 else ""
                raise ValueError(f"{which}got {got} pictures for {wanted} places ({self.image_token}) in the text")
        if image_ids is not None:
            return image_ids
        return self.encode(flat, device, fetch=fetch) if flat else None


AutoProcessor.register(TokLIPLMConfig, TokLIPProcessor, exist_ok=True)


@lru_cache(maxsize=8)
def _reads_items(template: str, special_tokens: tuple[tuple[str, str], ...]) -> bool:
    """Return whether a template only renders contents that are lists of items."""

    def says(content: object) -> bool:
        messages = [{"role": "user", "content": content}]
        try:
            (text,), _ = render_jinja_template([messages], chat_template=template, **dict(special_tokens))
        except Exception:  # a template may raise anything for a form that it does not know
            return False
        return _PROBE in text

    return not says(_PROBE) and says([{"type": "text", "text": _PROBE}])


def _record(values: Mapping[str, Any]) -> TokenizerRecord:
    return validated(TokenizerRecord, values, "vq of processor_config.json")
