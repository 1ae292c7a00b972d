"""Generate with the VLM of a policy: words, a response before it acts, and actions as tokens."""

from collections.abc import Sequence
from contextlib import nullcontext
from functools import partial

import torch
from transformers import (
    GenerationConfig,
    GenerationMixin,
    LogitsProcessorList,
    PreTrainedModel,
    StoppingCriteria,
    StoppingCriteriaList,
)

from .action_checks import NaNWatch
from .backbone_attention import logits_of
from .call_hooks import call_view
from .forward_inputs import EXPERT_INPUTS, with_image_dtype


class ChunkComplete(StoppingCriteria):
    """Ends an example with its last code: the end of the turn, all that may follow, needs no pass of the VLM.

    Args:
        constraint: of `processor.action_constraint`.
    """

    def __init__(self, constraint):
        self.constraint = constraint

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor, **kwargs) -> torch.BoolTensor:
        return self.constraint.is_complete(input_ids)


class KIVLAGenerationMixin:
    """`generate` and its kin, for a model with a `vlm`. Every call keeps its settings to itself."""

    def generate(self, *args, **kwargs):
        """Let the VLM talk: its own `generate`, without the inputs of the expert. An assistant may be a policy.

        Raises:
            ValueError: a batch for training, which has the answer in its prompt.
        """
        if isinstance(kwargs.get("assistant_model"), KIVLAGenerationMixin):
            kwargs["assistant_model"] = kwargs["assistant_model"].vlm
        return self._view_with(self.generation_config).generate(*args, **self._prompt(kwargs))

    def compute_transition_scores(self, *args, **kwargs) -> torch.Tensor:
        """How sure the VLM was of what it said: its own method, for what `generate` returns."""
        return self.vlm.compute_transition_scores(*args, **kwargs)

    def _view_with(self, config: GenerationConfig) -> PreTrainedModel:
        """A view of the VLM for one call of `generate`, with these defaults."""
        view = call_view(self.vlm)
        view.generation_config = config
        return view

    def _prompt(self, inputs: dict) -> dict:
        """Arguments of `generate`, out of a batch and options."""
        for name in ("labels", "actions"):
            # PaliGemma's processor always gives labels: of a mere prompt all are -100
            is_learned = inputs.get(name) is not None and (name == "actions" or bool((inputs[name] != -100).any()))
            if is_learned:
                raise ValueError(
                    f"This batch is for training: it has `{name}`, so its prompt ends in the answer. To let the VLM "
                    "talk, make the batch without `response` and `actions`."
                )
        inputs = {name: value for name, value in inputs.items() if name not in ("labels", *EXPERT_INPUTS)}
        return with_image_dtype(inputs, self.vlm.dtype)

    def generate_actions(
        self,
        processor,
        do_sample: bool = False,
        temperature: float = 1.0,
        use_cache: bool = True,
        action_mask: torch.Tensor | None = None,
        robot: Sequence[str | None] | None = None,
        max_response_tokens: int | None = None,
        **inputs,
    ) -> list:
        """Decode action tokens: the VLM says a chunk code by code, held to what can become a complete one.

        A policy that was taught to say a response first says it, and then the chunk. (For the words, see
        `generate_response`.)

        Args:
            processor: the policy's `KIVLAProcessor`, which knows the action tokens.
            do_sample: sample at `temperature`, with torch's random state; otherwise greedy.
            use_cache: keep keys and values of what was said (same result, faster).
            action_mask: (B, H, D) bool, which dimensions an example has.
            robot: for each example the name of its robot, which then says how many dimensions there are; needed by
                processors of several robots whose masks do not tell (`noise_padding`).
            max_response_tokens: longest response; 0 acts at once, as after a `given_response`. By default it is up to
                the processor (`responds_first`).
            **inputs: what `processor(...)` gives without actions.

        Returns:
            For each example a normalised chunk, float32 (H, action_dim), or an `ActionDecodingFailure` with the reason.
            `processor.unnormalize_actions(chunk)` turns it into robot units.

        Raises:
            NonFiniteActionsError: the VLM computed NaN.
        """
        # How many dimensions each example's robot has: how long a complete chunk is, and when it ends, depends on it.
        batch_size, length = inputs["input_ids"].shape
        if robot is not None or action_mask is None or processor.noise_padding:
            action_dims = [processor.robot(name).action_dim for name in robot or [None] * batch_size]
        else:
            action_dims = action_mask.any(1).sum(-1).tolist()
        # The constraint lets through only what a complete chunk may go on with, after the response if there is one.
        constraint = processor.action_constraint(length, action_dims, max_response_tokens)
        longest = processor.action_tokenizer.max_tokens(self.config.chunk_size, max(action_dims))
        # Settings of its own: a VLM's defaults (penalties, top_p) are for words.
        config = GenerationConfig(
            do_sample=do_sample,
            temperature=temperature if do_sample else None,
            top_k=0 if do_sample else None,
            max_new_tokens=constraint.max_response_tokens + longest + 1,
            eos_token_id=processor.end_token_id,
            pad_token_id=processor.tokenizer.pad_token_id,
            use_cache=use_cache,
        )
        # Where nothing but actions can be said, the logits of all other words need not be computed.
        actions_alone = torch.tensor([*processor.action_token_ids, processor.end_token_id])
        with nullcontext() if constraint.max_response_tokens else logits_of(self.vlm, actions_alone):
            tokens = self._generate_with(config, inputs, [constraint], [ChunkComplete(constraint)])
        return processor.decode_actions(tokens[:, length:], action_dims)

    def generate_response(self, processor, max_new_tokens: int = 64, **inputs) -> list[str]:
        """What the VLM says before it acts, e.g. the sub-task that it sets itself (π0.5); greedy, up to the actions.

        Args:
            processor: the policy's `KIVLAProcessor`.
            max_new_tokens: longest response.
            **inputs: what `processor(...)` gives without actions.

        Returns:
            For each example the words, to be handed back to the processor as `given_response`.
        """
        length = inputs["input_ids"].shape[1]
        stops = [processor.end_token_id, *processor.action_token_ids.tolist()]
        config = GenerationConfig(
            max_new_tokens=max_new_tokens, eos_token_id=stops, pad_token_id=processor.tokenizer.pad_token_id
        )
        tokens = self._generate_with(config, inputs)[:, length:].tolist()
        ends = [next((i for i, token in enumerate(row) if token in stops), len(row)) for row in tokens]
        words = [row[:end] for row, end in zip(tokens, ends, strict=True)]
        return [text.strip() for text in processor.tokenizer.batch_decode(words, skip_special_tokens=True)]

    def _generate_with(self, config: GenerationConfig, inputs: dict, constraints=(), stops=()) -> torch.Tensor:
        """The VLM's `generate` with these settings and none of its own (repetition penalties, sampling, ...)."""
        watch = NaNWatch()
        watched = LogitsProcessorList([watch, *constraints])
        view = self._view_with(config)
        if view.main_input_name == "input_ids":
            # The library's own: Janus's leaves out every logits processor, and with it the grammar of the actions.
            generate = partial(GenerationMixin.generate, view)
        else:
            # BLIP-2, Kosmos-2: embeds the pictures, and leaves the rest to the language model's.
            generate = view.generate
            for part in view.children():
                if isinstance(part, GenerationMixin):
                    part.generation_config = config
        tokens = generate(
            **self._prompt(inputs), logits_processor=watched, stopping_criteria=StoppingCriteriaList(stops)
        )
        watch.check()
        return tokens
