"""A pretrained net of PyTorch in Flax: the pitch of a voice by FCPE, which has three kinds of norms.

    python examples/from_pytorch.py

The weights are those in the wheel of torchfcpe: a group norm, layer norms and a weight norm among
convolutions. The net is rebuilt in linen with the layers of jaxnorm, its variables come from the checkpoint
by a table with a line a layer, and both nets listen to a tone that glides from 150 to 600 Hz. Needs `pip
install 'jaxnorm[interop]'`.
"""

import importlib.util
import sys
import types
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import Array

from jaxnorm import convert
from jaxnorm import linen as jn

NumPy = np.ndarray[Any, Any]

TOLERANCE = 1e-4
RATE, HOP, WINDOW, MELS = 16000, 160, 1024, 128

TABLE = {
    "input_stack.0": ("Conv_0", "conv"),
    "input_stack.1": ("GroupNorm_0", "group_norm"),
    "input_stack.3": ("Conv_1", "conv"),
    **{
        f"net.encoder_layers.{i}.conformer.net.{theirs}": (f"Conformer_{i}/{ours}", kind)
        for i in range(6)
        for theirs, ours, kind in (
            ("0", "LayerNorm_0", "layer_norm"),
            ("2", "Conv_0", "conv"),
            ("4.conv", "Conv_1", "conv"),
            ("6", "Conv_2", "conv"),
        )
    },
    **{f"net.encoder_layers.{i}.norm": None for i in range(6)},  # of an attention that this net has not
    "norm": ("LayerNorm_0", "layer_norm"),
    "output_proj": ("WeightNorm_0(Dense_0)", "weight_norm"),
    "cent_table": None,
    "gaussian_blurred_cent_mask": None,
}


class Conformer(nn.Module):
    """A block of a conformer without attention: x plus a gated, depthwise convolution over time."""

    @nn.compact
    def __call__(self, x: Array) -> Array:
        features = x.shape[-1]
        y = jn.LayerNorm(epsilon=1e-5)(x)
        y, gate = jnp.split(nn.Conv(4 * features, (1,))(y), 2, axis=-1)
        y = nn.Conv(2 * features, (31,), padding=15, feature_group_count=2 * features)(y * nn.sigmoid(gate))
        return x + nn.Conv(features, (1,))(nn.silu(y))


class FCPE(nn.Module):
    """Of a mel spectrogram [batch, time, 128], how likely each of 360 pitches is: [batch, time, 360]."""

    features: int = 512
    blocks: int = 6
    pitches: int = 360

    @nn.compact
    def __call__(self, mel: Array) -> Array:
        x = nn.Conv(self.features, (3,), padding=1)(mel)
        x = nn.leaky_relu(jn.GroupNorm(num_groups=4, epsilon=1e-5)(x), 0.01)
        x = nn.Conv(self.features, (3,), padding=1)(x)
        for _ in range(self.blocks):
            x = Conformer()(x)
        x = jn.LayerNorm(epsilon=1e-5)(x)
        return nn.sigmoid(jn.WeightNorm(nn.Dense(self.pitches), epsilon=0.0)(x))


def package() -> Path:
    """Where torchfcpe is, which is not imported: it wants torchaudio, and that a torch of its own build."""
    spec = importlib.util.find_spec("torchfcpe")
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit("from_pytorch.py: torchfcpe is not installed: pip install 'jaxnorm[interop]'")
    return Path(spec.submodule_search_locations[0])


def in_pytorch(folder: Path) -> tuple[types.ModuleType, types.ModuleType]:
    """The modules of torchfcpe that hold the net and the mel scale, imported without the rest of it."""
    alone = types.ModuleType("torchfcpe")
    alone.__path__ = [str(folder)]
    sys.modules["torchfcpe"] = alone
    names = ("torchfcpe.models", "torchfcpe.mel_fn_librosa")
    models, scale = (importlib.import_module(name) for name in names)
    return models, scale


def glide(seconds: float) -> NumPy:
    """A tone with overtones, from 150 to 600 Hz."""
    hertz = 150 * 4 ** np.linspace(0, 1, int(seconds * RATE))
    phase = 2 * np.pi * np.cumsum(hertz) / RATE
    overtones = np.arange(1, 6)[:, None]
    return (np.sin(overtones * phase) / overtones).sum(0) / 4


def spectrogram(tone: NumPy, scale: NumPy) -> NumPy:
    """The logarithm of the mel spectrogram, [1, time, mels], as torchfcpe takes it.

    Args:
      tone: [samples].
      scale: [mels, frequencies].
    """
    padded = np.pad(tone, (WINDOW - HOP) // 2, mode="reflect")
    frames = np.lib.stride_tricks.sliding_window_view(padded, WINDOW)[::HOP]
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(WINDOW) / WINDOW)
    power = np.abs(np.fft.rfft(frames * window)) ** 2
    mel = np.sqrt(power + 1e-9) @ scale.T
    return np.log(np.maximum(mel, 1e-5)).astype(np.float32)[None]


def pitch(likely: NumPy, cents: NumPy) -> NumPy:
    """The likeliest pitch in Hz, [time], of likelihoods [1, time, 360]: a mean over nine of `cents`."""
    near = np.clip(likely[0].argmax(-1)[:, None] + np.arange(-4, 5), 0, len(cents) - 1)
    weight = np.take_along_axis(likely[0], near, -1)
    return 10 * 2 ** ((cents[near] * weight).sum(-1) / weight.sum(-1) / 1200)


def main() -> float:
    """Runs both nets, prints what was mapped, and returns the greatest difference of their outputs."""
    folder = package()
    models, scale = in_pytorch(folder)
    torch = importlib.import_module("torch")

    checkpoint = torch.load(folder / "assets" / "fcpe_c_v001.pt", map_location="cpu", weights_only=True)
    state = checkpoint["model"]
    variables = convert.net_from_torch(state, TABLE, report=lambda report: print(f"{report}\n"))
    back = convert.net_to_torch(variables, TABLE, parametrized=False)
    kept = [key for key, value in back.items() if np.array_equal(value, state[key].numpy())]
    print(f"{len(state)} arrays: {len(kept)} come back bitwise, {len(state) - len(back)} are left out")

    theirs = models.CFNaiveMelPE(MELS, 360, use_fa_norm=True, conv_only=True)
    theirs.load_state_dict(state)
    mel = spectrogram(glide(2.0), scale.mel(sr=RATE, n_fft=WINDOW, n_mels=MELS, fmin=0, fmax=RATE / 2))
    with torch.no_grad():
        expected = theirs.eval()(torch.from_numpy(mel)).numpy()
    found = np.asarray(jax.jit(FCPE().apply)(variables, mel))

    cents = state["cent_table"].numpy()
    print("\n second   PyTorch      Flax   the tone")
    for frame in range(25, 200, 25):
        second = frame * HOP / RATE
        row = pitch(expected, cents)[frame], pitch(found, cents)[frame], 150 * 4 ** (second / 2)
        print(f"{second:7.2f}  " + "  ".join(f"{hertz:5.1f} Hz" for hertz in row))
    difference = float(np.abs(found - expected).max())
    print(f"\ngreatest difference of a likelihood: {difference:.1e}")
    if difference > TOLERANCE:
        raise SystemExit(f"from_pytorch.py: the nets differ by more than {TOLERANCE}")
    return difference


if __name__ == "__main__":
    main()
