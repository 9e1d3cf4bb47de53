"""What every method chooses, in float64 and plain loops, written from the specification alone.

Nothing here imports the package. A `View` is all that a method may look at; `decide` gives what stays of it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Protocol

import numpy as np


class Clip(Protocol):
    """The prompt's question and the tower's features in CLIP's own space."""

    def texts(self, *, without: Sequence[str] = (), segments: bool = False) -> list[np.ndarray]: ...

    def patch(self, vector: np.ndarray) -> np.ndarray: ...


@dataclass
class TowerView:
    """The vision tower over a prompt's P pictures, layer by layer: attention [P, H, S, S], keys and queries
    [P, H, S, D], outputs [P, S, W]. The class token, where there is one, is the first of the S. feature: the layer
    whose output the projector is given. project: [W] -> [E]. clip: what compares patches with the question."""

    attention: list[np.ndarray]
    queries: list[np.ndarray]
    keys: list[np.ndarray]
    outputs: list[np.ndarray]
    feature: int
    project: Callable[[np.ndarray], np.ndarray]
    clip: Callable[[], Clip] | None = None

    def at_depth(self, number: int, of: int) -> int:
        """The layer at the relative depth of layer `number` of `of`."""
        return max(0, math.floor((number + 1) * len(self.keys) / of + 0.5) - 1)

    def class_scores(self, picture: int, layer: int | None = None) -> list[float]:
        attention = self.attention[self.feature if layer is None else layer][picture]
        return [sum(head[0][1 + k] for head in attention) / len(attention) for k in range(attention.shape[-1] - 1)]

    def wide_scores(self, picture: int, layer: int) -> list[float]:
        """The class token's row of one attention over the whole width."""
        query, key = np.concatenate(self.queries[layer][picture], -1), np.concatenate(self.keys[layer][picture], -1)
        logits = [float(np.dot(query[0], row)) / math.sqrt(len(row)) for row in key]
        terms = [math.exp(value - max(logits)) for value in logits]
        return [term / sum(terms) for term in terms[1:]]

    def features(self, picture: int) -> np.ndarray:
        return self.outputs[self.feature][picture][1:]


@dataclass
class View:
    """One prompt where tokens are scored and leave. Indices are places in the sequence as it is there.

    attention: [H, S, S]. images: the places of each image's tokens. text: those of the voting text. positions: [S]
    rotary positions. keys: [S, G D]. hidden: [S, W], what leaves the layer, and normed: the same after the decoder's
    final norm. first_image, first_text: [.., W], the embeddings before layer 0 of all of the prompt's image tokens and
    of its text. tower: of the whole pictures.
    """

    attention: np.ndarray
    images: list[list[int]]
    text: list[int]
    positions: list[int]
    keys: np.ndarray
    hidden: np.ndarray
    normed: np.ndarray
    first_image: np.ndarray
    first_text: np.ndarray
    tower: TowerView | None = None

    @property
    def image(self) -> list[int]:
        return [k for image in self.images for k in image]

    @property
    def mean(self) -> np.ndarray:
        total = np.zeros_like(self.attention[0])
        for head in self.attention:
            total += head
        return total / len(self.attention)


@dataclass
class Decision:
    """What stays of each image, in its new order; merged: place -> the places that went in, its own first. vectors:
    place -> what stands there, where it is not the mean of these."""

    kept: list[list[int]]
    merged: dict[int, list[int]] = field(default_factory=dict)
    scores: dict[int, float] = field(default_factory=dict)
    vectors: dict[int, np.ndarray] = field(default_factory=dict)


def highest(scores: Sequence[float], count: int) -> list[int]:
    """Indices of the highest, in falling order; the earlier of equal ones first."""
    return sorted(range(len(scores)), key=lambda n: (-scores[n], n))[:count]


# Scores.


def weights_of(importance: str, block: list[list[float]]) -> list[float]:
    """block: [T, T] attention among text tokens, queries are rows."""
    count = len(block)
    if importance in ("uniform", "last"):
        return [1 / count] * count
    values = []
    for t in range(count):
        received = sum(block[i][t] for i in range(count))
        if importance == "received":
            values.append(received)
        elif importance == "causal_mean":
            values.append(received / sum(1 for i in range(count) if i >= t))
        else:
            assert importance == "given_received"
            values.append(received + sum(block[t][j] for j in range(count) if j != t))
    return [value / sum(values) for value in values]


