"""The server of `toklip app`: its address, its temporary folder, and its end."""

from __future__ import annotations

import logging
import os
import socket
import threading
import webbrowser
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from ipaddress import ip_address
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from toklip_core.demo.app.models import AppModels, load_models
from toklip_core.demo.app.settings import AppSettings
from toklip_core.plugins import Registry

#: Where a browser may load from: this server alone, whatever Gradio's page asks for.
_POLICY = (
    "default-src 'self' data: blob: 'unsafe-inline' 'unsafe-eval'; frame-ancestors 'none'; base-uri 'self'; "
    "form-action 'self'"
)
#: Size of the largest file that may be uploaded.
_UPLOAD = "64mb"
_SECONDS = 0.2


def serve_app(
    settings: AppSettings, plugins: Registry, *, stop: Callable[[], bool], say: Callable[[str], None]
) -> None:
    """Serve the page until a stop is requested.

    What visitors upload, and what is drawn, is in a temporary folder, each file for a day; the folder is removed at the
    end.

    Args:
        settings: models, pictures and address.
        plugins: the plugins.
        stop: returns whether to end.
        say: function that receives the address, once the page is there.

    Raises:
        FileNotFoundError: a model or a picture is not there.
        LookupError: there is no such model, or the extra is not installed.
        OSError: the address is taken, or is none of this machine.
        ValueError: a model is of another kind, or there is no such device.
    """
    for library in ("gradio", "torchmetrics"):
        if find_spec(library) is None:
            raise LookupError(f"{library} is not installed: pip install 'toklip-core[app]'")
    with _listen(settings.host, settings.port) as listener, TemporaryDirectory(prefix="toklip-app-") as temporary:
        folder = Path(temporary).resolve()
        # Gradio reads them when it is imported: where its files are, and that it reports nothing to its authors.
        os.environ |= {"GRADIO_TEMP_DIR": str(folder), "GRADIO_ANALYTICS_ENABLED": "False"}
        models = load_models(plugins, settings)
        if stop():
            return
        port = listener.getsockname()[1]
        with _run(_build_application(models, folder, settings.host, port), listener) as is_alive:
            address = f"http://{_quote_host(settings.host)}:{port}"
            say(address)
            if settings.browser:
                webbrowser.open(address)
            while not stop() and is_alive(_SECONDS):
                pass


@contextmanager
def _listen(host: str, port: int) -> Iterator[socket.socket]:
    """Yield a socket that listens; OSError, in words, if it cannot."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listener = socket.create_server((host, port), family=family)
    except OSError as error:
        raise OSError(
            f"cannot listen on port {port} of {host}: {error.strerror or error}; name another one (--port), or 0 for "
            "any that is free"
        ) from error
    with listener:
        yield listener


def _build_application(models: AppModels, folder: Path, host: str, port: int) -> Any:  # noqa: ANN401 - of an extra
    """Return the page as an application of FastAPI."""
    import gradio as gr
    from fastapi import FastAPI
    from starlette.middleware.trustedhost import TrustedHostMiddleware

    from toklip_core.demo.app.page import build_page, page_style

    page = build_page(models, folder)
    outer = FastAPI(openapi_url=None)
    app = gr.mount_gradio_app(
        outer, page, path="/", server_name=host, server_port=port, run_history=False, ssr_mode=False, pwa=False,
        mcp_server=False, show_error=_is_of_this_machine(host), max_file_size=_UPLOAD, **page_style(),
    )
    if _is_of_this_machine(host):
        # Another site cannot reach the page through a name that it has led to this address.
        app.add_middleware(TrustedHostMiddleware, allowed_hosts=[host, "localhost", "127.0.0.1", "[::1]"])

    app.add_middleware(_SelfOnly)
    return app


class _SelfOnly:
    """An application of ASGI that tells browsers to load the page of another one from this server alone."""

    def __init__(self, app: Any) -> None:  # noqa: ANN401 - an application of ASGI
        self._app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:  # noqa: ANN401 - as ASGI has it
        async def answer(message: Any) -> None:  # noqa: ANN401 - as ASGI has it
            if message["type"] == "http.response.start":
                policy = (b"content-security-policy", _POLICY.encode())
                message = {**message, "headers": [*message.get("headers", ()), policy]}
            await send(message)

        await self._app(scope, receive, answer)


@contextmanager
def _run(app: Any, listener: socket.socket) -> Iterator[Callable[[float], bool]]:  # noqa: ANN401 - of ASGI
    """Run an application in a thread; yield a function that waits, and returns whether it still runs."""
    import uvicorn

    config = uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=1)
    server = uvicorn.Server(config)
    # Outside the main thread uvicorn leaves the signals alone.
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, name="toklip app")
    thread.start()

    def is_alive(seconds: float) -> bool:
        thread.join(seconds)
        return thread.is_alive()

    try:
        while not server.started and is_alive(_SECONDS):
            pass
        if not server.started:
            raise OSError("the server of the page did not start")
        yield is_alive
    finally:
        # An open page keeps a connection, whose end would be told as an error.
        logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)
        server.should_exit = True
        thread.join()


def _is_of_this_machine(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _quote_host(host: str) -> str:
    return f"[{host}]" if ":" in host else host
