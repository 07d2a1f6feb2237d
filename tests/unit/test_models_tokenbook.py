from typing import Any

import numpy as np
import pytest
import torch
from fuzz_helpers import examples
from hypothesis import given
from hypothesis import strategies as st

from guidino_tune.models.tokenbook import TokenBook

AGGREGATIONS = ("weighted", "mean", "softmax")
SIMILARITIES = ("cosine", "dot")


def sigmoid(x: Any) -> Any:
    return 1 / (1 + np.exp(-x))


def by_hand(book: Any, tokens: torch.Tensor, similarity: str, aggregation: str) -> np.ndarray:
    """Equation by equation, in float64, one token at a time."""
    values = {k: v.detach().double().numpy() for k, v in book.named_parameters()}
    x = tokens.double().numpy()
    mask = np.empty((x.shape[0], 1, *x.shape[2:]))
    for b, i, j in np.ndindex(x.shape[0], *x.shape[2:]):
        token = values["project.weight"][:, :, 0, 0] @ x[b, :, i, j] + values["project.bias"]
        prototypes = values["prototypes"]
        if similarity == "cosine":
            token = token / np.linalg.norm(token)
            prototypes = prototypes / np.linalg.norm(prototypes, axis=1, keepdims=True)
        s = prototypes @ token
        if aggregation == "weighted":
            mask[b, 0, i, j] = sigmoid((values["alpha"] * s).sum())
        elif aggregation == "mean":
            mask[b, 0, i, j] = 0.5 * s.mean() + 0.5 if similarity == "cosine" else sigmoid(s.mean())
        else:
            weights = np.exp(s / np.exp(values["log_temperature"]))
            best = (weights * s).sum() / weights.sum()
            mask[b, 0, i, j] = sigmoid(np.exp(values["log_scale"]) * best + values["bias"])
    return mask


def make(aggregation: str = "weighted", similarity: str = "cosine", width: int = 12, num: int = 5, seed: int = 0) -> Any:
    torch.manual_seed(seed)
    return TokenBook(width, num, similarity=similarity, aggregation=aggregation)


@pytest.mark.parametrize("similarity", SIMILARITIES)
@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_formula(aggregation: str, similarity: str) -> None:
    book = make(aggregation, similarity)
    with torch.no_grad():
        for name, parameter in book.named_parameters():
            if name in ("alpha", "bias", "log_scale", "log_temperature"):
                parameter.add_(torch.randn_like(parameter) * 0.3)
    tokens = torch.randn(2, 12, 3, 4)
    mask = book(tokens)
    assert mask.shape == (2, 1, 3, 4)
    np.testing.assert_allclose(mask.detach().numpy(), by_hand(book, tokens, similarity, aggregation), atol=2e-6)


@examples(15)
@given(
    st.sampled_from(AGGREGATIONS), st.sampled_from(SIMILARITIES), st.floats(1e-3, 1e3), st.integers(1, 9), st.integers(0, 99), st.booleans()
)
def test_mask_is_in_the_unit_interval(aggregation: str, similarity: str, scale: float, num: int, seed: int, aligned: bool) -> None:
    book = make(aggregation, similarity, num=num, seed=seed)
    tokens = torch.randn(1, 12, 4, 4) * scale
    if aligned:
        with torch.no_grad():  # the largest cosine there is
            book.prototypes.copy_(book.project(tokens)[0, :, 0, 0].expand(num, -1))
    mask = book(tokens)
    assert torch.isfinite(mask).all()
    assert mask.min() >= 0
    assert mask.max() <= 1


def test_a_cosine_rounded_above_one_stays_a_probability() -> None:
    book = make("mean", width=97, num=3)
    with torch.no_grad():
        book.project.weight.copy_(torch.eye(97)[:, :, None, None])
        book.project.bias.zero_()
        beyond = 0
        for _ in range(50):
            book.prototypes.copy_(torch.randn(97).expand(3, 97))
            for sign in (1, -1):
                tokens = sign * book.prototypes[0].view(1, 97, 1, 1)
                beyond += int(book.similarities(tokens).abs().max() > 1)
                assert 0 <= book(tokens).min() <= book(tokens).max() <= 1
    assert beyond  # rounding did exceed 1 somewhere, so that the clamp was needed


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_float32_under_autocast(aggregation: str) -> None:
    book = make(aggregation, width=64, num=32)
    tokens = torch.randn(1, 64, 4, 4)
    expected = book(tokens)
    with torch.autocast("cpu", torch.bfloat16):
        mask = book(tokens)
    assert mask.dtype == torch.float32
    assert torch.equal(mask, expected)
    assert book(tokens.bfloat16()).dtype == torch.float32


