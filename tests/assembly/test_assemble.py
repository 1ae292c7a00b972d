"""`kivla assemble-vlm`: a language model and a vision tower become a VLM, and a text's logits stay what they were."""

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoProcessor,
    AutoTokenizer,
    CLIPImageProcessor,
    CLIPVisionConfig,
    CLIPVisionModel,
    CohereConfig,
    ConvNextConfig,
    ConvNextModel,
    LlamaConfig,
    Qwen2Config,
)

from kivla.cli import main
from kivla.command_line import Refused
from kivla.demo.tiny_vlm import byte_tokenizer
from kivla.named_models import TABLETOP_VLM
from kivla.simulation import make_questions
from kivla.training.evaluation.vlm_answers import ask, chat_text

SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
CHAT = (
    "{% for message in messages %}[{{ message['role'] }}]{{ message['content'] }}<eos>{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)
TEXT = "The red star lies on the table."


def save_text_model(folder, config_class=LlamaConfig, chat_template=CHAT, spare_rows=0, **options) -> str:
    """A language model, and a tokenizer that knows no image."""
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = chat_template
    torch.manual_seed(0)
    ids = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "num_key_value_heads": 1}
    config = config_class(vocab_size=len(tokenizer) + spare_rows, **SIZES, **ids, **options)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def save_clip(folder) -> str:
    sizes = {**SIZES, "image_size": 32, "patch_size": 8}
    CLIPVisionModel(CLIPVisionConfig(**sizes)).save_pretrained(folder)
    CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}).save_pretrained(folder)
    return str(folder)


def assemble(folder, *options: str):
    main(["assemble-vlm", str(folder), *options])
    return AutoModelForImageTextToText.from_pretrained(folder).eval(), AutoProcessor.from_pretrained(folder)


@pytest.mark.parametrize(
    "text_model",
    [
        {"tie_word_embeddings": True},
        {"tie_word_embeddings": False},
        {"config_class": Qwen2Config, "spare_rows": 64},  # <image> takes one of the rows that no token has
    ],
    ids=["tied", "untied", "spare rows"],
)
@torch.no_grad()
def test_logits_of_a_text_are_those_of_the_language_model(tmp_path, text_model):
    name = save_text_model(tmp_path / "text", **text_model)
    language_model = AutoModelForCausalLM.from_pretrained(name).eval()
    ids = AutoTokenizer.from_pretrained(name)(TEXT, return_tensors="pt")["input_ids"]
    expected = language_model(ids).logits
    vlm, processor = assemble(tmp_path / "vlm", "--text_model", name, "--vision_tower", str(TABLETOP_VLM))
    assert torch.equal(processor.tokenizer(TEXT, return_tensors="pt")["input_ids"], ids)
    torch.testing.assert_close(vlm(input_ids=ids).logits[..., : expected.shape[-1]], expected)
    assert vlm.get_input_embeddings().num_embeddings > vlm.config.image_token_id
    # A new class of the softmax may take no more than the mean one has.
    cost = vlm(input_ids=ids).logits.logsumexp(-1) - expected.logsumexp(-1)
    assert cost.max() <= 1 / len(processor.tokenizer) + 1e-6


@pytest.mark.parametrize("tower", ["tabletop", "clip"])
def test_it_sees_and_answers(tmp_path, tower):
    """Of CLIP the class token is left out."""
    towers = {"tabletop": str(TABLETOP_VLM), "clip": save_clip(tmp_path / "clip")}
    text = save_text_model(tmp_path / "text")
    vlm, processor = assemble(tmp_path / "vlm", "--text_model", text, "--vision_tower", towers[tower])
    questions = make_questions(2, seed=0)
    pictures = processor.image_processor([row["images"][0] for row in questions.select([0, 6])], return_tensors="pt")
    features = torch.stack(list(vlm.get_image_features(pictures["pixel_values"]).pooler_output))
    assert features.shape[1] == vlm.config.image_seq_length == {"tabletop": 36, "clip": 16}[tower]
    assert not torch.equal(features[0], features[1])
    words = vlm.get_input_embeddings().weight
    assert 0.5 < features.square().mean().sqrt() / words.square().mean().sqrt() < 2, "not of the words' size"
    assert len(ask(vlm, processor, questions.select(range(3)), max_new_tokens=2)) == 3
    expected = f"[user]<image>{questions[0]['messages'][0]['content'][1]['text']}<eos>[assistant]"
    assert chat_text(processor, questions[0]["messages"][:1]) == expected


