"""What a piece of work cost: time, peak memory, energy, money. Every run writes one into its card."""

import os
import resource
import sys
import time
from dataclasses import dataclass
from pathlib import Path

RAPL = Path(
    "/sys/class/powercap/intel-rapl:0/energy_uj"
)  # Intel's and AMD's energy counter, where it may be read
WATTS_PER_CORE = 7.5  # a busy laptop or server core, with its share of memory, where nothing can be measured
PRICE_PER_KWH = 0.30  # euros; a household's price in much of Europe


@dataclass(frozen=True)
class Receipt:
    """energy_source says whether joules were measured or are watts × core seconds."""

    seconds: float
    cpu_s: float
    peak_rss_bytes: int
    energy_j: float
    energy_source: str
    cost_eur: float


class Meter:
    """Started when made; `receipt` says what has been used since."""

    def __init__(self) -> None:
        self.started, self.cpu, self.energy = time.monotonic(), _cpu_s(), _energy_j()

    def receipt(self) -> Receipt:
        """Time, memory and energy since the start, children that have ended included."""
        seconds, cpu_s = time.monotonic() - self.started, _cpu_s() - self.cpu
        now = _energy_j()
        if now is not None and self.energy is not None and now >= self.energy:
            energy_j, source = now - self.energy, "measured (RAPL, whole processor)"
        else:
            energy_j, source = cpu_s * WATTS_PER_CORE, f"estimated at {WATTS_PER_CORE} W a busy core"
        return Receipt(seconds, cpu_s, peak_rss_bytes(), energy_j, source, energy_j / 3.6e6 * PRICE_PER_KWH)


def peak_rss_bytes() -> int:
    """The most memory this process has held."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _cpu_s() -> float:
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def _energy_j() -> float | None:
    try:
        return int(RAPL.read_text()) / 1e6
    except (OSError, ValueError):
        return None
