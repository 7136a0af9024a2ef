"""`toklip train mllm` of a model that reads and draws: resume, stores, dropped prompts, mixtures, adapters."""

import json
import shutil

import pytest
import torch
from click.testing import CliRunner
from toklip_core import plugins
from toklip_core.cli import cli
from toklip_mllm.model import load_language_model
from toklip_mllm.training import ConversationSamples, MLLMTask, open_sources, train_mllm
from toklip_mllm.training.settings import Drawings, SceneConversations
from toklip_mllm.training.sources import PictureFormat, repeat_readers

from tests.support import mean_colour
from tests.support.mllm_runs import SMALL, assert_same_run, config, exported, file_data, lines, write_world
from tests.support.small_mllms import MARKED
from tests.support.small_unified import small_unified, to_draw

pytestmark = pytest.mark.slow

HEAD = {"level_blocks": 1, "level_width": 16, "level_heads": 2, "guidance": 2.0}
PARTS = ["connector", "language_model", "image_head"]
PLAIN = {"kind": "drawings", "pictures": {"kind": "scenes", "count": 12, "background": "plain"}}


@pytest.fixture(scope="module", params=["mean-colour", "residual-greys"])
def world(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(mean_colour.install(folder / "site")))
        plugins.registry.cache_clear()
        named = request.param
        write_world(folder, None if named == "mean-colour" else mean_colour.several(named))
        for number in range(10):
            (folder / f"pictures/{number:02}.txt").write_text("a red circle" if number % 2 else "one blue square")
        shutil.rmtree(folder / "store")
        patch.chdir(folder)
        assert not CliRunner().invoke(
            cli, f"encode pictures --out store --tokenizer {named} --size 32".split(), obj=plugins.registry()
        ).exit_code
        yield folder
    plugins.registry.cache_clear()


def settings(world, *data, **changes):
    return config(world, *data, **{"train": PARTS, "image_head": HEAD, **changes})


def drawings(world, kind="pictures"):
    source = {"pictures": {"inputs": [str(world / "pictures")]}, "store": {"store": str(world / "store")}}[kind]
    return {"kind": "drawings", "pictures": {"kind": kind, **source}, "requests": ["the picture ? {caption}"]}


def test_a_run_over_both_is_resumed_bit_for_bit_and_its_model_draws(world, tmp_path):
    run = {"steps": 3}
    data = (file_data(world), drawings(world), PLAIN | {"passes": 2})
    more = {"prompt_dropout": 0.3, "scheduled_sampling": 0.5}
    train_mllm(settings(world, *data, run=run, **more), tmp_path / "whole")
    broken = tmp_path / "broken"
    (broken / "checkpoints").mkdir(parents=True)
    for file in ("run.json", "metrics.jsonl"):
        shutil.copy(tmp_path / "whole" / file, broken)
    shutil.copytree(tmp_path / "whole/checkpoints/step-00000001", broken / "checkpoints/step-00000001")
    train_mllm(settings(world, *data, run=run, **more), broken)
    assert_same_run(broken, tmp_path / "whole")
    assert all(max(line[name] for line in lines(broken)) > 1 for name in ("loss/image", "loss/text"))
    model, processor = load_language_model(broken / "model")
    ids = model.generate(**to_draw(processor, "a red circle"), generation_mode="image", seeds=[1])
    assert tuple(ids.shape[:3]) == (1, 8, 8)
    assert processor.postprocess(ids)["pixel_values"][0].size == (32, 32)


