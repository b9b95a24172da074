"""Tables and JSON files that users bring."""

import json

import pytest

from medtune.config import Component, check_component
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
        (
            "image,text\n1.png,\n",
            r"reports.csv, line 2: the report \(column 'text'\) is empty, or a mark .*; write it, or remove",
        ),
        ("image,text\n ,x\n", "line 2: the cell of column 'image' is empty"),
        ("image,text\n1.png,a, b\n", "line 2: 3 cells where the header has 2"),
    ],
)
def test_a_bad_row_of_a_table(tmp_path, pictures, text, said):
    with pytest.raises(DataError, match=said):
        report_csv_dataset(csv_file(tmp_path, text), pictures)[0]


@pytest.mark.parametrize("report", ["nan", "NULL", "N/A", "___", "..."])
def test_a_cell_that_stands_for_no_report_counts_as_empty(tmp_path, pictures, report):
    source = report_csv_dataset(csv_file(tmp_path, f"image,text\n1.png,{report}\n2.png,x\n"), pictures)
    with pytest.raises(DataError, match=r"line 2: the report \(column 'text'\) is empty, or a mark for none"):
        source[0]
    assert source[1].id == "reports:3"


def test_a_table_of_a_german_excel(tmp_path, pictures):
    path = tmp_path / "reports.csv"
    path.write_bytes("Bild;Befund\r\n1;Größe 1,5 cm\r\n2.png;x\r\n".encode("cp1252"))
    options = {"delimiter": ";", "encoding": "cp1252", "image_suffix": ".png"}
    source = report_csv_dataset(str(path), pictures, "Bild", "Befund", **options)
    assert source[0].to_dict() == row("reports:2", "Größe 1,5 cm", ("1.png",)) and source[1].images == ("2.png",)
    with pytest.raises(DataError, match="line 2: this is not UTF-8 text; .*encoding: cp1252"):
        report_csv_dataset(str(path), pictures, "Bild", "Befund", delimiter=";")
    other = report_csv_dataset(str(path), pictures, "Bild", "Befund", **{**options, "encoding": "latin-1"})
    assert source.fingerprint() != other.fingerprint()


def test_a_wrong_image_column_is_named_without_its_cells(tmp_path, pictures):
    source = report_csv_dataset(csv_file(tmp_path, "name,text\nMr Miller,x\n"), pictures, image_column="name")
    with pytest.raises(DataError, match="line 2: the cell of column 'name' is not the path of an image") as caught:
        source[0]
    assert "Miller" not in str(caught.value)


def test_images_whose_files_have_no_suffix(tmp_path, pictures):
    (tmp_path / "images/1.png").rename(tmp_path / "images/IM0001")
    path = csv_file(tmp_path, "image,text\nIM0001,x\nIM0002,y\n")
    source = report_csv_dataset(path, pictures)
    assert source.image_sizes(source[0]) == [(17, 16)]
    with pytest.raises(DataError, match="line 3: .* give image_suffix"):
        source[1]
    assert report_csv_dataset(path, pictures, image_suffix="")[1].images == ("IM0002",)
    with pytest.raises(ConfigError, match="image_suffix: 'png' must begin with a dot"):
        report_csv_dataset(path, pictures, image_suffix="png")


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
        ({"id": "a"}, "chat.json, item 1: the field 'messages' is missing; .* 'conversations' are read too"),
        ({"id": "a", "conversations": "x"}, "chat.json, item 1: an item needs a list 'conversations'"),
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


def chat(tmp_path, items, name="chat.json"):
    path = tmp_path / name
    path.write_text(json.dumps(items))
    return str(path)


def spoken(text="What?", answer="A cell."):
    return [{"from": "human", "value": text}, {"from": "gpt", "value": answer}]


def test_llava_rows_with_one_id_get_their_numbers(tmp_path):
    items = [{"id": "a", "conversations": spoken(answer=text)} for text in ("x", "y", "z")]
    source = llava_json_dataset(chat(tmp_path, [*items, {"id": "b", "conversations": spoken()}]))
    assert [source[n].id for n in range(4)] == ["a", "a:2", "a:3", "b"]
    assert [source[n].messages[1].content for n in range(3)] == ["x", "y", "z"]
    assert source.where(source[2]) == "chat.json, item 3 (id 'a:3')"


