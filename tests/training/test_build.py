"""The one builder of policies: what starts, continues and is adapted, what stays, and what is refused by name."""

import numpy as np
import pytest
import torch

from kivla import BinningActionTokenizer, KIVLAForActionPrediction, KIVLAProcessor, LeRobotDataset
from kivla.simulation import LeRobotWriter
from kivla.training import KIVLATrainer, KIVLATrainingArguments
from kivla.training.base_policy import BasePolicy
from kivla.training.build import adapt_policy, continue_policy, start_policy
from kivla.training.policy_options import PolicyOptions
from kivla.training.recipes import RECIPES

CHUNK = 4
SIZES = {"chunk_size": CHUNK, "max_action_dim": 5, "max_state_dim": 5}
SMALL = {**SIZES, "expert_hidden_size": 32, "expert_intermediate_size": 48, "action_vocab_size": 200}


def demonstrations(
    folder, scale=1.0, dim=3, cameras=("front",), seed=0, state=True, chunk_size=CHUNK, moves=1.0, fps=10
):
    """A small dataset of random actions within ±scale; the last one moves in a share of the frames, else it is 0."""
    names = [f"joint_{i}" for i in range(dim)]
    sizes = dict.fromkeys(cameras, (8, 8))
    rng = np.random.default_rng(seed)
    with LeRobotWriter(folder, fps, sizes, names, names, robot_type="arm", image_format="image") as writer:
        for _ in range(2):
            pictures = {camera: np.zeros((30, 8, 8, 3), np.uint8) for camera in cameras}
            actions = rng.uniform(-scale, scale, (30, dim)).astype(np.float32)
            actions[round(moves * 30) :, -1] = 0
            writer.add_episode(pictures, actions, actions, task="go")
    return LeRobotDataset(folder, chunk_size, state_key=None if state else "none")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return demonstrations(tmp_path_factory.mktemp("data") / "own")


@pytest.fixture(scope="module")
def larger(tmp_path_factory):
    """Another robot: ten times the range."""
    return demonstrations(tmp_path_factory.mktemp("data") / "larger", scale=10.0)


def save(folder, built, **changes):
    built.model.save_pretrained(folder)
    built.processor.save_pretrained(folder)
    if changes:
        KIVLAProcessor.from_pretrained(folder, **changes).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def policy(vlm, data, tmp_path_factory):
    return save(tmp_path_factory.mktemp("policy"), start_policy(vlm, [data], PolicyOptions(**SMALL)))


def weights_are_those_of(model, folder) -> bool:
    saved = KIVLAForActionPrediction.from_pretrained(folder).state_dict()
    return all(torch.equal(model.state_dict()[name], tensor) for name, tensor in saved.items())


# --------------------------------------------------------------------------------------------------------------- start
def test_a_start_is_what_the_options_say(vlm, data):
    options = PolicyOptions(
        **SMALL,
        recipe="joint",
        num_flow_samples=3,
        num_inference_steps=7,
        rtc_max_delay=2,
        normalization="mean_std",
        expert_time_conditioning="concat",
        expert_reads_response=True,
        max_length=99,
        attn_implementation="eager",
    )
    built = start_policy(vlm, [data], options)
    config, processor = built.model.config, built.processor
    assert (config.num_flow_samples, config.num_inference_steps, config.chunk_size) == (3, 7, CHUNK)
    assert config.rtc_max_delay == 2
    assert (config.expert_config.hidden_size, config.expert_config.time_conditioning) == (32, "concat")
    assert (processor.normalization, processor.expert_reads_response, processor.max_length) == ("mean_std", True, 99)
    assert processor.action_tokenizer.vocab_size == 200 and processor.cameras == data.cameras
    assert built.model.get_input_embeddings().num_embeddings >= processor.vocab_size
    assert built.facts["meaning"] == "start"


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"recipe": "pi0-fast", "flow_loss_weight": 2.0}, "--flow_loss_weight cannot apply: recipe pi0-fast trains no"),
        ({"recipe": "pi0-fast", "rtc_max_delay": 2}, "--rtc_max_delay cannot apply: recipe pi0-fast trains no"),
        ({"recipe": "pi0-fast", "backbone_gradient_scale": 0.5}, "--backbone_gradient_scale cannot apply"),
        ({"action_tokenizer": "bins", "action_vocab_size": 64}, "--action_vocab_size cannot apply: only a FAST"),
        ({"recipe": "pi0", "action_scale": 3.0}, "--action_scale cannot apply: only a FAST"),
        ({"recipe": "frozen", "action_tokenizer": "fast"}, "--action_tokenizer cannot apply: recipe frozen leaves"),
        ({"action_token_skip": 1152}, "--action_token_skip cannot apply: it is for --action_token_placement tail"),
        ({"action_tokenizer": "none", "action_token_placement": "tail"}, "no action tokens to place"),
    ],
)
def test_options_that_others_make_meaningless_are_named(vlm, data, options, named):
    with pytest.raises(ValueError, match=named):
        start_policy(vlm, [data], PolicyOptions(**SIZES, **options))


