"""Flax linen layers: change the import and keep the model, its options and its checkpoints.

    from jaxnorm import linen as jn     # jn.BatchNorm for nn.BatchNorm, and so on

Each layer is a subclass of Flax's own, whose fields, defaults and variable names it inherits; the
computation is that of `jaxnorm`. Statistics are always accurate and in float32 or wider, so that
`use_fast_variance` and `force_float32_reductions` are accepted and change nothing. Every call takes Flax's
`mask`, read as bool, real `weights >= 0` of the same meaning, and a `scale` and a `bias` that come before the
layer's own, for conditional norms. Initialization updates no statistics and meets no other device.

`freeze` and `unfreeze` hold statistics still; `norm_labels` tells optax which parameters are a norm's.
"""

from jaxnorm.linen._batch import BatchNorm as BatchNorm
from jaxnorm.linen._freezing import freeze as freeze
from jaxnorm.linen._freezing import norm_labels as norm_labels
from jaxnorm.linen._freezing import unfreeze as unfreeze
from jaxnorm.linen._norms import GroupNorm as GroupNorm
from jaxnorm.linen._norms import InstanceNorm as InstanceNorm
from jaxnorm.linen._norms import LayerNorm as LayerNorm
from jaxnorm.linen._norms import RMSNorm as RMSNorm
from jaxnorm.linen._weights import SpectralNorm as SpectralNorm
from jaxnorm.linen._weights import WeightNorm as WeightNorm
