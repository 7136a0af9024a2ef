"""Discovery finds installed plugins; an error of one plugin is reported and affects no other."""

import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
import toklip_core
from toklip_core import plugins
from toklip_core.plugins import TokenizerSpec, discover, tokenizer_spec
from toklip_core.tokenizer import load_tokenizer

from tests.support.installed import found, install, right


def test_public_names_are_resolved_on_first_use():
    assert dir(toklip_core) == toklip_core.__all__
    for name in toklip_core.__all__:
        assert getattr(toklip_core, name) is not None
    with pytest.raises(AttributeError, match="No toklip_core attribute load_tokeniser"):
        _ = toklip_core.load_tokeniser


def errors(registry):
    return {plugin.name: plugin.error for plugin in registry.plugins if plugin.error}


def test_an_installed_plugin_is_found_with_its_origin(site):
    install(site, "acme-vq", right("acme"), entry="acme", version="3.4")
    registry = found(site)
    assert list(registry.tokenizers) == ["acme"]
    assert str(registry.plugins[0]) == "acme (acme_vq, acme-vq 3.4)"
    assert errors(registry) == {}


def test_no_plugin_is_no_error():
    assert discover([]).tokenizers == {}


def described(field):
    """A plugin whose tokenizer is described with one field that is wrong."""
    return (
        "from toklip_core import TokenizerSpec, hookimpl\n@hookimpl\ndef toklip_register_tokenizers():\n"
        f"  return [TokenizerSpec(**{{'name': 'mine', 'summary': '', 'factory': print}} | dict({field}))]"
    )


