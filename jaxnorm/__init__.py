"""jaxnorm: normalization for JAX. A norm is a choice of Moments, and Moments combine by one law.

Pure functions over explicit state live here; `jaxnorm.linen` and `jaxnorm.nnx` hold Flax's layers, and
`jaxnorm.population` what comes after training; `jaxnorm.convert` brings norms from other frameworks.
"""

import importlib
import types
import typing

from jaxnorm._base.collectives import IfBound as IfBound
from jaxnorm._base.collectives import InGroups as InGroups
from jaxnorm._core.average import ema as ema
from jaxnorm._core.moments import Moments as Moments
from jaxnorm._core.moments import combine as combine
from jaxnorm._core.moments import initial_stats as initial_stats
from jaxnorm._core.moments import merge as merge
from jaxnorm._core.moments import moments as moments
from jaxnorm._core.standardize import standardize as standardize
from jaxnorm._core.standardize import unstandardize as unstandardize
from jaxnorm._norms.banks import bank_norm as bank_norm
from jaxnorm._norms.banks import blended_batch_norm as blended_batch_norm
from jaxnorm._norms.batch import batch_norm as batch_norm
from jaxnorm._norms.conditional import adaptive_instance_norm as adaptive_instance_norm
from jaxnorm._norms.conditional import adaptive_layer_norm as adaptive_layer_norm
from jaxnorm._norms.conditional import conditional_batch_norm as conditional_batch_norm
from jaxnorm._norms.conditional import film as film
from jaxnorm._norms.conditional import spade as spade
from jaxnorm._norms.evonorm import evonorm_b0 as evonorm_b0
from jaxnorm._norms.evonorm import evonorm_s0 as evonorm_s0
from jaxnorm._norms.inputs import input_norm as input_norm
from jaxnorm._norms.inputs import pop_art as pop_art
from jaxnorm._norms.inputs import reversible_norm as reversible_norm
from jaxnorm._norms.instances import running_instance_norm as running_instance_norm
from jaxnorm._norms.lengths import pixel_norm as pixel_norm
from jaxnorm._norms.lengths import scale_norm as scale_norm
from jaxnorm._norms.lengths import weight_demodulate as weight_demodulate
from jaxnorm._norms.renorm import batch_renorm as batch_renorm
from jaxnorm._norms.renorm import ghost_batch_norm as ghost_batch_norm
from jaxnorm._norms.responses import filter_response_norm as filter_response_norm
from jaxnorm._norms.responses import global_response_norm as global_response_norm
from jaxnorm._norms.responses import local_response_norm as local_response_norm
from jaxnorm._norms.responses import unit_norm as unit_norm
from jaxnorm._norms.sample import group_norm as group_norm
from jaxnorm._norms.sample import instance_norm as instance_norm
from jaxnorm._norms.sample import layer_norm as layer_norm
from jaxnorm._norms.sample import rms_norm as rms_norm
from jaxnorm._norms.spectral import SpectralStats as SpectralStats
from jaxnorm._norms.spectral import initial_spectral_stats as initial_spectral_stats
from jaxnorm._norms.spectral import spectral_norm as spectral_norm
from jaxnorm._norms.switchable import switchable_norm as switchable_norm
from jaxnorm._norms.transformers import dynamic_erf as dynamic_erf
from jaxnorm._norms.transformers import dynamic_tanh as dynamic_tanh
from jaxnorm._norms.transformers import gated_rms_norm as gated_rms_norm
from jaxnorm._norms.transformers import partial_rms_norm as partial_rms_norm
from jaxnorm._norms.transformers import qk_norm as qk_norm
from jaxnorm._norms.weights import weight_lengths as weight_lengths
from jaxnorm._norms.weights import weight_norm as weight_norm
from jaxnorm._norms.weights import weight_standardize as weight_standardize
from jaxnorm._norms.whitening import Covariance as Covariance
from jaxnorm._norms.whitening import decorrelated_batch_norm as decorrelated_batch_norm
from jaxnorm._norms.whitening import initial_covariance as initial_covariance

__version__ = "0.1.0"

_ON_DEMAND = ("convert", "linen", "monitor", "nnx", "population")

if typing.TYPE_CHECKING:
    from jaxnorm import convert as convert
    from jaxnorm import linen as linen
    from jaxnorm import monitor as monitor
    from jaxnorm import nnx as nnx
    from jaxnorm import population as population
else:  # a checker that sees __getattr__ accepts every misspelled name

    def __getattr__(name: str) -> types.ModuleType:
        """A package, imported when it is asked for: `import jaxnorm` alone is fast and imports no Flax."""
        if name in _ON_DEMAND:
            return importlib.import_module(f"jaxnorm.{name}")
        raise AttributeError(f"module 'jaxnorm' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_ON_DEMAND})
