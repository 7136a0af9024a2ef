"""One picture through several tokenizers: the figures are those of the evaluation."""

import pytest
import torch
from toklip_core.demo.app.tokenizers import HEADER, compare_on, offline_tokenizers, shipped_tokenizers
from toklip_core.evaluation import evaluate_tokenizer
from toklip_core.pictures import open_picture, to_pixels
from toklip_core.plugins import TokenizerSpec, discover, registry

from tests.support.mean_colour import MeanColour


def test_a_picture_has_the_ids_and_the_psnr_that_it_has_elsewhere(toy, photos):
    (view,), problems = compare_on(photos / "a.jpg", ["mean-colour"])
    size = view.reconstruction.image.width
    pixels = to_pixels(open_picture(photos / "a.jpg"), size)[None]
    assert problems == [] and torch.equal(view.reconstruction.ids, MeanColour().encode(pixels)[0])
    report = evaluate_tokenizer("mean-colour", [photos / "a.jpg"])
    assert view.reconstruction.psnr == pytest.approx(report.psnr, abs=1e-4)
    row = dict(zip(HEADER, view.row, strict=True))
    assert row["tokenizer"] == "mean-colour" and row["PSNR (dB)"] == f"{report.psnr:.2f}"
    assert row["bits per picture"] == f"{report.bits_per_picture:,.0f}"
    assert row["ids per picture"] == f"{view.reconstruction.ids.numel():,}" and row["ids"].endswith("ids of 300 codes")


def test_a_tokenizer_that_does_not_load_is_a_line(toy, photos):
    views, problems = compare_on(photos / "a.jpg", ["no-such-one", "mean-colour"])
    assert [view.name for view in views] == ["mean-colour"]
    assert len(problems) == 1 and problems[0].startswith("no-such-one is left out: no VQ tokenizer is named")


def test_tokenizers_whose_weights_are_elsewhere_are_not_offered_and_those_in_a_package_are_compared(toy, monkeypatch):
    def spec(name, source="", sizes=(4,)):
        return TokenizerSpec(
            name=name, factory=lambda weights: None, summary="One.", source=source, codebook_sizes=sizes
        )

    specs = [spec("here"), spec("there", "a/b/c.pt"), spec("in-the-cache", "a/b/d.pt"), spec("from-a-path", sizes=())]
    plugins = discover([])
    plugins.tokenizers.update({one.name: one for one in specs})
    monkeypatch.setattr(
        "toklip_core.demo.app.tokenizers.try_to_load_from_cache", lambda repo, file: file if file == "d.pt" else None
    )
    assert [one.name for one in offline_tokenizers(plugins)] == ["here", "in-the-cache", "from-a-path"]
    assert [one.name for one in shipped_tokenizers(plugins)] == ["here"]
    assert "mean-colour" in {one.name for one in offline_tokenizers(registry())}
