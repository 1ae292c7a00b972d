"""What a study is told: which runs, how long, and what is measured of them."""

from dataclasses import asdict, dataclass, field

from ..demo.stages import ROLLOUTS, TabletopArguments
from ..named_models import TABLETOP, find_vlm
from ..option_ranges import check_ranges
from ..simulation.tabletop.tasks import TASK_KINDS
from ..training.policy_options import refuse
from .cells import COLD, QUESTIONS, REPLAY, WARMUP, check_condition

# What is taken where nothing else is told, of options that are for the tabletop alone.
_ON_THE_TABLETOP = {
    "kinds": ["touch"],
    "num_demonstrations": 3000,
    "replan_every": 4,
    "rollouts": ["touch_synonyms"],  # the word of the demonstrations, a synonym, another object: in the same scenes
    "num_episodes": 100,
    "num_question_scenes": 50,
}
# What may differ from one start to the next: more runs, or other words about the same ones.
_FREE = ("output_dir", "recipes", "conditions", "seeds", "core_hours", "target_success", "run")


@dataclass
class StudyArguments:
    output_dir: str = field(default="outputs/study", metadata={"help": "Where all of it goes; run again to go on."})
    recipes: list[str] = field(
        default_factory=lambda: ["insulated", "joint", "pi0", "frozen"],
        metadata={"help": "`kivla recipes` lists them; or YAML files."},
    )
    conditions: list[str] | None = field(
        default=None,
        metadata={
            "help": "cold, or some of warmup (new parts learn first), replay (plain texts mixed in), anchor (held on "
            "them to the untouched VLM) and questions (about the tabletop), joined by +. By default cold warmup, and "
            "warmup+replay where there is a text_dataset."
        },
    )
    seeds: list[int] = field(default_factory=lambda: [0, 1], metadata={"help": "One run of each cell for each."})
    vlm: str = field(default=TABLETOP, metadata={"help": "VLM to start from: a folder, a Hub id, or tabletop."})
    dataset: str | None = field(
        default=None,
        metadata={"help": "Your demonstrations (LeRobot), in place of the tabletop's: its last tenth is held out."},
    )
    max_steps: int = field(default=700, metadata={"help": "Optimiser steps of every run."})
    core_hours: float | None = field(
        default=None, metadata={"help": "Budget: the last runs that do not fit are left out, and named."}
    )
    run: bool = field(default=True, metadata={"help": "false: make figure and table anew of the rows that are there."})
    batch_size: int = field(default=8, metadata={"help": "Examples in a step."})
    bf16: bool = field(
        default=False,
        metadata={
            "help": "Train in mixed precision: float32 weights, layers in bfloat16. Faster where there are such "
            "products. Measured is in float32."
        },
    )
    learning_rates: list[float] = field(
        default_factory=lambda: [3e-5, 1e-4, 3e-4],
        metadata={"help": "The VLM's: the pilot tries each, for every cell. One is taken as it is."},
    )
    expert_learning_rates: list[float] | None = field(
        default=None,
        metadata={"help": "The expert's: likewise, each with each of the VLM's; 1e-3 3e-3, with muon the VLM's."},
    )
    pilot_steps: int = field(default=100, metadata={"help": "Optimiser steps of every trial of the pilot."})
    pilot_seed: int = field(default=1000, metadata={"help": "Seed of the pilot's trials."})
    new_token_learning_rate: float | None = field(
        default=None, metadata={"help": "Of new tokens, in every run; the recipe's own (a warm-up has 3e-3)."}
    )
    projector_learning_rate: float | None = field(
        default=None, metadata={"help": "Of the projector, in every run; the recipe's own."}
    )
    muon: bool = field(default=False, metadata={"help": "Muon in place of AdamW."})
    warmup_steps: int = field(default=100, metadata={"help": "How many of the steps a warm-up takes."})
    text_dataset: str | None = field(
        default=None, metadata={"help": "Plain texts for replay: a Hub id, a folder, JSON lines or Parquet."}
    )
    text_column: str | None = field(default=None, metadata={"help": "Its column of texts; text."})
    text_share: float = field(default=0.25, metadata={"help": "Share of texts among the examples, under replay."})
    text_length: int = field(default=128, metadata={"help": "Most tokens of a text that is replayed."})
    text_loss_weight: float = field(default=1.0, metadata={"help": "Of their loss, a mean of its own."})
    anchor_weight: float = field(
        default=1.0, metadata={"help": "Under anchor: of the divergence from the untouched VLM."}
    )
    eval_text_dataset: str | None = field(
        default=None, metadata={"help": "Held-out texts of another source: what the VLM knew of them, and still knows."}
    )
    eval_text_column: str | None = field(default=None, metadata={"help": "Its column of texts; text."})
    num_eval_texts: int = field(default=64, metadata={"help": "How many of them, spread evenly."})
    eval_text_length: int = field(default=128, metadata={"help": "Tokens of each that count."})
    freeze_vision: bool = field(default=True, metadata={"help": "Leave the vision tower as it is, in every run."})
    question_share: float = field(default=0.35, metadata={"help": "Share of questions, under that condition."})
    kinds: list[str] | None = field(
        default=None, metadata={"help": f"Tasks of the tabletop to demonstrate: {', '.join(TASK_KINDS)}; touch."}
    )
    num_demonstrations: int | None = field(
        default=None, metadata={"help": "Episodes of the tabletop's scripted expert, beside those held out; 3000."}
    )
    replan_every: int | None = field(default=None, metadata={"help": "Actions before the policy looks again; 4."})
    rollouts: list[str] | None = field(
        default=None,
        metadata={
            "help": f"Closed loops on the tabletop: {', '.join(ROLLOUTS)}; touch_synonyms, or with other --kinds one "
            "of each. In the first one the policy is also told about another object."
        },
    )
    num_episodes: int | None = field(default=None, metadata={"help": "Scenes of each closed loop; 100."})
    num_checkpoints: int = field(
        default=2, metadata={"help": "At how many evenly spread steps the policy acts; 2: half way and at the end."}
    )
    num_held_out_frames: int = field(default=128, metadata={"help": "Held-out frames for the error of the actions."})
    measure_every: int = field(default=100, metadata={"help": "Steps between measurements of texts and gradients."})
    num_question_scenes: int | None = field(
        default=None, metadata={"help": "Pictures of the tabletop to ask about, six questions each; 50. 0: none."}
    )
    target_success: float = field(default=0.7, metadata={"help": "How many steps until so much success?"})

    def __post_init__(self):
        check_ranges(self)
        self.vlm = find_vlm(self.vlm)
        if self.dataset is not None:
            own = ("kinds", "num_demonstrations", "replan_every", "rollouts", "num_episodes", "num_question_scenes")
            reason = "it is for the tabletop, and --dataset has no simulator"
            refuse({name: reason for name in own if getattr(self, name) is not None})
        else:
            TabletopArguments(kinds=self.kinds or ["touch"])  # refuses what is none
            if self.rollouts is None and self.kinds not in (None, ["touch"]):
                self.rollouts = list(self.kinds)
            for name, value in _ON_THE_TABLETOP.items():
                setattr(self, name, value if getattr(self, name) is None else getattr(self, name))
        if not self.muon and self.expert_learning_rates is None:
            self.expert_learning_rates = [1e-3, 3e-3]
        self.conditions = self.conditions or self._possible_conditions()
        for condition in self.conditions:
            check_condition(condition)
        added = {part for condition in self.conditions for part in condition.split("+")}
        if self.run and REPLAY in added and self.text_dataset is None:
            raise ValueError("Replay needs texts: give --text_dataset, or leave the condition out.")
        if QUESTIONS in added and self.dataset is not None:
            raise ValueError("Questions are about the tabletop: with --dataset leave the condition out.")
        if WARMUP in added and not 0 < self.warmup_steps < self.max_steps:
            raise ValueError(
                f"--warmup_steps {self.warmup_steps} must be fewer than --max_steps {self.max_steps}, and more than 0."
            )
        if self.eval_text_dataset is None and not self.num_question_scenes:
            raise ValueError(
                "A study is about what the VLM still knows: give --eval_text_dataset, texts that nothing is trained on."
            )
        for name in ("text_share", "question_share"):
            if not 0 < getattr(self, name) < 1:
                raise ValueError(f"--{name} lies between 0 and 1, got {getattr(self, name)}.")
        if unknown := set(self.rollouts or ()) - set(ROLLOUTS):
            raise ValueError(f"There are no roll-outs {', '.join(sorted(unknown))}; there are {', '.join(ROLLOUTS)}.")
        if self.dataset is None:
            for name in self.rollouts:
                if ROLLOUTS[name][1]["kinds"][0] not in self.kinds:
                    raise ValueError(f"--rollouts {name} is of tasks that are not demonstrated: --kinds {self.kinds}.")
        if self.num_checkpoints > self.max_steps:
            raise ValueError(f"--num_checkpoints {self.num_checkpoints} are more than --max_steps {self.max_steps}.")

    def _possible_conditions(self) -> list[str]:
        return [COLD, WARMUP] if self.text_dataset is None else [COLD, WARMUP, f"{WARMUP}+{REPLAY}"]

    @property
    def fixed(self) -> dict:
        """What every row of a study must have in common."""
        return {name: value for name, value in asdict(self).items() if name not in _FREE}
