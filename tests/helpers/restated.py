"""Networks restated in NumPy from their weights, sample by sample and without padding."""

from __future__ import annotations

import numpy as np
import torch

Array = np.ndarray


class Restated:
    """Layers of a module by their names, float64."""

    def __init__(self, module: torch.nn.Module):
        self.weights = {name: value.double().numpy() for name, value in module.state_dict().items()}

    def linear(self, name: str, x: Array) -> Array:
        return x @ self.weights[f"{name}.weight"].T + self.weights[f"{name}.bias"]

    def norm(self, name: str, x: Array) -> Array:
        scaled = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
        return scaled * self.weights[f"{name}.weight"] + self.weights[f"{name}.bias"]

    def attention(self, name: str, x: Array, source: Array, heads: int, allowed: Array) -> Array:
        query, key, value = (
            self.linear(f"{name}.{part}", y).reshape(len(y), heads, -1).swapaxes(0, 1)
            for part, y in (("query", x), ("key", source), ("value", source))
        )
        score = np.where(allowed, query @ key.swapaxes(1, 2) / np.sqrt(query.shape[-1]), -np.inf)
        share = np.exp(score - score.max(-1, keepdims=True))
        mixed = share / share.sum(-1, keepdims=True) @ value
        return self.linear(f"{name}.out", mixed.swapaxes(0, 1).reshape(len(x), -1))

    def encode(
        self,
        at: str,
        x: Array,
        source: Array | None,
        heads: int,
        layers: int,
        ordered: bool,
        offset: int,
        placed: bool = True,
    ) -> Array:
        def embed(y: Array) -> Array:
            y = np.sqrt(y.shape[1]) * y
            if not ordered or not placed:
                return y
            half = y.shape[1] // 2
            rate = 10000.0 ** (-np.arange(half) / (half - 1))
            angle = np.arange(1, len(y) + 1)[:, None] * rate
            return y + np.concatenate([np.sin(angle), np.cos(angle)], 1)

        key = None if source is None else embed(source)
        x = embed(x)
        length = len(x if key is None else key)
        allowed = np.ones((len(x), length), bool)
        if ordered:
            allowed = np.arange(length)[None] <= np.arange(len(x))[:, None] + offset
        for layer in range(layers):
            asked = self.norm(f"{at}before.{layer}", x)
            given = asked if key is None else self.norm(f"{at}before.{layer}", key)
            x = x + self.attention(f"{at}attention.{layer}", asked, given, heads, allowed)
            fed = self.norm(f"{at}between.{layer}", x)
            x = x + self.linear(
                f"{at}feed.{layer}.3", np.maximum(self.linear(f"{at}feed.{layer}.0", fed), 0)
            )
        return self.norm(f"{at}last", x)

    def convolve(self, name: str, x: Array) -> Array:
        """(T, width) of (T, D): a convolution that keeps the length."""
        kernel = self.weights[f"{name}.weight"]  # (width, D, k)
        half = kernel.shape[2] // 2
        wide = np.pad(x, ((half, half), (0, 0)))
        windows = [wide[k : k + len(x)] for k in range(kernel.shape[2])]
        return np.einsum("ktc,dck->td", np.stack(windows), kernel)

    def lstm(self, at: str, frames: Array) -> Array:
        """(T, hidden) states of a one-directional LSTM over (T, D)."""
        state = cell = np.zeros(self.weights[f"{at}.weight_hh_l0"].shape[1])
        states = []
        for frame in frames:
            gates = self.weights[f"{at}.weight_ih_l0"] @ frame + self.weights[f"{at}.bias_ih_l0"]
            gates = gates + self.weights[f"{at}.weight_hh_l0"] @ state
            gates = gates + self.weights[f"{at}.bias_hh_l0"]
            let_in, kept, new, out = np.split(gates, 4)
            cell = cell / (1 + np.exp(-kept)) + np.tanh(new) / (1 + np.exp(-let_in))
            state = np.tanh(cell) / (1 + np.exp(-out))
            states.append(state)
        return np.stack(states)
