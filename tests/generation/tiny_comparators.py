"""Tiny random models of the families that InstFree's Table 1 compares with, saved with their processors."""

from pathlib import Path

from transformers import (
    Blip2Config,
    Blip2ForConditionalGeneration,
    Blip2Processor,
    Blip2QFormerConfig,
    Blip2VisionConfig,
    BlipImageProcessor,
    OPTConfig,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
    Qwen2VLImageProcessor,
)
from transformers.models.qwen2_vl.video_processing_qwen2_vl import Qwen2VLVideoProcessor

from tests.generation.tiny_llava import randomise, word_tokenizer

SMALL = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
QWEN_TEMPLATE = (
    "{% for m in messages %}<|im_start|> {{ m.role }} {% for p in m.content %}"
    "{% if p.type == 'image' %}<|vision_start|> <|image_pad|> <|vision_end|> {% else %}{{ p.text }} {% endif %}"
    "{% endfor %}<|im_end|> {% endfor %}<|im_start|> assistant"
)


def save_tiny_qwen(folder: Path) -> Path:
    """Qwen2.5-VL: pictures of any shape as image tokens, rotary positions in three dimensions."""
    special = ["<|endoftext|>", "<|im_end|>", "<unk>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>"]
    special += ["<|video_pad|>", "<|im_start|>", "user", "assistant"]
    tokenizer = word_tokenizer(special, "<|image_pad|>", eos_token="<|im_end|>", pad_token="<|endoftext|>")
    images = Qwen2VLImageProcessor(min_pixels=28 * 28, max_pixels=4 * 28 * 28)
    processor = Qwen2_5_VLProcessor(images, tokenizer, Qwen2VLVideoProcessor(), chat_template=QWEN_TEMPLATE)
    processor.save_pretrained(folder)
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 2]}
    config = Qwen2_5_VLConfig(
        vision_config={
            "depth": 2, "hidden_size": 16, "intermediate_size": 32, "num_heads": 2, "out_hidden_size": 16,
            "patch_size": 14, "fullatt_block_indexes": [1], "window_size": 56,
        },
        text_config={
            **SMALL, "vocab_size": len(tokenizer), "num_key_value_heads": 2, "max_position_embeddings": 256,
            "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 0, "rope_parameters": rope,
        },
        vision_start_token_id=3, vision_end_token_id=4, image_token_id=5, video_token_id=6,
    )  # fmt: skip
    randomise(Qwen2_5_VLForConditionalGeneration(config)).save_pretrained(folder)
    return folder


def save_tiny_blip2(folder: Path) -> Path:
    """BLIP-2 with an OPT decoder: a fixed number of queries per picture, no chat template."""
    special = ["<pad>", "<s>", "</s>", "<unk>", "<image>", "Question:", "Answer:"]
    tokenizer = word_tokenizer(special, "<image>", bos_token="<s>", eos_token="</s>", pad_token="<pad>")
    images = BlipImageProcessor(size={"height": 28, "width": 28})
    Blip2Processor(images, tokenizer, num_query_tokens=4).save_pretrained(folder)
    config = Blip2Config(
        vision_config=Blip2VisionConfig(**SMALL, image_size=28, patch_size=14),
        qformer_config=Blip2QFormerConfig(**SMALL, vocab_size=40, encoder_hidden_size=16),
        text_config=OPTConfig(
            vocab_size=len(tokenizer), hidden_size=16, ffn_dim=32, num_hidden_layers=2, num_attention_heads=2,
            max_position_embeddings=128, word_embed_proj_dim=16, bos_token_id=1, eos_token_id=2, pad_token_id=0,
        ),
        num_query_tokens=4,
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
    )  # fmt: skip
    randomise(Blip2ForConditionalGeneration(config)).save_pretrained(folder)
    return folder
