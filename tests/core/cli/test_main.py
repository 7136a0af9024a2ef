"""The command `toklip`: help, commands of plugins, errors as lines, and the time of a start."""

import errno
import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner
from pydantic import BaseModel
from toklip_core.cli import TrainTask, cli, plugin_commands, train_command
from toklip_core.cli.group import ErrorsAsLines
from toklip_core.config import Config
from toklip_core.plugins import Plugin, Registry, TokenizerSpec
from toklip_core.training import FitReport

from tests.support.installed import found, install, right
from tests.support.starved import NO_MEMORY


class Hooks:
    """The hooks of a plugin that is nowhere installed."""

    def __init__(self, register):
        self.toklip_register_commands = register


def registry(**registers):
    """A Registry of plugins by name, each with the function that registers its commands."""
    return Registry(
        tuple(
            Plugin(name, f"{name}_module", f"acme-{name}", "1.0", hook=Hooks(register))
            for name, register in registers.items()
        ),
        {},
    )


def raising(error):
    """A Registry whose one command, `fail`, raises."""

    def register(cli, train, evaluate):
        @cli.command()
        def fail():
            """Fail."""
            raise error

    return registry(acme=register)


def run(*words, plugins=None):
    return CliRunner().invoke(cli, words, obj=plugins or Registry((), {}), prog_name="toklip")


def every_command(command, context):
    yield context.command_path, command
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            inner = command.get_command(context, name)
            yield from every_command(inner, click.Context(inner, info_name=name, parent=context))


EVERY = dict(every_command(cli, click.Context(cli, info_name="toklip")))


@pytest.mark.parametrize("path", EVERY)
def test_every_command_and_group_says_what_it_does(path):
    result = CliRunner().invoke(cli, [*path.split()[1:], "--help"])
    assert result.exit_code == 0
    assert EVERY[path].help and EVERY[path].get_short_help_str(), f"{path} has no help"
    for parameter in EVERY[path].params:
        assert not isinstance(parameter, click.Option) or parameter.help, f"{path} {parameter.opts} has no help"


def test_version_is_printed():
    assert run("--version").output == f"toklip, version {__import__('toklip_core').__version__}\n"


@pytest.mark.parametrize(
    ("words", "package"),
    [
        (["generate"], "toklip-gen"),
        (["ask", "what is it?"], "toklip-mllm"),
        (["chat"], "toklip-mllm"),
        (["train", "vq", "scenes-tiny"], "toklip-vq"),
        (["train", "mllm"], "toklip-mllm"),
        (["train", "generator", "--help"], "toklip-gen"),
        (["evaluate", "vqa"], "toklip-mllm"),
        (["evaluate", "generation"], "toklip-gen"),
    ],
)
def test_a_missing_command_says_what_to_install(words, package):
    result = run(*words)
    path = " ".join(["toklip", *words[: 2 if words[0] in ("train", "evaluate") else 1]])
    assert result.exit_code == 2
    assert result.stderr == f"Error: `{path}` comes with {package}, which is not installed: pip install {package}\n"


def test_a_command_of_a_package_that_fails_is_not_said_to_be_missing():
    plugins = Registry((Plugin("gen", "toklip_gen.plugin", "toklip-gen", "0.1", error="ImportError: no"),), {})
    assert (
        "toklip-gen, which is installed but does not offer it: see `toklip plugins`"
        in run("generate", plugins=plugins).stderr
    )


