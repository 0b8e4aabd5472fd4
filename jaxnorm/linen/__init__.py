"""Flax linen layers: change the import and keep the model, its options and its checkpoints.

    from jaxnorm import linen as jn     # jn.BatchNorm for nn.BatchNorm, and so on

Each is a subclass of Flax's own, whose fields, defaults and variable names it inherits; the
computation is that of `jaxnorm`. Statistics are always accurate and in float32 or wider, so that
`use_fast_variance` and `force_float32_reductions` are accepted and change nothing. Every call takes Flax's
`mask`, read as bool, real `weights >= 0` of the same meaning, and a `scale` and a `bias` that come before the
layer's own, for conditional norms. Initialization updates no statistics and meets no other device.

Layers that Flax lacks are those functions of `jaxnorm` that have parameters or a state. What remembers is a
batch norm, with all its options and modes; what a call is conditioned on comes right after x.

`freeze` and `unfreeze` hold statistics still; `norm_labels` tells optax which parameters are a norm's.
"""

from jaxnorm.linen._batch import BatchNorm as BatchNorm
from jaxnorm.linen._conditional import SPADE as SPADE
from jaxnorm.linen._conditional import AdaLayerNorm as AdaLayerNorm
from jaxnorm.linen._conditional import AdaLayerNormZero as AdaLayerNormZero
from jaxnorm.linen._conditional import ConditionalBatchNorm as ConditionalBatchNorm
from jaxnorm.linen._conditional import FiLM as FiLM
from jaxnorm.linen._family import Derf as Derf
from jaxnorm.linen._family import DynamicTanh as DynamicTanh
from jaxnorm.linen._family import EvoNormS0 as EvoNormS0
from jaxnorm.linen._family import FilterResponseNorm as FilterResponseNorm
from jaxnorm.linen._family import GatedRMSNorm as GatedRMSNorm
from jaxnorm.linen._family import GlobalResponseNorm as GlobalResponseNorm
from jaxnorm.linen._family import PartialRMSNorm as PartialRMSNorm
from jaxnorm.linen._family import QKNorm as QKNorm
from jaxnorm.linen._family import RevIN as RevIN
from jaxnorm.linen._family import ScaleNorm as ScaleNorm
from jaxnorm.linen._family_batch import BatchRenorm as BatchRenorm
from jaxnorm.linen._family_batch import DecorrelatedBatchNorm as DecorrelatedBatchNorm
from jaxnorm.linen._family_batch import DomainBatchNorm as DomainBatchNorm
from jaxnorm.linen._family_batch import EvoNormB0 as EvoNormB0
from jaxnorm.linen._family_batch import GhostBatchNorm as GhostBatchNorm
from jaxnorm.linen._family_batch import InputNorm as InputNorm
from jaxnorm.linen._family_batch import IterNorm as IterNorm
from jaxnorm.linen._family_batch import RecurrentBatchNorm as RecurrentBatchNorm
from jaxnorm.linen._family_batch import SwitchableNorm as SwitchableNorm
from jaxnorm.linen._freezing import freeze as freeze
from jaxnorm.linen._freezing import norm_labels as norm_labels
from jaxnorm.linen._freezing import unfreeze as unfreeze
from jaxnorm.linen._norms import GroupNorm as GroupNorm
from jaxnorm.linen._norms import InstanceNorm as InstanceNorm
from jaxnorm.linen._norms import LayerNorm as LayerNorm
from jaxnorm.linen._norms import RMSNorm as RMSNorm
from jaxnorm.linen._pop_art import PopArt as PopArt
from jaxnorm.linen._weights import SpectralNorm as SpectralNorm
from jaxnorm.linen._weights import WeightNorm as WeightNorm
