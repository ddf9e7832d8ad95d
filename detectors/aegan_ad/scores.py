"""The 19 scores of AEGAN-AD and one more, one number per clip each; higher is stranger.

Source: Jiang et al., ICASSP 2023 (arXiv 2303.17949), and its published code.

    G_<distance>_<reduction>   between a window and its reconstruction (x), or between the latents of both (z), over the clip's windows
    D_<detector>               the clip's embedding, the mean over its windows of the critic's, against those of the training clips
    R_maha                     not published: what reconstruction leaves of the clip, band by band, against what it leaves of the training clips
"""

from collections.abc import Collection, Mapping, Sequence
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.covariance import LedoitWolf
from sklearn.metrics.pairwise import cosine_distances
from sklearn.neighbors import LocalOutlierFactor
from torch import Tensor

from monitor.types import FloatArray

DISTANCES = ("x_2", "x_1", "z_2", "z_1", "z_cos")
POOL_SCORES = ("D_maha", "D_knn", "D_lof", "D_cos")

NEIGHBOURS = 2
"""Of D_knn."""
LOF_NEIGHBOURS = 4
FEWEST_CLIPS = LOF_NEIGHBOURS + 1
"""That make a Pool: each has as many neighbours as D_lof asks for, and is not its own."""


def window_distances(x: Tensor, reconstructed: Tensor, z: Tensor | None = None, z_again: Tensor | None = None) -> dict[str, Tensor]:
    """How far each of n windows is from what was made of it: name of DISTANCES -> (n,) float32.

    x, reconstructed: (n, ...) of any precision. z, z_again: (n, latent ...), of the window and of its reconstruction; without them x_2 and x_1 only.
    """
    off = (reconstructed.float() - x.float()).flatten(1)
    distances = {"x_2": off.square().sum(1), "x_1": off.abs().sum(1)}
    if z is not None and z_again is not None:
        first, second = z.flatten(1).double(), z_again.flatten(1).double()  # 1 - cosine of what is nearly alike would be rounding only
        off = second - first
        distances["z_2"] = off.square().sum(1).float()
        distances["z_1"] = off.abs().sum(1).float()
        distances["z_cos"] = (1 - torch.cosine_similarity(first, second, dim=1)).float()
    return distances


def clip_scores(distances: Mapping[str, Tensor], counts: Sequence[int], usual: int) -> dict[str, Tensor]:
    """The G scores of B clips: "G_<distance>_sum", "_min" and "_max" -> (B,) float32, for each of `distances`.

    distances: (n,) of the windows of all clips, one clip after the other; counts: how many are of each, at least one.
    usual: windows of a clip of the training length. A sum is brought to that number: a segment cut short by a gap has fewer windows,
    and by a plain sum would look too normal to be compared with a threshold. Of a clip of that length it is the plain sum.
    """
    names = list(distances)
    parts = torch.stack([distances[name] for name in names], dim=1).split_with_sizes(list(counts))  # B of (count, distances)
    sums = torch.stack([part.sum(0) * (usual / len(part)) for part in parts])
    smallest = torch.stack([part.amin(0) for part in parts])
    largest = torch.stack([part.amax(0) for part in parts])
    reduced = {"sum": sums, "min": smallest, "max": largest}
    return {f"G_{name}_{reduction}": values[:, column] for column, name in enumerate(names) for reduction, values in reduced.items()}


