"""Slices of volumes: orientation, spacing, scaling and window, compared with nibabel's own arrays."""

import itertools
from pathlib import Path

import nibabel
import numpy as np
import pydicom
import pytest
from nibabel.orientations import apply_orientation, inv_ornt_aff
from pydicom.uid import generate_uid

from medtune.data.volumes import Choice, Volume, open_volume
from medtune.errors import ConfigError, DataError
from tests.data.test_dicom import packaged

SHAPE = (5, 6, 7)
ORIENTATIONS = [
    np.array(list(zip(axes, flips, strict=True)))
    for axes in itertools.permutations(range(3))
    for flips in itertools.product((1, -1), repeat=3)
]


def body() -> np.ndarray:
    """Values whose voxels differ, in RAS order: x to the right, y to the front, z to the head."""
    return np.arange(np.prod(SHAPE), dtype=np.int16).reshape(SHAPE)


def write(path: Path, data: np.ndarray, affine: np.ndarray | None = None, **header: float) -> Path:
    image = nibabel.Nifti1Image(data, np.eye(4) if affine is None else affine)
    for name, value in header.items():
        image.header[name] = value
    nibabel.save(image, path)
    return path


def shown(volume: Volume, plane: str, index: int) -> np.ndarray:
    return volume.image(plane, index, (0, 255))


EXPECTED = {
    # rows from the front (or the head) down, columns from the patient's right (or front) on
    "axial": lambda data, k: data[::-1, ::-1, k].T,
    "coronal": lambda data, k: data[::-1, k, ::-1].T,
    "sagittal": lambda data, k: data[k, ::-1, ::-1].T,
}


@pytest.mark.parametrize("plane", EXPECTED)
def test_a_patient_looks_the_same_in_all_48_orientations_of_the_file(tmp_path: Path, plane: str) -> None:
    data = body()
    for number, orientation in enumerate(ORIENTATIONS):
        stored = apply_orientation(data, orientation)
        affine = inv_ornt_aff(orientation, SHAPE)
        volume = open_volume(write(tmp_path / f"{number}.nii", stored, affine))
        total = SHAPE[{"axial": 2, "coronal": 1, "sagittal": 0}[plane]]
        assert volume.count(plane) == total
        indices = volume.spread(plane, total, 0)
        for at, index in enumerate(indices):
            assert np.array_equal(shown(volume, plane, index), EXPECTED[plane](data, at)), f"{orientation} {at}"


def test_left_and_right_of_a_file_in_las_order(tmp_path: Path) -> None:
    """A bright voxel at the patient's right, front and head must be at the top left."""
    data = np.zeros(SHAPE, dtype=np.uint8)
    data[0, 5, 6] = 200  # in LAS, index 0 is the patient's right
    volume = open_volume(write(tmp_path / "a.nii.gz", data, np.diag([-1, 1, 1, 1])))
    for plane, index in (("axial", 6), ("coronal", 5), ("sagittal", 0)):
        image = shown(volume, plane, index)
        assert image[0, 0] == 200 and image.sum() == 200
    assert volume.spread("sagittal", 5, 0) == [4, 3, 2, 1, 0], "from the patient's left to the right"


def test_an_oblique_volume_is_cut_along_its_own_axes(tmp_path: Path) -> None:
    angle = 0.3
    turn = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    affine = np.eye(4)
    affine[:3, :3] = turn
    volume = open_volume(write(tmp_path / "a.nii", body(), affine))
    assert np.array_equal(shown(volume, "axial", 3), EXPECTED["axial"](body(), 3))


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize("window", [(40, 400), (-600, 1500), (30, 80.5)])
def test_hounsfield_units_with_slope_intercept_and_window(
    tmp_path: Path, suffix: str, window: tuple[float, float]
) -> None:
    stored = np.random.default_rng(0).integers(0, 4096, (16, 16, 4)).astype(np.int16)
    path = tmp_path / f"a{suffix}"
    image = nibabel.Nifti1Image(stored, np.eye(4))
    image.header.set_slope_inter(0.5, -1024)
    nibabel.save(image, path)
    units = nibabel.load(path).get_fdata()
    centre, width = window
    expected = np.clip((units - (centre - width / 2)) / width, 0, 1) * 255
    volume = open_volume(path)
    for index in range(4):
        found = volume.image("axial", index, volume.limits(window))
        assert found.dtype == np.uint8
        assert np.abs(found - EXPECTED["axial"](expected, index)).max() <= 0.5 + 1e-9
    assert 0 < expected.mean() < 255


