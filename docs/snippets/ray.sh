# needs: mnist
fedweave run --data mnist --clients 100 --cohort 0.1 --model 2nn --lr 0.1 --rounds 10 --seed 0 \
  --engine ray --out runs/cluster
