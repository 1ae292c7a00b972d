"""What an evaluation measures on one batch: losses, and what the policy does and says."""

from itertools import takewhile

import numpy as np
import torch

from ...modeling_kivla import KIVLAForActionPrediction, count_learned_actions
from ...modeling_kivla.real_time_chunking import draw_delays
from ...processing import ActionDecodingFailure, KIVLAProcessor
from ...processing.relative_actions import nearest_turn
from ...processing.sequences import are_documents
from .action_error import ACTION_ERROR_SUMS, action_error, action_error_sums
from .closed_choice import AMONG_ALL, choice_arguments
from .right_answers import is_right
from .token_sums import TOKEN_SUMS, token_sums

LOSS_SUMS = (*TOKEN_SUMS, "flow_loss", "action_values")
# Of what the model says: chunks that did not decode, of how many; answers that are right, of how many.
_SAID_SUMS = ("decoding_failures", "decoded", "right_answers", "answers")
# Chunks whose error is summed up: as the policy acts when deployed, after the demonstrated response where there is one,
# and always the mean action. The names of their sums begin so.
_OWN, _GIVEN, _MEAN = "own_", "given_response_", "mean_action_"
# What a batch holds for this measurement, and not for the model
_NOT_FOR_MODEL = ("robot", "demonstrated", "robot_state")


