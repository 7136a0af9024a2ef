"""ModelTesterMixin and GenerationTesterMixin of the installed transformers on TokLIPForConditionalGeneration."""

import unittest

import torch
from tests.generation.test_utils import GenerationTesterMixin
from tests.test_modeling_common import ModelTesterMixin
from toklip_core.embeddings import TableEmbedding
from toklip_mllm.model import TokLIPForConditionalGeneration, TokLIPLMConfig

from tests.support.mean_colour import LEVELS
from tests.support.small_mllms import CONFIGS
from tests.support.small_models import toklip_config
from tests.transformers_suite.applicability import leave_out

_ASSISTANT = "an assistant model does not see the pictures, so generate refuses one and names prompt lookup"

#: Test -> why it does not apply.
NOT_APPLICABLE = {
    "test_assisted_decoding_matches_greedy_search_0_random": _ASSISTANT,
    "test_assisted_decoding_matches_greedy_search_1_same": _ASSISTANT,
    "test_assisted_decoding_sample": _ASSISTANT,
    "test_bc_cache_name_forward": "past_key_values is not deprecated here, where releases of before the rename are "
    "admitted: both names are taken, without a warning",
    "test_get_image_features_attentions": "the semantic encoder's attention is fused, and gives no weights",
    "test_inputs_embeds": "pictures go where input_ids have the image token; embeddings alone do not say where",
    "test_model_weights_reload_no_missing_tied_weights": "a folder that lacks weights is refused by their names: "
    "loading is strict",
}


class ModelTester:
    """Sizes and a batch of three prompts, each with a picture of four tokens in front."""

    image_token_id = 3  # tests that make the vocabulary smaller keep the first tokens

    def __init__(self, parent):
        self.parent = parent
        text = CONFIGS["llama"]()
        self.batch_size, self.seq_length, self.is_training = 3, 11, True
        self.encoder_seq_length = self.seq_length
        self.vocab_size, self.hidden_size = text.vocab_size, text.hidden_size
        self.num_hidden_layers, self.num_attention_heads = text.num_hidden_layers, text.num_attention_heads

    def get_config(self):
        return TokLIPLMConfig(
            text_config=CONFIGS["llama"](),
            encoder=toklip_config().encoder.model_copy(update={"grid": (2, 2)}).model_dump(mode="json"),
            embedding=TableEmbedding([torch.zeros(LEVELS, 1)]).config.model_dump(mode="json"),
            grid=(2, 2),
            image_token_id=self.image_token_id,
        )

    def prepare_config_and_inputs_for_common(self):
        config = self.get_config()
        torch.manual_seed(0)
        tokens = torch.randint(4, self.vocab_size, (self.batch_size, self.seq_length))
        tokens[:, : config.tokens_per_picture] = self.image_token_id
        return config, {
            "input_ids": tokens,
            "image_ids": torch.randint(0, LEVELS, (self.batch_size, 2, 2, 1)),
            "attention_mask": torch.ones_like(tokens),
        }


@leave_out(NOT_APPLICABLE)
class TokLIPForConditionalGenerationTest(ModelTesterMixin, GenerationTesterMixin, unittest.TestCase):
    all_model_classes = (TokLIPForConditionalGeneration,)
    _is_composite = True
    #: What is read of a vision_config, which there is none of; tests/mllm/model/test_model.py looks at the shapes.
    skip_test_image_features_output_shape = True

    def setUp(self):
        self.model_tester = ModelTester(self)

    def _prepare_for_class(self, inputs_dict, model_class, return_labels=False):
        inputs = super()._prepare_for_class(inputs_dict, model_class, return_labels)
        # Whether a class has labels, the mixin tells by a list of the library's own.
        return inputs | {"labels": inputs["input_ids"].clone()} if return_labels else inputs

    def _image_features_get_expected_num_hidden_states(self, model_tester=None):
        return toklip_config().encoder.trunk.depth + 1
