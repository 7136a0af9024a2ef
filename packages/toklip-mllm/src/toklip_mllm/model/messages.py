"""Messages of chat templates: in one form whatever they come as, their contents as texts, and their pictures."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any

from toklip_core.files import replace_lone_surrogates

from toklip_mllm.model.pictures import Picture

#: Where transformers' messages may have a picture.
_KEYS = ("image", "url", "path", "base64")

Message = dict[str, Any]


def normalized(messages: Iterable[Any]) -> list[Message]:
    """Return messages as dicts whose contents are texts or lists of image and text parts, without keys that are None.

    An ``image_url`` part, as OpenAI has it, becomes an image with its url.

    Args:
        messages: mappings, dataclasses or models of pydantic, or an object that has them as ``messages``.

    Raises:
        ValueError: a message is none of these, or a part of one is neither text nor picture.
    """
    found = [_mapping(message) for message in getattr(messages, "messages", messages)]
    for message in found:
        content = message.get("content")
        if isinstance(content, str):
            message["content"] = replace_lone_surrogates(content)
        elif isinstance(content, Sequence):
            message["content"] = [_part(part) for part in content]
    return found


def flattened(messages: Iterable[Any], image_token: str) -> tuple[list[Message], list[Picture]]:
    """Return messages whose contents are texts, with ``image_token`` where a picture goes, and the pictures.

    A line ends after a picture that text follows, as in LLaVA's prompts.

    Raises:
        ValueError: a part of a message is neither text nor picture.
    """
    found = normalized(messages)
    return [_flat(message, image_token) for message in found], pictures_in(found)


def in_parts(messages: Iterable[Message]) -> list[Message]:
    """Return normalized messages whose contents are lists of parts, for templates that read nothing else."""
    return [
        {**message, "content": [{"type": "text", "text": message["content"]}]}
        if isinstance(message.get("content"), str)
        else message
        for message in messages
    ]


def pictures_in(messages: Iterable[Message]) -> list[Picture]:
    """Return the pictures of normalized messages; one that stands elsewhere, beside them or as ids, is left out."""
    parts = [part for message in messages if isinstance(message.get("content"), list) for part in message["content"]]
    found = [next((part[key] for key in _KEYS if key in part), None) for part in parts if part["type"] == "image"]
    return [picture for picture in found if picture is not None]


def _flat(message: Message, image_token: str) -> Message:
    if not isinstance(message.get("content"), list):
        return message
    text = ""
    for part in message["content"]:
        if part["type"] == "image":
            text += image_token
        else:
            line_ends = text.endswith(image_token) and not part["text"][:1].isspace()
            text += ("\n" if line_ends else "") + part["text"]
    return {**message, "content": text}


def _part(value: Any) -> Message:  # noqa: ANN401
    part = {"type": "text", "text": value} if isinstance(value, str) else _mapping(value)
    if part.get("type") == "image_url":
        url = part.get("image_url")
        part = {"type": "image", "url": url.get("url") if isinstance(url, Mapping) else url}
    if part.get("type") not in ("image", "text"):
        raise ValueError(f"got a part of type {part.get('type')!r} in a message; known are image and text")
    if part["type"] == "text":
        if not isinstance(part.get("text"), str):
            raise ValueError(f"got a {type(part.get('text')).__name__} as the text of a part; wanted a string")
        part["text"] = replace_lone_surrogates(part["text"])
    return part


def _mapping(value: Any) -> Message:  # noqa: ANN401
    if hasattr(value, "model_dump"):
        value = value.model_dump()
    elif is_dataclass(value) and not isinstance(value, type):
        value = {field.name: getattr(value, field.name) for field in fields(value)}
    if not isinstance(value, Mapping):
        raise ValueError(f"got {str(value)[:60]!r} in a conversation; wanted a message: a role and its content")
    return {key: found for key, found in value.items() if found is not None}
