"""What a check says, and the table of what is checked: its level, its limit and the reason for both."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from typing import NamedTuple

NOTE, WARNING, ERROR = LEVELS = ("note", "warning", "error")


class Rule(NamedTuple):
    """One thing that is looked for.

    Attributes:
        level: "note" is worth knowing, "warning" will probably hurt, "error" means that training cannot work.
        limit: from where on it is said; None where there is nothing to measure.
        why: what the limit measures, and why it is there.
    """

    level: str
    limit: float | None
    why: str


RULES = {
    # ------------------------------------------------------------------------------------------------- the whole
    "cannot_open": Rule(ERROR, None, "the reader refuses the data, and says why"),
    "assumed": Rule(NOTE, None, "what the reader derived or chose: read it once"),
    # ------------------------------------------------------------------------------------- dimensions of a vector
    "not_finite": Rule(ERROR, None, "NaN or infinity among the numbers: all else is told as if it were not there"),
    "constant": Rule(NOTE, 1e-6, "range, relative to the values: nothing to learn, and nothing to normalise by"),
    "all_constant": Rule(ERROR, None, "the actions never change, in any dimension"),
    "rare": Rule(NOTE, 0.1, "1 - 99 % range / whole range: what happens in so few frames is hard to learn"),
    "at_limit": Rule(NOTE, 0.02, "share of frames exactly at the smallest or largest value: a limit was reached"),
    "clipped": Rule(WARNING, 0.3, "the same share of actions that are positions: what was asked for is cut off"),
    "jump": Rule(WARNING, 0.25, "step / whole range, in one frame, of a state that moves slowly before and after"),
    "in_steps": Rule(NOTE, 0.3, "share of episodes in which a dimension jumps, from which on that is how it moves"),
    "rare_jump": Rule(NOTE, None, "a rare dimension is elsewhere for a moment: its own motion, or a bad reading"),
    "stuck": Rule(WARNING, 0.5, "seconds without any change of the state while the actions move: a lost connection"),
    "still_actions": Rule(WARNING, None, "actions that never change in some episodes: they were not recorded"),
    "zeros": Rule(
        WARNING, 0.25, "step / whole range into frames where a whole vector of positions is 0: lost readings"
    ),
    "repeated_rows": Rule(WARNING, 0.3, "share of moving frames that repeat the frame before: recorded too fast"),
    # ------------------------------------------------------------------------------------- states and actions
    "lag": Rule(NOTE, None, "frames by which the state follows the actions"),
    "long_lag": Rule(WARNING, 0.5, "seconds of it: slower than arms are; perhaps two clocks"),
    "state_first": Rule(WARNING, 1, "frames by which the actions follow the state: they are shifted, or late"),
    "action_is_state": Rule(WARNING, 0.99, "share of frames whose action is the same frame's state: a policy stays"),
    # -------------------------------------------------------------------------------------------------- episodes
    "short_episode": Rule(WARNING, 0.25, "length / median length, where lengths vary less: stopped by mistake"),
    "long_episode": Rule(NOTE, 4, "length / median length, where lengths vary less: not stopped in time"),
    "ends_moving": Rule(WARNING, 0.8, "share of episodes that end at rest, from which on the others look cut off"),
    "same_episode": Rule(WARNING, 1e-3, "difference / whole range, nowhere more: copies; one may be held out"),
    "other_units": Rule(WARNING, 0.75, "share of dimensions 57 times larger or smaller in some episodes: degrees"),
    "other_scale": Rule(WARNING, 10, "a joint's usual value / its largest in all other episodes, its partner's is not"),
    "exchanged": Rule(NOTE, 0.2, "how far the state is from another action / from its own, in one episode"),
    "other_rate": Rule(WARNING, 0.02, "rate of the times, or of videos that are read row by row, beside fps"),
    "time_gap": Rule(WARNING, 1.5, "frames between two rows: frames were lost between them"),
    # -------------------------------------------------------------------------------------------------- language
    "no_text": Rule(WARNING, None, "an empty instruction teaches nothing about language"),
    "placeholder": Rule(WARNING, None, "instructions such as 'test' or 'todo'"),
    "spellings": Rule(WARNING, None, "instructions that differ in case, spaces or full stops only"),
    "unused_task": Rule(NOTE, None, "a task of the table that no frame has"),
    "language": Rule(NOTE, None, "columns of words that are not read: perhaps sub-tasks"),
    # -------------------------------------------------------------------------------------------------- pictures
    "no_camera": Rule(WARNING, None, "no camera was found: a policy would act without seeing anything"),
    "unnamed_camera": Rule(WARNING, None, "pictures are there, and info.json does not say so: they are not used"),
    "unreadable": Rule(ERROR, None, "a picture that was looked at cannot be read"),
    "black": Rule(WARNING, 8, "brightness (of 255) that no pixel of any picture exceeds: a covered or dead camera"),
    "dark": Rule(WARNING, 25, "mean brightness of the pictures (of 255)"),
    "bright": Rule(WARNING, 235, "mean brightness of the pictures (of 255)"),
    "blurred": Rule(WARNING, 0.6, "blur of the sharpest picture, 0 to 1 (Crete et al. 2007): a lens out of focus"),
    "same_camera": Rule(WARNING, None, "two cameras that show the same pictures"),
    "frozen_camera": Rule(WARNING, None, "all pictures of a camera are the same"),
    "frozen": Rule(WARNING, 0.25, "part of an episode's movement, in one go, without any change of the picture"),
    "repeated_pictures": Rule(WARNING, 0.25, "share of pictures that repeat the one before while the scene moves"),
    "alternating": Rule(NOTE, None, "every second picture differs from the ones between: flipped, or of two cameras"),
    "key_frames": Rule(WARNING, 10, "frames that are decoded for one that is asked for: random reading is so slow"),
    "late_key_frame": Rule(ERROR, None, "a video begins without a key frame: its first frames cannot be decoded"),
}


@dataclass(frozen=True)
class Finding:
    """What a check has to say.

    Attributes:
        level, code: of `RULES`.
        text: a sentence for people, with what to do if there is something to do.
        vector: "state" or "actions", if it is about one.
        dimensions: their names; empty if it is not about dimensions.
        episodes: their numbers; empty if it is about all of them.
        camera: its name, if it is about one.
        places: (episode, frame) of each, where there are some.
    """

    code: str
    text: str
    vector: str | None = None
    dimensions: tuple[str, ...] = ()
    episodes: tuple[int, ...] = ()
    camera: str | None = None
    places: tuple[tuple[int, int], ...] = ()

    @property
    def level(self) -> str:
        return RULES[self.code].level


def limit(code: str) -> float:
    """The limit of a rule that has one."""
    value = RULES[code].limit
    assert value is not None, code
    return value


def some(values: Sequence, count: int = 6) -> str:
    """The first few of many values, for a sentence."""
    more = len(values) - count
    return ", ".join(map(str, islice(values, count))) + (f" and {more} more" if more > 0 else "")


def counted(number: int, word: str) -> str:
    """`1 episode`, `2 episodes`."""
    return f"{number} {word}" if number == 1 else f"{number} {word}s"


__all__ = ["ERROR", "LEVELS", "NOTE", "RULES", "WARNING", "Finding", "Rule", "counted", "limit", "some"]
