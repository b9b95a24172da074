"""The mini InternVL: small, ready to train from nothing, quantisable, and in need of its image."""

import inspect

import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from medtune.config import PACKAGE
from medtune.data.sample import Message, Sample
from medtune.models.common.parts import names_of
from medtune.models.mini import (
    lora_mini_internvl,
    mini_internvl,
    mini_internvl_transform,
    mini_transform,
    qlora_mini_internvl,
)

DECODERS = ["internlm2", "qwen2"]
TOKENIZER = PACKAGE / "assets" / "mini_tokenizer"


def test_the_same_seed_gives_the_same_weights():
    states = []
    for _ in range(2):
        torch.manual_seed(3)
        states.append(mini_internvl(300).state_dict())
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


@pytest.mark.parametrize("decoder", DECODERS)
def test_a_few_million_parameters_in_three_parts(decoder):
    model = mini_internvl(decoder=decoder)
    parts = model.parts()
    assert 1e6 < sum(p.numel() for p in model.parameters()) < 4e6
    assert [part for part, names in parts.items() if names] == ["vision", "projection", "decoder"]
    assert model.encoder(torch.zeros(2, 3, 64, 64)).shape == (2, 16, 128)


@pytest.mark.parametrize("embed_dim", [128, 192])
def test_image_features_begin_as_large_as_words(embed_dim):
    model = mini_internvl(300, embed_dim=embed_dim)
    features = model.encoder(torch.randn(8, 3, 64, 64))
    assert 0.35 < features.std() < 0.65 and features.mean().abs() < 0.1
    assert 0.45 < model.decoder.tok_embeddings.weight.std() < 0.55


def test_the_image_token_is_part_of_the_vocabulary():
    """So that an export opens in transformers, which embeds it before the feature takes its place."""
    model = mini_internvl(300)
    assert model.image_id == 300 and model.decoder.tok_embeddings.num_embeddings == 301
    assert model.family.hf_config()["image_token_id"] < model.family.hf_config()["text_config"]["vocab_size"]


@pytest.mark.parametrize("decoder", DECODERS)
def test_qlora_trains_its_adapters(decoder):
    model = qlora_mini_internvl(300, decoder=decoder, lora_parts=["vision", "decoder"])
    batch = {"images": torch.randn(1, 1, 1, 3, 64, 64), "tiles": torch.ones(1, 1, dtype=torch.long)}
    tokens = torch.tensor([[1, *[300] * 16, 2, 3]])
    for _ in range(2):  # at first B is zero, and so is the gradient of A
        model.logits(model.hidden(tokens, model.encode(batch))).square().mean().backward()
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "lora_b" in name:
                    parameter += 0.01
    adapters = names_of("adapter", model.parts())
    found = dict(model.named_parameters())
    assert all(found[name].grad.abs().max() > 0 for name in adapters)
    assert all(parameter.grad is None for name, parameter in found.items() if name not in adapters)
    assert all(value.dtype == torch.float32 for key, value in model.encoder.state_dict().items())


def test_adapted_builders_take_what_the_plain_one_takes():
    plain = inspect.signature(mini_internvl).parameters
    adapted = inspect.signature(lora_mini_internvl).parameters
    assert {name: p.default for name, p in plain.items()}.items() <= {n: p.default for n, p in adapted.items()}.items()
    assert inspect.signature(qlora_mini_internvl).parameters["quantize_base"].default is True


def asked(transform, pictures, answers, **kwargs):
    samples = [
        Sample(str(i), ("a.png",), (Message("user", "What is it?"), Message("assistant", answer)))
        for i, answer in enumerate(answers)
    ]
    return transform.collate([transform(s, [p], **kwargs) for s, p in zip(samples, pictures, strict=True)])


def test_the_transform_lays_text_out_as_the_mini_vlm_does():
    """Llama-3's format; an image is sixteen tokens instead of one."""
    ours, deep = mini_internvl_transform(TOKENIZER), mini_transform(TOKENIZER)
    pictures, answers = [Image.new("RGB", (50, 60), "red")], ["big, round"]
    early, other = asked(ours, pictures, answers), asked(deep, pictures, answers)
    image = ours.image_id
    assert image == deep.image_id and (early["tokens"] == image).sum() == 16
    assert [t for t in early["tokens"][0].tolist() if t != image] == [
        t for t in other["tokens"][0].tolist() if t != image
    ]
    assert early["labels"][early["labels"] != -100].tolist() == other["labels"][other["labels"] != -100].tolist()


def test_it_learns_to_tell_two_pictures_apart():
    """A falling loss proves nothing: with the pictures swapped it must be high."""
    pictures = [Image.new("RGB", (130, 64), "red"), Image.new("RGB", (130, 64), "blue")]
    batch = asked(mini_internvl_transform(TOKENIZER, max_num_tiles=2), pictures, ["big", "round"])
    assert batch["vision"]["tiles"].tolist() == [[3], [3]]
    model = mini_internvl(vision_layers=2, decoder_layers=2)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)

    def loss(images):
        features = model.encode({**batch["vision"], "images": images})
        logits = model.logits(model.hidden(batch["tokens"], features, vision_mask=batch["vision_mask"]))
        return F.cross_entropy(logits[:, :-1].flatten(0, 1), batch["labels"][:, 1:].flatten())

    for _ in range(40):
        optimizer.zero_grad()
        value = loss(batch["vision"]["images"])
        value.backward()
        optimizer.step()
    assert value < 0.1
    with torch.no_grad():
        assert loss(batch["vision"]["images"].flip(0)) > 2