class EvaluationStep:
    """Measures a policy on one batch after the other.

    Args:
        model: the policy, in evaluation mode.
        processor: its processor.
        samples: whether the policy acts and answers; otherwise there are losses only.
        num_steps: Euler steps; the model's `num_inference_steps` if None.
        always_all: run every layer on every batch: with ZeRO-3 devices have to.
        action_token_softmax: the tokens among which action tokens were learned (`KIVLATrainingArguments`).
    """

    def __init__(
        self,
        model: KIVLAForActionPrediction,
        processor: KIVLAProcessor,
        samples: bool,
        num_steps: int | None = None,
        always_all: bool = False,
        action_token_softmax: str = AMONG_ALL,
    ):
        self.model, self.processor = model, processor
        self.samples, self.num_steps, self.always_all = samples, num_steps, always_all
        self.action_token_softmax = action_token_softmax
        self.action_token_ids = torch.as_tensor(processor.action_token_ids)
        self.width = max(robot.action_dim for robot in processor.robots.values())

    def __call__(self, batch: dict) -> tuple[dict[str, torch.Tensor], torch.Tensor, torch.Tensor]:
        """Measure a batch.

        Args:
            batch: as for training, with `demonstrated` (`WithDemonstrations`); or observations alone, at which the
                policy acts.

        Returns:
            Sums, each (B,) or (B, D): always the same names, so that devices agree. And predicted and demonstrated
            chunks, (B, H, D), in robot units, D that of the widest robot. NaN is what is not there: of demonstrated
            ones padded steps, of both the dimensions that a robot does not have, and examples that do not act or do
            not decode.
        """
        inputs = {name: values for name, values in batch.items() if name not in _NOT_FOR_MODEL}
        count, device = len(inputs["input_ids"]), inputs["input_ids"].device
        robots, demonstrated = batch.get("robot") or [None] * count, batch["demonstrated"]
        states = batch["robot_state"]
        widths = dict.fromkeys((*LOSS_SUMS, *_SAID_SUMS), ())
        widths |= {kind + name: (self.width,) for kind in (_OWN, _GIVEN, _MEAN) for name in ACTION_ERROR_SUMS}
        sums = {name: torch.zeros(count, *width, device=device) for name, width in widths.items()}
        predicted = torch.full_like(demonstrated, torch.nan)
        if "labels" in inputs:
            self._losses(inputs, sums)
            acts = inputs["action_mask"].any((1, 2)) if "actions" in inputs else torch.zeros(count, dtype=torch.bool)
            is_text = are_documents(inputs["labels"])
        else:
            acts, is_text = torch.ones(count, dtype=torch.bool), torch.zeros(count, dtype=torch.bool)
        if not self.samples:
            return sums, predicted, demonstrated
        # Everything is decoded for the whole batch, whose images cannot be taken apart; what does not apply is left.
        acting = acts.nonzero().flatten().tolist()
        if acting:
            own, after_response, has_response = self._chunks(inputs, robots)
            seen = demonstrated.cpu().numpy()
            predicted = self._in_robot_units(own, robots, states, acting, seen).to(device)
            given = [i for i in acting if has_response[i]]
            after_given = self._in_robot_units(after_response, robots, states, given, seen).to(device)
            mean = self._mean_actions(robots, acting, seen).to(device)
            mean = mean.masked_fill(predicted.isnan(), torch.nan)  # on the same values as the policy's error
            for kind, chunks in ((_OWN, predicted), (_GIVEN, after_given), (_MEAN, mean)):
                real = ~(chunks.isnan() | demonstrated.isnan())
                errors = action_error_sums(chunks, demonstrated, real)
                sums.update({kind + name: values for name, values in errors.items()})
            sums["decoded"][acting] = 1
            failures = [i for i in acting if isinstance(own[i], ActionDecodingFailure)]
            sums["decoding_failures"][failures] = 1
        asked = (~acts.cpu() & ~is_text.cpu()).nonzero().flatten().tolist()
        if asked:
            self._answers(inputs, asked, sums)
        return sums, predicted, demonstrated

    def _losses(self, inputs: dict, sums: dict[str, torch.Tensor]) -> None:
        config = self.model.config
        if config.rtc_max_delay > 0:  # drawn here, where it is counted what the loss is over
            delay = draw_delays(config.num_flow_samples * len(inputs["input_ids"]), config.rtc_max_delay)
            inputs = {**inputs, "delay": delay.to(inputs["input_ids"].device)}
        choice = choice_arguments(self.processor, self.action_token_softmax, inputs["labels"])
        outputs = self.model(**inputs, **choice, with_token_loss=self.always_all, with_flow_loss=self.always_all)
        if outputs.token_loss is not None:
            sums.update(token_sums(outputs, inputs["labels"], self.action_token_ids, **choice))
        if outputs.flow_loss is not None and "actions" in inputs:
            sums["action_values"] = count_learned_actions(inputs["action_mask"], inputs.get("delay")).float()
            sums["flow_loss"] = outputs.flow_loss * sums["action_values"]

    def _chunks(self, inputs: dict, robots: list[str | None]) -> tuple[list, list, list[bool]]:
        """Normalised chunks as the policy acts when deployed, and after the demonstrated response; and whether an
        example has one."""
        if "labels" not in inputs:
            prompts, has_response = inputs, [False] * len(robots)
        else:
            prompts = self.processor.prompts_of(inputs)
            answers = self.processor.answers_of(inputs)  # or the codes of a chunk, where nothing is said before them
            codes = set(self.action_token_ids.tolist())
            has_response = [len(answer) > 0 and answer[0] not in codes for answer in answers]
        by_flow = self.model.config.acts_by == "flow"
        says = self.processor.expert_reads_response or (not by_flow and self.processor.responds_first)
        shape = (len(robots), self.model.config.chunk_size, self.model.config.max_action_dim)
        noise = torch.randn(shape, device=inputs["input_ids"].device) if by_flow else None
        if not says:
            own = self._act(prompts if not by_flow or "labels" not in inputs else inputs, robots, noise)
            return own, own, [False] * len(robots)
        words = self.model.generate_response(self.processor, **prompts)
        own = self._act(self.processor.add_responses(prompts, words), robots, noise)
        if not any(has_response):
            return own, own, has_response
        given = inputs if by_flow else self.processor.prompts_of(inputs, with_responses=True)
        return own, self._act(given, robots, noise), has_response

    def _act(self, inputs: dict, robots: list[str | None], noise: torch.Tensor | None) -> list:
        ours = ("labels", "actions", "noise", "timestep", "delay")
        observation = {name: values for name, values in inputs.items() if name not in ours}
        if noise is not None:
            chunks = self.model.sample_actions(**observation, noise=noise, num_steps=self.num_steps)
            return list(chunks.cpu().numpy())
        mask = observation.pop("action_mask")
        real_dimensions = mask.any(1, keepdim=True).expand_as(mask)
        return self.model.generate_actions(
            self.processor, **observation, action_mask=real_dimensions, max_response_tokens=0, synced_gpus=False
        )

    def _in_robot_units(
        self, chunks: list, robots: list[str | None], states: list, chosen: list[int], demonstrated: np.ndarray
    ) -> torch.Tensor:
        """Turn some of the normalised chunks into their robots' units, (B, H, D); NaN is all that is not there.

        Angles that wrap are written as the turn nearest to the demonstrated ones, (B, H, D).
        """
        actions = torch.full((len(chunks), self.model.config.chunk_size, self.width), torch.nan)
        for i in chosen:
            if not isinstance(chunks[i], ActionDecodingFailure):
                chunk = np.asarray(self.processor.unnormalize_actions(chunks[i], robots[i], state=states[i]))
                actions[i, :, : chunk.shape[1]] = self._nearest(chunk, robots[i], demonstrated[i])
        return actions

    def _nearest(self, actions: np.ndarray, robot: str | None, demonstrated: np.ndarray) -> torch.Tensor:
        relative = self.processor.robot(robot).units.relative
        return torch.as_tensor(nearest_turn(actions, demonstrated[:, : actions.shape[1]], relative))

    def _mean_actions(self, robots: list[str | None], chosen: list[int], demonstrated: np.ndarray) -> torch.Tensor:
        """Return the mean action of some of the examples' robots, (B, H, D), robot units; NaN where it is not known."""
        means = torch.zeros(demonstrated.shape)
        for i in chosen:
            mean = self.processor.robot(robots[i]).mean_action
            mean = np.full((1, self.width), np.nan) if mean is None else np.asarray(mean)[None]  # (1, D)
            means[i, :, : mean.shape[1]] = self._nearest(mean, robots[i], demonstrated[i])
        return means

    def _answers(self, inputs: dict, asked: list[int], sums: dict[str, torch.Tensor]) -> None:
        end, decode = self.processor.end_token_id, self.processor.tokenizer.decode
        prompts = self.processor.prompts_of(inputs)
        prompts.pop("action_mask", None)
        answers = self.processor.answers_of(inputs)  # with the end
        said = self.model.generate(
            **prompts,
            max_new_tokens=max(map(len, answers)),
            do_sample=False,
            eos_token_id=end,
            pad_token_id=self.processor.tokenizer.pad_token_id,
            synced_gpus=False,  # every device has all weights, and its own number of answers
        )[:, prompts["input_ids"].shape[1] :]
        for i in asked:
            own, true = said[i].tolist(), answers[i][:-1]
            is_finished = end in own  # words that go on are another answer
            words = decode(list(takewhile(lambda token: token != end, own)))
            sums["answers"][i], sums["right_answers"][i] = 1, is_finished and is_right(words, [decode(true)])


