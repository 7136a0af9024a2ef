"""Contract: what a command must not import, because it takes seconds and the command does not use it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image
from toklip_core.scenes import scene

#: torch's compiler, and what comes with it.
COMPILER = {"torch._dynamo", "torch._inductor", "sympy", "triton.language"}
#: Libraries of training and evaluation.
TRAINING = {"accelerate", "tensorboard", "torch.utils.tensorboard", "datasets", "skimage", "torchmetrics", "lpips"}
#: Command -> modules that it must not import.
FORBIDDEN = {
    "encode": COMPILER | TRAINING | {"transformers", "timm", "open_clip", "torchvision", "scipy", "huggingface_hub"},
    "classify": COMPILER | TRAINING | {"transformers", "timm.models.beit", "open_clip.factory", "scipy"},
    "generate": COMPILER | TRAINING | {"transformers", "timm.models.beit", "open_clip.factory", "scipy"},
    # transformers imports the compiler, accelerate and scipy with every language model.
    "ask": (TRAINING - {"accelerate"}) | {"timm.models.beit", "open_clip"},
}
WORDS = {
    "encode": ["picture.png", "--out", "store", "--workers", "0"],
    "classify": ["picture.png", "--labels", "a yellow crescent,a red circle"],
    "generate": ["a red circle", "--out", "generated.png"],
    "ask": ["picture.png", "what colour is it?"],
}


@pytest.mark.slow
@pytest.mark.parametrize("command", FORBIDDEN)
def test_a_command_imports_nothing_that_it_does_not_use(command, tmp_path: Path):
    Image.fromarray(scene(0).pixels).save(tmp_path / "picture.png")
    script = f"""
import sys
from toklip_core.cli import cli
cli({[command, *WORDS[command]]!r}, standalone_mode=False)
# A package that has no __init__ yet is there for the sake of its modules.
print("modules:", *(name for name, module in sys.modules.items() if type(module).__name__ != "_Deferred"))
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=True)
    loaded = set(done.stdout.rpartition("modules:")[2].split())
    assert loaded & FORBIDDEN[command] == set()
