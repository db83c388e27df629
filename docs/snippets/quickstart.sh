fedweave run --data digits --partition "dirichlet(alpha=0.3)" --clients 20 \
  --cohort 0.25 --model 2nn --algorithm fedavg --lr 0.1 --epochs 1 --batch-size 10 \
  --rounds 40 --target accuracy=0.9 --seed 0 --out runs/first
