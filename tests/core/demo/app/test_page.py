"""The page of `toklip app` without a browser: its files."""

import time
from unittest.mock import patch

import pytest

from tests.support.processes import run_together


def delete_what_visitors_leave(folder):
    """Serve a page that deletes at once, in a process of its own: Gradio leaves sockets open."""
    import gradio as gr
    from fastapi import FastAPI
    from fastapi.testclient import TestClient
    from toklip_core.config import Compute
    from toklip_core.demo.app import page
    from toklip_core.demo.app.models import AppModels
    from toklip_core.plugins import discover

    models = AppModels(
        compute=Compute(), plugins=discover([]), matcher=None, protocol={"model": "a-model"}, where="nowhere", index=[],
        language_model=None, start=None, draws=False, generator=None, drawer=None,
    )
    with patch.multiple(page, _HOUR=0.1, _DAY=0.2):
        app = gr.mount_gradio_app(FastAPI(), page.build_page(models, folder), path="/", ssr_mode=False)
    examples = [*(folder / "examples").iterdir()]
    with TestClient(app) as client:
        (path,) = client.post("/gradio_api/upload", files={"files": ("mine.png", b"mine")}).json()
        assert path.startswith(str(folder)) and path.endswith("mine.png")
        end = time.monotonic() + 60
        while client.get(f"/gradio_api/file={path}").status_code == 200 and time.monotonic() < end:
            time.sleep(0.05)
        assert client.get(f"/gradio_api/file={path}").status_code == 403
        assert len(examples) == 6
        assert [client.get(f"/gradio_api/file={file}").status_code for file in examples] == [200] * 6


@pytest.mark.slow
def test_what_visitors_leave_is_deleted_and_pictures_to_try_stay(tmp_path):
    run_together(delete_what_visitors_leave, tmp_path, count=1, GRADIO_TEMP_DIR=str(tmp_path))
