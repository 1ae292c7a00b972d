"""Would guesses save passes of a VLM that says action tokens? `python -m benchmarks.drafts POLICY`

A guess of the next codes can be checked in one pass: those that are what the VLM would have said are kept, and one code
of its own comes with every pass, so that the chunk is exactly the one that is said code by code. Here a trained policy
acts by tokens on the tabletop, and for each of its chunks the passes are counted that it would take with guesses from

* the policy's own expert: its chunk, in codes;
* the chunk before: what is left of it, its last action repeated, in codes;
* all chunks before: what followed most often after the codes that were said;
* the VLM itself: it guesses eight codes at once, and corrects them at every pass (Jacobi decoding).

The first pass is the prompt's, and says the first code.
"""

import argparse
import json
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch
from transformers import pipeline

from kivla.demo.stages import EVALUATION_SEED
from kivla.modeling_kivla.generation_kivla import ChunkComplete
from kivla.simulation import TabletopVectorEnv
from kivla.simulation.rollout import Acting, PipelinePolicy, rollout
from kivla.simulation.tabletop.tasks import TASK_KINDS

from .options import count
from .timing import interleaved

WIDTH = 8  # codes that the VLM guesses at once
Guess = Callable[[Sequence[int]], Sequence[int]]  # codes that were said -> codes that may follow

