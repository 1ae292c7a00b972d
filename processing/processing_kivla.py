"""KIVLAProcessor: observations and actions in robot units -> what the model takes, and back."""

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import cast

import numpy as np
import torch
from transformers import BatchFeature, ProcessorMixin

from .action_constraint import ActionTokenConstraint
from .action_token_ids import place_action_tokens
from .action_tokenizers import ActionDecodingFailure, ActionTokenizer, check_action_tokenizer
from .call_options import check_options
from .camera_names import check_names
from .image_input import pad_to_square
from .normalization import as_numbers, discretize_state
from .observation_history import ObservationHistory, flat_states, newest_state, with_past
from .processor_card import PushedWithCard
from .relative_actions import RelativeActions
from .robot_spec import RobotSpec, make_robots
from .saved_processor import SETTINGS, SavedProcessor
from .saved_settings import check_action_prompt, check_settings
from .sequences import (
    Example,
    Sequences,
    action_spans,
    are_documents,
    first_answers,
    prompt_ends,
    response_ends,
    tokens_before,
)
from .token_rows import Span
from .video_input import takes_video
from .vlm_processor import check_takes_prompts

# Longest response that a policy says before it acts
MAX_RESPONSE_TOKENS = 64
# Between the states of a history in a prompt, oldest first
STATE_BREAK = " | "


