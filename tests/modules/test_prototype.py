"""SQ-LLaVA's prototype extractor: published values, and the authors' sums written out as they stand in the paper."""

import math

import pytest
import torch
import torch.nn.functional as F

from medtune.errors import ModelError
from medtune.modules.prototype import PrototypeExtractor

# Of the authors' sequence of operations, in fp64, with the weights and inputs of `published`.
GOLDEN = [
    0.66906307886451,
    -2.06264904895917,
    -0.04819045403336,
    -0.98524493764169,
    -0.68704614702494,
    -0.88873736577139,
    -0.90425285588687,
    -0.54595438076379,
]


def published() -> tuple[PrototypeExtractor, torch.Tensor]:
    """Four channels, six tokens, three prototypes; every weight but the two scalars is a sine of its place."""
    model = PrototypeExtractor(4, 4, prototypes=3, iterations=2).double()
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            if not name.startswith("sim_"):
                places = torch.arange(tensor.numel(), dtype=torch.float64)
                tensor.copy_(torch.sin(0.7 * places + len(name)).view_as(tensor))
    return model, torch.cos(0.37 * torch.arange(24, dtype=torch.float64)).view(1, 6, 4)


def literal(model: PrototypeExtractor, x: torch.Tensor) -> torch.Tensor:
    """The authors' sums over [b, n, l, d], a loop for a product, and x sigmoid(1.702 x)."""
    batch, length, dim = x.shape
    count = model.prototypes

    def bins(tokens: torch.Tensor) -> torch.Tensor:
        edges = [(n * length // count, -(-(n + 1) * length // count)) for n in range(count)]
        return torch.stack([tokens[:, start:end].mean(1) for start, end in edges], 1)

    value, feature = model.v(x), model.f(x)
    value = value / value.pow(2).sum(dim=1, keepdim=True).sqrt()  # per channel, over the tokens
    centers = bins(x)
    for _ in range(model.iterations):
        centers = model.c(centers)
        unit = centers / centers.norm(dim=-1, keepdim=True)
        scores = (unit[:, :, None, :] * value[:, None, :, :]).sum(-1).exp()
        share = scores / scores.sum(dim=1, keepdim=True)
        centers = (share[..., None] * feature[:, None]).sum(2)
    similarity = torch.sigmoid(
        model.sim_beta + model.sim_alpha * F.cosine_similarity(centers[:, :, None], x[:, None], dim=-1)
    )
    nearest = similarity.argmax(1)
    mask = torch.stack([(nearest == n).to(x.dtype) for n in range(count)], 1)
    similarity = similarity * mask
    out = (feature.unsqueeze(1) * similarity.unsqueeze(-1)).sum(2) + bins(feature)
    out = out / (mask.sum(-1, keepdim=True) + 1.0)
    y = x + (out.unsqueeze(2) * similarity.unsqueeze(-1)).sum(1)
    first, _, second = model.mlp
    h = F.linear(y, first.weight, first.bias)
    return F.linear(h * torch.sigmoid(1.702 * h), second.weight, second.bias)


def test_output_is_the_published_one():
    model, x = published()
    found = model(x)
    assert found.shape == (1, 6, 4)
    assert (found.flatten()[:8] - torch.tensor(GOLDEN, dtype=torch.float64)).abs().max() < 1e-13


@pytest.mark.parametrize(("prototypes", "length"), [(3, 12), (4, 10), (7, 7), (1, 5), (9, 6)])
def test_two_products_equal_the_sums_written_out_forward_and_backward(prototypes, length):
    torch.manual_seed(prototypes)
    model = PrototypeExtractor(6, 8, prototypes, iterations=3).double()
    with torch.no_grad():
        model.sim_alpha.fill_(1.7)
        model.sim_beta.fill_(-0.3)
    x = torch.randn(2, length, 6, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(2, length, 8, dtype=torch.float64)
    grads = []
    for form in (model, lambda tokens: literal(model, tokens)):
        result = form(x)
        inputs = [x, *model.parameters()]
        grads.append([result.detach(), *torch.autograd.grad((result * weight).sum(), inputs)])
    for name, ours, theirs in zip(["y", "x", *dict(model.named_parameters())], *grads, strict=True):
        assert (ours - theirs).abs().max() < 1e-12, name
        single = prototypes == 1 and name in ("c.weight", "c.bias", "v.weight", "v.bias")  # a softmax over one centre
        assert single or theirs.abs().max() > 1e-6, name


def test_values_are_normalised_over_the_tokens():
    """The axis that published weights were trained with: another token changes what the first one is assigned to."""
    model, x = published()
    value = model.v(x)
    assert torch.allclose(F.normalize(value, dim=1).pow(2).sum(1), torch.ones(1, 4, dtype=torch.float64))
    seen = []
    original = torch.softmax

    def spy(scores, dim):
        seen.append((scores, dim))
        return original(scores, dim=dim)

    torch.softmax = spy
    try:
        model(x)
    finally:
        torch.softmax = original
    centers = F.adaptive_avg_pool1d(x.transpose(1, 2), 3).transpose(1, 2)
    wanted = F.normalize(model.c(centers), dim=-1) @ F.normalize(value, dim=1).transpose(1, 2)
    assert len(seen) == 2 and seen[0][1] == 1 and torch.allclose(seen[0][0], wanted)


def test_names_are_those_of_published_files():
    shapes = {name: tuple(tensor.shape) for name, tensor in PrototypeExtractor(4, 6, 3).state_dict().items()}
    square = {f"{layer}.{side}": (4, 4) if side == "weight" else (4,) for layer in "cvf" for side in ("weight", "bias")}
    assert shapes == {
        "sim_alpha": (1, 1, 1),
        "sim_beta": (1, 1, 1),
        **square,
        "ln_1.weight": (4,),
        "ln_1.bias": (4,),
        "mlp.0.weight": (6, 4),
        "mlp.0.bias": (6,),
        "mlp.2.weight": (6, 6),
        "mlp.2.bias": (6,),
    }


def test_the_norm_that_is_not_used_is_no_parameter():
    model, x = published()
    before = model(x)
    model.ln_1.weight.mul_(3)
    assert torch.equal(model(x), before)
    assert not any(name.startswith("ln_1") for name, _ in model.named_parameters())


def test_images_of_a_batch_do_not_change_one_another():
    model, _ = published()
    x = torch.randn(3, 6, 4, dtype=torch.float64)
    assert torch.allclose(model(x), torch.cat([model(row[None]) for row in x]), atol=1e-14)


def test_no_tensor_grows_with_prototypes_times_tokens_times_width():
    """The authors' form holds [b, n, l, d]: 256 x 576 x 1024 numbers an image."""
    model = PrototypeExtractor(64, 64, 32)
    sizes = []

    class Sizes(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            sizes.append(out.numel() if isinstance(out, torch.Tensor) else 0)
            return out

    with Sizes():
        model(torch.randn(1, 128, 64))
    assert max(sizes) <= 128 * 64 < math.prod((128, 64, 32))


@pytest.mark.parametrize("wrong", [{"prototypes": 0}, {"iterations": 0}])
def test_impossible_sizes_are_refused(wrong):
    with pytest.raises(ModelError, match="at least 1"):
        PrototypeExtractor(4, 4, **wrong)
