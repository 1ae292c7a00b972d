"""One side of a race of `benchmarks.rivals`, in a process and with an interpreter of its own.

`python -m benchmarks.rival_worker JOB.json` builds its side, answers with versions, and then does one thing for each
line that it is sent: `run` the job and answer with its seconds, `save` its results to a file, `memory` of one run.

Nothing outside a side's own class may be imported here but PyTorch: a rival's interpreter has neither KIVLA nor its
libraries.
"""

import ctypes
import gc
import importlib.abc
import importlib.machinery
import importlib.metadata
import json
import math
import sys
import time
import types
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

CODES = 2048  # OpenTau's head for action tokens
PEAKS = 5  # runs whose peak memory is measured
INDICATOR = (5, 6, 7)  # tokens that it puts before them
# One weight from each part: the vision tower, the text model, the expert, and what comes after it
COMPARED = (
    "paligemma_with_expert.paligemma.model.vision_tower.vision_model.encoder.layers.0.mlp.fc1.weight",
    "paligemma_with_expert.paligemma.model.language_model.layers.0.self_attn.q_proj.weight",
    "paligemma_with_expert.gemma_expert.model.layers.0.mlp.up_proj.weight",
    "action_out_proj.weight",
)


def codes_of(vocab_size: int) -> torch.Tensor:
    """Ids of the action tokens: the last ones of the vocabulary."""
    return torch.arange(vocab_size - CODES, vocab_size)


# ------------------------------------------------------------------------------------------------------------ sides
class Side:
    """A model, and how to run the job on it.

    Attributes:
        model: it.
        names: of its weights in the files of LeRobot -> the weights.
    """

    def __init__(self, job: dict):
        self.job, self.size = job, types.SimpleNamespace(**job["size"])
        self.model, self.names = None, {}
        self.inputs = load_file(job["inputs"])
        self.prepare()
        self.memory_before = _memory("VmRSS")
        self.build()
        self.model.train(job["what"] == "step")
        self.run = self.step if job["what"] == "step" else self.chunk

    def prepare(self) -> None:
        """Import what the side needs."""

    def images(self) -> list[torch.Tensor]:
        """One batch of images for each camera."""
        pixels = self.inputs["pixel_values"]
        return list(pixels.unflatten(0, (len(self.inputs["input_ids"]), -1)).unbind(1))

    def prompt(self) -> torch.Tensor:
        """The tokens after the images."""
        end = self.job["prefix_length"]
        return self.inputs["input_ids"][:, end - self.size.prompt_length : end]

    def read_weights(self, missing: tuple[str, ...]) -> None:
        """Load LeRobot's names strictly; only weights whose names begin with `missing` may be left as they are."""
        self.names = {}
        for name, weight in self.model.named_parameters(remove_duplicate=False):
            name = name.replace("vision_tower.vision_model.", "vision_tower.")
            self.names[name.replace("vision_tower.", "vision_tower.vision_model.")] = weight
        weights = load_file(self.job["weights"])
        left = [name for name in self.names if name not in weights and not name.startswith(missing)]
        if left or weights.keys() - self.names.keys():
            raise ValueError(
                f"Weights do not fit: without a value {left}, unknown {weights.keys() - self.names.keys()}"
            )
        with torch.no_grad():
            for name, weight in weights.items():
                self.names[name].copy_(weight)

    def step(self) -> dict[str, torch.Tensor]:
        """Forward and backward, the gradients anew."""
        self.model.zero_grad()
        losses = self.losses()
        losses["loss"].backward()
        return {name: loss.detach() for name, loss in losses.items()}

    def results(self) -> dict[str, torch.Tensor]:
        """What a run gives: losses and some gradients, or actions."""
        out = self.run()
        if "loss" in out:
            gradients = {f"gradient of {n}": self.names[n].grad for n in COMPARED if n in self.names}
            out |= {name: gradient for name, gradient in gradients.items() if gradient is not None}
        return {name: value.clone().contiguous() for name, value in out.items()}


def _draws(inputs: dict[str, torch.Tensor], num_draws: int = 1) -> dict[str, torch.Tensor]:
    """Actions (B, H, D), and the first N of the draws that are there."""
    rows = num_draws * len(inputs["actions"])
    return {"actions": inputs["actions"], "noise": inputs["noise"][:rows], "timestep": inputs["timestep"][:rows]}


