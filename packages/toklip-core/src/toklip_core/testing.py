"""The contract kit: the laws of VQ tokenizers, as checks that any plugin can run on itself.

A plugin author only writes::

    @pytest.mark.parametrize("check", tokenizer_checks(), ids=lambda check: check.__name__)
    def test_contract(check):
        check(load_tokenizer("toy"))

A check takes a loaded tokenizer, or the module itself, returns nothing, and raises AssertionError with a sentence that
names the broken law. Its docstring is the law. The kit finds the sizes of pictures by calling ``grid``: pictures are a
few positions wide where any size works, and else of the one size that the tokenizer takes. They are on the device of
the tokenizer, unless a check says that it takes a copy on the CPU. The tokenizer is not changed.

Shape letters: B batch, h and w the grid, Q levels (ids per position), K codebook size, C codebook dim.
"""

from __future__ import annotations

import copy
import re
import zlib
from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from toklip_core.embeddings import BitEmbedding, CodeEmbedding
from toklip_core.plugins import VQTokenizer, registry
from toklip_core.tokenizer import Tokenizer
from toklip_core.weights import without_values

#: A check: a function of a tokenizer that raises AssertionError if a law is broken.
Check = Callable[[VQTokenizer], None]

#: Number of codes that are compared at a time, to avoid a second copy of 262144 x 256 floats.
_CODES_AT_ONCE = 16384

#: Largest codebook of which every code is compared; of larger ones, and of several levels, 65536 are drawn.
_LARGEST_LISTED = 2**20
_DRAWN = 2**16

#: Largest side of a picture that is tried, in search of one that the tokenizer takes.
_LARGEST_SIDE = 2048

#: Most memory that embedding the ids of one picture may take for any tensor but the codes: a table of 2^28 is 30 GB.
_MOST_BYTES = 50 * 2**20

#: Limit of "near [-1, 1]": decoders overshoot, with random weights a few times, but one that returns 0..255 is wrong.
_LARGEST_PIXEL = 16.0

_REFUSE_PIXELS = "raise ValueError: call toklip_core.pictures.refuse_pixels(pixels) first"
_RAISE_SIZES = "raise ValueError with the sizes that it takes, see toklip_core.pictures.grid_by_factor"


def tokenizer_checks() -> list[Check]:
    """Return the checks of all laws, functions of a tokenizer with descriptive names.

    >>> from toklip_core import load_tokenizer
    >>> tokenizer = load_tokenizer("vqgan-tiny")
    >>> for check in tokenizer_checks()[:2]:
    ...     check(tokenizer)
    """
    return [
        check_is_a_module,
        check_the_embedding_tells_its_sizes,
        check_the_embedding_is_built_from_its_config,
        check_grid_takes_or_refuses_a_size,
        check_the_description_fits,
        check_nothing_is_trainable,
        check_encode_gives_a_grid_of_ids,
        check_any_picture_shape_works,
        check_plain_pictures_have_ids,
        check_equal_pictures_have_equal_ids,
        check_the_rest_of_the_batch_keeps_ids,
        check_autocast_keeps_ids,
        check_pixels_that_are_not_numbers_are_refused,
        check_codes_depend_on_their_ids_alone,
        check_ids_are_exact,
        check_embedding_takes_little_memory,
        check_code_maps_have_their_grid,
        check_decode_gives_pixels,
        check_no_graph_is_built,
        check_train_has_no_effect,
        check_use_changes_no_tensor,
        check_half_precision_keeps_the_interface,
    ]


def check_is_a_module(tokenizer: VQTokenizer) -> None:
    """A tokenizer is a torch.nn.Module, so that ``to()`` and ``state_dict()`` work, and has all of VQTokenizer."""
    members = ("embedding", "grid", "encode", "decode")
    module = _module(tokenizer)
    missing = [name for name in members if not hasattr(module, name)]
    assert not missing, f"{type(module).__name__} lacks {', '.join(missing)} of toklip_core.VQTokenizer"


