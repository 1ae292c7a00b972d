"""What an evaluation measures on one batch: losses, and what the policy does and says."""

from itertools import takewhile

import torch
from torch.nn.utils.rnn import pad_sequence

from ...modeling_kivla import KIVLAForActionPrediction
from ...processing import ActionDecodingFailure, KIVLAProcessor
from .evaluation_sums import ACTION_ERROR_SUMS, TOKEN_SUMS, action_error_sums, token_sums

LOSS_SUMS = (*TOKEN_SUMS, "flow_loss", "action_values")
# Of what the model says: chunks that did not decode, of how many; answers that are right, of how many.
_SAID_SUMS = ("decoding_failures", "decoded", "right_answers", "answers")
# The error of chunks after the demonstrated response, where there is one.
_GIVEN = "given_response_"
_GIVEN_SUMS = (f"{_GIVEN}absolute_error", f"{_GIVEN}values")


class EvaluationStep:
    """Measures batches of the collator's.

    Args:
        model: the policy, in evaluation mode.
        processor: its processor.
        samples: whether the policy acts and answers; otherwise there are losses only.
        num_steps: Euler steps; the model's `num_inference_steps` if None.
        always_all: run every layer on every batch: with ZeRO-3 devices have to.
    """

    def __init__(
        self,
        model: KIVLAForActionPrediction,
        processor: KIVLAProcessor,
        samples: bool,
        num_steps: int | None = None,
        always_all: bool = False,
    ):
        self.model, self.processor = model, processor
        self.samples, self.num_steps, self.always_all = samples, num_steps, always_all
        self.action_token_ids = torch.as_tensor(processor.action_token_ids)
        self.width = max(robot.action_dim for robot in processor.robots.values())

    def __call__(self, batch: dict) -> tuple[dict[str, torch.Tensor], torch.Tensor, torch.Tensor]:
        """
        Args:
            batch: as for training; or observations alone, at which the policy acts.

        Returns:
            Sums, each (B,) or (B, D): always the same names, so that devices agree. And predicted and true chunks,
            (B, H, D), in robot units, D that of the widest robot. NaN is what is not there: of the true ones padded
            steps, of both the dimensions that a robot does not have, and examples that do not act or do not decode.
        """
        inputs = {name: values for name, values in batch.items() if name != "robot"}
        count, device = len(inputs["input_ids"]), inputs["input_ids"].device
        robots = batch.get("robot") or [None] * count
        config = self.model.config
        widths = dict.fromkeys((*LOSS_SUMS, *_SAID_SUMS), ())
        widths |= dict.fromkeys((*ACTION_ERROR_SUMS, *_GIVEN_SUMS), (config.max_action_dim,))
        sums = {name: torch.zeros(count, *width, device=device) for name, width in widths.items()}
        nothing = torch.full((count, config.chunk_size, self.width), torch.nan, device=device)
        predicted, demonstrated = nothing, nothing.clone()
        if "labels" in inputs:
            self._losses(inputs, sums)
            acts = inputs["action_mask"].any((1, 2)) if "actions" in inputs else torch.zeros(count, dtype=torch.bool)
        else:
            acts = torch.ones(count, dtype=torch.bool)
        if not self.samples:
            return sums, predicted, demonstrated
        # Everything is decoded for the whole batch, whose images cannot be taken apart; what does not apply is left.
        acting = acts.nonzero().flatten().tolist()
        if acting:
            own, after_response, has_response = self._chunks(inputs, robots)
            for i in acting:
                sums["decoded"][i] = 1
                true = real = None
                if "actions" in inputs:
                    true, real = self._true(inputs, i, robots[i])
                    demonstrated[i, :, : true.shape[1]] = true.masked_fill(~real, torch.nan).to(device)
                if isinstance(own[i], ActionDecodingFailure):
                    sums["decoding_failures"][i] = 1
                else:
                    chunk = torch.as_tensor(self.processor.unnormalize_actions(own[i], robots[i]))
                    predicted[i, :, : chunk.shape[1]] = chunk.to(device)
                    if true is not None:
                        for name, errors in self._errors(chunk, true, real, robots[i]).items():
                            sums[name][i, : len(errors)] = errors.to(device)
                if has_response[i] and not isinstance(after_response[i], ActionDecodingFailure):
                    chunk = torch.as_tensor(self.processor.unnormalize_actions(after_response[i], robots[i]))
                    errors = self._errors(chunk, true, real, robots[i])
                    for name in ("absolute_error", "values"):
                        sums[_GIVEN + name][i, : chunk.shape[1]] = errors[name].to(device)
        if len(acting) < count:
            self._answers(inputs, (~acts).nonzero().flatten().tolist(), sums)
        return sums, predicted, demonstrated

    def _losses(self, inputs: dict, sums: dict[str, torch.Tensor]) -> None:
        outputs = self.model(**inputs, with_token_loss=self.always_all, with_flow_loss=self.always_all)
        if outputs.token_loss is not None:
            sums.update(token_sums(outputs.logits, inputs["labels"], self.action_token_ids))
        if outputs.flow_loss is not None and "actions" in inputs:
            sums["action_values"] = inputs["action_mask"].sum((1, 2)).float()
            sums["flow_loss"] = outputs.flow_loss * sums["action_values"]

    def _chunks(self, inputs: dict, robots: list[str | None]) -> tuple[list, list, list[bool]]:
        """Normalised chunks as the policy acts when deployed, and after the demonstrated response; and whether an
        example has one."""
        if "labels" not in inputs:
            prompts, has_response = inputs, [False] * len(robots)
        else:
            learned = inputs["labels"] != -100
            is_action = torch.isin(inputs["labels"], self.action_token_ids.to(learned.device))
            first = learned.int().argmax(1, keepdim=True)
            has_response = (learned.any(1) & ~is_action.gather(1, first)[:, 0]).tolist()
            prompts = _prompts(inputs, learned, self.processor.tokenizer.pad_token_id)
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
        given = inputs if by_flow else _prompts(inputs, is_action, self.processor.tokenizer.pad_token_id)
        return own, self._act(given, robots, noise), has_response

    def _act(self, inputs: dict, robots: list[str | None], noise: torch.Tensor | None) -> list:
        ours = ("labels", "actions", "noise", "timestep")
        observation = {name: values for name, values in inputs.items() if name not in ours}
        if noise is not None:
            chunks = self.model.sample_actions(**observation, noise=noise, num_steps=self.num_steps)
            return list(chunks.cpu().numpy())
        mask = observation.pop("action_mask")
        real_dimensions = mask.any(1, keepdim=True).expand_as(mask)
        return self.model.generate_actions(
            self.processor, **observation, action_mask=real_dimensions, max_response_tokens=0, synced_gpus=False
        )

    def _true(self, inputs: dict, i: int, robot: str | None) -> tuple[torch.Tensor, torch.Tensor]:
        """(H, action_dim): the demonstrated chunk in robot units, and which of its values are real."""
        chunk = self.processor.unnormalize_actions(inputs["actions"][i].cpu(), robot, clip_actions=False)
        return chunk, inputs["action_mask"][i, :, : chunk.shape[1]].cpu()

    def _errors(self, chunk: torch.Tensor, true, real, robot: str | None) -> dict[str, torch.Tensor]:
        """(D,) sums over the steps of one example, in the units of its robot."""
        mean = torch.as_tensor(self.processor.robot(robot).mean_action, dtype=torch.float32)
        sums = action_error_sums(chunk[None], true[None], mean, real[None])
        return {name: values[0] for name, values in sums.items()}

    def _answers(self, inputs: dict, asked: list[int], sums: dict[str, torch.Tensor]) -> None:
        labels, end, pad = inputs["labels"], self.processor.end_token_id, self.processor.tokenizer.pad_token_id
        prompts = _prompts(inputs, labels != -100, pad)
        prompts.pop("action_mask", None)
        answers = _first_answers(labels, end)
        said = self.model.generate(
            **prompts,
            max_new_tokens=max(map(len, answers)),
            do_sample=False,
            eos_token_id=end,
            pad_token_id=pad,
            synced_gpus=False,  # every device has all weights, and its own number of answers
        )[:, prompts["input_ids"].shape[1] :]
        for i in asked:
            own = said[i, : len(answers[i])].tolist()
            sums["answers"][i], sums["right_answers"][i] = 1, own == answers[i]


