# needs: mnist
fedweave run --data mnist --partition "dirichlet(alpha=0.3)" --clients 100 \
  --cohort 0.1 --model 2nn --algorithm fedavg --lr 0.1 --epochs 1 --batch-size 10 \
  --rounds 100 --target accuracy=0.97 --seed 0 --out runs/mnist
