"""Reads what `noctule bench --out` writes with the public HdrHistogram library for Python.

usage: hdrhistogram_python.py LOG        prints a line of JSON for each interval of an interval log
"""

import json
import sys

from hdrh.histogram import HdrHistogram
from hdrh.log import HistogramLogReader


def main(path):
    total = HdrHistogram(1, 3_600_000_000_000, 3)
    reader = HistogramLogReader(path, total)
    while True:
        interval = reader.get_next_interval_histogram()
        if interval is None:
            break
        print(json.dumps({
            "start": interval.get_start_time_stamp(),
            "end": interval.get_end_time_stamp(),
            "count": interval.get_total_count(),
            "p50": interval.get_value_at_percentile(50),
            "p99": interval.get_value_at_percentile(99),
            "max": interval.get_max_value(),
        }))


main(sys.argv[1])
