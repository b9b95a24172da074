"""Chat formats without a system turn: Mistral's, and that of HuatuoGPT-Vision."""

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
