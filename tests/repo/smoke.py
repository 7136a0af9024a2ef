"""Smoke test of a plain install, which `nox -s build` runs with one wheel and its requirements, without extras.

python tests/repo/smoke.py toklip-vq
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from importlib.util import find_spec
from pathlib import Path

BIN = Path(sys.executable).parent
#: Package -> commands that come with it.
COMMANDS = {
    "toklip-vq": ["train vq"],
    "toklip-mllm": ["train mllm", "ask", "chat"],
    "toklip-gen": ["train generator", "generate"],
}


def toklip(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([BIN / "toklip", *words], capture_output=True, text=True, check=False)


def works(*words: str) -> str:
    done = toklip(*words)
    assert done.returncode == 0, (words, done.stderr)
    return (done.stdout + done.stderr).strip()


def fails_with(sentence: str, words: Sequence[str]) -> None:
    done = toklip(*words)
    errors = [line for line in done.stderr.splitlines() if line.startswith("Error: ")]
    assert done.returncode != 0 and len(errors) == 1 and sentence in errors[0], (words, done.stderr)
    print(errors[0])


def shown_without() -> set[str]:
    """Let `toklip demo` write its page; return the packages whose chapters it leaves out."""
    with tempfile.TemporaryDirectory() as folder:
        said = works("demo", "--out", f"{folder}/demo.html")
        assert "</html>" in Path(folder, "demo.html").read_text()
    missing = [line for line in said.splitlines() if line.startswith("more with: pip install ")]
    return set(missing[0].split()[4:]) if missing else set()


def is_shown_without(*packages: str) -> None:
    assert shown_without() == {*packages}


def has_the_commands_of(name: str) -> None:
    for command in COMMANDS[name]:
        if find_spec(name.replace("-", "_")) is None:
            fails_with(f"pip install {name}", command.split())
        else:
            assert toklip(*command.split(), "--help").returncode == 0, command


def turns_photographs_into_tokens_and_back() -> None:
    with tempfile.TemporaryDirectory() as folder:
        tokens, pictures = f"{folder}/tokens", f"{folder}/pictures"
        print(works("encode", "docs/examples/photographs", "--out", tokens))
        print(works("decode", tokens, "--out", pictures))
        written = {path.name.removesuffix(".png") for path in Path(pictures).rglob("*.png")}
        assert written == {path.name for path in Path("docs/examples/photographs").glob("*.jpg")}, written


def classifies_and_explains() -> None:
    with tempfile.TemporaryDirectory() as folder:
        scenes = f"{folder}/scenes"
        works("scenes", scenes, "--count", "1", "--split", "held-out")
        print(works("classify", f"{scenes}/000000.png", "--labels", "a yellow crescent,a blue square"))
        works("explain", f"{scenes}/000000.png", "a yellow crescent", "--out", f"{folder}/explained.png")


def answers() -> None:
    with tempfile.TemporaryDirectory() as folder:
        works("scenes", f"{folder}/scenes", "--count", "4", "--seed", "4")
        answer = works("ask", f"{folder}/scenes/000003.png", "what colour is the cross?")
        print(answer)
        assert answer.endswith("red"), answer


def draws() -> None:
    with tempfile.TemporaryDirectory() as folder:
        works("generate", "a red circle above a blue square", "-n", "2", "--out", f"{folder}/grid.png")
        assert Path(folder, "grid.png").stat().st_size > 1000


def checks_of(package: str) -> list[Callable[[], None]]:
    """Return the checks of a package, which may run at the same time; the slow ones first."""
    photographs, train = "docs/examples/photographs", ["scenes-tiny", "--out", "never-written"]
    if package == "toklip-core":
        classify = ["classify", f"{photographs}/cat.jpg", "--labels", "a,b"]
        return [
            partial(is_shown_without, "toklip-vq", "toklip-mllm", "toklip-gen"),
            partial(fails_with, "pip install toklip-vq", ["encode", photographs, "--out", "never-written"]),
            partial(fails_with, "pip install toklip-vq", classify),
        ]
    if package == "toklip-vq":
        return [
            partial(is_shown_without, "toklip-mllm", "toklip-gen"),
            classifies_and_explains,
            turns_photographs_into_tokens_and_back,
            partial(fails_with, "toklip-core[train]", ["train", "vq", *train]),
            partial(fails_with, "toklip-core[evaluate]", ["evaluate", "reconstruction", photographs]),
        ]
    if package == "toklip-mllm":
        return [
            partial(is_shown_without, "toklip-gen"),
            answers,
            partial(fails_with, "toklip-core[train]", ["train", "mllm", "scenes-tiny-stage-1", *train[1:]]),
        ]
    return [
        partial(is_shown_without, "toklip-mllm"),
        draws,
        partial(fails_with, "toklip-core[train]", ["train", "generator", *train]),
    ]


def main(package: str) -> None:
    plugins = json.loads(toklip("plugins", "--json").stdout)
    assert all(not plugin["error"] for plugin in plugins), plugins
    names = [tokenizer["name"] for tokenizer in json.loads(toklip("tokenizers", "--json").stdout)]
    assert names == [] if package == "toklip-core" else "vqgan-tiny" in names, names
    with ThreadPoolExecutor(2) as pool:  # most of the time is spent importing, on one core
        checks = [*checks_of(package), *(partial(has_the_commands_of, name) for name in COMMANDS)]
        for done in [pool.submit(check) for check in checks]:
            done.result()


if __name__ == "__main__":
    main(*sys.argv[1:])
