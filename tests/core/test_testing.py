"""The contract kit passes for a correct tokenizer, and names the error of a wrong one."""

import pytest
import torch
from toklip_core.pictures import refuse_pixels
from toklip_core.plugins import VQTokenizer
from toklip_core.testing import tokenizer_checks
from torch import nn

CHECKS = {check.__name__: check for check in tokenizer_checks()}


class Right(nn.Module):
    """Nearest of 300 random rows to a linear map of 8 x 8 patches: small, and right in every law."""

    codebook_size = 300
    codebook_dim = 16
    downsample_factor = 8

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.down = nn.Conv2d(3, 16, 8, stride=8)
        self.up = nn.ConvTranspose2d(16, 3, 8, stride=8)
        with torch.no_grad():
            for weight in self.parameters():
                weight.copy_(torch.randn(weight.shape, generator=generator) / weight[0].numel() ** 0.5)
        self.register_buffer("codebook", torch.randn(300, 16, generator=generator))
        self.requires_grad_(False)
        self.train(False)

    def train(self, mode=True):
        return super().train(False)

    def latents(self, pixels):
        return self.down(pixels.to(self.down.weight.dtype)).movedim(1, -1).float()

    def nearest(self, latents):
        return (latents @ self.codebook.float().T).argmax(dim=-1)

    @torch.no_grad()
    def encode(self, pixels):
        refuse_pixels(pixels)
        return self.ids(pixels)

    def ids(self, pixels):
        with torch.autocast("cpu", enabled=False):
            return self.nearest(self.latents(pixels))

    def embed(self, ids):
        return self.codebook[ids]

    @torch.no_grad()
    def decode(self, ids):
        return self.up(self.embed(ids).movedim(-1, 1)).float()


def test_a_right_tokenizer_keeps_every_law():
    for check in CHECKS.values():
        check(Right())


def test_a_check_has_a_law_and_a_name():
    assert len(CHECKS) == len(tokenizer_checks()) >= 10
    assert all(check.__doc__ and name.startswith("check_") for name, check in CHECKS.items())


def test_the_kit_leaves_the_tokenizer_as_it_came():
    tokenizer, untouched = Right(), Right()
    for check in CHECKS.values():
        check(tokenizer)
    for name, tensor in untouched.state_dict().items():
        assert torch.equal(tokenizer.state_dict()[name], tensor), name
    assert not any(module.training for module in tokenizer.modules())


@pytest.mark.parametrize(("factor", "size", "dim"), [(32, 64, 4), (1, 2, 1), (8, 262144, 8)])
def test_the_kit_fits_any_size(factor, size, dim):
    class Sized(Right):
        downsample_factor, codebook_size, codebook_dim = factor, size, dim

        def __init__(self):
            super().__init__()
            self.codebook = torch.randn(size, dim, generator=torch.Generator().manual_seed(0)).clamp(-3, 3)
            self.down = nn.Conv2d(3, dim, factor, stride=factor).requires_grad_(False).eval()
            self.up = nn.Upsample(scale_factor=factor).eval()

        def decode(self, ids):
            return (
                self.embed(ids)[..., :1]
                .movedim(-1, 1)
                .expand(-1, 3, -1, -1)
                .repeat_interleave(factor, dim=2)
                .repeat_interleave(factor, dim=3)
                .float()
            )

    for check in CHECKS.values():
        check(Sized())


class NoModule:
    codebook_size, codebook_dim, downsample_factor = 300, 16, 8


class NoDecode(nn.Module):
    codebook_size, codebook_dim, downsample_factor = 300, 16, 8

    def encode(self, pixels):
        return pixels

    embed = encode


class SizeIsATensor(Right):
    codebook_size = torch.tensor(300)


class Trainable(Right):
    def __init__(self):
        super().__init__()
        self.up.requires_grad_(True)


class DropoutWhenTrained(Right):
    def __init__(self):
        super().__init__()
        self.dropout = nn.Dropout(0.5)

    def train(self, mode=True):
        return nn.Module.train(self, mode)

    def latents(self, pixels):
        return self.dropout(super().latents(pixels)) if hasattr(self, "dropout") else super().latents(pixels)


