"""What callers of a Hugging Face model may give `forward`, `generate` and the config: honoured, or refused by name."""

import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForImageTextToText, Trainer, TrainingArguments

from kivla.modeling_kivla import KIVLAConfig, KIVLAForActionPrediction
from tests.helpers.families import FAMILIES, drop_suffix, make_example
from tests.helpers.tolerance import assert_close_relative, assert_gradients_close
from tests.modeling_kivla.test_contract import backbone_gradients, policy, training_batch
from tests.modeling_kivla.test_modeling import CHUNK, EXPERT, WIDTH, make_batch, make_config, make_model


def drawn(batch: dict) -> dict:
    """The batch with noise and times, so that two passes are the same."""
    rows, generator = len(batch["actions"]), torch.Generator().manual_seed(5)
    noise = torch.randn(batch["actions"].shape, generator=generator)
    return {**batch, "noise": noise, "timestep": torch.rand(rows, generator=generator)}


# ------------------------------------------------------------------------------------------------------ arguments
def test_the_first_argument_is_input_ids():
    model, batch = make_model(), drawn(make_batch())
    ids = batch.pop("input_ids")
    with torch.no_grad():
        assert torch.equal(model(ids, **batch).loss, model(input_ids=ids, **batch).loss)
        text = torch.arange(20, 26)[None]
        assert torch.equal(model(text).logits, model.vlm(text).logits)


@pytest.mark.parametrize("name", ["llava", "paligemma", "gemma3"])
def test_embeddings_in_place_of_ids(name):
    model, batch = make_model(name), drawn(make_batch(name))
    batch.pop("pixel_values")
    batch["input_ids"] = batch["input_ids"].clamp(max=199)  # words only: a picture's place is found by its id
    with torch.no_grad():
        expected = model(**batch)
        ids = batch.pop("input_ids")
        found = model(**batch, inputs_embeds=model.get_input_embeddings()(ids))
    assert_close_relative(found.loss, expected.loss)
    with pytest.raises(ValueError, match="Neither `input_ids` nor `inputs_embeds`"):
        model(**batch)


def test_embeddings_whose_positions_nobody_knows_are_refused():
    """Qwen's VLMs would take the positions of an earlier call."""
    model, batch = make_model("qwen2_5_vl"), drawn(make_batch("qwen2_5_vl"))
    embeddings = model.get_input_embeddings()(batch.pop("input_ids"))
    batch = {n: v for n, v in batch.items() if n not in ("pixel_values", "image_grid_thw", "mm_token_type_ids")}
    with pytest.raises(ValueError, match="finds the images' positions in `input_ids`"):
        model(**batch, inputs_embeds=embeddings)


def test_a_tuple_on_request():
    model, batch = make_model(), drawn(make_batch())
    with torch.no_grad():
        expected = model(**batch)
        found = model(**batch, return_dict=False)
        model.config.return_dict = False
        by_config = model(**batch)
    for output in (found, by_config):
        assert type(output) is tuple and len(output) == len(expected.to_tuple())
        assert torch.equal(output[0], expected.loss)


@pytest.mark.parametrize("where", ["argument", "config"])
def test_hidden_states_and_attentions_of_a_training_batch(where):
    model, batch = make_model(), drawn(make_batch())
    model.set_attn_implementation("eager")
    asked = {"output_hidden_states": True, "output_attentions": True}
    words = {name: batch[name] for name in ("input_ids", "attention_mask", "pixel_values")}
    with torch.no_grad():
        expected = model.vlm(**words, **asked)
        if where == "config":
            model.config.output_hidden_states = model.config.output_attentions = True
            asked = {}
        found = model(**batch, **asked)
        words_alone = model(**words, **asked)
    for output in (found, words_alone):
        for name in ("hidden_states", "attentions"):
            ours, theirs = getattr(output, name), getattr(expected, name)
            assert len(ours) == len(theirs) > 0, name
            for a, b in zip(ours, theirs, strict=True):
                assert_close_relative(a, b, what=name)


