"""The 93 intensity and texture features of a tumour in one sequence, equal to those of pyradiomics 3.0.1.

Definitions: https://pyradiomics.readthedocs.io/en/v3.0.1/features.html. Voxels are compared with their 26 neighbours in
the tumour, in 13 directions; features of a matrix for each direction are averaged over the directions.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import product
from typing import Final

import numpy as np
from numpy.typing import NDArray

from inference.refine.components import connected_components

Values = NDArray[np.float64]
Levels = NDArray[np.int64]

# One of each two opposite steps to a neighbour: both meet the same pairs of voxels.
_DIRECTIONS: Final = [step for step in product((-1, 0, 1), repeat=3) if step > (0, 0, 0)]
# Keeps logarithms and quotients finite; pyradiomics adds the same number.
_EPSILON: Final = float(np.spacing(1))


@dataclass(frozen=True, eq=False)
class _Grid:
    """Grey levels of a tumour's voxels, each beside its neighbours."""

    padded: Levels
    """(X, Y, Z) with a margin of one voxel; 0 outside of the tumour."""
    places: Levels
    """(voxels,) flat indices of the tumour's voxels in `padded`."""
    own: Levels
    """(voxels,) grey levels, from 1."""
    present: Levels
    """(levels,) the grey levels that occur, ascending."""

    @property
    def highest(self) -> int:
        """The highest grey level."""
        return int(self.present[-1])

    def offset(self, direction: tuple[int, ...]) -> int:
        """Step between flat indices for a step in three dimensions."""
        _, y, z = self.padded.shape
        return int((direction[0] * y + direction[1]) * z + direction[2])

    def levels_at(self, offset: int) -> Levels:
        """(voxels,) grey levels of the neighbours at a flat offset; 0 outside of the tumour."""
        levels: Levels = self.padded.ravel()[self.places + offset]
        return levels


def intensity_features(
    values: Values, tumour: NDArray[np.bool_], voxel_mm3: float, *, bin_width: float | None, bin_count: int | None
) -> dict[str, dict[str, float]]:
    """Features by kind and by pyradiomics' names, of `values` (X, Y, Z) in a tumour (X, Y, Z) two voxels thick or more.

    Grey levels are `bin_width` wide, or else there are `bin_count` of them between the smallest and largest value.
    What is undefined is NaN.
    """
    inside = values[tumour]
    own = _grey_levels(inside, bin_width, bin_count)
    # With a margin a neighbour is a fixed step away in flat memory, without looking for the edge of the box.
    padded = np.zeros([side + 2 for side in tumour.shape], np.int64)
    padded[1:-1, 1:-1, 1:-1][tumour] = own
    grid = _Grid(padded, np.flatnonzero(padded), own, np.flatnonzero(np.bincount(own)))
    with np.errstate(all="ignore"):
        return {
            "firstorder": _first_order(inside, grid, voxel_mm3),
            "glcm": _cooccurrence(_pairs(grid), grid),
            # The words are those of which pyradiomics makes the names of each kind's features.
            "gldm": _sizes(
                *_dependences(grid), grid, "Dependence Dependence GrayLevel SmallDependence LargeDependence"
            ),
            "glrlm": _sizes(*_runs(grid), grid, "Run RunLength GrayLevelRun ShortRun LongRun"),
            "glszm": _sizes(*_zones(grid), grid, "Zone SizeZone GrayLevelZone SmallArea LargeArea"),
            "ngtdm": _neighbourhood(grid),
        }


def _grey_levels(inside: Values, bin_width: float | None, bin_count: int | None) -> Levels:
    """Grey levels (n,) from 1, the lowest bin beginning at the smallest value, or at a multiple of the bin width."""
    if bin_width is None:
        edges = np.histogram_bin_edges(inside, bin_count or 1)
        edges[-1] += 1  # the largest value belongs to the last bin
    else:
        # So the bins of all tumours have their edges at the same intensities (pyradiomics' getBinEdges).
        low = inside.min() - inside.min() % bin_width
        edges = np.arange(low, inside.max() + 2 * bin_width, bin_width)
    return np.digitize(inside, edges)


