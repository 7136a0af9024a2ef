"""Linear layers by oneDNN: the same function, and a packed weight that nobody but the product meets."""

from __future__ import annotations

import copy
import pickle
import weakref
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest
import torch
from toklip_core.weights import weights_checksum
from toklip_vq.onednn import OneDNNLinear
from torch import nn


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_linear_layer_of_onednn_is_the_same_function(dtype, bias):
    torch.manual_seed(0)
    plain, x = nn.Linear(48, 20, bias=bias, dtype=dtype), torch.randn(2, 3, 48, dtype=dtype)
    quick = OneDNNLinear.of(plain)
    assert quick.weight is plain.weight
    torch.testing.assert_close(quick(x), plain(x))
    with torch.no_grad():  # where oneDNN is used
        torch.testing.assert_close(quick(x), plain(x))
        torch.testing.assert_close(quick(x.transpose(0, 1)), plain(x.transpose(0, 1)))
        torch.testing.assert_close(quick(x[:0]), plain(x[:0]))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(quick(x), plain(x))
    quick(x).sum().backward()
    torch.testing.assert_close(quick.weight.grad, x.sum((0, 1)).expand(20, 48))


def test_a_torch_without_the_operator_of_onednn_takes_its_own(monkeypatch):
    monkeypatch.setattr(torch.ops, "mkldnn", SimpleNamespace())
    plain, x = nn.Linear(48, 20), torch.randn(3, 48)
    with torch.no_grad():
        assert torch.equal(OneDNNLinear.of(plain)(x), plain(x))


def is_packed(layer):
    """Whether a layer holds its weight in oneDNN's order alone."""
    tensors = [*vars(layer)["_parameters"].values(), *vars(layer).values()]
    floats = [tensor for tensor in tensors if isinstance(tensor, torch.Tensor) and tensor.shape == (20, 48)]
    assert len(floats) == 1
    return floats[0].is_mkldnn


@pytest.fixture
def plain():
    torch.manual_seed(0)
    return nn.Linear(48, 20).requires_grad_(False)


@pytest.fixture
def packed(plain):
    """The same layer with its weight packed, by its first product."""
    layer = OneDNNLinear.of(copy.deepcopy(plain))
    weight = weakref.ref(layer.weight)
    assert not is_packed(layer)
    layer(torch.randn(2, 48))
    assert is_packed(layer) and weight() is None
    return layer


def test_a_packed_weight_gives_the_same_results_for_all_numbers_of_rows(plain, packed):
    unpacked = OneDNNLinear.of(plain, packs=False)
    pictures = torch.randn(4, 257, 48)
    for x in (pictures, pictures[:1], pictures[0, :16], pictures.transpose(0, 1)):
        assert torch.equal(packed(x), unpacked(x))
    assert torch.equal(packed(pictures)[:1], packed(pictures[:1]))
    torch.testing.assert_close(packed(pictures[0, 0]), plain(pictures[0, 0]))
    assert packed(pictures[:0]).shape == (0, 257, 20)
    assert is_packed(packed) and not is_packed(unpacked)


WAYS = {
    "attribute": lambda layer: layer.weight,
    "state_dict": lambda layer: layer.state_dict()["weight"],
    "parameters of a parent": lambda layer: next(nn.Sequential(layer).parameters()),
    "copy": lambda layer: copy.copy(layer).weight,
    "deepcopy": lambda layer: copy.deepcopy(layer).weight,
    "pickle": lambda layer: pickle.loads(pickle.dumps(layer)).weight,
    "cast there and back": lambda layer: nn.Sequential(layer).double().float()[0].weight,
    "another layer": lambda layer: OneDNNLinear.of(layer).weight,
}


@pytest.mark.parametrize("way", WAYS)
def test_whoever_asks_for_a_packed_weight_gets_the_plain_one(plain, packed, way):
    weight = WAYS[way](packed)
    assert not weight.is_mkldnn and weight.is_contiguous() and torch.equal(weight, plain.weight)
    assert list(packed.state_dict()) == ["weight", "bias"]
    assert weights_checksum(packed) == weights_checksum(plain)
    x = torch.randn(2, 48)
    torch.testing.assert_close(packed(x), plain(x))
    assert is_packed(packed)


def test_a_packed_layer_is_cast_and_loaded_like_any_other(plain, packed):
    half = copy.deepcopy(packed).to(torch.bfloat16)
    assert torch.equal(half.weight, plain.weight.bfloat16())
    x = torch.randn(2, 48)
    assert torch.equal(half(x.bfloat16()), copy.deepcopy(plain).bfloat16()(x.bfloat16()))
    packed.load_state_dict({name: 2 * tensor for name, tensor in plain.state_dict().items()})
    torch.testing.assert_close(packed(x), 2 * plain(x))
    packed.weight = nn.Parameter(3 * plain.weight, requires_grad=False)
    packed(x)
    assert torch.equal(packed.weight, 3 * plain.weight)


def test_gradients_take_the_plain_weight(packed):
    x = torch.randn(2, 48, requires_grad=True)
    packed(x).sum().backward()
    torch.testing.assert_close(x.grad, packed.weight.sum(0).expand(2, 48))
    with torch.inference_mode():
        packed(x)
        assert is_packed(packed)
        _ = packed.weight
    weight = packed.requires_grad_().weight
    with torch.no_grad():
        packed(x)
    assert packed.weight is weight  # which an optimizer holds
    packed(x).sum().backward()
    torch.testing.assert_close(weight.grad, x.detach().sum(0).expand(20, 48))


@torch.no_grad()
def test_threads_that_pack_and_read_a_weight_at_once_never_meet_a_layer_without_one():
    plain = nn.Linear(48, 20).requires_grad_(False)
    quick, x, wanted = OneDNNLinear.of(plain), torch.randn(16, 48), plain.weight.clone()
    expected = quick(x)

    def use(number: int) -> bool:
        return torch.equal(quick(x), expected) if number % 2 else torch.equal(quick.weight, wanted)

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(use, range(2000)))
