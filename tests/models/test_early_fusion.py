"""The seam of early fusion: where features go, what gets a gradient, and the same numbers by every way in."""

import pytest
import torch
from torchtune.models.qwen2 import lora_qwen2
from torchtune.modules import TransformerSelfAttentionLayer
from torchtune.modules.common_utils import delete_kv_caches
from torchtune.training import set_activation_checkpointing

from medtune.errors import ModelError
from medtune.models.common.early_collate import existing_features
from medtune.models.common.early_fusion import PARTS, EarlyFusionVLM
from medtune.models.common.names import expected_shapes
from medtune.models.common.parts import names_of
from medtune.models.lora.merge import merge_adapters
from tests.models.tiny_early import PER_TILE, SIZE, tiny_early_vlm

VOCAB = 40
IMAGE = VOCAB
I = [IMAGE] * PER_TILE  # noqa: E741
# Two images of two and one tiles; text alone; one image of one tile, in the middle of the text and padded.
ROWS = [[1, *I, *I, 2, *I, 3, 4], [5, 6, 2, 7, *[0] * 12], [8, 2, *I, 9, *[0] * 9]]
TILES = [[2, 1], [0, 0], [0, 1]]


@pytest.fixture(params=["qwen2", "llama2"])
def model(request):
    return tiny_early_vlm(VOCAB, kind=request.param)


@pytest.fixture
def batch():
    tiles = torch.tensor(TILES)
    length = max(map(len, ROWS))
    return {
        "tokens": torch.tensor([row + [0] * (length - len(row)) for row in ROWS]),
        "vision": {"images": torch.randn(3, 2, 2, 3, SIZE, SIZE), "tiles": tiles},
        "vision_mask": existing_features(tiles, 2, PER_TILE),
    }


def run(model, batch, **options):
    features = model.encode(batch["vision"])
    return model.hidden(batch["tokens"], features, vision_mask=batch["vision_mask"], **options)


def by_hand(model, tokens, images):
    """Embed, overwrite image tokens one after the other, run the decoder; for one row without padding."""
    table = model.decoder.tok_embeddings.weight
    found = iter(torch.cat([model.encoder(image[None])[0] for image in images]) if images else [])
    h = torch.stack([next(found) if token == IMAGE else table[token] for token in tokens])[None]
    for layer in model.decoder.layers:
        h = layer(h)
    return model.decoder.norm(h)[0]


def test_features_stand_where_their_tokens_are(model, batch):
    hidden = run(model, batch)
    pixels = batch["vision"]["images"]
    shown = [[pixels[0, 0, 0], pixels[0, 0, 1], pixels[0, 1, 0]], [], [pixels[2, 1, 0]]]
    for row, (tokens, images, real) in enumerate(zip(ROWS, shown, (16, 4, 7), strict=True)):
        # Measured: 5e-7 on values of size 3.
        assert (hidden[row, :real] - by_hand(model, tokens[:real], images)).abs().max() < 1e-5
    swapped = {**batch, "vision": {**batch["vision"], "images": pixels.flip(2)}}
    assert (run(model, swapped)[0] - hidden[0]).abs().max() > 0.01, "the order of tiles must matter"


def test_features_are_zero_where_there_is_no_tile(model, batch):
    features = model.encode(batch["vision"])
    assert features.shape == (3, 2 * 2 * PER_TILE, model.embed_dim)
    real = batch["vision_mask"]
    assert not features[~real].any() and features[real].abs().sum(-1).min() > 0
    alone = model.encoder(batch["vision"]["images"][0, 1, :1])
    assert (features[0, 2 * PER_TILE : 3 * PER_TILE] - alone[0]).abs().max() < 1e-6


def test_a_row_does_not_depend_on_its_neighbours(model, batch):
    together = run(model, batch)
    for row in range(3):
        one = {
            "tokens": batch["tokens"][row : row + 1],
            "vision": {name: value[row : row + 1] for name, value in batch["vision"].items()},
            "vision_mask": batch["vision_mask"][row : row + 1],
        }
        assert (run(model, one)[0] - together[row]).abs().max() < 1e-5
    other = {**batch, "vision": {**batch["vision"], "images": batch["vision"]["images"].clone()}}
    other["vision"]["images"][2] += 1
    assert torch.equal(run(model, other)[:2], together[:2])


def test_all_features_exist_without_a_mask(model):
    tokens = torch.tensor([[1, *I, 2]])
    images = torch.randn(1, 1, 1, 3, SIZE, SIZE)
    features = model.encode({"images": images, "tiles": torch.ones(1, 1, dtype=torch.long)})
    assert (
        model.hidden(tokens, features)[0] - by_hand(model, tokens[0].tolist(), [images[0, 0, 0]])
    ).abs().max() < 1e-5


@pytest.mark.parametrize("change", [-1, 1])
def test_wrong_numbers_are_named_with_their_row(model, batch, change):
    batch["tokens"][2, 6 if change == 1 else 5] = IMAGE if change == 1 else 3
    found = PER_TILE + change
    with pytest.raises(ModelError, match=f"row 2 of the batch has {found} image tokens for {PER_TILE} image features"):
        run(model, batch)


def test_replaced_rows_go_in_in_row_major_order_and_get_gradients(model, batch):
    where = batch["tokens"] == 2
    rows = torch.randn(3, model.embed_dim, requires_grad=True)
    hidden = run(model, batch, replace=(where, rows))
    swapped = {**batch, "tokens": batch["tokens"].masked_scatter(where, torch.tensor([11, 12, 13]))}
    table = model.decoder.tok_embeddings.weight
    assert torch.equal(run(model, batch, replace=(where, table[[11, 12, 13]])), run(model, swapped))
    hidden.square().sum().backward()
    assert (rows.grad.abs().sum(-1) > 0).all()
    assert not table.grad[2].any(), "the placeholder's own embedding must not be trained"
    assert all(p.grad is not None and p.grad.any() for p in model.encoder.parameters())
    with pytest.raises(ModelError, match="2 replacement embeddings .* 3 placeholder"):
        run(model, batch, replace=(where, rows[:2]))


