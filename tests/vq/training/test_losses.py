"""Quantizers, entropy, discriminator: parity with formulas and with numbers of the public code."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from toklip_core.evaluation import codebook_use
from toklip_vq.training import (
    CodeRestart,
    LeCam,
    PatchDiscriminator,
    affinity,
    count_ids,
    entropy_loss,
    generator_loss,
    hinge_loss,
    quantize_by_index,
    quantize_straight_through,
)
from toklip_vq.vqgan import Codebook
from torch import Tensor

#: Inputs and outputs of LlamaGen's vq_model.py and SEED-Voken's quantize.py and vqperceptual.py.
PUBLISHED = {
    name: torch.from_numpy(value)
    for name, value in np.load(Path(__file__).parents[2] / "goldens/vq_losses.npz").items()
}


def codebook(metric: str, rows: Tensor = PUBLISHED["codebook"]) -> Codebook:
    made = Codebook(*rows.shape, metric)
    made.weight.data.copy_(rows)
    return made


def flat(map_BChw: Tensor) -> Tensor:
    return map_BChw.movedim(1, -1).flatten(0, 2)


@pytest.mark.parametrize(
    ("prefix", "metric", "quantize", "placement", "entropy_weight"),
    [
        ("lg", "cosine", quantize_straight_through, "paper", 0.1),
        ("ibq", "dot", quantize_by_index, "code", 0.05),
    ],
)
def test_quantizers_agree_with_the_public_code(prefix, metric, quantize, placement, entropy_weight):
    """Ids, codes, losses, and the gradient of all of it to latents and codebook."""
    latents = PUBLISHED["latents"].clone().requires_grad_()
    book = codebook(metric)
    result = quantize(flat(latents), book, beta=0.25, beta_placement=placement)
    entropy = entropy_loss(affinity(flat(latents), book), temperature=0.01)
    total = result.loss + entropy_weight * entropy + (result.codes * flat(PUBLISHED["upstream"])).sum()
    to_latents, to_codebook = torch.autograd.grad(total, [latents, book.weight])

    assert torch.equal(result.ids, PUBLISHED[f"{prefix}_ids"].flatten())
    torch.testing.assert_close(result.codes, flat(PUBLISHED[f"{prefix}_codes"]))
    torch.testing.assert_close(result.loss, PUBLISHED[f"{prefix}_loss"])
    torch.testing.assert_close(entropy, PUBLISHED[f"{prefix}_entropy"], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(to_latents, PUBLISHED[f"{prefix}_grad_latents"], rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(to_codebook, PUBLISHED[f"{prefix}_grad_codebook"], rtol=1e-3, atol=1e-3)


def test_adversarial_losses_agree_with_the_public_code():
    real, fake = PUBLISHED["real"], PUBLISHED["fake"]
    torch.testing.assert_close(hinge_loss(real, fake), PUBLISHED["hinge"])
    torch.testing.assert_close(generator_loss(fake, "non-saturating"), PUBLISHED["non_saturating"])
    torch.testing.assert_close(generator_loss(fake, "hinge"), -fake.mean())
    lecam = LeCam()
    lecam(real, fake)
    torch.testing.assert_close(lecam(2 * real, fake - 1), PUBLISHED["lecam"])


@pytest.mark.parametrize("quantize", [quantize_straight_through, quantize_by_index])
@pytest.mark.parametrize(("placement", "on_latents", "on_codes"), [("paper", 0.25, 1.0), ("code", 1.0, 0.25)])
def test_beta_stands_where_its_placement_says(quantize, placement, on_latents, on_codes):
    """A latent is pulled by 2/(NC) (z - e) times the weight of the commitment term, its code by the other."""
    book = codebook("euclidean")
    latents = flat(PUBLISHED["latents"]).requires_grad_()
    result = quantize(latents, book, beta=0.25, beta_placement=placement)
    loss = result.loss
    if quantize is quantize_by_index:
        loss = loss - F.mse_loss(result.codes, latents)  # the term that has no beta
    to_latents, to_codebook = torch.autograd.grad(loss, [latents, book.weight])
    pull = 2 / latents.numel() * (latents - book.weight[result.ids]).detach()
    torch.testing.assert_close(to_latents, on_latents * pull)
    torch.testing.assert_close(to_codebook, torch.zeros_like(book.weight).index_add(0, result.ids, -on_codes * pull))


def test_index_backpropagation_moves_every_code_and_the_straight_through_only_chosen_ones():
    latents = flat(PUBLISHED["latents"])[:4] / 3
    moved = {}
    for quantize in (quantize_by_index, quantize_straight_through):
        book = codebook("dot")
        result = quantize(latents, book)
        (result.codes.square().sum() + result.loss).backward()
        moved[quantize] = int((book.weight.grad.abs().sum(-1) > 0).sum())
    assert moved == {quantize_by_index: 32, quantize_straight_through: len(set(result.ids.tolist()))}


@pytest.mark.parametrize("metric", ["cosine", "dot", "euclidean"])
@pytest.mark.parametrize("quantize", [quantize_straight_through, quantize_by_index])
def test_codes_are_rows_of_the_codebook_and_the_highest_affinity_is_the_id(metric, quantize):
    book, latents = codebook(metric), flat(PUBLISHED["latents"])
    result = quantize(latents, book)
    torch.testing.assert_close(result.codes, book.rows()[result.ids])
    assert torch.equal(affinity(latents, book).argmax(-1), result.ids)


def test_half_precision_of_the_towers_changes_no_loss():
    book, latents = codebook("cosine"), flat(PUBLISHED["latents"]).bfloat16()
    expected = quantize_straight_through(latents.float(), book)
    assert torch.equal(quantize_straight_through(latents, book).loss, expected.loss)


@pytest.mark.parametrize(
    ("scores", "expected"),
    [
        (torch.eye(8) * 9, -np.log(8)),  # each token is sure, all codes are in use: the best there is
        (torch.eye(8)[:1].repeat(5, 1) * 9, 0.0),  # each is sure of the same code
        (torch.zeros(5, 8), 0.0),  # none is sure
    ],
)
def test_entropy_is_least_when_tokens_are_sure_and_codes_all_used(scores, expected):
    assert entropy_loss(scores, temperature=0.1).item() == pytest.approx(expected, abs=1e-3)


def test_perplexity_counts_codes_as_if_evenly_used():
    counts = count_ids(torch.tensor([[0, 0, 3], [3, 5, 5]]), 10)
    assert counts.tolist() == [2, 0, 0, 2, 0, 2, 0, 0, 0, 0]
    used, perplexity = codebook_use(counts, 10)
    assert used.item() == pytest.approx(0.3)
    assert perplexity.item() == pytest.approx(3.0)
    assert codebook_use(torch.tensor([9, 0]), 2).perplexity.item() == pytest.approx(1.0)


@pytest.mark.parametrize(("norm", "parameters"), [("batch", 2_765_633), ("group", 2_766_529)])
def test_the_discriminator_is_patchgan(norm, parameters):
    """70 x 70 patches, 2.77 M parameters; biases before group norm, none before batch norm, as published."""
    discriminator = PatchDiscriminator(norm=norm)
    assert sum(weight.numel() for weight in discriminator.parameters()) == parameters
    logits = discriminator(torch.zeros(2, 3, 64, 96))
    assert logits.shape == (2, 1, 6, 10)
    picture = torch.zeros(1, 3, 160, 160, requires_grad=True)
    with torch.no_grad():
        for layer in discriminator.stack:
            if isinstance(layer, torch.nn.BatchNorm2d | torch.nn.GroupNorm):
                layer.forward = lambda x: x  # a norm looks at the whole picture
    centre = discriminator(picture)[0, 0, 9, 9]
    (seen,) = torch.autograd.grad(centre, picture)
    rows = seen.abs().sum((0, 1, 3)).nonzero()
    assert rows.max() - rows.min() + 1 == 70


def test_codes_that_never_occur_become_latents_at_hand():
    book, latents = codebook("euclidean"), flat(PUBLISHED["latents"])
    before = book.weight.detach().clone()
    restart = CodeRestart(32, period=2)
    for step in (1, 2):
        restart(book, latents, step)
        if step == 1:
            assert torch.equal(book.weight, before), "not yet time"
            restart.add(count_ids(torch.tensor([3, 4, 4]), 32))
    kept = [int(i) for i in (book.weight == before).all(-1).nonzero()]
    assert kept == [3, 4]
    others = [i for i in range(32) if i not in kept]
    distances = torch.cdist(book.weight[others].detach(), latents)
    assert (distances.min(-1).values < 1e-3).all()
    assert len(set(distances.argmin(-1).tolist())) == 30, "each another latent"


def test_a_second_micro_batch_of_a_step_restarts_nothing():
    book, latents = codebook("euclidean"), flat(PUBLISHED["latents"])
    restart = CodeRestart(32, period=2)
    restart(book, latents, 2)
    restart.add(count_ids(torch.tensor([0]), 32))
    after = book.weight.detach().clone()
    restart(book, -latents, 2)
    assert torch.equal(book.weight, after)
