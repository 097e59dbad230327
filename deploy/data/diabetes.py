"""Makes a table of 442 people with diabetes, and how far it had progressed a year later.

    python deploy/data/diabetes.py diabetes.csv

The rows come with scikit-learn: Efron, Hastie, Johnstone and Tibshirani, Least Angle Regression,
2004. `s1` to `s6` are measurements of the blood serum, in the units of that study.
"""

from __future__ import annotations

import csv
import sys
from pathlib import Path

from sklearn.datasets import load_diabetes


def main(table: Path) -> None:
    """Writes the table."""
    people = load_diabetes(scaled=False)
    with table.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow([*people.feature_names, "progression"])
        for values, progression in zip(people.data, people.target, strict=True):
            rows.writerow([*values, progression])
    print(f"{table.name}: {len(people.data)} people")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
