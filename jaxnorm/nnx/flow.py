"""Whether a module hands the output of one of its layers to another, and nothing else: by tracing a call."""

import types
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from jaxnorm.population import pairs as shared
from jaxnorm.population import refusals

# By path, the input and the output of every call.
Calls = dict[str, list[tuple[Any, Any]]]


def check_flow(
    modules: Mapping[str, Any],
    chosen: Mapping[str, Sequence[str]],
    into: str,
    args: tuple[Any, ...] | None,
    kwargs: Mapping[str, Any],
) -> None:
    """An error if a norm and the layers beside it are seen not to follow each other.

    Nothing is computed, and the model stays as it is. What cannot be traced is not seen.

    Args:
      modules: of the model, by path.
      chosen, into: the layers beside each norm, by path.
      args, kwargs: of a call of the model; None: calls are made of the sizes of its layers.
    """
    every = {path for norm, layers in chosen.items() for path in (norm, *layers)}
    traced: dict[tuple[str, Any], Calls] = {}
    for norm, layers in chosen.items():
        for owner, example in _examples(modules, [norm, *layers], args):
            key = owner, None if args is not None else example
            if key not in traced:
                inside = [path for path in every if shared.is_inside(path, owner)]
                traced[key] = _calls(owner, modules, inside, example, {} if args is None else kwargs)
            calls = traced[key]
            if all(calls[path] for path in (norm, *layers)):
                _check_calls(calls, norm, layers, into)
                break


def _check_calls(calls: Calls, norm: str, layers: Sequence[str], into: str) -> None:
    """An error unless every output of the first is the input of the second, and nothing else is."""
    first, then = (layers[0], [norm]) if into == "previous" else (norm, layers)
    outputs = [y for _, y in calls[first]]
    for path in then:
        inputs = [x for x, _ in calls[path]]
        pairs = list(zip(inputs, outputs, strict=False))
        same = len(inputs) == len(outputs) and all(x is y for x, y in pairs)
        if not same and all(_one_trace(x, y) for x, y in pairs):
            raise refusals.between(norm, layers, into, len(outputs), len(inputs))


def _examples(
    modules: Mapping[str, Any], paths: Sequence[str], args: tuple[Any, ...] | None
) -> Iterator[tuple[str, tuple[Any, ...]]]:
    """Modules to call, by path, and with what: the model, or the smallest module that has all of `paths`."""
    if args is not None:
        yield "", args
        return
    owner = shared.common_path(paths)
    while owner and isinstance(modules[owner], (nnx.List, nnx.Dict)):
        owner = owner.rpartition("/")[0]
    inside = [m for path, m in modules.items() if shared.is_inside(path, owner)]
    for shape in shared.likely_shapes(inside):
        yield owner, (jax.ShapeDtypeStruct(shape, jnp.float32),)


def _calls(
    owner: str, modules: Mapping[str, Any], paths: Sequence[str], args: Any, kwargs: Mapping[str, Any]
) -> Calls:
    """The calls of the modules at `paths` in a call of the module at `owner`, as far as it gets."""
    graph, state = nnx.split(modules[owner])
    calls: Calls = {path: [] for path in paths}

    def run(state: Any, args: Any) -> None:
        copy = nnx.merge(graph, state)
        here = {shared.joined(owner, path): m for path, m in nnx.iter_modules(copy)}
        for path in paths:
            _record(here[path], calls[path])
        copy(*args, **kwargs)

    try:
        jax.eval_shape(run, state, args)
    except Exception:
        # The module may take other arguments, or other sizes. What was called until then is known.
        return calls
    return calls


def _record(module: Any, calls: list[tuple[Any, Any]]) -> None:
    """Appends the inputs and outputs of a module's calls, also of its copies in transformations of nnx."""
    kind = type(module)

    def call(self: Any, x: Any, *args: Any, **kwargs: Any) -> Any:
        y = kind.__call__(self, x, *args, **kwargs)
        calls.append((x, y))
        return y

    recording = types.new_class(kind.__name__, (kind,), exec_body=lambda body: body.update(__call__=call))
    object.__setattr__(module, "__class__", recording)


def _one_trace(x: Any, y: Any) -> bool:
    """Whether two tracers can be compared: at the border of a transformation a value gets a new tracer."""
    return getattr(x, "_trace", None) is getattr(y, "_trace", None)
