"""Masks as NIfTI and DICOM files that lie where their images lie: the geometry is copied from the image's own header."""

from __future__ import annotations

import gzip
import hashlib
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from guidino_tune.data.niftis import header_of
from guidino_tune.data.predicted import UNSIGNED, sign
from guidino_tune.errors import UserError

PACKAGES = {"nifti": ("nibabel", "nifti"), "dicom": ("pydicom", "dicom")}
"""Format -> the package that writes it, and the extra that installs it."""

_COPIED = (
    "SpecificCharacterSet", "StudyDate", "StudyTime", "AccessionNumber", "ReferringPhysicianName", "StudyDescription", "PatientName",
    "PatientID", "PatientBirthDate", "PatientSex", "StudyInstanceUID", "StudyID", "InstanceNumber", "FrameOfReferenceUID",
    "PositionReferenceIndicator", "Laterality", "PatientOrientation", "ImagePositionPatient", "ImageOrientationPatient", "SliceLocation",
    "SliceThickness", "SpacingBetweenSlices", "PixelSpacing", "ImagerPixelSpacing", "PixelSpacingCalibrationType",
    "PixelSpacingCalibrationDescription", "PixelAspectRatio",
)  # fmt: skip
"""Whose image it is, of which study, and where its pixels lie."""

_MAY_BE_EMPTY = (
    "StudyDate", "StudyTime", "AccessionNumber", "ReferringPhysicianName", "PatientName", "PatientID", "PatientBirthDate", "PatientSex",
    "StudyID", "InstanceNumber",
)  # fmt: skip
"""What DICOM wants to be there even where it is not known."""


def check_package(kind: str) -> None:
    """Refuses a format whose package is not installed, before anything is computed.

    Raises:
        UserError: Names the extra.
    """
    package, extra = PACKAGES[kind]
    try:
        __import__(package)
    except ImportError:
        what = f"masks as {kind} are written by the package {package}, which is not installed"
        raise UserError(what, where="--masks-as", todo=f"pip install 'guidino-tune[{extra}]'") from None


def nifti_mask(source: Path, masks: Sequence[np.ndarray], first: int | None = None) -> bytes:
    """A label volume: uint8, with shape, affine and their codes of the volume that the slices are from.

    Args:
        source: The volume, or 2D image.
        masks: (H, W) of each slice in their order, labels.
        first: Number of the first slice where they are a part of the volume; ``None``: they are all of it.

    Returns:
        The content of a ``.nii.gz`` with the mark of ``predict``.
    """
    import nibabel

    header = header_of(source)
    kind = nibabel.Nifti2Image if isinstance(header, nibabel.Nifti2Image.header_class) else nibabel.Nifti1Image
    header["vox_offset"] = 0  # extensions are left out
    labels = np.stack([mask.T for mask in masks], axis=2)  # as ``data.niftis`` reads slices
    if first is None:
        labels = labels.reshape(header.get_data_shape())
    if header.get_data_shape() != labels.shape:  # which also forgets the size of pixels along axes that are not there
        header.set_data_shape(labels.shape)
    header.set_data_dtype(np.uint8)
    header.set_slope_inter(1, 0)
    header.set_intent("label")
    header["cal_min"] = header["cal_max"] = 0
    header["descrip"] = UNSIGNED
    for read, write in ((header.get_sform, header.set_sform), (header.get_qform, header.set_qform)) if first else ():
        matrix, code = read(coded=True)
        if code:
            matrix[:3, 3] += matrix[:3, 2] * first
            write(matrix, int(code))
    made = kind(labels.astype(np.uint8), header.get_best_affine(), header)
    return gzip.compress(sign(made.to_bytes()), 4, mtime=0)


def dicom_mask(source: Path, mask: np.ndarray, classes: Sequence[str], made_by: str) -> bytes:
    """A label image as a DICOM secondary capture of 8 bits: patient, study, position and size of pixels are those of its source.

    All masks of a series of one model are a series. The same image and mask give the same file, byte for byte.

    Args:
        source: The image.
        mask: (H, W), labels.
        classes: Names by label.
        made_by: Says which model and settings: masks of others are other series.

    Returns:
        The content of a file with the mark of ``predict``.
    """
    import pydicom
    from pydicom.uid import ExplicitVRLittleEndian, SecondaryCaptureImageStorage, generate_uid

    old = pydicom.dcmread(source, stop_before_pixels=True)
    new = pydicom.Dataset()
    for name in (name for name in _COPIED if name in old):
        new.add(old[name])
    for name in (name for name in _MAY_BE_EMPTY if name not in new):
        setattr(new, name, "")
    if "FrameOfReferenceUID" in new and "PositionReferenceIndicator" not in new:
        new.PositionReferenceIndicator = ""
    series = str(old.get("SeriesInstanceUID") or source.resolve().parent)
    image = str(old.get("SOPInstanceUID") or f"{series}/{source.name}")
    if not new.get("StudyInstanceUID"):
        new.StudyInstanceUID = generate_uid(entropy_srcs=["study", series])
    new.SeriesInstanceUID = generate_uid(entropy_srcs=["series", series, made_by])
    new.SOPClassUID = SecondaryCaptureImageStorage
    new.SOPInstanceUID = generate_uid(entropy_srcs=["mask", image, made_by, hashlib.sha256(mask.tobytes()).hexdigest()])
    new.Modality, new.ConversionType, new.ImageType = "OT", "WSD", ["DERIVED", "SECONDARY"]
    new.Manufacturer, new.SeriesDescription = "guidino_tune", "Predicted masks"
    new.SeriesNumber = 1000 + _number_of(old)
    new.DerivationDescription = UNSIGNED.decode("ascii")
    new.ImageComments = ", ".join(f"{label} {name}" for label, name in enumerate(classes)).encode("ascii", "replace").decode("ascii")
    if old.get("SOPClassUID") and old.get("SOPInstanceUID"):
        reference = pydicom.Dataset()
        reference.ReferencedSOPClassUID, reference.ReferencedSOPInstanceUID = old.SOPClassUID, old.SOPInstanceUID
        new.SourceImageSequence = [reference]
    new.Rows, new.Columns = mask.shape
    new.SamplesPerPixel, new.PhotometricInterpretation = 1, "MONOCHROME2"
    new.BitsAllocated, new.BitsStored, new.HighBit, new.PixelRepresentation = 8, 8, 7, 0
    new.WindowCenter, new.WindowWidth = len(classes) / 2, len(classes)  # so that viewers show the labels
    new.add_new("PixelData", "OB", mask.astype(np.uint8).tobytes() + b"\0" * (mask.size % 2))
    new.file_meta = pydicom.dataset.FileMetaDataset()
    new.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    written = io.BytesIO()
    pydicom.dcmwrite(written, new, enforce_file_format=True)
    return sign(written.getvalue())


def _number_of(series: Any) -> int:
    """0 where a file has no number of its series, or what is none."""
    try:
        return int(series.get("SeriesNumber") or 0)
    except (TypeError, ValueError):
        return 0
