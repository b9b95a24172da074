"""Published names of the language models and vision transformers that several families have in common.

Keys are torchtune's names below a layer, values those of transformers' Llama, Mistral, Qwen2 and CLIP. Gemma 3 and
SigLIP share them as far as they have the same layers.
"""

QKV = ("q_proj", "k_proj", "v_proj")
_ATTENTION = {f"attn.{name}": f"self_attn.{name}" for name in QKV}
DECODER_MAPS = _ATTENTION | {
    "attn.output_proj": "self_attn.o_proj",
    "mlp.w1": "mlp.gate_proj",
    "mlp.w2": "mlp.down_proj",
    "mlp.w3": "mlp.up_proj",
}
"""Linear layers of a decoder's layer; all of them can carry adapters."""
CLIP_MAPS = _ATTENTION | {"attn.output_proj": "self_attn.out_proj", "mlp.w1": "mlp.fc1", "mlp.w2": "mlp.fc2"}
"""Linear layers of a layer of CLIP or SigLIP."""
CLIP_NORMS = {"sa_norm": "layer_norm1", "mlp_norm": "layer_norm2"}
"""Norms of a layer of CLIP or SigLIP."""
_NORMS = {"sa_norm.scale": "input_layernorm.weight", "mlp_norm.scale": "post_attention_layernorm.weight"}


def decoder_tensors(prefix: str, layers: int, *, head: str | None, biased: bool) -> dict[str, str]:
    """Every tensor of a Llama, Mistral or Qwen2: its published name -> the state-dict key.

    Args:
        prefix: what stands before ``embed_tokens``, ``layers`` and ``norm``: ``model.`` or ``language_model.model.``.
        layers: depth.
        head: the published name of the output layer; None if it is the embedding table.
        biased: whether q, k and v have biases, as in Qwen2.
    """
    names = {
        f"{prefix}embed_tokens.weight": "decoder.tok_embeddings.weight",
        f"{prefix}norm.weight": "decoder.norm.scale",
    }
    if head is not None:
        names[head] = "decoder.output.weight"
    below = {f"{ours}.weight": f"{theirs}.weight" for ours, theirs in DECODER_MAPS.items()} | _NORMS
    if biased:
        below |= {f"attn.{name}.bias": f"self_attn.{name}.bias" for name in QKV}
    for layer in range(layers):
        names |= {f"{prefix}layers.{layer}.{b}": f"decoder.layers.{layer}.{a}" for a, b in below.items()}
    return names
