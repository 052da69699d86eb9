"""Distances, directions and centres on the sphere: against vectors in space, near the poles and at the date line."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llueve.sphere import EARTH_RADIUS_KM, centre, distance_km, points_at, within_180

LATITUDES = st.one_of(st.floats(-90, 90), st.sampled_from([-90.0, -89.99, 0.0, 89.99, 90.0]))
LONGITUDES = st.one_of(st.floats(-180, 180), st.sampled_from([-180.0, -179.99, 0.0, 179.99, 180.0]))


def vector(latitude, longitude):
    phi, lam = np.radians(latitude), np.radians(longitude)
    return np.array([np.cos(phi) * np.cos(lam), np.cos(phi) * np.sin(lam), np.sin(phi)])


@given(LATITUDES, LONGITUDES, LATITUDES, LONGITUDES)
def test_a_distance_is_the_angle_between_two_directions(latitude, longitude, other_latitude, other_longitude):
    one, other = vector(latitude, longitude), vector(other_latitude, other_longitude)
    angle = np.arctan2(np.linalg.norm(np.cross(one, other)), one @ other)
    km = distance_km(latitude, longitude, other_latitude, other_longitude)
    assert km == pytest.approx(EARTH_RADIUS_KM * angle, abs=0.2)  # half a circle apart, arcsin is that uncertain
    assert km == distance_km(other_latitude, other_longitude, latitude, longitude)


@given(LATITUDES, LONGITUDES, st.floats(0.1, 5000))
def test_a_ring_lies_at_its_distance(latitude, longitude, km):
    north, east = points_at(latitude, longitude, km, np.arange(8) * 45.0)
    assert (np.abs(north) <= 90).all() and (east >= -180).all() and (east < 180).all()
    np.testing.assert_allclose(distance_km(latitude, longitude, north, east), km, rtol=1e-6, atol=1e-5)
    # Opposite points are twice as far apart, and neighbours are all equally far.
    np.testing.assert_allclose(distance_km(north[:4], east[:4], north[4:], east[4:]), 2 * km, rtol=1e-6, atol=1e-5)
    sides = distance_km(north, east, np.roll(north, 1), np.roll(east, 1))
    np.testing.assert_allclose(sides, sides[0], rtol=1e-5, atol=1e-4)


def test_bearings_are_clockwise_from_north():
    quarter = EARTH_RADIUS_KM * np.pi / 2
    north, east = points_at(0.0, 170.0, quarter / 9, [0, 90, 180, 270])  # 10 degrees
    np.testing.assert_allclose(north, [10, 0, -10, 0], atol=1e-9)
    np.testing.assert_allclose(east, [170, -180, 170, 160], atol=1e-9)


def test_the_centre_of_points_across_the_date_line_and_around_a_pole():
    np.testing.assert_allclose(centre(np.zeros(2), np.array([170.0, -170.0]), np.ones(2)), [0, 180], atol=1e-9)
    around = np.arange(0.0, 360.0, 30.0)
    assert centre(np.full(12, 80.0), around, np.ones(12))[0] == pytest.approx(90.0)
    assert centre(np.array([-10.0, -10.0]), np.array([20.0, 40.0]), np.array([1.0, 0.0])) == pytest.approx(
        (-10.0, 20.0)
    )
    assert centre(np.array([-90.0, 90.0]), np.zeros(2), np.ones(2)) == (0.0, 0.0)


def test_longitudes_lie_between_minus_180_and_180():
    np.testing.assert_allclose(within_180([-180, 180, 181, 359.5, -190]), [-180, -180, -179, -0.5, 170])
