import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

from kivla import KIVLAForActionPrediction
from kivla.demo.tiny_vlm import ARCHITECTURES, byte_tokenizer, make_tiny_vlm, sincos_positions, train_tokenizer
from tests.helpers.tolerance import assert_close_relative

TEXTS = ["Where is the red star?", "column 2 row 5"] * 20


def test_known_words_are_single_tokens_and_any_text_survives():
    tokenizer = train_tokenizer(TEXTS)
    assert len(tokenizer("Where is the red star?")["input_ids"]) == 6
    strange = "Ünknown wörds, 0.25\n\tand 日本"
    for each in (tokenizer, byte_tokenizer()):
        assert each.decode(each(strange)["input_ids"]) == strange


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_each_is_an_ordinary_vlm_folder(architecture, tmp_path):
    try:
        model, processor = make_tiny_vlm(
            architecture, train_tokenizer(TEXTS), image_size=32, hidden_size=32, num_layers=2, num_vision_layers=1
        )
    except ImportError as error:  # transformers 5.17 has no Idefics3 without torchvision
        pytest.skip(str(error))
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    loaded = AutoModelForImageTextToText.from_pretrained(tmp_path)
    reader = AutoProcessor.from_pretrained(tmp_path)
    assert type(loaded) is type(model)
    text = f"<bos>{reader.image_token}<user>Where is the red star?<assistant>"
    batch = reader(text=[text], images=[[Image.new("RGB", (32, 32))]], return_tensors="pt")
    image_tokens = (batch["input_ids"] == loaded.config.image_token_id).sum().item()
    assert image_tokens == 16, "(32 / 8)² tokens for an image"
    with torch.no_grad():
        expected, found = model.eval()(**batch).logits, loaded(**batch).logits
    assert_close_relative(found, expected, what="logits")
    policy = KIVLAForActionPrediction.from_vlm(tmp_path, expert_config={"hidden_size": 32, "intermediate_size": 48})
    assert len(policy.config.kv_layers) == 2


def test_weights_follow_from_the_seed():
    sizes = {"image_size": 16, "hidden_size": 32, "num_layers": 1, "num_vision_layers": 1}
    first, second, other = (make_tiny_vlm("llava", train_tokenizer(TEXTS), **sizes, seed=s)[0] for s in (1, 1, 2))
    weights = [dict(model.named_parameters()) for model in (first, second, other)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert not all(torch.equal(weights[0][name], weights[2][name]) for name in weights[0])


def test_positions_tell_column_from_row_and_are_of_ordinary_size():
    positions = sincos_positions(6, 64).reshape(6, 6, 64)
    assert torch.equal(positions[0, 3, :32], positions[5, 3, :32]), "the first half knows the column alone"
    assert torch.equal(positions[3, 0, 32:], positions[3, 5, 32:]), "the second half knows the row alone"
    assert len(positions.flatten(0, 1).unique(dim=0)) == 36
    assert positions.square().mean().sqrt() == pytest.approx(0.5**0.5, rel=1e-4)


def test_impossible_sizes_are_refused():
    with pytest.raises(ValueError, match="no architecture 'llama'"):
        make_tiny_vlm("llama", byte_tokenizer())
    with pytest.raises(ValueError, match="patches must fill the image"):
        make_tiny_vlm("llava", byte_tokenizer(), image_size=50)
