"""Tiny but real processors of many VLM families, each with a matching tiny VLM.

    kind = KINDS["qwen2_vl"]
    vlm_processor = kind.processor()                        # what AutoProcessor.from_pretrained(vlm) would give
    model = kind.policy(chunk_size=4, max_action_dim=3)     # a KIVLAForActionPrediction that takes its token ids

Processors and image processors are the families' own. Tokenizers write bytes. Where an image processor has two backends
it is Pillow's. Some processors need torchvision (`needs`): `make test-torchvision`.

The kinds are in a file for each way to cut a picture: `one_size`, `grids`, `tiles`. Families in `WITHOUT` have a
processor that a policy cannot use.
"""

from .chat_templates import LLAVA
from .kind import HAS_TORCHVISION, Kind
from .lanes import each_kind
from .own_prompts import WITHOUT
from .table import KINDS

__all__ = ["HAS_TORCHVISION", "KINDS", "LLAVA", "WITHOUT", "Kind", "each_kind"]
