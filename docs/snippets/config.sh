cp "$SNIPPETS/digits.toml" digits.toml
# --8<-- [start:config]
fedweave run digits.toml --out runs/shards
fedweave run digits.toml --seed 1 --set local.momentum=0.9 --out runs/momentum
fedweave run runs/shards/config.toml --out runs/again
# --8<-- [end:config]
cmp runs/shards/final.safetensors runs/again/final.safetensors
! cmp -s runs/shards/final.safetensors runs/momentum/final.safetensors