@pytest.mark.parametrize("largest_share", [0.4, 1.0])
def test_scheduled_sampling_reads_sampled_ids_in_drawn_pictures_alone_and_predicts_the_same(world, largest_share):
    """A head that gives one level all the chance, so a position with it was sampled."""
    task = MLLMTask(settings(world, drawings(world), file_data(world), scheduled_sampling=largest_share, held_out=None))
    head, begin = task.model.model.required_head(), task.model.model.config.head_config.begin_token_id
    hooks = [
        layer.register_forward_hook(lambda module, read, logits: logits.index_fill(-1, torch.tensor(3), 1e4))
        for layer in head.predict.heads
    ]
    seen = []
    vision = task.model.model.vision
    hooks.append(vision.register_forward_pre_hook(lambda module, read: seen.append(read[0].clone())))
    samples = [task.samples[0, place] for place in range(len(task.samples))]
    draws = [begin in task.samples.collate([sample])["input_ids"] for sample in samples]
    drawn = [sample for sample, own in zip(samples, draws, strict=True) if own]
    read = [sample for sample, own in zip(samples, draws, strict=True) if not own]
    task.model.train()
    for rows in (drawn * 20, read):
        seen.clear()
        batch = task.prepare(task.samples.collate(rows))
        task.model(batch)
        changed = (seen[-1] != batch["image_ids"]).any(-1)
        if rows is read:
            assert len(seen) == 1 and not changed.any()
            continue
        split = task.model.model.id_levels
        assert (split.split(seen[-1][changed]) == 3).all()
        assert torch.equal(seen[0], batch["image_ids"])
        shares = changed.float().mean((1, 2))
        assert 0.8 * largest_share < 2 * shares.mean() < 1.1 * largest_share and shares.max() < largest_share + 0.2
    for hook in hooks:
        hook.remove()


def test_with_scheduled_sampling_every_trained_weight_gets_a_gradient_under_autocast(world):
    task = MLLMTask(settings(world, drawings(world), scheduled_sampling=0.5, held_out=None))
    batch = task.prepare(task.samples.collate([task.samples[0, place] for place in range(4)]))
    with torch.autocast("cpu", torch.bfloat16):
        losses = task.objective(task.model.train(), batch, 0).losses
    sum(losses.values()).backward()
    missing = [name for name, weight in task.model.named_parameters() if weight.requires_grad and weight.grad is None]
    assert missing == []


def test_a_token_store_trains_the_same_model_as_its_pictures(world, tmp_path):
    for kind in ("pictures", "store"):
        train_mllm(settings(world, drawings(world, kind), run={"steps": 2}, held_out=None), tmp_path / kind)
    mine, theirs = exported(tmp_path / "pictures"), exported(tmp_path / "store")
    assert [name for name in mine if not torch.equal(mine[name], theirs[name])] == []


def test_the_first_loss_is_that_of_ids_that_are_all_equally_likely(world, tmp_path):
    train_mllm(settings(world, drawings(world), run={"steps": 1}), tmp_path / "one")
    sizes = load_language_model(tmp_path / "one/model")[0].id_levels.sizes
    expected = torch.tensor(sizes).log().mean()
    assert lines(tmp_path / "one")[0]["loss/image"] == pytest.approx(float(expected), rel=1e-4)


def test_weights_of_the_losses(world, tmp_path):
    for name, changes in (("one", {}), ("two", {"image_weight": 2.0, "image_z_loss": 0.5})):
        train_mllm(settings(world, drawings(world), run={"steps": 1}, **changes), tmp_path / name)
    one, two = lines(tmp_path / "one")[0], lines(tmp_path / "two")[0]
    assert two["loss/image"] == pytest.approx(2 * one["loss/image"]) and two["loss/text"] == one["loss/text"]
    assert "loss/image_z" not in one and two["loss/image_z"] > 0


def test_adapters_are_merged_into_a_model_that_draws(world, tmp_path):
    lora = {"rank": 4, "alpha": 8, "dropout": 0.0}
    train_mllm(settings(world, drawings(world), lora=lora, run={"steps": 2}), tmp_path / "lora")
    model, _ = load_language_model(tmp_path / "lora/model")
    assert not [name for name in model.state_dict() if "lora" in name] and model.image_head is not None


def test_a_saved_model_gets_a_head_and_one_that_draws_goes_on(world, tmp_path):
    train_mllm(config(world, file_data(world), run={"steps": 1}), tmp_path / "reads")
    begun = {"start": str(tmp_path / "reads/model"), "toklip": None, "language_model": None}
    train_mllm(settings(world, drawings(world), run={"steps": 1}, **begun), tmp_path / "draws")
    begun["start"] = str(tmp_path / "draws/model")
    train_mllm(settings(world, drawings(world), run={"steps": 1}, image_head=None, **begun), tmp_path / "on")
    assert load_language_model(tmp_path / "on/model")[0].image_head is not None


def test_a_small_language_model_learns_the_words_of_requests(world, tmp_path):
    small = {"small": SMALL, "language_model": None, "max_length": 160}
    scenes = {"kind": "scenes", "count": 8, "turns": 2, "drawn_share": 0.5}
    train_mllm(settings(world, scenes, PLAIN, run={"steps": 1}, **small), tmp_path / "small")
    words = load_language_model(tmp_path / "small/model")[1].tokenizer
    assert words.unk_token_id not in words("draw a red circle")["input_ids"]


