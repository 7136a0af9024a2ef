"""The contract kit passes for a correct tokenizer, and names the error of a wrong one."""

import pytest
import torch
from toklip_core.embeddings import BitEmbedding, PyramidEmbedding, TableEmbedding
from toklip_core.pictures import grid_by_factor, grid_of_size, refuse_pixels
from toklip_core.plugins import TokenizerSpec, VQTokenizer, registry
from toklip_core.testing import check_the_description_fits, tokenizer_checks
from toklip_core.tokenizer import Tokenizer, load_tokenizer
from torch import nn

CHECKS = {check.__name__: check for check in tokenizer_checks()}


class Right(nn.Module):
    """Nearest of 300 random rows to a linear map of 8 x 8 patches: small, and right in every law."""

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.down = nn.Conv2d(3, 16, 8, stride=8)
        self.up = nn.ConvTranspose2d(16, 3, 8, stride=8)
        with torch.no_grad():
            for weight in self.parameters():
                weight.copy_(torch.randn(weight.shape, generator=generator) / weight[0].numel() ** 0.5)
        self.embedding = self.embedding_of(torch.randn(300, 16, generator=generator))
        self.requires_grad_(False)
        self.train(False)

    def embedding_of(self, table):
        return TableEmbedding([table])

    def train(self, mode=True):
        return super().train(False)

    def grid(self, height, width):
        return grid_by_factor(height, width, 8)

    def latents(self, pixels):
        return self.down(pixels.to(self.down.weight.dtype)).movedim(1, -1).float()

    def nearest(self, latents):
        return (latents @ self.embedding.rows().T).argmax(dim=-1)[..., None]

    @torch.no_grad()
    def encode(self, pixels):
        refuse_pixels(pixels)
        self.grid(*pixels.shape[2:])
        return self.ids(pixels)

    def ids(self, pixels):
        with torch.autocast("cpu", enabled=False):
            return self.nearest(self.latents(pixels))

    @torch.no_grad()
    def decode(self, ids):
        return self.up(self.embedding(ids).movedim(-1, 1).to(self.up.weight.dtype)).float()


class FourLevels(Right):
    """Each level has four of the channels, and a codebook of its own size."""

    def embedding_of(self, table):
        return TableEmbedding([table[: (300, 16, 5, 2)[level], 4 * level : 4 * level + 4] for level in range(4)])

    def nearest(self, latents):
        split = latents.split(4, dim=-1)
        return torch.stack([(x @ self.embedding.rows(q).T).argmax(-1) for q, x in enumerate(split)], dim=-1)


class Residual(Right):
    """Each level is the row nearest to what is left."""

    def embedding_of(self, table):
        return TableEmbedding([table / 2**level for level in range(4)], combine="sum")

    def nearest(self, latents):
        ids = []
        for level in range(4):
            rows = self.embedding.rows(level)
            ids.append((latents @ rows.T - rows.square().sum(-1) / 2).argmax(-1))
            latents = latents - rows[ids[-1]]
        return torch.stack(ids, dim=-1)


class ManyBits(Right):
    """The signs of 28 channels."""

    def __init__(self):
        super().__init__()
        self.spread = nn.Linear(16, 28).eval().requires_grad_(False)
        self.gather = nn.Linear(28, 16).eval().requires_grad_(False)

    def embedding_of(self, table):
        return BitEmbedding(28)

    def nearest(self, latents):
        return self.embedding.ids_of(self.signs(latents))

    def signs(self, latents):
        return self.spread(latents.to(self.spread.weight.dtype)) > 0

    @torch.no_grad()
    def decode(self, ids):
        codes = self.gather(self.embedding(ids).to(self.gather.weight.dtype))
        return self.up(codes.movedim(-1, 1)).float()


class FixedSize(Right):
    """Pictures of 24 x 24 pixels alone."""

    def grid(self, height, width):
        return grid_of_size(height, width, size=(24, 24), grid=(3, 3))


class TwoOrMore(Right):
    """One position alone is refused, as Open-MAGVIT2 must."""

    def grid(self, height, width):
        if height < 16 or width < 16:
            raise ValueError(f"got a picture of {height} x {width}; its sides must be multiples of 8 from 16 up")
        return grid_by_factor(height, width, 8)


