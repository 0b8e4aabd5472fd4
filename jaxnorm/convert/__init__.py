"""Norms, their weights and their statistics, from other frameworks and back.

A framework is imported by nobody here: its object is handed in, or a plain dict of arrays (NumPy's, JAX's, or
PyTorch's tensors). A file reads one framework into `norms.Norm`, which `layers` makes a layer of. What was
mapped, and what was left out, goes to `report`, if one is given, as a table: `report=print`.

    layer, variables = convert.from_torch(torch.nn.BatchNorm2d(64))
    variables = convert.from_torch_state(net.state_dict(), "batch_norm", prefix="bn1")
    state = convert.to_torch_state(variables, "batch_norm", prefix="bn1")

report         what was mapped and what was not, as a table
sources        arrays of any framework, by the keys of a state dict
norms          a norm as every framework's file describes it
wrapped        weight norm and spectral norm, with the layer whose weights they normalize
kernels        axes of Dense and Conv kernels
layers         the one place that makes layers of jaxnorm.linen and jaxnorm.nnx
pytorch        modules of torch.nn
torch_state    their state dicts, and back
nets           the state dict of a whole net, by a table with a line a layer
keras          Keras 3
haiku          Haiku
equinox        Equinox
"""

from jaxnorm.convert.equinox import from_equinox as from_equinox
from jaxnorm.convert.equinox import from_equinox_state as from_equinox_state
from jaxnorm.convert.equinox import to_equinox_state as to_equinox_state
from jaxnorm.convert.haiku import from_haiku as from_haiku
from jaxnorm.convert.haiku import to_haiku as to_haiku
from jaxnorm.convert.keras import from_keras as from_keras
from jaxnorm.convert.keras import from_keras_state as from_keras_state
from jaxnorm.convert.keras import to_keras_state as to_keras_state
from jaxnorm.convert.kernels import kernel_from_torch as kernel_from_torch
from jaxnorm.convert.kernels import kernel_to_torch as kernel_to_torch
from jaxnorm.convert.nets import net_from_torch as net_from_torch
from jaxnorm.convert.nets import net_to_torch as net_to_torch
from jaxnorm.convert.pytorch import from_torch as from_torch
from jaxnorm.convert.report import Report as Report
from jaxnorm.convert.torch_state import from_torch_state as from_torch_state
from jaxnorm.convert.torch_state import to_torch_state as to_torch_state