def test_options_on_top_of_a_recipe_go_where_the_expert_is_trained():
    options = PolicyOptions(recipe="pi0.5", flow_loss_weight=10.0, backbone_gradient_scale=0.25)
    first, second = options.stages_of(RECIPES["pi0.5"])
    assert (first.flow_loss_weight, first.backbone_gradient_scale) == (0.0, 0.0)
    assert (second.flow_loss_weight, second.backbone_gradient_scale) == (10.0, 0.25)
    options = PolicyOptions(recipe="insulated-warmup", flow_loss_weight=10.0, backbone_gradient_scale=0.25)
    warm_up, rest = options.stages_of(RECIPES["insulated-warmup"])
    assert (warm_up.flow_loss_weight, warm_up.backbone_gradient_scale) == (10.0, 0.0), "the VLM rests"
    assert (rest.flow_loss_weight, rest.backbone_gradient_scale) == (10.0, 0.25)
    with pytest.raises(ValueError, match="The backbone is frozen"):
        PolicyOptions(backbone_gradient_scale=0.25).stages_of(RECIPES["frozen"])
    with pytest.raises(ValueError, match=r"between 0 .* and 1 .* got 2.0"):
        PolicyOptions(backbone_gradient_scale=2.0).stages_of(RECIPES["joint"])


@pytest.mark.parametrize("encoding", ["text", "continuous"])
def test_a_humanoid_fits_the_defaults(vlm, tmp_path, encoding):
    """Unless told otherwise, a new policy is at least as large as the data."""
    data = demonstrations(tmp_path / "humanoid", dim=44)
    told = ("max_action_dim", "max_state_dim", "action_vocab_size")
    options = {name: value for name, value in SMALL.items() if name not in told}
    built = start_policy(vlm, [data], PolicyOptions(**options, state_encoding=encoding, action_tokenizer="bins"))
    state_dim = 44 if encoding == "continuous" else 32
    for sizes in (built.model.config, built.processor):
        assert (sizes.max_action_dim, sizes.max_state_dim) == (44, state_dim)
    with pytest.raises(ValueError, match="max_action_dim of at least 44"):
        start_policy(vlm, [data], PolicyOptions(**options, max_action_dim=43, action_tokenizer="bins"))


def test_what_fast_cannot_hold_is_named(vlm, tmp_path):
    data = demonstrations(tmp_path / "raw", scale=300.0)
    with pytest.raises(
        ValueError, match=r"The largest is of dimension \d, counted from 0\. .*/raw: joint_0, joint_1, joint_2\.$"
    ):
        start_policy(vlm, [data], PolicyOptions(**SMALL, normalization="none"))


# ------------------------------------------------------------------------------------------------------------ continue
def test_a_policy_continues_as_it_is(policy, data):
    built = continue_policy(BasePolicy(policy), [data], PolicyOptions(**SMALL))
    assert built.processor.to_dict() == KIVLAProcessor.from_pretrained(policy).to_dict()
    assert weights_are_those_of(built.model, policy)
    assert built.facts["meaning"] == "continue"


def test_what_may_change_at_any_time_is_honoured(policy, data):
    settings = {"num_flow_samples": 8, "num_inference_steps": 3, "rtc_max_delay": 2}
    options = PolicyOptions(**settings, max_length=77, attn_implementation="eager")
    built = continue_policy(BasePolicy(policy), [data], options)
    config = built.model.config
    assert {name: getattr(config, name) for name in settings} == settings and built.processor.max_length == 77
    assert "eager" in str(built.model.vlm.config._attn_implementation)
    (stage,) = PolicyOptions(flow_loss_weight=5.0, backbone_gradient_scale=1.0).stages_of(BasePolicy(policy).own_recipe)
    assert (stage.flow_loss_weight, stage.backbone_gradient_scale) == (5.0, 1.0)