class Pyramid(Right):
    """Three maps of one picture of 24 x 24 pixels."""

    def embedding_of(self, table):
        return PyramidEmbedding(table, (1, 2, 3))

    def grid(self, height, width):
        return grid_of_size(height, width, size=(24, 24), grid=(1, 14))

    def nearest(self, latents):
        maps = [nn.functional.adaptive_avg_pool2d(latents.movedim(-1, 1), side).flatten(2) for side in (1, 2, 3)]
        return super().nearest(torch.cat(maps, dim=-1).movedim(1, -1)[:, None])

    @torch.no_grad()
    def decode(self, ids):
        return self.up(self.embedding.code_map(ids).movedim(-1, 1).to(self.up.weight.dtype)).float()


@pytest.mark.parametrize("right", [Right, FourLevels, Residual, ManyBits, FixedSize, TwoOrMore, Pyramid])
def test_a_right_tokenizer_keeps_every_law(right):
    torch.manual_seed(0)
    for check in CHECKS.values():
        check(right())


@pytest.mark.parametrize("name", ["mean-colour", "quarter-greys", "residual-greys", "colour-bits"])
def test_the_tokenizers_of_these_tests_keep_every_law(name, toy):
    for check in CHECKS.values():
        check(load_tokenizer(name))


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
        def __init__(self):
            super().__init__()
            table = torch.randn(size, dim, generator=torch.Generator().manual_seed(0)).clamp(-3, 3)
            self.embedding = self.embedding_of(table)
            self.down = nn.Conv2d(3, dim, factor, stride=factor).requires_grad_(False).eval()
            self.up = nn.Upsample(scale_factor=factor).eval()

        def grid(self, height, width):
            return grid_by_factor(height, width, factor)

        def decode(self, ids):
            return (
                self.embedding(ids)[..., :1]
                .movedim(-1, 1)
                .expand(-1, 3, -1, -1)
                .repeat_interleave(factor, dim=2)
                .repeat_interleave(factor, dim=3)
                .float()
            )

    for check in CHECKS.values():
        check(Sized())


class NoModule:
    pass


class NoDecode(nn.Module):
    embedding = TableEmbedding([torch.zeros(300, 16)])

    def encode(self, pixels):
        return pixels

    grid = encode


class NoEmbedding(Right):
    def embedding_of(self, table):
        return nn.Embedding.from_pretrained(table)


class SizeIsATensor(Right):
    def __init__(self):
        super().__init__()
        self.embedding.codebook_sizes = (torch.tensor(300),)


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


def with_embedding(forward, base=Right, kind=TableEmbedding):
    """A tokenizer whose embedding has another forward."""

    class Embedding(kind):
        def forward(self, ids):
            return forward(self, ids)

    class Changed(base):
        def embedding_of(self, table):
            right = super().embedding_of(table)
            changed = Embedding.__new__(Embedding)
            changed.__dict__ = right.__dict__
            return changed

    return Changed


EmbedMultiplies = with_embedding(lambda self, ids: nn.functional.one_hot(ids[..., 0], 300).float() @ self.table_0)
EmbedSeesItsNeighbours = with_embedding(lambda self, ids: self.table_0[ids[..., 0]] - self.table_0[ids[..., 0]].mean())


class CountsUse(Right):
    def __init__(self):
        super().__init__()
        self.register_buffer("used", torch.zeros(300), persistent=False)

    def nearest(self, latents):
        ids = super().nearest(latents)
        self.used[ids.flatten()] += 1
        return ids


GivesItsCodebookAway = with_embedding(
    lambda self, ids: (
        self.table_0[ids[..., 0]] if ids.ndim != 4 else self.table_0[: ids.numel()].view(*ids.shape[:3], -1)
    )
)


class OneTooHigh(Right):
    def nearest(self, latents):
        return super().nearest(latents) + 150


class Int32(Right):
    def nearest(self, latents):
        return super().nearest(latents).int()


class FlatIds(Right):
    def nearest(self, latents):
        return super().nearest(latents).flatten(1)


class NoLevels(Right):
    def nearest(self, latents):
        return super().nearest(latents)[..., 0]


