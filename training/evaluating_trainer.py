"""What evaluation adds to the library's Trainer: the policy acts, in robot units, and held-out texts are read."""

from typing import Any, cast

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset
from tqdm.auto import tqdm
from transformers import EvalPrediction
from transformers.trainer_utils import EvalLoopOutput, PredictionOutput, denumpify_detensorize

from ..processing import KIVLAProcessor
from .arguments import KIVLATrainingArguments
from .data.collator import KIVLACollator
from .data.dataset_checks import check_dataset
from .data_parallel import whole_weights
from .evaluation.demonstrations import WithDemonstrations
from .evaluation.evaluation_step import EvaluationStep, metrics_of
from .evaluation.text_nll import HeldOutTexts, TextScores, text_nll
from .resumable_trainer import ResumableTrainer


class EvaluatingTrainer(ResumableTrainer):
    """
    A Trainer whose `evaluate()` and `predict()` let a policy act, and let its VLM read [`HeldOutTexts`].

    Attributes:
        text_scores: texts one by one, of the last evaluation under each prefix ("eval_text", ...).
    """

    args: KIVLATrainingArguments
    model: nn.Module
    accelerator: Any  # its results have the types of what it is given, which it does not say
    processing_class: KIVLAProcessor

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.text_scores: dict[str, TextScores] = {}

    def _get_dataloader(self, dataset: Dataset, *args, is_training: bool = False, **kwargs):
        """Add to batches for evaluation what was demonstrated, in robot units."""
        loader = super()._get_dataloader(dataset, *args, is_training=is_training, **kwargs)
        if not is_training:
            base: DataLoader = cast(Any, loader).base_dataloader  # of accelerate's
            width = max(cast(int, robot.action_dim) for robot in self.processing_class.robots.values())
            base.collate_fn = WithDemonstrations(base.collate_fn, self.processing_class.chunk_size, width)
        return loader

    def get_test_dataloader(self, test_dataset: Dataset) -> DataLoader:
        self._check_dataset(test_dataset)
        return super().get_test_dataloader(test_dataset)

    def get_eval_dataloader(self, eval_dataset=None) -> DataLoader:
        if not isinstance(eval_dataset, str):
            self._check_dataset(eval_dataset)
        return super().get_eval_dataloader(eval_dataset)

    def predict(
        self, test_dataset: Dataset, ignore_keys: list[str] | None = None, metric_key_prefix: str = "test"
    ) -> PredictionOutput:
        """Let the policy act on every example.

        Args:
            test_dataset: examples as for training; or observations alone.
            metric_key_prefix: as the library's.

        Returns:
            `predictions` (N, H, D) and `label_ids` (N, H, D), the demonstrated chunks: float32, in robot units, D that
            of the widest robot. NaN is what is not there: in `label_ids` padded steps; in both the dimensions that an
            example's robot does not have, and examples that do not act (VLM data); in `predictions` chunks that do not
            decode. So `np.nanmean(np.abs(predictions - label_ids))` is `action_mae`. None where no example acts, or
            none was demonstrated. `metrics` as `evaluate()` has them.
        """
        return super().predict(test_dataset, ignore_keys, metric_key_prefix)

    @torch.no_grad()
    def evaluation_loop(
        self,
        dataloader: DataLoader,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        """Measure losses on fixed noise; and, with `sample_in_eval`, what the policy does and says.

        Metrics: `loss`, `token_loss`, `flow_loss`, `token_accuracy`, `action_token_accuracy`; of plain text
        `text_loss`; on VLM data
        `answer_accuracy`, the share of (first) answers that the model gives word for word; of a policy that acts by
        tokens `decoding_failures`, the share of chunks that do not decode; and over the real values of all other chunks
        `action_mae`, `action_rmse`, `mean_action_mae` and `mean_action_rmse` (what always predicting the mean action of
        the training data would give), `times_better_than_mean` = mean_action_mae / action_mae, and `action_mae_0`, ...
        for each dimension. A policy that says what it is about to do acts on its own words, as it does when deployed;
        `action_mae_given_response` is its error after the demonstrated ones. And what `compute_metrics` returns.

        Of [`HeldOutTexts`] there is `nll` alone, nats a token; `text_scores` has it text by text.
        """
        if ignore_keys:
            raise ValueError(f"ignore_keys={ignore_keys} is for outputs of the model; chunks are none. Leave it out.")
        if isinstance(dataloader.dataset, HeldOutTexts):
            return self._read_texts(dataloader.dataset, metric_key_prefix)
        returns_chunks = not (self.args.prediction_loss_only if prediction_loss_only is None else prediction_loss_only)
        samples = returns_chunks or (self.args.sample_in_eval and not self.args.prediction_loss_only)
        if samples and self.is_zero3:
            raise ValueError("With ZeRO-3 devices cannot sample actions each on its own: use `kivla predict`.")
        # Every evaluation draws the same noise, each device its own, and leaves training's own random numbers as they
        # were.
        model = self.accelerator.unwrap_model(self.model)
        was_training = model.training
        model.eval()
        settings = self.args.eval_num_steps, self.is_zero3, self.args.action_token_softmax
        measure = EvaluationStep(model, self.processing_class, samples, *settings)
        totals: dict[str, torch.Tensor] = {}
        chunks: list[list[np.ndarray]] = []  # predicted and demonstrated, of every batch
        num_samples = 0
        quiet = self.args.disable_tqdm or not self.is_world_process_zero()
        with torch.random.fork_rng(), whole_weights(model, self.accelerator):
            torch.manual_seed(self.args.seed + self.args.process_index)
            for batch in tqdm(dataloader, desc=description, disable=quiet, leave=False):
                batch = self._prepare_inputs(batch)
                with self.compute_loss_context_manager():
                    sums, *both = measure(batch)
                # Sums, not means: batches and devices have unequal numbers of tokens and steps.
                for name, values in sums.items():
                    gathered = self.accelerator.gather_for_metrics(values).double().sum(0)
                    totals[name] = totals.get(name, 0.0) + gathered
                num_samples += len(self.accelerator.gather_for_metrics(batch["input_ids"][:, 0]))
                if returns_chunks:
                    chunks.append([self.accelerator.gather_for_metrics(values).cpu().numpy() for values in both])
        model.train(was_training)
        # Sums become means; chunks, where they were asked for, go to the caller's own metric.
        metrics = metrics_of(totals, model.config.flow_loss_weight, self.args.text_loss_weight)
        predictions = label_ids = None
        if returns_chunks and totals["decoded"] > 0:
            predictions, label_ids = (np.concatenate(part) for part in zip(*chunks, strict=True))
            label_ids = None if np.isnan(label_ids).all() else label_ids
        if self.compute_metrics is not None and predictions is not None and label_ids is not None:
            own_metrics = self.compute_metrics(EvalPrediction(predictions, label_ids))
            metrics.update(cast(dict, denumpify_detensorize(own_metrics)))
        return EvalLoopOutput(
            predictions=cast(np.ndarray, predictions),  # or None, as for a dataset without labels
            label_ids=label_ids,
            metrics={_with_prefix(name, metric_key_prefix): value for name, value in metrics.items()},
            num_samples=num_samples,
        )

    def _read_texts(self, texts: HeldOutTexts, metric_key_prefix: str) -> EvalLoopOutput:
        """Let the VLM predict texts. Every device reads all of them: they are few, and sharded weights need it."""
        model, processor = self.accelerator.unwrap_model(self.model), self.processing_class
        settings = {"batch_size": self.args.eval_batch_size, "start": processor.document_start}
        settings["action_token_ids"] = processor.action_token_ids
        with whole_weights(model, self.accelerator), self.compute_loss_context_manager():
            scores = text_nll(model, processor.tokenizer, texts.texts, texts.text_length, **settings)
        self.text_scores[metric_key_prefix] = scores
        metrics = {_with_prefix("nll", metric_key_prefix): scores.mean}
        return EvalLoopOutput(predictions=scores.nll, label_ids=None, metrics=metrics, num_samples=len(texts))

    def _check_dataset(self, dataset) -> None:
        collator = self.data_collator
        names = collator.cameras if isinstance(collator, KIVLACollator) else None
        check_dataset(dataset, self.processing_class, names)

    @property
    def is_zero3(self) -> bool:
        """Whether DeepSpeed shares out the weights (ZeRO-3), so that devices cannot act each on its own."""
        return self.is_deepspeed_enabled and self.accelerator.state.deepspeed_plugin.zero_stage == 3


def _with_prefix(name: str, prefix: str) -> str:
    return name if name.startswith(f"{prefix}_") else f"{prefix}_{name}"
