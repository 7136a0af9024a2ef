"""Importing the package registers its classes and imports nothing heavy."""

import subprocess
import sys

import pytest
from toklip_mllm import registration
from transformers import AutoConfig, AutoModel, AutoProcessor

from tests.support.small_mllms import small_mllm

pytestmark = pytest.mark.slow


def python(script):
    return subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout


@pytest.mark.slow
def test_classes_are_registered_when_transformers_is_imported_later(tmp_path):
    model, processor = small_mllm()
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    script = f"""
import toklip_mllm
from transformers import AutoConfig, AutoModel, AutoProcessor
for auto in (AutoConfig, AutoModel, AutoProcessor):
    print(type(auto.from_pretrained({str(tmp_path)!r})).__name__)
"""
    assert python(script).split() == ["TokLIPLMConfig", "TokLIPForConditionalGeneration", "TokLIPProcessor"]


def test_classes_are_registered_at_once_if_transformers_is_imported_already(monkeypatch):
    imported, before = [], list(sys.meta_path)
    monkeypatch.setattr(registration, "import_module", imported.append)
    assert AutoConfig and AutoModel and AutoProcessor  # they are imported
    registration.register()
    assert imported == ["toklip_mllm.model.config", "toklip_mllm.model.model", "toklip_mllm.model.processing"]
    assert sys.meta_path == before


def test_importing_the_package_imports_nothing_heavy():
    script = "import sys, toklip_mllm.plugin; print({'torch', 'transformers', 'numpy'} & {*sys.modules})"
    assert python(script).strip() == "set()"


def test_public_names_are_resolved_on_first_use():
    import toklip_mllm

    assert [name for name in toklip_mllm.__all__ if getattr(toklip_mllm, name) is None] == []
    with pytest.raises(AttributeError, match="No toklip_mllm attribute nothing"):
        toklip_mllm.nothing  # noqa: B018
