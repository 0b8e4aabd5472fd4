"""The family has the properties of the norms: the tests of the table, over its rows."""

import jax
import pytest
import test_derivatives
import test_devices
import test_masks
import test_variants
from thin import slow_but
from variants_family import FAMILY


def named(*names):
    assert set(names) <= {v.name for v in FAMILY}
    return [v for v in FAMILY if v.name in names]


def taking(option, but=()):
    return [v for v in FAMILY if option in v.takes and v not in named(*but)]


def over(variants):
    return pytest.mark.parametrize("variant", variants, ids=str)


def mask(variant):
    return "mask" if "where" in variant.takes else None


# Rows with arithmetic of their own, around the rule that all norms share.
OWN = ("renorm", "gated", "dynamic erf", "global response", "evonorm b0", "whitened")
# Rows that hand what they are given to another norm, and, last, those that take one weight for all features
# of a place: test_whitening.py.
PLAIN = ("bank", "partial", "adaptive layer", "conditional batch", "spade", "pixel", "reversible")
PLAIN += ("whitened", "whitened by Newton")
# Rows that leave more of an empty sample than the bias.
FULL = (
    "blended",
    "gated",
    "gated before",
    "gated in groups",
    "adaptive instance",
    "conditional batch",
    "global response",
)
FULL += ("input", "filter response")


@over(FAMILY)
def test_value(variant):
    compiled = variant._replace(function=jax.jit(variant.function))  # once: eager takes three times as long
    test_variants.test_value(compiled, "bfloat16")
    if variant in named(*OWN):
        test_variants.test_value(compiled, "float32")


@over(named("bank", "evonorm b0", "whitened"))
def test_jit_of_vmap_is_a_loop(variant):
    test_variants.test_jit_of_vmap_is_a_loop(variant, mask(variant))


@over(named("bank", "whitened"))
def test_scan_carries_the_state(variant):
    test_variants.test_scan_carries_the_state(variant)


@over(taking("state"))
def test_evaluation_returns_the_state_itself(variant):
    test_variants.test_evaluation_returns_the_state_itself(variant)


@over(named("bank", "input", "whitened"))
def test_train_may_be_traced(variant):
    test_variants.test_train_may_be_traced(variant)


@over([v for v in FAMILY if v not in named("ghost")])  # whose parts divide the batch
def test_shapes_of_a_symbolic_batch(variant):
    test_variants.test_shapes_of_a_symbolic_batch(variant, mask(variant))


@over(named("gated", "evonorm b0", "whitened"))
def test_every_mode_and_order(variant):
    with jax.enable_x64(True):
        test_derivatives.test_every_mode_and_order(variant, None)


@over(slow_but([v for v in FAMILY if v not in named(*PLAIN[:-2], "scale", "film")], *OWN))
def test_values_and_gradients_of_a_weighted_sample(variant):
    with jax.enable_x64(True):
        where = "weights" if "where" in variant.takes else None
        test_derivatives.test_values_and_gradients_of_a_weighted_sample(variant, where, None)


@over(named(*OWN, "filter response", "evonorm s0"))
def test_gradients_of_a_narrow_type(variant):
    test_derivatives.test_gradients_of_a_narrow_type(variant)


@over(slow_but(taking("where", but=PLAIN), "renorm", "gated", "global response", "evonorm b0"))
def test_what_is_masked_reaches_nothing(variant):
    test_masks.test_what_is_masked_reaches_nothing(variant, "mask")


@over(taking("where", but=(*FULL, *PLAIN[:-2])))
def test_an_empty_sample_gives_bias_and_changes_nothing(variant):
    test_masks.test_an_empty_sample_gives_bias_and_changes_nothing(variant, "mask")


@over(named("renorm", "whitened"))
def test_devices_are_one_device(variant):
    test_devices.test_devices_are_one_device(variant, "mask", "shard_map", "float32")
