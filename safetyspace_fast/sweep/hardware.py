"""Hardware on paper: what a sweep takes on devices that are not here, and what limits it."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import ceil

from ..errors import ConfigError
from ..names import nearest
from .work import Work

ASSUMPTIONS = (
    "forward passes reach 40 % of a device's dense bfloat16 rate (assumed, not measured)",
    "finishing reaches 25 % of a device's float32 rate; for each cell of D dimensions it takes "
    "4,000 + 6 D operations for each pair of texts of a language, and 4,000 D for each text",
    "weights are read once for each model of a device; all devices share the file system's rate",
    "a model runs on as many devices as its weights need, and 20 % of their memory is kept free",
    "nothing fails: `schedule` says what failures and preemption cost",
)
_FORWARD_SHARE, _FINISH_SHARE, _FREE = 0.40, 0.25, 0.8
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
    """

    name: str
    device: Device
    per_node: int
    nodes: int = 1
    read_bytes_per_s: float = 5e9
    store_bytes_per_s: float = 1e9
    price: Price | None = None

    @property
    def devices(self) -> int:
        """Of all nodes."""
        return self.per_node * self.nodes


@dataclass(frozen=True)
class Demand:
    """What one run takes on a cluster: seconds of its devices, and how many these are."""

    load_s: float
    forward_s: float
    finish_s: float
    store_s: float
    devices: int

    @property
    def seconds(self) -> float:
        """Until the run is complete, if nothing else runs; writing goes on beside it."""
        return self.load_s + max(self.forward_s + self.finish_s, self.store_s)


@dataclass(frozen=True)
class Estimate:
    """What a sweep takes on a cluster.

    bottleneck: forward passes, finishing, reading weights, writing the store, or the last model.
    """

    seconds: float
    device_hours: float
    read_bytes: float
    store_bytes: float
    bottleneck: str
    demands: tuple[Demand, ...]

    def cost(self, price: Price) -> str:
        """The price of the device hours."""
        return f"{self.device_hours * price.amount:,.2f} {price.currency}"


def parse_cluster(text: str) -> Cluster:
    """Read `DEVICExN[,nodes=N][,read=GB/s][,store=GB/s][,price=2.50USD/h]`.

    Raises:
        ConfigError: an unknown device or key, or a value without a unit that needs one.
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
        elif key == "price":
            cluster = replace(cluster, price=_price(value))
        else:
            keys = ("nodes", "read", "store", "price")
            raise ConfigError(
                f"hardware: no key {key!r}; choose from {', '.join(keys)}{nearest(key, keys)}"
            )
    return cluster


def _whole(name: str, text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise ConfigError(f"{name}: got {text!r}, expected a whole number from 1 on")
    return int(text)


def _rate(name: str, text: str) -> float:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([MGT])B/s", text)
    if match is None or float(match[1]) == 0:
        raise ConfigError(f"{name}: got {text!r}, expected a rate with its unit, such as 5GB/s")
    return float(match[1]) * {"M": 1e6, "G": 1e9, "T": 1e12}[match[2]]


def _price(text: str) -> Price:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([A-Z]{3})/h", text)
    if match is None:
        raise ConfigError(
            f"price: got {text!r}, expected what one device costs for an hour, with the currency: "
            "2.50USD/h"
        )
    return Price(float(match[1]), match[2])


def estimate(works: Sequence[Work], cluster: Cluster) -> Estimate:
    """What a sweep takes on a cluster whose devices take one run after the other.

    A model that is too large for a device takes several.

    Raises:
        ConfigError: a model does not fit into all devices of a node.
    """
    demands = tuple(_demand(work, cluster) for work in works)
    device_s = sum(d.devices * d.seconds for d in demands)
    read = sum(work.shape.weight_bytes for work in works if work.reloads)
    store = sum(work.store_bytes for work in works)
    limits = {
        "forward passes": sum(d.devices * (d.load_s + d.forward_s) for d in demands),
        "finishing": sum(d.devices * d.finish_s for d in demands),
    }
    busiest = max(limits, key=limits.__getitem__)
    bounds = {
        busiest: device_s / cluster.devices,
        "reading weights": read / cluster.read_bytes_per_s,
        "writing the store": store / cluster.store_bytes_per_s,
        "the last model": makespan([(d.devices, d.seconds) for d in demands], cluster.devices),
    }
    slack = 1.05  # a schedule that is almost full is limited by the work in it, not by its end
    bottleneck = max(bounds, key=bounds.__getitem__)
    if bottleneck == "the last model" and bounds[bottleneck] < slack * bounds[busiest]:
        bottleneck = busiest
    return Estimate(
        max(bounds.values()),
        device_s / 3600,
        read,
        store,
        bottleneck,
        demands,
    )


def makespan(runs: Sequence[tuple[int, float]], devices: int) -> float:
    """Seconds until the last run ends, if each begins as soon as enough devices are free.

    Args:
        runs: devices and seconds of each, in order.
        devices: of the cluster.
    """
    free_at = [0.0] * devices
    for needed, seconds in runs:
        free_at.sort()
        needed = min(needed, devices)
        begin = free_at[needed - 1]
        free_at[:needed] = [begin + seconds] * needed
    return max(free_at)


def _demand(work: Work, cluster: Cluster) -> Demand:
    device = cluster.device
    needed = ceil(2 * work.shape.parameters / (_FREE * device.memory_bytes))
    if needed > cluster.per_node:
        raise ConfigError(
            f"hardware: {work.model} has {work.shape.parameters / 1e9:.0f}e9 parameters and needs "
            f"{needed} devices of {cluster.name}, a node has {cluster.per_node}; stream its weights"
        )
    width = work.shape.hidden_size
    per_pair, per_text = _BY_LABELLING + _BY_DISTANCE * width, _BY_LABELLING * width
    finish_flops = work.cells * sum(n * n * per_pair + n * per_text for n in work.texts)
    return Demand(
        load_s=work.reloads * work.shape.weight_bytes / (cluster.read_bytes_per_s / cluster.nodes),
        forward_s=work.flops / (_FORWARD_SHARE * device.flops * needed),
        finish_s=finish_flops / (_FINISH_SHARE * device.flops32),
        store_s=work.store_bytes / cluster.store_bytes_per_s,
        devices=needed,
    )
