# SPDX-License-Identifier: Apache-2.0
"""Devices: from distributions, classes and recordings; what a task takes; budgets; samplings."""

# --8<-- [start:population]
import numpy as np

import fedweave as fw

phones = fw.Population(
    speed="lognormal(median=200, sigma=1.0)",  # examples per second
    up="uniform(low=5e4, high=5e5)",  # bytes per second
    down=1e6,
    latency=0.1,  # seconds, before each transfer
    availability="diurnal(share=0.25, spread=0.6)",
    dropout=0.06,
)
devices = phones.draw(seed=0, clients=1_000_000)
print(f"{devices.nbytes / len(devices):.0f} bytes a client, {devices.speed.max() / np.median(devices.speed):.0f} x the median")
# --8<-- [end:population]
assert devices.nbytes < 60 * len(devices)

# --8<-- [start:task]
cohort = np.array([3, 14, 159])
times = devices.seconds(cohort, examples=600, down_bytes=400_000, up_bytes=400_000)
fates = devices.fates(seed=0, task=1, clients=cohort)
print(times.total, [fw.population.Fate(kind).word for kind in fates.kind])
# --8<-- [end:task]
assert times.total.shape == fates.kind.shape == (3,)

# --8<-- [start:online]
for hour in (0, 6, 12, 18):
    print(hour, len(devices.online(hour * 3600)))
print("the next change:", devices.next_change(6 * 3600))
# --8<-- [end:online]
assert devices.next_change(6 * 3600) > 6 * 3600

# --8<-- [start:classes]
world = fw.population.Mixture(
    kinds=[
        fw.Population(speed="lognormal(median=50, sigma=0.8)", up=5e4, availability="diurnal(share=0.2)", dropout=0.1),
        fw.Population(speed=2000, up=5e6),
    ],
    shares=[0.8, 0.2],
)
print(fw.population.spell(world))
# --8<-- [end:classes]
assert fw.population.population(fw.population.spell(world)) == world

# --8<-- [start:trace]
with open("phones.csv", "w") as file:
    file.write("client,speed,up,down,latency\n0,120,5e4,1e6,0.1\n1,40.5,2e4,5e5,0.3\n")
with open("sessions.csv", "w") as file:
    file.write("client,online,offline\n0,0,3600\n0,7200,9000.5\n1,1800,86400\n")

recorded = fw.population.Trace(
    "phones.csv", sample=True, availability=fw.population.Sessions("sessions.csv", period=86400, sample=True)
)
some = recorded.draw(seed=0, clients=1000)
print(np.unique(some.speed), len(some.online(3000)), len(some.online(5000)))
# --8<-- [end:trace]
assert len(some.online(3000)) == 1000 > len(some.online(5000)) > 0

# --8<-- [start:budget]
from fedweave.population import Asked, effort

local = fw.Local(epochs=2, batch_size=10)
asked = Asked(seed=0, round=1, clients=cohort, local=local, sizes=np.array([600, 600, 50]), devices=devices)
for plan in effort("seconds(budget=3)").plan(asked):
    print("nothing" if plan is None else f"{plan.epochs} epochs")
# --8<-- [end:budget]

# --8<-- [start:sampling]
from fedweave.sampling import Candidates, sampling

moment = Candidates(seed=0, round=1, population=len(devices), size=10, online=devices.available(6 * 3600))
print(sampling("available").select(moment))
# --8<-- [end:sampling]
assert devices.available(6 * 3600, sampling("available").select(moment)).all()


# --8<-- [start:own]
from dataclasses import dataclass


@dataclass(frozen=True)
class RoundRobin:
    """Clients in turn."""

    def select(self, moment: Candidates) -> np.ndarray:
        ready = moment.ready()
        first = (moment.round - 1) * moment.size
        return np.sort(ready[np.arange(first, first + min(moment.size, len(ready))) % len(ready)])


# --8<-- [end:own]
assert RoundRobin().select(Candidates(0, 2, population=5, size=3)).tolist() == [0, 3, 4]