def test_attentions_are_refused_where_they_would_not_come():
    model = make_model()
    with pytest.raises(ValueError, match=r"set to sdpa\. Please set it to 'eager'"):
        model.config.output_attentions = True
    model.set_attn_implementation("eager")
    model.config.get_text_config().output_attentions = True
    assert model(**make_batch()).attentions[0].shape[1] == 4, "heads"


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"action_masks": None}, TypeError, "`action_masks` is an argument of neither.* mean `action_mask`"),
        ({"pixel_value": 0}, TypeError, "`pixel_value` .* mean `pixel_values`"),
        ({"wheels": 4}, TypeError, "`wheels` is an argument of neither the policy nor its VLM.$"),
        ({"use_cache": True}, ValueError, "`use_cache` cannot be given"),
        ({"logits_to_keep": 1}, ValueError, "`logits_to_keep` cannot be given"),
        ({"past_key_values": []}, ValueError, "`past_key_values` cannot be given"),
        ({"num_items_in_batch": 7}, ValueError, "give num_supervised_tokens and num_supervised_actions"),
        ({"output_router_logits": True}, ValueError, "'llava' has no router loss"),
        ({"labels": torch.zeros(2, 3).long()}, ValueError, r"`labels` must be \(batch, sequence\) = \(2, 14\)"),
    ],
)
def test_what_would_be_ignored_is_refused_by_name(given, error, message):
    model, batch = make_model(), make_batch()
    with pytest.raises(error, match=message):
        model(**{**batch, **given})


def test_a_cache_is_refused_by_the_name_that_the_library_gives_it():
    """`past_key_values` until transformers 5.23; `cache`, and the old names too, since."""
    model, batch = make_model(), make_batch()
    names = {"cache", "past_key_values"} if "cache" in model.vlm_argument_names else {"past_key_values"}
    for name in names:
        with pytest.raises(ValueError, match=f"`{name}` cannot be given where the policy learns"):
            model(**batch, **{name: []})


def test_acting_refuses_what_is_for_learning():
    model, example = make_model(), make_example(FAMILIES["llava"])
    with pytest.raises(ValueError, match="`labels` are for `forward`"):
        model.sample_actions(**example)
    with pytest.raises(TypeError, match=r"`expert_attention_masks` .* mean `expert_attention_mask`"):
        model.sample_actions(**drop_suffix(make_example(FAMILIES["llava"])), expert_attention_masks=None)
    for num_steps, message in ((1.5, "whole number of Euler steps, got 1.5"), (0, "at least 1, got 0")):
        with pytest.raises(ValueError, match=message):
            model.sample_actions(**drop_suffix(make_example(FAMILIES["llava"])), num_steps=num_steps)


@pytest.mark.parametrize("name", ["labels", "actions"])
def test_generating_from_a_training_batch_is_refused(name):
    """Its prompt ends in the answer."""
    model, batch = make_model(), make_batch()
    batch = {n: v for n, v in batch.items() if n not in {"labels", "actions"} - {name}}
    with pytest.raises(ValueError, match=f"This batch is for training: it has `{name}`"):
        model.generate(**batch)


def test_vocabulary_after_new_tokens():
    model = make_model("paligemma")
    model.resize_token_embeddings(300)
    assert model.vocab_size == model.vlm.get_output_embeddings().weight.shape[0] == 300


# --------------------------------------------------------------------------------------------------- router losses
@pytest.mark.parametrize("name", ["qwen3_vl_moe", "qwen3_5_moe", "glm4v_moe", "ernie4_5_vl_moe"])
def test_router_losses_are_the_vlms(name):
    """Loss and the routers' gradients, against the VLM with labels and no expert."""
    if name not in FAMILIES:
        pytest.skip(f"this version of transformers has no {name}")
    model = policy(name)
    vlm = copy.deepcopy(model.vlm)
    of_policy = ("actions", "noise", "timestep", "expert_attention_mask")
    batch = {n: v for n, v in training_batch(name).items() if n not in of_policy}
    ours, theirs = (m(**batch, output_router_logits=True) for m in (model, vlm))
    assert theirs.aux_loss > 0
    assert_close_relative(ours.aux_loss, theirs.aux_loss)
    assert_close_relative(ours.loss, theirs.loss)
    assert ours.loss > ours.token_loss
    found = backbone_gradients(model, ours.loss)
    theirs.loss.backward()
    assert_gradients_close(found, {n: p.grad for n, p in vlm.named_parameters()}, 4096)


# --------------------------------------------------------------------------------------------------- plain Trainer
class Rows(torch.utils.data.Dataset):
    def __init__(self, batch: dict):
        self.batch = batch

    def __len__(self):
        return len(self.batch["input_ids"])

    def __getitem__(self, i):
        return {name: values[i] for name, values in self.batch.items()}


