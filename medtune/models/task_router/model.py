"""The task classifier of ME-VLIP: GLiClass as a model that medtune's trainer trains.

The network is the package ``gliclass``'s. It is imported when a model is built, because the import takes seconds.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from medtune.data.writing import json_bytes
from medtune.errors import ConfigError, ModelError
from medtune.models.common.family import ModelFamily, StateDict
from medtune.models.common.interface import BatchShape
from medtune.models.task_router.transform import PROMPT_TOKENS, QuestionTransform

MODEL_TYPE = "GLiClass"
ClassPooling = Literal["average", "first"]
TextPooling = Literal["avg", "first"]
_PREFIX = "network."
_ENCODER = "network.model.encoder_model."
# Keys of an encoder's config that name files or versions and build nothing.
_NOT_BUILT = ("_name_or_path", "transformers_version", "architectures", "dtype", "torch_dtype", "auto_map")

_DECISIVE = (
    "architectures", "architecture_type", "class_token_index", "class_token_pooling", "hidden_act", "hidden_size",
    "intermediate_size", "model_type", "normalize_features", "num_attention_heads", "num_hidden_layers",
    "pooling_strategy", "pos_att_type", "position_buckets", "relative_attention", "scorer_type", "text_token_index",
    "vocab_size",
)  # fmt: skip


class MaskedAverage(nn.Module):
    """Mean over the real tokens of each row.

    GLiClass's own mean counts padding too, so that a question's scores would depend on the length of its neighbours in
    the batch. Without padding the two are equal.

    Attributes:
        mask: [b, s], True at real tokens; set before each call.
    """

    mask: Tensor

    def forward(self, hidden: Tensor) -> Tensor:
        """[b, s, d] -> [b, d]."""
        mask = self.mask.to(hidden.dtype).unsqueeze(-1)
        return (hidden * mask).sum(dim=1) / mask.sum(dim=1)


class TaskRouterModel(nn.Module):
    """A GLiClass uni-encoder with its tokenizer and its labels.

    Labels and question are one sequence. A label's vector is that of its tokens, the question's vector that of all
    tokens; each passes two linear layers, and the score is their product.

    Args:
        transform: tokenizer and labels; the vocabulary has GLiClass's two tokens.
        encoder: ``config.json`` of the encoder, with ``model_type`` of a class in transformers. Code that a file names
            is never run.
        class_token_pooling: a label's vector: ``average`` over its tokens, or the ``first``, its ``<<LABEL>>``.
        text_pooling: the question's vector: mean over real tokens, or the first token.
        dropout: of the pooled vectors, in training.

    Attributes:
        missing: what the model needs and was not found; only on the meta device, when a run is planned.

    Raises:
        ConfigError: if ``gliclass`` is not installed, or transformers has no such encoder.
    """

    missing: tuple[str, ...] = ()
    reads_text = True
    images_as_tokens = False
    image_size = 0
    vocab_size = 0

    def __init__(
        self,
        transform: QuestionTransform,
        encoder: Mapping[str, Any],
        class_token_pooling: ClassPooling = "average",
        text_pooling: TextPooling = "avg",
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        self.transform = transform
        gliclass = _gliclass()
        config = gliclass.GLiClassModelConfig(
            encoder_config=_encoder_config(encoder, transform),
            # a name, which is only looked up as a folder with an adapter; nothing is downloaded
            encoder_model=f"encoder/{encoder['model_type']}",
            class_token_index=transform.label_id,
            text_token_index=transform.text_id,
            max_num_classes=len(transform.labels),
            problem_type="single_label_classification",
            class_token_pooling=class_token_pooling,
            pooling_strategy=text_pooling,
            architecture_type="uni-encoder",
            prompt_first=True,
            normalize_features=False,
            scorer_type="simple",
            dropout=dropout,
        )
        self.network = gliclass.GLiClassModel(config)
        if text_pooling == "avg":
            self.network.model.pooler = MaskedAverage()
        # Only normalised features are scaled, which these are not; and a parameter without dimension cannot be sharded.
        scale = self.network.model.logit_scale.detach()
        del self.network.model.logit_scale
        self.network.model.register_buffer("logit_scale", scale)
        self.family = self._family()

    @property
    def labels(self) -> tuple[str, ...]:
        """Names of the tasks."""
        return self.transform.labels

    @property
    def longest_text(self) -> int:
        """The most tokens of labels and question together."""
        return self.transform.max_seq_len

    @property
    def embed_dim(self) -> int:
        """Width of the encoder."""
        return int(self.network.config.hidden_size)

    def logits(self, tokens: Tensor, padding: Tensor) -> Tensor:
        """Scores of the labels, in the order in which each row names them.

        Args:
            tokens: [b, s], of :meth:`QuestionTransform.collate_tokens`.
            padding: [b, s], True at real tokens.

        Returns:
            [b, labels], in fp32.
        """
        if isinstance(self.network.model.pooler, MaskedAverage):
            self.network.model.pooler.mask = padding
        output = self.network(
            input_ids=tokens, attention_mask=padding.long(), max_num_classes=len(self.labels), return_dict=True
        )
        return output.logits.float()

    @torch.no_grad()
    def probabilities(self, questions: Sequence[str], orders: Sequence[Sequence[int]] | None = None) -> Tensor:
        """Softmax of the scores over the labels; the end of a question that is too long is left out.

        Args:
            questions: their texts.
            orders: for each question the order in which the prompt names the labels; None is the order of ``labels``.

        Returns:
            [questions, labels], in fp64, the columns in the order of ``labels``.
        """
        usual = range(len(self.labels))
        orders = [usual] * len(questions) if orders is None else orders
        rows = [self.transform.tokens(text, order, cut=True) for text, order in zip(questions, orders, strict=True)]
        device = next(self.parameters()).device
        batch = {name: value.to(device) for name, value in self.transform.collate_tokens(rows).items()}
        scores = self.logits(**batch)
        back = torch.tensor([list(order) for order in orders], device=device).argsort(dim=1)
        return scores.gather(1, back).double().softmax(dim=1)

    def rope_init(self) -> None:
        """Fill buffers that no weight file holds, after a build on the meta device. The name is torchtune's."""
        encoder = self.network.model.encoder_model
        tables = {name for name, _ in encoder.named_buffers()} - encoder.state_dict().keys()
        if tables:
            fresh = dict(type(encoder)(encoder.config).named_buffers())
            for name in tables:
                owner, _, own_name = name.rpartition(".")
                encoder.get_submodule(owner).register_buffer(own_name, fresh[name], persistent=False)

    def output_head(self) -> nn.Module | None:
        """None: there are too few logits for a separate output head."""
        return None

    def image_tokens(self, shape: BatchShape) -> int:
        """0: the router sees no image."""
        return 0

    def meta_forward(self, shape: BatchShape, embeds_gradient: bool) -> None:
        """Score dummy questions on the meta device; see :class:`medtune.models.common.interface.Trainable`."""
        tokens = torch.empty(shape.batch, shape.tokens, dtype=torch.long, device="meta")
        self.logits(tokens, torch.empty_like(tokens, dtype=torch.bool))

    def parts(self) -> dict[str, list[str]]:
        """``encoder``, and ``head``: the layers above it."""
        names = [name for name, _ in self.named_parameters()]
        return {
            "encoder": [name for name in names if name.startswith(_ENCODER)],
            "head": [name for name in names if not name.startswith(_ENCODER)],
        }

    def compute(self, fn: Callable[..., Any], *args: Any) -> Any:
        """Call ``fn(self, *args)``; see :meth:`medtune.models.common.early_fusion.EarlyFusionVLM.compute`."""
        return fn(self, *args)

    def load_encoder(self, state: StateDict, where: str) -> None:
        """Take over an encoder's weights; the rows of GLiClass's two tokens stay as they are.

        Args:
            state: names of the encoder in transformers, with or without the prefix of its class; heads are left out.
            where: for messages.

        Raises:
            ModelError: if tensors are missing or have another size.
        """
        encoder = self.network.model.encoder_model
        own, prefix = encoder.state_dict(), f"{encoder.base_model_prefix}."
        given = {name.removeprefix(prefix): value for name, value in state.items()}
        missing = [name for name in own if name not in given and not name.startswith("pooler.")]
        if missing:
            raise ModelError(f"{where} does not hold this encoder: no tensor {missing[0]!r}; check the model's encoder")
        embedding = next(name for name in own if name.endswith("word_embeddings.weight"))
        merged = own[embedding].clone()
        rows = min(len(merged), len(given[embedding])) if given[embedding].dim() == 2 else 0
        rows = min(rows, self.transform.label_id, self.transform.text_id)
        if rows and given[embedding].shape[1] == merged.shape[1]:
            merged[:rows] = given[embedding][:rows].to(merged.dtype)
            given[embedding] = merged
        wrong = [name for name in own if name in given and given[name].shape != own[name].shape]
        if wrong:
            raise ModelError(
                f"{where} does not fit the encoder: {wrong[0]} is {list(given[wrong[0]].shape)}, the model has "
                f"{list(own[wrong[0]].shape)}"
            )
        encoder.load_state_dict({name: given.get(name, own[name]) for name in own})

    def _family(self) -> ModelFamily:
        return ModelFamily(
            name="the task router",
            model_type=MODEL_TYPE,
            hf_to_tune=_with_prefix,
            tune_to_hf=_without_prefix,
            hf_config=self._published_config,
            tensors=frozenset(self.state_dict()),
            copies_config=False,
            own_files=self._tokenizer_files,
            layouts=(self._decisive_config,),
        )

    def _published_config(self) -> dict[str, Any]:
        config = json.loads(json.dumps(self.network.config.to_diff_dict()))
        inner = self.network.config.encoder_config
        config["encoder_config"] = {
            "model_type": inner.model_type,
            **{key: value for key, value in inner.to_diff_dict().items() if key not in _NOT_BUILT},
        }
        return {
            **{key: value for key, value in config.items() if key not in _NOT_BUILT},
            "architectures": ["GLiClassModel"],
            "model_type": MODEL_TYPE,
            "medtune_router": self.transform.settings(),
        }

    def _decisive_config(self) -> dict[str, Any]:
        """The keys of ``config.json`` that a checkpoint must agree with; labels and losses may be others."""
        config = self._published_config()
        inner = {key: config["encoder_config"][key] for key in _DECISIVE if key in config["encoder_config"]}
        return {**{key: config[key] for key in _DECISIVE if key in config}, "encoder_config": inner}

    def _tokenizer_files(self) -> dict[str, bytes]:
        """The tokenizer with GLiClass's tokens, so that both medtune and ``gliclass`` read the exported folder."""
        return {
            "tokenizer.json": self.transform.tokenizer_json().encode(),
            "tokenizer_config.json": json_bytes(self.transform.tokenizer_config()),
        }