def _first_order(inside: Values, grid: _Grid, voxel_mm3: float) -> dict[str, float]:
    share = np.bincount(grid.own)[grid.present] / grid.own.size
    low, lower, median, upper, high = np.percentile(inside, (10, 25, 50, 75, 90))
    central = inside[(inside >= low) & (inside <= high)]
    moved = inside - inside.mean()
    variance = np.mean(moved**2)
    scale = variance if variance > 0 else 1.0  # a flat tumour is neither skewed nor peaked
    energy = np.sum(inside**2)
    features = {
        "10Percentile": low,
        "90Percentile": high,
        "Energy": energy,
        "Entropy": _entropy(share),
        "InterquartileRange": upper - lower,
        "Kurtosis": np.mean(moved**4) / scale**2,
        "Maximum": inside.max(),
        "MeanAbsoluteDeviation": np.mean(np.abs(moved)),
        "Mean": inside.mean(),
        "Median": median,
        "Minimum": inside.min(),
        "Range": np.ptp(inside),
        "RobustMeanAbsoluteDeviation": np.mean(np.abs(central - central.mean())),
        "RootMeanSquared": np.sqrt(energy / inside.size),
        "Skewness": np.mean(moved**3) / scale**1.5,
        "TotalEnergy": energy * voxel_mm3,
        "Uniformity": np.sum(share**2),
        "Variance": variance,
    }
    return {name: float(value) for name, value in features.items()}


def _entropy(shares: Values, axis: int | tuple[int, ...] | None = None) -> Values:
    return np.asarray(-np.sum(shares * np.log2(shares + _EPSILON), axis=axis), np.float64)


# -- counts: (grey levels that occur, what they meet or their sizes, directions)


def _pairs(grid: _Grid) -> Values:
    """How often grey levels meet: (levels, levels, directions), symmetrical; directions without a pair are left out."""
    ends, matrices = grid.highest + 1, []
    for direction in _DIRECTIONS:
        there = grid.levels_at(grid.offset(direction))
        ordered = np.bincount(grid.own * ends + there, minlength=ends**2).reshape(ends, ends)
        matrices.append((ordered + ordered.T)[np.ix_(grid.present, grid.present)])
    counts = np.stack(matrices, axis=2).astype(np.float64)
    return counts[:, :, counts.sum(axis=(0, 1)) > 0]


def _dependences(grid: _Grid) -> tuple[Values, Values]:
    """How often voxels of a level have so many neighbours of their level, with themselves: (levels, 27, 1); 1 to 27."""
    equal = np.zeros(grid.own.size, np.int64)
    for direction in _DIRECTIONS:
        offset = grid.offset(direction)
        equal += grid.levels_at(offset) == grid.own  # pyradiomics' alpha of 0: equal levels alone depend
        equal += grid.levels_at(-offset) == grid.own
    counts = np.bincount(grid.own * 27 + equal, minlength=(grid.highest + 1) * 27).reshape(-1, 27, 1)
    return counts[grid.present].astype(np.float64), np.arange(1.0, 28.0)


def _runs(grid: _Grid) -> tuple[Values, Values]:
    """How often a level runs so far: (levels, lengths, directions); the lengths.

    Directions in which no straight line meets two voxels of the tumour are left out, as in pyradiomics.
    """
    longest, flat, matrices = max(grid.padded.shape), grid.padded.ravel(), []
    for direction in filter(lambda step: _meets_two(grid, step), _DIRECTIONS):
        offset = grid.offset(direction)
        first = grid.levels_at(-offset) != grid.own
        place, level = grid.places[first], grid.own[first]
        # By length and level, the runs of that length or longer; differences give those of just that length.
        as_long = np.zeros((longest + 1, grid.highest + 1), np.int64)
        for length in range(longest):
            as_long[length] = np.bincount(level, minlength=grid.highest + 1)
            place = place + offset
            alike = flat[place] == level
            place, level = place[alike], level[alike]
            if place.size == 0:
                break
        matrices.append((as_long[:-1] - as_long[1:]).T[grid.present])
    return np.stack(matrices, axis=2).astype(np.float64), np.arange(1.0, longest + 1)


def _meets_two(grid: _Grid, direction: tuple[int, ...]) -> bool:
    """Whether some line in a direction meets two voxels, which need not touch."""
    if grid.levels_at(grid.offset(direction)).any():
        return True
    points = np.stack(np.unravel_index(grid.places, grid.padded.shape), axis=1)
    axis = int(np.flatnonzero(direction)[0])
    lines = points - points[:, [axis]] * direction[axis] * np.array(direction)
    return len(np.unique(lines, axis=0)) < len(lines)


