"""Configurations: KIVLA's for the weights of a π0 or π0.5 checkpoint, and LeRobot's for a KIVLA policy."""

import torch
from transformers import PaliGemmaConfig

from ..modeling_kivla import KIVLAConfig, KIVLAForActionPrediction
from .pi_weights import OUTPUT_LAYER, Sizes, kivla_name
from .weight_files import CheckpointError

IMAGE_TOKEN = 257152  # <image> of PaliGemma's tokenizer
# openpi and LeRobot build all their variants with these; transformers' PI0 has them in its config.json.
_NUM_HEADS, _VISION_NUM_HEADS = 8, 16
# LeRobot's and transformers' name -> ours
_SETTINGS = {
    "num_inference_steps": "num_inference_steps",
    "time_sampling_beta_alpha": "time_sampling_alpha",
    "time_sampling_beta_beta": "time_sampling_beta",
    "time_sampling_scale": "time_sampling_scale",
    "time_sampling_offset": "time_sampling_offset",
}
# LeRobot's pi05 alone has it, and since 2026: a config without delays must be read by older versions, too
LEROBOT_MAX_DELAY = "rtc_training_max_delay"
_EXPERT_SETTINGS = ("min_period", "max_period")
# hidden, MLP, layers, vocabulary of the VLM; hidden, MLP of the expert: LeRobot builds no other ones
_PUBLISHED = (2048, 16384, 18, 257152, 1024, 4096)


def make_config(
    sizes: Sizes,
    given: dict,
    is_tied: bool,
    chunk_size: int | None = None,
    reads_state: bool = True,
    image_token: int | None = None,
) -> KIVLAConfig:
    """The config of a policy with weights of these sizes.

    Args:
        given: the checkpoint's own config.json (of openpi, LeRobot or transformers), or empty.
        is_tied: whether one matrix is both embedding and output layer.
        chunk_size: length of a chunk, if `given` does not tell.
        reads_state: False for a π0.5 that was trained without the state in its prompt.
        image_token: id of the image placeholder; PaliGemma's own if neither this nor `given` tells.

    Raises:
        CheckpointError: widths that are no multiple of the number of heads; the length of a chunk is not known.
    """
    # Weights tell widths, not numbers of heads: those are the config's, or PaliGemma's.
    vlm = given.get("vlm_config") or {}
    num_heads = vlm.get("text_config", {}).get("num_attention_heads", _NUM_HEADS)
    vision_num_heads = vlm.get("vision_config", {}).get("num_attention_heads", _VISION_NUM_HEADS)
    head_dim = sizes.query_width // num_heads
    if sizes.query_width % num_heads or sizes.key_width % head_dim or sizes.vision_hidden_size % vision_num_heads:
        raise CheckpointError(
            f"{num_heads} text heads and {vision_num_heads} vision heads do not fit the widths of the checkpoint "
            f"(queries {sizes.query_width}, keys {sizes.key_width}, vision {sizes.vision_hidden_size})."
        )
    # Nor do they tell how long a chunk is.
    chunk_size = chunk_size or given.get("chunk_size") or given.get("action_horizon")
    if chunk_size is None:
        raise CheckpointError(
            "The weights do not tell the length of a chunk, and there is no config.json with chunk_size (LeRobot, "
            "transformers) or action_horizon (openpi). Pass --chunk_size: 50 for the base models, 10 for pi05_libero."
        )
    is_pi05 = sizes.variant == "pi05"
    if not reads_state and not is_pi05:
        raise CheckpointError("--no_state_in_prompt is for π0.5: π0 never has the state in its prompt.")
    # The backbone: every size from the shapes of the weights.
    vlm_config = PaliGemmaConfig(
        text_config={
            "model_type": "gemma",
            "vocab_size": sizes.vocab_size,
            "hidden_size": sizes.hidden_size,
            "intermediate_size": sizes.intermediate_size,
            "num_hidden_layers": sizes.num_layers,
            "num_attention_heads": num_heads,
            "num_key_value_heads": sizes.key_width // head_dim,
            "head_dim": head_dim,
            "tie_word_embeddings": is_tied,
        },
        vision_config={
            "model_type": "siglip_vision_model",
            "hidden_size": sizes.vision_hidden_size,
            "intermediate_size": sizes.vision_intermediate_size,
            "num_hidden_layers": sizes.vision_num_layers,
            "num_attention_heads": vision_num_heads,
            "image_size": sizes.image_size,
            "patch_size": sizes.patch_size,
            "vision_use_head": False,
        },
        projection_dim=sizes.hidden_size,
        image_token_id=image_token or vlm.get("image_token_index") or IMAGE_TOKEN,
        tie_word_embeddings=is_tied,
    )
    # The policy: what differs between π0 and π0.5 is how time, state and gradient are handled.
    return KIVLAConfig(
        vlm_config=vlm_config,
        expert_config={
            "hidden_size": sizes.expert_hidden_size,
            "intermediate_size": sizes.expert_intermediate_size,
            "time_conditioning": "adarms" if is_pi05 else "concat",
            # "model_type" is transformers' entry, "type" LeRobot's
            "time_embedding_dtype": "float32" if "model_type" in given and "type" not in given else "float64",
            **{name: given[name] for name in _EXPERT_SETTINGS if name in given},
        },
        chunk_size=chunk_size,
        max_action_dim=sizes.action_dim,
        max_state_dim=sizes.state_dim or given.get("max_state_dim", sizes.action_dim),
        state_encoding="continuous" if not is_pi05 else "text" if reads_state else "none",
        # How the weights were trained: π0 by flow through the whole model, π0.5 with knowledge insulation
        backbone_gradient_scale=0.0 if is_pi05 else 1.0,
        rtc_max_delay=given.get(LEROBOT_MAX_DELAY, 0),
        **{ours: given[theirs] for theirs, ours in _SETTINGS.items() if theirs in given},
    )