def summary(sums: dict[str, torch.Tensor]) -> dict[str, float]:
    """Means of what was counted, under the names of the metrics; of nothing there is none."""
    ratios = (
        ("token_loss", "token_loss", "tokens"),
        ("flow_loss", "flow_loss", "action_values"),
        ("token_accuracy", "correct_tokens", "tokens"),
        ("action_token_accuracy", "correct_action_tokens", "action_tokens"),
        ("answer_accuracy", "right_answers", "answers"),
        ("decoding_failures", "decoding_failures", "decoded"),
    )
    return {name: float(sums[total] / sums[count]) for name, total, count in ratios if sums.get(count, 0) > 0}


def metrics_of(totals: dict[str, torch.Tensor], flow_loss_weight: float) -> dict[str, float]:
    """Sums over a whole set -> its metrics; see `KIVLATrainer.evaluation_loop`."""
    metrics = summary(totals)
    if "token_loss" in metrics or "flow_loss" in metrics:
        metrics["loss"] = metrics.get("token_loss", 0.0) + flow_loss_weight * metrics.get("flow_loss", 0.0)
    count = totals["values"]  # (D,)
    if count.any():
        metrics["action_mae"] = float(totals["absolute_error"].sum() / count.sum())
        metrics["action_rmse"] = float((totals["squared_error"].sum() / count.sum()).sqrt())
        metrics["mean_action_mae"] = float(totals["baseline_absolute_error"].sum() / count.sum())
        metrics["mean_action_rmse"] = float((totals["baseline_squared_error"].sum() / count.sum()).sqrt())
        if metrics["action_mae"] > 0:
            metrics["times_better_than_mean"] = metrics["mean_action_mae"] / metrics["action_mae"]
        for i in count.nonzero().flatten().tolist():
            metrics[f"action_mae_{i}"] = float(totals["absolute_error"][i] / count[i])
    if (given := totals[f"{_GIVEN}values"]).any():
        metrics["action_mae_given_response"] = float(totals[f"{_GIVEN}absolute_error"].sum() / given.sum())
    return metrics


