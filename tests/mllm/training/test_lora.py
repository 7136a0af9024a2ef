"""`train mllm` exports adapters in any layers as the model that was trained, or refuses them."""

import json

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model, inject_adapter_in_model
from peft.tuners.tuners_utils import BaseTunerLayer
from toklip_core import plugins
from toklip_mllm.model import build_language_model, encoder_checksum, load_language_model
from toklip_mllm.training import LoRA, add_adapters, freeze, save, task as training, train_mllm
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import distribute_module
from transformers import AutoModelForImageTextToText, PreTrainedModel

from tests.support import mean_colour
from tests.support.mllm_runs import SCENES, config, file_data, write_world
from tests.support.small_mllms import FAMILIES, MARKED, ids, language_model, prompt, small_mllm, tokenizer
from tests.support.small_models import small_toklip

pytestmark = [
    pytest.mark.slow,
    # peft and older callers use names that transformers 5 is giving up, and it says that it sees GPT-2's layers.
    pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.* is deprecated:FutureWarning"),
]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(mean_colour.install(folder / "site")))
        plugins.registry.cache_clear()
        write_world(folder)
        yield folder
    plugins.registry.cache_clear()


def adapted(family: str, lora: LoRA, *, tied: bool):
    """A model whose adapters, of random weights, change what it says."""
    words = tokenizer(MARKED)
    bare = language_model(family, tie_word_embeddings=tied)
    model, processor = build_language_model(bare, small_toklip(), tokenizer=words)
    batch = prompt(processor, "<image> what is it ? red", image_ids=ids())
    model.requires_grad_(False)
    with torch.no_grad():
        before = model(**batch).logits
        add_adapters(model.language_model, lora)
        for name, weight in model.named_parameters():
            if ".lora_" in name:
                weight.normal_()
        after = model(**batch).logits
    change = (after - before).abs().max()
    assert change > 0.01
    return model, processor, batch, after, change


OF_LLAMA = ["q_proj", "o_proj", "down_proj", "lm_head", "embed_tokens", "all-linear", "embed_tokens lm_head q_proj"]
OF_GPT2 = ["c_attn", "c_proj", "c_fc", "attn.c_proj", "lm_head", "wte", "wpe", "all-linear", "wte lm_head c_attn", ""]
CASES = [
    *(("llama", tied, targets) for tied in (False, True) for targets in OF_LLAMA),
    *(("gpt2", tied, targets) for tied in (False, True) for targets in OF_GPT2),
    *(("qwen2", True, targets) for targets in OF_LLAMA),
    *((family, True, "embed_tokens lm_head v_proj") for family in FAMILIES),
]


@pytest.mark.slow
@pytest.mark.parametrize(("family", "tied", "targets"), CASES)
def test_the_exported_model_has_the_logits_of_the_adapted_one(family, tied, targets, toy, tmp_path):
    lora = LoRA(rank=3, alpha=5, dropout=0.0, targets=tuple(targets.split()))
    model, processor, batch, logits, change = adapted(family, lora, tied=tied)
    save(model, processor, model.state_dict(), tmp_path / "model", lora=lora)
    folder = tmp_path / "model"
    for exported in (load_language_model(folder)[0], AutoModelForImageTextToText.from_pretrained(folder)):
        with torch.no_grad():
            assert (exported(**batch).logits - logits).abs().max() < 1e-3 * change
    settings = json.loads((tmp_path / "model/config.json").read_text())["text_config"]
    ends = {"lm_head", "embed_tokens", "wte"} & {*targets.split()}
    assert settings["tie_word_embeddings"] is (tied and not ends)
    assert model.config.text_config.tie_word_embeddings is tied


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "target", "message"),
    [
        (
            "llama",
            "v_prjo",
            r"in lora\.targets 'v_prjo' is not a layer of the language model; adapters go into down_",
        ),
        ("llama", "mlp", r"in lora\.targets 'mlp' is a LlamaMLP; adapters go into down_proj, embed_tokens, "),
        ("llama", "norm", r"in lora\.targets 'norm' is a LlamaRMSNorm; "),
        ("gpt2", "ln_f", r"in lora\.targets 'ln_f' is a LayerNorm; adapters go into c_attn, c_fc, c_proj, lm_head, "),
        ("llama", "qkv", r"in lora\.targets 'qkv' is not a layer of the language model; "),
        ("llama", "vision.encoder", r"in lora\.targets 'vision\.encoder' is not a layer of the language model; "),
    ],
)
def test_a_name_that_no_layer_has_or_that_cannot_be_merged_is_refused_before_the_first_step(
    world, tmp_path, family, target, message
):
    language_model(family).save_pretrained(tmp_path / "language")
    tokenizer(MARKED).save_pretrained(tmp_path / "language")
    lora = {"targets": [target, *(["q_proj"] if family == "llama" else ["c_attn"])]}
    changes = {"language_model": str(tmp_path / "language"), "lora": lora}
    settings = config(world, file_data(world), **changes)
    with pytest.raises(ValueError, match=message) as raised:
        train_mllm(settings, tmp_path / "run")
    assert "\n" not in str(raised.value) and not (tmp_path / "run").exists()