def weighted_rows(
    attention: np.ndarray, rows: Sequence[int], weights: Sequence[float], image: Sequence[int]
) -> dict[int, float]:
    return {k: math.fsum(w * attention[i, k] for i, w in zip(rows, weights, strict=True)) for k in image}


def text_weighting(view: View, importance: str, heads: str) -> dict[int, float]:
    rows = [len(view.positions) - 1] if importance == "last" else view.text
    if heads == "mean":
        mats = [view.mean]
    elif heads == "max":
        mats = [np.max(view.attention, axis=0)]
    else:
        mats = list(view.attention)
    total = dict.fromkeys(view.image, 0.0)
    for attention in mats:
        weights = weights_of(importance, [[attention[i, j] for j in rows] for i in rows])
        for k, value in weighted_rows(attention, rows, weights, view.image).items():
            total[k] += value
    return total


def sum_over_rows(view: View, rows: Sequence[int], share: float = 1.0) -> dict[int, float]:
    return weighted_rows(view.mean, rows, [share] * len(rows), view.image)


def mean_over_rows(view: View, rows: Sequence[int]) -> dict[int, float]:
    return sum_over_rows(view, rows, 1 / len(rows))


def rater_places(view: View) -> list[int]:
    """The text tokens that vote in SparseVLM: those that the picture's embeddings choose more than the mean."""
    share = [0.0] * len(view.first_text)
    for x in view.first_image:
        logits = [float(np.dot(x, y)) for y in view.first_text]
        top = max(logits)
        terms = [math.exp(value - top) for value in logits]
        for t, term in enumerate(terms):
            share[t] += term / sum(terms) / len(view.first_image)
    mean = sum(share) / len(share)
    chosen = [t for t, value in enumerate(share) if value > mean]
    return [view.text[t] for t in chosen or range(len(share))]


def sparsevlm_scores(view: View) -> dict[int, float]:
    rows = rater_places(view)
    return weighted_rows(view.mean, rows, [1 / len(rows)] * len(rows), view.image)


