"""ProcessorTesterMixin of the installed transformers on TokLIPProcessor."""

import json
import unittest

from tests.test_processing_common import ProcessorTesterMixin
from toklip_mllm.model import TokLIPProcessor
from toklip_mllm.published import FOLDERS, TINY_NAME

from tests.transformers_suite.applicability import leave_out

#: Test -> why it does not apply.
NOT_APPLICABLE = {}


@leave_out(NOT_APPLICABLE)
class TokLIPProcessorTest(ProcessorTesterMixin, unittest.TestCase):
    processor_class = TokLIPProcessor
    images_input_name = "image_ids"

    @classmethod
    def _setup_from_components(cls):
        return TokLIPProcessor.from_pretrained(FOLDERS[TINY_NAME])

    @staticmethod
    def prepare_processor_dict():
        told = json.loads((FOLDERS[TINY_NAME] / "processor_config.json").read_text())
        return {name: value for name, value in told.items() if name != "processor_class"}