@torch.no_grad()
def _replaced_by_one(book: Any, tokens: torch.Tensor) -> float:
    """Largest change of the mask when all (unit) prototypes are replaced by their mean, similarities of unit tokens."""
    x = torch.nn.functional.normalize(book.project(tokens), dim=1)
    unit = torch.nn.functional.normalize(book.prototypes, dim=1)
    one = torch.einsum("bchw,c->bhw", x, unit.mean(0))[:, None]
    # The smooth maximum of equal values is that value.
    mask = 0.5 + 0.5 * one if book.aggregation == "mean" else torch.sigmoid(book.log_scale.exp() * one + book.bias)
    return float((mask - book(tokens)).abs().max())


def test_mean_collapses_to_one_vector_and_softmax_does_not() -> None:
    tokens = torch.randn(1, 384, 8, 8)
    mean, softmax = make("mean", width=384, num=256), make("softmax", width=384, num=256)
    assert _replaced_by_one(mean, tokens) < 1e-6
    assert _replaced_by_one(softmax, tokens) > 0.1
    assert (mean(tokens) - 0.5).abs().max() < 0.03


@torch.no_grad()
@pytest.mark.parametrize("similarity", SIMILARITIES)
@pytest.mark.parametrize("aggregation", ["weighted", "mean"])
def test_one_vector_says_what_any_number_of_prototypes_says(aggregation: str, similarity: str) -> None:
    """So their number is searched with ``softmax`` only. A mean of unit vectors takes two: any vector of norm below 1 is one of two."""
    many = make(aggregation, similarity, width=24, num=37)
    if aggregation == "weighted":
        many.alpha.add_(torch.randn(37))
    vectors = many.prototypes / many.prototypes.norm(dim=1, keepdim=True) if similarity == "cosine" else many.prototypes
    vector = (many.alpha[:, None] * vectors).sum(0) if aggregation == "weighted" else vectors.mean(0)
    if (aggregation, similarity) == ("mean", "cosine"):
        across = torch.randn(24)
        across -= (across @ vector) / (vector @ vector) * vector
        across *= (1 - vector @ vector).sqrt() / across.norm()
        few = make(aggregation, similarity, width=24, num=2)
        few.prototypes.copy_(torch.stack([vector + across, vector - across]))
    else:
        few = make(aggregation, similarity, width=24, num=1)
        few.prototypes.copy_(vector[None])
        if aggregation == "weighted":
            few.alpha.fill_(vector.norm() if similarity == "cosine" else 1)
    few.project.load_state_dict(many.project.state_dict())
    tokens = torch.randn(2, 24, 5, 5)
    assert many(tokens).std() > 0.01
    torch.testing.assert_close(few(tokens), many(tokens), atol=2e-6, rtol=0)


def test_two_kinds_of_foreground_need_softmax() -> None:
    """Tokens +e and -e are foreground, f is background: no single vector can tell them apart, two prototypes can."""
    e, f = torch.eye(8)[0], torch.eye(8)[1]
    tokens = torch.stack([e, -e, f], dim=1)[None, :, None]
    masks = {}
    for aggregation in ("mean", "softmax"):
        book = make(aggregation, width=8, num=2)
        with torch.no_grad():
            book.project.weight.copy_(torch.eye(8)[:, :, None, None])
            book.project.bias.zero_()
            book.prototypes.copy_(torch.stack([e, -e]))
        masks[aggregation] = book(tokens).flatten()
    assert torch.allclose(masks["mean"], torch.full((3,), 0.5))
    assert masks["softmax"][:2].min() > masks["softmax"][2] + 0.3


@pytest.mark.parametrize("similarity", SIMILARITIES)
@pytest.mark.parametrize("aggregation", ["weighted", "softmax"])
@pytest.mark.parametrize(("width", "num"), [(64, 16), (384, 256), (384, 1024), (1024, 256)])
def test_initial_masks_are_spread_but_not_saturated(similarity: str, aggregation: str, width: int, num: int) -> None:
    masks = torch.stack([make(aggregation, similarity, width, num, seed)(torch.randn(1, width, 8, 8)) for seed in range(4)])
    assert abs(masks.mean() - 0.5) < 0.15
    assert 0.04 < masks.std() < 0.3
    assert ((masks < 0.01) | (masks > 0.99)).float().mean() < 0.02


@pytest.mark.parametrize("similarity", SIMILARITIES)
@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_every_parameter_learns(aggregation: str, similarity: str) -> None:
    book = make(aggregation, similarity)
    (book(torch.randn(1, 12, 4, 4)) - 0.2).square().sum().backward()
    for name, parameter in book.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name


def test_unknown_aggregation() -> None:
    with pytest.raises(ValueError, match="max"):
        TokenBook(8, 2, aggregation="max")
