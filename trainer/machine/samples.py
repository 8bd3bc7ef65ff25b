"""One tiny image a compressed transfer syntax, to try what decodes it.

HTJ2K was encoded by OpenJPH, JPEG of 12 bits by libjpeg-turbo, the others by the libraries that
decode them here.
"""

from __future__ import annotations

import base64
import dataclasses

import numpy as np
import numpy.typing as npt


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sample:
    """A codestream and what it holds: (a row + b column + c) modulo 4096, times a factor.

    Attributes:
      data: the codestream, in base64.
      rows, columns, bits: of the image; more than 8 bits are stored in 16.
      pattern: a, b, c and the factor.
      off: how far a pixel may be off, for the lossy ones.
    """

    data: str
    rows: int = 12
    columns: int = 16
    bits: int = 16
    pattern: tuple[int, int, int, int] = (8, 0, 0, 1)
    off: int = 0

    @property
    def codestream(self) -> bytes:
        """Its bytes."""
        return base64.b64decode(self.data)

    @property
    def image(self) -> npt.NDArray[np.int64]:
        """(row, column): what it holds."""
        row, column = np.mgrid[: self.rows, : self.columns]
        by_row, by_column, offset, factor = self.pattern
        values: npt.NDArray[np.int64] = (by_row * row + by_column * column + offset) % 4096
        return values * factor


# Lossless and in RPCL order, which keeps what each of the three syntaxes of HTJ2K promises.
_HTJ2K = Sample(
    data="/0//UQApQAAAAAAQAAAADAAAAAAAAAAAAAAAEAAAAAwAAAAAAAAAAAABDwEB/1AACAACAAAACv9SAAwA"
    "AgABAAUEBEAB/1wAEyCIkJCQkJCQkJCQkJCQiIiI/2QAFwABT3BlbkpQSCBWZXIgMC4yNi4zLv+QAAoA"
    "AAAAAIwAAf+TwAAmDfUEB3QAAMAAE0AAEwCQ/AMHdAAUbQWHdADAABPAABOARBL5AoJ0APTS+wCCNADA"
    "ABVQAAVoFi1a/KCCMgJ2AKf39J7e0/vAc4G+tgDAACtgABbQXl5eXl5e54p6cYJ3AJ/RP6M/oz+jP6M/"
    "oz+jP6P6LWB79rWB7LoA/9k=",
    pattern=(371, 11, 101, 16),
)