class KIVLA(Side):
    """`job["options"]`: joint, num_draws, candidates, compiled, pack_weights."""

    def prepare(self) -> None:
        from kivla.conversion.pi_weights import lerobot_name

        from .policies import policy

        self.make, self.lerobot_name = policy, lerobot_name

    def build(self) -> None:
        from .rivals import size_of

        options = self.job["options"]
        self.model = self.make(size_of(self.job["size"]))
        self.model.config.backbone_gradient_scale = 1.0 if options.get("joint") else 0.0
        self.model.config.num_flow_samples = options.get("num_draws", 1)
        self.names = {self.lerobot_name(n).removeprefix("model."): p for n, p in self.model.named_parameters()}
        if "compiled" in options:
            self.model.compile_policy(options["compiled"], pack_weights=options.get("pack_weights", False))
        observed = ("input_ids", "attention_mask", "token_type_ids", "pixel_values")
        self.batch = {name: self.inputs[name] for name in observed}
        if self.job["what"] == "step":
            self.batch |= _draws(self.inputs, options.get("num_draws", 1))
            self.batch["expert_attention_mask"] = self.inputs["expert_attention_mask"].bool()
        if "labels" in self.inputs:
            self.batch["labels"] = self.inputs["labels"]
        if options.get("candidates"):
            self.batch |= {"candidates": codes_of(self.size.vocab_size)}
            self.batch |= {"candidates_mask": self.inputs["labels"] != -100}

    def losses(self) -> dict[str, torch.Tensor]:
        out = self.model(**self.batch)
        losses = {"loss": out.loss, "flow loss": out.flow_loss, "token loss": out.token_loss}
        return {name: loss for name, loss in losses.items() if loss is not None}

    def chunk(self) -> dict[str, torch.Tensor]:
        return {"actions": self.model.sample_actions(self.job["steps"], self.inputs["noise"], **self.batch)}


class KIVLAAsPI0(KIVLA):
    """KIVLA configured as π0, with the weights of `PI0`."""

    def prepare(self) -> None:
        from . import pi0

        self.pi0 = pi0

    def build(self) -> None:
        from .rivals import size_of

        size, rows = size_of(self.job["size"]), len(self.inputs["input_ids"])
        theirs = self.pi0.pi0_model(size)
        self.model = self.pi0.as_kivla(theirs, size)
        self.model.config.backbone_gradient_scale = 1.0
        self.batch = self.pi0.pi0_inputs(size, rows)[0]
        if self.job["what"] == "step":
            self.batch |= _draws(self.inputs) | {"expert_attention_mask": self.batch["attention_mask"].bool()}
        self.names = {"action_out_proj.weight": self.model.expert.action_out_proj.weight}


class PI0(Side):
    """transformers' `PI0ForConditionalGeneration`."""

    prepare = KIVLAAsPI0.prepare

    def build(self) -> None:
        from .rivals import size_of

        size, rows = size_of(self.job["size"]), len(self.inputs["input_ids"])
        self.model = self.pi0.pi0_model(size)
        self.batch = self.pi0.pi0_inputs(size, rows)[1]
        if self.job["what"] == "step":
            self.batch |= _draws(self.inputs)
        self.names = {"action_out_proj.weight": self.model.action_out_proj.weight}

    def losses(self) -> dict[str, torch.Tensor]:
        return {"loss": self.model(**self.batch).loss}

    def chunk(self) -> dict[str, torch.Tensor]:
        noise = self.inputs["noise"]
        return {"actions": self.model.sample_actions(num_steps=self.job["steps"], noise=noise, **self.batch)}


