"""Masks as NIfTI and DICOM: the labels of the PNG masks, where their images lie, and never in the place of other files."""

from __future__ import annotations

import gzip
import sys
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian
from test_load_model import CT
from test_load_model import models as models
from test_prediction_files import Shown, contents, picture, run

from guidino_tune.data.intensity import IntensityRule
from guidino_tune.data.predicted import mark_in
from guidino_tune.data.reading import read_raw
from guidino_tune.errors import UserError
from guidino_tune.workflows.predict import load_model
from guidino_tune.workflows.predict_folder import predict_folder
from guidino_tune.workflows.prediction_files import is_own
from guidino_tune.workflows.prediction_masks import plan_masks

OBLIQUE = np.array([[0.7, 0.1, -0.3, -31.5], [-0.2, 0.8, 0.4, 12.25], [0.1, -0.1, 2.5, 7.0], [0, 0, 0, 1]])


@pytest.fixture
def model(models: Any) -> Path:
    return models(num_classes=2)  # type: ignore[no-any-return]


def voxels(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def save_volume(file: Path, values: np.ndarray, kind: Any = nibabel.Nifti1Image, codes: tuple[int, int] = (1, 4)) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    image = kind(values, OBLIQUE)
    image.set_qform(OBLIQUE, codes[0])
    image.set_sform(OBLIQUE, codes[1])
    image.header.set_xyzt_units("mm", "sec")
    nibabel.save(image, file)
    return file


def png_labels(folder: Path, name: str) -> np.ndarray:
    return np.asarray(Image.open(folder / "masks" / f"{name}.png"))


@pytest.mark.parametrize(
    ("name", "shape", "kind", "codes"),
    [
        ("v.nii.gz", (20, 17, 12), nibabel.Nifti1Image, (1, 4)),
        ("v.nii", (20, 17, 12), nibabel.Nifti2Image, (0, 2)),
        ("sub/v.nii.gz", (20, 17, 3, 1), nibabel.Nifti1Image, (3, 0)),
        ("v.nii.gz", (20, 17), nibabel.Nifti1Image, (1, 1)),
        ("v.nii.gz", (20, 17, 1), nibabel.Nifti1Image, (1, 1)),
    ],
)
def test_a_label_volume_lies_where_its_volume_lies(
    name: str, shape: tuple[int, ...], kind: Any, codes: tuple[int, int], model: Path, tmp_path: Path
) -> None:
    source = save_volume(tmp_path / "in" / name, voxels(*shape), kind, codes)
    trained = load_model(model)
    assert predict_folder(trained, tmp_path / "in", tmp_path / "png", overlays=False)[0] == (shape[2] if len(shape) > 2 else 1)
    assert predict_folder(trained, tmp_path / "in", tmp_path / "out", masks_as="auto", workers=3) == (1, [])
    (file,) = (file for file in (tmp_path / "out" / "masks").rglob("*") if file.is_file())
    assert file == tmp_path / "out" / "masks" / name.replace(".nii.gz", ".nii").replace(".nii", ".nii.gz")
    old, new = nibabel.load(source), nibabel.load(file)
    assert (new.shape, new.get_data_dtype(), type(new)) == (old.shape, np.uint8, type(old))
    assert np.array_equal(new.affine, old.affine)
    for get in ("get_sform", "get_qform"):
        (one, one_code), (other, other_code) = (getattr(image.header, get)(coded=True) for image in (old, new))
        assert one_code == other_code
        assert np.array_equal(one, other) if one_code else True
    assert np.array_equal(new.header.get_zooms(), old.header.get_zooms())
    assert (new.header.get_xyzt_units(), new.header.get_intent()[0]) == (old.header.get_xyzt_units(), "label")
    labels = np.asarray(new.dataobj).reshape(*shape[:2], -1)
    assert set(np.unique(labels)) == {0, 1, 2}
    folder, stem = tmp_path / "png", name.partition(".")[0]
    for number in range(labels.shape[2]):
        slices = f"#{number:0{len(str(labels.shape[2] - 1))}}" if labels.shape[2] > 1 else ""
        assert np.array_equal(labels[..., number].T, png_labels(folder, stem + slices))
    assert len(list((tmp_path / "out" / "overlays").rglob("*.png"))) == labels.shape[2]


@pytest.mark.parametrize("shape", [(20, 17, 3), (20, 17)])
def test_an_extension_is_left_out_and_a_wrong_ending_does_not_matter(shape: tuple[int, ...], model: Path, tmp_path: Path) -> None:
    source = save_volume(tmp_path / "v.nii", voxels(*shape))
    image = nibabel.load(source)
    image.header.extensions.append(nibabel.nifti1.Nifti1Extension("comment", b"of the patient " * 60))
    file = tmp_path / "v.nii.gz"
    file.write_bytes(image.to_bytes())
    assert predict_folder(load_model(model), file, tmp_path / "out", masks_as="nifti", overlays=False) == (1, [])
    mask = nibabel.load(tmp_path / "out" / "masks" / "v.nii.gz")
    assert (mask.shape, len(mask.header.extensions)) == (shape, 0)
    assert np.array_equal(mask.affine, image.affine)
    assert is_own(tmp_path / "out" / "masks" / "v.nii.gz")


def test_one_slice_lies_at_its_place(model: Path, tmp_path: Path) -> None:
    save_volume(tmp_path / "v.nii.gz", voxels(20, 17, 12))
    trained = load_model(model)
    assert predict_folder(trained, tmp_path / "v.nii.gz", tmp_path / "all", masks_as="nifti", overlays=False) == (1, [])
    assert predict_folder(trained, tmp_path / "v.nii.gz#7", tmp_path / "one", masks_as="nifti", overlays=False) == (1, [])
    whole, one = nibabel.load(tmp_path / "all" / "masks" / "v.nii.gz"), nibabel.load(tmp_path / "one" / "masks" / "v#7.nii.gz")
    assert one.shape == (20, 17, 1)
    assert np.array_equal(np.asarray(one.dataobj)[..., 0], np.asarray(whole.dataobj)[..., 7])
    for point in ((0, 0), (19, 16)):
        assert np.allclose(one.affine @ [*point, 0, 1], whole.affine @ [*point, 7, 1], atol=1e-5)
    assert np.allclose(one.header.get_qform(), one.header.get_sform(), atol=1)
    assert (int(one.header["sform_code"]), int(one.header["qform_code"])) == (4, 1)


def save_dicom(file: Path, number: int, values: np.ndarray, **tags: Any) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    data = pydicom.Dataset()
    data.SOPClassUID, data.SOPInstanceUID = CTImageStorage, f"1.2.3.4.{number}"
    data.StudyInstanceUID, data.SeriesInstanceUID, data.FrameOfReferenceUID = "1.2.3", "1.2.3.4", "1.2.3.5"
    data.PatientName, data.PatientID, data.Modality, data.SeriesNumber, data.InstanceNumber = "Müller^Anna", "p7", "CT", 3, number
    data.SpecificCharacterSet = "ISO_IR 100"
    data.ImagePositionPatient, data.ImageOrientationPatient = [-10.5, 20, 2.5 * number], [1, 0, 0, 0, 0.8, 0.6]
    data.PixelSpacing, data.SliceThickness = [0.7, 0.8], 2.5
    data.Rows, data.Columns = values.shape
    data.SamplesPerPixel, data.PhotometricInterpretation, data.RescaleSlope, data.RescaleIntercept = 1, "MONOCHROME2", 1, -1024
    data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = 16, 16, 15, 0
    data.PixelData = values.astype("<u2").tobytes()
    for name, value in tags.items():
        if value is None:
            delattr(data, name)
        else:
            setattr(data, name, value)
    data.file_meta = pydicom.dataset.FileMetaDataset()
    data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    pydicom.dcmwrite(file, data, enforce_file_format=True)
    return file


@pytest.fixture
def scans(models: Any, tmp_path: Path) -> tuple[Path, Path]:
    """A model that sees Hounsfield units, and a series of three slices."""
    for number in range(3):
        values = np.random.default_rng(number).integers(900, 1300, (21, 33))
        save_dicom(tmp_path / "in" / f"{number}.dcm", number + 1, values)
    return models(CT, channels=1, num_classes=2), tmp_path / "in"


def test_a_dicom_mask_lies_where_its_slice_lies(scans: tuple[Path, Path], tmp_path: Path) -> None:
    model, images = load_model(scans[0]), scans[1]
    assert predict_folder(model, images, tmp_path / "png", overlays=False) == (3, [])
    assert predict_folder(model, images, tmp_path / "out", masks_as="auto") == (3, [])
    masks = [pydicom.dcmread(tmp_path / "out" / "masks" / f"{number}.dcm") for number in range(3)]
    for number, mask in enumerate(masks):
        old = pydicom.dcmread(images / f"{number}.dcm")
        for name in (
            "FrameOfReferenceUID",
            "ImagePositionPatient",
            "ImageOrientationPatient",
            "PixelSpacing",
            "SliceThickness",
            "PatientID",
        ):
            assert mask[name].value == old[name].value
        assert (str(mask.PatientName), mask.StudyInstanceUID, mask.InstanceNumber) == ("Müller^Anna", "1.2.3", number + 1)
        (reference,) = mask.SourceImageSequence
        assert (reference.ReferencedSOPClassUID, reference.ReferencedSOPInstanceUID) == (CTImageStorage, f"1.2.3.4.{number + 1}")
        assert mask.file_meta.MediaStorageSOPInstanceUID == mask.SOPInstanceUID != old.SOPInstanceUID
        assert mask.PositionReferenceIndicator == ""
        assert mask.ImageComments == "0 background, 1 class 1, 2 class 2"
        assert np.array_equal(mask.pixel_array, png_labels(tmp_path / "png", str(number)))
        assert np.array_equal(read_raw(tmp_path / "out" / "masks" / f"{number}.dcm").values[..., 0], mask.pixel_array)
    assert {1, 2} <= set(np.unique([mask.pixel_array for mask in masks]))
    assert len({mask.SeriesInstanceUID for mask in masks}) == 1
    assert masks[0].SeriesInstanceUID != "1.2.3.4"
    assert len({mask.SOPInstanceUID for mask in masks}) == 3
    before = contents(tmp_path / "out")
    assert predict_folder(model, images, tmp_path / "out", masks_as="dicom") == (3, [])
    assert contents(tmp_path / "out") == before


def test_masks_of_other_settings_are_another_series(scans: tuple[Path, Path], tmp_path: Path) -> None:
    found = set()
    for name, protocol in (("a", {}), ("b", {"mirror": True})):
        predict_folder(load_model(scans[0], protocol=protocol), scans[1], tmp_path / name, masks_as="auto", overlays=False)
        found.add(pydicom.dcmread(tmp_path / name / "masks" / "0.dcm").SeriesInstanceUID)
    assert len(found) == 2


def test_a_dicom_file_that_says_little_gets_a_mask_that_says_little(scans: tuple[Path, Path], tmp_path: Path) -> None:
    absent = "PatientName StudyInstanceUID SeriesInstanceUID ImagePositionPatient FrameOfReferenceUID SeriesNumber InstanceNumber"
    nothing = dict.fromkeys(absent.split())
    file = save_dicom(tmp_path / "poor.dcm", 9, np.full((5, 7), 1000), **nothing)
    assert predict_folder(load_model(scans[0]), file, tmp_path / "out", masks_as="dicom") == (1, [])
    mask = pydicom.dcmread(tmp_path / "out" / "masks" / "poor.dcm")
    assert mask.pixel_array.shape == (5, 7)  # 35 bytes, and one more to make them even
    assert "ImagePositionPatient" not in mask
    assert (str(mask.PatientName), mask.InstanceNumber, "PositionReferenceIndicator" in mask) == ("", None, False)


@pytest.mark.parametrize("text", ["abc", "1\\2", ""])
def test_a_number_of_the_series_that_is_none_counts_as_0(text: str, scans: tuple[Path, Path], tmp_path: Path) -> None:
    file = save_dicom(tmp_path / "odd.dcm", 9, np.full((5, 7), 1000), SeriesNumber=1234)
    content = file.read_bytes()
    at = content.index(b"\x20\0\x11\0IS\x04\x001234")
    file.write_bytes(content[: at + 8] + text.ljust(4).encode("ascii") + content[at + 12 :])
    assert predict_folder(load_model(scans[0]), file, tmp_path / "out", masks_as="dicom", overlays=False) == (1, [])
    assert pydicom.dcmread(tmp_path / "out" / "masks" / "odd.dcm").SeriesNumber == 1000


def test_images_without_numbers_of_their_own_have_masks_with_numbers_of_their_own(scans: tuple[Path, Path], tmp_path: Path) -> None:
    """Two folders with equal names and pixels: one number for both masks would make an archive keep one of them."""
    for folder in "ab":
        file = save_dicom(tmp_path / "bare" / folder / "1.dcm", 1, np.full((5, 7), 1000), SeriesInstanceUID=None, StudyInstanceUID="")
        data = pydicom.dcmread(file)
        data.SOPInstanceUID = ""
        data.save_as(file)
    assert predict_folder(load_model(scans[0]), tmp_path / "bare", tmp_path / "out", masks_as="dicom", overlays=False) == (2, [])
    masks = [pydicom.dcmread(tmp_path / "out" / "masks" / folder / "1.dcm") for folder in "ab"]
    for name in ("SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID"):
        assert len({str(mask[name].value) for mask in masks} - {""}) == 2
    assert "SourceImageSequence" not in masks[0]


def test_a_volume_of_several_files_has_one_mask(models: Any, tmp_path: Path) -> None:
    """As nnU-Net has them: NAME_0000.nii.gz, NAME_0001.nii.gz; slice by slice they are one image."""
    per_file = IntensityRule("percentiles", ((0.0, 255.0), (0.0, 200.0)), ("both", "both"), "2 files of 8 bits, 1 channel each")
    trained = load_model(models(per_file, channels=2, num_classes=2))
    parts = [voxels(20, 17, 12, seed=number) for number in range(2)]
    for number, part in enumerate(parts):
        save_volume(tmp_path / "in" / f"v_{number:04d}.nii.gz", part)
    assert predict_folder(trained, tmp_path / "in", tmp_path / "out", masks_as="auto") == (1, [])
    labels = np.asarray(nibabel.load(tmp_path / "out" / "masks" / "v.nii.gz").dataobj)
    for number in (0, 7):
        assert np.array_equal(labels[..., number].T, trained.predict(np.stack([part[..., number].T for part in parts], axis=-1)))
    assert predict_folder(trained, tmp_path / "in" / "v_0001.nii.gz#7", tmp_path / "one", masks_as="auto") == (1, [])
    one = nibabel.load(tmp_path / "one" / "masks" / "v#7.nii.gz")
    assert np.array_equal(np.asarray(one.dataobj)[..., 0], labels[..., 7])
    save_volume(tmp_path / "in" / "w_0000.nii.gz", parts[0])
    done, failed = predict_folder(trained, tmp_path / "in", tmp_path / "out", masks_as="auto")
    assert (done, len(failed)) == (1, 12)
    assert failed[0].endswith("w_0000.nii.gz#00: the model sees images of 2 files, and of w#00 there is _0000")


def test_each_format_has_its_own_files(model: Path, tmp_path: Path, capsys: Shown) -> None:
    save_volume(tmp_path / "in" / "v.nii.gz", voxels(20, 17, 4))
    picture(tmp_path / "in" / "v.png")
    words = (model, tmp_path / "in", "--output", tmp_path / "out", "--masks-as")
    code, out, _ = run(capsys, *words, "auto")
    assert (code, "2 masks in" in out) == (0, True)
    assert sorted(file.name for file in (tmp_path / "out" / "masks").iterdir()) == ["v.nii.gz", "v.png"]
    code, _, err = run(capsys, *words, "nifti")
    assert (code, err.count("error: ")) == (2, 1)
    assert f"{tmp_path / 'in' / 'v.png'}: is no NIfTI file" in err
    assert "--masks-as auto" in err
    code, _, err = run(capsys, *words, "dicom")
    assert (code, "is no DICOM file" in err) == (2, True)
    with pytest.raises(UserError, match="no format 'jpeg'"):
        plan_masks({}, "jpeg")


def test_names_do_not_collide(tmp_path: Path) -> None:
    volume, flat = save_volume(tmp_path / "v.nii.gz", voxels(20, 17, 2)), save_volume(tmp_path / "v.nii", voxels(20, 17))
    names = {(volume.with_name("v.nii.gz#0"),): Path("v#0"), (volume.with_name("v.nii.gz#1"),): Path("v#1"), (flat,): Path("v")}
    assert [(str(target.file), target.slices) for target in plan_masks(names, "auto").values()] == [
        ("v.nii.gz", 2), ("v.nii.gz", 2), ("v.nii.nii.gz", 1),
    ]  # fmt: skip


def test_two_volumes_that_differ_in_ending_and_slices_have_a_mask_each(model: Path, tmp_path: Path) -> None:
    """Slices 0 to 10 of both have one name, and slice 11 of the longer one has a name of its own."""
    save_volume(tmp_path / "in" / "v.nii", voxels(20, 17, 11)), save_volume(tmp_path / "in" / "v.nii.gz", voxels(20, 17, 12))
    assert predict_folder(load_model(model), tmp_path / "in", tmp_path / "out", masks_as="auto", overlays=False) == (2, [])
    masks = {file.name: nibabel.load(file).shape[2] for file in (tmp_path / "out" / "masks").iterdir()}
    assert masks == {"v.nii.nii.gz": 11, "v.nii.gz.nii.gz": 12}


def test_the_slices_of_a_volume_are_counted_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from guidino_tune.workflows import prediction_masks as module

    counted = []
    monkeypatch.setattr(module, "volume_slices", lambda file: counted.append(file) or 300)
    names = {(tmp_path / f"v.nii.gz#{number:03d}",): Path(f"v#{number:03d}") for number in range(300)}
    assert {target.slices for target in plan_masks(names, "auto").values()} == {300}
    assert counted == [tmp_path / "v.nii.gz"]


@pytest.mark.parametrize("kind", ["nifti", "dicom"])
def test_an_image_that_is_moved_away_meanwhile_does_not_end_the_others(
    kind: str, scans: tuple[Path, Path], model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a folder that is watched: its header is needed again when the mask is written."""
    from guidino_tune.workflows import predict_folder as module

    if kind == "nifti":
        folder, gone = save_volume(tmp_path / "volumes" / "a.nii", voxels(20, 17, 3)).parent, "a.nii"
        save_volume(folder / "b.nii", voxels(20, 17, 3))
    else:
        (model, folder), gone = scans, "1.dcm"
    read = module.read_image

    def then_gone(files: Any, rules: Any) -> Any:
        pixels = read(files, rules)
        if files[0].name in (gone, f"{gone}#2"):
            (folder / gone).unlink()
        return pixels

    monkeypatch.setattr(module, "read_image", then_gone)
    done, failed = predict_folder(load_model(model), folder, tmp_path / "out", masks_as="auto", overlays=False, workers=2)
    assert (done, len(failed)) == (1 if kind == "nifti" else 2, 1)
    assert failed[0].startswith(f"{folder / gone}: has no mask as {'NIfTI' if kind == 'nifti' else 'DICOM'}, which needs its header: ")
    assert "No such file" in failed[0] or "no such file" in failed[0]


@pytest.mark.parametrize("kind", ["nifti", "dicom"])
def test_what_predict_did_not_write_stays(kind: str, scans: tuple[Path, Path], model: Path, tmp_path: Path, capsys: Shown) -> None:
    """Its own file is replaced, one that was edited is not, and one of somebody else's is not."""
    if kind == "nifti":
        file, words = "v.nii.gz", [model, save_volume(tmp_path / "v.nii.gz", voxels(20, 17, 3))]
    else:
        file, words = "0.dcm", [scans[0], scans[1] / "0.dcm"]
    words += ["--output", tmp_path / "out", "--masks-as", kind]
    assert run(capsys, *words)[0] == 0
    mask = tmp_path / "out" / "masks" / file
    own = mask.read_bytes()
    assert is_own(mask)
    code, out, _ = run(capsys, *words)
    assert (code, "a mask of an earlier run was replaced" in out, mask.read_bytes() == own) == (0, True, True)
    raw = bytearray(gzip.decompress(own) if kind == "nifti" else own)
    raw[-3] ^= 1  # a voxel
    edited = gzip.compress(bytes(raw)) if kind == "nifti" else bytes(raw)
    source = Path(words[1]).read_bytes()
    for other in (edited, source, own[:-20], b""):
        mask.write_bytes(other)
        assert (mark_in(mask) is not None) == (other in (edited, own[:-20]))
        code, _, err = run(capsys, *words)
        assert (code, "predict did not write this file, or it was changed since" in err) == (2, True)
        assert mask.read_bytes() == other
    mask.unlink()
    mask.with_name("theirs" + "".join(Path(file).suffixes)).write_bytes(source)
    code, _, err = run(capsys, *words)
    assert (code, "1 images here are not of predict" in err) == (2, True)


def test_predictions_are_no_images_for_the_next_run(model: Path, tmp_path: Path, capsys: Shown) -> None:
    save_volume(tmp_path / "v.nii.gz", voxels(20, 17, 3))
    assert run(capsys, model, tmp_path, "--output", tmp_path / "out", "--masks-as", "auto")[0] == 0
    code, out, _ = run(capsys, model, tmp_path, "--output", tmp_path / "other", "--masks-as", "auto")
    assert (code, "1 mask in" in out, "passed over: 4 of predict itself" in out) == (0, True, True)


@pytest.mark.parametrize(("kind", "package"), [("nifti", "nibabel"), ("dicom", "pydicom")])
def test_a_missing_package_is_one_line_with_its_extra(
    kind: str, package: str, models: Any, tmp_path: Path, capsys: Shown, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = picture(tmp_path / "in" / "a.png")
    (tmp_path / "in" / ("b.nii.gz" if kind == "nifti" else "b.dcm")).write_bytes(b"\0" * 128 + b"DICM")
    for name in [name for name in sys.modules if name.partition(".")[0] == package]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    code, _, err = run(capsys, models(), tmp_path / "in", "--output", tmp_path / "out", "--masks-as", kind)
    assert (code, err.count("error: ")) == (2, 1)
    assert f"the package {package}, which is not installed" in err
    assert f"pip install 'guidino-tune[{kind}]'" in err
    assert not (tmp_path / "out").exists()
    code, out, err = run(capsys, models(), file.parent, "--output", tmp_path / "out", "--masks-as", "auto")
    assert (code, "1 mask in" in out, err.count("\n")) == (1, True, 1)
    assert f"not installed (pip install 'guidino-tune[{kind}]')" in err


def test_a_volume_of_which_a_slice_cannot_be_segmented_has_no_mask(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half a label volume would look like a whole one."""
    from guidino_tune.workflows import predict_folder as module

    save_volume(tmp_path / "v.nii.gz", voxels(20, 17, 3))
    read = module.read_image

    def broken(files: Any, rules: Any) -> Any:
        if files[0].name.endswith("#1"):
            raise UserError("is damaged", where=str(files[0]))
        return read(files, rules)

    monkeypatch.setattr(module, "read_image", broken)
    done, failed = predict_folder(load_model(model), tmp_path / "v.nii.gz", tmp_path / "out", masks_as="nifti")
    assert (done, len(failed)) == (0, 2)
    assert failed[1] == f"{tmp_path / 'v.nii.gz'}: 1 of its 3 slices have no mask, so that none is written"
    assert not (tmp_path / "out" / "masks").exists()
