"""Make the network of Brazilian stations that llueve carries, from a table of INMET's hourly observations.

    python benchmarks/make_network.py hourly_inmet_brazil.parquet
    python benchmarks/make_network.py hourly_inmet_brazil.parquet --output /tmp/again.parquet   # the same bytes
    python benchmarks/make_network.py hourly_inmet_brazil.parquet --hourly brazil_hourly.parquet  # for benchmarks.skill

The table has the columns site, latitude, longitude, time (UTC, the end of its hour) and those of `VARIABLES`, NaN where
missing. `src/llueve/data/SOURCE.md` describes source, licence and rules. All means are computed with whole numbers, so
that one version of pyarrow writes the same bytes on every machine.

Shapes: D steps of six hours, H hours.
"""

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

OUTPUT = Path(__file__).parents[1] / "src" / "llueve" / "data" / "inmet_brazil.parquet"
PREFIX = "BR_INMET_"
"""Of the names of sites in the table; the file has INMET's codes alone."""
START, END = np.datetime64("2023-01-01T00", "h"), np.datetime64("2024-12-31T18", "h")
"""The first hour ends one hour after START, the last one at END."""
HOURS = 6
"""Of one step, which its time ends: 00, 06, 12 and 18 UTC."""
STEPS = int((END - START).astype(int)) // HOURS
FEWEST_HOURS = 4
"""Of a mean or maximum. Sums of rain and means of radiation need all six."""
LEAST_SHARE = 0.85
"""Of issue times with a known sum of rain over the next 24 hours, and of steps with temperature and pressure."""
DARK_DEGREES = 3.0
"""Below this height of the sun at the middle of an hour, missing radiation is none: most stations report it by day only."""
LEAST_HOURS = 0.6
"""Of hours with a known amount of rain, for the table of hours."""
STUCK_STEPS = 10
"""This many equal values of the wind, or equal amounts of rain above zero, come from a stuck sensor and are blanked."""
MOST_WET_GAPS = 0.05
"""Largest excess of the share of missing dewpoints in wet steps over that in dry ones. Beyond it the sensor of humidity
fails in rain, and the station's dewpoint is left out: its gaps would tell of rain."""
DEAD_GAUGES = {"A036": np.datetime64("2024-05-31T00", "h")}
"""Stations whose gauge reports zeros alone from this time on, as `llueve audit` finds; their rain is blanked."""
VARIABLES = (
    "temperature_c", "dewpoint_c", "pressure_surface_hpa", "wind_speed_ms", "wind_direction_deg", "gust_ms",
    "precipitation_mm", "radiation_wm2",
)  # fmt: skip

Integers = NDArray[np.int64]
Floats = NDArray[np.float64]
NOTHING = np.iinfo(np.int64).min
"""A missing value among whole numbers."""


@dataclass(frozen=True)
class Column:
    """A column of the file: numbers with `decimals`, and a Parquet encoding that suits their course."""

    name: str
    unit: str
    digits: int
    decimals: int
    encoding: str | None
    """None: a dictionary of its values."""

    @property
    def field(self) -> pa.Field:
        """Name, type and unit, which llueve reads from here."""
        return pa.field(self.name, pa.decimal128(self.digits, self.decimals), metadata={"units": self.unit})

    def array(self, whole: Integers) -> pa.Array:
        """The whole numbers, in units of the last decimal, as decimal numbers."""
        known = whole != NOTHING
        if np.abs(whole[known]).max(initial=0) >= 10**self.digits:
            raise ValueError(f"{self.name}: a value has more than {self.digits} digits")
        halves = np.stack([np.where(known, whole, 0), np.where(known & (whole < 0), -1, 0)], axis=1).astype("<i8")
        validity = pa.py_buffer(np.packbits(known, bitorder="little"))
        return pa.Array.from_buffers(self.field.type, len(whole), [validity, pa.py_buffer(halves)])


PLACE = (Column("latitude", "degrees_north", 6, 4, None), Column("longitude", "degrees_east", 7, 4, None))
COURSE = "DELTA_BINARY_PACKED"
COLUMNS = (
    Column("temperature", "degC", 3, 1, COURSE),
    Column("dewpoint", "degC", 3, 1, COURSE),
    Column("pressure", "hPa", 5, 1, COURSE),
    Column("wind_east", "m s-1", 3, 1, None),
    Column("wind_north", "m s-1", 3, 1, None),
    Column("gust", "m s-1", 3, 1, None),
    Column("rain", "mm", 4, 1, None),
    Column("radiation", "W m-2", 4, 0, None),
)


