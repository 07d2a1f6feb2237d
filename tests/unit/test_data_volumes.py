"""DICOM frames and slices of NIfTI volumes: the numbers that they mean, or the package that is missing."""

import gzip
import sys
from pathlib import Path

import imagecodecs
import nibabel
import numpy as np
import pydicom
import pytest
from nibabel.nifti1 import Nifti1Image
from pydicom.dataset import FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import (
    MPEG2MPML,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
)

from guidino_tune.config import Data
from guidino_tune.data import niftis
from guidino_tune.data.intensity import decode_image, measure_intensity
from guidino_tune.data.niftis import orientation
from guidino_tune.data.reading import is_deep, read_raw, volume_slices
from guidino_tune.data.sources import find_cases
from guidino_tune.errors import UserError

RANDOM = np.random.default_rng(0)
CT = RANDOM.integers(0, 4096, (20, 31), dtype=np.uint16)
RGB = RANDOM.integers(0, 256, (20, 31, 3), dtype=np.uint8)


def dicom(path: Path, values: np.ndarray, *, stored: int = 12, frame: bytes | None = None, syntax: str | None = None, **tags) -> Path:
    data = pydicom.Dataset()
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = syntax or pydicom.uid.ExplicitVRLittleEndian
    data.file_meta.MediaStorageSOPClassUID = data.SOPClassUID = pydicom.uid.SecondaryCaptureImageStorage
    data.file_meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID = pydicom.uid.generate_uid()
    samples = values.shape[2] if values.ndim == 3 else 1
    bits = values.dtype.itemsize * 8
    data.Rows, data.Columns, data.SamplesPerPixel = values.shape[0], values.shape[1], samples
    data.BitsAllocated, data.BitsStored, data.HighBit = bits, min(bits, stored), min(bits, stored) - 1
    data.PixelRepresentation = int(values.dtype.kind == "i")
    data.PhotometricInterpretation = "RGB" if samples == 3 else "MONOCHROME2"
    if samples > 1:
        data.PlanarConfiguration = 0
    for name, value in tags.items():
        setattr(data, name, value)
    data.PixelData = values.tobytes() if frame is None else encapsulate([frame])
    data["PixelData"].VR = "OB" if frame is not None or bits == 8 else "OW"
    data.save_as(path, enforce_file_format=True)
    return path


def test_a_dicom_frame_has_the_units_that_it_names(tmp_path: Path) -> None:
    read = read_raw(dicom(tmp_path / "a.dcm", CT))
    assert (read.values.dtype, read.white, read.window, read.lossy) == (np.uint16, 0, None, False)
    assert np.array_equal(read.values[..., 0], CT)
    ct = read_raw(dicom(tmp_path / "b.dcm", CT, RescaleSlope=1, RescaleIntercept=-1024, WindowCenter=40, WindowWidth=400))
    assert ct.values.dtype == np.int16
    assert np.array_equal(ct.values[..., 0], CT.astype(int) - 1024)
    assert ct.window == (-160.0, 239.0)  # PS3.3 C.11.2.1.2: 40 - 0.5 -+ 399 / 2
    exact = read_raw(dicom(tmp_path / "c.dcm", CT, WindowCenter=[40, 90], WindowWidth=[400, 10], VOILUTFunction="LINEAR_EXACT"))
    assert exact.window == (-160.0, 240.0)
    fractions = read_raw(dicom(tmp_path / "d.dcm", CT, RescaleSlope=0.5, RescaleIntercept=0.25))
    assert fractions.values.dtype == np.float32
    assert np.array_equal(fractions.values[..., 0], CT * 0.5 + 0.25)
    signed = CT.astype(np.int16) - 2000
    assert np.array_equal(read_raw(dicom(tmp_path / "e.dcm", signed, stored=16)).values[..., 0], signed)