@pytest.mark.parametrize("name", ["paligemma", "smolvlm"])
def test_a_plain_trainer_learns_the_same_however_a_step_is_split(name, tmp_path):
    """With its default `remove_unused_columns`, which goes by the signature, and the same loss for every split."""
    family, rows = FAMILIES[name], 8
    examples = [make_example(family, seed=i) for i in range(rows)]
    generator = torch.Generator().manual_seed(0)
    batch = {n: torch.cat([example[n] for example in examples]) for n in examples[0]}
    batch |= {"actions": torch.randn(rows, CHUNK, WIDTH, generator=generator)}
    batch |= {"noise": torch.randn(rows, CHUNK, WIDTH, generator=generator)}
    batch |= {"timestep": torch.rand(rows, generator=generator)}
    found = []
    for accumulation in (1, 2, 4):
        model = make_model(name)
        with torch.no_grad():
            expected = model(**batch).loss
        arguments = TrainingArguments(
            str(tmp_path),
            per_device_train_batch_size=rows // accumulation,
            gradient_accumulation_steps=accumulation,
            **{"max_steps": 1, "logging_steps": 1, "learning_rate": 0.0, "max_grad_norm": 1e9},
            **{"report_to": [], "save_strategy": "no", "use_cpu": True, "disable_tqdm": True},
        )
        trainer = Trainer(model, arguments, train_dataset=Rows(batch))
        trainer.train()
        log = trainer.state.log_history[0]
        assert log["loss"] == pytest.approx(float(expected), rel=1e-3), f"split in {accumulation}"
        found.append(log["grad_norm"])
    assert found == pytest.approx([found[0]] * 3, rel=1e-3)


# ------------------------------------------------------------------------------------------- names of the attention
def attention_names(model: KIVLAForActionPrediction) -> list[str]:
    config = model.config
    parts = (config, config.vlm_config, config.get_text_config(), config.vlm_config.vision_config)
    return [part._attn_implementation.removeprefix("kivla_") for part in parts]


def test_attention_is_set_and_named_at_every_level():
    model = make_model("paligemma")
    for wanted, names in [
        ("eager", ["eager"] * 4),
        ("sdpa", ["sdpa"] * 4),
        ({"vlm_config": "eager"}, ["eager"] * 4),
        ({"vlm_config": {"text_config": "sdpa", "vision_config": "eager"}}, ["eager", "eager", "sdpa", "eager"]),
        ({"vision_config": "sdpa"}, ["eager", "eager", "sdpa", "sdpa"]),
    ]:
        model.set_attn_implementation(wanted)
        assert attention_names(model) == names, wanted
        assert model.config.get_text_config()._attn_implementation.startswith("kivla_"), "no longer recorded"
        assert model(**make_batch("paligemma")).flow_loss.isfinite()
    with pytest.raises(ValueError, match=r"no attention to set for \['expert_config'\]"):
        model.set_attn_implementation({"expert_config": "eager"})


# ------------------------------------------------------------------------------------------------------------ config
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: make_config(chunk_sise=5), "KIVLAConfig has no field `chunk_sise`. Did you mean `chunk_size`"),
        (lambda: make_config(wheels=4), "KIVLAConfig has no field `wheels`. Its fields: vlm_config,"),
        (lambda: make_config(expert_config={"hiden_size": 8}), "KIVLAExpertConfig .* mean `hidden_size`"),
    ],
)
def test_a_misspelt_field_is_refused(make, message):
    with pytest.raises(TypeError, match=message):
        make()


def test_a_misspelt_field_is_refused_by_from_vlm(tmp_path):
    AutoModelForImageTextToText.from_config(FAMILIES["llava"].config()).save_pretrained(tmp_path)
    with pytest.raises(TypeError, match="chunk_sise"):
        KIVLAForActionPrediction.from_vlm(tmp_path, chunk_sise=5)
    with pytest.raises(TypeError, match="hiden_size"):
        KIVLAForActionPrediction.from_vlm(tmp_path, expert_config={**EXPERT, "hiden_size": 5})


