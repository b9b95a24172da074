"""Arrays of items on disk: what is written is read back item by item, and damage is never read."""

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from medtune.data.shards import Shards
from medtune.errors import ConfigError, DataError

STARTS = np.array([0, 3, 5])
LENGTHS = [(4, 1), (0, 2), (7, 7), (1, 1), (2, 5)]


def items() -> list[dict[str, Tensor]]:
    """Per-token log-probabilities of two branches of different lengths, one of them empty, and one number."""
    generator = torch.Generator().manual_seed(3)
    return [
        {
            "chosen": torch.randn(first, generator=generator),
            "rejected": torch.randn(second, generator=generator),
            "margin": torch.randn(1, generator=generator).bfloat16(),
        }
        for first, second in LENGTHS
    ]


def written(folder: Path, rows: dict[str, np.ndarray] | None = None) -> Shards:
    folder.mkdir(exist_ok=True)
    shards = Shards(folder, STARTS, rows, "reference_log_probs")
    for shard in range(len(shards)):
        numbers = shards.numbers(shard)
        shards.write(shard, items()[numbers.start : numbers.stop])
    return shards


KNOWN = {name: np.array([pair[at] for pair in LENGTHS]) for at, name in enumerate(("chosen", "rejected"))}


@pytest.mark.parametrize("rows", [None, KNOWN, {"chosen": KNOWN["chosen"]}], ids=["kept", "known", "one of them"])
def test_ragged_arrays_are_read_back_in_any_order(rows: dict[str, np.ndarray] | None, tmp_path: Path) -> None:
    written(tmp_path, rows)
    reader = pickle.loads(pickle.dumps(Shards(tmp_path, STARTS, rows)))
    for number in (4, 0, 3, 1, 2, 0):
        found, expected = reader.item(number), items()[number]
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            assert found[name].dtype == value.dtype and torch.equal(found[name], value), (number, name)


def test_where_lengths_are_known_they_are_not_kept(tmp_path: Path) -> None:
    kept, known = written(tmp_path / "kept"), written(tmp_path / "known", KNOWN)
    with safe_open(kept.path(0), "pt") as file:
        assert sorted(file.keys()) == ["chosen", "chosen.rows", "margin", "rejected", "rejected.rows"]
    with safe_open(known.path(0), "pt") as file:
        assert sorted(file.keys()) == ["chosen", "margin", "rejected"]


def test_other_items_or_rows_than_announced_are_refused(tmp_path: Path) -> None:
    shards = Shards(tmp_path, STARTS, KNOWN)
    with pytest.raises(ValueError, match="has 3 items, and 2 were given"):
        shards.write(0, items()[:2])
    with pytest.raises(ValueError, match="chosen has other rows"):
        shards.write(0, items()[1:4])
    assert not any(tmp_path.iterdir())


def test_an_item_that_could_not_be_made_says_why(tmp_path: Path) -> None:
    shards = Shards(tmp_path, STARTS)
    shards.write(0, items()[:3], {1: "row 2: its image is torn"})
    with pytest.raises(DataError, match="^row 2: its image is torn$"):
        Shards(tmp_path, STARTS).item(1)
    assert torch.equal(shards.item(2)["chosen"], items()[2]["chosen"])


def header(path: Path) -> int:
    return 8 + int.from_bytes(path.read_bytes()[:8], "little")


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("place", ["first value", "last value", "rows", "shape", "note"])
def test_a_flipped_bit_is_refused_by_the_name_of_the_file(place: str, tmp_path: Path) -> None:
    shards = Shards(tmp_path, STARTS, key="reference_log_probs")
    shards.write(0, items()[:3], {1: "why"})
    shards.write(1, items()[3:])
    path = shards.path(0)
    data = path.read_bytes()
    end = data[: header(path)].rindex(b"}") + 1
    entries = json.loads(data[8:end])
    at = {
        "first value": header(path),
        "last value": len(data) - 1,
        "rows": header(path) + entries["chosen.rows"]["data_offsets"][0],
        "shape": data.index(b'"BF16"') + 1,
        "note": data.index(b"why"),
    }[place]
    flip(path, at)
    with pytest.raises(ConfigError, match=r"^reference_log_probs: .*shard_00000\.safetensors .*(delete|start again)"):
        Shards(tmp_path, STARTS, key="reference_log_probs").item(0)
    other = Shards(tmp_path, STARTS).item(3)["chosen"]
    assert torch.equal(other, items()[3]["chosen"]), "the other shard is read"


def test_a_shard_is_verified_once_for_all_that_share_the_reader(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written(tmp_path)
    reader, counted = Shards(tmp_path, STARTS), []
    verify = Shards._verify
    monkeypatch.setattr(Shards, "_verify", lambda self, *args: (counted.append(args[0]), verify(self, *args)))
    for number in (0, 1, 2, 3, 4):
        reader.item(number)
    worker = object.__new__(Shards)
    worker.__dict__.update(reader.__getstate__())  # as a forked data worker has it
    worker.item(4)
    assert counted == [0, 1] and reader._verified.is_shared()


def test_a_shard_of_an_older_version_is_read_without_a_checksum(tmp_path: Path) -> None:
    save_file(
        {"features": torch.arange(6.0).view(3, 2)}, tmp_path / "shard_00000.safetensors", {"failed": '{"1": "no"}'}
    )
    shards = Shards(tmp_path, np.array([0, 2]), {"features": np.array([1, 2])})
    assert shards.is_whole(0) and shards.item(0)["features"].tolist() == [[0.0, 1.0]]
    with pytest.raises(DataError, match="^no$"):
        shards.item(1)


def test_what_is_torn_is_not_whole(tmp_path: Path) -> None:
    shards = written(tmp_path, KNOWN)
    assert shards.is_whole(0) and shards.is_whole(1)
    shards.path(1).write_bytes(shards.path(0).read_bytes())  # of another number of items
    assert not shards.is_whole(1)
    shards.path(0).write_bytes(shards.path(0).read_bytes()[:-1])
    assert not shards.is_whole(0) and not Shards(tmp_path / "absent", STARTS).is_whole(0)
    assert not Shards(tmp_path, STARTS, {"other": KNOWN["chosen"]}).is_whole(1)
