"""Batches whose noise and flow times do not depend on the device, nor on how examples are split into batches."""

import torch

from kivla import KIVLACollator


class FixedNoiseCollator(KIVLACollator):
    """Gives every example its own fixed noise, so that runs which split their batches differently can be compared."""

    def __call__(self, examples):
        batch = super().__call__(examples)
        if "actions" not in batch:
            return batch
        seeds = [1000 * example["episode_index"] + example["frame_index"] for example in examples]
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        batch["noise"] = torch.stack([torch.randn(batch["actions"].shape[1:], generator=g) for g in generators])
        batch["timestep"] = torch.stack([torch.rand((), generator=g) for g in generators])
        return batch