def test_the_package_is_a_command_as_well():
    done = subprocess.run([sys.executable, "-m", "toklip_core", "--version"], capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.startswith("toklip, version "), done.stderr


@pytest.mark.parametrize("words", [["fail"], ["train", "fail"], ["evaluate", "fail"]])
def test_ctrl_c_ends_every_command_with_130_and_one_line(words):
    def register(cli, train, evaluate):
        for group in (cli, train, evaluate):

            @group.command("fail")
            def fail():
                """Fail."""
                raise KeyboardInterrupt

    result = run(*words, plugins=registry(acme=register))
    assert result.exit_code == 130 and result.stderr == "Interrupted.\n" and result.stdout == ""


def test_ctrl_c_while_plugins_are_asked_is_130_too():
    def register(cli, train, evaluate):
        raise KeyboardInterrupt

    result = run("--help", plugins=registry(acme=register))
    assert result.exit_code == 130 and result.stderr == "Interrupted.\n"


def test_an_unknown_command_is_a_usage_error():
    result = run("encoed")
    assert result.exit_code == 2 and "No such command 'encoed'" in result.stderr


def test_commands_of_plugins_appear_in_their_groups():
    def register(cli, train, evaluate):
        for group in (cli, train, evaluate):
            group.add_command(click.Command(f"acme-{group.name}", callback=lambda: click.echo("ran"), help="Acme."))

    plugins = registry(acme=register)
    for words in (["acme-cli"], ["train", "acme-train"], ["evaluate", "acme-evaluate"]):
        assert run(*words, plugins=plugins).output == "ran\n"
        assert words[-1] in run(*words[:-1], "--help", plugins=plugins).output
    # Another registry knows nothing of them: no group remembers.
    assert run("acme-cli").exit_code == 2


def one_command(name):
    def register(cli, train, evaluate):
        cli.add_command(click.Command(name, callback=lambda: click.echo("ran"), help="Acme."))

    return register


def registers_then_raises(cli, train, evaluate):
    one_command("half")(cli, train, evaluate)
    raise RuntimeError("no GPU here")


def prints(cli, train, evaluate):
    print("loading")


def test_what_a_plugin_prints_stays_out_of_the_data():
    result = run("plugins", "--json", plugins=registry(acme=prints))
    assert json.loads(result.stdout)[0]["error"] == ""
    assert result.stderr == "loading\n"


def exits(cli, train, evaluate):
    sys.exit(4)


def removes_everything(cli, train, evaluate):
    for group in (cli, train, evaluate):
        group.commands.clear()


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (registers_then_raises, "RuntimeError: no GPU here"),
        (exits, "SystemExit: 4"),
        (one_command("tokenizers"), "ValueError: the command `toklip tokenizers` exists already"),
        (one_command("train"), "ValueError: the command `toklip train` exists already"),
        (one_command("fine"), "ValueError: the command `toklip fine` exists already"),
    ],
)
def test_commands_of_a_failing_plugin_are_left_out_and_the_others_stay(wrong, says):
    plugins = registry(fine=one_command("fine"), wrong=wrong, more=one_command("more"))
    assert run("fine", plugins=plugins).output == run("more", plugins=plugins).output == "ran\n"
    assert run("half", plugins=plugins).exit_code == 2
    assert run("tokenizers", "--json", plugins=plugins).output == "[]\n"
    lines = run("plugins", plugins=plugins).output.splitlines()
    assert lines == [
        "fine (fine_module, acme-fine 1.0): ok",
        f"wrong (wrong_module, acme-wrong 1.0): its commands are left out: {says}",
        "more (more_module, acme-more 1.0): ok",
    ]


def test_a_plugin_cannot_remove_commands():
    plugins = registry(wrong=removes_everything)
    assert run("train", "--help", plugins=plugins).exit_code == 0
    assert run("tokenizers", "--json", plugins=plugins).output == "[]\n"


def test_plugins_are_asked_once():
    asked = []
    plugins = registry(acme=lambda cli, train, evaluate: asked.append(cli.name))
    for _ in range(2):
        run("--help", plugins=plugins)
        run("train", "--help", plugins=plugins)
    assert asked == ["cli"]
    assert plugin_commands(plugins, cli) is plugin_commands(plugins, cli)


def test_tokenizers_and_plugins_are_listed_for_people_and_programs(site):
    install(site, "acme-vq", right("acme", "acme-2"), entry="acme")
    install(site, "zoo-vq", "raise RuntimeError('no')", entry="zoo")
    plugins = found(site)
    heading, *lines = run("tokenizers", plugins=plugins).output.splitlines()
    assert heading == "NAME    PX   Q x K  F  IDS  BITS  RFID  SIZE  LICENCE"
    assert lines == ["acme    256", "    For tests.", "acme-2  256", "    For tests."]
    rows = json.loads(run("tokenizers", "--json", plugins=plugins).output)
    unknown = {"source": "", "size": None, "licence": "", "rfid": "", "codebook_sizes": [], "fixed_size": False}
    unknown |= dict.fromkeys(("grid", "factor", "ids_per_picture", "bits_per_picture"))
    assert rows[0] == {"name": "acme", "summary": "For tests.", "image_size": 256, **unknown}
    acme, zoo = json.loads(run("plugins", "--json", plugins=plugins).output)
    assert acme == {"name": "acme", "module": "acme_vq", "distribution": "acme-vq", "version": "1.2", "error": ""}
    assert zoo["error"] == "left out: RuntimeError: no"


def test_tokenizers_are_listed_with_what_is_known_of_their_weights():
    known = {"source": "owner/name/vq.pt", "size": 288_000_000, "licence": "MIT"}
    spec = TokenizerSpec(name="acme", factory=lambda weights: None, summary="For tests.", **known)
    plugins = Registry((), {"acme": spec})
    lines = run("tokenizers", plugins=plugins).output.splitlines()
    assert lines[1].split() == ["acme", "256", "0.3", "GB", "MIT"] and lines[2] == "    For tests. owner/name/vq.pt"
    assert json.loads(run("tokenizers", "--json", plugins=plugins).output)[0].items() >= known.items()


@pytest.mark.parametrize(
    ("sizes", "grid", "line", "bits"),
    [
        ((2**28,), (4, 4), "acme  256 only  1 x 2^28  64  16   448   0.1   0.3 GB  MIT", 448),
        ((8,) * 4, (3, 5), "acme  256 only  4 x 8      60   180   0.1   0.3 GB  MIT", 180),
        ((8, 4), (3, 5), "acme  256 only  2 x 8, 4     30   75    0.1   0.3 GB  MIT", 75),
    ],
)
def test_tokenizers_are_listed_with_their_ids_and_the_bits_of_a_picture(sizes, grid, line, bits):
    known = {"codebook_sizes": sizes, "grid": grid, "fixed_size": True, "rfid": "0.1, ImageNet (here)"}
    known |= {"size": 288_000_000, "licence": "MIT"}
    spec = TokenizerSpec(name="acme", factory=lambda weights: None, summary="For tests.", **known)
    plugins = Registry((), {"acme": spec})
    assert run("tokenizers", plugins=plugins).output.splitlines()[1].split() == line.split()
    (row,) = json.loads(run("tokenizers", "--json", plugins=plugins).output)
    assert row.items() >= {**known, "codebook_sizes": [*sizes], "grid": [*grid]}.items()
    positions = grid[0] * grid[1]
    assert (row["ids_per_picture"], row["bits_per_picture"]) == (positions * len(sizes), bits)
    assert row["factor"] == (64 if grid == (4, 4) else None)