def check_the_embedding_tells_its_sizes(tokenizer: VQTokenizer) -> None:
    """``embedding`` is a CodeEmbedding; its ``codebook_sizes`` and its ``codebook_dim`` are ints of at least 1."""
    embedding = tokenizer.embedding
    assert isinstance(embedding, CodeEmbedding), (
        f"embedding is a {type(embedding).__name__}; it must be a module of toklip_core.embeddings, such as "
        "TableEmbedding"
    )
    sizes = embedding.codebook_sizes
    assert isinstance(sizes, tuple) and sizes, f"codebook_sizes is {sizes!r}; it must be a tuple, one size per level"
    named = {f"codebook_sizes[{level}]": size for level, size in enumerate(sizes)}
    for name, value in (named | {"codebook_dim": embedding.codebook_dim}).items():
        assert type(value) is int and value >= 1, f"{name} is {value!r}; it must be an int of at least 1"


def check_the_embedding_is_built_from_its_config(tokenizer: VQTokenizer) -> None:
    """The embedding that ``embedding.config`` builds, with the same tables, gives the same codes: models keep it."""
    embedding = tokenizer.embedding
    try:
        with without_values():
            again = embedding.config.build()
        again.load_state_dict(embedding.state_dict(), assign=True)  # without a second copy of its tables
    except Exception as error:
        said = f"embedding.config does not build it again: {type(error).__name__}: {error}"
        raise AssertionError(f"{said}; take a module of toklip_core.embeddings") from error
    for name in ("codebook_sizes", "codebook_dim", "is_local", "levels_are_residual"):
        got, wanted = getattr(again, name), getattr(embedding, name)
        assert got == wanted, f"embedding.{name} is {wanted!r}, and {got!r} in the embedding that its config builds"
    ids = next(_some_ids(tokenizer))[:100]
    same = torch.equal(again(ids), embedding(ids))
    assert same, "the embedding that embedding.config builds gives other codes"


def check_grid_takes_or_refuses_a_size(tokenizer: VQTokenizer) -> None:
    """``grid`` gives the grid (h, w) of a size, or refuses it by a ValueError that has the sizes it takes.

    ``encode`` refuses the same sizes as ``grid``.
    """
    side = _side(tokenizer)
    for height, width in ((side + 1, 2 * side + 1), (side, 2 * side + 1), (side - 1, side)):
        try:
            tokenizer.grid(height, width)
            continue
        except ValueError as error:
            numbers = set(re.findall(r"\d+", str(error))) - {str(height), str(width)}
        named = numbers or side in (height, width)
        assert named, f"grid refuses {height} x {width} without a word of the sizes that it takes; {_RAISE_SIZES}"
        pixels = torch.zeros(1, 3, height, width, device=_device(tokenizer))
        try:
            tokenizer.encode(pixels)
        except ValueError:
            continue
        except Exception as error:
            said = f"encode fails on {height} x {width} pixels, which grid refuses, with {type(error).__name__}"
            raise AssertionError(f"{said}; call self.grid(height, width) first") from error
        raise AssertionError(
            f"encode gives ids of {height} x {width} pixels, which grid refuses; call self.grid(height, width) first"
        )


def check_the_description_fits(tokenizer: VQTokenizer) -> None:
    """A registered tokenizer has the codebook sizes, the grid and the sizes of pictures that its spec declares."""
    spec = registry().tokenizers.get(tokenizer.name) if isinstance(tokenizer, Tokenizer) else None
    if spec is None:
        return
    sizes = tokenizer.embedding.codebook_sizes
    assert spec.codebook_sizes in ((), sizes), f"the spec has codebook_sizes {spec.codebook_sizes}, and it has {sizes}"
    if spec.grid is not None:
        side = spec.image_size
        assert _takes(tokenizer, side, side), (
            f"the spec has pictures of {side} x {side}, which grid refuses; commands make pictures square"
        )
        grid = tokenizer.grid(side, side)
        assert spec.grid == grid, f"the spec has the grid {spec.grid} of {spec.image_size} px, and grid gives {grid}"
        fixed = not _takes(tokenizer, 2 * spec.image_size, 2 * spec.image_size)
        assert spec.fixed_size == fixed, (
            f"the spec has fixed_size {spec.fixed_size}, and grid {'refuses' if fixed else 'takes'} "
            f"{2 * spec.image_size} x {2 * spec.image_size}"
        )