def test_slope_and_intercept_are_those_that_nibabel_applies(tmp_path: Path) -> None:
    image = nibabel.Nifti1Image(body(), np.eye(4))
    image.header.set_slope_inter(0.5, -20)
    nibabel.save(image, tmp_path / "a.nii.gz")
    units = nibabel.load(tmp_path / "a.nii.gz").get_fdata()
    assert units.min() == -20 and units[0, 0, 1] == -19.5
    volume = open_volume(tmp_path / "a.nii.gz")
    assert np.array_equal(volume.cut(2, 3), units[:, :, 3]) and np.array_equal(volume.cut(0, 1), units[1])


def test_without_a_window_the_volumes_own_range_is_shown(tmp_path: Path) -> None:
    data = np.random.default_rng(0).normal(100, 20, (32, 32, 32)).astype(np.float32)
    data[0, 0, 0] = 1e6
    data[1, 1, 1] = np.nan
    volume = open_volume(write(tmp_path / "a.nii", data))
    finite = data[np.isfinite(data)]
    assert volume.limits(None) == pytest.approx(np.percentile(finite, [0.5, 99.5]), rel=1e-6)
    image = volume.image("axial", 1, volume.limits(None))
    assert image[-2, -2] == 0, "a voxel without a value is black"
    assert volume.image("axial", 0, volume.limits(None))[-1, -1] == 255
    empty = open_volume(write(tmp_path / "b.nii", np.full((3, 3, 3), np.nan, dtype=np.float32)))
    assert not empty.image("axial", 1, empty.limits(None)).any()


def test_voxels_that_are_not_square_are_resized(tmp_path: Path) -> None:
    affine = np.diag([0.5, 0.5, 2.0, 1])
    volume = open_volume(write(tmp_path / "a.nii", body(), affine))
    assert shown(volume, "axial", 0).shape == (6, 5)
    coronal = volume.image("coronal", 2, (0, 209))
    assert coronal.shape == (28, 5)
    plain = EXPECTED["coronal"](body(), 2) * (255 / 209)
    assert np.abs(coronal.reshape(7, 4, 5).mean(axis=1) - plain).max() < 2


