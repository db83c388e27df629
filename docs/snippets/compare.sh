fedweave compare fedavg "fedsgd(server_lr=0.5)" --data digits \
  --partition "shards(per_client=2)" --clients 20 --cohort 0.25 --lr 0.1 \
  --rounds 10 --target accuracy=0.7 --seeds 0,1 --out runs/comparison
