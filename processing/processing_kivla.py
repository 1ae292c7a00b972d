"""KIVLAProcessor: observations and actions in robot units -> what the model takes, and back."""

import json
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from huggingface_hub import snapshot_download
from PIL import Image
from transformers import AutoProcessor, BatchFeature, ProcessorMixin
from transformers.image_utils import load_image

from .action_tokenizers import ActionDecodingFailure, ActionTokenizer, load_action_tokenizer
from .normalization import Normalizer, discretize_state, statistics_from_json, statistics_to_json

VLM_PROCESSOR_FOLDER = "vlm_processor"
CONFIG_FILE = "processor_config.json"
_SENTINEL = "\u2022kivla\u2022"  # marks the assistant's turn in a rendered chat

# What a VLM's `token_type_ids` say about tokens to be learned. PaliGemma: 0 = bidirectional prompt, 1 = causal answer;
# everybody else marks image tokens there, and text of any kind is 0.
SUFFIX_TOKEN_TYPE = {"PaliGemmaProcessor": 1}


class KIVLAProcessor(ProcessorMixin):
    r"""
    Wraps a VLM's own processor and adds what a robot needs: prompts with state, action chunks, action tokens.

    Args:
        vlm_processor: the VLM's processor (`AutoProcessor.from_pretrained(vlm)`).
        action_tokenizer: FAST or bins, fitted; None for a policy whose VLM learns no action tokens (π0).
        statistics: `{"state": {...}, "actions": {...}}`, each with mean, std, min, max, q01, q99 of one robot's data,
            in robot units (`LeRobotDataset.statistics`).
        chunk_size, max_action_dim, max_state_dim, state_encoding: as in the model's `KIVLAConfig`.
        normalization: "quantile" (1 % to 99 % onto [-1, 1]; π0.5), "mean_std" (π0) or "none".
        cameras: names of the cameras, in the order in which the model sees them; None takes any number of images.
        action_dim: real size of an action; by default that of the statistics.
        action_token_placement: "added" gives action tokens new ids, `<action_0>`, ... at the end of the vocabulary;
            "tail" writes them over existing ids: `vocab_size - 1 - action_token_skip - code` (openpi's convention).
        action_token_skip: for "tail": 128 is openpi's (on PaliGemma codes 0-1023 are then the `<loc>` tokens), 1152
            leaves PaliGemma's `<loc>` and `<seg>` tokens alone.
        action_prompt: with `{text}` and, if the state is text, `{state}`. By default π0.5's
            `"Task: {text}, State: {state};\nAction: "`, without the state where it is not text. If the VLM has a chat
            template this is what the user says.
        max_length: longest allowed sequence; a longer one is an error, never cut.

    Raises:
        ValueError: contradictory settings, or statistics that do not fit.
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
        action_token_placement: str = "added",
        action_token_skip: int = 128,
        action_prompt: str | None = None,
        max_length: int | None = None,
    ):
        super().__init__()
        if state_encoding not in ("text", "continuous", "none"):
            raise ValueError(f'state_encoding must be "text", "continuous" or "none", got {state_encoding!r}.')
        if action_token_placement not in ("added", "tail"):
            raise ValueError(f'action_token_placement must be "added" or "tail", got {action_token_placement!r}.')
        if statistics is None and normalization != "none":
            raise ValueError(
                f'normalization="{normalization}" needs the statistics of your robot\'s data: pass '
                'statistics=LeRobotDataset(...).statistics, or normalization="none" if values are normalised already.'
            )
        if action_prompt is None:
            has_state = state_encoding == "text"
            action_prompt = "Task: {text}, State: {state};\nAction: " if has_state else "Task: {text};\nAction: "
        if "{text}" not in action_prompt or ("{state}" in action_prompt) != (state_encoding == "text"):
            raise ValueError(
                f'action_prompt must contain {{text}}, and {{state}} exactly if state_encoding is "text"; got '
                f'{action_prompt!r} with state_encoding="{state_encoding}".'
            )
        self.vlm_processor = vlm_processor
        self.action_tokenizer = action_tokenizer
        self.statistics = statistics
        self.chunk_size = chunk_size
        self.max_action_dim = max_action_dim
        self.max_state_dim = max_state_dim
        self.state_encoding = state_encoding
        self.normalization = normalization
        self.cameras = None if cameras is None else list(cameras)
        self.action_token_placement = action_token_placement
        self.action_token_skip = action_token_skip
        self.action_prompt = action_prompt
        self.max_length = max_length

        statistics = statistics or {}
        self._action_normalizer = Normalizer(statistics.get("actions"), normalization)
        self._state_normalizer = None
        if state_encoding != "none":
            if normalization != "none" and "state" not in statistics:
                raise ValueError(
                    f'state_encoding="{state_encoding}" needs statistics["state"], but the statistics are of '
                    f'{sorted(statistics)}. For a robot without state use state_encoding="none".'
                )
            self._state_normalizer = Normalizer(statistics.get("state"), normalization)
        if action_dim is None:
            action_dim = self._action_normalizer.dim or max_action_dim
        if self._action_normalizer.dim not in (None, action_dim):
            raise ValueError(
                f"action_dim = {action_dim}, but the statistics are of {self._action_normalizer.dim}-dimensional "
                "actions: are these the statistics of another robot?"
            )
        if not 1 <= action_dim <= max_action_dim:
            raise ValueError(
                f"Actions have {action_dim} dimensions, but max_action_dim is {max_action_dim}. Build processor and "
                f"model with max_action_dim of at least {action_dim}."
            )
        self.action_dim = action_dim
        self.action_token_ids = self._place_action_tokens()

    @classmethod
    def from_vlm(cls, pretrained_model_name_or_path: str | os.PathLike, **kwargs) -> "KIVLAProcessor":
        """A processor for a policy on this VLM (Hub id or folder); keyword arguments as for the class."""
        return cls(AutoProcessor.from_pretrained(pretrained_model_name_or_path), **kwargs)

    @classmethod
    def get_attributes(cls) -> list[str]:
        """None: the library would take every argument with "tokenizer" in its name for one of its own."""
        return []

    @property
    def tokenizer(self):
        """The VLM's tokenizer, with the action tokens in it."""
        return self.vlm_processor.tokenizer

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
        prompt_kind: str | None = None,
    ) -> BatchFeature:
        """A batch for `model(**batch)` or, without actions and responses, for `sample_actions` and `generate`.

        Args:
            images: for each example a list of images in the order of `cameras`, or a dict by camera name. An image is a
                PIL image, a path or URL, or an array or tensor (uint8, or floats in [0, 1]; channels last or first).
                None in the place of an image: this camera is missing, and its tokens are left out.
            text: for each example the instruction or question.
            state: for each example (Ds,), robot units; None for an example without.
            actions: for each example (H, Da), robot units, H at most `chunk_size`; None for an example without.
            response: for each example the text to be learned after the prompt (a sub-task, an answer), or None.
            action_is_pad: for each example (H,) bool, True on steps after the end of the episode.
            prompt_kind: "action" asks for actions, "text" gives the text to the VLM as it is. By default "text" for
                examples that have a response and no actions.

        Returns:
            `input_ids`, `attention_mask`, image tensors and token types as the VLM wants them; `expert_attention_mask`;
            `labels` where something is to be learned; `actions` and `action_mask`; `state` if it is continuous. Padded
            on the right for training and on the left for inference, as `generate` needs.

        Raises:
            ValueError: wrong number of images or cameras, wrong dimensions, values that are NaN or infinite, a sequence
                longer than `max_length`; the message says which example, what was given and what to do.
        """
        if text is None or isinstance(text, str):
            raise ValueError(
                f"`text` must be a list with one instruction for each example (batched input), got {text!r}. Write "
                "text=[...], images=[[...]], state=[...]."
            )
        count = len(text)
        images = self._per_example("images", images, count)
        state = self._per_example("state", state, count)
        actions = self._per_example("actions", actions, count)
        response = self._per_example("response", response, count)
        action_is_pad = self._per_example("action_is_pad", action_is_pad, count)

        images = [self._images(i, given) for i, given in enumerate(images)]
        chunks = [self._chunk(i, *pair) for i, pair in enumerate(zip(actions, action_is_pad, strict=True))]
        learns = any(chunk is not None for chunk in chunks) or any(answer is not None for answer in response)
        kinds = [
            prompt_kind or ("text" if answer is not None and chunk is None else "action")
            for answer, chunk in zip(response, chunks, strict=True)
        ]
        states = [self._state(i, s, kind) for i, (s, kind) in enumerate(zip(state, kinds, strict=True))]
        prompts = [self._prompt(*row) for row in zip(text, kinds, states, strict=True)]
        suffixes = None
        if learns:
            suffixes = [self._suffix(*row) for row in zip(response, chunks, prompts, images, strict=True)]

        batch = self._sequences(images, prompts, suffixes)
        real = np.zeros((count, self.chunk_size, self.max_action_dim), dtype=bool)
        if any(chunk is not None for chunk in chunks):
            padded = np.zeros(real.shape, dtype=np.float32)
            for i, chunk in enumerate(chunks):
                if chunk is not None:
                    values, is_pad = chunk
                    padded[i, :, : self.action_dim] = values
                    real[i, :, : self.action_dim] = ~is_pad[:, None]
            batch["actions"] = torch.from_numpy(padded)
        elif not learns:  # which dimensions the sampler has to fill
            real[:, :, : self.action_dim] = True
        if "actions" in batch or not learns:
            batch["action_mask"] = torch.from_numpy(real)
        if self.state_encoding == "continuous" and ("actions" in batch or not learns):
            padded = np.zeros((count, self.max_state_dim), dtype=np.float32)
            for i, values in enumerate(states):
                if values is not None:
                    padded[i, : len(values)] = values
            batch["state"] = torch.from_numpy(padded)
        return BatchFeature(batch)

    def _per_example(self, name: str, values, count: int) -> list:
        if values is None:
            return [None] * count
        values = list(values)
        if len(values) != count:
            raise ValueError(
                f"`{name}` has {len(values)} entries for {count} examples (`text` has {count}). All arguments are "
                "batched: one entry for each example, None where an example has none."
            )
        return values

    def _images(self, i: int, given) -> list[Image.Image]:
        """The images that are there, as RGB, in the order of the cameras."""
        if given is None:
            given = []
        if isinstance(given, dict):
            names = self.cameras or list(given)
            if set(given) != set(names):
                raise ValueError(
                    f"Example {i}: images are given for cameras {sorted(given)}, but this processor has {names}. "
                    "Pass every camera by its name; use None for one that is missing."
                )
            given = [given[name] for name in names]
        elif not isinstance(given, list | tuple):
            raise ValueError(
                f"Example {i}: `images` must be a list of images (one for each camera) or a dict by camera name, got "
                f"{type(given).__name__}. For one example with one camera write images=[[image]]."
            )
        elif self.cameras is not None and given and len(given) != len(self.cameras):
            raise ValueError(
                f"Example {i}: got {len(given)} images for {len(self.cameras)} cameras {self.cameras}. Pass one for "
                "each, in this order; use None for one that is missing."
            )
        return [_as_rgb(i, image) for image in given if image is not None]

    def _state(self, i: int, values, kind: str) -> np.ndarray | None:
        if self.state_encoding == "none" or kind == "text":
            return None
        if values is None:
            raise ValueError(
                f'Example {i} has no `state`, but this processor was made with state_encoding="{self.state_encoding}". '
                "Pass the robot's state."
            )
        try:
            normalised = self._state_normalizer.normalize(np.asarray(values))
        except ValueError as error:
            raise ValueError(f"Example {i}, state: {error}") from error
        if normalised.ndim != 1:
            raise ValueError(f"Example {i}: `state` must be one vector (Ds,), got shape {normalised.shape}.")
        if self.state_encoding == "continuous" and len(normalised) > self.max_state_dim:
            raise ValueError(
                f"Example {i}: the state has {len(normalised)} values, but max_state_dim is {self.max_state_dim}. "
                f"Build processor and model with max_state_dim of at least {len(normalised)}."
            )
        return normalised

    def _chunk(self, i: int, values, is_pad) -> tuple[np.ndarray, np.ndarray] | None:
        """Normalised (chunk_size, action_dim), the last action repeated where it is short, and (chunk_size,) is_pad."""
        if values is None:
            return None
        values = np.asarray(values, dtype=np.float64)
        if values.ndim != 2 or not len(values) or values.shape[1] != self.action_dim:
            raise ValueError(
                f"Example {i}: `actions` must be (steps, {self.action_dim}) in robot units, got shape {values.shape}. "
                f"This processor has the statistics of {self.action_dim}-dimensional actions: another robot's?"
            )
        steps = len(values)
        if steps > self.chunk_size:
            raise ValueError(
                f"Example {i}: {steps} action steps do not fit into chunk_size = {self.chunk_size}. Read the data with "
                f"chunk_size={self.chunk_size}, or build processor and model with a longer one."
            )
        is_pad = np.zeros(steps, dtype=bool) if is_pad is None else np.asarray(is_pad, dtype=bool)
        if is_pad.shape != (steps,):
            raise ValueError(f"Example {i}: `action_is_pad` must be ({steps},) like the actions, got {is_pad.shape}.")
        try:
            normalised = self._action_normalizer.normalize(values)
        except ValueError as error:
            raise ValueError(f"Example {i}, actions: {error}") from error
        missing = self.chunk_size - steps
        normalised = np.concatenate([normalised, np.repeat(normalised[-1:], missing, axis=0)])
        return normalised, np.concatenate([is_pad, np.ones(missing, dtype=bool)])

    def _prompt(self, text: str, kind: str, state: np.ndarray | None) -> str:
        if kind not in ("action", "text"):
            raise ValueError(f'prompt_kind must be "action" or "text", got {kind!r}.')
        if kind == "text":
            return text
        text = text.strip().replace("_", " ").replace("\n", " ")
        if self.state_encoding != "text":
            return self.action_prompt.format(text=text)
        bins = " ".join(str(b) for b in discretize_state(state))
        return self.action_prompt.format(text=text, state=bins)

    def _suffix(self, response: str | None, chunk, prompt: str, images: list) -> list[int]:
        """Ids of what the VLM learns to say: the response, then the action tokens, then the end of its turn."""
        ids = [] if response is None else self.tokenizer(response, add_special_tokens=False)["input_ids"]
        if chunk is not None and self.action_tokenizer is not None:
            (codes,) = self.action_tokenizer.encode(chunk[0][None])
            ids = ids + self.action_token_ids[codes].tolist()
        if not ids:
            return []
        return ids + self.tokenizer(self._closing(prompt, len(images)), add_special_tokens=False)["input_ids"]

    # --------------------------------------------------------------------------------------------- token sequences
    @property
    def _has_chat(self) -> bool:
        return bool(self.vlm_processor.chat_template)

    def _render(self, prompt: str, num_images: int, answer: str | None = None) -> str:
        content = [{"type": "image"}] * num_images + [{"type": "text", "text": prompt.strip()}]
        messages = [{"role": "user", "content": content}]
        if answer is not None:
            messages.append({"role": "assistant", "content": [{"type": "text", "text": answer}]})
        return self.vlm_processor.apply_chat_template(messages, add_generation_prompt=answer is None, tokenize=False)

    def _closing(self, prompt: str, num_images: int) -> str:
        """What ends the VLM's turn: as its chat template writes it, else the end-of-sequence token."""
        if not self._has_chat:
            return self.tokenizer.eos_token
        after = self._render(prompt, num_images, answer=_SENTINEL).rpartition(_SENTINEL)[2].strip()
        return after or self.tokenizer.eos_token

    def _sequences(self, images: list[list], prompts: list[str], suffixes: list[list[int]] | None) -> dict:
        """Image tensors and padded per-token tensors of [prompt ; suffix].

        With a chat template the VLM's processor sees the whole prompt. Without one it sees the image placeholders
        alone and the prompt's own tokens follow: processors of that kind (PaliGemma) add their own line ends.
        """
        if self._has_chat:
            heads = [self._render(prompt, len(row)) for prompt, row in zip(prompts, images, strict=True)]
            tails = [[] for _ in prompts]
        else:
            heads = [self.vlm_processor.image_token * len(row) for row in images]
            tails = [self.tokenizer(prompt, add_special_tokens=False)["input_ids"] for prompt in prompts]
        begins_itself = bool(self.tokenizer.bos_token) and heads[0].startswith(self.tokenizer.bos_token)
        options = {"padding": True, "return_tensors": "pt", "add_special_tokens": not begins_itself}
        if any(images):
            encoded = dict(self.vlm_processor(text=heads, images=images, **options))
        else:
            encoded = dict(self.tokenizer(heads, **options))
        encoded.pop("labels", None)

        input_ids, mask = encoded["input_ids"], encoded["attention_mask"].bool()
        newline = self.tokenizer("\n", add_special_tokens=False)["input_ids"]
        per_token = {n: t for n, t in encoded.items() if torch.is_tensor(t) and t.shape == input_ids.shape}
        token_type = SUFFIX_TOKEN_TYPE.get(type(self.vlm_processor).__name__, 0)
        rows = []
        for i, tail in enumerate(tails):
            row = {name: tensor[i][mask[i]].tolist() for name, tensor in per_token.items()}
            if not self._has_chat and row["input_ids"][-len(newline) :] == newline:
                row = {name: values[: -len(newline)] for name, values in row.items()}
            row["expert_attention_mask"] = [True] * len(row["input_ids"])
            row = _extend(row, tail, attention_mask=1, expert_attention_mask=True)
            if suffixes is not None:
                prefix_length = len(row["input_ids"])
                row = _extend(
                    row, suffixes[i], attention_mask=1, expert_attention_mask=False, token_type_ids=token_type
                )
                row["labels"] = [-100] * prefix_length + suffixes[i]
            rows.append(row)
        longest = max(len(row["input_ids"]) for row in rows)
        if self.max_length is not None and longest > self.max_length:
            i = next(i for i, row in enumerate(rows) if len(row["input_ids"]) == longest)
            raise ValueError(
                f"Example {i} takes {longest} tokens, {len(suffixes[i]) if suffixes else 0} of them to be learned, but "
                f"max_length is {self.max_length}. Raise max_length, use fewer or smaller images, or a shorter text."
            )
        side = "right" if suffixes is not None else "left"
        padding = {"input_ids": self._pad_token_id, "labels": -100}
        batch = {n: t for n, t in encoded.items() if n not in per_token}
        for name in rows[0]:
            batch[name] = _pad([row[name] for row in rows], longest, padding.get(name, 0), side)
        return batch

    @property
    def _pad_token_id(self) -> int:
        pad = self.tokenizer.pad_token_id
        return self.tokenizer.eos_token_id if pad is None else pad

    # -------------------------------------------------------------------------------------------------- decoding
    def unnormalize_actions(self, chunk):
        """Normalised chunks (..., H, D) from the model -> robot units (..., H, action_dim); arrays or tensors.

        Raises:
            ValueError: fewer dimensions than the robot has, or a value that is NaN or infinite.
        """
        if chunk.shape[-1] < self.action_dim:
            raise ValueError(
                f"Chunks of {chunk.shape[-1]} dimensions are too narrow for this robot's {self.action_dim}: is the "
                "model of another robot?"
            )
        return self._action_normalizer.unnormalize(chunk[..., : self.action_dim])

    def decode_actions(self, sequences) -> list[np.ndarray | ActionDecodingFailure]:
        """Generated token ids -> for each sequence a normalised chunk (H, action_dim), or the reason why there is none.

        Everything before the first action token (a response) and after the last one in a row is ignored.
        """
        if self.action_tokenizer is None:
            raise ValueError("This processor has no action tokenizer: its VLM was not taught action tokens.")
        code_of = {int(token): code for code, token in enumerate(self.action_token_ids)}
        codes = []
        for sequence in sequences:
            row = [code_of.get(int(token)) for token in sequence]
            start = next((i for i, code in enumerate(row) if code is not None), len(row))
            end = next((i for i in range(start, len(row)) if row[i] is None), len(row))
            codes.append(row[start:end])
        return self.action_tokenizer.decode(codes, self.chunk_size, self.action_dim)

    def decode(self, *args, **kwargs) -> str:
        return self.tokenizer.decode(*args, **kwargs)

    def batch_decode(self, *args, **kwargs) -> list[str]:
        return self.tokenizer.batch_decode(*args, **kwargs)

    def _place_action_tokens(self) -> np.ndarray:
        """Token id of every code, (vocab_size of the action tokenizer,)."""
        if self.action_tokenizer is None:
            return np.empty(0, dtype=np.int64)
        codes = np.arange(self.action_tokenizer.vocab_size)
        if self.action_token_placement == "added":
            names = [f"<action_{code}>" for code in codes]
            self.tokenizer.add_tokens(names)
            return np.array(self.tokenizer.convert_tokens_to_ids(names), dtype=np.int64)
        ids = self.tokenizer.vocab_size - 1 - self.action_token_skip - codes
        taken = sorted(set(ids.tolist()) & set(self.tokenizer.all_special_ids))
        if ids[-1] < 0 or taken:
            reason = f"would overwrite the special tokens {taken}" if taken else "does not fit"
            raise ValueError(
                f'action_token_placement="tail" with {len(codes)} codes and action_token_skip = '
                f"{self.action_token_skip} {reason} in a vocabulary of {self.tokenizer.vocab_size}. Use another skip, "
                'a smaller action tokenizer, or action_token_placement="added".'
            )
        return ids

    # --------------------------------------------------------------------------------------------------- on disk
    def to_dict(self) -> dict:
        """Everything but the VLM's processor, ready for JSON."""
        statistics = self.statistics
        if statistics is not None:
            statistics = {name: statistics_to_json(values) for name, values in statistics.items()}
        return {
            "processor_class": type(self).__name__,
            "action_tokenizer": None if self.action_tokenizer is None else self.action_tokenizer.to_dict(),
            "statistics": statistics,
            "chunk_size": self.chunk_size,
            "max_action_dim": self.max_action_dim,
            "max_state_dim": self.max_state_dim,
            "state_encoding": self.state_encoding,
            "normalization": self.normalization,
            "cameras": self.cameras,
            "action_dim": self.action_dim,
            "action_token_placement": self.action_token_placement,
            "action_token_skip": self.action_token_skip,
            "action_prompt": self.action_prompt,
            "max_length": self.max_length,
        }

    def __repr__(self) -> str:
        shown = {n: v for n, v in self.to_dict().items() if n not in ("action_tokenizer", "statistics")}
        tokenizer = None if self.action_tokenizer is None else type(self.action_tokenizer).__name__
        return f"{type(self).__name__}({type(self.vlm_processor).__name__}, action_tokenizer={tokenizer}, {shown})"

    def save_pretrained(self, save_directory: str | os.PathLike, push_to_hub: bool = False, **kwargs):
        """Write the processor: `processor_config.json`, and the VLM's own processor in `vlm_processor/`.

        The config is written last and in one move, so that a folder with it is complete.
        """
        folder = Path(save_directory)
        folder.mkdir(parents=True, exist_ok=True)
        self.vlm_processor.save_pretrained(folder / VLM_PROCESSOR_FOLDER)
        unfinished = folder / (CONFIG_FILE + ".unfinished")
        unfinished.write_text(json.dumps(self.to_dict(), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        os.replace(unfinished, folder / CONFIG_FILE)
        if push_to_hub:
            self.push_to_hub(kwargs.pop("repo_id", folder.name), **kwargs)
        return [str(folder / CONFIG_FILE)]

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike, **kwargs) -> "KIVLAProcessor":
        """Load from a folder or the Hub (`revision`, `token`, `cache_dir`, `local_files_only` as usual).

        Raises:
            FileNotFoundError: the folder holds no KIVLA processor.
        """
        folder = Path(pretrained_model_name_or_path)
        if not folder.is_dir():
            hub = {n: kwargs[n] for n in ("revision", "token", "cache_dir", "local_files_only") if n in kwargs}
            patterns = [CONFIG_FILE, f"{VLM_PROCESSOR_FOLDER}/*"]
            folder = Path(snapshot_download(str(pretrained_model_name_or_path), allow_patterns=patterns, **hub))
        file = folder / CONFIG_FILE
        if not file.is_file() or not (folder / VLM_PROCESSOR_FOLDER).is_dir():
            raise FileNotFoundError(
                f"{folder} holds no KIVLA processor ({CONFIG_FILE} and {VLM_PROCESSOR_FOLDER}/ are expected). To make "
                "one for a VLM, use KIVLAProcessor.from_vlm."
            )
        settings = json.loads(file.read_text(encoding="utf-8"))
        if settings.get("processor_class") != cls.__name__:
            raise FileNotFoundError(
                f"{file} is that of a {settings.get('processor_class')}, not of a {cls.__name__}. To make one for "
                "a VLM, use KIVLAProcessor.from_vlm."
            )
        del settings["processor_class"]
        settings.pop("auto_map", None)
        if settings["action_tokenizer"] is not None:
            settings["action_tokenizer"] = load_action_tokenizer(settings["action_tokenizer"])
        if settings["statistics"] is not None:
            settings["statistics"] = {n: statistics_from_json(v) for n, v in settings["statistics"].items()}
        return cls(AutoProcessor.from_pretrained(folder / VLM_PROCESSOR_FOLDER), **settings)


def _as_rgb(i: int, image) -> Image.Image:
    """Any of the accepted images as an RGB PIL image; `i` names the example in messages."""
    if isinstance(image, str | os.PathLike):
        return load_image(str(image)).convert("RGB")
    if isinstance(image, Image.Image):
        return image.convert("RGB")
    pixels = np.asarray(image)
    if pixels.ndim == 3 and pixels.shape[-1] != 3 and pixels.shape[0] == 3:
        pixels = pixels.transpose(1, 2, 0)
    if pixels.ndim != 3 or pixels.shape[-1] != 3:
        raise ValueError(f"Example {i}: an image must be (height, width, 3) or (3, height, width), got {pixels.shape}.")
    if np.issubdtype(pixels.dtype, np.floating):
        if not (np.isfinite(pixels).all() and pixels.min() >= 0 and pixels.max() <= 1):
            raise ValueError(f"Example {i}: an image of floats must lie in [0, 1]. Pass uint8 or divide by 255.")
        pixels = (pixels * 255).round().astype(np.uint8)
    if pixels.dtype != np.uint8:
        raise ValueError(f"Example {i}: an image must be uint8, or floats in [0, 1], got {pixels.dtype}.")
    return Image.fromarray(np.ascontiguousarray(pixels))


def _extend(row: dict[str, list], ids: list[int], **fill) -> dict[str, list]:
    """Append tokens to the per-token lists of one example; lists without an entry in `fill` get zeros."""
    return {
        name: values + (ids if name == "input_ids" else [fill.get(name, 0)] * len(ids)) for name, values in row.items()
    }


def _pad(rows: list[list], length: int, value, side: str) -> torch.Tensor:
    padding = [[value] * (length - len(row)) for row in rows]
    padded = [row + pad if side == "right" else pad + row for row, pad in zip(rows, padding, strict=True)]
    return torch.tensor(padded, dtype=torch.bool if isinstance(rows[0][0], bool) else torch.long)
