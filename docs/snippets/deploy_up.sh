# --8<-- [start:up]
fedweave up --data digits --clients 4 --cohort 4 --rounds 10 --out runs/real
# --8<-- [end:up]
# --8<-- [start:compare]
fedweave run --data digits --clients 4 --cohort 4 --rounds 10 --engine eager --out runs/simulated
cmp runs/simulated/final.safetensors runs/real/final.safetensors
# --8<-- [end:compare]
