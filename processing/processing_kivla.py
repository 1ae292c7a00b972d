"""KIVLAProcessor: observations and actions in robot units -> what the model takes, and back."""

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from string import Formatter

import numpy as np
import torch
from huggingface_hub import snapshot_download
from PIL import Image
from transformers import AutoProcessor, BatchFeature, ProcessorMixin
from transformers.dynamic_module_utils import custom_object_save

from .action_constraint import ActionTokenConstraint
from .action_token_ids import place_action_tokens
from .action_tokenizers import ActionDecodingFailure, ActionTokenizer, load_action_tokenizer, panics_as_errors
from .call_options import check_options
from .chat_format import PromptFrame, PromptFrames, has_chat
from .image_input import pad_to_square
from .normalization import as_numbers, discretize_state
from .plain_words import PlainWords
from .processor_card import PushedWithCard
from .robot_spec import RobotSpec, robot_from_json
from .saved_settings import ROBOT_TYPES, check_saved, check_settings
from .token_rows import Span, extend, pad_rows

VLM_PROCESSOR_FOLDER = "vlm_processor"
CONFIG_FILE = "processor_config.json"
# Saved as they are; action tokenizer and robots are saved in a form of their own
SETTINGS = (
    "chunk_size",
    "max_action_dim",
    "max_state_dim",
    "state_encoding",
    "normalization",
    "action_token_placement",
    "action_token_skip",
    "action_prompt",
    "expert_reads_response",
    "noise_padding",
    "square_images",
    "max_length",
    "clip_actions",
    "responds_first",
)
_ROBOT_ARGUMENTS = ("statistics", "cameras", "action_dim", "robots")
HUB_ARGUMENTS = ("cache_dir", "force_download", "local_files_only", "revision", "subfolder", "token")
_VLM_PROCESSOR_ARGUMENTS = ("trust_remote_code", "use_fast")
# Longest response that a policy says before it acts
MAX_RESPONSE_TOKENS = 64
# What AutoProcessor and `pipeline` pass on to every processor; none of it concerns this one.
_LIBRARY_ARGUMENTS = ("_from_auto", "_from_pipeline", "_commit_hash", "code_revision", "dtype")

# What a VLM's `token_type_ids` say about tokens to be learned. PaliGemma: 0 = bidirectional prompt, 1 = causal answer;
# everybody else marks image tokens there, and text of any kind is 0.
SUFFIX_TOKEN_TYPE = {"PaliGemmaProcessor": 1}


@dataclass
class _Example:
    """One example, checked and normalised.

    Attributes:
        robot: whose cameras, state and actions these are.
        images: those that are there, RGB, in the order of the cameras.
        asks_actions: whether the prompt asks for actions; otherwise it is the text as it was given.
        prompt: the words alone, without image placeholders and chat markup; of a conversation, the first question.
        learns: whether there is a response or a chunk.
        suffix: what follows: the response, then the action tokens, then the end of the VLM's turn.
        state: (Ds,) float32.
        chunk: (chunk_size, action_dim) float32, the last action repeated where it was short.
        is_pad: (chunk_size,) bool, True on steps that are not real.
    """

    robot: RobotSpec
    images: list[Image.Image]
    asks_actions: bool
    prompt: str
    learns: bool
    suffix: list[Span]
    state: np.ndarray | None
    chunk: np.ndarray | None
    is_pad: np.ndarray | None


