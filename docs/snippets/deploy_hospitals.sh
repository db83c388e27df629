# needs: heart-disease
cp "$SNIPPETS"/hospitals.* .
# --8<-- [start:serve]
python hospitals.py
fedweave serve hospitals.toml --out runs/heart --insecure --listen 127.0.0.1:7443 &
# --8<-- [end:serve]
# --8<-- [start:join]
for hospital in cleveland hungarian switzerland va; do
  fedweave join --insecure --server 127.0.0.1:7443 --name $hospital --workdir sites/$hospital \
    --data "hospitals:load(hospital='$hospital')" &
done
wait
# --8<-- [end:join]
# --8<-- [start:look]
fedweave status runs/heart
fedweave logs runs/heart
fedweave report runs/heart
python hospitals.py runs/heart
# --8<-- [end:look]
