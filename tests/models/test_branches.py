"""Branches in one row equal each branch alone, in fp64: states, log-probabilities and every gradient."""

import math
import random
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from medtune.data.sample import Message, Sample
from medtune.errors import ModelError
from medtune.losses.log_probs import sequence_log_probs
from medtune.losses.vitask import response_rows
from medtune.models.common.branches import Branch, PackedRows, pack, pack_runs, shared_length
from medtune.modules.exemplar import TokenRows, insert_placeholders
from tests.objectives.tiny_vitask import family

NO, PAD, IMAGE, SLOT, WIDTH, VOCABULARY = -100, 0, 1, 2, 8, 23


class Reader(nn.Module):
    """Two layers in fp64 with rotary positions; image features are tokens, or what text attends to across."""

    def __init__(self, deep: bool) -> None:
        super().__init__()
        self.deep = deep
        self.embedding = nn.Embedding(VOCABULARY, WIDTH)
        self.layers = nn.ModuleList(nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(8)) for _ in range(2))
        self.output = nn.Linear(WIDTH, VOCABULARY)
        self.double()

    def hidden(self, tokens: Tensor, features: Tensor, **arguments: Any) -> Tensor:
        """As ``hidden`` of a VLM."""
        sees, mask, position = (arguments.get(name) for name in ("vision_mask", "mask", "input_pos"))
        h = self.embedding(tokens)
        if not self.deep:
            assert torch.equal((tokens == IMAGE).sum(dim=1), sees.sum(dim=1))
            h = h.masked_scatter((tokens == IMAGE)[:, :, None], features[sees])
        if arguments.get("replace") is not None:
            where, rows = arguments["replace"]
            h = h.masked_scatter(where[:, :, None], rows)
        if mask is None:
            mask = torch.ones(tokens.shape[1], tokens.shape[1], dtype=torch.bool).tril()[None]
        if position is None:
            position = torch.arange(tokens.shape[1])[None]
        for q, k, v, o, cross_q, cross_k, cross_v, last in self.layers:
            h = h + o(attend(rotated(q(h), position), rotated(k(h), position), v(h), mask))
            if self.deep:
                looked = attend(cross_q(h), cross_k(features), cross_v(features), sees | ~sees.any(2, keepdim=True))
                h = h + looked * sees.any(2, keepdim=True)
            h = h + last(h.tanh())
        return h

    def logits(self, hidden: Tensor) -> Tensor:
        return self.output(hidden)


def attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
    scores = (query @ key.transpose(1, 2) / WIDTH**0.5).masked_fill(~mask, -math.inf)
    return scores.softmax(-1) @ value


def rotated(values: Tensor, position: Tensor) -> Tensor:
    angle = position[:, :, None] * torch.tensor([1.0, 0.1, 0.01, 0.001], dtype=torch.float64)
    real, imaginary = values.chunk(2, dim=-1)
    cosine, sine = angle.cos(), angle.sin()
    return torch.cat([real * cosine - imaginary * sine, real * sine + imaginary * cosine], dim=-1)


@dataclass
class Row:
    """One prefix, what it sees, its exemplar's place, and its branches; an empty branch is one that it lacks."""

    prefix: list[int]
    labels: list[int]
    sees: list[list[bool]]
    branches: list[tuple[list[int], list[int]]]


def drawn(rng: random.Random, length: int) -> tuple[list[int], list[int]]:
    tokens = [rng.randrange(3, VOCABULARY) for _ in range(length)]
    return tokens, [token if rng.random() < 0.6 else NO for token in tokens]