class EntersTrainingMode(Right):
    def train(self, mode=True):
        return nn.Module.train(self, mode)


class BatchNorm(Right):
    def latents(self, pixels):
        latents = super().latents(pixels)
        return latents - latents.mean(dim=0)


class Autocast(Right):
    @torch.no_grad()
    def encode(self, pixels):
        return self.nearest(self.down(pixels).movedim(1, -1))


class Noise(Right):
    def latents(self, pixels):
        return super().latents(pixels) + torch.randn(16)


class EmbedMultiplies(Right):
    def embed(self, ids):
        return nn.functional.one_hot(ids, 300).float() @ self.codebook


class EmbedSeesItsNeighbours(Right):
    def embed(self, ids):
        codes = self.codebook[ids]
        return codes - codes.mean()


class CountsUse(Right):
    def __init__(self):
        super().__init__()
        self.register_buffer("used", torch.zeros(300), persistent=False)

    def nearest(self, latents):
        ids = super().nearest(latents)
        self.used[ids.flatten()] += 1
        return ids


class GivesItsCodebookAway(Right):
    def embed(self, ids):
        return self.codebook[ids] if ids.ndim != 3 else self.codebook[: ids.numel()].view(*ids.shape, -1)


class OneTooHigh(Right):
    def nearest(self, latents):
        return super().nearest(latents) + 150


class Int32(Right):
    def nearest(self, latents):
        return super().nearest(latents).int()


class FlatIds(Right):
    def nearest(self, latents):
        return super().nearest(latents).flatten(1)


class WrongFactor(Right):
    downsample_factor = 16


class SquareOnly(Right):
    def nearest(self, latents):
        ids = super().nearest(latents)
        side = int(ids[0].numel() ** 0.5)
        return ids.flatten(1).view(-1, side, side)


class SwapsSides(Right):
    def decode(self, ids):
        return super().decode(ids.transpose(1, 2))


class NotANumber(Right):
    def decode(self, ids):
        return super().decode(ids).log()


class Bytes(Right):
    def decode(self, ids):
        return super().decode(ids).add(1).mul(127.5)


class HalfPixels(Right):
    def decode(self, ids):
        return super().decode(ids).half()


class PlainPictureFails(Right):
    def nearest(self, latents):
        ids = super().nearest(latents)
        return torch.where(latents.std() < 1e-6, -1, ids)

    def latents(self, pixels):
        latents = super().latents(pixels)
        return latents - latents.mean(dim=(1, 2), keepdim=True)


class WritesIntoPixels(Right):
    @torch.no_grad()
    def encode(self, pixels):
        return super().encode(pixels.clamp_(-0.5, 0.5))


class KeepsGraph(Right):
    def encode(self, pixels):
        return self.nearest(self.latents(pixels.sigmoid()))


class InferenceMode(Right):
    @torch.inference_mode()
    def encode(self, pixels):
        return super().encode(pixels)


class ViewFails(Right):
    def latents(self, pixels):
        return super().latents(pixels.view(-1).view(pixels.shape))


class HalfFails(Right):
    def latents(self, pixels):
        return self.down(pixels).movedim(1, -1)


class TakesAnything(Right):
    @torch.no_grad()
    def encode(self, pixels):
        return self.ids(pixels)


class TakesLevels(Right):
    @torch.no_grad()
    def encode(self, pixels):
        refuse_pixels(pixels.float())
        return self.ids(pixels)


class RaisesWhatItLikes(Right):
    def encode(self, pixels):
        try:
            return super().encode(pixels)
        except ValueError as error:
            raise RuntimeError("no") from error


class ReturnsAPair(Right):
    def encode(self, pixels):
        return super().encode(pixels), None