def test_monochrome_1_is_turned_with_its_window(tmp_path: Path) -> None:
    tags = {"RescaleSlope": 2, "RescaleIntercept": -100, "WindowCenter": 500, "WindowWidth": 200, "VOILUTFunction": "LINEAR_EXACT"}
    plain = read_raw(dicom(tmp_path / "a.dcm", CT, **tags))
    turned = read_raw(dicom(tmp_path / "b.dcm", 4095 - CT, PhotometricInterpretation="MONOCHROME1", **tags))
    assert np.array_equal(turned.values, plain.values)
    whole = 2 * 4095 - 2 * 100
    assert turned.window == (whole - 600, whole - 400)  # the same stored numbers
    signed = (CT.astype(np.int16) - 2000).astype(np.int16)
    assert np.array_equal(
        read_raw(dicom(tmp_path / "c.dcm", signed, stored=16, PhotometricInterpretation="MONOCHROME1")).values[..., 0], -1 - signed
    )


def test_dicom_colours(tmp_path: Path) -> None:
    read = read_raw(dicom(tmp_path / "a.dcm", RGB, stored=8))
    assert np.array_equal(read.values, RGB)
    assert (read.white, read.deep) == (255, False)
    planar = np.moveaxis(RGB, 2, 0)
    path = dicom(tmp_path / "b.dcm", RGB, stored=8, PlanarConfiguration=1, frame=None)
    data = pydicom.dcmread(path)
    data.PixelData = planar.tobytes()
    data.save_as(path)
    assert np.array_equal(read_raw(path).values, RGB)
    grey = read_raw(dicom(tmp_path / "c.dcm", RGB[..., 0], stored=8))
    assert (grey.values.dtype, grey.white) == (np.uint8, 255)
    from PIL import Image

    smooth = np.asarray(Image.fromarray(RGB).resize((31, 20)).resize((4, 3)).resize((31, 20)))
    ycc = np.asarray(Image.fromarray(smooth).convert("YCbCr"))
    assert (
        np.abs(read_raw(dicom(tmp_path / "d.dcm", ycc, stored=8, PhotometricInterpretation="YBR_FULL")).values - smooth.astype(int)).max()
        < 4
    )


def test_a_dicom_palette_gives_its_colours(tmp_path: Path) -> None:
    table = RANDOM.integers(0, 256, (256, 3), dtype=np.uint8)
    path = dicom(tmp_path / "a.dcm", RGB[..., 0], stored=8, PhotometricInterpretation="PALETTE COLOR")
    data = pydicom.dcmread(path)
    for index, name in enumerate(("Red", "Green", "Blue")):
        data.add_new(pydicom.datadict.tag_for_keyword(f"{name}PaletteColorLookupTableDescriptor"), "US", [256, 0, 16])
        setattr(data, f"{name}PaletteColorLookupTableData", (table[:, index].astype("<u2") * 257).tobytes())
    data.save_as(path)
    read = read_raw(path)
    assert (read.values.dtype, read.white) == (np.uint8, 255)
    assert np.array_equal(read.values, table[RGB[..., 0]])


COMPRESSED = {
    "jpeg lossless": (CT, 12, JPEGLosslessSV1, lambda a: imagecodecs.jpeg8_encode(a, lossless=True, bitspersample=16, predictor=1)),
    "jpeg 2000": (CT, 12, JPEG2000Lossless, lambda a: imagecodecs.jpeg2k_encode(a, reversible=True, codecformat="j2k", bitspersample=12)),
    "jpeg ls": (CT, 12, JPEGLSLossless, lambda a: imagecodecs.jpegls_encode(a)),
    "jpeg lossless colours": (RGB, 8, JPEGLosslessSV1, lambda a: imagecodecs.jpeg8_encode(a, lossless=True, predictor=1)),
    "rle": (CT, 12, RLELossless, None),
}


@pytest.mark.parametrize("name", COMPRESSED)
def test_compressed_dicom_without_loss_is_the_same(tmp_path: Path, name: str) -> None:
    values, stored, syntax, encode = COMPRESSED[name]
    if encode is None:
        path = dicom(tmp_path / "a.dcm", values, stored=stored)
        data = pydicom.dcmread(path)
        data.compress(syntax)
        data.save_as(path)
    else:
        path = dicom(tmp_path / "a.dcm", values, stored=stored, frame=encode(values), syntax=syntax)
    read = read_raw(path)
    assert np.array_equal(read.values, np.atleast_3d(values))
    assert read.values.dtype == values.dtype
    assert not read.lossy


