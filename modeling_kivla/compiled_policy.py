"""The whole policy as compiled code: the VLM's pass over a prompt, and one step of the expert.

`torch.export` runs the model once on tensors that hold no numbers and notes every operation, whatever Python stands
around it; Inductor makes machine code of the notes. The code works for prompts of any length. It holds no weights but
reads the model's own, so that one code serves every policy of the same sizes, and is kept on disk for the next process.
"""

import copy
import hashlib
import io
import json
import logging
import math
import os
import platform
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch
import transformers
from huggingface_hub import cached_assets_path
from torch import nn
from torch._inductor.exc import CppCompileError, InductorError
from torch.export import Dim
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten
from torch.utils._sympy.numbers import int_oo
from transformers import PreTrainedModel
from transformers.utils import ModelOutput

from .action_expert import ActionExpert, Prefix, SuffixLayout, TimeCondition
from .backbone_attention import find_text_decoder
from .call_hooks import call_view
from .module_structure import plain, structure, weights, why_not_compiled
from .token_logits import token_logits
from .vlm_pass import KeyValues, read_prompt, run_recorded, run_vlm
from .weights_state import weights_state

logger = logging.getLogger(__name__)

_NO_CHECKS = "TRANSFORMERS_DISABLE_TORCH_CHECK"
# Without checks of indices: those of tokens are checked before, all others are the model's own. (PyTorch 2.11 writes
# such a check in front of what it checks.)
_OPTIONS = {"assert_indirect_indexing": False}
_NOT_COMPILED = "%s: a part of the policy is not compiled, and runs as it is. %s"
# Failures that may be gone the next time: then it is tried again.
_PASSING = (OSError, MemoryError, CppCompileError)
_COARSE = (torch.bfloat16, torch.float16)
_PLACEHOLDERS = ("image_token_id", "video_token_id", "audio_token_id")

Tensors = dict[str, torch.Tensor]

# By class of a text decoder, that of its outputs: some VLMs look for fields (of experts) that others do not have.
_OUTPUTS: dict[type[nn.Module], type[ModelOutput]] = {}


@dataclass
class _Code:
    """Compiled code for inputs of one kind, all lengths of the prompt.

    Attributes:
        run: takes weights and inputs; None if there is no code, or it was wrong once.
        low, high: the lengths that it is for.
        is_right: by lengths that came, whether it is for them and gave what the model gives.
    """

    run: Callable[[list[torch.Tensor]], list[torch.Tensor]] | None
    low: int = 0
    high: float = math.inf
    is_right: dict[tuple[int, ...], bool] = field(default_factory=dict)