def _with_prefix(state: StateDict) -> StateDict:
    return {name if name.startswith(_PREFIX) else f"{_PREFIX}{name}": value for name, value in state.items()}


def _without_prefix(state: StateDict) -> StateDict:
    return {name.removeprefix(_PREFIX): value for name, value in state.items()}


def _gliclass() -> Any:
    try:
        import gliclass
    except ImportError as error:
        raise ConfigError(
            "the task classifier needs the package gliclass: pip install 'medtune[routing]' (the TF-IDF router of the "
            "recipe tfidf_router needs no package)"
        ) from error
    return gliclass


def _encoder_config(encoder: Mapping[str, Any], transform: QuestionTransform) -> Any:
    from transformers.models.auto import CONFIG_MAPPING

    kind = encoder.get("model_type")
    if not isinstance(kind, str) or kind not in CONFIG_MAPPING:
        raise ConfigError(
            f"encoder: transformers has no encoder of type {kind!r}; give the config.json of a BERT-like one"
        )
    values = {key: value for key, value in encoder.items() if key not in ("model_type", *_NOT_BUILT)}
    return CONFIG_MAPPING[kind](**{**values, "vocab_size": transform.vocab_size})


__all__ = ["MODEL_TYPE", "PROMPT_TOKENS", "MaskedAverage", "TaskRouterModel"]
