"""The settings of `toklip app`; their defaults are those of its options."""

from __future__ import annotations

from dataclasses import dataclass

from toklip_core.config import Compute


@dataclass(frozen=True, kw_only=True)
class AppSettings:
    """Settings of :func:`serve_app`."""

    #: Language model of the chat, by name or folder; None: the one that ships with a package, preferably one that
    #: draws, if there is any.
    model: str | None
    #: Model that draws in the chat where the language model does not; None: then the one that ships with a package, if
    #: there is any.
    generator: str | None
    #: TokLIP of the tokens and the search, or for the search alone another model that compares pictures with texts.
    toklip: str
    #: What the search reads, see :func:`toklip_core.evaluation.pictures_to_search`.
    pictures: tuple[str, ...]
    #: Address to listen on, and port; 0 takes any that is free.
    host: str
    port: int
    #: Whether a browser is opened.
    browser: bool
    compute: Compute