class KIVLAProcessor(PushedWithCard, SavedProcessor, ProcessorMixin):
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
            must then have an entry for each. A dict gives each a second name: `{"front": "observation.images.cam_0"}`;
            images then come by either. None takes any number of images, in lists only; `KIVLATrainer` names them.
        action_dim: real size of an action; by default that of the statistics, or `max_action_dim` without any.
        relative_actions: which dimensions of an action are relative to the state, and how: a `RelativeActions`, that as
            it
            is saved, or a preset: "aloha", "droid", "so101" ("none", "libero": none). None: all are absolute. The
            policy then needs the state whatever `state_encoding` says, and `statistics` have `"relative_actions"` as
            well (`kivla.training.data.relative_chunks.robot_statistics`).
        adapt_to_pi: for ALOHA's states and actions and a policy in the units that π0 was pretrained in (openpi's
            option).
        robots: for a policy of several robots, in place of the five above: name -> `{"statistics": ..., "cameras":
            ..., "action_dim": ..., ...}`, all but the first optional. Examples then say whose they are (`robot`).
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
        history, history_stride: how many frames of each camera, and states, the policy sees, and how many control steps
            lie between them (`observation_history.py`); by default the present one alone. An image may then be a clip.
        clips_as_video: whether the VLM is given a clip of several frames as a video, or as images; by default as a
            video if its processor takes one (`takes_video`).
        prompt_frames: what stands around prompt and answer, by number of images (`to_dict()["prompt_frames"]`), as it
            is saved with every processor. By default the VLM's chat template writes it now, once: a date in it stays
            that of the training.

    What people write (instructions, questions, responses) reaches the VLM as words: control tokens in it, such as
    `<eos>` or `<action_3>`, are tokenised as plain text. Placeholders of images are refused.

    Raises:
        ValueError: contradictory settings, statistics that do not fit, a chat template that swallows words, a processor
            that writes prompts of its own.
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
        cameras: Sequence[str] | Mapping[str, str] | None = None,
        action_dim: int | None = None,
        relative_actions: RelativeActions | Mapping | str | None = None,
        adapt_to_pi: bool = False,
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
        history: int = 1,
        history_stride: int = 1,
        clips_as_video: bool | None = None,
        prompt_frames: dict[str, dict] | None = None,
    ):
        check_takes_prompts(vlm_processor)
        self.vlm_processor = vlm_processor
        super().__init__(chat_template=vlm_processor.chat_template)
        if state_encoding not in ("text", "continuous", "none"):
            raise ValueError(f'state_encoding must be "text", "continuous" or "none", got {state_encoding!r}.')
        if action_token_placement not in ("added", "tail"):
            raise ValueError(f'action_token_placement must be "added" or "tail", got {action_token_placement!r}.')
        if action_prompt is None:
            has_state = state_encoding == "text"
            action_prompt = "Task: {text}, State: {state};\nAction: " if has_state else "Task: {text};\nAction: "
        check_action_prompt(action_prompt, state_encoding)
        if action_tokenizer is not None:
            check_action_tokenizer(action_tokenizer)
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
        self.history = history
        self.history_stride = history_stride
        self.observation_history = ObservationHistory(history, history_stride)
        self.clips_as_video = self._clips_as_video(clips_as_video)
        check_settings({name: getattr(self, name) for name in SETTINGS})

        # Robots: whose numbers the policy takes, and gives back.
        self.robots = make_robots(
            robots,
            {
                "statistics": statistics,
                "cameras": cameras,
                "action_dim": action_dim,
                "relative_actions": relative_actions,
                "adapt_to_pi": adapt_to_pi,
            },
            normalization=normalization,
            reads_state=state_encoding != "none",
            max_action_dim=max_action_dim,
        )
        # The tokenizer: what ends an answer, what fills a batch, and where the action tokens are.
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
        self.set_prompts(prompt_frames)

    def _clips_as_video(self, wanted: bool | None) -> bool:
        """What is wanted, or a video where there is a history and the VLM's processor takes one.

        Raises:
            ValueError: videos are wanted that the processor does not take.
        """
        if self.history == 1 or wanted is False:
            return False
        can = takes_video(self.vlm_processor)
        if wanted and not can:
            raise ValueError(
                f"this policy gives its VLM clips as videos, which {type(self.vlm_processor).__name__} does not take "
                'here. Its video processor may want more libraries: pip install "kivla[vlm,video]".'
            )
        return can

    def set_prompts(self, prompt_frames: dict[str, dict] | None = None) -> None:
        """Take the prompts of another processor of the same VLM, e.g. of a run that goes on on another day.

        Args:
            prompt_frames: its `to_dict()["prompt_frames"]`; None takes what the chat template writes today.
        """
        most_clips = max(len(robot.cameras or ()) for robot in self.robots.values())
        self.sequences = Sequences(
            self.vlm_processor,
            self.action_prompt,
            self.history * most_clips,
            prompt_frames,
            most_videos=max(most_clips, 1) if self.clips_as_video else 0,
        )

    @classmethod
    def get_attributes(cls) -> list[str]:
        """Name no attributes: the library would take every argument with "tokenizer" in its name for one of its own."""
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
    def chat_template(self) -> str | dict[str, str] | None:
        """The VLM's chat template. Prompts were made of it once: see `prompt_frames`."""
        return self.vlm_processor.chat_template

    @chat_template.setter
    def chat_template(self, template: str | None):
        self.vlm_processor.chat_template = template

    def apply_chat_template(self, *args, **kwargs):
        """Apply the VLM's own chat template to a conversation: messages as the library has them."""
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
        """Statistics of the only robot; of several use `processor.robot(name)`."""
        return self.robot().statistics

    @property
    def cameras(self) -> Sequence[str] | None:
        """Cameras of the only robot; of several use `processor.robot(name)`."""
        return cast(Sequence[str] | None, self.robot().cameras)

    def check_cameras(self, names: Mapping[str, str | None] | None) -> None:
        """Check an explicit mapping of cameras, the policy's name → the one that images come with.

        Raises:
            ValueError: a name that is no camera of any of its robots, or one image for two cameras.
        """
        robots = self.robots.values()
        if names is None or any(robot.cameras is None for robot in robots):
            return
        check_names(names)
        known = set().union(*(robot.has_cameras(names) for robot in robots))
        if unknown := [name for name in names if name not in known]:
            cameras = list(dict.fromkeys(camera for robot in robots for camera in robot.cameras or ()))
            raise ValueError(
                f"The policy has no camera {unknown[0]!r}; it has {cameras}. A camera is mapped as "
                "POLICY_NAME=THEIR_NAME, or named as it is."
            )

    @property
    def action_dim(self) -> int:
        """Size of an action of the only robot; of several use `processor.robot(name)`."""
        return cast(int, self.robot().action_dim)

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
        document=None,
        prompt_kind: str | None = None,
        **options,
    ) -> BatchFeature:
        """Make a batch for `model(**batch)` or, without actions and responses, for `sample_actions` and `generate`.

        Args:
            images: for each example a list of images in the order of `cameras`, or a dict by camera name (the last part
                of `observation.images.wrist` will do), which must have each of them and no others. An image is a PIL
                image, a path or URL, the bytes of a file, or an array or tensor with three channels, last or first
                (uint8, or floats in [0, 1]); `image_input.as_rgb` says how each becomes RGB. None in the place of an
                image: this camera is missing, and its tokens are left out. Greyscale or RGBA arrays are refused (repeat
                or drop channels); such PIL images and files are converted. With a history it may be a clip of at most
                so many frames, the newest last: a list, or an array (n, height, width, 3). What comes before one that
                is missing (None) is left out, too. A picture alone is a clip of one.
            text: for each example the instruction or question; for a conversation of several turns the list of its
                questions. May be "" where actions are asked for.
            state: for each example (Ds,), robot units; with a history it may be (n, Ds), the newest last; None for an
                example that does not ask for actions. Where actions are relative they are so to the newest, that of
                the chunk's first observation.
            actions: for each example (H, Da), robot units, H at most `chunk_size`; None for an example without.
            response: for each example the text to be learned after the prompt (a sub-task, an answer), or None; for a
                conversation the list of its answers.
            action_is_pad: for each example (H,) bool, True on steps after the end of the episode. They are not learned,
                and what stands there does not matter. One exception: FAST's codes are each about the whole chunk, in
                which such steps hold the last action.
            robot: for each example the name of its robot, where the processor has several.
            given_response: for each example what the VLM has said already (a sub-task, from `generate_response`): it
                follows the prompt, and nothing of it is learned. To act in two steps, as π0.5 does.
            document: for each example the tokens of a plain text (`document_tokens`), or None. It is learned whole, as
                language models are pretrained: no prompt, no chat format, no images, and `text` is None beside it. The
                expert does not act on it.
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
        # One entry for each example in every argument
        columns = {"images": images, "text": text, "state": state, "actions": actions, "response": response}
        columns |= {"action_is_pad": action_is_pad, "robot": robot, "given_response": given_response}
        columns |= {"document": document}
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
                examples.append(self._example(*row, prompt_kind=prompt_kind))
            except ValueError as error:
                raise ValueError(f"Example {i}: {error}") from error
        # A batch is for training or for inference: padding and labels differ
        learns = any(example.learns for example in examples)
        for i, example in enumerate(examples):
            if learns and not example.learns:
                raise ValueError(
                    f"Example {i} has neither `response` nor `actions`, but others of the batch do: nothing can be "
                    "learned from it. Leave it out; for inference, put it into a batch without any of the two."
                )
        return BatchFeature(
            {**self.sequences.batch(examples, learns, self.max_length), **self._robot_tensors(examples, learns)}
        )

    def _example(
        self,
        images,
        text,
        state,
        actions,
        response,
        action_is_pad,
        robot,
        given_response,
        document,
        prompt_kind: str | None,
    ) -> Example:
        if document is not None:
            others = {"images": images, "text": text, "state": state, "actions": actions, "response": response}
            return self._document(document, [name for name, value in others.items() if value is not None])
        # Whose example it is, and what it asks for
        asks_actions = prompt_kind == "action" or (prompt_kind is None and (actions is not None or response is None))
        robot = self.robot(robot) if asks_actions or robot is not None else next(iter(self.robots.values()))
        if asks_actions:
            robot.units.check_known()
            robot.units.check_state(state)
        questions, responses = self.sequences.turns(text, response, asks_actions)
        if given_response is not None:
            if responses:
                raise ValueError("there are `response`, to be learned, and `given_response`. Give one of them.")
            given_response = self.sequences.plain("given_response", given_response)
        # What the robot saw, and what it is to do
        chunk = is_pad = None
        if actions is not None:
            if not asks_actions:
                raise ValueError('there are `actions`, but prompt_kind="text" does not ask for any. Use "action".')
            chunk, is_pad = robot.chunk(actions, action_is_pad, self.chunk_size, state)
        # Camera by camera, and of each its frames, oldest first
        clips = robot.clips(images, asks_actions, self.observation_history)
        if self.square_images:
            clips = [[pad_to_square(frame) for frame in clip] for clip in clips]
        if asks_actions and self.state_encoding != "none":
            if state is None:
                raise ValueError(
                    f'there is no `state`, but this processor was made with state_encoding="{self.state_encoding}". '
                    "Pass the robot's state."
                )
            room = self.max_state_dim if self.state_encoding == "continuous" else None
            states = robot.observed_states(state, room, self.observation_history)
        else:
            states = None
        # What follows the prompt: words, action tokens, the end of the VLM's turn
        spans, is_complete = [], True
        if chunk is not None and self.action_tokenizer is not None:
            spans, is_complete = action_spans(
                self.action_tokenizer, self.action_token_ids, chunk, cast(np.ndarray, is_pad)
            )
        suffix = self.sequences.suffix(
            questions[1:],
            responses,
            given_response,
            spans,
            is_complete,
            media=self.sequences.media(clips),
            expert_reads_response=self.expert_reads_response,
        )
        return Example(
            robot=robot,
            clips=clips,
            asks_actions=asks_actions,
            prompt=self._prompt(questions[0], states) if asks_actions else questions[0],
            learns=bool(responses) or chunk is not None,
            suffix=suffix,
            states=states,
            chunk=chunk,
            is_pad=is_pad,
        )

    def _document(self, tokens: Sequence[int], others: list[str]) -> Example:
        if others:
            raise ValueError(f"there is a `document`, which is learned alone, and beside it {', '.join(others)}.")
        if isinstance(tokens, str) or not len(tokens):
            raise ValueError(
                f"`document` has the tokens of a plain text, got {tokens!r:.80}. Give processor.document_tokens(text)."
            )
        return Example(
            robot=next(iter(self.robots.values())),
            clips=[],
            asks_actions=False,
            prompt=None,
            learns=True,
            # Nobody acts there, but the expert has to find something to read.
            suffix=[Span(list(tokens[:1]), True, expert_reads=True), Span(list(tokens[1:]), True)],
            states=None,
            chunk=None,
            is_pad=None,
        )

    @property
    def document_start(self) -> list[int]:
        """What `document_tokens` puts in front of every text: the start token, or nothing."""
        return self.sequences.document_start

    def document_tokens(self, text: str) -> list[int]:
        """Tokenize a plain text as language models are pretrained on it, to be a `document`.

        It begins with the start token, if the VLM knows one. Control tokens in it are plain text.

        Raises:
            ValueError: no words, or a control token that this tokenizer cannot write as text.
        """
        return self.sequences.document(text)

    def _prompt(self, text: str, states: np.ndarray | None) -> str:
        if self.state_encoding != "text":
            return self.action_prompt.format(text=text)
        bins = discretize_state(cast(np.ndarray, states))  # (n, Ds)
        return self.action_prompt.format(text=text, state=STATE_BREAK.join(" ".join(map(str, row)) for row in bins))

    def _robot_tensors(self, examples: list[Example], learns: bool) -> dict[str, torch.Tensor]:
        """`action_mask`, and `actions` and `state` where there are any; nothing if no example is about actions."""
        has_chunks = any(example.chunk is not None for example in examples)
        if not (has_chunks if learns else any(example.asks_actions for example in examples)):
            return {}
        actions = np.zeros((len(examples), self.chunk_size, self.max_action_dim), dtype=np.float32)
        real = np.zeros(actions.shape, dtype=bool)
        state = np.zeros((len(examples), self.max_state_dim), dtype=np.float32)
        for i, example in enumerate(examples):
            filled = self.max_action_dim if self.noise_padding else example.robot.action_dim
            if example.chunk is not None and example.is_pad is not None:
                actions[i, :, : example.robot.action_dim] = example.chunk
                real[i, :, :filled] = ~example.is_pad[:, None]
            elif not learns:  # the dimensions that the sampler has to fill
                real[i, :, :filled] = True
            if self.state_encoding == "continuous" and example.states is not None:
                values = flat_states(example.states, self.observation_history)
                state[i, : len(values)] = values
        tensors = {"action_mask": torch.from_numpy(real)}
        if has_chunks:
            tensors["actions"] = torch.from_numpy(actions)
        if self.state_encoding == "continuous":
            tensors["state"] = torch.from_numpy(state)
        return tensors

    # ------------------------------------------------------------------------------------- batches, once more
    def add_responses(self, prompts, responses: Sequence[str | None]) -> dict[str, torch.Tensor]:
        """Append to prompts what the VLM has said, as if it had been given as `given_response` at once.

        Args:
            prompts: what the processor gives for inference.
            responses: for each example the words (`generate_response`); None or "" for none.

        Returns:
            The prompts with the words, padded on the left.
        """
        return self.sequences.add_responses(prompts, responses, self.expert_reads_response)

    def prompts_of(self, batch, with_responses: bool = False) -> dict[str, torch.Tensor]:
        """Cut a batch for training down to its prompts, as the processor gives them for inference.

        They are padded on the left, without `labels` and `actions`. `action_mask` stays as it is.

        Args:
            batch: what the processor gives for training.
            with_responses: keep the responses, and end where the action tokens begin.
        """
        return self.sequences.cut(batch, self._response_ends(batch) if with_responses else prompt_ends(batch))

    def prompt_lengths(self, batch) -> torch.Tensor:
        """Count the tokens of each prompt in a batch for training, (B,): images and words before what is learned."""
        return tokens_before(batch, prompt_ends(batch))

    def answers_of(self, batch) -> list[list[int]]:
        """Return the token ids of the first answer of each example in a batch for training.

        Up to and with the end of the VLM's turn; empty where nothing is learned.
        """
        return first_answers(batch["labels"], self.end_token_id)

    def _response_ends(self, batch) -> torch.Tensor:
        return response_ends(batch, torch.as_tensor(self.action_token_ids))

    # -------------------------------------------------------------------------------------------------- decoding
    def with_past(self, observation: Mapping) -> dict:
        """Make clips of an observation and its `past`, the earlier ones that belong to it (`ObservationMemory`)."""
        return with_past(observation, self.observation_history)

    @staticmethod
    def newest_state(state):
        """The state that actions are relative to, (Ds,), of an observation's (Ds,) or (n, Ds); None if it has none."""
        return newest_state(state)

    def normalize_actions(self, actions, robot: str | None = None, state=None) -> np.ndarray:
        """Normalise actions (..., n, action_dim) in robot units; the inverse of `unnormalize_actions`.

        Args:
            robot: whose actions they are, where the processor has several robots.
            state: (..., Ds), robot units: that of the observation which they are to be seen from. Only needed where the
                robot's actions are relative: what is left of an old chunk becomes relative to a new state so.

        Returns:
            (..., n, action_dim) float32.

        Raises:
            ValueError: another number of dimensions than the robot has, a value that is NaN or infinite, or no state
                where one is needed.
        """
        spec = self.robot(robot)
        actions = as_numbers(actions)
        if actions.shape[-1:] != (spec.action_dim,):
            raise ValueError(
                f"Actions of shape {actions.shape}, but this robot's have {spec.action_dim} dimensions: are they of "
                "another robot?"
            )
        return spec.units.normalize(actions, state)

    def unnormalize_actions(self, chunk, robot: str | None = None, clip_actions: bool | None = None, state=None):
        """Turn normalised chunks (..., H, D) of the model into robot units (..., H, action_dim); arrays or tensors.

        Args:
            robot: whose chunks they are, where the processor has several robots.
            clip_actions: whether to hold them within the range of the robot's data; the processor's setting by default.
            state: (..., Ds), robot units: that of the observation that each chunk was predicted from. Only needed where
                the robot's actions are relative; what comes back is absolute.

        Raises:
            ValueError: fewer dimensions than the robot has, a value that is NaN or infinite, or no state where one is
                needed.
        """
        return self.unnormalize_and_clip(chunk, robot, clip_actions, state)[0]

    def unnormalize_and_clip(
        self, chunk, robot: str | None = None, clip_actions: bool | None = None, state=None
    ) -> tuple:
        """Do what `unnormalize_actions` does, and say how much was clipped.

        Returns:
            The actions, and a dict, or None where nothing is clipped: `values`, how many lay outside; `of`, how many
            there are; `share`; `largest`, how far out the worst was, in widths of its dimension's recorded range; and
            `dimension`, which that is (or None).
        """
        spec = self.robot(robot)
        chunk = as_numbers(chunk) if isinstance(chunk, list | tuple) else chunk
        if chunk.shape[-1] < spec.action_dim:
            raise ValueError(
                f"Chunks of {chunk.shape[-1]} dimensions are too narrow for this robot's {spec.action_dim}: is the "
                "model of another robot?"
            )
        clip = self.clip_actions if clip_actions is None else clip_actions
        return spec.unnormalize(chunk[..., : spec.action_dim], clip, state)

    def clips_actions(self, robot: str | None = None) -> bool:
        """Whether this robot's actions are held within the range of its data: see `clip_actions`."""
        return self.clip_actions and self.robot(robot).action_range is not None

    def decode_actions(
        self, sequences, action_dims: Sequence[int] | None = None
    ) -> list[np.ndarray | ActionDecodingFailure]:
        """Turn generated token ids into normalised chunks (H, action_dim), or the reason why there is none.

        The longest run of action tokens counts, and all else is ignored: the prompt, a response (which may hold a few
        of them with "tail": `<loc>` tokens), the end. `labels` may be given as well.

        Args:
            action_dims: for each sequence the size of an action, where the processor has several robots.

        Raises:
            ValueError: the processor has no action tokenizer.
        """
        tokenizer = self._need_action_tokenizer()
        code_of = {token: code for code, token in enumerate(self.action_token_ids.tolist())}
        dims = [self.action_dim] * len(sequences) if action_dims is None else action_dims
        results = []
        for sequence, action_dim in zip(sequences, dims, strict=True):
            row = [code_of.get(token) for token in torch.as_tensor(sequence).tolist()]
            runs = [list(run) for is_action, run in groupby(row, lambda code: code is not None) if is_action]
            codes = max(runs, key=len, default=[])
            results += tokenizer.decode([codes], self.chunk_size, action_dim)
        return results

    def action_constraint(
        self, prompt_length: int, action_dims: Sequence[int], max_response_tokens: int | None = None
    ) -> ActionTokenConstraint:
        """Make a logits processor for `generate` that lets through complete chunks of action tokens, then the end.

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
        grammar = self._need_action_tokenizer().grammar()
        num_values = [self.chunk_size * action_dim for action_dim in action_dims]
        return ActionTokenConstraint(
            self.action_token_ids, self.end_token_id, prompt_length, num_values, grammar, max_response_tokens
        )

    def has_response_before_actions(self, labels: torch.Tensor) -> torch.Tensor:
        """Say which examples teach words, and then action tokens: (B, S) labels -> (B,) bool."""
        is_action = torch.isin(labels, torch.as_tensor(self.action_token_ids, device=labels.device))
        first = (labels != -100).int().argmax(1, keepdim=True)
        return is_action.any(1) & ~is_action.gather(1, first)[:, 0] & ~are_documents(labels)

    @property
    def end_token_id(self) -> int:
        """The first token of what ends the VLM's turn."""
        return self.sequences.closing(1)[0]

    def _need_action_tokenizer(self) -> ActionTokenizer:
        if self.action_tokenizer is None:
            raise ValueError("This processor has no action tokenizer: its VLM was not taught action tokens.")
        return self.action_tokenizer

    def __repr__(self) -> str:
        shown = {name: getattr(self, name) for name in SETTINGS}
        shown["robots"] = {
            name: {"cameras": r.cameras, "action_dim": r.action_dim, "relative_actions": str(r.units.relative)}
            for name, r in self.robots.items()
        }
        tokenizer = None if self.action_tokenizer is None else type(self.action_tokenizer).__name__
        return f"{type(self).__name__}({type(self.vlm_processor).__name__}, action_tokenizer={tokenizer}, {shown})"
