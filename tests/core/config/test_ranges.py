"""Numbers from users: NaN, infinity and values beyond any computer are refused before any work."""

import math

import click
import pytest
from click.testing import CliRunner
from toklip_core.cli import cli
from toklip_core.config import LARGEST_COUNT, LARGEST_SEED, RunConfig, refuse_counts, refuse_drawing, validated

from tests.core.cli.test_main import EVERY

NUMBERS = (click.types.IntParamType, click.types.FloatParamType)
#: A number of every command: command line, option.
NUMERIC = [
    (path.split()[1:], option.opts[0])
    for path, command in EVERY.items()
    for option in command.params
    if isinstance(option, click.Option) and isinstance(option.type, NUMBERS)
    if option.opts[0] != "--guidance-power"  # goes with another number: see tests/gen/generator/test_pipeline.py
]
#: What commands want beside an option, so that it is what they refuse.
WANTED = {
    "ask": ["x.png", "what?"],
    "generate": ["a red circle"],
    "evaluate generation": ["--generator", "x", "--per-class", "1"],
    "classify": ["x.png", "--labels", "a,b"],
    "search": ["x.png", "red"],
    "encode": ["x.png", "--out", "store"],
    "decode": ["store", "--out", "out"],
    "scenes": ["out", "--count", "1"],
}


@pytest.mark.slow
@pytest.mark.parametrize("value", ["nan", "inf", "-inf", "1e999", str(-(10**40)), str(10**40)])
@pytest.mark.parametrize(("words", "option"), NUMERIC, ids=[" ".join([*words, option]) for words, option in NUMERIC])
def test_what_is_no_number_for_an_option_is_refused_by_its_name(words, option, value, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(cli, [*words, *WANTED.get(" ".join(words), []), f"{option}={value}"])
    assert isinstance(result.exception, SystemExit) and result.exit_code in (1, 2), result.output
    line = result.stderr.strip().splitlines()[-1]
    assert option in line or option.lstrip("-").replace("-", " ") in line.replace("_", " "), line


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ({"temperature": math.nan}, "got temperature = nan; wanted 0 "),
        ({"temperature": math.inf}, "got temperature = inf; wanted 0 "),
        ({"temperature": -1e-9}, "got temperature = -1e-09; wanted 0 "),
        ({"temperature": 1e300}, "got temperature = 1e.300; wanted 0 .* up to 1e.30"),
        ({"top_p": math.nan}, "got top_p = nan; wanted more than 0, up to 1"),
        ({"top_p": 0}, "got top_p = 0; wanted more than 0, up to 1"),
        ({"top_k": -1}, "got top_k = -1; wanted 0"),
        ({"top_k": 9, "most": 8}, r"got top_k = 9; wanted 0 \(all\) to 8"),
        ({"seeds": [0, 2**63]}, f"got seed = {2**63}; wanted 0 to {LARGEST_SEED}"),
        ({"seeds": [-1]}, "got seed = -1"),
    ],
)
def test_what_nothing_can_be_drawn_by_is_refused(numbers, message):
    with pytest.raises(ValueError, match=message):
        refuse_drawing(**numbers)


def test_what_something_can_be_drawn_by_is_taken():
    refuse_drawing(temperature=1e-45, top_p=1e-9, top_k=8, most=8, seeds=[0, LARGEST_SEED])
    refuse_counts(batch_size=1, number=LARGEST_COUNT)


RUN = {"steps": 1, "batch_size": 1, "learning_rate": 1e-3}


@pytest.mark.parametrize("change", [{"learning_rate": math.inf}, {"weight_decay": math.nan}, {"seed": 2**63}])
def test_settings_have_finite_numbers_and_seeds_of_64_bits(change):
    [name] = change
    with pytest.raises(ValueError, match=rf"x.toml: run.{name}|x.toml: {name}"):
        validated(RunConfig, RUN | change, "x.toml")
