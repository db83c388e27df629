fedweave run --data digits --clients 10 --rounds 3 --out runs/first --quiet
# --8<-- [start:look]
fedweave runs list
fedweave runs show runs/first
fedweave report runs/first
# --8<-- [end:look]
