"""Distances, directions and centres on the sphere of the Earth. All angles are in degrees; arrays broadcast."""

import numpy as np
from numpy.typing import ArrayLike, NDArray

EARTH_RADIUS_KM = 6371.0

Doubles = NDArray[np.float64]


def distance_km(
    latitude: ArrayLike, longitude: ArrayLike, other_latitude: ArrayLike, other_longitude: ArrayLike
) -> Doubles:
    """Great-circle distances, 2 r arcsin √(sin²(Δφ/2) + cos φ cos φ' sin²(Δλ/2)) (haversine formula)."""
    phi, lam, other_phi, other_lam = (
        np.radians(np.asarray(each, np.float64)) for each in (latitude, longitude, other_latitude, other_longitude)
    )
    half = np.sin((phi - other_phi) / 2) ** 2 + np.cos(phi) * np.cos(other_phi) * np.sin((lam - other_lam) / 2) ** 2
    km: Doubles = 2 * EARTH_RADIUS_KM * np.arcsin(np.sqrt(np.clip(half, 0, 1)))
    return km


def unit_vectors(latitude: ArrayLike, longitude: ArrayLike) -> Doubles:
    """Points of the unit sphere with a last dimension of 3: without a jump at the date line."""
    phi, lam = (np.radians(np.asarray(each, np.float64)) for each in (latitude, longitude))
    return np.stack((np.cos(phi) * np.cos(lam), np.cos(phi) * np.sin(lam), np.sin(phi)), axis=-1)


def points_at(latitude: float, longitude: float, km: float, bearings: ArrayLike) -> tuple[Doubles, Doubles]:
    """Latitudes and longitudes (−180 … 180) at a great-circle distance from a point.

    Bearings are directions at the point, clockwise from north. With its unit vectors up, north and east, and δ = km / r:

        cos δ · up + sin δ · (cos θ · north + sin θ · east)

    This is exact near a pole too.
    """
    phi, lam, turn = np.radians(latitude), np.radians(longitude), np.radians(np.asarray(bearings, np.float64))
    angle = km / EARTH_RADIUS_KM
    ahead, aside = np.sin(angle) * np.cos(turn), np.sin(angle) * np.sin(turn)
    out = np.cos(angle) * np.cos(phi) - ahead * np.sin(phi)  # away from the axis, on the meridian of the point
    z = np.cos(angle) * np.sin(phi) + ahead * np.cos(phi)
    east = np.degrees(lam + np.arctan2(aside, out))
    return np.degrees(np.arctan2(z, np.hypot(out, aside))), within_180(east)


def centre(latitudes: Doubles, longitudes: Doubles, weights: Doubles) -> tuple[float, float]:
    """The weighted centre of points: the direction of the mean of their unit vectors.

    Points that cancel, such as those of the whole Earth, have no direction; then it is the mean latitude at longitude 0.
    """
    x, y, z = np.average(unit_vectors(latitudes, longitudes), axis=0, weights=weights).tolist()
    if np.sqrt(x * x + y * y + z * z) < 1e-6:
        return float(np.average(latitudes, weights=weights)), 0.0
    return float(np.degrees(np.arctan2(z, np.hypot(x, y)))), float(np.degrees(np.arctan2(y, x)))


def within_180(longitude: ArrayLike) -> Doubles:
    """The same longitudes from −180 to below 180."""
    return np.asarray((np.asarray(longitude, np.float64) + 180.0) % 360.0 - 180.0)