def test_without_plugins_the_lists_say_what_to_install():
    for words in (["tokenizers"], ["plugins"]):
        result = run(*words)
        assert result.stdout == "" and "pip install toklip-vq" in result.stderr
        assert json.loads(run(*words, "--json").stdout) == []


class Settings(BaseModel):
    steps: int


def pydantic_error():
    try:
        Settings(steps="many")
    except ValueError as error:
        return error


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("got 3, wanted 4;\n  use 4"), "got 3, wanted 4; use 4"),
        (LookupError("no tokenizer is named 'x'"), "no tokenizer is named 'x'"),
        (KeyError("no tokenizer is named 'x'"), "no tokenizer is named 'x'"),
        (FileNotFoundError("there is no 'x.pt'"), "there is no 'x.pt'"),
        (FileNotFoundError(errno.ENOENT, "No such file or directory", "x.pt"), "No such file or directory: 'x.pt'"),
        (FileExistsError(errno.EEXIST, "File exists", "out"), "out is a file, and a folder is wanted there"),
        (OSError(errno.ENOSPC, "No space left on device"), "[Errno 28] No space left on device"),
        (PermissionError(errno.EACCES, "Permission denied", "out"), "[Errno 13] Permission denied: 'out'"),
        (UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte"), "invalid start byte"),
        (pydantic_error(), "1 validation error for Settings steps"),
        (ValueError(), "ValueError"),
        (MemoryError(), "there is not enough memory"),
        (MemoryError("malloc of size 64 failed"), "there is not enough memory: malloc of size 64 failed"),
        (NO_MEMORY, "DefaultCPUAllocator: can't allocate memory: you tried to allocate 300000000 bytes"),
    ],
)
def test_an_error_of_the_user_is_one_line_and_status_1(error, line):
    result = run("fail", plugins=raising(error))
    assert result.exit_code == 1
    assert result.stdout == ""
    assert result.stderr.startswith("Error: ") and line in result.stderr
    assert result.stderr.count("\n") == 1 and '"' not in result.stderr


@pytest.mark.parametrize("bug", [TypeError("x"), AttributeError("x"), AssertionError("x"), RuntimeError("x")])
def test_a_bug_keeps_its_traceback(bug):
    with pytest.raises(type(bug)):
        CliRunner().invoke(cli, ["fail"], obj=raising(bug), catch_exceptions=False)


def test_usage_errors_keep_status_2():
    assert run("tokenizers", "--no-such-option").exit_code == 2


def toklip(*words, **options):
    command = Path(sys.executable).with_name("toklip")
    return subprocess.run([command, *words], capture_output=True, text=True, **options)


def test_a_reader_that_stops_reading_is_no_error(tmp_path):
    for number in range(3):
        install(tmp_path, f"acme-{number}", right(*(f"acme-{number}-{index}" for index in range(2000))))
    done = subprocess.run(
        ["bash", "-c", f"'{Path(sys.executable).with_name('toklip')}' tokenizers | head -2"],
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.stdout.splitlines()[1].startswith("acme-0-0") and done.stderr == ""


@pytest.mark.slow
def test_help_starts_quickly():
    """The promise is 0.3 s on an idle machine. Processor time is counted, so that a busy machine may wait."""
    seconds = []
    for _ in range(5):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert toklip("--help").returncode == 0
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert min(seconds) < 0.6, f"toklip --help takes {min(seconds):.2f} s"


@pytest.mark.parametrize(("step", "where"), [(0, "before the first step"), (3, "and saved at step 3")])
def test_a_training_that_a_signal_ends_says_what_is_saved(tmp_path, step, where):
    @train_command("nothing")
    def nothing():
        """Train nothing."""
        return TrainTask(settings=Config, recipes=tmp_path, train=lambda settings, out: FitReport(step, {}, 15))

    (tmp_path / "run.toml").touch()
    done = CliRunner().invoke(nothing, [str(tmp_path / "run.toml"), "--out", str(tmp_path / "run")])
    assert (done.exit_code, done.stderr) == (143, f"Stopped {where}; run the same command again to continue.\n")


def test_a_name_that_is_no_text_does_not_cost_the_result():
    group = ErrorsAsLines("cli")

    @group.command()
    def show():
        click.echo(os.fsdecode(b"caf\xe9.png"))

    done = CliRunner().invoke(group, ["show"])
    assert (done.exit_code, done.stdout) == (0, "caf\\udce9.png\n")