def check_nothing_is_trainable(tokenizer: VQTokenizer) -> None:
    """No parameter requires a gradient: a tokenizer that drifts makes every stored id worthless."""
    trainable = [name for name, weight in _module(tokenizer).named_parameters() if weight.requires_grad]
    assert not trainable, f"{_some(trainable)} can be trained; call requires_grad_(False) in the constructor"


def check_encode_gives_a_grid_of_ids(tokenizer: VQTokenizer) -> None:
    """``encode`` maps (B, 3, H, W) to ids (B, h, w, Q), int64, in [0, K_q), on the device of the pixels."""
    pixels = _pixels(tokenizer, batch=2, height=2, width=3)
    ids = _encode(tokenizer, pixels)
    assert ids.device == pixels.device, f"the ids are on {ids.device}, the pixels on {pixels.device}"


def check_any_picture_shape_works(tokenizer: VQTokenizer) -> None:
    """``encode`` and ``decode`` take every size that ``grid`` takes, tall and wide, not only square ones."""
    for height, width in ((3, 2), (2, 4)):
        pixels = _pixels(tokenizer, batch=1, height=height, width=width)
        _decode(tokenizer, _encode(tokenizer, pixels), pixels)


def check_plain_pictures_have_ids(tokenizer: VQTokenizer) -> None:
    """A black, a grey and a white picture have ids in [0, K_q) like any other."""
    plain = torch.tensor([-1.0, 0.0, 1.0], device=_device(tokenizer)).view(3, 1, 1, 1)
    _encode(tokenizer, plain.expand(3, 3, *_size(tokenizer, 2, 1)))


def check_equal_pictures_have_equal_ids(tokenizer: VQTokenizer) -> None:
    """``encode`` and ``decode`` are functions: equal pixels give equal ids, also as a view of a larger picture."""
    pixels = _pixels(tokenizer, batch=1, height=2, width=3)
    ids = _encode(tokenizer, pixels)
    assert torch.equal(_encode(tokenizer, pixels), ids), "encode gives other ids when called again on the same pixels"
    larger = torch.zeros(1, 3, pixels.shape[2] + 1, pixels.shape[3] + 1, device=pixels.device)
    larger[:, :, 1:, 1:] = pixels
    moved = _encode(tokenizer, larger[:, :, 1:, 1:])
    assert torch.equal(moved, ids), "encode gives other ids when the same pixels are a view of a larger picture"
    decoded = _decode(tokenizer, ids, pixels)
    again = _decode(tokenizer, ids, pixels)
    assert torch.equal(again, decoded), "decode gives other pixels when called again on the same ids"


def check_the_rest_of_the_batch_keeps_ids(tokenizer: VQTokenizer) -> None:
    """The ids of a picture do not depend on the pictures beside it, nor on how many there are.

    A copy on the CPU is looked at: on a GPU batches of other sizes may be rounded otherwise.
    """
    on_cpu: VQTokenizer = copy.deepcopy(tokenizer)
    _module(on_cpu).to("cpu")
    pixels = _pixels(on_cpu, batch=3, height=2, width=3)
    expected = _encode(on_cpu, pixels)
    for index in range(3):
        alone = _encode(on_cpu, pixels[index : index + 1])
        _same_ids(alone, expected[index : index + 1], "in a batch of 3 and alone")


