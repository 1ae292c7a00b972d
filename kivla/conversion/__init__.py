"""Policies of openpi, LeRobot and transformers into KIVLA's layout, and back to LeRobot's."""
