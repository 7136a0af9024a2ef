"""Contract: what a command must not import, because it takes seconds and the command does not use it."""

from __future__ import annotations

import json
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
def test_a_command_imports_nothing_that_it_does_not_use(tmp_path: Path):
    """All in one process, in the order of what they may import: each finds what those before it left."""
    Image.fromarray(scene(0).rgb).save(tmp_path / "picture.png")
    script = f"""
import json, sys
from toklip_core.cli import run
for command, words in {WORDS!r}.items():
    sys.argv = ["toklip", command, *words]
    try:
        run()
    except SystemExit as end:
        assert not end.code, command
    # A package that has no __init__ yet is there for the sake of its modules.
    loaded = [name for name, module in sys.modules.items() if type(module).__name__ != "_DeferredPackage"]
    print("\\nmodules:", json.dumps([command, loaded]))
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=True)
    found = dict(json.loads(line.split(":", 1)[1]) for line in done.stdout.splitlines() if line.startswith("modules:"))
    assert found.keys() == FORBIDDEN.keys()
    assert not {command: both for command, loaded in found.items() if (both := {*loaded} & FORBIDDEN[command])}


@pytest.mark.slow
def test_a_package_that_waits_is_whole_as_soon_as_it_is_used():
    script = """
import sys
from toklip_core.cli.deferral import defer_packages
defer_packages()
from timm.models.vision_transformer import Block
assert "timm.models.beit" not in sys.modules
import timm, torch, torchvision
assert type(timm.create_model("vit_tiny_patch16_224").blocks[0]) is Block and "timm.models.beit" in sys.modules
boxes, scores = torch.tensor([[0.0, 0, 1, 1], [0, 0, 1, 1]]), torch.tensor([0.5, 0.9])
assert torchvision.ops.nms(boxes, scores, 0.5).tolist() == [1]
"""
    subprocess.run([sys.executable, "-c", script], check=True)