def check_autocast_keeps_ids(tokenizer: VQTokenizer) -> None:
    """Autocast does not reach ``encode`` and ``embedding``: a search in bfloat16 would give other ids."""
    pixels = _pixels(tokenizer, batch=2, height=4, width=6)
    ids = _encode(tokenizer, pixels)
    codes = _embed(tokenizer, ids)
    with torch.autocast(pixels.device.type, dtype=torch.bfloat16):
        _same_ids(_encode(tokenizer, pixels), ids, "with and without bfloat16 autocast")
        cast = _embed(tokenizer, ids, " under autocast")
    assert torch.equal(cast, codes), "the embedding gives other codes under bfloat16 autocast"


def check_pixels_that_are_not_numbers_are_refused(tokenizer: VQTokenizer) -> None:
    """``encode`` refuses pixels that are NaN, infinite or integers, by a ValueError; ids of them mean nothing.

    ``toklip_core.pictures.refuse_pixels(pixels)`` at the start of ``encode`` does it.
    """
    pixels = _pixels(tokenizer, batch=2, height=2, width=3)
    wrong = {f"pixels with {value} in them": pixels.clone() for value in ("nan", "inf", "-inf")}
    for what, copy_ in wrong.items():
        copy_[1, 2, -1, -1] = float(what.split()[2])
    wrong["8-bit values, which are not pixels in [-1, 1]"] = ((pixels + 1) * 127.5).round().to(torch.uint8)
    for what, bad in wrong.items():
        try:
            tokenizer.encode(bad)
        except ValueError:
            continue
        except Exception as error:
            raise AssertionError(f"encode fails on {what} with {type(error).__name__}; {_REFUSE_PIXELS}") from error
        raise AssertionError(f"encode gives ids for {what}; {_REFUSE_PIXELS}")


def check_codes_depend_on_their_ids_alone(tokenizer: VQTokenizer) -> None:
    """``embedding`` maps ids (..., Q) to codes (..., C), finite: a function of each position alone, bit for bit.

    Every code of a table of up to 2^20 rows is compared; of larger ones, and of several levels, a sample.
    """
    generator = torch.Generator().manual_seed(0)
    for block in _some_ids(tokenizer):
        rows = _embed(tokenizer, block)
        assert rows.isfinite().all(), f"the embedding gives codes that are not finite, of ids like {block[0].tolist()}"
        some = torch.randint(len(block), (2, 3, 5), generator=generator).to(block.device)
        _same_rows(_embed(tokenizer, block[some]), rows[some], "of a grid of ids")
        _same_rows(_embed(tokenizer, block[-1]), rows[-1], "of a single position")
        _same_rows(_embed(tokenizer, block.flip(0)[::2]), rows.flip(0)[::2], "of ids in another order")


def check_ids_are_exact(tokenizer: VQTokenizer) -> None:
    """Ids above 2^24 are computed in int64, as float32 holds 24 bits; different ids of bits or scalars differ in code.
    """
    embedding = tokenizer.embedding
    ids = _encode(tokenizer, _pixels(tokenizer, batch=4, height=4, width=6)).flatten(0, 2)
    for level, size in enumerate(embedding.codebook_sizes):
        large = torch.unique(ids[:, level][ids[:, level] > 2**24])
        assert len(large) < 16 or not torch.equal(large.float().double(), large.double()), (
            f"all of {len(large)} ids above 2^24 {_of_level(embedding, level)}are numbers that float32 holds, so they "
            f"are rounded; compute ids below {size} in int64, such as by BitEmbedding.ids_of"
        )
    if embedding.config.root.kind in ("bits", "scalar"):
        drawn = next(_some_ids(tokenizer))[:1000]
        codes = _embed(tokenizer, drawn)
        neighbours = (drawn + 1) % torch.tensor(embedding.codebook_sizes, device=drawn.device)
        alike = int((_embed(tokenizer, neighbours) == codes).all(-1).sum())
        assert not alike, f"{alike} of {len(drawn)} ids have the code of the next id; embed ids without float32"
        if isinstance(embedding, BitEmbedding):
            _same_ids(embedding.ids_of(codes > 0), drawn, "when embedding.ids_of reads them off their codes")


