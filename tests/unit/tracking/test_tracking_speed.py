"""Throughput, MFU, peaks, and sums that never wait for the device."""

from __future__ import annotations

import time

import pytest
import torch

from triune.tracking import peaks
from triune.tracking.sums import DeviceSums
from triune.tracking.throughput import Throughput


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def run(speed: Throughput, clock: Clock, steps: int, seconds: float, tokens: int = 1000) -> None:
    for _ in range(steps):
        clock.now += seconds
        speed.count(tokens)


def test_rate_leaves_out_the_first_step_validation_and_the_distant_past() -> None:
    clock = Clock()
    speed = Throughput(flops_per_token=6e6, peak_flops=1e12, window=10.0, clock=clock)
    speed.start()
    assert speed.mark() is None
    run(speed, clock, 1, 50.0)  # compiles
    assert speed.mark() is None
    run(speed, clock, 10, 0.5)
    rate = speed.mark()
    assert rate is not None
    assert rate.tokens_per_second == pytest.approx(2000)
    assert rate.mfu == pytest.approx(2000 * 6e6 / 1e12)
    speed.pause()
    speed.pause()
    clock.now += 1000
    speed.resume()
    run(speed, clock, 5, 0.5)
    speed.resume()  # resuming what runs loses no time
    run(speed, clock, 5, 0.5)
    rate = speed.mark()
    assert rate is not None
    assert rate.tokens_per_second == pytest.approx(2000)
    for _ in range(6):  # 12 s at another speed: the window of 10 s forgets the first
        run(speed, clock, 2, 1.0)
        rate = speed.mark()
    assert rate is not None
    assert rate.tokens_per_second == pytest.approx(1000)
    assert speed.tokens == 33_000
    assert speed.seconds == pytest.approx(72.0)
    assert speed.overall is not None
    assert speed.overall.tokens_per_second == pytest.approx(33_000 / 72)


def test_a_mark_without_new_tokens_repeats_the_rate() -> None:
    clock = Clock()
    speed = Throughput(clock=clock)
    speed.start()
    run(speed, clock, 5, 1.0)
    first = speed.mark()
    clock.now += 5
    assert speed.mark() == first
    assert first is not None
    assert first.mfu is None


def test_totals_go_on_after_a_continuation_of_a_continuation() -> None:
    state = None
    for _ in range(3):
        clock = Clock()
        speed = Throughput(clock=clock)
        if state:
            speed.load_state_dict(state)
        speed.start()
        run(speed, clock, 4, 2.0)
        state = speed.state_dict()
    assert state == {"tokens": 12_000, "seconds": pytest.approx(24.0)}


@pytest.mark.parametrize(
    ("name", "precision", "tera"),
    [
        ("NVIDIA H100 80GB HBM3", "bf16", 989.5),
        ("NVIDIA H100 PCIe", "bf16", 756.5),
        ("NVIDIA H100 NVL", "bf16", 835.5),
        ("NVIDIA H200", "bf16", 989.5),
        ("NVIDIA H200", "tf32", 494.7),
        ("NVIDIA GH200 480GB", "bf16", 989.5),
        ("NVIDIA A100-SXM4-80GB", "bf16", 312),
        ("NVIDIA A100-PCIE-40GB", "fp32", 19.5),
        ("NVIDIA A10G", "bf16", 70),
        ("NVIDIA A10", "bf16", 125),
        ("NVIDIA L4", "bf16", 121),
        ("NVIDIA L40S", "bf16", 362),
        ("NVIDIA L40", "bf16", 181),
        ("Tesla T4", "fp16", 65),
        ("Tesla T4", "bf16", None),
        ("Tesla V100-SXM2-16GB", "fp16", 125),
        ("NVIDIA B200", "bf16", 2250),
        ("NVIDIA GB200", "bf16", 2500),
        ("NVIDIA GeForce RTX 4090", "bf16", 165.2),
        ("NVIDIA GeForce RTX 4090 D", "bf16", None),
        ("NVIDIA RTX A6000", "bf16", 154.8),
        ("NVIDIA A16", "bf16", None),
        ("NVIDIA RTX A1000", "bf16", None),
        ("AMD Instinct MI300X", "bf16", 1307.4),
    ],
)
def test_peak_of_a_named_device(name: str, precision: str, tera: float | None) -> None:
    assert peaks.known(name, precision) == (None if tera is None else tera * 1e12)


def test_the_measured_ceiling_is_quick_kept_and_leaves_the_random_state(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.set_num_threads(1)
    peaks.measured.cache_clear()
    monkeypatch.setattr(peaks, "_SECONDS", 0.05)
    state = torch.get_rng_state()
    start = time.perf_counter()
    peak = peaks.device_peak(torch.device("cpu"), "fp32")
    # 0.05 s and one product that may start just before; the rest is room for a machine that does other work
    assert time.perf_counter() - start < 2
    assert peak is not None
    # a GFLOP/s is less than any CPU reaches, a PFLOP/s more
    assert 1e9 < peak.flops < 1e15
    assert peaks.device_peak(torch.device("cpu"), "fp32") is peak
    assert torch.equal(state, torch.get_rng_state())
    assert peaks.device_peak(torch.device("meta"), "fp32") is None


def test_nothing_reads_the_device_between_log_lines() -> None:
    """A meta tensor has no value: whatever would wait for one raises."""
    meta = torch.ones((), device="meta")
    for read in (meta.item, meta.tolist, meta.cpu, lambda: float(meta), lambda: bool(meta)):
        with pytest.raises((RuntimeError, NotImplementedError)):
            read()
    sums, speed = DeviceSums(), Throughput()
    speed.start()
    for _ in range(5):
        sums.add(loss=meta, weight=meta)
        speed.count(10)
        speed.mark()
    assert set(sums.state_dict()) == {"loss", "weight"}
    with pytest.raises((RuntimeError, NotImplementedError)):
        sums.read()


def test_sums_read_once_and_start_again() -> None:
    sums = DeviceSums()
    value = torch.tensor(1.5, requires_grad=True)
    sums.add(loss=value, weight=torch.tensor(2))
    sums.add(loss=value, weight=torch.tensor(3))
    with torch.no_grad():
        value.fill_(100.0)  # a caller that reuses its tensor changes nothing that was added
    saved = sums.state_dict()
    assert not any(tensor.requires_grad for tensor in saved.values())
    sums.add(loss=torch.tensor(1.0), weight=torch.tensor(0))
    assert sums.read() == {"loss": 4.0, "weight": 5.0}
    assert sums.read() == {}
    again = DeviceSums()
    again.load_state_dict(saved)
    again.add(loss=torch.tensor(1.0), weight=torch.tensor(1.0))
    assert again.read(lambda vector: vector * 2) == {"loss": 8.0, "weight": 12.0}
    assert saved["loss"].item() == 3.0
