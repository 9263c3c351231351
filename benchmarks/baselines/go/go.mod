module snapstore/benchmarks/seed

go 1.19