def make(table: pa.Table) -> pa.Table:
    """The six-hourly values of all stations that are complete enough, ordered by station and time."""
    stations = table["site"].cast(pa.string()).combine_chunks().dictionary_encode()
    hourly = {name: table[name].to_numpy() for name in table.column_names if name != "site"}
    times = pa.array((START + HOURS * np.arange(1, STEPS + 1)).astype("datetime64[ms]"), pa.timestamp("ms", "UTC"))
    schema = pa.schema(
        [
            pa.field("site", pa.string()),
            *(each.field for each in PLACE),
            pa.field("time", times.type),
            *(each.field for each in COLUMNS),
        ]
    )
    parts: dict[str, pa.Table] = {}
    for code, site in enumerate(stations.dictionary.to_pylist()):
        rows = np.flatnonzero(stations.indices.to_numpy() == code)
        place = {name: float(hourly[name][rows[0]]) for name in ("latitude", "longitude")}
        observed = on_the_hour({name: values[rows] for name, values in hourly.items()})
        name = site.removeprefix(PREFIX)
        if name in DEAD_GAUGES:
            observed["precipitation_mm"][int((DEAD_GAUGES[name] - START).astype(int)) :] = np.nan
        steps = without_wet_gaps(without_stuck(reduced(observed, **place)))
        if complete(steps):
            places = [each.array(np.full(STEPS, round(place[each.name] * 10**each.decimals))) for each in PLACE]
            columns = [[name] * STEPS, *places, times, *(each.array(steps[each.name]) for each in COLUMNS)]
            parts[name] = pa.table(columns, schema)
    return pa.concat_tables([parts[name] for name in sorted(parts)]).combine_chunks()


def well_observed(table: pa.Table) -> pa.Table:
    """The hours of stations with a sound gauge that know the rain of enough of them."""
    stations = table["site"].cast(pa.string())
    rain = table["precipitation_mm"].to_numpy()
    known = pa.table({"site": stations, "known": ~np.isnan(rain)}).group_by("site").aggregate([("known", "sum")])
    enough = known.filter(pc.field("known_sum") >= LEAST_HOURS * STEPS * HOURS)["site"].to_pylist()
    chosen = [site for site in enough if site.removeprefix(PREFIX) not in DEAD_GAUGES]
    return table.filter(pc.is_in(stations, value_set=pa.array(chosen)))


def on_the_hour(rows: dict[str, Any]) -> dict[str, Floats]:
    """The values of one station, (H,), NaN without a row."""
    hour = rows["time"].astype("datetime64[h]").astype(np.int64) - START.astype(np.int64) - 1
    hourly = {name: np.full(STEPS * HOURS, np.nan) for name in VARIABLES}
    for name, values in hourly.items():
        values[hour] = rows[name]
    return hourly


def reduced(hourly: dict[str, Floats], latitude: float, longitude: float) -> dict[str, Integers]:
    """Values of one station by step, (D,), as whole numbers in units of the last decimal."""
    angle = np.deg2rad(hourly["wind_direction_deg"])
    radiation_H = hourly["radiation_wm2"]
    dark_H = np.isnan(radiation_H) & (height_of_the_sun(latitude, longitude) < DARK_DEGREES)
    rain_DH = tenths(hourly["precipitation_mm"])
    return {
        "temperature": mean(tenths(hourly["temperature_c"])),
        "dewpoint": mean(tenths(hourly["dewpoint_c"])),
        "pressure": mean(tenths(hourly["pressure_surface_hpa"])),
        "wind_east": mean(tenths(-hourly["wind_speed_ms"] * np.sin(angle))),  # the direction is where it comes from
        "wind_north": mean(tenths(-hourly["wind_speed_ms"] * np.cos(angle))),
        "gust": kept(tenths(hourly["gust_ms"]).max(axis=1), tenths(hourly["gust_ms"]), FEWEST_HOURS),
        "rain": kept(rain_DH.sum(axis=1), rain_DH, HOURS),
        "radiation": mean(tenths(np.where(dark_H, 0.0, radiation_H) / 10), HOURS),
    }


def tenths(values_H: Floats) -> Integers:
    """The hours of each step, (D, 6), in tenths."""
    known_H = ~np.isnan(values_H)
    whole_H = np.full(len(values_H), NOTHING, np.int64)
    whole_H[known_H] = np.rint(values_H[known_H] * 10).astype(np.int64)
    return whole_H.reshape(-1, HOURS)


