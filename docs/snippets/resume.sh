# --8<-- [start:resume]
fedweave run --data digits --clients 10 --rounds 5 --out runs/long
fedweave resume runs/long --rounds 10
# --8<-- [end:resume]
test "$(wc -l < runs/long/rounds.jsonl)" -ge 10