class Pool:
    """The embeddings of the training clips, with which those of other clips are compared. Nothing of it is saved but them.

    A training clip finds itself in it, and so scores too normal.
    """

    covariance: Literal["empirical", "shrunk"]
    """What D_maha rests on: the empirical covariance (divisor N - 1) where clips enough make it invertible, else Ledoit and Wolf's."""

    def __init__(self, embeddings: FloatArray) -> None:
        """(N, dimensions). Raises ValueError where they are fewer than FEWEST_CLIPS, not finite, or all alike."""
        if len(embeddings) < FEWEST_CLIPS:
            raise ValueError(f"{len(embeddings)} training clips: the scores of the critic need {FEWEST_CLIPS} at least")
        if not np.isfinite(embeddings).all():
            raise ValueError("the embeddings of the training clips are not finite: the weights are broken")
        if (embeddings == embeddings[0]).all():
            raise ValueError("the embeddings of the training clips are all alike")
        self.embeddings = embeddings
        self._exact = embeddings.astype(np.float64)
        self._mean = self._exact.mean(axis=0)
        self.covariance, covariance = _covariance(self._exact)
        self._whitening = _whitening(covariance)
        self._lof = LocalOutlierFactor(n_neighbors=LOF_NEIGHBOURS, metric="cosine", novelty=True).fit(self._exact)

    def scores(self, embeddings: FloatArray, wanted: Collection[str] = POOL_SCORES) -> dict[str, FloatArray]:
        """(B, dimensions) -> name -> (B,) float32, of those of POOL_SCORES that are `wanted`.

        One with a NaN or an infinity scores NaN: it comes of broken weights, and must not look like a very strange clip, which the published
        code makes of it (the largest float32).
        """
        finite = np.isfinite(embeddings).all(axis=1)
        exact = embeddings[finite].astype(np.float64)
        found = {}
        for name, score in zip(POOL_SCORES, (self._maha, self._knn, self._local_outlier_factor, self._cos), strict=True):
            if name in wanted:
                found[name] = np.full(len(embeddings), np.nan, np.float32)
                if finite.any():
                    found[name][finite] = score(exact)
        return found

    def _maha(self, exact: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.asarray(np.linalg.norm((exact - self._mean) @ self._whitening, axis=1))

    def _knn(self, exact: NDArray[np.float64]) -> NDArray[np.float64]:
        distances = cosine_distances(exact, self._exact)  # (B, N)
        return np.asarray(np.partition(distances, NEIGHBOURS - 1, axis=1)[:, :NEIGHBOURS].sum(axis=1))

    def _local_outlier_factor(self, exact: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.asarray(-self._lof.score_samples(exact))

    def _cos(self, exact: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.asarray(cosine_distances(exact, self._mean[None])[:, 0])


class Residuals:
    """What reconstruction left of the training clips, with which that of other clips is compared. Of our own; by Mahalanobis's distance.

    Where a fault changes a band that normal clips keep steady it is found, however loud the noise in others is that the G scores add up.
    """

    def __init__(self, clips: FloatArray) -> None:
        """(N, F) of N training clips, `residuals` of each. Raises ValueError where they are not finite."""
        if not np.isfinite(clips).all():
            raise ValueError("what reconstruction leaves of the training clips is not finite: the weights are broken")
        exact = clips.astype(np.float64)
        self._mean, deviation = exact.mean(axis=0), exact.std(axis=0)
        self._unit = np.maximum(deviation, deviation.max() * 1e-6 + np.finfo(np.float64).tiny)
        shrunk = LedoitWolf().fit((exact - self._mean) / self._unit)  # of features of one scale: it shrinks towards their mean variance
        self._whitening = _whitening(np.asarray(shrunk.covariance_))

    def scores(self, clips: FloatArray) -> FloatArray:
        """(B, F) -> R_maha (B,) float32; NaN where one is not finite."""
        with np.errstate(invalid="ignore"):
            return np.asarray(np.linalg.norm((clips.astype(np.float64) - self._mean) / self._unit @ self._whitening, axis=1), np.float32)


def residuals(spectra: Tensor, denoised: Tensor) -> Tensor:
    """(B, 128, T) both -> (B, 256): mean and deviation over time, in each band, of what reconstruction leaves."""
    off = spectra - denoised
    return torch.cat([off.mean(dim=2), off.std(dim=2)], dim=1)


def _whitening(covariance: NDArray[np.float64]) -> NDArray[np.float64]:
    """What differences are multiplied by so that their Euclidean length is Mahalanobis's distance."""
    return np.asarray(np.linalg.inv(np.linalg.cholesky(covariance)).T)


def _covariance(exact: NDArray[np.float64]) -> tuple[Literal["empirical", "shrunk"], NDArray[np.float64]]:
    clips, dimensions = exact.shape
    if clips > dimensions:
        covariance = np.cov(exact, rowvar=False)
        if np.linalg.matrix_rank(covariance, hermitian=True) == dimensions:
            return "empirical", covariance
    return "shrunk", np.asarray(LedoitWolf().fit(exact).covariance_)
