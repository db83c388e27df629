# needs: heart-disease
cp "$SNIPPETS"/hospitals.* .
python hospitals.py
# --8<-- [start:invite]
fedweave pki init
for hospital in cleveland hungarian switzerland va; do
  fedweave pki token $hospital --out $hospital.token
done
fedweave serve hospitals.toml --out runs/heart --pki pki --listen 127.0.0.1:7445 --enrol-listen 127.0.0.1:7446 &
# --8<-- [end:invite]
until fedweave status runs/heart 2>&1 | grep -q gathering; do sleep 0.2; done
# --8<-- [start:enrol]
fedweave pki enrol --workdir sites/va --token-file va.token --server 127.0.0.1:7446
fedweave join --server 127.0.0.1:7445 --workdir sites/va --data "hospitals:load(hospital='va')" &
# --8<-- [end:enrol]
for hospital in cleveland hungarian switzerland; do
  fedweave pki enrol --workdir sites/$hospital --token-file $hospital.token --server 127.0.0.1:7446
  fedweave join --server 127.0.0.1:7445 --workdir sites/$hospital --data "hospitals:load(hospital='$hospital')" &
done
wait
python hospitals.py runs/heart
