"""Laws of the projector that is fitted to the teacher's patches before an encoder's training."""

from __future__ import annotations

import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from toklip_core.captioned import CaptionedSamples
from toklip_core.model import EncoderConfig, SemanticEncoder, TrunkConfig, load_clip
from toklip_core.tasks import EncoderTask, EncoderTrainConfig, train_encoder
from toklip_core.tasks.projector import fit_projector
from toklip_core.tokenizer import load_tokenizer

from tests.support.encoder_runs import assert_same_run, config, pictures, small_teacher, stored

TRUNK = TrunkConfig(width=32, depth=1, heads=2)


def encoder(neighbours: int = 0) -> SemanticEncoder:
    torch.manual_seed(0)
    return SemanticEncoder(EncoderConfig(codebook_dim=5, grid=(4, 6), trunk=TRUNK, neighbours=neighbours))


def codes(count: int = 200) -> torch.Tensor:
    # Codes as tokenizers have them: of small and unequal spread, and one that says nothing.
    return torch.randn(count, 4, 6, 5) * torch.tensor([0.1, 0.01, 3.0, 0.5, 0.0]) + 0.7


@torch.no_grad()
@pytest.mark.parametrize("neighbours", [0, 1])
def test_the_share_is_what_it_explains_of_the_patches(neighbours: int):
    model, given = encoder(neighbours), codes()
    wanted = torch.tanh(given.flatten(1, 2) * 3) @ torch.randn(5, 32) + 4
    share = fit_projector(model, lambda: [given], [wanted])
    found = model.projector(model.projector_inputs(given.flatten(1, 2))).flatten(0, 1)
    wanted = wanted.flatten(0, 1)
    assert share == pytest.approx(1 - float((found - wanted).var(0).sum() / wanted.var(0).sum()), abs=1e-5)
    assert share > 0.6 and torch.allclose(found.mean(0), wanted.mean(0), atol=1e-3)


@torch.no_grad()
def test_what_lies_in_a_neighbour_needs_neighbours():
    given = codes()
    wanted = torch.roll(given, 1, dims=2).flatten(1, 2) @ torch.randn(5, 32)  # of the code to the left
    assert fit_projector(encoder(0), lambda: [given], [wanted]) < 0.1
    assert fit_projector(encoder(1), lambda: [given], [wanted]) > 0.6


@torch.no_grad()
def test_batches_give_the_least_squares_of_all_rows_and_are_not_kept():
    given, model, whole = codes(), encoder(1), encoder(1)
    wanted = torch.tanh(given.flatten(1, 2) * 3) @ torch.randn(5, 32) + 4
    alive: list[weakref.ref[torch.Tensor]] = []
    most = 0

    def batches():
        nonlocal most
        for part in wanted.split(16):
            part = part.clone()
            alive.append(weakref.ref(part))
            most = max(most, sum(reference() is not None for reference in alive))
            yield part

    fit_projector(whole, lambda: [given], [wanted])
    fit_projector(model, lambda: given.split(16), batches())
    assert len(alive) == 13 and most <= 2
    read = model.projector_inputs(given.flatten(1, 2))
    # The channel that says nothing is rounding, enlarged up to 1e5 times.
    torch.testing.assert_close(model.projector(read), whole.projector(read), rtol=0, atol=1e-2)
    hidden = model.projector[1](model.projector[0](read)).flatten(0, 1).double()
    centred, offset = hidden - hidden.mean(0), wanted.double().mean((0, 1))
    squares = centred.T @ centred
    squares.diagonal().add_(1e-3 * squares.diagonal().mean())
    weight = torch.linalg.solve(squares, centred.T @ (wanted.flatten(0, 1) - offset)).T
    torch.testing.assert_close(model.projector[2].weight.double(), weight, rtol=0, atol=1e-4)


def task(settings: EncoderTrainConfig) -> EncoderTask:
    return EncoderTask(settings, load_tokenizer("mean-colour"), load_clip(settings.teacher))


@pytest.mark.parametrize("source", [pictures, stored])
def test_a_training_begins_with_the_fitted_projector(world: Path, source: Any):
    """A store has no pictures, so the tokenizer decodes its ids."""
    plain, fitted, again = (
        task(config(world, source(world), projector_pictures=count)).model.encoder for count in (0, 12, 12)
    )
    differing = {
        name for name, tensor in fitted.state_dict().items() if not torch.equal(tensor, plain.state_dict()[name])
    }
    assert differing == {f"projector.{layer}.{kind}" for layer in (0, 2) for kind in ("weight", "bias")}
    assert all(map(torch.equal, fitted.state_dict().values(), again.state_dict().values()))


def test_the_projector_is_fitted_to_the_pictures_that_the_run_begins_with(
    world: Path, monkeypatch: pytest.MonkeyPatch
):
    read, get = set(), CaptionedSamples.__getitem__

    def noting(samples: CaptionedSamples, key: tuple[int, int]) -> Any:
        read.add(key)
        return get(samples, key)

    monkeypatch.setattr(CaptionedSamples, "__getitem__", noting)
    begun = task(config(world, pictures(world), projector_pictures=4, run={"seed": 1}))
    assert read == {(0, place) for place in begun.order(12, 1, 0)[:4].tolist()}


@pytest.mark.slow
def test_a_run_with_neighbours_and_a_fitted_projector_resumes_and_its_model_loads(tmp_path: Path, world: Path):
    settings = config(world, stored(world), projector_pictures=12, neighbours=1)
    train_encoder(settings, tmp_path / "whole")
    half = settings.model_copy(update={"run": settings.run.model_copy(update={"steps": 2})})
    train_encoder(half, tmp_path / "parts")
    train_encoder(settings, tmp_path / "parts")
    assert_same_run(tmp_path / "parts", tmp_path / "whole")


def test_a_teacher_of_another_grid_is_refused(tmp_path: Path, world: Path):
    small_teacher(2, patch_size=8).save_pretrained(tmp_path / "other")
    message = r"projector_pictures compares the tokens of a grid of 8 x 8 with the teacher's of 4 x 4; set it to 0"
    with pytest.raises(ValueError, match=message):
        task(config(world, pictures(world), teacher=str(tmp_path / "other"), projector_pictures=4))


def test_a_projector_is_not_fitted_to_a_teacher_that_is_left_out(world: Path):
    with pytest.raises(ValueError, match="projector_pictures fits the projector to the teacher"):
        config(world, pictures(world), initial_values="random", projector_pictures=4)