class KIVLAProcessor(PushedWithCard, ProcessorMixin):
    r"""
    Wraps a VLM's own processor and adds what a robot needs: prompts with state, action chunks, action tokens.

    Args:
        vlm_processor: the VLM's processor (`AutoProcessor.from_pretrained(vlm)`). Its tokenizer gets the action tokens
            and, if it has none, a padding token.
        action_tokenizer: FAST or bins, fitted; None for a policy whose VLM learns no action tokens (π0).
        statistics: `{"state": {...}, "actions": {...}}`, each with mean, std, min, max, q01, q99 of one robot's data,
            in robot units (`LeRobotDataset.statistics`).
        chunk_size, max_action_dim, max_state_dim, state_encoding: as in the model's `KIVLAConfig`.
        normalization: "quantile" (1 % to 99 % onto [-1, 1]; π0.5), "mean_std" (π0) or "none".
        cameras: names of the cameras, in the order in which the model sees them. Every example that asks for actions
            must then have an entry for each. None takes any number of images, in lists only.
        action_dim: real size of an action; by default that of the statistics, or `max_action_dim` without any.
        robots: for a policy of several robots, in place of the three above: name -> `{"statistics": ..., "cameras":
            ..., "action_dim": ...}`, the last two optional. Examples then say whose they are (`robot`).
        action_token_placement: "added" gives action tokens new ids, `<action_0>`, ... at the end of the vocabulary;
            "tail" writes them over existing ids: `vocab_size - 1 - action_token_skip - code` (openpi's convention;
            `vocab_size` is the tokenizer's, without added tokens).
        action_token_skip: for "tail": 128 is openpi's (on PaliGemma codes 0-1023 are then the `<loc>` tokens), 1152
            leaves PaliGemma's `<loc>` and `<seg>` tokens alone.
        action_prompt: with `{text}` and, if the state is text, `{state}`. By default π0.5's
            `"Task: {text}, State: {state};\nAction: "`, without the state where it is not text. If the VLM has a chat
            template this is what the user says. openpi's prompt without state is `"{text}\n"`.
        expert_reads_response: whether the action expert reads a response that comes before the actions (a sub-task that
            the VLM sets itself, as in π0.5), or the prompt alone.
        noise_padding: whether unused action dimensions hold noise and are learned (as zeros), as openpi and LeRobot
            train them; otherwise they stay zero. For converted checkpoints (`kivla convert`). Action tokens are of the
            robot's own dimensions in any case.
        square_images: whether images become squares with black borders before the VLM's own processor, which may
            otherwise stretch them. openpi and LeRobot do, hence converted checkpoints.
        max_length: longest allowed sequence; a longer one is an error, never cut.
        clip_actions: whether predicted actions are held within the smallest and largest action of the robot's data,
            dimension by dimension. Needs the statistics `min` and `max` (`clips_actions(robot)` says whether they are
            there; openpi's checkpoints have only quantiles).
        responds_first: whether the VLM was taught to say a response before its action tokens (language-and-action
            data). A policy that acts by tokens then says it, and goes on to act; others act at once. `KIVLATrainer`
            sets it as soon as it sees such data.
        prompt_frames: what stands around prompt and answer, by number of images (`to_dict()["prompt_frames"]`), as it
            is saved with every processor. By default the VLM's chat template writes it now, once: a date in it stays
            that of the training.

    What people write (instructions, questions, responses) reaches the VLM as words: control tokens in it, such as
    `<eos>` or `<action_3>`, are tokenised as plain text. Placeholders of images are refused.

    Raises:
        ValueError: contradictory settings, statistics that do not fit, a chat template that swallows words.
    """

    def __init__(
        self,
        vlm_processor: ProcessorMixin,
        action_tokenizer: ActionTokenizer | None = None,
        statistics: dict[str, dict[str, np.ndarray]] | None = None,
        *,
        chunk_size: int = 50,
        max_action_dim: int = 32,
        max_state_dim: int = 32,
        state_encoding: str = "text",
        normalization: str = "quantile",
        cameras: Sequence[str] | None = None,
        action_dim: int | None = None,
        robots: dict[str, dict] | None = None,
        action_token_placement: str = "added",
        action_token_skip: int = 128,
        action_prompt: str | None = None,
        expert_reads_response: bool = False,
        noise_padding: bool = False,
        square_images: bool = False,
        max_length: int | None = None,
        clip_actions: bool = True,
        responds_first: bool = False,
        prompt_frames: dict[str, dict] | None = None,
    ):
        self.vlm_processor = vlm_processor
        super().__init__(chat_template=vlm_processor.chat_template)
        if state_encoding not in ("text", "continuous", "none"):
            raise ValueError(f'state_encoding must be "text", "continuous" or "none", got {state_encoding!r}.')
        if action_token_placement not in ("added", "tail"):
            raise ValueError(f'action_token_placement must be "added" or "tail", got {action_token_placement!r}.')
        if action_prompt is None:
            has_state = state_encoding == "text"
            action_prompt = "Task: {text}, State: {state};\nAction: " if has_state else "Task: {text};\nAction: "
        parts = [part[1:] for part in Formatter().parse(action_prompt) if part[1] is not None]
        fields = {field for field, _, _ in parts}
        if any(spec or conversion for _, spec, conversion in parts):  # a width could be any number
            raise ValueError(f"action_prompt must not format its fields, got {action_prompt!r}. Write {{text}} alone.")
        if fields != ({"text", "state"} if state_encoding == "text" else {"text"}):
            raise ValueError(
                f'action_prompt must contain {{text}}, {{state}} exactly if state_encoding is "text", and nothing else '
                f'in braces; got {action_prompt!r} with state_encoding="{state_encoding}".'
            )
        self.action_tokenizer = action_tokenizer
        self.chunk_size = chunk_size
        self.max_action_dim = max_action_dim
        self.max_state_dim = max_state_dim
        self.state_encoding = state_encoding
        self.normalization = normalization
        self.action_token_placement = action_token_placement
        self.action_token_skip = action_token_skip
        self.action_prompt = action_prompt
        self.expert_reads_response = expert_reads_response
        self.noise_padding = noise_padding
        self.square_images = square_images
        self.max_length = max_length
        self.clip_actions = clip_actions
        self.responds_first = responds_first
        check_settings({name: getattr(self, name) for name in SETTINGS})

        if robots is not None and (statistics, cameras, action_dim) != (None, None, None):
            raise ValueError(
                "Give either `robots`, or `statistics`, `cameras` and `action_dim` of a single robot, not both."
            )
        if robots is not None and not robots:
            raise ValueError("`robots` is empty: name at least one, with its statistics.")
        single = {"statistics": statistics, "cameras": cameras, "action_dim": action_dim}
        self.robots = {
            name: RobotSpec(
                values.get("statistics"),
                values.get("cameras"),
                values.get("action_dim"),
                normalization=normalization,
                reads_state=state_encoding != "none",
                max_action_dim=max_action_dim,
            )
            for name, values in ({None: single} if robots is None else robots).items()
        }
        if self.tokenizer.eos_token is None:
            raise ValueError(
                "The VLM's tokenizer has no end-of-sequence token: set `vlm_processor.tokenizer.eos_token`."
            )
        if self.tokenizer.pad_token is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token  # masked everywhere, so any token will do
        num_codes = 0 if action_tokenizer is None else action_tokenizer.vocab_size
        self.action_token_ids = place_action_tokens(
            self.tokenizer, num_codes, action_token_placement, action_token_skip
        )
        # What in a text would be taken for an image
        image_ids = [i for i in vlm_processor.image_token_ids if i is not None]
        self._placeholders = {vlm_processor.image_token, *self.tokenizer.convert_ids_to_tokens(image_ids)}
        self.set_prompts(prompt_frames)
        self._newline = self._tokenize("\n")

    def set_prompts(self, prompt_frames: dict[str, dict] | None = None) -> None:
        """Take the prompts of another processor of the same VLM, e.g. of a run that goes on on another day.

        Args:
            prompt_frames: its `to_dict()["prompt_frames"]`; None takes what the chat template writes today.
        """
        most_images = max(len(robot.cameras or ()) for robot in self.robots.values())
        self._frames = PromptFrames(self.vlm_processor, most_images, prompt_frames)
        self._words = PlainWords(self.tokenizer, self._frames.written + self.action_prompt)

    @classmethod
    def from_vlm(cls, pretrained_model_name_or_path: str | os.PathLike, **kwargs) -> "KIVLAProcessor":
        """A processor for a policy on this VLM (Hub id or folder).

        Keyword arguments are those of the class, and for the VLM's processor `revision`, `subfolder`, `token`,
        `cache_dir`, `force_download`, `local_files_only`, `trust_remote_code` and `use_fast`.
        """
        hub = {name: kwargs.pop(name) for name in (*HUB_ARGUMENTS, *_VLM_PROCESSOR_ARGUMENTS) if name in kwargs}
        return cls(AutoProcessor.from_pretrained(pretrained_model_name_or_path, **hub), **kwargs)

    @classmethod
    def get_attributes(cls) -> list[str]:
        """None: the library would take every argument with "tokenizer" in its name for one of its own."""
        return []

    @property
    def tokenizer(self):
        """The VLM's tokenizer, with the action tokens in it."""
        return self.vlm_processor.tokenizer

    @property
    def image_processor(self):
        """The VLM's image processor."""
        return self.vlm_processor.image_processor

    @property
    def chat_template(self) -> str | None:
        """The VLM's. Prompts were made of it once: see `prompt_frames`."""
        return self.vlm_processor.chat_template

    @chat_template.setter
    def chat_template(self, template: str | None):
        self.vlm_processor.chat_template = template

    def apply_chat_template(self, *args, **kwargs):
        """The VLM's own, for conversations: messages as the library has them."""
        return self.vlm_processor.apply_chat_template(*args, **kwargs)

    def robot(self, name: str | None = None) -> RobotSpec:
        """The robot of this name; without a name, the only one.

        Raises:
            ValueError: no robot has this name, or there are several and no name was given.
        """
        if name is None and len(self.robots) == 1:
            return next(iter(self.robots.values()))
        if name not in self.robots:
            known = [robot for robot in self.robots if robot is not None]
            raise ValueError(
                f"this processor has the robots {known}, got robot={name!r}. Name one of them."
                if known
                else f"this processor was made for a single robot without a name, got robot={name!r}. Leave it out."
            )
        return self.robots[name]

    @property
    def statistics(self) -> dict[str, dict[str, np.ndarray]] | None:
        """Of the only robot, as are `cameras` and `action_dim`; for several use `processor.robot(name)`."""
        return self.robot().statistics

    @property
    def cameras(self) -> list[str] | None:
        return self.robot().cameras

    @property
    def action_dim(self) -> int:
        return self.robot().action_dim

    @property
    def vocab_size(self) -> int:
        """Rows that the model's embedding needs: `model.resize_token_embeddings(...)` if it has fewer."""
        return len(self.tokenizer)

    @property
    def model_input_names(self) -> list[str]:
        ours = ["expert_attention_mask", "labels", "actions", "action_mask"]
        ours += ["state"] if self.state_encoding == "continuous" else []
        return [*(n for n in self.vlm_processor.model_input_names if n not in ours), *ours]

    # -------------------------------------------------------------------------------------------------- encoding
    def __call__(
        self,
        images=None,
        text=None,
        state=None,
        actions=None,
        response=None,
        action_is_pad=None,
        robot=None,
        given_response=None,
        prompt_kind: str | None = None,
        **options,
    ) -> BatchFeature:
        """A batch for `model(**batch)` or, without actions and responses, for `sample_actions` and `generate`.

        Args:
            images: for each example a list of images in the order of `cameras`, or a dict by camera name. An image is
                a PIL image, a path or URL, or an array or tensor with three channels, last or first (uint8, or floats
                in [0, 1]). None in the place of an image: this camera is missing, and its tokens are left out.
                Greyscale or RGBA arrays are refused (repeat or drop channels); such PIL images and files are converted.
            text: for each example the instruction or question; for a conversation of several turns the list of its
                questions. May be "" where actions are asked for.
            state: for each example (Ds,), robot units; None for an example that does not ask for actions.
            actions: for each example (H, Da), robot units, H at most `chunk_size`; None for an example without.
            response: for each example the text to be learned after the prompt (a sub-task, an answer), or None; for a
                conversation the list of its answers.
            action_is_pad: for each example (H,) bool, True on steps after the end of the episode. They are not learned,
                and what stands there does not matter. One exception: FAST's codes are each about the whole chunk, in
                which such steps hold the last action.
            robot: for each example the name of its robot, where the processor has several.
            given_response: for each example what the VLM has said already (a sub-task, from `generate_response`): it
                follows the prompt, and nothing of it is learned. To act in two steps, as π0.5 does.
            prompt_kind: "action" asks for actions, "text" gives the VLM the text as it is, in the VLM's own format. By
                default "text" for examples that have a response and no actions.
            **options: what every processor of the library takes, where it asks for what is done anyway:
                `return_tensors="pt"`, `padding=True`, `truncation=False`. All else is refused.

        Returns:
            `input_ids`, `attention_mask`, image tensors and token types as the VLM wants them; `expert_attention_mask`;
            `labels` where something is to be learned; `actions` and `action_mask`; `state` if it is continuous. Padded
            on the right for training and on the left for inference, as `generate` needs.

        Raises:
            ValueError: wrong number of images or cameras, wrong dimensions, values that are NaN or infinite, a sequence
                longer than `max_length`; the message says which example, what was given and what to do.
            TypeError: an option that is not known.
        """
        check_options(options)
        if prompt_kind not in ("action", "text", None):
            raise ValueError(f'prompt_kind must be "action", "text" or None, got {prompt_kind!r}.')
        if text is None or isinstance(text, str) or not len(text):
            raise ValueError(
                f"`text` must be a list with one instruction for each example (batched input), got {text!r}. Write "
                "text=[...], images=[[...]], state=[...]."
            )
        columns = {"images": images, "text": text, "state": state, "actions": actions, "response": response}
        columns |= {"action_is_pad": action_is_pad, "robot": robot, "given_response": given_response}
        for name, values in columns.items():
            columns[name] = [None] * len(text) if values is None else list(values)
            if len(columns[name]) != len(text):
                raise ValueError(
                    f"`{name}` has {len(columns[name])} entries for {len(text)} examples (`text` has {len(text)}). All "
                    "arguments are batched: one entry for each example, None where an example has none."
                )
        examples = []
        for i, row in enumerate(zip(*columns.values(), strict=True)):
            try:
                examples.append(self._example(*row, prompt_kind))
            except ValueError as error:
                raise ValueError(f"Example {i}: {error}") from error
        learns = any(example.learns for example in examples)
        for i, example in enumerate(examples):
            if learns and not example.learns:
                raise ValueError(
                    f"Example {i} has neither `response` nor `actions`, but others of the batch do: nothing can be "
                    "learned from it. Leave it out; for inference, put it into a batch without any of the two."
                )
        return BatchFeature({**self._sequences(examples, learns), **self._robot_tensors(examples, learns)})

    def _example(
        self, images, text, state, actions, response, action_is_pad, robot, given_response, prompt_kind: str | None
    ) -> _Example:
        asks_actions = prompt_kind == "action" or (prompt_kind is None and (actions is not None or response is None))
        robot = self.robot(robot) if asks_actions or robot is not None else next(iter(self.robots.values()))
        questions, responses = self._turns(text, response, asks_actions)
        if given_response is not None:
            if responses:
                raise ValueError("there are `response`, to be learned, and `given_response`. Give one of them.")
            given_response = self._plain("given_response", given_response)
        chunk = is_pad = None
        if actions is not None:
            if not asks_actions:
                raise ValueError('there are `actions`, but prompt_kind="text" does not ask for any. Use "action".')
            chunk, is_pad = robot.chunk(actions, action_is_pad, self.chunk_size)
        images = robot.images(images, asks_actions)
        if self.square_images:
            images = [pad_to_square(image) for image in images]
        state = self._state(state, robot) if asks_actions and self.state_encoding != "none" else None
        return _Example(
            robot=robot,
            images=images,
            asks_actions=asks_actions,
            prompt=self._prompt(questions[0], state) if asks_actions else questions[0],
            learns=bool(responses) or chunk is not None,
            suffix=self._suffix(questions[1:], responses, given_response, chunk, is_pad, len(images)),
            state=state,
            chunk=chunk,
            is_pad=is_pad,
        )

    def _turns(self, text, response, asks_actions: bool) -> tuple[list[str], list[str]]:
        """Questions and answers; one question and no answer where nothing is to be answered."""
        questions = list(text) if isinstance(text, list | tuple) else [text]
        responses = list(response) if isinstance(response, list | tuple) else [response] if response is not None else []
        clean = _one_line if asks_actions else str.strip
        questions = [self._plain("text", question, clean, may_be_empty=asks_actions) for question in questions]
        responses = [self._plain("response", answer) for answer in responses]
        if len(questions) == 1 and len(responses) <= 1:
            return questions, responses
        if len(questions) != len(responses):
            raise ValueError(
                f"there are {len(questions)} questions in `text` and {len(responses)} answers in `response`. A "
                "conversation has one answer for each question."
            )
        if asks_actions:
            raise ValueError("`text` is a conversation, but actions are asked for. Give one instruction.")
        if not has_chat(self.vlm_processor):
            raise ValueError(
                f"this VLM ({type(self.vlm_processor).__name__}) has no chat template: it takes one question and one "
                f'answer, not {len(questions)}. Make an example of each pair (VLMDataset(..., turns="split")).'
            )
        return questions, responses

    def _plain(self, name: str, words, clean: Callable[[str], str] = str, may_be_empty: bool = False) -> str:
        """Words that a person gave, checked, without control tokens."""
        if not isinstance(words, str):
            raise ValueError(f"`{name}` must be a string, got {type(words).__name__}.")
        if not may_be_empty and not words.strip():
            raise ValueError(f"`{name}` is empty. Give the VLM some words, or pass None if there is no {name}.")
        placeholders = [token for token in self._placeholders if token in words]
        if placeholders:
            raise ValueError(
                f"`{name}` contains {placeholders[0]!r}, which stands for an image: {words!r}. Leave it out; the "
                "processor puts images in front of the text."
            )
        return self._words.plain(clean(words), name)

    def _state(self, values, robot: RobotSpec) -> np.ndarray:
        if values is None:
            raise ValueError(
                f'there is no `state`, but this processor was made with state_encoding="{self.state_encoding}". Pass '
                "the robot's state."
            )
        values = as_numbers(values)
        if values.ndim != 1:
            raise ValueError(f"`state` must be one vector (Ds,), got shape {values.shape}.")
        if self.state_encoding == "continuous" and len(values) > self.max_state_dim:
            raise ValueError(
                f"`state` has {len(values)} values, but max_state_dim is {self.max_state_dim}. Build processor and "
                f"model with max_state_dim of at least {len(values)}."
            )
        try:
            return robot.state.normalize(values)
        except ValueError as error:
            raise ValueError(f"`state`: {error}") from error

    def _prompt(self, text: str, state: np.ndarray | None) -> str:
        if self.state_encoding != "text":
            return self.action_prompt.format(text=text)
        bins = " ".join(str(b) for b in discretize_state(state))
        return self.action_prompt.format(text=text, state=bins)

    # --------------------------------------------------------------------------------------------- token sequences
    def _tokenize(self, text: str) -> list[int]:
        ids = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return self._words.without_breaks({"input_ids": ids})["input_ids"]

    def _frame(self, num_images: int) -> PromptFrame:
        """Words need not go through templates, which are slow."""
        return self._frames[num_images]

    def _suffix(
        self,
        next_questions: list[str],
        responses: list[str],
        given_response: str | None,
        chunk: np.ndarray | None,
        is_pad: np.ndarray | None,
        num_images: int,
    ) -> list[Span]:
        """What follows the prompt. Of a conversation the answers are learned, and the questions between them not. The
        VLM's turn ends when all is said: not after a part of a chunk."""
        frame = self._frame(num_images)
        closing, spans = self._tokenize(frame.closing), []
        if given_response is not None:
            spans.append(Span(self._answer(frame, given_response), False, self.expert_reads_response))
        for i, response in enumerate(responses):
            spans.append(Span(self._answer(frame, response), True, self.expert_reads_response))
            if i < len(next_questions):
                spans.append(Span(closing, True))
                spans.append(Span(self._tokenize(frame.between + next_questions[i] + frame.after), False))
        is_complete = True
        if chunk is not None and self.action_tokenizer is not None:
            action_spans, is_complete = self._action_spans(chunk, is_pad)
            spans += action_spans
        if is_complete and any(span.is_learned for span in spans):
            spans.append(Span(closing, True))
        return spans

    def _action_spans(self, chunk: np.ndarray, is_pad: np.ndarray) -> tuple[list[Span], bool]:
        """The tokens of a chunk, and whether they are a whole one.

        Padded steps are not learned. A tokenizer with codes for each step (bins) leaves them out. With FAST every code
        is about all steps: there the padded ones hold the last action, as openpi and LeRobot train it, unless no step
        is real.
        """
        if is_pad.all():
            return [], False
        (codes,) = self.action_tokenizer.encode(chunk[None])
        ids, steps = self.action_token_ids[codes], self.action_tokenizer.steps_of(codes, chunk.shape[1])
        if steps is None:
            return [Span(ids.tolist(), True)], True
        is_real = ~is_pad[steps]  # (n,)
        needed = len(is_real) - int(is_real[::-1].argmax())  # what comes after the last real one is not
        groups = groupby(zip(ids[:needed].tolist(), is_real[:needed], strict=True), lambda pair: bool(pair[1]))
        return [Span([token for token, _ in group], real) for real, group in groups], not is_pad.any()

    def _answer(self, frame: PromptFrame, words: str) -> list[int]:
        """As it is tokenized after the prompt: some tokenizers put a space in front of every text."""
        context, answer = self._tokenize(frame.after), frame.lead + words
        whole = self._tokenize(frame.after + answer)
        return whole[len(context) :] if whole[: len(context)] == context else self._tokenize(answer)

    def _sequences(self, examples: list[_Example], learns: bool) -> dict[str, torch.Tensor]:
        """Image tensors, and padded per-token tensors of [prompt ; suffix].

        The VLM's processor sees the whole prompt. One exception: without a chat template it sees the image placeholders
        alone if actions are asked for, and the prompt's own tokens follow. Processors of that kind (PaliGemma's) end
        the text with a line break, which belongs behind a question and not behind `Action: `.
        """
        images, heads, tails = [], [], []
        for example in examples:
            frame = self._frame(len(example.images))
            apart = example.asks_actions and not has_chat(self.vlm_processor)
            words = example.prompt.strip() if has_chat(self.vlm_processor) else example.prompt
            images.append(example.images)
            heads.append(frame.before + ("" if apart else words) + frame.after)
            tails.append(self._tokenize(words) if apart else None)
        has_images = any(images)
        if not has_images:  # PaliGemma's processor refuses such a batch: one more example, dropped below, has one
            heads.append(self._frame(1).before + self._frame(1).after)
            images.append([Image.new("RGB", (64, 64))])
        options = {"padding": True, "return_tensors": "pt"}
        if self.tokenizer.bos_token and heads[0].startswith(self.tokenizer.bos_token):
            options["add_special_tokens"] = False  # a chat template that writes it; the tokenizer would write another
        encoded = self.vlm_processor(text=heads, images=images, **options)
        encoded.pop("labels", None)

        input_ids, mask = encoded["input_ids"], encoded["attention_mask"].bool()
        per_token = {n: t for n, t in encoded.items() if torch.is_tensor(t) and t.shape == input_ids.shape}
        token_type = SUFFIX_TOKEN_TYPE.get(type(self.vlm_processor).__name__, 0)
        rows = []
        for i, (example, tail) in enumerate(zip(examples, tails, strict=True)):
            row = self._words.without_breaks({n: tensor[i][mask[i]].tolist() for n, tensor in per_token.items()})
            if tail is not None:
                if row["input_ids"][-len(self._newline) :] == self._newline:
                    row = {name: values[: -len(self._newline)] for name, values in row.items()}
                row = extend(row, tail, attention_mask=1)
            prefix_length = len(row["input_ids"])
            row["expert_attention_mask"] = [True] * prefix_length
            for span in example.suffix:
                reads = span.expert_reads
                row = extend(row, span.ids, attention_mask=1, expert_attention_mask=reads, token_type_ids=token_type)
            if learns:
                row["labels"] = [-100] * prefix_length
                for span in example.suffix:
                    row["labels"] += span.ids if span.is_learned else [-100] * len(span.ids)
            if self.max_length is not None and len(row["input_ids"]) > self.max_length:
                raise ValueError(
                    f"Example {i} takes {len(row['input_ids'])} tokens, {prefix_length} of them images and prompt, but "
                    f"max_length is {self.max_length}. Raise it, use fewer or smaller images, or a shorter text."
                )
            rows.append(row)
        longest = max(len(row["input_ids"]) for row in rows)
        side = "right" if learns else "left"
        padding = {"input_ids": self.tokenizer.pad_token_id, "labels": -100}
        batch = {n: t for n, t in encoded.items() if n not in per_token} if has_images else {}
        for name in rows[0]:
            batch[name] = pad_rows([row[name] for row in rows], longest, padding.get(name, 0), side)
        return batch

    def _robot_tensors(self, examples: list[_Example], learns: bool) -> dict[str, torch.Tensor]:
        """`action_mask`, and `actions` and `state` where there are any; nothing if no example is about actions."""
        has_chunks = any(example.chunk is not None for example in examples)
        if not (has_chunks if learns else any(example.asks_actions for example in examples)):
            return {}
        actions = np.zeros((len(examples), self.chunk_size, self.max_action_dim), dtype=np.float32)
        real = np.zeros(actions.shape, dtype=bool)
        state = np.zeros((len(examples), self.max_state_dim), dtype=np.float32)
        for i, example in enumerate(examples):
            filled = self.max_action_dim if self.noise_padding else example.robot.action_dim
            if example.chunk is not None:
                actions[i, :, : example.robot.action_dim] = example.chunk
                real[i, :, :filled] = ~example.is_pad[:, None]
            elif not learns:  # the dimensions that the sampler has to fill
                real[i, :, :filled] = True
            if self.state_encoding == "continuous" and example.state is not None:
                state[i, : len(example.state)] = example.state
        tensors = {"action_mask": torch.from_numpy(real)}
        if has_chunks:
            tensors["actions"] = torch.from_numpy(actions)
        if self.state_encoding == "continuous":
            tensors["state"] = torch.from_numpy(state)
        return tensors

    def add_responses(self, prompts, responses: Sequence[str | None]) -> dict[str, torch.Tensor]:
        """What the VLM has said to prompts, after them: as if it had been given as `given_response` at once.

        Args:
            prompts: what the processor gives for inference.
            responses: for each example the words (`generate_response`); None or "" for none.

        Returns:
            The prompts with the words, padded on the left.
        """
        input_ids, mask = prompts["input_ids"], prompts["attention_mask"].bool()
        per_token = {n: t for n, t in prompts.items() if t.shape == input_ids.shape and n != "state"}
        token_type = SUFFIX_TOKEN_TYPE.get(type(self.vlm_processor).__name__, 0)
        fill = {"attention_mask": 1, "expert_attention_mask": self.expert_reads_response, "token_type_ids": token_type}
        rows = []
        for i, words in enumerate(responses):
            ids = self._answer(self._frame(1), self._words.plain(words, "responses")) if words else []
            rows.append(extend({name: tensor[i][mask[i]].tolist() for name, tensor in per_token.items()}, ids, **fill))
        longest = max(len(row["input_ids"]) for row in rows)
        padding = {"input_ids": self.tokenizer.pad_token_id}
        added = {n: pad_rows([row[n] for row in rows], longest, padding.get(n, 0), "left") for n in per_token}
        return {**prompts, **{name: tensor.to(input_ids.device) for name, tensor in added.items()}}

    # -------------------------------------------------------------------------------------------------- decoding
    def unnormalize_actions(self, chunk, robot: str | None = None, clip_actions: bool | None = None):
        """Normalised chunks (..., H, D) from the model -> robot units (..., H, action_dim); arrays or tensors.

        Args:
            robot: whose chunks they are, where the processor has several robots.
            clip_actions: whether to hold them within the range of the robot's data; the processor's setting by default.

        Raises:
            ValueError: fewer dimensions than the robot has, or a value that is NaN or infinite.
        """
        return self.unnormalize_and_clip(chunk, robot, clip_actions)[0]

    def unnormalize_and_clip(self, chunk, robot: str | None = None, clip_actions: bool | None = None) -> tuple:
        """As `unnormalize_actions`, and how much was clipped.

        Returns:
            The actions, and a dict, or None where nothing is clipped: `values`, how many lay outside; `of`, how many
            there are; `share`; `largest`, how far out the worst was, in widths of its dimension's recorded range; and
            `dimension`, which that is (or None).
        """
        robot = self.robot(robot)
        chunk = as_numbers(chunk) if isinstance(chunk, list | tuple) else chunk
        if chunk.shape[-1] < robot.action_dim:
            raise ValueError(
                f"Chunks of {chunk.shape[-1]} dimensions are too narrow for this robot's {robot.action_dim}: is the "
                "model of another robot?"
            )
        clip = self.clip_actions if clip_actions is None else clip_actions
        return robot.unnormalize(chunk[..., : robot.action_dim], clip)

    def clips_actions(self, robot: str | None = None) -> bool:
        """Whether this robot's actions are held within the range of its data: see `clip_actions`."""
        return self.clip_actions and self.robot(robot).action_range is not None

    def decode_actions(
        self, sequences, action_dims: Sequence[int] | None = None
    ) -> list[np.ndarray | ActionDecodingFailure]:
        """Generated token ids -> for each sequence a normalised chunk (H, action_dim), or the reason why there is none.

        The longest run of action tokens counts, and all else is ignored: the prompt, a response (which may hold a few
        of them with "tail": `<loc>` tokens), the end. `labels` may be given as well.

        Args:
            action_dims: for each sequence the size of an action, where the processor has several robots.

        Raises:
            ValueError: the processor has no action tokenizer.
        """
        self._need_action_tokenizer()
        code_of = {token: code for code, token in enumerate(self.action_token_ids.tolist())}
        dims = [self.action_dim] * len(sequences) if action_dims is None else action_dims
        results = []
        for sequence, action_dim in zip(sequences, dims, strict=True):
            row = [code_of.get(token) for token in torch.as_tensor(sequence).tolist()]
            runs = [list(run) for is_action, run in groupby(row, lambda code: code is not None) if is_action]
            codes = max(runs, key=len, default=[])
            results += self.action_tokenizer.decode([codes], self.chunk_size, action_dim)
        return results

    def action_constraint(
        self, prompt_length: int, action_dims: Sequence[int], max_response_tokens: int | None = None
    ) -> ActionTokenConstraint:
        """A logits processor for `generate`: only complete chunks of action tokens, then the end.

        Args:
            prompt_length: tokens of each row of `input_ids`, padding included.
            action_dims: for each example the size of an action.
            max_response_tokens: how much may be said before: by default `MAX_RESPONSE_TOKENS` if the policy was taught
                to say something (`responds_first`), else nothing.

        Raises:
            ValueError: the processor has no action tokenizer.
        """
        if max_response_tokens is None:
            max_response_tokens = MAX_RESPONSE_TOKENS if self.responds_first or self.expert_reads_response else 0
        self._need_action_tokenizer()
        num_values = [self.chunk_size * action_dim for action_dim in action_dims]
        grammar = self.action_tokenizer.grammar()
        return ActionTokenConstraint(
            self.action_token_ids, self.end_token_id, prompt_length, num_values, grammar, max_response_tokens
        )

    def has_response_before_actions(self, labels: torch.Tensor) -> torch.Tensor:
        """(B, S) labels -> (B,) bool: whether an example teaches words, and then action tokens."""
        is_action = torch.isin(labels, torch.as_tensor(self.action_token_ids, device=labels.device))
        first = (labels != -100).int().argmax(1, keepdim=True)
        return is_action.any(1) & ~is_action.gather(1, first)[:, 0]

    @property
    def end_token_id(self) -> int:
        """The first token of what ends the VLM's turn."""
        return self._tokenize(self._frame(1).closing)[0]

    def _need_action_tokenizer(self):
        if self.action_tokenizer is None:
            raise ValueError("This processor has no action tokenizer: its VLM was not taught action tokens.")

    # --------------------------------------------------------------------------------------------------- on disk
    def to_dict(self) -> dict:
        """Everything but the VLM's processor, ready for JSON."""
        tokenizer = None if self.action_tokenizer is None else self.action_tokenizer.to_dict()
        settings = {name: getattr(self, name) for name in SETTINGS}
        robots = {name: robot.to_dict() for name, robot in self.robots.items()}
        robots = robots.get(None, {"robots": robots})
        written = {"action_tokenizer": tokenizer, "prompt_frames": self._frames.to_dict(), **robots}
        return {"processor_class": type(self).__name__, **settings, **written}

    def __repr__(self) -> str:
        shown = {name: getattr(self, name) for name in SETTINGS}
        shown["robots"] = {name: {"cameras": r.cameras, "action_dim": r.action_dim} for name, r in self.robots.items()}
        tokenizer = None if self.action_tokenizer is None else type(self.action_tokenizer).__name__
        return f"{type(self).__name__}({type(self.vlm_processor).__name__}, action_tokenizer={tokenizer}, {shown})"

    def save_pretrained(self, save_directory: str | os.PathLike, push_to_hub: bool = False, **kwargs):
        """Write the processor: `processor_config.json`, and the VLM's own processor in `vlm_processor/`.

        The config is written last and in one move, so that a folder with it is complete. After
        `register_for_auto_class()` this module and its siblings are written too (`trust_remote_code`).
        """
        folder = Path(save_directory)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / CONFIG_FILE).unlink(missing_ok=True)
        settings = self.to_dict()
        if self._auto_class is not None:
            custom_object_save(self, folder, config=settings)
        self.vlm_processor.save_pretrained(folder / VLM_PROCESSOR_FOLDER)
        unfinished = folder / (CONFIG_FILE + ".unfinished")
        unfinished.write_text(json.dumps(settings, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        os.replace(unfinished, folder / CONFIG_FILE)
        if push_to_hub:
            self.push_to_hub(kwargs.pop("repo_id", folder.name), **kwargs)
        return [str(folder / CONFIG_FILE)]

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike, **kwargs) -> "KIVLAProcessor":
        """Load from a folder or the Hub.

        Keyword arguments are `revision`, `subfolder`, `token`, `cache_dir`, `force_download`, `local_files_only`,
        `trust_remote_code` and `use_fast` (for the VLM's processor), and those of the class, which take the place of
        what was saved: `from_pretrained(base, statistics=data.statistics, cameras=data.cameras)` is for a new robot,
        and `vlm_processor=` for a base that was converted without one.

        Raises:
            FileNotFoundError: the folder holds no KIVLA processor, or half of one.
            ValueError: a file is damaged.
            TypeError: an argument that is none of these.
        """
        if kwargs.get("_from_pipeline") is not None:
            # `pipeline()` hands everybody what is meant for the model, which refuses what it does not know.
            known = {*SETTINGS, *_ROBOT_ARGUMENTS, *HUB_ARGUMENTS, *_VLM_PROCESSOR_ARGUMENTS}
            kwargs = {name: value for name, value in kwargs.items() if name in known}
        for name in _LIBRARY_ARGUMENTS:
            kwargs.pop(name, None)
        of_vlm = {name: kwargs.pop(name) for name in _VLM_PROCESSOR_ARGUMENTS if name in kwargs}
        hub = {name: kwargs.pop(name) for name in HUB_ARGUMENTS if name in kwargs}
        vlm_processor = kwargs.pop("vlm_processor", None)
        folder = _local_folder(pretrained_model_name_or_path, **hub)
        settings = cls.saved_settings(folder)
        if vlm_processor is None and not (folder / VLM_PROCESSOR_FOLDER).is_dir():
            raise FileNotFoundError(
                f"{folder} holds no complete KIVLA processor: {VLM_PROCESSOR_FOLDER}/ is missing. Pass the VLM's "
                "(vlm_processor=AutoProcessor.from_pretrained(...)); if saving was interrupted, save again."
            )
        unknown = sorted(kwargs.keys() - settings.keys() - {*SETTINGS, *_ROBOT_ARGUMENTS})
        if unknown:
            known = [*settings, *HUB_ARGUMENTS, *_VLM_PROCESSOR_ARGUMENTS, "vlm_processor"]
            raise TypeError(f"Unknown arguments {unknown}; known are {known}.")
        if "robots" in kwargs or ("statistics" in kwargs and "robots" in settings):  # other robots
            settings = {name: value for name, value in settings.items() if name not in _ROBOT_ARGUMENTS}
        if "statistics" in kwargs:
            settings["action_dim"] = None  # that of the new statistics
        if vlm_processor is not None:
            return cls(vlm_processor, **{**settings, **kwargs})
        try:
            with panics_as_errors():
                vlm_processor = AutoProcessor.from_pretrained(folder / VLM_PROCESSOR_FOLDER, **of_vlm)
        except OSError:
            raise
        except Exception as error:  # tokenizers raises nothing more special
            raise ValueError(
                f"{folder / VLM_PROCESSOR_FOLDER} cannot be loaded ({type(error).__name__}: {str(error)[:500]}). If it "
                "is damaged, download or save it again."
            ) from error
        return cls(vlm_processor, **{**settings, **kwargs})

    @classmethod
    def saved_settings(cls, pretrained_model_name_or_path: str | os.PathLike, **hub) -> dict:
        """The arguments that a saved processor was made with, without the VLM's processor; from a folder or the Hub.

        A base model without data of its own (`kivla convert`) has them too: its conventions, and no statistics.

        Raises:
            FileNotFoundError: there are none.
            ValueError: the file is damaged.
        """
        folder = _local_folder(pretrained_model_name_or_path, **hub)
        file = folder / CONFIG_FILE
        try:
            settings = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{file} is not valid JSON: {error}") from error
        if not isinstance(settings, dict):
            raise ValueError(f"{file} must hold a map, not a {type(settings).__name__}.")
        if settings.get("processor_class") != cls.__name__:
            raise FileNotFoundError(
                f"{folder} holds no complete KIVLA processor: expected is {CONFIG_FILE} of a {cls.__name__} (found: "
                f"{settings.get('processor_class')}). To make one for a VLM, use KIVLAProcessor.from_vlm; if saving "
                "was interrupted, save again."
            )
        del settings["processor_class"]
        settings.pop("auto_map", None)
        check_saved(file, settings)
        if settings["action_tokenizer"] is not None:
            settings["action_tokenizer"] = load_action_tokenizer(settings["action_tokenizer"])
        if "robots" in settings:
            settings["robots"] = {name: robot_from_json(values) for name, values in settings["robots"].items()}
        else:
            settings |= robot_from_json({name: settings[name] for name in ROBOT_TYPES})
        return settings


def _local_folder(path: str | os.PathLike, subfolder: str | None = None, **hub) -> Path:
    folder, subfolder = Path(path), Path(subfolder or "")
    if not folder.is_dir():
        patterns = [str(subfolder / name) for name in (CONFIG_FILE, f"{VLM_PROCESSOR_FOLDER}/*")]
        folder = Path(snapshot_download(str(path), allow_patterns=patterns, **hub))
    return folder / subfolder


def _one_line(text: str) -> str:
    """An instruction as openpi and LeRobot put it into a prompt."""
    return text.strip().replace("_", " ").replace("\n", " ")
