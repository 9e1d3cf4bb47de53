"""Clustering by density peaks, as SparseVLM recycles tokens with it.

With dist_ij = ||x_i - x_j|| / sqrt(d) and C clusters of q vectors:

    rho_i = exp(-mean of the C smallest dist_ij^2, i itself among them)
    delta_i = min { dist_ij : j is denser than i },  the largest distance of all where there is none
    centres = the C largest of rho * delta

Each vector belongs to its nearest centre, a centre to itself. Of two equal rho the earlier vector is the denser, of
equal rho * delta it comes first: with two clusters every pair of nearest neighbours has one rho, and without an order
both would be centres. The authors add noise of up to 1e-6 to rho for that. Their paper assigns each vector to the
centre with the largest cosine.
"""

from __future__ import annotations

import torch
from torch.nn.functional import normalize


def density_peaks(vectors: torch.Tensor, clusters: int, by_cosine: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
    """(centres [C] in falling order of rho * delta, cluster of each vector [q]: an index into the centres).

    vectors: [q, d], computed in float32. clusters: C, from 1 to q. by_cosine: vectors belong to the centre with the
    largest cosine.
    """
    points = vectors.float()
    # Differences, not a product of matrices: a vector's distance from its twin is then exactly 0.
    distance = torch.cdist(points, points, compute_mode="donot_use_mm_for_euclid_dist") / points.shape[1] ** 0.5
    nearest = distance.topk(clusters, largest=False).values
    density = torch.exp(-nearest.square().mean(dim=1))
    place = torch.arange(len(points), device=points.device)
    earlier = place[None, :] < place[:, None]
    denser = (density[None, :] > density[:, None]) | ((density[None, :] == density[:, None]) & earlier)
    apart = distance.masked_fill(~denser, float("inf")).amin(dim=1)
    apart = torch.where(denser.any(dim=1), apart, distance.max())
    centres = torch.sort(density * apart, descending=True, stable=True).indices[:clusters]
    member = distance[:, centres].argmin(dim=1)
    if by_cosine:
        units = normalize(points, dim=-1)
        member = (units @ units[centres].T).argmax(dim=1)
    member[centres] = torch.arange(clusters, device=member.device)
    return centres, member
