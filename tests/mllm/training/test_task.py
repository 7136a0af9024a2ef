"""Training: exact resume, frozen weights, LoRA, the loss, stores, stages."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from toklip_core import plugins
from toklip_core.model import SemanticEncoder
from toklip_core.training import parameter_groups
from toklip_core.weights import weights_checksum
from toklip_mllm.model import load_language_model
from toklip_mllm.training import (
    Conversation,
    Example,
    MLLMTask,
    MLLMTraining,
    collate,
    freeze,
    join_branches,
    label_conversation,
    task,
    train_mllm,
)
from toklip_mllm.training.task import compute_answers, refuse_other_attention
from transformers import (
    AutoModelForImageTextToText,
    AutoProcessor,
    BloomConfig,
    FalconConfig,
    GPTNeoConfig,
    MptConfig,
)

from tests.support import mean_colour
from tests.support.kept_activations import kept_by
from tests.support.mllm_runs import (
    SCENES,
    SMALL,
    assert_same_run,
    config,
    exported,
    file_data,
    lines,
    write_tokens,
    write_world,
)
from tests.support.small_mllms import FAMILIES, MARKED, ids, language_model, small_mllm, tokenizer

CLOSE = dict(rtol=1e-4, atol=1e-5)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(mean_colour.install(folder / "site")))
        plugins.registry.cache_clear()
        write_world(folder)
        write_tokens(folder)
        yield folder
    plugins.registry.cache_clear()


def everything(world: Path, **changes):
    """A small language model from nothing, over scenes, with an evaluation."""
    joint = {"language_model": None, "small": SMALL, "held_out": {"scenes": 2}, "max_length": 140}
    return config(world, SCENES, **joint | changes)


@pytest.fixture(scope="module")
def whole(world, tmp_path_factory):
    """The run of four steps without a break."""
    out = tmp_path_factory.mktemp("runs") / "whole"
    assert train_mllm(everything(world), out).step == 4
    return out


def batch_of(processor, *turns):
    """A padded batch of single turns, with pictures where the questions have them."""
    pictures = sum(question.count("<image>") for question, _ in turns)
    stock = iter(ids(pictures or 1))
    examples = [
        label_conversation(
            Conversation("", ({"role": "user", "content": question}, {"role": "assistant", "content": answer})),
            processor,
            image_ids=torch.stack([next(stock)]) if "<image>" in question else ids(1)[:0],
        )
        for question, answer in turns
    ]
    return collate(examples, pad_id=0)


TURNS = [("<image> what is it ?", "red circle"), ("<image> how many red circle is it ?", "two ."), ("yes ?", "no")]


@pytest.mark.slow
@pytest.mark.parametrize("step", [1, 2, 3])
def test_each_save_is_a_place_to_go_on_from_bit_for_bit(step, world, whole, tmp_path):
    out = tmp_path / "run"
    (out / "checkpoints").mkdir(parents=True)
    shutil.copy(whole / "run.json", out)
    shutil.copy(whole / "metrics.jsonl", out)
    shutil.copytree(whole / f"checkpoints/step-{step:08d}", out / f"checkpoints/step-{step:08d}")
    train_mllm(everything(world), out)
    assert_same_run(out, whole)


def test_the_result_is_a_model_for_the_auto_classes(whole):
    model, processor = load_language_model(whole / "model")
    automatic = AutoModelForImageTextToText.from_pretrained(whole / "model")
    assert all(torch.equal(weight, automatic.state_dict()[name]) for name, weight in model.state_dict().items())
    assert AutoProcessor.from_pretrained(whole / "model").chat_template == processor.chat_template
    assert model.generation_config.eos_token_id == processor.tokenizer.eos_token_id


def test_the_log_has_the_shares_of_right_answers_by_type(whole):
    last = lines(whole)[-1]
    assert {"evaluate/exact_match", "evaluate/colour", "evaluate/existence"} <= last.keys()


@pytest.mark.slow
def test_learning_lowers_the_loss(world, tmp_path):
    longer = {"steps": 40, "learning_rate": 1e-2, "batch_size": 6, "save_every": 40}
    train_mllm(config(world, file_data(world), run=longer), tmp_path / "run")
    losses = [line["loss/text"] for line in lines(tmp_path / "run")]
    assert sum(losses[-5:]) < 0.6 * sum(losses[:5])


@pytest.mark.slow
def test_a_token_store_trains_the_same_model_as_its_pictures(world, tmp_path):
    for name, changes in (("pictures", {}), ("store", {"store": str(world / "store")})):
        train_mllm(config(world, file_data(world, **changes)), tmp_path / name)
    mine, theirs = exported(tmp_path / "pictures"), exported(tmp_path / "store")
    assert [name for name in mine if not torch.equal(mine[name], theirs[name])] == []


@pytest.fixture
def encoder_calls(monkeypatch):
    """How often the semantic encoder worked."""
    calls: list[int] = []
    forward = SemanticEncoder.forward
    monkeypatch.setattr(SemanticEncoder, "forward", lambda *given, **named: calls.append(1) or forward(*given, **named))
    return calls


@pytest.mark.slow
def test_a_store_with_tokens_trains_the_same_model_within_rounding_and_the_encoder_rests(
    world, tmp_path, encoder_calls
):
    for name, store in (("ids", "store"), ("tokens", "tokens")):
        encoder_calls.clear()
        stored = file_data(world, store=str(world / store))
        train_mllm(config(world, stored, run={"learning_rate": 1e-4}), tmp_path / name)
    assert not encoder_calls
    for mine, theirs in zip(lines(tmp_path / "ids"), lines(tmp_path / "tokens"), strict=True):
        assert theirs["loss/text"] == pytest.approx(mine["loss/text"], rel=2**-10)
    mine, theirs = exported(tmp_path / "ids"), exported(tmp_path / "tokens")
    for name in mine:
        torch.testing.assert_close(theirs[name], mine[name], rtol=2**-8, atol=2e-4, msg=name)


@pytest.mark.slow
def test_a_run_over_stored_tokens_goes_on_bit_for_bit(world, tmp_path):
    settings = config(world, file_data(world, store=str(world / "tokens")))
    train_mllm(settings, tmp_path / "whole")
    (tmp_path / "run/checkpoints").mkdir(parents=True)
    for name in ("run.json", "metrics.jsonl"):
        shutil.copy(tmp_path / "whole" / name, tmp_path / "run")
    shutil.copytree(tmp_path / "whole/checkpoints/step-00000002", tmp_path / "run/checkpoints/step-00000002")
    train_mllm(settings, tmp_path / "run")
    assert_same_run(tmp_path / "run", tmp_path / "whole")


@pytest.mark.slow
def test_a_later_stage_reads_the_tokens_too_unless_the_encoder_was_trained(world, tmp_path, encoder_calls):
    stored = file_data(world, store=str(world / "tokens"))
    for name, parts, calls in (("frozen", ["connector"], False), ("trained", ["connector", "encoder"], True)):
        train_mllm(config(world, stored, train=parts, saved_dtype="bfloat16", run={"steps": 1}), tmp_path / name)
        encoder_calls.clear()
        start = {"start": str(tmp_path / name / "model"), "toklip": None, "language_model": None}
        train_mllm(config(world, stored, **start, run={"steps": 1}), tmp_path / f"{name}-2")
        assert bool(encoder_calls) is calls


@pytest.mark.slow
def test_a_model_is_trained_on_pictures_made_square_as_its_settings_say(world, tmp_path):
    train_mllm(config(world, file_data(world), resize="pad", run={"steps": 1}), tmp_path / "padded")
    model, processor = load_language_model(tmp_path / "padded/model")
    assert model.config.resize == processor.resize == "pad"
    start = {"start": str(tmp_path / "padded/model"), "toklip": None, "language_model": None}
    with pytest.raises(ValueError, match="got resize beside start, whose model has its own; leave it out"):
        config(world, file_data(world), **start, resize="crop")


def changed_parts(before: dict, after: dict) -> set[str]:
    return {name.split(".")[0] for name in after if not torch.equal(before[name], after[name])}


@pytest.mark.slow
def test_stage_one_changes_the_connector_and_stage_two_the_language_model_as_well(world, tmp_path):
    start, _ = small_mllm(template=MARKED)
    captions = str(world / "captions.json")
    train_mllm(config(world, file_data(world, file=captions), train=["connector"], template="plain"), tmp_path / "one")
    one = exported(tmp_path / "one")
    frozen = {name: weight for name, weight in start.state_dict().items() if not name.startswith("connector.")}
    assert all(torch.equal(one[name], weight) for name, weight in frozen.items())
    stage = {"start": str(tmp_path / "one/model"), "toklip": None, "language_model": None}
    train_mllm(config(world, file_data(world), **stage), tmp_path / "two")
    assert changed_parts(one, exported(tmp_path / "two")) == {"connector", "language_model"}


@pytest.mark.slow
@pytest.mark.parametrize("learns", [True, False])
def test_a_small_model_learns_the_words_of_a_later_stage_if_its_language_model_is_trained(
    world, whole, tmp_path, learns
):
    first, processor = load_language_model(whole / "model")
    known = processor.tokenizer.get_vocab()
    said_then = [{"from": "human", "value": "<image>\nis that an elephant?"}, {"from": "gpt", "value": "elephant"}]
    (tmp_path / "more.json").write_text(json.dumps([{"image": "00.png", "conversations": said_then}] * 4))
    data = file_data(world, file=str(tmp_path / "more.json"))
    stage = {"start": str(whole / "model"), "toklip": None, "language_model": None, "max_length": 140}
    parts = ["connector", "language_model"] if learns else ["connector"]
    train_mllm(config(world, data, **stage, train=parts, run={"steps": 1}), tmp_path / "two")
    second, processor = load_language_model(tmp_path / "two/model")
    found = processor.tokenizer.get_vocab()
    assert {word: found[word] for word in known} == known
    assert ("\u2581elephant" in found) is learns
    rows = second.language_model.get_input_embeddings().num_embeddings
    assert rows == len(found) if learns else rows == first.language_model.get_input_embeddings().num_embeddings
    assert second.config.text_config.vocab_size == rows


@pytest.mark.slow
@pytest.mark.parametrize("lora", [{}, {"lora": {"rank": 2, "dropout": 0.0}}])
def test_what_is_trained_over_a_language_model_in_half_precision_is_exported_unrounded(world, tmp_path, lora):
    language_model().to(torch.bfloat16).save_pretrained(tmp_path / "language")
    tokenizer(MARKED).save_pretrained(tmp_path / "language")
    half = {"frozen_dtype": "bfloat16", "language_model": str(tmp_path / "language"), "run": {"precision": "bf16"}}
    train_mllm(config(world, file_data(world), **half, **lora), tmp_path / "run")
    weight = exported(tmp_path / "run")["language_model.model.layers.0.self_attn.q_proj.weight"]
    assert weight.dtype == torch.float32 and not torch.equal(weight, weight.bfloat16().float())


@pytest.mark.slow
def test_lora_is_merged_into_what_is_exported(world, tmp_path):
    lora = {"lora": {"rank": 2, "alpha": 4, "dropout": 0.0}}
    train_mllm(config(world, file_data(world), **lora), tmp_path / "run")
    after = exported(tmp_path / "run")
    names, before = set(after), small_mllm(template=MARKED)[0].state_dict()
    adapted = {name for name in after if "connector" not in name and not torch.equal(after[name], before[name])}
    assert adapted and all(".layers." in name and name.endswith("_proj.weight") for name in adapted)
    assert not [name for name in names if "lora" in name or "base_layer" in name]
    model, _ = load_language_model(tmp_path / "run/model")
    assert names <= set(model.state_dict())


def test_adapters_are_all_that_lora_trains(world):
    model, _ = small_mllm()
    freeze(model, config(world, SCENES, lora={"rank": 2}))
    trained = [name for name, weight in model.named_parameters() if weight.requires_grad]
    trained = [name for name in trained if not name.startswith("connector.")]
    assert trained and all(".lora_" in name and name.startswith("language_model.") for name in trained)
    assert not [name for name in trained if "lm_head" in name]


def test_an_encoder_that_is_trained_leaves_its_pooling_out(world):
    model, processor = small_mllm()
    freeze(model, config(world, SCENES, train=["connector", "encoder"]))
    MLLMTraining(model).train()(batch_of(processor, *TURNS)).losses["text"].backward()
    wanted = {name for name, weight in model.named_parameters() if weight.requires_grad}
    assert wanted == {name for name, weight in model.named_parameters() if weight.grad is not None}
    assert wanted and not [name for name in wanted if "attn_pool" in name]


def test_the_loss_is_the_mean_over_the_tokens_of_the_answers():
    model, processor = small_mllm()
    batch = batch_of(processor, *TURNS)
    with torch.no_grad():
        ours = MLLMTraining(model)(batch).losses["text"]
        torch.testing.assert_close(ours, model(**batch).loss, **CLOSE)


@pytest.mark.slow
@pytest.mark.parametrize("family", [*FAMILIES, "gpt2"])
def test_logits_are_computed_where_a_row_has_a_label_and_the_loss_is_that_of_all(family):
    model, processor = small_mllm(family)
    batch = batch_of(processor, *TURNS)
    kept: list[int] = []
    head = model.get_output_embeddings()
    head.register_forward_hook(lambda module, given, logits: kept.append(logits.shape[1]))
    with torch.no_grad():
        loss = MLLMTraining(model)(batch).losses["text"]
        torch.testing.assert_close(loss, model(**batch).loss, **CLOSE)
    labelled_places = int((batch["labels"][:, 1:] != -100).any(dim=0).sum())
    assert kept == [labelled_places, batch["labels"].shape[1]] and labelled_places < 20


def test_a_language_model_that_gives_all_logits_has_the_same_loss():
    model, processor = small_mllm()
    batch = batch_of(processor, *TURNS)
    with torch.no_grad():
        wanted = MLLMTraining(model)(batch).losses["text"]
        model._takes -= {"logits_to_keep"}
        torch.testing.assert_close(MLLMTraining(model)(batch).losses["text"], wanted, **CLOSE)


def test_another_seed_is_other_conversations_and_other_weights(world):
    tasks = [MLLMTask(everything(world, held_out=None, run={"seed": seed})) for seed in (0, 0, 1)]
    weights = [weights_checksum(each.model.model.connector) for each in tasks]
    for one, again, other in (map(conversations, tasks), weights):
        assert one == again != other


@pytest.mark.slow
def test_another_seed_is_other_conversations_when_a_saved_model_is_trained(world, whole):
    begun = {"start": str(whole / "model"), "toklip": None, "small": None}
    tasks = [MLLMTask(everything(world, held_out=None, run={"seed": seed}, **begun)) for seed in (0, 0, 1)]
    one, again, other = map(conversations, tasks)
    assert one == again != other


def conversations(of: MLLMTask):
    return [of.samples[0, place].example.input_ids.tolist() for place in range(len(of.samples))]


@pytest.mark.parametrize("part", ["connector", "encoder"])
def test_a_batch_without_a_picture_comes_by_all_that_is_trained(part, world):
    model, processor = small_mllm()
    freeze(model, config(world, SCENES, train=["language_model", *{part, "connector"}]))
    MLLMTraining(model).train()(batch_of(processor, TURNS[2])).losses["text"].backward()
    assert not [name for name, weight in model.named_parameters() if weight.requires_grad and weight.grad is None]


def test_a_frozen_language_model_is_checkpointed_too(world):
    model, processor = small_mllm()
    freeze(model, config(world, SCENES, train=["connector"], grad_checkpointing=True))
    training = MLLMTraining(model).train()
    model.language_model.eval()  # as fit does with what is frozen
    losses, kept = kept_by(training, batch_of(processor, *TURNS))
    plain, _ = small_mllm()
    freeze(plain, config(world, SCENES, train=["connector"]))
    others, every = kept_by(MLLMTraining(plain).train(), batch_of(processor, *TURNS))
    assert kept < 0.7 * every
    torch.testing.assert_close(losses.losses["text"], others.losses["text"], **CLOSE)


def test_weights_that_are_frozen_have_the_dtype_of_the_settings(world):
    model, _ = small_mllm()
    half = {"frozen_dtype": "bfloat16", "run": {"precision": "bf16"}}
    freeze(model, config(world, SCENES, train=["connector"], **half))
    dtypes = {weight.requires_grad: weight.dtype for weight in model.parameters()}
    assert dtypes == {True: torch.float32, False: torch.bfloat16}
    assert model.vision.embedding.rows().dtype == torch.float32


@pytest.mark.parametrize(
    ("changes", "read"),
    [
        ({"train": ["connector"]}, torch.bfloat16),
        ({"lora": {"rank": 2}}, torch.bfloat16),
        ({}, torch.float32),
        ({"train": ["connector", "encoder"]}, torch.float32),
    ],
    ids=["frozen", "lora", "whole", "encoder"],
)
def test_a_language_model_that_rests_in_half_precision_is_read_in_it(changes, read, world, tmp_path, monkeypatch):
    dtypes = []

    def spy(model, settings):
        dtypes.append({weight.dtype for weight in model.parameters()})

    monkeypatch.setattr("toklip_mllm.training.task.freeze", spy)
    monkeypatch.setattr("toklip_mllm.training.task.fit", lambda *given: None)
    half = {"frozen_dtype": "bfloat16", "run": {"precision": "bf16"}}
    train_mllm(config(world, SCENES, **half, **changes), tmp_path / "run")
    assert dtypes == [{read}]


def test_a_later_stage_reads_a_model_as_it_is_stored_and_loses_nothing(world, tmp_path, monkeypatch):
    train_mllm(config(world, SCENES, train=["connector"], run={"steps": 1}), tmp_path / "one")
    stored, kept = exported(tmp_path / "one"), {}

    def beginning(task, *given):
        kept.update({name: weight for name, weight in task.model.model.named_parameters() if weight.requires_grad})

    monkeypatch.setattr("toklip_mllm.training.task.fit", beginning)
    half = {"frozen_dtype": "bfloat16", "run": {"precision": "bf16"}}
    start = {"start": str(tmp_path / "one/model"), "toklip": None, "language_model": None}
    train_mllm(config(world, SCENES, **half, **start), tmp_path / "two")
    assert kept and all(torch.equal(weight, stored[name]) for name, weight in kept.items())


def test_conversations_longer_than_the_context_are_refused_before_the_first_step(world, tmp_path):
    with pytest.raises(ValueError, match="got max_length 513, but the language model's context is 512; set"):
        train_mllm(config(world, SCENES, max_length=513), tmp_path / "run")


def test_norms_biases_and_embeddings_are_not_decayed_and_the_connector_has_its_rate(world):
    model, _ = small_mllm()
    freeze(model, config(world, SCENES))
    groups = parameter_groups(MLLMTraining(model), {"connector": 0.1})
    decayed = {name for group in groups if group.weight_decay is None for name in group.names}
    assert "model.connector.0.weight" in decayed and "model.connector.0.bias" not in decayed
    assert not [name for name in decayed if "embed_tokens" in name or "norm" in name]
    rates = {name: group.learning_rate_factor for group in groups for name in group.names}
    assert {rate for name, rate in rates.items() if "connector" in name} == {0.1}
    assert {rate for name, rate in rates.items() if "connector" not in name} == {1.0}


def test_muon_is_for_the_matrices_of_blocks(world):
    model, _ = small_mllm()
    freeze(model, config(world, SCENES, train=["connector", "language_model", "encoder"]))
    groups = parameter_groups(MLLMTraining(model))
    hidden = {name for group in groups if group.matrices for name in group.names}
    assert "model.language_model.model.layers.0.mlp.up_proj.weight" in hidden
    assert "model.vision.encoder.blocks.0.attn.qkv.weight" in hidden
    assert not [name for name in hidden if "connector" in name or "embed" in name or "norm" in name or "bias" in name]


@pytest.mark.parametrize("family", sorted({*FAMILIES, "gpt2"} - {"gemma2"}))
def test_joined_conversations_have_the_logits_that_each_has_by_itself(family):
    model, processor = small_mllm(family, template=MARKED)
    asked = [("<image>\nwhat is red?", "a circle"), ("<image>\na red square", "red"), ("<image>\nwhat?", "a square")]
    pictures = ids()
    examples = [
        label_conversation(
            Conversation("one", ({"role": "user", "content": q}, {"role": "assistant", "content": a})),
            processor,
            image_ids=pictures,
        )
        for q, a in asked
    ]
    joined = join_branches(examples, image_token_id=processor.image_token_id)
    assert len(joined.input_ids) < sum(len(example.input_ids) for example in examples)
    with torch.no_grad():
        alone = [compute_answers(model, collate([example], pad_id=0)).logits for example in examples]
        together = compute_answers(model, collate([joined, examples[0]], pad_id=0))
    torch.testing.assert_close(together.logits, torch.cat([*alone, alone[0]]), **CLOSE)


def test_independent_questions_are_refused_where_attention_has_no_such_mask():
    config = small_mllm("gemma2")[0].language_model.config
    refuse_other_attention(config, 64)
    with pytest.raises(ValueError, match="a language model with attention in windows of 64 tokens, which cannot mask"):
        refuse_other_attention(config, 65)
    config = small_mllm("gpt2")[0].language_model.config
    refuse_other_attention(config, 512)
    config._attn_implementation = "flash_attention_2"
    with pytest.raises(ValueError, match="with the attention 'flash_attention_2', which cannot mask"):
        refuse_other_attention(config, 65)


@pytest.mark.parametrize(
    "of_model",
    [BloomConfig(), MptConfig(), FalconConfig(alibi=True), GPTNeoConfig(window_size=60)],
    ids=lambda of_model: of_model.model_type,
)
def test_independent_questions_are_refused_where_distances_count_or_windows_end(of_model):
    of_model._attn_implementation = "sdpa"
    with pytest.raises(ValueError, match=r"with (ALiBi|attention in windows of 60 tokens), which cannot mask them"):
        refuse_other_attention(of_model, 64)


def test_models_without_alibi_or_short_windows_may_join_questions():
    for of_model in (FalconConfig(alibi=False), GPTNeoConfig(window_size=64)):
        of_model._attn_implementation = "sdpa"
        refuse_other_attention(of_model, 64)


def test_conversations_that_differ_before_their_picture_are_not_joined():
    none = torch.empty(0, 1, 1, 1, dtype=torch.int64)
    rows = [torch.tensor([1, 9, 5]), torch.tensor([2, 9, 5])]
    with pytest.raises(ValueError, match="the conversations differ before the end of the pictures"):
        join_branches([Example(row, row, none) for row in rows], image_token_id=9)


def test_a_model_trains_on_independent_questions_and_its_file_gives_their_logits(world, tmp_path):
    source = SCENES | {"independent": True, "rounds": 2, "questions": ["existence", "colour"]}
    joint = {"language_model": None, "small": SMALL, "max_length": 140}
    assert train_mllm(config(world, source, **joint, run={"steps": 1}), tmp_path / "run").step == 1
    assert load_language_model(tmp_path / "run/model")[0].config.text_config.model_type == "qwen3"


def test_independent_questions_are_refused_where_layers_read_across_a_mask():
    config = SimpleNamespace(layer_types=["full_attention", "conv"], _attn_implementation="sdpa", model_type="lfm2")
    with pytest.raises(ValueError, match="a language model with layers of the kinds conv, which cannot mask"):
        refuse_other_attention(config, 64)


def test_conversations_whose_answer_follows_the_picture_are_not_joined():
    none = torch.empty(0, 1, 1, 1, dtype=torch.int64)
    rows = [torch.tensor([1, 9, 5]), torch.tensor([1, 9, 6])]
    with pytest.raises(ValueError, match="an answer follows the picture without a question between them"):
        join_branches([Example(row, row, none) for row in rows], image_token_id=9)
    with pytest.raises(ValueError, match="the conversations have no picture"):
        join_branches([Example(row, row, none) for row in rows], image_token_id=8)


@pytest.mark.parametrize(("processes", "mean"), [(1, 3.0), (2, 1.5), (8, 0.375)])
def test_a_loss_is_the_mean_over_all_tokens_however_many_processes_there_are(monkeypatch, processes, mean):
    """Gradients are averaged over processes, so the sums of losses are divided by this number and then by processes."""
    monkeypatch.setattr(task.dist, "is_initialized", lambda: True)
    monkeypatch.setattr(task.dist, "get_world_size", lambda: processes)
    monkeypatch.setattr(task.dist, "all_reduce", lambda total: total.fill_(3.0))
    assert task._mean_over_processes(torch.tensor(1)) == mean
