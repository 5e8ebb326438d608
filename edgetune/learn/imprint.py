"""
Classifier rows from features: a new class answered at once, and the whole head fitted again to a few images of each class.

Shapes: N images, D features that the head reads, C outputs. The head is the output layer of a `Network`: linear, or a 1x1
convolution whose output is averaged over the image. Where a ReLU comes in between, as in torchvision's SqueezeNet, biases are
found as if there were none, and a new class wins less often than it could.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import nn

from edgetune.errors import ModelError
from edgetune.learn.network import Network

REFIT_DECAY = 1e-3
TAKEN_SHARE = 0.005  # of the images that are answered right, at most, for all new classes
_RIGHT_LEAST = 20
_MISSED_SHARE = 0.1  # of the new class's images, where there are none of other classes to weigh them against


def features_of(network: Network, batches: Iterable[torch.Tensor]) -> torch.Tensor:
    """
    What the head reads for each image.

    Args:
        network: put into eval mode.
        batches: images [B, 3, H, W], normalised, on the network's device.

    Returns:
        [N, D] float32 on that device; of a convolutional head the mean over the positions.
    """
    seen: list[torch.Tensor] = []

    def look(_head: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        seen.append(inputs[0].mean(dim=(2, 3)) if inputs[0].ndim == 4 else inputs[0])

    head = _head_of(network)
    hook = head.register_forward_pre_hook(look)
    try:
        with torch.no_grad():
            network.module.eval()
            for images in batches:
                network.module(images)
    finally:
        hook.remove()
    return torch.cat(seen) if seen else torch.empty(0, _matrix(head).shape[1], device=_matrix(head).device)


def imprint(
    network: Network,
    features: Mapping[int, torch.Tensor],
    others: torch.Tensor | None = None,
    right: torch.Tensor | None = None,
    *,
    share: float = TAKEN_SHARE,
) -> None:
    """
    Write the rows of new classes, in place; no other row changes, so no other class's logit does.

    The direction of a row is the mean of the new images' normalised features, less that of `others`; its length is the mean
    length of the rows there were. Its bias is the one that separates best: the new class is to win on its own images and
    to lose on `others`, where both count the same; but all of them may not take more than a share of what the head is right on:
    what the site shows every day is worth more than a class that is learnt properly in the next round. Several classes are
    written one after the other, each against those before it.

    Args:
        network: whose head has the rows already, see `network.widen_head`.
        features: row -> [N, D] of that class, as `features_of` returns them; N at least 1.
        others: [M, D] of the classes that the head knows, as evenly as can be; None: there are none at hand. Then the
            class wins on nine of ten of its own images, and only `right` tells what it would take from the others.
        right: [K, D] of images that no row was trained on and that the head answers right; None, or fewer than
            `_RIGHT_LEAST`: `others` stand for them, which a trained network is surer of than of what it will see.
        share: of `right` that all new classes may take, 0..1.

    Raises:
        ModelError: a class without images, or no row but the new ones.

    Source: Qi et al. 2018, "Low-shot learning with imprinted weights" (arXiv 1712.07136), section 3.2; differs from it
    in: the head stays linear with lengths and biases, so the other rows need no training of another kind; `others`.
    """
    head = _head_of(network)
    matrix = _matrix(head)
    known = [row for row in range(len(matrix)) if row not in features]
    if not known:
        raise ModelError("a head without a trained row has no scale for a new one")
    length = matrix[known].norm(dim=1).mean()
    background = others
    protected = others if right is None or len(right) < _RIGHT_LEAST else right
    for row, mine in features.items():
        if len(mine) == 0:
            raise ModelError(f"output {row} has no image to be imprinted from")
        direction = _mean_direction(mine)
        if background is not None and len(background):
            direction = direction - _mean_direction(background)
        _write(head, row, length * nn.functional.normalize(direction, dim=0))
        _set_bias(head, row, known, mine, background, protected=protected, share=share / len(features))
        known.append(row)
        background = mine if background is None else torch.cat([background, mine])


def hold_back(
    network: Network,
    new: Sequence[int],
    right: tuple[torch.Tensor, torch.Tensor],
    *,
    share: float,
    class_share: float = 1.0,
) -> dict[int, float]:
    """
    Lower the biases of new classes' rows, in place, until they take no more than a share of what is right without them.

    A network that has learnt new classes beside a few old images says them too often: what the old classes lose is mostly
    what the new ones take. First all new rows are lowered together, then each of them for the old class that it takes most of.

    Args:
        network: trained on both; a head without biases stays as it is.
        new: rows of the new classes.
        right: of images of old classes that were not trained on and that the head answers right where the new rows do not
            compete: features [K, D] and labels [K]; with fewer than `_RIGHT_LEAST`, of all or of a class, nothing is known
            of these, and nothing is done for them. Where every row is new there is no old class to protect.
        share: of all these, 0..1.
        class_share: of those of any one old class, 0..1.

    Returns:
        Row -> what was added to its bias: zero, or less.

    Source: the idea of Wu et al. 2019, "Large scale incremental learning" (arXiv 1905.13260), section 3, of correcting the new
    logits on validation images; differs from it in: a number for each new class, chosen by what the old classes may lose.
    """
    head, (features, labels) = _head_of(network), right
    shifts = dict.fromkeys(new, 0.0)
    if head.bias is None or len(features) < _RIGHT_LEAST or len(shifts) == len(head.bias):
        return shifts
    with torch.no_grad():
        logits = nn.functional.linear(features, _matrix(head), head.bias)
        is_new = torch.zeros(logits.shape[1], dtype=torch.bool, device=logits.device)
        is_new[list(new)] = True
        lead = logits[:, ~is_new].amax(dim=1, keepdim=True) - logits[:, list(new)]  # [K, new]
        together = min(0.0, _largest_harmless(lead.amin(dim=1), share))
        of_class = [labels == label for label in set(labels.tolist())]
        for column, row in enumerate(new):
            leads = [lead[mine, column] for mine in of_class if int(mine.sum()) >= _RIGHT_LEAST]
            shifts[row] = min(together, *(_largest_harmless(mine, class_share) for mine in leads), 0.0)
            head.bias[row] += shifts[row]
    return shifts


def answer_readily(network: Network, rows: Sequence[int], features: torch.Tensor, *, share: float) -> float:
    """
    Move the biases of rows of classes that no image shows, in place, until they take a share of images of other classes.

    A student that has such a class from a teacher's word alone answers it too seldom, or too often: what it was asked about
    said as good as never that it is one.

    Args:
        network: trained; a head without biases stays as it is.
        rows: of these classes.
        features: [N, D] of images that show none of them; no label is needed. Fewer than `_RIGHT_LEAST` say nothing.
        share: of them, 0..1.

    Returns:
        What was added to each of these biases.

    Source: Chao et al. 2016, "An empirical study and analysis of generalized zero-shot learning" (arXiv 1605.04253), section 3,
    calibrated stacking; differs from it in: the number is chosen by what the other classes may lose.
    """
    head = _head_of(network)
    if head.bias is None or len(features) < _RIGHT_LEAST or not 0 < len(rows) < len(head.bias):
        return 0.0
    with torch.no_grad():
        logits = nn.functional.linear(features, _matrix(head), head.bias)
        is_row = torch.zeros(logits.shape[1], dtype=torch.bool, device=logits.device)
        is_row[list(rows)] = True
        shift = _largest_harmless(logits[:, ~is_row].amax(dim=1) - logits[:, is_row].amax(dim=1), share)
        head.bias[is_row] += shift
    return shift


def right_without(
    network: Network, new: Sequence[int], features: torch.Tensor, labels: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    The images that the head answers right where some rows do not compete.

    Args:
        network: whose head is asked.
        new: those rows.
        features: [N, D] as `features_of` returns them.
        labels: [N] int64, on any device.

    Returns:
        Their features [K, D] and labels [K], on the features' device.
    """
    head = _head_of(network)
    with torch.no_grad():
        logits = nn.functional.linear(features, _matrix(head), head.bias)
        logits[:, list(new)] = -math.inf
        labels = labels.to(features.device)
        is_right = logits.argmax(dim=1) == labels
        return features[is_right], labels[is_right]