def test_fields_of_another_version_stay_in_the_file(tmp_path):
    stored = make_config().to_dict()
    stored["of_tomorrow"], stored["expert_config"]["of_tomorrow"] = 1, 2
    config = KIVLAConfig.from_dict(stored)
    assert (config.of_tomorrow, config.expert_config.of_tomorrow) == (1, 2)
    config.save_pretrained(tmp_path)
    again = KIVLAConfig.from_pretrained(tmp_path)
    assert (again.of_tomorrow, again.expert_config.of_tomorrow) == (1, 2)
    assert KIVLAConfig(**make_config().to_dict()).to_dict() == make_config().to_dict()


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("backbone_gradient_scale", 2.0, "must be between 0"),
        ("backbone_gradient_scale", -1.0, "must be between 0"),
        ("flow_loss_weight", float("nan"), "must not be negative"),
        ("num_inference_steps", 0, "at least 1"),
        ("num_inference_steps", 1.5, "num_inference_steps"),
        ("time_sampling_offset", 0.5, "Flow times must lie"),
        ("state_encoding", "telepathy", "state_encoding"),
        ("expert_config.min_period", 5.0, "min_period < max_period"),
    ],
)
def test_a_value_out_of_range_is_refused_where_it_is_set(name, value, message):
    config = make_config()
    *path, field = name.split(".")
    part = getattr(config, path[0]) if path else config
    before = getattr(part, field)
    with pytest.raises(Exception, match=message):
        setattr(part, field, value)
    assert getattr(part, field) == before


@pytest.mark.parametrize("through_set", [False, True], ids=["config first", "checkpointing first"])
def test_reentrant_checkpointing_never_drops_a_gradient(through_set):
    """Whichever is set first, checkpointing or the scale."""
    model = make_model().train()
    options = {"gradient_checkpointing_kwargs": {"use_reentrant": True}}
    if through_set:
        model.gradient_checkpointing_enable(**options)
        model(**make_batch()).loss.backward()  # insulated: nothing is lost
        model.config.backbone_gradient_scale = 1.0
        with pytest.raises(ValueError, match="would silently drop the expert's gradient"):
            model(**make_batch())
        with torch.no_grad():
            model(**make_batch())
    else:
        model.config.backbone_gradient_scale = 1.0
        with pytest.raises(ValueError, match="would silently drop the expert's gradient"):
            model.gradient_checkpointing_enable(**options)
        assert not model.is_gradient_checkpointing


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing_asks_embeddings_for_a_gradient_only_where_it_must(reentrant):
    """A frozen VLM would go backwards for nothing."""
    model = make_model()
    model.vlm.requires_grad_(False)
    model.train()
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
    output = model(**make_batch())
    assert output.token_loss.requires_grad == reentrant and output.flow_loss.requires_grad


def test_embeddings_need_gradients_where_that_alone_is_asked_for():
    model = make_model()
    model.vlm.requires_grad_(False)
    model.enable_input_require_grads()
    assert model.train()(**make_batch()).token_loss.requires_grad


def test_adapters_learn_the_same_with_checkpointing():
    """Nothing before them needs a gradient."""
    gradients = []
    for checkpoints in (False, True):
        torch.manual_seed(0)
        config = LoraConfig(r=2, target_modules=r".*language_model.*(q_proj|up_proj)", init_lora_weights=False)
        model = get_peft_model(make_model(), config).train()
        if checkpoints:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        batch = make_batch()
        batch |= {"noise": torch.ones_like(batch["actions"]), "timestep": torch.full((len(batch["actions"]),), 0.5)}
        model(**batch).loss.backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.requires_grad})
    assert gradients[0] and all(gradient is not None for gradient in gradients[0].values())
    assert_gradients_close(*gradients)


def test_what_is_for_training_is_refused_where_it_acts(tmp_path):
    model = make_model()
    batch = make_batch()
    with pytest.raises(TypeError, match="`actions` is for training"):
        model.sample_actions(**{name: value for name, value in batch.items() if name != "labels"})
    prompt = {name: value for name, value in batch.items() if name not in ("labels", "actions")}
    with pytest.raises(TypeError, match="Did you mean `num_steps`"):
        model.sample_actions(**prompt, num_step=3)
    model.vlm.save_pretrained(tmp_path)
    with pytest.raises(TypeError, match="Did you mean `flow_loss_weight`"):
        KIVLAForActionPrediction.from_vlm(tmp_path, flow_los_weight=2.0)


def test_ties_are_saved_and_loaded(tmp_path):
    model = make_model("paligemma")
    model.save_pretrained(tmp_path)
    assert model.config.tie_word_embeddings
    assert KIVLAForActionPrediction.from_pretrained(tmp_path).config.tie_word_embeddings
