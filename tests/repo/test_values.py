"""What is filled from a file is built without initial values, whichever module it is."""

from typing import get_args

import pytest
import torch
from toklip_core import load_tokenizer
from toklip_core.embeddings import EmbeddingConfig
from toklip_core.model import TokLIP
from toklip_core.plugins import registry
from toklip_core.weights import without_values

from tests.support.values import refusing_values

#: An embedding of each kind.
EMBEDDINGS = [
    {"kind": "table", "tables": [[5, 3], [4, 3]]},
    {"kind": "bits", "bits": [6]},
    {"kind": "scalar", "values_per_channel": [[3, 5]]},
    {"kind": "pyramid", "table": [7, 3], "scales": [1, 2]},
]


def test_a_method_that_would_compute_a_value_is_named():
    with without_values(), pytest.raises(AssertionError, match="exponential_ computes a value"):
        torch.empty(3).exponential_()


def test_every_kind_of_embedding_is_built_without_values_and_filled():
    kinds = {get_args(one.model_fields["kind"].annotation)[0] for one in get_args(_root())}
    assert {one["kind"] for one in EMBEDDINGS} == kinds
    for one in EMBEDDINGS:
        config = EmbeddingConfig.model_validate(one)
        with without_values():
            empty = config.build()
        empty.load_state_dict(config.build().state_dict(), assign=True)
        assert not any(tensor.is_meta for tensor in [*empty.parameters(), *empty.buffers()]), one


def _root():
    return EmbeddingConfig.model_fields["root"].annotation


@pytest.mark.slow
def test_every_registered_module_in_a_package_is_built_without_initial_values():
    """The tokenizers with published files are built in tests of their own, under the same guard (tests/conftest.py)."""
    loaders = {
        spec.name: lambda name=spec.name: load_tokenizer(name)
        for spec in registry().tokenizers.values()
        if spec.codebook_sizes and not spec.source
    }
    for spec in registry().models.values():
        if not spec.source and spec.load is not None:
            loaders[spec.name] = lambda load=spec.load: load(device="cpu", dtype=None)
        elif not spec.source and spec.chat is not None:
            loaders[spec.name] = lambda chat=spec.chat, name=spec.name: chat(name, device="cpu")
    loaders["toklip-tiny"] = lambda: TokLIP.from_pretrained("toklip-tiny")
    assert {"vqgan-tiny", "toklip-tiny", "toklip-gen-tiny", "toklip-mllm-tiny", "toklip-uni-tiny"} <= loaders.keys()
    with refusing_values() as left_out:
        for load in loaders.values():
            load()
    assert {"normal_", "uniform_"} & {*left_out}
