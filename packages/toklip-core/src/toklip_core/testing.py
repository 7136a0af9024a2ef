"""The contract kit: the laws of VQ tokenizers, as checks that any plugin can run on itself.

A plugin author only writes::

    @pytest.mark.parametrize("check", tokenizer_checks(), ids=lambda check: check.__name__)
    def test_contract(check):
        check(load_tokenizer("toy"))

A check takes a loaded tokenizer, or the module itself, returns nothing, and raises AssertionError with a sentence that
names the broken law. Its docstring is the law. Pictures are a few cells wide, so that even a codebook of 262144 rows
takes only seconds, and they are on the device of the tokenizer. The tokenizer is not changed.

Shape letters: B batch, f downsampling factor, h and w the grid, K codebook size, C codebook dim.
"""

from __future__ import annotations

import copy
import zlib
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from toklip_core.plugins import VQTokenizer
from toklip_core.tokenizer import Tokenizer

#: A check: a function of a tokenizer that raises AssertionError if a law is broken.
Check = Callable[[VQTokenizer], None]

#: Number of codebook rows that are compared at a time, to avoid a second copy of 262144 x 256 floats.
_ROWS_AT_ONCE = 16384

#: Limit of "near [-1, 1]": decoders overshoot, with random weights a few times, but one that returns 0..255 is wrong.
_LARGEST_PIXEL = 16.0

_REFUSE_PIXELS = "raise ValueError: call toklip_core.pictures.refuse_pixels(pixels) first"


def tokenizer_checks() -> list[Check]:
    """Return the checks of all laws, functions of a tokenizer with descriptive names.

    >>> from toklip_core import load_tokenizer
    >>> tokenizer = load_tokenizer("llamagen-tiny")
    >>> for check in tokenizer_checks()[:2]:
    ...     check(tokenizer)
    """
    return [
        check_is_a_module,
        check_sizes_are_counts,
        check_nothing_is_trainable,
        check_encode_gives_a_grid_of_ids,
        check_any_picture_shape_works,
        check_plain_pictures_have_ids,
        check_equal_pictures_have_equal_ids,
        check_the_rest_of_the_batch_keeps_ids,
        check_autocast_keeps_ids,
        check_pixels_that_are_no_numbers_are_refused,
        check_embed_is_a_lookup,
        check_decode_gives_pixels,
        check_no_graph_is_built,
        check_train_has_no_effect,
        check_use_changes_no_tensor,
        check_half_precision_keeps_the_interface,
    ]


def check_is_a_module(tokenizer: VQTokenizer) -> None:
    """A tokenizer is a torch.nn.Module, so that ``to()`` and ``state_dict()`` work, and has all of VQTokenizer."""
    members = ("codebook_size", "codebook_dim", "downsample_factor", "encode", "embed", "decode")
    module = _module(tokenizer)
    missing = [name for name in members if not hasattr(module, name)]
    assert not missing, f"{type(module).__name__} lacks {', '.join(missing)} of toklip_core.VQTokenizer"


def check_sizes_are_counts(tokenizer: VQTokenizer) -> None:
    """``codebook_size``, ``codebook_dim`` and ``downsample_factor`` are ints of at least 1."""
    for name in ("codebook_size", "codebook_dim", "downsample_factor"):
        value = getattr(tokenizer, name)
        assert type(value) is int and value >= 1, f"{name} is {value!r}; it must be an int of at least 1"


def check_nothing_is_trainable(tokenizer: VQTokenizer) -> None:
    """No parameter requires a gradient: a tokenizer that drifts makes every stored id worthless."""
    trainable = [name for name, weight in _module(tokenizer).named_parameters() if weight.requires_grad]
    assert not trainable, f"{_some(trainable)} can be trained; call requires_grad_(False) in the constructor"


def check_encode_gives_a_grid_of_ids(tokenizer: VQTokenizer) -> None:
    """``encode`` maps (B, 3, f h, f w) to ids (B, h, w), int64, in [0, K), on the device of the pixels."""
    pixels = _pixels(tokenizer, batch=2, height=2, width=3)
    ids = _encode(tokenizer, pixels)
    assert ids.device == pixels.device, f"the ids are on {ids.device}, the pixels on {pixels.device}"