def test_every_option_that_cannot_apply_is_named(policy, data):
    given = {
        "chunk_size": 3,
        "max_action_dim": 9,
        "max_state_dim": 9,
        "state_encoding": "none",
        "expert_hidden_size": 64,
        "expert_intermediate_size": 96,
        "expert_num_attention_heads": 8,
        "expert_layer_stride": 2,
        "expert_time_conditioning": "concat",
        "expert_initializer_range": 0.1,
        "normalization": "mean_std",
        "expert_reads_response": True,
        "action_tokenizer": "bins",
        "action_vocab_size": 64,
        "action_scale": 3.0,
        "action_token_placement": "tail",
        "action_token_skip": 1152,
    }
    with pytest.raises(ValueError, match="cannot go on as it is") as error:
        continue_policy(BasePolicy(policy), [data], PolicyOptions(**given))
    message = str(error.value)
    assert all(f"--{name} {value}: the policy has" in message for name, value in given.items()), message
    assert "--adapt" in message and "--vlm" in message, "both ways out"


def test_actions_that_were_constant_before_are_refused(vlm, data, tmp_path):
    """With the policy's statistics they would be learned and done as this constant, however few they are."""
    still, moving = (demonstrations(tmp_path / str(share), moves=share) for share in (0.0, 0.1))
    built = start_policy(vlm, [still], PolicyOptions(**SMALL))
    lost = r"dimension 2 of the actions was constant in the policy's data, 0, and runs from .* would always get 0"
    folder = save(tmp_path / "policy", built)
    with pytest.raises(ValueError, match=lost):
        continue_policy(BasePolicy(folder), [moving], PolicyOptions())
    args = KIVLATrainingArguments(str(tmp_path / "run"), max_steps=1, report_to="none")
    with pytest.raises(ValueError, match=lost):
        KIVLATrainer(built.model, args, train_dataset=moving, processing_class=built.processor)
    continue_policy(BasePolicy(folder), [still], PolicyOptions())
    adapt_policy(BasePolicy(folder), [moving], PolicyOptions())


@pytest.mark.parametrize(
    ("changes", "difference"),
    [
        ({"scale": 10.0}, "% of the actions of .* lie far outside .* dimension . runs from -9.* to 9"),
        ({"scale": 0.01}, "the actions of .* move over at most 1.* % of the range"),
        ({"cameras": ("wrist",)}, r"gives the cameras \['observation.images.wrist'\], the policy sees"),
        ({"dim": 4}, "has 4-dimensional actions, the policy 3"),
        ({"state": False}, "has a state of 0 dimensions, the policy needs 3"),
    ],
)
def test_data_of_another_robot_is_refused(policy, tmp_path, changes, difference):
    with pytest.raises(ValueError, match=difference):
        continue_policy(BasePolicy(policy), [demonstrations(tmp_path / "other", **changes)], PolicyOptions())


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        ("pi0", "--recipe pi0 has state_encoding='continuous', and .* 'text'"),
        ("insulated-bins", "--recipe insulated-bins learns the action tokens 'bins', the policy has 'fast'"),
        ("frozen", "--recipe frozen learns the action tokens 'none', the policy has 'fast'"),
    ],
)
def test_a_recipe_that_is_not_what_would_be_trained_is_refused(policy, data, recipe, message):
    with pytest.raises(ValueError, match=message):
        continue_policy(BasePolicy(policy), [data], PolicyOptions(recipe=recipe))


# --------------------------------------------------------------------------------------------------------------- adapt
def test_an_adapted_policy_is_the_data_s_in_numbers_and_the_base_s_in_conventions(vlm, data, larger, tmp_path):
    built = start_policy(vlm, [data], PolicyOptions(**SMALL))
    prompt = "Do {text} at {state}: "
    base = save(tmp_path / "base", built, noise_padding=True, square_images=True, action_prompt=prompt)
    adapted = adapt_policy(BasePolicy(base), [larger], PolicyOptions(chunk_size=6))
    processor = adapted.processor
    for name, values in larger.statistics["actions"].items():
        np.testing.assert_array_equal(processor.statistics["actions"][name], values)
    chunk = larger.action_chunks(60)
    assert np.abs(processor.robot().actions.normalize(chunk)).max() < 1.2, "the data fills the normalised range"
    np.testing.assert_allclose(
        processor.unnormalize_actions(processor.robot().actions.normalize(chunk)),
        chunk,
        atol=1e-5 * np.abs(chunk).max(),
    )
    kept = (processor.noise_padding, processor.square_images, processor.action_prompt, processor.normalization)
    assert kept == (True, True, prompt, "quantile")
    assert processor.chunk_size == adapted.model.config.chunk_size == 6
    assert processor.action_tokenizer.to_dict() == built.processor.action_tokenizer.to_dict(), "kept unless asked"
    assert weights_are_those_of(adapted.model, base)
    assert adapted.facts["meaning"] == "adapt" and any("statistics" in line for line in adapted.facts["changed"])


