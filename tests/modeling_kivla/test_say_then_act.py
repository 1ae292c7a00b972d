"""A policy that was taught to say what it does, and then to do it, acts by tokens in this order."""

import copy

import numpy as np
import pytest
import torch

from kivla import ActionPredictionPipeline, BinningActionTokenizer, ChunkExecutor, KIVLAProcessor, KIVLATrainer
from kivla.training.arguments import KIVLATrainingArguments
from tests.helpers.policies import dataset, make_policy
from tests.helpers.tolerance import assert_close_relative
from tests.processing.test_processing_kivla import CHUNK, TRAJECTORIES, WIDTH, columns, image, make, policy

EXAMPLES = [
    {"images": [image(i)], "text": text, "state": np.zeros(2), "response": response, "actions": TRAJECTORIES[i]}
    for i, (text, response) in enumerate((("tidy up", "grasp the cup"), ("cook", "open it")))
]
OBSERVATIONS = [{key: example[key] for key in ("images", "text", "state")} for example in EXAMPLES]


@pytest.fixture(scope="module")
def taught():
    """A tiny policy that knows two examples by heart."""
    processor = make("paligemma", action_tokenizer=BinningActionTokenizer(16), responds_first=True)
    model = copy.deepcopy(policy("paligemma"))
    batch = processor(**columns(*EXAMPLES))
    optimizer = torch.optim.AdamW(model.vlm.parameters(), lr=5e-3)
    for _ in range(100):
        loss = model(**batch).token_loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.05, f"the policy has not learned its examples: {loss}"
    return model, processor


def chunks(processor) -> list[np.ndarray]:
    normalized = [processor.robot().actions.normalize(example["actions"]) for example in EXAMPLES]
    return processor.action_tokenizer.decode(processor.action_tokenizer.encode(normalized), CHUNK, WIDTH)


@pytest.mark.parametrize("reads", [False, True])
def test_it_says_and_then_acts(taught, reads):
    model, processor = taught
    processor.expert_reads_response = reads
    inputs = processor(**columns(*OBSERVATIONS))
    for use_cache in (True, False):
        own = model.generate_actions(processor, **inputs, use_cache=use_cache)
        assert_close_relative(np.stack(own), np.stack(chunks(processor)), roundings=16, dtype=torch.float32)
    given = processor(**columns(*OBSERVATIONS), given_response=[example["response"] for example in EXAMPLES])
    told = np.stack(model.generate_actions(processor, **given))
    assert_close_relative(told, np.stack(chunks(processor)), roundings=16, dtype=torch.float32)
    for chunk in model.generate_actions(processor, **inputs, max_response_tokens=0):
        assert chunk.shape == (CHUNK, WIDTH), "forced at once: still a chunk"
    for chunk in model.generate_actions(processor, **inputs, max_response_tokens=1):
        assert chunk.shape == (CHUNK, WIDTH), "interrupted: still a chunk"


@pytest.mark.parametrize("reads", [False, True])
def test_every_door_says_what_it_does(taught, reads):
    model, processor = taught
    processor.expert_reads_response = reads
    pipe = ActionPredictionPipeline(model=model, processor=processor)
    expected = processor.unnormalize_actions(np.stack(chunks(processor)))
    for result, example, actions in zip(pipe(OBSERVATIONS, acts_by="tokens"), EXAMPLES, expected, strict=True):
        assert result["response"] == example["response"]
        assert_close_relative(result["actions"], actions, roundings=16, dtype=torch.float32)
    brought = pipe({**OBSERVATIONS[0], "response": "open it"}, acts_by="tokens")
    assert brought["response"] == "open it"
    by_default = ActionPredictionPipeline(model=model, processor=processor, acts_by="tokens")(OBSERVATIONS[0])
    assert by_default["response"] == EXAMPLES[0]["response"]
    step = ChunkExecutor(pipe, acts_by="tokens")(OBSERVATIONS[1])
    assert_close_relative(step, expected[1][0], roundings=16, dtype=torch.float32)
    assert ("response" in pipe(OBSERVATIONS[0], acts_by="flow")) == reads, "the expert needs words if it reads them"


def test_others_act_at_once(taught):
    """Nobody taught them to speak: no words, whatever the VLM would like to say."""
    model, processor = taught
    silent = make("paligemma", action_tokenizer=BinningActionTokenizer(16))
    inputs = silent(**columns(*OBSERVATIONS))
    assert silent.action_constraint(3, [WIDTH]).max_response_tokens == 0
    np.testing.assert_array_equal(
        model.generate_actions(silent, **inputs), model.generate_actions(processor, **inputs, max_response_tokens=0)
    )
    assert "response" not in ActionPredictionPipeline(model=model, processor=silent)(OBSERVATIONS[0], acts_by="tokens")


@pytest.mark.parametrize("responds", [True, False])
def test_the_trainer_finds_out(responds, tmp_path):
    """From what is taught; and it is saved with the policy."""
    model, processor = make_policy(tmp_path / "vlm")
    examples = [dict(dataset()[i]) for i in range(4)]
    if responds:
        examples[3]["response"] = "go left"
    examples.append({"images": examples[0]["images"], "text": "Where is it?", "response": "left"})
    arguments = KIVLATrainingArguments(
        tmp_path / "run",
        max_steps=1,
        per_device_train_batch_size=5,
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
        dataloader_num_workers=1,
    )
    KIVLATrainer(model, arguments, train_dataset=examples, processing_class=processor).train()
    assert processor.responds_first == responds
    assert KIVLAProcessor.from_pretrained(tmp_path / "run" / "checkpoint-1").responds_first == responds
