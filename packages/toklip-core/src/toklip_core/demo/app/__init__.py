"""`toklip app`: a page on which people chat, look at tokens, search and compare tokenizers, served by this machine.

    server.py  address, and end; settings.py      page.py        the components of the page, of Gradio
    models.py  what is loaded, and examples       chat.py        words and pictures in a conversation
    tokens.py  what each token of a picture says  tokenizers.py  one picture through several tokenizers

Only page.py and server.py import Gradio. The others compute, by the functions that the commands use.
"""

from __future__ import annotations

from toklip_core.demo.app.server import serve_app
from toklip_core.demo.app.settings import AppSettings

__all__ = ["AppSettings", "serve_app"]