class WrongFactor(Right):
    def grid(self, height, width):
        return grid_by_factor(height, width, 16)


class SquareOnly(Right):
    def nearest(self, latents):
        ids = super().nearest(latents)
        side = int(ids[0].numel() ** 0.5)
        return ids.flatten(1).view(-1, side, side, 1)


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
        self.grid(*pixels.shape[2:])
        return self.ids(pixels)


class TakesLevels(Right):
    @torch.no_grad()
    def encode(self, pixels):
        refuse_pixels(pixels.float())
        self.grid(*pixels.shape[2:])
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


class LevelsInAnotherOrder(FourLevels):
    def nearest(self, latents):
        return super().nearest(latents).flip(-1)


class OneLevelTooFew(FourLevels):
    def nearest(self, latents):
        return super().nearest(latents)[..., :3]


class LevelsAsRows(FourLevels):
    def nearest(self, latents):
        return super().nearest(latents).movedim(-1, 1)


class SaysItIsResidual(FourLevels):
    def __init__(self):
        super().__init__()
        self.embedding.levels_are_residual = True

    def embedding_of(self, table):
        return TableEmbedding([table, table])


#: Each level is added to the sum over all positions of those before it.
LevelSeesOtherPositions = with_embedding(
    lambda self, ids: sum(rows[ids[..., q]] for q, rows in enumerate(map(self.rows, range(4)))).cumsum(0), Residual
)


class LevelsDependOnTheBatch(Residual):
    def nearest(self, latents):
        ids = super().nearest(latents)
        ids[..., 3] = (ids[..., 3] + len(ids)) % 300
        return ids


class ResizesInside(FixedSize):
    @torch.no_grad()
    def encode(self, pixels):
        refuse_pixels(pixels)
        return self.ids(nn.functional.interpolate(pixels, size=(24, 24)))


class FixedButSaysAnySize(FixedSize):
    def grid(self, height, width):
        return grid_by_factor(height, width, 8)

    def latents(self, pixels):
        return super().latents(pixels) + torch.zeros(3, 3, 1)


class SaysNoSize(FixedSize):
    def grid(self, height, width):
        if (height, width) != (24, 24):
            raise ValueError("no")
        return 3, 3


class FailsOnOtherSizes(FixedSize):
    def grid(self, height, width):
        return {24: (3, 3)}[height]


class TakesNoSquare(FixedSize):
    def grid(self, height, width):
        return grid_of_size(height, width, size=(24, 32), grid=(3, 4))


class GivesOneNumber(FixedSize):
    def grid(self, height, width):
        return super().grid(height, width)[0] ** 2


class DecodesAnotherSize(FixedSize):
    def decode(self, ids):
        return super().decode(ids).repeat_interleave(2, 2).repeat_interleave(2, 3)


class RoundedIds(ManyBits):
    def nearest(self, latents):
        signs = self.signs(latents)
        return (signs.float() * 2.0 ** torch.arange(27, -1, -1)).sum(-1, keepdim=True).clamp(0, 2**28 - 16).long()


class OtherBitOrder(ManyBits):
    def embedding_of(self, table):
        class Reversed(BitEmbedding):
            def ids_of(self, signs):
                return super().ids_of(signs.flip(-1))

        return Reversed(28)


class OneBitTooMany(ManyBits):
    def embedding_of(self, table):
        class Longer(BitEmbedding):
            def ids_of(self, signs):
                return super().ids_of(signs) * 2 + 1

        return Longer(28)


