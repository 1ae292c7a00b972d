"""What all runs of a study share, its options and data, and the trainer of each."""

from dataclasses import dataclass, fields, replace
from functools import cached_property
from pathlib import Path

import torch
from torch.utils.data import Dataset
from transformers import AutoConfig, AutoModelForImageTextToText

from ..demo.stages import QUESTION_SEED, TabletopArguments, options, record
from ..modeling_kivla import KIVLAConfig
from ..processing import KIVLAProcessor
from ..processing.observation_history import NO_HISTORY
from ..simulation import make_questions
from ..training.arguments import KIVLATrainingArguments
from ..training.build import build_for_stage
from ..training.data.lerobot.dataset import LeRobotDataset
from ..training.data.mixture import Mixture
from ..training.data.vlm.dataset import VLMDataset
from ..training.data.vlm.texts import TextDataset
from ..training.evaluation.text_nll import HeldOutTexts
from ..training.parts import freeze_vision
from ..training.policy_options import PolicyOptions
from ..training.recipes import BACKBONE, Stage, get_recipe
from ..training.trainer import KIVLATrainer
from .arguments import StudyArguments
from .cells import ANCHOR, QUESTIONS, REPLAY, Cell

MAX_HELD_OUT_EPISODES = 100
# Of a new action tokenizer: they apply to the recipes that learn one.
_TOKENIZER_OPTIONS = (
    "action_tokenizer",
    "action_vocab_size",
    "action_scale",
    "action_token_placement",
    "action_token_skip",
)


@dataclass(frozen=True)
class Rates:
    """Learning rates of a run; `expert` is None where there is one for all (Muon)."""

    vlm: float
    expert: float | None

    def __str__(self) -> str:
        return f"{self.vlm:g}" if self.expert is None else f"{self.vlm:g} / {self.expert:g}"


