"""ModelTesterMixin and GenerationTesterMixin of the installed transformers on TokLIPForConditionalGeneration."""

import unittest

import torch
from tests.generation.test_utils import GenerationTesterMixin
from tests.test_modeling_common import ModelTesterMixin
from toklip_mllm.config import TokLIPLMConfig
from toklip_mllm.model import TokLIPForConditionalGeneration

from tests.core.small_models import toklip_config
from tests.mllm.small_mllms import CONFIGS
from tests.transformers_suite.applicability import leave_out

#: Test -> why it does not apply.
NOT_APPLICABLE = {}


class ModelTester:
    """Sizes and a batch of three prompts, each with a picture of four tokens in front."""

    image_token_id = 60

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
            codebook_size=300,
            image_token_id=self.image_token_id,
        )

    def prepare_config_and_inputs_for_common(self):
        config = self.get_config()
        torch.manual_seed(0)
        tokens = torch.randint(3, self.image_token_id, (self.batch_size, self.seq_length))
        tokens[:, : config.tokens_per_picture] = self.image_token_id
        return config, {
            "input_ids": tokens,
            "image_ids": torch.randint(0, config.codebook_size, (self.batch_size, 2, 2)),
            "attention_mask": torch.ones_like(tokens),
        }


@leave_out(NOT_APPLICABLE)
class TokLIPForConditionalGenerationTest(ModelTesterMixin, GenerationTesterMixin, unittest.TestCase):
    all_model_classes = (TokLIPForConditionalGeneration,)
    _is_composite = True

    def setUp(self):
        self.model_tester = ModelTester(self)
