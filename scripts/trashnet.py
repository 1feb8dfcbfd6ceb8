"""Fine-tunes MobileNetV1-0.25 (ImageNet weights) on TrashNet: our program beside eager PyTorch.

Both start from the same weights and see the same batches in the same order.
    python scripts/trashnet.py --plan sparse:6:6 --epochs 6
"""

import argparse
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as func
from torch import Tensor, nn
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import pockmobile
from pockmobile.session import Session
from scripts.realdata import imagenet_images, load_mobilenet_v1_025, load_trashnet

BATCH = 32


@dataclass(frozen=True)
class Accuracies:
    """Test accuracies, 0 to 1, before and after training, of both sides."""

    before: float
    ours: float
    eager: float


def model_for_trashnet() -> nn.Module:
    """Returns the pretrained model with a fresh head of six classes."""
    torch.manual_seed(0)
    model = load_mobilenet_v1_025()
    model.fc = nn.Linear(model.fc.in_features, 6)
    return model.eval()


def train_both(
    *, plan: str, epochs: int, size: int, lr: float, frozen_weights: str = "fp32"
) -> Accuracies:
    """Trains through the program and in eager PyTorch (momentum 0.9), on the same batches."""
    data = load_trashnet(size)
    images, test = imagenet_images(data.train_images), imagenet_images(data.test_images)
    labels, test_labels = data.train_labels.long(), data.test_labels.long()
    model = model_for_trashnet()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.pte"
        pockmobile.compile(
            model,
            (images[:BATCH],),
            plan=plan,
            optimizer=pockmobile.Momentum(),
            frozen_weights=frozen_weights,
        ).save(path)
        session = Session(path)
        before = session.evaluate(test, test_labels).accuracy
        names = {entry.parameter for entry in session.manifest.parameters}
        optimizer = _eager_optimizer(model, names)
        for epoch in tqdm(range(epochs), disable=None):
            order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(epoch))
            rate = lr * (1 - epoch / epochs)
            for rows in order.split(BATCH):
                session.step(images[rows], labels[rows], lr=rate)
                _eager_step(model, optimizer, images[rows], labels[rows], rate)
        ours = session.evaluate(test, test_labels).accuracy
    return Accuracies(before, ours, _eager_accuracy(model, test, test_labels))


def _eager_optimizer(model: nn.Module, names: set[str]) -> torch.optim.Optimizer:
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in names)
    leaves = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return torch.optim.SGD(leaves, lr=0.1, momentum=0.9)


def _eager_step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    images: Tensor,
    labels: Tensor,
    lr: float,
) -> None:
    optimizer.zero_grad()
    func.cross_entropy(model(images), labels).backward()
    optimizer.param_groups[0]["lr"] = lr
    optimizer.step()


@torch.no_grad()
def _eager_accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    found = torch.cat([model(rows).argmax(-1) for rows in images.split(64)])
    return (found == labels).float().mean().item()


def main() -> None:
    """Trains both sides and prints their accuracies."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--plan", default="sparse:6:6", help="update plan")
    parser.add_argument("--epochs", type=int, default=6, help="times through the images")
    parser.add_argument("--size", type=int, default=128, help="image size in pixels")
    parser.add_argument("--lr", type=float, default=0.001, help="learning rate at the start")
    parser.add_argument(
        "--frozen-weights", default="fp32", help="fp32, int8 or int4 (ours only)"
    )
    arguments = parser.parse_args()
    found = train_both(**vars(arguments))
    print(f"test accuracy before {found.before:.1%}, pockmobile {found.ours:.1%}, ", end="")
    print(f"eager {found.eager:.1%}, for {vars(arguments)}")


if __name__ == "__main__":
    main()