class LeRobot(Side):
    """`PI05Pytorch`. Its sizes are constants: they are replaced by the race's, and nothing else is."""

    def prepare(self) -> None:
        from lerobot.policies.pi05 import modeling_pi05

        self.code = modeling_pi05

    def build(self) -> None:
        size, code = self.size, self.code
        variants = {
            "gemma_2b": (size.hidden_size, size.intermediate_size),
            "gemma_300m": (size.expert_hidden_size, size.expert_intermediate_size),
        }

        def variant(name: str):
            width, mlp = variants[name]
            return code.GemmaConfig(width, size.num_layers, mlp, 8, 1, size.head_dim)

        def paligemma(make, config):
            vision = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
            for name, value in zip(vision, size.vision, strict=True):
                setattr(config.vision_config, name, value)
            config.vision_config.projection_dim = config.projection_dim = size.hidden_size
            config.text_config.vocab_size = size.vocab_size
            return make(config)

        def expert(make, config):
            config.vocab_size = size.vocab_size
            return make(config)

        code.get_gemma_config = variant
        names = {"PaliGemmaForConditionalGenerationWithPiGemma": paligemma, "PiGemmaForCausalLM": expert}
        for name, sized in names.items():
            make = getattr(code, name)
            setattr(code, name, lambda config, make=make, sized=sized: sized(make, config))
        options = self.job["options"]
        mode = {"compile_mode": options["compile_mode"]} if "compile_mode" in options else {}
        config = code.PI05Config(
            chunk_size=size.chunk_size,
            n_action_steps=size.chunk_size,
            max_action_dim=self.inputs["noise"].shape[-1],
            image_resolution=(size.image_size, size.image_size),
            device="cpu",
            compile_model=bool(mode),
            **mode,
        )
        self.model = code.PI05Pytorch(config)
        heads = ("paligemma_with_expert.paligemma.lm_head", "paligemma_with_expert.gemma_expert.lm_head")
        self.read_weights(missing=heads)
        tokens = self.prompt()
        shown = [torch.ones(len(tokens), dtype=torch.bool)] * len(self.images())
        self.observation = (self.images(), shown, tokens, torch.ones_like(tokens, dtype=torch.bool))
        if self.job["what"] == "step":
            actions, noise, time = _draws(self.inputs).values()
            self.draws = {"actions": actions, "noise": noise, "time": time}

    def losses(self) -> dict[str, torch.Tensor]:
        loss = self.model(*self.observation, **self.draws).mean()
        return {"loss": loss, "flow loss": loss}

    def chunk(self) -> dict[str, torch.Tensor]:
        noise = self.inputs["noise"]
        return {"actions": self.model.sample_actions(*self.observation, noise=noise, num_steps=self.job["steps"])}


class OpenTau(Side):
    """`PI05FlowMatching` with knowledge insulation, in float32 (its own choice is bfloat16), by `sdpa`.

    Action tokens have an embedding and a head of their own there: both get the rows of KIVLA's codes, which makes its
    token loss that of `action_token_softmax="action_tokens"`.
    """

    def prepare(self) -> None:
        from opentau.policies.pi05 import modeling_pi05, paligemma_with_expert
        from transformers.models.auto import CONFIG_MAPPING

        self.code, self.layers, self.mapping = modeling_pi05, paligemma_with_expert, CONFIG_MAPPING

    def build(self) -> None:
        size, code = self.size, self.code
        code._preferred_dtype = self.layers._preferred_dtype = lambda: torch.float32
        make = code.PaliGemmaWithExpertConfig

        def sized(**given):
            config = make(**given)
            heads = {"num_attention_heads": 8, "num_key_value_heads": 1, "head_dim": size.head_dim}
            shared = {"num_hidden_layers": size.num_layers, "vocab_size": size.vocab_size, **heads}
            shared["hidden_activation"] = "gelu_pytorch_tanh"
            text = {"hidden_size": size.hidden_size, "intermediate_size": size.intermediate_size, **shared}
            names = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
            vision = dict(zip(names, size.vision, strict=True)) | {"model_type": "siglip_vision_model"}
            vision |= {"image_size": size.image_size, "patch_size": 14, "projection_dim": size.hidden_size}
            config.paligemma_config = self.mapping["paligemma"](
                text_config={"model_type": "gemma", **text},
                vision_config={"vision_use_head": False, **vision},
                projection_dim=size.hidden_size,
            )
            config.gemma_expert_config = self.mapping["gemma"](
                hidden_size=size.expert_hidden_size,
                intermediate_size=size.expert_intermediate_size,
                use_adarms=True,
                adarms_cond_dim=size.expert_hidden_size,
                **shared,
            )
            return config

        code.PaliGemmaWithExpertConfig = sized
        tokenizer = types.SimpleNamespace(encode=lambda text, add_special_tokens: list(INDICATOR))
        config = code.PI05Config(
            chunk_size=size.chunk_size,
            n_action_steps=size.chunk_size,
            max_action_dim=self.inputs["noise"].shape[-1],
            proj_width=size.expert_hidden_size,
            discrete_action_max_length=size.suffix_length - len(INDICATOR),
            dropout=0.0,
            freeze_vision_encoder=False,
            attention_implementation="sdpa",
            num_steps=self.job["steps"],
        )
        self.model = code.PI05FlowMatching(config, CODES, tokenizer).float()
        own = ("paligemma_with_expert.da_head", "paligemma_with_expert.discrete_action_embedding")
        self.read_weights(missing=(*own, "paligemma_with_expert.paligemma.lm_head"))
        part = self.model.paligemma_with_expert
        with torch.no_grad():
            embedding = self.names["paligemma_with_expert.paligemma.model.language_model.embed_tokens.weight"]
            rows = embedding[codes_of(size.vocab_size)]
            part.discrete_action_embedding.weight.copy_(rows * math.sqrt(size.hidden_size))
            part.da_head.weight.copy_(rows)
            part.da_head.bias.zero_()
        tokens = self.prompt()
        shown = [torch.ones(len(tokens), dtype=torch.bool)] * len(self.images())
        self.observation = (self.images(), shown, tokens, torch.ones_like(tokens, dtype=torch.bool))

    def losses(self) -> dict[str, torch.Tensor]:
        labels, (actions, noise, time) = self.inputs["labels"], _draws(self.inputs).values()
        codes = (labels[labels != -100] - codes_of(self.size.vocab_size)[0]).view(len(labels), -1)
        shown = torch.ones_like(codes, dtype=torch.bool)
        tokens = {"discrete_actions": codes, "discrete_action_masks": shown}
        out = self.model(*self.observation, actions, noise=noise, time=time, **tokens)
        return {"loss": out["MSE"] + out["CE"], "flow loss": out["MSE"], "token loss": out["CE"]}

    @torch.no_grad()
    def chunk(self) -> dict[str, torch.Tensor]:
        noise = self.inputs["noise"]
        nothing = torch.zeros_like(noise), torch.tensor(0)  # no actions are given, none is late
        return {"actions": self.model.sample_actions(*self.observation, *nothing, noise=noise.clone())}


