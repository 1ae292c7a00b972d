"""What happened while an executor acted, in numbers."""

from dataclasses import dataclass


@dataclass
class ExecutionCounts:
    """Counts since an executor was made; resets between episodes do not touch them.

    Attributes:
        steps: control steps, each with one answer to the control loop.
        requests: how often the policy was asked.
        chunks: answers of which actions were executed.
        late: those of them that came after the control step for which they were expected.
        too_late: answers that came when all of their actions were past, and were dropped.
        old: answers to questions of an earlier episode, dropped.
        lost: questions that were given up, because no answer came.
        errors: answers that were exceptions.
        before_first: steps before an episode's first action, for which there was no command.
        held: steps without an action, at which the robot was held where it was.
        stopped: steps without a command, after the robot was stopped.
    """

    steps: int = 0
    requests: int = 0
    chunks: int = 0
    late: int = 0
    too_late: int = 0
    old: int = 0
    lost: int = 0
    errors: int = 0
    before_first: int = 0
    held: int = 0
    stopped: int = 0


__all__ = ["ExecutionCounts"]