class CompiledPolicy:
    """Compiled code for a policy that acts: made when inputs of a new kind come, and found again on disk.

    A kind is: which inputs, how many examples and images, of which sizes; only the length of the prompt is free. What
    is done to the policy later (`module_structure`) asks for other code, or for none. When a length comes for the first
    time, the code is compared with the model. Where it is wrong, or there is none (a forward that decides by values,
    weights on a GPU), the model runs as it is. Packed weights are part of the code: other weights ask for other code.

    Args:
        cache_dir: a folder for the code; by default one in the cache of Hugging Face.
        options: of Inductor, for instance `{"max_autotune": True}`.
        pack_weights: keep the weights in the code, in the order in which this processor multiplies fastest.
    """

    def __init__(
        self, cache_dir: str | os.PathLike | None = None, options: dict | None = None, pack_weights: bool = False
    ):
        self.cache_dir = Path(cache_dir or cached_assets_path("kivla", "compiled"))
        self.options = {**_OPTIONS, **({"freezing": True} if pack_weights else {}), **(options or {})}
        self.pack_weights = pack_weights
        self._digests: dict[str, tuple[tuple, str]] = {}  # of packed weights: when they were read, and their digest
        self._code: dict[tuple, _Code] = {}
        self._compiling = threading.Lock()
        self._said: set[str] = set()

    def __reduce__(self) -> tuple:
        """A copy finds its code on disk."""
        return CompiledPolicy, (self.cache_dir, self.options, self.pack_weights)

    def read_prompt(
        self, vlm: PreTrainedModel, layers: list[dict], vlm_inputs: dict
    ) -> tuple[KeyValues, torch.Tensor | None]:
        """`key_values` and `position` of `run_vlm`."""
        if self._runs_as_it_is(vlm):
            return read_prompt(vlm, layers, vlm_inputs)
        flat = self._by_whole(vlm, layers, vlm_inputs)
        # Where image grids are read, there is no one code for the whole; its text decoder is the larger part.
        *flat, position = self._by_decoder(vlm, layers, vlm_inputs) if flat is None else flat
        return list(zip(flat[::2], flat[1::2], strict=True)), position if len(position) else None

    def _by_whole(self, vlm: PreTrainedModel, layers: list[dict], vlm_inputs: dict) -> list[torch.Tensor] | None:
        """By code of the whole VLM, if there is any: what `_PromptPass` gives."""
        tokens = vlm_inputs.get("input_ids", vlm_inputs.get("inputs_embeds"))
        given, fixed, lengths = {}, {}, {}
        for name, value in vlm_inputs.items():
            if torch.is_tensor(value) and value.shape[:2] == tokens.shape[:2]:
                given[name], lengths[name] = value, [1]
            elif torch.is_tensor(value) and value.is_floating_point():
                given[name] = value
            else:  # sizes of image grids, switches: the code is for these alone
                fixed[name] = value
        facts = {name: value.tolist() if torch.is_tensor(value) else value for name, value in fixed.items()}
        # The code has none of the library's checks, of which this is the one that inputs can fail.
        if "input_ids" in given:
            ids = {name: getattr(vlm.config, name, None) for name in _PLACEHOLDERS}
            facts |= {name: int((tokens == token).sum()) for name, token in ids.items() if isinstance(token, int)}
        run = self._code_for(_PromptPass(vlm, layers, fixed), facts, given, lengths)
        return None if run is None else run(given)

    def _by_decoder(self, vlm: PreTrainedModel, layers: list[dict], vlm_inputs: dict) -> list[torch.Tensor]:
        """By the VLM as it is, with code in the place of its text decoder."""
        view = call_view(vlm)  # the same modules, and a place for another decoder that this call alone sees
        decoder, read = find_text_decoder(view), []

        def forward(**kwargs) -> ModelOutput:
            length = kwargs["inputs_embeds"].shape[1]
            leaves, spec = tree_flatten({name: x for name, x in kwargs.items() if name != "kivla_recorder"})
            given = {f"leaf_{i}": leaf for i, leaf in enumerate(leaves) if torch.is_tensor(leaf)}
            fixed = [None if torch.is_tensor(leaf) else leaf for leaf in leaves]
            lengths = {name: [axis for axis, n in enumerate(x.shape) if n == length] for name, x in given.items()}
            module = _DecoderPass(find_text_decoder(vlm), layers, fixed, spec)
            run = self._code_for(module, {"fixed": fixed, "spec": str(spec)}, given, lengths) or module
            hidden, *read[:] = run(given)
            # Nobody reads it: anything will do that is as wide.
            hidden = hidden if len(hidden) else kwargs["inputs_embeds"]
            return _OUTPUTS[type(decoder)](last_hidden_state=hidden)

        decoder.forward = forward
        no_rows = torch.empty(0, dtype=torch.long)
        with token_logits(view, no_rows):
            view(**vlm_inputs, use_cache=False)
        return read

    def expert_step(
        self,
        expert: ActionExpert,
        noisy_actions: torch.Tensor,
        time: TimeCondition,
        prefix: Prefix,
        layout: list[SuffixLayout],
        state: torch.Tensor | None = None,
    ) -> Callable[..., torch.Tensor]:
        """The expert's forward for all steps of one chunk, as a function of `noisy_actions` and `time`.

        Args: as of the expert's forward, at the first step; the prefix has room for the suffix.
        """
        as_it_is = partial(expert, prefix=prefix, layout=layout, state=state)
        if self._runs_as_it_is(expert):
            return as_it_is
        # Layers share their rotary tables and masks: each is handed over once.
        parts = [(*(one.rotary or (None, None)), one.mask, one.given) for one in layout]
        shared = {id(part): part for of_layer in parts for part in of_layer}
        place = {identity: i for i, identity in enumerate(shared)}
        places = [[place[id(part)] for part in of_layer] for of_layer in parts]
        of_chunk, lengths = {"state": state}, {}
        for i, (key, value) in enumerate(prefix.key_values):
            of_chunk |= {f"key_{i}": key, f"value_{i}": value}
            lengths |= {f"key_{i}": [2], f"value_{i}": [2]}
        for i, part in enumerate(shared.values()):
            of_chunk[f"layout_{i}"] = part
            if part is layout[0].mask and part is not None:
                lengths[f"layout_{i}"] = [3]

        def inputs(noisy_actions: torch.Tensor, time: TimeCondition) -> Tensors:
            given = {"actions": noisy_actions, "embedding": time.embedding, **of_chunk}
            for i, modulation in enumerate(time.modulations):
                given |= {f"modulation_{i}_{j}": part for j, part in enumerate(modulation or ())}
            return {name: value for name, value in given.items() if value is not None}

        module = _ExpertStep(expert, places)
        run = self._code_for(module, {"layout": places}, inputs(noisy_actions, time), lengths)
        return as_it_is if run is None else lambda noisy_actions, time: run(inputs(noisy_actions, time))[0]

    # ------------------------------------------------------------------------------------------------------ code
    def _runs_as_it_is(self, part: nn.Module) -> bool:
        """Whether no code can do what a part of the policy does by now; the log says it once."""
        why = why_not_compiled(part)
        if why is not None and why not in self._said:
            self._said.add(why)
            logger.warning("%s runs as it is, not as compiled code: %s.", type(part).__name__, why)
        return why is not None

    def _code_for(
        self, module: nn.Module, facts: dict, inputs: Tensors, lengths: dict[str, list[int]]
    ) -> Callable[[Tensors], list[torch.Tensor]] | None:
        """What returns what `module(inputs)` does, by its compiled code; None if it has none for these.

        Args:
            facts: what else decides about the code.
            inputs: an example; values may differ later.
            lengths: by input, the axes that are as long as the prompt.
        """
        names = sorted(inputs)
        inputs = {name: inputs[name].contiguous() for name in names}
        kind = {name: [str(x.dtype), str(x.device), *x.shape] for name, x in inputs.items()}
        for name, axes in lengths.items():
            for axis in axes:
                kind[name][2 + axis] = "any"
        sizes = tuple(inputs[name].shape[axis] for name, axes in lengths.items() for axis in axes)
        key = type(module).__name__, plain(facts), plain(kind), plain(_surroundings()), structure(module)
        key += (self._digest(module),) if self.pack_weights else ()
        code = self._code.get(key)
        if code is None or (code.run is not None and sizes not in code.is_right):
            with self._compiling:  # one thread; others wait for the same code
                code = self._compared(key, sizes, module, inputs, lengths)
        run = code.run  # another thread may find it wrong meanwhile
        if run is None or not code.is_right[sizes]:
            return None
        held = list(self._held(module).values())
        return lambda inputs: run([*held, *(inputs[name].contiguous() for name in names)])

    def _held(self, module: nn.Module) -> Tensors:
        """The weights that the code is handed."""
        return {} if self.pack_weights else {name: value.detach() for name, value in weights(module)}

    def _digest(self, module: nn.Module) -> str:
        """Of all weights; those that nobody has changed are not read again."""
        (part,) = module.children()
        name, state = type(module).__name__, weights_state(part)
        if name not in self._digests or self._digests[name][0] != state:
            digest = hashlib.sha256()
            for _, value in weights(part):
                digest.update(value.detach().contiguous().reshape(-1).view(torch.uint8).numpy())
            self._digests[name] = state, digest.hexdigest()
        return self._digests[name][1]

    def _compared(
        self, key: tuple, sizes: tuple[int, ...], module: nn.Module, inputs: Tensors, lengths: dict[str, list[int]]
    ) -> _Code:
        """The code, looked at whether it gives what the module gives at this length."""
        code = self._code.get(key)
        if code is not None and (code.run is None or sizes in code.is_right):
            return code  # another thread was first
        held = self._held(module)
        expected = module({name: value.clone() for name, value in inputs.items()})  # raises what is wrong with them
        if code is None:
            code = self._code[key] = self._load(key, module, held, inputs, lengths)
        code.is_right[sizes] = False
        if code.run is not None and all(code.low <= size <= code.high for size in sizes):
            found = code.run([*held.values(), *(value.clone() for value in inputs.values())])
            is_coarse = torch.is_autocast_enabled("cpu") or any(x.dtype in _COARSE for _, x in weights(module))
            tolerance = 0.1 if is_coarse else 1e-3  # of the largest value
            code.is_right[sizes] = all(_are_alike(*both, tolerance) for both in zip(found, expected, strict=True))
            if not code.is_right[sizes]:
                code.run = None
                logger.warning("Its compiled code gives other values than %s: it runs as it is.", type(module).__name__)
        return code

    def _load(
        self, key: tuple, module: nn.Module, held: Tensors, inputs: Tensors, lengths: dict[str, list[int]]
    ) -> _Code:
        """The code from disk, compiled if it is not there yet."""
        about = [key, self.options, _processor(), torch.__version__, transformers.__version__, _own_sources()]
        digest = hashlib.sha256(json.dumps(about).encode()).hexdigest()[:32]
        path = self.cache_dir / f"{digest}.pt2"
        try:
            return _read(path)
        except FileNotFoundError:
            logger.warning("Compiling the policy for inputs of this kind, once: %s", path)
        except (OSError, ValueError, RuntimeError) as error:  # what is there is damaged
            logger.warning("Compiling the policy again, whose code in %s cannot be read: %s", path, _first_line(error))
        self.cache_dir.mkdir(parents=True, exist_ok=True)
        is_made = compile_to(path, module, held, inputs, lengths, self.options)
        return _read(path) if is_made else _Code(None)


