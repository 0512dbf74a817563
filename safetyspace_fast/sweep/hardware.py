"""Hardware on paper: what a sweep takes on devices that are not here, and what limits it."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import ceil

from ..errors import ConfigError
from ..extract.plan import Batching
from ..names import nearest
from .schedule import Conditions, Schedule, Unit, simulate
from .work import Work

ASSUMPTIONS = (
    "forward passes reach 40 % of a device's dense bfloat16 rate (assumed, not measured)",
    "finishing reaches 25 % of a device's float32 rate; for each cell of D dimensions it takes "
    "4,000 + 6 D operations for each pair of texts of a language, and 4,000 D for each text",
    "a unit is 512 texts of one language and model; a device keeps its model as long as there are "
    "units of it, and takes 30 s beside reading to make another one ready",
    "all devices share the rate of the file system; one reads at most 2 GB/s",
    "a model that needs several devices takes as much of their time as it would take of one",
    "devices fail or are preempted at random (failure=24h: once a day each), lose the batch in "
    "hand and are back after 5 minutes",
)
_FORWARD_SHARE, _FINISH_SHARE, _FREE = 0.40, 0.25, 0.8
_START_S = 30.0
_GOOD = 0.7
"""Share of useful time above which the work itself is the limit."""
MOST_DEVICES = 100_000
"""Of a cluster on paper: each is simulated."""
PART_SAMPLES = Batching(0).part_samples
_BY_LABELLING, _BY_DISTANCE = 4000, 6
"""Operations of 1,000 permutations of the labels, and of three distances, in products."""


@dataclass(frozen=True)
class Device:
    """One kind of device, by its data sheet.

    flops: dense bfloat16 operations in a second.
    flops32: the same of float32.
    memory_bytes: for weights and states.
    """

    flops: float
    flops32: float
    memory_bytes: float


DEVICES = {
    "a100": Device(312e12, 19.5e12, 80e9),
    "h100": Device(989e12, 67e12, 80e9),
    "h200": Device(989e12, 67e12, 141e9),
    "b200": Device(2250e12, 75e12, 180e9),
    "l40s": Device(362e12, 92e12, 48e9),
    "l4": Device(121e12, 30e12, 24e9),
    "rtx4090": Device(165e12, 83e12, 24e9),
}


@dataclass(frozen=True)
class Price:
    """What one device costs for an hour."""

    amount: float
    currency: str


@dataclass(frozen=True)
class Cluster:
    """Nodes with devices of one kind.

    read_bytes_per_s: of weights, from the file system that all nodes share.
    store_bytes_per_s: to the store.
    hours_to_failure: mean time until one device fails or is preempted.
    """

    name: str
    device: Device
    per_node: int
    nodes: int = 1
    read_bytes_per_s: float = 5e9
    store_bytes_per_s: float = 1e9
    hours_to_failure: float = 24.0
    price: Price | None = None

    @property
    def devices(self) -> int:
        """Of all nodes."""
        return self.per_node * self.nodes


@dataclass(frozen=True)
class Estimate:
    """What a sweep takes on a cluster.

    seconds: with failures; `seconds_without_failures` with none.
    device_hours: of all devices until the end, idle or not: what is paid for.
    read_bytes, store_bytes: of weights, each model read once by a device; of arrays.
    schedule: where the devices' time goes.
    bottleneck: what to change first.
    """

    seconds: float
    seconds_without_failures: float
    device_hours: float
    read_bytes: int
    store_bytes: int
    schedule: Schedule
    bottleneck: str

    def cost(self, price: Price) -> str:
        """The price of the device hours."""
        return f"{self.device_hours * price.amount:,.2f} {price.currency}"


def parse_cluster(text: str) -> Cluster:
    """Read `DEVICExN[,nodes=N][,read=GB/s][,store=GB/s][,failure=24h][,price=2.50USD/h]`.

    Raises:
        ConfigError: an unknown device or key, a value without a unit that needs one, or more than
            `MOST_DEVICES`.
    """
    kind, *options = text.split(",")
    match = re.fullmatch(r"([a-z0-9]+?)(?:x(\d+))?", kind.strip().lower())
    name = match[1] if match else kind
    if match is None or name not in DEVICES:
        raise ConfigError(
            f"hardware: got {kind!r}, expected `this` or one of {', '.join(DEVICES)}, as in "
            f"h100x8,nodes=16{nearest(name, DEVICES)}"
        )
    cluster = Cluster(text, DEVICES[name], _whole("hardware", match[2] or "1"))
    for option in options:
        key, _, value = (part.strip() for part in option.partition("="))
        if key == "nodes":
            cluster = replace(cluster, nodes=_whole("nodes", value))
        elif key == "read":
            cluster = replace(cluster, read_bytes_per_s=_rate("read", value))
        elif key == "store":
            cluster = replace(cluster, store_bytes_per_s=_rate("store", value))
        elif key == "failure":
            cluster = replace(cluster, hours_to_failure=_hours(value))
        elif key == "price":
            cluster = replace(cluster, price=_price(value))
        else:
            keys = ("nodes", "read", "store", "failure", "price")
            raise ConfigError(
                f"hardware: no key {key!r}; choose from {', '.join(keys)}{nearest(key, keys)}"
            )
    if cluster.devices > MOST_DEVICES:
        raise ConfigError(
            f"hardware: got {cluster.devices:,} devices, expected at most {MOST_DEVICES:,}"
        )
    return cluster


def _whole(name: str, text: str) -> int:
    if not re.fullmatch(r"[0-9]{1,9}", text) or int(text) < 1:
        raise ConfigError(f"{name}: got {text!r}, expected a whole number from 1 on")
    return int(text)


def _rate(name: str, text: str) -> float:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([MGT])B/s", text)
    if match is None or float(match[1]) == 0:
        raise ConfigError(f"{name}: got {text!r}, expected a rate with its unit, such as 5GB/s")
    return float(match[1]) * {"M": 1e6, "G": 1e9, "T": 1e12}[match[2]]


def _hours(text: str) -> float:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)h", text)
    if match is None or float(match[1]) == 0:
        raise ConfigError(f"failure: got {text!r}, expected hours with their unit, such as 24h")
    return float(match[1])


def _price(text: str) -> Price:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([A-Z]{3})/h", text)
    if match is None:
        raise ConfigError(
            f"price: got {text!r}, expected what one device costs for an hour, with the currency: "
            "2.50USD/h"
        )
    return Price(float(match[1]), match[2])


def estimate(works: Sequence[Work], cluster: Cluster, seed: int = 0) -> Estimate:
    """What a sweep takes on a cluster whose devices take one unit after the other.

    Args:
        works: the runs of a sweep, at least one.
        cluster: the hardware.
        seed: of failures.

    Raises:
        ConfigError: a model does not fit into all devices of a node.
    """
    models = list(dict.fromkeys(work.config.models for work in works))
    units: list[Unit] = []
    forward_s = finish_s = 0.0
    for work in works:
        forward, finish = _seconds(work, cluster)
        forward_s, finish_s = forward_s + forward, finish_s + sum(finish)
        units += _units(work, models.index(work.config.models), forward, finish)
    weights = {work.config.models: work.shape.weight_bytes for work in works}
    conditions = Conditions(
        workers=cluster.devices,
        load_bytes=[weights[model] for model in models],
        read_bytes_per_s=cluster.read_bytes_per_s,
        store_bytes_per_s=cluster.store_bytes_per_s,
        start_s=_START_S,
        hours_to_failure=cluster.hours_to_failure,
    )
    schedule = simulate(units, conditions, seed)
    calm = simulate(units, replace(conditions, hours_to_failure=float("inf")), seed)
    work_done = "forward passes" if forward_s >= finish_s else "finishing"
    return Estimate(
        seconds=schedule.seconds,
        seconds_without_failures=calm.seconds,
        device_hours=schedule.seconds * cluster.devices / 3600,
        read_bytes=sum(weights.values()),
        store_bytes=sum(work.store_bytes for work in works),
        schedule=schedule,
        bottleneck=work_done if schedule.useful > _GOOD else schedule.limit,
    )


def _seconds(work: Work, cluster: Cluster) -> tuple[float, list[float]]:
    """Seconds of one device for forward passes, and to finish each language."""
    device, width = cluster.device, work.shape.hidden_size
    needed = ceil(2 * work.shape.parameters / (_FREE * device.memory_bytes))
    if needed > cluster.per_node:
        raise ConfigError(
            f"hardware: {work.model} has {work.shape.parameters / 1e9:.0f}e9 parameters and needs "
            f"{needed} devices, a node of {cluster.name} has {cluster.per_node}; stream its weights"
        )
    per_pair, per_text = _BY_LABELLING + _BY_DISTANCE * width, _BY_LABELLING * width
    finish = [
        work.cells * (n * n * per_pair + n * per_text) / (_FINISH_SHARE * device.flops32)
        for n in work.texts
    ]
    return work.flops / (_FORWARD_SHARE * device.flops), finish


def _units(work: Work, model: int, forward: float, finish: Sequence[float]) -> list[Unit]:
    """The parts of a run's languages, which workers take."""
    units: list[Unit] = []
    for n, finish_s in zip(work.texts, finish, strict=True):
        parts = ceil(n / PART_SAMPLES)
        share = n / sum(work.texts)
        seconds = (share * forward + finish_s) / parts
        units += [Unit(model, seconds, share * work.store_bytes / parts)] * parts
    return units