def test_slices_at_equal_distances(tmp_path: Path) -> None:
    data = np.zeros((4, 4, 100), dtype=np.int16)
    up = open_volume(write(tmp_path / "up.nii", data))
    down = open_volume(write(tmp_path / "down.nii", data, np.diag([1, 1, -1, 1])))
    assert up.spread("axial", 4, 0) == [12, 37, 62, 87]
    assert down.spread("axial", 4, 0) == [87, 62, 37, 12]
    assert up.spread("axial", 4, 0.25) == [31, 43, 56, 68]
    assert up.spread("axial", 1, 0.1) == [50]
    assert up.spread("coronal", 9, 0) == [0, 1, 2, 3], "not more slices than there are"
    assert Choice("axial", (7, 3, 99)).indices(up) == [7, 3, 99]
    with pytest.raises(DataError, match="has 100 axial slices, counted from 0, so that there is no slice 100"):
        Choice("axial", (7, 100)).indices(up)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"plane": "transverse"}, "plane: 'transverse' is unknown; use axial, coronal, sagittal"),
        ({"slices": 0}, "slices is 0"),
        ({"slices": ()}, "a list of indices"),
        ({"margin": 0.5}, "margin is 0.5"),
        ({"window": (40, 0)}, "a width above 0"),
    ],
)
def test_a_choice_that_is_none(options: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        Choice(**{"plane": "axial", "slices": 3, **options})


def test_a_fourth_dimension(tmp_path: Path) -> None:
    both = np.stack([body(), body()[::-1]], axis=3)
    path = write(tmp_path / "a.nii.gz", both)
    with pytest.raises(DataError, match=r"holds 2 volumes \(a fourth dimension\); set channel to one from 0 to 1"):
        open_volume(path)
    with pytest.raises(DataError, match="no channel 2"):
        open_volume(path, 2)
    for channel in (0, 1):
        volume = open_volume(path, channel)
        assert np.array_equal(shown(volume, "axial", 2), EXPECTED["axial"](both[..., channel], 2))
    single = open_volume(write(tmp_path / "b.nii", body()[..., None]))
    assert np.array_equal(shown(single, "axial", 2), EXPECTED["axial"](body(), 2))


def test_files_that_are_no_volumes(tmp_path: Path) -> None:
    path = write(tmp_path / "whole.nii", body())
    data = path.read_bytes()
    (tmp_path / "cut.nii").write_bytes(data[:-10])
    (tmp_path / "header.nii").write_bytes(data[:200])
    (tmp_path / "empty.nii.gz").write_bytes(b"")
    (tmp_path / "text.nii").write_text("not a volume" * 100)
    (tmp_path / "a.nrrd").write_bytes(data)
    write(tmp_path / "flat.nii", np.zeros((4, 4), dtype=np.int16))
    nibabel.save(nibabel.Nifti1Image(np.zeros((2, 2, 2), dtype=np.complex64), np.eye(4)), tmp_path / "complex.nii")
    nibabel.save(nibabel.Nifti1Image(np.zeros((2, 2, 2), [(c, "u1") for c in "RGB"]), np.eye(4)), tmp_path / "rgb.nii")
    (tmp_path / "affine.nii").write_bytes(data[:280] + bytes(48) + data[328:])  # srow_x, srow_y and srow_z
    for name, said in {
        "cut.nii": "is truncated",
        "header.nii": "is truncated or damaged",
        "empty.nii.gz": "is truncated or damaged",
        "text.nii": "is truncated or damaged",
        "a.nrrd": "is no volume; give .nii",
        "flat.nii": "three dimensions",
        "complex.nii": "values of the type complex64",
        "rgb.nii": "one number for each voxel",
        "affine.nii": "orientation that is impossible",
    }.items():
        with pytest.raises(DataError, match=said):
            open_volume(tmp_path / name)
    whole = nibabel.Nifti1Image(np.random.default_rng(0).integers(0, 4096, (64, 64, 9)).astype(np.int16), np.eye(4))
    nibabel.save(whole, tmp_path / "cut.nii.gz")
    compressed = (tmp_path / "cut.nii.gz").read_bytes()
    (tmp_path / "cut.nii.gz").write_bytes(compressed[: len(compressed) // 2])
    with pytest.raises(DataError, match="is truncated or damaged"):
        open_volume(tmp_path / "cut.nii.gz").cut(2, 0)


def series(folder: Path, count: int = 5, **changes: object) -> tuple[np.ndarray, list[Path]]:
    """A series made of the real CT slice, moved by a pixel each time, with file names in no order.

    Returns the values in HU, [rows, columns, slices], and the files from the feet up.
    """
    folder.mkdir(parents=True, exist_ok=True)
    dataset = pydicom.dcmread(packaged("CT_small.dcm"))
    one, uid = dataset.pixel_array, generate_uid(entropy_srcs=["a"])
    paths, units = [], []
    for number in range(count):
        pixels = np.roll(one, number, axis=1)
        dataset.PixelData = pixels.tobytes()
        dataset.SOPInstanceUID, dataset.SeriesInstanceUID = generate_uid(entropy_srcs=[str(number)]), uid
        dataset.ImagePositionPatient = [-10, -20, 5.0 * number - 100]
        dataset.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
        dataset.PixelSpacing = [0.66, 0.66]
        for keyword, value in changes.items():
            setattr(dataset, keyword, value)
        paths.append(folder / f"{(number * 3) % count}-image")
        dataset.save_as(paths[-1])
        units.append(pixels * float(dataset.RescaleSlope) + float(dataset.RescaleIntercept))
    return np.stack(units, axis=2), paths


def test_a_dicom_series_is_ordered_by_position_and_shown_as_stored(tmp_path: Path) -> None:
    units, paths = series(tmp_path / "ct")
    (tmp_path / "ct/.DS_Store").write_bytes(b"x")
    (tmp_path / "ct/LICENSE").write_text("text")
    volume = open_volume(tmp_path / "ct")
    assert volume.shape == (128, 128, 5) and volume.spacing == pytest.approx((0.66, 0.66, 5.0))
    assert volume.spread("axial", 5, 0) == [0, 1, 2, 3, 4]
    lowest, highest = limits = volume.limits((0, 2000))
    expected = np.clip((units - lowest) / (highest - lowest), 0, 1) * 255
    for index in range(5):
        assert np.abs(volume.image("axial", index, limits) - expected[..., index]).max() <= 0.51


def test_a_dicom_series_equals_its_nifti_file_in_every_plane(tmp_path: Path) -> None:
    units, _ = series(tmp_path / "ct")
    affine = np.diag([-0.66, -0.66, 5.0, 1.0])  # LPS, as DICOM has it
    affine[:3, 3] = [10, 20, -100]
    path = write(tmp_path / "ct.nii.gz", units.swapaxes(0, 1).astype(np.int16), affine)
    one, other = open_volume(tmp_path / "ct"), open_volume(path)
    assert one.affine == pytest.approx(other.affine, abs=1e-5)
    for plane, index in (("axial", 3), ("coronal", 60), ("sagittal", 20)):
        images = [volume.image(plane, index, volume.limits((0, 2000))) for volume in (one, other)]
        assert np.array_equal(*images) and images[0].std() > 10


def test_one_slice_of_the_series_is_decoded_if_one_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    series(tmp_path / "ct")
    volume = open_volume(tmp_path / "ct")
    read: list[int] = []
    whole = type(volume)._read
    monkeypatch.setattr(type(volume), "_read", lambda self, index: read.append(index) or whole(self, index))
    volume.image("axial", 2, (0, 1))
    assert read == [2]


def test_folders_that_are_not_one_series(tmp_path: Path) -> None:
    (tmp_path / "bare").mkdir()
    (tmp_path / "bare/notes.txt").write_text("x")
    _, paths = series(tmp_path / "two")
    other = pydicom.dcmread(paths[0])
    other.SeriesInstanceUID = generate_uid(entropy_srcs=["b"])
    other.save_as(paths[0])
    _, paths = series(tmp_path / "turned")
    other = pydicom.dcmread(paths[0])
    other.ImageOrientationPatient = [0, 1, 0, 0, 0, -1]
    other.save_as(paths[0])
    series(tmp_path / "phases", ImagePositionPatient=[0, 0, 7])
    series(tmp_path / "nowhere", ImagePositionPatient=None)
    _, paths = series(tmp_path / "headless")
    paths[2].write_bytes(paths[2].read_bytes()[:3000])
    _, paths = series(tmp_path / "cut")
    paths[2].write_bytes(paths[2].read_bytes()[:-3000])
    for name, said in {
        "bare": "a folder without DICOM images",
        "two": "holds 2 DICOM series; put each series into a folder of its own",
        "turned": "slices of different size or orientation",
        "phases": "several slices at one place",
        "headless": f"holds {paths[2].name}, which is a DICOM file without an image",
        "nowhere": "names no ImagePositionPatient",
    }.items():
        with pytest.raises(DataError, match=said):
            open_volume(tmp_path / name)
    with pytest.raises(DataError, match="truncated or damaged"):
        volume = open_volume(tmp_path / "cut")
        for index in range(5):
            volume.cut(2, index)


def test_a_missing_slice_is_counted(tmp_path: Path) -> None:
    _, paths = series(tmp_path / "ct", 7)
    assert open_volume(tmp_path / "ct").gaps == 0
    paths[3].unlink()
    assert open_volume(tmp_path / "ct").gaps == 1


def test_without_nibabel_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "a.nii", body())
    monkeypatch.setitem(__import__("sys").modules, "nibabel", None)
    with pytest.raises(DataError, match=r"install nibabel to read it \(pip install 'medtune\[volumes\]'\)"):
        open_volume(path)
