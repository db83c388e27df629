# --8<-- [start:run]
fedweave run --data digits --model logistic --partition "dirichlet(alpha=0.5)" --clients 40 --cohort 8 --rounds 5 --quiet \
    --population "population(speed=lognormal(median=50, sigma=1.0), up=1e4, latency=0.2, dropout=0.05)" --sampling by-size
# --8<-- [end:run]

# --8<-- [start:budget]
fedweave run --data digits --model logistic --partition "dirichlet(alpha=0.5)" --clients 40 --cohort 8 --rounds 5 --quiet \
    --population "population(speed=lognormal(median=50, sigma=1.0))" --epochs 4 --effort "seconds(budget=2)" --out runs/budget
# --8<-- [end:budget]
