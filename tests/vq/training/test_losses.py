"""Quantizers, entropy, discriminator: parity with formulas and with numbers of the public code."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from toklip_core.embeddings import BitEmbedding, ScalarEmbedding
from toklip_core.evaluation import codebook_use
from toklip_vq.quantizers import BitQuantizer, ScalarQuantizer
from toklip_vq.training import (
    CodeRestart,
    LeCam,
    PatchDiscriminator,
    affinity,
    bit_entropy_loss,
    count_ids,
    entropy_loss,
    generator_loss,
    hinge_loss,
    quantize_bits,
    quantize_by_index,
    quantize_residual,
    quantize_scalars,
    quantize_straight_through,
)
from toklip_vq.vqgan import VQGAN, Codebook, ResidualCodebook, VQGANConfig
from torch import Tensor

from tests.support.processes import run_together

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

    assert torch.equal(result.ids[:, 0], PUBLISHED[f"{prefix}_ids"].flatten())
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
    pull = 2 / latents.numel() * (latents - book.weight[result.ids[:, 0]]).detach()
    torch.testing.assert_close(to_latents, on_latents * pull)
    pulled = torch.zeros_like(book.weight).index_add(0, result.ids[:, 0], -on_codes * pull)
    torch.testing.assert_close(to_codebook, pulled)


def test_index_backpropagation_moves_every_code_and_the_straight_through_only_chosen_ones():
    latents = flat(PUBLISHED["latents"])[:4] / 3
    moved = {}
    for quantize in (quantize_by_index, quantize_straight_through):
        book = codebook("dot")
        result = quantize(latents, book)
        (result.codes.square().sum() + result.loss).backward()
        moved[quantize] = int((book.weight.grad.abs().sum(-1) > 0).sum())
    assert moved == {quantize_by_index: 32, quantize_straight_through: len(result.ids.unique())}


@pytest.mark.parametrize("metric", ["cosine", "dot", "euclidean"])
@pytest.mark.parametrize("quantize", [quantize_straight_through, quantize_by_index])
def test_codes_are_rows_of_the_codebook_and_the_highest_affinity_is_the_id(metric, quantize):
    book, latents = codebook(metric), flat(PUBLISHED["latents"])
    result = quantize(latents, book)
    torch.testing.assert_close(result.codes, book.rows()[result.ids[:, 0]])
    assert torch.equal(affinity(latents, book).argmax(-1), result.ids[:, 0])


def residual(levels=4) -> ResidualCodebook:
    """The published rows, half as long from level to level."""
    made = ResidualCodebook(levels, *PUBLISHED["codebook"].shape)
    for number, level in enumerate(made):
        level.weight.data.copy_(PUBLISHED["codebook"] / 2**number)
    return made


def test_residual_levels_take_what_is_left_and_are_all_trained():
    latents, book = flat(PUBLISHED["latents"]).requires_grad_(), residual()
    result = quantize_residual(latents, book)
    rest, total, losses = latents.detach(), torch.zeros_like(latents), []
    for number, level in enumerate(book):
        ids = torch.cdist(rest.double(), level.weight.double()).argmin(-1)
        assert torch.equal(result.ids[:, number], ids)
        losses.append(1.25 * F.mse_loss(rest, level.weight[ids]))
        total, rest = total + level.weight[ids], rest - level.weight[ids]
    torch.testing.assert_close(result.codes, total)
    torch.testing.assert_close(result.loss, torch.stack(losses).mean())
    gradients = torch.autograd.grad(result.loss, [level.weight for level in book], retain_graph=True)
    assert all(gradient.abs().sum() > 0 for gradient in gradients)
    (to_latents,) = torch.autograd.grad(result.codes.sum(), latents)
    assert torch.equal(to_latents, torch.ones_like(latents)), "straight through"


def test_bits_are_signs_and_their_gradient_goes_straight_through():
    latents = flat(PUBLISHED["latents"]).requires_grad_()
    result = quantize_bits(latents, BitQuantizer(BitEmbedding(latents.shape[1])), beta=0.25)
    torch.testing.assert_close(result.codes, torch.where(latents > 0, 1.0, -1.0))
    torch.testing.assert_close(result.loss, 0.25 * (latents - result.codes).detach().square().mean())
    assert torch.equal(torch.autograd.grad(result.codes.sum(), latents)[0], torch.ones_like(latents))


def test_scalars_are_rounded_values_and_the_gradient_is_that_of_the_tanh():
    """Values for odd and even counts; rounding moves no code by more than half a step."""
    latents = flat(PUBLISHED["latents"])[:, :3].clone().requires_grad_()
    quantizer = ScalarQuantizer(ScalarEmbedding((8, 5, 2)))
    result = quantize_scalars(latents, quantizer)
    torch.testing.assert_close(result.codes, quantizer.embedding(result.ids))
    assert ((result.codes - latents.tanh()).abs() <= 1 / torch.tensor([7, 4, 1]) + 1e-6).all() and result.loss == 0
    (to_latents,) = torch.autograd.grad(result.codes.sum(), latents)
    torch.testing.assert_close(to_latents, 1 - latents.detach().tanh() ** 2)


def test_the_entropy_of_bits_is_that_of_a_table_of_all_codes():
    """The entropy is exact for the code of one latent, and for independent bits, whose joint mean is the product."""
    corners = BitEmbedding(3)(torch.arange(8)[:, None])
    book = Codebook(8, 3, "euclidean")
    book.weight.data.copy_(corners)
    scale = torch.tensor([0.3, 0.2, 0.7])
    latents = corners * scale / 50  # every combination of bits equally often
    expected = entropy_loss(affinity(latents, book), temperature=0.1)
    torch.testing.assert_close(bit_entropy_loss(latents, temperature=0.1), expected, rtol=1e-3, atol=1e-3)


def test_the_entropy_of_28_bits_needs_no_table():
    latents = torch.randn(256, 28, generator=torch.Generator().manual_seed(0)).requires_grad_()
    bit_entropy_loss(latents, temperature=1.0).backward()
    assert latents.grad.isfinite().all() and latents.grad.abs().sum() > 0


QUANTIZERS = {
    "vq": {"codebook_size": 32, "codebook_dim": 8},
    "ibq": {"codebook_size": 32, "codebook_dim": 8},
    "lfq": {"codebook_dim": 28},
    "fsq": {"values_per_channel": (8, 5, 2)},
    "residual": {"codebook_size": 32, "codebook_dim": 8, "ids_per_position": 4},
}


def small_vqgan(kind: str) -> VQGAN:
    torch.manual_seed(0)
    config = VQGANConfig(quantizer=kind, channels=8, channel_multipliers=(1,), norm_groups=4, **QUANTIZERS[kind])
    return VQGAN(config)


@pytest.mark.parametrize("kind", QUANTIZERS)
def test_the_frozen_quantizer_finds_the_ids_of_training(kind):
    from toklip_vq.training.quantization import quantize
    from toklip_vq.training.settings import LossConfig

    vqgan = small_vqgan(kind)
    latents = torch.randn(100, vqgan.config.code_dim)
    result, frozen = quantize(latents, vqgan, LossConfig()), vqgan.quantizer()
    assert torch.equal(frozen.search(latents)[0], result.ids)
    torch.testing.assert_close(frozen.embedding(result.ids), result.codes.detach(), rtol=0, atol=1e-5)
    assert len(vqgan.codebooks()) == {"lfq": 0, "fsq": 0, "residual": 4}.get(kind, 1)


def test_the_entropy_is_that_of_the_bits_or_of_the_codes():
    from toklip_vq.training.quantization import entropy

    bits, codes = small_vqgan("lfq"), small_vqgan("ibq")
    latents = torch.randn(100, 28)
    assert torch.equal(entropy(latents, bits, temperature=0.1), bit_entropy_loss(latents, temperature=0.1))
    expected = entropy_loss(affinity(latents[:, :8], codes.codebook), temperature=0.1)
    assert torch.equal(entropy(latents[:, :8], codes, temperature=0.1), expected)


@pytest.mark.parametrize("kind", ["fsq", "residual"])
def test_quantizers_without_entropy_are_refused(kind):
    from toklip_vq.training.quantization import entropy

    vqgan = small_vqgan(kind)
    with pytest.raises(ValueError, match=f"^got the quantizer '{kind}', which has no entropy loss; set entropy_weight"):
        entropy(torch.randn(100, vqgan.config.code_dim), vqgan, temperature=0.1)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"quantizer": "lfq", "codebook_dim": 18, "codebook_size": 2**18}, "codebook_size has no effect with the"),
        ({"quantizer": "fsq", "codebook_dim": 4, "values_per_channel": (8, 5)}, "codebook_dim has no effect with"),
        ({"quantizer": "fsq"}, "values_per_channel is needed for the quantizer 'fsq', which takes values_per_channel"),
        ({"quantizer": "residual", "codebook_size": 8, "codebook_dim": 8}, "ids_per_position is needed for the"),
        ({"quantizer": "lfq", "codebook_dim": 18, "metric": "cosine"}, "metric 'cosine' has no effect with"),
        ({"codebook_dim": 18}, "codebook_size is needed for the quantizer 'vq', which takes codebook_size and"),
    ],
)
def test_settings_without_effect_are_refused(settings, says):
    with pytest.raises(ValueError, match=says):
        VQGANConfig(**settings)


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


def restart_in_one_of_two(folder: Path) -> None:
    """Restart the codes with other ids and other latents in each process."""
    torch.distributed.init_process_group("gloo")
    rank = torch.distributed.get_rank()
    book, latents = codebook("euclidean"), torch.randn(20, 6, generator=torch.Generator().manual_seed(rank))
    restart = CodeRestart(32, period=2)
    restart.add(count_ids(torch.tensor([3 + rank]), 32))
    restart(book, latents, 2)
    save_file({"codes": book.weight.detach(), "latents": latents}, folder / f"{rank}.safetensors")
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_processes_restart_the_same_codes_from_the_latents_of_all(tmp_path: Path):
    run_together(restart_in_one_of_two, tmp_path)
    one, other = (load_file(tmp_path / f"{rank}.safetensors") for rank in (0, 1))
    assert torch.equal(one["codes"], other["codes"])
    codes = one["codes"]
    assert (codes == PUBLISHED["codebook"]).all(-1).nonzero()[:, 0].tolist() == [3, 4], "a process has seen each"
    taken = [(codes[:, None] == part["latents"]).all(-1).any(-1).sum().item() for part in (one, other)]
    assert sum(taken) == 30 and min(taken) >= 10
