"""Environments with a language instruction, scripted experts, questions about the same scenes, and roll-outs."""

import gymnasium

from ..training.data.lerobot.writer import LeRobotWriter
from .environments import make_env
from .recording import record_demonstrations
from .tabletop.env import TabletopEnv, TabletopVectorEnv
from .tabletop.questions import QUESTION_KINDS, Question, generate_questions, make_questions, place_distance
from .tabletop.tasks import SPLITS, TASK_KINDS

gymnasium.register(
    id="KIVLA/Tabletop-v0",
    entry_point="kivla.simulation.tabletop.env:TabletopEnv",
    vector_entry_point="kivla.simulation.tabletop.env:TabletopVectorEnv",
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