def test_the_towers_own_weights_and_chat_of_plain_words(tmp_path):
    text = save_text_model(tmp_path / "text")
    vlm, processor = assemble(tmp_path / "vlm", "--text_model", text, "--vision_tower", str(TABLETOP_VLM))
    given = AutoModelForImageTextToText.from_pretrained(TABLETOP_VLM, dtype="float32").model.vision_tower.state_dict()
    found = vlm.model.vision_tower.state_dict()
    assert found.keys() == given.keys() and all(torch.equal(found[name], given[name]) for name in given)
    words = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"}]
    prompt = processor.apply_chat_template(words, tokenize=False, add_generation_prompt=True)
    assert prompt == "[system]Be brief.<eos>[user]Hello<eos>[assistant]"


def test_another_chat_template(tmp_path):
    text = save_text_model(tmp_path / "text", chat_template=None)
    options = ["--text_model", text, "--vision_tower", str(TABLETOP_VLM)]
    assert assemble(tmp_path / "plain", *options)[1].chat_template is None
    (tmp_path / "chat.jinja").write_text(CHAT)
    _, processor = assemble(tmp_path / "chat", *options, "--chat_template", str(tmp_path / "chat.jinja"))
    assert chat_text(processor, make_questions(1, seed=0)[0]["messages"][:1]).startswith("[user]<image>")


def test_refused_by_name(tmp_path):
    text, tower = save_text_model(tmp_path / "text"), str(TABLETOP_VLM)
    scaled = save_text_model(tmp_path / "cohere", CohereConfig)
    ConvNextModel(ConvNextConfig(hidden_sizes=[8, 8, 8, 8], depths=[1, 1, 1, 1])).save_pretrained(tmp_path / "convnext")
    CLIPImageProcessor().save_pretrained(tmp_path / "convnext")
    for text_model, vision_tower, reason in (
        (tower, tower, "more than a language model"),
        (scaled, tower, "more to its logits than one matrix"),
        (text, str(tmp_path / "convnext"), "ConvNextModel makes features of shape"),
    ):
        with pytest.raises(Refused, match=reason):
            main(["assemble-vlm", str(tmp_path / "vlm"), "--text_model", text_model, "--vision_tower", vision_tower])


def test_gguf_weights(tmp_path):
    """A file as converters write it."""
    gguf = pytest.importorskip("gguf")
    name = save_text_model(tmp_path / "text", Qwen2Config, spare_rows=1, tie_word_embeddings=True)
    model, tokenizer = AutoModelForCausalLM.from_pretrained(name).eval(), byte_tokenizer()
    (tmp_path / "gguf").mkdir()
    writer = gguf.GGUFWriter(tmp_path / "gguf" / "text.gguf", "qwen2")
    writer.add_block_count(2)
    writer.add_context_length(model.config.max_position_embeddings)
    writer.add_embedding_length(32)
    writer.add_feed_forward_length(48)
    writer.add_head_count(2)
    writer.add_head_count_kv(1)
    writer.add_layer_norm_rms_eps(model.config.rms_norm_eps)
    writer.add_rope_freq_base(model.config.rope_parameters["rope_theta"])
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list([*tokenizer.convert_ids_to_tokens(range(len(tokenizer))), "!!"])
    writer.add_token_types([3] * 3 + [1] * (len(tokenizer) - 2))  # control tokens, and words
    writer.add_token_merges(["! !"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_chat_template(CHAT)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.QWEN2, 2)
    for weight, tensor in model.state_dict().items():
        if weight != "lm_head.weight":
            writer.add_tensor(names.get_name(weight, try_suffixes=(".weight", ".bias")), tensor.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    options = ["--text_model", str(tmp_path / "gguf"), "--gguf_file", "text.gguf", "--vision_tower", str(TABLETOP_VLM)]
    vlm, processor = assemble(tmp_path / "vlm", *options)
    ids = tokenizer(TEXT, return_tensors="pt")["input_ids"]
    assert torch.equal(processor.tokenizer(TEXT, return_tensors="pt")["input_ids"], ids)
    torch.testing.assert_close(vlm(input_ids=ids).logits[..., : len(tokenizer) + 1], model(ids).logits)