@pytest.mark.parametrize("targets", [[], ["all-linear"], ["lm_head", "embed_tokens"]])
def test_adapters_stay_out_of_the_semantic_encoder_and_the_connector(world, targets):
    model, _ = build_language_model(language_model(), small_toklip(), tokenizer=tokenizer(MARKED))
    freeze(model, config(world, SCENES, lora={"rank": 2, "targets": targets}))
    layers = {name for name, _ in model.named_parameters() if ".lora_" in name}
    assert layers and all(name.startswith("language_model.") for name in layers)


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        {"lora": {"rank": 2, "dropout": 0.0, "targets": ["lm_head", "embed_tokens", "q_proj"]}},
        {"lora": {"rank": 2}, "frozen_dtype": "bfloat16", "saved_dtype": "bfloat16", "run": {"precision": "bf16"}},
        {"saved_dtype": "bfloat16", "run": {"ema_decay": 0.5}},
    ],
)
def test_a_run_ends_with_a_model_that_says_what_it_says(world, tmp_path, changes):
    train = ["language_model", "connector"]
    train_mllm(config(world, file_data(world), train=train, **changes), tmp_path / "run")
    assert (tmp_path / "run/model/config.json").is_file()


@pytest.mark.slow
@pytest.mark.parametrize("saved_dtype", ["float32", "bfloat16"])
def test_an_export_that_says_something_else_than_the_run_is_no_end_of_it(world, tmp_path, monkeypatch, saved_dtype):
    """As before adapters of embeddings were merged: they were left out, and nothing showed it."""
    merged = training.merge_adapters

    def without_embeddings(tensors, skeleton, lora):
        found = merged(tensors, skeleton, lora)
        name = "model.embed_tokens"
        return found | {f"{name}.weight": language_model().state_dict()[f"{name}.weight"]}

    lora = {"rank": 4, "alpha": 64, "dropout": 0.0, "targets": ["embed_tokens"]}
    run = {"learning_rate": 0.1, "steps": 4}
    settings = config(world, file_data(world), lora=lora, run=run, saved_dtype=saved_dtype)
    monkeypatch.setattr(training, "merge_adapters", without_embeddings)
    with pytest.raises(OSError, match=r"cannot write .*model \(.* is not the trained model: .*\)") as raised:
        train_mllm(settings, tmp_path / "run")
    assert "\n" not in str(raised.value) and not (tmp_path / "run/model").exists()
    monkeypatch.undo()
    assert train_mllm(settings, tmp_path / "run").step == 4 and (tmp_path / "run/model/config.json").is_file()


def layers_with_adapters(model):
    return {name for name, layer in model.named_modules() if isinstance(layer, BaseTunerLayer)}


def trained_and_merged(model, settings):
    """As peft trains a model: adapters go in, learn something, and are merged."""
    adapted = get_peft_model(model, settings)
    randomized(adapted)
    return adapted, adapted.merge_and_unload


def randomized(adapted):
    for name, weight in adapted.named_parameters():
        if ".lora_" in name:
            weight.data.normal_()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to False:UserWarning")
@pytest.mark.parametrize(
    ("family", "targets"), [("llama", "all-linear"), ("gpt2", "all-linear"), ("llama", ["q_proj", "qkv", "fc1"])]
)
def test_peft_leaves_encoder_and_connector_alone_and_the_checksum_stays(family, targets, toy, tmp_path, caplog):
    model, _ = small_mllm(family)
    before = model.config.encoder_checksum
    adapted, merge = trained_and_merged(model, LoraConfig(r=2, target_modules=targets))
    layers = layers_with_adapters(model)
    assert layers and all(name.startswith("language_model.") for name in layers)
    assert "adapters are not put into" in caplog.text and "vision" in caplog.text
    adapted.save_pretrained(tmp_path / "adapters")
    fresh, _ = small_mllm(family)
    again = PeftModel.from_pretrained(fresh, tmp_path / "adapters")
    assert layers_with_adapters(fresh) == layers
    batch = {"input_ids": torch.tensor([[7, 8, 9]])}
    with torch.no_grad():
        assert torch.equal(again(**batch).logits, adapted(**batch).logits)
    merge().save_pretrained(tmp_path / "model")
    loaded = AutoModelForImageTextToText.from_pretrained(tmp_path / "model")
    assert loaded.config.encoder_checksum == before == encoder_checksum(loaded.vision.encoder)


