"""Figures of drawn pictures: formulas, parity with torchmetrics and torch-fidelity, separate references."""

import errno
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from toklip_core.cli import cli
from toklip_core.model import CLIP
from toklip_core.pictures import normalized, to_pixels
from toklip_core.scenes import Scenes, write_scenes
from toklip_gen.evaluation import (
    Activations,
    Extractor,
    NamedReference,
    PictureWithCaption,
    Reference,
    ReferenceInfo,
    SampleWriter,
    frechet_distance,
    inception_score,
    load_extractor,
    load_reference,
    measure_pictures,
    moments,
    precision_recall,
    read_samples,
    references,
    write_reference,
)

from tests.support.refusals import last_error
from tests.support.small_models import SIZE, small_clip
from tests.support.starved import failing_to_open, system_error


def features(count, width=5, seed=0, shift=0.0):
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed)) + shift


def see(levels):
    """Three features a picture: its mean colour; logits from it."""
    means = normalized(levels).mean((2, 3))
    return Activations(means, torch.cat([means, -means], dim=1))


EYE = Extractor("eye", "sha256 " + "e" * 64, "mean colour", see)


def pictures(count=8, seed=0, size=16):
    noise = np.random.default_rng(seed).integers(0, 256, (count, 3, size, size), np.uint8)
    return [PictureWithCaption(torch.from_numpy(levels), None) for levels in noise]


def test_the_frechet_distance_of_gaussians_on_one_axis_is_the_formula():
    one, other = torch.tensor([[0.0], [2.0]]), torch.tensor([[3.0], [9.0]])
    # means 1 and 6, deviations sqrt 2 and sqrt 18
    expected = 25 + (18**0.5 - 2**0.5) ** 2
    assert frechet_distance(moments(one), moments(other)) == pytest.approx(expected)


def test_the_frechet_distance_is_that_of_torchmetrics():
    from torchmetrics.image.fid import _compute_fid

    one, other = moments(features(60)), moments(features(40, seed=1, shift=0.3))
    theirs = _compute_fid(one.mean, one.covariance, other.mean, other.covariance)
    assert frechet_distance(one, other) == pytest.approx(float(theirs), rel=1e-8)


def test_the_frechet_distance_of_pictures_to_themselves_is_nothing_even_where_the_covariance_has_no_full_rank():
    few = moments(features(4, width=30))
    assert frechet_distance(few, few) == pytest.approx(0, abs=1e-6)


def test_precision_and_recall_are_those_of_torch_fidelity():
    from torch_fidelity.metric_prc import prc_features_to_metric

    real, drawn = features(70), features(50, seed=1, shift=0.8)
    theirs = prc_features_to_metric(
        drawn, real, prc_neighborhood=3, prc_batch_size=16, save_cpu_ram=False, verbose=False
    )
    assert precision_recall(real, drawn) == pytest.approx((theirs["precision"], theirs["recall"]))


def test_precision_looks_at_the_drawn_and_recall_at_the_real():
    real = torch.cat([features(40), features(40, seed=1, shift=20)])
    half = features(40, seed=2)  # one of two modes
    precision, recall = precision_recall(real, half)
    assert precision > 0.8 and recall < 0.6


def test_the_inception_score_of_sure_and_varied_pictures_is_their_number_of_classes():
    sure = 1000 * torch.eye(4).repeat(100, 1)
    assert inception_score(sure) == pytest.approx(4, abs=0.5)
    assert inception_score(torch.zeros(40, 4)) == pytest.approx(1)
    assert inception_score(sure[:1].expand(40, 4)) == pytest.approx(1)


def test_classes_may_take_turns_or_follow_each_other():
    logits = 1000 * torch.eye(10)
    scores = [inception_score(found) for found in (logits.repeat(100, 1), logits.repeat_interleave(100, 0))]
    assert scores == pytest.approx([10, 10], abs=0.5)


def test_the_batch_size_changes_no_figure():
    reference = Reference(info(), moments(features(20, 3)), features(20, 3), "x")
    found = [measure_pictures(pictures(), extractor=EYE, reference=reference, batch_size=size) for size in (1, 3, 8)]
    assert found[0].as_json() == found[1].as_json() == found[2].as_json()


