"""Conversations about pictures: reading them, and which of their tokens have labels.

Only the assistant's turns have labels. The chat template says where they are: by ``{% generation %}`` if it has that
mark, otherwise by the text that it adds when a turn is added. If that does not show the turns, it is an error.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import torch
from toklip_core.files import json_rows, replace_lone_surrogates
from torch import Tensor

from toklip_mllm.evaluation import format_id, is_missing
from toklip_mllm.model import IGNORED, MARKS_TURNS, PictureInput, TokLIPProcessor, flatten

#: Branch of padding, which no other token sees.
_PADDING = -1

#: Placeholder of a picture in LLaVA's files and in the text of a :class:`Conversation`, whatever the image token is.
PLACEHOLDER = "<image>"

#: Names of the speakers in chat templates, by LLaVA's names.
_ROLES = {"human": "user", "gpt": "assistant", "user": "user", "assistant": "assistant", "system": "system"}

_ADDRESS = re.compile(r"\w+://|data:")
_UNTOLD = "the assistant's turns cannot be told"
_WAY_OUT = (
    "save model and tokenizer into a folder, put {% generation %} and {% endgeneration %} around them in its "
    "chat_template.jinja, and name that folder"
)


@dataclass(frozen=True)
class Conversation:
    """Messages and pictures of a conversation, with its name for error messages."""

    name: str
    #: {"role": "system" | "user" | "assistant", "content": text with ``PLACEHOLDER`` where a picture goes}.
    messages: tuple[Mapping[str, str], ...]
    #: Pictures in the order of their placeholders.
    pictures: tuple[PictureInput, ...] = ()


class Example(NamedTuple):
    """Tokens, labels and picture ids of a conversation, for training."""

    #: (L,), int64, with N image tokens for each picture.
    input_ids: Tensor
    #: (L,), int64; -100 except at the assistant's tokens.
    labels: Tensor
    #: (P, h, w, Q), int64, for P pictures; P may be 0.
    image_ids: Tensor
    #: (L,), int64: the conversation that a token is of, from 1 on, or 0 where it is of all; see :func:`join_branches`.
    branches: Tensor | None = None

    def cut(self, length: int) -> Example:
        """Return the first tokens, with all pictures."""
        branches = None if self.branches is None else self.branches[:length]
        return Example(self.input_ids[:length], self.labels[:length], self.image_ids, branches)


def read_conversations(path: Path | str, *, root: Path | str | None = None) -> Iterator[Conversation]:
    """Read conversations from a JSON list or a JSONL file, in LLaVA's form or as messages; yield them one by one.

    LLaVA's form: ``{"id": ..., "image": PATH or [PATH, ...], "conversations": [{"from": "human", "value":
    "<image>..."}, {"from": "gpt", ...}]}``, and optionally "system": TEXT; "images" may stand for "image", as in
    LLaMA-Factory, and "" or null for no picture. Messages: ``{"messages": [{"role": "user", "content":
    TEXT or [{"type": "image", "path": PATH}, {"type": "text", "text": ...}]}]}``, with "images": [PATH, ...] if the
    pictures are not in the content.

    Args:
        path: file to read.
        root: folder that picture paths are relative to; None: the file's own folder.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is not JSON in UTF-8, a row has neither form, or placeholders and pictures differ in
            number; the message names the row.

    >>> row = {"image": "cat.jpg", "conversations": [
    ...     {"from": "human", "value": "<image>What is it?"}, {"from": "gpt", "value": "a cat"}
    ... ]}
    >>> import json
    >>> file = Path("conversations.json")
    >>> _ = file.write_text(json.dumps([row]))
    >>> [len(conversation.messages) for conversation in read_conversations(file)]
    [2]
    """
    path = Path(path)
    folder = path.parent if root is None else Path(root)
    for number, row in json_rows(path):
        if not isinstance(row, Mapping):
            raise ValueError(f"{path}, row {number}: got a {type(row).__name__}; wanted an object with a conversation")
        name = f"{path}, row {number}{format_id(row)}"
        conversation = parse_conversation(row, name=name, root=folder)
        if wrong := [picture for picture in conversation.pictures if not isinstance(picture, str | Path)]:
            raise ValueError(f"{name}: got a picture that is a {type(wrong[0]).__name__}; wanted the path of a file")
        yield conversation


def parse_conversation(row: Mapping[str, Any], *, name: str, root: Path | None = None) -> Conversation:
    """Return one row, in either form; see :func:`read_conversations`.

    Turns of the assistant before the first question are left out, as in LLaVA, because most chat templates refuse them.
    """
    try:
        if "conversations" in row:
            messages = [
                {"role": _role(turn.get("from")), "content": _text(turn.get("value"))} for turn in row["conversations"]
            ]
            if row.get("system"):
                messages.insert(0, {"role": "system", "content": _text(row["system"])})
            pictures = _pictures(row)
        elif "messages" in row:
            messages, pictures = flatten(row["messages"], PLACEHOLDER)
            messages = [
                {"role": _role(turn.get("role")), "content": _text(turn.get("content"))} for turn in messages
            ]
            pictures = pictures or _pictures(row)
        else:
            raise ValueError('wanted "conversations", as LLaVA has them, or "messages"')
        for picture in pictures:
            if isinstance(picture, str) and _ADDRESS.match(picture):
                raise ValueError(f"got the picture {picture[:80]!r}; download it first, and give the file")
    except (AttributeError, TypeError, ValueError) as error:
        raise ValueError(f"{name}: no conversation that is known here: {error}") from error
    found = tuple(Path(root, x) if root is not None and isinstance(x, str | Path) else x for x in pictures)
    asked = next((i for i, turn in enumerate(messages) if turn["role"] == "user"), 0)
    messages = [turn for i, turn in enumerate(messages) if i >= asked or turn["role"] != "assistant"]
    conversation = Conversation(name, tuple(messages), found)
    _refuse_other_number(conversation, len(found))
    return conversation


def label_conversation(
    conversation: Conversation,
    processor: TokLIPProcessor,
    *,
    image_ids: Tensor | None = None,
    max_length: int | None = None,
) -> Example:
    """Tokenize a conversation and label the assistant's tokens.

    Args:
        conversation: conversation to tokenize; only turns of the assistant get labels.
        processor: processor with a fast tokenizer, which knows the place of each token in the text.
        image_ids: (P, h, w, Q) instead of the conversation's pictures, which then need not exist.
        max_length: maximum number of tokens; None: no limit.

    Raises:
        ValueError: no token has a label; placeholders and pictures differ in number; a picture cannot be read; the
            conversation is longer than ``max_length``; the assistant's turns cannot be found; or a picture that the
            user shows follows the begin token, as only drawn ones do. The message names the conversation.

    >>> from toklip_mllm.model import load_language_model
    >>> processor = load_language_model("toklip-mllm-tiny")[1]
    >>> turns = ({"role": "user", "content": "is there a red circle?"}, {"role": "assistant", "content": "yes"})
    >>> example = label_conversation(Conversation("an example", turns), processor)
    >>> processor.tokenizer.decode(example.labels[example.labels != -100])
    'yes<|end|>'
    """
    number = len(conversation.pictures) if image_ids is None else len(image_ids)
    _refuse_other_number(conversation, number)
    name, image_token = conversation.name, processor.image_token
    messages = [
        {**turn, "content": turn["content"].replace(PLACEHOLDER, image_token)} for turn in conversation.messages
    ]
    try:
        tokens, said = _tokens_and_turns(messages, processor)
        found = image_ids
        if found is None:
            found = processor.encode(conversation.pictures) if number else torch.empty(0, 0, 0, 0, dtype=torch.int64)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error
    rendered = tokens.count(processor.image_token_id)
    if rendered != number:
        raise ValueError(f"{name}: the chat template renders {rendered} of {number} pictures")
    _refuse_other_opened(name, messages, tokens, processor)
    places = processor.expand(tokens)
    input_ids = torch.tensor([tokens[i] for i in places])
    labels = input_ids.masked_fill(~torch.tensor([said[i] for i in places]), IGNORED)
    labels[input_ids == processor.image_token_id] = IGNORED
    if max_length is not None and len(places) > max_length:
        raise ValueError(f"{name}: {len(places)} tokens with its pictures, more than the {max_length} that are taken")
    if (labels[1:] == IGNORED).all():  # nothing predicts the first
        raise ValueError(f"{name}: no token has a label: the assistant says nothing in it")
    return Example(input_ids, labels, found)


def join_branches(examples: Sequence[Example], *, image_token_id: int) -> Example:
    """Join conversations about the same pictures in one row; they share its tokens up to the end of the pictures.

    With :func:`branch_inputs` each token sees those and the ones before it of its own conversation, at the places that
    they have in that conversation alone, so all logits are those of the separate conversations.

    Args:
        examples: one or more conversations with the same pictures, from the first of which their ids are taken.
        image_token_id: token of a picture.

    Raises:
        ValueError: the conversations have no picture, differ before the end of the pictures, or the answer of one
            follows them at once: its first token would be learned from the end of the conversation before it.

    >>> none = torch.empty(0, 1, 1, 1, dtype=torch.int64)
    >>> rows = [torch.tensor([1, 9, 5, 6]), torch.tensor([1, 9, 7, 8])]
    >>> joined = join_branches([Example(row, torch.full_like(row, -100), none) for row in rows], image_token_id=9)
    >>> joined.input_ids.tolist(), joined.branches.tolist()
    ([1, 9, 5, 6, 7, 8], [0, 0, 1, 1, 2, 2])
    """
    first = examples[0].input_ids
    places = (first == image_token_id).nonzero()
    if not len(places):
        raise ValueError("the conversations have no picture, after which they could part")
    shared = int(places.max()) + 1
    if not all(torch.equal(example.input_ids[:shared], first[:shared]) for example in examples):
        raise ValueError("the conversations differ before the end of the pictures, which they have to share")
    if any((example.labels[shared : shared + 1] != IGNORED).any() for example in examples[1:]):
        raise ValueError(
            "an answer follows the picture without a question between them; such conversations cannot be joined"
        )
    tails = [example.input_ids[shared:] for example in examples]
    branches = [torch.full_like(tail, number) for number, tail in enumerate(tails, 1)]
    return Example(
        torch.cat([first[:shared], *tails]),
        torch.cat([examples[0].labels[:shared], *(example.labels[shared:] for example in examples)]),
        examples[0].image_ids,
        torch.cat([torch.zeros_like(first[:shared]), *branches]),
    )


def branch_inputs(branches: Tensor, dtype: torch.dtype) -> dict[str, Tensor]:
    """Return the attention_mask (B, 1, L, L) and position_ids (B, L) of rows of :func:`join_branches` conversations.

    Args:
        branches: (B, L), of :func:`collate`.
        dtype: dtype of the mask, which is added to the scores: 0 where a token sees another.
    """
    length = branches.shape[1]
    places = torch.arange(length, device=branches.device)
    before = places[:, None] >= places
    sees = before & ((branches[:, None, :] == 0) | (branches[:, None, :] == branches[:, :, None]))
    mask = torch.zeros(sees.shape, dtype=dtype, device=branches.device).masked_fill(~sees, torch.finfo(dtype).min)
    return {"attention_mask": mask[:, None], "position_ids": sees.sum(-1) - 1}


def collate(examples: Sequence[Example], *, pad_id: int, padding_side: str = "right") -> dict[str, Tensor]:
    """Pad examples to a batch: input_ids, labels, attention_mask (B, L), and image_ids (P, h, w, Q) if there are
    pictures. If an example has branches, there are branches (B, L), too, -1 where a row is padded.

    >>> no_picture = torch.empty(0, 8, 8, 1, dtype=torch.int64)
    >>> long = Example(torch.tensor([5, 6, 7]), torch.tensor([-100, 6, 7]), no_picture)
    >>> short = Example(torch.tensor([5, 6]), torch.tensor([-100, 6]), no_picture)
    >>> collate([long, short], pad_id=0)["labels"].tolist()
    [[-100, 6, 7], [-100, 6, -100]]
    """
    left = padding_side == "left"

    def padded(rows: list[Tensor], value: int) -> Tensor:
        return torch.nn.utils.rnn.pad_sequence(rows, True, value, "left" if left else "right")

    batch = {
        "input_ids": padded([example.input_ids for example in examples], pad_id),
        "labels": padded([example.labels for example in examples], IGNORED),
        "attention_mask": padded([torch.ones_like(example.input_ids) for example in examples], 0),
    }
    if any(example.branches is not None for example in examples):
        of_one = [torch.zeros_like(one.input_ids) if one.branches is None else one.branches for one in examples]
        batch["branches"] = padded(of_one, _PADDING)
    pictures = [example.image_ids for example in examples if len(example.image_ids)]
    return batch | ({"image_ids": torch.cat(pictures)} if pictures else {})


def _tokens_and_turns(messages: list[dict[str, str]], processor: TokLIPProcessor) -> tuple[list[int], list[bool]]:
    """Return the tokens, one per image, and for each whether it is the assistant's."""
    tokenizer = processor.tokenizer
    if not tokenizer.is_fast:
        raise ValueError("the tokenizer is a slow one, which does not tell where tokens are; take the fast one")
    marked = bool(MARKS_TURNS.search(processor.template()))
    (text,), spoken = processor.render([messages], return_assistant_tokens_mask=marked)
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    tokens, offsets = list(encoded["input_ids"]), list(encoded["offset_mapping"])
    if marked:
        return tokens, [any(first < end and last > start for start, end in spoken[0]) for first, last in offsets]
    said = [False] * len(tokens)
    for start, end in _turns(messages, text, processor):
        inside = [i for i, place in enumerate(offsets) if place[0] < end and place[1] > start]
        for first, last in (offsets[i] for i in inside):
            # A word and the space before it may be one token, which is no reason for doubt.
            if (text[first:start] + text[end:last]).strip():
                raise ValueError(f"{_UNTOLD}: the token {text[first:last]!r} is partly of one; {_WAY_OUT}")
        # Text after the token that ends a turn, such as a new line, is never generated. That token is not always the
        # tokenizer's eos: Gemma has another one for turns.
        after = [i for i in inside if not text[offsets[i][1] : end].strip()]
        ends = [i for i in after if not tokenizer.decode([tokens[i]], skip_special_tokens=True)]
        for i in inside:
            said[i] = not ends or i <= ends[-1]
    return tokens, said


