"""Language models whose output layer is their embedding table (``tie_word_embeddings``)."""

from torchtune.modules import TiedLinear, TransformerDecoder

from medtune.errors import ModelError
from medtune.models.lora.options import AdapterOptions


def tied(decoder: TransformerDecoder, yes: bool, lora: AdapterOptions | None = None) -> TransformerDecoder:
    """Replace the output layer of a decoder by its embedding table.

    Args:
        decoder: as one of torchtune's builders made it, with an output layer of its own.
        yes: whether to do it; otherwise the decoder stays as it is.
        lora: its adapters.

    Raises:
        ModelError: if the output layer is to carry an adapter, which would adapt the embeddings too.
    """
    if not yes:
        return decoder
    if lora is not None and lora.output:
        raise ModelError(
            "the model's output layer is its embedding table (tie_word_embeddings), which cannot carry an adapter; set "
            "apply_lora_to_output=false"
        )
    del decoder.output  # a module cannot be replaced by something else
    decoder.output = TiedLinear(decoder.tok_embeddings)
    return decoder
