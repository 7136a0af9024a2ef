"""Tools for any model of transformers work unchanged on this one: Trainer, peft, device maps, checkpointing."""

import pytest
import torch
from accelerate import infer_auto_device_map
from peft import LoraConfig, PeftModel, get_peft_model
from toklip_mllm.training import Conversation, collate, label_conversation
from transformers import AutoModel, Trainer, TrainingArguments

from tests.support.small_mllms import ids, prompt, small_mllm

# peft and older callers use names that transformers 5 is giving up.
RENAMED = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.* is deprecated:FutureWarning")

GREEDY = dict(max_new_tokens=4, do_sample=False, eos_token_id=None)


def examples(processor):
    turns = [("<image> what is it ?", "red circle"), ("<image> how many ?", "two"), ("yes ?", "no")]
    return [
        label_conversation(
            Conversation(
                question, ({"role": "user", "content": question}, {"role": "assistant", "content": answer}), ()
            ),
            processor,
            image_ids=ids(question.count("<image>"), seed),
        )
        for seed, (question, answer) in enumerate(turns)
    ] * 2


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:'pin_memory' argument is set as true")
def test_the_trainer_of_transformers_trains_saves_and_evaluates(tmp_path):
    model, processor = small_mllm()
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    trainer = Trainer(
        model=model,
        args=TrainingArguments(
            output_dir=str(tmp_path),
            max_steps=6,
            per_device_train_batch_size=2,
            learning_rate=5e-3,
            logging_steps=1,
            report_to="none",
            remove_unused_columns=False,
            use_cpu=True,
            disable_tqdm=True,
        ),
        train_dataset=examples(processor),
        eval_dataset=examples(processor),
        data_collator=lambda batch: collate(batch, pad_id=0),
    )
    first = trainer.evaluate()["eval_loss"]
    trainer.train()
    assert trainer.evaluate()["eval_loss"] < first - 0.3
    changed = [name for name, weight in model.state_dict().items() if not torch.equal(weight, before[name])]
    assert {name.split(".")[0] for name in changed} == {"connector", "language_model"}
    loaded = AutoModel.from_pretrained(tmp_path / "checkpoint-6")
    assert all(torch.equal(weight, model.state_dict()[name]) for name, weight in loaded.state_dict().items())


@RENAMED
def test_lora_of_peft_trains_generates_and_comes_back(tmp_path):
    model, processor = small_mllm()
    batch = prompt(processor, "<image> what ?", image_ids=ids())
    with torch.no_grad():
        bare = model(**batch).logits
    lora = get_peft_model(
        model,
        LoraConfig(
            r=4,
            target_modules=r"language_model\..*\.(q_proj|v_proj)",
            modules_to_save=["connector"],
            task_type="CAUSAL_LM",
        ),
    )
    with torch.no_grad():
        torch.testing.assert_close(lora(**batch).logits, bare)
    optimizer = torch.optim.SGD([weight for weight in lora.parameters() if weight.requires_grad], 1.0)
    training = collate(examples(processor), pad_id=0)
    for _ in range(3):
        lora(**training).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    lora.eval().save_pretrained(tmp_path)
    fresh, _ = small_mllm()
    loaded = PeftModel.from_pretrained(fresh, tmp_path)
    with torch.no_grad():
        trained = lora(**batch).logits
        assert (trained - bare).abs().max() > 1e-3
        assert torch.equal(loaded(**batch).logits, trained)
    tokens = lora.generate(**batch, **GREEDY)
    assert torch.equal(lora.merge_and_unload().generate(**batch, **GREEDY), tokens)


def test_a_device_map_keeps_the_encoder_and_each_layer_whole():
    model, _ = small_mllm()
    assert {"PictureEncoder", "LlamaDecoderLayer"} <= set(model._no_split_modules)
    layer = sum(weight.numel() * 4 for weight in model.language_model.model.layers[0].parameters())
    # Devices that are not there are left out, so a processor and a disk have to do.
    devices = infer_auto_device_map(
        model, {"cpu": 8 * layer, "disk": 10**9}, no_split_module_classes=model._no_split_modules
    )
    assert set(devices.values()) == {"cpu", "disk"}
    whole = ["vision", *(f"language_model.model.layers.{i}" for i in range(2))]
    assert not [name for name in devices if any(name.startswith(f"{part}.") for part in whole)]


def test_a_model_whose_language_model_is_on_the_disk_says_the_same(tmp_path):
    model, processor = small_mllm()
    model.save_pretrained(tmp_path / "model")
    devices = {"vision": "cpu", "connector": "cpu", "language_model": "disk"}
    loaded = AutoModel.from_pretrained(tmp_path / "model", device_map=devices, offload_folder=tmp_path / "offload")
    batch = prompt(processor, "<image> what ?", image_ids=ids())
    assert torch.equal(loaded.generate(**batch, **GREEDY), model.generate(**batch, **GREEDY))


@RENAMED
def test_gradient_checkpointing_changes_no_gradient():
    gradients = []
    for on in (False, True):
        model, processor = small_mllm()
        if on:
            model.gradient_checkpointing_enable()
        model.train()(**collate(examples(processor), pad_id=0)).loss.backward()
        gradients.append(model.connector[0].weight.grad)
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_the_attention_of_the_language_model_can_be_chosen(attention, tmp_path):
    model, processor = small_mllm()
    model.save_pretrained(tmp_path)
    loaded = AutoModel.from_pretrained(tmp_path, attn_implementation=attention)
    assert loaded.language_model.config._attn_implementation == attention
    batch = prompt(processor, "<image> what ?", image_ids=ids())
    with torch.no_grad():
        torch.testing.assert_close(loaded(**batch).logits, model(**batch).logits, rtol=1e-4, atol=1e-5)
