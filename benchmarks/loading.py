"""Time and memory of loading an official file of TokLIP-L, 8.3 GB, beside the official code, or beside torch.load.

The file is made here, in a temporary folder (TMPDIR), of the published layout and size: random weights under the names
of the official code, and the moments of Adam for the vision side. Each figure is of a process of its own, after the
imports: loading, then one photograph and one text of 64 ids. Nothing of ours is read from the disk before it is used:
the second row of each kind has both. All of it is on the processor.

Memory is the peak of the resident set, pages that are mapped from the file included: the system takes those back where
it needs memory. The private memory, which it cannot take back, is in the note. torch.load builds no model, and runs
nothing.
"""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks._race import MIB, Figure, Options, Row, floor, only_from, published, resident

NAME = "toklip-l-384"
PHOTOGRAPH = Path(__file__).parents[1] / "docs" / "examples" / "photographs" / "astronaut.jpg"
#: What is measured -> what it is called in the table, and the targets of time and memory.
KINDS = {"whole": ("whole model", "< 10 s", "< 6000 MiB"), "vision": ("vision side alone", "", "< 3000 MiB")}

#: What loads a file, and returns the call that uses what it loaded.
Loading = Callable[[Path], Callable[[], Any]]


def rows(options: Options) -> Iterator[Row]:
    """Yield what each kind of loading takes; the official code has no vision side alone."""
    name, kind = ("TokLIP, whole", "official") if options.toklip and not options.quick else ("torch.load", "torch")
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "TokLIP_L_384.pt")
        make_file(file, options)
        kinds = [kind, *KINDS]
        turns = [[only_from(measured, kind, file, options) for kind in kinds] for _ in range(options.repeats)]
        figures = {
            kind: {what: Figure(tuple(turn[number][what] for turn in turns)) for what in turns[0][number]}
            for number, kind in enumerate(kinds)
        }
        for kind in KINDS:
            yield from rows_of(kind, figures[kind], name, figures[kinds[0]], options)


def rows_of(
    kind: str, ours: dict[str, Figure], peer_name: str, peer: dict[str, Figure], options: Options
) -> Iterator[Row]:
    """Yield the lines of the table; of torch.load no picture comes."""
    name, seconds, memory = KINDS[kind]
    inputs = "first picture and text" if kind == "whole" else "first picture"
    yield Row(f"{name}, load", "s", ours["load"], peer["load"], peer_name, wanted=seconds)
    both, theirs = (x["load"] + x["first"] if "first" in x else None for x in (ours, peer))
    assert both is not None
    least = floor(options, 0, read=ours["weights"].median)
    yield Row(f"{name}, load and {inputs}", "s", both, theirs, peer_name if theirs else "", least)
    private, its, imports = (figure.median for figure in (ours["private"], peer["private"], ours["imports"]))
    note = f"private {private:.0f} MiB, the peer {its:.0f}; {imports:.0f} are the imports"
    what = f"{name}, memory after load and {inputs}"
    yield Row(what, "MiB", ours["peak"], peer["peak"], peer_name, ours["weights"].median / MIB, memory, note)


def measured(kind: str, file: Path, options: Options) -> Iterator[dict[str, float]]:
    """Yield seconds and MiB of loading a file and using what was loaded."""
    torch.set_num_threads(options.threads)
    makers: dict[str, Callable[[], Loading]] = {
        "official": lambda: official_loading(options),
        "torch": lambda: torch_loading,
    }
    loading = makers.get(kind, lambda: our_loading(options, text=kind == "whole"))()
    imports = resident("VmRSS") / MIB
    start = time.perf_counter()
    use = loading(file)
    loaded = time.perf_counter()
    with torch.no_grad():
        weights = use()
    first = {"first": time.perf_counter() - loaded, "weights": weights} if weights else {}
    memory = {"imports": imports, "peak": resident("VmHWM") / MIB, "private": resident("RssAnon") / MIB}
    yield {"load": loaded - start} | first | memory


def our_loading(options: Options, *, text: bool) -> Loading:
    """Return what loads a file with our code; the call gives the bytes of the weights."""
    import timm.models.vision_transformer  # noqa: F401 - imports are not loading
    import toklip_vq.vqgan  # noqa: F401
    from toklip_core.model import TokLIP

    if text:
        import open_clip.transformer  # noqa: F401
    config = published(NAME, options)
    ids = text_ids(config.text.vocabulary)

    def loading(file: Path) -> Callable[[], float]:
        model: Any = TokLIP.from_pretrained(file, text=text, config=config)

        def use() -> float:
            model.encode_pictures([PHOTOGRAPH])
            if text:
                model.text(ids)
            return float(sum(x.nbytes for part in (model, model.tokenizer.module) for x in part.parameters()))

        return use

    return loading


def torch_loading(file: Path) -> Callable[[], float]:
    """Read all that is in the file, and use nothing of it."""
    held = torch.load(file, weights_only=False)
    return lambda: float(not held)


def official_loading(options: Options) -> Loading:
    """Return what loads a file with the official code, which unpickles whatever is in it: the default of its torch."""
    from PIL import Image
    from toklip_vq.published import CONFIGS
    from toklip_vq.vqgan import VQGAN

    from benchmarks.vq import tokenizer_in_place

    os.environ |= {"TIMM_MODEL": "toklip", "CLIP_MODEL": "original"}
    sys.path.insert(0, str(options.toklip and options.toklip / "src"))
    original = torch.load
    torch.load = lambda *args, **options: original(*args, **{"weights_only": False} | options)
    import create_toklip  # type: ignore[import-not-found]

    ids = text_ids(256000)
    place = contextlib.ExitStack()
    place.enter_context(tokenizer_in_place(VQGAN(CONFIGS["VQ-16"])))

    def loading(file: Path) -> Callable[[], float]:
        with place:
            model, _, preprocess = create_toklip.create_toklip(
                model="ViT-SO400M-16-SigLIP2-384-toklip", image_size=384, model_path=str(file), device="cpu"
            )
        model.eval()

        def use() -> float:
            model.encode_image(preprocess(Image.open(PHOTOGRAPH))[None])
            model.encode_text(ids)
            return float(sum(x.nbytes for x in model.parameters()))

        return use

    return loading


def make_file(path: Path, options: Options) -> None:
    """Write a file of the published layout; every weight is random, the moments are zero."""
    from toklip_core.model import TokLIP, official_name
    from toklip_vq.published import CONFIGS, llamagen_name
    from toklip_vq.vqgan import VQGAN

    with torch.device("meta"):
        model = TokLIP(published(NAME, options))
    tokenizer = VQGAN(CONFIGS["VQ-16"]).state_dict()
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


def text_ids(vocabulary: int) -> Tensor:
    """Return the ids of one text."""
    return torch.randint(vocabulary, (1, 64), generator=torch.Generator().manual_seed(0))