def test_another_seed_drops_other_prompts(world):
    dropped = []
    for seed in (0, 0, 1):
        task = MLLMTask(settings(world, drawings(world), prompt_dropout=0.5, held_out=None, run={"seed": seed}))
        each = task.processor.tokens_per_picture
        lengths = [len(task.samples[0, place].example.input_ids) for place in range(len(task.samples))]
        dropped.append([length == 1 + each for length in lengths])
    one, again, other = dropped
    assert one == again != other and 0 < sum(one) < len(one)


def samples(data, processor, **options):
    readers = open_sources(data, PictureFormat(32, "crop"), seed=0)
    return ConversationSamples(repeat_readers(readers, data), processor, max_length=400, **options)


def test_a_dropped_prompt_leaves_the_begin_token_and_the_picture():
    _, processor = small_unified(template=MARKED)
    data = [Drawings.model_validate(PLAIN), SceneConversations(kind="scenes", count=12, drawn_share=1.0, turns=2)]
    begin, image = (processor.tokenizer.convert_tokens_to_ids(x) for x in ("<begin_image>", "<image>"))
    alone = torch.tensor([begin, *[image] * 64])
    kept, dropped = (samples(data, processor, prompt_dropout=share) for share in (0.0, 0.5))
    found = [(dropped[0, i], kept[0, i]) for i in range(24)]
    short = [torch.equal(one.example.input_ids, alone) for one, _ in found]
    assert 4 < sum(short) < 20
    for is_short, (one, other) in zip(short, found, strict=True):
        assert torch.equal(one.rgb, other.rgb)
        assert is_short or torch.equal(one.example.input_ids, other.example.input_ids)
        assert (one.example.labels == -100).all() == is_short
        tokens = other.example.input_ids.tolist()
        place = tokens.index(image)
        assert tokens[place - 1] == begin and other.example.labels[place - 1] == begin
    assert [torch.equal(dropped[1, i].example.input_ids, alone) for i in range(24)] != short


def test_scenes_follow_one_another_in_a_conversation():
    options = {"kind": "scenes", "drawn_share": 0.5, "turns": 1, "caption_share": 0.0}
    (reader,) = open_sources([SceneConversations(count=8, scenes=2, **options)], PictureFormat(32, "crop"), seed=0)
    (ones,) = open_sources([SceneConversations(count=16, scenes=1, **options)], PictureFormat(32, "crop"), seed=0)
    later = 0
    for index in range(8):
        conversation, rgb, *_ = reader[1, index]
        assert len(conversation.pictures) == 2
        assert torch.equal(rgb, torch.cat([ones[1, 2 * index + part].rgb for part in range(2)]))
        shown = [i for i, message in enumerate(conversation.messages) if "<image>" in message["content"]]
        assert len(shown) == 2 and shown[0] < 2 <= shown[1]
        later += conversation.messages[shown[1]]["role"] == "assistant"
        last = conversation.messages[-1]
        assert last["role"] == "assistant" and "<image>" not in last["content"]
    assert 0 < later < 8
    (length,) = set(reader.lengths(16).tolist())
    assert length > 33


def test_a_batch_has_either_drawings_or_questions():
    _, processor = small_unified(template=MARKED)
    sources = [Drawings.model_validate(PLAIN), SceneConversations(kind="scenes", count=8, independent=True)]
    readers = open_sources(sources, PictureFormat(32, "crop"), seed=0)
    found = ConversationSamples(readers, processor, max_length=256, batch_size=4)
    drawings = (found.order(len(found), 0, 0) < len(readers[0])).reshape(-1, 4)
    assert (drawings.all(1) == drawings.any(1)).all() and 0 < drawings.sum() < drawings.numel()


def test_passes_set_the_mixture_and_are_epochs_of_the_source():
    _, processor = small_unified(template=MARKED)
    once = [Drawings.model_validate(PLAIN)]
    twice = [Drawings.model_validate(PLAIN | {"passes": 2}), SceneConversations(kind="scenes", count=3)]
    one, two = samples(once, processor), samples(twice, processor)
    assert (len(one), len(two)) == (12, 27)
    for index in range(12):
        for number in range(2):
            mine, theirs = two[1, number * 12 + index], one[2 + number, index]
            assert torch.equal(mine.rgb, theirs.rgb)
    assert len(two.order(27, 0, 0)) == 27


