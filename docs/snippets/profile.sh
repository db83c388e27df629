fedweave run --data digits --clients 20 --cohort 5 --rounds 5 --profile --out runs/profiled
