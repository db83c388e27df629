# SPDX-License-Identifier: Apache-2.0
"""A run that stopped early, gone on with: the same weights as the run that was never stopped."""

# --8<-- [start:resume]
import fedweave as fw

split = fw.data.partition(fw.data.load("digits"), fw.IID(), clients=10, seed=0)
settings = dict(model="2nn", data=split, local=fw.Local(lr=0.1), cohort=3, seed=0)

whole = fw.simulate(**settings, rounds=6)
fw.simulate(**settings, rounds=3, out="runs/digits")
resumed = fw.resume("runs/digits", rounds=6)
assert resumed.model_hash == whole.model_hash
# --8<-- [end:resume]
assert [r.model_hash for r in resumed.history] == [r.model_hash for r in whole.history]
