"""Features of words from a T5 encoder, as in LlamaGen."""

from __future__ import annotations

import re
from collections.abc import Sequence
from html import unescape
from typing import Any
from urllib.parse import unquote_plus

import torch
from toklip_core.weights import refuse_damaged, why_not_fetched
from torch import Tensor, nn


class T5Words:
    """Word encoder that returns each token's last hidden state of a T5 encoder.

    Args:
        model: T5EncoderModel of transformers.
        tokenizer: tokenizer of the model.
        length: maximum number of tokens of a text, including its end.
    """

    def __init__(self, model: nn.Module, tokenizer: Any, *, length: int) -> None:  # noqa: ANN401 - of transformers
        self._model, self._tokenizer, self._length = model.eval(), tokenizer, length
        self._device = torch.device("cpu")

    @property
    def width(self) -> int:
        """Width of the T5's features."""
        return int(self._model.config.d_model)  # type: ignore[union-attr, arg-type]

    def __call__(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Return float32 features (B, n, width) of cleaned texts, and their mask."""
        found = self._tokenizer(
            [clean_text(clean_text(text)) for text in texts],
            max_length=self._length,
            truncation=True,
            padding="longest",
            padding_side="right",
            return_tensors="pt",
        ).to(self._device)
        states = self._model(input_ids=found["input_ids"], attention_mask=found["attention_mask"]).last_hidden_state
        return states.float(), found["attention_mask"].bool()

    @property
    def limit(self) -> int:
        """Maximum number of tokens of a text."""
        return self._length

    def lengths(self, texts: Sequence[str]) -> list[int]:
        """Return the number of tokens of each cleaned text, including its end."""
        if not texts:
            return []
        written = [clean_text(clean_text(text)) for text in texts]
        return list(map(len, self._tokenizer(written, verbose=False)["input_ids"]))

    def to(self, device: torch.device | str) -> None:
        """Move the model to a device."""
        self._device = torch.device(device)
        self._model.to(device)


def load_t5(name: str, *, length: int) -> T5Words:
    """Return a T5 from the hub, such as google/flan-t5-xl, or from a folder, in bfloat16 as in LlamaGen.

    Raises:
        FileNotFoundError: the T5 is missing and cannot be downloaded.
        LookupError: transformers is not installed.
        ValueError: a weight is NaN or infinite.
    """
    try:
        from transformers import AutoTokenizer, T5EncoderModel
    except ModuleNotFoundError as error:
        raise LookupError(f"{error.name} is not installed: pip install 'toklip-gen[t5]'") from error
    try:
        tokenizer = AutoTokenizer.from_pretrained(name)
        model = T5EncoderModel.from_pretrained(name, dtype=torch.bfloat16)
    except (OSError, ValueError, ImportError) as error:  # ImportError: sentencepiece, which the hub's T5 may need
        raise FileNotFoundError(
            f"transformers cannot load the text encoder {name!r}; fetch it where there is a network "
            f"(`hf download {name}`): {why_not_fetched(error)}"
        ) from error
    refuse_damaged(model, name)
    return T5Words(model, tokenizer, length=length)


def _rules(*pairs: tuple[str, str]) -> tuple[tuple[re.Pattern[str], str], ...]:
    return tuple((re.compile(pattern), replacement) for pattern, replacement in pairs)


def _applied(rules: tuple[tuple[re.Pattern[str], str], ...], text: str) -> str:
    for pattern, replacement in rules:
        text = pattern.sub(replacement, text)
    return text


_DASHES = (
    r"\u058a\u05be\u1400\u1806\u2010-\u2015\u2e17\u2e1a\u2e3a\u2e3b\u2e40\u301c\u3030\u30a0\ufe31\ufe32\ufe58\ufe63\uff0d"
)
_FILE = "(?:png|jpg|jpeg|bmp|webp|eps|pdf|apk|mp4)"
_MARKUP = _rules(
    ("<person>", "person"),
    (r"\b(?:https?|www):(?:/{1,3}|[a-z0-9%])", ""),
    (r"\b[a-z0-9.-]+\.(?:com|co|ru|net|org|edu|gov|it)[\w/-]*\b/?(?!@)", ""),
    (r"<[/!?a-z][^<>]*>", ""),
)
_SIGNS = _rules(
    (r"@\w+\b", ""),
    (r"[\u31c0-\u9fff]+", ""),  # CJK
    (rf"[-{_DASHES}]+", "-"),
    (r"[`\u00b4\u00ab\u00bb\u201c\u201d\u00a8]", '"'),
    (r"[\u2018\u2019]", "'"),
    (r"&quot;?|&amp", ""),
    (r"\d{1,3}(?:\.\d{1,3}){3}", " "),
    (r"\d:\d\d\s+$", ""),
    (r"\\n", " "),
    (r"#(?:\d{1,3}|\d{5,})\b|\b\d{6,}\b", ""),
    (rf"\S+\.{_FILE}", ""),
    (r"[\"']{2,}", '"'),
    (r"\.{2,}", " "),
    (r"[#&@~()\[\]{}|\\/*\u00a1\u00a7\u00a9\u00ae\u00b7\u00ba\u00bd-\u00bf\u2022\u2122]+", " "),
    (r"\s+\.\s+", " "),
)
_REMAINS = _rules(
    (r"\b[a-z]{1,3}\d{3,15}\b", ""),
    (r"\b[a-z]+\d+[a-z]+\b", ""),
    (r"\b\d+[a-z]+\d+\b", ""),
    (r"(?:worldwide\s+)?(?:free\s+)?shipping", ""),
    (r"(?:free\s)?download(?:\sfree)?", ""),
    (r"\bclick\b\s(?:for|on)\s\w+", ""),
    (rf"\b{_FILE}(?:\simages?)?", ""),
    (r"\bpage\s+\d+\b", ""),
    (r"\b\d*[a-z]+\d+[a-z]+\d+[a-z\d]*\b", " "),
    (r"\b\d+\.?\d*[x\u0445\u00d7]\d+\.?\d*\b", ""),
    (r"\b\s+:\s+", ": "),
    (r"(\D[,./])\b", r"\1 "),
    (r"\s+", " "),
    (r"^[\"'](.+)[\"']$", r"\1"),
    (r"^['_,:;-]", ""),
    (r"['_,:+-]$", ""),
    (r"^\.\S+$", ""),
)


def clean_text(text: str) -> str:
    """Return a caption cleaned as for LlamaGen's T5: in lower case, without markup, links and special characters.

    Rules and their order are the official ones, except that tags are found by a pattern instead of an HTML parser.

    Source: FoundationVision/LlamaGen, language/t5.py, clean_caption, which it calls twice.
    """
    from open_clip.tokenizer import basic_clean

    text = unescape(_applied(_MARKUP, unquote_plus(text).strip().lower()))
    text = _applied(_SIGNS, text)
    if len(re.findall("[-_]", text)) > 3:  # this-is-my-cute-cat
        text = re.sub("[-_]", " ", text)
    return _applied(_REMAINS, basic_clean(text)).strip()