def summary(sums: dict[str, torch.Tensor]) -> dict[str, float]:
    """Make means of what was counted, under the names of the metrics; of nothing there is none."""
    ratios = (
        ("token_loss", "token_loss", "tokens"),
        ("text_loss", "text_loss", "text_tokens"),
        ("flow_loss", "flow_loss", "action_values"),
        ("token_accuracy", "correct_tokens", "tokens"),
        ("action_token_accuracy", "correct_action_tokens", "action_tokens"),
        ("answer_accuracy", "right_answers", "answers"),
        ("decoding_failures", "decoding_failures", "decoded"),
    )
    return {name: float(sums[total] / sums[count]) for name, total, count in ratios if sums.get(count, 0) > 0}


def metrics_of(totals: dict[str, torch.Tensor], flow_loss_weight: float, text_loss_weight: float) -> dict[str, float]:
    """Make metrics of the sums over a whole set; see `KIVLATrainer.evaluation_loop`."""
    metrics = summary(totals)
    terms = (("token_loss", 1.0), ("flow_loss", flow_loss_weight), ("text_loss", text_loss_weight))
    if terms := [weight * metrics[name] for name, weight in terms if name in metrics]:
        metrics["loss"] = sum(terms)
    own, mean, given = (
        action_error({name: totals[kind + name] for name in ACTION_ERROR_SUMS}) for kind in (_OWN, _MEAN, _GIVEN)
    )
    if own["mae"] is not None:
        metrics |= {"action_mae": own["mae"], "action_rmse": own["rmse"]}
        if mean["mae"] is not None:
            metrics |= {"mean_action_mae": mean["mae"], "mean_action_rmse": mean["rmse"]}
        if mean["mae"] is not None and own["mae"] > 0:
            metrics["times_better_than_mean"] = mean["mae"] / own["mae"]
        per_dimension = enumerate(own["mae_per_dimension"])
        metrics |= {f"action_mae_{i}": error for i, error in per_dimension if error is not None}
    if given["mae"] is not None:
        metrics["action_mae_given_response"] = given["mae"]
    return metrics


__all__ = ["LOSS_SUMS", "EvaluationStep", "metrics_of", "summary"]