NOTHING, EXPERT, BEFORE, ALL_BEFORE, ITSELF = (
    "none: code by code",
    "the expert's chunk",
    "the chunk before",
    "all chunks before",
    "the VLM itself",
)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.drafts", description=__doc__.split("\n")[0])
    parser.add_argument("policy", help="trained policy whose VLM says action tokens: a folder or a Hub id")
    parser.add_argument("--num_episodes", type=count, default=60)
    parser.add_argument("--kinds", nargs="+", choices=TASK_KINDS, default=["touch"], help="of task; touch")
    parser.add_argument("--repetitions", type=count, default=20, help="of what is timed; 20")
    parser.add_argument("--output", type=Path, default=Path("outputs/drafts.json"), help="where the numbers go")
    args = parser.parse_args(arguments)

    pipe = pipeline("action-prediction", model=args.policy)
    policy = NotedPolicy(pipe)
    env = TabletopVectorEnv(args.num_episodes, kinds=args.kinds)
    seeds = range(EVALUATION_SEED, EVALUATION_SEED + args.num_episodes)
    # "rtc" without a delay acts as it always does, and shows the policy what is left of its last chunk.
    episodes = rollout(policy, env, seeds, pipe.processor.chunk_size // 2, env.max_steps, acting=Acting("rtc"))
    report = {
        "policy": args.policy,
        "kinds": args.kinds,
        "chunks": len(policy.passes[NOTHING]),
        "success": float(episodes.success.mean()),
        "passes": policy.passes,
        "seconds": timed(pipe, policy.observations, args.repetitions),
    }
    print(as_markdown(report))
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.write_text(json.dumps(report, indent=2) + "\n")


class NotedPolicy(PipelinePolicy):
    """Acts by tokens, and notes for each chunk how many passes it would take with each guess.

    Attributes:
        passes: of each guess, one number for each chunk; None for the first chunk of an episode, before which is none.
        observations: some that were seen.
    """

    def __init__(self, pipe):
        super().__init__(pipe, acts_by="tokens")
        self.passes = {name: [] for name in (NOTHING, EXPERT, BEFORE, ALL_BEFORE, ITSELF)}
        self.observations: list[dict] = []
        self._followed: dict[tuple, Counter] = defaultdict(Counter)

    def __call__(self, observations: list[dict]) -> np.ndarray:
        rests = [observation.pop("previous_actions", None) for observation in observations]
        observations = [{k: v for k, v in observation.items() if k != "delay"} for observation in observations]
        processor = self.pipe.processor
        with patch.object(processor, "decode_actions", wraps=processor.decode_actions) as decode:
            chunks = super().__call__(observations)
        code_of = {token: code for code, token in enumerate(processor.action_token_ids.tolist())}
        said = [[code_of[t] for t in row.tolist() if t in code_of] for row in decode.call_args.args[0]]
        placed = [self._placed(observation) for observation in observations]
        self.observations = (self.observations + placed)[:8]
        drawn = self.pipe(placed, acts_by="flow", seed=0)
        for codes, rest, observation, flow in zip(said, rests, placed, drawn, strict=True):
            self._note(codes, rest, observation, flow["actions"])
        return chunks

    def _note(self, codes: list[int], rest: np.ndarray | None, observation: dict, flow: np.ndarray) -> None:
        """Count the passes of one chunk."""
        self.passes[NOTHING].append(len(codes))
        self.passes[EXPERT].append(passes(codes, self._of_chunk(flow)))
        if rest is not None:
            rest = np.concatenate([rest, np.repeat(rest[-1:], len(flow) - len(rest), axis=0)])
        self.passes[BEFORE].append(None if rest is None else passes(codes, self._of_chunk(rest)))
        self.passes[ALL_BEFORE].append(passes(codes, self._most_often))
        self.passes[ITSELF].append(self._jacobi(codes, observation))
        for i, code in enumerate(codes):
            self._followed[tuple(codes[:i])][code] += 1

    def _of_chunk(self, actions: np.ndarray) -> Guess:
        """The codes of a chunk (H, D) in robot units, from where as many values have been said."""
        tokenizer = self.pipe.processor.action_tokenizer
        values = tokenizer.grammar().values
        (codes,) = tokenizer.encode([self.pipe.processor.normalize_actions(actions)])
        ends = [0, *np.cumsum(values[codes]).tolist()]

        def guess(said: Sequence[int]) -> Sequence[int]:
            num_values = int(values[list(said)].sum())
            return codes[ends.index(num_values) :] if num_values in ends else []

        return guess

    def _most_often(self, said: Sequence[int]) -> Sequence[int]:
        guessed: list[int] = []
        while followed := self._followed.get((*said, *guessed)):
            guessed.append(followed.most_common(1)[0][0])
        return guessed

    @torch.no_grad()
    def _jacobi(self, codes: list[int], observation: dict) -> int:
        """Passes until the VLM, which corrects its own guesses, has said these codes."""
        processor, model = self.pipe.processor, self.pipe.model.eval()
        inputs = processor(**{name: [observation.get(name)] for name in ("images", "text", "state")})
        prompt = {name: inputs[name] for name in ("input_ids", "attention_mask", "pixel_values")}
        length = prompt["input_ids"].shape[1]
        constraint = processor.action_constraint(length, [processor.action_dim], 0)
        ids = torch.as_tensor(processor.action_token_ids)
        wanted = ids[codes].tolist()
        said, guessed, count = 0, [int(ids[0])] * WIDTH, 0
        while said < len(wanted):
            count += 1
            tokens = torch.tensor([wanted[:said] + guessed])
            sequence = torch.cat([prompt["input_ids"], tokens], dim=1)
            mask = torch.cat([prompt["attention_mask"], torch.ones_like(tokens)], dim=1)
            logits = model.vlm(**{**prompt, "input_ids": sequence, "attention_mask": mask}, use_cache=False).logits
            own = [
                int(constraint(sequence[:, :i], logits[:, i - 1].float()).argmax())
                for i in range(length + said, sequence.shape[1] + 1)
            ]
            right = 0
            while right < WIDTH and said + right < len(wanted) and guessed[right] == wanted[said + right]:
                right += 1
            said += right + 1
            guessed = (own[right + 1 :] + [int(ids[0])] * WIDTH)[:WIDTH]
        return count


def passes(codes: Sequence[int], guess: Guess) -> int:
    """How many passes it takes to say some codes, where each is preceded by a guess."""
    said = count = 1
    while said < len(codes):
        guessed, right = guess(codes[:said]), 0
        while right < len(guessed) and list(codes[said + right : said + right + 1]) == [guessed[right]]:
            right += 1
        said, count = said + right + 1, count + 1
    return count


def timed(pipe, observations: list[dict], repetitions: int) -> dict[str, list[float]]:
    """Seconds for one chunk of each observation, one by one."""

    def to_the_end():
        with patch.object(ChunkComplete, "__call__", lambda _, ids, *__, **___: ids[:, 0] < 0):
            return [pipe(observation, acts_by="tokens") for observation in observations]

    calls = {
        "by tokens": lambda: [pipe(observation, acts_by="tokens") for observation in observations],
        "by tokens, with a pass for the end of the turn": to_the_end,
        "by flow": lambda: [pipe(observation, acts_by="flow", seed=0) for observation in observations],
    }
    seconds = interleaved("A chunk", calls, repetitions)
    return {name: [value / len(observations) for value in values] for name, values in seconds.items()}


def as_markdown(report: dict) -> str:
    lines = [
        f"{report['chunks']} chunks ({', '.join(report['kinds'])}; success {report['success']:.0%}).",
        "",
        "| guesses | passes for a chunk | of code by code |",
        "|---|--:|--:|",
    ]
    alone = report["passes"][NOTHING]
    for name, counts in report["passes"].items():
        both = [(count, own) for count, own in zip(counts, alone, strict=True) if count is not None]
        ours, theirs = np.mean(both, axis=0)
        lines.append(f"| {name} | {ours:.2f} | {ours / theirs:.2f} |")
    lines += ["", "| a chunk | ms | of by tokens |", "|---|--:|--:|"]
    by_tokens = report["seconds"]["by tokens"]
    for name, seconds in report["seconds"].items():
        ratio = np.median(np.divide(seconds, by_tokens))
        lines.append(f"| {name} | {1e3 * np.median(seconds):.1f} | {ratio:.2f} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
