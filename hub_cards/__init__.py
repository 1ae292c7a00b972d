"""Model cards, filled from what was measured."""

from .cards import policy_card, tabletop_vlm_card

__all__ = ["policy_card", "tabletop_vlm_card"]