def check_any_picture_shape_works(tokenizer: VQTokenizer) -> None:
    """``encode`` and ``decode`` take every grid, tall and wide, not only square ones."""
    for height, width in ((3, 2), (2, 4)):
        ids = _encode(tokenizer, _pixels(tokenizer, batch=1, height=height, width=width))
        _decode(tokenizer, ids)


def check_plain_pictures_have_ids(tokenizer: VQTokenizer) -> None:
    """A black, a grey and a white picture have ids in [0, K) like any other."""
    side = tokenizer.downsample_factor
    plain = torch.tensor([-1.0, 0.0, 1.0], device=_device(tokenizer)).view(3, 1, 1, 1)
    _encode(tokenizer, plain.expand(3, 3, 2 * side, side))


def check_equal_pictures_have_equal_ids(tokenizer: VQTokenizer) -> None:
    """``encode`` and ``decode`` are functions: equal pixels give equal ids, also as a view of a larger picture."""
    pixels = _pixels(tokenizer, batch=1, height=2, width=3)
    ids = _encode(tokenizer, pixels)
    assert torch.equal(_encode(tokenizer, pixels), ids), "encode gives other ids when called again on the same pixels"
    larger = torch.zeros(1, 3, pixels.shape[2] + 1, pixels.shape[3] + 1, device=pixels.device)
    larger[:, :, 1:, 1:] = pixels
    moved = _encode(tokenizer, larger[:, :, 1:, 1:])
    assert torch.equal(moved, ids), "encode gives other ids when the same pixels are a view of a larger picture"
    again = _decode(tokenizer, ids)
    assert torch.equal(_decode(tokenizer, ids), again), "decode gives other pixels when called again on the same ids"


def check_the_rest_of_the_batch_keeps_ids(tokenizer: VQTokenizer) -> None:
    """The ids of a picture do not depend on the pictures beside it, nor on how many there are."""
    pixels = _pixels(tokenizer, batch=3, height=2, width=3)
    expected = _encode(tokenizer, pixels)
    for index in range(3):
        alone = _encode(tokenizer, pixels[index : index + 1])
        _same_ids(alone, expected[index : index + 1], "in a batch of 3 and alone")
    with_white = torch.cat([torch.ones_like(pixels[:2]), pixels[2:]])
    _same_ids(_encode(tokenizer, with_white)[2:], expected[2:], "when the other pictures of the batch are white")


def check_autocast_keeps_ids(tokenizer: VQTokenizer) -> None:
    """Autocast does not reach ``encode`` and ``embed``: in bfloat16 some 4 % of the ids would be others."""
    pixels = _pixels(tokenizer, batch=2, height=4, width=6)
    ids = _encode(tokenizer, pixels)
    codes = _embed(tokenizer, ids)
    with torch.autocast(pixels.device.type, dtype=torch.bfloat16):
        _same_ids(_encode(tokenizer, pixels), ids, "with and without bfloat16 autocast")
        cast = _embed(tokenizer, ids)
    assert cast.dtype == codes.dtype, f"embed gives {cast.dtype} under autocast and {codes.dtype} without"
    assert torch.equal(cast, codes), "embed gives other codes under bfloat16 autocast"


def check_pixels_that_are_no_numbers_are_refused(tokenizer: VQTokenizer) -> None:
    """``encode`` refuses pixels that are NaN, infinite or integers, by a ValueError; ids of them mean nothing.

    ``toklip_core.pictures.refuse_pixels(pixels)`` at the start of ``encode`` does it.
    """
    pixels = _pixels(tokenizer, batch=2, height=2, width=3)
    wrong = {f"pixels with {value} in them": pixels.clone() for value in ("nan", "inf", "-inf")}
    for what, copy_ in wrong.items():
        copy_[1, 2, -1, -1] = float(what.split()[2])
    wrong["8-bit levels, which are no pixels in [-1, 1]"] = ((pixels + 1) * 127.5).round().to(torch.uint8)
    for what, bad in wrong.items():
        try:
            tokenizer.encode(bad)
        except ValueError:
            continue
        except Exception as error:
            raise AssertionError(f"encode fails on {what} with {type(error).__name__}; {_REFUSE_PIXELS}") from error
        raise AssertionError(f"encode gives ids for {what}; {_REFUSE_PIXELS}")