def _zones(grid: _Grid) -> tuple[Values, Values]:
    """How often a level has a connected zone of a size: (levels, sizes, 1); the sizes that occur."""
    numbers = connected_components(grid.padded.astype(np.uint32)).ravel()
    level_of = np.zeros(int(numbers.max()) + 1, np.int64)
    level_of[numbers] = grid.padded.ravel()
    row = np.searchsorted(grid.present, level_of[1:])
    sizes, column = np.unique(np.bincount(numbers)[1:], return_inverse=True)
    counts = np.bincount(row * sizes.size + column, minlength=grid.present.size * sizes.size)
    return counts.reshape(grid.present.size, sizes.size, 1).astype(np.float64), sizes.astype(np.float64)


# -- features of the counts


def _sizes(counts: Values, sizes: Values, grid: _Grid, words: str) -> dict[str, float]:
    """Features of how often grey levels have sizes (levels, sizes, directions), under the names of their kind."""
    what, size, gray, small, large = words.split()
    level2, size2 = grid.present[:, None, None] ** 2.0, sizes[:, None] ** 2
    total = counts.sum(axis=(0, 1))
    shares, of_level, of_size = counts / total, counts.sum(axis=1) / total, counts.sum(axis=0) / total
    features = {
        f"{small}Emphasis": (of_size / size2).sum(axis=0),
        f"{large}Emphasis": (of_size * size2).sum(axis=0),
        "GrayLevelNonUniformity": (of_level**2).sum(axis=0) * total,
        "GrayLevelNonUniformityNormalized": (of_level**2).sum(axis=0),
        f"{size}NonUniformity": (of_size**2).sum(axis=0) * total,
        f"{size}NonUniformityNormalized": (of_size**2).sum(axis=0),
        f"{what}Percentage": 1 / (of_size * sizes[:, None]).sum(axis=0),
        "GrayLevelVariance": _variance(of_level, grid.present),
        f"{what}Variance": _variance(of_size, sizes),
        f"{what}Entropy": _entropy(shares, axis=(0, 1)),
        f"Low{gray}Emphasis": (of_level / level2[:, 0]).sum(axis=0),
        f"High{gray}Emphasis": (of_level * level2[:, 0]).sum(axis=0),
        f"{small}LowGrayLevelEmphasis": (shares / (level2 * size2)).sum(axis=(0, 1)),
        f"{small}HighGrayLevelEmphasis": (shares * level2 / size2).sum(axis=(0, 1)),
        f"{large}LowGrayLevelEmphasis": (shares * size2 / level2).sum(axis=(0, 1)),
        f"{large}HighGrayLevelEmphasis": (shares * size2 * level2).sum(axis=(0, 1)),
    }
    return {name: _mean(value) for name, value in features.items()}


def _mean(values: Values) -> float:
    """Mean over the directions (directions,) in which a feature is defined; NaN where it is in none."""
    defined = values[~np.isnan(values)]
    return float(defined.mean()) if defined.size else math.nan


def _variance(shares: Values, values: Values | Levels) -> Values:
    """Variance of `values` (n,) that have `shares` (n, directions)."""
    mean = (shares * values[:, None]).sum(axis=0)
    variance: Values = (shares * (values[:, None] - mean) ** 2).sum(axis=0)
    return variance


