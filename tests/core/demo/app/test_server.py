"""`toklip app` that cannot start: one line, and a status; the page itself is in tests/repo/test_app.py."""

import socket

import pytest
from click.testing import CliRunner
from toklip_core.cli import cli
from toklip_core.plugins import discover

from tests.support.refusals import refused


def toklip_app(*words):
    return CliRunner().invoke(cli, ["app", "--no-browser", *map(str, words)], obj=discover([]))


def test_a_port_in_use_is_named():
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        refused(toklip_app("--port", port), f"port {port} of 127.0.0.1", "in use", "--port")


def test_an_address_of_another_machine_is_named():
    refused(toklip_app("--host", "192.0.2.1", "--port", 0), "192.0.2.1")


@pytest.mark.parametrize("library", ["gradio", "torchmetrics"])
def test_a_missing_extra_is_named(monkeypatch, library):
    monkeypatch.setattr("toklip_core.demo.app.server.find_spec", lambda name: None if name == library else object())
    refused(toklip_app(), f"{library} is not installed: pip install 'toklip-core[app]'")


@pytest.mark.parametrize(
    ("words", "about"),
    [
        (["--pictures", "no-such-folder"], "no-such-folder"),
        (["--toklip", "no-such-model"], "no-such-model"),
        (["--device", "no-such-device"], "no-such-device"),
    ],
)
def test_what_is_not_there_is_named(words, about):
    refused(toklip_app("--port", 0, *words), about)
