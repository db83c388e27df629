# --8<-- [start:run]
fedweave run --clients 10 --cohort 10 --rounds 10 --attack 'ipm(epsilon=0.1)' --byzantine 2 \
    --algorithm 'worker-momentum(reduce=centred_clipping(radius=0.5))'
# --8<-- [end:run]
# --8<-- [start:compare]
fedweave compare fedavg 'fedavg(reduce=nnm(f=2, then=trimmed_mean(f=2)))' \
    --clients 10 --cohort 10 --rounds 10 --attack 'sign-flip(scale=5)' --byzantine 2
# --8<-- [end:compare]