def test_the_action_tokenizer_is_fitted_anew_where_asked(policy, larger):
    options = PolicyOptions(action_tokenizer="fast", action_vocab_size=150, action_scale=4.0)
    processor = adapt_policy(BasePolicy(policy), [larger], options).processor
    assert (processor.action_tokenizer.vocab_size, processor.action_tokenizer.scale) == (150, 4.0)
    bins = adapt_policy(BasePolicy(policy), [larger], PolicyOptions(recipe="insulated-bins"))
    assert isinstance(bins.processor.action_tokenizer, BinningActionTokenizer)
    assert bins.model.get_input_embeddings().num_embeddings >= bins.processor.vocab_size
    assert adapt_policy(BasePolicy(policy), [larger], PolicyOptions(recipe="frozen")).processor.action_tokenizer is None


def test_several_robots_from_one(policy, data, larger):
    for source, name in ((data, "small"), (larger, "large")):
        source.robot = name
    try:
        processor = adapt_policy(BasePolicy(policy), [data, larger], PolicyOptions()).processor
    finally:
        data.robot = larger.robot = None
    assert set(processor.robots) == {"small", "large"}
    assert processor.robot("large").statistics["actions"]["max"].max() > 5


@pytest.mark.parametrize("names", [("one", "one"), ("one", "other")], ids=["one robot", "two robots"])
def test_rates_of_several_datasets(vlm, data, tmp_path, names):
    """A chunk of one robot lasts as long everywhere; of different robots it is said."""
    fast = demonstrations(tmp_path / "fast", fps=30)
    sources = [data, fast]
    try:
        for source, name in zip(sources, names, strict=True):
            source.robot = name
        if names[0] == names[1]:
            with pytest.raises(ValueError, match="robot 'one' have 10, 30 frames a second"):
                start_policy(vlm, sources, PolicyOptions(**SMALL))
        else:
            assert any(
                "(one 10, other 30)" in note for note in start_policy(vlm, sources, PolicyOptions(**SMALL)).notes
            )
    finally:
        data.robot = None


def test_cameras_of_the_same_names_have_the_same_places_for_all_robots(vlm, tmp_path):
    sources = [
        demonstrations(tmp_path / "a", cameras=("top", "wrist")),
        demonstrations(tmp_path / "b", cameras=("wrist", "top")),
    ]
    for source, name in zip(sources, ("a", "b"), strict=True):
        source.robot = name
    robots = start_policy(vlm, sources, PolicyOptions(**SMALL)).processor.robots
    assert sources[0].cameras != sources[1].cameras and robots["a"].cameras == robots["b"].cameras


@pytest.mark.parametrize(
    ("changes", "options", "message"),
    [
        ({"dim": 6}, {}, "6-dimensional actions, and the action expert .* max_action_dim = 5"),
        ({"state": False}, {}, "has no observation.state, and .* reads one"),
        ({}, {"max_action_dim": 9}, "--max_action_dim cannot apply: .* has 5, .* start from a VLM"),
        ({}, {"state_encoding": "none"}, "--state_encoding cannot apply: .* has text"),
        ({}, {"expert_hidden_size": 64}, "--expert_hidden_size cannot apply: .* has 32"),
        ({}, {"action_vocab_size": 64}, "--action_vocab_size cannot apply: .* keeps its action tokenizer"),
        ({}, {"action_token_placement": "tail"}, "--action_token_placement cannot apply: .* learned action tokens"),
        ({}, {"recipe": "pi0"}, "state_encoding='continuous'"),
    ],
)
def test_what_a_base_cannot_be_given_is_named(policy, tmp_path, changes, options, message):
    with pytest.raises(ValueError, match=message):
        adapt_policy(BasePolicy(policy), [demonstrations(tmp_path / "other", **changes)], PolicyOptions(**options))


def test_bases_that_are_none(vlm, policy, tmp_path):
    with pytest.raises(ValueError, match=r"is no KIVLA policy: .* 'paligemma'.* --vlm"):
        BasePolicy(vlm)
    KIVLAForActionPrediction.from_pretrained(policy).save_pretrained(tmp_path / "bare")
    with pytest.raises(ValueError, match=r"has a model and no processor_config.json.* convert it again"):
        BasePolicy(tmp_path / "bare")
    with pytest.raises(ValueError, match=r"--vlm_processor cannot apply: .* has the VLM's processor already"):
        BasePolicy(policy, vlm_processor=str(vlm))
