"""What makes a policy's steps compiled code: the expert alone, by `torch.compile`, or the whole policy, on a CPU."""

import os

import torch
from torch._inductor import cpp_builder
from torch._inductor.exc import InvalidCxxCompiler

from .compiled_policy import CompiledPolicy
from .module_structure import weights, why_not_compiled

KINDS = 64  # of calls to a function for which torch keeps code


class CompilingMixin:
    """`compile_expert` and `compile_policy`, for a model with an `expert`."""

    def compile_expert(self, mode: str | None = None) -> None:
        """Let `sample_actions` and training run a compiled action expert, for the life of this object: opt-in.

        The first chunk of a kind (with or without guidance, one example or several) takes up to a minute, and so does
        the first with a prompt of another length; from then on prompts of any length run the same code. On a CPU a
        chunk, the VLM's pass included, then takes 0.8 to 0.9 of the time. Actions and gradients are the same up to the
        order of sums. A CPU trains hardly faster for it: its time goes into the VLM's matrix products.
        Needs what `torch.compile` needs: on a CPU a C++ compiler. For all of the process, torch then keeps code for 64
        kinds of calls to a function and not for 8; what comes after these runs as it is.

        Args:
            mode: of `torch.compile`, on a GPU alone: "reduce-overhead" makes CUDA graphs of the expert's steps, which
                otherwise wait for Python most of the time; "max-autotune" also tries which kernels are fastest.

        Raises:
            ValueError: a mode on a CPU, where torch would ignore it; or there is no C++ compiler there.
        """
        on_cpu = self.expert.action_in_proj.weight.device.type == "cpu"
        if mode is not None and on_cpu:
            raise ValueError(
                f"compile_expert(mode={mode!r}) is for a GPU, and the expert is on the CPU: leave the mode out, or let "
                'compile_policy(options={"max_autotune": True}) try which kernels are fastest.'
            )
        if on_cpu:
            _check_compiler("compile_expert")
        config = torch._dynamo.config
        config.recompile_limit = max(config.recompile_limit, KINDS)  # it counts those of all policies together
        # The calls between kernels weigh as much as the kernels of a small model: they, too, in C++.
        options = {"cpp_wrapper": True} if on_cpu else None
        # (Not `fullgraph`, which would raise where torch keeps no more code.)
        self.expert.compile(mode=mode, options=options)

    def compile_policy(
        self, cache_dir: str | os.PathLike | None = None, options: dict | None = None, pack_weights: bool = False
    ) -> None:
        """Let `sample_actions` run compiled code for VLM and expert, for the life of this object: opt-in, for CPUs.

        Code is made when inputs of a new kind come (another number of examples or images; prompts may have any length),
        which takes a minute or some, and kept on disk: the next process loads it in a moment. Actions are the same up
        to the order of sums. Training, `generate` and RTC by guidance run as before. Needs a C++ compiler. What is
        done to the policy afterwards holds at once: it gets other code, or runs as it is, and the log says so.

        Args:
            cache_dir: where the code is kept; by default in the cache of Hugging Face.
            options: of Inductor, for instance `{"max_autotune": True}`.
            pack_weights: keep a second copy of the weights in the code, in memory and on disk, in the order in which
                this processor multiplies fastest. Other weights get other code, which takes as long again. Not seen
                are writes through `parameter.data` outside an optimiser.

        Raises:
            ValueError: the policy is not on the CPU as a whole, its weights are quantised, or it has hooks; there is no
                C++ compiler, no such option, or `cache_dir` is a file; weights to be packed are inference tensors.
        """
        devices = sorted({parameter.device.type for parameter in self.parameters()})
        if devices != ["cpu"]:
            raise ValueError(
                f"compile_policy needs the whole policy on the CPU, and it is on {', '.join(devices)}. On a GPU use "
                "compile_expert()."
            )
        if (why := why_not_compiled(self)) is not None:
            raise ValueError(f"compile_policy makes no code for this policy: {why}. Let it act as it is.")
        _check_compiler("compile_policy")
        if unknown := sorted(set(options or ()) - set(torch._inductor.list_options())):
            raise ValueError(
                f"Inductor has no option {unknown[0]!r}: torch._inductor.list_options() names all of them."
            )
        if cache_dir is not None and os.path.exists(cache_dir) and not os.path.isdir(cache_dir):
            raise ValueError(f"cache_dir is a folder for the code, and {cache_dir} is a file.")
        if pack_weights and any(x.is_inference() for _, x in weights(self)):
            raise ValueError(
                "pack_weights must see when weights change, and torch does not count writes to these: the policy was "
                "loaded in torch.inference_mode(). Load it outside."
            )
        self.compiled_policy = CompiledPolicy(cache_dir, options, pack_weights)


def _check_compiler(method: str) -> None:
    try:
        cpp_builder.get_cpp_compiler()
    except InvalidCxxCompiler as error:
        raise ValueError(
            f"{method} needs a C++ compiler on a CPU, and there is none: install one (Debian and Ubuntu: apt install "
            "g++), or name it in the environment variable CXX."
        ) from error
