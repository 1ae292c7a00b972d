"""Environments with a language instruction, scripted experts, questions about the same scenes, and roll-outs."""

import gymnasium

from .questions import QUESTION_KINDS, Question, generate_questions, make_questions, place_distance
from .tabletop import TabletopEnv, TabletopVectorEnv
from .tasks import SPLITS, TASK_KINDS

gymnasium.register(
    id="KIVLA/Tabletop-v0",
    entry_point="kivla.simulation.tabletop:TabletopEnv",
    vector_entry_point="kivla.simulation.tabletop:TabletopVectorEnv",
)

__all__ = [
    "QUESTION_KINDS",
    "SPLITS",
    "TASK_KINDS",
    "Question",
    "TabletopEnv",
    "TabletopVectorEnv",
    "generate_questions",
    "make_questions",
    "place_distance",
]
