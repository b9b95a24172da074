"""A tiny tokenizer of the kind that Gemma comes with, and transformers' processor with it and Gemma 3's template."""

import json
from pathlib import Path

import transformers
from tokenizers import AddedToken, Regex, Tokenizer
from tokenizers.decoders import ByteFallback, Fuse, Replace, Sequence
from tokenizers.models import BPE
from tokenizers.normalizers import Replace as ReplaceText
from tokenizers.pre_tokenizers import Split
from tokenizers.trainers import BpeTrainer
from transformers import Gemma3ImageProcessorPil, Gemma3Processor

from tests.models.conftest import SENTENCES

SPECIAL = ["<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>", "<start_of_image>", "<end_of_image>"]
SOFT = "<image_soft_token>"
LINES = ["\n" * count for count in range(2, 6)]
# As published with Gemma 3, in its sense.
TEMPLATE = """{{ bos_token }}
{%- if messages[0]['role'] == 'system' -%}
{%- set first = (messages[0]['content'] if messages[0]['content'] is string else messages[0]['content'][0]['text'])
+ '\n\n' -%}
{%- set loop_messages = messages[1:] -%}
{%- else -%}{%- set first = '' -%}{%- set loop_messages = messages -%}{%- endif -%}
{%- for message in loop_messages -%}
{%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) -%}
{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}
{%- endif -%}
{{ '<start_of_turn>' + ('model' if message['role'] == 'assistant' else message['role']) + '\n'
+ (first if loop.first else '') }}
{%- if message['content'] is string -%}{{ message['content'] | trim }}
{%- else -%}
{%- for item in message['content'] -%}
{%- if item['type'] == 'image' -%}{{ '<start_of_image>' }}{%- else -%}{{ item['text'] | trim }}{%- endif -%}
{%- endfor -%}
{%- endif -%}
{{ '<end_of_turn>\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<start_of_turn>model\n' }}{%- endif -%}"""


def tokenizer_json(*, marks_are_special: bool = True) -> Tokenizer:
    """BPE with byte fallback in which spaces are a letter, and runs of line breaks one token each."""
    tokenizer = Tokenizer(BPE(unk_token="<unk>", byte_fallback=True))
    tokenizer.normalizer = ReplaceText(" ", "\u2581")
    tokenizer.pre_tokenizer = Split(Regex(" "), "merged_with_previous")
    tokenizer.decoder = Sequence([Replace("\u2581", " "), ByteFallback(), Fuse()])
    letters = [*map(chr, range(33, 127)), "\n", "\u2581", "\u2460"]
    texts = [text.replace(" ", "\u2581") for text in [*SENTENCES, "user\n", "model\n"]]
    content = json.loads(tokenizer.to_str())
    tokenizer.train_from_iterator(
        texts, BpeTrainer(vocab_size=500, special_tokens=SPECIAL, initial_alphabet=letters, show_progress=False)
    )
    content = json.loads(tokenizer.to_str())
    words = content["model"]["vocab"]
    for byte in range(256):  # the trainer makes no byte tokens
        words[f"<0x{byte:02X}>"] = len(words)
    if not marks_are_special:
        for entry in content["added_tokens"]:
            entry["special"] = entry["content"] not in SPECIAL[4:]
    tokenizer = Tokenizer.from_str(json.dumps(content))
    tokenizer.add_tokens([AddedToken(line, normalized=False) for line in LINES])
    tokenizer.add_special_tokens([AddedToken(SOFT, normalized=False)])
    return tokenizer


def processor(folder: Path, size: int, tokens: int) -> Gemma3Processor:
    """transformers' processor; writes ``tokenizer.json``."""
    tokenizer = tokenizer_json()
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    theirs = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<bos>",
        eos_token="<eos>",
        pad_token="<pad>",
        unk_token="<unk>",
        extra_special_tokens={
            "image_token": SOFT,
            "boi_token": "<start_of_image>",
            "eoi_token": "<end_of_image>",
        },
    )
    images = Gemma3ImageProcessorPil(size={"height": size, "width": size}, image_mean=[0.5] * 3, image_std=[0.5] * 3)
    return Gemma3Processor(images, theirs, chat_template=TEMPLATE, image_seq_length=tokens)
