# /// script
# requires-python = ">=3.11"
# dependencies = ["nox[uv]>=2025.5.1"]
# ///
"""What is checked, each check in an environment of its own: `uv run noxfile.py`, or `nox` where nox is installed.

Without arguments the sessions of `nox.options.sessions` run; the others (`nox --list`) run on request.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from functools import cache
from pathlib import Path

import nox

nox.needs_version = ">=2025.5.1"
nox.options.default_venv_backend = "uv"
nox.options.reuse_venv = "yes"
nox.options.sessions = ["lint", "types", "docs", "tests", "build"]

ROOT = Path(__file__).parent
#: Every package, the ones that others depend on first.
PACKAGES = ["toklip-core", "toklip-vq", "toklip-mllm", "toklip-gen"]
#: Package -> its extras: what a developer installs, and what the tests need.
EXTRAS = {
    "toklip-core": "[train,evaluate,app]",
    "toklip-vq": "[train,transformers]",
    "toklip-mllm": "[train]",
    "toklip-gen": "[train,evaluate,t5]",
}
#: Two processes on two cores are quicker than one with two threads, and say the same; an idle one takes of the other.
PYTEST = ["pytest", "--numprocesses=auto", "--dist=worksteal", "--durations=10"]


def install(session: nox.Session, packages: list[str], *more: str) -> None:
    """Install packages of this repository, editable, with their extras, and what else the session needs."""
    editable = [word for name in packages for word in ("--editable", f"./packages/{name}{EXTRAS[name]}")]
    session.install(*editable, *more)


@nox.session
def lint(session: nox.Session) -> None:
    """Hold every Python file to the rules of ruff."""
    session.install("--group", "lint")
    session.run("ruff", "check", *session.posargs)


@nox.session
def types(session: nox.Session) -> None:
    """Check the types of each package, strictly."""
    install(session, PACKAGES, "--group", "types")
    session.run("mypy", "--strict", *(f"packages/{name}/src" for name in PACKAGES))


@nox.session
def docs(session: nox.Session) -> None:
    """Generate the reference pages, fail if they differ from the committed ones, build the site."""
    install(session, PACKAGES, "--group", "docs")
    session.run("python", "docs/generate.py", "--check")
    # What it prints is an advertisement of its authors' next project, in red.
    session.run("mkdocs", "build", "--strict", "--quiet", "--site-dir", "site", env={"NO_MKDOCS_2_WARNING": "1"})


@nox.session
def tests(session: nox.Session) -> None:
    """Run all tests on all packages."""
    install(session, PACKAGES, "--editable", "./docs/examples/toklip-toy", "--group", "test")
    session.run(*PYTEST, *session.posargs, env={"OMP_NUM_THREADS": "1"})


@nox.session
def quick(session: nox.Session) -> None:
    """Run ruff, and the tests that take no time: for whoever is editing."""
    install(session, PACKAGES, "--editable", "./docs/examples/toklip-toy", "--group", "test", "--group", "lint")
    session.run("ruff", "check")
    quick = "not slow and not weights and not gpu and not windows"
    session.run(*PYTEST, "-m", quick, *session.posargs, env={"OMP_NUM_THREADS": "1"})


@cache
def wheels() -> Path:
    """Build the wheels of all packages, once for all sessions of a run; return their folder."""
    folder = ROOT / ".nox" / "wheels"
    shutil.rmtree(folder, ignore_errors=True)
    for name in PACKAGES:
        subprocess.run(["uv", "build", "--wheel", "--quiet", "--out-dir", folder, ROOT / "packages" / name], check=True)
    return folder


@nox.session(reuse_venv=False)
@nox.parametrize("package", PACKAGES)
def build(session: nox.Session, package: str) -> None:
    """Install the wheel of one package into a clean environment without its siblings, and see that it works."""
    # The core by its path as well: of a folder of wheels, uv would take the one that its cache has for the version.
    needed = {"toklip-core", package}
    if package in ("toklip-mllm", "toklip-gen"):
        needed.add("toklip-vq")  # their models in the package stand on vqgan-tiny
    session.install(*(str(path) for name in needed for path in wheels().glob(f"{name.replace('-', '_')}-*.whl")))
    session.run("toklip", "--help", silent=True)
    session.run("toklip", "tokenizers")
    session.run("toklip", "plugins")
    session.run("python", "tests/repo/smoke.py", package)


@nox.session
def oldest(session: nox.Session) -> None:
    """Run all tests on the oldest releases that the packages say they work with."""
    install(
        session, PACKAGES, "--editable", "./docs/examples/toklip-toy", "--group", "test", "--resolution=lowest-direct"
    )
    session.run(*PYTEST, *session.posargs, env={"OMP_NUM_THREADS": "1"})


@nox.session
def newest(session: nox.Session) -> None:
    """Run all tests on the newest releases there are, as somebody who installs the packages today gets them."""
    install(session, PACKAGES, "--editable", "./docs/examples/toklip-toy", "--group", "test", "--upgrade")
    session.run(*PYTEST, *session.posargs, env={"OMP_NUM_THREADS": "1"})


@nox.session
def weights(session: nox.Session) -> None:
    """Run the tests that need published weights; they are taken from the hub's cache or downloaded."""
    install(session, PACKAGES, "--group", "test")
    session.run("pytest", "tests/weights", "-m", "weights", *session.posargs, env={"HF_HUB_OFFLINE": "0"})


