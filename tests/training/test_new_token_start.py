"""Where new action tokens begin, on the tabletop's VLM, which is sure of its few words."""

import pytest
import torch

from kivla import KIVLACollator, KIVLAForActionPrediction, KIVLAProcessor
from kivla.named_models import TABLETOP_VLM
from kivla.training.new_token_start import aim_new_tokens
from tests.helpers.policies import SIZES, _action_tokenizer, dataset


def test_new_tokens_are_likely_where_they_are_said_and_only_there():
    options = {"action_tokenizer": _action_tokenizer(), "statistics": dataset().statistics}
    processor = KIVLAProcessor.from_vlm(TABLETOP_VLM, **options, cameras=dataset().cameras, **SIZES)
    torch.manual_seed(0)
    expert = {"hidden_size": 32, "intermediate_size": 64}
    model = KIVLAForActionPrediction.from_vlm(TABLETOP_VLM, expert_config=expert, **SIZES).eval()
    model.resize_token_embeddings(processor.vocab_size)
    before, collator = model.get_output_embeddings().weight.detach().clone(), KIVLACollator(processor)
    ids = torch.as_tensor(processor.action_token_ids)
    held_out = collator([dataset()[i] for i in range(5, 180, 25)])

    is_other = held_out["attention_mask"][:, :-1].bool() & ~torch.isin(held_out["labels"][:, 1:], ids)
    observation = {name: held_out[name] for name in ("input_ids", "attention_mask", "pixel_values")}

    @torch.no_grad()
    def measured() -> tuple[float, float]:
        """Token loss; and the probability of action tokens where none comes next."""
        logits = model.vlm(**observation).logits[:, :-1][is_other]
        return float(model(**held_out).token_loss), float(logits.softmax(-1)[:, ids].sum(-1).mean())

    loss, _ = measured()
    aim_new_tokens(model, [collator([dataset()[i] for i in range(0, 180, 12)])], ids)
    aimed, elsewhere = measured()
    assert aimed < loss - 5, (loss, aimed)
    assert elsewhere < 0.1, elsewhere
    after = model.get_output_embeddings().weight
    old = torch.ones(len(before), dtype=torch.bool).index_fill_(0, ids, False)
    assert torch.equal(after[old], before[old]) and not torch.equal(after[ids], before[ids])
    with pytest.raises(ValueError, match="These batches teach no action token"):
        question = {"images": dataset()[0]["images"], "text": "what is it?", "response": "a drawer"}
        aim_new_tokens(model, [collator([question])], ids)