@dataclass
class Workshop:
    """Options and data of a study.

    Args:
        study: what is compared and measured.
        told: of the policies, what is not left to the recipe or to the defaults.
    """

    study: StudyArguments
    told: PolicyOptions

    @property
    def folder(self) -> Path:
        """Where runs, checkpoints and demonstrations go: large, and of no use once the rows are there."""
        return Path(self.study.output_dir) / "work"

    # ------------------------------------------------------------------------------------------------------- data
    @cached_property
    def _dataset(self) -> str:
        if self.study.dataset is not None:
            return self.study.dataset
        folder = self.folder / "demonstrations"
        record(folder, TabletopArguments(self.study.kinds, num_demonstrations=self.study.num_demonstrations))
        return str(folder)

    @cached_property
    def _episodes(self) -> list[int]:
        episodes = LeRobotDataset(self._dataset, 1).episodes
        if len(episodes) < 2:
            raise ValueError(f"{self._dataset} has one episode: a study holds some out, and needs two or more.")
        return episodes

    @cached_property
    def data(self) -> LeRobotDataset:
        """The demonstrations that are trained on."""
        return self._read(self._episodes[: -self._num_held_out])

    @cached_property
    def held_out(self) -> LeRobotDataset:
        """The last tenth of the demonstrations, a hundred at most."""
        return self._read(self._episodes[-self._num_held_out :])

    def _read(self, episodes: list[int]) -> LeRobotDataset:
        data = LeRobotDataset(self._dataset, self._chunk_size, episodes=episodes)
        return data.look_back(self.told.history_after(NO_HISTORY))

    @property
    def _num_held_out(self) -> int:
        return min(max(len(self._episodes) // 10, 1), MAX_HELD_OUT_EPISODES)

    @property
    def _chunk_size(self) -> int:
        default = KIVLAConfig.chunk_size if self.study.dataset is not None else TabletopArguments.chunk_size
        return self.told.chunk_size or default

    @cached_property
    def texts(self) -> HeldOutTexts | None:
        """The texts that tell what the VLM knows; None if none were given."""
        study = self.study
        if study.eval_text_dataset is None:
            return None
        return HeldOutTexts.load(
            study.eval_text_dataset,
            study.eval_text_column,
            num_texts=study.num_eval_texts,
            text_length=study.eval_text_length,
        )

    def open_texts(self) -> None:
        """Refuse texts that cannot be used, before anything is recorded or trained."""
        _ = self.texts

    # ----------------------------------------------------------------------------------------------------- policies
    def warmup_steps(self, max_steps: int) -> int:
        """How many steps the warm-up of a shorter run, of the pilot, takes: the same share."""
        return max(self.study.warmup_steps * max_steps // self.study.max_steps, 1)

    def options(self, recipe: str) -> PolicyOptions:
        """Options of a recipe's policy: those told, then the tabletop's or those of `kivla train`."""
        names = [field.name for field in fields(PolicyOptions)]
        if get_recipe(recipe).action_tokenizer == "none":
            names = [name for name in names if name not in _TOKENIZER_OPTIONS]
        told = self.told.given(*names)
        if self.study.dataset is not None:
            return replace(PolicyOptions(recipe=recipe), **told)
        known = {field.name for field in fields(TabletopArguments)}
        of_tabletop = {"noise_scale": 1.0} | {n: value for n, value in told.items() if n in known}
        return replace(options(self.data, TabletopArguments(recipe=recipe, **of_tabletop)), **told)

    def examples(self, cell: Cell, stage: Stage, processor: KIVLAProcessor, num_examples: int, seed: int) -> Dataset:
        """What a stage of a cell's run is trained on; texts and questions only where the VLM learns."""
        study, others = self.study, []
        if BACKBONE not in stage.trains:
            return self.data
        if REPLAY in cell.added:
            where = (study.text_dataset, processor, study.text_column)
            others.append((TextDataset.load(*where, length=study.text_length), study.text_share))
        if QUESTIONS in cell.added:
            questions = VLMDataset(make_questions(5000, QUESTION_SEED + seed))
            others.append((questions, study.question_share))
        if not others:
            return self.data
        sources, shares = zip(*others, strict=True)
        return Mixture([self.data, *sources], [1 - sum(shares), *shares], num_examples, seed)

    def make_trainer(
        self,
        cell: Cell,
        stage: Stage,
        rates: Rates,
        start: str | Path,
        output_dir: Path,
        max_steps: int,
        seed: int,
        **training_options,
    ) -> KIVLATrainer:
        """Make the trainer of a stage.

        Args:
            start: the policy of the stage before, or the VLM of a new one.
        """
        study = self.study
        torch.manual_seed(seed)  # a new expert's weights
        is_policy = AutoConfig.from_pretrained(start).model_type == KIVLAConfig.model_type
        start_from = {"before" if is_policy else "vlm": start}
        built = build_for_stage(stage, [self.data], self.options(cell.recipe), **start_from)
        if study.freeze_vision:
            freeze_vision(built.model)
        is_anchored = ANCHOR in cell.added and BACKBONE in stage.trains
        untouched = None
        if is_anchored and is_policy:
            untouched = AutoModelForImageTextToText.from_pretrained(study.vlm, **self.options(cell.recipe).loading)
        args = KIVLATrainingArguments(
            output_dir=str(output_dir),
            max_steps=max_steps,
            per_device_train_batch_size=study.batch_size,
            lr_scheduler_type="cosine",
            warmup_steps=min(50, max_steps // 10),
            learning_rate=rates.vlm,
            **stage.rate_arguments(
                expert_learning_rate=rates.expert,
                new_token_learning_rate=study.new_token_learning_rate,
                projector_learning_rate=study.projector_learning_rate,
            ),
            text_loss_weight=study.text_loss_weight if REPLAY in cell.added else 1.0,
            anchor_weight=study.anchor_weight if is_anchored else 0.0,
            muon=study.muon,
            bf16=study.bf16,
            use_cpu=not torch.accelerator.is_available(),  # else the library refuses bf16 there
            logging_steps=max(study.measure_every // 10, 1),
            seed=seed,
            dataloader_pin_memory=False,
            report_to="none",
            **training_options,
        )
        return KIVLATrainer(
            built.model,
            args,
            train_dataset=self.examples(cell, stage, built.processor, max_steps * study.batch_size, seed),
            processing_class=built.processor,
            ref_model=untouched,
            run_facts={"recipe": cell.recipe, "condition": cell.condition, "start": built.begins_with},
        )
