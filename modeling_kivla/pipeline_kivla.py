"""`pipeline("action-prediction", model=...)`: observations in, actions in robot units out."""

import torch
from transformers import Pipeline


class ActionPredictionPipeline(Pipeline):
    """
    Predicts action chunks with a KIVLA policy.

    ```python
    pipe = pipeline("action-prediction", model=path_or_hub_id)
    pipe({"images": [base, wrist], "text": "pick up the cup", "state": [...]})   # {"actions": (H, action_dim)}
    ```

    An observation has `images` (a list in the order of the processor's cameras, or a dict by camera name; PIL images,
    arrays, paths or URLs), `text`, and `state` if the policy reads one. A list of observations gives a list of results,
    computed `batch_size` at a time (all at once by default).

    Options, in the constructor or in a call: `num_steps` (Euler steps), and `seed`: with it every observation starts
    from the same noise, so its actions do not depend on what else is in the batch.
    """

    _load_processor = True
    _load_tokenizer = False
    _load_image_processor = False
    _load_feature_extractor = False
    _pipeline_calls_generate = False

    def _sanitize_parameters(self, num_steps: int | None = None, seed: int | None = None):
        forward = {"num_steps": num_steps, "seed": seed}
        return {}, {name: value for name, value in forward.items() if value is not None}, {}

    def __call__(self, observations: dict | list[dict], batch_size: int | None = None, **options):
        _, forward, _ = self._sanitize_parameters(**options)
        forward = {**self._forward_params, **forward}
        batch = [observations] if isinstance(observations, dict) else list(observations)
        size = batch_size or self._batch_size or max(len(batch), 1)
        results = []
        for start in range(0, len(batch), size):
            results += self.run_single(batch[start : start + size], {}, forward, {})
        return results[0] if isinstance(observations, dict) else results

    def preprocess(self, observations: list[dict]):
        for i, observation in enumerate(observations):
            unknown = set(observation) - {"images", "text", "state"}
            if "text" not in observation or unknown:
                raise ValueError(
                    f"Observation {i} has the keys {sorted(observation)}; expected are 'images', 'text' and, if the "
                    "policy reads the robot's state, 'state'."
                )
        columns = {key: [observation.get(key) for observation in observations] for key in ("images", "text", "state")}
        return self.processor(**columns)

    def _forward(self, model_inputs, num_steps: int | None = None, seed: int | None = None):
        noise = None
        if seed is not None:
            config = self.model.config
            shape = (1, config.chunk_size, config.max_action_dim)
            noise = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
            noise = noise.expand(len(model_inputs["input_ids"]), -1, -1).to(self.device)
        return {"chunks": self.model.sample_actions(**model_inputs, num_steps=num_steps, noise=noise)}

    def postprocess(self, model_outputs) -> list[dict]:
        actions = self.processor.unnormalize_actions(model_outputs["chunks"])
        return [{"actions": chunk} for chunk in actions.cpu().numpy()]


__all__ = ["ActionPredictionPipeline"]