def empty_model(config: KIVLAConfig) -> KIVLAForActionPrediction:
    """The model on the meta device: names and shapes, no memory."""
    with torch.device("meta"):
        return KIVLAForActionPrediction(config)


def expected_weights(model: KIVLAForActionPrediction) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Name by the rules of `pi_weights` -> name in the installed transformers and shape."""
    named = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    if model.config.tie_word_embeddings:
        named.pop(OUTPUT_LAYER)
    return {kivla_name(name): (name, shape) for name, shape in named.items()}


def lerobot_variant(config: KIVLAConfig) -> str:
    """ "pi0" or "pi05", LeRobot's names of what this policy is.

    Raises:
        CheckpointError: it is neither.
    """
    expert, vlm = config.expert_config, config.vlm_config
    variant = "pi05" if expert.time_conditioning == "adarms" else "pi0"
    has_state_token = config.state_encoding == "continuous"
    problems = {
        f"its VLM is {vlm.model_type}, not PaliGemma": vlm.model_type != "paligemma",
        f"its text model is {vlm.text_config.model_type}, not gemma": vlm.text_config.model_type != "gemma",
        "its expert does not read every layer": expert.layer_stride != 1,
        f"{variant} with state_encoding={config.state_encoding}": (variant == "pi0") != has_state_token,
        "it was trained to act by tokens alone": config.acts_by != "flow",
    }
    if found := [problem for problem, is_there in problems.items() if is_there]:
        raise CheckpointError(f"LeRobot's π0 and π0.5 cannot hold this policy: {'; '.join(found)}.")
    return variant


def lerobot_settings(config: KIVLAConfig) -> dict:
    """What LeRobot's config.json says of the model itself."""
    has_delays = config.rtc_max_delay > 0 and lerobot_variant(config) == "pi05"
    return {
        **({LEROBOT_MAX_DELAY: config.rtc_max_delay} if has_delays else {}),
        "chunk_size": config.chunk_size,
        "n_action_steps": config.chunk_size,
        "max_state_dim": config.max_state_dim,
        "max_action_dim": config.max_action_dim,
        "image_resolution": [config.vlm_config.vision_config.image_size] * 2,
        **{theirs: getattr(config, ours) for theirs, ours in _SETTINGS.items()},
        **{name: getattr(config.expert_config, name) for name in _EXPERT_SETTINGS},
    }


def is_published_size(config: KIVLAConfig) -> bool:
    """Whether LeRobot builds a model of these sizes."""
    text, expert = config.vlm_config.text_config, config.expert_config
    sizes = (text.hidden_size, text.intermediate_size, text.num_hidden_layers, text.vocab_size)
    return (*sizes, expert.hidden_size, expert.intermediate_size) == _PUBLISHED
