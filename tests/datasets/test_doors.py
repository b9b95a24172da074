"""Tables and JSON files that users bring."""

import json

import pytest

from medtune.data.sample import Message
from medtune.data.source import SampleSource
from medtune.datasets import jsonl_dataset, llava_json_dataset, mixture_dataset, report_csv_dataset
from medtune.errors import ConfigError, DataError
from tests.data.tools import row, write_pictures, write_rows


@pytest.fixture
def pictures(tmp_path):
    return str(write_pictures(tmp_path / "images", 4))


def csv_file(tmp_path, text):
    path = tmp_path / "reports.csv"
    path.write_text(text, encoding="utf-8")
    return str(path)


def test_a_plain_table(tmp_path, pictures):
    source = report_csv_dataset(csv_file(tmp_path, 'image,text\n1.png,"big cell,\nround"\n2.png,x\n'), pictures)
    assert isinstance(source, SampleSource) and len(source) == 2
    assert source[0].to_dict() == row("reports:2", "big cell,\nround", ("1.png",))
    assert source[1].id == "reports:4"
    assert source.open_images(source[1])[0].getpixel((0, 0)) == (2, 2, 2)


def test_other_columns_ids_and_several_images(tmp_path, pictures):
    path = csv_file(tmp_path, "study,files,findings\ns1,1.png | 2.png,clear\n")
    source = report_csv_dataset(path, pictures, "files", "findings", id_column="study", image_separator="|")
    assert source[0].to_dict() == row("s1", "clear", ("1.png", "2.png"))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("image,text\n1.png,\n", r"reports.csv, line 2: the report \(column 'text'\) is empty; write it, or remove"),
        ("image,text\n ,x\n", "line 2: the cell of column 'image' is empty"),
        ("image,text\n1.png,a, b\n", "line 2: 3 cells where the header has 2"),
    ],
)
def test_a_bad_row_of_a_table(tmp_path, pictures, text, said):
    with pytest.raises(DataError, match=said):
        report_csv_dataset(csv_file(tmp_path, text), pictures)[0]


def test_a_misspelt_column_and_an_absent_root(tmp_path, pictures):
    with pytest.raises(DataError, match="no column 'text'; did you mean 'txt'"):
        report_csv_dataset(csv_file(tmp_path, "image,txt\n1.png,x\n"), pictures)
    with pytest.raises(DataError, match="image root .* does not exist"):
        report_csv_dataset(csv_file(tmp_path, "image,text\n1.png,x\n"), str(tmp_path / "absent"))


def test_a_duplicate_id_in_a_table(tmp_path, pictures):
    source = report_csv_dataset(csv_file(tmp_path, "id,image,text\na,1.png,x\na,2.png,y\n"), pictures, id_column="id")
    with pytest.raises(DataError, match="line 3: the id 'a' is also that of reports.csv, line 2"):
        source[1]


def test_the_columns_are_part_of_the_fingerprint(tmp_path, pictures):
    path = csv_file(tmp_path, "image,text,more\n1.png,x,y\n")
    prints = {report_csv_dataset(path, pictures, text_column=column).fingerprint() for column in ("text", "more")}
    assert len(prints) == 2


def test_llava_layout(tmp_path, pictures):
    turns = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "A cell."}]
    items = [{"id": "a", "image": "1.png", "conversations": turns}, {"conversations": [turns[1]], "model": "x"}]
    path = tmp_path / "chat.json"
    path.write_text(json.dumps(items, indent=1))
    source = llava_json_dataset(str(path), pictures)
    assert source[0].messages == (Message("user", "<image>\nWhat?"), Message("assistant", "A cell."))
    assert source[0].images == ("1.png",)
    assert (source[1].id, source[1].images) == ("chat:2", ())
    assert source.image_sizes(source[0]) == [(17, 16)]


@pytest.mark.parametrize(
    ("item", "said"),
    [
        ({"id": "a"}, "chat.json, item 1: an item needs a list 'conversations'"),
        ({"id": "a", "conversations": [{"from": "doctor", "value": "x"}]}, "item 1: a turn needs 'value' and a 'from'"),
        ({"id": "a", "conversations": [{"from": "gpt", "value": ""}]}, r"item 1 \(id 'a'\), message 1: .* is empty"),
        ({"id": "a", "conversations": [{"from": "human", "value": "<image>"}]}, "1 <image> tags for 0 images"),
    ],
)
def test_a_bad_item_of_the_llava_layout(tmp_path, item, said):
    path = tmp_path / "chat.json"
    path.write_text(json.dumps([item]))
    with pytest.raises(DataError, match=said):
        llava_json_dataset(str(path))[0]


def part(path, root=None, **more):
    arguments = {"source": str(path), **({"image_root": root} if root else {}), **more}
    return {"_component_": "medtune.datasets.jsonl_dataset", **arguments}


@pytest.fixture
def two_files(tmp_path, pictures):
    seen = write_rows(tmp_path / "seen.jsonl", [row(str(n), images=(f"{n}.png",)) for n in range(4)])
    return part(seen, pictures), part(write_rows(tmp_path / "text.jsonl", [row(str(n)) for n in range(8)]))


def test_a_mixture_holds_each_part_as_often_as_its_weight_says(two_files):
    seen, text = two_files
    source = mixture_dataset([{**seen, "weight": 2}, {**text, "weight": 0.5}])
    ids = [source[index].id for index in range(len(source))]
    assert sorted(ids[:8]) == sorted(2 * [f"seen/{n}" for n in range(4)])
    assert len(set(ids[8:])) == 4 and all(id.startswith("text/") for id in ids[8:])
    assert [image.getpixel((0, 0)) for image in source.open_images(source[3])] == [(3, 3, 3)]
    assert source.image_sizes(source[3]) == [(19, 16)] and source.open_images(source[9]) == []
    assert source.where(source[3]) == "seen.jsonl, line 4 (id '3')"


def test_the_fraction_of_a_mixture_is_fixed_by_the_seed(two_files):
    parts = [{**two_files[1], "weight": 0.5}]
    ids = [[source[n].id for n in range(4)] for source in (mixture_dataset(parts, seed) for seed in (0, 0, 1))]
    assert ids[0] == ids[1] != ids[2]
    assert mixture_dataset(parts, 0).fingerprint() != mixture_dataset(parts, 1).fingerprint()


def test_parts_of_one_name_stay_apart(two_files):
    source = mixture_dataset([two_files[0], two_files[0]])
    assert len({source[index].id for index in range(len(source))}) == 8


@pytest.mark.parametrize("weight", [0, -1, "2", None, True, float("nan"), 0.01])
def test_a_weight_that_leaves_nothing_is_refused(two_files, weight):
    with pytest.raises(ConfigError, match="mixture, part 1: (the|a) weight"):
        mixture_dataset([{**two_files[0], "weight": weight}])


def test_an_unknown_argument_of_a_part_is_refused(two_files):
    with pytest.raises(ConfigError, match="image_rot"):
        mixture_dataset([{**two_files[1], "image_rot": "x"}])
    with pytest.raises(ConfigError, match="at least one part"):
        mixture_dataset([])


def test_jsonl_without_images(two_files):
    assert len(jsonl_dataset(two_files[1]["source"])) == 8


def test_a_compressed_table_of_reports_is_refused(tmp_path, pictures):
    with pytest.raises(DataError, match="cannot be read one at a time; unpack it"):
        report_csv_dataset(str(tmp_path / "reports.csv.gz"), pictures)