def test_compressed_dicom_with_loss_says_so(tmp_path: Path) -> None:
    grey = np.repeat(np.repeat(RGB[:5, :7, 0], 4, 0), 4, 1)
    frame = imagecodecs.jpeg8_encode(grey, level=95)
    read = read_raw(dicom(tmp_path / "a.dcm", grey, stored=8, frame=frame, syntax=JPEGBaseline8Bit))
    assert read.lossy
    assert np.abs(read.values[..., 0].astype(int) - grey).mean() < 6
    deep = grey.astype(np.uint16) * 16
    frame = imagecodecs.jpeg8_encode(deep, level=95, bitspersample=12)
    read = read_raw(dicom(tmp_path / "b.dcm", deep, stored=12, frame=frame, syntax=JPEGExtended12Bit))
    assert read.lossy
    assert np.abs(read.values[..., 0].astype(int) - deep).mean() < 100


def test_what_dicom_cannot_be_read_is_named(tmp_path: Path) -> None:
    several = dicom(tmp_path / "a.dcm", CT, NumberOfFrames=3)
    film = dicom(tmp_path / "b.dcm", RGB, stored=8, frame=b"nothing!", syntax=MPEG2MPML)
    cut = tmp_path / "c.dcm"
    cut.write_bytes(dicom(tmp_path / "whole.dcm", CT).read_bytes()[:-900])
    none = tmp_path / "d.dcm"
    none.write_bytes(b"nothing")
    report = dicom(tmp_path / "e.dcm", CT)
    data = pydicom.dcmread(report)
    del data.PixelData
    data.save_as(report)
    for path, words in (
        (several, "holds 3 frames"),
        (film, "its pixels are compressed as MPEG2"),
        (cut, "cannot be decoded"),
        (none, "it is no DICOM file"),
        (report, "DICOM file without a picture"),
    ):
        with pytest.raises(UserError, match=words) as caught:
            read_raw(path)
        assert caught.value.where == str(path)
        assert "data.bad_cases=skip" in caught.value.todo


def test_the_window_of_the_file_is_used_when_asked_for(tmp_path: Path) -> None:
    tags = {"RescaleSlope": 1, "RescaleIntercept": -1024, "VOILUTFunction": "LINEAR_EXACT"}
    images = [[dicom(tmp_path / f"{i}.dcm", CT, WindowCenter=40 + i, WindowWidth=400, **tags)] for i in range(3)]
    assert is_deep(images[0][0])
    given = Data(kind="folder", root="x", window="file")
    rule = measure_intensity(images, given)
    assert rule.describe() == "images: 16 bits with sign, 1 channel; the window that each file asks for becomes black to white"
    expected = np.rint(np.clip((CT.astype(float) - 1024 - (41 - 200)) / 400, 0, 1) * 65535)
    assert np.array_equal(decode_image(images[1], rule)[..., 0], expected)
    other = dicom(tmp_path / "other.dcm", CT, **tags)
    with pytest.raises(UserError, match="asks for no window") as caught:
        decode_image([other], rule)
    assert caught.value.where == str(other)
    assert "data.window=file" in measure_intensity(images, Data(kind="folder", root="x")).notes[0]


def nifti(path: Path, values: np.ndarray, slope: float | None = None, intercept: float = 0) -> Path:
    image = Nifti1Image(values, np.eye(4))
    image.header.set_data_dtype(values.dtype)
    nibabel.save(image, path)
    if slope is not None:  # as it stands in the header of files from scanners
        opened = bytearray(path.read_bytes())
        opened[112:120] = np.array([slope, intercept], "<f4").tobytes()
        path.write_bytes(bytes(opened))
    return path