def check_embedding_takes_little_memory(tokenizer: VQTokenizer) -> None:
    """Embedding the ids of one picture makes no tensor above 50 MiB but the codes: no table of all codes."""
    ids = _encode(tokenizer, _pixels(tokenizer, batch=1, height=2, width=3))
    with _LargestTensor() as made:
        codes = tokenizer.embedding.code_map(ids)
    assert made.largest <= max(_MOST_BYTES, codes.numel() * 4), (
        f"embedding the ids of one picture makes a tensor of {made.largest // 2**20} MiB; compute codes from ids, or "
        "keep one table, see toklip_core.embeddings"
    )


def check_code_maps_have_their_grid(tokenizer: VQTokenizer) -> None:
    """``embedding.code_map`` gives (B, h', w', C) with the grid of ``map_grid``, the same alone and in a batch.

    An embedding that ``is_local`` gives the codes of each position.
    """
    embedding = tokenizer.embedding
    ids = _encode(tokenizer, _pixels(tokenizer, batch=3, height=2, width=3))
    maps = _call(partial(embedding.code_map, ids), f"code_map fails on ids {tuple(ids.shape)}")
    wanted = (3, *embedding.map_grid((ids.shape[1], ids.shape[2])), embedding.codebook_dim)
    assert tuple(maps.shape) == wanted, f"code_map gives {tuple(maps.shape)}; by map_grid they must be {wanted}"
    same = torch.equal(torch.cat([embedding.code_map(ids[i : i + 1]) for i in range(3)]), maps)
    assert same, "code_map gives other codes in a batch of 3 and alone"
    if embedding.is_local:
        same = torch.equal(maps, embedding(ids))
        assert same, "code_map gives other codes than the embedding; set is_local = False if positions are mixed"


def check_decode_gives_pixels(tokenizer: VQTokenizer) -> None:
    """``decode`` maps ids (B, h, w, Q) to float32 pixels (B, 3, H, W), finite, near [-1, 1], whatever the ids are."""
    given = _pixels(tokenizer, batch=2, height=2, width=3)
    encoded = _encode(tokenizer, given)
    drawn = _drawn_ids(tokenizer, encoded.shape[:3])
    drawn[0, 0, 0], drawn[1, -1, -1] = 0, torch.tensor(tokenizer.embedding.codebook_sizes) - 1
    for ids in (drawn.to(encoded.device), encoded):
        pixels = _decode(tokenizer, ids, given)
        largest = pixels.abs().max().item()
        assert largest <= _LARGEST_PIXEL, f"decode gives pixels up to {largest:.0f}; they must lie near [-1, 1]"


def check_no_graph_is_built(tokenizer: VQTokenizer) -> None:
    """No gradient flows through a tokenizer, and what it returns can be used in training."""
    pixels = _pixels(tokenizer, batch=1, height=2, width=3).requires_grad_()
    saved: list[torch.Size] = []

    def remember(tensor: Tensor) -> Tensor:
        saved.append(tensor.shape)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(remember, lambda tensor: tensor):
        ids = _encode(tokenizer, pixels)
        assert not saved, f"encode keeps {len(saved)} tensors for a backward pass; put @torch.no_grad() on it"
        results = {"encode": ids, "embedding": _embed(tokenizer, ids), "decode": _decode(tokenizer, ids, pixels)}
    for name, result in results.items():
        assert not result.requires_grad, f"the result of {name} requires a gradient; put @torch.no_grad() on {name}"
        assert not result.is_inference(), (
            f"{name} returns an inference tensor, which no training step can use; "
            "take torch.no_grad() instead of torch.inference_mode()"
        )


