"""What one image says about itself: the fields that all that follows the header goes by."""

from __future__ import annotations

from typing import NamedTuple

from beam_jobs.core.dicom import header_walk
from beam_jobs.core.nifti.names import NIFTI_1, NIFTI_2


class SliceHeader(NamedTuple):
    """What one image (a file, or a frame of one) says about itself.

    Text is stripped of padding; absent text is "", absent numbers are None; `modified` is the
    file's time of change in ns, 0 where it is unknown. Geometry is as in
    PS3.3 C.7.6.2: `position` is the centre of the first pixel in patient LPS mm; `orientation`
    is the direction of increasing column index, then of increasing row index; `pixel_spacing` is
    (between rows, between columns) in mm. `volume_index` is a frame's DimensionIndexValues less
    those that count positions, so that frames of one repetition share it. `diffusion_direction` is
    as stored, only to tell directions apart: vendors differ in its frame and sign.

    `tiles` is 0 for a plain image. In a mosaic it counts the tiles along one side of the stored
    image; `rows` and `columns` are then the tile's, `position` its own, and `frame` its number, row
    by row from the top left.

    Of a NIfTI file (`is_nifti`) there is one of these a slice along the third voxel axis, `frame`
    is its number there.
    """

    path: str
    file_size: int
    transfer_syntax: str
    pixel_offset: int
    pixel_length: int | None
    frame: int = 0
    sop_class: str = ""
    sop_uid: str = ""
    study_uid: str = ""
    series_uid: str = ""
    frame_of_reference: str = ""
    patient_id: str = ""
    modality: str = ""
    manufacturer: str = ""
    series_description: str = ""
    protocol_name: str = ""
    sequence_name: str = ""
    pulse_sequence_name: str = ""
    image_type: tuple[str, ...] = ()
    complex_component: str = ""
    scanning_sequence: tuple[str, ...] = ()
    sequence_variant: tuple[str, ...] = ()
    contrast_agent: str = ""
    burned_in: str = ""
    field_strength: float | None = None
    echo_time: float | None = None
    repetition_time: float | None = None
    inversion_time: float | None = None
    flip_angle: float | None = None
    echo_number: int | None = None
    temporal_position: int | None = None
    b_value: float | None = None
    diffusion_direction: tuple[float, ...] = ()
    gradient_number: int | None = None
    trigger_time: float | None = None
    acquisition_time: str = ""
    stack_id: str = ""
    volume_index: tuple[int, ...] = ()
    acquisition_number: int | None = None
    series_number: int | None = None
    instance_number: int | None = None
    slice_thickness: float | None = None
    spacing_between_slices: float | None = None
    position: tuple[float, ...] = ()
    orientation: tuple[float, ...] = ()
    pixel_spacing: tuple[float, ...] = ()
    samples: int | None = None
    photometric: str = ""
    frames: int | None = None
    rows: int | None = None
    columns: int | None = None
    bits_allocated: int | None = None
    bits_stored: int | None = None
    high_bit: int | None = None
    pixel_representation: int | None = None
    slope: float | None = None
    intercept: float | None = None
    has_modality_lut: bool = False
    tiles: int = 0
    modified: int = 0

    @property
    def is_native(self) -> bool:
        """Whether the pixels lie in the file as plain little-endian samples."""
        return self.pixel_length is not None and self.transfer_syntax in (
            header_walk.IMPLICIT_LITTLE,
            header_walk.EXPLICIT_LITTLE,
        )

    @property
    def is_nifti(self) -> bool:
        """Whether it is a slice of a NIfTI file, which says nothing but where its voxels lie."""
        return self.transfer_syntax in (NIFTI_1, NIFTI_2)

    @property
    def key(self) -> tuple[str, int]:
        """What no other image is called: its file and its number there."""
        return self.path, self.frame

    @property
    def frame_bytes(self) -> int:
        """Bytes of one native frame: rows x columns x samples x allocated bits; of all tiles."""
        return (
            (self.rows or 0)
            * (self.columns or 0)
            * (self.tiles or 1) ** 2
            * (self.samples or 1)
            * (self.bits_allocated or 0)
            // 8
        )