def check_embed_is_a_lookup(tokenizer: VQTokenizer) -> None:
    """``embed`` maps ids (...) to codes (..., C), finite, and equals ``embed(arange(K))[ids]`` bit for bit."""
    device = _device(tokenizer)
    generator = torch.Generator().manual_seed(0)
    for start in range(0, tokenizer.codebook_size, _ROWS_AT_ONCE):
        block = torch.arange(start, min(start + _ROWS_AT_ONCE, tokenizer.codebook_size), device=device)
        rows = _embed(tokenizer, block)
        assert rows.isfinite().all(), f"embed gives rows that are not finite among ids {block[0]}..{block[-1]}"
        some = torch.randint(len(block), (2, 3, 5), generator=generator).to(device)
        _same_rows(_embed(tokenizer, block[some]), rows[some], "of a grid of ids")
        _same_rows(_embed(tokenizer, block[-1]), rows[-1], "of a single id")
        _same_rows(_embed(tokenizer, block.flip(0)[::2]), rows.flip(0)[::2], "of ids in another order")


def check_decode_gives_pixels(tokenizer: VQTokenizer) -> None:
    """``decode`` maps ids (B, h, w) to float32 pixels (B, 3, f h, f w), finite, near [-1, 1], whatever the ids are."""
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randint(tokenizer.codebook_size, (2, 2, 3), generator=generator)
    drawn[0, 0, 0], drawn[1, 1, 2] = 0, tokenizer.codebook_size - 1
    for ids in (drawn.to(_device(tokenizer)), _encode(tokenizer, _pixels(tokenizer, batch=1, height=2, width=3))):
        pixels = _decode(tokenizer, ids)
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
        results = {"encode": ids, "embed": _embed(tokenizer, ids), "decode": _decode(tokenizer, ids)}
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
    decoded = _decode(tokenizer, ids)
    module = _module(tokenizer)
    before = _checksums(module)
    try:
        module.train()
        _same_ids(_encode(tokenizer, pixels), ids, "before and after train()")
        assert torch.equal(_decode(tokenizer, ids), decoded), "decode gives other pixels after train()"
        _same_tensors(_checksums(module), before, "after train()")
        training = [name or type(module).__name__ for name, part in module.named_modules() if part.training]
        assert not training, (
            f"train() puts {_some(training)} in training mode; "
            "define train(self, mode=True) as `return super().train(False)`, and call it in the constructor"
        )
    finally:
        module.eval()


def check_use_changes_no_tensor(tokenizer: VQTokenizer) -> None:
    """``encode``, ``embed`` and ``decode`` change no parameter, no buffer and no input."""
    module = _module(tokenizer)
    before = _checksums(module)
    pixels = _pixels(tokenizer, batch=1, height=2, width=3)
    kept = pixels.clone()
    ids = _encode(tokenizer, pixels)
    assert torch.equal(pixels, kept), "encode writes into the pixels that it is given"
    _same_tensors(_checksums(module), before, "by encode")
    kept = ids.clone()
    _embed(tokenizer, ids).add_(1)
    _same_tensors(_checksums(module), before, "by embed, or by writing into what it returned")
    _decode(tokenizer, ids)
    _same_tensors(_checksums(module), before, "by decode")
    assert torch.equal(ids, kept), "embed or decode writes into the ids that it is given"