def info(**changes):
    settings = {
        "extractor": EYE.name,
        "weights": EYE.weights,
        "image_size": 16,
        "pictures": 20,
        "source": "photos",
    }
    return ReferenceInfo(**settings | changes)


def test_a_reference_is_what_was_written(tmp_path):
    path = tmp_path / "photos.npz"
    write_reference(path, features(20, 3), info())
    reference = load_reference(path, EYE)
    assert reference.info == info() and torch.equal(reference.features, features(20, 3))
    assert torch.equal(reference.moments.mean, moments(features(20, 3)).mean)
    assert "photos.npz, sha256 " in reference.described
    report = measure_pictures(pictures(), extractor=EYE, reference=reference)
    assert report.frechet > 0 and report.protocol["reference"] == reference.described


def test_a_reference_by_other_features_is_refused(tmp_path):
    write_reference(tmp_path / "x.npz", features(20, 3), info(weights="sha256 0"))
    with pytest.raises(ValueError, match=r"has features of 'eye' \(sha256 0\), and the pictures are seen by 'eye'"):
        load_reference(tmp_path / "x.npz", EYE)


def test_a_file_that_does_not_say_what_it_is_made_of_is_refused(tmp_path):
    np.savez(tmp_path / "val.npz", arr_0=np.zeros((4, 8, 8, 3), np.uint8), mu=np.zeros(3), sigma=np.eye(3))
    with pytest.raises(ValueError, match=r"does not say what it is a reference of; name a published one \(adm"):
        load_reference(tmp_path / "val.npz", EYE)


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """An empty torch hub cache."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr(torch.hub, "_hub_dir", None)
    folder = tmp_path / "torch/hub/checkpoints"
    folder.mkdir(parents=True)
    return folder


def test_a_named_reference_is_looked_for_in_the_cache_and_its_features_are_those_of_its_pictures(hub):
    with pytest.raises(FileNotFoundError, match=r"VIRTUAL_imagenet256_labeled.npz is not in the torch hub cache"):
        load_reference("adm-imagenet-256", EYE)
    real = np.random.default_rng(0).integers(0, 256, (5, 256, 256, 3), np.uint8)
    means = np.random.default_rng(1).random(2048)
    sigma = np.eye(2048, dtype=np.float32)
    np.savez(hub / "VIRTUAL_imagenet256_labeled.npz", arr_0=real, mu=means, sigma=sigma, mu_s=means)
    eye = Extractor("inception", "x", "", see)
    reference = load_reference("adm-imagenet-256", eye)
    assert reference.info.image_size == 256
    assert reference.moments.mean.tolist() == means.tolist()
    expected = see(torch.from_numpy(real).movedim(-1, 1)).features
    torch.testing.assert_close(reference.features, expected)
    assert "not compared: none is published" in reference.described


@pytest.mark.parametrize(
    ("width", "size", "message"),
    [(3, 256, r"means of \(3,\), and features of Inception are 2048"), (2048, 64, "pictures of 64 x 64, not 256")],
)
def test_a_file_with_a_published_name_that_cannot_be_it_is_refused(hub, width, size, message):
    real = np.zeros((2, size, size, 3), np.uint8)
    path = hub / "VIRTUAL_imagenet256_labeled.npz"
    np.savez(path, arr_0=real, mu=np.zeros(width), sigma=np.zeros((width, 1)))
    for name in ("adm-imagenet-256", path):
        with pytest.raises(ValueError, match=message):
            load_reference(name, Extractor("inception", "x", "", see))


def test_a_named_reference_with_another_checksum_is_damaged(hub, monkeypatch):
    named = NamedReference(file="a.npz", url="https://x/a.npz", image_size=16, sha256="0" * 64, summary="")
    monkeypatch.setitem(references.REFERENCES, "a", named)
    np.savez(hub / "a.npz", mu=np.zeros(3), sigma=np.eye(3))
    with pytest.raises(ValueError, match=r"a.npz is damaged: its sha256 is \w{64}, not 0000"):
        load_reference("a", EYE)


def test_an_unknown_reference_is_told_the_nearest_name():
    with pytest.raises(LookupError, match="Did you mean 'adm-imagenet-256'"):
        load_reference("adm-imagnet-256", EYE)
    with pytest.raises(FileNotFoundError, match=r"there is no file 'x.npz'"):
        load_reference("x.npz", EYE)


def test_pictures_of_another_size_than_the_references_are_refused():
    reference = Reference(info(image_size=256), moments(features(20, 3)), None, "x")
    with pytest.raises(ValueError, match="got pictures of 16 x 16, and the reference is of 256 x 256"):
        measure_pictures(pictures(), extractor=EYE, reference=reference)


def test_pictures_of_another_size_are_refused_with_the_first_of_them():
    reference = Reference(info(image_size=256), moments(features(20, 3)), None, "x")
    asked = []

    def stream():
        for picture in pictures(6):
            asked.append(picture)
            yield picture

    with pytest.raises(ValueError, match="the reference is of 256 x 256: resize them before"):
        measure_pictures(stream(), extractor=EYE, reference=reference, batch_size=2)
    assert len(asked) == 2


def test_what_too_few_pictures_or_no_real_ones_leave_out_is_said():
    reference = Reference(info(), moments(features(20, 3)), None, "x")
    report = measure_pictures(pictures(3), extractor=EYE, reference=reference)
    assert report.precision is None and "neither features nor pictures" in report.left_out["precision"]
    assert "rank of at most 2" in report.protocol["warning"]
    assert "precision         left out: the reference has neither" in report.as_text()
    with pytest.raises(ValueError, match="got 1 pictures; a figure needs two at least"):
        measure_pictures(pictures(1), extractor=EYE)
    with pytest.raises(ValueError, match=r"got pictures of \(16, 16\) and \(8, 8\)"):
        measure_pictures([*pictures(2), *pictures(2, size=8)], extractor=EYE, batch_size=2)


def test_the_clip_score_is_a_hundred_times_the_mean_cosine():
    clip = small_clip()
    texts = ["a red circle", "a blue square"]
    drawn = [PictureWithCaption(scene.rgb, text) for scene, text in zip(pictures(2, size=SIZE), texts, strict=True)]
    report = measure_pictures(drawn, clip=clip)
    with torch.no_grad():
        images = clip.image_features(normalized(torch.stack([picture.rgb for picture in drawn])))
    expected = (images * clip.text_features(texts)).sum(1).clamp_min(0).mean() * 100
    assert report.clip_score == pytest.approx(float(expected), abs=1e-4)
    without = measure_pictures(pictures(2, size=SIZE), clip=clip)
    assert without.clip_score is None and "has a caption" in without.left_out["clip_score"]


@pytest.mark.parametrize("resize", ["crop", "squash", "pad"])
def test_a_wide_picture_becomes_a_square_in_the_way_of_the_model(resize):
    clip = small_clip()
    clip.config = clip.config.model_copy(update={"resize": resize})
    wide = torch.randint(0, 256, (3, 20, 60), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    report = measure_pictures([PictureWithCaption(wide, "a red circle")] * 2, clip=clip)
    with torch.no_grad():
        image = clip.image_features(to_pixels(Image.fromarray(wide.permute(1, 2, 0).numpy()), SIZE, resize)[None])
        expected = 100 * (image @ clip.text_features(["a red circle"]).T).clamp_min(0)
    assert report.clip_score == pytest.approx(float(expected), abs=1e-4)
    assert report.protocol["clip resize"] == resize


def test_samples_are_as_adms_evaluator_reads_them(tmp_path):
    levels = np.random.default_rng(0).integers(0, 256, (5, 4, 6, 3), np.uint8)
    with SampleWriter(tmp_path / "s.npz") as writer:
        writer.add(levels[:3])
        writer.add(levels[3:])
        assert not (tmp_path / "s.npz").exists()
    assert np.array_equal(np.load(tmp_path / "s.npz")["arr_0"], levels)
    assert np.array_equal(np.stack(list(read_samples(tmp_path / "s.npz"))), levels)
    assert [path.name for path in tmp_path.iterdir()] == ["s.npz"]
    np.savez(tmp_path / "n.npz", arr_0=levels)  # numpy's own header
    assert np.array_equal(np.stack(list(read_samples(tmp_path / "n.npz"))), levels)


def test_what_fails_leaves_no_file_behind(tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("shutil.copyfileobj", full)
    monkeypatch.setattr(np, "savez", full)
    with pytest.raises(OSError, match="No space"), SampleWriter(tmp_path / "s.npz") as writer:
        writer.add(np.zeros((2, 4, 4, 3), np.uint8))
    with pytest.raises(OSError, match="No space"):
        write_reference(tmp_path / "r.npz", features(20, 3), info())
    assert not list(tmp_path.iterdir())


def test_features_are_kept_evenly_from_the_first_to_the_last(tmp_path):
    found = torch.arange(12.0)[:, None].repeat(1, 3)
    write_reference(tmp_path / "r.npz", found, info(), most=7)
    assert load_reference(tmp_path / "r.npz", EYE).features[:, 0].tolist() == [0, 2, 4, 6, 7, 9, 11]


def test_a_file_that_is_no_samples_is_one_line(tmp_path):
    np.savez(tmp_path / "f.npz", arr_0=np.zeros((2, 4, 4)))
    with pytest.raises(ValueError, match="wanted pictures"):
        list(read_samples(tmp_path / "f.npz"))
    (tmp_path / "x.npz").write_bytes(b"x" * 99)
    with pytest.raises(ValueError, match=r"is not an .npz with 'arr_0'"):
        list(read_samples(tmp_path / "x.npz"))
    with pytest.raises(ValueError, match=r"reads a file NAME.npz"):
        SampleWriter(tmp_path / "x.zip")


@pytest.fixture
def teacher(tmp_path):
    small_clip().save_pretrained(tmp_path / "teacher")
    return str(tmp_path / "teacher")


def run(*arguments):
    return CliRunner().invoke(cli, ["evaluate", "generation", *map(str, arguments), "--device", "cpu"])


def test_the_command_measures_pictures_against_a_reference_that_it_wrote(tmp_path, teacher):
    write_scenes(Scenes(8, size=SIZE), tmp_path / "real")
    write_scenes(Scenes(6, size=SIZE, seed=1), tmp_path / "drawn")
    written = run(tmp_path / "real", "--write-reference", tmp_path / "r.npz", "--extractor", teacher)
    assert written.exit_code == 0 and "r.npz: 8 pictures" in written.stdout
    arguments = ["--reference", tmp_path / "r.npz", "--extractor", teacher, "--clip", teacher]
    result = run(tmp_path / "drawn", *arguments, "--npz", tmp_path / "s.npz", "--json")
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert report["frechet"] > 0 and 0 <= report["precision"] <= 1 and report["clip_score"] >= 0
    again = json.loads(run(tmp_path / "s.npz", *arguments, "--json").stdout)
    assert again["frechet"] == pytest.approx(report["frechet"], rel=1e-5)
    assert "clip_score" in again["left_out"], "an .npz has no captions"
    text = run(tmp_path / "drawn", *arguments).stdout
    assert "Fréchet distance" in text and "Protocol" in text and "sha256" in text


def test_pictures_that_cannot_be_read_are_named(tmp_path, teacher):
    write_scenes(Scenes(3, size=SIZE), tmp_path / "drawn")
    (tmp_path / "drawn/broken.png").write_bytes(b"no picture")
    report = json.loads(run(tmp_path / "drawn", "--extractor", teacher, "--json").stdout)
    assert report["pictures"] == 3 and "broken.png: no picture" in report["unreadable"][0]
    with failing_to_open("broken.png", system_error("EIO")):
        report = json.loads(run(tmp_path / "drawn", "--extractor", teacher, "--json").stdout)
    assert report["pictures"] == 3 and "broken.png: [Errno 5] " in report["unreadable"][0]


def test_if_no_picture_can_be_read_the_reason_of_the_first_is_named(tmp_path, teacher):
    for name in ("a.png", "b.png"):
        (tmp_path / name).write_bytes(b"no picture")
    for more in ([], ["--write-reference", tmp_path / "r.npz"]):
        result = run(tmp_path / "a.png", tmp_path / "b.png", "--extractor", teacher, *more)
        assert result.exit_code == 1
        last_error(result.stderr, "none of 2 pictures can be read; the first is", "a.png: no picture in")


def test_without_inceptions_weights_the_place_is_named(tmp_path, hub):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    result = run(tmp_path / "a.png")
    assert result.exit_code == 1 and "put it into" in result.stderr and "inception" in result.stderr


SCENES = "scenes:held-out?count=2"


@pytest.mark.parametrize(
    "arguments",
    [
        [], ["x.png", "--generator", "g"], ["--generator", "g"], [SCENES, "x.png", "--generator", "g"],
        [SCENES, "--generator", "g", "--per-class", "2"], ["x.png", "--per-class", "2"],
    ],
)  # fmt: skip
def test_the_command_wants_pictures_or_a_generator(arguments):
    result = run(*arguments)
    assert result.exit_code == 2 and "name INPUTS, or --generator" in result.stderr


@pytest.mark.parametrize(
    ("mode", "options"),
    [
        (["x.png"], {"--size": 8, "--guidance": 4, "--seed": 5}),
        (["x.png"], {"--temperature": 2, "--top-k": 5, "--top-p": 0.5, "--toklip": "t", "--dtype": "bfloat16"}),
        (["x.png", "--write-reference", "r.npz"], {"--reference": "r", "--clip": "c", "--npz": "n.npz"}),
        (["--generator", "g", "--per-class", 1], {"--clip": "c"}),
        (["--generator", "g", "--per-class", 1], {"--write-reference": "r.npz"}),
        ([SCENES, "--generator", "g"], {"--reference": "r", "--npz": "n.npz", "--size": 8}),
        ([SCENES, "--generator", "g"], {"--write-reference": "r.npz"}),
    ],
)
def test_an_option_that_would_say_nothing_is_refused(mode, options):
    words = {SCENES: "captions of scenes", "--per-class": "--per-class", "--write-reference": "--write-reference"}
    what = next((said for word, said in words.items() if word in mode), "INPUTS")
    for option, value in options.items():
        result = run(*mode, option, value)
        assert result.exit_code == 2 and f"{option} has no effect with {what}" in " ".join(result.stderr.split())


def test_options_of_sampling_beside_a_temperature_of_0_are_refused():
    result = run(SCENES, "--generator", "g", "--temperature", 0, "--top-k", 5, "--top-p", 0.5)
    assert result.exit_code == 2
    last_error(result.stderr, "--top-k, --top-p have no effect with --temperature 0, which always takes the")


def test_a_reference_is_of_square_pictures(tmp_path, teacher):
    for number in range(3):
        Image.new("RGB", (8, 6), (number, 0, 0)).save(tmp_path / f"{number}.png")
    result = run(tmp_path / "*.png", "--write-reference", tmp_path / "r.npz", "--extractor", teacher)
    assert result.exit_code == 1 and "got pictures of 6 x 8; wanted squares" in result.stderr


@pytest.mark.parametrize("wrong", ["no square", "broken"])
def test_what_cannot_be_in_a_reference_is_refused_when_it_is_read(tmp_path, teacher, monkeypatch, wrong):
    for number in range(9):
        Image.new("RGB", (8, 8), (number, 0, 0)).save(tmp_path / f"{number}.png")
    if wrong == "broken":
        (tmp_path / "1.png").write_bytes(b"broken")
    else:
        Image.new("RGB", (8, 6)).save(tmp_path / "1.png")
    seen = []
    monkeypatch.setattr(CLIP, "image_features", lambda *arguments: seen.append(arguments))
    result = run(tmp_path / "*.png", "--write-reference", tmp_path / "r.npz", "--extractor", teacher, "--batch-size", 4)
    assert result.exit_code == 1 and not seen
    assert ("wanted squares" if wrong == "no square" else "1.png: no picture") in result.stderr


def test_a_reference_is_that_of_a_model_whatever_the_model_is_called(tmp_path, teacher, monkeypatch):
    write_scenes(Scenes(4, size=SIZE), tmp_path / "real")
    run(tmp_path / "real", "--write-reference", tmp_path / "R.NPZ", "--extractor", teacher)
    monkeypatch.chdir(Path(teacher).parent)
    result = run(tmp_path / "real", "--reference", tmp_path / "R.NPZ", "--extractor", f"./{Path(teacher).name}")
    assert result.exit_code == 0, result.output


def test_models_are_extractors_of_unit_features(teacher):
    seen = load_extractor(teacher)(torch.stack([picture.rgb for picture in pictures(3, size=SIZE)]))
    torch.testing.assert_close(seen.features.norm(dim=1), torch.ones(3))
    assert seen.logits is None
