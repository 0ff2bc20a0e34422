#!/bin/sh
# deadline: 120
# Buffers for DMA in huge pages, where the machine has reserved some: the device reaches them at both ends through the IOMMU, they
# are given back at the end, and a pool that finds too few goes on with ordinary pages.
. "$(dirname "$0")/lib.sh"
stub=$UDRV_BIN/stub-driver
edu=$(bdf_of 1234:11e8 2) # the one that reaches all addresses
"$stub" bind "$edu"

echo 1 >/proc/sys/vm/compact_memory
echo 3 >/proc/sys/vm/nr_hugepages
free_pages() { sed -n 's/^HugePages_Free: *//p' /proc/meminfo; }
[ "$(free_pages)" -eq 3 ] || fail "the kernel reserved $(free_pages) huge pages instead of 3"

"$UDRV_BIN/vfio-kernel" huge-pages "$edu"
[ "$(free_pages)" -eq 3 ] || fail "$(free_pages) of 3 huge pages are free again"
echo 0 >/proc/sys/vm/nr_hugepages
"$stub" release "$edu"