ADAPTER_TARGETS = ["all-linear", ["q_proj", "qkv", "fc1"]]


@pytest.mark.slow
@pytest.mark.parametrize("excluded", [None, ["v_proj"], r".*\.v_proj"])
@pytest.mark.parametrize("targets", ADAPTER_TARGETS)
def test_a_second_adapter_is_left_out_of_encoder_and_connector_as_the_first_is(
    targets, excluded, toy, tmp_path, caplog
):
    model, _ = small_mllm()
    before = model.config.encoder_checksum
    adapted = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"]))
    assert "adapters are not put into" not in caplog.text
    adapted.add_adapter("b", LoraConfig(r=2, target_modules=targets, exclude_modules=excluded))
    layers = layers_with_adapters(model)
    assert layers and all(name.startswith("language_model.") for name in layers)
    assert caplog.text.count("adapters are not put into") == 1 and "vision" in caplog.text
    randomized(adapted)
    adapted.save_pretrained(tmp_path / "adapters")
    fresh, _ = small_mllm()
    again = PeftModel.from_pretrained(fresh, tmp_path / "adapters")
    again.load_adapter(tmp_path / "adapters/b", adapter_name="b")
    assert layers_with_adapters(fresh) == layers
    batch = {"input_ids": torch.tensor([[7, 8, 9]])}
    for name in ("default", "b"):
        adapted.set_adapter(name)
        again.set_adapter(name)
        with torch.no_grad():
            assert torch.equal(again(**batch).logits, adapted(**batch).logits)
    again.merge_and_unload(adapter_names=["b"]).save_pretrained(tmp_path / "model")
    loaded = AutoModelForImageTextToText.from_pretrained(tmp_path / "model")
    assert loaded.config.encoder_checksum == before == encoder_checksum(loaded.vision.encoder)


@pytest.mark.parametrize("targets", ADAPTER_TARGETS)
@pytest.mark.filterwarnings("ignore:Already found a `peft_config` attribute:UserWarning")
def test_adapters_that_are_injected_as_transformers_does_are_left_out_as_well(targets, toy):
    model, _ = small_mllm()
    inject_adapter_in_model(LoraConfig(r=2, target_modules=["q_proj"]), model, "a")
    inject_adapter_in_model(LoraConfig(r=2, target_modules=targets), model, "b")
    layers = layers_with_adapters(model)
    assert layers and all(name.startswith("language_model.") for name in layers)


@pytest.mark.parametrize("targets", ADAPTER_TARGETS)
def test_an_adapter_of_a_name_that_was_used_before_is_left_out_too(targets, toy):
    model, _ = small_mllm()
    adapted = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"]))
    adapted.add_adapter("b", LoraConfig(r=2, target_modules=["v_proj"]))
    adapted.delete_adapter("b")
    adapted.add_adapter("b", LoraConfig(r=2, target_modules=targets))
    assert all(name.startswith("language_model.") for name in layers_with_adapters(model))


@pytest.mark.parametrize("targets", [r"vision\..*\.qkv", ["vision.encoder.blocks.0.attn.qkv", "v_proj"]])
def test_an_encoder_that_a_second_adapter_names_is_adapted(targets, toy, caplog):
    model, _ = small_mllm()
    adapted = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"]))
    adapted.add_adapter("b", LoraConfig(r=2, target_modules=targets))
    assert any(name.startswith("vision.") for name in layers_with_adapters(model))
    assert "adapters are not put into" not in caplog.text


