# --8<-- [start:compare]
fedweave compare synchronous "over-selection(factor=1.5)" "deadline(seconds=2.0)" "fedbuff(buffer=4)" --quiet \
    --data digits --model logistic --partition "dirichlet(alpha=0.5)" --clients 40 --cohort 8 --rounds 8 --target accuracy=0.6 \
    --population "population(speed=lognormal(median=50, sigma=1.5), dropout=0.05)" --out runs/policies
# --8<-- [end:compare]