@pytest.mark.parametrize("name", ["v.nii", "v.nii.gz"])
@pytest.mark.parametrize("kind", ["uint8", "int16", "uint16", "float32"])
def test_slices_of_a_volume(tmp_path: Path, name: str, kind: str) -> None:
    volume = RANDOM.integers(0, 200, (12, 9, 5)).astype(kind)
    path = nifti(tmp_path / name, volume)
    assert volume_slices(path) == 5
    for number in (0, 3, 4):
        read = read_raw(tmp_path / f"{name}#{number}")
        assert read.values.dtype == np.dtype(kind)
        assert np.array_equal(read.values[..., 0], volume[:, :, number].T)  # rows along the second axis, as ITK has them
        assert read.deep == (kind != "uint8") == is_deep(tmp_path / f"{name}#{number}")
    assert np.array_equal(read_raw(tmp_path / f"{name}#1", path.read_bytes()).values[..., 0], volume[:, :, 1].T)
    with pytest.raises(UserError, match="has no slice 5: it has 5, numbered from 0"):
        read_raw(tmp_path / f"{name}#5")
    with pytest.raises(UserError, match="is a volume of 5 slices") as caught:
        read_raw(path)
    named = caught.value.todo.rpartition(" ")[2]
    assert read_raw(tmp_path / named).shape == (9, 12)  # the advice is right


def test_a_picture_in_nifti_and_the_scale_of_its_header(tmp_path: Path) -> None:
    values = RANDOM.integers(-100, 100, (12, 9)).astype(np.int16)
    for i, shape in enumerate([(12, 9), (12, 9, 1), (12, 9, 1, 1)]):
        path = nifti(tmp_path / f"{i}.nii.gz", values.reshape(shape))
        assert volume_slices(path) == 1
        for name in (path, path.with_name(path.name + "#0")):
            assert np.array_equal(read_raw(name).values[..., 0], values.T)
    scaled = read_raw(nifti(tmp_path / "s.nii", values, 0.5, 7))
    assert scaled.values.dtype == np.float32
    assert np.array_equal(scaled.values[..., 0], values.T * 0.5 + 7)


@pytest.mark.parametrize(("name", "zipped"), [("v.nii", False), ("v.nii.gz", True), ("v.nii", True), ("v.nii.gz", False)])
def test_extensions_and_what_the_name_says_of_zip_do_not_matter(tmp_path: Path, name: str, zipped: bool) -> None:
    """AFNI writes an extension behind each header; other programs write files that are zipped, or not, against their names."""
    volume = RANDOM.integers(0, 200, (12, 9, 5), dtype=np.uint8)
    image = Nifti1Image(volume, np.diag([-1.0, -1, 2, 1]))
    image.header.extensions.append(nibabel.nifti1.Nifti1Extension("afni", b"<AFNI_attributes/>" * 50))
    content = image.to_bytes()
    (tmp_path / name).write_bytes(gzip.compress(content) if zipped else content)
    assert volume_slices(tmp_path / name) == 5
    assert orientation(tmp_path / name) == "LPS"
    assert np.array_equal(read_raw(tmp_path / f"{name}#2").values[..., 0], volume[:, :, 2].T)


@pytest.mark.parametrize(("room", "times"), [(2**29, 4), (0, 20)])
def test_slices_of_four_files_in_turn_unpack_each_of_them_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, room: int, times: int
) -> None:
    """An image of four files, such as four sequences of a head, is read slice by slice; small volumes stay in memory together."""
    files = [nifti(tmp_path / f"head_{i:04d}.nii.gz", np.full((12, 9, 5), i, np.int16)) for i in range(4)]
    read, unpacked = niftis._read, []
    monkeypatch.setattr(niftis, "_KEPT_BYTES", room)
    monkeypatch.setattr(niftis, "_read", lambda content: unpacked.append(1) or read(content))
    for number in range(5):
        assert [int(read_raw(file.with_name(f"{file.name}#{number}")).values.max()) for file in files] == [0, 1, 2, 3]
    assert len(unpacked) == times


