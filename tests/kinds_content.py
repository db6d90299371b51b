"""What the tests of kinds log: a photograph, a tone, a moving square, a torus, a model trained for a step."""

import numpy as np
import torch
from sklearn.datasets import load_sample_image

RATE = 16_000
FPS = 8.0

photograph: np.ndarray = load_sample_image("china.jpg")
"""The Summer Palace in Beijing: (427, 640, 3), uint8."""


def tone(seconds: float = 0.25, channels: int = 1) -> np.ndarray:
    """A rising fifth on 440 Hz, (C, T), float within -0.8 and 0.8."""
    times = np.arange(round(seconds * RATE)) / RATE
    voices = [
        0.4 * np.sin(2 * np.pi * 440 * times) + 0.4 * np.sin(2 * np.pi * 660 * times + index)
        for index in range(channels)
    ]
    return np.stack(voices)


def moving_square(frames: int = 12, size: int = 48) -> np.ndarray:
    """A bright square that crosses a dark field, (T, C, H, W), uint8."""
    video = np.full((frames, 3, size, size), 16, np.uint8)
    for frame in range(frames):
        left = frame * (size - 16) // (frames - 1)
        video[frame, :, 16:32, left : left + 16] = np.array([240, 160, 32], np.uint8)[:, None, None]
    return video


def torus(points: int = 500) -> np.ndarray:
    """Points on a torus with their colours, (N, 6)."""
    generator = np.random.default_rng(7)
    u, v = generator.uniform(0, 2 * np.pi, (2, points))
    ring = 2 + 0.5 * np.cos(v)
    colours = np.stack([u, v, u + v]) / (4 * np.pi) * 255
    return np.concatenate([[ring * np.cos(u), ring * np.sin(u), 0.5 * np.sin(v)], np.rint(colours)]).T


def trained_model() -> torch.nn.Module:
    """A small network after one step of Adam."""
    torch.manual_seed(3)
    model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    model(torch.randn(16, 4)).square().mean().backward()
    optimizer.step()
    return model