def drawn_rows(rng: random.Random, most: int, supervised_prefix: bool, lacking: bool) -> list[Row]:
    """Two to four rows with three features each and up to ``most`` branches."""
    rows = []
    for _ in range(rng.randint(2, 4)):
        before, after = rng.randint(0, 3), rng.randint(0, 4)
        tokens, labels = drawn(rng, before + after + 4)
        tokens[before : before + 4], labels[before : before + 4] = [IMAGE] * 3 + [SLOT], [NO] * 4
        if not supervised_prefix:
            labels = [NO] * len(labels)
        visible = [[place > before, place > before + 1, rng.random() < 0.5] for place in range(len(tokens))]
        lengths = [rng.randint(0 if lacking else 1, 5) for _ in range(most)]
        rows.append(Row(tokens, labels, visible, [drawn(rng, length) for length in lengths]))
    return rows


def padded(rows: list[list[Any]], side: str, fill: Any) -> Tensor:
    width = max(map(len, rows))
    fillers = [[fill] * (width - len(row)) for row in rows]
    both = [[*f, *row] if side == "left" else [*row, *f] for row, f in zip(rows, fillers, strict=True)]
    return torch.tensor(both) if width else torch.zeros(len(rows), 0, dtype=torch.long)


def text_rows(rows: list[Row], side: str, deep: bool, branch: int | None = None) -> TokenRows:
    """The prefixes, or the runs of prefix and one branch."""
    joined = (
        [([*r.prefix, *r.branches[branch][0]], [*r.labels, *r.branches[branch][1]]) for r in rows]
        if (branch is not None)
        else [(r.prefix, r.labels) for r in rows]
    )
    sees = [[*r.sees, *[r.sees[-1]] * (len(t) - len(r.sees))] for r, (t, _) in zip(rows, joined, strict=True)]
    real = padded([[True] * len(tokens) for tokens, _ in joined], side, False)
    tokens = padded([tokens for tokens, _ in joined], side, PAD)
    vision_mask = padded(sees, side, [False] * 3) if deep else torch.ones(len(rows), 3, dtype=torch.bool)
    return TokenRows(tokens, vision_mask, padded([labels for _, labels in joined], side, NO), real, tokens == SLOT)


def branch_of(rows: list[Row], number: int, side: str) -> Branch:
    tokens, labels = ([r.branches[number][part] for r in rows] for part in (0, 1))
    real = padded([[1] * len(one) for one in tokens], side, 0).bool()
    return Branch(padded(tokens, side, PAD), padded(labels, side, NO), real)


def run(model: Reader, text: TokenRows, features: Tensor, slots: Tensor, **more: Tensor) -> Tensor:
    assert text.placeholders is not None
    replace = text.placeholders, slots
    return model.hidden(text.tokens, features, vision_mask=text.vision_mask, replace=replace, **more)


def log_prob(model: Reader, states: Tensor, labels: list[int]) -> Tensor:
    """Full logits, one token at a time; the state before a label predicts it."""
    total = torch.zeros((), dtype=torch.float64)
    for place, label in enumerate(labels):
        if label != NO and place > 0:
            exponentials = model.logits(states[place - 1]).exp()
            total = total + (exponentials[label] / exponentials.sum()).log()
    return total


