import pytest
import torch
from click.testing import CliRunner
from toklip_core import load_tokenizer
from toklip_core.cli import cli
from toklip_core.testing import tokenizer_checks


@pytest.mark.parametrize("check", tokenizer_checks(), ids=lambda check: check.__name__)
@pytest.mark.parametrize("name", ["toy", "toy-residual"])
def test_contract(name, check):
    check(load_tokenizer(name))


def test_a_picture_of_palette_colours_survives():
    tokenizer = load_tokenizer("toy")
    ids = torch.randint(64, (2, 3, 5, 1), generator=torch.Generator().manual_seed(0))
    assert torch.equal(tokenizer.encode(tokenizer.decode(ids)), ids)


def test_four_ids_give_a_better_picture_than_one():
    pixels = torch.rand(2, 3, 32, 48, generator=torch.Generator().manual_seed(0)) * 2 - 1
    errors = []
    for name in ("toy", "toy-residual"):
        tokenizer = load_tokenizer(name)
        errors.append((tokenizer.decode(tokenizer.encode(pixels)) - pixels).square().mean())
    assert errors[1] < errors[0]


@pytest.mark.parametrize("name, levels", [("toy", 1), ("toy-residual", 4)])
def test_ids_out_of_range_are_refused(name, levels):
    with pytest.raises(ValueError, match="99"):
        load_tokenizer(name).decode(torch.full((1, 2, 2, levels), 99))


def test_a_palette_is_loaded(tmp_path):
    from PIL import Image

    Image.new("RGB", (8, 8), (255, 0, 0)).save(tmp_path / "red.png")
    result = CliRunner().invoke(cli, ["palette", str(tmp_path / "red.png"), str(tmp_path / "red.safetensors")])
    assert result.exit_code == 0, result.output
    tokenizer = load_tokenizer("toy", tmp_path / "red.safetensors")
    assert tokenizer.embed(torch.zeros(1, dtype=torch.int64)).tolist() == [1, -1, -1]


def test_another_file_is_refused(tmp_path):
    from safetensors.torch import save_file

    save_file({"codebook": torch.zeros(4, 3)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match=r"holds {'codebook': \(4, 3\)}; a palette file holds one tensor"):
        load_tokenizer("toy", tmp_path / "other.safetensors")
