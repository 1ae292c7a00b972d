"""A VLM whose type no library knows: its configuration and its model, as a folder on the Hub brings them along."""

import torch
from torch import nn
from transformers import AutoModel, LlamaConfig, PreTrainedConfig, PreTrainedModel
from transformers.generation import GenerationMixin
from transformers.modeling_outputs import CausalLMOutputWithPast


class StrangerConfig(PreTrainedConfig):
    model_type = "stranger"
    sub_configs = {"text_config": LlamaConfig}  # noqa: RUF012 (the library's form)

    def __init__(self, text_config=None, patch_size=4, image_token_id=200, **kwargs):
        self.text_config = LlamaConfig(**text_config) if isinstance(text_config, dict) else text_config or LlamaConfig()
        self.patch_size, self.image_token_id = patch_size, image_token_id
        super().__init__(**kwargs)


class StrangerForConditionalGeneration(PreTrainedModel, GenerationMixin):
    """Patches of pixels are projected and take the places of image tokens in front of a Llama."""

    config_class = StrangerConfig
    input_modalities = ("image", "text")
    base_model_prefix = "language_model"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_attention_backend = True
    _no_split_modules = ("LlamaDecoderLayer",)

    def __init__(self, config: StrangerConfig):
        super().__init__(config)
        text, side = config.text_config, config.patch_size
        self.projector = nn.Conv2d(3, text.hidden_size, kernel_size=side, stride=side)
        self.language_model = AutoModel.from_config(text)
        self.lm_head = nn.Linear(text.hidden_size, text.vocab_size, bias=False)
        self.post_init()

    def get_input_embeddings(self):
        return self.language_model.get_input_embeddings()

    def set_input_embeddings(self, value):
        self.language_model.set_input_embeddings(value)

    def get_output_embeddings(self):
        return self.lm_head

    def set_output_embeddings(self, value):
        self.lm_head = value

    def forward(
        self,
        input_ids=None,
        attention_mask=None,
        pixel_values=None,
        inputs_embeds=None,
        labels=None,
        past_key_values=None,
        use_cache=None,
        logits_to_keep=0,
        **kwargs,
    ):
        if inputs_embeds is None:
            inputs_embeds = self.get_input_embeddings()(input_ids)
        if pixel_values is not None:  # (N, 3, H, W)
            images = self.projector(pixel_values).flatten(2).transpose(1, 2)  # (N, patches, width)
            is_image = (input_ids == self.config.image_token_id)[..., None].expand_as(inputs_embeds)
            inputs_embeds = inputs_embeds.masked_scatter(is_image, images.to(inputs_embeds.dtype))
        output = self.language_model(
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            past_key_values=past_key_values,
            use_cache=use_cache,
            **kwargs,
        )
        hidden = output.last_hidden_state
        if isinstance(logits_to_keep, int):
            hidden = hidden[:, -logits_to_keep:]
        logits = self.lm_head(hidden)
        loss = None
        if labels is not None:
            loss = nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten().to(torch.long))
        return CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            past_key_values=output.past_key_values,
            hidden_states=output.hidden_states,
            attentions=output.attentions,
        )
