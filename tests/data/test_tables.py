import gzip

import pytest

from medtune.data import tables
from medtune.data.tables import CsvFormat, parse_row, read_header, read_table
from medtune.errors import ConfigError, DataError


def table(tmp_path, text, encoding="utf-8"):
    path = tmp_path / "reports.csv"
    path.write_bytes(text.encode(encoding))
    return path


def test_rows_with_their_lines(tmp_path):
    path = table(tmp_path, 'image,text\r\na.png,"one,\ntwo ""x"""\r\n\r\n b.png , three\r\n')
    assert list(read_table(path, ["image"])) == [
        ("reports.csv, line 2", {"image": "a.png", "text": 'one,\ntwo "x"'}),
        ("reports.csv, line 5", {"image": "b.png", "text": "three"}),
    ]


def test_a_byte_order_mark_is_no_part_of_the_first_name(tmp_path):
    assert read_header(table(tmp_path, "image,text\n", "utf-8-sig"), ["image"]) == ["image", "text"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "is empty; its first line must name the columns image, text"),
        ("image,txt\n", r"line 1: there is no column 'text'; did you mean 'txt'\? \(the columns are 'image', 'txt'\)"),
        ("Image,text\n", "no column 'image'; did you mean 'Image'"),
        ("image,q\n", "no column 'text'; the columns are 'image', 'q'"),
        ("image;text\n", "no column 'image'; the columns must be separated by ','; .* give delimiter: ';'"),
        ("image,text,text\n", "the column 'text' is there twice"),
        ("image,text\na.png,one, two\n", "line 2: 3 cells where the header has 2; put .* into double quotes"),
        ("image,text\nb.png,x\na.png\n", "line 3: 1 cells where the header has 2"),
        ('image,text\na.png,"never closed\n', "line 2: this is not CSV .*check its quotes"),
    ],
)
def test_a_wrong_table_is_refused_by_line(tmp_path, text, said):
    with pytest.raises(DataError, match=said):
        list(read_table(table(tmp_path, text), ["image", "text"]))


def test_another_encoding_is_named(tmp_path):
    with pytest.raises(DataError, match="line 2: this is not UTF-8 text; save the table as UTF-8"):
        list(read_table(table(tmp_path, "image,text\na.png,Zölle\n", "latin-1"), ["image"]))


def test_an_absent_table(tmp_path):
    with pytest.raises(DataError, match="does not exist"):
        read_header(tmp_path / "none.csv", [])


def test_a_compressed_table_is_read_like_any_other(tmp_path):
    plain = table(tmp_path, 'image,text\na.png,"one,\ntwo"\nb.png,x\n')
    packed = tmp_path / "reports.csv.gz"
    packed.write_bytes(gzip.compress(plain.read_bytes()))
    assert [row for _, row in read_table(packed, ["image"])] == [row for _, row in read_table(plain, ["image"])]
    assert [where for where, _ in read_table(packed, [])] == ["reports.csv.gz, line 2", "reports.csv.gz, line 4"]
    for damaged in (packed.read_bytes()[:-12], plain.read_bytes()):
        packed.write_bytes(damaged)
        with pytest.raises(DataError, match=r"reports.csv.gz: the compressed file is damaged or cut off"):
            list(read_table(packed, ["image"]))


@pytest.mark.parametrize(("delimiter", "text"), [(";", "image;text"), ("\\t", "image\ttext"), ("|", "image|text")])
def test_a_table_with_another_delimiter(tmp_path, delimiter, text):
    mark = text[5]
    path = table(tmp_path, f'{text}\na.png{mark}"1,5 cm, {mark} left"\n')
    style = CsvFormat(delimiter)
    assert [row for _, row in read_table(path, ["text"], style)] == [{"image": "a.png", "text": f"1,5 cm, {mark} left"}]
    assert parse_row(path.read_bytes().splitlines()[1], "f", style) == ["a.png", f"1,5 cm, {mark} left"]


def test_a_table_of_a_german_excel(tmp_path):
    path = table(tmp_path, "Bild;Befund\r\na.png;größer 1,5 cm – früher\r\n", "cp1252")
    style = CsvFormat(";", "cp1252")
    assert next(iter(read_table(path, ["Bild"], style)))[1]["Befund"] == "größer 1,5 cm – früher"
    assert parse_row(path.read_bytes().splitlines()[1], "f", style)[1] == "größer 1,5 cm – früher"


@pytest.mark.parametrize("delimiter", ["", ";;", '"', "\n", " "])
def test_a_delimiter_that_cannot_be_used(delimiter):
    with pytest.raises(ConfigError, match="delimiter: .* must be one character"):
        CsvFormat(delimiter)


@pytest.mark.parametrize("encoding", ["utf-16", "utf-32", "none", "", "a\0b", "base64", "cp037"])
def test_an_encoding_that_cannot_be_used(encoding):
    with pytest.raises(ConfigError, match="encoding: .* is unknown or has no single bytes"):
        CsvFormat(",", encoding)


def test_a_cell_longer_than_the_limit_of_the_csv_module(tmp_path):
    long = "word " * 40_000
    assert list(read_table(table(tmp_path, f"image,text\na.png,{long}\nb.png,x\n"), []))[0][1]["text"] == long.strip()


def test_a_quote_that_is_never_closed_is_named_with_its_row(tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "LONGEST_CELL", 1000)
    limit = tables.csv.field_size_limit(1000)
    try:
        with pytest.raises(DataError, match="line 3: a cell of this row has more than 1,000 .* a quote is not closed"):
            list(read_table(table(tmp_path, 'image,text\na.png,x\nb.png,"' + "row,x\n" * 1000), []))
    finally:
        tables.csv.field_size_limit(limit)
