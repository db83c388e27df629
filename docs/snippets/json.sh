fedweave run --data digits --clients 10 --rounds 3 --json --out runs/machine > rounds.jsonl