#: What a plugin does wrong -> its source, and what is said of it.
WRONG = {
    "raises on import": ("raise RuntimeError('no\\n  GPU here')", "RuntimeError: no GPU here"),
    "exits on import": ("import sys; sys.exit('bye')", "SystemExit: bye"),
    "panics on import": ("class Panic(BaseException): pass\nraise Panic('rust')", "acme_wrong.Panic: rust"),
    "is not Python": ("def broken(:", "acme_wrong.py.*SyntaxError: invalid syntax"),
    "imports what is not there": ("import toklip_nowhere", "ModuleNotFoundError: No module named 'toklip_nowhere'"),
    "has no hook": ("def toklip_register_tokenizers(): return []", "acme_wrong has no hook; put @hookimpl"),
    "misspells a hook": (
        "from toklip_core import hookimpl\n@hookimpl\ndef toklip_register_tokenisers(): return []",
        "unknown hook 'toklip_register_tokenisers'",
    ),
    "wants other arguments": (
        "from toklip_core import hookimpl\n@hookimpl\ndef toklip_register_commands(cli, debug): pass",
        "Argument.s. {'debug'} are declared in the hookimpl but can not be found in the hookspec",
    ),
    "has a hook that raises": (
        "from toklip_core import hookimpl\n@hookimpl\ndef toklip_register_tokenizers(): raise KeyError('weights')",
        "KeyError: 'weights'",
    ),
    "has a hook that raises midway": (
        "from toklip_core import hookimpl\n@hookimpl\ndef toklip_register_tokenizers():\n  yield from []\n  exit(3)",
        "SystemExit: 3",
    ),
    "returns nothing": (
        "from toklip_core import hookimpl\n@hookimpl\ndef toklip_register_tokenizers(): pass",
        "gives a NoneType; return a list of TokenizerSpec",
    ),
    "returns a number": (
        "from toklip_core import hookimpl\n@hookimpl\ndef toklip_register_tokenizers(): return 7",
        "gives a int; return a list of TokenizerSpec",
    ),
    "returns names": (
        "from toklip_core import hookimpl\n@hookimpl\ndef toklip_register_tokenizers(): return ['acme']",
        "lists a str; list TokenizerSpec only",
    ),
    "offers one name twice": (right("two", "two"), "offers two tokenizers named 'two'"),
    "names a tokenizer as nobody can type it": (right("My Tokenizer"), "'My Tokenizer'; use words of a-z and 0-9"),
    "says a number where a text belongs": (described("rfid=2.19"), "got rfid=2.19 of the tokenizer 'mine'; wanted str"),
    "says nothing where a text belongs": (described("licence=None"), "got licence=None of the tokenizer 'mine'"),
    "says a text where a number belongs": (described("size='288 MB'"), "got size='288 MB' of the tokenizer 'mine'"),
    "names an empty grid": (described("grid=(0, 0)"), r"got grid=\(0, 0\) of the tokenizer 'mine'"),
    "names half a grid": (described("grid=(8,)"), r"got grid=\(8,\) of the tokenizer 'mine'"),
    "names an empty codebook": (described("codebook_sizes=(8, 0)"), r"got codebook_sizes=\(8, 0\) of the tokenizer"),
    "gives a name that is not text": (described("name=7"), "got the tokenizer name 7; use words"),
    "takes a taken name": (right("new", "fine"), "two plugins claim the tokenizer name 'fine'"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_a_plugin_is_left_out_and_named_if_it(wrong, site):
    source, says = WRONG[wrong]
    install(site, "acme-wrong", source, entry="wrong")
    install(site, "aaa-right", right("fine"), entry="right")
    registry = found(site)
    assert list(registry.tokenizers) == ["fine"]
    assert registry.tokenizers["fine"].factory(Path("w")).built_of == ("fine", Path("w"))
    (said,) = errors(registry).items()
    assert said[0] == "wrong" and "\n" not in said[1]
    with pytest.raises(ValueError, match=says):
        raise ValueError(said[1])


def test_a_key_that_interrupts_is_not_a_broken_plugin(site):
    install(site, "acme-slow", "raise KeyboardInterrupt")
    with pytest.raises(KeyboardInterrupt):
        found(site)


def test_what_a_plugin_prints_stays_out_of_the_data(site, capsys):
    install(site, "acme-loud", "print('loading')\n" + right("acme"))
    assert list(found(site).tokenizers) == ["acme"]
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "loading\n")


def test_a_clash_names_both_plugins(site):
    install(site, "acme-vq", right("same"), entry="acme", version="1.0")
    install(site, "zoo-vq", right("same"), entry="zoo", version="2.0")
    assert errors(found(site)) == {
        "zoo": "ValueError: two plugins claim the tokenizer name 'same': "
        "acme (acme_vq, acme-vq 1.0) has it, so zoo (zoo_vq, zoo-vq 2.0) is out"
    }


def test_two_plugins_may_share_the_name_of_an_entry_point(site):
    install(site, "acme-vq", right("one"), entry="vq")
    install(site, "zoo-vq", right("two"), entry="vq")
    registry = found(site)
    assert list(registry.tokenizers) == ["one", "two"] and errors(registry) == {}


def test_nobody_takes_a_name_from_this_toolkit(site):
    install(site, "toklip-vq", right("ours"), entry="vq", module="not_the_real_one")
    install(site, "aaa", right("ours"))
    install(site, "toklip-aaa", right("ours"))
    registry = found(site)
    assert set(errors(registry)) == {"aaa", "toklip_aaa"}
    assert [plugin.name for plugin in registry.plugins] == ["vq", "aaa", "toklip_aaa"]


def test_the_order_of_installation_does_not_matter(site):
    for name in ("c", "a", "b"):
        install(site, name, right("same"))
    assert [plugin.name for plugin in found(site).plugins if not plugin.error] == ["a"]


def test_an_installation_without_metadata_is_found_all_the_same(site):
    install(site, "acme-vq", right("acme"), entry="acme")
    (site / "acme_vq-1.2.dist-info" / "METADATA").unlink()
    registry = found(site)
    assert list(registry.tokenizers) == ["acme"]


def test_an_entry_point_without_a_distribution_is_found(site):
    install(site, "acme-vq", right("acme"))
    registry = discover([EntryPoint("acme", "acme_vq", "toklip")])
    assert str(registry.plugins[0]) == "acme (acme_vq, no distribution)"


@pytest.mark.parametrize("name", ["", "Toy", "toy_2", "-toy", "toy-", "toy--2", "my toy", "toy/2", "toy\n", "tóy"])
def test_a_name_is_words_joined_by_hyphens(name):
    with pytest.raises(ValueError, match="use words of a-z and 0-9, joined by hyphens"):
        TokenizerSpec(name=name, factory=lambda weights: None, summary="")


def test_a_spec_does_not_change():
    spec = TokenizerSpec(name="toy-2", factory=lambda weights: None, summary="")
    with pytest.raises(AttributeError):
        spec.name = "other"


@pytest.fixture
def registered(site, monkeypatch):
    """What is installed in the site is what `load_tokenizer` knows."""

    def use():
        registry = found(site)
        monkeypatch.setattr(plugins, "registry", lambda: registry)

    return use


def test_a_tokenizer_is_built_by_its_factory(site, registered):
    install(site, "acme-vq", right("acme"))
    registered()
    assert load_tokenizer("acme").module.built_of == ("acme", None)
    assert load_tokenizer("acme", "weights.pt").module.built_of == ("acme", Path("weights.pt"))
    assert load_tokenizer("acme", {}).module.built_of == ("acme", {})


def test_a_misspelt_name_is_met_with_the_nearest(site, registered):
    install(site, "acme-vq", right("acme", "other"))
    registered()
    with pytest.raises(LookupError, match=r"named 'acne'\. Did you mean 'acme'\? `toklip tokenizers` lists what is"):
        tokenizer_spec("acne")


def test_an_unknown_name_says_what_was_left_out(site, registered):
    install(site, "acme-vq", "raise RuntimeError", entry="acme")
    registered()
    with pytest.raises(
        LookupError, match="None is installed: pip install toklip-vq Left out, see `toklip plugins`: acme"
    ):
        tokenizer_spec("toy")


def toklip(site, *words):
    command = Path(sys.executable).with_name("toklip")
    path = os.pathsep.join(filter(None, [str(site), os.environ.get("PYTHONPATH", "")]))
    return subprocess.run([command, *words], env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True)


def test_two_broken_plugins_leave_the_installed_command_usable(tmp_path):
    install(tmp_path, "acme-right", right("acme"), entry="right")
    install(tmp_path, "acme-raises", "raise SystemExit('no GPU here')", entry="raises", version="0.1")
    install(tmp_path, "zoo-claims", right("acme"), entry="claims", version="0.2")
    listed = toklip(tmp_path, "plugins")
    assert listed.returncode == 0, listed.stderr
    assert "right (acme_right, acme-right 1.2): ok" in listed.stdout
    assert "raises (acme_raises, acme-raises 0.1): left out: SystemExit: no GPU here" in listed.stdout
    assert (
        "claims (zoo_claims, zoo-claims 0.2): left out: ValueError: two plugins claim the tokenizer name 'acme': "
        "right (acme_right, acme-right 1.2) has it, so claims (zoo_claims, zoo-claims 0.2) is out"
    ) in listed.stdout
    names = [row["name"] for row in json.loads(toklip(tmp_path, "tokenizers", "--json").stdout)]
    assert names.count("acme") == 1


@pytest.mark.parametrize("known", [{}, {"grid": (4, 6)}, {"codebook_sizes": (1024,)}])
def test_ids_and_bits_of_a_picture_are_unknown_unless_grid_and_codebooks_are_known(known):
    spec = TokenizerSpec(name="acme", factory=lambda weights: None, summary="", **known)
    assert spec.ids_per_picture is None and spec.bits_per_picture is None
    whole = replace(spec, grid=(4, 6), codebook_sizes=(1024, 2))
    assert (whole.ids_per_picture, whole.bits_per_picture) == (48, 264)


@pytest.mark.parametrize("text", ["[" * 100_000, "[]", "{"])
def test_a_folder_whose_config_cannot_be_read_is_of_no_kind(tmp_path, text):
    (tmp_path / "config.json").write_text(text)
    assert plugins.picture_loader(tmp_path) is None


#: A plugin that lists one model.
MODELS = """
from toklip_core.plugins import NamedModel, hookimpl
@hookimpl
def toklip_register_models():
    return [NamedModel(name="{name}", kind="generator", summary="Draws.", size=5, licence="MIT")]
"""


def test_models_of_plugins_are_found_and_no_two_have_one_name(site):
    install(site, "acme", MODELS.format(name="painter"), entry="acme")
    install(site, "bravo", MODELS.format(name="painter"), entry="bravo")
    registry = found(site)
    assert registry.models["painter"].kind == "generator"
    assert re.search("two plugins claim the model name 'painter': acme .* has it, so bravo", errors(registry)["bravo"])


def test_a_plugin_that_lists_something_else_as_a_model_is_left_out(site):
    wrong = "from toklip_core import hookimpl\n@hookimpl\ndef toklip_register_models(): return ['painter']"
    install(site, "acme", wrong, entry="acme")
    assert "toklip_register_models lists a str; list NamedModel only" in errors(found(site))["acme"]
