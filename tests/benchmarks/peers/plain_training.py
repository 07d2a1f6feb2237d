"""One configuration, trained by a plain PyTorch script in a process of its own: what a queue of such scripts is made of.

    python tests/benchmarks/peers/plain_training.py configuration.json output

Networks, losses and optimisers are the package's; all else is what one would write down: images are read and resized into memory, every
batch is augmented and seen by the guide when it is its turn, each epoch ends with one forward pass for each validation image, and the best
weights are saved.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch

from guidino_tune.config import Experiment
from guidino_tune.data.augmentation import make_augmentation
from guidino_tune.data.decoding import read_case
from guidino_tune.data.rules import plain_rules
from guidino_tune.data.sources import find_cases
from guidino_tune.data.splits import make_split
from guidino_tune.framing import place, place_mask
from guidino_tune.losses import SegmentationLoss
from guidino_tune.models import build_model
from guidino_tune.models.precision import use_bf16
from guidino_tune.normalisation import normalise
from guidino_tune.training.optimisers import make_optimizer, set_learning_rates


def main(configuration: Path, output: Path) -> None:
    """Trains and saves."""
    torch.set_num_threads(1)
    experiment = Experiment.from_dict(json.loads(configuration.read_text()))
    training, size = experiment.training, experiment.data.image_size
    cases = find_cases(experiment.data)
    split = make_split(cases, experiment.data)
    rules = plain_rules(experiment.data)

    def read(names: tuple[str, ...]) -> list[tuple[torch.Tensor, torch.Tensor]]:
        found = []
        for case in cases.select(names):
            image, mask = read_case(case, rules)
            found.append((normalise(place(image, size)), torch.from_numpy(place_mask(mask, size))[None].float()))
        return found

    train = read(split.train[: experiment.data.max_train_cases])
    validation = read(split.validation[: experiment.data.max_validation_cases])
    torch.manual_seed(training.seed)
    model = build_model(experiment)
    if training.channels_last:
        model.segmenter.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = make_optimizer(model.named_parameters(), training)
    compute_loss = SegmentationLoss(experiment.loss)
    augment = make_augmentation(experiment.data.augmentation)
    autocast = torch.autocast("cpu", torch.bfloat16, enabled=use_bf16(training.precision, torch.device("cpu")))
    best = -1.0
    for epoch in range(training.epochs):
        set_learning_rates(optimizer, training, epoch)
        model.train()
        for rows in torch.randperm(len(train)).split(training.batch_size):
            chosen = rows.tolist()
            images, masks = augment(torch.stack([train[i][0] for i in chosen]), torch.stack([train[i][1] for i in chosen]), chosen)
            with autocast:
                prediction = model(images)
            loss = compute_loss(prediction.logits, prediction.guide, masks)["total"]
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, training.grad_clip or torch.inf)
            optimizer.step()
        model.eval()
        scores = []
        with torch.no_grad(), autocast:
            for image, mask in validation:
                found = model(image[None]).logits[0][0, 0] > 0
                scores.append(float(2 * (found * mask[0]).sum() / (found.sum() + mask.sum()).clamp(min=1)))
        dice = sum(scores) / len(scores)
        print(f"epoch {epoch + 1}: loss {loss.item():.4f}, Dice {dice:.4f}", flush=True)
        if dice > best:
            best = dice
            torch.save(model.state_dict(), output / "best.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
