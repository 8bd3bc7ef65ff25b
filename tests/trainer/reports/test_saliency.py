"""Pictures of a saliency page: the same on every numpy."""

import numpy as np
import pytest

from trainer.reports import saliency


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float16"])
def test_a_windows_white_is_not_rounded_to_the_stored_type(dtype):
    stored = np.random.default_rng(1).random((4, 4, 3)) * (1 if dtype == "float16" else 200)
    volume = stored.astype(dtype)
    black, white = saliency._window(volume)
    assert black == 0
    assert white == np.percentile(volume[volume > 0].astype(np.float64), 99.5)
