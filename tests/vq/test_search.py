"""The search for the nearest code: exact, independent of the batch, and with little memory."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from toklip_vq.nearest import Metric, nearest_rows
from toklip_vq.vqgan import Codebook

METRICS = ("cosine", "dot", "euclidean")


def codebook(metric: Metric, size: int = 600, dim: int = 8) -> Codebook:
    torch.manual_seed(0)
    book = Codebook(size, dim, metric)
    torch.nn.init.normal_(book.weight)
    return book


def latents(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


def scores(book: Codebook, queries: torch.Tensor) -> torch.Tensor:
    """Scores (N, K) in float64, by the definition of the metric."""
    rows, queries = book.weight.detach().double(), queries.double()
    if book.metric == "euclidean":
        return -torch.cdist(queries, rows)
    return queries @ (F.normalize(rows, dim=-1) if book.metric == "cosine" else rows).T


@pytest.mark.parametrize("chunk", [7, 256, 4096])
@pytest.mark.parametrize("metric", METRICS)
def test_it_finds_the_code_that_float64_finds(metric, chunk):
    book, queries = codebook(metric), latents(500, 8)
    ids = nearest_rows(queries, book.rows(), metric, chunk)[0]
    assert torch.equal(ids, scores(book, queries).argmax(-1))


@pytest.mark.parametrize("metric", METRICS)
def test_ids_keep_the_shape_and_do_not_depend_on_their_neighbours(metric):
    book, queries = codebook(metric), latents(5, 4, 3, 8)
    ids = book.nearest(queries)
    assert ids.shape == (5, 4, 3)
    assert ids.dtype == torch.int64
    assert torch.equal(torch.stack([book.nearest(query) for query in queries]), ids)
    assert torch.equal(book.nearest(queries.flatten(0, 2)).view(5, 4, 3), ids)


@pytest.mark.parametrize("chunk", [3, 4096])
@pytest.mark.parametrize("metric", METRICS)
def test_the_first_of_equal_codes_wins(metric, chunk):
    """As the official argmin and argmax have it, also where a chunk ends between the two."""
    book = codebook(metric, size=20)
    with torch.no_grad():
        book.weight[10:] = book.weight[:10]
    assert nearest_rows(latents(200, 8), book.rows(), metric, chunk)[0].max() < 10


def test_autocast_changes_no_id():
    book, queries = codebook("dot"), latents(2000, 8)
    ids = book.nearest(queries)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(book.nearest(queries), ids)
        rounded = (queries @ book.weight.T).argmax(-1)
    assert not torch.equal(rounded, ids), "bfloat16 would have changed nothing: the test shows nothing"


def test_half_precision_latents_are_searched_in_float32():
    book, queries = codebook("cosine"), latents(500, 8).bfloat16()
    assert torch.equal(book.nearest(queries), book.nearest(queries.float()))


def test_the_codebook_keeps_float32_and_moves_with_its_module():
    book = codebook("dot")
    weight = book.weight.detach().clone()
    module = torch.nn.Sequential(book, torch.nn.Linear(2, 2)).to(torch.bfloat16)
    assert module[1].weight.dtype == torch.bfloat16
    assert torch.equal(book.weight, weight)
    assert book.to("meta").weight.is_meta


def test_memory_is_bounded_by_a_chunk_not_by_the_codebook():
    """No tensor of tokens x codes is ever made: the largest is tokens x chunk."""
    largest = 0

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            nonlocal largest
            result = function(*args, **(kwargs or {}))
            for tensor in result if isinstance(result, tuple) else (result,):
                if isinstance(tensor, torch.Tensor) and tensor.untyped_storage() is not None:
                    largest = max(largest, tensor.untyped_storage().nbytes())
            return result

    book, queries = codebook("euclidean", size=4096, dim=4), latents(100, 4)
    codes = book.weight.untyped_storage().nbytes()
    with Watch():
        nearest_rows(queries, book.rows(), book.metric, chunk=64)
    assert largest <= max(100 * 64 * 4, codes)


def test_a_search_leaves_no_graph():
    book = codebook("cosine")
    ids = book.nearest(latents(10, 8).requires_grad_())
    assert not ids.requires_grad
    assert book.weight.grad is None