def _read(path: Path) -> _Code:
    """The code of a file, and the lengths that it is for; or that there can be none.

    Raises:
        FileNotFoundError: it is not there, or not whole.
        OSError, ValueError, RuntimeError: it is damaged.
    """
    low, high, why_not = json.loads(path.with_suffix(".json").read_text())
    if why_not is not None:
        logger.warning(_NOT_COMPILED, path, why_not)
        return _Code(None)
    if not path.is_file():
        raise FileNotFoundError(path)
    return _Code(torch._inductor.aoti_load_package(str(path)).loader.run, low, math.inf if high is None else high)


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]


def compile_to(
    path: Path, module: nn.Module, held: Tensors, inputs: Tensors, lengths: dict[str, list[int]], options: dict
) -> bool:
    """Write the code of `module(inputs)` for prompts of other lengths; which, stands beside it.

    It works with other weights, too, if it is handed them (`held`); else they are part of it.

    Returns:
        Whether there is any: what the module does may depend on values on its way, or the compiler may fail. If it
        would fail the next time, too, that stands on disk.
    """
    shapes = {name: dict.fromkeys(lengths.get(name, []), Dim.DYNAMIC) or None for name in inputs}
    unfinished = path.with_suffix(f".{os.getpid()}.{threading.get_ident()}.pt2")
    with torch.no_grad(), warnings.catch_warnings(), _without_checks():
        warnings.simplefilter("ignore", FutureWarning)  # PyTorch's, about itself
        called, arguments, all_shapes = _Weightless(module), (held, inputs), (dict.fromkeys(held), shapes)
        if not held:
            called, arguments, all_shapes = _shell(module), (inputs,), (shapes,)
        try:
            with redirect_stderr(io.StringIO()):  # of what it cannot export, PyTorch prints thousands of lines
                program = torch.export.export(called, arguments, dynamic_shapes=all_shapes, strict=False)
            _drop_unused_attention(program)
            configs = dict(options)
            torch._inductor.aoti_compile_and_package(program, package_path=str(unfinished), inductor_configs=configs)
        except Exception as error:  # of many kinds
            why_not = f"{type(module).__name__}: {_first_line(error)}"
            logger.warning(_NOT_COMPILED, path, why_not)
            cause = error.inner_exception if isinstance(error, InductorError) else error
            if not isinstance(cause, _PASSING):
                path.with_suffix(".json").write_text(json.dumps([0, None, why_not]))
            return False
    ranges = [r for symbol, r in program.range_constraints.items() if str(symbol).startswith("s")]  # sizes of inputs
    low, high = max((int(r.lower) for r in ranges), default=0), min((r.upper for r in ranges), default=int_oo)
    path.with_suffix(".json").write_text(json.dumps([low, None if high == int_oo else int(high), None]))
    unfinished.replace(path)
    return True


