fedweave data list
fedweave data describe --data digits --partition "dirichlet(alpha=0.3)" --clients 20
fedweave data plot --data digits --partition "shards(per_client=2)" --clients 20 --out shards.html
