# --8<-- [start:all]
import fedweave as fw
from fedweave.attacks import Attack
from fedweave.reduce import NNM, Mean, Median, Moment

split = fw.data.partition(fw.data.load("digits"), fw.Dirichlet(alpha=0.5), clients=10, seed=0)
for reduce in (Mean(), Median(), NNM(f=2, then=Median())):
    for attack in ("sign-flip(scale=5)", "mimic"):
        result = fw.simulate(
            model="logistic", data=split, cohort=10, rounds=10, evaluate_every=10,
            algorithm=fw.FedAvg(reduce=reduce, weighting="uniform"), attack=attack, byzantine=2,
        )  # fmt: skip
        print(f"{reduce!s:26} {attack:20} {result.history[-1].metrics['accuracy']:.3f}")
# --8<-- [end:all]


# --8<-- [start:own]
class Lazy(Attack):
    """Bad clients that send nothing new: what they would have sent, made very small."""

    def forge(self, own, honest, moment: Moment, memory):
        return [update.map(lambda value: 0.001 * value).replace(weight=update.weight) for update in own], memory


fw.simulate(model="logistic", data=split, cohort=10, rounds=2, attack=Lazy(), byzantine=0.2)
# --8<-- [end:own]
