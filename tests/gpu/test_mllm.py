"""A language model on a GPU: its answers are those of a processor, and so are the pictures that it draws."""

import pytest
import torch
from toklip_core.config import Compute
from toklip_core.scenes import scene
from toklip_mllm import Chat, load_language_model
from toklip_mllm.drawing import PictureDrawer
from toklip_mllm.evaluation import evaluate_vqa

from tests.support.small_unified import small_unified

# What the libraries of a GPU warn of cannot be known where there is none: it is shown.
pytestmark = [pytest.mark.gpu, pytest.mark.filterwarnings("default")]

TEXTS, SEEDS = ["red circle", "one blue square", "two"], [4, 5, 6]


def test_a_conversation_is_that_of_a_cpu(device):
    """The second answer goes on from the cache of the first, and the third has another picture."""
    turns = [
        ("how many objects are there?", [scene(0).rgb]),
        ("what is the colour of it?", []),
        ("how many objects are there?", [scene(1).rgb]),
    ]
    said = []
    for where in ("cpu", device):
        chat = Chat(*load_language_model("toklip-mllm-tiny", device=where))
        said.append([chat.ask(text, pictures).text for text, pictures in turns])
    assert said[0] == said[1] and all(said[0])


def test_batches_of_questions_are_answered_as_on_a_cpu_and_in_bfloat16(device):
    def accuracy(where, dtype="float32"):
        compute = Compute(device=where, dtype=dtype, batch_size=8)
        report = evaluate_vqa("toklip-mllm-tiny", "scenes:validation?count=6", compute=compute)
        assert report.exact_match is not None
        return report.exact_match.right

    on_cpu = accuracy("cpu")
    assert accuracy(device) == pytest.approx(on_cpu, abs=0.05)
    assert accuracy(device, "bfloat16") == pytest.approx(on_cpu, abs=0.2)


@pytest.mark.parametrize("kind", ["mean-colour", "residual-greys"])
def test_in_float64_it_draws_the_pictures_of_a_cpu_alone_and_in_a_batch(kind, device):
    model, processor = small_unified(kind)
    drawer = PictureDrawer(model.double(), processor)
    expected = drawer.draw(TEXTS, seeds=SEEDS).ids
    model.to(device)
    for window in (1, 4, 16, "auto"):
        assert torch.equal(drawer.draw(TEXTS, seeds=SEEDS, window=window).ids.cpu(), expected)
    alone = drawer.draw(TEXTS[1:2], seeds=SEEDS[1:2])
    assert torch.equal(alone.ids.cpu(), expected[1:2])
    begun = drawer.draw(TEXTS[1:2], seeds=SEEDS[1:2], prefix=expected[1:2].flatten(1, 2)[:, :20])
    assert torch.equal(begun.ids.cpu(), expected[1:2])
    assert torch.isfinite(drawer.pixels(alone.ids)).all()
