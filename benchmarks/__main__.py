"""How fast the packages are, in one table: each figure beside a peer of the same run, or beside its floor.

    python -m benchmarks [NAME ...] [--toklip PATH/TokLIP] [--llamagen PATH/LlamaGen] [--ibq PATH/SEED-Voken]
        [--qlip PATH/QLIP] [--unitok PATH/UniTok]

The paths are checkouts of the official repositories; where one is left out, timm, open_clip, numpy or torch is the
peer, or the floor stands alone. Weights are random, of the published shapes, and the same on both sides.

The two sides take turns, and each figure is the median of the repeats, with the smallest and the largest in brackets.
A ratio is that of the medians; its brackets have the smallest and the largest ratio of one turn. The floor is what the
multiplications of ours take at the rate of a large matrix product, or the bytes it reads at that of memory, whichever
is longer, both at the quickest of their repeats in the same run. Each benchmark has a process of its own: one that
fails is named, and the others go on.

    python -m benchmarks --device cuda --json gpu.json

runs all that computes there, which is all but tokens, loading and starting: with more pictures at a time, and drawing
with compiled steps in bfloat16. Only encoder was run on a GPU so far; docs/results/speed.md has its figures.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks._race import HEADER, Options, Row, elsewhere, machine_name, measured

#: The median of fewer repeats says little.
FEWEST_REPEATS = 5
NAMES = (
    *("tokens", "vq", "encoding", "encoder", "loading", "starting"),
    *("comprehension", "generation", "windows", "scaling"),
)
#: Those that compute on the processor alone.
ON_PROCESSOR = ("tokens", "loading", "starting")


def checkout(path: str) -> Path:
    """Return the absolute path of a folder."""
    if not Path(path).is_dir():
        raise argparse.ArgumentTypeError(f"there is no folder {path!r}; wanted a checkout of the repository")
    return Path(path).absolute()


def main() -> int:
    """Print rows as they come, and all of them at the end; write them as JSON where asked; 1 if a benchmark failed."""
    parser = argparse.ArgumentParser("benchmarks", None, __doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"one of {', '.join(NAMES)}; all without a name")
    parser.add_argument("--toklip", type=checkout, help="a checkout of TencentARC/TokLIP to compare with")
    parser.add_argument("--llamagen", type=checkout, help="a checkout of FoundationVision/LlamaGen to compare with")
    parser.add_argument("--ibq", type=checkout, help="a checkout of TencentARC/SEED-Voken to compare with")
    parser.add_argument("--qlip", type=checkout, help="a checkout of NVlabs/QLIP to compare with")
    parser.add_argument("--unitok", type=checkout, help="a checkout of FoundationVision/UniTok to compare with")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5, help=f"turns of each side, at least {FEWEST_REPEATS}")
    parser.add_argument("--quick", action="store_true", help="tiny sizes: to see that all runs, not for figures")
    parser.add_argument("--json", type=Path, help="the file to write")
    given: dict[str, Any] = vars(parser.parse_args())
    file, names = given.pop("json"), given.pop("names")
    if unknown := set(names) - set(NAMES):
        parser.error(f"there is no benchmark {', '.join(sorted(unknown))}; there are {', '.join(NAMES)}")
    options = Options(**given)
    names = names or [name for name in NAMES if not options.on_gpu or name not in ON_PROCESSOR]
    if options.on_gpu and (there := sorted(set(names) & set(ON_PROCESSOR))):
        parser.error(f"measured on a processor only: {', '.join(there)}; leave out --device")
    if options.repeats < FEWEST_REPEATS and not options.quick:
        parser.error(f"got {options.repeats} repeats; a median wants at least {FEWEST_REPEATS}")
    os.environ["HF_HUB_OFFLINE"] = "1"  # looking for a text tokenizer there is not loading
    machine = machine_name(options)
    print(machine, HEADER, sep="\n\n", flush=True)
    rows: list[Row] = []
    failed = []
    for name in names:
        try:
            for row in elsewhere(measured, name, options):
                print(row.line(), flush=True)
                rows.append(row)
        except RuntimeError as error:  # its traceback is on stderr; a process without memory is killed, and has none
            failed.append(f"{name} failed: {error}")
            print(failed[-1], file=sys.stderr)
        if file:
            result = {"machine": machine, "failed": failed, "rows": [asdict(row) for row in rows]}
            beside = file.with_name(f".{file.name}.tmp")  # a kill loses no row that was there
            beside.write_text(json.dumps(result, indent=2) + "\n")
            beside.replace(file)
    if len(names) > 1:
        print("", machine, "", HEADER, *(row.line() for row in rows), *failed, sep="\n")
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
