"""Environments with a language instruction, scripted experts, questions about the same scenes, and roll-outs."""

import gymnasium

from ..training.data.lerobot.writer import LeRobotWriter
from .environments import make_env
from .hidden_tabletop import HiddenTabletopEnv, HiddenTabletopVectorEnv
from .moving_tabletop.env import MovingTabletopEnv, MovingTabletopVectorEnv
from .recording import record_demonstrations
from .tabletop.env import TabletopEnv, TabletopVectorEnv
from .tabletop.questions import QUESTION_KINDS, Question, generate_questions, make_questions, place_distance
from .tabletop.tasks import SPLITS, TASK_KINDS

gymnasium.register(
    id="KIVLA/Tabletop-v0",
    entry_point="kivla.simulation.tabletop.env:TabletopEnv",
    vector_entry_point="kivla.simulation.tabletop.env:TabletopVectorEnv",
)
gymnasium.register(
    id="KIVLA/MovingTabletop-v0",
    entry_point="kivla.simulation.moving_tabletop.env:MovingTabletopEnv",
    vector_entry_point="kivla.simulation.moving_tabletop.env:MovingTabletopVectorEnv",
)
gymnasium.register(
    id="KIVLA/HiddenTabletop-v0",
    entry_point="kivla.simulation.hidden_tabletop:HiddenTabletopEnv",
    vector_entry_point="kivla.simulation.hidden_tabletop:HiddenTabletopVectorEnv",
)

__all__ = [
    "QUESTION_KINDS",
    "SPLITS",
    "TASK_KINDS",
    "HiddenTabletopEnv",
    "HiddenTabletopVectorEnv",
    "LeRobotWriter",
    "MovingTabletopEnv",
    "MovingTabletopVectorEnv",
    "Question",
    "TabletopEnv",
    "TabletopVectorEnv",
    "generate_questions",
    "make_env",
    "make_questions",
    "place_distance",
    "record_demonstrations",
]
