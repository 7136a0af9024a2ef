"""The model in graphs: torch.compile without a break, and torch.export, give the logits that the model gives."""

import pytest
import torch
from transformers.utils import torch_compilable_check

from tests.support.small_mllms import ids, prompt, shared, small_mllm

CLOSE = dict(rtol=1e-4, atol=1e-5)


def batch_of_two(processor, pictures):
    return dict(prompt(processor, "<image> what is it ?", "<image> how many ?", image_ids=pictures), use_cache=False)


def refuse_releases_that_cannot_compile_their_own_check():
    """As of all models of transformers 5.4 on torch 2.6."""
    check = torch.compile(lambda x: torch_compilable_check(x.sum() == 0, "not 0"), fullgraph=True, backend="eager")
    try:
        check(torch.zeros(1))
    except torch._dynamo.exc.Unsupported:
        pytest.skip("this release of transformers cannot compile the check that its models have")


@pytest.mark.slow
@torch.no_grad()
@pytest.mark.parametrize("features", ["concat", "tokens", "codes"])
def test_the_model_compiles_into_one_graph(features):
    refuse_releases_that_cannot_compile_their_own_check()
    model, processor = small_mllm(features=features)
    batch = batch_of_two(processor, ids(2))
    expected = model(**batch).logits
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(**batch).logits, expected, **CLOSE)


@pytest.mark.slow
@torch.no_grad()
def test_an_exported_model_refuses_another_number_of_pictures_than_places():
    model, processor = shared()
    batch = batch_of_two(processor, ids(2))
    program = torch.export.export(model, (), batch, strict=False).module()
    batch["input_ids"][0, 0] = 9
    assert (batch["input_ids"] == model.config.image_token_id).sum() == 127
    with pytest.raises(RuntimeError, match=r"[Aa]ssert"):
        program(**batch)


@pytest.mark.slow
@torch.no_grad()
@pytest.mark.parametrize("features", ["concat", "codes"])
def test_an_exported_model_gives_the_logits_of_other_pictures_too(features):
    model, processor = shared(features=features)
    program = torch.export.export(model, (), batch_of_two(processor, ids(2)), strict=False).module()
    for seed in (0, 1):
        batch = batch_of_two(processor, ids(2, seed))
        torch.testing.assert_close(program(**batch).logits, model(**batch).logits, **CLOSE)


def test_image_features_are_exported():
    model, _ = shared()

    class Pictures(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model

        def forward(self, image_ids):
            return self.model.get_image_features(image_ids).pooler_output

    with torch.no_grad():
        program = torch.export.export(Pictures().eval(), (ids(2),)).module()
        torch.testing.assert_close(program(ids(2, 1)), model.get_image_features(ids(2, 1)).pooler_output, **CLOSE)