def mean(whole_DH: Integers, fewest: int = FEWEST_HOURS) -> Integers:
    """Means of the known hours of each step, rounded half up."""
    known_DH = whole_DH != NOTHING
    count_D = np.maximum(known_DH.sum(axis=1), 1)
    total_D = np.where(known_DH, whole_DH, 0).sum(axis=1)
    return kept((2 * total_D + count_D) // (2 * count_D), whole_DH, fewest)


def kept(values_D: Integers, whole_DH: Integers, fewest: int) -> Integers:
    """The values of steps with enough known hours; the others are missing."""
    return np.where((whole_DH != NOTHING).sum(axis=1) >= fewest, values_D, NOTHING)


def without_stuck(steps: dict[str, Integers]) -> dict[str, Integers]:
    """The values of one station without those of stuck sensors; a stuck vane or anemometer spoils both components."""
    wind = in_long_run(steps["wind_east"]) | in_long_run(steps["wind_north"])
    rain = in_long_run(steps["rain"]) & (steps["rain"] > 0)
    blank = {"wind_east": wind, "wind_north": wind, "gust": in_long_run(steps["gust"]), "rain": rain}
    return {name: np.where(blank[name], NOTHING, values) if name in blank else values for name, values in steps.items()}


def without_wet_gaps(steps: dict[str, Integers]) -> dict[str, Integers]:
    """The values of one station, without a dewpoint that is missing in rain above all."""
    gap, wet, dry = steps["dewpoint"] == NOTHING, steps["rain"] > 0, steps["rain"] == 0
    fails = wet.any() and dry.any() and gap[wet].mean() - gap[dry].mean() > MOST_WET_GAPS
    return {**steps, "dewpoint": np.full(STEPS, NOTHING)} if fails else steps


def in_long_run(values_D: Integers) -> NDArray[np.bool_]:
    """True for each value in a run of at least `STUCK_STEPS` equal ones."""
    number_D = np.concatenate([[0], np.cumsum(np.diff(values_D) != 0)])
    return np.bincount(number_D)[number_D] >= STUCK_STEPS


def height_of_the_sun(latitude: float, longitude: float) -> Floats:
    """Degrees of the sun above the horizon at the middle of each hour, (H,), to about a degree."""
    middle = START + np.arange(STEPS * HOURS)
    day_H = (middle - middle.astype("datetime64[Y]")).astype(float) / 24
    declination_H = np.deg2rad(-23.44) * np.cos(2 * np.pi * (day_H + 10) / 365.25)
    hour_H = middle.astype(np.int64) % 24 + 0.5 + longitude / 15
    turn_H, north = np.deg2rad(15 * (hour_H - 12)), np.deg2rad(latitude)
    sine_H = np.sin(north) * np.sin(declination_H) + np.cos(north) * np.cos(declination_H) * np.cos(turn_H)
    return np.rad2deg(np.arcsin(sine_H))


def complete(steps: dict[str, Integers]) -> bool:
    """True for a station with enough outcomes, temperatures and pressures."""
    known = {name: values != NOTHING for name, values in steps.items()}
    outcome = np.all(np.lib.stride_tricks.sliding_window_view(known["rain"][1:], 24 // HOURS), axis=1)
    return min(outcome.mean(), known["temperature"].mean(), known["pressure"].mean()) >= LEAST_SHARE


def write(table: pa.Table, output: Path) -> None:
    """Write the file with the encoding of each column."""
    encodings = {"time": COURSE, **{each.name: each.encoding for each in COLUMNS if each.encoding}}
    pq.write_table(
        table,
        output,
        compression="zstd",
        compression_level=19,
        row_group_size=len(table),
        use_dictionary=[name for name in table.column_names if name not in encodings],
        column_encoding=encodings,
        write_statistics=False,
        store_decimal_as_integer=True,
    )


def main() -> None:
    """Make the file from the table of hours."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("hours", type=Path, help="the table of hourly observations, Parquet")
    parser.add_argument("--output", type=Path, default=OUTPUT)
    parser.add_argument("--hourly", type=Path, help="write the hours of well observed stations to this file instead")
    arguments = parser.parse_args()
    first, last = (pa.scalar(time.astype("datetime64[ms]")) for time in (START, END))
    table = pq.read_table(
        arguments.hours,
        columns=["site", "latitude", "longitude", "time", *VARIABLES],
        filters=(pc.field("time") > first) & (pc.field("time") <= last),
    )
    if arguments.hourly is not None:
        chosen = well_observed(table)
        pq.write_table(chosen, arguments.hourly)
        print(f"{arguments.hourly}: {len(pc.unique(chosen['site']))} stations, {len(chosen):,} rows")
        return
    made = make(table)
    write(made, arguments.output)
    sites, size = len(pc.unique(made["site"])), arguments.output.stat().st_size
    known = 1 - made["rain"].null_count / len(made)
    print(f"{arguments.output}: {sites} stations, {len(made):,} rows, {size:,} bytes, rain known in {known:.1%}")


if __name__ == "__main__":
    main()
