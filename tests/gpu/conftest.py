"""The device of these tests, and what its trainings read.

Where there is no GPU, the tests themselves are checked on a processor:

    TOKLIP_GPU_TESTS_DEVICE=cpu pytest tests/gpu -m gpu
"""

import os

import pytest
import torch

from tests.support.encoder_runs import small_teacher
from tests.support.encoding import encode_with
from tests.support.small_models import SIZE


@pytest.fixture(scope="session")
def device():
    return os.environ.get("TOKLIP_GPU_TESTS_DEVICE", "cuda")


@pytest.fixture(autouse=True)
def exact_float32(monkeypatch):
    """Convolutions on a GPU do not round to TF32: float32 is the same precision on both devices."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


@pytest.fixture(scope="session")
def world(tmp_path_factory):
    """A teacher, and token stores of scenes: of 32 px with its features, and of 64 px."""
    folder = tmp_path_factory.mktemp("world")
    small_teacher(1, patch_size=8).save_pretrained(folder / "teacher")
    scenes, vq = ["scenes:train?count=12"], {"tokenizer": "vqgan-tiny", "resize": "crop"}
    encode_with(scenes, folder / "store", image_size=SIZE, teacher=folder / "teacher", **vq)
    encode_with(scenes, folder / "large", image_size=64, **vq)
    return folder
