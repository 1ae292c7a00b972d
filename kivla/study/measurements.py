"""What a study measures: what the VLM still knows, what the losses ask of it, and how the policy acts."""

import numpy as np
from transformers import AutoModelForImageTextToText, AutoProcessor, pipeline

from ..demo.stages import EVALUATION_SEED, ROLLOUTS, ask_vlm, score_answers
from ..modeling_kivla import KIVLAForActionPrediction
from ..modeling_kivla.eval_mode import eval_mode
from ..processing import KIVLAProcessor
from ..simulation import make_env
from ..simulation.rollout import PipelinePolicy
from ..simulation.rollout_evaluation import evaluate
from ..training.data.collator import KIVLACollator
from ..training.data.lerobot.dataset import LeRobotDataset
from ..training.data.robot_dataset import evenly_spread
from ..training.evaluation.gradient_conflict import gradient_conflict
from ..training.evaluation.predictions import predict_dataset
from ..training.evaluation.text_nll import HeldOutTexts, text_nll
from .arguments import StudyArguments
from .workshop import Workshop

NUM_PROBES = 8  # held-out examples whose losses have their gradients measured


class Measurements:
    """Everything that is measured of a policy while it is trained; nothing of the training changes by it.

    Args:
        shop: options and data of the study.
        model, processor: the policy.
    """

    def __init__(self, shop: Workshop, model: KIVLAForActionPrediction, processor: KIVLAProcessor):
        self.shop, self.model, self.processor = shop, model, processor
        chosen = evenly_spread(len(shop.held_out), NUM_PROBES)
        self._probe = KIVLACollator(processor)([shop.held_out[int(i)] for i in chosen])

    def knowledge(self) -> dict:
        """Losses and gradients on fixed held-out examples, and what the held-out texts cost the VLM, text by text."""
        batch = self._probe.to(self.model.device)
        losses = gradient_conflict(self.model, batch, self.processor.action_token_ids)
        return {**losses, "texts": self.texts()}

    def texts(self) -> dict | None:
        """What the held-out texts cost the VLM; None if there are none."""
        if self.shop.texts is None:
            return None
        return score_texts(self.model, self.processor.tokenizer, self.shop.texts, self.processor.action_token_ids)

    def acts(self, name: str) -> dict:
        """Outcomes of a closed loop, scene by scene.

        Returns:
            `told`, with words of the demonstrations. Of the study's first closed loop also `told_otherwise_original`
            and `told_otherwise_named`: told about another object, whether the original one was touched, and whether the
            named one. And where there are words that were never demonstrated, `synonym`, with these in the same scenes,
            and `words`, which they were.
        """
        study = self.shop.study
        env = make_env("tabletop", min(study.num_episodes, 100), **ROLLOUTS[name][1])
        seeds = range(EVALUATION_SEED, EVALUATION_SEED + study.num_episodes)
        with eval_mode(self.model):
            policy, swapped = PipelinePolicy(self.pipe()), name == study.rollouts[0]
            figures, _ = evaluate(policy, env, seeds, study.replan_every, env.max_steps, swapped)
        env.close()
        own, plain = figures["episodes"], figures["plain"]
        outcomes: dict = {"told": _bits(own if plain is None else plain["episodes"])}
        if plain is not None:
            outcomes |= {"synonym": _bits(own), "words": [episode["word"] for episode in own]}
        if swapped:
            episodes = figures["swapped"]["episodes"]
            outcomes["told_otherwise_original"] = _bits(episodes)
            outcomes["told_otherwise_named"] = _bits(episodes, "swapped_success")
        return outcomes

    def action_error(self) -> dict:
        """Mean absolute error on held-out frames, and that of always doing the mean action, episode by episode.

        Each dimension is in units of its standard deviation.
        """
        with eval_mode(self.model):
            return error_by_episode(self.pipe(), self.shop.held_out, self.shop.study.num_held_out_frames)

    def answers(self) -> dict:
        """Accuracy of the answers to questions about the tabletop."""
        with eval_mode(self.model):
            num_scenes = self.shop.study.num_question_scenes
            return score_answers(self.model, self.processor.vlm_processor, num_scenes)["accuracy"]["all"]

    def pipe(self):
        return pipeline("action-prediction", model=self.model, processor=self.processor, device=self.model.device)


def before_training(study: StudyArguments, texts: HeldOutTexts | None) -> dict:
    """Measure what the VLM knows before any training: texts, and answers about the tabletop."""
    found: dict = {"texts": None, "answers": None}
    if texts is not None:
        vlm = AutoModelForImageTextToText.from_pretrained(study.vlm, dtype="float32")
        found["texts"] = score_texts(vlm, AutoProcessor.from_pretrained(study.vlm).tokenizer, texts)
    if study.num_question_scenes:
        found["answers"] = ask_vlm(study.vlm, study.num_question_scenes)["accuracy"]["all"]
    return found


def score_texts(model, tokenizer, texts: HeldOutTexts, action_token_ids=()) -> dict:
    """What texts cost a model, ready for JSON: nats and tokens of each, and how many nats are due to action tokens."""
    scores = text_nll(model, tokenizer, texts.texts, texts.text_length, action_token_ids=action_token_ids)
    return {
        "nll": np.round(scores.nll, 4).tolist(),
        "tokens": scores.tokens.tolist(),
        "of_action_tokens": float(scores.action_nll.sum() / scores.tokens.sum()),
    }


def error_by_episode(pipe, data: LeRobotDataset, num_frames: int) -> dict:
    found = predict_dataset(pipe, data, num_frames)
    scale = np.asarray(data.statistics["actions"]["std"], np.float64)
    scale[scale == 0] = 1.0
    real = ~found["is_pad"][..., None]
    errors = [
        np.where(real, np.abs(actions - found["demonstrated"]) / scale, 0.0).sum((1, 2))
        for actions in (found["predicted"], found["mean_action"])
    ]
    episodes, place = np.unique(found["episodes"], return_inverse=True)
    own, mean = (np.bincount(place, error, len(episodes)).round(5).tolist() for error in errors)
    return {"error": own, "of_mean_action": mean}


def _bits(episodes: list[dict], outcome: str = "success") -> str:
    return "".join("1" if episode[outcome] else "0" for episode in episodes)