SIDES = {side.__name__: side for side in (KIVLA, KIVLAAsPI0, PI0, LeRobot, OpenTau)}


# -------------------------------------------------------------------------------------------------------- stand-ins
class StandIns(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Modules of which only names are there: for what a rival imports and a race never runs (data, cameras)."""

    def __init__(self, names: list[str]):
        self.names = tuple(names)

    def find_spec(self, name, path, target=None):
        if name in self.names or name.startswith(tuple(f"{one}." for one in self.names)):
            return importlib.machinery.ModuleSpec(name, self, is_package=True)

    def create_module(self, spec):
        return _Names(spec.name)

    def exec_module(self, module):
        pass


class _Name(type):
    """A class that is also a function, a decorator and a generic: whatever an import line needs."""

    def __getattr__(cls, name: str):
        if name.startswith("__"):
            raise AttributeError(name)
        return _Name(name, (), {})

    def __getitem__(cls, item):
        return cls

    def __call__(cls, *args, **kwargs):
        return args[0] if len(args) == 1 and callable(args[0]) else cls


class _Names(types.ModuleType):
    def __getattr__(self, name: str):
        if name.startswith("__"):
            raise AttributeError(name)
        return _Name(name, (), {})


# ----------------------------------------------------------------------------------------------------------- memory
def _memory(line: str) -> int:
    """Bytes that this process holds now (`VmRSS`), or has held at most since it was asked to forget (`VmHWM`)."""
    for one in Path("/proc/self/status").read_text().splitlines():
        if one.startswith(line):
            return 1024 * int(one.split()[1])
    raise ValueError(line)


def peaks(side: Side) -> list[int]:
    """Bytes that runs need at their peak, weights included, on top of the imported libraries: of all after the first.

    A first run alone needs less: gradients are made where there were none, and what the allocator keeps is not there.
    """
    side.run()
    return [_peak(side) for _ in range(PEAKS)]


def _peak(side: Side) -> int:
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # what is free is nobody's
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak of what was before
    side.run()
    return _memory("VmHWM") - side.memory_before


def main() -> None:
    answers = sys.stdout
    sys.stdout = sys.stderr  # libraries that print must not be taken for answers
    job = json.loads(Path(sys.argv[1]).read_text())
    torch.set_num_threads(job["threads"])
    if job["stand_ins"]:
        import transformers.utils

        transformers.utils.is_torchvision_available()  # noted once: a stand-in is no torchvision
        sys.meta_path.insert(0, StandIns(job["stand_ins"]))
    side = SIDES[job["side"]](job)
    versions = {name: importlib.metadata.version(name) for name in ("torch", "transformers")}
    print(json.dumps(versions), file=answers, flush=True)
    # What else runs on the machine changes the time of one thread's work little, and that on the wall much
    clock = time.process_time if job["threads"] == 1 else time.perf_counter
    for line in sys.stdin:
        what, *rest = json.loads(line)
        if what == "run":
            start = clock()
            for _ in range(job["repeats"]):
                side.run()
            answer = (clock() - start) / job["repeats"]
        elif what == "save":
            save_file(side.results(), rest[0])
            answer = True
        else:
            answer = peaks(side)
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