def test_a_changed_volume_is_read_again(tmp_path: Path) -> None:
    for value in (1, 2):
        nifti(tmp_path / "v.nii", np.full((5, 5, 5), value, np.int16))
        assert read_raw(tmp_path / "v.nii#2").values.max() == value


def test_what_nifti_cannot_be_read_is_named(tmp_path: Path) -> None:
    four = nifti(tmp_path / "four.nii.gz", np.zeros((5, 6, 7, 8), np.int16))
    cut = tmp_path / "cut.nii"
    cut.write_bytes(nifti(tmp_path / "whole.nii", np.zeros((9, 9, 9), np.int16)).read_bytes()[:-100])
    text = tmp_path / "text.nii"
    text.write_text("nothing")
    zipped = tmp_path / "zipped.nii.gz"
    zipped.write_bytes(nifti(tmp_path / "z.nii.gz", np.zeros((9, 9, 9), np.int16)).read_bytes()[:-20])
    for path, words in (
        (four, "has the shape 5x6x7x8"),
        (cut.with_name("cut.nii#2"), "cut short"),
        (text, "cannot be decoded"),
        (zipped.with_name("zipped.nii.gz#2"), "cannot be decoded"),
    ):
        with pytest.raises(UserError, match=words) as caught:
            read_raw(path)
        assert caught.value.where == str(path)
    for path in (four, text, tmp_path / "absent.nii"):
        with pytest.raises(UserError) as caught:
            volume_slices(path)
        assert caught.value.where == str(path)


@pytest.mark.parametrize(("package", "name", "extra"), [("pydicom", "a.dcm", "dicom"), ("nibabel", "a.nii.gz#1", "nifti")])
def test_a_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str, name: str, extra: str) -> None:
    dicom(tmp_path / "a.dcm", CT)
    nifti(tmp_path / "a.nii.gz", np.zeros((5, 6, 7), np.int16))
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UserError, match="is not installed") as caught:
        read_raw(tmp_path / name)
    assert caught.value.todo == f"pip install 'guidino-tune[{extra}]'"
    if extra == "nifti":
        with pytest.raises(UserError, match="is not installed"):
            volume_slices(tmp_path / "a.nii.gz")


def nifti_set(root: Path, image_affine: np.ndarray, mask_affine: np.ndarray) -> Data:
    for side, affine in (("images", image_affine), ("masks", mask_affine)):
        (root / side).mkdir(parents=True)
        nibabel.save(Nifti1Image(np.zeros((8, 9, 3), np.uint8), affine), root / side / "v1.nii.gz")
    return Data(kind="folder", root=str(root))


def test_a_mask_that_is_turned_against_its_volume_is_refused(tmp_path: Path) -> None:
    lps = np.diag([-1.0, -1, 1, 1])
    ras = np.array([[1.0, 0, 0, -8], [0, 1, 0, -9], [0, 0, 1, 0], [0, 0, 0, 1]])
    with pytest.raises(UserError, match=r"turned against each other: .*LPS.*RAS"):
        find_cases(nifti_set(tmp_path / "turned", lps, ras))
    assert len(find_cases(nifti_set(tmp_path / "alike", lps, lps)).cases) == 3
    assert len(find_cases(nifti_set(tmp_path / "untold", lps, np.eye(4))).cases) == 3


def test_a_volume_whose_slices_would_be_lines_is_refused(tmp_path: Path) -> None:
    nibabel.save(Nifti1Image(np.zeros((1, 8, 9), np.uint8), np.eye(4)), tmp_path / "v.nii")
    with pytest.raises(UserError, match="lines of pixels"):
        volume_slices(tmp_path / "v.nii")


def test_a_table_of_meanings_in_a_dicom_file_is_refused(tmp_path: Path) -> None:
    table = pydicom.Dataset()
    table.LUTExplanation = "inverted"
    with pytest.raises(UserError, match="ModalityLUTSequence"):
        read_raw(dicom(tmp_path / "a.dcm", CT, ModalityLUTSequence=[table]))
