"""Environments with a language instruction, scripted experts, questions about the same scenes, and roll-outs."""

import gymnasium

from .environments import make_env
from .lerobot_writer import LeRobotWriter
from .questions import QUESTION_KINDS, Question, generate_questions, make_questions, place_distance
from .recording import record_demonstrations
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
    "LeRobotWriter",
    "Question",
    "TabletopEnv",
    "TabletopVectorEnv",
    "generate_questions",
    "make_env",
    "make_questions",
    "place_distance",
    "record_demonstrations",
]
