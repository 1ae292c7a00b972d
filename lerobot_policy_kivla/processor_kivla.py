"""LeRobot's processors around a KIVLA policy: they rename, add the batch dimension and move to the device, no more."""

from lerobot.processor import PolicyProcessorPipeline, make_default_pre_post_processors

from .configuration_kivla import KivlaConfig


def make_kivla_pre_post_processors(
    config: KivlaConfig, dataset_stats: dict | None = None
) -> tuple[PolicyProcessorPipeline, PolicyProcessorPipeline]:
    """LeRobot's usual steps, so that its programs can override them by name.

    Two of them are called normalizer and unnormalizer, and hand everything on as it is (`normalization_mapping` is
    IDENTITY). Images are scaled, states and actions normalised and texts tokenized by the policy's own processor.

    Args:
        config: of the policy.
        dataset_stats: what LeRobot passes to every policy; not used.
    """
    return make_default_pre_post_processors(config)


__all__ = ["make_kivla_pre_post_processors"]
