"""Goldens of LlamaGen's own code, and strict loading of its files in every layout."""

import numpy as np
import pytest
import torch
from toklip_gen.generator import Condition, Inputs, llamagen_config, load_official, prefix_mask

from tests.support.official_generators import GOLDENS, saved
from tests.support.small_generators import sample, whole_pass


@pytest.fixture(scope="module")
def golden():
    with np.load(GOLDENS / "gpt_c2i.npz") as archive:
        return {name: torch.from_numpy(archive[name]) for name in archive.files}


@pytest.fixture(scope="module")
def generator(tmp_path_factory):
    return load_official(*saved(tmp_path_factory.mktemp("official"), "gpt_c2i.json"))


@torch.no_grad()
def test_logits_are_those_of_the_official_code(generator, golden):
    ids = golden["idx"][:, :, None]
    logits = whole_pass(generator, ids, torch.cat([ids, ids[:, -1:]], dim=1), Condition(golden["cond"]))
    torch.testing.assert_close(logits, golden["logits"], atol=2e-4, rtol=0)


@pytest.mark.parametrize("layout", ["model", "module", "state_dict", None])
@pytest.mark.parametrize("golden_file", ["gpt_c2i.json", "gpt_t2i.keys.json"])
def test_a_file_of_every_layout_loads(tmp_path, layout, golden_file):
    generator = load_official(*saved(tmp_path, golden_file, layout))
    assert all(not tensor.is_meta for tensor in generator.state_dict().values())


def test_what_a_run_saved_beside_its_weights_is_left_aside(tmp_path):
    path, config = saved(tmp_path, "gpt_c2i.json", None)
    names = ("freqs_cis", "causal_mask", "layers.0.attention.kv_cache.k_cache")
    torch.save(torch.load(path) | {name: torch.zeros(2) for name in names}, path)
    assert load_official(path, config).config == config


def test_greedy_ids_are_those_of_the_official_code(generator, golden):
    drawn = sample(generator, Inputs("ids"), Condition(golden["cond"]), seeds=[0, 0], guidance=2.0, temperature=0)
    assert torch.equal(drawn.flatten(1), golden["greedy"].long())


@torch.no_grad()
def test_padding_of_a_text_follows_the_official_rule():
    # generate.py of LlamaGen: lower triangle, times the mask of the text in its columns, and the diagonal.
    mask = torch.tensor([[False, True, True], [True, True, True]])
    square = torch.tril(torch.ones(2, 5, 5))
    square[:, :, :3] *= mask[:, None].float()
    square = square * (1 - torch.eye(5)) + torch.eye(5)
    assert torch.equal(prefix_mask(mask, 5)[:, 0], square.bool())


def test_a_missing_tensor_is_named_as_the_file_names_it(tmp_path):
    path, config = saved(tmp_path, "gpt_c2i.json", None)
    tensors = torch.load(path)
    del tensors["layers.1.feed_forward.w3.weight"], tensors["norm.weight"]
    torch.save(tensors, path)
    with pytest.raises(ValueError, match=r"missing: .*layers\.1\.feed_forward\.w3\.weight, norm\.weight; not expected"):
        load_official(path, config)


def test_a_file_with_a_published_name_needs_no_config():
    config = llamagen_config("c2i_L_384.pt")
    assert (config.width, config.depth, config.heads, config.grid) == (1024, 24, 16, (24, 24))
    text = llamagen_config("llamagen-t2i-xl-512").condition
    assert (text.encoder, text.length, text.width) == ("google/flan-t5-xl", 120, 2048)


def test_a_file_without_a_published_name_asks_for_a_config(tmp_path):
    path, _ = saved(tmp_path, "gpt_c2i.json")
    with pytest.raises(LookupError, match=r"official\.pt'; .* so rename it to its published name, such as"):
        load_official(path)
