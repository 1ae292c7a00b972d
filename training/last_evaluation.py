"""The evaluation at the end of a run, which training may have made already."""

from transformers import TrainerCallback


class LastEvaluation(TrainerCallback):
    """Keeps what was measured last, so that the weights a run ends with are not evaluated twice."""

    def __init__(self):
        self.step, self.metrics = -1, {}

    def on_evaluate(self, args, state, control, metrics, **kwargs):
        if state.global_step != self.step:
            self.step, self.metrics = state.global_step, {}
        self.metrics |= metrics  # of each set by itself

    def of(self, trainer) -> dict[str, float]:
        """The metrics of the weights that a trainer has now: those that training ended with, or measured anew."""
        is_of_now = self.step == trainer.state.global_step and not trainer.args.load_best_model_at_end
        return self.metrics if is_of_now else trainer.evaluate()


__all__ = ["LastEvaluation"]