def _drop_unused_attention(program: torch.export.ExportedProgram) -> None:
    """Attention whose output nobody reads, as the last layer's: PyTorch keeps it, as it may drop out at random."""
    attention = torch.ops.aten.scaled_dot_product_attention.default
    program.graph.eliminate_dead_code(lambda node: node.target != attention and node.is_impure())
    program.graph_module.recompile()


def _are_alike(found: torch.Tensor, expected: torch.Tensor, tolerance: float) -> bool:
    if found.shape != expected.shape:
        return False
    largest = expected.abs().max() if expected.numel() else 0
    return bool(((found - expected).abs() <= tolerance * largest).all())


class _Weightless(nn.Module):
    """A module as a function of its weights, too."""

    def __init__(self, module: nn.Module):
        super().__init__()
        self.call = partial(torch.func.functional_call, _shell(module))

    def forward(self, held: Tensors, inputs: Tensors) -> list[torch.Tensor]:
        return self.call(held, (inputs,))


def _shell(module: nn.Module) -> nn.Module:
    """The same module as other objects, for other weights: threads that run the policy meanwhile keep theirs."""
    shell = copy.copy(module)
    vars(shell)["_parameters"], vars(shell)["_buffers"] = dict(module._parameters), dict(module._buffers)
    vars(shell)["_modules"] = {name: child and _shell(child) for name, child in module._modules.items()}
    return shell