def rope_bias(distance: int, width: int) -> float:
    return 2 / math.sqrt(width) * math.fsum(math.cos(distance / 10000 ** (2 * m / width)) for m in range(width // 2))


def sparsevlm_plus_scores(view: View, heads: int, width: int) -> dict[int, float]:
    rows = rater_places(view)
    corrected = [
        {(i, k): head[i, k] / rope_bias(view.positions[i] - view.positions[k], width) for i in rows for k in view.image}
        for head in view.attention
    ]
    best = highest([math.fsum(head.values()) for head in corrected], heads)
    return {k: math.fsum(corrected[h][i, k] for h in best for i in rows) / len(best) / len(rows) for k in view.image}


def adaptinfer_scores(view: View) -> dict[int, float]:
    total = dict.fromkeys(view.image, 0.0)
    for head in view.attention:
        for t in view.text:
            importance = 0.0
            for i in view.text:
                importance += head[i, t] + head[t, i] - (head[t, t] if i == t else 0.0)
            for k in view.image:
                total[k] += importance * head[t, k]
    return total


# Sets.


def keep_highest(view: View, scores: dict[int, float], keep: Sequence[int]) -> Decision:
    kept = [
        sorted(image[n] for n in highest([scores[k] for k in image], count))
        for image, count in zip(view.images, keep, strict=True)
    ]
    return Decision(kept, scores=scores)


def clusters_of(vectors: np.ndarray, count: int, by_cosine: bool = False) -> list[list[int]]:
    """Density peaks: each cluster's centre first, clusters in the order of the centres."""
    size, width = vectors.shape
    distance = [
        [math.sqrt(math.fsum((a - b) ** 2 for a, b in zip(x, y, strict=True)) / width) for y in vectors]
        for x in vectors
    ]
    density = [math.exp(-sum(sorted(d * d for d in row)[:count]) / count) for row in distance]
    furthest = max(max(row) for row in distance)
    apart = []
    for i in range(size):
        denser = [distance[i][j] for j in range(size) if (density[j], -j) > (density[i], -i)]
        apart.append(min(denser) if denser else furthest)
    centres = highest([r * d for r, d in zip(density, apart, strict=True)], count)
    clusters = [[centre] for centre in centres]
    for i in range(size):
        if i not in centres:
            far = [-cosine(vectors[i], vectors[c]) if by_cosine else distance[i][c] for c in centres]
            nearest = min(range(count), key=lambda c, far=far: (far[c], c))
            clusters[nearest].append(i)
    return clusters


def recycled(dropped: int) -> tuple[int, int]:
    """Of so many dropped tokens, how many are recycled and into how many clusters."""
    taken = math.floor(0.3 * dropped) + 1
    return taken, taken // 10 + 1


def sparsevlm_set(view: View, keep: Sequence[int], extra: bool, paper: bool = False) -> Decision:
    scores = sparsevlm_scores(view)
    decision = Decision([], scores=scores)
    for image, budget in zip(view.images, keep, strict=True):
        if budget >= len(image) or budget == 0:
            decision.kept.append(list(image) if budget else [])
            continue
        count = budget
        while not extra and count and count + recycled(len(image) - count)[1] > budget:
            count -= 1
        kept = sorted(image[n] for n in highest([scores[k] for k in image], count))
        dropped = [k for k in image if k not in kept]
        taken, number = recycled(len(dropped))
        pool = [dropped[n] for n in highest([scores[k] for k in dropped], taken)]
        number = number if extra else min(number, budget)
        for members in clusters_of(view.hidden[pool], number, by_cosine=paper):
            places = [pool[n] for n in members]
            kept.append(places[0])
            if len(places) > 1:
                decision.merged[places[0]] = places
                if paper:
                    decision.vectors[places[0]] = view.hidden[places].sum(axis=0)
        decision.kept.append(kept)
    return decision


def order_in_a_set(values: Sequence[int]) -> list[int]:
    """CPython's hash table, for a few whole numbers from 0 on that are put in one by one (Objects/setobject.c).

    A number stands at its remainder to the table's size, or at the first free place of the next nine, if there are
    nine, and else of other series. Of the size 8 from the start, a table that is three fifths full becomes the next
    power of two above four times what is in it.
    """

    def put(table: list[int | None], value: int) -> None:
        mask, place, rest = len(table) - 1, value % len(table), value
        while True:
            near = range(place, place + (9 if place + 9 <= mask else 0) + 1)
            free = [n for n in near if table[n] is None]
            if free:
                table[free[0]] = value
                return
            rest >>= 5
            place = (5 * place + 1 + rest) & mask

    table: list[int | None] = [None] * 8
    for count, value in enumerate(values, start=1):
        put(table, value)
        if 5 * count >= 3 * (len(table) - 1):
            old, size = table, 8
            while size <= 4 * count:
                size *= 2
            table = [None] * size
            for known in old:
                if known is not None:
                    put(table, known)
    return [value for value in table if value is not None]


def dart_set(view: View, keep: Sequence[int], by_norm: bool = False, pivots: int = 4) -> Decision:
    norm = {n: math.fsum(abs(value) for value in view.keys[n]) for n in range(len(view.keys))}

    def cosine(a: int, b: int) -> float:
        x, y = view.normed[a], view.normed[b]
        return float(np.dot(x, y) / math.sqrt(np.dot(x, x)) / math.sqrt(np.dot(y, y)))

    text_pivots = sorted(view.text, key=lambda n: (-norm[n], n))[:pivots]
    kept = []
    for image, budget in zip(view.images, keep, strict=True):
        chosen = sorted(image, key=lambda n: (-norm[n], n))[: min(pivots, budget)]
        order = [*chosen, *text_pivots] if by_norm else order_in_a_set([*chosen, *text_pivots])
        each, more = divmod(budget - len(chosen), len(order)) if order else (0, 0)
        for place, pivot in enumerate(order):
            free = [k for k in image if k not in chosen]
            free.sort(key=lambda k, p=pivot: (cosine(p, k), k))
            chosen = chosen + free[: each + (1 if place < more else 0)]
        kept.append(sorted(chosen))
    return Decision(kept)


def grid_shape(tokens: int, keep: int) -> tuple[int, int] | None:
    """Rows and columns of the grid of `keep` in a square map, None where there is none."""
    side = round(math.sqrt(tokens))
    if side * side != tokens:
        return None
    fits = [(a, b) for a in range(1, side + 1) for b in range(a, side + 1) if a * b == keep and b <= 2 * a]
    return max(fits) if fits else None


def grid_middles(tokens: int, keep: int) -> list[int]:
    shape = grid_shape(tokens, keep)
    if shape is None:
        return [math.floor((i + 0.5) * tokens / keep + 1e-9) for i in range(keep)]
    side = round(math.sqrt(tokens))
    return [
        math.floor((i + 0.5) * side / shape[0] + 1e-9) * side + math.floor((j + 0.5) * side / shape[1] + 1e-9)
        for i in range(shape[0])
        for j in range(shape[1])
    ]


def uniform_grid_set(view: View, keep: Sequence[int]) -> Decision:
    return Decision(
        [[image[n] for n in grid_middles(len(image), count)] for image, count in zip(view.images, keep, strict=True)]
    )


def pool_set(view: View, keep: Sequence[int]) -> Decision:
    decision = Decision([])
    for image, count in zip(view.images, keep, strict=True):
        tokens, shape = len(image), grid_shape(len(image), count)
        side = round(math.sqrt(tokens))
        chosen = []
        for cell, middle in enumerate(grid_middles(tokens, count)):
            members = []
            for n in range(tokens):
                if shape is None:
                    inside = _touches(n, cell, tokens, count)
                else:
                    row, column = divmod(cell, shape[1])
                    inside = _touches(n // side, row, side, shape[0]) and _touches(n % side, column, side, shape[1])
                if inside:
                    members.append(image[n])
            chosen.append(image[middle])
            if len(members) > 1:
                decision.merged[image[middle]] = [image[middle], *(n for n in members if n != image[middle])]
        decision.kept.append(chosen)
    return decision


def _touches(place: int, cell: int, places: int, cells: int) -> bool:
    """Whether place n, which spans [n, n + 1), and cell i, which spans [i p / c, (i + 1) p / c), overlap."""
    return place * cells < (cell + 1) * places and (place + 1) * cells > cell * places


# Before the model.


def cosine(x: np.ndarray, y: np.ndarray) -> float:
    return float(np.dot(x, y) / math.sqrt(np.dot(x, x)) / math.sqrt(np.dot(y, y)))


def cosines(vectors: np.ndarray) -> list[list[float]]:
    units = vectors / np.sqrt(np.sum(vectors**2, axis=1, keepdims=True))
    return (units @ units.T).tolist()


def class_attention(view: View) -> dict[int, float]:
    assert view.tower is not None
    return {
        k: score
        for picture, image in enumerate(view.images)
        if image
        for k, score in zip(image, view.tower.class_scores(picture), strict=True)
    }


def divprune_set(view: View, keep: Sequence[int]) -> Decision:
    kept = []
    for image, count in zip(view.images, keep, strict=True):
        distance = [[1 - alike for alike in row] for row in cosines(view.hidden[image])]
        chosen: list[int] = []
        nearest = [min((row[j] for j in range(len(row)) if j != k), default=0.0) for k, row in enumerate(distance)]
        while len(chosen) < count:
            free = [k for k in range(len(image)) if k not in chosen]
            chosen.append(max(free, key=lambda k, nearest=nearest: (nearest[k], -k)))
            nearest = [min(distance[s][k] for s in chosen) for k in range(len(image))]
        kept.append([image[k] for k in sorted(chosen)])
    return Decision(kept)


def visionzip_set(view: View, keep: Sequence[int], paper: bool = False) -> Decision:
    tower, scores = view.tower, class_attention(view)
    assert tower is not None
    decision = Decision([], scores=scores)
    for picture, (image, budget) in enumerate(zip(view.images, keep, strict=True)):
        if budget in (0, len(image)):
            decision.kept.append(image[:budget])
            continue
        contextual = math.floor(budget * 10 / 64 + 0.5)
        dominant = sorted(highest([scores[k] for k in image], budget - contextual - (0 if paper else 1)))
        rest = [k for k in range(len(image)) if k not in dominant]
        targets = []
        for number in range(contextual):
            targets.append(rest[number * max(1, len(rest) // contextual)])
        others = [k for k in rest if k not in targets]
        features = tower.features(picture)
        keys = np.mean(tower.keys[tower.feature][picture], axis=0)[1:]
        went: dict[int, list[int]] = {target: [] for target in targets}
        for k in others if targets else []:
            went[max(targets, key=lambda t, k=k: (cosine(keys[k], keys[t]), -t))].append(k)
        first = []
        if not paper:
            first = [image[others[0]]]
            decision.merged[first[0]] = []
            decision.vectors[first[0]] = tower.project(tower.outputs[tower.feature][picture][0])
        for target, members in went.items():
            if members:
                place = image[target]
                decision.merged[place] = [place, *(image[k] for k in members)]
                new = features[target] + np.mean(features[members], axis=0)
                decision.vectors[place] = tower.project(np.mean(features[[target, *members]], axis=0) if paper else new)
        decision.kept.append([*first, *(image[k] for k in dominant), *(image[t] for t in targets)])
    return decision


def vispruner_set(view: View, keep: Sequence[int], important: float = 0.5) -> Decision:
    tower, scores = view.tower, class_attention(view)
    assert tower is not None
    kept = []
    for picture, (image, budget) in enumerate(zip(view.images, keep, strict=True)):
        alike = cosines(tower.features(picture)) if image else []
        order = highest([scores[k] for k in image], len(image))
        first = order[: math.floor(budget * important)]
        rest = order[len(first) :]
        while len(rest) > budget - len(first):
            even, odd = rest[::2], rest[1::2]
            double = [max(alike[i][o] for o in odd) for i in even] if odd else [0.0]
            gone = min(8, len(rest) - (budget - len(first)), len(even))
            rest = [even[n] for n in highest(double, len(even))][gone:] + odd
        kept.append(sorted(image[k] for k in first + rest))
    return Decision(kept, scores=scores)


def column_means(view: View, layer: int) -> list[dict[int, float]]:
    """Of each image: place -> the attention that its patch gets from all tokens, mean over heads and rows."""
    assert view.tower is not None
    found = []
    for picture, image in enumerate(view.images):
        attention = view.tower.attention[layer][picture]
        front = attention.shape[-1] - len(image)
        total = attention.sum(axis=(0, 1)) / (attention.shape[0] * attention.shape[1])
        found.append({k: float(total[front + n]) for n, k in enumerate(image)})
    return found


def hiprune_set(view: View, keep: Sequence[int], alpha: float = 0.1, wrap: bool = True) -> Decision:
    assert view.tower is not None
    middle, deep = column_means(view, view.tower.at_depth(8, 24)), column_means(view, view.tower.feature)
    kept = []
    for image, budget, objects, details in zip(view.images, keep, middle, deep, strict=True):
        side = math.isqrt(len(image))
        anchors = highest([objects[k] for k in image], round(budget * alpha / 5))
        chosen: list[int] = []
        for step in (0, -1, 1, -side, side):
            for anchor in anchors:
                place = min(max(anchor + step, 0), len(image) - 1)
                (row, column), (to_row, to_column) = divmod(anchor, side), divmod(place, side)
                if not wrap and abs(row - to_row) + abs(column - to_column) != abs(step) // min(
                    max(abs(step), 1), side
                ):
                    continue
                if place not in chosen:
                    chosen.append(place)
        chosen = sorted(chosen)[:budget]
        rest = [n for n in range(len(image)) if n not in chosen]
        chosen += [rest[n] for n in highest([details[image[n]] for n in rest], budget - len(chosen))]
        kept.append([image[n] for n in sorted(chosen)])
    return Decision(kept, scores={k: score for part in deep for k, score in part.items()})


def scope_set(view: View, keep: Sequence[int], alpha: float = 1.0) -> Decision:
    assert view.tower is not None
    scores = {k: score**alpha for k, score in class_attention(view).items()}
    kept = []
    for picture, (image, budget) in enumerate(zip(view.images, keep, strict=True)):
        alike = np.array(cosines(view.tower.features(picture))) if image else np.zeros((0, 0))
        covered, chosen = np.zeros(len(image)), []
        while len(chosen) < budget:
            free = [n for n in range(len(image)) if n not in chosen]
            gain = {n: scores[image[n]] * float(np.maximum(0, alike[:, n] - covered).sum()) for n in free}
            best = max(free, key=lambda n, gain=gain: (gain[n], -n))
            chosen.append(best)
            covered = np.maximum(covered, alike[:, best])
        kept.append([image[n] for n in sorted(chosen)])
    return Decision(kept, scores=scores)


def holov_set(view: View, keep: Sequence[int], spread: bool, crops: bool = False) -> Decision:
    scores = class_attention(view)
    decision = Decision([], scores=scores)
    for image, budget in zip(view.images, keep, strict=True):
        if budget in (0, len(image)):
            decision.kept.append(image[:budget])
            continue
        each, more = divmod(len(image), 16)
        runs, start = [], 0
        for number in range(16):
            size = each + 1 if number < more else each
            if size:
                runs.append(image[start : start + size])
            start += size
        if crops:
            side = math.isqrt(max(map(len, view.images)))
            of_axis = [max(cell for cell in range(4) if math.floor(cell * side / 4) <= n) for n in range(len(image))]
            places: dict[tuple[int, int], list[int]] = {}
            for n, k in enumerate(image):
                places.setdefault((of_axis[n // side], of_axis[n % side]), []).append(k)
            runs = [places[crop] for crop in sorted(places)]
        values = []
        for run in runs:
            if len(run) == 1:
                values.append(scores[run[0]])
                continue
            alike = cosines(view.hidden[run])
            varied = []
            for n in range(len(run)):
                row = [0.0 if m == n else alike[n][m] for m in range(len(run))]
                mean = sum(row) / (len(run) - 1)
                varied.append(sum((value - mean) ** 2 for value in row) / (len(run) - 1))
            looked = [1000 * scores[k] for k in run]
            scale = sum(looked) / len(run) / (sum(varied) / len(run) + 1e-6)
            values.append(sum(a + 0.09 * v * scale for a, v in zip(looked, varied, strict=True)) / len(run))
        weights = [value / (sum(values) + 1e-6) for value in values]
        quota = [math.floor(weight * budget) for weight in weights]
        for number in highest(weights, budget - sum(quota)):
            quota[number] += 1
        if spread:
            lost = sum(max(0, n - len(run)) for n, run in zip(quota, runs, strict=True))
            quota = [min(n, len(run)) for n, run in zip(quota, runs, strict=True)]
            while lost:
                for number in highest(weights, len(weights)):
                    if lost and quota[number] < len(runs[number]):
                        quota[number] += 1
                        lost -= 1
        kept: list[int] = []
        for run, count in zip(runs, quota, strict=True):
            kept += run if count >= len(run) else [run[n] for n in highest([scores[k] for k in run], count)]
        kept = sorted(kept) if crops else kept
        for k in image:
            if len(kept) < budget and k not in kept:
                kept.append(k)
                decision.merged[k], decision.vectors[k] = [], np.zeros(view.hidden.shape[1])
        decision.kept.append(kept)
    return decision


def wide_attention(view: View) -> dict[int, float]:
    """The class token's row in the layer behind the features', all heads as one."""
    tower = view.tower
    assert tower is not None
    return {
        k: score
        for picture, image in enumerate(view.images)
        if image
        for k, score in zip(image, tower.wide_scores(picture, tower.feature + 1), strict=True)
    }


def prumerge_places(order: list[int], budget: int) -> list[int]:
    """PruMerge+: favourites and then the grid, `budget` patches in all."""
    size = len(order)
    for count in range(budget, 0, -1):
        step = int(int(size / count) / 3)
        if step < 1 or len({*order[:count], *range(0, size - 1, step)}) > budget:
            continue
        # This step it is, and its smallest number of favourites; more of them fill up.
        count = min(n for n in range(1, count + 1) if int(int(size / n) / 3) == step)
        while len({*order[:count], *range(0, size - 1, step)}) < budget:
            count += 1
        return order[:count] + [k for k in range(0, size - 1, step) if k not in order[:count]]
    return order[:budget]


def prumerge_set(view: View, keep: Sequence[int], grid: bool, paper: bool) -> Decision:
    tower, scores = view.tower, wide_attention(view)
    assert tower is not None
    decision = Decision([], scores=scores)
    for picture, (image, budget) in enumerate(zip(view.images, keep, strict=True)):
        if budget in (0, len(image)):
            decision.kept.append(image[:budget])
            continue
        a, features = [scores[k] for k in image], tower.features(picture)
        keys = np.concatenate(tower.keys[tower.feature + 1][picture], axis=-1)[1:]
        order, count = highest(a, len(image)), budget if paper else budget - 1
        chosen = prumerge_places(order, count) if grid else order[:count]
        for i in chosen:
            others = [j for j in range(len(image)) if j != i]
            near = sorted(others, key=lambda j, i=i: (-cosine(keys[i], keys[j]), j))[:32]
            total = sum((a[j] * features[j] for j in near), a[i] * features[i] if paper else features[i])
            decision.merged[image[i]] = [image[j] for j in (i, *near)]
            decision.vectors[image[i]] = tower.project(total / (a[i] + sum(a[j] for j in near)) if paper else total)
        if paper:
            decision.kept.append([image[i] for i in sorted(chosen)])
            continue
        left = [i for i in range(len(image)) if i not in chosen]
        decision.merged[image[left[0]]] = [image[i] for i in left]
        decision.vectors[image[left[0]]] = tower.project(sum(a[i] * features[i] for i in left))
        decision.kept.append([image[i] for i in (*chosen, left[0])])
    return decision


INSTRUCTIONS = (
    "\nAnswer the question using a single word or phrase.",
    "\nAnswer with the option's letter from the given choices directly.",
    "\n请直接回答选项字母。",
)


def in_clip(view: View) -> tuple[Clip, list[list[np.ndarray]]]:
    """And each picture's patches there."""
    assert view.tower is not None
    assert view.tower.clip is not None
    clip = view.tower.clip()
    return clip, [
        [clip.patch(vector) for vector in view.tower.features(picture)] if image else []
        for picture, image in enumerate(view.images)
    ]


def cdpruner_set(view: View, keep: Sequence[int], sign: int) -> Decision:
    clip, patches = in_clip(view)
    texts = clip.texts(without=INSTRUCTIONS, segments=True)
    relevance = {
        k: sign * sum(cosine(patch, text) for text in texts) / len(texts)
        for image, part in zip(view.images, patches, strict=True)
        for k, patch in zip(image, part, strict=True)
    }
    least, most = min(relevance.values()), max(relevance.values())
    scores = {k: (value - least + 1e-6) / (most - least) for k, value in relevance.items()}
    kept = []
    for image, budget in zip(view.images, keep, strict=True):
        weights = np.array([scores[k] for k in image])
        kernel = weights[:, None] * np.array(cosines(view.hidden[image])) * weights[None, :] if image else np.empty(0)
        chosen: list[int] = []
        spans: list[int] = []
        while len(chosen) < budget:
            free = [n for n in range(len(image)) if n not in chosen]
            gain = {}
            for n in free:  # what n adds to the determinant of what spans already, as a factor
                inner = kernel[np.ix_(spans, spans)]
                less = kernel[n, spans] @ np.linalg.solve(inner, kernel[spans, n]) if spans else 0.0
                gain[n] = kernel[n, n] - less
            gain = {n: value if value > 1e-6 * kernel.diagonal().max() else 0.0 for n, value in gain.items()}
            best = max(free, key=lambda n, gain=gain: (gain[n], -n))
            chosen.append(best)
            spans += [best] if gain[best] else []
        kept.append([image[n] for n in sorted(chosen)])
    return Decision(kept, scores=scores)


def trim_set(view: View, keep: Sequence[int], paper: bool, outliers: bool = False) -> Decision:
    clip, patches = in_clip(view)
    (text,) = clip.texts()
    decision = Decision([])
    for image, part in zip(view.images, patches, strict=True):
        logits = [cosine(patch, text) if paper else -float(np.dot(patch, text)) for patch in part]
        terms = [math.exp(value - max(logits)) for value in logits]
        decision.scores.update({k: term / sum(terms) for k, term in zip(image, terms, strict=True)})
    first, third = np.percentile(list(decision.scores.values()), [25, 75])
    above = sum(1 for score in decision.scores.values() if score > third + 1.5 * (third - first))
    for picture, (image, budget) in enumerate(zip(view.images, keep, strict=True)):
        count = budget
        if outliers:
            count = min(count, math.floor(len(image) * above / len(decision.scores) + 1e-9) + 1)
        if budget == 0 or count == len(image):
            decision.kept.append(image[:budget])
            continue
        chosen = sorted(highest([decision.scores[k] for k in image], count - 1))
        rest = [n for n in range(len(image)) if n not in chosen]
        place = image[rest[0]]
        decision.merged[place] = [image[n] for n in rest]
        assert view.tower is not None
        decision.vectors[place] = view.tower.project(np.mean(view.tower.features(picture)[rest], axis=0))
        decision.kept.append([*(image[n] for n in chosen), place])
    return decision


def vscan_set(view: View, keep: Sequence[int]) -> Decision:
    assert view.tower is not None
    scores = class_attention(view)
    decision = Decision([], scores=scores)
    for picture, (image, budget) in enumerate(zip(view.images, keep, strict=True)):
        side, shallow = math.isqrt(len(image)), view.tower.class_scores(picture, view.tower.at_depth(5, 24))
        edges = [math.floor(cell * side / 4) for cell in range(5)]
        chosen: list[int] = []
        for top, bottom in pairwise(edges):
            for left, right in pairwise(edges):
                inside = [row * side + column for row in range(top, bottom) for column in range(left, right)]
                best = highest([shallow[n] for n in inside], budget // 2 // 16)
                chosen += [inside[n] for n in best]
        rest = [n for n in range(len(image)) if n not in chosen]
        chosen += [rest[n] for n in highest([scores[image[n]] for n in rest], budget - len(chosen))]
        chosen.sort()
        if chosen and len(chosen) < len(image):
            alike = cosines(view.hidden[image])
            went: dict[int, list[int]] = {n: [] for n in chosen}
            for n in range(len(image)):
                if n not in chosen:
                    went[max(chosen, key=lambda s, n=n: (alike[n][s], -s))].append(n)
            decision.merged.update(
                {image[n]: [image[n], *(image[m] for m in more)] for n, more in went.items() if more}
            )
        decision.kept.append([image[n] for n in chosen])
    return decision


def text_weighting_oracle(importance: str, heads: str) -> Callable[[View, Sequence[int]], Decision]:
    return lambda view, keep: keep_highest(view, text_weighting(view, importance, heads), keep)


Oracle = Callable[[View, Sequence[int]], Decision]

ORACLES: dict[str, Oracle] = {
    "text_weighted": text_weighting_oracle("received", "mean"),
    "text_weighted_debiased": text_weighting_oracle("causal_mean", "mean"),
    "text_weighted_uniform": text_weighting_oracle("uniform", "mean"),
    "text_weighted_last": text_weighting_oracle("last", "mean"),
    "text_weighted_given_received": text_weighting_oracle("given_received", "mean"),
    **{
        f"text_weighted{suffix}_{heads}": text_weighting_oracle(importance, heads.removesuffix("_heads"))
        for heads in ("max_heads", "per_head")
        for importance, suffix in (
            ("received", ""),
            ("causal_mean", "_debiased"),
            ("uniform", "_uniform"),
            ("last", "_last"),
            ("given_received", "_given_received"),
        )
    },
    "uniform": lambda view, keep: keep_highest(view, mean_over_rows(view, view.text), keep),
    "last_row": lambda view, keep: keep_highest(view, mean_over_rows(view, [len(view.positions) - 1]), keep),
    "all_rows": lambda view, keep: keep_highest(view, mean_over_rows(view, range(len(view.positions))), keep),
    "image_column_sums": lambda view, keep: keep_highest(view, sum_over_rows(view, view.image), keep),
    "cut_off": lambda view, keep: Decision([[] for _ in view.images]),
    "sparsevlm": lambda view, keep: sparsevlm_set(view, keep, extra=False),
    "sparsevlm_plus": lambda view, keep: keep_highest(
        view, sparsevlm_plus_scores(view, 14, view.first_text.shape[1] // len(view.attention)), keep
    ),
    "adaptinfer": lambda view, keep: keep_highest(view, adaptinfer_scores(view), keep),
    "sparsevlm_paper": lambda view, keep: sparsevlm_set(view, keep, extra=False, paper=True),
    "dart": dart_set,
    "dart_paper": lambda view, keep: dart_set(view, keep, by_norm=True),
    "class_attention": lambda view, keep: keep_highest(view, class_attention(view), keep),
    "divprune": divprune_set,
    "visionzip": visionzip_set,
    "visionzip_paper": lambda view, keep: visionzip_set(view, keep, paper=True),
    "vispruner": vispruner_set,
    "vispruner_0.75": lambda view, keep: vispruner_set(view, keep, important=0.75),
    "hiprune": hiprune_set,
    "hiprune_paper": lambda view, keep: hiprune_set(view, keep, wrap=False),
    "vscan": vscan_set,
    "scope": scope_set,
    "holov": lambda view, keep: holov_set(view, keep, spread=False),
    "holov_crops": lambda view, keep: holov_set(view, keep, spread=False, crops=True),
    "holov_paper": lambda view, keep: holov_set(view, keep, spread=True, crops=True),
    "holov_spread": lambda view, keep: holov_set(view, keep, spread=True),
    "prumerge": lambda view, keep: prumerge_set(view, keep, grid=False, paper=False),
    "prumerge_paper": lambda view, keep: prumerge_set(view, keep, grid=False, paper=True),
    "prumerge_plus": lambda view, keep: prumerge_set(view, keep, grid=True, paper=False),
    "prumerge_plus_paper": lambda view, keep: prumerge_set(view, keep, grid=True, paper=True),
    "cdpruner": lambda view, keep: cdpruner_set(view, keep, sign=-1),
    "cdpruner_paper": lambda view, keep: cdpruner_set(view, keep, sign=1),
    "trim": lambda view, keep: trim_set(view, keep, paper=False),
    "trim_paper": lambda view, keep: trim_set(view, keep, paper=True),
    "trim_outliers": lambda view, keep: trim_set(view, keep, paper=False, outliers=True),
    "uniform_grid": uniform_grid_set,
    "pool": pool_set,
}
