"""Flax nnx layers: replace `nnx.BatchNorm` by `jaxnorm.nnx.BatchNorm`, likewise the other norms.

    from jaxnorm import nnx as jn       # jn.BatchNorm for nnx.BatchNorm, and so on

Each is a subclass of Flax's own, whose options, defaults, variables and modes (`train`, `eval`,
`nnx.view`) it inherits; the computation is that of `jaxnorm`. Statistics are always accurate and in float32
or wider, so that `use_fast_variance` is accepted and changes nothing. `promote_dtype` chooses the dtype of
y, as in Flax; x itself is read as it is, without a cast. Every call takes Flax's `mask`, read as bool, real
`weights >= 0` of the same meaning, and a `scale` and a `bias` that come before the layer's own, for
conditional norms. With several feature axes, `num_features` is the product of their sizes.

Layers that Flax lacks are those functions of `jaxnorm` that have parameters or a state. Those that keep
statistics are subclasses of `BatchNorm`, with all its options and modes; what a call is conditioned on comes
right after x. A norm of your own that keeps statistics is such a subclass, too: `BatchNorm` shows one.
`promote_dtype` is for Flax's own layers.

`freeze` and `unfreeze` hold statistics still; `norm_labels` tells optax which parameters are a norm's.
After training, `recalibrate` measures the statistics of all norms anew, `fold` makes norms part of the layers
beside them, and `bake` weight and spectral norm part of the weights. `diagnose` reports what the statistics
of a model say.
`convert` makes the norms of a built model these.
"""

from jaxnorm.nnx.bake import bake as bake
from jaxnorm.nnx.batch import BatchNorm as BatchNorm
from jaxnorm.nnx.conditional import SPADE as SPADE
from jaxnorm.nnx.conditional import AdaLayerNorm as AdaLayerNorm
from jaxnorm.nnx.conditional import AdaLayerNormZero as AdaLayerNormZero
from jaxnorm.nnx.conditional import ConditionalBatchNorm as ConditionalBatchNorm
from jaxnorm.nnx.conditional import FiLM as FiLM
from jaxnorm.nnx.diagnosing import diagnose as diagnose
from jaxnorm.nnx.family import Derf as Derf
from jaxnorm.nnx.family import DynamicTanh as DynamicTanh
from jaxnorm.nnx.family import EvoNormS0 as EvoNormS0
from jaxnorm.nnx.family import FilterResponseNorm as FilterResponseNorm
from jaxnorm.nnx.family import GatedRMSNorm as GatedRMSNorm
from jaxnorm.nnx.family import GlobalResponseNorm as GlobalResponseNorm
from jaxnorm.nnx.family import PartialRMSNorm as PartialRMSNorm
from jaxnorm.nnx.family import QKNorm as QKNorm
from jaxnorm.nnx.family import RevIN as RevIN
from jaxnorm.nnx.family import ScaleNorm as ScaleNorm
from jaxnorm.nnx.family_batch import BatchRenorm as BatchRenorm
from jaxnorm.nnx.family_batch import DecorrelatedBatchNorm as DecorrelatedBatchNorm
from jaxnorm.nnx.family_batch import DomainBatchNorm as DomainBatchNorm
from jaxnorm.nnx.family_batch import EvoNormB0 as EvoNormB0
from jaxnorm.nnx.family_batch import GhostBatchNorm as GhostBatchNorm
from jaxnorm.nnx.family_batch import InputNorm as InputNorm
from jaxnorm.nnx.family_batch import IterNorm as IterNorm
from jaxnorm.nnx.family_batch import RecurrentBatchNorm as RecurrentBatchNorm
from jaxnorm.nnx.family_batch import SwitchableNorm as SwitchableNorm
from jaxnorm.nnx.fold import fold as fold
from jaxnorm.nnx.freezing import freeze as freeze
from jaxnorm.nnx.freezing import norm_labels as norm_labels
from jaxnorm.nnx.freezing import unfreeze as unfreeze
from jaxnorm.nnx.from_flax import convert as convert
from jaxnorm.nnx.norms import GroupNorm as GroupNorm
from jaxnorm.nnx.norms import InstanceNorm as InstanceNorm
from jaxnorm.nnx.norms import LayerNorm as LayerNorm
from jaxnorm.nnx.norms import RMSNorm as RMSNorm
from jaxnorm.nnx.pop_art import PopArt as PopArt
from jaxnorm.nnx.recalibration import recalibrate as recalibrate
from jaxnorm.nnx.weights import SpectralNorm as SpectralNorm
from jaxnorm.nnx.weights import WeightNorm as WeightNorm
