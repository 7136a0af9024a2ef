"""Messages of chat templates: conversion to one form, and to texts and pictures."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any

from toklip_core.files import replace_lone_surrogates

from toklip_mllm.model.pictures import PictureInput

#: Keys of a picture in transformers' messages.
_KEYS = ("image", "url", "path", "base64")

Message = dict[str, Any]


def normalize(messages: Iterable[Any]) -> list[Message]:
    """Return messages as dicts whose contents are texts or lists of image and text items, without keys that are None.

    An ``image_url`` item, as in OpenAI's format, becomes an image with its url.

    Args:
        messages: mappings, dataclasses or models of pydantic, or an object that has them as ``messages``.

    Raises:
        ValueError: a message is none of these, or an item of its content is neither text nor picture.
    """
    found = [_mapping(message) for message in getattr(messages, "messages", messages)]
    for message in found:
        content = message.get("content")
        if isinstance(content, str):
            message["content"] = replace_lone_surrogates(content)
        elif isinstance(content, Sequence):
            message["content"] = [_item(item) for item in content]
    return found


def flatten(messages: Iterable[Any], image_token: str) -> tuple[list[Message], list[PictureInput]]:
    """Return messages whose contents are texts with ``image_token`` in place of each picture, and the pictures.

    A line break separates a picture from text after it, as in LLaVA's prompts.

    Raises:
        ValueError: an item of a content is neither text nor picture.
    """
    found = normalize(messages)
    return [_flat(message, image_token) for message in found], pictures_in(found)


def open_drawn(messages: Iterable[Message], image_token: str, begin_token: str) -> list[Message]:
    """Return normalized messages with ``begin_token`` before each picture of the assistant, because it draws those.

    >>> open_drawn([{"role": "assistant", "content": "here: <image>"}], "<image>", "<begin>")
    [{'role': 'assistant', 'content': 'here: <begin><image>'}]
    """

    def opened(text: str) -> str:
        return text.replace(begin_token + image_token, image_token).replace(image_token, begin_token + image_token)

    def items(content: Sequence[Message]) -> Iterator[Message]:
        for item in content:
            if item["type"] == "image":
                yield {"type": "text", "text": begin_token}
            yield {**item, "text": opened(item["text"])} if item["type"] == "text" else item

    found = []
    for message in messages:
        content = message.get("content")
        if message.get("role") == "assistant" and content:
            message = {**message, "content": opened(content) if isinstance(content, str) else list(items(content))}
        found.append(message)
    return found


def as_items(messages: Iterable[Message]) -> list[Message]:
    """Return normalized messages with lists of items as contents, for templates that only read these."""
    return [
        {**message, "content": [{"type": "text", "text": message["content"]}]}
        if isinstance(message.get("content"), str)
        else message
        for message in messages
    ]


def pictures_in(messages: Iterable[Message]) -> list[PictureInput]:
    """Return the pictures in normalized messages; image items without a picture are left out."""
    items = [item for message in messages if isinstance(message.get("content"), list) for item in message["content"]]
    found = [next((item[key] for key in _KEYS if key in item), None) for item in items if item["type"] == "image"]
    return [picture for picture in found if picture is not None]


def _flat(message: Message, image_token: str) -> Message:
    if not isinstance(message.get("content"), list):
        return message
    text = ""
    for item in message["content"]:
        if item["type"] == "image":
            text += image_token
        else:
            line_ends = text.endswith(image_token) and not item["text"][:1].isspace()
            text += ("\n" if line_ends else "") + item["text"]
    return {**message, "content": text}


def _item(value: Any) -> Message:  # noqa: ANN401
    item = {"type": "text", "text": value} if isinstance(value, str) else _mapping(value)
    if item.get("type") == "image_url":
        url = item.get("image_url")
        item = {"type": "image", "url": url.get("url") if isinstance(url, Mapping) else url}
    if item.get("type") not in ("image", "text"):
        raise ValueError(f"got an item of type {item.get('type')!r} in a message; known are image and text")
    if item["type"] == "text":
        if not isinstance(item.get("text"), str):
            raise ValueError(f"got a {type(item.get('text')).__name__} as the text of an item; wanted a string")
        item["text"] = replace_lone_surrogates(item["text"])
    return item


def _mapping(value: Any) -> Message:  # noqa: ANN401
    if hasattr(value, "model_dump"):
        value = value.model_dump()
    elif is_dataclass(value) and not isinstance(value, type):
        value = {field.name: getattr(value, field.name) for field in fields(value)}
    if not isinstance(value, Mapping):
        raise ValueError(f"got {str(value)[:60]!r} in a conversation; wanted a message: a role and its content")
    return {key: found for key, found in value.items() if found is not None}