def check_train_has_no_effect(tokenizer: VQTokenizer) -> None:
    """``train()`` changes nothing: no module of the tokenizer enters training mode, ids and pixels stay the same."""
    pixels = _pixels(tokenizer, batch=1, height=2, width=3)
    ids = _encode(tokenizer, pixels)
    decoded = _decode(tokenizer, ids, pixels)
    module = _module(tokenizer)
    before = _checksums(module)
    try:
        module.train()
        _same_ids(_encode(tokenizer, pixels), ids, "before and after train()")
        assert torch.equal(_decode(tokenizer, ids, pixels), decoded), "decode gives other pixels after train()"
        _same_tensors(_checksums(module), before, "after train()")
        training = [name or type(module).__name__ for name, part in module.named_modules() if part.training]
        assert not training, (
            f"train() puts {_some(training)} in training mode; "
            "define train(self, mode=True) as `return super().train(False)`, and call it in the constructor"
        )
    finally:
        module.eval()


def check_use_changes_no_tensor(tokenizer: VQTokenizer) -> None:
    """``encode``, ``embedding`` and ``decode`` change no parameter, no buffer and no input."""
    module = _module(tokenizer)
    before = _checksums(module)
    pixels = _pixels(tokenizer, batch=1, height=2, width=3)
    kept = pixels.clone()
    ids = _encode(tokenizer, pixels)
    assert torch.equal(pixels, kept), "encode writes into the pixels that it is given"
    _same_tensors(_checksums(module), before, "by encode")
    kept = ids.clone()
    _embed(tokenizer, ids).add_(1)
    _same_tensors(_checksums(module), before, "by the embedding, or by writing into what it returned")
    _decode(tokenizer, ids, pixels)
    _same_tensors(_checksums(module), before, "by decode")
    assert torch.equal(ids, kept), "embedding or decode writes into the ids that it is given"


def check_half_precision_keeps_the_interface(tokenizer: VQTokenizer) -> None:
    """After ``to(torch.bfloat16)`` float32 pixels have ids, codes are the same, and ``decode`` gives float32 pixels.

    This is how ``toklip encode`` is told to be fast; the ids may then be others.
    """
    half: VQTokenizer = copy.deepcopy(tokenizer)
    _module(half).to(torch.bfloat16)
    pixels = _pixels(tokenizer, batch=1, height=2, width=3)
    ids = _encode(half, pixels, " after to(torch.bfloat16)")
    same = torch.equal(_embed(half, ids, " after to(torch.bfloat16)"), _embed(tokenizer, ids))
    assert same, "the embedding gives other codes after to(torch.bfloat16); take a module of toklip_core.embeddings"
    _decode(half, ids, pixels, " after to(torch.bfloat16)")


class _LargestTensor(TorchFunctionMode):
    """Remembers the bytes of the largest memory that a call of torch made."""

    def __init__(self) -> None:
        super().__init__()
        self.largest = 0

    def __torch_function__(
        self, function: Callable[..., object], types: object, args: tuple[object, ...] = (), kwargs: object = None
    ) -> object:
        result = function(*args, **(kwargs if isinstance(kwargs, dict) else {}))
        given = {tensor.untyped_storage().data_ptr() for tensor in args if isinstance(tensor, Tensor)}
        for tensor in result if isinstance(result, tuple | list) else (result,):
            if isinstance(tensor, Tensor) and tensor.untyped_storage().data_ptr() not in given:
                self.largest = max(self.largest, tensor.untyped_storage().nbytes())
        return result


def _module(tokenizer: VQTokenizer) -> nn.Module:
    if isinstance(tokenizer, Tokenizer):
        return tokenizer.module
    assert isinstance(tokenizer, nn.Module), f"{type(tokenizer).__name__} is not a torch.nn.Module"
    return tokenizer


def _device(tokenizer: VQTokenizer) -> torch.device:
    module = _module(tokenizer)
    tensors = (*module.parameters(), *module.buffers())
    return tensors[0].device if tensors else torch.device("cpu")


