"""Where a network with covariates begins: at what they say of the labels by themselves."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import numpy.typing as npt

from beam_jobs.core.cohort.target import Target
from trainer.metrics.covariates.alone import coefficients
from trainer.networks.tasks.statistics import begin_with


def begin_from_covariates(
    network: keras.Model,
    target: Target,
    targets: npt.NDArray[Any] | None,
    known: npt.NDArray[Any] | None,
) -> None:
    """Fits the training patients' covariates alone, and lets the network begin there.

    Few weights beside thousands: drawn at random, they have hardly moved when a network knows its
    training images by heart, and what they could have told is lost. So images have to explain only
    what covariates leave over.

    Args:
      network: of `build_model`, with its statistics set; changed in place.
      target: what labels say.
      targets: of the training patients, (n, outputs), NaN unknown.
      known: their covariates, (n, covariates), NaN unknown.

    Raises:
      ValueError: an array is not given.
    """
    if targets is None or known is None:
        raise ValueError("a network with covariates needs targets and covariates of its patients")
    columns = np.asarray(network.get_layer("known")(known), np.float64)
    begin_with(network, *coefficients(target, columns, targets))
