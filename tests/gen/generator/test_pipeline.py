"""Folders of generators, refused input, and `toklip generate`."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from toklip_core.cli import cli
from toklip_core.drawing import Drawing, Guidance
from toklip_core.pictures import open_picture, to_picture, to_pixels
from toklip_core.tokenizer import Tokenizer, TokenizerRecord
from toklip_core.weights import weights_checksum
from toklip_gen.generate import GenerateSettings, generate
from toklip_gen.generator import ModelSettings, PictureGenerator, load_generator, toklip_checksum

from tests.support.mean_colour import MeanColour, PyramidGreys, mean_colour, several
from tests.support.processes import locked_elsewhere
from tests.support.refusals import last_error, refusing
from tests.support.small_generators import LENGTH, small_config, small_generator
from tests.support.small_models import small_toklip

pytestmark = pytest.mark.usefixtures("toy")
TEXTS = ["a red circle", "a blue square"]


@pytest.fixture
def toklip(tmp_path):
    """A small TokLIP in the folder toklip."""
    model = small_toklip()
    model.save_pretrained(tmp_path / "toklip")
    return model


@pytest.fixture
def of_classes(tmp_path):
    """The folder of a generator of classes, which needs no TokLIP."""
    PictureGenerator(small_generator(), tokenizer=mean_colour()).save(tmp_path / "classes")
    return tmp_path / "classes"


def of_texts(folder, toklip, **changes):
    """The folder of a generator that reads codes, tokens and texts through a TokLIP."""
    config = small_config("concat", "text", toklip=str(folder / "toklip"), **changes)
    generator = small_generator("concat", "text", **config.model_dump(include={"toklip", *changes}))
    PictureGenerator(generator, tokenizer=toklip.tokenizer, toklip=toklip).save(folder / "texts")
    return folder / "texts"


def run(*words):
    result = CliRunner().invoke(cli, ["generate", *map(str, words), "--device", "cpu"])
    assert result.exit_code == 0, result.output
    return result


@pytest.mark.slow
def test_a_folder_loads_and_draws_the_same(tmp_path, toklip):
    folder = of_texts(tmp_path, toklip)
    first, second = load_generator(folder), load_generator(folder)
    ids = first.draw(TEXTS, seeds=[1, 2]).ids
    assert torch.equal(second.draw(TEXTS, seeds=[1, 2]).ids, ids)
    assert first.pixels(ids).shape == (2, 3, 32, 32)


def test_a_toklip_that_moved_is_asked_for_and_can_be_named(tmp_path, toklip):
    folder = of_texts(tmp_path, toklip)
    (tmp_path / "toklip").rename(tmp_path / "moved")
    with pytest.raises(FileNotFoundError, match="say where it is now"):
        load_generator(folder)
    load_generator(folder, toklip=tmp_path / "moved")


def test_another_toklip_and_another_tokenizer_than_in_training_are_refused(tmp_path, toklip):
    checksum = toklip_checksum(toklip, small_config("concat", "text"))
    folder = of_texts(tmp_path, toklip, toklip_checksum=checksum)
    load_generator(folder)
    small_toklip(seed=1).save_pretrained(tmp_path / "toklip")
    with pytest.raises(ValueError, match=r"the TokLIP .* has other weights \(sha256"):
        load_generator(folder)
    other = small_generator(tokenizer=mean_colour(gamma=0.5).record)
    with pytest.raises(ValueError, match="the generator was made with the tokenizer 'mean-colour'"):
        PictureGenerator(other, tokenizer=mean_colour())
    PictureGenerator(other, tokenizer=mean_colour(gamma=0.5)).save(tmp_path / "classes")
    with pytest.raises(ValueError, match="classes was made with the tokenizer 'mean-colour'"):
        load_generator(tmp_path / "classes")


def test_a_tokenizer_with_weights_of_its_own_travels_along(tmp_path):
    (tmp_path / "gamma.txt").write_text("0.5")
    pictures = PictureGenerator(small_generator(), tokenizer=mean_colour(weights=tmp_path / "gamma.txt"))
    pictures.save(tmp_path / "classes")
    (tmp_path / "gamma.txt").unlink()
    loaded = load_generator(tmp_path / "classes")
    assert loaded.tokenizer.checksum == weights_checksum(MeanColour(gamma=0.5))
    loaded.save(tmp_path / "again")
    assert (tmp_path / "again" / "tokenizer.txt").read_text() == "0.5"


def test_a_generator_and_its_toklip_contain_no_tokenizer(tmp_path, toklip):
    loaded = load_generator(of_texts(tmp_path, toklip))
    assert loaded.tokenizer is loaded.toklip.tokenizer
    for model in (loaded.generator, loaded.toklip):
        assert not any(isinstance(module, MeanColour) for module in model.modules())
        assert not any("levels" in name for name in model.state_dict())


def test_a_text_tower_is_read_beside_another_tokenizer_than_that_of_its_toklip(tmp_path, toklip):
    generator = small_generator("ids", "text", "quarter-greys", toklip=str(tmp_path / "toklip"))
    pictures = PictureGenerator(generator, tokenizer=several("quarter-greys"), toklip=toklip)
    pictures.save(tmp_path / "texts")
    ids = pictures.draw(TEXTS, seeds=[1, 2]).ids
    loaded = load_generator(tmp_path / "texts")
    assert loaded.tokenizer.name == "quarter-greys" and torch.equal(loaded.draw(TEXTS, seeds=[1, 2]).ids, ids)


def test_a_folder_of_another_format_is_refused(of_classes):
    config = json.loads((of_classes / "config.json").read_text())
    assert config.pop("format") == 1
    (of_classes / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"config\.json has no format number, .* train the model again"):
        load_generator(of_classes)


def test_parts_that_do_not_belong_together_are_refused(toklip):
    with pytest.raises(ValueError, match=r"has codebooks of \(300,\), and the generator predicts .* of \(301,\);"):
        PictureGenerator(small_generator(codebook_sizes=(301,), levels=None), tokenizer=mean_colour())
    with pytest.raises(ValueError, match=r"a grid of \(4, 16\), and the tokenizer has one of \(8, 8\) for pictures of"):
        PictureGenerator(small_generator(grid=(4, 16)), tokenizer=mean_colour())
    with pytest.raises(ValueError, match="the generator reads the TokLIP 'small'; got none"):
        PictureGenerator(small_generator("concat"), tokenizer=mean_colour())
    with pytest.raises(ValueError, match="inputs of width 34, and tokenizer and encoder give 33"):
        PictureGenerator(small_generator("concat", feature_width=34), tokenizer=mean_colour(), toklip=toklip)
    with pytest.raises(ValueError, match=r"draws a grid of \(4, 16\), and its encoder reads one of \(8, 8\)"):
        wide = small_generator("concat", grid=(4, 16), image_size=(16, 64))
        PictureGenerator(wide, tokenizer=mean_colour(), toklip=toklip)


def test_a_generator_over_a_pyramid_of_ids_is_refused():
    generator = small_generator(tokenizer=TokenizerRecord(name="pyramid-greys"), codebook_sizes=(64,), levels=None)
    with pytest.raises(ValueError, match=r"has a pyramid of ids, .* no model can draw it id by id; name a tokenizer"):
        PictureGenerator(generator, tokenizer=Tokenizer("pyramid-greys", PyramidGreys()))


def test_an_unknown_name_has_its_nearest():
    with pytest.raises(LookupError, match=r"named 'llamagen-c2i-b', .* Did you mean 'llamagen-c2i-[bl]-\d+'\?"):
        load_generator("llamagen-c2i-b")


def test_a_folder_of_something_else_is_no_generator(tmp_path, toklip):
    with pytest.raises(ValueError, match="holds a 'toklip', and no generator"):
        load_generator(tmp_path / "toklip")


def test_drawing_leaves_a_training_generator_in_training(of_classes):
    pictures = load_generator(of_classes)
    pictures.generator.train()
    pictures.draw([1], seeds=[0], prefix=torch.zeros(1, 60, 1, dtype=torch.int64))
    assert pictures.generator.training


def test_generate_writes_a_grid_with_a_row_for_each_text(tmp_path, toklip):
    out = tmp_path / "grid.png"
    result = run(*TEXTS, "-n", 3, "--out", out, "--model", of_texts(tmp_path, toklip))
    assert open_picture(out).size == (3 * 34 - 2, 2 * 34 - 2)
    assert "6 pictures" in result.stderr and result.stdout == ""


def test_without_settings_a_generator_draws_with_its_own(tmp_path):
    config = small_config(guidance=2.0, top_k=5)
    pictures = PictureGenerator(small_generator(guidance=2.0, top_k=5), tokenizer=mean_colour())
    assert pictures.config == config
    own, asked, other = (
        pictures.draw([3], seeds=[0], drawing=drawing).ids
        for drawing in (Drawing(), Drawing(Guidance(2.0), top_k=5), Drawing(Guidance(4.0), top_k=0))
    )
    assert torch.equal(own, asked) and not torch.equal(own, other)
    pictures.save(tmp_path / "own")
    settings = json.loads(run("--class", 3, "--model", tmp_path / "own", "--json", "--out", tmp_path / "a.png").stdout)
    assert (settings["settings"]["guidance"], settings["settings"]["top_k"]) == (2.0, 5)


def test_half_a_character_in_a_text_is_drawn_as_its_replacement(tmp_path, toklip):
    model = of_texts(tmp_path, toklip)
    done = run("a red circle caf\udce9", "--model", model, "--out", tmp_path / "out.png", "--json")
    assert json.loads(done.stdout)["pictures"][0]["prompt"] == "a red circle caf\ufffd"
    halves, whole = (load_generator(model).conditions([text]) for text in ("a \ud83d", "a \ufffd"))
    assert torch.equal(halves.values, whole.values)


def test_a_typed_text_that_is_longer_than_the_generator_reads_is_refused(tmp_path, toklip):
    model, long = of_texts(tmp_path, toklip), "a red circle " * 5
    words = ["generate", TEXTS[0], long, "--model", str(model), "--out", str(tmp_path / "o.png"), "--device", "cpu"]
    result = CliRunner().invoke(cli, words)
    assert result.exit_code == 1 and not (tmp_path / "o.png").exists()
    assert f"has 16 tokens, and the generator reads {LENGTH}: it would be cut; shorten it" in result.output


def test_a_typed_text_without_a_word_is_refused(tmp_path, toklip):
    words = ["generate", "!!!", "--model", str(of_texts(tmp_path, toklip)), "--out", str(tmp_path / "o.png")]
    result = CliRunner().invoke(cli, words)
    assert result.exit_code == 1 and "nothing of the text '!!!' is left for the generator to read" in result.output


def test_a_toklip_for_a_generator_that_reads_none_is_refused(of_classes, tmp_path):
    with pytest.raises(ValueError, match=r"reads no TokLIP; leave out toklip \(--toklip\)"):
        load_generator(of_classes, toklip=tmp_path / "nowhere")


def test_generate_into_a_folder_says_which_file_is_what_and_each_is_drawn_again_alone(tmp_path, of_classes):
    words = ["--class", 3, "--class", 1, "--model", of_classes, "--json"]
    report = json.loads(run(*words, "-n", 2, "--seed", 5, "--out", tmp_path / "many").stdout)
    assert [(x["prompt"], x["seed"]) for x in report["pictures"]] == [(3, 5), (3, 6), (1, 5), (1, 6)]
    assert report["settings"]["guidance"] == 4.0
    run("--class", 1, "--model", of_classes, "--seed", 6, "--out", tmp_path / "one.png")
    again, first = (open_picture(path) for path in (tmp_path / "one.png", report["pictures"][3]["file"]))
    assert again.tobytes() == first.tobytes()


def test_generate_keeps_the_upper_rows_of_a_prefix(tmp_path, of_classes):
    picture = Image.effect_mandelbrot((32, 32), (-2, -1.5, 1, 1.5), 50).convert("RGB")
    picture.save(tmp_path / "given.png")
    run("--class", 1, "--model", of_classes, "--prefix", tmp_path / "given.png", "--out", tmp_path / "out.png")
    kept, drawn = (MeanColour().encode(pixels(tmp_path / name)) for name in ("given.png", "out.png"))
    difference = (kept - drawn).abs()
    assert difference[:, :4].max() <= 1 < difference[:, 4:].max()  # a file has 256 levels, the tokenizer 300 ids


@pytest.mark.parametrize("resize", ["crop", "squash"])
def test_a_prefix_is_made_square_as_in_training(tmp_path, resize):
    PictureGenerator(small_generator(resize=resize), tokenizer=mean_colour()).save(tmp_path / "model")
    assert json.loads((tmp_path / "model/config.json").read_text())["resize"] == resize
    wide = Image.linear_gradient("L").rotate(90).resize((96, 32)).convert("RGB")
    wide.save(tmp_path / "wide.png")
    words = ["--class", 1, "--model", tmp_path / "model", "--prefix", tmp_path / "wide.png", "--prefix-rows", 8]
    run(*words, "--out", tmp_path / "out.png")
    kept = {way: MeanColour().encode(to_pixels(wide, 32, way)[None]) for way in ("crop", "squash")}
    away = {way: (MeanColour().encode(pixels(tmp_path / "out.png")) - ids).abs().max() for way, ids in kept.items()}
    assert away.pop(resize) <= 1 < away.popitem()[1]  # a file has 256 levels, the tokenizer 300 ids


def test_generate_takes_the_schedule_of_guidance(tmp_path, of_classes):
    words = ["--class", 3, "--guidance", 6, "--guidance-power", 1.5, "--guidance-last", 40]
    report = json.loads(run(*words, "--model", of_classes, "--out", tmp_path / "out.png", "--json").stdout)
    assert report["settings"] | {"guidance": 6.0, "guidance_power": 1.5, "guidance_last": 40} == report["settings"]
    assert "guidance_first" not in report["settings"]
    pictures = load_generator(of_classes)
    ids = pictures.draw([3], seeds=[0], drawing=Drawing(Guidance(6.0, last=40, power=1.5))).ids
    assert to_picture(pictures.pixels(ids)[0]).tobytes() == open_picture(tmp_path / "out.png").tobytes()


def pixels(path):
    return to_pixels(open_picture(path), 32)[None]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "give texts, or classes by --class"),
        (["a circle", "--class", "1"], "one of both, and not both"),
        (["--class", "5"], "numbers from 0 to 4"),
        (["a circle"], "draws classes, not texts: numbers from 0 to 4"),
        (["--class=1", "--guidance=2", "--guidance-power=nan"], "got power of guidance = nan; wanted more than 0"),
        (["--class", "1", "--guidance", "inf"], "got guidance = inf; wanted 0 or more"),
        (["--class", "1", "--seed", str(2**63 - 1), "-n", "2"], f"got seed = {2**63}; wanted 0 to"),
        (["--class", "1", "--temperature", "-1"], "got temperature = -1.0; wanted 0"),
        (["--class", "1", "--out", "out.gif"], "make it first if it is a folder, or name a file that ends in .png"),
        (["--class", "1", "--out", "nowhere/out.png"], "there is no folder"),
        (["--class", "1", "--prefix", "nowhere.png"], "the prefix 'nowhere.png' cannot be read: No such file"),
        (["--class", "1", "--prefix", "broken.png"], "the prefix 'broken.png' cannot be read: no picture in"),
        ([" "], "got an empty text; say what is to be drawn"),
        (["--class", "1", "--prefix", "given.png", "--prefix-rows", "9"], "got 9 rows of the prefix; wanted 0 to 8"),
        (["--class", "1", "--seed", str(2**63)], "is not in the range"),
        (["--class=1", "--guidance=4", "--guidance-first=9", "--guidance-last=5"], "last position of guidance = 5"),
        (["--class", "1", "--out", "."], "has pictures already; name another one"),
        (["--class", "1", "--device", "tpu"], "got the device 'tpu'"),
    ],
)
def test_what_generate_cannot_do_is_one_line(tmp_path, monkeypatch, of_classes, words, message):
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (32, 32)).save("given.png")
    Path("broken.png").write_text("none")
    output = CliRunner().invoke(cli, ["generate", "--device", "cpu", "--model", str(of_classes), *words]).output
    assert message in " ".join(output.split()) and "Traceback" not in output


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--prefix-rows 4 --max-pixels 9", "--max-pixels, --prefix-rows have no effect without --prefix; give the pic"),
        ("--guidance-last 5", "--guidance-last has no effect without --guidance; give the scale, too, or leave it out"),
        ("--guidance 1 --guidance-power 2", "--guidance-power has no effect with --guidance 1, which turns guidance"),
        ("--temperature 0 --top-k 5", "--top-k has no effect with --temperature 0, which always takes the most likely"),
        ("--temperature 1e-9 --top-p 0.1 --noise gumbel", "--top-p, --noise have no effect with --temperature 1e-09"),
    ],
)
def test_an_option_of_generate_without_effect_is_refused_before_the_model_is_loaded(words, message):
    result = CliRunner().invoke(cli, ["generate", "--class", "1", "--model", "nowhere", *words.split()])
    assert result.exit_code == 2
    last_error(result.stderr, message)


def test_typed_defaults_of_generate_are_no_options_without_effect(of_classes, tmp_path):
    words = ["--class", "1", "--model", str(of_classes), "--device", "cpu", "--out", str(tmp_path / "out.png")]
    defaults = ["--guidance-first", "0", "--temperature", "0", "--top-p", "1", "--noise", "uniform", "--seed", "5"]
    result = CliRunner().invoke(cli, ["generate", *words, *defaults])
    assert result.exit_code == 0, result.output


def test_a_guidance_that_starts_after_the_last_position_is_refused(of_classes):
    with refusing("got first position of guidance = 64; wanted 0 to 63, the picture's last"):
        load_generator(of_classes).draw([3], seeds=[0], drawing=Drawing(Guidance(6.0, first=64)))


def test_a_models_own_top_k_goes_with_a_temperature_of_0(tmp_path):
    PictureGenerator(small_generator(top_k=3), tokenizer=mean_colour()).save(tmp_path / "model")
    words = ["--class", 1, "--temperature", 0, "--model", tmp_path / "model", "--out", tmp_path / "out.png", "--json"]
    assert json.loads(run(*words).stdout)["settings"]["top_k"] == 3


def test_the_prefix_is_not_written_over(tmp_path, of_classes):
    Image.new("RGB", (32, 32), "red").save(tmp_path / "x.png")
    before = (tmp_path / "x.png").read_bytes()
    words = ["--class", "1", "--model", of_classes, "--prefix", tmp_path / "x.png", "--out", tmp_path / "x.png"]
    done = CliRunner().invoke(cli, ["generate", "--device", "cpu", *map(str, words)])
    assert done.exit_code == 1 and "x.png, which is one of the inputs and would be written over" in done.stderr
    assert (tmp_path / "x.png").read_bytes() == before


@pytest.fixture
def interrupted(of_classes, tmp_path, monkeypatch):
    """Draws six pictures of classes, two at a time, and is interrupted before the third batch."""
    drawn, draw = [], PictureGenerator.draw

    def counted(self, prompts, **how):
        drawn.append(list(zip(prompts, how["seeds"], strict=True)))
        if len(drawn) == 3:
            raise KeyboardInterrupt
        return draw(self, prompts, **how)

    monkeypatch.setattr(PictureGenerator, "draw", counted)

    def call(out, **change):
        options = {"count": 3, "seed": 5, "batch_size": 2, **change}
        return generate([1, 2], tmp_path / out, GenerateSettings(model=ModelSettings(of_classes), **options))

    for out in ("folder", "grid.png"):
        drawn.clear()
        with pytest.raises(KeyboardInterrupt):
            call(out)
    return call, drawn


def test_each_batch_is_written_as_it_is_finished(interrupted, tmp_path):
    there = sorted(path.name for path in (tmp_path / "folder").glob("*.png"))
    assert there == ["0000.png", "0001.png", "0002.png", "0003.png"]
    grid = np.array(open_picture(tmp_path / "grid.png"))
    assert (grid[-32:, -32:] == 255).all() and not (grid[-32:, :32] == 255).all()


@pytest.mark.slow
def test_the_same_call_goes_on_where_it_was_interrupted(interrupted, tmp_path):
    call, drawn = interrupted
    before = (tmp_path / "folder" / "0000.png").stat().st_mtime_ns
    report = call("folder")
    assert drawn[3:] == [[(2, 6), (2, 7)]] and report.found == 4 and "4 of them before" in report.as_text()
    assert [picture.seed for picture in report.pictures] == [5, 6, 7, 5, 6, 7]
    assert (tmp_path / "folder" / "0000.png").stat().st_mtime_ns == before
    whole = call("whole")
    for one, other in zip(report.pictures, whole.pictures, strict=True):
        assert Path(one.file).read_bytes() == Path(other.file).read_bytes()
    assert len(list((tmp_path / "folder").glob("[!.]*"))) == 6
    with pytest.raises(ValueError, match="has pictures already; name another one"):
        call("folder")


OTHER_DRAWINGS = [Drawing(temperature=0.5), Drawing(guidance=Guidance(2.0)), Drawing(top_k=3)]


@pytest.mark.slow
@pytest.mark.parametrize(
    "change", [{"seed": 6}, {"count": 4}, *({"drawing": drawing} for drawing in OTHER_DRAWINGS)]
)
def test_another_call_does_not_go_on_with_the_pictures_of_one_that_was_interrupted(interrupted, change):
    call, drawn = interrupted
    with pytest.raises(ValueError, match="has pictures already; name another one"):
        call("folder", **change)
    assert len(drawn) == 3


@pytest.mark.slow
def test_a_folder_takes_one_call_at_a_time_and_the_same_call_when_the_other_has_died(interrupted, tmp_path):
    call, drawn = interrupted
    held = {path: path.read_bytes() for path in (tmp_path / "folder").iterdir() if path.suffix != ".lock"}
    with locked_elsewhere(tmp_path / "folder/.generate.lock"):
        for seed in (5, 6):
            with pytest.raises(OSError, match=r"another call generates into .*folder; wait") as raised:
                call("folder", seed=seed)
            assert "\n" not in str(raised.value)
    assert {path: path.read_bytes() for path in held} == held and len(drawn) == 3
    assert call("folder").found == 4


def test_two_calls_at_once_into_a_new_folder_do_not_mix_their_pictures(of_classes, tmp_path):
    (tmp_path / "new").mkdir()
    with locked_elsewhere(tmp_path / "new/.generate.lock"):
        words = ["generate", "--class", "1", "--model", of_classes, "--out", tmp_path / "new", "--device", "cpu"]
        result = CliRunner().invoke(cli, list(map(str, words)))
    assert result.exit_code == 1 and "another call generates into" in result.output
    assert [path.name for path in (tmp_path / "new").iterdir()] == [".generate.lock"]


def test_a_record_that_is_gone_already_does_not_end_a_call(of_classes, tmp_path, monkeypatch):
    def pixels(self, ids):
        (tmp_path / "new/.generate.json").unlink(missing_ok=True)
        return drawn(self, ids)

    drawn = PictureGenerator.pixels
    monkeypatch.setattr(PictureGenerator, "pixels", pixels)
    assert len(generate([1], tmp_path / "new", GenerateSettings(model=ModelSettings(of_classes))).pictures) == 1


def test_a_folder_may_have_a_dot_in_its_name(of_classes, tmp_path):
    settings = GenerateSettings(model=ModelSettings(of_classes))
    with pytest.raises(ValueError, match=r"got --out .*run-1\.5; make it first if it is a folder"):
        generate([1], tmp_path / "run-1.5", settings)
    (tmp_path / "run-1.5").mkdir()
    (picture,) = generate([1], tmp_path / "run-1.5", settings).pictures
    assert picture.file == str(tmp_path / "run-1.5/0000.png")


def test_one_text_is_no_list_of_prompts(tmp_path):
    with pytest.raises(ValueError, match="got one text, 'cat'; wanted a list of texts or classes"):
        generate("cat", tmp_path / "out.png")


def test_a_grid_that_no_picture_can_hold_is_refused_before_anything_is_drawn(of_classes, tmp_path):
    with pytest.raises(ValueError, match=r"a grid of 1000000 pictures would have .*; name a folder"):
        generate([1], tmp_path / "x.png", GenerateSettings(model=ModelSettings(of_classes), count=10**6))


def test_models_lists_generators_beside_the_others():
    result = CliRunner().invoke(cli, ["models", "--json"])
    rows = {row["name"]: row for row in json.loads(result.stdout)}
    row = rows["llamagen-c2i-b-384"]
    assert (row["kind"], row["image_size"], row["tokens"], row["licence"]) == ("generator", 384, 576, "MIT")
    assert row["source"] == "FoundationVision/LlamaGen/c2i_B_384.pt" and row["status"] in ("cached", "not cached")
    assert rows["toklip-s-256"]["kind"] == "TokLIP"
