"""A tiny Llava of random weights, with its processor, saved as a model hub would hold it."""

from pathlib import Path

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from torch import nn
from transformers import (
    CLIPImageProcessor,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

SPECIAL = ["<pad>", "<s>", "</s>", "<unk>", "<image>", "USER:", "ASSISTANT:"]
WORDS = "What Is is are the cell size shape nucleus image does this show options Answer yes no round oval lobed".split()
TEMPLATE = (
    "{{ bos_token }} {% for m in messages %}{{ m.role | upper }}: "
    "{% for p in m.content %}{% if p.type == 'image' %}<image> {% else %}{{ p.text }} {% endif %}{% endfor %}"
    "{% endfor %}{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)


def word_tokenizer(special: list[str], image_token: str, **names: str) -> PreTrainedTokenizerFast:
    """A tokenizer of whole words; ``<unk>`` must be among the special ones."""
    vocabulary = {word: i for i, word in enumerate([*special, *dict.fromkeys(WORDS)])}
    inner = Tokenizer(WordLevel(vocabulary, unk_token="<unk>"))
    inner.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, unk_token="<unk>", additional_special_tokens=[image_token], **names
    )


def randomise(model: nn.Module) -> nn.Module:
    """Every weight random, so that answers depend on all of them."""
    torch.manual_seed(4)
    for name, parameter in model.named_parameters():
        nn.init.normal_(parameter, mean=float("norm" in name.lower() and "bias" not in name), std=0.4)
    return model


def save_tiny_llava(folder: Path, *, chat: bool = True) -> Path:
    """Write model, tokenizer and processor; without ``chat`` there is no chat template."""
    tokenizer = word_tokenizer(SPECIAL, bos_token="<s>", eos_token="</s>", pad_token="<pad>", image_token="<image>")
    processor = LlavaProcessor(
        CLIPImageProcessor(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28}),
        tokenizer,
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=TEMPLATE if chat else None,
    )
    processor.save_pretrained(folder)
    _model(len(tokenizer), tokenizer.convert_tokens_to_ids("<image>")).save_pretrained(folder)
    return folder


def _model(vocab_size: int, image_id: int) -> LlavaForConditionalGeneration:
    vision = CLIPVisionConfig(
        hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=28, patch_size=14
    )
    text = LlamaConfig(
        vocab_size=vocab_size, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, max_position_embeddings=256, bos_token_id=1, eos_token_id=2, pad_token_id=0,
    )  # fmt: skip
    config = LlavaConfig(
        vision_config=vision, text_config=text, image_token_index=image_id, vision_feature_layer=-1, pad_token_id=0
    )
    model = randomise(LlavaForConditionalGeneration(config))
    model.generation_config.eos_token_id = 2
    # What many checkpoints come with, and what must not change greedy answers.
    model.generation_config.do_sample = True
    model.generation_config.temperature = 0.7
    model.generation_config.repetition_penalty = 1.9
    return model
