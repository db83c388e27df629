cp "$SNIPPETS"/wards.* .
# --8<-- [start:prepare]
fedweave prepare wards.toml --shape 8,8 --classes 10 --out prepared
# --8<-- [end:prepare]
# --8<-- [start:serve]
fedweave serve prepared/config.toml --out runs/wards --insecure --listen 127.0.0.1:7444 --evaluator &
# --8<-- [end:serve]
# --8<-- [start:join]
fedweave join --insecure --server 127.0.0.1:7444 --name east --workdir sites/east --data "wards:load(ward=0)" &
fedweave join --insecure --server 127.0.0.1:7444 --name west --workdir sites/west --data "wards:load(ward=1)" &
fedweave join --insecure --server 127.0.0.1:7444 --name test --workdir sites/test --data wards:test --evaluator &
wait
# --8<-- [end:join]