def test_features_get_exact_gradients(model, batch):
    """The encoder's gradient is that of features put in by hand."""
    weights = torch.randn(16, model.embed_dim)
    (run(model, batch)[0] * weights).sum().backward()
    ours = {name: p.grad.clone() for name, p in model.encoder.named_parameters()}
    model.zero_grad()
    pixels = batch["vision"]["images"][0]
    (by_hand(model, ROWS[0], [pixels[0, 0], pixels[0, 1], pixels[1, 0]]) * weights).sum().backward()
    for name, p in model.encoder.named_parameters():
        assert (p.grad - ours[name]).abs().max() < 1e-4 * (1 + p.grad.abs().max())


def test_a_batch_of_text_gives_the_encoder_gradients_of_zero(model, batch):
    text = {
        "tokens": torch.tensor([[1, 2, 3], [4, 5, 0]]),
        "vision": {"images": torch.zeros(2, 1, 1, 3, SIZE, SIZE), "tiles": torch.zeros(2, 1, dtype=torch.long)},
        "vision_mask": torch.zeros(2, PER_TILE, dtype=torch.bool),
    }
    hidden = run(model, text)
    assert torch.equal(hidden, model.hidden(text["tokens"]))
    hidden.square().sum().backward()
    for name, parameter in model.encoder.named_parameters():
        assert parameter.grad is not None and not parameter.grad.any(), name


def test_logits_in_chunks_and_the_longest_row(model, batch):
    hidden = run(model, batch)
    whole = model.logits(hidden)
    assert whole.dtype == torch.float32 and whole.shape == (3, 16, VOCAB)
    chunks = torch.cat([model.logits(c) for c in hidden.flatten(0, 1).split(5)])
    assert (chunks - whole.flatten(0, 1)).abs().max() < 1e-6
    with pytest.raises(ModelError, match="257 tokens is longer than the model's 256"):
        model.hidden(torch.ones(1, 257, dtype=torch.long))
    assert model.compute(lambda m, x: (m is model, x), 5) == (True, 5)


@torch.inference_mode()
def test_a_cache_changes_nothing(model, batch):
    model.eval()
    expected = run(model, batch)[:1]
    model.setup_caches(1, torch.float32, encoder_max_seq_len=99, decoder_max_seq_len=20)
    assert model.caches_are_setup()
    features, real = model.encode(batch["vision"])[:1], batch["vision_mask"][:1]
    causal = torch.ones(16, 20, dtype=torch.bool).tril()[None]
    for _ in range(2):
        model.reset_caches()
        place = torch.arange(16)[None]
        prompt = model.hidden(
            batch["tokens"][:1, :14], features, vision_mask=real, mask=causal[:, :14], input_pos=place[:, :14]
        )
        steps = [
            model.hidden(batch["tokens"][:1, i : i + 1], mask=causal[:, i : i + 1], input_pos=place[:, i : i + 1])
            for i in (14, 15)
        ]
        # Measured: 2e-7 on values of size 3.
        assert (torch.cat([prompt, *steps], dim=1) - expected).abs().max() < 1e-5
    delete_kv_caches(model)
    assert not model.caches_are_setup()


@pytest.mark.parametrize("checkpointed", [False, True])
def test_every_parameter_is_in_exactly_one_part(model, checkpointed):
    if checkpointed:
        set_activation_checkpointing(model, auto_wrap_policy={TransformerSelfAttentionLayer})
    parts = model.parts()
    assert tuple(parts) == PARTS
    listed = [name for names in parts.values() for name in names]
    assert sorted(listed) == sorted(name for name, _ in model.named_parameters())
    assert all(name.startswith("encoder.vision.") for name in parts["vision"])
    assert parts["projection"] == ["encoder.projection.weight", "encoder.projection.bias"]
    assert "decoder.tok_embeddings.weight" in parts["decoder"] and names_of("adapter", parts) == []
    model.proxy = torch.nn.Linear(2, 2)
    with pytest.raises(ModelError, match="proxy.weight is in no part"):
        model.parts()


def test_adapters_alone_train_and_can_be_merged(batch):
    plain = tiny_early_vlm(VOCAB)
    sizes = {"num_layers": 2, "num_heads": 2, "num_kv_heads": 2, "embed_dim": 16, "max_seq_len": 256}
    decoder = lora_qwen2(
        ["q_proj", "v_proj"], vocab_size=VOCAB, intermediate_dim=32, lora_rank=2, lora_alpha=8, **sizes
    )
    model = EarlyFusionVLM(decoder, plain.encoder, image_id=IMAGE, family=plain.family, adapters_only=True)
    adapters = model.parts()["adapter.decoder"]
    parameters = dict(model.named_parameters())
    assert len(adapters) == 8 and {name for name, p in parameters.items() if p.requires_grad} == set(adapters)
    for name in adapters:
        torch.nn.init.normal_(parameters[name], std=0.3)
    hidden = run(model, batch)
    hidden.square().sum().backward()
    assert all(parameters[name].grad.any() for name in adapters)
    merged = merge_adapters(model.state_dict(), model)
    assert merged.keys() == plain.state_dict().keys() == expected_shapes(plain).keys()
    plain.load_state_dict(merged)
    # Measured: 8e-7 on values of size 2.6; without the adapters 3.0.
    assert (run(plain, batch) - hidden).abs().max() < 1e-5