def test_settings_that_cannot_draw_are_refused(world):
    with pytest.raises(ValueError, match="the data have pictures to draw, but the model has no image head"):
        MLLMTask(config(world, drawings(world)))
    with pytest.raises(ValueError, match="got image_weight, prompt_dropout for a model without image head, where"):
        MLLMTask(config(world, file_data(world), image_weight=2.0, prompt_dropout=0.2))
    with pytest.raises(ValueError, match="a new image head knows nothing; put image_head into train"):
        settings(world, drawings(world), train=["connector"])
    with pytest.raises(ValueError, match="the model has no image head, so it reads pictures and draws none"):
        MLLMTask(settings(world, file_data(world), image_head=None))
    with pytest.raises(ValueError, match=r"got the request 'draw it'; put \{caption\} where the caption goes"):
        settings(world, drawings(world) | {"requests": ["draw it"]})
    with pytest.raises(ValueError, match=r"template 'plain' renders nothing that the user says, so pictures would be"):
        settings(world, drawings(world), template="plain")
    with pytest.raises(ValueError, match="a new connector knows nothing; put connector into train"):
        config(world, file_data(world), train=["language_model"])
    with pytest.raises(ValueError, match=r"got the prompt 'briefly'; put \{\} where the question goes"):
        config(world, file_data(world), held_out={"scenes": 2, "prompt": "briefly"})
    with pytest.raises(ValueError, match="root has no effect without questions; leave it out"):
        config(world, file_data(world), held_out={"scenes": 2, "root": "here"})
    with pytest.raises(ValueError, match=r"got the token store .*store beside sources without one"):
        MLLMTask(settings(world, drawings(world, "store"), PLAIN))


def test_pictures_that_do_not_fit_are_left_out_and_say_so(world):
    with pytest.raises(ValueError, match="40 tokens end within its pictures"):
        MLLMTask(settings(world, drawings(world), max_length=40)).samples[0, 0]


def test_a_placeholder_in_a_caption_is_no_picture(world, tmp_path):
    for caption in ("a red <image>circle", "a red circle"):
        (tmp_path / "captions.jsonl").write_text(json.dumps({"image": f"{world}/pictures/00.png", "caption": caption}))
        table = {"kind": "table", "table": str(tmp_path / "captions.jsonl")}
        source = Drawings.model_validate({"kind": "drawings", "pictures": table, "requests": ["draw {caption}"]})
        (reader,) = open_sources([source], PictureFormat(32, "crop"), seed=0)
        assert reader[0, 0].conversation.messages[0]["content"] == "draw a red circle"


def test_figures_of_drawings_are_means_over_batches_that_draw(world, tmp_path):
    data = [drawings(world), file_data(world)]
    train_mllm(settings(world, *data, run={"steps": 8, "batch_size": 2, "save_every": 8}), tmp_path / "run")
    logged = [line for line in lines(tmp_path / "run") if "loss/text" in line]
    some, none = ([line for line in logged if (line["loss/image"] > 0) is drew] for drew in (True, False))
    assert some and none and all("id_accuracy" in line for line in some)
    assert not [line for line in none if "id_accuracy" in line]


def test_the_log_is_json(world, tmp_path):
    train_mllm(settings(world, drawings(world), run={"steps": 1}), tmp_path / "one")
    (line,) = (tmp_path / "one/metrics.jsonl").read_text().splitlines()
    assert 0 <= json.loads(line)["id_accuracy"] <= 1


def test_micro_batches_have_the_losses_of_the_whole_batch_however_many_of_them_draw(world, tmp_path):
    """One of four conversations draws, and the answers have different lengths."""
    data = [drawings(world), file_data(world)]
    run = {"steps": 1, "batch_size": 8, "learning_rate": 1e-2}
    for accumulate in (1, 8):
        more = {"image_z_loss": 0.5, "held_out": None, "group_by_length": False}
        train_mllm(settings(world, *data, run=run | {"accumulate": accumulate}, **more), tmp_path / str(accumulate))
    one, many = lines(tmp_path / "1")[0], lines(tmp_path / "8")[0]
    for name in ("loss/text", "loss/image", "loss/image_z", "grad_norm/model"):
        assert many[name] == pytest.approx(one[name], rel=1e-4), name
