import pytest

from medtune.data.labels import classification_target
from medtune.datasets.medmnist import FACTS, RETINOPATHY
from medtune.datasets.retinopathy import prepare_retinopathy
from medtune.errors import ConfigError, DataError
from medtune.recipes.prepare import main
from tests.datasets.owners import write_picture

# The owners' layouts: IDRiD's table ends in columns without a name, Messidor-2's names may differ from its files'.
IDRID = "Image name,Retinopathy grade,Risk of macular edema ,,,\nIDRiD_001,4,0,,,\nIDRiD_002,0,1,,,\nIDRiD_003,2,0,,,\n"
MESSIDOR = (
    "image_id,adjudicated_dr_grade,adjudicated_dme,adjudicated_gradable\n"
    "20051020_43808_0100_PP.png,0.0,0.0,1\nIM000002.jpg,3.0,1.0,1\nIM000003.jpg,,,0\n"
)
APTOS = "id_code,diagnosis\n000c1434d8d7,2\n001639a390f0,4\n"


def idrid(folder):
    for number in (1, 2, 3):
        write_picture(folder / f"images/IDRiD_{number:03}.jpg", number)
    (folder / "labels.csv").write_text(IDRID)
    return "idrid", ["IDRiD_001.jpg", "IDRiD_002.jpg", "IDRiD_003.jpg"], [4, 0, 2]


def messidor(folder):
    write_picture(folder / "images/20051020_43808_0100_PP.png", 1)
    write_picture(folder / "images/IM000002.JPG", 2)
    (folder / "labels.csv").write_text(MESSIDOR)
    return "messidor", ["20051020_43808_0100_PP.png", "IM000002.JPG"], [0, 3]


def aptos(folder):
    for name in ("000c1434d8d7", "001639a390f0"):
        write_picture(folder / f"images/{name}.png", 1)
    (folder / "labels.csv").write_text(APTOS)
    return "aptos", ["000c1434d8d7.png", "001639a390f0.png"], [2, 4]


@pytest.mark.parametrize("owner", [idrid, messidor, aptos])
def test_from_the_owners_files_to_a_test_split(owner, tmp_path, monkeypatch):
    name, images, grades = owner(tmp_path)
    seen = {}
    monkeypatch.setattr("medtune.recipes.prepare.write_files", lambda folder, files, *_, **__: seen.update(files) or [])
    call = ["--config", f"prepare/{name}", f"data.annotations={tmp_path / 'labels.csv'}"]
    call += [f"data.images={tmp_path / 'images'}", f"image_root={tmp_path / 'images'}"]
    assert main(call) == 0 and set(seen) == {"test.jsonl", "training_majority.json", "manifest.json"}
    assert f'"{name}": "no diabetic retinopathy"' in seen["training_majority.json"].decode()


@pytest.mark.parametrize(
    ("owner", "columns"),
    [
        (idrid, ("Image name", "Retinopathy grade", None)),
        (messidor, ("image_id", "adjudicated_dr_grade", "adjudicated_gradable")),
        (aptos, ("id_code", "diagnosis", None)),
    ],
)
def test_they_take_the_instruction_of_retinamnist(owner, columns, tmp_path):
    name, images, grades = owner(tmp_path)
    prepared = prepare_retinopathy(name, str(tmp_path / "labels.csv"), str(tmp_path / "images"), *columns)
    samples = prepared.splits["test"]
    assert list(prepared.splits) == ["test"]
    assert [sample.images[0] for sample in samples] == images
    assert [classification_target(sample).indices for sample in samples] == [(grade,) for grade in grades]
    assert samples[0].meta["set"] == name and samples[0].meta["task"] == "ordinal"
    assert samples[0].messages[0].content == FACTS["retina"].words.instruction()
    assert samples[0].messages[1].content == RETINOPATHY[grades[0]]
    assert prepared.summary["rows_without_a_grade"] == (name == "messidor")


def test_grades_as_numbers_and_the_short_instruction(tmp_path):
    idrid(tmp_path)
    arguments = ("idrid", str(tmp_path / "labels.csv"), str(tmp_path / "images"), "Image name", "Retinopathy grade")
    prepared = prepare_retinopathy(*arguments, grades="numbers", template="without_classes", training_majority=None)
    sample = prepared.splits["test"][0]
    assert sample.messages[1].content == "4" and sample.messages[0].content.endswith("image for diagnosis.")
    assert prepared.tables["training_majority"] == {}
    with pytest.raises(ConfigError, match="training_majority is 5"):
        prepare_retinopathy(*arguments, training_majority=5)
    with pytest.raises(ConfigError, match="'roman' is unknown"):
        prepare_retinopathy(*arguments, grades="roman")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("Image name,Retinopathy grade\nIDRiD_001,5\n", "line 2: the grade is out of range"),
        ("Image name,Retinopathy grade\nIDRiD_001,mild\n", "line 2: the grade is out of range"),
        ("Image name,Retinopathy grade\nIDRiD_001,\n", "line 2: the cell of column 'Retinopathy grade' is empty"),
        (
            "Image name,Retinopathy grade\nIDRiD_001,1\nIDRiD_001,1\n",
            "line 3: its image was listed before",
        ),
        ("Image name,Retinopathy grade\n", "holds no graded image"),
        ("Image,Retinopathy grade\nIDRiD_001,1\n", "no column 'Image name'; did you mean 'Image'"),
    ],
)
def test_a_table_that_cannot_be_used(tmp_path, text, says):
    idrid(tmp_path)
    (tmp_path / "labels.csv").write_text(text)
    with pytest.raises(DataError, match=says):
        prepare_retinopathy(
            "idrid", str(tmp_path / "labels.csv"), str(tmp_path / "images"), "Image name", "Retinopathy grade"
        )


def test_training_and_test_images_of_one_name(tmp_path):
    idrid(tmp_path)
    write_picture(tmp_path / "images/more/IDRiD_002.jpg", 9)
    with pytest.raises(DataError, match="line 3: 2 images are called IDRiD_002"):
        prepare_retinopathy(
            "idrid", str(tmp_path / "labels.csv"), str(tmp_path / "images"), "Image name", "Retinopathy grade"
        )


def test_an_image_that_is_not_there_is_named_by_the_recipe(tmp_path, capsys):
    idrid(tmp_path)
    (tmp_path / "images/IDRiD_002.jpg").unlink()
    call = ["--config", "prepare/idrid", f"data.annotations={tmp_path / 'labels.csv'}", f"output_dir={tmp_path / 'o'}"]
    call += [f"data.images={tmp_path / 'images'}", f"image_root={tmp_path / 'images'}"]
    assert main(call) == 2
    assert "the image IDRiD_002.jpg is not in" in capsys.readouterr().err
