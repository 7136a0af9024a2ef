"""A language model with an image head as a model that draws, for ``toklip generate`` and ``evaluate generation``."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import torch
from toklip_core.drawing import Drawing, DrawResult, Sampler, Window
from toklip_core.pictures import Resize
from toklip_core.tokenizer import Tokenizer
from toklip_core.weights import weights_checksum
from torch import Tensor

from toklip_mllm.chat import unknown_words
from toklip_mllm.model import PicturePredictor, TokLIPForConditionalGeneration, TokLIPProcessor, load_language_model

_log = logging.getLogger(__name__)


class PictureDrawer:
    """Language model that draws a picture as its answer to a text: a :class:`toklip_core.plugins.PictureModel`.

    Args:
        model: model with an image head, in evaluation mode.
        processor: processor of the model.

    Raises:
        ValueError: the model has no image head, or the processor's tokenizer is another one.
    """

    def __init__(self, model: TokLIPForConditionalGeneration, processor: TokLIPProcessor) -> None:
        model.config.tokenizer_record.refuse_other_ids(processor.vq_record, "the processor")
        self.model, self.processor = model, processor
        self._sampler = Sampler(PicturePredictor(model))

    @property
    def tokenizer(self) -> Tokenizer:
        """VQ tokenizer whose ids are drawn, loaded on first use."""
        return self.processor.vq_tokenizer

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width of the pictures in pixels."""
        return self.processor.image_size, self.processor.image_size

    @property
    def resize(self) -> Resize:
        """Way in which pictures are made square."""
        return self.processor.resize

    @property
    def classes(self) -> None:
        """None, because it draws texts."""
        return

    @property
    def drawing(self) -> Drawing:
        """Settings that the model's config recommends."""
        return self.model.config.head_config.drawing

    @property
    def device(self) -> torch.device:
        """Device that the model is on."""
        return cast(torch.device, self.model.device)

    @property
    def dtype(self) -> torch.dtype:
        """Precision of the model."""
        return cast(torch.dtype, self.model.dtype)

    def checksums(self) -> list[str]:
        """Return the SHA-256 of tokenizer and model, its config, and the chat template."""
        weights = [self.tokenizer.checksum, weights_checksum(self.model)]
        return [*weights, self.model.config.to_json_string(), self.processor.template()]

    def refuse_prompts(self, prompts: Sequence[int | str]) -> None:
        """Check prompts before anything is drawn; words that the model does not know are named in the log.

        Raises:
            ValueError: a prompt is a class, or leaves no room for a picture.
        """
        self.model.refuse_no_room(self._prompt(prompts)["input_ids"].shape[1])
        words = (word for text in prompts for word in unknown_words(self.processor.tokenizer, str(text)))
        if unknown := list(dict.fromkeys(words)):
            _log.warning("unknown to the model, which reads every unknown word alike: %s", ", ".join(unknown))

    def cut_texts(self, texts: Sequence[str]) -> list[str]:
        """Return none, because texts are drawn whole or refused."""
        return []

    def draw(
        self,
        prompts: Sequence[int | str],
        *,
        seeds: Sequence[int],
        drawing: Drawing = Drawing(),
        prefix: Tensor | None = None,
        window: Window = 1,
        compiled: bool = False,
        progress: bool = False,
    ) -> DrawResult:
        """Draw one picture per text, which the user says and the assistant answers by the picture.

        Return ids (B, h, w, Q), with calls of the language model and width of the window.

        Args:
            prompts: B texts.
            seeds: see :meth:`toklip_core.drawing.Sampler.draw`, also for the rest.
            drawing: settings; those that are None are the model's own.
            prefix: (B, n, Q) ids that the pictures start with, in raster order.
            window: largest number of positions that a call of the model draws, or "auto".
            compiled: must be False, because the cache of a language model grows.
            progress: show a progress bar on stderr.

        Raises:
            ValueError: a prompt is a class, ``compiled`` is asked for, or ``Sampler.draw`` raises it.
        """
        if compiled:
            raise ValueError("a language model has no step that can be compiled; draw without compiled (--compile)")
        batch = self._prompt(prompts)
        output = self.model.draw(
            batch["input_ids"].to(self.device),
            batch["attention_mask"].to(self.device),
            seeds=seeds,
            drawing=drawing,
            prefix_ids=None if prefix is None else prefix.to(self.device),
            read_last=False,  # nothing is read after the picture
            window=window,
            sampler=self._sampler,
            progress=progress,
        )
        return DrawResult(output.image_ids, output.calls, output.window)

    def pixels(self, ids: Tensor) -> Tensor:
        """Decode ids (B, h, w, Q) to pixels (B, 3, H, W), float32 in [-1, 1]; ValueError if one is not finite."""
        return self.tokenizer.to(ids.device).decode_clamped(ids)

    def _prompt(self, prompts: Sequence[int | str]) -> dict[str, Tensor]:
        if numbers := [prompt for prompt in prompts if not isinstance(prompt, str)]:
            raise ValueError(f"got the class {numbers[0]}, but a language model draws texts; say what to draw")
        messages = [[{"role": "user", "content": prompt}] for prompt in prompts]
        return cast(
            dict[str, Tensor],
            self.processor.apply_chat_template(
                messages,
                add_generation_prompt=True,
                tokenize=True,
                return_dict=True,
                return_tensors="pt",
                generation_mode="image",
            ),
        )


def load_drawer(
    name: str | Path, *, device: torch.device | str = "cpu", dtype: torch.dtype | None = None
) -> PictureDrawer:
    """Load a saved language model as a model that draws; see :func:`toklip_mllm.model.load_language_model`.

    Args:
        name: name or folder of the model.
        device: device to load it on.
        dtype: dtype of the weights; None: as stored.

    Raises:
        FileNotFoundError: the model is missing.
        ValueError: the model has no image head, or its files are damaged.
    """
    model, processor = load_language_model(name, device=device, dtype=dtype)
    drawer = PictureDrawer(model, processor)
    drawer.tokenizer.to(device)
    return drawer
