"""PyTorch's side of `train_step.py --against torch`: steps on request, over its input and output.

Run by an interpreter that has PyTorch and MONAI, and may have nothing of this project. First it
writes a line when it is ready, with the network's trainable parameters; then, for each line with a
number that it reads, it takes so many steps and writes their wall and CPU seconds.
"""

from __future__ import annotations

import json
import sys
import time

import torch
from monai.networks import nets
from torch import nn


class SeedCnn(nn.Module):  # type: ignore[misc]
    """The twin of seed_cnn, which MONAI has not."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for filters, pools in ((64, True), (64, True), (128, False), (256, False)):
            layers += [nn.Conv3d(channels, filters, 3), nn.ReLU()]
            layers += [nn.MaxPool3d(2)] if pools else []
            layers += [nn.BatchNorm3d(filters)]
            channels = filters
        self.map = nn.Sequential(*layers, nn.Dropout(0.333))
        self.head = nn.Sequential(nn.Linear(256, 128), nn.ReLU(), nn.Dropout(0.666))
        self.logit = nn.Linear(128, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(batch, channel, row, column, slice) → logit (batch, 1)."""
        return self.logit(self.head(self.map(x).mean((2, 3, 4))))


def twin(name: str, channels: int) -> nn.Module:
    """MONAI's network of a name of ours, of as many channels, with one logit."""
    if name == "seed_cnn":
        return SeedCnn(channels)
    if name == "se_resnet50":
        return nets.SEResNet50(spatial_dims=3, in_channels=channels, num_classes=1)
    if name == "densenet121":
        return nets.DenseNet121(spatial_dims=3, in_channels=channels, out_channels=1)
    if name.startswith("resnet"):
        return getattr(nets, name)(spatial_dims=3, n_input_channels=channels, num_classes=1)
    return nets.EfficientNetBN(
        name.replace("_", "-"),
        pretrained=False,
        spatial_dims=3,
        in_channels=channels,
        num_classes=1,
    )


def main(name: str, layout: str, threads: int, shape: list[int], batch: int) -> None:
    """Answers until its input ends; `shape` is (row, column, slice, channel)."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    network = twin(name, shape[3]).train()
    volume = torch.randn(batch, shape[3], *shape[:3])
    label = torch.arange(batch).remainder(2).float()[:, None]
    if layout == "channels_last_3d":
        network = network.to(memory_format=torch.channels_last_3d)
        volume = volume.contiguous(memory_format=torch.channels_last_3d)
    optimizer = torch.optim.Adam(network.parameters(), 1e-3, fused=True)
    loss_of = nn.BCEWithLogitsLoss()

    def step() -> float:
        optimizer.zero_grad(set_to_none=True)
        loss = loss_of(network(volume), label)
        loss.backward()
        optimizer.step()
        return float(loss)

    step()
    parameters = sum(one.numel() for one in network.parameters() if one.requires_grad)
    print(json.dumps({"parameters": parameters, "version": torch.__version__}), flush=True)
    for line in sys.stdin:
        wall, cpu = time.perf_counter(), time.process_time()
        for _ in range(int(line)):
            step()
        taken = {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}
        print(json.dumps(taken), flush=True)


if __name__ == "__main__":
    main(**json.loads(sys.argv[1]))