@contextmanager
def _without_checks() -> Iterator[None]:
    """The library's switch for its checks of values: noted, they would ask a GPU for its results on the way."""
    before = os.environ.get(_NO_CHECKS)
    os.environ[_NO_CHECKS] = "1"
    try:
        yield
    finally:
        os.environ.pop(_NO_CHECKS)
        if before is not None:
            os.environ[_NO_CHECKS] = before


def _processor() -> list[str]:
    """What the code is made for: it uses all that this processor can do."""
    file = Path("/proc/cpuinfo")  # of Linux
    lines = file.read_text().splitlines() if file.is_file() else [platform.platform(), platform.processor()]
    flags = {line for line in lines if line.startswith("flags")} or lines
    return [torch.backends.cpu.get_cpu_capability(), *sorted(flags)]


def _surroundings() -> list:
    """What a caller may set that code is made for, too."""
    autocast = torch.is_autocast_enabled("cpu"), torch.get_autocast_dtype("cpu")
    return [torch.get_num_threads(), torch.get_default_dtype(), *autocast]


def _own_sources() -> str:
    files = sorted(Path(__file__).parent.glob("*.py"))
    return hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()


def _flat(key_values: list, position: torch.Tensor | None) -> list[torch.Tensor]:
    position = torch.empty(0, dtype=torch.long) if position is None else position.clone()
    return [*(x for key_value in key_values for x in key_value), position]


class _PromptPass(nn.Module):
    """`run_vlm` as a function of tensors."""

    def __init__(self, vlm: PreTrainedModel, layers: list[dict], fixed: dict):
        super().__init__()
        self.vlm, self.layers, self.fixed = vlm, layers, fixed

    def forward(self, inputs: Tensors) -> list[torch.Tensor]:
        no_rows = torch.empty(0, dtype=torch.long)
        done = run_vlm(self.vlm, self.layers, True, no_rows, **inputs, **self.fixed)
        return _flat(done.key_values, done.position)


class _DecoderPass(nn.Module):
    """The text decoder, with what its VLM calls it with, as a function of tensors.

    Its output comes first: empty, where inputs can stand for it.
    """

    def __init__(self, decoder: PreTrainedModel, layers: list[dict], fixed: list, spec: TreeSpec):
        super().__init__()
        self.decoder, self.layers, self.fixed, self.spec = decoder, layers, fixed, spec

    def forward(self, inputs: Tensors) -> list[torch.Tensor]:
        leaves = [inputs.get(f"leaf_{i}", leaf) for i, leaf in enumerate(self.fixed)]
        kwargs = tree_unflatten(leaves, self.spec)
        output, key_values, position = run_recorded(partial(self.decoder, **kwargs), self.decoder, self.layers)
        _OUTPUTS[type(self.decoder)] = type(output)  # (the first of each kind runs as it is)
        hidden = output.last_hidden_state
        if hidden.shape[-1] == kwargs["inputs_embeds"].shape[-1]:
            hidden = hidden.new_empty(0)  # so that the last layer's MLP, which makes nothing else, is left out
        return [hidden, *_flat(key_values, position)]


class _ExpertStep(nn.Module):
    """The expert's `forward` as a function of tensors."""

    def __init__(self, expert: ActionExpert, places: list[list[int]]):
        super().__init__()
        self.expert, self.places = expert, places

    def forward(self, inputs: Tensors) -> list[torch.Tensor]:
        layers = range(len(self.places))
        actions, state = inputs["actions"], inputs.get("state")
        key_values = [(inputs[f"key_{i}"], inputs[f"value_{i}"]) for i in layers]
        parts = ([inputs.get(f"modulation_{i}_{j}") for j in range(3)] for i in range(2 * len(layers) + 1))
        modulations = [None if scale is None else (scale, shift, gate) for scale, shift, gate in parts]
        time = TimeCondition(inputs["embedding"], None, modulations)
        length = key_values[0][0].shape[2] - actions.shape[1] - int(state is not None)
        layout = []
        for one in self.places:
            cos, sin, mask, given = (inputs.get(f"layout_{place}") for place in one)
            layout.append(SuffixLayout(None if cos is None else (cos, sin), mask, length, given))
        prefix = Prefix(key_values, None, inputs["embedding"], {})
        return [self.expert.forward(actions, time, prefix, layout, state)]
