# SPDX-License-Identifier: Apache-2.0
"""The same data, split over clients in several ways."""

# --8<-- [start:partitions]
import fedweave as fw

data = fw.data.load("digits")
even = fw.data.partition(data, fw.IID(), clients=20, seed=0)
shards = fw.data.partition(data, fw.Shards(per_client=2), clients=20, seed=0)
skewed = fw.data.partition(data, fw.Dirichlet(alpha=0.3), clients=20, seed=0)
three = fw.data.partition(data, fw.Classes(k=3), clients=20, seed=0)
uneven = fw.data.partition(data, fw.LogNormal(sigma=1.0), clients=20, seed=0)

print(shards.describe())
# --8<-- [end:partitions]

# --8<-- [start:look]
x, y = shards.client(0)  # what client 0 holds
print(len(y), "examples with the labels", sorted(set(y.tolist())))
print(uneven.sizes)  # examples per client
skewed.plot("digits.html")  # client x label, opens offline
skewed.save("digits-split")
again = fw.data.load_split("digits-split")
assert again.fingerprint == skewed.fingerprint
# --8<-- [end:look]
for split in (even, shards, skewed, three, uneven):
    assert sum(split.sizes) == len(data.y_train)
assert all(len(set(shards.client(k)[1].tolist())) <= 4 for k in range(20))
assert all(len(set(three.client(k)[1].tolist())) == 3 for k in range(20))
