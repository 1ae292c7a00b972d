"""transformers' own common tests of processors, run on that of a policy.

Most skip themselves: they are about a processor's parts, and ours has one, the VLM's processor, which the library
tests. What remains is about saving and loading, and about names of arguments.
"""

import unittest

import pytest

from kivla.processing import KIVLAProcessor
from tests.helpers.vlm_processors import KINDS
from tests.library.exemptions import exempt
from tests.library.sources import library_module

pytestmark = pytest.mark.slow
common = library_module("test_processing_common")


class TestProcessor(common.ProcessorTesterMixin, unittest.TestCase):
    processor_class = KIVLAProcessor

    @staticmethod
    def prepare_processor_dict() -> dict:
        return {"vlm_processor": KINDS["paligemma"].processor(), "normalization": "none", "chunk_size": 4}


exempt(TestProcessor, "processor")