@pytest.mark.parametrize(
    "targets", [r"vision\..*\.(qkv|fc1)|language_model\..*q_proj", ["vision.encoder.blocks.0.attn.qkv"]]
)
def test_an_encoder_that_is_named_is_adapted_and_has_another_checksum(targets, toy, tmp_path):
    model, _ = small_mllm()
    before = model.config.encoder_checksum
    _, merge = trained_and_merged(model, LoraConfig(r=2, target_modules=targets))
    assert any(name.startswith("vision.") for name in layers_with_adapters(model))
    merge().save_pretrained(tmp_path)
    loaded = AutoModelForImageTextToText.from_pretrained(tmp_path)
    assert loaded.config.encoder_checksum == encoder_checksum(loaded.vision.encoder) != before


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_encoder_that_changed_has_another_checksum_and_one_that_was_rounded_the_same(dtype, toy, tmp_path):
    model, _ = small_mllm()
    before = model.config.encoder_checksum
    model.to(dtype).save_pretrained(tmp_path / "saved")
    loaded = AutoModelForImageTextToText.from_pretrained(tmp_path / "saved")
    assert loaded.config.encoder_checksum == before and loaded.vision.encoder.pos_embed.dtype == dtype
    loaded.float().save_pretrained(tmp_path / "longer")
    again = AutoModelForImageTextToText.from_pretrained(tmp_path / "longer")
    assert again.config.encoder_checksum == before
    with torch.no_grad():
        next(again.vision.encoder.parameters()).add_(1)
    again.save_pretrained(tmp_path / "other")
    other = AutoModelForImageTextToText.from_pretrained(tmp_path / "other")
    assert other.config.encoder_checksum == encoder_checksum(other.vision.encoder) != before


def read_again(model, folder, **options):
    """The config that a model is saved with, and the checksum of the encoder that is saved."""
    model.save_pretrained(folder, **options)
    loaded = AutoModelForImageTextToText.from_pretrained(folder)
    return loaded.config.encoder_checksum, encoder_checksum(loaded.vision.encoder)


def trained(model):
    """A state dict as it is gathered of all processes that train the encoder; the model itself is as before."""
    return {name: tensor + name.startswith("vision.encoder.") for name, tensor in model.state_dict().items()}


def test_weights_that_are_given_have_their_own_checksum_and_the_model_keeps_its_own(toy, tmp_path):
    model, _ = small_mllm()
    before = model.config.encoder_checksum
    told, found = read_again(model, tmp_path / "trained", state_dict=trained(model))
    assert told == found != before
    assert read_again(model, tmp_path / "again") == (before, before)
    assert read_again(model, tmp_path / "same", state_dict=model.state_dict()) == (before, before)
    model.save_pretrained(tmp_path / "third", True, trained(model))
    assert AutoModelForImageTextToText.from_pretrained(tmp_path / "third").config.encoder_checksum == found


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_weights_that_are_given_rounded_are_still_the_same_unless_they_were_trained(dtype, toy, tmp_path):
    model, _ = small_mllm()
    before = model.config.encoder_checksum

    def rounded(tensors):
        return {name: x if name.startswith("vision.embedding.") else x.to(dtype) for name, x in tensors.items()}

    told, _ = read_again(model, tmp_path / "same", state_dict=rounded(model.state_dict()))
    assert told == before
    told, found = read_again(model, tmp_path / "trained", state_dict=rounded(trained(model)))
    assert told == found != before


def test_a_model_that_was_read_in_few_bits_and_changed_by_less_than_them_has_another_checksum(toy, tmp_path):
    small_mllm()[0].to(torch.bfloat16).save_pretrained(tmp_path / "half")
    model = AutoModelForImageTextToText.from_pretrained(tmp_path / "half").float()
    before = model.config.encoder_checksum
    with torch.no_grad():
        next(model.vision.encoder.parameters()).mul_(1 + 1e-5)
    told, found = read_again(model, tmp_path / "changed")
    assert told == found != before


def saved_checksum(model, folder, **options):
    model.save_pretrained(folder, **options)
    return json.loads((folder / "config.json").read_text())["encoder_checksum"]


def test_weights_that_cannot_be_seen_have_no_checksum(toy, tmp_path, monkeypatch):
    model, _ = small_mllm()
    without = {name: tensor for name, tensor in model.state_dict().items() if not name.startswith("vision.encoder.")}
    assert saved_checksum(model, tmp_path / "without", state_dict=without) is None
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        mesh = init_device_mesh("cpu", (1,))
        state, whole = model.state_dict(), model.config.encoder_checksum
        distribute_module(model.vision.encoder, mesh)
        # The config alone: transformers gathers shards itself, which needs several processes.
        monkeypatch.setattr(PreTrainedModel, "save_pretrained", lambda self, to, *_: self.config.save_pretrained(to))
        assert saved_checksum(model, tmp_path / "shards") is None
        assert saved_checksum(model, tmp_path / "gathered", state_dict=state) == whole
    finally:
        torch.distributed.destroy_process_group()
