"""Contract: who may import whom, and what `toklip --help` costs. docs/explanation/architecture.md says it in words."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.repo.pages import ROOT

#: Package -> its modules in layers: a module imports modules of lower layers only. A folder is one module.
LAYERS = {
    "toklip_core": [
        {"atomic", "characters", "finite", "locks", "messages", "png_texts", "ranges", "special_files"},
        {"textfiles"},
        {"tables"},
        {"parquet_rows"},
        {"plugins", "config", "checkpoint", "modes", "scenes", "signals", "tars", "writers", "losses", "panels"},
        {"data", "optimizers", "parts", "perceptual", "runs", "sources", "trunk"},
        {"crops", "outputs", "training", "encoder", "text", "readers"},
        {"part_reader"},
        {"store", "tasks"},
        {"clip", "published"},
        {"model"},
        {"rows"},
        {"encoding"},
        {"matching"},
        {"classes"},
        {"captions", "decoding", "evaluation", "explanation", "retrieval", "searching", "zero_shot"},
        {"settings"},
        {"held_out"},
        {"distillation"},
        {"teaching"},
        {"demo"},
        {"options"},
        {"demo_command", "model_commands", "train_commands"},
        {"cli", "testing"},
        {"__main__"},
    ],
    "toklip_vq": [
        {"parts", "towers"},
        {"vqgan"},
        {"ibq", "llamagen", "emu3", "losses", "settings"},
        {"chameleon", "janus", "samples"},
        {"training"},
        {"plugin"},
    ],
    "toklip_mllm": [
        {"registration", "config", "settings", "answers", "published", "pictures", "logits"},
        {"adapters", "vision", "messages"},
        {"model", "processing", "language"},
        {"building", "chat", "conversations"},
        {"questions", "sources"},
        {"data", "figures"},
        {"vqa"},
        {"lmms", "training"},
        {"ask_command", "commands"},
        {"plugin"},
    ],
    "toklip_gen": [
        {"config", "samples", "packing"},
        {"blocks", "published", "settings"},
        {"model", "data", "features", "scene_reading"},
        {"checkpoint", "conditions", "inputs", "references", "scenes_match"},
        {"sampling", "evaluation"},
        {"pipeline"},
        {"drawing", "generation", "training"},
        {"commands", "run_commands"},
        {"plugin"},
    ],
}
#: What every package may import, beside itself.
SHARED = {"toklip_core"}
#: Modules that every `toklip --help` imports: nothing heavy at their top.
LIGHT = {f"toklip_core.{name}" for name in ("cli", "demo_command", "model_commands", "plugins", "tasks")}
LIGHT |= {"toklip_core.options", "toklip_core.ranges", "toklip_core.train_commands", "toklip_vq.plugin"}
LIGHT |= {f"toklip_gen.{name}" for name in ("commands", "plugin", "published", "run_commands")}
LIGHT |= {f"toklip_mllm.{name}" for name in ("ask_command", "commands", "plugin", "published", "registration")}
HEAVY = {"torch", "timm", "open_clip", "tokenizers", "numpy", "PIL", "pyarrow", "safetensors", "huggingface_hub"}
HEAVY |= {"pydantic", "tqdm"}


def modules(package: str) -> Iterator[tuple[str, Path]]:
    source = ROOT / "packages" / package.replace("_", "-") / "src" / package
    for path in sorted(source.rglob("*.py")):
        parts = path.relative_to(source).with_suffix("").parts
        if parts != ("__init__",):
            yield ".".join([package, *parts]).removesuffix(".__init__"), path


MODULES = [(package, name, path) for package in LAYERS for name, path in modules(package)]


def imported(path: Path, *, top_only: bool = False) -> set[str]:
    tree = ast.parse(path.read_text())
    nodes = tree.body if top_only else ast.walk(tree)
    found: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0 and node.module, f"{path}: a relative import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module}
    return found


def layer(package: str, name: str) -> int:
    part = name.split(".")[1]
    found = [number for number, layer in enumerate(LAYERS[package]) if part in layer]
    assert len(found) == 1, f"{name} is in no layer: give it one in LAYERS"
    return found[0]


@pytest.mark.parametrize(("package", "name", "path"), MODULES, ids=[name for _, name, _ in MODULES])
def test_a_module_imports_lower_layers_only(package, name, path):
    own = layer(package, name)
    known = {".".join(other.split(".")[:2]) for _, other, _ in MODULES}
    for target in imported(path):
        root, _, rest = target.partition(".")
        if (
            root == package
            and (part := f"{root}.{rest.split('.')[0]}") in known
            and part != ".".join(name.split(".")[:2])
        ):
            assert layer(package, part) < own, f"{name} imports {part}, which is not below it"


@pytest.mark.parametrize(("package", "name", "path"), MODULES, ids=[name for _, name, _ in MODULES])
def test_a_package_imports_no_sibling_but_the_core(package, name, path):
    ours = {target.split(".")[0] for target in imported(path) if target.startswith("toklip_")}
    assert ours <= SHARED | {package}


@pytest.mark.parametrize(("package", "name", "path"), MODULES, ids=[name for _, name, _ in MODULES])
def test_what_every_start_of_toklip_imports_is_light(package, name, path):
    if name in LIGHT:
        assert {target.split(".")[0] for target in imported(path, top_only=True)} & HEAVY == set()


def test_help_imports_nothing_heavy():
    script = """
import sys
from click.testing import CliRunner
from toklip_core.cli import cli
for words in (["--help"], ["train", "--help"], ["evaluate", "--help"], ["encode", "--help"], ["tokenizers"]):
    result = CliRunner().invoke(cli, words)
    assert result.exit_code == 0, result.output
print(",".join(sorted({name.split(".")[0] for name in sys.modules})))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert set(done.stdout.strip().split(",")) & (HEAVY | {"toklip_vq.vqgan", "timm", "transformers"}) == set()
