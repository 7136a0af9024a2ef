"""The plugin of lmms-eval, with three stand-ins for what it imports. With the real one: test_lmms_eval.py."""

import sys
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import entry_points
from importlib.util import find_spec
from types import ModuleType, SimpleNamespace

import pytest

from tests.core.conftest import picture
from tests.support.small_mllms import MARKED, small_mllm

pytestmark = pytest.mark.skipif(find_spec("lmms_eval") is not None, reason="the real one is there: test_lmms_eval.py")


@dataclass
class Manifest:
    model_id: str
    chat_class_path: str


class Model:
    rank = 0


@pytest.fixture
def lmms_eval(monkeypatch):
    """Modules by the names that lmms-eval has."""
    names = {"api.instance": {"Instance": object}, "api.model": {"lmms": Model}}
    names["models.registry_v2"] = {"ModelManifest": Manifest}
    for name in ("", "api", "models", *names):
        module = ModuleType(f"lmms_eval.{name}".rstrip("."))
        vars(module).update(names.get(name, {}))
        monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.delitem(sys.modules, "toklip_mllm.evaluation.lmms_eval", raising=False)
    yield
    sys.modules.pop("toklip_mllm.evaluation.lmms_eval", None)


def plugin():
    (found,) = entry_points(group="lmms_eval.models", name="toklip")
    return found.load()()


def test_the_entry_point_gives_a_manifest_whose_class_is_there(lmms_eval):
    manifest = plugin()
    module, _, name = manifest.chat_class_path.rpartition(".")
    assert manifest.model_id == "toklip" and issubclass(getattr(import_module(module), name), Model)


def test_a_device_that_is_not_there_is_one_line(lmms_eval):
    with pytest.raises(ValueError, match="got the device 'cuda:99'"):
        import_module("toklip_mllm.evaluation.lmms_eval").TokLIPLM("none", device="cuda:99")


def test_an_answer_is_greedy_and_ends_where_the_context_does(lmms_eval, tmp_path, toy):
    model, processor = small_mllm(template=MARKED)
    model.generation_config.update(suppress_tokens=[*range(6), *range(28, 64)], repetition_penalty=9.0)
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    evaluated = import_module("toklip_mllm.evaluation.lmms_eval").TokLIPLM(str(tmp_path), device="cpu")
    parts = [{"type": "image", "url": picture(0)}] * 7 + [{"type": "text", "text": "red " * 50}]
    evaluated.task_dict = {"task": {"test": {0: [{"role": "user", "content": parts}]}}}
    asked = SimpleNamespace(args=("", lambda row: row, {"max_new_tokens": 100}, 0, "task", "test"))
    (said,) = evaluated.generate_until([asked])
    tokens = processor.tokenizer(said)["input_ids"]
    assert 0 < len(tokens) < 16 and len(set(tokens)) < len(tokens), "nine times a penalty would repeat no word"