def check(model: Reader, rows: list[Row], packed: PackedRows, most: int) -> None:
    """States, sums, counts and gradients of packed rows against one forward pass for each branch."""
    features = torch.randn(len(rows), 3, WIDTH, dtype=torch.float64, requires_grad=True)
    slots = torch.randn(len(rows), WIDTH, dtype=torch.float64, requires_grad=True)
    inputs = [features, slots, *model.parameters()]
    hidden = run(model, packed.rows, features, slots, mask=packed.mask, input_pos=packed.input_pos)
    states, (sums, counts) = packed.unpack(hidden), packed.log_probs(hidden, model.logits, 5)
    labels, filled = packed.unpack_labels(), packed.filled
    assert sums.shape == counts.shape == (len(rows), most) and sums.dtype == torch.float64
    found, expected = [], []
    for number, row in enumerate(rows):
        for index, (tokens, asked) in enumerate(row.branches):
            if not tokens:
                assert sums[number, index] == 0 and counts[number, index] == 0 and not filled[number, index].any()
                assert bool((labels[number, index] == NO).all())
                continue
            alone = text_rows([Row(row.prefix, row.labels, row.sees, [(tokens, asked)])], "right", model.deep, 0)
            h = run(model, alone, features[number : number + 1], slots[number : number + 1])[0]
            whole, tail = [*row.labels, *asked], h[len(row.prefix) - 1 :]
            assert counts[number, index] == sum(label != NO for label in whole[1:])
            assert filled[number, index].tolist() == [place <= len(tokens) for place in range(filled.shape[2])]
            assert labels[number, index, : 1 + len(tokens)].tolist() == [NO, *asked]
            assert bool((labels[number, index, 1 + len(tokens) :] == NO).all())
            found += [states[number, index, : 1 + len(tokens)].flatten(), sums[number, index, None]]
            expected += [tail.flatten(), log_prob(model, h, whole)[None]]
    ours, theirs = torch.cat(found), torch.cat(expected)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-10)
    upstream = torch.randn_like(theirs)
    for first, second in zip(
        *(torch.autograd.grad((one.tanh() * upstream).sum(), inputs, allow_unused=True) for one in (ours, theirs)),
        strict=True,
    ):
        assert (first is None) == (second is None)
        if first is not None and second is not None:
            torch.testing.assert_close(first, second, rtol=0, atol=1e-10)


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("deep", [False, True])
def test_packed_branches_are_each_branch_alone(deep: bool, seed: int) -> None:
    rng = random.Random(seed)
    torch.manual_seed(seed)
    most, sides = 1 + seed % 4, [rng.choice(["left", "right"]) for _ in range(3)]
    rows = drawn_rows(rng, most, supervised_prefix=seed % 2 == 0, lacking=True)
    branches = [branch_of(rows, number, sides[1]) for number in range(most)]
    packed = pack(text_rows(rows, sides[0], deep), branches, pad_id=PAD, pad_side=sides[2])  # type: ignore[arg-type]
    lengths = [len(r.prefix) + sum(len(tokens) for tokens, _ in r.branches) for r in rows]
    assert packed.rows.padding.sum(dim=1).tolist() == lengths and packed.rows.tokens.shape[1] == max(lengths)
    check(Reader(deep), rows, packed, most)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("deep", [False, True])
def test_packed_runs_are_each_run_alone(deep: bool, seed: int) -> None:
    rng = random.Random(seed)
    torch.manual_seed(seed)
    most = 1 + seed % 3
    rows = drawn_rows(rng, most, supervised_prefix=seed % 2 == 0, lacking=False)
    runs = [text_rows(rows, "right", deep, number) for number in range(most)]
    packed = pack_runs(runs, torch.tensor([len(row.prefix) for row in rows]), pad_id=PAD)
    features, slots = torch.randn(len(rows), 3, WIDTH).double(), torch.randn(len(rows), WIDTH).double()
    model = Reader(deep)
    hidden = run(model, packed.rows, features, slots, mask=packed.mask, input_pos=packed.input_pos).flatten(0, 1)
    for number, one in enumerate(runs):
        assert one.labels is not None
        (places, targets), (alone, asked) = packed.supervised(number + 1), response_rows(one.labels)
        expected = run(model, one, features, slots).flatten(0, 1)[alone]
        torch.testing.assert_close(hidden[places], expected, rtol=0, atol=1e-10)
        assert torch.equal(targets, asked)
    # Padding of a run is its continuation here, so only what the runs hold is compared.
    sums, counts = packed.log_probs(hidden.view(*packed.segment.shape, -1), model.logits, 4)
    for number, one in enumerate(runs):
        h = run(model, one, features, slots)
        for row in range(len(rows)):
            whole = [*rows[row].labels, *rows[row].branches[number][1]]
            assert sums[row, number].item() == pytest.approx(log_prob(model, h[row], whole).item(), abs=1e-10)
            assert counts[row, number] == sum(label != NO for label in whole[1:])


