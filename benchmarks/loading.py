"""Time and memory of loading an official file of TokLIP-L, 8.3 GB, beside the official code where its path is given.

    python benchmarks/loading.py --toklip PATH/TokLIP --folder /dev/shm --json loading.json

The file is made here, of the published layout and size: random weights under the names of the official code, and the
moments of Adam for the vision side. It is deleted at the end. Each figure is of a process of its own, after the
imports: loading, then one photograph and one text of 64 ids. Nothing of ours is read from the disk before it is used,
so its first picture and text are slower than the next ones; both are in the table.

Memory is the peak of the resident set, pages that are mapped from the file included: the system takes those back where
it needs memory. The private memory, which it cannot take back, is in the note.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _race import Row, machine_name, table, write_json
from torch import Tensor

MIB = 2**20
NAME = "toklip-l-384"
PHOTOGRAPHS = Path(__file__).parents[1] / "docs" / "examples" / "photographs"
#: What is measured -> what it is called in the table, and the targets of time and memory.
KINDS = {"whole": ("whole model", "< 10 s", "< 6000 MiB"), "vision": ("vision side alone", "", "< 3000 MiB")}


def main() -> None:
    """Print the table; write it as JSON where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--toklip", type=Path, help="a checkout of TencentARC/TokLIP to compare with")
    parser.add_argument("--folder", type=Path, help="where the file is made, with room for 9 GB; the default is TMPDIR")
    parser.add_argument("--json", type=Path, help="the file to write")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--make", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--measure", nargs=2, metavar=("KIND", "FILE"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.make:
        make_file(options.make)
        return
    if options.measure:
        kind, file = options.measure
        load = official_loading(options.toklip) if kind == "official" else our_loading(text=kind == "whole")
        print(json.dumps(measured(load, Path(file))))
        return
    machine = machine_name(options.threads)
    print(machine)
    run = [sys.executable, __file__, "--threads", str(options.threads)]
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        file = Path(folder, "TokLIP_L_384.pt")
        subprocess.run([*run, "--make", str(file)], check=True)
        official = None
        if options.toklip:
            official = outcome([*run, "--toklip", str(options.toklip.absolute()), "--measure", "official", str(file)])
        rows = [row for kind in KINDS for row in rows_of(kind, outcome([*run, "--measure", kind, str(file)]), official)]
    print(table(rows))
    if options.json:
        write_json(options.json, machine, rows)


def outcome(command: list[str]) -> dict[str, float]:
    """Return what a process measured."""
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    figures: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return figures


def rows_of(kind: str, ours: dict[str, float], official: dict[str, float] | None) -> list[Row]:
    """Return the lines of the table; the official code has no vision side alone."""
    theirs = official if official and kind == "whole" else {}
    name, seconds, memory = KINDS[kind]
    inputs = "a picture and a text" if kind == "whole" else "a picture"
    steps = {"load": ("load", seconds), "first": (f"first {inputs}", ""), "next": (f"next {inputs}", "")}
    return [
        *(
            Row(f"{name}, {words}", "s", ours[step], theirs.get(step), target=target)
            for step, (words, target) in steps.items()
        ),
        Row(
            what=f"{name}, memory after load, {inputs}",
            unit="MiB",
            ours=ours["peak"],
            official=theirs.get("peak"),
            target=memory,
            note=f"private {ours['private']:.0f} MiB"
            + (f", official {theirs['private']:.0f} MiB" if theirs else "")
            + f"; {ours['imports']:.0f} MiB are the imports",
        ),
    ]


def measured(loading: Callable[[Path], tuple[Callable[[], Any], Callable[[], Any]]], file: Path) -> dict[str, float]:
    """Return seconds and MiB of loading a file and using what was loaded."""
    imports = resident("VmRSS")
    seconds = []
    start = time.perf_counter()
    encode_picture, encode_text = loading(file)
    seconds.append(time.perf_counter() - start)
    with torch.no_grad():
        for _ in range(2):
            start = time.perf_counter()
            encode_picture()
            encode_text()
            seconds.append(time.perf_counter() - start)
    memory = {"imports": imports, "peak": resident("VmHWM"), "private": resident("RssAnon")}
    return dict(zip(("load", "first", "next"), seconds, strict=True)) | memory


def our_loading(*, text: bool) -> Callable[[Path], tuple[Callable[[], Any], Callable[[], Any]]]:
    """Return what loads a file with our code, and returns calls for a picture and a text."""
    import timm.models.vision_transformer  # noqa: F401 - imports are not loading
    import toklip_vq.vqgan  # noqa: F401
    from toklip_core.model import TokLIP

    if text:
        import open_clip.transformer  # noqa: F401
    ids, photograph = text_ids(), next(PHOTOGRAPHS.glob("*.jpg"))

    def loading(file: Path) -> tuple[Callable[[], Any], Callable[[], Any]]:
        model: Any = TokLIP.from_pretrained(file, text=text)
        return lambda: model.encode_pictures([photograph]), lambda: model.text(ids) if text else None

    return loading


def official_loading(path: Path) -> Callable[[Path], tuple[Callable[[], Any], Callable[[], Any]]]:
    """Return what loads a file with the official code.

    Its constructor downloads the tokenizer into the working directory unless it is there, and it unpickles whatever is
    in the file, which was the default of its torch.
    """
    from PIL import Image
    from toklip_vq.llamagen import CONFIGS, llamagen_name
    from toklip_vq.vqgan import build_vqgan

    tokenizer = {llamagen_name(name): tensor for name, tensor in build_vqgan(CONFIGS["VQ-16"]).state_dict().items()}
    os.environ |= {"TIMM_MODEL": "toklip", "CLIP_MODEL": "original"}
    sys.path.insert(0, str(path / "src"))
    original = torch.load
    torch.load = lambda *args, **options: original(*args, **{"weights_only": False} | options)
    import create_toklip  # type: ignore[import-not-found]

    ids, photograph = text_ids(), next(PHOTOGRAPHS.glob("*.jpg"))
    folder = tempfile.TemporaryDirectory()
    local = Path(folder.name, "tokenizer", "pretrained_models", "vq_ds16_t2i.pt")
    local.parent.mkdir(parents=True)
    torch.save({"model": tokenizer | {"quantize.codebook_used": torch.zeros(65536)}}, local)

    def loading(file: Path) -> tuple[Callable[[], Any], Callable[[], Any]]:
        silence = Path(os.devnull).open("w")  # it prints every name of the file
        with folder, silence, contextlib.redirect_stdout(silence), contextlib.chdir(folder.name):
            model, _, preprocess = create_toklip.create_toklip(
                model="ViT-SO400M-16-SigLIP2-384-toklip", image_size=384, model_path=str(file), device="cpu"
            )
        model.eval()
        pixels = preprocess(Image.open(photograph))[None]
        return lambda: model.encode_image(pixels), lambda: model.encode_text(ids)

    return loading


def make_file(path: Path) -> None:
    """Write a file of the published layout; every weight is random, the moments are zero."""
    from toklip_core.model import TokLIP
    from toklip_core.published import model_spec, official_name
    from toklip_vq.llamagen import CONFIGS, llamagen_name
    from toklip_vq.vqgan import build_vqgan

    torch.manual_seed(0)
    config = model_spec(NAME).config
    assert config is not None
    with torch.device("meta"):
        model = TokLIP(config)
    tokenizer = build_vqgan(CONFIGS["VQ-16"]).state_dict()
    shapes = {official_name(name): tensor.shape for name, tensor in model.state_dict().items()}
    state = {f"module.{name}": random_weight(name, shape) for name, shape in shapes.items()}
    state |= {f"module.visual.trunk.vq.{llamagen_name(name)}": tensor for name, tensor in tokenizer.items()}
    state["module.visual.trunk.vq.quantize.codebook_used"] = torch.zeros(65536)
    trained = [shape for name, shape in shapes.items() if name.startswith(("visual.", "logit_"))]
    moments = {
        number: {"step": torch.tensor(1.0), "exp_avg": torch.zeros(shape), "exp_avg_sq": torch.zeros(shape)}
        for number, shape in enumerate(trained)
    }
    torch.save(
        {
            "epoch": 32,
            "step": np.int64(7),
            "name": "random",
            "state_dict": state,
            "optimizer": {"state": moments, "param_groups": [{"lr": np.float64(1e-5)}]},
            "scaler": {"scale": np.float64(65536)},
        },
        path,
    )


def random_weight(name: str, shape: torch.Size) -> Tensor:
    """Return a weight that keeps activations of order 1; zeros for biases, ones for scales."""
    if len(shape) < 2:
        return torch.full(shape, 1.0 if name.endswith("norm.weight") or "ln_" in name else 0.0)
    return torch.randn(shape).mul_(shape[-1] ** -0.5)


def text_ids() -> Tensor:
    """Return the ids of one text."""
    return torch.randint(256000, (1, 64), generator=torch.Generator().manual_seed(0))


def resident(field: str) -> float:
    """Return a field of the kernel's account of this process, in MiB."""
    status = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith(field)) / MIB


if __name__ == "__main__":
    main()