# Transfer syntax → its sample.
SAMPLES = {
    "1.2.840.10008.1.2.4.50": Sample(
        data="/9j/4AAQSkZJRgABAQAAAQABAAD/2wBDAAIBAQEBAQIBAQECAgICAgQDAgICAgUEBAMEBgUGBgYFBgYG"
        "BwkIBgcJBwYGCAsICQoKCgoKBggLDAsKDAkKCgr/wAALCAAMABABAREA/8QAHwAAAQUBAQEBAQEAAAAA"
        "AAAAAAECAwQFBgcICQoL/8QAtRAAAgEDAwIEAwUFBAQAAAF9AQIDAAQRBRIhMUEGE1FhByJxFDKBkaEI"
        "I0KxwRVS0fAkM2JyggkKFhcYGRolJicoKSo0NTY3ODk6Q0RFRkdISUpTVFVWV1hZWmNkZWZnaGlqc3R1"
        "dnd4eXqDhIWGh4iJipKTlJWWl5iZmqKjpKWmp6ipqrKztLW2t7i5usLDxMXGx8jJytLT1NXW19jZ2uHi"
        "4+Tl5ufo6erx8vP09fb3+Pn6/9oACAEBAAA/APn/AOEn7G3+q/4lXp/BX1B8JP2Nv9V/xKvT+Cvon4Sf"
        "C/wd+6/4lvp3H+FfUHwk+F/g791/xLfTuP8ACv/Z",
        bits=8,
        pattern=(11, 5, 40, 1),
        off=4,
    ),
    "1.2.840.10008.1.2.4.51": Sample(
        data="/9j/4AAQSkZJRgABAQAAAQABAAD/2wBDAAMCAgMCAgMDAwMEAwMEBQgFBQQEBQoHBwYIDAoMDAsKCwsN"
        "DhIQDQ4RDgsLEBYQERMUFRUVDA8XGBYUGBIUFRT/wQALDAAMABABAREA/8QAFgABAQEAAAAAAAAAAAAA"
        "AAAACAkL/8QAIxAAAAMGBwAAAAAAAAAAAAAAAAcLCAwNIygqM0FGSVHY4//aAAgBAQAAPwDGkJtyy8Ch"
        "PjSvmHWTbll4FCfGlfMSAJuKwCmhIsok/wDy2/20u24dRNxWAU0JFlEn/wCW3+2l23H/2Q==",
        bits=12,
        pattern=(371, 11, 101, 1),
        off=4,
    ),
    "1.2.840.10008.1.2.4.57": Sample(
        data="/9j/4AAQSkZJRgABAQAAAQABAAD/wwALDAAMABABAREA/8QAGAABAQEBAQAAAAAAAAAAAAAAAAQJCwz/"
        "2gAIAQEABAAA4MlddddddddddddddeuYAA1zAAGuYAA1zAAGuYAA1zAAGuYAA1zAAGuYAA1zAAHhcgAB"
        "/9k=",
        bits=12,
        pattern=(371, 11, 101, 1),
    ),
    "1.2.840.10008.1.2.4.70": Sample(
        data="/9j/wwALEAAMABABAREA/8QAFgABAQEAAAAAAAAAAAAAAAAAAwQQ/9oACAEBAAEAAMqqqqqqqqqrQqqq"
        "qqqqqqrQqqqqqqqqqrQqqqqqqqqqrQqqqqqqqqqrQqqqqqqqqqrQqqqqqqqqqrQqqqqqqqqqrQqqqqqq"
        "qqqrQqqqqqqqqqrQqqqqqqqqqrQqqqqqqqqqr//Z",
        pattern=(8, 5, 0, 1),
    ),
    "1.2.840.10008.1.2.4.80": Sample(
        data="/9j/9wALEAAMABABAREA//gADQH//wASAEMBFABA/9oACAEBAAAAAKBMCYDwLAmA8CwHA4HAYDAwMCYI"
        "QKgRA0CQKBQKBQUBAQEBAQKhoCBAgQIECBAgQIECBAiNAgQQQQQQQQQQQQQNNBBBBBBBBBBBBBBAk0MM"
        "MMMYxjGMYxgVIxjGMYxjGMYxgVIxjGMYxjMzMwLJmZmZmZmZmBZMzMzMzMzMwWTNtttttsAlttttttsA"
        "/9k=",
        pattern=(8, 5, 0, 1),
    ),
    "1.2.840.10008.1.2.4.81": Sample(
        data="/9j/9wALEAAMABABAREA//gADQH//wAYAE0BIgBA/9oACAEBAAIAAKAwGBgIMBgYCDAgwQQQwSBQECgU"
        "FCgoCFAggiggIIUFBBCECFCEIQgQJQhCEIiIiIiIIiIiIiIiIiIqiWSSySWQSQQpZBCskEEi0lhBJCCW"
        "SQ1hBK6hBVCEFVCCqqgrquq6hQhcIPCHAP/Z",
        pattern=(8, 5, 0, 1),
        off=4,
    ),
    "1.2.840.10008.1.2.4.90": Sample(
        data="/0//UQApAAAAAAAgAAAAIAAAAAAAAAAAAAAAIAAAACAAAAAAAAAAAAABDwEB/1IADAAAAAEABQQEAAH/"
        "XAATQICIiJCIiJCIiJCIiJCIiJD/ZAAlAAFDcmVhdGVkIGJ5IE9wZW5KUEVHIHZlcnNpb24gMi41LjD/"
        "kAAKAAAAAABDAAH/k8/8MAwJ/H+gB+AEBF+gA+0DAAs9hKAB9QKAA3/dUZ+gAPnDgD2mNFsQ3FegAHyB"
        "QJ2sKUEH/9k=",
        rows=32,
        columns=32,
    ),
    "1.2.840.10008.1.2.4.91": Sample(
        data="/0//UQApAAAAAAAgAAAAIAAAAAAAAAAAAAAAIAAAACAAAAAAAAAAAAABDwEB/1IADAAAAAEABQQEAAD/"
        "XAAjQrcgtvC28LbArwCvAK7gp1CnUKdokAWQBZBHl9OX05di/2QAJQABQ3JlYXRlZCBieSBPcGVuSlBF"
        "RyB2ZXJzaW9uIDIuNS4w/5AACgAAAAAAWwAB/5PP/LgQBzkiR6AB/AEAAFqgAfqDAAs+GeUCyaAAfYFg"
        "A34mjcXemwrdQX+gAHzDgD2mLohm2WTaoAAARRHkoAAfAWCdrClZeDuIozQwc//Z",
        rows=32,
        columns=32,
        off=4,
    ),
    "1.2.840.10008.1.2.4.201": _HTJ2K,
    "1.2.840.10008.1.2.4.202": _HTJ2K,
    "1.2.840.10008.1.2.4.203": _HTJ2K,
    "1.2.840.10008.1.2.5": Sample(
        data="AgAAAEAAAABYAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"
        "AAAAAPEA8QDxAPEA8QDxAPEA8QDxAPEA8QDxAPEA8QjxEPEY8SDxKPEw8TjxQPFI8VDxWA==",
    ),
}