@nox.session
def gpu(session: nox.Session) -> None:
    """Run the tests that need a GPU: encoding, every training, answers and drawing."""
    install(session, PACKAGES, "--group", "test")
    session.run("pytest", "tests/gpu", "-m", "gpu", *session.posargs)


@nox.session
def windows(session: nox.Session) -> None:
    """Draw the pictures of 64 seeds with windows of 1, 4, 16 and 64 positions, which takes 21 minutes."""
    install(session, ["toklip-core", "toklip-vq", "toklip-gen"], "--group", "test")
    session.run(*PYTEST, "tests/gen/generator", "-m", "windows", *session.posargs, env={"OMP_NUM_THREADS": "1"})


@nox.session
def engines(session: nox.Session) -> None:
    """Encode on Ray, Spark (which needs Java) and `datasets`, and run the pages that say how."""
    packages = ["./packages/toklip-core[train,ray]", "./packages/toklip-vq"]
    if shutil.which("java") is None:
        session.error("Spark needs Java, and there is no command java; install a JRE of version 17 or later")
    engines = ["ray[data]", "pyspark[sql]"]
    session.install(*(word for path in packages for word in ("--editable", path)), "--group", "test", *engines)
    pages = "encode-on-ray or encode-on-spark or encode-with-datasets"
    session.run("pytest", "tests/core/store/test_engines.py", *session.posargs)
    session.run("pytest", "tests/repo/test_docs.py", "-k", pages)


@nox.session
def lmms(session: nox.Session) -> None:
    """Run the tests of the plugin of lmms-eval, which is large, and may want other releases than the other tests."""
    packages = [f"./packages/{name}" for name in ("toklip-core", "toklip-vq")]
    editable = [word for path in [*packages, "./packages/toklip-mllm[lmms-eval]"] for word in ("--editable", path)]
    # lmms-eval imports a private module that filelock 4 does not have, as docs/how-to/evaluate-comprehension.md says.
    session.install(*editable, "--group", "test", "filelock<4")
    session.run("pytest", "tests/mllm/evaluation/test_lmms_eval.py", *session.posargs)


@nox.session(name="transformers-suite")
def transformers_suite(session: nox.Session) -> None:
    """Run transformers' own tests of models and processors on ours: `nox -s transformers-suite -- [PATH] [ARGUMENTS]`.

    PATH is a checkout of the installed release. Without it the tests are those of the release's source distribution,
    which lacks the ones of generation and of export; the summary says so.
    """
    install(session, ["toklip-core", "toklip-vq", "toklip-mllm"], "--group", "test", "parameterized", "pip")
    arguments = list(session.posargs)
    if arguments and Path(arguments[0]).is_dir():
        folder = Path(arguments.pop(0))
    else:
        told = session.run("python", "-c", "import transformers; print(transformers.__version__)", silent=True)
        release = f"transformers=={str(told).split()[-1]}"
        place = Path(session.create_tmp())
        session.run("pip", "download", "--quiet", "--no-deps", "--no-binary=:all:", f"--dest={place}", release)
        folder = place / release.replace("==", "-")
        shutil.unpack_archive(f"{folder}.tar.gz", place, filter="data")
    session.run(
        *["pytest", "-c", "tests/transformers_suite/pytest.ini", "--rootdir=.", f"--transformers={folder}"],
        *["tests/transformers_suite", *arguments],
        env={"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
    )


@nox.session
def trl(session: nox.Session) -> None:
    """Train with TRL's SFTTrainer, the newest release of it."""
    install(session, ["toklip-core", "toklip-vq", "toklip-mllm"], "--group", "test", "trl")
    session.run("pytest", "tests/mllm/training/test_trl.py", *session.posargs)


@nox.session
def bench(session: nox.Session) -> None:
    """Print how fast it is, beside what, in one table: `nox -s bench -- [NAME ...] [ARGUMENTS]`; --help says more.

    `nox -s bench -- --device cuda --json gpu.json` measures everything that computes on a GPU.
    """
    # What official code imports: IBQ's the first, UniTok's the others.
    install(session, PACKAGES, "einops", "pytz", "typed-argument-parser")
    session.run("python", "-m", "benchmarks", *session.posargs)


@nox.session
def results(session: nox.Session) -> None:
    """Train what docs/results/ compares, write tables and pictures there: `nox -s results -- [NAME]`; it takes hours.

    With more arguments the tables of NAME are only printed, and a picture is written to --out.
    """
    install(session, PACKAGES, "scikit-learn")
    scripts = {path.stem: path for path in sorted((ROOT / "results").glob("[!_]*.py"))}
    names, arguments = list(scripts), list(session.posargs)
    if arguments and arguments[0] in scripts:
        names = [arguments.pop(0)]
    for name in names:
        session.run("python", str(scripts[name]), *(arguments or ["--page", f"docs/results/{name}.md"]))


if __name__ == "__main__":
    os.chdir(ROOT)
    nox.main()
