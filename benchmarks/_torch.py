"""PyTorch's norms, in both memory layouts."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

from benchmarks._peers import EPSILON, MOMENTUM, Work


def calls(w: Work, dtype: str, channels_last: bool, device: str) -> dict[str, Callable[[], Any]]:
    """The same programs as of the JAX libraries."""
    kind = getattr(torch, dtype)
    channels, rows = w.shape[-1], w.norm in ("layer", "rms") or len(w.shape) == 2

    def draw() -> torch.Tensor:
        t = torch.randn(w.shape, device=device)
        if not rows:
            layout = torch.channels_last if channels_last else torch.contiguous_format
            t = t.permute(0, 3, 1, 2).contiguous(memory_format=layout)
        return t.to(kind)

    x, dy = draw().requires_grad_(), draw()
    # some of torch's norms want parameters of x's type
    own = kind if w.norm in ("layer", "rms") or (w.norm == "group" and device != "cpu") else torch.float32
    scale, bias = (f(channels, dtype=own, device=device) for f in (torch.ones, torch.zeros))
    mean, var = (f(channels, device=device) for f in (torch.zeros, torch.ones))
    trained = [v.requires_grad_() for v in ([scale] if w.norm == "rms" else [scale, bias])]

    def norm(x: torch.Tensor, train: bool) -> torch.Tensor:
        if w.norm == "batch":
            return F.batch_norm(x, mean, var, scale, bias, train, 1 - MOMENTUM, EPSILON)
        if w.norm == "layer":
            return F.layer_norm(x, (channels,), scale, bias, EPSILON)
        if w.norm == "rms":
            return F.rms_norm(x, (channels,), scale, EPSILON)
        if w.norm == "group":
            return F.group_norm(x, w.groups, scale, bias, EPSILON)
        return F.instance_norm(x, None, None, scale, bias, True, 0.1, EPSILON)

    def forward(train: bool) -> torch.Tensor:
        with torch.no_grad():
            return norm(x, train)

    def step() -> Any:
        y = norm(x, True)
        return y, torch.autograd.grad(y, [x, *trained], dy)

    return {"inference": lambda: forward(False), "forward": lambda: forward(True), "step": step}
