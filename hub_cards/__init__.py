"""Model cards, filled from what was measured."""

from .cards import fine_tuned_card, lerobot_dataset_card, policy_card, tabletop_vlm_card

__all__ = ["fine_tuned_card", "lerobot_dataset_card", "policy_card", "tabletop_vlm_card"]