def _takes(tokenizer: VQTokenizer, height: int, width: int) -> bool:
    """Return whether ``grid`` takes a size, with what it gives checked."""
    try:
        grid = tokenizer.grid(height, width)
    except ValueError:
        return False
    except Exception as error:
        said = f"grid fails on {height} x {width} with {type(error).__name__}: {error}"
        raise AssertionError(f"{said}; {_RAISE_SIZES}") from error
    counts = isinstance(grid, tuple) and len(grid) == 2 and all(type(n) is int and n >= 1 for n in grid)
    assert counts, f"grid gives {grid!r} for {height} x {width}; it must be two ints (h, w) of at least 1"
    return True


def _side(tokenizer: VQTokenizer) -> int:
    """Return the side of the smallest square that the tokenizer takes."""
    side = next((side for side in range(1, _LARGEST_SIDE + 1) if _takes(tokenizer, side, side)), 0)
    assert side, f"grid takes no square of 1 to {_LARGEST_SIDE} pixels; the toolkit makes pictures square"
    return side


def _size(tokenizer: VQTokenizer, height: int, width: int) -> tuple[int, int]:
    """Return the size of a picture: height x width times the smallest square, or that, if no other size is taken."""
    side = _side(tokenizer)
    wanted = (height * side, width * side)
    return wanted if _takes(tokenizer, *wanted) else (side, side)


def _pixels(tokenizer: VQTokenizer, *, batch: int, height: int, width: int) -> Tensor:
    """Return pictures of :func:`_size` in [-1, 1], of height x width coloured cells and noise."""
    size = _size(tokenizer, height, width)
    generator = torch.Generator().manual_seed(0)
    cells = torch.rand(batch, 3, height, width, generator=generator) * 2 - 1
    noise = torch.rand(batch, 3, *size, generator=generator) * 2 - 1
    colours = nn.functional.interpolate(cells, size=size, mode="nearest")
    return (0.6 * colours + 0.4 * noise).to(_device(tokenizer))


def _drawn_ids(tokenizer: VQTokenizer, shape: tuple[int, ...]) -> Tensor:
    """Return random ids (*shape, Q), the same in each run."""
    generator = torch.Generator().manual_seed(0)
    sizes = tokenizer.embedding.codebook_sizes
    return torch.stack([torch.randint(size, shape, generator=generator) for size in sizes], dim=-1)


def _some_ids(tokenizer: VQTokenizer) -> Iterator[Tensor]:
    """Yield blocks of ids (N, Q): all of a codebook, or a sample that begins with the first and the last id."""
    sizes = tokenizer.embedding.codebook_sizes
    if len(sizes) == 1 and sizes[0] <= _LARGEST_LISTED:
        ids = torch.arange(sizes[0])[:, None]
    else:
        ids = _drawn_ids(tokenizer, (_DRAWN,))
        ids[0], ids[1] = 0, torch.tensor(sizes) - 1
    for start in range(0, len(ids), _CODES_AT_ONCE):
        yield ids[start : start + _CODES_AT_ONCE].to(_device(tokenizer))


def _of_level(embedding: CodeEmbedding, level: int) -> str:
    return f"of level {level} " if len(embedding.codebook_sizes) > 1 else ""