BROKEN = [
    (NoModule, "is_a_module", "NoModule is not a torch.nn.Module"),
    (NoDecode, "is_a_module", "NoDecode lacks decode of toklip_core.VQTokenizer"),
    (SizeIsATensor, "sizes_are_counts", r"codebook_size is tensor\(300\); it must be an int of at least 1"),
    (Trainable, "nothing_is_trainable", "'up.weight', 'up.bias' can be trained; call requires_grad_"),
    (DropoutWhenTrained, "train_has_no_effect", r"\d+ of 6 ids differ before and after train\(\)"),
    (EntersTrainingMode, "train_has_no_effect", r"train\(\) puts 'EntersTrainingMode', 'down', 'up' in training mode"),
    (BatchNorm, "the_rest_of_the_batch_keeps_ids", r"\d of 6 ids differ in a batch of 3 and alone"),
    (Autocast, "autocast_keeps_ids", r"\d+ of 48 ids differ with and without bfloat16 autocast"),
    (Noise, "equal_pictures_have_equal_ids", "encode gives other ids when called again on the same pixels"),
    (EmbedMultiplies, "autocast_keeps_ids", "embed gives torch.bfloat16 under autocast and torch.float32 without"),
    (EmbedSeesItsNeighbours, "embed_is_a_lookup", "codes of a grid of ids are not the rows .* bit for bit"),
    (GivesItsCodebookAway, "use_changes_no_tensor", "'codebook' of the tokenizer is changed by embed, or by writing"),
    (CountsUse, "use_changes_no_tensor", "'used' of the tokenizer is changed by encode"),
    (OneTooHigh, "encode_gives_a_grid_of_ids", r"ids from \d+ to \d+; with codebook_size 300 they must lie in 0..299"),
    (Int32, "encode_gives_a_grid_of_ids", "encode gives torch.int32; ids are torch.int64"),
    (FlatIds, "encode_gives_a_grid_of_ids", r"ids \(2, 6\) for pixels \(2, 3, 16, 24\); .* must be \(2, 2, 3\)"),
    (WrongFactor, "encode_gives_a_grid_of_ids", r"with downsample_factor 16 they must be \(2, 2, 3\)"),
    (SquareOnly, "any_picture_shape_works", r"encode fails on pixels \(1, 3, 24, 16\): RuntimeError"),
    (SwapsSides, "any_picture_shape_works", r"decode gives pixels \(1, 3, 16, 24\) .* must be \(1, 3, 24, 16\)"),
    (NotANumber, "decode_gives_pixels", r"decode gives \d+ pixel values that are NaN or infinite"),
    (Bytes, "decode_gives_pixels", r"decode gives pixels up to \d{3}; they must lie near \[-1, 1\]"),
    (HalfPixels, "decode_gives_pixels", "decode gives torch.float16; pixels are torch.float32"),
    (PlainPictureFails, "plain_pictures_have_ids", "ids from -1 to -1"),
    (WritesIntoPixels, "use_changes_no_tensor", "encode writes into the pixels that it is given"),
    (KeepsGraph, "no_graph_is_built", r"encode keeps \d+ tensors for a backward pass; put @torch.no_grad"),
    (InferenceMode, "no_graph_is_built", "encode returns an inference tensor, which no training step can use"),
    (ViewFails, "equal_pictures_have_equal_ids", r"encode fails on pixels \(1, 3, 16, 24\): RuntimeError: view size"),
    (HalfFails, "half_precision_keeps_the_interface", r"encode after to\(torch.bfloat16\) fails on pixels"),
    (TakesAnything, "pixels_that_are_no_numbers_are_refused", "encode gives ids for pixels with nan in them; raise"),
    (TakesLevels, "pixels_that_are_no_numbers_are_refused", "encode gives ids for 8-bit levels, which are no pixels"),
    (RaisesWhatItLikes, "pixels_that_are_no_numbers_are_refused", "fails on pixels with nan in them with RuntimeError"),
    (ReturnsAPair, "encode_gives_a_grid_of_ids", "it returns a tuple, not a tensor"),
]


@pytest.mark.parametrize(("broken", "check", "says"), BROKEN, ids=lambda value: getattr(value, "__name__", None))
def test_a_broken_tokenizer_fails_with_a_sentence(broken, check, says):
    with pytest.raises(AssertionError, match=says):
        CHECKS[f"check_{check}"](broken())


def test_the_protocol_is_what_the_kit_checks():
    assert isinstance(Right(), VQTokenizer)