def _turns(messages: list[dict[str, str]], text: str, processor: TokLIPProcessor) -> Iterator[tuple[int, int]]:
    """Yield begin and end of the assistant's turns in the text, each the text that is added with the turn.

    The text before a turn is rendered as the prompt of an answer, so that labels are on text that will be generated.
    """
    for number, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        before = processor.apply_chat_template(messages[:number], add_generation_prompt=True)
        after = processor.apply_chat_template(messages[: number + 1])
        if not (after.startswith(before) and text.startswith(after)):
            raise ValueError(
                f"{_UNTOLD}: the chat template renders turn {number + 1} in another way when it asks for the answer "
                f"or when turns follow; {_WAY_OUT}"
            )
        yield len(before), len(after)


def _refuse_other_opened(
    name: str, messages: Sequence[Mapping[str, str]], tokens: Sequence[int], processor: TokLIPProcessor
) -> None:
    """Raise ValueError unless the pictures after a begin token are those of the assistant, which it draws."""
    if processor.begin_token is None:
        return
    begin = processor.tokenizer.convert_tokens_to_ids(processor.begin_token)
    opened = sum(pair == (begin, processor.image_token_id) for pair in pairwise(tokens))
    spoken = "".join(turn["content"] for turn in messages if turn["role"] == "assistant")
    drawn = spoken.count(processor.image_token)
    if opened != drawn:
        raise ValueError(
            f"{name}: the begin token {processor.begin_token!r} comes before a picture that the assistant does not "
            "draw; remove it from the message or the chat template"
        )


def _refuse_other_number(conversation: Conversation, pictures: int) -> None:
    places = sum(turn["content"].count(PLACEHOLDER) for turn in conversation.messages)
    if places != pictures:
        raise ValueError(f"{conversation.name}: {places} placeholders ({PLACEHOLDER}) for {pictures} pictures")


def _role(value: object) -> str:
    if value not in _ROLES:
        raise ValueError(f"got the speaker {value!r}; known are {', '.join(_ROLES)}")
    return _ROLES[str(value)]


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError(f"got a {type(value).__name__} where a text is wanted")
    return replace_lone_surrogates(value)


def _pictures(row: Mapping[str, Any]) -> list[PictureInput]:
    """Return the pictures listed beside a conversation: none, one or several; "", null and NaN are none."""
    for key in ("image", "images"):
        value = row.get(key)
        listed: Sequence[Any] = value if isinstance(value, list | tuple) else [value]
        if found := [one for one in listed if one != "" and not is_missing(one)]:
            return found
    return []
