# Keeps glibc from giving pages back to the system between steps: a fifth faster on a CPU (benchmarks/RESULTS.md).
export MALLOC_MMAP_THRESHOLD_=8589934592 MALLOC_TRIM_THRESHOLD_=17179869184 MALLOC_TOP_PAD_=268435456
export GLIBC_TUNABLES=glibc.malloc.hugetlb=1