def test_gradients_of_packed_runs_are_those_of_each_run() -> None:
    rng = random.Random(3)
    torch.manual_seed(3)
    rows, model = drawn_rows(rng, 2, supervised_prefix=True, lacking=False), Reader(False)
    runs = [text_rows(rows, "right", False, number) for number in range(2)]
    packed = pack_runs(runs, torch.tensor([len(row.prefix) for row in rows]), pad_id=PAD)
    features, slots = torch.randn(len(rows), 3, WIDTH).double(), torch.randn(len(rows), WIDTH).double()
    hidden = run(model, packed.rows, features, slots, mask=packed.mask, input_pos=packed.input_pos)
    sums, _ = packed.log_probs(hidden, model.logits, 3)
    loss = -logsigmoid(sums[:, 0] - sums[:, 1]).sum()
    alone = [run(model, one, features, slots) for one in runs]
    plain = torch.zeros((), dtype=torch.float64)
    for row, one in enumerate(rows):
        first, second = (log_prob(model, alone[i][row], [*one.labels, *one.branches[i][1]]) for i in range(2))
        plain = plain - logsigmoid(first - second)
    ours, theirs = (torch.autograd.grad(one, list(model.parameters()), allow_unused=True) for one in (loss, plain))
    for first_gradient, second_gradient in zip(ours, theirs, strict=True):
        if second_gradient is not None:
            torch.testing.assert_close(first_gradient, second_gradient, rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", ["cross-attention", "internvl"])
def test_a_preference_pair_on_models_of_both_kinds(name: str) -> None:
    """Two responses to one question on one picture: sums and gradients of packed rows and of whole rows alone."""
    model, transform = family(name)
    picture = Image.new("RGB", (16, 16), (220, 30, 30))
    answers = [("red", "leaf green"), ("a long red answer", "red")]

    def collated(which: int) -> dict[str, Any]:
        turns = [(Message("user", "Name it."), Message("assistant", pair[which])) for pair in answers]
        return transform.collate([transform(Sample("a", ("a.png",), two), [picture]) for two in turns])

    batches = [collated(which) for which in range(2)]
    features = model.encode(batches[0]["vision"])
    runs = [TokenRows(b["tokens"], b["vision_mask"], b["labels"], b["padding"]) for b in batches]
    packed = pack_runs(runs, shared_length(runs), pad_id=transform.pad_id)
    rows = packed.rows
    mask_and_positions = {"mask": packed.mask, "input_pos": packed.input_pos}
    hidden = model.hidden(rows.tokens, features, vision_mask=rows.vision_mask, **mask_and_positions)
    sums, counts = packed.log_probs(hidden, model.logits, 3)
    alone = [
        sequence_log_probs(model.hidden(r.tokens, features, vision_mask=r.vision_mask), r.labels, model.logits)
        for r in runs
    ]
    plain = torch.stack([found for found, _ in alone], dim=1)
    assert torch.equal(counts, torch.stack([count for _, count in alone], dim=1)) and bool((counts > 1).all())
    torch.testing.assert_close(sums, plain, rtol=1e-6, atol=1e-5)
    inputs = [p for p in model.parameters() if p.requires_grad]
    ours, theirs = (
        torch.autograd.grad(-logsigmoid(one[:, 0] - one[:, 1]).sum(), inputs, retain_graph=True, allow_unused=True)
        for one in (sums, plain)
    )
    for first, second in zip(ours, theirs, strict=True):
        if second is not None:
            torch.testing.assert_close(first, second, rtol=1e-4, atol=1e-5)


def early() -> TokenRows:
    """Two features in the first row, one in the second, which is padded."""
    return TokenRows(
        torch.tensor([[5, IMAGE, IMAGE, 6, 9], [5, IMAGE, 8, PAD, PAD]]),
        torch.tensor([[True, True], [True, False]]),
        torch.tensor([[NO, NO, NO, NO, 9], [NO, NO, 8, NO, NO]]),
    )


def values(tensor: Tensor | None) -> list:
    assert tensor is not None
    return tensor.int().tolist()


def test_a_run_with_exemplars_behind_the_run_without() -> None:
    plain = early()
    prompted = insert_placeholders(plain, image_id=IMAGE, placeholder_id=SLOT, count=1)
    packed = pack_runs([plain, prompted], torch.tensor([3, 2]), pad_id=PAD)
    rows, mask, positions = packed.rows, packed.mask, packed.input_pos
    assert values(rows.tokens) == [
        [5, IMAGE, IMAGE, 6, 9, SLOT, 6, 9, PAD],
        [5, IMAGE, 8, PAD, PAD, SLOT, 8, PAD, PAD],
    ]
    assert values(rows.labels) == [[NO] * 4 + [9, NO, NO, 9, NO], [NO, NO, 8, NO, NO, NO, 8, NO, NO]]
    assert values(rows.placeholders) == [[0, 0, 0, 0, 0, 1, 0, 0, 0]] * 2
    assert positions[0].tolist() == [0, 1, 2, 3, 4, 3, 4, 5, 5]
    assert positions[1].tolist() == [0, 1, 2, 3, 4, 2, 3, 4, 5]
    # the first row's last word with exemplar: it sees the beginning, the exemplar and its own words, not the others
    assert values(mask[0, 7]) == [1, 1, 1, 0, 0, 1, 1, 1, 0]
    assert values(mask[0, 4]) == [1, 1, 1, 1, 1, 0, 0, 0, 0]
    assert values(mask[1, 6]) == [1, 1, 0, 0, 0, 1, 1, 0, 0]
    assert bool(mask.any(dim=2).all()), "a token that sees nothing would be not a number"
    assert [values(part) for part in packed.supervised(1)] == [[3, 10], [9, 8]]
    assert [values(part) for part in packed.supervised(2)] == [[6, 14], [9, 8]]


def test_branches_by_hand() -> None:
    """Two branches, of which the second row lacks the first; padded on the left."""
    prefix = TokenRows(
        torch.tensor([[4, 5, 6], [7, 8, PAD]]),
        torch.ones(2, 0, dtype=torch.bool),
        padding=torch.tensor([[True] * 3, [True, True, False]]),
    )
    first = Branch(torch.tensor([[9], [PAD]]), torch.tensor([[9], [NO]]), torch.tensor([[True], [False]]))
    second = Branch(torch.tensor([[10, 11], [12, 13]]), torch.tensor([[10, NO], [12, 13]]))
    packed = pack(prefix, [first, second], pad_id=PAD, pad_side="left")
    assert values(packed.rows.tokens) == [[4, 5, 6, 9, 10, 11], [PAD, PAD, 7, 8, 12, 13]]
    assert values(packed.rows.padding) == [[1] * 6, [0, 0, 1, 1, 1, 1]]
    assert values(packed.segment) == [[0, 0, 0, 1, 2, 2], [-1, -1, 0, 0, 2, 2]]
    assert values(packed.input_pos) == [[0, 1, 2, 3, 3, 4], [0, 0, 0, 1, 2, 3]]
    assert values(packed.mask[0, 5]) == [1, 1, 1, 0, 1, 1] and values(packed.mask[0, 3]) == [1, 1, 1, 1, 0, 0]
    assert values(packed.mask[1]) == [
        [1, 0, 0, 0, 0, 0],
        [0, 1, 0, 0, 0, 0],
        [0, 0, 1, 0, 0, 0],
        [0, 0, 1, 1, 0, 0],
        [0, 0, 1, 1, 1, 0],
        [0, 0, 1, 1, 1, 1],
    ]
    assert values(packed.places[0]) == [[2, 3, 4], [2, 4, 5]] and values(packed.places[1, 1]) == [3, 4, 5]
    assert values(packed.filled) == [[[1, 1, 0], [1, 1, 1]], [[0, 0, 0], [1, 1, 1]]]
    assert values(packed.unpack_labels()) == [[[NO, 9, NO], [NO, 10, NO]], [[NO] * 3, [NO, 12, 13]]]
    assert [values(part) for part in packed.supervised()] == [[2, 2, 9, 10], [9, 10, 12, 13]]
    assert [values(part) for part in packed.supervised(1)] == [[2], [9]]


def test_without_a_supervised_token_there_is_a_zero_with_a_backward_pass() -> None:
    rows, model = drawn_rows(random.Random(1), 2, False, False), Reader(False)
    runs = [text_rows(rows, "right", False, number) for number in range(2)]
    runs = [TokenRows(r.tokens, r.vision_mask, torch.full_like(r.tokens, NO), r.padding, r.placeholders) for r in runs]
    packed = pack_runs(runs, torch.tensor([len(row.prefix) for row in rows]), pad_id=PAD)
    features, slots = torch.randn(len(rows), 3, WIDTH).double(), torch.randn(len(rows), WIDTH).double()
    hidden = run(model, packed.rows, features, slots, mask=packed.mask, input_pos=packed.input_pos)
    sums, counts = packed.log_probs(hidden, model.logits)
    sums.sum().backward()
    assert not sums.any() and not counts.any()
    assert model.output.weight.grad is not None and not model.output.weight.grad.any()
    assert [values(part) for part in packed.supervised(2)] == [[0], [NO]]


def test_a_branch_that_is_hopeless_spoils_no_other() -> None:
    """A logit of minus infinity is one branch's matter; a sum by multiplication would give not a number."""
    prefix = TokenRows(torch.tensor([[4, 5]]), torch.ones(1, 0, dtype=torch.bool))
    branches = [Branch(torch.tensor([[6]]), torch.tensor([[6]])), Branch(torch.tensor([[7]]), torch.tensor([[7]]))]
    packed = pack(prefix, branches, pad_id=PAD)

    def logits(states: Tensor) -> Tensor:
        return torch.zeros(len(states), 9).index_fill(1, torch.tensor([7]), -math.inf)

    with torch.no_grad():
        sums, _ = packed.log_probs(torch.zeros(1, 4, 3), logits)
    assert sums[0, 0].item() == pytest.approx(-math.log(8)) and sums[0, 1].item() == -math.inf


def test_runs_share_what_stands_before_anything_is_supervised() -> None:
    sees = torch.ones(2, 0, dtype=torch.bool)
    chosen = TokenRows(
        torch.tensor([[4, 5, 6, 7], [4, 5, 8, 9]]), sees, torch.tensor([[NO, NO, 6, 7], [NO, NO, NO, 9]])
    )
    others = torch.tensor([[NO, NO, 6, 8], [NO, NO, NO, NO]])
    rejected = TokenRows(torch.tensor([[4, 5, 6, 8], [4, 5, 8, 9]]), sees, others)
    # first row: the answers begin with the same word, which each answers for; second: each run keeps one of its own
    assert shared_length([chosen, rejected]).tolist() == [2, 3]
    longer = TokenRows(torch.tensor([[4, 5, 6, 7, 8], [4, 5, 8, 9, 9]]), sees)
    assert shared_length([TokenRows(chosen.tokens, sees), longer]).tolist() == [3, 3]
    filled = torch.tensor([[True, True, False, False], [True] * 4])
    assert shared_length([TokenRows(chosen.tokens, sees, padding=filled), longer]).tolist() == [2, 3]
    with pytest.raises(ModelError, match="row 1: the runs to be packed do not begin alike"):
        shared_length([chosen, TokenRows(torch.tensor([[4, 5], [5, 5]]), sees)])


def test_what_cannot_be_packed_is_refused() -> None:
    empty = TokenRows(
        torch.tensor([[4], [PAD]]), torch.ones(2, 0, dtype=torch.bool), padding=torch.tensor([[True], [False]])
    )
    with pytest.raises(ModelError, match="no token before its branches"):
        pack(empty, [Branch(torch.tensor([[5], [6]]))], pad_id=PAD)
