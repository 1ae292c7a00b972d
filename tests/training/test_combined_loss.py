"""The combined loss L_CO-VLA of the paper, written out in numpy from its formula."""

import numpy as np
import torch

from kivla import KIVLACollator, LeRobotDataset
from tests.helpers.policies import CHUNK, DATASET, dataset, make_policy
from tests.helpers.tolerance import assert_close_relative


def test_the_loss_of_the_three_kinds_is_the_papers(tmp_path):
    """-Σ_j M^ℓ_j log p(x_{j+1} | x_{≤j}) / Σ M^ℓ  +  α Σ M^act ‖velocity - (noise - actions)‖² / Σ M^act.

    A demonstration with a sub-task to say, one without words, and a question; the second runs over its episode's end.
    """
    model, processor = make_policy(tmp_path, flow_loss_weight=0.7)
    model.resize_token_embeddings(processor.vocab_size)
    last = len(LeRobotDataset(DATASET, CHUNK, episodes=[0])) - 1  # of the first episode
    examples = [
        {**dataset()[0], "response": "go to the drawer"},
        {**dataset()[last - 2], "text": ""},
        {"images": dataset()[0]["images"], "text": "what is it?", "response": "a drawer"},
    ]
    batch = KIVLACollator(processor)(examples)
    generator = torch.Generator().manual_seed(0)
    noise, time = torch.randn(3, CHUNK, 5, generator=generator), torch.tensor([0.2, 0.5, 0.9])
    with torch.no_grad():
        out = model(**batch, noise=noise, timestep=time)
        ours = ("labels", "expert_attention_mask", "actions", "action_mask")
        logits = model.vlm(**{name: values for name, values in batch.items() if name not in ours}).logits

    # M^ℓ: the words and action tokens of each example's suffix, and the end of the turn. Nothing of a prompt.
    ids, mask = batch["input_ids"].numpy(), batch["attention_mask"].numpy().astype(bool)
    suffixes = []
    for example in examples:
        words = example.get("response", "")
        words = processor.tokenizer(words, add_special_tokens=False)["input_ids"]
        codes = []
        if "actions" in example:
            ((codes),) = processor.action_tokenizer.encode(
                processor.robot().actions.normalize(example["actions"])[None]
            )
        suffixes.append([*words, *processor.action_token_ids[codes].tolist(), processor.tokenizer.eos_token_id])
    total, count = 0.0, 0
    for i, suffix in enumerate(suffixes):
        length = mask[i].sum()
        assert ids[i, length - len(suffix) : length].tolist() == suffix
        scores = logits[i].double().numpy()
        log_p = scores - np.log(np.exp(scores - scores.max(-1, keepdims=True)).sum(-1, keepdims=True))
        log_p -= scores.max(-1, keepdims=True)
        for j in range(length - len(suffix), length):
            total -= log_p[j - 1, ids[i, j]]
            count += 1
    token_loss = total / count

    # M^act: real steps and dimensions of the two demonstrations; the question has none.
    squares, values = 0.0, 0
    for i, example in enumerate(examples[:2]):
        actions = processor.robot().actions.normalize(example["actions"])
        for step in range(CHUNK):
            if example["action_is_pad"][step]:
                continue
            for d in range(4):
                target = noise[i, step, d].item() - actions[step, d]
                squares += (out.velocity[i, step, d].item() - target) ** 2
                values += 1
    assert values == 4 * (CHUNK + 3), "the second demonstration has three real steps"
    flow_loss = squares / values
    assert_close_relative(out.token_loss, token_loss, roundings=16, dtype=torch.float32, what="token loss")
    assert_close_relative(out.flow_loss, flow_loss, roundings=16, dtype=torch.float32, what="flow loss")
    assert_close_relative(out.loss, token_loss + 0.7 * flow_loss, roundings=16, dtype=torch.float32, what="loss")
