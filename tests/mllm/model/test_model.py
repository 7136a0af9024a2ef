"""Laws of the model: places of pictures, no change by padding, batching or saving, and refused input."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from toklip_mllm.model import TokLIPForConditionalGeneration, TokLIPLMConfig, build_language_model, cast_weights
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoProcessor,
    MambaConfig,
    OPTConfig,
)
from transformers.modeling_outputs import BaseModelOutputWithPooling

from tests.support.mean_colour import MeanColour
from tests.support.small_mllms import FAMILIES, ids, language_model, prompt, shared, small_mllm, tokenizer
from tests.support.small_models import small_toklip

CLOSE = dict(rtol=1e-4, atol=1e-5)


def seen_embeddings(model, **inputs):
    """What the language model is given."""
    found = []

    def keep(module, args, kwargs):
        found.append(kwargs["inputs_embeds"])

    hook = model.language_model.register_forward_pre_hook(keep, with_kwargs=True)
    with torch.no_grad():
        model(**inputs)
    hook.remove()
    return found[0]


@torch.no_grad()
def test_pictures_land_where_their_placeholders_are_and_words_elsewhere():
    model, processor = shared()
    pictures = ids(3)
    batch = prompt(processor, "what is <image> ?", "<image> the <image> circle", image_ids=pictures)
    found = seen_embeddings(model, **batch)
    places = batch["input_ids"] == model.config.image_token_id
    words = model.get_input_embeddings()(batch["input_ids"])
    features = model.get_image_features(pictures).pooler_output
    assert torch.equal(found[0][places[0]], features[0])
    assert torch.equal(found[1][places[1]], features[1:].flatten(0, 1))
    assert torch.equal(found[~places], words[~places])


@torch.no_grad()
@pytest.mark.parametrize("family", FAMILIES)
def test_text_without_a_picture_has_the_logits_of_the_bare_language_model(family):
    bare = language_model(family)
    model, processor = shared(family)
    batch = prompt(processor, "how many red circle ?", "yes", padding_side="right")
    assert torch.equal(model(**batch).logits, bare(**batch).logits)


@torch.no_grad()
@pytest.mark.parametrize("family", FAMILIES)
def test_padding_on_either_side_and_batching_change_no_logits(family):
    model, processor = shared(family)
    pictures = ids(3)
    texts = ["<image> what is it ?", "<image> <image> how many", "yes ."]
    alone = [
        model(**prompt(processor, texts[0], image_ids=pictures[:1])).logits[0],
        model(**prompt(processor, texts[1], image_ids=pictures[1:])).logits[0],
        model(**prompt(processor, texts[2])).logits[0],
    ]
    for side in ("left", "right"):
        batch = prompt(processor, *texts, image_ids=pictures, padding_side=side)
        logits = model(**batch).logits
        for row, mask, expected in zip(logits, batch["attention_mask"].bool(), alone, strict=True):
            torch.testing.assert_close(row[mask], expected, **CLOSE)


@torch.no_grad()
@pytest.mark.parametrize("family", [*FAMILIES, "gpt2"])
def test_the_base_model_gives_what_the_head_of_the_language_model_reads(family):
    model, processor = shared(family)
    batch = prompt(processor, "<image> what is it ?", "yes .", image_ids=ids())
    found = model.base_model(**batch, use_cache=False)
    assert torch.equal(found.last_hidden_state, model(**batch, output_hidden_states=True).hidden_states[-1])
    assert not [*model.base_model.parameters()] and not [name for name in model.state_dict() if "base_model" in name]


@torch.no_grad()
def test_another_picture_has_other_logits():
    model, processor = shared()
    one, other = (model(**prompt(processor, "<image> ?", image_ids=ids(1, seed))).logits for seed in (0, 1))
    assert (one - other).abs().max() > 1e-3


@torch.no_grad()
@pytest.mark.parametrize(("features", "width"), [("concat", 33), ("tokens", 32), ("codes", 1)])
def test_the_connector_is_given_what_features_says(features, width):
    model, _ = shared(features=features)
    toklip = small_toklip()
    encoded = toklip.encode_ids(ids(2))
    codes, tokens = encoded.codes.flatten(1, 2), encoded.tokens
    expected = {"concat": torch.cat([codes, tokens], -1), "tokens": tokens, "codes": codes}[features]
    assert model.connector[0].in_features == width
    assert torch.equal(model.vision(ids(2)), expected)


@torch.no_grad()
@pytest.mark.parametrize(("features", "width"), [("concat", 33), ("tokens", 32), ("codes", 1)])
def test_image_features_come_as_the_librarys_models_give_them(features, width):
    model, _ = shared(features=features)
    found = model.get_image_features(ids(2))
    assert isinstance(found, BaseModelOutputWithPooling)
    assert found.pooler_output.shape == (2, 64, 32) and found.last_hidden_state.shape == (2, 64, width)
    assert torch.equal(found.pooler_output, model.connector(found.last_hidden_state))
    assert found.hidden_states is None
    last, pooled = model.get_image_features(ids(2), return_dict=False)
    assert torch.equal(last, found.last_hidden_state) and torch.equal(pooled, found.pooler_output)


@torch.no_grad()
def test_hidden_states_of_pictures_are_what_each_block_of_the_encoder_is_given_and_gives():
    model, _ = shared()
    encoder = model.vision.encoder
    found = model.get_image_features(ids(2), output_hidden_states=True)
    assert [tuple(state.shape) for state in found.hidden_states] == [(2, 64, 32)] * 3
    for block, before, after in zip(encoder.blocks, found.hidden_states, found.hidden_states[1:], strict=False):
        torch.testing.assert_close(block(before, is_causal=True), after)
    torch.testing.assert_close(encoder.norm(found.hidden_states[-1]), found.last_hidden_state[..., 1:])
    assert torch.equal(found.pooler_output, model.get_image_features(ids(2)).pooler_output)


@torch.no_grad()
def test_the_config_asks_for_hidden_states_and_tuples_of_pictures():
    model, processor = small_mllm()
    batch = prompt(processor, "<image> what ?", image_ids=ids())
    expected = model(**batch).logits
    model.config.output_hidden_states, model.config.return_dict = True, False
    assert len(model.get_image_features(ids())[2]) == 3
    assert torch.equal(model(**batch, return_dict=True).logits, expected)


def test_pictures_that_no_encoder_ran_for_have_no_hidden_states():
    assert shared(features="codes")[0].get_image_features(ids(), output_hidden_states=True).hidden_states is None
    tokens = torch.zeros(1, 64, 32)
    assert shared()[0].get_image_features(ids(), tokens, output_hidden_states=True).hidden_states is None


@torch.no_grad()
@pytest.mark.parametrize("features", ["concat", "tokens"])
def test_tokens_that_a_store_has_take_the_encoders_place(features, monkeypatch):
    model, processor = shared(features=features)
    batch = prompt(processor, "<image> what ?", image_ids=ids())
    expected = model(**batch).logits
    tokens = model.vision.encoder(model.vision.embedding(ids())).tokens
    monkeypatch.setattr(model.vision.encoder, "forward", None)
    assert torch.equal(model(**batch, image_tokens=tokens).logits, expected)
    told = dict(max_new_tokens=1, output_logits=True, return_dict_in_generate=True)
    answer = model.generate(**batch, image_tokens=tokens, **told)
    torch.testing.assert_close(answer.logits[0], expected[:, -1], **CLOSE)


def test_codes_alone_need_no_encoder():
    model, _ = shared(features="codes")
    assert not [name for name in model.state_dict() if "encoder" in name]


def test_features_of_another_name_are_refused():
    with pytest.raises(ValueError, match="got features 'both'; known are concat, tokens, codes"):
        TokLIPLMConfig(features="both")


def test_the_codebook_is_the_tokenizers_rows_bit_for_bit():
    model, _ = shared()
    assert torch.equal(model.vision.embedding.rows(), MeanColour().levels)


def test_the_vq_tokenizer_is_no_part_of_the_model():
    model, _ = shared()
    assert not any(isinstance(module, MeanColour) for module in model.modules())


def test_the_loss_is_the_language_models_over_what_has_labels():
    model, processor = shared()
    batch = prompt(processor, "<image> red circle", image_ids=ids(1))
    labels = batch["input_ids"].clone()
    labels[:, :-1] = -100
    found = model(**batch, labels=labels)
    expected = torch.nn.functional.cross_entropy(found.logits[:, -2], labels[:, -1])
    torch.testing.assert_close(found.loss, expected)


def test_in_training_a_batch_without_pictures_gives_the_connector_gradients_of_zero():
    model, processor = small_mllm()
    batch = prompt(processor, "red circle")
    expected = model(**batch).logits
    logits = model.train()(**batch).logits
    logits.sum().backward()
    assert all(torch.count_nonzero(weight.grad) == 0 for weight in model.connector.parameters())
    assert torch.equal(logits, expected)


@pytest.mark.parametrize(
    ("text", "pictures", "message"),
    [
        ("<image> ?", 2, "got 2 pictures of 64 tokens, but 64 places for them in input_ids"),
        ("<image> <image> ?", 1, "got 1 pictures of 64 tokens, but 128 places for them in input_ids"),
    ],
)
def test_pictures_and_places_that_differ_in_number_are_refused(text, pictures, message):
    model, processor = shared()
    batch = prompt(processor, text, image_ids=ids(text.count("<image>")))
    with pytest.raises(ValueError, match=message):
        model(**batch | {"image_ids": ids(pictures)})


def test_ids_of_another_grid_are_refused():
    model, processor = shared()
    batch = prompt(processor, "<image>", image_ids=ids())
    with pytest.raises(ValueError, match=r"got ids \(1, 4, 4, 1\); wanted \(pictures, 8, 8, 1\)"):
        model(**batch | {"image_ids": ids()[:, :4, :4]})


def test_pictures_without_input_ids_are_refused():
    model, _ = shared()
    with pytest.raises(ValueError, match="got pictures without input_ids, which say where they go"):
        model(image_ids=ids(), inputs_embeds=torch.zeros(1, 3, 32))


@pytest.mark.slow
@torch.no_grad()
@pytest.mark.parametrize("family", FAMILIES)
def test_a_saved_model_loaded_by_the_auto_classes_is_the_same(family, tmp_path):
    model, processor = shared(family)
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    batch = prompt(processor, "<image> what ?", image_ids=ids())
    expected = model(**batch).logits
    for auto in (AutoModel, AutoModelForImageTextToText):
        loaded = auto.from_pretrained(tmp_path)
        assert type(loaded) is TokLIPForConditionalGeneration
        assert torch.equal(loaded(**batch).logits, expected)
        assert loaded.state_dict().keys() == model.state_dict().keys()
    assert AutoConfig.from_pretrained(tmp_path).encoder_config == model.config.encoder_config
    assert AutoProcessor.from_pretrained(tmp_path).to_dict() == processor.to_dict()


def test_tied_embeddings_stay_tied(tmp_path):
    model, _ = shared("qwen2")
    model.save_pretrained(tmp_path)
    loaded = AutoModel.from_pretrained(tmp_path)
    assert loaded.get_input_embeddings().weight is loaded.get_output_embeddings().weight


def test_in_half_precision_the_codebook_stays_in_float32(tmp_path):
    model, processor = shared()
    model.save_pretrained(tmp_path)
    loaded = AutoModel.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert loaded.connector[0].weight.dtype == loaded.vision.encoder.pos_embed.dtype == torch.bfloat16
    assert loaded.vision.embedding.rows().dtype == torch.float32
    assert loaded(**prompt(processor, "<image>", image_ids=ids())).logits.dtype == torch.bfloat16


@pytest.mark.parametrize("auto", [AutoModel, AutoModelForImageTextToText])
def test_a_model_made_of_a_config_in_half_precision_has_a_codebook_in_float32(auto, tmp_path):
    config = shared()[0].config
    model = auto.from_config(config, dtype=torch.bfloat16)
    assert model.connector[0].weight.dtype == torch.bfloat16
    assert model.vision.embedding.rows().dtype == torch.float32
    model.vision.embedding.load_state_dict(shared()[0].vision.embedding.state_dict())
    model.save_pretrained(tmp_path)
    assert torch.equal(auto.from_pretrained(tmp_path).vision.embedding.rows(), shared()[0].vision.embedding.rows())


def test_a_model_made_without_memory_is_given_its_codebook_by_its_initial_values():
    with torch.device("meta"):
        model = TokLIPForConditionalGeneration(shared()[0].config)
    model.to_empty(device="cpu").vision.embedding.rows().fill_(torch.nan)
    model.init_weights()
    assert torch.equal(model.vision.embedding.rows(), torch.zeros(300, 1))


def test_a_codebook_that_was_changed_on_disk_is_refused(tmp_path):
    model, _ = small_mllm()
    model.vision.embedding.rows().add_(1)
    model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"the codebook of .* is not the one it was made with"):
        AutoModel.from_pretrained(tmp_path)


@pytest.mark.parametrize("what", ["missing", "unexpected"])
def test_a_file_that_does_not_fit_the_config_exactly_is_refused_by_the_names(what, tmp_path):
    model, _ = shared()
    model.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    weight = tensors.pop("connector.0.weight")
    tensors |= {} if what == "missing" else {"connector.0.weight": weight, "connector.9.weight": weight.clone()}
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=rf"1 weights are {what}, such as connector.\d.weight; save the whole model"):
        AutoModel.from_pretrained(tmp_path)


def test_what_was_loaded_is_told_to_who_asks(tmp_path):
    shared()[0].save_pretrained(tmp_path)
    model, info = AutoModel.from_pretrained(tmp_path, output_loading_info=True)
    assert type(model) is TokLIPForConditionalGeneration and not info["missing_keys"]


def test_built_or_loaded_codebook_and_encoder_are_frozen_and_the_rest_learns(tmp_path):
    built, _ = small_mllm()
    built.save_pretrained(tmp_path)
    for model in (built, AutoModel.from_pretrained(tmp_path), TokLIPForConditionalGeneration(built.config)):
        learning = {name.split(".")[0] for name, weight in model.named_parameters() if weight.requires_grad}
        assert learning == {"connector", "language_model"}


def test_a_model_brought_to_half_precision_keeps_its_codebook_and_comes_back(tmp_path):
    model, _ = small_mllm()
    rows = model.vision.embedding.rows().clone()
    model.to(torch.bfloat16).save_pretrained(tmp_path)
    assert model.connector[0].weight.dtype == torch.bfloat16
    assert torch.equal(AutoModel.from_pretrained(tmp_path).vision.embedding.rows(), rows)


@torch.no_grad()
def test_a_language_model_of_half_precision_has_its_own_logits_and_rotary_frequencies_of_float32():
    bare, words = language_model(), tokenizer()
    cast_weights(bare, torch.bfloat16)
    expected = bare(input_ids=torch.tensor([[9, 8, 7]])).logits
    model, _ = build_language_model(bare, small_toklip(), tokenizer=words)
    assert model.language_model.model.rotary_emb.inv_freq.dtype == torch.float32
    assert torch.equal(model(input_ids=torch.tensor([[9, 8, 7]])).logits, expected)


class Quantized(torch.nn.Module):
    """A linear layer as libraries of quantization have it: integers first, then what they are scaled by."""

    def __init__(self, linear):
        super().__init__()
        scale = linear.weight.abs().max() / 127
        self.weight = torch.nn.Parameter((linear.weight / scale).round().to(torch.int8), requires_grad=False)
        self.bias = linear.bias
        self.register_buffer("scale", scale)

    def forward(self, x):
        return torch.nn.functional.linear(x, self.weight.to(x.dtype) * self.scale, self.bias)


@torch.no_grad()
def test_a_quantized_connector_is_given_floats():
    model, processor = small_mllm()
    batch = prompt(processor, "<image> what ?", image_ids=ids())
    expected = model(**batch).logits
    for place in (0, 2):
        model.connector[place] = Quantized(model.connector[place])
    torch.testing.assert_close(model(**batch).logits, expected, rtol=0.1, atol=0.02)


def test_a_language_model_with_a_spare_row_keeps_its_size():
    model, _ = shared()
    assert model.get_input_embeddings().num_embeddings == 64


def test_a_language_model_without_a_spare_row_gets_one_that_is_never_generated():
    words = tokenizer()
    bare = language_model(vocab_size=len(words))
    model, _ = build_language_model(bare, small_toklip(), tokenizer=words)
    assert model.get_output_embeddings().out_features == model.config.image_token_id + 1 == len(words)
    assert model.generation_config.suppress_tokens == [model.config.image_token_id]


def test_a_language_model_without_a_chat_template_is_refused():
    with pytest.raises(ValueError, match="the language model's tokenizer has no chat template"):
        build_language_model(language_model(), small_toklip(), tokenizer=tokenizer(None))


def test_a_language_model_without_its_tokenizer_is_refused():
    with pytest.raises(ValueError, match="got a language model without its tokenizer; give both, or its name"):
        build_language_model(language_model(), small_toklip())


def test_a_model_of_more_parts_than_a_language_model_is_refused():
    with pytest.raises(ValueError, match=r"got a TokLIPForConditionalGeneration, which has more parts .* own class"):
        build_language_model(shared()[0], small_toklip(), tokenizer=tokenizer())


UNFIT = {
    "words of another width": (
        OPTConfig(hidden_size=32, word_embed_proj_dim=16, ffn_dim=32, num_hidden_layers=1, num_attention_heads=2),
        "with embeddings of width 16 and layers of width 32; the connector needs one width",
    ),
    "no attention": (
        MambaConfig(hidden_size=32, num_hidden_layers=1, state_size=4),
        "none of whose layers has attention",
    ),
}


@pytest.mark.parametrize("what", UNFIT)
def test_a_language_model_that_cannot_read_pictures_is_refused(what):
    config, says = UNFIT[what]
    config.vocab_size = 64
    with pytest.raises(ValueError, match=says):
        build_language_model(AutoModelForCausalLM.from_config(config), small_toklip(), tokenizer=tokenizer())


def test_sampling_options_beside_greedy_search_do_not_keep_a_model_from_being_saved(tmp_path):
    """Published configs have such, as that of LLaVA's language model."""
    bare = language_model()
    bare.generation_config.temperature, bare.generation_config.top_p = 0.9, 0.6
    bare.generation_config.length_penalty = 0.5
    with pytest.raises(ValueError, match="GenerationConfig is invalid"):
        bare.save_pretrained(tmp_path / "bare")
    build_language_model(bare, small_toklip(), tokenizer=tokenizer())[0].save_pretrained(tmp_path / "built")
    bare.generation_config.num_return_sequences = 2
    with pytest.raises(ValueError, match="the language model's generation config cannot be saved, so fix it: "):
        build_language_model(bare, small_toklip(), tokenizer=tokenizer())


def test_a_model_of_loaded_values_is_saved_with_the_checksum_of_its_own_encoder(tmp_path):
    model, _ = small_mllm()
    other = type(model)(model.config)
    other.load_state_dict(model.state_dict())
    other.save_pretrained(tmp_path / "same")
    next(other.vision.encoder.parameters()).data.add_(1)
    other.save_pretrained(tmp_path / "changed")
    same, changed = (
        json.loads((tmp_path / name / "config.json").read_text())["encoder_checksum"] for name in ("same", "changed")
    )
    assert same == model.config.encoder_checksum != changed
