fedweave run --data digits --clients 20 --cohort 5 --rounds 2 --out runs/plain
cp runs/plain/config.toml config.toml
fedweave tune config.toml --seconds 2