def _cooccurrence(counts: Values, grid: _Grid) -> dict[str, float]:
    """Features of how often grey levels meet (levels, levels, directions)."""
    levels, highest, both = grid.present.astype(np.float64), grid.highest, (0, 1)
    shares = counts / counts.sum(axis=both)
    i, j = levels[:, None, None], levels[None, :, None]
    rows, columns = shares.sum(axis=1, keepdims=True), shares.sum(axis=0, keepdims=True)
    mean_i, mean_j = (i * shares).sum(axis=both), (j * shares).sum(axis=both)
    sums, differences = _by_value(shares, i + j, 2 * highest), _by_value(shares, np.abs(i - j), highest - 1)
    k, steps = np.arange(2.0 * highest + 1)[:, None], np.arange(float(highest))[:, None]
    sd = np.sqrt((shares * (i - mean_i) ** 2).sum(axis=both) * (shares * (j - mean_j) ** 2).sum(axis=both))
    moved = i + j - mean_i - mean_j
    joint, marginal = _entropy(shares, axis=both), _entropy(rows, axis=both)
    cross = -(shares * np.log2(rows * columns + _EPSILON)).sum(axis=both)
    independent = _entropy(rows * columns, axis=both)
    features = {
        "Autocorrelation": (shares * i * j).sum(axis=both),
        "ClusterProminence": (shares * moved**4).sum(axis=both),
        "ClusterShade": (shares * moved**3).sum(axis=both),
        "ClusterTendency": (shares * moved**2).sum(axis=both),
        "Contrast": (shares * (i - j) ** 2).sum(axis=both),
        "Correlation": np.where(sd == 0, 1, (shares * (i - mean_i) * (j - mean_j)).sum(axis=both) / (sd + _EPSILON)),
        "DifferenceAverage": (steps * differences).sum(axis=0),
        "DifferenceEntropy": _entropy(differences, axis=0),
        "DifferenceVariance": _variance(differences, steps[:, 0]),
        "Id": (differences / (1 + steps)).sum(axis=0),
        "Idm": (differences / (1 + steps**2)).sum(axis=0),
        "Idmn": (differences / (1 + steps**2 / highest**2)).sum(axis=0),
        "Idn": (differences / (1 + steps / highest)).sum(axis=0),
        "Imc1": np.where(marginal == 0, 0, (joint - cross) / marginal),
        "Imc2": np.where(independent == joint, 0, np.sqrt(1 - np.exp(-2 * (independent - joint)))),
        "InverseVariance": (differences[1:] / steps[1:] ** 2).sum(axis=0),
        "JointAverage": mean_i,
        "JointEnergy": (shares**2).sum(axis=both),
        "JointEntropy": joint,
        "MCC": _maximal_correlation(shares, rows, columns),
        "MaximumProbability": shares.max(axis=both),
        "SumAverage": (k * sums).sum(axis=0),
        "SumEntropy": _entropy(sums, axis=0),
        "SumSquares": (shares * (i - mean_i) ** 2).sum(axis=both),
    }
    return {name: _mean(value) for name, value in features.items()}


def _by_value(shares: Values, values: Values, highest: int) -> Values:
    """Sums of shares (levels, levels, directions) over pairs of one value, 0 to `highest`: (values, directions)."""
    places = values[:, :, 0].astype(np.int64).ravel()
    columns = shares.reshape(places.size, -1).T
    return np.stack([np.bincount(places, column, minlength=highest + 1) for column in columns], axis=1)


def _maximal_correlation(shares: Values, rows: Values, columns: Values) -> Values:
    """Root of the second largest eigenvalue of Q (directions,), see the definition; 1 for a single grey level."""
    if len(shares) < 2:
        return np.ones(1)
    # Summed level by level as pyradiomics does: an eigenvalue of 0 is left out of the mean where it comes out below 0,
    # which the order of a sum decides.
    q: Values = np.zeros(())
    for level in range(len(shares)):
        products = shares[:, None, level] * shares[None, :, level]
        q = q + products / (rows[:, None, 0] * columns[None, :, level] + _EPSILON)
    eigenvalues = np.sort(np.linalg.eigvals(np.moveaxis(q, 2, 0)))
    root: Values = np.sqrt(eigenvalues[:, -2]).real
    return root


def _neighbourhood(grid: _Grid) -> dict[str, float]:
    """Features of how far grey levels are from the mean of their neighbours."""
    own, i = grid.own, grid.present
    total, count = np.zeros(own.size), np.zeros(own.size)
    for direction in _DIRECTIONS:
        for offset in (grid.offset(direction), -grid.offset(direction)):
            there = grid.levels_at(offset)
            total += there
            count += there > 0
    away = np.abs(own - total / count)
    share = np.bincount(own)[i] / own.size
    apart = np.bincount(own, away)[i]
    spread = float((share * apart).sum())
    gaps = np.abs(i[:, None] - i)
    busy = np.abs((i * share)[:, None] - i * share).sum()
    both = share[:, None] + share
    return {
        "Busyness": float(spread / busy) if busy else 0.0,
        "Coarseness": 1 / spread if spread else 1e6,  # pyradiomics' value for a tumour of one grey level
        "Complexity": float((gaps * ((share * apart)[:, None] + share * apart) / both).sum() / own.size),
        "Contrast": float(
            (share[:, None] * share * gaps**2).sum() * apart.sum() / own.size / max(i.size * (i.size - 1), 1)
        ),
        "Strength": float((both * gaps**2).sum() / apart.sum()) if apart.sum() else 0.0,
    }