def _encode(tokenizer: VQTokenizer, pixels: Tensor, when: str = "") -> Tensor:
    """Return ids, with their shape, dtype and range checked."""
    ids = _call(partial(tokenizer.encode, pixels), f"encode{when} fails on pixels {tuple(pixels.shape)}")
    sizes = tokenizer.embedding.codebook_sizes
    grid, levels = tokenizer.grid(pixels.shape[2], pixels.shape[3]), len(sizes)
    wanted = (pixels.shape[0], *grid, levels)
    assert tuple(ids.shape) == wanted, (
        f"encode{when} gives ids {tuple(ids.shape)} for pixels {tuple(pixels.shape)}; "
        f"with a grid of {grid} and {levels} level{'s' * (levels > 1)} they must be {wanted}"
    )
    assert ids.dtype == torch.int64, f"encode{when} gives {ids.dtype}; ids are torch.int64"
    for level, size in enumerate(sizes):
        low, high = int(ids[..., level].min()), int(ids[..., level].max())
        assert low >= 0 and high < size, (
            f"encode{when} gives ids {_of_level(tokenizer.embedding, level)}from {low} to {high}; with a codebook of "
            f"{size} they must lie in 0..{size - 1}"
        )
    return ids


def _embed(tokenizer: VQTokenizer, ids: Tensor, when: str = "") -> Tensor:
    """Return codes, with their shape and dtype checked."""
    codes = _call(partial(tokenizer.embedding, ids), f"the embedding fails on ids {tuple(ids.shape)}")
    wanted = (*ids.shape[:-1], tokenizer.embedding.codebook_dim)
    assert tuple(codes.shape) == wanted, (
        f"the embedding gives codes {tuple(codes.shape)} for ids {tuple(ids.shape)}; "
        f"with codebook_dim {tokenizer.embedding.codebook_dim} they must be {wanted}"
    )
    assert codes.dtype == torch.float32, f"the embedding gives {codes.dtype}{when}; codes are torch.float32"
    return codes


def _decode(tokenizer: VQTokenizer, ids: Tensor, encoded: Tensor, when: str = "") -> Tensor:
    """Return pixels of the size of the encoded ones, with their shape, dtype and finiteness checked."""
    pixels = _call(partial(tokenizer.decode, ids), f"decode{when} fails on ids {tuple(ids.shape)}")
    wanted = (ids.shape[0], 3, *encoded.shape[2:])
    assert tuple(pixels.shape) == wanted, (
        f"decode{when} gives pixels {tuple(pixels.shape)} for ids {tuple(ids.shape)}; by grid they must be {wanted}"
    )
    assert pixels.dtype == torch.float32, f"decode{when} gives {pixels.dtype}; pixels are torch.float32"
    broken = int((~pixels.isfinite()).sum())
    assert not broken, f"decode{when} gives {broken} pixel values that are NaN or infinite"
    return pixels


def _call(call: Callable[[], object], complaint: str) -> Tensor:
    """Return the result of a call; an exception becomes an AssertionError with the complaint and the cause."""
    try:
        result = call()
    except Exception as error:
        raise AssertionError(f"{complaint}: {type(error).__name__}: {error}") from error
    assert isinstance(result, Tensor), f"{complaint}: it returns a {type(result).__name__}, not a tensor"
    return result


def _same_ids(got: Tensor, expected: Tensor, when: str) -> None:
    changed = int((got != expected).sum())
    assert not changed, f"{changed} of {expected.numel()} ids differ {when}"


def _same_rows(got: Tensor, expected: Tensor, which: str) -> None:
    assert torch.equal(got, expected), f"the codes {which} are not those of the same ids alone, bit for bit"


def _same_tensors(got: dict[str, int], expected: dict[str, int], when: str) -> None:
    changed = sorted(name for name in got.keys() | expected.keys() if got.get(name) != expected.get(name))
    assert not changed, f"{_some(changed)} of the tokenizer is changed {when}"


def _checksums(module: nn.Module) -> dict[str, int]:
    """Return a checksum of every tensor, including non-persistent buffers; copies would double the memory."""
    tensors = (*module.named_parameters(), *module.named_buffers())
    return {name: zlib.crc32(_bytes(tensor)) for name, tensor in tensors}


def _bytes(tensor: Tensor) -> memoryview:
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data


def _some(names: list[str]) -> str:
    shown = ", ".join(repr(name) for name in names[:3])
    return f"{shown} and {len(names) - 3} more" if len(names) > 3 else shown