def test_a_llava_row_that_repeats_another_in_every_byte_is_refused(tmp_path):
    item = {"id": "a", "conversations": spoken()}
    source = llava_json_dataset(chat(tmp_path, [item, item]))
    with pytest.raises(DataError, match=r"chat.json, item 2: the row repeats chat.json, item 1 \(id 'a'\)"):
        source[1]


def test_repeated_ids_may_be_refused_in_llava_rows_and_numbered_in_json_lines(tmp_path):
    items = [{"id": "a", "conversations": spoken(answer=text)} for text in ("x", "y")]
    with pytest.raises(DataError, match="the id 'a' is also that of"):
        llava_json_dataset(chat(tmp_path, items), repeated_ids="refuse")[1]
    lines = write_rows(tmp_path / "a.jsonl", [row("a", "x"), row("a", "y")])
    assert jsonl_dataset(str(lines), repeated_ids="number")[1].id == "a:2"
    with pytest.raises(ConfigError, match="repeated_ids: 'other' is unknown"):
        jsonl_dataset(str(lines), repeated_ids="other")


def test_llava_images_without_tags_are_read(tmp_path, pictures):
    items = [{"id": "a", "images": ["1.png", "2.png"], "conversations": spoken()}]
    source = llava_json_dataset(chat(tmp_path, items), pictures)
    assert source[0].images == ("1.png", "2.png") and source.image_sizes(source[0]) == [(17, 16), (18, 16)]


def test_a_system_prompt_beside_the_turns_is_read(tmp_path):
    items = [{"id": "a", "system_prompt": "Be brief.", "conversations": spoken()}]
    assert llava_json_dataset(chat(tmp_path, items))[0].messages[0] == Message("system", "Be brief.")


def test_each_of_the_two_json_readers_reads_the_files_of_the_other(tmp_path):
    items = [{"id": "a", "conversations": spoken()}, {"id": "b", "conversations": spoken(answer="x")}]
    lines = str(write_rows(tmp_path / "lines.jsonl", items))
    read = [
        [source[n].to_dict() for n in range(len(source))]
        for source in (
            jsonl_dataset(lines),
            llava_json_dataset(lines),
            jsonl_dataset(chat(tmp_path, items)),
            llava_json_dataset(chat(tmp_path, items)),
        )
    ]
    assert len(read[0]) == 2 and all(rows == read[0] for rows in read)


@pytest.mark.parametrize("build", [jsonl_dataset, llava_json_dataset])
def test_a_list_of_files_is_read_one_after_the_other(tmp_path, build):
    files = [str(write_rows(tmp_path / f"{name}.jsonl", [row("1", name), row("2", name)])) for name in "ab"]
    source = build(files)
    assert [source[n].id for n in range(4)] == ["a/1", "a/2", "b/1", "b/2"]
    assert build(files[:1])[0].id == "1"
    with pytest.raises(ConfigError, match="source: the list of files is empty"):
        build([])


def test_a_config_may_name_a_file_or_a_list_of_files():
    for source in ("a.jsonl", ["a.jsonl", "b.jsonl"]):
        check_component(Component({"_component_": "medtune.datasets.jsonl_dataset", "source": source}), "test")
    with pytest.raises(ConfigError, match="expected a text or a list"):
        check_component(Component({"_component_": "medtune.datasets.jsonl_dataset", "source": [1]}), "test")


def test_a_list_of_tables_is_read_one_after_the_other(tmp_path, pictures):
    files = []
    for name in "ab":
        (tmp_path / f"{name}.csv").write_text(f"image,text\n1.png,{name}\n")
        files.append(str(tmp_path / f"{name}.csv"))
    source = report_csv_dataset(files, pictures)
    assert [source[n].messages[0].content for n in range(2)] == ["a", "b"]


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