def check_half_precision_keeps_the_interface(tokenizer: VQTokenizer) -> None:
    """After ``to(torch.bfloat16)`` the same float32 pixels have ids, and ``decode`` still gives float32 pixels.

    This is how ``toklip encode`` is told to be fast; the ids may then be others.
    """
    half: VQTokenizer = copy.deepcopy(tokenizer)
    _module(half).to(torch.bfloat16)
    ids = _encode(half, _pixels(tokenizer, batch=1, height=2, width=3), " after to(torch.bfloat16)")
    _embed(half, ids)
    _decode(half, ids, " after to(torch.bfloat16)")


def _module(tokenizer: VQTokenizer) -> nn.Module:
    if isinstance(tokenizer, Tokenizer):
        return tokenizer.module
    assert isinstance(tokenizer, nn.Module), f"{type(tokenizer).__name__} is not a torch.nn.Module"
    return tokenizer


def _device(tokenizer: VQTokenizer) -> torch.device:
    module = _module(tokenizer)
    tensors = (*module.parameters(), *module.buffers())
    return tensors[0].device if tensors else torch.device("cpu")


def _pixels(tokenizer: VQTokenizer, *, batch: int, height: int, width: int) -> Tensor:
    """Return pictures (batch, 3, f height, f width) in [-1, 1], with one colour per cell and noise."""
    factor = tokenizer.downsample_factor
    generator = torch.Generator().manual_seed(0)
    cells = torch.rand(batch, 3, height, width, generator=generator) * 2 - 1
    noise = torch.rand(batch, 3, height * factor, width * factor, generator=generator) * 2 - 1
    colours = cells.repeat_interleave(factor, dim=2).repeat_interleave(factor, dim=3)
    return (0.6 * colours + 0.4 * noise).to(_device(tokenizer))


def _encode(tokenizer: VQTokenizer, pixels: Tensor, when: str = "") -> Tensor:
    """Return ids, with their shape, dtype and range checked."""
    ids = _call(partial(tokenizer.encode, pixels), f"encode{when} fails on pixels {tuple(pixels.shape)}")
    factor = tokenizer.downsample_factor
    wanted = (pixels.shape[0], pixels.shape[2] // factor, pixels.shape[3] // factor)
    assert tuple(ids.shape) == wanted, (
        f"encode{when} gives ids {tuple(ids.shape)} for pixels {tuple(pixels.shape)}; "
        f"with downsample_factor {factor} they must be {wanted}"
    )
    assert ids.dtype == torch.int64, f"encode{when} gives {ids.dtype}; ids are torch.int64"
    low, high = int(ids.min()), int(ids.max())
    assert low >= 0 and high < tokenizer.codebook_size, (
        f"encode{when} gives ids from {low} to {high}; with codebook_size {tokenizer.codebook_size} "
        f"they must lie in 0..{tokenizer.codebook_size - 1}"
    )
    return ids


def _embed(tokenizer: VQTokenizer, ids: Tensor) -> Tensor:
    """Return codes, with their shape and dtype checked."""
    codes = _call(partial(tokenizer.embed, ids), f"embed fails on ids {tuple(ids.shape)}")
    wanted = (*ids.shape, tokenizer.codebook_dim)
    assert tuple(codes.shape) == wanted, (
        f"embed gives codes {tuple(codes.shape)} for ids {tuple(ids.shape)}; "
        f"with codebook_dim {tokenizer.codebook_dim} they must be {wanted}"
    )
    assert codes.is_floating_point(), f"embed gives {codes.dtype}; codes are floating point"
    return codes


def _decode(tokenizer: VQTokenizer, ids: Tensor, when: str = "") -> Tensor:
    """Return pixels, with their shape, dtype and finiteness checked."""
    pixels = _call(partial(tokenizer.decode, ids), f"decode{when} fails on ids {tuple(ids.shape)}")
    factor = tokenizer.downsample_factor
    wanted = (ids.shape[0], 3, ids.shape[1] * factor, ids.shape[2] * factor)
    assert tuple(pixels.shape) == wanted, (
        f"decode{when} gives pixels {tuple(pixels.shape)} for ids {tuple(ids.shape)}; "
        f"with downsample_factor {factor} they must be {wanted}"
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
    assert torch.equal(got, expected), f"the codes {which} are not the rows embed(arange(K))[ids], bit for bit"


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
