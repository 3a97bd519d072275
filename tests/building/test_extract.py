"""What `xact.extract` takes as stimuli."""

from __future__ import annotations

import numpy as np
import pytest

import xact
from xact.errors import RequestError


@pytest.mark.parametrize("shape", [(40, 30, 3), (40, 30)])
def test_a_single_array_is_never_read_as_several_pictures(shape):
    with pytest.raises(RequestError, match="may be a picture or several") as refused:
        xact.extract("ResNet50", np.zeros(shape, np.uint8))
    assert refused.value.hint == "give a list of arrays: [picture]"


def test_what_is_not_a_stimulus_is_named():
    with pytest.raises(RequestError, match="a stimulus is a path, a uint8 array or a caption; this is a int"):
        xact.extract("ResNet50", ["a.png", 3])
