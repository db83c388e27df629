# SPDX-License-Identifier: Apache-2.0
"""Rounds that do not wait for everybody, and rounds without end."""

# --8<-- [start:run]
import fedweave as fw

split = fw.data.partition(fw.data.load("digits"), fw.Dirichlet(alpha=0.5), clients=40, seed=0)
devices = fw.Population(speed="lognormal(median=50, sigma=1.5)", dropout=0.05)
common = dict(model="logistic", data=split, cohort=8, population=devices, seed=1)

waits = fw.simulate(**common, rounds=6)
first = fw.simulate(**common, rounds=6, policy="over-selection(factor=1.5)")
buffered = fw.simulate(**common, rounds=12, policy="fedbuff(buffer=4, staleness=polynomial(a=0.5))")
# --8<-- [end:run]

# --8<-- [start:read]
for result in (waits, first, buffered):
    last = result.history[-1]
    print(f"{last.virtual_seconds:.0f} s on the clients' clock, accuracy {last.metrics['accuracy']:.2f}")
print(first.history[0].dropped, first.history[0].reasons)
print(buffered.history[-1].cohort, buffered.history[-1].staleness)
# --8<-- [end:read]
assert first.history[-1].virtual_seconds < waits.history[-1].virtual_seconds