def digits_in_float32(self, ids):
    return (ids.float() // 2.0 ** torch.arange(28) % 2) * 2 - 1


def digits_out_of_a_table(self, ids):
    table = torch.arange(2**20)[:, None] >> torch.arange(20) & 1
    parts = [table[ids[..., 0] % 2**20], table[ids[..., 0] >> 20][..., :8]]
    return torch.cat(parts, dim=-1).float() * 2 - 1


class CastBits(ManyBits):
    def embedding_of(self, table):
        class Scaled(BitEmbedding):
            def __init__(self, bits):
                super().__init__(bits)
                self.size = nn.Parameter(torch.ones(()), requires_grad=False)

            def forward(self, ids):
                return super().forward(ids).to(self.size.dtype) * self.size

        return Scaled(28)


BROKEN = [
    (NoLevels, "encode_gives_a_grid_of_ids", r"gives ids \(2, 2, 3\) for .*; with a grid of \(2, 3\) and 1 level"),
    (LevelsInAnotherOrder, "encode_gives_a_grid_of_ids", r"ids of level 2 from \d+ to \d+; with a codebook of 5 they"),
    (OneLevelTooFew, "encode_gives_a_grid_of_ids", r"ids \(2, 2, 3, 3\) .* and 4 levels they must be \(2, 2, 3, 4\)"),
    (LevelsAsRows, "encode_gives_a_grid_of_ids", r"gives ids \(2, 4, 2, 3\) for .* they must be \(2, 2, 3, 4\)"),
    (SaysItIsResidual, "the_embedding_is_built_from_its_config", "codebook_dim is 32, and 16 in the embedding"),
    (LevelSeesOtherPositions, "codes_depend_on_their_ids_alone", "the codes .* are not those of the same ids alone"),
    (LevelsDependOnTheBatch, "the_rest_of_the_batch_keeps_ids", r"\d+ of 24 ids differ in a batch of 3 and alone"),
    (ResizesInside, "grid_takes_or_refuses_a_size", "encode gives ids of 25 x 49 pixels, which grid refuses"),
    (FixedButSaysAnySize, "any_picture_shape_works", r"encode fails on pixels \(1, 3, 24, 16\): RuntimeError"),
    (SaysNoSize, "grid_takes_or_refuses_a_size", "grid refuses 25 x 49 without a word of the sizes that it"),
    (FailsOnOtherSizes, "grid_takes_or_refuses_a_size", "grid fails on 1 x 1 with KeyError: 1; raise Value"),
    (TakesNoSquare, "grid_takes_or_refuses_a_size", "grid takes no square of 1 to 2048 pixels; the toolkit makes"),
    (GivesOneNumber, "grid_takes_or_refuses_a_size", r"grid gives 9 for 24 x 24; it must be two ints \(h, w\)"),
    (DecodesAnotherSize, "decode_gives_pixels", r"decode gives pixels \(2, 3, 48, 48\) .* must be \(2, 3, 24, 24\)"),
    (RoundedIds, "ids_are_exact", r"all of \d+ ids above 2\^24 are numbers that float32 holds, so they are rounded"),
    (OtherBitOrder, "ids_are_exact", r"\d+ of 1000 ids differ when embedding.ids_of reads them off their codes"),
    (OneBitTooMany, "encode_gives_a_grid_of_ids", r"with a codebook of 268435456 they must lie in 0\.\.268435455"),
    (
        with_embedding(digits_in_float32, ManyBits, BitEmbedding),
        "ids_are_exact",
        r"\d+ of 1000 ids have the code of the next id; embed ids without float32",
    ),
    (
        with_embedding(digits_out_of_a_table, ManyBits, BitEmbedding),
        "embedding_takes_little_memory",
        r"makes a tensor of 160 MiB; compute codes from ids, or keep one table",
    ),
    (
        CastBits,
        "half_precision_keeps_the_interface",
        r"the embedding gives torch.bfloat16 after to\(torch.bfloat16\); codes are torch.float32",
    ),
    (NoEmbedding, "the_embedding_tells_its_sizes", "is a Embedding; it must be a module of toklip_core"),
    (NoModule, "is_a_module", "NoModule is not a torch.nn.Module"),
    (NoDecode, "is_a_module", "NoDecode lacks decode of toklip_core.VQTokenizer"),
    (SizeIsATensor, "the_embedding_tells_its_sizes", r"codebook_sizes\[0\] is tensor\(300\); it must be an int"),
    (Trainable, "nothing_is_trainable", "'up.weight', 'up.bias' can be trained; call requires_grad_"),
    (DropoutWhenTrained, "train_has_no_effect", r"\d+ of 6 ids differ before and after train\(\)"),
    (EntersTrainingMode, "train_has_no_effect", r"train\(\) puts 'EntersTrainingMode', 'down', 'up' and 1 more in "),
    (BatchNorm, "the_rest_of_the_batch_keeps_ids", r"\d of 6 ids differ in a batch of 3 and alone"),
    (Autocast, "autocast_keeps_ids", r"\d+ of 48 ids differ with and without bfloat16 autocast"),
    (Noise, "equal_pictures_have_equal_ids", "encode gives other ids when called again on the same pixels"),
    (EmbedMultiplies, "autocast_keeps_ids", "embedding gives torch.bfloat16 under autocast; codes are torch.float32"),
    (EmbedSeesItsNeighbours, "codes_depend_on_their_ids_alone", "codes of a grid of ids are not those .* bit for bit"),
    (GivesItsCodebookAway, "use_changes_no_tensor", "'embedding.table_0' of the tokenizer is changed by the embedding"),
    (CountsUse, "use_changes_no_tensor", "'used' of the tokenizer is changed by encode"),
    (OneTooHigh, "encode_gives_a_grid_of_ids", r"ids from \d+ to \d+; with a codebook of 300 they must lie in 0..299"),
    (Int32, "encode_gives_a_grid_of_ids", "encode gives torch.int32; ids are torch.int64"),
    (FlatIds, "encode_gives_a_grid_of_ids", r"ids \(2, 6\) for pixels \(2, 3, 16, 24\); .* must be \(2, 2, 3, 1\)"),
    (WrongFactor, "encode_gives_a_grid_of_ids", r"with a grid of \(2, 3\) and 1 level they must be \(2, 2, 3, 1\)"),
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
    (TakesAnything, "pixels_that_are_not_numbers_are_refused", "encode gives ids for pixels with nan in them; raise"),
    (TakesLevels, "pixels_that_are_not_numbers_are_refused", "encode gives ids for 8-bit values, which are not pixels"),
    (RaisesWhatItLikes, "pixels_that_are_not_numbers_are_refused", "fails on pixels with nan in them with Runtime"),
    (ReturnsAPair, "encode_gives_a_grid_of_ids", "it returns a tuple, not a tensor"),
]


@pytest.mark.parametrize(("broken", "check", "says"), BROKEN, ids=lambda value: getattr(value, "__name__", None))
def test_a_broken_tokenizer_fails_with_a_sentence(broken, check, says):
    with pytest.raises(AssertionError, match=says):
        CHECKS[f"check_{check}"](broken())


class RoundsUntilItIsOnTheCPU(BatchNorm):
    """As a GPU may round in batches of several sizes."""

    on_cpu = False

    def to(self, *arguments):
        self.on_cpu = arguments == ("cpu",)
        return super().to(*arguments)

    def latents(self, pixels):
        return Right.latents(self, pixels) if self.on_cpu else super().latents(pixels)


def test_ids_in_a_batch_are_compared_on_the_cpu():
    CHECKS["check_the_rest_of_the_batch_keeps_ids"](RoundsUntilItIsOnTheCPU())


def test_the_protocol_is_what_the_kit_checks():
    assert isinstance(Right(), VQTokenizer)


@pytest.mark.parametrize(
    ("declared", "says"),
    [
        ({"codebook_sizes": (300,), "grid": (32, 32)}, ""),
        ({}, ""),
        ({"codebook_sizes": (300, 300)}, r"the spec has codebook_sizes \(300, 300\), and it has \(300,\)"),
        ({"grid": (16, 16)}, r"the spec has the grid \(16, 16\) of 256 px, and grid gives \(32, 32\)"),
        ({"grid": (32, 32), "fixed_size": True}, "the spec has fixed_size True, and grid takes 512 x 512"),
        ({"grid": (32, 32), "image_size": 255}, "the spec has pictures of 255 x 255, which grid refuses; commands"),
    ],
)
def test_what_a_plugin_declares_is_held_against_the_tokenizer(declared, says, monkeypatch):
    spec = TokenizerSpec(name="right", factory=lambda weights: Right(), summary="", **declared)
    monkeypatch.setitem(registry().tokenizers, "right", spec)
    tokenizer = Tokenizer("right", Right())
    if not says:
        check_the_description_fits(tokenizer)
        return
    with pytest.raises(AssertionError, match=says):
        check_the_description_fits(tokenizer)