def _prompts(inputs: dict, learned: torch.Tensor, pad_token_id: int) -> dict:
    """A batch for training -> the same prompts up to the first token of `learned` (B, S), padded on the left as
    `generate` wants them."""
    mask = inputs["attention_mask"].bool()
    starts = torch.where(learned.any(1), learned.int().argmax(1), mask.shape[1] - mask.flip(1).int().argmax(1))
    rows = [mask[i] & (torch.arange(mask.shape[1], device=mask.device) < start) for i, start in enumerate(starts)]
    prompts = {}
    for name, values in inputs.items():
        if name in ("labels", "actions"):
            continue
        if values.shape == learned.shape and name != "state":
            padding = pad_token_id if name == "input_ids" else 0
            values = pad_sequence([values[i][row] for i, row in enumerate(rows)], True, padding, padding_side="left")
        prompts[name] = values
    return prompts


def _first_answers(labels: torch.Tensor, end_token_id: int) -> list[list[int]]:
    """The first learned tokens of every row, up to and with the end of the VLM's turn."""
    answers = []
    for row in labels.tolist():
        start = next((i for i, token in enumerate(row) if token != -100), len(row))
        answer = list(takewhile(lambda token: token not in (-100, end_token_id), row[start:]))
        answers.append([*answer, end_token_id] if answer else [])
    return answers


__all__ = ["LOSS_SUMS", "EvaluationStep", "metrics_of", "summary"]
