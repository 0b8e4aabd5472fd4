"""Flax linen layers: replace `nn.BatchNorm` by `jaxnorm.linen.BatchNorm`, likewise the other norms.

    from jaxnorm import linen as jn     # jn.BatchNorm for nn.BatchNorm, and so on

Each is a subclass of Flax's own, whose fields, defaults and variable names it inherits; the
computation is that of `jaxnorm`. Statistics are always accurate and in float32 or wider, so that
`use_fast_variance` and `force_float32_reductions` are accepted and change nothing. Every call takes Flax's
`mask`, read as bool, real `weights >= 0` of the same meaning, and a `scale` and a `bias` that come before the
layer's own, for conditional norms. Initialization updates no statistics and runs no collectives.

Layers that Flax lacks are those functions of `jaxnorm` that have parameters or a state. Those that keep
statistics are subclasses of `BatchNorm`, with all its options and modes; what a call is conditioned on comes
right after x. A norm of your own that keeps statistics is such a subclass, too: `BatchNorm` shows one.

`freeze` and `unfreeze` hold statistics still; `norm_labels` tells optax which parameters are a norm's.
After training, `recalibrate` measures the statistics of all norms anew, `fold` makes norms part of the layers
beside them, and `bake` weight and spectral norm part of the weights. `diagnose` reports what the statistics
of a model say.
`in_place_of_flax` runs a model that nobody edits with these layers.
"""

from jaxnorm.linen.bake import bake as bake
from jaxnorm.linen.batch import BatchNorm as BatchNorm
from jaxnorm.linen.conditional import SPADE as SPADE
from jaxnorm.linen.conditional import AdaLayerNorm as AdaLayerNorm
from jaxnorm.linen.conditional import AdaLayerNormZero as AdaLayerNormZero
from jaxnorm.linen.conditional import ConditionalBatchNorm as ConditionalBatchNorm
from jaxnorm.linen.conditional import FiLM as FiLM
from jaxnorm.linen.diagnosing import diagnose as diagnose
from jaxnorm.linen.family import Derf as Derf
from jaxnorm.linen.family import DynamicTanh as DynamicTanh
from jaxnorm.linen.family import EvoNormS0 as EvoNormS0
from jaxnorm.linen.family import FilterResponseNorm as FilterResponseNorm
from jaxnorm.linen.family import GatedRMSNorm as GatedRMSNorm
from jaxnorm.linen.family import GlobalResponseNorm as GlobalResponseNorm
from jaxnorm.linen.family import PartialRMSNorm as PartialRMSNorm
from jaxnorm.linen.family import QKNorm as QKNorm
from jaxnorm.linen.family import RevIN as RevIN
from jaxnorm.linen.family import ScaleNorm as ScaleNorm
from jaxnorm.linen.family_batch import BatchRenorm as BatchRenorm
from jaxnorm.linen.family_batch import DecorrelatedBatchNorm as DecorrelatedBatchNorm
from jaxnorm.linen.family_batch import DomainBatchNorm as DomainBatchNorm
from jaxnorm.linen.family_batch import EvoNormB0 as EvoNormB0
from jaxnorm.linen.family_batch import GhostBatchNorm as GhostBatchNorm
from jaxnorm.linen.family_batch import InputNorm as InputNorm
from jaxnorm.linen.family_batch import IterNorm as IterNorm
from jaxnorm.linen.family_batch import RecurrentBatchNorm as RecurrentBatchNorm
from jaxnorm.linen.family_batch import SwitchableNorm as SwitchableNorm
from jaxnorm.linen.fold import fold as fold
from jaxnorm.linen.freezing import freeze as freeze
from jaxnorm.linen.freezing import norm_labels as norm_labels
from jaxnorm.linen.freezing import unfreeze as unfreeze
from jaxnorm.linen.from_flax import in_place_of_flax as in_place_of_flax
from jaxnorm.linen.norms import GroupNorm as GroupNorm
from jaxnorm.linen.norms import InstanceNorm as InstanceNorm
from jaxnorm.linen.norms import LayerNorm as LayerNorm
from jaxnorm.linen.norms import RMSNorm as RMSNorm
from jaxnorm.linen.pop_art import PopArt as PopArt
from jaxnorm.linen.recalibration import recalibrate as recalibrate
from jaxnorm.linen.weights import SpectralNorm as SpectralNorm
from jaxnorm.linen.weights import WeightNorm as WeightNorm
