// Every kernel of the backend in one translation unit: one cubin an architecture.
#include "product.cuh"
#include "warpgroup.cuh"
#include "direct.cuh"
#include "maps.cuh"
#include "pools.cuh"
#include "norms.cuh"
#include "edges.cuh"
