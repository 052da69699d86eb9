"""The next day of a series that no weather encoder has seen: `python -m benchmarks.etth1 ETTh1.csv`.

ETTh1 has the hourly oil temperature and six loads of a transformer. Each series goes alone through the embedded encoder, in the
place of air temperature, standardised by the first year. From the second year on, mean absolute errors of the next 24 hours, in
units of that standard deviation: the encoder, the same hour of the day before, and the mean of the hour in the first year.
"""

import argparse
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from numpy.lib.stride_tricks import sliding_window_view

from llueve.model.checkpoints.pretrained import read_pretrained
from llueve.model.classifier import TimerXLForClassification
from llueve.model.heads import DayHead
from llueve.model.weather_xl import DAYS, WeatherXL
from llueve.quantities.encoder_quantities import ENCODER_QUANTITIES
from llueve.samples.encoder_inputs import place_facts

DAY, YEAR = 24, 365 * 24
PLACE = ENCODER_QUANTITIES.index("air_temperature")


def errors(values: np.ndarray, times: np.ndarray, model: TimerXLForClassification) -> tuple[float, float, float]:
    """Mean absolute errors of encoder, persistence and hourly mean, at every hour of the second year on."""
    first = values[:YEAR]
    scaled = ((values - first.mean()) / first.std()).astype(np.float32)
    ends = np.arange(YEAR, len(scaled) - DAY)
    windows = sliding_window_view(scaled, DAYS * DAY)[ends - DAYS * DAY + 1]
    after = sliding_window_view(scaled, DAY)[ends + 1]
    unknown = np.full(len(ends), np.nan)
    facts = place_facts(times[ends], unknown, unknown)
    found = []
    with torch.inference_mode():
        for start in range(0, len(ends), 512):
            x_BLC = torch.zeros(len(windows[start : start + 512]), DAYS * DAY, len(ENCODER_QUANTITIES))
            observed_BLC = torch.zeros_like(x_BLC, dtype=torch.bool)
            x_BLC[..., PLACE] = torch.from_numpy(windows[start : start + 512].copy())
            observed_BLC[..., PLACE] = True
            pooled = model.pool(x_BLC, observed_BLC, torch.from_numpy(facts[start : start + 512]))
            days = model.answer(pooled).days
            assert days is not None
            found.append(days.next_BCNP[:, 0, -1].numpy())
    hour = pd.DatetimeIndex(times).hour.to_numpy()
    usual = np.array([scaled[:YEAR][hour[:YEAR] == each].mean() for each in range(DAY)])
    cycle = usual[(hour[ends][:, None] + np.arange(1, DAY + 1)) % DAY]
    before = sliding_window_view(scaled, DAY)[ends - DAY + 1]
    return tuple(float(np.abs(each - after).mean()) for each in (np.concatenate(found), before, cycle))


def main() -> None:
    """Print one line for each series."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    table = pd.read_csv(parser.parse_args().file, parse_dates=["date"])
    encoder = read_pretrained("embedded").build(0.0, "time")
    assert isinstance(encoder, WeatherXL)
    encoder.seen = (PLACE,)
    model = TimerXLForClassification(encoder, 2, DayHead(), instance_norm=False).eval()
    print("series  encoder  persistence  daily cycle")
    for name in table.columns[1:]:
        found = errors(table[name].to_numpy(float), table["date"].to_numpy(), model)
        print(f"{name:6s} {found[0]:8.3f} {found[1]:12.3f} {found[2]:12.3f}", flush=True)


if __name__ == "__main__":
    main()