def refit_head(
    network: Network, features: torch.Tensor, labels: torch.Tensor, *, decay: float = REFIT_DECAY, steps: int = 100
) -> None:
    """
    Fit the rows of the classes at hand to features, in place: what a stream did to the head's balance is undone.

    Logistic regression from the rows that there are: every class counts the same however many images it has, and only
    these classes compete. Rows of other classes stay.

    Args:
        network: whose head is fitted.
        features: [N, D] as `features_of` returns them, best of several changed copies of each image.
        labels: [N] int64, on the same device.
        decay: weight of the rows' squared length in the loss.
        steps: of L-BFGS, at most.
    """
    head = _head_of(network)
    rows, targets = torch.unique(labels, return_inverse=True)
    counts = torch.bincount(targets)
    weights = (len(labels) / (len(rows) * counts.to(features.dtype)))[targets]
    matrix = _matrix(head)[rows].clone().requires_grad_()
    bias = (head.bias.detach()[rows] if head.bias is not None else features.new_zeros(len(rows))).clone()
    fitted = [matrix, bias.requires_grad_()] if head.bias is not None else [matrix]
    optimiser = torch.optim.LBFGS(fitted, max_iter=steps, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        optimiser.zero_grad()
        each = nn.functional.cross_entropy(nn.functional.linear(features, matrix, bias), targets, reduction="none")
        value = (weights * each).mean() + decay * matrix.square().sum()
        value.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        return value

    optimiser.step(loss)  # type: ignore[no-untyped-call]  # as above
    with torch.no_grad():
        for place, row in enumerate(rows.tolist()):
            _write(head, row, matrix[place])
        if head.bias is not None:
            head.bias[rows] = bias


def _set_bias(
    head: nn.Linear | nn.Conv2d,
    row: int,
    known: list[int],
    mine: torch.Tensor,
    others: torch.Tensor | None,
    *,
    protected: torch.Tensor | None,
    share: float,
) -> None:
    if head.bias is None:
        return
    with torch.no_grad():
        head.bias[row] = 0.0
        lacking, at_most, kept = (_lacking(head, row, known, features) for features in (mine, others, protected))
        assert lacking is not None
        most = math.inf if kept is None else _largest_harmless(kept, share)
        if at_most is None:
            wanted = float(torch.quantile(lacking, 1 - _MISSED_SHARE)) + 1e-4
        else:
            wanted = best_threshold(at_most, lacking)
        head.bias[row] = min(wanted, most)


def _largest_harmless(lacking: torch.Tensor, share: float) -> float:
    """
    The largest bias that takes no more than this share of images like those whose row lacks so much, [K].

    Where that is less than one of them, the tail below the smallest is taken to fall off exponentially, as fast as the lowest
    tenth does; less than a hundredth of one counts as that.
    """
    values = lacking.double().sort().values
    count = share * len(values)
    if count >= 1:
        return float(values[min(int(count), len(values) - 1)]) - 1e-4
    lowest = values[: max(3, len(values) // 10)]
    return float(values[0] + (lowest.mean() - values[0]) * math.log(max(count, 0.01))) - 1e-4


def _lacking(
    head: nn.Linear | nn.Conv2d, row: int, known: list[int], features: torch.Tensor | None
) -> torch.Tensor | None:
    """By how much the row's logit is below the largest of the known ones, [N]."""
    if features is None or len(features) == 0:
        return None
    logits = nn.functional.linear(features, _matrix(head), head.bias)
    return logits[:, known].amax(dim=1) - logits[:, row]


def best_threshold(above: torch.Tensor, below: torch.Tensor) -> float:
    """
    The number t for which mean(above > t) + mean(below < t) is largest; the middle of the gap it lies in.

    Args:
        above: [M] values that should be larger.
        below: [N] values that should be smaller.
    """
    above, below = above.sort().values, below.sort().values
    values = torch.cat([above, below]).sort().values
    ends = torch.cat([values[:1] - 2.0, values, values[-1:] + 2.0])  # so that both outermost gaps have a middle
    middles = (ends[1:] + ends[:-1]) / 2
    larger = len(above) - torch.searchsorted(above, middles, right=True)
    smaller = torch.searchsorted(below, middles)
    score = larger.double() / len(above) + smaller.double() / len(below)
    gaps = torch.cat([values.new_ones(1), values[1:] - values[:-1], values.new_ones(1)])
    return float(middles[int(gaps.masked_fill(score < score.max() - 1e-9, -1.0).argmax())])


def _mean_direction(features: torch.Tensor) -> torch.Tensor:
    return nn.functional.normalize(features, dim=1).mean(dim=0)


def _head_of(network: Network) -> nn.Linear | nn.Conv2d:
    head = network.module.get_submodule(network.head)
    if not isinstance(head, (nn.Linear, nn.Conv2d)):
        raise ModelError(f"the output layer {network.head} is neither linear nor a convolution")
    return head


def _matrix(head: nn.Linear | nn.Conv2d) -> torch.Tensor:
    """[C, D] of a linear layer or of a 1x1 convolution, sharing its memory."""
    return head.weight.detach().flatten(1)


def _write(head: nn.Linear | nn.Conv2d, row: int, weights: torch.Tensor) -> None:
    with torch.no_grad():
        head.weight[row] = weights.reshape(head.weight[row].shape)
