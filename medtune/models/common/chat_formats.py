"""Chat formats without a system turn: Mistral's, Gemma's, and that of HuatuoGPT-Vision."""

from medtune.models.common.chat_template import ChatTemplate


def mistral(default_system: str = "", pad: str = "<unk>") -> ChatTemplate:
    """Mistral-Instruct's format, that of LLaVA-Med v1.5: ``<s>[INST] ... [/INST] ...</s>``.

    It has no system turn: a system message stands at the start of the first question. LLaVA-Med's own training code
    puts a space before ``</s>``, which Mistral's template does not have.

    Args:
        default_system: system message of samples that have none.
        pad: fills short rows.
    """
    return ChatTemplate(
        name="mistral",
        special=("</s>",),
        system=("", ""),
        user=("[INST] ", ""),
        assistant=(" [/INST]", "</s>"),  # it closes the question, and opens the answer
        stop=("</s>",),
        pad=pad,
        bos="<s>",
        default_system=default_system,
        answer_prefix=" ",
        system_end="\n\n",
    )


def gemma(default_system: str = "") -> ChatTemplate:
    """Gemma's format: ``<start_of_turn>user ... <end_of_turn>`` and ``<start_of_turn>model ... <end_of_turn>``.

    It has no system turn: a system message stands at the start of the first question. An empty line stands on both
    sides of each image. As in the published template, user and assistant speak in turns; a sample may also be a single
    answer.

    Args:
        default_system: system message of samples that have none; the published template writes none.
    """
    end = "<end_of_turn>\n"
    return ChatTemplate(
        name="gemma",
        special=("<start_of_turn>", "<end_of_turn>"),
        system=("", ""),
        user=("<start_of_turn>user\n", end),
        assistant=("<start_of_turn>model\n", end),
        stop=("<eos>", "<end_of_turn>"),
        pad="<pad>",
        bos="<bos>",
        default_system=default_system,
        image_separator="",
        image_break="\n\n",
        alternates=True,
        system_end="\n\n",
    )


def huatuo(default_system: str = "", end: str = "<|endoftext|>") -> ChatTemplate:
    """HuatuoGPT-Vision's format: ``<|user|>`` and ``<|assistant|>``, which are plain text, each on a line of its own.

    Args:
        default_system: system message of samples that have none; the authors write none.
        end: the token that ends an answer and fills short rows, the tokenizer's ``eos_token``.
    """
    return ChatTemplate(
        name="huatuo",
        special=(end,),
        system=("", "\n"),
        user=("<|user|>\n", "\n"),
        assistant=("<|assistant|>\n", f"{end}\n"),
        stop=(end,),
        pad=end,
        default_system=default_system,
        system_end="\n\n",
    )
