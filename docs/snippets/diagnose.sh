fedweave run --data digits --partition "shards(per_client=2)" --clients 10 --cohort 10 \
  --model logistic --rounds 10 --out runs/skewed --quiet
# --8<-- [start:diagnose]
fedweave diagnose runs/skewed
fedweave diagnose runs/skewed --json
# --8<-- [end:diagnose]
# --8<-- [start:recommend]
fedweave recommend --data digits --partition "shards(per_client=2)" --clients 10 --cohort 10 \
  --model logistic --budget 60 --out runs/search
# --8<-- [end:recommend]
# --8<-- [start:named]
fedweave recommend fedavg "fedprox(mu=0.1)" scaffold --partition "dirichlet(alpha=0.3)" \
  --model logistic --cohort 5 --budget 18 --metric clients_loss
# --8<-- [end:named]
