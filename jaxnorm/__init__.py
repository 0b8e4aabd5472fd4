"""jaxnorm: normalization for JAX. A norm is a choice of Moments, and Moments combine by one law.

Pure functions over explicit state live here; `jaxnorm.linen` and `jaxnorm.nnx` hold Flax's layers.
"""

from jaxnorm._average import ema as ema
from jaxnorm._batch import batch_norm as batch_norm
from jaxnorm._moments import Moments as Moments
from jaxnorm._moments import combine as combine
from jaxnorm._moments import initial_stats as initial_stats
from jaxnorm._moments import merge as merge
from jaxnorm._moments import moments as moments
from jaxnorm._norms import group_norm as group_norm
from jaxnorm._norms import instance_norm as instance_norm
from jaxnorm._norms import layer_norm as layer_norm
from jaxnorm._norms import rms_norm as rms_norm
from jaxnorm._responses import local_response_norm as local_response_norm
from jaxnorm._responses import unit_norm as unit_norm
from jaxnorm._standardize import standardize as standardize
from jaxnorm._standardize import unstandardize as unstandardize

__version__ = "0.1.0"
