"""Which pairs show the same ground, going by names.

A pair's `place` tells its ground and, where a dataset shows ground more than once, the
acquisition. What is ground in each dataset stands in docs/evaluation.md.
"""

import re

import numpy as np

# A patch of either sensor of BigEarthNet whose name has its MGRS tile, column and row;
# in v2 they have leading zeros.
_CELL = re.compile(r"(S[12][AB]_\w+?)_T?(\d\d[A-Z]{3})_(\d+)_(\d+)")
# A Sentinel-2 patch of BigEarthNet v1, whose name lacks the tile.
_PATCH = re.compile(r"(S2[AB]_MSIL2A_\d{8}T\d+)_(\d+)_(\d+)")
# A patch of SEN12MS; patches of one scene overlap.
_SEN12MS = re.compile(r"(ROIs\d+_[a-z]+_\d+)_p\d+")
# A coordinate system and six numbers, and the time behind them.
_GRID = re.compile(r"(.+?(?: -?\d+){6}) .+")
_NUMBERS = re.compile(r"(\w+:\d+)((?: -?\d+){6})(?: (.+))?")


def cell(name: str) -> str:
    """The cell of BigEarthNet's grid that a patch shows, such as `33UUP_26_57`.

    Cells are 1.2 km wide and the same in v1 and v2.

    Args:
        name: of a patch of either sensor, or a pair's place.

    Returns:
        MGRS tile, column and row; "" for other names, and those without tile.
    """
    found = _CELL.fullmatch(name)
    return f"{found[2]}_{int(found[3])}_{int(found[4])}" if found else ""


def place(s2_name: str, partner: str) -> str:
    """The place of a BigEarthNet pair: its Sentinel-2 patch, with the tile in the name.

    Args:
        s2_name: of the patch in v1, which lacks the tile, or in v2.
        partner: name of a patch that has the tile, of the same cell.
    """
    found, there = _PATCH.fullmatch(s2_name), _CELL.fullmatch(partner)
    if not found or not there:
        return s2_name
    return "_".join((found[1], there[2], found[2], found[3]))


def of(place: str) -> str:
    """The ground that a place says, the same for all pairs that share it; or ""."""
    if _PATCH.fullmatch(place):
        return ""  # of the tiles that were acquired at that time any may be meant
    if found := _SEN12MS.fullmatch(place) or _GRID.fullmatch(place):
        return found[1]
    return cell(place) or place


def grid(place: str) -> tuple[str, tuple[float, ...]] | None:
    """Coordinate system and transform of a pair, whose place tells them; else None."""
    found = _NUMBERS.fullmatch(place)
    return found and (found[1], tuple(map(float, found[2].split())))


def time(place: str) -> str:
    """The time of acquisition that stands behind a pair's grid in its place; or ""."""
    found = _NUMBERS.fullmatch(place)
    return (found and found[3]) or ""


def acquisition(place: str) -> str:
    """What stood for a place in runs and datasets of before, which told no ground."""
    found = _CELL.fullmatch(place)
    without = "_".join(found.group(1, 3, 4)) if found else ""
    return without if _PATCH.fullmatch(without) else place


def keys(place: str) -> set[str]:
    """Pairs that have one of these in common must not be trained on and tested on."""
    return {of(place), acquisition(place)} - {""}


def groups(source) -> np.ndarray:
    """Which pairs of a source share their ground.

    Args:
        source: random-access pairs; those without `places` show ground of their own.

    Returns:
        Numbers from 0, the same for pairs of the same ground, [N] int64. A pair whose
        ground is not known has one of its own.
    """
    known = [of(place) for place in getattr(source, "places", ())]
    known = known or [""] * len(source)
    alone = [name or f"\0{i}" for i, name in enumerate(known)]
    return np.unique(alone, return_inverse=True)[1]


def regions(source, apart: float) -> np.ndarray:
    """Which pairs of a source are neighbours, or neighbours of neighbours.

    Args:
        source: random-access pairs.
        apart: metres, or units of another projection; where the corners of two pairs
            of one projection are no farther from each other, they are neighbours.

    Returns:
        Numbers from 0, the same for pairs of one region, [N] int64. Pairs whose grid is
        not known go by their ground, see `groups`.
    """
    import scipy  # which nothing else here needs, and a build never

    n = len(source)
    numbers = groups(source)
    near = [np.stack([np.arange(n), np.unique(numbers, return_index=True)[1][numbers]])]
    known = [grid(place) for place in getattr(source, "places", ())]
    for system in sorted({found[0] for found in known if found}):
        pairs = [i for i, found in enumerate(known) if found and found[0] == system]
        corners = np.array([[known[i][1][2], known[i][1][5]] for i in pairs])
        found = scipy.spatial.cKDTree(corners).query_pairs(apart, output_type="ndarray")
        near.append(np.array(pairs)[found.T])
    i, j = np.concatenate(near, axis=1)
    graph = scipy.sparse.coo_array((np.ones(len(i), bool), (i, j)), shape=(n, n))
    return scipy.sparse.csgraph.connected_components(graph, directed=False)[1]
