"""Damaged files of every format are numbers of the promised kind, or one message that names the file."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
from fuzz_helpers import examples
from hypothesis import given
from hypothesis import strategies as st
from test_data_reading import CASES, frames
from test_data_volumes import COMPRESSED, CT, dicom, nifti
from test_fuzz_images import edited, edits

from guidino_tune.data.reading import is_deep, read_raw
from guidino_tune.errors import UserError


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """File name -> content."""
    folder = tmp_path_factory.mktemp("whole")
    contents = {name: content for name, (content, _, _) in CASES.items()}
    contents |= {f"several {form}": frames(form) for form in ("GIF", "WEBP", "PNG", "TIFF")}
    contents["dicom.dcm"] = dicom(folder / "a.dcm", CT, RescaleIntercept=-1024, RescaleSlope=1).read_bytes()
    for name, (values, stored, syntax, encode) in COMPRESSED.items():
        if encode is not None:
            contents[f"{name}.dcm"] = dicom(folder / "a.dcm", values, stored=stored, frame=encode(values), syntax=syntax).read_bytes()
    contents["volume.nii"] = nifti(folder / "a.nii", np.arange(12 * 9 * 5, dtype=np.int16).reshape(12, 9, 5)).read_bytes()
    contents["volume.nii.gz"] = nifti(folder / "a.nii.gz", np.zeros((12, 9, 5), np.float32)).read_bytes()
    return contents


@given(draw=st.data(), changes=edits)
@examples(150)
def test_damage_is_told(tmp_path: Path, whole: dict[str, bytes], draw: st.DataObject, changes: list[tuple[str, float, bytes]]) -> None:
    name = draw.draw(st.sampled_from(sorted(whole)))
    path = tmp_path / name
    path.write_bytes(edited(whole[name], changes))
    if ".nii" in name:
        path = path.with_name(f"{name}#2")
    told = []
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for look in (read_raw, is_deep):
            try:
                found = look(path)
            except UserError as error:
                told.append(str(error))
                continue
            if look is read_raw:
                assert found.values.ndim == 3
                assert found.values.size
                assert found.values.dtype.kind in "uif"
                assert found.values.dtype.isnative
                assert found.alpha is None or found.alpha.shape == found.shape
                assert found.indices is None or found.indices.shape == found.shape
    for message in told:
        assert message.startswith(f"{path}: ")
        assert "\n  -> " in message
        assert len(message) < 2000
